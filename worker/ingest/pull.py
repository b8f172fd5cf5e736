"""Pull: messages are taken from the subscription by StreamingPull, and acknowledged under INV-1 like a push.

    stream ──response──> room ──> intake ──> writer ──> confirmation ──> acknowledge, many in one request
                                  └─ refused ──> pause ──> give back (deadline 0)

A response brings up to a hundred messages, and one task handles them together. No lease of a message is ever extended: the
hold limit is below the stream's deadline, so each message is acknowledged or given back before Pub/Sub delivers it again.
An acknowledgement that is lost makes a duplicate, which its receipt tells (INV-3).

A stream is not read while as much is out as the intake may hold; Pub/Sub, and gRPC's own window, then hold back. At a stop
the streams are read a moment longer and closed, and only then is given back what they brought: while a stream is open, what
is given back comes again at once, and each time counts towards the dead letters. What a closed stream had sent and was not
read comes back after the deadline. Sources: Pub/Sub documentation, "StreamingPull API" and "Pull subscriptions"; the
emulator brings 100 messages in 50 ms by each stream, so one is not enough (seen: 0.8.20).
"""

import asyncio
import contextlib
import logging
import os
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from worker.config import Settings
from worker.errors import Refused, RequestError
from worker.events.catalog import Catalog, Content, Problem
from worker.ingest.intake import Held, Intake
from worker.ingest.messages import Delivery, Observer, Outcome, note

STREAMS: Final = 10
"""Streams to the subscription. One carries 10 MB/s (Pub/Sub documentation, "Quotas and limits"), and the emulator's 2,000
messages a second; more than ten only cost memory."""
IDS_MAX: Final = 1000
"""Most messages that one request acknowledges: an id has about 200 bytes, and a request at most 512 KiB (Pub/Sub
documentation, "Quotas and limits")."""
_REQUESTS: Final = 4
"""Requests at once: one that hangs must not keep the others."""
_RESERVE: Final = 10
"""One place in so many is left to the changes of operators and to pushes: a backlog would take them all."""
_KEEP_ALIVE_SECONDS: Final = 30.0
"""An idle stream gets an empty request so often, or what stands between would end it."""
_PING_MILLISECONDS: Final = 30_000
"""A connection is asked so often whether it lives, as by Google's own client: a stream on a dead one would wait for ever."""
_PAUSE_SECONDS: Final = 1.0
"""A refused message is given back after this time: at once, it would come again at once."""
_REOPEN_SECONDS: Final = 0.1
_REOPEN_MAX_SECONDS: Final = 10.0
_LASTED_SECONDS: Final = 60.0
"""A stream that lasted so long has ended as streams do: Pub/Sub closes each from time to time."""
_REQUEST_SECONDS: Final = 10.0
_LEFT_OVER_SECONDS: Final = 0.3
"""For so long a stream is still read at a stop, to give back what was on its way."""
_ACKNOWLEDGE_ATTEMPTS: Final = 3
_AGAIN_SECONDS: Final = 0.1

log = logging.getLogger(__name__)

Received = tuple[str, Delivery]
"""A message, with the id by which it is acknowledged."""


class Subscription(Protocol):
    """The subscription, as `pull` uses it. Each call may raise `OSError`: it did not answer, or refused."""

    def stream(self, *, messages: int, size: int) -> AsyncGenerator[Sequence[Received], None]:
        """Messages, a response at a time, until the stream ends; an empty one first, once the stream is open.

        Args:
            messages: Most of them that are out at once.
            size: Most bytes of them.
        """

    async def acknowledge(self, ids: Sequence[str]) -> None:
        """Acknowledge messages."""

    async def give_back(self, ids: Sequence[str]) -> None:
        """Have messages delivered again, now."""

    async def close(self) -> None:
        """Give back the connection."""


@dataclass(slots=True)
class Counts:
    """What was pulled so far. Only the event loop touches it."""

    pulled: int = 0
    acknowledged: int = 0
    given_back: int = 0
    streams: int = 0
    """Open now."""


