"""Whether the bucket keeps the promises that the lease stands on (INV-2), tried on a scratch object of its own.

The lease is a compare-and-swap by `ifGenerationMatch`. A store that takes the condition and ignores it looks well until two
instances both believe that they hold the lease; some emulators and proxies are such stores. So each half is tried, through
the client that the lease uses: what must be accepted, and what must be refused with 412.

What this writes stands below `doctor/` under the store's prefix and is deleted afterwards.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from publisher.values import counted, rfc3339
from worker.bucket import Objects
from worker.errors import Mismatch, RecordInvalid, StoreError, StoreMissing, StoreUnavailable
from worker.lease import record as lease_record
from worker.operations import lease as lease_commands
from worker.operations.doctor.findings import Finding, note, ok, refused, warning
from worker.replica import restoring

SCRATCH: Final = "doctor/"
"""Below the store's prefix: everything the doctor writes."""
_SKEW_SECONDS_MAX: Final = 5.0
"""A clock that differs by more should be set; see `clock`."""

_UNSAFE: Final = (
    "do not serve from this store: two instances could both hold the lease. Use Cloud Storage itself, or an emulator "
    "that honours ifGenerationMatch; is STORAGE_EMULATOR_HOST meant to be set here?"
)
_BROKEN: Final = (
    "no instance could take or renew the lease: use Cloud Storage itself, or an emulator that honours ifGenerationMatch"
)


def trouble(check: str, error: StoreError) -> Finding:
    """A bucket that cannot be asked, and what to do about it."""
    if isinstance(error, StoreUnavailable):
        return refused(check, str(error), "look at the network, the bucket and STORAGE_EMULATOR_HOST, then run this again")
    found, _, step = str(error).rpartition("; ")
    return refused(check, found or str(error), step if found else "look at REPLICA_URL and at the bucket")


async def examine(store: Objects, *, timeout: float, spacing: float) -> list[Finding]:
    """The store, its preconditions and its clock; see `lease` and `preconditions`."""
    try:
        found = await lease(store, timeout=timeout)
    except StoreUnavailable as error:
        return [trouble("store", error), note("preconditions", "not tried: the bucket does not answer")]
    return [found, *await preconditions(store, timeout=timeout, spacing=spacing)]


async def lease(store: Objects, *, timeout: float) -> Finding:
    """Whether there is a store, and who holds its lease.

    Raises:
        StoreUnavailable: The bucket does not answer.
    """
    try:
        status = await lease_commands.show(store, timeout=timeout)
    except StoreMissing:
        return refused(
            "store",
            f"there is no lease.json at {store}",
            "run `python -m worker init` once if the store is new; otherwise REPLICA_URL names the wrong bucket or prefix",
        )
    except RecordInvalid as error:
        return refused("store", str(error), "deploy the version that wrote it, or restore the object's previous version")
    except StoreUnavailable:
        raise
    except StoreError as error:
        return trouble("store", error)
    live = status.live or "nothing yet"
    if status.state == "released":
        return ok("store", f"released at epoch {status.epoch}; live is {live}")
    renewed = rfc3339(status.last_renewal) if status.last_renewal else "-"
    holder = f"held by {status.holder} ({status.revision}) at epoch {status.epoch}, last renewed {renewed}"
    return ok("store", f"{holder}; live is {live}")


async def generation(store: Objects, *, timeout: float) -> list[Finding]:
    """Whether every file of the live generation is whole; nothing while there is none."""
    check = "replica"
    try:
        record, _ = await lease_record.look(store, timeout=timeout)
        if record.live is None:
            return []
        found = await restoring.verify(store, record.live, request_seconds=timeout)
    except (StoreUnavailable, StoreMissing):
        return [note(check, "not read: the lines on the store say why")]
    except StoreError as error:
        return [trouble(check, error)]
    seen = f"{found.generation}: {counted(found.files, 'file')}, {found.bytes:,} bytes, transactions 1 to {found.txid}"
    if found.sound:
        return [ok(check, f"{seen}; {found.verdict}")]
    step = "`python -m worker replica verify` names the files; do not stop the service"
    if found.gap:
        return [refused(check, f"{seen}; {found.verdict}", f"{step}: its own database is whole")]
    return [warning(check, f"{seen}; {found.verdict}", "`python -m worker replica verify` names the files")]


async def database_bytes(store: Objects, *, timeout: float, list_timeout: float) -> int:
    """The size of the live generation's largest object: a compressed copy of the whole database. 0 if it cannot be seen."""
    try:
        record, _ = await lease_record.look(store, timeout=timeout)
        if record.live is None:
            return 0
        stored = await store.objects(f"{record.live}/", timeout=list_timeout)
    except StoreError:
        return 0  # the other checks say why
    return max((each.bytes for each in stored), default=0)


