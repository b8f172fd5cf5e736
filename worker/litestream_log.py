"""Litestream's log, line by line, as lines of ours: its severity, its text, its fields.

Its standard error is a pipe that must be read whatever happens: a full one would stop it in the middle of an upload.
"""

import asyncio
import json
import logging
from typing import Any, Final

_LINE_MAX: Final = 16_384
"""Bytes of one line; what is longer is cut."""
_LEVELS: Final = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
_ITS_OWN: Final = ("time", "level", "msg")

log = logging.getLogger(__name__)


async def follow(stream: asyncio.StreamReader) -> None:
    """Log what comes until the other end is closed."""
    rest, cut = b"", False
    while chunk := await stream.read(_LINE_MAX):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not cut:  # else this is the end of a line whose beginning was logged
                tell(line)
            cut = False
        if len(rest) > _LINE_MAX:
            if not cut:
                tell(rest[:_LINE_MAX])
            rest, cut = b"", True
    if rest and not cut:
        tell(rest)


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
