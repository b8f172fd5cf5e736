"""What becomes of each message, end to end: gcloud, the real emulator, the worker, and the operator's commands."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.authority import Authority
from local.gcs_process import FakeGcs
from local.ports import free_port
from local.proof import prove
from local.recorder import Recorder
from local.stack import ACK_DEADLINE_SECONDS, QUICK_LEASE, SUBSCRIPTION, TOPIC, stack
from local.worker_process import ROOT, WorkerProcess, wait_until
from publisher import message
from tests.integration.test_first_light import Light, without_emulator

pytestmark = pytest.mark.slow

LARGE = 2**40
"""A good user id that the older version below takes for a bad one."""


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The code of an older version with a defect: it knows user ids of 31 bits only."""
    folder = tmp_path / "older"
    for package in ("worker", "publisher"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "worker" / "events" / "users.py"
    mended = module.read_text()
    assert mended.count("MAX_USER_ID: Final = 2**63 - 1") == 1
    module.write_text(mended.replace("MAX_USER_ID: Final = 2**63 - 1", "MAX_USER_ID: Final = 2**31 - 1"))
    return folder


@pytest.fixture
def light(tmp_path: Path) -> Iterator[Light]:
    """The stack with its subscription."""
    with stack(tmp_path) as running:
        if running.pubsub is None:
            without_emulator(running.why_not)
        with Recorder(running.worker.url, free_port()) as recorder:
            running.subscribe(recorder.url)
            yield Light(running, recorder)


def place(light: Light, code: Path) -> WorkerProcess:
    """The worker's place, run by another version's code."""
    worker = light.stack.worker
    return WorkerProcess(
        disk=worker.disk,
        replica_url=light.stack.replica_url,
        environment={**light.stack.gcs.environment(), "ACK_DEADLINE_SECONDS": str(ACK_DEADLINE_SECONDS), **QUICK_LEASE},
        port=worker.port,
        log=worker.log,
        code=code,
    )


def rejections(worker: WorkerProcess, *arguments: str) -> Any:
    """What `worker rejections … --json` printed, each line read."""
    done = worker.run("rejections", *arguments, "--json")
    assert done.stdout or done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_good_malformed_conflicting_and_duplicate_then_a_fix(light: Light, older: Path, tmp_path: Path) -> None:
    """Each is acknowledged once; the bad ones are listed; each way of resolving one works; nothing is there twice."""
    light.stack.worker.stop()
    worker = place(light, older).start().wait_serving()
    try:
        light.run("gcloud", "pubsub", "snapshots", "create", "before", f"--subscription={SUBSCRIPTION}")
        good = light.gcloud_publish('{"user_id": 5, "email_address": "first@example.com"}')
        wait_until(lambda: good in light.recorder.acknowledged, "the first acknowledgement")
        malformed = light.gcloud_publish('{"user_id": "nine"}')
        conflicting = light.gcloud_publish('{"user_id": 5, "email_address": "second@example.com"}')
        same = light.gcloud_publish('{"user_id": 5, "email_address": "first@example.com"}')
        large = light.gcloud_publish(f'{{"user_id": {LARGE}}}')
        everything = {good, malformed, conflicting, same, large}
        wait_until(lambda: light.recorder.acknowledged.keys() >= everything, "every acknowledgement")
        assert light.recorder.refused == 0

        (listed,) = rejections(worker, "list")
        assert {row["message_id"]: row["reason"] for row in listed} == {
            malformed: "wrong_type",
            conflicting: "conflict",
            large: "out_of_range",
        }
        table = worker.run("rejections", "list").stdout
        assert [line.split()[0] for line in table.splitlines()[1:]] == [row["message_id"] for row in listed]
        assert "example.com" not in table

        # Delivered once more, each is a duplicate: the queue is at-least-once.
        before = light.recorder.deliveries
        light.run("gcloud", "pubsub", "subscriptions", "seek", SUBSCRIPTION, "--snapshot=before")
        wait_until(lambda: light.recorder.deliveries >= before + len(everything), "every redelivery")

        # The fix: the mended version takes over.
        assert worker.stop() == 0
        worker = place(light, ROOT).start().wait_serving()
        assert rejections(worker, "retry", "--reason", "out_of_range") == [{"message_id": large, "outcome": "created"}]
        assert rejections(worker, "retry", conflicting) == [{"message_id": conflicting, "outcome": "conflict"}]
        assert rejections(worker, "discard", conflicting, "--yes") == [{"message_id": conflicting, "outcome": "discarded"}]
        exported = tmp_path / "bad.jsonl"
        assert rejections(worker, "export", str(exported)) == [{"exported": 1, "file": str(exported)}]
        piped = worker.run("rejections", "export", "-")
        assert (piped.stdout, piped.stderr) == (
            exported.read_text(),
            f"{light.stack.worker.url} serves {light.stack.replica_url}\n1 exported\n",
        )
        exported.write_text(exported.read_text().replace('"nine"', "9"))
        light.run(sys.executable, "-m", "publisher", "load", str(exported))
        wait_until(lambda: light.user(9) is not None, "the mended user")
        whole = rejections(worker, "discard", "--file", str(exported), "--yes")
        assert whole == [{"message_id": malformed, "outcome": "discarded"}]
        nothing = worker.run("rejections", "discard", "--file", str(exported), "--yes")
        assert (nothing.returncode, nothing.stdout) == (0, "nothing to discard\n")
        assert rejections(worker, "list") == [[]]
        again = worker.run("rejections", "discard", malformed, "--yes")
        assert (again.returncode, "resolved already: discarded" in again.stdout) == (1, True)

        assert worker.stop() == 0
        proof = prove(light.stack.gcs.url, light.stack.replica_url, dict.fromkeys(everything, 5) | {large: LARGE})
        assert (proof.users, proof.receipts) == (3, 6)
        assert proof.holds
    finally:
        worker.kill()


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without"])
def test_an_unwrapped_subscription(light: Light, metadata: bool) -> None:
    """The real emulator pushes bare data: good ones are created, bad ones kept under the queue's ids where it tells them."""
    worker = light.stack.worker
    if not metadata:
        assert worker.stop() == 0
        worker._environment["PUSH_UNWRAPPED"] = "true"
        worker.start().wait_serving()
    light.run("gcloud", "pubsub", "subscriptions", "delete", SUBSCRIPTION)
    flags = ["--push-no-wrapper", *(["--push-no-wrapper-write-metadata"] if metadata else [])]
    create = ("gcloud", "pubsub", "subscriptions", "create", "bare", f"--topic={TOPIC}", f"--push-endpoint={worker.url}/")
    light.run(*create, *flags)
    light.gcloud_publish('{"user_id": 5}')
    other = ("--attribute=event_type=user.renamed", "--format=value(messageIds[0])")
    bad = light.run("gcloud", "pubsub", "topics", "publish", TOPIC, '--message={"user_id": 6}', *other).strip()
    wait_until(lambda: light.user(5) is not None, "the row of user 5")
    if metadata:
        wait_until(lambda: len(rejections(worker, "list")[0]) == 1, "the other event's rejection")
        (kept,) = rejections(worker, "list")[0]
        assert (kept["message_id"], kept["reason"]) == (bad, "unknown_event")
    else:
        wait_until(lambda: light.user(6) is not None, "the row of user 6, whose attribute nobody tells")


def push(worker: WorkerProcess, message_id: str, data: bytes, token: str | None = None, **headers: str) -> int:
    """Push one message over HTTP; the status."""
    body = message.envelope(data, {}, message_id, "2026-01-01T00:00:00Z", "projects/p/subscriptions/s")
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return httpx.post(worker.url, content=body, headers=headers, timeout=30, trust_env=False).status_code


AUDIENCE = "https://users.example"
PUSHER = "push@acme.example"
OPERATOR = "ann@acme.example"


@pytest.fixture
def authority() -> Iterator[Authority]:
    """Signs tokens, and serves its certificates on loopback."""
    with Authority() as serving:
        yield serving


@pytest.fixture
def guarded(tmp_path: Path, authority: Authority) -> Iterator[WorkerProcess]:
    """A serving worker that verifies its senders."""
    with FakeGcs(tmp_path / "gcs", buckets=("bucket",)) as gcs:
        settings = {
            "PUSH_AUDIENCE": AUDIENCE,
            "PUSH_SERVICE_ACCOUNT": PUSHER,
            "OPERATORS": f"{OPERATOR}, bob@acme.example",
            "OIDC_CERTS_URL": authority.url,
        }
        worker = WorkerProcess(
            disk=tmp_path / "disk",
            replica_url="gs://bucket/store",
            environment={**gcs.environment(), **QUICK_LEASE, **settings},
            port=0,
            log=tmp_path / "worker.log",
        )
        assert worker.run("init").returncode == 0
        try:
            yield worker.start().wait_serving()
        finally:
            worker.kill()


def test_only_the_subscription_may_push(guarded: WorkerProcess, authority: Authority) -> None:
    """Over real HTTP: every wrong token is 401 or 403 and leaves nothing; the good one passes."""
    stranger = Authority()
    stranger.key_id = authority.key_id

    def token(**changed: Any) -> str:
        return authority.token(**{"audience": AUDIENCE, "email": PUSHER, **changed})

    good = token()
    head, claims, signature = good.split(".")
    tampered = (
        base64.urlsafe_b64encode(base64.urlsafe_b64decode(claims + "==").replace(b"acme", b"evil")).rstrip(b"=").decode()
    )
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    refused: dict[str, tuple[str | None, int]] = {
        "no token": (None, 401),
        "not a token": ("s3cret", 401),
        "expired": (token(now=1_600_000_000), 401),
        "not yet valid": (token(now=4_000_000_000), 401),
        "another audience": (token(audience="https://other.example"), 401),
        "another issuer": (token(iss="https://evil.example"), 401),
        "another key": (stranger.token(audience=AUDIENCE, email=PUSHER), 401),
        "tampered": (f"{head}.{tampered}.{signature}", 401),
        "unsigned": (f"{none}.{claims}.", 401),
        "another sender": (token(email="somebody@acme.example"), 403),
        "an operator": (token(email=OPERATOR), 403),
        "unverified address": (token(email_verified=False), 403),
    }
    answers = {case: push(guarded, "refused", b'{"user_id": 1}', given) for case, (given, _) in refused.items()}
    assert answers == {case: status for case, (_, status) in refused.items()}
    assert push(guarded, "m1", b'{"user_id": 2}', good) == 204
    assert push(guarded, "m2", b'{"user_id": 3}', token(iss="accounts.google.com")) == 204
    statuses = [httpx.get(f"{guarded.url}/users/{user}", trust_env=False, timeout=60).status_code for user in (1, 2, 3)]
    assert statuses == [404, 200, 200]
    assert "s3cret" not in guarded.tail(1_000_000)
    assert authority.fetches <= 2


def test_operators_resolve_rejections_with_their_token(
    guarded: WorkerProcess, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an operator's token the commands say how to get one; with it they work."""
    pusher = authority.token(audience=AUDIENCE, email=PUSHER)
    assert push(guarded, "m1", b"not JSON", pusher) == 204
    for token in ("", pusher):
        guarded._environment["IDENTITY_TOKEN"] = token
        refused = guarded.run("rejections", "list")
        assert refused.returncode == 1
        assert "gcloud auth print-identity-token" in refused.stderr
    guarded._environment["IDENTITY_TOKEN"] = authority.token(audience=AUDIENCE, email=OPERATOR)
    assert [row["message_id"] for row in rejections(guarded, "list")[0]] == ["m1"]
    assert rejections(guarded, "discard", "m1", "--yes") == [{"message_id": "m1", "outcome": "discarded"}]
    assert f"discarded by {OPERATOR}" in guarded.tail(100_000)
