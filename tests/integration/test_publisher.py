"""The publisher against the real Pub/Sub emulator, and the push target against a real HTTP server that misbehaves."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.api_core import exceptions as google_errors
from google.auth import exceptions as google_auth_errors

from local.pubsub import Emulator, EmulatorMissing, emulator
from publisher import cli
from publisher.client import Publisher, translate
from publisher.errors import (
    DeliveryError,
    NotConfirmedError,
    NotPermittedError,
    RefusedError,
    TopicNotFoundError,
    TopicUnusableError,
    UnreachableError,
)
from publisher.message import Message
from publisher.push import Backoff, PushTarget
from publisher.settings import Limits, PushLimits
from tests.entries import CATALOG
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE
from worker.events.users import USER_CREATED, UserCreated

pytestmark = pytest.mark.slow

# Google's exceptions have untyped constructors.
GOOGLE: Any = google_errors
GOOGLE_AUTH: Any = google_auth_errors

ANSWER_SECONDS = 60.0
"""How long a test waits for what must happen, in seconds."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """The real emulator; on CI it must be there."""
    try:
        with emulator(tmp_path_factory.mktemp("pubsub"), "p") as started:
            yield started
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


class Topic:
    """A topic with one pull subscription on the emulator, over its REST interface."""

    def __init__(self, host: Emulator, name: str, settings: dict[str, Any] | None = None) -> None:
        self.path = f"projects/p/topics/{name}"
        self._subscription = f"{host.url}/v1/projects/p/subscriptions/{name}"
        httpx.put(f"{host.url}/v1/{self.path}", json=settings or {}, timeout=60).raise_for_status()
        httpx.put(self._subscription, json={"topic": self.path}, timeout=60).raise_for_status()

    def pull(self, count: int) -> list[dict[str, Any]]:
        """Take `count` messages off the subscription, and check that there are no more."""
        found: dict[str, dict[str, Any]] = {}
        while len(found) < count:
            response = httpx.post(f"{self._subscription}:pull", json={"maxMessages": 1000}, timeout=ANSWER_SECONDS)
            received = response.raise_for_status().json().get("receivedMessages", [])
            found |= {item["message"]["messageId"]: item["message"] for item in received}
            ids = {"ackIds": [item["ackId"] for item in received]}
            httpx.post(f"{self._subscription}:acknowledge", json=ids, timeout=60).raise_for_status()
        assert len(found) == count
        return list(found.values())


def user(user_id: int, **fields: Any) -> Message:
    """A user to create."""
    return Message(USER_CREATED, UserCreated(user_id=user_id, **fields))


def users_of(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return message id and user of pulled or pushed messages."""
    return {
        message["messageId"]: CATALOG.event(message["attributes"]).decode(base64.b64decode(message["data"]))
        for message in messages
    }


@pytest.fixture
def topic(running: Emulator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Topic:
    """A topic of the test's own."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.host)
    return Topic(running, request.node.name.replace("[", "-").replace("]", "")[:200])


# Pub/Sub


def test_create_reaches_the_subscription(topic: Topic, capsys: pytest.CaptureFixture[str]) -> None:
    """`create` publishes what it was told, under the id it prints."""
    arguments = ["create", "--user-id", "5", "--email", "a@example.com", "--created-at", "7", "--json"]
    assert cli.main(arguments, {"TOPIC": topic.path}) == 0
    [message] = topic.pull(1)
    assert users_of([message]) == {
        json.loads(capsys.readouterr().out)["message_id"]: UserCreated(
            user_id=5, email_address="a@example.com", created_at=7
        )
    }
    assert message["attributes"] == {EVENT_TYPE_ATTRIBUTE: USER_CREATED.name}


def test_load_reaches_the_subscription(topic: Topic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`load` delivers every valid line once, and its --accepted file names the very messages that arrived."""
    path, accepted, rejects = tmp_path / "users.csv", tmp_path / "ok", tmp_path / "bad"
    path.write_text("user_id,settings\n" + "".join(f"{n},s{n}\n" for n in range(3001)))
    arguments = ["load", str(path), "--json", "--accepted", str(accepted), "--rejects", str(rejects)]
    assert cli.main(arguments, {"TOPIC": topic.path}) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["read"], summary["accepted"], summary["rejected"]) == (3001, 3000, 1)
    assert rejects.read_text() == "user_id,settings\n0,s0\n"
    arrived = {message_id: each.user_id for message_id, each in users_of(topic.pull(3000)).items()}
    entries = [json.loads(line) for line in accepted.read_text().splitlines()]
    assert {entry["message_id"]: entry["user_id"] for entry in entries} == arrived
    assert all(entry["line"] == entry["user_id"] + 2 for entry in entries)


