"""Shutdown: in time, with the lease released, and losing nothing however it is cut short."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.crash.arena import arena
from worker.replica.layout import path_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STOP_SECONDS = 8


@pytest.mark.parametrize("then", ["nothing", "a second SIGTERM", "SIGKILL"])
def test_sigterm_under_load(tmp_path: Path, cycle: int, then: str) -> None:
    """SIGTERM ends in under 8 s with the lease released; a second one or a SIGKILL on top loses nothing either."""

    async def scenario() -> None:
        async with arena(tmp_path, f"SIGTERM, then {then}") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(200)
            loop = asyncio.get_running_loop()
            began = loop.time()
            worker.send(signal.SIGTERM)
            if then != "nothing":
                await asyncio.sleep(scene.chance.random() / 2)  # the random moment, not a wait for something
                if worker.state() != "ended":
                    worker.send(signal.SIGKILL if then == "SIGKILL" else signal.SIGTERM)
            code = await scene.ended(worker)
            assert loop.time() - began < STOP_SECONDS
            worker.kill()  # whatever a SIGKILL has left
            worker.wipe()
            status = worker.run("lease", "show", "--json")
            if then == "nothing":
                assert code == 0
                assert '"state":"released"' in status.stdout
            await scene.prove()
            worker.start()
            await scene.acknowledged(100)

    asyncio.run(scenario())


MIDDLES = {
    "the restore": ("download", f"*/{path_of(1)}/ltx/*"),
    "the seal": ("insert", f"*/{path_of(1)}/ltx/0/*"),
    "the manifest": ("insert", f"*/{path_of(2)}/manifest.json"),
    "the full copy": ("insert", f"*/{path_of(2)}/ltx/*"),
    "the live switch": ("insert", "*/lease.json"),
}
"""What is held up when SIGTERM comes."""


@pytest.mark.parametrize("where", MIDDLES)
def test_sigterm_in_the_middle_of_changing_the_generation(tmp_path: Path, cycle: int, where: str) -> None:
    """Where a generation is only half begun, SIGTERM ends in time as well, and leaves the old one live and whole."""

    async def scenario() -> None:
        async with arena(tmp_path, f"SIGTERM in {where}") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(100)
            verb, name = MIDDLES[where]
            faults = scene.gcs.faults
            assert await asyncio.to_thread(worker.stop) == 0
            worker.wipe()
            if where == "the live switch":  # the first write of the record takes the lease
                taken = faults.add(verb="insert", name=name, action="delay", seconds=0, times=1)
                worker.start()
                await scene.hit(taken)
                rule = faults.add(verb="insert", name=name, action="hang", times=1)
            else:
                rule = faults.add(verb=verb, name=name, action="hang")  # type: ignore[arg-type]
                worker.start()
            await scene.hit(rule)
            loop = asyncio.get_running_loop()
            began = loop.time()
            worker.send(signal.SIGTERM)
            assert await scene.ended(worker) == 0
            assert loop.time() - began < STOP_SECONDS
            assert '"state":"released"' in worker.run("lease", "show", "--json").stdout
            faults.clear()
            worker.wipe()
            await scene.prove()
            worker.start()
            await scene.acknowledged(100)

    asyncio.run(scenario())
