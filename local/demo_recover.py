"""`make demo-recover`: a bad deployment, a recovery to a checkpoint, and a replay that brings back what was undone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from local.ports import free_port
from local.proof import Proof, accepted, prove
from local.recorder import Recorder
from local.stack import PROJECT, SUBSCRIPTION, Stack, stack
from local.worker_process import ROOT, WorkerProcess, wait_until

USERS: Final = 1000
SETTINGS: Final = {"TENURE_MIN_SECONDS": "1"}
"""A laptop's worker hands over as soon as it is asked."""
_SETTLE_SECONDS: Final = 3
_FLOW_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo found."""

    published: int
    undone: int
    redelivered: dict[str, int]
    proof: Proof

    @property
    def passed(self) -> bool:
        """Whether every user is there, once, after a recovery that undid some of them."""
        return self.proof.holds and self.proof.users == self.published and self.undone >= self.published // 2

    def rows(self) -> list[tuple[str, str]]:
        """The figures, as they are printed."""
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.redelivered.items()))
        return [
            ("published", f"{self.published:,}"),
            ("undone by the recovery", f"{self.undone:,}"),
            ("redelivered by the replay", counts),
            ("in the bucket", f"{self.proof.users:,}"),
            ("lost", str(len(self.proof.lost))),
            ("duplicated", str(len(self.proof.duplicated))),
        ]


def register(subparsers: Any) -> None:
    """Add the subcommand `demo-recover`."""
    parser = subparsers.add_parser(
        "demo-recover",
        help="recover to a checkpoint beside a running worker, replay, and prove that everything came back",
        description="Start the whole stack in a temporary folder; publish half of the users, make a checkpoint, publish\n"
        "the other half; recover to the checkpoint while the worker runs, have Pub/Sub deliver again what was undone, and\n"
        "compare a fresh restore from the bucket. Exit code 0: every user is there, once. It needs the Pub/Sub emulator.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=USERS, help="how many to publish in all (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="solowriter-demo-") as directory:
        result = demo_recover(Path(directory), users=arguments.users, console=console)
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in result.rows():
        table.add_row(name, value)
    console.print(table)
    verdict = "proved: what the recovery undid came back, once" if result.passed else "FAILED"
    console.print(verdict, style="green" if result.passed else "red")
    return 0 if result.passed else 1


def demo_recover(directory: Path, *, users: int, console: Console) -> Result:
    """Run the scenario in `directory`.

    Raises:
        RuntimeError: There is no emulator, or a command failed.
    """
    with stack(directory, settings=SETTINGS, say=lambda line: console.print(line, style="dim")) as running:
        if running.pubsub is None:
            raise RuntimeError(running.why_not)
        with Recorder(running.worker.url, free_port()) as recorder, kept_up(running.worker):
            running.subscribe(recorder.url)
            console.print(f"publishing {users // 2:,} users")
            first = _publish(running, recorder, directory / "first", range(1, users // 2 + 1))
            checkpoint = command(running, console, "checkpoint", "--name", "good")
            console.print(f"publishing {users - users // 2:,} more, which a bad deployment will have written")
            second = _publish(running, recorder, directory / "second", range(users // 2 + 1, users + 1))
            undone = directory / "undone.txt"
            again = ("--replay", "--yes", "--settle", str(_SETTLE_SECONDS), "--undone", str(undone))
            recovered = command(running, console, "recover", "--at", checkpoint["created_at"], *again)
        console.print("stopping the worker, restoring the bucket with plain litestream", style="dim")
        running.worker.stop()
        proof = prove(running.gcs.url, running.replica_url, first | second)
    return Result(len(first | second), len(undone.read_text().split()), recovered["redelivered"]["outcomes"], proof)


@contextmanager
def kept_up(worker: WorkerProcess) -> Iterator[None]:
    """Start the worker again whenever it has ended in order, as Cloud Run does, while the block runs."""
    down = threading.Event()

    def keep_up() -> None:
        while not down.wait(0.05):
            if worker.code is not None:
                worker.start()

    thread = threading.Thread(target=keep_up, name="platform", daemon=True)
    thread.start()
    try:
        yield
    finally:
        down.set()
        thread.join()


def command(running: Stack, console: Console, *arguments: str) -> Any:
    """Run a command of the worker against the stack, its progress shown; what it printed as JSON.

    Raises:
        RuntimeError: It failed.
    """
    console.print(f"$ python -m worker {' '.join(arguments)}", style="bold", highlight=False, soft_wrap=True)
    environment = {**running.publisher_environment(), "SUBSCRIPTION": f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}"}
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments, "--json"],
        env=running.worker.environment | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=_FLOW_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"worker {arguments[0]} ended with {done.returncode}; see above")
    found = json.loads(done.stdout)
    for name, value in found.items():
        console.print(f"  {name}: {_shown(value)}", style="dim", highlight=False, soft_wrap=True)
    return found


def _shown(value: Any) -> str:
    """A value of a command's JSON in a line: of a list the length, of an object what is in it."""
    if isinstance(value, list):
        return f"{len(value):,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return str(value)


def _publish(running: Stack, recorder: Recorder, stem: Path, users: range) -> dict[str, int]:
    """Publish users and wait for their acknowledgements; message id to user id."""
    lines, known = stem.with_suffix(".jsonl"), stem.with_suffix(".accepted")
    lines.write_text("".join(f'{{"user_id": {user}}}\n' for user in users))
    subprocess.run(
        [sys.executable, "-m", "publisher", "load", str(lines), "--accepted", str(known)],
        env={**os.environ, **running.publisher_environment()},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=_FLOW_SECONDS,
    )
    published = accepted(known)
    wait_until(lambda: recorder.acknowledged.keys() >= published.keys(), "every acknowledgement", seconds=_FLOW_SECONDS)
    return published
