"""The newest version wins, on both engines: whatever the order of messages, and whatever groups they come in."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pytest
from msgspec import structs
from msgspec.structs import replace
from peewee import BigIntegerField, Model, TextField

from tests.engines import Made
from tests.unit.events.orders import Order, message
from worker.database.engine import Engine
from worker.database.models import Connection, Erased, Receipt, Rejection, Version
from worker.errors import NotAConflict
from worker.events import users
from worker.events.catalog import Catalog, Problem
from worker.events.declaration import Event
from worker.events.users import User
from worker.ingest.messages import Entry
from worker.ingest.transaction import Transaction

T = TypeVar("T")

CATALOG = Catalog.load("worker.events.users,tests.unit.events.orders")


@dataclass
class Store:
    """A database that knows users and orders."""

    engine: Engine
    database: Connection
    """Reads and changes it from outside."""

    def change(self, apply: Callable[[Transaction], T]) -> T:
        """Make a change in a transaction of its own."""
        return self.engine.run(lambda database: apply(Transaction(database, CATALOG, 7, 1)))

    def handle(self, *entries: Entry) -> list[str]:
        """The outcomes of messages of one group."""
        return list(self.change(lambda transaction: transaction.handle(entries)))

    def rows(self, model: Any) -> list[dict[str, Any]]:
        """A whole table."""
        return list(model.select().order_by(model._meta.primary_key).dicts().bind(self.database))


@pytest.fixture
def store(engine: Made) -> Iterator[Store]:
    """A new database of each engine."""
    place = engine(CATALOG)
    writing, database = place.engine(), place.outside()
    writing.open()
    with database.connection_context():
        yield Store(writing, database)
    writing.close()


def created(message_id: str = "c", published: int = 1000, **fields: Any) -> Entry:
    """User 5 is created."""
    return message(CATALOG, "user.created", message_id, published, user_id=5, **fields)


def updated(message_id: str, published: int, email: str | None = None) -> Entry:
    """User 5 has this address from then on."""
    return message(CATALOG, "user.updated", message_id, published, user_id=5, email_address=email)


def deleted(message_id: str, published: int) -> Entry:
    """User 5 is no longer there."""
    return message(CATALOG, "user.deleted", message_id, published, user_id=5)


def changed(message_id: str, sequence: int, total: int, published: int = 1000) -> Entry:
    """Order 1 costs so much from this version on."""
    return message(CATALOG, "order.changed", message_id, published, order_id="1", total=total, sequence=sequence)


def placed(message_id: str, **fields: Any) -> Entry:
    """Order 1."""
    return message(CATALOG, "order.placed", message_id, order_id="1", **fields)


@pytest.mark.parametrize("together", [True, False], ids=["in one group", "one by one"])
def test_the_order_of_delivery_changes_nothing(store: Store, together: bool) -> None:
    """Each order of a creation, two corrections and a deletion ends in one row, which is the newest version's."""
    ended = set()
    for number, order in enumerate(itertools.permutations(range(4))):
        user = number + 10
        sent = [
            message(CATALOG, "user.created", f"{user}a", 1000, user_id=user, email_address="a", created_at=7),
            message(CATALOG, "user.updated", f"{user}b", 2000, user_id=user, email_address="b"),
            message(CATALOG, "user.deleted", f"{user}c", 3000, user_id=user),
            message(CATALOG, "user.updated", f"{user}d", 4000, user_id=user, email_address="d", settings="s"),
        ]
        groups = [[sent[at] for at in order]] if together else [[sent[at]] for at in order]
        outcomes = [outcome for group in groups for outcome in store.handle(*group)]
        assert set(outcomes) <= {"created", "updated", "stale"}
        assert outcomes[order.index(3)] in ("created", "updated")
        (row,) = [each for each in store.rows(User) if each["user_id"] == user]
        ended.add((row["email_address"], row["created_at"], row["deleted"], row["settings"]))
    assert ended == {("d", 7, 0, "s")}
    assert store.rows(Rejection) == []


def test_a_message_without_a_version_is_older_than_a_negative_one(store: Store) -> None:
    """As it is than every other: the order of delivery changes nothing."""
    assert store.handle(placed("a", total=1), changed("b", -5, 2), placed("c", total=1)) == ["created", "updated", "stale"]
    assert store.rows(Rejection) == []


