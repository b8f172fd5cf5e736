"""Large rejected messages: their bytes are objects of the bucket, and the rejection names the object.

A rejection is kept in the database, and every start copies the whole database. A few rejected messages of 10 MB would fill
the disk, and then no good message could be committed either (INV-6). So a large message is stored as an object before its
transaction. If the transaction keeps the message as a rejection, the row names the object. Otherwise no row names it, and
`collect` deletes it a day later.

An object's name is used once, and only by the life that created the object. So a life that lost its lease in the middle of
`collect` can delete nothing that a later life needs: it lists, reads the rows, and looks at the lease, in this order.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from worker.bucket import Objects
from worker.database.models import Connection, Rejection
from worker.errors import Refused, RequestError, StoreError
from worker.lease.lease import Lease

Read = Callable[[Callable[[Connection], set[str]]], Awaitable[set[str]]]
"""Runs a query on a reading connection. `Refused` while there is no database."""

ROOT: Final = "rejected/"
ROW_BYTES_MAX: Final = 262_144
"""Largest message that a rejection's row holds. 1,000 of these fill the 480 MB that `make deploy` gives to half."""
_REQUEST_SECONDS: Final = 20.0
"""For one object of at most 10 MB: 4 Mbit/s."""
_KEPT: Final = timedelta(days=1)
"""Age below which an object is not deleted: its transaction may be under way, for ACK_DEADLINE_SECONDS at most."""

log = logging.getLogger(__name__)


class BodyStore(Protocol):
    """Where the bytes of large messages are."""

    row_bytes_max: float
    """Largest message that a row may hold."""

    def kept(self, data: bytes) -> contextlib.AbstractAsyncContextManager[str]:
        """Store a message's bytes; the object's name, which is safe inside the block."""

    async def read(self, name: str) -> bytes | None:
        """The bytes of a rejected message, or None if the object was deleted."""

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""


class InRows:
    """PostgreSQL's rows hold messages of any size: no start copies them. See `BodyStore`."""

    row_bytes_max: float = float("inf")

    def kept(self, data: bytes) -> contextlib.AbstractAsyncContextManager[str]:
        """See `BodyStore`. No message is as large."""
        raise AssertionError("a row holds it")

    async def read(self, name: str) -> bytes | None:
        """See `BodyStore`: a store that was moved here may name an object of its bucket."""
        return None

    async def delete(self, names: Sequence[str]) -> None:
        """See `BodyStore`: there are none."""


class Bodies:
    """The bytes of large messages, in the bucket. Only the event loop touches it. See `BodyStore`."""

    row_bytes_max: float = ROW_BYTES_MAX

    def __init__(self, store: Objects, lease: Lease) -> None:
        self._store, self._lease = store, lease
        self._under_way: set[str] = set()

    @contextlib.asynccontextmanager
    async def kept(self, data: bytes) -> AsyncIterator[str]:
        """Store a message's bytes; the object's name, which is safe from `collect` inside the block.

        Raises:
            Refused: The bucket did not take them; the queue delivers the message again.
        """
        epoch = self._lease.held_epoch
        if epoch is None:
            raise Refused("the service is stopping; the queue delivers this to the next one", reason="stopping")
        name = f"{ROOT}{epoch:016x}/{uuid.uuid4().hex}"
        self._under_way.add(name)
        try:
            try:
                await self._store.write(name, data, if_generation=0, timeout=_REQUEST_SECONDS)
            except StoreError as error:
                log.warning("a large message was not stored: %s", error, extra={"action": "body.unstored"})
                text = "the bucket did not take a large message; the queue delivers this again"
                raise Refused(text) from error
            yield name
        finally:
            self._under_way.discard(name)

    async def read(self, name: str) -> bytes | None:
        """The bytes of a rejected message, or None if the object was deleted.

        Raises:
            Refused: The bucket did not answer; ask again.
        """
        try:
            stored = await self._store.read(name, timeout=_REQUEST_SECONDS)
        except StoreError as error:
            raise Refused(f"the message's bytes cannot be read from the bucket now: {error}") from error
        return None if stored is None else stored[0]

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects. What the bucket does not delete now, `collect` deletes later."""
        for name in names:
            try:
                await self._store.delete(name, timeout=_REQUEST_SECONDS)
            except StoreError as error:
                log.warning("%s is deleted later: %s", name, error, extra={"action": "body.retry"})

    async def collect(self, read: Read) -> int:
        """Delete the objects that no rejection names; how many.

        Raises:
            LeaseLost: Another instance holds the lease; it collects.
            StoreError: The bucket did not answer, or refused.
            Refused: The database cannot be read now.
        """
        before = datetime.now(UTC) - _KEPT
        objects = await self._store.objects(ROOT, timeout=_REQUEST_SECONDS)
        old = {each.name for each in objects if each.created < before} - self._under_way
        if not old:
            return 0
        unnamed = sorted(old - await read(_named))
        if unnamed:
            await self._lease.verify()
            await self.delete(unnamed)
            log.info("deleted %d bodies that no rejection names", len(unnamed), extra={"action": "body.deleted"})
        return len(unnamed)

    async def collect_every(self, interval_seconds: float, read: Read, *, may: Callable[[], Awaitable[bool]]) -> None:
        """Collect now and every `interval_seconds`, if `may` then says so, until cancelled."""
        while True:
            try:
                if await may():
                    await self.collect(read)
            except (StoreError, RequestError) as error:
                log.warning("collecting bodies is put off: %s", error, extra={"action": "body.retry"})
            await asyncio.sleep(interval_seconds)


def _named(connection: Connection) -> set[str]:
    query = Rejection.select(Rejection.body).where(Rejection.body.is_null(False))
    rows: list[tuple[str]] = list(query.tuples().bind(connection))  # type: ignore[arg-type]  # of tuples
    return {name for (name,) in rows}
