"""The command line of `worker serve`."""

import asyncio
import logging
import os
import signal
from typing import Any, Final, NoReturn

import click
import uvloop

from publisher.command_line import Command, Options
from worker.cli.verbs import with_settings
from worker.config import Settings
from worker.errors import LeaseLost, WorkerError
from worker.tasks import ended_when_stuck

_STUCK_SECONDS_MIN: Final = 10.0
"""With a short LEASE_TTL_SECONDS a busy machine would look like a loop that stands still."""

log = logging.getLogger("worker")


_SERVE: Final = """\
Listen on PORT; hold the lease, restore the live generation, replicate, and acknowledge what is in the bucket. SIGTERM drains
and releases the lease; a second one leaves at once.

  REPLICA_URL=gs://acme-users/prod python -m worker serve

A message: gcloud pubsub topics publish users --message='{"user_id": 5}'
"""


@click.command("serve", cls=Command, help=_SERVE)
@with_settings(ended_in_order=False)
def command(settings: Settings, _: Options) -> NoReturn:
    """Serve until a signal."""
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
