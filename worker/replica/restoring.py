"""The one restore: for the start, a drill, a recovery and `worker restore`.

    list ──> choose files that cover every transaction ──> fetch and check each ──> Litestream puts them together

A file that is not whole is left out if others hold what it holds, whatever its level; if none does, nothing is restored. So
what Litestream made of its own accord never hides what the slots hold, and a gap is never passed over (INV-10). Every
request to the bucket is repeated within the restore's time. Files that were compacted away meanwhile are looked for once
more.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from publisher.values import counted
from worker.bucket import Objects
from worker.database import connections
from worker.errors import NotInReplica, RestoreFailed, StoreMissing
from worker.replica import litestream, ltx
from worker.replica.layout import File
from worker.replica.survey import contents, survey

_ATTEMPTS: Final = 3
"""Files may be compacted away or pruned under a running restore; then the bucket is looked at once more."""
_PATIENT_SHARE: Final = 0.9
"""A bucket that gives no answer is given up before the restore's time is over: that says nothing of the state (INV-9)."""
_REMOVALS: Final = 20
_REMOVAL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which state: the newest; or what it was at a time; or of a generation, up to a transaction."""

    at: datetime | None = None
    path: str | None = None
    txid: int | None = None

    async def generation(self, store: Objects, *, timeout: float, now: datetime | None = None) -> str:
        """The path of the generation that holds it.

        Raises:
            NotInReplica: No generation does.
            StoreError: The bucket did not answer, or refused.
        """
        if self.path is not None:
            return self.path
        found = await survey(store, timeout=timeout)
        if self.at is not None:
            path = found.at(self.at, now=now or datetime.now(UTC)).path
            line = [generation.path for generation in found.history]
            for earlier in reversed([*line[: line.index(path)], path]):
                if any(file.time <= self.at for file in (await contents(store, earlier, timeout=timeout)).files):
                    return earlier  # else it had begun by then, and its first file came later
            return path
        if found.record.live is None:
            raise NotInReplica("the store is empty: nothing has been written to it yet")
        return found.record.live

    def end(self, path: str, files: Sequence[File]) -> int:
        """The transaction that the state ends at. Pure.

        Of a time it is the newest that a file is known to end at by then: by its number and not by the files' times, so
        that a clock that was set back leaves no gap.

        Raises:
            NotInReplica: The generation does not have it.
        """
        newest = max((file.last for file in files), default=0)
        if not files:
            raise NotInReplica(f"{path} holds no file; `worker replica` lists what there is")
        if self.txid is not None:
            if not 0 < self.txid <= newest:
                raise NotInReplica(f"{path} has the transactions 1 to {newest}, not {self.txid}")
            return self.txid
        if self.at is None:
            return newest
        end = max((file.last for file in files if file.time <= self.at), default=0)
        if not end:
            raise NotInReplica(f"{path} has no file that ends by then; give a later --at")
        return end


@dataclass(frozen=True, slots=True)
class Restored:
    """A restored state: its generation, the transaction it ends at, when that was committed, and what was left out."""

    generation: str
    txid: int
    time: datetime
    left_out: Sequence[str] = ()


def cover(path: str, files: Collection[File], end: int) -> list[File]:
    """The fewest files that hold every transaction from 1 to `end` and none after it. Pure.

    Raises:
        NotInReplica: They do not; the text names the transactions that are missing.
    """
    usable = [file for file in files if file.last <= end]
    chosen: list[File] = []
    reached = 0
    while reached < end:
        candidates = [file for file in usable if file.first <= reached + 1]
        best = max(candidates, key=lambda file: (file.last, file.level), default=None)
        if best is None or best.last <= reached:
            after = min((file.first for file in usable if file.first > reached + 1), default=end + 1)
            raise NotInReplica(
                f"the transactions {reached + 1} to {after - 1} of {path} are in no whole file that ends by {end}; "
                "`worker replica verify` says which files are damaged, and `worker replica ls` which there are"
            )
        chosen.append(best)
        reached = best.last
    return chosen


async def restore(
    store: Objects,
    wanted: Wanted,
    output: Path,
    *,
    binary: Path,
    integrity_check: str = "quick",
    seconds: float,
    request_seconds: float,
    say: Callable[[str], None],
    now: datetime | None = None,
) -> Restored:
    """Restore a state into a file that must not exist.

    Args:
        store: The bucket.
        wanted: Which state.
        output: The file; its folder must have room for the database and its compressed files.
        binary: Litestream's.
        integrity_check: SQLite's check afterwards: quick, or full, which also compares indexes with tables and takes several
            times as long.
        seconds: Longest all of it may take.
        request_seconds: Longest one request may take.
        say: Told about progress, a line at a time.
        now: The time.

    Raises:
        NotInReplica: The bucket does not hold that state.
        RestoreFailed: The state could not be restored; there is no file then.
        StoreError: The bucket did not answer, or refused; there is no file then.
        OSError: The disk is full or cannot be written, which says nothing about the state; there is no file then.
    """
    patient = store.patient(_PATIENT_SHARE * seconds)
    try:
        async with asyncio.timeout(seconds):
            for attempt in range(1, _ATTEMPTS + 1):
                path = await wanted.generation(patient, timeout=request_seconds, now=now)
                found = await contents(patient, path, timeout=request_seconds)
                try:
                    # Beside the output: the file gets its name when it is whole.
                    with scratch_folder(".restore-", output.parent) as scratch:
                        return await _restore_from(
                            patient,
                            path,
                            found.files,
                            wanted,
                            scratch,
                            output,
                            binary,
                            integrity_check,
                            request_seconds,
                            say,
                        )
                except (StoreMissing, NotInReplica):
                    if attempt == _ATTEMPTS:
                        raise
                    say("files were deleted meanwhile; looking again")
    except TimeoutError:
        raise RestoreFailed(f"{store}: the restore took longer than {seconds:g} s; raise RESTORE_TIMEOUT_SECONDS") from None
    raise AssertionError("the last attempt returns or raises")


class Damaged(msgspec.Struct, frozen=True):
    """A file that is not whole. `lost` says which transactions cannot be restored without it; empty: others hold them."""

    name: str
    why: str
    lost: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The result of checking every file of a generation."""

    generation: str
    files: int
    bytes: int
    txid: int
    damaged: list[Damaged]
    gap: str
    """Which transactions no whole file holds; empty: none."""

    @property
    def sound(self) -> bool:
        """Whether every file is whole, and every transaction in one."""
        return not self.damaged and not self.gap

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.gap:
            return f"this generation cannot be restored to its end: {self.gap}"
        if self.damaged:
            return "every transaction is in a whole file; a restore leaves out the damaged ones"
        return "every file is whole, and they hold every transaction"


