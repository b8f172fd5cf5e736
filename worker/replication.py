"""The acknowledgement: one confirmation for everything committed before it began (INV-1). This file alone decides it.

    committed ──> upload ──> verify ──> answered        each step has one request to the bucket, and takes turns with itself
                  group n+1  group n                    only: while the lease is read for one, the next is uploaded

A confirmation is two questions, in this order, both asked after the COMMITs have returned:

1. One Litestream sync. Its 200 proves nothing; `replicated_txid == txid > 0` does. If the replica is ahead of the
   database nothing is uploaded and the answer is still 200; if it is behind, ask again.
2. A read of the lease record, begun after that answer. If it still names this life, no other life can have restored
   before the data was there, because a life restores only after its name is in the record.

Only then are the senders answered. An answer that does not come is not a no: the questions are asked again until the
first sender's hold limit, then it is answered 503 and the queue delivers it again, to be absorbed by its receipt (INV-3).

Where something other than Litestream makes a commit safe, it takes the place of `LitestreamConfirmation`.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final, Protocol

from worker.background import plain
from worker.errors import LeaseLost, StoreUnavailable, SyncUnavailable, Unconfirmed
from worker.group import Group
from worker.observer import Observer
from worker.pace import Pace

_ASKED_AT_ONCE: Final = 3
"""A checkpoint of Litestream's may add a transaction between a sync's upload and its answer: asking again settles it."""
_RETRY_PAUSE_SECONDS: Final = 0.05
_RETRY_PAUSE_MAX_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class Confirmation(Protocol):
    """Says when everything committed so far is safe: when both have returned, one after the other."""

    async def upload(self) -> None:
        """Return once everything committed before this call is where it can be restored from.

        Raises:
            Unconfirmed: Not known; ask again.
        """

    async def verify(self) -> None:
        """Return if, after this call began, that place was still this process's own. The next upload may be under way.

        Raises:
            Unconfirmed: Not known; both must be asked again.
            LeaseLost: Never again for this process.
        """


class Position(Protocol):
    """Where a sync left things: the newest transaction in the database, and the newest one in the bucket."""

    @property
    def txid(self) -> int: ...  # noqa: D102  # said above

    @property
    def replicated_txid(self) -> int: ...  # noqa: D102  # said above


class Replica(Protocol):
    """What the confirmation needs of Litestream."""

    async def sync(self, *, timeout: int) -> Position:
        """Upload; where the database and the bucket are. `SyncUnavailable` when not known."""


class Ownership(Protocol):
    """What the confirmation needs of the lease."""

    async def verify(self) -> None:
        """Return only if the record, read now, still names us. `LeaseLost` or `StoreUnavailable` otherwise."""


class LitestreamConfirmation:
    """Safe is: in the bucket, on a path that is still ours."""

    def __init__(self, replica: Replica, lease: Ownership, *, sync_timeout: int) -> None:
        self._replica, self._lease, self._sync_timeout = replica, lease, sync_timeout

    async def upload(self) -> None:
        """See `Confirmation.upload`."""
        try:
            await self._sync()
        except SyncUnavailable as error:
            raise Unconfirmed(str(error)) from error

    async def verify(self) -> None:
        """See `Confirmation.verify`."""
        try:
            await self._lease.verify()
        except StoreUnavailable as error:
            raise Unconfirmed(str(error)) from error

    async def _sync(self) -> None:
        loop, timeout = asyncio.get_running_loop(), self._sync_timeout
        until = loop.time() + timeout
        for _ in range(_ASKED_AT_ONCE):
            position = await self._replica.sync(timeout=timeout)
            if position.replicated_txid == position.txid > 0:
                return
            timeout = int(until - loop.time())
            if timeout < 1:
                break
        raise Unconfirmed(f"the bucket is at transaction {position.replicated_txid}, not {position.txid}")


class Replicator:
    """Confirms committed groups and answers their senders. Only the event loop touches its state."""

    def __init__(self, confirmation: Confirmation, observer: Observer | None = None, pace: Pace | None = None) -> None:
        self._confirmation, self._observer, self._pace = confirmation, observer or Observer(), pace or Pace()
        self._groups: list[Group] = []  # committed, and not in an upload that is under way or has ended well
        self._uploading: list[Group] = []  # committed before the upload under way began
        self._verifying: list[Group] = []  # uploaded: the lease is being read for them
        self._wake = asyncio.Event()  # set while there are groups to upload
        self._settled = asyncio.Event()  # set while no group is unanswered
        self._settled.set()
        self._verified = asyncio.Event()  # set while no lease is being read
        self._verified.set()
        self._pause = _RETRY_PAUSE_SECONDS
        self._came = asyncio.Event()  # set when somebody has come back, or nobody can
        self._closed = 0  # above 0 while nobody who is answered can come back
        self.idle = asyncio.Event()  # set while no upload is under way or waited for
        self.idle.set()

    def __repr__(self) -> str:
        return f"<Replicator {'idle' if self.idle.is_set() else 'confirming'}, {len(self._unanswered)} groups unanswered>"

    async def __aenter__(self) -> "Replicator":
        return self

    async def __aexit__(self, *_: object) -> None:
        for group in self._unanswered:
            group.refuse("the service is stopping before this was confirmed; the queue delivers it again")
        self._groups, self._uploading, self._verifying = [], [], []

    @property
    def _unanswered(self) -> list[Group]:
        return self._verifying + self._uploading + self._groups

    def add(self, group: Group) -> None:
        """Take over a group whose COMMIT has returned."""
        self._groups.append(group)
        self._pace.came(len(group.entries), asyncio.get_running_loop().time())
        self._settled.clear()
        self._wake.set()
        self._came.set()

    async def settled(self) -> None:
        """Wait until no group is unanswered. Only meaningful while the writer is paused, so that nobody comes back."""
        self.drain()
        try:
            await self._settled.wait()
        finally:
            self._closed -= 1

    def drain(self) -> None:
        """Wait for nobody to come back any more: the service takes nothing."""
        self._closed += 1
        self._came.set()

    async def run(self) -> None:
        """Confirm and answer until cancelled.

        Raises:
            LeaseLost: Another instance owns the store; nothing unanswered will be acknowledged.
        """
        try:
            async with asyncio.TaskGroup() as steps:
                while True:
                    await self._wake.wait()
                    self.idle.clear()
                    try:
                        if not self._closed and self._pace.worth_waiting(_messages(self._verifying + self._groups)):
                            await self._gather()
                        if self._groups:  # the lease read may have failed meanwhile, and all of them may be given up
                            await self._upload(steps)
                    finally:
                        self.idle.set()
        except BaseExceptionGroup as failed:
            raise plain(failed, LeaseLost) from None

    async def _gather(self) -> None:
        await self._verified.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._pace.back_by):
                while not (self._pace.back or self._closed):
                    self._came.clear()
                    await self._came.wait()

    async def _upload(self, steps: asyncio.TaskGroup) -> None:
        # What comes in from here on is committed too late for this upload.
        self._uploading, self._groups = self._groups, []
        self._wake.clear()
        asked, loop = time.monotonic(), asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._confirmation.upload()
        except Unconfirmed as doubt:
            self._again(self._uploading)
            self._uploading = []
            await self._wait_out(doubt)
        else:
            self._pace.uploaded(loop.time() - began)
            await self._verified.wait()  # one lease read at a time, so answers come in order
            self._verifying, self._uploading = self._uploading, []
            self._verified.clear()
            steps.create_task(self._verify(asked), name="lease read")

    async def _verify(self, asked: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._confirmation.verify()
        except Unconfirmed as doubt:
            self._again(self._verifying)
            self._verifying = []
            await self._wait_out(doubt)
        else:
            for group in self._verifying:
                group.succeed()
            self._observer.acknowledged(self._verifying, asked)
            self._pace.answered(_messages(self._verifying), loop.time() - began, loop.time())
            self._verifying = []
            self._pause = _RETRY_PAUSE_SECONDS
            self._note_settled()
        finally:
            self._verified.set()

    def _again(self, groups: list[Group]) -> None:
        self._groups = groups + self._groups
        if self._groups:
            self._wake.set()

    async def _wait_out(self, doubt: Unconfirmed) -> None:
        log.warning("not confirmed yet: %s", doubt, extra={"action": "replication.retry"})
        self._observer.unconfirmed()
        self._give_up_overdue(doubt)
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _RETRY_PAUSE_MAX_SECONDS)

    def _note_settled(self) -> None:
        if not self._groups:
            self._wake.clear()
        if not self._unanswered:
            self._settled.set()

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
        self._note_settled()


def _messages(groups: list[Group]) -> int:
    return sum(len(group.entries) for group in groups)
