"""The command line of `worker replay`."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from publisher import parameters
from publisher.command_line import INTERRUPTED, Command, Options, json_option
from publisher.values import lasting, rfc3339
from worker.cli import service_options
from worker.cli.agreement import agreed
from worker.cli.subscription_options import EPILOG, queue_of, subscription_options
from worker.cli.tables import pairs
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.errors import ConfigError, ServiceUnreachable
from worker.operations import checkpoints
from worker.operations.pubsub import Queue
from worker.operations.replay import POLL_SECONDS, FollowedService, Patience, Plan, Progress, plan, replay
from worker.operations.replay_point import MARGIN
from worker.replica import bucket
from worker.replica.bucket import Bucket

_REQUEST_SECONDS: Final = 60.0
"""Longest one look at the bucket may take."""
_LINE_SECONDS: Final = 5.0
"""Least time between two lines about the progress where there is no terminal for a bar."""
_STARTING_SECONDS: Final = 120.0
"""How long a service that has just been restarted may stay silent: a restore of a large database fits in."""

WAIT: Final = parameters.seconds(3600)
"""The type of --settle and --start."""
settle_option: Final = click.option(
    "--settle",
    metavar="SECONDS",
    type=WAIT,
    default=Patience().settle,
    help=f"how long none must have come [{Patience().settle:g}]",
)
start_option: Final = click.option(
    "--start",
    metavar="SECONDS",
    type=WAIT,
    default=Patience().start,
    help=f"the same, while there were fewer than receipts [{Patience().start:g}]",
)

_INTRO: Final = """\
Have Pub/Sub deliver messages again: those of a checkpoint's snapshot, or all since a time. What has its receipt is absorbed
as a duplicate; what a restore or a recovery has undone takes effect again. It is safe while the service runs.

First it prints what will come, and asks. Then it seeks and follows the redeliveries, until none of a message published
before the seek has come for --settle seconds (--start seconds, while there were fewer than there are receipts).

  python -m worker replay --snapshot before-deploy --dry-run
  python -m worker replay --snapshot projects/acme/snapshots/friday
  python -m worker replay --from 24h --yes
  python -m worker replay --newer postgresql://worker@10.0.0.5/users

