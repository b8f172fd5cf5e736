"""The gateway: which case answers what, through the real application and a sink that does as it is told."""

import asyncio
import gc
import io
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, TypeVar

import httpx
import pytest

from publisher import cli, gateway, server, settings, telemetry
from publisher.async_sink import AsyncSink
from publisher.errors import (
    DeliveryError,
    NotConfirmedError,
    NotPermittedError,
    RefusedError,
    TopicNotFoundError,
    UnreachableError,
    UsageError,
)
from publisher.settings import GatewayLimits
from publisher.sink import OpenFutures, settle
from publisher.telemetry import RateLimitedLog
from tests.entries import turns, until
from tests.fakes import Clock
from worker.events.users import UserCreated

LIMITS = GatewayLimits(
    body_max_bytes=2000, body_seconds=5.0, answer_seconds=5.0, in_flight=3, in_flight_bytes=5000, drain_seconds=5.0
)
SECRET = "s3cret"
BODY = b'{"user_id":5}'

Outcome = str | BaseException | None
T = TypeVar("T")


@dataclass
class FakeSink:
    """Settles each message with `outcome`; None leaves it open until `answer_all`. A cleared `gate` blocks publishing."""

    outcome: Outcome = "m1"
    users: list[UserCreated] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    futures: list[Future[str]] = field(default_factory=list)
    capacity: int = 10
    patience: float = 5.0

    def __post_init__(self) -> None:
        self.gate.set()
        self._open = OpenFutures()

    def publish(self, user: UserCreated) -> Future[str]:
        """See `Sink.publish`."""
        assert self.gate.wait(30)
        self.threads.add(threading.get_ident())
        self.users.append(user)
        future = self._open.new()
        if self.outcome is not None:
            settle(future, self.outcome)
        self.futures.append(future)
        return future

    def answer_all(self, outcome: str | BaseException = "m1") -> None:
        """Settle what is open."""
        for future in self.futures:
            settle(future, outcome)

    def close(self, timeout: float | None = None) -> None:
        """Give up on what is open."""
        self._open.abandon(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class Site:
    """The application around a fake sink, and a client of it; made inside the event loop."""

    sink: FakeSink
    limits: GatewayLimits

    def __post_init__(self) -> None:
        self.messages = AsyncSink(self.sink, self.limits)
        self.app = gateway.build(gateway.Gateway(self.messages, self.limits))
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def post(self, content: bytes | AsyncIterator[bytes] = BODY, **request: Any) -> httpx.Response:
        """Send one user."""
        return await self.client.post("/users", content=content, **request)

    def posting(self) -> "asyncio.Task[httpx.Response]":
        """Send one user in the background."""
        return asyncio.create_task(self.post())


def on_site(visit: Callable[[Site], Awaitable[T]], sink: FakeSink | None = None, limits: GatewayLimits = LIMITS) -> T:
    """Run `visit` with a site."""

    async def body() -> T:
        site = Site(sink or FakeSink(), limits)
        try:
            return await visit(site)
        finally:
            site.messages.close()
            await site.client.aclose()

    return asyncio.run(body())


def post_once(
    content: bytes = BODY, sink: FakeSink | None = None, limits: GatewayLimits = LIMITS, **request: Any
) -> httpx.Response:
    """Send one body to a site of its own."""

    async def visit(site: Site) -> httpx.Response:
        return await site.post(content, **request)

    return on_site(visit, sink, limits)


def ask(method: str, path: str) -> httpx.Response:
    """One request without a body."""

    async def visit(site: Site) -> httpx.Response:
        return await site.client.request(method, path)

    return on_site(visit)


# Accepted


def test_an_accepted_user_is_202_with_its_message_id() -> None:
    """The sink gets the user whole, and the answer is the id it returned."""
    sink = FakeSink(outcome="m77")
    answer = post_once(b'{"user_id":5,"email_address":"a@example.com","settings":"x","created_at":7,"more":1}', sink)
    assert (answer.status_code, answer.json()) == (202, {"message_id": "m77"})
    assert sink.users == [UserCreated(user_id=5, email_address="a@example.com", settings="x", created_at=7)]


def test_an_accepted_user_leaves_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """At the default level nothing is logged per user; debug names the message, never the user."""
    with caplog.at_level(logging.INFO, "publisher"):
        post_once(b'{"user_id":987654321}')
    assert [record for record in caplog.records if record.name.startswith("publisher")] == []
    with caplog.at_level(logging.DEBUG, "publisher"):
        post_once(b'{"user_id":987654321}')
    assert "message m1 accepted" in caplog.text
    assert "987654321" not in caplog.text


def test_202_waits_for_pubsub() -> None:
    """Nothing is answered while Pub/Sub has not accepted."""

    async def visit(site: Site) -> None:
        answer = site.posting()
        await until(lambda: site.sink.futures)
        await turns()
        assert not answer.done()
        site.sink.answer_all("m9")
        assert (await answer).json() == {"message_id": "m9"}

    on_site(visit, FakeSink(outcome=None))


# Bad requests


@pytest.mark.parametrize(
    ("body", "named", "reason"),
    [
        (b"", None, "not_json"),
        (b"s3cret", None, "not_json"),
        (b'"s3cret"', None, "not_an_object"),
        (b'["s3cret"]', None, "not_an_object"),
        (b"\xff s3cret", None, "not_utf8"),
        (b'{"user_id":5', None, "not_json"),
        (b'{"email_address":"s3cret"}', "user_id", "missing_field"),
        (b'{"user_id":0}', "user_id", "out_of_range"),
        (b'{"user_id":9223372036854775808}', "user_id", "out_of_range"),
        (b'{"user_id":"s3cret"}', "user_id", "wrong_type"),
        (b'{"user_id":5.5}', "user_id", "wrong_type"),
        (b'{"user_id":5,"email_address":["s3cret"]}', "email_address", "wrong_type"),
        (b'{"user_id":5,"settings":{"s3cret":1}}', "settings", "wrong_type"),
        (b'{"user_id":5,"settings":"s3cret\\u0000"}', "settings", "bad_text"),
        (b'{"user_id":5,"created_at":-1,"settings":"s3cret"}', "created_at", "out_of_range"),
    ],
)
def test_a_bad_body_is_refused_by_its_field(
    caplog: pytest.LogCaptureFixture, body: bytes, named: str | None, reason: str
) -> None:
    """400 with the field and the reason's code; no value of the user's in the answer or in the log."""
    sink = FakeSink()
    with caplog.at_level(logging.DEBUG):
        answer = post_once(body, sink)
    assert answer.status_code == 400
    assert (answer.json()["field"], answer.json()["reason"]) == (named, reason)
    assert (named or "data") in answer.json()["error"]
    assert answer.json()["error"] in caplog.text
    assert SECRET not in answer.text + caplog.text
    assert sink.users == []


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    """413 before a byte of it is asked for, and the connection is closed, so that nothing more need come."""
    read = []

    async def told() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"x"

    async def visit(site: Site) -> httpx.Response:
        return await site.post(told(), headers={"content-length": str(LIMITS.body_max_bytes + 1)})

    answer = on_site(visit)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert answer.json() == {"error": "the body must be at most 2000 bytes", "field": None, "reason": "too_large"}
    assert read == []


def test_a_body_that_does_not_tell_its_length_is_cut_off() -> None:
    """413 as soon as it is over the limit, and the connection is closed: an endless body ends."""
    read = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 900

    async def visit(site: Site) -> httpx.Response:
        answer = await site.post(endless())
        assert (site.messages.in_flight, site.messages.in_flight_bytes) == (0, 0)
        return answer

    answer = on_site(visit)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert len(read) <= 4


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    """The bound itself is inside."""
    padded = BODY.ljust(LIMITS.body_max_bytes)
    assert post_once(padded).status_code == 202
    assert post_once(padded + b" ").status_code == 413


def test_a_body_in_pieces_is_put_together() -> None:
    """Chunked bodies are as good as others, and the connection stays open."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(len(BODY)):
            yield BODY[start : start + 1]

    async def visit(site: Site) -> httpx.Response:
        return await site.post(pieces())

    answer = on_site(visit)
    assert answer.status_code == 202
    assert "connection" not in answer.headers


def test_a_body_that_does_not_come_is_given_up() -> None:
    """408 after the time limit; its place is free again."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async def visit(site: Site) -> httpx.Response:
        answer = await site.post(slow())
        assert (site.messages.in_flight, site.messages.in_flight_bytes) == (0, 0)
        return answer

    answer = on_site(visit, limits=GatewayLimits(body_seconds=0.05))
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert answer.json()["reason"] == "too_slow"


def test_a_message_that_the_topic_refuses_is_the_senders_error(caplog: pytest.LogCaptureFixture) -> None:
    """400 without Pub/Sub's words, which may quote the user; the log says what to compare, and has them at debug only."""
    with caplog.at_level(logging.INFO, "publisher"):
        answer = post_once(sink=FakeSink(outcome=RefusedError(f"Pub/Sub refused it: {SECRET}")))
    assert (answer.status_code, answer.json()["reason"]) == (400, "refused")
    assert "topic's schema" in answer.json()["error"]
    assert SECRET not in answer.text + caplog.text
    assert "docs/message-format.md" in caplog.text
    with caplog.at_level(logging.DEBUG, "publisher"):
        post_once(sink=FakeSink(outcome=RefusedError(f"Pub/Sub refused it: {SECRET}")))
    assert SECRET in caplog.text


# Not accepted, and nobody's fault


@pytest.mark.parametrize("error", [UnreachableError("check the network"), NotConfirmedError("broke off")])
def test_an_unknown_outcome_says_that_repeating_is_harmless(error: DeliveryError) -> None:
    """503 with Retry-After: the message may have been accepted, so the sender must know that it may repeat."""
    answer = post_once(sink=FakeSink(outcome=error))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, str(settings.GATEWAY_RETRY_AFTER_SECONDS))
    assert answer.json()["reason"] == error.code
    assert "may have accepted it" in answer.json()["error"]
    assert "harmless" in answer.json()["error"]


