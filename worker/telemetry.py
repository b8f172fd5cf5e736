"""Logs: one JSON object a line in Cloud Logging's fields, or readable lines on a terminal.

Each event carries an `action` from a list in docs/operations.md. No user data is logged: message ids, fields' names, counts.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

_SEVERITY: Final = {"WARN": "WARNING", "FATAL": "CRITICAL"}


class _Json(logging.Formatter):
    """Source of the field names: Cloud Logging documentation, "Structured logging"."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "severity": _SEVERITY.get(record.levelname, record.levelname),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "message": record.getMessage(),
            "action": getattr(record, "action", ""),
            "logger": record.name,
        }
        if record.exc_info:
            line["message"] += "\n" + self.formatException(record.exc_info)
        return json.dumps(line)


class _Readable(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Send this process's log to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Readable() if stream.isatty() else _Json())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "google", "asyncio", "uvicorn", "peewee"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
