"""The command `solowriter`: the worker and the publisher as one program. Nothing is imported before it runs."""

from collections.abc import Mapping
from typing import Final, NoReturn

PROGRAMS: Final[Mapping[str, tuple[str, str]]] = {
    "worker": ("worker.cli.main", "run the service, and operate it"),
    "publish": ("publisher.cli", "publish users: one, a file of them, or over HTTP"),
}
_INTRO: Final = "A queue-fed store: a message that was acknowledged is in the bucket."
_EPILOG: Final = """\
  solowriter worker --help            the verbs of the worker
  solowriter worker --help-settings   its settings
  solowriter publish --help           the publisher

Completion: eval "$(_SOLOWRITER_COMPLETE=bash_source solowriter)" in ~/.bashrc;
zsh_source and fish_source are for these shells.
"""


def main() -> NoReturn:
    """Run one command and leave the process. Ctrl-C is no traceback, however early it comes."""
    try:
        import os
        import sys

        from publisher.command_line import Table, end, run, version_option

        program = version_option()(Table("solowriter", PROGRAMS, help=_INTRO, epilog=_EPILOG))
        code = run(program, sys.argv[1:], name="solowriter", environ=os.environ)
    except KeyboardInterrupt:  # before there was a command to end
        import os

        os.write(2, b"interrupted\n")
        os._exit(130)
    end(code)
