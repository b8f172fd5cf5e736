"""The command line of `worker rejections`: options, tables for people, JSON for programs."""

import base64
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from publisher import command_line, parameters, values
from publisher.command_line import Options, json_option
from publisher.values import age, counted
from worker.cli.agreement import agreed
from worker.cli.service_options import EPILOG, asking, url_option
from worker.cli.tables import lines, pairs, plain
from worker.database.models import REASONS
from worker.errors import ServiceRefused
from worker.operations.service_client import Service, Wanted, export

_NAMED_MOST: Final = 10
"""Most message ids in the question whether to discard."""

_INTRO: Final = """\
Messages that could not have their effect, kept with the reason: look at them, and end each in one of three ways.

  the worker was corrected:     python -m worker rejections retry ID
  one message must be corrected: python -m worker rejections retry ID \\
                                   --corrected FILE
  many must be corrected:       python -m worker rejections export bad.jsonl
                                edit the file's lines
                                python -m publisher load bad.jsonl --rejects rest.jsonl
                                python -m worker rejections discard --yes \\
                                   --file bad.jsonl --except rest.jsonl
  it is not wanted:             python -m worker rejections discard ID --yes

These commands ask the running service, which is the one writer; they need neither REPLICA_URL nor a restart.
"""
_RETRY: Final = """\
Handle messages once more, as they were published, oldest first, and say the outcome of each. One that still cannot have its
effect stays open. What is stored is overwritten by a conflict alone, and only with --overwrite.
"""
_DISCARD: Final = "Give messages up: they stay without effect, however often they come."
_EXPORT: Final = """\
Write rejections as JSON Lines to FILE, which does not exist yet, or to standard output (-). Correct the lines, publish them
with `python -m publisher load FILE`, and discard the rejections. Without an ID it writes every open one.
"""

_F = TypeVar("_F", bound=Callable[..., Any])


