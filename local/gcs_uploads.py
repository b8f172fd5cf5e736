"""Uploads to the fake Cloud Storage: in one piece, multipart, and resumable.

Sources: "Objects: insert", "Resumable uploads" and "Perform resumable uploads" of the JSON API's documentation. More
lenient than the service in one point: a chunk that isn't the last may have any size, not only multiples of 256 KiB.
Preconditions are decided when the object becomes whole.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from local.faults import FaultPlan
from local.gcs_errors import GcsError, invalid, no_such_upload
from local.gcs_http import MAX_JSON, Reply, Request, json_reply
from local.gcs_resources import Checks, Conditions, Fields, StoredObject, fields_of, object_resource
from local.gcs_store import BodyWriter, Store

_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-(?P<last>\d+)|\*)/(?P<total>\d+|\*)")


class RelatedParts:
    """Takes a `multipart/related` body apart as it arrives: JSON first, then the media."""

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str) -> None:
        found = re.search(r'boundary="?([^";]+)"?', content_type)
        if found is None:
            raise invalid("Missing boundary in the content type of a multipart upload.")
        self._chunks = chunks
        self._end = b"\r\n--" + found[1].encode("latin-1")
        self._buffer = bytearray()

    async def _more(self) -> None:
        try:
            self._buffer += await anext(self._chunks)
        except StopAsyncIteration:
            raise invalid("Malformed multipart body: it ends before its boundary.") from None

    async def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > MAX_JSON:
                raise invalid("Malformed multipart body: its first part is too large.")
            await self._more()
        before = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return before

    async def metadata(self) -> bytes:
        """The first part's content."""
        await self._until(self._end[2:])
        await self._until(b"\r\n\r\n")
        return await self._until(self._end)

    async def media_type(self) -> str | None:
        """The second part's content type."""
        head = (await self._until(b"\r\n\r\n")).decode("latin-1")
        found = re.search(r"(?im)^content-type:\s*(.+?)\s*$", head)
        return found[1] if found else None

    async def media(self) -> AsyncIterator[bytes]:
        """The second part's content."""
        while (at := self._buffer.find(self._end)) < 0:
            # The boundary may be cut in two by the end of what has arrived.
            safe = len(self._buffer) - len(self._end) + 1
            if safe > 0:
                yield bytes(self._buffer[:safe])
                del self._buffer[:safe]
            await self._more()
        yield bytes(self._buffer[:at])


class Session(msgspec.Struct):
    """A resumable upload; `finished` is the object it became."""

    id: str
    bucket: str
    name: str
    fields: Fields
    checks: Checks
    conditions: Conditions
    body: str
    finished: StoredObject | None = None


