"""`worker rejections …`: the operator's way to rejected messages, through the running service and its HTTP endpoints.

The service is the one writer, so everything that changes a rejection is done by it; this only asks.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final, NoReturn, Self
from urllib.parse import quote

import httpx
import msgspec

from publisher import values
from worker.errors import ServiceRefused, ServiceUnreachable
from worker.events.catalog import DEFAULT_EVENT
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE, MAX_DATA_BYTES
from worker.ingest.http.paths import COUNTS, ROOT, STATUS, STORE_HEADER
from worker.operations.identity import Identity
from worker.telemetry.status_format import Status

_REQUEST_SECONDS: Final = 60.0
"""Longest wait for one answer: the service holds a change until it is in the bucket."""
_PATIENCE_SECONDS: Final = 30.0
"""How long a service that is starting, full or stopping (503) is asked again."""
_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rejections; see `GET /rejections`. Times are RFC 3339."""

    reason: str | None = None
    since: str | None = None
    until: str | None = None
    resolved: bool = False

    def parameters(self) -> dict[str, str]:
        """The query string's."""
        given = {"reason": self.reason, "since": self.since, "until": self.until}
        return {name: value for name, value in given.items() if value} | ({"resolved": "true"} if self.resolved else {})


class Service:
    """A running worker, asked over HTTP: `async with Service(...) as service`.

    Args:
        url: Where it listens.
        identity: Who asks: one of OPERATORS; no token for a service that does not verify senders.
        store: The gs://BUCKET/PREFIX that is meant; a service of another store refuses. Empty: whichever it is.
        say: Told once which store the service serves.
        patience: Seconds for which a 503 is asked again.
    """

    def __init__(
        self,
        url: str,
        identity: Identity | None = None,
        *,
        store: str = "",
        say: Callable[[str], None] = lambda line: None,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self._say: Callable[[str], None] | None = say
        headers = {STORE_HEADER: store.rstrip("/")} if store else {}
        try:
            values.address(url)
            self._client = httpx.AsyncClient(base_url=url, headers=headers, auth=identity, timeout=_REQUEST_SECONDS)
        except (httpx.InvalidURL, values.Wrong) as error:
            raise ServiceUnreachable(
                f"{url} is no address ({error}); give the service's with --url or SERVICE_URL"
            ) from None
        self._url, self._patience = url, patience

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def each(self, wanted: Wanted) -> AsyncIterator[dict[str, Any]]:
        """The rejections wanted, oldest first, without their data.

        Raises:
            ServiceUnreachable: It does not answer, or not yet.
            ServiceRefused: It answered that this cannot be done.
        """
        parameters = wanted.parameters()
        while True:
            page = await self._ask("GET", ROOT, parameters)
            for row in page["rejections"]:
                yield row
            if page["after"] is None:
                return
            parameters["after"] = page["after"]

    async def page(self, wanted: Wanted, *, after: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Some of the rejections wanted, oldest first, without their data, and where the next page begins.

        Args:
            wanted: Which.
            after: What an earlier page gave; None for the first.
            limit: Most of them.

        Raises:
            WorkerError: As for `each`.
        """
        parameters = wanted.parameters() | {"limit": str(limit)} | ({"after": after} if after else {})
        found = await self._ask("GET", ROOT, parameters)
        return list(found["rejections"]), found["after"]

    async def whole(self, message_id: str) -> dict[str, Any]:
        """One rejection with its data; the errors are those of `each`."""
        found: dict[str, Any] = await self._ask("GET", _path(message_id))
        return found

    async def retry(self, message_id: str, corrected: bytes | None = None, *, overwrite: bool = False) -> str:
        """Have a message handled once more; its outcome. The errors are those of `each`.

        Args:
            message_id: The rejection's.
            corrected: What is handled in the place of the message's data; by default that is handled as it was published.
            overwrite: Whether the message of a conflict replaces what is stored.
        """
        parameters = {"overwrite": "true"} if overwrite else None
        answer = await self._ask("POST", f"{_path(message_id)}/retry", parameters, content=corrected)
        return str(answer["outcome"])

    async def discard(self, message_id: str) -> str:
        """Have a message given up. The errors are those of `each`."""
        answer = await self._ask("POST", f"{_path(message_id)}/discard")
        return str(answer["outcome"])

    async def erase(self, subject: str) -> dict[str, Any]:
        """Have a subject erased; what was removed. The errors are those of `each`."""
        removed: dict[str, Any] = await self._ask("POST", f"/users/{_escaped(subject)}/erase")
        return removed

    async def user(self, user_id: int) -> dict[str, Any] | None:
        """A user's row, or None. The errors are those of `each`."""
        try:
            row: dict[str, Any] = await self._ask("GET", f"/users/{user_id}")
        except ServiceRefused as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise
            return None
        return row

    async def confirmed(self) -> None:
        """Return once everything that the service has committed is in the bucket. The errors are those of `each`."""
        await self._ask("GET", COUNTS)

    async def status(self) -> Status:
        """What it does now; it answers in every state. The errors are those of `each`."""
        found = await self._ask("GET", STATUS)
        try:
            return msgspec.convert(found, Status)
        except msgspec.ValidationError as error:
            raise ServiceRefused(
                f"the service's status cannot be read ({error}); is it this version of the worker?"
            ) from None

    async def _ask(
        self, method: str, path: str, parameters: Mapping[str, str] | None = None, content: bytes | None = None
    ) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            try:
                answer = await self._client.request(method, path, params=parameters, content=content)
            except httpx.HTTPError as error:
                raise ServiceUnreachable(
                    f"{self._url} does not answer ({type(error).__name__}): is the service running there? "
                    "Give its address with --url or SERVICE_URL"
                ) from error
            if self._say is not None and (served := answer.headers.get(STORE_HEADER)):
                self._say(f"{self._url} serves {served}")
                self._say = None
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and loop.time() < until:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            return _content(answer)


def _path(message_id: str) -> str:
    # An id of dots alone would be taken for a step up the path.
    return f"{ROOT}/{_escaped(message_id)}"


def _escaped(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E")


def _content(answer: httpx.Response) -> Any:
    try:
        content = answer.json()
    except ValueError:
        content = {}
    if answer.is_success and isinstance(content, dict):
        return content
    said = content.get("error") if isinstance(content, dict) else None
    text = f"the service answered {answer.status_code}: {said or 'nothing that can be read; is this the worker?'}"
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        text += (
            "; set PUSH_AUDIENCE, and OPERATOR_ACCOUNT to an operator's service account that you may impersonate; "
            "or IDENTITY_TOKEN to a token from `gcloud auth print-identity-token --impersonate-service-account=OPERATOR "
            "--audiences=PUSH_AUDIENCE --include-email`"
        )
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise ServiceUnreachable(text + "; try again")
    raise ServiceRefused(text, status=answer.status_code)


def line(rejection: Mapping[str, Any]) -> bytes:
    """One rejection as a line that `python -m publisher load` reads once it is corrected.

    A message that is a JSON object keeps its fields. A user to create who states no `created_at` gets the publish time, so
    that the corrected message gives the row that the first one would have given. Anything else becomes an object without
    fields, to be filled in. What was wrong stands in `_rejection`, which the format ignores.
    """
    data = base64.b64decode(rejection["data"])
    about = {name: rejection[name] for name in ("message_id", "reason", "detail", "publish_time", "attributes", "stored")}
    creates_user = rejection["attributes"].get(EVENT_TYPE_ATTRIBUTE, DEFAULT_EVENT) == DEFAULT_EVENT
    fields = _fields(data)
    if fields is None:
        fields = {"user_id": None} if creates_user else {}
        about |= _readable(data)
    if creates_user and fields.get("created_at") is None:
        fields["created_at"] = int(datetime.fromisoformat(rejection["publish_time"]).timestamp())
    made = _encoded(fields | {"_rejection": about})
    if len(made) > MAX_DATA_BYTES and about["stored"] is not None:  # the other side of a conflict, which may be as large
        made = _encoded(fields | {"_rejection": about | {"stored": None}})
    return made + b"\n"


def _encoded(content: dict[str, Any]) -> bytes:
    try:  # as it is, and not three times as long: the reader's lines have a limit
        return json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can write
        return json.dumps(content).encode()


def _fields(data: bytes) -> dict[str, Any] | None:
    # Python's own reader and writer: msgspec does not write integers of more than 64 bits, which may be what was wrong.
    try:
        found = json.loads(data, parse_constant=_refuse)
        json.dumps(found, allow_nan=False)  # 1e999 is read as what cannot be written
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _readable(data: bytes) -> dict[str, str]:
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}


async def export(service: Service, wanted: Wanted | Sequence[str], file: BinaryIO, say: Callable[[int], None]) -> int:
    """Write the rejections wanted, or those of these message ids, to a file, a line each; how many.

    `say` hears the count as it grows.

    Raises:
        WorkerError: As for `Service.each`; the file then holds the lines so far.
    """
    count = 0
    ids = (row["message_id"] async for row in service.each(wanted)) if isinstance(wanted, Wanted) else _each(wanted)
    async for message_id in ids:
        file.write(line(await service.whole(message_id)))
        count += 1
        say(count)
    return count


async def _each(ids: Sequence[str]) -> AsyncIterator[str]:
    for message_id in ids:
        yield message_id
