"""Local files belong to one process: the second is refused with the next step, before anything is touched."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.errors import Unfit
from worker.replica import claim

HOLDER = """
import pathlib, sys, time
from worker.replica import claim
with claim.held(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    """F4: also through another name of the same folder; and a process that was killed holds nothing."""
    database = tmp_path / "my data" / "users.db"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(database)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        (tmp_path / "other").symlink_to(database.parent)
        before = sorted(database.parent.iterdir())
        for name in (database, tmp_path / "other" / "users.db"):
            with pytest.raises(Unfit, match=f"used by another process, {holder.pid}: .* set DATABASE_PATH"):
                with claim.held(name):
                    raise AssertionError
        assert sorted(database.parent.iterdir()) == before
        with claim.held(database.with_name("others.db")):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    with claim.held(database):
        pass
    with claim.held(database):
        pass


def test_one_process_is_held_to_it_as_well(tmp_path: Path) -> None:
    """Two services in one process are two."""
    with claim.held(tmp_path / "users.db"):
        with pytest.raises(Unfit, match=str(os.getpid())):
            with claim.held(tmp_path / "users.db"):
                raise AssertionError


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Litestream may outlive a worker that was killed; the next worker must be able to start."""
    with claim.held(tmp_path / "users.db"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        with claim.held(tmp_path / "users.db"):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("name", ["file/users.db", "link.db"])
def test_what_cannot_be_locked_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """A folder that is a file; a lock that is a link to somewhere else."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link.db.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unfit, match="set DATABASE_PATH"):
        with claim.held(tmp_path / name):
            raise AssertionError
    assert not (tmp_path / "elsewhere").exists()