async def preconditions(
    store: Objects,
    *,
    timeout: float,
    spacing: float,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Finding]:
    """Four probes of compare-and-swap, a read after a write, and the clock, on one scratch object.

    Args:
        store: The bucket, as the lease uses it.
        timeout: Seconds for one request.
        spacing: Seconds between two writes: the bucket takes one a second for an object name.
        sleep: A test's clock.
        now: This machine's time.
    """
    probes = _Probes(store, f"{SCRATCH}{uuid.uuid4()}.json", timeout, spacing, sleep, now)
    try:
        await probes.run()
    except StoreError as error:
        probes.findings.append(trouble(f"preconditions: {probes.what}", error))
    finally:  # Ctrl-C as well
        await probes.clean()
    return probes.findings


class _Probes:
    """The probes in their order. `what` is the one under way; `findings` those that are done."""

    def __init__(
        self,
        store: Objects,
        name: str,
        timeout: float,
        spacing: float,
        sleep: Callable[[float], Awaitable[Any]],
        now: Callable[[], datetime],
    ) -> None:
        self.name = name
        self.what = ""
        self.written = b""
        self.findings: list[Finding] = []
        self._store, self._timeout, self._spacing, self._sleep, self._now = store, timeout, spacing, sleep, now
        self._generation = 0

    async def run(self) -> None:
        """Try each; one that cannot be judged without another is left out.

        Raises:
            StoreError: The bucket did not answer, or refused.
        """
        began = self._now()
        if not await self._must_pass("create when absent", b"1", 0):
            return
        first, ended = self._generation, self._now()
        clock_ = clock(await self._store.updated(self.name, timeout=self._timeout), began, ended)
        await self._must_fail("create over an existing object", b"2", 0)
        await self._must_pass("update at its generation", b"3", self._generation)
        await self._must_fail("update at a stale generation", b"4", first)
        await self._must_read_back()
        self.findings.append(clock_)

    async def clean(self) -> None:
        """Delete the object, if it may be there."""
        try:
            await self._store.delete(self.name, timeout=self._timeout)
        except StoreError as error:
            if not self.written and not isinstance(error, StoreUnavailable):
                return  # nothing was written, and the same refusal has been said
            step = f"delete {self.name} below {self._store} by hand; may this account delete objects? Retention needs it too"
            said = "could not be deleted" if self.written else "may have been written, and could not be deleted"
            self.findings.append(warning("scratch object", f"it {said}: {error}", step))

    async def _must_pass(self, what: str, data: bytes, generation: int) -> bool:
        try:
            await self._write(what, data, generation)
        except Mismatch:
            found = f"ifGenerationMatch={generation} was refused, though the object is at that generation"
            self.findings.append(refused(f"preconditions: {what}", found, _BROKEN))
            return False
        self.findings.append(ok(f"preconditions: {what}", "accepted"))
        return True

    async def _must_fail(self, what: str, data: bytes, generation: int) -> None:
        at = self._generation
        try:
            await self._write(what, data, generation)
        except Mismatch:
            self.findings.append(ok(f"preconditions: {what}", "refused with 412"))
        else:
            found = f"ifGenerationMatch={generation} was accepted, though the object was at generation {at}"
            self.findings.append(refused(f"preconditions: {what}", found, _UNSAFE))

    async def _write(self, what: str, data: bytes, generation: int) -> None:
        if self.what:
            await self._sleep(self._spacing)
        self.what = what
        self._generation = await self._store.write(self.name, data, if_generation=generation, timeout=self._timeout)
        self.written = data

    async def _must_read_back(self) -> None:
        self.what = "read after write"
        found = await self._store.read(self.name, timeout=self._timeout)
        if found == (self.written, self._generation):
            self.findings.append(ok("preconditions: read after write", "the newest content was read"))
        else:
            said = "no object" if found is None else f"generation {found[1]} instead of {self._generation}"
            step = (
                "do not serve from this store: a lost lease would not be noticed. Is there a cache in front of the bucket?"
            )
            self.findings.append(refused("preconditions: read after write", f"a read gave {said}", step))


def clock(updated: datetime | None, began: datetime, ended: datetime) -> Finding:
    """How far this clock and the bucket's are apart. Pure.

    Args:
        updated: When the bucket says an object was written.
        began: When its writing began here.
        ended: When it ended here.
    """
    if updated is None:
        return note("clock", "the bucket does not say when an object was written")
    if began <= updated <= ended:
        skew = 0.0
    else:
        skew = (updated - ended if updated > ended else updated - began).total_seconds()
    if abs(skew) > _SKEW_SECONDS_MAX:
        return warning(
            "clock",
            f"this machine's clock is {abs(skew):.1f} s {'behind' if skew > 0 else 'ahead of'} the bucket's",
            "repair the time service (NTP). No acknowledgement depends on it (INV-2), but restores to a time and expiry do",
        )
    return ok("clock", f"within {_SKEW_SECONDS_MAX:g} s of the bucket's")
