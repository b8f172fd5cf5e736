"""The acknowledgement: no sender is answered before a confirmation that began after its COMMIT returned."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.entries import entry, turns, until
from worker.errors import LeaseLost, RecordInvalid, Refused, Unconfirmed
from worker.ingest.confirmation import Replicator
from worker.ingest.messages import Entry, Group
from worker.ingest.upload_timing import Pace


@dataclass
class Scripted:
    """A confirmation that is answered by the test."""

    asked: "list[asyncio.Future[None]]" = field(default_factory=list)
    ready_at: float = 0.0

    async def confirm(self) -> None:
        """See `worker.ingest.confirmation.Confirmation`."""
        self.asked.append(asyncio.get_running_loop().create_future())
        await self.asked[-1]

    def yes(self) -> None:
        """Confirm what was asked last."""
        self.asked[-1].set_result(None)

    def no(self, error: Exception) -> None:
        """Answer what was asked last with an error."""
        self.asked[-1].set_exception(error)


@contextlib.asynccontextmanager
async def replicating(
    scripted: Scripted, pace: Pace | None = None, *, max_messages: int = 2000, max_bytes: int = 64_000_000
) -> "AsyncIterator[tuple[Replicator, asyncio.Task[None]]]":
    """A running replicator and its task."""
    async with Replicator(scripted, pace=pace, max_messages=max_messages, max_bytes=max_bytes) as replicator:
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
    pace.answered(answered, asyncio.get_running_loop().time())


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


def test_an_upload_waits_for_the_senders_just_answered() -> None:
    """Where that is worth it: a crowd of senders is answered once in an upload, and not once in two."""

    async def body() -> None:
        scripted, pace = Scripted(), Pace()
        async with replicating(scripted, pace) as (replicator, _):
            slow(pace, answered=10)
            replicator.add(group())
            await turns()
            assert scripted.asked == []
            assert not replicator.idle.is_set()  # the writer goes on gathering
            replicator.add(group(*(entry() for _ in range(8))))
            await asked(scripted, 1)
            scripted.yes()

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


def test_a_service_that_drains_waits_for_no_sender() -> None:
    """INV-8: they are refused now, and the time to drain is for what is committed."""

    async def body() -> None:
        scripted = Scripted()
        async with waiting_for_others(scripted, Pace()) as (replicator, _, left):
            replicator.stop_batching()
            await asked(scripted, 1)
            replicator.add(group())
            scripted.yes()
            await asked(scripted, 2)
            assert answered(left) == [True]

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


def test_slots_are_spaced_by_what_the_confirmation_says() -> None:
    """UPLOAD_SPACING_SECONDS: what comes until the next one may begin is in it, and the wait ends when draining begins."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            loop = asyncio.get_running_loop()
            scripted.ready_at = loop.time() + 0.05
            first, second = group(), group()
            replicator.add(first)
            await turns()
            assert scripted.asked == []
            replicator.add(second)
            await asked(scripted, 1)
            assert loop.time() >= scripted.ready_at
            scripted.ready_at = loop.time() + 3600
            scripted.yes()
            await until(lambda: answered(first, second) == [True, True])
            replicator.add(group())
            await turns()
            replicator.stop_batching()
            await asked(scripted, 2)

    asyncio.run(body())


def test_a_group_is_answered_by_its_own_transaction_however_slow_the_bucket_is() -> None:
    """A doubt says which transaction covers what was committed, and how far the bucket is: no moving target."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            first, second, third = group(), group(), group()
            replicator.add(first)
            await asked(scripted, 1)
            replicator.add(second)
            scripted.no(Unconfirmed("slow", committed_in=7, stored=6))
            await asked(scripted, 2)
            replicator.add(third)
            scripted.no(Unconfirmed("slow", committed_in=8, stored=7))
            await until(lambda: answered(first) == [True])
            assert first.entries[0].done.result() == "created"
            assert answered(second, third) == [False, False]
            await asked(scripted, 3)
            scripted.no(Unconfirmed("slow", committed_in=9, stored=8))
            await until(lambda: answered(second) == [True])
            assert answered(third) == [False]
            await asked(scripted, 4)
            scripted.yes()
            await until(lambda: answered(third) == [True])

    asyncio.run(body())


def test_a_doubt_that_knows_no_transaction_answers_nothing() -> None:
    """Whatever is stored: it is not known what it holds."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted) as (replicator, _):
            one = group()
            replicator.add(one)
            await asked(scripted, 1)
            scripted.no(Unconfirmed("silent", committed_in=0, stored=10**9))
            await asked(scripted, 2)
            assert answered(one) == [False]

    asyncio.run(body())


@pytest.mark.parametrize(("messages", "size"), [(4, 10**9), (10**9, 40)], ids=["messages", "bytes"])
def test_what_is_committed_and_not_confirmed_is_bounded(messages: int, size: int) -> None:
    """INV-7: also what was answered 503 counts, until a confirmation covers it."""

    async def body() -> None:
        scripted = Scripted()
        async with replicating(scripted, max_messages=messages, max_bytes=size) as (replicator, _):
            await asyncio.wait_for(replicator.room(), 5)
            overdue = [group(entry(deadline=asyncio.get_running_loop().time())) for _ in range(4)]
            for one in overdue:
                replicator.add(one)
            full = asyncio.create_task(replicator.room())
            await asked(scripted, 1)
            scripted.no(Unconfirmed("the bucket is away"))
            await until(lambda: answered(*overdue) == [True] * 4)
            assert isinstance(overdue[0].entries[0].done.exception(), Refused)
            await asked(scripted, 2)  # no sender waits for it any more
            await turns()
            assert not full.done()
            scripted.yes()
            await asyncio.wait_for(full, 5)

    asyncio.run(body())