def test_an_older_version_is_stale_and_changes_nothing(store: Store) -> None:
    """Its receipt says so, and names whose it is."""
    assert store.handle(created(), updated("u2", 3000, "new")) == ["created", "updated"]
    assert store.handle(updated("u1", 2000, "old")) == ["stale"]
    assert store.rows(User)[0]["email_address"] == "new"
    assert store.rows(Version) == [{"row": "users/5", "version": 3000, "message_id": "u2"}]
    assert [(row["outcome"], row["subject"]) for row in store.rows(Receipt) if row["message_id"] == "u1"] == [("stale", "5")]


@pytest.mark.parametrize("swapped", [False, True])
def test_of_one_publish_time_the_later_message_id_wins(store: Store, swapped: bool) -> None:
    """Pub/Sub's ids are numbers: a longer one is later. Which it is does not matter, that it is always the same does."""
    pair = [updated("9", 2000, "nine"), updated("10", 2000, "ten")]
    assert store.handle(*(reversed(pair) if swapped else pair)) == ["created", "stale" if swapped else "updated"]
    assert store.rows(User)[0]["email_address"] == "ten"


def test_a_late_creation_gives_what_no_correction_sets(store: Store) -> None:
    """The row is then what it had been in the right order; the correction stays."""
    assert store.handle(updated("u", 5000, "new")) == ["created"]
    assert store.rows(User)[0]["created_at"] is None
    assert store.handle(created(email_address="old", created_at=7)) == ["stale"]
    assert (store.rows(User)[0]["created_at"], store.rows(User)[0]["email_address"]) == (7, "new")
    assert store.handle(created("c2", email_address="new")) == ["exists"]


def test_a_deletion_of_whom_is_not_there_yet_is_remembered(store: Store) -> None:
    """The creation that it overtook makes no one."""
    assert store.handle(deleted("d", 2000), created(email_address="a")) == ["updated", "stale"]
    assert (store.rows(User)[0]["deleted"], store.rows(User)[0]["email_address"]) == (1, None)
    assert store.handle(updated("u", 3000, "back")) == ["updated"]
    assert store.rows(User)[0]["deleted"] == 0


def test_an_integer_orders_versions_whatever_the_publish_times(store: Store) -> None:
    """Two messages of one version must say the same: which of them is right, an operator decides."""
    assert store.handle(placed("p", total=1, customer="ann"), changed("a", 2, 20, published=9000)) == ["created", "updated"]
    assert store.handle(changed("b", 1, 10, published=9999), changed("c", 3, 30, published=1)) == ["stale", "updated"]
    assert store.handle(changed("d", 3, 30), changed("e", 3, 31)) == ["exists", "conflict"]
    (kept,) = store.rows(Rejection)
    assert (kept["detail"], kept["stored"]) == (
        "orders has this order_id with another total",
        '{"order_id":"1","customer":"ann","total":30,"lines":"[]"}',
    )
    assert store.rows(Order)[0]["total"] == 30


def test_a_late_order_fills_all_that_no_change_sets(store: Store) -> None:
    """Customer and lines; what it costs is the change's to say."""
    assert store.handle(changed("a", 1, 10), placed("p", total=5, customer="ann", lines=[{"sku": "x"}])) == [
        "created",
        "stale",
    ]
    assert store.rows(Order) == [{"order_id": "1", "customer": "ann", "total": 10, "lines": '[{"sku":"x","count":1}]'}]


@pytest.mark.parametrize("order", ["abu", "aub", "uab", "uba", "bau", "bua"])
def test_two_orders_that_disagree_conflict_whenever_the_change_comes(store: Store, order: str) -> None:
    """A change settles what an order costs. Whose order it is the change does not say, so both sides are kept."""
    sent = {
        "a": placed("a", total=1, customer="ann"),
        "b": placed("b", total=2, customer="bob"),
        "u": changed("u", 1, 10),
    }
    ends = {name: outcome for name in order for outcome in store.handle(sent[name])}
    first, second = [name for name in order if name != "u"]
    assert (ends[second], ends[first] == "conflict") == ("conflict", False)
    (row,), (kept,) = store.rows(Order), store.rows(Rejection)
    assert (row["customer"], row["total"], kept["message_id"]) == ({"a": "ann", "b": "bob"}[first], 10, second)
    assert "customer" in kept["detail"]
    assert ("total" in kept["detail"]) == (ends["u"] == "updated" and order[2] == "u")


