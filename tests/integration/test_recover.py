"""`worker recover` beside a running service: real workers, real Litestream, the fake Cloud Storage."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.stack import QUICK_LEASE
from local.worker_process import WorkerProcess, wait_until
from publisher import message

pytestmark = pytest.mark.slow

SETTINGS = {**QUICK_LEASE, "TENURE_MIN_SECONDS": "0.1"}


class Platform:
    """A service whose instance is started again whenever it ends, as Cloud Run does. `pushed` maps messages to users."""

    def __init__(self, directory: Path, gcs: FakeGcs) -> None:
        self.directory, self.gcs = directory, gcs
        self.worker = WorkerProcess(
            disk=directory / "disk",
            replica_url="gs://bucket/store",
            environment={**gcs.environment(), **SETTINGS},
            port=0,
            log=directory / "worker.log",
        )
        assert self.worker.run("init").returncode == 0
        self.pushed: dict[str, int] = {}
        self._down = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)

    def __enter__(self) -> Platform:
        self.worker.start().wait_serving()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._down.set()
        self._thread.join()
        self.worker.kill()

    def push(self, *users: int, email: str | None = None) -> None:
        """Have users created, each by a message that is sent until it is acknowledged."""
        for user in users:
            message_id = f"m{user}" if email is None else f"m{user}-{email}"
            self.deliver(message_id, json.dumps({"user_id": user, "email_address": email}).encode())
            self.pushed[message_id] = user

    def deliver(self, message_id: str, data: bytes) -> None:
        """One message, sent until it is acknowledged; published when it was first sent, as the queue would say."""
        body = message.envelope(data, {}, message_id, now(), "projects/p/subscriptions/s")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if httpx.post(self.worker.url, content=body, timeout=30, trust_env=False).status_code == 204:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise TimeoutError(f"{message_id} was not acknowledged")

    def users(self, *wanted: int) -> list[int]:
        """Those of the users that are there, asked of the serving instance."""
        wait_until(lambda: self.worker.state() == "serving", "serving")
        answers = {
            user: httpx.get(f"{self.worker.url}/users/{user}", trust_env=False, timeout=60).status_code for user in wanted
        }
        assert set(answers.values()) <= {200, 404}, answers
        return [user for user, status in answers.items() if status == 200]

    def run(self, *arguments: str) -> Any:
        """What a command printed as JSON."""
        done = self.worker.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def listed(self) -> set[str]:
        """The ids in the only list of undone messages that is in the bucket."""
        address = f"{self.worker.environment['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o"
        names = [each["name"] for each in httpx.get(address, trust_env=False, timeout=60).json()["items"]]
        (name,) = [each for each in names if each.startswith("store/undone/")]
        content = httpx.get(f"{address}/{quote(name, safe='')}", params={"alt": "media"}, trust_env=False, timeout=60)
        return set(content.json())

    def states(self) -> dict[int, str]:
        """The state of each epoch's generation."""
        return {row["epoch"]: row["state"] for row in self.run("replica")}

    def _keep_up(self) -> None:
        while not self._down.wait(0.05):
            if self.worker.state() == "ended":
                assert self.worker.wait() in (0, -signal.SIGKILL), self.worker.tail()
                self.worker.start()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A serving service."""
    with FakeGcs(tmp_path / "gcs", buckets=("bucket",)) as gcs, Platform(tmp_path, gcs) as running:
        yield running


@contextmanager
def recovering_until(
    said: str, platform: Platform, folder: Path, at: datetime, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A recovery to that time that has just printed a line which begins so; it is waited for at the block's end."""
    command = [sys.executable, "-m", "worker", "recover", "--at", at.isoformat(), "--yes"]
    with subprocess.Popen(
        [*command, "--undone", str(folder / "undone.txt")],
        env={**platform.worker._environment, **variables},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith(said) for line in process.stderr), f"it ended without saying {said!r}"
        yield process


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def pause() -> datetime:
    """A moment between two transactions."""
    time.sleep(0.02)
    moment = now()
    time.sleep(0.02)
    return moment


