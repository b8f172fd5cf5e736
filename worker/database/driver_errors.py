"""Errors of PostgreSQL's driver, as they may be logged: no value of a row is in their text.

The server quotes rows. A detail says "Key (user_id)=(5) already exists" or "Failing row contains (…)", a message says
'invalid input syntax for type bigint: "…"', a context quotes the line of a COPY, and a trigger may raise any text. So an
error is told by its SQLSTATE, the driver's name for it, and the names of the schema at fault. The server's own message is
kept where its kind says nothing of a row, and no function of the database was running.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import peewee
import psycopg

_ABOUT_NO_ROW: Final = ("01", "08", "0A", "25", "28", "3D", "40", "42", "53", "54", "55", "57", "58", "XX")
"""The classes of SQLSTATE whose messages name parts of the server, the schema, limits or our own statements, and no value.
Source: PostgreSQL documentation, appendix A."""
_NAMES: Final = ("constraint_name", "table_name", "column_name", "datatype_name")
_RAISE: Final = "exec_stmt_raise"
"""The server's function behind a trigger's RAISE, which may fill each field of an error as it likes."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise errors of the driver as Peewee's, without values and without the driver's own in their traceback.

    Raises:
        PeeweeException: Of the kind that Peewee has for it; `sqlstate` finds its code.
    """
    try:
        yield
    except (peewee.PeeweeException, psycopg.Error) as error:
        raise _told(error) from None


def sqlstate(error: BaseException) -> str | None:
    """The code that the server gave with a translated error, or None if it gave none."""
    found: str | None = getattr(error, "sqlstate", None)
    return found


def text_of(diagnostic: Any, name: str) -> str:
    """What may be logged of what the server said. `name` is the driver's for it."""
    code = diagnostic.sqlstate or ""
    if diagnostic.source_function == _RAISE:
        return f"{code} {name}, raised by a function of the database"
    named = [f"{each.partition('_')[0]} {value}" for each in _NAMES if (value := getattr(diagnostic, each))]
    if code.startswith(_ABOUT_NO_ROW) and diagnostic.context is None and diagnostic.message_primary:
        named.insert(0, diagnostic.message_primary)
    return f"{code} {name}" + (f": {', '.join(named)}" if named else "")


def _told(error: Exception) -> peewee.PeeweeException:
    cause = error if isinstance(error, psycopg.Error) else getattr(error, "orig", None)
    if not isinstance(cause, psycopg.Error):
        assert isinstance(error, peewee.PeeweeException)
        return error  # Peewee's own, or ours: about a connection, or translated already
    if cause.sqlstate is not None:
        text = text_of(cause.diag, type(cause).__name__)
    elif isinstance(cause, psycopg.DataError):  # the driver refuses a value, before the server has seen it
        text = f"the driver refuses a value: {type(cause).__name__}"
    else:
        text = str(cause).strip()  # no connection came about, or it was lost
    told = _kind(cause)(text)
    told.sqlstate = cause.sqlstate  # type: ignore[attr-defined]  # for `sqlstate`
    return told


def _kind(error: psycopg.Error) -> type[peewee.PeeweeException]:
    """Peewee's class of an error: the driver's classes have the names of the DB-API, as Peewee's have."""
    for each in type(error).__mro__:
        kind = getattr(peewee, each.__name__, None)
        if isinstance(kind, type) and issubclass(kind, peewee.PeeweeException):
            return kind
    return peewee.DatabaseError
