"""How many messages a second does the writer commit, with no HTTP, Litestream or bucket around it?

Beside it: `executemany` of the same rows (a user and a receipt for each message) through sqlite3 itself, in groups of the
same size, over a database with the same schema and the same pragmas. The writer also looks each message id and user id up
first. Both begin with an empty database on a memory file system, in turn.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import peewee

from bench import part
from bench.errors import Worthless
from bench.figures import Figure
from bench.part import Scale
from bench.store import memory
from worker.config import Settings
from worker.database import connections, schema
from worker.database.models import Receipt, columns
from worker.database.sqlite import SqliteEngine
from worker.events.catalog import BUILT_IN, Catalog, Content, Problem
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE
from worker.events.users import User
from worker.ingest.messages import Delivery, Entry, Group, Outcome
from worker.ingest.writer import GROUP_MAX_MESSAGES, Writer

QUESTION: Final = "writer: what does the writer cost beside bare SQLite?"
_CATALOG: Final = Catalog.load(f"{BUILT_IN}, examples.orders")
_MESSAGES: Final = 50_000
_SETTINGS: Final = Settings(replica_url="gs://bench/store")
_PUBLISHED: Final = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
_FIRST_ID: Final = 100_000_000_000_000
"""Ids of the width of push.lua's."""


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    messages = _MESSAGES // 50 if scale.brief else _MESSAGES
    rates: dict[str, list[float]] = {"ours": [], "bare": [], "mixed": []}
    for run in range(scale.runs):
        for which in ("ours", "bare", "mixed") if run % 2 else ("mixed", "bare", "ours"):
            with tempfile.TemporaryDirectory(prefix="solowriter-bench-", dir=memory()) as name:
                file = Path(name) / "users.db"
                schema.migrate(file, _CATALOG)
                gc.collect()
                mixed = which == "mixed"
                seconds = _bare(file, messages) if which == "bare" else asyncio.run(_ours(file, messages, mixed=mixed))
                rates[which].append(messages / seconds)
                _check(file, messages, mixed=mixed)
    ours, bare, mixed_rates = rates["ours"], rates["bare"], rates["mixed"]
    part.say(f"writer: {ours[-1]:,.0f} messages/s; of two events: {mixed_rates[-1]:,.0f}; executemany: {bare[-1]:,.0f}")
    group = f"groups of {GROUP_MAX_MESSAGES}"
    return [
        Figure(f"writer alone, {group}, messages/s", ours),
        Figure(f"`executemany` of the same rows, {group}, messages/s", bare),
        Figure("writer / `executemany`", [mine / other for mine, other in zip(ours, bare, strict=True)], ".2f"),
        Figure(
            "writer, users and orders in one group / users alone",
            [both / one for both, one in zip(mixed_rates, ours, strict=True)],
            ".2f",
        ),
    ]


class _Confirmed:
    """What takes committed groups: everything is confirmed at once."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, group: Group) -> None:
        group.succeed()

    async def room(self) -> None:
        """There always is."""


async def _ours(file: Path, messages: int, *, mixed: bool) -> float:
    loop = asyncio.get_running_loop()
    entries = [
        Entry(
            Delivery(message_id=str(number), publish_time=_PUBLISHED, data=b"", attributes={}),
            _order(number) if mixed and number % 2 else _user(number),
            loop.time() + _SETTINGS.hold_limit_seconds,
            loop.create_future(),
        )
        for number in range(_FIRST_ID, _FIRST_ID + messages)
    ]
    connection = connections.connect(file)
    async with Writer(SqliteEngine(connection), _Confirmed(), _CATALOG, epoch=1) as writer:
        running = asyncio.create_task(writer.run())
        began = time.monotonic()
        for entry in entries:
            writer.submit(entry)
        outcomes: list[Outcome] = await asyncio.gather(*(entry.done for entry in entries))
        seconds = time.monotonic() - began
        running.cancel()
        await asyncio.wait({running})
    if set(outcomes) != {"created"}:
        raise Worthless(f"the messages were not distinct users: {set(outcomes)}")
    return seconds


def _user(number: int) -> Content | Problem:
    return _CATALOG.read(f'{{"user_id":{number},"email_address":"{number}@example.com"}}'.encode(), {}, _PUBLISHED)


def _order(number: int) -> Content | Problem:
    data = f'{{"order_id":"{number}","customer_id":{number},"total_cents":100}}'.encode()
    return _CATALOG.read(data, {EVENT_TYPE_ATTRIBUTE: "order.placed"}, _PUBLISHED)


def _bare(file: Path, messages: int) -> float:
    connection = connections.connect(file)
    with connection.connection_context():
        cursor = connection.cursor()  # type: ignore[no-untyped-call]  # Peewee's
        statements = [
            f"INSERT INTO {table} ({', '.join(columns(model))}) VALUES ({', '.join('?' * len(columns(model)))})"
            for table, model in (("users", User), ("receipts", Receipt))
        ]
        groups = list(_rows(messages))
        began = time.monotonic()
        for users, receipts in groups:
            cursor.execute("BEGIN IMMEDIATE")
            for statement, rows in zip(statements, (users, receipts), strict=True):
                cursor.executemany(statement, rows)
            cursor.execute("COMMIT")
        return time.monotonic() - began


def _rows(messages: int) -> Iterator[tuple[list[tuple[object, ...]], list[tuple[object, ...]]]]:
    """The users and the receipts of each group."""
    for first in range(_FIRST_ID, _FIRST_ID + messages, GROUP_MAX_MESSAGES):
        numbers = range(first, min(first + GROUP_MAX_MESSAGES, _FIRST_ID + messages))
        users: list[tuple[object, ...]] = [
            (number, f"{number}@example.com", _PUBLISHED // 1000, 0, None) for number in numbers
        ]
        yield users, [(str(number), str(number), "created", _PUBLISHED, _PUBLISHED, 1) for number in numbers]


def _check(file: Path, messages: int, *, mixed: bool) -> None:
    connection = peewee.SqliteDatabase(str(file))
    with connection.connection_context():
        found = [model.select().bind(connection).count() for model in (User, Receipt)]
    if found != [messages - messages // 2 if mixed else messages, messages]:
        raise Worthless(f"{found} users and receipts in the database instead of {messages}")


if __name__ == "__main__":
    sys.exit(part.main("writer"))
