"""What a drill concludes, from counts, from errors and from a store that changes under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.entries import CATALOG, PUBLISHED, entry, malformed
from tests.fakes import Clock, MemoryStore
from tests.unit.ingest.http.test_app import Site, Table
from tests.unit.ingest.http.test_operator_api import ANN, verified
from worker.database import connections, counts, schema
from worker.database.counts import Counts, ServiceCounts
from worker.errors import (
    NotInReplica,
    RecordInvalid,
    Refused,
    RestoreFailed,
    ServiceRefused,
    ServiceUnreachable,
    StoreDenied,
    StoreMissing,
    StoreUnavailable,
)
from worker.ingest.messages import Change
from worker.ingest.transaction import Transaction
from worker.lease import record as lease_record
from worker.lease.record import Record
from worker.operations import drill as drill_commands
from worker.operations.drill import CountedService, Driller
from worker.replica import drill_record
from worker.replica.drill_record import RECORD, Copy, Drill, Verdict, judge
from worker.replica.layout import path_of

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
BASE = ServiceCounts(
    epoch=1, rows={"users": 10}, erased=0, receipts=12, rejections=2, last_message="m12", last_message_at=NOW
)


def rows(users: int = 10, receipts: int = 12, *, erased: int = 0, rejections: int = 2) -> ServiceCounts:
    """Counts like `BASE`."""
    return msgspec.structs.replace(BASE, rows={"users": users}, erased=erased, receipts=receipts, rejections=rejections)


def a_copy(found: Counts = BASE, *, generation: str = path_of(1), time: datetime = NOW) -> Copy:
    """A restored state."""
    return Copy(generation=generation, txid=7, time=time, counts=found)


@pytest.mark.parametrize("found", [rows(), rows(users=11, receipts=13), rows(users=12, receipts=15)])
def test_what_lies_between_the_service_before_and_after_is_proved(found: Counts) -> None:
    """The bounds included: it may have gone on writing, or not."""
    verdict, _ = judge(rows(), a_copy(found), rows(12, 15), has_last_message=True)
    assert verdict == "proved"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (rows(users=9), "it has 9 rows of users, and the service had confirmed 10"),
        (rows(receipts=11), "it has 11 receipts, and the service had confirmed 12"),
        (rows(users=13), "it has 13 rows of users, and the service only 12"),
        (rows(receipts=16), "it has 16 receipts, and the service only 15"),
    ],
)
def test_less_than_was_confirmed_or_more_than_there_is_has_failed(found: Counts, said: str) -> None:
    """Each table is held on its own, and the reason says which one and by how much."""
    verdict, reason = judge(rows(), a_copy(found), rows(12, 15), has_last_message=True)
    assert (verdict, said in reason) == ("failed", True)


def test_an_erasure_in_between_is_no_finding() -> None:
    """Rows and rejections of the erased go, maybe in the restore first: neither is loss."""
    after = rows(users=9, erased=1, rejections=0)
    for found in (rows(), rows(users=9, erased=1, rejections=1)):
        assert judge(rows(), a_copy(found), after, has_last_message=True)[0] == "proved"
    assert judge(rows(), a_copy(rows(users=9, erased=1)), rows(), has_last_message=True)[0] == "proved"


def test_an_erasure_hides_no_finding() -> None:
    """An erased subject that came back is one; and rows are held against each count that has as many erased subjects."""
    verdict, reason = judge(rows(erased=2), a_copy(rows(erased=1)), rows(erased=2), has_last_message=True)
    assert (verdict, "it has 1 erased, and the service had confirmed 2" in reason) == ("failed", True)
    assert judge(rows(), a_copy(rows(users=9)), rows(erased=1), has_last_message=True)[0] == "failed"
    assert judge(rows(), a_copy(rows(users=11, erased=1)), rows(erased=1), has_last_message=True)[0] == "failed"


def test_the_last_message_must_be_there_even_where_the_counts_agree() -> None:
    """Counts alone do not tell one message from another."""
    verdict, reason = judge(rows(), a_copy(), rows(), has_last_message=False)
    assert (verdict, "message m12" in reason) == ("failed", True)


@pytest.mark.parametrize(("seconds", "verdict"), [(-1, "failed"), (0, "proved"), (1, "proved")])
def test_a_state_that_is_too_old_has_failed(seconds: int, verdict: Verdict) -> None:
    """Only when a bound was given, and with a word on idle stores."""
    copy = a_copy(time=NOW + timedelta(seconds=seconds))
    found, reason = judge(rows(), copy, rows(), has_last_message=True, oldest=NOW)
    assert found == verdict
    assert ("if nothing was published since, allow more" in reason) == (verdict == "failed")
    assert judge(rows(), copy, rows(), has_last_message=True)[0] == "proved"


def filled(path: Path, *, messages: int = 3) -> None:
    """A database with so many users and one rejection, whose messages were handled a second apart."""
    schema.migrate(path, CATALOG, busy_timeout_seconds=5)
    connection = connections.connect(path, busy_timeout_seconds=5)

    async def fill() -> None:
        for number in range(1, messages + 1):
            Transaction(connection, CATALOG, 1, PUBLISHED + 1000 * number).handle([entry(number, f"m{number}")])
        Transaction(connection, CATALOG, 1, PUBLISHED).handle([malformed("bad")])

    with connection.connection_context():
        asyncio.run(fill())


def test_counts_are_of_what_cannot_expire(tmp_path: Path) -> None:
    """All rows; receipts, rejections and the last message only since the given time, which is included."""
    filled(tmp_path / "users.db")
    reader = connections.Reader(tmp_path / "users.db", busy_timeout_seconds=5)

    def since(milliseconds: int) -> tuple[Any, ...]:
        return msgspec.structs.astuple(reader.read(lambda connection: counts.count(connection, CATALOG, milliseconds)))

    last = datetime.fromtimestamp((PUBLISHED + 3000) / 1000, UTC)
    assert since(0) == since(PUBLISHED) == ({"users": 3}, 0, 4, 1, "m3", last)
    assert since(PUBLISHED + 2000) == ({"users": 3}, 0, 2, 0, "m3", last)
    assert since(PUBLISHED + 3001) == ({"users": 3}, 0, 0, 0, None, None)
    assert reader.read(lambda connection: counts.has_receipt(connection, "m1"))
    assert not reader.read(lambda connection: counts.has_receipt(connection, "m4"))


@dataclass
class Answers:
    """A service that gives these counts in turn, the last one for ever; or raises one that is an error."""

    left: list[Counts | Exception]
    epoch: Callable[[], int]

    async def counts(self, _: datetime) -> ServiceCounts:
        """See `CountedService.counts`."""
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(answer, Exception):
            raise answer
        return said(answer, self.epoch())


def said(found: Counts, epoch: int) -> ServiceCounts:
    """Counts as the service says them."""
    return ServiceCounts(**msgspec.structs.asdict(found), epoch=epoch)


@dataclass
class World:
    """A store whose restore gives a file with three users, or an error; `on_restore` is what happens meanwhile."""

    scratch: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    answers: list[Counts | Exception] = field(default_factory=list)
    error: Exception | None = None
    on_restore: Callable[[], None] = lambda: None
    messages: int = 3
    restores: int = 0
    epoch: int = 1
    another_service: bool = False
    said: list[str] = field(default_factory=list)

    def live(self, path: str | None) -> None:
        """Name the live generation."""
        self.epoch = 0 if path is None else int(path[-16:], 16)
        record = Record(state="held", holder="h", revision="r", epoch=self.epoch, live=path)
        self.store.put(lease_record.RECORD, lease_record.encode(record))

    async def restore(self, _: Any, __: Any, ___: Any, output: Path, **____: Any) -> Any:
        """See `worker.operations.restore.restore`."""
        self.restores += 1
        live = (await lease_record.look(self.store, timeout=1))[0].live
        if self.error is None:
            await asyncio.to_thread(filled, output, messages=self.messages)
        self.on_restore()
        if self.error is not None:
            raise self.error
        return a_copy(generation=str(live))

    def drill(self) -> Drill:
        """The result; whatever it is, scratch is empty again."""
        driller = Driller(
            store=cast("Any", self.store),
            catalog=CATALOG,
            service=cast(
                "CountedService", Answers(self.answers or [confirmed()], lambda: self.epoch + self.another_service)
            ),
            scratch=self.scratch,
            binary=Path("litestream"),
            oldest=None,
            request_seconds=1,
            restore_seconds=1,
            say=self.said.append,
        )
        found = asyncio.run(driller.run())
        assert list(self.scratch.iterdir()) == []
        return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A store with a live generation, and a service that has what is in it. Its rows are from 2023: no receipt counts."""
    made = World(tmp_path)
    made.live(path_of(1))
    monkeypatch.setattr(drill_commands, "restore", made.restore)
    return made


