"""Handing over, one trigger at a time, on a store in memory and a clock that only moves when told."""

import asyncio
import dataclasses
from typing import Literal

import msgspec
import pytest

from tests.fakes import Clock, MemoryStore
from tests.unit.lease.test_lease import HELD, RELEASED, SETTINGS, make, put, record_in
from worker.lease.handover import Succession
from worker.lease.lease import Lease
from worker.lease.record import SUCCESSOR, Successor


def succession(store: MemoryStore, clock: Clock, holder: str) -> Succession:
    """One process's side, named `holder`."""
    return Succession(store, SETTINGS, holder=holder, clock=clock, sleep=clock.sleep)


def request_in(store: MemoryStore) -> Successor:
    """The request as it stands in the bucket."""
    return msgspec.json.decode(store.held[SUCCESSOR][0], type=Successor)


def request(store: MemoryStore, holder: str, epoch: int) -> None:
    """Ask as somebody else would."""
    store.put(SUCCESSOR, msgspec.json.encode(Successor(holder=holder, revision="r9", epoch=epoch)))


class Enough(Exception):
    """Ends a wait that would go on for ever."""


def test_without_a_message_nothing_is_asked() -> None:
    """A tagged revision without traffic must not steal the writer's place."""
    store, clock = MemoryStore(), Clock()
    asyncio.run(succession(store, clock, "me").ask(HELD))
    assert SUCCESSOR not in store.held


def test_a_message_is_the_proof_of_traffic_and_asks_for_the_epoch_seen() -> None:
    """The request names the holder's epoch, so that it means nothing to a later one."""
    store, clock = MemoryStore(), Clock()
    waiting = succession(store, clock, "me")
    waiting.message_received()
    asyncio.run(waiting.ask(HELD))
    assert request_in(store) == Successor(holder="me", revision="r2", epoch=HELD.epoch)


@pytest.mark.parametrize(
    ("delivery", "revision", "started", "asks"),
    [
        ("pull", "r9", 0.0, True),
        ("pull", "r9", 91.0, False),
        ("pull", HELD.revision, 0.0, False),
        ("push", "r9", 0.0, False),
    ],
    ids=["deployed", "stands by for long", "of the holder's revision", "pushed at"],
)
def test_where_messages_are_pulled_a_new_revision_asks_at_its_start(
    delivery: Literal["push", "pull"], revision: str, started: float, asks: bool
) -> None:
    """No push can prove that it is wanted. Two of one revision never pass the lease to and fro."""
    store, clock = MemoryStore(), Clock()
    name = "projects/p/subscriptions/s"
    settings = dataclasses.replace(SETTINGS, delivery=delivery, subscription=name, revision=revision)
    waiting = Succession(store, settings, holder="me", clock=clock, sleep=clock.sleep)
    clock.now += started
    asyncio.run(waiting.ask(HELD))
    assert (SUCCESSOR in store.held) == asks


def test_the_request_is_repeated_while_messages_come_and_not_after() -> None:
    """Half the time a request counts it is written again; without messages it grows stale."""
    store, clock = MemoryStore(), Clock()
    waiting = succession(store, clock, "me")
    waiting.message_received()
    written = []
    for _ in range(12):
        asyncio.run(waiting.ask(HELD))
        written.append(store.held[SUCCESSOR][1])
        clock.now += 1
    assert len(set(written)) == 2
    assert written[-1] == written[5]


def test_somebody_elses_request_for_the_epoch_is_left_alone() -> None:
    """One request is enough to make the holder hand over."""
    store, clock = MemoryStore(), Clock()
    request(store, "other", HELD.epoch)
    waiting = succession(store, clock, "me")
    waiting.message_received()
    asyncio.run(waiting.ask(HELD))
    assert request_in(store).holder == "other"


def test_a_request_that_is_repeated_is_left_alone_however_long() -> None:
    """Two that wait do not write over each other: the holder hands over to one of them, and the other asks that one."""
    store, clock = MemoryStore(), Clock()
    waiting = succession(store, clock, "me")
    for second in range(40):
        if second % 2 == 0:
            request(store, "other", HELD.epoch)
        waiting.message_received()
        asyncio.run(waiting.ask(HELD))
        assert request_in(store).holder == "other"
        clock.now += 1


