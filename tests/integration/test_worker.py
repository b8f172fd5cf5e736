"""The worker whole: real processes, real Litestream, a bucket with faults on demand."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from local.gcs_process import FakeGcs
from local.proof import prove
from local.worker_process import WorkerProcess, wait_until
from tests.processes import (
    GENERATIONS,
    PREFIX,
    QUICK,
    RECORD,
    URL,
    Load,
    Objects,
    alive,
    body,
    kill_9,
    litestream_of,
    push,
    pushing,
)
from worker import config, supervisor
from worker.database.connections import SQLITE_MIN
from worker.replica.litestream import find_binary

pytestmark = pytest.mark.slow

SHORT_HOLD = {
    **QUICK,
    "ACK_DEADLINE_SECONDS": "10",
}
"""As short as Pub/Sub lets it be; requests are held for 8 s."""
OLD_SQLITE = "import sys; sys.modules['pysqlite3'] = None; from worker.cli.main import main; sys.exit(main(['serve']))"


@pytest.fixture
def objects(fake_gcs: FakeGcs) -> Iterator[Objects]:
    """The bucket's objects."""
    found = Objects(fake_gcs)
    yield found
    found.close()


class Workers:
    """Makes workers on disks of their own, and ends those that still run."""

    def __init__(self, directory: Path, gcs: FakeGcs, objects: Objects) -> None:
        self._directory, self._gcs, self._objects = directory, gcs, objects
        self.made: list[WorkerProcess] = []

    def make(self, url: str = URL, **settings: str) -> WorkerProcess:
        """A worker that is not started yet."""
        name = f"worker{len(self.made)}"
        worker = WorkerProcess(
            disk=self._directory / name,
            replica_url=url,
            environment={**self._gcs.environment(), **QUICK, **settings},
            port=0,
            log=self._directory / f"{name}.log",
        )
        self.made.append(worker)
        return worker

    def serving(self, **settings: str) -> WorkerProcess:
        """A worker that serves a new store."""
        self._objects.initialize()
        return self.make(**settings).start().wait_serving()


@pytest.fixture
def workers(tmp_path: Path, fake_gcs: FakeGcs, objects: Objects) -> Iterator[Workers]:
    """Where workers come from; their logs are shown when the test fails."""
    made = Workers(tmp_path, fake_gcs, objects)
    yield made
    for worker in made.made:
        worker.kill()
        print(worker.tail(4000))


# In this process: the supervisor is a value.


