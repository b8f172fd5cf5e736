"""The acknowledgement: one confirmation for everything committed before it began (INV-1). This file alone decides it.

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
import logging
import time
from typing import Final, Protocol

from worker.errors import StoreUnavailable, SyncUnavailable, Unconfirmed
from worker.group import Group
from worker.observer import Observer

_ASKED_AT_ONCE: Final = 3
"""Litestream's own monitor may add a transaction between a sync's upload and its answer: asking again settles it."""
_RETRY_PAUSE_SECONDS: Final = 0.05
_RETRY_PAUSE_MAX_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class Confirmation(Protocol):
    """Says when everything committed so far is safe."""

    async def confirm(self) -> None:
        """Return once everything committed before this call is safe.

        Raises:
            Unconfirmed: Not known; ask again.
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

    async def confirm(self) -> None:
        """See `Confirmation.confirm`."""
        try:
            await self._sync()
            await self._lease.verify()
        except (SyncUnavailable, StoreUnavailable) as error:
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

    def __init__(self, confirmation: Confirmation, observer: Observer | None = None) -> None:
        self._confirmation, self._observer = confirmation, observer or Observer()
        self._groups: list[Group] = []  # committed, not yet answered
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()  # set while `_groups` is empty
        self._settled.set()
        self.idle = asyncio.Event()  # set while no confirmation is under way
        self.idle.set()

    def __repr__(self) -> str:
        return f"<Replicator {'idle' if self.idle.is_set() else 'confirming'}, {len(self._groups)} groups unanswered>"

    async def __aenter__(self) -> "Replicator":
        return self

    async def __aexit__(self, *_: object) -> None:
        for group in self._groups:
            group.refuse("the service is stopping before this was confirmed; the queue delivers it again")
        self._groups.clear()

    def add(self, group: Group) -> None:
        """Take over a group whose COMMIT has returned."""
        self._groups.append(group)
        self._settled.clear()
        self._wake.set()

    async def settled(self) -> None:
        """Wait until no group is unanswered. Only meaningful while the writer is paused."""
        await self._settled.wait()

    async def run(self) -> None:
        """Confirm and answer until cancelled.

        Raises:
            LeaseLost: Another instance owns the store; nothing unanswered will be acknowledged.
        """
        pause = _RETRY_PAUSE_SECONDS
        while True:
            await self._wake.wait()
            covered = list(self._groups)  # what comes in from here on is committed too late for this confirmation
            self.idle.clear()
            asked = time.monotonic()
            try:
                await self._confirmation.confirm()
            except Unconfirmed as doubt:
                log.warning("not confirmed yet: %s", doubt, extra={"action": "replication.retry"})
                self._observer.unconfirmed()
                self._give_up_overdue(doubt)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_PAUSE_MAX_SECONDS)
            else:
                pause = _RETRY_PAUSE_SECONDS
                self._groups = self._groups[len(covered) :]
                for group in covered:
                    group.succeed()
                self._observer.acknowledged(covered, asked)
            finally:
                self.idle.set()
            if not self._groups:
                self._wake.clear()
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
