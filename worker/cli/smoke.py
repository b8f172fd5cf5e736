"""`worker smoke`: whether a user that was just published is acknowledged, can be read, and can be erased again."""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from publisher import values
from worker.cli.service_options import add_url, connect, service_url
from worker.errors import ServiceRefused, ServiceUnreachable
from worker.operations.service_client import Service

_PAUSE_SECONDS: Final = 1.0

_INTRO: Final = """\
Wait until the running service shows a user that was just published; ask for its counts, which are answered once everything
before them is confirmed in the bucket; and erase the user. deploy/smoke.sh publishes the user and runs this in the project.

  python -m worker smoke --user-id 4611686018427387905

exit codes: 0 done, 1 it failed; the text names the step
"""


def add(verbs: Any) -> None:
    """Add the command to the worker's parser."""
    parser = verbs.add_parser(
        "smoke",
        description=_INTRO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--user-id", metavar="ID", type=values.user_id, required=True, help="the user; it is erased at the end"
    )
    parser.add_argument(
        "--within", metavar="SECONDS", type=values.seconds(3600), default=60.0, help="longest wait for it [%(default)g]"
    )
    add_url(parser)
    parser.set_defaults(command=None, without_settings=main)


def main(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """See the user through; its exit code.

    Raises:
        WorkerError: A step failed; the text names it.
    """
    return asyncio.run(_smoke(options, environ))


async def _smoke(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
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
