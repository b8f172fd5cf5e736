"""The gate: Litestream's only way to the bucket, on loopback, and what makes that way safe.

Litestream 0.5.17's Cloud Storage client finalizes what it had sent of a file that it could not read to its end, lists one
file where it means all from a transaction on, and uploads without a precondition. The child is started with its storage
endpoint set to this gate, which forwards its requests to the bucket under these rules:

G1 scope        Only files below this life's own generation. The child is not told where that is: the gate names it.
G2 listing      A listing whose prefix ends in a transaction begins there instead.
G3 create-only  A file is created where there is none. The same bytes that are there already are a success: our own answer
                was lost. Other bytes in a slot (a file of level 0) are another life's seal: this life is over.
G4 whole        A file is finalized only if it is a whole LTX file of the transactions in its name.
G5 fence        Once the gate is fenced no request goes out, and those under way are broken off.
G6 spacing      Two slots are begun at least UPLOAD_SPACING_SECONDS apart.
G7 covering     A file above level 0 is finalized only when all its slots are stored by this life: it never holds what a
                restore from the slots would not.
G8 deletion     A slot is deleted only if the lease was found ours after it was stored. Otherwise a slot could be stored and
                deleted between the look and the seal of a life that takes over, and that life would seal a name that was in
                use.

slots.py decides G3, G6, G7 and G8, and says what is stored. This file is the rest: HTTP on both sides.

The gate knows nothing of leases or messages. Its state belongs to its own thread's event loop; `stored` and `counts` are
read from elsewhere. It holds at most one part of a file above level 0 and one of a slot at a time, 16 MiB each (INV-7).
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import secrets
import socket
import ssl
import threading
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from urllib.request import getproxies

import aiohttp
import certifi
import google.auth.exceptions
import google.auth.transport.requests
from aiohttp import web
from yarl import URL

from worker.bucket import Place
from worker.errors import LitestreamError, SyncUnavailable
from worker.replica import ltx
from worker.replica.place import BUCKET, PATH
from worker.replica.slots import Answer, Digest, Name, Refused, Slots

_FILE: Final = re.compile(rf"{PATH}/(ltx/(\d)/([0-9a-f]{{16}})-([0-9a-f]{{16}})\.ltx)")
_FROM: Final = re.compile(r"ltx/\d/[0-9a-f]{16}")
_RANGE: Final = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_PART_BYTES: Final = 17 << 20
"""Google's client for Go uploads in parts of 16 MiB; the rest is for what a multipart body has around it."""
_PIECE_BYTES: Final = 1 << 16
"""So much is checked before other requests get their turn: some 20 pages, a tenth of a millisecond."""
_SESSIONS_MAX: Final = 16
"""Resumable uploads known at once: each level has one at most, and a few may have been given up by the child."""
_REQUEST_SECONDS: Final = 10.0
_BYTES_A_SECOND: Final = 500_000
"""Longest one request to the bucket may take: so long, and what its bytes take at this speed; 44 s for a part of 16 MiB."""
_START_SECONDS: Final = 10.0
_END_SECONDS: Final = 0.1
"""How long the end waits for requests: they have been broken off, and the child that made them is killed."""
_IDLE_SECONDS: Final = 120.0
"""An idle connection is kept so long: a store with a message a minute need not greet the bucket each time."""
_PASSED_ON: Final = ("content-type", "content-range", "range", "accept-encoding", "x-upload-content-type")
"""Request headers that mean something to the bucket, beside those that begin with x-goog- and x-guploader-."""
_NOT_PASSED_BACK: Final = ("connection", "keep-alive", "transfer-encoding", "location", "server", "date", "alt-svc")

RULES: Final = ("G1", "G3", "G4", "G5", "G7", "G8")
"""The rules by which a request can be refused."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """The passed requests, by kind (upload, read, list, delete) and level; only the gate's thread adds to it."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    refused: Counter[str] = field(default_factory=Counter)
    """By rule."""
    broken_off: int = 0
    """Uploads under way when the gate was fenced, or whose file turned out not to be whole."""


def _read_name(name: str) -> Name:
    match = _FILE.fullmatch(name)
    if match is None or (match[2] == "0" and match[3] != match[4]):  # each slot holds one transaction
        raise Refused(HTTPStatus.FORBIDDEN, "G1", f"{name!r} is not a file of the generation")
    return Name(match[1], int(match[2]), int(match[3], 16), int(match[4], 16))


