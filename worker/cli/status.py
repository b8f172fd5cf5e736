"""The command line of `worker status`."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from rich.console import Console

from publisher.command_line import Command, Options
from publisher.values import rfc3339
from worker.cli import service_options
from worker.cli.service_options import url_option
from worker.cli.tables import pairs
from worker.cli.verbs import run_to_end, without_settings
from worker.errors import ServiceUnreachable
from worker.operations.service_client import Service
from worker.operations.verdict import Facts, judge
from worker.operations.wording import NOT_KNOWN, ago, duration, rate, size
from worker.telemetry.status_format import Status

_WATCH_SECONDS: Final = 2.0
"""Pause between two looks of --watch."""

_INTRO: Final = """\
What the service does now: whether it serves, what is stuck and why, its rates, what is held, and its memory.
It asks the running service, and changes nothing. `console` shows the same on a page.

  python -m worker status              once
  python -m worker status --watch      again every two seconds, until Ctrl-C
  python -m worker status --json       what GET /status answers

exit codes: 0 it serves or stands by, 1 it is stuck or does not answer
"""


@click.command("status", cls=Command, help=_INTRO, epilog=service_options.EPILOG)
@url_option
@click.option("--watch", is_flag=True, help="look again and again, until Ctrl-C")
@click.option("--json", is_flag=True, help="print JSON, with --watch a line for each look")
@without_settings
def command(options: Options, environ: Mapping[str, str]) -> int:
    """Look and print; the exit code is of the last look."""
    url = service_options.service_url(options.url, environ)

    async def looking() -> int:
        async with service_options.connect(Service, url, environ) as service:
            if not options.watch:
                return _show(url, await service.status(), options)
            while True:
                try:
                    _show(url, await service.status(), options)
                except ServiceUnreachable as error:
                    _show(url, None, options, problem=str(error))
                await asyncio.sleep(_WATCH_SECONDS)

    return run_to_end(looking())


def _show(url: str, status: Status | None, options: Options, *, problem: str = "") -> int:
    now = datetime.now(UTC)
    verdict = judge(Facts(url=url, now=now, status=status, problem=problem))
    if options.json:
        print(msgspec.json.encode(status if status is not None else {"error": problem}).decode(), flush=True)
    else:
        console = Console()
        if options.watch and console.is_terminal:
            console.clear()
        rows = [("verdict", verdict.title), ("since", f"{ago(verdict.since, now)}")]
        rows += [(name, said) for name, said in (("cause", verdict.cause), ("next", verdict.step)) if said]
        if verdict.command:
            rows.append(("command", verdict.command))
        pairs(rows + ([] if status is None else _rows(status)))
        sys.stdout.flush()
    return 0 if verdict.kind in ("serving", "standing by") else 1


def _rows(status: Status) -> list[tuple[str, Any]]:
    recent = status.acknowledged["5m"]
    held = status.held
    rows: list[tuple[str, Any]] = [
        ("store", status.store),
        ("revision", f"{status.revision}, version {status.version}"),
        ("epoch", NOT_KNOWN if status.epoch is None else status.epoch),
        ("live generation", status.generation or NOT_KNOWN),
        ("lease renewed", NOT_KNOWN if status.lease_age_seconds is None else f"{duration(status.lease_age_seconds)} ago"),
        ("waiting successor", "none" if status.successor is None else status.successor.revision),
        ("acknowledged", ", ".join(f"{rate(each.per_second)} ({name})" for name, each in status.acknowledged.items())),
        ("to acknowledge", f"half in {duration(recent.p50_seconds)}, 99 % in {duration(recent.p99_seconds)} (5m)"),
        ("oldest unconfirmed", duration(status.oldest_unconfirmed_seconds)),
        ("held", f"{held.messages:,} of {held.messages_max:,}, {size(held.bytes)} of {size(held.bytes_max)}"),
        ("open rejections", _rejections(status)),
        ("database", f"{size(status.database.bytes)}, {size(status.database.disk_free_bytes)} free on its disk"),
        ("memory", f"{size(status.memory.bytes)} of {size(status.memory.limit_bytes)}"),
    ]
    return rows + [
        (stall.action, f"{stall.count:,} times since {rfc3339(stall.since)}: {stall.text}") for stall in status.trouble
    ]


def _rejections(status: Status) -> str:
    if status.rejections is None:
        return NOT_KNOWN
    return ", ".join(f"{found.count:,} {reason}" for reason, found in sorted(status.rejections.items())) or "none"
