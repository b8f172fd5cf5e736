"""The world around the contenders: a bucket, a Litestream for each of them, and processes that can be frozen anywhere.

The code under test is the worker's own, from `supervisor._live_until` down: lease, succession, generation, the gate's
decisions (`Slots`) and its check of a file, restore, retention, replicator, writer, intake; and `recovery`. What stands in
for the rest:

    Bucket       objects with generations; see bucket.py for the three moments of a request.
    SimulatedGate  the gate without HTTP and without a thread.
    Child        Litestream: a full copy first, then a file for each change it notices, uploaded in order through the gate;
                 merged files, snapshots and deletions whenever the machine says so.
    Disk         the local database, as the ids of the messages that were committed.
    Process      one instance: its loop and clock, its disk, its open requests, and the life the supervisor leads.

Nothing happens by itself. A process moves only when one of its requests is answered or its clock passes a timer, so each
is frozen at its awaits for as long as the machine attends to others.
"""

import asyncio
import base64
import contextlib
import copy
import functools
import json
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self, cast
from unittest import mock

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from tests.entries import CATALOG
from tests.fakes import bodies
from tests.property.bucket import Ack, Ask, Bucket, Rows, applied, ltx_file, stored
from tests.property.loop import Loop
from worker import supervisor
from worker.bucket import Objects, StoredObject
from worker.config import Settings
from worker.errors import StoreMissing, StoreUnavailable, SyncUnavailable
from worker.ingest.http import app
from worker.ingest.http.access import Access
from worker.ingest.intake import Intake
from worker.ingest.messages import Change, Entry, Group, Outcome
from worker.ingest.writer import Writer
from worker.lease.handover import Succession
from worker.lease.lease import Lease
from worker.operations import recovery
from worker.operations.recovery import Plan, Recovery
from worker.replica import gate, generation, layout, litestream, place
from worker.replica.generation import Generation
from worker.replica.restoring import Wanted
from worker.replica.restoring import restore as restore_for_real
from worker.replica.slots import Answer, Name, Refused, Slots
from worker.stores import sqlite
from worker.stores.sqlite import SqliteStore
from worker.telemetry.metrics import Metrics

_DATA: Final = base64.b64encode(b'{"user_id":1}')
"""What every message holds: nothing here looks at users, only at message ids."""
_PAGE_OBJECTS: Final = 4
"""So many objects has one page of a listing, so that a generation is never seen at one moment."""
_PAGE_BYTES: Final = 512


class NoAnswer(Exception):
    """Litestream's connection to the gate was closed."""


