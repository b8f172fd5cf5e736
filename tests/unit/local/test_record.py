"""The recording of the demo shows what was printed, and nothing else."""

import re
import sys
from pathlib import Path

import pytest

import local.__main__
from local import record

RUN = "print('one \\x1b[32mgreen\\x1b[0m & <two>'); print('half', end='\\r\\x1b[2K', flush=True); print('done')"


def test_a_run_is_drawn_with_its_own_text() -> None:
    """Colours become classes, an erased line is gone at the end, and markup in the output stays text."""
    code, frames = record.recorded([sys.executable, "-c", RUN])
    assert code == 0
    last = ["".join(text for text, _ in line) for line in frames[-1][1]]
    assert last == ["one green & <two>", "done", ""]
    picture = record.drawn("a run", frames)
    assert '<tspan class="green">green</tspan> &amp; &lt;two&gt;' in picture


def test_a_state_is_seen_only_while_the_run_showed_it() -> None:
    """A line that is replaced appears at its moment and is hidden at the next; the last one stays."""
    frames: list[record.Frame] = [(1.0, [(("0 %", ""),)]), (3.0, [(("50 %", ""),)]), (4.0, [(("100 %", ""),)])]
    picture = record.drawn("a run", frames)
    shown = re.findall(r"animation:(\w+) ([\d.]+)s([^\"]*)\".*?>([\d]+ %)<", picture)
    seen = [(kind, float(first), text) for kind, first, _, text in shown]
    faster = record.SPEED
    assert seen == [("while", 2 / faster, "0 %"), ("while", 1 / faster, "50 %"), ("before", 4 / faster, "100 %")]


def test_a_failed_run_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture in docs/ is of a run that proved its promise."""
    code, frames = record.recorded([sys.executable, "-c", "print('lost 1'); raise SystemExit(1)"])
    monkeypatch.setattr(record, "recorded", lambda command: (code, frames))
    file = tmp_path / "demo.svg"
    assert local.__main__.main(["record", "--output", str(file)]) == 1
    assert not file.exists()
    assert "proved: every acknowledged message is in the bucket, once" in record.PICTURE.read_text()
