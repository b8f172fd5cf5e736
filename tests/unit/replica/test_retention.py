"""Retention: what may go follows from the record and the manifests, and what cannot be judged stays."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tests.fakes import Clock, MemoryStore
from tests.unit.lease.test_lease import acquired, record_in
from worker.errors import LeaseLost, StoreUnavailable
from worker.replica.layout import Manifest, path_of, slot_name
from worker.replica.retention import expired, prune, prune_every

NOW = datetime(2024, 1, 31, tzinfo=UTC)
WEEK = timedelta(days=7)


def manifest(epoch: int, *, base: int | None, days_ago: float) -> Manifest:
    """A generation begun so many days ago."""
    return Manifest(
        epoch=epoch,
        base=None if base is None else path_of(base),
        base_txid=1,
        started_at=NOW - timedelta(days=days_ago),
        revision="r",
        holder="h",
    )


HISTORY = {
    path_of(1): manifest(1, base=None, days_ago=40),
    path_of(2): manifest(2, base=1, days_ago=30),
    path_of(3): manifest(3, base=2, days_ago=20),
    path_of(4): manifest(4, base=3, days_ago=10),
    path_of(5): manifest(5, base=4, days_ago=2),
}


@pytest.mark.parametrize(
    ("live", "retention", "gone"),
    [
        (5, WEEK, [1, 2, 3]),
        (5, timedelta(days=25), [1]),
        (5, timedelta(0), [1, 2, 3]),
        (4, timedelta(0), [1, 2]),
        (2, timedelta(0), []),
        (6, timedelta(0), []),
    ],
    ids=["a week", "25 days", "at once", "an older one is live", "the oldest are needed", "no manifest for the live one"],
)
def test_what_has_expired(live: int, retention: timedelta, gone: list[int]) -> None:
    """A generation ends when the next begins; the live one, its base, and all after it stay however old they are."""
    assert expired(HISTORY, live=path_of(live), retention=retention, now=NOW) == [path_of(epoch) for epoch in gone]


@dataclass
class Listing(MemoryStore):
    """A bucket in memory that can list and delete."""

    async def folders(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `worker.bucket.Objects`."""
        below = [name.removeprefix(name_prefix) for name in self.held if name.startswith(name_prefix)]
        return sorted({name.split("/")[0] for name in below})

    async def names(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `worker.bucket.Objects`."""
        return sorted(name for name in self.held if name.startswith(name_prefix))

    async def delete(self, name: str, *, timeout: float) -> None:
        """See `worker.bucket.Objects`."""
        self.calls.append(f"delete {name}")
        self.held.pop(name, None)


@pytest.fixture
def store() -> Listing:
    """The history above, with a file in each generation."""
    made = Listing()
    for path, each in HISTORY.items():
        made.put(f"{path}/manifest.json", msgspec.json.encode(each))
        for transaction in (1, 2):
            made.put(slot_name(path, transaction), b"x")
        made.put(f"{path}/ltx/9/snapshot.ltx", b"x")
    return made


def test_pruning_deletes_whole_generations_manifest_last(store: Listing) -> None:
    """A deletion cut short is found again by its manifest. The last slot stays: a frozen writer must never find it free."""
    held = acquired(store, Clock())
    asyncio.run(held.set_live(path_of(5)))
    assert asyncio.run(prune(store, held, WEEK)) == [path_of(1), path_of(2), path_of(3)]
    left = [name for name in store.held if name.startswith("generations/")]
    assert [name for name in left if int(name.split("/")[1], 16) < 4] == [
        slot_name(path_of(epoch), 2) for epoch in (1, 2, 3)
    ]
    assert sum(int(name.split("/")[1], 16) >= 4 for name in left) == 8
    deleted = [call for call in store.calls if call.startswith("delete")]
    assert [call.endswith("manifest.json") for call in deleted] == [False, False, True] * 3
    assert asyncio.run(prune(store, held, WEEK)) == []


def test_a_pass_that_got_no_answer_goes_on_soon(store: Listing) -> None:
    """One request in tens of thousands may fail each time: what has expired goes all the same, and then an hour passes."""
    held = acquired(store, Clock())
    asyncio.run(held.set_live(path_of(5)))
    clock, delete = Clock(), store.delete
    failing = iter([False, False, True, False, True])

    async def unreliable(name: str, *, timeout: float) -> None:
        if next(failing, False):
            raise StoreUnavailable("delete: no answer")
        await delete(name, timeout=timeout)

    store.delete = unreliable  # type: ignore[method-assign]

    def until_rested(clock: Clock) -> None:
        if clock.slept[-1] == 3600:
            raise asyncio.CancelledError

    clock.on_sleep = until_rested
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(prune_every(3600, store, held, timedelta(0), sleep=clock.sleep))
    assert clock.slept == [30, 30, 3600]
    gone = [name for name in store.held if name.startswith(tuple(f"{path_of(epoch)}/" for epoch in (1, 2, 3)))]
    assert gone == [slot_name(path_of(epoch), 2) for epoch in (1, 2, 3)]


def test_an_unreadable_manifest_costs_nothing(store: Listing) -> None:
    """A generation that cannot be judged stays, the others are pruned, and the worker goes on serving."""
    store.put(f"{path_of(2)}/manifest.json", b"not json")
    held = acquired(store, Clock())
    asyncio.run(held.set_live(path_of(5)))
    assert path_of(2) not in asyncio.run(prune(store, held, WEEK))
    assert slot_name(path_of(2), 1) in store.held


def test_a_lost_lease_prunes_nothing(store: Listing) -> None:
    """INV-2: the record is read before each deletion; another's bucket is left as it is."""
    held = acquired(store, Clock())
    asyncio.run(held.set_live(path_of(5)))
    store.put("lease.json", msgspec.json.encode(msgspec.structs.replace(record_in(store), holder="other", epoch=9)))
    before = dict(store.held)
    with pytest.raises(LeaseLost):
        asyncio.run(prune(store, held, WEEK))
    assert store.held == before