class SimulatedGate:
    """What `worker.replica.gate.Gate` is to a generation and to Litestream, without HTTP. The decisions are `Slots`'."""

    create_only = True
    """Rule G3, as far as it is a precondition of each upload."""

    def __init__(
        self,
        place: tuple["Process", str],
        *,
        spacing_seconds: float,
        on_stored: Callable[[], None],
        on_sealed: Callable[[str], None],
        counts: object = None,
    ) -> None:
        self.process, self.path = place
        self.slots = Slots(self._look, spacing_seconds=spacing_seconds, on_stored=on_stored, on_sealed=self._seal)
        self._on_sealed = on_sealed
        self._fenced = False
        self._requests: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> Any:
        """Where Litestream finds it."""
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.fence()

    @property
    def stored(self) -> int:
        """See `worker.replica.gate.Gate`; likewise the rest."""
        return self.slots.stored

    @property
    def deletable(self) -> int:  # noqa: D102  # said above
        return self.slots.deletable

    @deletable.setter
    def deletable(self, transaction: int) -> None:
        self.slots.deletable = transaction

    async def settle(self, transaction: int) -> int:  # noqa: D102  # said above
        return await self.slots.settle(transaction)

    def fence(self) -> None:  # noqa: D102  # said above
        self._fenced = True
        self.slots.break_off()
        for request in self._requests:
            request.cancel()

    async def forward(self, request: Coroutine[Any, Any, Any]) -> Any:
        """One request of Litestream's, on a task of its own, as an HTTP server has it.

        Raises:
            NoAnswer: It was refused, or the bucket gave no answer.
        """
        task = asyncio.create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        try:
            return task.result()
        except (asyncio.CancelledError, Refused, OSError, SyncUnavailable) as error:
            raise NoAnswer(str(error)) from None

    async def upload(self, key: str, data: bytes, writer: str) -> None:
        """See `Gate._multipart`."""
        name = gate._read_name(f"{place.PATH}/{key}")
        check = gate._Check(name)
        await check.feed(memoryview(data))
        digest = check.end()
        answer = await self.slots.create(name, digest, lambda: self._send(name, data, writer))
        if answer.status != HTTPStatus.OK:
            raise SyncUnavailable(f"{key} was answered {answer.status}")

    async def delete(self, key: str) -> None:
        """See `Gate._delete`."""
        name = gate._read_name(f"{place.PATH}/{key}")
        self.slots.check_deletion(name)
        full, bucket = f"{self.path}/{key}", self.process.bucket
        await self._ask(f"delete {full}", lambda: bucket.objects.pop(full, None), changes=True)

    async def files(self, level: int) -> list[layout.File]:
        """See `Gate._list`."""
        prefix = f"{self.path}/ltx/{level}/"
        bucket = self.process.bucket
        names: list[str] = await self._ask(f"list {prefix}", lambda: bucket.names(prefix))
        return layout.files(self.path, [stored(name, b"") for name in names])

    async def _look(self, name: Name) -> Answer | None:
        full, bucket = f"{self.path}/{name.key}", self.process.bucket
        try:
            answer: Answer | None = await self._ask(f"look at {full}", lambda: bucket.look(full))
        except OSError as error:
            raise SyncUnavailable(str(error)) from error
        return answer

    async def _send(self, name: Name, data: bytes, writer: str) -> Answer:
        full, bucket = f"{self.path}/{name.key}", self.process.bucket
        only = self.create_only
        answer: Answer = await self._ask(
            f"create {full}", lambda: bucket.create(full, data, writer, only=only), changes=True
        )
        return answer

    async def _ask(self, what: str, effect: Callable[[], Any], *, changes: bool = False) -> Any:
        if self._fenced:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "G5", "this life is over")
        return await self.process.ask(what, effect, silence=TimeoutError, changes=changes)

    def _seal(self, reason: str) -> None:
        self.fence()
        self._on_sealed(reason)


class Child:
    """Litestream, writing through one gate. See `worker.replica.litestream.Litestream`."""

    def __init__(self, settings: Settings, *, address: SimulatedGate, epoch: int) -> None:
        self.process: Process = Process.of(settings.database_path)
        self.gate = address
        self.life = f"{self.process.holder}'s Litestream {self.process.children}"
        self.process.children += 1
        self.slots = settings.database_path.parent / "no slots here"
        self.cut_off = False
        """The next file of whatever level is read only in part, as when Litestream is stopped."""
        self._files: list[list[str]] = []
        self._rows = 0
        self._position: int | None = None  # the newest transaction in the bucket, as far as it knows
        self._running = False
        self._uploading = asyncio.Lock()

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

    async def sync(self, *, timeout: int, upload: bool = True) -> int:
        """Upload what was committed before the call; more may have been noticed by the time it is answered."""
        if not self._running:
            raise SyncUnavailable("litestream is gone")
        self.notice()
        newest = len(self._files)
        try:
            if upload:
                async with self._uploading:
                    await self._upload(newest)
        except NoAnswer as error:
            self._position = None
            raise SyncUnavailable(str(error)) from error
        return len(self._files)

    def notice(self) -> None:
        """Put what was committed into the next file."""
        rows = self.process.disk.rows
        if not self._files or len(rows) > self._rows:
            self._files.append(rows[self._rows :])
            self._rows = len(rows)

    def abandon(self) -> None:
        """Be killed: what is on its way may arrive, nothing more is sent."""
        self._running, self.process.child = False, None

    async def act(self, what: str) -> None:
        """Do one of the things that Litestream does of its own accord."""
        with contextlib.suppress(NoAnswer, SyncUnavailable):
            match what.split():
                case ["monitor"]:
                    await self.sync(timeout=0)
                case ["snapshot"]:  # of what it has, in the bucket or not
                    self.notice()
                    await self._create(9, 1, len(self._files))
                case ["merge", level]:
                    await self._merge(int(level))
                case ["trim", level]:
                    await self._trim(int(level))

    async def _upload(self, newest: int) -> None:
        if self._position is None:
            self._position = await self._newest_in_bucket()
        while self._position < newest:
            await self._create(0, self._position + 1, self._position + 1)
            self._position += 1

    async def _newest_in_bucket(self) -> int:
        for level in (0, 1, 2, 9):
            files: list[layout.File] = await self.gate.forward(self.gate.files(level))
            if files:
                return max(file.last for file in files)
        return 0

    async def _merge(self, level: int) -> None:
        """Put the files of the level below that are not in this one into one, from its own copies of them."""
        done = max((file.last for file in await self.gate.forward(self.gate.files(level))), default=0)
        below = [file.last for file in await self.gate.forward(self.gate.files(level - 1)) if file.first > done]
        last = min(max(below, default=0), len(self._files))
        if last > done:
            await self._create(level, done + 1, last)

    async def _trim(self, level: int) -> None:
        """Delete the files that a higher level holds."""
        held = max([file.last for above in (1, 2, 9) if above > level
                    for file in await self.gate.forward(self.gate.files(above))], default=0)  # fmt: skip
        for file in await self.gate.forward(self.gate.files(level)):
            if file.last <= held:
                await self.gate.forward(self.gate.delete(file.name.removeprefix(f"{self.gate.path}/")))

    async def _create(self, level: int, first: int, last: int) -> None:
        rows: Rows = {transaction: self._files[transaction - 1] for transaction in range(first, last + 1)}
        data = ltx_file(rows, self.life)
        if self.cut_off:
            self.cut_off, data = False, data[:-9]
        await self.gate.forward(self.gate.upload(f"ltx/{level}/{first:016x}-{last:016x}.ltx", data, self.life))


