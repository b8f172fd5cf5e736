"""One store in a fake bucket: its workers, their logs, its objects. All of it on a memory file system, if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx

from bench.errors import Worthless
from bench.pushes import Pushes
from local.gcs_process import FakeGcs
from local.proof import live_generation, prove, restore
from local.worker_process import ROOT, WorkerProcess

MEGABYTE: Final = 1_000_000
_MEMORY: Final = Path("/dev/shm")
_BUCKET: Final = "bench"
NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
BUCKET_URL: Final = f"gs://{_BUCKET}"
_TRANSFER_SECONDS: Final = 120
_SETTINGS_BYTES: Final = 100_000
_FILL_IN_FLIGHT: Final = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of the bucket. `updated` is in seconds since the epoch."""

    name: str
    size: int
    updated: float


@dataclass(slots=True)
class Store:
    """Made by `open_store`. Its first worker initializes it."""

    directory: Path
    gcs: FakeGcs
    replica_url: str = f"{BUCKET_URL}/store"
    workers: list[WorkerProcess] = field(default_factory=list)
    _others: list[Store] = field(default_factory=list)
    _latency: list[int] = field(default_factory=list)  # the rules that add it

    def worker(self, revision: str, settings: Mapping[str, str] = NO_SETTINGS, *, code: Path = ROOT) -> WorkerProcess:
        """A place for a worker of that version of the code, with a disk of its own; not started."""
        worker = WorkerProcess(
            disk=self.directory / revision,
            replica_url=self.replica_url,
            environment={**self.gcs.environment(), "K_REVISION": revision, **settings},
            port=0,
            log=self.directory / f"{revision}.log",
            code=code,
        )
        if not self.workers:
            init = worker.run("init")
            if init.returncode != 0:
                raise RuntimeError(f"worker init failed: {init.stderr.strip()}")
        self.workers.append(worker)
        return worker

    def beside(self, prefix: str) -> Store:
        """Another store in the same bucket: the same requests meet the same latency."""
        directory = self.directory / prefix
        directory.mkdir()
        other = Store(directory, self.gcs, f"{BUCKET_URL}/{prefix}")
        self._others.append(other)
        return other

    def fill(self, pushes: Pushes, megabytes: int) -> None:
        """Users of that size in all, whose settings nothing can compress."""
        users = max(1, megabytes * MEGABYTE // _SETTINGS_BYTES)
        asyncio.run(pushes.send(users, in_flight=_FILL_IN_FLIGHT, settings_bytes=_SETTINGS_BYTES if megabytes else 0))

    def kill(self) -> None:
        """Every worker of this store and of those beside it."""
        for worker in self.workers:
            worker.kill()
        for other in self._others:
            other.kill()

    @property
    def prefix(self) -> str:
        """Where it lies in the bucket."""
        return self.replica_url.removeprefix(f"{BUCKET_URL}/")

    def latency(self, *, put_ms: float, get_ms: float) -> None:
        """From now on every write of the bucket takes `put_ms` longer, and every read of an object `get_ms`."""
        faults = self.gcs.faults
        while self._latency:
            faults.remove(self._latency.pop())
        if put_ms:
            self._latency.append(faults.add(action="delay", verb="insert", seconds=put_ms / 1000))
        if get_ms:
            self._latency.append(faults.add(action="delay", verb="get", seconds=get_ms / 1000))
            self._latency.append(faults.add(action="delay", verb="download", seconds=get_ms / 1000))

    def generations(self) -> dict[str, list[Stored]]:
        """The objects of each generation, oldest generation first; its path under the bucket is the key."""
        found: dict[str, list[Stored]] = {}
        for stored in self.objects(f"{self.prefix}/generations/"):
            found.setdefault("/".join(stored.name.split("/")[:3]), []).append(stored)
        return found

    def live(self) -> str:
        """The live generation's path under the bucket."""
        return live_generation(self.gcs.url, self.replica_url)

    def restore_seconds(self, generation: str) -> float:
        """How long plain `litestream restore` of a generation takes, with a full integrity check."""
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            began = time.monotonic()
            restore(self.gcs.url, f"gs://{_BUCKET}/{generation}", Path(scratch) / "restored.db")
            return time.monotonic() - began

    def one_way_seconds(self, size: int) -> tuple[float, float]:
        """How long one PUT of `size` bytes that nothing can compress takes, and one GET of them."""
        data = os.urandom(size)
        with httpx.Client(base_url=self.gcs.url, trust_env=False, timeout=_TRANSFER_SECONDS) as client:
            client.get("/_stats")  # the connection is open already, as Litestream's and the worker's are
            began = time.monotonic()
            upload = client.post(
                f"/upload/storage/v1/b/{_BUCKET}/o", params={"uploadType": "media", "name": "one-way"}, content=data
            )
            written = time.monotonic()
            upload.raise_for_status()
            got = client.get(f"/storage/v1/b/{_BUCKET}/o/one-way", params={"alt": "media"})
            read = time.monotonic()
            if got.raise_for_status().content != data:
                raise RuntimeError("the bucket gave back other bytes than it was given")
        return written - began, read - written

    def check(self, acknowledged: Mapping[str, int] | Collection[str]) -> None:
        """Restore the live generation and look for everything that was acknowledged.

        Raises:
            Worthless: Something is missing, or there twice.
        """
        proof = prove(self.gcs.url, self.replica_url, acknowledged)
        if not proof.holds:
            raise Worthless(f"lost {len(proof.lost)} acknowledged messages, {len(proof.duplicated)} users twice")

    def check_count(self, acknowledged: int) -> None:
        """As `check`, for distinct users that were only counted: a receipt and a user for each must be there.

        Raises:
            Worthless: See `check`.
        """
        proof = prove(self.gcs.url, self.replica_url, ())
        if proof.receipts < acknowledged:
            raise Worthless(f"{acknowledged} acknowledged, but only {proof.receipts} in {self.replica_url}")
        if proof.users != proof.receipts or not proof.holds:
            raise Worthless(f"{proof.receipts} messages made {proof.users} users: they were not distinct")

    def objects(self, prefix: str) -> Iterator[Stored]:
        """The objects of the bucket whose names begin so, in order."""
        parameters = {"prefix": prefix}
        while True:
            url = f"{self.gcs.url}/storage/v1/b/{_BUCKET}/o"
            page = httpx.get(url, params=parameters, trust_env=False, timeout=_TRANSFER_SECONDS).raise_for_status().json()
            for item in page.get("items", ()):
                updated = datetime.fromisoformat(item["updated"]).timestamp()
                yield Stored(item["name"], int(item["size"]), updated)
            if "nextPageToken" not in page:
                return
            parameters["pageToken"] = page["nextPageToken"]


def memory() -> Path | None:
    """Where files lie in memory, as on Cloud Run; None where there is no such place."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


@contextlib.contextmanager
def open_store() -> Iterator[Store]:
    """A new store; its workers are killed and everything is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="solowriter-bench-", dir=memory()) as name:
        directory = Path(name)
        with FakeGcs(directory / "gcs", buckets=(_BUCKET,), log=directory / "gcs.log") as gcs:
            store = Store(directory, gcs)
            try:
                yield store
            finally:
                store.kill()


def metric(worker: WorkerProcess, name: str) -> int:
    """The value of a whole-numbered metric without labels."""
    page = httpx.get(f"{worker.url}/metrics", trust_env=False, timeout=30).raise_for_status().text
    (value,) = [line.split()[1] for line in page.splitlines() if line.split()[0] == name]
    return round(float(value))


def logged(worker: WorkerProcess, action: str) -> list[tuple[float, str]]:
    """When (seconds since the epoch) a worker logged an action, and the message, in order."""
    found = []
    for line in worker.log.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            event: Any = json.loads(line)
            if isinstance(event, dict) and event.get("action") == action:
                found.append((datetime.fromisoformat(event["time"]).timestamp(), str(event["message"])))
    return found
