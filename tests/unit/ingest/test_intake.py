"""The intake: what it holds it answers, and what it holds is bounded."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import cast

import pytest

from tests.entries import delivery, turns, until
from tests.fakes import bodies
from worker.errors import Refused, Unwritable
from worker.events.users import UserCreated
from worker.ingest.intake import Intake, State
from worker.ingest.messages import Entry, Outcome
from worker.ingest.writer import Writer

USER = UserCreated(user_id=5)
SIZE = len(delivery().data)


@dataclass
class Collector:
    """A writer that only collects what it is given."""

    entries: list[Entry] = field(default_factory=list)

    def submit(self, entry: Entry) -> None:
        """See `worker.ingest.writer.Writer.submit`."""
        self.entries.append(entry)


def make(*, messages: int = 10, size: int = 10_000, hold: float = 60) -> Intake:
    """An intake that stands by."""
    return Intake(max_messages=messages, max_bytes=size, hold_seconds=hold, bodies=bodies())


def serving(intake: Intake) -> Collector:
    """Start serving into a collector."""
    collector = Collector()
    intake.serve(cast("Writer", collector))
    return collector


def sent(intake: Intake, message_id: str = "m1") -> "asyncio.Task[Outcome]":
    """One request, waiting for its answer."""

    async def request() -> Outcome:
        with intake.hold() as held:
            held.grow(SIZE)
            return await intake.submit(held, delivery(message_id, USER), USER)

    return asyncio.create_task(request())


def test_serving_hands_over_and_answers() -> None:
    """The outcome the writer's side sets is the sender's answer."""

    async def body() -> None:
        intake = make()
        collector = serving(intake)
        request = sent(intake)
        await until(lambda: collector.entries)
        assert not request.done()
        assert repr(intake) == f"<Intake serving, holding 1 messages in {SIZE} bytes>"
        collector.entries[0].done.set_result("exists")
        assert await request == "exists"
        assert (intake.held_messages, intake.held_bytes) == (0, 0)

    asyncio.run(body())


def test_standing_by_holds_and_then_serves_in_order() -> None:
    """A refusal would slow the whole subscription down, so requests wait for the lease."""

    async def body() -> None:
        intake = make()
        requests = [sent(intake, f"m{number}") for number in range(3)]
        await turns()
        assert intake.state is State.STANDBY
        assert intake.held_messages == 3
        assert not any(request.done() for request in requests)
        collector = serving(intake)
        await until(lambda: len(collector.entries) == 3)
        assert [entry.delivery.message_id for entry in collector.entries] == ["m0", "m1", "m2"]
        for entry in collector.entries:
            entry.done.set_result("created")
        assert await asyncio.gather(*requests) == ["created"] * 3

    asyncio.run(body())


def test_a_message_while_standing_by_is_told_of() -> None:
    """It is the proof that traffic is routed here; a message refused, or one that comes later, is none."""

    async def body() -> None:
        told: list[int] = []
        intake = Intake(max_messages=2, max_bytes=10_000, hold_seconds=60, bodies=bodies(), waiting=lambda: told.append(1))
        requests = [sent(intake, f"m{number}") for number in range(3)]
        await turns()
        assert len(told) == 2
        collector = serving(intake)
        await until(lambda: len(collector.entries) == 2)
        for held in collector.entries:
            held.done.set_result("created")
        await asyncio.wait(requests)
        later = sent(intake)
        await turns()
        assert len(told) == 2
        later.cancel()

    asyncio.run(body())


def test_what_is_held_is_bounded_in_number() -> None:
    """INV-7: over QUEUE_MAX_MESSAGES a request is refused at once, and there is room again when one is answered."""

    async def body() -> None:
        intake = make(messages=2)
        held = [sent(intake, "m1"), sent(intake, "m2")]
        await turns()
        with pytest.raises(Refused, match="QUEUE_MAX_MESSAGES"):
            await sent(intake, "m3")
        held[0].cancel()
        await asyncio.wait({held[0]})
        another = sent(intake, "m3")
        await turns()
        assert not another.done()
        assert intake.held_messages == 2
        another.cancel()
        held[1].cancel()

    asyncio.run(body())


def test_what_is_held_is_bounded_in_bytes() -> None:
    """INV-7: over QUEUE_MAX_BYTES likewise; exactly at the bound is still taken."""

    async def body() -> None:
        intake = make(size=2 * SIZE)
        held = [sent(intake, "m1"), sent(intake, "m2")]
        await turns()
        assert intake.held_bytes == 2 * SIZE
        with pytest.raises(Refused, match="QUEUE_MAX_BYTES"):
            await sent(intake, "m3")
        for request in held:
            request.cancel()

    asyncio.run(body())


@pytest.mark.parametrize("standby", [True, False], ids=["standing by", "serving"])
def test_no_request_is_held_longer_than_the_hold_limit(standby: bool) -> None:
    """INV-8: the answer is 503 before the queue gives up, and the writer sees that nobody waits any more."""

    async def body() -> None:
        intake = make(hold=0.02)
        collector = Collector() if standby else serving(intake)
        with pytest.raises(Refused, match="not confirmed in time"):
            await sent(intake)
        assert all(entry.done.cancelled() for entry in collector.entries)
        assert len(collector.entries) == (not standby)
        assert intake.held_messages == 0

    asyncio.run(body())


def test_the_deadline_counts_from_the_arrival() -> None:
    """The time spent standing by is part of the hold limit, so the group's deadline is the request's."""

    async def body() -> None:
        intake = make(hold=60)
        arrived = asyncio.get_running_loop().time()
        request = sent(intake)
        await turns()
        collector = serving(intake)
        await until(lambda: collector.entries)
        assert collector.entries[0].deadline == pytest.approx(arrived + 60, abs=1)
        request.cancel()

    asyncio.run(body())


@pytest.mark.parametrize("error", [Refused("outage"), Unwritable("bug")], ids=repr)
def test_an_error_is_the_senders_answer(error: Exception) -> None:
    """What the writer's side refuses with reaches the sender as it is."""

    async def body() -> None:
        intake = make()
        collector = serving(intake)
        request = sent(intake)
        await until(lambda: collector.entries)
        collector.entries[0].done.set_exception(error)
        await asyncio.wait({request})
        assert request.exception() is error
        assert intake.held_messages == 0

    asyncio.run(body())


