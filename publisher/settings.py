"""Every setting of the publisher: environment variables, limits and their units.

Only the command line reads the environment; everything below it takes values.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from publisher.errors import UsageError
from worker.events.declaration import MAX_DATA_BYTES

ENVIRONMENT: Final[Mapping[str, str]] = {
    "TOPIC": "the topic to publish to: a short id, or projects/PROJECT/topics/TOPIC",
    "GOOGLE_CLOUD_PROJECT": "the project of a TOPIC given as a short id",
    "PUBSUB_EMULATOR_HOST": "HOST:PORT of a Pub/Sub emulator to use in Pub/Sub's place, without credentials",
    "EVENTS": "the Python modules that declare events, divided by commas (default: worker.events.users)",
    "SUBSCRIPTION": "with --push-to: the subscription named in the envelope",
    "HOST": "serve: the address to listen on",
    "PORT": "serve: the port to listen on; 0 picks a free one",
    "LOG_LEVEL": "serve: debug, info, warning or error; debug names each accepted message",
}
"""The environment variables the publisher reads, with their meaning."""

GIVE_UP_AFTER_SECONDS: Final = 60.0
"""How long one message is retried before it counts as not accepted, in seconds: a restart fits in."""
ATTEMPT_SECONDS: Final = 20.0
"""Longest wait for one publish request's answer, in seconds: a 1 MB batch over a slow line fits into it."""
RECONNECT_MAXIMUM_SECONDS: Final = 5.0
"""Longest pause between two attempts to connect to Pub/Sub, in seconds: gRPC's own is 120 s, which would outlast
GIVE_UP_AFTER_SECONDS and leave a gateway without Pub/Sub for two minutes after an outage."""
BATCH_MESSAGES: Final = 500
"""Most messages in one publish request; Pub/Sub takes 1,000."""
BATCH_BYTES: Final = 1_000_000
"""Size at which a publish request is sent, in bytes; Pub/Sub takes 10 MB."""
BATCH_SECONDS: Final = 0.01
"""How long a message waits for company, in seconds."""
IN_FLIGHT_MESSAGES: Final = 2000
"""Most messages sent and not answered yet, to Pub/Sub: a few batches under way at once."""
IN_FLIGHT_BYTES: Final = 40_000_000
"""Most bytes sent and not answered yet: several messages of the largest size, and little memory."""
MAX_IN_FLIGHT: Final = 10_000
"""Largest in-flight limit that can be asked for, in messages: beyond it only memory use grows."""

PUSH_IN_FLIGHT: Final = 64
"""Most push requests open at once: what a worker needs to fill its groups."""
PUSH_BACKOFF_INITIAL_SECONDS: Final = 0.1
"""First pause before a push is repeated, in seconds: Pub/Sub's own."""
PUSH_BACKOFF_MAXIMUM_SECONDS: Final = 60.0
"""Longest pause before a push is repeated, in seconds: Pub/Sub's own."""
PUSH_ATTEMPT_SECONDS: Final = 60.0
"""Longest wait for one push request's answer, in seconds: stands for the subscription's ack deadline."""
PUSH_REFUSALS: Final = 5
"""Attempts after which a 4xx answer is final: Pub/Sub would go on, but a person is waiting for the reason."""
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest line of an input file, in bytes: the largest message if each of its bytes is escaped, as \\u0041."""
INTERRUPT_SECONDS: Final = 10.0
"""How long Ctrl-C waits for what is in flight, in seconds; a second one does not wait."""

GATEWAY_HOST: Final = "0.0.0.0"
"""Address the gateway listens on unless told otherwise: Cloud Run's contract."""
GATEWAY_PORT: Final = 8080
"""Port the gateway listens on unless told otherwise: Cloud Run's contract."""
GATEWAY_LOG_LEVEL: Final = "info"
"""How much the gateway logs unless told otherwise: nothing for a message that is accepted."""
GATEWAY_BODY_MAX_BYTES: Final = MAX_DATA_BYTES
"""Largest request body the gateway takes, in bytes: the body is the message's data."""
GATEWAY_BODY_SECONDS: Final = 10.0
"""Longest the gateway waits for a request's body, in seconds: the largest one over 8 Mbit/s."""
GATEWAY_GIVE_UP_SECONDS: Final = 10.0
"""How long the gateway retries one message, in seconds: its sender waits, and keeps the message if it fails."""
GATEWAY_MARGIN_SECONDS: Final = 2.0
"""How much longer the gateway waits for an outcome, in seconds: a late one still names the cause; silence does not."""
GATEWAY_IN_FLIGHT: Final = 1000
"""Most messages in the gateway, not answered yet: the most requests Cloud Run sends one instance at once."""
GATEWAY_IN_FLIGHT_BYTES: Final = 32_000_000
"""Most bytes of bodies in the gateway: three of the largest, and less than IN_FLIGHT_BYTES, where publishing would block."""
GATEWAY_DRAIN_SECONDS: Final = 7.5
"""Longest the gateway waits at its end for what is in flight, in seconds: Cloud Run kills 10 s after SIGTERM."""
GATEWAY_CLOSE_SECONDS: Final = 1
"""Longest the gateway waits for open connections to end once everything is answered, in whole seconds."""
TRACE_FLUSH_SECONDS: Final = 1.0
"""Longest the end of a command waits for the last spans to be exported, in seconds: with draining it fits into 10 s."""
GATEWAY_KEEP_ALIVE_SECONDS: Final = 620
"""How long the gateway keeps an idle connection, in seconds: longer than Google's front ends (600 s), so that they close
it and no request meets a connection that is being closed."""
GATEWAY_RETRY_AFTER_SECONDS: Final = 2
"""When a sender that the gateway could not serve shall try again (Retry-After), in whole seconds: most outages of an
instance are shorter, and a longer pause makes the senders' own queues grow."""
GATEWAY_LOG_SECONDS: Final = 10.0
"""The gateway logs a repeated event once in this time, in seconds: an outage fails every request in the same way."""

