"""The command line of `worker export`."""

import sys
from typing import Final

import click

from publisher import parameters
from publisher.command_line import Command, Options, json_option
from worker.cli.move import show
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.database.postgresql import Server
from worker.errors import ConfigError
from worker.events.configured import catalog_of
from worker.operations.move import export

_EXPORT: Final = """\
Write one state of the PostgreSQL database at DATABASE_URL to a new SQLite file, and prove by counts and digests that it is
the same. The service may go on serving.

  python -m worker export -o users.db
"""


@click.command("export", cls=Command, help=_EXPORT)
@click.option("-o", "--output", metavar="FILE", type=parameters.PATH, required=True, help="a file that does not exist yet")
@json_option
@with_settings()
def command(settings: Settings, options: Options) -> int:
    """Export, and print what was written."""
    if not settings.many_writers:
        raise ConfigError(
            "DATABASE_URL is not set: export reads PostgreSQL; `worker restore -o FILE` writes the bucket's state"
        )
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731  # one line
    moved = run_to_end(export(catalog_of(settings), Server.of(settings), options.output, say=say))
    show(moved, as_json=options.json)
    return 0
