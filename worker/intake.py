"""The intake: holds each request from the moment it is valid until it is answered, whatever state the instance is in.

Standing by (before the lease is held and the database restored) it holds: a refusal would slow the whole subscription
down. Serving, it hands over to the writer. Draining, it refuses, and lets what it holds come to its end.
What it holds is bounded in number and bytes, and no request is held longer than the hold limit (INV-7, INV-8).
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum

from publisher.message import UserCreated
from worker.envelope import Delivery
from worker.errors import Refused
from worker.group import Entry, Outcome
from worker.writer import Writer


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

    async def submit(self, delivery: Delivery, user: UserCreated) -> Outcome:
        """Hold a message until its outcome is confirmed.

        Raises:
            Refused: Full, draining, or not confirmed within the hold limit; the queue delivers it again.
            Unwritable: The database refused it.
        """
        size = len(delivery.data)
        if self.state is State.DRAINING:
            raise Refused("the service is stopping; the queue delivers this to the next one")
        if self.held_messages >= self._max_messages or self.held_bytes + size > self._max_bytes:
            raise Refused("as many messages are held as QUEUE_MAX_MESSAGES and QUEUE_MAX_BYTES allow")
        self.held_messages += 1
        self.held_bytes += size
        self._empty.clear()
        try:
            async with asyncio.timeout(self._hold_seconds) as held:
                return await self._outcome(delivery, user, held.when() or 0)
        except TimeoutError:
            raise Refused("not confirmed within HOLD_LIMIT_SECONDS; the queue delivers this again") from None
        finally:
            self.held_messages -= 1
            self.held_bytes -= size
            if not self.held_messages:
                self._empty.set()

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

    async def _outcome(self, delivery: Delivery, user: UserCreated, deadline: float) -> Outcome:
        if self.state is State.STANDBY:
            self._waiting()
        await self._changed.wait()
        if self._writer is None:
            raise Refused("the service stopped before it could serve; the queue delivers this to the next one")
        entry = Entry(delivery, user, deadline, asyncio.get_running_loop().create_future())
        self._writer.submit(entry)
        return await entry.done
