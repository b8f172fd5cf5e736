"""What both stores are to the supervisor: something that gives a process a life in which it may write.

supervisor ── async with store.serving(side) as life ──> sqlite.py      lease, generation, gate, Litestream
└─> postgresql.py  migrations, an epoch, connections
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from worker.database.engine import Engine
from worker.ingest.confirmation import Confirmation

PRUNE_INTERVAL_SECONDS: Final = 3600.0
"""Pause between two looks for what is past its time: a listing costs money, and nothing depends on the hour."""


async def _never() -> None:
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Life:
    """What a process may do between its beginning and its end: write by `engine`, and answer by `confirmation`."""

    engine: Engine
    confirmation: Confirmation
    epoch: int
    """Kept in each receipt; no other life has it."""
    has_room: Callable[[], bool] = lambda: True
    superseded: Callable[[], Awaitable[object]] = _never
    """Returns when another instance asks for this one's place."""


class Store(Protocol):
    """One engine's whole side of a process."""

    ready_at_once: bool
    """Whether an instance that does not serve yet is ready for requests: it holds them until it does."""

    async def look(self) -> None:
        """Look at the store before anything is begun.

        Raises:
            WorkerError: There is none, or it cannot be used. An outage is passed over.
        """

    def claimed(self) -> AbstractContextManager[None]:
        """Hold what this process alone may use on its machine."""

    def serving(self, side: asyncio.TaskGroup) -> AbstractAsyncContextManager[Life]:
        """Wait until this process may write, and let it write inside the block. Side tasks run in `side`."""

    def upkeep(self, side: asyncio.TaskGroup) -> AbstractAsyncContextManager[None]:
        """Delete what this store alone keeps, once it is past its time, beside the block."""

    async def may_tidy(self) -> bool:
        """Whether this instance is the one that deletes by age, and its clock agrees with the store's."""
