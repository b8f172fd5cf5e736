"""Orders: events of one's own, beside users. docs/events.md walks through it."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from peewee import BigIntegerField, Model, TextField

from worker.events.declaration import MAX_INTEGER, Event


class OrderPlaced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A customer, who is a user, has ordered."""

    order_id: Annotated[str, Meta(min_length=1, max_length=40)]
    customer_id: Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
    total_cents: Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
    note: str | None = None


class OrderChanged(OrderPlaced, frozen=True, kw_only=True, omit_defaults=True):
    """The whole order as it is since a revision; the highest revision wins."""

    revision: Annotated[int, Meta(ge=1, le=MAX_INTEGER)]


class Order(Model):
    """One order. `revision` is 0 as long as it is as it was placed."""

    order_id = TextField(primary_key=True)
    customer_id = BigIntegerField(index=True)
    total_cents = BigIntegerField()
    note = TextField(null=True)
    revision = BigIntegerField()

    class Meta:
        table_name = "orders"


def _row(order: OrderPlaced, _published: int) -> tuple[str, int, int, str | None, int]:
    return order.order_id, order.customer_id, order.total_cents, order.note, getattr(order, "revision", 0)


EVENTS = [
    Event("order.placed", OrderPlaced, Order, row=_row, subject="customer_id", readable=True),
    Event("order.changed", OrderChanged, Order, row=_row, subject="customer_id", when_there="newest", version="revision"),
]
MIGRATIONS = Path(__file__).parent / "migrations"