@contextlib.asynccontextmanager
async def running(disk: Path, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """A life in this process, on a port of its own; leaving it is a normal stop."""
    settings_ = config.load(
        {
            "REPLICA_URL": URL,
            "DATABASE_PATH": str(disk / "users.db"),
            "HOST": "127.0.0.1",
            "PORT": "0",
            "LITESTREAM_METRICS_ADDRESS": "off",
            **QUICK,
            **settings,
        }
    )
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    life = asyncio.create_task(supervisor.run(settings_, stop, listening=port.set_result))
    life.add_done_callback(lambda ended: port.done() or port.cancel())
    try:
        address = f"http://127.0.0.1:{await port}"
        async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as client:
            yield client
    finally:
        stop.set()
        await life


def test_a_push_is_acknowledged_once_it_is_in_the_bucket(
    tmp_path: Path, fake_gcs: FakeGcs, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-1: held while the upload hangs, 204 after it, and whoever restores after that finds the row; so does a restart."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs.url)
    objects.initialize()

    async def first() -> None:
        async with running(tmp_path / "first") as client:
            assert (await client.post("/", content=body(1, "m1"))).status_code == 204
            assert (await asyncio.to_thread(prove, fake_gcs.url, URL, {"m1": 1})).holds
            hang = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
            held = asyncio.create_task(client.post("/", content=body(2, "m2")))
            await asyncio.to_thread(fake_gcs.faults.wait_for_hits, hang)
            assert (await asyncio.to_thread(prove, fake_gcs.url, URL, {"m2": 2})).lost
            assert not held.done()
            fake_gcs.faults.clear()
            assert (await held).status_code == 204
            assert (await asyncio.to_thread(prove, fake_gcs.url, URL, {"m1": 1, "m2": 2})).holds
            assert (await client.get("/users/2")).json()["user_id"] == 2
            assert (await client.get("/users/3")).status_code == 404

    async def second() -> None:
        async with running(tmp_path / "second") as client:
            again = await client.post("/", content=body(1, "m1"))
            assert again.status_code == 204
            assert (await client.get("/users/2")).json()["created_at"] == 1_704_164_645

    asyncio.run(first())
    asyncio.run(second())
    proof = prove(fake_gcs.url, URL, {"m1": 1, "m2": 2})
    assert proof.holds
    assert (proof.users, proof.receipts) == (2, 2)


# Refusals at start: exit 2 and the next step.


@pytest.mark.parametrize(
    ("url", "settings", "step"),
    [
        (URL, {}, f"no store at {URL}: run `python -m worker init` once"),
        ("gs://users/stroe", {}, "no store at gs://users/stroe: run `python -m worker init` once"),
        ("gs://elsewhere/store", {}, "no store at gs://elsewhere/store: run `python -m worker init` once"),
        (URL, {"WORKERS": "2"}, "WORKERS=2: this service is one writer in one process; unset WORKERS"),
        (URL, {"LITESTREAM_BIN": "nowhere"}, "LITESTREAM_BIN is 'nowhere' and no such program is found"),
    ],
    ids=["no init", "mistyped prefix", "mistyped bucket", "two workers", "no litestream"],
)
def test_serve_refuses_to_start(workers: Workers, objects: Objects, url: str, settings: dict[str, str], step: str) -> None:
    """INV-5: exit 2 with the next step, and nothing is written; the store next door changes nothing."""
    if url != URL:
        objects.initialize()
    ended = workers.make(url, **settings).run("serve")
    assert ended.returncode == 2
    assert step in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(sqlite3.sqlite_version_info >= SQLITE_MIN, reason="the SQLite of this Python's own is new enough")
def test_serve_refuses_an_old_sqlite(objects: Objects, fake_gcs: FakeGcs) -> None:
    """With Python's own SQLite a WAL database beside Litestream can be corrupted: exit 2, before the lease is taken."""
    objects.initialize()
    ended = subprocess.run(
        [sys.executable, "-c", OLD_SQLITE],
        env={**os.environ, **fake_gcs.environment(), "REPLICA_URL": URL, "PORT": "0", "HOST": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert f"SQLite {sqlite3.sqlite_version} can corrupt this database; 3.51.3 or newer is needed" in ended.stderr
    assert objects.record()["state"] == "released"


def test_there_is_nothing_to_break_of_a_released_lease(workers: Workers, objects: Objects) -> None:
    """It is said, with or without --yes, and the record is as it was."""
    objects.initialize()
    before = objects.record()
    for options, said in (([], "released already, at epoch 0: there is nothing to break"), (["--yes"], "released already")):
        found = workers.make().run("lease", "break", *options)
        assert (found.returncode, said in found.stdout) == (0, True), found
    assert objects.record() == before


def test_init_makes_a_store_once(workers: Workers, objects: Objects) -> None:
    """INV-5: on a store with data it says so and leaves the record alone."""
    worker = workers.make()
    first = worker.run("init")
    assert (first.returncode, first.stdout) == (0, f"{URL} is a new, empty store\n")
    worker.start().wait_serving()
    assert push(worker, 1, "m1").status_code == 204
    worker.stop()
    before = objects.read(RECORD)
    again = worker.run("init")
    assert (again.returncode, again.stdout) == (0, f"{URL} is a store already; nothing was changed\n")
    assert objects.read(RECORD) == before


def test_a_live_generation_that_cannot_be_restored_is_not_replaced(workers: Workers, objects: Objects) -> None:
    """INV-5: rather than serve an empty database it exits 1, gives the lease back and leaves `live` as it was."""
    worker = workers.serving()
    assert push(worker, 1, "m1").status_code == 204
    assert worker.stop() == 0
    live = objects.record()["live"]
    for name in objects.names(f"{PREFIX}/{live}/ltx/"):
        objects.delete(name)
    ended = worker.run("serve")
    assert ended.returncode == 1
    assert f"the live generation could not be restored: {live} holds no file" in ended.stderr
    assert "do not run init" in ended.stderr
    record = objects.record()
    assert (record["state"], record["live"]) == ("released", live)


# Shutdown.


def test_sigterm_under_load_keeps_every_promise(workers: Workers, objects: Objects, fake_gcs: FakeGcs) -> None:
    """INV-8: exit 0 within the platform's 10 s, the lease released, and every 204 in the bucket, once."""
    worker = workers.serving()
    with Load(worker) as load:
        load.wait_for(300)
        child = litestream_of(worker)
        began = time.monotonic()
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        took = time.monotonic() - began
    assert took < 8
    assert not alive(child)
    assert objects.record()["state"] == "released"
    assert prove(fake_gcs.url, URL, load.acknowledged).holds


def test_sigterm_while_the_bucket_hangs_ends_in_time(workers: Workers, objects: Objects, fake_gcs: FakeGcs) -> None:
    """INV-8: whatever cannot be finished is left to the queue, the exit stays within the platform's 10 s."""
    worker = workers.serving()
    assert push(worker, 1, "m1").status_code == 204
    uploads = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
    fake_gcs.faults.add(action="hang", name=f"{PREFIX}/")
    unanswered = pushing(worker, 2, "m2")
    fake_gcs.faults.wait_for_hits(uploads)
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - began < 9.5
    assert unanswered.result().status_code == 503
    fake_gcs.faults.clear()
    assert prove(fake_gcs.url, URL, {"m1": 1}).holds


def test_a_second_sigterm_leaves_at_once(workers: Workers, fake_gcs: FakeGcs) -> None:
    """Whoever cannot wait gets exit 1, and still nothing that was acknowledged is lost."""
    worker = workers.serving()
    assert push(worker, 1, "m1").status_code == 204
    child = litestream_of(worker)
    held = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
    pushing(worker, 2, "m2")
    fake_gcs.faults.wait_for_hits(held)
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.state() == "draining", "draining")
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 1
    assert time.monotonic() - began < 5
    assert not alive(child)
    fake_gcs.faults.clear()
    assert prove(fake_gcs.url, URL, {"m1": 1}).holds


def test_a_killed_worker_takes_its_litestream_along(workers: Workers) -> None:
    """A child that outlived it would read the next life's WAL on the same disk."""
    worker = workers.serving()
    child = litestream_of(worker)
    kill_9(worker.pid)
    wait_until(lambda: not alive(child), "the end of Litestream")


def test_what_a_killed_life_has_left_on_the_disk_goes(workers: Workers) -> None:
    """Litestream's copies of recent transactions do not pile up, one folder for each life that was killed."""
    worker = workers.serving()
    for _ in range(2):
        worker.kill()
        worker.start().wait_serving()
        left = [path.name for path in worker.disk.iterdir() if path.name.startswith((".litestream-", "ls-"))]
        assert len(left) == 2, left  # this life's folder and socket


def test_nothing_is_read_from_a_database_that_is_being_restored(workers: Workers, fake_gcs: FakeGcs) -> None:
    """INV-5: what an earlier life has left on the disk is not shown, nor half a restore: 503 until it serves."""
    worker = workers.serving()
    assert push(worker, 1, "m1").status_code == 204
    assert worker.stop() == 0
    rule = fake_gcs.faults.add(verb="download", name=GENERATIONS, action="hang")
    worker.start()
    fake_gcs.faults.wait_for_hits(rule)
    refused = httpx.get(f"{worker.url}/users/1", trust_env=False, timeout=60)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    fake_gcs.faults.clear()
    worker.wait_serving()
    assert httpx.get(f"{worker.url}/users/1", trust_env=False, timeout=60).json()["user_id"] == 1


# Faults under way.


def test_a_killed_litestream_is_replaced(workers: Workers, fake_gcs: FakeGcs) -> None:
    """Requests are held until the new child has caught up, all get their 204, and the worker is the same process."""
    worker = workers.serving()
    with Load(worker) as load:
        load.wait_for(100)
        first = litestream_of(worker)
        kill_9(first)
        load.wait_for(300)
        assert litestream_of(worker) != first
    assert set(load.answers) == {"204"}
    assert worker.state() == "serving"
    assert prove(fake_gcs.url, URL, load.acknowledged).holds


def test_a_litestream_that_dies_of_its_first_start_is_started_again(workers: Workers, tmp_path: Path) -> None:
    """Killed before it answers, at the start and whenever it is started again: everything is acknowledged all the same."""
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    binary = tmp_path / "litestream"
    # Every other child dies at once: mkdir and rmdir are its memory.
    binary.write_text(
        f"""#!/bin/sh
        if [ "$1" = replicate ]; then
            mkdir {deaths}/now 2>/dev/null && {{ echo >> {deaths}/log; kill -9 $$; }}
            rmdir {deaths}/now
        fi
        exec {find_binary("litestream")} "$@"
        """
    )
    binary.chmod(0o755)
    worker = workers.serving(LITESTREAM_BIN=str(binary))
    with Load(worker) as load:
        for killed in (2, 3):
            kill_9(litestream_of(worker))
            wait_until(lambda: len((deaths / "log").read_text()) >= killed, "a death of the next start")  # noqa: B023  # called at once
            load.wait_for(50)
        load.wait_for(100)
    assert worker.state() == "serving"
    assert set(load.answers) == {"204"}


def test_a_bucket_that_hangs_for_a_while_is_waited_for(workers: Workers, fake_gcs: FakeGcs, objects: Objects) -> None:
    """INV-9: data and lease record without an answer for several timeouts: held, then 204, by the same holder."""
    worker = workers.serving()
    holder = objects.record()["holder"]
    uploads = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
    renewals = fake_gcs.faults.add(action="hang", name=RECORD)
    held = pushing(worker, 1, "m1")
    fake_gcs.faults.wait_for_hits(uploads)
    fake_gcs.faults.wait_for_hits(renewals, 3)  # each is a timeout
    assert not held.done()
    fake_gcs.faults.clear()
    assert held.result().status_code == 204
    assert objects.record()["holder"] == holder
    assert prove(fake_gcs.url, URL, {"m1": 1}).holds


def test_an_outage_past_the_hold_limit_is_503_and_then_one_row(workers: Workers, fake_gcs: FakeGcs) -> None:
    """INV-3, INV-9: the queue is told to come again, and the redelivery after the outage is a duplicate of a kept row."""
    worker = workers.serving(**SHORT_HOLD)
    fake_gcs.faults.add(action="error", verb="insert", name=GENERATIONS)
    began = time.monotonic()
    refused = push(worker, 1, "m1")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert 7 < time.monotonic() - began < 10
    fake_gcs.faults.clear()
    assert push(worker, 1, "m1").status_code == 204
    proof = prove(fake_gcs.url, URL, {"m1": 1})
    assert proof.holds
    assert (proof.users, proof.receipts) == (1, 1)
    assert worker.state() == "serving"


def test_lost_answers_to_renewals_are_outlived(workers: Workers, fake_gcs: FakeGcs, objects: Objects) -> None:
    """A renewal that was done but not answered is neither won nor lost: the record is read, and names us."""
    worker = workers.serving()
    before = objects.record()
    lost = fake_gcs.faults.add(action="drop", verb="insert", name=RECORD, times=2)
    fake_gcs.faults.wait_for_hits(lost, 2)
    assert push(worker, 1, "m1").status_code == 204
    assert objects.record() == before
    assert worker.stop() == 0
    assert objects.record()["state"] == "released"


def test_another_holder_ends_this_one_without_a_trace(workers: Workers, fake_gcs: FakeGcs, objects: Objects) -> None:
    """INV-2: acknowledgements stop, the child is gone, the exit is 0, and the other's record stays byte for byte."""
    worker = workers.serving()
    with Load(worker) as load:
        load.wait_for(100)
        child = litestream_of(worker)
        record = objects.record()
        theirs = msgspec.json.encode({**record, "holder": "another", "epoch": record["epoch"] + 1})
        objects.write(RECORD, theirs)
        assert worker.wait() == 0
        count = len(load.acknowledged)
    assert len(load.acknowledged) == count
    assert not alive(child)
    assert objects.read(RECORD) == theirs
    assert prove(fake_gcs.url, URL, load.acknowledged).holds


def test_another_holder_is_noticed_while_idle(workers: Workers, objects: Objects) -> None:
    """INV-2: without a message it is the renewal that meets the other's name; the record stays byte for byte."""
    worker = workers.serving()
    record = objects.record()
    theirs = msgspec.json.encode({**record, "holder": "another", "epoch": record["epoch"] + 1})
    objects.write(RECORD, theirs)
    assert worker.wait() == 0
    assert objects.read(RECORD) == theirs


# Two instances.


def test_a_second_instance_holds_what_it_gets_until_the_first_has_gone(workers: Workers, fake_gcs: FakeGcs) -> None:
    """INV-2: it is ready but does not serve; released, the lease is its, and what it held is answered 204."""
    first = workers.serving()
    assert push(first, 1, "m1").status_code == 204
    second = workers.make().start()
    wait_until(lambda: second.state() == "standby", "standing by")
    assert httpx.get(f"{second.url}/readyz", trust_env=False, timeout=60).status_code == 200
    assert httpx.get(f"{second.url}/users/1", trust_env=False, timeout=60).status_code == 503
    held = pushing(second, 2, "m2")
    assert push(first, 3, "m3").status_code == 204
    assert not held.done()
    assert first.stop() == 0
    assert held.result().status_code == 204
    assert httpx.get(f"{second.url}/users/3", trust_env=False, timeout=60).status_code == 200
    assert prove(fake_gcs.url, URL, {"m1": 1, "m2": 2, "m3": 3}).holds


def test_sigterm_while_standing_by_touches_nothing(workers: Workers, objects: Objects) -> None:
    """It leaves at once with exit 0, refuses what it held, and the holder goes on."""
    first = workers.serving()
    holder = objects.record()["holder"]
    second = workers.make().start()
    wait_until(lambda: second.state() == "standby", "standing by")
    held = pushing(second, 2, "m2")
    wait_until(lambda: b"asked the holder" in second.log.read_bytes(), "a message held")
    assert second.stop() == 0
    assert held.result().status_code == 503
    assert objects.record()["holder"] == holder
    assert push(first, 1, "m1").status_code == 204


def test_the_smoke_test_sees_a_real_user_through(workers: Workers) -> None:
    """Read back, acknowledged, erased; and without the user it says which step failed."""
    worker = workers.serving()
    assert push(worker, 5, "m5").status_code == 204
    done = worker.run("smoke", "--user-id", "5", "--url", worker.url)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines() if ": user 5" in line] == [
        "read back",
        "acknowledged",
        "erased",
    ]
    again = worker.run("smoke", "--user-id", "5", "--within", "1", "--url", worker.url)
    assert (again.returncode, "read back: there is no user 5" in again.stderr) == (1, True)
