"""`worker replica` and `worker restore` on a store with several generations, real Litestream and the fake Cloud Storage."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.proof import restore as plain_restore
from local.stack import QUICK_LEASE
from local.worker_process import ROOT, WorkerProcess
from publisher import message

pytestmark = pytest.mark.slow

USERS = 36
BOUND = 10
LEFT_BY = {12, 24}
"""When so many users are there, the worker is stopped and started again."""


@dataclass(frozen=True, slots=True)
class History:
    """A store whose worker was restarted twice and has stopped. `moments[n]` is when the users 1 to n were there."""

    gcs: FakeGcs
    worker: WorkerProcess
    moments: list[datetime]

    def run(self, *arguments: str) -> Any:
        """What a command printed as JSON."""
        done = self.worker.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str) -> str:
        """What a command that must fail said."""
        done = self.worker.run(*arguments)
        assert done.returncode in (1, 2), done.stdout
        return done.stderr


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """Users created one by one over at least three generations."""
    directory = tmp_path_factory.mktemp("history")
    with FakeGcs(directory / "gcs", buckets=("bucket",)) as gcs:
        worker = WorkerProcess(
            disk=directory / "disk",
            replica_url="gs://bucket/store",
            environment={**gcs.environment(), **QUICK_LEASE},
            port=0,
            log=directory / "worker.log",
        )
        assert worker.run("init").returncode == 0
        try:
            worker.start().wait_serving()
            moments = [now()]
            for user in range(1, USERS + 1):
                body = message.envelope(b'{"user_id": %d}' % user, {}, f"m{user}", now(), "projects/p/subscriptions/s")
                assert httpx.post(worker.url, content=body, timeout=30, trust_env=False).status_code == 204
                moments.append(now())
                if user in LEFT_BY:
                    assert worker.stop() == 0
                    worker.wipe()
                    worker.start().wait_serving()
                time.sleep(0.01)  # a moment ends before the next transaction
            assert worker.stop() == 0
            yield History(gcs, worker, moments)
        finally:
            worker.kill()


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def users_in(file: Path) -> list[int]:
    """The users of a restored file, which is sound and has nothing beside it."""
    assert list(file.parent.glob(f"{file.name}?*")) == []
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        return [row[0] for row in database.execute("SELECT user_id FROM users ORDER BY 1")]


def at(moment: datetime) -> str:
    """A moment as an option."""
    return moment.isoformat()


def test_the_replica_lists_every_generation(history: History) -> None:
    """Newest first; one is live; each ends where the next begins and continues its last transaction."""
    rows = history.run("replica")
    assert len(rows) >= 3
    assert [row["epoch"] for row in rows] == sorted((row["epoch"] for row in rows), reverse=True)
    assert [row["state"] for row in rows] == ["live", *["was live"] * (len(rows) - 1)]
    assert rows[0]["ended"] is None
    for newer, older in itertools.pairwise(rows):
        assert older["ended"] == newer["began"]
        assert newer["base"] == f"{older['epoch']}@{older['transactions'] - 1}"  # the last one is the seal
        assert older["transactions"] >= BOUND
    table = history.worker.run("replica").stdout.splitlines()
    assert len(table) == len(rows) + 1
    assert table[0].split()[:2] == ["epoch", "state"]


def test_the_files_of_a_generation_are_listed(history: History) -> None:
    """As `gcloud storage ls` would show them, with their transactions and times."""
    files = history.run("replica", "ls", "1")
    single = [file["first"] for file in files if file["level"] == 0]
    assert single == list(range(1, len(single) + 1))
    shown = history.worker.run("replica", "ls", "1").stdout
    assert shown.count("gs://bucket/store/generations/0000000000000001/ltx/") == len(files)
    assert "no generation of epoch 99" in history.refused("replica", "ls", "99")


def test_the_address_of_the_emulator_may_end_in_a_slash(history: History) -> None:
    """And have blanks around it: Google's client would ask for //storage/ and find no store."""
    environment = history.worker.environment
    slashed = {**environment, "STORAGE_EMULATOR_HOST": f" {environment['STORAGE_EMULATOR_HOST']}/ "}
    command = [sys.executable, "-m", "worker", "replica"]
    done = subprocess.run(command, env=slashed, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_restored_file_can_be_read_where_nothing_can_be_written(history: History, tmp_path: Path) -> None:
    """Its header says that it is not in WAL mode, for which SQLite would have to write beside it."""
    output = tmp_path / "readable.db"
    history.run("restore", "-o", str(output))
    read_and_write_versions = output.read_bytes()[18:20]  # sqlite.org, "Database File Format"
    assert read_and_write_versions == b"\1\1"


def test_the_newest_state_is_restored_by_default(history: History, tmp_path: Path) -> None:
    """With every row, and counts that say so."""
    output = tmp_path / "now.db"
    found = history.run("restore", "-o", str(output))
    assert users_in(output) == list(range(1, USERS + 1))
    expected = {
        "rows": {"users": USERS},
        "receipts": USERS,
        "rejections": 0,
        "open_rejections": 0,
        "last_message": f"m{USERS}",
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 10, 11, 17, 18, 19, 20, 21, 26, 27, 28, 29, 30, USERS])
def test_a_time_gives_exactly_what_was_there_then(history: History, tmp_path: Path, count: int) -> None:
    """Across generations and at their boundaries: the users of that moment, not one more or less."""
    output = tmp_path / "then.db"
    found = history.run("restore", "-o", str(output), "--at", at(history.moments[count]))
    assert users_in(output) == list(range(1, count + 1))
    assert datetime.fromisoformat(found["time"]) <= history.moments[count]


