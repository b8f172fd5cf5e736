"""`worker restore`: a state that is in the bucket, into a file. It needs no lease and touches neither bucket nor service.

The files of the generation that make up the state are fetched side by side, plain `litestream restore` puts them together,
and the result gets its name only when it is whole and checked.
"""

import asyncio
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from worker import comparison, database, erasure, litestream
from worker.errors import NotInReplica, RestoreFailed, StoreMissing
from worker.layout import File
from worker.replica import Generation, Objects, Survey, survey
from worker.wording import counted

_REMOVALS: Final = 20
_REMOVAL_SECONDS: Final = 0.05
_ATTEMPTS: Final = 2
"""Files may be pruned under a running restore; then the bucket is looked at once more."""


class Bucket(Objects, erasure.Names, Protocol):
    """What a restore needs of the bucket."""

    async def fetch_named(self, names: Sequence[str], name_prefix: str, directory: Path, *, timeout: float) -> None:
        """Copy objects side by side; `StoreMissing` when one of them has vanished."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which state: the newest; or what it was at a time; or of an epoch, up to a transaction."""

    at: datetime | None = None
    epoch: int | None = None
    txid: int | None = None

    def files(self, found: Survey, *, now: datetime) -> tuple[Generation, list[File]]:
        """The generation, and those of its files that make up the state.

        Raises:
            NotInReplica: The bucket does not hold that state.
        """
        generation = self._generation(found, now)
        if self.txid is not None and not 0 < self.txid <= generation.transactions:
            raise NotInReplica(
                f"epoch {generation.manifest.epoch} has the transactions 1 to {generation.transactions}, not {self.txid}"
            )
        files = self._files(generation)
        if not files:
            raise NotInReplica(f"{generation.path} holds no file; `worker replica` lists what there is")
        return generation, files

    def _files(self, generation: Generation) -> list[File]:
        """The files up to the wanted transaction; of a time, up to the newest that was committed by then.

        By its number and not by its time, so that a clock that was set back leaves no gap.
        """
        ends = (file.last for file in generation.files if self.at is None or file.time <= self.at)
        end = max(ends, default=0) if self.txid is None else self.txid
        files = [file for file in generation.files if file.last <= end]
        if self.txid is not None and all(file.last != end for file in files):
            raise NotInReplica(
                f"{generation.path} has no file that ends at transaction {end}; `worker replica ls` lists them"
            )
        beyond = min((file.first for file in generation.files if file.first > end), default=end + 1)
        if files and self.at is not None and beyond > end + 1:
            raise NotInReplica(
                f"transactions {end + 1} to {beyond - 1} of {generation.path} are missing from the bucket, and may be of "
                f"that time; give an earlier --at, or --epoch {generation.manifest.epoch} --txid {end} for what was before"
            )
        return files

    def _generation(self, found: Survey, now: datetime) -> Generation:
        if self.epoch is not None:
            return found.of_epoch(self.epoch)
        if self.at is not None:
            return found.at(self.at, now=now)
        for generation in found.history:
            if generation.live:
                return generation
        raise NotInReplica("the store is empty: nothing has been written to it yet")


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a restored file holds. `time` is when its last transaction was committed."""

    file: str
    generation: str
    txid: int
    time: datetime
    bytes: int
    users: int
    receipts: int
    rejections: int
    open_rejections: int
    last_message: str | None
    last_message_at: datetime | None


async def restore(
    store: Bucket,
    wanted: Wanted,
    output: Path,
    *,
    binary: Path,
    now: datetime,
    request_seconds: float,
    fetch_seconds: float,
    say: Callable[[str], None],
) -> Restored:
    """Restore a state into a file that must not exist.

    Args:
        store: The bucket.
        wanted: Which state.
        output: The file.
        binary: Litestream's.
        now: The time.
        request_seconds: Longest a look at the bucket may take.
        fetch_seconds: Longest one file may take to be read.
        say: Told about progress, a line at a time.

    Raises:
        NotInReplica: The bucket does not hold that state.
        RestoreFailed: The file is there already, or the state could not be restored; there is no file then.
        StoreError: The bucket did not answer, or refused; likewise.
        OSError: The disk is full or cannot be written, which says nothing about the state; likewise.
    """
    _check(output)
    for attempt in range(1, _ATTEMPTS + 1):
        generation, files = wanted.files(await survey(store, timeout=request_seconds), now=now)
        size = sum(file.bytes for file in files)
        say(f"restoring {generation.path}: {counted(len(files), 'file')}, {size:,} bytes")
        # Beside the output: renamed, the file is there at once and whole.
        with scratch_folder(f".{output.name}.", output.parent) as scratch:
            try:
                erased = await erasure.listed(store, timeout=request_seconds)
                names = [file.name for file in files]
                await store.fetch_named(names, f"{generation.path}/", scratch / "replica", timeout=fetch_seconds)
                return await _put_together(scratch, output, generation, files, erased, binary, say)
            except StoreMissing:
                if attempt == _ATTEMPTS:
                    raise
                say("files were deleted meanwhile; looking again")
    raise AssertionError("the last attempt returns or raises")


def _check(output: Path) -> None:
    """Refuse an output that is there, or beside which another database left what SQLite would take for this one's."""
    if not output.parent.is_dir():
        raise RestoreFailed(f"the folder of {output} is not there; name a new file in a folder that exists")
    for suffix in ("", *database.SIDE_FILES):
        found = output.with_name(output.name + suffix)
        if found.exists() or found.is_symlink():
            raise RestoreFailed(f"{found} is there already; name a new file in a folder that exists")


@contextmanager
def scratch_folder(prefix: str, directory: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, also when a download that was cancelled still writes into it for a moment."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
    try:
        yield folder
    finally:
        for _ in range(_REMOVALS):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(_REMOVAL_SECONDS)


async def _put_together(
    scratch: Path,
    output: Path,
    generation: Generation,
    files: Sequence[File],
    erased: Sequence[int],
    binary: Path,
    say: Callable[[str], None],
) -> Restored:
    made = scratch / "restored.db"
    for name in await asyncio.to_thread(litestream.leave_out_broken, scratch / "replica"):
        say(f"{name} is not whole and is left out")
    try:
        url = f"file://{(scratch / 'replica').absolute()}"  # in file://a/b, a would be a host
        txid = await litestream.restore_from(url, made, binary=binary, integrity_check="full")
    except RestoreFailed as error:
        if os.strerror(errno.ENOSPC).lower() in str(error).lower():  # which says nothing about the replica
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(made)) from error
        raise RestoreFailed(
            f"{generation.path} cannot be restored to that state: {error}. Nothing was written; try another --at or --epoch"
        ) from None
    say("integrity checked; counting")
    if erased:
        now = round(datetime.now(UTC).timestamp() * 1000)
        with database.sound():
            left_out = await asyncio.to_thread(erasure.apply, made, erased, now=now)
        if left_out:
            say(f"{counted(left_out, 'user')} erased again")
    counts = await asyncio.to_thread(comparison.count, made)
    restored = Restored(
        file=str(output),
        generation=generation.path,
        txid=txid,
        # The first that ends there: a full copy of the same state is made later.
        time=min(file.time for file in files if file.last == txid),
        bytes=made.stat().st_size,
        **counts,
    )
    try:
        os.link(made, output)  # unlike a rename, never over a file that came meanwhile
    except OSError as error:
        raise RestoreFailed(f"{output} cannot be written: {error.strerror}; name a new file") from None
    return restored
