"""Rejections on both engines: kept, listed, retried, discarded, and deleted when their time has come."""

import asyncio
import base64
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
import pytest
from msgspec.structs import replace

from tests.engines import Made, Place, SqlitePlace
from tests.entries import CATALOG, PUBLISHED, entry, malformed, read
from worker.database import rejections
from worker.database.engine import Engine
from worker.database.models import Connection, Erased, Receipt, Rejection
from worker.database.rejections import Filter
from worker.errors import NotFound, Refused, Resolved
from worker.events.catalog import Problem, UnknownFields
from worker.events.users import User
from worker.ingest.expiry import Expiry
from worker.ingest.messages import Entry
from worker.ingest.tables import Tables
from worker.ingest.transaction import Removed, Transaction

T = TypeVar("T")

NOW = 1_700_000_100_000
DAY = 86_400_000


@dataclass
class Store:
    """A database with the newest schema. Also what `Expiry` reads and changes."""

    place: Place
    engine: Engine
    connection: Connection
    """Reads and changes it from outside."""
    steps: list[int] = field(default_factory=list)
    error: Exception | None = None

    def transaction(self, apply: Callable[[Transaction], T], *, now: int = NOW, epoch: int = 7) -> T:
        """What `apply` returns, committed."""
        return self.engine.run(lambda database: apply(Transaction(database, CATALOG, epoch, now)))

    def handle(self, *make: Callable[[], Entry], now: int = NOW) -> list[str]:
        """Handle messages in one transaction."""

        async def body() -> list[str]:
            entries = [each() for each in make]
            return list(self.transaction(lambda transaction: transaction.handle(entries), now=now))

        return asyncio.run(body())

    def rows(self, model: Any) -> list[dict[str, Any]]:
        """A whole table."""
        return list(model.select().order_by(model._meta.primary_key).dicts().bind(self.connection))

    def page(self, **wanted: Any) -> list[str]:
        """The message ids of a page."""
        return [row["message_id"] for row in rejections.page(self.connection, Filter(**wanted)).rejections]

    async def read(self, query: Callable[[Connection], T]) -> T:
        """See `worker.ingest.expiry.Database`."""
        return query(self.connection)

    async def change(self, apply: Callable[[Transaction], T]) -> T:
        """See `worker.ingest.expiry.Database`."""
        if self.error is not None:
            raise self.error
        result = self.transaction(apply)
        self.steps.append(int(str(result)))
        return result


@pytest.fixture
def store(engine: Made) -> Iterator[Store]:
    """A new database of each engine."""
    place = engine(CATALOG)
    writing, connection = place.engine(), place.outside()
    writing.open()
    with connection.connection_context():
        yield Store(place, writing, connection)
    writing.close()


def conflicting(message_id: str = "m2") -> Callable[[], Entry]:
    """A message about user 5 that differs from the first one."""
    return lambda: entry(5, message_id, email="b")


