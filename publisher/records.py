"""Reads messages from JSON Lines or CSV, one record at a time, and never more than one record in memory.

A record that is wrong is a value too: it carries its line number, its bytes and what is wrong with it, and reading goes
on behind it. CSV rules: the first line names the columns (the fields of the event, in any order; others are ignored); an
empty cell is null; a quote stands at both ends of a cell or nowhere in it; quoted cells may hold line breaks. Behind a wrong
quote the next line is read as a row again, so that a quote that is not closed takes no good row with it.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import msgspec

from publisher import values
from publisher.errors import UsageError
from publisher.message import Message
from publisher.settings import MAX_LINE_BYTES
from worker.events.catalog import Catalog
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE, MAX_DATA_BYTES, MAX_INTEGER, Event, MessageError, Reason

FORMAT_OF_SUFFIX: Final = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""The formats by the ending of a file's name."""
LINE_TOO_LONG: Final = "line_too_long"
"""Problem code: the line has more than MAX_LINE_BYTES bytes; it is read past, not kept."""
BAD_CSV: Final = "bad_csv"
"""Problem code: the row's quoting or its number of cells is wrong."""

DELIMITERS: Final = (",", ";", "\t")
"""The delimiters, in the order in which they are tried."""

_BOM: Final = b"\xef\xbb\xbf"
_CELL_MAX_BYTES: Final = 2 * MAX_DATA_BYTES
"""Longest row of several lines, in bytes: the largest settings if each of its bytes is a quote, which is written twice."""
_LOOK_BYTES: Final = 4096
_UTF16: Final = "UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE, or save it as CSV UTF-8"
_MAGIC: Final[Mapping[bytes, str]] = {
    b"\x1f\x8b": "gzip; unpack it: zcat FILE | python -m publisher load -",
    b"PK\x03\x04": "a zip archive, such as Excel's .xlsx; save it as CSV UTF-8, or unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel file, .xls; save it as CSV UTF-8",
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"%PDF": "a PDF; export CSV or JSON Lines instead",
    b"\x28\xb5\x2f\xfd": "zstd; unpack it: zstdcat FILE | python -m publisher load -",
    b"BZh": "bzip2; unpack it: bzcat FILE | python -m publisher load -",
    b"\xfd7zXZ": "xz; unpack it: xzcat FILE | python -m publisher load -",
    b"SQLite format 3": "an SQLite database; export CSV or JSON Lines from it",
}
"""How files begin that are neither format, and what they are."""
_INTEGER: Final = re.compile(r"([+-]?)0*([0-9]+)")
_MAX_DIGITS: Final = len(str(MAX_INTEGER)) + 1
_ONE_LINE: Final = "email_address"
"""A field that has no line break: in a quoted cell it is the sign of a quote that is not closed."""
_EXPORTED: Final = b'"_rejection"'
"""Stands in a line that `worker rejections export` wrote, which names the message's event."""


class Problem(NamedTuple):
    """What is wrong with a record: a code (a `message.Reason`, LINE_TOO_LONG or BAD_CSV) and a line for a person."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the input.

    Attributes:
        line: number of its first line, from 1.
        raw: its bytes as they stood there; None when they were too many to keep.
        content: the message, or what is wrong.
    """

    line: int
    raw: bytes | None
    content: Message | Problem


class Reader(Protocol):
    """Yields the records of one input."""

    @property
    def header(self) -> bytes:
        """What has to stand above rejected records so that they can be loaded again."""

    def __iter__(self) -> Iterator[Record]: ...


