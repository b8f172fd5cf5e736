"""wrk: one timed run of distinct pushes against one address, and what came back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from bench.errors import Worthless, WrkMissing

SCRIPT: Final = Path(__file__).parent / "push.lua"
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
ROUNDS_MAX: Final = 900
"""Runs against one store whose messages are told apart by the script's three digits."""
_THREADS: Final = 1
"""One core's worth of wrk sends several times what the server beside it takes."""
_TIMEOUT: Final = "60s"
"""Longer than the worker holds a request: a slow answer is a slow answer, not an error."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the script's `done` reports. `p50` and `p99` are in microseconds; the last five counts should be 0."""

    requests: int
    microseconds: int
    p50: int
    p99: int
    not_2xx: int
    connect: int
    read: int
    write: int
    timeout: int

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.requests / (self.microseconds / 1e6)

    @property
    def acknowledged(self) -> int:
        """Requests answered 2xx (wrk counts 3xx with them; neither server here sends one)."""
        return self.requests - self.not_2xx

    @property
    def problems(self) -> dict[str, int]:
        """What makes the figure worthless, by name: answers other than 2xx, and socket errors."""
        found = {name: getattr(self, name) for name in ("not_2xx", "connect", "read", "write", "timeout")}
        return {name: count for name, count in found.items() if count}

    def sound(self, name: str) -> Run:
        """This run.

        Raises:
            Worthless: It has problems.
        """
        if self.problems:
            raise Worthless(f"{name}: {', '.join(f'{count} {kind}' for kind, count in self.problems.items())}")
        return self


def find() -> str:
    """The path of wrk.

    Raises:
        WrkMissing: There is none.
    """
    found = shutil.which("wrk")
    if found is None:
        raise WrkMissing("wrk is needed and not found: `apt-get install wrk` (Debian, Ubuntu), `brew install wrk` (macOS)")
    return found


def run(url: str, *, connections: int, seconds: int, number: int, headers: Mapping[str, str] = NO_HEADERS) -> Run:
    """Push for `seconds` over `connections`; `number` tells the messages of this run from every other's.

    Raises:
        RuntimeError: wrk failed; the text is what it printed.
    """
    command = [
        *(find(), "--threads", str(_THREADS), "--connections", str(connections), "--duration", f"{seconds}s"),
        *(f"--header={name}: {value}" for name, value in headers.items()),
        *("--timeout", _TIMEOUT, "--script", str(SCRIPT), url, "--", str(number)),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    report = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not report.startswith("{"):
        raise RuntimeError(f"wrk ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return msgspec.json.decode(report, type=Run)
