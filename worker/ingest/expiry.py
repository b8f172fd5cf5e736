"""Receipts and rejections past their time are deleted, a bounded number at once, between the groups of messages.

The tables are walked by their primary key on a reading connection, so no index is kept for it and no message waits for the
walk; only the deletions go through the writer, confirmed like everything else.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from worker.database.models import Connection, Receipt, Rejection
from worker.errors import RequestError
from worker.ingest.tables import Tables
from worker.ingest.transaction import Transaction

T = TypeVar("T")

STEP_ROWS: Final = 2000
"""Most rows deleted in one transaction: about as long as a group of messages."""
_DAY_MILLISECONDS: Final = 86_400_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expiry:
    """How long rows are kept.

    A receipt is kept at least as long as its message can be delivered again: Pub/Sub replays 31 days at most (Pub/Sub
    documentation, "Replay and purge messages"). Without it, INV-3 would rest on the user's row alone.
    """

    receipt_days: float
    rejection_days: float
    step_rows: int = STEP_ROWS
    wall_clock: Callable[[], float] = time.time

    async def run(
        self, database: Tables, *, interval_seconds: float, may: Callable[[], Awaitable[bool]] | None = None
    ) -> None:
        """Delete what is past its time now and every `interval_seconds`, if `may` then says so, until cancelled."""
        while True:
            try:
                if may is None or await may():
                    await self.once(database)
            except RequestError as error:
                log.warning("expiry is put off: %s", error, extra={"action": "expiry.retry"})
            await asyncio.sleep(interval_seconds)

    async def once(self, database: Tables) -> dict[str, int]:
        """Delete what is past its time now; how many rows of each table.

        Raises:
            RequestError: It was interrupted; what is deleted is deleted.
        """
        now = self.wall_clock() * 1000
        receipts = await self._walk(database, Receipt, Receipt.processed_at, now - self.receipt_days * _DAY_MILLISECONDS)
        rejected = await self._walk(
            database, Rejection, Rejection.received_at, now - self.rejection_days * _DAY_MILLISECONDS
        )
        if receipts or rejected:
            log.info("deleted %d receipts and %d rejections", receipts, rejected, extra={"action": "expiry.deleted"})
        return {"receipts": receipts, "rejections": rejected}

    async def _walk(self, database: Tables, model: Any, kept_since: Any, before: float) -> int:
        deleted, last = 0, ""
        while True:
            rows = await database.read(partial(_rows_after, model, kept_since, last, self.step_rows))
            if not rows:
                return deleted
            last = rows[-1][0]
            if gone := [message_id for message_id, moment in rows if moment < before]:
                if model is Rejection:
                    await self._warn_of_open_ones(database, gone)
                deleted += await database.change(partial(_delete, model, gone))

    async def _warn_of_open_ones(self, database: Tables, message_ids: list[str]) -> None:
        condition = Rejection.message_id.in_(message_ids) & Rejection.resolved_at.is_null()
        query = Rejection.select().where(condition)
        unresolved = await database.read(lambda connection: query.bind(connection).count())
        if unresolved:
            log.warning(
                "%d rejections are deleted that were still open after REJECTION_DAYS",
                unresolved,
                extra={"action": "expiry.unresolved"},
            )


def _rows_after(model: Any, kept_since: Any, last: str, limit: int, connection: Connection) -> list[tuple[str, int]]:
    query = model.select(model.message_id, kept_since).where(model.message_id > last).order_by(model.message_id).limit(limit)
    return list(query.tuples().bind(connection))


def _delete(model: Any, message_ids: list[str], transaction: Transaction) -> int:
    deleted: int = model.delete().where(model.message_id.in_(message_ids)).execute(transaction.database)
    return deleted
