"""The templates, and how values are written in them. Everything is escaped; only these functions make text of a value."""

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from publisher.values import rfc3339
from worker.console.figures import SPARK_HEIGHT, SPARK_WIDTH, spark
from worker.console.message_text import cut, visible
from worker.operations import wording

_HERE: Final = Path(__file__).parent
_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_UNITS: Final[Mapping[str, Callable[[float], str]]] = {
    "rate": wording.rate,
    "duration": wording.duration,
    "size": wording.size,
    "number": lambda value: f"{value:,.0f}",
}
_FOREVER: Final = "public, max-age=31536000, immutable"


class Pages:
    """The templates and the static files, read once.

    Args:
        always: What every template finds.
    """

    def __init__(self, always: Mapping[str, Any]) -> None:
        self._files = {file.name: file.read_bytes() for file in (_HERE / "static").iterdir() if file.suffix in _TYPES}
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {
            "static": self.path,
            "spark": spark,
            "spark_width": SPARK_WIDTH,
            "spark_height": SPARK_HEIGHT,
            "now": lambda: datetime.now(UTC),
            **always,
        }
        self._environment.filters |= {
            "size": wording.size,
            "duration": wording.duration,
            "rate": wording.rate,
            "ago": wording.ago,
            "clock": _clock,
            "time": _time,
            "number": lambda value: wording.NOT_KNOWN if value is None else f"{value:,}",
            "known": lambda value: wording.NOT_KNOWN if value in (None, "") else visible(str(value)),
            "attr_unit": lambda value, unit: _UNITS[unit](value),
            "shell": lambda value: argument(value) if value.isprintable() else "ID",
            "visible": visible,
            "cut": cut,
            "json": lambda value: json.dumps(value, ensure_ascii=False),
        }

    def page(self, name: str, *, status: int = 200, **values: Any) -> Response:
        """A page, or a part of one."""
        text = self._environment.get_template(name).render(values)
        # A lone surrogate, which a message's JSON may escape, is no text that can be sent.
        return HTMLResponse(text.encode("utf-8", errors="replace"), status_code=status)

    def path(self, name: str) -> str:
        """The address of a static file: it changes with the content, so that a browser may keep it."""
        return f"/static/{hashlib.sha256(self._files[name]).hexdigest()[:16]}/{name}"

    def static(self, path: str) -> Response | None:
        """The static file at an address, or None."""
        name = path.rpartition("/")[2]
        if name not in self._files or path != self.path(name):
            return None
        headers = {"content-type": _TYPES[Path(name).suffix], "cache-control": _FOREVER}
        return Response(self._files[name], headers=headers)


def argument(text: str) -> str:
    """A text as the last argument of a command: a stranger may have given his message the id `--all`."""
    return f"-- {shlex.quote(text)}" if text.startswith("-") else shlex.quote(text)


def _time(value: datetime | str | None) -> str:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return wording.NOT_KNOWN if value is None else rfc3339(value).replace("T", " ").replace("Z", " UTC")


def _clock(value: datetime | None) -> str:
    return wording.NOT_KNOWN if value is None else f"{value.astimezone(UTC):%H:%M:%S} UTC"
