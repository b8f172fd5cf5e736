"""docs/migration.md, done: a plain Litestream replica is exported, published and compared, by the page's own commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.worker_process import ROOT, WorkerProcess, wait_until
from tests.processes import QUICK
from worker.replica.litestream import find_binary

pytestmark = pytest.mark.slow

OLD = "gs://users/old/users.db"
APP = """
import pathlib, signal, sqlite3, sys, time
file, inbox = sys.argv[1], pathlib.Path(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
database = sqlite3.connect(file, isolation_level=None)
database.execute("PRAGMA journal_mode = wal")
database.execute("CREATE TABLE IF NOT EXISTS users (user_id INTEGER PRIMARY KEY, email_address TEXT, created_at INTEGER, "
                 "deleted INTEGER, settings TEXT)")
while True:
    for found in sorted(inbox.glob("*.sql")):
        database.executescript(found.read_text())
        found.unlink()
    time.sleep(0.02)
"""
"""The old service: it executes what it finds in a folder, under `litestream replicate -exec`, which passes no input on."""
TEXTS = (None, "", "a@example.com", "ä'\"\\,;|\n\t☃ 𝄞", '{"theme": "dark"}', "null", " ")
Columns = list[str | int | None]
"""Address, time, whether deleted, settings."""
FIRST = 40
LAST = 60
DELETED, TIMELESS, LARGEST, INVALID = 3, 5, 2**63 - 1, -7
SHIM = f"""#!{sys.executable}
import sqlite3, sys
*options, file, statements = sys.argv[1:]
database = sqlite3.connect(f"file:{{file}}?mode=ro" if options else file, uri=bool(options), isolation_level=None)
for statement in statements.split(";"):
    for row in database.execute(statement):
        print("|".join("" if cell is None else str(cell) for cell in row))
"""
"""Where there is no `sqlite3`: as much of it as the page needs."""


def commands(heading: str, number: int = 0) -> str:
    """The text of a fence of shell commands below a heading of the page."""
    _, found, below = (ROOT / "docs" / "migration.md").read_text().partition(f"\n{heading}\n")
    assert found, f"docs/migration.md has no heading {heading!r}"
    own = re.split(r"^#{1,3} ", below, maxsplit=1, flags=re.MULTILINE)[0]
    fences: list[str] = re.findall(r"```sh\n(.*?)```", own, re.DOTALL)
    return fences[number]


@dataclass(frozen=True, slots=True)
class Sides:
    """A folder to work in, the new worker, and what the shell sees."""

    folder: Path
    worker: WorkerProcess
    environment: dict[str, str]

    def run(self, text: str, *, succeeds: bool = True) -> subprocess.CompletedProcess[str]:
        """Run commands of the page as they stand there; messages are pushed instead of published."""
        text = text.replace("load users.jsonl --rejects", f"load users.jsonl --push-to {self.worker.url} --rejects")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
        return done


@pytest.fixture
def sides(fake_gcs: FakeGcs, tmp_path: Path) -> Iterator[Sides]:
    """A shell with the page's programs and variables, and a worker that is not started."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "litestream").symlink_to(find_binary("litestream"))
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    if not shutil.which("sqlite3"):
        (programs / "sqlite3").write_text(SHIM)
        (programs / "sqlite3").chmod(0o755)
    worker = WorkerProcess(
        disk=tmp_path / "disk",
        replica_url="gs://users/new",
        environment={**fake_gcs.environment(), **QUICK},
        port=0,
        log=tmp_path / "worker.log",
    )
    folder = tmp_path / "work"
    folder.mkdir()
    yield Sides(
        folder,
        worker,
        {
            **worker.environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "OLD_REPLICA": OLD,
            "SERVICE_URL": worker.url,
        },
    )
    worker.kill()


class OldService:
    """`litestream replicate -exec` around the old service, on a file of its own."""

    def __init__(self, folder: Path, gcs: FakeGcs) -> None:
        self.file, self._inbox, app = folder / "app.db", folder / "inbox", folder / "app.py"
        self._inbox.mkdir()
        app.write_text(APP)
        command = f"{sys.executable} {app} {self.file} {self._inbox}"
        with (folder / "old.log").open("wb") as log:
            self._process = subprocess.Popen(
                [find_binary("litestream"), "replicate", "-exec", command, str(self.file), OLD],
                env={**os.environ, **gcs.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, so that kill() reaches the service too
            )

    def insert(self, *rows: tuple[int, str | None, int | None, int, str | None]) -> None:
        """Write rows: id, address, time, whether deleted, settings."""
        values = ", ".join(f"({', '.join(map(quoted, row))})" for row in rows)
        new = self._inbox / "new"
        new.write_text(f"INSERT INTO users VALUES {values};")
        new.rename(self._inbox / "1.sql")
        wait_until(lambda: not any(self._inbox.iterdir()), "the old service has written its rows")

    def stop(self) -> int:
        """SIGTERM, as the platform sends it; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def kill(self) -> None:
        """End both whatever happened."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def quoted(value: str | int | None) -> str:
    """A value as SQL on one line."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    return f"CAST(X'{value.encode().hex()}' AS TEXT)"


def rows(first: int, last: int) -> list[tuple[int, str | None, int | None, int, str | None]]:
    """Users with every kind of text in either column."""
    return [
        (
            number,
            TEXTS[number % len(TEXTS)],
            None if number == TIMELESS else 1_700_000_000 + number,
            int(number == DELETED),
            TEXTS[number // len(TEXTS) % len(TEXTS)],
        )
        for number in range(first, last)
    ]


def users(file: Path) -> dict[int, Columns]:
    """What a database says of its users."""
    with closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT user_id, email_address, created_at, deleted, settings FROM users")
        return {user_id: rest for user_id, *rest in found}


def test_the_page_moves_every_user_and_back(sides: Sides, fake_gcs: FakeGcs) -> None:
    """Each user of the old replica is in the new bucket with all columns, and the way back brings the new ones."""
    old = OldService(sides.folder, fake_gcs)
    try:
        old.insert(*rows(1, FIRST), (LARGEST, "large@example.com", 0, 0, None), (INVALID, None, 1, 0, None))
        wait_until(lambda: replicated(sides, FIRST + 1), "the old replica has the first users")
        dry = sides.run(commands("### 1. Look at what there is"), succeeds=False)
        assert "out_of_range" in dry.stdout + dry.stderr
        sides.run(commands("### 2. Set the new service up"))
        sides.worker.start().wait_serving()
        sides.run(commands("### 3. Load a first time"), succeeds=False)  # one line is not valid, and the others are loaded
        assert json.loads((sides.folder / "bad.jsonl").read_text())["user_id"] == INVALID
        old.insert(*rows(FIRST, LAST))
        assert old.stop() == 0
    finally:
        old.kill()
    sides.run(commands("### 5. Load the rest, and compare"), succeeds=False)
    compared = sides.run(commands("### 5. Load the rest, and compare", 1)).stdout.splitlines()
    assert sorted(line.split("|")[0] for line in compared if re.match(r"-?\d+\|", line)) == [str(INVALID), str(TIMELESS)]
    sides.run(commands("### 6. Users who were deleted"))
    everybody_is_there(sides, old.file)
    going_back(sides)


def replicated(sides: Sides, count: int) -> bool:
    """Whether the old replica holds that many users."""
    file = sides.folder / "look.db"
    file.unlink(missing_ok=True)
    done = sides.run(f'litestream restore -if-replica-exists -o {file} "$OLD_REPLICA"')
    return done.returncode == 0 and file.exists() and len(users(file)) >= count


def everybody_is_there(sides: Sides, old: Path) -> None:
    """Compare column by column, not by the page's own query."""
    (sides.folder / "new.db").unlink()
    assert sides.worker.run("restore", "-o", str(sides.folder / "new.db")).returncode == 0
    before, after = users(old), users(sides.folder / "new.db")
    assert DELETED not in after
    timeless = after.pop(TIMELESS)
    assert timeless[1] is not None
    assert [timeless[0], *timeless[2:]] == [before[TIMELESS][0], *before[TIMELESS][2:]]
    for gone in (DELETED, TIMELESS, INVALID):
        del before[gone]
    assert len(before) == LAST - 1 - 2 + 1  # all but two of the numbered ones, and the largest id there is
    assert after == before


def going_back(sides: Sides) -> None:
    """A user created after the switch is in the old database by the page's last commands, and nobody is changed."""
    before = users(sides.folder / "old.db")
    sides.run(f"python -m publisher create --user-id 1000 --email n@example.com --created-at 7 --push-to {sides.worker.url}")
    assert httpx.get(f"{sides.worker.url}/users/1000", trust_env=False, timeout=60).status_code == httpx.codes.OK
    sides.run(commands("## Going back"))
    assert users(sides.folder / "old.db") == {**before, 1000: ["n@example.com", 7, 0, None]}
