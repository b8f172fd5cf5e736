"""What the operator's commands print, on terminals of any width and elsewhere."""

from functools import partial

import pytest
from rich.console import Console

from worker.cli import tables

COLUMNS = ("message id", "detail", "received at", "bytes")
ROWS = [
    (
        "1234567890123456",
        "data must be a JSON object: JSON is malformed: invalid character (byte 4)",
        "2026-01-31T12:00:00Z",
        8,
    ),
    ("7", "user_id must be an integer between 1 and 9223372036854775807", "2026-01-31T12:00:01Z", 10_000),
]


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int) -> list[str]:
    """The lines of the table on a terminal of so many columns, without what pads them."""
    monkeypatch.setattr(tables, "Console", partial(Console, force_terminal=True, no_color=True, width=width))
    tables.table(COLUMNS, ROWS)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_elsewhere_than_on_a_terminal_a_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is folded or cut off, numbers stand flush right, and no line ends in spaces."""
    tables.table(COLUMNS, ROWS)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header == f"message id        {'detail':<73}  received at            bytes"
    assert first == f"1234567890123456  {ROWS[0][1]}  2026-01-31T12:00:00Z       8"
    assert second.endswith("2026-01-31T12:00:01Z  10,000")
    tables.table(("epoch", "revision"), [(7, "local"), (8, "users-00042")])
    assert capsys.readouterr().out == "epoch  revision\n    7  local\n    8  users-00042\n"


def test_on_a_terminal_long_cells_are_folded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And ids, times and numbers are not."""
    lines = printed(monkeypatch, capsys, 100)
    assert len(lines) == 5
    assert lines[1].startswith("1234567890123456  data must be a JSON object")
    assert lines[1].endswith("2026-01-31T12:00:00Z       8")
    assert lines[2].strip() == "invalid character (byte 4)"


def test_a_terminal_too_narrow_for_a_table_gets_labels_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that is cut off would be an id that no command takes."""
    lines = printed(monkeypatch, capsys, 77)
    assert lines[:4] == [
        "message id   1234567890123456",
        f"detail       {ROWS[0][1]}",
        "received at  2026-01-31T12:00:00Z",
        "bytes        8",
    ]
    assert lines[4:6] == ["", "message id   7"]
