"""Erasing a person for good: the rows go, and database and bucket remember the subject, the bucket outside every generation.

A later message about the subject has no effect, also when it is replayed. A restore or a recovery to a time before the
erasure applies the list in the bucket, so that an older state does not bring the person back. The object is written first:
dying before the transaction leaves an erasure that the next start, or the same command again, completes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from worker.bucket import Objects
from worker.database.connections import connect
from worker.database.schema import migrate
from worker.errors import Mismatch, Refused, StoreUnavailable
from worker.events.catalog import Catalog
from worker.ingest.bodies import BodyStore
from worker.ingest.transaction import Removed, Transaction

ROOT: Final = "erased/"
_SUFFIX: Final = ".json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erasure:
    """Erases subjects in the running service. `change` is `Intake.change`; `timeout` is for the request to the bucket.

    Without `store` the database alone remembers them.
    """

    store: Objects | None
    bodies: BodyStore
    change: Callable[..., Awaitable[Any]]
    timeout: float

    async def erase(self, subject: str) -> Removed:
        """Erase a subject, whether or not it is known; what was removed, once that is in the bucket.

        Raises:
            Refused: This instance does not serve, or it is not confirmed; ask again.
            StoreError: The bucket refuses; nothing was changed.
        """
        # Before anything is written to the bucket: an instance that does not hold the lease is refused here.
        bodies: list[str] = await self.change(lambda transaction: transaction.bodies_about(subject))
        if self.store is not None:
            await self._remember(self.store, subject)
        erased: Removed = await self.change(lambda transaction: transaction.erase(subject), alone=True)
        await self.bodies.delete(bodies)
        return erased

    async def _remember(self, store: Objects, subject: str) -> None:
        data = msgspec.json.encode({"format": 1, "subject": subject})
        try:
            await store.write(name_of(subject), data, if_generation=0, timeout=self.timeout)
        except Mismatch:
            pass  # it is in the list already
        except StoreUnavailable as error:
            raise Refused(f"the bucket did not take the subject, and nothing was changed: {error}") from error


def name_of(subject: str) -> str:
    """The object that remembers an erased subject: every character but letters, digits, '_', '-' and '~' is escaped."""
    return f"{ROOT}{quote(subject, safe='').replace('.', '%2E')}{_SUFFIX}"


async def listed(store: Objects, *, timeout: float) -> list[str]:
    """The erased subjects.

    Raises:
        StoreError: The bucket did not answer, or refused.
    """
    names = await store.names(ROOT, timeout=timeout)
    return [unquote(name.removeprefix(ROOT).removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)]


def apply(path: Path, catalog: Catalog, subjects: Sequence[str], *, now: int) -> int:
    """Erase subjects in a database that no other process uses; how many were not erased there yet.

    `now` is in milliseconds since the epoch.
    """
    if not subjects:
        return 0
    migrate(path, catalog)  # it may be older than a column that is looked at
    database = connect(path)
    with database.connection_context(), database.atomic("IMMEDIATE"):
        opened = Transaction(database, catalog, 0, now)
        missing = opened.not_erased(subjects)
        if missing:
            opened.erase_all(missing)
        return len(missing)


async def prepare(store: Objects, catalog: Catalog, path: Path, *, timeout: float) -> None:
    """Bring a database that was restored, or a new one, up to date: its schema, and what the bucket lists as erased.

    Its state may be older than a migration, and older than an erasure.

    Raises:
        SchemaDiffers: A table is not what its event's model says.
        StoreError: The bucket did not answer, or refused; repeating it is harmless.
    """
    for name in await asyncio.to_thread(migrate, path, catalog):
        log.info("migration %s applied", name, extra={"action": "database.migrated"})
    erased = await listed(store, timeout=timeout)
    if erased:
        again = await asyncio.to_thread(apply, path, catalog, erased, now=round(datetime.now(UTC).timestamp() * 1000))
        if again:
            log.info("%d subjects are erased again", again, extra={"action": "generation.erased"})
