"""The lease: who may write. This file alone decides it (INV-2).

The record is one object, `lease.json`, changed only by compare-and-swap on its generation and never deleted, because the
epoch must never start again. Safety never depends on a clock: a record unchanged for the TTL, measured on our own
monotonic clock from when *we* first saw it, only tells us when to *try* to take over; the swap decides. So a holder that
slept through its own TTL finds another's name when it reads the record again, and it must read it again after each
confirmation, before anything is acknowledged (`verify`, INV-1).

A swap whose answer is lost (a timeout, or the 412 that a repeated request meets) is neither won nor lost: the record is
read again and compared. "Lost" is said only of a record that names somebody else.

The lease does not know what is protected by it: no database, no Litestream, no HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec

from worker.errors import LeaseLost, Mismatch, RecordInvalid, StoreError, StoreMissing, StoreUnavailable

RECORD: Final = "lease.json"
FORMAT: Final = 1

log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `lease.json`. `holder` identifies one process, `epoch` one writer life."""

    format: Literal[1] = FORMAT
    state: Literal["held", "released"]
    holder: str
    revision: str
    epoch: int
    live: str | None


class Store(Protocol):
    """The two requests the lease needs of the bucket. Both raise `StoreUnavailable` when nobody knows the outcome."""

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """The object's bytes and generation, or None when there is no such object."""

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """Write if the object is at `if_generation` (0: does not exist); its new generation, or `Mismatch`."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, the generation it was read at, and when (monotonic seconds) we first saw that generation."""

    record: Record
    generation: int
    since: float


@dataclass(frozen=True, slots=True)
class Take:
    """The record is free, or silent for the TTL: try to swap our name in."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else holds it and may be alive; it cannot be taken for another `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """The record is ours."""


@dataclass(frozen=True, slots=True)
class Lost:
    """It was ours and names another life now. There is no way back for this process."""


def decide(seen: Seen, now: float, *, holder: str, epoch: int | None, ttl: float) -> Take | Wait | Renew | Lost:
    """What a process should do about a record. Pure.

    Args:
        seen: The record as last read.
        now: Monotonic seconds.
        holder: Who asks.
        epoch: The epoch the asker holds, or None while it contends.
        ttl: Seconds of silence after which another's lease may be tried.
    """
    record = seen.record
    if record.state == "held" and record.holder == holder and epoch in (None, record.epoch):
        return Renew()  # while contending: our own swap, whose answer was lost
    if epoch is not None:
        return Lost()
    if record.state == "released":
        return Take()
    silent = now - seen.since
    return Take() if silent >= ttl else Wait(ttl - silent)


async def initialize(store: Store, *, timeout: float) -> bool:
    """Create the store's lease record, released at epoch 0; False when it is there already (INV-5: never again)."""
    record = Record(state="released", holder="", revision="", epoch=0, live=None)
    try:
        await store.write(RECORD, _encode(record), if_generation=0, timeout=timeout)
    except Mismatch:
        await look(store, timeout=timeout)  # an unreadable record is an error now, not at the first start
        return False
    return True


async def look(store: Store, *, timeout: float) -> tuple[Record, int]:
    """The record and its generation as they are in the bucket now.

    Raises:
        StoreMissing: There is none.
        RecordInvalid: It is not one this version can read.
        StoreError: The bucket did not answer, or refused.
    """
    found = await store.read(RECORD, timeout=timeout)
    if found is None:
        raise StoreMissing(
            f"no store at {store}: run `python -m worker init` once if it is new; "
            "otherwise REPLICA_URL names the wrong bucket or prefix"
        )
    try:
        return msgspec.json.decode(found[0], type=Record), found[1]
    except msgspec.DecodeError as error:
        raise RecordInvalid(
            f"{RECORD} at {store} cannot be read ({error}): it was written by a newer version, or by hand; "
            "deploy the version that wrote it, or restore the object's previous version"
        ) from None


