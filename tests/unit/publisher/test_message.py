"""The wire format: every rule, one trigger at a time."""

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher.message import Message, envelope
from tests.entries import CATALOG
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE, MAX_DATA_BYTES, MessageError, Reason
from worker.events.users import MAX_CREATED_AT, MAX_USER_ID, USER_CREATED, UserCreated

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
USERS = st.builds(
    UserCreated,
    user_id=st.integers(1, MAX_USER_ID),
    email_address=st.none() | TEXT,
    settings=st.none() | TEXT,
    created_at=st.none() | st.integers(0, MAX_CREATED_AT),
)
DEEP = b"[" * 100_000

REFUSED: dict[str, tuple[bytes, Reason, str | None]] = {
    "empty": (b"", Reason.NOT_JSON, None),
    "blank": (b"  ", Reason.NOT_JSON, None),
    "no JSON": (b"hello", Reason.NOT_JSON, None),
    "two values": (b'{"user_id":1}{"user_id":2}', Reason.NOT_JSON, None),
    "cut off": (b'{"user_id":1', Reason.NOT_JSON, None),
    "NaN": (b'{"user_id":NaN}', Reason.NOT_JSON, None),
    "raw control character": (b'{"user_id":1,"settings":"\x01"}', Reason.NOT_JSON, None),
    "escaped lone surrogate": (b'{"user_id":1,"settings":"\\ud800x"}', Reason.NOT_JSON, None),
    "escaped lone surrogate at the end": (b'{"user_id":1,"settings":"\\ud800"}', Reason.NOT_JSON, None),
    "deep unknown field": (b'{"user_id":1,"x":' + DEEP, Reason.NOT_JSON, None),
    "byte order mark": (b'\xef\xbb\xbf{"user_id":1}', Reason.NOT_JSON, None),
    "not UTF-8": (b'{"user_id":1,"settings":"\xff"}', Reason.NOT_UTF8, None),
    "not UTF-8 in an unknown field": (b'{"user_id":1,"x":"\xff"}', Reason.NOT_UTF8, None),
    "encoded surrogate": (b'{"user_id":1,"settings":"\xed\xa0\x80"}', Reason.NOT_UTF8, None),
    "list": (b'[{"user_id":1}]', Reason.NOT_AN_OBJECT, None),
    "deep list": (DEEP, Reason.NOT_AN_OBJECT, None),
    "null": (b"null", Reason.NOT_AN_OBJECT, None),
    "string": (b'"user_id"', Reason.NOT_AN_OBJECT, None),
    "no user id": (b"{}", Reason.MISSING_FIELD, "user_id"),
    "other fields only": (b'{"email_address":"a@example.com"}', Reason.MISSING_FIELD, "user_id"),
    "null user id": (b'{"user_id":null}', Reason.WRONG_TYPE, "user_id"),
    "true": (b'{"user_id":true}', Reason.WRONG_TYPE, "user_id"),
    "float": (b'{"user_id":5.0}', Reason.WRONG_TYPE, "user_id"),
    "exponent": (b'{"user_id":1e3}', Reason.WRONG_TYPE, "user_id"),
    "infinite": (b'{"user_id":1e999}', Reason.WRONG_TYPE, "user_id"),
    "digits in a string": (b'{"user_id":"5"}', Reason.WRONG_TYPE, "user_id"),
    "deep user id": (b'{"user_id":' + DEEP, Reason.WRONG_TYPE, "user_id"),
    "number as e-mail": (b'{"user_id":1,"email_address":5}', Reason.WRONG_TYPE, "email_address"),
    "infinite e-mail": (b'{"user_id":1,"email_address":1e999}', Reason.WRONG_TYPE, "email_address"),
    "huge number as e-mail": (
        b'{"user_id":1,"email_address":' + b"9" * 5000 + b"}",
        Reason.WRONG_TYPE,
        "email_address",
    ),
    "object as settings": (b'{"user_id":1,"settings":{"a":1}}', Reason.WRONG_TYPE, "settings"),
    "deep settings": (b'{"user_id":1,"settings":' + DEEP, Reason.WRONG_TYPE, "settings"),
    "date as created_at": (b'{"user_id":1,"created_at":"2024-01-01"}', Reason.WRONG_TYPE, "created_at"),
    "true as created_at": (b'{"user_id":1,"created_at":true}', Reason.WRONG_TYPE, "created_at"),
    "zero": (b'{"user_id":0}', Reason.OUT_OF_RANGE, "user_id"),
    "negative": (b'{"user_id":-1}', Reason.OUT_OF_RANGE, "user_id"),
    "one too many": (b'{"user_id":9223372036854775808}', Reason.OUT_OF_RANGE, "user_id"),
    "beyond unsigned": (b'{"user_id":18446744073709551616}', Reason.OUT_OF_RANGE, "user_id"),
    "5,000 digits": (b'{"user_id":' + b"9" * 5000 + b"}", Reason.OUT_OF_RANGE, "user_id"),
    "before 1970": (b'{"user_id":1,"created_at":-1}', Reason.OUT_OF_RANGE, "created_at"),
    "year 10000": (b'{"user_id":1,"created_at":253402300800}', Reason.OUT_OF_RANGE, "created_at"),
    "NUL in the e-mail": (b'{"user_id":1,"email_address":"a\\u0000"}', Reason.BAD_TEXT, "email_address"),
    "NUL in the settings": (b'{"user_id":1,"settings":"\\u0000"}', Reason.BAD_TEXT, "settings"),
    "too large": (b" " * (MAX_DATA_BYTES + 1), Reason.TOO_LARGE, None),
}


