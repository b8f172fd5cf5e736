"""What does verifying the sender's token cost? The same worker with verification on and off, pushed at in turn.

Every push carries a token, as every push of an authenticated subscription does; one worker looks at it. At the end both
buckets are restored by plain Litestream and must hold what was acknowledged.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Final

from bench import part, wrk
from bench.errors import with_exit_code
from bench.figures import README, machine, rewrite, table
from bench.store import open_store
from bench.throughput import WARM_UP_SECONDS
from local.authority import Authority

_AUDIENCE: Final = "https://bench.example"
_PUSHER: Final = "push@bench.example"


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report: 0 good figures, 1 something was lost or refused, 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    wrk.find()
    runs = measure(options)
    figures = f"{_setting(options)}\n\n{_table(runs)}"
    print(figures)
    if options.write:
        rewrite(README, "oidc", figures)


def measure(options: argparse.Namespace) -> dict[str, list[wrk.Run]]:
    """The runs of the worker that verifies (`on`) and of the one that does not (`off`)."""
    runs: dict[str, list[wrk.Run]] = {"on": [], "off": []}
    with Authority() as authority, open_store() as verifying, open_store() as trusting:
        settings = {"PUSH_AUDIENCE": _AUDIENCE, "PUSH_SERVICE_ACCOUNT": _PUSHER, "OIDC_CERTS_URL": authority.url}
        headers = {"Authorization": f"Bearer {authority.token(audience=_AUDIENCE, email=_PUSHER)}"}
        stores = {"on": verifying, "off": trusting}
        workers = {"on": verifying.worker("on", settings), "off": trusting.worker("off")}
        acknowledged = dict.fromkeys(workers, 0)
        for worker in workers.values():
            worker.start().wait_serving()
        for number in range(options.rounds + 1):
            seconds = options.seconds if number else WARM_UP_SECONDS
            # The second of a pair may meet a busier machine than the first: each goes first in turn.
            for which in ("on", "off") if number % 2 else ("off", "on"):
                url = workers[which].url
                run = wrk.run(url, connections=options.connections, seconds=seconds, number=number, headers=headers)
                acknowledged[which] += run.sound(f"{which}, round {number}").acknowledged
                runs[which] += [run] if number else []
                part.say(f"round {number}, {which}: {run.per_second:,.0f}/s")
        for which, worker in workers.items():
            worker.stop()
            stores[which].check_count(acknowledged[which])
    return runs


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
