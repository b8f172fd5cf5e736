"""What pull says to Pub/Sub, heard by a gRPC server on loopback that speaks Google's own messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]  # google's stubs are a package of their own
import pytest
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]  # as above
from google.pubsub_v1.types import pubsub

from tests.entries import until
from worker.ingest import pull
from worker.ingest.pull import PubSub

NAME = "projects/p/subscriptions/s"


@dataclass
class Server(grpc.GenericRpcHandler):  # type: ignore[misc]  # as above
    """StreamingPull, Acknowledge and ModifyAckDeadline of one subscription."""

    responses: list[Any] = field(default_factory=list)
    """What each stream brings; then it stays open."""
    refusal: grpc.StatusCode | None = None
    heard: list[Any] = field(default_factory=list)

    def service(self, details: Any) -> Any:
        """See grpc.GenericRpcHandler."""
        method = details.method.rpartition("/")[2]
        if method == "StreamingPull":
            return grpc.stream_stream_rpc_method_handler(
                self._stream,
                pubsub.StreamingPullRequest.pb().FromString,
                pubsub.StreamingPullResponse.pb().SerializeToString,
            )
        acknowledge, modify = pubsub.AcknowledgeRequest.pb(), pubsub.ModifyAckDeadlineRequest.pb()
        kind = acknowledge if method == "Acknowledge" else modify
        return grpc.unary_unary_rpc_method_handler(self._answer, kind.FromString, Empty.SerializeToString)

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.heard.append(await anext(requests))
        if self.refusal is not None:
            await context.abort(self.refusal, "because")
        for response in self.responses:
            yield response
        async for request in requests:
            self.heard.append(request)

    async def _answer(self, request: Any, context: Any) -> Any:
        self.heard.append(request)
        if self.refusal is not None:
            await context.abort(self.refusal, "because")
        return Empty()


def talking(monkeypatch: pytest.MonkeyPatch, server: Server, body: Callable[[PubSub], Coroutine[Any, Any, None]]) -> None:
    """Run `body` with a subscription that the server serves."""

    async def run() -> None:
        serving = grpc.aio.server()
        serving.add_generic_rpc_handlers((server,))
        port = serving.add_insecure_port("127.0.0.1:0")
        await serving.start()
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{port}")
        subscription = PubSub(NAME, deadline_seconds=60.0)
        try:
            async with asyncio.timeout(20):
                await body(subscription)
        finally:
            await subscription.close()
            await serving.stop(None)

    asyncio.run(run())


def test_a_stream_asks_for_the_deadline_and_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline that the hold limit is below, and no more out at once than asked for; then empty requests (INV-8)."""
    monkeypatch.setattr(pull, "_KEEP_ALIVE_SECONDS", 0)
    server = Server()

    async def body(subscription: PubSub) -> None:
        async with contextlib.aclosing(subscription.stream(messages=81, size=1000)) as stream:
            assert await anext(stream) == ()
            await until(lambda: len(server.heard) >= 3)
        first, second = server.heard[:2]
        assert (first.subscription, first.stream_ack_deadline_seconds) == (NAME, 60)
        assert (first.max_outstanding_messages, first.max_outstanding_bytes) == (81, 1000)
        assert first.client_id
        assert second == pubsub.StreamingPullRequest.pb()()

    talking(monkeypatch, server, body)


def test_a_message_is_what_a_push_would_make_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-3: the same id, time, bytes and attributes, whichever way it comes; attributes alone are a message."""
    received = pubsub.ReceivedMessage.pb()(ack_id="a1", delivery_attempt=2)
    received.message.message_id, received.message.data, received.message.ordering_key = "m1", b"{}", "key"
    received.message.publish_time.seconds, received.message.publish_time.nanos = 1_700_000_000, 123_000_000
    received.message.attributes["event_type"] = "user.created"
    bare = pubsub.ReceivedMessage.pb()(ack_id="a2")
    bare.message.message_id = "m2"
    server = Server([pubsub.StreamingPullResponse.pb()(received_messages=[received, bare])])

    async def body(subscription: PubSub) -> None:
        async with contextlib.aclosing(subscription.stream(messages=1, size=1)) as stream:
            assert await anext(stream) == ()
            (first_id, first), (second_id, second) = await anext(stream)
        assert (first_id, second_id) == ("a1", "a2")
        assert (first.message_id, first.publish_time, first.data) == ("m1", 1_700_000_000_123, b"{}")
        assert (first.attributes, first.ordering_key) == ({"event_type": "user.created"}, "key")
        assert (first.delivery_attempt, first.subscription) == (2, NAME)
        assert (second.message_id, second.data, second.attributes, second.delivery_attempt) == ("m2", b"", {}, None)

    talking(monkeypatch, server, body)


def test_messages_are_acknowledged_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline of 0 delivers again at once."""
    server = Server()

    async def body(subscription: PubSub) -> None:
        await subscription.acknowledge(["a1", "a2"])
        await subscription.give_back(["a3"])
        done, back = server.heard
        assert (done.subscription, list(done.ack_ids)) == (NAME, ["a1", "a2"])
        assert (back.subscription, list(back.ack_ids), back.ack_deadline_seconds) == (NAME, ["a3"], 0)

    talking(monkeypatch, server, body)


@pytest.mark.parametrize(
    ("code", "step"),
    [
        (grpc.StatusCode.NOT_FOUND, "create it, or correct SUBSCRIPTION"),
        (grpc.StatusCode.PERMISSION_DENIED, "grant this service account roles/pubsub.subscriber"),
        (grpc.StatusCode.FAILED_PRECONDITION, "is it a push subscription?"),
        (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE: because"),
    ],
)
def test_an_error_names_the_next_step(monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode, step: str) -> None:
    """Whoever reads the log knows what to do, and the stream is opened again either way."""

    async def body(subscription: PubSub) -> None:
        with pytest.raises(OSError, match=step):
            async for _ in subscription.stream(messages=1, size=1):
                pass
        with pytest.raises(OSError, match=step):
            await subscription.acknowledge(["a1"])

    talking(monkeypatch, Server(refusal=code), body)


def test_without_credentials_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside Google Cloud there are none by themselves."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")

    async def run() -> None:
        with pytest.raises(OSError, match="attach a service account"):
            await PubSub(NAME, deadline_seconds=60.0).acknowledge(["a1"])

    asyncio.run(run())
