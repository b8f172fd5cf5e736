"""The work inside one of the writer's transactions. Nothing here begins, commits or rolls back.

INV-3: the receipt of a message is written in the transaction of its effect, so a message has one effect however often it
comes; a retry changes receipt, row and rejection in one transaction as well.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from worker.database.bulk import batches, find, holds_any, insert, upsert
from worker.database.models import CONFLICT, DISCARDED, Connection, Erased, Receipt, Rejection, Version, columns
from worker.errors import NotAConflict, NotFound, Refused, Resolved
from worker.events.catalog import DEFAULT_EVENT, Catalog, Content, Table
from worker.events.declaration import EVENT_TYPE_ATTRIBUTE, MAX_INTEGER
from worker.ingest.messages import Delivery, Entry, Outcome
from worker.ingest.outcomes import Key, Plan, Row, Stored, VersionRow, plan, version_of

_STATEMENT_VALUES: Final = 500
_WHOSE: Final = (Rejection.about, Rejection.data, Rejection.stored, Rejection.attributes)
"""What says whose data a rejection holds."""
_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
"""A subject that is a number, as receipts and the list of erased subjects write it; `007` is a text."""


class Removed(msgspec.Struct, frozen=True):
    """The result of an erasure: whether the subject had rows, and how many rows, receipts and rejections it had."""

    existed: bool
    rows: int
    receipts: int
    rejections: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """One open transaction. `epoch` is the writer life, `now` is in milliseconds since the epoch."""

    database: Connection
    catalog: Catalog
    epoch: int
    now: int

    def handle(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Give each message its effect, in order."""
        made = self._plan(entries, set(self._handled([entry.delivery.message_id for entry in entries])))
        self._write(made)
        if made.rejections:  # kept longer than its receipt, so a late replay may meet the one it made before
            rejections = sorted(made.rejections, key=lambda row: str(row["message_id"]))  # as `insert` orders rows
            kept = Rejection.insert_many(rejections).on_conflict(  # that one alone: "or ignore" would ignore everything
                conflict_target=[Rejection.message_id], preserve=[Rejection.message_id]
            )
            kept.execute(self.database)
        return made.outcomes

    def retry(self, message_id: str, body: bytes | None = None, *, overwrite: bool = False) -> Outcome:
        """Handle a rejected message once more; it stays open unless it has its effect now. What was published is kept.

        Args:
            message_id: The rejection's.
            body: The message's bytes where they are an object of the bucket, or where an operator has corrected them.
            overwrite: Whether the message of a conflict replaces the row; its receipt says `overwritten`.

        Raises:
            NotFound: There is no such rejection.
            Resolved: It has been resolved already.
            Refused: Its bytes are an object, and `body` was not given.
            NotAConflict: It is to overwrite a row, and is no conflict.
        """
        row = self._open(message_id)
        if row["body"] is not None and body is None:  # it was kept after the caller had looked for its object
            raise Refused("the message was rejected just now; ask again")
        if overwrite and row["reason"] != CONFLICT:
            raise NotAConflict(f"only a conflict can overwrite a row, and this is {row['reason']}; retry it without that")
        delivery = Delivery(
            message_id=message_id,
            publish_time=row["publish_time"],
            data=bytes(row["data"]) if body is None else body,
            attributes=msgspec.json.decode(row["attributes"], type=dict[str, str]),
            delivery_attempt=row["delivery_attempt"],
        )
        content = self.catalog.read(delivery.data, delivery.attributes, delivery.publish_time, again=True)
        entry = Entry(delivery, content, 0.0, None, row["body"])  # type: ignore[arg-type]  # no sender
        made = self._plan([entry], (), overwrite=overwrite)
        Receipt.delete().where(Receipt.message_id == message_id).execute(self.database)
        self._write(made)
        # Data that is an object says nothing to an erasure: whose it is, is then what was read of it first.
        about = (row["body"] and row["about"]) or content.subject or row["about"]
        if made.rejections:
            [again] = made.rejections
            self._update(message_id, {name: again[name] for name in ("reason", "detail", "stored")} | {"about": about})
        elif made.outcomes[0] == "erased":  # only now can it be read whose data it is: nothing of it is kept
            Rejection.delete().where(Rejection.message_id == message_id).execute(self.database)
        else:
            self._update(message_id, {"resolved_at": self.now, "resolution": made.outcomes[0], "about": about})
        return made.outcomes[0]

    def discard(self, message_id: str) -> None:
        """Give a rejected message up: it has no effect, its receipt says that it was handled, and its bytes are dropped.

        Raises:
            NotFound: There is no such rejection.
            Resolved: It has been resolved already.
        """
        self._open(message_id)
        self._update(message_id, {"resolved_at": self.now, "resolution": DISCARDED, "data": b"", "body": None})

    def erase(self, subject: str) -> Removed:
        """Delete a subject's rows and rejected messages, and remember the subject: no later message about it has an effect.

        Receipts keep their message ids, by which a redelivery is a duplicate.
        """
        return self.erase_all([subject])

    def bodies_about(self, subject: str) -> list[str]:
        """The objects that hold large rejected messages about a subject."""
        named = Rejection.select(Rejection.body, *_WHOSE)
        rows: Iterable[dict[str, Any]] = named.where(Rejection.body.is_null(False)).dicts().bind(self.database).iterator()
        return [row["body"] for row in rows if subject in self._about(row)]

    def erase_all(self, subjects: Sequence[str]) -> Removed:
        """Erase several subjects in one pass over each table; see `erase`."""
        erased = set(subjects)
        kept = Rejection.select(Rejection.message_id, *_WHOSE).dicts()
        found: Iterable[dict[str, Any]] = kept.bind(self.database).iterator()
        rejected = [row["message_id"] for row in found if self._about(row) & erased]
        rows = receipts = 0
        for some in batches(rejected, _STATEMENT_VALUES):
            Rejection.delete().where(Rejection.message_id.in_(some)).execute(self.database)
        for some in batches(sorted(erased), _STATEMENT_VALUES):
            receipts += Receipt.update(subject=None).where(Receipt.subject.in_(some)).execute(self.database)
            for table in self.catalog.tables.values():
                rows += self._delete(table, some)
        insert(self.database, Erased, [(subject, self.now) for subject in self.not_erased(sorted(erased))])
        return Removed(rows > 0, rows, receipts, len(rejected))

    def not_erased(self, subjects: Sequence[str]) -> list[str]:
        """Those of the subjects that have not been erased yet."""
        gone = {subject for (subject,) in find(self.database, Erased, subjects, only_key=True)} if subjects else set()
        return [subject for subject in subjects if subject not in gone]

    def _delete(self, table: Table, subjects: Sequence[str]) -> int:
        """Delete the rows of subjects, and their versions; how many."""
        if table.subject is None:
            return 0
        column = getattr(table.model, table.subject)
        numbers = table.events[0].subject_is_number
        values: list[Any] = list(subjects)
        if numbers:
            values = [int(each) for each in subjects if _NUMBER.fullmatch(each) and abs(int(each)) <= MAX_INTEGER]
        query = table.model.select(getattr(table.model, table.key)).where(column.in_(values))
        found: Any = query.tuples().bind(self.database)
        keys: list[Key] = [key for (key,) in found]
        for some in batches(keys, _STATEMENT_VALUES):
            names = [version_of(table.name, key) for key in some]
            Version.delete().where(Version.row.in_(names)).execute(self.database)
            table.model.delete().where(getattr(table.model, table.key).in_(some)).execute(self.database)
        return len(keys)

    def _plan(self, entries: Sequence[Entry], handled: Collection[str], *, overwrite: bool = False) -> Plan:
        return plan(
            entries,
            catalog=self.catalog,
            receipts=handled,
            stored=self._stored([entry.content for entry in entries if entry.delivery.message_id not in handled]),
            epoch=self.epoch,
            now=self.now,
            overwrite=overwrite,
        )

    def _stored(self, contents: Sequence[Any]) -> Stored:
        """What there is of the keys and subjects of messages: a statement or two for each table, however many they are."""
        keys: dict[str, dict[Key, None]] = {}
        for content in contents:
            if isinstance(content, Content):
                keys.setdefault(content.event.table, {})[content.key] = None
        rows: dict[str, dict[Key, Row]] = {}
        named: list[str] = []
        for table in self.catalog.tables.values():
            if table.name in keys:
                at = table.key_at
                # A row and its version are read by two statements: where rows change, no other writer comes in between.
                found = find(self.database, table.model, list(keys[table.name]), lock=bool(table.updates))
                rows[table.name] = {row[at]: row for row in found}
                if table.updates:
                    named += [version_of(table.name, key) for key in rows[table.name]]
        versions = {row[0]: VersionRow(*row) for row in find(self.database, Version, named)} if named else {}
        return Stored(rows, versions, self._erased(contents))

    def _erased(self, contents: Sequence[Any]) -> frozenset[str]:
        if not holds_any(self.database, Erased):  # as a rule
            return frozenset()
        subjects = list({content.subject for content in contents if content.subject is not None})
        return frozenset(subject for (subject,) in find(self.database, Erased, subjects, only_key=True))

    def _write(self, made: Plan) -> None:
        """Write rows, versions and receipts; always in the same order of tables."""
        # Never "or ignore": that would drop a row that any constraint refuses, and its message would be acknowledged.
        for table in self.catalog.tables.values():
            insert(self.database, table.model, list(made.created.get(table.name, {}).values()))
            upsert(self.database, table.model, list(made.changed.get(table.name, {}).values()))
        upsert(self.database, Version, list(made.versions.values()))
        insert(self.database, Receipt, made.receipts)

    def _handled(self, message_ids: list[str]) -> Iterable[str]:
        return (message_id for (message_id,) in find(self.database, Receipt, message_ids, only_key=True))

    def _open(self, message_id: str) -> dict[str, Any]:
        # Locked: an operator who decides at another instance waits, and is told what this one has decided.
        found = next(iter(find(self.database, Rejection, [message_id], lock=True)), None)
        if found is None:
            raise NotFound("there is no rejection with this message id; `worker rejections list --all` shows all")
        row: dict[str, Any] = dict(zip(columns(Rejection), found, strict=True))
        if row["resolved_at"] is not None:
            raise Resolved(f"this rejection has been resolved already: {row['resolution']}")
        return row

    def _update(self, message_id: str, values: dict[str, Any]) -> None:
        Rejection.update(values).where(Rejection.message_id == message_id).execute(self.database)

    def _about(self, rejection: dict[str, Any]) -> set[str | None]:
        """Whose data a rejection holds: by what it met, and by what it says or tries to say."""
        stored = rejection["stored"]
        attributes = msgspec.json.decode(rejection["attributes"])
        event = self.catalog.events.get(attributes.get(EVENT_TYPE_ATTRIBUTE, DEFAULT_EVENT))
        met = () if stored is None else self.catalog.subjects_in(msgspec.json.decode(stored), event)
        return {rejection["about"], *met, *self.catalog.claimed_subjects(bytes(rejection["data"]), event)}
