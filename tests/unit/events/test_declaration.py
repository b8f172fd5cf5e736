"""A declaration: what cannot work is refused at once, and what a message may be follows from its fields."""

import contextlib
import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta
from peewee import BigIntegerField, CompositeKey, DateTimeField, Model, TextField, UUIDField

from tests.unit.events.orders import PLACED, Line, Order, OrderPlaced
from worker.events.declaration import UNREADABLE_NAME, Event, EventError, MessageError, Reason


def declared(**changes: Any) -> Event:
    """An event like `order.placed`, but for these."""
    whole: dict[str, Any] = {
        "name": "order.placed",
        "content": OrderPlaced,
        "model": Order,
        "row": lambda content, _: (content,),
    }
    return Event(**whole | changes)


class Keyless(Model):
    """A table without a key."""

    order_id = TextField()

    class Meta:
        primary_key = False


class Composite(Model):
    """A table whose key has two columns."""

    order_id = TextField()
    customer = TextField()

    class Meta:
        primary_key = CompositeKey("order_id", "customer")


class Numbered(Model):
    """A table whose key the database makes up."""

    order_id = TextField()


class Unusual(Model):
    """A table whose key is neither an integer nor a text."""

    order_id = UUIDField(primary_key=True)


class Renamed(Model):
    """A table with a column of another name than its field."""

    order_id = TextField(primary_key=True)
    customer = TextField(column_name="customer_id")


class Dated(Model):
    """A table with a column whose values SQLite gives back as texts."""

    order_id = TextField(primary_key=True)
    placed_at = DateTimeField(null=True)


class Hiding(Model):
    """A table with a column of the name of a method of Peewee's models."""

    order_id = TextField(primary_key=True)
    select = TextField(null=True)  # type: ignore[assignment]  # that is what is refused


class Array(msgspec.Struct, array_like=True):
    """Read from a JSON array."""

    order_id: str


class Untyped(msgspec.Struct):
    """JSON has no complex numbers."""

    order_id: complex


class Ambiguous(msgspec.Struct):
    """Which struct an object is cannot be told."""

    order_id: str
    lines: OrderPlaced | dict[str, int]


