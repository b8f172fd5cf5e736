"""Writers of several processes on one PostgreSQL, and the check that what they did has one serial order.

Each writer's work is drawn from a seed: groups of messages of which many are the same for all writers, with conflicts,
updates and malformed ones, and now and then an erasure. It is killed at any moment, and begins again with the group that it
had no answer for. Each transaction adds, as its last statement, a line with its outcomes and the next number of a sequence.
At that moment it has read and written all that it will, so if transactions have any serial order, it is that of their
numbers. `check` gives each line to a model of the documents, in that order: it must come to the same outcomes, and at
the end to the same rows, versions, receipts, rejections and erased subjects.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

import peewee
import psycopg

from worker.database import bulk_postgresql, postgresql
from worker.database.engine import Raced
from worker.database.models import Connection, Receipt
from worker.database.postgresql import PostgresqlEngine, Server
from worker.events.catalog import BUILT_IN, Catalog
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE
from worker.ingest.messages import Change, Delivery, Entry
from worker.ingest.writer import Writer

T = TypeVar("T")

CATALOG: Final = Catalog.load(BUILT_IN)
TABLE: Final = "CREATE TABLE race (number bigserial PRIMARY KEY, line text NOT NULL)"
SLOWLY: Final = (
    "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.0005); RETURN new; END $$",
    "CREATE TRIGGER slowly BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION slowly()",
)
"""With these each user takes its time, so that inserts of several writers meet in the middle of a statement."""
_LINE: Final = "INSERT INTO race (line) VALUES (%s)"
_WINDOW: Final = 60
"""So many messages may be in a group; the next group's begin a quarter further on, for all writers alike."""
_CROWD, _CROWD_STEPS = 400, 5
"""Each fifth group has so many, of which most are new, and all writers have them, each in an order of its own."""
_MALFORMED: Final = '{"user_id":%d,"settings":7}'


# What is drawn.


@dataclass(frozen=True)
class Sent:
    """A message: `updates` says whether it corrects a user; `states` is the time of creation that it states."""

    message_id: str
    user: int
    email: str
    published: int
    updates: bool
    malformed: bool
    states: int | None

    @property
    def entry(self) -> Entry:
        """As the writer takes it."""
        said: dict[str, Any] = {"user_id": self.user, "email_address": self.email}
        if self.states is not None:
            said["created_at"] = self.states
        data = (_MALFORMED % self.user if self.malformed else json.dumps(said)).encode()
        attributes = {EVENT_TYPE_ATTRIBUTE: "user.updated" if self.updates else "user.created"}
        delivery = Delivery(message_id=self.message_id, publish_time=self.published, data=data, attributes=attributes)
        content = CATALOG.read(data, attributes, self.published)
        return Entry(delivery, content, float("inf"), None)  # type: ignore[arg-type]  # no sender


def message(seed: int, number: int) -> Sent:
    """The message of this number: the same for every writer."""
    drawn = random.Random(f"{seed}/{number}")
    kind = drawn.random()
    updates = kind < 0.25
    return Sent(
        message_id=str(number),
        user=number // 4 + drawn.randint(0, 3) + 1,
        email=drawn.choice("ab"),
        published=1_700_000_000_000 + 1000 * drawn.randint(0, 3),
        updates=updates,
        malformed=kind > 0.92,
        states=drawn.choice((None, None, 7, 8)) if not updates else None,
    )


def group(seed: int, lane: int, step: int) -> list[Sent] | str:
    """What a writer does in this step: messages, or the subject that it erases."""
    drawn = random.Random(f"{seed}/{lane}/{step}")
    first = step * _WINDOW // 4
    if step % _CROWD_STEPS == 0:
        return [message(seed, number) for number in drawn.sample(range(first + 1000, first + 1000 + _CROWD), _CROWD)]
    if drawn.random() < 0.1:
        return str(message(seed, first + drawn.randint(0, _WINDOW)).user)
    return [message(seed, first + drawn.randrange(_WINDOW)) for _ in range(drawn.randint(1, _WINDOW))]


# A writer: a process of its own.


class Traced(PostgresqlEngine):
    """The engine, whose every transaction ends with a line that says what it did."""

    step: tuple[int, int] = (0, 0)

    def run(self, work: Callable[[Connection], T], *, alone: bool = False) -> T:
        """See `PostgresqlEngine.run`."""

        def traced(database: Connection) -> T:
            result = work(database)
            line = json.dumps([*self.step, _plain(result)])
            database.execute_sql(_LINE, (line,))  # type: ignore[no-untyped-call]
            return result

        return super().run(traced, alone=alone)


