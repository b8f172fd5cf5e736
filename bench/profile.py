"""Where do a message's microseconds go? py-spy on the worker while wrk pushes, by the stages of a message's life.

The kernel says how much CPU each thread took in the run; py-spy's looks at the running threads say on what. A look counts
for the innermost function that belongs to a stage, so an unknown one counts for its caller. Looks at a thread that only
waits for its next piece of work are left out: py-spy takes some of them for running. The microseconds of a stage are its
share of a thread's looks, times the CPU of that thread, divided by the messages. What is C shows as the Python function that
called it: uvloop's reading, polling and HTTP parser as the event loop, a write to a socket as `send`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import process, wrk
from bench.errors import Worthless, with_exit_code
from bench.figures import README, machine, rewrite, table
from bench.store import open_store
from local.worker_process import ROOT

STAGES: Final[Mapping[str, Sequence[str]]] = {
    "event loop: poll, read, call back": ("uvloop/", "asyncio/"),
    "server: parse the request": (
        "publisher/connections.py",
        "uvicorn/",
        "httptools/",
        "functions_framework/",
        "starlette/",
    ),
    "server: write the answer": (
        "uvicorn/protocols/http/httptools_impl.py:RequestResponseCycle.send",
        "uvicorn/protocols/http/httptools_impl.py:HttpToolsProtocol.on_response_complete",
        "starlette/responses.py",
    ),
    "take the push, read its body": (
        "worker/ingest/http/app.py",
        "worker/ingest/http/access.py",
        "worker/ingest/http/trace_context.py",
    ),
    "decode envelope and message": (
        "worker/ingest/http/envelope.py",
        "publisher/message.py",
        "worker/ingest/transaction.py:content_of",
        "enum.py",
    ),
    "intake: hold, deadline, submit": ("worker/ingest/intake.py",),
    "gather and hand over groups": ("worker/ingest/writer.py", "concurrent/futures/"),
    "transaction: plan": ("worker/ingest/transaction.py", "worker/ingest/outcomes.py", "worker/database/bulk.py"),
    "transaction: SQLite": ("peewee.py", "playhouse/", "worker/database/connections.py"),
    "confirm: ask Litestream": (
        "worker/ingest/confirmation.py",
        "worker/ingest/upload_timing.py",
        "worker/replica/litestream.py",
        "worker/replica/generation.py",
    ),
    "confirm: the gate": (
        "worker/replica/gate.py",
        "worker/replica/slots.py",
        "worker/replica/ltx.py",
        "aiohttp/",
        "multidict/",
        "yarl/",
    ),
    "lease: renewals, looks": (
        "worker/lease/lease.py",
        "worker/lease/record.py",
        "worker/replica/bucket.py",
        "urllib3/",
        "google/",
    ),
    "answer: outcomes to senders": ("worker/ingest/messages.py",),
    "counts, spans, log": (
        "worker/telemetry/metrics.py",
        "worker/ingest/http/delivery_counts.py",
        "worker/telemetry/tracing.py",
        "worker/telemetry/logs.py",
        "logging/",
        "opentelemetry/",
    ),
}
"""What each stage is made of: beginnings of paths of modules, some with a function. The longest that fits decides."""
OTHER: Final = "other"
_WAITS: Final = (
    "concurrent/futures/thread.py:_worker",
    "socket.py:SocketIO.readinto",
    "urllib3/util/wait.py:",
    "selectors.py:",
)
"""Where a thread waits for work or an answer."""
_FRAME: Final = re.compile(r"(?P<function>.+) \((?P<file>[^()]+?)(?::\d+)?\)$")
_THREAD: Final = re.compile(r"thread \((?P<id>\d+)\): (?P<name>.*)$")
_IN_PACKAGE: Final = re.compile(r".*/(?:site-packages|python3\.\d+)/")
_IN_CHECKOUT: Final = re.compile(r"/.*/(?=(?:worker|publisher)/)")
_LEAD_SECONDS: Final = 2
"""wrk begins so long before py-spy, and ends so long after it."""

Looks = Counter[tuple[str, str]]
"""Looks by thread and stage."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Microseconds of CPU for each message, by thread and stage."""

    microseconds: Mapping[tuple[str, str], float]
    per_second: float


@with_exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report: 0 good figures, 1 worthless ones, 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    profile = measure(options)
    how = (
        f"{machine()}; {options.seconds} s, {options.connections} connections, {options.put_ms:g} ms added to a write and "
        f"{options.get_ms:g} ms to a read of the bucket; {profile.per_second:,.0f} msg/s under the profiler."
    )
    figures = f"{how}\n\n{report(profile)}"
    print(figures)
    if options.write:
        rewrite(README, f"profile {options.write}", figures)


