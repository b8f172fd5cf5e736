"""The schema of a database: migrations bring it up to date, and each event's model must then be what the table is.

The worker's own migrations come first, then those of each package of events, in the order of EVENTS. A database remembers
the migrations of each package in a table of their own.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import peewee
from playhouse.migrations import Runner

from worker.config.limits import BUSY_TIMEOUT_SECONDS
from worker.database.connections import connect
from worker.database.models import Connection
from worker.errors import SchemaDiffers
from worker.events.catalog import Catalog, Table

MIGRATIONS: Final = Path(__file__).parent / "migrations"
HISTORY: Final = "schema_migration"
_SQLITE_ERROR: Final = 1
"""SQLite's code of a statement that cannot be run. Source: SQLite documentation, "Result and Error Codes"."""
_KINDS: Final = {"INT": "integer", "CHAR": "text", "CLOB": "text", "TEXT": "text", "BLOB": "bytes", "BYTEA": "bytes"}
"""The kind of a column by what its declared type contains, in this order; any other type is not compared.
Source: SQLite documentation, "Datatypes In SQLite", section "Determination Of Column Affinity"."""


def migrate(path: Path, catalog: Catalog, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> list[str]:
    """Bring the file at `path` (made when missing) to the newest schema; the names of the migrations applied.

    Each migration is one transaction with its own record, so dying in between leaves a whole schema.

    Raises:
        SchemaDiffers: A table is not what its event's model says.
    """
    database = connect(path, busy_timeout_seconds=busy_timeout_seconds)
    with database.connection_context():
        return up(database, catalog)


def up(database: Connection, catalog: Catalog) -> list[str]:
    """Bring an open database to the newest schema; see `migrate`."""
    applied: list[str] = Runner(database, str(MIGRATIONS), table_name=HISTORY).up()
    for package, folder in catalog.migrations.items():
        history = history_of(package)
        try:
            applied += [f"{package}/{name}" for name in Runner(database, str(folder), table_name=history).up()]
        except Exception as error:
            if isinstance(error, peewee.OperationalError) and not _is_statements(error):
                raise  # the database's fault: locked, full, out of reach
            text = f"a migration in {folder} failed, and nothing of it was applied: {type(error).__name__}: {error}"
            raise SchemaDiffers(f"{text}; correct it, or take {package} out of EVENTS") from error
    wrong = [line for table in catalog.tables.values() for line in _differences(database, table)]
    if wrong:
        raise SchemaDiffers(
            f"the database is not what EVENTS declares: {'; '.join(wrong)}. Write a migration that makes it so, in the "
            "folder that MIGRATIONS names beside the event (docs/events.md), or correct the model"
        )
    return applied


def history_of(package: str) -> str:
    """The table in which a database remembers the migrations of a package of events."""
    return f"{HISTORY}_{re.sub(r'[^0-9A-Za-z]', '_', package)}"


def _is_statements(error: peewee.OperationalError) -> bool:
    """Whether an error is the statement's fault. SQLite has one class for those and for its own; PostgreSQL has two."""
    code = getattr(error.__context__, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == _SQLITE_ERROR


def _differences(database: Connection, table: Table) -> Iterator[str]:
    declared: Any = table.model._meta
    if not database.table_exists(table.name):
        yield f"there is no table {table.name}, which {table.events[0].name} writes"
        return
    there = {column.name: column for column in database.get_columns(table.name)}
    for name, field in declared.fields.items():
        if name not in there:
            yield f"table {table.name} has no column {name}"
            continue
        column = there.pop(name)
        kind, wanted = _kind(column.data_type), _kind(str(field.field_type))
        if kind and wanted and kind != wanted:
            yield f"{table.name}.{name} is of type {column.data_type}, and its model says {field.field_type.lower()}"
        if field.null and not column.null and not column.primary_key:
            yield f"{table.name}.{name} cannot be null, and its model says that it can"
        if column.primary_key != bool(field.primary_key):
            is_key = "is" if column.primary_key else "is not"
            yield f"{table.name}.{name} {is_key} the primary key, and its model says otherwise"
    for name, column in there.items():
        if not column.null and column.default is None:
            yield f"table {table.name} has a column {name}, without a default, that its model has not"


def _kind(declared: str) -> str | None:
    return next((kind for part, kind in _KINDS.items() if part in declared.upper()), None)
