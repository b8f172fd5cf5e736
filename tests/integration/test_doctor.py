"""`worker doctor` on a served store with the real Litestream and the real emulator, and on set-ups broken one way each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.cloud import pubsub_v1

from local.gcs_process import FakeGcs
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.worker_process import ROOT, WorkerProcess
from tests.processes import PREFIX, QUICK, URL, Objects, push
from tests.unit.operations.test_doctor import documented
from worker.replica.litestream import find_binary

pytestmark = pytest.mark.slow

PROBES = ("create when absent", "create over an existing object", "update at its generation", "update at a stale generation")


@pytest.fixture
def objects(fake_gcs: FakeGcs) -> Iterator[Objects]:
    """The bucket's objects, with a store."""
    found = Objects(fake_gcs)
    found.initialize()
    yield found
    found.close()


@pytest.fixture
def place(tmp_path: Path, fake_gcs: FakeGcs, objects: Objects) -> Place:
    """Where commands run: a machine with good settings and an initialized store."""
    return Place(tmp_path, fake_gcs)


class Place:
    """Settings, and the commands under them."""

    def __init__(self, directory: Path, gcs: FakeGcs) -> None:
        self._directory, self._gcs = directory, gcs

    def worker(self, url: str = URL, **settings: str) -> WorkerProcess:
        """A worker that is not started."""
        return WorkerProcess(
            disk=self._directory / "disk",
            replica_url=url,
            environment={**self._gcs.environment(), **QUICK, **settings},
            port=0,
            log=self._directory / "worker.log",
        )

    def doctor(self, url: str = URL, **settings: str) -> tuple[int, dict[str, dict[str, str]]]:
        """The exit code, and the findings by their checks."""
        return examined(self.worker(url, **settings))


def examined(worker: WorkerProcess) -> tuple[int, dict[str, dict[str, str]]]:
    """What the doctor says of a worker's settings."""
    done = worker.run("doctor", "--json")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {each["check"]: each for each in json.loads(done.stdout)["findings"]}


def refused(found: dict[str, dict[str, str]]) -> set[str]:
    """The checks that are refused; each has its next step."""
    wrong = {check for check, each in found.items() if each["verdict"] == "refused"}
    assert all(found[check]["next_step"] for check in wrong)
    assert found.keys() <= documented()
    return wrong


def test_a_good_set_up_beside_a_running_service(place: Place, objects: Objects) -> None:
    """Everything is ok, exit 0; the service goes on, and the bucket holds nothing of the doctor's."""
    worker = place.worker().start()
    try:
        worker.wait_serving()
        assert push(worker, 1, "m1").status_code == 204
        code, found = examined(worker)
        assert (code, refused(found)) == (0, set())
        assert {check for check, each in found.items() if each["verdict"] != "ok"} == {"senders", "subscription"}
        assert {f"preconditions: {probe}" for probe in PROBES} <= found.keys()
        assert found["store"]["found"].startswith("held by ")
        assert "0.5.17" in found["litestream version"]["found"]
        assert found["litestream upload"]["found"] == "transaction 1 was uploaded through the gate and confirmed"
        assert found["litestream's SQLite"]["found"] == "3.53.0"
        assert objects.names(f"{PREFIX}/doctor/") == []
        assert push(worker, 2, "m2").status_code == 204
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_store_that_ignores_preconditions_is_refused(place: Place, fake_gcs: FakeGcs, objects: Objects) -> None:
    """INV-2: exit 1; the lines name the two probes that failed, and say not to serve."""
    fake_gcs.stop()
    fake_gcs.preconditions = False
    fake_gcs.start()
    code, found = place.doctor()
    assert code == 1
    assert refused(found) == {f"preconditions: {PROBES[1]}", f"preconditions: {PROBES[3]}"}
    for probe in refused(found):
        assert "was accepted, though" in found[probe]["found"]
        assert found[probe]["next_step"].startswith("do not serve from this store: two instances could both hold the lease")
    assert objects.names(f"{PREFIX}/doctor/") == []


def test_people_read_the_failed_probe_and_its_next_step_on_one_line(place: Place, fake_gcs: FakeGcs) -> None:
    """The same without --json."""
    fake_gcs.stop()
    fake_gcs.preconditions = False
    fake_gcs.start()
    done = place.worker().run("doctor")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if PROBES[1] in line]
    assert line.startswith("refused ")
    assert "; next: do not serve from this store" in line
    assert done.stdout.splitlines()[-1] == "refused: 2, warnings: 0"


