"""An engine: how work is run in transactions of a database. sqlite.py has one for a file, postgresql.py one for a server.

What an engine promises: the works that it runs have the effects that they would have one after the other in some order,
whatever other writers there are, each whole or not at all. So outcomes are decided by the same code over both.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from worker.database.models import Connection

T = TypeVar("T")


class Raced(Exception):
    """Another writer has changed what this work had read: the engine runs the work again, from its reads."""


class Engine(Protocol):
    """Runs work in transactions. It belongs to the thread that has opened it."""

    def open(self) -> None:
        """Make ready to run work."""

    def close(self) -> None:
        """Give back the connection."""

    def run(self, work: Callable[[Connection], T], *, alone: bool = False) -> T:
        """Run work in one transaction, and return its result once that is committed.

        Args:
            work: It may be run again from its start, so it changes nothing but the database.
            alone: No other writer's work may run beside it.

        Raises:
            PeeweeException: The database refused a row, if `blames_row` says so; otherwise it is an outage, and whether the
                transaction took effect is not known.
        """

    def blames_row(self, error: Exception) -> bool:
        """Whether an error was caused by a row that was written, and not by an outage (INV-9)."""


class Reader(Protocol):
    """Reads over connections of its own. Any thread may call it."""

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query.

        Raises:
            Refused: The database cannot be read now; ask again.
        """
