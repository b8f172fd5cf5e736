"""The writer on both engines: what each message does, and that one that cannot be written fails alone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peewee
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines import Made, Place, SqlitePlace, rows_of
from tests.entries import CATALOG, PUBLISHED, delivery, entry, malformed, read, turns, until
from worker.database import connections
from worker.database.sqlite import SqliteEngine
from worker.errors import Refused, Unwritable
from worker.events.users import UserCreated
from worker.ingest.messages import Change, Entry, Group
from worker.ingest.outcomes import Key, ReceiptRow, Row, Stored, VersionRow, plan
from worker.ingest.writer import Writer

NOW = 1_700_000_100.25


@dataclass
class Confirmed:
    """Takes committed groups, and confirms each at once unless told to hold it."""

    hold: bool = False
    groups: list[Group] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    there_is_room: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()
        self.there_is_room.set()

    async def room(self) -> None:
        """See `worker.ingest.writer.Committed`."""
        await self.there_is_room.wait()

    @property
    def sizes(self) -> list[int]:
        """How many messages each group had."""
        return [len(group.entries) for group in self.groups]

    def add(self, group: Group) -> None:
        """See `worker.ingest.writer.Committed`."""
        self.groups.append(group)
        if not self.hold:
            group.succeed()


@dataclass
class Bench:
    """A database with the newest schema, read and changed from outside the writer."""

    place: Place

    @property
    def on_sqlite(self) -> SqlitePlace:
        """The database of a test that is about SQLite's own bounds."""
        assert isinstance(self.place, SqlitePlace)
        return self.place

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What a query finds."""
        with self._connection() as connection:
            return rows_of(connection, query)

    def execute(self, statement: str) -> None:
        """Change the database as nobody in the worker would."""
        with self._connection() as connection:
            connection.execute_sql(statement)

    @property
    def users(self) -> list[int]:
        """The ids of the users there are."""
        return [row["user_id"] for row in self.rows("SELECT user_id FROM users ORDER BY 1")]

    @property
    def outcomes(self) -> dict[str, str]:
        """What each handled message did, as its receipt says."""
        return {row["message_id"]: row["outcome"] for row in self.rows("SELECT * FROM receipts ORDER BY message_id")}

    @contextlib.asynccontextmanager
    async def writing(
        self,
        committed: Confirmed,
        *,
        group_max: int = 500,
        gather: float = 0.0,
        busy: float = 5.0,
        pages: int | None = None,
        has_room: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[tuple[Writer, "asyncio.Task[None]"]]:
        """A running writer and its task."""
        engine = self.place.engine(wait_seconds=busy)
        if pages is not None:
            assert isinstance(engine, SqliteEngine)
            engine.database.init(str(self.on_sqlite.path), pragmas={"journal_mode": "wal", "max_page_count": pages})
        async with Writer(
            engine,
            committed,
            CATALOG,
            epoch=7,
            group_max=group_max,
            gather_seconds=gather,
            has_room=has_room,
            wall_clock=lambda: NOW,
        ) as writer:
            task = asyncio.create_task(writer.run())
            try:
                yield writer, task
            finally:
                task.cancel()
                await asyncio.wait({task})

    def write(self, *groups: Callable[[], list[Entry]], **options: Any) -> list[object]:
        """Write groups one after the other; each message's outcome, or the error that answered it."""

        async def body() -> list[object]:
            answers: list[object] = []
            async with self.writing(Confirmed(), **options) as (writer, _):
                for group in groups:
                    answers += await submitted(writer, group())
            return answers

        return asyncio.run(body())

    @contextlib.contextmanager
    def _connection(self) -> Any:
        connection = self.place.outside()
        with connection.connection_context():
            yield connection


async def submitted(writer: Writer, entries: list[Entry]) -> list[object]:
    """Submit in one turn of the loop, so that they make one group, and wait for every answer."""
    for each in entries:
        writer.submit(each)
    async with asyncio.timeout(20):
        return await asyncio.gather(*(each.done for each in entries), return_exceptions=True)


