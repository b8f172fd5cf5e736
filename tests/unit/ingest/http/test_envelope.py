"""The push envelope: whatever the bytes, the answer is a delivery or `NotAPush`."""

import json
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher import message
from worker.errors import NotAPush
from worker.ingest.http import envelope
from worker.ingest.messages import Delivery

TIME = "2024-01-02T03:04:05.678Z"
MILLISECONDS = 1_704_164_645_678
HUGE = 10**400

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31), timezones=st.timezones())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["data", "attributes", "messageId", "message_id", "publishTime", "publish_time", "orderingKey", "else"]
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=1024)
"""Message ids: any text without control characters."""


def push(**fields: Any) -> bytes:
    """A push body whose message has these fields besides a good id and time; `...` removes a field."""
    inner = {"messageId": "m1", "publishTime": TIME, **fields}
    return json.dumps({"message": {name: value for name, value in inner.items() if value is not ...}}).encode()


def test_every_field_is_read() -> None:
    """What a subscription with ordering and a dead-letter policy sends arrives whole."""
    body = {
        "message": {
            "data": "eyJ1c2VyX2lkIjo1fQ==",
            "attributes": {"event_type": "user.created"},
            "messageId": "m1",
            "message_id": "m1",
            "publishTime": TIME,
            "publish_time": TIME,
            "orderingKey": "k",
        },
        "subscription": "projects/p/subscriptions/s",
        "deliveryAttempt": 3,
    }
    assert envelope.decode(json.dumps(body).encode()) == Delivery(
        message_id="m1",
        publish_time=MILLISECONDS,
        data=b'{"user_id":5}',
        attributes={"event_type": "user.created"},
        ordering_key="k",
        delivery_attempt=3,
        subscription="projects/p/subscriptions/s",
    )


@pytest.mark.parametrize(
    "body",
    [push(messageId=..., message_id="m1"), push(publishTime=..., publish_time=TIME), push(messageId="", message_id="m1")],
    ids=["message_id", "publish_time", "empty messageId"],
)
def test_either_spelling_will_do(body: bytes) -> None:
    """Pub/Sub sends both spellings; one is enough."""
    found = envelope.decode(body)
    assert (found.message_id, found.publish_time) == ("m1", MILLISECONDS)


@pytest.mark.parametrize("fields", [{}, {"data": None}, {"data": ""}], ids=["absent", "null", "empty"])
def test_absent_data_is_empty(fields: dict[str, Any]) -> None:
    """Pub/Sub leaves `data` out of a message that has attributes only."""
    found = envelope.decode(push(attributes={"a": "b"}, **fields))
    assert (found.data, found.attributes) == (b"", {"a": "b"})


