"""Whether the subscription delivers as this service expects. Pure but for `look`, which is one request.

Some of it lives twice, in the subscription and in a setting (the ack deadline, the token): what differs there loses pushes.
The rest decides what an outage or a mistake costs: how soon a refused message comes again, and how far back one can go.
"""

from datetime import timedelta
from typing import Final

import msgspec

from publisher.values import lasting
from worker.errors import QueueDenied, QueueError, QueueMissing
from worker.operations.doctor.findings import Finding, note, ok, refused, warning
from worker.operations.pubsub import Delivery, Queue

_WEEK: Final = timedelta(days=7)
_ATTEMPTS: Final = 100
"""The most that Pub/Sub takes. It counts refusals and missed deadlines, so that an outage uses them up."""
_DELETED: Final = "_deleted-topic_"
_UPDATE: Final = "run deploy/pubsub.sh again, or gcloud pubsub subscriptions update SUBSCRIPTION"


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that concern the subscription; each is the setting of that name."""

    ack_deadline_seconds: float
    push_audience: str
    push_service_account: str
    push_unwrapped: bool
    delivery: str = "push"


async def look(queue: Queue, expected: Expected, *, emulator: bool) -> list[Finding]:
    """Check the subscription's settings; one line if it cannot be read.

    Args:
        queue: The subscription.
        expected: What the settings say of it.
        emulator: Whether it is the emulator's, which lacks some of it.
    """
    try:
        found = await queue.delivery()
    except QueueMissing as error:
        step = "name the subscription in SUBSCRIPTION, or create it with deploy/pubsub.sh"
        return [refused("subscription", str(error), step)]
    except QueueDenied as error:
        step = "none for serving; to have it checked, grant roles/pubsub.viewer on it to this account"
        return [warning("subscription", f"it may not be read here: {error}", step)]
    except QueueError as error:
        return [warning("subscription", str(error), "look at the network and PUBSUB_EMULATOR_HOST, then run this again")]
    return judge(found, expected, emulator=emulator)


def judge(found: Delivery, expected: Expected, *, emulator: bool = False) -> list[Finding]:
    """A line for each thing that matters. Pure."""
    return [
        _topic(found),
        _deadline(found, expected),
        _push(found, expected),
        _token(found, expected, emulator),
        _backoff(found),
        _retention(found),
        _replay(found),
        _expiration(found, emulator),
        _dead_letters(found),
    ]


def _topic(found: Delivery) -> Finding:
    check = "subscription: topic"
    if found.detached or found.topic == _DELETED:
        step = "delete the subscription and run deploy/pubsub.sh: it gets nothing any more, not even from a new topic"
        return refused(check, "it is detached, or its topic was deleted", step)
    return ok(check, found.topic)


def _deadline(found: Delivery, expected: Expected) -> Finding:
    check, wanted = "subscription: ack deadline", expected.ack_deadline_seconds
    if expected.delivery == "pull":
        return ok(check, f"{wanted:g} s, which each stream asks for")
    if found.ack_deadline_seconds == wanted:
        return ok(check, f"{wanted:g} s, as ACK_DEADLINE_SECONDS")
    step = f"set both to the same value: ACK_DEADLINE_SECONDS={found.ack_deadline_seconds}, or {_UPDATE} --ack-deadline"
    return refused(check, f"{found.ack_deadline_seconds} s, and ACK_DEADLINE_SECONDS is {wanted:g}", step)


def _push(found: Delivery, expected: Expected) -> Finding:
    check = "subscription: push"
    if expected.delivery == "pull":
        if found.endpoint:
            step = f"{_UPDATE} --push-endpoint='', or set DELIVERY=push"
            return refused(
                check, f"it pushes to {found.endpoint}, and DELIVERY is pull: a push subscription is not pulled", step
            )
        return ok(check, "it pushes nothing, and is pulled")
    if not found.endpoint:
        return refused(check, "it has no push endpoint: nothing is pushed", f"{_UPDATE} --push-endpoint=URL")
    if found.body == "bare" and not expected.push_unwrapped:
        step = f"set PUSH_UNWRAPPED=true, or {_UPDATE} --push-no-wrapper --push-no-wrapper-write-metadata"
        return refused(check, "it pushes bare data, and PUSH_UNWRAPPED is not set: each push is answered 400", step)
    if found.body == "wrapped" and expected.push_unwrapped:
        said = "PUSH_UNWRAPPED is set, and it pushes wrapped messages: each wrapper is taken for data, and rejected"
        return refused(check, said, "unset PUSH_UNWRAPPED")
    return ok(check, f"to {found.endpoint}, {found.body}")


def _token(found: Delivery, expected: Expected, emulator: bool) -> Finding:
    check = "subscription: token"
    if expected.delivery == "pull":
        return ok(check, "none is needed: nothing is pushed")
    if not expected.push_audience:
        return note(check, "not verified here: PUSH_AUDIENCE is not set")
    if (found.audience, found.pusher) != (expected.push_audience, expected.push_service_account):
        return refused(
            check,
            f"it pushes as {found.pusher or 'no account'} for {found.audience or 'no audience'}; the settings want "
            f"{expected.push_service_account} for {expected.push_audience}, so that each push is answered 401 or 403",
            "make PUSH_SERVICE_ACCOUNT what --push-auth-service-account is, and PUSH_AUDIENCE --push-auth-token-audience",
        )
    if emulator:
        step = "unset PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT to try it with the emulator"
        return warning(check, "as the settings want, but the emulator sends no token: each push is answered 401", step)
    return ok(check, f"{found.pusher} for {found.audience}, as the settings want")


def _backoff(found: Delivery) -> Finding:
    check = "subscription: retry policy"
    if found.backoff is None:
        step = f"{_UPDATE} --min-retry-delay=1s --max-retry-delay=600s"
        return warning(check, "none: what is refused comes again at once, and uses up its delivery attempts", step)
    least, most = (delay.total_seconds() for delay in found.backoff)
    return ok(check, f"{least:g} s to {most:g} s")


def _retention(found: Delivery) -> Finding:
    check = "subscription: retention"
    if found.retention < _WEEK:
        step = f"{_UPDATE} --message-retention-duration=7d"
        return warning(check, f"{lasting(found.retention)}: a message that waits longer is lost", step)
    return ok(check, lasting(found.retention))


def _replay(found: Delivery) -> Finding:
    check = "subscription: replay"
    reach = max(found.retention if found.retains_acknowledged else timedelta(), found.topic_retention)
    if reach >= _WEEK:
        return ok(check, f"acknowledged messages can be delivered again for {lasting(reach)}")
    step = f"{_UPDATE} --retain-acked-messages --message-retention-duration=7d"
    if not reach:
        return warning(check, "acknowledged messages are not retained: none can be delivered again", step)
    return warning(check, f"acknowledged messages can be delivered again for {lasting(reach)} only", step)


def _expiration(found: Delivery, emulator: bool) -> Finding:
    check = "subscription: expiration"
    if found.expires_after is None and emulator:
        return note(check, "the emulator does not tell")
    if found.expires_after != timedelta():
        after = "31 days" if found.expires_after is None else lasting(found.expires_after)
        step = f"{_UPDATE} --expiration-period=never"
        return warning(check, f"deleted after {after} without a delivery; what is published then is lost", step)
    return ok(check, "never")


def _dead_letters(found: Delivery) -> Finding:
    check = "subscription: dead letters"
    if not found.dead_letter_topic:
        step = 'run deploy/pubsub.sh again; see docs/operations.md, "Dead letters"'
        return warning(check, "none: what can never be handled comes again until its retention ends", step)
    if found.delivery_attempts_max < _ATTEMPTS:
        return warning(
            check,
            f"after {found.delivery_attempts_max} attempts: an outage sends good messages to {found.dead_letter_topic}",
            f"{_UPDATE} --max-delivery-attempts={_ATTEMPTS}",
        )
    return ok(check, f"after {found.delivery_attempts_max} attempts, to {found.dead_letter_topic}")
