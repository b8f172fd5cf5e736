"""The command line of `worker doctor`."""

from collections.abc import Mapping
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from publisher.command_line import Command, Options, json_option
from worker import config
from worker.cli.tables import plain
from worker.cli.verbs import run_to_end, without_settings
from worker.config import Settings
from worker.errors import ConfigError, QueueMissing
from worker.operations.doctor import litestream
from worker.operations.doctor import queue as doctor_queue
from worker.operations.doctor import quick as doctor_quick
from worker.operations.doctor import store as doctor_store
from worker.operations.doctor.findings import Finding, Report, note, ok, refused, report, warning
from worker.operations.pubsub import Queue, subscription_name
from worker.replica.bucket import Bucket
from worker.replica.litestream import find_binary
from worker.telemetry import logs

_WRITE_SPACING_SECONDS: Final = 1.0
"""Cloud Storage takes one write a second for each object name."""
_LIST_SECONDS: Final = 60.0
"""Longest a listing of a generation may take."""
_TEXT_LEAST: Final = 50
"""Columns of a terminal below which what was found stands under its check and not beside it."""
_COLOURS: Final = {"ok": "green", "note": "dim", "warning": "yellow", "refused": "bold red"}

_DOCTOR: Final = """\
Check the environment that this command runs in, as `serve` would find it, and say what to do about what is wrong:

  settings      the time limits, with their values; one process
  software      SQLite, Litestream's version; its socket, an upload, and its own SQLite, tried on a scratch database
  machine       memory and room for the database
  store         whether there is one, and who holds it; whether compare-and-swap really works; the clock
  subscription  if SUBSCRIPTION is set: ack deadline, token, retries, retention, expiration, dead letters

Run it where the service will run, with its settings and its service account. It is safe beside a running service: what it
writes stands below doctor/ under the prefix, and is deleted at the end. It takes a few seconds.

  python -m worker doctor           everything
  python -m worker doctor --quick   without requests; `serve` does this at its start
  python -m worker doctor --json    for machines

verdicts: ok; note, nothing to do; warning, safe but to be mended; refused, unsafe or not working

exit codes: 0 nothing is refused, 1 something is; docs/doctor.md says what each line means
"""


@click.command("doctor", cls=Command, help=_DOCTOR)
@click.option("--quick", is_flag=True, help="only what needs no request")
@json_option
@without_settings  # wrong settings are a finding, not the end: the command reads them itself
def command(options: Options, environ: Mapping[str, str]) -> int:
    """Check, print, and say by the exit code whether anything is refused."""
    logs.configure("warning")
    with Console(stderr=True).status("checking"):
        found = report(run_to_end(_examine(options.quick, environ)))
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        _print(found)
    return 1 if found.verdict == "refused" else 0


async def _examine(quick: bool, environ: Mapping[str, str]) -> list[Finding]:
    workers = _workers(environ)
    try:
        settings = config.load({name: value for name, value in environ.items() if name not in config.WORKER_COUNTS})
    except ConfigError as error:
        step = "mend it: docs/configuration.md has each setting and how the limits nest; the other checks need them"
        return [refused("settings", str(error), step), workers, doctor_quick.sqlite()]
    findings = [*doctor_quick.limits(settings), workers]
    if quick:
        return [*findings, *await doctor_quick.software(settings), *doctor_quick.machine(settings)]
    store = Bucket(settings.bucket, settings.prefix)
    try:
        request = settings.lease_read_timeout_seconds
        size = await doctor_store.database_bytes(store, timeout=request, list_timeout=_LIST_SECONDS)
        findings += [
            doctor_quick.sqlite(),
            *await _litestream(settings, store),
            *doctor_quick.machine(settings, size),
            *await doctor_store.examine(store, timeout=request, spacing=_WRITE_SPACING_SECONDS),
            *await doctor_store.generation(store, timeout=settings.fetch_timeout_seconds),
        ]
    finally:
        store.close()
    return [*findings, _senders(settings, environ), *await _subscription(settings, environ)]


def _workers(environ: Mapping[str, str]) -> Finding:
    try:
        config.refuse_workers(environ)
    except ConfigError as error:
        found, _, step = str(error).partition("; ")
        return refused("one process", found, step)
    return ok("one process", "neither WORKERS nor WEB_CONCURRENCY asks for more")


