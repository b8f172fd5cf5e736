"""The gate's decisions: what is stored, and what is not known."""

import asyncio
import json
from http import HTTPStatus

import pytest

from worker.replica.gate import _read_name
from worker.replica.slots import Answer, Digest, Name, Refused, Slots

OURS, THEIRS = Digest(1, "ours"), Digest(2, "theirs")


class Store:
    """Slots by their number. A request waits until `go` is set, and its answer may be lost after it took effect."""

    def __init__(self) -> None:
        self.slots: dict[int, Digest] = {}
        self.go = asyncio.Event()
        self.go.set()
        self.lost = False
        self.seals: list[str] = []
        self.log = Slots(self.look, on_sealed=self.seals.append)

    async def look(self, name: Name) -> Answer | None:
        """See `Slots`."""
        digest = self.slots.get(name.last)
        await self.go.wait()
        return None if digest is None else answer(HTTPStatus.OK, digest)

    async def create(self, slot: int, digest: Digest) -> Answer:
        """One upload through the gate."""
        return await self.log.create(Name.of_slot(slot), digest, lambda: self._send(slot, digest))

    async def _send(self, slot: int, digest: Digest) -> Answer:
        await self.go.wait()
        if slot in self.slots:
            return answer(HTTPStatus.PRECONDITION_FAILED, digest)
        self.slots[slot] = digest
        if self.lost:
            raise ConnectionResetError
        return answer(HTTPStatus.OK, digest)


def answer(status: HTTPStatus, digest: Digest) -> Answer:
    """The bucket's, about an object with such bytes."""
    return Answer(status, {}, json.dumps({"size": str(digest.size), "md5Hash": digest.md5}).encode())


def test_two_looks_at_one_slot_are_no_seal() -> None:
    """INV-2: a confirmation and the next upload look at a slot whose answer was lost; both find it stored."""

    async def scenario() -> None:
        store = Store()
        store.lost = True
        with pytest.raises(ConnectionResetError):
            await store.create(1, OURS)
        store.lost = False
        store.go.clear()
        looks = [asyncio.create_task(store.log.settle(1)), asyncio.create_task(store.create(2, OURS))]
        await asyncio.sleep(0.01)
        store.go.set()
        await asyncio.gather(*looks)
        assert (store.seals, store.log.stored) == ([], 2)

    asyncio.run(scenario())


def test_a_look_that_an_upload_has_overtaken_is_no_seal() -> None:
    """INV-2: the look was sent, then the upload was answered, and then the look: by now the slot is known to be stored."""

    async def scenario() -> None:
        store = Store()
        store.slots[1] = OURS
        store.go.clear()
        look = asyncio.create_task(store.log.settle(1))
        await asyncio.sleep(0)
        store.log._grow(1)
        store.go.set()
        assert await look == 1
        assert store.seals == []

    asyncio.run(scenario())


def test_other_bytes_are_not_answered_with_the_success_of_the_first() -> None:
    """INV-1: Litestream has made a file anew while its first version is on its way: only that one may be stored."""

    async def scenario() -> None:
        store = Store()
        store.go.clear()
        first = asyncio.create_task(store.create(1, OURS))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="other bytes"):
            await store.create(1, THEIRS)
        store.go.set()
        await first
        assert store.log.stored == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("stored", [0, 1])
def test_other_bytes_in_a_slot_end_the_life(stored: int) -> None:
    """INV-4: whether another life has put them there, or Litestream has counted back to a slot that is stored."""

    async def scenario() -> None:
        store = Store()
        if stored:
            await store.create(1, THEIRS)
        else:
            store.slots[1] = THEIRS
        await store.create(1, OURS)
        assert len(store.seals) == 1
        assert store.log.stored == stored

    asyncio.run(scenario())


def test_a_slot_holds_one_transaction() -> None:
    """G1: `stored` counts slots by their numbers."""
    one = "replica/ltx/0/0000000000000001-0000000000000001.ltx"
    assert _read_name(one) == Name.of_slot(1)
    with pytest.raises(Refused):
        _read_name(one.replace("1.ltx", "2.ltx"))
