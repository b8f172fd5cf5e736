"""Hostile messages of the events that examples/orders declares: the same kinds of damage, with a text as the key."""

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

from tests.integration.hostile import (
    BAD_UTF_8,
    BEYOND,
    DATA_MAX,
    DEEP,
    LONG,
    MARK,
    NO_NUMBER,
    ODD,
    SURROGATES,
    Hostile,
    Kept,
    Row,
    good_data,
    mark,
    new_user,
    no_number,
    tag_of,
    wrap,
)

PLACED: Final = "order.placed"
CHANGED: Final = "order.changed"
KEY_MAX: Final = 40
"""Longest order id, in characters."""
REQUIRED: Final = ("order_id", "customer_id", "total_cents")

Order = dict[str, Any]
Data = tuple[str, bytes, str | Order]
"""A name, a message's data, and the reasons it may be kept for or the columns of its row."""


def corpus() -> list[Hostile]:
    """All of them."""
    placed = itertools.chain(numbers(), types(), keys(), texts(), encodings(), shapes(), large())
    return [*_of(PLACED, placed), *_of(CHANGED, revisions()), *strangers()]


def order(**others: Any) -> Order:
    """An order that keeps to the format, but for what is given; `...` leaves a field out."""
    fields = {"order_id": f"{MARK}-{tag_of(mark())}", "customer_id": new_user(), "total_cents": 100, "note": mark()}
    return {name: value for name, value in (fields | others).items() if value is not ...}


def around(place: str, raw: bytes, **others: Any) -> bytes:
    """An order with these bytes as the value of a field."""
    return json.dumps(order(**others) | {place: "PLACE"}).encode().replace(b'"PLACE"', raw)


def stored(fields: Order) -> tuple[bytes, Order]:
    """An order as data, and as the row that it makes."""
    return json.dumps(fields).encode(), {"note": None, "revision": 0} | fields


def numbers() -> Iterator[Data]:
    """Integers that are too small or too large, what only looks like one, and the largest that is none of these."""
    for place in ("customer_id", "total_cents"):
        for raw in [*BEYOND, *(["0", "-0"] if place == "customer_id" else [])]:
            yield f"{place} {raw[:30]} of {len(raw)}", around(place, raw.encode()), "out_of_range"
        for raw in NO_NUMBER:
            yield f"{place} is {raw}", around(place, raw.encode()), no_number(raw)
    for name, raw in LONG.items():
        for place, reason in (("order_id", "wrong_type"), ("total_cents", "out_of_range"), ("note", "wrong_type")):
            yield f"{name} as {place}", around(place, raw.encode()), reason
    yield "orders: the largest numbers", *stored(order(customer_id=2**63 - 1, total_cents=2**63 - 1))


def types() -> Iterator[Data]:
    """JSON of another type than the field's; and as many brackets as no reader goes into."""
    other = ["true", "false", "[]", "{}", "[5]", '{"a":5}', "0.1", "-1.5", "1e999"]
    for place in (*REQUIRED, "note"):
        number = place in ("customer_id", "total_cents")
        values = [*other, *(['"5"', '""', "5.0", "1e3", "null"] if number else ["5", "0"])]
        for raw in [*values, *(["null"] if place == "order_id" else [])]:
            yield f"{place} of type {raw}", around(place, raw.encode()), "wrong_type"
        yield f"{DEEP} arrays in {place}", around(place, b"[" * DEEP + b"]" * DEEP), "wrong_type"


def keys() -> Iterator[Data]:
    """Every text is a key that is not empty, not too long, and can be stored at all."""
    for name, text in {"no letter": "", "41 letters": "x" * 41, "41 emoji": "😀" * 41, "1,000,000": "x" * 10**6}.items():
        yield f"order id of {name}", around("order_id", json.dumps(text).encode()), "out_of_range"
    for odd in [*ODD, ".", "..", "null", "0", "x" * KEY_MAX, "😀" * KEY_MAX]:
        if "\0" in odd:
            yield f"order id {odd!r}", around("order_id", json.dumps(odd).encode()), "bad_text"
        else:
            yield f"order id {odd!r}", *stored(order(order_id=odd))


