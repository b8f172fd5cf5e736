"""PostgreSQL restored by its provider to an earlier state: one command finds what that lacks, and brings it back."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.postgres import Postgres, postgres
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.worker_process import WorkerProcess, wait_until

pytestmark = pytest.mark.slow

PROJECT = "p"


@dataclass(frozen=True, slots=True)
class Site:
    """A worker on PostgreSQL, to which the emulator pushes."""

    server: Postgres
    pubsub: Emulator
    worker: WorkerProcess

    def publish(self, *users: int) -> None:
        """Publish users, and wait until they can be read."""
        messages = [{"data": base64.b64encode(b'{"user_id": %d}' % user).decode()} for user in users]
        url = f"{self.pubsub.url}/v1/projects/{PROJECT}/topics/users:publish"
        httpx.post(url, json={"messages": messages}, trust_env=False, timeout=60).raise_for_status()
        wait_until(lambda: self.users(*users) == list(users), "every user", seconds=60)

    def users(self, *asked: int) -> list[int]:
        """Those of the users that are there."""
        answers = {user: httpx.get(f"{self.worker.url}/users/{user}", trust_env=False, timeout=60) for user in asked}
        return [user for user, answer in answers.items() if answer.status_code == 200]

    def serve(self, database: str) -> None:
        """Serve another database."""
        assert self.worker.stop() == 0
        self.worker._environment["DATABASE_URL"] = self.server.url(database)
        self.worker.start().wait_serving()

    def replay(self, *arguments: str) -> Any:
        """What the command printed as JSON."""
        done = self.worker.run("replay", *arguments, "--yes", "--json", "--settle", "2", f"--url={self.worker.url}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server, an emulator whose subscription retains acknowledged messages, and a worker."""
    with postgres() as server, _emulator(tmp_path / "pubsub") as pubsub:
        worker = WorkerProcess(
            disk=tmp_path / "disk",
            replica_url="",
            environment={
                "DATABASE_URL": server.create("before"),
                "ACK_DEADLINE_SECONDS": "15",
                "SUBSCRIPTION": "users-worker",
                "GOOGLE_CLOUD_PROJECT": PROJECT,
                **pubsub.gcloud_env(),
            },
            port=0,
            log=tmp_path / "worker.log",
        )
        try:
            worker.start().wait_serving()
            topic, base = f"projects/{PROJECT}/topics/users", f"{pubsub.url}/v1/projects/{PROJECT}"
            subscription = {
                "topic": topic,
                "pushConfig": {"pushEndpoint": worker.url},
                "ackDeadlineSeconds": 15,
                "retainAckedMessages": True,
            }
            _put(f"{base}/topics/users", {})
            _put(f"{base}/subscriptions/users-worker", subscription)
            yield Site(server, pubsub, worker)
        finally:
            worker.kill()


@contextmanager
def _emulator(directory: Path) -> Iterator[Emulator]:
    try:
        with emulator(directory, PROJECT) as running:
            yield running
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def _put(url: str, body: Mapping[str, Any]) -> None:
    httpx.put(url, json=body, trust_env=False, timeout=60).raise_for_status()


def test_what_a_provider_s_restore_has_undone_is_replayed(site: Site) -> None:
    """The restored database lacks three users; the command finds from when on, seeks, and they are there again."""
    site.publish(1, 2, 3, 4, 5)
    assert site.worker.stop() == 0
    site.server.execute('CREATE DATABASE "restored" TEMPLATE "before"')
    site.worker.start().wait_serving()
    site.publish(6, 7, 8)
    site.serve("restored")
    assert site.users(5, 6, 7, 8) == [5]
    newer = ("--newer", site.server.url("before"))
    found = site.replay(*newer)
    assert found["redelivered"]["outcomes"]["created"] == 3
    assert site.users(*range(1, 9)) == list(range(1, 9))
    assert site.replay(*newer) == {"plan": None}


def test_a_database_that_cannot_be_read_seeks_nothing(site: Site) -> None:
    """The error names the address without its password, and the next step."""
    gone = site.worker.run("replay", "--newer", "postgresql://a:secret@127.0.0.1:1/c", "--yes")
    assert gone.returncode == 1
    assert "postgresql://127.0.0.1:1/c cannot be read" in gone.stderr
    assert "nothing was sought" in gone.stderr
    assert "secret" not in gone.stderr
    same = site.worker.run("replay", "--newer", site.server.url("before"), "--yes")
    assert (same.returncode, "name one database" in same.stderr) == (1, True)
    missing = site.worker.run("replay", "--newer", site.server.url("absent"), "--yes")
    assert missing.returncode == 1
    assert "does not exist" in missing.stderr
