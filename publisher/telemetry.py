"""The gateway's log: one JSON object a line in Cloud Logging's fields, or readable lines on a terminal.

Each event carries an `action` from the list in docs/log.md. No user data is logged: reasons, fields' names, counts.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_NOISY: Final = ("uvicorn", "google", "grpc", "urllib3", "httpx", "httpcore", "asyncio")


class _CloudLogging(logging.Formatter):
    """Source of the field names: Cloud Logging documentation, "Structured logging"; Error Reporting documentation,
    "Format errors in logs".
    """

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "severity": record.levelname,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "message": record.getMessage(),
            "action": getattr(record, "action", ""),
        }
        if record.levelno >= logging.ERROR:
            place = {"file": record.pathname, "line": str(record.lineno), "function": record.funcName}
            event["logging.googleapis.com/sourceLocation"] = place
        if record.exc_info:
            event["stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(event)


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Send this process's log to `stream`.

    Args:
        level: one of `settings.LOG_LEVELS`.
        stream: where to; JSON unless it is a terminal.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s") if stream.isatty() else _CloudLogging())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


class RateLimitedLog:
    """Logs each action at most once in a while; the next line tells how many were left out.

    Args:
        log: where to.
        seconds: the least time between two lines of one action.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, log: logging.Logger, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._seconds, self._clock = log, seconds, clock
        self._next: dict[str, float] = {}  # when an action may be logged again
        self._left_out: dict[str, int] = {}

    def __call__(self, level: int, action: str, text: str) -> None:
        """Log `text`, unless this action was logged a moment ago."""
        now = self._clock()
        if now < self._next.get(action, now):
            self._left_out[action] = self._left_out.get(action, 0) + 1
            return
        self._next[action] = now + self._seconds
        left_out = self._left_out.pop(action, 0)
        more = f" ({left_out} more like this since the last line)" if left_out else ""
        self._log.log(level, "%s%s", text, more, extra={"action": action})
