"""How long does an acknowledgement take with UPLOAD_SPACING_SECONDS at 0, 0.25 and 1 s?

A worker for each spacing, with the bucket's latency added, gets messages at fixed rates; a message's time runs from when it
was due. The uploads a second are counted by the fake bucket. docs/cost.md says what each costs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from bench import openloop, part
from bench.errors import with_exit_code
from bench.figures import README, machine, rewrite, table
from bench.latency import GET_MS, PUT_MS
from bench.store import open_store
from local.cost import RATES, SPACINGS

_SECONDS: Final = {1.0: 120.0, 100.0: 30.0, 1000.0: 20.0}
"""How long each rate is sent: 120 messages at least."""
_WARM_UP_SECONDS: Final = 2.0
_HELD_MAX: Final = 5000
"""Messages that may be held: those of a spacing and an upload, at the highest rate, are more than the default."""


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report: 0 good figures, 1 worthless ones."""
    options = _parser().parse_args(arguments)
    rows = [row for spacing in SPACINGS for row in measure(spacing, options.share)]
    header = ("UPLOAD_SPACING_SECONDS", "msg/s", "uploads a second", "p50 of the ack, ms", "p99 of the ack, ms")
    figures = (
        f"{machine()}; {PUT_MS}/{GET_MS} ms, one run of each; the machine's load at the end: {os.getloadavg()[0]:.1f}.\n\n"
        f"{table(header, rows)}"
    )
    print(figures)
    if options.write:
        rewrite(README, "spacing", figures)


def measure(spacing: float, share: float) -> list[tuple[str, ...]]:
    """The rows of one spacing."""
    rows: list[tuple[str, ...]] = []
    with open_store() as store:
        settings = {"UPLOAD_SPACING_SECONDS": str(spacing), "QUEUE_MAX_MESSAGES": str(_HELD_MAX)}
        worker = store.worker("r1", settings).start().wait_serving()
        store.latency(put_ms=PUT_MS, get_ms=GET_MS)
        acknowledged = 0
        faults = store.gcs.faults
        uploads = faults.add(action="delay", verb="insert", name=f"{store.prefix}/generations/*/ltx/0/*")
        for number, rate in enumerate(RATES):
            warm = openloop.send(worker.url, rate=rate, seconds=_WARM_UP_SECONDS, run=2 * number).sound("warm-up")
            before = faults.hits(uploads)
            answers = openloop.send(worker.url, rate=rate, seconds=share * _SECONDS[rate], run=2 * number + 1).sound(
                "spaced"
            )
            acknowledged += len(warm.seconds) + len(answers.seconds)
            rows.append(
                (
                    f"{spacing:g}",
                    f"{rate:,g}",
                    f"{(faults.hits(uploads) - before) / answers.took:.1f}",
                    f"{1000 * answers.percentile(0.5):,.0f}",
                    f"{1000 * answers.percentile(0.99):,.0f}",
                )
            )
            part.say(str(rows[-1]))
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check_count(acknowledged)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.spacing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0, help="of each run's length, for a quick try (default: 1)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
