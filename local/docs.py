"""`make docs`: writes the parts of docs/ that follow from code, each between two markers; a test says when one is stale.

Only what stands between markers is touched. The tables of settings come from `worker/config/` and `publisher/settings.py`,
the commands from the command line itself, the alerts from deploy/alerts.yml, and the tables of docs/cost.md from
`local/cost.py`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import click
import yaml

import publisher.cli
import publisher.settings
import worker.cli.main
from local import cost
from worker import config
from worker.events.declaration import Event

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"
WORKER: Final[Mapping[str, str]] = {
    "Where things are": "REPLICA_URL",
    "The queue and the limits of a request": "ACK_DEADLINE_SECONDS",
    "Who may send": "PUSH_AUDIENCE",
    "Writing and confirming": "UPLOAD_SPACING_SECONDS",
    "Checkpoints": "CHECKPOINT_HOURS",
    "The lease and the start": "LEASE_TTL_SECONDS",
    "Litestream": "LITESTREAM_BIN",
}
"""Each heading of docs/configuration.md, and the first setting below it; the others follow as they do in `Settings`."""
_CHOICES: Final = {"LOG_LEVEL": publisher.settings.LOG_LEVELS}
"""The values of the setting that is neither a number, nor a switch, nor free text."""
_PUBLISHER_DEFAULTS: Final[Mapping[str, str]] = {
    "TOPIC": "required, or `--topic`",
    "GOOGLE_CLOUD_PROJECT": "required with a short id, or `--project`",
    "PUBSUB_EMULATOR_HOST": "none",
    "EVENTS": "`worker.events.users`",
    "SUBSCRIPTION": f"`{publisher.settings.PUSH_SUBSCRIPTION}`",
    "HOST": f"`{publisher.settings.GATEWAY_HOST}`, or `--host`",
    "PORT": f"`{publisher.settings.GATEWAY_PORT}`, or `--port`",
    "LOG_LEVEL": f"`{publisher.settings.GATEWAY_LOG_LEVEL}`",
}


class StaleTextError(Exception):
    """A generated part cannot be written; the text says what to fix."""


def register(subparsers: Any) -> None:
    """Add the subcommand `docs`."""
    parser = subparsers.add_parser(
        "docs",
        help="write the generated parts of docs/ again",
        description="Rewrite what stands between the markers of docs/: tables of settings and commands, what a month costs.",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        for file in sorted(DOCS.glob("*.md")):
            before = file.read_text()
            after = rewritten(before, parts())
            if after != before:
                file.write_text(after)
                print(f"written: {file.relative_to(ROOT)}")
    except StaleTextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parts() -> dict[str, Callable[[], str]]:
    """Every generated part by the name in its markers."""
    settings = {f"worker settings, {heading}": _worker_part(heading) for heading in WORKER}
    return {
        **settings,
        "the example's module": lambda: _code("examples/orders/__init__.py"),
        "the example's migration": lambda: _code("examples/orders/migrations/0001_orders.py"),
        "attributes of an event": event_attributes,
        "publisher settings": publisher_environment,
        "commands of the worker": lambda: commands("python -m worker", worker.cli.main.command),
        "commands of the publisher": lambda: commands("python -m publisher", publisher.cli.command),
        "alerts": alerts,
        "prices": cost.prices_table,
        "loads": cost.loads_table,
        "database sizes": cost.sizes_table,
        "spacings": cost.spacings_table,
    }


def markers(name: str) -> tuple[str, str]:
    """The lines before and after a generated part."""
    return f"<!-- {name}: written by `make docs` -->", f"<!-- end of {name} -->"


def rewritten(text: str, known: Mapping[str, Callable[[], str]]) -> str:
    """The text with each of its generated parts written anew; the rest is as it was.

    Raises:
        StaleTextError: A part's end is missing, or a setting and its text do not go together.
    """
    for name, write in known.items():
        begin, end = markers(name)
        before, found, rest = text.partition(begin)
        if not found:
            continue
        _, closed, after = rest.partition(end)
        if not closed:
            raise StaleTextError(f"the line {end!r} is missing: put it behind the part that begins with {begin!r}")
        text = f"{before}{begin}\n\n{write()}\n\n{end}{after}"
    return text


def worker_settings(heading: str) -> str:
    """The table of the settings below one heading."""
    specs = {spec.metadata["name"]: spec for spec in fields(config.Settings)}
    firsts, names = list(WORKER.values()), list(specs)
    begin = names.index(WORKER[heading])
    end = next((at for at, name in enumerate(names) if at > begin and name in firsts), len(names))
    rows = [
        (f"`{name}`", _default(name, spec.default), _taken(name, spec), f"{told['meaning']} {told['why']}")
        for name, spec in list(specs.items())[begin:end]
        for told in (spec.metadata,)
    ]
    return table(("Variable", "Default", "Takes", "Meaning, and why this default"), rows)


def publisher_environment() -> str:
    """The table of the publisher's environment variables.

    Raises:
        StaleTextError: A variable's default is not known here.
    """
    known = publisher.settings.ENVIRONMENT
    if known.keys() != _PUBLISHER_DEFAULTS.keys():
        raise StaleTextError("local/docs.py and publisher/settings.py name different variables; fix _PUBLISHER_DEFAULTS")
    rows = [(f"`{name}`", _PUBLISHER_DEFAULTS[name], _sentence(about)) for name, about in known.items()]
    return table(("Variable", "Default", "Meaning"), rows)


def event_attributes() -> str:
    """The table of what an event declares, from the docstring of the class."""
    text = inspect.getdoc(Event) or ""
    attributes = text.partition("Attributes:\n")[2].partition("\nRaises:")[0]
    rows = []
    for each in re.split(r"\n(?= {4}\w)", attributes.rstrip()):
        name, _, meaning = each.strip().partition(": ")
        rows.append((f"`{name}`", _event_default(name), " ".join(meaning.split())))
    return table(("Attribute", "Default", "Meaning"), rows)


def _event_default(name: str) -> str:
    (field,) = [each for each in fields(Event) if each.name == name]
    if field.default is not MISSING:
        return f"`{field.default}`"
    return "required" if field.default_factory is MISSING else "none"


def _code(path: str) -> str:
    return f"```python\n{(ROOT / path).read_text()}```"


def walked(program: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Every command and group of a program by its whole name, such as `python -m worker lease show`."""
    yield program, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            nested = command.get_command(context, name)
            assert nested is not None
            yield from walked(f"{program} {name}", nested)