def test_a_retry_after_the_cause_is_gone_has_its_effect(store: Store) -> None:
    """INV-3: row, receipt and rejection change together, and the row is what the first delivery would have written."""
    assert store.handle(lambda: entry(5, "m1", email="a"), conflicting()) == ["created", "conflict"]
    User.delete().where(User.user_id == 5).execute(store.connection)
    assert store.transaction(lambda transaction: transaction.retry("m2"), now=NOW + 1, epoch=8) == "created"
    assert store.rows(User) == [
        {"user_id": 5, "email_address": "b", "created_at": PUBLISHED // 1000, "deleted": 0, "settings": None}
    ]
    receipt = next(row for row in store.rows(Receipt) if row["message_id"] == "m2")
    assert receipt == {
        "message_id": "m2",
        "subject": "5",
        "outcome": "created",
        "publish_time": PUBLISHED,
        "processed_at": NOW + 1,
        "epoch": 8,
    }
    (kept,) = store.rows(Rejection)
    assert (kept["resolved_at"], kept["resolution"]) == (NOW + 1, "created")
    assert store.handle(conflicting()) == ["duplicate"]


def test_a_retry_of_what_is_there_by_now_exists(store: Store) -> None:
    """Somebody published the mended message meanwhile."""
    store.handle(lambda: entry(5, "m1", email="a"), conflicting())
    User.update(email_address="b").execute(store.connection)
    assert store.transaction(lambda transaction: transaction.retry("m2")) == "exists"
    assert store.rows(Rejection)[0]["resolution"] == "exists"


def test_a_retry_never_overwrites_a_row(store: Store) -> None:
    """It stays a conflict, open, with the row that it met now."""
    store.handle(lambda: entry(5, "m1", email="a"), conflicting())
    User.update(settings="newer").execute(store.connection)
    before = store.rows(User)
    assert store.transaction(lambda transaction: transaction.retry("m2")) == "conflict"
    assert store.rows(User) == before
    (kept,) = store.rows(Rejection)
    assert (kept["resolved_at"], kept["detail"]) == (None, "users has this user_id with another email_address and settings")
    assert '"settings":"newer"' in kept["stored"]


def test_a_retry_of_what_is_still_malformed_stays_open(store: Store) -> None:
    """With its bytes, its reason of today, and one receipt."""
    store.handle(lambda: malformed("m2"))
    assert store.transaction(lambda transaction: transaction.retry("m2")) == "rejected"
    (kept,) = store.rows(Rejection)
    assert (bytes(kept["data"]), kept["resolved_at"], kept["reason"]) == (b"{", None, "not_json")
    assert [row["outcome"] for row in store.rows(Receipt)] == ["rejected"]


def test_a_retry_after_its_receipt_has_expired_makes_a_new_one(store: Store) -> None:
    """A rejection may be kept longer than receipts."""
    store.handle(lambda: entry(5, "m1", email="a"), conflicting())
    Receipt.delete().execute(store.connection)
    User.delete().execute(store.connection)
    assert store.transaction(lambda transaction: transaction.retry("m2")) == "created"
    assert [row["message_id"] for row in store.rows(Receipt)] == ["m2"]


def test_a_retry_that_turns_out_to_be_about_an_erased_user_keeps_nothing(store: Store) -> None:
    """A mended worker can read what it could not when the user was erased."""
    store.handle(lambda: malformed("m1"))
    store.transaction(lambda transaction: transaction.erase("5"))
    Rejection.update(data=b'{"user_id":5,"email_address":"a"}').execute(store.connection)  # as if that were readable now
    assert store.transaction(lambda transaction: transaction.retry("m1")) == "erased"
    assert store.rows(Rejection) == []
    assert [(row["outcome"], row["subject"]) for row in store.rows(Receipt)] == [("erased", None)]


@pytest.mark.parametrize("corrected", [b"{", b'{"user_id":6,"settings":1}', b'{"user_id":6}'])
def test_whose_a_large_message_is_survives_a_retry_with_other_data(store: Store, corrected: bytes) -> None:
    """Its bytes are in the bucket still, and an erasure finds them by that alone."""
    problem = Problem("wrong_type", "settings must be a string", "5")
    store.handle(lambda: replace(malformed("m1"), content=problem, body="rejected/1"))
    store.transaction(lambda transaction: transaction.retry("m1", corrected))
    assert store.transaction(lambda transaction: transaction.bodies_about("5")) == ["rejected/1"]


def test_a_correction_says_whose_an_unreadable_message_was(store: Store) -> None:
    """An erasure of the person takes what was published as well."""
    store.handle(lambda: malformed("m1"))
    assert store.transaction(lambda transaction: transaction.retry("m1", b'{"user_id":6}')) == "created"
    assert store.transaction(lambda transaction: transaction.erase("6")).rejections == 1


def test_a_retry_counts_no_unknown_field(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message was counted when it came, and the counts belong to the event loop: a retry runs on the writer's thread."""
    monkeypatch.setattr(CATALOG, "unknown_fields", UnknownFields())
    store.handle(lambda: malformed("m1"))
    assert store.transaction(lambda transaction: transaction.retry("m1", b'{"user_id":6,"emial":"a"}')) == "created"
    assert CATALOG.unknown_fields.counts == {}


def test_a_discarded_message_stays_without_effect(store: Store) -> None:
    """Delivered again it is a duplicate; it cannot be retried or discarded again."""
    store.handle(lambda: malformed("m2"))
    store.transaction(lambda transaction: transaction.discard("m2"), now=NOW + 5)
    (kept,) = store.rows(Rejection)
    assert (kept["resolved_at"], kept["resolution"]) == (NOW + 5, "discarded")
    assert store.handle(lambda: malformed("m2")) == ["duplicate"]
    for again in ("retry", "discard"):
        with pytest.raises(Resolved, match="resolved already: discarded"):
            store.transaction(lambda transaction, again=again: getattr(transaction, again)("m2"))  # type: ignore[misc]


@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_what_was_not_rejected_cannot_be_resolved(store: Store, verb: str) -> None:
    """A message that had its effect is none of these commands' business."""
    store.handle(lambda: entry(5, "m1"))
    with pytest.raises(NotFound):
        store.transaction(lambda transaction: getattr(transaction, verb)("m1"))


def test_erasing_leaves_the_subject_and_nothing_else(store: Store) -> None:
    """Row, rejections and the receipts' subject go; message ids stay, and nothing brings the user back (INV-3)."""
    store.handle(lambda: entry(5, "m1", email="a"), conflicting(), lambda: entry(6, "m3"), lambda: malformed("m4"))
    assert store.transaction(lambda transaction: transaction.erase("5")) == Removed(
        existed=True, rows=1, receipts=2, rejections=1
    )
    assert [row["user_id"] for row in store.rows(User)] == [6]
    assert store.rows(Erased) == [{"subject": "5", "erased_at": NOW}]
    assert {row["message_id"]: row["subject"] for row in store.rows(Receipt)} == {
        "m1": None,
        "m2": None,
        "m3": "6",
        "m4": None,
    }
    assert [row["message_id"] for row in store.rows(Rejection)] == ["m4"]
    before = store.rows(User)
    assert store.handle(lambda: entry(5, "m1", email="a"), lambda: entry(5, "m9", email="new")) == ["duplicate", "erased"]
    assert store.rows(User) == before
    assert next(row for row in store.rows(Receipt) if row["message_id"] == "m9")["subject"] is None
    assert store.transaction(lambda transaction: transaction.erase("5")) == Removed(
        existed=False, rows=0, receipts=0, rejections=0
    )


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_an_erased_user_is_overwritten(store: Store) -> None:
    """Nothing of the user is left in free pages either: every later generation begins with a copy of the whole file."""
    secret = "only-this-user@example.com"
    store.handle(lambda: entry(5, "m1", email=secret), *[(lambda n=n: entry(n, f"u{n}")) for n in range(6, 40)])
    store.handle(conflicting("m2"), lambda: entry(5, "m3", email=secret.upper() + "x" * 20_000))
    assert isinstance(store.place, SqlitePlace)
    file = store.place.path
    checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)"
    store.connection.execute_sql(checkpoint)  # type: ignore[no-untyped-call]
    assert file.read_bytes().count(secret.encode()) >= 2
    assert secret.upper().encode() in file.read_bytes()
    store.transaction(lambda transaction: transaction.erase("5"))
    store.connection.execute_sql(checkpoint)  # type: ignore[no-untyped-call]
    assert secret.encode() not in file.read_bytes().lower()


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b'{"user_id":5,"settings":7}', "erased"),
        (b'{"user_id":"5","email_address":"bob@example.com"}', "erased"),
        (b'{"user_id":6,"settings":7}', "rejected"),
        (b'{"user_id":5.0}', "rejected"),
        (b'{"user_id":%s}' % (b"9" * 5000), "rejected"),
        (b"not JSON", "rejected"),
    ],
)
def test_a_malformed_message_about_an_erased_user_is_not_kept(store: Store, data: bytes, outcome: str) -> None:
    """A replay may bring it again: what names the user as far as it can be read leaves nothing but its id."""
    store.transaction(lambda transaction: transaction.erase("5"))

    def replayed() -> Entry:
        made = malformed("m2")
        delivery = msgspec.structs.replace(made.delivery, data=data)
        return replace(made, delivery=delivery, content=read(data))

    assert store.handle(replayed) == [outcome]
    assert len(store.rows(Rejection)) == (outcome == "rejected")


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        (b'{"user_id":5}', "5"),
        (b'{"user_id":6,"user_id":5,"settings":7}', "5"),
        (b'{"settings":7,"user_id":"9223372036854775807"}', str(2**63 - 1)),
        (b'{"user_id":"' + b"\\u0035" * 19 + b'"}', "5" * 19),
        (b'{"user_id":"' + b"0" * 18 + b'5"}', "5"),
        (b'{"user_id":"' + b"5" * 20 + b'"}', None),
        (b'{"user_id":9223372036854775808}', None),
        (b'{"user_id":true}', None),
        (b'{"user_id":[5]}', None),
        (b'{"user_id":5.0}', None),
        (b'{"user_id":"\xff"}', None),
        (b'{"user_id":5', None),
        (b"[5]", None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_whom_a_message_tries_to_be_about(data: bytes, subject: str | None) -> None:
    """As a number or as text; the last one counts, as in the format."""
    assert CATALOG.claimed_subject(data) == subject


@pytest.mark.parametrize("opening", [b'{"user_id":"x","newer":[', b"["])
def test_a_bad_message_is_not_built_in_memory(opening: bytes) -> None:
    """INV-7: 10 MB of empty lists would be 200 MB of objects, and hold everybody up for seconds (INV-6)."""
    data = opening + b"[]," * 3_300_000 + (b"[]]}" if opening[:1] == b"{" else b"[]]")
    tracemalloc.start()
    try:
        assert read(data).reason in ("wrong_type", "not_an_object")  # type: ignore[union-attr]
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data)
    finally:
        tracemalloc.stop()


