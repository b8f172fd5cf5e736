"""The command line of `worker lease`."""

from typing import Final

import click
import msgspec

from publisher.command_line import Command, Group, Options, json_option
from worker.cli.agreement import agreed
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.lease import record as lease_record
from worker.operations import lease as lease_commands
from worker.replica.bucket import opened

_LEASE: Final = "Look at who may write, or release the lease of a holder that is known to be dead."
_SHOW: Final = "Read the lease record and print it. Nothing is changed; it needs no lease."
_BREAK: Final = """\
Release the lease, so that a waiting instance need not wait for LEASE_TTL_SECONDS. It watches the record that long first and
refuses if the holder renews it. A holder that is alive after all stops at its next confirmation; what it acknowledged is in
the bucket.
"""


@click.group("lease", cls=Group, help=_LEASE)
def command() -> None:
    """Look at the lease, or release it."""


@command.command("show", cls=Command, help=_SHOW, short_help="who holds the lease, since when, what is live, who waits")
@json_option
@with_settings(on_postgresql="there is no lease, every instance writes; see docs/scaling.md")
def _lease_show(settings: Settings, options: Options) -> int:
    with opened(settings.bucket, settings.prefix) as store:
        status = run_to_end(lease_commands.show(store, timeout=settings.lease_read_timeout_seconds))
    if options.json:
        print(msgspec.json.encode(status).decode())
    else:
        width = max(len(label) for label, _ in status.rows())
        print("\n".join(f"{label:<{width}}  {value}" for label, value in status.rows()))
    return 0


@command.command("break", cls=Command, help=_BREAK, short_help="release the lease of a holder known to be dead")
@click.option("--yes", is_flag=True, help="do it; without this, only say what would be done")
@click.option("--force", is_flag=True, help="break it even if the holder is alive, and without watching")
@with_settings(on_postgresql="there is no lease, every instance writes; see docs/scaling.md")
def _lease_break(settings: Settings, options: Options) -> int:
    timeout = settings.lease_read_timeout_seconds
    with opened(settings.bucket, settings.prefix) as store:
        if not options.yes:
            record, _ = run_to_end(lease_record.look(store, timeout=timeout))
            if record.state == "released":
                print(f"the lease of {store} is released already, at epoch {record.epoch}: there is nothing to break")
                return 0
            what = (
                f"this would release the lease of {record.holder or 'no holder'} ({record.revision}) "
                f"at epoch {record.epoch}, which is {record.state} now"
            )
            if not agreed(what, yes=False):
                return 1
        record = run_to_end(
            lease_commands.break_(store, ttl=settings.lease_ttl_seconds, force=options.force, timeout=timeout, say=print)
        )
        print(f"the lease of {store} is released at epoch {record.epoch}")
    return 0
