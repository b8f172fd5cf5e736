"""The one place that reads what people type: numbers, ids, times, spans, paths and addresses, of options and of settings.

Each function takes a text and returns a value, or raises `Wrong`, whose text says what the value must be. `parameters` shows
it with the option's name; what reads settings puts the variable's name before it. Digits are 0 to 9: Python's own readers
take those of every script, blanks around a number, and underscores in it, and so make another value of a slip.
"""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

MAX_USER_ID: Final = 2**63 - 1
"""See `worker.events.users.MAX_USER_ID`, which a test holds equal: this module imports nothing of ours."""
MAX_INTEGER: Final = 2**63 - 1
SUBJECT_MAX_BYTES: Final = 128
"""See `worker.events.declaration.MAX_SUBJECT_BYTES`, which a test holds equal."""
ID_MAX: Final = 1024
"""Longest message id, in characters."""
SPAN_DAYS_MAX: Final = 36_500
"""Longest span, in days: a hundred years."""
_TIME: Final = "give a time such as 2026-01-31T12:00:00Z, or 30m, 12h, 7d ago"
_SPAN: Final = re.compile(r"([0-9]{1,12})([smhd])", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DAY_SECONDS: Final = 86_400
_INTEGER: Final = re.compile(r"-?[0-9]{1,4000}", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_EMAIL: Final = re.compile(r"[^\s@\"'<>,;:()\[\]\\]+@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", re.ASCII)
_QUOTES: Final = "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


class Wrong(ValueError):
    """A text is not what it must be; the error's text says what that is."""


def whole(low: int, high: int = MAX_INTEGER) -> Callable[[str], int]:
    """Return the reader of whole numbers within limits."""

    def read(text: str) -> int:
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise Wrong(f"must be a whole number from {low} to {high}")
        return int(text)

    return read


user_id: Final = whole(1, MAX_USER_ID)
"""The reader of user ids."""


def subject(text: str) -> str:
    """Whose data it is, as events name the person: a number, or a text of at most SUBJECT_MAX_BYTES bytes."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Wrong("must be text in UTF-8") from None
    if not 0 < size <= SUBJECT_MAX_BYTES or not text.isprintable():
        raise Wrong(f"must be a number, or a text of 1 to {SUBJECT_MAX_BYTES} bytes without control characters")
    return text


def number(text: str) -> float:
    """A number, such as 1, 0.5 or 1e3."""
    if not _NUMBER.fullmatch(text):
        raise Wrong("must be a number")
    return float(text)


def seconds(high: float) -> Callable[[str], float]:
    """Return the reader of waits: each has a bound (INV-7)."""

    def read(text: str) -> float:
        if not _NUMBER.fullmatch(text) or not 0 < float(text) <= high:
            raise Wrong(f"must be seconds, more than 0 and at most {high:g}")
        return float(text)

    return read


def moment(text: str) -> datetime:
    """A time in UTC: RFC 3339 with a zone, or how long ago, such as 30m, 12h or 7d."""
    if span := _SPAN.fullmatch(text):
        ago = int(span[1]) * _UNITS[span[2]]
        if ago > SPAN_DAYS_MAX * _DAY_SECONDS:
            raise Wrong(f"must be at most {SPAN_DAYS_MAX}d ago; {_TIME}")
        return datetime.now(UTC) - timedelta(seconds=ago)
    try:
        if not text.isascii():
            raise ValueError(text)
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Wrong(_TIME) from None
    if found.tzinfo is None:
        raise Wrong("give the time with its zone, for example 2026-01-31T12:00:00Z")
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise Wrong(f"the time must lie in the years 1 to 9999 of UTC; {_TIME}") from None


def message_id(text: str) -> str:
    """A message's id: Pub/Sub's are digits; other senders' are any text without control characters."""
    if not 0 < len(text) <= ID_MAX or any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text):
        raise Wrong(f"must be a message id: 1 to {ID_MAX} characters, none of control")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("must be a message id in UTF-8") from None
    return text


def path(text: str) -> Path:
    """A path that the operating system can take."""
    if not text.strip():
        raise Wrong("must be a path, and is empty")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise Wrong("must be a path without control characters, such as an end of line")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise Wrong("must be a path that this system's encoding can write") from None
    return Path(text)


def email(text: str) -> str:
    """One e-mail address, without anything around it."""
    if not _EMAIL.fullmatch(text):
        raise Wrong("must be one e-mail address, such as name@example.com, and nothing else")
    return text


def word(text: str) -> str:
    """A text of visible characters, without quotes at its ends."""
    if not text or not text.isprintable() or any(character.isspace() for character in text):
        raise Wrong("must be one word, without blanks or control characters")
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        raise Wrong("must stand without quotes")
    return text


def address(text: str) -> str:
    """An http or https address."""
    try:
        parts = urlsplit(word(text))
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except Wrong:
        raise
    except ValueError:
        right = False
    if not right:
        raise Wrong("must be an address, such as https://users.example.com")
    return text


def rfc3339(moment: datetime) -> str:
    """A time in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lasting(span: timedelta) -> str:
    """A span of time in days, hours, minutes and whole seconds: 7 days; 1 day, 2:03:04; 0:00:10."""
    return str(span).partition(".")[0].removesuffix(", 0:00:00")


def age(span: timedelta) -> str:
    """How long ago something was, in its largest unit: 12 s, 4 min, 3 h, 2 d."""
    seconds = max(int(span.total_seconds()), 0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def counted(number: int, one: str) -> str:
    """A count and what is counted, whose plural ends in s."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