def test_null_attributes_are_none() -> None:
    """A message without attributes may say so by null."""
    assert envelope.decode(push(attributes=None)).attributes == {}


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2024-01-02T03:04:05.678912345Z", MILLISECONDS + 1),
        ("2024-01-02T03:04:05Z", MILLISECONDS - 678),
        ("2024-01-02T03:04:05.6Z", MILLISECONDS - 78),
        ("2024-01-02T05:04:05.678+02:00", MILLISECONDS),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_publish_times_become_milliseconds(text: str, milliseconds: int) -> None:
    """Any precision up to nanoseconds and any zone, as RFC 3339 allows."""
    assert envelope.decode(push(publishTime=text)).publish_time == milliseconds


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b'{"message":null}',
        b'{"message":[]}',
        b'{"message":{"messageId":"1"',
        b'\xef\xbb\xbf{"message":{}}',
        b"\xff\xfe",
        push().replace(b"m1", b"\xff"),
        push().replace(b"m1", b"\xed\xa0\x80"),
        b"[" * 200_000,
        b'{"x":' * 100_000,
        b'{"message":' * 100_000,
        b'{"message":{"attributes":' + b"[" * 100_000,
        push(messageId=...),
        push(messageId=""),
        push(messageId=None),
        push(messageId=5),
        push(messageId=HUGE),
        push(messageId="\ud800"),
        push(messageId="x\udfff"),
        push(publishTime=...),
        push(publishTime=1_704_164_645),
        push(publishTime=HUGE),
        push(publishTime="yesterday"),
        push(publishTime="2024-01-02T03:04:05"),
        push(publishTime="2024-02-30T03:04:05Z"),
        push(publishTime="9999-12-31T23:59:59.9999999Z"),
        push(data="!!"),
        push(data="YQ"),
        push(data="YQ==\n"),
        push(data="_-8="),
        push(data=5),
        push(attributes={"a": 1}),
        push(attributes={"a": "\udc00"}),
        push(attributes={"a": HUGE}),
        push(attributes=["a"]),
        push(orderingKey="\ud800"),
        json.dumps({"message": {"messageId": "m1", "publishTime": TIME}, "subscription": 5}).encode(),
    ],
    ids=lambda body: body[:60].decode("latin-1"),
)
def test_what_is_no_push_is_refused(body: bytes) -> None:
    """No other exception leaves `decode`, however the bytes are broken, and the text says what is wrong."""
    with pytest.raises(NotAPush, match="the body is not a Pub/Sub push: "):
        envelope.decode(body)


@pytest.mark.parametrize(
    "body",
    [
        push(data="s3cret-value"),
        push(publishTime="s3cret"),
        push(attributes={"s3cret": 1}),
        push(messageId={"s3cret": "s3cret"}),
        b'{"s3cret": s3cret}',
    ],
)
def test_a_refusal_names_no_value(body: bytes) -> None:
    """The text goes back to the sender and into the log, so it never holds what was sent."""
    with pytest.raises(NotAPush) as refused:
        envelope.decode(body)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, 0), (7, 7), (2**31 - 1, 2**31 - 1), (2**31, None), (-1, None), pytest.param(HUGE, None, id="huge")],
)
def test_a_delivery_attempt_that_is_no_count_is_left_out(count: int, kept: int | None) -> None:
    """It is only kept for people to read: no number in it costs a message."""
    body = json.dumps({"message": {"messageId": "m1", "publishTime": TIME}, "deliveryAttempt": count}).encode()
    assert envelope.decode(body).delivery_attempt == kept


@pytest.mark.parametrize("message_id", ["a\nb", "\n", "a\n", "\0", "\x7f", "x" * 1025])
def test_an_id_that_no_log_or_path_can_hold_is_no_push(message_id: str) -> None:
    """Control characters and endless ids: Pub/Sub sends digits."""
    with pytest.raises(NotAPush):
        envelope.decode(push(messageId=message_id))


def test_attributes_are_bounded() -> None:
    """INV-7: what Pub/Sub takes at most is taken, and larger ones; a body full of small ones is refused unread."""

    def push(attributes: dict[str, str]) -> bytes:
        return message.envelope(b"{}", attributes, "1", "2026-01-01T00:00:00Z", "projects/p/subscriptions/s")

    for taken in ({f"{n:03}" + '"' * 253: '"' * 1024 for n in range(100)}, {"a": "x" * 5_000_000}):
        assert envelope.decode(push(taken)).attributes == taken
    tracemalloc.start()
    try:
        body = push({"a": "b"}).replace(b'"a":"b"', b",".join(b'"%x":""' % number for number in range(1_000_000)))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(NotAPush, match="attributes are more than Pub/Sub takes"):
            envelope.decode(body)
        assert tracemalloc.get_traced_memory()[1] - before < 2 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["1969-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2024-01-02T03:04:05", ""]
)
def test_a_publish_time_that_is_none_is_no_push(text: str) -> None:
    """Before 1970, out of what can be counted, or without a zone: Pub/Sub sends none of these."""
    with pytest.raises(NotAPush):
        envelope.decode(push(publishTime=text))


