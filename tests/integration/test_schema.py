"""The topic's schema on the real emulator: what Pub/Sub refuses at publish, what it lets through; the commands."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.ports import free_port
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.recorder import Recorder
from local.stack import TOPIC, stack
from local.worker_process import ROOT, wait_until
from publisher.client import Publisher
from publisher.errors import RefusedError, TopicNotFoundError
from publisher.message import Message
from tests.entries import CATALOG
from worker.events.catalog import Catalog
from worker.events.declaration import MAX_DATA_BYTES, MessageError
from worker.events.users import MAX_CREATED_AT, MAX_USER_ID, MIN_USER_ID, USER_CREATED, UserCreated
from worker.operations.events import avro

pytestmark = pytest.mark.slow

PROJECT = "local"
SCHEMA = "user-created"
DEFINITION = (ROOT / "deploy" / "schema.avsc").read_text()
ROW = re.compile(r"^\| `(.+)` \| (taken|refused) \| (?:`(\w+)`|accepted) \|$", re.MULTILINE)


def section(file: str, heading: str) -> str:
    """A section of a page of docs/, without its heading."""
    _, found, text = (ROOT / "docs" / file).read_text().partition(f"\n## {heading}\n")
    assert found, f"docs/{file} has no section {heading!r}"
    return text.partition("\n## ")[0]


ROWS = ROW.findall(section("message-format.md", "The topic's schema"))
"""Data, `taken` or `refused`, and the reason code or an empty string, as the documentation has them."""
TAKEN_ALTHOUGH_BAD = [data for data, verdict, reason in ROWS if verdict == "taken" and reason]


def commands() -> list[str]:
    """The documented commands, in order, each on one line."""
    blocks = re.findall(r"```sh\n(.*?)```", section("operations.md", "The topic's schema"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


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


def add_topic(host: Emulator, topic: str, name: str = SCHEMA, definition: str = DEFINITION) -> None:
    """Create the schema if need be, and a topic with it."""
    schema = {"type": "AVRO", "definition": definition}
    created = httpx.post(
        f"{host.url}/v1/projects/{PROJECT}/schemas?schemaId={name}", json=schema, trust_env=False, timeout=60
    )
    if created.status_code != httpx.codes.CONFLICT:  # another test of this module was first
        created.raise_for_status()
    body = {"schemaSettings": {"schema": f"projects/{PROJECT}/schemas/{name}", "encoding": "JSON"}}
    httpx.put(f"{host.url}/v1/projects/{PROJECT}/topics/{topic}", json=body, trust_env=False, timeout=60).raise_for_status()


@pytest.fixture(scope="module")
def checked(running: Emulator) -> Emulator:
    """The emulator with a topic `checked` that has the schema."""
    add_topic(running, "checked")
    return running


def publish(host: Emulator, data: bytes, attributes: dict[str, str] | None = None, topic: str = "checked") -> str:
    """Publish without any client in between: `taken` or `refused`."""
    message: dict[str, Any] = {"data": base64.b64encode(data).decode(), "attributes": attributes or {}}
    url = f"{host.url}/v1/projects/{PROJECT}/topics/{topic}:publish"
    answer = httpx.post(
        url, json={"messages": [message]}, timeout=60, trust_env=False, verify=False
    )  # loads no certificates
    if answer.status_code == httpx.codes.BAD_REQUEST:
        assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"
        return "refused"
    answer.raise_for_status()
    return "taken"


def reason(data: bytes, attributes: dict[str, str] | None = None) -> str:
    """The format's reason code, or an empty string for a message that it accepts."""
    try:
        CATALOG.event(attributes or {}).decode(data)
    except MessageError as error:
        return str(error.reason)
    return ""