async def verify(store: Objects, path: str, *, request_seconds: float) -> Verified:
    """Read every file of a generation and check it; room is needed for a few of them at a time.

    Raises:
        NotInReplica: The generation holds no file.
        StoreError: The bucket did not answer, or refused.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(StoreMissing):  # a file was compacted away meanwhile
            return await _verify(store, path, request_seconds)
    return await _verify(store, path, request_seconds)


async def _verify(store: Objects, path: str, request_seconds: float) -> Verified:
    found = await contents(store, path, timeout=request_seconds)
    if not found.files:
        raise NotInReplica(f"{path} holds no file; `worker replica` lists what there is")
    damage: dict[str, str] = {}
    with scratch_folder("solowriter-verify-", Path(tempfile.gettempdir())) as scratch:

        def check(local: Path) -> None:
            try:
                ltx.check(local)
            except ltx.NotWholeError as error:
                damage[f"{path}/{local.relative_to(scratch)}"] = str(error)
            local.unlink()

        names = [file.name for file in found.files]
        await store.fetch(names, f"{path}/", scratch, timeout=request_seconds, check=check)
    whole = [file for file in found.files if file.name not in damage]
    gap = ""
    try:
        cover(path, whole, found.transactions)
    except NotInReplica as error:
        gap = str(error)
    damaged = []
    for name, why in sorted(damage.items()):
        (file,) = (each for each in found.files if each.name == name)
        lost = f"transactions {file.first} to {file.last}" if gap and not _holds(whole, file) else ""
        damaged.append(Damaged(name, why, lost))
    return Verified(
        generation=path, files=len(found.files), bytes=found.bytes, txid=found.transactions, damaged=damaged, gap=gap
    )


def _holds(files: Sequence[File], wanted: File) -> bool:
    """Whether others hold every transaction of a file. Pure."""
    reached = wanted.first - 1
    for file in sorted(files, key=lambda each: each.first):
        if file.first <= reached + 1:
            reached = max(reached, file.last)
    return reached >= wanted.last


async def _restore_from(
    store: Objects,
    path: str,
    files: Sequence[File],
    wanted: Wanted,
    scratch: Path,
    output: Path,
    binary: Path,
    integrity_check: str,
    request_seconds: float,
    say: Callable[[str], None],
) -> Restored:
    replica, made, end = scratch / "replica", scratch / "restored.db", wanted.end(path, files)
    chosen, left_out = await _fetch(store, path, files, end, replica, request_seconds, say)
    try:
        txid = await litestream.restore(replica, made, binary=binary, integrity_check=integrity_check)
    except RestoreFailed as error:
        if os.strerror(errno.ENOSPC).lower() in str(error).lower():  # which says nothing about the replica
            raise _no_room(output, chosen) from error
        raise RestoreFailed(f"{path} cannot be restored to transaction {end}: {error}") from None
    if txid != end:
        raise RestoreFailed(f"{path} was restored to transaction {txid}, not {end}; nothing was written")
    for suffix in ("", *connections.SIDE_FILES):
        output.with_name(output.name + suffix).unlink(missing_ok=True)
    made.replace(output)
    # The first that ends there: a full copy of the same state is made later.
    return Restored(path, txid, min(file.time for file in files if file.last == txid), left_out)


async def _fetch(
    store: Objects,
    path: str,
    files: Sequence[File],
    end: int,
    replica: Path,
    request_seconds: float,
    say: Callable[[str], None],
) -> tuple[list[File], list[str]]:
    """Bring whole files that cover every transaction up to `end`, and no others; these, and what was left out."""
    usable, fetched = {file.name: file for file in files}, set[str]()
    damage: dict[str, str] = {}

    def check(local: Path) -> None:
        try:
            ltx.check(local)
        except ltx.NotWholeError as error:
            damage[f"{path}/{local.relative_to(replica)}"] = str(error)
            local.unlink()

    while True:
        chosen = _covering(path, usable.values(), end, damage)
        wanted = [file for file in chosen if file.name not in fetched]
        if not wanted:
            break
        say(f"reading {counted(len(wanted), 'file')} of {path}, {sum(file.bytes for file in wanted):,} bytes")
        with _no_room_told(replica, wanted):
            await store.fetch([f.name for f in wanted], f"{path}/", replica, timeout=request_seconds, check=check)
        fetched |= {file.name for file in wanted} - damage.keys()
        for name in damage.keys() & usable.keys():
            del usable[name]
            say(f"{name} is left out: {damage[name]}")
    for name in fetched - {file.name for file in chosen}:  # what a damaged file had seemed to make needless
        (replica / name.removeprefix(f"{path}/")).unlink()
    return chosen, sorted(damage)


def _covering(path: str, files: Collection[File], end: int, damaged: Collection[str]) -> list[File]:
    try:
        return cover(path, files, end)
    except NotInReplica as error:
        if not damaged:
            raise
        raise RestoreFailed(f"{error}. Not whole: {', '.join(sorted(damaged))}") from None


@contextlib.contextmanager
def _no_room_told(output: Path, files: Collection[File]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _no_room(output, files) from error


def _no_room(output: Path, files: Collection[File]) -> OSError:
    size = sum(file.bytes for file in files)
    text = f"no space left: the compressed files have {size:,} bytes, and the database has to fit beside them"
    return OSError(errno.ENOSPC, text, str(output))


@contextlib.contextmanager
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