def test_a_time_within_a_start_gives_what_was_live_then(history: History, tmp_path: Path) -> None:
    """A millisecond before a generation's first file, the one before it is what there was."""
    rows = history.run("replica")
    began = datetime.fromisoformat(rows[0]["began"])
    found = history.run("restore", "-o", str(tmp_path / "a.db"), "--at", at(began - timedelta(milliseconds=1)))
    assert found["generation"].endswith(f"{rows[1]['epoch']:016x}")
    filled = min(file["time"] for file in history.run("replica", "ls", str(rows[0]["epoch"])))
    found = history.run("restore", "-o", str(tmp_path / "b.db"), "--at", filled)
    assert found["generation"].endswith(f"{rows[0]['epoch']:016x}")
    found = history.run("restore", "-o", str(tmp_path / "c.db"), "--at", at(began))
    assert found["generation"].endswith(f"{rows[1]['epoch']:016x}")
    assert users_in(tmp_path / "a.db") == users_in(tmp_path / "b.db")


def test_an_epoch_and_a_transaction_are_what_plain_litestream_restores(history: History, tmp_path: Path) -> None:
    """The same rows as `litestream restore -txid`, for each transaction of a generation."""
    epoch = history.run("replica")[-1]["epoch"]
    url = f"gs://bucket/store/generations/{epoch:016x}"
    for txid in (1, 3, BOUND):
        ours, theirs = tmp_path / f"ours-{txid}.db", tmp_path / f"theirs-{txid}.db"
        assert history.run("restore", "-o", str(ours), "--epoch", str(epoch), "--txid", str(txid))["txid"] == txid
        plain_restore(history.gcs.url, url, theirs, "-txid", f"{txid:016x}")
        assert users_in(ours) == users_in(theirs)


def test_what_is_not_kept_is_refused(history: History, tmp_path: Path) -> None:
    """Before the first state, in the future, another epoch or transaction, a file that is there: each says what is wrong."""
    output = str(tmp_path / "x.db")
    assert "the oldest state kept is of" in history.refused("restore", "-o", output, "--at", "2020-01-01T00:00:00Z")
    assert "is in the future" in history.refused("restore", "-o", output, "--at", "2999-01-01T00:00:00Z")
    assert "no generation of epoch 99" in history.refused("restore", "-o", output, "--epoch", "99")
    assert "has the transactions 1 to" in history.refused("restore", "-o", output, "--epoch", "1", "--txid", "999")
    assert "give its --epoch" in history.refused("restore", "-o", output, "--txid", "1")
    assert "with its zone" in history.refused("restore", "-o", output, "--at", "2026-01-01T00:00:00")
    assert "cannot be written" in history.refused("restore", "-o", "/proc/x.db")
    for suffix in ("-wal", "-shm", "-journal", ""):  # SQLite would take another database's for the restored one's
        there = Path(output + suffix)
        there.write_text("mine")
        assert f"{there} is there already" in history.refused("restore", "-o", output)
        assert there.read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == [there.name]
        there.unlink()


@pytest.mark.parametrize("action", ["error", "drop"])
def test_a_bucket_that_fails_in_the_middle_leaves_nothing_behind(history: History, tmp_path: Path, action: str) -> None:
    """503, or answers that break off: a clear error, no file, no scratch; the next restore works."""
    rule = history.gcs.faults.add(verb="download", action=action, name="*/ltx/*")  # type: ignore[arg-type]
    history.worker._environment["RESTORE_TIMEOUT_SECONDS"] = "4"
    assert "gs://bucket/store" in history.refused("restore", "-o", str(tmp_path / "x.db"))
    del history.worker._environment["RESTORE_TIMEOUT_SECONDS"]
    assert list(tmp_path.iterdir()) == []
    history.gcs.faults.remove(rule)
    history.run("restore", "-o", str(tmp_path / "x.db"))


def test_a_missing_file_is_an_error_and_no_gap(history: History, tmp_path: Path) -> None:
    """A replica with a hole in it is not restored as if nothing were missing; what lies before the hole still is."""
    files = history.run("replica", "ls", "1")
    first = next(file["first"] for file in files if file["level"] == 0 and file["first"] > 3)
    gone = [file for file in files if file["first"] <= first <= file["last"]]  # a compaction or a full copy has it as well
    assert first < max(file["last"] for file in files)
    objects = f"{history.gcs.url}/storage/v1/b/bucket/o"
    kept: dict[str, bytes] = {}
    for file in gone:
        url = f"{objects}/store%2F{file['name'].replace('/', '%2F')}"
        kept[file["name"]] = httpx.get(url, params={"alt": "media"}, trust_env=False, timeout=60).raise_for_status().content
        assert httpx.delete(url, trust_env=False, timeout=60).is_success
    try:
        assert "are in no whole file" in history.refused("restore", "-o", str(tmp_path / "x.db"), "--epoch", "1")
        assert list(tmp_path.iterdir()) == []
        found = history.run("restore", "-o", str(tmp_path / "y.db"), "--epoch", "1", "--txid", str(first - 1))
        assert found["txid"] == first - 1
    finally:
        upload = f"{history.gcs.url}/upload/storage/v1/b/bucket/o"
        for name, content in kept.items():
            given = {"uploadType": "media", "name": f"store/{name}"}
            assert httpx.post(upload, params=given, content=content, trust_env=False, timeout=60).is_success
