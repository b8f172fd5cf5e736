"""How long does an acknowledgement take at half of the most that is taken?

What is taken at most is measured first, by wrk. Then messages are pushed at half of that rate, whatever the answers do, with
the bucket's latency added; a message's time runs from when it was due.
"""

from __future__ import annotations

import statistics
import sys
from typing import Final

from bench import openloop, part, wrk
from bench.figures import Figure, Target
from bench.part import Scale
from bench.store import open_store
from bench.throughput import CONNECTIONS

QUESTION: Final = "latency: how long does an ack take at half load?"
PUT_MS: Final = 80
GET_MS: Final = 40
_P99: Final = Target("≤", 3 * PUT_MS)
_MOST_SECONDS: Final = 2
_MOST_RUNS: Final = 3


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    found: list[openloop.Answers] = []
    with open_store() as store:
        worker = store.worker("r1").start().wait_serving()
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        rate, acknowledged = half_of_most(worker.url, scale.connections)
        for run in scale.numbers:
            answers = openloop.send(worker.url, rate=rate, seconds=scale.seconds if run else 1, run=run).sound("half load")
            acknowledged += len(answers.seconds)
            found += [answers] if run else []
            part.say(f"{rate:,.0f} msg/s: p50 {answers.percentile(0.5):.3f} s, p99 {answers.percentile(0.99):.3f} s")
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check_count(acknowledged)
    where = f"of the ack at {PUT_MS}/{GET_MS} ms, ms"

    def of(share: float) -> list[float]:
        return [1000 * answers.percentile(share) for answers in found]

    return [
        Figure("half of what is taken at most, msg/s", [rate]),
        Figure(f"p50 {where}", of(0.50)),
        Figure(f"p95 {where}", of(0.95)),
        Figure(f"p99 {where}", of(0.99), target=_P99),
    ]


def half_of_most(url: str, connections: int = CONNECTIONS) -> tuple[float, int]:
    """Half of the messages a second that a worker takes at most, and how many it has acknowledged meanwhile."""
    runs = [
        wrk.run(url, connections=connections, seconds=_MOST_SECONDS, number=wrk.ROUNDS_MAX - 1 - number).sound("full load")
        for number in range(_MOST_RUNS)
    ]
    return statistics.median(run.per_second for run in runs) / 2, sum(run.acknowledged for run in runs)


if __name__ == "__main__":
    sys.exit(part.main("latency"))
