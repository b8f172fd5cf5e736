"""The command line of `worker console`."""

import argparse
import asyncio
import os
from typing import Any, Final

from publisher import values
from worker.cli import service_options
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


def add(verbs: Any) -> None:
    """Add the command to the worker's parser."""
    environment = "environment:\n" + "\n".join(f"  {name:<16}{text}" for name, text in ENVIRONMENT.items())
    raw = argparse.RawDescriptionHelpFormatter
    parser = verbs.add_parser("console", description=_INTRO, epilog=environment, formatter_class=raw)
    service_options.add_url(parser)
    parser.add_argument("--port", metavar="N", type=values.whole(0, 65535), help=f"port to listen on; 0 picks one [{PORT}]")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.set_defaults(command=_console, quiet=True)


def _console(settings: Settings, options: argparse.Namespace) -> int:
    url = service_options.service_url(options.url, os.environ)

    def say(line: str) -> None:
        print(line, flush=True)

    asyncio.run(serve(settings, os.environ, url=url, port=options.port, browser=not options.no_browser, say=say))
    return 0