def test_many_users_are_erased_in_one_pass(store: Store) -> None:
    """More than fit into one statement; those that are erased already are left alone."""
    store.handle(*[lambda number=number: entry(number, f"m{number}") for number in range(1, 1201)])
    store.transaction(lambda transaction: transaction.erase("7"))
    wanted = [str(number) for number in range(1, 1201, 2)]
    assert store.transaction(lambda transaction: transaction.not_erased(wanted)) == [
        subject for subject in wanted if subject != "7"
    ]
    assert store.transaction(lambda transaction: transaction.erase_all(wanted)) == Removed(True, 599, 599, 0)
    assert {row["user_id"] for row in store.rows(User)} == set(range(2, 1201, 2))
    assert {row["subject"] for row in store.rows(Erased)} == {"7", *wanted}


def test_a_row_that_is_only_marked_as_deleted_is_not_erased(store: Store) -> None:
    """The service this one replaces may have marked rows so: an older state must still be erased."""
    store.handle(lambda: entry(5, "m1", email="a"), lambda: entry(6, "m2"))
    User.update(deleted=1).execute(store.connection)
    assert store.transaction(lambda transaction: transaction.not_erased(["5", "6", "7"])) == ["5", "6", "7"]
    store.transaction(lambda transaction: transaction.erase_all(["5"]))
    assert store.transaction(lambda transaction: transaction.not_erased(["5", "6", "7"])) == ["6", "7"]
    assert [row["user_id"] for row in store.rows(User)] == [6]


