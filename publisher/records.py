"""Reads users from JSON Lines or CSV, one record at a time, and never more than one record in memory.

A record that is wrong is a value too: it carries its line number, its bytes and what is wrong with it, and reading goes
on behind it. CSV rules: the first line names the columns (`COLUMNS`, in any order; others are ignored); an empty cell
is null; a quoted cell may hold line breaks.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from publisher.errors import UsageError
from publisher.message import MAX_USER_ID, MessageError, Reason, UserCreated, decode
from publisher.settings import MAX_LINE_BYTES

COLUMNS: Final = ("user_id", "email_address", "settings", "created_at")
"""The CSV columns; only user_id is required."""
FORMAT_OF_SUFFIX: Final = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""What a file's name says about its format."""
LINE_TOO_LONG: Final = "line_too_long"
"""Problem code: the line has more than MAX_LINE_BYTES bytes; it is read past, not kept."""
BAD_CSV: Final = "bad_csv"
"""Problem code: the row's quoting or its number of cells is wrong."""

_BOM: Final = b"\xef\xbb\xbf"
_INTEGER: Final = re.compile(r"([+-]?)0*([0-9]+)")
_MAX_DIGITS: Final = len(str(MAX_USER_ID)) + 1


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
        content: the user, or what is wrong.
    """

    line: int
    raw: bytes | None
    content: UserCreated | Problem


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
        return line.removeprefix(_BOM) if self.number == 1 else line

    def _read(self) -> bytes:
        line = self._stream.readline(self.limit + 1)
        self.bytes_read += len(line)
        return line

    def too_long(self) -> Problem:
        """Return what is wrong with a line that is too long."""
        return Problem(LINE_TOO_LONG, f"longer than {self.limit} bytes; not copied to the rejects")


class JsonLines:
    """Records from JSON Lines: one message per line."""

    header = b""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[Record]:
        for raw in self._lines:
            if raw is None:
                yield Record(self._lines.number, None, self._lines.too_long())
            elif raw.strip():
                yield Record(self._lines.number, raw, _from_json(raw))


class CsvRows:
    """Records from CSV with a header line.

    Attributes:
        header: the header line as it stood there.
        ignored: columns that are not of the format.

    Raises:
        UsageError: the first line is no header with a user_id, or names a column twice.
    """

    def __init__(self, lines: Lines) -> None:
        # The csv module keeps this limit for the whole process; its default of 128 KiB is below a message's.
        csv.field_size_limit(2 * lines.limit)
        self._feed = _CsvFeed(lines)
        self._rows = csv.reader(self._feed, strict=True)
        try:
            names = [name.strip() for name in next(self._rows, [])]
        except (csv.Error, _RowTooLongError):
            names = []
        self.header: Final = self._feed.raw
        if "user_id" not in names:
            raise UsageError(f"the CSV's first line must name its columns: user_id and any of {', '.join(COLUMNS[1:])}")
        if len(set(names)) < len(names):
            raise UsageError("the CSV's first line names a column twice")
        self._names = names
        self.ignored: Final = tuple(name for name in names if name not in COLUMNS)

    def __iter__(self) -> Iterator[Record]:
        feed = self._feed
        while True:
            feed.start()
            content: UserCreated | Problem
            try:
                row = next(self._rows)
                if not feed.overlong and not feed.raw.strip():
                    continue
                content = self._user(row)
            except StopIteration:
                return
            except csv.Error as error:
                content = Problem(BAD_CSV, str(error))
            except _RowTooLongError:
                content = Problem(BAD_CSV, f"a quoted cell does not end within {feed.lines.limit} bytes")
            if feed.overlong:
                yield Record(feed.first_line, None, feed.lines.too_long())
            else:
                yield Record(feed.first_line, feed.raw, content)

    def _user(self, row: list[str]) -> UserCreated | Problem:
        if len(row) != len(self._names):
            return Problem(BAD_CSV, f"{len(row)} cells under a header of {len(self._names)}")
        cells = dict(zip(self._names, row, strict=True))
        try:
            self._feed.raw.decode()
            return UserCreated(
                user_id=_integer(cells["user_id"]),
                email_address=cells.get("email_address") or None,
                settings=cells.get("settings") or None,
                created_at=_integer(cells.get("created_at", "")),
            )
        except UnicodeDecodeError as error:
            return Problem(Reason.NOT_UTF8, f"must be UTF-8 text; byte {error.start} of the row is not")
        except MessageError as error:
            return Problem(error.reason, error.detail)


class _RowTooLongError(Exception):
    """A row goes on for too long: most likely a quote was never closed."""


class _CsvFeed:
    """Gives lines to a csv.reader and keeps the bytes of the row being read."""

    def __init__(self, lines: Lines) -> None:
        self.lines: Final = lines
        self.start()

    def start(self) -> None:
        """Forget the last row."""
        self._kept: list[bytes] = []
        self._size = 0
        self.first_line = 0
        self.overlong = False

    @property
    def raw(self) -> bytes:
        """The bytes of the row read last."""
        return b"".join(self._kept)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.first_line = self.first_line or self.lines.number
        if line is None:
            self.overlong = True
            return "\n"
        self._kept.append(line)
        self._size += len(line)
        if self._size > self.lines.limit:
            raise _RowTooLongError
        # csv wants text; bytes that are none survive as surrogates and are reported with the row.
        return line.decode("utf-8", "surrogateescape")


def open_reader(stream: BinaryIO, name: str, kind: str, lines: Lines) -> JsonLines | CsvRows:
    """Return the reader for a format.

    Args:
        stream: what `lines` reads from; for auto it must have `peek`.
        name: the file's name.
        kind: jsonl, csv, or auto: by the name's suffix, else by the first character that is not blank.
        lines: the stream's lines.

    Raises:
        UsageError: a CSV without a usable header.
    """
    if kind == "auto":
        kind = FORMAT_OF_SUFFIX.get(Path(name).suffix.lower(), "auto")
    if kind == "auto":
        peek: bytes = stream.peek(1)  # type: ignore[attr-defined]  # BinaryIO lacks what buffered streams have
        kind = "jsonl" if peek.removeprefix(_BOM).lstrip()[:1] in (b"{", b"[", b"") else "csv"
    return CsvRows(lines) if kind == "csv" else JsonLines(lines)


def _from_json(raw: bytes) -> UserCreated | Problem:
    try:
        return decode(raw)
    except MessageError as error:
        return Problem(error.reason, error.detail)


def _integer(cell: str) -> Any:
    """Return the cell as an integer, None when empty; anything else as it is, for `UserCreated` to refuse."""
    found = _INTEGER.fullmatch(cell.strip())
    if found is None:
        return cell or None
    # Python refuses to convert thousands of digits; the first few already put such a number out of range.
    return int(found[1] + found[2][:_MAX_DIGITS])
