"""The command line of `worker console`."""

import os
from typing import Final

import click

from publisher import parameters
from publisher.command_line import Command, Options
from worker.cli import service_options
from worker.cli.service_options import url_option
from worker.cli.verbs import run_to_end, with_settings
from worker.config import Settings
from worker.console.serving import ENVIRONMENT, PORT, serve

_INTRO: Final = """\
A page for operators: what is stuck, why, and what to do; rejected messages; what can be restored. It runs on your machine,
reads the bucket with your credentials, and asks the service with your token; the service need not run. What destroys or
undoes something is shown with its command, and not done from the page.

It listens on 127.0.0.1 and opens your browser. Behind Identity-Aware Proxy it can be a service of its own: docs/console.md.

  python -m worker console
  python -m worker console --port 0 --no-browser
"""
_EPILOG: Final = "environment:\n" + "\n".join(f"  {name:<16}{text}" for name, text in ENVIRONMENT.items())


@click.command("console", cls=Command, help=_INTRO, epilog=_EPILOG)
@url_option
@click.option("--port", metavar="N", type=parameters.whole(0, 65535), help=f"port to listen on; 0 picks one [{PORT}]")
@click.option("--no-browser", is_flag=True, help="only print the address")
@with_settings(quiet=True)
def command(settings: Settings, options: Options) -> int:
    """Serve the page until Ctrl-C."""
    url = service_options.service_url(options.url, os.environ)

    def say(line: str) -> None:
        print(line, flush=True)

    run_to_end(serve(settings, os.environ, url=url, port=options.port, browser=not options.no_browser, say=say))
    return 0
