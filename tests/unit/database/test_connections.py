"""SQLite as every connection of the worker has it: its version, its pragmas, its schema, and what a start leaves behind."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import peewee
import pytest

from worker.database import connections
from worker.database.connections import SQLITE_MIN, Reader, check_sqlite, clear, connect, migrate
from worker.database.models import Receipt, Rejection, User
from worker.errors import Refused, SqliteTooOld

USERS = (
    'CREATE TABLE "users" ("user_id" INTEGER NOT NULL PRIMARY KEY, "email_address" TEXT, "created_at" INTEGER, '
    '"deleted" INTEGER, "settings" TEXT)'
)
OLD = "import sys; sys.modules['pysqlite3'] = None; from worker.database.connections import check_sqlite; check_sqlite()"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made; its folder is not there yet."""
    return tmp_path / "data" / "users.db"


@pytest.fixture
def migrated(path: Path) -> Path:
    """A database with the newest schema."""
    path.parent.mkdir()
    migrate(path, CATALOG, busy_timeout_seconds=5)
    return path


def execute(connection: Any, statement: str) -> Any:
    """Run a statement; Peewee's `execute_sql` has no types."""
    return connection.execute_sql(statement)


def value(connection: peewee.SqliteDatabase, query: str) -> object:
    """The first value a query gives."""
    return execute(connection, query).fetchone()[0]


def test_the_sqlite_in_use_is_new_enough() -> None:
    """The pinned requirements bring one without the WAL-reset bug, and Peewee picks it."""
    version = tuple(int(part) for part in check_sqlite().split("."))
    assert version >= SQLITE_MIN
    connection = connect(Path(":memory:"), busy_timeout_seconds=5)
    with connection.connection_context():
        assert value(connection, "SELECT sqlite_version()") == check_sqlite()


@pytest.mark.skipif(sqlite3.sqlite_version_info >= SQLITE_MIN, reason="the SQLite of this Python's own is new enough")
def test_an_old_sqlite_is_refused() -> None:
    """Without pysqlite3 Peewee falls back to Python's own SQLite, which has the bug: an error, not a warning."""
    ended = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"SqliteTooOld: SQLite {sqlite3.sqlite_version} can corrupt this database; 3.51.3 or newer" in ended.stderr
    assert "pip install --require-hashes -r requirements.lock" in ended.stderr


@pytest.mark.parametrize(("version", "good"), [((3, 51, 2), False), ((3, 51, 3), True), ((4, 0, 0), True), ((3, 7), False)])
def test_the_boundary_is_exact(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], good: bool) -> None:
    """3.51.3 carries the fix, 3.51.2 does not."""

    class Module:
        sqlite_version_info = version

    monkeypatch.setattr(peewee, "sqlite3", Module)
    if good:
        check_sqlite()
    else:
        with pytest.raises(SqliteTooOld, match=r"\.".join(map(str, version))):
            check_sqlite()


def test_every_connection_has_the_pragmas(migrated: Path) -> None:
    """WAL, no checkpoint of ours, and patience with Litestream's, on a connection and on each later one."""
    connection = connect(migrated, busy_timeout_seconds=6.5)
    for _ in range(2):
        with connection.connection_context():
            assert value(connection, "PRAGMA journal_mode") == "wal"
            assert value(connection, "PRAGMA synchronous") == 1
            assert value(connection, "PRAGMA busy_timeout") == 6500
            assert value(connection, "PRAGMA wal_autocheckpoint") == 0
            assert value(connection, "PRAGMA secure_delete") == 1
            assert value(connection, "PRAGMA query_only") == 0


def test_a_connection_is_opened_by_name_only(migrated: Path) -> None:
    """A thread that forgot to connect fails, instead of opening a connection that nobody closes."""
    with pytest.raises(peewee.InterfaceError):
        execute(connect(migrated, busy_timeout_seconds=5), "SELECT 1")


def test_a_reading_connection_cannot_write(migrated: Path) -> None:
    """INV-2: only the writer's connection writes; the pragmas of a reader are the others' and query_only."""
    connection = connect(migrated, busy_timeout_seconds=5, read_only=True)
    with connection.connection_context():
        assert value(connection, "PRAGMA wal_autocheckpoint") == 0
        with pytest.raises(peewee.OperationalError, match="readonly"):
            execute(connection, "INSERT INTO users VALUES (1, NULL, 1, 0, NULL)")


