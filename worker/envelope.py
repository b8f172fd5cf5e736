"""The push envelope: the JSON in which a Pub/Sub push subscription wraps one message. Pure.

Source: Pub/Sub documentation, "Push subscriptions", section "Receive messages". The emulator and the service both send
`messageId` and `message_id`, `publishTime` and `publish_time`; `data` may be absent (attributes alone are a message);
`deliveryAttempt` is there only with a dead-letter policy, `orderingKey` only when the publisher gave one.
"""

from datetime import datetime

import msgspec

from worker.errors import NotAPush


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message as the queue delivered it. `publish_time` is in milliseconds since the epoch."""

    message_id: str
    publish_time: int
    data: bytes
    attributes: dict[str, str]
    ordering_key: str = ""
    delivery_attempt: int | None = None
    subscription: str = ""


class _Message(msgspec.Struct, frozen=True, rename="camel"):
    data: bytes | None = None
    attributes: dict[str, str] | None = None
    message_id: str = ""
    publish_time: datetime | None = None
    ordering_key: str = ""
    also_message_id: str = msgspec.field(default="", name="message_id")
    also_publish_time: datetime | None = msgspec.field(default=None, name="publish_time")


class _Push(msgspec.Struct, frozen=True, rename="camel"):
    message: _Message
    subscription: str = ""
    delivery_attempt: int | None = None


_decoder = msgspec.json.Decoder(_Push)


def decode(body: bytes) -> Delivery:
    """Unwrap a push body.

    Raises:
        NotAPush: It is not JSON, holds no message, or the message has no id, no publish time, or broken base64.
    """
    try:
        push = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec names types and places, never values: the text is safe to send back.
        raise NotAPush(f"the body is not a Pub/Sub push: {error}; send what a push subscription sends") from None
    message = push.message
    message_id = message.message_id or message.also_message_id
    published = message.publish_time or message.also_publish_time
    if not message_id:
        raise NotAPush("the body is not a Pub/Sub push: message.messageId is missing")
    if published is None or published.tzinfo is None:
        raise NotAPush("the body is not a Pub/Sub push: message.publishTime must be an RFC 3339 time with a zone")
    return Delivery(
        message_id=message_id,
        publish_time=round(published.timestamp() * 1000),
        data=message.data or b"",
        attributes=message.attributes or {},
        ordering_key=message.ordering_key,
        delivery_attempt=push.delivery_attempt,
        subscription=push.subscription,
    )