@pytest.mark.parametrize("served", [True, False])
def test_draining_takes_nothing_more(served: bool) -> None:
    """The queue delivers it to the next instance."""

    async def body() -> None:
        intake = make()
        if served:
            serving(intake)
        intake.drain()
        with pytest.raises(Refused, match="the service is stopping"):
            await sent(intake)
        assert intake.held_messages == 0

    asyncio.run(body())


def test_draining_while_standing_by_refuses_what_is_held() -> None:
    """An instance that never served lets its requests go at once."""

    async def body() -> None:
        intake = make()
        request = sent(intake)
        await turns()
        intake.drain()
        with pytest.raises(Refused, match="stopped before it could serve"):
            await request

    asyncio.run(body())


def test_draining_lets_what_is_held_come_to_its_end() -> None:
    """`emptied` tells when the last one has been answered."""

    async def body() -> None:
        intake = make()
        collector = serving(intake)
        request = sent(intake)
        await until(lambda: collector.entries)
        intake.drain()
        emptied = asyncio.create_task(intake.emptied(timeout=60))
        await turns()
        assert not emptied.done()
        collector.entries[0].done.set_result("created")
        assert await emptied
        assert await request == "created"

    asyncio.run(body())


def test_waiting_for_the_last_answer_is_bounded() -> None:
    """INV-7: past DRAIN_SECONDS shutdown goes on without it."""

    async def body() -> None:
        intake = make()
        serving(intake)
        assert await intake.emptied(timeout=0.01)  # nothing was held yet
        request = sent(intake)
        await turns()
        intake.drain()
        assert not await intake.emptied(timeout=0.01)
        request.cancel()

    asyncio.run(body())


def test_held_requests_are_answered_when_serving_ends_at_once() -> None:
    """SIGTERM in the same turn as the first serving: what was held is handed over or refused, never left waiting."""

    async def body() -> None:
        intake = make()
        request = sent(intake)
        await turns()
        collector = serving(intake)
        intake.drain()
        await turns()
        for entry in collector.entries:
            entry.done.set_result("created")
        with contextlib.suppress(Refused):
            assert await request == "created"
        assert intake.held_messages == 0

    asyncio.run(body())


def test_a_body_that_is_complete_after_draining_began_is_refused() -> None:
    """Its place was taken while serving, but the writer may be closed by now: 503 at once, not at the hold limit."""

    async def body() -> None:
        intake = make()
        collector = serving(intake)
        with intake.hold() as held:
            intake.drain()
            with pytest.raises(Refused, match="the service is stopping"):
                await asyncio.wait_for(intake.submit(held, delivery(), USER), 5)
        assert collector.entries == []
        assert await intake.emptied(timeout=5)

    asyncio.run(body())


def test_a_body_is_counted_piece_by_piece() -> None:
    """INV-7: bytes are taken before they are read, and all are given back, whatever ends the request."""

    async def body() -> None:
        intake = make(size=100)
        with intake.hold() as held:
            held.grow(60)
            held.grow(40)
            assert (intake.held_messages, intake.held_bytes) == (1, 100)
            with pytest.raises(Refused, match="QUEUE_MAX_BYTES"):
                held.grow(1)
        assert (intake.held_messages, intake.held_bytes) == (0, 0)

    asyncio.run(body())


def test_a_body_that_never_ends_is_refused_at_the_hold_limit() -> None:
    """INV-7: the time it takes to send a body is part of the time a request may be held."""

    async def body() -> None:
        intake = make(hold=0.02)
        with pytest.raises(Refused, match="not confirmed in time"):
            with intake.hold():
                await asyncio.Event().wait()
        assert intake.held_messages == 0

    asyncio.run(body())


@pytest.mark.parametrize("error", [ValueError("a bug"), asyncio.CancelledError()], ids=repr)
def test_any_end_of_a_request_gives_its_place_back(error: BaseException) -> None:
    """INV-7: a bad message, a bug or a sender that hangs up leaves nothing counted."""

    async def body() -> None:
        intake = make()

        async def request() -> None:
            with intake.hold() as held:
                held.grow(7)
                raise error

        with pytest.raises(type(error)):
            await request()
        assert (intake.held_messages, intake.held_bytes) == (0, 0)
        assert await intake.emptied(timeout=5)

    asyncio.run(body())
