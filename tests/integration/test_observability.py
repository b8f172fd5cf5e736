"""What a real worker says of itself under load, in an outage, standing by and at its end: metrics, log, traces."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from local.gcs_process import FakeGcs
from local.ports import free_port
from local.pubsub import EmulatorMissing, emulator
from local.worker_process import WorkerProcess, wait_until
from publisher import message
from tests.processes import GENERATIONS, PREFIX, QUICK, URL, Load, Objects, body, kill_9, litestream_of, push, pushing
from tests.promql import named
from tests.unit.telemetry.test_alerts import expressions
from worker.replica.drill_record import RECORD, Drill
from worker.replica.litestream_log import log as litestream_logger

pytestmark = pytest.mark.slow

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def objects(fake_gcs: FakeGcs) -> Iterator[Objects]:
    """The bucket's objects: a new store."""
    found = Objects(fake_gcs)
    found.initialize()
    yield found
    found.close()


class Watched:
    """Workers on one store, and what they say."""

    def __init__(self, directory: Path, gcs: FakeGcs) -> None:
        self._directory, self._gcs = directory, gcs
        self.made: list[WorkerProcess] = []

    def start(self, **settings: str) -> WorkerProcess:
        """A worker of which every look is fresh."""
        name = f"worker{len(self.made)}"
        environment = {
            **self._gcs.environment(),
            **QUICK,
            "LITESTREAM_METRICS_ADDRESS": f"127.0.0.1:{free_port(0)}",
            "GOOGLE_CLOUD_PROJECT": "acme",
            "K_REVISION": f"{name}-00001",
            **settings,
        }
        worker = WorkerProcess(
            disk=self._directory / name,
            replica_url=URL,
            environment=environment,
            port=0,
            log=self._directory / f"{name}.log",
        )
        self.made.append(worker)
        return worker.start()


@pytest.fixture
def watched(tmp_path: Path, fake_gcs: FakeGcs, objects: Objects) -> Iterator[Watched]:
    """Where workers come from; their logs are shown when the test fails."""
    made = Watched(tmp_path, fake_gcs)
    yield made
    for worker in made.made:
        worker.kill()
        print(worker.tail(4000))


def scrape(worker: WorkerProcess) -> Samples:
    """The page, as Prometheus reads it."""
    page = httpx.get(f"{worker.url}/metrics", timeout=10, trust_env=False).raise_for_status().text
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    read = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}
    assert len(read) == len(found), "a sample stands there twice"
    return read


def exported(worker: WorkerProcess) -> dict[str, set[str]]:
    """The names on the page as they stand there, each with its labels."""
    page = httpx.get(f"{worker.url}/metrics", timeout=10, trust_env=False).raise_for_status().text
    found: dict[str, set[str]] = {}
    for line in page.splitlines():
        if gauge := re.fullmatch(r"# TYPE (\w+) gauge", line):  # a limit of the memory is not there on every machine
            found.setdefault(gauge[1], set())
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"(\w+)(?:{(.*)})? \S+", line).groups()  # type: ignore[union-attr]  # or it fails
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


def total(samples: Samples, name: str) -> float:
    """All samples of a name together."""
    return sum(value for (sample, _), value in samples.items() if sample == name)


def lines(worker: WorkerProcess) -> list[dict[str, Any]]:
    """Its log; every line is JSON."""
    return [json.loads(line) for line in worker.log.read_text().splitlines()]


def said(worker: WorkerProcess, action: str) -> list[dict[str, Any]]:
    """The lines of one action."""
    return [line for line in lines(worker) if line["action"] == action]


MOVED = (
    *("solowriter_messages_total", "solowriter_ack_seconds_count", "solowriter_ack_seconds_sum"),
    *("solowriter_group_messages_count", "solowriter_group_messages_sum", "solowriter_commit_seconds_count"),
    *("solowriter_confirm_seconds_count", "solowriter_confirm_seconds_sum"),
    *("solowriter_confirmations_total", "solowriter_replicated_transaction", "solowriter_database_bytes"),
    *("litestream_txid", "litestream_sync_count_total", "litestream_replica_operation_total", "process_cpu_seconds_total"),
)
"""What grows while messages are handled. (The parser gives every counter the end that Litestream's have not all got.)"""


def test_families_move_under_load(watched: Watched) -> None:
    """Counts and times of messages, groups and confirmations grow with the acknowledgements, and agree with them."""
    worker = watched.start().wait_serving()
    push(worker, 1_000_000, "first")
    before = scrape(worker)
    with Load(worker) as load:
        load.wait_for(300)
    acknowledged = len(load.acknowledged)
    after = scrape(worker)
    still = [name for name in MOVED if not total(after, name) > total(before, name)]
    assert not still
    created = "solowriter_messages_total", (("outcome", "created"),)
    assert after[created] - before[created] == acknowledged
    for name in ("solowriter_ack_seconds_count", "solowriter_group_messages_sum"):
        assert total(after, name) - total(before, name) == acknowledged
    assert total(after, "solowriter_ack_seconds_sum") < 60 * acknowledged
    assert total(after, "solowriter_held_messages") == total(after, "solowriter_queue_messages") == 0
    assert total(after, "solowriter_unconfirmed_seconds") == 0
    assert after["solowriter_lease_held", ()] == after["solowriter_lease_epoch", ()] == 1
    assert after["solowriter_state", (("state", "serving"),)] == 1


