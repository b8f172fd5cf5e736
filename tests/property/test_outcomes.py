"""INV-3: one message, one effect; the real writer on both engines against a model of it in dictionaries.

A history is drawn, over two events at once, users and orders: messages with few ids and few keys, so that they repeat,
contradict and overtake one another; malformed ones; rows that only the database refuses; retries and discards; receipts and
rejections that expire; restarts; and crashes between a commit and its confirmation, after which the commit is there or is
gone. The model is written from docs/message-format.md and knows nothing of the worker. After each step both hold the same
rows and gave the same answers.

A writer with one of its reasons taken out is caught: see the mutants at the end. The last tests are of the format: what is
wrapped comes out as it went in.
"""

import asyncio
import base64
import contextlib
import copy
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from unittest import mock

import msgspec
import peewee
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from publisher import message
from tests.engines import Databases, Place, PostgresqlPlace, SqlitePlace
from worker.database import schema
from worker.database.models import Connection, Receipt
from worker.errors import NotFound, Resolved, Unwritable
from worker.events.catalog import Catalog, Content
from worker.events.users import MAX_CREATED_AT, MAX_USER_ID, USER_CREATED, User, UserCreated
from worker.ingest import outcomes, transaction
from worker.ingest.expiry import Expiry
from worker.ingest.http import envelope
from worker.ingest.messages import Change, Delivery, Entry, Group
from worker.ingest.tables import Tables
from worker.ingest.transaction import Transaction
from worker.ingest.writer import Writer

T = TypeVar("T")

CATALOG: Final = Catalog.load("worker.events.users, tests.property.orders")
START: Final = 1_700_000_000.0
DAY: Final = 86_400.0
RECEIPT_DAYS: Final = 32.0
REJECTION_DAYS: Final = 90.0
REFUSED_USER: Final = 3
"""The user whose row the database refuses while it is broken."""
EXAMPLES: Final = 200
POSTGRESQL_EXAMPLES: Final = 40
MUTANT_EXAMPLES: Final = 1500


# What is drawn.


@dataclass(frozen=True)
class Sent:
    """A message, and what it is by the format: its user's or its order's content, or the reason why it is none."""

    message_id: str
    data: bytes
    attributes: tuple[tuple[str, str], ...]
    publish_time: int
    user: tuple[int, str | None, str | None, int | None] | None
    reason: str | None = None
    attempt: int | None = None
    order: tuple[int, int, str | None] | None = None

    @property
    def subject(self) -> str | None:
        """Whose data it is."""
        whose = self.user[0] if self.user is not None else self.order[1] if self.order is not None else None
        return None if whose is None else str(whose)

    @property
    def delivery(self) -> Delivery:
        """As the queue delivers it."""
        return Delivery(
            message_id=self.message_id,
            publish_time=self.publish_time,
            data=self.data,
            attributes=dict(self.attributes),
            delivery_attempt=self.attempt,
        )


@dataclass(frozen=True)
class Deliver:
    """New messages in one turn, then some of all those delivered so far, again."""

    messages: tuple[Sent, ...]
    again: tuple[int, ...]


@dataclass(frozen=True)
class Crash:
    """Messages are committed and never answered; the next life finds the commit, or a copy from before it."""

    messages: tuple[Sent, ...]
    kept: bool


@dataclass(frozen=True)
class Resolve:
    """An operator retries or discards one message, or changes what stands in its way."""

    verb: str
    number: int


@dataclass(frozen=True)
class Wait:
    """Time passes, then what is past its time is deleted."""

    days: float


MALFORMED: Final = {
    b"": "not_json",
    b'{"user_id":1': "not_json",
    b'[{"user_id":1}]': "not_an_object",
    b'{"settings":"a"}': "missing_field",
    b'{"user_id":"1"}': "wrong_type",
    b'{"user_id":0}': "out_of_range",
    b'{"user_id":1,"settings":"\\u0000"}': "bad_text",
    b'{"user_id":1,"settings":"\xff"}': "not_utf8",
}
TIMES: Final = st.sampled_from([1_699_999_999_999, 1_700_000_000_000, 1_700_000_000_999, 1_700_000_001_000])
IDS: Final = st.sampled_from([f"m{number}" for number in range(12)])
ATTRIBUTES: Final = st.sampled_from(
    [(), (("event_type", "user.created"),), (("source", "a"),), (("event_type", "user.renamed"), ("source", "b"))]
)
ATTEMPTS: Final = st.sampled_from([None, None, 1, 2])
ABSENT: Final = "absent"


