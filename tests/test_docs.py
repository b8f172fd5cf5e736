"""Documentation and code name the same things: settings, errors, log actions, commands, flags, files.

The tables of docs/ are compared in both directions, so a new name needs its row and a row needs its name.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import publisher.arguments
import publisher.errors
import publisher.settings
import worker.cli
import worker.errors
import worker.rejection_cli
import worker.subscription_options
from worker import config
from worker.outcome import REASONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TEXTS = sorted(
    [*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *(ROOT / "bench").glob("*.md"), *(ROOT / "deploy").glob("**/*.md")]
)
PACKAGES = ("worker", "publisher", "local", "bench")

FOREIGN_VARIABLES = {
    # Read by Google's clients, by Cloud Run, or refused by name; none is a setting of ours.
    *("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "WORKERS", "WEB_CONCURRENCY"),
    # OpenTelemetry's own.
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"),
    *("OTEL_TRACES_SAMPLER_ARG", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_BSP_MAX_QUEUE_SIZE"),
}
FOREIGN_COMMANDS = (
    "apt-get",
    "bq",
    "curl",
    "docker",
    "gcloud",
    "gsutil",
    "litestream",
    "pip",
    "sqlite3",
    "terraform",
    "wrk",
)
"""Programs whose options are not ours to check."""

TABLE_ROW = re.compile(r"^\| *`([^`]+)`(?:, `[^`]+`)* *\|(.*)\|$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def rows(file: str, heading: str = "") -> dict[str, list[str]]:
    """First cell (between backticks) to the others, for every table below a heading, until the next of its level."""
    text = (DOCS / file).read_text()
    if heading:
        _, found, text = text.partition(f"\n{heading}\n")
        assert found, f"docs/{file} has no heading {heading!r}"
        level = heading.split()[0]
        text = re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return {match[1]: [cell.strip().replace("`", "") for cell in match[2].split("|")] for match in TABLE_ROW.finditer(text)}


def everything() -> str:
    """All documentation in one text."""
    return "\n".join(file.read_text() for file in TEXTS)


def commands(parser: argparse.ArgumentParser, prefix: str) -> Iterator[str]:
    """Every full command of a parser: `python -m worker lease show`."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield prefix
    for action in nested:
        for name, child in action.choices.items():
            yield from commands(child, f"{prefix} {name}")


def errors(module: ModuleType) -> dict[str, type[Exception]]:
    """The errors a module defines."""
    classes = inspect.getmembers(module, inspect.isclass)
    return {name: kind for name, kind in classes if issubclass(kind, Exception) and kind.__module__ == module.__name__}


def actions() -> set[str]:
    """Every log action of the worker."""
    found = set()
    for file in (ROOT / "worker").rglob("*.py"):
        for mention in re.findall(r'"action":([^}]*)\}', file.read_text()):
            name = re.fullmatch(r'\s*"([a-z_]+\.[a-z_]+)",?\s*', mention)
            if name is None:
                assert 'getattr(record, "action"' in mention, f"{file.name}: an action must be a plain string, not{mention}"
                continue
            found.add(name[1])
    return found


def same_value(shown: str, default: str) -> bool:
    """Whether a table's cell states a default: equal as numbers, or as text; the checkout's own folder left out."""
    try:
        return float(shown) == float(default)
    except ValueError:
        return shown == default.removeprefix(f"{ROOT}/") or (shown in ("required", "none") and default == "")


def test_every_worker_setting_is_documented_with_its_default() -> None:
    """docs/configuration.md has one row for each setting, and no row for anything else."""
    documented = rows("configuration.md", "## Worker")
    described = {name: default for name, default, _ in config.described()}
    commands_only = set(worker.rejection_cli.ENVIRONMENT) | {"PUBSUB_EMULATOR_HOST"}
    assert set(documented) - FOREIGN_VARIABLES == set(described) | commands_only
    wrong = {name: documented[name][0] for name in described if not same_value(documented[name][0], described[name])}
    assert not wrong, {name: (shown, described[name]) for name, shown in wrong.items()}