def test_a_request_whose_writer_has_died_is_replaced_once_it_is_stale() -> None:
    """Or nobody could ask any more: the holder passes over a request that is not repeated, for as long as it serves."""
    store, clock = MemoryStore(), Clock()
    request(store, "dead", HELD.epoch)
    waiting = succession(store, clock, "me")
    holders = []
    for _ in range(8):
        waiting.message_received()
        asyncio.run(waiting.ask(HELD))
        holders.append(request_in(store).holder)
        clock.now += 1
    assert holders == ["dead"] * 6 + ["me"] * 2


@pytest.mark.parametrize("stale", [msgspec.json.encode(Successor(holder="x", revision="r", epoch=1)), b"not json"])
def test_a_request_for_an_older_epoch_or_nobodys_is_replaced(stale: bytes) -> None:
    """What is left of an earlier hand-over does not stand in the way."""
    store, clock = MemoryStore(), Clock()
    store.put(SUCCESSOR, stale)
    waiting = succession(store, clock, "me")
    waiting.message_received()
    asyncio.run(waiting.ask(HELD))
    assert request_in(store).holder == "me"


def asked(store: MemoryStore, clock: Clock, repeat: int, until: float) -> float:
    """Seconds after which a holder of epoch 3 hands over when it is asked every `repeat` seconds until `until`."""
    began = clock.now

    def world(clock: Clock) -> None:
        passed = clock.now - began
        if passed > 200:
            raise Enough
        if passed <= until and passed % repeat == 0:
            request(store, "other", 3)

    clock.on_sleep = world
    asyncio.run(succession(store, clock, "me").requested(lambda: 3))
    return clock.now - began


def test_a_long_serving_holder_hands_over_within_a_poll() -> None:
    """After the minimum tenure the first request is enough."""
    store, clock = MemoryStore(), Clock()
    began = clock.now

    def world(clock: Clock) -> None:
        if clock.now - began == 100:
            request(store, "other", 3)

    clock.on_sleep = world
    assert asyncio.run(succession(store, clock, "me").requested(lambda: 3)).holder == "other"
    assert clock.now - began <= 101


def test_a_new_holder_keeps_its_minimum_tenure() -> None:
    """Two revisions that both have traffic do not pass the lease to and fro."""
    assert asked(MemoryStore(), Clock(), repeat=2, until=200) == 30


def test_a_request_that_is_no_longer_repeated_is_stale() -> None:
    """Who has lost the traffic again does not get the lease when the tenure ends."""
    with pytest.raises(Enough):
        asked(MemoryStore(), Clock(), repeat=2, until=20)


def test_requests_for_another_epoch_or_our_own_mean_nothing() -> None:
    """A request is for one epoch; our own, from before we got the lease, is not one."""
    for holder, epoch in (("other", 2), ("me", 3)):
        store, clock = MemoryStore(), Clock()

        def world(clock: Clock, store: MemoryStore = store, holder: str = holder, epoch: int = epoch) -> None:
            request(store, holder, epoch)
            if clock.now > 1100:
                raise Enough

        clock.on_sleep = world
        with pytest.raises(Enough):
            asyncio.run(succession(store, clock, "me").requested(lambda: 3))


def test_a_release_is_reserved_for_who_asked() -> None:
    """A contender without messages leaves a hand-over to the one that asked for it."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)
    request(store, "other", RELEASED.epoch)
    began = clock.now

    def other_takes_it(clock: Clock) -> None:
        if clock.now - began == 5:
            put(store, msgspec.structs.replace(HELD, holder="other", epoch=4))
        if clock.now - began == 10:
            put(store, msgspec.structs.replace(HELD, holder="other", epoch=4, state="released"))

    clock.on_sleep = other_takes_it
    held = make(store, clock)
    asyncio.run(held.acquire())
    assert held.epoch == 5  # not 4: that one was the other's


def test_a_reservation_nobody_comes_for_ends_after_the_ttl() -> None:
    """Who asked and died does not block the store."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)
    request(store, "dead", RELEASED.epoch)
    held = make(store, clock)
    asyncio.run(held.acquire())
    assert sum(clock.slept) == pytest.approx(15)
    assert held.epoch == 4


def test_who_asked_takes_the_release_at_once() -> None:
    """The reservation does not hold up the one it is for."""
    store, clock = MemoryStore(), Clock()
    put(store, RELEASED)
    waiting = succession(store, clock, "me")
    waiting.message_received()
    asyncio.run(waiting.ask(RELEASED))
    held = Lease(store, SETTINGS, holder="me", waiting=waiting, clock=clock, sleep=clock.sleep)
    asyncio.run(held.acquire())
    assert clock.slept == []
    assert record_in(store).holder == "me"
