"""How a command ends that is broken off: by Ctrl-C, or by whoever reads what it prints."""

import os
import subprocess
import sys

import pytest

from worker import cli, config


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the exit code that shells have for it."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", interrupted)
    assert cli.main(["replica"], {}) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_enough_is_no_traceback() -> None:
    """As in `worker replica | head -3`."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker", "doctor", "--quick"],
            env={**os.environ, "REPLICA_URL": "gs://bucket/store"},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