class _Check:
    """Checks one file as it passes (G4), and takes its digest."""

    def __init__(self, name: Name) -> None:
        self.name = name
        self.size = 0
        self._scan, self._md5 = ltx.Scan(), hashlib.md5(usedforsecurity=False)

    async def feed(self, data: memoryview) -> None:
        for at in range(0, len(data), _PIECE_BYTES):
            piece = bytes(data[at : at + _PIECE_BYTES])
            try:
                self._scan.feed(piece)
            except ltx.NotWholeError as error:
                raise self._refusal(str(error)) from None
            self._md5.update(piece)
            self.size += len(piece)
            await asyncio.sleep(0)

    def end(self) -> Digest:
        try:
            header = self._scan.end()
        except ltx.NotWholeError as error:
            raise self._refusal(str(error)) from None
        if (header.first, header.last) != (self.name.first, self.name.last):
            raise self._refusal(f"it holds the transactions {header.first} to {header.last}")
        return Digest(self.size, b64encode(self._md5.digest()).decode())

    def _refusal(self, why: str) -> Refused:
        return Refused(HTTPStatus.BAD_REQUEST, "G4", f"{self.name.key} is not finalized: {why}")


@dataclass(slots=True)
class _Session:
    """A resumable upload: where it goes on in the bucket, and what has been checked of it."""

    check: _Check
    url: str


