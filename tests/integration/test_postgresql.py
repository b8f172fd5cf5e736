"""Workers on a real PostgreSQL: each outcome by HTTP, many instances, killed and started again; nothing is lost."""

import concurrent.futures
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.postgres import Postgres, postgres
from local.worker_process import WorkerProcess, wait_until
from publisher import message

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that flushes to the disk."""
    with postgres() as running:
        yield running


@contextlib.contextmanager
def instances(server: Postgres, folder: Path, count: int, name: str) -> Iterator[list[WorkerProcess]]:
    """So many workers that serve one new database."""
    url = server.create(name)
    workers = [
        WorkerProcess(
            disk=folder / f"disk{number}",
            replica_url="",
            environment={"DATABASE_URL": url, "ACK_DEADLINE_SECONDS": "15"},
            port=0,
            log=folder / f"worker{number}.log",
        )
        for number in range(count)
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_serving()
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def body(data: dict[str, object], message_id: str, **attributes: str) -> bytes:
    """A push of one message."""
    data_ = json.dumps(data).encode()
    return message.envelope(data_, attributes, message_id, "2024-01-02T03:04:05Z", "projects/p/subscriptions/s")


def status(worker: WorkerProcess, content: bytes) -> int:
    """Deliver a push; its answer."""
    return httpx.post(worker.url, content=content, timeout=60, trust_env=False).status_code


def test_each_outcome_whoever_answers(server: Postgres, tmp_path: Path) -> None:
    """INV-3: of two instances it does not matter which one gets a message; operators' changes work on either."""
    with instances(server, tmp_path, 2, "outcomes") as (one, two):
        assert status(one, body({"user_id": 1, "email_address": "a@b.c"}, "m1")) == 204
        assert status(two, body({"user_id": 1, "email_address": "a@b.c"}, "m1")) == 204  # duplicate
        assert status(two, body({"user_id": 1, "email_address": "a@b.c"}, "m2")) == 204  # exists
        assert status(two, body({"user_id": 1, "email_address": "x@y.z"}, "m3")) == 204  # conflict
        assert status(one, body({"user_id": "no"}, "m4")) == 204  # rejected
        assert status(two, body({"user_id": 1, "email_address": "n@e.w"}, "m5", event_type="user.updated")) == 204
        assert httpx.get(f"{one.url}/users/1", trust_env=False, timeout=60).json()["email_address"] == "n@e.w"
        listed = httpx.get(f"{one.url}/rejections", trust_env=False, timeout=60).json()["rejections"]
        assert [(each["message_id"], each["reason"]) for each in listed] == [("m3", "conflict"), ("m4", "wrong_type")]
        assert httpx.post(f"{two.url}/rejections/m4/discard", trust_env=False, timeout=60).status_code == 200
        assert httpx.post(f"{two.url}/users/1/erase", trust_env=False, timeout=60).json()["existed"] is True
        assert status(one, body({"user_id": 1}, "m6")) == 204  # erased
        assert httpx.get(f"{two.url}/users/1", trust_env=False, timeout=60).status_code == 404
        rows = server.execute("SELECT message_id, outcome, subject FROM receipts ORDER BY 1", database="outcomes")
    assert [(message_id, outcome) for message_id, outcome, _ in rows] == [
        ("m1", "created"),
        ("m2", "exists"),
        ("m3", "conflict"),
        ("m4", "rejected"),
        ("m5", "updated"),
        ("m6", "erased"),
    ]
    assert {subject for _, _, subject in rows} == {None}
    assert server.execute("SELECT count(*) FROM rejections", database="outcomes") == [(1,)]


def test_killed_instances_and_a_killed_server_lose_nothing(server: Postgres, tmp_path: Path) -> None:
    """INV-1, INV-3: every acknowledged message has its effect, once, whatever was killed meanwhile."""
    acknowledged: dict[str, int] = {}
    answers: Counter[int] = Counter()
    stop = threading.Event()

    def send(lane: int, workers: list[WorkerProcess]) -> None:
        number = 0
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not stop.is_set():
                number += 1
                user, message_id = number * 100 + lane, f"{lane}-{number}"
                for worker in (workers[lane % 2], workers[(lane + number) % 2]):  # often the same message to both
                    with contextlib.suppress(httpx.TransportError):
                        answer = client.post(worker.url, content=body({"user_id": user}, message_id)).status_code
                        answers[answer] += 1
                        if answer == 204:
                            acknowledged[message_id] = user

    def more(count: int) -> None:
        enough = len(acknowledged) + count
        wait_until(lambda: len(acknowledged) >= enough, f"{enough} acknowledgements", seconds=60)

    with instances(server, tmp_path, 2, "kills") as workers, concurrent.futures.ThreadPoolExecutor(8) as pool:
        lanes = [pool.submit(send, lane, workers) for lane in range(8)]
        try:
            more(300)
            for worker in workers:
                worker.kill()
                more(100)
                worker.start().wait_serving()
            server.kill()
            server.start()
            more(300)
            assert workers[0].stop() == 0
            more(50)
        finally:
            stop.set()
        for lane in lanes:
            lane.result()
        rows = dict(server.execute("SELECT message_id, outcome FROM receipts", database="kills"))
        users = {user for (user,) in server.execute("SELECT user_id FROM users", database="kills")}
        assert set(acknowledged) <= rows.keys()
        assert set(acknowledged.values()) <= users
        assert set(rows.values()) == {"created"}
        assert len(users) == len(rows)
        assert answers[503] < answers[204]
        metrics = httpx.get(f"{workers[1].url}/metrics", trust_env=False, timeout=60).text
        assert "solowriter_database_redone_total" in metrics
        assert "solowriter_lease_held" not in metrics
