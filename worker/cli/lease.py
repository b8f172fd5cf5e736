"""The command line of `worker lease`."""

import argparse
import asyncio
from typing import Any

import msgspec

from worker.cli.agreement import agreed
from worker.config import Settings
from worker.lease import record as lease_record
from worker.operations import lease as lease_commands
from worker.replica.bucket import opened


def add(verbs: Any) -> None:
    """Add the commands to the worker's parser."""
    raw = argparse.RawDescriptionHelpFormatter
    lease = verbs.add_parser("lease")
    lease_verbs = lease.add_subparsers(metavar="COMMAND", required=True)
    show = lease_verbs.add_parser(
        "show",
        help="who holds the lease, since when, what is live, who waits",
        description="Read the lease record and print it. Nothing is changed; it needs no lease.",
    )
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(command=_lease_show)
    break_ = lease_verbs.add_parser(
        "break",
        help="release the lease of a holder known to be dead",
        description="Release the lease, so that a waiting instance need not wait for LEASE_TTL_SECONDS.\n"
        "It watches the record that long first and refuses if the holder renews it. A holder that is alive after all\n"
        "stops at its next confirmation; what it acknowledged is in the bucket.",
        formatter_class=raw,
    )
    break_.add_argument("--yes", action="store_true", help="do it; without this, only say what would be done")
    break_.add_argument("--force", action="store_true", help="break it even if the holder is alive, and without watching")
    break_.set_defaults(command=_lease_break)


def _lease_show(settings: Settings, arguments: argparse.Namespace) -> int:
    with opened(settings.bucket, settings.prefix) as store:
        status = asyncio.run(lease_commands.show(store, timeout=settings.lease_read_timeout_seconds))
    if arguments.json:
        print(msgspec.json.encode(status).decode())
    else:
        width = max(len(label) for label, _ in status.rows())
        print("\n".join(f"{label:<{width}}  {value}" for label, value in status.rows()))
    return 0


def _lease_break(settings: Settings, arguments: argparse.Namespace) -> int:
    timeout = settings.lease_read_timeout_seconds
    with opened(settings.bucket, settings.prefix) as store:
        if not arguments.yes:
            record, _ = asyncio.run(lease_record.look(store, timeout=timeout))
            if record.state == "released":
                print(f"the lease of {store} is released already, at epoch {record.epoch}: there is nothing to break")
                return 0
            what = (
                f"this would release the lease of {record.holder or 'no holder'} ({record.revision}) "
                f"at epoch {record.epoch}, which is {record.state} now"
            )
            if not agreed(what, yes=False):
                return 1
        record = asyncio.run(
            lease_commands.break_(store, ttl=settings.lease_ttl_seconds, force=arguments.force, timeout=timeout, say=print)
        )
        print(f"the lease of {store} is released at epoch {record.epoch}")
    return 0