class Pull:
    """Takes messages from a subscription while `run` runs. Only the event loop touches it.

    Args:
        subscription: Where they come from.
        intake: Where they go.
        catalog: Says what they mean.
        settings: How much may be out at once.
        heard: Told of each outcome, with the message's publish time.
        observer: Told of refusals.
        counts: What it counts into.
        streams: How many are open at once.
    """

    def __init__(
        self,
        subscription: Subscription,
        intake: Intake,
        catalog: Catalog,
        settings: Settings,
        heard: Callable[[str, int], None],
        *,
        observer: Observer | None = None,
        counts: Counts | None = None,
        streams: int = STREAMS,
    ) -> None:
        self._subscription, self._intake, self._catalog, self._heard = subscription, intake, catalog, heard
        self._observer, self.counts, self._streams = observer or Observer(), counts or Counts(), streams
        self._most = settings.queue_max_messages - settings.queue_max_messages // _RESERVE
        self._most_bytes = settings.queue_max_bytes - settings.queue_max_bytes // _RESERVE
        self._acknowledgements = _Requests(subscription.acknowledge, attempts=_ACKNOWLEDGE_ATTEMPTS)
        self._returns = _Requests(subscription.give_back, attempts=1)  # they come back by themselves, after the deadline
        self._out_messages = self._out_bytes = 0
        self._tasks: dict[asyncio.Task[None], list[asyncio.Future[Outcome]]] = {}  # with what each waits for
        self._readers: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()  # set when a response has been handled, and at a stop
        self._stopping = asyncio.Event()
        self._open = 0  # streams that are opened or open
        self._closed = asyncio.Event()  # set while there are none
        self._closed.set()
        self._limits: set[asyncio.Timeout] = set()  # of the open streams; a stop sets them
        self._complained = ("", float("-inf"))  # about what, and when

    def __repr__(self) -> str:
        return f"<Pull of {self._subscription!r}, {self.counts.streams} streams, {self._out_messages} messages out>"

    async def run(self) -> None:
        """Pull until `stop`, then until the streams are closed. Cancel it to end at once."""
        async with asyncio.TaskGroup() as streams:
            self._readers = {streams.create_task(self._keep_open(), name="pull") for _ in range(self._streams)}

    def stop(self) -> None:
        """Take nothing more: what still arrives is given back, once the streams are closed. Again it does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._freed.set()
        until = asyncio.get_running_loop().time() + _LEFT_OVER_SECONDS
        for limit in self._limits:
            limit.reschedule(until)

    async def end(self) -> None:
        """After `stop`: give back what is not confirmed, and wait until Pub/Sub knows what became of each message."""
        for waits in self._tasks.values():
            for wait in waits:
                wait.cancel()
        while pending := {*self._tasks, *(reader for reader in self._readers if not reader.done())}:
            await asyncio.wait(pending)
        await self._subscription.close()

    async def _keep_open(self) -> None:
        loop, pause = asyncio.get_running_loop(), _REOPEN_SECONDS
        while not self._stopping.is_set():
            began, left = loop.time(), list[str]()
            try:
                if await self._read(left):
                    pause = _REOPEN_SECONDS
            except OSError as error:
                if loop.time() - began >= _LASTED_SECONDS:
                    pause = _REOPEN_SECONDS
                    log.debug("a stream ended, and is opened again: %s", error, extra={"action": "pull.reopened"})
                else:
                    self._complain(error, lasting=pause >= _REOPEN_MAX_SECONDS)
            await self._give_back(left)
            await self._stopped_within(pause)
            pause = min(2 * pause, _REOPEN_MAX_SECONDS)

    async def _read(self, left: list[str]) -> bool:
        """One stream, to its end; whether it brought anything. What comes after a stop is added to `left`."""
        stream = self._subscription.stream(
            messages=max(1, self._most // self._streams), size=max(1, self._most_bytes // self._streams)
        )
        opened = brought = False
        self._open += 1
        self._closed.clear()
        try:
            async with contextlib.aclosing(stream), asyncio.timeout(None) as limit:
                self._limits.add(limit)
                try:
                    async for response in stream:
                        self.counts.streams += not opened
                        opened = True
                        brought = brought or bool(response)
                        await self._take(response, left)
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self.counts.streams -= opened
            self._open -= 1
            if not self._open:
                self._closed.set()
        return brought

    async def _take(self, response: Sequence[Received], left: list[str]) -> None:
        self.counts.pulled += len(response)
        for part in self._parts(response):
            size = sum(_size(delivery) for _, delivery in part)
            await self._room(len(part), size)
            if self._stopping.is_set():
                left += [ack for ack, _ in part]
            else:
                self._begin(part, size)

    def _parts(self, response: Sequence[Received]) -> Iterator[Sequence[Received]]:
        """A response, in parts of which the intake holds each: a hundred large messages may be more than it takes."""
        part: list[Received] = []
        size = 0
        for each in response:
            more = _size(each[1])
            if part and (len(part) == self._most or size + more > self._most_bytes):
                yield part
                part, size = [], 0
            part.append(each)
            size += more
        if part:
            yield part

    async def _room(self, messages: int, size: int) -> None:
        """Wait until there is room for messages, or a stop. Those too large when nothing else is out, the intake refuses."""
        while self._out_messages and (
            self._out_messages + messages > self._most or self._out_bytes + size > self._most_bytes
        ):
            if self._stopping.is_set():
                return
            self._freed.clear()
            await self._freed.wait()

    def _begin(self, messages: Sequence[Received], size: int) -> None:
        self._out_messages += len(messages)
        self._out_bytes += size
        waits: list[asyncio.Future[Outcome]] = []
        task = asyncio.create_task(self._handle(messages, size, waits), name="pulled")
        self._tasks[task] = waits
        task.add_done_callback(lambda done: self._handled(done, len(messages), size))

    def _handled(self, task: "asyncio.Task[None]", messages: int, size: int) -> None:
        del self._tasks[task]
        self._out_messages -= messages
        self._out_bytes -= size
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect(error)

    async def _handle(self, messages: Sequence[Received], size: int, waits: "list[asyncio.Future[Outcome]]") -> None:
        outcomes = await self._outcomes([delivery for _, delivery in messages], size, waits)
        done = [ack for (ack, _), outcome in zip(messages, outcomes, strict=True) if outcome is not None]
        refused = [ack for (ack, _), outcome in zip(messages, outcomes, strict=True) if outcome is None]
        if done and await self._acknowledgements.send(done):
            self.counts.acknowledged += len(done)
        if refused:
            await self._stopped_within(_PAUSE_SECONDS)
            await self._give_back(refused)

    async def _outcomes(
        self, deliveries: Sequence[Delivery], size: int, waits: "list[asyncio.Future[Outcome]]"
    ) -> list[Outcome | None]:
        """The outcome of each message once it is confirmed; None of one that is refused."""
        contents: list[Content | Problem] = []
        refusal: RequestError | None = None
        try:
            with self._intake.hold(len(deliveries)) as held:
                held.grow(size)
                for delivery in deliveries:
                    self._submit(held, delivery, contents, waits)
                await asyncio.wait(waits)
        except RequestError as error:
            refusal = error
        finally:
            for wait in waits:
                wait.cancel()
        outcomes = [self._outcome(wait) for wait in waits]
        for delivery, content, outcome in zip(deliveries, contents, outcomes, strict=False):
            if outcome is not None:
                self._heard(outcome, delivery.publish_time)
                note(delivery, content, outcome)
        if refusal is not None:
            self._refused(refusal, len(deliveries) - sum(wait.done() and not wait.cancelled() for wait in waits))
        return outcomes + [None] * (len(deliveries) - len(outcomes))

    def _submit(
        self,
        held: Held,
        delivery: Delivery,
        contents: list[Content | Problem],
        waits: "list[asyncio.Future[Outcome]]",
    ) -> None:
        """Hand one message on. One that meets a defect fails alone (INV-6), as it would by push."""
        try:
            content = self._catalog.read(delivery.data, delivery.attributes, delivery.publish_time)
            wait = self._intake.begin(held, delivery, content)
        except RequestError:
            raise
        except Exception as error:
            content, wait = Problem("defect", ""), asyncio.get_running_loop().create_future()
            wait.cancel()
            self._defect(error)
        contents.append(content)
        waits.append(wait)

    def _outcome(self, wait: "asyncio.Future[Outcome]") -> Outcome | None:
        if not wait.done() or wait.cancelled():
            return None
        error = wait.exception()
        if error is None:
            return wait.result()
        if isinstance(error, RequestError):
            self._refused(error)
        else:
            self._defect(error)
        return None

    def _refused(self, error: RequestError, messages: int = 1) -> None:
        for _ in range(messages):
            self._observer.refused(error)
        level = logging.DEBUG if isinstance(error, Refused) else logging.WARNING  # a refusal is logged where it is met
        log.log(level, "pulled messages are refused, and come again: %s", error, extra={"action": "pull.refused"})

    def _defect(self, error: BaseException) -> None:
        self._observer.broke()
        text = "pulled messages met a defect, and come again: %s"
        log.error(text, error, exc_info=error, extra={"action": "pull.broke"})

    def _complain(self, error: OSError, *, lasting: bool) -> None:
        """Say it once for all streams, and again every ten seconds."""
        about, now = str(error), asyncio.get_running_loop().time()
        if about == self._complained[0] and now - self._complained[1] < _REOPEN_MAX_SECONDS:
            return
        self._complained = about, now
        level = logging.ERROR if lasting else logging.WARNING
        log.log(level, "the subscription cannot be pulled: %s", error, extra={"action": "pull.retry"})

    async def _give_back(self, ids: Sequence[str]) -> None:
        if self._stopping.is_set():
            await self._closed.wait()  # of all streams: each that is open would bring it again at once
        if ids and await self._returns.send(ids):
            self.counts.given_back += len(ids)

    async def _stopped_within(self, seconds: float) -> None:
        """Wait so long, or until a stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class _Requests:
    """Sends ids, many in one request: those that come while requests are under way go together with the next.

    What is confirmed at once is so acknowledged in few requests, however few messages each response brought.
    """

    def __init__(self, call: Callable[[Sequence[str]], Awaitable[None]], *, attempts: int) -> None:
        self._call, self._attempts = call, attempts
        self._waiting: deque[tuple[Sequence[str], asyncio.Future[bool]]] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def send(self, ids: Sequence[str]) -> bool:
        """Send ids; whether they were taken. A refusal is logged, and not raised."""
        taken = asyncio.get_running_loop().create_future()
        answers = [taken]
        self._waiting.append((ids[:IDS_MAX], taken))
        for first in range(IDS_MAX, len(ids), IDS_MAX):
            answers.append(asyncio.get_running_loop().create_future())
            self._waiting.append((ids[first : first + IDS_MAX], answers[-1]))
        if len(self._senders) < _REQUESTS:
            self._senders.add(asyncio.create_task(self._send(), name="pub/sub request"))
        return all([await answer for answer in answers])

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._send_some()
        finally:
            # In the same step as the last look at what waits: what comes after it gets a sender of its own.
            self._senders.discard(asyncio.current_task())

    async def _send_some(self) -> None:
        ids: list[str] = []
        answers: list[asyncio.Future[bool]] = []
        while self._waiting and len(ids) + len(self._waiting[0][0]) <= IDS_MAX:
            some, taken = self._waiting.popleft()
            ids += some
            answers.append(taken)
        result = False
        try:
            result = await self._attempt(ids)
        finally:
            for taken in answers:
                if not taken.done():  # who waited may be cancelled
                    taken.set_result(result)

    async def _attempt(self, ids: Sequence[str]) -> bool:
        for attempt in range(1, self._attempts + 1):
            try:
                await self._call(ids)
            except OSError as error:
                if attempt < self._attempts:
                    await asyncio.sleep(attempt * _AGAIN_SECONDS)
                elif self._attempts > 1:
                    text = "%d acknowledgements were not taken; their messages come again, as duplicates: %s"
                    log.warning(text, len(ids), error, extra={"action": "pull.unacknowledged"})
            else:
                return True
        return False


