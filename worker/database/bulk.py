"""The statements that run for every group. Peewee writes each once; after that only the number of values changes.

Building a statement for 500 rows costs Peewee more than running it costs SQLite. Each is one call for all rows, because the
writer's thread gives up the interpreter at each call and has to wait for it again.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

from peewee import Model, PostgresqlDatabase

from worker.database import bulk_postgresql
from worker.database.models import Connection, columns

T = TypeVar("T")

_VALUES_MAX: Final = 16_384
"""Values in one statement; SQLite takes 32,766, PostgreSQL 65,535."""


def insert(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, each with a value for every column of the model, in the columns' order.

    Raises:
        Raced: Another writer has inserted one of them.
    """
    if isinstance(database, PostgresqlDatabase):
        if rows:
            bulk_postgresql.insert(database, model, rows)
        return
    for some in batches(rows, _VALUES_MAX // len(columns(model))):
        first, another = _insert(_engine(database), model)
        _run(database, first + another * (len(some) - 1), list(chain.from_iterable(some)))


def upsert(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows like `insert`, and replace those that are there. No two rows may have the same key."""
    if isinstance(database, PostgresqlDatabase):
        if rows:
            bulk_postgresql.upsert(database, model, rows)
        return
    for some in batches(rows, _VALUES_MAX // len(columns(model))):
        first, another, end = _upsert(_engine(database), model)
        _run(database, first + another * (len(some) - 1) + end, list(chain.from_iterable(some)))


def holds_any(database: Connection, model: type[Model]) -> bool:
    """Whether a table has a row."""
    return _run(database, _any(_engine(database), model), [1]).fetchone() is not None


def find(
    database: Connection, model: type[Model], keys: Sequence[Any], *, only_key: bool = False, lock: bool = False
) -> Iterable[tuple[Any, ...]]:
    """The rows whose primary key is one of `keys`, as tuples in the columns' order, or of the key alone.

    With `lock` no other writer changes them before this transaction has ended.
    """
    if isinstance(database, PostgresqlDatabase):
        if keys:
            yield from bulk_postgresql.find(database, model, keys, only_key=only_key, lock=lock)
        return
    for some in batches(keys, _VALUES_MAX):
        size = 1 << (len(some) - 1).bit_length()  # few sizes, so that few statements are built and kept
        filled = [*some, *[some[-1]] * (size - len(some))]  # the same key twice finds its row once
        yield from _run(database, _find(_engine(database), model, only_key, size), filled).fetchall()


def batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The values in parts of at most that size."""
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]


def _engine(database: Connection) -> Any:
    return type(database)  # its SQL depends on nothing else


def _run(database: Connection, text: str, values: list[Any]) -> Any:
    return database.execute_sql(text, values)  # type: ignore[no-untyped-call]


@functools.cache
def _insert(engine: Any, model: type[Model]) -> tuple[str, str]:
    """The statement for one row, and what each further row adds to it."""
    row = dict.fromkeys(columns(model), 0)
    one, two = (model.insert_many([row] * rows).bind(engine(None)).sql()[0] for rows in (1, 2))
    assert two.startswith(one)
    return one, two[len(one) :]


@functools.cache
def _upsert(engine: Any, model: type[Model]) -> tuple[str, str, str]:
    """As `_insert`, and what follows the rows."""
    key: Any = model._meta.primary_key
    row = dict.fromkeys(columns(model), 0)
    others = [each for each in model._meta.sorted_fields if each is not key] or [key]
    query = model.insert_many([row]).on_conflict(conflict_target=[key], preserve=others)
    one, another = _insert(engine, model)
    text = str(query.bind(engine(None)).sql()[0])
    assert text.startswith(one)
    return one, another, text[len(one) :]


@functools.cache
def _any(engine: Any, model: type[Model]) -> str:
    text, values = model.select(model._meta.primary_key).limit(1).bind(engine(None)).sql()
    assert values == [1]
    return str(text)


@functools.cache
def _find(engine: Any, model: type[Model], only_key: bool, keys: int) -> str:
    key: Any = model._meta.primary_key
    query = model.select(key) if only_key else model.select()
    text, values = query.where(key.in_([0] * keys)).bind(engine(None)).sql()
    assert len(values) == keys
    return str(text)