A time needs a subscription or a topic that retains acknowledged messages; a checkpoint needs nothing.
"""


def look(settings: Settings, queue: Queue, to: datetime | str, *, url: str | None, environ: Mapping[str, str]) -> Plan:
    """Plan a seek for a command that will do it later. The errors are those of `plan`."""

    async def run() -> Plan:
        async with _service(settings, url, environ) as service:
            return await plan(queue, service, to, now=datetime.now(UTC))

    return run_to_end(run())


def follow(
    settings: Settings,
    queue: Queue,
    to: datetime | str,
    *,
    undone: int,
    patience: Patience,
    url: str | None,
    environ: Mapping[str, str],
) -> Progress:
    """Seek without asking, and show the progress; for a command that has asked already, and has just restarted the service.

    Args:
        settings: The service's.
        queue: The subscription.
        to: A time, or a snapshot's full name.
        undone: Messages that are expected although a recovery has undone their receipts.
        patience: When it has caught up.
        url: The service's address, if not SERVICE_URL.
        environ: The environment variables.

    Raises:
        QueueError: As for `plan` and `replay`.
        ServiceUnreachable: The service does not answer within two minutes, or goes away for ten.
    """

    async def run() -> Progress:
        async with _service(settings, url, environ) as service:
            until = time.monotonic() + _STARTING_SECONDS
            while True:
                try:
                    planned = await plan(queue, service, to, now=datetime.now(UTC))
                    break
                except ServiceUnreachable:
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(POLL_SECONDS)
            return await _shown(queue, service, planned, patience, undone=undone)

    return run_to_end(run())


@click.command("replay", cls=Command, one_of=("--snapshot", "--from", "--newer"), required=True, help=_INTRO, epilog=EPILOG)
@click.option(
    "--snapshot", metavar="NAME", type=parameters.WORD, help="a checkpoint's name, or projects/PROJECT/snapshots/ID"
)
@click.option(
    "since", "--from", metavar="TIME", type=parameters.MOMENT, help="published then or later: RFC 3339, or 30m, 12h, 7d ago"
)
@click.option(
    "--newer",
    metavar="URL",
    type=parameters.WORD,
    help="what this PostgreSQL database has and DATABASE_URL, restored by the provider, has not",
)
@click.option("--dry-run", is_flag=True, help="print the plan and change nothing")
@click.option("--yes", is_flag=True, help="do not ask")
@settle_option
@start_option
@service_options.url_option
@json_option
@subscription_options
@with_settings()
def command(settings: Settings, options: Options) -> int:
    """Replay, and follow what comes."""
    if options.newer is not None:
        options.since = _since_the_restore(settings, options.newer)
        if options.since is None:
            text = "nothing to replay: the restored database has a receipt of every message that the newer one has"
            print('{"plan":null}' if options.json else text)
            return 0
    return _planned_and_done(settings, options)


def _planned_and_done(settings: Settings, options: Options) -> int:
    queue = queue_of(options)

    async def planning() -> Plan:
        async with _service(settings, options.url, os.environ) as service:
            return await plan(queue, service, await _target(settings, options), now=datetime.now(UTC))

    async def replaying(planned: Plan) -> Progress:
        async with _service(settings, options.url, os.environ) as service:
            return await _shown(queue, service, planned, Patience(options.settle, options.start))

    planned = run_to_end(planning())
    if not options.json:
        pairs(_rows(planned))
        sys.stdout.flush()  # the progress goes to standard error
    if options.dry_run:
        done = None
    elif not agreed("this would seek the subscription, as --dry-run shows", yes=options.yes):
        print("nothing was sought", file=sys.stderr)
        return 1
    else:
        try:
            done = run_to_end(replaying(planned))
        except KeyboardInterrupt:
            print("stopped; what was sought goes on coming, and before-replay-... stays as the way back", file=sys.stderr)
            return INTERRUPTED
    if options.json:
        print(msgspec.json.encode(_found(planned, done)).decode())
    elif done is not None:
        pairs(_summary(done))
    return 0


async def _shown(queue: Queue, service: FollowedService, planned: Plan, patience: Patience, *, undone: int = 0) -> Progress:
    with _Shown(Console(stderr=True), planned.receipts.total + undone) as shown:
        return await replay(queue, service, planned, patience=patience, say=shown.say, show=shown.show, undone=undone)


def _service(settings: Settings, url: str | None, environ: Mapping[str, str]) -> FollowedService:
    return service_options.connect(FollowedService, service_options.service_url(url, environ), environ)


def _since_the_restore(settings: Settings, newer: str) -> datetime | None:
    """From when on messages are missing in DATABASE_URL's database that the one before the provider's restore has."""
    from worker.operations.move import server_at  # they load PostgreSQL's driver
    from worker.operations.provider_restore import missing

    if not settings.many_writers:
        raise ConfigError(
            "DATABASE_URL is not set: --newer compares two PostgreSQL databases; for a bucket `worker recover --replay` "
            "finds the time itself"
        )
    before = server_at(settings, newer, settings.database_password_file or None)
    found = missing(newer=before, older=server_at(settings, settings.database_url, settings.database_password_file or None))
    if found.replay_from is not None:
        print(f"{found.messages:,} messages are missing; the oldest: {rfc3339(found.replay_from + MARGIN)}", file=sys.stderr)
    return found.replay_from


async def _target(settings: Settings, options: Options) -> datetime | str:
    if options.since is not None:
        return options.since  # type: ignore[no-any-return]  # of a namespace
    if "/" in options.snapshot:
        return str(options.snapshot)
    store = Bucket(settings.bucket, settings.prefix).patient(bucket.COMMAND_PATIENCE_SECONDS)
    try:
        return (await checkpoints.find(store, options.snapshot, timeout=_REQUEST_SECONDS)).snapshot
    finally:
        store.close()


def _found(planned: Plan, done: Progress | None) -> dict[str, Any]:
    if done is None:
        return {"plan": planned}
    redelivered = {"total": done.total, "outcomes": done.outcomes}
    return {
        "plan": planned,
        "redelivered": redelivered,
        "instances": len(done.instances),
        "seconds": round(done.seconds, 3),
    }


def _rows(planned: Plan) -> list[tuple[str, Any]]:
    back = datetime.now(UTC) - planned.since
    receipts = planned.receipts
    topic = lasting(planned.topic_retention) if planned.topic_retention else "none"
    return [
        ("subscription", planned.subscription),
        ("seek to", planned.to),
        ("reaches back to", f"{rfc3339(planned.since)}, {lasting(back)} ago"),
        ("snapshot expires", planned.expires),
        ("receipts since then", f"{receipts.total:,}: {_counts(receipts.outcomes)}"),
        ("published between", f"{_time(receipts.oldest_publish_time)} and {_time(receipts.newest_publish_time)}"),
        ("retains acknowledged", "yes" if planned.retains_acknowledged else "no"),
        ("retention", f"{lasting(planned.retention)}; topic: {topic}"),
    ]


def _summary(done: Progress) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("redelivered", f"{done.total:,}: {_counts(done.outcomes)}"),
        ("seconds", f"{done.seconds:.1f}"),
        ("rate", f"{_rate(done):,.0f} a second"),
    ]
    if len(done.instances) > 1:
        rows.append(("instances", f"{len(done.instances)}; what one handled just before its end is not counted"))
    if done.total < done.expected:
        rows.append(("fewer than receipts", f"{done.expected - done.total:,}: not in the snapshot, or not retained"))
    return rows


class _Shown:
    """The progress: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, expected: int) -> None:
        self._console, self._said = console, time.monotonic()
        self._bar = Bar(
            TextColumn("redelivered"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=expected, detail="")

    def __enter__(self) -> "_Shown":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """How far it has come."""
        detail = f"{_rate(progress):,.0f}/s  {_counts(progress.outcomes)}  at {_time(progress.last_publish_time)}"
        detail = f"waiting: {progress.unreachable}" if progress.unreachable else detail
        self._bar.update(self._task, completed=progress.total, total=max(progress.total, progress.expected), detail=detail)
        if not self._console.is_terminal and time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"{progress.total:,} of {progress.expected:,} redelivered  {detail}")


def _rate(progress: Progress) -> float:
    return progress.total / progress.seconds if progress.seconds else 0.0


def _counts(outcomes: Any) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"


def _time(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else rfc3339(datetime.fromtimestamp(milliseconds / 1000, UTC))
