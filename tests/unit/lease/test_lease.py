"""The lease, one trigger at a time, on a store in memory and a clock that only moves when told."""

import asyncio

import msgspec
import pytest

from tests.fakes import Clock, MemoryStore
from worker.config import Settings
from worker.errors import LeaseLost, RecordInvalid, StoreMissing, StoreUnavailable
from worker.lease import record as lease_record
from worker.lease.handover import Succession
from worker.lease.lease import Lease
from worker.lease.record import Lost, Record, Renew, Seen, Take, Wait, decide


class Whole(Settings):
    """The defaults, but a look each second."""

    __slots__ = ()
    lease_poll_seconds = 1.0


SETTINGS = Whole(replica_url="gs://bucket/prefix", revision="r2")
HELD = Record(state="held", holder="other", revision="r1", epoch=3, live="generations/0000000000000003")
RELEASED = msgspec.structs.replace(HELD, state="released")
MINE = msgspec.structs.replace(HELD, holder="me", epoch=4)


def put(store: MemoryStore, record: Record) -> None:
    """Write the record as somebody else would."""
    store.put("lease.json", msgspec.json.encode(record))


def record_in(store: MemoryStore) -> Record:
    """The record as it stands in the bucket."""
    return msgspec.json.decode(store.held["lease.json"][0], type=Record)


def make(store: MemoryStore, clock: Clock) -> Lease:
    """A contender named "me", to whom no messages come."""
    waiting = Succession(store, SETTINGS, holder="me", clock=clock, sleep=clock.sleep)
    return Lease(store, SETTINGS, holder="me", waiting=waiting, clock=clock, sleep=clock.sleep)


def acquired(store: MemoryStore, clock: Clock) -> Lease:
    """A lease that "me" holds, at epoch 4."""
    put(store, RELEASED)
    held = make(store, clock)
    asyncio.run(held.acquire())
    return held


@pytest.mark.parametrize(
    ("record", "epoch", "silent", "expected"),
    [
        (RELEASED, None, 0, Take()),
        (HELD, None, 0, Wait(15)),
        (HELD, None, 14, Wait(1)),
        (HELD, None, 15, Take()),
        (MINE, None, 0, Renew()),
        (MINE, 4, 0, Renew()),
        (MINE, 3, 0, Lost()),
        (HELD, 4, 0, Lost()),
        (HELD, 4, 99, Lost()),
        (msgspec.structs.replace(MINE, state="released"), 4, 0, Lost()),
    ],
)
def test_decide(record: Record, epoch: int | None, silent: float, expected: object) -> None:
    """What to do follows from the record, what we hold and how long it has been silent, and from nothing else."""
    seen = Seen(record, generation=1, since=100)
    assert decide(seen, 100 + silent, holder="me", epoch=epoch, ttl=15) == expected


def test_initialize_creates_a_released_record_at_epoch_zero() -> None:
    """A new store belongs to nobody and holds nothing."""
    store = MemoryStore()
    assert asyncio.run(lease_record.initialize(store, timeout=1))
    assert record_in(store) == Record(state="released", holder="", revision="", epoch=0, live=None)


def test_initialize_twice_changes_nothing() -> None:
    """INV-5: an existing store is never emptied, whatever its state."""
    store = MemoryStore()
    put(store, HELD)
    before = dict(store.held)
    assert not asyncio.run(lease_record.initialize(store, timeout=1))
    assert store.held == before


def test_a_missing_record_names_init() -> None:
    """A mistyped prefix is an error with the next step, not an empty database."""
    with pytest.raises(StoreMissing, match=r"no store at gs://bucket/prefix: run `python -m worker init` once"):
        asyncio.run(make(MemoryStore(), Clock()).acquire())


@pytest.mark.parametrize("text", [b"", b"{}", b"not json", msgspec.json.encode(HELD).replace(b'"format":1', b'"format":2')])
def test_an_unreadable_record_is_never_taken(text: bytes) -> None:
    """A record of a newer format, or a broken one, belongs to somebody we do not understand."""
    store = MemoryStore()
    store.put("lease.json", text)
    with pytest.raises(RecordInvalid):
        asyncio.run(make(store, Clock()).acquire())
    assert store.held["lease.json"][0] == text


