"""The writer: one thread, one connection, one transaction per group. What a message does is outcomes.py's to say.

    submit() ──> pending ──gather──> group ──thread: engine.run, BEGIN … COMMIT──> confirmation.py, which answers

INV-6: a row that only the database can refuse is found by writing the group again one message at a time, and its message
is kept as a rejection. A group is committed while an earlier one is being confirmed; it is gathered for
GATHER_SECONDS at most, less when no confirmation is under way, and never grows over GROUP_MAX_MESSAGES (INV-7).

The writer does not know what confirmation is: it never answers a message that the database accepted.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

import peewee
from msgspec import structs

from worker.database.engine import Engine
from worker.database.models import NOT_STORABLE, Connection
from worker.errors import Refused, RequestError, Unwritable
from worker.events.catalog import Catalog, Problem, without_values
from worker.ingest.messages import Change, Entry, Group, Observer, Outcome, fail
from worker.ingest.transaction import Transaction

GROUP_MAX_MESSAGES: Final = 500
"""Most messages in one transaction: beyond it a transaction grows longer and not more efficient."""
GATHER_SECONDS: Final = 0.005
"""Longest a group is gathered while an earlier one is being confirmed: the time of one sync on a fast bucket."""
_OUTAGE_PAUSE_SECONDS: Final = 0.2

T = TypeVar("T")

log = logging.getLogger(__name__)


class Committed(Protocol):
    """Where groups go once they are committed."""

    @property
    def idle(self) -> asyncio.Event:
        """Set while no confirmation is under way: a group committed now is confirmed at once."""

    def add(self, group: Group) -> None:
        """Take over a committed group; from here on it is not the writer's to answer."""

    async def room(self) -> None:
        """Wait until one more group may be committed."""


