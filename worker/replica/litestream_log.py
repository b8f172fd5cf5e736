"""Litestream's log, line by line, as lines of ours: its severity, its text, its fields.

Its standard error is a pipe that must be read whatever happens: a full one would stop it in the middle of an upload.
"""

import json
import logging
from typing import Any, Final

_LINE_MAX: Final = 16_384
"""Bytes of one line; what is longer is cut."""
_LEVELS: Final = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
_ITS_OWN: Final = ("time", "level", "msg")

log = logging.getLogger(__name__)


class Follower:
    """Logs what it is given, piece by piece; an empty piece is the end."""

    def __init__(self) -> None:
        self._rest, self._cut = b"", False

    def __call__(self, piece: bytes) -> None:
        """Take a piece."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if not piece and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            if not self._cut:  # else this is the end of a line whose beginning was logged
                tell(line)
            self._cut = False
        if len(self._rest) > _LINE_MAX:
            if not self._cut:
                tell(self._rest[:_LINE_MAX])
            self._rest, self._cut = b"", True


def tell(line: bytes) -> None:
    """Log one line of Litestream's. What is not its JSON is a panic's, or said by the system before it began: an error."""
    text = line.decode(errors="replace").strip()
    if not text:
        return
    fields = _fields(text)
    level = _LEVELS.get(str(fields.get("level", "ERROR")).upper(), logging.ERROR)
    said = str(fields.get("msg", text))
    if "error" in fields:
        said = f"{said}: {fields['error']}"
    others = {name: value for name, value in fields.items() if name not in _ITS_OWN}
    log.log(level, "litestream: %s", said, extra={"litestream": others, "action": "litestream.log"})


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_first_of_each)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # It writes a field of its own after those of the line, under the same name where it likes: the line's comes first.
    return dict(reversed(pairs))
