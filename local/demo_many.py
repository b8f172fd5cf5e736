"""`make demo-many`: many instances on PostgreSQL pull one backlog; one of them, then the database, is killed meanwhile.

Every message that Pub/Sub accepted must have one receipt, and every user one row, made by one message. Some messages are
published twice, some contradict an earlier one, and what a killed instance held is delivered again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.postgres import Postgres, PostgresMissing, postgres
from local.proof import accepted
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.stack import PROJECT, SUBSCRIPTION, TOPIC, create_subscription
from local.worker_process import ROOT, WorkerProcess
from publisher import message

MESSAGES: Final = 100_000
INSTANCES: Final = 3
_AGAIN, _AGAINST = 0.05, 0.01
"""The parts of the messages that say again what one before them has said, and that contradict one."""
_REPEAT_EACH: Final = 50
"""Each so many a message is delivered once more at the end, by push."""
_INSTANCE_AT, _DATABASE_AT = 0.25, 0.6
"""When they are killed, as parts of the messages handled."""
_ACK_DEADLINE_SECONDS: Final = 15
"""Short, because what a killed instance held comes back only then."""
_COME_BACK_SECONDS: Final = _ACK_DEADLINE_SECONDS + 5.0
_FLOW_SECONDS: Final = 900.0
_LOOK_SECONDS: Final = 0.2
_AGAIN_SECONDS: Final = 60.0
"""So long a message that is refused is delivered again: a worker may not have its connection back yet."""


@dataclass(slots=True)
class Result:
    """What the demo found."""

    published: int
    users: int
    seconds: float
    publishing: float
    lost: list[str]
    doubled: list[str]
    outcomes: dict[str, int]
    expected: dict[str, int]
    repeated: int
    duplicates: int
    events: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every message had its one effect."""
        had_one_effect = not self.lost and not self.doubled and self.outcomes == self.expected
        return had_one_effect and self.duplicates >= self.repeated

    def rows(self) -> list[tuple[str, str]]:
        """The figures, as they are printed."""
        return [
            ("published", f"{self.published:,}"),
            ("receipts", ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items()))),
            ("users", f"{self.users:,}"),
            ("lost", str(len(self.lost))),
            ("doubled", str(len(self.doubled))),
            ("delivered again", f"{self.repeated:,} by push; {self.duplicates:,} duplicates were counted"),
            ("killed -9", ", ".join(self.events)),
            ("seconds", f"{self.seconds:.1f} from the first message to the last; the publisher took {self.publishing:.1f}"),
        ]


@dataclass(slots=True)
class Flow:
    """How the messages went: the seconds from the first receipt to the last, the publisher's, and what was killed when."""

    seconds: float = 0.0
    publishing: float = 0.0
    events: list[str] = field(default_factory=list)


