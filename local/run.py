"""`make run`: the same stack, kept up until Ctrl-C, with the commands to try."""

from __future__ import annotations

import argparse
import shutil
import signal
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from local.stack import BUCKET, SUBSCRIPTION, TOPIC, Stack, stack

DIRECTORY: Final = Path(".run")


def register(subparsers: Any) -> None:
    """Add the subcommand `run`."""
    parser = subparsers.add_parser(
        "run",
        help="the whole stack, kept up until Ctrl-C",
        description="Start the emulator, the fake Cloud Storage and the worker; connect them; print commands to try.\n"
        "It begins empty each time: the emulator forgets its messages and starts their ids again at 1, and an id that was\n"
        "handled before is a duplicate. What was stored stays in --dir until then.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help="where everything is kept (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    console = Console()
    directory: Path = arguments.dir.resolve()
    shutil.rmtree(directory, ignore_errors=True)
    try:
        with stack(
            directory,
            say=lambda line: console.print(line, style="dim"),
            worker_port=8080,
            gcs_port=4443,
            pubsub_port=8085,
        ) as running:
            running.subscribe(running.worker.url)
            ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
            # From here on they end it in order; their handlers, which might get them before sigwait does, end it at once.
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            console.print(commands(running), highlight=False, soft_wrap=True)
            console.print(f"logs are in {directory}; Ctrl-C ends everything", style="dim")
            signal.sigwait(ends)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
            console.print("stopping", style="dim")
            running.worker.stop()
    except KeyboardInterrupt:
        return 130
    return 0


def commands(running: Stack) -> str:
    """What to try against a running stack, ready to paste."""
    storage = f"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE={running.gcs.url}/storage/v1/ CLOUDSDK_AUTH_DISABLE_CREDENTIALS=true"
    if running.pubsub is None:
        publish = f"# {running.why_not}\n.venv/bin/python -m publisher create --user-id 5 --push-to {running.worker.url}"
        load = f".venv/bin/python -m publisher load users.jsonl --push-to {running.worker.url}"
    else:
        variables = running.publisher_environment().items()
        exports = "\n".join(f"export {name}={value}" for name, value in variables)
        publish = f"{exports}\ngcloud pubsub topics publish {TOPIC} --message='{{\"user_id\": 5}}'"
        load = ".venv/bin/python -m publisher create --user-id 6 --email six@example.com"
    look = f"curl {running.worker.url}/users/5\ncurl {running.worker.url}/metrics"
    operate = (
        f"export STORAGE_EMULATOR_HOST={running.gcs.url} REPLICA_URL={running.replica_url} SUBSCRIPTION={SUBSCRIPTION} "
        f"SERVICE_URL={running.worker.url}\n"
        ".venv/bin/python -m worker replica\n"
        ".venv/bin/python -m worker rejections list\n"
        ".venv/bin/python -m worker drill"
    )
    listing = f"{storage} gcloud storage ls --recursive gs://{BUCKET}/"
    return f"\n{publish}\n{load}\n{look}\n{listing}\n{operate}\n"