@st.composite
def valid(draw: st.DrawFn, message_ids: st.SearchStrategy[str] = IDS) -> Sent:
    """A message that keeps to the format, unless its attribute names another event."""
    user_id = draw(st.integers(1, 4))
    fields = {
        "email_address": draw(st.sampled_from([ABSENT, None, "a", "b"])),
        "settings": draw(st.sampled_from([ABSENT, None, "a"])),
        "created_at": draw(st.sampled_from([ABSENT, None, 0, 1_700_000_000, 1_700_000_000, 1_700_000_001])),
        "later": draw(st.sampled_from([ABSENT, {"unknown": [1, 2]}])),
    }
    data = {"user_id": user_id, **{name: value for name, value in fields.items() if value != ABSENT}}
    attributes = draw(ATTRIBUTES)
    another = dict(attributes).get("event_type", "user.created") != "user.created"
    email, text, time = (data.get(name) for name in ("email_address", "settings", "created_at"))
    return Sent(
        draw(message_ids),
        json.dumps(data).encode(),
        attributes,
        draw(TIMES),
        None if another else (user_id, email, text, time),  # type: ignore[arg-type]  # as drawn above
        "unknown_event" if another else None,
        draw(ATTEMPTS),
    )


@st.composite
def order(draw: st.DrawFn) -> Sent:
    """A message of the other event."""
    content = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([None, "a", "b"]))
    data = dict(zip(("order_id", "customer_id", "note"), content, strict=True))
    attributes = (("event_type", "order.placed"),)
    return Sent(draw(IDS), json.dumps(data).encode(), attributes, draw(TIMES), None, None, draw(ATTEMPTS), content)


MALFORMED_MESSAGES: Final = st.builds(
    lambda message_id, data, time, attempt: Sent(message_id, data, (), time, None, MALFORMED[data], attempt),
    IDS,
    st.sampled_from(list(MALFORMED)),
    TIMES,
    ATTEMPTS,
)
VERBS: Final = ("retry", "clear", "clear", "clear", "discard", "remove", "amend", "break", "mend")
GROUPS: Final = st.lists(valid() | valid() | order() | MALFORMED_MESSAGES, max_size=8).map(tuple)
STEP: Final = (
    st.builds(Deliver, GROUPS, st.lists(st.integers(0, 30), max_size=5).map(tuple))
    | st.builds(Crash, GROUPS, st.booleans())
    | st.builds(Resolve, st.sampled_from(VERBS), st.integers(0, 30))
    | st.builds(Wait, st.sampled_from([0.0, 20.0, 33.0, 91.0]))
    | st.just("restart")
)
HISTORIES: Final = st.lists(STEP, min_size=3, max_size=14)
GROUP_MAX: Final = st.integers(1, 5)


# The model.


def _about(sent: Sent) -> str | None:
    """The user id that a message states, if it can be read."""
    if sent.subject is not None:
        return sent.subject
    try:
        stated = json.loads(sent.data.decode(errors="replace"))["user_id"]
    except (ValueError, TypeError, KeyError):
        return None
    if isinstance(stated, str) and stated.isascii() and stated.isdecimal():
        stated = int(stated)
    return str(stated) if type(stated) is int and 0 < stated < 2**63 else None