@pytest.mark.parametrize(
    "error", [TopicNotFoundError("create projects/p/topics/t"), NotPermittedError("grant r/p.publisher")]
)
def test_a_mistake_of_the_operators_keeps_the_user_with_the_sender(
    caplog: pytest.LogCaptureFixture, error: DeliveryError
) -> None:
    """503, never a 4xx; the log has an error with the next step, the sender hears nothing of our topics."""
    answer = post_once(sink=FakeSink(outcome=error))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, str(settings.GATEWAY_RETRY_AFTER_SECONDS))
    assert "send it again" in answer.json()["error"]
    assert "may have accepted" not in answer.json()["error"]
    assert str(error) not in answer.text
    [record] = [record for record in caplog.records if getattr(record, "action", "") == "gateway.undelivered"]
    assert record.levelno == logging.ERROR
    assert str(error) in record.getMessage()


def test_a_bug_is_500_and_says_nothing() -> None:
    """What an unforeseen exception holds stays out of the answer; the place is free again."""

    async def visit(site: Site) -> None:
        answer = await site.post()
        assert answer.status_code == 500
        assert SECRET not in answer.text
        assert site.messages.in_flight == 0

    on_site(visit, FakeSink(outcome=RuntimeError(SECRET)))


def test_no_outcome_is_503_in_time_and_keeps_its_place() -> None:
    """A publish without an end is answered after the time limit; what is in flight all the same is still counted."""

    async def visit(site: Site) -> None:
        answer = await site.post()
        assert (answer.status_code, answer.json()["reason"]) == (503, "not_confirmed")
        assert (site.messages.in_flight, site.messages.in_flight_bytes) == (1, len(BODY))
        site.sink.answer_all()
        await until(lambda: site.messages.in_flight == 0)
        assert site.messages.in_flight_bytes == 0

    on_site(visit, FakeSink(outcome=None), GatewayLimits(answer_seconds=0.05))