HEADERS = {
    "x-goog-pubsub-message-id": "m1",
    "x-goog-pubsub-publish-time": TIME,
    "x-goog-pubsub-subscription-name": "projects/p/subscriptions/s",
    "x-goog-pubsub-ordering-key": "k",
    "x-goog-pubsub-delivery-attempt": "4",
    "event_type": "user.created",
    "authorization": "Bearer s3cret",
}


def test_an_unwrapped_push_is_read_from_its_headers() -> None:
    """The body is the data; of the attributes the one that is read is taken, and no header of the transport."""
    found = envelope.unwrapped(b"data", HEADERS, now=1)
    assert found == Delivery(
        message_id="m1",
        publish_time=MILLISECONDS,
        data=b"data",
        attributes={"event_type": "user.created"},
        ordering_key="k",
        delivery_attempt=4,
        subscription="projects/p/subscriptions/s",
    )


def test_an_unwrapped_push_without_metadata_is_known_by_its_content() -> None:
    """INV-3: delivered again it is the same message; its time is the first we know."""
    first, again, other = (envelope.unwrapped(data, {}, now=now) for data, now in ((b"a", 1), (b"a", 2), (b"b", 3)))
    assert first.message_id == again.message_id != other.message_id
    assert first.message_id.startswith(envelope.CONTENT_ID)
    assert (first.publish_time, again.publish_time) == (1, 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"x-goog-pubsub-message-id": ""},
        {"x-goog-pubsub-message-id": "a\tb"},
        {"x-goog-pubsub-message-id": "x" * 1025},
        {"x-goog-pubsub-publish-time": ""},
        {"x-goog-pubsub-publish-time": "yesterday"},
        {"x-goog-pubsub-publish-time": '2024-01-02T03:04:05"'},
    ],
)
def test_metadata_that_is_none_is_no_push(changed: dict[str, str]) -> None:
    """An id and a time that can be counted are what Pub/Sub sends."""
    with pytest.raises(NotAPush):
        envelope.unwrapped(b"data", {**HEADERS, **changed}, now=1)


@given(st.binary(max_size=10_000), st.dictionaries(TEXT, TEXT, max_size=5), IDS, TIMES, TEXT)
def test_what_the_publisher_wraps_is_unwrapped(
    data: bytes, attributes: dict[str, str], message_id: str, time: datetime, subscription: str
) -> None:
    """The envelope that `publisher.message` builds comes out as it went in, to the millisecond."""
    found = envelope.decode(message.envelope(data, attributes, message_id, time, subscription))
    moment = time.astimezone(UTC)
    whole = int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000
    assert found == Delivery(
        message_id=message_id, publish_time=whole, data=data, attributes=attributes, subscription=subscription
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_a_push_or_not(body: bytes) -> None:
    """Arbitrary bytes raise `NotAPush` or give a delivery."""
    decoded_or_refused(body)


@given(st.sampled_from(FIELDS), JSON)
def test_any_field_is_a_push_or_not(name: str, value: object) -> None:
    """A good push with one field replaced by any JSON value, NaN and lone surrogates included."""
    decoded_or_refused(push(**{name: value}))


@given(st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_push_is_a_push_or_not(place: int, junk: bytes) -> None:
    """A good push, cut or overwritten anywhere."""
    body = message.envelope(b'{"user_id":5}', {"a": "b"}, "m1", TIME, "projects/p/subscriptions/s")
    decoded_or_refused(body[:place] + junk + body[place + len(junk) :])
    decoded_or_refused(body[:place] + junk)


def decoded_or_refused(body: bytes) -> None:
    """Decode; anything but a delivery with an id, or `NotAPush`, is a failure."""
    try:
        found = envelope.decode(body)
    except NotAPush:
        return
    assert isinstance(found, Delivery)
    assert found.message_id
    assert isinstance(found.publish_time, int)
