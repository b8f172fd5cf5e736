"""The command line of `worker init` and `worker serve`."""

import argparse
import asyncio
import logging
import os
import signal
from typing import Any, Final, NoReturn

import uvloop

from worker.config import Settings
from worker.errors import LeaseLost, WorkerError
from worker.lease import record
from worker.replica.bucket import opened
from worker.tasks import ended_when_stuck

_STUCK_SECONDS_MIN: Final = 10.0
"""With a short LEASE_TTL_SECONDS a busy machine would look like a loop that stands still."""

log = logging.getLogger("worker")


def add(verbs: Any) -> None:
    """Add the commands to the worker's parser."""
    raw = argparse.RawDescriptionHelpFormatter
    init = verbs.add_parser(
        "init",
        description="Create the lease record at REPLICA_URL, once per store. Running it again changes nothing.\n"
        "`serve` refuses to start without it, so that a mistyped bucket is an error and not an empty database.",
        formatter_class=raw,
    )
    init.set_defaults(command=_init)
    serve = verbs.add_parser(
        "serve",
        description="Listen on PORT; hold the lease, restore the live generation, replicate, and acknowledge what is in\n"
        "the bucket. SIGTERM drains and releases the lease; a second one leaves at once.",
        formatter_class=raw,
    )
    serve.set_defaults(command=_serve)


def _init(settings: Settings, _: argparse.Namespace) -> int:
    with opened(settings.bucket, settings.prefix) as store:
        created = asyncio.run(record.initialize(store, timeout=settings.lease_read_timeout_seconds))
        print(f"{store} is a new, empty store" if created else f"{store} is a store already; nothing was changed")
    return 0


def _serve(settings: Settings, _: argparse.Namespace) -> NoReturn:
    code = 0
    try:
        uvloop.run(_until_signal(settings))
    except LeaseLost as lost:
        log.warning("%s", lost, extra={"action": "lease.lost"})
    except WorkerError as error:
        log.error("%s", error, extra={"action": "worker.failed"})
        code = error.exit_code
    except asyncio.CancelledError:
        log.warning("left without draining", extra={"action": "worker.aborted"})
        code = 1
    except Exception:  # a defect: what was acknowledged is in the bucket all the same
        log.exception("the worker ended by a defect, or by a machine that fails it", extra={"action": "worker.failed"})
        code = 1
    # Everything is released. A request to the bucket that still hangs on a thread must not hold up the end (INV-8).
    logging.shutdown()
    os._exit(code)


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
    async with ended_when_stuck(max(settings.lease_ttl_seconds, _STUCK_SECONDS_MIN)):
        from worker import supervisor  # not for `init`, which needs no server

        await supervisor.run(settings, stop)
