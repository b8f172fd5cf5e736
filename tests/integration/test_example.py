"""The events of examples/orders, as an adopter declares them, on the whole stack."""

import argparse
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from local import example
from local.worker_process import ROOT
from tests.entries import CATALOG
from worker.database.connections import connect
from worker.database.schema import migrate
from worker.events.catalog import Catalog
from worker.ingest.messages import Delivery, Entry
from worker.ingest.transaction import Transaction


@pytest.mark.slow
def test_the_example_does_what_it_shows(tmp_path: Path) -> None:
    """`make example`: published, read, conflict, change, stale, erased, restored; on the emulator where there is one."""
    example.example(tmp_path, Console(quiet=True))


def test_a_step_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1, and the last line says what came instead."""

    def broken(_directory: Path, _console: Console) -> None:
        raise example.StepFailed("its total: 1, not 4250")

    monkeypatch.setattr(example, "example", broken)
    parser = argparse.ArgumentParser()
    example.register(parser.add_subparsers())
    arguments = parser.parse_args(["example"])
    assert arguments.run(arguments) == 1
    assert capsys.readouterr().out == "FAILED: its total: 1, not 4250\n"


def test_the_module_is_short() -> None:
    """An adopter writes less than 40 lines of Python, blank ones not counted."""
    lines = (ROOT / "examples" / "orders" / "__init__.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 40


def test_a_module_of_another_folder_is_found_by_pythonpath() -> None:
    """`PYTHONPATH=examples EVENTS=orders`, as where the module is installed beside the worker."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'examples'}", "EVENTS": "orders"}
    command = [sys.executable, "-m", "worker", "events", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [(row["name"], row["module"]) for row in json.loads(done.stdout)] == [
        ("order.placed", "orders"),
        ("order.changed", "orders"),
    ]


def test_a_column_is_added_to_users_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/events.md: the module and its migration as they stand there, on a database that has users already."""
    page = (ROOT / "docs" / "events.md").read_text().partition("\n### To users\n")[2]
    module, migration = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    folder = tmp_path / "acme" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "acme" / "__init__.py").write_text(module)
    shutil.copy(ROOT / "worker" / "events" / "migrations" / "0001_users.py", folder)
    (folder / "0002_plan.py").write_text(migration)
    monkeypatch.syspath_prepend(tmp_path)
    acme, file = Catalog.load("acme"), tmp_path / "users.db"

    assert handled(file, CATALOG, "m1", "user.created", user_id=5, email_address="a") == "created"
    assert handled(file, acme, "m2", "user.created", user_id=5, email_address="a") == "exists"
    assert handled(file, acme, "m3", "user.updated", user_id=5, email_address="a", plan="gold") == "updated"
    assert handled(file, acme, "m4", "user.created", user_id=6, plan="free") == "created"
    assert handled(file, acme, "m5", "user.created", user_id=6) == "exists"
    assert handled(file, acme, "m6", "user.created", user_id=6, plan="gold") == "conflict"
    assert handled(file, acme, "m7", "user.deleted", user_id=5) == "updated"
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT user_id, plan, deleted FROM users ORDER BY user_id").fetchall()
    assert rows == [(5, None, 1), (6, "free", 0)]


def handled(file: Path, catalog: Catalog, message_id: str, event: str, **fields: object) -> str:
    """Bring a database up to date and give it one message, as a worker does; the outcome."""
    migrate(file, catalog, busy_timeout_seconds=1)
    sent = Delivery(
        message_id=message_id,
        publish_time=int(message_id[1:]),
        data=json.dumps(fields).encode(),
        attributes={"event_type": event},
    )
    content = catalog.read(sent.data, sent.attributes, sent.publish_time)
    database = connect(file, busy_timeout_seconds=1)
    with database.connection_context(), database.atomic():
        entry = Entry(sent, content, 0.0, None)  # type: ignore[arg-type]  # no sender
        (outcome,) = Transaction(database, catalog, 1, 0).handle([entry])
    return outcome
