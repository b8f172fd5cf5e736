"""`worker recover`: makes an earlier state the live one, safely beside a running service.

    plan      restore the newest state and the wanted one, and compare their receipts: what lies between is undone
    recover   lease → restore both again → seal what was live → a new generation from the wanted one → live → release

The lease makes it safe: the running instance hands over and exits as it would to a new revision, and the next
instance restores the new generation. The old one is not touched; it stays restorable until its retention ends. A death
before the switch changes nothing; a death after it leaves the recovery done and the lease to its TTL. The same recovery made
again counts what the first has undone, so its replay brings back all of it.
"""

import asyncio
import contextlib
import functools
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from worker.config import Settings
from worker.config.limits import RELEASE_SECONDS
from worker.database import schema
from worker.database.comparison import Undone, undone
from worker.errors import LeaseLost, NotInReplica, RestoreFailed, StoreMissing
from worker.lease.handover import Succession
from worker.lease.lease import Lease
from worker.operations.restore import Restored, restore
from worker.replica import ltx
from worker.replica.generation import Generation, insist, seal, unchanging_after
from worker.replica.layout import File, slot_name
from worker.replica.litestream import find_binary
from worker.replica.restoring import Wanted
from worker.replica.survey import contents, survey
from worker.tasks import plain, running
from worker.wiring import Parts