class Lines:
    """The lines of a stream; None stands for one that is too long.

    Attributes:
        number: of the line read last, from 1.
        bytes_read: so far.
    """

    def __init__(self, stream: BinaryIO, limit: int = MAX_LINE_BYTES) -> None:
        self._stream = stream
        self.limit: Final = limit
        self.number = 0
        self.bytes_read = 0

    def __iter__(self) -> Iterator[bytes | None]:
        return self

    def __next__(self) -> bytes | None:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > self.limit:
            while line and not line.endswith(b"\n"):
                line = self._read()
            return None
        while self.number == 1 and line.startswith(_BOM):
            line = line.removeprefix(_BOM)
        return line

    def _read(self) -> bytes:
        line = self._stream.readline(self.limit + 1)
        self.bytes_read += len(line)
        return line

    def too_long(self) -> Problem:
        """Return what is wrong with a line that is too long."""
        return Problem(LINE_TOO_LONG, f"longer than {self.limit} bytes; not copied to the rejects")


class JsonLines:
    """Records from JSON Lines: one message per line.

    Args:
        lines: the input.
        event: what each line is a message of.
        catalog: the events that a line which was exported may be a message of instead.
    """

    header = b""

    def __init__(self, lines: Lines, event: Event, catalog: Catalog) -> None:
        self._lines, self._event, self._catalog = lines, event, catalog

    def __iter__(self) -> Iterator[Record]:
        for raw in self._lines:
            if raw is None:
                yield Record(self._lines.number, None, self._lines.too_long())
            elif raw.strip():
                yield Record(self._lines.number, raw, _from_json(raw, self._event, self._catalog))


