"""The engine of one writer on a SQLite file."""

from collections.abc import Callable
from typing import Final, TypeVar

import peewee

from worker.database.models import Connection

T = TypeVar("T")

_ROW_ERRORS: Final = (
    peewee.IntegrityError,
    peewee.DataError,
    peewee.InterfaceError,
    peewee.ProgrammingError,
    ValueError,
    OverflowError,
)
"""The errors that a row can cause. Any other database error (locked, full, damaged) says nothing about a message (INV-9)."""


class SqliteEngine:
    """Runs work on a database that has no other writer. See `worker.database.engine.Engine`."""

    def __init__(self, database: peewee.SqliteDatabase) -> None:
        self.database = database

    def open(self) -> None:
        """See `Engine.open`."""
        self.database.connect()

    def close(self) -> None:
        """See `Engine.close`."""
        self.database.close()

    def run(self, work: Callable[[Connection], T], *, alone: bool = False) -> T:
        """See `Engine.run`. After it returns the work's rows are on this machine's disk, and nowhere else yet."""
        with self.database.atomic("IMMEDIATE"):
            return work(self.database)

    def blames_row(self, error: Exception) -> bool:
        """See `Engine.blames_row`."""
        return isinstance(error, _ROW_ERRORS)