@dataclass
class Model:
    """What the documentation promises, in dictionaries by id."""

    users: dict[int, dict[str, Any]] = field(default_factory=dict)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejections: dict[str, dict[str, Any]] = field(default_factory=dict)
    orders: dict[int, dict[str, Any]] = field(default_factory=dict)
    broken: bool = False

    def deliver(self, sent: Sent, epoch: int, now: int) -> str:
        """One delivery; what it does."""
        if sent.message_id in self.receipts:
            return "duplicate"
        fate, reason, stored = self._fate(sent)
        if reason is not None and sent.message_id not in self.rejections:
            self.rejections[sent.message_id] = {
                "reason": reason,
                "stored": stored,
                "data": sent.data,
                "attributes": dict(sent.attributes),
                "publish_time": sent.publish_time,
                "delivery_attempt": sent.attempt,
                "received_at": now,
                "resolved_at": None,
                "resolution": None,
                "body": None,
                "bytes": len(sent.data),
                "about": _about(sent),
            }
        self._receive(sent, fate, reason, epoch, now)
        return fate

    def retry(self, sent: dict[str, Sent], message_id: str, epoch: int, now: int) -> object:
        """A rejection handled once more, or why it cannot be."""
        row = self.rejections.get(message_id)
        if row is None or row["resolved_at"] is not None:
            return NotFound if row is None else Resolved
        again = sent[message_id + row["data"].hex() + json.dumps(row["attributes"])]
        fate, reason, stored = self._fate(replace(again, publish_time=row["publish_time"]))
        if reason == "not_storable":
            return Unwritable
        if reason is not None:
            row |= {"reason": reason, "stored": stored}
        else:
            row |= {"resolved_at": now, "resolution": fate}
        self._receive(replace(again, publish_time=row["publish_time"]), fate, reason, epoch, now)
        return fate

    def discard(self, message_id: str, now: int) -> object:
        """A rejection given up, or why it cannot be."""
        row = self.rejections.get(message_id)
        if row is None or row["resolved_at"] is not None:
            return NotFound if row is None else Resolved
        row |= {"resolved_at": now, "resolution": "discarded", "data": b""}
        return None

    def expire(self, now: float) -> dict[str, int]:
        """What is past its time goes; how much of it."""
        before = len(self.receipts), len(self.rejections)
        self.receipts = {
            name: row for name, row in self.receipts.items() if row["processed_at"] >= (now - RECEIPT_DAYS * DAY) * 1000
        }
        self.rejections = {
            name: row for name, row in self.rejections.items() if row["received_at"] >= (now - REJECTION_DAYS * DAY) * 1000
        }
        return {"receipts": before[0] - len(self.receipts), "rejections": before[1] - len(self.rejections)}

    def _fate(self, sent: Sent) -> tuple[str, str | None, dict[str, Any] | None]:
        """The outcome, and of a rejection its reason and the stored side; a new user's row is written."""
        if sent.order is not None:
            order_id, customer_id, note = sent.order
            there = self.orders.setdefault(order_id, row := {"customer_id": customer_id, "note": note})
            if there is row:
                return "created", None, None
            return ("exists", None, None) if there == row else ("conflict", "conflict", {"order_id": order_id, **there})
        if sent.user is None:
            return "rejected", sent.reason, None
        user_id, email, text, time = sent.user
        stored = self.users.get(user_id)
        if stored is None:
            if self.broken and user_id == REFUSED_USER:
                return "rejected", "not_storable", None
            self.users[user_id] = {
                "email_address": email,
                "created_at": sent.publish_time // 1000 if time is None else time,
                "deleted": 0,
                "settings": text,
            }
            return "created", None, None
        same = (email, text) == (stored["email_address"], stored["settings"])
        if same and (time is None or time == stored["created_at"]):
            return "exists", None, None
        return "conflict", "conflict", {"user_id": user_id, **stored}

    def _receive(self, sent: Sent, fate: str, reason: str | None, epoch: int, now: int) -> None:
        self.receipts[sent.message_id] = {
            "subject": None if reason == "not_storable" else sent.subject,
            "outcome": fate,
            "publish_time": sent.publish_time,
            "processed_at": now,
            "epoch": epoch,
        }


# The real thing.


