"""A generation: its path is claimed once, filled before it is live, and left for good before the next is begun."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from tests.entries import turns, until
from tests.fakes import Clock, MemoryStore
from tests.unit.test_lease import acquired, record_in
from worker import database, generation, litestream
from worker.errors import LeaseLost, LitestreamError, RestoreFailed, StoreUnavailable, SyncUnavailable
from worker.generation import Generations, Limits, insist
from worker.layout import Manifest, path_of
from worker.lease import Lease
from worker.litestream import Position

PREFIX = "prefix"
MINE = f"{path_of(4)}/manifest.json"
LIVE = path_of(3)


@dataclass
class World:
    """A bucket, a held lease at epoch 4, and a Litestream that does as told; `events` is what happened, in order."""

    directory: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    events: list[str] = field(default_factory=list)
    positions: list[Position | Exception] = field(default_factory=list)
    """What the next syncs answer; when it is empty, that everything is in the bucket."""
    lease: Lease = field(init=False)

    def __post_init__(self) -> None:
        self.lease = acquired(self.store, Clock())
        self.store.calls.clear()

    @property
    def options(self) -> litestream.Options:
        """Litestream's, with a program that always fails."""
        return litestream.Options(
            binary=Path("/bin/false"),
            config=Path("litestream.yml"),
            bucket="bucket",
            database=self.directory / "users.db",
            metrics_address="",
            log_level="warn",
            start_seconds=1,
            starts_max=1,
            silent_max=1,
            fetch=self.fetch,
        )

    async def fetch(self, name_prefix: str, directory: Path) -> None:
        """Bring nothing: there is nothing to restore from."""

    @contextlib.asynccontextmanager
    async def generations(self, *, seconds: int = 5, transactions_max: int = 100) -> AsyncIterator[Generations]:
        """The generations of a life."""
        limits = Limits(
            integrity_check="quick",
            restore_seconds=5,
            busy_timeout_seconds=5,
            first_sync_seconds=seconds,
            transactions_max=transactions_max,
        )
        async with asyncio.TaskGroup() as side:
            made = Generations(self.lease, self.store, self.options, prefix=PREFIX, limits=limits, side=side)
            async with made:
                yield made

    def begin(self, *, seconds: int = 5) -> None:
        """One start, and a normal end."""

        async def body() -> None:
            async with self.generations(seconds=seconds) as made:
                await made.begin()
                self.events.append("begun")

        try:
            asyncio.run(body())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    @property
    def manifest(self) -> Manifest:
        """Epoch 4's manifest as it stands in the bucket."""
        return msgspec.json.decode(self.store.objects[MINE][0], type=Manifest)


