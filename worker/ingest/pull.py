"""Pull: messages are taken from the subscription by StreamingPull, and acknowledged under INV-1 like a push.

    stream ──response──> hold ──> intake ──> writer ──> confirmation ──> acknowledge
                                  └─ refused ──> pause ──> give back (deadline 0)

A response brings up to a hundred messages; one task handles them together and acknowledges them in one request. No lease of
a message is ever extended: the hold limit is below the stream's deadline, so each message is acknowledged or given back
before Pub/Sub delivers it again. An acknowledgement that is lost makes a duplicate, which its receipt tells (INV-3).

A stream is not read while as much is out as the intake may hold; Pub/Sub, and gRPC's own window, then hold back. What a
closed stream had sent and was not read comes back after the deadline. Sources: Pub/Sub documentation, "StreamingPull API"
and "Pull subscriptions"; the emulator brings 100 messages in 50 ms by each stream, so one is not enough (seen: 0.8.20).
"""

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from worker.config import Settings
from worker.errors import Refused, RequestError
from worker.events.catalog import Catalog, Content, Problem
from worker.ingest.intake import Intake
from worker.ingest.messages import Delivery, Outcome, note

STREAMS: Final = 10
"""Streams to the subscription. One carries 10 MB/s (Pub/Sub documentation, "Quotas and limits"), and the emulator's 2,000
messages a second; more than ten only cost memory."""
_KEEP_ALIVE_SECONDS: Final = 30.0
"""An idle stream gets an empty request so often, or what stands between would end it."""
_PAUSE_SECONDS: Final = 1.0
"""A refused message is given back after this time: at once, it would come again at once."""
_REOPEN_SECONDS: Final = 0.1
_REOPEN_MAX_SECONDS: Final = 10.0
_REQUEST_SECONDS: Final = 10.0
_LEFT_OVER_SECONDS: Final = 0.3
"""For so long a stream is still read at the end, to give back what was on its way."""
_ACKNOWLEDGE_ATTEMPTS: Final = 3

log = logging.getLogger(__name__)


class Subscription(Protocol):
    """The subscription, as `pull` uses it. Each call may raise `OSError`: it did not answer, or refused."""

    def stream(self, *, messages: int, size: int) -> AsyncIterator[Sequence[tuple[str, Delivery]]]:
        """Messages with the ids by which they are acknowledged, a response at a time, until the stream ends.

        Args:
            messages: Most of them that are out at once.
            size: Most bytes of them.
        """

    async def acknowledge(self, ids: Sequence[str]) -> None:
        """Acknowledge messages."""

    async def give_back(self, ids: Sequence[str]) -> None:
        """Have messages delivered again, now."""


@dataclass(slots=True)
class Counts:
    """What was pulled so far. Only the event loop touches it."""

    pulled: int = 0
    acknowledged: int = 0
    given_back: int = 0
    streams: int = 0
    """Open now."""


