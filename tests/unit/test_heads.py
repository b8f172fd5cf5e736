"""What a client sends before there is a request is bounded, over real sockets."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from worker.heads import HEAD_MAX_BYTES, Protocol

START = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer 204."""
    while (event := await receive()).get("more_body", False):
        pass
    if event["type"] == "http.request":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


def sent(pieces: Iterable[bytes], *, answers: int = 1) -> tuple[bytes, int]:
    """What comes back, up to that many answers or the end, and how many bytes were sent till then."""

    async def body() -> tuple[bytes, int]:
        config = uvicorn.Config(application, http=Protocol, ws="none", lifespan="off", log_config=None)
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        total, said = 0, b""
        reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        async with asyncio.timeout(20):
            for piece in pieces:
                if answers == 1 and reading.done():
                    break
                writer.write(piece)
                total += len(piece)
                try:
                    await writer.drain()
                except ConnectionError:
                    break
            for _ in range(answers):
                said += await reading
                reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        reading.cancel()
        writer.close()
        server.close()
        return said, total

    return asyncio.run(body())


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (START, b"x-a: " + b"y" * 1000 + b"\r\n"),
        (START + b"x-a: ", b"y" * 1000),
        (b"POST /", b"y" * 1000),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x-a: " + b"y" * 1000 + b"\r\n"),
        (CHUNKED + b"2;", b"y" * 1000),
    ],
    ids=["headers", "one header", "the request's line", "headers after the body", "an extension of a piece"],
)
def test_what_does_not_end_is_cut_off(start: bytes, piece: bytes) -> None:
    """INV-7: one sender could fill the memory with it, and would never count as held."""
    said, total = sent(itertools.chain([start], itertools.repeat(piece, 100_000)))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert total < 50_000_000  # what the kernel's buffers hold, and no end of it


def test_large_heads_and_bodies_pass() -> None:
    """Attributes in headers, as many as Pub/Sub takes, and a body of any size, whose bound is elsewhere, again and again."""
    attributes = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1280) for number in range(100))
    size = 10 * HEAD_MAX_BYTES
    request = START + attributes + b"content-length: %d\r\n\r\n" % size + b"x" * size
    pieces = CHUNKED + b"".join(b"1000\r\n%s\r\n" % (b"x" * 4096) for _ in range(200)) + b"0\r\nx-a: y\r\n\r\n"
    said, _ = sent([request, pieces] * 3, answers=6)
    assert said.count(b"HTTP/1.1 204 ") == 6
