"""The command line of `worker checkpoint`."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import click
import msgspec
from rich.console import Console

from publisher import parameters
from publisher.command_line import Command, Group, Options, json_option
from worker.cli.agreement import agreed
from worker.cli.subscription_options import EPILOG, queue_of, subscription_options
from worker.cli.tables import pairs, table
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.operations import checkpoints
from worker.replica import bucket
from worker.replica.bucket import Bucket

T = TypeVar("T")

_REQUEST_SECONDS: Final = 60.0
"""Longest a look at the bucket may take; one of them lists the whole store."""
_COLUMNS: Final = ("name", "state", "created_at", "expires", "epoch", "txid")

_INTRO: Final = """\
Make a checkpoint: a Pub/Sub snapshot of the subscription, and then a record in the bucket of the state it goes with. The two
together hold every message, so the store can be taken back to that state and everything later be replayed. The service need
not run. Pub/Sub keeps a snapshot for seven days at most, less the age of the oldest message waiting then.

  python -m worker checkpoint --name before-deploy
  python -m worker checkpoint list
  python -m worker checkpoint prune --keep 3 --yes
  python -m worker replay --snapshot before-deploy
"""
_LIST: Final = """\
List the checkpoints, newest first. whole: it can be replayed; expired: its snapshot is gone; no record: it was broken off
between snapshot and record, or is the way back from a replay (before-replay-...); the time is then the earliest it can be.
"""


@click.group("checkpoint", cls=Group, invoke_without_command=True, help=_INTRO, epilog=EPILOG)
@click.option(
    "--name",
    metavar="NAME",
    type=parameters.WORD,
    help="small letters, digits and hyphens (default: the time, such as 20260131-120000)",
)
@subscription_options
@json_option
@with_settings(on_postgresql="note the time for your provider's restore, and run `gcloud pubsub snapshots create`")
def command(settings: Settings, options: Options) -> int:
    """Make a checkpoint and print it."""
    queue = queue_of(options)
    name = options.name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with Console(stderr=True).status("making a checkpoint"):
        made = _with_bucket(settings, lambda store: checkpoints.take(queue, store, name, timeout=_REQUEST_SECONDS))
    if options.json:
        print(msgspec.json.encode(made).decode())
    else:
        shown = ("name", "snapshot", "epoch", "txid", "created_at", "expires")
        pairs([(field.replace("_", " "), getattr(made, field)) for field in shown])
    return 0


@command.command("list", cls=Command, help=_LIST, short_help="what there is", epilog=EPILOG)
@subscription_options
@json_option
@with_settings(on_postgresql="note the time for your provider's restore, and run `gcloud pubsub snapshots create`")
def _list(settings: Settings, options: Options) -> int:
    queue = queue_of(options)
    _show(
        _with_bucket(settings, lambda store: checkpoints.listed(queue, store, timeout=_REQUEST_SECONDS)),
        options,
        "no checkpoints",
    )
    return 0


@command.command(
    "prune",
    cls=Command,
    one_of=("--keep", "--older-than"),
    required=True,
    help="Delete checkpoints, their snapshots first, and what is left of broken and expired ones.",
    short_help="delete old ones",
    epilog=EPILOG,
)
@click.option("--keep", metavar="N", type=parameters.whole(0), help="all but the newest N")
@click.option("--older-than", metavar="TIME", type=parameters.MOMENT, help="made before then: RFC 3339, or 30m, 12h, 7d ago")
@click.option("--yes", is_flag=True, help="do it; without this, only say what would be deleted")
@subscription_options
@json_option
@with_settings(on_postgresql="note the time for your provider's restore, and run `gcloud pubsub snapshots create`")
def _prune(settings: Settings, options: Options) -> int:
    queue = queue_of(options)

    async def choose(store: Bucket) -> list[checkpoints.Listed]:
        rows = await checkpoints.listed(queue, store, timeout=_REQUEST_SECONDS)
        return checkpoints.superfluous(rows, keep=options.keep, older_than=options.older_than, now=datetime.now(UTC))

    async def prune(store: Bucket) -> None:
        for row in chosen:
            await checkpoints.prune(queue, store, row, timeout=_REQUEST_SECONDS)

    with Console(stderr=True).status("looking"):
        chosen = _with_bucket(settings, choose)
    _show(chosen, options, "nothing to delete")
    if not chosen:
        return 0
    if not (options.yes or (not options.json and agreed(f"this would delete {len(chosen)}", yes=False))):
        return 1
    with Console(stderr=True).status("pruning"):
        _with_bucket(settings, prune)
    if not options.json:
        print(f"{len(chosen)} deleted")
    return 0


def _show(rows: list[checkpoints.Listed], options: Options, nothing: str) -> None:
    if options.json:
        print(msgspec.json.encode(rows).decode())
    elif rows:
        table([name.replace("_", " ") for name in _COLUMNS], [[getattr(row, name) for name in _COLUMNS] for row in rows])
    else:
        print(nothing)


def _with_bucket(settings: Settings, use: Callable[[Bucket], Awaitable[T]]) -> T:
    store = Bucket(settings.bucket, settings.prefix).patient(bucket.COMMAND_PATIENCE_SECONDS)

    async def run() -> T:
        return await use(store)

    try:
        return run_to_end(run())
    finally:
        store.close()
