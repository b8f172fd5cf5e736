"""kill -9 at any moment, disk gone: what was acknowledged is in the bucket (INV-1), once (INV-3)."""

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from local.gcs_process import FakeGcs
from local.proof import prove
from local.stack import QUICK_LEASE
from local.worker_process import WorkerProcess
from tests.crash.load import Load

LANES = 3
"""Stores killed side by side: most of a cycle is waiting for the dead holder's lease to run out."""
CYCLES = 9
"""Per lane: 27 in all."""
ACKNOWLEDGED_BEFORE_KILL = 100
CYCLE_SECONDS = 60


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition of the load or the worker.

    Raises:
        TimeoutError: It did not come within CYCLE_SECONDS.
    """
    try:
        async with asyncio.timeout(CYCLE_SECONDS):
            while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {CYCLE_SECONDS} s") from None


def has_acknowledged(load: Load, count: int) -> bool:
    """Whether so many messages got a 2xx."""
    return len(load.acknowledged) >= count


@contextlib.asynccontextmanager
async def running(load: Load) -> AsyncIterator[None]:
    """Send load while the block runs."""
    task = asyncio.create_task(load.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_a_random_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """27 times: load, kill -9 of worker and Litestream, disk wiped, plain restore: all that got 2xx is there, once."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    with FakeGcs(tmp_path / "gcs", buckets=("bucket",), log=tmp_path / "gcs.log") as gcs:

        async def lanes() -> list[Load]:
            return await asyncio.gather(*(kill_again_and_again(tmp_path, gcs, lane, seed) for lane in range(LANES)))

        loads = asyncio.run(lanes())
    for load in loads:
        print(load.name, f"{len(load.acknowledged)} acknowledged", dict(load.answers))
    assert all(len(load.acknowledged) >= CYCLES * ACKNOWLEDGED_BEFORE_KILL for load in loads)


async def kill_again_and_again(tmp_path: Path, gcs: FakeGcs, lane: int, seed: int) -> Load:
    """One store's cycles."""
    chance = random.Random(f"{seed}-{lane}")
    worker = WorkerProcess(
        disk=tmp_path / f"disk{lane}",
        replica_url=f"gs://bucket/lane{lane}",
        environment={**gcs.environment(), **QUICK_LEASE, "LEASE_TTL_SECONDS": "3.1", "LEASE_RENEW_SECONDS": "1"},
        port=0,
        log=tmp_path / f"worker{lane}.log",
    )
    assert worker.run("init").returncode == 0
    load = Load(worker.url, f"lane{lane}", chance.randrange(2**32))
    try:
        async with running(load):
            for cycle in range(CYCLES):
                enough = len(load.acknowledged) + ACKNOWLEDGED_BEFORE_KILL
                worker.start()
                await until(functools.partial(has_acknowledged, load, enough), f"{enough} acknowledgements, cycle {cycle}")
                await asyncio.sleep(chance.random() / 2)  # the random moment, not a wait for something
                worker.kill()
                worker.wipe()
                acknowledged = dict(load.acknowledged)
                proof = await asyncio.to_thread(prove, gcs.url, f"gs://bucket/lane{lane}", acknowledged)
                assert proof.holds, f"lane {lane}, cycle {cycle}, seed {seed}: {proof}"
    except BaseException:
        print(f"lane {lane}: {worker.tail()}")
        raise
    finally:
        worker.kill()
    return load
