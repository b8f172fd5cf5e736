"""What does a long generation keep in the bucket, and what does it cost at a restore? What does a snapshot do to an ack?

1. After so many uploads (`--uploads`): the objects and bytes in the bucket, and the time of a restore, of this checkout, of
   a base commit (`--base`), and of Litestream by itself with its defaults, straight to the bucket. Each has a bucket of its
   own; all get their uploads at the same time. Each is then restored at once, and again a while after the last upload
   (`--settle`), when Litestream has merged what was uploaded last.
2. The time of an acknowledgement while Litestream uploads a full copy of a large database (`--snapshot-mb`), beside the time
   while it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench import openloop, part, plain, wrk
from bench.compare import checked_out
from bench.errors import Worthless, with_exit_code
from bench.figures import README, machine, rewrite, table
from bench.latency import GET_MS, PUT_MS
from bench.pushes import Pushes
from bench.store import BUCKET_URL, MEGABYTE, Store, open_store
from local.worker_process import ROOT, WorkerProcess
from worker.replica.litestream import find_binary

_IN_FLIGHT: Final = 2
"""Requests: one is uploaded while the next is committed, so that nearly every message is an upload of its own."""
_PUSH_SECONDS: Final = 60
_UPLOADS_A_SECOND: Final = 400
"""More than there are: wrk takes a time, and no number of messages."""
_SENT_AT_ONCE: Final = _UPLOADS_A_SECOND * _PUSH_SECONDS
_RESTORE_SECONDS: Final = 600
_SNAPSHOT_EVERY: Final = "20s"
_SNAPSHOTS: Final = 4
_SNAPSHOT_RATE: Final = 200.0
"""Messages a second while snapshots are made."""
_CANNOT: Final = "cannot"
_INTERVAL: Final = '"${LITESTREAM_SNAPSHOT_INTERVAL}"'


@dataclass(frozen=True, slots=True)
class Side:
    """One of those compared: how it gets uploads, and where they are."""

    name: str
    store: Store
    send: Callable[[int], None]
    """Send messages for at most so many uploads, or for a second."""
    url: Callable[[], str]
    """What is restored."""
    worker: WorkerProcess | None = None


@dataclass(slots=True)
class Held:
    """What one side holds after so many uploads. `at_once` and `later` are the seconds of a restore by each way."""

    side: str
    uploads: int
    objects: int
    kept: int
    of_live: int
    load: float = 0.0
    """Of the machine, in the minute up to the end of the restores."""
    at_once: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report: 0 good figures, 1 worthless ones, 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    wrk.find()
    if options.uploads:
        _tell("generation", report(held(options), options), options)
    if options.snapshot_mb:
        _tell("snapshot", during_a_snapshot(options.snapshot_mb), options)


def _tell(name: str, text: str, options: argparse.Namespace) -> None:
    figures = f"{machine()}; the machine's load at the end: {os.getloadavg()[0]:.1f}.\n\n{text}"
    print(figures)
    if options.write:
        rewrite(README, name, figures)


# After so many uploads.


def held(options: argparse.Namespace) -> list[Held]:
    """All sides, each time they have had so many uploads."""
    found: list[Held] = []
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(SIDES[name](options)) for name in options.sides]
        counters = [_uploads_counter(side) for side in sides]
        until = time.monotonic() + 60 * options.minutes
        for uploads in options.uploads:
            began = time.monotonic()
            with ThreadPoolExecutor(len(sides)) as together:
                grown = list(together.map(_grow, sides, counters, [uploads] * len(sides), [until] * len(sides)))
            part.say(f"{uploads:,} uploads: {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
            found += _measured(sides, grown, options)
    return found


def _grow(side: Side, count: Callable[[], int], uploads: int, until: float) -> int:
    while (missing := uploads - count()) > 0 and time.monotonic() < until:
        side.send(min(missing, _SENT_AT_ONCE))
    return count()


def _measured(sides: Sequence[Side], uploads: Sequence[int], options: argparse.Namespace) -> list[Held]:
    found = []
    for side, count in zip(sides, uploads, strict=True):
        objects = list(side.store.objects(_prefix(side)))
        live = side.url().removeprefix(f"{BUCKET_URL}/") + "/"
        found.append(
            Held(
                side.name,
                count,
                len(objects),
                sum(each.size for each in objects),
                sum(each.name.startswith(live) for each in objects),
            )
        )
        part.say(str(found[-1]))
    for side, each in zip(sides, found, strict=True):
        each.at_once.update(_restores(side, 1, 0))
    time.sleep(options.settle)
    for side, each in zip(sides, found, strict=True):
        each.later.update(_restores(side, options.runs, 0))
        # With latency once: Litestream by itself reads one file after the other, and of thousands for minutes.
        each.later.update(_restores(side, 1, GET_MS, given_up=each.later))
        each.load = os.getloadavg()[0]
    return found


def _restores(side: Side, runs: int, get_ms: int, *, given_up: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The median of so many restores, by way and latency; or that there are none."""
    found = {}
    side.store.latency(put_ms=0, get_ms=get_ms)
    for name, way in (("plain", _restored_plainly), ("worker", _restored_by_worker)):
        if side.worker is None and name == "worker":
            found[f"{name} {get_ms}"] = ""
            continue
        found[f"{name} {get_ms}"] = _CANNOT
        if given_up.get(f"{name} 0") != _CANNOT:
            with contextlib.suppress(_NotRestored):
                found[f"{name} {get_ms}"] = f"{statistics.median(way(side) for _ in range(runs)):.2f}"
        part.say(f"{side.name}, {name}, {get_ms} ms: {found[f'{name} {get_ms}']} s, load {os.getloadavg()[0]:.1f}")
    side.store.latency(put_ms=0, get_ms=0)
    return found


