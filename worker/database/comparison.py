"""Databases at rest: what one holds, and what one state of a store has that an earlier one has not.

Nothing is written beside the files, so they stay as they were restored.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import peewee

from worker.database.counts import rows
from worker.database.models import DISCARDED, Connection, Receipt, Rejection
from worker.events.catalog import Catalog


def count(path: Path, catalog: Catalog) -> dict[str, Any]:
    """Count the rows of a database at rest, and find the message that was handled last."""
    with _at_rest(path) as database:
        newest = Receipt.select().order_by(Receipt.processed_at.desc(), Receipt.message_id.desc()).dicts()
        last: dict[str, Any] | None = newest.bind(database).first()
        return {
            "rows": rows(database, catalog),
            "receipts": Receipt.select().bind(database).count(),
            "rejections": Rejection.select().bind(database).count(),
            "open_rejections": Rejection.select().where(Rejection.resolved_at.is_null()).bind(database).count(),
            "last_message": last and last["message_id"],
            "last_message_at": last and datetime.fromtimestamp(last["processed_at"] / 1000, UTC),
        }


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that one state of a store has and an earlier one has not.

    `messages` are the receipts that only the newer one has, by message id; `outcomes` counts them. `retried` are the
    messages that both have and that were retried in between. Publish times are in milliseconds since the epoch.
    `before` is how many of the messages the newer one has not either: an earlier recovery has undone them.
    """

    messages: list[str]
    outcomes: dict[str, int]
    retried: list[str]
    discarded: list[str]
    oldest_publish_time: int | None
    newest_publish_time: int | None
    before: int = 0


def undone(*, newer: Path, older: Path, replaced: Sequence[Path] = ()) -> Undone:
    """Compare databases at rest.

    Args:
        newer: The state that is to be undone.
        older: The state that is to be live again.
        replaced: States that recoveries made since then have undone already.
    """
    found = _Found(older)
    found.compare(newer)
    live = len(found.published)
    for path in replaced:
        found.compare(path)
    published = sorted(found.published.items())
    return Undone(
        messages=[message_id for message_id, _ in published],
        outcomes=dict(found.outcomes),
        retried=sorted(found.retried),
        discarded=sorted(found.discarded - found.published.keys()),
        oldest_publish_time=min(found.published.values(), default=None),
        newest_publish_time=max(found.published.values(), default=None),
        before=len(published) - live,
    )


class _Found:
    """The messages that newer states have and the older one has not, each counted once."""

    def __init__(self, older: Path) -> None:
        self._older = older
        self.published: dict[str, int] = {}  # publish times by message id
        self.outcomes: Counter[str] = Counter()
        self.retried: set[str] = set()
        self.discarded: set[str] = set()

    def compare(self, newer: Path) -> None:
        """Add what one newer state has."""
        with _at_rest(newer) as new, _at_rest(self._older) as old:
            for receipt, before in _joined(_receipts(new), _receipts(old)):
                message_id = receipt["message_id"]
                if before is None and message_id not in self.published:
                    self.published[message_id] = receipt["publish_time"]
                    self.outcomes[receipt["outcome"]] += 1
                elif before is not None and before["outcome"] != receipt["outcome"]:
                    self.retried.add(message_id)
            self.discarded |= _given_up(new) - _given_up(old)


def _given_up(database: Connection) -> set[str]:
    query = Rejection.select().where(Rejection.resolution == DISCARDED)
    return {row.message_id for row in query.bind(database).iterator()}


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
    """A database without a writer, opened so that nothing is written beside it."""
    database = peewee.SqliteDatabase(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, autoconnect=False)
    with database.connection_context():
        yield database
