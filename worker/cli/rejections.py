"""The command line of `worker rejections`: options, tables for people, JSON for programs."""

import argparse
import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

from rich.console import Console

from publisher import values
from publisher.values import counted, rfc3339
from worker.cli import service_options
from worker.cli.agreement import agreed
from worker.cli.tables import pairs, plain, table
from worker.database.models import REASONS
from worker.errors import ServiceRefused
from worker.operations import identity
from worker.operations.service_client import Service, Wanted, export

ENVIRONMENT: Final[Mapping[str, str]] = {
    "SERVICE_URL": "where the service listens, for commands that ask it [http://127.0.0.1:PORT]",
    **identity.ENVIRONMENT,
}
"""The variables that only these commands read."""

_COLUMNS: Final = ("message_id", "reason", "detail", "publish_time", "received_at", "delivery_attempt", "bytes")

_INTRO: Final = """\
Messages that could not have their effect, kept with the reason: look at them, and end each in one of three ways.

  the worker was mended:       rejections retry ID
  the message must be mended:  rejections retry ID --mended FILE, with the message as it should have been; or, for many,
                               rejections export bad.jsonl; edit it; python -m publisher load bad.jsonl;
                               rejections discard ID --yes
  it is not wanted:            rejections discard ID --yes

These commands ask the running service, which is the one writer; they need neither REPLICA_URL nor a restart.
"""

_ERASE: Final = """\
Erase a user for good: the row becomes an empty tombstone, rejected messages about the user are deleted, and receipts forget
whose they were. The id is kept in a list in the bucket, so that no replay and no restore brings the user back.

What was written before stays in the bucket until its generation's retention ends (RETENTION_DAYS), and in the topic and the
subscription for as long as they retain messages. Rejected messages that cannot be read are not searched for the user.

  python -m worker erase 5 --yes
"""


def add(verbs: Any) -> None:
    """Add the commands to the worker's parser."""
    raw = argparse.RawDescriptionHelpFormatter
    environment = "environment:\n" + "\n".join(f"  {name:<16}{text}" for name, text in ENVIRONMENT.items())
    top = verbs.add_parser("rejections", description=_INTRO, formatter_class=raw)
    inner = top.add_subparsers(metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="a table of the open ones", description="List rejections, oldest first.")
    show = inner.add_parser("show", help="everything that is kept of one", description="Show one rejection, with its data.")
    retry = inner.add_parser(
        "retry",
        help="handle messages once more",
        description="Handle messages once more, as they were published, oldest first, and say the outcome of each. One that "
        "still cannot have its effect stays open. Nothing stored is overwritten.",
    )
    discard = inner.add_parser(
        "discard",
        help="give messages up",
        description="Give messages up: they stay without effect, however often they come.",
    )
    exporting = inner.add_parser(
        "export",
        help="write them to a file that can be mended and loaded",
        description="Write rejections as JSON Lines. Mend the lines, publish them with `python -m publisher load FILE`, and "
        "discard the rejections.",
    )
    _add_erase(verbs, environment)
    for parser, command in ((listing, _list), (show, _show), (retry, _retry), (discard, _discard), (exporting, _export)):
        service_options.add_url(parser)
        parser.epilog, parser.formatter_class = environment, raw
        parser.set_defaults(command=None, without_settings=main, ask=command)
    show.add_argument("id", metavar="ID", type=values.message_id, help="the message id")
    for parser in (retry, discard):
        parser.add_argument(
            "ids", metavar="ID", nargs="*", type=values.message_id, help="message ids; or choose with the options below"
        )
        parser.add_argument("--all", action="store_true", help="every open one")
    retry.add_argument(
        "--mended", metavar="FILE", type=values.path, help="handle this file's content in the place of one message's data"
    )
    discard.add_argument("--yes", action="store_true", help="do it; without this, only say what would be discarded")
    exporting.add_argument(
        "file", metavar="FILE", type=values.path, help="a file that does not exist yet, or - for standard output"
    )
    for parser in (listing, exporting):
        parser.add_argument("--all", action="store_true", help="the resolved ones as well")
    for parser in (listing, retry, discard, exporting):
        _add_filters(parser)
    for parser in (listing, show, retry, discard, exporting):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", choices=[*map(str, REASONS)], metavar="CODE", help=f"one of {', '.join(REASONS)}")
    parser.add_argument("--since", type=_utc, metavar="TIME", help="received then or later: RFC 3339, or 30m, 12h, 7d ago")
    parser.add_argument("--until", type=_utc, metavar="TIME", help="received before then")