def test_a_recovery_beside_a_running_service(platform: Platform, tmp_path: Path) -> None:
    """The instance hands over, the older state is live, what was undone is listed, and comes back when delivered again."""
    platform.push(*range(1, 21))
    then = pause()
    platform.push(*range(21, 31))
    platform.push(5, email="bad@example.com")
    last = pause()
    undone = tmp_path / "undone.txt"
    before = platform.states()

    plan = platform.run("recover", "--at", then.isoformat(), "--dry-run")
    assert platform.states() == before
    assert plan["undone"]["outcomes"] == {"created": 10, "conflict": 1}
    assert (plan["newest"]["rows"], plan["wanted"]["rows"], plan["generation"]) == ({"users": 30}, {"users": 20}, None)

    found = platform.run("recover", "--at", then.isoformat(), "--yes", "--undone", str(undone))
    gone = {f"m{user}" for user in range(21, 31)} | {"m5-bad@example.com"}
    assert set(undone.read_text().split()) == gone == set(found["undone"]["messages"])
    assert platform.listed() == gone  # in the bucket as well, whatever becomes of this machine
    assert platform.users(1, 5, 20, 21, 30) == [1, 5, 20]
    states = platform.states()
    assert list(states.values()).count("live") == 1
    assert "never live" not in states.values()

    # Delivered again, they take effect again, and nothing is there twice.
    platform.push(*range(21, 31))
    platform.push(*range(1, 21))
    assert platform.users(*range(1, 31)) == list(range(1, 31))
    assert platform.run("restore", "-o", str(tmp_path / "now.db"))["receipts"] == 30
    # The history that was left is still there.
    left = platform.run("restore", "-o", str(tmp_path / "left.db"), "--at", last.isoformat())
    assert (left["rows"], left["rejections"]) == ({"users": 30}, 1)


def test_what_a_recovery_has_replaced_can_be_restored_to_its_seal(platform: Platform, tmp_path: Path) -> None:
    """The seal says how many pages the newest state has, not the older one: it would cut the database off."""
    platform.push(1)
    then = pause()
    for user in range(2, 42):  # some pages more
        platform.push(user, email=f"{user}{'x' * 180}@example.com")
    pause()
    (replaced,) = [epoch for epoch, state in platform.states().items() if state == "live"]
    platform.run("recover", "--at", then.isoformat(), "--yes", "--undone", str(tmp_path / "undone.txt"))
    assert platform.users(1, 41) == [1]
    left = platform.run("restore", "-o", str(tmp_path / "left.db"), "--epoch", str(replaced))
    assert left["rows"] == {"users": 41}


def test_a_recovery_can_be_undone(platform: Platform, tmp_path: Path) -> None:
    """The state before the recovery is one like any other."""
    platform.push(1, 2, 3)
    then = pause()
    platform.push(4, 5)
    last = pause()
    platform.run("recover", "--at", then.isoformat(), "--yes", "--undone", str(tmp_path / "a.txt"))
    platform.push(6)
    assert platform.users(1, 3, 4, 5, 6) == [1, 3, 6]
    found = platform.run("recover", "--at", last.isoformat(), "--yes", "--undone", str(tmp_path / "b.txt"))
    assert platform.users(1, 3, 4, 5, 6) == [1, 3, 4, 5]
    assert found["undone"]["messages"] == ["m6"]
    assert (found["newest"]["rows"], found["wanted"]["rows"]) == ({"users": 4}, {"users": 5})


