"""The life of a process, top to bottom; leaving it is the mirror. Start reading at `run`, then `_life`.

    listen → lease → restore, migrate → litestream → first sync, live → replicator, writer → serve
    serve → (signal | lost lease | dead task) → drain → writer, replicator → final sync, litestream → release → exit

It listens first, so that the platform's probe passes while the instance stands by, and stops listening last, so that what
it holds gets an answer. When anything goes wrong the nest is left by an exception: then Litestream is killed, not
stopped, because what was acknowledged is in the bucket already and what was not must not be.
"""

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import uvicorn

from worker import app, database, generation, lease, litestream
from worker.config import Settings
from worker.errors import ConfigError, LeaseLost, Refused, WorkerError
from worker.gcs import Bucket
from worker.intake import Intake, State
from worker.lease import Lease
from worker.litestream import Litestream
from worker.replication import LitestreamConfirmation, Replicator
from worker.writer import Writer

_CLOSE_SECONDS: Final = 1
"""How long open connections may take to end once everything held has been answered."""
_BACKLOG: Final = 2048

log = logging.getLogger(__name__)


async def run(settings: Settings, stop: asyncio.Event, *, listening: Callable[[int], None] = lambda port: None) -> None:
    """Serve until `stop` is set.

    Args:
        settings: The process's settings.
        stop: Set it to leave: at once while standing by, after draining while serving.
        listening: Called with the port once requests are accepted.

    Raises:
        LeaseLost: Another instance took over; nothing was released.
        WorkerError: It could not start, or a part of it died.
    """
    parts = _Parts(settings)
    try:
        await lease.look(parts.store, timeout=settings.lease_read_timeout_seconds)  # a mistyped REPLICA_URL ends here
        async with _listening(settings, parts) as (port, server):
            listening(port)
            log.info("listening on port %d", port, extra={"action": "worker.listening"})
            await _live_until(stop, server, parts)
    finally:
        parts.store.close()
    log.info("stopped", extra={"action": "worker.stopped"})


class _Parts:
    """What exists once per process, whether or not it ever holds the lease."""

    def __init__(self, settings: Settings) -> None:
        version = database.check_sqlite()
        self.settings = settings
        self.options = litestream.Options(
            binary=litestream.find_binary(settings.litestream_bin),
            config=settings.litestream_config,
            bucket=settings.bucket,
            database=settings.database_path.resolve(),
            metrics_address=settings.litestream_metrics_address,
            log_level="warn" if settings.log_level != "debug" else "info",
            start_seconds=settings.litestream_start_seconds,
            starts_max=settings.litestream_starts_max,
            stop_seconds=settings.final_sync_seconds,
        )
        self.store = Bucket(settings.bucket, settings.prefix)
        self.lease = Lease(
            self.store,
            holder=str(uuid.uuid4()),
            revision=settings.revision,
            ttl=settings.lease_ttl_seconds,
            renew=settings.lease_renew_seconds,
            poll=settings.lease_poll_seconds,
            spacing=settings.lease_write_spacing_seconds,
            timeout=settings.lease_read_timeout_seconds,
        )
        self.intake = Intake(
            max_messages=settings.queue_max_messages,
            max_bytes=settings.queue_max_bytes,
            hold_seconds=settings.hold_limit_seconds,
        )
        self.users = Users(database.Reader(self.options.database, busy_timeout_seconds=settings.busy_timeout_seconds))
        log.info("starting with SQLite %s", version, extra={"action": "worker.starting"})


@dataclass(slots=True)
class Users:
    """Reads users while there is a database to read."""

    reader: database.Reader
    open: bool = False

    async def user(self, user_id: int) -> dict[str, Any] | None:
        """The user's row, or None.

        Raises:
            Refused: This instance has no database: it stands by, or stops.
        """
        if not self.open:
            raise Refused("this instance is not serving yet; ask again")
        return await asyncio.to_thread(self.reader.user, user_id)


