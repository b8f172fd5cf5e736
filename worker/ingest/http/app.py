"""HTTP: one functions-framework target for every path and verb. Beside operator_api.py, only this file knows statuses.

POST /           a push from the subscription: 204 acknowledges, anything else leaves the message in the queue
GET /tables/<table>/<key>  a row, of a table that an event lets be read; GET /tables/<table>?after=&limit=: its rows in order
GET /users/<id>            the same as /tables/users/<id>
GET /healthz: this process lives; GET /readyz: it can take requests
GET /metrics: for Prometheus; it holds no user data, so it has no check of its own
POST /users/<id>/erase: for operators, erases a person for good, by the subject that events name
GET /status: for operators, what this instance does now
/rejections, /counts, /receipts, /outcomes: for operators, see operator_api.py

The function is at module level because functions-framework looks it up there; what it needs travels with the
application, so that nothing lives in the module.
"""

import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import functions_framework.aio
import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from publisher import values
from worker.config.limits import BODY_MAX_BYTES
from worker.errors import BadQuery, BodyTooLarge, NoSuchPath, Refused, RequestError, Unwritable, WrongMethod, WrongStore
from worker.events.catalog import Catalog
from worker.ingest.erasure import Erasure
from worker.ingest.http import envelope, operator_api, paths, tables, trace_context
from worker.ingest.http.access import Access
from worker.ingest.http.delivery_counts import Tally
from worker.ingest.intake import Held, Intake, State
from worker.ingest.messages import Delivery, Observer, note
from worker.ingest.tables import Tables

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_READ: Final = ("/metrics", "/healthz", "/readyz")
_ID_HEADER: Final = envelope.ID_HEADER.encode()
_ACKNOWLEDGED: Final = Response(status_code=204)
"""It has no state: one is enough for all."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that requests use."""

    intake: Intake
    catalog: Catalog
    readers: Tables
    access: Access
    eraser: Erasure
    unwrapped: bool = False
    """Whether a push without metadata may come without a wrapper as well."""
    body_max_bytes: int = BODY_MAX_BYTES
    tally: Tally = field(default_factory=Tally)
    observer: Observer = field(default_factory=Observer)
    store: str = ""
    """The gs://BUCKET/PREFIX that is served; operators' commands say which they mean."""
    scrape: Callable[[], Awaitable[bytes]] | None = None
    """Makes the page of metrics."""
    ready_at_once: bool = True
    """Whether an instance that does not serve yet is ready for requests, which it holds."""
    status: Callable[[], Awaitable[bytes]] | None = None
    """Makes the operators' status, as JSON."""


@functions_framework.aio.http
async def handle(request: Request) -> Response:
    """The functions-framework target."""
    return await _answer(request)


async def _answer(request: Request) -> Response:
    service: Service = request.app.state.service
    trace_context.REQUEST.set(request.scope)  # for whatever is logged of it
    try:
        return await _route(service, request)
    except RequestError as error:
        service.observer.refused(error)
        return _refusal(error)
    except ClientDisconnect:
        return Response(status_code=499)  # it reaches no one: the sender closed before its body was whole
    except Exception:  # a defect; left to the server it would be an entry without action, or a traceback in a text
        service.observer.broke()
        log.exception("a request ended by a defect", extra={"action": "request.broke"})
        return JSONResponse(
            {"error": "a defect of the service; a message stays in the queue, and the log says more"}, status_code=500
        )


def build(service: Service) -> Starlette:
    """The ASGI application around `service`."""
    # From the loaded module: loading it again by its file would make a second copy under a bare name.
    app: Starlette = functions_framework.aio.create_asgi_app_from_module(  # type: ignore[no-untyped-call]
        "handle", __file__, "http", sys.modules[__name__], None
    )
    app.state.service = service
    app.add_middleware(_Pushes)
    return app


