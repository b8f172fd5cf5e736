"""A generation: its path is claimed once, the one before is sealed, and it is filled before it is live."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from tests.entries import CATALOG
from tests.fakes import Clock, MemoryStore
from tests.unit.lease.test_lease import acquired, record_in
from worker.bucket import Place
from worker.config import Settings
from worker.database import schema
from worker.errors import (
    LeaseLost,
    LitestreamError,
    Mismatch,
    RestoreFailed,
    StoreUnavailable,
    SyncUnavailable,
    Unconfirmed,
)
from worker.lease.lease import Lease
from worker.replica import generation, ltx
from worker.replica.generation import Generation, insist, seal, trim, unchanging_after
from worker.replica.layout import Manifest, path_of, slot_name
from worker.replica.restoring import Restored, Wanted

MINE = f"{path_of(4)}/manifest.json"
LIVE = path_of(3)


class Store(MemoryStore):
    """A bucket in memory that a generation can be begun in."""

    def place(self, path: str) -> Place:
        """See `worker.bucket.Objects`."""
        return Place("bucket", path, lambda: pytest.fail("no gate of this test reaches a bucket"))


async def _nothing(file: Path) -> None:
    """The schema alone: no subject was erased."""
    schema.migrate(file, CATALOG, busy_timeout_seconds=5)


@dataclass
class World:
    """A bucket, a held lease at epoch 4, a gate and a Litestream that do as told; `events` is what happened, in order."""

    directory: Path
    store: Store = field(default_factory=Store)
    events: list[str] = field(default_factory=list)
    syncs: list[int | Exception] = field(default_factory=list)
    """What the next syncs answer; when it is empty, that everything is in transaction 5."""
    stored: int = 5
    """What the gate has stored."""
    settles: list[int | Exception] = field(default_factory=list)
    """What a look at the slots finds; when it is empty, what is stored."""
    restored_to: list[int] = field(default_factory=lambda: [7])
    """Where the next restores end; the last one stays."""
    lease: Lease = field(init=False)
    gate: "FakeGate | None" = None

    def __post_init__(self) -> None:
        self.lease = acquired(self.store, Clock())
        self.store.calls.clear()

    @property
    def database(self) -> Path:
        """The working copy."""
        return self.directory / "users.db"

    @contextlib.asynccontextmanager
    async def generation(self, *, seconds: int = 5) -> AsyncIterator[Generation]:
        """The generation of a life."""
        impatient = type("Impatient", (Settings,), {"__slots__": (), "first_sync_timeout_seconds": seconds})
        settings: Settings = impatient(
            replica_url="gs://bucket/prefix", database_path=self.database, litestream_bin="/bin/false"
        )

        def gate_of(place: Place, **given: Any) -> FakeGate:
            self.gate = FakeGate(self, given["on_sealed"])
            return self.gate

        async with asyncio.TaskGroup() as side:
            made = Generation(self.lease, self.store, settings, side=side, prepare=_nothing, gate_of=gate_of)  # type: ignore[arg-type]
            async with made:
                yield made

    def begin(self, *, seconds: int = 5) -> None:
        """One start, and a normal end."""

        async def body() -> None:
            async with self.generation(seconds=seconds) as made:
                await made.begin()
                self.events.append("begun")

        try:
            asyncio.run(body())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    @property
    def manifest(self) -> Manifest:
        """Epoch 4's manifest as it stands in the bucket."""
        return msgspec.json.decode(self.store.held[MINE][0], type=Manifest)


class FakeGate:
    """Stands in for `worker.replica.gate.Gate`."""

    def __init__(self, world: World, on_sealed: Callable[[str], None]) -> None:
        self._world, self.on_sealed = world, on_sealed
        self.address, self.deletable, self.sealed = "127.0.0.1:1", 0, False

    @property
    def stored(self) -> int:
        """See `Gate.stored`."""
        return self._world.stored

    async def __aenter__(self) -> Self:
        assert MINE in self._world.store.held
        self._world.events.append("gate")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._world.events.append("gate ends")

    def fence(self) -> None:
        """See `Gate.fence`."""
        self._world.events.append("fence")

    async def settle(self, transaction: int) -> int:
        """See `Gate.settle`."""
        answer = self._world.settles.pop(0) if self._world.settles else self._world.stored
        if isinstance(answer, Exception):
            raise answer
        return answer


