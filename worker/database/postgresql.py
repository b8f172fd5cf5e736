"""The engine of many writers on one PostgreSQL: connections, transactions, reads. Start reading at `PostgresqlEngine.run`.

    BEGIN, lock ──> work: read, decide, insert what is absent ──> as many rows as were sent? ──yes──> COMMIT ──> safe
                      ▲                                              no: another writer was first
                      └────────────── roll back ─────────────────────┘

Two groups of different instances may carry the same message, or the same user. Work reads without locks and inserts with
"on conflict do nothing"; an insert of a row that another transaction is inserting waits for that one. Fewer rows than were
sent: the decision rested on a state that is gone, so the whole group is decided again (`Raced`). Rows go in by key order and
tables in one order, or groups would wait for each other in a circle.

Every transaction takes a lock that all share, and an erasure one that excludes them: a group that has not seen a tombstone
is over before the erasure looks for what it has to remove.

A COMMIT is safe when it returns: PostgreSQL waits in it for the standby. Three things would break that.
A transaction without a write does not wait, so each writes a record into the log, or a duplicate would be acknowledged
before the message that it repeats is safe. A wait that is cancelled ends in a *warning*, so any warning at a COMMIT is taken
for "not confirmed". And no timeout of the server ends that wait, so another thread cuts the connection (`_Guard`).
"""

import contextlib
import logging
import queue
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import peewee
import psycopg
from psycopg.conninfo import conninfo_to_dict

from worker.config import Settings
from worker.config.addresses import without_secrets
from worker.config.limits import BUSY_TIMEOUT_SECONDS
from worker.database import schema
from worker.database.driver_errors import sqlstate, text_of, translated
from worker.database.engine import Raced
from worker.database.instances import Instance
from worker.database.models import Connection
from worker.errors import ConfigError, Refused
from worker.events.catalog import Catalog

LOCK: Final = 0x536F6C6F
"""The first number of our advisory locks, so that no other program in the database takes one of them by chance."""
WRITING, MIGRATING, HOUSEKEEPING = 1, 2, 3
"""The second number: held by each transaction; while the schema is changed; by the instance that tidies up."""

READERS_MAX: Final = 4
"""Connections for reads of one instance. An instance has one more that writes, and one for housekeeping."""
CONNECTIONS_MAX: Final = READERS_MAX + 2
_CONNECT_SECONDS: Final = 5
_REDO_MAX: Final = 100
"""So often one group is decided again. Each time another group has been committed meanwhile, so this ends much earlier."""
_GUARD_SECONDS: Final = 0.1
"""Pause between two looks whether a transaction has overstayed."""
_BLAMING: Final = ("22", "23", "54", "P0001")
"""The SQLSTATEs that a row causes: data, integrity, a limit such as an index row's size, and a trigger's RAISE.
Source: PostgreSQL documentation, appendix A."""
_REFUSING: Final = ("3D000", "28P01", "28000")
"""The SQLSTATEs of a database, password or user that is wrong."""
_SIGNS_OF_REFUSAL: Final = ("password authentication failed", "does not exist", "no pg_hba.conf")
"""The same in words: the driver gives no code where no connection came about."""
_REDONE: Final = {"40001": "serialization", "40P01": "deadlock"}

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the database is, and how long is waited for it."""

    url: str
    password_file: Path | None = None
    """Read at each connection, so that a new password needs no restart."""
    lock_seconds: float = 5.0
    """Longest that one statement waits or runs."""
    transaction_seconds: float = 15.0
    """Longest that one transaction takes, its wait for the standby included; then its connection is cut."""
    migration_seconds: float = 180.0
    """Longest that one statement of a migration takes, or waits for another instance's migrations: Cloud Run's start-up
    probe waits 240 s at most."""

    @classmethod
    def of(cls, settings: Settings) -> "Server":
        """What the settings say."""
        file = settings.database_password_file
        return cls(
            url=settings.database_url,
            password_file=Path(file) if file else None,
            lock_seconds=BUSY_TIMEOUT_SECONDS,
            transaction_seconds=settings.transaction_seconds,
        )

    def connect(self) -> "Database":
        """A database, not yet opened. One thread at a time may use it."""
        given = conninfo_to_dict(self.url)
        options: dict[str, Any] = {
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "solowriter",
            "target_session_attrs": "read-write",  # of several hosts, the one that is the primary now
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        }
        options = {name: value for name, value in options.items() if name not in given}
        return Database(
            self.url,
            password_file=self.password_file,
            prefer_psycopg3=True,
            autoconnect=False,
            thread_safe=False,
            prepare_threshold=None,  # a plan that was made for an empty table would be kept for a full one
            **options,
        )


class Database(peewee.PostgresqlDatabase):
    """Peewee's database, which says when a COMMIT came with a warning, and begins as this engine needs it.

    The text of each error that it raises may be logged: see driver_errors.py.
    """

    def init(self, database: str | None, *arguments: Any, password_file: Path | None = None, **options: Any) -> None:
        """See Peewee's own."""
        self._password_file = password_file
        self.beginning = "BEGIN"
        self.warnings: list[str] = []
        super().init(database, *arguments, **options)

    def _connect(self) -> Any:
        if self._password_file is not None:
            try:
                self.connect_params["password"] = self._password_file.read_text().strip()
            except OSError as error:
                raise peewee.OperationalError(f"DATABASE_PASSWORD_FILE cannot be read: {error}") from error
        connection = super()._connect()  # type: ignore[misc]  # not in its stubs
        connection.add_notice_handler(self._notice)
        return connection

    def connect(self, reuse_if_open: bool = False) -> bool:
        """See Peewee's own."""
        with translated():
            connected: bool = super().connect(reuse_if_open)
        return connected

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """See Peewee's own."""
        with translated():
            return super().execute_sql(sql, params)  # type: ignore[no-untyped-call]

    def rollback(self) -> None:
        """See Peewee's own."""
        with translated():
            super().rollback()

    def begin(self, isolation_level: Any = None) -> None:
        """Begin a transaction, with all that it needs, in one request."""
        self.execute_sql(self.beginning)

    def commit(self) -> None:
        """Commit.

        Raises:
            OperationalError: It is not known whether the transaction is safe.
        """
        self.warnings.clear()
        with translated():
            super().commit()
        if self.warnings:
            raise peewee.OperationalError(f"the COMMIT came with a warning: {self.warnings[0]}")

    def _notice(self, notice: Any) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(text_of(notice, "Warning"))


