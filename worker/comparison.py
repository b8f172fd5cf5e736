"""Databases at rest: what one holds, and what one state of a store has that an earlier one has not.

Nothing is written beside the files, so they stay as they were restored.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import peewee

from worker.models import Connection, Receipt, Rejection, User
from worker.transaction import DISCARDED


def count(path: Path) -> dict[str, Any]:
    """What a database at rest holds: its rows, and the message that was handled last."""
    with _at_rest(path) as database:
        newest = Receipt.select().order_by(Receipt.processed_at.desc(), Receipt.message_id.desc()).dicts()
        last: dict[str, Any] | None = newest.bind(database).first()
        return {
            "users": User.select().bind(database).count(),
            "receipts": Receipt.select().bind(database).count(),
            "rejections": Rejection.select().bind(database).count(),
            "open_rejections": Rejection.select().where(Rejection.resolved_at.is_null()).bind(database).count(),
            "last_message": last and last["message_id"],
            "last_message_at": last and datetime.fromtimestamp(last["processed_at"] / 1000, UTC),
        }


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """What one state of a store has and an earlier one has not.

    `messages` are the receipts that only the newer one has, by message id; `outcomes` counts them. `retried` are the
    messages that both have and that were retried in between. Publish times are in milliseconds since the epoch.
    """

    messages: list[str]
    outcomes: dict[str, int]
    retried: list[str]
    discarded: list[str]
    oldest_publish_time: int | None
    newest_publish_time: int | None


def undone(*, newer: Path, older: Path) -> Undone:
    """Compare two databases at rest."""
    messages, outcomes, retried, times = [], Counter[str](), [], []
    with _at_rest(newer) as new, _at_rest(older) as old:
        for receipt, before in _joined(_receipts(new), _receipts(old)):
            if before is None:
                messages.append(receipt["message_id"])
                outcomes[receipt["outcome"]] += 1
                times.append(receipt["publish_time"])
            elif before["outcome"] != receipt["outcome"]:
                retried.append(receipt["message_id"])
        given_up = Rejection.resolution == DISCARDED
        discarded = {row.message_id for row in Rejection.select().where(given_up).bind(new).iterator()}
        discarded -= {row.message_id for row in Rejection.select().where(given_up).bind(old).iterator()}
    return Undone(
        messages=messages,
        outcomes=dict(outcomes),
        retried=retried,
        discarded=sorted(discarded - set(messages)),
        oldest_publish_time=min(times, default=None),
        newest_publish_time=max(times, default=None),
    )


def _receipts(database: Connection) -> Iterator[dict[str, Any]]:
    rows: Iterator[dict[str, Any]] = iter(Receipt.select().order_by(Receipt.message_id).dicts().bind(database).iterator())
    return rows


def _joined(
    rows: Iterator[dict[str, Any]], others: Iterator[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Each row with the other of its message id, or None. Both are in the order of their ids; neither is kept."""
    other = next(others, None)
    for row in rows:
        while other is not None and other["message_id"] < row["message_id"]:
            other = next(others, None)
        yield row, other if other is not None and other["message_id"] == row["message_id"] else None


@contextlib.contextmanager
def _at_rest(path: Path) -> Iterator[Connection]:
    """A database that nobody writes; nothing is written beside it."""
    database = peewee.SqliteDatabase(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, autoconnect=False)
    with database.connection_context():
        yield database