class _NotRestored(Exception):
    """A restore failed; what it said has been told."""


def _restored_plainly(side: Side) -> float:
    with tempfile.TemporaryDirectory(dir=side.store.directory) as scratch:
        began = time.monotonic()
        command = ["restore", "-integrity-check", "full", "-o", f"{scratch}/restored.db", side.url()]
        try:
            done = subprocess.run(
                [str(find_binary("litestream")), *command],
                env={**os.environ, **side.store.gcs.environment()},
                capture_output=True,
                text=True,
                check=False,
                timeout=_RESTORE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            part.say(f"{side.name}: not restored within {_RESTORE_SECONDS} s")
            raise _NotRestored from None
        if done.returncode != 0:
            part.say(f"{side.name}: {done.stderr.strip()[-400:]}")
            raise _NotRestored
        return time.monotonic() - began


def _restored_by_worker(side: Side) -> float:
    assert side.worker is not None
    with tempfile.TemporaryDirectory(dir=side.store.directory) as scratch:
        began = time.monotonic()
        done = side.worker.run("restore", "-o", f"{scratch}/restored.db")
        if done.returncode != 0:
            part.say(f"{side.name}: {done.stderr.strip()[-400:]}")
            raise _NotRestored
        return time.monotonic() - began


@contextlib.contextmanager
def _here(options: argparse.Namespace) -> Iterator[Side]:
    with _served("this checkout", ROOT) as side:
        yield side


@contextlib.contextmanager
def _base(options: argparse.Namespace) -> Iterator[Side]:
    with checked_out(options.base) as (folder, _), _served(f"the base, {options.base}", folder) as side:
        yield side


@contextlib.contextmanager
def _litestream(options: argparse.Namespace) -> Iterator[Side]:
    with open_store() as store, plain.replicated(store) as litestream:

        def send(count: int) -> None:
            litestream.send(min(count, _UPLOADS_A_SECOND))  # so that --minutes is looked at

        yield Side("Litestream alone", store, send, lambda: f"{BUCKET_URL}/{plain.PATH}")


@contextlib.contextmanager
def _served(name: str, code: Path) -> Iterator[Side]:
    """A worker of that code; at the end everything that it acknowledged must be in its bucket."""
    with open_store() as store:
        worker = store.worker("r1", code=code).start().wait_serving()
        runs = iter(range(wrk.ROUNDS_MAX))
        acknowledged = [0]

        def send(count: int) -> None:
            seconds = max(1, min(count // _UPLOADS_A_SECOND, _PUSH_SECONDS))
            run = wrk.run(worker.url, connections=_IN_FLIGHT, seconds=seconds, number=next(runs))
            acknowledged[0] += run.sound(name).acknowledged

        yield Side(name, store, send, lambda: f"{BUCKET_URL}/{store.live()}", worker)
        worker.stop()
        store.check_count(acknowledged[0])


SIDES: Final[Mapping[str, Callable[[argparse.Namespace], contextlib.AbstractContextManager[Side]]]] = {
    "here": _here,
    "base": _base,
    "litestream": _litestream,
}


def _uploads_counter(side: Side) -> Callable[[], int]:
    """Counts the slots that are uploaded from now on."""
    faults = side.store.gcs.faults
    rule = faults.add(action="delay", verb="insert", name=f"{_prefix(side)}*ltx/0/*")
    return lambda: faults.hits(rule)


def _prefix(side: Side) -> str:
    return f"{side.store.prefix}/generations/" if side.worker else f"{plain.PATH}/"


def report(found: Sequence[Held], options: argparse.Namespace) -> str:
    """The table of the first part."""
    ways = {
        "at_once": {"plain 0": "by Litestream, at once", "worker 0": "by the worker, at once"},
        "later": {
            "plain 0": f"by Litestream, {options.settle} s later",
            "worker 0": f"by the worker, {options.settle} s later",
            f"plain {GET_MS}": f"by Litestream, {GET_MS} ms a read",
            f"worker {GET_MS}": f"by the worker, {GET_MS} ms a read",
        },
    }
    header = ("", "uploads", "objects", "of the live generation", "MB kept")
    titles = [f"{title}, s" for moment in ways.values() for title in moment.values()]
    rows = [
        (
            *(each.side, f"{each.uploads:,}", f"{each.objects:,}", f"{each.of_live:,}", f"{each.kept / MEGABYTE:,.1f}"),
            *(getattr(each, moment)[key] for moment, keys in ways.items() for key in keys),
            f"{each.load:.1f}",
        )
        for each in found
    ]
    how = f"After so many uploads, and what a restore of it takes (later: median of {options.runs}; with latency: one):"
    return f"{how}\n\n{table((*header, *titles, 'load'), rows)}"


# During a snapshot.


def during_a_snapshot(megabytes: int) -> str:
    """The time of an acknowledgement while a full copy is uploaded, and otherwise."""
    with open_store() as store, tempfile.TemporaryDirectory() as scratch:
        text = (ROOT / "worker" / "replica" / "litestream.yml").read_text()
        if _INTERVAL not in text:
            raise Worthless("litestream.yml names its snapshots' interval in another way than this script looks for")
        config = Path(scratch) / "litestream.yml"
        config.write_text(text.replace(_INTERVAL, f'"{_SNAPSHOT_EVERY}"'))
        worker = store.worker("r1", {"LITESTREAM_CONFIG": str(config)}).start().wait_serving()
        pushes = Pushes(worker.url)
        store.fill(pushes, megabytes)
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        with _Snapshots(store) as snapshots:
            answers = openloop.send(
                worker.url,
                rate=_SNAPSHOT_RATE,
                seconds=_SNAPSHOTS * float(_SNAPSHOT_EVERY.removesuffix("s")) + 10,
                run=0,
            ).sound("during snapshots")
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check(pushes.acknowledged)
    times = list(zip(answers.moments, answers.seconds, strict=True))
    during = sorted(seconds for moment, seconds in times if snapshots.under_way(moment))
    otherwise = sorted(seconds for moment, seconds in times if not snapshots.under_way(moment))
    if not during or not otherwise:
        raise Worthless("no acknowledgement came while a snapshot was uploaded, or none while there was none")
    rows = [
        (name, f"{len(found):,}", *(f"{1000 * _percentile(found, share):,.0f}" for share in (0.5, 0.95, 0.99)))
        for name, found in (("while a snapshot is uploaded", during), ("otherwise", otherwise))
    ]
    ratio = _percentile(during, 0.99) / _percentile(otherwise, 0.99)
    took = [end - begin for begin, end in snapshots.spans]
    return (
        f"{len(took)} snapshots of {megabytes} MB, each of {min(took):.1f} to {max(took):.1f} s, at {PUT_MS}/{GET_MS} "
        f"ms and {_SNAPSHOT_RATE:g} messages a second; the 99th percentile is {ratio:.2f} times as long meanwhile:\n\n"
        + table(("acknowledgements", "number", "p50, ms", "p95, ms", "p99, ms"), rows)
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class _Snapshots:
    """Notes when uploads of snapshots (files of level 9) are under way: from their first part until they are there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.spans: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Snapshots:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def under_way(self, moment: float) -> bool:
        """Whether one was then."""
        return any(begin <= moment <= end for begin, end in self.spans)

    def _look(self) -> None:
        faults, pattern = self._store.gcs.faults, f"{self._store.prefix}/generations/*/ltx/9/*"
        rule = faults.add(action="delay", verb="insert", name=pattern)
        seen, began, there = 0, None, self._count()
        while not self._ended.wait(0.05):
            hits = faults.hits(rule)
            if began is None and hits > seen:
                began = time.monotonic()
            if began is not None and (count := self._count()) > there:
                self.spans.append((began, time.monotonic()))
                began, there = None, count
            seen = hits

    def _count(self) -> int:
        prefix = f"{self._store.live()}/ltx/9/"
        return sum(1 for _ in self._store.objects(prefix))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _sides(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SIDES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the sides are {', '.join(SIDES)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.generation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--uploads",
        type=_numbers,
        default=[1_000, 100_000],
        help="lengths of a generation, in rising order (default: 1000,100000; empty for none)",
    )
    parser.add_argument("--sides", type=_sides, default=list(SIDES), help=f"some of {', '.join(SIDES)} (default: all)")
    parser.add_argument(
        "--minutes", type=float, default=90, help="longest all of them are given uploads (default: %(default)s)"
    )
    parser.add_argument("--base", default="HEAD~1", help="the commit beside which it is measured (default: %(default)s)")
    parser.add_argument(
        "--settle", type=int, default=40, help="seconds from the last upload to the later restores (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=3, help="restores of each (default: %(default)s)")
    parser.add_argument(
        "--snapshot-mb", type=int, default=300, help="the database whose snapshots are uploaded; 0 for none (default: 300)"
    )
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
