"""Documentation and code name the same things: settings, errors, log actions, commands, flags, files.

The tables of docs/ are compared in both directions, so a new name needs its row and a row needs its name.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest

import publisher.cli
import publisher.errors
import publisher.settings
import worker.cli.main
import worker.cli.service_options
import worker.cli.subscription_options
import worker.console.serving
import worker.errors
from local import docs
from worker import config
from worker.config import limits
from worker.database.models import REASONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TEXTS = sorted(
    [*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *(ROOT / "bench").glob("*.md"), *(ROOT / "deploy").glob("**/*.md")]
)
NUMBERS = (
    "none",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
)
PACKAGES = ("worker", "publisher", "local", "bench")

FOREIGN_VARIABLES = {
    # Read by Google's clients, by Cloud Run, or refused by name; none is a setting of ours.
    *("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "WORKERS", "WEB_CONCURRENCY"),
    *("CLOUD_RUN_REVISION", "CLOUD_RUN_WORKER_POOL"),
    # OpenTelemetry's own.
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"),
    *("OTEL_TRACES_SAMPLER_ARG", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_BSP_MAX_QUEUE_SIZE"),
}
NO_VARIABLES = {
    # What a page's own example names, and what another service's answers are called.
    *("OLD_REPLICA", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "SIGNATURE_REMOVED_BY_GOOGLE"),
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
    "sqlite-utils",
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


PROGRAMS = [
    *docs.walked("python -m worker", worker.cli.main.command),
    *docs.walked("python -m publisher", publisher.cli.command),
]
COMMANDS = [name for name, command in PROGRAMS if not isinstance(command, click.Group)]


def errors(module: ModuleType) -> dict[str, type[Exception]]:
    """The errors a module defines."""
    classes = inspect.getmembers(module, inspect.isclass)
    return {name: kind for name, kind in classes if issubclass(kind, Exception) and kind.__module__ == module.__name__}


def actions() -> set[str]:
    """Every log action of the worker, and of the connections that it shares with the gateway."""
    assert '"connection.refused"' in (ROOT / "publisher" / "connections.py").read_text()
    found = {"connection.refused"}
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
        if default in ("True", "False"):
            return shown == default.lower()
        return shown == default.removeprefix(f"{ROOT}/") or (shown in ("required", "none") and default == "")


def test_every_worker_setting_is_documented_with_its_default() -> None:
    """docs/configuration.md has one row for each setting, and no row for anything else."""
    documented = rows("configuration.md", "## Worker")
    described = {name: default for name, default, _ in config.described()}
    commands_only = (
        set(worker.cli.service_options.ENVIRONMENT) | set(worker.console.serving.ENVIRONMENT) | {"PUBSUB_EMULATOR_HOST"}
    )
    assert set(documented) - FOREIGN_VARIABLES == set(described) | commands_only
    wrong = {name: documented[name][0] for name in described if not same_value(documented[name][0], described[name])}
    assert not wrong, {name: (shown, described[name]) for name, shown in wrong.items()}


def test_every_publisher_setting_is_documented_with_its_default() -> None:
    """And the publisher's variables, and the options whose defaults are limits."""
    documented = rows("configuration.md", "## Publisher")
    variables = {name: cells for name, cells in documented.items() if not name.startswith("--")}
    assert set(variables) == set(publisher.settings.ENVIRONMENT)
    assert variables["SUBSCRIPTION"][0] == publisher.settings.PUSH_SUBSCRIPTION
    assert same_value(documented["--give-up-after"][0], str(publisher.settings.GIVE_UP_AFTER_SECONDS))
    in_flight = f"{publisher.settings.IN_FLIGHT_MESSAGES}; with --push-to: {publisher.settings.PUSH_IN_FLIGHT}"
    assert documented["--in-flight"][0] == in_flight


def test_the_generated_parts_are_up_to_date() -> None:
    """What `make docs` would write stands there already; each part has its one place, and there is no other."""
    texts = {file.name: file.read_text() for file in DOCS.glob("*.md")}
    parts = docs.parts()
    stale = [name for name, text in texts.items() if docs.rewritten(text, parts) != text]
    assert not stale, f"run `make docs`: {', '.join(stale)}"
    everywhere = "\n".join(texts.values())
    assert sorted(re.findall(r"<!-- (.+): written by `make docs` -->", everywhere)) == sorted(parts)