def test_every_publisher_setting_is_documented_with_its_default() -> None:
    """Likewise the publisher's variables, and the options whose defaults are limits."""
    documented = rows("configuration.md", "## Publisher")
    variables = {name: cells for name, cells in documented.items() if not name.startswith("--")}
    assert set(variables) == set(publisher.settings.ENVIRONMENT)
    assert variables["SUBSCRIPTION"][0] == publisher.settings.PUSH_SUBSCRIPTION
    assert same_value(documented["--give-up-after"][0], str(publisher.settings.GIVE_UP_AFTER_SECONDS))
    in_flight = f"{publisher.settings.IN_FLIGHT_MESSAGES}; with --push-to: {publisher.settings.PUSH_IN_FLIGHT}"
    assert documented["--in-flight"][0] == in_flight


def test_every_nesting_rule_is_documented() -> None:
    """INV-8: each rule that the settings can break has its row, with every setting it speaks of."""
    documented = (DOCS / "configuration.md").read_text().partition("## The limits nest")[2].partition("\n## ")[0]
    rules = inspect.getsource(config._not_nested)
    names = {name for name, _, _ in config.described() if re.search(rf"\b{name}\b", rules)}
    assert names, "the rules moved: tell this test where they are"
    assert names <= set(re.findall(r"`([A-Z_]+)`", documented))


def test_every_log_action_is_documented() -> None:
    """docs/operations.md has one row for each action the worker logs, and no row for anything else."""
    assert set(rows("operations.md", "## Log")) == actions()


def test_every_worker_error_is_documented_with_how_it_ends() -> None:
    """Likewise its errors, each with its own exit code or HTTP status, or as retried."""
    documented = rows("operations.md", "### Worker")
    known = errors(worker.errors)
    assert set(documented) == set(known)
    for name, kind in known.items():
        if issubclass(kind, worker.errors.RequestError):
            allowed = {str(kind.status)}
        else:
            assert issubclass(kind, worker.errors.WorkerError)
            allowed = {f"exit {kind.exit_code}", "retried"}
        assert documented[name][0] in allowed, name


def test_every_publisher_error_is_documented_with_its_code() -> None:
    """Likewise the publisher's, each with the code its summaries use."""
    documented = rows("operations.md", "### Publisher")
    known = errors(publisher.errors)
    assert set(documented) == set(known)
    assert {name: cells[0] for name, cells in documented.items()} == {
        name: getattr(kind, "code", "") for name, kind in known.items()
    }


def test_every_reason_code_is_documented() -> None:
    """docs/message-format.md has one row for each reason, and no row for anything else."""
    assert set(rows("message-format.md", "## Reason codes")) == {str(reason) for reason in REASONS}


