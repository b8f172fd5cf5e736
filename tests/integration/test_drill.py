"""`worker drill` beside a running worker, with real Litestream and the fake Cloud Storage."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from local.authority import Authority
from local.gcs_process import FakeGcs
from local.stack import QUICK_LEASE
from local.worker_process import ROOT, WorkerProcess, wait_until
from tests.processes import PREFIX, URL, Load, Objects, push

pytestmark = pytest.mark.slow

AUDIENCE = "https://users.example"
OPERATOR = "ann@acme.example"


class Place:
    """A serving worker, its bucket, and the folder that drills get for scratch."""

    def __init__(self, gcs: FakeGcs, worker: WorkerProcess, scratch: Path) -> None:
        self.gcs, self.worker, self.scratch, self.objects = gcs, worker, scratch, Objects(gcs)
        scratch.mkdir()

    def drill(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """The exit code, what it printed as JSON, and its standard error. Scratch is empty again, and it is recorded."""
        done = self.worker.run("drill", "--json", "--scratch", str(self.scratch), *arguments)
        assert done.stdout, done.stderr
        assert list(self.scratch.iterdir()) == []
        printed = json.loads(done.stdout)
        assert json.loads(self.objects.read(f"{PREFIX}/drill.json")) == printed
        return done.returncode, printed, done.stderr

    def untouched(self, before: dict[str, Any]) -> None:
        """The worker serves and acknowledges, and is the same writer life as in the record `before`."""
        assert self.worker.state() == "serving"
        assert push(self.worker, 1, "m1").status_code == 204
        record = self.objects.record()
        assert (record["epoch"], record["live"], record["holder"]) == (before["epoch"], before["live"], before["holder"])

    def needed(self) -> list[str]:
        """The uploads of the live generation that no full copy stands in for, in order; at least three of them."""
        live, user = f"{PREFIX}/{self.objects.record()['live']}/ltx/", 1000
        while True:
            names = [name.removeprefix(live).split("/") for name in self.objects.names(live)]
            copied = max((file[17:33] for level, file in names if level != "0"), default=f"{1:016x}")
            found = [f"{live}{level}/{file}" for level, file in names if level == "0" and file[:16] > copied]
            if len(found) >= 3:
                return found
            user += 1
            assert push(self.worker, user, f"m{user}").status_code == 204


@contextlib.contextmanager
def serving(gcs: FakeGcs, directory: Path, **settings: str) -> Iterator[Place]:
    """A new store and its worker, with settings of its own."""
    worker = WorkerProcess(
        disk=directory / "disk",
        replica_url=URL,
        environment={**gcs.environment(), **QUICK_LEASE, **settings},
        port=0,
        log=directory / "worker.log",
    )
    assert worker.run("init").returncode == 0
    made = Place(gcs, worker, directory / "scratch")
    try:
        worker.start().wait_serving()
        yield made
    finally:
        worker.kill()
        made.objects.close()


@pytest.fixture
def place(fake_gcs: FakeGcs, tmp_path: Path) -> Iterator[Place]:
    """With ten users, each a transaction of its own, in a file of its own: nothing is merged."""
    shipped = (ROOT / "worker" / "replica" / "litestream.yml").read_text()
    merged = "levels:\n  - interval: 30s\n  - interval: 5m\n  - interval: 1h\n"
    assert merged in shipped
    (tmp_path / "litestream.yml").write_text(shipped.replace(merged, "levels: []\n"))
    with serving(fake_gcs, tmp_path, LITESTREAM_CONFIG=str(tmp_path / "litestream.yml")) as made:
        for user in range(1, 11):
            assert push(made.worker, user, f"m{user}").status_code == 204
        copies = f"{PREFIX}/{made.objects.record()['live']}/ltx/9/"
        wait_until(lambda: bool(made.objects.names(copies)), "the first full copy")
        yield made


def test_it_is_proved_while_messages_flow(place: Place) -> None:
    """The restored state lies between the service's own counts, each time; the record and the log say so too."""
    record = place.objects.record()
    with Load(place.worker) as load:
        load.wait_for(20)
        for _ in range(2):
            acknowledged = len(load.acknowledged)
            code, drill, said = place.drill()
            assert (code, drill["verdict"]) == (0, "proved"), drill
            assert drill["generation"] == record["live"]
            users = [drill[side]["rows"]["users"] for side in ("before", "restored", "after")]
            assert acknowledged <= users[0] <= users[1] <= users[2]
            assert 0 < drill["age_seconds"] < 60
            assert '"action": "drill.proved"' in said
        load.wait_for(20)
    assert set(load.answers) == {"204"}
    place.untouched(record)
    shown = place.worker.run("drill", "show", "--json")
    assert (shown.returncode, json.loads(shown.stdout)) == (0, drill)


def test_people_get_a_table(place: Place) -> None:
    """The verdict first, and the counts side by side; `show` prints the same. Before the first there is none to show."""
    none = place.worker.run("drill", "show")
    assert (none.returncode, "run `python -m worker drill`" in none.stderr) == (1, True)
    done = place.worker.run("drill")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["verdict", "proved"]
    assert lines[-5].split() == ["service", "before", "restored", "service", "after"]
    assert [line.split() for line in lines[-4:]] == [
        ["rows", "of", "users", "10", "10", "10"],
        ["erased", "0", "0", "0"],
        ["receipts", "10", "10", "10"],
        ["rejections", "0", "0", "0"],
    ]
    assert place.worker.run("drill", "show").stdout == done.stdout


