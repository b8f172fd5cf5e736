"""HTTP in front of Pub/Sub: one functions-framework target. This file alone knows the gateway's statuses and bodies.

POST /users           a user, in the JSON of a message's data: 202 once Pub/Sub has accepted the message
POST /events/<name>   the same for a message of any event that EVENTS declares
GET /healthz          this process lives

Only 202 says that the message is safe; after anything but a 4xx the sender keeps it and sends it again. The function is at
module level because functions-framework looks it up there; what it needs travels with the application.
"""

import asyncio
import contextlib
import logging
import sys
from dataclasses import dataclass, field
from typing import Final

import functions_framework.aio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from publisher import settings, tracing
from publisher.async_sink import AsyncSink, Place
from publisher.errors import BusyError, DeliveryError, RefusedError
from publisher.message import Message
from publisher.settings import GatewayLimits
from publisher.telemetry import RateLimitedLog
from worker.events.catalog import DEFAULT_EVENT, Catalog
from worker.events.declaration import Event, MessageError, Reason

_MAY_HAVE_BEEN_ACCEPTED: Final = (
    "Pub/Sub did not confirm this in time, and may have accepted it: keep it and send it again; "
    "that is harmless, because a message that is repeated is absorbed"
)
_EVENTS: Final = "/events/"
_CANNOT_PUBLISH: Final = "the gateway cannot publish now; keep this and send it again"
_REFUSED: Final = "Pub/Sub refused this message: it does not match the topic's schema, or is larger than Pub/Sub takes"
_REFUSED_NEXT_STEP: Final = (
    f"{_REFUSED}; compare the topic's schema with docs/message-format.md (LOG_LEVEL=debug adds Pub/Sub's own words)"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that requests use."""

    sink: AsyncSink
    limits: GatewayLimits
    catalog: Catalog
    traced: bool = False
    """Whether messages continue the traces of their requests."""
    events: RateLimitedLog = field(default_factory=lambda: RateLimitedLog(log, settings.GATEWAY_LOG_SECONDS))


class _BodyRefused(Exception):
    """The body was not read to its end."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status: Final = status
        self.reason: Final = reason


@functions_framework.aio.http
async def handle(request: Request) -> Response:
    """The functions-framework target."""
    gateway: Gateway = request.app.state.gateway
    response = await _answer(gateway, request)
    if response.status_code >= 400 and _may_go_on(request, response, gateway.limits):
        response.headers["connection"] = "close"
    return response


def build(gateway: Gateway) -> Starlette:
    """Return the ASGI application around `gateway`."""
    # From the loaded module: loading it again by its file would make a second copy under a bare name.
    app: Starlette = functions_framework.aio.create_asgi_app_from_module(  # type: ignore[no-untyped-call]
        "handle", __file__, "http", sys.modules[__name__], None
    )
    app.state.gateway = gateway
    return app


async def _answer(gateway: Gateway, request: Request) -> Response:
    path = request.scope["path"]
    name = DEFAULT_EVENT if path == "/users" else path.removeprefix(_EVENTS) if path.startswith(_EVENTS) else None
    if name is not None and (event := gateway.catalog.events.get(name)) is not None:
        return await _message(gateway, event, request) if request.method == "POST" else _wrong_method("POST")
    if path == "/healthz":
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET, HEAD")
        return JSONResponse({"state": "draining" if gateway.sink.draining else "serving"})
    names = ", ".join(gateway.catalog.events)
    return JSONResponse({"error": f"no such path; there is POST /users, and /events/ with one of {names}"}, status_code=404)


async def _message(gateway: Gateway, event: Event, request: Request) -> Response:
    try:
        _check_told_length(request, gateway.limits)
        with gateway.sink.place() as place:
            message = Message(event, event.decode(await _body(request, place, gateway.limits)))
            with tracing.continuing(request.headers) if gateway.traced else contextlib.nullcontext():
                message_id = await gateway.sink.publish(place, message)
    except MessageError as error:  # names the field, never its value
        gateway.events(logging.WARNING, "gateway.bad_request", f"a request was refused: {error}")
        return _bad(400, str(error), error.reason, error.field)
    except _BodyRefused as error:
        gateway.events(logging.WARNING, "gateway.bad_request", f"a request was refused: {error}")
        return _bad(error.status, str(error), error.reason)
    except DeliveryError as error:
        return _undelivered(gateway, error)
    except ClientDisconnect:
        return Response(status_code=499)  # it reaches no one: the sender closed before its body was whole
    log.debug("message %s accepted", message_id, extra={"action": "gateway.accepted"})
    return JSONResponse({"message_id": message_id}, status_code=202)


def _undelivered(gateway: Gateway, error: DeliveryError) -> Response:
    """The answer for a message that Pub/Sub is not known to have; the cause's own text is the operator's."""
    if isinstance(error, RefusedError):
        gateway.events(logging.WARNING, "gateway.refused", _REFUSED_NEXT_STEP)
        log.debug("%s", error, extra={"action": "gateway.refused"})  # may quote the message
        return _bad(400, _REFUSED, error.code)
    if isinstance(error, BusyError):
        text = str(error)
        gateway.events(logging.WARNING, "gateway.busy", f"a request was answered 503: {error}")
    else:
        text = _MAY_HAVE_BEEN_ACCEPTED if error.unknown else _CANNOT_PUBLISH
        gateway.events(logging.ERROR, "gateway.undelivered", f"a request was answered 503: {error}")
    headers = {"retry-after": str(settings.GATEWAY_RETRY_AFTER_SECONDS)}
    return JSONResponse({"error": text, "reason": error.code}, status_code=503, headers=headers)


def _check_told_length(request: Request, limits: GatewayLimits) -> None:
    if _told_length(request) > limits.body_max_bytes:
        raise _too_large(limits)


async def _body(request: Request, place: Place, limits: GatewayLimits) -> bytes:
    """The body, piece by piece: what it says of its length takes no room, what has arrived does."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_max_bytes:
                    raise _too_large(limits)
                place.grow(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        text = f"the body did not arrive within {limits.body_seconds:g} s; send it again"
        raise _BodyRefused(408, "too_slow", text) from None
    return b"".join(chunks)


def _too_large(limits: GatewayLimits) -> _BodyRefused:
    return _BodyRefused(413, Reason.TOO_LARGE, f"the body must be at most {limits.body_max_bytes} bytes")


def _told_length(request: Request) -> int:
    told = request.headers.get("content-length", "")
    return int(told) if told.isascii() and told.isdecimal() else 0


def _may_go_on(request: Request, response: Response, limits: GatewayLimits) -> bool:
    """Whether more of the body than is worth skipping may follow, so that only closing the connection ends it."""
    endless = "transfer-encoding" in request.headers
    return endless or response.status_code == 408 or _told_length(request) > limits.body_max_bytes


def _bad(status: int, text: str, reason: str, named: str | None = None) -> Response:
    return JSONResponse({"error": text, "field": named, "reason": reason}, status_code=status)


def _wrong_method(allowed: str) -> Response:
    text = f"this path takes {allowed} only"
    return JSONResponse({"error": text}, status_code=405, headers={"allow": allowed})
