"""What every measurement's figures need: a Markdown table, where they were taken, and their place in bench/README.md."""

from __future__ import annotations

import contextlib
import operator
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parent / "README.md"
HEADER: Final = ("question", "command", "figure", "min", "median", "max", "target", "met?")
_COMPARISONS: Final = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be at least (`≥`) or at most (`≤`). It is the median of the runs that meets it or does not."""

    sign: str
    bound: float

    def met(self, values: Sequence[float]) -> bool:
        """Whether the median of the runs is on the right side."""
        return bool(_COMPARISONS[self.sign](statistics.median(values), self.bound))


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: its value in each run."""

    name: str
    values: Sequence[float]
    form: str = ",.0f"
    target: Target | None = None

    def cells(self) -> tuple[str, ...]:
        """The last six columns of a row."""
        three = (min(self.values), statistics.median(self.values), max(self.values))
        said = (f"{self.target.sign} {format(self.target.bound, self.form)}", "yes") if self.target else ("", "")
        if self.target and not self.target.met(self.values):
            said = (said[0], "**no**")
        return (self.name, *(format(value, self.form) for value in three), *said)


def figures_table(parts: Mapping[tuple[str, str], Iterable[Figure]]) -> str:
    """The one table. The key is a part's question and command; they stand in its first row only."""
    rows: list[tuple[str, ...]] = []
    for (question, command), figures in parts.items():
        first = (question, f"`{command}`")
        for figure in figures:
            rows.append((*first, *figure.cells()))
            first = ("", "")
    return table(HEADER, rows)


def markers(name: str) -> tuple[str, str]:
    """The lines between which the figures of a measurement stand."""
    return f"<!-- figures of {name}: written by the script -->", f"<!-- end of figures of {name} -->"


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
