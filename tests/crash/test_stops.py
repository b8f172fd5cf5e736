"""Stops over and over, with databases of up to 300 MB: every generation can be restored, and every start serves (INV-10)."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from local.gcs_process import FakeGcs
from tests.processes import BUCKET
from tests.stopping import (
    ONE_PART,
    PART,
    SEVERAL_PARTS,
    STOPS,
    UPLOADS,
    Stop,
    Stopped,
    fill,
    kill_alone,
    quick_config,
    stop_in_turn,
    stopped,
)

pytestmark = [pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(3600)]

STOPS_IN_A_CYCLE = 20
"""`make torture`, with its ten cycles, makes 200 of each size."""
SENDERS = 4
LATEST_SECONDS = 3.0
SERVES_SECONDS = 600.0
"""Longest a start may take here: two cores are shared by several stores of 300 MB."""


@pytest.mark.parametrize("megabytes", [60, 300])
def test_stopped_at_a_random_moment_after_serving_began(tmp_path: Path, cycle: int, megabytes: int) -> None:
    """SIGTERM and kill -9 in turn, up to three seconds after serving began: each time plain Litestream restores all."""
    seed = random.SystemRandom().randrange(2**32)
    chance, counts = random.Random(seed), Counter[str]()
    with (
        FakeGcs(tmp_path / "gcs", buckets=(BUCKET,)) as gcs,
        stopped(gcs, tmp_path, "store", quick_config(tmp_path)) as scene,
    ):
        worker = scene.start().wait_serving()
        fill(worker, megabytes * 1_000_000)
        scene.deliver(worker)
        assert worker.stop() == 0
        worker.wipe()
        for number in range(STOPS_IN_A_CYCLE):
            counts["stops"] += 1
            stop_at(scene, chance.uniform(0, LATEST_SECONDS), "the worker killed" if number % 2 else "SIGTERM", counts)
        counts["starts that did not serve"] += not serves(scene)
        scene.prove()
    acknowledged = len(scene.acknowledged)
    print(f"{megabytes} MB, seed {seed}: {dict(counts)}, {acknowledged} acknowledged")
    assert counts["generations not restored"] == counts["starts that did not serve"] == 0, f"seed {seed}: {counts}"


def serves(scene: Stopped) -> bool:
    """Start the next worker; whether it serves."""
    try:
        scene.start().wait_serving(seconds=SERVES_SECONDS)
    except (RuntimeError, TimeoutError) as error:
        print(f"did not serve: {error}")
        return False
    return True


def stop_at(scene: Stopped, seconds: float, stop: Stop, counts: "Counter[str]") -> None:
    """Start, send a few messages, stop after so many seconds, and restore."""
    if not serves(scene):
        counts["starts that did not serve"] += 1
        scene.end()
        return
    worker = scene.worker
    assert worker is not None
    end = time.monotonic() + seconds
    for _ in range(SENDERS):
        scene.begin_delivery(worker)
    time.sleep(max(0.0, end - time.monotonic()))  # the random moment, not a wait for something
    if stop == "SIGTERM":
        assert worker.stop() == 0
    else:
        kill_alone(worker)
    worker.wipe()
    scene.note_answers()
    try:
        scene.prove()
    except RuntimeError as error:
        print(f"not restored after {stop} at {seconds:.2f} s: {error}")
        counts["generations not restored"] += 1
    scene.forget_old_generations()


@pytest.mark.parametrize("megabytes", [1, 60, 300])
@pytest.mark.parametrize("stop", STOPS)
def test_stopped_in_each_upload(tmp_path: Path, cycle: int, stop: Stop, megabytes: int) -> None:
    """Each kind of upload, at another of its moments in each cycle: ten cycles make every combination at least twice."""
    size = megabytes * 1_000_000
    moments = SEVERAL_PARTS if size > PART else ONE_PART
    combinations = [(upload, moments[(cycle + at) % len(moments)]) for at, upload in enumerate(UPLOADS)]
    with (
        FakeGcs(tmp_path / "gcs", buckets=(BUCKET,)) as gcs,
        stopped(gcs, tmp_path, "store", quick_config(tmp_path)) as scene,
    ):
        stop_in_turn(scene, stop, combinations, size=size)
    print(f"{megabytes} MB: {len(combinations)} uploads, {stop}: {len(scene.acknowledged)} acknowledged")
