"""One writer life's generation in the bucket: what it starts from, its seal on the one before, and its confirmations.

    restore the live generation ──> seal it ──> migrate, erase ──> manifest ──> gate, Litestream ──> full copy stored ──>
    live

INV-4: the path is named for the epoch, which no other life has, and the manifest is created only where none is, so a path
is never written by two lives. INV-5: what is restored is the generation that the lease names as live, after the lease is
held; when there is one and it cannot be restored, nothing is served.

The seal: the slot after the last one restored is created, if it is absent, with a transaction that changes nothing. From
then on the life before can store no slot, so whatever it acknowledged was restored. Where the slot is there already, that
life has stored it meanwhile: restore once more, with it. A generation lives as long as its process.
"""

import asyncio
import contextlib
import functools
import logging
import math
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from worker.bucket import Objects
from worker.config import Settings
from worker.database import connections
from worker.errors import (
    DiskFull,
    LeaseLost,
    LitestreamError,
    Mismatch,
    NotInReplica,
    RestoreFailed,
    StoreMissing,
    StoreUnavailable,
    SyncUnavailable,
    Unconfirmed,
)
from worker.lease.lease import Lease
from worker.replica import ltx
from worker.replica.gate import Counts, Gate
from worker.replica.layout import MANIFEST, Manifest, path_of, slot_name
from worker.replica.litestream import Litestream, find_binary
from worker.replica.restoring import Restored, Wanted, restore
from worker.tasks import running

_RETRY_PAUSE_SECONDS: Final = 0.25
_CLAIM_SECONDS: Final = 5.0
_SEALS_MAX: Final = 100
"""So often a life that takes over restores again because the life before has stored one more slot. Each time is shorter, and
the other life learns at its next renewal that it has lost the lease."""
_LOOK_SECONDS: Final = 10.0
"""Pause between two looks at the lease for the gate's rule G8; slots are kept for five minutes anyway."""
_ASKED_AT_ONCE: Final = 3
"""A checkpoint of Litestream's may add a transaction between a sync's upload and its answer: asking again settles it."""

