"""The acknowledgement: nobody is answered before a confirmation that began after their COMMIT returned."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.entries import entry, turns, until
from worker.errors import LeaseLost, RecordInvalid, Refused, StoreUnavailable, SyncUnavailable, Unconfirmed, WorkerError
from worker.group import Entry, Group
from worker.pace import Pace
from worker.replication import LitestreamConfirmation, Replicator


@dataclass
class Scripted:
    """A confirmation whose every upload is answered by the test, and with `by_hand` every lease read as well."""

    asked: "list[asyncio.Future[None]]" = field(default_factory=list)
    by_hand: bool = False
    reads: "list[asyncio.Future[None]]" = field(default_factory=list)

    async def upload(self) -> None:
        """See `worker.replication.Confirmation`."""
        self.asked.append(asyncio.get_running_loop().create_future())
        await self.asked[-1]

    async def verify(self) -> None:
        """See `worker.replication.Confirmation`."""
        if self.by_hand:
            self.reads.append(asyncio.get_running_loop().create_future())
            await self.reads[-1]

    def yes(self) -> None:
        """Confirm what was asked last."""
        self.asked[-1].set_result(None)

    def no(self, error: Exception) -> None:
        """Answer what was asked last with an error."""
        self.asked[-1].set_exception(error)


@contextlib.asynccontextmanager
async def replicating(
    scripted: Scripted, pace: Pace | None = None
) -> "AsyncIterator[tuple[Replicator, asyncio.Task[None]]]":
    """A running replicator and its task."""
    async with Replicator(scripted, pace=pace) as replicator:
        task = asyncio.create_task(replicator.run())
        try:
            yield replicator, task
        finally:
            task.cancel()
            await asyncio.wait({task})


def group(*entries: Entry) -> Group:
    """A committed group of these messages, or of one."""
    members = list(entries) or [entry()]
    return Group(members, ["created"] * len(members))


def slow(pace: Pace, *, upload: float = 60.0, answered: int = 0) -> None:
    """Uploads take so long, by default a minute, and so far everything else took no time."""
    pace.uploaded(upload)
    pace.uploaded(upload)
    pace.answered(answered, 0.0, asyncio.get_running_loop().time())


def answered(*groups: Group) -> list[bool]:
    """Which groups' senders have all been answered."""
    return [all(each.done.done() for each in one.entries) for one in groups]


async def asked(scripted: Scripted, times: int) -> None:
    """Wait for a question."""
    await until(lambda: len(scripted.asked) >= times)
    assert len(scripted.asked) == times


def test_a_group_is_answered_only_after_its_confirmation() -> None:
    """INV-1: each sender gets its own outcome, and none before the upload is confirmed."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            mixed = Group([entry(1, "m1"), entry(2, "m2"), entry(3, "m3")], ["created", "duplicate", "conflict"])
            replicator.add(mixed)
            await asked(scripted, 1)
            await turns()
            assert answered(mixed) == [False]
            scripted.yes()
            assert [await each.done for each in mixed.entries] == ["created", "duplicate", "conflict"]

    asyncio.run(body())


def test_nothing_is_asked_while_nothing_is_committed() -> None:
    """An idle service costs no requests, before its first message and after its last."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            await turns()
            assert scripted.asked == []
            replicator.add(group())
            await asked(scripted, 1)
            scripted.yes()
            await turns()
            assert len(scripted.asked) == 1

    asyncio.run(body())


def test_a_group_added_during_a_confirmation_waits_for_the_next() -> None:
    """INV-1: its COMMIT may have come after the sync began, so that confirmation says nothing about it."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            first, second = group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            replicator.add(second)
            scripted.yes()
            await asked(scripted, 2)
            assert answered(first, second) == [True, False]
            scripted.yes()
            await until(lambda: answered(second) == [True])

    asyncio.run(body())


def test_one_confirmation_covers_every_group_before_it() -> None:
    """The cost of an upload is shared by everything committed since the last one."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            first, *rest = [group() for _ in range(4)]
            replicator.add(first)
            await asked(scripted, 1)
            for each in rest:
                replicator.add(each)
            scripted.yes()
            await asked(scripted, 2)
            scripted.yes()
            await until(lambda: answered(*rest) == [True] * 3)
            await turns()
            assert len(scripted.asked) == 2

    asyncio.run(body())


