"""The operator's verbs: a table of them, and how they end. Each verb is a module beside this one."""

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from publisher.command_line import WIDTH, Table, run, version_option
from worker import config
from worker.errors import StoreUnavailable, WorkerError

VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "init": ("init", "create an empty store at REPLICA_URL, once"),
    "serve": ("serve", "be the one writer of the store, or stand by for it"),
    "doctor": ("doctor", "check settings, store, Litestream, machine, subscription"),
    "events": ("events", "what messages do: their events, fields, tables and keys"),
    "schema": ("schema", "the Avro schema of an event, for its topic"),
    "lease": ("lease", "look at who may write, or release a dead holder's lease"),
    "rejections": ("rejections", "see, retry, discard or export rejected messages"),
    "erase": ("erase", "erase a user for good"),
    "replica": ("replica", "what is in the bucket"),
    "restore": ("restore", "a state from the bucket, into a new file"),
    "checkpoint": ("checkpoint", "a snapshot of the queue, with the state it goes with"),
    "replay": ("replay", "have the queue deliver messages again"),
    "recover": ("recover", "make an earlier state the live one"),
    "move": ("move", "the store into PostgreSQL, with a proof"),
    "export": ("export", "PostgreSQL into a new SQLite file, with a proof"),
    "drill": ("drill", "prove that the live generation can be restored"),
    "status": ("status", "what the service does now, and what is stuck"),
    "console": ("console", "the same on a page, with rejections and restores"),
    "smoke": ("smoke", "see a published user through: acknowledged, read, erased"),
}
"""Each verb: the module of this package that exposes it as `command`, and its line of the help. Only the module of the verb
that is run is loaded: all of them take most of a second."""

_INTRO: Final = "Takes Pub/Sub pushes, writes them to SQLite, acknowledges what the bucket has."
_EPILOG: Final = "`COMMAND --help` has examples. Exit codes: 0 done, 1 failed, 2 wrong setting."


class _Worker(Table):
    """The program: an error of the worker is one line and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
            os.environ["STORAGE_EMULATOR_HOST"] = emulator.strip().rstrip("/")  # Google's client would ask for //storage/...
        try:
            return super().invoke(ctx)
        except WorkerError as error:
            # A service asks again by itself; a command does not.
            more = "; look at the network and REPLICA_URL, and try again" if isinstance(error, StoreUnavailable) else ""
            print(f"error: {error}{more}", file=sys.stderr)
            return error.exit_code


def settings_help() -> str:
    """Every setting of the worker, its default and its meaning, within 80 columns."""
    indent = " " * 6
    lines = ["settings (environment variables) [default]:"]
    for name, default, about in config.described():
        text = f"{about} [{default or 'none'}]"
        filled = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        lines += [f"  {name}", filled]
    return "\n".join(lines)


def _print_settings(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        print(settings_help())
        ctx.exit()


command: Final = _Worker(
    "worker",
    {name: (f"worker.cli.{module}", line) for name, (module, line) in VERBS.items()},
    help=_INTRO,
    epilog=_EPILOG,
)
command.params.append(
    click.Option(
        ["--help-settings"], is_flag=True, is_eager=True, expose_value=False, callback=_print_settings, help="list settings"
    )
)
version_option()(command)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 a setting or the store is wrong.

    Raises:
        SystemExit: The command line cannot be parsed, or asked for help.
    """
    return run(command, sys.argv[1:] if argv is None else argv, name="python -m worker", environ=environ)
