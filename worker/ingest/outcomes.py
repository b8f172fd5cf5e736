"""Decides what each message of a group does: its outcome, and the rows that it writes. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from publisher.message import UserCreated
from worker.database.models import CONFLICT
from worker.ingest.messages import Entry, Outcome, Problem


class UserRow(NamedTuple):
    """A row of `users`, in the columns' order."""

    user_id: int
    email_address: str | None
    created_at: int | None
    deleted: int | None
    settings: str | None


class ReceiptRow(NamedTuple):
    """A row of `receipts`, in the columns' order."""

    message_id: str
    user_id: int | None
    outcome: str
    publish_time: int
    processed_at: int
    epoch: int


@dataclass(slots=True)
class Plan:
    """The rows one group writes, and the outcome of each of its messages."""

    users: list[UserRow] = field(default_factory=list)
    receipts: list[ReceiptRow] = field(default_factory=list)
    rejections: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def plan(
    entries: Sequence[Entry],
    *,
    receipts: Iterable[str],
    users: Mapping[int, UserRow],
    epoch: int,
    now: int,
) -> Plan:
    """Decide the outcome of each message of a group, in order.

    Args:
        entries: The group.
        receipts: Those of its message ids that have been handled before.
        users: The rows there already are for its user ids.
        epoch: The writer life, kept in each receipt.
        now: Milliseconds since the epoch.
    """
    made = Plan()
    handled, rows = set(receipts), dict(users)
    for entry in entries:
        message_id, content = entry.delivery.message_id, entry.content
        if message_id in handled:
            made.outcomes.append("duplicate")
            continue
        handled.add(message_id)
        outcome, problem, stored = _decide(content, rows)
        if outcome == "created":
            assert isinstance(content, UserCreated)
            rows[content.user_id] = row = _row(content, entry.delivery.publish_time)
            made.users.append(row)
        if problem is not None:
            made.rejections.append(_rejection(entry, problem, stored, now))
        made.outcomes.append(outcome)
        made.receipts.append(_receipt(entry, outcome, epoch, now))
    return made


def _decide(content: UserCreated | Problem, rows: Mapping[int, UserRow]) -> tuple[Outcome, Problem | None, UserRow | None]:
    if isinstance(content, Problem):
        claimed = rows.get(content.claims) if content.claims is not None else None
        return ("erased", None, None) if claimed is not None and claimed.deleted else ("rejected", content, None)
    stored = rows.get(content.user_id)
    if stored is None:
        return "created", None, None
    if stored.deleted:
        return "erased", None, None
    differing = [name for name in ("email_address", "settings") if getattr(stored, name) != getattr(content, name)]
    # A message that states no time says nothing that could differ: its publish time is not content.
    if content.created_at not in (None, stored.created_at):
        differing.append("created_at")
    if not differing:
        return "exists", None, None
    return "conflict", Problem(CONFLICT, f"this user is stored with another {' and '.join(differing)}"), stored


def _row(user: UserCreated, publish_time: int) -> UserRow:
    # The message's own time or, so that a replay gives the same row, its publish time.
    created_at = publish_time // 1000 if user.created_at is None else user.created_at
    return UserRow(user.user_id, user.email_address, created_at, 0, user.settings)


def _receipt(entry: Entry, outcome: Outcome, epoch: int, now: int) -> ReceiptRow:
    delivery, content = entry.delivery, entry.content
    user_id = content.user_id if isinstance(content, UserCreated) and outcome != "erased" else None
    return ReceiptRow(delivery.message_id, user_id, outcome, delivery.publish_time, now, epoch)


def _rejection(entry: Entry, problem: Problem, stored: UserRow | None, now: int) -> dict[str, Any]:
    delivery, content = entry.delivery, entry.content
    return {
        "message_id": delivery.message_id,
        "reason": problem.reason,
        "detail": problem.detail,
        "stored": None if stored is None else msgspec.json.encode(stored._asdict()).decode(),
        "data": b"" if entry.body is not None else delivery.data,
        "attributes": msgspec.json.encode(delivery.attributes).decode(),
        "publish_time": delivery.publish_time,
        "delivery_attempt": delivery.delivery_attempt,
        "received_at": now,
        "resolved_at": None,
        "resolution": None,
        "body": entry.body,
        "bytes": len(delivery.data),
        "about": content.user_id if isinstance(content, UserCreated) else content.claims,
    }