class PostgresqlEngine:
    """Runs work on a database that has other writers. See `worker.database.engine.Engine`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._database = server.connect()
        self._guard = _Guard()
        self.redone: Counter[str] = Counter({"raced": 0, "serialization": 0, "deadlock": 0})
        """Groups that were decided again, by reason."""
        self.reconnects = 0
        """Connections that were made in place of a lost one."""
        self._connected = False

    def open(self) -> None:
        """See `Engine.open`. The connection is made when work comes: an outage now is no other than one later."""
        self._guard.start()

    def close(self) -> None:
        """See `Engine.close`."""
        self._guard.end()
        self._drop()

    def run(self, work: Callable[[Connection], T], *, alone: bool = False) -> T:
        """See `Engine.run`. After it returns, the server says that the transaction is safe."""
        for _ in range(_REDO_MAX):
            try:
                return self._once(work, alone)
            except Raced:
                reason = "raced"
            except peewee.PeeweeException as error:
                reason = _REDONE.get(sqlstate(error) or "", "")
                if not reason:
                    if not self.blames_row(error):
                        self._drop()  # a demoted primary, or a connection whose state is not known
                    raise
            self.redone[reason] += 1
            time.sleep(random.random() * 0.002)
        raise peewee.OperationalError(f"the group was decided {_REDO_MAX} times, and others were faster each time")

    def blames_row(self, error: Exception) -> bool:
        """See `Engine.blames_row`."""
        if isinstance(error, ValueError | OverflowError):
            return True
        state = sqlstate(error)
        if state is None:  # the driver itself refuses a value, before the server sees it
            return isinstance(error, peewee.DataError)
        return state.startswith(_BLAMING)

    def _once(self, work: Callable[[Connection], T], alone: bool) -> T:
        database = self._database
        self._connect()
        database.beginning = _beginning(self._server, alone=alone)
        with self._guard.watching(self._server.transaction_seconds), database.atomic():
            return work(database)

    def _connect(self) -> None:
        if not self._database.is_closed():
            return
        self.reconnects += self._connected
        self._database.connect()
        self._connected = True
        self._guard.guard(self._database.connection().pgconn.socket)  # type: ignore[no-untyped-call]

    def _drop(self) -> None:
        self._guard.release()
        drop(self._database)


class PostgresqlReader:
    """Reads over a few connections that are kept. See `worker.database.engine.Reader`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._idle: queue.LifoQueue[Database] = queue.LifoQueue()
        for _ in range(READERS_MAX):
            self._idle.put(server.connect())

    def read(self, query: Callable[[Connection], T]) -> T:
        """See `Reader.read`."""
        try:
            database = self._idle.get(timeout=self._server.lock_seconds)
        except queue.Empty:
            raise Refused("all connections for reading are busy; ask again", reason="database") from None
        try:
            with self._connected(database):
                return query(database)
        except peewee.PeeweeException as error:
            raise Refused(f"the database cannot be read now: {error}; ask again", reason="database") from error
        finally:
            self._idle.put(database)

    def close(self) -> None:
        """Close what is idle; for the end of the process."""
        with contextlib.suppress(queue.Empty):
            while True:
                drop(self._idle.get_nowait())

    @contextlib.contextmanager
    def _connected(self, database: Database) -> Iterator[None]:
        """An idle connection may have been lost since its last query: then a new one is made, once."""
        try:
            if not database.is_closed():
                try:
                    limit(database, self._server.transaction_seconds)
                except peewee.PeeweeException:
                    drop(database)
            if database.is_closed():
                database.connect()
                limit(database, self._server.transaction_seconds)
            yield
        except BaseException:
            drop(database)
            raise