def register(subparsers: Any) -> None:
    """Add the subcommand `demo-many`."""
    parser = subparsers.add_parser(
        "demo-many",
        help="many instances on PostgreSQL, one and the database killed, and the proof",
        description="Start a PostgreSQL, the real Pub/Sub emulator and workers that pull, in a temporary folder; publish\n"
        "users, some of them twice and some with other content; kill -9 one worker and then the database meanwhile; and\n"
        "compare each message that was accepted with its receipt and its row. Exit code 0: nothing lost, nothing twice.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--messages", type=int, default=MESSAGES, help="how many to publish (default: %(default)s)")
    parser.add_argument("--instances", type=int, default=INSTANCES, help="how many workers (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    console = Console(stderr=arguments.json)
    try:
        with tempfile.TemporaryDirectory(prefix="solowriter-demo-many-") as directory:
            result = demo(Path(directory), messages=arguments.messages, instances=arguments.instances, console=console)
    except (EmulatorMissing, PostgresMissing) as error:
        console.print(f"error: {error}", style="bold red", soft_wrap=True)
        return 2
    if arguments.json:
        print(json.dumps(dict(result.rows()) | {"passed": result.passed}))
        return 0 if result.passed else 1
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in result.rows():
        table.add_row(name, value)
    console.print(table)
    verdict = "proved: every message has one receipt, and every user one row" if result.passed else "FAILED"
    console.print(verdict, style="green" if result.passed else "red")
    console.print(
        f"the seconds hold {_ACK_DEADLINE_SECONDS} in which what the killed instance held was not delivered again yet;\n"
        "one machine runs the emulator, the publisher, PostgreSQL and the workers: bench/README.md has rates",
        style="dim",
        soft_wrap=True,
    )
    return 0 if result.passed else 1


def demo(directory: Path, *, messages: int, instances: int, console: Console) -> Result:
    """Run the scenario in `directory`.

    Raises:
        EmulatorMissing: There is no emulator to pull from.
        PostgresMissing: There is no PostgreSQL.
    """
    lines, expected = drawn(messages)
    with ExitStack() as parts:
        console.print("starting PostgreSQL and the Pub/Sub emulator", style="dim")
        server = parts.enter_context(postgres())
        pubsub = parts.enter_context(emulator(directory / "pubsub", PROJECT))
        create_subscription(pubsub, {"ackDeadlineSeconds": _ACK_DEADLINE_SECONDS})
        console.print(f"starting {instances} workers", style="dim")
        workers = parts.enter_context(_workers(directory, server, pubsub, instances))
        console.print(f"publishing {messages:,} messages")
        publishing = parts.enter_context(_publishing(directory, pubsub, lines))
        flow = _watch(server, workers, messages, publishing, console)
        if publishing.wait(_FLOW_SECONDS) != 0:
            raise RuntimeError("the publisher did not get every message accepted; see above")
        published = accepted(directory / "accepted.jsonl")
        repeated = list(published.items())[::_REPEAT_EACH]
        console.print(f"delivering {len(repeated):,} of them once more, by push")
        _repeat(workers, repeated)
        console.print(f"waiting {_COME_BACK_SECONDS:g} s for what the killed ones held: it comes again", style="dim")
        time.sleep(_COME_BACK_SECONDS)
        console.print("stopping the workers, and comparing every message with the database", style="dim")
        duplicates = sum(_duplicates(worker) for worker in workers)
        for worker in workers:
            worker.stop()
        lost, doubled, outcomes, users = _compared(server, published)
    return Result(
        published=len(published),
        users=users,
        seconds=flow.seconds,
        publishing=flow.publishing,
        lost=lost,
        doubled=doubled,
        outcomes=outcomes,
        expected=expected,
        repeated=len(repeated),
        duplicates=duplicates,
        events=flow.events,
    )


def drawn(messages: int) -> tuple[list[dict[str, object]], dict[str, int]]:
    """The messages' contents in order, and how many of each outcome they must come to, however the instances share them."""
    again, against = round(messages * _AGAIN), round(messages * _AGAINST)
    users = messages - again - against
    lines: list[dict[str, object]] = [_user(number) for number in range(1, users + 1)]
    for number in range(again):  # of the first users, each behind the place of another one
        lines.insert(2 * number * users // messages + number, _user(number + 1))
    lines += [{**_user(users - number), "email_address": "another@example.com"} for number in range(against)]
    counts = {"created": users, "exists": again, "conflict": against}
    return lines, {outcome: count for outcome, count in counts.items() if count}


def _user(number: int) -> dict[str, object]:
    return {"user_id": number, "email_address": f"user{number}@example.com"}


@contextlib.contextmanager
def _workers(directory: Path, server: Postgres, pubsub: Emulator, count: int) -> Iterator[list[WorkerProcess]]:
    environment = {
        "DATABASE_URL": server.create("users"),
        "DELIVERY": "pull",
        "SUBSCRIPTION": f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}",
        "PUBSUB_EMULATOR_HOST": pubsub.host,
        "ACK_DEADLINE_SECONDS": str(_ACK_DEADLINE_SECONDS),
    }
    workers = [
        WorkerProcess(
            disk=directory / f"disk{number}",
            replica_url="",
            environment=environment,
            port=0,
            log=directory / f"worker{number}.log",
        )
        for number in range(1, count + 1)
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_serving()
        yield workers
    finally:
        for worker in workers:
            worker.kill()


@contextlib.contextmanager
def _publishing(directory: Path, pubsub: Emulator, lines: list[dict[str, object]]) -> Iterator[subprocess.Popen[bytes]]:
    file = directory / "users.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "publisher", "load", str(file), "--accepted", str(directory / "accepted.jsonl")]
    environment = {**os.environ, **pubsub.gcloud_env(), "GOOGLE_CLOUD_PROJECT": PROJECT, "TOPIC": TOPIC}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _watch(
    server: Postgres,
    workers: list[WorkerProcess],
    messages: int,
    publishing: subprocess.Popen[bytes],
    console: Console,
) -> Flow:
    """Show the receipts come in, and kill."""
    flow, handled, started, first = Flow(), 0, time.monotonic(), 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("handled", total=messages)
        while handled < messages:
            if time.monotonic() > started + _FLOW_SECONDS or publishing.poll() not in (None, 0):
                raise TimeoutError(f"{handled:,} of {messages:,} handled; the publisher ended with {publishing.poll()}")
            time.sleep(_LOOK_SECONDS)
            if publishing.poll() is None:
                flow.publishing = time.monotonic() - started
            handled = _handled(server, handled)
            first = first or (time.monotonic() if handled else 0.0)
            progress.update(task, completed=handled)
            if not flow.events and handled >= messages * _INSTANCE_AT:
                flow.events.append(f"an instance at {handled:,}")
                progress.console.print(f"killed -9 one of {len(workers)} instances after {handled:,} messages")
                workers[0].kill()
                workers[0].start()
            elif len(flow.events) == 1 and handled >= messages * _DATABASE_AT:
                flow.events.append(f"the database at {handled:,}")
                progress.console.print(f"killed -9 the database after {handled:,} messages")
                killed = time.monotonic()
                server.kill()
                server.start()
                progress.console.print(f"the database is up again after {time.monotonic() - killed:.1f} s")
        flow.seconds = time.monotonic() - first
    return flow


def _repeat(workers: list[WorkerProcess], messages: list[tuple[str, int]]) -> None:
    """Deliver messages by push, to one worker after the other.

    Raises:
        HTTPStatusError: One was not acknowledged, also when it came again after a 503, as Pub/Sub has it.
    """
    subscription = f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}"
    with httpx.Client(trust_env=False, timeout=60) as client:
        for number, (message_id, user) in enumerate(messages):
            data = json.dumps(_user(user)).encode()
            body = message.envelope(data, {}, message_id, "2026-01-01T00:00:00Z", subscription)
            until = time.monotonic() + _AGAIN_SECONDS
            while True:
                answer = client.post(workers[number % len(workers)].url, content=body)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
                    break
                time.sleep(_LOOK_SECONDS)
            answer.raise_for_status()


def _handled(server: Postgres, before: int) -> int:
    try:
        return int(server.execute("SELECT count(*) FROM receipts", database="users")[0][0])
    except psycopg.Error:
        return before


def _duplicates(worker: WorkerProcess) -> int:
    """The messages that this life of a worker has answered as duplicates; an earlier life's count died with it."""
    for line in httpx.get(f"{worker.url}/metrics", trust_env=False, timeout=60).text.splitlines():
        if line.startswith('solowriter_messages_total{outcome="duplicate"}'):
            return int(float(line.rpartition(" ")[2]))
    return 0


def _compared(server: Postgres, published: dict[str, int]) -> tuple[list[str], list[str], dict[str, int], int]:
    """The messages without receipt or row, the users made twice, the receipts by outcome, and the number of rows."""
    receipts = dict(server.execute("SELECT message_id, outcome FROM receipts", database="users"))
    rows = [user for (user,) in server.execute("SELECT user_id FROM users", database="users")]
    twice = "SELECT subject FROM receipts WHERE outcome = 'created' GROUP BY subject HAVING count(*) > 1"
    doubled = [subject for (subject,) in server.execute(twice, database="users")]
    there = set(rows)
    lost = [message_id for message_id, user in published.items() if message_id not in receipts or user not in there]
    doubled += [message_id for message_id in receipts if message_id not in published]
    outcomes: dict[str, int] = {}
    for outcome in receipts.values():
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return lost, doubled, outcomes, len(rows)
