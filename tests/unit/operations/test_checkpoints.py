"""Checkpoints on a queue and a bucket in memory: the order, the doubts, what is listed, and what is pruned."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from worker.bucket import Objects, StoredObject
from worker.cli.main import main
from worker.errors import Mismatch, NotInReplica, QueueMissing, QueueRefused, RecordInvalid, StoreUnavailable
from worker.lease.record import RECORD, Record, encode
from worker.operations import checkpoints
from worker.operations.checkpoints import Checkpoint, Listed, snapshot_name, superfluous
from worker.operations.pubsub import Queue, Snapshot
from worker.replica.layout import Manifest, path_of

SUBSCRIPTION = "projects/p/subscriptions/users"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Bucket(Objects):
    """A bucket in memory. A write to one of `lose` is done without an answer, one to one of `down` is not done."""

    content: dict[str, bytes] = field(default_factory=dict)
    lose: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return "gs://bucket/prefix"

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """See `worker.bucket.Objects`."""
        return (self.content[name], 1) if name in self.content else None

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """See `worker.bucket.Objects`; only for what is not there yet."""
        assert if_generation == 0
        if name in self.down:
            raise StoreUnavailable("write: no answer")
        if name in self.content:
            raise Mismatch("412")
        self.content[name] = data
        if name in self.lose:
            raise StoreUnavailable("write: the answer was lost")
        return 1

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """See `worker.bucket.Objects`."""
        names = sorted(name for name in self.content if name.startswith(name_prefix))
        return [StoredObject(name, len(self.content[name]), NOW, {}) for name in names]

    async def folders(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `worker.bucket.Objects`."""
        below = [name.removeprefix(name_prefix) for name in self.content if name.startswith(name_prefix)]
        return sorted({name.split("/")[0] for name in below})

    async def delete(self, name: str, *, timeout: float) -> None:
        """See `worker.bucket.Objects`."""
        self.content.pop(name, None)

    def transactions(self, count: int, epoch: int = 3) -> None:
        """Have Litestream upload as many transactions, one in each file."""
        for number in range(1, count + 1):
            self.content[f"{path_of(epoch)}/ltx/0/{number:016x}-{number:016x}.ltx"] = b""


def store_with(*, transactions: int, epoch: int = 3) -> Bucket:
    """A store whose live generation is of that epoch and holds that many transactions."""
    store = Bucket()
    record = Record(state="held", holder="h", revision="r", epoch=epoch, live=path_of(epoch))
    store.content[RECORD] = encode(record)
    manifest = Manifest(epoch=epoch, base=None, base_txid=0, started_at=NOW, revision="r", holder="h")
    store.content[f"{path_of(epoch)}/manifest.json"] = msgspec.json.encode(manifest)
    store.transactions(transactions, epoch)
    return store


@dataclass
class Snapshots(Queue):
    """A queue in memory. `on_create` runs when a snapshot has been made."""

    subscription: str = SUBSCRIPTION
    project: str = "projects/p"
    there: dict[str, Snapshot] = field(default_factory=dict)
    on_create: Callable[[], None] = lambda: None

    async def create(self, name: str) -> Snapshot:
        """See `worker.operations.pubsub.Queue`."""
        self.there[name] = Snapshot(name=name, topic="projects/p/topics/users", expires=NOW + timedelta(days=7))
        self.on_create()
        return self.there[name]

    async def get(self, name: str) -> Snapshot | None:
        """See `worker.operations.pubsub.Queue`."""
        return self.there.get(name)

    async def snapshots(self, prefix: str) -> list[Snapshot]:
        """See `worker.operations.pubsub.Queue`."""
        return [snapshot for name, snapshot in sorted(self.there.items()) if name.startswith(prefix)]

    async def delete(self, name: str) -> None:
        """See `worker.operations.pubsub.Queue`."""
        self.there.pop(name, None)


def take(queue: Snapshots, store: Bucket, name: str = "x") -> Checkpoint:
    """Make a checkpoint."""
    return asyncio.run(checkpoints.take(queue, store, name, timeout=1))


def listed(queue: Snapshots, store: Bucket) -> dict[str, str]:
    """The states by name."""
    return {row.name: row.state for row in asyncio.run(checkpoints.listed(queue, store, timeout=1))}


