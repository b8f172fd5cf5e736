"""A message to publish, and the body of the push request that Pub/Sub makes of one."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from worker.events.declaration import EVENT_TYPE_ATTRIBUTE, Event


class Message(NamedTuple):
    """One message: its event, and what it says."""

    event: Event
    content: msgspec.Struct

    @property
    def data(self) -> bytes:
        """The message's data.

        Raises:
            MessageError: it breaks the event's format, or is larger than Pub/Sub takes.
        """
        return self.event.encode(self.content)

    @property
    def attributes(self) -> dict[str, str]:
        """What every message of ours carries, so that a subscription's filter can tell it from others."""
        return {EVENT_TYPE_ATTRIBUTE: self.event.name}

    @property
    def key(self) -> dict[str, object]:
        """The field that is the row's key, and its value; empty if the key is no field."""
        return {self.event.key: getattr(self.content, self.event.key)} if self.event.key in self.event.fields else {}


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
    return msgspec.json.encode({"message": message, "subscription": subscription})


def _rfc3339(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("publish_time must carry a time zone: pass datetime.now(UTC), not datetime.now()")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