# Bounds


def test_more_than_the_limit_in_flight_is_503() -> None:
    """INV-7: the next one is asked to come again, without its body being read; with room again it is taken."""

    async def visit(site: Site) -> None:
        waiting = [site.posting() for _ in range(LIMITS.in_flight)]
        await until(lambda: len(site.sink.futures) == LIMITS.in_flight)
        answer = await site.post()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, str(settings.GATEWAY_RETRY_AFTER_SECONDS))
        assert answer.json() == {
            "error": "3 messages are in flight, which is the limit; send this again",
            "reason": "busy",
        }
        assert len(site.sink.users) == LIMITS.in_flight
        site.sink.answer_all()
        assert [(await each).status_code for each in waiting] == [202] * LIMITS.in_flight
        site.sink.outcome = "m2"
        assert (await site.post()).status_code == 202

    on_site(visit, FakeSink(outcome=None))


def test_more_than_the_limit_of_bytes_is_503() -> None:
    """INV-7: bodies are counted as they come; a told length takes no room."""
    large = BODY.ljust(LIMITS.body_max_bytes)

    async def visit(site: Site) -> None:
        waiting = [asyncio.create_task(site.post(large)) for _ in range(2)]
        await until(lambda: len(site.sink.futures) == 2)
        answer = await site.post(large)
        assert (answer.status_code, answer.json()["reason"]) == (503, "busy")
        assert site.messages.in_flight_bytes == 2 * len(large)
        site.sink.answer_all()
        assert [(await each).status_code for each in waiting] == [202, 202]
        assert (site.messages.in_flight, site.messages.in_flight_bytes) == (0, 0)

    on_site(visit, FakeSink(outcome=None))


