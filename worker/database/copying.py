"""Copies a whole database from one engine into the other, and proves it: each table has as many rows, and the same digest.

A digest is the SHA-256 of a table's rows, each as JSON, in the order of their keys: integers by value, texts by their bytes.
It is the same whatever engine holds the rows.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
import peewee
from peewee import Model

from worker.database.driver_errors import translated
from worker.database.models import Connection, Erased, Receipt, Rejection, Version, columns
from worker.errors import MoveFailed
from worker.events.catalog import Catalog

_AT_ONCE: Final = 1_000
"""Rows read at once: few round trips, and no table is ever held whole."""
_PLAIN: Final = (peewee.IntegerField, peewee.TextField, peewee.CharField, peewee.BlobField)
"""The fields whose values the drivers give as they are."""
_numbers = itertools.count(1)
"""Names of cursors: two tables may be read on one connection."""
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
    """The rows of a table in the order of their keys, as tuples in the columns' order; in a transaction.

    It is one query, whose rows come in as they are taken. A query for each part would have PostgreSQL sort the whole table
    each time, where its collation is not C: its index has another order then.
    """
    meta: Any = model._meta
    key = f'"{meta.primary_key.column_name}"'
    names = ", ".join(f'"{field.column_name}"' for field in meta.sorted_fields)
    converters = [None if isinstance(field, _PLAIN) else field.python_value for field in meta.sorted_fields]
    plain = not any(converters)
    for row in _streamed(database, f'SELECT {names} FROM "{meta.table_name}" ORDER BY {key}', meta.primary_key.field_type):
        if plain:
            yield tuple(map(_plain, row))
        else:
            yield tuple(_plain(convert(value) if convert else value) for convert, value in zip(converters, row, strict=True))


def _streamed(database: Connection, query: str, key_type: str) -> Iterator[Row]:
    connection: Any = database.connection()  # type: ignore[no-untyped-call]
    if not isinstance(database, peewee.PostgresqlDatabase):
        yield from connection.execute(query)
        return
    text = f'{query} COLLATE "C"' if key_type in ("TEXT", "VARCHAR") else query
    with translated(), connection.cursor(name=f"rows{next(_numbers)}") as cursor:
        cursor.itersize = _AT_ONCE
        cursor.execute(text)
        yield from cursor


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
        MoveFailed: What was read back is not what was written.
    """
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
        with translated(), connection.cursor() as cursor, cursor.copy(f'COPY "{table}" ({names}) FROM STDIN') as copy:
            yield copy.write_row
        return
    statement = f'INSERT INTO "{table}" ({names}) VALUES ({", ".join("?" * len(columns(model)))})'
    waiting: list[Row] = []

    def write(row: Row) -> None:
        waiting.append(row)
        if len(waiting) == _AT_ONCE:
            connection.executemany(statement, waiting)
            waiting.clear()

    yield write
    connection.executemany(statement, waiting)


def _plain(value: Any) -> Any:
    """A value as both engines have it: SQLite has no truth values, and its drivers give bytes in two types."""
    if value is True or value is False:
        return int(value)
    return bytes(value) if isinstance(value, memoryview | bytearray) else value
