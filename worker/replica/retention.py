"""Retention: generations that ended long ago are deleted, by the holder of the lease alone.

The last slot of each stays: it is the seal. A process that was frozen before the generation was sealed may wake at any
time, and as long as that name is taken it cannot store a slot there, and so acknowledges nothing.

What may go follows from the record and the manifests alone (`expired`): never the live generation, never the one it was
restored from, never one newer than the live one. A process that has slept through the loss of its lease in the middle of
a deletion can harm nothing with it: what it may delete is older than the generation that was live under it, and a later
life starts from that one or a newer one.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from worker.bucket import Objects
from worker.errors import StoreError, StoreUnavailable
from worker.lease.lease import Lease
from worker.lease.record import RECORD
from worker.replica.layout import MANIFEST, Manifest

log = logging.getLogger(__name__)

_ROOT = "generations/"
_TIMEOUT_SECONDS = 10.0
_RETRY_SECONDS = 30.0
_APART_SECONDS_MAX = 300.0
"""The record is seconds old while the lease is held, and machines' clocks are seconds apart."""


def expired(manifests: Mapping[str, Manifest], *, live: str, retention: timedelta, now: datetime) -> list[str]:
    """The paths that may be deleted, oldest first. Pure.

    Args:
        manifests: Every generation's, by path; a generation has ended when the next one has begun.
        live: The live generation's path.
        retention: How long a generation is kept after it has ended.
        now: The time.
    """
    paths = sorted(manifests)
    kept = {live, manifests[live].base} if live in manifests else set(paths)
    return [
        path
        for path, successor in itertools.pairwise(paths)
        if path not in kept and path < live and manifests[successor].started_at + retention < now
    ]


async def clock_agrees(store: Objects) -> bool:
    """Whether this machine's clock is within minutes of the bucket's, which the record just renewed tells.

    What is deleted by age is deleted only then: one start with a wrong clock would delete everything. Does not raise for a
    bucket that cannot be asked: then it is not known, and nothing is deleted.
    """
    try:
        updated = await store.updated(RECORD, timeout=_TIMEOUT_SECONDS)
    except StoreError as error:
        log.warning("the bucket's clock cannot be read: %s", error, extra={"action": "retention.retry"})
        return False
    apart = abs((datetime.now(UTC) - updated).total_seconds()) if updated is not None else 0.0
    if apart <= _APART_SECONDS_MAX:
        return True
    log.error(
        "nothing is deleted by age: this machine's clock and the bucket's are %d s apart; set the clock",
        apart,
        extra={"action": "retention.clock"},
    )
    return False


async def _always() -> bool:
    return True


def last_slot(path: str, names: Iterable[str]) -> str | None:
    """The seal of a generation that has ended, among the names of its objects. Pure."""
    return max((name for name in names if name.startswith(f"{path}/ltx/0/")), default=None)


async def prune_every(
    interval_seconds: float,
    store: Objects,
    lease: Lease,
    retention: timedelta,
    *,
    may: Callable[[], Awaitable[bool]] = _always,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Prune now and every `interval_seconds`, until cancelled. The bucket's refusals are logged and outlived.

    A pass may be tens of thousands of requests, and one of them without an answer ends it: the next one goes on soon, or
    the bucket would grow faster than it is pruned.
    """
    while True:
        pause = interval_seconds
        try:
            if await may():
                await prune(store, lease, retention)
        except StoreError as error:
            if isinstance(error, StoreUnavailable):
                pause = min(interval_seconds, _RETRY_SECONDS)
            log.warning("pruning is put off for %g s: %s", pause, error, extra={"action": "retention.retry"})
        await sleep(pause)


async def prune(store: Objects, lease: Lease, retention: timedelta) -> list[str]:
    """Delete the generations past their retention; their paths.

    Raises:
        LeaseLost: Another instance holds the lease; it prunes.
        StoreError: The bucket did not answer, or refused; what was deleted is deleted.
    """
    manifests: dict[str, Manifest] = {}
    for folder in await store.folders(_ROOT, timeout=_TIMEOUT_SECONDS):
        found = await store.read(f"{_ROOT}{folder}/{MANIFEST}", timeout=_TIMEOUT_SECONDS)
        if found is None:
            continue
        try:
            manifests[f"{_ROOT}{folder}"] = msgspec.json.decode(found[0], type=Manifest)
        except msgspec.DecodeError as error:  # kept, and no reason to stop serving
            log.warning(
                "%s%s/%s cannot be read: %s", _ROOT, folder, MANIFEST, error, extra={"action": "retention.unreadable"}
            )
    gone = expired(manifests, live=lease.live or "", retention=retention, now=datetime.now(UTC))
    for path in gone:
        await lease.verify()
        names = await store.names(f"{path}/", timeout=_TIMEOUT_SECONDS)
        seal = last_slot(path, names)
        for name in names:
            if not name.endswith(MANIFEST) and name != seal:
                await store.delete(name, timeout=_TIMEOUT_SECONDS)
        await store.delete(f"{path}/{MANIFEST}", timeout=_TIMEOUT_SECONDS)  # last: until then it is found again
        log.info("deleted %s", path, extra={"action": "retention.pruned"})
    return gone