def test_the_state_is_read_after_the_snapshot_was_made() -> None:
    """What is acknowledged while the snapshot is made is in the state, and not in neither."""
    store = store_with(transactions=4)
    queue = Snapshots(on_create=lambda: store.transactions(7))
    made = take(queue, store)
    assert (made.epoch, made.txid, made.snapshot) == (3, 7, "projects/p/snapshots/solowriter.users.x")
    assert msgspec.json.decode(store.content["checkpoints/x.json"], type=Checkpoint) == made
    assert (made.subscription, made.expires, made.format) == (SUBSCRIPTION, NOW + timedelta(days=7), 1)


def test_dying_before_the_record_leaves_a_snapshot_without_one() -> None:
    """It is listed as that, its name is not taken over, and pruning removes it."""
    store, queue = store_with(transactions=4), Snapshots()
    store.down.add("checkpoints/x.json")
    with pytest.raises(StoreUnavailable):
        take(queue, store)
    store.down.clear()
    assert listed(queue, store) == {"x": "no record"}
    with pytest.raises(QueueRefused, match="broken off"):
        take(queue, store)
    (row,) = asyncio.run(checkpoints.listed(queue, store, timeout=1))
    asyncio.run(checkpoints.prune(queue, store, row, timeout=1))
    assert (queue.there, listed(queue, store)) == ({}, {})


def test_a_record_whose_answer_was_lost_is_looked_up() -> None:
    """A checkpoint that is whole is no error."""
    store, queue = store_with(transactions=4), Snapshots()
    store.lose.add("checkpoints/x.json")
    assert take(queue, store).txid == 4
    assert listed(queue, store) == {"x": "whole"}


