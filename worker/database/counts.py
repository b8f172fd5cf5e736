"""Counts a database's rows for a drill. Runs on a reading connection, in one transaction: the counts are of one moment."""

from datetime import UTC, datetime

import msgspec

from worker.database.models import Connection, Erased, Receipt, Rejection
from worker.events.catalog import Catalog


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a database holds: the rows of each event's table, erased subjects, and the receipts and rejections since a time.

    The last message is of that span.
    """

    rows: dict[str, int]
    erased: int
    receipts: int
    rejections: int
    last_message: str | None
    last_message_at: datetime | None


class ServiceCounts(Counts, frozen=True, kw_only=True):
    """The service's rows, all confirmed in the bucket, and the epoch of the writer life that confirmed them."""

    epoch: int


def rows(database: Connection, catalog: Catalog) -> dict[str, int]:
    """The number of rows of each event's table; 0 for one that a state of an earlier version has not."""
    there = set(database.get_tables())
    return {
        table.name: table.model.select().bind(database).count() if table.name in there else 0
        for table in catalog.tables.values()
    }


def count(database: Connection, catalog: Catalog, since: int) -> Counts:
    """Count the rows; `since` is in milliseconds since the epoch, and for receipts and rejections."""
    with database.atomic():
        receipts = Receipt.select().where(Receipt.processed_at >= since)
        newest = receipts.order_by(Receipt.processed_at.desc(), Receipt.message_id.desc()).limit(1)
        last = newest.bind(database).first()
        return Counts(
            rows=rows(database, catalog),
            erased=Erased.select().bind(database).count(),
            receipts=receipts.bind(database).count(),
            rejections=Rejection.select().where(Rejection.received_at >= since).bind(database).count(),
            last_message=last and last.message_id,
            last_message_at=last and datetime.fromtimestamp(last.processed_at / 1000, UTC),
        )


def has_receipt(database: Connection, message_id: str) -> bool:
    """Whether a message was handled."""
    return bool(Receipt.select().where(Receipt.message_id == message_id).bind(database).exists())
