"""HTTP: one functions-framework target for every path and verb. This file alone knows statuses, headers and bodies.

POST /           a push from the subscription: 204 acknowledges, anything else leaves the message in the queue
GET /users/<id>  the user's row; GET /healthz: this process lives; GET /readyz: it can take requests

The function is at module level because functions-framework looks it up there; what it needs travels with the
application, so that nothing lives in the module.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any, Final, Protocol

import functions_framework.aio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from publisher import message
from worker import envelope
from worker.errors import BadMessage, BodyTooLarge, Refused, RequestError
from worker.intake import Held, Intake, State

_OTHER_METHOD: Final = "this path takes {allowed} only"

log = logging.getLogger(__name__)


class Users(Protocol):
    """Where users are read from."""

    async def user(self, user_id: int) -> dict[str, Any] | None:
        """The user's row, or None. `Refused` while there is no database."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the requests need."""

    intake: Intake
    users: Users
    body_max_bytes: int


@functions_framework.aio.http
async def handle(request: Request) -> Response:
    """The functions-framework target."""
    service: Service = request.app.state.service
    try:
        return await _route(service, request)
    except RequestError as error:
        return _refusal(error)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it: the sender closed before its body was whole


def build(service: Service) -> Starlette:
    """The ASGI application around `service`."""
    # From the loaded module: loading it again by its file would make a second copy under a bare name.
    app: Starlette = functions_framework.aio.create_asgi_app_from_module(  # type: ignore[no-untyped-call]
        "handle", __file__, "http", sys.modules[__name__], None
    )
    app.state.service = service
    return app


async def _route(service: Service, request: Request) -> Response:
    path = request.scope["path"]
    if path == "/":
        return await _push(service, request) if request.method == "POST" else _wrong_method("POST")
    if request.method not in ("GET", "HEAD"):
        return _wrong_method("GET")
    if path.startswith("/users/"):
        return await _user(service, path.removeprefix("/users/"))
    if path == "/healthz":
        return JSONResponse({"state": service.intake.state})
    if path == "/readyz":
        # Standing by is ready: the platform must be able to route to this instance, or a deploy never ends.
        draining = service.intake.state is State.DRAINING
        return JSONResponse({"state": service.intake.state}, status_code=503 if draining else 200)
    return JSONResponse({"error": "no such path; pushes go to POST /"}, status_code=404)


async def _push(service: Service, request: Request) -> Response:
    async with service.intake.hold() as held:
        delivery = envelope.decode(await _body(request, held, service.body_max_bytes))
        try:
            user = message.decode(delivery.data, delivery.attributes)
        except message.MessageError as error:  # names the field, never its value
            log.warning("message %s refused: %s", delivery.message_id, error, extra={"action": "message.refused"})
            raise BadMessage(f"message {delivery.message_id}: {error}") from None
        outcome = await service.intake.submit(held, delivery, user)
    log.debug("message %s: %s", delivery.message_id, outcome, extra={"action": "message.handled"})
    return Response(status_code=204)


async def _body(request: Request, held: Held, limit: int) -> bytes:
    """The body. It is counted before it is in memory where its length is told, else piece by piece."""
    too_large = BodyTooLarge(f"the body is over BODY_MAX_BYTES, {limit}; Pub/Sub sends no larger message")
    told = request.headers.get("content-length", "")
    if told.isdecimal():
        if int(told) > limit:
            raise too_large
        held.grow(int(told))
        return await request.body()  # the server reads no more than was told
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        held.grow(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def _user(service: Service, text: str) -> Response:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19) or not 1 <= int(text) <= message.MAX_USER_ID:
        return JSONResponse({"error": "the user id must be a whole number from 1 to 2^63-1"}, status_code=400)
    row = await service.users.user(int(text))
    if row is None:
        return JSONResponse({"error": "no such user"}, status_code=404)
    return JSONResponse(row)


def _wrong_method(allowed: str) -> Response:
    return JSONResponse({"error": _OTHER_METHOD.format(allowed=allowed)}, status_code=405, headers={"allow": allowed})


def _refusal(error: RequestError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else None
    if not isinstance(error, Refused | BadMessage):
        log.warning("request refused: %s", error, extra={"action": "request.refused"})
    return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers)