def confirmed(users: int = 3, last: str | None = None) -> Counts:
    """What the service says."""
    return Counts(rows={"users": users}, erased=0, receipts=0, rejections=0, last_message=last, last_message_at=None)


def test_a_drill_says_what_it_restored_and_how_old_it_is(world: World) -> None:
    """Everything that `drill.json` holds, from one attempt."""
    drill = world.drill()
    assert (drill.verdict, drill.generation, drill.txid, drill.time) == ("proved", path_of(1), 7, NOW)
    assert (drill.before, drill.restored, drill.after) == (said(confirmed(), 1), confirmed(), said(confirmed(), 1))
    assert drill.age_seconds == round((drill.at - NOW).total_seconds(), 3)
    assert drill.seconds > 0
    assert world.restores == 1


def test_a_message_that_was_confirmed_and_is_not_restored_has_failed(world: World) -> None:
    """Looked up by its id in the restored file."""
    world.answers = [confirmed(last="m3")]
    assert world.drill().verdict == "proved"
    world.answers = [confirmed(last="m4")]
    assert world.drill().verdict == "failed"


@pytest.mark.parametrize("error", [ServiceUnreachable("no answer"), ServiceRefused("the service answered 404")])
@pytest.mark.parametrize("answered", [0, 1])
def test_without_the_service_nothing_is_concluded(world: World, error: Exception, answered: int) -> None:
    """Before the restore or after it: the restore is done and reported, and the reason says what is missing."""
    world.answers = [*[confirmed()] * answered, error]
    drill = world.drill()
    assert (drill.verdict, drill.restored) == ("inconclusive", confirmed())
    assert drill.reason == f"the restore worked, and there is nothing to compare it with: {error}"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (RestoreFailed("a hole"), "failed"),
        (StoreMissing("a file is gone"), "failed"),
        (NotInReplica("no file"), "failed"),
        (RecordInvalid("no manifest"), "failed"),
        (StoreUnavailable("503"), "inconclusive"),
        (StoreDenied("403"), "inconclusive"),
        (OSError(28, "No space left on device"), "inconclusive"),
    ],
)
def test_only_what_the_bucket_lacks_has_failed(world: World, error: Exception, verdict: Verdict) -> None:
    """A bucket that does not answer and a full disk say nothing about what is kept (INV-9)."""
    world.error = error
    drill = world.drill()
    assert (drill.verdict, drill.restored) == (verdict, None)
    assert str(error.strerror if isinstance(error, OSError) else error) in drill.reason


