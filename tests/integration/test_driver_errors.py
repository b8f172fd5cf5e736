"""No value of a row is in a log line, an HTTP answer or a rejection, whatever PostgreSQL says about it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import secrets
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peewee
import psycopg
import pytest

from tests.engines import Databases, PostgresqlPlace, rows_of
from tests.entries import CATALOG, entry
from tests.unit.ingest.test_writer import Confirmed, submitted
from worker.database import copying, postgresql, schema
from worker.database.connections import connect
from worker.database.driver_errors import sqlstate, translated
from worker.database.postgresql import PostgresqlEngine, PostgresqlReader
from worker.errors import MoveFailed, Refused, SchemaDiffers
from worker.events.users import User
from worker.ingest.messages import Change
from worker.ingest.writer import Writer
from worker.telemetry import logs

pytestmark = [pytest.mark.slow, pytest.mark.postgresql]

SECRET = "planted-7f3a"
ADDRESS = f'"{SECRET}"@example.com'
"""With quotation marks, so that nothing can be found by them."""

PLPGSQL = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN new; END $$",
    "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON users {when} FOR EACH ROW EXECUTE FUNCTION refuse()",
)


def trigger(body: str, when: str = "") -> list[str]:
    """Statements that have each new user meet this code."""
    return [part.format(body=body, when=when) for part in PLPGSQL]


REFUSALS: dict[str, tuple[list[str], str]] = {
    "a unique value": (
        [
            "CREATE UNIQUE INDEX one_address ON users (email_address)",
            f"INSERT INTO users (user_id, email_address) VALUES (99, '{ADDRESS}')",
        ],
        "23505 UniqueViolation: constraint one_address, table users",
    ),
    "a check": (
        ["ALTER TABLE users ADD CONSTRAINT short CHECK (length(email_address) < 3)"],
        "23514 CheckViolation: constraint short, table users",
    ),
    "a cast in a trigger": (trigger("PERFORM new.email_address::int"), "22P02 InvalidTextRepresentation"),
    "a statement made of a value": (
        trigger("EXECUTE 'SELECT ' || new.email_address"),
        "42703 UndefinedColumn",
    ),
    "a trigger's own text": (
        trigger("RAISE 'no: %', new.email_address USING DETAIL = new.email_address, HINT = new.email_address"),
        "P0001 RaiseException, raised by a function of the database",
    ),
    "a trigger's text and names, as an outage": (
        trigger("RAISE 'no: %', new.email_address USING ERRCODE = '57000', TABLE = new.email_address"),
        "57000 OperatorIntervention, raised by a function of the database",
    ),
    "a check at the COMMIT": (
        trigger("RAISE 'no: %', new.email_address USING ERRCODE = '23000'", "DEFERRABLE INITIALLY DEFERRED"),
        "23000 IntegrityConstraintViolation, raised by a function of the database",
    ),
    "a warning at the COMMIT": (
        trigger("RAISE WARNING 'no: %', new.email_address", "DEFERRABLE INITIALLY DEFERRED"),
        "01000 Warning, raised by a function of the database",
    ),
    "a number out of range": (
        ["ALTER TABLE users ALTER email_address TYPE varchar(5)"],
        "22001 StringDataRightTruncation",
    ),
    "an index row": (
        ["CREATE INDEX address ON users (email_address)"],
        "54000 ProgramLimitExceeded: index row requires",
    ),
}


@pytest.fixture
def place(databases: Databases) -> Iterator[PostgresqlPlace]:
    """A new database."""
    with databases.place(CATALOG) as made:
        yield made


@pytest.fixture
def lines() -> Iterator[Callable[[], str]]:
    """Every line that the log would have, at its most talkative, with the traces of errors."""
    before = logging.getLogger().handlers[:], logging.getLogger().level
    stream = io.StringIO()
    logs.configure("debug", stream)
    yield stream.getvalue
    logging.getLogger().handlers[:], logging.getLogger().level = before


def write(place: PostgresqlPlace, address: str) -> list[object]:
    """Handle a message with this address beside another one; what each was answered."""

    async def body() -> list[object]:
        committed = Confirmed()
        async with Writer(place.engine(), committed, CATALOG, epoch=7) as writer:
            task = asyncio.create_task(writer.run())
            try:
                return await submitted(writer, [entry(1, "m1", email="a"), entry(2, "m2", email=address)])
            finally:
                task.cancel()
                await asyncio.wait({task})

    return asyncio.run(body())


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_row_is_logged_without_its_values(place: PostgresqlPlace, lines: Callable[[], str], case: str) -> None:
    """The log has the code, the constraint and the table; neither a value nor the server's words about one."""
    statements, told = REFUSALS[case]
    place.run(*statements)
    # No compression brings the long one into the index.
    address = SECRET + secrets.token_hex(20_000) if case == "an index row" else ADDRESS
    answers = write(place, address)
    text = lines()
    assert json.loads(text.splitlines()[0])["action"].startswith("writer.")
    assert told in text.replace('\\"', '"')
    assert SECRET not in text
    assert SECRET not in str(answers)
    with place.outside().connection_context() as _, psycopg.connect(place.url) as connection:
        kept = connection.execute("SELECT reason, detail FROM rejections").fetchall()
    assert SECRET not in str(kept)


