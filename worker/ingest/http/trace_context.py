"""Which trace something belongs to: the headers and attributes that say so, and the request that is being answered.

Source of the formats: W3C Trace Context, "traceparent Header"; Cloud Trace documentation, "Trace context".
"""

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

ATTRIBUTES: Final = ("googclient_traceparent", "traceparent")
"""Attributes of a message that may name its publisher's span: as google-cloud-pubsub writes it, then the plain name."""

REQUEST: Final[ContextVar[Mapping[str, Any] | None]] = ContextVar("request", default=None)
"""The ASGI scope of the request that this task answers. Setting it is all that a request pays: its headers are read only
when something is logged."""

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_CLOUD: Final = re.compile(r"(?!0{32})([0-9a-fA-F]{32})(?:/(\d{1,20}))?(?:;o=([0-3]))?")
_TEXT_MAX: Final = 256
_SPAN_IDS: Final = 2**64


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span elsewhere: its trace (32 hex digits), its id (16, or none when it is not known), and whether it is recorded."""

    trace_id: str
    span_id: str
    sampled: bool


def parse(traceparent: str) -> TraceContext | None:
    """Read a W3C `traceparent`; None when it is none."""
    match = _TRACEPARENT.fullmatch(traceparent) if len(traceparent) <= _TEXT_MAX else None
    if match is None:
        return None
    return TraceContext(match[1], match[2], bool(int(match[3], 16) & 1))


def parse_cloud(header: str) -> TraceContext | None:
    """Read an `X-Cloud-Trace-Context`, whose span is in decimal and may be missing; None when it is none."""
    match = _CLOUD.fullmatch(header) if len(header) <= _TEXT_MAX else None
    if match is None:
        return None
    span = int(match[2] or 0)
    return TraceContext(match[1].lower(), f"{span:016x}" if 0 < span < _SPAN_IDS else "", match[3] in ("1", "3"))


def of_request() -> TraceContext | None:
    """The trace of the request that is being answered; None outside of one, and where none is stated."""
    scope = REQUEST.get()
    return None if scope is None else of_headers(scope["headers"])


def of_headers(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """The trace that a request's headers name; `traceparent` comes first, as the platform sends both."""
    found = {name: value.decode("latin-1") for name, value in headers if name in (b"traceparent", b"x-cloud-trace-context")}
    stated, cloud = found.get(b"traceparent"), found.get(b"x-cloud-trace-context")
    return (parse(stated) if stated else None) or (parse_cloud(cloud) if cloud else None)


def of_message(attributes: Mapping[str, str]) -> TraceContext | None:
    """The publisher's span that a message's attributes name; None when they name none."""
    for name in ATTRIBUTES:
        if name in attributes and (found := parse(attributes[name])) is not None:
            return found
    return None
