"""What the operator's commands send and write: ids in paths, and rejections as lines that can be mended and loaded."""

import asyncio
import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from publisher.message import Message
from publisher.records import JsonLines, Lines
from tests.entries import CATALOG
from worker.cli.rejections import _text
from worker.errors import ServiceUnreachable
from worker.events.declaration import MAX_DATA_BYTES
from worker.events.users import USER_CREATED, UserCreated
from worker.operations.service_client import Service, line


def kept(data: bytes, stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A rejection as the service tells it."""
    return {
        "message_id": "m1",
        "reason": "wrong_type",
        "detail": "d",
        "publish_time": "2026-01-01T00:00:00.000Z",
        "attributes": {"a": "b"},
        "stored": stored,
        "data": base64.b64encode(data).decode(),
    }


def loaded(written: bytes) -> object:
    """What the publisher makes of a line."""
    (record,) = JsonLines(Lines(io.BytesIO(written)), USER_CREATED, CATALOG)
    return record.content.content if isinstance(record.content, Message) else record.content


@pytest.mark.parametrize("message_id", [".", "..", "...", "a/b", "a/../b", "%2E", "?#&", "a b", "é"])
def test_any_id_stands_in_a_path(message_id: str) -> None:
    """Dots alone are no step up to another path."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)  # as a server decodes it
        return httpx.Response(200, json={"outcome": "created"})

    async def body() -> None:
        async with Service("http://worker") as service:
            service._client = httpx.AsyncClient(base_url="http://worker", transport=httpx.MockTransport(answer))
            assert await service.retry(message_id) == "created"

    asyncio.run(body())
    assert asked == [f"/rejections/{message_id}/retry"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not JSON",
        b"\xff\xfe\x00",
        b"[1]",
        b"null",
        b'{"user_id": 1e999}',
        b'{"user_id": NaN}',
        b'{"user_id": ' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b'{"user_id": "x", "email_address": "\\ud800"}',
        b'{"user_id": "x", "_rejection": 1}',
        '{"user_id": "x"}'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_each_line_is_json_and_can_be_mended(data: bytes) -> None:
    """Whatever the bytes were; those that no field can hold are kept as they are, in text or in base64."""
    written = line(kept(data))
    assert written.count(b"\n") == 1
    found = json.loads(written, parse_constant=pytest.fail)
    about = found["_rejection"]
    if "data" in about:
        assert about["data"].encode() == data
    elif "data_base64" in about:
        assert base64.b64decode(about["data_base64"]) == data
    found |= {"user_id": 5, "email_address": None}
    assert loaded(json.dumps(found).encode()) == UserCreated(user_id=5, created_at=1767225600)


def test_a_line_is_no_longer_than_it_must_be() -> None:
    """A large message that can be mended is within the publisher's limit, whatever its script and whatever it met."""
    settings = "é" * (MAX_DATA_BYTES // 3)
    data = json.dumps({"user_id": "5", "settings": settings}, ensure_ascii=False).encode()
    for stored in (None, {"settings": settings}):
        mended = line(kept(data, stored)).replace(b'"user_id": "5"', b'"user_id": 5')
        assert loaded(mended) == UserCreated(user_id=5, settings=settings, created_at=1767225600)
    assert json.loads(line(kept(b"{}", {"settings": "s"})))["_rejection"]["stored"] == {"settings": "s"}


@pytest.mark.parametrize(("data", "shown"), [("nöt JSON".encode(), "nöt JSON"), (b"\xff", "/w== (base64: it is no text)")])
def test_a_person_is_shown_text(data: bytes, shown: str) -> None:
    """Base64 only where it is none."""
    assert _text(base64.b64encode(data).decode()) == shown


def test_what_is_no_address_is_said() -> None:
    """With where to give one."""
    with pytest.raises(ServiceUnreachable, match=r"is no address .*--url or SERVICE_URL"):
        Service("http://host:port")