def resident_bytes() -> int:
    """What this process has in memory, files left out."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def kinds(answers: list[object]) -> list[object]:
    """Outcomes as they are, errors as their types."""
    return [type(answer) if isinstance(answer, Exception) else answer for answer in answers]


@pytest.fixture
def bench(engine: Made) -> Bench:
    """A new database of each engine."""
    return Bench(engine(CATALOG))


on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""For a test that is about SQLite's own bounds."""


def test_a_new_user_is_created(bench: Bench) -> None:
    """The row says what the message says, and the receipt who did it, when and why."""
    assert bench.write(lambda: [entry(5, "m1", email="a@example.com", settings="{}", created_at=12)]) == ["created"]
    assert bench.rows("SELECT * FROM users") == [
        {"user_id": 5, "email_address": "a@example.com", "created_at": 12, "deleted": 0, "settings": "{}"}
    ]
    assert bench.rows("SELECT * FROM receipts") == [
        {
            "message_id": "m1",
            "subject": "5",
            "outcome": "created",
            "publish_time": PUBLISHED,
            "processed_at": 1_700_000_100_250,
            "epoch": 7,
        }
    ]
    assert bench.rows("SELECT * FROM rejections") == []


def test_the_largest_id_and_time_fit(bench: Bench) -> None:
    """The columns hold every value the format allows."""
    assert bench.write(lambda: [entry(2**63 - 1, "m1", created_at=253_402_300_799)]) == ["created"]
    assert bench.rows("SELECT user_id, created_at FROM users") == [{"user_id": 2**63 - 1, "created_at": 253_402_300_799}]


def test_created_at_defaults_to_the_publish_time(bench: Bench) -> None:
    """Not to now: a replay a month later must give the same row."""
    bench.write(lambda: [entry(5, "m1", publish_time=1_234_567_890_999)])
    assert bench.rows("SELECT created_at FROM users") == [{"created_at": 1_234_567_890}]


SECONDS: dict[str, tuple[Callable[[], Entry], str, str]] = {
    "the same message": (lambda: entry(5, "m1", email="a", created_at=9), "duplicate", "created"),
    "the same id with other content": (lambda: entry(6, "m1", email="b"), "duplicate", "created"),
    "the same user and content": (lambda: entry(5, "m2", email="a", created_at=9), "exists", "exists"),
    "the same user, time not stated": (lambda: entry(5, "m2", email="a", publish_time=99_000), "exists", "exists"),
    "another address": (lambda: entry(5, "m2", email="b", created_at=9), "conflict", "conflict"),
    "no address": (lambda: entry(5, "m2", created_at=9), "conflict", "conflict"),
    "other settings": (lambda: entry(5, "m2", email="a", settings="x", created_at=9), "conflict", "conflict"),
    "another time": (lambda: entry(5, "m2", email="a", created_at=10), "conflict", "conflict"),
    "another user": (lambda: entry(6, "m2", email="a", created_at=9), "created", "created"),
}


@pytest.mark.parametrize("together", [True, False], ids=["in one group", "in two groups"])
@pytest.mark.parametrize("case", SECONDS)
def test_what_a_second_message_does(bench: Bench, case: str, together: bool) -> None:
    """INV-3: it depends on the first message alone, not on whether both are in one group."""
    second, outcome, kept = SECONDS[case]

    def first() -> Entry:
        return entry(5, "m1", email="a", created_at=9)

    groups = [lambda: [first(), second()]] if together else [lambda: [first()], lambda: [second()]]
    assert bench.write(*groups) == ["created", outcome]
    assert bench.rows("SELECT email_address, created_at FROM users WHERE user_id = 5") == [
        {"email_address": "a", "created_at": 9}
    ]
    assert list(bench.outcomes.values())[-1] == kept
    assert len(bench.rows("SELECT * FROM rejections")) == (outcome == "conflict")


