"""What does a long generation cost at a restore, and what does leaving it for a new one cost?

Litestream does not compact on Cloud Storage, so a generation keeps one object for each upload, and a restore reads them
all, one after the other. Three tables:

1. after so many confirmed groups (`--groups`), with roll-over at its default bound and without;
2. the time of a restore against the transactions in a generation (`--transactions`);
3. what a roll-over costs at a database of so many MB (`--megabytes`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from bench.figures import README, machine, rewrite, spread, table
from bench.pushes import Pushes
from bench.store import Store, Stored, logged, open_store
from local.worker_process import WorkerProcess
from worker.config import Settings

_NEVER: Final = 10**9
"""Transactions after which a generation is left when it shall not be left."""
_OFTEN: Final = 40
"""Transactions after which it is left where the roll-over itself is measured."""
_OBJECTS_AT_ONCE: Final = 8_000
"""In restores side by side. Litestream opens all objects of a generation before it reads them, each over a connection of its
own, and the fake bucket has no more than some 20,000 files and connections."""
_WHOLE_COPY: Final = re.compile(r"/ltx/(\d)/0{15}1-[0-9a-f]{16}\.ltx$")
"""What Litestream calls the copies of the whole database with which a generation begins: one at each of several levels."""


@dataclass(frozen=True, slots=True)
class Restores:
    """A generation, and how many seconds its restore takes with nothing added and with latency added to each read.

    `slow` is empty where that was not measured.
    """

    transactions: int
    objects: int
    plain: list[float]
    slow: list[float]


@dataclass(frozen=True, slots=True)
class RollOvers:
    """What leaving a generation costs: seconds of pause, the longest answer in seconds, and bytes uploaded.

    `whole` are the bytes of the copy that the pause waits for; `again` those of the copies that Litestream adds later.
    """

    megabytes: int
    latency: tuple[float, float]
    pauses: list[float]
    longest: float
    whole: list[int]
    again: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = _parser().parse_args(arguments)
    parts = [
        f"{machine()}; each restore by plain `litestream restore` with a full integrity check, {options.runs} times; "
        f"those with latency side by side, since they only wait, as many as have {_OBJECTS_AT_ONCE:,} objects."
    ]
    if options.groups:
        parts.append(_report_groups(options))
    if options.transactions:
        parts.append(_report_sweep(options))
    if options.megabytes:
        parts.append(_report_roll_overs(options))
    figures = "\n\n".join(parts)
    print(figures)
    if options.write:
        rewrite(README, "rollover", figures)
    return 0


def after_groups(options: argparse.Namespace, bound: int) -> dict[str, Restores]:
    """Confirm that many groups, one after the other; the live generation then, and the longest one there was.

    No latency here: what it adds to each object, the sweep shows, and 10,000 of them would be read for a quarter of an hour.
    """
    with _one_worker(bound) as (store, worker, pushes):
        asyncio.run(pushes.send(options.groups))
        worker.stop()
        store.check(pushes.acknowledged)
        generations = store.generations()
        longest = max(generations, key=lambda path: len(generations[path]))
        return {"at the end": plainly(store, store.live(), options), "longest": plainly(store, longest, options)}


def sweep(options: argparse.Namespace) -> list[Restores]:
    """One generation that is never left, measured each time it has grown to so many transactions."""
    found = []
    with _one_worker(_NEVER) as (store, _, pushes):
        for wanted in options.transactions:
            while (missing := wanted - transactions(store.generations()[store.live()])) > 0:
                asyncio.run(pushes.send(missing))
            found.append(restores(store, store.live(), options))
            print(f"{wanted} transactions: restored in {spread(found[-1].slow)} s", file=sys.stderr)
        store.check(pushes.acknowledged)
    return found


def plainly(store: Store, generation: str, options: argparse.Namespace) -> Restores:
    """Restore a generation again and again, with nothing added."""
    objects = store.generations()[generation]
    plain = [store.restore_seconds(generation) for _ in range(options.runs)]
    return Restores(transactions(objects), len(objects), plain, [])


def restores(store: Store, generation: str, options: argparse.Namespace) -> Restores:
    """Restore a generation again and again, without and with latency."""
    found = plainly(store, generation, options)
    store.latency(put_ms=0, get_ms=options.get_ms)
    at_once = max(1, min(options.runs, _OBJECTS_AT_ONCE // found.objects))
    with ThreadPoolExecutor(at_once) as side_by_side:  # they only wait, and one of a long generation takes minutes
        found.slow.extend(side_by_side.map(store.restore_seconds, [generation] * at_once))
    store.latency(put_ms=0, get_ms=0)
    return found


def roll_overs(options: argparse.Namespace, megabytes: int, latency: tuple[float, float]) -> RollOvers:
    """Roll a database of that size over again and again, under pushes one after the other."""
    with _one_worker(_OFTEN) as (store, worker, pushes):
        store.fill(pushes, megabytes)
        before = len(logged(worker, "generation.rolled_over"))
        pushes.longest = 0.0
        store.latency(put_ms=latency[0], get_ms=latency[1])

        async def until_rolled() -> None:
            while len(logged(worker, "generation.rolled_over")) < before + options.runs:
                await pushes.send(_OFTEN // 2)

        asyncio.run(until_rolled())
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check(pushes.acknowledged)
        rolled = [message for _, message in logged(worker, "generation.rolled_over")[before:]]
        copies = [_copies(store.generations()[f"store/{message.split()[3]}"]) for message in rolled]
    return RollOvers(
        megabytes,
        latency,
        [float(message.rpartition(", in ")[2].split()[0]) for message in rolled],
        pushes.longest,
        [whole for whole, _ in copies],
        [again for _, again in copies],
    )


def transactions(objects: list[Stored]) -> int:
    """How many transactions were uploaded to a generation, one by one."""
    return sum("/ltx/0/" in stored.name for stored in objects)


def _copies(objects: list[Stored]) -> tuple[int, int]:
    copies = [(match[1], stored.size) for stored in objects if (match := _WHOLE_COPY.search(stored.name))]
    whole = sum(size for level, size in copies if level == "0")
    return whole, sum(size for _, size in copies) - whole


@contextlib.contextmanager
def _one_worker(bound: int) -> Iterator[tuple[Store, WorkerProcess, Pushes]]:
    with open_store() as store:
        worker = store.worker("r1", {"GENERATION_TRANSACTIONS_MAX": str(bound)}).start().wait_serving()
        yield store, worker, Pushes(worker.url)


def _report_groups(options: argparse.Namespace) -> str:
    default = Settings(replica_url="gs://bench/store").generation_transactions_max
    with ThreadPoolExecutor(2) as stores:  # both meet whatever else the machine does
        bounded = stores.submit(after_groups, options, default)
        unbounded = stores.submit(after_groups, options, _NEVER)
    rows = [
        (f"roll-over after {default:,}: the generation live at the end", bounded.result()["at the end"]),
        (f"roll-over after {default:,}: the longest, just before it was left", bounded.result()["longest"]),
        ("no roll-over", unbounded.result()["at the end"]),
    ]
    return f"After {options.groups:,} confirmed groups:\n\n{_restores_table(rows, options)}"


def _report_sweep(options: argparse.Namespace) -> str:
    rows = [(f"{found.transactions:,} transactions", found) for found in sweep(options)]
    return f"A restore against the length of its generation:\n\n{_restores_table(rows, options)}"


def _restores_table(rows: list[tuple[str, Restores]], options: argparse.Namespace) -> str:
    header: tuple[str, ...] = ("", "transactions", "objects", "restore, s (min / median / max)")
    cells: list[tuple[str, ...]] = [
        (name, f"{found.transactions:,}", f"{found.objects:,}", spread(found.plain)) for name, found in rows
    ]
    if all(found.slow for _, found in rows):
        header += (f"with {options.get_ms:g} ms for each read, s",)
        cells = [(*row, spread(found.slow)) for row, (_, found) in zip(cells, rows, strict=True)]
    return table(header, cells)


def _report_roll_overs(options: argparse.Namespace) -> str:
    latencies = ((0.0, 0.0), (options.put_ms, options.get_ms))
    rolled = [roll_overs(options, size, latency) for size in options.megabytes for latency in latencies]
    rows = [
        (
            f"{each.megabytes} MB",
            f"{each.latency[0]:g} / {each.latency[1]:g}",
            str(len(each.pauses)),
            spread(each.pauses),
            f"{each.longest:.2f}",
            f"{max(each.whole):,}",
            f"{max(each.again):,}",
        )
        for each in rolled
    ]
    header = (
        *("database", "PUT / GET, ms", "roll-overs", "pause, s (min / median / max)", "longest answer, s"),
        *("bytes uploaded in the pause", "and again later"),
    )
    return f"A roll-over, with one request in flight:\n\n{table(header, rows)}"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rollover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=10_000, help="groups to confirm; 0 for none (default: %(default)s)")
    parser.add_argument(
        "--transactions",
        type=_numbers,
        default=[250, 500, 1000, 2000, 4000],
        help="lengths of a generation to restore, in rising order (default: 250,500,1000,2000,4000; empty for none)",
    )
    parser.add_argument(
        "--megabytes", type=_numbers, default=[1, 10], help="databases to roll over (default: 1,10; empty for none)"
    )
    parser.add_argument("--runs", type=int, default=5, help="restores, or roll-overs, of each (default: %(default)s)")
    parser.add_argument("--put-ms", type=float, default=80.0, help="latency added to a write (default: %(default)s)")
    parser.add_argument("--get-ms", type=float, default=40.0, help="latency added to a read (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
