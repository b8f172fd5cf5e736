"""What answers what: each row of the table in docs/message-format.md, over real HTTP, against real worker processes.

Each row's answer is seen on the wire and its effect in a restore of the bucket. The rows of tokens (401, 403) and of bugs
(500) are held elsewhere: tests/integration/test_fates.py, tests/unit/ingest/http/test_app.py.
"""

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.proof import live_generation, restore
from local.worker_process import WorkerProcess, wait_until
from publisher import message
from tests.processes import BUCKET, GENERATIONS, QUICK, RECORD, URL, Objects, body, push, pushing
from worker.config.limits import BODY_MAX_BYTES

pytestmark = pytest.mark.slow

TIME: Final = "2024-01-02T03:04:05.678Z"
MILLISECONDS: Final = 1_704_164_645_678
SUBSCRIPTION: Final = "projects/p/subscriptions/s"
SHORT_HOLD: Final = {"ACK_DEADLINE_SECONDS": "10"}
"""As short as Pub/Sub lets it be; requests are held for 8 s."""

Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path, fake_gcs: FakeGcs) -> Iterator[Start]:
    """Starts a worker that serves a new store, with these settings."""
    started: list[WorkerProcess] = []

    def serving(**settings: str) -> WorkerProcess:
        objects = Objects(fake_gcs)
        objects.initialize()
        objects.close()
        worker = WorkerProcess(
            disk=tmp_path / "worker",
            replica_url=URL,
            environment={**fake_gcs.environment(), **QUICK, **settings},
            port=0,
            log=tmp_path / "worker.log",
        )
        started.append(worker)
        return worker.start().wait_serving()

    yield serving
    for worker in started:
        worker.kill()
        print(worker.tail(4000))


def post(worker: WorkerProcess, content: Any, **headers: str) -> httpx.Response:
    """Any body; names of headers take underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(worker.url, content=content, headers=named, timeout=60, trust_env=False)


def wrapped(data: bytes, message_id: str, attributes: dict[str, str] | None = None) -> bytes:
    """A push body."""
    return message.envelope(data, attributes or {}, message_id, TIME, SUBSCRIPTION)


def acknowledged(answer: httpx.Response) -> bool:
    """Whether it is 204, with nothing in it."""
    return (answer.status_code, answer.content) == (204, b"")


def asks_again(answer: httpx.Response) -> bool:
    """Whether it is 503 and says when to come again, and why."""
    return (answer.status_code, answer.headers.get("retry-after")) == (503, "1") and bool(answer.json()["error"])


def table(gcs: FakeGcs, scratch: Path, name: str) -> dict[Any, dict[str, Any]]:
    """A table's rows by their key, from a plain restore of the live generation."""
    file = scratch / f"restored-{time.monotonic_ns()}.db"
    restore(gcs.url, f"gs://{BUCKET}/{live_generation(gcs.url, URL)}", file)
    with closing(sqlite3.connect(file)) as database:
        database.row_factory = sqlite3.Row
        return {row[0]: dict(row) for row in database.execute(f"SELECT * FROM {name}")}


def outcomes(gcs: FakeGcs, scratch: Path) -> dict[str, str]:
    """What each message did, as its receipt in the bucket says."""
    return {name: row["outcome"] for name, row in table(gcs, scratch, "receipts").items()}


def rejection(worker: WorkerProcess, message_id: str) -> dict[str, Any]:
    """One rejection, as an operator sees it."""
    found = httpx.get(f"{worker.url}/rejections/{message_id}", timeout=30, trust_env=False).raise_for_status()
    row: dict[str, Any] = found.json()
    return row


