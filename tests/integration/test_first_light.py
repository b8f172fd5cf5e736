"""The whole path on real parts: gcloud publishes, the real emulator pushes, the row can be read, the bucket holds it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from local import run
from local.ports import free_port
from local.proof import accepted, prove
from local.recorder import Recorder
from local.stack import BUCKET, TOPIC, Stack, stack
from local.worker_process import ROOT, wait_until

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Light:
    """A running stack whose subscription pushes through the recorder."""

    stack: Stack
    recorder: Recorder

    def run(self, *command: str) -> str:
        """Run a command pointed at this stack; what it printed."""
        environment = {**os.environ, **self.stack.publisher_environment()}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def gcloud_publish(self, data: str) -> str:
        """Publish with the real gcloud, as the README says it; the message id."""
        said = self.run("gcloud", "pubsub", "topics", "publish", TOPIC, f"--message={data}", "--format=value(messageIds[0])")
        return said.strip()

    def user(self, user_id: int) -> dict[str, Any] | None:
        """The row, or None; also while the worker is starting."""
        try:
            answer = httpx.get(f"{self.stack.worker.url}/users/{user_id}", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return None
        row: dict[str, Any] | None = answer.json() if answer.is_success else None
        return row

    def objects(self) -> list[str]:
        """The names of all objects in the bucket."""
        answer = httpx.get(f"{self.stack.gcs.url}/storage/v1/b/{BUCKET}/o", trust_env=False, timeout=60).raise_for_status()
        return [item["name"] for item in answer.json()["items"]]


def without_emulator(why: str) -> NoReturn:
    """The emulator is what these tests are about: CI must have it, elsewhere its absence is a skip that says why."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def light(tmp_path: Path) -> Iterator[Light]:
    """The stack with its subscription. Without an emulator: a failure on CI, a skip elsewhere."""
    with stack(tmp_path) as running:
        if running.pubsub is None:
            without_emulator(running.why_not)
        with Recorder(running.worker.url, free_port()) as recorder:
            running.subscribe(recorder.url)
            yield Light(running, recorder)


def test_a_message_published_with_gcloud_can_be_read_and_is_in_the_bucket(light: Light) -> None:
    """The real gcloud publishes user 5; GET /users/5 shows the row; the bucket has the live generation's transactions."""
    message_id = light.gcloud_publish('{"user_id": 5}')
    wait_until(lambda: light.user(5) is not None, "the row of user 5")
    wait_until(lambda: message_id in light.recorder.acknowledged, "its acknowledgement")
    row = light.user(5)
    assert row is not None
    assert row.pop("created_at") > 1_700_000_000  # the publish time, as the message stated none
    assert row == {"user_id": 5, "email_address": None, "deleted": 0, "settings": None}
    names = light.objects()
    assert "store/lease.json" in names
    assert [name for name in names if re.fullmatch(r"store/generations/[0-9a-f]{16}/ltx/0/[0-9a-f-]+\.ltx", name)]
    assert prove(light.stack.gcs.url, light.stack.replica_url, {message_id: 5}).holds


def test_a_user_published_twice_is_acknowledged_twice_and_there_once(light: Light) -> None:
    """INV-3: our publisher sends the same user in two messages; both are acknowledged, the row is the first one's."""
    command = (sys.executable, "-m", "publisher", "create", "--user-id", "7", "--email", "seven@example.com", "--json")
    first, second = (json.loads(light.run(*command))["message_id"] for _ in range(2))
    wait_until(lambda: light.recorder.acknowledged.keys() >= {first, second}, "both acknowledgements")
    proof = prove(light.stack.gcs.url, light.stack.replica_url, {first: 7, second: 7})
    assert proof.holds
    assert (proof.users, proof.receipts) == (1, 2)


def test_killed_and_wiped_while_messages_flow_everything_arrives(light: Light, tmp_path: Path) -> None:
    """INV-1: kill -9 of worker and Litestream, disk deleted, started again: every accepted message arrives, once."""
    lines = tmp_path / "users.jsonl"
    users = range(1, 401)
    lines.write_text("".join(f'{{"user_id": {number}}}\n' for number in users))
    command = [sys.executable, "-m", "publisher", "load", str(lines), "--accepted", str(tmp_path / "accepted.jsonl")]
    environment = {**os.environ, **light.stack.publisher_environment()}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL) as publishing:
        wait_until(lambda: len(light.recorder.acknowledged) >= 30, "a few acknowledgements")
        light.stack.worker.kill()
        before = len(light.recorder.acknowledged)
        assert publishing.wait(60) == 0
    messages = accepted(tmp_path / "accepted.jsonl")
    assert sorted(messages.values()) == list(users)
    assert before < len(messages), "the kill came too late to test anything"
    light.stack.worker.wipe()
    light.stack.worker.start()
    wait_until(lambda: light.recorder.acknowledged.keys() >= messages.keys(), "every acknowledgement", seconds=60)
    proof = prove(light.stack.gcs.url, light.stack.replica_url, messages)
    assert proof.holds, proof
    assert proof.users == len(users)


