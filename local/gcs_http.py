"""Requests and replies of the fake Cloud Storage, straight on ASGI.

No framework's router here: object names arrive with `%2F` in them, so a path is split before it is decoded, and bodies
are streamed both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, unquote_to_bytes
from xml.sax.saxutils import escape

import msgspec

from local.gcs_errors import ClientGoneError, GcsError, Headers, invalid

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Bytes of a body held at a time on the way out.
CHUNK = 256 * 1024
# Bytes of a JSON document (an object's metadata, fault rules) that is read whole.
MAX_JSON = 1024 * 1024


class Request:
    """One HTTP request: the path in decoded segments, query, headers, and the body as a stream."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._complete = False
        self.method: str = scope["method"]
        raw_path: bytes = scope["raw_path"]
        self.raw_segments = raw_path.decode("ascii").split("/")[1:]
        self.query = dict(parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True))
        self.headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        self.answer_dropped = False
        self.answer_held: asyncio.Event | None = None  # dropped as well, but only when this comes

    @property
    def segments(self) -> list[str]:
        """The path's segments; `%2F` inside one stays inside it.

        Raises:
            GcsError: A segment isn't UTF-8.
        """
        return [decoded(segment) for segment in self.raw_segments]

    @property
    def base_url(self) -> str:
        """Where the client reached us: links in answers must lead back the same way."""
        return f"http://{self.headers.get('host', 'localhost')}"

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it arrives.

        Raises:
            ClientGoneError: The connection closed before the body's end.
        """
        while not self._complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            self._complete = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def read(self) -> bytes:
        """The whole body, for JSON.

        Raises:
            GcsError: It is larger than JSON should be.
        """
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > MAX_JSON:
                raise GcsError(413, "uploadTooLarge", f"a JSON body is at most {MAX_JSON} bytes")
        return bytes(body)

    async def drain(self) -> None:
        """Reads what is left of the body, so that the client gets to read the answer."""
        async for _ in self.chunks():
            pass

    async def gone(self) -> None:
        """Returns once the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def gone_or(self, event: asyncio.Event) -> bool:
        """Waits for the event or the client's end; True if the event came."""
        waits = {asyncio.ensure_future(self.gone()), asyncio.ensure_future(event.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return event.is_set()


@dataclass(slots=True)
class Reply:
    """One answer: a body in memory, or `length` bytes of a file from `offset` (without a file: the answer to a HEAD)."""

    status: int
    body: bytes = b""
    headers: Headers = field(default_factory=list)
    file: BinaryIO | None = None
    offset: int = 0
    length: int = 0

    def close(self) -> None:
        """Lets go of the file."""
        if self.file is not None:
            self.file.close()

    async def send(self, send: Send) -> None:
        """Sends head and body."""
        length = self.length or len(self.body)
        headers = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in self.headers]
        if self.status not in {204, 304}:
            headers.append((b"content-length", b"%d" % length))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if self.file is None:
            await send({"type": "http.response.body", "body": self.body})
            return
        self.file.seek(self.offset)
        while length > CHUNK:
            await send({"type": "http.response.body", "body": self.file.read(CHUNK), "more_body": True})
            length -= CHUNK
        await send({"type": "http.response.body", "body": self.file.read(length)})


def decoded(segment: str) -> str:
    """A percent-encoded piece of a path as text.

    Raises:
        GcsError: It isn't UTF-8.
    """
    if "%" not in segment:
        return segment
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"Not valid UTF-8: {unquote(segment)!r}") from None


def json_reply(document: object, status: int = 200, headers: Headers | None = None) -> Reply:
    """An answer of the JSON API."""
    head = [("content-type", "application/json; charset=UTF-8"), *(headers or [])]
    return Reply(status, msgspec.json.encode(document), head)


def json_error(error: GcsError) -> Reply:
    """The error as the JSON API gives it."""
    if error.status == 304:
        return Reply(304, headers=error.headers)
    domain = "usageLimits" if error.status == 429 else "global"
    entry = {"message": error.message, "domain": domain, "reason": error.reason}
    if error.status == 412:
        entry |= {"locationType": "header", "location": "If-Match"}
    document = {"error": {"code": error.status, "message": error.message, "errors": [entry]}}
    return json_reply(document, error.status, error.headers)


def xml_error(error: GcsError) -> Reply:
    """The error as the XML API gives it."""
    if error.status == 304:
        return Reply(304, headers=error.headers)
    message = escape(error.message)
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{error.code}</Code><Message>{message}</Message></Error>"
    return Reply(error.status, body.encode(), [("content-type", "application/xml; charset=UTF-8"), *error.headers])


def text_error(error: GcsError) -> Reply:
    """The error as a media download of the JSON API gives it: the bare message."""
    if error.status == 304:
        return Reply(304, headers=error.headers)
    head = [("content-type", "text/html; charset=UTF-8"), *error.headers]
    return Reply(error.status, error.message.encode(), head)
