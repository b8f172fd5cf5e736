"""`worker move` and `worker export` on a real bucket and a real PostgreSQL: the same rows there, and the same rows back."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.postgres import Postgres, postgres
from local.worker_process import ROOT, WorkerProcess
from publisher import message
from worker.ingest.bodies import ROW_BYTES_MAX

pytestmark = pytest.mark.slow

EVENTS = "worker.events.users,examples.orders"
LARGE = b'{"user_id":"no","settings":"' + b"x" * ROW_BYTES_MAX + b'"}'


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    with postgres() as running:
        yield running


def deliver(worker: WorkerProcess, message_id: str, data: bytes, event: str = "user.created") -> None:
    """Deliver a message; it is acknowledged."""
    attributes = {"event_type": event}
    body = message.envelope(data, attributes, message_id, "2024-01-02T03:04:05Z", "projects/p/subscriptions/s")
    assert httpx.post(worker.url, content=body, timeout=60, trust_env=False).status_code == 204


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `worker` with these settings alone."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    command = [sys.executable, "-m", "worker", *arguments]
    return subprocess.run(
        command,
        env={**kept, "EVENTS": EVENTS, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def tables(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[int, str]]:
    """Each table's rows and digest, as a command printed them."""
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {each["table"]: (each["rows"], each["digest"]) for each in found["tables"]}


def test_a_store_is_moved_with_its_proof_and_exported_again(fake_gcs: FakeGcs, server: Postgres, tmp_path: Path) -> None:
    """Users, orders, receipts, a large rejected message, versions and erasures are there; nothing is moved twice."""
    bucket = {**fake_gcs.environment(), "REPLICA_URL": "gs://users/store"}
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url=bucket["REPLICA_URL"],
        environment={**fake_gcs.environment(), "EVENTS": EVENTS, "LITESTREAM_METRICS_ADDRESS": "off"},
        port=0,
        log=tmp_path / "worker.log",
    )
    assert worker.run("init").returncode == 0
    worker.start().wait_serving()
    try:
        for number in range(1, 8):
            deliver(worker, f"u{number}", json.dumps({"user_id": number, "email_address": f"\u00e4{number}@b.c"}).encode())
        deliver(worker, "o1", b'{"order_id":"b/1","customer_id":2,"total_cents":5}', "order.placed")
        deliver(worker, "o2", b'{"order_id":"B","customer_id":3,"total_cents":6,"revision":4}', "order.changed")
        deliver(worker, "x1", b'{"user_id":1,"email_address":"other"}')
        deliver(worker, "large", LARGE)
        assert httpx.post(f"{worker.url}/users/7/erase", trust_env=False, timeout=60).json()["rows"] == 1
    finally:
        assert worker.stop() == 0
    url = server.create("moved")
    moved = tables(run(bucket, "move", "--to", url, "--json"))
    assert {name: rows for name, (rows, _) in moved.items()} == {
        "users": 6,
        "orders": 2,
        "receipts": 11,
        "rejections": 2,
        "erased": 1,
        "versions": 1,
    }
    assert server.execute("SELECT length(data), body FROM rejections WHERE message_id = 'large'", database="moved") == [
        (len(LARGE), None)
    ]
    again = run(bucket, "move", "--to", url)
    assert again.returncode == 1
    assert "holds rows already; move into an empty database" in again.stderr
    back = tmp_path / "back.db"
    assert tables(run({"DATABASE_URL": url}, "export", "-o", str(back), "--json")) == moved
    with closing(sqlite3.connect(back)) as database:
        assert database.execute("SELECT email_address FROM users WHERE user_id = 2").fetchone() == ("\u00e42@b.c",)


def test_the_doctor_looks_at_the_server(server: Postgres) -> None:
    """A server without a standby is a warning, and one that is not there is refused, with the next step; no traceback."""
    found = run({"DATABASE_URL": server.create("examined")}, "doctor", "--json")
    checks = {each["check"]: each["verdict"] for each in json.loads(found.stdout)["findings"]}
    assert found.returncode == 0, found.stdout
    assert (checks["postgresql"], checks["postgresql: durability"], checks["postgresql: standby"]) == ("ok", "ok", "warning")
    gone = run({"DATABASE_URL": "postgresql://a@127.0.0.1:1/c"}, "doctor")
    assert gone.returncode == 1
    assert "cannot be used" in gone.stdout
    assert "Traceback" not in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (("init",), "`worker serve` makes the tables"),
        (("lease", "show"), "there is no lease"),
        (("replica", "ls", "1"), "your provider's backups"),
        (("restore", "-o", "x.db"), "your provider restores to a time"),
        (("recover", "--at", "1h"), "your provider restores to a time"),
        (("drill",), "your provider restores to a time"),
        (("checkpoint", "list"), "gcloud pubsub snapshots create"),
        (("move", "--to", "postgresql://a@b/c"), "`worker export` writes it to a file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_about_the_bucket_says_what_to_do_instead(arguments: tuple[str, ...], instead: str) -> None:
    """On PostgreSQL it is one line, exit code 2, and nothing is asked of any server."""
    done = run({"DATABASE_URL": "postgresql://a@127.0.0.1:1/c"}, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert instead in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
