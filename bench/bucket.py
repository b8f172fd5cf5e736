"""What does a message cost the bucket and the processor?

Requests are counted by the fake Cloud Storage, by what they are about, at fixed rates and at full load (wrk) with the
bucket's latency added; the groups are those of the worker's own metrics. CPU is that of the worker and of its Litestream at
full load, from /proc. At the end the service is left alone and what it still asks for is counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench import openloop, part, process, wrk
from bench.figures import Figure, Target
from bench.latency import GET_MS, PUT_MS
from bench.part import Scale
from bench.store import Store, metric, open_store
from local.worker_process import WorkerProcess

QUESTION: Final = "bucket: what does a message cost the bucket and the processor?"
_RATES: Final = (10, 100, 1000)
_ONE_A_GROUP: Final = Target("≤", 1)
_PUTS_A_SECOND: Final = Target("≤", 12)
_PUTS_RATE: Final = 1000
_NONE: Final = Target("≤", 0)
_SETTLE_SECONDS: Final = 3
"""Before the service counts as idle."""
_FULL: Final = "full load"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run took."""

    messages: int
    seconds: float
    groups: int
    puts: int
    """Of Litestream: everything that is not the lease."""
    lease_reads: int
    worker_cpu: float
    litestream_cpu: float


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    figures: list[Figure] = []
    with open_store() as store:
        worker = store.worker("r1").start().wait_serving()
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        counter = _Counter(store)
        acknowledged = 0
        for step, rate in enumerate((*_RATES, None)):
            loads = []
            for run in scale.numbers:
                push = _pushing(worker, rate, scale.seconds if run else 1, 100 * step + run, scale.connections)
                load = _load(worker, counter, push)
                acknowledged += load.messages
                loads += [load] if run else []
            figures += _rows(loads, rate)
            part.say(f"{_named(rate)}: {figures[-1].name} {figures[-1].values}")
        time.sleep(_SETTLE_SECONDS)
        figures += _idle(counter, scale.idle_seconds)
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check_count(acknowledged)
    return figures


def _pushing(
    worker: WorkerProcess, rate: float | None, seconds: float, run: int, connections: int
) -> Callable[[], tuple[int, float]]:
    """Something that pushes, and returns how many messages were acknowledged in how many seconds."""

    def at_rate() -> tuple[int, float]:
        assert rate is not None
        answers = openloop.send(worker.url, rate=rate, seconds=seconds, run=run).sound(_named(rate))
        return len(answers.seconds), answers.took

    def full() -> tuple[int, float]:
        done = wrk.run(worker.url, connections=connections, seconds=round(seconds), number=run).sound(_FULL)
        return done.acknowledged, done.microseconds / 1e6

    return full if rate is None else at_rate


def _load(worker: WorkerProcess, counter: _Counter, push: Callable[[], tuple[int, float]]) -> Load:
    puts, reads, groups = counter.puts(), counter.lease_reads(), metric(worker, "solowriter_group_messages_count")
    own, child = process.cpu_seconds(worker.pid)
    messages, seconds = push()
    own_after, child_after = process.cpu_seconds(worker.pid)
    return Load(
        messages,
        seconds,
        metric(worker, "solowriter_group_messages_count") - groups,
        counter.puts() - puts,
        counter.lease_reads() - reads,
        own_after - own,
        child_after - child,
    )


def _rows(loads: list[Load], rate: float | None) -> list[Figure]:
    where = f"at {_named(rate)}"
    rows = [
        Figure(f"PUTs per 1,000 messages {where}", [1000 * load.puts / load.messages for load in loads], ",.1f"),
        Figure(
            f"lease GETs per 1,000 messages {where}", [1000 * load.lease_reads / load.messages for load in loads], ",.1f"
        ),
        Figure(f"PUTs per group {where}", [load.puts / load.groups for load in loads], ".2f", _ONE_A_GROUP),
        Figure(f"lease GETs per group {where}", [load.lease_reads / load.groups for load in loads], ".2f", _ONE_A_GROUP),
    ]
    if rate == _PUTS_RATE:
        rows.append(Figure(f"PUTs a second {where}", [load.puts / load.seconds for load in loads], ".1f", _PUTS_A_SECOND))
    if rate is None:
        rows += [
            Figure(f"CPU of the worker per message {where}, µs", [1e6 * load.worker_cpu / load.messages for load in loads]),
            Figure(
                f"CPU of Litestream per message {where}, µs", [1e6 * load.litestream_cpu / load.messages for load in loads]
            ),
        ]
    return rows


def _named(rate: float | None) -> str:
    return _FULL if rate is None else f"{rate:,.0f} msg/s"


def _idle(counter: _Counter, seconds: float) -> list[Figure]:
    puts, renewals = counter.puts(), counter.renewals()
    time.sleep(seconds)
    where = f"in {seconds:g} idle seconds (one run)"
    return [
        Figure(f"PUTs other than lease renewals {where}", [counter.puts() - puts], target=_NONE),
        Figure(f"lease renewals {where}", [counter.renewals() - renewals]),
    ]


class _Counter:
    """Counts the requests of the bucket by what they are about: rules that delay by nothing count what they meet."""

    def __init__(self, store: Store) -> None:
        self._faults = store.gcs.faults
        self._renewals = self._faults.add(action="delay", verb="insert", name=f"{store.prefix}/lease.json")
        self._reads = self._faults.add(action="delay", verb="download", name=f"{store.prefix}/lease.json")

    def puts(self) -> int:
        return self._faults.stats()["insert"] - self.renewals()

    def renewals(self) -> int:
        return self._faults.hits(self._renewals)

    def lease_reads(self) -> int:
        return self._faults.hits(self._reads)


if __name__ == "__main__":
    sys.exit(part.main("bucket"))
