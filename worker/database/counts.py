"""Counts a database's rows for a drill. Runs on a reading connection, in one transaction: the counts are of one moment."""

from datetime import UTC, datetime

import msgspec

from worker.database.models import Connection, Receipt, Rejection, User


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a database: all users, how many of them are erased ones, and the receipts and rejections since a time.

    The last message is of that span.
    """

    users: int
    erased: int
    receipts: int
    rejections: int
    last_message: str | None
    last_message_at: datetime | None


class ServiceCounts(Counts, frozen=True, kw_only=True):
    """The service's rows, all confirmed in the bucket, and the epoch of the writer life that confirmed them."""

    epoch: int


def count(database: Connection, since: int) -> Counts:
    """Count the rows; `since` is in milliseconds since the epoch, and for receipts and rejections."""
    with database.atomic():
        receipts = Receipt.select().where(Receipt.processed_at >= since)
        newest = receipts.order_by(Receipt.processed_at.desc(), Receipt.message_id.desc()).limit(1)
        last = newest.bind(database).first()
        return Counts(
            users=User.select().bind(database).count(),
            erased=User.select().where(User.deleted == 1).bind(database).count(),
            receipts=receipts.bind(database).count(),
            rejections=Rejection.select().where(Rejection.received_at >= since).bind(database).count(),
            last_message=last and last.message_id,
            last_message_at=last and datetime.fromtimestamp(last.processed_at / 1000, UTC),
        )


def has_receipt(database: Connection, message_id: str) -> bool:
    """Whether a message was handled."""
    return bool(Receipt.select().where(Receipt.message_id == message_id).bind(database).exists())
