"""How long is nobody acknowledging while one instance hands the store over to the next?

The gap is from the old instance's last acknowledgement to the new one's first, while messages keep coming. Beside it: how
long the same bytes take through the fake bucket one way, as one PUT and as one GET, with the same latency added. The
bytes are those of the restored database; they hardly compress.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.figures import README, machine, rewrite, spread, table
from bench.pushes import Pushes
from bench.store import MEGABYTE, Store, Stored, logged, open_store
from local.worker_process import WorkerProcess

_IN_FLIGHT: Final = 8
_FILL_IN_FLIGHT: Final = 32
_SETTINGS_BYTES: Final = 100_000
_STEADY_SECONDS: Final = 1.5
"""Of pushes to the old instance with the latency added, before the new one is started; and to the new one afterwards."""
_WAIT_SECONDS: Final = 120
STEPS: Final = (
    "noticed: the old one is asked, and looks",
    "drained, stopped, released",
    "acquired",
    "restored",
    "migrated, claimed its path, Litestream up",
    "first upload: the whole database",
    "live switch",
    "first acknowledgement",
)


@dataclass(frozen=True, slots=True)
class Handover:
    """One hand-over. Times are in seconds; `steps` are those of `STEPS` and add up to the gap."""

    gap: float
    steps: tuple[float, ...]
    database_bytes: int
    objects: int
    put: float
    get: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = _parser().parse_args(arguments)
    results: dict[int, list[Handover]] = {}
    for size in options.sizes:
        for number in range(1, options.runs + 1):
            run = measure(size, put_ms=options.put_ms, get_ms=options.get_ms)
            results.setdefault(size, []).append(run)
            print(f"{size} MB, {number} of {options.runs}: {run.gap:.2f} s", file=sys.stderr)
    figures = report(results, options)
    print(figures)
    if options.write:
        rewrite(README, "handover", figures)
    return 0


def measure(size: int, *, put_ms: float, get_ms: float) -> Handover:
    """Fill a new store with `size` MB and hand it over once, under pushes."""
    with open_store() as store:
        old = store.worker("r1", TENURE_MIN_SECONDS="0.1").start().wait_serving()
        pushes = Pushes(old.url)
        users = max(1, size * MEGABYTE // _SETTINGS_BYTES)
        asyncio.run(pushes.send(users, in_flight=_FILL_IN_FLIGHT, settings_bytes=_SETTINGS_BYTES if size else 0))
        store.latency(put_ms=put_ms, get_ms=get_ms)
        new = store.worker("r2")
        objects = asyncio.run(_hand_over(store, old, new, pushes))
        if (code := old.wait()) != 0:
            raise RuntimeError(f"the old instance ended with {code}: {old.tail()}")
        database_bytes = int(_message(new, "restore.finished").split()[1])
        put, get = store.one_way_seconds(database_bytes)
        store.gcs.faults.clear()
        store.check(pushes.acknowledged)
        uploads = store.generations()[store.live()]
        marks = _marks(old, new, pushes, uploads)
    steps = tuple(after - before for before, after in itertools.pairwise(marks))
    return Handover(marks[-1] - marks[0], steps, database_bytes, objects, put, get)


async def _hand_over(store: Store, old: WorkerProcess, new: WorkerProcess, pushes: Pushes) -> int:
    """Move the pushes from one to the other; how many objects the generation held that is restored."""
    async with pushes.going_on(in_flight=_IN_FLIGHT):
        await asyncio.sleep(_STEADY_SECONDS)
        new.start()
        async with asyncio.timeout(_WAIT_SECONDS):
            while await asyncio.to_thread(new.state) != "standby":  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
        # Both look at the bucket once a second: the move must not always come at the same moment between two looks.
        await asyncio.sleep(1 + random.random())
        objects = len((await asyncio.to_thread(store.generations))[store.live()])
        pushes.url = new.url
        async with asyncio.timeout(_WAIT_SECONDS):
            while new.url not in pushes.first:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
        await asyncio.sleep(_STEADY_SECONDS)
    return objects


def _marks(old: WorkerProcess, new: WorkerProcess, pushes: Pushes, uploads: list[Stored]) -> tuple[float, ...]:
    """The moments between which the steps lie, in seconds since the epoch."""
    return (
        pushes.last[old.url],
        logged(old, "lease.requested")[0][0],
        logged(old, "lease.released")[0][0],
        logged(new, "lease.acquired")[0][0],
        logged(new, "restore.finished")[0][0],
        logged(new, "litestream.started")[0][0],
        min(stored.updated for stored in uploads if "/ltx/" in stored.name),
        logged(new, "worker.serving")[0][0],
        pushes.first[new.url],
    )


def _message(worker: WorkerProcess, action: str) -> str:
    return logged(worker, action)[0][1]


def report(results: dict[int, list[Handover]], options: argparse.Namespace) -> str:
    """The tables, and how they were taken."""
    how = (
        f"{machine()}; {options.runs} hand-overs of each, {_IN_FLIGHT} requests in flight, "
        f"{options.put_ms:g} ms added to a write and {options.get_ms:g} ms to a read of the bucket."
    )
    gaps = table(
        (
            "database",
            "bytes",
            "objects restored",
            "gap, s (min / median / max)",
            "one PUT, s",
            "one GET, s",
            "gap / (PUT + GET)",
        ),
        [_gap_row(size, runs) for size, runs in results.items()],
    )
    steps = table(
        ("step, s (min / median / max)", *(f"{size} MB" for size in results)),
        [
            (name, *(spread([run.steps[number] for run in runs]) for runs in results.values()))
            for number, name in enumerate(STEPS)
        ],
    )
    return f"{how}\n\n{gaps}\n\nWhere the gap goes; the steps of one hand-over add up to its gap:\n\n{steps}"


def _gap_row(size: int, runs: list[Handover]) -> tuple[str, ...]:
    ratio = statistics.median(run.gap / (run.put + run.get) for run in runs)
    return (
        f"{size} MB" if size else "empty",
        format(round(statistics.median(run.database_bytes for run in runs)), ","),
        spread([run.objects for run in runs], ".0f"),
        spread([run.gap for run in runs]),
        f"{statistics.median(run.put for run in runs):.2f}",
        f"{statistics.median(run.get for run in runs):.2f}",
        f"{ratio:.1f}",
    )


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.handover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=_sizes, default=[0, 10, 100], help="MB in the database (default: 0,10,100)")
    parser.add_argument("--runs", type=int, default=3, help="hand-overs of each size (default: %(default)s)")
    parser.add_argument("--put-ms", type=float, default=80.0, help="added to each write of the bucket (default: 80)")
    parser.add_argument("--get-ms", type=float, default=40.0, help="added to each read of the bucket (default: 40)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