async def _live_until(stop: asyncio.Event, server: "asyncio.Task[None]", parts: _Parts) -> None:
    """One life, ended by `stop`, by its own error, or by the server's end."""
    life = asyncio.create_task(_life(stop, parts), name="life")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({life, stopping, server}, return_when=asyncio.FIRST_COMPLETED)
        if not life.done() and (parts.intake.state is State.STANDBY or server.done()):
            life.cancel()  # nothing has been taken, so there is nothing to drain
        parts.intake.drain()
        await asyncio.wait({life})
    finally:
        stopping.cancel()
        life.cancel()
        await asyncio.wait({life})
        parts.intake.drain()
    if not life.cancelled() and (error := life.exception()) is not None:
        raise _plain(error)
    if server.done():
        server.result()
        raise WorkerError("the HTTP server ended by itself; see the log above")


async def _life(stop: asyncio.Event, parts: _Parts) -> None:
    settings, options, held = parts.settings, parts.options, parts.lease
    async with held.held(release_seconds=settings.release_seconds), asyncio.TaskGroup() as side:
        async with _running(side, "lease renewal", held.keep()):
            path = await generation.prepare(
                held,
                parts.store,
                options,
                prefix=settings.prefix,
                integrity_check=settings.restore_integrity_check,
                restore_seconds=settings.restore_timeout_seconds,
                busy_timeout_seconds=settings.busy_timeout_seconds,
                store_seconds=settings.first_sync_timeout_seconds,
            )
            async with (
                Litestream(options, replica_path=f"{settings.prefix}/{path}", epoch=held.epoch) as child,
                _running(side, "litestream", child.watch()),
            ):
                await generation.first_sync(child, timeout=settings.first_sync_timeout_seconds)
                await generation.insist(lambda: held.set_live(path), seconds=settings.first_sync_timeout_seconds)
                await _serve(stop, parts, side, child)


async def _serve(stop: asyncio.Event, parts: _Parts, side: asyncio.TaskGroup, child: Litestream) -> None:
    settings = parts.settings
    confirmation = LitestreamConfirmation(child, parts.lease, sync_timeout=settings.sync_timeout_seconds)
    connection = database.connect(parts.options.database, busy_timeout_seconds=settings.busy_timeout_seconds)
    async with (
        Replicator(confirmation) as replicator,
        _running(side, "replicator", replicator.run()),
        Writer(
            connection,
            replicator,
            epoch=parts.lease.epoch,
            group_max=settings.group_max_messages,
            gather_seconds=settings.group_gather_seconds,
        ) as writer,
        _running(side, "writer", writer.run()),
    ):
        try:
            parts.users.open = True
            parts.intake.serve(writer)
            log.info("serving epoch %d", parts.lease.epoch, extra={"action": "worker.serving"})
            await stop.wait()
            log.info("draining", extra={"action": "worker.draining"})
            parts.intake.drain()
            if not await parts.intake.emptied(timeout=settings.drain_seconds):
                log.warning(
                    "%d messages were not confirmed in time and will come again",
                    parts.intake.held_messages,
                    extra={"action": "worker.undrained"},
                )
        finally:
            parts.users.open = False
            parts.intake.drain()


@contextlib.asynccontextmanager
async def _running(group: asyncio.TaskGroup, name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the body. Its death ends the body; the body's end cancels it."""

    async def named() -> None:
        try:
            await work
        except Exception as error:
            log.error("the task %r died: %s", name, error, extra={"action": "worker.task_died"})
            raise

    task = group.create_task(named(), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def _listening(settings: Settings, parts: _Parts) -> AsyncIterator[tuple[int, "asyncio.Task[None]"]]:
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"HOST={settings.host} PORT={settings.port} cannot be listened on: {error}") from error
    application = app.build(app.Service(parts.intake, parts.users, settings.body_max_bytes))
    server = _Server(
        uvicorn.Config(
            application,
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            log_config=None,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
    try:
        yield listener.getsockname()[1], task
    finally:
        server.should_exit = True
        await asyncio.wait({task})


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again before the final sync."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _plain(error: BaseException) -> BaseException:
    """The one error worth reporting: a loss before anything it caused."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    lost = error.subgroup(LeaseLost)
    leaf: BaseException = lost if lost is not None else error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
