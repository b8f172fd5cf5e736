"""Copies a whole database from one engine into the other, and proves it: each table has as many rows, and the same digest.

A digest is the SHA-256 of a table's rows, each as JSON, in the order of their keys: integers by value, texts by their bytes.
It is the same whatever engine holds the rows.
"""

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
import peewee
import psycopg
from peewee import SQL, BlobField, BooleanField, CharField, FloatField, IntegerField, Model, TextField

from worker.database.driver_errors import text_of, translated
from worker.database.models import Connection, Erased, Receipt, Rejection, Version, columns
from worker.errors import MoveFailed
from worker.events.catalog import Catalog

_AT_ONCE: Final = 1_000
"""Rows read at once: few round trips, and no table is ever held whole."""
_AT_ONCE_WITH_BYTES: Final = 10
"""The same where rows hold bytes: one of a rejection may have the 10 MB of a message."""
_AS_STORED: Final = (IntegerField, FloatField, BooleanField, TextField, CharField, BlobField)
"""Fields whose values are copied as they are. Peewee would make 1 of a 1.5 that SQLite holds in an integer column."""
_PLACE: Final = re.compile(r"^COPY \w+, (line \d+, column \w+)", re.MULTILINE)
"""Where PostgreSQL met a value that it refuses, in the context of its error; the value stands behind it."""
_DRIVERS_ERRORS: Final = (psycopg.Error, peewee.sqlite3.Error, ValueError)  # type: ignore[attr-defined]  # not in its stubs
_numbers = itertools.count(1)
"""Of cursors: one connection may have two."""
Row = tuple[Any, ...]
encode: Final = msgspec.json.Encoder().encode


class Copied(msgspec.Struct, frozen=True):
    """One table: how many rows it has, and their digest."""

    table: str
    rows: int
    digest: str


def models(catalog: Catalog) -> Sequence[type[Model]]:
    """Every table that is copied, those of events first."""
    return [*(table.model for table in catalog.tables.values()), Receipt, Rejection, Erased, Version]


def rows_of(database: Connection, model: type[Model]) -> Generator[Row, None, None]:
    """The rows of a table in the order of their keys, as tuples in the columns' order; of PostgreSQL, in a transaction."""
    fields: Sequence[Any] = model._meta.sorted_fields
    converted = [(at, field.python_value) for at, field in enumerate(fields) if not isinstance(field, _AS_STORED)]
    read = _rows_of_server if isinstance(database, peewee.PostgresqlDatabase) else _rows_of_file
    for stored in read(database, model, _at_once(model)):
        yield _row(stored, converted)


def _rows_of_server(database: Connection, model: type[Model], most: int) -> Iterator[Row]:
    """By a cursor: the table is sorted once, also where no index has its keys in the order of their bytes."""
    key: Any = model._meta.primary_key
    by = SQL(f'"{key.column_name}" COLLATE "C"') if key.field_type in ("TEXT", "VARCHAR") else key
    text, values = model.select().order_by(by).bind(database).sql()
    connection: Any = database.connection()  # type: ignore[no-untyped-call]
    with translated(), connection.cursor(name=f"rows{next(_numbers)}") as cursor:
        cursor.itersize = most
        yield from cursor.execute(text, values)


def _rows_of_file(database: Connection, model: type[Model], most: int) -> Iterator[Row]:
    key: Any = model._meta.primary_key
    at = columns(model).index(key.name)
    after: Any = None
    while True:
        query = model.select().order_by(key).limit(most)
        text, values = (query if after is None else query.where(key > after)).bind(database).sql()
        found: Any = database.execute_sql(text, values)  # type: ignore[no-untyped-call]
        some: list[Row] = found.fetchall()
        yield from some
        if len(some) < most:
            return
        after = some[-1][at]


def digest(table: str, rows: Iterable[Row]) -> Copied:
    """Count rows and digest them."""
    found, count = hashlib.sha256(), 0
    for row in rows:
        found.update(encode(row))
        count += 1
    return Copied(table, count, found.hexdigest())


def copy_table(
    source: Connection, target: Connection, model: type[Model], change: Callable[[Row], Row] = lambda row: row
) -> Copied:
    """Copy a table into an empty one of the other engine, read it back, and compare.

    Args:
        source: An open database.
        target: Another one, in a transaction.
        model: The table, which both have.
        change: Makes the target's row of the source's.

    Raises:
        MoveFailed: A value was refused, or what was read back is not what was written.
    """
    try:
        return _copied(source, target, model, change)
    except _DRIVERS_ERRORS as error:
        # Without its cause, which quotes the row.
        raise MoveFailed(f"{model._meta.table_name} cannot be copied: {_without_value(error)}") from None


def _copied(source: Connection, target: Connection, model: type[Model], change: Callable[[Row], Row]) -> Copied:
    table = str(model._meta.table_name)
    found, count = hashlib.sha256(), 0
    with _writer(target, model) as write:
        for row in map(change, rows_of(source, model)):
            write(row)
            found.update(encode(row))
            count += 1
    written = Copied(table, count, found.hexdigest())
    stored = digest(table, rows_of(target, model))
    if stored != written:
        raise MoveFailed(
            f"{table}: {written.rows:,} rows were written and {stored.rows:,} read back, not the same; report it"
        )
    return written


@contextlib.contextmanager
def _writer(database: Connection, model: type[Model]) -> Iterator[Callable[[Row], None]]:
    """What writes rows one at a time, by the fastest way that the engine has."""
    names = ", ".join(f'"{name}"' for name in columns(model))
    table = model._meta.table_name
    connection: Any = database.connection()  # type: ignore[no-untyped-call]
    if isinstance(database, peewee.PostgresqlDatabase):
        with connection.cursor() as cursor, cursor.copy(f'COPY "{table}" ({names}) FROM STDIN') as copy:
            yield copy.write_row
        return
    statement = f'INSERT INTO "{table}" ({names}) VALUES ({", ".join("?" * len(columns(model)))})'
    waiting: list[Row] = []
    most = _at_once(model)

    def write(row: Row) -> None:
        waiting.append(row)
        if len(waiting) == most:
            connection.executemany(statement, waiting)
            waiting.clear()

    yield write
    connection.executemany(statement, waiting)


def _at_once(model: type[Model]) -> int:
    with_bytes = any(isinstance(field, BlobField) for field in model._meta.sorted_fields)
    return _AT_ONCE_WITH_BYTES if with_bytes else _AT_ONCE


def _without_value(error: Exception) -> str:
    """What a driver's error says, without the value at fault."""
    name = type(error).__name__
    if not isinstance(error, psycopg.Error):
        return f"{name}: {error}"
    text = name if error.sqlstate is None else text_of(error.diag, name)
    place = _PLACE.search(error.diag.context or "")
    return f"{text}, in {place[1]}, in the order of the keys" if place is not None else text


def _row(stored: Sequence[Any], converted: Sequence[tuple[int, Callable[[Any], Any]]]) -> Row:
    row = list(map(_plain, stored))
    for at, convert in converted:
        row[at] = _plain(convert(row[at]))
    return tuple(row)


def _plain(value: Any) -> Any:
    """A value as both engines have it: SQLite has no truth values, and its drivers give bytes in two types."""
    if value is True or value is False:
        return int(value)
    return bytes(value) if isinstance(value, memoryview | bytearray) else value