class Holding:
    """Takes committed groups, and confirms each at once unless they are never to be confirmed."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self._lost: int | None = None
        self._all_lost = asyncio.Event()

    def add(self, group: Group) -> None:
        """See `worker.ingest.writer.Committed`."""
        if self._lost is None:
            group.succeed()
            return
        self._lost -= len(group.entries)
        if not self._lost:
            self._all_lost.set()

    async def room(self) -> None:
        """See `worker.ingest.writer.Committed`: there always is."""

    def lose(self, count: int) -> asyncio.Event:
        """From now on nothing is answered; the event is set once so many messages are committed."""
        self._lost = count
        if not count:
            self._all_lost.set()
        return self._all_lost


TABLES: Final = ("users", "receipts", "rejections", "orders", "versions", "erased")


class Store:
    """A new file; what a life finds may be what an earlier one had left."""

    def __init__(self, path: Path) -> None:
        shutil.copy(empty_database(), path)
        self.place: Place = SqlitePlace(path, CATALOG)

    def copy(self) -> Callable[[], None]:
        """Keep what is committed now; the result goes back to it, as a restore does."""
        assert isinstance(self.place, SqlitePlace)
        other = self.place.path.with_name(f"{secrets.token_hex(4)}.db")
        connection = self.place.outside()
        with connection.connection_context():
            connection.execute_sql("VACUUM INTO ?", (str(other),))  # type: ignore[no-untyped-call]

        def go_back() -> None:
            self.place = SqlitePlace(other, CATALOG)

        return go_back


class PostgresqlStore(Store):
    """One database for all histories, emptied before each: to make one takes as long as a history."""

    def __init__(self, place: PostgresqlPlace) -> None:
        self.place = place
        place.refuse_no_more("users")
        place.run("; ".join(f"CREATE TABLE IF NOT EXISTS kept_{table} (LIKE {table})" for table in TABLES))
        place.run("; ".join(f"DELETE FROM {table}" for table in TABLES))

    def copy(self) -> Callable[[], None]:
        """See `Store.copy`."""
        place = self.place
        assert isinstance(place, PostgresqlPlace)
        place.run("; ".join(f"DELETE FROM kept_{table}; INSERT INTO kept_{table} TABLE {table}" for table in TABLES))

        def go_back() -> None:
            rows = "; ".join(f"DELETE FROM {table}; INSERT INTO {table} TABLE kept_{table}" for table in TABLES)
            place.run(f"ALTER TABLE users DISABLE TRIGGER USER; {rows}; ALTER TABLE users ENABLE TRIGGER USER")

        return go_back


class Service:
    """One store over its lives: the database, and the writer that has it open."""

    def __init__(self, store: Store, group_max: int) -> None:
        self.store, self._group_max = store, group_max
        self.now, self.epoch = START, 0

    @contextlib.asynccontextmanager
    async def _life(self) -> Any:
        self.committed = Holding()
        async with Writer(
            self.store.place.engine(),
            self.committed,
            CATALOG,
            epoch=self.epoch,
            group_max=self._group_max,
            gather_seconds=0,
            wall_clock=lambda: self.now,
        ) as writer:
            task = asyncio.create_task(writer.run())
            try:
                yield writer
            finally:
                task.cancel()
                await asyncio.wait({task})

    async def begin(self) -> None:
        """A new life, with an epoch of its own."""
        self.epoch += 1
        self._stack = contextlib.AsyncExitStack()
        self.writer: Writer = await self._stack.enter_async_context(self._life())

    async def end(self) -> None:
        """The writer is closed."""
        await self._stack.aclose()

    async def deliver(self, messages: Sequence[Sent]) -> list[object]:
        """Submit in one turn; the answers."""
        return await self._answers(self._submit(messages))

    async def commit_unanswered(self, messages: Sequence[Sent]) -> None:
        """Submit in one turn, and die once all of it is committed."""
        committed = self.committed.lose(len(messages))
        waiting = self._submit(messages)
        async with asyncio.timeout(20):
            await committed.wait()
        await self.end()
        assert not any(entry.done.done() for entry in waiting), "INV-1: answered without a confirmation"

    async def change(self, apply: Callable[[Transaction], T]) -> T:
        """See `worker.ingest.intake.Intake.change`."""
        change = Change(apply, float("inf"), asyncio.get_running_loop().create_future())
        self.writer.submit(change)
        async with asyncio.timeout(20):
            return await change.done  # type: ignore[no-any-return]  # what `apply` returns

    async def read(self, query: Callable[[Connection], T]) -> T:
        """See `worker.ingest.expiry.Database`."""
        database = self.store.place.outside()
        with database.connection_context():
            return query(database)

    def rows(self) -> Model:
        """What the database holds, read past the worker's tables."""
        tables: list[dict[Any, dict[str, Any]]] = []
        # Through Peewee's SQLite: a second library in this process would drop the first one's locks on the file.
        reader = self.store.place.outside()
        with reader.connection_context():
            for table in ("users", "receipts", "rejections", "orders"):
                cursor = reader.execute_sql(f"SELECT * FROM {table}")  # type: ignore[no-untyped-call]
                _, *columns = [column[0] for column in cursor.description]
                tables.append({key: dict(zip(columns, row, strict=True)) for key, *row in cursor.fetchall()})
        users, receipts, rejections, orders = tables
        for row in rejections.values():
            assert row.pop("detail"), "a rejection says what is wrong"
            row["attributes"] = json.loads(row["attributes"])
            row["stored"] = None if row["stored"] is None else json.loads(row["stored"])
        return Model(users, receipts, rejections, orders)

    def _submit(self, messages: Sequence[Sent]) -> list[Entry]:
        loop = asyncio.get_running_loop()
        entries = [
            Entry(
                sent.delivery,
                CATALOG.read(sent.data, dict(sent.attributes), sent.publish_time),
                float("inf"),
                loop.create_future(),
            )
            for sent in messages
        ]
        for entry in entries:
            self.writer.submit(entry)
        return entries

    async def _answers(self, entries: list[Entry]) -> list[object]:
        async with asyncio.timeout(20):
            return await asyncio.gather(*(entry.done for entry in entries), return_exceptions=True)