def test_a_change_that_is_refused_is_logged_without_its_values(place: PostgresqlPlace, lines: Callable[[], str]) -> None:
    """An operator's change has the same log and an answer of our own words."""
    place.run(*REFUSALS["a check"][0])

    def insert(transaction: Any) -> None:
        User.insert(user_id=5, email_address=ADDRESS).execute(transaction.database)

    async def body() -> object:
        async with Writer(place.engine(), Confirmed(), CATALOG, epoch=7) as writer:
            task = asyncio.create_task(writer.run())
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            writer.submit(Change(insert, float("inf"), done))
            await asyncio.wait({done})
            task.cancel()
            await asyncio.wait({task})
            return done.exception()

    answer = asyncio.run(body())
    assert "23514 CheckViolation: constraint short, table users" in lines()
    assert SECRET not in lines() + str(answer)


def test_a_read_that_fails_is_answered_without_values(place: PostgresqlPlace) -> None:
    """The text of a 503 goes to the operator, and into the log of the command that asked."""
    reader = PostgresqlReader(place.server())
    for statement in (f"SELECT '{SECRET}'::int", f'SELECT "{SECRET}"::int FROM (SELECT \'{SECRET}\' AS "{SECRET}") s'):
        with pytest.raises(Refused) as raised:
            reader.read(lambda database, statement=statement: rows_of(database, statement))  # type: ignore[misc]
        assert str(raised.value) == "the database cannot be read now: 22P02 InvalidTextRepresentation; ask again"
    reader.close()


@pytest.mark.parametrize("case", ["a check", "a trigger's own text", "a cast in a trigger"])
def test_a_copy_that_fails_is_told_without_values(place: PostgresqlPlace, tmp_path: Path, case: str) -> None:
    """`worker move`: COPY's errors quote the line that they met."""
    place.run(*REFUSALS[case][0])
    file = tmp_path / "users.db"
    schema.migrate(file, CATALOG)
    source, target = connect(file), place.server().connect()
    target.connect()
    try:
        with source.connection_context():
            User.insert(user_id=5, email_address=ADDRESS).execute(source)
            told = re.escape(f"users cannot be copied: {REFUSALS[case][1]}")
            with pytest.raises(MoveFailed, match=f"^{told}") as raised, target.atomic():
                copying.copy_table(source, target, User)
    finally:
        postgresql.drop(target)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_a_migration_that_fails_is_told_without_values(databases: Databases, place: PostgresqlPlace) -> None:
    """A migration meets rows as well: two of one value under a new unique index."""
    place.run(
        f"INSERT INTO users (user_id, email_address) VALUES (1, '{ADDRESS}'), (2, '{ADDRESS}')",
        "ALTER TABLE users ALTER deleted TYPE text",
    )
    database = place.server().connect()
    database.connect()
    try:
        with pytest.raises(peewee.IntegrityError) as raised:
            rows_of(database, "CREATE UNIQUE INDEX one ON users (email_address)")
        assert str(raised.value) == "23505 UniqueViolation: constraint one, table users"
        with pytest.raises(SchemaDiffers) as differs:
            schema.up(database, CATALOG)
        assert SECRET not in str(differs.value)
    finally:
        postgresql.drop(database)


def test_what_is_no_rows_fault_keeps_the_servers_words(place: PostgresqlPlace) -> None:
    """An outage can be told from its line: a timeout, a wrong password's message, a server that is not there."""
    engine: PostgresqlEngine = place.engine(wait_seconds=0.05)
    engine.open()
    with place.locked(), pytest.raises(peewee.OperationalError) as raised:
        engine.run(lambda database: None)
    engine.close()
    assert str(raised.value) == "57014 QueryCanceled: canceling statement due to statement timeout"
    assert sqlstate(raised.value) == "57014"
    with pytest.raises(peewee.OperationalError, match="refused"), translated():
        postgresql.Server(url="postgresql://a@127.0.0.1:1/b").connect().connect()


def test_a_value_that_the_driver_refuses_is_not_told(place: PostgresqlPlace) -> None:
    """Before the server has seen it there is no code, only the driver's words."""
    database = place.outside()
    with database.connection_context(), pytest.raises(peewee.DataError) as raised:
        database.execute_sql("SELECT %s", (f"{SECRET}\0",))  # type: ignore[no-untyped-call]
    assert str(raised.value) == "the driver refuses a value: DataError"
