"""The operator's view of the lease, on a store in memory."""

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from publisher.values import rfc3339
from tests.fakes import MemoryStore
from tests.unit.lease.test_lease import HELD, RELEASED, put, record_in
from worker.errors import LeaseHeld, StoreMissing
from worker.lease.record import SUCCESSOR, Successor
from worker.operations.lease import Status, break_, show
from worker.replica.layout import Manifest

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WRITTEN = datetime(2026, 1, 2, 3, 5, 0, tzinfo=UTC)


class DatedStore(MemoryStore):
    """A bucket in memory that also says when an object was written."""

    async def updated(self, name: str, *, timeout: float) -> datetime | None:
        """Always the same moment, for what is there."""
        return WRITTEN if name in self.held else None


def shown(store: DatedStore) -> Status:
    """What `lease show` finds."""
    return asyncio.run(show(store, timeout=1))


def test_show_says_who_since_when_what_is_live_and_who_waits() -> None:
    """Everything an operator asks of a held lease, from the three objects it stands in."""
    store = DatedStore()
    put(store, HELD)
    manifest = Manifest(epoch=3, base=None, base_txid=0, started_at=STARTED, revision="r1", holder="other")
    store.put("generations/0000000000000003/manifest.json", msgspec.json.encode(manifest))
    store.put(SUCCESSOR, msgspec.json.encode(Successor(holder="next", revision="r2", epoch=3)))
    status = shown(store)
    assert (status.state, status.holder, status.revision, status.epoch) == ("held", "other", "r1", 3)
    assert (status.since, status.last_renewal, status.live) == (STARTED, WRITTEN, HELD.live)
    assert (status.successor, status.successor_revision, status.successor_asked) == ("next", "r2", WRITTEN)
    assert ("waiting successor", "next (r2), asked " + rfc3339(WRITTEN)) in status.rows()
    assert msgspec.json.decode(msgspec.json.encode(status), type=Status) == status


def test_show_says_that_a_request_cannot_be_read() -> None:
    """It counts for nothing, and must not hide the rest from an operator."""
    store = DatedStore()
    put(store, HELD)
    store.put(SUCCESSOR, b"not json")
    status = shown(store)
    assert (status.holder, status.successor) == ("other", "unreadable successor.json")


def test_show_of_a_new_store_has_no_holder_and_nothing_live() -> None:
    """A store that nobody ever held is shown as that, and a request for an older epoch is not a waiting successor."""
    store = DatedStore()
    put(store, msgspec.structs.replace(RELEASED, holder="", revision="", epoch=0, live=None))
    store.put(SUCCESSOR, msgspec.json.encode(Successor(holder="x", revision="r", epoch=9)))
    status = shown(store)
    assert (status.holder, status.live, status.since, status.successor) == ("", None, None, None)
    assert ("holder", "none yet (-)") in status.rows()


def test_show_without_a_store_names_init() -> None:
    """A mistyped prefix is an error with the next step here too."""
    with pytest.raises(StoreMissing, match="init"):
        shown(DatedStore())


def broken(store: MemoryStore, *, force: bool = False, renewed: bool = False) -> list[float]:
    """Break the lease, while its holder renews it or not; the seconds it was watched."""
    watched: list[float] = []

    async def watch(seconds: float) -> None:
        watched.append(seconds)
        if renewed:
            put(store, HELD)

    asyncio.run(break_(store, ttl=15, force=force, timeout=1, say=lambda line: None, sleep=watch))
    return watched


def test_break_releases_a_silent_lease_after_watching_it_for_the_ttl() -> None:
    """The epoch and the live generation stay, so that the next holder goes on from them."""
    store = MemoryStore()
    put(store, HELD)
    assert broken(store) == [15]
    assert record_in(store) == RELEASED


def test_break_refuses_while_the_record_changes() -> None:
    """A holder that renews is alive."""
    store = MemoryStore()
    put(store, HELD)
    with pytest.raises(LeaseHeld, match="is alive"):
        broken(store, renewed=True)
    assert record_in(store) == HELD


def test_break_with_force_does_not_watch() -> None:
    """The operator knows better; the holder finds out at its next confirmation."""
    store = MemoryStore()
    put(store, HELD)
    assert broken(store, force=True, renewed=True) == []
    assert record_in(store) == RELEASED


def test_break_of_a_released_lease_changes_nothing() -> None:
    """Running it again is harmless."""
    store = MemoryStore()
    put(store, RELEASED)
    before = dict(store.held)
    assert broken(store) == []
    assert store.held == before


def test_break_gives_way_to_a_renewal_that_comes_in_between() -> None:
    """Between the look and the swap the holder may come back: the swap decides."""
    store = MemoryStore()
    put(store, HELD)
    write = store.write

    async def after_a_renewal(name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        put(store, HELD)
        return await write(name, data, if_generation=if_generation, timeout=timeout)

    store.write = after_a_renewal  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld, match="changed while"):
        broken(store, force=True)
    assert record_in(store) == HELD
