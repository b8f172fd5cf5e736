"""What the formula of `local/cost.py` counts, counted at the bucket: real worker, real Litestream, the fake bucket."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.worker_process import ROOT, WorkerProcess, wait_until
from publisher import message
from tests.processes import QUICK
from worker.events.users import USER_CREATED, UserCreated

pytestmark = pytest.mark.slow

MESSAGES = 40
MERGES = 4


def push(client: httpx.Client, worker: WorkerProcess, number: int) -> None:
    """One user, acknowledged."""
    data = USER_CREATED.encode(UserCreated(user_id=number + 1))
    body = message.envelope(data, {}, f"m{number}", "2026-01-01T00:00:00Z", "projects/p/subscriptions/s")
    assert client.post(worker.url, content=body).status_code == 204


def test_a_message_alone_costs_one_upload_and_no_read(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """Sent one by one, each message is one file of Litestream's; the lease is looked at once in ten seconds, if at all."""
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url="gs://users/store",
        environment={**fake_gcs.environment(), **QUICK},
        port=0,
        log=tmp_path / "worker.log",
    )
    assert worker.run("init").returncode == 0
    try:
        worker.start().wait_serving()
        faults = fake_gcs.faults  # rules that delay by nothing: they only count
        polls = faults.add(action="delay", verb="download", name="store/successor.json")
        faults.wait_for_hits(polls, 2)  # so the start is over
        files = faults.add(action="delay", verb="insert", name="store/generations/*/ltx/0/*")
        reads = faults.add(action="delay", verb="download", name="store/lease.json")
        began = time.monotonic()
        with httpx.Client(trust_env=False, timeout=30) as client:
            for number in range(MESSAGES):
                push(client, worker, number)
        # A sync may have to be asked for again, and Litestream's own monitor may be faster: rare, and bounded here.
        assert MESSAGES <= faults.hits(files) <= 1.2 * MESSAGES
        assert faults.hits(reads) <= 1 + (time.monotonic() - began) / 10
        fake_gcs.faults.reset_stats()
        before = faults.hits(polls)
        wait_until(lambda: faults.hits(polls) >= before + 3, "three more looks for a successor")
        assert faults.stats()["bucket"] == 0
    finally:
        worker.kill()


def test_a_merge_costs_one_upload_and_three_listings(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """Before it Litestream lists what is to be merged, and after it the levels 0 and 1 from end to end; here every 2 s."""
    config = tmp_path / "litestream.yml"
    config.write_text((ROOT / "worker" / "replica" / "litestream.yml").read_text().replace("interval: 30s", "interval: 2s"))
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url="gs://users/store",
        environment={**fake_gcs.environment(), **QUICK, "LITESTREAM_CONFIG": str(config)},
        port=0,
        log=tmp_path / "worker.log",
    )
    assert worker.run("init").returncode == 0
    try:
        worker.start().wait_serving()
        faults = fake_gcs.faults
        with httpx.Client(trust_env=False, timeout=30) as client:
            push(client, worker, 0)
            merged = faults.add(action="delay", verb="insert", name="store/generations/*/ltx/1/*")
            faults.wait_for_hits(merged)
            slots = faults.add(action="delay", verb="list", name="store/generations/*/ltx/0/*")
            merges = faults.add(action="delay", verb="list", name="store/generations/*/ltx/1/*")
            before = faults.hits(merged)
            number = 1
            while faults.hits(merged) < before + MERGES:
                push(client, worker, number)
                number += 1
        # One more merge may be under way at either end.
        assert 2 * (MERGES - 1) <= faults.hits(slots) <= 2 * (MERGES + 1)
        # At whole five minutes the merge to level 2 lists level 1 as well.
        assert MERGES - 1 <= faults.hits(merges) <= MERGES + 2
    finally:
        worker.kill()
