"""Recovery and replay, end to end: the real emulator, the real gcloud, real Litestream, the fake Cloud Storage."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from local.demo_recover import SETTINGS, demo_recover, kept_up
from local.ports import free_port
from local.proof import accepted, prove
from local.recorder import Recorder
from local.stack import PROJECT, SUBSCRIPTION, stack
from local.worker_process import ROOT, wait_until
from tests.integration.test_first_light import Light, without_emulator

pytestmark = pytest.mark.slow

HALF = 60


@pytest.fixture
def light(tmp_path: Path) -> Iterator[Light]:
    """The stack with its subscription, whose worker is started again whenever it ends."""
    with stack(tmp_path, settings=SETTINGS) as running:
        if running.pubsub is None:
            without_emulator(running.why_not)
        with Recorder(running.worker.url, free_port()) as recorder, kept_up(running.worker):
            running.subscribe(recorder.url)
            yield Light(running, recorder)


def publish(light: Light, stem: Path, users: range) -> dict[str, int]:
    """Publish users through the emulator; message id to user id."""
    stem.with_suffix(".jsonl").write_text("".join(f'{{"user_id": {user}}}\n' for user in users))
    known = stem.with_suffix(".accepted")
    light.run(sys.executable, "-m", "publisher", "load", f"{stem}.jsonl", "--accepted", str(known))
    return accepted(known)


def command(light: Light, *arguments: str) -> subprocess.Popen[str]:
    """Start a command of the worker."""
    name = f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}"
    environment = {**light.stack.worker.environment, **light.stack.publisher_environment(), "SUBSCRIPTION": name}
    return subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments, "--json"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> Any:
    """What a command printed as JSON."""
    said, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    return json.loads(said)


def test_the_demo_proves_that_what_was_undone_comes_back(tmp_path: Path) -> None:
    """`make demo-recover` with fewer users: a checkpoint, as many again, a recovery to it with replay."""
    try:
        result = demo_recover(tmp_path, users=2 * HALF, console=Console(quiet=True))
    except RuntimeError as error:
        without_emulator(str(error))
    assert result.passed
    assert (result.undone, result.redelivered) == (HALF, {"created": HALF})


def test_poison_duplicates_newcomers_and_a_kill_in_the_middle(light: Light, tmp_path: Path) -> None:
    """A stream with everything in it; the worker is killed -9 during the replay, and new messages come: each user once."""
    first = publish(light, tmp_path / "first", range(1, HALF + 1))
    poison = [light.gcloud_publish("not JSON")]
    wait_until(lambda: light.recorder.acknowledged.keys() >= {*first, *poison}, "the first half", seconds=60)
    checkpoint = finished(command(light, "checkpoint", "--name", "good"))

    second = publish(light, tmp_path / "second", range(HALF + 1, 2 * HALF + 1))
    again = publish(light, tmp_path / "again", range(HALF // 2, HALF + HALF // 2))  # the same users in other messages
    poison.append(light.gcloud_publish('{"user_id": 7, "email_address": "other@example.com"}'))
    everything = first | second | again
    wait_until(lambda: light.recorder.acknowledged.keys() >= {*everything, *poison}, "the second half", seconds=60)

    undone = tmp_path / "undone.txt"
    recovering = command(
        light, "recover", "--at", checkpoint["created_at"], "--replay", "--yes", "--settle", "4", "--undone", str(undone)
    )
    before = light.recorder.deliveries
    wait_until(lambda: undone.exists() and light.recorder.deliveries > before, "the first redelivery", seconds=90)
    wait_until(lambda: light.recorder.deliveries > before + random.randint(5, 40), "some redeliveries", seconds=60)
    light.stack.worker.kill()
    newcomers = publish(light, tmp_path / "newcomers", range(2 * HALF + 1, 2 * HALF + 21))
    found = finished(recovering)
    assert set(undone.read_text().split()) == {*second, *again, poison[1]}
    assert found["undone"]["outcomes"] == {"conflict": 1, "created": HALF, "exists": HALF}

    wait_until(lambda: light.recorder.acknowledged.keys() >= newcomers.keys(), "the newcomers", seconds=60)
    expected = everything | newcomers

    def all_there() -> bool:
        return receipts(light) == len(expected) + len(poison)

    wait_until(all_there, "every receipt", seconds=60)
    listed = finished(command(light, "rejections", "list"))
    assert {row["message_id"]: row["reason"] for row in listed} == {poison[0]: "not_json", poison[1]: "conflict"}
    proof = prove(light.stack.gcs.url, light.stack.replica_url, expected)
    assert proof.holds
    assert (proof.users, proof.receipts) == (2 * HALF + 20, len(expected) + len(poison))


def test_killed_before_the_replay_it_is_run_again(light: Light, tmp_path: Path) -> None:
    """Dead between the switch and the seek: the same command again brings back all that the first has undone."""
    first = publish(light, tmp_path / "first", range(1, 11))
    wait_until(lambda: light.recorder.acknowledged.keys() >= first.keys(), "the first half", seconds=60)
    checkpoint = finished(command(light, "checkpoint", "--name", "good"))
    second = publish(light, tmp_path / "second", range(11, 21))
    wait_until(lambda: light.recorder.acknowledged.keys() >= second.keys(), "the second half", seconds=60)

    again = ("recover", "--at", checkpoint["created_at"], "--replay", "--yes", "--settle", "2", "--undone")
    dying = command(light, *again, str(tmp_path / "dying.txt"))
    assert dying.stderr is not None
    said: list[str] = []
    for line in dying.stderr:
        said.append(line)
        if line.rstrip().endswith("is live"):
            break
    dying.kill()
    dying.communicate()
    by_hand = f"python -m worker replay --snapshot {checkpoint['snapshot']}"
    assert any(by_hand in line for line in said), said
    assert not [row for row in finished(command(light, "checkpoint", "list")) if row["name"].startswith("before-replay")]

    wait_until(lambda: receipts(light) == len(first), "the older state", seconds=60)
    found = finished(command(light, *again, str(tmp_path / "again.txt")))
    assert (found["undone"]["before"], found["redelivered"]["outcomes"]) == (len(second), {"created": len(second)})
    assert set((tmp_path / "again.txt").read_text().split()) == set(second)
    wait_until(lambda: receipts(light) == len(first | second), "every receipt", seconds=60)
    proof = prove(light.stack.gcs.url, light.stack.replica_url, first | second)
    assert proof.holds
    assert proof.users == 20


def receipts(light: Light) -> int:
    """How many there are; none while nobody serves."""
    try:
        answer = httpx.get(f"{light.stack.worker.url}/counts", timeout=10, trust_env=False)
    except httpx.HTTPError:
        return 0
    return int(answer.json()["receipts"]) if answer.is_success else 0
