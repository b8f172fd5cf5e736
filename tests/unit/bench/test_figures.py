"""What the measurements write into bench/README.md, and how they read what they measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import figures

NAMES = ("generation", "snapshot", "spacing", "compare", "oidc", "everything")


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_a_place_for_the_figures(name: str) -> None:
    """`python -m bench.NAME --write` finds its place in bench/README.md."""
    begin, end = figures.markers(name)
    text = figures.README.read_text()
    assert 0 < text.find(begin) < text.find(end)


def test_only_the_own_block_is_rewritten(tmp_path: Path) -> None:
    """What stands between the markers of one name is replaced, and nothing else; without them it is refused."""
    (begin, end), (other, other_end) = map(figures.markers, NAMES[:2])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\n{other}\nkept\n{other_end}\nafter\n")
    figures.rewrite(readme, "generation", "new")
    assert readme.read_text() == f"before\n{begin}\nnew\n{end}\n{other}\nkept\n{other_end}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(RuntimeError, match="has lost its markers"):
        figures.rewrite(readme, "generation", "new")


def test_a_table_is_aligned_and_a_spread_is_three_figures() -> None:
    """Text on the left, figures on the right."""
    assert figures.table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert figures.spread([3, 1, 2]) == "1.00 / 2.00 / 3.00"
