"""What every measurement's figures need: a Markdown table, where they were taken, and their place in bench/README.md."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parent / "README.md"


def markers(name: str) -> tuple[str, str]:
    """The lines between which the figures of `python -m bench.NAME --write` stand."""
    return f"<!-- figures of {name}: written by `python -m bench.{name} --write` -->", f"<!-- end of figures of {name} -->"


def rewrite(readme: Path, name: str, figures: str) -> None:
    """Put `figures` between the markers of `name`.

    Raises:
        RuntimeError: The text has no such markers.
    """
    begin_marker, end_marker = markers(name)
    text = readme.read_text()
    before, begin, rest = text.partition(begin_marker)
    _, end, after = rest.partition(end_marker)
    if not begin or not end:
        raise RuntimeError(f"{readme} has lost its markers, {begin_marker} and {end_marker}")
    readme.write_text(f"{before}{begin}\n{figures}\n{end}{after}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Minimum, median and maximum, in one cell."""
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def machine() -> str:
    """The day, and the machine."""
    return f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({_processor()}), Python {platform.python_version()}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
