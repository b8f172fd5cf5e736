"""Processes that are measured: started, waited for, ended; the CPU they took and the memory they hold."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

import httpx

from local.worker_process import ROOT, wait_until

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS: Final = 20


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, log: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own while the block runs; SIGTERM at its end, and SIGKILL for what is left.

    What it says goes to `log`, or beside our progress.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=log or sys.stderr,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def server(command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of an HTTP server, once it gives any answer."""
    url = f"http://127.0.0.1:{port}"
    with running(command, environment) as process:

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            with contextlib.suppress(httpx.TransportError):
                return bool(httpx.get(url, trust_env=False, timeout=5).status_code)
            return False

        wait_until(answers, f"an answer from {' '.join(command)}")
        yield url


def cpu_seconds(pid: int) -> tuple[float, float]:
    """What a process has taken, and what its children have taken: those that live, and those it has waited for."""
    own, ended = _times(pid)
    return own, ended + sum(sum(_times(child)) for child in children(pid))


def thread_seconds(pid: int) -> dict[int, float]:
    """What each thread of a process has taken, by its id."""
    return {int(task.name): _times(pid, f"task/{task.name}/stat")[0] for task in Path(f"/proc/{pid}/task").iterdir()}


def children(pid: int) -> list[int]:
    """The processes it has started and that live."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def rss_bytes(pid: int) -> int:
    """The resident memory of a process, without what it maps of the database, which is on a memory file system."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))


def _times(pid: int, file: str = "stat") -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/{file}").read_text().rpartition(")")[2].split()
    user, system, children_user, children_system = (int(ticks) / _TICKS for ticks in fields[11:15])
    return user + system, children_user + children_system