class Lease:
    """One process's claim on the store. Only the event loop touches it; `_writing` lets one swap run at a time."""

    def __init__(
        self,
        store: Store,
        *,
        holder: str,
        revision: str,
        ttl: float,
        renew: float,
        poll: float,
        spacing: float,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.holder = holder
        self.revision = revision
        self._store = store
        self._ttl, self._renew, self._poll, self._spacing, self._timeout = ttl, renew, poll, spacing, timeout
        self._clock, self._sleep = clock, sleep
        self._writing = asyncio.Lock()
        self._seen: Seen | None = None
        self._epoch: int | None = None  # set while held
        self._written = float("-inf")  # when the last write of the record began

    def __repr__(self) -> str:
        state = "contending" if self._epoch is None else f"held at epoch {self._epoch}"
        return f"<Lease {state} by {self.holder[:8]} ({self.revision})>"

    @property
    def epoch(self) -> int:
        """The epoch held. A lease that is not held has none."""
        assert self._epoch is not None, "the lease is not held"
        return self._epoch

    @property
    def live(self) -> str | None:
        """The live generation's path, as the record last read or written names it."""
        return self._last().record.live

    async def acquire(self) -> None:
        """Contend until the record is ours, at an epoch nobody had before.

        An outage is waited out; `StoreMissing`, `StoreDenied` and `RecordInvalid` are raised.
        """
        told: str | None = None
        while True:
            try:
                await self._read()
                step = decide(self._last(), self._clock(), holder=self.holder, epoch=None, ttl=self._ttl)
                if isinstance(step, Take) and await self._take():
                    step = Renew()
            except StoreUnavailable as error:
                log.warning(
                    "the lease record cannot be reached, trying again: %s",
                    error,
                    extra={"action": "lease.retry"},
                )
                step = Wait(self._poll)
            if isinstance(step, Renew):
                self._epoch = self._last().record.epoch
                log.info("lease held at epoch %d", self._epoch, extra={"action": "lease.acquired"})
                return
            if isinstance(step, Wait):
                if self._seen and self._seen.record.holder != told:
                    told = self._seen.record.holder
                    log.info(
                        "standing by: revision %s holds the lease at epoch %d",
                        self._seen.record.revision,
                        self._seen.record.epoch,
                        extra={"action": "lease.standby"},
                    )
                await self._sleep_for(min(self._poll, step.seconds))

    async def verify(self) -> None:
        """Read the record and return only if it still names this life (the second half of INV-1).

        Raises:
            LeaseLost: It names another.
            StoreUnavailable: It could not be read; nothing is known.
        """
        try:
            record, _ = await look(self._store, timeout=self._timeout)
        except StoreMissing as error:
            raise LeaseLost(f"the lease record is gone: {error}") from error
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
            await self._sleep_for(self._renew)
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
        """Acquire; on the way out release, unless it was lost, within `release_seconds`."""
        await self.acquire()
        try:
            yield self
        except LeaseLost:
            self._epoch = None
            raise
        finally:
            if self._epoch is not None:
                await self._release_within(release_seconds)

    async def _release_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.release()
        except (StoreError, LeaseLost, TimeoutError) as error:
            log.warning(
                "the lease was not released (%s); the next instance waits for the TTL",
                error or "no answer in time",
                extra={"action": "lease.unreleased"},
            )

    async def _take(self) -> bool:
        """Swap our name in at the next epoch; False when somebody else was faster or nobody knows yet."""
        seen = self._last()
        record = Record(
            state="held",
            holder=self.holder,
            revision=self.revision,
            epoch=seen.record.epoch + 1,
            live=seen.record.live,
        )
        async with self._writing:
            try:
                await self._write(record, seen.generation)
            except (Mismatch, StoreUnavailable):
                return False  # acquire() reads again, and finds our own name if the swap did happen
        return True

    async def _change(self, *, state: Literal["held", "released"] = "held", live: str | None = None) -> None:
        """Swap in our own record with `state` and `live` changed; on doubt, re-read and compare."""
        async with self._writing:
            for _ in range(2):
                seen = self._last()
                record = msgspec.structs.replace(seen.record, state=state, live=live or seen.record.live)
                try:
                    return await self._write(record, seen.generation)
                except (Mismatch, StoreUnavailable) as error:
                    doubt = error
                await self._read()
                if self._last().record == record and self._last().generation != seen.generation:
                    return None  # it did happen; only the answer was lost
                self._check(self._last().record)
            raise StoreUnavailable(f"the lease record could not be changed: {doubt}")

    async def _write(self, record: Record, generation: int) -> None:
        await self._sleep_for(self._written + self._spacing - self._clock())
        self._written = self._clock()
        written = await self._store.write(RECORD, _encode(record), if_generation=generation, timeout=self._timeout)
        self._seen = Seen(record, written, self._clock())

    async def _read(self) -> None:
        record, generation = await look(self._store, timeout=self._timeout)
        if self._seen is None or self._seen.generation != generation:
            self._seen = Seen(record, generation, self._clock())

    def _check(self, record: Record) -> None:
        if not (record.state == "held" and record.holder == self.holder and record.epoch == self._epoch):
            raise LeaseLost(
                f"the lease is held by {record.holder or 'nobody'} ({record.revision}) at epoch {record.epoch}, "
                f"no longer by this instance at epoch {self._epoch}; it stops here, and its queue goes to the holder"
            )

    def _last(self) -> Seen:
        assert self._seen is not None, "the record has not been read yet"
        return self._seen

    async def _sleep_for(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


def _encode(record: Record) -> bytes:
    return msgspec.json.encode(record)
