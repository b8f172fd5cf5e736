"""How much does an open console take from acknowledgements at full load?

A worker is pushed to over 256 connections, with the bucket's latency and without it. In every other run a console is up
beside it, on the same cores, and its page asks every five seconds, as an open browser does. Ratios are taken round by round.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from bench import part, wrk
from bench.errors import Worthless
from bench.figures import Figure, Target
from bench.latency import GET_MS, PUT_MS
from bench.part import Scale
from bench.store import open_store
from local.stack import ConsoleProcess

QUESTION: Final = "console: what does an open console take from acknowledgements?"
_POLL_SECONDS: Final = 5.0
"""As worker/console/static/console.js asks."""
_LOOKS: Final = 3
"""Of the page, in each run with a console."""
_ANSWER_SECONDS: Final = 30.0
_BESIDE: Final = Target("≥", 0.95)


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    wrk.find()
    seconds = scale.seconds if scale.brief else round(_LOOKS * _POLL_SECONDS)
    acknowledged, figures = 0, []
    with open_store() as store:
        worker = store.worker("r1").start().wait_serving()
        for step, (put_ms, get_ms) in enumerate(((0, 0), (PUT_MS, GET_MS))):
            store.latency(put_ms=put_ms, get_ms=get_ms)
            runs: dict[bool, list[wrk.Run]] = {True: [], False: []}
            for number in scale.numbers:
                for opened in (True, False) if number % 2 else (False, True):
                    console = ConsoleProcess(worker, store.directory / "console.log")
                    with _looked_at(console) if opened else _closed():
                        run = wrk.run(
                            worker.url,
                            connections=scale.connections,
                            seconds=seconds if number else 1,
                            number=100 * step + 2 * number + opened,
                        ).sound("console" if opened else "alone")
                    acknowledged += run.acknowledged
                    runs[opened] += [run] if number else []
            where = f"at {put_ms}/{get_ms} ms, {scale.connections} connections"
            pairs = list(zip(runs[True], runs[False], strict=True))
            shown = ", ".join(f"{beside.per_second:,.0f} beside {alone.per_second:,.0f}" for beside, alone in pairs)
            part.say(f"{where}: {shown}")
            figures += [
                Figure(f"alone {where}, msg/s", [alone.per_second for _, alone in pairs], ",.0f"),
                Figure(
                    f"with a console / alone {where}, msg/s",
                    [beside.per_second / alone.per_second for beside, alone in pairs],
                    ".2f",
                    _BESIDE,
                ),
                Figure(f"with a console / alone {where}, p99 of the ack", [b.p99 / a.p99 for b, a in pairs], ".2f"),
            ]
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check_count(acknowledged)
    return figures


@contextmanager
def _closed() -> Iterator[None]:
    yield


@contextmanager
def _looked_at(console: ConsoleProcess) -> Iterator[None]:
    """A console whose page is opened and then asks on, while the block runs.

    Raises:
        Worthless: It did not answer, so that nothing was measured.
    """
    ended = threading.Event()
    problems: list[str] = []

    def look() -> None:
        with httpx.Client(base_url=console.url, timeout=_ANSWER_SECONDS, trust_env=False) as client:
            path = "/"
            while True:
                answer = client.get(path)
                if not answer.is_success:
                    problems.append(f"{path}: {answer.status_code}")
                path = "/live"
                if ended.wait(_POLL_SECONDS):
                    return

    with console:
        looker = threading.Thread(target=look)
        looker.start()
        try:
            yield
        finally:
            ended.set()
            looker.join()
    if problems:
        raise Worthless(f"the console did not answer: {'; '.join(problems)}")


if __name__ == "__main__":
    sys.exit(part.main("console"))
