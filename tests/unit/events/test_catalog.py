"""The events of a process: modules are loaded and checked against one another, and each message is read by its event."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from peewee import BigIntegerField, Model, TextField

from tests.entries import CATALOG
from tests.unit.events.orders import CHANGED, EVENTS, PLACED, Order, OrderChanged, OrderPlaced, message
from worker.config import Settings
from worker.errors import ConfigError
from worker.events import users
from worker.events.catalog import Catalog, Content, Problem
from worker.events.configured import catalog_of
from worker.events.declaration import Event, EventError

ORDERS = Catalog({"orders": EVENTS})
BOTH = Catalog({"users": users.EVENTS, "orders": EVENTS})


def other_model(name: str) -> type[Model]:
    """Another model of a table of this name."""

    class Other(Model):
        order_id = TextField(primary_key=True)
        customer = TextField(null=True)
        total = BigIntegerField()
        lines = TextField(null=True)

        class Meta:
            table_name = name

    return Other


def event(name: str = "order.other", model: type[Model] = Order, **more: Any) -> Event:
    """Another event of orders."""
    content = OrderChanged if "version" in more else OrderPlaced
    return Event(name, content, model, row=lambda content, _: (content,), **{"subject": "customer"} | more)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (event("order.placed"), "^second: event order.placed is declared by first already$"),
        (event(model=other_model("orders")), "^second: event order.other: table orders is declared by first already"),
        (event(subject=None), "^second: event order.other: its subject must be customer, as that of order.placed is"),
        (event(gone="total"), "^second: event order.other: gone is said once for a table"),
        (event(when_there="newest"), "^first: the events of table orders must be ordered by one version"),
        (event(model=other_model("receipts")), "^second: event order.other: table receipts is the worker's own"),
        (event(model=other_model("schema_migration_x")), "table schema_migration_x is the worker's own"),
        (event(model=other_model("Receipts")), "^second: event order.other: table Receipts is the worker's own"),
        (event(model=other_model("Orders")), "^second: event order.other: to SQLite table Orders is table orders"),
    ],
)
def test_events_that_contradict_one_another_are_refused_by_their_module(second: Event, said: str) -> None:
    """At start, not with the message that meets it."""
    with pytest.raises(EventError, match=said):
        Catalog({"first": EVENTS, "second": [second]})


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


USING = "from worker.events.users import EVENTS\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import nowhere",
            "acme_events cannot be imported: No module named 'nowhere'; put the folder that holds it into PYTHONPATH",
        ),
        ("1 / 0", "acme_events cannot be imported: ZeroDivisionError: division by zero"),
        ("EVENTS = []", "acme_events declares no events: it must have a list EVENTS of worker.events.declaration.Event"),
        ("from worker.events.users import *\nEVENTS = [User]", "acme_events declares no events"),
        (
            "from worker.events.users import *\nEVENTS = [Event('a b', UserCreated, User, row=tuple)]",
            "acme_events: its name must begin with a letter",
        ),
        ("raise SystemExit('no configuration')", "acme_events cannot be imported: SystemExit: no configuration"),
        (f"{USING}MIGRATIONS = 5", "acme_events: MIGRATIONS names 5, which is no folder"),
        (f"{USING}MIGRATIONS = '/no/folder'", "acme_events: MIGRATIONS names /no/folder, which is no folder"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_named(modules: Path, source: str, said: str) -> None:
    """With the setting in front, and the process does not start."""
    (modules / "acme_events.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        catalog_of(Settings(replica_url="gs://acme/users", events="acme_events"))
    assert str(caught.value).startswith(f"EVENTS is 'acme_events': {said}")


def test_packages_whose_migrations_would_be_taken_for_one_anothers_are_refused(modules: Path) -> None:
    """A database would think that the second one's had run."""
    for package in ("acme/shop", "acme_shop"):
        (modules / package).mkdir(parents=True)
        source = f"{USING}MIGRATIONS = __file__.removesuffix('/__init__.py')"
        (modules / package / "__init__.py").write_text(source)
    with pytest.raises(
        EventError, match=r"^acme_shop: a database cannot tell the migrations of acme_shop from those of acme.s"
    ):
        Catalog.load("acme.shop,acme_shop")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (",", "no module is named; name one at least, such as worker.events.users"),
        ("worker.events.users, worker.events.users", "worker.events.users is named twice"),
        ("tests.unit.events.orders,tests.unit.events.nowhere", "tests.unit.events.nowhere cannot be imported"),
    ],
)
def test_a_list_of_modules_that_cannot_work_is_refused(names: str, said: str) -> None:
    """An empty one too."""
    with pytest.raises(EventError, match=said):
        Catalog.load(names)


