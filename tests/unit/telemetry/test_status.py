"""GET /status: the stalls, the recent past, and what is said of what is not known."""

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.fakes import Clock
from worker.telemetry import history
from worker.telemetry.history import History, quantile
from worker.telemetry.metrics import Metrics
from worker.telemetry.status import About, StatusPage
from worker.telemetry.status_format import Status
from worker.telemetry.trouble import STALLS, Trouble


def warn(action: str, text: str) -> None:
    """Log as the worker does."""
    logging.getLogger("worker.lease.lease").warning("%s", text, extra={"action": action})


def test_a_stall_is_counted_while_it_lasts_and_then_forgotten() -> None:
    """It has the time of its first line, the text of its last, and ends when no line has come for a while."""
    clock = Clock()
    trouble = Trouble(clock=clock, wall_clock=clock)
    with trouble.listening():
        warn("lease.retry", "first")
        clock.now += 5
        warn("lease.retry", "second")
        warn("expiry.retry", "no stall")
    warn("lease.retry", "not heard")
    [found] = trouble.stalls()
    assert (found.action, found.text, found.count, found.since.timestamp()) == ("lease.retry", "second", 2, 1000.0)
    clock.now += STALLS["lease.retry"] + 1
    assert trouble.stalls() == []


def test_a_confirmation_ends_what_held_it_up() -> None:
    """What reached the bucket is stuck no longer; a lease that cannot be renewed still is."""
    clock = Clock()
    trouble = Trouble(clock=clock, wall_clock=clock)
    with trouble.listening():
        for action in ("lease.retry", "replication.retry", "disk.full"):
            warn(action, "x")
    assert [stall.action for stall in trouble.stalls(confirmed=999.0)] == ["disk.full", "replication.retry", "lease.retry"]
    assert [stall.action for stall in trouble.stalls(confirmed=1001.0)] == ["lease.retry"]


def test_a_quiet_log_hides_no_stall() -> None:
    """With LOG_LEVEL=error warnings are not written, and the page knows them all the same."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        trouble = Trouble()
        with trouble.listening():
            warn("lease.retry", "x")
        assert len(trouble.stalls()) == 1
        assert not logging.getLogger("worker.lease.lease").isEnabledFor(logging.WARNING)
    finally:
        root.setLevel(before)


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [(0.5, [0, 0, 0], None), (0.5, [2, 0, 0], 0.5), (0.5, [1, 1, 0], 1.0), (0.99, [50, 50, 0], 1.98), (0.5, [0, 0, 3], 2.0)],
)
def test_quantiles_of_buckets(share: float, counts: list[int], expected: float | None) -> None:
    """Between even steps of a bucket; unknown where nothing was counted; the last bound for what is above it."""
    assert quantile(share, (1.0, 2.0), counts) == expected


def test_rates_are_of_the_last_minutes_and_points_of_the_last_half_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst counts for its minute, then for its five, then no more; as many points are kept as half an hour has."""
    monkeypatch.setattr(history, "memory", lambda: (5.0, 10.0))
    clock = Clock()
    metrics = Metrics(hold_seconds=48, clock=clock)
    past = History(metrics, lambda: 3, wall_clock=clock)

    def pass_by(seconds: float) -> None:
        for _ in range(round(seconds / history.LOOK_SECONDS)):
            clock.now += history.LOOK_SECONDS
            past.look()

    metrics.outcomes.update(Counter(created=600))
    metrics.ack.add(0.05)
    pass_by(30)
    assert past.windows()["1m"].outcomes == {"created": 600}
    assert past.points[-1].per_second == 20.0
    assert past.points[-1].p99_seconds is not None
    pass_by(60)
    assert past.windows()["1m"].outcomes == {}
    assert past.windows()["1m"].p99_seconds is None
    assert past.windows()["5m"].outcomes == {"created": 600}
    pass_by(2700)
    assert past.windows()["5m"].per_second == 0.0
    assert (len(past.points), past.points[-1].held, past.points[-1].memory_bytes) == (60, 3, 5.0)


class _Idle:
    """An instance that stands by: no lease, no database."""

    held_messages = held_bytes = 0
    state = "standby"
    held_epoch = None
    age = float("inf")
    live = None
    open = False

    async def read(self, query: Any) -> Any:
        """See `worker.telemetry.status.Tables`."""
        raise AssertionError("there is no database")


def page(clock: Clock, idle: _Idle, folder: Path) -> StatusPage:
    """The page of an instance that stands by."""
    metrics = Metrics(hold_seconds=48, clock=clock)
    about = About(
        version="1",
        revision="r",
        instance="i",
        engine="sqlite",
        store="gs://b/p",
        database=folder / "none" / "users.db",
        messages_max=9,
        bytes_max=9,
    )
    part = cast("Any", idle)
    past = History(metrics, lambda: 0, wall_clock=clock)
    trouble = Trouble(clock=clock)
    held: Any = lambda: part.held_epoch  # noqa: E731  # one line
    return StatusPage(
        about, metrics, past, trouble, part, part, held, lambda: None, part, timeout_seconds=1, wall_clock=clock
    )


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    """Standing by: no epoch, no lease, no rejections, no database, nothing confirmed; and none of them is 0."""
    found = msgspec.json.decode(asyncio.run(page(Clock(), _Idle(), tmp_path).page()))
    for name in ("epoch", "generation", "lease_age_seconds", "rejections", "oldest_unconfirmed_seconds", "successor"):
        assert found[name] is None, name
    assert found["database"]["bytes"] is None
    assert found["held"]["queued"] is None
    assert msgspec.convert(found, Status).state == "standby"


def test_it_is_made_once_a_second(tmp_path: Path) -> None:
    """However many ask; a change of the state is seen by the next one, with its time."""
    clock, idle = Clock(), _Idle()
    made = page(clock, idle, tmp_path)

    async def run() -> None:
        first = await made.page()
        clock.now += 0.5
        assert await made.page() is first
        idle.state = "serving"
        clock.now += 0.6
        second = msgspec.json.decode(await made.page(), type=Status)
        assert (second.state, second.state_since.timestamp()) == ("serving", clock.now)

    asyncio.run(run())