@cache
def empty_database() -> Path:
    """A file with the newest schema, made once: the migrations take longer than a whole history."""
    path = Path(tempfile.mkdtemp()) / "empty.db"
    schema.migrate(path, CATALOG, busy_timeout_seconds=5)
    return path


class Both:
    """The service and the model, led through the same history."""

    def __init__(self, service: Service) -> None:
        self.service, self.model = service, Model()
        self.delivered: list[Sent] = []
        self._by_content: dict[str, Sent] = {}

    @property
    def _now(self) -> int:
        return round(self.service.now * 1000)

    async def do(self, step: Any) -> None:
        """One step of both; then they hold the same."""
        if isinstance(step, Deliver):
            seen = self.delivered + list(step.messages)
            await self._deliver([*step.messages, *(seen[number % len(seen)] for number in step.again if seen)])
        elif isinstance(step, Crash):
            await self._crash(step)
        elif isinstance(step, Resolve):
            await self._resolve(step)
        elif isinstance(step, Wait):
            self.service.now += step.days * DAY
            expiry = Expiry(RECEIPT_DAYS, REJECTION_DAYS, step_rows=2, wall_clock=lambda: self.service.now)
            assert await expiry.once(cast(Tables, self.service)) == self.model.expire(self.service.now), "what expired"
        else:
            await self.service.end()
            await self.service.begin()
        self.service.now += 1.5
        self._compare(step)

    async def _deliver(self, messages: list[Sent]) -> None:
        expected = self._model(messages)
        assert await self.service.deliver(messages) == expected, "the answers"

    def _model(self, messages: Sequence[Sent]) -> list[str]:
        for sent in messages:
            self.delivered.append(sent)
            self._by_content[sent.message_id + sent.data.hex() + json.dumps(dict(sent.attributes))] = sent
        return [self.model.deliver(sent, self.service.epoch, self._now) for sent in messages]

    async def _crash(self, crash: Crash) -> None:
        go_back, model = self.service.store.copy(), copy.deepcopy(self.model)
        self._model(crash.messages)
        await self.service.commit_unanswered(crash.messages)
        if not crash.kept:
            go_back()
            self.model = model
        await self.service.begin()

    async def _resolve(self, step: Resolve) -> None:
        epoch, now, model = self.service.epoch, self._now, self.model
        message_id = self._unresolved(step.number)
        user_id = step.number % 4 + 1
        if step.verb == "clear":  # the way to resolve a conflict for the message: the row goes, then it is retried
            stored = model.rejections[message_id]["stored"] if message_id in model.rejections else None
            if stored and "order_id" in stored:
                model.orders.pop(stored["order_id"], None)
                statement = f"DELETE FROM orders WHERE order_id = {stored['order_id']}"
                await self.service.change(partial(_execute, statement))
            else:
                await self._resolve(Resolve("remove", stored["user_id"] - 1 if stored else step.number))
        if step.verb in ("retry", "clear"):
            expected = model.retry(self._by_content, message_id, epoch, now)
            assert await self._changed(lambda it: it.retry(message_id)) == expected, "what the retry did"
        elif step.verb == "discard":
            expected = model.discard(message_id, now)
            assert await self._changed(lambda it: it.discard(message_id)) == expected, "what the discarding did"
        elif step.verb == "remove":
            model.users.pop(user_id, None)
            await self.service.change(lambda it: User.delete().where(User.user_id == user_id).execute(it.database))
        elif step.verb == "amend":
            if user_id in model.users:
                model.users[user_id]["email_address"] = "b"
            await self.service.change(
                lambda it: User.update(email_address="b").where(User.user_id == user_id).execute(it.database)
            )
        elif model.broken != (step.verb == "break"):
            model.broken = step.verb == "break"
            place = self.service.store.place
            if model.broken:
                place.refuse("users", "user_id", str(REFUSED_USER))
            else:
                place.refuse_no_more("users")

    def _unresolved(self, number: int) -> str:
        """One of the rejections, those first that a retry may resolve; now and then a message that is none."""
        reasons = ["conflict", "not_storable"]
        found = sorted(
            self.model.rejections,
            key=lambda name: (
                self.model.rejections[name]["resolved_at"] is not None,
                self.model.rejections[name]["reason"] not in reasons,
                name,
            ),
        )
        return found[number % 3 % len(found)] if found and number % 7 else "m7"

    async def _changed(self, apply: Callable[[Transaction], object]) -> object:
        try:
            return await self.service.change(apply)
        except (NotFound, Resolved, Unwritable) as error:
            return type(error)

    def _compare(self, step: object) -> None:
        found = self.service.rows()
        for table in ("users", "receipts", "rejections", "orders"):
            assert getattr(found, table) == getattr(self.model, table), f"{table} after {step}"


