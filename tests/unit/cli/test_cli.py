"""How a command ends that is broken off: by Ctrl-C, or by whoever reads what it prints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.worker_process import ROOT, wait_until
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


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a bucket that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "last"),
    [
        (["replica"], ["interrupted"]),
        (["lease", "show"], ["interrupted"]),
        (["rejections", "list"], ["interrupted"]),
        (["recover", "--at", "1h", "--yes"], ["nothing was changed", "interrupted"]),
    ],
    ids=lambda words: words[0],
)
def test_ctrl_c_waits_for_no_answer(silent: str, tmp_path: Path, command: list[str], last: list[str]) -> None:
    """130 within seconds, without a traceback, although a request hangs on a thread; and no file is left."""
    variables = {"STORAGE_EMULATOR_HOST": silent, "REPLICA_URL": "gs://bucket/store", "SERVICE_URL": silent}
    variables |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "worker", *command],
        env={**os.environ, **variables},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: asked(silent), "a request", seconds=60)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error.splitlines()[-len(last) :]) == (130, "", last)
    assert "Traceback" not in error
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


def asked(address: str) -> bool:
    """Whether a client is connected there: an established connection to that port in the kernel's table."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [text.split() for text in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(cells[2].endswith(port) and cells[3] == "01" for cells in rows)


@pytest.mark.parametrize("package", ["worker", "publisher", "worker.cli.solowriter"])
def test_ctrl_c_before_there_is_a_command_is_no_traceback(package: str) -> None:
    """As it comes when a slip is noticed at once: while modules are still being loaded."""
    program = f"""
import runpy, sys

class Struck:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Struck())
if {package!r} == "worker.cli.solowriter":
    from worker.cli.solowriter import main
    main()
runpy.run_module({package!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
