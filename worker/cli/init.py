"""The command line of `worker init`."""

from typing import Final

import click

from publisher.command_line import Command, Options
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.lease import record
from worker.replica.bucket import opened

_INIT: Final = """\
Create the lease record at REPLICA_URL, once per store. Running it again changes nothing. `serve` refuses to start without
it, so that a mistyped bucket is an error and not an empty database.

  REPLICA_URL=gs://acme-users/prod python -m worker init
"""


@click.command("init", cls=Command, help=_INIT)
@with_settings(on_postgresql="`worker serve` makes the tables at its start")
def command(settings: Settings, _: Options) -> int:
    """Create the store, if there is none."""
    with opened(settings.bucket, settings.prefix) as store:
        created = run_to_end(record.initialize(store, timeout=settings.lease_read_timeout_seconds))
        print(f"{store} is a new, empty store" if created else f"{store} is a store already; nothing was changed")
    return 0
