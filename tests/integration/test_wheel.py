"""The wheel: `solowriter` from another folder, with everything that the checkout's `python -m worker` has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local.worker_process import ROOT
from publisher import __version__

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command to its end; what it printed.

    Raises:
        AssertionError: It failed; the text is what it printed.
    """
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, without a network: its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("publisher", "worker"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, sources, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"solowriter-{__version__}-py3-none-any.whl"
    run(*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def test_the_wheel_has_every_file_of_its_packages(installed: Path) -> None:
    """Also those that are no modules: Litestream's configuration, the migrations, what the pages are made of."""
    for package in ("publisher", "worker"):
        ours = {file.relative_to(ROOT) for file in (ROOT / package).rglob("*") if file.is_file() and file.suffix != ".pyc"}
        assert Path("worker/replica/litestream.yml") in ours or package != "worker"
        missing = [str(file) for file in sorted(ours) if not (installed / file).is_file()]
        assert not missing


def test_the_installed_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """It is the wheel's own code that runs, with its own files, and the database gets the newest schema."""
    solowriter = installed / "bin" / "solowriter"
    assert run(solowriter, "--version", cwd=tmp_path, PYTHONPATH=str(installed)) == f"solowriter {__version__}\n"
    assert str(installed / "worker" / "replica" / "litestream.yml") in "".join(
        run(solowriter, "worker", "--help-settings", cwd=tmp_path, PYTHONPATH=str(installed)).split()
    )
    assert "Usage: solowriter publish load" in run(
        solowriter, "publish", "load", "--help", cwd=tmp_path, PYTHONPATH=str(installed)
    )
    program = (
        "from pathlib import Path; from worker.database import schema; from worker.events.catalog import BUILT_IN, Catalog; "
        "print(schema.__file__, schema.migrate(Path('users.db'), Catalog.load(BUILT_IN)))"
    )
    applied = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert applied.startswith(str(installed))
    for file in (ROOT / "worker").glob("*/migrations/0*.py"):
        assert file.stem in applied


def test_a_shell_completes_its_commands(installed: Path, tmp_path: Path) -> None:
    """As `eval "$(_SOLOWRITER_COMPLETE=bash_source solowriter)"` sets it up; real bash reads it."""
    solowriter = installed / "bin" / "solowriter"
    variables = {"PYTHONPATH": str(installed), "PATH": f"{solowriter.parent}:{os.environ['PATH']}"}
    script = run(solowriter, cwd=tmp_path, _SOLOWRITER_COMPLETE="bash_source", **variables)
    asked = 'COMP_WORDS=(solowriter worker rec); COMP_CWORD=2; _solowriter_completion solowriter; echo "${COMPREPLY[@]}"'
    assert run("bash", "-c", f"{script}\n{asked}", cwd=tmp_path, **variables).split() == ["recover"]