_DISK_SECONDS: Final = 1.0
_SLOTS_BYTES_MAX: Final = 32_000_000
"""So many bytes of slots are kept on this disk. Those of a heavy load that were trimmed, a merge reads from the bucket."""
_SLOTS_MAX: Final = 512
"""Litestream lists their folder in each sync. At 12 uploads a second these are more than one merge of 30 s needs."""
_STUCK_SECONDS: Final = 10.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Generation:
    """The generation that this process writes, and its `Confirmation`. Only the event loop touches it."""

    def __init__(
        self,
        lease: Lease,
        store: Objects,
        settings: Settings,
        *,
        side: asyncio.TaskGroup,
        prepare: Callable[[Path], Awaitable[None]],
        counts: Counts | None = None,
        gate_of: Callable[..., Gate] = Gate,
    ) -> None:
        self._lease, self._store, self._settings, self._side = lease, store, settings, side
        self._database = settings.database_path.resolve()
        self._counts, self._gate_of, self._prepare = counts, gate_of, prepare
        self._life = contextlib.AsyncExitStack()
        self._gate: Gate | None = None
        self._litestream: Litestream | None = None
        self._sealed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stored = asyncio.Event()  # set when the gate has stored a slot
        self._ready_at = 0.0
        self._patience = settings.first_sync_timeout_seconds
        """Seconds for one sync: all that a full copy may take, then what a confirmation may, and longer after each that
        failed, because an upload in several parts begins anew when its time is over."""
        self.on_restored: Callable[[float, int], None] = lambda seconds, size: None
        """Called with what a restore took and wrote."""

    def __repr__(self) -> str:
        return f"<Generation {self._lease.live}, {self._gate}, {self._litestream}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()  # G5: the gate first, then Litestream
        await self._life.__aexit__(kind, error, trace)

    async def begin(self) -> None:
        """Restore and seal the live generation, bring it up to date, and make this life's own generation the live one.

        Raises:
            RestoreFailed: There is a live generation and it could not be restored.
            SyncUnavailable: The bucket did not take the full copy in time. The old generation stays live.
            StoreUnavailable: The seal, the manifest or the record was not written in time. The old generation stays live.
        """
        file = self._database
        if connections.clear(file):
            log.warning("a database found at %s was moved aside", file, extra={"action": "database.moved"})
        live, txid = self._lease.live, 0
        if live is not None:
            txid = await self._take_over(live)
        await self._insist(lambda: self._prepare(self._database))
        await self._start(base=live, base_txid=txid)

    async def begin_from(self, file: Path, *, base: str, base_txid: int) -> None:
        """Make an earlier state the live one: a new generation that continues `base` and replaces what is live now.

        What is live must have been sealed.

        Args:
            file: The state's database; it is moved away.
            base: The generation it was restored from.
            base_txid: The transaction it ends at.

        Raises:
            SyncUnavailable: As for `begin`. What was live stays live.
            StoreUnavailable: As for `begin`. What was live stays live.
        """
        database_file = self._database
        connections.clear(database_file)
        file.replace(database_file)
        await self._insist(lambda: self._prepare(self._database))
        await self._start(base=base, base_txid=base_txid, replaced=self._lease.live)

    # What confirms.

    @property
    def ready_at(self) -> float:
        """See `Confirmation.ready_at`: slots are spaced."""
        return self._ready_at

    @property
    def stored(self) -> int:
        """The transaction up to which everything is in the bucket; 0 before the generation has begun."""
        return 0 if self._gate is None else self._gate.stored

    async def confirm(self) -> None:
        """See `Confirmation.confirm`."""
        assert self._litestream is not None, "begun"
        assert self._gate is not None, "begun"
        self._ready_at = asyncio.get_running_loop().time() + self._settings.upload_spacing_seconds
        committed_in, stored = 0, self._gate.stored
        try:
            for _ in range(_ASKED_AT_ONCE):
                committed_in = await self._litestream.sync(timeout=self._patience)
                if 0 < committed_in < stored:  # then a number no longer says what is in the bucket
                    raise LitestreamError(f"litestream has counted back to transaction {committed_in}, from {stored}")
                stored = self._gate.stored
                if committed_in > 0 and (stored >= committed_in or await self._gate.settle(committed_in) >= committed_in):
                    self._patience = self._settings.sync_timeout_seconds
                    return
        except SyncUnavailable as doubt:
            self._check_seal()
            self._patience = min(2 * self._patience, self._settings.first_sync_timeout_seconds)
            raise Unconfirmed(
                str(doubt),
                committed_in=committed_in or await self._committed_in(self._litestream),
                stored=self._gate.stored,
            ) from doubt
        self._check_seal()
        text = f"the bucket is at transaction {self._gate.stored}, not {committed_in}"
        raise Unconfirmed(text, committed_in=committed_in, stored=self._gate.stored)

    async def _committed_in(self, child: Litestream) -> int:
        """The transaction that everything committed so far is in, or before; 0 if Litestream does not say."""
        with contextlib.suppress(SyncUnavailable):
            return await child.sync(timeout=self._settings.sync_timeout_seconds, upload=False)
        return 0

    def abandon(self) -> None:
        """Close the way to the bucket and kill the child, now: this life is over."""
        if self._gate is not None:
            self._gate.fence()
        if self._litestream is not None:
            self._litestream.abandon()

    def _check_seal(self) -> None:
        if self._sealed.done():
            raise LeaseLost(self._sealed.result())

    # The start.

    async def _take_over(self, live: str) -> int:
        """Restore the live generation and seal it there; the transaction it was restored to."""
        for _ in range(_SEALS_MAX):
            restored = await self._restore(live)
            data = unchanging_after(restored.txid, self._database, epoch=self._lease.epoch)
            if await self._insist(functools.partial(seal, self._store, slot_name(live, restored.txid + 1), data)):
                log.info("%s is sealed at transaction %d", live, restored.txid + 1, extra={"action": "generation.sealed"})
                return restored.txid
            log.info("%s has gone on meanwhile; restoring it again", live, extra={"action": "generation.went_on"})
            connections.clear(self._database)
        raise RestoreFailed(f"{live} was still being written after {_SEALS_MAX} restores: who else holds the lease?")

    async def _restore(self, live: str) -> Restored:
        output, loop = self._database, asyncio.get_running_loop()
        log.info("restoring %s", live, extra={"action": "restore.started"})
        began = loop.time()
        try:
            restored = await restore(
                self._store,
                Wanted(path=live),
                output,
                binary=find_binary(self._settings.litestream_bin),
                seconds=self._settings.restore_timeout_seconds,
                request_seconds=self._settings.fetch_timeout_seconds,
                say=lambda line: log.info("%s", line, extra={"action": "restore.progress"}),
            )
        except (LitestreamError, NotInReplica, StoreMissing) as error:
            raise RestoreFailed(
                f"the live generation could not be restored: {error}. Nothing was served. `worker replica verify` names the "
                "damaged files, and `worker recover` makes an earlier state live; do not run init"
            ) from error
        for name in restored.left_out:
            log.warning("%s is not whole and was left out", name, extra={"action": "restore.left_out"})
        size, seconds = output.stat().st_size, loop.time() - began
        self.on_restored(seconds, size)
        log.info(
            "restored %d bytes at transaction %d in %.1f s",
            size,
            restored.txid,
            seconds,
            extra={"action": "restore.finished"},
        )
        return restored

    async def _start(self, *, base: str | None, base_txid: int, replaced: str | None = None) -> None:
        """Claim this epoch's path, fill it with the whole database, and make it the live one."""
        lease, path, loop = self._lease, path_of(self._lease.epoch), asyncio.get_running_loop()
        manifest = Manifest(
            epoch=lease.epoch,
            base=base,
            base_txid=base_txid,
            started_at=datetime.now(UTC),
            revision=lease.revision,
            holder=lease.holder,
            replaced=replaced,
        )
        await self._insist(lambda: self._claim(f"{path}/{MANIFEST}", manifest))
        self._gate = self._gate_of(
            self._store.place(path),
            spacing_seconds=self._settings.upload_spacing_seconds,
            on_stored=lambda: loop.call_soon_threadsafe(self._stored.set) and None,
            on_sealed=lambda reason: loop.call_soon_threadsafe(self._note_seal, reason) and None,
            counts=self._counts,
        )
        await self._life.enter_async_context(self._gate)
        child = Litestream(self._settings, address=self._gate.address, epoch=lease.epoch)
        self._litestream = await self._life.enter_async_context(child)
        for name, work in (
            ("litestream", child.watch()),
            ("seal", self._until_sealed()),
            ("deletions", self._allow_deletions(self._gate)),
            ("disk", self._bound_disk(self._gate, child.slots)),
        ):
            await self._life.enter_async_context(running(self._side, name, work))
        await self._insist(self._whole)
        await self._insist(lambda: lease.set_live(path))

    async def _whole(self) -> None:
        try:
            await self.confirm()
        except Unconfirmed as doubt:
            raise SyncUnavailable(str(doubt)) from doubt

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

    async def _until_sealed(self) -> None:
        raise LeaseLost(await self._sealed)

    def _note_seal(self, reason: str) -> None:
        if not self._sealed.done():
            self._sealed.set_result(reason)

    async def _allow_deletions(self, gate: Gate) -> None:
        """G8: find the lease ours after slots were stored, and let the gate delete these."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            stored = gate.stored
            if stored > gate.deletable:
                with contextlib.suppress(StoreUnavailable):  # the renewals complain already
                    await self._lease.verify()
                    gate.deletable = stored

    async def _bound_disk(self, gate: Gate, slots: Path) -> None:
        """Keep few slots on this disk (INV-7). End this life if the disk is full, nothing is stored, and a new one has room.

        Raises:
            DiskFull: The next life begins on a clean disk, from what is in the bucket.
        """
        file, stuck, stored = self._database, 0.0, gate.stored
        while True:
            await asyncio.sleep(_DISK_SECONDS)
            await asyncio.to_thread(trim, slots, below=gate.stored, most=_SLOTS_BYTES_MAX)
            free = shutil.disk_usage(file.parent).free
            stuck = stuck + _DISK_SECONDS if free < connections.RESERVED_BYTES and gate.stored == stored else 0.0
            stored = gate.stored
            if free < connections.RESERVED_BYTES:
                await asyncio.to_thread(trim, slots, below=gate.stored, most=0)
                connections.remove_previous(file)
                needed = connections.RESERVED_BYTES
                text = f"the disk of {file} is full: {free:,} bytes are free of {needed:,} needed; give it more room"
                log.error("%s", text, extra={"action": "disk.full"})
                if stuck >= _STUCK_SECONDS and free + _removable(file, slots) >= connections.RESERVED_BYTES:
                    raise DiskFull(f"{text}. This process ends, and the next one begins from the bucket")

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await insist(attempt, seconds=self._settings.first_sync_timeout_seconds)


def _removable(file: Path, slots: Path) -> int:
    """The bytes on this disk that a new life does not begin with: the WAL and Litestream's files."""
    size = 0
    for each in (file.with_name(f"{file.name}-wal"), *slots.parent.parent.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            size += each.stat().st_size
    return size


def trim(slots: Path, *, below: int, most: int) -> None:
    """Delete the oldest slots that are below a transaction until the rest have at most so many bytes, and are 512 at most.

    Litestream reads from the bucket what it does not find here when it merges files.
    """
    size = 0
    for number, file in enumerate(sorted(slots.glob("*.ltx"), reverse=True)):
        with contextlib.suppress(FileNotFoundError):  # Litestream deletes them as well
            size += file.stat().st_size
            if (size > most or number >= _SLOTS_MAX) and int(file.stem.rpartition("-")[2], 16) < below:
                file.unlink()


async def seal(store: Objects, name: str, data: bytes) -> bool:
    """Create a slot if it is absent; whether that seals the generation there.

    False: the life that writes it has stored that slot meanwhile.

    Raises:
        StoreUnavailable: It is not known; the same call with the same data tells.
    """
    try:
        await store.write(name, data, if_generation=0, timeout=_CLAIM_SECONDS)
    except Mismatch:
        found = await store.read(name, timeout=_CLAIM_SECONDS)
        return found is not None and found[0] == data
    return True


def unchanging_after(transaction: int, file: Path, *, epoch: int) -> bytes:
    """A slot that changes nothing, to follow `transaction` in a generation that was restored to `file`."""
    with file.open("rb") as stream:
        page_size = int.from_bytes(stream.read(18)[16:])  # sqlite.org, "Database File Format", offset 16
    page_size = 65_536 if page_size == 1 else page_size
    return ltx.unchanging(
        transaction=transaction + 1,
        page_size=page_size,
        pages=file.stat().st_size // page_size,
        milliseconds=round(datetime.now(UTC).timestamp() * 1000),
        node=epoch,
    )


def _holder(manifest: bytes) -> str | None:
    try:
        return msgspec.json.decode(manifest, type=Manifest).holder
    except msgspec.DecodeError:
        return None  # we did not write it


async def insist(attempt: Callable[[], Awaitable[T]], *, seconds: float) -> T:
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
