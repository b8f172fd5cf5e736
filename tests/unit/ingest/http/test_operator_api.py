"""The operators' endpoints, through the real application, and who is let in anywhere."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import peewee
import pytest

from tests.entries import CATALOG, PUBLISHED, malformed
from tests.unit.ingest.http.test_app import Site, Table, wrapped
from worker.database import connections, schema
from worker.errors import Forbidden, NotFound, Refused, RequestError, Unauthenticated
from worker.ingest.http.access import Access, authorization
from worker.ingest.http.tokens import TokenVerifier
from worker.ingest.messages import Change
from worker.ingest.transaction import Transaction

PUSHER = "push@acme.example"
ANN = "ann@acme.example"
MANY = [f"m{number}" for number in range(7)]


@dataclass
class Tokens:
    """A verifier for which a token is its bearer's address, and an error for everybody where there is one."""

    error: RequestError | None = None
    asked: list[str | None] = field(default_factory=list)

    async def email(self, authorization: str | None) -> str:
        """See `TokenVerifier`."""
        self.asked.append(authorization)
        if self.error is not None:
            raise self.error
        if authorization is None:
            raise Unauthenticated("there is no token")
        return authorization.removeprefix("Bearer ")


@dataclass
class Changing:
    """A writer that makes each change at once."""

    connection: peewee.SqliteDatabase

    def submit(self, change: Change) -> None:
        """See `worker.ingest.writer.Writer.submit`."""
        try:
            with self.connection.atomic():
                change.done.set_result(change.apply(Transaction(self.connection, CATALOG, 1, PUBLISHED)))
        except RequestError as error:
            change.done.set_exception(error)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A serving application with a few rejections."""
    path = tmp_path / "users.db"
    schema.migrate(path, CATALOG, busy_timeout_seconds=5)
    connection = connections.connect(path, busy_timeout_seconds=5)

    async def fill() -> None:
        Transaction(connection, CATALOG, 1, PUBLISHED).handle([malformed(message_id) for message_id in [*MANY, "a/b c?d#e"]])

    with connection.connection_context():
        asyncio.run(fill())
        yield Site(writer=cast("Any", Changing(connection)), users=Table(database=connection))


def bearer(email: str) -> dict[str, str]:
    """The headers of whom `Tokens` takes for `email`."""
    return {"authorization": f"Bearer {email}"}


def verified(site: Site, *operators: str) -> Tokens:
    """Have `site` verify its senders."""
    tokens = Tokens()
    site.access = Access(cast(TokenVerifier, tokens), pusher=PUSHER, operators=operators)
    return tokens


def ids(answer: httpx.Response) -> list[str]:
    """Which rejections a page holds."""
    assert answer.status_code == 200, answer.text
    return [row["message_id"] for row in answer.json()["rejections"]]


def test_pages_are_followed_by_their_cursor(site: Site) -> None:
    """`after` of one page is the next one's parameter; the last has none."""
    first = site.ask("GET", "/rejections", params={"limit": "5"})
    second = site.ask("GET", "/rejections", params={"limit": "5", "after": first.json()["after"]})
    assert sorted(ids(first) + ids(second)) == sorted([*MANY, "a/b c?d#e"])
    assert second.json()["after"] is None


def test_a_page_is_filtered(site: Site) -> None:
    """By reason and by time."""
    assert ids(site.ask("GET", "/rejections", params={"reason": "conflict"})) == []
    assert ids(site.ask("GET", "/rejections", params={"since": "2023-11-14T22:13:20.001Z"})) == []
    assert len(ids(site.ask("GET", "/rejections", params={"until": "2023-11-14T22:13:20.001+00:00"}))) == 8


@pytest.mark.parametrize(
    "parameters",
    [
        {"reason": "bad"},
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "many"},
        {"since": "yesterday"},
        {"until": "2023-11-14T22:13:20"},
        {"after": "m1"},
        {"after": "\u0665,m1"},
        {"after": "9" * 20 + ",m1"},
    ],
)
def test_a_wrong_parameter_is_named(site: Site, parameters: dict[str, str]) -> None:
    """400 with the parameter and what it must be."""
    answer = site.ask("GET", "/rejections", params=parameters)
    assert answer.status_code == 400
    assert next(iter(parameters)) in answer.json()["error"]


@pytest.mark.parametrize(("message_id", "path"), [("m1", "m1"), ("a/b c?d#e", "a%2Fb%20c%3Fd%23e")])
def test_one_is_read_retried_and_discarded_by_its_id(site: Site, message_id: str, path: str) -> None:
    """Any id a message can have stands in a path."""
    assert site.ask("GET", f"/rejections/{path}").json()["message_id"] == message_id
    assert site.ask("POST", f"/rejections/{path}/retry").json() == {"message_id": message_id, "outcome": "rejected"}
    assert site.ask("POST", f"/rejections/{path}/discard").json() == {"message_id": message_id, "outcome": "discarded"}
    again = site.ask("POST", f"/rejections/{path}/discard")
    assert (again.status_code, again.json()) == (409, {"error": "this rejection has been resolved already: discarded"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/rejections/nobody", 404),
        ("POST", "/rejections/nobody/retry", 404),
        ("POST", "/rejections/m1", 404),
        ("POST", "/rejections", 404),
        ("POST", "/rejections/m1/burn", 404),
        ("DELETE", "/rejections/m1", 405),
        ("GET", "/rejectionsx", 404),
    ],
)
def test_what_is_not_there_says_so(site: Site, method: str, path: str, status: int) -> None:
    """No path does anything it does not name."""
    assert site.ask(method, path).status_code == status


