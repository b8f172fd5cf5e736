"""Outages: requests are held, then refused; on return everything goes on without a restart, and nothing is lost (INV-9)."""

import asyncio
import contextlib
import os
import resource
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
import pytest

from local.worker_process import WorkerProcess
from tests.crash.arena import WAIT_SECONDS, Arena, arena, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OUTAGE_SECONDS = 12
READERS = 24


async def served_through(scene: Arena, worker: WorkerProcess) -> None:
    """After an outage: the same process acknowledges again."""
    await scene.acknowledged(200)
    assert worker.state() == "serving"
    assert scene.load.answers["500"] == 0


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"action": "hang"}, id="hang"),
        pytest.param({"action": "drop", "share": 0.3}, id="30-percent-of-answers-lost"),
        pytest.param({"action": "error", "status": 503, "share": 0.5}, id="503"),
        pytest.param({"action": "error", "status": 429, "verb": "insert"}, id="429"),
        pytest.param({"action": "delay", "seconds": 1.5}, id="slow"),
    ],
)
def test_bucket_outage_under_load(tmp_path: Path, cycle: int, fault: dict[str, object]) -> None:
    """12 s, more than the hold limit, of a hanging, lossy, refusing or slow bucket under load cost time and nothing else."""

    async def scenario() -> None:
        async with arena(tmp_path, f"bucket: {fault}") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(200)
            scene.gcs.faults.add(**fault)  # type: ignore[arg-type]
            await asyncio.sleep(OUTAGE_SECONDS)  # the outage, not a wait for something
            scene.gcs.faults.clear()
            await served_through(scene, worker)

    asyncio.run(scenario())


def test_litestream_killed_every_second(tmp_path: Path, cycle: int) -> None:
    """12 times under load: kill -9 of the child. It starts again while threads read SQLite, and the worker never ends."""

    async def scenario() -> None:
        async with arena(tmp_path, "Litestream killed every second") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(200)
            with Readers(worker, [*scene.load.acknowledged.values()][:READERS]) as readers:
                killed = 0
                for _ in range(OUTAGE_SECONDS):
                    await asyncio.sleep(1)  # the rhythm of the fault, not a wait for something
                    for pid in scene.litestreams(worker):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                            killed += 1
                assert killed >= OUTAGE_SECONDS / 2
                await served_through(scene, worker)
            assert set(readers.answers) == {"200"}
            print(f"acknowledged while Litestream was killed {killed} times and {readers.answers['200']} pages were read")

    asyncio.run(scenario())


class Readers:
    """Threads that read acknowledged users' pages while their block runs: the worker's threads use SQLite all the time."""

    def __init__(self, worker: WorkerProcess, users: Sequence[int]) -> None:
        self._worker, self._stop = worker, threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(user,), daemon=True) for user in users]
        self.answers: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, user: int) -> None:
        with httpx.Client(timeout=WAIT_SECONDS, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    answer = str(client.get(f"{self._worker.url}/users/{user}").status_code)
                except httpx.TransportError as error:
                    answer = type(error).__name__
                self.answers[answer] += 1


def test_litestream_hanging(tmp_path: Path, cycle: int) -> None:
    """A child that is stopped dead is noticed by its silence, killed, and started again."""

    async def scenario() -> None:
        async with arena(tmp_path, "Litestream hanging") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(200)
            (hung,) = scene.litestreams(worker)
            os.kill(hung, signal.SIGSTOP)
            await until(lambda: hung not in scene.litestreams(worker), "the end of the hung child")
            await served_through(scene, worker)

    asyncio.run(scenario())


def test_local_disk_full(tmp_path: Path, cycle: int) -> None:
    """No file may grow any more: messages are refused with 503, none is acknowledged, and service returns with the space."""

    async def scenario() -> None:
        async with arena(tmp_path, "disk full") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(200)
            wal = worker.disk / "users.db-wal"
            limit_files(scene, worker, wal.stat().st_size)
            await until(lambda: scene.load.answers["503"] > 50, "refusals")
            limit_files(scene, worker, resource.RLIM_INFINITY)
            await served_through(scene, worker)

    asyncio.run(scenario())


def limit_files(scene: Arena, worker: WorkerProcess, size: int) -> None:
    """Let no file of the worker or its Litestream grow beyond `size` bytes, which is what they see of a full disk."""
    for pid in (worker.pid, *scene.litestreams(worker)):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