class Child:
    """Stands in for `worker.replica.litestream.Litestream`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.slots = world.directory / "slots"

    async def __aenter__(self) -> Self:
        self._world.events.append("start")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._world.events.append("killed")

    async def watch(self) -> None:
        """See `worker.replica.litestream.Litestream.watch`."""
        await asyncio.Event().wait()

    async def sync(self, *, timeout: int, upload: bool = True) -> int:
        """See `worker.replica.litestream.Litestream.sync`."""
        self._world.events.append(f"sync, live {record_in(self._world.store).live}" if upload else "where")
        answer = self._world.syncs.pop(0) if self._world.syncs else 5
        if isinstance(answer, Exception):
            raise answer
        return answer

    def abandon(self) -> None:
        """See `worker.replica.litestream.Litestream.abandon`."""
        self._world.events.append("abandon")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose live generation, epoch 3's, restores to an empty database at transaction 7."""
    made = World(tmp_path)

    async def restore(store: object, wanted: Wanted, output: Path, **_: Any) -> Restored:
        assert not output.exists()
        made.events.append(f"restore {wanted.path}")
        schema.migrate(output, CATALOG, busy_timeout_seconds=5)
        txid = made.restored_to.pop(0) if len(made.restored_to) > 1 else made.restored_to[0]
        return Restored(str(wanted.path), txid, datetime.now(UTC))

    monkeypatch.setattr(generation, "Litestream", lambda options, *, address, epoch: Child(made))
    monkeypatch.setattr(generation, "restore", restore)
    monkeypatch.setattr(generation, "_RETRY_PAUSE_SECONDS", 0.001)
    return made


def test_a_path_is_named_for_its_epoch() -> None:
    """INV-4: sixteen hexadecimal digits, so that names sort as epochs do."""
    assert path_of(255) == "generations/00000000000000ff"
    assert path_of(9) < path_of(10) < path_of(2**60)


def test_a_generation_is_live_only_once_it_is_whole(world: World) -> None:
    """INV-5: restore what the lease names, seal it, claim, fill, and only then change `live`; the gate is fenced first."""
    world.begin()
    assert world.events == [
        f"restore {LIVE}",
        "gate",
        "start",
        f"sync, live {LIVE}",
        "begun",
        "fence",
        "abandon",
        "killed",
        "gate ends",
    ]
    assert record_in(world.store).live == path_of(4)


def test_the_one_before_is_sealed_where_its_restore_ended(world: World) -> None:
    """The next slot is taken before this life's own path is claimed."""
    world.begin()
    sealed, _ = world.store.held[slot_name(LIVE, 8)]
    (world.directory / "seal").write_bytes(sealed)
    header = ltx.check(world.directory / "seal")
    assert (header.first, header.last) == (8, 8)
    assert header.pages * header.page_size == (world.directory / "users.db").stat().st_size
    assert list(world.store.held).index(slot_name(LIVE, 8)) < list(world.store.held).index(MINE)


def test_a_slot_that_the_life_before_has_stored_meanwhile_is_restored_as_well(world: World) -> None:
    """It was acknowledged, maybe: restore again with it, and seal at the next one."""
    world.store.put(slot_name(LIVE, 8), b"stored by the life before")
    world.store.put(slot_name(LIVE, 9), b"and this")
    world.restored_to = [7, 9]
    world.begin()
    assert [event for event in world.events if event.startswith("restore")] == [f"restore {LIVE}"] * 2
    assert slot_name(LIVE, 10) in world.store.held
    assert world.manifest.base_txid == 9


