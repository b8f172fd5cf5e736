"""How the operator's commands find the running service, and what they tell it: who asks, and of which store."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import click

from publisher import parameters
from publisher.command_line import Options
from worker.cli.verbs import run_to_end, without_settings
from worker.operations import identity
from worker.operations.service_client import Service

S = TypeVar("S", bound=Service)

ENVIRONMENT: Final[Mapping[str, str]] = {
    "SERVICE_URL": "where the service listens, for commands that ask it [http://127.0.0.1:PORT]",
    **identity.ENVIRONMENT,
}
"""The variables that only these commands read."""

EPILOG: Final = "environment:\n" + "\n".join(f"  {name:<18}{text}" for name, text in ENVIRONMENT.items())


url_option: Final = click.option(
    "--url", metavar="URL", type=parameters.ADDRESS, help="the service's address (default: SERVICE_URL)"
)


def service_url(url: str | None, environ: Mapping[str, str]) -> str:
    """The address of the service that is meant."""
    return url or environ.get("SERVICE_URL") or f"http://127.0.0.1:{environ.get('PORT') or 8080}"


def connect(kind: type[S], url: str, environ: Mapping[str, str]) -> S:
    """The service, which is told REPLICA_URL, and whose own store is named on standard error."""
    return kind(
        url, identity.identity(environ), store=environ.get("REPLICA_URL", ""), say=lambda line: print(line, file=sys.stderr)
    )


def asking(body: Callable[[Service, Options], Awaitable[int]]) -> Callable[..., int | None]:
    """Return the callback of a verb whose body asks the service that `--url` or SERVICE_URL names."""

    def ask(options: Options, environ: Mapping[str, str]) -> int:
        async def run() -> int:
            async with connect(Service, service_url(options.url, environ), environ) as service:
                return await body(service, options)

        return run_to_end(run())

    return without_settings(ask)
