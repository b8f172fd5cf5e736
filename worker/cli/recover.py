"""The command line of `worker recover`."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from rich.console import Console

from publisher import parameters
from publisher.command_line import Command, Options, json_option
from publisher.values import rfc3339
from worker.cli import replay
from worker.cli.agreement import agreed
from worker.cli.subscription_options import EPILOG, queue_of, subscription_options
from worker.cli.tables import pairs
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.errors import LeaseHeld, LeaseLost, RestoreFailed, StoreError, WorkerError
from worker.operations import checkpoints
from worker.operations.pubsub import Queue
from worker.operations.recovery import Plan, Recovery
from worker.operations.replay import Patience, Progress
from worker.operations.replay_point import replay_point
from worker.operations.undone import delete as delete_undone
from worker.operations.undone import write as write_undone
from worker.replica import bucket
from worker.replica.bucket import Bucket
from worker.replica.survey import survey

T = TypeVar("T")

_LIST_SECONDS: Final = 60.0
_INTRO: Final = """\
Make an earlier state of the store the live one, for example after a deployment that wrote bad rows. It is safe while the
service runs: the running instance hands the lease over, and the next one starts from the recovered state.

First it prints what would be undone, and asks. What is live now is kept, and stays restorable until RETENTION_DAYS have
passed; so a recovery can itself be undone. The ids of the messages that were undone are written to a file.

With --replay every message that was undone is delivered again: the subscription is sought to just before the oldest of them
was published, or else to the newest checkpoint that is old enough. --replay-from does without knowing what was undone.

  python -m worker recover --at 2h --dry-run
  python -m worker recover --at 2026-01-31T12:00:00Z --replay