def test_another_litestream_is_refused(place: Place, tmp_path: Path) -> None:
    """A program that calls itself by an older version, and does not replicate: both are said."""
    other = tmp_path / "litestream"
    other.write_text('#!/bin/sh\n[ "$1" = version ] && echo v0.5.8\n')
    other.chmod(0o755)
    code, found = place.doctor(LITESTREAM_BIN=str(other))
    assert code == 1
    assert refused(found) == {"litestream version", "litestream socket"}
    assert found["litestream version"]["found"].startswith("0.5.8: older than 0.5.17")
    assert found["litestream's SQLite"]["found"] == "unknown: Litestream has written nothing"


def test_a_socket_that_is_not_enabled_is_refused(place: Place, tmp_path: Path) -> None:
    """Litestream itself goes on without it; the doctor names the configuration."""
    shipped = (ROOT / "worker" / "replica" / "litestream.yml").read_text()
    assert "socket:\n  enabled: true\n" in shipped
    without = tmp_path / "litestream.yml"
    without.write_text(shipped.replace("socket:\n  enabled: true\n", "socket:\n  enabled: false\n"))
    code, found = place.doctor(LITESTREAM_CONFIG=str(without))
    assert (code, refused(found)) == (1, {"litestream socket"})
    assert "did not open within 10 s" in found["litestream socket"]["found"]
    assert str(without) in found["litestream socket"]["next_step"]


@pytest.mark.parametrize(
    ("url", "said", "step"),
    [
        ("gs://nowhere/store", "no such bucket", "create it, or correct REPLICA_URL"),
        ("gs://users/stroe", "there is no lease.json at gs://users/stroe", "run `python -m worker init` once"),
    ],
)
def test_a_mistyped_url_is_refused(place: Place, objects: Objects, url: str, said: str, step: str) -> None:
    """INV-5: no bucket and no store are two different lines; nothing is made there."""
    code, found = place.doctor(url)
    assert code == 1
    assert any(said in found[check]["found"] and step in found[check]["next_step"] for check in refused(found))
    assert objects.names("stroe/") == []


def test_a_bucket_that_denies_writing_is_not_taken_for_a_broken_store(place: Place, fake_gcs: FakeGcs) -> None:
    """The role that is missing is named, by the lease's client and by Litestream's."""
    fake_gcs.faults.add(action="error", verb="insert", status=403)
    code, found = place.doctor()
    assert code == 1
    assert refused(found) == {"litestream upload", f"preconditions: {PROBES[0]}"}
    assert all("roles/storage.objectUser" in found[check]["next_step"] for check in refused(found))


def test_an_outage_is_said_once_and_nothing_is_concluded(place: Place, fake_gcs: FakeGcs) -> None:
    """Preconditions are not judged by a bucket that does not answer."""
    fake_gcs.faults.add(action="error", status=503)
    code, found = place.doctor(ACK_DEADLINE_SECONDS="10")
    assert code == 1
    assert refused(found) == {"litestream upload", "store"}
    assert "look at the network" in found["store"]["next_step"]
    assert found["preconditions"]["verdict"] == "note"


def of_version(place: Path, version: str) -> Path:
    """The real Litestream, which says that it is of another version."""
    other = place / "other-litestream"
    other.write_text(f'#!/bin/sh\n[ "$1" = version ] && exec echo {version}\nexec {find_binary("litestream")} "$@"\n')
    other.chmod(0o755)
    return other


def test_serve_refuses_an_older_litestream(place: Place, objects: Objects, tmp_path: Path) -> None:
    """Exit 2 and the next step, before the lease is taken."""
    ended = place.worker(LITESTREAM_BIN=str(of_version(tmp_path, "0.5.16"))).run("serve")
    assert ended.returncode == 2
    assert "litestream version: 0.5.16: older than 0.5.17" in ended.stderr
    assert "install the pinned version" in ended.stderr
    assert objects.record()["state"] == "released"


def test_serve_warns_and_serves(place: Place, tmp_path: Path) -> None:
    """A newer Litestream and too little memory are warnings with their action."""
    newer = str(of_version(tmp_path, "0.5.18"))
    worker = place.worker(LITESTREAM_BIN=newer, QUEUE_MAX_BYTES=str(10**15)).start()
    try:
        worker.wait_serving()
        logged = [json.loads(line) for line in worker.log.read_text().splitlines()]
        warned = [line["message"] for line in logged if line.get("action") == "doctor.warning"]
        assert [message.partition(":")[0] for message in warned] == ["litestream version", "memory"]
        assert worker.stop() == 0
    finally:
        worker.kill()


# The subscription, on the real emulator.