class CsvRows:
    """Records from CSV with a header line; blank lines and Excel's `sep=;` may stand above it.

    Args:
        lines: the input.
        event: what each row is a message of.
        delimiter: what stands between two cells; None: what `sep=` says, or the one of DELIMITERS that makes a header.

    Attributes:
        header: the header line as it stood there.
        delimiter: what stands between two cells.
        ignored: columns that are no fields of the event.

    Raises:
        UsageError: there is no header with the required fields, its quoting is wrong, or it names a field twice.
    """

    def __init__(self, lines: Lines, event: Event, delimiter: str | None = None) -> None:
        self._lines, self._event = lines, event
        required = event.required or list(event.fields)[:1]
        self._again: deque[tuple[int, bytes | None]] = deque()  # lines behind a wrong quote, to be read as rows of their own
        number, raw = self._first()
        if raw.lower().startswith(b"sep=") and len(raw.rstrip()) <= len(b"sep=;"):
            delimiter = delimiter or raw.decode("ascii", "replace")[4:5].strip("\r\n") or None
            number, raw = self._first()
        self.header: Final = raw
        text = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
        found = [_Cells(each).split(text) for each in ((delimiter,) if delimiter else DELIMITERS)]
        readable = [names for names in found if names is not None and set(required) <= set(map(str.strip, names))]
        if not readable:
            if any(f'"{name}"' in text for name in required):
                raise UsageError(
                    f"the quoting of line {number} is wrong: a quote begins a cell or ends it, without blanks around"
                )
            raise UsageError(
                f"the CSV's first line must name its columns: {_columns(event)}; "
                "cells are divided by a comma, a semicolon or a tab, or by what --delimiter says"
            )
        self.delimiter: Final = delimiter or DELIMITERS[found.index(readable[0])]
        self._cells = _Cells(self.delimiter)
        self._names = [name.strip() for name in readable[0]]
        known = [name for name in self._names if name in event.fields]
        if len(set(known)) < len(known):
            raise UsageError("the CSV's first line names a field twice")
        self.ignored: Final = tuple(
            dict.fromkeys(
                name.encode("utf-8", "backslashreplace").decode()
                for name in self._names
                if name and name not in event.fields
            )
        )

    def __iter__(self) -> Iterator[Record]:
        while (line := self._next()) is not None:
            number, raw = line
            if raw is None:
                yield Record(number, None, self._lines.too_long())
            elif raw.strip():
                yield self._record(number, raw)

    def _first(self) -> tuple[int, bytes]:
        while (line := self._next()) is not None:
            if line[1] is None or line[1].strip():
                return line[0], line[1] or b""
        return 1, b""

    def _next(self) -> tuple[int, bytes | None] | None:
        if self._again:
            return self._again.popleft()
        for raw in self._lines:
            return self._lines.number, raw
        return None

    def _record(self, number: int, raw: bytes) -> Record:
        """The record that begins here. Behind a quote that is wrong the next line is a row of its own again."""
        more: list[tuple[int, bytes | None]] = []
        whole, wrong = [raw], None
        size, quotes = len(raw), raw.count(b'"')
        while quotes % 2 and wrong is None:
            line = self._next()
            if line is None:
                wrong = "a quote is opened and never closed"
                break
            more.append(line)
            size += len(line[1] or b"")
            if line[1] is None or size > min(self._lines.limit, _CELL_MAX_BYTES):
                wrong = f"a quoted cell does not end within {min(self._lines.limit, _CELL_MAX_BYTES)} bytes"
            elif self._is_row(line[1]):
                wrong = "a quoted cell holds what looks like rows of its own: is a quote not closed?"
            else:
                whole.append(line[1])
                quotes += line[1].count(b'"')
        row = None if wrong else self._cells.split(_text(b"".join(whole)))
        if row is None:
            self._again.extendleft(reversed(more))
            wrong = wrong or "a quote stands inside a cell, or a quoted cell does not end at its quote"
            return Record(number, raw, Problem(BAD_CSV, wrong))
        return Record(number, b"".join(whole), self._message(row, b"".join(whole)))

    def _is_row(self, line: bytes) -> bool:
        """Whether a line inside a quoted cell begins as a row would, as far as its first required number."""
        cells = _text(line).split(self.delimiter)
        numbers = [name for name in self._event.required if self._event.kinds[name] == "integer" and name in self._names]
        if not numbers:
            return len(cells) == len(self._names) > 1
        at = self._names.index(numbers[0])
        return len(cells) >= len(self._names) > at and _INTEGER.fullmatch(cells[at].strip().strip('"')) is not None

    def _message(self, row: list[str], raw: bytes) -> Message | Problem:
        while len(row) < len(self._names) and not self._names[len(row)]:
            row.append("")  # a header that ends in empty cells, above rows that do not
        if len(row) != len(self._names):
            return Problem(BAD_CSV, f"{len(row)} cells under a header of {len(self._names)}")
        cells = {name: cell for name, cell in zip(self._names, row, strict=True) if name in self._event.fields}
        try:
            raw.decode()
            content = _from_texts(self._event, cells)
        except UnicodeDecodeError as error:
            return Problem(Reason.NOT_UTF8, f"must be UTF-8 text; byte {error.start} of the row is not")
        except MessageError as error:
            return Problem(error.reason, error.detail)
        if "\n" in cells.get(_ONE_LINE, "") or "\r" in cells.get(_ONE_LINE, ""):
            return Problem(BAD_CSV, f"{_ONE_LINE} holds a line break: is a quote not closed?")
        return Message(self._event, content)


class _Cells:
    """Splits a row into its cells, strictly: a quote stands at both ends of a cell or nowhere in it."""

    def __init__(self, delimiter: str) -> None:
        between = re.escape(delimiter)
        self._cell = re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"|([^"{between}\r\n]*+))({between}|\Z)')

    def split(self, text: str) -> list[str] | None:
        """The cells; None if the quoting is wrong."""
        cells, at = [], 0
        while True:
            found = self._cell.match(text, at)
            if found is None:
                return None
            quoted = found[1]
            cells.append(found[2] if quoted is None else quoted.replace('""', '"'))
            if not found[3]:
                return cells
            at = found.end()