@pytest.mark.parametrize("error", [None, RestoreFailed("its files were deleted")])
def test_a_generation_that_changes_meanwhile_is_drilled_once_more(world: World, error: Exception | None) -> None:
    """A roll-over or a hand-over is no finding: what the new generation gives is."""
    world.error = error

    def roll_over() -> None:
        world.live(path_of(2))
        world.on_restore = lambda: None

    world.on_restore = roll_over
    assert world.drill().verdict == ("failed" if error else "proved")
    assert world.restores == 2
    assert any(f"changed from {path_of(1)} to {path_of(2)}" in line for line in world.said)


def test_a_generation_that_changes_twice_is_inconclusive(world: World) -> None:
    """It is tried twice, no more (INV-7)."""
    world.on_restore = lambda: world.live(path_of(world.restores + 1))
    drill = world.drill()
    assert (drill.verdict, world.restores) == ("inconclusive", 2)
    assert f"changed from {path_of(2)} to {path_of(3)}" in drill.reason


def test_a_service_that_goes_away_in_a_hand_over_is_asked_once_more(world: World) -> None:
    """The first one counted, and the next one did not serve yet: the second attempt is whole."""
    world.answers = [confirmed(), ServiceUnreachable("not yet"), confirmed()]

    def hand_over() -> None:
        world.live(path_of(2))
        world.on_restore = lambda: None

    world.on_restore = hand_over
    assert (world.drill().verdict, world.restores) == ("proved", 2)


def test_the_service_of_another_store_is_no_witness(world: World) -> None:
    """A wrong SERVICE_URL must not look like a loss: the epoch it writes is not the live one."""
    world.answers, world.another_service = [confirmed(users=1000)], True
    drill = world.drill()
    assert (drill.verdict, "does SERVICE_URL belong to this REPLICA_URL?" in drill.reason) == ("inconclusive", True)


