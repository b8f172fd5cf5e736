"""What the measurement of restores reports, and where."""

from __future__ import annotations

import argparse

from bench import figures
from bench.restore import COMMAND, FUNCTION, PLAIN, Restores, report


def test_the_ratio_is_taken_run_by_run() -> None:
    """Each run of ours beside the plain one of its own run: what else the machine did meets both."""
    found = Restores(
        10, "just begun", 3, 40.0, {PLAIN: [1.0, 10.0, 2.0], FUNCTION: [0.5, 2.0, 2.0], COMMAND: [2.0, 20.0, 4.0]}
    )
    assert (found.ratio(FUNCTION), found.ratio(COMMAND)) == (0.5, 2.0)
    row = report([found], argparse.Namespace(runs=3)).splitlines()[-1]
    assert row.startswith("| 10 MB | just begun | 3 | 40 | 1.00 / 2.00 / 10.00 | 0.50 / 2.00 / 2.00 |")
    assert row.endswith("| 0.50 | 2.00 |")


def test_the_readme_has_a_place_for_the_figures() -> None:
    """`python -m bench.restore --write` finds its place."""
    begin, end = figures.markers("restore")
    text = figures.README.read_text()
    assert 0 < text.find(begin) < text.find(end)
