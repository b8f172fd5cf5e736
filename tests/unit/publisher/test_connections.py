"""What a client sends is the body that is handled, and it has an end: over real sockets."""

import asyncio
import itertools
import json
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import uvicorn
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from publisher import connections, listening
from publisher.connections import FIELDS_MAX, HEAD_MAX_BYTES, Bounds, Connections
from tests.entries import until

START = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"
BOUNDS = Bounds(connections=50, body_max_bytes=4_000_000, body_seconds=20)
T = TypeVar("T")


@dataclass
class Site:
    """An application that notes each request, and answers 204 once `gate` is open."""

    bounds: Bounds = BOUNDS
    seen: list[tuple[str, str, bytes, dict[bytes, bytes]]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.state = ServerState()
        self.connections = Connections(self.bounds, lambda status, reason: self.refused.append((status, reason)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, then look at the headers."""
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event["body"]
            if not event["more_body"]:
                break
        self.seen.append((scope["method"], scope["path"], body, dict(scope["headers"])))
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def listen(self) -> asyncio.Server:
        """Serve on a free port."""
        config = uvicorn.Config(self, ws="none", lifespan="off", log_config=None)

        def protocol() -> asyncio.Protocol:
            return self.connections(config=config, server_state=self.state, app_state={})

        return await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)


def on_site(visit: Callable[[Site, tuple[str, int]], Awaitable[T]], bounds: Bounds = BOUNDS) -> T:
    """Run `visit` with a site and its address, on the event loop that serves."""

    async def body() -> T:
        site = Site(bounds)
        server = await site.listen()
        try:
            async with asyncio.timeout(60):
                return await visit(site, server.sockets[0].getsockname())
        finally:
            server.close()

    return uvloop.run(body())


async def exchange(address: tuple[str, int], pieces: Iterable[bytes], *, half_close: bool = False) -> bytes:
    """Send the pieces one after the other; what comes back until the server closes, or until it is silent for a while."""
    reader, writer = await asyncio.open_connection(*address)
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    if half_close:
        writer.write_eof()
    answer = b""
    try:
        while data := await asyncio.wait_for(reader.read(65536), 20 if half_close else 0.3):
            answer += data
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return answer


def handled(pieces: Iterable[bytes], *, half_close: bool = True) -> tuple[list[tuple[str, str, bytes]], bytes]:
    """The requests that the application saw, and all that came back."""

    async def visit(site: Site, address: tuple[str, int]) -> tuple[list[tuple[str, str, bytes]], bytes]:
        answer = await exchange(address, pieces, half_close=half_close)
        return [seen[:3] for seen in site.seen], answer

    return on_site(visit)


def sent(pieces: Iterable[bytes], *, answers: int = 1) -> tuple[bytes, int]:
    """What comes back, up to that many answers or the end, and how many bytes were sent till then."""

    async def visit(site: Site, address: tuple[str, int]) -> tuple[bytes, int]:
        reader, writer = await asyncio.open_connection(*address)
        total, said = 0, b""
        reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
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
        return said, total

    return on_site(visit)


BODY = b'{"user_id": 6}'
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n",
    "tls": b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
    "two offers": b"Connection: keep-alive, upgrade\r\nUPGRADE: h2c\r\nUpgrade: foo, bar/2\r\n",
    "empty": b"Connection: Upgrade\r\nUpgrade:\r\n",
    "expect": b"Expect: 100-continue\r\n",
    "expect and offer": b"Expect: 100-continue\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
    "te": b"TE: trailers\r\nConnection: TE\r\n",
    "close": b"Connection: close\r\n",
}


@pytest.mark.parametrize("apart", [False, True], ids=["one segment", "body apart"])
@pytest.mark.parametrize("offer", OFFERS)
def test_what_a_client_offers_leaves_its_body_alone(offer: str, apart: bool) -> None:
    """The body is handled once and whole, whatever stands beside it, also when it is a request in itself."""
    for body in (BODY, START + b"content-length: 2\r\n\r\n{}"):
        head = START + OFFERS[offer] + b"Content-Length: %d\r\n\r\n" % len(body)
        requests, answer = handled([head, body] if apart else [head + body])
        assert requests == [("POST", "/", body)]
        assert answer.count(b"HTTP/1.1 204 ") == 1


def test_fields_behind_a_body_are_no_headers() -> None:
    """Trailers cannot name a message's id, or a sender."""

    async def visit(site: Site, address: tuple[str, int]) -> dict[bytes, bytes]:
        trailers = b"2\r\n{}\r\n0\r\nx-goog-pubsub-message-id: 7\r\nauthorization: x\r\n\r\n"
        await exchange(address, [CHUNKED + trailers], half_close=True)
        return site.seen[0][3]

    assert on_site(visit) == {b"host": b"x", b"transfer-encoding": b"chunked"}


def test_a_client_that_closes_its_side_gets_its_answer() -> None:
    """`nc -N`, and many a shell script: the request is whole, so it is answered, and then the connection ends."""

    async def visit(site: Site, address: tuple[str, int]) -> bytes:
        site.gate.clear()
        asking = asyncio.create_task(
            exchange(
                address, [START + b"content-length: 2\r\n\r\n{}" + START + b"content-length: 2\r\n\r\n[]"], half_close=True
            )
        )
        await until(lambda: site.seen)
        await asyncio.sleep(0.05)
        assert not asking.done()
        site.gate.set()
        answer = await asking
        assert [seen[2] for seen in site.seen] == [b"{}", b"[]"]
        await until(lambda: site.connections.open == 0)
        return answer

    assert on_site(visit).count(b"HTTP/1.1 204 ") == 2


def test_a_client_that_closes_in_the_middle_is_not_waited_for() -> None:
    """Half a body is no request."""
    assert handled([START + b"content-length: 5\r\n\r\n{}"]) == ([], b"")
    assert handled([START + b"content-le"]) == ([], b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (START + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 501),
        (START + b"transfer-encoding: identity\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 501),
        (START + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (START + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400),
        (START + b"content-length: +2\r\n\r\n{}", 400),
        (START + b"content-length : 2\r\n\r\n{}", 400),
        (START + b"x: y\r\n content-length: 2\r\n\r\n{}", 400),
        (CHUNKED + b"2\n{}\n0\n\n", 400),
        (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", 400),
        (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n", 400),
        (b"CONNECT / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    ],
)
def test_a_body_that_can_be_read_in_two_ways_is_refused(request_: bytes, status: int) -> None:
    """No guess, one answer with its reason, and no effect."""

    async def visit(site: Site, address: tuple[str, int]) -> bytes:
        answer = await exchange(address, [request_])
        assert site.seen == []
        assert [refused[0] for refused in site.refused] == [status]
        return answer

    answer = on_site(visit)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"connection: close") == 1
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "reason"}


def test_nothing_is_handled_behind_the_last_request() -> None:
    """After `connection: close` more bytes are no request."""
    requests, answer = handled(
        [START + b"connection: close\r\ncontent-length: 2\r\n\r\n{}" + START + b"content-length: 0\r\n\r\n"]
    )
    assert requests == [("POST", "/", b"{}")]
    assert answer.count(b"HTTP/1.1 204 ") == 1


TEXTS = st.binary(max_size=60) | st.sampled_from([BODY, b"\r\n\r\n", b"0\r\n\r\n", START + b"\r\n", CHUNKED + b"0\r\n\r\n"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request with its body in one of two framings, with offers and trailers; and the body."""
    body = draw(TEXTS)
    offer = OFFERS[draw(st.sampled_from([name for name in OFFERS if name != "close"]))] if draw(st.booleans()) else b""
    if draw(st.booleans()):
        return START + offer + b"content-length: %d\r\n\r\n" % len(body) + body, body
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    parts = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)]) if a < b]
    extension = draw(st.sampled_from([b"", b";a=b", b';a="b"']))
    pieces = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    trailers = draw(st.sampled_from([b"", b"x-a: b\r\n", b"authorization: x\r\nupgrade: h2c\r\n"]))
    return START + offer + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n" + trailers + b"\r\n", body


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(requests(), min_size=1, max_size=4), st.data())
def test_however_it_is_cut_the_effect_is_that_of_a_plain_request(
    sequence: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """F1: any sequence of requests, in any segments, is handled as each of them would be alone."""
    stream = b"".join(request for request, _ in sequence)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    if data.draw(st.booleans()):
        pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)]) if a < b]
    else:
        pieces = [stream[at : at + 1] for at in range(len(stream))]
    found, answer = handled(pieces)
    assert found == [("POST", "/", body) for _, body in sequence]
    assert answer.count(b"HTTP/1.1 204 ") == len(sequence)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (START, b"x-a: " + b"y" * 1000 + b"\r\n"),
        (START, b"a:\r\n"),
        (START + b"x-a: ", b"y" * 1000),
        (b"POST /", b"y" * 1000),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x-a: " + b"y" * 1000 + b"\r\n"),
        (CHUNKED + b"2;", b"y" * 1000),
    ],
    ids=[
        "headers",
        "small headers",
        "one header",
        "the request's line",
        "headers after the body",
        "an extension of a piece",
    ],
)
def test_what_does_not_end_is_cut_off(start: bytes, piece: bytes) -> None:
    """INV-7: one sender could fill the memory with it, and would never count as held."""
    said, total = sent(itertools.chain([start], itertools.repeat(piece, 100_000)))
    assert said.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert total < 50_000_000  # what the kernel's buffers hold, and no end of it


def test_large_heads_and_bodies_pass() -> None:
    """Attributes in headers, as many as Pub/Sub takes, and a body of any size, whose bound is elsewhere, again and again."""
    attributes = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1280) for number in range(100))
    size = 10 * HEAD_MAX_BYTES
    request = START + attributes + b"content-length: %d\r\n\r\n" % size + b"x" * size
    pieces = CHUNKED + b"".join(b"1000\r\n%s\r\n" % (b"x" * 4096) for _ in range(200)) + b"0\r\nx-a: y\r\n\r\n"
    said, _ = sent([request, pieces] * 3, answers=6)
    assert said.count(b"HTTP/1.1 204 ") == 6


def test_a_head_has_so_many_fields_and_no_more() -> None:
    """INV-7: each field costs some hundred bytes, whatever its length."""
    fields = b"".join(b"x%d:\r\n" % number for number in range(FIELDS_MAX - 1))
    assert handled([START + fields + b"\r\n"])[1].startswith(b"HTTP/1.1 204 ")
    assert handled([START + fields + b"a:\r\nb:\r\n\r\n"])[1].startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("begun", "body"),
    [
        (b"POST / HT", False),
        (b"\r\n\r\n", False),
        (START + b"content-length: 9\r\n\r\n{}", True),
        (CHUNKED + b"2\r\n{", True),
    ],
)
def test_what_is_begun_ends_in_time(begun: bytes, body: bool) -> None:
    """INV-7: a silent sender is answered 408 after seconds, and its bytes are given back."""

    async def visit(site: Site, address: tuple[str, int]) -> tuple[bytes, float]:
        since = time.monotonic()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(begun)
        answer = await reader.read()
        writer.close()
        assert site.refused == [(408, "too_slow")]
        return answer, time.monotonic() - since

    answer, seconds = on_site(visit, Bounds(50, 1000, body_seconds=0.6, head_seconds=0.2))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.15 < seconds < 5
    assert (seconds > 0.5) is body


def test_a_slow_body_that_moves_is_still_bounded() -> None:
    """Each byte in time, and the whole of it not."""

    async def visit(site: Site, address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(START + b"content-length: 1000\r\n\r\n")
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        writer.close()
        return await reading

    assert on_site(visit, Bounds(50, 1000, body_seconds=0.4)).startswith(b"HTTP/1.1 408 ")


def test_what_is_sent_behind_a_held_request_waits_unread() -> None:
    """INV-7: 12,000 requests behind one that is held are bytes, and few of them; each is handled in its turn."""
    count = 12_000

    async def visit(site: Site, address: tuple[str, int]) -> int:
        site.gate.clear()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(START + b"content-length: 2\r\n\r\n{}" + b"GET / HTTP/1.1\r\n\r\n" * count)
        await until(lambda: site.seen)
        await asyncio.sleep(0.1)
        assert len(site.seen) == 1
        assert len(site.state.tasks) == 1
        assert site.connections.kept <= HEAD_MAX_BYTES
        site.gate.set()
        for _ in range(count + 1):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        writer.close()
        await until(lambda: site.connections.open == 0)
        assert site.connections.kept == 0
        return len(site.seen)

    assert on_site(visit) == count + 1


def test_unread_bytes_of_all_connections_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-7: the one that would be over is told to come again, and the others are served."""
    monkeypatch.setattr(connections, "KEPT_MAX_BYTES", 500_000)

    async def visit(site: Site, address: tuple[str, int]) -> None:
        site.gate.clear()
        opened = [await asyncio.open_connection(*address) for _ in range(8)]
        for _, writer in opened:
            writer.write(START + b"x-a: " + b"y" * 100_000)
        await until(lambda: len(site.refused) >= 3)
        assert set(site.refused) == {(503, "connections")}
        assert site.connections.kept <= 500_000
        for _, writer in opened:
            writer.close()
        await until(lambda: site.connections.open == 0)
        assert site.connections.kept == 0
        site.gate.set()
        assert (await exchange(address, [START + b"content-length: 2\r\n\r\n{}"], half_close=True)).startswith(
            b"HTTP/1.1 204 "
        )

    on_site(visit)


def test_connections_over_the_limit_are_told_to_come_again() -> None:
    """INV-7: 503 and closed; once the others have been idle for a while, the oldest of them makes room."""

    async def visit(site: Site, address: tuple[str, int]) -> None:
        opened = [await asyncio.open_connection(*address) for _ in range(3)]
        await until(lambda: site.connections.open == 3)
        reader, writer = await asyncio.open_connection(*address)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
        assert site.refused == [(503, "connections")]
        opened[0][1].write(START + b"content-length: 2\r\n\r\n{}")  # the oldest is no longer idle since then
        await opened[0][0].readuntil(b"\r\n\r\n")
        for connection in site.connections._idle:
            site.connections._idle[connection] -= connections.IDLE_SECONDS
        assert (await exchange(address, [START + b"content-length: 2\r\n\r\n{}"], half_close=True)).startswith(
            b"HTTP/1.1 204 "
        )
        assert await opened[1][0].read() == b""
        for _, writer in opened:
            writer.close()
        await until(lambda: site.connections.open == 0)

    on_site(visit, Bounds(3, 1000, 20))


def test_a_refusal_is_logged_with_its_action(caplog: pytest.LogCaptureFixture) -> None:
    """What is refused is seen, and a flood of it is one line."""

    async def visit(site: Site, address: tuple[str, int]) -> None:
        for _ in range(5):
            await exchange(address, [b"hello\r\n\r\n"])
        assert site.refused == [(400, "bad_request")] * 5

    on_site(visit)
    (record,) = [record for record in caplog.records if record.name == "publisher.connections"]
    assert record.__dict__["action"] == "connection.refused"


def test_a_refused_upload_is_not_read_to_its_end() -> None:
    """A body over the bound, and one that waits for its 100, end the connection with their answer."""

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def visit(site: Site, address: tuple[str, int]) -> None:
        config = uvicorn.Config(refuse, ws="none", lifespan="off", log_config=None)

        def protocol() -> asyncio.Protocol:
            return site.connections(config=config, server_state=site.state, app_state={})

        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        for extra in (b"content-length: 9999999999\r\n", b"expect: 100-continue\r\ncontent-length: 2\r\n"):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(START + extra + b"\r\n")
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer.startswith(b"HTTP/1.1 413 ")
            writer.close()
        server.close()

    on_site(visit)


def test_files_leave_room_for_the_service() -> None:
    """The limit is raised as far as the system allows, and connections end below it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        room = listening.spare_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard, listening.FILES_MAX)
        assert room <= soft - listening.SERVICE_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_every_address_can_be_listened_on() -> None:
    """`::` takes both versions; what cannot be listened on says which variable to change."""
    with closing(listening.listen("::", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 5).close()
        socket.create_connection(("::1", port), 5).close()
        with pytest.raises(ValueError, match=f"PORT={port}: .*set PORT"):
            listening.listen("::", port)
    for host in ("203.0.113.1", "no such host", "::x", "a" * 70, "\udcff"):
        with pytest.raises(ValueError, match="set HOST"):
            listening.listen(host, 0)
