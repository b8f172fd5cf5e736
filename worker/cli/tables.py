"""Tables and pairs, as the operators' commands print them."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from publisher.values import rfc3339

_FOLDED: Final = frozenset({"detail", "file"})
"""Columns whose cells may take several lines on a terminal: the others are ids, times and numbers."""
_FOLDED_LEAST: Final = 30
"""Characters in a line below which folding such a cell makes it unreadable."""
_PADDED_MOST: Final = 24
"""Widest a column of `lines` is padded: an id of a sender's own may have a thousand characters."""
_GAP: Final = "  "


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their columns, and never a part of a cell.

    On a terminal long cells are folded; where it is too narrow even so, each row is printed as labels and values.
    """
    shown = [[_shown(cell) for cell in row] for row in rows]
    right = [all(isinstance(cell, int) for cell in cells) for cells in zip(*rows, strict=True)]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *shown, strict=True)]
    console = Console()
    if not console.is_terminal:
        for line in (list(columns), *shown):
            cells = zip(line, widths, right, strict=True)
            print(
                _GAP.join(
                    text.rjust(width) if flush else set_cell_size(text, width) for text, width, flush in cells
                ).rstrip()
            )
        return
    least = [
        min(width, _FOLDED_LEAST) if column in _FOLDED else width for column, width in zip(columns, widths, strict=True)
    ]
    if sum(least) + len(_GAP) * (len(least) - 1) > console.width:
        for number, row in enumerate(rows):
            print(end="\n" if number else "")
            pairs(list(zip(columns, row, strict=True)))
        return
    made = Table(box=None, pad_edge=False)
    for column, flush in zip(columns, right, strict=True):
        made.add_column(column, no_wrap=column not in _FOLDED, overflow="fold", justify="right" if flush else "left")
    for row in shown:
        made.add_row(*map(Text, row))
    console.print(made, highlight=False)


def lines(rows: Sequence[Sequence[Any]]) -> None:
    """Print a line for each row. On a terminal the last cell is cut off where the line would not fit, and no other one."""
    shown = [[_shown(cell) for cell in row] for row in rows]
    widths = [min(max(map(cell_len, cells)), _PADDED_MOST) for cells in zip(*shown, strict=True)]
    console = Console()
    for *cells, last in shown:
        first = _GAP.join(
            set_cell_size(text, max(width, cell_len(text))) for text, width in zip(cells, widths, strict=False)
        )
        room = console.width - cell_len(first) - len(_GAP)
        if console.is_terminal and cell_len(last) > room:
            last = f"{set_cell_size(last, room - 1).rstrip()}…" if room > 1 else ""
        print(f"{first}{_GAP}{last}".rstrip())


def pairs(rows: Sequence[tuple[str, Any]]) -> None:
    """Print labels and values, a line each."""
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {_shown(value)}" for label, value in rows))


def plain(text: str) -> str:
    """Without what would move a terminal's cursor: ids and details are other people's."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return plain(value if isinstance(value, str) else json.dumps(value))