def test_only_what_is_between_the_markers_is_rewritten() -> None:
    """A stale part is written anew, the text around it stays, and a part without an end is refused."""
    begin, end = docs.markers("part")
    known = {"part": lambda: "new"}
    assert docs.rewritten(f"a\n{begin}\nold\n{end}\nz", known) == f"a\n{begin}\n\nnew\n\n{end}\nz"
    assert docs.rewritten("nothing", known) == "nothing"
    with pytest.raises(docs.StaleTextError, match="end of part"):
        docs.rewritten(f"{begin}\nold", known)


def test_every_setting_has_a_unit_or_a_choice_and_a_reason() -> None:
    """No cell of the worker's tables is empty, and the last one has the meaning and the reason for the default."""
    documented = rows("configuration.md", "## Worker")
    for spec in dataclasses.fields(config.Settings):
        setting, meaning, why = (spec.metadata[name] for name in ("name", "meaning", "why"))
        _, taken, told = documented[setting]
        assert taken, setting
        assert meaning, setting
        assert why, setting
        assert told == f"{meaning} {why}".replace("`", "")


def test_the_figure_of_the_limits_shows_the_defaults() -> None:
    """The numbers in the figure of nested limits are those that the settings begin with, and the constants beside them."""
    section = (DOCS / "configuration.md").read_text().partition("## The limits nest")[2].partition("\n## ")[0]
    shown = re.findall(r"([A-Za-z_]+(?: [a-z]+)*) ([\d.]+)\b", section.split("```")[1])
    settings = config.Settings(replica_url="gs://acme-users/prod")
    known = {spec.metadata["name"]: getattr(settings, spec.name) for spec in dataclasses.fields(config.Settings)}
    known |= {
        "held": settings.hold_limit_seconds,
        "transaction": limits.BUSY_TIMEOUT_SECONDS,
        "confirmation": settings.sync_timeout_seconds,
        "renewal": settings.lease_renew_seconds,
        "drain": limits.DRAIN_SECONDS,
        "tell": limits.ACKNOWLEDGE_SECONDS,
        "release": limits.RELEASE_SECONDS,
        "spans": limits.TRACE_FLUSH_SECONDS,
        "receipts": settings.receipt_days,
    }
    found = {name: float(value) for name, value in shown if name in known}
    assert len(found) >= 10
    assert found == {name: known[name] for name in found}


def test_every_setting_of_a_deployment_is_documented_with_its_default() -> None:
    """docs/deploy.md has one row for each variable that `--help` of the two scripts lists, with the default it has there."""
    section = (DOCS / "deploy.md").read_text().partition("\n## Settings\n")[2].partition("\n## ")[0]
    documented: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section, re.MULTILINE):
        values = re.findall(r"`([^`]+)`", defaults) or [""]
        names = re.findall(r"`([^`]+)`", names)
        documented |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=True))
    text = "".join((ROOT / "deploy" / name).read_text() for name in ("settings.sh", "deploy.sh", "destroy.sh"))
    read = dict(re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", text))
    del read["PYTHON"]
    assert documented == {name: default.replace("$project", "PROJECT") for name, default in read.items()}


def test_every_nesting_rule_is_documented() -> None:
    """INV-8: each rule that the settings can break has its row, with every setting it speaks of."""
    documented = (DOCS / "configuration.md").read_text().partition("## The limits nest")[2].partition("\n## ")[0]
    rules = inspect.getsource(config.nesting.broken)
    names = {name for name, _, _ in config.described() if re.search(rf"\b{name}\b", rules)}
    assert names, "the rules moved: tell this test where they are"
    assert names <= set(re.findall(r"`([A-Z_]+)`", documented))


def test_every_log_action_is_documented() -> None:
    """docs/log.md has one row for each action the worker logs, and no row for anything else; a next step for each ERROR."""
    documented = rows("log.md", "## Actions")
    assert set(documented) == actions()
    severe = {action: cells[1] for action, cells in documented.items() if cells[0] == "ERROR"}
    assert len(severe) >= 10
    # More than what happened: a second sentence, or one after a colon, says what to do.
    assert not [action for action, told in severe.items() if not re.search(r"[.:;?] \S", told)]


def test_every_worker_error_is_documented_with_how_it_ends() -> None:
    """And its errors, each with its own exit code or HTTP status, or as retried."""
    documented = rows("errors.md", "## Worker")
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
    """And the publisher's, each with the code its summaries use."""
    documented = rows("errors.md", "## Publisher")
    known = errors(publisher.errors)
    assert set(documented) == set(known)
    assert {name: cells[0] for name, cells in documented.items()} == {
        name: getattr(kind, "code", "") for name, kind in known.items()
    }


@pytest.mark.parametrize(("part", "module"), [("## Worker", worker.errors), ("## Publisher", publisher.errors)])
def test_an_error_is_followed_by_its_kinds(part: str, module: ModuleType) -> None:
    """As many rows as the text says, and all of them: `one of the next six says more`."""
    documented, known = rows("errors.md", part), errors(module)
    found = 0
    for at, (name, cells) in enumerate(documented.items()):
        if said := re.search(r"one of the next (\w+) says more", cells[1]):
            kinds = {each for each, kind in known.items() if issubclass(kind, known[name]) and each != name}
            assert set(list(documented)[at + 1 : at + 1 + len(kinds)]) == kinds, name
            assert said[1] == NUMBERS[len(kinds)], name
            found += 1
    assert found


def quoted() -> dict[str, str]:
    """Our own texts on the page of errors, each with the cell that says what it comes with."""
    page = (DOCS / "errors.md").read_text().partition("\n## What is printed\n")[2]
    ours = page.partition("\n## Words of others\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", ours, re.MULTILINE))