class Tagged(msgspec.Struct, tag="order"):
    """Has a field that is none."""

    order_id: str


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "1st"}, "its name must begin with a letter"),
        ({"name": "order placed"}, "its name must begin with a letter"),
        ({"content": dict}, "its content must be a msgspec.Struct class"),
        ({"model": dict}, "its model must be a Peewee Model class"),
        ({"model": Keyless}, "Keyless has no primary key of one column"),
        ({"model": Composite}, "Composite has no primary key of one column"),
        ({"model": Numbered}, "Numbered must declare its primary key"),
        ({"model": Unusual}, "primary key order_id must be an integer or a text"),
        ({"model": Renamed}, "a column of its model Renamed must have the name of its field"),
        ({"model": Dated}, "column placed_at of its model Dated is a DateTimeField, and a value must come back as it was"),
        ({"model": Hiding}, "its model Hiding must have no field select: it hides what Peewee calls"),
        ({"subject": "buyer"}, "its subject buyer is no field of OrderPlaced"),
        ({"subject": "express"}, "its subject express is no column of Order"),
        ({"unsaid": {"express": False}}, "unsaid names express, which is not both"),
        ({"when_there": "latest"}, "when_there must be one of keep, newest"),
        ({"when_there": "newest", "version": "sequence"}, "its version sequence is no field of OrderPlaced"),
        ({"sets": ("total",)}, "sets is for an event whose when_there is newest"),
        ({"when_there": "newest", "sets": ("order_id",)}, "order_id is no column of Order beside its key"),
        ({"gone": "deleted"}, "deleted is no column of Order"),
        ({"content": Array}, "Array must be read from a JSON object, not an array"),
        ({"content": Untyped}, "Untyped cannot be decoded strictly: JSON has no type for its field order_id"),
        ({"content": Ambiguous}, "Ambiguous cannot be decoded strictly"),
        ({"content": Tagged}, "Tagged must have no tag"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(changes: dict[str, Any], said: str) -> None:
    """Not with the first message, and not with the first erasure."""
    with pytest.raises(EventError, match=said):
        declared(**changes)


def with_field(kind: Any) -> type[msgspec.Struct]:
    """The content of an order whose field `total` is of this type."""
    return msgspec.defstruct("Odd", [("order_id", str), ("total", kind)])


@pytest.mark.parametrize("kind", [str, bool, float, int | None, int | str, list[int], Any])
def test_a_version_that_orders_nothing_is_refused(kind: Any) -> None:
    """A text or a null would be older than every other version, and two of them a conflict."""
    with pytest.raises(EventError, match="its version total must be an integer, and not null"):
        declared(content=with_field(kind), when_there="newest", version="total")


@pytest.mark.parametrize("kind", [int | str, float, bool, list[int], datetime.date, Literal[1], Any])
def test_a_subject_that_an_erasure_would_not_find_is_refused(kind: Any) -> None:
    """Of a field that is a number or a text, an erasure of the text would leave the rows."""
    with pytest.raises(EventError, match="its subject total must be an integer, or a text, and it may be null"):
        declared(content=with_field(kind), subject="total")


def test_a_subject_and_its_column_are_of_one_type() -> None:
    """PostgreSQL compares no text with a number."""
    with pytest.raises(EventError, match="its subject total is of type text, and the column of that name is not"):
        declared(content=with_field(str | None), subject="total")
    declared(content=with_field(Annotated[int, Meta(ge=1)] | None), subject="total")


class Size(enum.Enum):
    """Two sizes."""

    SMALL = "s"
    LARGE = "l"


class Everything(msgspec.Struct):
    """One field of each type."""

    whole: Annotated[int, Meta(ge=1, le=9)] | None
    more: Annotated[int, Meta(gt=0)]
    real: float
    text: Annotated[str, Meta(min_length=1, max_length=3)]
    shape: Annotated[str, Meta(pattern="^[a-z]+$")] | None
    said: Annotated[int, Meta(ge=0, description="whole seconds")] | None
    truth: bool
    one: Literal["x", "y"]
    size: Size
    moment: datetime.datetime
    day: datetime.date
    number: Decimal
    unique: uuid.UUID
    raw: bytes
    many: list[int]
    map: dict[str, int]
    either: int | str | None


WORDS = {
    "whole": ("integer", "an integer between 1 and 9, or null"),
    "more": ("integer", "an integer more than 0"),
    "real": ("number", "a number"),
    "text": ("text", "a string of 1 to 3 characters"),
    "shape": ("text", "a string that matches ^[a-z]+$ or null"),
    "said": ("integer", "whole seconds, at least 0, or null"),
    "truth": ("truth", "true or false"),
    "one": ("text", "one of x, y"),
    "size": ("text", "one of s, l"),
    "moment": ("text", "an RFC 3339 time with a zone"),
    "day": ("text", "a date such as 2026-01-31"),
    "number": ("text", "a decimal number"),
    "unique": ("text", "a UUID"),
    "raw": ("text", "bytes in base64"),
    "many": ("json", "an array"),
    "map": ("json", "an object"),
    "either": ("json", "an integer or a string or null"),
}


def test_each_field_is_said_in_words_and_has_a_kind() -> None:
    """A person is told what a field must be; a CSV is read by its kind."""
    event = declared(content=Everything, model=Order)
    assert {name: (event.kinds[name], event.fields[name]) for name in event.fields} == WORDS


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b'{"order_id":"1","lines":[{"sku":"a","count":100}]}', Reason.OUT_OF_RANGE, "lines"),
        (b'{"order_id":"1","lines":[{"sku":"a","count":"s3cret"}]}', Reason.WRONG_TYPE, "lines[0].count: Expected `int`"),
        (b'{"order_id":"1","lines":[{"count":1}]}', Reason.MISSING_FIELD, "lines[0] has no sku, which is required"),
        (b'{"order_id":"1","lines":[{"sku":"s3cret\\u0000"}]}', Reason.BAD_TEXT, "lines must not contain a NUL"),
        (b'{"order_id":"1","labels":{"s3cret\\u0000":"x"}}', Reason.BAD_TEXT, "labels must not contain a NUL"),
        (b'{"order_id":"1","labels":{"x":"s3cret\\u0000"}}', Reason.BAD_TEXT, "labels must not contain a NUL"),
    ],
)
def test_the_rules_hold_at_any_depth(data: bytes, reason: Reason, detail: str) -> None:
    """The text names the place and never the value."""
    with pytest.raises(MessageError) as caught:
        PLACED.decode(data)
    assert (caught.value.reason, detail in caught.value.detail) == (reason, True)
    assert "s3cret" not in caught.value.detail


def test_a_lone_surrogate_is_found_at_any_depth_of_what_code_builds() -> None:
    """JSON cannot bring one, a program can."""
    for fields in ({"labels": {"x": "\ud800"}}, {"lines": [{"sku": "\ud800"}]}):
        with pytest.raises(MessageError, match="must not contain a lone surrogate"):
            PLACED.build({"order_id": "1", **fields})


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({}, []),
        ({"colour": 1, "size": 2}, ["colour", "size"]),
        ({"bob@example.com": 1, "a b": 2, "x" * 65: 3}, [UNREADABLE_NAME]),
        ({"\U0001f600": 1, "note": 1}, [UNREADABLE_NAME, "note"]),
    ],
)
def test_unknown_fields_are_named_if_they_are_plain_words(extra: dict[str, Any], names: list[str]) -> None:
    """Any other name may be a person's data."""
    message = {"order_id": "1", "lines": [{"sku": "a"}], **extra}
    assert list(PLACED.unknown_fields(json.dumps(message, ensure_ascii=False).encode())) == names


