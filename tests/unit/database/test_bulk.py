"""The statements that are built by hand from Peewee's: they do what Peewee's own would."""

from collections.abc import Iterator

import pytest
from peewee import SqliteDatabase

from worker.database.bulk import find, insert, upsert
from worker.database.models import Receipt, Version, columns
from worker.events.users import User
from worker.ingest.outcomes import ReceiptRow, VersionRow

UserRow = tuple[int, str, int, int, str | None]


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database with its tables."""
    made = SqliteDatabase(":memory:")
    with made.bind_ctx([User, Receipt]), made.connection_context():
        made.create_tables([User, Receipt])
        yield made


def user(number: int) -> UserRow:
    """A row that differs in every column but one."""
    return number, f"{number}@example.com", 1_700_000_000 + number, 0, None if number % 2 else f"s{number}"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 257, 500, 2_000, 8_000])
def test_what_is_inserted_is_found(database: SqliteDatabase, count: int) -> None:
    """Whatever their number: every row, whole, once; more than fit into one statement too."""
    rows = [user(number) for number in range(1, count + 1)]
    insert(database, User, rows)
    assert sorted(find(database, User, [row[0] for row in rows])) == rows
    assert sorted(find(database, User, [row[0] for row in rows], only_key=True)) == [(row[0],) for row in rows]
    assert User.select().count() == count


@pytest.mark.parametrize("count", [0, 1, 3, 8_000])
def test_what_is_there_is_replaced(database: SqliteDatabase, count: int) -> None:
    """An upsert writes every column of a row that is there, inserts the others, and leaves the rest alone."""
    insert(database, User, [(1, "old", 1, 1, "old"), (9_999, "kept", 1, 0, None)])
    upsert(database, User, [user(number) for number in range(1, count + 1)])
    if count > 1:
        assert sorted(find(database, User, [2, count])) == [user(2), user(count)]
    assert list(find(database, User, [1])) == [user(1) if count else (1, "old", 1, 1, "old")]
    assert list(find(database, User, [9_999])) == [(9_999, "kept", 1, 0, None)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17_000])
def test_only_what_is_asked_for_is_found(database: SqliteDatabase, count: int) -> None:
    """The filling of a statement finds nothing that was not asked for, and nothing twice."""
    insert(database, User, [user(1), user(2), user(99_999)])
    keys = [1, *range(3, 2 + count)]
    assert list(find(database, User, keys)) == [user(1)]


def test_rows_are_in_the_columns_order() -> None:
    """A row is a plain tuple: its fields are the columns, in their order."""
    assert ReceiptRow._fields == tuple(columns(Receipt))
    assert VersionRow._fields == tuple(columns(Version))