def decode(data: bytes) -> UserCreated:
    """Read a `user.created`."""
    content = USER_CREATED.decode(data)
    assert isinstance(content, UserCreated)
    return content


@given(USERS)
def test_what_is_encoded_decodes_to_the_same_user(user: UserCreated) -> None:
    """Encoding and decoding lose nothing of any valid user."""
    assert decode(USER_CREATED.encode(user)) == user


@given(
    st.binary()
    | st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps({"user_id": value}).encode("utf-8", "surrogatepass")
    )
)
def test_nothing_but_a_message_error_leaves_decode(data: bytes) -> None:
    """Whatever the bytes are, decode returns a user or raises MessageError."""
    with suppress(MessageError):
        assert 1 <= decode(data).user_id <= MAX_USER_ID


@pytest.mark.parametrize(("data", "reason", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(data: bytes, reason: Reason, field: str | None) -> None:
    """Each broken rule has its reason, and names the field at fault where there is one."""
    with pytest.raises(MessageError) as caught:
        decode(data)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert field is None or field in caught.value.detail
    assert str(caught.value) == caught.value.detail


def test_every_reason_is_reached() -> None:
    """No reason code is dead: the table above, the event type, and an unknown field where that is refused, raise all."""
    elsewhere = {Reason.UNKNOWN_EVENT, Reason.UNKNOWN_FIELD}
    assert {reason for _, reason, _ in REFUSED.values()} | elsewhere == set(Reason)


def test_smallest_message() -> None:
    """A user id alone is a message; everything else is null."""
    assert decode(b'{"user_id":1}') == UserCreated(user_id=1)


def test_limits_are_inclusive() -> None:
    """The largest user id and the last second of the year 9999 are accepted."""
    user = decode(b'{"user_id":9223372036854775807,"created_at":253402300799}')
    assert (user.user_id, user.created_at) == (MAX_USER_ID, MAX_CREATED_AT)
    assert datetime.fromtimestamp(MAX_CREATED_AT, UTC).isoformat() == "9999-12-31T23:59:59+00:00"


def test_nulls_are_absent_fields() -> None:
    """An explicit null says the same as no field."""
    data = b'{"user_id":1,"email_address":null,"settings":null,"created_at":null}'
    assert decode(data) == UserCreated(user_id=1)


def test_unknown_fields_are_ignored() -> None:
    """A newer publisher may send more than this reader knows."""
    assert decode(b'{"user_id":1,"plan":{"name":"x","since":[1,2.5]}}') == UserCreated(user_id=1)


def test_last_of_a_repeated_key_counts() -> None:
    """A key that appears twice counts as its last occurrence."""
    assert decode(b'{"user_id":1,"user_id":2}').user_id == 2


def test_blanks_around_the_object_are_fine() -> None:
    """JSON's white space may surround the object, so a line of a file can be decoded as it is."""
    assert decode(b' \t{"user_id":1}\r\n').user_id == 1


def test_surrogate_pair_is_a_character() -> None:
    """Two escapes that form one character are text like any other."""
    assert decode(b'{"user_id":1,"settings":"\\ud83d\\ude00"}').settings == "\U0001f600"


def test_event_type_may_be_given() -> None:
    """The attribute event_type=user.created says what its absence says; other attributes are ignored."""
    assert CATALOG.event({EVENT_TYPE_ATTRIBUTE: "user.created", "other": "x"}) is CATALOG.event({}) is USER_CREATED
    assert Message(USER_CREATED, UserCreated(user_id=1)).attributes == {EVENT_TYPE_ATTRIBUTE: "user.created"}


@pytest.mark.parametrize("event_type", ["user.gone", "", "USER.CREATED"])
def test_other_event_types_are_refused(event_type: str) -> None:
    """An event type that is not declared is refused, whatever the data, and the text names those that are."""
    with pytest.raises(MessageError) as caught:
        CATALOG.event({EVENT_TYPE_ATTRIBUTE: event_type})
    assert (caught.value.reason, caught.value.field) == (Reason.UNKNOWN_EVENT, EVENT_TYPE_ATTRIBUTE)
    assert "user.created, user.updated, user.deleted or absent" in caught.value.detail


def test_largest_message_fits() -> None:
    """Data of exactly the limit is accepted, one byte more cannot be encoded."""
    frame = len(USER_CREATED.encode(UserCreated(user_id=1, settings="")))
    text = "x" * (MAX_DATA_BYTES - frame)
    assert decode(USER_CREATED.encode(UserCreated(user_id=1, settings=text))).settings == text
    with pytest.raises(MessageError) as caught:
        USER_CREATED.encode(UserCreated(user_id=1, settings=text + "x"))
    assert caught.value.reason == Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"user_id": 0}, Reason.OUT_OF_RANGE),
        ({"user_id": "5"}, Reason.WRONG_TYPE),
        ({"user_id": True}, Reason.WRONG_TYPE),
        ({"user_id": 1, "created_at": 1.5}, Reason.WRONG_TYPE),
        ({"user_id": 1, "email_address": 7}, Reason.WRONG_TYPE),
        ({"user_id": 1, "email_address": "\ud800"}, Reason.BAD_TEXT),
    ],
)
def test_an_invalid_user_cannot_be_built_or_sent(fields: dict[str, Any], reason: Reason) -> None:
    """The rules hold for a user built in code as they do for one that was read."""
    makers: list[Callable[[], object]] = [
        lambda: USER_CREATED.build(fields),
        lambda: Message(USER_CREATED, UserCreated(**fields)).data,
    ]
    for make in makers:
        with pytest.raises(MessageError) as caught:
            make()
        assert caught.value.reason == reason