def test_an_overwrite_leaves_what_a_newer_version_has_set(store: Store) -> None:
    """The customer was in dispute, the price is the change's."""
    store.handle(placed("a", total=1, customer="ann"), changed("u", 1, 10), placed("b", total=2, customer="bob"))
    assert store.change(lambda transaction: transaction.retry("b", overwrite=True)) == "overwritten"
    assert [(row["customer"], row["total"]) for row in store.rows(Order)] == [("bob", 10)]


def test_an_operator_may_decide_that_a_conflict_is_right(store: Store) -> None:
    """INV-3: row, receipt and rejection change together; what the message does not state stays."""
    store.handle(created(email_address="a", created_at=7), created("c2", email_address="b"))
    assert store.change(lambda transaction: transaction.retry("c2")) == "conflict"
    assert store.change(lambda transaction: transaction.retry("c2", overwrite=True)) == "overwritten"
    assert (store.rows(User)[0]["email_address"], store.rows(User)[0]["created_at"]) == ("b", 7)
    assert {row["message_id"]: row["outcome"] for row in store.rows(Receipt)} == {"c": "created", "c2": "overwritten"}
    assert [(row["resolution"], row["resolved_at"]) for row in store.rows(Rejection)] == [("overwritten", 1)]


def test_only_a_conflict_overwrites(store: Store) -> None:
    """What breaks the format has nothing that could be written."""
    store.handle(replace(created(), content=Problem("not_json", "data must be a JSON object")))
    with pytest.raises(NotAConflict, match="only a conflict can overwrite a row, and this is not_json"):
        store.change(lambda transaction: transaction.retry("c", overwrite=True))
    assert store.rows(User) == []


def test_an_erasure_takes_rows_and_versions_of_every_table(store: Store) -> None:
    """A text and a number that are written alike are one subject; no event brings it back."""
    store.handle(created(), updated("u", 2000, "a"), placed("p", customer="5"), changed("a", 1, 10))
    store.handle(message(CATALOG, "order.placed", "q", order_id="2", customer="ann"))
    removed = store.change(lambda transaction: transaction.erase("5"))
    assert (removed.rows, removed.receipts) == (2, 3)
    assert ([row["order_id"] for row in store.rows(Order)], store.rows(User), store.rows(Version)) == (["2"], [], [])
    assert store.handle(deleted("d", 9000), placed("p2", customer="5")) == ["erased", "erased"]
    assert [row["subject"] for row in store.rows(Erased)] == ["5"]


def test_a_text_of_digits_is_not_the_number(store: Store) -> None:
    """Whoever is called 05 is not user 5."""
    store.handle(created(), placed("p", customer="05"))
    assert store.change(lambda transaction: transaction.erase("05")).rows == 1
    assert [row["user_id"] for row in store.rows(User)] == [5]


class Ticket(Model):
    """A ticket: its writer is the person, and the user beside it is who works on it."""

    ticket_id = TextField(primary_key=True)
    writer = TextField()
    user_id = BigIntegerField()

    class Meta:
        table_name = "tickets"


class TicketOpened(msgspec.Struct):
    """As the row."""

    ticket_id: str
    writer: str
    user_id: int


def test_an_erasure_finds_the_other_side_of_a_conflict_by_its_own_subject(store: Store) -> None:
    """Not by the subject of another table that the row names as well: of two persons one is meant, and the right one."""
    opened = Event("ticket.opened", TicketOpened, Ticket, row=lambda content, _: structs.astuple(content), subject="writer")
    catalog = Catalog({"users": users.EVENTS, "tickets": [opened]})
    Ticket.bind(store.database)
    store.database.create_tables([Ticket])
    for number, writer in enumerate(("ann", "bob", "cid")):
        sent = message(catalog, "ticket.opened", f"m{number}", ticket_id="1", writer=writer, user_id=9)
        Transaction(store.database, catalog, 7, 1).handle([sent])
    kept = [(row["message_id"], row["about"]) for row in store.rows(Rejection)]
    assert kept == [("m1", "bob"), ("m2", "cid")]
    at_work = Transaction(store.database, catalog, 7, 1)
    assert at_work.erase("9").rejections == 0
    assert at_work.erase("cid").rejections == 1
    assert at_work.erase("ann").rejections == 1
