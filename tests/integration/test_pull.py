"""DELIVERY=pull on the real emulator: the worker is killed while it takes a backlog, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.proof import accepted, prove
from local.pubsub import EmulatorMissing
from local.stack import Stack, stack
from local.worker_process import ROOT, wait_until

pytestmark = pytest.mark.slow

USERS = 3_000


@pytest.fixture
def pulling(tmp_path: Path) -> Iterator[Stack]:
    """The stack, whose worker pulls."""
    try:
        with stack(tmp_path / "stack", delivery="pull") as running:
            running.subscribe("")
            yield running
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def publish(running: Stack, directory: Path, *lines: dict[str, object]) -> dict[str, int]:
    """Publish messages; message id to user id of each."""
    file, ids = directory / f"{len(list(directory.iterdir()))}.jsonl", directory / f"{len(list(directory.iterdir()))}.ids"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "publisher", "load", str(file), "--accepted", str(ids)]
    environment = {**os.environ, **running.publisher_environment()}
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return accepted(ids)


def handled(running: Stack) -> dict[str, float]:
    """The worker's counts, by outcome and step; empty while it cannot be asked."""
    try:
        page = httpx.get(f"{running.worker.url}/metrics", trust_env=False, timeout=10).text
    except httpx.HTTPError:
        return {}
    found = {}
    for line in page.splitlines():
        if line.startswith(("solowriter_messages_total{", "solowriter_pulled_total{")):
            found[line.split('"')[1]] = float(line.rsplit(" ", 1)[1])
    return found


@pytest.mark.timeout(400)  # what a killed stream had, the emulator gives again after ten seconds, or only after two minutes
def test_a_backlog_is_pulled_through_a_kill_and_nothing_is_lost_or_doubled(pulling: Stack, tmp_path: Path) -> None:
    """INV-1, INV-3: killed in the middle and started again, every message is in the bucket once, and a conflict is kept."""
    folder = tmp_path / "lines"
    folder.mkdir()
    users = [{"user_id": n, "email_address": f"user{n}@example.com"} for n in range(1, USERS + 1)]
    published = publish(pulling, folder, *users)
    wait_until(lambda: handled(pulling).get("created", 0) >= USERS // 10, "the first messages", seconds=60)
    pulling.worker.kill()
    pulling.worker.start().wait_serving()
    published |= publish(pulling, folder, {"user_id": 1, "email_address": "another@example.com"})

    def all_done() -> bool:
        counts = handled(pulling)
        return counts.get("conflict", 0) >= 1 and counts.get("acknowledged", 0) >= 1 and _waiting(pulling) == 0

    wait_until(all_done, "an empty subscription", seconds=240)
    code = pulling.worker.stop()
    proof = prove(pulling.gcs.url, pulling.replica_url, published)
    assert (code, proof.holds, proof.users) == (0, True, USERS), proof


def _waiting(running: Stack) -> int:
    """How many of the messages that the test published have no receipt yet."""
    answer = httpx.get(
        f"{running.worker.url}/receipts", params={"since": "2020-01-01T00:00:00Z"}, trust_env=False, timeout=10
    )
    return USERS + 1 - int(answer.json()["total"]) if answer.status_code == 200 else USERS


def test_many_instances_pull_and_the_demo_proves_that_nothing_was_lost(tmp_path: Path) -> None:
    """`make demo-many` in small: exit code 0, and the figures it prints agree with each other."""
    command = [sys.executable, "-m", "local", "demo-many", "--messages", "1000", "--instances", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode == 2 and not os.environ.get("CI"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["passed"] is True
    assert figures["receipts"] == "conflict 10, created 940, exists 50"
    assert [figures[name] for name in ("published", "users", "lost", "doubled")] == ["1,000", "940", "0", "0"]
    assert re.fullmatch(r"an instance at [\d,]+, the database at [\d,]+", figures["killed -9"])
