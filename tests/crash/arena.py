"""One store, its fake Cloud Storage, the workers that contend for it, and the load: what every crash test happens in."""

import asyncio
import contextlib
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from local.gcs_process import FakeGcs
from local.proof import Proof, prove
from local.worker_process import WorkerProcess
from tests.crash.load import ACK_DEADLINE_SECONDS, Load

WAIT_SECONDS = 90.0
QUICK = {
    "LEASE_TTL_SECONDS": "3.1",
    "ACK_DEADLINE_SECONDS": f"{ACK_DEADLINE_SECONDS}",
}
"""Short times, so that a test is mostly load. The hold limit is 80 % of the ack deadline."""


async def until(condition: Callable[[], bool], what: str, *, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition of the load, a worker or the bucket.

    Raises:
        TimeoutError: It did not come within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {seconds:g} s") from None


class Arena:
    """Made by `arena`. Messages are numbered through over the whole test."""

    def __init__(self, directory: Path, gcs: FakeGcs, store: str = "store") -> None:
        self.directory, self.gcs = directory, gcs
        self.replica_url = f"gs://bucket/{store}"
        self.seed = random.SystemRandom().randrange(2**32)
        self.chance = random.Random(self.seed)
        self.load = Load(store, self.seed)
        self.workers: dict[str, WorkerProcess] = {}

    def worker(self, name: str, **settings: str) -> WorkerProcess:
        """A place for a worker of revision `name`; not started. The first one initializes the store."""
        worker = WorkerProcess(
            disk=self.directory / f"{self.load.name}-{name}",
            replica_url=self.replica_url,
            environment={**self.gcs.environment(), **QUICK, "K_REVISION": name, **settings},
            port=0,
            log=self.directory / f"{self.load.name}-{name}.log",
        )
        if not self.workers:
            init = worker.run("init")
            assert init.returncode == 0, init.stderr
        self.workers[name] = worker
        return worker

    async def acknowledged(self, more: int) -> None:
        """Wait for `more` acknowledgements from now on."""
        enough = len(self.load.acknowledged) + more
        await until(lambda: len(self.load.acknowledged) >= enough, f"{more} more acknowledgements")

    async def serving(self, worker: WorkerProcess) -> None:
        """Wait until a worker serves."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await asyncio.to_thread(worker.state) != "serving":  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)

    async def ended(self, worker: WorkerProcess) -> int:
        """Wait until a worker has ended; its exit code."""
        return await asyncio.to_thread(worker.wait, seconds=WAIT_SECONDS)

    async def hit(self, rule: int, at_least: int = 1) -> None:
        """Wait until a fault rule has struck."""
        await asyncio.to_thread(self.gcs.faults.wait_for_hits, rule, at_least, WAIT_SECONDS)

    def freeze(self, worker: WorkerProcess) -> None:
        """SIGSTOP of the worker and its Litestream, as a platform freezes an instance."""
        os.killpg(worker.pid, signal.SIGSTOP)

    def thaw(self, worker: WorkerProcess) -> None:
        """SIGCONT of both."""
        os.killpg(worker.pid, signal.SIGCONT)

    def litestreams(self, worker: WorkerProcess) -> list[int]:
        """The pids of a worker's Litestream children."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                match = re.match(r"(\d+) \((.*)\) \S (\d+)", stat.read_text())
                if match and match[2] == "litestream" and int(match[3]) == worker.pid:
                    found.append(int(match[1]))
        return found

    async def settle(self) -> None:
        """Send nothing new, and wait until everything sent has been acknowledged: nothing stays stuck."""
        self.load.finish()
        await until(lambda: self.load.finished, f"the last acknowledgements ({self.load.answers})")

    async def prove(self) -> Proof:
        """Restore the live generation afresh: what was acknowledged is there, once.

        Raises:
            AssertionError: Something is missing or there twice.
        """
        proof = await asyncio.to_thread(prove, self.gcs.url, self.replica_url, dict(self.load.acknowledged))
        assert proof.holds, f"seed {self.seed}: {proof}"
        return proof


@contextlib.asynccontextmanager
async def arena(directory: Path, what: str) -> AsyncIterator[Arena]:
    """A new store, with load running in the block. At the end everything sent is acknowledged and proved; prints counts."""
    with FakeGcs(directory / "gcs", buckets=("bucket",), log=directory / "gcs.log") as gcs:
        scene = Arena(directory, gcs)
        try:
            async with scene.load.running():
                yield scene
                await scene.settle()
            proof = await scene.prove()
            print(
                f"{what}: {len(scene.load.acknowledged)} acknowledged, {proof.receipts} in the bucket, "
                f"lost {len(proof.lost)}, twice {len(proof.duplicated)}, answers {dict(scene.load.answers)}"
            )
        except BaseException:
            for name, worker in scene.workers.items():
                print(f"--- seed {scene.seed}, {name}: {worker.tail(4000)}")
            raise
        finally:
            for worker in scene.workers.values():
                worker.kill()
