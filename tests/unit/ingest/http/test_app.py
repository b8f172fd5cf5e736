"""HTTP: which case answers what, through the real application and a writer that answers as told."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import peewee
import pytest
import uvicorn
from uvicorn.server import ServerState

from publisher import message
from publisher.connections import Bounds, Connections
from tests.entries import CATALOG
from tests.fakes import bodies
from worker.errors import Refused, RequestError, Unwritable
from worker.events.catalog import Content, Problem
from worker.events.users import MAX_USER_ID, User, UserCreated
from worker.ingest.http import app
from worker.ingest.http.access import Access
from worker.ingest.intake import Intake
from worker.ingest.messages import Entry, Observer
from worker.ingest.transaction import Removed
from worker.ingest.writer import Writer

LIMIT = 2048
TIME = "2024-01-02T03:04:05.678Z"
ROW = {"user_id": 5, "email_address": "a@example.com", "created_at": 1, "deleted": 0, "settings": None}
SECRET = "s3cret"
SECONDS = "whole seconds since 1970 (UTC), between 0 and 253402300799, or null"
EVENTS = "user.created, user.updated, user.deleted"


@dataclass
class Answering:
    """A writer that answers each message at once, with an outcome or an error."""

    answer: str | Exception = "created"
    entries: list[Entry] = field(default_factory=list)

    def submit(self, entry: Entry) -> None:
        """See `worker.ingest.writer.Writer.submit`."""
        self.entries.append(entry)
        if isinstance(self.answer, Exception):
            entry.done.set_exception(self.answer)
        else:
            entry.done.set_result(cast("Any", self.answer))


def stored(*rows: dict[str, Any]) -> peewee.SqliteDatabase:
    """A database in memory that has these users."""
    database = peewee.SqliteDatabase(":memory:")
    with database.bind_ctx([User]):
        database.create_tables([User])
        for row in rows:
            User.insert(row).execute()
    return database


@dataclass
class Table:
    """A database that is read, or an error for whoever reads it."""

    error: Exception | None = None
    reads: int = 0
    database: Any = None

    async def read(self, query: Callable[[Any], Any]) -> Any:
        """See `Tables`."""
        self.reads += 1
        if self.error is not None:
            raise self.error
        if self.database is None:
            self.database = stored(ROW)
        return query(self.database)


@dataclass
class Erasing:
    """Erases whoever it is asked to."""

    erased: list[str] = field(default_factory=list)

    async def erase(self, subject: str) -> Removed:
        """See `Erasure`."""
        self.erased.append(subject)
        return Removed(existed=True, rows=1, receipts=2, rejections=1)


@dataclass
class Noting(Observer):
    """Notes what was refused."""

    refusals: list[tuple[int, str]]

    def refused(self, error: RequestError) -> None:
        """See `Observer.refused`."""
        self.refusals.append((error.status, error.reason))


def _intake(*, max_bytes: int = 10_000, waiting: Callable[[], None] = lambda: None) -> Intake:
    return Intake(max_messages=2, max_bytes=max_bytes, hold_seconds=60, bodies=bodies(), waiting=waiting)


@dataclass
class Site:
    """The application and what it stands on."""

    writer: Answering = field(default_factory=Answering)
    users: Any = field(default_factory=Table)
    intake: Intake = field(
        default_factory=lambda: Intake(max_messages=2, max_bytes=10_000, hold_seconds=60, bodies=bodies())
    )
    serving: bool = True
    access: Access = field(default_factory=Access)
    eraser: Any = field(default_factory=Erasing)
    unwrapped: bool = False
    refused: list[tuple[int, str]] = field(default_factory=list)
    status: Callable[[], Awaitable[bytes]] | None = None

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request."""

        async def body() -> httpx.Response:
            if self.serving:
                self.intake.serve(cast("Writer", self.writer))
            noting = Noting(self.refused)
            parts = (self.intake, CATALOG, self.users, self.access, self.eraser, self.unwrapped, LIMIT)
            service = app.Service(*parts, observer=noting, status=self.status)
            built = app.build(service)
            transport = httpx.ASGITransport(built, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
                return await client.request(method, path, **request)

        return asyncio.run(body())

    def push(self, data: bytes = b'{"user_id":5}', attributes: dict[str, str] | None = None) -> httpx.Response:
        """One push."""
        return self.ask("POST", "/", content=wrapped(data, attributes))


def wrapped(data: bytes, attributes: dict[str, str] | None = None) -> bytes:
    """A push body."""
    return message.envelope(data, attributes or {}, "m1", TIME, "projects/p/subscriptions/s")


@pytest.fixture
def site() -> Site:
    """A serving application."""
    return Site()


@pytest.mark.parametrize("outcome", ["created", "duplicate", "exists", "conflict", "rejected"])
def test_every_confirmed_outcome_is_acknowledged(site: Site, outcome: str) -> None:
    """204 and nothing else: the emulator takes 202 for a refusal."""
    site.writer.answer = outcome
    answer = site.push()
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_push_reaches_the_writer_whole(site: Site) -> None:
    """The message's id, time, bytes and attributes travel with the decoded user."""
    site.push(b'{"user_id":5,"email_address":"a"}', {"event_type": "user.created"})
    (entry,) = site.writer.entries
    assert (entry.delivery.message_id, entry.delivery.publish_time) == ("m1", 1_704_164_645_678)
    assert (entry.delivery.data, entry.delivery.attributes) == (
        b'{"user_id":5,"email_address":"a"}',
        {"event_type": "user.created"},
    )
    assert isinstance(entry.content, Content)
    assert entry.content.fields == UserCreated(user_id=5, email_address="a")


@pytest.mark.parametrize("body", [b"", b"{}", b"hello", b'{"user_id":5}', b"\xff", b"[" * 2000])
def test_what_is_no_push_is_refused(site: Site, body: bytes) -> None:
    """400, and nothing reaches the writer: it did not come from the queue."""
    answer = site.ask("POST", "/", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the body is not a Pub/Sub push: ")
    assert site.writer.entries == []


@pytest.mark.parametrize(
    ("data", "attributes", "named"),
    [
        (b"{}", {}, "user_id is missing"),
        (b'{"user_id":0}', {}, "user_id must be an integer between 1 and 9223372036854775807"),
        (b'{"user_id":"s3cret"}', {}, "user_id must be an integer"),
        (b'{"user_id":5,"email_address":["s3cret"]}', {}, "email_address must be a string or null"),
        (b'{"user_id":5,"settings":{"s3cret":1}}', {}, "settings must be a string or null"),
        (b'{"user_id":5,"settings":"s3cret\\u0000"}', {}, "settings must not contain a NUL"),
        (
            b'{"user_id":5,"created_at":"s3cret"}',
            {},
            "created_at must be whole seconds since 1970 (UTC), between 0 and 253402300799, or null",
        ),
        (b"s3cret", {}, "data must be a JSON object"),
        (b'["s3cret"]', {}, "data must be a JSON object"),
        (b"", {"s3cret": "s3cret"}, "data is empty"),
        (
            b'{"user_id":5}',
            {"event_type": "s3cret"},
            "attribute event_type must be one of user.created, user.updated, user.deleted or absent",
        ),
    ],
)
def test_a_bad_message_is_kept_with_its_field(
    site: Site, caplog: pytest.LogCaptureFixture, data: bytes, attributes: dict[str, str], named: str
) -> None:
    """It reaches the writer with its bytes and what is wrong: 204, and no value of the user's in the log."""
    site.writer.answer = "rejected"
    with caplog.at_level(logging.DEBUG):
        answer = site.push(data, attributes)
    assert answer.status_code == 204
    (entry,) = site.writer.entries
    assert isinstance(entry.content, Problem)
    assert named in entry.content.detail
    assert (entry.delivery.data, entry.delivery.attributes) == (data, attributes)
    assert "message m1 rejected: " in caplog.text
    assert named in caplog.text
    assert SECRET not in caplog.text + entry.content.detail


def test_a_body_that_says_it_is_too_large_is_not_read(site: Site) -> None:
    """413 before a byte of it is in memory."""
    read = []

    async def told() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"x"

    answer = site.ask("POST", "/", content=told(), headers={"content-length": str(LIMIT + 1)})
    assert answer.status_code == 413
    assert answer.json() == {"error": f"the body is over {LIMIT} bytes; Pub/Sub sends no larger message"}
    assert read == []


def test_a_body_that_does_not_tell_its_length_is_cut_off(site: Site) -> None:
    """413 as soon as it is over the limit: an endless body ends."""
    read = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 1024

    answer = site.ask("POST", "/", content=endless())
    assert answer.status_code == 413
    assert len(read) <= 4


def test_a_body_of_exactly_the_limit_is_taken(site: Site) -> None:
    """The bound itself is inside."""
    body = wrapped(b'{"user_id":5}')
    assert site.ask("POST", "/", content=body + b" " * (LIMIT - len(body))).status_code == 204
    assert site.ask("POST", "/", content=body + b" " * (LIMIT - len(body) + 1)).status_code == 413


def test_an_outage_asks_to_come_again(site: Site) -> None:
    """INV-9: 503 with Retry-After."""
    site.writer.answer = Refused("the bucket cannot be reached")
    answer = site.push()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "the bucket cannot be reached"}


def test_a_full_queue_asks_to_come_again(site: Site) -> None:
    """INV-7: no room is 503, never an error of the message."""
    site.intake.held_messages = 2
    answer = site.push()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_draining_asks_to_come_again() -> None:
    """The next instance takes it."""
    site = Site(serving=False)
    site.intake.drain()
    answer = site.push()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_row_the_database_refuses_is_our_error(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """500, and a line in the log without the row."""
    site.writer.answer = Unwritable("the database refused this message")
    answer = site.push(b'{"user_id":5,"email_address":"s3cret"}')
    assert answer.status_code == 500
    assert SECRET not in answer.text + caplog.text


def test_a_bug_is_500_and_says_nothing(site: Site) -> None:
    """What an unforeseen exception holds stays out of the answer."""
    site.writer.answer = RuntimeError(SECRET)
    answer = site.push()
    assert answer.status_code == 500
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/", "/users/5"])
def test_a_bug_is_one_line_of_the_log(site: Site, caplog: pytest.LogCaptureFixture, path: str) -> None:
    """With its action and its traceback, wherever it happens."""
    site.writer.answer = site.users.error = RuntimeError("broken")
    answer = site.push() if path == "/" else site.ask("GET", path)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert (answer.status_code, record.__dict__["action"]) == (500, "request.broke")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "broken"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_push_path_takes_posts_only(site: Site, method: str) -> None:
    """405 with the verb that would do."""
    answer = site.ask(method, "/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/users/5", "/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_every_other_path_takes_gets_only(site: Site, method: str, path: str) -> None:
    """405 with the verb that would do."""
    answer = site.ask(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
@pytest.mark.parametrize("path", ["/nowhere", "/users", "/push", "//", "/pubsub/push", "/healthz/", "/index.html"])
def test_any_other_path_is_404_and_seen(caplog: pytest.LogCaptureFixture, path: str, method: str) -> None:
    """F5: a push to a wrong path is told where pushes go, logged with its action, and counted."""
    site = Site()
    answer = site.ask(method, f"http://worker{path}")
    assert answer.status_code == 404
    assert method == "HEAD" or answer.json() == {"error": "no such path; pushes go to POST /"}
    assert [record.__dict__["action"] for record in caplog.records if record.name == "worker.ingest.http.app"] == [
        "request.refused"
    ]
    assert site.refused == [(404, "no_such_path")]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("POST", "/healthz"), ("DELETE", "/rejections"), ("POST", "/counts")]
)
def test_a_wrong_method_is_seen(caplog: pytest.LogCaptureFixture, method: str, path: str) -> None:
    """It is logged with its action, and counted."""
    site = Site()
    assert site.ask(method, path).status_code == 405
    assert [record.__dict__["action"] for record in caplog.records if record.name == "worker.ingest.http.app"] == [
        "request.refused"
    ]
    assert site.refused == [(405, "wrong_method")]


def test_bytes_are_held_as_they_arrive() -> None:
    """INV-7: a sender that announces a large body and sends none takes no room from the others."""
    site = Site(intake=_intake(max_bytes=LIMIT))
    held: list[int] = []

    async def slow() -> AsyncIterator[bytes]:
        held.append(site.intake.held_bytes)
        body = wrapped(b'{"user_id":5}')
        yield body
        held.append(site.intake.held_bytes - len(body))
        yield b" " * (LIMIT // 2)

    size = len(wrapped(b'{"user_id":5}')) + LIMIT // 2
    assert site.ask("POST", "/", content=slow(), headers={"content-length": str(size)}).status_code == 204
    assert held == [0, 0]
    assert site.intake.held_bytes == 0


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("wrapped_", [False, True])
def test_an_offer_of_another_protocol_changes_nothing(wrapped_: bool, apart: bool) -> None:
    """F1: over a real socket. Before, the content was gone: 400, or 204 and a rejection of no bytes."""
    site = Site(unwrapped=True)
    body = wrapped(b'{"user_id":6}') if wrapped_ else b'{"user_id":6}'
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    metadata = b"" if wrapped_ else b"x-goog-pubsub-message-id: 9\r\nx-goog-pubsub-publish-time: 2024-01-02T03:04:05Z\r\n"

    async def visit() -> bytes:
        site.intake.serve(cast("Writer", site.writer))
        built = app.build(
            app.Service(site.intake, CATALOG, site.users, site.access, site.eraser, site.unwrapped and not wrapped_, LIMIT)
        )
        config = uvicorn.Config(built, ws="none", lifespan="off", log_config=None)
        doors, state = Connections(Bounds(10, LIMIT, 20)), ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: doors(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n" + metadata + offer + b"content-length: %d\r\n\r\n" % len(body))
        if apart:
            await asyncio.sleep(0.1)
        writer.write(body)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.close()
        return answer

    assert asyncio.run(visit()).startswith(b"HTTP/1.1 204 ")
    (entry,) = site.writer.entries
    assert entry.delivery.data == b'{"user_id":6}'
    assert entry.delivery.message_id == ("m1" if wrapped_ else "9")


def test_a_user_is_read(site: Site) -> None:
    """The row, column for column."""
    answer = site.ask("GET", "/users/5")
    assert (answer.status_code, answer.json()) == (200, ROW)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("user_id", ["1", "6", "0", "-1", "0000000000000000006", str(MAX_USER_ID)])
def test_an_unknown_user_is_404(site: Site, user_id: str) -> None:
    """A good id without a row."""
    answer = site.ask("GET", f"/users/{user_id}")
    assert (answer.status_code, answer.json()) == (404, {"error": "no such user"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+5",
        "5.0",
        "5/",
        "5/6",
        "five",
        "0x5",
        "%35%00",
        "%205",
        "1_0",
        "²",
        "\u0665",
        str(MAX_USER_ID + 1),
        "9" * 5000,
        "0" * 19 + "1" + "9" * 30,
    ],
)
def test_a_user_id_that_is_none_is_400(site: Site, text: str) -> None:
    """Anything but plain digits of at most 2^63-1 is refused before the database is asked."""
    answer = site.ask("GET", f"/users/{text}")
    assert answer.status_code == 400
    assert answer.json() == {"error": "user_id must be a whole number, at most 2^63-1"}
    assert site.users.reads == 0


def test_a_deleted_user_is_404(site: Site) -> None:
    """A row that is marked as deleted is not read, whoever marked it."""
    site.users.database = stored({**ROW, "deleted": 1})
    assert site.ask("GET", "/users/5").status_code == 404


def test_a_user_is_erased(site: Site) -> None:
    """By POST alone, and what was removed is told."""
    answer = site.ask("POST", "/users/7/erase")
    assert (answer.status_code, answer.json()) == (200, {"existed": True, "rows": 1, "receipts": 2, "rejections": 1})
    for path in ("/users/x%2Fy/erase", "/users/007/erase"):
        assert site.ask("POST", path).status_code == 200
    for wrong in ("", "%07", "x" * 129):
        assert site.ask("POST", f"/users/{wrong}/erase").status_code == 400
    assert site.ask("GET", "/users/7/erase").status_code == 400
    assert site.eraser.erased == ["7", "x/y", "7"]


def test_users_without_a_database_ask_to_come_again(site: Site) -> None:
    """503 while standing by: 404 would say that the user does not exist."""
    site.users.error = Refused("this instance is not serving yet; ask again")
    answer = site.ask("GET", "/users/5")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def in_state(state: str) -> Site:
    """An application in a state."""
    site = Site(serving=state == "serving")
    if state == "draining":
        site.intake.drain()
    return site


@pytest.mark.parametrize("state", ["standby", "serving", "draining"])
def test_healthz_says_that_the_process_lives(state: str) -> None:
    """200 in every state: a process that drains or stands by must not be killed for it."""
    answer = in_state(state).ask("GET", "/healthz")
    assert (answer.status_code, answer.json()["state"]) == (200, state)


@pytest.mark.parametrize("state", ["standby", "serving", "draining"])
def test_readyz_says_whether_to_send_requests(state: str) -> None:
    """Standing by is ready, or a deploy would never end; draining is not."""
    answer = in_state(state).ask("GET", "/readyz")
    assert (answer.status_code, answer.json()["state"]) == (503 if state == "draining" else 200, state)


def test_a_sender_that_hangs_up_disturbs_nobody(site: Site) -> None:
    """A body that ends in the middle is nobody's message and no error of ours."""
    sent: list[dict[str, Any]] = []

    async def body() -> None:
        site.intake.serve(cast("Writer", site.writer))
        built = app.build(app.Service(site.intake, CATALOG, site.users, Access(), site.eraser, body_max_bytes=LIMIT))
        incoming: list[dict[str, Any]] = [
            {"type": "http.request", "body": b'{"message":', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, Any]:
            return incoming.pop(0)

        async def send(event: Any) -> None:
            sent.append(event)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
        await built(cast("Any", scope), receive, send)

    asyncio.run(body())
    assert site.writer.entries == []
    assert sent[0]["status"] == 499


def test_errors_are_json(site: Site) -> None:
    """A refusal can be read by a program: one object with one sentence."""
    answer = site.ask("POST", "/", content=b"x")
    assert answer.headers["content-type"] == "application/json"
    assert list(json.loads(answer.text)) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "routed"),
    [
        ("GET", "/users/5", True),
        ("GET", "/rejections", True),
        ("POST", "/users/5/erase", True),
        ("GET", "/healthz", False),
        ("GET", "/readyz", False),
        ("GET", "/metrics", False),
    ],
)
def test_any_request_that_is_routed_here_asks_for_the_lease(site: Site, method: str, path: str, routed: bool) -> None:
    """A deployment to an idle topic answers reads without waiting for a message; probes and scrapes prove no traffic."""
    asked: list[None] = []
    site.serving, site.users.error = False, Refused("not serving yet; ask again")
    site.intake = Intake(
        max_messages=2, max_bytes=10_000, hold_seconds=60, bodies=bodies(), waiting=lambda: asked.append(None)
    )
    site.ask(method, path)
    assert bool(asked) == routed


def test_what_was_meant_for_another_store_is_refused(site: Site) -> None:
    """409 before anything is done; a command that names this store, or none, goes on."""

    async def statuses() -> list[int]:
        site.intake.serve(cast("Writer", site.writer))
        service = app.Service(site.intake, CATALOG, site.users, site.access, site.eraser, store="gs://acme/prod")
        transport = httpx.ASGITransport(app.build(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            found = []
            for store in ("gs://acme/test", "gs://acme/prod", None):
                headers = {} if store is None else {"solowriter-store": store}
                found.append((await client.post("/users/5/erase", headers=headers)).status_code)
            return found

    assert asyncio.run(statuses()) == [409, 200, 200]
    assert site.eraser.erased == ["5", "5"]