def test_an_unconfirmed_group_is_asked_about_again() -> None:
    """No answer is not a no: nobody is answered, and the same group is in the next question."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            first, second = group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            replicator.add(second)
            scripted.no(Unconfirmed("who knows"))
            await asked(scripted, 2)
            assert answered(first, second) == [False, False]
            scripted.yes()
            await until(lambda: answered(first, second) == [True, True])
            await turns()
            assert len(scripted.asked) == 2

    asyncio.run(body())


def test_an_overdue_group_is_refused_and_forgotten() -> None:
    """INV-7: past the hold limit of its first sender a group is answered 503; the others stay."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            now = asyncio.get_running_loop().time()
            overdue = group(entry(1, "m1", deadline=now + 99), entry(2, "m2", deadline=now))
            patient = group(entry(3, "m3", deadline=now + 99))
            replicator.add(overdue)
            replicator.add(patient)
            await asked(scripted, 1)
            scripted.no(Unconfirmed("the bucket is away"))
            await until(lambda: answered(overdue) == [True])
            for each in overdue.entries:
                assert isinstance(each.done.exception(), Refused)
            assert answered(patient) == [False]
            assert "1 groups unanswered" in repr(replicator)
            await asked(scripted, 2)
            scripted.yes()
            await until(lambda: answered(patient) == [True])

    asyncio.run(body())


def test_when_all_are_overdue_nothing_is_asked_any_more() -> None:
    """An outage leaves no work behind: the next question comes with the next group."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            overdue = group(entry(deadline=asyncio.get_running_loop().time()))
            replicator.add(overdue)
            await asked(scripted, 1)
            scripted.no(Unconfirmed("the bucket is away"))
            await until(replicator.idle.is_set)
            later = group()
            replicator.add(later)
            await asked(scripted, 2)
            scripted.yes()
            await until(lambda: answered(later) == [True])
            await turns()
            assert len(scripted.asked) == 2

    asyncio.run(body())


def test_a_late_confirmation_still_answers() -> None:
    """A deadline that passes during a confirmation that succeeds is no reason to refuse."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            late = group(entry(deadline=asyncio.get_running_loop().time() - 1))
            replicator.add(late)
            await asked(scripted, 1)
            scripted.yes()
            assert await late.entries[0].done == "created"

    asyncio.run(body())


def test_a_sender_that_went_away_is_passed_over() -> None:
    """Its group is confirmed for the others, or refused, without it."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, task):
            gone, here = entry(1, "m1"), entry(2, "m2")
            replicator.add(group(gone, here))
            await asked(scripted, 1)
            gone.done.cancel()
            scripted.yes()
            assert await here.done == "created"
            assert not task.done()

    asyncio.run(body())


@pytest.mark.parametrize("error", [LeaseLost("another"), RecordInvalid("newer"), RuntimeError("a bug")], ids=repr)
def test_a_definite_error_ends_it_and_acknowledges_nothing(error: Exception) -> None:
    """INV-2: whoever owns the store now, what is unanswered is refused, in this confirmation and after it."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, task):
            first, second = group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            replicator.add(second)
            scripted.no(error)
            await asyncio.wait({task})
            assert task.exception() is error
            assert answered(first, second) == [False, False]
        for one in (first, second):
            assert isinstance(one.entries[0].done.exception(), Refused)

    asyncio.run(body())


def test_leaving_refuses_what_is_unanswered() -> None:
    """A confirmation cut short answers 503: the message may be in the bucket, and comes again."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            left = group()
            replicator.add(left)
            await asked(scripted, 1)
        assert isinstance(left.entries[0].done.exception(), Refused)
        assert replicator.idle.is_set()

    asyncio.run(body())


def test_idle_is_clear_exactly_while_confirming() -> None:
    """The writer gathers by it."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            assert replicator.idle.is_set()
            replicator.add(group())
            await asked(scripted, 1)
            assert not replicator.idle.is_set()
            assert repr(replicator) == "<Replicator confirming, 1 groups unanswered>"
            scripted.yes()
            await until(replicator.idle.is_set)
            assert repr(replicator) == "<Replicator idle, 0 groups unanswered>"

    asyncio.run(body())


