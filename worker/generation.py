"""One writer life's place in the bucket: its path, its manifest, and what it starts from.

INV-4: the path is named for the epoch, which no other life has, and the manifest is created only where none is, so a path
is never written by two lives. INV-5: what is restored is the generation that the lease names as live, after the lease is
held; when there is one and it cannot be restored, nothing is served.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from worker import database, litestream
from worker.errors import LitestreamError, Mismatch, StoreUnavailable, SyncUnavailable
from worker.lease import Lease, Store

MANIFEST: Final = "manifest.json"
_RETRY_PAUSE_SECONDS: Final = 0.25

log = logging.getLogger(__name__)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` in a generation: what it continues, and who began it. Written once."""

    format: int = 1
    epoch: int
    base: str | None
    base_txid: int
    started_at: datetime
    revision: str
    holder: str


def path_of(epoch: int) -> str:
    """The generation's path under the store's prefix."""
    return f"generations/{epoch:016x}"


async def prepare(
    lease: Lease,
    store: Store,
    options: litestream.Options,
    *,
    prefix: str,
    integrity_check: str,
    restore_seconds: float,
    busy_timeout_seconds: float,
    store_seconds: float,
) -> str:
    """Make the local database what the live generation holds, and claim this epoch's path; the path.

    Raises:
        RestoreFailed: There is a live generation and it could not be restored.
        StoreUnavailable: The manifest could not be written within `store_seconds`.
    """
    if database.clear(options.database):
        log.warning("a database found at %s was moved aside", options.database, extra={"action": "database.moved"})
    live, txid = lease.live, 0
    if live is not None:
        txid = await _restore(options, f"{prefix}/{live}", integrity_check, restore_seconds)
    applied = await asyncio.to_thread(database.migrate, options.database, busy_timeout_seconds=busy_timeout_seconds)
    for name in applied:
        log.info("migration %s applied", name, extra={"action": "database.migrated"})
    manifest = Manifest(
        epoch=lease.epoch,
        base=live,
        base_txid=txid,
        started_at=datetime.now(UTC),
        revision=lease.revision,
        holder=lease.holder,
    )
    path = path_of(lease.epoch)
    await insist(lambda: _claim(store, f"{path}/{MANIFEST}", manifest, store_seconds), seconds=store_seconds)
    return path


async def first_sync(child: litestream.Litestream, *, timeout: int) -> None:
    """Wait until the new generation holds the whole database.

    Raises:
        SyncUnavailable: It did not within `timeout` seconds; the old generation stays live, so nothing is lost.
    """

    async def whole() -> None:
        position = await child.sync(timeout=timeout)
        if not position.replicated_txid == position.txid > 0:
            raise SyncUnavailable(f"the bucket is at transaction {position.replicated_txid}, not {position.txid}")

    await insist(whole, seconds=timeout)


async def insist(attempt: Callable[[], Awaitable[None]], *, seconds: float) -> None:
    """Repeat an attempt whose failure says nothing (`StoreUnavailable`, `SyncUnavailable`) for at most `seconds`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        try:
            return await attempt()
        except (StoreUnavailable, SyncUnavailable) as doubt:
            if loop.time() > until:
                raise
            log.warning("starting is delayed: %s", doubt, extra={"action": "start.retry"})
        await asyncio.sleep(_RETRY_PAUSE_SECONDS)


async def _restore(options: litestream.Options, replica_path: str, check: str, seconds: float) -> int:
    log.info("restoring %s", replica_path, extra={"action": "restore.started"})
    began = asyncio.get_running_loop().time()
    txid = await litestream.restore(
        options, replica_path=replica_path, output=options.database, integrity_check=check, timeout=seconds
    )
    log.info(
        "restored %d bytes at transaction %d in %.1f s",
        Path(options.database).stat().st_size,
        txid,
        asyncio.get_running_loop().time() - began,
        extra={"action": "restore.finished"},
    )
    return txid


async def _claim(store: Store, name: str, manifest: Manifest, timeout: float) -> None:
    try:
        await store.write(name, msgspec.json.encode(manifest), if_generation=0, timeout=timeout)
    except Mismatch:
        found = await store.read(name, timeout=timeout)
        if found is None or msgspec.json.decode(found[0], type=Manifest).holder != manifest.holder:
            raise LitestreamError(
                f"{name} was written by another instance although the epoch is ours: "
                "was the lease record edited or restored by hand? Raise its epoch above every generation's"
            ) from None
