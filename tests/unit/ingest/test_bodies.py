"""A large rejected message is an object of the bucket (INV-6, INV-7): stored before its row, deleted once unnamed."""

import asyncio
from datetime import timedelta
from typing import cast

import pytest

from tests.entries import PUBLISHED, read, turns
from tests.fakes import BodyStore, Epoch, bodies
from tests.unit.ingest.test_rejections import Store
from tests.unit.ingest.test_rejections import store as store  # a fixture
from worker.database import rejections
from worker.database.models import Rejection
from worker.errors import LeaseLost, Refused, StoreUnavailable
from worker.events.catalog import Problem
from worker.ingest.bodies import ROOT, ROW_BYTES_MAX, Bodies
from worker.ingest.intake import Intake
from worker.ingest.messages import Delivery, Entry
from worker.ingest.writer import Writer

LARGE = b'{"user_id":5,"email_address":7,"settings":"%s"}' % (b"x" * ROW_BYTES_MAX)
DAYS = timedelta(days=2)


@pytest.fixture
def bucket() -> BodyStore:
    """An empty bucket."""
    return BodyStore()


def age(bucket: BodyStore) -> None:
    """Let two days pass."""
    bucket.created = {name: created - DAYS for name, created in bucket.created.items()}


def keep(store: Store, bucket: BodyStore, data: bytes = LARGE, message_id: str = "m1") -> str:
    """Handle a large message as the service does; the object's name."""

    async def run() -> str:
        async with bodies(bucket).kept(data) as name:
            delivery = Delivery(message_id=message_id, publish_time=PUBLISHED, data=data, attributes={})
            done = asyncio.get_running_loop().create_future()
            entry = Entry(delivery, read(data), 0.0, done, name)
            store.transaction(lambda transaction: transaction.handle([entry]))
            return name

    return asyncio.run(run())


def test_the_row_names_the_object_and_holds_no_bytes(store: Store, bucket: BodyStore) -> None:
    """What is listed and shown still says how many bytes the message has."""
    name = keep(store, bucket)
    (row,) = store.rows(Rejection)
    assert (bytes(row["data"]), row["body"], row["bytes"], row["about"]) == (b"", name, len(LARGE), "5")
    assert bucket.bodies == {name: LARGE}
    assert rejections.page(store.connection, rejections.Filter()).rejections[0]["bytes"] == len(LARGE)
    assert rejections.body_of(store.connection, "m1") == name


def test_a_retry_reads_the_object(store: Store, bucket: BodyStore) -> None:
    """The message is handled as it was published: here it is wrong still, and its object stays."""
    name = keep(store, bucket)
    with pytest.raises(Refused):  # never judged by the empty bytes of its row
        store.transaction(lambda transaction: transaction.retry("m1"))
    assert store.transaction(lambda transaction: transaction.retry("m1", LARGE)) == "rejected"
    good = b'{"user_id":5}'  # as if a mended worker could read it
    assert store.transaction(lambda transaction: transaction.retry("m1", good)) == "created"
    assert store.rows(Rejection)[0]["body"] == name


def test_discarding_drops_the_bytes(store: Store, bucket: BodyStore) -> None:
    """Of a large message and of a small one; what they were and why stays."""
    keep(store, bucket)
    store.transaction(lambda transaction: transaction.discard("m1"))
    (row,) = store.rows(Rejection)
    assert (row["body"], bytes(row["data"]), row["bytes"], row["reason"]) == (None, b"", len(LARGE), "wrong_type")
    age(bucket)
    assert asyncio.run(bodies(bucket).collect(store.read)) == 1
    assert bucket.bodies == {}


def test_an_erasure_finds_the_large_messages_about_a_user(store: Store, bucket: BodyStore) -> None:
    """By the id that the row states, without reading the object."""
    name = keep(store, bucket)
    keep(store, bucket, LARGE.replace(b":5,", b":6,", 1), "m2")
    assert store.transaction(lambda transaction: transaction.bodies_about("5")) == [name]
    store.transaction(lambda transaction: transaction.erase("5"))
    assert [row["about"] for row in store.rows(Rejection)] == ["6"]


