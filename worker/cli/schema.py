"""The command line of `worker schema`."""

import json
from collections.abc import Mapping
from typing import Final

import click

from publisher import parameters
from publisher.command_line import Command, Options
from worker.cli.verbs import without_settings
from worker.events.configured import catalog_named
from worker.operations.events import avro

_INTRO: Final = """\
Print the Avro schema of an event, for the topic that carries its messages: Pub/Sub then refuses most malformed messages
where they are published. It names the required fields alone: Avro cannot say that a field may be absent.

  python -m worker schema user.created > deploy/schema.avsc
"""


@click.command("schema", cls=Command, help=_INTRO)
@click.argument("name", metavar="NAME", type=parameters.WORD)
@without_settings
def command(options: Options, environ: Mapping[str, str]) -> int:
    """Print the schema."""
    print(json.dumps(avro(catalog_named(environ.get("EVENTS", "")), options.name), indent=2))
    return 0
