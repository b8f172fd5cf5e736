"""Logs: one JSON object a line in Cloud Logging's fields, or readable lines on a terminal.

Each event carries an `action` from the list in docs/log.md. No user data is logged: message ids, fields' names, counts.
docs/log.md has the fields.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from worker.ingest.http import trace_context

_SEVERITY: Final = {"WARN": "WARNING", "FATAL": "CRITICAL"}
_CLOUD: Final = "logging.googleapis.com/"

Labels = Callable[[], Mapping[str, str]]
"""The labels of the whole process at the moment a line is written."""


class _Json(logging.Formatter):
    """Source of the field names: Cloud Logging documentation, "Structured logging"; Error Reporting documentation,
    "Format errors in logs": a log entry with `stack_trace` is an error, grouped by its frames.

    Args:
        project: Where the traces are that lines belong to; without it a line has a trace's id alone.
        service: The service's name and version, for Error Reporting.
    """

    def __init__(self, project: str, service: Mapping[str, str]) -> None:
        super().__init__()
        self._traces = f"projects/{project}/traces/" if project else ""
        self._service = dict(service)
        self.labels: Labels = dict

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "severity": _SEVERITY.get(record.levelname, record.levelname),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "message": record.getMessage(),
            "action": getattr(record, "action", ""),
            "logger": record.name,
        }
        if hasattr(record, "litestream"):
            line["litestream"] = record.litestream
        if labels := self.labels():
            line[f"{_CLOUD}labels"] = dict(labels)
        if record.levelno >= logging.ERROR:
            place = {"file": record.pathname, "line": str(record.lineno), "function": record.funcName}
            line[f"{_CLOUD}sourceLocation"] = place
        if record.exc_info and record.exc_info[0] is not None:
            line["stack_trace"] = self.formatException(record.exc_info)
            line["serviceContext"] = self._service
        return json.dumps(line | self._trace())

    def _trace(self) -> dict[str, Any]:
        found = trace_context.of_request()
        if found is None:
            return {}
        named: dict[str, Any] = {f"{_CLOUD}trace": self._traces + found.trace_id}
        if found.span_id:
            named[f"{_CLOUD}spanId"] = found.span_id
        return {**named, f"{_CLOUD}trace_sampled": found.sampled}


class _Readable(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


def configure(
    level: str, stream: TextIO = sys.stderr, *, project: str = "", service: str = "solowriter", revision: str = "local"
) -> None:
    """Send this process's log to `stream`.

    Args:
        level: A setting's: debug, info, warning or error.
        stream: Where to; JSON unless it is a terminal.
        project: See `_Json`.
        service: The service's name.
        revision: The deployment's.
    """
    handler = logging.StreamHandler(stream)
    names = {"service": service, "version": revision}
    handler.setLevel(level.upper())  # a logger's own may be lower (trouble.py)
    handler.setFormatter(_Readable() if stream.isatty() else _Json(project, names))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "google", "asyncio", "uvicorn", "peewee", "opentelemetry"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it quotes errors whole, and raises what matters of them


def label(labels: Labels) -> None:
    """Have each line from now on say what `labels` returns; it is called for each line, on any thread."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Json):
            handler.formatter.labels = labels
