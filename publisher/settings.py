"""Every setting of the publisher: environment variables, limits and their units.

Only the command line reads the environment; everything below it takes values.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from publisher.errors import UsageError

ENVIRONMENT: Final[Mapping[str, str]] = {
    "TOPIC": "the topic to publish to: a short id, or projects/PROJECT/topics/TOPIC",
    "GOOGLE_CLOUD_PROJECT": "the project of a TOPIC given as a short id",
    "PUBSUB_EMULATOR_HOST": "HOST:PORT of a Pub/Sub emulator to use in Pub/Sub's place, without credentials",
    "SUBSCRIPTION": "with --push-to: the subscription named in the envelope",
}
"""The environment variables the publisher reads, with their meaning."""

GIVE_UP_AFTER_SECONDS: Final = 60.0
"""How long one message is retried before it counts as not accepted, in seconds: a restart fits in."""
ATTEMPT_SECONDS: Final = 20.0
"""Longest wait for one publish request's answer, in seconds: a 1 MB batch over a slow line fits into it."""
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
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Longest line of an input file, in bytes: the largest message, with room for JSON's escapes."""
INTERRUPT_SECONDS: Final = 10.0
"""How long Ctrl-C waits for what is in flight, in seconds; a second one does not wait."""

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
