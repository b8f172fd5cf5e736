"""A recording proxy between a push subscription and the worker: which messages were acknowledged, and when.

Pub/Sub does not tell what it takes for acknowledged, so a proof needs a witness. An acknowledgement is written down
before it is passed on; if the proxy dies in between, the queue delivers again, which is harmless.
"""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType
from typing import Final, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.ingest.http import envelope

_TIMEOUT_SECONDS: Final = 65.0
"""Longer than the worker's default ack deadline: it is the worker that answers, not the proxy."""
_START_SECONDS: Final = 10.0


class Recorder:
    """The proxy, on a thread of its own. `acknowledged` grows only; read it from anywhere.

    Args:
        target: The worker's address, without the final slash.
        port: A free loopback port.
    """

    def __init__(self, target: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.acknowledged: dict[str, float] = {}  # message id -> monotonic seconds; written by the proxy's thread only
        self.deliveries = 0  # acknowledged ones, redeliveries included
        self.refused = 0
        self.under_way = 0  # deliveries that have no answer yet
        self._target = target
        app = Starlette(routes=[Route("/", self._push, methods=["POST"])])
        self._server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, http="httptools", lifespan="off", log_config=None)
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if time.monotonic() > until or not self._thread.is_alive():
                raise RuntimeError(f"the recording proxy did not start on {self.url}")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)

    async def _serve(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False, limits=limits) as self._http:
            await self._server.serve()

    async def _push(self, request: Request) -> Response:
        body = await request.body()
        message_id = envelope.decode(body).message_id
        self.under_way += 1
        try:
            answer = await self._http.post(self._target, content=body)
            if answer.is_success:
                self.acknowledged.setdefault(message_id, time.monotonic())
                self.deliveries += 1
            else:
                self.refused += 1
        except httpx.HTTPError:
            self.refused += 1
            return Response(status_code=502)  # no worker there, or it was killed while it worked: the queue delivers again
        finally:
            self.under_way -= 1
        return Response(answer.content, status_code=answer.status_code)
