"""The console's application: every path, and what it shows or starts. What it does is done by `operations`.

GET  /                     the page; / asks the service once
GET  /live                 its upper part, which the page asks for every five seconds while it is visible
GET  /bucket               restore points and the latest drill: this lists the bucket
GET  /rejections           a page of them: ?reason=&after=
GET  /rejection            one, whole: ?id=
POST /retry, /discard      one (id), or all of a reason (reason); discarding needs their number, typed
POST /mend                 retry one with its data as it was mended
POST /export               a file of one, or of all of a reason
POST /drill, /doctor       run it, as a job
POST /recover, /replay, /break, /erase    what it would do, and its command; none of them is done here
GET  /job                  a job: ?kind=
GET  /healthz              for a platform's probe
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.console import bucket_look
from worker.console.actions import Actions
from worker.console.context import Context
from worker.console.message_text import shown
from worker.console.pages import Pages
from worker.console.safety import HEALTH, Forms, Safety, Who, WrongFormError
from worker.database.models import REASONS
from worker.errors import ServiceRefused, WorkerError
from worker.operations.service_client import Wanted

_PAGE: Final = 50
"""Rejections on one page."""
_SEE_OTHER: Final = 303

log = logging.getLogger(__name__)

Answer = Callable[[Request], Awaitable[Response]]


class Console:
    """The handlers. Everything that is read or done goes through `context`."""

    def __init__(self, context: Context) -> None:
        self._context, self._forms = context, Forms()
        self._pages = Pages({"context": context, "token": self._forms.token, "reasons": [*map(str, REASONS)]})
        self._actions = Actions(context, self._pages)

    def routes(self) -> list[Route]:
        """Every path."""
        reading = {
            "/": self._page,
            "/live": self._live,
            "/bucket": self._bucket,
            "/rejections": self._rejections,
            "/rejection": self._rejection,
            "/job": self._job,
            "/static/{path:path}": self._static,
        }
        return [
            *(Route(path, self._guarded(answer), methods=["GET"]) for path, answer in reading.items()),
            *(Route(f"/{name}", self._changing(name, act), methods=["POST"]) for name, act in self._actions.all().items()),
            Route(HEALTH, _healthy, methods=["GET"]),
        ]

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> Response:
            try:
                return await answer(request)
            except WrongFormError as error:
                return self._pages.page("error.html", status=400, title="Not done", text=str(error))
            except WorkerError as error:
                return self._pages.page("error.html", status=502, title="It could not be done", text=str(error))
            except Exception:
                log.exception("a page ended by a defect", extra={"action": "console.broke"})
                text = "A defect of the console: its log says more. The service is not touched by it."
                return self._pages.page("error.html", status=500, title="This page is broken", text=text)

        return guarded

    def _changing(self, name: str, act: Callable[[dict[str, str]], Awaitable[Response | str]]) -> Answer:
        async def changing(request: Request) -> Response:
            form = await self._forms.read(request)
            who = request.scope.get("state", {}).get("who", "the operator at this machine")
            log.info("%s asked for %s", who, name, extra={"action": "console.asked"})
            done = await act(form)
            return RedirectResponse(done, status_code=_SEE_OTHER) if isinstance(done, str) else done

        return self._guarded(changing)

    async def _page(self, request: Request) -> Response:
        view = await self._context.watch.look()
        return self._pages.page("page.html", view=view, look=None, jobs=self._context.jobs)

    async def _live(self, request: Request) -> Response:
        return self._pages.page("live.html", view=await self._context.watch.look())

    async def _bucket(self, request: Request) -> Response:
        context = self._context
        look = await bucket_look.look(context.required_bucket(), context.queue)
        if request.headers.get("hx-request") == "true":
            return self._pages.page("bucket.html", look=look)
        return self._pages.page("bucket_page.html", look=look)

    async def _rejections(self, request: Request) -> Response:
        reason = request.query_params.get("reason") or None
        if reason is not None and reason not in REASONS:
            raise ServiceRefused(f"{reason[:40]!r} is no reason; one is {', '.join(REASONS)}")
        after = request.query_params.get("after")
        rows, more = await self._context.service.page(Wanted(reason=reason), after=after, limit=_PAGE)
        view = await self._context.watch.look()
        counts = {} if view.status is None or view.status.rejections is None else view.status.rejections
        if reason is not None:
            number = counts[reason].count if reason in counts else None
        else:
            number = sum(each.count for each in counts.values()) if counts else None
        return self._pages.page(
            "rejections.html", rows=rows, reason=reason, number=number, more=more and quote(more), first=after is None
        )

    async def _rejection(self, request: Request) -> Response:
        message_id = request.query_params.get("id")
        if not message_id:  # the service's path without an id is that of the list
            raise WrongFormError("the address names no message: it ends in ?id= and the message's id")
        found = await self._context.service.whole(message_id)
        data = base64.b64decode(found["data"])
        message = await asyncio.to_thread(shown, data, found["stored"], found["detail"])
        return self._pages.page(
            "rejection.html",
            found=found,
            message=message,
            outcome=request.query_params.get("outcome", "")[:20],
        )

    async def _job(self, request: Request) -> Response:
        kind = request.query_params.get("kind", "")
        job = self._context.jobs.get(kind)
        part = "job.html" if request.headers.get("hx-request") == "true" else "job_page.html"
        if job is None:
            text = "No such job has run since the console began."
            return self._pages.page("error.html", status=404, title="Nothing here", text=text)
        return self._pages.page(part, job=job)

    async def _static(self, request: Request) -> Response:
        return self._pages.static(request.url.path) or Response(status_code=404)


async def _healthy(request: Request) -> Response:
    return Response(status_code=204)


def build(context: Context, *, who: Who | None = None) -> ASGIApp:
    """The ASGI application.

    Args:
        context: What it reads and asks.
        who: Who sends a request; None where everybody who reaches it is the operator.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with context:
            yield {}

    app = Starlette(routes=Console(context).routes(), lifespan=lifespan)
    return Safety(app, context.hosts, who)