def test_modules_are_loaded_beside_one_another() -> None:
    """Each with its folder of migrations, in the order of the setting."""
    catalog = Catalog.load("tests.unit.events.orders, worker.events.users")
    assert list(catalog.events) == ["order.placed", "order.changed", "user.created", "user.updated", "user.deleted"]
    assert list(catalog.migrations) == ["tests.unit.events", "worker.events"]
    assert catalog.event({}).name == "user.created"


def test_without_the_built_in_event_a_message_must_name_its_own() -> None:
    """Whatever it says, it is not taken for a user."""
    assert ORDERS.read(b'{"order_id":"1"}', {}, 0) == Problem(
        "unknown_event", "attribute event_type must be one of order.placed, order.changed", None
    )


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        (b'{"order_id":"1","customer":"ann","total":"x"}', "ann"),
        (b'{"customer":"007"}', "007"),
        (b'{"customer":"%s"}' % (b"\\u0041" * 128), "A" * 128),
        (b'{"customer":"%s"}' % (b"x" * 129), None),
        (b'{"customer":7}', "7"),
        (b'{"customer":["ann"]}', None),
        (b'{"customer":""}', None),
        (b'{"customer":"a\\u0000b"}', None),
        (b'{"user_id":"7","customer":"ann"}', "ann"),
    ],
)
def test_whose_data_a_bad_order_tries_to_be(data: bytes, subject: str | None) -> None:
    """By the field of its event, as a text."""
    assert BOTH.claimed_subject(data, PLACED) == subject


def test_a_message_of_no_known_event_is_asked_for_each_subject() -> None:
    """It may be of an event that another version knows."""
    assert BOTH.claimed_subject(b'{"customer":"ann"}') == "ann"
    assert BOTH.claimed_subject(b'{"user_id":"7"}') == "7"
    assert BOTH.read(b'{"customer":"ann"}', {"event_type": "order.gone"}, 0).subject == "ann"
    assert list(BOTH.claimed_subjects(b'{"customer":"ann","user_id":7}')) == ["ann", "7"]


def test_where_all_subjects_are_numbers_one_is_written_in_one_way() -> None:
    """A text of digits is another subject than the number."""
    assert [CATALOG.subject_named(text) for text in ("007", "7", "ann")] == ["7", "7", "ann"]
    assert [BOTH.subject_named(text) for text in ("007", "7", "ann")] == ["007", "7", "ann"]


@pytest.mark.parametrize(
    ("fields", "reason", "said"),
    [
        ({"order_id": ""}, "out_of_range", "order_id must have 1 to 1024 bytes"),
        ({"order_id": "é" * 513}, "out_of_range", "order_id must have 1 to 1024 bytes"),
        ({"order_id": "1", "customer": "x" * 129}, "out_of_range", "customer must have 1 to 128 bytes"),
        ({"order_id": "1", "customer": ""}, "out_of_range", "customer must have 1 to 128 bytes"),
    ],
)
def test_keys_and_subjects_have_limits(fields: dict[str, Any], reason: str, said: str) -> None:
    """Of an index, and of the name of an object."""
    assert message(ORDERS, "order.placed", "m1", **fields).content == Problem(reason, said, None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (lambda *_: int("x"), "the row of order.odd cannot be made: ValueError; the log says why"),
        (lambda *_: ("1",), "order.odd makes 1 values for 4 columns"),
        (lambda *_: (1, None, 0, None), "order_id must be a text"),
        (lambda *_: (None, None, 0, None), "order_id must be a text"),
        (lambda *_: ("1", None, "0", None), "the row's total is of type str, and not int"),
        (lambda *_: ("1", None, 0.5, None), "the row's total is of type float, and not int"),
        (lambda *_: ("1", None, True, None), "the row's total is of type bool, and not int"),
        (lambda *_: ("1", None, 0, []), "the row's lines is of type list, and not str"),
        (lambda *_: ("1", None, 0, datetime(2026, 1, 1, tzinfo=UTC)), "the row's lines is of type datetime, and not str"),
        (lambda *_: ("\ud800", None, 0, None), "order_id must not contain a lone surrogate"),
    ],
)
def test_a_row_that_cannot_be_one_fails_its_message_alone(row: Any, said: str) -> None:
    """INV-6: whatever an adopter's code raises or returns."""
    catalog = Catalog({"odd": [Event("order.odd", OrderPlaced, Order, row=row)]})
    content = message(catalog, "order.odd", "m1", order_id="1").content
    assert isinstance(content, Problem)
    assert content.detail == said