def test_a_change_while_standing_by_asks_to_come_again(site: Site) -> None:
    """503: only the writer changes anything."""
    site.serving = False
    assert site.ask("POST", "/rejections/m1/retry").status_code == 503


def test_operators_alone_see_rejections(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """401 without a token, 403 for anybody else's, the subscription's included; the log says who did what."""
    verified(site, ANN)
    for method, path in (("GET", "/rejections"), ("GET", "/rejections/m1"), ("POST", "/rejections/m1/discard")):
        assert site.ask(method, path).status_code == 401
        assert site.ask(method, path, headers=bearer(PUSHER)).status_code == 403
    with caplog.at_level(logging.INFO):
        assert site.ask("POST", "/rejections/m1/discard", headers=bearer(ANN)).status_code == 200
    assert f"message m1: discarded by {ANN}" in caplog.text


def test_without_operators_nobody_sees_rejections(site: Site) -> None:
    """Verified senders and no operators: 403 with the setting's name."""
    verified(site)
    answer = site.ask("GET", "/rejections", headers=bearer(ANN))
    assert answer.status_code == 403
    assert "OPERATORS" in answer.json()["error"]


def test_the_subscription_alone_pushes() -> None:
    """401 without a token, 403 for an operator's; the service account's passes. The body of a refused one is not read."""
    site = Site()
    verified(site, ANN)
    assert site.push().status_code == 401
    assert site.ask("POST", "/", content=wrapped(b"{}"), headers=bearer(ANN)).status_code == 403
    assert site.writer.entries == []
    assert site.ask("POST", "/", content=wrapped(b'{"user_id":5}'), headers=bearer(PUSHER)).status_code == 204


@pytest.mark.parametrize(("error", "status"), [(Refused("no certificates"), 503), (Forbidden("no e-mail"), 403)])
def test_what_the_verifier_says_is_answered(error: RequestError, status: int) -> None:
    """An outage of the certificates is 503, never a verdict (INV-9)."""
    site = Site()
    verified(site).error = error
    assert site.push().status_code == status


def test_reading_a_user_asks_for_no_token() -> None:
    """The platform's check is the only one there."""
    site = Site()
    tokens = verified(site)
    assert site.ask("GET", "/users/5").status_code == 200
    assert tokens.asked == []


def test_unverified_senders_are_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """A warning, once; verified ones are nothing to talk about."""
    Access()
    assert caplog.text.count("PUSH_AUDIENCE is not set") == 1
    Access(cast(TokenVerifier, Tokens()), pusher=PUSHER)
    assert caplog.text.count("PUSH_AUDIENCE is not set") == 1


def test_the_errors_have_their_statuses() -> None:
    """As errors.py says."""
    assert [error("").status for error in (NotFound, Forbidden, Unauthenticated)] == [404, 403, 401]


def test_the_header_that_the_platform_checks_says_who_is_asking() -> None:
    """`X-Serverless-Authorization` before `Authorization`, even if it is empty; and none that is there twice."""
    platform, usual = (b"x-serverless-authorization", b"a"), (b"authorization", b"b")
    assert authorization([usual, platform]) == "a"
    assert authorization([usual]) == "b"
    assert authorization([usual, (platform[0], b"")]) == ""
    assert authorization([]) is None
    for twice in ([usual, usual], [platform, platform, usual]):
        with pytest.raises(Unauthenticated, match="more than once"):
            authorization(twice)


def test_a_mended_message_has_its_effect_and_what_was_published_is_kept(site: Site) -> None:
    """The body of a retry is handled in the place of the data, under the message's id; the rejection keeps its own."""
    before = site.ask("GET", "/rejections/m1").json()
    still = site.ask("POST", "/rejections/m1/retry", content=b'{"user_id": 0}').json()
    assert still["outcome"] == "rejected"
    done = site.ask("POST", "/rejections/m1/retry", content=b'{"user_id": 77}').json()
    assert done == {"message_id": "m1", "outcome": "created"}
    after = site.ask("GET", "/rejections/m1").json()
    assert after["data"] == before["data"]
    assert after["resolution"] == "created"
    assert site.ask("POST", "/rejections/m2/retry", content=b"x" * 10_000_001).status_code == 413


def test_the_status_is_for_operators_alone(site: Site) -> None:
    """Verified senders that are no operators are refused, in every state; what is meant for another store likewise."""

    async def page() -> bytes:
        return b'{"state": "standby"}'

    verified(site, ANN)
    site.status, site.serving = page, False
    assert site.ask("GET", "/status").status_code == 401
    assert site.ask("GET", "/status", headers=bearer(PUSHER)).status_code == 403
    found = site.ask("GET", "/status", headers=bearer(ANN))
    assert (found.status_code, found.json(), found.headers["cache-control"]) == (200, {"state": "standby"}, "no-store")
    assert site.ask("POST", "/status", headers=bearer(ANN)).status_code == 405
    assert site.ask("GET", "/status", headers={**bearer(ANN), "solowriter-store": "gs://b/another"}).status_code == 409
