"""The life of a process, top to bottom; leaving it is the mirror. Start reading at `run`, then `_life`.

    listen → the store gives it a life (worker/stores/) → replicator, writer → serve
    serve → (signal | successor | lost lease | sealed | dead task) → drain → writer, replicator → the store → exit

It listens first, so that the platform's probe passes while the instance stands by, and stops listening last, so that what
it holds gets an answer. However the nest is left, the gate is fenced and Litestream killed: what was acknowledged is in the
bucket already, and what was not comes again.
"""

import asyncio
import contextlib
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from publisher.connections import SPARE_CONNECTIONS, Bounds, Connections
from publisher.listening import listen, spare_files
from worker.config import Settings
from worker.config.limits import ACKNOWLEDGE_SECONDS, BODY_MAX_BYTES, DRAIN_SECONDS, TRACE_FLUSH_SECONDS
from worker.errors import ConfigError, LeaseLost, WorkerError
from worker.ingest.confirmation import Replicator
from worker.ingest.expiry import Expiry
from worker.ingest.http import app
from worker.ingest.intake import State
from worker.ingest.writer import Writer
from worker.operations.doctor import quick
from worker.stores.store import PRUNE_INTERVAL_SECONDS, Life
from worker.tasks import plain, running
from worker.telemetry import logs, tracing
from worker.wiring import Common, Parts, parts_of

_CLOSE_SECONDS: Final = 1
"""How long open connections may take to end once everything held has been answered."""
_BODY_SECONDS: Final = 20.0
"""Longest time for a body to arrive: the largest one over 6 Mbit/s."""
_COLLECT_AFTER_OBJECTS: Final = 50_000
"""About 15 MB, if all of them were garbage."""
_SWITCH_SECONDS: Final = 0.001
"""How long a busy event loop may keep the writer's thread from each next statement; Python's default is 5 ms."""
_KEEP_ALIVE_SECONDS: Final = 620
"""Longer than Google's front ends keep an idle connection (600 s), so that they and not we close it: a push sent into a
connection that is being closed is a refusal."""

log = logging.getLogger(__name__)


async def run(settings: Settings, stop: asyncio.Event, *, listening: Callable[[int], None] = lambda port: None) -> None:
    """Serve until `stop` is set.

    Args:
        settings: The process's settings.
        stop: Set it to leave: at once while standing by, after draining while serving.
        listening: Called with the port once requests are accepted.

    Raises:
        LeaseLost: Another instance took over; nothing was released.
        Unfit: Serving here would be unsafe; nothing was touched.
        WorkerError: It could not start, or a part of it died.
    """
    parts = parts_of(settings)
    _tune()
    logs.label(parts.labels)
    try:
        await quick.at_start(settings)
        parts.metrics.spans = _spans(parts)
        await parts.home.look()
        with parts.home.claimed(), parts.trouble.listening():
            async with _listening(settings, parts) as (port, server):
                listening(port)
                log.info("listening on port %d", port, extra={"action": "worker.listening"})
                await _live_until(stop, server, parts)
    finally:
        if parts.metrics.spans is not None:
            await parts.metrics.spans.close(TRACE_FLUSH_SECONDS)
        await parts.scrape.close()
        parts.close()
    log.info("stopped", extra={"action": "worker.stopped"})


def _tune() -> None:
    """Keep the garbage collector off the hot path, and the event loop from keeping the other threads waiting.

    The collector starts each time there are as many more objects than before as its threshold says: by default 700, which
    is a handful of held requests, and then looks at all that are held. They leave no cycles behind and need no collector.
    """
    gc.freeze()  # what start-up has made stays
    gc.set_threshold(_COLLECT_AFTER_OBJECTS)
    sys.setswitchinterval(_SWITCH_SECONDS)


def _spans(parts: Common) -> tracing.Spans | None:
    settings = parts.settings
    return tracing.begin(
        os.environ,
        hold_seconds=settings.hold_limit_seconds,
        service_name=settings.service,
        service_version=settings.revision,
        service_instance_id=parts.holder,
    )


async def _live_until(stop: asyncio.Event, server: "asyncio.Task[None]", parts: Common) -> None:
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
        raise plain(error, LeaseLost)  # a loss before anything it caused
    if server.done():
        server.result()
        raise WorkerError("the HTTP server ended by itself; see the log above")


async def _life(stop: asyncio.Event, parts: Common) -> None:
    async with asyncio.TaskGroup() as side, parts.home.serving(side) as life:
        await _serve(stop, parts, side, life)


@contextlib.asynccontextmanager
async def _pulling(parts: Common, side: asyncio.TaskGroup) -> AsyncIterator[None]:
    """Pull messages while the block runs, if that is asked for; however it ends, give back what was not confirmed."""
    if parts.pull is None:
        yield
        return
    async with running(side, "pull", parts.pull.run()):
        try:
            yield
        finally:
            parts.intake.drain()
            parts.pull.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                    await parts.pull.end()