def test_a_conflict_is_kept_with_both_sides(bench: Bench) -> None:
    """INV-6: its bytes, attributes, the row that it met, and the names of what differs, for the operator to decide."""
    bench.write(lambda: [entry(5, "m1", email="a", created_at=9)], lambda: [entry(5, "m2", email="b", created_at=10)])
    (kept,) = bench.rows("SELECT * FROM rejections")
    assert json.loads(kept.pop("stored")) == {
        "user_id": 5,
        "deleted": 0,
        "settings": None,
        "email_address": "a",
        "created_at": 9,
    }
    assert json.loads(kept.pop("attributes")) == {"source": "test"}
    assert kept == {
        "message_id": "m2",
        "reason": "conflict",
        "detail": "users has this user_id with another email_address and created_at",
        "data": b'{"user_id":5,"email_address":"b","created_at":10}',
        "publish_time": PUBLISHED,
        "received_at": 1_700_000_100_250,
        "delivery_attempt": None,
        "resolved_at": None,
        "resolution": None,
        "body": None,
        "bytes": 49,
        "about": "5",
    }


def test_a_malformed_message_is_kept_and_harms_nobody(bench: Bench) -> None:
    """INV-6: its bytes, its reason and its delivery attempt are kept beside the good messages of its group, once."""
    assert bench.write(lambda: [entry(5, "m1"), malformed("m2"), entry(6, "m3")], lambda: [malformed("m2")]) == [
        "created",
        "rejected",
        "created",
        "duplicate",
    ]
    assert bench.users == [5, 6]
    assert bench.outcomes == {"m1": "created", "m2": "rejected", "m3": "created"}
    assert bench.rows("SELECT message_id, reason, detail, stored, data, attributes, delivery_attempt FROM rejections") == [
        {
            "message_id": "m2",
            "reason": "not_json",
            "detail": "data must be a JSON object",
            "stored": None,
            "data": b"{",
            "attributes": "{}",
            "delivery_attempt": 3,
        }
    ]
    assert bench.rows("SELECT subject FROM receipts WHERE message_id = 'm2'") == [{"subject": None}]


def test_a_retry_never_overwrites(bench: Bench) -> None:
    """However often a message comes, the first row, the first receipt and one rejection stay as they were."""
    bench.write(lambda: [entry(5, "m1", email="a")], lambda: [entry(5, "m2", email="b")])
    tables = ("users", "receipts", "rejections")
    before = [bench.rows(f"SELECT * FROM {table}") for table in tables]
    bench.execute("UPDATE users SET settings = 'changed since'")
    again = bench.write(lambda: [entry(5, "m2", email="b"), entry(5, "m1", email="a")], lambda: [entry(5, "m1", email="a")])
    assert again == ["duplicate"] * 3
    bench.execute("UPDATE users SET settings = NULL")
    assert [bench.rows(f"SELECT * FROM {table}") for table in tables] == before


def test_a_replay_after_its_receipt_was_pruned_keeps_one_rejection(bench: Bench) -> None:
    """A rejection outlives its receipt, so a late replay meets it: not an error, and not a second one."""
    bench.write(lambda: [entry(5, "m1", email="a")], lambda: [entry(5, "m2", email="b")])
    bench.execute("DELETE FROM receipts")
    bench.execute("UPDATE rejections SET resolved_at = 1")
    assert bench.write(lambda: [entry(5, "m2", email="b")]) == ["conflict"]
    assert bench.rows("SELECT message_id, resolved_at FROM rejections") == [{"message_id": "m2", "resolved_at": 1}]


