"""The lease: who may write. This file alone decides it (INV-2).

The record is one object, `lease.json`, changed only by compare-and-swap on its generation and never deleted, because the
epoch must never start again. Safety never depends on a clock: a record unchanged for the TTL, measured on our own monotonic
clock from when *we* first saw it, only tells us when to *try* to take over; the swap decides. The record says who should
write. What makes it true is the seal (generation.py): a holder that slept through its own TTL finds another's name when it
renews, and before that it can store nothing that it could acknowledge.

A swap whose answer is lost (a timeout, or the 412 that a repeated request meets) is neither won nor lost: the record is
read again and compared. "Lost" is said only of a record that names another holder.

The lease does not know what is protected by it: no database, no Litestream, no HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Final, Literal, NoReturn

import msgspec

from worker.bucket import Objects
from worker.config import Settings
from worker.errors import LeaseLost, Mismatch, StoreError, StoreMissing, StoreThrottled, StoreUnavailable
from worker.lease.handover import Succession
from worker.lease.record import RECORD, Lost, Record, Renew, Seen, Take, Wait, decide, encode, look

_WRITE_PAUSE_SECONDS: Final = 1.0
"""Cloud Storage takes one write a second for each object name, as a rate: a write that is too early is answered 429
(documentation, "Quotas and limits"). So the record is written at once, and the second is waited out only then."""

log = logging.getLogger(__name__)


class Lease:
    """One process's claim on the store. Only the event loop touches it; `_writing` lets one swap run at a time."""

    def __init__(
        self,
        store: Objects,
        settings: Settings,
        *,
        holder: str,
        waiting: Succession,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.holder = holder
        self.revision = settings.revision
        self._store = store
        self._settings, self._waiting = settings, waiting
        self._clock, self._sleep = clock, sleep
        self._writing = asyncio.Lock()
        self._seen: Seen | None = None
        self._looked = float("-inf")  # when the record was last read
        self._blind = False  # a read has failed since
        self._epoch: int | None = None  # set while held
        self._written = float("-inf")  # when the last write of the record began
        self._gone = False  # the record named another: never release, never write again
        self._taking: asyncio.Task[bool] | None = None  # the swap of our name that may or may not have happened
        self.on_loss: Callable[[], None] = lambda: None
        """Called at the moment a loss is known, before anything is awaited."""

    def __repr__(self) -> str:
        state = "contending" if self._epoch is None else f"held at epoch {self._epoch}"
        return f"<Lease {state} by {self.holder[:8]} ({self.revision})>"

    @property
    def epoch(self) -> int:
        """The epoch held. A lease that is not held has none."""
        assert self._epoch is not None, "the lease is not held"
        return self._epoch

    @property
    def held_epoch(self) -> int | None:
        """The epoch held; None while it is not."""
        return self._epoch

    @property
    def age(self) -> float:
        """Seconds since this process last began to write the record."""
        return self._clock() - self._written

    @property
    def live(self) -> str | None:
        """The live generation's path, as the record last read or written names it."""
        return self._last().record.live

    async def acquire(self) -> None:
        """Contend until the record is ours, at a new epoch.

        An outage is waited out; `StoreMissing`, `StoreDenied` and `RecordInvalid` are raised.
        """
        told: str | None = None
        while True:
            try:
                await self._read()
                step = await self._step()
            except StoreUnavailable as error:
                log.warning("the lease record cannot be reached, trying again: %s", error, extra={"action": "lease.retry"})
                step = Wait(self._settings.lease_poll_seconds)
            if isinstance(step, Renew):
                self._epoch = self._last().record.epoch
                log.info("lease held at epoch %d", self._epoch, extra={"action": "lease.acquired"})
                return
            if isinstance(step, Wait):
                told = self._tell_standby(told)
                await self._sleep_for(min(self._settings.lease_poll_seconds, step.seconds))

    async def _step(self) -> Take | Wait | Renew | Lost:
        """Act on the record just read: take it, or ask for it. `Renew` is success."""
        seen = self._last()
        step = decide(
            seen,
            self._clock(),
            holder=self.holder,
            epoch=None,
            ttl=self._settings.lease_ttl_seconds,
            reserved=await self._waiting.reserved(seen.record),
        )
        if isinstance(step, Take) and await self._take():
            return Renew()
        if isinstance(step, Wait) and seen.record.state == "held":
            await self._waiting.ask(seen.record)
        return step

    def _tell_standby(self, told: str | None) -> str | None:
        if self._seen is None or self._seen.record.holder == told:
            return told
        record = self._seen.record
        log.info(
            "standing by: revision %s holds the lease at epoch %d",
            record.revision,
            record.epoch,
            extra={"action": "lease.standby"},
        )
        return record.holder

    async def verify(self) -> None:
        """Read the record and return only if it still names this life.

        Raises:
            LeaseLost: It names another.
            StoreUnavailable: It could not be read; nothing is known.
        """
        try:
            record, _ = await look(self._store, timeout=self._settings.lease_read_timeout_seconds)
        except StoreMissing as error:
            self._lost(f"the lease record is gone: {error}")
        self._check(record)

    async def set_live(self, path: str) -> None:
        """Name `path` as the live generation; returns once the record is known to say so.

        Raises:
            LeaseLost: The record names another holder; it may not be overwritten.
            StoreUnavailable: It is not known whether it says so; ask again.
        """
        await self._change(live=path)

    async def keep(self) -> None:
        """Renew until cancelled. An outage is waited out: not being able to renew is not a loss.

        Raises:
            LeaseLost: The record names another.
        """
        while True:
            # Any write of the record renews it; one right after another would be refused.
            await self._sleep_for(
                max(self._written + self._settings.lease_renew_seconds - self._clock(), _WRITE_PAUSE_SECONDS)
            )
            try:
                await self._change()
            except StoreUnavailable as error:
                log.warning("the lease could not be renewed, trying again: %s", error, extra={"action": "lease.retry"})

    async def release(self) -> None:
        """Let another instance in at once. Only after everything that writes has stopped.

        Raises:
            LeaseLost: The record names another already.
            StoreUnavailable: It is not known whether it is released; the TTL will release it.
        """
        await self._change(state="released")
        log.info("lease released at epoch %d", self.epoch, extra={"action": "lease.released"})
        self._epoch = None

    @contextlib.asynccontextmanager
    async def held(self, *, release_seconds: float) -> AsyncIterator["Lease"]:
        """Acquire; on the way out release, unless it was lost, within `release_seconds`.

        Also when it is told to leave while its name is on its way into the record.
        """
        try:
            await self.acquire()
            yield self
        finally:
            if not self._gone and (self._epoch is not None or self._taking is not None):
                await self._release_within(release_seconds)

    async def _release_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                if self._epoch is not None or await self._took():
                    await self.release()
        except (StoreError, LeaseLost, TimeoutError) as error:
            log.warning(
                "the lease was not released (%s); the next instance waits for the TTL",
                error or "no answer in time",
                extra={"action": "lease.unreleased"},
            )

    async def _take(self) -> bool:
        """Swap our name in at the next epoch; False when another instance was faster, or the outcome is not known yet."""
        seen = self._last()
        record = Record(
            state="held",
            holder=self.holder,
            revision=self.revision,
            epoch=seen.record.epoch + 1,
            live=seen.record.live,
        )
        async with self._writing:
            self._taking = asyncio.create_task(self._swapped(record, seen.generation), name="lease take")
            taken = await asyncio.shield(self._taking)  # a caller that is cancelled now must still learn the outcome
        if taken:
            self._taking = None
        return taken

    async def _swapped(self, record: Record, generation: int) -> bool:
        try:
            await self._write(record, generation)
        except (Mismatch, StoreUnavailable):
            return False  # acquire() reads again, and finds our own name if the swap did happen
        return True

    async def _took(self) -> bool:
        """Whether the swap that was under way when this process was told to leave has put our name into the record."""
        assert self._taking is not None
        await asyncio.wait({self._taking})
        await self._read()
        record = self._last().record
        if record.state == "held" and record.holder == self.holder:
            self._epoch = record.epoch
        return self._epoch is not None

    async def _change(self, *, state: Literal["held", "released"] = "held", live: str | None = None) -> None:
        """Swap in our own record with the given changes; on doubt, re-read and compare."""
        async with self._writing:
            for _ in range(2):
                seen = self._last()
                self._check(seen.record)  # it may have been read to learn of a loss: no record but ours is changed
                record = msgspec.structs.replace(seen.record, state=state, live=live or seen.record.live)
                try:
                    return await self._write(record, seen.generation)
                except (Mismatch, StoreUnavailable) as error:
                    doubt = error
                try:
                    await self._read()
                except StoreMissing as error:
                    self._lost(f"the lease record is gone: {error}")
                if self._last().record == record and self._last().generation != seen.generation:
                    return None  # it did happen; only the answer was lost
                self._check(self._last().record)
            raise StoreUnavailable(f"the lease record could not be changed: {doubt}")

    async def _write(self, record: Record, generation: int) -> None:
        before, self._written = self._written, self._clock()
        data = encode(record)
        try:
            try:
                written = await self._store.write(
                    RECORD, data, if_generation=generation, timeout=self._settings.lease_read_timeout_seconds
                )
            except StoreThrottled:
                await self._sleep(_WRITE_PAUSE_SECONDS)
                self._written = self._clock()
                written = await self._store.write(
                    RECORD, data, if_generation=generation, timeout=self._settings.lease_read_timeout_seconds
                )
        except Mismatch:
            self._written = before  # a 412 wrote nothing
            raise
        self._seen = Seen(record, written, self._clock())

    async def _read(self) -> None:
        try:
            record, generation = await look(self._store, timeout=self._settings.lease_read_timeout_seconds)
        except StoreUnavailable:
            self._blind = True
            raise
        now = self._clock()
        if self._seen is None or self._seen.generation != generation:
            self._seen = Seen(record, generation, now)
        elif self._blind:  # its holder could not reach the bucket either: that is no silence of the holder's
            self._seen = replace(self._seen, since=self._seen.since + now - self._looked)
        self._looked, self._blind = now, False

    def _check(self, record: Record) -> None:
        ours = record.state == "held" and record.holder == self.holder and record.epoch == self.epoch
        if not ours:
            self._lost(
                f"the lease is held by {record.holder or 'no holder'} ({record.revision}) at epoch {record.epoch}, "
                f"no longer by this instance at epoch {self._epoch}; it stops here, and its queue goes to the holder"
            )

    def _lost(self, text: str) -> NoReturn:
        self._gone = True
        self.on_loss()
        raise LeaseLost(text)

    def _last(self) -> Seen:
        assert self._seen is not None, "the record has not been read yet"
        return self._seen

    async def _sleep_for(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)
