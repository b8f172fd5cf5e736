"""`worker restore`: a state that is in the bucket, into a file. It needs no lease and touches neither bucket nor service.

The restore itself is the one of every start (restoring.py). The file gets its name only when it is whole, checked and
counted.
"""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from publisher.values import counted
from worker.bucket import Objects
from worker.database import comparison, connections
from worker.errors import RestoreFailed
from worker.events.catalog import Catalog
from worker.ingest import erasure
from worker.replica import restoring
from worker.replica.restoring import Wanted


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a restored file. `time` is when its last transaction was committed."""

    file: str
    generation: str
    txid: int
    time: datetime
    bytes: int
    rows: dict[str, int]
    receipts: int
    rejections: int
    open_rejections: int
    last_message: str | None
    last_message_at: datetime | None
    left_out: list[str]
    """Files that are not whole, whose transactions others hold."""


async def restore(
    store: Objects,
    catalog: Catalog,
    wanted: Wanted,
    output: Path,
    *,
    binary: Path,
    seconds: float,
    request_seconds: float,
    say: Callable[[str], None],
) -> Restored:
    """Restore a state into a file that must not exist, erase in it what the bucket lists as erased, and count it.

    Args:
        store: The bucket.
        catalog: The events, whose tables are counted.
        wanted: Which state.
        output: The file.
        binary: Litestream's.
        seconds: Longest the restore may take.
        request_seconds: Longest one request may take.
        say: Told about progress, a line at a time.

    Raises:
        NotInReplica: The bucket does not hold that state.
        RestoreFailed: The file is there already, or the state could not be restored; there is no file then.
        StoreError: The bucket did not answer, or refused; there is no file then.
        OSError: The disk is full or cannot be written, which says nothing about the state; there is no file then.
    """
    _check(output)
    with restoring.scratch_folder(".restored-", output.parent) as scratch:
        made = scratch / "restored.db"
        state = await restoring.restore(
            store,
            wanted,
            made,
            binary=binary,
            integrity_check="full",
            seconds=seconds,
            request_seconds=request_seconds,
            say=say,
        )
        say("integrity checked; counting")
        if erased := await erasure.listed(store.patient(seconds), timeout=request_seconds):
            now = round(datetime.now(UTC).timestamp() * 1000)
            with connections.sound():
                left_out = await asyncio.to_thread(erasure.apply, made, catalog, erased, now=now)
            if left_out:
                say(f"{counted(left_out, 'subject')} erased again")
        await asyncio.to_thread(connections.close_journal, made)
        restored = Restored(
            file=str(output),
            generation=state.generation,
            txid=state.txid,
            time=state.time,
            bytes=made.stat().st_size,
            left_out=list(state.left_out),
            **await asyncio.to_thread(comparison.count, made, catalog),
        )
        try:
            os.link(made, output)  # unlike a rename, never over a file that came meanwhile
        except OSError as error:
            raise RestoreFailed(f"{output} cannot be written: {error.strerror}; name a new file") from None
        return restored


def _check(output: Path) -> None:
    """Refuse an output that is there, or beside which another database left what SQLite would take for this one's."""
    if not output.parent.is_dir():
        raise RestoreFailed(f"the folder of {output} is not there; name a new file in a folder that exists")
    for suffix in ("", *connections.SIDE_FILES):
        found = output.with_name(output.name + suffix)
        if found.exists() or found.is_symlink():
            raise RestoreFailed(f"{found} is there already; name a new file in a folder that exists")
