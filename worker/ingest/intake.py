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

from worker.errors import Refused
from worker.events.catalog import Content, Problem
from worker.ingest.bodies import BodyStore
from worker.ingest.messages import Change, Delivery, Entry, Outcome
from worker.ingest.transaction import Transaction
from worker.ingest.writer import Writer

T = TypeVar("T")


class State(StrEnum):
    """The state of an instance: it decides what happens to a request."""

    STANDBY = "standby"
    SERVING = "serving"
    DRAINING = "draining"


class Intake:
    """Only the event loop touches it."""

    def __init__(
        self,
        *,
        max_messages: int,
        max_bytes: int,
        hold_seconds: float,
        bodies: BodyStore,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.bodies = bodies
        self._waiting = waiting  # called for each message held while standing by
        self._max_messages, self._max_bytes, self._hold_seconds = max_messages, max_bytes, hold_seconds
        self._writer: Writer | None = None
        self._changed = asyncio.Event()  # set once, when standing by ends
        self._empty = asyncio.Event()
        self._empty.set()
        self._in_time: dict[Held, None] = {}  # what is held and not overdue, oldest first
        self._timer: asyncio.TimerHandle | None = None  # for the oldest: one for all costs less than one for each
        self.state = State.STANDBY
        self.held_messages = 0
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Intake {self.state}, holding {self.held_messages} messages in {self.held_bytes} bytes>"

    def hold(self, messages: int = 1) -> "Held":
        """A request's place, from before its body is read until it is answered: `with intake.hold() as held`.

        Entering it raises `Refused` when the service is draining or full; so does the block's end past the hold limit.
        `messages` is how many the request holds.
        """
        return Held(self, messages)

    async def submit(self, held: "Held", delivery: Delivery, content: Content | Problem) -> Outcome:
        """Wait until a message's outcome is confirmed.

        Raises:
            Refused: Draining, or not confirmed for a reason that passes; the queue delivers it again.
            Unwritable: The database refused to keep it in any way.
        """
        if self.state is State.STANDBY:
            self.routed()
            await self._changed.wait()
        if len(delivery.data) <= self.bodies.row_bytes_max:
            return await self._written(held, delivery, content, None)
        self._serving_writer()
        async with self.bodies.kept(delivery.data) as body:
            return await self._written(held, delivery, content, body)

    def begin(self, held: "Held", delivery: Delivery, content: Content | Problem) -> "asyncio.Future[Outcome]":
        """Hand a message on; its outcome once that is confirmed, or the error that `submit` would raise.

        Raises:
            Refused: The service does not serve.
        """
        writer = self._serving_writer()
        if len(delivery.data) > self.bodies.row_bytes_max:
            return asyncio.ensure_future(self.submit(held, delivery, content))
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        writer.submit(Entry(delivery, content, held.deadline, done))
        return done

    async def _written(self, held: "Held", delivery: Delivery, content: Content | Problem, body: str | None) -> Outcome:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._serving_writer().submit(Entry(delivery, content, held.deadline, done, body))
        return await done

    def _serving_writer(self) -> Writer:
        if self._writer is None:
            raise Refused(
                "the service stopped before it could serve; the queue delivers this to the next one", reason="stopping"
            )
        if self.state is State.DRAINING:  # since its place was taken; the writer may be closed by now
            raise Refused("the service is stopping; the queue delivers this to the next one", reason="stopping")
        return self._writer

    def routed(self) -> None:
        """Note that a request of any kind has come: while standing by, it is the proof that traffic is routed here."""
        if self.state is State.STANDBY:
            self._waiting()

    async def change(self, apply: Callable[[Transaction], T], *, alone: bool = False) -> T:
        """Make a change in a transaction of its own; its result, once that is confirmed. It takes a place like a push.

        Args:
            apply: Makes it. It may be called again, where another writer was faster.
            alone: No other writer's transaction may run beside it.

        Raises:
            Refused: Not serving, or not confirmed for a reason that passes; ask again.
            RequestError: What `apply` raised; nothing was changed.
        """
        with self.hold() as held:
            if self._writer is None or self.state is not State.SERVING:
                raise Refused("this instance is not serving; ask again", reason="standby")
            done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._writer.submit(Change(apply, held.deadline, done, alone))
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

    def take_place(self, held: "Held") -> float:
        """Count a request's messages; when it must be answered, on the event loop's clock. Only `Held` calls this.

        Raises:
            Refused: Draining, or QUEUE_MAX_MESSAGES are held.
        """
        if self.state is State.DRAINING:
            raise Refused("the service is stopping; the queue delivers this to the next one", reason="stopping")
        if self.held_messages + held.messages > self._max_messages:
            raise Refused("as many messages are held as QUEUE_MAX_MESSAGES allows", reason="full")
        if not self.held_messages:
            self._empty.clear()
        self.held_messages += held.messages
        self._in_time[held] = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._hold_seconds
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._end_overdue)
        return deadline

    def take_bytes(self, size: int) -> None:
        """Count `size` more bytes. Only `Held` calls this.

        Raises:
            Refused: That would be over QUEUE_MAX_BYTES.
        """
        if self.held_bytes + size > self._max_bytes:
            raise Refused("as many bytes are held as QUEUE_MAX_BYTES allows", reason="full")
        self.held_bytes += size

    def give_back(self, held: "Held", size: int) -> None:
        """Count a request's messages and bytes less. Only `Held` calls this."""
        self._in_time.pop(held, None)
        self.held_messages -= held.messages
        self.held_bytes -= size
        if not self.held_messages:
            self._empty.set()

    def _end_overdue(self) -> None:
        """End what has reached the hold limit; come back when the oldest of the rest does."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._in_time:
            oldest = next(iter(self._in_time))
            if oldest.deadline > loop.time():
                self._timer = loop.call_at(oldest.deadline, self._end_overdue)
                return
            del self._in_time[oldest]
            oldest.end()


class Held:
    """One request's share of what the intake may hold.

    Past the hold limit its task is cancelled and the block's end says `Refused` instead, as asyncio.timeout does it.
    """

    __slots__ = ("_cancelling", "_intake", "_overdue", "_size", "_task", "deadline", "messages")

    def __init__(self, intake: Intake, messages: int) -> None:
        self._intake = intake
        self.messages = messages
        """How many it holds."""
        self._size = 0
        self._overdue = False
        self.deadline = 0.0
        """When it must be answered, on the event loop's clock."""

    def grow(self, size: int) -> None:
        """Take `size` more bytes, before they are read.

        Raises:
            Refused: There is no room for them.
        """
        self._intake.take_bytes(size)
        self._size += size

    def end(self) -> None:
        """Let the request go unanswered by what it waits for. Only the intake calls this, at the deadline."""
        self._overdue = True
        self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a request is handled in a task"
        self._task, self._cancelling = task, task.cancelling()
        self.deadline = self._intake.take_place(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._intake.give_back(self, self._size)
        # Another caller may have cancelled as well; that cancellation is not ours to end.
        if self._overdue and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            text = "not confirmed in time; the queue delivers this again"
            raise Refused(text, reason="hold_limit") from None
