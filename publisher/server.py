"""The gateway's process: listen, serve until a signal, drain what is in flight, exit."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import Any, NoReturn

import uvicorn
import uvloop

from publisher import connections, gateway, listening, settings
from publisher.async_sink import AsyncSink
from publisher.errors import UsageError
from publisher.settings import GatewayLimits
from publisher.sink import Sink
from publisher.tracing import Close
from worker.events.catalog import Catalog

log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections; they wait there until `main` serves them.

    Args:
        host: the address.
        port: the port; 0 picks a free one.

    Raises:
        UsageError: it cannot be listened on.
    """
    try:
        return listening.listen(host, port)
    except ValueError as error:
        raise UsageError(str(error)) from None


def main(
    listener: socket.socket, sink: Sink, limits: GatewayLimits, catalog: Catalog, close_tracing: Close | None = None
) -> NoReturn:
    """Serve until SIGTERM or SIGINT, and leave the process: exit code 0 in order, 1 otherwise."""
    code = 0
    try:
        uvloop.run(_until_signal(listener, sink, limits, catalog, traced=close_tracing is not None))
    except asyncio.CancelledError:
        log.warning("left without waiting for what was in flight", extra={"action": "gateway.aborted"})
        code = 1
    except Exception:
        log.exception("the gateway failed; start it again and report this", extra={"action": "gateway.failed"})
        code = 1
    if close_tracing is not None:
        close_tracing(settings.TRACE_FLUSH_SECONDS)
    # Everything is answered. A publish that still hangs on a thread must not hold up the end.
    logging.shutdown()
    os._exit(code)


async def run(
    listener: socket.socket,
    sink: Sink,
    limits: GatewayLimits,
    catalog: Catalog,
    stop: asyncio.Event,
    *,
    traced: bool = False,
) -> None:
    """Serve until `stop` is set, then answer what is in flight, for `drain_seconds` at most.

    Raises:
        RuntimeError: the HTTP server ended by itself.
    """
    messages = AsyncSink(sink, limits)
    server = _Server(_configuration(gateway.Gateway(messages, limits, catalog, traced), _bounds(limits)))
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    log.info("listening on port %d", listener.getsockname()[1], extra={"action": "gateway.listening"})
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            raise RuntimeError("the HTTP server ended by itself")
        log.info("draining: %d messages in flight", messages.in_flight, extra={"action": "gateway.draining"})
        if not await messages.emptied(limits.drain_seconds):
            log.warning(
                "%d messages had no outcome within %g s; their senders were told to send them again",
                messages.in_flight,
                limits.drain_seconds,
                extra={"action": "gateway.undrained"},
            )
    finally:
        stopping.cancel()
        messages.close()
        server.should_exit = True
        await asyncio.wait({serving})
    log.info("stopped", extra={"action": "gateway.stopped"})


async def _until_signal(
    listener: socket.socket, sink: Sink, limits: GatewayLimits, catalog: Catalog, *, traced: bool
) -> None:
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await run(listener, sink, limits, catalog, stop, traced=traced)


def _bounds(limits: GatewayLimits) -> connections.Bounds:
    return connections.Bounds(
        min(limits.in_flight + connections.SPARE_CONNECTIONS, listening.spare_files()),
        limits.body_max_bytes,
        limits.body_seconds + settings.GATEWAY_MARGIN_SECONDS,  # for a request that has been answered already
    )


def _configuration(service: gateway.Gateway, bounds: connections.Bounds) -> uvicorn.Config:
    return uvicorn.Config(
        gateway.build(service),
        http=connections.Connections(bounds),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        access_log=False,
        proxy_headers=False,  # no part asks for the client's address
        server_header=False,
        log_config=None,
        timeout_keep_alive=settings.GATEWAY_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.GATEWAY_CLOSE_SECONDS,
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end it before what is in flight is answered."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
