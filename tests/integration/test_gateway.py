"""`python -m publisher serve` as a process, in front of the real Pub/Sub emulator."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from google.auth.credentials import AnonymousCredentials
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from local.ports import free_port
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.worker_process import ROOT, wait_until
from publisher import settings
from publisher.client import Publisher
from tests.integration.test_publisher import Topic, users_of
from worker.events.users import UserCreated

pytestmark = pytest.mark.slow

BODY = b'{"user_id": 5}'
SLACK_SECONDS = 5.0
"""What a busy machine may add to a time limit, in seconds."""


class GatewayProcess:
    """A gateway and its log, ended with its block."""

    def __init__(
        self, log: Path, host: str, *options: str, topic: str = "projects/p/topics/users", **variables: str
    ) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = log
        self._command = [sys.executable, "-m", "publisher", "serve", *options]
        self._environment = {
            **os.environ,
            "PUBSUB_EMULATOR_HOST": host,
            "TOPIC": topic,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            **variables,
        }

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(lambda: self.state() == "serving" or self._process.poll() is not None, "a serving gateway")
        assert self._process.poll() is None, self._log.read_text()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()

    def state(self) -> str:
        """What it says of itself."""
        with contextlib.suppress(httpx.HTTPError):
            return str(httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).json()["state"])
        return "silent"

    def post(self, body: bytes = BODY) -> httpx.Response:
        """Send one user."""
        return httpx.post(f"{self.url}/users", content=body, timeout=60, trust_env=False)

    def posting(self, body: bytes = BODY) -> Callable[[], httpx.Response]:
        """Send one user on a thread of its own; call the result for its answer, which may never come."""
        answers: list[httpx.Response] = []

        def post() -> None:
            with contextlib.suppress(httpx.TransportError):
                answers.append(self.post(body))

        thread = threading.Thread(target=post, daemon=True)
        thread.start()

        def answer() -> httpx.Response:
            thread.join(60)
            return answers[0]

        return answer

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended, which Cloud Run grants 10 s for."""
        return self._process.wait(10 + SLACK_SECONDS)

    def events(self, action: str) -> list[dict[str, Any]]:
        """Its log lines of one action."""
        lines = map(json.loads, self._log.read_text().splitlines())
        return [line for line in lines if line["action"] == action]