async def _serve(stop: asyncio.Event, parts: Common, side: asyncio.TaskGroup, life: Life) -> None:
    settings, metrics = parts.settings, parts.metrics
    leave = asyncio.Event()
    async with (
        Replicator(
            life.confirmation,
            metrics,
            max_messages=settings.queue_max_messages,
            max_bytes=settings.queue_max_bytes,
        ) as replicator,
        running(side, "replicator", replicator.run()),
        Writer(life.engine, replicator, parts.catalog, epoch=life.epoch, has_room=life.has_room, observer=metrics) as writer,
        running(side, "writer", writer.run()),
        _housekeeping(parts, side),
        running(side, "succession", _then(life.superseded(), leave)),
        running(side, "stop", _then(stop.wait(), leave)),
    ):
        try:
            parts.tables.open = True
            metrics.pending = lambda: writer.pending
            parts.intake.serve(writer)
            log.info("serving epoch %d", life.epoch, extra={"action": "worker.serving"})
            async with _pulling(parts, side):
                await leave.wait()
                log.info("draining", extra={"action": "worker.draining"})
                parts.intake.drain()
                if parts.pull is not None:
                    parts.pull.stop()
                replicator.stop_batching()
                if not await parts.intake.emptied(timeout=DRAIN_SECONDS):
                    log.warning(
                        "%d messages were not confirmed in time and will come again",
                        parts.intake.held_messages,
                        extra={"action": "worker.undrained"},
                    )
        finally:
            parts.tables.open = False
            parts.intake.drain()


@contextlib.asynccontextmanager
async def _housekeeping(parts: Common, side: asyncio.TaskGroup) -> AsyncIterator[None]:
    """Delete what is past its time, and take checkpoints, beside the block."""
    settings, home = parts.settings, parts.home
    expiry = Expiry(settings.receipt_days, settings.rejection_days)
    expiring = expiry.run(parts.tables, interval_seconds=PRUNE_INTERVAL_SECONDS, may=home.may_tidy)
    async with home.upkeep(side), running(side, "expiry", expiring), running(side, "checkpoints", _checkpoints(parts)):
        yield


async def _checkpoints(parts: Common) -> None:
    settings = parts.settings
    if settings.checkpoint_hours and isinstance(parts, Parts):
        from worker.operations import checkpointing, pubsub  # a tenth of a second of a cold start, where it is not set

        queue = pubsub.Queue(pubsub.subscription_name(settings.subscription, settings.project))
        await checkpointing.take_every(settings.checkpoint_hours, queue, parts.store)


async def _then(something: Awaitable[object], event: asyncio.Event) -> None:
    await something
    event.set()


@contextlib.asynccontextmanager
async def _listening(settings: Settings, parts: Common) -> AsyncIterator[tuple[int, "asyncio.Task[None]"]]:
    try:
        listener = listen(settings.host, settings.port)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    bounds = Bounds(
        min(settings.queue_max_messages + SPARE_CONNECTIONS, spare_files()),
        BODY_MAX_BYTES,
        _BODY_SECONDS,
    )
    doors = Connections(bounds, parts.metrics.turned_away)
    server = _Server(
        uvicorn.Config(
            _application(settings, parts),
            http=doors,  # type: ignore[arg-type]  # uvicorn only calls it
            ws="none",
            lifespan="off",
            access_log=False,
            proxy_headers=False,  # the client's address is not used
            server_header=False,
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
    certificates = asyncio.create_task(_fresh_certificates(parts, server), name="certificates")
    history = asyncio.create_task(_history(parts, server), name="history")
    try:
        yield listener.getsockname()[1], task
    finally:
        certificates.cancel()
        history.cancel()
        server.should_exit = True
        await asyncio.wait({task, certificates, history})


def _application(settings: Settings, parts: Common) -> Starlette:
    return app.build(
        app.Service(
            parts.intake,
            parts.catalog,
            parts.tables,
            parts.access,
            parts.erasure,
            settings.push_unwrapped,
            tally=parts.tally,
            observer=parts.metrics,
            store=settings.store_name,
            ready_at_once=parts.home.ready_at_once,
            scrape=parts.scrape.page,
            status=parts.status.page,
        )
    )


async def _fresh_certificates(parts: Common, server: uvicorn.Server) -> None:
    if parts.verifier is None:
        return
    try:
        await parts.verifier.keep_fresh()
    except Exception as error:  # an outage is not one: this is a defect, and ends the process like any dead part
        log.error("the task 'certificates' died: %s", error, extra={"action": "worker.task_died"})
        server.should_exit = True


async def _history(parts: Common, server: uvicorn.Server) -> None:
    try:
        async for _ in parts.history.looks():
            parts.status.note_state()
    except Exception as error:  # a defect, and ends the process like any dead part
        log.error("the task 'history' died: %s", error, extra={"action": "worker.task_died"})
        server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again before the final sync."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
