"""Copying between a SQLite file and a real PostgreSQL: what one of them refuses, and how much is in memory."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.postgres import Postgres, postgres
from tests.entries import CATALOG
from worker.database import connections, copying, postgresql, schema
from worker.database.models import Rejection
from worker.database.postgresql import Server
from worker.errors import MoveFailed
from worker.operations import move
from worker.operations.move import _copy, _export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server."""
    with postgres() as running:
        yield running


def silent(_: str) -> None:
    """Say nothing."""


def gone(_: str) -> None:
    """The bytes of no large message are there."""


def store(folder: Path, *statements: str) -> Path:
    """A SQLite store in which these statements were run."""
    file = folder / "users.db"
    schema.migrate(file, CATALOG)
    with contextlib.closing(sqlite3.connect(file)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    return file


def target(server: Postgres, name: str) -> Server:
    """A new database with all tables."""
    found = Server(url=server.create(name))
    postgresql.migrate(found, CATALOG)
    return found


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("nul", "INSERT INTO users VALUES (1, 'a' || char(0) || 'b', 0, 0, NULL)"),
        ("words", "INSERT INTO users VALUES (1, NULL, 'yesterday', 0, NULL)"),
        ("fraction", "INSERT INTO users VALUES (1, NULL, 1.5, 0, NULL)"),
        ("bytes", "INSERT INTO users VALUES (1, x'6162', 0, 0, NULL)"),
    ],
)
def test_a_value_that_only_sqlite_holds_fails_the_move(server: Postgres, tmp_path: Path, name: str, statement: str) -> None:
    """A file of another service may hold any value in any column. It is no other value afterwards, and not a traceback."""
    there = target(server, name)
    with pytest.raises(MoveFailed, match="users"):
        _copy(store(tmp_path, statement), there, CATALOG, gone, silent)
    assert server.execute("SELECT count(*) FROM users", database=name) == [(0,)]


def test_a_row_that_sqlite_refuses_fails_the_export(server: Postgres, tmp_path: Path) -> None:
    """A table that is stricter in the file: no traceback, and no half a file."""
    there = target(server, "strict")
    server.execute("INSERT INTO users VALUES (1, NULL, 0, 0, NULL)", database="strict")
    file = store(tmp_path, "CREATE TRIGGER strict BEFORE INSERT ON users BEGIN SELECT RAISE(ABORT, 'too strict'); END")
    with pytest.raises(MoveFailed, match="users"):
        _export(file, there, CATALOG, silent)


def test_few_large_rows_are_in_memory_at_once(tmp_path: Path) -> None:
    """INV-7: PostgreSQL's rejections hold the bytes of messages of any size; a thousand of 10 MB would be 10 GB."""
    made = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) "
        "INSERT INTO rejections (message_id, reason, detail, data, attributes, publish_time, received_at) "
        "SELECT 'm' || i, 'not_json', '', zeroblob(1000000), '{}', 0, 0 FROM n"
    )
    database = connections.connect(store(tmp_path, made), read_only=True)
    with database.connection_context():
        tracemalloc.start()
        try:
            count = sum(1 for _ in copying.rows_of(database, Rejection))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (count, peak < 30_000_000) == (60, True)


def test_a_large_message_whose_bytes_are_gone_is_moved_as_that(server: Postgres, tmp_path: Path) -> None:
    """A retry would take a message without bytes for one that is not JSON; the name of its object says what happened."""
    named = (
        "INSERT INTO rejections (message_id, reason, detail, data, attributes, publish_time, received_at, body, bytes) "
        "VALUES ('m1', 'not_json', '', x'', '{}', 0, 0, 'rejected/1/a', 300000)"
    )
    there = target(server, "deleted")
    _copy(store(tmp_path, named), there, CATALOG, gone, silent)
    assert server.execute("SELECT length(data), body FROM rejections", database="deleted") == [(0, "rejected/1/a")]


def test_a_store_of_more_events_than_the_command_knows_is_not_moved(server: Postgres, tmp_path: Path) -> None:
    """A laptop's EVENTS is not the service's: the orders would stay behind, and each table that is copied would be right."""
    file = store(tmp_path, "CREATE TABLE schema_migration_acme_orders (name TEXT)", "CREATE TABLE orders (id INTEGER)")
    with pytest.raises(MoveFailed, match="set EVENTS as the service has it"):
        _copy(file, target(server, "fewer"), CATALOG, gone, silent)


def test_a_table_that_no_event_writes_is_named(server: Postgres, tmp_path: Path) -> None:
    """It is of the service before, and stays in the bucket."""
    told: list[str] = []
    _copy(store(tmp_path, "CREATE TABLE posts (id INTEGER)"), target(server, "other"), CATALOG, gone, told.append)
    assert "    posts is not copied: no event of EVENTS writes it" in told


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_nothing_is_exported_beside_what_another_database_left(server: Postgres, tmp_path: Path, suffix: str) -> None:
    """SQLite would take a journal that lies beside the new file for its own, and change the file by it."""
    there, output = target(server, f"beside{suffix[1:]}"), tmp_path / "users.db"
    left = output.with_name(f"users.db{suffix}")
    left.write_bytes(b"left")
    with pytest.raises(MoveFailed, match="is there already"):
        asyncio.run(move.export(CATALOG, there, output, say=silent))
    assert (left.read_bytes(), list(tmp_path.iterdir())) == (b"left", [left])


def test_a_file_that_appears_while_another_is_exported_stays(server: Postgres, tmp_path: Path) -> None:
    """The export fails in one line, and leaves nothing beside it."""
    there, output = target(server, "appears"), tmp_path / "users.db"

    def appear(_: str) -> None:
        output.write_bytes(b"mine")

    with pytest.raises(MoveFailed, match="cannot be written: File exists"):
        asyncio.run(move.export(CATALOG, there, output, say=appear))
    assert (output.read_bytes(), list(tmp_path.iterdir())) == (b"mine", [output])


def test_a_table_is_read_once_however_its_keys_are_sorted(server: Postgres) -> None:
    """An index of another collation serves no page of keys by their bytes: page by page a table would be read as often."""
    there = target(server, "collated")
    server.execute('ALTER TABLE rejections ALTER message_id TYPE text COLLATE "POSIX"', database="collated")
    columns = "(message_id, reason, detail, data, attributes, publish_time, received_at)"
    rows = "SELECT 'm' || i, 'not_json', '', ''::bytea, '{}', 0, 0 FROM generate_series(1, 35) i"
    server.execute(f"INSERT INTO rejections {columns} {rows}", database="collated")
    database = there.connect()
    database.connect()
    try:
        with database.atomic():
            keys = [row[0] for row in copying.rows_of(database, Rejection)]
            scans = "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'rejections'"
            assert database.execute_sql(scans).fetchone() == (1,)
    finally:
        postgresql.drop(database)
    assert keys == sorted(f"m{number}" for number in range(1, 36))
