"""Traces, with OpenTelemetry: a span for each message, one for each group. Off unless its standard variables ask for it.

    publisher: create ──> message: received · transaction begun · committed · confirmation begun · confirmed ──> answered
                            group: links to its messages, which link to it

A message's span is a child of the publisher's span that its attributes name (trace_context.py), so that one trace leads from
publishing to the acknowledgement, and the publisher's choice to record it is kept. Its steps are events with their times
and not spans of their own: they follow one another without gaps, and one span costs a fifth of six.

All of it is made when the group has been answered, from the times that were noted for the group anyway: until then nothing
is paid, and a message that is not recorded costs no more than finding that out.

The SDK is imported only where it is asked for.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from worker.errors import ConfigError
from worker.ingest.http import trace_context
from worker.ingest.messages import Change, Entry, Group

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_LINKS_MAX: Final = 2000
"""The largest group there can be."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Steps:
    """When the steps of a group began or ended, on the clock of `time.monotonic`."""

    began: float
    committed: float
    asked: float
    answered: float


class Spans:
    """Makes the spans of groups that were answered. Only the event loop touches it, but for `close`.

    Args:
        provider: Where spans go; closed by `close`.
        hold_seconds: How long after it was received a message's deadline is.
    """

    def __init__(self, provider: "TracerProvider", *, hold_seconds: float) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        self._provider, self._hold, self._api = provider, hold_seconds, trace
        self._none = Context()
        self._tracer = provider.get_tracer("solowriter")

    def answered(self, group: Group, steps: Steps, *, confirmed: bool) -> None:
        """Make the spans of a group: acknowledged, or answered 503 because it was not confirmed."""
        if isinstance(group.entries[0], Change):
            return
        # Loop times become times of day at once, so that a clock that is set meanwhile moves all of them alike.
        shift = time.time_ns() - round(time.monotonic() * 1e9)
        spans = []
        for entry, outcome in zip(group.entries, group.results, strict=True):
            span = self._message(entry, outcome, steps, shift)  # type: ignore[arg-type]  # messages, as the first is one
            if span.is_recording():
                spans.append(span)
        if not spans:
            return
        whole = self._group(spans, len(group.entries), steps, shift)
        for span in spans:
            span.add_link(whole.get_span_context())
        for span in (*spans, whole):
            if not confirmed:
                span.set_status(self._api.StatusCode.ERROR, "not confirmed within the hold limit")
            span.end(_at(steps.answered, shift))

    async def close(self, seconds: float) -> None:
        """Export what is left, for at most `seconds`; then leave it."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(done.set)

        # A thread of its own, which the end of the process does not wait for.
        threading.Thread(target=flush, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await done.wait()
        except TimeoutError:
            log.warning("the last spans were not exported within %g s", seconds, extra={"action": "trace.unflushed"})

    def _message(self, entry: Entry, outcome: str, steps: Steps, shift: int) -> "Span":
        delivery, kind = entry.delivery, self._api.SpanKind.CONSUMER
        received = entry.deadline - self._hold
        span = self._tracer.start_span("message", self._parent(entry), kind, start_time=_at(received, shift))
        if span.is_recording():
            span.set_attributes(
                {
                    "messaging.system": "gcp_pubsub",
                    "messaging.operation.type": "process",
                    "messaging.destination.subscription.name": delivery.subscription,
                    "messaging.message.id": delivery.message_id,
                    "messaging.message.body.size": len(delivery.data),
                    "solowriter.outcome": outcome,
                }
            )
            if delivery.delivery_attempt is not None:
                span.set_attribute("messaging.gcp_pubsub.message.delivery_attempt", delivery.delivery_attempt)
            span.add_event("received", timestamp=_at(received, shift))
            _add_steps(span, steps, shift)
        return span

    def _group(self, spans: "Sequence[Span]", size: int, steps: Steps, shift: int) -> "Span":
        # A child of its first message, whose choice to record it has: one of its own could leave links to nothing.
        parent = self._api.set_span_in_context(spans[0], self._none)
        links = [self._api.Link(span.get_span_context()) for span in spans]
        whole = self._tracer.start_span("group", parent, links=links, start_time=_at(steps.began, shift))
        whole.set_attribute("messaging.batch.message_count", size)
        _add_steps(whole, steps, shift)
        return whole

    def _parent(self, entry: Entry) -> "Context":
        stated = trace_context.of_message(entry.delivery.attributes)
        if stated is None:
            return self._none
        context = self._api.SpanContext(
            int(stated.trace_id, 16), int(stated.span_id, 16), True, self._api.TraceFlags(int(stated.sampled))
        )
        return self._api.set_span_in_context(self._api.NonRecordingSpan(context), self._none)


def begin(environ: Mapping[str, str], *, hold_seconds: float, **resource: str) -> Spans | None:
    """Begin the tracing that the standard variables ask for; None if they ask for none.

    Args:
        environ: The environment; the SDK reads its own variables from the process's.
        hold_seconds: See `Spans`.
        resource: What this process is, underscores standing for dots: `service_name` and the like.

    Raises:
        ConfigError: They ask for an exporter or a protocol that is not here.
    """
    wanted = wanted_exporter(environ)
    if wanted is None:
        return None
    spans = Spans(_provider(_exporter(wanted), resource), hold_seconds=hold_seconds)
    log.info("spans are exported (%s)", wanted, extra={"action": "trace.started"})
    return spans


def wanted_exporter(environ: Mapping[str, str]) -> str | None:
    """The exporter that the standard variables name, or `otlp` where they give it an endpoint; None for none.

    Raises:
        ConfigError: It is one that is not here, or is to use a protocol that is not.
    """
    stated = environ.get(_EXPORTER, "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or stated == "none":
        return None
    if not stated:
        if not any(environ.get(name) for name in _ENDPOINTS):
            return None
        stated = "otlp"
    if stated not in ("otlp", "console"):
        raise ConfigError(f"{_EXPORTER} is {stated!r} and must be one of otlp, console, none")
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _PROTOCOL)
    if stated == "otlp" and protocol != _PROTOCOL:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r} and must be {_PROTOCOL}: "
            "send to the collector's port for HTTP, as a rule 4318"
        )
    return stated


def _exporter(wanted: str) -> "SpanExporter":
    if wanted == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _provider(exporter: "SpanExporter", resource: Mapping[str, str]) -> "TracerProvider":
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the standard variables say of the process comes before what we know of it; the sampler is theirs too.
    ours: dict[str, Any] = {name.replace("_", ".", 2): value for name, value in resource.items()}
    provider = TracerProvider(
        resource=Resource.create(ours).merge(OTELResourceDetector().detect()),
        span_limits=SpanLimits(max_links=_LINKS_MAX),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _add_steps(span: "Span", steps: Steps, shift: int) -> None:
    span.add_event("transaction begun", timestamp=_at(steps.began, shift))
    span.add_event("committed", timestamp=_at(steps.committed, shift))
    span.add_event("confirmation begun", timestamp=_at(steps.asked, shift))
    span.add_event("answered", timestamp=_at(steps.answered, shift))


def _at(moment: float, shift: int) -> int:
    """A moment of the monotonic clock as nanoseconds since the epoch."""
    return round(moment * 1e9) + shift
