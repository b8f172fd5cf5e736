"""The push envelope: what a Pub/Sub push subscription makes of one message, in each of its forms. Pure.

Wrapped (the default): JSON around the message, its data in base64. The emulator and the service both send `messageId` and
`message_id`, `publishTime` and `publish_time`; `data` may be absent (attributes alone are a message); `deliveryAttempt` is
there only with a dead-letter policy, `orderingKey` only when the publisher gave one.
Source: Pub/Sub documentation, "Push subscriptions", section "Receive messages".

Unwrapped: the body is the data itself. With "write metadata" the rest stands in `x-goog-pubsub-*` headers, and each
attribute in a header of its own; without it there is nothing else.
Source: Pub/Sub documentation, "Payload unwrapping for Pub/Sub push subscriptions".
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final

import msgspec

from worker.errors import NotAPush
from worker.ingest.messages import Delivery

HEADERS: Final = "x-goog-pubsub-"
"""How the metadata's headers of an unwrapped push begin."""
ID_HEADER: Final = HEADERS + "message-id"
CONTENT_ID: Final = "sha256-"
"""How the id of a message begins that came without one: the rest is the digest of its data."""
_EVENT_TYPE: Final = "event_type"
"""The one attribute that is read; the others of an unwrapped push cannot be told from headers that proxies add."""

_ID_PATTERN: Final = r"\A[^\x00-\x1f\x7f]*\Z"
"""An id stands in logs and in paths, so control characters have no place in it; Pub/Sub's are digits."""
_Id = Annotated[str, msgspec.Meta(max_length=1024, pattern=_ID_PATTERN)]
_TIME_MAX: Final = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since the epoch."""
_QUOTES_MAX: Final = 200_000
"""Most quotation marks in the attributes: Pub/Sub takes 100 of 256 and 1024 bytes, so 128,400 if they are nothing else.
A million small ones, which a body has room for, would hold everybody up for seconds (INV-7).
Source: Pub/Sub documentation, "Quotas and limits"."""
_ATTEMPT_MAX: Final = 2**31 - 1
"""A larger count of deliveries is none."""


class _Message(msgspec.Struct, frozen=True, rename="camel"):
    data: bytes | None = None
    attributes: dict[str, str] | None = None
    message_id: _Id = ""
    publish_time: datetime | None = None
    ordering_key: str = ""
    also_message_id: _Id = msgspec.field(default="", name="message_id")
    also_publish_time: datetime | None = msgspec.field(default=None, name="publish_time")


class _Push(msgspec.Struct, frozen=True, rename="camel"):
    message: _Message
    subscription: str = ""
    delivery_attempt: int | None = None


class _AttributesAlone(msgspec.Struct, frozen=True):
    attributes: msgspec.Raw = msgspec.Raw(b"")


class _Sized(msgspec.Struct, frozen=True):
    message: _AttributesAlone = _AttributesAlone()


_decoder = msgspec.json.Decoder(_Push)
_sized = msgspec.json.Decoder(_Sized)
_time_decoder = msgspec.json.Decoder(datetime)


def decode(body: bytes) -> Delivery:
    """Unwrap a push body.

    Raises:
        NotAPush: It is not JSON, holds no message, or the message has no id, no publish time, or broken base64.
    """
    try:
        if len(body) > _QUOTES_MAX and bytes(_sized.decode(body).message.attributes).count(b'"') > _QUOTES_MAX:
            raise NotAPush("the body is not a Pub/Sub push: message.attributes are more than Pub/Sub takes")
        push = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec names types and places, never values: the text is safe to send back.
        raise NotAPush(f"the body is not a Pub/Sub push: {error}; send what a push subscription sends") from None
    message = push.message
    message_id = message.message_id or message.also_message_id
    if not message_id:
        raise NotAPush("the body is not a Pub/Sub push: message.messageId is missing")
    return Delivery(
        message_id=message_id,
        publish_time=_milliseconds(message.publish_time or message.also_publish_time, "message.publishTime"),
        data=message.data or b"",
        attributes=message.attributes or {},
        ordering_key=message.ordering_key,
        delivery_attempt=_attempt(push.delivery_attempt),
        subscription=push.subscription,
    )


def unwrapped(body: bytes, headers: Mapping[str, str], *, now: int) -> Delivery:
    """Read a push without wrapper.

    Args:
        body: The message's data.
        headers: The request's, by lower-case names.
        now: Milliseconds since the epoch: the publish time of a message that came without any. Its id is then the digest
            of its data, so that the same data, delivered again, is the same message (INV-3).

    Raises:
        NotAPush: A header of the metadata is no id, or no time.
    """
    attributes = {_EVENT_TYPE: headers[_EVENT_TYPE]} if _EVENT_TYPE in headers else {}
    if ID_HEADER not in headers:
        digest = hashlib.sha256(body).hexdigest()
        return Delivery(message_id=CONTENT_ID + digest, publish_time=now, data=body, attributes=attributes)
    message_id, stated = headers[ID_HEADER], headers.get(HEADERS + "publish-time", "")
    if not 0 < len(message_id) <= 1024 or not re.match(_ID_PATTERN, message_id):
        raise NotAPush(f"the push has no message id: header {ID_HEADER} must have 1 to 1024 characters, none of control")
    attempt = headers.get(HEADERS + "delivery-attempt", "")
    return Delivery(
        message_id=message_id,
        publish_time=_milliseconds(_time(stated), f"header {HEADERS}publish-time"),
        data=body,
        attributes=attributes,
        ordering_key=headers.get(HEADERS + "ordering-key", ""),
        delivery_attempt=_attempt(int(attempt)) if attempt.isascii() and attempt.isdecimal() and len(attempt) < 20 else None,
        subscription=headers.get(HEADERS + "subscription-name", ""),
    )


def _attempt(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _ATTEMPT_MAX else None


def _time(text: str) -> datetime | None:
    try:
        return _time_decoder.decode(msgspec.json.encode(text))
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _milliseconds(moment: datetime | None, where: str) -> int:
    wanted = f"the body is not a Pub/Sub push: {where} must be an RFC 3339 time with a zone, from 1970 to 9999"
    if moment is None or moment.tzinfo is None:
        raise NotAPush(wanted)
    try:
        milliseconds = round(moment.timestamp() * 1000)
    except OverflowError:  # in the first or last hours that a datetime can name, with an offset leading out of them
        raise NotAPush(wanted) from None
    if not 0 <= milliseconds <= _TIME_MAX:
        raise NotAPush(wanted)
    return milliseconds