def test_a_sink_that_blocks_does_not_block_the_gateway() -> None:
    """Flow control blocks a thread of its own: the loop goes on answering, and the block's end lets all through."""

    async def visit(site: Site) -> None:
        site.sink.gate.clear()
        waiting = [site.posting() for _ in range(2)]
        await until(lambda: site.messages.in_flight == 2)
        assert (await site.client.get("/healthz")).status_code == 200
        assert not any(each.done() for each in waiting)
        site.sink.gate.set()
        assert [(await each).status_code for each in waiting] == [202, 202]
        assert threading.get_ident() not in site.sink.threads

    on_site(visit)


def test_a_sink_that_blocks_for_good_is_answered_in_time() -> None:
    """503 after the time limit although not even publishing returned."""
    sink = FakeSink()
    sink.gate.clear()
    answer = post_once(sink=sink, limits=GatewayLimits(answer_seconds=0.05))
    sink.gate.set()
    assert (answer.status_code, answer.json()["reason"]) == (503, "not_confirmed")


# Senders that hang up


def test_a_sender_that_hangs_up_early_publishes_nothing() -> None:
    """A body that ends in the middle is nobody's user."""
    sent: list[dict[str, Any]] = []
    incoming: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"user_id":', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    async def visit(site: Site) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/users",
            "headers": [],
            "query_string": b"",
            "http_version": "1.1",
        }
        await site.app(scope, receive, send)
        assert site.sink.users == []
        assert (site.messages.in_flight, site.messages.in_flight_bytes) == (0, 0)

    on_site(visit)
    assert sent[0]["status"] == 499


def test_a_request_that_is_cancelled_does_not_stop_its_publish() -> None:
    """What has been sent is waited for and counted, whoever is gone."""

    async def visit(site: Site) -> None:
        request = site.posting()
        await until(lambda: site.sink.futures)
        request.cancel()
        await asyncio.wait({request})
        await turns()
        assert site.messages.in_flight == 1
        assert not site.sink.futures[0].cancelled()
        site.sink.answer_all()
        await until(lambda: site.messages.in_flight == 0)

    on_site(visit, FakeSink(outcome=None))


def test_a_late_refusal_is_not_logged_by_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it any more; Pub/Sub's words, which may quote the user, stay out of the log."""

    async def visit(site: Site) -> None:
        assert (await site.post()).status_code == 503
        site.sink.answer_all(RefusedError(f"Pub/Sub refused it: {SECRET}"))
        await until(lambda: site.messages.in_flight == 0)
        site.sink.futures.clear()
        await turns()
        gc.collect()
        await turns()

    on_site(visit, FakeSink(outcome=None), GatewayLimits(answer_seconds=0.05))
    assert "gateway.undelivered" in actions(caplog)
    assert SECRET not in caplog.text


# Paths and methods


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_users_takes_posts_only(method: str) -> None:
    """405 with the method that would do."""
    answer = ask(method, "/users")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_healthz_takes_gets_only(method: str) -> None:
    """405 with the methods that would do."""
    answer = ask(method, "/healthz")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/users/", "/users/5", "/nowhere", "/robots.txt", "/favicon.ico", "/readyz"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_any_other_path_is_404(method: str, path: str) -> None:
    """There is nothing else."""
    assert ask(method, path).status_code == 404


def test_healthz_says_that_the_process_lives() -> None:
    """200 while serving and while draining: a process that drains must not be killed for it."""

    async def visit(site: Site) -> None:
        answer = await site.client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"state": "serving"})
        assert await site.messages.emptied(1)
        answer = await site.client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"state": "draining"})

    on_site(visit)


# The process


@dataclass
class Running:
    """A gateway that listens."""

    sink: FakeSink
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    port: int
    client: httpx.AsyncClient

    def posting(self) -> "asyncio.Task[httpx.Response]":
        """Send one user in the background."""
        return asyncio.create_task(self.client.post("/users", content=BODY))