def gcloud(host: Emulator, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of gcloud, as it stands, against an empty project of the emulator."""
    words = shlex.split(command, comments=True)
    assert words[0] == "gcloud", command
    environment = os.environ | host.gcloud_env() | {"CLOUDSDK_CORE_PROJECT": "documented"}
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_the_documentation_shows_both_kinds() -> None:
    """The table has good messages, bad ones that are refused, and bad ones that are let through; no good one is refused."""
    kinds = {(verdict, bool(bad)) for _, verdict, bad in ROWS}
    assert kinds == {("taken", False), ("refused", True), ("taken", True)}
    assert len(ROWS) > 20


@pytest.mark.parametrize(("data", "verdict", "code"), ROWS)
def test_each_documented_row_is_so(checked: Emulator, data: str, verdict: str, code: str) -> None:
    """What docs/message-format.md says of this message is what the emulator does at publish, and what the format says."""
    assert (publish(checked, data.encode()), reason(data.encode())) == (verdict, code)


def test_what_the_documentation_says_in_words_is_so(checked: Emulator) -> None:
    """Empty data, bytes that are no UTF-8, a foreign event type, and the one good message that is refused."""
    assert publish(checked, b"", {"user_id": "5"}) == "refused"
    broken = b'{"user_id": 5, "settings": "\xff"}'
    assert (publish(checked, broken), reason(broken)) == ("taken", "not_utf8")
    foreign = {"event_type": "user.renamed"}
    assert (publish(checked, b'{"user_id": 5}', foreign), reason(b'{"user_id": 5}', foreign)) == ("taken", "unknown_event")
    for digits, verdict in ((1000, "taken"), (1001, "refused")):
        long = b'{"user_id": 5, "newer": %s}' % (b"9" * digits)
        assert (publish(checked, long), reason(long)) == (verdict, "")


def test_everything_our_publisher_writes_is_taken(checked: Emulator) -> None:
    """All combinations of the optional fields, at both ends of every range; nulls as other publishers may write them."""
    texts = (None, "", "five@example.com", '"}\\{\n\t\u2028', "é\U0001f600")
    times = (None, 0, MAX_CREATED_AT)
    for user_id, email, text, time in itertools.product((MIN_USER_ID, MAX_USER_ID), texts, texts, times):
        user = UserCreated(user_id=user_id, email_address=email, settings=text, created_at=time)
        assert publish(checked, USER_CREATED.encode(user)) == "taken", user
        fields = {"email_address": email, "settings": text, "created_at": time, "user_id": user_id}
        assert publish(checked, json.dumps(fields).encode()) == "taken", fields


@pytest.mark.parametrize("before", [True, False])
def test_a_message_near_the_size_limit_is_taken(checked: Emulator, before: bool) -> None:
    """The emulator's JSON reader has no limit below Pub/Sub's own, wherever the large field stands."""
    large = '"settings": "' + "x" * (MAX_DATA_BYTES - 10_000) + '"'
    data = f'{{{large}, "user_id": 5}}' if before else f'{{"user_id": 5, {large}}}'
    assert publish(checked, data.encode()) == "taken"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
users = st.builds(
    UserCreated,
    user_id=st.integers(MIN_USER_ID, MAX_USER_ID),
    email_address=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50),
    settings=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50),
    created_at=st.none() | st.integers(0, MAX_CREATED_AT),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user=users, newer=st.dictionaries(st.text(max_size=8), values, max_size=4), order=st.randoms(use_true_random=False))
def test_whatever_the_format_accepts_is_taken(
    checked: Emulator, user: UserCreated, newer: dict[str, Any], order: Any
) -> None:
    """Any user, with any fields of a newer publisher around it, in any order."""
    fields = list((newer | json.loads(USER_CREATED.encode(user))).items())
    order.shuffle(fields)
    data = json.dumps(dict(fields)).encode()
    assert reason(data) == ""
    assert publish(checked, data) == "taken"


def test_the_schema_of_another_event_takes_its_messages(running: Emulator) -> None:
    """The one of several required fields, which `worker schema` prints: in any order, with others between; never a part."""
    definition = json.dumps(avro(Catalog.load("examples.orders"), "order.changed"))
    add_topic(running, "orders", "order-changed", definition)
    fields: dict[str, Any] = {
        "order_id": "A-1",
        "note": None,
        "customer_id": 5,
        "total_cents": 0,
        "newer": [{}],
        "revision": 2,
    }
    for order in itertools.permutations(fields):
        if order.index("order_id") in (0, 5):
            assert publish(running, json.dumps({name: fields[name] for name in order}).encode(), topic="orders") == "taken"
    for name in ("order_id", "customer_id", "total_cents", "revision"):
        short = json.dumps({other: value for other, value in fields.items() if other != name}).encode()
        assert publish(running, short, topic="orders") == "refused", name


def test_our_publisher_is_told_of_a_refusal(checked: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that only another schema takes: `RefusedError`, and the good ones beside it are accepted."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", checked.host)
    good = USER_CREATED.encode
    monkeypatch.setattr(
        Message, "data", property(lambda each: b'{"user": 5}' if each.key["user_id"] == 5 else good(each.content))
    )
    with Publisher(f"projects/{PROJECT}/topics/checked") as sink:
        futures = {number: sink.publish(Message(USER_CREATED, UserCreated(user_id=number))) for number in (4, 5, 6)}
    assert isinstance(futures[5].exception(0), RefusedError)
    assert all(futures[number].result(0) for number in (4, 6))


def test_the_documented_commands_work_in_order(running: Emulator) -> None:
    """Each command in docs/operations.md, with gcloud itself; then the README's example is taken and a bad one refused."""
    good, bad = (
        "gcloud pubsub topics publish users --message='{\"user_id\": 5}'",
        "gcloud pubsub topics publish users --message=no",
    )
    revision, detached = "", False
    for command in commands():
        done = gcloud(running, command.replace("REVISION", revision or "REVISION"))
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "list-revisions" in command:
            revision = done.stdout.split()[-3]
        if " topics create " in command or " topics update " in command:
            detached = "--clear-schema-settings" in command
            published = gcloud(running, bad)
            assert (published.returncode == 0) is detached, command
            assert detached or "INVALID_ARGUMENT" in published.stderr
            assert gcloud(running, good).returncode == 0
    assert revision
    assert detached, "the last of them detaches the schema"


def test_publishing_fails_while_the_attached_schema_is_deleted(running: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why docs/operations.md says: detach first."""
    schema = {"type": "AVRO", "definition": DEFINITION}
    schemas = f"{running.url}/v1/projects/{PROJECT}/schemas"
    httpx.post(f"{schemas}?schemaId=short-lived", json=schema, trust_env=False, timeout=60).raise_for_status()
    topic = f"projects/{PROJECT}/topics/orphan"
    body = {"schemaSettings": {"schema": f"projects/{PROJECT}/schemas/short-lived", "encoding": "JSON"}}
    httpx.put(f"{running.url}/v1/{topic}", json=body, trust_env=False, timeout=60).raise_for_status()
    httpx.delete(f"{schemas}/short-lived", trust_env=False, timeout=60).raise_for_status()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.host)
    with Publisher(topic) as sink:
        future = sink.publish(Message(USER_CREATED, UserCreated(user_id=5)))
    assert isinstance(future.exception(0), TopicNotFoundError)


def test_the_worker_takes_what_the_schema_lets_through(tmp_path: Path) -> None:
    """INV-6: each message that only the worker can refuse is acknowledged, and so is a good one among them."""
    with stack(tmp_path) as whole:
        if whole.pubsub is None:
            if os.environ.get("CI"):
                pytest.fail(whole.why_not)
            pytest.skip(whole.why_not)
        add_topic(whole.pubsub, TOPIC)
        with Recorder(whole.worker.url, free_port()) as recorder:
            whole.subscribe(recorder.url)
            for data in (*TAKEN_ALTHOUGH_BAD, '{"user_id": 5}'):
                assert publish(whole.pubsub, data.encode(), topic=TOPIC) == "taken"
            expected = len(TAKEN_ALTHOUGH_BAD) + 1
            wait_until(lambda: len(recorder.acknowledged) == expected, "every acknowledgement")
            assert recorder.refused == 0
        row = httpx.get(f"{whole.worker.url}/users/5", trust_env=False, timeout=60).raise_for_status()
        assert row.json()["user_id"] == 5
