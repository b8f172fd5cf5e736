"""Tells the person at the terminal how a load goes; everything here goes to stderr."""

import time
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from publisher.load import Summary
from publisher.records import Lines

MAX_PROBLEMS_SHOWN: Final = 20
"""Problems printed one by one; the rest are counted, and are in the rejects."""
REDRAW_SECONDS: Final = 0.1
"""Shortest time between two updates of the progress bar, in seconds."""
PLAIN_SECONDS: Final = 30.0
"""Time between two progress lines when stderr is not a terminal, in seconds."""


class TerminalReport:
    """A progress bar on a terminal, a line now and then elsewhere, and the first problems in full.

    Args:
        console: writes to stderr.
        lines: the input, for how far it has been read.
        total_bytes: size of the input, or None when unknown.
    """

    def __init__(self, console: Console, lines: Lines, total_bytes: int | None) -> None:
        self._console = console
        self._lines = lines
        self._problems = 0
        self._interval = REDRAW_SECONDS if console.is_terminal else PLAIN_SECONDS
        self._next_update = time.monotonic() + self._interval
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=total_bytes)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._problems > MAX_PROBLEMS_SHOWN:
            self.say(f"and {self._problems - MAX_PROBLEMS_SHOWN} more", "red")

    def say(self, text: str, style: str = "") -> None:
        """Print one line, above the bar when there is one."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def problem(self, line: int, code: str, detail: str) -> None:
        """Print what is wrong with a record, unless many have been printed."""
        self._problems += 1
        if self._problems <= MAX_PROBLEMS_SHOWN:
            self.say(f"line {line}: {code}" + (f": {detail}" if detail else ""), "red")

    def tick(self, summary: Summary) -> None:
        """Show how far the load has got, unless that was shown a moment ago."""
        now = time.monotonic()
        if now < self._next_update:
            return
        self._next_update = now + self._interval
        if self._bar is not None:
            self._bar.update(self._task, completed=self._lines.bytes_read, description=describe(summary))
        else:
            self.say(f"line {self._lines.number}: {describe(summary)}")


def describe(summary: Summary) -> str:
    """Return the counts that matter, as one line."""
    if summary.dry_run:
        counts = [(summary.valid, "valid")]
    else:
        counts = [(summary.accepted, "accepted")]
    counts += [(summary.rejected, "rejected"), (summary.failed, "failed"), (summary.unknown, "unknown")]
    return ", ".join(f"{count:,} {name}" for count, name in counts if count or name in ("valid", "accepted"))
