"""SQLite through Peewee: the one writing connection, and the short reading ones.

Every connection runs the pragmas of `connect`. The application never checkpoints and never VACUUMs: Litestream owns
the WAL, and a checkpoint behind its back costs a full copy of the database. Migrations run under the lease, before
Litestream starts.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import peewee

from worker.config.limits import BUSY_TIMEOUT_SECONDS
from worker.database.models import Connection
from worker.errors import Refused, SqliteTooOld

SQLITE_MIN: Final = (3, 51, 3)
"""Older SQLite can corrupt a WAL database that one process checkpoints while another commits (the WAL-reset bug, 3.7.0
to 3.51.2; sqlite.org, "Write-Ahead Logging"): exactly Litestream beside a writer."""

_STATEMENTS_KEPT: Final = 0
"""A prepared statement that is kept keeps the values it ran with last: of the usual 128, one for each number of rows, each
could keep as many bytes as a group may have (INV-7). Preparing one again costs a microsecond for each message."""

T = TypeVar("T")

_ROOM: Final = 3
"""A restore needs the database's room once and its compressed files', and a copy that was moved aside must not take it."""
RESERVED_BYTES: Final = 8_000_000
"""Room that messages leave on the database's disk. Deleting a row writes it to the WAL first (secure_delete): without room
an operator could discard nothing, and expiry could free nothing."""
SIDE_FILES: Final = ("-wal", "-shm", "-journal")


def check_sqlite() -> str:
    """The version of the SQLite that Peewee uses.

    Raises:
        SqliteTooOld: It has the WAL-reset bug.
    """
    version: tuple[int, ...] = peewee.sqlite3.sqlite_version_info  # type: ignore[attr-defined]  # not in its stubs
    if version < SQLITE_MIN:
        raise SqliteTooOld(
            f"SQLite {'.'.join(map(str, version))} can corrupt this database; {'.'.join(map(str, SQLITE_MIN))} or newer "
            "is needed: install the pinned requirements (pip install --require-hashes -r requirements.lock), whose "
            "pysqlite3 brings its own"
        )
    return ".".join(map(str, version))


def connect(
    path: Path, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS, read_only: bool = False
) -> peewee.SqliteDatabase:
    """A database on `path`, not yet opened; each thread that uses it gets a connection of its own."""
    pragmas: dict[str, Any] = {
        "journal_mode": "wal",
        "synchronous": "normal",
        "busy_timeout": round(busy_timeout_seconds * 1000),
        "wal_autocheckpoint": 0,
        "secure_delete": 1,  # an erased user is overwritten, or every later copy of the file would hold what was deleted
    }
    if read_only:
        pragmas["query_only"] = 1
    return peewee.SqliteDatabase(str(path), pragmas=pragmas, autoconnect=False, cached_statements=_STATEMENTS_KEPT)


def clear(path: Path) -> bool:
    """Make room at `path`; whether anything stood there. A database found is kept as `PATH.previous`
    until the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        for suffix in SIDE_FILES:  # they belong to a database that is gone
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return False
    previous = path.with_name(path.name + ".previous")
    for suffix in ("", *SIDE_FILES):
        # All of the older copy goes first: its WAL beside another database would be read as that one's.
        previous.with_name(previous.name + suffix).unlink(missing_ok=True)
    for suffix in (*SIDE_FILES, ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.replace(previous.with_name(previous.name + suffix))
    if shutil.disk_usage(path.parent).free < _ROOM * previous.stat().st_size:
        remove_previous(path)
    return True


def has_room(path: Path) -> bool:
    """Whether messages may be committed: their reserve is free on the database's disk."""
    return shutil.disk_usage(path.parent).free >= RESERVED_BYTES


def remove_previous(path: Path) -> None:
    """Delete the database that `clear` has kept."""
    for suffix in ("", *SIDE_FILES):
        path.with_name(f"{path.name}.previous{suffix}").unlink(missing_ok=True)


def close_journal(path: Path) -> None:
    """Leave WAL mode, so that the file can be read alone, also in a folder that cannot be written."""
    database: Any = connect(path, busy_timeout_seconds=0)
    with database.connection_context():
        database.execute_sql("PRAGMA journal_mode = delete")


@contextmanager
def sound() -> Iterator[None]:
    """For work on a sound database that no other process uses: what SQLite cannot do there is the disk's fault.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    try:
        yield
    except peewee.OperationalError as error:
        raise OSError(errno.EIO, str(error)) from error


class Reader:
    """Reads over short connections of its own; safe to call from any thread."""

    def __init__(self, path: Path, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> None:
        self._database = connect(path, busy_timeout_seconds=busy_timeout_seconds, read_only=True)

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a connection that lives for as long.

        Raises:
            Refused: The database is locked, full or out of reach; ask again.
        """
        try:
            with self._database.connection_context():
                return query(self._database)
        except peewee.OperationalError as error:
            raise Refused(f"the database cannot be read now: {error}; ask again", reason="database") from error