def test_bad_messages_refusals_and_drills_are_counted(watched: Watched, objects: Objects) -> None:
    """What happens now and then has its families as well; then all is there that alerts and the dashboard ask for."""
    worker = watched.start().wait_serving()
    bad = message.envelope(b"{", {}, "bad", "2024-01-02T03:04:05Z", "projects/p/subscriptions/s")
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    assert httpx.post(worker.url, content=bad, headers=headers, trust_env=False, timeout=60).status_code == 204
    assert httpx.post(worker.url, content=b"no push", trust_env=False, timeout=60).status_code == 400
    drill = Drill(verdict="proved", reason="x", at=datetime.now(UTC), seconds=2.5)
    objects.write(f"{PREFIX}/{RECORD}", msgspec.json.encode(drill))
    for number in range(1, 25):
        push(worker, number, f"m{number}")
    wait_until(lambda: total(scrape(worker), "solowriter_rejections_open") == 1, "the rejection counted")
    found = scrape(worker)
    assert found["solowriter_messages_total", (("outcome", "rejected"),)] == 1
    assert found["solowriter_requests_refused_total", (("reason", "not_a_push"), ("status", "400"))] == 1
    assert found["solowriter_drill_verdict", (("verdict", "proved"),)] == 1
    assert found["solowriter_drill_timestamp_seconds", ()] == pytest.approx(drill.at.timestamp())
    assert found["solowriter_gate_requests_total", (("kind", "upload"), ("level", "0"))] > 1
    there = exported(worker)
    for name, expression in expressions().items():
        wanted = named(expression)
        assert wanted.metrics.keys() <= there.keys(), name
        for metric, labels in wanted.metrics.items():
            assert labels <= there[metric], name
        assert wanted.grouped <= set().union(*(there[metric] for metric in wanted.metrics)), name
    [rejected] = said(worker, "message.rejected")
    assert rejected["logging.googleapis.com/trace"] == f"projects/acme/traces/{TRACE}"
    assert rejected["logging.googleapis.com/spanId"] == "00f067aa0ba902b7"
    labels = rejected["logging.googleapis.com/labels"]
    assert labels == {"revision": "worker0-00001", "epoch": "1", "generation": "generations/0000000000000001"}
    [serving] = said(worker, "worker.serving")
    assert "logging.googleapis.com/trace" not in serving


def test_an_outage_shows_and_ends(watched: Watched, fake_gcs: FakeGcs) -> None:
    """The bucket hangs: what waits for it grows, confirmations are retried, and Litestream's own words are in the log."""
    worker = watched.start(ACK_DEADLINE_SECONDS="20").wait_serving()
    push(worker, 1, "m1")
    fake_gcs.faults.add(action="error", verb="insert", name=GENERATIONS, status=403)
    held = pushing(worker, 2, "m2")
    retried = "solowriter_confirmations_total", (("result", "retried"),)
    wait_until(lambda: scrape(worker)[retried] > 0, "a retried confirmation")
    wait_until(lambda: total(scrape(worker), "solowriter_unconfirmed_seconds") > 0, "an age of what waits")
    during = scrape(worker)
    assert during["solowriter_held_messages", ()] == 1
    assert len(body(2, "m2")) < during["solowriter_held_bytes", ()] < len(body(2, "m2")) + 1000  # and its head
    wait_until(lambda: bool(said(worker, "litestream.log")), "a line of Litestream's")
    line = said(worker, "litestream.log")[0]
    assert line["severity"] in ("WARNING", "ERROR")
    assert line["logger"] == litestream_logger.name
    assert line["logging.googleapis.com/labels"]["epoch"] == "1"
    fake_gcs.faults.clear()
    assert held.result(30).status_code == 204
    assert total(scrape(worker), "solowriter_unconfirmed_seconds") == 0


def test_standing_by_is_watched_too(watched: Watched) -> None:
    """The page of an instance that waits says so, and has nothing of a database or of Litestream."""
    holder = watched.start().wait_serving()
    waiting = watched.start()
    wait_until(lambda: waiting.state() == "standby", "standing by")
    found = scrape(waiting)
    assert found["solowriter_state", (("state", "standby"),)] == 1
    assert found["solowriter_lease_held", ()] == found["solowriter_lease_epoch", ()] == 0
    assert not [name for name, _ in found if name.startswith("litestream_")]
    assert total(found, "solowriter_scrape_failures_total") == 0
    assert scrape(holder)["solowriter_lease_held", ()] == 1
    assert said(waiting, "lease.standby")[0]["logging.googleapis.com/labels"] == {"revision": "worker1-00001"}