def test_an_erased_user_is_no_loss(place: Place) -> None:
    """Erased between two drills, the user is an empty row in the service and in the restored file alike."""
    erased = place.worker.run("erase", "3", "--yes")
    assert erased.returncode == 0, erased.stderr
    code, drill, _ = place.drill()
    assert (code, drill["restored"]["rows"], drill["restored"]["erased"]) == (0, {"users": 9}, 1)


def test_a_hole_in_the_replica_has_failed(place: Place) -> None:
    """One object in the middle is gone: exit code 1, with the generation and the reason; the service goes on."""
    record = place.objects.record()
    place.objects.delete(place.needed()[1])
    code, drill, said = place.drill()
    assert (code, drill["verdict"], drill["restored"]) == (1, "failed", None)
    assert f"of {record['live']} are in no whole file" in drill["reason"]
    assert '"action": "drill.failed"' in said
    place.untouched(record)


def test_a_message_that_was_confirmed_and_is_gone_has_failed(place: Place) -> None:
    """The newest upload is gone: what is left restores without an error, and only the comparison finds it."""
    record = place.objects.record()
    place.objects.delete(place.needed()[-1])
    code, drill, _ = place.drill()
    assert (code, drill["verdict"]) == (1, "failed")
    users, last = drill["before"]["rows"]["users"], drill["before"]["last_message"]
    assert drill["restored"]["rows"]["users"] == users - 1
    assert f"it has {users - 1} rows of users, and the service had confirmed {users}" in drill["reason"]
    assert f"message {last}, which the service had confirmed, is not in it" in drill["reason"]
    place.untouched(record)


def test_a_damaged_object_has_failed(place: Place) -> None:
    """An object replaced by other bytes does not pass."""
    name = place.needed()[1]
    place.objects.write(name, place.objects.read(name)[:-8] + b"xxxxxxxx")
    code, drill, _ = place.drill()
    assert (code, drill["verdict"], drill["restored"]) == (1, "failed", None)


def test_an_old_state_has_failed_when_that_was_asked(place: Place) -> None:
    """`--max-age` is a bound on the last transaction's age."""
    assert place.drill("--max-age", "1h")[0] == 0
    code, drill, _ = place.drill("--max-age", "0s")
    assert (code, drill["verdict"]) == (1, "failed")
    assert "older than --max-age allows" in drill["reason"]


def test_without_the_service_it_is_inconclusive(place: Place) -> None:
    """Exit code 3: the restore worked, and says what it found; there was nothing to compare it with."""
    assert place.worker.stop() == 0
    code, drill, said = place.drill()
    assert (code, drill["verdict"], drill["before"], drill["after"]) == (3, "inconclusive", None, None)
    assert drill["restored"]["rows"] == {"users": 10}
    assert "does not answer" in drill["reason"]
    assert '"action": "drill.inconclusive"' in said


def test_a_bucket_that_gives_no_answer_is_inconclusive(place: Place) -> None:
    """503 for its objects is no verdict on them (INV-9)."""
    place.worker._environment["RESTORE_TIMEOUT_SECONDS"] = "5"
    place.gcs.faults.add(verb="download", action="error", name="*/ltx/*")
    code, drill, _ = place.drill()
    assert (code, drill["verdict"], drill["restored"]) == (3, "inconclusive", None)
    assert drill["before"]["rows"] == {"users": 10}


def test_a_record_that_cannot_be_written_takes_nothing_from_the_verdict(place: Place) -> None:
    """It is logged."""
    place.gcs.faults.add(verb="insert", action="error", name=f"{PREFIX}/drill.json")
    done = place.worker.run("drill", "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "proved")
    assert '"action": "drill.unrecorded"' in done.stderr


def test_stopped_in_the_middle_it_leaves_nothing_behind(place: Place) -> None:
    """SIGTERM, as a scheduler ends it: exit code 3, and scratch is empty."""
    place.gcs.faults.add(verb="download", action="delay", name="*/ltx/*", seconds=2)
    command = [sys.executable, "-m", "worker", "drill", "--scratch", str(place.scratch)]
    running = subprocess.Popen(command, env=place.worker._environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(place.scratch.rglob("replica")), "the restore's beginning")
    running.terminate()
    _, said = running.communicate(timeout=30)
    assert (running.returncode, "nothing is recorded" in said) == (3, True)
    assert list(place.scratch.iterdir()) == []


def test_only_an_operator_gets_counts(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """With verified senders a drill without a token is inconclusive and says how to get one; with one it is proved."""
    with Authority() as authority:
        guard = {"PUSH_AUDIENCE": AUDIENCE, "PUSH_SERVICE_ACCOUNT": "push@acme.example", "OPERATORS": OPERATOR}
        with serving(fake_gcs, tmp_path, **guard, OIDC_CERTS_URL=authority.url) as place:
            code, drill, _ = place.drill()
            assert (code, "gcloud auth print-identity-token" in drill["reason"]) == (3, True)
            place.worker._environment["IDENTITY_TOKEN"] = authority.token(audience=AUDIENCE, email=OPERATOR)
            assert place.drill()[0] == 0


def test_a_restart_is_never_taken_for_a_loss(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """Under load and while the service is stopped and started again: proved or inconclusive, never failed."""
    with serving(fake_gcs, tmp_path) as place, Load(place.worker) as load, ThreadPoolExecutor(1) as pool:
        load.wait_for(50)
        for _ in range(2):
            drilling = pool.submit(place.drill)
            assert place.worker.stop() == 0
            place.worker.start().wait_serving()
            code, drill, _ = drilling.result()
            assert code in (0, 3), drill
