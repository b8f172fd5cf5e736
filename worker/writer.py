"""The writer: one thread, one connection, one transaction per group. This file alone decides what a message does.

    submit() ──> pending ──gather──> group ──thread: BEGIN IMMEDIATE … COMMIT──> replication.py, which answers

INV-3: the receipt of a message is written in the transaction of its effect, so a message has one effect however often it
comes. INV-6: a row that only the database can refuse is found by writing the group again one message at a time.
A group is committed while an earlier one is being confirmed; it is gathered for GROUP_GATHER_SECONDS at most, less when
no confirmation is under way, and never grows over GROUP_MAX_MESSAGES (INV-7).

The writer does not know what confirmation is: it never answers a message that the database accepted.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import peewee

from worker.errors import Refused, Unwritable
from worker.group import Entry, Group, Outcome, fail
from worker.models import Receipt, Rejection, User

_OUTAGE_PAUSE_SECONDS: Final = 0.2
_ROW_ERRORS: Final = (
    peewee.IntegrityError,
    peewee.DataError,
    peewee.InterfaceError,
    peewee.ProgrammingError,
    ValueError,
    OverflowError,
)
"""What a row can cause. Any other database error (locked, full, damaged) says nothing about a message (INV-9)."""

log = logging.getLogger(__name__)


class Committed(Protocol):
    """Where groups go once they are committed."""

    @property
    def idle(self) -> asyncio.Event:
        """Set while no confirmation is under way: a group committed now is confirmed at once."""

    def add(self, group: Group) -> None:
        """Take over a committed group; from here on it is not the writer's to answer."""


@dataclass(slots=True)
class _Plan:
    """The rows one group writes."""

    users: list[dict[str, Any]] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    rejections: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def plan(
    entries: Sequence[Entry],
    *,
    receipts: Iterable[str],
    users: Mapping[int, Mapping[str, Any]],
    epoch: int,
    now: int,
) -> _Plan:
    """Decide the outcome of each message of a group, in order. Pure.

    Args:
        entries: The group.
        receipts: Those of its message ids that have been handled before.
        users: The rows there already are for its user ids.
        epoch: The writer life, kept in each receipt.
        now: Milliseconds since the epoch.
    """
    made = _Plan()
    handled, rows = set(receipts), dict(users)
    for entry in entries:
        outcome = _outcome(entry, handled, rows)
        made.outcomes.append(outcome)
        if outcome == "duplicate":
            continue
        if outcome == "created":
            row = _row(entry)
            rows[entry.user.user_id] = row
            made.users.append(row)
        elif outcome == "conflict":
            made.rejections.append(_rejection(entry, rows[entry.user.user_id], now))
        handled.add(entry.delivery.message_id)
        made.receipts.append(_receipt(entry, outcome, epoch, now))
    return made


