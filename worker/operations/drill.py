"""`worker drill`: proves that the live generation can be restored, while the service goes on writing it.

1. The lease record is read, and the service counts its rows; it answers once everything counted is in the bucket (INV-1).
2. The live generation is restored into scratch, with a full integrity check, and counted.
3. The service counts again, and the record is read again.

The restored state lies between the two counts as long as one writer life wrote all of it, so where the live generation has
changed in between, everything is done once more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from worker.bucket import Objects
from worker.database import connections, counts
from worker.database.counts import Counts, ServiceCounts
from worker.errors import (
    Mismatch,
    NotInReplica,
    RecordInvalid,
    RestoreFailed,
    ServiceRefused,
    ServiceUnreachable,
    StoreError,
    StoreMissing,
    StoreUnavailable,
)
from worker.events.catalog import Catalog
from worker.ingest.http.paths import COUNTS
from worker.lease.record import look
from worker.operations.restore import restore
from worker.operations.service_client import Service
from worker.replica.drill_record import COUNTED_DAYS, KEEP_RUNNING, RECORD, Copy, Drill, Verdict, judge
from worker.replica.layout import path_of
from worker.replica.restoring import Wanted, scratch_folder

_ATTEMPTS: Final = 2
_RECORD_ATTEMPTS: Final = 3
_RECORD_PAUSE_SECONDS: Final = 1.1
"""The bucket takes one write a second for each name."""


class CountedService(Service):
    """A running worker that is asked for its counts."""

    async def counts(self, since: datetime) -> ServiceCounts:
        """The rows that it holds, all confirmed in the bucket; see `GET /counts`.

        Raises:
            ServiceUnreachable: It does not answer, or not yet.
            ServiceRefused: It answered that this cannot be done.
        """
        return msgspec.convert(await self._ask("GET", COUNTS, {"since": since.isoformat()}), ServiceCounts)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one attempt. `moved`: the live generation changed meanwhile, so nothing can be concluded."""

    verdict: Verdict
    reason: str
    before: ServiceCounts | None = None
    copy: Copy | None = None
    after: ServiceCounts | None = None
    moved: bool = False

    def drill(self, *, at: datetime, seconds: float) -> Drill:
        """The record of it."""
        drill = Drill(
            verdict=self.verdict,
            reason=self.reason,
            at=at,
            seconds=round(seconds, 3),
            before=self.before,
            after=self.after,
        )
        if self.copy is None:
            return drill
        return msgspec.structs.replace(
            drill,
            generation=self.copy.generation,
            txid=self.copy.txid,
            time=self.copy.time,
            age_seconds=round((at - self.copy.time).total_seconds(), 3),
            restored=self.copy.counts,
            left_out=self.copy.left_out,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Driller:
    """Everything a drill needs.

    Args:
        store: The bucket.
        catalog: The events, whose tables are counted.
        service: The running worker.
        scratch: Folder with room for the database twice; what is made there is removed.
        binary: Litestream's.
        oldest: The last transaction must not be older than that; None for any age.
        request_seconds: Longest a look at the bucket may take.
        restore_seconds: Longest the restore may take.
        say: Told about progress, a line at a time.
    """

    store: Objects
    catalog: Catalog
    service: CountedService
    scratch: Path
    binary: Path
    oldest: datetime | None
    request_seconds: float
    restore_seconds: float
    say: Callable[[str], None]

    async def run(self) -> Drill:
        """Drill once, and again if the live generation changed meanwhile.

        Raises:
            StoreMissing: There is no store.
        """
        began = time.monotonic()
        for attempt in range(1, _ATTEMPTS + 1):
            found = await self._attempt()
            if not found.moved or attempt == _ATTEMPTS:
                break
            self.say(f"{found.reason}; once more")
        return found.drill(at=datetime.now(UTC), seconds=time.monotonic() - began)

    async def _attempt(self) -> Finding:
        try:
            record, _ = await look(self.store, timeout=self.request_seconds)
        except StoreMissing:
            raise
        except StoreError as error:
            return Finding(_verdict_on(error), str(error))
        if record.live is None:
            return Finding("inconclusive", "the store is empty: nothing has been written to it yet")
        found = await self._compare(datetime.now(UTC) - timedelta(days=COUNTED_DAYS))
        if found.verdict == "inconclusive" and found.before is None:
            return found
        try:
            record_after, _ = await look(self.store, timeout=self.request_seconds)
        except StoreError as error:
            return Finding("inconclusive", str(error), found.before, found.copy, found.after)
        moved = _moved(found, record.live, record_after.live)
        return replace(found, verdict="inconclusive", reason=moved, moved=True) if moved else found

    async def _compare(self, since: datetime) -> Finding:
        before = await self._ask(since)
        confirmed = before if isinstance(before, ServiceCounts) else None
        try:
            copy, has_last_message = await self._restore(since, confirmed)
        except (StoreError, RestoreFailed) as error:
            verdict = _verdict_on(error)
            return Finding(verdict, f"{error}. {KEEP_RUNNING}" if verdict == "failed" else str(error), confirmed)
        except OSError as error:
            reason = f"nothing could be restored to {self.scratch}: {error.strerror}; name another folder with --scratch"
            return Finding("inconclusive", reason, confirmed)
        after = await self._ask(since) if confirmed is not None else before
        if confirmed is None or not isinstance(after, ServiceCounts):
            reason = f"the restore worked, and there is nothing to compare it with: {after}"
            return Finding("inconclusive", reason, confirmed, copy)
        verdict, reason = judge(confirmed, copy, after, has_last_message=has_last_message, oldest=self.oldest)
        return Finding(verdict, reason, confirmed, copy, after)

    async def _ask(self, since: datetime) -> ServiceCounts | str:
        """The service's counts, or why they are not known."""
        self.say("asking the service for its counts")
        try:
            return await self.service.counts(since)
        except (ServiceUnreachable, ServiceRefused) as error:
            return str(error)
        except msgspec.ValidationError as error:
            return f"the service's counts cannot be read ({error}); is it this version of the worker?"

    async def _restore(self, since: datetime, before: Counts | None) -> tuple[Copy, bool]:
        """The newest state, counted, and whether it has the last message of `before`."""
        with scratch_folder("drill-", self.scratch) as folder:
            file = folder / "restored.db"
            restored = await restore(
                self.store,
                self.catalog,
                Wanted(),
                file,
                binary=self.binary,
                seconds=self.restore_seconds,
                request_seconds=self.request_seconds,
                say=self.say,
            )
            reader = connections.Reader(file)
            cutoff = round(since.timestamp() * 1000)
            counted = await asyncio.to_thread(reader.read, partial(counts.count, catalog=self.catalog, since=cutoff))
            last = None if before is None else before.last_message
            has_last = last is None or await asyncio.to_thread(reader.read, partial(counts.has_receipt, message_id=last))
        copy = Copy(
            generation=restored.generation,
            txid=restored.txid,
            time=restored.time,
            counts=counted,
            left_out=restored.left_out,
        )
        return copy, has_last


def _moved(found: Finding, live: str, live_after: str | None) -> str:
    """Why what was found is not about one writer life; empty when it is."""
    restored = live if found.copy is None else found.copy.generation
    if not live == restored == live_after:
        return f"the live generation changed from {live} to {live_after} meanwhile"
    for said in (found.before, found.after):
        if said is not None and path_of(said.epoch) != live:
            return f"the service writes epoch {said.epoch}, and {live} is live: does SERVICE_URL belong to this REPLICA_URL?"
    return ""


def _verdict_on(error: StoreError | RestoreFailed) -> Verdict:
    """A bucket that gives no answer, or no leave, says nothing about what is in it (INV-9)."""
    return "failed" if isinstance(error, RestoreFailed | StoreMissing | NotInReplica | RecordInvalid) else "inconclusive"


async def record(
    store: Objects, drill: Drill, *, timeout: float, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
) -> None:
    """Write `drill.json`, over the one before.

    Raises:
        StoreError: The bucket did not take it.
    """
    for attempt in range(1, _RECORD_ATTEMPTS + 1):
        try:
            found = await store.read(RECORD, timeout=timeout)
            generation = 0 if found is None else found[1]
            await store.write(RECORD, msgspec.json.encode(drill), if_generation=generation, timeout=timeout)
            return
        except (Mismatch, StoreUnavailable):
            if attempt == _RECORD_ATTEMPTS:
                raise
        await sleep(_RECORD_PAUSE_SECONDS)
