"""`make demo`: publish, kill, wipe, restore, and prove that nothing acknowledged was lost."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.ports import free_port
from local.proof import Proof, accepted, prove
from local.recorder import Recorder
from local.stack import Stack, stack
from local.worker_process import ROOT, wait_until

USERS: Final = 1000
KILLS: Final = 2
_RECOVERY_SECONDS: Final = 60.0
_FLOW_SECONDS: Final = 150.0


@dataclass(slots=True)
class Result:
    """What the demo found."""

    published: int
    acknowledged: int
    proof: Proof
    recoveries: list[float]

    @property
    def passed(self) -> bool:
        """Whether everything published was acknowledged, and everything acknowledged is in the bucket once."""
        return self.proof.holds and self.acknowledged == self.published == self.proof.users

    def rows(self) -> list[tuple[str, str]]:
        """The figures, as they are printed."""
        return [
            ("published", f"{self.published:,}"),
            ("acknowledged", f"{self.acknowledged:,}"),
            ("in the bucket", f"{self.proof.users:,}"),
            ("lost", str(len(self.proof.lost))),
            ("duplicated", str(len(self.proof.duplicated))),
            ("kills (-9, disk wiped)", str(len(self.recoveries))),
            ("seconds to recover", ", ".join(f"{seconds:.1f}" for seconds in self.recoveries)),
        ]


def register(subparsers: Any) -> None:
    """Add the subcommand `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="publish, kill -9, wipe, restore, and prove that nothing was lost",
        description="Start the whole stack in a temporary folder, publish users through the real Pub/Sub emulator, kill\n"
        "the worker and its Litestream with -9 and delete their disk while messages flow, start again, and compare every\n"
        "acknowledged message with a fresh restore from the bucket. Exit code 0: nothing lost, nothing twice.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=USERS, help="how many to publish (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=KILLS, help="how often to kill and wipe (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    console = Console(stderr=arguments.json)
    with tempfile.TemporaryDirectory(prefix="solowriter-demo-") as directory:
        result = demo(Path(directory), users=arguments.users, kills=arguments.kills, console=console)
    if arguments.json:
        print(json.dumps(dict(result.rows()) | {"passed": result.passed}))
        return 0 if result.passed else 1
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in result.rows():
        table.add_row(name, value)
    console.print(table)
    verdict = "proved: every acknowledged message is in the bucket, once" if result.passed else "FAILED"
    console.print(verdict, style="green" if result.passed else "red")
    return 0 if result.passed else 1


def demo(directory: Path, *, users: int, kills: int, console: Console) -> Result:
    """Run the scenario in `directory`."""
    with stack(directory, say=lambda line: console.print(line, style="dim")) as running:
        with Recorder(running.worker.url, free_port()) as recorder:
            running.subscribe(recorder.url)
            if running.pubsub is None:
                console.print(f"no Pub/Sub emulator: {running.why_not}\ndelivering with --push-to instead", style="yellow")
            console.print(f"publishing {users:,} users")
            publishing = _publish(running, recorder, directory, users)
            try:
                recoveries = _watch(running, recorder, users, kills, console)
                if publishing.wait(_FLOW_SECONDS) != 0:
                    raise RuntimeError("the publisher did not get every message accepted; see above")
            finally:
                publishing.kill()
                publishing.wait()
            published = accepted(directory / "accepted.jsonl")
            wait_until(lambda: recorder.acknowledged.keys() >= published.keys(), "every acknowledgement")
            acknowledged = {message: published[message] for message in recorder.acknowledged}
        console.print("stopping the worker, restoring the bucket with plain litestream", style="dim")
        running.worker.stop()
        proof = prove(running.gcs.url, running.replica_url, acknowledged)
    return Result(len(published), len(acknowledged), proof, recoveries)


def _publish(running: Stack, recorder: Recorder, directory: Path, users: int) -> subprocess.Popen[bytes]:
    lines = directory / "users.jsonl"
    lines.write_text(
        "".join(json.dumps({"user_id": n, "email_address": f"user{n}@example.com"}) + "\n" for n in range(1, users + 1))
    )
    target = [] if running.pubsub is not None else ["--push-to", recorder.url]
    return subprocess.Popen(
        [sys.executable, "-m", "publisher", "load", str(lines), "--accepted", str(directory / "accepted.jsonl"), *target],
        env={**os.environ, **running.publisher_environment()},
        cwd=ROOT,
        stdout=sys.stderr,  # with --json, stdout is one object and nothing else
    )


def _watch(running: Stack, recorder: Recorder, users: int, kills: int, console: Console) -> list[float]:
    """Show the acknowledgements come in; kill and wipe at random moments among them; the seconds each recovery took."""
    moments = sorted(random.sample(range(users // 10, users * 9 // 10), kills))
    recoveries: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    until = time.monotonic() + _FLOW_SECONDS
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("acknowledged", total=users)
        while len(recorder.acknowledged) < users:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(recorder.acknowledged)} of {users} acknowledged in {_FLOW_SECONDS:g} s")
            progress.update(task, completed=len(recorder.acknowledged))
            if moments and len(recorder.acknowledged) >= moments[0]:
                moments.pop(0)
                recoveries.append(_kill_and_recover(running, recorder, progress))
            time.sleep(0.01)
        progress.update(task, completed=users)
    return recoveries


def _kill_and_recover(running: Stack, recorder: Recorder, progress: Progress) -> float:
    """Kill -9 the worker and its Litestream, delete their disk, start again; the seconds to the next acknowledgement."""
    killed = time.monotonic()
    running.worker.kill()
    running.worker.wipe()
    before = len(recorder.acknowledged)
    progress.console.print(
        f"killed -9 the worker and Litestream after {before:,} acknowledgements, and deleted their disk", soft_wrap=True
    )
    running.worker.start()
    wait_until(lambda: len(recorder.acknowledged) > before, "an acknowledgement after a restore", seconds=_RECOVERY_SECONDS)
    seconds = time.monotonic() - killed
    progress.console.print(f"restored and acknowledging again after {seconds:.1f} s")
    return seconds