def while_running(visit: Callable[[Running], Awaitable[T]], sink: FakeSink, limits: GatewayLimits = LIMITS) -> T:
    """Run `visit` against the real HTTP server on loopback, without a process of its own."""

    async def body() -> T:
        listener = server.listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        stop = asyncio.Event()
        task = asyncio.create_task(server.run(listener, sink, limits, stop))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            try:
                return await visit(Running(sink, stop, task, port, client))
            finally:
                stop.set()
                sink.answer_all()
                await task

    return asyncio.run(body())


def test_stopping_answers_what_is_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    """While draining, new users are asked to come again; those in flight get their 202, and then it ends."""
    caplog.set_level(logging.INFO, "publisher")

    async def visit(running: Running) -> None:
        answer = running.posting()
        await until(lambda: running.sink.futures)
        running.stop.set()
        await until(lambda: "gateway.draining" in actions(caplog))
        late = await running.posting()
        assert (late.status_code, late.json()["reason"]) == (503, "busy")
        assert "retry-after" in late.headers
        assert not running.task.done()
        running.sink.answer_all("m5")
        assert (await answer).json() == {"message_id": "m5"}
        await running.task

    while_running(visit, FakeSink(outcome=None))
    assert actions(caplog) == ["gateway.listening", "gateway.draining", "gateway.busy", "gateway.stopped"]


def test_stopping_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """After the drain's time limit what has no outcome is answered 503, as unknown, and the process ends all the same."""

    async def visit(running: Running) -> None:
        answer = running.posting()
        await until(lambda: running.sink.futures)
        running.stop.set()
        found = await answer
        assert (found.status_code, found.json()["reason"]) == (503, "not_confirmed")
        await running.task

    while_running(visit, FakeSink(outcome=None), GatewayLimits(drain_seconds=0.05))
    assert "gateway.undrained" in actions(caplog)


def test_a_connection_that_breaks_does_not_stop_its_publish() -> None:
    """Over a real socket: the sender is gone, the message is waited for at the end."""

    async def visit(running: Running) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /users HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n" + BODY)
        await until(lambda: running.sink.futures)
        writer.transport.abort()
        await asyncio.sleep(0.1)
        running.stop.set()
        await asyncio.sleep(0.2)
        assert not running.task.done()
        running.sink.answer_all()
        await running.task
        assert running.sink.futures[0].result() == "m1"

    while_running(visit, FakeSink(outcome=None))


@pytest.mark.parametrize("apart", [False, True])
def test_an_offer_of_another_protocol_changes_nothing(apart: bool) -> None:
    """F1: curl --http2 and Java's client send this; the body is the user, also where it comes in a second segment."""

    async def visit(running: Running) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        writer.write(b"POST /users HTTP/1.1\r\nhost: x\r\n" + offer + b"content-length: %d\r\n\r\n" % len(BODY))
        if apart:
            await asyncio.sleep(0.1)
        writer.write(BODY)
        writer.write_eof()  # and the client has nothing more to say
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert [user.user_id for user in running.sink.users] == [5]
        return answer

    assert while_running(visit, FakeSink()).startswith(b"HTTP/1.1 202 ")


def test_an_endless_body_ends_with_its_connection() -> None:
    """Over a real socket: 413 comes while the sender still sends, and then the connection is closed."""

    async def visit(running: Running) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /users HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    answer = while_running(visit, FakeSink())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_a_large_body_is_not_invited() -> None:
    """`Expect: 100-continue` with a length over the limit gets 413 and no 100: nothing is sent in vain."""

    async def visit(running: Running) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /users HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    assert while_running(visit, FakeSink()).startswith(b"HTTP/1.1 413 ")


def test_an_address_that_is_taken_is_a_usage_error() -> None:
    """The error names what to set."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UsageError, match=r"cannot listen on HOST=.*set PORT"):
            server.listen("127.0.0.1", taken.getsockname()[1])


# The log


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The gateway's events, in order."""
    found = (str(getattr(record, "action", "")) for record in caplog.records)
    return [action for action in found if action.startswith("gateway.")]


def test_a_repeated_event_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """An outage fails every request: one line says so, the next says how many there were. Other events have their own."""
    clock = Clock(now=0.0)
    events = RateLimitedLog(logging.getLogger("publisher.gateway"), 10.0, clock)
    for clock.now, text in ((0.0, "100% down"), (1.0, "left out"), (9.9, "left out"), (10.0, "down"), (20.0, "down")):
        events(logging.ERROR, "gateway.undelivered", text)
    clock.now = 20.1
    events(logging.WARNING, "gateway.busy", "full")
    assert [record.getMessage() for record in caplog.records] == [
        "100% down",
        "down (2 more like this since the last line)",
        "down",
        "full",
    ]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.fixture
