"""Counts a database's rows for a drill. Runs on a reading connection, in one transaction: the counts are of one moment."""

from datetime import UTC, datetime

from worker.drill import Counts
from worker.models import Connection, Receipt, Rejection, User


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