def measure(options: argparse.Namespace) -> Profile:
    """Profile a worker under full load."""
    wrk.find()
    with open_store() as store, tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as pusher:
        worker = store.worker("r1", code=options.code).start().wait_serving()
        store.latency(put_ms=options.put_ms, get_ms=options.get_ms)
        before = process.thread_seconds(worker.pid)
        seconds = options.seconds + 2 * _LEAD_SECONDS
        run = pusher.submit(wrk.run, worker.url, connections=options.connections, seconds=seconds, number=0)
        time.sleep(_LEAD_SECONDS)
        raw = Path(scratch) / "raw"
        _spy(worker.pid, options.seconds, options.rate, raw)
        pushed = run.result().sound("profiled")
        after = process.thread_seconds(worker.pid)
        store.latency(put_ms=0, get_ms=0)
        worker.stop()
        store.check_count(pushed.acknowledged)
        looks = count(raw.read_text().splitlines())
    return Profile(costs(looks, before, after, pushed.acknowledged), pushed.per_second)


def _spy(pid: int, seconds: int, rate: int, output: Path) -> None:
    spy = str(Path(sys.executable).with_name("py-spy"))
    chosen = ["--pid", str(pid), "--duration", str(seconds), "--rate", str(rate), "--output", str(output)]
    done = subprocess.run(
        [spy, "record", *chosen, "--format", "raw", "--threads", "--full-filenames"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Worthless(f"py-spy ended with {done.returncode} (it has to run as root): {done.stderr.strip()[-500:]}")


def count(lines: Iterable[str]) -> Looks:
    """The looks in py-spy's raw form: each line is a thread, its frames from the outermost on, and a number."""
    looks: Looks = Counter()
    for line in lines:
        frames, _, number = line.rpartition(" ")
        thread, *stack = frames.split(";")
        if (name := stage(stack)) is not None:
            looks[thread, name] += int(number)
    return looks


def stage(stack: Sequence[str]) -> str | None:
    """The stage of the innermost frame that has one; None for a thread that waits."""
    places = [_place(frame) for frame in reversed(stack)]
    if places and places[0].startswith(_WAITS):
        return None
    return next((name for place in places if (name := _stage_of(place))), OTHER)


def _place(frame: str) -> str:
    """A frame as `path/of/module.py:function`, the path from its package on."""
    found = _FRAME.match(frame)
    if found is None:
        return ""
    file = _IN_CHECKOUT.sub("", _IN_PACKAGE.sub("", found["file"]))
    return f"{file}:{found['function']}"


def _stage_of(place: str) -> str | None:
    fitting = [(len(part), name) for name, parts in STAGES.items() for part in parts if place.startswith(part)]
    return max(fitting)[1] if fitting else None


def costs(
    looks: Looks, before: Mapping[int, float], after: Mapping[int, float], messages: int
) -> dict[tuple[str, str], float]:
    """Microseconds of CPU for each message, by name of the thread (without its number) and stage."""
    found: dict[tuple[str, str], float] = {}
    totals: Counter[str] = Counter()
    for (thread, _), number in looks.items():
        totals[thread] += number
    for (thread, name), number in looks.items():
        if (who := _THREAD.match(thread)) and (identity := int(who["id"])) in after:
            seconds = after[identity] - before.get(identity, 0.0)
            key = who["name"].rstrip("0123456789_"), name
            found[key] = found.get(key, 0.0) + 1e6 * seconds / messages * number / totals[thread]
    return found


def report(profile: Profile) -> str:
    """The table: a row for each stage, a column for each thread."""
    cells = profile.microseconds
    threads = sorted({thread for thread, _ in cells}, key=lambda thread: -sum(_of(cells, thread=thread)))
    whole = sum(cells.values())
    rows = []
    for name in (*STAGES, OTHER):
        total = sum(_of(cells, name=name))
        if total:
            rows.append(
                (name, *(_cell(cells.get((thread, name), 0)) for thread in threads), f"{total:.1f}", f"{total / whole:.0%}")
            )
    sums = (*(f"{sum(_of(cells, thread=thread)):.1f}" for thread in threads), f"{whole:.1f}", "100%")
    return table(("µs of CPU for each message", *threads, "all threads", "share"), [*rows, ("all stages", *sums)])


def _of(cells: Mapping[tuple[str, str], float], *, thread: str = "", name: str = "") -> list[float]:
    return [cost for (in_thread, of_stage), cost in cells.items() if thread in ("", in_thread) and name in ("", of_stage)]


def _cell(cost: float) -> str:
    return f"{cost:.1f}" if cost else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, default=ROOT, help="another checkout, whose worker is profiled (default: this)")
    parser.add_argument("--seconds", type=int, default=15, help="how long it is looked at (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=250, help="looks a second (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=256, help="requests in flight (default: %(default)s)")
    parser.add_argument("--put-ms", type=float, default=0.0, help="added to each write of the bucket (default: 0)")
    parser.add_argument("--get-ms", type=float, default=0.0, help="added to each read of the bucket (default: 0)")
    parser.add_argument("--write", choices=("before", "after"), help="put the table into bench/README.md, as that one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
