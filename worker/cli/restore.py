"""The command line of `worker restore`."""

import sys
from typing import Final

import click
import msgspec
from rich.console import Console

from publisher import parameters
from publisher.command_line import Command, Options, json_option
from worker.cli.tables import pairs
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.errors import ConfigError, RestoreFailed
from worker.events.configured import catalog_of
from worker.operations.restore import Restored, restore
from worker.replica import bucket
from worker.replica.bucket import Bucket
from worker.replica.litestream import find_binary
from worker.replica.restoring import Wanted
from worker.replica.survey import survey

_LIST_SECONDS: Final = 60.0
"""Longest a listing of the whole store may take."""

_RESTORE: Final = """\
Restore a state from the bucket into a new file: the newest, or what it was at a time, or a generation up to a transaction.
The live service is not touched, and no lease is needed.

  python -m worker restore -o now.db
  python -m worker restore -o yesterday.db --at 24h
  python -m worker restore -o before.db --at 2026-01-31T12:00:00Z
  python -m worker restore -o seven.db --epoch 7 --txid 120
"""


@click.command("restore", cls=Command, one_of=("--at", "--epoch"), help=_RESTORE)
@click.option("-o", "--output", metavar="FILE", type=parameters.PATH, required=True, help="a file that does not exist yet")
@click.option("--at", metavar="TIME", type=parameters.MOMENT, help="the state at that time: RFC 3339, or 30m, 12h, 7d ago")
@click.option("--epoch", metavar="N", type=parameters.whole(1), help="the generation of that epoch")
@click.option("--txid", metavar="X", type=parameters.whole(1), help="with --epoch: up to that transaction")
@json_option
@with_settings(on_postgresql="your provider restores to a time, then `worker replay --newer URL`; see docs/scaling.md")
def command(settings: Settings, options: Options) -> int:
    """Restore, and print what was restored."""
    if options.txid is not None and options.epoch is None:
        raise ConfigError("--txid counts within one generation: give its --epoch as well")
    console = Console(stderr=True)

    async def run(store: Bucket) -> Restored:
        with console.status("looking at the bucket"):
            path = None
            if options.epoch is not None:
                path = (await survey(store, timeout=_LIST_SECONDS)).of_epoch(options.epoch).path
            return await restore(
                store,
                catalog_of(settings),
                Wanted(options.at, path, options.txid),
                options.output,
                binary=find_binary(settings.litestream_bin),
                seconds=settings.restore_timeout_seconds,
                request_seconds=settings.fetch_timeout_seconds,
                say=lambda line: print(line, file=sys.stderr),
            )

    store = Bucket(settings.bucket, settings.prefix)
    try:
        restored = run_to_end(run(store.patient(bucket.COMMAND_PATIENCE_SECONDS)))
    except OSError as error:
        raise RestoreFailed(
            f"{options.output} cannot be written: {error.strerror}; name a file in a folder with room for it twice"
        ) from error
    finally:
        store.close()
    if options.json:
        print(msgspec.json.encode(restored).decode())
    else:
        found = msgspec.structs.asdict(restored)
        rows = {f"rows of {name}": count for name, count in found.pop("rows").items()}
        pairs([(name.replace("_", " "), value) for name, value in (found | rows).items()])
    return 0