class Uploads:
    """Answers everything below `/upload/`.

    Args:
        store: Where objects go.
        faults: What may happen to a request.
    """

    def __init__(self, store: Store, faults: FaultPlan) -> None:
        self._store = store
        self._faults = faults
        # Bodies of open sessions with their running checksums. Only the event loop touches it.
        self._open: dict[str, BodyWriter] = {}

    async def answer(self, request: Request, bucket: str) -> Reply:
        """Answers one request on `/upload/storage/v1/b/BUCKET/o`.

        Raises:
            GcsError: It is refused.
        """
        if "upload_id" in request.query:
            if request.method == "DELETE":
                return await self._cancel(request)
            return await self._continue(request)
        kinds = {"media": self._media, "multipart": self._multipart, "resumable": self._start}
        kind = request.query.get("uploadType") or request.headers.get("x-goog-upload-protocol", "")
        if request.method != "POST" or kind not in kinds:
            raise invalid(f"No upload of the type {kind!r} by {request.method}")
        return await kinds[kind](request, bucket)

    async def _media(self, request: Request, bucket: str) -> Reply:
        resource: dict[str, Any] = {"contentType": request.headers.get("content-type")}
        resource["md5Hash"] = request.headers.get("content-md5")
        if "contentEncoding" in request.query:
            resource["contentEncoding"] = request.query["contentEncoding"]
        return await self._insert(request, bucket, resource, request.chunks())

    async def _multipart(self, request: Request, bucket: str) -> Reply:
        parts = RelatedParts(request.chunks(), request.headers.get("content-type", ""))
        resource = _resource(await parts.metadata())
        media_type = await parts.media_type()
        resource.setdefault("contentType", media_type)
        return await self._insert(request, bucket, resource, parts.media())

    async def _insert(self, request: Request, bucket: str, resource: dict[str, Any], media: AsyncIterator[bytes]) -> Reply:
        name = _name(request, resource)
        fields, checks, conditions = _fields(resource), _checks(request, resource), Conditions.of(request.query)
        body = self._store.new_body()
        try:
            async for chunk in self._faults.pass_through(request, name, 0, media):
                body.write(chunk)
            await request.drain()
            await self._faults.meet(request, "insert", name)
            await self._faults.meet_whole(request, name)
            body.verify(checks)
        except BaseException:
            body.discard()
            raise
        stored = self._store.commit(bucket, name, body, fields, conditions)
        return json_reply(object_resource(stored, request.base_url), headers=[("etag", stored.etag)])

    # Resumable

    async def _start(self, request: Request, bucket: str) -> Reply:
        resource = _resource(await request.read())
        resource.setdefault("contentType", request.headers.get("x-upload-content-type"))
        name = _name(request, resource)
        session = Session(
            id=secrets.token_urlsafe(24),
            bucket=bucket,
            name=name,
            fields=_fields(resource),
            checks=_checks(request, resource),
            conditions=Conditions.of(request.query),
            body="",
        )
        await self._faults.meet(request, "insert", name)
        self._store.bucket(bucket)
        body = self._store.new_body()
        session.body = body.path.name
        self._open[session.id] = body
        self._save(session)
        location = f"{request.base_url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session.id}"
        return Reply(200, headers=[("location", location), ("x-guploader-uploadid", session.id)])

    async def _continue(self, request: Request) -> Reply:
        await self._faults.meet(request, "insert", self._session(request).name)
        session = self._session(request)
        if session.finished is not None:
            await request.drain()
            return json_reply(object_resource(session.finished, request.base_url))
        body = self._open.get(session.id)
        if body is None:
            body = self._open[session.id] = self._store.body(session.body)
        total = await self._receive(request, session.name, body)
        # A client that lost patience may have sent the same chunk again, and that request may have finished first.
        session = self._session(request)
        if session.finished is not None:
            return json_reply(object_resource(session.finished, request.base_url))
        if total is None or body.size < total:
            return _incomplete(request, body.size)
        if body.size > total:
            raise invalid(f"The upload has {body.size} bytes already, more than its total of {total}.")
        await self._faults.meet_whole(request, session.name)
        session = self._session(request)
        if session.finished is not None:
            return json_reply(object_resource(session.finished, request.base_url))
        return self._finish(request, session, body)

    async def _receive(self, request: Request, name: str, body: BodyWriter) -> int | None:
        """Appends what is new in the request's chunk; returns the total if the client knows it."""
        text = request.headers.get("content-range")
        if text is None:
            first, last, total = 0, None, None
        else:
            found = _RANGE.fullmatch(text.strip())
            if found is None:
                raise invalid(f"Failed to parse Content-Range header: {text!r}")
            total = None if found["total"] == "*" else int(found["total"])
            if found["first"] is None:
                await request.drain()
                return total
            first, last = int(found["first"]), int(found["last"])
        if first > body.size:
            await request.drain()
            message = (
                f"Invalid request. According to the Content-Range header, the upload offset is {first} byte(s), "
                f"which exceeds already uploaded size of {body.size} byte(s)."
            )
            raise GcsError(503, "backendError", message)
        length = await _append(self._faults.pass_through(request, name, first, request.chunks()), body, first)
        if last is not None and length != last - first + 1:
            raise invalid(f"Content-Range {text!r} doesn't fit a body of {length} bytes.")
        return first + length if text is None else total

    def _finish(self, request: Request, session: Session, body: BodyWriter) -> Reply:
        checks = session.checks.with_header(request.headers.get("x-goog-hash", ""))
        del self._open[session.id]
        try:
            # One transaction: a session that doesn't know it is finished would commit its body a second time.
            with self._store.transaction():
                body.verify(checks)
                stored = self._store.commit(session.bucket, session.name, body, session.fields, session.conditions)
                session.finished = stored
                self._save(session)
        except GcsError:
            self._forget(session, body)
            raise
        return json_reply(object_resource(stored, request.base_url), headers=[("etag", stored.etag)])

    async def _cancel(self, request: Request) -> Reply:
        session = self._session(request)
        if session.finished is None:
            body = self._open.pop(session.id, None) or self._store.body(session.body)
            self._forget(session, body)
        return Reply(499)

    def _session(self, request: Request) -> Session:
        row = self._store.index.execute("SELECT session FROM uploads WHERE id = ?", (request.query["upload_id"],)).fetchone()
        if row is None:
            raise no_such_upload()
        return msgspec.json.decode(row[0], type=Session)

    def _save(self, session: Session) -> None:
        # A finished session's body is the object's: it goes when the object goes.
        body = "" if session.finished else session.body
        self._store.index.execute(
            "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (session.id, body, msgspec.json.encode(session))
        )

    def _forget(self, session: Session, body: BodyWriter) -> None:
        self._store.index.execute("DELETE FROM uploads WHERE id = ?", (session.id,))
        body.discard()


async def _append(chunks: AsyncIterator[bytes], body: BodyWriter, first: int) -> int:
    """Writes what a request has beyond the bytes that are persisted already; returns the request's length.

    Two requests may be sending the same bytes at the same time, so what is persisted is looked at for every piece; the
    other one may have ended the session, too.
    """
    length = 0
    try:
        async for chunk in chunks:
            new = chunk[max(body.size - first - length, 0) :]
            length += len(chunk)
            if new and not body.closed:
                body.write(new)
    finally:
        # What arrived stays, as in the service: a client that broke off asks how much and goes on from there.
        body.flush()
    return length


def _incomplete(request: Request, size: int) -> Reply:
    """308 with what is persisted; Go's client asks for 200 and a header instead, as proxies redirect on 308."""
    headers = [("range", f"bytes=0-{size - 1}")] if size else []
    if request.headers.get("x-guploader-no-308") == "yes":
        return Reply(200, headers=[*headers, ("x-http-status-code-override", "308")])
    return Reply(308, headers=headers)


def _resource(document: bytes) -> dict[str, Any]:
    if not document.strip():
        return {}
    try:
        return msgspec.json.decode(document, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise invalid(f"Parse Error: {error}") from None


def _name(request: Request, resource: dict[str, Any]) -> str:
    name = request.query.get("name") or resource.get("name")
    if not isinstance(name, str):
        raise GcsError(400, "required", "Required")
    return name


def _fields(resource: dict[str, Any]) -> Fields:
    fields = fields_of(resource)
    if fields.content_type is None:
        return msgspec.structs.replace(fields, content_type="application/octet-stream")
    return fields


def _checks(request: Request, resource: dict[str, Any]) -> Checks:
    checks = Checks(resource.get("md5Hash") or None, resource.get("crc32c") or None)
    return checks.with_header(request.headers.get("x-goog-hash", ""))