@dataclass(eq=False)
class Pull:
    """Takes messages from a subscription while `run` runs. Only the event loop touches it.

    `heard` is told of each outcome, with the message's publish time.
    """

    subscription: Subscription
    intake: Intake
    catalog: Catalog
    settings: Settings
    heard: Callable[[str, int], None]
    counts: Counts = field(default_factory=Counts)
    streams: int = STREAMS
    _out_messages: int = 0
    _out_bytes: int = 0
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)  # set when a response has been handled
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Pull until `stop`, then until the streams are closed. Cancel it to end at once."""
        async with asyncio.TaskGroup() as streams:
            for _ in range(self.streams):
                streams.create_task(self._keep_open(), name="pull")

    def stop(self) -> None:
        """Take nothing more: what still arrives is given back."""
        self._stopping.set()

    async def settled(self) -> None:
        """Wait until each message that was taken is acknowledged or given back."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _keep_open(self) -> None:
        pause = _REOPEN_SECONDS
        while not self._stopping.is_set():
            try:
                self.counts.streams += 1
                if await self._read():
                    pause = _REOPEN_SECONDS
            except OSError as error:
                level = logging.WARNING if pause < _REOPEN_MAX_SECONDS else logging.ERROR
                log.log(level, "the subscription cannot be pulled: %s", error, extra={"action": "pull.retry"})
            finally:
                self.counts.streams -= 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, _REOPEN_MAX_SECONDS)

    async def _read(self) -> bool:
        """One stream, to its end; whether it brought anything."""
        share = max(1, self.settings.queue_max_messages // self.streams)
        stream = self.subscription.stream(messages=share, size=max(1, self.settings.queue_max_bytes // self.streams))
        brought = False
        async with contextlib.aclosing(stream):  # type: ignore[type-var]  # an async generator
            while (response := await self._next(stream)) is not None:
                brought = True
                self.counts.pulled += len(response)
                for some in self._parts(response):
                    await self._begin(some)
        return brought

    def _parts(self, response: Sequence[tuple[str, Delivery]]) -> Iterator[list[tuple[str, Delivery]]]:
        """A response, in parts of which the intake holds each: a hundred large messages may be more than it takes."""
        part: list[tuple[str, Delivery]] = []
        size = 0
        for each in response:
            more = len(each[1].data)
            if part and (len(part) == self.settings.queue_max_messages or size + more > self.settings.queue_max_bytes):
                yield part
                part, size = [], 0
            part.append(each)
            size += more
        yield part

    async def _begin(self, messages: Sequence[tuple[str, Delivery]]) -> None:
        size = sum(len(delivery.data) for _, delivery in messages)
        await self._room(len(messages), size)
        self._out_messages += len(messages)
        self._out_bytes += size
        task = asyncio.create_task(self._handle(messages), name="pulled")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._handled(done, len(messages), size))

    async def _next(self, stream: AsyncIterator[Sequence[tuple[str, Delivery]]]) -> Sequence[tuple[str, Delivery]] | None:
        """The next response; None at the stream's end, and soon after `stop`."""
        read = asyncio.ensure_future(anext(stream, None))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({read, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                await asyncio.wait({read}, timeout=_LEFT_OVER_SECONDS)
            return read.result() if read.done() else None
        finally:
            stopping.cancel()
            if not read.done():
                read.cancel()
                await asyncio.wait({read})

    async def _room(self, messages: int, size: int) -> None:
        """Wait until there is room for messages. Those that are too large when nothing else is out, the intake refuses."""
        most, most_bytes = self.settings.queue_max_messages, self.settings.queue_max_bytes
        while self._tasks and (self._out_messages + messages > most or self._out_bytes + size > most_bytes):
            self._freed.clear()
            await self._freed.wait()

    def _handled(self, task: "asyncio.Task[None]", messages: int, size: int) -> None:
        self._tasks.discard(task)
        self._out_messages -= messages
        self._out_bytes -= size
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("pulled messages met a defect, and come again: %s", error, extra={"action": "pull.broke"})

    async def _handle(self, response: Sequence[tuple[str, Delivery]]) -> None:
        outcomes = await self._outcomes([delivery for _, delivery in response])
        done = [ack for (ack, _), outcome in zip(response, outcomes, strict=True) if outcome is not None]
        refused = [ack for (ack, _), outcome in zip(response, outcomes, strict=True) if outcome is None]
        if done:
            await self._acknowledge(done)
        if refused:
            await self._give_back(refused)

    async def _outcomes(self, deliveries: Sequence[Delivery]) -> list[Outcome | None]:
        """The outcome of each message once it is confirmed; None of one that is refused."""
        waits: list[asyncio.Future[Outcome]] = []
        contents: list[Content | Problem] = []
        try:
            with self.intake.hold(len(deliveries)) as held:
                held.grow(sum(len(delivery.data) for delivery in deliveries))
                for delivery in deliveries:
                    content = self.catalog.read(delivery.data, delivery.attributes, delivery.publish_time)
                    contents.append(content)
                    waits.append(self.intake.begin(held, delivery, content))
                await asyncio.wait(waits)
        except RequestError as error:
            log.debug("pulled messages are refused: %s", error, extra={"action": "pull.refused"})
        finally:
            for wait in waits:
                wait.cancel()
        outcomes = [self._outcome(wait) for wait in waits]
        for delivery, content, outcome in zip(deliveries, contents, outcomes, strict=False):
            if outcome is not None:
                self.heard(outcome, delivery.publish_time)
                note(delivery, content, outcome)
        return outcomes + [None] * (len(deliveries) - len(outcomes))

    def _outcome(self, wait: "asyncio.Future[Outcome]") -> Outcome | None:
        if not wait.done() or wait.cancelled():
            return None
        error = wait.exception()
        if error is None:
            return wait.result()
        if not isinstance(error, Refused):
            log.warning("a pulled message cannot be taken, and comes again: %s", error, extra={"action": "pull.refused"})
        return None

    async def _acknowledge(self, ids: Sequence[str]) -> None:
        for attempt in range(1, _ACKNOWLEDGE_ATTEMPTS + 1):
            try:
                await self.subscription.acknowledge(ids)
            except OSError as error:
                if attempt == _ACKNOWLEDGE_ATTEMPTS:
                    text = "%d acknowledgements were not taken; their messages come again, as duplicates: %s"
                    log.warning(text, len(ids), error, extra={"action": "pull.unacknowledged"})
            else:
                self.counts.acknowledged += len(ids)
                return

    async def _give_back(self, ids: Sequence[str]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE_SECONDS):
                await self._stopping.wait()
        self.counts.given_back += len(ids)
        with contextlib.suppress(OSError):  # they come back by themselves, after the deadline
            await self.subscription.give_back(ids)


class PubSub:
    """A subscription of Pub/Sub, or of its emulator where PUBSUB_EMULATOR_HOST names one.

    Args:
        name: Its full name, projects/P/subscriptions/S.
        deadline_seconds: When a message that was not acknowledged is delivered again.
    """

    def __init__(self, name: str, *, deadline_seconds: float) -> None:
        self._name, self._deadline = name, round(deadline_seconds)
        self._client_id = str(uuid.uuid4())
        self._channel: Any = None  # made on first use: the import alone takes a second

    def __repr__(self) -> str:
        return f"<PubSub {self._name}>"

    async def stream(self, *, messages: int, size: int) -> AsyncIterator[Sequence[tuple[str, Delivery]]]:
        """See `Subscription.stream`."""
        from google.pubsub_v1 import types

        request, response = types.StreamingPullRequest.pb(), types.StreamingPullResponse.pb()
        open_stream = self._opened().stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        first = request(
            subscription=self._name,
            stream_ack_deadline_seconds=self._deadline,
            client_id=self._client_id,
            max_outstanding_messages=messages,
            max_outstanding_bytes=size,
        )
        call = open_stream(metadata=[("x-goog-request-params", f"subscription={self._name}")])
        keeping = asyncio.create_task(_keep_alive(call, first, request()))
        try:
            with _translated(self._name):
                async for each in call:
                    if each.received_messages:
                        yield [(one.ack_id, _delivery(one, self._name)) for one in each.received_messages]
        finally:
            keeping.cancel()
            call.cancel()

    async def acknowledge(self, ids: Sequence[str]) -> None:
        """See `Subscription.acknowledge`."""
        from google.pubsub_v1 import types

        await self._ask("Acknowledge", types.AcknowledgeRequest.pb()(subscription=self._name, ack_ids=ids))

    async def give_back(self, ids: Sequence[str]) -> None:
        """See `Subscription.give_back`."""
        from google.pubsub_v1 import types

        request = types.ModifyAckDeadlineRequest.pb()(subscription=self._name, ack_ids=ids, ack_deadline_seconds=0)
        await self._ask("ModifyAckDeadline", request)

    async def close(self) -> None:
        """Give back the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def _ask(self, method: str, request: Any) -> None:
        from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]  # google's stubs are a package of their own

        call = self._opened().unary_unary(
            f"/google.pubsub.v1.Subscriber/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=Empty.FromString,
        )
        with _translated(self._name):
            metadata = [("x-goog-request-params", f"subscription={self._name}")]
            await call(request, timeout=_REQUEST_SECONDS, metadata=metadata)

    def _opened(self) -> Any:
        if self._channel is None:
            if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
                import grpc.aio  # type: ignore[import-untyped]  # google's stubs are a package of their own

                self._channel = grpc.aio.insecure_channel(host, options=[("grpc.max_receive_message_length", -1)])
            else:
                from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

                self._channel = SubscriberGrpcAsyncIOTransport().grpc_channel
        return self._channel


async def _keep_alive(call: Any, first: Any, empty: Any) -> None:
    with contextlib.suppress(Exception):  # the reader of the stream meets its end
        await call.write(first)
        while True:
            await asyncio.sleep(_KEEP_ALIVE_SECONDS)
            await call.write(empty)


def _delivery(received: Any, subscription: str) -> Delivery:
    message = received.message
    time = message.publish_time
    return Delivery(
        message_id=message.message_id,
        publish_time=time.seconds * 1000 + round(time.nanos / 1_000_000),
        data=message.data,
        attributes=dict(message.attributes),
        ordering_key=message.ordering_key,
        delivery_attempt=received.delivery_attempt or None,
        subscription=subscription,
    )


@contextlib.contextmanager
def _translated(name: str) -> Any:
    """Translate gRPC's errors, with the next step where there is one."""
    import grpc

    try:
        yield
    except grpc.aio.AioRpcError as error:
        code = error.code()
        if code is grpc.StatusCode.NOT_FOUND:
            raise OSError(f"there is no subscription {name}; create it, or correct SUBSCRIPTION") from error
        if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
            raise OSError(f"{name} may not be pulled; grant this service account roles/pubsub.subscriber") from error
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            raise OSError(f"{name} cannot be pulled: {error.details()}; is it a push subscription?") from error
        raise OSError(f"{code.name}: {error.details()}") from error
