"""A `Sink` for an event loop: what is in flight is bounded, publishing never blocks the loop, and an end waits for it."""

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from publisher.errors import BusyError, NotConfirmedError
from publisher.message import Message
from publisher.settings import GatewayLimits
from publisher.sink import Sink


class AsyncSink:
    """Publishes through a `Sink` from an event loop; only that loop touches it.

    Args:
        sink: where messages go; it stays the caller's to close.
        limits: bounds of what is in flight and of the waiting.

    Attributes:
        draining: nothing more is taken.
        in_flight: messages taken and not settled.
        in_flight_bytes: bytes of their bodies.
    """

    def __init__(self, sink: Sink, limits: GatewayLimits) -> None:
        self._sink = sink
        self._limits = limits
        # One thread: a publish that blocks for flow control would block on any other thread as well.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._tasks: set[asyncio.Task[str]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        self.in_flight = 0
        self.in_flight_bytes = 0

    def __repr__(self) -> str:
        return f"<AsyncSink: {self.in_flight} in flight, {self.in_flight_bytes} bytes>"

    def place(self) -> "Place":
        """Return one message's place, to be taken before its body is read: `with sink.place() as place`.

        Raises:
            BusyError: it is draining, or full.
        """
        if self.draining:
            raise BusyError("the gateway is stopping; send this again")
        if self.in_flight >= self._limits.in_flight:
            raise BusyError(f"{self._limits.in_flight} messages are in flight, which is the limit; send this again")
        self.in_flight += 1
        self._empty.clear()
        return Place(self)

    async def publish(self, place: "Place", message: Message) -> str:
        """Send one message; its place is given back when its outcome is known, not when the caller stops waiting.

        Returns:
            The accepted message's id.

        Raises:
            MessageError: it breaks the format, or is too large.
            DeliveryError: it was not accepted.
            NotConfirmedError: it has no outcome yet after `answer_seconds`, or the sink was closed.
        """
        task = asyncio.create_task(self._settled(message), name="publish")
        self._tasks.add(task)
        place.publishing = True
        task.add_done_callback(lambda ended: self._ended(ended, place))
        # Neither this wait's end nor the caller's cancels the task: what has been sent cannot be called back.
        await asyncio.wait({task}, timeout=self._limits.answer_seconds)
        if not task.done():
            raise NotConfirmedError(
                f"no outcome within {self._limits.answer_seconds:g} s, and it may have been accepted: "
                "look at the network and at Pub/Sub's status"
            )
        if task.cancelled():
            raise NotConfirmedError("the gateway stopped before Pub/Sub answered; it may have been accepted")
        return task.result()

    async def emptied(self, timeout: float) -> bool:
        """Take nothing more, and return whether all that was in flight is settled within `timeout` seconds."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Give up on what is in flight: it fails with `NotConfirmedError`."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _settled(self, message: Message) -> str:
        loop = asyncio.get_running_loop()
        publish = contextvars.copy_context().run  # a trace that is continued goes with it to the other thread
        return await asyncio.wrap_future(await loop.run_in_executor(self._thread, publish, self._sink.publish, message))

    def _ended(self, task: asyncio.Task[str], place: "Place") -> None:
        self._tasks.discard(task)
        place.give_back()
        if not task.cancelled():
            task.exception()  # or asyncio would log it, if no caller waits for it any more

    def take_bytes(self, size: int) -> None:
        """Count `size` more bytes. Only `Place` calls this.

        Raises:
            BusyError: that would be over the limit.
        """
        if self.in_flight_bytes + size > self._limits.in_flight_bytes:
            raise BusyError(f"{self._limits.in_flight_bytes} bytes are in flight, which is the limit; send this again")
        self.in_flight_bytes += size

    def give_back(self, size: int) -> None:
        """Count one message and its bytes less. Only `Place` calls this."""
        self.in_flight -= 1
        self.in_flight_bytes -= size
        if not self.in_flight:
            self._empty.set()


class Place:
    """One message's share of what may be in flight: the block's, and from `AsyncSink.publish` on the message's own.

    Attributes:
        publishing: the message is on its way, so the block's end does not give the place back.
    """

    __slots__ = ("_owner", "_size", "publishing")

    def __init__(self, owner: AsyncSink) -> None:
        self._owner = owner
        self._size = 0
        self.publishing = False

    def grow(self, size: int) -> None:
        """Take `size` more bytes.

        Raises:
            BusyError: there is no room for them.
        """
        self._owner.take_bytes(size)
        self._size += size

    def give_back(self) -> None:
        """Free it."""
        self._owner.give_back(self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.publishing:
            self.give_back()
