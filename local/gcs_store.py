"""The fake Cloud Storage's disk: a SQLite index of what is live, and one file per body.

An object is whole or absent, also after kill -9: a body is written under a name of its own first, and becomes an object
by one transaction on the index. What the index doesn't name is swept at the next start. Process deaths are covered and
power cuts are not, hence `synchronous=OFF`.

Everything here runs on the event loop's thread and never awaits: a precondition is checked and acted upon with nothing
in between. That is all the atomicity there is, and all that is needed.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import msgspec

from local.gcs_errors import GcsError, invalid, no_such_bucket, no_such_object
from local.gcs_resources import Checks, Conditions, Fields, StoredObject, now_text

_SCHEMA = """
CREATE TABLE IF NOT EXISTS last_generation (value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY, created TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL, metageneration INTEGER NOT NULL,
    size INTEGER NOT NULL, body TEXT NOT NULL, md5 TEXT NOT NULL, crc32c TEXT NOT NULL,
    created TEXT NOT NULL, updated TEXT NOT NULL, fields BLOB NOT NULL,
    PRIMARY KEY (bucket, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, body TEXT NOT NULL, session BLOB NOT NULL) WITHOUT ROWID;
"""
# Text is compared byte by byte in UTF-8, which is the order in which Cloud Storage lists.
LISTING = "SELECT * FROM objects WHERE bucket = ? AND name >= ? AND name < ? ORDER BY name LIMIT ?"
# SQLite sorts every BLOB after every TEXT: no name is beyond this one.
_NO_END = b""

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_MAX_NAME = 1024  # bytes in UTF-8 ("Object naming requirements")


class BodyWriter:
    """The bytes of an object on their way in; `open` again continues where a killed process stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc32c = 0
        self._file = path.open("a+b")
        self._file.seek(0)
        while chunk := self._file.read(1 << 20):
            self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._md5.update(chunk)
        self._crc32c = google_crc32c.extend(self._crc32c, chunk)

    def write(self, chunk: bytes) -> None:
        """Appends."""
        self._file.write(chunk)
        self._count(chunk)

    def flush(self) -> None:
        """What was written so far survives the process from here on."""
        if not self.closed:
            self._file.flush()

    def close(self) -> None:
        """Ends the writing; the file stays."""
        self._file.close()

    def discard(self) -> None:
        """Ends the writing and removes the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def closed(self) -> bool:
        """Whether the writing has ended."""
        return self._file.closed

    @property
    def md5(self) -> str:
        """Base64, as the API writes it."""
        return base64.b64encode(self._md5.digest()).decode()

    @property
    def crc32c(self) -> str:
        """Base64 of the big-endian value, as the API writes it."""
        return base64.b64encode(self._crc32c.to_bytes(4, "big")).decode()

    def verify(self, checks: Checks) -> None:
        """Compares with what the client says it sent.

        Raises:
            GcsError: They differ: the body was damaged on the way.
        """
        if checks.crc32c not in {None, self.crc32c}:
            raise invalid(f'Provided CRC32C "{checks.crc32c}" doesn\'t match calculated CRC32C "{self.crc32c}".')
        if checks.md5 not in {None, self.md5}:
            raise invalid(f'Provided MD5 hash "{checks.md5}" doesn\'t match calculated MD5 hash "{self.md5}".')


@dataclass(frozen=True, slots=True)
class Listing:
    """What to list: see "Objects: list"."""

    prefix: str = ""
    delimiter: str = ""
    start: str = ""
    end: str = ""
    page_start: str = ""
    limit: int = 1000


@dataclass(slots=True)
class Page:
    """One page of a listing; `next_start` is the first name of the next one."""

    objects: list[StoredObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_start: str | None = None


class Store:
    """Buckets and objects on disk.

    Args:
        directory: Made if missing; one process at a time.
        preconditions: Without them, a write takes place whatever it asks for, as in some other emulators.
    """

    def __init__(self, directory: Path, *, preconditions: bool = True) -> None:
        self._preconditions = preconditions
        self._bodies = directory / "bodies"
        self._bodies.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError(f"another fake GCS is running on {directory}: stop it first") from None
        self.index = sqlite3.connect(directory / "index.sqlite", isolation_level=None)
        self.index.execute("PRAGMA journal_mode = WAL")
        self.index.execute("PRAGMA synchronous = OFF")
        self.index.executescript(_SCHEMA)
        # Bodies that no row names any more; removed once the transaction that orphaned them is committed.
        self._orphans: list[str] = []
        self._sweep()

    def close(self) -> None:
        """Lets go of the directory."""
        self.index.close()
        self._lock.close()

    def _sweep(self) -> None:
        rows = self.index.execute("SELECT body FROM objects UNION SELECT body FROM uploads")
        named = {body for (body,) in rows}
        for path in self._bodies.iterdir():
            if path.name not in named:
                path.unlink()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; joins the transaction that is already open, if one is."""
        if self.index.in_transaction:
            yield
            return
        self.index.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.index.execute("COMMIT")
        except BaseException:
            self.index.execute("ROLLBACK")
            self._orphans.clear()
            raise
        while self._orphans:
            (self._bodies / self._orphans.pop()).unlink(missing_ok=True)

    # Buckets

    def create_bucket(self, name: str) -> tuple[str, str]:
        """Makes a bucket; returns its name and creation time.

        Raises:
            GcsError: 409 if it exists, 400 for a bad name.
        """
        if not _BUCKET_NAME.fullmatch(name):
            raise invalid(f"Invalid bucket name: '{name}'")
        if self.index.execute("SELECT 1 FROM buckets WHERE name = ?", (name,)).fetchone():
            message = "Your previous request to create the named bucket succeeded and you already own it."
            raise GcsError(409, "conflict", message, "BucketAlreadyOwnedByYou")
        self.index.execute("INSERT INTO buckets VALUES (?, ?)", (name, now_text()))
        return self.bucket(name)

    def bucket(self, name: str) -> tuple[str, str]:
        """A bucket's name and creation time.

        Raises:
            GcsError: 404.
        """
        row: tuple[str, str] | None = self.index.execute(
            "SELECT name, created FROM buckets WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            raise no_such_bucket()
        return row

    def buckets(self, prefix: str = "") -> list[tuple[str, str]]:
        """Names and creation times, sorted."""
        rows = self.index.execute("SELECT name, created FROM buckets ORDER BY name").fetchall()
        return [row for row in rows if row[0].startswith(prefix)]

    def delete_bucket(self, name: str) -> None:
        """Removes an empty bucket.

        Raises:
            GcsError: 404; 409 if it has objects.
        """
        self.bucket(name)
        if self.list(name, Listing(limit=1)).objects:
            raise GcsError(409, "conflict", "The bucket you tried to delete is not empty.", "BucketNotEmpty")
        self.index.execute("DELETE FROM buckets WHERE name = ?", (name,))

    # Objects

    def new_body(self) -> BodyWriter:
        """An empty body under a fresh name."""
        return self.body(secrets.token_hex(12))

    def body(self, name: str) -> BodyWriter:
        """The body of that name, to append to."""
        return BodyWriter(self._bodies / name)

    def open(self, stored: StoredObject) -> BinaryIO:
        """The object's bytes; they stay readable while the object is replaced or deleted."""
        return (self._bodies / stored.body).open("rb")

    def _live(self, bucket: str, name: str) -> StoredObject | None:
        row = self.index.execute("SELECT * FROM objects WHERE bucket = ? AND name = ?", (bucket, name)).fetchone()
        return None if row is None else _stored(row)

    def get(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> StoredObject:
        """The live object.

        Raises:
            GcsError: 404; 412 or 304 for a condition that doesn't hold.
        """
        live = self._live(bucket, name)
        if live is None:
            self.bucket(bucket)
        if live is None or generation not in {None, live.generation}:
            raise no_such_object(bucket, name)
        conditions.check(live.generation, live.metageneration)
        return live

    def commit(self, bucket: str, name: str, body: BodyWriter, fields: Fields, conditions: Conditions) -> StoredObject:
        """Makes the body the live object of that name, if the conditions hold at this moment.

        Raises:
            GcsError: They don't, or the bucket or name is wrong; the body is discarded.
        """
        body.close()
        try:
            _check_name(name)
            with self.transaction():
                self.bucket(bucket)
                live = self._live(bucket, name)
                if self._preconditions:
                    conditions.check(*((live.generation, live.metageneration) if live else (0, 0)))
                now = now_text()
                stored = StoredObject(
                    bucket=bucket,
                    name=name,
                    generation=self._next_generation(),
                    metageneration=1,
                    size=body.size,
                    body=body.path.name,
                    md5=body.md5,
                    crc32c=body.crc32c,
                    created=now,
                    updated=now,
                    fields=fields,
                )
                self._put(stored)
                if live is not None:
                    self._orphans.append(live.body)
        except BaseException:
            body.discard()
            raise
        return stored

    def change(
        self,
        bucket: str,
        name: str,
        generation: int | None,
        conditions: Conditions,
        edit: Callable[[Fields], Fields],
    ) -> StoredObject:
        """Changes the object's metadata and counts its metageneration up.

        Raises:
            GcsError: As `get`.
        """
        with self.transaction():
            live = self.get(bucket, name, generation, conditions)
            changed = msgspec.structs.replace(
                live, metageneration=live.metageneration + 1, updated=now_text(), fields=edit(live.fields)
            )
            self._put(changed)
        return changed

    def delete(self, bucket: str, name: str, generation: int | None, conditions: Conditions) -> None:
        """Removes the live object.

        Raises:
            GcsError: As `get`.
        """
        with self.transaction():
            live = self.get(bucket, name, generation, conditions)
            self.index.execute("DELETE FROM objects WHERE bucket = ? AND name = ?", (bucket, name))
            self._orphans.append(live.body)

    def list(self, bucket: str, listing: Listing) -> Page:
        """One page of names in order, those below a delimiter folded into their common prefix.

        Each step is a seek in the index; a folded prefix is skipped by the next seek, however many objects it has.

        Raises:
            GcsError: 404 for the bucket.
        """
        self.bucket(bucket)
        page = Page()
        position: str | None = max(listing.prefix, listing.start, listing.page_start)
        ends = [end for end in (following(listing.prefix), listing.end) if end]
        end = min(ends) if ends else _NO_END
        while position is not None:
            room = listing.limit - len(page.objects) - len(page.prefixes)
            rows = self.index.execute(LISTING, (bucket, position, end, room + 1))
            position = self._fill(page, rows, listing)
        return page

    def _fill(self, page: Page, rows: sqlite3.Cursor, listing: Listing) -> str | None:
        """Takes rows up to the first folded prefix; returns where to seek next, None at the end of the page."""
        for row in rows:
            name: str = row[1]
            if len(page.objects) + len(page.prefixes) == listing.limit:
                page.next_start = name
                return None
            at = name.find(listing.delimiter, len(listing.prefix)) if listing.delimiter else -1
            if at >= 0:
                prefix = name[: at + len(listing.delimiter)]
                page.prefixes.append(prefix)
                return following(prefix)
            page.objects.append(_stored(row))
        return None

    def _put(self, stored: StoredObject) -> None:
        values = [getattr(stored, name) for name in StoredObject.__struct_fields__[:-1]]
        values.append(msgspec.json.encode(stored.fields))
        self.index.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _next_generation(self) -> int:
        """Microseconds, as the service's look like, but always growing: also over deletes, restarts and clock steps."""
        row = self.index.execute("SELECT value FROM last_generation").fetchone()
        now = time.time_ns() // 1000
        if row is None:
            self.index.execute("INSERT INTO last_generation VALUES (?)", (now,))
            return now
        generation: int = max(row[0] + 1, now)
        self.index.execute("UPDATE last_generation SET value = ?", (generation,))
        return generation


def following(prefix: str) -> str | None:
    """The first text after all that start with the prefix; None if there is no end to them."""
    for length in range(len(prefix), 0, -1):
        code = ord(prefix[length - 1]) + 1
        if 0xD800 <= code <= 0xDFFF:
            code = 0xE000  # surrogates have no UTF-8
        if code <= 0x10FFFF:
            return prefix[: length - 1] + chr(code)
    return None


def _stored(row: tuple[Any, ...]) -> StoredObject:
    values = (*row[:-1], msgspec.json.decode(row[-1], type=Fields))
    return StoredObject(*values)


def _check_name(name: str) -> None:
    if not name:
        raise GcsError(400, "required", "Required", "InvalidArgument")
    if len(name.encode()) > _MAX_NAME or "\n" in name or "\r" in name or name in {".", ".."}:
        raise invalid(f"Invalid object name: {name[:80]!r}")
