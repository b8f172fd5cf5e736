"""Both engines, as tests use them: a database of a test's own, which is written by the engine and looked at from outside.

SQLite's is a file. PostgreSQL's is a database of a server that all tests of a process share: the embedded one, or the one
that TEST_DATABASE_URL names (`make test-engine URL=…`), where each database is made by the tests and deleted again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from worker.database import connections, postgresql, schema
from worker.database.engine import Engine
from worker.database.models import Connection
from worker.database.postgresql import PostgresqlEngine, Server
from worker.database.sqlite import SqliteEngine
from worker.events.catalog import Catalog

VARIABLE: Final = "TEST_DATABASE_URL"
PREFIX: Final = f"solowriter_test_{secrets.token_hex(4)}"
"""The names of all databases of this process begin so."""


class Place(Protocol):
    """A database with the newest schema of a catalog."""

    name: str

    def engine(self, *, wait_seconds: float = 5.0) -> Engine:
        """What writes it. `wait_seconds`: how long it waits for a lock."""

    def outside(self) -> Connection:
        """A connection beside the engine, not yet opened; each statement is a transaction."""

    def refuse(self, table: str, column: str, value: str) -> None:
        """Have the database refuse each new row of a table with this value, as text, in a column."""

    def refuse_no_more(self, table: str) -> None:
        """Have the database take all rows of a table again."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Let no writer in while the block runs."""


@dataclass
class SqlitePlace:
    """See `Place`."""

    path: Path
    catalog: Catalog
    name: str = "sqlite"

    def __post_init__(self) -> None:
        if not self.path.exists():
            schema.migrate(self.path, self.catalog, busy_timeout_seconds=5)

    def engine(self, *, wait_seconds: float = 5.0) -> Engine:
        """See `Place.engine`."""
        return SqliteEngine(connections.connect(self.path, busy_timeout_seconds=wait_seconds))

    def outside(self) -> Connection:
        """See `Place.outside`."""
        return connections.connect(self.path, busy_timeout_seconds=5)

    def refuse(self, table: str, column: str, value: str) -> None:
        """See `Place.refuse`."""
        self._run(
            f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} WHEN CAST(new.{column} AS TEXT) = '{value}' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )

    def refuse_no_more(self, table: str) -> None:
        """See `Place.refuse_no_more`."""
        self._run(f"DROP TRIGGER IF EXISTS refuse_{table}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """See `Place.locked`."""
        database = self.outside()
        with database.connection_context():
            database.execute_sql("BEGIN IMMEDIATE")  # type: ignore[no-untyped-call]
            yield
            database.execute_sql("ROLLBACK")  # type: ignore[no-untyped-call]

    def _run(self, statement: str) -> None:
        database = self.outside()
        with database.connection_context():
            database.execute_sql(statement)  # type: ignore[no-untyped-call]


@dataclass
class PostgresqlPlace:
    """See `Place`. `url` is the database's address."""

    url: str
    name: str = "postgresql"

    def server(self, *, wait_seconds: float = 5.0) -> Server:
        """Where it is."""
        return Server(url=self.url, lock_seconds=wait_seconds)

    def engine(self, *, wait_seconds: float = 5.0) -> PostgresqlEngine:
        """See `Place.engine`."""
        return PostgresqlEngine(self.server(wait_seconds=wait_seconds))

    def outside(self) -> Connection:
        """See `Place.outside`."""
        return self.server().connect()

    def refuse(self, table: str, column: str, value: str) -> None:
        """See `Place.refuse`."""
        self.run(
            f"CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF new.{column}::text = '{value}' THEN RAISE 'no' USING ERRCODE = 'check_violation'; END IF; "
            "RETURN new; END $$",
            f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()",
        )

    def refuse_no_more(self, table: str) -> None:
        """See `Place.refuse_no_more`."""
        self.run(f"DROP FUNCTION IF EXISTS refuse_{table} CASCADE")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """See `Place.locked`."""
        with psycopg.connect(self.url) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (postgresql.LOCK, postgresql.WRITING))
            yield

    def run(self, *statements: str) -> None:
        """Run statements of our own, each committed by itself."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


class Databases:
    """Databases on one server for the tests of this process: the server that is named, or one of our own."""

    def __init__(self) -> None:
        self._ends = contextlib.ExitStack()
        self._templates: dict[Catalog, str] = {}
        self._numbers = itertools.count(1)
        url = os.environ.get(VARIABLE)
        if not url:
            from local.postgres import postgres  # not for `make test-fast`

            url = self._ends.enter_context(postgres(durable=False)).url()
        self.server_url = url

    def close(self) -> None:
        """Delete all databases, and end a server of our own."""
        self._ends.close()

    @contextlib.contextmanager
    def place(self, catalog: Catalog) -> Iterator[PostgresqlPlace]:
        """A new database while the block runs."""
        if catalog not in self._templates:
            template = self._create("template1")
            self._ends.callback(self._drop, template)
            postgresql.migrate(Server(url=self._url(template)), catalog)
            self._templates[catalog] = template
        name = self._create(self._templates[catalog])  # a copy: twenty times faster than the migrations
        try:
            yield PostgresqlPlace(self._url(name))
        finally:
            self._drop(name)

    def _create(self, template: str) -> str:
        name = f"{PREFIX}_{next(self._numbers)}"
        text = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        self._administer(text)
        return name

    def _drop(self, name: str) -> None:
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(statement)

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self.server_url)._replace(path=f"/{database}"))


Made = Callable[[Catalog], Place]
"""Makes a database of a test; a test may have several."""


def rows_of(database: Connection, query: str) -> list[dict[str, Any]]:
    """What a query finds."""
    cursor: Any = database.execute_sql(query)  # type: ignore[no-untyped-call]
    return [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor.fetchall()]
