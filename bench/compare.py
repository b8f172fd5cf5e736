"""This checkout beside a base commit, in one run: before anything on the hot path is merged.

    python -m bench.compare main
    python -m bench.compare HEAD~1 --parts throughput,start --rounds 8

The base is checked out into a temporary folder and runs there with this checkout's Python. Each has a store of its own in
the same fake bucket; the two take turns, and another one goes first each time. A ratio is this checkout / the base, round by
round. What is not committed counts as this checkout's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import part, process, wrk
from bench.errors import Worthless, WrkMissing
from bench.figures import README, machine, rewrite, spread, table
from bench.latency import GET_MS, PUT_MS
from bench.pushes import Pushes
from bench.store import Store, open_store
from bench.throughput import CONNECTIONS, WARM_UP_SECONDS
from local.worker_process import ROOT, WorkerProcess

HERE: Final = "this checkout"
BASE: Final = "base"
_MEGABYTES: Final = 10
_ROW = tuple[str, dict[str, list[float]], str]
"""A figure's name, its values by side, and their form."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and report: 0 good figures, 1 worthless ones, 2 the base cannot be checked out, or wrk is missing."""
    options = _parser().parse_args(arguments)
    rows: list[_ROW] = []
    try:
        wrk.find()
        with checked_out(options.base) as (base, name):
            for each in options.parts:
                rows += PARTS[each]({HERE: ROOT, BASE: base}, options)
    except (WrkMissing, subprocess.CalledProcessError) as missing:
        print(f"error: {getattr(missing, 'stderr', None) or missing}", file=sys.stderr)
        return 2
    except Worthless as fault:
        print(f"not a figure: {fault}", file=sys.stderr)
        return 1
    how = (
        f"{machine()}; this checkout beside {name}, {options.rounds} rounds (min / median / max); "
        f"the machine's load at the end: {os.getloadavg()[0]:.1f}."
    )
    figures = f"{how}\n\n{table(('', HERE, BASE, f'{HERE} / {BASE}'), [_cells(*row) for row in rows])}"
    print(figures)
    if options.write:
        rewrite(README, "compare", figures)
    return 0


def _cells(name: str, values: dict[str, list[float]], form: str) -> tuple[str, ...]:
    ratios = [here / base for here, base in zip(values[HERE], values[BASE], strict=True)]
    return name, spread(values[HERE], form), spread(values[BASE], form), spread(ratios)


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[tuple[Path, str]]:
    """The commit's files in a folder of their own, and its name; the folder is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="solowriter-base-") as scratch:
        folder = Path(scratch) / "base"
        _git("worktree", "add", "--detach", str(folder), commit)
        try:
            yield folder, _git("log", "-1", "--format=%h (%s)", commit).strip()
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def _throughput(folders: dict[str, Path], options: argparse.Namespace) -> list[_ROW]:
    """Messages a second, median and 99th percentile of the ack, and CPU, at 0/0 ms and with the bucket's latency."""
    rows: list[_ROW] = []
    with _both(folders) as (root, stores, workers):
        acknowledged = dict.fromkeys(workers, 0)
        for worker in workers.values():
            worker.start().wait_serving()
        for step, (put_ms, get_ms) in enumerate(((0, 0), (PUT_MS, GET_MS))):
            root.latency(put_ms=put_ms, get_ms=get_ms)
            runs: dict[str, list[wrk.Run]] = {HERE: [], BASE: []}
            cpu: dict[str, list[float]] = {HERE: [], BASE: []}
            for number in range(options.rounds + 1):
                for side in _order(number):
                    before = process.cpu_seconds(workers[side].pid)[0]
                    seconds = options.seconds if number else WARM_UP_SECONDS
                    run = wrk.run(workers[side].url, connections=CONNECTIONS, seconds=seconds, number=100 * step + number)
                    acknowledged[side] += run.sound(side).acknowledged
                    part.say(f"{put_ms}/{get_ms} ms, {side}: {run.per_second:,.0f}/s")
                    if number:
                        runs[side].append(run)
                        cpu[side].append(1e6 * (process.cpu_seconds(workers[side].pid)[0] - before) / run.acknowledged)
            where = f"at {put_ms}/{get_ms} ms"
            rows += [
                (f"msg/s {where}", {side: [run.per_second for run in found] for side, found in runs.items()}, ",.0f"),
                (
                    f"p50 of the ack {where}, ms",
                    {side: [run.p50 / 1000 for run in found] for side, found in runs.items()},
                    ",.0f",
                ),
                (
                    f"p99 of the ack {where}, ms",
                    {side: [run.p99 / 1000 for run in found] for side, found in runs.items()},
                    ",.0f",
                ),
                (f"CPU of the worker per message {where}, µs", cpu, ",.1f"),
            ]
        root.latency(put_ms=0, get_ms=0)
        for side, worker in workers.items():
            worker.stop()
            stores[side].check_count(acknowledged[side])
    return rows


def _start(folders: dict[str, Path], options: argparse.Namespace) -> list[_ROW]:
    """Seconds from a process to its first ack."""
    took: dict[str, list[float]] = {HERE: [], BASE: []}
    with _both(folders) as (root, stores, workers):
        pushes = {side: Pushes(worker.url, pause=0.01) for side, worker in workers.items()}
        for side, worker in workers.items():
            worker.start().wait_serving()
            stores[side].fill(pushes[side], _MEGABYTES)
            worker.stop()
        root.latency(put_ms=PUT_MS, get_ms=GET_MS)
        for number in range(options.rounds):
            for side in _order(number):
                workers[side].wipe()
                began = time.monotonic()
                workers[side].start()
                asyncio.run(pushes[side].send(1))
                took[side].append(time.monotonic() - began)
                part.say(f"cold start, {side}: {took[side][-1]:.2f} s")
                workers[side].stop()
        root.latency(put_ms=0, get_ms=0)
        for side, store in stores.items():
            store.check(pushes[side].acknowledged)
    return [(f"cold start to first ack with {_MEGABYTES} MB at {PUT_MS}/{GET_MS} ms, s", took, ".2f")]


PARTS: Final[dict[str, Callable[[dict[str, Path], argparse.Namespace], list[_ROW]]]] = {
    "throughput": _throughput,
    "start": _start,
}


@contextlib.contextmanager
def _both(folders: dict[str, Path]) -> Iterator[tuple[Store, dict[str, Store], dict[str, WorkerProcess]]]:
    """The bucket, and for each side its store in it and a worker that is not started."""
    with open_store() as root:
        stores = {HERE: root.beside("here"), BASE: root.beside("base")}
        yield root, stores, {side: store.worker("r1", code=folders[side]) for side, store in stores.items()}


def _order(number: int) -> tuple[str, str]:
    return (HERE, BASE) if number % 2 else (BASE, HERE)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="the commit to compare with, by any name that git takes")
    parser.add_argument(
        "--parts", type=_parts, default=["throughput"], help="throughput, start, or both with a comma (default: throughput)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a push (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