class Writer:
    """Commits what is submitted. `_pending` and `_wake` belong to the event loop, the connection to the one thread."""

    def __init__(
        self,
        database: peewee.SqliteDatabase,
        committed: Committed,
        *,
        epoch: int,
        group_max: int,
        gather_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._committed = committed
        self.epoch = epoch
        """The writer life, kept in each receipt; changed only while `paused`."""
        self._group_max, self._gather_seconds = group_max, gather_seconds
        self._wall_clock = wall_clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._committing = asyncio.Lock()  # held from taking a group to handing it over

    def __repr__(self) -> str:
        return f"<Writer at epoch {self.epoch}, {len(self._pending)} pending>"

    async def __aenter__(self) -> "Writer":
        await self._on_thread(self._database.connect)
        return self

    async def __aexit__(self, *_: object) -> None:
        fail(self._pending, Refused("the service is stopping; the queue delivers this again"))
        self._pending.clear()
        await self._on_thread(self._database.close)  # after the transaction that may still run on the thread
        self._thread.shutdown()

    def submit(self, entry: Entry) -> None:
        """Queue a message. Its `done` gets the outcome once that is confirmed, or the error that answers it."""
        self._pending.append(entry)
        self._wake.set()

    async def run(self) -> None:
        """Commit groups until cancelled. A database that refuses everything is an outage: 503, and on we go (INV-9)."""
        while True:
            await self._wake.wait()
            await self._gather()
            async with self._committing:
                await self._commit_next()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is committed, or on its way to the replicator, while the block runs; what comes in waits."""
        async with self._committing:
            yield

    async def _commit_next(self) -> None:
        entries = [self._pending.popleft() for _ in range(min(self._group_max, len(self._pending)))]
        if not self._pending:
            self._wake.clear()
        entries = [entry for entry in entries if not entry.done.done()]
        if not entries:
            return
        try:
            group = await self._on_thread(self._commit, entries)
        except peewee.DatabaseError as error:
            log.error("a group was not committed: %s", error, extra={"action": "writer.outage"})
            fail(entries, Refused("the database cannot be written now; the queue delivers this again"))
            await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
        except BaseException:
            # Cancelled, or a bug: the transaction may still commit, but nobody will confirm it.
            fail(entries, Refused("the service is stopping; the queue delivers this again"))
            raise
        else:
            if group.entries:
                self._committed.add(group)

    async def _gather(self) -> None:
        """Let a group grow while it would only wait for the confirmation before its own."""
        if len(self._pending) < self._group_max and not self._committed.idle.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_seconds):
                    await self._committed.idle.wait()

    async def _on_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def _commit(self, entries: list[Entry]) -> Group:
        try:
            return Group(entries, self._write(entries))
        except _ROW_ERRORS as error:
            log.warning(
                "a group is written one message at a time: %s",
                type(error).__name__,
                extra={"action": "writer.isolate"},
            )
            return self._commit_singly(entries)

    def _commit_singly(self, entries: list[Entry]) -> Group:
        group = Group([], [])
        for entry in entries:
            try:
                outcomes = self._write([entry])
            except _ROW_ERRORS:
                log.exception("the database refused a valid message", extra={"action": "writer.refused"})
                refused = Unwritable("the database refused this message; it stays in the queue, and the log says why")
                loop = entry.done.get_loop()
                loop.call_soon_threadsafe(fail, [entry], refused)
            else:
                group.entries.append(entry)
                group.outcomes += outcomes
        return group

    def _write(self, entries: list[Entry]) -> list[Outcome]:
        """One transaction. After it returns the group is on this machine's disk, and nowhere else yet."""
        database = self._database
        with database.atomic("IMMEDIATE"):
            made = plan(
                entries,
                receipts=self._handled([entry.delivery.message_id for entry in entries]),
                users=self._existing([entry.user.user_id for entry in entries]),
                epoch=self.epoch,
                now=round(self._wall_clock() * 1000),
            )
            # Never "or ignore": that would drop a row that any constraint refuses, and its message would be acknowledged.
            for model, rows in ((User, made.users), (Receipt, made.receipts)):
                if rows:
                    model.insert_many(rows).execute(database)
            if made.rejections:  # kept longer than its receipt, so a late replay may meet the one it made before
                Rejection.insert_many(made.rejections).on_conflict_ignore().execute(database)
        return made.outcomes

    def _handled(self, message_ids: list[str]) -> list[str]:
        query = Receipt.select(Receipt.message_id).where(Receipt.message_id.in_(message_ids)).tuples()
        rows: Iterable[tuple[str]] = query.bind(self._database).iterator()
        return [message_id for (message_id,) in rows]

    def _existing(self, user_ids: list[int]) -> dict[int, dict[str, Any]]:
        query = User.select().where(User.user_id.in_(user_ids)).dicts()
        rows: Iterable[dict[str, Any]] = query.bind(self._database).iterator()
        return {row["user_id"]: row for row in rows}


def _outcome(entry: Entry, handled: set[str], rows: Mapping[int, Mapping[str, Any]]) -> Outcome:
    if entry.delivery.message_id in handled:
        return "duplicate"
    row = rows.get(entry.user.user_id)
    if row is None:
        return "created"
    user = entry.user
    same = (row["email_address"], row["settings"]) == (user.email_address, user.settings)
    # A message that states no time says nothing that could differ: its publish time is not content.
    return "exists" if same and user.created_at in (None, row["created_at"]) else "conflict"


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "user_id": entry.user.user_id,
        "email_address": entry.user.email_address,
        "created_at": entry.created_at,
        "deleted": 0,
        "settings": entry.user.settings,
    }


def _receipt(entry: Entry, outcome: Outcome, epoch: int, now: int) -> dict[str, Any]:
    return {
        "message_id": entry.delivery.message_id,
        "user_id": entry.user.user_id,
        "outcome": outcome,
        "publish_time": entry.delivery.publish_time,
        "processed_at": now,
        "epoch": epoch,
    }


def _rejection(entry: Entry, row: Mapping[str, Any], now: int) -> dict[str, Any]:
    return {
        "message_id": entry.delivery.message_id,
        "reason": "conflict",
        "detail": msgspec.json.encode({"stored": dict(row), "message": _row(entry)}).decode(),
        "data": entry.delivery.data,
        "attributes": msgspec.json.encode(entry.delivery.attributes).decode(),
        "publish_time": entry.delivery.publish_time,
        "received_at": now,
        "resolved_at": None,
    }
