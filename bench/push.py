"""How many durable acknowledgements a second, beside the most that functions-framework can answer at all?

`ours` is a real worker with the real Litestream and the fake Cloud Storage; `ceiling` is bench/noop.py. Both are up all
the time and are measured in turn (ours, ceiling, ours, ceiling, ...), so that what else the machine does meets both. At the
end the bucket is restored by plain Litestream and must hold at least as many receipts as wrk got 2xx from the worker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
import msgspec

from bench import wrk
from bench.figures import README, machine, rewrite
from local.gcs_process import FakeGcs
from local.ports import free_port
from local.proof import prove
from local.worker_process import ROOT, WorkerProcess, wait_until

MEMORY: Final = Path("/dev/shm")
_BUCKET: Final = "bench"
REPLICA_URL: Final = f"gs://{_BUCKET}/store"
WARM_UP_SECONDS: Final = 1
NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(slots=True)
class Result:
    """All runs, and the receipts and users that a restore of the bucket found: one of each for a message."""

    ours: list[wrk.Run]
    ceiling: list[wrk.Run]
    acknowledged: int = 0
    in_bucket: int = 0
    users: int = 0

    @property
    def ratios(self) -> list[float]:
        """Ours in parts of the ceiling, pair by pair."""
        return [ours.per_second / ceiling.per_second for ours, ceiling in zip(self.ours, self.ceiling, strict=True)]

    @property
    def faults(self) -> list[str]:
        """Why these are not figures of durable acknowledgements; empty when they are."""
        found = [
            f"{name}, round {number}: {', '.join(f'{count} {kind}' for kind, count in run.problems.items())}"
            for name, runs in (("ours", self.ours), ("ceiling", self.ceiling))
            for number, run in enumerate(runs, 1)
            if run.problems
        ]
        if self.in_bucket < self.acknowledged:
            found.append(f"{self.acknowledged} acknowledged, but only {self.in_bucket} in the bucket")
        if self.users != self.in_bucket:
            found.append(f"{self.in_bucket} messages made {self.users} users: they were not distinct")
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report: 0 good figures, 1 not durable-ack figures, 2 wrk is missing."""
    options = _parser().parse_args(arguments)
    try:
        wrk.find()
    except wrk.WrkMissingError as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    result = measure(options)
    print(json.dumps(report(result, options)) if options.json else table(result))
    for fault in result.faults:
        print(f"not a figure of durable acknowledgements: {fault}", file=sys.stderr)
    if result.faults:
        return 1
    if options.write:
        rewrite(README, "push", f"{setting(options)}\n\n{table(result)}")
    return 0


def measure(options: argparse.Namespace) -> Result:
    """Start both servers, push at them in turn, end them, and look into the bucket."""
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="solowriter-bench-", dir=memory) as directory:
        with serving(Path(directory)) as (worker, gcs), _ceiling() as ceiling_url:
            if options.put_ms:
                gcs.faults.add(action="delay", verb="insert", seconds=options.put_ms / 1000)
            for verb in ("get", "download") if options.get_ms else ():
                gcs.faults.add(action="delay", verb=verb, seconds=options.get_ms / 1000)
            result = _rounds(worker.url, ceiling_url, options)
            gcs.faults.clear()
            worker.stop()
            proof = prove(gcs.url, REPLICA_URL, ())
            result.in_bucket, result.users = proof.receipts, proof.users
    return result


def _rounds(ours_url: str, ceiling_url: str, options: argparse.Namespace) -> Result:
    result = Result([], [])
    for number in range(options.rounds + 1):
        seconds = options.seconds if number else WARM_UP_SECONDS
        ours = wrk.run(ours_url, connections=options.connections, seconds=seconds, number=number)
        ceiling = wrk.run(ceiling_url, connections=options.connections, seconds=seconds, number=number)
        result.acknowledged += ours.acknowledged
        if number:
            result.ours.append(ours)
            result.ceiling.append(ceiling)
        name = f"round {number} of {options.rounds}" if number else "warm-up"
        print(f"{name}: ours {ours.per_second:,.0f}/s, ceiling {ceiling.per_second:,.0f}/s", file=sys.stderr)
    return result


@contextlib.contextmanager
def serving(directory: Path, settings: Mapping[str, str] = NO_SETTINGS) -> Iterator[tuple[WorkerProcess, FakeGcs]]:
    """A serving worker with a bucket of its own, both below `directory`."""
    with FakeGcs(directory / "gcs", buckets=(_BUCKET,)) as gcs:
        log = directory / "worker.log"
        worker = WorkerProcess(
            disk=directory / "disk",
            replica_url=REPLICA_URL,
            environment={**gcs.environment(), **settings},
            port=0,
            log=log,
        )
        init = worker.run("init")
        if init.returncode != 0:
            raise RuntimeError(f"worker init failed: {init.stderr.strip()}")
        try:
            yield worker.start().wait_serving(), gcs
        finally:
            worker.kill()


@contextlib.contextmanager
def _ceiling() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "bench.noop", "--port", str(port)], cwd=ROOT, stdin=subprocess.DEVNULL)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"bench.noop ended with {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(url, trust_env=False).status_code == httpx.codes.NO_CONTENT
        return False

    try:
        wait_until(answers, "an answer from bench.noop")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def table(result: Result) -> str:
    """The figures as a Markdown table."""

    def row(name: str, values: list[float], form: str) -> str:
        cells = (min(values), statistics.median(values), max(values))
        return f"| {name} | {' | '.join(format(value, form) for value in cells)} |"

    return "\n".join(
        (
            "| | min | median | max |",
            "|---|---:|---:|---:|",
            row("ours: durable acknowledgements, msg/s", [run.per_second for run in result.ours], ",.0f"),
            row("ceiling: no-op endpoint, msg/s", [run.per_second for run in result.ceiling], ",.0f"),
            row("ours / ceiling, pair by pair", result.ratios, ".0%"),
            row("ours: median latency, ms", [run.p50 / 1000 for run in result.ours], ",.0f"),
            row("ours: 99th percentile of latency, ms", [run.p99 / 1000 for run in result.ours], ",.0f"),
        )
    )


def setting(options: argparse.Namespace) -> str:
    """Where, when and how the figures were taken."""
    return (
        f"{machine()}; "
        f"{options.rounds} rounds of {options.seconds} s each, {options.connections} connections, "
        f"{options.put_ms:g} ms added to a write and {options.get_ms:g} ms to a read of the bucket."
    )


def report(result: Result, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, for another program."""
    chosen = {name: getattr(options, name) for name in ("connections", "seconds", "rounds", "put_ms", "get_ms")}
    return {
        "setting": setting(options),
        "options": chosen,
        "ours": [msgspec.to_builtins(run) | {"per_second": run.per_second} for run in result.ours],
        "ceiling": [msgspec.to_builtins(run) | {"per_second": run.per_second} for run in result.ceiling],
        "ratios": result.ratios,
        "acknowledged": result.acknowledged,
        "in_bucket": result.in_bucket,
        "users": result.users,
        "faults": result.faults,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=256, help="requests in flight (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--put-ms", type=float, default=0.0, help="added to each write of the bucket (default: 0)")
    parser.add_argument("--get-ms", type=float, default=0.0, help="added to each read of the bucket (default: 0)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
