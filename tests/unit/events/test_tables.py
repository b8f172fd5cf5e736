"""Rows over HTTP, through the real application: by key and in pages, of tables that their events let be read."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engines import Made
from tests.unit.events.orders import EVENTS, Order
from tests.unit.ingest.http.test_app import Erasing, Table, _intake
from worker.events import users
from worker.events.catalog import Catalog
from worker.events.users import User
from worker.ingest.http import app
from worker.ingest.http.access import Access

KEYS = ["", "a", "a b", "a%2Fb", "a/b", "a?b#c", "é", "\U0001f600", "."]


class Pages:
    """The application over a database."""

    def __init__(self, catalog: Catalog, database: Any) -> None:
        tables: Any = Table(database=database)
        eraser: Any = Erasing()
        service = app.Service(_intake(), catalog, tables, Access(), eraser)
        self._transport = httpx.ASGITransport(app.build(service), raise_app_exceptions=False)

    def get(self, path: str, **parameters: Any) -> tuple[int, Any]:
        """One request: status and JSON."""

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://worker") as client:
                return await client.get(path, params=parameters or None)

        answer = asyncio.run(ask())
        return answer.status_code, json.loads(answer.content)


@pytest.fixture
def database(engine: Made) -> Iterator[Any]:
    """A database of each engine with users, of whom every third is deleted, and orders of unusual keys."""
    opened = engine(Catalog.load("worker.events.users,tests.unit.events.orders")).outside()
    with opened.connection_context():
        people = [{"user_id": number, "deleted": [0, None, 1][number % 3]} for number in range(1, 13)]
        User.insert_many(people).execute(opened)
        Order.insert_many([{"order_id": key, "total": at} for at, key in enumerate(KEYS) if key]).execute(opened)
        yield opened


@pytest.fixture
def pages(database: Any) -> Pages:
    """The application that knows users and orders."""
    return Pages(Catalog.load("worker.events.users,tests.unit.events.orders"), database)


def test_a_row_is_read_by_its_key(pages: Pages) -> None:
    """Under both names of the users."""
    row = {"user_id": 3, "email_address": None, "created_at": None, "deleted": 0, "settings": None}
    assert pages.get("/tables/users/3") == pages.get("/users/3") == (200, row)
    assert pages.get("/tables/users/99") == (404, {"error": "no such user"})
    assert pages.get("/tables/orders/none") == (404, {"error": "no such row of orders"})


@pytest.mark.parametrize(
    ("path", "at"),
    [
        ("a", 1),
        ("a%20b", 2),
        ("a%252Fb", 3),
        ("a%2Fb", 4),
        ("a%3Fb%23c", 5),
        ("%C3%A9", 6),
        ("%F0%9F%98%80", 7),
        ("%2E", 8),
    ],
)
def test_any_text_is_a_key_in_a_path(pages: Pages, path: str, at: int) -> None:
    """Escaped once, as in any URL."""
    status, row = pages.get(f"/tables/orders/{path}")
    assert (status, row["order_id"], row["total"]) == (200, KEYS[at], at)


@pytest.mark.parametrize("key", ["%00", "a%00", "x" * 1025])
def test_a_text_that_no_key_can_be_is_400(pages: Pages, key: str) -> None:
    """With the column and its limit."""
    assert pages.get(f"/tables/orders/{key}") == (400, {"error": "order_id must be a text of 1 to 1024 bytes"})


@pytest.mark.parametrize(("table", "key"), [("users", "user_id"), ("orders", "order_id")])
def test_pages_join_without_gap_or_overlap(pages: Pages, table: str, key: str) -> None:
    """In the keys' order, to the last, which has no cursor; rows that are gone are in none."""
    found: list[Any] = []
    after: dict[str, Any] = {}
    while True:
        status, page = pages.get(f"/tables/{table}", limit=3, **after)
        assert (status, len(page["rows"]) <= 3) == (200, True)
        found += [row[key] for row in page["rows"]]
        if page["after"] is None:
            break
        after = {"after": page["after"]}
    assert found == ([1, 3, 4, 6, 7, 9, 10, 12] if table == "users" else sorted(filter(None, KEYS)))
    assert pages.get(f"/tables/{table}/")[1]["after"] is None


def test_a_row_that_is_gone_is_404(pages: Pages) -> None:
    """As one that was never there."""
    assert pages.get("/tables/users/2") == pages.get("/tables/users/99")


@pytest.mark.parametrize("parameters", [{"limit": 0}, {"limit": 501}, {"limit": "٣"}, {"after": "x"}, {"after": 2**63}])
def test_a_wrong_parameter_is_400(pages: Pages, parameters: dict[str, Any]) -> None:
    """And is named."""
    status, answer = pages.get("/tables/users", **parameters)
    assert status == 400
    assert answer["error"].startswith(("limit must be a whole number from 1 to 500", "user_id must be a whole number"))


def test_only_what_an_event_lets_be_read_is_read(database: Any, pages: Pages) -> None:
    """Neither the worker's own tables, nor one whose events do not say so, nor one that is no event's."""
    for table in ("receipts", "rejections", "sqlite_schema", "nothing", ""):
        assert pages.get(f"/tables/{table}") == (404, {"error": "no such table can be read; there are users, orders"})
    closed = Pages(Catalog({"users": users.EVENTS[1:], "orders": EVENTS[1:]}), database)
    for path in ("/tables/orders/a", "/users/3", "/tables/users"):
        assert closed.get(path) == (404, {"error": "no such table can be read; there are none"})


def test_a_page_goes_on_behind_the_smallest_key(database: Any, pages: Pages) -> None:
    """-2^63 is an integer that a column holds, and so is 2^63-1."""
    ends = [-(2**63), 2**63 - 1]
    User.insert_many([{"user_id": key, "deleted": 0} for key in ends]).execute(database)
    _, first = pages.get("/tables/users", limit=1)
    assert first["after"] == ends[0]
    status, second = pages.get("/tables/users", limit=1, after=first["after"])
    assert (status, second["rows"][0]["user_id"]) == (200, 1)
    assert pages.get(f"/users/{ends[0]}")[0] == pages.get(f"/users/{ends[1]}")[0] == 200
    assert pages.get(f"/users/{ends[0] - 1}")[0] == pages.get(f"/users/{ends[1] + 1}")[0] == 400