async def _litestream(settings: Settings, store: Bucket) -> list[Finding]:
    try:
        binary = find_binary(settings.litestream_bin)
    except ConfigError as error:
        found, _, step = str(error).partition("; ")
        return [refused("litestream version", found, step)]
    return [await litestream.running_version(binary), *await litestream.trial(settings, store)]


def _senders(settings: Settings, environ: Mapping[str, str]) -> Finding:
    if settings.push_audience:
        return _tokens(settings, environ)
    if environ.get("STORAGE_EMULATOR_HOST"):
        return note("senders", "not verified: fine on one machine with a fake store")
    step = "set PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT, or see to it that the platform lets only the subscription in"
    return warning("senders", "PUSH_AUDIENCE is not set: every sender that reaches the service may post", step)


def _tokens(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Whether signatures of tokens are verified where they can be. A job has no K_REVISION, but a variable of its own."""
    on_cloud_run = settings.revision != "local" or "CLOUD_RUN_JOB" in environ
    let_in = f"only tokens of {settings.push_service_account} for {settings.push_audience} are let in"
    if settings.tokens_verified_by == "here":
        if not on_cloud_run:
            return ok("senders", f"{let_in}; their signatures are verified here")
        step = "set TOKENS_VERIFIED_BY=platform, or turn Cloud Run's check of IAM off"
        return warning(
            "senders",
            f"{let_in}, and signatures are verified here: Cloud Run's check of IAM takes them off, so that each push is "
            "answered 401",
            step,
        )
    if not on_cloud_run:
        step = "set TOKENS_VERIFIED_BY=here: it holds only on Cloud Run with its check of IAM on"
        return refused(
            "senders", "TOKENS_VERIFIED_BY is platform, and this is not Cloud Run: any sender can forge a token", step
        )
    return ok(
        "senders",
        f"{let_in}; their signatures are verified by Cloud Run: this holds while its check of IAM is on and "
        "roles/run.invoker is granted to neither allUsers nor allAuthenticatedUsers",
    )


async def _subscription(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    if not settings.subscription:
        return [note("subscription", "not looked at: SUBSCRIPTION is not set", "set it to have the subscription checked")]
    try:
        queue = Queue(subscription_name(settings.subscription, settings.project))
    except QueueMissing as error:
        return [refused("subscription", str(error), "set GOOGLE_CLOUD_PROJECT, or SUBSCRIPTION to its full name")]
    expected = doctor_queue.Expected(
        ack_deadline_seconds=settings.ack_deadline_seconds,
        push_audience=settings.push_audience,
        push_service_account=settings.push_service_account,
        push_unwrapped=settings.push_unwrapped,
        delivery=settings.delivery,
    )
    return await doctor_queue.look(queue, expected, emulator=bool(environ.get("PUBSUB_EMULATOR_HOST")))


def _print(found: Report) -> None:
    """On a terminal a table, each next step below what was found; elsewhere one line for each check."""
    console = Console()
    if console.is_terminal:
        width = max(len(each.check) for each in found.findings)
        beside = console.width - width - len("refused") - 4 >= _TEXT_LEAST
        made = Table(box=None, pad_edge=False, show_header=False)
        for fold in (False, False, True) if beside else (False, True):
            made.add_column(no_wrap=not fold, overflow="fold")
        for each in found.findings:
            text = Text(plain(each.found))
            if each.next_step:
                text.append(f"\n→ {plain(each.next_step)}", style="bold")
            cells = (Text(each.check), text) if beside else (Text(f"{each.check}\n") + text,)
            made.add_row(Text(each.verdict, style=_COLOURS[each.verdict]), *cells)
        console.print(made, highlight=False)
    else:
        width = max(len(each.check) for each in found.findings)
        for each in found.findings:
            step = f"; next: {each.next_step}" if each.next_step else ""
            print(f"{each.verdict:<8}  {each.check:<{width}}  {plain(each.found + step)}")
    counts = {name: sum(each.verdict == name for each in found.findings) for name in ("refused", "warning")}
    print(f"\nrefused: {counts['refused']}, warnings: {counts['warning']}")
