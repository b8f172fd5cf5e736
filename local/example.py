"""`make example`: the events of examples/orders on the whole stack, from a CSV file to a restore; each step is proved."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console

from local.ports import free_port
from local.recorder import Recorder
from local.stack import Stack, stack
from local.worker_process import ROOT, wait_until

EVENTS: Final = "worker.events.users,examples.orders"
CSV: Final = "examples/orders/orders.csv"
OUTCOMES: Final = {"created": 4, "conflict": 1, "updated": 1, "stale": 1, "erased": 1}
"""What the messages of the example come to, by their receipts."""
_COMMAND_SECONDS: Final = 60.0


class StepFailed(RuntimeError):
    """A step did not do what it shows; the text says what it did."""


def register(subparsers: Any) -> None:
    """Add the subcommand `example`."""
    parser = subparsers.add_parser(
        "example",
        help="the events of examples/orders: published, read, changed, erased, restored",
        description="Start the whole stack in a temporary folder with the events of examples/orders; load a CSV file of\n"
        "orders, read them over HTTP, show a conflict, a change, a change that comes too late and an erasure, and restore\n"
        "the bucket to a file. Exit code 0: each step did what it shows. docs/events.md walks through it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> int:
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="solowriter-example-") as directory:
            example(Path(directory), console)
    except StepFailed as error:
        console.print(f"FAILED: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print("proved: each step did what it shows", style="green")
    return 0


def example(directory: Path, console: Console) -> None:
    """Run the steps in `directory`.

    Raises:
        StepFailed: One did something else.
    """
    with stack(directory, settings={"EVENTS": EVENTS}, say=lambda line: console.print(line, style="dim")) as running:
        with Recorder(running.worker.url, free_port()) as recorder:
            running.subscribe(recorder.url)
            if running.pubsub is None:
                console.print(f"no Pub/Sub emulator: {running.why_not}\ndelivering with --push-to instead", style="yellow")
            steps = _Steps(running, recorder, directory, console)
            steps.load()
            steps.read()
            steps.conflict()
            steps.change()
            steps.too_late()
            steps.erase()
            steps.restore()


@dataclass(frozen=True)
class _Steps:
    """The steps, in the order in which they are run: each goes on with what the ones before it have made."""

    running: Stack
    recorder: Recorder
    directory: Path
    console: Console

    def load(self) -> None:
        """A CSV file is checked against the event, and each of its rows becomes a message."""
        self._say("load a CSV file: each row is a message, checked before it is published")
        loaded = self._publisher("load", CSV, "--event", "order.placed")
        self._expect(loaded["accepted"], 4, "accepted")
        wait_until(lambda: len(self.recorder.acknowledged) == 4, "the acknowledgement of four orders")

    def read(self) -> None:
        """A row by its key, and all rows in the order of their keys, a page at a time."""
        self._say("read it back: one order by its key, and all of them page by page")
        self._expect(self._get("/tables/orders/A-1001")["total_cents"], 4250, "its total")
        first = self._get("/tables/orders", limit="3")
        self._expect([row["order_id"] for row in first["rows"]], ["A-1001", "A-1002", "A-1003"], "the first page")
        second = self._get("/tables/orders", limit="3", after=first["after"])
        self._expect([row["order_id"] for row in second["rows"]], ["A-1004"], "the second page")

    def conflict(self) -> None:
        """An order that is there is not placed again: the message with another total is kept for a person."""
        self._say("a conflict: the same order, placed with another total, is kept for a person and changes nothing")
        message_id = self._create("order.placed", order_id="A-1001", customer_id="5", total_cents="1")
        (kept,) = self._worker("rejections", "list")
        self._expect((kept["message_id"], kept["reason"]), (message_id, "conflict"), "the rejection")
        self._expect(kept["detail"], "orders has this order_id with another total_cents", "its text")
        self._expect(self._get("/tables/orders/A-1001")["total_cents"], 4250, "the total")

    def change(self) -> None:
        """A message of a higher revision replaces the order."""
        self._say("a change: the order's revision 2 replaces what was placed")
        self._create("order.changed", order_id="A-1001", customer_id="5", total_cents="3990", revision="2")
        self._expect(self._get("/tables/orders/A-1001")["total_cents"], 3990, "the total")

    def too_late(self) -> None:
        """A message of a lower revision has no effect, however late it comes."""
        self._say("a change that comes too late: revision 1 is stale, and changes nothing")
        self._create("order.changed", order_id="A-1001", customer_id="5", total_cents="4100", revision="1")
        row = self._get("/tables/orders/A-1001")
        self._expect((row["total_cents"], row["revision"]), (3990, 2), "the total and the revision")

    def erase(self) -> None:
        """A customer's orders go, the rejected message too, and no later message brings them back."""
        self._say("erase customer 5: the orders go, the rejected message too, and a message that comes later has no effect")
        removed = self._worker("erase", "5", "--yes")
        self._expect((removed["rows"], removed["rejections"]), (2, 1), "rows and rejections removed")
        self._create("order.placed", order_id="A-1009", customer_id="5", total_cents="100")
        left = [row["order_id"] for row in self._get("/tables/orders")["rows"]]
        self._expect(left, ["A-1003", "A-1004"], "the orders that are left")

    def restore(self) -> None:
        """The bucket holds all of it: the rows that are left, and what each message came to."""
        self._say("restore the bucket to a file, and look into it")
        file = self.directory / "restored.db"
        restored = self._worker("restore", "-o", str(file))
        self._expect(restored["rows"], {"users": 0, "orders": 2}, "rows")
        with closing(sqlite3.connect(file)) as database:
            outcomes = dict(database.execute("SELECT outcome, count(*) FROM receipts GROUP BY outcome"))
            keys = [key for (key,) in database.execute("SELECT order_id FROM orders ORDER BY order_id")]
        self._expect(keys, ["A-1003", "A-1004"], "the orders in the file")
        self._expect(outcomes, OUTCOMES, "what the messages came to")

    def _create(self, event: str, **fields: str) -> str:
        """Publish one message and wait for its acknowledgement; its id."""
        options = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
        message_id: str = self._publisher("create", "--event", event, *options)["message_id"]
        if self.running.pubsub is not None:  # with --push-to the publisher has waited
            wait_until(lambda: message_id in self.recorder.acknowledged, f"the acknowledgement of message {message_id}")
        return message_id

    def _publisher(self, *arguments: str) -> Any:
        environment = {**os.environ, **self.running.publisher_environment(), "EVENTS": EVENTS}
        to = () if self.running.pubsub is not None else ("--push-to", self.recorder.url)
        return self._ran("publisher", (*arguments, *to), environment)

    def _worker(self, *arguments: str) -> Any:
        address = {"SERVICE_URL": self.running.worker.url}
        return self._ran("worker", arguments, self.running.worker.environment | address)

    def _ran(self, program: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> Any:
        """Run a command; what it printed as JSON."""
        self._print(f"$ python -m {program} {shlex.join(arguments)}")
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments, "--json"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
        if done.returncode != 0:
            raise StepFailed(f"{program} {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.running.worker.url}{path}", params=parameters, timeout=_COMMAND_SECONDS, trust_env=False)
        self._print(f"GET {str(answer.url).removeprefix(self.running.worker.url)}")
        if not answer.is_success:
            raise StepFailed(f"GET {path} was answered {answer.status_code}: {answer.text}")
        return answer.json()

    def _expect(self, value: object, expected: object, what: str) -> None:
        if value != expected:
            raise StepFailed(f"{what}: {value}, not {expected}")
        self._print(f"  {what}: {value}")

    def _say(self, line: str) -> None:
        self.console.print(f"\n{line}", style="bold", markup=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
