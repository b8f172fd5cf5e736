"""Replay: the subscription is sought back, and everything it delivers again is absorbed or, after a recovery, takes effect.

    plan      what a seek can bring back, and how many receipts there are of that span
    replay    a count begins at the service → a snapshot, as the way back → seek → follow until caught up

Seeking to a time drops what was published before it and has never been delivered. So a snapshot is made first: its expiry
tells how old the oldest undelivered message is, and if that is older, the seek goes back that far: it can bring more than
asked for, which is harmless (INV-3), and drops nothing. Seeking to a snapshot drops what waits and was acknowledged when
it was made, which only an unfinished replay leaves; if it is older than all of the snapshot, that is noticed in the same
way, and nothing is sought. The snapshot made first is deleted once the replay has caught up.

Caught up: no delivery of a message published before the seek was seen for some seconds (`Patience`). The time of the seek is
the service's, so that the operator's clock decides nothing. Each instance counts for itself; when another one takes over,
its count is added, and what the last one handled after it was asked last is missing from the sum.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from publisher.values import rfc3339
from worker.errors import NotSeekable, QueueError, QueueMissing, QueueUnavailable, ServiceUnreachable
from worker.ingest.http.paths import OUTCOMES, RECEIPTS
from worker.operations.checkpoints import snapshot_name
from worker.operations.pubsub import Queue, Subscription
from worker.operations.service_client import Service

POLL_SECONDS: Final = 0.5
_ROUNDING: Final = timedelta(seconds=2)
"""How much later than it was published a message may seem, because the expiry of a snapshot is rounded."""
_MARGIN: Final = timedelta(minutes=1)
"""How much an expiry may be rounded by."""
_OUTAGE_SECONDS: Final = 600.0
"""How long a service that does not answer is asked again while its messages wait in the queue."""


class Receipts(msgspec.Struct, frozen=True):
    """The answer of `GET /receipts`. Publish times are in milliseconds since the epoch."""

    total: int
    outcomes: dict[str, int]
    oldest_publish_time: int | None
    newest_publish_time: int | None


class Redelivered(msgspec.Struct, frozen=True):
    """The messages published before the seek that one instance handled. The publish time is the latest one's."""

    outcomes: dict[str, int]
    last_publish_time: int | None = None


class Answered(msgspec.Struct, frozen=True):
    """The answer of `GET /outcomes`. `started_at` tells one instance from another, `now` is its clock."""

    started_at: datetime
    now: datetime
    state: str
    before: Redelivered | None = None


