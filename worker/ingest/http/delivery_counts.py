"""Counts of the deliveries that this process answered, by outcome, in memory. Only the event loop touches them.

A redelivery leaves no trace in the database, so `worker replay` asks here. A count that is asked for a time
counts the deliveries of messages published before it: during a replay those are the redelivered ones.
"""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

WATCHES_MAX: Final = 4
"""Times that are counted for at once (INV-7); one more takes the place of the oldest."""


class Watched(msgspec.Struct, kw_only=True):
    """The deliveries of messages published before a time, since `since`.

    `last_publish_time` is the latest one's, in milliseconds since the epoch.
    """

    since: datetime
    outcomes: Counter[str]
    last_publish_time: int | None = None


class Tally:
    """Counts by outcome.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.started_at = self.now()
        self.outcomes: Counter[str] = Counter()
        self._watches: dict[int, Watched] = {}  # by the time watched, in milliseconds

    def __repr__(self) -> str:
        return f"<Tally of {self.outcomes.total()} deliveries since {self.started_at}>"

    def now(self) -> datetime:
        """This instance's time."""
        return datetime.fromtimestamp(self._clock(), UTC)

    def add(self, outcome: str, publish_time: int) -> None:
        """Count one delivery that was handled. This runs for every message."""
        self.outcomes[outcome] += 1
        for before, watched in self._watches.items():
            if publish_time < before:
                watched.outcomes[outcome] += 1
                watched.last_publish_time = publish_time

    def watch(self, before: int) -> Watched:
        """The outcomes of messages published before that time (milliseconds), since it was first asked for."""
        found = self._watches.get(before)
        if found is None:
            if len(self._watches) == WATCHES_MAX:
                del self._watches[next(iter(self._watches))]
            found = self._watches[before] = Watched(since=self.now(), outcomes=Counter())
        return found
