"""The recent past of this process, for `GET /status`: rates and times of the last minutes, and a point for each half minute.

One look every few seconds at the counts that the metrics keep anyway. Only the event loop touches it.
"""

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.telemetry.machine import memory
from worker.telemetry.metrics import Metrics
from worker.telemetry.status_format import Point, Window

LOOK_SECONDS: Final = 5.0
POINT_LOOKS: Final = 6
"""Looks from one point to the next: half a minute."""
POINTS_MAX: Final = 60
"""Half an hour."""
WINDOWS: Final[Mapping[str, float]] = {"1m": 60.0, "5m": 300.0}
_LOOKS_MAX: Final = round(max(WINDOWS.values()) / LOOK_SECONDS) + 1


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    outcomes: Mapping[str, int]
    refused: int
    acknowledged: tuple[int, ...]


class History:
    """The last looks, and the points.

    Args:
        metrics: The counts that are looked at.
        held: How many requests are held now.
        wall_clock: Seconds since the epoch.
    """

    def __init__(self, metrics: Metrics, held: Callable[[], int], *, wall_clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._held, self._wall_clock = metrics, held, wall_clock
        self._looks: deque[_Look] = deque([self._look()], maxlen=_LOOKS_MAX)
        self._number = 0
        self.points: deque[Point] = deque(maxlen=POINTS_MAX)

    async def looks(self) -> AsyncIterator[None]:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()
            yield

    def look(self) -> None:
        """Take one look, and a point where one is due."""
        self._looks.append(self._look())
        self._number += 1
        if self._number % POINT_LOOKS == 0:
            found = self._between(self._looks[-1 - min(POINT_LOOKS, len(self._looks) - 1)], self._looks[-1])
            self.points.append(
                Point(
                    at=round(self._wall_clock()),
                    per_second=found.per_second,
                    p99_seconds=found.p99_seconds,
                    unconfirmed_seconds=round(self._metrics.unconfirmed_seconds, 3),
                    held=self._held(),
                    memory_bytes=memory()[0],
                )
            )

    def windows(self) -> dict[str, Window]:
        """What was acknowledged in each of `WINDOWS` until now."""
        now = self._look()
        return {name: self._between(self._oldest(now.at - seconds), now) for name, seconds in WINDOWS.items()}

    def _oldest(self, since: float) -> _Look:
        return next((look for look in self._looks if look.at >= since), self._looks[-1])

    def _look(self) -> _Look:
        metrics = self._metrics
        return _Look(metrics.clock(), dict(metrics.outcomes), sum(metrics.refusals.values()), tuple(metrics.ack.counts))

    def _between(self, first: _Look, last: _Look) -> Window:
        outcomes = {name: count - first.outcomes.get(name, 0) for name, count in last.outcomes.items()}
        counts = [count - before for count, before in zip(last.acknowledged, first.acknowledged, strict=True)]
        seconds, bounds = last.at - first.at, self._metrics.ack.bounds
        return Window(
            seconds=round(seconds, 1),
            outcomes={name: count for name, count in outcomes.items() if count},
            per_second=round(sum(outcomes.values()) / seconds, 2) if seconds > 0 else 0.0,
            refused=last.refused - first.refused,
            p50_seconds=quantile(0.5, bounds, counts),
            p99_seconds=quantile(0.99, bounds, counts),
        )


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The value that so large a share of the counted ones does not exceed, as between even steps of its bucket. Pure.

    Args:
        share: From 0 to 1.
        bounds: The buckets' upper bounds; what is above the last one counts as it.
        counts: How many are in each bucket, and at last above all bounds.
    """
    total = sum(counts)
    if not total:
        return None
    sums, running = [], 0
    for count in counts:
        running += count
        sums.append(running)
    wanted = share * total
    number = bisect_left(sums, wanted)
    if number >= len(bounds):
        return bounds[-1]
    low = bounds[number - 1] if number else 0.0
    before = sums[number - 1] if number else 0
    return round(low + (bounds[number] - low) * (wanted - before) / counts[number], 4)
