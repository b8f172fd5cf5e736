"""How many messages a second do one, two and four instances take on PostgreSQL, by push and by pull, and at what CPU each?

By push, wrk pushes at all instances at once. By pull, a backlog waits in the real emulator before the workers start; what
is timed begins with the first message handled. One instance on SQLite, with the fake bucket, is measured beside them in the
same run. CPU is that of the workers with their Litestream, and that of PostgreSQL, for each message. All of them, wrk or the
emulator, and PostgreSQL share this machine's cores: more instances than cores show what they cost, not what they could do.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from bench import wrk
from bench.errors import Worthless, with_exit_code
from bench.figures import README, machine, rewrite, table
from bench.process import cpu_seconds
from bench.store import memory, open_store
from local.postgres import Postgres, postgres
from local.pubsub import Emulator, emulator
from local.stack import PROJECT, TOPIC
from local.worker_process import ROOT, WorkerProcess

CONNECTIONS: Final = 256
_SECONDS: Final = 5
_MESSAGES: Final = 40_000
_DEADLINE: Final = "60"
_LOOK_SECONDS: Final = 0.1
_END_SECONDS: Final = 300.0
_COUNTS: Final = ("sqlite", 1), ("postgresql", 1), ("postgresql", 2), ("postgresql", 4)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: messages a second, and microseconds of CPU for each message, of the workers and of the database."""

    engine: str
    instances: int
    delivery: str
    per_second: float
    worker_us: float
    database_us: float

    def row(self) -> tuple[str, ...]:
        """As the table has it."""
        name = "SQLite and the bucket" if self.engine == "sqlite" else "PostgreSQL"
        database = f"{self.database_us:.0f}" if self.engine == "postgresql" else "in the worker's"
        return (name, str(self.instances), self.delivery, f"{self.per_second:,.0f}", f"{self.worker_us:.0f}", database)


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = _parser().parse_args(arguments)
    load = os.getloadavg()[0]
    wrk.find()
    found = []
    with tempfile.TemporaryDirectory(prefix="solowriter-bench-", dir=memory()) as name:
        with _backlog(Path(name), options.messages) as pubsub:
            for number, (engine, count) in enumerate(_COUNTS):
                for delivery in ("push", "pull"):
                    with _workers(Path(name), pubsub, engine, count, delivery, number) as (workers, server):
                        if delivery == "push":
                            measured = _pushed(workers, server, options.seconds)
                        else:
                            measured = _pulled(workers, server, options.messages)
                    found.append(Measured(engine, count, delivery, *measured))
                    print(found[-1].row(), file=sys.stderr)
    figures = (
        f"{machine()}; {options.seconds} s of {CONNECTIONS} connections by push, a backlog of {options.messages:,} by pull; "
        f"one run. The machine's load before it began: {load:.1f}.\n\n"
        + table(
            (
                "engine",
                "instances",
                "delivery",
                "messages/s",
                "workers' CPU, µs a message",
                "PostgreSQL's CPU, µs a message",
            ),
            [each.row() for each in found],
        )
    )
    print(figures)
    if options.write:
        rewrite(README, "many", figures)


@contextlib.contextmanager
def _backlog(folder: Path, messages: int) -> Iterator[Emulator]:
    """An emulator in which a subscription for each run holds so many users."""
    with emulator(folder / "pubsub", PROJECT) as pubsub:
        topic = f"projects/{PROJECT}/topics/{TOPIC}"
        with httpx.Client(base_url=f"{pubsub.url}/v1/", trust_env=False, timeout=60) as client:
            client.put(topic, json={}).raise_for_status()
            for number in range(len(_COUNTS)):
                wanted = {"topic": topic, "ackDeadlineSeconds": int(_DEADLINE)}
                client.put(_subscription(number), json=wanted).raise_for_status()
        lines = folder / "users.jsonl"
        text = (json.dumps({"user_id": n, "email_address": f"user{n}@example.com"}) for n in range(1, messages + 1))
        lines.write_text("\n".join(text))
        environment = {**os.environ, **pubsub.gcloud_env(), "GOOGLE_CLOUD_PROJECT": PROJECT, "TOPIC": TOPIC}
        command = [sys.executable, "-m", "publisher", "load", str(lines)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=sys.stderr, timeout=600)
        yield pubsub


