"""The events of examples/orders, as an adopter declares them, on the whole stack."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from local import example
from local.worker_process import ROOT


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
