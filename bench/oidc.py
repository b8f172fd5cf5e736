"""What does verifying the sender's token cost? The same worker with verification on and off, pushed at in turn.

Every push carries a token, as every push of an authenticated subscription does; one worker looks at it. At the end both
buckets are restored by plain Litestream and must hold what was acknowledged.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import wrk
from bench.figures import README, machine, rewrite, table
from bench.push import MEMORY, REPLICA_URL, WARM_UP_SECONDS, serving
from local.authority import Authority
from local.proof import prove

_AUDIENCE: Final = "https://bench.example"
_PUSHER: Final = "push@bench.example"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report: 0 good figures, 1 something was lost or refused, 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    try:
        wrk.find()
    except wrk.WrkMissingError as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    runs, faults = measure(options)
    for fault in faults:
        print(f"not a figure of durable acknowledgements: {fault}", file=sys.stderr)
    if faults:
        return 1
    figures = f"{_setting(options)}\n\n{_table(runs)}"
    print(figures)
    if options.write:
        rewrite(README, "oidc", figures)
    return 0


def measure(options: argparse.Namespace) -> tuple[dict[str, list[wrk.Run]], list[str]]:
    """The runs of the worker that verifies (`on`) and of the one that does not (`off`), and what was wrong with them."""
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    runs: dict[str, list[wrk.Run]] = {"on": [], "off": []}
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="solowriter-bench-", dir=memory) as name, Authority() as authority:
        settings = {"PUSH_AUDIENCE": _AUDIENCE, "PUSH_SERVICE_ACCOUNT": _PUSHER, "OIDC_CERTS_URL": authority.url}
        headers = {"Authorization": f"Bearer {authority.token(audience=_AUDIENCE, email=_PUSHER)}"}
        with serving(Path(name) / "on", settings) as on, serving(Path(name) / "off") as off:
            places = {"on": on, "off": off}
            acknowledged = dict.fromkeys(places, 0)
            for number in range(options.rounds + 1):
                seconds = options.seconds if number else WARM_UP_SECONDS
                # The second of a pair may meet a busier machine than the first: each goes first in turn.
                for which in ("on", "off") if number % 2 else ("off", "on"):
                    url = places[which][0].url
                    run = wrk.run(url, connections=options.connections, seconds=seconds, number=number, headers=headers)
                    acknowledged[which] += run.acknowledged
                    runs[which] += [run] if number else []
                    faults += [f"{which}, round {number}: {count} {kind}" for kind, count in run.problems.items()]
                    print(f"round {number}, {which}: {run.per_second:,.0f}/s", file=sys.stderr)
            for which, (worker, gcs) in places.items():
                worker.stop()
                receipts = prove(gcs.url, REPLICA_URL, ()).receipts
                if receipts < acknowledged[which]:
                    faults.append(f"{which}: {acknowledged[which]} acknowledged, but only {receipts} in the bucket")
    return runs, faults


def _table(runs: dict[str, list[wrk.Run]]) -> str:
    ratios = [on.per_second / off.per_second for on, off in zip(runs["on"], runs["off"], strict=True)]
    rows = {
        "verified, msg/s": ([run.per_second for run in runs["on"]], ",.0f"),
        "not verified, msg/s": ([run.per_second for run in runs["off"]], ",.0f"),
        "verified / not verified, pair by pair": (ratios, ".1%"),
    }
    return table(
        ("", "min", "median", "max"),
        [
            (name, *(format(value, form) for value in (min(values), statistics.median(values), max(values))))
            for name, (values, form) in rows.items()
        ],
    )


def _setting(options: argparse.Namespace) -> str:
    return f"{machine()}; {options.rounds} rounds of {options.seconds} s each, {options.connections} connections."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.oidc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=256, help="requests in flight (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
