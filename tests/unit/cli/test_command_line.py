"""The command line itself: what it loads, what its help looks like, and what it says to a slip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import click
import pytest

import publisher.cli
from local.worker_process import ROOT
from worker import config
from worker.cli import main

HEAVY = (
    "aiohttp",
    "flask",
    "google.cloud.storage",
    "google.cloud.pubsub",
    "grpc",
    "peewee",
    "rich",
    "uvicorn",
    "worker.supervisor",
    "worker.replica",
)


def pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Each command of a program with its help, as a terminal of 80 columns shows it."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=80)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for nested in command.list_commands(context):
            found = command.get_command(context, nested)
            assert found is not None
            yield from pages(found, nested, context)


PAGES = dict([*pages(main.command, "python -m worker"), *pages(publisher.cli.command, "python -m publisher")])


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--help-settings"], ["nonsense"]])
def test_the_list_of_commands_loads_none_of_them(arguments: list[str]) -> None:
    """Nor a server, a framework, or a client of the bucket: `--help` must answer at once."""
    program = f"""
import sys
from worker.cli.main import main
try:
    main({arguments!r}, {{}})
except SystemExit:
    pass
print(*[name for name in sys.modules if name.startswith({HEAVY!r})], file=sys.stderr)
"""
    assert python("-c", program).stderr.splitlines()[-1] == ""


def test_a_command_loads_its_own_module_alone() -> None:
    """`lease show` pays for no other verb."""
    program = """
import sys
from worker.cli.main import main
try:
    main(["lease", "show", "--help"], {})
except SystemExit:
    pass
print(*sorted(name for name in sys.modules if name.startswith("worker.cli.")), file=sys.stderr)
"""
    loaded = set(python("-c", program).stderr.split())
    assert loaded & {f"worker.cli.{module}" for module, _ in main.VERBS.values()} == {"worker.cli.lease"}


def test_the_help_of_the_worker_is_one_screen() -> None:
    """24 lines of 80 columns: each verb, and where more is said."""
    lines = PAGES["python -m worker"].splitlines()
    assert len(lines) <= 24
    assert [line.split()[0] for line in lines[3:-2]] == list(main.VERBS)


@pytest.mark.parametrize("name", PAGES)
def test_help_fits_80_columns(name: str) -> None:
    """On every page, examples included."""
    long = [line for line in PAGES[name].splitlines() if len(line) > 80]
    assert not long


def test_the_settings_are_listed_when_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Each one with its default, within 80 columns."""
    with pytest.raises(SystemExit, match="0"):
        main.main(["--help-settings"], {})
    printed = capsys.readouterr().out
    assert {name for name, _, _ in config.described()} <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "error", "help_of"),
    [
        (["recver"], "no such command 'recver'. Did you mean 'recover'?", ""),
        (["lease", "brake"], "no such command 'brake'. Did you mean 'break'?", " lease"),
        (["lease", "break", "--forced"], "no such option '--forced'. Did you mean '--force'?", " lease break"),
        (["restore", "-o", "x", "--at", "1h", "--epoch", "3"], "give only one of --at, --epoch", " restore"),
        (["replay"], "give one of --snapshot, --from, --newer", " replay"),
        (["replica", "verify", "x"], "EPOCH: must be a whole number from 1 to 9223372036854775807", " replica verify"),
    ],
)
def test_a_slip_is_told_in_two_lines(
    arguments: Sequence[str], error: str, help_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong, what may be meant, and where the help is; exit code 2, and no setting is needed for it."""
    with pytest.raises(SystemExit, match="2"):
        main.main(arguments, {})
    assert capsys.readouterr().err == f"error: {error}\nhelp:  python -m worker{help_of} --help\n"


@pytest.mark.parametrize("arguments", [[], ["lease"], ["rejections"]])
def test_a_command_without_its_verb_prints_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is wrong usage all the same: a script must not go on after it."""
    with pytest.raises(SystemExit, match="2"):
        main.main(arguments, {})
    assert capsys.readouterr().err.startswith(" ".join(["Usage: python -m worker", *arguments]))


def test_every_row_of_the_table_is_a_command() -> None:
    """It goes by the name that it has there."""
    context = click.Context(main.command)
    for name in main.VERBS:
        found = main.command.get_command(context, name)
        assert found is not None
        assert found.name == name
