"""The statements that run for every group. Peewee writes each once; after that only the values change.

Building a statement for 500 rows costs Peewee more than running it costs SQLite, so the texts are kept, for a few sizes
only: rows are inserted in steps of a power of two, and keys are looked up in a list filled up to one. Each is still one
call for many rows, because the writer's thread gives up the interpreter at each call and has to wait for it again.
"""

import functools
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from peewee import Model

from worker.models import Connection, columns

_KEYS_MAX: Final = 2048
"""Keys in one lookup; SQLite takes 32,766 values in a statement, PostgreSQL 65,535."""
_ROWS_MAX: Final = 512
"""Rows in one insert: eleven columns would fit."""


def insert(database: Connection, model: type[Model], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, each with a value for every column of the model, in the columns' order."""
    engine, begin = _engine(database), 0
    while left := len(rows) - begin:
        step = min(1 << left.bit_length() - 1, _ROWS_MAX)
        values = list(chain.from_iterable(rows[begin : begin + step]))
        _run(database, _insert(engine, model, step), values)
        begin += step


def find(
    database: Connection, model: type[Model], keys: Sequence[Any], *, only_key: bool = False
) -> Iterable[tuple[Any, ...]]:
    """The rows whose primary key is one of `keys`, as tuples in the columns' order, or of the key alone."""
    engine = _engine(database)
    for begin in range(0, len(keys), _KEYS_MAX):
        some = list(keys[begin : begin + _KEYS_MAX])
        size = 1 << (len(some) - 1).bit_length()
        some += [some[-1]] * (size - len(some))  # the same key twice finds its row once
        yield from _run(database, _find(engine, model, only_key, size), some).fetchall()


def _engine(database: Connection) -> Any:
    return type(database)  # its SQL depends on nothing else


def _run(database: Connection, text: str, values: list[Any]) -> Any:
    return database.execute_sql(text, values)  # type: ignore[no-untyped-call]


@functools.cache
def _insert(engine: Any, model: type[Model], rows: int) -> str:
    row = dict.fromkeys(columns(model), 0)
    text, values = model.insert_many([row] * rows).bind(engine(None)).sql()
    assert len(values) == rows * len(row)
    return str(text)


@functools.cache
def _find(engine: Any, model: type[Model], only_key: bool, keys: int) -> str:
    key: Any = model._meta.primary_key
    query = model.select(key) if only_key else model.select()
    text, values = query.where(key.in_([0] * keys)).bind(engine(None)).sql()
    assert len(values) == keys
    return str(text)
