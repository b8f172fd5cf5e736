"""The database of this process while there is one: rows are read on a connection of its own, and changed by the writer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from worker.database.engine import Reader
from worker.database.models import Connection
from worker.errors import Refused
from worker.ingest.intake import Intake
from worker.ingest.transaction import Transaction

T = TypeVar("T")


@dataclass(slots=True)
class Tables:
    """Reads and changes the database while there is one."""

    reader: Reader
    intake: Intake
    open: bool = False

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a reading connection.

        Raises:
            Refused: This instance has no database: it stands by, or stops.
        """
        return await asyncio.to_thread(self._opened().read, query)

    async def change(self, apply: Callable[[Transaction], T]) -> T:
        """Make a change, and return its result once it is confirmed; see `Intake.change`."""
        return await self.intake.change(apply)

    def _opened(self) -> Reader:
        if not self.open:
            raise Refused("this instance is not serving yet; ask again", reason="standby")
        return self.reader
