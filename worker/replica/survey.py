"""Surveys the bucket: the generations, which of them holds a moment, and the files of one. It changes nothing.

A generation covers the time from its beginning until the next one that was live began. Which ones were live follows
from the manifests: the live one, what it replaced, what that one replaced, and so on. A generation beside that line was
begun by a process that died before it could make it live; nothing in it was ever acknowledged.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from publisher.values import rfc3339
from worker.bucket import Objects
from worker.errors import NotInReplica
from worker.lease.record import Record, look
from worker.replica.layout import MANIFEST, ROOT, File, Manifest, files, read_manifest

_READ_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Generation:
    """One writer life's replica. `ended` is when the next one began."""

    path: str
    manifest: Manifest
    live: bool
    ended: datetime | None

    @property
    def began(self) -> datetime:
        """When it began: after the one before was sealed."""
        return self.manifest.started_at


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of a generation."""

    files: Sequence[File]
    bytes: int
    objects: int

    @property
    def transactions(self) -> int:
        """The newest transaction's number; 0 while there is no file."""
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
            if generation.began <= moment:
                found = generation
        if found is None:
            oldest = (
                f"the oldest state kept is of {rfc3339(self.history[0].began)}" if self.history else "the store is empty"
            )
            raise NotInReplica(f"nothing is kept of {rfc3339(moment)}: {oldest}; `worker replica` lists what there is")
        return found

    def replaced_since(self, path: str) -> list[Generation]:
        """The generations that recoveries replaced since that one was live, oldest first: their last states are undone."""
        paths = [generation.path for generation in self.history]
        later = self.history[paths.index(path) + 1 :] if path in paths else ()
        wanted = {generation.manifest.replaced for generation in later}
        return [generation for generation in self.history if generation.path in wanted]


async def survey(store: Objects, *, timeout: float) -> Survey:
    """Look at the lease record and at every generation's manifest; `timeout` is for each request.

    Raises:
        StoreMissing: There is no store.
        RecordInvalid: The record or a manifest cannot be read.
        StoreError: The bucket did not answer, or refused.
    """
    record, _ = await look(store, timeout=timeout)
    paths = [f"{ROOT}{folder}" for folder in await store.folders(ROOT, timeout=timeout)]
    manifests: dict[str, Manifest] = {}

    async def read(path: str) -> None:
        found = await store.read(f"{path}/{MANIFEST}", timeout=timeout)
        if found is not None:  # else what is left of a pruned one: its seal
            manifests[path] = read_manifest(found[0], path)

    for some in (paths[at : at + _READ_AT_ONCE] for at in range(0, len(paths), _READ_AT_ONCE)):
        await asyncio.gather(*map(read, some))
    line = lineage(manifests, record.live)
    ends = {path: manifests[successor].started_at for path, successor in itertools.pairwise(line)}
    generations = {
        path: Generation(path, manifests[path], live=path == record.live, ended=ends.get(path)) for path in sorted(manifests)
    }
    return Survey(
        record,
        [generations[path] for path in line],
        [generation for path, generation in generations.items() if path not in line],
    )


async def contents(store: Objects, path: str, *, timeout: float) -> Contents:
    """List one generation. What is moved up a level meanwhile is found: the levels are listed from the lowest.

    Raises:
        StoreError: The bucket did not answer, or refused.
    """
    stored = await store.objects(f"{path}/", timeout=timeout)
    return Contents(files(path, stored), sum(each.bytes for each in stored), len(stored))


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