def test_a_reader_finds_rows(migrated: Path) -> None:
    """The row as a dictionary of its columns, or None; no connection is left open."""
    connection = connect(migrated, busy_timeout_seconds=5)
    with connection.connection_context():
        execute(connection, "INSERT INTO users VALUES (9223372036854775807, 'a@example.com', 1, 0, '{}')")
    reader = Reader(migrated, busy_timeout_seconds=5)
    assert reader.user(2**63 - 1) == {
        "user_id": 2**63 - 1,
        "email_address": "a@example.com",
        "created_at": 1,
        "deleted": 0,
        "settings": "{}",
    }
    assert reader.user(1) is None
    assert not Path(f"{migrated}-wal").exists()


def test_a_reader_without_tables_fails(migrated: Path) -> None:
    """An empty answer would say that there are no users: whoever asks hears that it cannot be read now (INV-9)."""
    empty = Reader(migrated.with_name("other.db"), busy_timeout_seconds=5)
    with pytest.raises(Refused, match="no such table"):
        empty.user(1)


def test_migrating_makes_the_schema_once(migrated: Path) -> None:
    """The first time every migration runs, the second time none, and rows stay."""
    connection = connect(migrated, busy_timeout_seconds=5)
    with connection.connection_context():
        execute(connection, "INSERT INTO users VALUES (1, NULL, 1, 0, NULL)")
    assert migrate(migrated, CATALOG, busy_timeout_seconds=5) == []
    with connection.connection_context():
        assert value(connection, "SELECT count(*) FROM users") == 1


def test_migrations_are_named_in_order(path: Path) -> None:
    """A new database gets every file of the folder, by its number."""
    path.parent.mkdir()
    applied = migrate(path, CATALOG, busy_timeout_seconds=5)
    assert applied == sorted(file.stem for file in connections.MIGRATIONS.glob("[0-9]*.py"))


def test_the_users_table_is_the_old_services(migrated: Path) -> None:
    """Column for column, with the id as the rowid itself."""
    connection = connect(migrated, busy_timeout_seconds=5)
    with connection.connection_context():
        assert value(connection, "SELECT sql FROM sqlite_schema WHERE name = 'users'") == USERS


def test_the_models_are_what_the_migrations_made(migrated: Path) -> None:
    """Every column of a model is in its table and the other way round, with the same NULL rule and key."""
    connection = connect(migrated, busy_timeout_seconds=5)
    with connection.connection_context():
        for model in (User, Receipt, Rejection):
            found = {
                column.name: (column.null, column.primary_key) for column in connection.get_columns(model._meta.table_name)
            }
            said = {each.column_name: (each.null, each.primary_key) for each in model._meta.sorted_fields}
            assert found == said


def test_clearing_nothing_makes_the_folder(path: Path) -> None:
    """A first start on an empty disk."""
    assert not clear(path)
    assert path.parent.is_dir()
    assert list(path.parent.iterdir()) == []


def test_clearing_keeps_what_it_found(path: Path) -> None:
    """INV-5: what is on the disk is not what the lease names, so it is moved aside, whole."""
    path.parent.mkdir()
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").write_text(f"first{suffix}")
    assert clear(path)
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {
        f"users.db.previous{suffix}": f"first{suffix}" for suffix in ("", "-wal", "-shm", "-journal")
    }


def test_clearing_again_keeps_the_newer_one(path: Path) -> None:
    """One copy is kept, and no file of an older one beside it: its WAL would be read as the newer one's."""
    path.parent.mkdir()
    Path(f"{path}").write_text("first")
    Path(f"{path}-wal").write_text("first")
    clear(path)
    path.write_text("second")
    assert clear(path)
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"users.db.previous": "second"}


def test_a_start_that_finds_nothing_keeps_the_previous_one(path: Path) -> None:
    """A failed restore leaves no database; the next start must not cost the copy that the one before had kept."""
    path.parent.mkdir()
    path.write_text("first")
    clear(path)
    Path(f"{path}-wal").write_text("of a restore that failed")
    assert not clear(path)
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"users.db.previous": "first"}