REVISION: Final = "recover"
"""This process's name in the lease record."""
_LIST_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 0.5
"""Pause between two notes that the lease is wanted; the request itself is repeated less often."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Two states of the store, and what making the older one live undoes.

    `newest` and `undone` are None when the newest state cannot be restored any more and the recovery goes on without it.
    """

    newest: Restored | None
    wanted: Restored
    undone: Undone | None

    @property
    def undone_count(self) -> int:
        """How many messages are undone, as far as that is known."""
        return 0 if self.undone is None else len(self.undone.messages)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A recovery that has been made. `generation` is the one it made live."""

    plan: Plan
    generation: str


class Recovery:
    """One recovery of the store that the settings name.

    Args:
        settings: The service's; its database is not used.
        at: The time whose state is to be live again.
        say: Told about progress, a line at a time.
        blind: Go on when the newest state cannot be restored any more; what is undone is then unknown.
    """

    def __init__(self, settings: Settings, at: datetime, say: Callable[[str], None], *, blind: bool = False) -> None:
        self._settings, self._at, self._say, self._blind = settings, at, say, blind
        self._lease: Lease | None = None
        self._live_before: str | None = None

    @property
    def unchanged(self) -> bool | None:
        """Once `recover` has raised: whether what was live is live still; None if that is not known.

        A release that succeeds has read the record as it is. One that does not may have left a switch under way.
        """
        if self._lease is None:
            return True
        if self._lease.held_epoch is not None:
            return None
        return self._lease.live == self._live_before

    async def plan(self) -> Plan:
        """Plan: the messages that a recovery would undo now. Nothing is changed, and no lease is needed.

        Raises:
            NotInReplica: The bucket does not hold that state, or nothing is newer than it.
            StoreError: The bucket did not answer, or refused.
            RestoreFailed: One of the two states cannot be restored.
        """
        with self._parts() as (parts, scratch):
            return await self._compare(parts, scratch)

    async def recover(self) -> Recovered:
        """Make that state the live one.

        Raises:
            LeaseLost: Another instance took the lease; whether the recovery is live, `worker replica` shows.
            SyncUnavailable: The bucket did not take the full copy in time; what was live stays live.
            WorkerError: As for `plan`; nothing was changed.
        """
        try:
            return await self._recover()
        except BaseExceptionGroup as group:
            raise plain(group, LeaseLost) from None

    async def _recover(self) -> Recovered:
        with self._parts() as (parts, scratch):
            lease = parts.lease
            self._say("asking for the lease; a running instance serves TENURE_MIN_SECONDS at least before it hands over")
            async with _asking(parts.succession), lease.held(release_seconds=RELEASE_SECONDS):
                self._say(f"the lease is held at epoch {lease.epoch}")
                async with (
                    asyncio.TaskGroup() as side,
                    running(side, "lease renewal", lease.keep()),
                    Generation(lease, parts.store, parts.settings, side=side, prepare=parts.prepare) as generation,
                ):
                    lease.on_loss = generation.abandon
                    plan = await self._sealed_plan(parts, scratch)
                    self._say("uploading the whole database as a new generation")
                    wanted = plan.wanted
                    self._lease, self._live_before = lease, lease.live
                    await generation.begin_from(Path(wanted.file), base=wanted.generation, base_txid=wanted.txid)
                    live = lease.live
            assert live is not None  # begin_from named it
            return Recovered(plan, live)

    async def _sealed_plan(self, parts: Parts, scratch: Path) -> Plan:
        """Compare, and seal the live generation where the newest state ends: nothing after it can be acknowledged."""
        live = parts.lease.live
        assert live is not None, "what is compared is live"
        for number in itertools.count():
            folder = scratch / str(number)
            folder.mkdir()
            plan = await self._compare(parts, folder)
            found = await contents(parts.store.patient(_LIST_SECONDS), live, timeout=_LIST_SECONDS)
            # Where the newest state cannot be restored, what it holds is not known, but where it ends is.
            txid = found.transactions if plan.newest is None else plan.newest.txid
            data = await _unchanging_after(txid, found.files, parts, Path(plan.wanted.file))
            sealing = functools.partial(seal, parts.store, slot_name(live, txid + 1), data)
            if await insist(sealing, seconds=self._settings.first_sync_timeout_seconds):
                return plan
            self._say(f"{live} has gone on meanwhile; comparing again")
        raise AssertionError("it returns or raises")

    async def _compare(self, parts: Parts, scratch: Path) -> Plan:
        wanted = await self._restore(parts, Wanted(at=self._at), scratch / "wanted.db")
        try:
            newest = await self._restore(parts, Wanted(), scratch / "newest.db")
        except (RestoreFailed, NotInReplica, StoreMissing) as error:
            if not self._blind:
                raise
            self._say(f"what is undone is not known: {error}")
            return Plan(None, wanted, None)
        if (newest.generation, newest.txid) == (wanted.generation, wanted.txid):
            raise NotInReplica("nothing has been written since then: there is nothing to undo, and nothing was changed")
        replaced = [Path(state.file) for state in await self._replaced(parts, wanted, scratch)]
        for file in (Path(newest.file), Path(wanted.file), *replaced):  # they may be older than a column that is compared
            await asyncio.to_thread(schema.migrate, file, parts.catalog)
        found = await asyncio.to_thread(undone, newer=Path(newest.file), older=Path(wanted.file), replaced=replaced)
        if word := forgotten(wanted, now=datetime.now(UTC), receipt_days=self._settings.receipt_days):
            self._say(word)
        return Plan(newest, wanted, found)

    async def _replaced(self, parts: Parts, wanted: Restored, scratch: Path) -> list[Restored]:
        """The last states of what earlier recoveries have replaced since then, as far as they can still be restored.

        What they had is undone as well, so a recovery that broke off before its replay can simply be made again.
        """
        restored = []
        for generation in (await survey(parts.store.patient(_LIST_SECONDS), timeout=_LIST_SECONDS)).replaced_since(
            wanted.generation
        ):
            epoch = generation.manifest.epoch
            try:
                wanted_too = Wanted(path=generation.path)
                restored.append(await self._restore(parts, wanted_too, scratch / f"replaced-{epoch}.db"))
            except (RestoreFailed, NotInReplica, StoreMissing) as error:
                self._say(f"what an earlier recovery has undone of epoch {epoch} is not known: {error}")
        return restored

    async def _restore(self, parts: Parts, wanted: Wanted, output: Path) -> Restored:
        return await restore(
            parts.store,
            parts.catalog,
            wanted,
            output,
            binary=find_binary(self._settings.litestream_bin),
            seconds=self._settings.restore_timeout_seconds,
            request_seconds=self._settings.fetch_timeout_seconds,
            say=self._say,
        )

    @contextlib.contextmanager
    def _parts(self) -> Iterator[tuple[Parts, Path]]:
        with tempfile.TemporaryDirectory(prefix="solowriter-recover-") as scratch:
            settings = replace(
                self._settings,
                database_path=Path(scratch, "users.db"),
                litestream_metrics_address="off",
                revision=REVISION,
            )
            parts = Parts(settings)
            try:
                yield parts, Path(scratch)
            finally:
                parts.close()


def forgotten(wanted: Restored, *, now: datetime, receipt_days: float) -> str | None:
    """A warning for a state so old that receipts of later messages have expired since; None if it is not. Pure."""
    if wanted.time >= now - timedelta(days=receipt_days):
        return None
    return (
        f"that state is older than {receipt_days:g} days, for which receipts are kept: messages whose receipts have expired "
        "since are undone as well, and are neither counted nor listed; compare the numbers of rows"
    )


async def _unchanging_after(txid: int, files: Sequence[File], parts: Parts, older: Path) -> bytes:
    """A seal to follow `txid`. It says how many pages the database has, which only a file that ends there knows.

    The restored copies do not: they have been migrated and erased in, and the older state may have fewer pages. `older` has
    to do where no such file can be read, in a generation that cannot be restored to its end anyway.
    """
    for file in sorted((file for file in files if file.last == txid), key=lambda file: file.bytes):
        data = await parts.store.read(file.name, timeout=_LIST_SECONDS)
        with contextlib.suppress(ltx.NotWholeError):
            header = ltx.Header.read(b"" if data is None else data[0])
            return ltx.unchanging(
                transaction=txid + 1,
                page_size=header.page_size,
                pages=header.pages,
                milliseconds=round(datetime.now(UTC).timestamp() * 1000),
                node=parts.lease.epoch,
            )
    return unchanging_after(txid, older, epoch=parts.lease.epoch)


@contextlib.asynccontextmanager
async def _asking(succession: Succession) -> AsyncIterator[None]:
    """Ask for the lease while the block waits for it, as an instance does that receives messages."""

    async def note() -> None:
        while True:
            succession.message_received()
            await asyncio.sleep(_ASK_SECONDS)

    task = asyncio.create_task(note(), name="asking for the lease")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
