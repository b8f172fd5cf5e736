"""The command line of `worker events`."""

from collections.abc import Mapping
from typing import Final

import click
import msgspec

from publisher.command_line import Command, Options, json_option
from worker.cli.tables import table
from worker.cli.verbs import without_settings
from worker.events.configured import catalog_named
from worker.operations.events import described

_INTRO: Final = """\
List the events that EVENTS declares: the fields of their messages, the table and its key, whose data it is, and what a
message does whose row is there. Fields in brackets may be left out. Nothing else than EVENTS is needed.

  python -m worker events
  EVENTS=worker.events.users,examples.orders python -m worker events --json
"""
_COLUMNS: Final = ("event", "module", "table", "key", "subject", "when there", "fields")


@click.command("events", cls=Command, help=_INTRO)
@json_option
@without_settings
def command(options: Options, environ: Mapping[str, str]) -> int:
    """Print the events."""
    rows = described(catalog_named(environ.get("EVENTS", "")))
    if options.json:
        print(msgspec.json.encode(rows).decode())
        return 0
    cells = []
    for row in rows:
        when_there = f"newest by {row.version}" if row.version else row.when_there
        fields = " ".join(name if name in row.required else f"[{name}]" for name in row.fields)
        cells.append((row.name, row.module, row.table, row.key, row.subject, when_there, fields))
    table(_COLUMNS, cells)
    return 0
