"""How the operator's commands are told which subscription feeds the store."""

import argparse
import os
from collections.abc import Mapping
from typing import Final

from publisher import values
from worker.operations.pubsub import Queue, subscription_name

ENVIRONMENT: Final[Mapping[str, str]] = {
    "SUBSCRIPTION": "the subscription that feeds the store: an id, or projects/P/subscriptions/S",
    "GOOGLE_CLOUD_PROJECT": "the project of a subscription given as an id",
    "PUBSUB_EMULATOR_HOST": "HOST:PORT of an emulator in Pub/Sub's place",
}
"""The variables that only commands about the subscription read."""

EPILOG: Final = "environment:\n" + "\n".join(f"  {name:<22}{text}" for name, text in ENVIRONMENT.items())


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options, and say in the help which variables stand in for them."""
    # Without a default, so that what is given before a nested command is not forgotten there.
    unset = argparse.SUPPRESS
    which = "the subscription that feeds the store (default: SUBSCRIPTION)"
    parser.add_argument("--subscription", metavar="ID", type=values.word, default=unset, help=which)
    project = "its project, if given as an id (default: GOOGLE_CLOUD_PROJECT)"
    parser.add_argument("--project", metavar="ID", type=values.word, default=unset, help=project)
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter


def queue(options: argparse.Namespace) -> Queue:
    """The subscription that is meant.

    Raises:
        QueueMissing: That is not said.
    """
    wanted = getattr(options, "subscription", "") or os.environ.get("SUBSCRIPTION", "")
    project = getattr(options, "project", "") or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    return Queue(subscription_name(wanted, project))