def test_every_invariant_that_is_cited_is_documented() -> None:
    """INV-n in code or tests stands in the architecture's table."""
    known = set(re.findall(r"^\| (INV-\d+) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE))
    for folder in (*PACKAGES, "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert set(re.findall(r"INV-\d+", file.read_text())) <= known, file


def test_every_module_of_the_worker_is_on_the_map() -> None:
    """docs/architecture.md names each module, and none that is gone."""
    text = (DOCS / "architecture.md").read_text()
    there = {f"worker/{file.name}" for file in (ROOT / "worker").glob("*.py") if not file.name.startswith("__")}
    assert set(re.findall(r"`(worker/\w+\.py)`", text)) == there


@pytest.mark.parametrize(
    "command",
    [
        *commands(worker.cli._parser(), "python -m worker"),
        *commands(publisher.arguments.parser(), "python -m publisher"),
    ],
)
def test_every_command_is_documented(command: str) -> None:
    """Each verb of the worker and of the publisher stands in full in README.md or docs/."""
    assert re.search(rf"{command}(?![\w-])", everything()), f"nothing says `{command}`"


def test_every_documented_command_exists() -> None:
    """`python -m worker VERB` and the like in the documentation are commands that there are."""
    known = {
        *commands(worker.cli._parser(), "python -m worker"),
        *commands(publisher.arguments.parser(), "python -m publisher"),
        *(f"python -m local {name}" for name in re.findall(r'add_parser\(\s*"([a-z]+)"', sources("local"))),
    }
    for mention in re.findall(r"python -m (?:worker|publisher|local)(?: [a-z]+)*(?![\w./])", everything()):
        words = mention.split()
        # What follows a full command is its arguments, and what precedes one is a group of commands.
        assert any(words == full.split()[: len(words)] or full.split() == words[: len(full.split())] for full in known), (
            mention
        )


def test_every_make_target_is_documented() -> None:
    """`make TARGET` for each target that `make help` lists stands in README.md or docs/."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    missing = [target for target in targets if not re.search(rf"\bmake {target}(?![\w-])", everything())]
    assert not missing, f"nothing says {', '.join(f'`make {target}`' for target in missing)}"


def test_every_documented_make_target_exists() -> None:
    """And the other way round."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", everything())) <= targets


def test_every_documented_setting_exists() -> None:
    """A variable in backticks, with an underscore, is one that something reads; so is what an example sets."""
    known = {name for name, _, _ in config.described()} | set(publisher.settings.ENVIRONMENT) | FOREIGN_VARIABLES
    known |= set(worker.rejection_cli.ENVIRONMENT) | set(worker.subscription_options.ENVIRONMENT)
    text = everything()
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", text))
    named |= set(re.findall(r"(?:^|[\s`])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)=", text))
    assert {name for name in named if not name.startswith("CLOUDSDK_")} <= known


def test_every_documented_flag_exists() -> None:
    """An option in the documentation is one of ours, unless its line or its fence is about another program."""
    known = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', sources(*PACKAGES))) | {"--help"}
    for file in TEXTS:
        for paragraph in re.split(r"\n\n", re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)):
            for code in re.findall(r"`([^`]+)`", paragraph):
                if not code.startswith(FOREIGN_COMMANDS):
                    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)) <= known, f"{file.name}: {code}"
        for line in fenced(file):
            if not line.split("=", 1)[0].strip().startswith(FOREIGN_COMMANDS):
                assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line.split("#")[0])) <= known, f"{file.name}: {line}"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_resolve(file: Path) -> None:
    """A relative link leads to a file, and its anchor to a heading there."""
    for target in LINK.findall(re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (file.parent / name).resolve() if name else file
        assert there.exists(), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in [anchor_of(heading) for heading in headings], f"{target}: no such heading"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_code_in_backticks_that_looks_like_a_file_is_one(file: Path) -> None:
    """`worker/app.py` and the like are files or folders that there are."""
    for name in re.findall(rf"`((?:{'|'.join((*PACKAGES, 'docs', 'deploy', 'tests'))})/[\w./-]*)`", file.read_text()):
        assert (ROOT / name).exists(), f"{file.name}: {name}"


def test_the_readme_shows_how_to_begin() -> None:
    """README.md has the demo, the tests, and a link to each page of docs/."""
    text = (ROOT / "README.md").read_text()
    assert re.search(r"^make demo\b|`make demo`", text, re.MULTILINE)
    assert re.search(r"^make test\b|`make test`", text, re.MULTILINE)
    linked = {target.partition("#")[0] for target in LINK.findall(text)}
    assert {f"docs/{file.name}" for file in DOCS.glob("*.md")} <= linked


def test_ci_runs_what_the_readme_says() -> None:
    """.ci/run runs the checks, then the README's test command."""
    script = (ROOT / ".ci" / "run").read_text()
    check, test = script.find("\nmake check\n"), script.find("\nmake test\n")
    assert 0 < check < test


def sources(*packages: str) -> str:
    """The code of packages in one text."""
    return "\n".join(file.read_text() for package in packages for file in sorted((ROOT / package).rglob("*.py")))


def fenced(file: Path) -> list[str]:
    """The lines of a text's fenced code, continued lines joined."""
    blocks: list[str] = re.findall(r"```\w*\n(.*?)```", file.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def anchor_of(heading: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
