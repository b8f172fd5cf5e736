"""A faithful fake of Google Cloud Storage: the routes.

It speaks what Google's Python and Go clients use of the JSON API, and the XML API's object reads, which Go's client
takes by default. What it leaves out (copies, compose, versions, ACLs, batches) answers 501 and says so. Bodies in gzip
are returned as they were stored, without transcoding.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

import msgspec

from local.faults import FaultPlan
from local.gcs_errors import (
    ClientGoneError,
    GcsError,
    Headers,
    SeveredError,
    bad_range,
    invalid,
    unsupported,
)
from local.gcs_http import (
    Receive,
    Reply,
    Request,
    Scope,
    Send,
    json_error,
    json_reply,
    text_error,
    xml_error,
)
from local.gcs_resources import (
    BUCKET_METAGENERATION,
    Conditions,
    Fields,
    StoredObject,
    bucket_resource,
    download_headers,
    integer,
    object_resource,
)
from local.gcs_store import Listing, Store
from local.gcs_uploads import Uploads

# Where the server leaves the function that closes the request's connection at once (see local/gcs_server.py).
ABORT = "solowriter.abort"

MAX_PAGE = 1000
_BYTE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Gcs:
    """The ASGI application.

    Args:
        store: What it serves.
        faults: What may happen to its requests.
    """

    def __init__(self, store: Store, faults: FaultPlan) -> None:
        self._store = store
        self._faults = faults
        self._uploads = Uploads(store, faults)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or closes its connection if a fault rule says so."""
        request = Request(scope, receive)
        try:
            reply = await self._answer(request)
        except ClientGoneError:
            return
        except SeveredError:
            request.answer_dropped, reply = True, Reply(500)
        try:
            if request.answer_held is not None:
                request.answer_dropped = await request.gone_or(request.answer_held)
                if not request.answer_dropped:
                    return
            if request.answer_dropped:
                scope["extensions"][ABORT]["close"]()
                await request.gone()
            else:
                await reply.send(send)
        finally:
            reply.close()

    async def _answer(self, request: Request) -> Reply:
        render = _error_style(request)
        try:
            try:
                return await self._route(request)
            except GcsError as error:
                await request.drain()
                return render(error)
        except UnicodeError:
            return render(invalid("the request is not valid UTF-8"))

    async def _route(self, request: Request) -> Reply:
        segments = request.segments
        if not request.headers.keys().isdisjoint({"if-match", "if-none-match"}):
            raise unsupported("conditions on ETags")
        match segments:
            case ["_faults" | "_stats", *_]:
                return await self._faults.administer(request)
            case ["upload", "storage", "v1", "b", bucket, "o"]:
                return await self._uploads.answer(request, bucket)
            case ["storage", "v1", "b", *rest] if len(rest) < 2:
                return await self._bucket(request, *rest)
            case ["storage", "v1", "b", bucket, "o"] if request.method == "GET":
                return await self._list(request, bucket)
            case ["storage", "v1", "b", bucket, "o", name]:
                return await self._object(request, bucket, name)
            case ["download", "storage", "v1", "b", bucket, "o", name] if request.method == "GET":
                return await self._download(request, bucket, name, Conditions.of(request.query))
            case ["storage" | "upload" | "download" | "batch", *_] | [_]:
                raise unsupported(f"{request.method} on /{'/'.join(segments)}")
            case [bucket, *names] if request.method in {"GET", "HEAD"}:
                return await self._download(request, bucket, "/".join(names), Conditions.of_headers(request.headers))
        raise unsupported(f"{request.method} of the XML API")

    async def _bucket(self, request: Request, name: str = "") -> Reply:
        await self._faults.meet(request, "bucket", name)
        base_url = request.base_url
        if name:
            created = self._store.bucket(name)
            Conditions.of(request.query).check(0, BUCKET_METAGENERATION)
        match request.method, name:
            case "GET", "":
                found = self._store.buckets(request.query.get("prefix", ""))
                items = [bucket_resource(*bucket, base_url) for bucket in found]
                return json_reply({"kind": "storage#buckets", "items": items})
            case "POST", "":
                resource = _json(await request.read())
                created = self._store.create_bucket(str(resource.get("name", "")))
                return json_reply(bucket_resource(*created, base_url))
            case "GET", _:
                return json_reply(bucket_resource(*created, base_url))
            case "DELETE", _ if name:
                self._store.delete_bucket(name)
                return Reply(204)
        raise unsupported(f"{request.method} on buckets")

    async def _list(self, request: Request, bucket: str) -> Reply:
        query = request.query
        for option in ("matchGlob", "softDeleted", "includeTrailingDelimiter"):
            if query.get(option, "false") not in {"", "false"}:
                raise unsupported(f"the listing option {option}")
        limit = integer(query, "maxResults")
        listing = Listing(
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            start=query.get("startOffset", ""),
            end=query.get("endOffset", ""),
            page_start=_from_token(query.get("pageToken", "")),
            limit=min(limit or MAX_PAGE, MAX_PAGE),
        )
        await self._faults.meet(request, "list", listing.prefix)
        page = self._store.list(bucket, listing)
        document: dict[str, object] = {"kind": "storage#objects"}
        if page.next_start is not None:
            document["nextPageToken"] = base64.urlsafe_b64encode(page.next_start.encode()).decode()
        if page.prefixes:
            document["prefixes"] = page.prefixes
        if page.objects:
            document["items"] = [object_resource(stored, request.base_url) for stored in page.objects]
        return json_reply(document)

    async def _object(self, request: Request, bucket: str, name: str) -> Reply:
        conditions = Conditions.of(request.query)
        generation = integer(request.query, "generation")
        match request.method:
            case "GET" if request.query.get("alt") == "media":
                return await self._download(request, bucket, name, conditions)
            case "GET":
                await self._faults.meet(request, "get", name)
                stored = self._store.get(bucket, name, generation, conditions)
            case "DELETE":
                await self._faults.meet(request, "delete", name)
                self._store.delete(bucket, name, generation, conditions)
                return Reply(204)
            case "PATCH" | "PUT":
                edit = _edit(request.method, await request.read())
                await self._faults.meet(request, "patch", name)
                stored = self._store.change(bucket, name, generation, conditions, edit)
            case method:
                raise unsupported(f"{method} on an object")
        return json_reply(object_resource(stored, request.base_url), headers=[("etag", stored.etag)])

    async def _download(self, request: Request, bucket: str, name: str, conditions: Conditions) -> Reply:
        await self._faults.meet(request, "download", name)
        stored = self._store.get(bucket, name, integer(request.query, "generation"), conditions)
        status, offset, length, headers = _slice(stored, request.headers.get("range", ""))
        if request.method == "HEAD":
            return Reply(status, headers=headers, length=length)
        file = self._store.open(stored)
        return Reply(status, headers=headers, file=file, offset=offset, length=length)


