"""One part of `make bench`: a question, and figures that answer it. Each part is a script of its own as well."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bench.errors import with_exit_code
from bench.figures import Figure, figures_table, machine

NAMES: Final = ("throughput", "latency", "bucket", "coldstart", "handover", "load", "writer", "console")
"""The parts, in the order in which they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured. `brief` is a smoke: everything is done once, and the figures say nothing."""

    runs: int = 5
    seconds: int = 3
    """Length of a timed run."""
    idle_seconds: int = 25
    megabytes: tuple[int, ...] = (1, 10, 100)
    lines: int = 100_000
    connections: int = 256
    """Of wrk, at full load."""
    brief: bool = False

    @property
    def numbers(self) -> range:
        """The runs by number; number 0 is the warm-up, which a smoke goes without."""
        return range(1 if self.brief else 0, self.runs + 1)


FULL: Final = Scale()
QUICK: Final = Scale(runs=1, seconds=1, idle_seconds=2, megabytes=(1,), lines=2_000, connections=32, brief=True)


class Part(Protocol):
    """A module of `NAMES`."""

    QUESTION: str

    def measure(self, scale: Scale) -> list[Figure]:
        """Measure; `Worthless` when the figures would not be what they say."""


def load(name: str) -> Part:
    """The part of that name."""
    part: Part = importlib.import_module(f"bench.{name}")
    return part


@with_exit_code
def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """`python -m bench.NAME`: print the part's table. 0: good figures, 1: worthless ones, 2: wrk is missing."""
    module = load(name)
    parser = argparse.ArgumentParser(
        f"python -m bench.{name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="once and short: whether it works, not how fast it is")
    scale = QUICK if parser.parse_args(arguments).quick else FULL
    figures = module.measure(scale)
    print(f"{machine()}\n\n{figures_table({(module.QUESTION, command(name)): figures})}")


def command(name: str) -> str:
    """What runs one part."""
    return f"python -m bench.{name}"


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(text, file=sys.stderr, flush=True)
