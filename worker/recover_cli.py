"""The command line of `worker recover`."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from worker.config import Settings
from worker.errors import RestoreFailed
from worker.recovery import Plan, Recovery
from worker.tables import moment, pairs, rfc3339

_INTRO: Final = """\
Make an earlier state of the store the live one, for example after a deployment that wrote bad rows. It is safe while the
service runs: the running instance hands the lease over, and the next one starts from the recovered state.

First it prints what would be undone, and asks. What is live now is kept, and stays restorable until RETENTION_DAYS have
passed; so a recovery can itself be undone. The ids of the messages that were undone are written to a file.

  python -m worker recover --at 2h --dry-run
  python -m worker recover --at 2026-01-31T12:00:00Z --undone undone.txt
"""


def add(verbs: Any) -> None:
    """Add the command to the worker's parser."""
    parser = verbs.add_parser(
        "recover",
        help="make an earlier state the live one",
        description=_INTRO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--at", metavar="TIME", type=moment, required=True, help="the state at that time: RFC 3339, or 30m, 12h, 7d ago"
    )
    parser.add_argument(
        "--undone", metavar="FILE", type=Path, help="write the undone messages' ids there (default: undone-EPOCH.txt)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_recover)


def _recover(settings: Settings, options: argparse.Namespace) -> int:
    if options.undone is not None and options.undone.exists():
        raise RestoreFailed(f"{options.undone} is there already; name a new file for --undone")
    recovery = Recovery(settings, options.at, lambda line: print(line, file=sys.stderr))
    with Console(stderr=True).status("comparing"):
        plan = asyncio.run(recovery.plan())
    if options.dry_run or not (options.yes or _agreed(plan)):
        _show(plan, options, generation=None)
        return 0 if options.dry_run else 1
    with Console(stderr=True).status("recovering"):
        recovered = asyncio.run(recovery.recover())
    file = options.undone or Path(f"undone-{int(recovered.generation.rpartition('/')[2], 16)}.txt")
    with file.open("x") as undone:
        undone.writelines(f"{message_id}\n" for message_id in recovered.plan.undone.messages)
    _show(recovered.plan, options, generation=recovered.generation, file=file)
    return 0


def _agreed(plan: Plan) -> bool:
    if not sys.stdin.isatty():
        raise RestoreFailed("this undoes what is live: look at it with --dry-run, and add --yes to do it without a question")
    pairs(_rows(plan))
    return input("make the earlier state live? [y/N] ").strip().lower() in ("y", "yes")


def _show(plan: Plan, options: argparse.Namespace, *, generation: str | None, file: Path | None = None) -> None:
    done = [("made live", generation), ("ids of the undone messages", None if file is None else str(file))]
    if options.json:
        found = {
            "newest": plan.newest,
            "wanted": plan.wanted,
            "undone": plan.undone,
            "generation": generation,
            "file": file and str(file),
        }
        print(msgspec.json.encode(found).decode())
    else:
        pairs([*_rows(plan), *(done if generation else [])])


def _rows(plan: Plan) -> list[tuple[str, Any]]:
    undone = plan.undone
    return [
        ("live now", f"{plan.newest.generation}, transaction {plan.newest.txid} of {rfc3339(plan.newest.time)}"),
        ("wanted", f"{plan.wanted.generation}, transaction {plan.wanted.txid} of {rfc3339(plan.wanted.time)}"),
        ("users", f"{plan.newest.users:,} now, {plan.wanted.users:,} then"),
        ("messages undone", f"{len(undone.messages):,}: {_counts(undone.outcomes)}"),
        ("published between", f"{_time(undone.oldest_publish_time)} and {_time(undone.newest_publish_time)}"),
        ("retries undone", len(undone.retried)),
        ("discards undone", len(undone.discarded)),
    ]


def _counts(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"


def _time(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else rfc3339(datetime.fromtimestamp(milliseconds / 1000, UTC))