def test_a_snapshot_that_was_deleted_meanwhile_is_no_checkpoint() -> None:
    """Somebody pruned by age, and the snapshot holds old messages: an error, and no record that promises anything."""
    queue, store = Snapshots(), store_with(transactions=5)
    written = store.write

    async def write(name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        queue.there.clear()
        return await written(name, data, if_generation=if_generation, timeout=timeout)

    store.write = write  # type: ignore[method-assign]
    with pytest.raises(QueueRefused, match="make it again"):
        take(queue, store)
    assert listed(queue, store) == {}


def test_a_name_is_used_once() -> None:
    """Also by two processes at once: one record wins, and the other is told."""
    store, queue = store_with(transactions=4), Snapshots()
    first = take(queue, store)
    with pytest.raises(QueueRefused, match="already"):
        take(queue, store)
    rival = msgspec.json.encode(msgspec.structs.replace(first, name="y", txid=1))
    with pytest.raises(QueueRefused, match="another process"):
        take(Snapshots(on_create=lambda: store.content.update({"checkpoints/y.json": rival})), store, "y")
    assert store.content["checkpoints/y.json"] == rival


def test_an_empty_store_has_no_state_to_return_to() -> None:
    """Nothing is made."""
    store, queue = Bucket(), Snapshots()
    store.content[RECORD] = encode(Record(state="released", holder="", revision="", epoch=0, live=None))
    with pytest.raises(NotInReplica, match="empty"):
        take(queue, store)
    assert queue.there == {}


@pytest.mark.parametrize("name", ["", "Upper", "a.b", "a_b", "-a", "a/b", "a" * 64, "\u0661"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    """Before anything is made; a dot would let the checkpoints of two subscriptions be taken for each other's."""
    with pytest.raises(QueueRefused, match="letters"):
        snapshot_name(SUBSCRIPTION, name)


def test_a_subscription_with_a_long_id_leaves_less_room() -> None:
    """The snapshot's id has Pub/Sub's 255 characters at most."""
    long = "projects/p/subscriptions/" + "s" * 240
    assert snapshot_name(long, "abc") == "projects/p/snapshots/solowriter." + "s" * 240 + ".abc"
    with pytest.raises(QueueRefused, match="fewer"):
        snapshot_name(long, "abcd")


def test_only_ones_own_are_listed() -> None:
    """Not other subscriptions', other people's, or those of a subscription whose id begins like this one's."""
    store, queue = store_with(transactions=4), Snapshots()
    take(queue, store, "mine")
    for name in ("friday", "solowriter.other.x", "solowriter.users.push.x"):
        asyncio.run(queue.create(f"projects/p/snapshots/{name}"))
    assert listed(queue, store) == {"mine": "whole"}


def test_an_expired_one_is_not_taken_for_whole() -> None:
    """Its record is there and its snapshot is gone."""
    store, queue = store_with(transactions=4), Snapshots()
    take(queue, store)
    queue.there.clear()
    assert listed(queue, store) == {"x": "expired"}


def test_an_unreadable_record_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It was written by a newer version, or by hand: named in the log, an error for whoever wants it, and no whole one."""
    store, queue = store_with(transactions=4), Snapshots()
    take(queue, store, "good")
    take(queue, store, "odd")
    store.content["checkpoints/odd.json"] = b"{}"
    assert listed(queue, store) == {"good": "whole", "odd": "no record"}
    assert "checkpoints/odd.json cannot be read" in caplog.text
    with pytest.raises(RecordInvalid, match="newer version"):
        asyncio.run(checkpoints.find(store, "odd", timeout=1))


def test_a_live_generation_without_its_manifest_is_no_state() -> None:
    """Somebody deleted it: an error that says so, and no snapshot left behind."""
    store, queue = store_with(transactions=4), Snapshots()
    del store.content[f"{path_of(3)}/manifest.json"]
    with pytest.raises(NotInReplica, match=r"manifest is missing.*do not stop the service"):
        take(queue, store)
    assert (queue.there, [name for name in store.content if name.startswith("checkpoints/")]) == ({}, [])


def test_a_missing_one_says_where_to_look() -> None:
    """By a good name and by a bad one."""
    for name in ("nothing", "../lease"):
        with pytest.raises(QueueMissing, match="checkpoint list"):
            asyncio.run(checkpoints.find(store_with(transactions=1), name, timeout=1))


def row(name: str, state: str, hours: float) -> Listed:
    """A checkpoint so many hours old."""
    made = NOW - timedelta(hours=hours)
    return Listed(
        name=name,
        state=state,  # type: ignore[arg-type]  # one of three
        created_at=made,
        expires=made + timedelta(days=7),
        epoch=1,
        txid=1,
        snapshot=name,
    )


ROWS = [
    row("young", "no record", 0.5),
    row("a", "whole", 1),
    row("b", "expired", 2),
    row("c", "whole", 3),
    row("d", "no record", 4),
    row("e", "whole", 5),
]


@pytest.mark.parametrize(("keep", "names"), [(0, "abce"), (1, "bce"), (2, "be"), (9, "b")])
def test_pruning_keeps_the_newest_whole_ones(keep: int, names: str) -> None:
    """What is left of expired ones goes; a snapshot without a record may be in the making, or the way back from a replay."""
    assert [found.name for found in superfluous(ROWS, keep=keep, now=NOW)] == list(names)


def test_pruning_by_age_takes_everything_older() -> None:
    """Whole or not."""
    wanted = superfluous(ROWS, older_than=NOW - timedelta(hours=2.5), now=NOW)
    assert [found.name for found in wanted] == ["c", "d", "e"]


@pytest.mark.parametrize("before", [True, False], ids=["before the nested command", "after it"])
def test_the_subscription_that_is_named_is_the_one_that_is_meant(
    before: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pruning another one's checkpoints because of where an option stood would be a bad surprise."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("SUBSCRIPTION", "other")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    asked: list[str] = []

    async def listed(queue: Queue, *_: object, **__: object) -> list[Listed]:
        asked.append(queue.subscription)
        return []

    monkeypatch.setattr(checkpoints, "listed", listed)
    environ = {"REPLICA_URL": "gs://bucket/store"}
    named = ["--subscription", "users", "--json"]
    nested = ["prune", "--keep", "1"]
    assert main(["checkpoint", *(named + nested if before else nested + named)], environ) == 0
    assert (asked.pop(), capsys.readouterr().out) == (SUBSCRIPTION, "[]\n")
    assert main(["checkpoint", "list"], environ) == 0
    assert (asked.pop(), capsys.readouterr().out) == ("projects/p/subscriptions/other", "no checkpoints\n")
