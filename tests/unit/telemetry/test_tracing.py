"""Traces: one span for each message, continuing its publisher's; one for its group; nothing where nobody asked."""

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

import publisher.errors
import publisher.tracing
from publisher.async_sink import AsyncSink
from publisher.settings import GatewayLimits
from tests.entries import entry
from worker.errors import ConfigError
from worker.events.users import UserCreated
from worker.ingest.messages import Change, Entry, Group
from worker.telemetry import tracing
from worker.telemetry.metrics import Metrics
from worker.telemetry.tracing import Spans, Steps

HOLD = 48.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


class Recorded:
    """Spans that go to memory."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(
            sampler=ParentBased(sampler), span_limits=SpanLimits(max_links=2000), shutdown_on_exit=False
        )
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = Spans(provider, hold_seconds=HOLD)

    def named(self, name: str) -> list[ReadableSpan]:
        """The ended spans of a name, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def received(message_id: str, *, ago: float, now: float, **attributes: str) -> Entry:
    """A message received so long ago."""
    made = entry(1, message_id, deadline=now - ago + HOLD)
    delivery = msgspec.structs.replace(
        made.delivery, attributes=attributes, delivery_attempt=2, subscription="projects/p/subscriptions/s"
    )
    return replace(made, delivery=delivery)


def run(recorded: Recorded, *messages: dict[str, Any], confirmed: bool = True) -> tuple[int, Steps]:
    """Answer a group of messages; the time of day in nanoseconds, and when its steps were."""

    async def answered() -> tuple[int, Steps]:
        now = time.monotonic()
        steps = Steps(began=now - 0.4, committed=now - 0.3, asked=now - 0.2, answered=now)
        entries = [received(f"m{number}", **{"ago": 1.0, **message}, now=now) for number, message in enumerate(messages)]
        wall = time.time_ns()
        recorded.spans.answered(Group(entries, ["created"] * len(entries)), steps, confirmed=confirmed)
        return wall, steps

    return asyncio.run(answered())


def parented(flags: str, name: str = "googclient_traceparent") -> dict[str, str]:
    """Attributes that name a publisher's span."""
    return {name: f"00-{TRACE}-{SPAN}-{flags}"}


def test_a_message_has_one_span_with_its_steps() -> None:
    """From its receipt to its answer, on the clock of the day, with each step where it was."""
    recorded = Recorded()
    wall, _ = run(recorded, {"ago": 1.0})
    (span,) = recorded.named("message")
    assert span.start_time is not None
    assert span.end_time is not None
    assert abs(span.end_time - wall) < 1e9
    assert span.end_time - span.start_time == pytest.approx(1e9, abs=1e6)
    steps = [(event.name, (span.end_time - event.timestamp) / 1e9) for event in span.events]
    assert [name for name, _ in steps] == ["received", "transaction begun", "committed", "confirmation begun", "answered"]
    assert [ago for _, ago in steps] == pytest.approx([1.0, 0.4, 0.3, 0.2, 0], abs=0.001)
    assert span.kind is trace.SpanKind.CONSUMER
    assert span.status.is_ok
    assert span.attributes is not None
    said = {name.removeprefix("messaging."): value for name, value in span.attributes.items()}
    assert said.pop("message.body.size") == len(b'{"user_id":1}')
    assert said == {
        "system": "gcp_pubsub",
        "operation.type": "process",
        "destination.subscription.name": "projects/p/subscriptions/s",
        "message.id": "m0",
        "gcp_pubsub.message.delivery_attempt": 2,
        "solowriter.outcome": "created",
    }


@pytest.mark.parametrize("name", ["googclient_traceparent", "traceparent"])
def test_a_message_continues_its_publishers_trace(name: str) -> None:
    """Google's clients write one attribute, anybody may write the other."""
    recorded = Recorded()
    run(recorded, parented("01", name))
    (span,) = recorded.named("message")
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert (f"{span.parent.span_id:016x}", span.parent.is_remote) == (SPAN, True)


def test_googles_attribute_comes_first() -> None:
    """Where both are there, the one that a client of Google's has just written is the nearer."""
    recorded = Recorded()
    run(recorded, {**parented("01"), "traceparent": f"00-{'a' * 32}-{SPAN}-01"})
    (span,) = recorded.named("message")
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE


