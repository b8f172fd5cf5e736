"""What does a message cost the bucket and the processor?

Requests are counted by the fake Cloud Storage, by what they are about, at fixed rates and at full load (wrk) with the
bucket's latency added; the groups are those of the worker's own metrics. An upload is one of a slot, that is, of a file of
Litestream's level 0: each acknowledgement waits for one. CPU is that of the worker and of its Litestream at full load, from
/proc. At the end the service is left alone and what it still asks for is counted: Litestream goes on merging files then.
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
_UPLOADS_A_SECOND: Final = Target("≤", 13)
"""One after the other, 12.5 of 80 ms each fit into a second."""
_UPLOADS_RATE: Final = 1000
_NONE: Final = Target("≤", 0)
_FEW: Final = Target("≤", 1)
"""One each ten seconds (the gate's rule G8); a run is shorter than that."""
_SETTLE_SECONDS: Final = 3
"""Before the service counts as idle."""
_FULL: Final = "full load"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run took."""

    messages: int
    seconds: float
    groups: int
    uploads: int
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
    uploads, reads, groups = counter.uploads(), counter.lease_reads(), metric(worker, "solowriter_group_messages_count")
    own, child = process.cpu_seconds(worker.pid)
    messages, seconds = push()
    own_after, child_after = process.cpu_seconds(worker.pid)
    return Load(
        messages,
        seconds,
        metric(worker, "solowriter_group_messages_count") - groups,
        counter.uploads() - uploads,
        counter.lease_reads() - reads,
        own_after - own,
        child_after - child,
    )


def _rows(loads: list[Load], rate: float | None) -> list[Figure]:
    where = f"at {_named(rate)}"
    rows = [
        Figure(f"uploads per 1,000 messages {where}", [1000 * load.uploads / load.messages for load in loads], ",.1f"),
        Figure(f"uploads per group {where}", [load.uploads / load.groups for load in loads], ".2f", _ONE_A_GROUP),
        Figure(f"reads of the lease a second {where}", [load.lease_reads / load.seconds for load in loads], ".2f", _FEW),
    ]
    if rate == _UPLOADS_RATE:
        rates = [load.uploads / load.seconds for load in loads]
        rows.append(Figure(f"uploads a second {where}", rates, ".1f", _UPLOADS_A_SECOND))
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
    uploads, merged, renewals = counter.uploads(), counter.merged(), counter.renewals()
    time.sleep(seconds)
    where = f"in {seconds:g} idle seconds (one run)"
    return [
        Figure(f"uploads {where}", [counter.uploads() - uploads], target=_NONE),
        Figure(f"merged files that Litestream writes {where}", [counter.merged() - merged]),
        Figure(f"lease renewals {where}", [counter.renewals() - renewals]),
    ]


class _Counter:
    """Counts the requests of the bucket by what they are about: rules that delay by nothing count what they meet."""

    def __init__(self, store: Store) -> None:
        self._faults = store.gcs.faults
        self._uploads = self._faults.add(action="delay", verb="insert", name=f"{store.prefix}/generations/*/ltx/0/*")
        self._merged = self._faults.add(action="delay", verb="insert", name=f"{store.prefix}/generations/*/ltx/[1-9]/*")
        self._renewals = self._faults.add(action="delay", verb="insert", name=f"{store.prefix}/lease.json")
        self._reads = self._faults.add(action="delay", verb="download", name=f"{store.prefix}/lease.json")

    def uploads(self) -> int:
        return self._faults.hits(self._uploads)

    def merged(self) -> int:
        return self._faults.hits(self._merged)

    def renewals(self) -> int:
        return self._faults.hits(self._renewals)

    def lease_reads(self) -> int:
        return self._faults.hits(self._reads)


if __name__ == "__main__":
    sys.exit(part.main("bucket"))
