"""A message on its way from its delivery to its acknowledgement, the group it is committed in, and who is told of both."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from worker.errors import Refused, RequestError
from worker.events.catalog import Content, Problem

Outcome = Literal["created", "updated", "duplicate", "exists", "stale", "conflict", "overwritten", "rejected", "erased"]
"""The effect of a message. `duplicate`: this message id was handled before. `exists`: the same key with the same content.
`updated`: its version is the newest, and the row is as it says. `stale`: the row has a newer version.
`conflict`: the same key with other content. `rejected`: it breaks the format. These two are kept as rejections.
`overwritten`: an operator decided that a conflict is right, and the row is as it says.
`erased`: its subject was erased; the message has no effect, and nothing of it is kept."""


log = logging.getLogger(__name__)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message as the queue delivered it. `publish_time` is in milliseconds since the epoch."""

    message_id: str
    publish_time: int
    data: bytes
    attributes: dict[str, str]
    ordering_key: str = ""
    delivery_attempt: int | None = None
    subscription: str = ""


class Entry(msgspec.Struct, frozen=True, eq=False):
    """One message on its way. `deadline` is on the event loop's clock; `done` is only touched by the loop.

    `body` names the object that holds the bytes of a large message.
    """

    delivery: Delivery
    content: Content | Problem
    deadline: float
    done: "asyncio.Future[Outcome]"
    body: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Anything else that is done to the database: a transaction of its own, confirmed like a message.

    `apply` runs on the writer's thread inside the transaction and gets a `Transaction` (transaction.py); what it returns is
    the result. A `RequestError` it raises rolls back and is the answer.
    """

    apply: Callable[[Any], Any]
    deadline: float
    done: "asyncio.Future[Any]"
    alone: bool = False
    """No other writer's transaction may run beside it."""


@dataclass(slots=True)
class Group:
    """The messages of one transaction with their outcomes, or its one change with the result."""

    entries: Sequence[Entry | Change]
    results: list[Any]
    committed_in: int = 0
    """The transaction that this group is in, or before, once that is known; 0 before."""

    @property
    def deadline(self) -> float:
        """When the first of them must be answered."""
        return min(entry.deadline for entry in self.entries)

    @property
    def bytes(self) -> int:
        """The bytes of its messages' data."""
        return sum(len(entry.delivery.data) for entry in self.entries if isinstance(entry, Entry))

    def is_in(self, committed_in: int, stored: int) -> bool:
        """Note that the group is in the transaction `committed_in` or before; whether `stored` has reached what is known."""
        self.committed_in = self.committed_in or committed_in
        return 0 < self.committed_in <= stored

    def succeed(self) -> None:
        """Answer all of them with their outcome: they are confirmed."""
        for entry, result in zip(self.entries, self.results, strict=True):
            if not entry.done.done():  # a sender may have gone away
                entry.done.set_result(result)

    def refuse(self, reason: str) -> None:
        """Answer all of them 503: they may or may not be in the bucket, and will come again."""
        fail(self.entries, Refused(reason, reason="unconfirmed"))


class Observer:
    """Told of groups and refusals; metrics.py listens. Times are of `time.monotonic`, as the event loop's are."""

    def committed(self, group: Group, began: float) -> None:
        """A group's COMMIT has returned; its transaction was begun at `began`."""

    def acknowledged(self, groups: Sequence[Group], asked: float) -> None:
        """Groups were confirmed and answered; the confirmation was begun at `asked`."""

    def unconfirmed(self) -> None:
        """A confirmation did not come, and is asked for again."""

    def gave_up(self, group: Group) -> None:
        """A group was answered 503: it was not confirmed within the hold limit."""

    def refused(self, error: RequestError) -> None:
        """A request was answered with an error."""

    def broke(self) -> None:
        """A request met a defect and was answered 500."""


def note(delivery: Delivery, content: Content | Problem, outcome: Outcome) -> None:
    """Log what a message came to, as far as a person should know: the field at fault, and never its value."""
    if outcome == "rejected" and isinstance(content, Problem):
        reason = (content.reason, content.detail)
        log.warning("message %s rejected: %s: %s", delivery.message_id, *reason, extra={"action": "message.rejected"})
    elif outcome == "conflict":
        log.warning("message %s kept as a conflict", delivery.message_id, extra={"action": "message.conflict"})
    if log.isEnabledFor(logging.DEBUG):
        log.debug("message %s: %s", delivery.message_id, outcome, extra={"action": "message.handled"})


def fail(entries: Iterable[Entry | Change], error: Exception) -> None:
    """Answer messages with an error; a sender that has gone away is passed over."""
    for entry in entries:
        if not entry.done.done():
            entry.done.set_exception(error)