@pytest.mark.parametrize("attributes", [{}, {"traceparent": "nonsense"}, {"googclient_traceparent": ""}])
def test_a_message_that_names_no_span_begins_a_trace(attributes: dict[str, str]) -> None:
    """Also where an attribute of that name holds something else."""
    recorded = Recorded()
    run(recorded, attributes)
    (span,) = recorded.named("message")
    assert span.parent is None


def test_the_publisher_decides_what_is_recorded() -> None:
    """Its flag counts, in both directions, whatever is decided for traces that begin here."""
    for sampler in (ALWAYS_ON, ALWAYS_OFF):
        recorded = Recorded(sampler)
        run(recorded, parented("01"), parented("00"))
        assert [span.attributes and span.attributes["messaging.message.id"] for span in recorded.named("message")] == ["m0"]
        assert len(recorded.named("group")) == 1


def test_nothing_is_recorded_of_a_group_without_recorded_messages() -> None:
    """Its span would link to nothing."""
    recorded = Recorded(ALWAYS_OFF)
    run(recorded, {}, parented("00"))
    assert recorded.exporter.get_finished_spans() == ()


def test_a_group_links_to_its_messages_and_they_to_it() -> None:
    """All that were recorded, and no other; a group may be larger than OpenTelemetry's default of 128 links."""
    recorded = Recorded()
    run(recorded, *[parented("01")] * 300, parented("00"))
    (group,) = recorded.named("group")
    messages = recorded.named("message")
    assert len(messages) == 300
    assert [link.context for link in group.links] == [span.context for span in messages]
    assert all([link.context for link in span.links] == [group.context] for span in messages)
    assert group.parent is not None
    assert messages[0].context is not None
    assert group.parent.span_id == messages[0].context.span_id
    assert group.attributes is not None
    assert group.attributes["messaging.batch.message_count"] == 301
    assert group.start_time is not None
    assert group.end_time is not None
    assert group.end_time - group.start_time == pytest.approx(0.4e9, abs=1e6)
    assert [event.name for event in group.events] == ["transaction begun", "committed", "confirmation begun", "answered"]


def test_a_group_that_was_given_up_is_an_error() -> None:
    """Its messages were answered 503."""
    recorded = Recorded()
    run(recorded, {}, confirmed=False)
    assert [span.status.status_code for span in recorded.exporter.get_finished_spans()] == [trace.StatusCode.ERROR] * 2


def test_an_operators_change_has_no_span() -> None:
    """It is no message."""
    recorded = Recorded()

    async def answered() -> None:
        change = Change(lambda transaction: None, 0.0, asyncio.get_running_loop().create_future())
        recorded.spans.answered(Group([change], ["x"]), Steps(0, 0, 0, 0), confirmed=True)

    asyncio.run(answered())
    assert recorded.exporter.get_finished_spans() == ()


def test_metrics_hand_on_the_times_they_keep() -> None:
    """The steps are those of the group: its own transaction, and the confirmation that covered it."""
    recorded, metrics = Recorded(), Metrics(hold_seconds=HOLD)
    metrics.spans = recorded.spans

    async def answered() -> None:
        now = time.monotonic()
        confirmed, given_up = (Group([received(name, ago=1, now=now)], ["created"]) for name in ("m1", "m2"))
        metrics.committed(confirmed, now - 0.5)
        metrics.committed(given_up, now - 0.5)
        metrics.acknowledged([confirmed], now - 0.1)
        metrics.gave_up(given_up)

    asyncio.run(answered())
    first, second = recorded.named("message")
    assert (first.status.is_ok, second.status.is_ok) == (True, False)
    assert first.end_time is not None
    begun = {event.name: (first.end_time - event.timestamp) / 1e9 for event in first.events}
    assert begun["transaction begun"] == pytest.approx(0.5, abs=0.2)
    assert begun["confirmation begun"] == pytest.approx(0.1, abs=0.2)


# Turning it on.


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, None),
        (OTLP, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({**OTLP, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**OTLP, "OTEL_SDK_DISABLED": "true"}, None),
        ({**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp"),
    ],
)
def test_only_the_standard_variables_turn_it_on(variables: dict[str, str], expected: str | None) -> None:
    """An exporter by name, or an endpoint for the default one; the publisher reads them alike."""
    assert tracing.wanted_exporter(variables) == expected
    if expected != "console":
        assert publisher.tracing.wanted(variables) is (expected is not None)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {**OTLP, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
    ],
)
def test_what_is_not_here_is_refused(variables: dict[str, str]) -> None:
    """At start, with the next step, rather than spans that go nowhere."""
    with pytest.raises(ConfigError, match="must be"):
        tracing.begin(variables, hold_seconds=HOLD)
    with pytest.raises(publisher.errors.UsageError, match="set it to"):
        publisher.tracing.begin(variables)


