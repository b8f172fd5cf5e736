"""`make run`: the same stack, kept up until Ctrl-C, with the commands to try."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shlex
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console

from local.ports import free_port
from local.pubsub import Emulator
from local.stack import BUCKET, DEAD_LETTERS, PROJECT, SUBSCRIPTION, TOPIC, ConsoleProcess, Stack, stack
from local.worker_process import WorkerProcess

DIRECTORY: Final = Path(".run/local")
MARK: Final = "solowriter-local-run"
"""The file that says that a folder is ours. While a stack runs there, it is locked."""
PORTS: Final = {"worker": 8080, "Cloud Storage": 4443, "Pub/Sub": 8085, "console": 8090}
AS_DEPLOYED: Final = {
    "retainAckedMessages": True,
    "messageRetentionDuration": "604800s",
    "retryPolicy": {"minimumBackoff": "1s", "maximumBackoff": "600s"},
    "deadLetterPolicy": {"deadLetterTopic": f"projects/{PROJECT}/topics/{DEAD_LETTERS}", "maxDeliveryAttempts": 100},
}
"""What deploy/pubsub.sh sets as well, so that a time can be replayed here too, and the doctor has nothing to warn of."""
_LOOK_SECONDS: Final = 0.25
"""Pause between two looks whether the worker has ended."""
_USED_UP_AT_ONCE: Final = 1000
"""The most messages that one request publishes."""
_AGAIN_SECONDS: Final = 5.0
"""Least time between two starts of a worker that ends again and again."""


def register(subparsers: Any) -> None:
    """Add the subcommand `run`."""
    parser = subparsers.add_parser(
        "run",
        help="the whole stack, kept up until Ctrl-C",
        description="Start the emulator, the fake Cloud Storage and the worker; connect them; print commands to try.\n"
        "It goes on with what an earlier one stored in --dir, without the messages that waited then; --fresh begins empty.\n"
        "A worker that ends, as it does when a recovery asks for its lease, is started again, as Cloud Run would do.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help="where everything is kept (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier one stored there")
    parser.add_argument(
        "--delivery",
        choices=("push", "pull"),
        default="push",
        help="how messages come to the worker (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    console = Console()
    directory: Path = arguments.dir.resolve()
    try:
        with (
            claimed(directory, fresh=arguments.fresh),
            stack(
                directory,
                say=lambda line: console.print(line, style="dim"),
                worker_port=PORTS["worker"],
                gcs_port=PORTS["Cloud Storage"],
                pubsub_port=PORTS["Pub/Sub"],
                delivery=arguments.delivery,
            ) as running,
        ):
            if running.pubsub is not None and (latest := latest_message(directory)):
                pass_over(running.pubsub, latest)
            for line in moved(running):
                console.print(line, style="bold red")
            running.subscribe(running.worker.url, AS_DEPLOYED)
            file = environment_file(directory)
            operating = ConsoleProcess(
                running.worker, directory / "console.log", port=free_port(PORTS["console"]), environment=_queue_of(running)
            )
            with operating, asked_to_end() as asked, pointed_at(running, file):
                console.print(commands(running, file), highlight=False, markup=False, soft_wrap=True)
                console.print(f"the operators' page: {operating.url}/", highlight=False, soft_wrap=True)
                console.print(f"logs are in {directory}; Ctrl-C ends everything", style="dim")
                keep_up(running.worker, asked, console)
            console.print("stopping", style="dim")
            if running.worker.code is None:
                running.worker.stop()
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:  # the folder is not ours, or a part did not start
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 2
    return 0


def _queue_of(running: Stack) -> dict[str, str]:
    """What points the console at the subscription; nothing where there is no emulator."""
    return {**running.publisher_environment(), "SUBSCRIPTION": SUBSCRIPTION} if running.pubsub is not None else {}


class NotOursError(RuntimeError):
    """The folder is in use, or was not made by `run`; the text says what to do."""


@contextmanager
def claimed(directory: Path, *, fresh: bool) -> Iterator[None]:
    """The folder is this process's alone while the block runs. Only what is marked as ours is ever deleted.

    Raises:
        NotOursError: Another stack runs there, or the folder holds something else.
    """
    mark = directory / MARK
    if directory.exists() and not mark.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise NotOursError(f"{directory} holds what `run` did not make, and stays as it is; name another folder with --dir")
    directory.mkdir(parents=True, exist_ok=True)
    with mark.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NotOursError(f"another stack runs in {directory}; end it, or name another folder with --dir") from None
        for entry in directory.iterdir() if fresh else ():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != mark:
                entry.unlink()
        yield


def moved(running: Stack) -> list[str]:
    """A line for each port that another program has: what it answers is not ours."""
    found = {"worker": running.worker.port, "Cloud Storage": int(running.gcs.url.rpartition(":")[2])}
    if running.pubsub is not None:
        found["Pub/Sub"] = int(running.pubsub.host.rpartition(":")[2])
    return [
        f"PORT {PORTS[name]} IS ANOTHER PROGRAM'S: the {name} of this stack is at {port}; use the addresses below alone"
        for name, port in found.items()
        if port != PORTS[name]
    ]


def latest_message(directory: Path) -> int:
    """The highest id of a message that an earlier stack handled here."""
    ids = [0]
    for path in (directory / "disk").glob("users.db*"):
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            ids += [number or 0 for (number,) in database.execute("SELECT max(CAST(message_id AS INTEGER)) FROM receipts")]
    return max(ids)


def pass_over(pubsub: Emulator, latest: int) -> None:
    """Use up the ids to `latest`: an emulator begins with 1 again, and an id that was handled before is a duplicate."""
    topic = f"{pubsub.url}/v1/projects/{PROJECT}/topics/used-up"
    httpx.put(topic, json={}, trust_env=False, timeout=60)
    messages = {"messages": [{"attributes": {"used": "up"}}] * _USED_UP_AT_ONCE}
    last = 0
    while last < latest:
        answer = httpx.post(f"{topic}:publish", json=messages, trust_env=False, timeout=60).raise_for_status()
        last = max(int(each) for each in answer.json()["messageIds"])


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


def environment_file(directory: Path) -> Path:
    """Where the variables that point commands at a stack are written: `.run/env`, or into a folder that `--dir` names."""
    return (directory.parent if directory == DIRECTORY.resolve() else directory) / "env"


@contextmanager
def pointed_at(running: Stack, file: Path) -> Iterator[None]:
    """While the block runs, the file has what points gcloud and our commands at this stack, to be sourced.

    A worker with events of its own has them there as well: a publisher that does not know them would publish none.
    """
    known = running.worker.environment
    variables = {
        **running.publisher_environment(),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{running.gcs.url}/storage/v1/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "STORAGE_EMULATOR_HOST": running.gcs.url,
        "REPLICA_URL": running.replica_url,
        "SUBSCRIPTION": SUBSCRIPTION,
        "SERVICE_URL": running.worker.url,
        **({name: known[name] for name in ("EVENTS", "PYTHONPATH")} if known.get("EVENTS") else {}),
    }
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def commands(running: Stack, file: Path) -> str:
    """What to try against a running stack, ready to paste."""
    if running.pubsub is None:
        publish = f"# {running.why_not}\n.venv/bin/python -m publisher create --user-id 5 --push-to {running.worker.url}"
        load = f".venv/bin/python -m publisher load users.jsonl --push-to {running.worker.url}"
    else:
        publish = f"gcloud pubsub topics publish {TOPIC} --message='{{\"user_id\": 5}}'"
        load = ".venv/bin/python -m publisher create --user-id 6 --email six@example.com"
    look = f"curl {running.worker.url}/users/5\ncurl {running.worker.url}/metrics"
    operate = (
        f"gcloud storage ls --recursive gs://{BUCKET}/\n"
        ".venv/bin/python -m worker replica\n"
        ".venv/bin/python -m worker rejections list\n"
        ".venv/bin/python -m worker drill"
    )
    return f"\nIn another terminal:\n\n. {shlex.quote(_short(file))}\n\n{publish}\n{load}\n{look}\n{operate}\n"


def _short(file: Path) -> str:
    """As it is typed here."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
