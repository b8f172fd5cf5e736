"""The acknowledgement: one confirmation for everything committed before it began (INV-1). This file alone decides it.

    committed ──> Litestream makes a file of it ──> the gate creates its slot in the bucket ──> answered
    group n+1     group n

A confirmation asks Litestream, after the COMMITs have returned, to make everything committed a file and to upload it. Its
answer proves nothing but the number of that file, a transaction. The senders are answered when the gate has *stored* every
slot up to that transaction: created where there was none, or found there with the bytes that were sent. Another life that
takes over creates the slot after the last one it restored; from then on this life can store no further slot, and so
acknowledges nothing that the other has not restored (docs/guarantees.md). No lease is read.

An answer that does not come is not a no: it is asked again until the first sender's hold limit, then the sender is answered
503 and the queue delivers the message again, to be absorbed by its receipt (INV-3). A group remembers the transaction that
it is known to be in, so that a bucket that takes longer for one upload than a confirmation waits still has every group
confirmed.

Where something other than Litestream makes a commit safe, it takes the place of `Generation` as a `Confirmation`.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final, Protocol

from worker.errors import Unconfirmed
from worker.ingest.messages import Group, Observer
from worker.ingest.upload_timing import Pace

_RETRY_PAUSE_SECONDS: Final = 0.05
_RETRY_PAUSE_MAX_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class Confirmation(Protocol):
    """Says when what is committed is safe."""

    async def confirm(self) -> None:
        """Return once everything committed before this call is where it can be restored from.

        Raises:
            Unconfirmed: Not known; ask again. It says how far that is known.
            LeaseLost: Never again for this process.
        """

    @property
    def ready_at(self) -> float:
        """When the next confirmation may begin, on the event loop's clock: it would wait until then with what it has."""


class Replicator:
    """Confirms committed groups and answers their senders. Only the event loop touches its state."""

    def __init__(
        self,
        confirmation: Confirmation,
        observer: Observer | None = None,
        pace: Pace | None = None,
        *,
        max_messages: int = 2000,
        max_bytes: int = 64_000_000,
    ) -> None:
        self._confirmation, self._observer, self._pace = confirmation, observer or Observer(), pace or Pace()
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._messages = self._bytes = 0  # committed and not confirmed, answered 503 or not
        self._room = asyncio.Event()  # set while these are below their bounds
        self._room.set()
        self._groups: list[Group] = []  # committed, and not in the confirmation under way
        self._confirming: list[Group] = []  # committed before the confirmation under way began
        self._wake = asyncio.Event()  # set while there are groups to confirm
        self._pause = _RETRY_PAUSE_SECONDS
        self._added = asyncio.Event()  # set when a group is added, or batching is stopped
        self._batching = True
        self.idle = asyncio.Event()  # set while no confirmation is under way or waited for
        self.idle.set()

    def __repr__(self) -> str:
        return f"<Replicator {'idle' if self.idle.is_set() else 'confirming'}, {len(self._unanswered)} groups unanswered>"

    async def __aenter__(self) -> "Replicator":
        return self

    async def __aexit__(self, *_: object) -> None:
        for group in self._unanswered:
            group.refuse("the service is stopping before this was confirmed; the queue delivers it again")
        self._groups, self._confirming = [], []

    @property
    def _unanswered(self) -> list[Group]:
        return self._confirming + self._groups

    def add(self, group: Group) -> None:
        """Take over a group whose COMMIT has returned."""
        self._groups.append(group)
        self._count([group], 1)
        self._pace.came(len(group.entries), asyncio.get_running_loop().time())
        self._wake.set()
        self._added.set()

    async def room(self) -> None:
        """Wait until one more group may be committed.

        What is committed and not confirmed is bounded (INV-7), or an outage of the bucket would fill the disk.
        """
        await self._room.wait()

    def stop_batching(self) -> None:
        """From now on confirm at once: the service drains, and no new messages will arrive."""
        self._batching = False
        self._added.set()

    async def run(self) -> None:
        """Confirm and answer until cancelled.

        Raises:
            LeaseLost: Another instance owns the store; nothing unanswered will be acknowledged.
        """
        while True:
            await self._wake.wait()
            self.idle.clear()
            try:
                await self._gather()
                await self._confirm()
            finally:
                self.idle.set()

    async def _gather(self) -> None:
        """Wait for the messages of those just answered, or until a confirmation may begin, whichever is later."""
        loop = asyncio.get_running_loop()
        ready_at = self._confirmation.ready_at
        while self._batching:
            until = max(ready_at, self._pace.back_by if self._pace.worth_waiting else 0.0)
            if loop.time() >= until:
                break
            self._added.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._added.wait()

    async def _confirm(self) -> None:
        # What comes in from here on is committed too late for this confirmation.
        self._confirming, self._groups = self._groups, []
        self._wake.clear()
        asked, loop = time.monotonic(), asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._confirmation.confirm()
        except Unconfirmed as doubt:
            self._answer([group for group in self._confirming if group.is_in(doubt.committed_in, doubt.stored)], asked)
            self._groups, self._confirming = self._confirming + self._groups, []
            self._wake.set()
            await self._wait_out(doubt)
        else:
            self._pace.uploaded(loop.time() - began)
            count = sum(len(group.entries) for group in self._confirming)
            self._answer(self._confirming, asked)
            self._messages = self._bytes = 0
            self._count(self._groups, 1)  # and what was answered 503 is confirmed as well
            self._pace.answered(count, loop.time())
            self._pause = _RETRY_PAUSE_SECONDS

    def _answer(self, groups: list[Group], asked: float) -> None:
        if not groups:
            return
        for group in groups:
            group.succeed()
        self._observer.acknowledged(groups, asked)
        self._count(groups, -1)
        self._confirming = [group for group in self._confirming if group not in groups]

    async def _wait_out(self, doubt: Unconfirmed) -> None:
        log.warning("not confirmed yet: %s", doubt, extra={"action": "replication.retry"})
        self._observer.unconfirmed()
        self._give_up_overdue(doubt)
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _RETRY_PAUSE_MAX_SECONDS)

    def _give_up_overdue(self, doubt: Unconfirmed) -> None:
        now = asyncio.get_running_loop().time()
        for group in [group for group in self._groups if group.deadline <= now]:
            group.refuse("the bucket cannot be reached; the queue delivers this again")
            self._groups.remove(group)
            self._observer.gave_up(group)
            log.error(
                "%d messages were not confirmed within the hold limit: %s",
                len(group.entries),
                doubt,
                extra={"action": "replication.gave_up"},
            )

    def _count(self, groups: list[Group], sign: int) -> None:
        self._messages += sign * sum(len(group.entries) for group in groups)
        self._bytes += sign * sum(group.bytes for group in groups)
        if self._messages < self._max_messages and self._bytes < self._max_bytes:
            self._room.set()
        else:
            self._room.clear()
