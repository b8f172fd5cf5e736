"""Two operators at two instances of one PostgreSQL decide about the same rejection at the same moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from local.postgres import postgres
from local.worker_process import wait_until
from tests.entries import CATALOG
from worker.database import postgresql
from worker.database.models import Connection
from worker.database.postgresql import PostgresqlEngine, Server
from worker.errors import Resolved
from worker.ingest.transaction import Transaction

pytestmark = pytest.mark.slow


def test_what_is_discarded_while_it_is_retried_has_its_effect_and_is_not_discarded() -> None:
    """One after the other, in some order: a message that an operator was told is discarded has no row."""
    with postgres(durable=False) as server, ThreadPoolExecutor(2) as threads:
        place = Server(url=server.create("operators"))
        postgresql.migrate(place, CATALOG)
        values = "'m1', 'not_json', '', %s, '{}', 1, 1"
        names = "message_id, reason, detail, data, attributes, publish_time, received_at"
        insert = f"INSERT INTO rejections ({names}) VALUES ({values})"
        server.execute(insert, (b'{"user_id":5}',), database="operators")
        retried, may_commit = threading.Event(), threading.Event()

        def retry(database: Connection) -> str:
            outcome = Transaction(database, CATALOG, 1, 1).retry("m1")
            retried.set()
            may_commit.wait(4)
            return outcome

        def discard(database: Connection) -> None:
            Transaction(database, CATALOG, 2, 2).discard("m1")

        one, another = PostgresqlEngine(place), PostgresqlEngine(place)
        one.open()
        another.open()
        try:
            first = threads.submit(one.run, retry)
            assert retried.wait(20)
            second = threads.submit(another.run, discard)
            waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'solowriter' AND wait_event_type = 'Lock'"
            wait_until(lambda: bool(server.execute(waiting, database="operators")), "the second to wait", seconds=4)
            may_commit.set()
            assert first.result(20) == "created"
            with pytest.raises(Resolved, match="created"):
                second.result(20)
        finally:
            may_commit.set()
            one.close()
            another.close()
        assert server.execute("SELECT resolution FROM rejections", database="operators") == [("created",)]
        assert server.execute("SELECT user_id FROM users", database="operators") == [(5,)]
