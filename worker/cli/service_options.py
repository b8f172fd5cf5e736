"""How the operator's commands find the running service, and what they tell it: who asks, and of which store."""

import argparse
import sys
from collections.abc import Mapping
from typing import TypeVar

from publisher import values
from worker.operations.identity import identity
from worker.operations.service_client import Service

S = TypeVar("S", bound=Service)


def add_url(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument("--url", metavar="URL", type=values.address, help="the service's address (default: SERVICE_URL)")


def service_url(url: str | None, environ: Mapping[str, str]) -> str:
    """The address of the service that is meant."""
    return url or environ.get("SERVICE_URL") or f"http://127.0.0.1:{environ.get('PORT') or 8080}"


def connect(kind: type[S], url: str, environ: Mapping[str, str]) -> S:
    """The service, which is told REPLICA_URL, and whose own store is named on standard error."""
    return kind(url, identity(environ), store=environ.get("REPLICA_URL", ""), say=lambda line: print(line, file=sys.stderr))
