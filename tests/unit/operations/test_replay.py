"""Replays on a queue, a service and a clock of the test's own: what is planned, what is refused, when it has caught up."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fakes import Clock
from worker.errors import NotSeekable, QueueMissing, QueueUnavailable, ServiceUnreachable
from worker.ingest.http.delivery_counts import WATCHES_MAX, Tally
from worker.operations.pubsub import Queue, Snapshot, Subscription
from worker.operations.replay import Answered, FollowedService, Patience, Plan, Progress, Receipts, Redelivered, plan, replay

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TOPIC = "projects/p/topics/users"
WEEK = timedelta(days=7)
NONE = timedelta()
SNAPSHOT = "projects/p/snapshots/friday"
PATIENCE = Patience(settle=10, start=90)


def hours(count: float) -> timedelta:
    """A number of hours."""
    return timedelta(hours=count)


@dataclass
class Sought(Queue):
    """A queue in memory. `backlog` is the age of its oldest unacknowledged message, `error` what a seek raises."""

    subscription: str = "projects/p/subscriptions/users"
    retains: bool = False
    topic_retention: timedelta = NONE
    backlog: timedelta = NONE
    error: Exception | None = None
    there: dict[str, Snapshot] = field(default_factory=dict)
    sought: list[datetime | str] = field(default_factory=list)
    topic: str = TOPIC

    async def look(self) -> Subscription:
        """See `worker.operations.pubsub.Queue`."""
        return Subscription(
            name=self.subscription,
            topic=self.topic,
            retains_acknowledged=self.retains,
            retention=WEEK,
            topic_retention=self.topic_retention,
            ordered=False,
        )

    async def create(self, name: str) -> Snapshot:
        """See `worker.operations.pubsub.Queue`."""
        self.there[name] = Snapshot(name=name, topic=TOPIC, expires=NOW - self.backlog + WEEK)
        return self.there[name]

    async def get(self, name: str) -> Snapshot | None:
        """See `worker.operations.pubsub.Queue`."""
        return self.there.get(name)

    async def delete(self, name: str) -> None:
        """See `worker.operations.pubsub.Queue`."""
        del self.there[name]

    async def seek(self, to: datetime | str) -> None:
        """See `worker.operations.pubsub.Queue`."""
        if self.error is not None:
            raise self.error
        assert any("before-replay" in name for name in self.there), "there is no way back"
        self.sought.append(to)


@dataclass
class Scripted(FollowedService):
    """A service that answers what `script` says of the seconds since the seek.

    That is an instance and its count, or None for no answer. `asked` are the times for which it was asked to count, `idle`
    is the state of an instance that has nothing to count yet.
    """

    script: Callable[[float], tuple[int, int] | None] = lambda seconds: (1, 0)
    clock: Clock = field(default_factory=Clock)
    total: int = 0
    idle: str = "serving"
    asked: list[datetime] = field(default_factory=list)
    spans: list[datetime] = field(default_factory=list)

    async def receipts(self, since: datetime) -> Receipts:
        """See `FollowedService`."""
        self.spans.append(since)
        return Receipts(self.total, {"created": self.total}, None, None)

    async def answered(self, before: datetime | None = None) -> Answered:
        """See `FollowedService`."""
        if before is None:
            return Answered(NOW, NOW, "serving")
        self.asked.append(before)
        found = self.script(self.clock() - 1000)
        if found is None:
            raise ServiceUnreachable("nobody there")
        instance, count = found
        outcomes = {"duplicate": count} if count else {}
        state = "serving" if count else self.idle
        return Answered(NOW + timedelta(minutes=instance), NOW, state, Redelivered(outcomes, 5 if count else None))


def planned(queue: Sought, service: Scripted, to: datetime | str) -> Plan:
    """The plan."""
    return asyncio.run(plan(queue, service, to, now=NOW))


def replayed(queue: Sought, service: Scripted, to: datetime | str) -> tuple[Progress, float]:
    """Plan and replay; how it ended, and after how many seconds."""

    async def run() -> Progress:
        found = await plan(queue, service, to, now=NOW)
        quiet: dict[str, Any] = {"say": lambda line: None, "show": lambda progress: None}
        return await replay(
            queue, service, found, patience=PATIENCE, clock=service.clock, sleep=service.clock.sleep, **quiet
        )

    return asyncio.run(run()), service.clock() - 1000


def with_snapshot(**options: Any) -> Sought:
    """A queue with a snapshot that was made three hours ago."""
    made = Snapshot(name=SNAPSHOT, topic=TOPIC, expires=NOW - hours(3) + WEEK)
    return Sought(there={SNAPSHOT: made}, **options)


@pytest.mark.parametrize(
    ("retains", "topic_retention", "asked", "reached"),
    [(True, NONE, 24, 24), (True, NONE, 999, 168), (False, hours(5), 24, 5), (True, hours(999), 500, 500)],
)
def test_a_time_reaches_back_as_far_as_messages_are_retained(
    retains: bool, topic_retention: timedelta, asked: float, reached: float
) -> None:
    """The plan says from when on messages come, and counts the receipts of just these."""
    service = Scripted(total=3)
    found = planned(Sought(retains=retains, topic_retention=topic_retention), service, NOW - hours(asked))
    assert found.since == NOW - hours(reached)
    assert service.spans == [found.since]
    assert (found.to, found.expires, found.receipts.total) == (NOW - hours(asked), None, 3)


def test_a_snapshot_reaches_back_to_its_oldest_message() -> None:
    """Its expiry tells."""
    found = planned(with_snapshot(), Scripted(), SNAPSHOT)
    assert (found.since, found.expires) == (NOW - hours(3), NOW - hours(3) + WEEK)


def test_what_cannot_be_sought_is_said_before_anything_is_done() -> None:
    """No retention, a time to come, an expired snapshot, another topic's."""
    service = Scripted()
    with pytest.raises(NotSeekable, match="retain-acked-messages"):
        planned(Sought(), service, NOW - hours(1))
    with pytest.raises(NotSeekable, match="future"):
        planned(Sought(retains=True), service, NOW + hours(1))
    with pytest.raises(QueueMissing, match="expired"):
        planned(Sought(), service, SNAPSHOT)
    with pytest.raises(NotSeekable, match="choose another"):
        planned(with_snapshot(topic="projects/p/topics/other"), service, SNAPSHOT)


