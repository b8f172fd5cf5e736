"""The command line of `worker drill`."""

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from publisher import parameters
from publisher.command_line import Command, Group, Options, json_option
from worker.cli import service_options
from worker.cli.tables import pairs, table
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.errors import ConfigError, StoreError
from worker.events.configured import catalog_of
from worker.operations import drill as drill_commands
from worker.operations.drill import CountedService, Driller
from worker.replica import bucket, drill_record
from worker.replica.bucket import Bucket
from worker.replica.drill_record import Drill
from worker.replica.litestream import find_binary

EXIT_CODES: Final = {"proved": 0, "failed": 1, "inconclusive": 3}

_REQUEST_SECONDS: Final = 60.0
"""Longest a look at the bucket may take; one of them lists the whole store."""
_SHOWN: Final = ("verdict", "reason", "at", "generation", "txid", "time", "age_seconds", "seconds")
_COUNTED: Final = ("erased", "receipts", "rejections")

_DRILL: Final = """\
Prove that the live generation can be restored: restore it into scratch, check its integrity, and compare it with the running
service, which goes on. The outcome is kept in the bucket as drill.json. Nothing else is changed, and no lease is needed.

  python -m worker drill                 once; a scheduler can run it every day
  python -m worker drill --max-age 24h   failed also if nothing was written for a day
  python -m worker drill show            the last one

exit codes: 0 proved, 1 failed, 3 inconclusive: there was nothing to compare with, or the bucket gave no answer

environment: SERVICE_URL and who asks, as for `rejections`
"""

log = logging.getLogger(__name__)


@click.group("drill", cls=Group, invoke_without_command=True, help=_DRILL)
@service_options.url_option
@click.option(
    "--scratch",
    metavar="DIR",
    type=parameters.PATH,
    help="folder with room for the database twice (default: the system's own)",
)
@click.option(
    "--max-age",
    metavar="TIME",
    type=parameters.MOMENT,
    help="oldest the last transaction may be: 30m, 12h, 7d ago, or RFC 3339 (default: any age)",
)
@json_option
@with_settings(on_postgresql="your provider restores to a time; see docs/scaling.md")
def command(settings: Settings, options: Options) -> int:
    """Run a drill, record it and print it."""
    scratch = options.scratch or Path(tempfile.gettempdir())
    if not scratch.is_dir():
        raise ConfigError(f"--scratch {scratch} is no folder; name one that exists")
    try:
        drill = run_to_end(_run(settings, options, scratch))
    except asyncio.CancelledError:
        print("stopped before the end; nothing is recorded", file=sys.stderr)
        return EXIT_CODES["inconclusive"]
    _log(drill)
    _print(drill, as_json=options.json)
    return EXIT_CODES[drill.verdict]


async def _run(settings: Settings, options: Options, scratch: Path) -> Drill:
    task = asyncio.current_task()
    assert task is not None
    # Cancelled, it removes its scratch; by default SIGTERM, a scheduler's way to end it, would leave that behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    url = service_options.service_url(options.url, os.environ)
    store = Bucket(settings.bucket, settings.prefix).patient(bucket.COMMAND_PATIENCE_SECONDS)
    try:
        async with service_options.connect(CountedService, url, os.environ) as service:
            drill = await Driller(
                store=store,
                catalog=catalog_of(settings),
                service=service,
                scratch=scratch,
                binary=find_binary(settings.litestream_bin),
                oldest=options.max_age,
                request_seconds=_REQUEST_SECONDS,
                restore_seconds=settings.restore_timeout_seconds,
                say=lambda line: print(line, file=sys.stderr),
            ).run()
        try:
            await drill_commands.record(store, drill, timeout=_REQUEST_SECONDS)
        except StoreError as error:  # the verdict stands all the same
            log.warning("the drill is not recorded: %s", error, extra={"action": "drill.unrecorded"})
    finally:
        store.close()
    return drill


@command.command("show", cls=Command, help="Print what drill.json says.", short_help="the drill that was recorded last")
@json_option
@with_settings(on_postgresql="your provider restores to a time; see docs/scaling.md")
def _show(settings: Settings, options: Options) -> int:
    store = Bucket(settings.bucket, settings.prefix).patient(bucket.COMMAND_PATIENCE_SECONDS)
    try:
        drill = run_to_end(drill_record.latest(store, timeout=_REQUEST_SECONDS))
    finally:
        store.close()
    _print(drill, as_json=options.json)
    return 0


def _log(drill: Drill) -> None:
    said = (drill.verdict, drill.generation or "no generation", drill.seconds, drill.reason)
    if drill.verdict == "proved":
        log.info("drill %s: %s in %.1f s: %s", *said, extra={"action": "drill.proved"})
    elif drill.verdict == "failed":
        log.error("drill %s: %s in %.1f s: %s", *said, extra={"action": "drill.failed"})
    else:
        log.warning("drill %s: %s in %.1f s: %s", *said, extra={"action": "drill.inconclusive"})


def _print(drill: Drill, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(drill).decode())
        return
    pairs([(name.replace("_", " "), getattr(drill, name)) for name in _SHOWN])
    sides = [counts for counts in (drill.before, drill.restored, drill.after) if counts is not None]
    if sides:
        print()
        tables = dict.fromkeys(name for counts in sides for name in counts.rows)
        rows = [(f"rows of {name}", *(counts.rows.get(name, 0) for counts in sides)) for name in tables]
        table(_sides(drill), rows + [(name, *(getattr(counts, name) for counts in sides)) for name in _COUNTED])


def _sides(drill: Drill) -> Sequence[str]:
    found = {"service before": drill.before, "restored": drill.restored, "service after": drill.after}
    return ("", *(name for name, counts in found.items() if counts is not None))
