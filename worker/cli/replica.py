"""The command line of `worker replica`."""

from typing import Any, Final

import click
import msgspec

from publisher import parameters
from publisher.command_line import Command, Group, Options, json_option
from publisher.values import counted
from worker.cli.tables import table
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.replica import bucket
from worker.replica.bucket import Bucket
from worker.replica.layout import path_of
from worker.replica.restoring import Verified, Wanted, verify
from worker.replica.survey import Contents, Generation, Survey, contents, survey

_LIST_SECONDS: Final = 60.0
"""Longest a listing of the whole store may take."""

_REPLICA: Final = """\
What is in the bucket: the generations, newest first. One is live; the others were live before it, and stay restorable for
RETENTION_DAYS. Nothing is changed, and no lease is needed.

  python -m worker replica               the generations
  python -m worker replica ls 7          the files of epoch 7
  python -m worker replica verify        whether each file of the live generation is whole
"""
_VERIFY: Final = """\
Read every file of a generation and check that it is whole. A file that is not is named, with what depends on it: nothing,
where other files hold the same transactions; otherwise these transactions cannot be restored.

Exit code 0: every file is whole. 1: one is not.

  python -m worker replica verify        the live generation
  python -m worker replica verify 7      the generation of epoch 7
"""


@click.group("replica", cls=Group, invoke_without_command=True, help=_REPLICA)
@json_option
@with_settings(on_postgresql="there are no generations; look at your provider's backups")
def command(settings: Settings, options: Options) -> int:
    """Print the generations, newest first."""

    async def look(store: Bucket) -> list[dict[str, Any]]:
        found = await survey(store, timeout=_LIST_SECONDS)
        generations = sorted((*found.history, *found.others), key=_epoch, reverse=True)
        return [
            _row(generation, found, await contents(store, generation.path, timeout=_LIST_SECONDS))
            for generation in generations
        ]

    rows = _with_bucket(settings, look)
    if options.json:
        print(msgspec.json.encode(rows).decode())
    elif rows:
        table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print("the store is empty: no generation has been written yet")
    return 0


@command.command("ls", cls=Command, help="List the files of one generation.", short_help="the files of a generation")
@click.argument("epoch", metavar="EPOCH", type=parameters.whole(1))
@json_option
@with_settings(on_postgresql="there are no generations; look at your provider's backups")
def _ls(settings: Settings, options: Options) -> int:
    async def look(store: Bucket) -> Contents:
        generation = (await survey(store, timeout=_LIST_SECONDS)).of_epoch(options.epoch)
        return await contents(store, generation.path, timeout=_LIST_SECONDS)

    found = _with_bucket(settings, look)
    if options.json:
        print(msgspec.json.encode(found.files).decode())
    else:
        rows = [
            (f"gs://{settings.bucket}/{settings.prefix}/{file.name}", file.first, file.last, file.time, file.bytes)
            for file in found.files
        ]
        table(("file", "first", "last", "time", "bytes"), rows)
    return 0


@command.command("verify", cls=Command, help=_VERIFY, short_help="whether each file is whole")
@click.argument("epoch", metavar="[EPOCH]", type=parameters.whole(1), required=False)
@json_option
@with_settings(on_postgresql="there are no generations; look at your provider's backups")
def _verify(settings: Settings, options: Options) -> int:
    async def look(store: Bucket) -> Verified:
        path = (
            path_of(options.epoch) if options.epoch is not None else await Wanted().generation(store, timeout=_LIST_SECONDS)
        )
        return await verify(store, path, request_seconds=settings.fetch_timeout_seconds)

    found: Verified = _with_bucket(settings, look)
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        print(f"{found.generation}: {counted(found.files, 'file')}, {found.bytes:,} bytes, transactions 1 to {found.txid}")
        if found.damaged:
            table(
                ("not whole", "why", "depends on it"),
                [(each.name, each.why, each.lost or "nothing") for each in found.damaged],
            )
        print(found.verdict)
    return 0 if found.sound else 1


def _with_bucket(settings: Settings, use: Any) -> Any:
    store = Bucket(settings.bucket, settings.prefix)
    try:
        return run_to_end(use(store.patient(bucket.COMMAND_PATIENCE_SECONDS)))
    finally:
        store.close()


def _epoch(generation: Generation) -> int:
    return generation.manifest.epoch


def _row(generation: Generation, found: Survey, held: Contents) -> dict[str, Any]:
    manifest = generation.manifest
    state = "live" if generation.live else "was live" if generation in found.history else "never live"
    return {
        "epoch": manifest.epoch,
        "state": state,
        "began": generation.began,
        "ended": generation.ended,
        "base": None if manifest.base is None else f"{int(manifest.base.rpartition('/')[2], 16)}@{manifest.base_txid}",
        "transactions": held.transactions,
        "objects": held.objects,
        "bytes": held.bytes,
        "revision": manifest.revision,
    }