"""


@click.command("recover", cls=Command, one_of=("--replay", "--replay-from"), help=_INTRO, epilog=EPILOG)
@click.option(
    "--at",
    metavar="TIME",
    type=parameters.MOMENT,
    required=True,
    help="the state at that time: RFC 3339, or 30m, 12h, 7d ago",
)
@click.option("--replay", is_flag=True, help="have what was undone delivered again")
@click.option(
    "--replay-from",
    metavar="TIME",
    type=parameters.MOMENT,
    help="have everything delivered again that was published then or later: a guess, for when the newest state is lost",
)
@click.option(
    "--undone", metavar="FILE", type=parameters.PATH, help="write the undone messages' ids there (default: undone-TIME.txt)"
)
@click.option("--dry-run", is_flag=True, help="print the plan and change nothing")
@click.option("--yes", is_flag=True, help="do not ask")
@replay.settle_option
@replay.start_option
@click.option(
    "--url", metavar="URL", type=parameters.ADDRESS, help="the service's address, for --replay (default: SERVICE_URL)"
)
@json_option
@subscription_options
@with_settings(
    quiet=True,
    on_postgresql="your provider restores to a time, then `worker replay --newer URL`; see docs/scaling.md",
)
def command(settings: Settings, options: Options) -> int:
    """Recover, and replay if that is asked for."""
    return _recover(settings, options)


def _recover(settings: Settings, options: Options) -> int:
    if options.undone is not None and options.undone.exists():
        raise RestoreFailed(f"{options.undone} is there already; name a new file with --undone")
    queue = queue_of(options) if options.replay or options.replay_from else None
    recovery = Recovery(settings, options.at, _say, blind=options.replay_from is not None)
    try:
        plan, to = _planned(settings, options, recovery, queue)
        if options.dry_run:
            return 0
        agreement = agreed("this would make the earlier state live, and undo what came after it", yes=options.yes)
    except KeyboardInterrupt:
        _say("nothing was changed")
        raise
    if not agreement:
        _say("nothing was changed")
        return 1
    now = datetime.now(UTC)
    file = _Undone(options.undone or Path(f"undone-{now:%Y%m%d-%H%M%S}.txt"), plan)
    try:
        generation = _keep(settings, plan, now)
        if to is not None:  # told before it is needed: from the switch to the replay there is nothing else to go by
            _say(f"should this break off once the older state is live, run it again, or: {_by_hand(to)}")
        with Console(stderr=True).status("recovering"):
            recovered = _made(recovery.recover())
    except (KeyboardInterrupt, WorkerError):
        _broken_off(settings, recovery, file, now)
        raise
    _say(f"{recovered.generation} is live")
    file.write(recovered.plan)
    try:
        _keep(settings, recovered.plan, now, generation)
    except StoreError as error:  # the recovery is made by now, and its replay is still to come
        _say(f"the list in the bucket holds the ids as of the plan, and not the last ones: {error}")
    done, code = None, 0
    if queue is not None:
        to = _replay_to_after(settings, options, recovered.plan, queue, planned=to)
        done = _replayed(settings, options, queue, to, undone=recovered.plan.undone_count) if to is not None else None
        code = int(to is not None and (done is None or not done.brought_back(recovered.plan.undone_count)))
    _show(recovered.plan, options, to=to, generation=recovered.generation, file=file.path, done=done)
    return code


def _planned(
    settings: Settings, options: Options, recovery: Recovery, queue: Queue | None
) -> tuple[Plan, datetime | str | None]:
    """Find out what would be undone and replayed from where, and print it: alone, or for the question that follows."""
    with Console(stderr=True).status("comparing"):
        plan = _made(recovery.plan())
        # Found out before anything is changed: a recovery that nothing can be replayed onto is not what was asked for.
        to = _replay_to(settings, options, plan, queue)
        if queue is not None and to is not None:
            replay.look(settings, queue, to, url=options.url, environ=os.environ)
    if options.dry_run:
        _show(plan, options, to=to)
    elif not options.yes and not options.json:
        pairs(_rows(plan, to))
        sys.stdout.flush()
    return plan, to


def _broken_off(settings: Settings, recovery: Recovery, file: "_Undone", now: datetime) -> None:
    """Say what a recovery that broke off has left; where it has changed nothing, its lists go as well."""
    if recovery.unchanged:
        file.path.unlink(missing_ok=True)
        store = Bucket(settings.bucket, settings.prefix)
        try:
            with contextlib.suppress(StoreError):  # it lists what is not undone, and can do no harm
                run_to_end(delete_undone(store, now))
        finally:
            store.close()
        _say("nothing was changed")
    elif recovery.unchanged is None:
        _say(f"it is not known which state is live: look with `worker replica`; {file.path} has the ids to be undone")
    else:
        _say(f"the earlier state is live all the same; {file.path} has the ids of the undone messages")


def _made(work: Coroutine[Any, Any, T]) -> T:
    try:
        return run_to_end(work)
    except LeaseLost as lost:  # in order for a service, which then ends with 0; here what was asked for is not done
        raise LeaseHeld(f"{lost}. Look at what is live with `worker replica`, and run it again") from None
    except OSError as error:
        raise RestoreFailed(
            f"{tempfile.gettempdir()} cannot be written: {error.strerror}; have room there for the database four times, or "
            "name another folder with TMPDIR"
        ) from error


class _Undone:
    """The file of the undone messages' ids, made before anything is changed, so that it can be written afterwards.

    Raises:
        RestoreFailed: It cannot be made, or is there already.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        try:
            with path.open("x") as made:
                made.writelines(_lines(plan))
        except OSError as error:
            raise RestoreFailed(f"{path} cannot be written: {error.strerror}; name a new file with --undone") from None

    def write(self, plan: Plan) -> None:
        """Replace the ids by what was undone in the end. The recovery is made by now, and no error here stops it."""
        try:
            self.path.write_text("".join(_lines(plan)))
        except OSError as error:
            _say(f"{self.path} holds the ids as of the plan, and not the last ones: {error.strerror}")


def _keep(settings: Settings, plan: Plan, now: datetime, generation: int = 0) -> int:
    """Write the undone messages' ids into the bucket; its generation. The errors are those of `undone.write`."""
    store = Bucket(settings.bucket, settings.prefix)
    try:
        messages = [] if plan.undone is None else list(plan.undone.messages)
        return run_to_end(write_undone(store, now, messages, if_generation=generation))
    finally:
        store.close()


def _lines(plan: Plan) -> list[str]:
    return [] if plan.undone is None else [f"{message_id}\n" for message_id in plan.undone.messages]


def _replay_to(settings: Settings, options: Options, plan: Plan, queue: Queue | None) -> datetime | str | None:
    if options.replay_from is not None:
        return options.replay_from  # type: ignore[no-any-return]  # of a namespace
    return None if queue is None else run_to_end(_point(settings, plan, queue))