@pytest.mark.parametrize("found", ["ours", "another's", "nothing"])
def test_a_seal_that_meets_a_slot_is_compared(found: str) -> None:
    """412 and our own bytes: an earlier answer was lost. Other bytes, or none any more: it is not known to be sealed."""
    store, name = MemoryStore(), slot_name(LIVE, 8)
    if found != "nothing":
        store.put(name, b"seal" if found == "ours" else b"other")
    else:

        async def gone(*_: object, **__: object) -> int:
            raise Mismatch("412")

        store.write = gone  # type: ignore[method-assign]
    assert asyncio.run(seal(store, name, b"seal")) is (found == "ours")


def test_a_seal_whose_answer_was_lost_is_recognised(world: World) -> None:
    """The same bytes are sent again, and found."""
    world.store.faults["write"] = ["lose"]
    world.begin()
    assert [event for event in world.events if event.startswith("restore")] == [f"restore {LIVE}"]
    assert slot_name(LIVE, 9) not in world.store.held


def test_an_unchanging_slot_fits_the_database(tmp_path: Path) -> None:
    """Its header names the page size and the number of pages, also the page size that SQLite writes as 1."""
    file = tmp_path / "users.db"
    file.write_bytes((bytes(16) + (1).to_bytes(2)).ljust(2 * 65_536, b"\0"))
    (tmp_path / "seal").write_bytes(unchanging_after(3, file, epoch=9))
    header = ltx.check(tmp_path / "seal")
    assert (header.page_size, header.pages, header.first) == (65_536, 2, 4)


def test_the_manifest_says_what_it_continues(world: World) -> None:
    """Epoch, base and its transaction, who began it and when."""
    world.begin()
    found = world.manifest
    assert (found.format, found.epoch, found.base, found.base_txid) == (1, 4, LIVE, 7)
    assert (found.holder, found.revision) == (world.lease.holder, world.lease.revision)
    assert found.started_at.tzinfo is not None


@pytest.mark.parametrize(
    "content",
    [
        b'{"format":1,"epoch":4,"base":null,"base_txid":0,"started_at":"2024-01-01T00:00:00Z","revision":"r","holder":"other"}',
        b"not json",
        b"{}",
        b"",
    ],
)
def test_anothers_manifest_is_refused(world: World, content: bytes) -> None:
    """INV-4: our path has been written to, so it is not ours: no Litestream is started and `live` stays."""
    world.store.put(MINE, content)
    with pytest.raises(LitestreamError, match=r"written by another instance although the epoch is ours.* Raise its epoch"):
        world.begin()
    assert world.store.held[MINE][0] == content
    assert record_in(world.store).live == LIVE
    assert not any(event.startswith(("start", "sync")) for event in world.events)


def test_a_claim_whose_answer_was_lost_is_recognised(world: World) -> None:
    """The manifest that stands in the way is our own."""
    world.store.faults["write"] = ["ok", "lose"]
    world.begin()
    assert world.manifest.holder == world.lease.holder
    assert "begun" in world.events


def test_a_claim_that_never_arrived_is_repeated(world: World) -> None:
    """A refused write left nothing behind."""
    world.store.faults["write"] = ["refuse", "refuse", "ok", "refuse"]
    world.begin()
    assert world.manifest.epoch == 4


def test_a_claim_without_an_answer_is_given_up_in_time(world: World) -> None:
    """INV-7: a start does not wait for the bucket for ever, and leaves `live` alone."""
    world.store.faults["write"] = ["refuse"] * 99
    with pytest.raises(StoreUnavailable):
        world.begin(seconds=0)
    world.store.faults.clear()
    assert record_in(world.store).live == LIVE


@pytest.mark.parametrize("doubt", [SyncUnavailable("no answer"), 0, 6], ids=["no answer", "nothing", "not stored"])
def test_a_full_copy_in_doubt_is_asked_for_again(world: World, doubt: int | Exception) -> None:
    """INV-5: `live` changes only after the gate has stored it."""
    world.syncs = [doubt] * 6
    world.begin()
    assert world.events.count(f"sync, live {LIVE}") >= 3
    assert record_in(world.store).live == path_of(4)


