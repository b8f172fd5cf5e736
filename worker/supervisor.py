"""The life of a process, top to bottom; leaving it is the mirror. Start reading at `run`, then `_life`.

    listen → lease → restore, seal, migrate → gate, litestream → full copy, live → replicator, writer → serve
    serve → (signal | successor | lost lease | sealed | dead task)
          → drain → writer, replicator → gate, litestream → release → exit

It listens first, so that the platform's probe passes while the instance stands by, and stops listening last, so that what
it holds gets an answer. However the nest is left, the gate is fenced and Litestream killed: what was acknowledged is in the
bucket already, and what was not comes again.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final

import uvicorn

from publisher.connections import SPARE_CONNECTIONS, Bounds, Connections
from publisher.listening import listen, spare_files
from worker.config import Settings
from worker.database import connections
from worker.errors import ConfigError, LeaseLost, StoreUnavailable, WorkerError
from worker.ingest.confirmation import Replicator
from worker.ingest.expiry import Expiry
from worker.ingest.http import app
from worker.ingest.intake import State
from worker.ingest.writer import Writer
from worker.lease import record
from worker.operations.doctor import quick
from worker.replica import claim
from worker.replica import retention as retention_
from worker.replica.generation import Generation
from worker.tasks import plain, running
from worker.telemetry import logs, tracing
from worker.telemetry.metrics import TimedConfirmation
from worker.wiring import Parts

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
    parts = Parts(settings)
    _tune()
    logs.label(parts.labels)
    try:
        quick.at_start(settings)
        parts.metrics.spans = _spans(parts)
        with contextlib.suppress(StoreUnavailable):  # an outage is waited out while standing by
            await record.look(parts.store, timeout=settings.lease_read_timeout_seconds)  # a mistyped URL ends here
        with claim.held(settings.database_path), parts.trouble.listening():
            async with _listening(settings, parts) as (port, server):
                listening(port)
                log.info("listening on port %d", port, extra={"action": "worker.listening"})
                await _live_until(stop, server, parts)
    finally:
        if parts.metrics.spans is not None:
            await parts.metrics.spans.close(settings.trace_flush_seconds)
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


def _spans(parts: Parts) -> tracing.Spans | None:
    settings = parts.settings
    return tracing.begin(
        os.environ,
        hold_seconds=settings.hold_limit_seconds,
        service_name=settings.service,
        service_version=settings.revision,
        service_instance_id=parts.lease.holder,
    )


async def _live_until(stop: asyncio.Event, server: "asyncio.Task[None]", parts: Parts) -> None:
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


async def _life(stop: asyncio.Event, parts: Parts) -> None:
    settings, lease_ = parts.settings, parts.lease
    async with lease_.held(release_seconds=settings.release_seconds), asyncio.TaskGroup() as side:
        async with (
            running(side, "lease renewal", lease_.keep()),
            Generation(
                lease_, parts.store, parts.options, settings, side=side, prepare=parts.prepare, counts=parts.metrics.bucket
            ) as generation,
        ):
            lease_.on_loss = generation.abandon
            generation.on_restored = parts.metrics.restored_in
            await generation.begin()
            await _serve(stop, parts, side, generation)


async def _serve(stop: asyncio.Event, parts: Parts, side: asyncio.TaskGroup, generation: Generation) -> None:
    settings, lease_ = parts.settings, parts.lease
    metrics = parts.metrics
    connection = connections.connect(parts.options.database, busy_timeout_seconds=settings.busy_timeout_seconds)
    leave = asyncio.Event()
    async with (
        Replicator(
            TimedConfirmation(generation, metrics),
            metrics,
            max_messages=settings.queue_max_messages,
            max_bytes=settings.queue_max_bytes,
        ) as replicator,
        running(side, "replicator", replicator.run()),
        Writer(
            connection,
            replicator,
            epoch=lease_.epoch,
            group_max=settings.group_max_messages,
            gather_seconds=settings.group_gather_seconds,
            has_room=functools.partial(connections.has_room, parts.options.database),
            observer=metrics,
        ) as writer,
        running(side, "writer", writer.run()),
        _housekeeping(parts, side),
        running(side, "succession", _then(parts.succession.requested(lambda: lease_.epoch), leave)),
        running(side, "stop", _then(stop.wait(), leave)),
    ):
        try:
            parts.tables.open = True
            metrics.pending = lambda: writer.pending
            parts.intake.serve(writer)
            log.info("serving epoch %d", lease_.epoch, extra={"action": "worker.serving"})
            await leave.wait()
            log.info("draining", extra={"action": "worker.draining"})
            parts.intake.drain()
            replicator.stop_batching()
            if not await parts.intake.emptied(timeout=settings.drain_seconds):
                log.warning(
                    "%d messages were not confirmed in time and will come again",
                    parts.intake.held_messages,
                    extra={"action": "worker.undrained"},
                )
        finally:
            parts.tables.open = False
            parts.intake.drain()


@contextlib.asynccontextmanager
async def _housekeeping(parts: Parts, side: asyncio.TaskGroup) -> AsyncIterator[None]:
    """Delete what is past its time, and take checkpoints, beside the block."""
    settings, interval = parts.settings, parts.settings.prune_interval_seconds
    clock_agrees = functools.partial(retention_.clock_agrees, parts.store)
    retention = timedelta(days=settings.retention_days)
    expiry = Expiry(settings.receipt_days, settings.rejection_days, settings.prune_step_rows)
    async with (
        running(side, "retention", retention_.prune_every(interval, parts.store, parts.lease, retention, may=clock_agrees)),
        running(side, "expiry", expiry.run(parts.tables, interval_seconds=interval, may=clock_agrees)),
        running(side, "bodies", parts.bodies.collect_every(interval, parts.tables, may=clock_agrees)),
        running(side, "checkpoints", _checkpoints(parts)),
    ):
        yield


async def _checkpoints(parts: Parts) -> None:
    settings = parts.settings
    if settings.checkpoint_hours:
        from worker.operations import checkpointing, pubsub  # a tenth of a second of a cold start, where it is not set

        queue = pubsub.Queue(pubsub.subscription_name(settings.subscription, settings.project))
        await checkpointing.take_every(settings.checkpoint_hours, queue, parts.store)


async def _then(something: Coroutine[Any, Any, object], event: asyncio.Event) -> None:
    await something
    event.set()


@contextlib.asynccontextmanager
async def _listening(settings: Settings, parts: Parts) -> AsyncIterator[tuple[int, "asyncio.Task[None]"]]:
    try:
        listener = listen(settings.host, settings.port)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    bounds = Bounds(
        min(settings.queue_max_messages + SPARE_CONNECTIONS, spare_files()),
        settings.body_max_bytes,
        _BODY_SECONDS,
    )
    doors = Connections(bounds, parts.metrics.turned_away)
    application = app.build(
        app.Service(
            parts.intake,
            parts.tables,
            parts.access,
            parts.erasure,
            settings.body_max_bytes,
            settings.push_unwrapped,
            observer=parts.metrics,
            store=settings.replica_url.rstrip("/"),
            scrape=parts.scrape.page,
            status=parts.status.page,
        )
    )
    server = _Server(
        uvicorn.Config(
            application,
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


async def _fresh_certificates(parts: Parts, server: uvicorn.Server) -> None:
    if parts.verifier is None:
        return
    try:
        await parts.verifier.keep_fresh()
    except Exception as error:  # an outage is not one: this is a defect, and ends the process like any dead part
        log.error("the task 'certificates' died: %s", error, extra={"action": "worker.task_died"})
        server.should_exit = True


async def _history(parts: Parts, server: uvicorn.Server) -> None:
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