def _replay_to_after(
    settings: Settings, options: Options, plan: Plan, queue: Queue, *, planned: datetime | str | None
) -> datetime | str | None:
    """The point once the recovery is made: the service had gone on, and what it acknowledged meanwhile is undone as well."""
    try:
        return _earlier(planned, _replay_to(settings, options, plan, queue))
    except WorkerError as error:
        if planned is None:
            raise
        _say(f"the point to replay from cannot be looked up again, so the planned one is taken: {error}")
        return planned


def _by_hand(to: datetime | str) -> str:
    return "python -m worker replay " + (f"--from {rfc3339(to)}" if isinstance(to, datetime) else f"--snapshot {to}")


def _earlier(planned: datetime | str | None, found: datetime | str | None) -> datetime | str | None:
    if isinstance(planned, datetime) and isinstance(found, datetime):
        return min(planned, found)
    return found or planned


def _replayed(settings: Settings, options: Options, queue: Queue, to: datetime | str, *, undone: int) -> Progress | None:
    _say(f"replaying; should this break off: {_by_hand(to)}")
    try:
        patience = Patience(options.settle, options.start)
        done = replay.follow(settings, queue, to, undone=undone, patience=patience, url=options.url, environ=os.environ)
    except WorkerError as error:
        _say(f"the recovery is made, and not everything was replayed: {error}")
        return None
    if not done.brought_back(undone):
        _say(f"only {done.total:,} of {undone:,} undone messages came: look at the queue, or replay from an earlier time")
    return done


async def _point(settings: Settings, plan: Plan, queue: Queue) -> datetime | str | None:
    assert plan.undone is not None  # only a blind recovery does without
    store = Bucket(settings.bucket, settings.prefix).patient(bucket.COMMAND_PATIENCE_SECONDS)
    try:
        found = await survey(store, timeout=_LIST_SECONDS)
        known = await checkpoints.listed(queue, store, timeout=_LIST_SECONDS)
        subscription = await queue.look()
    finally:
        store.close()
    reach = None if subscription.ordered and "PUBSUB_EMULATOR_HOST" in os.environ else subscription.reach
    generations = (*found.history, *found.others)
    return replay_point(plan.undone, plan.wanted, generations, known, reach=reach, now=datetime.now(UTC))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _show(
    plan: Plan,
    options: Options,
    *,
    to: datetime | str | None,
    generation: str | None = None,
    file: Path | None = None,
    done: Progress | None = None,
) -> None:
    if options.json:
        found = {
            "newest": plan.newest,
            "wanted": plan.wanted,
            "undone": plan.undone,
            "replay_from": to,
            "generation": generation,
            "file": file and str(file),
            "redelivered": None if done is None else {"total": done.total, "outcomes": done.outcomes},
        }
        print(msgspec.json.encode(found).decode())
        return
    rows = _rows(plan, to)
    if generation is not None:
        rows += [("made live", generation), ("ids of the undone messages", str(file) if plan.undone is not None else None)]
    if done is not None:
        rows.append(("redelivered", f"{done.total:,}: {_counts(done.outcomes)}"))
    pairs(rows)


def _rows(plan: Plan, to: datetime | str | None) -> list[tuple[str, Any]]:
    newest, wanted, undone = plan.newest, plan.wanted, plan.undone
    rows: list[tuple[str, Any]] = [("wanted", f"{wanted.generation}, transaction {wanted.txid} of {rfc3339(wanted.time)}")]
    if newest is not None:
        rows.insert(0, ("live now", f"{newest.generation}, transaction {newest.txid} of {rfc3339(newest.time)}"))
    if newest is not None and undone is not None:
        rows += [
            *(
                (f"rows of {name}", f"{count:,} now, {wanted.rows.get(name, 0):,} then")
                for name, count in newest.rows.items()
            ),
            ("messages undone", f"{len(undone.messages):,}: {_counts(undone.outcomes)}"),
            *([("of these, before", f"{undone.before:,}, by an earlier recovery")] if undone.before else []),
            ("published between", f"{_time(undone.oldest_publish_time)} and {_time(undone.newest_publish_time)}"),
            ("retries undone", len(undone.retried)),
            ("discards undone", len(undone.discarded)),
        ]
    else:
        rows.append(
            ("messages undone", "not known: the newest state cannot be restored, so the time to replay from is a guess")
        )
    if to is not None:
        rows.append(("replay from", to))
    return rows


def _counts(outcomes: Any) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"


def _time(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else rfc3339(datetime.fromtimestamp(milliseconds / 1000, UTC))
