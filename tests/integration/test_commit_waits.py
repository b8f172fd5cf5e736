"""INV-1 on PostgreSQL: a COMMIT waits for the standby, which is missing until the test says otherwise."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import peewee
import pytest

from local.postgres import Postgres, postgres
from local.worker_process import WorkerProcess, wait_until
from tests.entries import CATALOG, delivery, read
from tests.integration.test_postgresql import body, status
from worker.database import postgresql
from worker.database.postgresql import PostgresqlEngine, Server
from worker.events.users import UserCreated
from worker.ingest.messages import Entry
from worker.ingest.transaction import Transaction

pytestmark = pytest.mark.slow

STANDBY = "a_standby_that_is_missing"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server, which flushes to the disk; each test lets it wait for a standby, and not again at its end."""
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new database with the schema."""
    name = f"waits{abs(hash(request.node.name))}"
    url = server.create(name)
    postgresql.migrate(Server(url=url), CATALOG)
    yield url
    server.configure(synchronous_standby_names="")


class Lane:
    """An engine on a thread of its own, which handles one message at a time."""

    def __init__(self, url: str, *, seconds: float = 60.0) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._engine = PostgresqlEngine(Server(url=url, transaction_seconds=seconds))
        self._pool.submit(self._engine.open).result()

    def handle(self, message_id: str) -> Future[list[Any]]:
        """Begin to handle a message about user 1."""
        sent = delivery(message_id, UserCreated(user_id=1))
        entry = Entry(sent, read(sent.data), float("inf"), None)  # type: ignore[arg-type]  # no sender
        work = lambda database: Transaction(database, CATALOG, 1, 1).handle([entry])  # noqa: E731  # one line
        return self._pool.submit(lambda: list(self._engine.run(work)))

    def blames_row(self, error: BaseException) -> bool:
        """See `Engine.blames_row`."""
        assert isinstance(error, Exception)
        return self._engine.blames_row(error)

    def close(self) -> None:
        """End it."""
        self._pool.submit(self._engine.close).result()
        self._pool.shutdown()


@pytest.fixture
def lane(url: str) -> Iterator[Lane]:
    """An engine that waits for a minute."""
    made = Lane(url)
    yield made
    made.close()


def waiting(server: Postgres) -> list[int]:
    """The server's processes that wait for the standby."""
    rows = server.execute(
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'solowriter'"
    )
    return [pid for (pid,) in rows]


def miss_the_standby(server: Postgres) -> None:
    """From now on a COMMIT waits."""
    server.configure(synchronous_standby_names=STANDBY)
    wait_until(
        lambda: server.execute("SHOW synchronous_standby_names") == [(STANDBY,)], "the standby is waited for", seconds=10
    )


def test_a_duplicate_waits_for_the_standby_too(server: Postgres, lane: Lane) -> None:
    """A group without a row of its own writes all the same: what it repeats may not be safe yet."""
    assert lane.handle("m1").result(20) == ["created"]
    miss_the_standby(server)
    answer = lane.handle("m1")
    wait_until(lambda: bool(waiting(server)), "the duplicate waits", seconds=20)
    assert not answer.done()
    server.configure(synchronous_standby_names="")
    assert answer.result(20) == ["duplicate"]


def test_a_wait_that_is_cancelled_is_not_taken_for_safe(server: Postgres, lane: Lane) -> None:
    """The server says success, with a warning: it is not known, no row is blamed, and a redelivery is a duplicate."""
    miss_the_standby(server)
    answer = lane.handle("m1")
    wait_until(lambda: bool(waiting(server)), "the COMMIT waits", seconds=20)
    server.execute("SELECT pg_cancel_backend(%s)", waiting(server))
    error = answer.exception(20)
    assert isinstance(error, peewee.OperationalError)
    assert "the COMMIT came with a warning: 01000" in str(error)
    assert not lane.blames_row(error)
    server.configure(synchronous_standby_names="")
    assert lane.handle("m1").result(20) == ["duplicate"]


def test_a_wait_whose_server_process_is_ended_is_not_taken_for_safe(server: Postgres, lane: Lane) -> None:
    """The connection is lost; the next group has a new one."""
    miss_the_standby(server)
    answer = lane.handle("m1")
    wait_until(lambda: bool(waiting(server)), "the COMMIT waits", seconds=20)
    server.execute("SELECT pg_terminate_backend(%s)", waiting(server))
    error = answer.exception(20)
    assert isinstance(error, peewee.PeeweeException)
    assert not lane.blames_row(error)
    server.configure(synchronous_standby_names="")
    assert lane.handle("m1").result(20) == ["duplicate"]


def test_a_wait_ends_after_its_time_although_no_timeout_of_the_server_does(server: Postgres, url: str) -> None:
    """INV-7: the connection is cut from another thread. The row may appear later: then its message is a duplicate."""
    lane = Lane(url, seconds=1.0)
    try:
        miss_the_standby(server)
        error = lane.handle("m1").exception(20)
        assert isinstance(error, peewee.PeeweeException)
        assert not lane.blames_row(error)
        assert server.execute("SELECT count(*) FROM receipts", database=url.rpartition("/")[2]) == [(0,)]
        server.configure(synchronous_standby_names="")
        assert lane.handle("m1").result(20) == ["duplicate"]
    finally:
        lane.close()


def test_a_worker_answers_503_while_the_standby_is_missing(server: Postgres, tmp_path: Path) -> None:
    """Nothing is acknowledged, new or repeated; with the standby back each message is acknowledged again."""
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url="",
        environment={"DATABASE_URL": server.create("served"), "ACK_DEADLINE_SECONDS": "12"},
        port=0,
        log=tmp_path / "worker.log",
    )
    worker.start().wait_serving()
    try:
        assert status(worker, body({"user_id": 1}, "m1")) == 204
        miss_the_standby(server)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(status, worker, body({"user_id": number}, f"m{number}")) for number in (1, 2)]
            assert [answer.result(60) for answer in answers] == [503, 503]
        server.configure(synchronous_standby_names="")
        wait_until(lambda: status(worker, body({"user_id": 2}, "m2")) == 204, "an acknowledgement", seconds=60)
        assert server.execute("SELECT message_id, outcome FROM receipts ORDER BY 1", database="served") == [
            ("m1", "created"),
            ("m2", "created"),
        ]
    finally:
        server.configure(synchronous_standby_names="")
        worker.kill()