def _error_style(request: Request) -> Callable[[GcsError], Reply]:
    """Each API has its own form for errors."""
    if request.raw_segments[0] == "download" or request.query.get("alt") == "media":
        return text_error
    if request.raw_segments[0] in {"storage", "upload", "batch", "_faults", "_stats"}:
        return json_error
    return xml_error


def _slice(stored: StoredObject, text: str) -> tuple[int, int, int, Headers]:
    """Status, offset, length and headers of a download; as the service does, ignores a range it can't read."""
    size = stored.size
    headers = download_headers(stored)
    found = _BYTE_RANGE.fullmatch(text.strip())
    if found is None or found[0] == "bytes=-":
        return 200, 0, size, headers
    if found[1]:
        first = int(found[1])
        last = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < first:
            return 200, 0, size, headers
    else:
        first, last = max(size - int(found[2]), 0), size - 1
    if first >= size:
        raise bad_range(size)
    headers.append(("content-range", f"bytes {first}-{last}/{size}"))
    return 206, first, last - first + 1, headers


def _edit(method: str, body: bytes) -> Callable[[Fields], Fields]:
    changes = _json(body)
    if method == "PATCH":
        return lambda fields: fields.patched(changes)
    return lambda _: Fields().patched(changes)


def _json(body: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, object])
    except msgspec.DecodeError as error:
        raise invalid(f"Parse Error: {error}") from None


def _from_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise invalid(f"Invalid page token: {token!r}") from None