class Gate:
    """One generation's gate; an async context manager that begins and ends its thread.

    Args:
        place: Where the generation is.
        spacing_seconds: Least time between the beginnings of two uploads of slots (G6).
        on_stored: Called from the gate's thread whenever `stored` has grown.
        on_sealed: Called from the gate's thread when a slot turned out to be another life's.
    """

    def __init__(
        self,
        place: Place,
        *,
        spacing_seconds: float = 0.0,
        on_stored: Callable[[], None] = lambda: None,
        on_sealed: Callable[[str], None] = lambda reason: None,
        counts: Counts | None = None,
    ) -> None:
        self._place, self._on_sealed = place, on_sealed
        self.counts = counts or Counts()
        self.sealed = False
        """Whether another life has sealed the generation."""
        self._slots = Slots(self._look, spacing_seconds=spacing_seconds, on_stored=on_stored, on_sealed=self._seal)
        self._sessions: dict[str, _Session] = {}
        self._fenced = False
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._loop: asyncio.AbstractEventLoop
        self._started = threading.Event()
        self._ending: asyncio.Event
        self._tasks: set[asyncio.Task[Any]] = set()  # requests under way
        self._http: aiohttp.ClientSession
        self._one_large: asyncio.Lock
        self._authorizing: asyncio.Lock
        self._access: tuple[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Gate to gs://{self._place.bucket}/{self._place.path}, stored {self.stored}>"

    @property
    def stored(self) -> int:
        """See `Slots.stored`."""
        return self._slots.stored

    @property
    def deletable(self) -> int:
        """See `Slots.deletable`."""
        return self._slots.deletable

    @deletable.setter
    def deletable(self, transaction: int) -> None:
        self._slots.deletable = transaction

    @property
    def address(self) -> str:
        """HOST:PORT, for STORAGE_EMULATOR_HOST."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    async def __aenter__(self) -> Self:
        self._thread.start()
        if not await asyncio.to_thread(self._started.wait, _START_SECONDS):
            raise LitestreamError("the gate did not start; the log above may say why. Start the worker again")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.fence()
        self._loop.call_soon_threadsafe(self._ending.set)
        await asyncio.to_thread(self._thread.join, _START_SECONDS)

    def fence(self) -> None:
        """G5: from now on no request goes out, and those under way are broken off. From any thread, any number of times."""
        self._fenced = True
        with contextlib.suppress(RuntimeError, AttributeError):  # the thread has ended, or has not begun
            self._loop.call_soon_threadsafe(self._break_off)

    async def settle(self, transaction: int) -> int:
        """Look at the slots up to `transaction` whose upload has no answer yet; what `stored` is then.

        Raises:
            SyncUnavailable: The bucket gave no answer.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._slots.settle(transaction), self._loop))

    # The thread.

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self._one_large, self._authorizing = asyncio.Lock(), asyncio.Lock()
        tls = ssl.create_default_context(cafile=certifi.where())
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=_IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_REQUEST_SECONDS),
            auto_decompress=False,
            skip_auto_headers=("accept-encoding",),  # only the child says what it can decode
            trust_env=bool(getproxies()),  # with it aiohttp looks for a netrc file at each request
        )
        server = web.Server(self._answer, handler_cancellation=True, access_log=None, keepalive_timeout=3600)
        runner = web.ServerRunner(server, shutdown_timeout=_END_SECONDS)
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        self._started.set()
        try:
            await self._ending.wait()
            self._break_off()
        finally:
            await self._http.close()
            await runner.cleanup()

    def _break_off(self) -> None:
        self.counts.broken_off += self._slots.break_off()
        for task in self._tasks:
            task.cancel()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._fenced:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "G5", "this life is over")
            return await self._route(request)
        except Refused as refusal:
            self.counts.refused[refusal.rule] += 1
            log.warning("the gate refused %s: %s", request.method, refusal, extra={"action": "gate.refused"})
            return _error(refusal.status, str(refusal))
        except (aiohttp.ClientError, OSError, SyncUnavailable) as error:
            return _error(HTTPStatus.BAD_GATEWAY, f"the bucket gave no answer: {type(error).__name__}: {error}")
        except google.auth.exceptions.GoogleAuthError as error:
            return _error(HTTPStatus.BAD_GATEWAY, f"no token for the bucket: {error}")
        finally:
            self._tasks.discard(task)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        url = urlsplit(request.raw_path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        match request.method, [unquote(segment) for segment in url.path.split("/")[1:]]:
            case "POST" | "PUT", ["upload", "storage", "v1", "b", bucket, "o"] if bucket == BUCKET:
                return await self._upload(request, query)
            case "GET", ["storage", "v1", "b", bucket, "o"] if bucket == BUCKET:
                return await self._list(request, query)
            case "DELETE", ["storage", "v1", "b", bucket, "o", name] if bucket == BUCKET:
                return await self._delete(request, _read_name(name))
            case "GET", [bucket, *names] if bucket == BUCKET:
                file = _read_name("/".join(names))
                place = quote(f"{self._place.bucket}/{self._place.path}/{file.key}")
                return await self._pass(request, f"/{place}", ("read", str(file.level)))
        raise Refused(HTTPStatus.FORBIDDEN, "G1", f"{request.method} {url.path} is nothing that Litestream needs")

    # Reads, listings, deletions.

    async def _list(self, request: web.BaseRequest, query: dict[str, str]) -> web.StreamResponse:
        prefix = query.get("prefix", "")
        if not prefix.startswith(f"{PATH}/"):
            raise Refused(HTTPStatus.FORBIDDEN, "G1", f"a listing of {prefix!r} reaches beyond the generation")
        key = prefix.removeprefix(f"{PATH}/")
        query["prefix"] = f"{self._place.path}/{key}"
        if _FROM.fullmatch(key):
            query["startOffset"] = query["prefix"]
            query["prefix"] = query["prefix"].rpartition("/")[0] + "/"
        return await self._pass(request, f"{self._objects}?{urlencode(query)}", ("list", key[4:5] or "all"))

    async def _delete(self, request: web.BaseRequest, name: Name) -> web.StreamResponse:
        self._slots.check_deletion(name)
        return await self._pass(request, f"{self._objects}/{self._quoted(name)}", ("delete", str(name.level)))

    async def _pass(self, request: web.BaseRequest, path: str, kind: tuple[str, str]) -> web.StreamResponse:
        began = self._loop.time()
        async with await self._send(request.method, path, _headers(request), None) as answer:
            response = web.StreamResponse(status=answer.status, headers=_passed_back(answer.headers))
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                self.counts.bytes[kind] += len(piece)
                await response.write(piece)
            await response.write_eof()
        self._count(kind, began)
        return response

    # Uploads.

    async def _upload(self, request: web.BaseRequest, query: dict[str, str]) -> web.StreamResponse:
        if "upload_id" in query:
            return _response(await self._continue(request, query["upload_id"]))
        if query.get("uploadType") == "resumable":
            return await self._begin(request, query)
        if query.get("uploadType") == "multipart":
            return _response(await self._multipart(request, query))
        raise Refused(HTTPStatus.FORBIDDEN, "G1", "an upload that is neither multipart nor resumable")

    async def _multipart(self, request: web.BaseRequest, query: dict[str, str]) -> Answer:
        """A file of one part."""
        body = await _read(request)
        boundary, resource, start, end = _parts(request.headers.get("content-type", ""), body)
        name = self._rename(resource, query)
        media = memoryview(body)[start:end]
        check = _Check(name)
        await check.feed(media)
        digest = check.end()
        head = b"--%b\r\nContent-Type: application/json\r\n\r\n%b\r\n--%b\r\nContent-Type: application/octet-stream\r\n\r\n"
        pieces = (head % (boundary, json.dumps(resource).encode(), boundary), media, b"\r\n--%b--\r\n" % boundary)
        headers = {"content-type": f"multipart/related; boundary={boundary.decode()}"}
        path = f"/upload{self._objects}?{urlencode(query)}"
        return await self._slots.create(name, digest, lambda: self._put("POST", path, headers, pieces, name))

    async def _begin(self, request: web.BaseRequest, query: dict[str, str]) -> web.Response:
        """A file of several parts: its session."""
        resource = json.loads(bytes(await _read(request)) or b"{}")
        name = self._rename(resource, query)
        headers = {**_headers(request), "content-type": "application/json"}
        path = f"/upload{self._objects}?{urlencode(query)}"
        answer = await self._put("POST", path, headers, (json.dumps(resource).encode(),), name)
        if answer.status == HTTPStatus.PRECONDITION_FAILED and name.level == 0:
            await self._slots.taken(name)
        response = _response(answer)
        if location := answer.headers.get("location"):
            while len(self._sessions) >= _SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            session = secrets.token_urlsafe(16)
            self._sessions[session] = _Session(_Check(name), location)
            path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={session}"
            response.headers["location"] = f"http://{self.address}{path}"
        return response

    async def _continue(self, request: web.BaseRequest, upload_id: str) -> Answer:
        """A part of a file of several parts; the last one finalizes it."""
        session = self._sessions.get(upload_id)
        if session is None:
            raise Refused(HTTPStatus.NOT_FOUND, "G1", "an upload that was not begun here, or was given up")
        async with contextlib.AsyncExitStack() as stack:
            if session.check.name.level:
                await stack.enter_async_context(self._one_large)
            return await self._part(request, session, await _read(request), upload_id)

    async def _part(self, request: web.BaseRequest, session: _Session, body: bytearray, upload_id: str) -> Answer:
        check = session.check
        match = _RANGE.fullmatch(request.headers.get("content-range", ""))
        if match is None or (match[1] is not None and int(match[1]) > check.size):
            raise Refused(HTTPStatus.BAD_REQUEST, "G4", "a part that does not say where it belongs, or leaves a gap")
        try:
            if match[1] is not None:
                await check.feed(memoryview(body)[check.size - int(match[1]) :])  # the rest was sent before
            if match[2] != "*" and int(match[2]) < check.size:  # the bucket may have so little of it
                raise Refused(HTTPStatus.BAD_REQUEST, "G4", f"{check.name.key} does not end at byte {match[2]}")
            last = match[2] != "*" and int(match[2]) == check.size
            digest = check.end() if last else None
        except Refused:
            self.counts.broken_off += 1
            del self._sessions[upload_id]
            await self._put("DELETE", session.url, {}, (), check.name)
            raise

        def send() -> Awaitable[Answer]:
            return self._put(request.method, session.url, _headers(request), (body,), check.name)

        if digest is None:
            return await send()
        answer = await self._slots.create(check.name, digest, send)
        if answer.finished:
            self._sessions.pop(upload_id, None)
        return answer

    def _seal(self, reason: str) -> None:
        self.sealed = True
        self.fence()
        self._on_sealed(reason)

    async def _look(self, name: Name) -> Answer | None:
        try:
            return await self._stat(name)
        except (aiohttp.ClientError, OSError, google.auth.exceptions.GoogleAuthError) as error:
            raise SyncUnavailable(f"{name.key} could not be looked at: {type(error).__name__}: {error}") from error

    async def _stat(self, name: Name) -> Answer | None:
        answer = await self._put("GET", f"{self._objects}/{self._quoted(name)}", {}, (), name, kind="read")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise aiohttp.ClientError(f"a look at {name.key} was answered {answer.status}")
        return answer

    # The bucket.

    @property
    def _objects(self) -> str:
        return f"/storage/v1/b/{quote(self._place.bucket)}/o"

    def _quoted(self, name: Name) -> str:
        return quote(f"{self._place.path}/{name.key}", safe="")

    def _rename(self, resource: dict[str, Any], query: dict[str, str]) -> Name:
        """The file's name; from here on both say where it really belongs, and that nothing may be there (G1, G3)."""
        name = _read_name(str(query.get("name") or resource.get("name")))
        resource.pop("bucket", None)
        resource["name"] = query["name"] = f"{self._place.path}/{name.key}"
        query["ifGenerationMatch"] = "0"
        return name

    async def _put(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        pieces: tuple[bytes | bytearray | memoryview, ...],
        name: Name,
        kind: str = "upload",
    ) -> Answer:
        began, size = self._loop.time(), sum(map(len, pieces))
        async with asyncio.timeout(_REQUEST_SECONDS + size / _BYTES_A_SECOND):
            headers = {**headers, "content-length": str(size)}
            try:
                answer = await self._send(method, path, headers, _stream(pieces) if size else None)
            except aiohttp.ServerDisconnectedError:
                # An idle connection that the bucket has closed. All of these are safe to repeat: files are created once.
                answer = await self._send(method, path, headers, _stream(pieces) if size else None)
            async with answer:
                body = await answer.read()
        self.counts.bytes[kind, str(name.level)] += size or len(body)
        self._count((kind, str(name.level)), began)
        return Answer(answer.status, {key.lower(): value for key, value in answer.headers.items()}, body)

    async def _send(
        self, method: str, path: str, headers: dict[str, str], data: AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        endpoint = await self._authorize(headers)
        url = path if path.startswith("http") else endpoint + path
        if self._fenced:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "G5", "this life is over")
        return await self._http.request(method, URL(url, encoded=True), headers=headers, data=data)

    async def _authorize(self, headers: dict[str, str]) -> str:
        """Put a token into the headers; the bucket's endpoint."""
        async with self._authorizing:
            access = await asyncio.to_thread(self._place.access) if self._access is None else self._access
            endpoint, credentials = self._access = access
            if not credentials.valid:
                await asyncio.to_thread(credentials.refresh, google.auth.transport.requests.Request())
        credentials.apply(headers)
        return endpoint

    def _count(self, kind: tuple[str, str], began: float) -> None:
        self.counts.requests[kind] += 1
        self.counts.seconds[kind] += self._loop.time() - began


async def _stream(pieces: tuple[bytes | bytearray | memoryview, ...]) -> AsyncIterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), _PIECE_BYTES):
            yield bytes(piece[at : at + _PIECE_BYTES])