def logging_restored() -> Any:
    """Puts the root logger's handlers and levels back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in telemetry._NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.usefixtures("logging_restored")
def test_the_log_is_one_json_object_a_line() -> None:
    """In Cloud Logging's fields, tracebacks included."""
    stream = io.StringIO()
    telemetry.configure("info", stream)
    log = logging.getLogger("publisher.gateway")
    log.debug("not at this level")
    log.warning('say "%s"', "hi", extra={"action": "gateway.busy"})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("two\nlines")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {"severity": "WARNING", "message": 'say "hi"', "action": "gateway.busy"}
    assert (second["severity"], second["message"]) == ("ERROR", "two\nlines")
    assert second["stack_trace"].startswith("Traceback")
    assert second["logging.googleapis.com/sourceLocation"]["file"] == __file__


@pytest.mark.usefixtures("logging_restored")
def test_a_terminal_gets_plain_lines() -> None:
    """A person reads them."""
    stream = Terminal()
    telemetry.configure("debug", stream)
    logging.getLogger("publisher.gateway").debug("hello")
    assert stream.getvalue().endswith("DEBUG: hello\n")


# The command line

Called = list[tuple[tuple[str, int], GatewayLimits]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """What `serve` was told to do: its address and its limits. It leaves the process and so must not run here."""
    found: Called = []
    addresses: list[tuple[str, int]] = []

    def listen(host: str, port: int) -> socket.socket:
        addresses.append((host, port))
        return socket.socket()

    monkeypatch.setattr(server, "listen", listen)
    monkeypatch.setattr(server, "main", lambda listener, sink, limits, close: found.append((addresses[-1], limits)))
    monkeypatch.setattr(telemetry, "configure", lambda level: None)
    return found


SERVE = ("serve", "--push-to", "http://127.0.0.1:1/")


def test_serve_listens_as_cloud_run_wants_it(called: Called) -> None:
    """PORT and HOST count, with Cloud Run's defaults; options override them."""
    cli.main(SERVE, {})
    cli.main(SERVE, {"PORT": "9001", "HOST": "127.0.0.1"})
    cli.main([*SERVE, "--port", "0", "--host", "127.0.0.2"], {"PORT": "9001", "HOST": "127.0.0.1"})
    assert [address for address, _ in called] == [("0.0.0.0", 8080), ("127.0.0.1", 9001), ("127.0.0.2", 0)]


def test_serve_passes_its_limits_on(called: Called) -> None:
    """The wait for an outcome outlasts the sink's attempts, so that a late outcome still names its cause."""
    cli.main(SERVE, {})
    cli.main([*SERVE, "--give-up-after", "3", "--in-flight", "7"], {})
    first, second = (limits for _, limits in called)
    assert (first.answer_seconds, first.in_flight) == (12.0, settings.GATEWAY_IN_FLIGHT)
    assert (second.answer_seconds, second.in_flight) == (5.0, 7)


@pytest.mark.parametrize("port", ["", "x", "-1", "65536", "8080 ", "²", "9" * 5000])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    """The error names the variable and the range."""
    with pytest.raises(UsageError, match=r"PORT is .* between 0 and 65535"):
        settings.port_number(port)


@pytest.mark.parametrize("name", ["LOG_LEVEL", "PORT"])
def test_a_wrong_variable_ends_serve_with_2(called: Called, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Starting again will not help."""
    assert cli.main(SERVE, {name: "loud"}) == 2
    assert f"{name} is 'loud'" in capsys.readouterr().err
    assert called == []


def test_serve_without_a_topic_is_refused(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    """As with the other commands."""
    assert cli.main(["serve"], {}) == 2
    assert "no topic" in capsys.readouterr().err


def test_the_limits_nest() -> None:
    """INV-8: the gateway's bytes fit into the sink's, its body into its bytes, and its end into the platform's 10 s."""
    assert settings.GATEWAY_BODY_MAX_BYTES <= settings.GATEWAY_IN_FLIGHT_BYTES < settings.IN_FLIGHT_BYTES
    assert settings.GATEWAY_IN_FLIGHT <= settings.MAX_IN_FLIGHT
    last = settings.GATEWAY_DRAIN_SECONDS + settings.GATEWAY_CLOSE_SECONDS + settings.TRACE_FLUSH_SECONDS
    assert last < 10
