"""What the operator's commands print and read: tables, pairs, and times."""

import argparse
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH: Final = 10_000
"""Columns of a table that is not on a terminal: nothing is cut off."""
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their columns; on a terminal the cells called detail are folded, the others are not."""
    made = Table(box=None, pad_edge=False)
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        right = all(isinstance(cell, int) for cell in cells)
        made.add_column(column, no_wrap=column != "detail", overflow="fold", justify="right" if right else "left")
    for row in rows:
        made.add_row(*(Text(_shown(cell)) for cell in row))
    console = Console()
    (console if console.is_terminal else Console(width=_PIPE_WIDTH)).print(made, highlight=False)


def pairs(rows: Sequence[tuple[str, Any]]) -> None:
    """Print labels and values, a line each."""
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {_shown(value)}" for label, value in rows))


def plain(text: str) -> str:
    """Without what would move a terminal's cursor: ids and details are other people's."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def rfc3339(moment: datetime) -> str:
    """A time in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """A time as an option gives it: RFC 3339 with a zone, or how long ago, such as 30m, 12h or 7d.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("give a time such as 2026-01-31T12:00:00Z, or 30m, 12h, 7d ago") from None
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError("give the time with its zone, for example 2026-01-31T12:00:00Z")
    return found.astimezone(UTC)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return plain(value if isinstance(value, str) else json.dumps(value))
