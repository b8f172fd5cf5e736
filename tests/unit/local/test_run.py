"""`make run` and the file that points commands at its stack."""

from pathlib import Path

import pytest

from local import run
from local.gcs_process import FakeGcs
from local.ports import free_port
from local.stack import REPLICA_URL, Stack
from local.worker_process import ROOT, WorkerProcess


def pointers(directory: Path) -> dict[str, str]:
    """What the file says while a stack runs; none of its processes is needed for that."""
    worker = WorkerProcess(disk=directory, replica_url=REPLICA_URL, environment={}, port=1, log=directory / "worker.log")
    with run.pointed_at(Stack(FakeGcs(directory, port=2), worker, None, "no emulator"), directory / "env"):
        text = (directory / "env").read_text()
    assert not (directory / "env").exists()
    return dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines())


@pytest.mark.slow
def test_a_worker_that_ends_says_why_in_one_line(tmp_path: Path) -> None:
    """What `make run` prints of a module that it does not find: the worker's own error, not its whole log."""
    log = tmp_path / "worker.log"
    log.write_text('{"severity": "ERROR", "message": "an earlier life"}\n')
    worker = WorkerProcess(
        disk=tmp_path, replica_url=REPLICA_URL, environment={"EVENTS": "acme_nowhere"}, port=free_port(), log=log
    )
    with pytest.raises(RuntimeError) as caught:
        worker.start().wait_serving()
    assert str(caught.value).startswith("the worker ended with 2: EVENTS is 'acme_nowhere': acme_nowhere cannot be imported")
    assert str(caught.value).endswith("put the folder that holds it into PYTHONPATH, or install it")


def test_the_second_terminal_is_told_of_events_and_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EVENTS is there as the worker has it; a relative folder of PYTHONPATH is found from any folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVENTS", "worker.events.users,acme.visits")
    monkeypatch.setenv("PYTHONPATH", "own")
    found = pointers(tmp_path)
    assert found["EVENTS"] == "worker.events.users,acme.visits"
    assert found["PYTHONPATH"] == f"{ROOT}:{tmp_path}/own"
    assert found["SERVICE_URL"] == "http://127.0.0.1:1"


def test_without_events_of_ones_own_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher then has its default, as the worker has."""
    monkeypatch.delenv("EVENTS", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert not pointers(tmp_path).keys() & {"EVENTS", "PYTHONPATH"}