def test_a_user_who_was_never_there_can_be_erased(store: Store) -> None:
    """A replay may still bring them: the subject is remembered first."""
    assert store.transaction(lambda transaction: transaction.erase("5")) == Removed(
        existed=False, rows=0, receipts=0, rejections=0
    )
    assert store.handle(lambda: entry(5, "m1")) == ["erased"]


def test_rejections_that_try_to_name_the_user_are_erased(store: Store) -> None:
    """Whether the id came as a number or as text; what cannot be read is left alone."""

    def saying(message_id: str, data: bytes) -> Callable[[], Entry]:
        return lambda: replace(
            malformed(message_id), delivery=msgspec.structs.replace(malformed(message_id).delivery, data=data)
        )

    said = {"m1": b'{"user_id":"5"}', "m2": b'{"user_id":5,"settings":1}', "m3": b'{"user_id":6}', "m4": b"[5]", "m5": b"5"}
    store.handle(*[saying(message_id, data) for message_id, data in said.items()])
    assert store.transaction(lambda transaction: transaction.erase("5")).rejections == 2
    assert sorted(row["message_id"] for row in store.rows(Rejection)) == ["m3", "m4", "m5"]


def test_a_page_holds_what_was_asked_for(store: Store) -> None:
    """By reason, by time of receipt, open or all; oldest first."""
    store.handle(lambda: malformed("m9"), now=1000)
    store.handle(lambda: entry(5, "m1", email="a"), conflicting(), now=2000)
    store.handle(lambda: malformed("m3"), lambda: malformed("m4"), now=3000)
    store.transaction(lambda transaction: transaction.discard("m4"))
    assert store.page() == ["m9", "m2", "m3"]
    assert store.page(resolved=True) == ["m9", "m2", "m3", "m4"]
    assert store.page(reason="conflict") == ["m2"]
    assert store.page(since=2000) == ["m2", "m3"]
    assert store.page(until=2000) == ["m9"]
    assert store.page(since=2000, until=3000) == ["m2"]


