"""How the operator's commands are told which subscription feeds the store."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from publisher import parameters
from publisher.command_line import Options
from worker.operations.pubsub import Queue, subscription_name

ENVIRONMENT: Final[Mapping[str, str]] = {
    "SUBSCRIPTION": "the subscription that feeds the store: an id, or projects/P/subscriptions/S",
    "GOOGLE_CLOUD_PROJECT": "the project of a subscription given as an id",
    "PUBSUB_EMULATOR_HOST": "HOST:PORT of an emulator in Pub/Sub's place",
}
"""The variables that only commands about the subscription read."""

EPILOG: Final = "environment:\n" + "\n".join(f"  {name:<22}{text}" for name, text in ENVIRONMENT.items())


_F = TypeVar("_F", bound=Callable[..., Any])


def subscription_options(body: _F) -> _F:
    """Add the options to a command; its epilog should be `EPILOG`, which says which variables stand in for them."""
    which = "the subscription that feeds the store (default: SUBSCRIPTION)"
    project = "its project, if given as an id (default: GOOGLE_CLOUD_PROJECT)"
    body = click.option("--project", metavar="ID", type=parameters.WORD, help=project)(body)
    return click.option("--subscription", metavar="ID", type=parameters.WORD, help=which)(body)


def queue_of(options: Options) -> Queue:
    """The subscription that is meant.

    Raises:
        QueueMissing: That is not said.
    """
    wanted = options.subscription or os.environ.get("SUBSCRIPTION", "")
    project = options.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    return Queue(subscription_name(wanted, project))
