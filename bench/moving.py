"""How long does a store take to PostgreSQL and back, and how much memory?

A store of so many users is made in a fake bucket, each with a receipt, and of each thousand one rejection and one erased
subject. `worker move` copies it into an empty PostgreSQL, and `worker export` copies that into a SQLite file. Both prove by
counts and digests what they wrote; here the digests of both are compared as well. The memory is the most that the command
or a Litestream of its restore had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import Worthless, with_exit_code
from bench.figures import README, machine, rewrite, table
from bench.pushes import Pushes
from bench.store import MEGABYTE, Store, open_store
from local.postgres import postgres
from local.worker_process import ROOT
from worker.database import connections
from worker.database.models import Erased, Receipt, Rejection
from worker.events.users import User

_USERS: Final = (100_000, 1_000_000)
_AT_ONCE: Final = 5_000
_PUBLISHED: Final = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Copy:
    """One command: its seconds, its peak memory, and each table's rows and digest."""

    seconds: float
    megabytes: float
    tables: dict[str, tuple[int, str]]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(rows for rows, _ in self.tables.values())


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = _parser().parse_args(arguments)
    lines = []
    for users in options.users:
        size, there, back = measure(users)
        if there.tables != back.tables:
            raise Worthless(f"the file that came back differs: {there.tables}, {back.tables}")
        lines.append(
            (
                *(f"{users:,}", f"{there.rows:,}", f"{size / MEGABYTE:,.0f}"),
                *(f"{there.seconds:.1f}", f"{there.megabytes:,.0f}", f"{back.seconds:.1f}", f"{back.megabytes:,.0f}"),
                "the same",
            )
        )
        print(lines[-1], file=sys.stderr)
    header = ("users", "rows", "file, MB", "move, s", "memory, MB", "export, s", "memory, MB", "digests of each table")
    figures = f"{machine()}; load before: {options.load:.1f}; PostgreSQL on the same machine.\n\n{table(header, lines)}"
    print(figures)
    if options.write:
        rewrite(README, "moving", figures)


def measure(users: int) -> tuple[int, Copy, Copy]:
    """A store of so many users there and back: the bytes of its file, and the two copies."""
    with open_store() as store, postgres() as server:
        worker = store.worker("r1").start().wait_serving()
        _fill(worker.disk / "users.db", users)
        asyncio.run(Pushes(worker.url).send(1))  # an acknowledgement confirms all that was committed before it
        worker.stop()
        url = server.create("moved")
        there = _run(store, {"REPLICA_URL": store.replica_url}, "move", "--to", url)
        output = store.directory / "back.db"
        back = _run(store, {"DATABASE_URL": url}, "export", "-o", str(output))
        return output.stat().st_size, there, back


def _fill(file: Path, users: int) -> None:
    """Write beside the worker, which is idle: its Litestream replicates it like a group."""
    database = connections.connect(file)
    with database.connection_context():
        for first in range(1, users + 1, _AT_ONCE):
            with database.atomic("IMMEDIATE"):
                for model, rows in _rows(range(first, min(first + _AT_ONCE, users + 1))):
                    model.insert_many(rows).execute(database)


def _rows(numbers: range) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    receipt = {"outcome": "created", "publish_time": _PUBLISHED, "processed_at": _PUBLISHED, "epoch": 1}
    yield User, [{"user_id": n, "email_address": f"user{n}@example.com", "created_at": n, "deleted": 0} for n in numbers]
    yield Receipt, [{"message_id": str(10**15 + n), "subject": str(n), **receipt} for n in numbers]
    few = [n for n in numbers if n % 1000 == 0]
    if few:
        rejection = {"reason": "wrong_type", "detail": "x", "data": b"{}" * 100, "attributes": "{}"}
        times = {"publish_time": _PUBLISHED, "received_at": _PUBLISHED}
        yield Rejection, [{"message_id": f"r{n}", **rejection, **times} for n in few]
        yield Erased, [{"subject": f"-{n}", "erased_at": _PUBLISHED} for n in few]


def _run(store: Store, environment: dict[str, str], *arguments: str) -> Copy:
    """Run `worker` to its end."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments, "--json"],
        env={**os.environ, **store.gcs.environment(), **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Worthless(f"worker {arguments[0]} ended with {process.returncode}")
    tables = {each["table"]: (each["rows"], each["digest"]) for each in json.loads(said)["tables"]}
    return Copy(time.monotonic() - began, used.ru_maxrss * 1024 / MEGABYTE, tables)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.moving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, nargs="+", default=_USERS, help="sizes of stores (default: 100000 1000000)")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    parser.set_defaults(load=os.getloadavg()[0])
    return parser


if __name__ == "__main__":
    sys.exit(main())