def test_the_page_of_errors_quotes_what_is_printed() -> None:
    """Each text in a first column, but those of other programs and scripts, is one that our code can print; … is a value."""
    texts = quoted()
    assert len(texts) >= 180
    printed = texts_of("worker", "publisher")
    unknown = [
        text
        for text in texts
        if not any(re.search(".*".join(map(re.escape, text.split("…"))), whole, re.DOTALL) for whole in printed)
    ]
    assert not unknown


def test_each_quoted_text_names_its_error_or_action() -> None:
    """A text comes with a class of errors or a log action; no kind of error and no action of severity ERROR is left out."""
    known = errors(worker.errors) | errors(publisher.errors)
    logged = rows("log.md", "## Actions") | rows("log.md", "## The gateway")
    named = set()
    for text, cell in quoted().items():
        names = re.findall(r"`([^`]+)`", cell)
        assert names or re.fullmatch(r"exit \d", cell), f"{text}: {cell}"
        named.update(names)
    assert named <= set(known) | set(logged)
    kinds = {name for name, kind in known.items() if not kind.__subclasses__()}  # those with kinds of their own are roots
    assert kinds <= named
    severe = {action for action, cells in logged.items() if "ERROR" in cells[0]}
    assert len(severe) >= 10
    assert severe <= named


def texts_of(*packages: str) -> set[str]:
    """Every text in the code of packages; a value that is put into one, or what is quoted in it, stands as it is written."""
    found = set()
    for package in packages:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(re.sub(r"%(\.\d)?[a-z]", "\0", node.value))
                elif isinstance(node, ast.JoinedStr):
                    found.add("".join(_text_of(part) for part in node.values))
    return found


