"""Events as an adopter declares them: keys and subjects are texts, and an integer orders the versions."""

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from peewee import BigIntegerField, Model, TextField

from worker.events.catalog import Catalog, Content, Problem
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE, Event
from worker.ingest.messages import Delivery, Entry


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order."""

    sku: str
    count: Annotated[int, Meta(ge=1, le=99)] = 1


class OrderPlaced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order."""

    order_id: str
    customer: str | None = None
    total: Annotated[int, Meta(ge=0)] = 0
    express: bool = False
    lines: list[Line] = []
    labels: dict[str, str] = {}


class OrderChanged(msgspec.Struct, frozen=True, kw_only=True):
    """What an order costs from its version `sequence` on."""

    order_id: str
    customer: str | None = None
    total: int
    sequence: int


class Order(Model):
    """One order."""

    order_id = TextField(primary_key=True)
    customer = TextField(null=True)
    total = BigIntegerField()
    lines = TextField(null=True)

    class Meta:
        table_name = "orders"


def _placed(order: OrderPlaced, _: int) -> tuple[Any, ...]:
    return order.order_id, order.customer, order.total, msgspec.json.encode(order.lines).decode()


def _changed(order: OrderChanged, _: int) -> tuple[Any, ...]:
    return order.order_id, order.customer, order.total, None


PLACED: Final = Event("order.placed", OrderPlaced, Order, row=_placed, subject="customer", readable=True)
CHANGED: Final = Event(
    "order.changed",
    OrderChanged,
    Order,
    row=_changed,
    subject="customer",
    when_there="newest",
    version="sequence",
    sets=("total",),
)
EVENTS: Final = [PLACED, CHANGED]
MIGRATIONS: Final = Path(__file__).parent / "migrations"


def message(catalog: Catalog, event: str, message_id: str, published: int = 1_700_000_000_000, **fields: Any) -> Entry:
    """A message as the service reads it; it has no sender."""
    data, attributes = msgspec.json.encode(fields), {EVENT_TYPE_ATTRIBUTE: event}
    delivery = Delivery(message_id=message_id, publish_time=published, data=data, attributes=attributes)
    content: Content | Problem = catalog.read(data, attributes, published)
    return Entry(delivery, content, 0.0, None)  # type: ignore[arg-type]  # no sender