@pytest.fixture(scope="module")
def pubsub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """The real emulator; on CI it must be there."""
    try:
        with emulator(tmp_path_factory.mktemp("pubsub"), "local") as started:
            yield started
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


GOOD: dict[str, Any] = {
    "ack_deadline_seconds": 60,
    "push_config": {"push_endpoint": "http://127.0.0.1:9/"},
    "retain_acked_messages": True,
    "message_retention_duration": timedelta(days=7),
    "expiration_policy": {},
    "retry_policy": {"minimum_backoff": timedelta(seconds=1), "maximum_backoff": timedelta(seconds=600)},
    "dead_letter_policy": {"dead_letter_topic": "projects/local/topics/dead", "max_delivery_attempts": 100},
}


@pytest.fixture(scope="module")
def subscriptions(pubsub: Emulator) -> Emulator:
    """A good subscription, one with another deadline, one with a token, and one made without options."""
    token = {"service_account_email": "pusher@p.example", "audience": "https://worker.example"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", pubsub.host)
        publisher = pubsub_v1.PublisherClient()
        for topic in ("users", "dead"):
            publisher.create_topic(name=f"projects/local/topics/{topic}")
        publisher.transport.close()
        with pubsub_v1.SubscriberClient() as client:
            for name, options in {
                "good": GOOD,
                "deadline": {**GOOD, "ack_deadline_seconds": 10},
                "token": {**GOOD, "push_config": {**GOOD["push_config"], "oidc_token": token}},
                "bare": {},
            }.items():
                full = {"name": f"projects/local/subscriptions/{name}", "topic": "projects/local/topics/users", **options}
                client.create_subscription(request=full)
    return pubsub


def of(subscription: str, host: Emulator) -> dict[str, str]:
    """The settings that name a subscription of the emulator."""
    return {"SUBSCRIPTION": subscription, "GOOGLE_CLOUD_PROJECT": "local", "PUBSUB_EMULATOR_HOST": host.host}


def test_a_good_subscription_is_ok(place: Place, subscriptions: Emulator) -> None:
    """Each of its lines but the token, which is not wanted here."""
    code, found = place.doctor(**of("good", subscriptions))
    lines = {check: each["verdict"] for check, each in found.items() if check.startswith("subscription")}
    assert code == 0
    assert {check for check, verdict in lines.items() if verdict != "ok"} == {"subscription: token"}
    assert len(lines) == 9


def test_a_wrong_ack_deadline_is_refused(place: Place, subscriptions: Emulator) -> None:
    """With both values, and how to make them one."""
    code, found = place.doctor(**of("deadline", subscriptions))
    assert (code, refused(found)) == (1, {"subscription: ack deadline"})
    assert found["subscription: ack deadline"]["found"] == "10 s, and ACK_DEADLINE_SECONDS is 60"
    assert "ACK_DEADLINE_SECONDS=10" in found["subscription: ack deadline"]["next_step"]


def test_a_subscription_without_options_shows_all_it_lacks(place: Place, subscriptions: Emulator) -> None:
    """It pulls, its deadline is the default, and it keeps and retries nothing."""
    code, found = place.doctor(**of("bare", subscriptions))
    assert (code, refused(found)) == (1, {"subscription: ack deadline", "subscription: push"})
    warned = {check.removeprefix("subscription: ") for check, each in found.items() if each["verdict"] == "warning"}
    assert warned == {"retry policy", "replay", "dead letters"}
    assert found["subscription: expiration"]["found"] == "the emulator does not tell"


def test_a_token_is_compared_with_the_settings(place: Place, subscriptions: Emulator) -> None:
    """The same is only the emulator's warning; another audience is refused."""
    account = {"PUSH_SERVICE_ACCOUNT": "pusher@p.example", **of("token", subscriptions)}
    code, found = place.doctor(PUSH_AUDIENCE="https://worker.example", **account)
    assert (code, found["subscription: token"]["verdict"]) == (0, "warning")
    code, found = place.doctor(PUSH_AUDIENCE="https://other.example", **account)
    assert (code, refused(found)) == (1, {"subscription: token"})


def test_a_subscription_that_is_not_there_is_refused(place: Place, subscriptions: Emulator) -> None:
    """By its full name; and so is an id without its project."""
    code, found = place.doctor(**of("nowhere", subscriptions))
    assert (code, refused(found)) == (1, {"subscription"})
    assert "projects/local/subscriptions/nowhere" in found["subscription"]["found"]
    code, found = place.doctor(**{**of("good", subscriptions), "GOOGLE_CLOUD_PROJECT": ""})
    assert (code, refused(found)) == (1, {"subscription"})