def write(url: str, answers: Path, seed: int, lane: int, steps: int, mutant: str | None) -> None:
    """Do what is left of a writer's steps, and note each answer. Killed in between it is called again."""
    whole = (
        [line for line in answers.read_text().splitlines(keepends=True) if line.endswith("\n")] if answers.exists() else []
    )
    answers.write_text("".join(whole))
    engine = Traced(Server(url=url))
    writer = Writer(engine, None, CATALOG, epoch=lane)  # type: ignore[arg-type]  # nothing is confirmed here
    with MUTANTS[mutant]() if mutant else contextlib.nullcontext(), answers.open("a", buffering=1) as file:
        engine.open()
        for step in range(len(whole), steps):
            engine.step = lane, step
            drawn = group(seed, lane, step)
            given: Any = [_erasure(drawn)] if isinstance(drawn, str) else [sent.entry for sent in drawn]
            while True:
                with contextlib.suppress(peewee.PeeweeException):  # an outage: it comes again
                    made = writer._commit(given)
                    break
            result = made.results[0] if isinstance(drawn, str) else made.results
            file.write(json.dumps([lane, step, _plain(result), engine.redone]) + "\n")
        engine.close()


def _erasure(subject: str) -> Change:
    return Change(lambda transaction: transaction.erase(subject), float("inf"), None, alone=True)  # type: ignore[arg-type]


def _plain(result: Any) -> Any:
    return result if isinstance(result, list) else [result.rows, result.receipts, result.rejections]


# The model, written from docs/message-format.md and docs/events.md.


@dataclass
class Model:
    """Users, and what is known of messages, in dictionaries; one message after the other."""

    users: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    versions: dict[int, tuple[int, str]] = field(default_factory=dict)
    receipts: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    rejections: dict[str, tuple[str, int, tuple[str, int | None] | None]] = field(default_factory=dict)
    erased: set[int] = field(default_factory=set)

    def handle(self, sent: Sent) -> str:
        """The outcome of a message."""
        if sent.message_id in self.receipts:
            return "duplicate"
        outcome = self._decide(sent, self.users.get(sent.user))
        named = outcome not in ("erased", "rejected")
        self.receipts[sent.message_id] = outcome, str(sent.user) if named else None
        if outcome in ("conflict", "rejected"):
            reason = "wrong_type" if sent.malformed else "conflict"
            self.rejections[sent.message_id] = reason, sent.user, None if sent.malformed else self.users[sent.user]
        return outcome

    def erase(self, user: int) -> list[int]:
        """Erase a user; how many rows, receipts and rejections that were."""
        rows = self.users.pop(user, None) is not None
        self.versions.pop(user, None)
        named = [message_id for message_id, (_, subject) in self.receipts.items() if subject == str(user)]
        for message_id in named:
            self.receipts[message_id] = self.receipts[message_id][0], None
        about = [message_id for message_id, (_, subject, _) in self.rejections.items() if subject == user]
        for message_id in about:
            del self.rejections[message_id]
        self.erased.add(user)
        return [int(rows), len(named), len(about)]

    def _decide(self, sent: Sent, met: tuple[str, int | None] | None) -> str:
        if sent.user in self.erased:
            return "erased"
        if sent.malformed:
            return "rejected"
        return self._update(sent, met) if sent.updates else self._create(sent, met)

    def _update(self, sent: Sent, met: tuple[str, int | None] | None) -> str:
        version = self.versions.get(sent.user)
        if version is not None and _order(sent.published, sent.message_id) < _order(*version):
            return "stale"
        self.users[sent.user] = sent.email, met[1] if met else None
        self.versions[sent.user] = sent.published, sent.message_id
        return "updated" if met else "created"

    def _create(self, sent: Sent, met: tuple[str, int | None] | None) -> str:
        created_at = sent.published // 1000 if sent.states is None else sent.states
        if met is None:
            self.users[sent.user] = sent.email, created_at
            return "created"
        email, time = met
        if time is None:
            self.users[sent.user] = email, created_at
            time = created_at
        other_time = sent.states is not None and sent.states != time
        if email == sent.email and not other_time:
            return "exists"
        version = self.versions.get(sent.user)
        return "stale" if version is not None and sent.published <= version[0] and not other_time else "conflict"


def _order(published: int, message_id: str) -> tuple[int, int, str]:
    return published, len(message_id), message_id


# The check.