def test_a_full_copy_that_never_comes_leaves_the_old_generation_live(world: World) -> None:
    """The next life starts from the complete one; this one's child is killed."""
    world.syncs = [SyncUnavailable("no answer")] * 999
    with pytest.raises((SyncUnavailable, StoreUnavailable)):
        world.begin(seconds=0)
    assert record_in(world.store).live == LIVE


def test_a_restore_that_fails_begins_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-5: no seal, no manifest, no child, and `live` stays."""

    async def restore(*_: object, **__: object) -> Restored:
        raise RestoreFailed("it is damaged")

    monkeypatch.setattr(generation, "restore", restore)
    with pytest.raises(RestoreFailed, match=r"could not be restored: it is damaged\. Nothing was served"):
        world.begin()
    assert MINE not in world.store.held
    assert slot_name(LIVE, 8) not in world.store.held
    assert record_in(world.store).live == LIVE
    assert not world.database.exists()


def test_a_database_found_is_never_used(world: World) -> None:
    """INV-5: what another life left on this disk is moved aside before the restore."""
    world.database.write_text("left behind")
    world.begin()
    assert (world.directory / "users.db.previous").read_text() == "left behind"


def test_a_loss_while_starting_leaves_the_others_record_alone(world: World) -> None:
    """INV-2: the life that took over between the full copy and the swap keeps the record; nothing here is live."""

    async def body() -> None:
        async with world.generation() as made:
            theirs = msgspec.structs.replace(record_in(world.store), holder="other", epoch=5)
            world.store.put("lease.json", msgspec.json.encode(theirs))
            await made.begin()

    with pytest.raises(ExceptionGroup) as lost:
        asyncio.run(body())
    assert lost.group_contains(LeaseLost)
    assert (record_in(world.store).holder, record_in(world.store).live) == ("other", LIVE)
    assert world.events[-2:] == ["killed", "gate ends"]


def test_an_abandoned_generation_is_fenced_and_killed_without_waiting(world: World) -> None:
    """G5, what a lost lease calls: the gate first, then the child, before anything is awaited."""

    async def body() -> None:
        async with world.generation() as made:
            made.abandon()  # before there is one
            await made.begin()
            made.abandon()
            assert world.events[-2:] == ["fence", "abandon"]

    asyncio.run(body())


def test_a_seal_of_another_life_ends_this_one(world: World) -> None:
    """As a lost lease does."""

    async def body() -> None:
        async with world.generation() as made:
            await made.begin()
            assert world.gate is not None
            world.gate.on_sealed("another instance has sealed this generation")
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as lost:
        asyncio.run(body())
    assert lost.group_contains(LeaseLost, match="has sealed this generation")


# What confirms.


def confirmed(world: World) -> Unconfirmed | LeaseLost | None:
    """One confirmation of a generation that has begun; what was raised."""

    async def body() -> Unconfirmed | LeaseLost | None:
        kept = world.syncs, world.settles, world.stored
        world.syncs, world.settles, world.stored = [], [], 5
        async with world.generation() as made:
            await made.begin()
            world.syncs, world.settles, world.stored = kept
            world.events.clear()
            try:
                await made.confirm()
            except Unconfirmed as doubt:
                return doubt
        return None

    return asyncio.run(body())


def test_confirmed_is_what_the_gate_has_stored(world: World) -> None:
    """INV-1: Litestream's answer names a transaction, and the gate says whether its slot is stored."""
    world.syncs, world.stored = [9], 9
    assert confirmed(world) is None


@pytest.mark.parametrize("transaction", [0, 10, 11])
def test_an_answer_of_litestream_proves_nothing(world: World, transaction: int) -> None:
    """INV-1: also not 200 with no transaction at all; it is asked a bounded number of times (INV-7)."""
    world.syncs, world.stored = [transaction] * 9, 9
    doubt = confirmed(world)
    assert isinstance(doubt, Unconfirmed)
    assert (doubt.committed_in, doubt.stored) == (transaction, 9)
    assert len(world.syncs) == 6


