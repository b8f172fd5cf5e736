"""The world around the contenders: a bucket, a Litestream for each of them, and processes that can be frozen anywhere.

The code under test is the worker's own, from `supervisor._live_until` down: lease, succession, generations, retention,
replicator, writer, intake. What stands in for the rest:

    Bucket    objects with generations; see bucket.py for the three moments of a request.
    Child     Litestream: a full copy first, then a file for each change it notices, named by its transaction id in the
              path and uploaded in order, over whatever has that name already (there are no preconditions on GCS).
    Disk      the local database, as the ids of the messages that were committed.
    Process   one instance: its loop and clock, its disk, its open requests, and the life the supervisor leads.

Nothing happens by itself. A process moves only when one of its requests is answered or its clock passes a timer, so each
is frozen at its awaits for as long as the machine attends to others.
"""

import asyncio
import base64
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self, cast
from unittest import mock

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from tests.property.bucket import Ack, Ask, Bucket, File, applied, file_name
from tests.property.loop import Loop
from worker import app, generation, supervisor
from worker.access import Access
from worker.config import Settings
from worker.errors import RestoreFailed, StoreUnavailable, SyncUnavailable, WorkerError
from worker.group import Change, Entry, Group, Outcome
from worker.intake import Intake
from worker.lease import Lease, Timing
from worker.litestream import Position
from worker.metrics import Metrics
from worker.succession import Succession, SuccessionTiming
from worker.writer import Writer

_DATA: Final = base64.b64encode(b'{"user_id":1}')
"""What every message holds: nothing here looks at users, only at message ids."""


class Child:
    """Litestream, writing one path. It is stopped and started with its process; see `worker.litestream.Litestream`."""

    def __init__(self, options: Any, *, replica_path: str, epoch: int) -> None:
        self.process: Process = options.process
        self.path = replica_path.removeprefix(f"{options.process.settings.prefix}/")
        self.life = f"{self.process.holder}'s Litestream {self.process.children}"
        self.process.children += 1
        self._files: list[File] = []
        self._rows = 0
        self._replicated = 0
        self._running = False

    async def __aenter__(self) -> Self:
        self._running, self.process.child = True, self
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    async def watch(self) -> None:
        """It never dies for good; a sync that fails, and whose upload lands late, is how its death looks from here."""
        await asyncio.Event().wait()

    async def sync(self, *, timeout: int) -> Position:
        """Upload what was committed before the call; more may have been noticed by the time it is answered."""
        self.notice()
        if self.process.litestream_hurries:
            self.process.litestream_hurries = False
            return Position(txid=len(self._files), replicated_txid=self._replicated)
        for txid in range(self._replicated + 1, len(self._files) + 1):
            await self._upload(txid)
        return Position(txid=len(self._files), replicated_txid=self._replicated)

    async def monitor(self) -> None:
        """What Litestream does each second without being asked."""
        with contextlib.suppress(SyncUnavailable):
            await self.sync(timeout=0)

    def notice(self) -> None:
        """Put what was committed into the next file."""
        rows = self.process.disk.rows
        if not self._files or len(rows) > self._rows:
            self._files.append(File(full=not self._files, rows=rows[self._rows :]))
            self._rows = len(rows)

    def abandon(self) -> None:
        """Be killed: what is on its way may arrive, nothing more is sent."""
        self._running, self.process.child = False, None

    async def _upload(self, txid: int) -> None:
        if not self._running:
            raise SyncUnavailable("litestream is gone")
        file = self._files[txid - 1]
        await self.process.ask(
            f"upload {self.path} {txid}",
            lambda: self.process.bucket.upload(self.path, txid, file, self.life),
            silence=SyncUnavailable,
            changes=True,
        )
        self._replicated = max(self._replicated, txid)


async def restore(options: Any, *, replica_path: str, output: "Disk", integrity_check: str, timeout: float) -> int:
    """`litestream restore`: a listing, then one read for each file; see `worker.litestream.restore`."""
    process: Process = options.process
    bucket, path = process.bucket, replica_path.removeprefix(f"{process.settings.prefix}/")
    listed = await process.ask(f"list {path}", lambda: [txid for txid, _ in bucket.files(path)], silence=RestoreFailed)
    files: dict[int, File] = {}
    for txid in listed:
        name = file_name(path, txid)
        found = await process.ask(
            f"restore {path} {txid}", functools.partial(bucket.objects.get, name), silence=RestoreFailed
        )
        if found is None:
            raise RestoreFailed(f"{name} has vanished")
        files[txid] = found[0]
    output.rows = applied(files)
    return len(files)


