"""The command line of `worker move`."""

import sys
from typing import Final

import click
import msgspec

from publisher import parameters
from publisher.command_line import Command, Options, json_option
from worker.cli.tables import pairs, table
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.errors import ConfigError
from worker.events.configured import catalog_of
from worker.operations.move import Moved, move, server_at
from worker.replica import bucket
from worker.replica.bucket import Bucket

_MOVE: Final = """\
Copy the store at REPLICA_URL into an empty PostgreSQL database, and prove by counts and digests that the copy is the same.
The bucket is not changed, and the service may go on serving. Afterwards switch it over, as the last lines say.

  python -m worker checkpoint --name before-move
  python -m worker move --to postgresql://worker@10.0.0.5/users --password-file password.txt

A move that is broken off leaves an empty database, and can be made again. `worker export` is the way back.
"""


@click.command("move", cls=Command, help=_MOVE)
@click.option("--to", metavar="URL", type=parameters.WORD, required=True, help="postgresql://USER@HOST/DATABASE")
@click.option("--password-file", metavar="FILE", type=parameters.PATH, help="the file that holds the password")
@json_option
@with_settings(on_postgresql="the data lives in PostgreSQL already; `worker export` writes it to a file")
def command(settings: Settings, options: Options) -> int:
    """Move, and say how to switch."""
    try:
        server = server_at(settings, options.to, str(options.password_file) if options.password_file else None)
    except ConfigError as error:
        raise ConfigError(f"--to: {error}") from None
    store = Bucket(settings.bucket, settings.prefix)
    try:
        moved = run_to_end(
            move(
                settings,
                store.patient(bucket.COMMAND_PATIENCE_SECONDS),
                catalog_of(settings),
                server,
                say=lambda line: print(line, file=sys.stderr),
            )
        )
    finally:
        store.close()
    show(moved, as_json=options.json)
    if not options.json and moved.replay_from is not None:
        since = moved.replay_from.isoformat(timespec="seconds").replace("+00:00", "Z")
        print(
            "\nnow switch, and replay what came meanwhile:\n"
            "  1. deploy with DATABASE_URL set and REPLICA_URL unset; the old instances end\n"
            f"  2. python -m worker replay --from {since}\n"
            "     or, where older messages waited in the subscription, of a checkpoint that was made before this move:\n"
            "     python -m worker replay --snapshot projects/PROJECT/snapshots/solowriter.SUBSCRIPTION.NAME\n"
            "  what was taken before the switch is delivered again, and is a duplicate where it was copied"
        )
    return 0


def show(moved: Moved, *, as_json: bool) -> None:
    """Print what was copied."""
    if as_json:
        print(msgspec.json.encode(moved).decode())
        return
    table(("table", "rows", "SHA-256"), [(each.table, f"{each.rows:,}", each.digest[:16]) for each in moved.tables])
    pairs([("to", moved.to), ("seconds", moved.seconds)])