def test_missing_topic_is_explained(topic: Topic, capsys: pytest.CaptureFixture[str]) -> None:
    """A topic that does not exist ends at once, with the command that creates it."""
    assert cli.main(["create", "--user-id", "5", "--topic", "nowhere", "--project", "p"], {}) == 1
    assert "gcloud pubsub topics create projects/p/topics/nowhere" in capsys.readouterr().err


def test_load_stops_at_a_missing_topic(topic: Topic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A load does not try a missing topic once per line."""
    path = tmp_path / "users.csv"
    path.write_text("user_id\n" + "".join(f"{n}\n" for n in range(1, 50_001)))
    assert cli.main(["load", str(path), "--json"], {"TOPIC": "projects/p/topics/nowhere"}) == 1
    summary = json.loads(capsys.readouterr().out)
    assert "does not exist" in summary["stopped"]
    assert summary["failed"] == summary["read"] < 50_000


def test_unreachable_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody listening, publishing ends after the time it was given, as unknown."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    with Publisher("projects/p/topics/users", Limits(give_up_after=1.0, attempt=1.0)) as sink:
        future = sink.publish(user(1))
        with pytest.raises(UnreachableError, match="check the network"):
            future.result(timeout=sink.patience)


def test_closing_early_leaves_no_future_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing without waiting settles what has no answer as not confirmed; closing twice is harmless."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    sink = Publisher("projects/p/topics/users", Limits(give_up_after=30.0))
    future = sink.publish(user(1))
    sink.close(timeout=0.0)
    sink.close()
    with pytest.raises(NotConfirmedError):
        future.result(timeout=0)


def test_one_refused_message_leaves_its_batch_alone(running: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pub/Sub refuses a whole batch for one message that breaks the topic's schema; only that one may fail."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.host)
    fields = [{"name": "user_id", "type": "long"}, {"name": "email_address", "type": "string"}]
    definition = json.dumps({"type": "record", "name": "User", "fields": fields})
    schema = {"type": "AVRO", "definition": definition}
    httpx.post(f"{running.url}/v1/projects/p/schemas?schemaId=with-email", json=schema, timeout=60).raise_for_status()
    strict = {"schema": "projects/p/schemas/with-email", "encoding": "JSON"}
    topic = Topic(running, "strict", {"schemaSettings": strict})
    users = [user(n, email_address=None if n == 3 else "a") for n in range(1, 6)]
    with Publisher(topic.path) as sink:
        futures = [sink.publish(each) for each in users]
        errors = [future.exception(timeout=ANSWER_SECONDS) for future in futures]
    assert [type(error) for error in errors] == [type(None)] * 2 + [RefusedError] + [type(None)] * 2
    assert sorted(each.user_id for each in users_of(topic.pull(4)).values()) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (GOOGLE.NotFound("x"), TopicNotFoundError, "gcloud pubsub topics create"),
        (GOOGLE.PermissionDenied("x"), NotPermittedError, "roles/pubsub.publisher"),
        (GOOGLE.Unauthenticated("x"), NotPermittedError, "roles/pubsub.publisher"),
        (GOOGLE_AUTH.RefreshError("x"), NotPermittedError, "credentials"),
        (GOOGLE.ServiceUnavailable("x"), UnreachableError, "within 60 s"),
        (GOOGLE.RetryError("x", GOOGLE.DeadlineExceeded("y")), UnreachableError, "(y)"),
        (GOOGLE.RetryError("x", GOOGLE.NotFound("y")), TopicNotFoundError, "does not exist"),
        (GOOGLE.InvalidArgument("x"), RefusedError, "refused it: x"),
        (GOOGLE.FailedPrecondition("x"), TopicUnusableError, "takes no message at present"),
        (RuntimeError("x"), NotConfirmedError, "RuntimeError"),
    ],
)
def test_errors_of_googles_client_are_translated(error: Exception, kind: type[DeliveryError], hint: str) -> None:
    """Each error of the client becomes one of ours, with the next step."""
    found = translate(error, "projects/p/topics/t", 60.0)
    assert type(found) is kind
    assert hint in str(found)


# Push

Script = Callable[[int], int | None]


class Worker(ThreadingHTTPServer):
    """A worker that answers the n-th request with `script(n)`; None drops the connection without an answer."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []  # guarded by lock
        self.open = self.most_open = 0  # guarded by lock

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/"

    def message_ids(self) -> list[str]:
        """Return the message id of every request."""
        return [body["message"]["messageId"] for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    server: Worker
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        worker = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with worker.lock:
            worker.bodies.append(body)
            number = len(worker.bodies)
            worker.open += 1
            worker.most_open = max(worker.most_open, worker.open)
        status = worker.script(number)
        with worker.lock:
            worker.open -= 1
        if status is None:
            self.close_connection = True
            return
        text = b"" if status == 204 else f"because of {status}".encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""


@contextmanager
def worker(script: Script) -> Iterator[Worker]:
    """Run a worker on a free port."""
    with Worker(script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


QUICK = PushLimits(give_up_after=30.0, attempt=10.0, backoff_initial=0.001, backoff_maximum=0.01)


def test_push_sends_pubsubs_envelope() -> None:
    """The body is a push request as Pub/Sub sends it, and decodes to the user."""
    with worker(lambda _: 204) as server, PushTarget(server.url, subscription="projects/p/subscriptions/s") as sink:
        message_id = sink.publish(user(1, settings="x")).result(timeout=ANSWER_SECONDS)
    [body] = server.bodies
    assert users_of([body["message"]]) == {message_id: UserCreated(user_id=1, settings="x")}
    assert body["subscription"] == "projects/p/subscriptions/s"
    assert datetime.fromisoformat(body["message"]["publishTime"]).tzinfo is not None


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_push_takes_what_pubsub_takes_for_an_acknowledgement(status: int) -> None:
    """Every acknowledging status ends the delivery."""
    with worker(lambda _: status) as server, PushTarget(server.url, QUICK) as sink:
        sink.publish(user(1)).result(timeout=ANSWER_SECONDS)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("failure", [500, 503, 429, None, 400])
def test_push_is_repeated_under_the_same_id(failure: int | None) -> None:
    """After refusals or dropped connections the same message is delivered again, with the same id and time."""
    with worker(lambda n: failure if n < 4 else 204) as server, PushTarget(server.url, QUICK) as sink:
        message_id = sink.publish(user(1)).result(timeout=ANSWER_SECONDS)
    assert server.message_ids() == [message_id] * 4
    assert all(body == server.bodies[0] for body in server.bodies)


def test_push_ids_are_unique() -> None:
    """Two messages with the same content are two messages."""
    with worker(lambda _: 204) as server, PushTarget(server.url, QUICK) as sink:
        ids = {sink.publish(user(1)).result(timeout=ANSWER_SECONDS) for _ in range(20)}
    assert len(ids) == 20
    assert sorted(server.message_ids()) == sorted(ids)


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, RefusedError, "because of 400"),
        (413, RefusedError, "because of 413"),
        (401, NotPermittedError, "token"),
        (404, UnreachableError, "is that the worker's address"),
        (302, UnreachableError, "is that the worker's address"),
    ],
)
def test_push_ends_when_repeating_does_not_help(status: int, kind: type[DeliveryError], hint: str) -> None:
    """A 4xx is reported with the server's own text after a few attempts, long before the time is up."""
    with worker(lambda _: status) as server, PushTarget(server.url, QUICK) as sink:
        error = sink.publish(user(1)).exception(timeout=ANSWER_SECONDS)
    assert type(error) is kind
    assert hint in str(error)
    assert len(server.bodies) == QUICK.refusals


