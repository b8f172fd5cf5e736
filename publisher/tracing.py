"""Traces of what is published, with OpenTelemetry: off unless its standard variables ask for it.

Google's client makes the spans, one for each message from `publish` to the answer, and puts the context into the attribute
`googclient_traceparent`, where the worker finds it. This file says where the spans go, and what they continue. The SDK is
imported only where it is asked for.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from publisher.errors import UsageError

_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_SERVICE: Final = "solowriter-publisher"

Close = Callable[[float], None]
"""Exports what is left, for at most so many seconds."""


def wanted(environment: Mapping[str, str]) -> bool:
    """Return whether the standard variables ask for traces.

    Raises:
        UsageError: they ask for an exporter, or a protocol, that is not here.
    """
    stated = environment.get(_EXPORTER, "").strip()
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or stated == "none":
        return False
    if not stated and not any(environment.get(name) for name in _ENDPOINTS):
        return False
    if stated not in ("", "otlp"):
        raise UsageError(f"{_EXPORTER} is {stated!r}: set it to otlp or none")
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: set it to {_PROTOCOL}, and the endpoint to the collector's port "
            "for HTTP, as a rule 4318"
        )
    return True


def begin(environment: Mapping[str, str], exporter: Any = None) -> Close | None:
    """Have this process's spans exported as the standard variables say; return what ends that, or None where they say no.

    Args:
        environment: the variables; the SDK reads its own from the process's.
        exporter: in the place of theirs.

    Raises:
        UsageError: see `wanted`.
    """
    if not wanted(environment):
        return None
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": environment.get("K_SERVICE") or _SERVICE})
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    trace.set_tracer_provider(provider)  # Google's client asks there

    def close(seconds: float) -> None:
        # A collector that hangs holds up its own thread, which the end of the process does not wait for.
        last = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(seconds)

    return close


@contextlib.contextmanager
def continuing(headers: Mapping[str, str]) -> Iterator[None]:
    """Have what is published in the block continue the trace that a request's headers name."""
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    stated = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    token = context.attach(TraceContextTextMapPropagator().extract(stated, context.Context()))
    try:
        yield
    finally:
        context.detach(token)
