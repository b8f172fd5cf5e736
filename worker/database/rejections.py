"""Reads rejections: filtered lists without their data, and one whole. Runs on a reading connection."""

import base64
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from peewee import fn

from worker.database.models import REASONS, Connection, Rejection

PAGE_MAX: Final = 500
"""Most rejections in one answer."""

_LISTED: Final = (
    Rejection.message_id,
    Rejection.reason,
    Rejection.detail,
    Rejection.publish_time,
    Rejection.received_at,
    Rejection.delivery_attempt,
    Rejection.resolved_at,
    Rejection.resolution,
    Rejection.bytes,
)
_TIMES: Final = ("publish_time", "received_at", "resolved_at")


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rejections. Times are in milliseconds since the epoch, of the receipt; `until` is not part of the span.

    `after` goes on behind the last one of an earlier page: its time and message id.
    """

    reason: str | None = None
    since: int | None = None
    until: int | None = None
    resolved: bool = False
    after: tuple[int, str] | None = None
    limit: int = PAGE_MAX


class Page(msgspec.Struct, frozen=True):
    """Some rejections, oldest first, and where the next page begins; None when there is none."""

    rejections: list[dict[str, Any]]
    after: tuple[int, str] | None


def page(database: Connection, wanted: Filter) -> Page:
    """One page of rejections, without their data but with its `bytes`."""
    query = Rejection.select(*_LISTED)
    for given, condition in (
        (wanted.reason, Rejection.reason == wanted.reason),
        (wanted.since, Rejection.received_at >= wanted.since),
        (wanted.until, Rejection.received_at < wanted.until),
    ):
        if given is not None:
            query = query.where(condition)
    if not wanted.resolved:
        query = query.where(Rejection.resolved_at.is_null())
    if wanted.after is not None:
        time, message_id = wanted.after
        behind = (Rejection.received_at == time) & (Rejection.message_id > message_id)
        query = query.where((Rejection.received_at > time) | behind)
    query = query.order_by(Rejection.received_at, Rejection.message_id).limit(wanted.limit).dicts()
    rows: list[dict[str, Any]] = list(query.bind(database))  # type: ignore[arg-type]  # of dictionaries
    after = (rows[-1]["received_at"], rows[-1]["message_id"]) if len(rows) == wanted.limit else None
    return Page([_readable(row) for row in rows], after)


def open_by_reason(database: Connection) -> dict[str, int]:
    """How many are open, by reason."""
    query = Rejection.select(Rejection.reason, fn.COUNT(Rejection.message_id)).where(Rejection.resolved_at.is_null())
    rows: list[tuple[str, int]] = list(query.group_by(Rejection.reason).tuples().bind(database))  # type: ignore[arg-type]  # of tuples
    return dict.fromkeys(map(str, REASONS), 0) | dict(rows)


def open_since(database: Connection) -> dict[str, tuple[int, datetime]]:
    """How many are open, and when the oldest of them was received, by reason; reasons without any are left out."""
    columns = (Rejection.reason, fn.COUNT(Rejection.message_id), fn.MIN(Rejection.received_at))
    query = Rejection.select(*columns).where(Rejection.resolved_at.is_null()).group_by(Rejection.reason)
    rows: list[tuple[str, int, int]] = list(query.tuples().bind(database))  # type: ignore[arg-type]  # of tuples
    return {reason: (count, datetime.fromtimestamp(oldest / 1000, UTC)) for reason, count, oldest in rows}


def whole(database: Connection, message_id: str) -> dict[str, Any] | None:
    """One rejection with everything that is kept of it, or None.

    `data` is base64. Where `body` names an object of the bucket, `data` is empty.
    """
    row: dict[str, Any] | None = Rejection.select().where(Rejection.message_id == message_id).dicts().bind(database).first()
    if row is None:
        return None
    data = bytes(row.pop("data"))
    return _readable(row) | {
        "attributes": msgspec.json.decode(row["attributes"]),
        "stored": None if row["stored"] is None else msgspec.json.decode(row["stored"]),
        "data": base64.b64encode(data).decode(),
    }


def body_of(database: Connection, message_id: str) -> str | None:
    """The object that holds an open rejection's bytes; None if its row holds them, or there is no such rejection."""
    query = Rejection.select(Rejection.body).where((Rejection.message_id == message_id) & Rejection.resolved_at.is_null())
    row: tuple[str | None] | None = query.tuples().bind(database).first()
    return None if row is None else row[0]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: None if row[name] is None else _rfc3339(row[name]) for name in _TIMES}


def _rfc3339(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