def test_what_becomes_of_a_message_is_acknowledged(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """Created, duplicate, exists, conflict, rejected: 204, and at once in the bucket; the last two are kept whole."""
    worker = start()
    conflict, conflicting = b'{"user_id":1,"email_address":"b"}', {"source": "another"}
    for content, message_id, outcome in (
        (body(1, "m1", email="a"), "m1", "created"),
        (body(1, "m1", email="a"), "m1", "created"),  # a duplicate leaves the receipt of the first
        (body(1, "m2", email="a"), "m2", "exists"),
        (wrapped(conflict, "m3", conflicting), "m3", "conflict"),
        (wrapped(b"no JSON", "m4"), "m4", "rejected"),
        (wrapped(b'{"user_id":2}', "m5", {"event_type": "user.renamed"}), "m5", "rejected"),
        (wrapped(b"", "m6", {"only": "attributes"}), "m6", "rejected"),
    ):
        assert acknowledged(post(worker, content)), message_id
        assert outcomes(fake_gcs, tmp_path)[message_id] == outcome
    kept = {name: row["reason"] for name, row in table(fake_gcs, tmp_path, "rejections").items()}
    assert kept == {"m3": "conflict", "m4": "not_json", "m5": "unknown_event", "m6": "not_json"}
    row = rejection(worker, "m3")
    assert (row["attributes"], row["publish_time"], row["resolved_at"]) == (conflicting, TIME, None)
    assert row["stored"]["email_address"] == "a"
    assert bytes(table(fake_gcs, tmp_path, "rejections")["m3"]["data"]) == conflict
    assert rejection(worker, "m6")["attributes"] == {"only": "attributes"}
    assert list(table(fake_gcs, tmp_path, "users")) == [1]


def test_what_a_subscription_may_add_is_taken(start: Start) -> None:
    """A delivery attempt and an ordering key come with some subscriptions; the attempt is kept with a rejection."""
    worker = start()
    for number, data in enumerate((b'{"user_id":1}', b"no JSON")):
        push_ = json.loads(wrapped(data, f"m{number}"))
        push_["deliveryAttempt"] = 3
        push_["message"]["orderingKey"] = "user-1"
        assert acknowledged(post(worker, json.dumps(push_).encode()))
    assert rejection(worker, "m1")["delivery_attempt"] == 3


def test_what_is_no_push_is_not_stored(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """400 and 413, by the length it tells and by the length it has; none of it reaches the database."""
    worker = start()
    for content in (b"", b"hello", b'{"user_id":5}', b"{}", b'{"message":{"data":"e30="}}', wrapped(b"{}", "")):
        answer = post(worker, content)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("the body is not a Pub/Sub push: ")
    full = wrapped(b'{"user_id":5}', "m1").ljust(BODY_MAX_BYTES)
    too_large = full + b" "
    assert post(worker, too_large).status_code == 413
    assert post(worker, (too_large[at : at + 100_000] for at in range(0, len(too_large), 100_000))).status_code == 413
    assert told(worker, 10**12).startswith(b"HTTP/1.1 413 ")
    assert outcomes(fake_gcs, tmp_path) == {}
    assert acknowledged(post(worker, full))
    assert acknowledged(post(worker, iter([full[:100], full[100:]])))
    assert outcomes(fake_gcs, tmp_path) == {"m1": "created"}


def told(worker: WorkerProcess, length: int) -> bytes:
    """What is answered to the headers of a body of this length, before a byte of it is sent."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: worker\r\nContent-Length: %d\r\n\r\n" % length)
        return connection.recv(4096)


def test_a_full_worker_asks_to_come_again(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """INV-7, INV-9: 503 while as many messages, or bytes, are held as may be; all are stored in the end."""
    worker = start(QUEUE_MAX_MESSAGES="2", QUEUE_MAX_BYTES=str(BODY_MAX_BYTES))
    held = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
    first = pushing(worker, 1, "m1")
    fake_gcs.faults.wait_for_hits(held)
    answer = post(worker, body(2, "m2").ljust(BODY_MAX_BYTES))
    assert asks_again(answer)
    assert "QUEUE_MAX_BYTES" in answer.text
    others = {user: pushing(worker, user, f"m{user}") for user in (2, 3)}
    wait_until(lambda: any(other.done() for other in others.values()), "a refusal: there is one place left")
    (refused,) = [user for user, other in others.items() if other.done()]
    assert asks_again(others[refused].result())
    assert "QUEUE_MAX_MESSAGES" in others[refused].result().text
    assert asks_again(push(worker, refused, f"m{refused}"))
    assert not first.done()
    fake_gcs.faults.clear()
    assert acknowledged(first.result())
    assert acknowledged(others[5 - refused].result())
    assert acknowledged(push(worker, refused, f"m{refused}"))
    assert outcomes(fake_gcs, tmp_path) == {"m1": "created", "m2": "created", "m3": "created"}


def test_an_unreadable_lease_record_delays_no_acknowledgement(start: Start, fake_gcs: FakeGcs) -> None:
    """The slot that was created is the proof (INV-1): an acknowledgement reads nothing."""
    worker = start(**SHORT_HOLD)
    fake_gcs.faults.add(action="hang", name=RECORD, verb="download")
    assert acknowledged(push(worker, 1, "m1"))
    assert acknowledged(post(worker, wrapped(b"no JSON", "m2")))


def test_an_outage_past_the_hold_limit_asks_to_come_again(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """INV-1, INV-9: what is not confirmed is 503 before the queue's deadline, also what is malformed; nothing is poison."""
    worker = start(**SHORT_HOLD)
    fake_gcs.faults.add(action="hang", name=GENERATIONS, verb="insert")
    began = time.monotonic()
    good, bad = pushing(worker, 1, "m1"), post(worker, wrapped(b"no JSON", "m2"))
    assert asks_again(bad)
    assert asks_again(good.result())
    assert 7 < time.monotonic() - began < 10
    fake_gcs.faults.clear()
    assert acknowledged(push(worker, 1, "m1"))
    assert acknowledged(post(worker, wrapped(b"no JSON", "m2")))
    assert outcomes(fake_gcs, tmp_path) == {"m1": "created", "m2": "rejected"}
    assert list(table(fake_gcs, tmp_path, "rejections")) == ["m2"]


def test_a_draining_worker_asks_to_come_again(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """What comes after the signal is for the next instance; what is held is answered before the end, and not untruly."""
    worker = start()
    held = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
    first = pushing(worker, 1, "m1")
    fake_gcs.faults.wait_for_hits(held)
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.state() == "draining", "draining")
    assert asks_again(push(worker, 2, "m2"))
    assert asks_again(post(worker, b"no push"))
    fake_gcs.faults.clear()
    answer = first.result()
    assert acknowledged(answer) or asks_again(answer)  # whichever it comes to while it drains
    assert worker.wait() == 0
    found = outcomes(fake_gcs, tmp_path)
    assert "m1" in found or asks_again(answer)
    assert "m2" not in found


def metadata(message_id: str, **others: str) -> dict[str, str]:
    """The headers of a push without wrapper whose subscription writes metadata."""
    headers = {"message_id": message_id, "publish_time": TIME, "subscription_name": SUBSCRIPTION, **others}
    return {f"x_goog_pubsub_{name}": value for name, value in headers.items()}


def test_bare_data_with_metadata_is_a_push(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """It needs no setting: the same fates as in a wrapper, and the same message; bare data alone is no push here."""
    worker = start()
    assert acknowledged(post(worker, b'{"user_id":1}', **metadata("m1", ordering_key="k", delivery_attempt="2")))
    assert acknowledged(post(worker, wrapped(b'{"user_id":1}', "m1")))
    assert acknowledged(post(worker, b'{"user_id":1,"email_address":"b"}', **metadata("m2")))
    assert acknowledged(post(worker, b"no JSON", **metadata("m3", delivery_attempt="2")))
    assert acknowledged(post(worker, b'{"user_id":2}', event_type="user.created", **metadata("m4")))
    assert post(worker, b'{"user_id":3}', **metadata("")).status_code == 400
    assert post(worker, b'{"user_id":3}', **metadata("m5", publish_time="yesterday")).status_code == 400
    assert post(worker, b'{"user_id":3}').status_code == 400
    receipts = table(fake_gcs, tmp_path, "receipts")
    assert {name: row["outcome"] for name, row in receipts.items()} == {
        "m1": "created",
        "m2": "conflict",
        "m3": "rejected",
        "m4": "created",
    }
    assert {row["publish_time"] for row in receipts.values()} == {MILLISECONDS}
    assert rejection(worker, "m3")["delivery_attempt"] == 2


def test_bare_data_alone_is_a_push_where_the_setting_says_so(start: Start, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """INV-3: PUSH_UNWRAPPED=true; the same data again is the same message, and metadata is still read where it is."""
    worker = start(PUSH_UNWRAPPED="true")
    for _ in range(2):
        assert acknowledged(post(worker, b'{"user_id":1}'))
        assert acknowledged(post(worker, b"no JSON"))
    assert acknowledged(post(worker, b""))
    assert acknowledged(post(worker, b'{"user_id":2}', **metadata("m1")))
    receipts = table(fake_gcs, tmp_path, "receipts")
    assert receipts.pop("m1")["publish_time"] == MILLISECONDS
    assert sorted(row["outcome"] for row in receipts.values()) == ["created", "rejected", "rejected"]
    assert all(name.startswith("sha256-") for name in receipts)
    assert list(table(fake_gcs, tmp_path, "users")) == [1, 2]
    kept = table(fake_gcs, tmp_path, "rejections").values()
    assert sorted((row["data"], row["reason"]) for row in kept) == [(b"", "not_json"), (b"no JSON", "not_json")]
