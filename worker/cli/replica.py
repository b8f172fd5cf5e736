"""The command line of `worker replica` and `worker restore`."""

import argparse
import asyncio
import sys
from typing import Any, Final

import msgspec
from rich.console import Console

from publisher import values
from publisher.values import counted
from worker.cli.tables import pairs, table
from worker.config import Settings
from worker.errors import ConfigError, RestoreFailed
from worker.events.configured import catalog_of
from worker.operations.restore import Restored, restore
from worker.replica import bucket
from worker.replica.bucket import Bucket
from worker.replica.layout import path_of
from worker.replica.litestream import find_binary
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
_RESTORE: Final = """\
Restore a state from the bucket into a new file: the newest, or what it was at a time, or a generation up to a transaction.
The live service is not touched, and no lease is needed.

  python -m worker restore -o now.db
  python -m worker restore -o yesterday.db --at 24h
  python -m worker restore -o before.db --at 2026-01-31T12:00:00Z
  python -m worker restore -o seven.db --epoch 7 --txid 120
"""


def add(verbs: Any) -> None:
    """Add the commands to the worker's parser."""
    raw = argparse.RawDescriptionHelpFormatter
    replica = verbs.add_parser("replica", description=_REPLICA, formatter_class=raw)
    replica.add_argument("--json", action="store_true", help="print JSON")
    replica.set_defaults(command=_replica)
    inner = replica.add_subparsers(metavar="COMMAND")
    ls = inner.add_parser("ls", help="the files of a generation", description="List the files of one generation.")
    ls.add_argument("epoch", metavar="EPOCH", type=values.whole(1))
    ls.add_argument("--json", action="store_true", help="print JSON")
    ls.set_defaults(command=_ls)
    verify = inner.add_parser("verify", help="whether each file is whole", description=_VERIFY, formatter_class=raw)
    verify.add_argument("epoch", metavar="EPOCH", type=values.whole(1), nargs="?", help="the live one if not given")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(command=_verify)
    restoring = verbs.add_parser("restore", description=_RESTORE, formatter_class=raw)
    restoring.add_argument(
        "-o", "--output", metavar="FILE", type=values.path, required=True, help="a file that does not exist yet"
    )
    which = restoring.add_mutually_exclusive_group()
    which.add_argument(
        "--at", metavar="TIME", type=values.moment, help="the state at that time: RFC 3339, or 30m, 12h, 7d ago"
    )
    which.add_argument("--epoch", metavar="N", type=values.whole(1), help="the generation of that epoch")
    restoring.add_argument("--txid", metavar="X", type=values.whole(1), help="with --epoch: up to that transaction")
    restoring.add_argument("--json", action="store_true", help="print JSON")
    restoring.set_defaults(command=_restore)


def _replica(settings: Settings, options: argparse.Namespace) -> int:
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


def _ls(settings: Settings, options: argparse.Namespace) -> int:
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


def _restore(settings: Settings, options: argparse.Namespace) -> int:
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

    try:
        restored = _with_bucket(settings, run)
    except OSError as error:
        raise RestoreFailed(
            f"{options.output} cannot be written: {error.strerror}; name a file in a folder with room for it twice"
        ) from error
    if options.json:
        print(msgspec.json.encode(restored).decode())
    else:
        found = msgspec.structs.asdict(restored)
        rows = {f"rows of {name}": count for name, count in found.pop("rows").items()}
        pairs([(name.replace("_", " "), value) for name, value in (found | rows).items()])
    return 0


def _verify(settings: Settings, options: argparse.Namespace) -> int:
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
        return asyncio.run(use(store.patient(bucket.COMMAND_PATIENCE_SECONDS)))
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
