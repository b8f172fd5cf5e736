"""`worker smoke`: whether a user that was just published is acknowledged, can be read, and can be erased again."""

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Final

import click

from publisher import parameters
from publisher.command_line import Command, Options
from worker.cli.service_options import connect, service_url, url_option
from worker.cli.verbs import run_to_end, without_settings
from worker.errors import ServiceRefused, ServiceUnreachable
from worker.operations.service_client import Service

_PAUSE_SECONDS: Final = 1.0

_INTRO: Final = """\
Wait until the running service shows a user that was just published; ask for its counts, which are answered once everything
before them is confirmed in the bucket; and erase the user. deploy/smoke.sh publishes the user and runs this in the project.

  python -m worker smoke --user-id 4611686018427387905

exit codes: 0 done, 1 it failed; the text names the step
"""


@click.command("smoke", cls=Command, help=_INTRO)
@click.option("--user-id", metavar="ID", type=parameters.USER_ID, required=True, help="the user; it is erased at the end")
@click.option("--within", metavar="SECONDS", type=parameters.seconds(3600), default=60.0, help="longest wait for it [60]")
@url_option
@without_settings
def command(options: Options, environ: Mapping[str, str]) -> int:
    """See the user through; its exit code.

    Raises:
        WorkerError: A step failed; the text names it.
    """
    return run_to_end(_smoke(options, environ))


async def _smoke(options: Options, environ: Mapping[str, str]) -> int:
    user, began = options.user_id, time.monotonic()
    async with connect(Service, service_url(options.url, environ), environ) as service:
        while await service.user(user) is None:
            if time.monotonic() - began > options.within:
                raise ServiceRefused(
                    f"read back: there is no user {user} after {options.within:g} s; look at the service's log, and at the "
                    "subscription's push responses"
                )
            await asyncio.sleep(_PAUSE_SECONDS)
        _say(f"read back: user {user}, after {time.monotonic() - began:.1f} s")
        for step, ask in (("acknowledged", service.confirmed), ("erased", lambda: service.erase(str(user)))):
            try:
                await ask()
            except (ServiceRefused, ServiceUnreachable) as error:
                raise type(error)(f"{step}: {error}") from None
            _say(f"{step}: user {user}")
        if await service.user(user) is not None:
            raise ServiceRefused(f"erased: user {user} is still there; report it")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