MAX_PORT: Final = 65_535
"""Largest port number there is."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
"""What LOG_LEVEL may be."""

PUSH_SUBSCRIPTION: Final = "projects/local/subscriptions/push"
"""The subscription named in the envelope when none is given."""

_FULL_TOPIC: Final = re.compile(r"projects/[^/\s]+/topics/[^/\s]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a `client.Publisher`; every one is positive.

    Attributes:
        give_up_after: time for all attempts at one message, in seconds.
        attempt: time for one request, in seconds.
        in_flight_messages: most messages sent and not answered.
        in_flight_bytes: most bytes sent and not answered.
    """

    give_up_after: float = GIVE_UP_AFTER_SECONDS
    attempt: float = ATTEMPT_SECONDS
    in_flight_messages: int = IN_FLIGHT_MESSAGES
    in_flight_bytes: int = IN_FLIGHT_BYTES


@dataclass(frozen=True, slots=True)
class PushLimits:
    """Bounds of a `push.PushTarget`; every one is positive.

    Attributes:
        give_up_after: time in which attempts at one message may begin, in seconds.
        attempt: time for one request, in seconds.
        in_flight: most requests open at once.
        backoff_initial: first pause between attempts, in seconds; each following one is twice as long.
        backoff_maximum: longest pause between attempts, in seconds.
        refusals: attempts after which a 4xx answer is final.
    """

    give_up_after: float = GIVE_UP_AFTER_SECONDS
    attempt: float = PUSH_ATTEMPT_SECONDS
    in_flight: int = PUSH_IN_FLIGHT
    backoff_initial: float = PUSH_BACKOFF_INITIAL_SECONDS
    backoff_maximum: float = PUSH_BACKOFF_MAXIMUM_SECONDS
    refusals: int = PUSH_REFUSALS


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Bounds of the gateway; every one is positive.

    Attributes:
        body_max_bytes: largest body of a request, in bytes.
        body_seconds: longest wait for a body, in seconds.
        answer_seconds: longest wait for a publish's outcome, in seconds.
        in_flight: most messages taken and not settled.
        in_flight_bytes: most bytes of bodies taken and not settled.
        drain_seconds: longest wait for what is in flight at the end, in seconds.
    """

    body_max_bytes: int = GATEWAY_BODY_MAX_BYTES
    body_seconds: float = GATEWAY_BODY_SECONDS
    answer_seconds: float = GATEWAY_GIVE_UP_SECONDS + GATEWAY_MARGIN_SECONDS
    in_flight: int = GATEWAY_IN_FLIGHT
    in_flight_bytes: int = GATEWAY_IN_FLIGHT_BYTES
    drain_seconds: float = GATEWAY_DRAIN_SECONDS


def port_number(text: str) -> int:
    """Return the value of PORT as a number.

    Raises:
        UsageError: it is no port.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= MAX_PORT):
        raise UsageError(f"PORT is {text!r}: set it to a number between 0 and {MAX_PORT}, or pass --port")
    return int(text)


def log_level(text: str) -> str:
    """Return the value of LOG_LEVEL, in lower case.

    Raises:
        UsageError: it is no level.
    """
    if text.lower() not in LOG_LEVELS:
        raise UsageError(f"LOG_LEVEL is {text!r}: set it to one of {', '.join(LOG_LEVELS)}")
    return text.lower()


def topic_path(topic: str | None, project: str | None) -> str:
    """Return the topic's full name, `projects/P/topics/T`.

    Raises:
        UsageError: there is no topic, or no project for a short one.
    """
    if not topic:
        raise UsageError("no topic: set TOPIC or pass --topic (or --push-to URL to do without Pub/Sub)")
    if "/" not in topic:
        if not project:
            raise UsageError(
                f"no project for topic {topic}: set GOOGLE_CLOUD_PROJECT, pass --project, "
                f"or give the full name, projects/PROJECT/topics/{topic}"
            )
        topic = f"projects/{project}/topics/{topic}"
    if not _FULL_TOPIC.fullmatch(topic):
        raise UsageError(f"{topic!r} is no topic: give a short id, or projects/PROJECT/topics/TOPIC")
    return topic