def test_settled_waits_for_the_last_answer() -> None:
    """A generation is left only when nobody waits for its confirmation, whether confirmed or given up."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            await replicator.settled()
            now = asyncio.get_running_loop().time()
            replicator.add(group())
            replicator.add(group(entry(deadline=now)))
            settled = asyncio.create_task(replicator.settled())
            await asked(scripted, 1)
            scripted.no(Unconfirmed("the bucket is away"))
            await asked(scripted, 2)
            assert not settled.done()
            scripted.yes()
            await settled
            replicator.add(group(entry(deadline=now)))
            settled = asyncio.create_task(replicator.settled())
            await asked(scripted, 3)
            assert not settled.done()
            scripted.no(Unconfirmed("the bucket is away"))
            await settled

    asyncio.run(body())


def test_the_next_upload_does_not_wait_for_the_lease_read() -> None:
    """Each step has one request under way: nobody is answered by an upload alone, nor by another group's lease read."""

    async def body() -> None:
        scripted = Scripted(by_hand=True)
        async with replicating(scripted) as (replicator, _):
            first, second = group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            scripted.yes()
            await until(lambda: scripted.reads)
            replicator.add(second)
            await asked(scripted, 2)
            scripted.yes()
            await turns()
            assert answered(first, second) == [False, False]
            assert len(scripted.reads) == 1  # the second's has to wait for its turn
            assert repr(replicator) == "<Replicator confirming, 2 groups unanswered>"
            scripted.reads[0].set_result(None)
            await until(lambda: answered(first) == [True])
            await until(lambda: len(scripted.reads) == 2)
            assert answered(second) == [False]
            scripted.reads[1].set_result(None)
            await until(lambda: answered(second) == [True])
            await replicator.settled()

    asyncio.run(body())


def test_an_upload_waits_for_those_about_to_be_answered_and_for_their_next() -> None:
    """Where that is worth it; the few that came in meanwhile are uploaded with them, and nobody waits for ever."""

    async def body() -> None:
        scripted, pace = Scripted(by_hand=True), Pace()
        async with replicating(scripted, pace) as (replicator, _):
            crowd, straggler, back = group(*(entry() for _ in range(10))), group(), group(*(entry() for _ in range(9)))
            replicator.add(crowd)
            await asked(scripted, 1)
            scripted.yes()
            await until(lambda: scripted.reads)
            slow(pace)
            replicator.add(straggler)
            await turns()
            assert len(scripted.asked) == 1
            scripted.reads[0].set_result(None)
            await until(lambda: answered(crowd) == [True])
            await turns()
            assert len(scripted.asked) == 1
            assert not replicator.idle.is_set()  # the writer goes on gathering
            replicator.add(back)
            await asked(scripted, 2)
            scripted.yes()
            await until(lambda: len(scripted.reads) == 2)
            scripted.reads[1].set_result(None)
            await until(lambda: answered(straggler, back) == [True, True])

    asyncio.run(body())


def test_senders_that_do_not_come_back_are_not_waited_for_any_longer_than_it_is_worth() -> None:
    """The one that did come back is uploaded then."""

    async def body() -> None:
        scripted, pace = Scripted(), Pace()
        async with replicating(scripted, pace) as (replicator, _):
            loop = asyncio.get_running_loop()
            slow(pace, upload=0.05, answered=10)
            began = loop.time()
            replicator.add(group())
            await asked(scripted, 1)
            assert loop.time() - began >= 0.05
            scripted.yes()

    asyncio.run(body())


@contextlib.asynccontextmanager
async def waiting_for_others(
    scripted: Scripted, pace: Pace
) -> "AsyncIterator[tuple[Replicator, asyncio.Task[None], Group]]":
    """A replicator that waits for those answered last before it uploads the one group there is."""
    left = group()
    async with replicating(scripted, pace) as (replicator, task):
        slow(pace, answered=10)
        replicator.add(left)
        await turns()
        assert scripted.asked == []
        assert not replicator.idle.is_set()
        yield replicator, task, left


def test_a_service_that_drains_waits_for_nobody_to_come_back() -> None:
    """INV-8: they are refused now, and the time to drain is for what is committed."""

    async def body() -> None:
        scripted = Scripted()
        async with waiting_for_others(scripted, Pace()) as (replicator, _, left):
            replicator.drain()
            await asked(scripted, 1)
            replicator.add(group())
            scripted.yes()
            await asked(scripted, 2)
            assert answered(left) == [True]

    asyncio.run(body())


