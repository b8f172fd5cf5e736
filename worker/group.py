"""A message on its way from the request to its acknowledgement, and the group it is committed in."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from publisher.message import UserCreated
from worker.envelope import Delivery
from worker.errors import Refused

Outcome = Literal["created", "duplicate", "exists", "conflict"]
"""What a message did. `duplicate`: this message id was handled before. `exists`: the same user with the same content.
`conflict`: the same user id with other content; kept as a rejection."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One valid message on its way. `deadline` is on the event loop's clock; `done` is only touched by the loop."""

    delivery: Delivery
    user: UserCreated
    deadline: float
    done: "asyncio.Future[Outcome]"

    @property
    def created_at(self) -> int:
        """What the row says: the message's own time or, so that a replay gives the same row, its publish time."""
        stated = self.user.created_at
        return self.delivery.publish_time // 1000 if stated is None else stated


@dataclass(slots=True)
class Group:
    """Messages committed in one transaction, with the outcome of each."""

    entries: list[Entry]
    outcomes: list[Outcome]

    @property
    def deadline(self) -> float:
        """When the first of them must be answered."""
        return min(entry.deadline for entry in self.entries)

    def succeed(self) -> None:
        """Answer all of them with their outcome: they are confirmed."""
        for entry, outcome in zip(self.entries, self.outcomes, strict=True):
            if not entry.done.done():  # a sender may have gone away
                entry.done.set_result(outcome)

    def refuse(self, reason: str) -> None:
        """Answer all of them 503: they may or may not be in the bucket, and will come again."""
        fail(self.entries, Refused(reason))


def fail(entries: Iterable[Entry], error: Exception) -> None:
    """Answer messages with an error; a sender that has gone away is passed over."""
    for entry in entries:
        if not entry.done.done():
            entry.done.set_exception(error)
