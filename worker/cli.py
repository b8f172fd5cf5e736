"""The operator's verbs. Parsing, signals and exit codes; the work is elsewhere."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvloop

from worker import config, lease, supervisor, telemetry
from worker.config import Settings
from worker.errors import LeaseLost, WorkerError
from worker.gcs import Bucket

_INTRO = """\
A queue-fed user store: takes Pub/Sub pushes, writes them to SQLite, and acknowledges what is in the bucket.

A new store, once:      REPLICA_URL=gs://acme-users/prod python -m worker init
Then, one instance:     REPLICA_URL=gs://acme-users/prod python -m worker serve
A message:              gcloud pubsub topics publish users --message='{"user_id": 5}'
"""

log = logging.getLogger("worker")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 a setting or the store is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        settings = config.load(environ)
        telemetry.configure(settings.log_level)
        command: Callable[[Settings], int] = arguments.command
        return command(settings)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    width = max(len(name) for name, _, _ in config.described())
    settings = "\n".join(
        textwrap.fill(
            f"{about} [{default or 'none'}]",
            width=100,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for name, default, about in config.described()
    )
    epilog = f"settings (environment variables) [default]:\n{settings}\n\nexit codes: 0 done, 1 failed, 2 wrong setting"
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m worker", description=_INTRO, epilog=epilog, formatter_class=raw)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    init = verbs.add_parser(
        "init",
        help="create an empty store at REPLICA_URL; does nothing where there is one",
        description="Create the lease record at REPLICA_URL, once per store. Running it again changes nothing.\n"
        "`serve` refuses to start without it, so that a mistyped bucket is an error and not an empty database.",
        formatter_class=raw,
    )
    init.set_defaults(command=_init)
    serve = verbs.add_parser(
        "serve",
        help="be the one writer of the store, or stand by until the writer is gone",
        description="Listen on PORT; hold the lease, restore the live generation, replicate, and acknowledge what is in\n"
        "the bucket. SIGTERM drains and releases the lease; a second one leaves at once.",
        formatter_class=raw,
    )
    serve.set_defaults(command=_serve)
    return parser


def _init(settings: Settings) -> int:
    store = Bucket(settings.bucket, settings.prefix)
    try:
        created = asyncio.run(lease.initialize(store, timeout=settings.lease_read_timeout_seconds))
    finally:
        store.close()
    print(f"{store} is a new, empty store" if created else f"{store} is a store already; nothing was changed")
    return 0


def _serve(settings: Settings) -> int:
    try:
        uvloop.run(_until_signal(settings))
    except LeaseLost as lost:
        log.warning("%s", lost, extra={"action": "lease.lost"})
        return lost.exit_code
    except asyncio.CancelledError:
        log.warning("left without draining", extra={"action": "worker.aborted"})
        return 1
    return 0


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    main_task: asyncio.Task[Any] | None = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and main_task is not None:
            main_task.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await supervisor.run(settings, stop)
