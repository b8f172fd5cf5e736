"""Checkpoints and replays end to end: the real emulator, real workers and Litestream, the fake Cloud Storage."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest

from local.ports import free_port
from local.proof import Proof, prove
from local.recorder import Recorder
from local.stack import ACK_DEADLINE_SECONDS, PROJECT, SUBSCRIPTION, TOPIC, Stack, stack
from local.worker_process import WorkerProcess, wait_until
from tests.integration.test_first_light import without_emulator

pytestmark = pytest.mark.slow

QUICK = ("--settle", "2", "--start", "8")
"""The emulator seeks at once, and pauses a second after a refusal."""


@dataclass
class Site:
    """A running stack, and what was published to it: message ids to user ids."""

    stack: Stack
    recorder: Recorder
    published: dict[str, int] = field(default_factory=dict)

    @property
    def worker(self) -> WorkerProcess:
        """The worker's place."""
        return self.stack.worker

    def put(self, name: str, body: Mapping[str, Any]) -> None:
        """Create a resource of the emulator's, as the REST reference says."""
        assert self.stack.pubsub is not None
        url = f"{self.stack.pubsub.url}/v1/projects/{PROJECT}/{name}"
        httpx.put(url, json=body, trust_env=False, timeout=60).raise_for_status()

    def subscribe(self, name: str, **options: Any) -> None:
        """Create another push subscription, and have the commands mean that one."""
        topic = f"projects/{PROJECT}/topics/{TOPIC}"
        push = {"pushConfig": {"pushEndpoint": self.recorder.url}, "ackDeadlineSeconds": ACK_DEADLINE_SECONDS}
        self.put(f"subscriptions/{name}", {"topic": topic, **push, **options})
        self.worker._environment["SUBSCRIPTION"] = name

    def publish(self, *users: int) -> None:
        """Publish users, and wait until all of them are acknowledged."""
        assert self.stack.pubsub is not None
        messages = [{"data": base64.b64encode(b'{"user_id": %d}' % user).decode()} for user in users]
        url = f"{self.stack.pubsub.url}/v1/projects/{PROJECT}/topics/{TOPIC}:publish"
        answer = httpx.post(url, json={"messages": messages}, trust_env=False, timeout=30).raise_for_status()
        self.published |= dict(zip(answer.json()["messageIds"], users, strict=True))
        wait_until(lambda: self.recorder.acknowledged.keys() >= self.published.keys(), "every acknowledgement", seconds=60)

    def run(self, *arguments: str) -> Any:
        """What a command printed as JSON."""
        done = self.worker.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str) -> str:
        """What a command that must fail said."""
        done = self.worker.run(*arguments)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def checkpoints(self) -> dict[str, str]:
        """The checkpoints' states by their names."""
        return {row["name"]: row["state"] for row in self.run("checkpoint", "list")}

    def proof(self) -> Proof:
        """The worker stops, and its bucket is compared with what was published."""
        assert self.worker.stop() == 0
        return prove(self.stack.gcs.url, self.stack.replica_url, self.published)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The stack with its subscription; the commands are pointed at the emulator."""
    with stack(tmp_path) as running:
        if running.pubsub is None:
            without_emulator(running.why_not)
        running.worker._environment |= {**running.publisher_environment(), "SUBSCRIPTION": SUBSCRIPTION}
        with Recorder(running.worker.url, free_port()) as recorder:
            running.subscribe(recorder.url)
            yield Site(running, recorder)


def test_a_checkpoint_is_replayed_and_nothing_is_there_twice(site: Site, tmp_path: Path) -> None:
    """Everything published after it comes again, is a duplicate, and is counted as one; its state is what was there then."""
    site.publish(*range(1, 21))
    made = site.run("checkpoint", "--name", "before")
    assert made["snapshot"] == f"projects/{PROJECT}/snapshots/solowriter.{SUBSCRIPTION}.before"
    site.publish(*range(21, 51))
    at = ("--epoch", str(made["epoch"]), "--txid", str(made["txid"]))
    assert site.run("restore", "-o", str(tmp_path / "then.db"), *at)["rows"] == {"users": 20}

    before = site.recorder.deliveries
    planned = site.run("replay", "--snapshot", "before", "--dry-run")["plan"]
    assert planned["receipts"]["total"] == 30
    assert "add --yes" in site.refused("replay", "--snapshot", "before")
    assert site.recorder.deliveries == before

    done = site.run("replay", "--snapshot", "before", "--yes", *QUICK)
    assert done["redelivered"] == {"total": 30, "outcomes": {"duplicate": 30}}
    assert (done["instances"], site.recorder.deliveries) == (1, before + 30)
    assert site.checkpoints() == {"before": "whole"}

    shown = site.worker.run("replay", "--snapshot", made["snapshot"], "--yes", *QUICK)
    assert "\nredelivered  30: 30 duplicate\n" in shown.stdout, shown
    proof = site.proof()
    assert proof.holds
    assert (proof.users, proof.receipts) == (50, 50)


def test_a_replay_is_followed_through_the_death_of_an_instance(site: Site) -> None:
    """Killed with -9 in the middle: the replay goes on with the next instance, and says that there were two."""
    site.publish(1)
    site.run("checkpoint", "--name", "start")
    site.publish(*range(2, 152))
    before = site.recorder.deliveries
    ended: list[CompletedProcess[str]] = []
    replaying = threading.Thread(
        target=lambda: ended.append(site.worker.run("replay", "--snapshot", "start", "--yes", "--json", *QUICK))
    )
    replaying.start()
    wait_until(lambda: site.recorder.deliveries >= before + 20, "some redeliveries")
    site.worker.kill()
    wait_until(lambda: site.recorder.under_way == 0, "an account of all that it had answered")
    at_death = site.recorder.deliveries - before
    site.worker.start().wait_serving()
    replaying.join()
    (done,) = ended
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert at_death < 150, "the kill came too late to test anything"
    assert found["instances"] == 2
    assert found["redelivered"]["outcomes"].keys() == {"duplicate"}
    assert 150 - at_death <= found["redelivered"]["total"] <= 150
    assert site.recorder.deliveries - before >= 150
    proof = site.proof()
    assert proof.holds
    assert (proof.users, proof.receipts) == (151, 151)


def test_a_seek_to_a_time(site: Site) -> None:
    """Without retention: refused. Ordered, on the emulator: refused, with nothing left behind. Retained: all since then."""
    site.publish(1, 2, 3)
    assert "retains no acknowledged messages" in site.refused("replay", "--from", "1h", "--yes")
    assert "in the future" in site.refused("replay", "--from", "2999-01-01T00:00:00Z", "--yes")
    site.subscribe("ordered", retainAckedMessages=True, enableMessageOrdering=True)
    assert "not implemented" in site.refused("replay", "--from", "1h", "--yes")
    assert site.checkpoints() == {}

    site.subscribe("kept", retainAckedMessages=True)
    site.publish(4, 5)
    wait_until(lambda: site.recorder.deliveries >= 3 + 3 * 2, "the deliveries of all three subscriptions")
    time.sleep(0.1)
    moment = datetime.now(UTC).isoformat()
    time.sleep(0.1)
    site.publish(6, 7, 8)
    wait_until(lambda: site.recorder.deliveries >= 3 + 3 * 2 + 3 * 3, "the deliveries of all three subscriptions")
    time.sleep(2)  # a time that may be the oldest waiting message's own, but for rounding, is sought a little before
    done = site.run("replay", "--from", moment, "--yes", *QUICK)
    assert done["plan"]["receipts"]["total"] == 3
    assert done["redelivered"] == {"total": 3, "outcomes": {"duplicate": 3}}
    assert site.proof().holds


def test_a_broken_checkpoint_is_listed_and_pruned(site: Site) -> None:
    """A snapshot without a record, and a record without a snapshot; neither is taken for a whole one."""
    site.publish(1)
    site.put(
        f"snapshots/solowriter.{SUBSCRIPTION}.broken", {"subscription": f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}"}
    )
    for name in ("one", "two"):
        site.run("checkpoint", "--name", name)
    assert site.stack.pubsub is not None
    gone = f"{site.stack.pubsub.url}/v1/projects/{PROJECT}/snapshots/solowriter.{SUBSCRIPTION}.one"
    httpx.delete(gone, trust_env=False, timeout=60).raise_for_status()
    assert site.checkpoints() == {"two": "whole", "one": "expired", "broken": "no record"}
    assert "has expired" in site.refused("replay", "--snapshot", "one", "--yes")
    assert "there is no checkpoint broken" in site.refused("replay", "--snapshot", "broken", "--yes")
    assert "there is a checkpoint two already" in site.refused("checkpoint", "--name", "two")
    assert "broken off" in site.refused("checkpoint", "--name", "broken")

    said = site.worker.run("checkpoint", "prune", "--keep", "1")
    assert (said.returncode, "this would delete 1;" in said.stderr) == (1, True), said
    assert [row["name"] for row in site.run("checkpoint", "prune", "--keep", "1", "--yes")] == ["one"]
    site.run("checkpoint", "prune", "--older-than", "0s", "--yes")
    assert site.checkpoints() == {}
