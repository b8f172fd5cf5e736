"""How a command ends that is broken off: by Ctrl-C, or by whoever reads what it prints."""

import json
import os
import subprocess
import sys

import pytest

from worker import config
from worker.cli import main
from worker.replica import bucket


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the exit code that shells have for it."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", interrupted)
    assert main.main(["replica"], {}) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bucket_that_gives_no_answer_has_a_next_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service asks again by itself; a command says who should."""
    monkeypatch.setattr(bucket, "COMMAND_PATIENCE_SECONDS", 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert main.main(["replica"], {"REPLICA_URL": "gs://bucket/store"}) == 1
    assert capsys.readouterr().err.endswith("; look at the network and REPLICA_URL, and try again\n")


def test_a_defect_that_ends_the_service_is_one_line_of_the_log() -> None:
    """With its action and its traceback in one entry, not some twenty lines of text; and nothing holds up the end."""
    program = """
import threading
from worker import supervisor
from worker.cli import main

async def run(*_):
    threading.Thread(target=threading.Event().wait).start()
    raise RuntimeError("broken")

supervisor.run = run
main.main(["serve"], {"REPLICA_URL": "gs://bucket/store"})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["severity"], line["action"]) == (1, "ERROR", "worker.failed")
    assert line["stack_trace"].endswith("RuntimeError: broken")


def test_a_wrong_choice_lists_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """As they are typed."""
    with pytest.raises(SystemExit):
        main.main(["rejections", "list", "--reason", "nope"], {})
    assert "'too_large', 'not_utf8'" in capsys.readouterr().err


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
