"""What has an end: the time of an upload, the room for what is not confirmed, the disk, and a loop that stands still."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.proof import prove
from local.worker_process import WorkerProcess, wait_until
from publisher import message
from tests.processes import PREFIX, QUICK, URL, Load, Objects, push, pushing

pytestmark = pytest.mark.slow

SHORT_HOLD = {
    **QUICK,
    "ACK_DEADLINE_SECONDS": "10",
}
SLOT = "*/ltx/0/*"


@pytest.fixture
def store(fake_gcs: FakeGcs) -> FakeGcs:
    """A fake bucket with an empty store."""
    objects = Objects(fake_gcs)
    objects.initialize()
    objects.close()
    return fake_gcs


def worker_of(store: FakeGcs, tmp_path: Path, *, disk: Path | None = None, **settings: str) -> WorkerProcess:
    """A worker that is not started."""
    return WorkerProcess(
        disk=disk or tmp_path / "disk",
        replica_url=URL,
        environment={**store.environment(), **SHORT_HOLD, **settings},
        port=0,
        log=tmp_path / "worker.log",
    )


def test_a_bucket_that_takes_longer_than_a_confirmation_waits_has_every_message_acknowledged(
    tmp_path: Path, store: FakeGcs
) -> None:
    """Each group waits for its own transaction, however many were committed after it: nothing is refused."""
    worker = worker_of(store, tmp_path, ACK_DEADLINE_SECONDS="30")
    try:
        worker.start().wait_serving()
        store.faults.add(verb="insert", name=SLOT, action="delay", seconds=1.6)
        answers: list[Future[httpx.Response]] = []
        for number in range(1, 31):
            answers.append(pushing(worker, number, f"m{number}"))
            time.sleep(0.2)  # messages keep coming: a moving target
        assert {answer.result(timeout=30).status_code for answer in answers} == {204}
        store.faults.clear()
    finally:
        worker.kill()
        print(worker.tail())


def test_an_outage_commits_no_more_than_may_be_held(tmp_path: Path, store: FakeGcs) -> None:
    """INV-7: what is committed and not confirmed is bounded, whatever is answered 503; on return all of it is confirmed."""
    worker = worker_of(store, tmp_path, QUEUE_MAX_MESSAGES="40")
    try:
        worker.start().wait_serving()
        rule = store.faults.add(verb="insert", name=SLOT, action="hang")
        refused = 0
        with httpx.Client(timeout=60, trust_env=False):
            answers = [pushing(worker, number, f"m{number}") for number in range(1, 200)]
            refused = sum(answer.result(timeout=60).status_code == 503 for answer in answers)
        assert refused == len(answers)
        with closing(sqlite3.connect(worker.disk / "users.db")) as database:
            (rows,) = database.execute("SELECT count(*) FROM users").fetchone()
        assert 0 < rows <= 80  # the bound, and the group that reached it
        store.faults.remove(rule)
        wait_until(lambda: push(worker, 1000, "after").status_code == 204, "an acknowledgement", seconds=60)
        assert push(worker, 1, "m1").status_code == 204
        assert prove(store.url, URL, {"after": 1000, "m1": 1}).holds
    finally:
        worker.kill()
        print(worker.tail())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    disk = tmp_path / "small"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("only root may make a disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_and_left(tmp_path: Path, store: FakeGcs, small_disk: Path) -> None:
    """Messages are refused, an operator's discard still goes through, and with room again the same process goes on."""
    worker = worker_of(store, tmp_path, disk=small_disk)
    filler = small_disk / "filler"
    try:
        worker.start().wait_serving()
        with Load(worker) as load:
            load.wait_for(200)
            bad = message.envelope(b"no JSON", {}, "bad", "2026-01-01T00:00:00Z", "projects/p/subscriptions/s")
            assert httpx.post(worker.url, content=bad, timeout=30, trust_env=False).status_code == 204
            with filler.open("wb") as file:
                file.write(bytes(shutil.disk_usage(small_disk).free - 4_000_000))
            wait_until(lambda: "disk.full" in worker.log.read_text(), "its being told", seconds=60)
            refused = push(worker, 1_000_000, "refused")
            assert (refused.status_code, "disk is full" in refused.text) == (503, True)
            discarded = httpx.post(f"{worker.url}/rejections/bad/discard", timeout=30, trust_env=False)
            assert discarded.json() == {"message_id": "bad", "outcome": "discarded"}
            assert worker.state() == "serving"
            filler.unlink()
            load.wait_for(100)
        worker.stop()
        assert prove(store.url, URL, load.acknowledged).holds
    finally:
        worker.kill()
        print(worker.tail())


def test_a_loop_that_stands_still_ends_the_process(tmp_path: Path, store: FakeGcs) -> None:
    """A process that was frozen for longer than the lease's time ends by itself when it goes on, and its child with it."""
    worker = worker_of(store, tmp_path)
    try:
        worker.start().wait_serving()
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(10.5)  # the freeze, not a wait for something
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.wait(seconds=10) in (0, 1)
    finally:
        worker.kill()


def test_large_bad_messages_stop_no_good_one(tmp_path: Path, store: FakeGcs) -> None:
    """INV-6: 40 bad messages of 9.5 MB leave the database small, and each is exported whole after a kill and a wipe."""
    worker = worker_of(store, tmp_path)
    bad = {f"bad{number}": b'{"user_id":%d,"wrong":"' % number + b"x" * 9_500_000 for number in range(1, 41)}
    objects = Objects(store)
    try:
        worker.start().wait_serving()
        with httpx.Client(timeout=60, trust_env=False) as client:
            for message_id, data in bad.items():
                pushed = message.envelope(data, {}, message_id, "2026-01-01T00:00:00Z", "projects/p/subscriptions/s")
                assert client.post(worker.url, content=pushed).status_code == 204
        assert push(worker, 1, "good").status_code == 204
        assert (worker.disk / "users.db").stat().st_size < 1_000_000
        worker.kill()
        worker.wipe()
        worker.start().wait_serving()
        with httpx.Client(timeout=60, trust_env=False, base_url=worker.url) as client:
            for message_id, data in bad.items():
                kept = client.get(f"/rejections/{message_id}").raise_for_status().json()
                assert (base64.b64decode(kept["data"]) == data, kept["bytes"]) == (True, len(data))
            assert client.post("/rejections/bad1/retry").json()["outcome"] == "rejected"
            assert client.post("/rejections/bad2/discard").json()["outcome"] == "discarded"
            assert len(objects.names(f"{PREFIX}/rejected/")) == len(bad)  # the discarded one goes when it is a day old
            objects.delete(f"{PREFIX}/{client.get('/rejections/bad3').json()['body']}")
            answer = client.get("/rejections/bad3")
            assert answer.status_code == 404
            assert "no longer in the bucket" in answer.json()["error"]
    finally:
        worker.kill()
        objects.close()
        print(worker.tail())