@pytest.mark.parametrize(("table", "column"), [("users", "user_id"), ("receipts", "subject")])
def test_a_row_that_only_the_database_refuses_fails_alone(bench: Bench, table: str, column: str) -> None:
    """INV-6: the group is written again one message at a time, everybody else is committed, and it is kept."""
    bench.place.refuse(table, column, "13")
    answers = bench.write(lambda: [entry(user, f"m{user}") for user in (11, 12, 13, 14)])
    assert answers == ["created", "created", "rejected", "created"]
    assert bench.users == [11, 12, 14]
    assert bench.outcomes == {"m11": "created", "m12": "created", "m13": "rejected", "m14": "created"}
    (kept,) = bench.rows("SELECT message_id, reason, detail, data FROM rejections")
    assert kept == {
        "message_id": "m13",
        "reason": "not_storable",
        "detail": "the database refused the row: IntegrityError; the log says why",
        "data": b'{"user_id":13}',
    }


def test_the_log_says_what_refused_a_row_and_not_what_it_held(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """On either database; PostgreSQL quotes the row in what it says of the error."""
    bench.place.refuse("users", "user_id", "13")
    assert bench.write(lambda: [entry(13, "m13", email="s3cret")]) == ["rejected"]
    assert "IntegrityError" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_row_that_another_constraint_refuses_is_not_taken_for_written(bench: Bench) -> None:
    """A refusal by a constraint that the plan does not know is a rejection, never a row silently left out."""
    bench.execute("CREATE UNIQUE INDEX addresses ON users (email_address)")
    answers = bench.write(lambda: [entry(1, "m1", email="a"), entry(2, "m2", email="a"), entry(3, "m3", email="c")])
    assert answers == ["created", "rejected", "created"]
    assert bench.users == [1, 3]


def test_a_rejection_that_another_constraint_refuses_is_not_taken_for_kept(bench: Bench) -> None:
    """INV-6: one that was made before is met by its id alone; any other refusal leaves the message in the queue."""
    bench.execute("CREATE UNIQUE INDEX one_of_each ON rejections (data)")
    answers = bench.write(lambda: [malformed("m1"), entry(5, "m2"), malformed("m3")])
    assert kinds(answers) == ["rejected", "created", Unwritable]
    assert [row["message_id"] for row in bench.rows("SELECT message_id FROM rejections")] == ["m1"]
    assert bench.outcomes == {"m1": "rejected", "m2": "created"}


@pytest.mark.parametrize("table", ["receipts", "rejections"])
def test_what_cannot_even_be_kept_stays_in_the_queue(bench: Bench, table: str) -> None:
    """INV-3: receipt and rejection are one transaction; without both there is neither, and no acknowledgement."""
    bench.place.refuse("users", "user_id", "13")
    bench.place.refuse(table, "message_id", "m13")
    assert kinds(bench.write(lambda: [entry(12, "m12"), entry(13, "m13")])) == ["created", Unwritable]
    assert bench.rows("SELECT * FROM rejections") == []
    assert bench.outcomes == {"m12": "created"}


def test_effect_and_receipt_are_one_transaction(bench: Bench) -> None:
    """INV-3: where the receipt cannot be written, neither can the user."""
    bench.place.refuse("receipts", "message_id", "m13")
    assert kinds(bench.write(lambda: [entry(13, "m13")])) == [Unwritable]
    assert bench.users == []


def test_a_locked_database_is_an_outage(bench: Bench) -> None:
    """INV-9: everybody is answered 503, nothing is kept as rejected, and the writer goes on once it is free."""

    async def body() -> None:
        async with bench.writing(Confirmed(), busy=0.02) as (writer, _):
            with bench.place.locked():
                refused = await submitted(writer, [entry(1, "m1"), entry(2, "m2")])
            assert kinds(refused) == [Refused, Refused]
            assert await submitted(writer, [entry(1, "m1"), entry(2, "m2")]) == ["created", "created"]

    asyncio.run(body())
    assert bench.rows("SELECT * FROM rejections") == []


@on_sqlite
def test_a_full_disk_is_an_outage(bench: Bench) -> None:
    """INV-9: the transaction is gone as a whole, and what fits is still written afterwards."""
    bench.execute("VACUUM")
    (size,) = bench.rows("PRAGMA page_count")

    async def body() -> None:
        async with bench.writing(Confirmed(), pages=size["page_count"]) as (writer, _):
            big = "x" * 100_000
            refused = await submitted(writer, [entry(1, "m1"), entry(2, "m2", settings=big)])
            assert kinds(refused) == [Refused, Refused]
            assert await submitted(writer, [entry(3, "m3")]) == ["created"]

    asyncio.run(body())
    assert bench.users == [3]
    assert set(bench.outcomes) == {"m3"}


def test_messages_leave_room_for_changes(bench: Bench) -> None:
    """INV-7: on a full disk messages are answered 503, and what an operator discards or erases still goes through."""
    room = [False]

    async def body() -> None:
        async with bench.writing(Confirmed(), has_room=lambda: room[0]) as (writer, _):
            (refused,) = await submitted(writer, [entry(1, "m1")])
            assert isinstance(refused, Refused)
            assert refused.reason == "disk"
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            writer.submit(Change(lambda transaction: transaction.epoch, float("inf"), done))
            assert await done == writer.epoch
            room[0] = True
            assert await submitted(writer, [entry(1, "m1")]) == ["created"]

    asyncio.run(body())


@on_sqlite
def test_an_outage_in_the_middle_of_isolation_refuses_the_rest(bench: Bench) -> None:
    """What was committed singly before the disk filled up is answered 503 too, and its redelivery is a duplicate."""
    bench.place.refuse("users", "user_id", "13")
    (size,) = bench.rows("PRAGMA page_count")

    async def body() -> None:
        async with bench.writing(Confirmed(), pages=size["page_count"]) as (writer, _):
            answers = await submitted(writer, [entry(1, "m1"), entry(13, "m13"), entry(2, "m2", settings="x" * 100_000)])
            assert kinds(answers) == [Refused, Refused, Refused]
            assert await submitted(writer, [entry(1, "m1")]) == ["duplicate"]

    asyncio.run(body())


def test_nothing_is_answered_by_the_commit(bench: Bench) -> None:
    """INV-1: a committed message has its outcome, but only the confirmation gives it to the sender."""

    async def body() -> None:
        committed = Confirmed(hold=True)
        async with bench.writing(committed) as (writer, _):
            waiting = entry(1, "m1")
            writer.submit(waiting)
            await until(lambda: committed.groups)
            assert bench.users == [1]
            await turns()
            assert not waiting.done.done()
            committed.groups[0].succeed()
            assert await waiting.done == "created"

    asyncio.run(body())


def test_a_group_is_bounded(bench: Bench) -> None:
    """INV-7: GROUP_MAX_MESSAGES at most, in the order they came."""

    async def body() -> None:
        committed = Confirmed()
        async with bench.writing(committed, group_max=4) as (writer, _):
            await submitted(writer, [entry(user, f"m{user}") for user in range(1, 11)])
        assert committed.sizes == [4, 4, 2]
        messages = [
            each.delivery.message_id for group in committed.groups for each in group.entries if isinstance(each, Entry)
        ]
        assert messages == [f"m{user}" for user in range(1, 11)]

    asyncio.run(body())


def test_a_group_grows_while_another_is_being_confirmed(bench: Bench) -> None:
    """A group committed now would only wait, so it is gathered until the confirmation under way ends."""

    async def body() -> None:
        committed = Confirmed()
        committed.idle.clear()
        async with bench.writing(committed, gather=60) as (writer, _):
            entries = [entry(user, f"m{user}") for user in (1, 2, 3)]
            for each in entries:
                writer.submit(each)
                await turns()
            assert committed.sizes == []
            committed.idle.set()
            await until(lambda: committed.groups)
            assert committed.sizes == [3]

    asyncio.run(body())


def test_gathering_is_bounded(bench: Bench) -> None:
    """INV-7: a confirmation that hangs holds a group up for GATHER_SECONDS at most."""

    async def body() -> None:
        committed = Confirmed()
        committed.idle.clear()
        async with bench.writing(committed, gather=0.01) as (writer, _):
            assert await submitted(writer, [entry()]) == ["created"]

    asyncio.run(body())


def test_a_full_group_is_not_gathered(bench: Bench) -> None:
    """It cannot grow, so there is nothing to wait for."""

    async def body() -> None:
        committed = Confirmed()
        committed.idle.clear()
        async with bench.writing(committed, gather=60, group_max=2) as (writer, _):
            assert await submitted(writer, [entry(1, "m1"), entry(2, "m2")]) == ["created", "created"]

    asyncio.run(body())


def test_what_was_written_is_not_kept_in_memory(bench: Bench) -> None:
    """INV-7: a group of another size is another statement, and each that is kept keeps the values it ran with last."""
    megabyte = "x" * 1_000_000

    def group(size: int) -> list[Entry]:
        _, *rest = [entry(100 * size + number, f"m{size}-{number}") for number in range(size)]
        return [entry(100 * size, f"m{size}", settings=megabyte), *rest]

    async def body() -> None:
        committed, before = Confirmed(), 0
        async with bench.writing(committed) as (writer, _):
            for size in range(1, 61):
                await submitted(writer, group(size))
                committed.groups.clear()
                before = before if size > 10 else resident_bytes()
            assert resident_bytes() - before < 20_000_000

    asyncio.run(body())
    assert len(bench.users) == sum(range(1, 61))


def test_senders_that_went_away_are_passed_over(bench: Bench) -> None:
    """Nobody waits for them any more, so they are not written; the queue delivers them again."""

    async def body() -> None:
        committed = Confirmed()
        async with bench.writing(committed) as (writer, _):
            gone, here = entry(1, "m1"), entry(2, "m2")
            gone.done.cancel()
            writer.submit(gone)
            writer.submit(here)
            assert await here.done == "created"
            alone = entry(3, "m3")
            alone.done.cancel()
            writer.submit(alone)
            await turns()
        assert committed.sizes == [1]

    asyncio.run(body())
    assert bench.users == [2]


def test_a_sender_that_goes_away_during_the_commit_disturbs_nobody(bench: Bench) -> None:
    """The group is confirmed for the others."""

    async def body() -> None:
        committed = Confirmed(hold=True)
        async with bench.writing(committed) as (writer, _):
            gone, here = entry(1, "m1"), entry(2, "m2")
            writer.submit(gone)
            writer.submit(here)
            await until(lambda: committed.groups)
            gone.done.cancel()
            committed.groups[0].succeed()
            assert await here.done == "created"

    asyncio.run(body())


def test_closing_refuses_what_is_pending(bench: Bench) -> None:
    """What no transaction has taken up yet is answered 503, not left to its hold limit."""

    async def body() -> None:
        committed = Confirmed()
        committed.idle.clear()
        async with bench.writing(committed, gather=60) as (writer, _):
            waiting = entry()
            writer.submit(waiting)
            await turns()
        with pytest.raises(Refused, match="the service is stopping"):
            await waiting.done

    asyncio.run(body())
    assert bench.users == []


def test_cancelled_during_a_commit_the_group_is_refused_at_once(bench: Bench) -> None:
    """The transaction may still commit, but nobody will confirm it: 503 now, and the connection closes after it."""

    async def body() -> None:
        committed = Confirmed()
        async with bench.writing(committed, busy=20) as (writer, task):
            with bench.place.locked():
                waiting = entry()
                writer.submit(waiting)
                await turns()
                task.cancel()
                await asyncio.wait({task})
                assert kinds([waiting.done.exception()]) == [Refused]
        assert committed.groups == []

    asyncio.run(body())
    assert bench.write(lambda: [entry()]) in (["duplicate"], ["created"])
    assert bench.users == [1]


def test_a_bug_ends_the_writer_and_answers_its_group(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is neither a row's nor the database's is not swallowed: the task dies and says so."""

    async def body() -> None:
        async with bench.writing(Confirmed()) as (writer, task):

            def broken(entries: list[Entry]) -> list[str]:
                raise KeyError("a bug")

            monkeypatch.setattr(writer, "_write", broken)
            assert kinds(await submitted(writer, [entry()])) == [Refused]
            await asyncio.wait({task})
            assert isinstance(task.exception(), KeyError)

    asyncio.run(body())


@on_sqlite
def test_leaving_closes_the_connection(bench: Bench) -> None:
    """The database's last connection is gone, so Litestream alone has it open for the final sync."""

    async def body() -> peewee.SqliteDatabase:
        connection = connections.connect(bench.on_sqlite.path, busy_timeout_seconds=5)
        async with Writer(SqliteEngine(connection), Confirmed(), CATALOG, epoch=1, group_max=1, gather_seconds=0):
            pass
        return connection

    assert asyncio.run(body()).is_closed()


def test_without_room_nothing_is_committed_and_nothing_piles_up(bench: Bench) -> None:
    """INV-7: while too much is committed and not confirmed the writer waits; what was answered 503 meanwhile is dropped."""

    async def body() -> None:
        committed = Confirmed()
        committed.there_is_room.clear()
        async with bench.writing(committed) as (writer, _):
            for number in range(1, 1000):
                given_up = entry(number)
                writer.submit(given_up)
                given_up.done.cancel()
            last = entry(1000)
            writer.submit(last)
            await turns()
            assert bench.users == []
            assert writer.pending == 1
            committed.there_is_room.set()
            assert await last.done == "created"

    asyncio.run(body())
    assert bench.users == [1000]


def test_repr_says_what_is_pending(bench: Bench) -> None:
    """A log line a person can read."""

    async def body() -> str:
        async with Writer(
            bench.place.engine(),
            Confirmed(),
            CATALOG,
            epoch=7,
            group_max=1,
            gather_seconds=0,
        ) as writer:
            writer.submit(entry())
            return repr(writer)

    assert asyncio.run(body()) == "<Writer at epoch 7, 1 pending>"


MESSAGES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([None, "a", "b"]), st.sampled_from([None, 1, 2])),
    max_size=12,
)


