"""Does memory stay where it is, over ten minutes of steady load and in a flood?

Messages are pushed for so many minutes at half of what is taken at most, with the bucket's latency added; the resident
memory of the worker and of its Litestream is read all the time, and the medians of the first and of the last half minute
after a warm-up are compared. The warm-up begins with as many connections at once as the worker may hold requests: each takes
some 16 KB that Python keeps for the next, and while the bucket is slow for a second a steady load needs as many as it has
messages in that second. What grows after that has no bound. Then comes a flood: four times as many requests at
once as the worker may hold (QUEUE_MAX_MESSAGES). What is over that is refused with 503; memory may not grow from the flood's
first half to its second. After it the worker must acknowledge as before. What the processes map of the database does not
count: it lies in memory anyway, as a file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from bench import openloop, part, process, wrk
from bench.errors import Worthless, with_exit_code
from bench.figures import README, Figure, Target, figures_table, machine, rewrite
from bench.latency import GET_MS, PUT_MS, half_of_most
from bench.store import metric, open_store
from local.worker_process import WorkerProcess, wait_until
from worker.config import Settings

QUESTION: Final = "soak: does memory stay where it is?"
_GROWTH: Final = Target("≤", 0.05)
_FLOOD: Final = 4
_CROWD_SECONDS: Final = 10
_MEGABYTE: Final = 1e6


@dataclass(slots=True)
class Memory:
    """Samples the resident memory of a worker and of its Litestream while the block runs, on a thread of its own."""

    pid: int
    every: float
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """When (on the monotonic clock), and the bytes of the two."""
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            try:
                child = sum(process.rss_bytes(child) for child in process.children(self.pid))
                self.samples.append((time.monotonic(), process.rss_bytes(self.pid), child))
            except (FileNotFoundError, ProcessLookupError, KeyError):
                continue  # Litestream is just being started again

    def between(self, begin: float, end: float) -> tuple[list[float], list[float]]:
        """The megabytes of the two in a span of time."""
        found = [(own / _MEGABYTE, child / _MEGABYTE) for when, own, child in self.samples if begin <= when <= end]
        if not found:
            raise Worthless("memory was not read once in the time that is to be compared")
        return [own for own, _ in found], [child for _, child in found]


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report: 0 good figures, 1 worthless ones, 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    wrk.find()
    figures = measure(options)
    command = f"python -m bench.soak --minutes {options.minutes:g}"
    text = f"{machine()}; one run, the samples' min, median and max.\n\n{figures_table({(QUESTION, command): figures})}"
    print(text)
    if options.write:
        rewrite(README, "soak", text)


def measure(options: argparse.Namespace) -> list[Figure]:
    """Steady load, then a flood, then one more look at whether it serves."""
    with open_store() as store:
        worker = store.worker("r1").start().wait_serving()
        at_rest = process.rss_bytes(worker.pid)
        most = Settings(replica_url=store.replica_url).queue_max_messages
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        rate, acknowledged = half_of_most(worker.url)
        rate = options.rate or rate
        crowd = _at_once(worker, connections=most, seconds=_CROWD_SECONDS, number=1)
        _let_go(worker)
        part.say(f"{rate:,.0f} msg/s for {options.minutes:g} minutes")
        with Memory(worker.pid, every=0.5) as memory:
            warm = openloop.send(worker.url, rate=rate, seconds=options.warm_up_seconds, run=0).sound("warm-up")
            began = time.monotonic()
            steady = openloop.send(worker.url, rate=rate, seconds=60 * options.minutes, run=1).sound("steady load")
            ended = time.monotonic()
        part.say(f"flood of {options.flood_seconds} s")
        flooding = time.monotonic()
        with Memory(worker.pid, every=0.1) as flood_memory:
            flood = _at_once(worker, connections=_FLOOD * most, seconds=options.flood_seconds, number=2)
        flooded = time.monotonic()
        _let_go(worker)
        after = openloop.send(worker.url, rate=rate, seconds=options.warm_up_seconds, run=3).sound("after the flood")
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        acknowledged += (
            crowd.acknowledged + len(warm.seconds) + len(steady.seconds) + flood.acknowledged + len(after.seconds)
        )
        store.check_count(acknowledged)
    half = min(30.0, (ended - began) / 2)
    rows = [
        Figure("steady load, msg/s", [len(steady.seconds) / steady.took]),
        Figure("messages acknowledged in all", [acknowledged]),
        Figure("p99 of the ack in the steady load, ms", [1000 * steady.percentile(0.99)]),
        Figure("RSS of the worker before any load, MB", [at_rest / _MEGABYTE], ".1f"),
    ]
    first, last = memory.between(began, began + half), memory.between(ended - half, ended)
    for name, before, end in zip(("the worker", "Litestream"), first, last, strict=True):
        rows += _grown(f"RSS of {name}", before, end, f"in {options.minutes:g} minutes")
    middle = (flooding + flooded) / 2
    halves = flood_memory.between(flooding + (flooded - flooding) / 10, middle)[0], flood_memory.between(middle, flooded)[0]
    rows += [
        Figure(f"flood: requests at once ({_FLOOD} times QUEUE_MAX_MESSAGES)", [_FLOOD * most]),
        Figure("flood: acknowledged, msg/s", [flood.acknowledged / (flood.microseconds / 1e6)]),
        Figure("flood: refused with 503, answers/s", [flood.not_2xx / (flood.microseconds / 1e6)]),
        Figure("flood: connections reset by the kernel, whose queue was full", [flood.read]),
        *_grown("flood: RSS of the worker", *halves, "from its first half to its second"),
    ]
    return rows


def _at_once(worker: WorkerProcess, *, connections: int, seconds: int, number: int) -> wrk.Run:
    """Push over so many connections. What is over the limit of what is held is refused, and may be.

    Raises:
        Worthless: Something else went wrong.
    """
    run = wrk.run(worker.url, connections=connections, seconds=seconds, number=number)
    # So many at once overflow the kernel's queue of connections, and of those it resets the worker never learns.
    if others := {kind: count for kind, count in run.problems.items() if kind not in ("not_2xx", "read")}:
        raise Worthless(f"{connections} at once: {others}")
    return run


def _let_go(worker: WorkerProcess) -> None:
    """Wait until nothing is held: what wrk leaves behind at its end is, and no client reads its answer."""
    wait_until(lambda: metric(worker, "solowriter_held_messages") == 0, "an end of what was left behind")


def _grown(name: str, before: list[float], after: list[float], when: str) -> list[Figure]:
    growth = statistics.median(after) / statistics.median(before) - 1
    return [
        Figure(f"{name} at first, MB", before, ".1f"),
        Figure(f"{name} at the end, MB", after, ".1f"),
        Figure(f"{name}: growth {when}", [growth], ".1%", _GROWTH),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="of steady load (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="msg/s (default: half of what is taken at most)")
    parser.add_argument(
        "--warm-up-seconds", type=float, default=60, help="before memory is looked at (default: %(default)s)"
    )
    parser.add_argument("--flood-seconds", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
