"""Shutdown: in time, with the lease released, and losing nothing however it is cut short."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.crash.arena import arena

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