def test_a_paused_writer_lets_nobody_come_back() -> None:
    """A generation that is to be left is settled at once; after it they are waited for again."""

    async def body() -> None:
        scripted, pace = Scripted(), Pace()
        async with waiting_for_others(scripted, pace) as (replicator, _, left):
            settled = asyncio.create_task(replicator.settled())
            await asked(scripted, 1)
            scripted.yes()
            await settled
            assert answered(left) == [True]
            slow(pace, answered=10)
            replicator.add(group())
            await turns()
            assert len(scripted.asked) == 1

    asyncio.run(body())


def test_ended_while_others_are_waited_for_it_is_idle() -> None:
    """And what it was about to upload is refused."""

    async def body() -> None:
        async with waiting_for_others(Scripted(), Pace()) as (replicator, task, left):
            task.cancel()
            await asyncio.wait({task})
            assert replicator.idle.is_set()
        assert isinstance(left.entries[0].done.exception(), Refused)

    asyncio.run(body())


def test_nothing_is_uploaded_when_what_was_to_be_is_given_up_first() -> None:
    """The lease read that an upload waits for may fail, and all that it was for be overdue."""

    async def body() -> None:
        scripted, pace = Scripted(by_hand=True), Pace()
        async with replicating(scripted, pace) as (replicator, _):
            now = asyncio.get_running_loop().time()
            first, second = group(entry(deadline=now)), group(entry(deadline=now))
            replicator.add(first)
            await asked(scripted, 1)
            scripted.yes()
            await until(lambda: scripted.reads)
            slow(pace, upload=0.05)
            replicator.add(second)
            await turns()
            scripted.reads[0].set_exception(Unconfirmed("no answer"))
            await replicator.settled()
            await until(replicator.idle.is_set)
            assert answered(first, second) == [True, True]
            assert len(scripted.asked) == 1
            last = group()
            replicator.add(last)
            await asked(scripted, 2)
            scripted.yes()
            await until(lambda: len(scripted.reads) == 2)
            scripted.reads[1].set_result(None)
            await until(lambda: answered(last) == [True])

    asyncio.run(body())


def test_a_lease_read_without_an_answer_asks_both_again() -> None:
    """The lease is read again only after another upload, and what came later is not answered any earlier for it."""

    async def body() -> None:
        scripted = Scripted(by_hand=True)
        async with replicating(scripted) as (replicator, _):
            first, second = group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            scripted.yes()
            await until(lambda: scripted.reads)
            replicator.add(second)
            await asked(scripted, 2)
            scripted.reads[0].set_exception(Unconfirmed("no answer"))
            await turns()
            scripted.yes()
            await until(lambda: len(scripted.reads) == 2)
            scripted.reads[1].set_result(None)
            await until(lambda: answered(second) == [True])
            assert answered(first) == [False]
            await asked(scripted, 3)
            scripted.yes()
            await until(lambda: len(scripted.reads) == 3)
            scripted.reads[2].set_result(None)
            await until(lambda: answered(first) == [True])
            await replicator.settled()

    asyncio.run(body())


def test_a_group_given_up_makes_no_room_in_the_upload_under_way() -> None:
    """INV-1: an upload covers the groups committed before it began, whatever becomes of others meanwhile."""

    async def body() -> None:
        scripted = Scripted(by_hand=True)
        async with replicating(scripted) as (replicator, _):
            overdue = group(entry(deadline=asyncio.get_running_loop().time()))
            covered, late = group(), group()
            replicator.add(overdue)
            await asked(scripted, 1)
            scripted.yes()
            await until(lambda: scripted.reads)
            replicator.add(covered)
            await asked(scripted, 2)
            replicator.add(late)
            scripted.reads[0].set_exception(Unconfirmed("no answer"))
            await until(lambda: answered(overdue) == [True])
            assert isinstance(overdue.entries[0].done.exception(), Refused)
            scripted.yes()
            await until(lambda: len(scripted.reads) == 2)
            scripted.reads[1].set_result(None)
            await until(lambda: answered(covered) == [True])
            assert answered(late) == [False]
            await asked(scripted, 3)

    asyncio.run(body())


