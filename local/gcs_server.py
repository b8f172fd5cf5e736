"""Runs the fake Cloud Storage under uvicorn, and its subcommand `python -m local gcs`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from local.faults import FaultPlan
from local.gcs import ABORT, Gcs
from local.gcs_errors import GcsError
from local.gcs_store import Store

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# Seconds; longer than any client keeps a connection (Go's: 90), so that the client is never surprised by its end.
_KEEP_ALIVE = 600
# Seconds for requests in flight at the end.
_GRACE = 2
_BACKLOG = 1024
_EXAMPLES = """\
examples:
  python -m local gcs --port 4443 --data .run/gcs --bucket users
  STORAGE_EMULATOR_HOST=http://127.0.0.1:4443 litestream replicate users.db gs://users/replica
  curl -X POST localhost:4443/_faults -d '[{"action":"delay","verb":"insert","seconds":0.08}]'
  curl -X POST localhost:4443/_faults -d '[{"action":"error","status":503,"share":0.1}]'
  curl -X DELETE localhost:4443/_faults
  curl localhost:4443/_stats

Google's Python client wants the scheme in STORAGE_EMULATOR_HOST, Go's (Litestream's) takes it with or without.
local/faults.py describes the fault rules.
"""


class _Protocol(HttpToolsProtocol):
    """Hands the application a way to close its connection without an answer, which ASGI has no word for."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"close": self.transport.abort}}


class _Server(uvicorn.Server):
    """Says when it listens, and lets hanging requests go when the process is told to stop."""

    def __init__(self, config: uvicorn.Config, faults: FaultPlan, greeting: str) -> None:
        super().__init__(config)
        self._faults = faults
        self._greeting = greeting
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        print(self._greeting, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._faults.clear)


def serve(
    data: Path, port: int = 0, host: str = "127.0.0.1", buckets: tuple[str, ...] = (), *, preconditions: bool = True
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        data: Directory of everything that is kept.
        port: 0 for a free one; it is printed.
        host: Address to listen on.
        buckets: Made at start if they don't exist.
        preconditions: Whether writes honour them.

    Raises:
        RuntimeError: Another process serves this directory.
        OSError: The port is taken.
    """
    store = Store(data, preconditions=preconditions)
    try:
        existing = {name for name, _ in store.buckets()}
        for bucket in buckets:
            if bucket not in existing:
                store.create_bucket(bucket)
        with socket.create_server((host, port), backlog=_BACKLOG) as listener:
            greeting = f"fake GCS on http://{host}:{listener.getsockname()[1]} (data in {data})"
            faults = FaultPlan()
            config = uvicorn.Config(
                Gcs(store, faults),
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
            )
            # uvicorn raises the signal again after its shutdown: this is who gets it then.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            _Server(config, faults, greeting).run(sockets=[listener])
    finally:
        store.close()


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand `gcs`."""
    parser = subparsers.add_parser(
        "gcs",
        help="the fake Cloud Storage on its own",
        description="A fake Google Cloud Storage with preconditions, kept on disk, with faults on demand.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True, help="port to listen on; 0 picks a free one")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where buckets are kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--bucket", action="append", default=[], metavar="NAME", help="make this bucket; may be repeated")
    parser.add_argument(
        "--ignore-preconditions", action="store_true", help="write whatever ifGenerationMatch says, as some emulators do"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        preconditions = not arguments.ignore_preconditions
        serve(arguments.data, arguments.port, arguments.host, tuple(arguments.bucket), preconditions=preconditions)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, OSError, OverflowError, GcsError) as error:  # overflow: no such port
        print(f"local gcs: {error}", file=sys.stderr)
        return 1
    return 0