def commands(program: str, command: click.Command) -> str:
    """The table of a program's commands: arguments and options, and the first sentence of the help.

    A group stands there if it does something by itself, as `replica` does.
    """
    rows = []
    for name, each in walked(program, command):
        if isinstance(each, click.Group) and not each.invoke_without_command:
            continue
        context = click.Context(each)
        arguments = [part.make_metavar(context) for part in each.params if isinstance(part, click.Argument)]
        options = [f"`{part.opts[-1]}`" for part in each.params if isinstance(part, click.Option) and not part.hidden]
        first = " ".join((each.help or "").split("\n\n", maxsplit=1)[0].split())
        first = re.split(r"(?<=\.) |: |, such as ", first)[0].rstrip(".:")
        rows.append((f"`{' '.join([name, *arguments])}`", f"{first}.", ", ".join(options)))
    return table(("Command", "What it does", "Options"), rows)


def alerts() -> str:
    """The table of the alerts of deploy/alerts.yml, with a link to each one's runbook."""
    rules = [
        rule for group in yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    rows = []
    for rule in rules:
        notes, address = rule["annotations"], rule["annotations"]["runbook"].removeprefix("docs/")
        link = f"[{address.partition('#')[2].replace('-', ' ')}]({address})"
        rows.append((f"`{rule['alert']}`", rule["labels"]["severity"], f"{notes['summary'].partition(': {{')[0]}.", link))
    return table(("Alert", "Severity", "Says", "Runbook"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (header, ["---"] * len(header), *rows))


def _worker_part(heading: str) -> Callable[[], str]:
    return lambda: worker_settings(heading)


def _default(name: str, value: Any) -> str:
    if name == "REPLICA_URL":
        return "required"
    if value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).removeprefix(f'{ROOT}/')}`"


def _taken(name: str, spec: Any) -> str:
    """The unit and the bounds of a setting; the unit is left out where the bounds name each value."""
    unit, bounds = spec.metadata["unit"], _bounds(name, spec)
    return bounds if name in _CHOICES else ", ".join(part for part in (unit, bounds) if part)


def _bounds(name: str, spec: Any) -> str:
    low, high = spec.metadata["low"], spec.metadata["high"]
    if isinstance(spec.default, bool):
        return "`true` or `false`"
    if name == "CHECKPOINT_HOURS":
        return f"0, or at least {config.CHECKPOINT_HOURS_MIN:g}"
    if name in _CHOICES:
        return "one of " + ", ".join(f"`{choice}`" for choice in _CHOICES[name])
    if low is None:
        return ""
    return f"at least {_number(low)}" if high is None else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:g}" if value < 1e6 else f"{value:.0f}"


def _sentence(text: str) -> str:
    head, colon, rest = text.partition(": ")
    if colon and head == "serve":
        return f"`serve`: {rest}."
    return f"{text[0].upper()}{text[1:]}."