OFF = """
import sys
import worker.supervisor, worker.cli.main, publisher.cli, publisher.gateway
from worker.telemetry import tracing
import publisher.tracing
assert tracing.begin({}, hold_seconds=1.0) is None
assert publisher.tracing.begin({}) is None
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


def test_without_them_the_sdk_is_not_imported() -> None:
    """It would cost every cold start its memory and time."""
    ended = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_process_is_named_by_the_standard_variables_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """K_SERVICE is what it is called otherwise."""
    ours = {"service_name": "users", "service_version": "users-00042", "service_instance_id": "i"}
    for stated, expected in (("", "users"), ("mine", "mine")):
        monkeypatch.setenv("OTEL_SERVICE_NAME", stated)
        provider = tracing._provider(InMemorySpanExporter(), ours)
        named = provider.resource.attributes
        assert (named["service.name"], named["service.version"], named["service.instance.id"]) == (
            expected,
            "users-00042",
            "i",
        )
        provider.shutdown()


# The end.


class Hanging(SpanExporter):
    """A collector that takes nothing until it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hang, then take them."""
        self.release.wait(30)
        self.exported += len(spans)
        return SpanExportResult.SUCCESS


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A collector; released at the end."""
    exporter = Hanging()
    yield exporter
    exporter.release.set()


def _answered_and_closed(exporter: Hanging, seconds: float) -> None:
    async def life() -> None:
        spans = Spans(tracing._provider(exporter, {}), hold_seconds=HOLD)
        now = time.monotonic()
        spans.answered(Group([received("m", ago=1, now=now)], ["created"]), Steps(now, now, now, now), confirmed=True)
        await spans.close(seconds)

    asyncio.run(life())


def test_the_last_spans_are_exported(hanging: Hanging, caplog: pytest.LogCaptureFixture) -> None:
    """Those that were still waiting for their batch."""
    hanging.release.set()
    _answered_and_closed(hanging, 10)
    assert hanging.exported == 2
    assert not caplog.records


def test_a_collector_that_hangs_does_not_hold_up_the_end(hanging: Hanging, caplog: pytest.LogCaptureFixture) -> None:
    """INV-8: TRACE_FLUSH_SECONDS, and the platform's ten seconds go on."""
    caplog.set_level(logging.WARNING)
    _answered_and_closed(hanging, 0.1)
    assert hanging.exported == 0
    assert [getattr(record, "action", "") for record in caplog.records] == ["trace.unflushed"]


# The publisher.


def test_the_gateway_continues_a_requests_trace() -> None:
    """What is published in the block is a child of the span that the request names, and nothing after it is."""

    def current() -> str:
        return f"{trace.get_current_span().get_span_context().trace_id:032x}"

    def inside() -> tuple[str, str, str]:
        with publisher.tracing.continuing({"traceparent": f"00-{TRACE}-{SPAN}-01"}):
            found = current()
        with publisher.tracing.continuing({}):
            none = current()
        return found, none, current()

    nothing = "0" * 32
    assert contextvars.copy_context().run(inside) == (TRACE, nothing, nothing)
    assert context.get_current() == {}


def test_the_trace_goes_with_the_message_to_the_publishing_thread() -> None:
    """Google's client looks for it in the thread that calls it; and a request's trace is that request's alone."""
    seen: dict[int, str] = {}

    class Looking:
        capacity, patience = 10, 1.0

        def publish(self, user: UserCreated) -> Future[str]:
            """Look whose child a span would be."""
            seen[user.user_id] = f"{trace.get_current_span().get_span_context().trace_id:032x}"
            accepted: Future[str] = Future()
            accepted.set_result("m")
            return accepted

    async def publish(sink: AsyncSink, user_id: int, trace_id: str) -> None:
        with publisher.tracing.continuing({"traceparent": f"00-{trace_id}-{SPAN}-01"}), sink.place() as place:
            await sink.publish(place, UserCreated(user_id=user_id))

    async def both() -> None:
        sink = AsyncSink(Looking(), GatewayLimits())  # type: ignore[arg-type]  # it needs no more of a sink
        await asyncio.gather(publish(sink, 1, "1" * 32), publish(sink, 2, "2" * 32))
        sink.close()

    asyncio.run(both())
    assert seen == {1: "1" * 32, 2: "2" * 32}
