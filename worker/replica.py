"""What is in the bucket: the generations, the files of each, and which of them holds a moment. It changes nothing.

A generation covers the time from its own first file until the next one that was live began. Which ones were live follows
from the manifests: the live one, what it replaced, what that one replaced, and so on. A generation beside that line was
begun by a process that died before it could make it live; nothing in it was ever acknowledged.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from worker.errors import NotInReplica
from worker.layout import MANIFEST, ROOT, File, Manifest, StoredObject, files, read_manifest
from worker.lease_record import Record, Store, look
from worker.wording import rfc3339


class Objects(Store, Protocol):
    """What looking at a replica needs of the bucket; each call may raise `StoreError`."""

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """The objects below a prefix, in order of their names."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One writer life's replica."""

    path: str
    manifest: Manifest
    files: Sequence[File]
    bytes: int
    objects: int
    live: bool
    ended: datetime | None

    @property
    def began(self) -> datetime | None:
        """When its first transaction was committed; None while there is no file."""
        return min((file.time for file in self.files), default=None)

    @property
    def transactions(self) -> int:
        """The newest transaction's number."""
        return max((file.last for file in self.files), default=0)


@dataclass(frozen=True, slots=True)
class Survey:
    """The store at one look. `history` are the generations that are or were live, `others` those that never were."""

    record: Record
    history: Sequence[Generation]
    others: Sequence[Generation]

    def of_epoch(self, epoch: int) -> Generation:
        """The generation of an epoch.

        Raises:
            NotInReplica: There is none.
        """
        for generation in (*self.history, *self.others):
            if generation.manifest.epoch == epoch:
                return generation
        raise NotInReplica(f"there is no generation of epoch {epoch}; `worker replica` lists what there is")

    def at(self, moment: datetime, *, now: datetime) -> Generation:
        """The generation that was live at a moment.

        Raises:
            NotInReplica: The moment lies before the first one, or in the future.
        """
        if moment > now:
            raise NotInReplica(f"{rfc3339(moment)} is in the future: it is {rfc3339(now)} now")
        found = None
        for generation in self.history:
            if generation.began is not None and generation.began <= moment:
                found = generation
        if found is None:
            began = [generation.began for generation in self.history if generation.began is not None]
            oldest = f"the oldest state kept is of {rfc3339(began[0])}" if began else "the store is empty"
            raise NotInReplica(f"nothing is kept of {rfc3339(moment)}: {oldest}; `worker replica` lists what there is")
        return found

    def replaced_since(self, path: str) -> list[Generation]:
        """What recoveries have replaced since that generation was live, oldest first: their last states were undone."""
        paths = [generation.path for generation in self.history]
        later = self.history[paths.index(path) + 1 :] if path in paths else ()
        wanted = {generation.manifest.replaced for generation in later}
        return [generation for generation in self.history if generation.path in wanted]


async def survey(store: Objects, *, timeout: float) -> Survey:
    """Look at the lease record and at every generation.

    Raises:
        StoreMissing: There is no store.
        RecordInvalid: The record or a manifest cannot be read.
        StoreError: The bucket did not answer, or refused.
    """
    record, _ = await look(store, timeout=timeout)
    by_path: dict[str, list[StoredObject]] = {}
    for stored in await store.objects(ROOT, timeout=timeout):
        folder, _, _ = stored.name.removeprefix(ROOT).partition("/")
        by_path.setdefault(f"{ROOT}{folder}", []).append(stored)
    manifests: dict[str, Manifest] = {}
    for path in by_path:
        found = await store.read(f"{path}/{MANIFEST}", timeout=timeout)
        if found is not None:
            manifests[path] = read_manifest(found[0], path)
    line = lineage(manifests, record.live)
    ends = _ends(line, by_path)

    def generation(path: str) -> Generation:
        stored = by_path[path]
        return Generation(
            path,
            manifests[path],
            files(path, stored),
            sum(each.bytes for each in stored),
            len(stored),
            live=path == record.live,
            ended=ends.get(path),
        )

    return Survey(
        record, [generation(path) for path in line], [generation(path) for path in sorted(manifests) if path not in line]
    )


def lineage(manifests: Mapping[str, Manifest], live: str | None) -> list[str]:
    """The generations that are or were live and are still there, oldest first. Pure."""
    line: list[str] = []
    path = live
    if live is not None and live not in manifests:  # it was lost: what it continued is still there
        path = max((path for path in manifests if path < live), default=None)
    while path is not None and path in manifests and path not in line:
        line.append(path)
        path = manifests[path].replaced or manifests[path].base
    return line[::-1]


def _ends(line: Sequence[str], by_path: Mapping[str, Sequence[StoredObject]]) -> dict[str, datetime]:
    """When each generation but the last was left: when the next one's first file was committed."""
    ends = {}
    for path, successor in itertools.pairwise(line):
        times = [file.time for file in files(successor, by_path[successor])]
        if times:
            ends[path] = min(times)
    return ends
