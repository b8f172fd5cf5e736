"""The operator's verbs. Parsing, signals and exit codes; the work is elsewhere."""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from worker import config
from worker.config import Settings
from worker.errors import StoreUnavailable, WorkerError
from worker.telemetry import logs

_INTRO = """\
A queue-fed user store: takes Pub/Sub pushes, writes them to SQLite, and acknowledges what is in the bucket.

A new store, once:      REPLICA_URL=gs://acme-users/prod python -m worker init
Then, one instance:     REPLICA_URL=gs://acme-users/prod python -m worker serve
A message:              gcloud pubsub topics publish users --message='{"user_id": 5}'
"""

VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "init": ("serve", "create an empty store at REPLICA_URL; does nothing where there is one"),
    "serve": ("serve", "be the one writer of the store, or stand by until the writer is gone"),
    "lease": ("lease", "look at who may write, or release a dead holder's lease"),
    "rejections": ("rejections", "see, retry, discard or export rejected messages"),
    "erase": ("rejections", "erase a user for good"),
    "replica": ("replica", "what is in the bucket"),
    "restore": ("replica", "a state from the bucket, into a new file"),
    "checkpoint": ("checkpoint", "a snapshot of the queue, with the state it goes with"),
    "replay": ("replay", "have the queue deliver messages again"),
    "drill": ("drill", "prove that the live generation can be restored"),
    "recover": ("recover", "make an earlier state the live one"),
    "doctor": ("doctor", "check the settings, the store, Litestream, the machine and the subscription"),
    "status": ("status", "what the service does now, and what is stuck"),
    "console": ("console", "the same on a page, with rejections and restore points"),
    "smoke": ("smoke", "see a published user through: acknowledged, read back, erased"),
}
"""Each verb: the module of this package that adds it, and its line of the help. Only the module of the verb that is run is
loaded: all of them take most of a second."""

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it."""

_STUCK_SECONDS_MIN: Final = 10.0
"""With a short LEASE_TTL_SECONDS a busy machine would look like a loop that stands still."""

log = logging.getLogger("worker")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 a setting or the store is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser_of(*argv[:1]).parse_args(argv)
    try:
        with contextlib.nullcontext() if argv[:1] == ["serve"] else _ended_in_order():
            code = _run(arguments, environ)
        sys.stdout.flush()
        return code
    except WorkerError as error:
        # A service asks again by itself; a command does not.
        more = "; look at the network and REPLICA_URL, and try again" if isinstance(error, StoreUnavailable) else ""
        print(f"error: {error}{more}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has closed; the flush at exit must not fail again
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
    # What a command does it says itself; the log is for a service, and for LOG_LEVEL=debug.
    quiet = getattr(arguments, "quiet", False) and settings.log_level == "info"
    logs.configure(
        "warning" if quiet else settings.log_level,
        project=settings.project,
        service=settings.service,
        revision=settings.revision,
    )
    command: Callable[[Settings, argparse.Namespace], int] = arguments.command
    return command(settings, arguments)


def parser_of(*whole: str) -> argparse.ArgumentParser:
    """The parser: whole for some verbs (none: the list of them), a line of help for each of the others."""
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
    modules = {VERBS[verb][0]: None for verb in whole if verb in VERBS}
    for name, (module, line) in VERBS.items():
        if module not in modules:
            verbs.add_parser(name, help=line)
    for module in modules:
        importlib.import_module(f"worker.cli.{module}").add(verbs)
    return parser