def said_by(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What a command of `python -m local` printed; one that takes too long is interrupted, so that it ends its children."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        raise


@pytest.mark.timeout(120)
def test_the_demo_proves_that_nothing_was_lost() -> None:
    """`make demo` in small: exit code 0, and the figures it prints agree with each other."""
    command = [sys.executable, "-m", "local", "demo", "--users", "60", "--kills", "1", "--json"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said, progress = said_by(process, 80)
    assert process.returncode == 0, progress
    figures = json.loads(said)
    assert figures["passed"] is True
    assert [int(figures[name]) for name in ("published", "acknowledged", "in the bucket")] == [60, 60, 60]
    assert (int(figures["lost"]), int(figures["duplicated"])) == (0, 0)
    if "no Pub/Sub emulator" in progress:
        without_emulator(progress)


@contextmanager
def a_run(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`make run`, and what it printed until it was up."""
    command = [sys.executable, "-u", "-m", "local", "run", "--dir", str(directory)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            assert f"\n. {directory / 'env'}\n" in said
            yield process, said + (directory / "env").read_text()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_a_stopped_run_leaves_no_process_behind(tmp_path: Path, how: str) -> None:
    """`make run` ended as a stop button or as a terminal does: none of its ports answers, and the lease is released."""
    with a_run(tmp_path / "run") as (process, said):
        ports = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", said)}
        assert len(ports) >= 2, said
        assert all(map(listens, ports)), said
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of its foreground group
        else:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert not any(map(listens, ports))
    assert not (tmp_path / "run" / "env").exists()
    log = (tmp_path / "run" / "worker.log").read_text()
    assert '"lease.released"' in log, log[-2000:]
    if "gcloud pubsub topics publish" not in said:
        without_emulator(said)


@pytest.mark.timeout(120)
def test_a_run_starts_its_worker_again(tmp_path: Path) -> None:
    """A worker that loses its lease ends with 0; on this machine nothing but `make run` stands for the platform."""
    with a_run(tmp_path / "run") as (process, said):
        exported = dict(found.split("=", 1) for found in re.findall(r"(?:STORAGE_EMULATOR_HOST|REPLICA_URL)=\S+", said))
        service = re.findall(r"SERVICE_URL=(\S+)", said)[0]
        subprocess.run(
            [sys.executable, "-m", "worker", "lease", "break", "--force", "--yes"],
            cwd=ROOT,
            env=os.environ | exported,
            check=True,
            timeout=30,
        )
        assert process.stdout is not None
        assert "the worker ended with 0; starting it again" in process.stdout.readline()
        wait_until(lambda: listens(int(service.rpartition(":")[2])), "listening again")
        metrics = f"{service}/metrics"
        wait_until(
            lambda: "solowriter_lease_epoch 2" in httpx.get(metrics, trust_env=False, timeout=60).text, "serving again"
        )


@pytest.mark.timeout(240)
def test_a_second_run_goes_on_with_the_first_ones_data_and_not_beside_it(tmp_path: Path) -> None:
    """While one runs its folder is its own; the next keeps what it stored, and takes new messages; --fresh begins empty."""
    folder = tmp_path / "run"
    for life, user in enumerate((5, 6)):
        with a_run(folder) as (_, said):
            if "gcloud pubsub topics publish" not in said:
                without_emulator(said)
            service = re.findall(r"SERVICE_URL=(\S+)", said)[0]
            variables = dict(found.split("=", 1) for found in re.findall(r"export ([A-Z_]+=\S+)", said))
            command = [sys.executable, "-m", "publisher", "create", "--user-id", str(user), "--json"]
            subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, stdout=subprocess.DEVNULL, timeout=30)
            shown = f"{service}/users/{user}"
            wait_until(lambda shown=shown: httpx.get(shown, trust_env=False, timeout=60).status_code == 200, "the row")  # type: ignore[misc]
            if life == 0:
                beside = subprocess.run(
                    [sys.executable, "-m", "local", "run", "--dir", str(folder), "--fresh"],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=30,
                )
                assert (beside.returncode, "another stack runs in" in beside.stdout) == (2, True)
            assert httpx.get(f"{service}/users/5", trust_env=False, timeout=60).status_code == 200


def test_only_a_folder_with_our_mark_is_ever_emptied(tmp_path: Path) -> None:
    """Not the folder of somebody's files, with --fresh or without."""
    (tmp_path / "thesis.txt").write_text("years")
    for fresh in (False, True):
        with pytest.raises(run.NotOursError, match="holds what `run` did not make"), run.claimed(tmp_path, fresh=fresh):
            pass
    ours = tmp_path / "ours"
    with run.claimed(ours, fresh=True):
        (ours / "gcs").mkdir()
        with pytest.raises(run.NotOursError, match="another stack runs in"), run.claimed(ours, fresh=True):
            pass
    with run.claimed(ours, fresh=False):
        assert (ours / "gcs").is_dir()
    with run.claimed(ours, fresh=True):
        assert [each.name for each in ours.iterdir()] == [run.MARK]
    assert (tmp_path / "thesis.txt").read_text() == "years"


@pytest.mark.timeout(120)
def test_a_port_that_is_taken_is_said_loudly(tmp_path: Path) -> None:
    """What answers there is another program; the commands that are printed do not ask it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # another program's already: just as well
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        with a_run(tmp_path / "run") as (_, said):
            assert "PORT 8080 IS ANOTHER PROGRAM'S: the worker of this stack is at" in said
            assert "127.0.0.1:8080" not in said


def listens(port: int) -> bool:
    """Whether anything accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
