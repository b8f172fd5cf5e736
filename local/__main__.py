"""`python -m local`: the laptop's cloud from the command line."""

from __future__ import annotations

import argparse
import sys

from local import demo, gcs_server, run

# Each module adds its subcommand and sets `run`, which takes the parsed arguments and returns the exit code.
_COMMANDS = (gcs_server.register, run.register, demo.register)


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local", description="Everything the service needs from Google Cloud, on this machine."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for register in _COMMANDS:
        register(subparsers)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