class Child:
    """Stands in for `worker.litestream.Litestream`."""

    def __init__(self, world: World, replica_path: str) -> None:
        self._world, self._name = world, replica_path.rpartition("/")[2][-1]
        self._path = replica_path

    async def __aenter__(self) -> Self:
        assert f"{self._path.removeprefix(PREFIX + '/')}/manifest.json" in self._world.store.objects
        self._world.events.append(f"start {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._world.events.append(f"{'stop' if error is None else 'kill'} {self._name}")

    async def watch(self) -> None:
        """See `worker.litestream.Litestream.watch`."""
        await asyncio.Event().wait()

    async def sync(self, *, timeout: int) -> Position:
        """See `worker.litestream.Litestream.sync`."""
        self._world.events.append(f"sync {self._name}, live {record_in(self._world.store).live}")
        answer = self._world.positions.pop(0) if self._world.positions else Position(5, 5)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def abandon(self) -> None:
        """See `worker.litestream.Litestream.abandon`."""
        self._world.events.append(f"abandon {self._name}")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose live generation, epoch 3's, restores to an empty database at transaction 7."""
    made = World(tmp_path)

    def child(options: litestream.Options, *, replica_path: str, epoch: int) -> Child:
        return Child(made, replica_path)

    async def restore(options: litestream.Options, *, replica_path: str, output: Path, **_: Any) -> int:
        assert not output.exists()
        made.events.append(f"restore {replica_path}")
        database.migrate(output, busy_timeout_seconds=5)
        return 7

    monkeypatch.setattr(litestream, "Litestream", child)
    monkeypatch.setattr(litestream, "restore", restore)
    monkeypatch.setattr(generation, "_RETRY_PAUSE_SECONDS", 0.001)
    return made


def test_a_path_is_named_for_its_epoch() -> None:
    """INV-4: sixteen hexadecimal digits, so that names sort as epochs do."""
    assert path_of(255) == "generations/00000000000000ff"
    assert path_of(9) < path_of(10) < path_of(2**60)


def test_a_generation_is_live_only_once_it_is_whole(world: World) -> None:
    """INV-5: restore what the lease names, claim, fill, and only then change `live`."""
    world.begin()
    assert world.events == [f"restore {PREFIX}/{LIVE}", "start 4", f"sync 4, live {LIVE}", "begun", "stop 4"]
    assert record_in(world.store).live == path_of(4)


def test_the_manifest_says_what_it_continues(world: World) -> None:
    """Epoch, base and its transaction, who began it and when."""
    world.begin()
    found = world.manifest
    assert (found.format, found.epoch, found.base, found.base_txid) == (1, 4, LIVE, 7)
    assert (found.holder, found.revision) == (world.lease.holder, world.lease.revision)
    assert found.started_at.tzinfo is not None


def test_a_manifest_is_written_once(world: World) -> None:
    """INV-4: created only where none is."""
    world.begin()
    first = world.store.objects[MINE]
    world.begin()  # the same life asks again
    assert world.store.objects[MINE] == first


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
    """INV-4: somebody has written to our path, so it is not ours: no Litestream is started and `live` stays."""
    world.store.put(MINE, content)
    with pytest.raises(LitestreamError, match=r"written by another instance although the epoch is ours.* Raise its epoch"):
        world.begin()
    assert world.store.objects[MINE][0] == content
    assert record_in(world.store).live == LIVE
    assert not any(event.startswith(("start", "sync")) for event in world.events)


def test_a_claim_whose_answer_was_lost_is_recognised(world: World) -> None:
    """The manifest that stands in the way is our own."""
    world.store.faults["write"] = ["lose"]
    world.begin()
    assert world.manifest.holder == world.lease.holder
    assert "begun" in world.events


def test_a_claim_that_never_arrived_is_repeated(world: World) -> None:
    """A refused write left nothing behind."""
    world.store.faults["write"] = ["refuse", "refuse"]
    world.begin()
    assert world.manifest.epoch == 4


def test_a_claim_without_an_answer_is_given_up_in_time(world: World) -> None:
    """INV-7: a start does not wait for the bucket for ever, and leaves `live` alone."""
    world.store.faults["write"] = ["refuse"] * 99
    with pytest.raises(StoreUnavailable):
        world.begin(seconds=0)
    world.store.faults.clear()
    assert record_in(world.store).live == LIVE


@pytest.mark.parametrize(
    "doubt",
    [Position(5, 4), Position(4, 5), Position(0, 0), SyncUnavailable("no answer")],
    ids=["behind", "ahead", "nothing", "no answer"],
)
def test_a_first_sync_in_doubt_is_asked_again(world: World, doubt: Position | Exception) -> None:
    """INV-5: `live` changes only after the ids have agreed."""
    world.positions = [doubt, doubt]
    world.begin()
    assert world.events.count(f"sync 4, live {LIVE}") == 3
    assert record_in(world.store).live == path_of(4)


def test_a_first_sync_that_never_comes_leaves_the_old_generation_live(world: World) -> None:
    """The next life starts from the complete one; this one's child is killed."""
    world.positions = [SyncUnavailable("no answer")] * 99
    with pytest.raises(SyncUnavailable):
        world.begin(seconds=0)
    assert record_in(world.store).live == LIVE
    assert world.events[-1] == "kill 4"


def test_a_restore_that_fails_begins_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-5: no manifest, no child, and `live` stays."""
    monkeypatch.undo()
    with pytest.raises(RestoreFailed, match=rf"the live generation gs://bucket/{PREFIX}/{LIVE} could not be restored"):
        world.begin()
    assert MINE not in world.store.objects
    assert record_in(world.store).live == LIVE
    assert not world.options.database.exists()


def test_a_database_found_is_never_used(world: World) -> None:
    """INV-5: what another life left on this disk is moved aside before the restore."""
    world.options.database.write_text("left behind")
    world.begin()
    assert (world.directory / "users.db.previous").read_text() == "left behind"


def test_a_loss_while_starting_leaves_the_others_record_alone(world: World) -> None:
    """INV-2: whoever took over between the sync and the swap keeps the record; nothing here is live."""

    async def body() -> None:
        async with world.generations() as made:
            theirs = msgspec.structs.replace(record_in(world.store), holder="other", epoch=5)
            world.store.put("lease.json", msgspec.json.encode(theirs))
            await made.begin()

    with pytest.raises(ExceptionGroup) as lost:
        asyncio.run(body())
    assert lost.group_contains(LeaseLost)
    assert (record_in(world.store).holder, record_in(world.store).live) == ("other", LIVE)
    assert world.events[-1] == "kill 4"


def test_an_abandoned_generation_is_killed_without_waiting(world: World) -> None:
    """What a lost lease calls: the child is gone before anything is awaited."""

    async def body() -> None:
        async with world.generations() as made:
            made.abandon()  # before there is one
            await made.begin()
            made.abandon()
            assert world.events[-1] == "abandon 4"

    asyncio.run(body())


def test_a_long_generation_is_left_for_the_next(world: World) -> None:
    """INV-4: quiet, the old child stopped for good, then the new path claimed, filled and made live, then on again."""

    @contextlib.asynccontextmanager
    async def quiet() -> AsyncIterator[None]:
        world.events.append("quiet")
        yield
        world.events.append("on")

    async def body() -> None:
        async with world.generations(transactions_max=10) as made, asyncio.TaskGroup() as group:
            await made.begin()
            task = group.create_task(made.roll_over_when_long(quiet))
            await made.sync(timeout=1)
            await turns()
            assert "quiet" not in world.events
            world.positions = [Position(10, 10), SyncUnavailable("no answer"), Position(1, 1)]
            world.events.clear()
            await made.sync(timeout=1)
            await until(lambda: "on" in world.events)
            assert made._lease.epoch == 5
            assert (await made.sync(timeout=1)).txid == 5
            task.cancel()

    asyncio.run(body())
    assert world.events == [
        f"sync 4, live {path_of(4)}",
        "quiet",
        "stop 4",
        "start 5",
        f"sync 5, live {path_of(4)}",
        f"sync 5, live {path_of(4)}",
        "on",
        f"sync 5, live {path_of(5)}",
        "stop 5",
    ]
    found = msgspec.json.decode(world.store.objects[f"{path_of(5)}/manifest.json"][0], type=Manifest)
    assert (found.base, found.base_txid) == (path_of(4), 10)


def test_between_two_generations_a_sync_is_a_doubt(world: World) -> None:
    """No child to ask: whoever confirms asks again, and nobody is answered."""

    async def body() -> None:
        async with world.generations() as made:
            with pytest.raises(SyncUnavailable, match="a new generation is being started"):
                await made.sync(timeout=1)

    asyncio.run(body())


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
