"""The operator's verbs. Parsing, signals and exit codes; the work is elsewhere."""

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec
import uvloop

from worker import config, supervisor
from worker.cli.agreement import agreed
from worker.config import Settings
from worker.errors import LeaseLost, StoreUnavailable, WorkerError
from worker.lease import record as lease_record
from worker.operations import lease as lease_commands
from worker.replica.bucket import Bucket
from worker.tasks import ended_when_stuck
from worker.telemetry import logs

_INTRO = """\
A queue-fed user store: takes Pub/Sub pushes, writes them to SQLite, and acknowledges what is in the bucket.

A new store, once:      REPLICA_URL=gs://acme-users/prod python -m worker init
Then, one instance:     REPLICA_URL=gs://acme-users/prod python -m worker serve
A message:              gcloud pubsub topics publish users --message='{"user_id": 5}'
"""

_OTHER_VERBS: Final = ("rejections", "replica", "checkpoint", "replay", "drill", "recover", "doctor", "smoke")

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it."""

_STUCK_SECONDS_MIN: Final = 10.0
"""With a short LEASE_TTL_SECONDS a busy machine would look like a loop that stands still."""

log = logging.getLogger("worker")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 a setting or the store is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(only_serve=[*argv] == ["serve"]).parse_args(argv)
    try:
        with contextlib.nullcontext() if arguments.command is _serve else _ended_in_order():
            code = _run(arguments, environ)
        sys.stdout.flush()
        return code
    except WorkerError as error:
        # A service asks again by itself; whoever typed a command has to.
        more = "; look at the network and REPLICA_URL, and try again" if isinstance(error, StoreUnavailable) else ""
        print(f"error: {error}{more}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads this, such as head, has enough; the flush at the exit must not meet it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: by default it would leave scratch behind, and a lease to its TTL."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ["STORAGE_EMULATOR_HOST"] = emulator.strip().rstrip("/")  # Google's client would ask for //storage/...
    if arguments.command is None:
        by_itself: Callable[..., int] = arguments.without_settings
        return by_itself(arguments, environ)
    settings = config.load(environ)
    # What a command does it says itself; the log is for a service, and for whoever asks for it.
    quiet = getattr(arguments, "quiet", False) and settings.log_level == "info"
    logs.configure(
        "warning" if quiet else settings.log_level,
        project=settings.project,
        service=settings.service,
        revision=settings.revision,
    )
    command: Callable[[Settings, argparse.Namespace], int] = arguments.command
    return command(settings, arguments)


def _parser(*, only_serve: bool = False) -> argparse.ArgumentParser:
    width = max(len(name) for name, _, _ in config.described())
    settings = "\n".join(
        textwrap.fill(
            f"{about} [{default or 'none'}]",
            width=100,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for name, default, about in config.described()
    )
    epilog = f"settings (environment variables) [default]:\n{settings}\n\nexit codes: 0 done, 1 failed, 2 wrong setting"
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m worker", description=_INTRO, epilog=epilog, formatter_class=raw)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    init = verbs.add_parser(
        "init",
        help="create an empty store at REPLICA_URL; does nothing where there is one",
        description="Create the lease record at REPLICA_URL, once per store. Running it again changes nothing.\n"
        "`serve` refuses to start without it, so that a mistyped bucket is an error and not an empty database.",
        formatter_class=raw,
    )
    init.set_defaults(command=_init)
    serve = verbs.add_parser(
        "serve",
        help="be the one writer of the store, or stand by until the writer is gone",
        description="Listen on PORT; hold the lease, restore the live generation, replicate, and acknowledge what is in\n"
        "the bucket. SIGTERM drains and releases the lease; a second one leaves at once.",
        formatter_class=raw,
    )
    serve.set_defaults(command=_serve)
    if not only_serve:  # at a cold start somebody waits, and the others' modules take a third of the time to load
        _add_lease(verbs)
        for module in _OTHER_VERBS:
            importlib.import_module(f"worker.cli.{module}").add(verbs)
    return parser


def _add_lease(verbs: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    lease = verbs.add_parser("lease", help="look at who may write, or release a dead holder's lease")
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


def _init(settings: Settings, _: argparse.Namespace) -> int:
    with _bucket(settings) as store:
        created = asyncio.run(lease_record.initialize(store, timeout=settings.lease_read_timeout_seconds))
        print(f"{store} is a new, empty store" if created else f"{store} is a store already; nothing was changed")
    return 0


def _lease_show(settings: Settings, arguments: argparse.Namespace) -> int:
    with _bucket(settings) as store:
        status = asyncio.run(lease_commands.show(store, timeout=settings.lease_read_timeout_seconds))
    if arguments.json:
        print(msgspec.json.encode(status).decode())
    else:
        width = max(len(label) for label, _ in status.rows())
        print("\n".join(f"{label:<{width}}  {value}" for label, value in status.rows()))
    return 0


def _lease_break(settings: Settings, arguments: argparse.Namespace) -> int:
    timeout = settings.lease_read_timeout_seconds
    with _bucket(settings) as store:
        if not arguments.yes:
            record, _ = asyncio.run(lease_record.look(store, timeout=timeout))
            if record.state == "released":
                print(f"the lease of {store} is released already, at epoch {record.epoch}: there is nothing to break")
                return 0
            what = (
                f"this would release the lease of {record.holder or 'nobody'} ({record.revision}) at epoch {record.epoch}, "
                f"which is {record.state} now"
            )
            if not agreed(what, yes=False):
                return 1
        record = asyncio.run(
            lease_commands.break_(store, ttl=settings.lease_ttl_seconds, force=arguments.force, timeout=timeout, say=print)
        )
        print(f"the lease of {store} is released at epoch {record.epoch}")
    return 0


@contextlib.contextmanager
def _bucket(settings: Settings) -> Iterator[Bucket]:
    store = Bucket(settings.bucket, settings.prefix)
    try:
        yield store
    finally:
        store.close()


def _serve(settings: Settings, _: argparse.Namespace) -> NoReturn:
    code = 0
    try:
        uvloop.run(_until_signal(settings))
    except LeaseLost as lost:
        log.warning("%s", lost, extra={"action": "lease.lost"})
    except WorkerError as error:
        log.error("%s", error, extra={"action": "worker.failed"})
        code = error.exit_code
    except asyncio.CancelledError:
        log.warning("left without draining", extra={"action": "worker.aborted"})
        code = 1
    except Exception:  # a defect: what was acknowledged is in the bucket all the same
        log.exception("the worker ended by a defect, or by a machine that fails it", extra={"action": "worker.failed"})
        code = 1
    # Everything is released. A request to the bucket that still hangs on a thread must not hold up the end (INV-8).
    logging.shutdown()
    os._exit(code)


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    main_task: asyncio.Task[Any] | None = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and main_task is not None:
            main_task.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with ended_when_stuck(max(settings.lease_ttl_seconds, _STUCK_SECONDS_MIN)):
        await supervisor.run(settings, stop)
