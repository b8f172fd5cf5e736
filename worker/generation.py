"""One writer life's place in the bucket: its path, its manifest, and what it starts from.

INV-4: the path is named for the epoch, which no other life has, and the manifest is created only where none is, so a path
is never written by two lives. INV-5: what is restored is the generation that the lease names as live, after the lease is
held; when there is one and it cannot be restored, nothing is served.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from worker import database, erasure, litestream
from worker.background import running
from worker.errors import LitestreamError, Mismatch, StoreUnavailable, SyncUnavailable
from worker.layout import MANIFEST, Manifest, path_of
from worker.lease import Lease

_RETRY_PAUSE_SECONDS: Final = 0.25
_CLAIM_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds for starting and rolling over; the settings of like names say what each is for. Times are in seconds."""

    integrity_check: str
    restore_seconds: float
    busy_timeout_seconds: float
    first_sync_seconds: int
    transactions_max: int


class Generations:
    """The generation this process writes: begun at start, left for a new one when it has grown long.

    It is the replica that confirmations ask (`sync`). Only the event loop touches it. `_child` holds the running
    Litestream and the task that watches it, and is empty only while one is being exchanged for the next.
    """

    def __init__(
        self,
        lease: Lease,
        store: erasure.Names,
        options: litestream.Options,
        *,
        prefix: str,
        limits: Limits,
        side: asyncio.TaskGroup,
    ) -> None:
        self._lease, self._store, self._options, self._prefix = lease, store, options, prefix
        self._limits, self._side = limits, side
        self._child = contextlib.AsyncExitStack()
        self._litestream: litestream.Litestream | None = None
        self._txid = 0
        self.on_restored: Callable[[float, int], None] = lambda seconds, size: None
        """Called with what a restore took and wrote."""
        self.on_rolled_over: Callable[[float], None] = lambda seconds: None
        """Called with how long messages were held back."""
        self._long = asyncio.Event()  # set when the generation has reached its bound

    def __repr__(self) -> str:
        return f"<Generations at transaction {self._txid} of {self._lease.live}, {self._litestream}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._child.__aexit__(kind, error, trace)

    async def begin(self) -> None:
        """Restore the live generation, bring it up to date, and make this life's own generation the live one.

        Raises:
            RestoreFailed: There is a live generation and it could not be restored.
            SyncUnavailable: The bucket did not take the full copy in time. The old generation stays live.
            StoreUnavailable: The manifest or the record could not be written in time; likewise.
        """
        limits, database_file = self._limits, self._options.database
        if database.clear(database_file):
            log.warning("a database found at %s was moved aside", database_file, extra={"action": "database.moved"})
        live, txid = self._lease.live, 0
        if live is not None:
            txid = await self._restore(live)
        applied = await asyncio.to_thread(database.migrate, database_file, busy_timeout_seconds=limits.busy_timeout_seconds)
        for name in applied:
            log.info("migration %s applied", name, extra={"action": "database.migrated"})
        await self._erase()
        await self._switch(base=live, base_txid=txid, seconds=limits.first_sync_seconds)

    async def begin_from(self, file: Path, *, base: str, base_txid: int) -> None:
        """Make an earlier state the live one: a new generation that continues `base` and replaces what is live now.

        Args:
            file: The state's database; it is moved away.
            base: The generation it was restored from.
            base_txid: The transaction it ends at.

        Raises:
            SyncUnavailable: As for `begin`; likewise `StoreUnavailable`. What was live stays live.
        """
        limits, database_file = self._limits, self._options.database
        database.clear(database_file)
        file.replace(database_file)
        await asyncio.to_thread(database.migrate, database_file, busy_timeout_seconds=limits.busy_timeout_seconds)
        await self._erase()
        await self._switch(base=base, base_txid=base_txid, seconds=limits.first_sync_seconds, replaced=self._lease.live)

    async def sync(self, *, timeout: int) -> litestream.Position:
        """One sync of the current generation; see `Litestream.sync`."""
        if self._litestream is None:
            raise SyncUnavailable("a new generation is being started")
        position = await self._litestream.sync(timeout=timeout)
        self._txid = position.replicated_txid
        if self._txid >= self._limits.transactions_max:
            self._long.set()
        return position

    def abandon(self) -> None:
        """Kill the child now: the lease is lost."""
        if self._litestream is not None:
            self._litestream.abandon()

    async def roll_over_when_long(self, quiet: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        """Move to a new generation each time the live one has reached its bound, until cancelled.

        On Cloud Storage Litestream 0.5.17 does not compact, so a generation's files, and the time of its restore, grow
        with every upload. `quiet` holds the writer back while nothing is unconfirmed; requests are held meanwhile.
        The next epoch is reserved before that: it may have to wait for the bucket's one write a second.
        """
        while True:
            await self._long.wait()
            await insist(self._reserve, seconds=math.inf)
            await self._lease.rested()
            async with quiet():
                began = asyncio.get_running_loop().time()
                base, txid = self._lease.live, self._txid
                self._litestream = None
                await self._child.aclose()  # INV-4: the old path is left for good before the new one is begun
                # Once begun this must end: a bucket that went away comes back, and requests are held or refused till then.
                await self._switch(base=base, base_txid=txid, seconds=math.inf)
                self._long.clear()
                seconds = asyncio.get_running_loop().time() - began
                self.on_rolled_over(seconds)
                log.info(
                    "rolled over to %s after %d transactions, in %.2f s",
                    self._lease.live,
                    txid,
                    seconds,
                    extra={"action": "generation.rolled_over"},
                )

    async def _erase(self) -> None:
        """Apply the bucket's list of erased users: this state may be older than an erasure."""
        erased: list[int] = []

        async def look() -> None:
            erased.extend(await erasure.listed(self._store, timeout=self._limits.restore_seconds))

        await insist(look, seconds=self._limits.first_sync_seconds)
        if erased:
            now = round(datetime.now(UTC).timestamp() * 1000)
            again = await asyncio.to_thread(erasure.apply, self._options.database, erased, now=now)
            if again:
                log.info("%d users are erased again", again, extra={"action": "generation.erased"})

    async def _reserve(self) -> None:
        await self._lease.advance()

    async def _switch(self, *, base: str | None, base_txid: int, seconds: float, replaced: str | None = None) -> None:
        """Claim this epoch's path, fill it with the whole database, and make it the live one."""
        lease, path = self._lease, path_of(self._lease.epoch)
        manifest = Manifest(
            epoch=lease.epoch,
            base=base,
            base_txid=base_txid,
            started_at=datetime.now(UTC),
            revision=lease.revision,
            holder=lease.holder,
            replaced=replaced,
        )
        await insist(lambda: self._claim(f"{path}/{MANIFEST}", manifest), seconds=seconds)
        self._child = contextlib.AsyncExitStack()
        child = litestream.Litestream(self._options, replica_path=f"{self._prefix}/{path}", epoch=lease.epoch)
        await self._child.enter_async_context(child)
        await self._child.enter_async_context(running(self._side, "litestream", child.watch()))
        await insist(lambda: self._whole(child), seconds=seconds)
        await insist(lambda: lease.set_live(path), seconds=seconds)
        self._litestream = child

    async def _whole(self, child: litestream.Litestream) -> None:
        position = await child.sync(timeout=self._limits.first_sync_seconds)
        if not position.replicated_txid == position.txid > 0:
            raise SyncUnavailable(f"the bucket is at transaction {position.replicated_txid}, not {position.txid}")
        self._txid = position.txid

    async def _restore(self, live: str) -> int:
        limits, output, loop = self._limits, self._options.database, asyncio.get_running_loop()
        log.info("restoring %s", live, extra={"action": "restore.started"})
        began = loop.time()
        txid = await litestream.restore(
            self._options,
            replica_path=f"{self._prefix}/{live}",
            output=output,
            integrity_check=limits.integrity_check,
            timeout=limits.restore_seconds,
        )
        size, seconds = output.stat().st_size, loop.time() - began
        self.on_restored(seconds, size)
        log.info("restored %d bytes at transaction %d in %.1f s", size, txid, seconds, extra={"action": "restore.finished"})
        return txid

    async def _claim(self, name: str, manifest: Manifest) -> None:
        try:
            await self._store.write(name, msgspec.json.encode(manifest), if_generation=0, timeout=_CLAIM_SECONDS)
        except Mismatch:
            found = await self._store.read(name, timeout=_CLAIM_SECONDS)
            if found is None or _holder(found[0]) != manifest.holder:
                raise LitestreamError(
                    f"{name} was written by another instance although the epoch is ours: "
                    "was the lease record edited or restored by hand? Raise its epoch above every generation's"
                ) from None


def _holder(manifest: bytes) -> str | None:
    try:
        return msgspec.json.decode(manifest, type=Manifest).holder
    except msgspec.DecodeError:
        return None  # whoever wrote it, we did not


async def insist(attempt: Callable[[], Awaitable[None]], *, seconds: float) -> None:
    """Repeat an attempt whose failure says nothing (`StoreUnavailable`, `SyncUnavailable`) for at most `seconds`.

    Raises:
        StoreUnavailable: Time is up; or `SyncUnavailable`, as the last attempt said.
    """
    last: StoreUnavailable | SyncUnavailable = StoreUnavailable(f"no answer within {seconds:g} s")
    try:
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            while True:
                try:
                    return await attempt()
                except (StoreUnavailable, SyncUnavailable) as doubt:
                    last = doubt
                    log.warning("starting a generation is delayed: %s", doubt, extra={"action": "generation.retry"})
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)
    except TimeoutError:
        raise last from None