def test_a_slot_whose_answer_was_lost_is_looked_at(world: World) -> None:
    """The bucket has it, with the bytes that were sent."""
    world.syncs, world.stored, world.settles = [10], 9, [10]
    assert confirmed(world) is None


def test_a_checkpoint_between_upload_and_answer_is_asked_about_again(world: World) -> None:
    """Litestream adds a transaction of its own at times."""
    world.syncs, world.stored, world.settles = [10, 10], 9, [9, 10]
    assert confirmed(world) is None


def test_a_sync_without_an_answer_says_what_was_committed(world: World) -> None:
    """So that each group can be answered by its own transaction later."""
    world.syncs, world.stored = [SyncUnavailable("slow"), 12], 9
    doubt = confirmed(world)
    assert isinstance(doubt, Unconfirmed)
    assert (doubt.committed_in, doubt.stored) == (12, 9)
    assert world.events[1] == "where"


def test_a_silent_litestream_says_nothing(world: World) -> None:
    """Then it is not known what was committed in which transaction."""
    world.syncs = [SyncUnavailable("silent"), SyncUnavailable("silent")]
    doubt = confirmed(world)
    assert isinstance(doubt, Unconfirmed)
    assert doubt.committed_in == 0


def test_the_oldest_slots_are_trimmed_and_the_newest_stays(tmp_path: Path) -> None:
    """INV-7: what is kept on the disk is bounded; what is not stored yet is never touched."""
    for transaction in range(1, 9):
        (tmp_path / f"{transaction:016x}-{transaction:016x}.ltx").write_bytes(bytes(10))
    trim(tmp_path, below=6, most=35)
    assert sorted(int(file.stem[:16], 16) for file in tmp_path.iterdir()) == [6, 7, 8]
    trim(tmp_path, below=9, most=0)
    assert list(tmp_path.iterdir()) == []
    trim(tmp_path / "none", below=9, most=0)


def times(count: int, error: Exception) -> tuple[Callable[[], Awaitable[None]], list[int]]:
    """An attempt that fails so many times, and a list that grows with each."""
    made: list[int] = []

    async def attempt() -> None:
        made.append(1)
        if len(made) <= count:
            raise error

    return attempt, made


@pytest.mark.parametrize("doubt", [StoreUnavailable("silent"), SyncUnavailable("silent")], ids=repr)
def test_insisting_repeats_a_doubt(monkeypatch: pytest.MonkeyPatch, doubt: Exception) -> None:
    """Until it succeeds."""
    monkeypatch.setattr(generation, "_RETRY_PAUSE_SECONDS", 0)
    attempt, made = times(3, doubt)
    asyncio.run(insist(attempt, seconds=60))
    assert len(made) == 4


def test_insisting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-7: past its time the doubt is raised, however many attempts a busy machine has managed by then."""
    monkeypatch.setattr(generation, "_RETRY_PAUSE_SECONDS", 0.001)
    attempt, made = times(10**9, StoreUnavailable("silent"))
    with pytest.raises(StoreUnavailable, match="silent"):
        asyncio.run(insist(attempt, seconds=0.02))
    assert made


def test_insisting_is_bounded_while_an_attempt_hangs() -> None:
    """INV-7: the time is for all of it, not counted between attempts."""

    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StoreUnavailable, match=r"no answer within 0.02 s"):
        asyncio.run(insist(hang, seconds=0.02))


@pytest.mark.parametrize("error", [LeaseLost("another"), LitestreamError("gone"), RuntimeError("a bug")], ids=repr)
def test_insisting_passes_a_definite_error_on(error: Exception) -> None:
    """Only a doubt is worth a repetition."""
    attempt, made = times(9, error)
    with pytest.raises(type(error)):
        asyncio.run(insist(attempt, seconds=60))
    assert len(made) == 1