def test_an_erased_user_does_not_come_back(platform: Platform, tmp_path: Path) -> None:
    """Not by another delivery, a later message, a restart, a restore of an older time, or a recovery to it."""
    platform.push(1, 2, 3)
    platform.push(2, email="other@example.com")
    then = pause()
    platform.push(4)
    asked = platform.worker.run("erase", "2")
    assert (asked.returncode, "--yes" in asked.stdout + asked.stderr) == (1, True)
    assert platform.run("erase", "2", "--yes") == {"existed": True, "rows": 1, "receipts": 2, "rejections": 1}
    platform.push(2)
    platform.push(2, email="again@example.com")
    assert platform.users(1, 2, 3, 4) == [1, 3, 4]
    platform.worker.kill()
    assert platform.users(1, 2, 3, 4) == [1, 3, 4]
    older = tmp_path / "older.db"
    platform.run("restore", "-o", str(older), "--at", then.isoformat())
    with closing(sqlite3.connect(older)) as database:
        assert database.execute("SELECT * FROM users WHERE user_id = 2").fetchall() == []
        assert database.execute("SELECT subject FROM erased").fetchall() == [("2",)]
        assert database.execute("SELECT count(*) FROM rejections").fetchone() == (0,)
    platform.run("recover", "--at", then.isoformat(), "--yes", "--undone", str(tmp_path / "undone.txt"))
    platform.push(2, email="once more@example.com")
    assert platform.users(1, 2, 3, 4) == [1, 3]


def test_what_cannot_be_recovered_changes_nothing(platform: Platform, tmp_path: Path) -> None:
    """Nothing newer, the future, before the first, no terminal to ask on, a file that is there: exit 1, the same epoch."""
    platform.push(1)
    before = platform.states()
    there = tmp_path / "there.txt"
    there.write_text("mine")
    moment = pause().isoformat()
    for arguments, said in (
        (("--at", moment, "--yes"), "nothing to undo"),
        (("--at", "2999-01-01T00:00:00Z", "--yes"), "in the future"),
        (("--at", "2020-01-01T00:00:00Z", "--yes"), "the oldest state kept"),
        (("--at", moment, "--yes", "--undone", str(there)), "is there already"),
    ):
        done = platform.worker.run("recover", *arguments)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    platform.push(2)
    done = platform.worker.run("recover", "--at", moment)
    assert (done.returncode, "--yes" in done.stderr) == (1, True), done.stderr
    assert platform.states() == before
    assert platform.users(1, 2) == [1, 2]


@pytest.mark.parametrize("attempt", range(4))
def test_killed_in_the_middle_it_is_done_or_not(platform: Platform, tmp_path: Path, attempt: int) -> None:
    """Whenever the command dies: one of the two states is live, whole, and the service goes on from it."""
    platform.push(*range(1, 11))
    then = pause()
    platform.push(*range(11, 16))
    with recovering_until("asking", platform, tmp_path, then) as recovering:
        time.sleep(random.Random(attempt).uniform(0, 4))
        recovering.kill()
    platform.push(99)  # acknowledged by whoever serves next
    there = platform.users(*range(1, 16), 99)
    assert there in ([*range(1, 16), 99], [*range(1, 11), 99])
    assert list(platform.states().values()).count("live") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broken_off_it_releases_the_lease(platform: Platform, tmp_path: Path, number: signal.Signals) -> None:
    """While it works under the lease: 130, no traceback, nothing changed, no scratch left, and the lease is free at once."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    platform.push(1)
    then = pause()
    platform.push(2)
    before = platform.states()
    with recovering_until("the lease is held", platform, tmp_path, then, TMPDIR=str(scratch)) as recovering:
        assert recovering.stderr is not None
        recovering.send_signal(number)
        rest = recovering.stderr.read()
    assert (recovering.returncode, rest.splitlines()[-2:]) == (130, ["nothing was changed", "interrupted"]), rest
    assert "Traceback" not in rest
    assert list(scratch.iterdir()) == []
    assert list(tmp_path.glob("**/undone*")) == []
    lease = platform.run("lease", "show")
    assert (lease["revision"], lease["state"]) != ("recover", "held")
    assert platform.users(1, 2) == [1, 2]
    assert platform.states().items() >= dict.fromkeys(before, "was live").items()