def test_errors_and_reprs_keep_data_to_themselves() -> None:
    """Neither an error nor a user's repr shows an e-mail address or settings: they end in logs."""
    with pytest.raises(MessageError) as caught:
        decode(b'{"user_id":1,"email_address":"secret@example.com","settings":"secret\\u0000"}')
    assert "secret" not in repr(caught.value)
    assert "secret" not in repr(UserCreated(user_id=1, email_address="secret", settings="secret"))


def test_message_error_survives_pickling() -> None:
    """The error can cross a process boundary with everything it says."""
    error = pickle.loads(pickle.dumps(MessageError(Reason.WRONG_TYPE, "user_id must be …", "user_id")))
    assert (error.reason, error.detail, error.field) == (Reason.WRONG_TYPE, "user_id must be …", "user_id")


def test_envelope_has_what_pubsub_sends() -> None:
    """The push body carries base64 data, both spellings of every name, and times in UTC."""
    moment = datetime(2024, 5, 6, 9, 8, 9, 120_000, tzinfo=timezone(timedelta(hours=2)))
    body = json.loads(envelope(b'{"user_id":1}', {"a": "b"}, "17", moment, "projects/p/subscriptions/s"))
    assert body == {
        "message": {
            "attributes": {"a": "b"},
            "data": base64.b64encode(b'{"user_id":1}').decode(),
            "messageId": "17",
            "message_id": "17",
            "publishTime": "2024-05-06T07:08:09.120Z",
            "publish_time": "2024-05-06T07:08:09.120Z",
        },
        "subscription": "projects/p/subscriptions/s",
    }


def test_envelope_leaves_out_what_is_empty() -> None:
    """Like Pub/Sub, the envelope has no attributes and no data when there are none."""
    body = json.loads(envelope(b"", {}, "17", "2024-05-06T07:08:09Z", "s"))
    assert body["message"].keys() == {"messageId", "message_id", "publishTime", "publish_time"}
    assert body["message"]["publishTime"] == "2024-05-06T07:08:09Z"


def test_envelope_wants_a_time_zone() -> None:
    """A publish time without a zone would be off by hours on some machines: it is refused."""
    with pytest.raises(ValueError, match="time zone"):
        envelope(b"", {}, "1", datetime(2024, 5, 6), "s")


def test_importing_the_format_does_not_import_pubsub() -> None:
    """The worker imports the format alone; Google's client stays out of its process."""
    code = "import sys, publisher.message; sys.exit('google.cloud.pubsub_v1' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