@given(MESSAGES, st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_grouping_changes_nothing(messages: list[tuple[int, int, str | None, int | None]], cuts: list[int]) -> None:
    """INV-3: the same messages in the same order give the same rows and outcomes however they are grouped."""
    loop = asyncio.new_event_loop()
    try:
        entries = [
            Entry(
                message := delivery(f"m{number}", UserCreated(user_id=user, email_address=email, created_at=time)),
                read(message.data),
                0,
                loop.create_future(),
            )
            for number, user, email, time in messages
        ]
    finally:
        loop.close()
    assert planned(entries, [1] * len(entries)) == planned(entries, cuts)


def planned(entries: list[Entry], sizes: list[int]) -> tuple[object, ...]:
    """Plan the entries in groups of these sizes, each on what the groups before it wrote."""
    users: dict[Key, Row] = {}
    versions: dict[str, VersionRow] = {}
    receipts: dict[str, ReceiptRow] = {}
    rejections: list[dict[str, Any]] = []
    outcomes: list[str] = []
    left = list(entries)
    for size in sizes:
        group, left = left[:size], left[size:]
        stored = Stored({"users": dict(users)}, dict(versions), frozenset())
        made = plan(group, catalog=CATALOG, receipts=list(receipts), stored=stored, epoch=1, now=1)
        created = made.created.get("users", {})
        assert not users.keys() & created.keys()
        assert not receipts.keys() & {row.message_id for row in made.receipts}
        users |= created | made.changed.get("users", {})
        versions |= made.versions
        receipts |= {row.message_id: row for row in made.receipts}
        rejections += made.rejections
        outcomes += made.outcomes
    return users, versions, receipts, rejections, outcomes
