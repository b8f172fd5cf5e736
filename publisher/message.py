"""The wire format of a user-creation message: the only place that knows it.

A message is JSON in the `data` of a Pub/Sub message:

    {"user_id": 1..2^63-1, "email_address": str|null, "settings": str|null, "created_at": epoch seconds|null}

Rules:
    * `user_id` is required; the other fields default to null. A null `created_at` means "the publish time",
      which the reader fills in, so that a replay gives the same row.
    * Unknown fields are ignored: an old worker must accept a newer publisher.
    * A key that appears twice counts as its last occurrence.
    * Attribute `event_type` may be absent, which means `user.created`; nothing else is accepted.
    * Strings hold no NUL and no lone surrogate: no database column and no UTF-8 encoder takes them.
    * An integer is written as an integer: `5.0`, `"5"` and `true` are not user ids.

What breaks a rule raises `MessageError`, and nothing else leaves `decode`. Its text names the field and what
the field must be, never what it was: an e-mail address belongs in no log.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

EVENT_TYPE: Final = "user.created"
EVENT_TYPE_ATTRIBUTE: Final = "event_type"

MIN_USER_ID: Final = 1
"""Smallest user id: 0 and negative numbers are what an unset or overflowed counter looks like."""
MAX_USER_ID: Final = 2**63 - 1
"""Largest user id: what SQLite's and PostgreSQL's 64-bit integer columns hold."""
MIN_CREATED_AT: Final = 0
"""Earliest creation time, in seconds since 1970-01-01T00:00:00Z: no user is older than that."""
MAX_CREATED_AT: Final = 253_402_300_799
"""Latest creation time, in epoch seconds: the end of 9999. Milliseconds sent by mistake lie beyond it."""
MAX_DATA_BYTES: Final = 10_000_000
"""Largest `data`, in bytes: Pub/Sub takes no larger message (10 MB)."""

NO_ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType({})

_MUST_BE: Final = {
    "user_id": f"an integer between {MIN_USER_ID} and {MAX_USER_ID}",
    "email_address": "a string or null",
    "settings": "a string or null",
    "created_at": f"null or whole seconds since 1970 (UTC), between {MIN_CREATED_AT} and {MAX_CREATED_AT}",
}
_FIELD_IN_PATH: Final = re.compile(r"`\$\.(\w+)")
_INTEGER_TOO_LONG: Final = "Integer value out of range"


class Reason(StrEnum):
    """Why a message can never be accepted. The list is closed: these codes are stored and alerted on."""

    TOO_LARGE = "too_large"  # data is longer than MAX_DATA_BYTES
    NOT_UTF8 = "not_utf8"  # data is not UTF-8 text
    NOT_JSON = "not_json"  # data is empty, not JSON, or nested too deeply to read
    NOT_AN_OBJECT = "not_an_object"  # data is JSON, but no object
    MISSING_FIELD = "missing_field"  # a required field is absent
    WRONG_TYPE = "wrong_type"  # a field has another JSON type than the format's
    OUT_OF_RANGE = "out_of_range"  # an integer lies outside its field's limits
    BAD_TEXT = "bad_text"  # a string holds a NUL or a lone surrogate
    UNKNOWN_EVENT = "unknown_event"  # attribute event_type is present and not user.created


class MessageError(ValueError):
    """A message that can never be accepted, however often it is delivered.

    Attributes:
        reason: one of the closed list of codes.
        field: the field (or attribute) at fault, or None when the message as a whole is.
        detail: one line for a person; names the field and what it must be, never the data.
    """

    def __init__(self, reason: Reason, detail: str, field: str | None = None) -> None:
        super().__init__(reason, detail, field)
        self.reason: Final = reason
        self.detail: Final = detail
        self.field: Final = field

    def __str__(self) -> str:
        return self.detail


class UserCreated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """One user to create. A value that breaks the format's rules cannot be built.

    Attributes:
        user_id: MIN_USER_ID to MAX_USER_ID.
        email_address: any text without NUL, or None.
        settings: any text without NUL, or None; opaque to this service.
        created_at: epoch seconds, or None for the message's publish time.

    Raises:
        MessageError: a field has the wrong type, is out of range or holds text that cannot be stored.
    """

    user_id: int
    email_address: str | None = None
    settings: str | None = None
    created_at: int | None = None

    def __post_init__(self) -> None:
        _check_integer("user_id", self.user_id, MIN_USER_ID, MAX_USER_ID)
        if self.created_at is not None:
            _check_integer("created_at", self.created_at, MIN_CREATED_AT, MAX_CREATED_AT)
        if self.email_address is not None:
            _check_text("email_address", self.email_address)
        if self.settings is not None:
            _check_text("settings", self.settings)

    def __repr__(self) -> str:
        return f"UserCreated(user_id={self.user_id})"


_DECODER: Final = msgspec.json.Decoder(UserCreated)
_ENCODER: Final = msgspec.json.Encoder()


def encode(user: UserCreated) -> bytes:
    """Return the message's `data`; null fields are left out.

    Raises:
        MessageError: the result is longer than MAX_DATA_BYTES.
    """
    data = _ENCODER.encode(user)
    _check_size(data)
    return data


def decode(data: bytes, attributes: Mapping[str, str] = NO_ATTRIBUTES, *, limit: int = MAX_DATA_BYTES) -> UserCreated:
    """Read a message's `data` and attributes; `limit` is the largest data, in bytes.

    Raises:
        MessageError: the message breaks the format; no other exception leaves this function.
    """
    if attributes.get(EVENT_TYPE_ATTRIBUTE, EVENT_TYPE) != EVENT_TYPE:
        detail = f"attribute {EVENT_TYPE_ATTRIBUTE} must be {EVENT_TYPE} or absent"
        raise MessageError(Reason.UNKNOWN_EVENT, detail, EVENT_TYPE_ATTRIBUTE)
    _check_size(data, limit)
    if not data:
        raise MessageError(Reason.NOT_JSON, "data is empty; it must be a JSON object")
    try:
        # msgspec does not look at the encoding of the fields it skips.
        data.decode("utf-8")
        return _DECODER.decode(data)
    except UnicodeDecodeError as error:
        raise MessageError(Reason.NOT_UTF8, f"data must be UTF-8 text; byte {error.start} is not") from None
    except RecursionError:
        raise MessageError(Reason.NOT_JSON, "data is nested too deeply; it must be a flat JSON object") from None
    except msgspec.ValidationError as error:
        raise _from_validation(error) from None
    except msgspec.DecodeError as error:
        raise MessageError(Reason.NOT_JSON, f"data must be a JSON object: {error}") from None


def envelope(
    data: bytes,
    attributes: Mapping[str, str],
    message_id: str,
    publish_time: datetime | str,
    subscription: str,
) -> bytes:
    """Return the body of a push request as Pub/Sub sends it, with every name in both of its spellings.

    Args:
        data: the message's data; left out when empty, as Pub/Sub does.
        attributes: the message's attributes; left out when there are none.
        message_id: unique per message, the same for every delivery of it.
        publish_time: an aware datetime, or an RFC 3339 string taken as it is.
        subscription: the full name, `projects/P/subscriptions/S`.

    Raises:
        ValueError: publish_time is a datetime without a time zone.
    """
    if isinstance(publish_time, datetime):
        publish_time = _rfc3339(publish_time)
    message: dict[str, object] = {"attributes": dict(attributes)} if attributes else {}
    if data:
        message["data"] = data  # msgspec writes bytes as base64
    message |= {"messageId": message_id, "message_id": message_id}
    message |= {"publishTime": publish_time, "publish_time": publish_time}
    return _ENCODER.encode({"message": message, "subscription": subscription})


def _rfc3339(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("publish_time must carry a time zone: pass datetime.now(UTC), not datetime.now()")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _check_size(data: bytes, limit: int = MAX_DATA_BYTES) -> None:
    if len(data) > limit:
        raise MessageError(Reason.TOO_LARGE, f"data must be at most {limit} bytes; it has {len(data)}")


def _check_integer(field: str, value: object, low: int, high: int) -> None:
    if type(value) is not int:
        raise _field_error(Reason.WRONG_TYPE, field)
    if not low <= value <= high:
        raise _field_error(Reason.OUT_OF_RANGE, field)


def _check_text(field: str, value: object) -> None:
    if type(value) is not str:
        raise _field_error(Reason.WRONG_TYPE, field)
    if "\0" in value:
        raise MessageError(Reason.BAD_TEXT, f"{field} must not contain a NUL character", field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MessageError(Reason.BAD_TEXT, f"{field} must not contain a lone surrogate", field) from None


def _field_error(reason: Reason, field: str) -> MessageError:
    return MessageError(reason, f"{field} must be {_MUST_BE[field]}", field)


def _from_validation(error: msgspec.ValidationError) -> MessageError:
    # msgspec wraps what __post_init__ raises; its own errors carry the field in their text only.
    if isinstance(error.__cause__, MessageError):
        return error.__cause__
    text = str(error)
    found = _FIELD_IN_PATH.search(text)
    if found is not None and found[1] in _MUST_BE:
        number = text.startswith(_INTEGER_TOO_LONG) and found[1] in ("user_id", "created_at")
        return _field_error(Reason.OUT_OF_RANGE if number else Reason.WRONG_TYPE, found[1])
    if "missing required field" in text:
        return MessageError(Reason.MISSING_FIELD, f"user_id is missing; it must be {_MUST_BE['user_id']}", "user_id")
    return MessageError(Reason.NOT_AN_OBJECT, "data must be a JSON object with a user_id")
