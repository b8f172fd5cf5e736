"""The work inside one of the writer's transactions. Nothing here begins, commits or rolls back.

INV-3: the receipt of a message is written in the transaction of its effect, so a message has one effect however often it
comes; a retry changes receipt, row and rejection in one transaction as well.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from publisher import message
from worker.database.bulk import batches, find, insert
from worker.database.models import DISCARDED, Connection, Receipt, Rejection, User
from worker.errors import NotFound, Refused, Resolved
from worker.ingest.messages import Delivery, Entry, Outcome, Problem
from worker.ingest.outcomes import Plan, UserRow, plan

_STATEMENT_VALUES: Final = 500
_ID_DIGITS: Final = 19
_ID_BYTES: Final = 2 + 6 * _ID_DIGITS
"""Longest that an id can be written: as text, each digit escaped."""


class Erased(msgspec.Struct, frozen=True):
    """The result of an erasure: whether the user was there, and how many receipts and rejections named the user."""

    existed: bool
    receipts: int
    rejections: int


def content_of(data: bytes, attributes: dict[str, str]) -> message.UserCreated | Problem:
    """Read a message, or say what is wrong with it."""
    try:
        return message.decode(data, attributes)
    except message.MessageError as error:
        return Problem(error.reason, error.detail, claimed_user(data))


class _Claim(msgspec.Struct):
    user_id: msgspec.Raw


_claims: Final = msgspec.json.Decoder(_Claim)


def claimed_user(data: bytes) -> int | None:
    """The user that a message which breaks the format tries to be about, as a number or as text; None if unreadable.

    Whatever else is in it is passed over and not built: 10 MB of empty lists take seconds, and 20 times their size.
    """
    try:
        said = bytes(_claims.decode(data).user_id)
        found = msgspec.json.decode(said) if len(said) <= _ID_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, str) and found.isascii() and found.isdecimal() and len(found) <= _ID_DIGITS:
        found = int(found)
    return found if type(found) is int and message.MIN_USER_ID <= found <= message.MAX_USER_ID else None


@dataclass(frozen=True, slots=True)
class Transaction:
    """One open transaction. `epoch` is the writer life, `now` is in milliseconds since the epoch."""

    database: Connection
    epoch: int
    now: int

    def handle(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Give each message its effect, in order."""
        made = self._plan(entries, self._handled([entry.delivery.message_id for entry in entries]))
        # Never "or ignore": that would drop a row that any constraint refuses, and its message would be acknowledged.
        insert(self.database, User, made.users)
        insert(self.database, Receipt, made.receipts)
        if made.rejections:  # kept longer than its receipt, so a late replay may meet the one it made before
            kept = Rejection.insert_many(made.rejections).on_conflict(  # that one alone: "or ignore" would ignore everything
                conflict_target=[Rejection.message_id], preserve=[Rejection.message_id]
            )
            kept.execute(self.database)
        return made.outcomes

    def retry(self, message_id: str, body: bytes | None = None) -> Outcome:
        """Handle a rejected message once more; it stays open unless it has its effect now.

        `body` is the message's bytes where they are an object of the bucket, or where an operator has mended them. What was
        published is kept either way.

        Raises:
            NotFound: There is no such rejection.
            Resolved: It has been resolved already.
            Refused: Its bytes are an object, and `body` was not given.
        """
        row = self._open(message_id)
        if row["body"] is not None and body is None:  # it was kept after the caller had looked for its object
            raise Refused("the message was rejected just now; ask again")
        attributes = msgspec.json.decode(row["attributes"], type=dict[str, str])
        delivery = Delivery(
            message_id=message_id,
            publish_time=row["publish_time"],
            data=bytes(row["data"]) if body is None else body,
            attributes=attributes,
            delivery_attempt=row["delivery_attempt"],
        )
        entry = Entry(delivery, content_of(delivery.data, attributes), 0.0, None, row["body"])  # type: ignore[arg-type]  # no sender
        made = self._plan([entry], ())
        Receipt.delete().where(Receipt.message_id == message_id).execute(self.database)
        insert(self.database, User, made.users)
        insert(self.database, Receipt, made.receipts)
        if made.rejections:
            [again] = made.rejections
            self._update(message_id, {name: again[name] for name in ("reason", "detail", "stored")})
        elif made.outcomes[0] == "erased":  # only now can it be read whom it is about: nothing of it is kept
            Rejection.delete().where(Rejection.message_id == message_id).execute(self.database)
        else:
            self._update(message_id, {"resolved_at": self.now, "resolution": made.outcomes[0]})
        return made.outcomes[0]

    def discard(self, message_id: str) -> None:
        """Give a rejected message up: it has no effect, its receipt says that it was handled, and its bytes are dropped.

        Raises:
            NotFound: There is no such rejection.
            Resolved: It has been resolved already.
        """
        self._open(message_id)
        self._update(message_id, {"resolved_at": self.now, "resolution": DISCARDED, "data": b"", "body": None})

    def erase(self, user_id: int) -> Erased:
        """Leave a tombstone in the place of a user, and nothing else that says whose it was.

        Receipts keep their message ids, by which a redelivery is a duplicate; rejected messages about the user go.
        """
        found = self._users([user_id]).get(user_id)
        receipts, rejections = self.erase_all([user_id])
        return Erased(found is not None and not found.deleted, receipts, rejections)

    def bodies_about(self, user_id: int) -> list[str]:
        """The objects that hold large rejected messages about a user."""
        named = Rejection.select(Rejection.body, Rejection.about, Rejection.data, Rejection.stored)
        rows: Iterable[dict[str, Any]] = named.where(Rejection.body.is_null(False)).dicts().bind(self.database).iterator()
        return [row["body"] for row in rows if user_id in _about(row)]

    def erase_all(self, user_ids: Sequence[int]) -> tuple[int, int]:
        """Erase several users in one pass over each table; how many receipts and rejections spoke of them."""
        erased = set(user_ids)
        kept = Rejection.select(Rejection.message_id, Rejection.data, Rejection.stored, Rejection.about).dicts()
        rows: Iterable[dict[str, Any]] = kept.bind(self.database).iterator()
        rejected = [row["message_id"] for row in rows if _about(row) & erased]
        receipts = 0
        for some in batches(rejected, _STATEMENT_VALUES):
            Rejection.delete().where(Rejection.message_id.in_(some)).execute(self.database)
        for some in batches(sorted(erased), _STATEMENT_VALUES):
            receipts += Receipt.update(user_id=None).where(Receipt.user_id.in_(some)).execute(self.database)
            User.delete().where(User.user_id.in_(some)).execute(self.database)
            insert(self.database, User, [_tombstone(user_id) for user_id in some])
        return receipts, len(rejected)

    def not_erased(self, user_ids: Sequence[int]) -> list[int]:
        """Those of the users that have no tombstone yet."""
        # Only a tombstone as `erase_all` leaves it: a row that was only marked as deleted still holds the person's data.
        gone = {user_id for user_id, row in self._users(list(user_ids)).items() if row == _tombstone(user_id)}
        return [user_id for user_id in user_ids if user_id not in gone]

    def _plan(self, entries: Sequence[Entry], handled: Iterable[str]) -> Plan:
        about = [entry.content.claims if isinstance(entry.content, Problem) else entry.content.user_id for entry in entries]
        user_ids = [user_id for user_id in about if user_id is not None]
        return plan(entries, receipts=handled, users=self._users(user_ids), epoch=self.epoch, now=self.now)

    def _handled(self, message_ids: list[str]) -> Iterator[str]:
        return (message_id for (message_id,) in find(self.database, Receipt, message_ids, only_key=True))

    def _users(self, user_ids: list[int]) -> dict[int, UserRow]:
        return {row[0]: UserRow(*row) for row in find(self.database, User, user_ids)}

    def _open(self, message_id: str) -> dict[str, Any]:
        query = Rejection.select().where(Rejection.message_id == message_id).dicts()
        row: dict[str, Any] | None = query.bind(self.database).first()
        if row is None:
            raise NotFound("there is no rejection with this message id; `worker rejections list --all` shows all")
        if row["resolved_at"] is not None:
            raise Resolved(f"this rejection has been resolved already: {row['resolution']}")
        return row

    def _update(self, message_id: str, values: dict[str, Any]) -> None:
        Rejection.update(values).where(Rejection.message_id == message_id).execute(self.database)


def _tombstone(user_id: int) -> UserRow:
    return UserRow(user_id, None, None, 1, None)


def _about(rejection: dict[str, Any]) -> set[int | None]:
    """Whom a rejection is about: by what it met, and by what it says or tries to say."""
    stored = rejection["stored"]
    met = None if stored is None else msgspec.json.decode(stored)["user_id"]
    return {met, rejection["about"], claimed_user(bytes(rejection["data"]))}
