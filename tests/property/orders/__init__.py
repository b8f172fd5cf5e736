"""A second event beside users, as an adopter would declare it: orders are placed once, and changed by revisions."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from peewee import BigIntegerField, Model, TextField

from worker.events.declaration import Event

Number = Annotated[int, Meta(ge=1)]


class OrderPlaced(msgspec.Struct, frozen=True, kw_only=True):
    """An order of a customer."""

    order_id: Number
    customer_id: Number
    note: str | None = None


class OrderChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Another content of an order; the highest revision counts."""

    order_id: Number
    customer_id: Number
    revision: Annotated[int, Meta(ge=0)]
    note: str | None = None


class Order(Model):
    """One order."""

    order_id = BigIntegerField(primary_key=True)
    customer_id = BigIntegerField()
    note = TextField(null=True)

    class Meta:
        table_name = "orders"


def _row(order: OrderPlaced | OrderChanged, _: int) -> tuple[int, int, str | None]:
    return order.order_id, order.customer_id, order.note


EVENTS: Final = [
    Event("order.placed", OrderPlaced, Order, row=_row, subject="customer_id", readable=True),
    Event("order.changed", OrderChanged, Order, row=_row, subject="customer_id", when_there="newest", version="revision"),
]
MIGRATIONS: Final = Path(__file__).parent / "migrations"
