"""PostgreSQL keeps no NUL in a text: a message that names its person with one is kept as a rejection all the same."""

from __future__ import annotations

import asyncio

import pytest

from local.postgres import postgres
from tests.unit.events.orders import MIGRATIONS, PLACED
from worker.database import postgresql
from worker.database.postgresql import PostgresqlEngine, Server
from worker.events.catalog import Catalog
from worker.ingest.messages import Delivery, Entry
from worker.ingest.transaction import Transaction

pytestmark = pytest.mark.slow

CATALOG = Catalog({"orders": [PLACED]}, {"orders": MIGRATIONS})


def test_a_message_whose_subject_holds_a_nul_is_kept() -> None:
    """INV-6: refused altogether it would come again for ever, and each time its group would be written one by one."""

    async def run() -> None:
        data, attributes = b'{"order_id":"1","customer":"a\\u0000b","total":1}', {"event_type": "order.placed"}
        sent = Delivery(message_id="m1", publish_time=1, data=data, attributes=attributes)
        read = CATALOG.read(data, attributes, 1)
        entry = Entry(sent, read, 0.0, asyncio.get_running_loop().create_future())
        with postgres(durable=False) as server:
            place = Server(url=server.create("nul"))
            postgresql.migrate(place, CATALOG)
            engine = PostgresqlEngine(place)
            engine.open()
            try:
                outcomes = engine.run(lambda database: Transaction(database, CATALOG, 1, 1).handle([entry]))
            finally:
                engine.close()
            assert outcomes == ["rejected"]
            assert server.execute("SELECT reason, about FROM rejections", database="nul") == [("bad_text", None)]

    asyncio.run(run())