async def litestream_restore(replica: Path, output: Path, *, binary: Path, integrity_check: str) -> int:
    """`litestream restore` of copied files; see `worker.replica.litestream.restore`."""
    rows, end = applied(file.read_bytes() for file in sorted(replica.rglob("*.ltx"), key=lambda file: file.name))
    write_database(output, rows)
    return end


def write_database(file: Path, rows: Sequence[str]) -> None:
    """A database file, as far as its header is read."""
    content = b"SQLite format 3\0" + _PAGE_BYTES.to_bytes(2) + json.dumps(rows).encode()
    file.write_bytes(content.ljust(-(-len(content) // _PAGE_BYTES) * _PAGE_BYTES, b" "))


async def prepare(file: Path) -> None:
    """Open the database that was restored, or a new one."""
    Process.of(file).disk.rows = json.loads(file.read_bytes()[18:]) if file.exists() else []


class Disk:
    """The local database of one process: each row is the id of the message that made it."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def open(self) -> None:
        """See `worker.database.engine.Engine`; likewise `close`."""

    def close(self) -> None:  # noqa: D102  # said above
        pass


class DiskWriter(Writer):
    """The worker's writer, with the transaction alone replaced."""

    def _commit(self, entries: list[Entry] | list[Change]) -> Group:
        disk = cast(Disk, self._engine)
        outcomes: list[Outcome] = []
        for entry in entries:
            assert isinstance(entry, Entry)
            message = entry.delivery.message_id
            outcomes.append("duplicate" if message in disk.rows else "created")
            if message not in disk.rows:
                disk.rows.append(message)
        return Group(entries, outcomes)


class Process(Objects):
    """One instance, from its start to its end or its crash. It moves only inside the methods below.

    With `recover_to` it is an operator's `worker recover`, to so many transactions before the newest state.
    """

    _by_folder: Final[dict[Path, "Process"]] = {}

    def __init__(self, bucket: Bucket, holder: str, settings: Settings, *, recover_to: int | None = None) -> None:
        self.bucket, self.holder = bucket, holder
        self.loop = Loop()
        self.disk = Disk()
        self.pending: list[Ask] = []
        """Requests its tasks wait for, oldest first."""
        self.child: Child | None = None
        self.children = 0
        self.seen = 0  # for a mutant that looks before it holds the lease
        self.recover_to = recover_to
        self.scratch = tempfile.TemporaryDirectory(prefix="solowriter-world-")
        self.file = Path(self.scratch.name, "users.db")
        self.settings = copy.copy(settings)
        object.__setattr__(self.settings, "database_path", self.file)
        self._by_folder[self.file.parent] = self
        self._running = True
        self._stop = asyncio.Event()
        self.parts = self._make_parts()
        self.lease: Lease = self.parts.lease
        self.intake: Intake = self.parts.intake
        parts = self.parts
        self._application = app.build(app.Service(self.intake, parts.catalog, parts.tables, Access(), parts.erasure))
        self.life = self.loop.create_task(self._live() if recover_to is None else self._recover())
        self._run()

    def __repr__(self) -> str:
        return f"<{self.holder} {self.intake.state}, {self.lease}, waiting for {self.pending}>"

    @classmethod
    def of(cls, file: Path) -> "Process":
        """The process whose database a file is."""
        return cls._by_folder[next(folder for folder in file.parents if folder in cls._by_folder)]

    def deliver(self, message: str) -> None:
        """A push request comes in; 204 is the acknowledgement."""
        task = self.loop.create_task(self._push(message))
        task.add_done_callback(lambda task: task.cancelled() or task.result())
        self._run()

    def signal(self) -> None:
        """SIGTERM."""
        self._stop.set()
        self._run()

    def litestream_acts(self, what: str) -> None:
        """Litestream does something of its own accord."""
        if self.child is not None:
            self.loop.create_task(self.child.act(what))
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
        self, what: str, effect: Callable[[], Any], *, silence: type[Exception] = StoreUnavailable, changes: bool = False
    ) -> Any:
        """Send a request to the bucket and wait for its answer, or raise `silence`."""
        if not self._running:
            raise asyncio.CancelledError
        request = Ask(f"{self.holder}: {what}", effect, self.loop.create_future(), silence, changes)
        self.pending.append(request)
        return await request.answer

    def patient(self, seconds: float) -> "Process":
        """See `worker.bucket.Objects`; likewise the rest. A read without an answer ends the restore here."""
        return self

    def place(self, path: str) -> Any:  # noqa: D102  # said above
        return self, path

    async def read(self, name: str, *, timeout: float) -> Any:  # noqa: D102  # said above
        return await self.ask(f"read {name}", lambda: self.bucket.objects.get(name))

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> Any:  # noqa: D102
        return await self.ask(f"write {name}", lambda: self.bucket.swap(name, data, if_generation), changes=True)

    async def names(self, name_prefix: str, *, timeout: float) -> list[str]:  # noqa: D102
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = await self.ask(
                f"names {name_prefix} after {after}",
                functools.partial(self._page, name_prefix, after),
            )
            found += page
            if len(page) < _PAGE_OBJECTS:
                return found

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:  # noqa: D102
        return [stored(name, b"") for name in await self.names(name_prefix, timeout=timeout)]

    async def folders(self, name_prefix: str, *, timeout: float) -> Any:  # noqa: D102
        return await self.ask(f"folders {name_prefix}", lambda: self.bucket.folders(name_prefix))

    async def updated(self, name: str, *, timeout: float) -> datetime:  # noqa: D102
        return datetime.now(UTC)

    async def fetch(  # noqa: D102
        self, names: Sequence[str], name_prefix: str, directory: Path, *, timeout: float, check: Callable[[Path], None]
    ) -> None:
        for name in names:
            found = await self.read(name, timeout=timeout)
            if found is None:
                raise StoreMissing(f"{name} has vanished")
            file = directory / name.removeprefix(name_prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(found[0])
            check(file)

    async def delete(self, name: str, *, timeout: float) -> None:  # noqa: D102
        await self.ask(f"delete {name}", lambda: self.bucket.objects.pop(name, None), changes=True)

    def _page(self, name_prefix: str, after: str) -> list[str]:
        return [name for name in self.bucket.names(name_prefix) if name > after][:_PAGE_OBJECTS]

    def _run(self) -> None:
        self.loop.run()
        self._give_up([request for request in self.pending if request.answer.done()])
        if self.life.done() and self._running:
            self._end()

    def _end(self) -> None:
        self._running = False
        self._give_up(self.pending)
        self.loop.end()
        self.scratch.cleanup()
        self._by_folder.pop(self.file.parent, None)

    def _give_up(self, requests: list[Ask]) -> None:
        self.bucket.late += [request for request in requests if request.changes and not request.done]
        self.pending = [request for request in self.pending if request not in requests]

    async def _push(self, message: str) -> None:
        body = b'{"message":{"messageId":"%b","publishTime":"2026-01-01T00:00:00Z","data":"%b"}}' % (
            message.encode(),
            _DATA,
        )

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
            await supervisor._live_until(self._stop, server, self.parts)
        finally:
            server.cancel()

    async def _recover(self) -> None:
        await SimulatedRecovery(self).recover()

    def _make_parts(self) -> Any:
        """What `parts.Parts` makes, with this process's bucket and clock."""
        settings, clock = self.settings, self.loop.time
        succession = Succession(self, settings, holder=self.holder, clock=clock)
        made = SimpleNamespace(
            settings=settings,
            database=self.file,
            store=self,
            succession=succession,
            lease=Lease(self, settings, holder=self.holder, waiting=succession, clock=clock),
            intake=Intake(
                max_messages=settings.queue_max_messages,
                max_bytes=settings.queue_max_bytes,
                hold_seconds=settings.hold_limit_seconds,
                bodies=bodies(),
                waiting=succession.message_received,
            ),
            bodies=bodies(),
            prepare=prepare,
            catalog=CATALOG,
            tables=SimpleNamespace(open=False, read=_nothing),
            metrics=Metrics(hold_seconds=settings.hold_limit_seconds, clock=clock),
            erasure=None,
            pull=None,
        )
        made.home = SqliteStore(
            settings,
            bucket=cast(Any, self),
            file=self.file,
            lease=made.lease,
            succession=succession,
            bodies=made.bodies,
            tables=made.tables,
            prepare=made.prepare,
            metrics=made.metrics,
        )
        return made


async def _nothing(query: object) -> list[object]:
    """There is nothing old enough to expire."""
    return []


async def _for_ever(*_: object) -> None:
    """Disks are not in this world."""
    await asyncio.Event().wait()


class SimulatedRecovery(Recovery):
    """`worker recover`, with its comparison of two databases replaced: it only restores both."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.settings, datetime.now(UTC), lambda line: None)
        self._process = process

    @contextlib.contextmanager
    def _parts(self) -> Iterator[Any]:
        yield self._process.parts, self._process.file.parent

    async def _compare(self, parts: Any, scratch: Path) -> Plan:
        record = await parts.store.read("lease.json", timeout=1)
        live = json.loads(record[0])["live"]
        newest = await self._restored(live, None, scratch / "newest.db")
        end = max(1, newest.txid - (self._process.recover_to or 0))
        return Plan(newest, await self._restored(live, end, scratch / "wanted.db"), None)

    async def _restored(self, path: str, txid: int | None, output: Path) -> Any:
        made = await restore_for_real(
            self._process,
            Wanted(path=path, txid=txid),
            output,
            binary=Path("litestream"),
            integrity_check="none",
            seconds=60,
            request_seconds=1,
            say=lambda line: None,
        )
        return SimpleNamespace(file=str(output), generation=made.generation, txid=made.txid)


def settings() -> Settings:
    """The defaults, but generations are pruned without any retention."""
    made = Settings(replica_url="gs://bucket/prefix")
    object.__setattr__(made, "retention_days", -1.0)  # below what an operator may ask for
    return made


@contextlib.contextmanager
def installed(*, prune_seconds: float = 7) -> Iterator[None]:
    """The worker's modules, with Litestream, SQLite and the gate's HTTP replaced by the ones above."""
    gated = functools.partial(Generation, gate_of=cast(Any, SimulatedGate))
    with (
        mock.patch.object(generation, "Litestream", Child),
        mock.patch.object(generation.Generation, "_bound_disk", _for_ever),
        mock.patch.object(litestream, "restore", litestream_restore),
        mock.patch.object(sqlite, "Generation", gated),
        mock.patch.object(recovery, "Generation", gated),
        mock.patch.object(
            sqlite,
            "connections",
            SimpleNamespace(connect=lambda file: Process.of(file).disk, has_room=lambda file: True),
        ),
        mock.patch.object(sqlite, "SqliteEngine", lambda disk: disk),
        mock.patch.object(supervisor, "Writer", DiskWriter),
        mock.patch.object(supervisor, "PRUNE_INTERVAL_SECONDS", prune_seconds),
        mock.patch.object(sqlite, "PRUNE_INTERVAL_SECONDS", prune_seconds),
    ):
        yield
