"""The store of one writer: SQLite, replicated to the bucket. An instance serves once it holds the lease.

lease → restore, seal, migrate → gate, litestream → full copy, live → serve → … → gate, litestream → release
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

from worker.config import Settings
from worker.config.limits import RELEASE_SECONDS
from worker.database import connections
from worker.database.sqlite import SqliteEngine
from worker.errors import StoreUnavailable
from worker.ingest.bodies import Bodies
from worker.ingest.tables import Tables
from worker.lease import record
from worker.lease.handover import Succession
from worker.lease.lease import Lease
from worker.replica import claim, retention
from worker.replica.bucket import Bucket
from worker.replica.generation import Generation
from worker.stores.store import PRUNE_INTERVAL_SECONDS, Life
from worker.tasks import running
from worker.telemetry.metrics import Metrics, TimedConfirmation


class SqliteStore:
    """See `worker.stores.store.Store`."""

    ready_at_once = True
    """The platform must be able to route to an instance that stands by, or a deployment never ends."""

    def __init__(
        self,
        settings: Settings,
        *,
        bucket: Bucket,
        file: Path,
        lease: Lease,
        succession: Succession,
        bodies: Bodies,
        tables: Tables,
        prepare: Callable[[Path], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._settings, self._bucket, self._file = settings, bucket, file
        self._lease, self._succession = lease, succession
        self._bodies, self._tables, self._prepare, self._metrics = bodies, tables, prepare, metrics

    async def look(self) -> None:
        """See `Store.look`: a mistyped REPLICA_URL ends here."""
        with contextlib.suppress(StoreUnavailable):  # an outage is waited out while standing by
            await record.look(self._bucket, timeout=self._settings.lease_read_timeout_seconds)

    def claimed(self) -> AbstractContextManager[None]:
        """See `Store.claimed`: the database's file and those beside it."""
        return claim.held(self._settings.database_path)

    @contextlib.asynccontextmanager
    async def serving(self, side: asyncio.TaskGroup) -> AsyncIterator[Life]:
        """See `Store.serving`."""
        settings, lease, file = self._settings, self._lease, self._file
        async with lease.held(release_seconds=RELEASE_SECONDS):
            async with (
                running(side, "lease renewal", lease.keep()),
                Generation(
                    lease,
                    self._bucket,
                    settings,
                    side=side,
                    prepare=self._prepare,
                    counts=self._metrics.bucket,
                ) as generation,
            ):
                lease.on_loss = generation.abandon
                generation.on_restored = self._metrics.restored_in
                await generation.begin()
                yield Life(
                    SqliteEngine(connections.connect(file)),
                    TimedConfirmation(generation, self._metrics),
                    lease.epoch,
                    functools.partial(connections.has_room, file),
                    lambda: self._succession.requested(lambda: lease.epoch),
                )

    @contextlib.asynccontextmanager
    async def upkeep(self, side: asyncio.TaskGroup) -> AsyncIterator[None]:
        """See `Store.upkeep`: ended generations, and bodies that no rejection names."""
        days = timedelta(days=self._settings.retention_days)
        pruning = retention.prune_every(PRUNE_INTERVAL_SECONDS, self._bucket, self._lease, days, may=self.may_tidy)
        collecting = self._bodies.collect_every(PRUNE_INTERVAL_SECONDS, self._tables.read, may=self.may_tidy)
        async with running(side, "retention", pruning), running(side, "bodies", collecting):
            yield

    async def may_tidy(self) -> bool:
        """See `Store.may_tidy`."""
        return await retention.clock_agrees(self._bucket)
