"""Trouble: why this process stalls, taken from what it logs, so that `GET /status` can say it.

A stall is logged again and again while it lasts. So an entry begins with the first line of its action, counts the lines that
follow, and ends when none has come for a while, or when a confirmation came after the last one: what is confirmed went all
the way to the bucket.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

_TEXT_MAX: Final = 1000
"""Characters that are kept of a line: a cause is in its first sentences."""

STALLS: Final[Mapping[str, float]] = {
    "disk.full": 30,
    "writer.outage": 30,
    "writer.refused": 60,
    "litestream.hung": 60,
    "litestream.died": 60,
    "litestream.restart": 60,
    "replication.gave_up": 60,
    "replication.retry": 30,  # an attempt takes SYNC_TIMEOUT_SECONDS, and a second's pause
    "generation.retry": 150,  # an attempt takes as long as FIRST_SYNC_TIMEOUT_SECONDS
    "lease.retry": 30,  # LEASE_RENEW_SECONDS, and a request that is timed out
    "body.unstored": 60,
    "sender.certificates_retry": 90,  # the pause grows to a minute
}
"""The actions that are a stall, the gravest first, each with the seconds after its last line at which it is over."""

ENDED_BY_CONFIRMATION: Final = frozenset(STALLS) - {"lease.retry", "body.unstored", "sender.certificates_retry"}
"""The stalls that hold up confirmations."""


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """One reason: the log action, its latest text, when it began, and how many lines of it there were."""

    action: str
    text: str
    since: datetime
    count: int


@dataclass(slots=True)
class _Entry:
    text: str
    since: float  # of the wall clock
    last: float  # of the monotonic clock
    count: int


class Trouble(logging.Handler):
    """Collects the stalls. The handler's own lock guards the entries: any thread may log.

    Args:
        clock: Monotonic seconds, of the same clock as the confirmations' times.
        wall_clock: Seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time) -> None:
        super().__init__(logging.WARNING)
        self._clock, self._wall_clock = clock, wall_clock
        self._entries: dict[str, _Entry] = {}  # by action: STALLS bounds them

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`; the caller holds the lock."""
        action = getattr(record, "action", "")
        if action not in STALLS:
            return
        text, now = record.getMessage()[:_TEXT_MAX], self._clock()
        entry = self._entries.get(action)
        if entry is None or now - entry.last > STALLS[action]:
            self._entries[action] = _Entry(text, self._wall_clock(), now, 1)
        else:
            entry.text, entry.last, entry.count = text, now, entry.count + 1

    def stalls(self, confirmed: float | None = None) -> list[Stall]:
        """The stalls that last, the gravest first.

        Args:
            confirmed: When the latest confirmation came, on the monotonic clock; None if there was none.
        """
        assert self.lock is not None
        with self.lock:
            now = self._clock()
            for action, entry in list(self._entries.items()):
                passed = confirmed is not None and confirmed > entry.last and action in ENDED_BY_CONFIRMATION
                if passed or now - entry.last > STALLS[action]:
                    del self._entries[action]
            return [
                Stall(
                    action=action,
                    text=entry.text,
                    since=datetime.fromtimestamp(entry.since, UTC),
                    count=entry.count,
                )
                for action, entry in ((each, self._entries[each]) for each in STALLS if each in self._entries)
            ]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what the worker logs while the block runs, also where LOG_LEVEL shows none of it."""
        logger = logging.getLogger("worker")
        before = logger.level
        if logger.getEffectiveLevel() > logging.WARNING:
            logger.setLevel(logging.WARNING)  # the handlers that write have a level of their own (logs.py)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(before)