class Disk:
    """The local database of one process: each row is the id of the message that made it."""

    def __init__(self) -> None:
        self.rows: tuple[str, ...] = ()

    def connect(self) -> None:
        """See `peewee.SqliteDatabase`; likewise `close`."""

    def close(self) -> None:  # noqa: D102  # said above
        pass

    def stat(self) -> Any:
        """The size is told after a restore."""
        return SimpleNamespace(st_size=len(self.rows))

    def clear(self) -> bool:
        """Make room; whether anything stood there."""
        self.rows = ()
        return False


class DiskWriter(Writer):
    """The worker's writer, with the transaction alone replaced."""

    def _commit(self, entries: list[Entry] | list[Change]) -> Group:
        disk = cast(Disk, self._database)
        outcomes: list[Outcome] = []
        for entry in entries:
            assert isinstance(entry, Entry)
            message = entry.delivery.message_id
            outcomes.append("duplicate" if message in disk.rows else "created")
            if message not in disk.rows:
                disk.rows += (message,)
        return Group(entries, outcomes)


class Process:
    """One instance, from its start to its end or its crash. It moves only inside the methods below."""

    def __init__(self, bucket: Bucket, holder: str, settings: Settings) -> None:
        self.bucket, self.holder, self.settings = bucket, holder, settings
        self.loop = Loop()
        self.disk = Disk()
        self.pending: list[Ask] = []
        """Requests its tasks wait for, oldest first."""
        self.child: Child | None = None
        self.children = 0
        self.litestream_hurries = False
        """The next sync is answered before its upload; that the two ids differ is all that tells."""
        self.early: tuple[str, ...] = ()  # for a mutant that restores before it holds the lease
        self._running = True
        self._stop = asyncio.Event()
        self._parts = self._make_parts()
        self.lease: Lease = self._parts.lease
        self.intake: Intake = self._parts.intake
        parts = self._parts
        self._application = app.build(
            app.Service(self.intake, parts.tables, Access(), parts.erasure, settings.body_max_bytes)
        )
        self.life = self.loop.create_task(self._live())
        self._run()

    def __repr__(self) -> str:
        return f"<{self.holder} {self.intake.state}, {self.lease}, waiting for {self.pending}>"

    def deliver(self, message: str) -> None:
        """A push request comes in; 204 is the acknowledgement."""
        task = self.loop.create_task(self._push(message))
        task.add_done_callback(lambda task: task.cancelled() or task.result())
        self._run()

    def signal(self) -> None:
        """SIGTERM."""
        self._stop.set()
        self._run()

    def upload_unasked(self) -> None:
        """Litestream's own monitor has its turn."""
        if self.child is not None:
            self.loop.create_task(self.child.monitor())
            self._run()

    def reply(self, request: Ask) -> None:
        """The answer to a request arrives."""
        request.reply()
        self._run()

    def time_out(self, request: Ask) -> None:
        """A request is given up; it may still take effect."""
        request.time_out()
        self._run()

    def sleep(self, seconds: float) -> None:
        """Time passes on this machine's clock while nothing on it moves."""
        self.loop.now += seconds

    def wake(self) -> None:
        """What is due by the clock happens."""
        self._run()

    def step(self, *, overtaking: bool = False) -> None:
        """What happens next when nothing is wrong: the oldest request is answered, or the next timer is reached.

        With `overtaking`, all its requests take effect, and the newest is answered first.
        """
        if self.pending:
            for request in self.pending if overtaking else self.pending[:1]:
                request.perform()
            self.reply(self.pending[-1 if overtaking else 0])
        elif (due := self.loop.next_timer()) is not None:
            self.loop.now = max(self.loop.now, due)
            self._run()

    def crash(self) -> None:
        """SIGKILL, and the disk is gone."""
        self._end()

    async def ask(
        self, what: str, effect: Callable[[], Any], *, silence: type[WorkerError] = StoreUnavailable, changes: bool = False
    ) -> Any:
        """Send a request to the bucket and wait for its answer, or raise `silence`."""
        if not self._running:
            raise asyncio.CancelledError
        request = Ask(f"{self.holder}: {what}", effect, self.loop.create_future(), silence, changes)
        self.pending.append(request)
        return await request.answer

    async def read(self, name: str, *, timeout: float) -> Any:
        """See `worker.gcs.Bucket`; likewise the rest."""
        return await self.ask(f"read {name}", lambda: self.bucket.objects.get(name))

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> Any:  # noqa: D102
        return await self.ask(f"write {name}", lambda: self.bucket.swap(name, data, if_generation), changes=True)

    async def names(self, name_prefix: str, *, timeout: float) -> Any:  # noqa: D102
        return await self.ask(f"names {name_prefix}", lambda: self.bucket.names(name_prefix))

    async def folders(self, name_prefix: str, *, timeout: float) -> Any:  # noqa: D102
        return await self.ask(f"folders {name_prefix}", lambda: self.bucket.folders(name_prefix))

    async def delete(self, name: str, *, timeout: float) -> None:  # noqa: D102
        await self.ask(f"delete {name}", lambda: self.bucket.objects.pop(name, None), changes=True)

    def _run(self) -> None:
        self.loop.run()
        self._give_up([request for request in self.pending if request.answer.done()])
        if self.life.done() and self._running:
            self._end()

    def _end(self) -> None:
        self._running = False
        self._give_up(self.pending)
        self.loop.end()

    def _give_up(self, requests: list[Ask]) -> None:
        self.bucket.late += [request for request in requests if request.changes and not request.done]
        self.pending = [request for request in self.pending if request not in requests]

    async def _push(self, message: str) -> None:
        body = b'{"message":{"messageId":"%b","publishTime":"2026-01-01T00:00:00Z","data":"%b"}}' % (message.encode(), _DATA)

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        headers = [(b"content-length", b"%d" % len(body))]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "app": self._application}
        answer = await cast(Awaitable[Response], app.handle(Request(scope, receive)))
        if answer.status_code == 204:
            self.bucket.acks.append(Ack(message, self.holder, self.lease.epoch))
        else:
            assert answer.status_code == 503, answer.body

    async def _live(self) -> None:
        server: asyncio.Task[Any] = asyncio.create_task(asyncio.Event().wait())
        try:
            await supervisor._live_until(self._stop, server, self._parts)
        finally:
            server.cancel()

    def _make_parts(self) -> Any:
        """What `parts.Parts` makes, with this process's bucket and clock."""
        settings, clock = self.settings, self.loop.time
        succession = Succession(
            self,
            holder=self.holder,
            revision="r",
            timing=SuccessionTiming(
                poll=settings.successor_poll_seconds,
                tenure=settings.tenure_min_seconds,
                fresh=settings.successor_fresh_seconds,
                timeout=settings.lease_read_timeout_seconds,
            ),
            clock=clock,
        )
        timing = Timing(
            ttl=settings.lease_ttl_seconds,
            renew=settings.lease_renew_seconds,
            poll=settings.lease_poll_seconds,
            spacing=settings.lease_write_spacing_seconds,
            timeout=settings.lease_read_timeout_seconds,
        )
        return SimpleNamespace(
            settings=settings,
            options=SimpleNamespace(process=self, database=self.disk),
            store=self,
            succession=succession,
            lease=Lease(self, holder=self.holder, revision="r", timing=timing, waiting=succession, clock=clock),
            intake=Intake(
                max_messages=settings.queue_max_messages,
                max_bytes=settings.queue_max_bytes,
                hold_seconds=settings.hold_limit_seconds,
                waiting=succession.message_received,
            ),
            tables=SimpleNamespace(open=False, read=_nothing),
            metrics=Metrics(hold_seconds=settings.hold_limit_seconds, clock=clock),
            erasure=None,
        )


async def _nothing(query: object) -> list[object]:
    """There is nothing old enough to expire."""
    return []


def settings() -> Settings:
    """The defaults, but generations roll over after a few uploads, and are pruned soon, without any retention."""
    made = Settings(replica_url="gs://bucket/prefix", prune_interval_seconds=7)
    for name, value in (("generation_transactions_max", 3), ("retention_days", -1.0)):
        object.__setattr__(made, name, value)  # below what an operator may ask for
    return made


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """The worker's modules, with Litestream and SQLite replaced by the ones above."""
    with (
        mock.patch.object(generation, "litestream", SimpleNamespace(Litestream=Child, restore=restore)),
        mock.patch.object(
            generation,
            "database",
            SimpleNamespace(clear=Disk.clear, migrate=lambda disk, *, busy_timeout_seconds: []),
        ),
        mock.patch.object(supervisor, "database", SimpleNamespace(connect=lambda disk, *, busy_timeout_seconds: disk)),
        mock.patch.object(supervisor, "Writer", DiskWriter),
    ):
        yield
