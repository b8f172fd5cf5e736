"""Outages: requests are held, then refused; on return everything goes on without a restart, and nothing is lost (INV-9)."""

import asyncio
import contextlib
import os
import resource
import signal
from pathlib import Path

import pytest

from local.worker_process import WorkerProcess
from tests.crash.arena import Arena, arena, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OUTAGE_SECONDS = 20


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
    """20 s of a hanging, lossy, refusing or slow bucket under load cost time and nothing else."""

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
    """20 times: kill -9 of the child under load, beside readers. It is started again, and the worker never ends."""

    async def scenario() -> None:
        async with arena(tmp_path, "Litestream killed every second") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(200)
            killed = 0
            for _ in range(OUTAGE_SECONDS):
                await asyncio.sleep(1)  # the rhythm of the fault, not a wait for something
                for pid in scene.litestreams(worker):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
            assert killed >= OUTAGE_SECONDS / 2
            await served_through(scene, worker)

    asyncio.run(scenario())


def test_litestream_hanging(tmp_path: Path, cycle: int) -> None:
    """A child that is stopped dead is noticed by its silence, killed, and started again."""

    async def scenario() -> None:
        async with arena(tmp_path, "Litestream hanging") as scene:
            worker = scene.worker("r1", LITESTREAM_SILENT_MAX="2")
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
