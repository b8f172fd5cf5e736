"""Delivers messages to a worker as a push subscription would, for machines without any Pub/Sub.

Same envelope, same acknowledging answers, same pauses; a message keeps its id in every attempt. Two things
differ from Pub/Sub: one message's refusal does not slow the others down, and attempts end, because a person is
waiting for the outcome.

All deliveries run on an event loop in a thread of its own.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from http import HTTPStatus
from threading import BoundedSemaphore, Thread
from typing import Final, NamedTuple, Self

import aiohttp

from publisher import values
from publisher.errors import (
    DeliveryError,
    NotPermittedError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from publisher.message import Message, envelope
from publisher.settings import PUSH_SUBSCRIPTION, PushLimits
from publisher.sink import OpenFutures, settle

ACKNOWLEDGED: Final = frozenset({102, 200, 201, 202, 204})
"""The HTTP statuses Pub/Sub takes for an acknowledgement."""
WORTH_REPEATING: Final = frozenset({408, 425, 429})
"""The 4xx statuses that speak of the moment and not of the message."""
MAX_ERROR_TEXT_BYTES: Final = 500
"""How much of a refusal's body an error quotes, in bytes."""
_THREAD_STOP_SECONDS: Final = 5.0


class _Failure(NamedTuple):
    """Why one attempt failed; `final` when repeating it would not help."""

    error: DeliveryError
    final: bool = False


class Backoff:
    """Doubling pauses between attempts, up to a limit, until the time is up.

    Args:
        limits: the pauses and the time for all attempts, in seconds.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, limits: PushLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._next = limits.backoff_initial
        self._maximum = limits.backoff_maximum
        self._clock = clock
        self._deadline = clock() + limits.give_up_after

    def pause(self) -> float | None:
        """Return how long to wait before the next attempt, in seconds, or None when the time is up."""
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            return None
        delay = min(self._next, remaining)
        self._next = min(self._next * 2, self._maximum)
        return delay


class PushTarget:
    """A `Sink` that POSTs each message to a worker.

    Args:
        url: where the worker listens; http or https.
        limits: bounds of attempts and of what is in flight.
        subscription: the subscription named in the envelope, `projects/P/subscriptions/S`.

    Raises:
        UsageError: url is not an HTTP address.
    """

    def __init__(self, url: str, limits: PushLimits | None = None, subscription: str = PUSH_SUBSCRIPTION) -> None:
        self._url = _checked(url)
        self._limits = limits or PushLimits()
        self._subscription = subscription
        self._open = OpenFutures()
        self._slots = BoundedSemaphore(self._limits.in_flight)
        self._closed = False  # only the thread that owns the target touches this
        self._tasks: set[asyncio.Task[None]] = set()  # only the event loop touches this
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = Thread(target=self._main, name="push-target", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<PushTarget {self._url}: {len(self._open)} in flight>"

    @property
    def capacity(self) -> int:
        """How many messages may be in flight before `publish` blocks."""
        return self._limits.in_flight

    @property
    def patience(self) -> float:
        """Seconds after which every future is settled: the last attempt may begin at the last moment."""
        return self._limits.give_up_after + self._limits.attempt

    def publish(self, message: Message) -> Future[str]:
        """Deliver one message; see `Sink.publish`."""
        if self._closed:
            raise RuntimeError("publish on a closed PushTarget")
        message_id = uuid.uuid4().hex
        body = envelope(message.data, message.attributes, message_id, datetime.now(UTC), self._subscription)
        self._slots.acquire()
        future = self._open.new()
        future.add_done_callback(lambda _: self._slots.release())
        self._loop.call_soon_threadsafe(self._begin, body, message_id, future)
        return future

    def close(self, timeout: float | None = None) -> None:
        """Wait for the answers, then stop; see `Sink.close`."""
        if self._closed:
            return
        self._closed = True
        self._open.abandon(self.patience if timeout is None else timeout)
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_THREAD_STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(timeout=None if kind is None else 0.0)

    def _main(self) -> None:
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        # Environment proxies would stand between this machine and a worker on it.
        connector = aiohttp.TCPConnector(limit=self._limits.in_flight)
        untimed = aiohttp.ClientTimeout(total=None, sock_connect=None)  # each attempt has its own
        cookies = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(
            connector=connector, timeout=untimed, trust_env=False, cookie_jar=cookies
        ) as self._http:
            await self._stop.wait()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, body: bytes, message_id: str, future: Future[str]) -> None:
        task = self._loop.create_task(self._deliver(body, message_id, future))
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, future))

    def _ended(self, task: asyncio.Task[None], future: Future[str]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            settle(future, bug)

    async def _deliver(self, body: bytes, message_id: str, future: Future[str]) -> None:
        backoff = Backoff(self._limits)
        attempts = 0
        while (failure := await self._attempt(body)) is not None:
            attempts += 1
            hopeless = failure.final and attempts >= self._limits.refusals
            pause = None if hopeless else backoff.pause()
            if pause is None:
                settle(future, failure.error)
                return
            await asyncio.sleep(pause)
        settle(future, message_id)

    async def _attempt(self, body: bytes) -> _Failure | None:
        seconds = self._limits.attempt
        try:
            async with asyncio.timeout(seconds):
                return await self._post(body)
        except TimeoutError:
            what = f"did not answer within {seconds:g} s: look at the worker's log"
        except (aiohttp.ClientError, OSError) as error:
            what = f"gave no answer: check that a worker runs there ({type(error).__name__}: {error})"
        return _Failure(UnreachableError(f"{self._url} {what}"))

    async def _post(self, body: bytes) -> _Failure | None:
        headers = {"content-type": "application/json"}
        async with self._http.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
            if response.status in ACKNOWLEDGED:
                await response.read()  # or the connection could not be used again
                return None
            answer = f"{self._url} answered {response.status} ({await _beginning(response)})"
            return _judge(response.status, answer)


def _judge(status: int, answer: str) -> _Failure:
    if status in WORTH_REPEATING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _Failure(UnreachableError(f"{answer} until the time was up: look at the worker's log"))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = "it asks for a token, which --push-to does not send: publish through Pub/Sub"
        return _Failure(NotPermittedError(f"{answer}: {hint}"), final=True)
    if status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ):
        return _Failure(RefusedError(answer), final=True)
    return _Failure(UnreachableError(f"{answer}: is that the worker's address?"), final=True)


async def _beginning(response: aiohttp.ClientResponse) -> str:
    text = b""
    async for chunk in response.content.iter_any():
        text += chunk
        if len(text) >= MAX_ERROR_TEXT_BYTES:
            break
    return text[:MAX_ERROR_TEXT_BYTES].decode(errors="replace").strip() or "no text"


def _checked(url: str) -> str:
    try:
        return values.address(url)
    except values.Wrong as error:
        raise UsageError(f"{url!r} is no address to push to: it {error}; give http://HOST:PORT/") from None
