"""The console's look at the service: one for all who have the page open, and at the bucket only where the service is silent.

A page that is open asks every five seconds. The service is asked at most every second, however many pages are open.
`lease.json` is read at most every quarter of a minute, and only while the service does not answer: a healthy service costs
the bucket nothing.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from worker.bucket import Objects
from worker.console.figures import SPARK_SECONDS
from worker.errors import ServiceRefused, ServiceUnreachable, WorkerError
from worker.operations.lease import Status as Lease
from worker.operations.lease import show
from worker.operations.service_client import Service
from worker.operations.verdict import Facts, Verdict, judge
from worker.telemetry.status_format import Point, Status

_FRESH_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
"""Longest wait for the service's status: it is made in milliseconds, and counting rejections takes two seconds at most."""
_LEASE_SECONDS: Final = 15.0
_LEASE_REQUEST_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class View:
    """One look. `points` are those of the last half hour, also those of an instance that has ended since."""

    verdict: Verdict
    status: Status | None
    lease: Lease | None
    points: list[Point]
    at: datetime


class Watch:
    """Looks. Only the event loop touches it.

    Args:
        service: The service, which is asked once, without patience.
        url: Its address.
        store: The bucket; None where there is none.
        clock: Monotonic seconds.
        now: The time.
    """

    def __init__(
        self,
        service: Service,
        url: str,
        store: Objects | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._service, self._url, self._store = service, url, store
        self._clock, self._now = clock, now
        self._looking = asyncio.Lock()  # the one guard of what follows
        self._view: View | None = None
        self._looked = self._lease_looked = float("-inf")
        self._answered: datetime | None = None
        self._lease: Lease | None = None
        self._lease_problem = ""
        self._points: dict[int, Point] = {}

    async def look(self) -> View:
        """The newest view, at most a second old."""
        async with self._looking:
            if self._view is None or self._clock() - self._looked >= _FRESH_SECONDS:
                self._view = await self._made()
                self._looked = self._clock()
            return self._view

    async def _made(self) -> View:
        status, problem, refused = None, "", False
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                status = await self._service.status()
        except TimeoutError:
            problem = f"{self._url} does not answer within {_ANSWER_SECONDS:g} s"
        except ServiceRefused as error:
            problem, refused = str(error), True
        except ServiceUnreachable as error:
            problem = str(error)
        now = self._now()
        if status is not None:
            self._answered, self._lease, self._lease_problem = now, None, ""
            self._keep(status.history, now)
        elif not refused:
            await self._look_at_the_lease()
        facts = Facts(
            url=self._url,
            now=now,
            status=status,
            problem=problem,
            refused=refused,
            answered_at=self._answered,
            lease=self._lease,
            lease_problem=self._lease_problem,
        )
        return View(judge(facts), status, self._lease, [self._points[at] for at in sorted(self._points)], now)

    def _keep(self, points: list[Point], now: datetime) -> None:
        self._points |= {point.at: point for point in points}
        oldest = now.timestamp() - SPARK_SECONDS
        self._points = {at: point for at, point in self._points.items() if at > oldest}

    async def _look_at_the_lease(self) -> None:
        if self._store is None or self._clock() - self._lease_looked < _LEASE_SECONDS:
            return
        self._lease_looked = self._clock()
        try:
            self._lease, self._lease_problem = await show(self._store, timeout=_LEASE_REQUEST_SECONDS), ""
        except WorkerError as error:
            self._lease, self._lease_problem = None, str(error)