def test_pages_join_without_gap_or_overlap(store: Store) -> None:
    """Also where many were received in one millisecond, as a group is."""
    store.handle(*[lambda number=number: malformed(f"m{number:02}") for number in range(25)])
    found: list[str] = []
    after = None
    while True:
        page = rejections.page(store.connection, Filter(after=after, limit=4))
        found += [row["message_id"] for row in page.rejections]
        if (after := page.after) is None:
            break
    assert found == [f"m{number:02}" for number in range(25)]


def test_a_page_has_no_data_and_one_has_all(store: Store) -> None:
    """A list of thousands stays small; times are readable; bytes come whole."""
    store.handle(lambda: entry(5, "m1", email="a"), conflicting())
    (listed,) = rejections.page(store.connection, Filter()).rejections
    assert listed == {
        "message_id": "m2",
        "reason": "conflict",
        "detail": "users has this user_id with another email_address",
        "publish_time": "2023-11-14T22:13:20.000Z",
        "received_at": "2023-11-14T22:15:00.000Z",
        "delivery_attempt": None,
        "resolved_at": None,
        "resolution": None,
        "bytes": 33,
    }
    found = rejections.whole(store.connection, "m2")
    assert found is not None
    assert found.items() >= listed.items()
    assert base64.b64decode(found["data"]) == b'{"user_id":5,"email_address":"b"}'
    assert found["attributes"] == {"source": "test"}
    assert found["stored"]["email_address"] == "a"
    assert rejections.whole(store.connection, "m1") is None


def expire(store: Store, *, now: int, step: int = 2) -> dict[str, int]:
    """One walk through both tables."""
    return asyncio.run(Expiry(32, 90, step, wall_clock=lambda: now / 1000).once(cast(Tables, store)))


def test_receipts_and_rejections_expire_each_at_its_time(store: Store) -> None:
    """Receipts after 32 days, rejections after 90; users never."""
    store.handle(lambda: entry(5, "m1", email="a"), conflicting(), now=NOW)
    store.handle(lambda: entry(6, "m3"), now=NOW + 40 * DAY)
    assert expire(store, now=NOW + 32 * DAY) == {"receipts": 0, "rejections": 0}
    assert expire(store, now=NOW + 32 * DAY + 1) == {"receipts": 2, "rejections": 0}
    assert [row["message_id"] for row in store.rows(Receipt)] == ["m3"]
    assert expire(store, now=NOW + 90 * DAY + 1) == {"receipts": 1, "rejections": 1}
    assert store.rows(Rejection) == []
    assert [row["user_id"] for row in store.rows(User)] == [5, 6]


def test_expiry_goes_in_bounded_steps(store: Store) -> None:
    """INV-7: no transaction deletes more than STEP_ROWS, whatever lies between."""
    for number in range(23):
        store.handle(lambda number=number: entry(number + 1, f"m{number:02}"), now=NOW + (number % 3) * DAY)  # type: ignore[misc]
    assert expire(store, now=NOW + 33 * DAY, step=4) == {"receipts": 8, "rejections": 0}
    assert max(store.steps) <= 4
    assert sum(store.steps) == 8
    assert len(store.rows(Receipt)) == 15


def test_an_unresolved_rejection_does_not_expire_in_silence(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The log counts those that nobody has looked at, and names nobody."""
    store.handle(lambda: malformed("m1"), lambda: malformed("m2"), lambda: malformed("m3"))
    store.transaction(lambda transaction: transaction.discard("m2"))
    assert expire(store, now=NOW + 91 * DAY, step=10)["rejections"] == 3
    assert "2 rejections are deleted that were still open" in caplog.text


def test_an_outage_puts_expiry_off(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again after the interval, and nothing else is harmed."""
    store.handle(lambda: entry(5, "m1"))
    store.error = Refused("the bucket does not answer")

    async def body() -> None:
        task = asyncio.create_task(
            Expiry(32, 90, 10, wall_clock=lambda: (NOW + 40 * DAY) / 1000).run(cast(Tables, store), interval_seconds=0.01)
        )
        while "expiry is put off" not in caplog.text:  # noqa: ASYNC110  # the log has no event
            await asyncio.sleep(0.005)
        store.error = None
        while store.rows(Receipt):  # noqa: ASYNC110  # nor has the table
            await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(asyncio.wait_for(body(), 10))
