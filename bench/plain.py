"""Litestream by itself, with its defaults, straight to the bucket: the same rows, and one upload for each message.

The one setting that is not a default is its control socket, by which an upload is asked for after each commit.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from bench import process
from bench.naive import write
from bench.store import BUCKET_URL, Store
from local.worker_process import wait_until
from worker.database import connections, schema
from worker.database.models import Connection
from worker.events.catalog import BUILT_IN, Catalog
from worker.events.users import UserCreated
from worker.replica.litestream import find_binary

PATH: Final = "plain"
_BUSY_SECONDS: Final = 5.0
_SYNC_SECONDS: Final = 60


class Plain:
    """A database and the Litestream that replicates it. One thread uses it."""

    def __init__(self, connection: Connection, file: Path, control: Path) -> None:
        self._connection, self._file, self._control = connection, file, _Control(control)
        self.messages = 0

    def send(self, count: int) -> None:
        """Commit so many messages, each in a transaction of its own, and have each uploaded before the next."""
        with self._connection.connection_context():
            for _ in range(count):
                self.messages += 1
                user = UserCreated(user_id=self.messages, email_address=f"{self.messages}@example.com")
                write(self._connection, f"plain-{self.messages}", self.messages, user, epoch=1)
                self._sync()

    def _sync(self) -> None:
        request = {"path": str(self._file), "wait": True, "timeout": _SYNC_SECONDS}
        self._control.request("POST", "/sync", msgspec.json.encode(request))
        answer = self._control.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"litestream did not sync: {answer.status} {text.decode(errors='replace')}")


@contextlib.contextmanager
def replicated(store: Store) -> Iterator[Plain]:
    """A new database, replicated to `PATH` in the bucket of `store` while the block runs."""
    directory = store.directory / PATH
    directory.mkdir()
    file, control, config = directory / "users.db", directory / "ls.sock", directory / "litestream.yml"
    schema.migrate(file, Catalog.load(BUILT_IN), busy_timeout_seconds=_BUSY_SECONDS)
    settings = {
        "socket": {"enabled": True, "path": str(control)},
        "logging": {"level": "warn"},
        "dbs": [{"path": str(file), "replica": {"url": f"{BUCKET_URL}/{PATH}"}}],
    }
    config.write_text(json.dumps(settings))  # which is YAML
    command = [str(find_binary("litestream")), "replicate", "-config", str(config)]
    with (
        (directory / "litestream.log").open("wb") as log,
        process.running(command, store.gcs.environment(), log=log),
    ):
        wait_until(control.exists, "Litestream's control socket")
        yield Plain(connections.connect(file, busy_timeout_seconds=_BUSY_SECONDS), file, control)


class _Control(http.client.HTTPConnection):
    """Litestream's control socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("litestream", timeout=2 * _SYNC_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Open the connection."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