def test_the_log_says_where_a_row_could_not_be_made_and_not_of_what(caplog: pytest.LogCaptureFixture) -> None:
    """An error's own text may quote the message."""

    def odd(content: OrderPlaced, _: int) -> tuple[Any, ...]:
        return (int(content.order_id),)

    catalog = Catalog({"odd": [Event("order.odd", OrderPlaced, Order, row=odd)]})
    message(catalog, "order.odd", "m1", order_id="s3cret")
    assert "in odd" in caplog.text
    assert "HiddenError: ValueError" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_enumeration_is_the_text_or_the_number_that_it_is() -> None:
    """What a struct makes of a field may go into a row."""

    class Colour(StrEnum):
        RED = "red"

    class Level(IntEnum):
        LOW = 1

    row = ("1", Colour.RED, Level.LOW, None)
    catalog = Catalog({"odd": [Event("order.odd", OrderPlaced, Order, row=lambda *_: row)]})
    content = message(catalog, "order.odd", "m1", order_id="1").content
    assert isinstance(content, Content)
    assert content.row == ("1", "red", 1, None)


def test_unknown_fields_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The message has its effect; the log says what was meant, and no more than so many names are kept (INV-7)."""
    catalog = Catalog({"orders": EVENTS})
    for _ in range(3):
        assert isinstance(message(catalog, "order.placed", "m1", order_id="1", totl=5).content, Content)
    assert catalog.unknown_fields.counts == {("order.placed", "totl"): 3}
    assert caplog.text.count("order.placed: field totl is unknown: did you mean total?") == 1
    for number in range(30):
        message(catalog, "order.placed", "m1", order_id="1", **{f"n{number}": 1})
    assert len(catalog.unknown_fields.counts) == 21
    assert catalog.unknown_fields.counts["order.placed", "(other)"] == 11


def test_unknown_fields_are_rejected_where_that_is_wanted() -> None:
    """By the setting; they are counted as well."""
    catalog = Catalog({"orders": EVENTS}, unknown="reject")
    content = message(catalog, "order.placed", "m1", order_id="1", customer="ann", colour="red").content
    assert isinstance(content, Problem)
    assert (content.reason, content.subject) == ("unknown_field", "ann")
    assert content.detail.startswith("field colour is unknown: it has order_id, customer")
    assert catalog.unknown_fields.counts == {("order.placed", "colour"): 1}


def test_a_message_is_read_to_its_row() -> None:
    """With its key, and whose it is."""
    content = message(ORDERS, "order.changed", "m1", order_id="a/1", total=5, sequence=2, customer="ann").content
    assert isinstance(content, Content)
    assert (content.event, content.row, content.key, content.subject) == (CHANGED, ("a/1", "ann", 5, None), "a/1", "ann")


class Renamed(msgspec.Struct, rename="camel"):
    """An order whose fields have other names in JSON."""

    order_id: str
    customer: str


def test_a_subject_under_another_name_in_json_is_read() -> None:
    """By the name in JSON, which is the column's."""

    class Row(Model):
        orderId = TextField(primary_key=True)  # noqa: N815  # as in JSON

        class Meta:
            table_name = "renamed"

    event = Event("order.renamed", Renamed, Row, row=lambda content, _: (content.order_id,), subject="orderId")
    content = message(Catalog({"renamed": [event]}), "order.renamed", "m1", orderId="1", customer="ann").content
    assert content.subject == "1"
