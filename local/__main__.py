"""`python -m local`: the laptop's cloud from the command line."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from typing import NoReturn

# Each module adds its subcommand and sets `run`, which takes the parsed arguments and returns the exit code. Only the named
# one is loaded: all of them take a second, and the tests start this process hundreds of times.
_COMMANDS = {
    "gcs": "gcs_server",
    "run": "run",
    "demo": "demo",
    "demo-recover": "demo_recover",
    "demo-many": "demo_many",
    "example": "example",
    "cost": "cost",
    "docs": "docs",
    "screenshots": "screenshots",
    "record": "record",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local", description="Everything the service needs from Google Cloud, on this machine."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    arguments = sys.argv[1:] if arguments is None else arguments
    named = _COMMANDS.get(arguments[0]) if arguments else None
    for module in (named,) if named else _COMMANDS.values():
        importlib.import_module(f"local.{module}").register(subparsers)
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