def _text_of(part: ast.expr) -> str:
    """A part of an f-string: its text, or for a name in capitals what that stands for in `lease.json` and the like."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    return "lease.json" if isinstance(part, ast.FormattedValue) and ast.unparse(part.value) == "RECORD" else "\0"


def test_every_reason_code_is_documented() -> None:
    """docs/message-format.md has one row for each reason, and no row for anything else."""
    assert set(rows("message-format.md", "## Reason codes")) == {str(reason) for reason in REASONS}


def test_every_invariant_that_is_cited_is_documented() -> None:
    """INV-n in code or tests stands in the architecture's table."""
    known = set(re.findall(r"^\| (INV-\d+) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE))
    for folder in (*PACKAGES, "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert set(re.findall(r"INV-\d+", file.read_text())) <= known, file


def test_every_room_is_on_the_map() -> None:
    """docs/architecture.md names each room and top-level module, and no path that is gone."""
    text = (DOCS / "architecture.md").read_text()
    rooms = text.partition("\n## Rooms\n")[2].partition("```\n")[2].partition("```")[0]
    shown = set(re.findall(r"\b(\w+(?:\.py|/))", rooms))
    for entry in (ROOT / "worker").iterdir():
        name = f"{entry.name}/" if entry.is_dir() else entry.name
        assert name in shown or name.startswith("__"), name
    for path in re.findall(r"`((?:worker|publisher|local|bench)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    """Each verb of the worker and of the publisher stands in full in README.md or docs/."""
    assert re.search(rf"{command}(?![\w-])", everything()), f"nothing says `{command}`"


def test_every_documented_command_exists() -> None:
    """`python -m worker VERB` and the like in the documentation are commands that there are."""
    known = {
        *COMMANDS,
        *(f"python -m local {name}" for name in re.findall(r'add_parser\(\s*"([a-z]+)"', sources("local"))),
    }
    text = everything().replace("solowriter worker", "python -m worker").replace("solowriter publish", "python -m publisher")
    for mention in re.findall(r"python -m (?:worker|publisher|local)(?: [a-z]+)*(?![\w./])", text):
        words = mention.split()
        # What follows a full command is its arguments, and what precedes one is a group of commands.
        assert any(words == full.split()[: len(words)] or full.split() == words[: len(full.split())] for full in known), (
            mention
        )


def test_every_local_command_is_documented() -> None:
    """Each verb of `python -m local` too."""
    known = set(re.findall(r'add_parser\(\s*"([a-z-]+)"', sources("local")))
    assert len(known) >= 5
    missing = [name for name in known if not re.search(rf"python -m local {name}(?![\w-])", everything())]
    assert not missing


def test_every_documented_module_that_is_run_exists() -> None:
    """`python -m PACKAGE` and `python -m PACKAGE.MODULE` are ours, or pytest."""
    for name in set(re.findall(r"python -m ([\w.]+\w)", everything())) - {"pytest", "bench.NAME"}:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"python -m {name}"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_shell_commands_parse(file: Path) -> None:
    """What stands in a fence of shell commands is whole: quotes are closed, loops are ended."""
    for number, block in enumerate(
        re.findall(r"^ *```(?:sh|bash|shell)\n(.*?)```", file.read_text(), re.DOTALL | re.MULTILINE)
    ):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{file.name}, fence {number + 1}: {done.stderr}\n{block}"


def test_every_make_target_is_documented() -> None:
    """`make TARGET` for each target that `make help` lists stands in README.md or docs/."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    missing = [target for target in targets if not re.search(rf"\bmake {target}(?![\w-])", everything())]
    assert not missing, f"nothing says {', '.join(f'`make {target}`' for target in missing)}"


def test_every_documented_make_target_exists() -> None:
    """And the other way round."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)(?![\w-])", everything(), re.MULTILINE)) <= targets


def test_every_documented_setting_exists() -> None:
    """A variable in backticks, with an underscore, is one that something reads; so is what an example sets."""
    known = {name for name, _, _ in config.described()} | set(publisher.settings.ENVIRONMENT) | FOREIGN_VARIABLES
    known |= set(worker.console.serving.ENVIRONMENT)
    known |= set(worker.cli.service_options.ENVIRONMENT) | set(worker.cli.subscription_options.ENVIRONMENT)
    known |= {name for name in vars(publisher.settings) if name.isupper()}  # its fixed limits
    for file in (ROOT / "deploy").glob("*.sh"):
        known |= set(re.findall(r"\$\{([A-Z_]+):?-", file.read_text()))
    text = everything()
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", text))
    named |= set(re.findall(r"(?:^|[\s`])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)=", text))
    assert {name for name in named - NO_VARIABLES if not name.startswith("CLOUDSDK_")} <= known


def test_every_documented_flag_exists() -> None:
    """An option in the documentation is one of ours, unless its line or its fence is about another program."""
    known = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', sources("local", "bench"))) | {"--help"}
    known |= {name for _, command in PROGRAMS for option in command.params for name in option.opts}
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


def test_every_picture_is_there_and_small() -> None:
    """Each picture that a page shows is a file of at most 100 KB, with a text for who cannot see it; and each is shown."""
    shown = set()
    for file in TEXTS:
        for text, target in re.findall(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)", file.read_text()):
            assert text, target
            assert (file.parent / target).stat().st_size <= 100_000, target
            shown.add((file.parent / target).resolve())
    assert shown == set((DOCS / "images").iterdir())


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_code_in_backticks_that_looks_like_a_file_is_one(file: Path) -> None:
    """`worker/ingest/http/app.py` and the like are files or folders that there are."""
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
