"""GET /metrics: this process's counts, what has to be looked up, and Litestream's own numbers.

Three things are looked up, side by side and for TIMEOUT_SECONDS at most: Litestream's page, at each scrape; the open
rejections and the latest drill, REFRESH_SECONDS apart at least. What cannot be looked up is as it was known last and
counts as a failure: a scrape is always answered, whatever state the instance is in.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import aiohttp
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from worker.bucket import Objects
from worker.database import rejections
from worker.errors import NotInReplica, StoreMissing, WorkerError
from worker.ingest.tables import Tables
from worker.replica import drill_record
from worker.telemetry.metrics import Metrics

TIMEOUT_SECONDS: Final = 2.0
"""Longest one look may take: a scrape is given up after 10 s as a rule."""
REFRESH_SECONDS: Final = 30.0
"""Least time between two counts of open rejections, and looks at `drill.json`: scrapes may come as often as they like."""
_LITESTREAM: Final = "litestream_"
_PAGE_MAX: Final = 1_000_000
"""Bytes read of Litestream's page; it has about 8,000."""

T = TypeVar("T")


class Scrape:
    """Makes the page. Only the event loop touches it; the registry is its own, so that two can be in one process.

    Args:
        families: What this process knows of itself.
        metrics: Where what was looked up is kept.
        tables: Where rejections are counted.
        store: Where the latest drill is recorded; None where there are no drills.
        litestream: Litestream's address for metrics, `host:port`; `off` for none.
        timeout_seconds: Longest one look may take.
        refresh_seconds: Least time between two looks at rejections and the drill.
    """

    def __init__(
        self,
        families: Collector,
        metrics: Metrics,
        tables: Tables,
        store: Objects | None,
        *,
        litestream: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        refresh_seconds: float = REFRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._tables, self._store = metrics, tables, store
        self._timeout, self._refresh, self._clock = timeout_seconds, refresh_seconds, clock
        self._url = "" if litestream in ("", "off") else f"http://{litestream}/metrics"
        self._looked = float("-inf")  # when rejections and drill were looked up last
        self._http: aiohttp.ClientSession | None = None  # made on first use: it belongs to the loop that runs then
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(families)

    async def page(self) -> bytes:
        """Everything, in Prometheus's text format."""
        looks = asyncio.gather(*self._looks())
        litestream = await self._look("litestream", self._litestream())
        await looks
        return generate_latest(self.registry) + (litestream or b"")

    async def close(self) -> None:
        """Give back connections."""
        if self._http is not None:
            await self._http.close()

    def _looks(self) -> list[Awaitable[None]]:
        now = self._clock()
        if now - self._looked < self._refresh:
            return []
        self._looked = now  # before the looks end: a second scrape does not look beside this one
        looks: list[Awaitable[None]] = [self._look("database", self._rejections())]
        if self._store is not None:
            looks.append(self._look("drill", self._drill(self._store)))
        return looks

    async def _look(self, source: str, look: Awaitable[T]) -> T | None:
        """The value that a look finds; None if it fails, or takes too long."""
        try:
            async with asyncio.timeout(self._timeout):
                return await look
        except (WorkerError, TimeoutError, aiohttp.ClientError):
            self._metrics.failures[source] += 1
            return None

    async def _rejections(self) -> None:
        if self._tables.open:
            self._metrics.rejections = await self._tables.read(rejections.open_by_reason)

    async def _drill(self, store: Objects) -> None:
        with contextlib.suppress(NotInReplica, StoreMissing):  # there was none yet
            self._metrics.drill = await drill_record.latest(store, timeout=self._timeout)

    async def _litestream(self) -> bytes:
        if not self._url or not self._tables.open:  # there is none, or it is being started
            return b""
        if self._http is None:
            self._http = aiohttp.ClientSession(raise_for_status=True)
        async with self._http.get(self._url) as answer:
            page = await answer.content.read(_PAGE_MAX + 1)
            while len(page) <= _PAGE_MAX and (more := await answer.content.read(_PAGE_MAX + 1 - len(page))):
                page += more
        if len(page) > _PAGE_MAX:
            raise aiohttp.ClientPayloadError("Litestream's page of metrics is too long")
        return only_litestream(page)


def only_litestream(page: bytes) -> bytes:
    """The lines of a page that are about Litestream's families."""
    kept = [line for line in page.decode(errors="replace").splitlines() if _family_of(line).startswith(_LITESTREAM)]
    return "".join(f"{line}\n" for line in kept).encode()


def _family_of(line: str) -> str:
    words = line.split(" ", 3)
    return words[2] if words[0] == "#" and len(words) > 2 else words[0]