def test_a_seek_to_a_time_never_drops_what_was_not_delivered() -> None:
    """A message older than that time waits: the seek goes back to it, and a minute more, as an expiry may be rounded."""
    queue = Sought(retains=True, backlog=hours(5))
    replayed(queue, Scripted(), NOW - hours(4))
    replayed(queue, Scripted(), NOW - hours(6))
    assert queue.sought == [NOW - hours(5) - timedelta(minutes=1), NOW - hours(6)]
    assert queue.there == {}


def test_a_snapshot_that_is_newer_than_what_waits_is_not_sought() -> None:
    """An earlier replay is still under way: what it has not delivered was acknowledged when the snapshot was made."""
    queue = with_snapshot(backlog=hours(5))
    with pytest.raises(NotSeekable, match="would drop it"):
        replayed(queue, Scripted(), SNAPSHOT)
    assert (queue.sought, list(queue.there)) == ([], [SNAPSHOT])
    queue.backlog = hours(3)
    replayed(queue, Scripted(), SNAPSHOT)
    assert queue.sought == [SNAPSHOT]


def test_the_way_back_stays_while_nobody_knows_whether_it_was_sought() -> None:
    """A refusal leaves nothing, a lost answer the snapshot."""
    queue = with_snapshot(error=NotSeekable("no"))
    with pytest.raises(NotSeekable):
        replayed(queue, Scripted(), SNAPSHOT)
    assert queue.there.keys() == {SNAPSHOT}
    queue.error = QueueUnavailable("no answer")
    with pytest.raises(QueueUnavailable):
        replayed(queue, Scripted(), SNAPSHOT)
    assert len(queue.there) == 2


