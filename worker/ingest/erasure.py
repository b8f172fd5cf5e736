"""Erasing a user for good: the row becomes a tombstone, and the bucket remembers the id outside every generation.

A replay finds the tombstone and gives the message no effect. A restore or a recovery to a time before the erasure applies
the list in the bucket, so that an older state does not bring the user back. The object is written first: dying before the
transaction leaves an erasure that the next start, or the same command again, completes.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from worker.database.connections import connect, migrate
from worker.errors import Mismatch, Refused, StoreUnavailable
from worker.ingest.bodies import BodyStore
from worker.ingest.transaction import Erased, Transaction
from worker.lease.record import Store

ROOT: Final = "erased/"
_NAME: Final = re.compile(r"erased/(\d{1,19})\.json")
_BUSY_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Names(Store, Protocol):
    """The bucket, as the list uses it; each call may raise `StoreError`."""

    async def names(self, name_prefix: str, *, timeout: float) -> list[str]:
        """The objects below a prefix."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """Erases users of the running service. `change` is `Intake.change`; `timeout` is for the request to the bucket."""

    store: Store | None
    bodies: BodyStore
    change: Callable[..., Awaitable[Any]]
    timeout: float

    async def erase(self, user_id: int) -> Erased:
        """Erase a user, whether or not there is one; what was removed, once that is in the bucket.

        Raises:
            Refused: This instance does not serve, or it is not confirmed; ask again.
            StoreError: The bucket refuses; nothing was changed.
        """
        # Before anything is written to the bucket: an instance that does not hold the lease is refused here.
        bodies: list[str] = await self.change(lambda transaction: transaction.bodies_about(user_id))
        if self.store is not None:
            await self._list(self.store, user_id)
        erased: Erased = await self.change(lambda transaction: transaction.erase(user_id), alone=True)
        await self.bodies.delete(bodies)
        return erased

    async def _list(self, store: Store, user_id: int) -> None:
        data = msgspec.json.encode({"format": 1, "user_id": user_id})
        try:
            await store.write(f"{ROOT}{user_id}.json", data, if_generation=0, timeout=self.timeout)
        except Mismatch:
            pass  # it is in the list already
        except StoreUnavailable as error:
            raise Refused(f"the bucket did not take the id, and nothing was changed: {error}") from error


async def listed(store: Names, *, timeout: float) -> list[int]:
    """The ids of the erased users.

    Raises:
        StoreError: The bucket did not answer, or refused.
    """
    names = await store.names(ROOT, timeout=timeout)
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]


def apply(path: Path, user_ids: Sequence[int], *, now: int) -> int:
    """Erase users in a database that no other process uses; how many were not erased there yet.

    `now` is in milliseconds since the epoch.
    """
    if not user_ids:
        return 0
    migrate(path, busy_timeout_seconds=_BUSY_SECONDS)  # it may be older than a column that is looked at
    database = connect(path, busy_timeout_seconds=_BUSY_SECONDS)
    with database.connection_context(), database.atomic("IMMEDIATE"):
        transaction = Transaction(database, 0, now)
        missing = transaction.not_erased(user_ids)
        if missing:
            transaction.erase_all(missing)
        return len(missing)


async def repeat(store: Names, path: Path, *, timeout: float) -> None:
    """Apply the bucket's list of erased users to a database that was restored: its state may be older than an erasure.

    Raises:
        StoreError: The bucket did not answer, or refused; repeating it is harmless.
    """
    erased = await listed(store, timeout=timeout)
    if erased:
        again = await asyncio.to_thread(apply, path, erased, now=round(datetime.now(UTC).timestamp() * 1000))
        if again:
            log.info("%d users are erased again", again, extra={"action": "generation.erased"})