class PubSub:
    """A subscription of Pub/Sub, or of its emulator where PUBSUB_EMULATOR_HOST names one.

    It calls the service's methods with its own messages, and not through Google's client: that would wrap each of them.

    Args:
        name: Its full name, projects/P/subscriptions/S.
        deadline_seconds: When a message that was not acknowledged is delivered again.
    """

    def __init__(self, name: str, *, deadline_seconds: float) -> None:
        self._name, self._deadline = name, round(deadline_seconds)
        self._client_id = str(uuid.uuid4())
        self._metadata = [("x-goog-request-params", f"subscription={name}")]
        self._channel: Any = None  # made on first use
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<PubSub {self._name}>"

    async def stream(self, *, messages: int, size: int) -> AsyncGenerator[Sequence[Received], None]:
        """See `Subscription.stream`."""
        channel = await self._opened()
        from google.pubsub_v1.types import pubsub

        request, response = pubsub.StreamingPullRequest.pb(), pubsub.StreamingPullResponse.pb()
        first = request(
            subscription=self._name,
            stream_ack_deadline_seconds=self._deadline,
            client_id=self._client_id,
            max_outstanding_messages=messages,
            max_outstanding_bytes=size,
        )
        call = channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(metadata=self._metadata)
        keeping: asyncio.Task[None] | None = None
        try:
            with _translated(self._name):
                with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already; reading says why
                    await call.write(first)
                # Not before: two writes at once are an error, and the first request must name the subscription.
                keeping = asyncio.create_task(_keep_alive(call, request()), name="keep-alive of a stream")
                yield ()
                async for each in call:
                    if each.received_messages:
                        yield [(one.ack_id, _delivery(one, self._name)) for one in each.received_messages]
        finally:
            if keeping is not None:
                keeping.cancel()
            call.cancel()

    async def acknowledge(self, ids: Sequence[str]) -> None:
        """See `Subscription.acknowledge`."""
        await self._opened()
        from google.pubsub_v1.types import pubsub

        await self._ask("Acknowledge", pubsub.AcknowledgeRequest.pb()(subscription=self._name, ack_ids=ids))

    async def give_back(self, ids: Sequence[str]) -> None:
        """See `Subscription.give_back`."""
        await self._opened()
        from google.pubsub_v1.types import pubsub

        request = pubsub.ModifyAckDeadlineRequest.pb()(subscription=self._name, ack_ids=ids, ack_deadline_seconds=0)
        await self._ask("ModifyAckDeadline", request)

    async def close(self) -> None:
        """See `Subscription.close`."""
        if self._channel is not None:
            await self._channel.close()

    async def _ask(self, method: str, request: Any) -> None:
        from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]  # google's stubs are a package of their own

        call = (await self._opened()).unary_unary(
            f"/google.pubsub.v1.Subscriber/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=Empty.FromString,
        )
        with _translated(self._name):
            await call(request, timeout=_REQUEST_SECONDS, metadata=self._metadata)

    async def _opened(self) -> Any:
        if self._channel is not None:
            return self._channel
        async with self._opening:
            if self._channel is None:
                credentials = await asyncio.to_thread(_credentials)  # imports for a second, and may ask a server
                self._channel = _channel(credentials)
            return self._channel


