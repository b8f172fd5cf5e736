"""Messages as text. What a message holds is a stranger's: each character is shown as what it is, and none does anything.

Autoescaping keeps markup from being markup. Here, what would move or hide other text (control characters, marks that turn
the direction of writing) becomes visible, and what is too long for a page is cut. Pure.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

SHOWN_MAX: Final = 20_000
"""Characters of one text on a page; the command beside it shows all."""
FIELDS_MAX: Final = 100
"""Fields of a message that are listed one by one."""
EDITED_MAX: Final = 100_000
"""Longest message, in characters, that can be corrected on the page."""
_PICTURES: Final = 0x2400  # Unicode's pictures of the control characters, in their order
_DELETE: Final = 0x7F
_KEPT: Final = "\n\t"


@dataclass(frozen=True, slots=True)
class Field:
    """One line of the comparison. `message` and `stored` are None where that side has no such field."""

    name: str
    message: str | None
    stored: str | None
    differs: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A message on the page. `fields` is empty where it is no JSON object, `editable` where its text can be edited here."""

    text: str
    cut: bool
    fields: list[Field]
    more_fields: int
    editable: str | None


def visible(text: str) -> str:
    """The text, with each character that would not be seen, or would change how others are seen, made visible."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in _KEPT or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_PICTURES + code)
    if code == _DELETE:
        return "\u2421"
    if unicodedata.category(character) == "Zs":
        return " "
    return f"\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}U+{code:04X}\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


def cut(text: str, most: int = SHOWN_MAX) -> str:
    """The beginning of a text, made visible; the end says how much is missing."""
    shown = visible(text[:most])
    return shown if len(text) <= most else f"{shown}… and {len(text) - most:,} more characters"


def shown(data: bytes, stored: Mapping[str, Any] | None, detail: str) -> Shown:
    """A message for the page.

    Args:
        data: The message's.
        stored: The row that it met, by column; None if it met none.
        detail: The rejection's: it names the fields that differ.
    """
    text = data.decode(errors="backslashreplace")
    found = _object(data)
    differing = detail.partition(" another ")[2]  # before it the detail names the table and its key
    names = [*(stored or {}), *(name for name in found or {} if name not in (stored or {}))]
    fields = [_field(name, found or {}, stored or {}, differing) for name in names[:FIELDS_MAX]]
    return Shown(
        text=cut(text),
        cut=len(text) > SHOWN_MAX,
        fields=fields if found is not None or stored is not None else [],
        more_fields=max(0, len(names) - FIELDS_MAX),
        editable=_editable(data),
    )


def _field(name: str, message: Mapping[str, Any], stored: Mapping[str, Any], differing: str) -> Field:
    said, kept = message.get(name), stored.get(name)
    both = name in message and name in stored
    named = bool(stored) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", differing) is not None
    return Field(
        name=cut(name, 200),
        message=_value(said) if name in message else None,
        stored=_value(kept) if name in stored else None,
        differs=named or (both and not _same(said, kept)),
    )


def _same(said: Any, kept: Any) -> bool:
    if isinstance(kept, str) and not isinstance(said, str):  # a column of text may hold what the message states as JSON
        try:
            kept = json.loads(kept)
        except (ValueError, RecursionError):
            return False
    try:
        return bool(said == kept)
    except RecursionError:
        return False


def _value(value: Any) -> str:
    try:
        return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 2000)
    except RecursionError:  # the text was read, and writing it needs one more level
        return "(nested too deeply to be shown as a field)"


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _editable(data: bytes) -> str | None:
    """The text as it can be put into a form and comes back as it was; None if it is too long, or is no such text."""
    if len(data) > EDITED_MAX:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    clean = all(character in "\n\t\r" or unicodedata.category(character) != "Cc" for character in text)
    return text if clean else None