async def _read(request: web.BaseRequest) -> bytearray:
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > _PART_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "G4", f"a part of more than {_PART_BYTES:,} bytes")
    return body


def _parts(content_type: str, body: bytearray) -> tuple[bytes, dict[str, Any], int, int]:
    """A multipart upload: its boundary, the object's resource, and where the media begins and ends."""
    match = re.search(r'boundary="?([^";]+)"?', content_type)
    boundary = b"" if match is None else match[1].encode()
    first = body.find(b"\r\n\r\n")
    second = body.find(b"\r\n--" + boundary, first)
    start = body.find(b"\r\n\r\n", second) + 4
    end = body.rfind(b"\r\n--" + boundary + b"--")
    if not boundary or min(first, second, start - 4) < 0 or end < start:
        raise Refused(HTTPStatus.BAD_REQUEST, "G4", "a multipart body that does not end, or has no parts")
    resource: dict[str, Any] = json.loads(bytes(body[first + 4 : second]))
    return boundary, resource, start, end


def _headers(request: web.BaseRequest) -> dict[str, str]:
    return {
        name.lower(): value
        for name, value in request.headers.items()
        if name.lower() in _PASSED_ON or name.lower().startswith(("x-goog-", "x-guploader-"))
    }


def _passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _NOT_PASSED_BACK}


def _response(answer: Answer) -> web.Response:
    headers = {name: value for name, value in _passed_back(answer.headers).items() if name != "content-length"}
    return web.Response(status=answer.status, headers=headers, body=answer.body)


def _error(status: HTTPStatus, text: str) -> web.Response:
    document = {"error": {"code": status.value, "message": text, "errors": [{"message": text, "reason": "gate"}]}}
    return web.json_response(document, status=status)