def _add_erase(verbs: Any, environment: str) -> None:
    erase = verbs.add_parser(
        "erase",
        description=_ERASE,
        epilog=environment,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    erase.add_argument("user_id", metavar="USER_ID", type=values.user_id)
    erase.add_argument("--yes", action="store_true", help="do it; without this, only say what would be done")
    service_options.add_url(erase)
    erase.add_argument("--json", action="store_true", help="print JSON")
    erase.set_defaults(command=None, without_settings=main, ask=_erase)


def main(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the command that was parsed; its exit code.

    Raises:
        WorkerError: It could not be done.
    """
    url = service_options.service_url(options.url, environ)
    ask: Callable[[Service, argparse.Namespace], Awaitable[int]] = options.ask

    async def asking() -> int:
        async with service_options.connect(Service, url, environ) as service:
            return await ask(service, options)

    return asyncio.run(asking())


async def _list(service: Service, options: argparse.Namespace) -> int:
    rows = [row async for row in service.each(_wanted(options, resolved=options.all))]
    if options.json:
        print(json.dumps(rows))
        return 0
    columns = (*_COLUMNS, "resolution") if options.all else _COLUMNS
    if rows:
        table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])
    else:
        print("no rejections")
    return 0


async def _show(service: Service, options: argparse.Namespace) -> int:
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


async def _retry(service: Service, options: argparse.Namespace) -> int:
    ids = await _chosen(service, options)
    mended = _mended(options, ids)
    return await _resolve(
        service, options, lambda message_id: service.retry(message_id, mended), ids, open_after=("rejected", "conflict")
    )


def _mended(options: argparse.Namespace, ids: Sequence[str]) -> bytes | None:
    if options.mended is None:
        return None
    if len(ids) != 1:
        raise ServiceRefused("--mended is the data of one message: name its id; nothing was changed")
    try:
        data: bytes = options.mended.read_bytes()
    except OSError as error:
        raise ServiceRefused(
            f"cannot read {options.mended}: {error.strerror}; name a file with the message's data"
        ) from None
    if not data:
        raise ServiceRefused(f"{options.mended} is empty: that would be a retry as it was published; nothing was changed")
    return data


async def _discard(service: Service, options: argparse.Namespace) -> int:
    ids = await _chosen(service, options)
    named = ", ".join(map(plain, ids)) or "none"
    if not agreed(f"this would discard {counted(len(ids), 'message')} for good: {named}", yes=options.yes):
        return 1
    return await _resolve(service, options, service.discard, ids)


async def _export(service: Service, options: argparse.Namespace) -> int:
    console = Console(stderr=True)
    piped = str(options.file) == "-"
    try:
        with console.status("exporting") as status:
            wanted = _wanted(options, resolved=options.all)
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
        print(f"{count:,} exported; mend {options.file}, then: python -m publisher load {options.file}")
    return 0


async def _erase(service: Service, options: argparse.Namespace) -> int:
    what = f"this would erase user {options.user_id} for good, also from every later restore and replay"
    if not agreed(what, yes=options.yes):
        return 1
    removed = await service.erase(options.user_id)
    if options.json:
        print(json.dumps(removed))
    else:
        was = "erased" if removed["existed"] else "was not there, and will not come back"
        about = f"{counted(removed['receipts'], 'receipt')} and {counted(removed['rejections'], 'rejection')}"
        print(f"user {options.user_id} {was}; {about} spoke of it")
    return 0


async def _resolve(
    service: Service,
    options: argparse.Namespace,
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


async def _chosen(service: Service, options: argparse.Namespace) -> list[str]:
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


def _wanted(options: argparse.Namespace, *, resolved: bool = False) -> Wanted:
    return Wanted(reason=options.reason, since=options.since, until=options.until, resolved=resolved)


def _utc(text: str) -> str:
    return rfc3339(values.moment(text))