def test_draining_is_watched_too(watched: Watched, fake_gcs: FakeGcs) -> None:
    """The page is answered while what is held comes to its end."""
    worker = watched.start().wait_serving()
    hang = fake_gcs.faults.add(action="hang", verb="insert", name=GENERATIONS)
    held = pushing(worker, 1, "m1")
    fake_gcs.faults.wait_for_hits(hang)  # which may be Litestream's own upload
    wait_until(lambda: total(scrape(worker), "solowriter_held_messages") == 1, "the message held")
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.state() == "draining", "draining")
    found = scrape(worker)
    assert found["solowriter_state", (("state", "draining"),)] == 1
    assert found["solowriter_held_messages", ()] == 1
    fake_gcs.faults.clear()
    assert held.result(30).status_code in (204, 503)
    worker.wait()


def test_a_litestream_that_dies_is_followed_again(watched: Watched, fake_gcs: FakeGcs) -> None:
    """The next child's log is read as the first one's was, so it never stops at a full pipe; its numbers come back."""
    worker = watched.start(LOG_LEVEL="debug").wait_serving()
    wait_until(lambda: bool(said(worker, "litestream.log")), "lines of the first")
    push(worker, 1, "m1")
    first = litestream_of(worker)
    kill_9(first)
    wait_until(lambda: bool(said(worker, "litestream.died")), "its end noticed")
    push(worker, 2, "m2")
    after = [line for line in lines(worker) if line["action"] in ("litestream.died", "litestream.log")]
    died = [line["action"] for line in after].index("litestream.died")
    assert [line for line in after[died:] if line["message"] == "litestream: initialized db"]
    assert total(scrape(worker), "litestream_txid") > 0
    assert litestream_of(worker) != first


# Traces.


class Collector:
    """What an OTLP collector is sent: every span, and the name of the service it came from."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.hang = threading.Event()
        self.hang.set()
        self.requests = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.requests += 1
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                collector.hang.wait(30)
                for resource in sent.resource_spans:
                    named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
                    spans = [span for scope in resource.scope_spans for span in scope.spans]
                    collector.spans += [(named["service.name"], span) for span in spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}"}

    def named(self, name: str) -> list[Any]:
        """The spans of a name."""
        return [span for _, span in self.spans if span.name == name]

    def close(self) -> None:
        """Stop it."""
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on this machine."""
    made = Collector()
    yield made
    made.close()


def test_a_trace_leads_from_publishing_to_the_acknowledgement(
    watched: Watched, collector: Collector, tmp_path: Path
) -> None:
    """Through the real emulator: the publisher's span, the worker's message below it, and its group, in one trace."""
    worker = watched.start(**collector.environment, K_SERVICE="users").wait_serving()
    try:
        with (
            emulator(tmp_path / "pubsub", "p") as running,
            httpx.Client(base_url=f"{running.url}/v1/projects/p", timeout=60) as rest,
        ):
            rest.put("/topics/users", json={}).raise_for_status()
            subscription = {"topic": "projects/p/topics/users", "pushConfig": {"pushEndpoint": worker.url}}
            rest.put("/subscriptions/push", json=subscription).raise_for_status()
            command = [sys.executable, "-m", "publisher", "create", "--user-id", "5"]
            variables = {**running.gcloud_env(), "GOOGLE_CLOUD_PROJECT": "p", "TOPIC": "users", **collector.environment}
            subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True, timeout=60)
            user = f"{worker.url}/users/5"
            wait_until(lambda: httpx.get(user, trust_env=False, timeout=60).status_code == 200, "the user")
            wait_until(lambda: scrape(worker)["solowriter_ack_seconds_count", ()] > 0, "the acknowledgement")
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    worker.stop()  # which exports what waits for its batch
    [published], [message_span], [group] = (collector.named(name) for name in ("users create", "message", "group"))
    assert message_span.trace_id == published.trace_id == group.trace_id
    assert message_span.parent_span_id == published.span_id
    assert [link.span_id for link in group.links] == [message_span.span_id]
    assert published.start_time_unix_nano <= message_span.start_time_unix_nano <= message_span.end_time_unix_nano
    assert {service for service, span in collector.spans if span.name == "message"} == {"users"}
    assert {service for service, span in collector.spans if span.name == "users create"} == {"solowriter-publisher"}
    assert said(worker, "trace.started")


def test_a_collector_that_hangs_does_not_hold_up_the_end(watched: Watched, collector: Collector) -> None:
    """INV-8: the lease is released and the process ends in time; the message was acknowledged as ever."""
    worker = watched.start(**collector.environment).wait_serving()
    collector.hang.clear()
    assert push(worker, 1, "m1").status_code == 204
    assert worker.stop() == 0
    assert said(worker, "lease.released")
    assert said(worker, "trace.unflushed")
    assert collector.requests == 1