def texts() -> Iterator[Data]:
    """Text that cannot be stored."""
    for place in ("order_id", "note"):
        for escaped in SURROGATES:
            yield f"{escaped} in {place}", around(place, f'"{mark()}{escaped}"'.encode()), "bad_text|not_json"
        for shape in ("\\u0000", "{}\\u0000", "{0}\\u0000{0}"):
            yield f"{shape} in {place}", around(place, f'"{shape.format(mark())}"'.encode()), "bad_text"


def encodings() -> Iterator[Data]:
    """Not UTF-8."""
    for bad in BAD_UTF_8:
        for place in ("order_id", "note", "unknown"):
            yield f"{bad.hex()} in {place}", around(place, b'"%s%s"' % (mark().encode(), bad)), "not_utf8"


def shapes() -> Iterator[Data]:
    """A field that is missing, written otherwise, or there twice."""
    for name in REQUIRED:
        yield f"no {name}", json.dumps(order(**{name: ...})).encode(), "missing_field"
        yield f"{name.upper()}", json.dumps(order(**{name: ..., name.upper(): 5})).encode(), "missing_field"
    fields = order(note=...)
    twice = json.dumps(fields).encode()[:-1] + b',"total_cents":7,"unknown":{"total_cents":8}}'
    yield "total_cents twice", twice, stored(fields | {"total_cents": 7})[1]
    whole = json.dumps(order()).encode()
    for cut in range(1, len(whole), 3):
        yield f"order cut after {cut} bytes", whole[:cut], "not_json"


def large() -> Iterator[Data]:
    """As large as Pub/Sub lets a message be."""
    fields = order(note="")
    fields["note"] = mark().ljust(DATA_MAX - len(json.dumps(fields)), "x")
    yield "an order of 10,000,000 bytes", *stored(fields)


def revisions() -> Iterator[Data]:
    """The version is a field like any other, and its largest value is stored."""
    for raw in [*BEYOND, "0", *(digits for digits in LONG.values())]:
        yield f"revision {raw[:30]} of {len(raw)}", around("revision", raw.encode()), "out_of_range"
    for raw in ("null", '"5"', "5.0", "true", "[]"):
        yield f"revision of type {raw}", around("revision", raw.encode()), "wrong_type"
    yield "no revision", json.dumps(order()).encode(), "missing_field"
    yield "the largest revision", *stored(order(revision=2**63 - 1))


def strangers() -> Iterator[Hostile]:
    """What one event's data is under another event's name, and names that are none."""
    for name, data, event, reason in (
        ("an order as a user", json.dumps(order()).encode(), "user.created", "missing_field"),
        ("a user as an order", good_data(new_user()), PLACED, "missing_field"),
        ("a user as a change", good_data(new_user()), CHANGED, "missing_field"),
        ("an order of no event", json.dumps(order()).encode(), "orders", "unknown_event"),
        ("an order of an event in capitals", json.dumps(order()).encode(), "ORDER.PLACED", "unknown_event"),
    ):
        attributes = {"event_type": event}
        fate = Kept(tag_of(name), frozenset([reason]), data, attributes)
        yield Hostile(name, wrap(tag_of(name), data, attributes=attributes), fate)


def _of(event: str, every: Iterator[Data]) -> Iterator[Hostile]:
    attributes = {"event_type": event}
    for name, data, wanted in every:
        tag = tag_of(f"{event}: {name}")
        if isinstance(wanted, str):
            fate: Kept | Row = Kept(tag, frozenset(wanted.split("|")), data, attributes)
        else:
            columns = {name: value for name, value in wanted.items() if name != "unknown"}
            fate = Row(tag, wanted["order_id"], columns, "orders")
        yield Hostile(f"{event}: {name}", wrap(tag, data, attributes=attributes), fate)
