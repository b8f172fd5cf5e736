"""The counts of this process, and how Prometheus reads them: names, kinds, and what is known without counting.

The main path reports once a group, and a group's messages are counted in one pass over plain numbers. Only the event loop
touches these. Each family is explained in docs/observability.md; alerts and the dashboard are in deploy/.
"""

import contextlib
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from publisher.connections import REFUSALS
from worker.errors import REFUSED, Refused, RequestError, Unconfirmed
from worker.ingest import pull
from worker.ingest.intake import Intake
from worker.ingest.messages import Change, Group, Observer, Outcome
from worker.lease.lease import Lease
from worker.replica.drill_record import Drill, Verdict
from worker.replica.gate import RULES, Counts
from worker.replica.generation import Generation
from worker.telemetry.machine import memory, size
from worker.telemetry.tracing import Spans, Steps

if TYPE_CHECKING:
    from worker.database.postgresql import PostgresqlEngine  # its driver is loaded only where it is used

_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_QUICK_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_STATES: Final = ("standby", "serving", "draining")
_FILES: Final = (("database", ""), ("wal", "-wal"))
_PASSING: Final = tuple(
    (kind, level) for kind in ("upload", "read", "list", "delete") for level in ("0", "1", "2", "3", "9")
)
"""The gate's labels: kinds of requests, and Litestream's levels."""


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