class Writer:
    """Commits what is submitted. `_pending` and `_wake` belong to the event loop, the engine to the one thread."""

    def __init__(
        self,
        engine: Engine,
        committed: Committed,
        catalog: Catalog,
        *,
        epoch: int,
        group_max: int = GROUP_MAX_MESSAGES,
        gather_seconds: float = GATHER_SECONDS,
        has_room: Callable[[], bool] = lambda: True,
        wall_clock: Callable[[], float] = time.time,
        observer: Observer | None = None,
    ) -> None:
        self._engine = engine
        self._committed, self._catalog = committed, catalog
        self.epoch = epoch
        """The writer life, kept in each receipt."""
        self._group_max, self._gather_seconds = group_max, gather_seconds
        self._has_room = has_room
        self._wall_clock = wall_clock
        self._observer = observer or Observer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Entry | Change] = deque()
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Writer at epoch {self.epoch}, {len(self._pending)} pending>"

    @property
    def pending(self) -> int:
        """How many messages and changes wait for their transaction."""
        return len(self._pending)

    async def __aenter__(self) -> "Writer":
        await self._on_thread(self._engine.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        fail(self._pending, Refused("the service is stopping; the queue delivers this again", reason="stopping"))
        self._pending.clear()
        await self._on_thread(self._engine.close)  # after the transaction that may still run on the thread
        self._thread.shutdown()

    def submit(self, entry: Entry | Change) -> None:
        """Queue a message or a change. Its `done` gets the outcome once that is confirmed, or the error that answers it."""
        while self._pending and self._pending[0].done.done():
            self._pending.popleft()  # its hold limit passed; while nothing is committed, nothing else would drop it (INV-7)
        self._pending.append(entry)
        self._wake.set()

    async def run(self) -> None:
        """Commit groups until cancelled. A database that refuses everything is an outage: 503, and on we go (INV-9)."""
        while True:
            await self._wake.wait()
            await self._gather()
            await self._committed.room()
            await self._commit_next()

    async def _commit_next(self) -> None:
        entries = [entry for entry in self._take() if not entry.done.done()]
        if not self._pending:
            self._wake.clear()
        if not entries:
            return
        if isinstance(entries[0], Entry) and not self._has_room():
            text = "the database's disk is full; the queue delivers this again, once there is room"
            fail(entries, Refused(text, reason="disk"))
            await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
            return
        began = time.monotonic()
        try:
            group = await self._on_thread(self._commit, entries)
        except RequestError as error:  # a change that cannot be made
            fail(entries, error)
        except peewee.PeeweeException as error:
            log.error("a group was not committed: %s", error, extra={"action": "writer.outage"})
            fail(entries, Refused("the database cannot be written now; the queue delivers this again", reason="database"))
            await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
        except BaseException:
            # Cancelled, or a bug: the transaction may still commit, but it will not be confirmed.
            fail(entries, Refused("the service is stopping; the queue delivers this again", reason="stopping"))
            raise
        else:
            if group.entries:
                self._observer.committed(group, began)
                self._committed.add(group)

    def _take(self) -> list[Entry] | list[Change]:
        """The next messages, or the next change: it has a transaction of its own."""
        messages: list[Entry] = []
        while self._pending and len(messages) < self._group_max:
            head = self._pending[0]
            if isinstance(head, Change):
                if not messages:
                    self._pending.popleft()
                    return [head]
                break
            messages.append(head)
            self._pending.popleft()
        return messages

    async def _gather(self) -> None:
        """Let a group grow while it would only wait for the confirmation before its own."""
        if len(self._pending) < self._group_max and not self._committed.idle.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_seconds):
                    await self._committed.idle.wait()

    async def _on_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def _commit(self, entries: list[Entry] | list[Change]) -> Group:
        if isinstance(entries[0], Change):
            return Group(entries, [self._change(entries[0])])
        try:
            return Group(entries, self._write(entries))
        except Exception as error:
            if not self._engine.blames_row(error):
                raise
            log.warning(
                "a group is written one message at a time: %s",
                type(error).__name__,
                extra={"action": "writer.isolate"},
            )
        return self._commit_singly(entries)

    def _change(self, change: Change) -> Any:
        try:
            return self._run(change.apply, alone=change.alone)
        except Exception as error:
            if not self._engine.blames_row(error):
                raise
            log.exception("the database refused a change", extra={"action": "writer.refused"})
            raise Unwritable("the database refused this; nothing was changed, and the log says why") from None

    def _commit_singly(self, entries: list[Entry]) -> Group:
        group: list[Entry] = []
        outcomes: list[Outcome] = []
        for entry in entries:
            try:
                outcomes += self._write_or_reject(entry)
            except Exception as error:
                if not self._engine.blames_row(error):
                    raise
                log.error(
                    "the database refused a message altogether",
                    exc_info=without_values(error, _without_detail(error)),
                    extra={"action": "writer.refused"},
                )
                refused = Unwritable("the database refused this message; it stays in the queue, and the log says why")
                loop = entry.done.get_loop()
                loop.call_soon_threadsafe(fail, [entry], refused)
            else:
                group.append(entry)
        return Group(group, outcomes)

    def _write_or_reject(self, entry: Entry) -> list[Outcome]:
        try:
            return self._write([entry])
        except Exception as error:
            if not self._engine.blames_row(error):
                raise
            # Delivered again it would be refused again: kept, it can be retried once the cause is mended (INV-6).
            where = without_values(error, _without_detail(error))
            log.error("the database refused a valid row", exc_info=where, extra={"action": "writer.not_storable"})
            text = f"the database refused the row: {type(error).__name__}; the log says why"
        return self._write([structs.replace(entry, content=Problem(NOT_STORABLE, text, entry.content.subject))])

    def _write(self, entries: Sequence[Entry]) -> list[Outcome]:
        """One transaction. After it returns the group is committed, and not confirmed yet."""
        return self._run(lambda transaction: transaction.handle(entries))

    def _run(self, apply: Callable[[Transaction], T], *, alone: bool = False) -> T:
        now = round(self._wall_clock() * 1000)

        def work(database: Connection) -> T:
            return apply(Transaction(database, self._catalog, self.epoch, now))

        return self._engine.run(work, alone=alone)


def _without_detail(error: Exception) -> str:
    """An error's name and the first line of its text: PostgreSQL's next ones quote the row."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
