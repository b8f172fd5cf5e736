"""GET /status: what this instance does now, for the operators' page and `worker status`, in one JSON object.

It is made at most once a second, however many ask. What is not known is null, and never 0: an instance that stands by has no
database to count in, and an engine without a lease has no epoch.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from worker.database import rejections
from worker.errors import WorkerError
from worker.ingest.intake import Intake
from worker.ingest.tables import Tables
from worker.lease.lease import Lease
from worker.lease.record import Successor
from worker.telemetry import machine
from worker.telemetry.history import History
from worker.telemetry.metrics import Metrics
from worker.telemetry.status_format import Database, Held, Memory, Open, Status, Waiting
from worker.telemetry.trouble import Trouble

CACHED_SECONDS: Final = 1.0
_TIMEOUT_SECONDS: Final = 5.0
"""Longest that counting the open rejections may take."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What does not change while the process lives."""

    version: str
    revision: str
    instance: str
    engine: str
    store: str
    database: Path | None
    messages_max: int
    bytes_max: int


class StatusPage:
    """Makes the answer. Only the event loop touches it.

    Args:
        about: What does not change.
        metrics: What is counted.
        history: The recent past.
        trouble: The stalls.
        intake: What is held.
        lease: Who may write; None where every instance does.
        epoch: This life, while it serves.
        successor: The instance that has asked for the lease, or None.
        tables: Where rejections are counted.
        timeout_seconds: Longest that counting them may take.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        about: About,
        metrics: Metrics,
        history: History,
        trouble: Trouble,
        intake: Intake,
        lease: Lease | None,
        epoch: Callable[[], int | None],
        successor: Callable[[], Successor | None],
        tables: Tables,
        *,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._about, self._metrics, self._history, self._trouble = about, metrics, history, trouble
        self._intake, self._lease, self._epoch, self._successor = intake, lease, epoch, successor
        self._tables = tables
        self._timeout, self._wall_clock = timeout_seconds, wall_clock
        self._started = self._now()
        self._state, self._state_since = str(intake.state), self._started
        self._page, self._made = b"", float("-inf")
        self._making = asyncio.Lock()  # the one guard of the two: who comes meanwhile takes what is made

    async def page(self) -> bytes:
        """The answer, at most `CACHED_SECONDS` old."""
        async with self._making:
            if self._metrics.clock() - self._made >= CACHED_SECONDS:
                self._page = msgspec.json.encode(await self.status())
                self._made = self._metrics.clock()
            return self._page

    async def status(self) -> Status:
        """The status as of now."""
        about, metrics, intake = self._about, self._metrics, self._intake
        self.note_state()
        epoch, clock, waiting = self._epoch(), metrics.clock(), self._successor()
        lease = None if epoch is None else self._lease
        confirmed = metrics.replicated and metrics.replicated[1]
        serving = self._state != "standby"
        return Status(
            state=self._state,
            version=about.version,
            revision=about.revision,
            instance=about.instance,
            engine=about.engine,
            store=about.store,
            started_at=self._started,
            now=self._now(),
            state_since=self._state_since,
            epoch=epoch,
            generation=None if lease is None else lease.live,
            lease_age_seconds=None if lease is None else round(lease.age, 3),
            successor=None if waiting is None else Waiting(holder=waiting.holder, revision=waiting.revision),
            held=Held(
                messages=intake.held_messages,
                messages_max=about.messages_max,
                bytes=intake.held_bytes,
                bytes_max=about.bytes_max,
                queued=metrics.pending() if serving else None,
            ),
            oldest_unconfirmed_seconds=round(metrics.unconfirmed_seconds, 3) if serving else None,
            confirmed_seconds_ago=None if confirmed is None else round(clock - confirmed, 3),
            acknowledged=self._history.windows(),
            rejections=await self._rejections(),
            database=_database(about.database),
            memory=Memory(**dict(zip(("bytes", "limit_bytes"), machine.memory(), strict=True))),
            trouble=self._trouble.stalls(confirmed),
            history=list(self._history.points),
        )

    def note_state(self) -> None:
        """Notice that the state has changed; its time is as exact as this is called often."""
        if (state := str(self._intake.state)) != self._state:
            self._state, self._state_since = state, self._now()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), UTC)

    async def _rejections(self) -> dict[str, Open] | None:
        if not self._tables.open:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                found: Mapping[str, tuple[int, datetime]] = await self._tables.read(rejections.open_since)
        except (WorkerError, TimeoutError):
            return None
        return {reason: Open(count=count, oldest=oldest) for reason, (count, oldest) in found.items()}


def _database(file: Path | None) -> Database:
    if file is None:
        return Database()  # PostgreSQL's
    try:
        disk = shutil.disk_usage(file.parent)
        wal = file.with_name(f"{file.name}-wal")
        return Database(
            bytes=file.stat().st_size,
            wal_bytes=machine.size(wal),
            disk_free_bytes=disk.free,
            disk_bytes=disk.total,
        )
    except OSError:
        return Database()  # there is none yet
