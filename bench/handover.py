"""How long does no instance acknowledge while one hands the store over to the next?

A worker is filled with users whose settings nothing can compress, then the bucket's latency is added. A second worker is
started on the same store and stands by, while eight requests are kept in flight, each sent again until it is acknowledged.
The traffic moves to the second worker: it asks, the first hands over and ends. A third takes over from the second, and so
on.

The gap is from the old instance's last acknowledgement to the new one's first. Its steps are read off the two workers' logs,
and the end of the first upload off the bucket. Beside it: how long the restored bytes take through the fake bucket one way,
as one PUT and as one GET. The minimum tenure is set to 0.1 s, so that an instance may hand over at once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench import part
from bench.errors import Worthless
from bench.figures import Figure
from bench.latency import GET_MS, PUT_MS
from bench.part import Scale
from bench.pushes import Pushes
from bench.store import Store, Stored, logged, open_store
from local.worker_process import WorkerProcess

QUESTION: Final = "hand-over: how long does no instance acknowledge?"
_IN_FLIGHT: Final = 8
_STEADY_SECONDS: Final = 1
"""Of pushes to the old instance with the latency added, before the new one is started."""
_WAIT_SECONDS: Final = 120
_STEPS_FROM_MEGABYTES: Final = 100
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
    put: float
    get: float


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    return [figure for size in scale.megabytes for figure in rows(size, handovers(size, scale.runs))]


def handovers(megabytes: int, count: int) -> list[Handover]:
    """Fill a new store and hand it over so often, under pushes."""
    with open_store() as store:
        instances = [store.worker(f"r{number}", {"TENURE_MIN_SECONDS": "0.1"}) for number in range(count + 1)]
        pushes = Pushes(instances[0].start().wait_serving().url)
        store.fill(pushes, megabytes)
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        found = []
        for old, new in itertools.pairwise(instances):
            found.append(_hand_over(store, old, new, pushes))
            part.say(f"hand-over, {megabytes} MB: {found[-1].gap:.2f} s")
        store.latency(put_ms=0, get_ms=0)
        store.check(pushes.acknowledged)
    return found


def _hand_over(store: Store, old: WorkerProcess, new: WorkerProcess, pushes: Pushes) -> Handover:
    asyncio.run(_move(old, new, pushes))
    if (code := old.wait()) != 0:
        raise Worthless(f"the old instance ended with {code}: {old.tail()}")
    put, get = store.one_way_seconds(int(logged(new, "restore.finished")[0][1].split()[1]))
    marks = _marks(old, new, pushes, store.generations()[store.live()])
    steps = tuple(after - before for before, after in itertools.pairwise(marks))
    return Handover(marks[-1] - marks[0], steps, put, get)


async def _move(old: WorkerProcess, new: WorkerProcess, pushes: Pushes) -> None:
    """Move the pushes from one to the other."""
    async with pushes.going_on(in_flight=_IN_FLIGHT):
        await asyncio.sleep(_STEADY_SECONDS)
        new.start()
        async with asyncio.timeout(_WAIT_SECONDS):
            while await asyncio.to_thread(new.state) != "standby":  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
        # Both look at the bucket once a second: the move must not always come at the same moment between two looks.
        await asyncio.sleep(1 + random.random())
        pushes.url = new.url
        async with asyncio.timeout(_WAIT_SECONDS):
            while new.url not in pushes.first:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)


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


def rows(megabytes: int, found: Sequence[Handover]) -> list[Figure]:
    """What is said of the hand-overs at one size; the steps only of a large one, where they tell most."""
    where = f"with {megabytes} MB at {PUT_MS}/{GET_MS} ms"
    return [
        Figure(f"hand-over gap {where}, s", [each.gap for each in found], ".2f"),
        Figure(
            f"gap / (download + upload of the bytes) {where}", [each.gap / (each.put + each.get) for each in found], ".1f"
        ),
        *(
            Figure(f"… of which {name} {where}, s", [each.steps[number] for each in found], ".2f")
            for number, name in enumerate(STEPS)
            if megabytes >= _STEPS_FROM_MEGABYTES
        ),
    ]


if __name__ == "__main__":
    sys.exit(part.main("handover"))