def test_only_old_objects_that_no_row_names_are_collected(store: Store, bucket: BodyStore) -> None:
    """The named one stays, and one whose transaction may be under way."""
    named = keep(store, bucket)

    async def run() -> None:
        made = bodies(bucket)
        async with made.kept(b"never committed"):
            pass
        age(bucket)
        async with made.kept(b"young"), made.kept(b"under way") as under_way:
            bucket.created[under_way] -= DAYS  # a process that was suspended for days
            assert await made.collect(store.read) == 1
        assert sorted(bucket.bodies.values()) == sorted([LARGE, b"young", b"under way"])

    asyncio.run(run())
    assert named in bucket.bodies


def test_a_life_that_lost_its_lease_deletes_nothing(store: Store, bucket: BodyStore) -> None:
    """Its rows are old: a later life's rejection may name an object that it finds unnamed."""

    async def run() -> None:
        async with bodies(bucket).kept(b"of a later life"):
            pass
        age(bucket)
        with pytest.raises(LeaseLost):
            await bodies(bucket, Epoch(lost=LeaseLost("lost"))).collect(store.read)

    asyncio.run(run())
    assert list(bucket.bodies.values()) == [b"of a later life"]


def test_each_life_has_a_folder_of_its_own(bucket: BodyStore) -> None:
    """Named by its epoch."""

    async def name(epoch: int) -> str:
        async with bodies(bucket, Epoch(epoch)).kept(b"x") as found:
            return found

    assert asyncio.run(name(10)).startswith(f"{ROOT}000000000000000a/")
    with pytest.raises(Refused):
        asyncio.run(bodies(bucket, Epoch(None)).kept(b"x").__aenter__())


def test_a_bucket_that_does_not_answer_is_an_outage(bucket: BodyStore) -> None:
    """INV-9: 503, and the message comes again; the same for what is read."""
    bucket.error = StoreUnavailable("no answer")
    with pytest.raises(Refused):
        asyncio.run(bodies(bucket).kept(b"x").__aenter__())
    with pytest.raises(Refused):
        asyncio.run(bodies(bucket).read("rejected/1/x"))
    asyncio.run(bodies(bucket).delete(["rejected/1/x"]))  # later


class _Writer:
    """Takes entries and answers them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def submit(self, entry: Entry) -> None:
        self.entries.append(entry)
        entry.done.set_result("rejected")


def _intake(made: Bodies, writer: _Writer) -> Intake:
    intake = Intake(max_messages=10, max_bytes=10_000_000, hold_seconds=60, bodies=made)
    intake.serve(cast("Writer", writer))
    return intake


@pytest.mark.parametrize(("size", "stored"), [(ROW_BYTES_MAX, 0), (ROW_BYTES_MAX + 1, 1)])
def test_only_a_large_message_is_stored_apart(bucket: BodyStore, size: int, stored: int) -> None:
    """Before it reaches the writer."""

    async def run() -> None:
        writer = _Writer()
        intake = _intake(bodies(bucket), writer)
        with intake.hold() as held:
            delivery = Delivery(message_id="m", publish_time=PUBLISHED, data=b"x" * size, attributes={})
            await intake.submit(held, delivery, Problem("not_json", "data must be a JSON object"))
        assert [entry.body for entry in writer.entries] == (list(bucket.bodies) if stored else [None])

    asyncio.run(run())
    assert len(bucket.bodies) == stored


def test_a_service_that_stops_meanwhile_writes_no_row(bucket: BodyStore) -> None:
    """The writer may be closed when the object is there."""
    gate = asyncio.Event()

    class Slow(BodyStore):
        async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
            await gate.wait()
            return 1

    async def run() -> None:
        writer = _Writer()
        intake = _intake(bodies(Slow()), writer)

        async def one() -> None:
            with intake.hold() as held:
                delivery = Delivery(message_id="m", publish_time=PUBLISHED, data=LARGE, attributes={})
                await intake.submit(held, delivery, read(b'{"user_id":5}'))

        task = asyncio.create_task(one())
        await turns()
        intake.drain()
        gate.set()
        with pytest.raises(Refused):
            await task
        assert writer.entries == []

    asyncio.run(run())