def _credentials() -> Any:
    """The process's own; None for the emulator, which wants none.

    Raises:
        OSError: There are none.
    """
    import google.auth
    from google.pubsub_v1.services.subscriber.transports import SubscriberTransport  # a second, here on a thread

    if os.environ.get("PUBSUB_EMULATOR_HOST"):
        return None
    try:
        return google.auth.default(scopes=SubscriberTransport.AUTH_SCOPES)[0]
    except google.auth.exceptions.GoogleAuthError as error:
        raise OSError(f"no credentials for Pub/Sub: {error}; attach a service account") from error


def _channel(credentials: Any) -> Any:
    if credentials is None:
        import grpc.aio  # type: ignore[import-untyped]  # google's stubs are a package of their own

        options = [("grpc.max_receive_message_length", -1), ("grpc.keepalive_time_ms", _PING_MILLISECONDS)]
        return grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"], options=options)
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

    return SubscriberGrpcAsyncIOTransport(credentials=credentials).grpc_channel  # with the same two options


async def _keep_alive(call: Any, empty: Any) -> None:
    with contextlib.suppress(Exception):  # the reader of the stream meets its end
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


def _size(delivery: Delivery) -> int:
    """The bytes that a message takes: its data and attributes, as a push's body would hold them."""
    if not delivery.attributes:
        return len(delivery.data)
    return len(delivery.data) + _characters(delivery.attributes) + _characters(delivery.attributes.values())


def _characters(texts: Iterable[str]) -> int:
    return sum(map(len, texts))


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
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