class FollowedService(Service):
    """A running worker that is asked what its deliveries came to; the errors are those of `each`."""

    async def receipts(self, since: datetime) -> Receipts:
        """The receipts of messages published since then."""
        return msgspec.convert(await self._ask("GET", RECEIPTS, {"since": since.isoformat()}), Receipts)

    async def answered(self, before: datetime | None = None) -> Answered:
        """The counts of handled deliveries; of messages published before then, since that was first asked for."""
        parameters = None if before is None else {"before": before.isoformat()}
        return msgspec.convert(await self._ask("GET", OUTCOMES, parameters), Answered)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of a replay. `to` is a time, or a snapshot's full name; messages published before `since` do not
    come again.

    Of a snapshot, `expires` says until when it can be sought; of a subscription, the rest says what it retains.
    """

    subscription: str
    to: datetime | str
    since: datetime
    expires: datetime | None
    receipts: Receipts
    retains_acknowledged: bool
    retention: timedelta
    topic_retention: timedelta


async def plan(queue: Queue, service: FollowedService, to: datetime | str, *, now: datetime) -> Plan:
    """Look at what a seek would do. Nothing is changed.

    Args:
        queue: The subscription.
        service: The running worker.
        to: A time, or a snapshot's full name.
        now: The time.

    Raises:
        NotSeekable: The subscription cannot be sought there.
        QueueMissing: There is no such subscription or snapshot.
        QueueError: Pub/Sub did not answer, or refused.
        ServiceUnreachable: The service does not answer.
        ServiceRefused: It refuses.
    """
    subscription = await queue.look()
    expires = None
    if isinstance(to, datetime):
        since = _reach(subscription, to, now)
    else:
        snapshot = await queue.get(to)
        if snapshot is None:
            raise QueueMissing(
                f"there is no snapshot {to}: it has expired or was deleted; `worker checkpoint list` shows what there is"
            )
        if snapshot.topic != subscription.topic:
            raise NotSeekable(
                f"{to} is of {snapshot.topic}, and {subscription.name} of {subscription.topic}; choose another"
            )
        since, expires = snapshot.oldest, snapshot.expires
    return Plan(
        subscription=subscription.name,
        to=to,
        since=since,
        expires=expires,
        receipts=await service.receipts(since),
        retains_acknowledged=subscription.retains_acknowledged,
        retention=subscription.retention,
        topic_retention=subscription.topic_retention,
    )


def _reach(subscription: Subscription, to: datetime, now: datetime) -> datetime:
    if to > now:
        raise NotSeekable(
            f"{rfc3339(to)} is in the future: seeking there would drop everything until then; give an earlier time"
        )
    if subscription.reach is None:
        raise NotSeekable(
            f"{subscription.name} retains no acknowledged messages, and neither does its topic, so a seek to a time brings "
            "nothing back. Replay a checkpoint with --snapshot; for the next time, let it retain them with "
            "`gcloud pubsub subscriptions update SUBSCRIPTION --retain-acked-messages`"
        )
    return max(to, now - subscription.reach)


@dataclass(frozen=True, slots=True)
class Patience:
    """When a replay has caught up: this many seconds after the last redelivery was seen.

    `settle` counts once as many came as there were receipts of the span; `start` while there were fewer: a seek takes effect
    within a minute, and after an outage the queue may pause as long (Pub/Sub documentation, "Replay and purge messages with
    Seek"; "Push subscriptions", push backoff).
    """

    settle: float = 10.0
    start: float = 90.0


@dataclass(slots=True)
class Progress:
    """How far a replay has come; what each instance counted, by when that instance started."""

    expected: int
    began: float
    instances: dict[datetime, Redelivered] = field(default_factory=dict)
    unreachable: str = ""
    seconds: float = 0.0
    gained: int = 0

    def brought_back(self, undone: int) -> bool:
        """Whether so many came: by the counts or, as an instance that died took its own with it, by the receipts."""
        return max(self.total, self.gained) >= undone

    @property
    def outcomes(self) -> Counter[str]:
        """The redeliveries by outcome."""
        return sum((Counter(each.outcomes) for each in self.instances.values()), Counter())

    @property
    def total(self) -> int:
        """All redeliveries."""
        return self.outcomes.total()

    @property
    def last_publish_time(self) -> int | None:
        """Where it has come to: when the latest redelivered message was published, in milliseconds since the epoch."""
        last = list(self.instances.values())[-1:]
        return last[0].last_publish_time if last else None

    def note(self, answered: Answered) -> bool:
        """Take in what an instance answered; whether that is news."""
        self.unreachable = ""
        found = answered.before or Redelivered({})
        news = self.instances.get(answered.started_at) != found
        self.instances[answered.started_at] = found
        return news


async def replay(
    queue: Queue,
    service: FollowedService,
    planned: Plan,
    *,
    patience: Patience,
    say: Callable[[str], None],
    show: Callable[[Progress], None],
    undone: int = 0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> Progress:
    """Seek, and follow what comes until it has caught up.

    Args:
        queue: The subscription.
        service: The running worker.
        planned: What `plan` found.
        patience: When it has caught up.
        say: Told what is going on, a line at a time.
        show: Told how far it has come, twice a second.
        undone: Messages that are expected although they have no receipt any more, because a recovery has undone them.
        clock: Monotonic seconds.
        sleep: A test's clock.

    Raises:
        NotSeekable: The subscription cannot be sought there, or an older message waits that is not in the snapshot. Nothing
            was changed.
        QueueError: Pub/Sub did not answer, or refused; after `QueueUnavailable` the seek may have been made.
        ServiceUnreachable: The service has not answered for ten minutes. The replay goes on.
    """
    moment = (await service.answered()).now
    await service.answered(moment)  # it counts from here on
    kept = await queue.create(snapshot_name(queue.subscription, f"before-replay-{moment:%Y%m%d-%H%M%S}"))
    try:
        to = _keeping(kept.oldest, planned, say)
        say(f"seeking; {kept.name} holds what was not acknowledged before")
        await queue.seek(to)
    except QueueUnavailable:
        raise  # it may have been sought
    except QueueError:
        await queue.delete(kept.name)
        raise
    progress = Progress(planned.receipts.total + undone, clock())
    await _follow(service, moment, progress, patience, show, clock, sleep)
    if progress.total < undone:
        progress.gained = (await service.receipts(planned.since)).total - planned.receipts.total
    if not progress.brought_back(undone):
        say(f"{kept.name} is kept: fewer messages came than were undone")
    else:
        await queue.delete(kept.name)
    return progress


def _keeping(oldest: datetime, planned: Plan, say: Callable[[str], None]) -> datetime | str:
    """Where to seek so that the oldest message that waits is not dropped."""
    waits = f"a message published at {rfc3339(oldest)} waits for its delivery"
    if isinstance(planned.to, datetime) and planned.to <= oldest < planned.to + _ROUNDING:
        return oldest - _ROUNDING
    if isinstance(planned.to, datetime) and oldest < planned.to:
        say(f"{waits}; seeking back that far keeps it")
        return oldest - _MARGIN
    if isinstance(planned.to, str) and oldest < planned.since - _MARGIN:
        raise NotSeekable(
            f"{waits}, and is older than all of {planned.to}: seeking there would drop it. Let the replay that is under way "
            "catch up first, or replay --from that time"
        )
    return planned.to


async def _follow(
    service: FollowedService,
    moment: datetime,
    progress: Progress,
    patience: Patience,
    show: Callable[[Progress], None],
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[Any]],
) -> None:
    answered = news = clock()
    while True:
        try:
            found = await service.answered(moment)
            if progress.note(found):
                news = clock()
            if found.state != "serving":
                raise ServiceUnreachable(f"the instance is {found.state}: does it get the lease? `worker lease show` tells")
            answered = clock()
        except ServiceUnreachable as error:
            progress.unreachable, news = str(error), clock()  # a silent service proves nothing
            if clock() - answered > _OUTAGE_SECONDS:
                raise
        progress.seconds = news - progress.began
        show(progress)
        enough = 0 < progress.total >= progress.expected
        if clock() - news >= (patience.settle if enough else patience.start):
            return
        await sleep(POLL_SECONDS)
