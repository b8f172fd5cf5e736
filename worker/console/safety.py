"""What keeps other pages from using this one: where a request was sent, where it came from, and what an answer may do.

The console holds an operator's credentials, and a browser sends requests for any page that is open in it. So:

- `Host` is a name of ours. A stranger's name that is made to lead to 127.0.0.1 (DNS rebinding) is none.
- A page of another site may lead here, and asks for nothing in passing, such as an image that lists the bucket.
- What changes something is a POST with `Origin` of ours, and with the token that only our own pages hold.
- An answer runs no script but our own files, is shown in no frame, and is kept nowhere.
- Behind Identity-Aware Proxy, a request has its signed header (iap.py).
"""

import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Final
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.errors import RequestError

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # without any, a browser sends `Origin: null` with our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
FORM_MAX_BYTES: Final = 1_000_000
"""Longest form: a corrected message of 100,000 characters, each escaped as several."""
_FIELDS_MAX: Final = 100
TOKEN: Final = "token"
HEALTH: Final = "/healthz"
"""The path that a platform's probe asks. It says nothing, so it is not checked."""

Who = Callable[[Headers], Awaitable[str]]
"""Tells who sends a request; raises `RequestError` for one that is not let in."""


class Safety:
    """The outermost layer: refuses what is not ours, and puts the headers on each answer.

    Args:
        app: The application.
        hosts: The values of `Host` that are ours.
        who: Who sends a request; None where everybody who reaches it is the operator.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], who: Who | None) -> None:
        self._app, self._hosts, self._who = app, frozenset(hosts), who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] == HEALTH:
            await self._app(scope, receive, send)
            return
        refusal = await self._refusal(scope)
        await (refusal or self._app)(scope, receive, _with_headers(send))

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if headers.getlist("host") != [headers.get("host")] or host not in self._hosts:
            return _refused(
                421, "this is not the address of the console; open the one that it printed, or set CONSOLE_HOSTS"
            )
        if self._who is not None:
            try:
                scope["state"]["who"] = await self._who(headers)
            except RequestError as error:
                return _refused(error.status, str(error))
        if scope["method"] not in ("GET", "HEAD") and not _ours(headers, host):
            return _refused(403, "this request came from another page; use the console's own")
        if _embedded(headers):
            return _refused(403, "another page asked for this in passing; open the console itself")
        return None


def _ours(headers: Headers, host: str) -> bool:
    """Whether a request that changes something comes from a page of ours."""
    origin = headers.get("origin")
    if origin is None:  # every browser sends it with a POST; another program has no reason to be let in
        return False
    return origin.lower() in (f"http://{host}", f"https://{host}") and headers.get("sec-fetch-site", "same-origin") == (
        "same-origin"
    )


def _embedded(headers: Headers) -> bool:
    """Whether another page asks, and not to be left for ours: an image of `/bucket` would list the bucket each time."""
    foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    return foreign and headers.get("sec-fetch-mode", "navigate") != "navigate"


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


class Forms:
    """Reads forms, and lets none in without the token. The token lives as long as the process."""

    def __init__(self) -> None:
        self.token: Final = secrets.token_urlsafe(32)

    async def read(self, request: Request) -> dict[str, str]:
        """A form's fields.

        Raises:
            WrongFormError: It is too long, or has too many fields, or its token is not ours.
        """
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > FORM_MAX_BYTES:
                raise WrongFormError(f"the form is over {FORM_MAX_BYTES:,} bytes; use the command")
        try:
            fields = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=_FIELDS_MAX))
        except ValueError:
            raise WrongFormError(f"the form has over {_FIELDS_MAX} fields, and is none of the console's") from None
        if not secrets.compare_digest(fields.pop(TOKEN, "").encode(), self.token.encode()):
            raise WrongFormError("the page is of an earlier run of the console; go back, load it again, and repeat")
        return fields


class WrongFormError(Exception):
    """The form is refused; the text says what to do."""
