"""`python -m local`: the laptop's cloud from the command line."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import NoReturn

from local import cost, demo, demo_recover, docs, gcs_server, run

# Each module adds its subcommand and sets `run`, which takes the parsed arguments and returns the exit code.
_COMMANDS = (gcs_server.register, run.register, demo.register, demo_recover.register, cost.register, docs.register)


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local", description="Everything the service needs from Google Cloud, on this machine."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for register in _COMMANDS:
        register(subparsers)
    parsed = parser.parse_args(arguments)
    # A closed terminal or a stop button must not leave the emulator and the worker behind: their `with` blocks end them.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    code: int = parsed.run(parsed)
    return code


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
