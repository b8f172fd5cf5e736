"""deploy/pubsub.sh with the real gcloud on the real emulator: what it creates, what it changes, and where it stops."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from google.cloud import pubsub_v1

from local.ports import free_port
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.worker_process import ROOT
from tests.warm_gcloud import warm_gcloud

pytestmark = pytest.mark.slow

PROJECT = "local"
SCRIPT = ROOT / "deploy" / "pubsub.sh"
ENDPOINT = "http://127.0.0.1:9/"
WEEK = timedelta(days=7)
EMULATOR_LIMITS = {"DEAD_LETTER_RETENTION": "7d"}
"""The emulator keeps no message longer; the service does, up to 31 days."""


@pytest.fixture(scope="session", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each command of gcloud without the time that it takes to load."""
    with warm_gcloud(tmp_path_factory.mktemp("gcloud")) as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        yield


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """The real emulator; on CI it must be there."""
    try:
        with emulator(tmp_path_factory.mktemp("pubsub"), PROJECT) as started:
            yield started
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def run(arguments: tuple[str, ...], variables: dict[str, str], script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """Run the script with these variables and nothing else that could point it anywhere."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    command = [str(script), *arguments]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=False, timeout=120)


def variables_for(host: Emulator, **variables: str) -> dict[str, str]:
    """What points it at the emulator, and settings on top."""
    return {"ENDPOINT": ENDPOINT} | EMULATOR_LIMITS | host.gcloud_env() | variables


def deploy(host: Emulator, project: str = PROJECT, **variables: str) -> list[list[str]]:
    """Run it against the emulator; the commands it printed."""
    done = run((project,), variables_for(host, **variables))
    assert done.returncode == 0, done.stderr
    return printed(done.stdout)


def printed(text: str) -> list[list[str]]:
    """The commands among what it printed, each as its words."""
    return [shlex.split(line.removeprefix("+ ")) for line in text.splitlines() if line.startswith("+ ")]


def verbs(commands: list[list[str]]) -> list[str]:
    """What the commands do, and to what: `topics create users`."""
    return [" ".join(word for word in command[2:5] if not word.startswith("-")) for command in commands]


def everything(host: Emulator, project: str = PROJECT) -> dict[str, Any]:
    """All that the project has, as the emulator's REST interface tells it."""
    base = f"{host.url}/v1/projects/{project}"
    kinds = ("topics", "subscriptions", "schemas")
    return {kind: httpx.get(f"{base}/{kind}", trust_env=False, timeout=60).raise_for_status().json() for kind in kinds}


def subscription_of(host: Emulator, name: str, project: str = PROJECT) -> Any:
    """A subscription's settings, through Google's own client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", host.host)
        with pubsub_v1.SubscriberClient() as client:
            return client.get_subscription(subscription=f"projects/{project}/subscriptions/{name}")


def topic_of(host: Emulator, name: str, project: str = PROJECT) -> Any:
    """A topic's settings, likewise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", host.host)
        client = pubsub_v1.PublisherClient()
        topic = client.get_topic(topic=f"projects/{project}/topics/{name}")
        client.transport.close()
        return topic


@pytest.fixture(scope="module")
def deployed(running: Emulator) -> Emulator:
    """The emulator after the script's first run, with its defaults."""
    assert verbs(deploy(running)) == [
        "schemas validate-message",
        "schemas create user-created",
        "topics create users",
        "topics create users-dead-letters",
        "subscriptions create users-dead-letters",
        "subscriptions create users-worker",
    ]
    return running


def test_the_topic_has_its_schema_and_retention(deployed: Emulator) -> None:
    """The schema is the file's, messages are checked as JSON, and each is kept for a week."""
    topic = topic_of(deployed, "users")
    assert topic.schema_settings.schema == f"projects/{PROJECT}/schemas/user-created"
    assert topic.schema_settings.encoding.name == "JSON"
    assert topic.message_retention_duration == WEEK
    schema = httpx.get(f"{deployed.url}/v1/projects/{PROJECT}/schemas/user-created", trust_env=False, timeout=60).json()
    assert json.loads(schema["definition"]) == json.loads((ROOT / "deploy" / "schema.avsc").read_text())


def test_the_subscription_pushes_and_gives_up_late(deployed: Emulator) -> None:
    """Each setting of the worker's subscription."""
    found = subscription_of(deployed, "users-worker")
    assert found.topic == f"projects/{PROJECT}/topics/users"
    assert found.push_config.push_endpoint == ENDPOINT
    assert not found.push_config.oidc_token.service_account_email
    assert found.ack_deadline_seconds == 60
    assert (found.retry_policy.minimum_backoff, found.retry_policy.maximum_backoff) == (
        timedelta(seconds=1),
        timedelta(seconds=600),
    )
    assert found.retain_acked_messages
    assert found.message_retention_duration == WEEK
    assert never_expires(found)
    assert found.dead_letter_policy.dead_letter_topic == f"projects/{PROJECT}/topics/users-dead-letters"
    assert found.dead_letter_policy.max_delivery_attempts == 100


def test_dead_letters_are_kept(deployed: Emulator) -> None:
    """The dead-letter topic has no schema, and a pull subscription that never expires and keeps what was acknowledged."""
    assert not topic_of(deployed, "users-dead-letters").schema_settings.schema
    found = subscription_of(deployed, "users-dead-letters")
    assert found.topic == f"projects/{PROJECT}/topics/users-dead-letters"
    assert not found.push_config.push_endpoint
    assert found.retain_acked_messages
    assert never_expires(found)


def never_expires(subscription: Any) -> bool:
    """A policy is there and has no time to live; without a policy it would be 31 days."""
    return "expiration_policy" in subscription and not subscription.expiration_policy.ttl


def test_a_second_run_changes_nothing(deployed: Emulator) -> None:
    """It only updates, with the same values, and commits no further revision."""
    before = everything(deployed)
    again = verbs(deploy(deployed))
    assert not [verb for verb in again if " create" in verb or " commit" in verb]
    assert everything(deployed) == before


def test_settings_are_brought_in_line(running: Emulator) -> None:
    """What a later run is told otherwise is changed, in both directions."""
    names = {"TOPIC": "t-1", "SUBSCRIPTION": "s-1", "DEAD_LETTERS": "d-1"}
    plain = names | {"SCHEMA": ""}
    account = {"PUSH_SERVICE_ACCOUNT": "pusher@local.iam.gserviceaccount.com", "PUSH_AUDIENCE": "https://worker"}
    other = names | account | {"ACK_DEADLINE_SECONDS": "30", "MAX_DELIVERY_ATTEMPTS": "50"}
    attached = "projects/second/schemas/user-created"
    steps: list[tuple[dict[str, str], str, int, int, str, str]] = [
        (plain, "", 60, 100, "", ""),
        (other, attached, 30, 50, account["PUSH_SERVICE_ACCOUNT"], account["PUSH_AUDIENCE"]),
        (plain, "", 60, 100, "", ""),
    ]
    for variables, schema, deadline, attempts, email, audience in steps:
        deploy(running, "second", **variables)
        assert topic_of(running, "t-1", "second").schema_settings.schema == schema
        found = subscription_of(running, "s-1", "second")
        assert (found.ack_deadline_seconds, found.dead_letter_policy.max_delivery_attempts) == (deadline, attempts)
        token = found.push_config.oidc_token
        assert (token.service_account_email, token.audience) == (email, audience)


def avro(*fields: dict[str, Any]) -> str:
    """An Avro schema with these fields."""
    return json.dumps({"type": "record", "name": "UserCreated", "fields": list(fields)}, indent=1)


def test_a_changed_schema_is_committed(running: Emulator) -> None:
    """Where the schema is there with another definition, the file becomes its next revision."""
    schemas = f"{running.url}/v1/projects/third/schemas"
    older = {"type": "AVRO", "definition": avro({"name": "user_id", "type": "int"})}
    httpx.post(f"{schemas}?schemaId=user-created", json=older, trust_env=False, timeout=60).raise_for_status()
    assert "schemas commit user-created" in verbs(deploy(running, "third"))
    newer = httpx.get(f"{schemas}/user-created", trust_env=False, timeout=60).json()["definition"]
    assert newer == (ROOT / "deploy" / "schema.avsc").read_text()


def test_a_schema_that_refuses_good_messages_is_not_attached(running: Emulator, tmp_path: Path) -> None:
    """It asks first, and stops with the next step before anything is created."""
    script = Path(shutil.copy(SCRIPT, tmp_path))
    email = {"name": "email_address", "type": ["null", "string"], "default": None}
    (tmp_path / "schema.avsc").write_text(avro({"name": "user_id", "type": "long"}, email))
    done = run(("fourth",), variables_for(running), script)
    assert done.returncode == 1
    assert "run this with SCHEMA= (empty)" in done.stderr
    assert not any(everything(running, "fourth").values())


def test_a_subscription_without_its_topic_is_an_error(running: Emulator) -> None:
    """A subscription outlives its topic and gets nothing from a new one of that name: it says so."""
    base, topic = f"{running.url}/v1/projects/fifth", "projects/fifth/topics/users"
    httpx.put(f"{base}/topics/users", json={}, trust_env=False, timeout=60).raise_for_status()
    httpx.put(f"{base}/subscriptions/users-worker", json={"topic": topic}, trust_env=False, timeout=60).raise_for_status()
    httpx.delete(f"{base}/topics/users", trust_env=False, timeout=60).raise_for_status()
    done = run(("fifth",), variables_for(running, SCHEMA=""))
    assert done.returncode == 1
    assert "users-worker belongs to _deleted-topic_: delete it" in done.stderr


@pytest.fixture
def pretender(tmp_path: Path) -> dict[str, str]:
    """Settings with a `gcloud` that writes down its calls, answers each look with ANSWER, and knows the project's number."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gcloud"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{shlex.quote(str(tmp_path / "calls"))}\n'
        'case "$*" in\n  "projects describe"*) echo 123 ;;\n  *" describe "*) echo "$ANSWER" >&2; exit 1 ;;\nesac\n'
    )
    program.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {"ENDPOINT": "https://worker.example.com/", "PATH": path, "ANSWER": "NOT_FOUND: no such thing"}


def test_any_other_error_ends_it(pretender: dict[str, str]) -> None:
    """Not to be seen is not the same as not to be there: nothing is created on a guess."""
    done = run(("acme",), pretender | {"ANSWER": "PERMISSION_DENIED: no", "SCHEMA": ""})
    assert done.returncode == 1
    assert "cannot look at topics users: PERMISSION_DENIED: no" in done.stderr
    assert not printed(done.stdout)


def test_a_dry_run_prints_everything_and_calls_nothing(pretender: dict[str, str], tmp_path: Path) -> None:
    """The commands for an empty project, with the two grants, in their order; gcloud is not called at all."""
    dry = run(("acme",), pretender | {"DRY_RUN": "1"})
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "calls").exists()
    assert verbs(printed(dry.stdout)) == [
        "schemas validate-message",
        "schemas create user-created",
        "topics create users",
        "topics create users-dead-letters",
        "subscriptions create users-dead-letters",
        "topics add-iam-policy-binding users-dead-letters",
        "subscriptions create users-worker",
        "subscriptions add-iam-policy-binding users-worker",
    ]
    real = run(("acme",), pretender)
    assert real.returncode == 0, real.stderr
    assert real.stdout == dry.stdout.replace("PROJECT_NUMBER", "123")
    called = [call for call in (tmp_path / "calls").read_text().splitlines() if " describe " not in call]
    assert len(called) == len(printed(real.stdout))


class Policies(BaseHTTPRequestHandler):
    """IAM as far as gcloud needs it for a grant, as the emulator has none: an empty policy, and what is made of it."""

    written: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        """Each resource's policy is empty."""
        self.answer({"etag": "BwXhqDVDPJI="})

    def do_POST(self) -> None:
        """Keep a policy under its resource's name."""
        policy = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["policy"]
        Policies.written[self.path.partition(":setIamPolicy")[0]] = policy["bindings"]
        self.answer(policy)

    def answer(self, body: dict[str, Any]) -> None:
        """Send JSON."""
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def test_the_service_agent_may_forward(pretender: dict[str, str]) -> None:
    """It may publish dead letters and acknowledge what it forwarded: the bindings that the real gcloud writes."""
    grants = [command for command in printed(run(("acme",), pretender).stdout) if "add-iam-policy-binding" in command]
    with ThreadingHTTPServer(("127.0.0.1", free_port()), Policies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = os.environ | {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://127.0.0.1:{server.server_address[1]}/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        }
        try:
            for command in grants:
                subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
        finally:
            server.shutdown()
            thread.join()
    member = "serviceAccount:service-123@gcp-sa-pubsub.iam.gserviceaccount.com"
    assert Policies.written == {
        "/v1/projects/acme/topics/users-dead-letters": [{"role": "roles/pubsub.publisher", "members": [member]}],
        "/v1/projects/acme/subscriptions/users-worker": [{"role": "roles/pubsub.subscriber", "members": [member]}],
    }


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ((), {"ENDPOINT": ENDPOINT}, "usage:"),
        (("a", "b"), {"ENDPOINT": ENDPOINT}, "usage:"),
        (("--dry",), {"ENDPOINT": ENDPOINT}, "usage:"),
        (("acme",), {}, "ENDPOINT is missing: set it"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], variables: dict[str, str], said: str) -> None:
    """Exit code 2 and what to do, before anything is looked at."""
    done = run(arguments, variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_help_names_every_setting() -> None:
    """`--help` lists each variable that the script reads, and no other."""
    done = run(("--help",), {})
    assert done.returncode == 0
    listed = set(re.findall(r"^  ([A-Z_]+)  ", done.stdout, re.MULTILINE))
    read = set(re.findall(r"\$\{([A-Z_]+)[:-]", SCRIPT.read_text()))
    assert listed == read - {"CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB"}


def documented() -> list[str]:
    """The commands of "Dead letters" in docs/operations.md, a block each."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("\n## Dead letters\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def test_dead_letters_are_published_again_as_documented(deployed: Emulator, tmp_path: Path) -> None:
    """The documented commands: look, publish again, and bring them back; a bad one ends in the file of rejects."""
    environment = deployed.gcloud_env() | {"GOOGLE_CLOUD_PROJECT": PROJECT, "TOPIC": "users", "PYTHONPATH": str(ROOT)}
    base = f"{deployed.url}/v1/projects/{PROJECT}"
    httpx.put(f"{base}/subscriptions/watch", json={"topic": f"projects/{PROJECT}/topics/users"}, trust_env=False, timeout=60)
    texts = ['{"user_id":5,"email_address":"\u00e9@example.com"}', '{"user_id":6,"created_at":7}', '{"user_id":-1}']
    dead = pubsub_messages(texts, {"CloudPubSubDeadLetterSourceDeliveryCount": "100"})
    answer = httpx.post(f"{base}/topics/users-dead-letters:publish", json=dead, trust_env=False, timeout=60)
    answer.raise_for_status()

    def shell(block: str) -> subprocess.CompletedProcess[str]:
        script = block.replace("python -m", f"{shlex.quote(sys.executable)} -m")
        command = ["bash", "-c", script]
        return subprocess.run(
            command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )

    look, again, back = documented()
    looked = shell(look)
    assert looked.returncode == 0, looked.stderr
    assert '"user_id":6' in looked.stdout
    assert "CloudPubSubDeadLetterSourceDeliveryCount=100" in looked.stdout
    returned = shell("gcloud pubsub subscriptions seek users-dead-letters --time=-P1D")  # sooner than the ack deadline
    assert returned.returncode == 0, returned.stderr
    published = shell(again)
    assert published.returncode == 1, published.stderr  # for the one that was refused
    assert (tmp_path / "bad.jsonl").read_text() == '{"user_id":-1}\n'
    pulled = httpx.post(f"{base}/subscriptions/watch:pull", json={"maxMessages": 10}, timeout=60, trust_env=False).json()
    assert len(pulled["receivedMessages"]) == 2
    assert shell(back).returncode == 0
    repeated = shell("gcloud pubsub subscriptions pull users-dead-letters --limit=10 --format='value(message.messageId)'")
    assert len(repeated.stdout.split()) == 3


def pubsub_messages(texts: list[str], attributes: dict[str, str]) -> dict[str, Any]:
    """The body of a publish request."""
    return {"messages": [{"data": base64.b64encode(text.encode()).decode(), "attributes": attributes} for text in texts]}