def test_it_has_caught_up_once_nothing_has_come_for_the_time_to_settle() -> None:
    """As many came as there were receipts, and then nothing for ten seconds; a pause of nine is not the end."""
    service = Scripted(lambda seconds: (1, min(20, 10 * int(seconds // 9))), total=20)
    queue = with_snapshot()
    done, seconds = replayed(queue, service, SNAPSHOT)
    assert (done.total, done.outcomes, done.seconds) == (20, Counter(duplicate=20), 18)
    assert seconds == 28
    assert queue.there.keys() == {SNAPSHOT}
    assert set(service.asked) == {NOW}, "it counts for one time, from before the seek"


@pytest.mark.parametrize("came", [0, 19])
def test_fewer_than_expected_are_waited_for_longer(came: int) -> None:
    """A seek takes effect within a minute: that nothing has come yet proves nothing."""
    done, seconds = replayed(with_snapshot(), Scripted(lambda _: (1, came), total=20), SNAPSHOT)
    assert (done.total, seconds) == (came, 90)


def test_more_than_expected_are_followed_to_their_end() -> None:
    """After a recovery the receipts of what comes are gone."""
    service = Scripted(lambda seconds: (1, min(50, int(seconds))), total=0)
    done, seconds = replayed(with_snapshot(), service, SNAPSHOT)
    assert (done.total, seconds) == (50, 60)


def test_the_next_instance_is_followed_on() -> None:
    """Its count is added; while nobody answers, nothing counts as quiet."""

    def script(seconds: float) -> tuple[int, int] | None:
        if seconds < 5:
            return 1, 8
        return None if seconds < 25 else (2, 12)

    done, seconds = replayed(with_snapshot(), Scripted(script, total=20), SNAPSHOT)
    assert (done.total, len(done.instances), seconds) == (20, 2, 35)


def test_an_instance_that_stands_by_proves_nothing() -> None:
    """It may wait for the lease longer than the queue pauses; that does not count as quiet."""
    service = Scripted(lambda seconds: (1, 0) if seconds < 200 else (1, 20), total=20, idle="standby")
    done, seconds = replayed(with_snapshot(), service, SNAPSHOT)
    assert (done.total, seconds) == (20, 210)


def test_a_service_that_stays_away_ends_the_following() -> None:
    """After ten minutes; the replay itself goes on, and the way back stays."""
    queue = with_snapshot()
    with pytest.raises(ServiceUnreachable):
        replayed(queue, Scripted(lambda seconds: (1, 1) if seconds < 1 else None, total=9), SNAPSHOT)
    assert len(queue.there) == 2


def test_a_tally_counts_by_outcome_and_for_the_times_it_was_asked_about() -> None:
    """From when it was first asked; what was published then or later is not counted."""
    tally = Tally(clock=lambda: 100.5)
    tally.add("created", 10)
    watched = tally.watch(1000)
    for outcome, published in (("duplicate", 999), ("created", 1000), ("duplicate", 5)):
        tally.add(outcome, published)
    assert tally.outcomes == {"created": 2, "duplicate": 2}
    assert tally.watch(1000) is watched
    assert (watched.outcomes, watched.last_publish_time) == ({"duplicate": 2}, 5)
    assert tally.started_at == datetime.fromtimestamp(100.5, UTC)


def test_a_tally_remembers_a_bounded_number_of_times() -> None:
    """One more takes the place of the oldest (INV-7)."""
    tally = Tally()
    first = tally.watch(0)
    for before in range(1, WATCHES_MAX + 1):
        tally.watch(before)
    assert tally.watch(0) is not first
