"""`make run`: the same stack, kept up until Ctrl-C, with the commands to try."""

from __future__ import annotations

import argparse
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from local.stack import BUCKET, DEAD_LETTERS, PROJECT, SUBSCRIPTION, TOPIC, Stack, stack
from local.worker_process import WorkerProcess

DIRECTORY: Final = Path(".run")
AS_DEPLOYED: Final = {
    "retainAckedMessages": True,
    "messageRetentionDuration": "604800s",
    "retryPolicy": {"minimumBackoff": "1s", "maximumBackoff": "600s"},
    "deadLetterPolicy": {"deadLetterTopic": f"projects/{PROJECT}/topics/{DEAD_LETTERS}", "maxDeliveryAttempts": 100},
}
"""What deploy/pubsub.sh sets as well, so that a time can be replayed here too, and the doctor has nothing to warn of."""
_LOOK_SECONDS: Final = 0.25
"""Pause between two looks whether the worker has ended."""
_AGAIN_SECONDS: Final = 5.0
"""Least time between two starts of a worker that ends again and again."""


def register(subparsers: Any) -> None:
    """Add the subcommand `run`."""
    parser = subparsers.add_parser(
        "run",
        help="the whole stack, kept up until Ctrl-C",
        description="Start the emulator, the fake Cloud Storage and the worker; connect them; print commands to try.\n"
        "It begins empty each time: the emulator forgets its messages and starts their ids again at 1, and an id that was\n"
        "handled before is a duplicate. What was stored stays in --dir until then.\n"
        "A worker that ends, as it does when a recovery asks for its lease, is started again, as Cloud Run would do.",
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
            running.subscribe(running.worker.url, AS_DEPLOYED)
            with asked_to_end() as asked:
                console.print(commands(running), highlight=False, soft_wrap=True)
                console.print(f"logs are in {directory}; Ctrl-C ends everything", style="dim")
                keep_up(running.worker, asked, console)
            console.print("stopping", style="dim")
            if running.worker.code is None:
                running.worker.stop()
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """What Ctrl-C, SIGTERM and SIGHUP fill while the block runs: they end it in order then, and at once after it."""
    asked: list[int] = []  # an Event's lock may be held by the very code that a signal interrupts
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda got, _: asked.append(got)) for number in ends]
    try:
        yield asked
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


def keep_up(worker: WorkerProcess, asked: list[int], console: Console) -> None:
    """Start the worker again whenever it has ended, until a signal stands in `asked`."""
    not_before = 0.0
    while not asked:
        if worker.code is not None and time.monotonic() >= not_before:
            console.print(f"the worker ended with {worker.code}; starting it again, as Cloud Run would", style="dim")
            worker.kill()  # what it may have left: its Litestream
            worker.start()
            not_before = time.monotonic() + _AGAIN_SECONDS
        time.sleep(_LOOK_SECONDS)


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
