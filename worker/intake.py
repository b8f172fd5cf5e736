"""The intake: holds each push from before its body is read until it is answered, whatever state the instance is in.

Standing by (before the lease is held and the database restored) it holds: a refusal would slow the whole subscription
down. Serving, it hands over to the writer. Draining, it refuses, and lets what it holds come to its end.
What it holds is bounded in number and bytes, and no request is held longer than the hold limit (INV-7, INV-8).
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Self, TypeVar

from publisher.message import UserCreated
from worker.envelope import Delivery
from worker.errors import Refused
from worker.group import Change, Entry, Outcome, Problem
from worker.transaction import Transaction
from worker.writer import Writer

T = TypeVar("T")


class State(StrEnum):
    """What the instance does with a request now."""

    STANDBY = "standby"
    SERVING = "serving"
    DRAINING = "draining"


class Intake:
    """Only the event loop touches it."""

    def __init__(
        self, *, max_messages: int, max_bytes: int, hold_seconds: float, waiting: Callable[[], None] = lambda: None
    ) -> None:
        self._waiting = waiting  # called for each message held while standing by
        self._max_messages, self._max_bytes, self._hold_seconds = max_messages, max_bytes, hold_seconds
        self._writer: Writer | None = None
        self._changed = asyncio.Event()  # set once, when standing by ends
        self._empty = asyncio.Event()
        self._empty.set()
        self.state = State.STANDBY
        self.held_messages = 0
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Intake {self.state}, holding {self.held_messages} messages in {self.held_bytes} bytes>"

    def hold(self) -> "Held":
        """A request's place, from before its body is read until it is answered: `async with intake.hold() as held`.

        Entering raises `Refused` when the service is draining or full; so does the block's end past the hold limit.
        """
        return Held(self)

    async def submit(self, held: "Held", delivery: Delivery, content: UserCreated | Problem) -> Outcome:
        """Wait until a message's outcome is confirmed.

        Raises:
            Refused: Draining, or not confirmed for a reason that passes; the queue delivers it again.
            Unwritable: The database refused to keep it in any way.
        """
        if self.state is State.STANDBY:
            self._waiting()
        await self._changed.wait()
        if self._writer is None:
            raise Refused(
                "the service stopped before it could serve; the queue delivers this to the next one", reason="stopping"
            )
        if self.state is State.DRAINING:  # since its place was taken; the writer may be closed by now
            raise Refused("the service is stopping; the queue delivers this to the next one", reason="stopping")
        entry = Entry(delivery, content, held.deadline, asyncio.get_running_loop().create_future())
        self._writer.submit(entry)
        return await entry.done

    async def change(self, apply: Callable[[Transaction], T]) -> T:
        """Make a change in a transaction of its own; its result, once that is confirmed. It takes a place like a push.

        Raises:
            Refused: Not serving, or not confirmed for a reason that passes; ask again.
            RequestError: What `apply` raised; nothing was changed.
        """
        async with self.hold() as held:
            if self._writer is None or self.state is not State.SERVING:
                raise Refused("this instance is not serving; ask again", reason="standby")
            done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._writer.submit(Change(apply, held.deadline, done))
            return await done

    def serve(self, writer: Writer) -> None:
        """Hand what is held, and what comes, to the writer."""
        self._writer = writer
        self.state = State.SERVING
        self._changed.set()

    def drain(self) -> None:
        """Take nothing more; `emptied` tells when what is held has been answered."""
        self.state = State.DRAINING
        self._changed.set()

    async def emptied(self, *, timeout: float) -> bool:
        """Whether everything held was answered within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def take_place(self) -> asyncio.Timeout:
        """Count one more request; its time limit. Only `Held` calls this.

        Raises:
            Refused: Draining, or QUEUE_MAX_MESSAGES are held.
        """
        if self.state is State.DRAINING:
            raise Refused("the service is stopping; the queue delivers this to the next one", reason="stopping")
        if self.held_messages >= self._max_messages:
            raise Refused("as many messages are held as QUEUE_MAX_MESSAGES allows", reason="full")
        self.held_messages += 1
        self._empty.clear()
        return asyncio.timeout(self._hold_seconds)

    def take_bytes(self, size: int) -> None:
        """Count `size` more bytes. Only `Held` calls this.

        Raises:
            Refused: That would be over QUEUE_MAX_BYTES.
        """
        if self.held_bytes + size > self._max_bytes:
            raise Refused("as many bytes are held as QUEUE_MAX_BYTES allows", reason="full")
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        """Count one request and its bytes less. Only `Held` calls this."""
        self.held_messages -= 1
        self.held_bytes -= size
        if not self.held_messages:
            self._empty.set()


class Held:
    """One request's share of what the intake may hold."""

    __slots__ = ("_intake", "_limit", "_size")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._size = 0

    @property
    def deadline(self) -> float:
        """When it must be answered, on the event loop's clock."""
        return self._limit.when() or 0.0

    def grow(self, size: int) -> None:
        """Take `size` more bytes, before they are read.

        Raises:
            Refused: There is no room for them.
        """
        self._intake.take_bytes(size)
        self._size += size

    async def __aenter__(self) -> Self:
        self._limit = self._intake.take_place()
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._intake.give_back(self._size)
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            text = "not confirmed within HOLD_LIMIT_SECONDS; the queue delivers this again"
            raise Refused(text, reason="hold_limit") from None