class Command(command_line.Command):
    """A command that asks the running service."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, epilog=EPILOG, **kwargs)


def _filters(body: _F) -> _F:
    codes = click.Choice([*map(str, REASONS)])
    for option in reversed(
        (
            click.option("--reason", type=codes, metavar="CODE", help=f"one of {', '.join(REASONS)}"),
            click.option(
                "--since",
                type=parameters.UTC_TEXT,
                metavar="TIME",
                help="received then or later: RFC 3339, or 30m, 12h, 7d ago",
            ),
            click.option("--until", type=parameters.UTC_TEXT, metavar="TIME", help="received before then"),
        )
    ):
        body = option(body)
    return body


_ids: Final = click.argument("ids", metavar="[ID]...", nargs=-1, type=parameters.MESSAGE_ID)
_every: Final = click.option("--all", is_flag=True, help="every open one")
_resolved: Final = click.option("--all", is_flag=True, help="the resolved ones as well")


@click.group("rejections", cls=command_line.Group, help=_INTRO)
def command() -> None:
    """Look at rejected messages, and end them."""


@command.command("list", cls=Command, help="List rejections, oldest first.", short_help="a table of the open ones")
@url_option
@_resolved
@_filters
@json_option
@asking
async def _list(service: Service, options: Options) -> int:
    rows = [row async for row in service.each(_wanted(options, resolved=options.all))]
    if options.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print("no rejections")
        return 0
    now = datetime.now(UTC)
    print(_summary(rows, now))
    shown = ("message_id", "reason", *(("resolution",) if options.all else ()))
    lines([[*(row[name] for name in shown), _age(row, now), row["detail"]] for row in rows])
    return 0


def _summary(rows: Sequence[Mapping[str, Any]], now: datetime) -> str:
    """One line: 12 open: 11 conflict, 1 unknown_event; oldest 4 min."""
    waiting = [row for row in rows if row["resolution"] is None]
    reasons = Counter(row["reason"] for row in waiting).most_common()
    parts = [f"{len(waiting):,} open"]
    if waiting:
        parts[0] += ": " + ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        parts.append(f"oldest {_age(min(waiting, key=lambda row: str(row['received_at'])), now)}")
    if len(rows) > len(waiting):
        parts.append(f"{len(rows) - len(waiting):,} resolved")
    return "; ".join(parts)


def _age(row: Mapping[str, Any], now: datetime) -> str:
    return age(now - datetime.fromisoformat(row["received_at"]))


@command.command("show", cls=Command, help="Show one rejection, with its data.", short_help="everything that is kept of one")
@url_option
@click.argument("id", metavar="ID", type=parameters.MESSAGE_ID)
@json_option
@asking
async def _show(service: Service, options: Options) -> int:
    found = await service.whole(options.id)
    if options.json:
        print(json.dumps(found))
        return 0
    pairs([(name.replace("_", " "), value) for name, value in (found | {"data": _text(found["data"])}).items()])
    return 0


def _text(data: str) -> str:
    try:
        return base64.b64decode(data).decode()
    except UnicodeDecodeError:
        return f"{data} (base64: it is no text)"


@command.command("retry", cls=Command, help=_RETRY, short_help="handle messages once more")
@url_option
@_ids
@_every
@click.option("--overwrite", is_flag=True, help="the message of a conflict is right: it replaces what is stored")
@click.option(
    "--corrected", metavar="FILE", type=parameters.PATH, help="handle this content in the place of one message's data"
)
@_filters
@json_option
@asking
async def _retry(service: Service, options: Options) -> int:
    ids = await _chosen(service, options)
    corrected = _corrected(options, ids)

    async def retry(message_id: str) -> str:
        return await service.retry(message_id, corrected, overwrite=options.overwrite)

    return await _resolve(service, options, retry, ids, open_after=("rejected", "conflict"))


def _corrected(options: Options, ids: Sequence[str]) -> bytes | None:
    if options.corrected is None:
        return None
    if len(ids) != 1:
        raise ServiceRefused("--corrected is the data of one message: name its id; nothing was changed")
    try:
        data: bytes = options.corrected.read_bytes()
    except OSError as error:
        raise ServiceRefused(
            f"cannot read {options.corrected}: {error.strerror}; name a file with the message's data"
        ) from None
    if not data:
        raise ServiceRefused(f"{options.corrected} is empty: that would be a retry as it was published; nothing was changed")
    return data


@command.command("discard", cls=Command, help=_DISCARD, short_help="give messages up")
@url_option
@_ids
@_every
@click.option("--file", metavar="FILE", type=parameters.PATH, help="what `export` wrote: every message in it")
@click.option(
    "except_",
    "--except",
    metavar="FILE",
    type=parameters.PATH,
    help="with --file: but none that `load --rejects` wrote there",
)
@click.option("--yes", is_flag=True, help="do it; without this, only say what would be discarded")
@_filters
@json_option
@asking
async def _discard(service: Service, options: Options) -> int:
    ids = await _in_file(service, options) if options.file is not None else await _chosen(service, options)
    if not ids and not options.json:
        print("nothing to discard")
    if not ids:
        return 0
    named = ", ".join(map(plain, ids[:_NAMED_MOST]))
    if len(ids) > _NAMED_MOST:
        named += f" and {len(ids) - _NAMED_MOST:,} more"
    if not agreed(f"this would discard {counted(len(ids), 'message')} for good: {named}", yes=options.yes):
        return 1
    return await _resolve(service, options, service.discard, ids)


@command.command("export", cls=Command, help=_EXPORT, short_help="write them to a file that you correct and load")
@url_option
@click.argument("file", metavar="FILE", type=parameters.PATH)
@_ids
@_resolved
@_filters
@json_option
@asking
async def _export(service: Service, options: Options) -> int:
    console = Console(stderr=True)
    piped = str(options.file) == "-"
    if options.ids and (options.all or _wanted(options) != Wanted()):
        raise ServiceRefused("name message ids, or choose with --reason, --since, --until and --all; nothing was written")
    try:
        with console.status("exporting") as status:
            wanted = options.ids or _wanted(options, resolved=options.all)
            with nullcontext(sys.stdout.buffer) if piped else options.file.open("xb") as file:
                count = await export(service, wanted, file, lambda done: status.update(f"exporting: {done:,}"))
                file.flush()
    except BrokenPipeError:  # the reader has closed
        raise
    except OSError as error:
        raise ServiceRefused(
            f"cannot write {options.file}: {error.strerror}; name a new file in a folder that exists"
        ) from None
    if piped:
        print(f"{count:,} exported", file=sys.stderr)
    elif options.json:
        print(json.dumps({"exported": count, "file": str(options.file)}))
    else:
        print(
            f"{count:,} exported; correct {options.file}, then: python -m publisher load {options.file} --rejects rest.jsonl"
        )
        print(f"and at last: python -m worker rejections discard --file {options.file} --except rest.jsonl")
    return 0


async def _resolve(
    service: Service,
    options: Options,
    change: Callable[[str], Awaitable[str]],
    ids: Sequence[str],
    open_after: tuple[str, ...] = (),
) -> int:
    failed = False
    for message_id in ids:
        try:
            result = {"message_id": message_id, "outcome": await change(message_id)}
            failed = failed or result["outcome"] in open_after
        except ServiceRefused as error:  # this one; the others are not its fault
            result, failed = {"message_id": message_id, "error": str(error)}, True
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            print(f"{plain(message_id)}  {result.get('outcome') or result['error']}", flush=True)
    return int(failed)


async def _in_file(service: Service, options: Options) -> list[str]:
    """The ids that an export names, and that are open still."""
    if options.ids or options.all or _wanted(options) != Wanted():
        raise ServiceRefused("--file chooses the messages: name no others beside it; nothing was changed")
    left_out = set(_exported(options.except_)) if options.except_ is not None else set()
    named = [each for each in _exported(options.file) if each not in left_out]
    waiting = {row["message_id"] async for row in service.each(Wanted())}
    resolved = sum(each not in waiting for each in named)
    if resolved:
        print(f"{counted(resolved, 'message')} of {plain(str(options.file))} resolved already, or gone", file=sys.stderr)
    return [each for each in named if each in waiting]


def _exported(path: Path) -> list[str]:
    """The message ids of the lines that `export` wrote, corrected or not, each once."""
    ids: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    ids[_rejection_of(text, f"line {number} of {path}")] = None
    except OSError as error:
        raise ServiceRefused(f"cannot read {path}: {error.strerror}; nothing was changed") from None
    return list(ids)


def _rejection_of(text: bytes, where: str) -> str:
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        return values.message_id(json.loads(text)["_rejection"]["message_id"])
    raise ServiceRefused(f"{where} names no rejection: give a file that `rejections export` wrote; nothing was changed")


async def _chosen(service: Service, options: Options) -> list[str]:
    if getattr(options, "except_", None) is not None:
        raise ServiceRefused("--except goes with --file; nothing was changed")
    wanted = _wanted(options)
    filtered = wanted != Wanted()
    if bool(options.ids) + (filtered or options.all) != 1:
        raise ServiceRefused(
            "name message ids, or choose with --reason, --since and --until, or take --all; nothing was changed"
        )
    if options.ids:
        return list(options.ids)
    found = [row async for row in service.each(wanted)]
    return [row["message_id"] for row in sorted(found, key=lambda row: str(row["publish_time"]))]


def _wanted(options: Options, *, resolved: bool = False) -> Wanted:
    return Wanted(reason=options.reason, since=options.since, until=options.until, resolved=resolved)