def test_push_is_given_up_in_time() -> None:
    """A worker that refuses for good is given up, with its answer, when the time is up."""
    limits = PushLimits(give_up_after=0.2, backoff_initial=0.001)
    with worker(lambda _: 503) as server, PushTarget(server.url, limits) as sink:
        error = sink.publish(user(1)).exception(timeout=ANSWER_SECONDS)
    assert type(error) is UnreachableError
    assert "answered 503 (because of 503)" in str(error)
    assert len(server.bodies) > 1


def test_push_does_not_wait_for_ever_for_an_answer() -> None:
    """A worker that holds a request too long counts as silent; the message is delivered again."""
    release = threading.Event()

    def hold_the_first(number: int) -> int:
        if number == 1:
            release.wait(ANSWER_SECONDS)
        return 204

    limits = PushLimits(give_up_after=30.0, attempt=0.2, backoff_initial=0.001)
    with worker(hold_the_first) as server, PushTarget(server.url, limits) as sink:
        message_id = sink.publish(user(1)).result(timeout=ANSWER_SECONDS)
        release.set()
    assert server.message_ids() == [message_id] * 2


def test_push_to_nobody_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """With nobody listening, the error says to look for the worker."""
    arguments = ["create", "--user-id", "1", "--push-to", "http://127.0.0.1:1/", "--give-up-after", "0.2"]
    assert cli.main(arguments, {}) == 1
    assert "check that a worker runs there" in capsys.readouterr().err


