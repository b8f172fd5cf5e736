"""Decides what each message of a group does: its outcome, and the rows that it writes. Pure.

A row is created by the first message of its key. What a later message does is its event's to say (`when_there`):

    keep     the row stays. The same content: `exists`. Other content: `conflict`, kept as a rejection with both sides.
    newest   the message of the newest version wins, in whatever order they come: `updated`, or `stale`.

The version of a row is known once a `newest` event has written it. A message of a `keep` event that is not of a later
version does not undo a correction that overtook it: it is `stale`, and gives only what no update sets. Two of them that
disagree on that are a conflict, whether the correction comes before or after.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from worker.database.models import CONFLICT
from worker.events.catalog import Catalog, Content, Problem, Table
from worker.ingest.messages import Delivery, Entry, Outcome

Row = tuple[Any, ...]
"""A row, in the columns' order."""
Key = int | str
_OLDEST: Final = -(2**63) - 1
"""The version of a message that has none: older than each that a column holds."""


class ReceiptRow(NamedTuple):
    """A row of `receipts`, in the columns' order."""

    message_id: str
    subject: str | None
    outcome: str
    publish_time: int
    processed_at: int
    epoch: int


class VersionRow(NamedTuple):
    """A row of `versions`, in the columns' order."""

    row: str
    version: int
    message_id: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds of the keys and subjects of a group."""

    rows: Mapping[str, Mapping[Key, Row]]
    """By table and key."""
    versions: Mapping[str, VersionRow]
    """By `version_of`."""
    erased: frozenset[str]


@dataclass(slots=True)
class Plan:
    """The rows one group writes, and the outcome of each of its messages."""

    created: dict[str, dict[Key, Row]] = field(default_factory=dict)
    """New rows, by table and key."""
    changed: dict[str, dict[Key, Row]] = field(default_factory=dict)
    """Rows that were there, as they are now."""
    versions: dict[str, VersionRow] = field(default_factory=dict)
    receipts: list[ReceiptRow] = field(default_factory=list)
    rejections: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def version_of(table: str, key: Key) -> str:
    """The name under which the version of a row is kept."""
    return f"{table}/{key}"


def plan(
    entries: Sequence[Entry],
    *,
    catalog: Catalog,
    receipts: Iterable[str],
    stored: Stored,
    epoch: int,
    now: int,
    overwrite: bool = False,
) -> Plan:
    """Decide the outcome of each message of a group, in order.

    Args:
        entries: The group.
        catalog: The events.
        receipts: Those of its message ids that have been handled before.
        stored: What the database holds of its keys and subjects.
        epoch: The writer life, kept in each receipt.
        now: Milliseconds since the epoch.
        overwrite: Whether a conflict replaces the row: an operator has decided so.
    """
    made = Plan()
    decider = _Decider(catalog, stored, made, overwrite=overwrite)
    handled = set(receipts)
    for entry in entries:
        message_id, content = entry.delivery.message_id, entry.content
        if message_id in handled:
            made.outcomes.append("duplicate")
            continue
        handled.add(message_id)
        outcome: Outcome
        if content.subject is not None and content.subject in stored.erased:
            outcome, problem, met = "erased", None, None
        elif isinstance(content, Problem):
            outcome, problem, met = "rejected", content, None
        else:
            outcome, problem, met = decider.decide(content, entry.delivery)
        if problem is not None:
            made.rejections.append(_rejection(entry, problem, met, now))
        made.outcomes.append(outcome)
        subject = content.subject if isinstance(content, Content) and outcome != "erased" else None
        made.receipts.append(ReceiptRow(message_id, subject, outcome, entry.delivery.publish_time, now, epoch))
    return made


_Decision = tuple[Outcome, Problem | None, Mapping[str, Any] | None]
"""The outcome; of a conflict also the problem, and the row that it met."""


class _Decider:
    """Decides messages one after the other: each meets what the ones before it have made of the rows."""

    def __init__(self, catalog: Catalog, stored: Stored, made: Plan, *, overwrite: bool) -> None:
        self._catalog, self._stored, self._made, self._overwrite = catalog, stored, made, overwrite

    def decide(self, content: Content, delivery: Delivery) -> _Decision:
        table = self._catalog.tables[content.event.table]
        row = self._row(table.name, content.key)
        if content.event.when_there == "newest":
            return self._newest(table, content, delivery, row)
        if row is None:
            self._write(table.name, content.key, content.row)
            return "created", None, None
        return self._keep(table, content, delivery, row)

    def _keep(self, table: Table, content: Content, delivery: Delivery, row: Row) -> _Decision:
        version = self._version(table.name, content.key) if table.updates else None
        if version is not None:
            row = self._fill(table, content, row)
        differing = _differing(table, content, row)
        if not differing:
            return "exists", None, None
        if version is None and table.gone_at is not None and row[table.gone_at]:
            return "erased", None, None  # deleted by the service that this one replaces
        if version is not None and _own_version(table, content, delivery) <= version.version:
            # A newer version has settled the columns that updates set. Two messages can still disagree on the others.
            differing = [name for name in differing if table.columns.index(name) in table.base]
            if not differing:
                return "stale", None, None
        return self._conflict(table, content, row, differing)

    def _newest(self, table: Table, content: Content, delivery: Delivery, row: Row | None) -> _Decision:
        event = content.event
        number = _own_version(table, content, delivery)
        mine = VersionRow(version_of(table.name, content.key), number, delivery.message_id)
        if row is None:
            self._write(table.name, content.key, content.row)
            self._made.versions[mine.row] = mine
            deleted = table.gone_at is not None and bool(content.row[table.gone_at])
            return ("updated" if deleted else "created"), None, None
        version = self._version(table.name, content.key)
        if version is not None:
            # By the publish time two messages can have one version: any order of the two will do that is always the same.
            tie = event.version is None and number == version.version
            if number < version.version or (tie and _order(mine.message_id) < _order(version.message_id)):
                return "stale", None, None
            if number == version.version and not tie:
                differing = _differing(table, content, row)
                return self._conflict(table, content, row, differing) if differing else ("exists", None, None)
        self._write(table.name, content.key, _merged(table, content, row, content.event.sets or table.columns))
        self._made.versions[mine.row] = mine
        return "updated", None, None

    def _conflict(self, table: Table, content: Content, row: Row, differing: Sequence[str]) -> _Decision:
        if self._overwrite:
            self._write(table.name, content.key, _merged(table, content, row, differing))
            return "overwritten", None, None
        text = f"{table.name} has this {table.key} with another {' and '.join(differing)}"
        return "conflict", Problem(CONFLICT, text, content.subject), dict(zip(table.columns, row, strict=True))

    def _fill(self, table: Table, content: Content, row: Row) -> Row:
        """The row with what only an event that creates rows says, if the row was made by an update that came first."""
        missing = [at for at in table.base if row[at] is None and content.row[at] is not None]
        if missing:
            row = tuple(content.row[at] if at in missing else value for at, value in enumerate(row))
            self._write(table.name, content.key, row)
        return row

    def _row(self, table: str, key: Key) -> Row | None:
        made = self._made
        for rows in (made.created.get(table), made.changed.get(table), self._stored.rows.get(table)):
            if rows is not None and (row := rows.get(key)) is not None:
                return row
        return None

    def _write(self, table: str, key: Key, row: Row) -> None:
        there = key in self._stored.rows.get(table, ())
        (self._made.changed if there else self._made.created).setdefault(table, {})[key] = row

    def _version(self, table: str, key: Key) -> VersionRow | None:
        name = version_of(table, key)
        return self._made.versions.get(name) or self._stored.versions.get(name)


def _own_version(table: Table, content: Content, delivery: Delivery) -> int:
    """The version of a message, by what orders the updates of its table; _OLDEST if it has none."""
    field_name = table.updates[0].version
    if field_name is None:
        return delivery.publish_time
    version = content.event.value(content.fields, field_name)
    return version if type(version) is int else _OLDEST


def _order(message_id: str) -> tuple[int, str]:
    return len(message_id), message_id


def _merged(table: Table, content: Content, row: Row, names: Collection[str]) -> Row:
    """The row that was there, with the named columns as the message has them."""
    return tuple(new if name in names else old for name, old, new in zip(table.columns, row, content.row, strict=True))


def _differing(table: Table, content: Content, row: Row) -> list[str]:
    """The columns in which a stored row differs from what the message says."""
    if row == content.row:
        return []
    event, names = content.event, []
    for name, old, new in zip(table.columns, row, content.row, strict=True):
        if old == new or (event.sets is not None and name not in event.sets):
            continue
        if name == table.gone and not old and not new:
            continue  # null, in a row of the service that this one replaces, says the same as 0
        # What a message does not state says nothing that could differ: its publish time is not content.
        if name in event.unsaid and event.value(content.fields, name) == event.unsaid[name]:
            continue
        names.append(name)
    return names


def _rejection(entry: Entry, problem: Problem, met: Mapping[str, Any] | None, now: int) -> dict[str, Any]:
    delivery = entry.delivery
    return {
        "message_id": delivery.message_id,
        "reason": problem.reason,
        "detail": problem.detail,
        "stored": None if met is None else msgspec.json.encode(met).decode(),
        "data": b"" if entry.body is not None else delivery.data,
        "attributes": msgspec.json.encode(delivery.attributes).decode(),
        "publish_time": delivery.publish_time,
        "delivery_attempt": delivery.delivery_attempt,
        "received_at": now,
        "resolved_at": None,
        "resolution": None,
        "body": entry.body,
        "bytes": len(delivery.data),
        "about": entry.content.subject,
    }