def test_a_store_without_data_is_inconclusive_and_no_store_is_an_error(world: World) -> None:
    """There is nothing to restore; and a mistyped URL must not look like that."""
    world.live(None)
    assert (world.drill().verdict, world.restores) == ("inconclusive", 0)
    world.store.held.clear()
    with pytest.raises(StoreMissing, match="worker init"):
        world.drill()


@dataclass
class Confirming:
    """A writer that answers changes at once, and has one more user there before it does: what came after the counts."""

    connection: Any
    answer: Exception | None = None
    changes: int = 0

    def submit(self, change: Change) -> None:
        """See `worker.ingest.writer.Writer.submit`."""
        self.changes += 1
        if self.answer is not None:
            change.done.set_exception(self.answer)
            return
        Transaction(self.connection, CATALOG, 1, PUBLISHED).handle([entry(99, "late")])
        change.done.set_result(change.apply(Transaction(self.connection, CATALOG, 1, PUBLISHED)))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A serving application over three users."""
    filled(tmp_path / "users.db")
    connection = connections.connect(tmp_path / "users.db", busy_timeout_seconds=5)
    with connection.connection_context():
        yield Site(writer=cast("Any", Confirming(connection)), users=Table(database=connection))


def test_the_service_counts_first_and_confirms_then(site: Site) -> None:
    """What is answered was committed before the confirmation that the answer waits for; nothing later is in it."""
    found = site.ask("GET", "/counts", params={"since": "2023-11-14T22:13:21Z"}).json()
    assert cast("Confirming", site.writer).changes == 1
    assert {name: found[name] for name in ("epoch", "rows", "erased", "receipts", "rejections", "last_message")} == {
        "epoch": 1,
        "rows": {"users": 3},
        "erased": 0,
        "receipts": 3,
        "rejections": 0,
        "last_message": "m3",
    }
    assert site.ask("GET", "/counts").json()["rows"] == {"users": 4}


def test_counts_that_are_not_confirmed_are_not_told(site: Site) -> None:
    """503, and nobody takes them for what is in the bucket (INV-1); likewise 400, 401 and 405 for who asks wrongly."""
    cast("Confirming", site.writer).answer = Refused("the bucket cannot be reached")
    assert site.ask("GET", "/counts").status_code == 503
    assert site.ask("GET", "/counts", params={"since": "yesterday"}).status_code == 400
    assert site.ask("POST", "/counts").status_code == 405
    verified(site, ANN)
    assert site.ask("GET", "/counts").status_code == 401


def a_drill(verdict: Verdict = "proved") -> Drill:
    """A result."""
    return Drill(verdict=verdict, reason="why", at=NOW, seconds=1.5, before=BASE)


def test_the_latest_drill_is_what_is_recorded() -> None:
    """Over the one before; what was written is read back whole."""
    store = MemoryStore()
    for drill in (a_drill("failed"), a_drill("proved")):
        asyncio.run(drill_commands.record(store, drill, timeout=1))
        assert asyncio.run(drill_record.latest(store, timeout=1)) == drill


@pytest.mark.parametrize("fault", ["refuse", "lose"])
def test_a_record_that_was_not_taken_is_written_again(fault: str) -> None:
    """After more than a second each time, the bucket's limit for one name; three times at most."""
    store, clock = MemoryStore(faults={"write": [fault, fault]}), Clock()
    asyncio.run(drill_commands.record(store, a_drill(), timeout=1, sleep=clock.sleep))
    assert asyncio.run(drill_record.latest(store, timeout=1)) == a_drill()
    assert len(clock.slept) == 2
    assert min(clock.slept) > 1
    store.faults = {"write": ["refuse"] * 3}
    with pytest.raises(StoreUnavailable):
        asyncio.run(drill_commands.record(store, a_drill(), timeout=1, sleep=clock.sleep))


def test_a_record_that_is_not_there_or_not_ours_says_so() -> None:
    """With the command that makes one."""
    store = MemoryStore()
    with pytest.raises(NotInReplica, match="run `python -m worker drill`"):
        asyncio.run(drill_record.latest(store, timeout=1))
    store.put(RECORD, b'{"format": 2}')
    with pytest.raises(RecordInvalid, match="newer version"):
        asyncio.run(drill_record.latest(store, timeout=1))