class _Guard:
    """Cuts the connection of a transaction that has overstayed. No timeout of the server ends a COMMIT's wait.

    Cutting is not cancelling: the transaction may be committed all the same, and its messages, delivered again, are
    duplicates. The socket is held by a descriptor of its own, so that another one's is never cut in its place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._socket: socket.socket | None = None
        self._until = float("inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transaction guard", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()

    def guard(self, descriptor: int) -> None:
        """Take a connection over."""
        self.release()
        with self._lock:
            self._socket = socket.socket(fileno=socket.dup(descriptor))

    def release(self) -> None:
        """Let the connection go."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """Cut the connection if the block takes longer."""
        self._until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._until = float("inf")

    def _run(self) -> None:
        while not self._ended.wait(_GUARD_SECONDS):
            if time.monotonic() <= self._until:
                continue
            with self._lock:
                if self._socket is not None and time.monotonic() > self._until:
                    log.warning("a transaction took too long; its connection is cut", extra={"action": "database.cut"})
                    self._until = float("inf")
                    with contextlib.suppress(OSError):
                        self._socket.shutdown(socket.SHUT_RDWR)


def drop(database: Database) -> None:
    """Close a connection, whatever state it is in."""
    state = database._state  # type: ignore[attr-defined]  # not in its stubs; its close() would first ask the server
    with contextlib.suppress(psycopg.Error):
        if state.conn is not None:
            state.conn.close()
    state.reset()


def _beginning(server: Server, *, alone: bool) -> str:
    """One request: it needs no session of its own, so it also passes through a pooler."""
    lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    milliseconds = round(server.lock_seconds * 1000)
    return (
        "BEGIN ISOLATION LEVEL READ COMMITTED; "
        f"SET LOCAL lock_timeout = {milliseconds}; SET LOCAL statement_timeout = {milliseconds}; "
        "SET LOCAL enable_seqscan = off; "  # a fresh table without statistics would be read whole for each group
        f"SELECT {lock}({LOCK}, {WRITING}), pg_logical_emit_message(true, 'solowriter', '')"
    )


def limit(database: Database, seconds: float) -> None:
    """Bound each statement of a connection that is used without transactions of its own."""
    database.execute_sql(f"SET statement_timeout = {round(seconds * 1000)}")


def migrate(server: Server, catalog: Catalog) -> list[str]:
    """Bring the database to the newest schema; the names of the migrations applied.

    One instance at a time does it: the lock belongs to the session, and is let go with it. Instances of an older revision
    go on writing meanwhile, so a migration only adds.
    """
    database = server.connect()
    try:
        database.connect()
        limit(database, server.migration_seconds)
        database.execute_sql(f"SELECT pg_advisory_lock({LOCK}, {MIGRATING})")
        applied = schema.up(database, catalog)
        with Instance.bind_ctx(database):
            database.create_tables([Instance])
        return applied
    finally:
        drop(database)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """The server's parameters on which an acknowledgement rests."""

    version: str
    synchronous_commit: str
    fsync: str
    full_page_writes: str
    standbys: str
    read_only: str

    @classmethod
    def of(cls, database: Connection) -> "Durability":
        """Ask the server."""
        names = ("server_version", "synchronous_commit", "fsync", "full_page_writes", "synchronous_standby_names")
        asked = ", ".join(f"current_setting('{name}')" for name in (*names, "transaction_read_only"))
        row = database.execute_sql(f"SELECT {asked}").fetchone()  # type: ignore[no-untyped-call]
        return cls(**dict(zip(cls.__slots__, row, strict=True)))

    def unsafe(self) -> str | None:
        """Why the server would lose what it has committed, and what to do; None if it would not."""
        if self.synchronous_commit == "off":
            return "synchronous_commit is off, so a crash loses what was acknowledged; set it to on for this role"
        if self.synchronous_commit == "local" and self.standbys:
            return "synchronous_commit is local, so the standby lacks what was acknowledged; set it to on for this role"
        if self.fsync == "off":
            return "fsync is off, so a crash of the machine loses the database; set it to on"
        return None


def refuse_unusable(error: peewee.PeeweeException, url: str) -> None:
    """Raise what waiting does not change: a database or user that is not there, or a wrong password.

    Raises:
        ConfigError: It is one of these.
    """
    state = sqlstate(error)
    text = str(error).strip().splitlines()[-1] if str(error).strip() else ""
    if state in _REFUSING or (state is None and any(sign in text for sign in _SIGNS_OF_REFUSAL)):
        raise ConfigError(
            f"DATABASE_URL is {without_secrets(url)}, and PostgreSQL refuses it: {text}; correct the address or the rights"
        )