def test_a_released_lease_is_taken_at_the_next_epoch() -> None:
    """The epoch grows by one and the live generation is kept."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    assert (held.epoch, held.live) == (4, HELD.live)
    assert record_in(store) == Record(state="held", holder="me", revision="r2", epoch=4, live=HELD.live)
    assert clock.slept == []


def test_a_renewed_lease_is_never_taken() -> None:
    """While the record changes, however slowly below the TTL, a contender waits."""
    store, clock = MemoryStore(), Clock()
    put(store, HELD)
    since = clock.now

    def renew_for_a_while(clock: Clock) -> None:
        if clock.now - since < 60 and len(clock.slept) % 14 == 0:
            put(store, HELD)

    clock.on_sleep = renew_for_a_while
    asyncio.run(make(store, clock).acquire())
    assert clock.now - since >= 60 + 15 - 14


def test_a_silent_lease_is_taken_after_the_ttl_on_our_own_clock() -> None:
    """Takeover counts from when we first saw the record, not from any time written in it."""
    store, clock = MemoryStore(), Clock()
    put(store, HELD)
    held = make(store, clock)
    asyncio.run(held.acquire())
    assert sum(clock.slept) == pytest.approx(15)
    assert held.epoch == 4


def test_an_outage_is_not_the_holders_silence() -> None:
    """INV-9: nobody could renew meanwhile; a holder that goes on after the outage keeps its lease."""
    store, clock = MemoryStore(), Clock()
    put(store, HELD)
    store.faults["read"] = ["ok"] * 2 + ["refuse"] * 30
    began = clock.now

    def holder(clock: Clock) -> None:
        if clock.now - began == 34:  # two seconds after the outage
            put(store, HELD)
        if clock.now - began == 40:
            put(store, RELEASED)

    clock.on_sleep = holder
    held = make(store, clock)
    asyncio.run(held.acquire())
    assert clock.now - began == 40


def test_a_holder_that_died_in_an_outage_is_taken_over_after_the_ttl_of_what_was_seen() -> None:
    """Silence before and after the outage counts."""
    store, clock = MemoryStore(), Clock()
    put(store, HELD)
    store.faults["read"] = ["ok"] * 10 + ["refuse"] * 30
    began = clock.now
    asyncio.run(make(store, clock).acquire())
    assert clock.now - began == 31 + 15


def test_losing_the_race_for_a_silent_lease_starts_the_wait_again() -> None:
    """Of two contenders one swap wins; the other sees a new record and waits its whole TTL."""
    store, clock = MemoryStore(), Clock()
    put(store, HELD)

    def rival(clock: Clock) -> None:
        if len(clock.slept) == 15:
            put(store, msgspec.structs.replace(HELD, holder="rival", epoch=4))

    clock.on_sleep = rival
    held = make(store, clock)
    asyncio.run(held.acquire())
    assert held.epoch == 5
    assert sum(clock.slept) == pytest.approx(30)


def test_a_taken_lease_whose_answer_was_lost_is_recognised() -> None:
    """The swap happened, the answer did not arrive: re-reading finds our own name, and the epoch grows only once."""
    store, clock = MemoryStore(faults={"write": ["lose"]}), Clock()
    assert acquired(store, clock).epoch == 4
    assert store.calls.count("write") == 1


def test_a_take_that_never_arrived_is_tried_again() -> None:
    """A refused swap leaves the record as it was."""
    store, clock = MemoryStore(faults={"write": ["refuse"]}), Clock()
    assert acquired(store, clock).epoch == 4
    assert clock.slept == []


def test_verify_passes_while_the_record_names_us() -> None:
    """The read that INV-1 asks for, when nothing has happened."""
    store, clock = MemoryStore(), Clock()
    asyncio.run(acquired(store, clock).verify())


@pytest.mark.parametrize(
    "record",
    [
        msgspec.structs.replace(MINE, holder="other"),
        msgspec.structs.replace(MINE, epoch=5),
        msgspec.structs.replace(MINE, state="released"),
    ],
)
def test_verify_is_lost_when_the_record_names_another_life(record: Record) -> None:
    """Another holder, another epoch or a release by the operator: each is definite."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    put(store, record)
    with pytest.raises(LeaseLost):
        asyncio.run(held.verify())


def test_verify_reads_the_bucket_each_time() -> None:
    """No earlier read and no clock stands in for the read after a confirmation."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    before = store.calls.count("read")
    asyncio.run(held.verify())
    asyncio.run(held.verify())
    assert store.calls.count("read") == before + 2


def test_verify_without_an_answer_is_not_a_loss() -> None:
    """A timeout says nothing about who holds the lease."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    store.faults["read"] = ["refuse"]
    with pytest.raises(StoreUnavailable):
        asyncio.run(held.verify())
    asyncio.run(held.verify())


