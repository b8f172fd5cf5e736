"""The schema: adopters' migrations run once beside ours, and a table that is not what its event says is refused."""

from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.unit.events.orders import EVENTS
from worker.database import schema
from worker.database.connections import connect
from worker.errors import SchemaDiffers
from worker.events import users
from worker.events.catalog import Catalog

HEAD = "from peewee import *\ndef up(migrator, db):\n    "
TABLE = (
    "db.execute_sql('CREATE TABLE orders (order_id TEXT PRIMARY KEY, customer TEXT, total INTEGER NOT NULL, lines TEXT)')"
)


def migrate(path: Path, catalog: Catalog) -> list[str]:
    """Bring a file up to date."""
    return schema.migrate(path, catalog, busy_timeout_seconds=0.05)


def execute(path: Path, statement: str) -> list[Any]:
    """Run a statement of an operator's."""
    database: Any = connect(path, busy_timeout_seconds=5)
    with database.connection_context():
        return list(database.execute_sql(statement).fetchall())


def tables(path: Path) -> set[str]:
    """The names of all tables."""
    return {name for (name,) in execute(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made."""
    return tmp_path / "users.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adopter's folder of migrations, which is empty yet."""
    made = tmp_path / "migrations"
    made.mkdir()
    return made


def test_an_adopters_migrations_run_once_beside_ours(path: Path) -> None:
    """Each package's are remembered apart, so that two files of one number do not meet; and only once."""
    both = Catalog.load("worker.events.users,tests.unit.events.orders")
    ours = ["0001_receipts_rejections", "worker.events/0001_users"]
    assert migrate(path, Catalog.load("worker.events.users")) == ours
    assert migrate(path, both) == ["tests.unit.events/0001_orders"]
    assert migrate(path, both) == []
    assert {"users", "orders", "receipts", "schema_migration", "schema_migration_tests_unit_events"} <= tables(path)


def test_a_table_that_no_migration_makes_is_missed(path: Path) -> None:
    """With what to do."""
    with pytest.raises(SchemaDiffers, match=r"there is no table orders, which order.placed writes. Write a migration"):
        migrate(path, Catalog({"orders": EVENTS}))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("order_id TEXT PRIMARY KEY, customer TEXT, total INTEGER", "table orders has no column lines"),
        ("order_id INTEGER PRIMARY KEY, customer TEXT, total BIGINT, lines TEXT", "orders.order_id is of type INTEGER"),
        ("order_id TEXT PRIMARY KEY, customer TEXT NOT NULL, total INT, lines TEXT", "orders.customer cannot be null"),
        ("order_id TEXT, customer TEXT, total INT, lines TEXT", "orders.order_id is not the primary key"),
        (
            "order_id TEXT PRIMARY KEY, customer TEXT, total INT, lines TEXT, more TEXT NOT NULL",
            "has a column more, without",
        ),
    ],
)
def test_a_table_that_differs_from_its_model_is_refused(path: Path, columns: str, said: str) -> None:
    """Before a message is taken: each insert would fail, and each message would be kept as a rejection."""
    execute(path, f"CREATE TABLE orders ({columns})")
    with pytest.raises(SchemaDiffers) as caught:
        migrate(path, Catalog({"orders": EVENTS}))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_columns_that_an_insert_may_leave_out_are_the_adopters_business(path: Path) -> None:
    """An older service may write them."""
    columns = (
        "order_id VARCHAR(40) PRIMARY KEY, customer TEXT, total INT NOT NULL, lines TEXT, more TEXT NOT NULL DEFAULT ''"
    )
    execute(path, f"CREATE TABLE orders ({columns}, note TEXT)")
    migrate(path, Catalog({"orders": EVENTS}))


@pytest.mark.parametrize("fault", ["db.execute_sql('CREATE TABEL x')", "db.execute_sql('ALTER TABLE x ADD y')", "1 / 0"])
def test_a_failing_migration_is_refused_and_leaves_nothing(path: Path, folder: Path, fault: str) -> None:
    """Whatever it raises; corrected, it is run again."""
    catalog = Catalog({"acme": EVENTS}, {"acme": folder})
    (folder / "0001_orders.py").write_text(f"{HEAD}{TABLE}\n    {fault}\n")
    with pytest.raises(SchemaDiffers, match=rf"in {folder} failed, and nothing of it was applied: .*take acme out"):
        migrate(path, catalog)
    assert "orders" not in tables(path)
    (folder / "0001_orders.py").write_text(HEAD + TABLE)
    assert migrate(path, catalog) == ["acme/0001_orders"]


def test_a_locked_database_is_no_fault_of_a_migration(path: Path, folder: Path) -> None:
    """It is tried again, and no operator is sent to correct a migration that is right."""
    migrate(path, Catalog({"users": users.EVENTS}, {"worker.events": users.MIGRATIONS}))
    (folder / "0001_orders.py").write_text(HEAD + TABLE)
    other: Any = connect(path, busy_timeout_seconds=5)
    with other.connection_context():
        other.execute_sql("BEGIN IMMEDIATE")
        with pytest.raises(peewee.OperationalError, match="locked"):
            migrate(path, Catalog({"acme": EVENTS}, {"acme": folder}))
        other.execute_sql("ROLLBACK")