class Valve:
    """A TCP relay to the emulator that passes nothing on while it is shut.

    A gateway connects when it has something to publish, so the first thing that is held means a message in flight.
    """

    def __init__(self, host: str) -> None:
        self._upstream = (host.split(":")[0], int(host.split(":")[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.opened = threading.Event()
        self.opened.set()
        self.held = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.opened.set()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def shut(self) -> None:
        """Hold what comes; `held` tells when something did."""
        self.held.clear()
        self.opened.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._upstream)
                self._sockets += [near, far]
                threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(far, near), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.opened.is_set():
                    self.held.set()
                    self.opened.wait()
                target.sendall(data)


@contextlib.contextmanager
def required_emulator(directory: Path, port: int | None = None) -> Iterator[Emulator]:
    """The real emulator; on CI it must be there."""
    try:
        with emulator(directory, "p", port) as started:
            yield started
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """One emulator for the tests that leave it alone."""
    with required_emulator(tmp_path_factory.mktemp("pubsub")) as started:
        yield started


@pytest.fixture
def topic(running: Emulator, request: pytest.FixtureRequest) -> Topic:
    """A topic of the test's own."""
    return Topic(running, request.node.name[:200])


def test_a_user_sent_over_http_reaches_the_subscription(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """The body of the service this replaces; 202 names the message that arrives, and the log names no user."""
    log = tmp_path / "log"
    with GatewayProcess(log, running.host, topic=topic.path) as gateway:
        answers = [gateway.post(), gateway.post(b'{"user_id": 987654321, "email_address": "a@example.com", "more": true}')]
        assert [answer.status_code for answer in answers] == [202, 202]
        first, second = (answer.json()["message_id"] for answer in answers)
        assert users_of(topic.pull(2)) == {
            first: UserCreated(user_id=5),
            second: UserCreated(user_id=987654321, email_address="a@example.com"),
        }
        gateway.send(signal.SIGTERM)
        assert gateway.wait() == 0
    assert [json.loads(line)["action"] for line in log.read_text().splitlines()] == [
        "gateway.listening",
        "gateway.draining",
        "gateway.stopped",
    ]


def test_many_at_once_arrive_once_each(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """Requests side by side share batches; each gets its own message's id."""

    async def send(url: str) -> dict[str, int]:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            numbers = range(1, 301)
            answers = await asyncio.gather(*(client.post("/users", json={"user_id": number}) for number in numbers))
        assert {answer.status_code for answer in answers} == {202}
        return {answer.json()["message_id"]: number for answer, number in zip(answers, numbers, strict=True)}

    with GatewayProcess(tmp_path / "log", running.host, topic=topic.path) as gateway:
        sent = asyncio.run(send(gateway.url))
    assert {message_id: user.user_id for message_id, user in users_of(topic.pull(300)).items()} == sent


def test_bad_and_too_large_bodies_are_refused(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """Over a real connection: 400, and 413 while the body is still being sent; neither ends the gateway."""
    with GatewayProcess(tmp_path / "log", running.host, topic=topic.path) as gateway:
        answer = gateway.post(b'{"user_id": "5"}')
        assert (answer.status_code, answer.json()["field"], answer.json()["reason"]) == (400, "user_id", "wrong_type")
        assert gateway.post(BODY.ljust(settings.GATEWAY_BODY_MAX_BYTES + 1)).status_code == 413
        assert gateway.post(BODY.ljust(settings.GATEWAY_BODY_MAX_BYTES)).status_code == 202
        assert list(users_of(topic.pull(1)).values()) == [UserCreated(user_id=5)]


def test_a_topic_that_comes_later_needs_no_restart(running: Emulator, tmp_path: Path) -> None:
    """503 and an error with the command that creates the topic; once it is there, 202."""
    with GatewayProcess(tmp_path / "log", running.host, topic="projects/p/topics/later") as gateway:
        answer = gateway.post()
        assert (answer.status_code, answer.json()["reason"]) == (503, "topic_not_found")
        assert "later" not in answer.text
        [event] = gateway.events("gateway.undelivered")
        assert event["severity"] == "ERROR"
        assert "gcloud pubsub topics create projects/p/topics/later" in event["message"]
        later = Topic(running, "later")
        assert gateway.post().status_code == 202
        assert list(users_of(later.pull(1)).values()) == [UserCreated(user_id=5)]


def test_what_the_topics_schema_refuses_is_400(running: Emulator, tmp_path: Path) -> None:
    """A well-formed user that the topic does not take: the answer and the log say so, without the user's data."""
    definition = json.dumps(
        {
            "type": "record",
            "name": "User",
            "fields": [{"name": "user_id", "type": "long"}, {"name": "email_address", "type": "string"}],
        }
    )
    schema = {"type": "AVRO", "definition": definition}
    httpx.post(f"{running.url}/v1/projects/p/schemas?schemaId=gateway", json=schema, timeout=60).raise_for_status()
    strict = Topic(
        running, "gateway-strict", {"schemaSettings": {"schema": "projects/p/schemas/gateway", "encoding": "JSON"}}
    )
    log = tmp_path / "log"
    with GatewayProcess(log, running.host, topic=strict.path) as gateway:
        answer = gateway.post(b'{"user_id": 5, "settings": "s3cret"}')
        assert (answer.status_code, answer.json()["reason"]) == (400, "refused")
        assert len(gateway.events("gateway.refused")) == 1
        assert "s3cret" not in answer.text + log.read_text()


def test_an_outage_is_503_in_time_and_passes(tmp_path: Path) -> None:
    """The emulator goes and comes back: 503 that says how to go on, then 202 without a restart."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        with required_emulator(tmp_path / "first", port) as first:
            Topic(first, "users")
            gateway = stack.enter_context(GatewayProcess(tmp_path / "log", first.host, "--give-up-after", "2"))
            assert gateway.post().status_code == 202
        began = time.monotonic()
        answer = gateway.post()
        assert time.monotonic() - began < 2 + settings.GATEWAY_MARGIN_SECONDS + SLACK_SECONDS
        assert (answer.status_code, answer.json()["reason"]) == (503, "unreachable")
        assert answer.headers["retry-after"] == str(settings.GATEWAY_RETRY_AFTER_SECONDS)
        assert "harmless" in answer.json()["error"]
        assert gateway.state() == "serving"
        with required_emulator(tmp_path / "second", port) as second:
            Topic(second, "users")
            wait_until(lambda: gateway.post().status_code == 202, "the end of the outage")


def test_pubsub_is_found_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection to the real Pub/Sub, too, is tried again every few seconds: gRPC's own pause grows to two minutes."""
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.auth.default", lambda *_, **__: (AnonymousCredentials(), "p"))  # type: ignore[no-untyped-call]
    told: list[dict[str, Any]] = []
    create_channel = PublisherGrpcTransport.create_channel

    def spy(host: str, **arguments: Any) -> Any:
        told.append(arguments)
        return create_channel(host, **arguments)

    monkeypatch.setattr(PublisherGrpcTransport, "create_channel", staticmethod(spy))
    Publisher("projects/p/topics/users").close()
    [arguments] = told
    options = dict(arguments["options"])
    assert options["grpc.max_reconnect_backoff_ms"] == settings.RECONNECT_MAXIMUM_SECONDS * 1000
    assert "grpc.max_send_message_length" in options  # Google's own are kept


def test_sigterm_answers_what_is_in_flight(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """A user whose message Pub/Sub has not accepted yet gets its 202 after SIGTERM; then the exit code is 0."""
    with Valve(running.host) as valve, GatewayProcess(tmp_path / "log", valve.host, topic=topic.path) as gateway:
        valve.shut()
        answer = gateway.posting(b'{"user_id": 6}')
        assert valve.held.wait(30)
        gateway.send(signal.SIGTERM)
        wait_until(lambda: gateway.state() == "draining", "draining")
        late = gateway.post()
        assert (late.status_code, late.json()["reason"]) == (503, "busy")
        valve.opened.set()
        assert answer().status_code == 202
        assert gateway.wait() == 0
        assert users_of(topic.pull(1)) == {answer().json()["message_id"]: UserCreated(user_id=6)}


def test_sigterm_ends_in_time_although_pubsub_hangs(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """The sender is told that the outcome is unknown, within the platform's 10 s; the exit code is 0."""
    with Valve(running.host) as valve, GatewayProcess(tmp_path / "log", valve.host, topic=topic.path) as gateway:
        valve.shut()
        answer = gateway.posting()
        assert valve.held.wait(30)
        gateway.send(signal.SIGTERM)
        assert gateway.wait() == 0
        assert (answer().status_code, answer().json()["reason"]) == (503, "not_confirmed")
        assert len(gateway.events("gateway.undrained")) == 1


def test_a_second_signal_leaves_at_once(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """Long before the drain's time limit; the exit code is 1."""
    with Valve(running.host) as valve, GatewayProcess(tmp_path / "log", valve.host, topic=topic.path) as gateway:
        valve.shut()
        gateway.posting()
        assert valve.held.wait(30)
        gateway.send(signal.SIGTERM)
        wait_until(lambda: gateway.state() == "draining", "draining")
        began = time.monotonic()
        gateway.send(signal.SIGTERM)
        assert gateway.wait() == 1
        assert time.monotonic() - began < settings.GATEWAY_DRAIN_SECONDS / 2
        assert len(gateway.events("gateway.aborted")) == 1


def test_a_sender_that_is_killed_does_not_stop_its_publish(running: Emulator, topic: Topic, tmp_path: Path) -> None:
    """The message of a broken connection still reaches the subscription."""
    with Valve(running.host) as valve, GatewayProcess(tmp_path / "log", valve.host, topic=topic.path) as gateway:
        valve.shut()
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sender:
            head = f"POST /users HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n\r\n"
            sender.sendall(head.encode() + BODY)
            assert valve.held.wait(30)
        valve.opened.set()
        assert list(users_of(topic.pull(1)).values()) == [UserCreated(user_id=5)]


def test_a_port_that_is_taken_ends_with_2(running: Emulator, tmp_path: Path) -> None:
    """Wrong settings are told and left, before anything is served."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "publisher", "serve", "--host", "127.0.0.1"]
        command += ["--port", str(taken.getsockname()[1]), "--topic", "projects/p/topics/users"]
        environment = {**os.environ, "PUBSUB_EMULATOR_HOST": running.host}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "set PORT to another one" in done.stderr
