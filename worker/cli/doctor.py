"""The command line of `worker doctor`."""

from collections.abc import Mapping
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from publisher.command_line import Command, Options, json_option
from worker.cli.tables import plain
from worker.cli.verbs import run_to_end, without_settings
from worker.operations.doctor.examine import examine
from worker.operations.doctor.findings import Report, report
from worker.telemetry import logs

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

verdicts: ok; note, nothing to do; warning, safe but to be fixed; refused, unsafe or not working

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
        found = report(run_to_end(examine(environ, quick=options.quick)))
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        _print(found)
    return 1 if found.verdict == "refused" else 0


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