def _execute(statement: str, opened: Transaction) -> None:
    opened.database.execute_sql(statement)  # type: ignore[no-untyped-call]


Stores = Callable[[Path], Store]
"""Makes an empty store; the folder is one's own."""


async def lead(history: Sequence[Any], group_max: int, stores: Stores) -> Both:
    """A new store through a history, which ends with every message delivered once more in a later life."""
    with tempfile.TemporaryDirectory() as directory:
        service = Service(stores(Path(directory) / "users.db"), group_max)
        await service.begin()
        both = Both(service)
        try:
            for step in (*history, "restart", Deliver((), tuple(range(31)))):
                await both.do(step)
        finally:
            await service.end()
        return both


def check(examples: int = EXAMPLES, stores: Stores = Store, **options: Any) -> None:
    """Hold the writer against the model through so many histories."""

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        **options,
    )
    @given(HISTORIES, GROUP_MAX)
    def agree(history: list[Any], group_max: int) -> None:
        asyncio.run(lead(history, group_max, stores))

    agree()


def test_the_writer_does_what_the_documents_promise() -> None:
    """INV-3: the same rows and the same answers as the model, through any history."""
    check()


@pytest.mark.slow
@pytest.mark.postgresql
def test_the_writer_on_postgresql_does_what_the_documents_promise(databases: Databases) -> None:
    """INV-3: the same model, and so the same outcomes as over SQLite."""
    with databases.place(CATALOG) as place:
        check(POSTGRESQL_EXAMPLES, lambda _: PostgresqlStore(place))


# Repetition, grouping and order.


def landed(groups: Sequence[Sequence[Sent]], group_max: int, lives: Sequence[bool]) -> dict[str, Any]:
    """What a new store holds after these groups, with a new life before some of them; without what says when and by whom."""

    async def body(service: Service) -> Model:
        await service.begin()
        for group, new_life in zip(groups, lives, strict=True):
            if new_life:
                await service.end()
                await service.begin()
            await service.deliver(group)
        await service.end()
        return service.rows()

    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(body(Service(Store(Path(directory) / "users.db"), group_max)))
    for row in (*rows.receipts.values(), *rows.rejections.values()):
        for name in ("processed_at", "epoch", "received_at", "delivery_attempt"):
            row.pop(name, None)
    return {"users": rows.users, "orders": rows.orders, "receipts": rows.receipts, "rejections": rows.rejections}


def cut(draw: st.DrawFn, messages: Sequence[Sent]) -> tuple[list[list[Sent]], int, list[bool]]:
    """The messages, in groups and lives as drawn: the arguments of `landed`."""
    groups: list[list[Sent]] = [[]]
    for sent in messages:
        if draw(st.booleans()):
            groups.append([])
        groups[-1].append(sent)
    return groups, draw(GROUP_MAX), [draw(st.booleans()) for _ in groups]


@st.composite
def repeated(draw: st.DrawFn) -> tuple[list[Sent], tuple[list[list[Sent]], int, list[bool]]]:
    """Messages with an id each, and a delivery of them in which each comes again any number of times after its first."""
    once = draw(
        st.lists(valid() | order() | MALFORMED_MESSAGES, min_size=1, max_size=8, unique_by=lambda sent: sent.message_id)
    )
    often: list[Sent] = []
    for number, sent in enumerate(once):
        again = draw(st.lists(st.integers(0, number), max_size=3))
        often += [sent, *(replace(once[index], attempt=2) for index in again)]
    return once, cut(draw, often)


@settings(max_examples=100, deadline=None)
@given(repeated())
def test_repetition_and_grouping_change_nothing(
    case: tuple[list[Sent], tuple[list[list[Sent]], int, list[bool]]],
) -> None:
    """INV-3: delivered often, in any groups and by any lives, messages leave the rows that they leave delivered once."""
    once, often = case
    assert landed(*often) == landed([[sent] for sent in once], 1, [False] * len(once))