@pytest.mark.parametrize("error", [LeaseLost("another"), RuntimeError("a bug")], ids=repr)
def test_a_definite_answer_to_the_lease_read_ends_it(error: Exception) -> None:
    """INV-2: what was uploaded on a path that is no longer ours is not acknowledged, nor what is being uploaded."""

    async def body() -> None:
        scripted = Scripted(by_hand=True)
        async with replicating(scripted) as (replicator, task):
            first, second = group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            scripted.yes()
            await until(lambda: scripted.reads)
            replicator.add(second)
            await asked(scripted, 2)
            scripted.reads[0].set_exception(error)
            await asyncio.wait({task})
            assert task.exception() is error
            assert answered(first, second) == [False, False]
        for one in (first, second):
            assert isinstance(one.entries[0].done.exception(), Refused)

    asyncio.run(body())


@dataclass(frozen=True)
class At:
    """Where a sync left things."""

    txid: int
    replicated_txid: int


@dataclass
class World:
    """Litestream and the lease, in one order of events; `first` is answered before `sync_answer`."""

    sync_answer: At | WorkerError = At(4, 4)
    first: list[At] = field(default_factory=list)
    verify_answer: WorkerError | None = None
    events: list[str] = field(default_factory=list)

    async def sync(self, *, timeout: int) -> At:
        """See `worker.replication.Replica`."""
        self.events.append(f"sync within {timeout}")
        await turns(3)
        self.events.append("synced")
        if self.first:
            return self.first.pop(0)
        if isinstance(self.sync_answer, WorkerError):
            raise self.sync_answer
        return self.sync_answer

    async def verify(self) -> None:
        """See `worker.replication.Ownership`."""
        self.events.append("verify")
        if self.verify_answer is not None:
            raise self.verify_answer


def confirm(world: World) -> None:
    """Ask both questions once."""

    async def both() -> None:
        confirmation = LitestreamConfirmation(world, world, sync_timeout=7)
        await confirmation.upload()
        await confirmation.verify()

    asyncio.run(both())


def test_safe_is_synced_and_then_verified() -> None:
    """INV-1: the lease record is read after the sync has answered, never before or beside it."""
    world = World()
    confirm(world)
    assert world.events == ["sync within 7", "synced", "verify"]


@pytest.mark.parametrize(
    "position",
    [At(4, 3), At(3, 4), At(0, 0), At(1, 0), At(0, 1), At(-1, -1)],
    ids=["behind", "the replica is ahead", "nothing written", "nothing replicated", "only replicated", "nonsense"],
)
def test_a_200_is_not_enough(position: At) -> None:
    """INV-1: only ids that agree and are not zero prove an upload; the lease is not even asked otherwise."""
    world = World(sync_answer=position)
    with pytest.raises(Unconfirmed, match=f"the bucket is at transaction {position.replicated_txid}, not {position.txid}"):
        confirm(world)
    assert "verify" not in world.events


def test_ids_that_differ_for_an_instant_are_asked_again() -> None:
    """Litestream's own monitor may add a transaction between an upload and its answer; the lease is read after the last."""
    world = World(first=[At(5, 4)], sync_answer=At(5, 5))
    confirm(world)
    # The second time with what is left of SYNC_TIMEOUT_SECONDS, in whole seconds.
    assert world.events == ["sync within 7", "synced", "sync within 6", "synced", "verify"]


def test_ids_that_go_on_differing_are_a_doubt() -> None:
    """INV-7: one confirmation asks a bounded number of times."""
    world = World(first=[At(number + 1, number) for number in range(1, 50)])
    with pytest.raises(Unconfirmed):
        confirm(world)
    assert len(world.first) > 40


@pytest.mark.parametrize(
    "world",
    [World(sync_answer=SyncUnavailable("silent")), World(verify_answer=StoreUnavailable("silent"))],
    ids=["sync", "verify"],
)
def test_silence_is_a_doubt(world: World) -> None:
    """No answer to either question means asking both again, not a loss."""
    with pytest.raises(Unconfirmed, match="silent"):
        confirm(world)


def test_a_lost_lease_is_no_doubt() -> None:
    """The data is in the bucket, on a path that is no longer ours: that is not safe, and never will be."""
    with pytest.raises(LeaseLost):
        confirm(World(verify_answer=LeaseLost("another")))