def _subscription(number: int) -> str:
    return f"projects/{PROJECT}/subscriptions/many-{number}"


@contextlib.contextmanager
def _workers(
    folder: Path, pubsub: Emulator, engine: str, count: int, delivery: str, number: int
) -> Iterator[tuple[list[WorkerProcess], Postgres | None]]:
    environment = {"ACK_DEADLINE_SECONDS": _DEADLINE, "LOG_LEVEL": "warning"}
    if delivery == "pull":
        environment |= {"DELIVERY": "pull", "SUBSCRIPTION": _subscription(number), "PUBSUB_EMULATOR_HOST": pubsub.host}
    with contextlib.ExitStack() as parts:
        if engine == "sqlite":
            store = parts.enter_context(open_store())
            workers, server = [store.worker("r1", environment)], None
        else:
            server = parts.enter_context(postgres())
            environment |= {"DATABASE_URL": server.create("users")}
            workers = [_place(folder / f"{delivery}{number}-{each}", environment) for each in range(count)]
        for worker in workers:
            parts.callback(worker.kill)
            worker.start()
        if delivery == "push":
            for worker in workers:
                worker.wait_serving()
        yield workers, server


def _place(folder: Path, environment: Mapping[str, str]) -> WorkerProcess:
    return WorkerProcess(disk=folder, replica_url="", environment=environment, port=0, log=folder.with_suffix(".log"))


def _pushed(workers: Sequence[WorkerProcess], server: Postgres | None, seconds: int) -> tuple[float, float, float]:
    """Push at all of them at once; the figures."""
    with ThreadPoolExecutor(len(workers)) as pool:

        def push(numbers: range, length: int) -> list[wrk.Run]:
            each = CONNECTIONS // len(workers)
            lanes = zip(workers, numbers, strict=True)
            runs = [
                pool.submit(wrk.run, worker.url, connections=each, seconds=length, number=lane) for worker, lane in lanes
            ]
            return [run.result().sound("push") for run in runs]

        push(range(len(workers)), 1)
        before = _cpu(workers, server)
        runs = push(range(100, 100 + len(workers)), seconds)
    count = sum(run.acknowledged for run in runs)
    return sum(run.per_second for run in runs), *_each(before, _cpu(workers, server), count)


def _pulled(workers: Sequence[WorkerProcess], server: Postgres | None, messages: int) -> tuple[float, float, float]:
    """Wait until all are handled; the figures from the first look that finds some handled."""
    until = time.monotonic() + _END_SECONDS
    first, began, before = 0, 0.0, (0.0, 0.0)
    while (handled := sum(map(_handled, workers))) < messages:
        if handled and not first:
            first, began, before = handled, time.monotonic(), _cpu(workers, server)
        if time.monotonic() > until:
            raise Worthless(f"{handled:,} of {messages:,} were handled in {_END_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)
    if not first:
        raise Worthless("all were handled at once: more --messages")
    count = handled - first
    return count / (time.monotonic() - began), *_each(before, _cpu(workers, server), count)


def _handled(worker: WorkerProcess) -> int:
    with contextlib.suppress(httpx.HTTPError):
        page = httpx.get(f"{worker.url}/metrics", trust_env=False, timeout=10).text
        lines = [line for line in page.splitlines() if line.startswith("solowriter_messages_total{")]
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))
    return 0


def _cpu(workers: Sequence[WorkerProcess], server: Postgres | None) -> tuple[float, float]:
    return sum(sum(cpu_seconds(worker.pid)) for worker in workers), sum(cpu_seconds(server.pid)) if server else 0.0


def _each(before: tuple[float, float], after: tuple[float, float], count: int) -> tuple[float, float]:
    return (after[0] - before[0]) / count * 1e6, (after[1] - before[1]) / count * 1e6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.many", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=_SECONDS, help="of pushing (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=_MESSAGES, help="in the backlog (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