class Families(Collector):
    """The metrics that a registry collects.

    Args:
        metrics: What is counted.
        intake: What is held.
        lease: Who may write; None where every instance writes.
        database: The working copy's path; None where there is none.
        info: What this process is: its revision and the versions in use.
        engine: PostgreSQL's, where that is used.
    """

    def __init__(
        self,
        metrics: Metrics,
        intake: Intake,
        lease: Lease | None,
        database: Path | None,
        info: Mapping[str, str],
        engine: "PostgresqlEngine | None" = None,
    ) -> None:
        self._metrics, self._intake, self._lease, self._database, self._info = metrics, intake, lease, database, dict(info)
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Every family of ours, as of now."""
        yield from self._of_messages()
        yield from self._of_groups()
        if self._lease is not None:
            yield from self._of_replication()
            yield from self._of_the_store(self._lease)
        if self._engine is not None:
            yield from self._of_the_engine(self._engine)
        yield from self._of_the_process()

    def _of_messages(self) -> Iterator[Metric]:
        metrics, intake = self._metrics, self._intake
        yield _counter("solowriter_messages", "Messages handled and confirmed", "outcome", metrics.outcomes)
        refused = CounterMetricFamily(
            "solowriter_requests_refused", "Requests answered with an error", labels=("status", "reason")
        )
        for (status, reason), count in metrics.refusals.items():
            refused.add_metric((status, reason), count)
        yield refused
        pulled = metrics.pulled
        counts = {"pulled": pulled.pulled, "acknowledged": pulled.acknowledged, "given_back": pulled.given_back}
        yield _counter(
            "solowriter_pulled", "Messages taken from the subscription, by what was done with them", "step", counts
        )
        yield _gauge("solowriter_pull_streams", "Streams to the subscription that are open", pulled.streams)
        about = "Messages with a field that their event does not declare"
        unknown = CounterMetricFamily("solowriter_unknown_fields", about, labels=("event", "field"))
        for labels, count in metrics.unknown_fields.items():
            unknown.add_metric(labels, count)
        yield unknown
        yield _histogram("solowriter_ack_seconds", "From a message's receipt to its acknowledgement", metrics.ack)
        yield _gauge("solowriter_held_messages", "Requests held now", intake.held_messages)
        yield _gauge("solowriter_held_bytes", "Bytes of bodies held now", intake.held_bytes)
        yield _gauge("solowriter_queue_messages", "Messages that wait for the writer now", metrics.pending())

    def _of_groups(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _gauges("solowriter_rejections_open", "Open rejections", "reason", metrics.rejections or {})
        yield _histogram("solowriter_group_messages", "Messages in one transaction", metrics.group_sizes)
        yield _histogram("solowriter_commit_seconds", "One transaction, with its way to the writer's thread", metrics.commit)

    def _of_the_engine(self, engine: "PostgresqlEngine") -> Iterator[Metric]:
        about = "Groups that were decided again, because another instance was faster"
        yield _counter("solowriter_database_redone", about, "reason", engine.redone)
        lost = CounterMetricFamily("solowriter_database_reconnects", "Connections made in place of a lost one")
        lost.add_metric((), engine.reconnects)
        yield lost

    def _of_replication(self) -> Iterator[Metric]:
        metrics, now = self._metrics, self._metrics.clock()
        yield _histogram(
            "solowriter_confirm_seconds", "One confirmation by the bucket, failed ones included", metrics.confirm
        )
        about = "Confirmations: confirmed, or not known yet and asked for again"
        yield _counter("solowriter_confirmations", about, "result", metrics.confirmations)
        about = "How long the oldest committed group has waited for the bucket"
        yield _gauge("solowriter_unconfirmed_seconds", about, metrics.unconfirmed_seconds)
        txid, since = metrics.replicated or (0, now)
        yield _gauge("solowriter_replicated_transaction", "Newest transaction known to be in the bucket", txid)
        yield _gauge("solowriter_replicated_age_seconds", "Since a sync last found everything in the bucket", now - since)
        yield from self._of_the_gate()

    def _of_the_gate(self) -> Iterator[Metric]:
        counts = self._metrics.bucket
        for name, about, values in (
            ("solowriter_gate_requests", "Litestream's requests to the bucket", counts.requests),
            ("solowriter_gate_bytes", "Bytes of files that went to and from the bucket for Litestream", counts.bytes),
            ("solowriter_gate_seconds", "What Litestream's requests to the bucket took, added up", counts.seconds),
        ):
            family = CounterMetricFamily(name, about, labels=("kind", "level"))
            for labels in sorted({*_PASSING, *list(values)}):
                family.add_metric(labels, values[labels])
            yield family
        about = "Litestream's requests that the gate refused, by rule"
        yield _counter("solowriter_gate_refused", about, "rule", dict.fromkeys(RULES, 0) | dict(counts.refused))
        broken = CounterMetricFamily("solowriter_gate_broken_off", "Uploads that were broken off before they were whole")
        broken.add_metric((), counts.broken_off)
        yield broken

    def _of_the_store(self, lease: Lease) -> Iterator[Metric]:
        metrics, epoch, drill = self._metrics, lease.held_epoch, self._metrics.drill
        yield _gauge("solowriter_lease_held", "1 while this instance is the writer", epoch is not None)
        yield _gauge("solowriter_lease_epoch", "The epoch held; 0 while there is none", epoch or 0)
        about = "Since the holder last wrote the lease record; 0 while it is not held"
        yield _gauge("solowriter_lease_age_seconds", about, 0 if epoch is None else lease.age)
        seconds, size = metrics.restored or (0, 0)
        yield _gauge("solowriter_restore_seconds", "How long the restore at start took; 0 if there was none", seconds)
        yield _gauge("solowriter_restore_bytes", "What the restore at start wrote", size)
        verdicts = {} if drill is None else {verdict: verdict == drill.verdict for verdict in get_args(Verdict)}
        yield _gauges("solowriter_drill_verdict", "1 for the latest drill's verdict", "verdict", verdicts)
        ended = None if drill is None else drill.at.timestamp()
        yield _maybe("solowriter_drill_timestamp_seconds", "When the latest drill ended, since the epoch", ended)
        took = None if drill is None else drill.seconds
        yield _maybe("solowriter_drill_duration_seconds", "How long the latest drill took", took)

    def _of_the_process(self) -> Iterator[Metric]:
        states = {state: state == self._intake.state for state in _STATES}
        yield _gauges("solowriter_state", "1 for what this instance does now", "state", states)
        if (file := self._database) is not None:
            sizes = {name: size(file.with_name(file.name + end)) for name, end in _FILES}
            yield _gauges("solowriter_database_bytes", "The working copy and its write-ahead log", "file", sizes)
        used, limit = memory()
        yield _maybe("solowriter_memory_bytes", "What the instance uses, files in memory included", used)
        yield _maybe("solowriter_memory_limit_bytes", "What the instance may use", limit)
        yield _counter("solowriter_scrape_failures", "Looks of a scrape that failed", "source", self._metrics.failures)
        names, values = tuple(self._info), tuple(self._info.values())
        yield _family("solowriter_info", "1, for this revision and these versions", names, [(values, 1)])


def _histogram(name: str, about: str, histogram: Histogram) -> HistogramMetricFamily:
    """Prometheus's buckets hold those before them as well."""
    total, buckets = 0, []
    for bound, count in zip((*map(str, map(float, histogram.bounds)), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=histogram.sum)


def _counter(name: str, about: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=(label,))
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=float(value))


def _maybe(name: str, about: str, value: float | None) -> GaugeMetricFamily:
    return _family(name, about, (), [] if value is None else [((), value)])


def _gauges(name: str, about: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    return _family(name, about, (label,), [((said,), value) for said, value in values.items()])


def _family(
    name: str, about: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, number in samples:
        family.add_metric(values, float(number))
    return family
