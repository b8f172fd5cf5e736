"""kill -9 at any moment, disk gone: what was acknowledged is in the bucket (INV-1), once (INV-3)."""

import asyncio
from pathlib import Path

import pytest

from local.gcs_process import FakeGcs
from local.worker_process import WorkerProcess
from tests.crash.arena import Arena, arena
from worker.replica.layout import path_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LANES = 3
"""Stores killed side by side: most of a cycle is waiting for the dead holder's lease to run out."""
KILLS = 3
"""Per lane: 27 in all."""
ACKNOWLEDGED_BEFORE_KILL = 100


def test_killed_at_a_random_moment_nothing_acknowledged_is_lost(tmp_path: Path, cycle: int) -> None:
    """9 times: load, kill -9 of worker and Litestream, disk wiped, plain restore: all that got 2xx is there, once."""
    with FakeGcs(tmp_path / "gcs", buckets=("bucket",), log=tmp_path / "gcs.log") as gcs:
        lanes = [Arena(tmp_path, gcs, f"lane{lane}") for lane in range(LANES)]

        async def all_lanes() -> None:
            await asyncio.gather(*(kill_again_and_again(lane) for lane in lanes))

        asyncio.run(all_lanes())
    counts = [len(lane.load.acknowledged) for lane in lanes]
    print(f"{LANES * KILLS} kills: {sum(counts)} acknowledged, none lost")
    assert min(counts) >= KILLS * ACKNOWLEDGED_BEFORE_KILL


async def kill_again_and_again(scene: Arena) -> None:
    """One store's cycles, each ended by a proof."""
    worker = scene.worker("r1")
    scene.load.traffic = {worker.url: 1}
    try:
        async with scene.load.running():
            for _ in range(KILLS):
                worker.start()
                await scene.acknowledged(ACKNOWLEDGED_BEFORE_KILL)
                await asyncio.sleep(scene.chance.random() / 2)  # the random moment, not a wait for something
                worker.kill()
                worker.wipe()
                await scene.prove()
    except BaseException:
        print(f"seed {scene.seed}: {worker.tail()}")
        raise
    finally:
        worker.kill()


STARTING = {
    "before the seal": (f"*/{path_of(1)}/ltx/0/*", 1),
    "before the manifest": ("*/generations/*/manifest.json", 1),
    "during the full copy": (f"*/{path_of(2)}/ltx/*", 1),
    "before the live switch": ("*/lease.json", 2),
}
"""Where a start can die: the object whose write is held up, and which of its writes."""


@pytest.mark.parametrize("where", STARTING)
def test_killed_between_acquire_and_the_live_switch(tmp_path: Path, where: str, cycle: int) -> None:
    """A start that dies half-way leaves the old generation live and whole; the next start goes on from it."""

    async def scenario() -> None:
        async with arena(tmp_path, f"killed {where}") as scene:
            worker = scene.worker("r1")
            scene.load.traffic = {worker.url: 1}
            worker.start()
            await scene.acknowledged(100)
            worker.kill()
            worker.wipe()
            await die_while_starting(scene, worker, *STARTING[where])
            await scene.prove()
            worker.start()
            await scene.acknowledged(100)

    asyncio.run(scenario())


async def die_while_starting(scene: Arena, worker: WorkerProcess, name: str, nth: int) -> None:
    """Hold up the `nth` write of `name` in a start, and kill it there."""
    faults = scene.gcs.faults
    if nth == 1:
        rule = faults.add(verb="insert", name=name, action="hang")
        worker.start()
        await scene.hit(rule)
    else:
        # The first write acquires; renewals come a second later, like the switch. Either is before it has happened.
        first = faults.add(verb="insert", name=name, action="delay", seconds=0, times=1)
        worker.start()
        await scene.hit(first)
        rule = faults.add(verb="insert", name=name, action="hang")
        await scene.hit(rule)
    worker.kill()
    worker.wipe()
    faults.clear()