def test_a_deleted_record_is_a_loss() -> None:
    """Whoever deleted it, it does not name us; acknowledging on would be a guess."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    store.held.clear()
    with pytest.raises(LeaseLost, match="the lease record is gone"):
        asyncio.run(held.verify())


def test_set_live_writes_the_path_and_keeps_the_rest() -> None:
    """Making a generation live changes one field of the record."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    before = record_in(store)
    asyncio.run(held.set_live("generations/0000000000000004"))
    assert record_in(store) == msgspec.structs.replace(before, live="generations/0000000000000004")


def test_the_record_is_written_at_once_and_a_second_later_where_the_bucket_says_so() -> None:
    """The bucket's one write a second for each name is a rate: only its 429 is waited out, once."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    asyncio.run(held.set_live("a"))
    assert clock.slept == []
    store.faults["write"] = ["throttle"]
    asyncio.run(held.set_live("b"))
    assert clock.slept == [1.0]
    assert record_in(store).live == "b"
    store.faults["write"] = ["throttle"] * 9
    with pytest.raises(StoreUnavailable):
        asyncio.run(held.set_live("c"))
    assert record_in(store).live == "b"


@pytest.mark.parametrize("fault", ["lose", "refuse"])
def test_a_change_without_an_answer_is_decided_by_reading(fault: str) -> None:
    """Done or not done, after one silent answer the record says what was asked for."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    store.faults["write"] = [fault]
    asyncio.run(held.set_live("x"))
    assert record_in(store).live == "x"
    asyncio.run(held.set_live("y"))  # the generation was adopted: the next swap is not a mismatch
    assert record_in(store).live == "y"


def test_a_change_over_anothers_record_is_a_loss_and_changes_nothing() -> None:
    """A zombie that wakes up to renew finds the other's name and leaves it there."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    theirs = msgspec.structs.replace(MINE, holder="other", epoch=5)
    put(store, theirs)
    with pytest.raises(LeaseLost):
        asyncio.run(held.set_live("x"))
    assert record_in(store) == theirs


def test_any_write_of_the_record_renews_it() -> None:
    """A renewal comes after as long a pause as after a renewal, so that it does not hold up a change."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)

    class Enough(Exception):
        """Ends the test's world."""

    async def scenario() -> None:
        clock.now += 3
        await held.set_live("x")
        clock.on_sleep = enough
        await held.keep()

    def enough(_: Clock) -> None:
        raise Enough

    with pytest.raises(Enough):
        asyncio.run(scenario())
    assert clock.slept == [4]


def test_a_loss_is_told_before_anything_is_awaited() -> None:
    """Who must stop writing hears of it at the moment it is known."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    told: list[str] = []
    held.on_loss = lambda: told.append("lost")
    put(store, msgspec.structs.replace(MINE, holder="other", epoch=5))
    with pytest.raises(LeaseLost):
        asyncio.run(held.verify())
    assert told == ["lost"]


def test_keep_renews_until_the_record_names_another() -> None:
    """Each renewal is a new generation of the same record; the first one that meets another's name ends the task."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    first = store.held["lease.json"]
    theirs = msgspec.structs.replace(MINE, holder="other", epoch=5)
    seen: list[int] = []

    def world(clock: Clock) -> None:
        seen.append(store.held["lease.json"][1])
        if len(clock.slept) == 4:
            put(store, theirs)

    clock.on_sleep = world
    with pytest.raises(LeaseLost):
        asyncio.run(held.keep())
    assert clock.slept == [4, 4, 4, 4]
    assert len(set(seen)) == 4
    assert first[1] == seen[0]
    assert record_in(store) == theirs


def test_keep_survives_an_outage() -> None:
    """Not being able to renew is not a loss: the task goes on, and renews when the bucket is back."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    before = store.held["lease.json"][1]
    store.faults.update(write=["refuse"] * 3, read=["refuse"] * 2)

    class Enough(Exception):
        """Ends the test's world."""

    def world(clock: Clock) -> None:
        if store.held["lease.json"][1] > before:
            raise Enough

    clock.on_sleep = world
    with pytest.raises(Enough):
        asyncio.run(held.keep())
    asyncio.run(held.verify())