def _text(raw: bytes) -> str:
    """A row without its line end; bytes that are no text survive as surrogates and are reported with the row."""
    return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def open_reader(
    stream: BinaryIO, name: str, kind: str, lines: Lines, event: Event, catalog: Catalog, delimiter: str | None = None
) -> JsonLines | CsvRows:
    """Return the reader for a format.

    Args:
        stream: what `lines` reads from; it must have `peek`.
        name: the file's name.
        kind: jsonl, csv, or auto: by the name's suffix, else by the first character that is not blank.
        lines: the stream's lines.
        event: what each record is a message of.
        catalog: see `JsonLines`.
        delimiter: see `CsvRows`.

    Raises:
        UsageError: a CSV without a usable header, or bytes that are neither format.
    """
    beginning: bytes = getattr(stream, "peek", lambda _: b"")(_LOOK_BYTES)[:_LOOK_BYTES]
    _check_bytes(beginning)
    if kind == "auto":
        kind = FORMAT_OF_SUFFIX.get(Path(name).suffix.lower(), "auto")
    if kind == "auto":
        first = beginning
        while first.startswith(_BOM):
            first = first.removeprefix(_BOM)
        kind = "jsonl" if first.lstrip()[:1] in (b"{", b"[", b"") else "csv"
    return CsvRows(lines, event, delimiter) if kind == "csv" else JsonLines(lines, event, catalog)


def _check_bytes(beginning: bytes) -> None:
    """Refuse by its name what is no text of lines in UTF-8."""
    for magic, what in _MAGIC.items():
        if beginning.startswith(magic):
            raise UsageError(f"this is {what}")
    if b"\0" in beginning[:100]:
        raise UsageError(
            f"this is {_UTF16}" if beginning[1:2] == b"\0" or beginning[:1] == b"\0" else "this is binary, not text"
        )
    if b"\r" in beginning and b"\n" not in beginning and len(beginning.rstrip(b"\r").split(b"\r")) > 1:
        raise UsageError("the lines end in CR alone, as on old Macs; convert it: tr '\\r' '\\n' < FILE")


def _from_texts(event: Event, texts: Mapping[str, str]) -> msgspec.Struct:
    """Return the content whose fields are written as texts; an empty one is null.

    Raises:
        MessageError: a field is unknown, missing or wrong.
    """
    fields: dict[str, Any] = {}
    for name, text in texts.items():
        if text or (name in event.required and event.kinds.get(name) != "text"):
            fields[name] = value(event.kinds.get(name), text)
    return event.build(fields)


def value(kind: str | None, text: str) -> Any:
    """Return what the text of a field of that kind (`Event.kinds`) says; anything else as it is, for the event to refuse."""
    try:
        match kind:
            case "integer":
                return _integer(text)
            case "number":
                return float(values.number(text))
            case "truth":
                return {"true": True, "false": False}.get(text.strip().lower(), text)
            case "json":
                return json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text


def _columns(event: Event) -> str:
    others = [name for name in event.fields if name not in event.required]
    return " and any of ".join(filter(None, (", ".join(event.required), ", ".join(others))))


def _from_json(raw: bytes, event: Event, catalog: Catalog) -> Message | Problem:
    try:
        if _EXPORTED in raw:
            event = _exported_event(raw, event, catalog)
        content = event.decode(raw, limit=len(raw))  # the limit is the message's: the line may spell it longer
        if len(raw) > MAX_DATA_BYTES:
            event.encode(content)
        return Message(event, content)
    except MessageError as error:
        return Problem(error.reason, error.detail)


class _About(msgspec.Struct):
    attributes: dict[str, str] = {}


class _Line(msgspec.Struct):
    about: _About = msgspec.field(name="_rejection", default_factory=_About)


def _exported_event(raw: bytes, event: Event, catalog: Catalog) -> Event:
    """Return the event of a line that `worker rejections export` wrote; `event` if the line names none that is known."""
    try:
        name = msgspec.json.decode(raw, type=_Line).about.attributes.get(EVENT_TYPE_ATTRIBUTE)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return event
    return catalog.events.get(name or "", event)


def _integer(cell: str) -> Any:
    """Return the cell as an integer, None when empty; anything else as it is, for `UserCreated` to refuse."""
    found = _INTEGER.fullmatch(cell.strip())
    if found is None:
        return cell or None
    # Python refuses to convert thousands of digits; the first few already put such a number out of range.
    return int(found[1] + found[2][:_MAX_DIGITS])
