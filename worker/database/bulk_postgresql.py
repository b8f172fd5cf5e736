"""The statements that run for every group, as PostgreSQL takes them: one parameter each, whatever the number of rows.

A statement with a parameter for each value costs the server three times as much to read. Rows are sorted by their key: two
groups that insert the same rows in different orders would each wait for the other.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from peewee import SQL, BlobField, Model, PostgresqlDatabase, fn

from worker.database.engine import Raced
from worker.database.models import Connection, columns

_VALUES_MAX: Final = 65_535
"""Parameters in one statement, for tables with bytes in them, which JSON cannot hold."""


def insert(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, each with a value for every column of the model, in the columns' order.

    Raises:
        Raced: Another transaction has inserted one of them since it was found to be absent.
    """
    inserted = _write(database, model, rows, replacing=False)
    if inserted < len(rows):
        raise Raced


def upsert(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows like `insert`, and replace those that are there: `find` has locked them."""
    _write(database, model, rows, replacing=True)


def find(
    database: Connection, model: type[Model], keys: Sequence[Any], *, only_key: bool, lock: bool
) -> Iterable[tuple[Any, ...]]:
    """The rows whose primary key is one of `keys`, as tuples in the columns' order, or of the key alone.

    With `lock` they are locked in the order of their keys: two groups lock the same rows in the same order.
    """
    rows: Iterable[tuple[Any, ...]] = _run(database, _find(model, only_key, lock), [list(keys)]).fetchall()
    return rows


def _write(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]], *, replacing: bool) -> int:
    """Insert rows in the order of their keys; how many were inserted or replaced."""
    names = columns(model)
    key = names.index(_key(model).name)
    ordered = sorted(rows, key=lambda row: row[key])
    if _has_bytes(model):
        parts = _parts(ordered, _VALUES_MAX // len(names))
        return sum(_by_values(database, model, some, replacing=replacing) for some in parts)
    data = msgspec.json.encode([dict(zip(names, row, strict=True)) for row in ordered]).decode()
    count: int = _run(database, _insert(model, replacing), [data]).rowcount
    return count


def _by_values(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]], *, replacing: bool) -> int:
    names = columns(model)
    query = model.insert_many([dict(zip(names, row, strict=True)) for row in rows])
    others = [field for field in model._meta.sorted_fields if field is not _key(model)]
    if replacing and others:
        query = query.on_conflict(conflict_target=[_key(model)], preserve=others)
    else:
        query = query.on_conflict(action="IGNORE", conflict_target=[_key(model)])
    text, values = query.bind(database).sql()
    count: int = _run(database, text, values).rowcount
    return count


def _parts(rows: Sequence[Sequence[Any]], size: int) -> Iterable[Sequence[Sequence[Any]]]:
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))


def _run(database: Connection, text: str, values: Sequence[Any]) -> Any:
    return database.execute_sql(text, values)  # type: ignore[no-untyped-call]


def _key(model: type[Model]) -> Any:
    return model._meta.primary_key


@functools.cache
def _has_bytes(model: type[Model]) -> bool:
    return any(isinstance(field, BlobField) for field in model._meta.sorted_fields)


@functools.cache
def _insert(model: type[Model], replacing: bool) -> str:
    key = _key(model).column_name
    fields = [field.column_name for field in model._meta.sorted_fields]
    names = ", ".join(f'"{field}"' for field in fields)
    others = ", ".join(f'"{field}" = excluded."{field}"' for field in fields if field != key)
    there = f"DO UPDATE SET {others}" if replacing and others else "DO NOTHING"
    table = f'"{model._meta.table_name}"'
    return (
        f"INSERT INTO {table} ({names}) SELECT {names} FROM json_populate_recordset(NULL::{table}, %s) "
        f'ON CONFLICT ("{key}") {there}'
    )


@functools.cache
def _find(model: type[Model], only_key: bool, lock: bool) -> str:
    key = _key(model)
    query = model.select(key) if only_key else model.select()
    query = query.where(key == fn.ANY(SQL("%s")))
    text, _ = (query.order_by(key) if lock else query).bind(PostgresqlDatabase(None, prefer_psycopg3=True)).sql()
    return f"{text} FOR NO KEY UPDATE" if lock else str(text)