def test_release_lets_the_next_one_in_at_once() -> None:
    """After a release a contender takes the lease without waiting, at a higher epoch."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    asyncio.run(held.release())
    assert record_in(store).state == "released"
    other = make(store, Clock())
    asyncio.run(other.acquire())
    assert other.epoch == 5


def test_leaving_the_context_releases() -> None:
    """A normal end, and any error but a loss, gives the lease back."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)

    async def body() -> None:
        async with make(store, clock).held(release_seconds=1):
            assert record_in(store).state == "held"
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        asyncio.run(body())
    assert record_in(store).state == "released"


class SlowStore(MemoryStore):
    """Writes wait for `going`, and are done although their sender has been told to leave: a thread has sent them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.going = asyncio.Event(), asyncio.Event()

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """See `MemoryStore`."""
        self.sent.set()
        await self.going.wait()
        return await super().write(name, data, if_generation=if_generation, timeout=timeout)


@pytest.mark.parametrize("fault", ["ok", "lose", "refuse"])
def test_told_to_leave_while_taking_it_gives_it_back(fault: str) -> None:
    """SIGTERM while the swap is under way: a name that got into the record after all would block the store for the TTL."""

    async def body() -> None:
        store = SlowStore()
        put(store, RELEASED)

        async def life() -> None:
            async with make(store, Clock()).held(release_seconds=5):
                raise AssertionError("it was told to leave before")

        store.faults["write"] = [fault]
        task = asyncio.create_task(life())
        await store.sent.wait()
        task.cancel()
        await asyncio.sleep(0)
        store.going.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        record = record_in(store)
        assert (record.state, record.epoch) == ("released", 3 if fault == "refuse" else 4)

    asyncio.run(body())


def test_told_to_leave_while_standing_by_leaves_the_record_alone() -> None:
    """Nothing of ours is on its way: nothing is asked of the bucket any more."""

    async def body() -> None:
        store, clock = MemoryStore(), Clock()
        put(store, HELD)
        waits = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waits.set()
            await asyncio.Event().wait()

        contender = make(store, clock)
        contender._sleep = sleep

        async def life() -> None:
            async with contender.held(release_seconds=5):
                raise AssertionError("another holds it")

        task = asyncio.create_task(life())
        await waits.wait()
        calls = len(store.calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(store.calls) == calls
        assert record_in(store) == HELD

    asyncio.run(body())


def test_a_lost_lease_is_not_released() -> None:
    """Whoever holds it now keeps it: the record is not touched."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)
    theirs = msgspec.structs.replace(MINE, holder="other", epoch=5)

    async def body() -> None:
        async with make(store, clock).held(release_seconds=1) as held:
            put(store, theirs)
            await held.verify()

    with pytest.raises(LeaseLost):
        asyncio.run(body())
    assert record_in(store) == theirs


def test_a_release_that_gets_no_answer_is_given_up() -> None:
    """Shutdown does not hang on the bucket: the TTL lets the next instance in."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)

    async def body() -> None:
        async with make(store, clock).held(release_seconds=1):
            store.faults.update(write=["refuse"] * 9, read=["refuse"] * 9)

    asyncio.run(body())
    assert record_in(store).state == "held"


def test_a_lease_lost_by_a_side_task_is_not_released() -> None:
    """A renewal that meets another's name ends the life through a task group, and their record stays as it is."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)
    theirs = msgspec.structs.replace(MINE, holder="other", epoch=5)

    async def body() -> None:
        async with make(store, clock).held(release_seconds=1) as held, asyncio.TaskGroup() as side:
            put(store, theirs)
            side.create_task(held.keep())
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as lost:
        asyncio.run(body())
    assert lost.group_contains(LeaseLost)
    assert record_in(store) == theirs
    assert store.calls[-2:] == ["write", "read"]  # the renewal and the look at why it failed; nothing was tried after


def test_a_change_never_starts_from_anothers_record() -> None:
    """The record read to learn of a loss is not a record to build on: asked again, it is a loss again."""
    store, clock = MemoryStore(), Clock()
    held = acquired(store, clock)
    theirs = msgspec.structs.replace(MINE, holder="other", epoch=5)
    put(store, theirs)
    for _ in range(2):
        with pytest.raises(LeaseLost):
            asyncio.run(held.set_live("x"))
    with pytest.raises(LeaseLost):
        asyncio.run(held.release())
    assert record_in(store) == theirs
