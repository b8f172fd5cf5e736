"""Reads receipts: how many there are of a span, by outcome. Runs on a reading connection."""

from typing import Any

from peewee import fn

from worker.database.models import Connection, Receipt


def since(database: Connection, milliseconds: int) -> dict[str, Any]:
    """The receipts of messages published at that time or later: their number by outcome, and the span's ends.

    It reads every receipt once: a second for a few million.
    """
    first, last = fn.MIN(Receipt.publish_time), fn.MAX(Receipt.publish_time)
    query = Receipt.select(Receipt.outcome, fn.COUNT(Receipt.message_id), first, last)
    query = query.where(Receipt.publish_time >= milliseconds).group_by(Receipt.outcome).tuples()
    rows: list[tuple[str, int, int, int]] = list(query.bind(database))  # type: ignore[arg-type]  # of tuples
    return {
        "total": sum(count for _, count, _, _ in rows),
        "outcomes": {outcome: count for outcome, count, _, _ in rows},
        "oldest_publish_time": min((oldest for *_, oldest, _ in rows), default=None),
        "newest_publish_time": max((newest for *_, newest in rows), default=None),
    }