def test_of_a_large_message_one_unknown_field_is_enough() -> None:
    """INV-7: its fields are not all built to be named."""
    large = {"order_id": "1", "customer": "x" * 70_000, "first": 1, "second": [[]] * 1000}
    assert PLACED.unknown_fields(json.dumps(large).encode()) == ["first"]
    assert PLACED.unknown_fields(json.dumps(large | {"first": 1}).replace("first", "a@b").encode()) == [UNREADABLE_NAME]


class Checked(msgspec.Struct):
    """Its own check looks something up, and its default divides."""

    order_id: str
    total: Any = msgspec.field(default_factory=lambda: 1 // 0)

    def __post_init__(self) -> None:
        """Look up what is not there."""
        raise KeyError(self.order_id)


@pytest.mark.parametrize("data", [b'{"order_id":"s3cret"}', b'{"order_id":"s3cret","total":1}'])
def test_whatever_a_class_raises_its_message_fails_alone(data: bytes) -> None:
    """INV-6: msgspec passes on what is neither a ValueError nor a TypeError. Answered 500, it would come again for ever."""
    with pytest.raises(MessageError, match=r"a check of Checked failed: (KeyError|ZeroDivisionError)") as caught:
        declared(content=Checked).decode(data)
    with pytest.raises(MessageError, match="a check of Checked failed"):
        declared(content=Checked).build(json.loads(data))
    assert (caught.value.reason, "s3cret" in caught.value.detail) == (Reason.OUT_OF_RANGE, False)


class Anything(msgspec.Struct):
    """Holds any JSON."""

    order_id: str
    extra: Any = None


def test_any_depth_is_read_or_refused() -> None:
    """Also where msgspec still reads a value, and the search for a NUL in it does not reach its end."""
    event = declared(content=Anything)
    read = set()
    for depth in range(100, 1200):
        with contextlib.suppress(MessageError):
            event.decode(b'{"order_id":"\\u0041","extra":%s}' % (b"[" * depth + b"]" * depth))
            read.add(depth)
    assert 100 in read
    assert 1199 not in read
    nested: list[Any] = []
    for _ in range(2000):
        nested = [nested]
    with pytest.raises(MessageError, match="a field is nested too deeply"):
        event.encode(Anything("1", nested))


class Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Its fields have other names in JSON, and no others may be there."""

    order_id: str
    total_cents: int = 0


class StrictRow(Model):
    """Its columns are named as the fields are in JSON."""

    orderId = TextField(primary_key=True)  # noqa: N815  # as in JSON
    totalCents = BigIntegerField()  # noqa: N815  # as in JSON

    class Meta:
        table_name = "strict"


def test_a_class_may_forbid_unknown_fields_itself() -> None:
    """The refusal has the same reason, and no name that may be a person's data."""
    event = declared(content=Strict, model=StrictRow)
    for name, shown in (("colour", "colour"), ("bob@example.com", UNREADABLE_NAME)):
        with pytest.raises(MessageError) as caught:
            event.decode(json.dumps({"orderId": "1", name: 1}).encode())
        assert (caught.value.reason, caught.value.detail) == (
            Reason.UNKNOWN_FIELD,
            f"field {shown} is unknown to order.placed",
        )


class Kebab(msgspec.Struct, rename="kebab"):
    """Its fields' names in JSON are no words of one piece."""

    order_id: str
    the_kind: Literal["x", "y"] = "x"
    the_lines: list[Line] = []


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"{}", Reason.MISSING_FIELD, "order-id is missing; it must be a string"),
        (b'{"order-id":1}', Reason.WRONG_TYPE, "order-id must be a string"),
        (b'{"order-id":"1","the-kind":"s3cret"}', Reason.OUT_OF_RANGE, "the-kind must be one of x, y"),
        (b'{"order-id":"1","the-lines":[{}]}', Reason.MISSING_FIELD, "the-lines[0] has no sku, which is required"),
        (b'{"order-id":"1","the-lines":[{"sku":1}]}', Reason.WRONG_TYPE, "the-lines[0].sku: Expected `str`, got `int`"),
    ],
)
def test_a_name_of_several_words_is_a_name_like_others(data: bytes, reason: Reason, detail: str) -> None:
    """The text names the field, and never the value that msgspec's own text has."""
    with pytest.raises(MessageError) as caught:
        declared(content=Kebab).decode(data)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_a_field_is_known_by_its_name_in_json() -> None:
    """Wherever a declaration, a message or a person names it."""
    event = declared(content=Strict, model=StrictRow, subject="orderId")
    content = event.build({"orderId": "7", "totalCents": 5})
    assert (event.value(content, "totalCents"), event.value(content, "total_cents")) == (5, None)
    with pytest.raises(MessageError, match="totalCents must be an integer"):
        event.decode(b'{"orderId":"7","totalCents":"5"}')


def test_the_fields_of_a_program_are_checked_like_those_of_a_message() -> None:
    """An unknown one is refused with those that there are."""
    with pytest.raises(MessageError, match=r"order.placed has no field colour; it has order_id, customer, total"):
        PLACED.build({"order_id": "1", "colour": "red"})
