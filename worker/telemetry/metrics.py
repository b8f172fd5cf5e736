"""The counts of this process. families.py says how Prometheus reads them.

The main path reports once a group (observer.py), and a group's messages are counted in one pass over plain numbers. Only the
event loop touches these.
"""

import contextlib
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, get_args

from publisher.connections import REFUSALS
from worker.errors import REFUSED, Refused, RequestError, Unconfirmed
from worker.ingest import pull
from worker.ingest.messages import Change, Group, Observer, Outcome
from worker.replica.drill_record import Drill
from worker.replica.gate import Counts
from worker.replica.generation import Generation
from worker.telemetry.tracing import Spans, Steps

_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_QUICK_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """How many are above the bound before and not above this one; the last are above all."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics(Observer):
    """The counts of one process.

    Args:
        hold_seconds: How long after it was received a message's deadline is.
        clock: What deadlines and the observer's times are of.
    """

    def __init__(self, *, hold_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold, self.clock = hold_seconds, clock
        self.outcomes: Counter[str] = Counter(dict.fromkeys(get_args(Outcome), 0))
        self.refusals: Counter[tuple[str, str]] = Counter(dict.fromkeys(_refusals(), 0))
        """By status and reason."""
        self.confirmations: Counter[str] = Counter({"confirmed": 0, "retried": 0})
        self.failures: Counter[str] = Counter({"database": 0, "drill": 0, "litestream": 0})
        """Looks of a scrape that failed, by what was looked at."""
        self.group_sizes = Histogram(_SIZES)
        self.commit, self.confirm = Histogram(_QUICK_SECONDS), Histogram(_QUICK_SECONDS)
        self.ack = Histogram(_SECONDS)
        self.bucket = Counts()
        """The gate's counts; its thread writes them."""
        self.restored: tuple[float, int] | None = None
        """How many seconds the restore at start took, and the bytes it wrote; None where nothing was restored."""
        self.rejections: Mapping[str, int] | None = None
        """Open rejections by reason, as counted last; None before that."""
        self.drill: Drill | None = None
        """The drill that was recorded last, as read last."""
        self.pending: Callable[[], int] = lambda: 0
        """How many messages wait for the writer."""
        self.unknown_fields: Mapping[tuple[str, str], int] = {}
        """Messages with fields that their event does not declare, by event and field."""
        self.pulled = pull.Counts()
        """What was pulled; nothing where messages are pushed."""
        self.spans: Spans | None = None
        """Makes spans of answered groups; None when tracing is off."""
        self.replicated: tuple[int, float] | None = None
        """The newest transaction known to be in the bucket, and when that was known."""
        self._unanswered: dict[int, tuple[float, float]] = {}  # by group: when its transaction began, and had returned

    @property
    def unconfirmed_seconds(self) -> float:
        """How long the oldest committed group has waited for the bucket; 0 when none waits."""
        for _, committed in self._unanswered.values():
            return max(0.0, self.clock() - committed)
        return 0.0

    # What the main path tells.

    def committed(self, group: Group, began: float) -> None:
        """See `Observer.committed`."""
        now = self.clock()
        self._unanswered[id(group)] = (began, now)
        self.commit.add(now - began)
        self.group_sizes.add(len(group.entries))

    def acknowledged(self, groups: Sequence[Group], asked: float) -> None:
        """See `Observer.acknowledged`."""
        now = self.clock()
        self.confirmations["confirmed"] += 1
        for group in groups:
            began, committed = self._unanswered.pop(id(group), (asked, asked))
            if not isinstance(group.entries[0], Change):  # an operator's: it is alone in its group, and no message
                self.outcomes.update(group.results)
                self._took(group, now)
                if self.spans is not None:
                    self.spans.answered(group, Steps(began, committed, asked, now), confirmed=True)

    def unconfirmed(self) -> None:
        """See `Observer.unconfirmed`."""
        self.confirmations["retried"] += 1

    def gave_up(self, group: Group) -> None:
        """See `Observer.gave_up`."""
        now = self.clock()
        began, committed = self._unanswered.pop(id(group), (now, now))
        if self.spans is not None:
            self.spans.answered(group, Steps(began, committed, committed, now), confirmed=False)

    def refused(self, error: RequestError) -> None:
        """See `Observer.refused`."""
        self.refusals[str(error.status), error.reason] += 1

    def turned_away(self, status: int, reason: str) -> None:
        """A connection answered a request that the application never saw."""
        self.refusals[str(status), reason] += 1

    def broke(self) -> None:
        """See `Observer.broke`."""
        self.refusals["500", "defect"] += 1

    def _took(self, group: Group, now: float) -> None:
        # This loop runs for every message: no calls but one.
        bounds, counts, since, total = self.ack.bounds, self.ack.counts, now + self._hold, 0.0
        for entry in group.entries:
            seconds = since - entry.deadline
            counts[bisect_left(bounds, seconds)] += 1
            total += seconds
        self.ack.sum += total

    # What others tell, seldom.

    def restored_in(self, seconds: float, size: int) -> None:
        """The live generation was restored at start: how long that took, and the bytes it wrote."""
        self.restored = (seconds, size)

    def stored(self, transaction: int) -> None:
        """A confirmation came: everything up to this transaction is in the bucket."""
        self.replicated = (transaction, self.clock())


class TimedConfirmation:
    """A generation's confirmations, measured."""

    def __init__(self, generation: Generation, metrics: Metrics) -> None:
        self._generation, self._metrics = generation, metrics

    @property
    def ready_at(self) -> float:
        """See `worker.ingest.confirmation.Confirmation`."""
        return self._generation.ready_at

    async def confirm(self) -> None:
        """See `worker.ingest.confirmation.Confirmation`."""
        with _timed(self._metrics.confirm, Unconfirmed):
            await self._generation.confirm()
        self._metrics.stored(self._generation.stored)


@contextlib.contextmanager
def _timed(histogram: Histogram, passing: type[Exception]) -> Iterator[None]:
    """Measure the block, also where it ends in a passing error; not where it is cancelled or the lease is lost."""
    began = time.monotonic()
    try:
        yield
    except passing:
        histogram.add(time.monotonic() - began)
        raise
    histogram.add(time.monotonic() - began)


def _refusals() -> Iterator[tuple[str, str]]:
    """Every status and reason there can be, so that the first of each is seen as one more than none."""
    yield "500", RequestError.reason
    yield from ((str(status), reason) for reason, status in REFUSALS.items())
    for kind in RequestError.__subclasses__():
        for reason in REFUSED if kind is Refused else (kind.reason,):
            yield str(kind.status), reason
