"""The console's look: how often it asks whom, and what it remembers."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from tests.fakes import Clock
from tests.unit.operations.test_verdict import status
from worker.console.figures import spark
from worker.console.watch import Watch
from worker.errors import ServiceUnreachable
from worker.operations.service_client import Service
from worker.telemetry.status_format import Point, Status

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Asked(Service):
    """A service that answers, or not."""

    answer: Status | None
    count: int = 0

    async def status(self) -> Status:
        """See `Service.status`."""
        self.count += 1
        if self.answer is None:
            raise ServiceUnreachable("http://x does not answer")
        return self.answer


@dataclass
class Store:
    """A bucket that counts its readers, and does not answer."""

    reads: list[str] = field(default_factory=list)

    async def read(self, name: str, *, timeout: float) -> Any:
        """See `worker.lease.record.Store`."""
        self.reads.append(name)
        raise ServiceUnreachable("no answer")


def watching(service: Asked, store: Store, clock: Clock) -> Watch:
    """A look at these, by this clock."""
    now = lambda: BEGAN + timedelta(seconds=clock.now - 1000)  # noqa: E731
    return Watch(service, "http://127.0.0.1:8080", cast("Any", store), clock=clock, now=now)


def point(seconds: float, value: float = 1.0) -> Point:
    """A half minute's point."""
    at = round(BEGAN.timestamp() + seconds)
    return Point(at=at, per_second=value, p99_seconds=None, unconfirmed_seconds=0, held=0, memory_bytes=None)


def test_many_pages_ask_the_service_once_a_second() -> None:
    """Whoever looks within a second sees the same look; a healthy service costs the bucket nothing."""
    service, store, clock = Asked(status()), Store(), Clock()
    watch = watching(service, store, clock)

    async def run() -> None:
        await asyncio.gather(*(watch.look() for _ in range(50)))
        assert service.count == 1
        clock.now += 1.1
        await watch.look()
        assert service.count == 2

    asyncio.run(run())
    assert store.reads == []


def test_a_silent_service_costs_the_bucket_four_looks_a_minute() -> None:
    """The lease is read only while the service does not answer, and at most every quarter of a minute."""
    service, store, clock = Asked(None), Store(), Clock()
    watch = watching(service, store, clock)

    async def run() -> None:
        for _ in range(12):  # a minute of an open page
            assert (await watch.look()).verdict.kind == "stuck"
            clock.now += 5

    asyncio.run(run())
    assert len(store.reads) == 4


def test_the_last_half_hour_outlives_the_worker() -> None:
    """Points of an instance that has ended stay for half an hour, so the drawing shows what went before."""
    service, clock = Asked(status(history=[point(-60), point(-30)])), Clock()
    watch = watching(service, Store(), clock)

    async def run() -> None:
        await watch.look()
        clock.now += 60
        service.answer = status(history=[point(60)])
        assert len((await watch.look()).points) == 3
        service.answer = None
        clock.now += 10
        assert len((await watch.look()).points) == 3
        service.answer = status(history=[])
        clock.now += 1780
        assert len((await watch.look()).points) == 1

    asyncio.run(run())


def test_a_gap_is_no_line() -> None:
    """Where nothing was measured nothing is drawn: the line is broken, and not carried on."""
    now = BEGAN.timestamp()
    found = spark([point(-300), point(-270), point(-60, 4.0), point(-30, 2.0)], "per_second", now)
    assert found is not None
    assert len(found.lines) == 2
    assert found.highest == 4.0
    assert spark([point(-30)], "per_second", now) is None
    assert spark([point(-60), point(-30)], "memory_bytes", now) is None
