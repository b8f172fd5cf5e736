"""How long after a process is started does it acknowledge its first message?

A worker is filled with users whose settings nothing can compress, and stopped in order. Then it is started on an empty disk,
again and again, while one message is sent until it is acknowledged; that ends the time, which began with the process. Beside
it: how long the same bytes take through the fake bucket, as one GET and as one PUT, with the same latency added. A start has
to restore the one and upload the other before it may acknowledge.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

from bench import part
from bench.figures import Figure, Target
from bench.latency import GET_MS, PUT_MS
from bench.part import Scale
from bench.pushes import Pushes
from bench.store import logged, open_store

QUESTION: Final = "cold start: how long from a process to its first ack?"
_TRANSFERS: Final = 1.5
_PROCESS_SECONDS: Final = 1.0
"""A start may take so many times the bare transfer of its bytes, and this."""


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    return [figure for size in scale.megabytes for figure in starts(size, scale.runs)]


def starts(megabytes: int, runs: int) -> list[Figure]:
    """Start again and again on a store of that size."""
    took, shares = [], []
    with open_store() as store:
        worker = store.worker("r1").start().wait_serving()
        pushes = Pushes(worker.url, pause=0.01)
        store.fill(pushes, megabytes)
        worker.stop()
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        for _ in range(runs):
            worker.wipe()
            began = time.monotonic()
            worker.start()
            asyncio.run(pushes.send(1))
            took.append(time.monotonic() - began)
            put, get = store.one_way_seconds(int(logged(worker, "restore.finished")[-1][1].split()[1]))
            shares.append(took[-1] / (_TRANSFERS * (put + get) + _PROCESS_SECONDS))
            part.say(f"cold start, {megabytes} MB: {took[-1]:.2f} s; the bytes alone: {put:.2f} s up, {get:.2f} s down")
            worker.stop()
        store.latency(put_ms=0, get_ms=0)
        store.check(pushes.acknowledged)
    where = f"with {megabytes} MB at {PUT_MS}/{GET_MS} ms"
    return [
        Figure(f"cold start to first ack {where}, s", took, ".2f"),
        Figure(
            f"cold start / ({_TRANSFERS:g} * (download + upload) + {_PROCESS_SECONDS:g} s) {where}",
            shares,
            ".2f",
            Target("≤", 1),
        ),
    ]


if __name__ == "__main__":
    sys.exit(part.main("coldstart"))
