"""Everything that fits into a quarter of an hour, and one table of it in bench/README.md.

The steady load of ten minutes (bench.soak), the profile of the hot path (bench.profile), two commits beside each other
(bench.compare) and the longer measurements (bench.generation, bench.spacing, bench.oidc, bench.restore) are commands of
their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from bench import part, wrk
from bench.errors import with_exit_code
from bench.figures import README, Figure, figures_table, machine, rewrite


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report: 0 good figures, 1 worthless ones (nothing is written), 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    scale = part.QUICK if options.quick else part.FULL
    found: dict[tuple[str, str], list[Figure]] = {}
    began, load = time.monotonic(), os.getloadavg()[0]
    wrk.find()
    for name in options.only or part.NAMES:
        module = part.load(name)
        part.say(f"{name}: {module.QUESTION}")
        since = time.monotonic()
        found[module.QUESTION, part.command(name)] = module.measure(scale)
        part.say(f"{name}: {time.monotonic() - since:.0f} s")
    how = (
        f"{machine()}; {scale.runs} runs of each unless a row says otherwise, {time.monotonic() - began:.0f} s in all. "
        f"The machine's load before it began: {load:.1f}."
    )
    figures = f"{how}\n\n{figures_table(found)}"
    print(figures)
    if not options.quick and not options.only:
        rewrite(README, "everything", figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", choices=part.NAMES, metavar="NAME", help="this part; may be repeated; writes nothing"
    )
    parser.add_argument("--quick", action="store_true", help="each part once and short: whether it works; writes nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