@st.composite
def agreeing(draw: st.DrawFn) -> tuple[list[Sent], tuple[list[list[Sent]], int, list[bool]]]:
    """Messages with an id each that agree about each user, and a delivery of them in any order."""
    content = {user_id: draw(st.tuples(st.sampled_from([None, "a", "b"]), st.integers(0, 3))) for user_id in (1, 2, 3)}
    messages = draw(st.lists(MALFORMED_MESSAGES, max_size=3, unique_by=lambda sent: sent.message_id))
    for number, user_id in enumerate(draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))):
        email, time = content[user_id]
        data = json.dumps({"user_id": user_id, "email_address": email, "created_at": time}).encode()
        messages.append(Sent(f"u{number}", data, (), draw(TIMES), (user_id, email, None, time)))
    return messages, cut(draw, draw(st.permutations(messages)))


@settings(max_examples=100, deadline=None)
@given(agreeing())
def test_order_changes_nothing_between_messages_that_agree(
    case: tuple[list[Sent], tuple[list[list[Sent]], int, list[bool]]],
) -> None:
    """INV-3: whichever comes first creates the user, the others find it; none conflicts, and each is created once."""
    messages, shuffled = case
    first, other = landed([messages], len(messages), [False]), landed(*shuffled)
    assert other["users"] == first["users"]
    assert other["rejections"] == first["rejections"]
    assert other["receipts"].keys() == first["receipts"].keys()
    fates = sorted((row["subject"], row["outcome"]) for row in other["receipts"].values() if row["subject"])
    ids = sorted(str(sent.user[0]) for sent in messages if sent.user)
    assert fates == sorted(
        (user, "exists" if number else "created") for user in set(ids) for number in range(ids.count(user))
    )


# Mutants: the writer with one of its reasons taken out. Each is a context in which the machine must fail.


@contextlib.contextmanager
def no_receipt_for_what_is_rejected() -> Iterator[None]:
    """Mutant 1: a rejection is taken for its own receipt."""
    plan = outcomes.plan

    def without(*arguments: Any, **named: Any) -> outcomes.Plan:
        made = plan(*arguments, **named)
        made.receipts = [row for row in made.receipts if row.outcome != "rejected"]
        return made

    with mock.patch.object(transaction, "plan", without):
        yield


@contextlib.contextmanager
def the_publish_time_is_content() -> Iterator[None]:
    """Mutant 2: a time that is not stated is filled in before it is compared."""
    decide = outcomes._Decider.decide

    def filled(self: Any, content: Content, delivery: Delivery) -> Any:
        fields = content.fields
        if isinstance(fields, UserCreated) and fields.created_at is None and self._row("users", content.key) is not None:
            content = content._replace(fields=msgspec.structs.replace(fields, created_at=1_700_000_000))
        return decide(self, content, delivery)

    with mock.patch.object(outcomes._Decider, "decide", filled):
        yield


@contextlib.contextmanager
def a_retry_keeps_the_old_receipt() -> Iterator[None]:
    """Mutant 3: a retry changes the row and the rejection, and forgets the receipt."""
    retry = Transaction.retry

    def forgetful(self: Transaction, message_id: str, **_: Any) -> Any:
        kept = list(Receipt.select().where(Receipt.message_id == message_id).dicts().bind(self.database).iterator())
        result = retry(self, message_id)
        Receipt.delete().where(Receipt.message_id == message_id).execute(self.database)
        if kept:
            Receipt.insert_many(kept).execute(self.database)
        return result

    with mock.patch.object(Transaction, "retry", forgetful):
        yield


@contextlib.contextmanager
def a_replay_replaces_the_rejection() -> Iterator[None]:
    """Mutant 4: a rejection that is met again after its receipt has expired is written over, and so is open again."""

    def replaced(self: peewee.Insert, **_: Any) -> peewee.Insert:
        return self.on_conflict_replace()

    with mock.patch.object(peewee.Insert, "on_conflict", replaced):
        yield


@contextlib.contextmanager
def no_time_means_now() -> Iterator[None]:
    """Mutant 5: a time that is not stated is the time of the writing, so what is written again after a crash differs."""
    read = Catalog.read

    def now(self: Catalog, data: bytes, attributes: Any, publish_time: int) -> Any:
        content = read(self, data, attributes, publish_time)
        if isinstance(content, Content) and isinstance(content.fields, UserCreated) and content.fields.created_at is None:
            user_id, email, _, *rest = content.row
            content = content._replace(row=(user_id, email, round(START), *rest))
        return content

    with mock.patch.object(Catalog, "read", now):
        yield


