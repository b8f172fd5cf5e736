"""Whatever stops it, the next start serves: what a stop can leave in the bucket never hides what was acknowledged."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.proof import live_generation
from local.worker_process import WorkerProcess, wait_until
from tests.processes import BUCKET, PREFIX, QUICK, URL, Objects, push
from tests.stopping import (
    ONE_PART,
    SECOND_PART,
    STOPS,
    UNANSWERED,
    UPLOADS,
    WHOLE,
    Moment,
    Stop,
    quick_config,
    stop_in_turn,
    stopped,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def objects(fake_gcs: FakeGcs) -> Iterator[Objects]:
    """The bucket's objects."""
    found = Objects(fake_gcs)
    found.initialize()
    yield found
    found.close()


def test_a_snapshot_that_a_stop_has_cut_off_does_not_hide_level_0(
    tmp_path: Path, fake_gcs: FakeGcs, objects: Objects
) -> None:
    """INV-10: Litestream's client finalizes what it had sent of a snapshot when it was stopped; the next start serves."""
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url=URL,
        environment={**fake_gcs.environment(), **QUICK},
        port=0,
        log=tmp_path / "worker.log",
    )
    try:
        worker.start().wait_serving()
        assert push(worker, 1, "m1").status_code == 204
        path = live_generation(fake_gcs.url, URL).removeprefix(f"gs://{BUCKET}/")
        wait_until(lambda: bool(objects.names(f"{path}/ltx/9/")), "a snapshot")
        assert push(worker, 2, "m2").status_code == 204
        worker.kill()
        worker.wipe()
        for snapshot in objects.names(f"{path}/ltx/9/"):
            whole = objects.read(snapshot)
            objects.write(snapshot, whole[: len(whole) // 2])
        worker.start().wait_serving()
        assert [worker_user(worker, user) for user in (1, 2)] == [200, 200]
        assert "restore.left_out" in worker.log.read_text()
        assert worker.run("restore", "-o", str(tmp_path / "copy.db"), "--epoch", "1").returncode == 0
        assert path.startswith(PREFIX)
    finally:
        worker.kill()


STORES_AT_ONCE = 8
SIZES = {0: ONE_PART, 17_500_000: (SECOND_PART, WHOLE, UNANSWERED)}
"""Bytes of bulk in a store, and the moments there. More than 16 MB go in two parts."""


@pytest.mark.timeout(600)  # two cores take a minute and a half; three other tests may run beside it
def test_a_stop_in_any_upload_leaves_a_generation_that_can_be_restored(tmp_path: Path) -> None:
    """INV-1, INV-10: plain Litestream restores it, nothing acknowledged is missing, and the next worker serves.

    Each upload, small and large, meets each stop and each moment, and each stop meets each moment. All three together,
    which take many minutes: `make torture`.
    """
    config = quick_config(tmp_path)
    stores = [(size, number, stop) for size in SIZES for number, stop in enumerate(STOPS)]

    def run(store: tuple[int, int, Stop]) -> set[tuple[str, Moment]]:
        size, number, stop = store
        moments = SIZES[size]
        combinations = [(upload, moments[(number + at) % len(moments)]) for at, upload in enumerate(UPLOADS)]
        with stopped(fakes[number % len(fakes)], tmp_path, f"store-{size}-{number}", config) as scene:
            stop_in_turn(scene, stop, combinations, size=size)
        return set(combinations)

    with FakeGcs(tmp_path / "gcs1", buckets=(BUCKET,)) as one, FakeGcs(tmp_path / "gcs2", buckets=(BUCKET,)) as two:
        fakes = (one, two)
        with ThreadPoolExecutor(STORES_AT_ONCE) as threads:
            met = set[tuple[str, Moment]]().union(*threads.map(run, stores))
    assert met == {(upload, moment) for upload in UPLOADS for moments in SIZES.values() for moment in moments}


def worker_user(worker: WorkerProcess, user: int) -> int:
    """The status of a user's page."""
    return httpx.get(f"{worker.url}/users/{user}", timeout=10, trust_env=False).status_code
