"""`GET /receipts` and `GET /outcomes`, through the real application: what a replay is planned with, and followed by."""

import asyncio
from typing import Any

import httpx
import pytest

from publisher import message
from tests.engines import Made
from tests.entries import CATALOG, PUBLISHED, entry, malformed
from tests.unit.ingest.http.test_app import Site, Table
from tests.unit.ingest.http.test_operator_api import ANN, PUSHER, bearer, verified
from worker.errors import Refused
from worker.ingest.http import app
from worker.ingest.http.delivery_counts import Tally
from worker.ingest.transaction import Transaction


def test_receipts_are_counted_by_outcome_from_a_publish_time(engine: Made) -> None:
    """That time is part of the span; an empty span has no ends."""
    connection = engine(CATALOG).outside()

    async def fill() -> None:
        given = [entry(user, f"m{user}", publish_time=PUBLISHED + user - 1) for user in range(1, 6)]
        Transaction(connection, CATALOG, 1, PUBLISHED).handle([*given, malformed("bad")])

    with connection.connection_context():
        asyncio.run(fill())
        site = Site(users=Table(database=connection))
        found = site.ask("GET", "/receipts", params={"since": "2023-11-14T22:13:20.001Z"}).json()
        ends = {"oldest_publish_time": PUBLISHED + 1, "newest_publish_time": PUBLISHED + 4}
        assert found == {"total": 4, "outcomes": {"created": 4}, **ends}
        everything = site.ask("GET", "/receipts", params={"since": "2023-11-14T22:13:20+00:00"}).json()
        assert everything["outcomes"] == {"created": 5, "rejected": 1}
        none = site.ask("GET", "/receipts", params={"since": "2999-01-01T00:00:00Z"}).json()
        assert none == {"total": 0, "outcomes": {}, "oldest_publish_time": None, "newest_publish_time": None}


def test_outcomes_count_what_is_acknowledged() -> None:
    """From the instance's start; of messages published before a time, from when it was first asked for."""
    site = Site()
    tally = Tally(clock=lambda: 1_700_000_000.0)
    watched = {"before": "2024-01-02T00:00:00Z"}

    async def ask(client: httpx.AsyncClient, day: str, outcome: str | Exception) -> int:
        site.writer.answer = outcome
        body = message.envelope(b'{"user_id":5}', {}, "m1", f"2024-01-{day}T00:00:00Z", "projects/p/subscriptions/s")
        return (await client.post("/", content=body)).status_code

    async def run() -> tuple[list[int], Any, Any]:
        site.intake.serve(site.writer)  # type: ignore[arg-type]  # a stand-in
        service = app.Service(site.intake, CATALOG, site.users, site.access, site.eraser, tally=tally)
        transport = httpx.ASGITransport(app.build(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            statuses = [await ask(client, "01", "created")]
            first = await client.get("/outcomes", params=watched)
            for day, outcome in (("01", "duplicate"), ("02", "created"), ("01", Refused("later"))):
                statuses.append(await ask(client, day, outcome))
            return statuses, first.json(), (await client.get("/outcomes", params=watched)).json()

    statuses, first, second = asyncio.run(run())
    assert statuses == [204, 204, 204, 503]
    since = "2023-11-14T22:13:20Z"
    assert first == {
        "started_at": since,
        "now": since,
        "state": "serving",
        "outcomes": {"created": 1},
        "before": {"since": since, "outcomes": {}, "last_publish_time": None},
    }
    assert second["outcomes"] == {"created": 2, "duplicate": 1}
    assert second["before"] == {"since": since, "outcomes": {"duplicate": 1}, "last_publish_time": 1_704_067_200_000}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/receipts", 400),
        ("GET", "/receipts?since=yesterday", 400),
        ("GET", "/outcomes?before=2024-01-01T00:00:00", 400),
        ("GET", "/outcomes", 200),
        ("POST", "/receipts", 405),
        ("POST", "/outcomes", 405),
        ("GET", "/receipts/1", 404),
        ("GET", "/outcomesx", 404),
    ],
)
def test_what_is_wrong_is_named(method: str, path: str, status: int) -> None:
    """The parameter, or the method."""
    assert Site().ask(method, path).status_code == status


@pytest.mark.parametrize("path", ["/receipts", "/outcomes"])
def test_they_are_for_operators(path: str) -> None:
    """401 without a token, 403 for the subscription's."""
    site = Site()
    verified(site, ANN)
    assert site.ask("GET", path).status_code == 401
    assert site.ask("GET", path, headers=bearer(PUSHER)).status_code == 403