def check(url: str, seed: int, answers: Sequence[Path], steps: int) -> Counter[str]:
    """Hold a race that is over against the model; how often each outcome and each redo came.

    Raises:
        AssertionError: No serial order explains it, an answer was not kept, or writers waited for each other in a circle.
    """
    counts: Counter[str] = Counter()
    with psycopg.connect(url) as connection:
        lines = [json.loads(line) for (line,) in connection.execute("SELECT line FROM race ORDER BY number")]
        model = Model()
        last: dict[tuple[int, int], Any] = {}
        for place, (lane, step, found) in enumerate(lines):
            drawn = group(seed, lane, step)
            expected = model.erase(int(drawn)) if isinstance(drawn, str) else [model.handle(sent) for sent in drawn]
            assert found == expected, f"the outcomes of transaction {place}, step {step} of writer {lane}"
            last[lane, step] = found
            counts.update(["erasures"] if isinstance(drawn, str) else found)
        for lane, file in enumerate(answers):
            told = [json.loads(line) for line in file.read_text().splitlines()]
            assert [line[1] for line in told] == list(range(steps)), f"each step of writer {lane} is answered once"
            assert all(last.get((lane, step)) == found for _, step, found, _ in told), f"an answer of writer {lane} is lost"
            counts.update({f"redone: {reason}": count for reason, count in _redone(told).items()})
        _compare(connection, model)
    assert not counts["redone: deadlock"], "deadlocks"
    return counts


def _redone(told: Sequence[Any]) -> Counter[str]:
    """How often groups were decided again: a writer that was killed has begun to count anew."""
    found: Counter[str] = Counter()
    before: Counter[str] = Counter()
    for *_, redone in told:
        found.update(
            {reason: count - before[reason] if count >= before[reason] else count for reason, count in redone.items()}
        )
        before = Counter(redone)
    return found


def _compare(connection: psycopg.Connection[Any], model: Model) -> None:
    def rows(query: str) -> list[Any]:
        return connection.execute(query).fetchall()

    users = {user: (email, time) for user, email, time in rows("SELECT user_id, email_address, created_at FROM users")}
    assert users == model.users, "users"
    versions = {int(row.partition("/")[2]): (number, by) for row, number, by in rows("SELECT * FROM versions")}
    assert versions == model.versions, "versions"
    receipts = {key: told for key, *told in rows("SELECT message_id, outcome, subject FROM receipts")}
    assert receipts == {key: list(told) for key, told in model.receipts.items()}, "receipts"
    rejections = {}
    for key, reason, about, stored in rows("SELECT message_id, reason, about, stored FROM rejections"):
        met = None if stored is None else json.loads(stored)
        rejections[key] = reason, int(about), met and (met["email_address"], met["created_at"])
    assert rejections == model.rejections, "rejections"
    assert {int(subject) for (subject,) in rows("SELECT subject FROM erased")} == model.erased, "erased"


# Mutants: the engine with one of its reasons taken out.


@contextlib.contextmanager
def no_row_count() -> Iterator[None]:
    """Rows that were not inserted are taken for inserted."""

    def insert(*arguments: Any) -> None:
        bulk_postgresql._write(*arguments, replacing=False)

    with mock.patch.object(bulk_postgresql, "insert", insert):
        yield


@contextlib.contextmanager
def unsorted() -> Iterator[None]:
    """Rows go in as they come."""
    with mock.patch.object(bulk_postgresql, "sorted", lambda rows, **_: list(rows), create=True):
        yield


@contextlib.contextmanager
def no_lock_for_erasures() -> Iterator[None]:
    """An erasure shares the lock with groups."""
    beginning = postgresql._beginning

    with mock.patch.object(postgresql, "_beginning", lambda server, **_: beginning(server, alone=False)):
        yield


@contextlib.contextmanager
def duplicates_by_a_read() -> Iterator[None]:
    """What has a receipt is decided by a look before the write alone."""
    insert = bulk_postgresql.insert

    def unsure(database: Any, model: Any, rows: Any) -> None:
        with contextlib.suppress(Raced) if model is Receipt else contextlib.nullcontext():
            insert(database, model, rows)

    with mock.patch.object(bulk_postgresql, "insert", unsure):
        yield


MUTANTS: Final[dict[str, Callable[[], contextlib.AbstractContextManager[None]]]] = {
    "no row count": no_row_count,
    "unsorted": unsorted,
    "no lock for erasures": no_lock_for_erasures,
    "duplicates by a read": duplicates_by_a_read,
}
