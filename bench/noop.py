"""The ceiling: a functions-framework target that reads the body and answers 204, under the worker's own uvicorn settings.

What it does per second is the most that anything behind functions-framework's routing can do here; it stores nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from typing import Any, Final

import functions_framework.aio
import uvicorn
import uvloop
from starlette.requests import Request
from starlette.responses import Response

from publisher.connections import Bounds, Connections
from publisher.listening import listen

_CLOSE_SECONDS: Final = 1
_BOUNDS: Final = Bounds(connections=3000, body_max_bytes=14_000_000, body_seconds=20)


@functions_framework.aio.http
async def handle(request: Request) -> Response:
    """The functions-framework target."""
    await request.body()
    return Response(status_code=204)


def main(arguments: list[str] | None = None) -> int:
    """Serve on a loopback port until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.noop", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(sys.modules[__name__], parser.parse_args(arguments).port))
    return 0


async def serve(module: Any, port: int, **state: object) -> None:
    """Serve the function `handle` of a module on a loopback port until SIGTERM; `state` is its application's."""
    application = functions_framework.aio.create_asgi_app_from_module(  # type: ignore[no-untyped-call]
        "handle", module.__file__, "http", module, None
    )
    for name, value in state.items():
        setattr(application.state, name, value)
    doors = Connections(_BOUNDS)
    # The keywords are those of worker/supervisor.py; tests/unit/bench/test_bench.py holds them together.
    server = _Server(
        uvicorn.Config(
            application,
            http=doors,  # type: ignore[arg-type]  # uvicorn only calls it
            ws="none",
            lifespan="off",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=620,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.handle_exit, signal.SIGTERM, None)
    listener = listen("127.0.0.1", port)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again before the caller has ended in order."""

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


if __name__ == "__main__":
    sys.exit(main())