def test_push_in_flight_is_bounded() -> None:
    """No more requests are open than allowed, and as many as allowed."""
    full = threading.Barrier(4)

    def wait_for_company(_: int) -> int:
        full.wait(ANSWER_SECONDS)
        return 204

    limits = PushLimits(in_flight=4)
    with worker(wait_for_company) as server, PushTarget(server.url, limits) as sink:
        futures = [sink.publish(user(n)) for n in range(1, 41)]
        for future in futures:
            future.result(timeout=ANSWER_SECONDS)
    assert server.most_open == 4


def test_closing_a_push_target_early_leaves_no_future_open() -> None:
    """Closing without waiting settles what has no answer as not confirmed, and ends the thread."""
    release = threading.Event()
    with worker(lambda _: 204 if release.wait(ANSWER_SECONDS) else 500) as server:
        sink = PushTarget(server.url)
        future = sink.publish(user(1))
        sink.close(timeout=0.0)
        sink.close()
        with pytest.raises(NotConfirmedError):
            future.result(timeout=0)
        release.set()
    assert "push-target" not in {thread.name for thread in threading.enumerate()}


def test_load_through_push(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`load --push-to` delivers every line although the worker refuses now and then."""
    path = tmp_path / "users.jsonl"
    path.write_text("".join(f'{{"user_id":{n}}}\n' for n in range(1, 201)))
    with worker(lambda n: 503 if n % 7 == 0 else 204) as server:
        assert cli.main(["load", str(path), "--json", "--push-to", server.url, "--in-flight", "8"], {}) == 0
    assert json.loads(capsys.readouterr().out)["accepted"] == 200
    assert {each.user_id for each in users_of([body["message"] for body in server.bodies]).values()} == set(range(1, 201))


def test_ctrl_c_while_waiting_for_input(tmp_path: Path) -> None:
    """A load that waits for standard input ends on Ctrl-C with code 130 and accounts for what it sent."""
    sent = threading.Event()

    def accept(_: int) -> int:
        sent.set()
        return 204

    with worker(accept) as server:
        command = [sys.executable, "-m", "publisher", "load", "-", "--json", "--push-to", server.url]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            assert process.stdin is not None
            process.stdin.write(b'{"user_id":1}\n')
            process.stdin.flush()
            assert sent.wait(ANSWER_SECONDS)
            process.send_signal(signal.SIGINT)
            # Not communicate(): it would close the input, which ends the load by itself.
            assert process.wait(ANSWER_SECONDS) == 130
            assert process.stdout is not None
            summary = json.loads(process.stdout.read())
    assert (summary["read"], summary["accepted"], summary["interrupted"]) == (1, 1, True)


def test_backoff_doubles_up_to_its_limit() -> None:
    """Pauses double, stop growing at the limit, are cut at the end of the time, and then there is none."""
    now = 0.0
    limits = PushLimits(give_up_after=10.0, backoff_initial=1.0, backoff_maximum=4.0)
    backoff = Backoff(limits, clock=lambda: now)
    pauses = []
    while (pause := backoff.pause()) is not None:
        pauses.append(pause)
        now += pause
    assert pauses == [1.0, 2.0, 4.0, 3.0]
