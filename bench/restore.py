"""How long does a restore take, beside plain `litestream restore` of the same generation?

The worker fetches a generation's objects side by side and has Litestream put them together from a local copy; Litestream by
itself reads them one after the other. Three ways take turns: plain `litestream restore`, the worker's own function (as in a
drill), and the whole command `python -m worker restore`, which also starts Python. All of them check the integrity in full.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.figures import README, machine, rewrite, spread, table
from bench.pushes import Pushes
from bench.store import Store, open_store
from local.worker_process import WorkerProcess
from worker.config import Settings
from worker.events.configured import catalog_of
from worker.operations.restore import restore
from worker.replica.bucket import Bucket
from worker.replica.litestream import find_binary
from worker.replica.restoring import Wanted

PLAIN: Final = "plain litestream restore"
FUNCTION: Final = "the worker's function"
COMMAND: Final = "python -m worker restore"
WAYS: Final = (PLAIN, FUNCTION, COMMAND)


@dataclass(frozen=True, slots=True)
class Restores:
    """The seconds that each way took, run by run, for one generation at one latency."""

    megabytes: int
    kind: str
    objects: int
    get_ms: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def ratio(self, way: str) -> float:
        """How many times as long as the plain restore of the same run it took: the median of the runs."""
        return statistics.median(ours / plain for ours, plain in zip(self.seconds[way], self.seconds[PLAIN], strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = _parser().parse_args(arguments)
    found = [each for size in options.megabytes for each in measure(size, options)]
    figures = report(found, options)
    print(figures)
    if options.write:
        rewrite(README, "restore", figures)
    return 0


def measure(megabytes: int, options: argparse.Namespace) -> list[Restores]:
    """Fill a store; restore a generation that was just begun, and one of many uploads, without and with latency."""
    found = []
    with open_store() as store, _sent_to(store):
        worker = store.worker("r1").start().wait_serving()
        pushes = Pushes(worker.url)
        store.fill(pushes, megabytes)
        for kind, uploads in (("just begun", 0), (f"{options.uploads:,} uploads", options.uploads)):
            worker.stop()  # the next life begins a generation with a copy of the whole database
            worker.start().wait_serving()
            asyncio.run(pushes.send(uploads))
            worker.stop()  # while it is measured, nothing changes
            store.check(pushes.acknowledged)
            objects = len(store.generations()[store.live()])
            for get_ms in (0.0, options.get_ms):
                each = Restores(megabytes, kind, objects, get_ms)
                _take_turns(store, worker, each, options.runs)
                found.append(each)
                print(f"{megabytes} MB, {kind}, {get_ms:g} ms: {each.ratio(FUNCTION):.2f} of plain", file=sys.stderr)
            worker.start().wait_serving()
    return found


def _take_turns(store: Store, worker: WorkerProcess, found: Restores, runs: int) -> None:
    """Add the seconds of so many restores of each way; who goes first changes with each run."""
    store.latency(put_ms=0, get_ms=found.get_ms)
    for run in range(runs):
        for number in range(len(WAYS)):
            way = WAYS[(run + number) % len(WAYS)]
            found.seconds[way].append(_seconds(store, worker, way))
    store.latency(put_ms=0, get_ms=0)


def _seconds(store: Store, worker: WorkerProcess, way: str) -> float:
    if way == PLAIN:
        return store.restore_seconds(store.live())
    with tempfile.TemporaryDirectory(dir=store.directory) as scratch:
        output = Path(scratch) / "restored.db"
        began = time.monotonic()
        if way == FUNCTION:
            asyncio.run(_restore(store, output))
        elif (done := worker.run("restore", "-o", str(output))).returncode != 0:
            raise RuntimeError(f"worker restore failed: {done.stderr.strip()}")
        return time.monotonic() - began


async def _restore(store: Store, output: Path) -> None:
    settings = Settings(replica_url=store.replica_url)
    bucket = Bucket(settings.bucket, settings.prefix)
    try:
        await restore(
            bucket,
            catalog_of(settings),
            Wanted(),
            output,
            binary=find_binary(settings.litestream_bin),
            seconds=settings.restore_timeout_seconds,
            request_seconds=settings.fetch_timeout_seconds,
            say=lambda _: None,
        )
    finally:
        bucket.close()


@contextlib.contextmanager
def _sent_to(store: Store) -> Iterator[None]:
    """Have Google's client in this process use the fake bucket while the block runs."""
    before = dict(os.environ)
    os.environ.update(store.gcs.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def report(found: Sequence[Restores], options: argparse.Namespace) -> str:
    """The table, and how it was taken."""
    how = f"{machine()}; {options.runs} restores of each, the three ways in turn; each ratio is the median of the runs' own."
    header = (
        *("database", "generation", "objects", "added to a read, ms"),
        *(f"{way}, s (min / median / max)" for way in WAYS),
        *("function / plain", "command / plain"),
    )
    rows = [
        (
            *(f"{each.megabytes} MB", each.kind, f"{each.objects:,}", f"{each.get_ms:g}"),
            *(spread(each.seconds[way]) for way in WAYS),
            *(f"{each.ratio(way):.2f}" for way in (FUNCTION, COMMAND)),
        )
        for each in found
    ]
    return f"{how}\n\n{table(header, rows)}"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.restore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=_numbers, default=[10, 100], help="databases to restore (default: 10,100)")
    parser.add_argument("--runs", type=int, default=5, help="restores of each way (default: %(default)s)")
    parser.add_argument("--uploads", type=int, default=500, help="in the longer generation (default: %(default)s)")
    parser.add_argument("--get-ms", type=float, default=40.0, help="latency added to a read (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
