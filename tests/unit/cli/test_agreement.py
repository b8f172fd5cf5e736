"""One way for all commands that destroy or undo something."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.worker_process import ROOT
from worker.cli.agreement import agreed

CODE = "import sys, time; print('ready', flush=True); time.sleep(0.5); from worker.cli.agreement import agreed; "
CODE += "print('agreed' if agreed('this would end it', yes=False) else 'kept', flush=True)"


def test_without_a_terminal_it_says_what_it_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And does nothing; `--yes` does it without a word."""
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert not agreed("this would end it", yes=False)
        assert capsys.readouterr().err == "this would end it; add --yes to do it\n"
        assert agreed("this would end it", yes=True)
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("early", "late", "said"), [("y\n", "\n", "kept"), ("", "y\n", "agreed"), ("n\n", "yes\n", "agreed")]
)
def test_only_what_is_typed_after_the_question_answers_it(early: str, late: str, said: str) -> None:
    """On a terminal, what was typed ahead is thrown away: it was meant for something else."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        os.write(ours, early.encode())
        asked = ""
        while not asked.endswith("[y/N] "):
            asked += process.stderr.read(1)
        time.sleep(0.1)
        os.write(ours, late.encode())
        assert process.stdout.readline() == f"{said}\n"
    os.close(ours)
    os.close(theirs)