MUTANTS: Final[dict[str, tuple[Callable[[], contextlib.AbstractContextManager[None]], str]]] = {
    "1": (no_receipt_for_what_is_rejected, "the answers|receipts after"),
    "2": (the_publish_time_is_content, "the answers|receipts after"),  # a crash has no answers
    "3": (a_retry_keeps_the_old_receipt, "receipts after"),
    "4": (a_replay_replaces_the_rejection, "rejections after"),
    "5": (no_time_means_now, "users after"),
}


@pytest.mark.parametrize(("mutant", "told"), MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_is_caught(mutant: Callable[[], contextlib.AbstractContextManager[None]], told: str) -> None:
    """The model tells a writer that lacks one of the reasons from the real one, and by what it should."""
    with mutant(), pytest.raises(AssertionError, match=f"^({told})"):
        check(MUTANT_EXAMPLES, phases=(Phase.generate,), report_multiple_bugs=False)


# The format: what is wrapped comes out as it went in.

TEXT: Final = st.text(st.characters(exclude_categories=["Cs"]))
STORED_TEXT: Final = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
USERS: Final = st.builds(
    UserCreated,
    user_id=st.integers(1, MAX_USER_ID),
    email_address=STORED_TEXT,
    settings=STORED_TEXT,
    created_at=st.none() | st.integers(0, MAX_CREATED_AT),
)
MOMENTS: Final = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))
SMALL: Final = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
"""What a header may hold anywhere in it."""


@given(
    USERS,
    st.dictionaries(TEXT.filter(lambda name: name != "event_type"), TEXT, max_size=4),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=1024),
    MOMENTS,
)
def test_every_user_survives_the_way(
    user: UserCreated, attributes: dict[str, str], named: bool, message_id: str, moment: datetime
) -> None:
    """Encoded, wrapped, unwrapped and decoded: the same user, id, attributes, and time to the millisecond."""
    attributes |= {"event_type": "user.created"} if named else {}
    data = USER_CREATED.encode(user)
    found = envelope.decode(message.envelope(data, attributes, message_id, moment, "projects/p/subscriptions/s"))
    assert USER_CREATED.decode(found.data) == user
    assert (found.data, found.attributes, found.message_id) == (data, attributes, message_id)
    assert found.publish_time == int(moment.timestamp()) * 1000 + moment.microsecond // 1000
    content = CATALOG.read(found.data, found.attributes, found.publish_time)
    assert isinstance(content, Content) and content.fields == user  # noqa: PT018  # one statement for the type checker


@given(
    st.binary(max_size=200) | USERS.map(USER_CREATED.encode),
    st.none() | st.text(SMALL, max_size=20),
    st.text(SMALL, min_size=1, max_size=1024),
    MOMENTS,
    st.integers(0, 9),
    st.text(SMALL, max_size=20),
    st.none() | st.integers(0, 2**31 - 1),
)
def test_a_push_without_wrapper_says_the_same(
    data: bytes, event: str | None, message_id: str, moment: datetime, digits: int, key: str, attempt: int | None
) -> None:
    """The same message pushed as a wrapper and as headers is the same delivery, whatever the precision of its time."""
    fraction = f".{moment.microsecond:06d}789"[: digits + 1] if digits else ""
    time = f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z".rjust(len("2024-01-02T03:04:05") + len(fraction) + 1, "0")
    inner: dict[str, Any] = {
        "data": base64.b64encode(data).decode(),
        "messageId": message_id,
        "publishTime": time,
        "orderingKey": key,
    }
    headers = {
        "x-goog-pubsub-message-id": message_id,
        "x-goog-pubsub-publish-time": time,
        "x-goog-pubsub-ordering-key": key,
        "x-goog-pubsub-subscription-name": "projects/p/subscriptions/s",
        "content-type": "application/json",
    }
    body: dict[str, Any] = {"message": inner, "subscription": "projects/p/subscriptions/s"}
    if event is not None:
        headers["event_type"], inner["attributes"] = event, {"event_type": event}
    if attempt is not None:
        body["deliveryAttempt"], headers["x-goog-pubsub-delivery-attempt"] = attempt, str(attempt)
    assert envelope.unwrapped(data, headers, now=1) == envelope.decode(json.dumps(body).encode())
