"""A folder may be called anything: Litestream reads and writes the database that is meant, and no other."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.proof import prove
from local.worker_process import WorkerProcess
from tests.processes import QUICK, URL, push
from worker.replica.litestream import plain

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    ["two words: {a}, [b] $x ${HOME}", "q\"uo'te \\n & <é> ", "a#b ?c %62 100%"],
    ids=["YAML and variables", "quotes and JSON", "signs of URLs"],
)
def test_a_database_path_is_taken_as_it_is(tmp_path: Path, fake_gcs: FakeGcs, name: str) -> None:
    """INV-1: what is acknowledged is in the bucket, and a start on an empty disk restores it to that very path."""
    worker = WorkerProcess(
        disk=tmp_path / name,
        replica_url=URL,
        environment={**fake_gcs.environment(), **QUICK},
        port=0,
        log=tmp_path / "worker.log",
    )
    assert worker.run("init").returncode == 0
    before = {each.name for each in tmp_path.iterdir()}
    try:
        worker.start().wait_serving()
        assert push(worker, 1, "m1").status_code == 204
        worker.kill()
        assert prove(fake_gcs.url, URL, {"m1": 1}).holds
        worker.wipe()
        worker.start().wait_serving()
        assert httpx.get(f"{worker.url}/users/1", timeout=10, trust_env=False).status_code == 200
        assert (tmp_path / name / "users.db").is_file()
        copy = tmp_path / name / "a copy.db"
        assert worker.run("restore", "-o", str(copy)).returncode == 0
        assert copy.is_file()
        assert {each.name for each in tmp_path.iterdir()} <= before | {name, "worker.log"}  # no other file was opened
    finally:
        worker.kill()


def test_a_file_name_with_signs_of_json_is_believed_to_have_started(tmp_path: Path, fake_gcs: FakeGcs) -> None:
    """Litestream's list of databases is JSON, where Go writes an ampersand in another way."""
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url=URL,
        environment={**fake_gcs.environment(), **QUICK},
        port=0,
        log=tmp_path / "worker.log",
    )
    worker._environment["DATABASE_PATH"] = str(tmp_path / "disk" / 'a & "b" é.db')
    assert worker.run("init").returncode == 0
    try:
        worker.start().wait_serving()
        assert push(worker, 1, "m1").status_code == 204
        worker.kill()
        worker.wipe()
        worker.start().wait_serving()
        assert httpx.get(f"{worker.url}/users/1", timeout=10, trust_env=False).status_code == 200
    finally:
        worker.kill()


def test_a_relative_folder_has_a_plain_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is not beside it; and it is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    Path("my data").mkdir()
    Path("my data/file").write_text("content")
    with plain(Path("my data")) as name:
        assert (name / "file").read_text() == "content"
        assert " " not in str(name)
    assert not name.exists()
    assert Path("my data/file").exists()