class _Pushes:
    """Answers a push as soon as it comes in, as the function would.

    On the usual way a request is matched against routes and wrapped five times, which costs as much as handling a push.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The framework's route matches no line break, and the key of a row may hold one.
        if scope["type"] == "http" and ((scope["path"] == "/" and scope["method"] == "POST") or "\n" in scope["path"]):
            response = await _answer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _route(service: Service, request: Request) -> Response:
    path = request.scope["path"]
    if path == "/":
        if request.method != "POST":
            raise WrongMethod("POST")
        return await _push(service, request)
    readable = path.startswith(("/users/", tables.ROOT))
    if path == paths.STATUS:
        return await _status(service, request)
    if operator_api.takes(path) or readable:
        service.intake.routed()  # not for probes and scrapes, which reach an instance without traffic as well
    if operator_api.takes(path):
        _check_store(service, request)
        answer = await operator_api.answer(
            request,
            path,
            access=service.access,
            intake=service.intake,
            catalog=service.catalog,
            readers=service.readers,
            tally=service.tally,
        )
        answer.headers[paths.STORE_HEADER] = service.store
        return answer
    if request.method == "POST" and path.startswith("/users/") and path.endswith("/erase"):
        return await _erase(service, request, path.removeprefix("/users/").removesuffix("/erase"))
    if not readable and path not in _READ:
        raise NoSuchPath
    if request.method not in ("GET", "HEAD"):
        raise WrongMethod("GET")
    if readable:
        where = (request.scope.get("raw_path") or path.encode()).decode("ascii", "replace")
        return await tables.answer(where, request.query_params, service.catalog, service.readers)
    return await _read(service, path)


async def _status(service: Service, request: Request) -> Response:
    """The status, in every state. It proves no traffic: the operators' page asks an instance that stands by as well."""
    await service.access.operator(request.scope["headers"])
    _check_store(service, request)
    if service.status is None:
        raise NoSuchPath
    if request.method not in ("GET", "HEAD"):
        raise WrongMethod("GET")
    headers = {"cache-control": "no-store", paths.STORE_HEADER: service.store}
    return Response(await service.status(), media_type="application/json", headers=headers)


async def _read(service: Service, path: str) -> Response:
    if path == "/metrics":
        if service.scrape is None:
            raise NoSuchPath
        return Response(await service.scrape(), headers={"content-type": METRICS_TYPE})
    if path == "/healthz":
        return JSONResponse({"state": service.intake.state})
    # Standing by is ready where only one serves: the platform must be able to route here, or a deploy never ends.
    state = service.intake.state
    ready = state is State.SERVING or (state is State.STANDBY and service.ready_at_once)
    return JSONResponse({"state": state}, status_code=200 if ready else 503)


async def _push(service: Service, request: Request) -> Response:
    headers = dict(request.scope["headers"])  # the server gives their names in lower case
    await service.access.push(request.scope["headers"])
    with service.intake.hold() as held:
        delivery = _delivery(service, request, headers, await _body(request, headers, held, service.body_max_bytes))
        content = service.catalog.read(delivery.data, delivery.attributes, delivery.publish_time)
        outcome = await service.intake.submit(held, delivery, content)
    service.tally.add(outcome, delivery.publish_time)
    note(delivery, content, outcome)
    return _ACKNOWLEDGED


def _delivery(service: Service, request: Request, headers: Mapping[bytes, bytes], body: bytes) -> Delivery:
    if _ID_HEADER in headers or service.unwrapped:
        return envelope.unwrapped(body, request.headers, now=round(time.time() * 1000))
    return envelope.decode(body)


async def _body(request: Request, headers: Mapping[bytes, bytes], held: Held, limit: int) -> bytes:
    """The body. It is counted as it arrives, and a large head with it: what is only announced takes no room."""
    told = headers.get(b"content-length", b"")
    if told.isdigit():
        _check_size(int(told), limit)
    held.grow(request.scope.get("state", {}).get("head_bytes", 0))
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await request.receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = event.get("body", b"")
        size += len(chunk)
        _check_size(size, limit)
        held.grow(len(chunk))
        if not event.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLarge(f"the body is over {limit} bytes; Pub/Sub sends no larger message")


async def _erase(service: Service, request: Request, text: str) -> Response:
    who = await service.access.operator(request.scope["headers"])
    _check_store(service, request)
    erased = await service.eraser.erase(_subject(service.catalog, text))
    log.info("a subject was erased by %s", who, extra={"action": "subject.erased"})
    return JSONResponse(msgspec.structs.asdict(erased))


def _check_store(service: Service, request: Request) -> None:
    """Refuse what was meant for another store: a service may listen where another one was expected."""
    meant = request.headers.get(paths.STORE_HEADER)
    if meant and meant != service.store:
        raise WrongStore(
            f"this service serves {service.store}, and the request is for {meant}; correct REPLICA_URL or SERVICE_URL"
        )


def _subject(catalog: Catalog, text: str) -> str:
    """The subject that an erasure names."""
    try:
        return catalog.subject_named(values.subject(text))
    except values.Wrong as error:
        raise BadQuery(f"the subject {error}") from None


def _refusal(error: RequestError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    if isinstance(error, WrongMethod):
        headers["allow"] = error.allowed
    if not isinstance(error, Refused | Unwritable):  # an outage and a defect are logged where they are met
        log.warning("request refused: %s", error, extra={"action": "request.refused"})
    return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers)
