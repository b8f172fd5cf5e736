"""The worker as a process, for the local stack and for tests: started, killed with its Litestream, its disk wiped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

import httpx

from local.ports import free_port

ROOT: Final = Path(__file__).parent.parent
_STOP_SECONDS: Final = 12.0
"""Longest wait for an ordered end: the platform's 10 s and some."""
_POLL_SECONDS: Final = 0.02


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Return once `condition` holds.

    Raises:
        TimeoutError: It did not within `seconds`.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(_POLL_SECONDS)


def _python_path() -> list[Path]:
    """The folders of PYTHONPATH: a module that EVENTS names may be there."""
    return [Path(folder).resolve() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


class WorkerProcess:
    """One place for a worker: a port, a disk and a log that outlive the process, and the process while it runs.

    Args:
        disk: Directory for its database; `wipe` removes it.
        replica_url: gs://BUCKET/PREFIX.
        environment: Variables on top of this process's own.
        port: Where it listens; 0 picks a free one, kept over restarts.
        log: File its output is appended to.
        code: Folder that holds `worker/`: this checkout's, or another version's.
    """

    def __init__(
        self, *, disk: Path, replica_url: str, environment: Mapping[str, str], port: int, log: Path, code: Path = ROOT
    ) -> None:
        self.disk, self.log, self._code_folder = disk.resolve(), log, code
        self.port = port or free_port()
        self._environment = {
            **os.environ,
            "HOST": "127.0.0.1",
            "LITESTREAM_METRICS_ADDRESS": "off",
            **environment,
            "PORT": str(self.port),
            "REPLICA_URL": replica_url,
            "DATABASE_PATH": str(self.disk / "users.db"),
            "PYTHONPATH": os.pathsep.join(map(str, (code, *_python_path()))),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log_before = 0  # bytes of the log that earlier lives have written
        # One client for all looks: making one for each costs more than the look.
        self._http = httpx.Client(timeout=2, trust_env=False)

    @property
    def url(self) -> str:
        """Where pushes go, without the final slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are started with."""
        return dict(self._environment)

    @property
    def pid(self) -> int:
        """The process id; also the id of the group that its Litestream is in."""
        assert self._process is not None, "the worker was not started"
        return self._process.pid

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another verb of `python -m worker` with the same settings, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "worker", verb, *arguments],
            env=self._environment,
            cwd=self._code_folder,
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )

    def start(self) -> Self:
        """Start `serve`; it is not serving yet when this returns."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker", "serve"],
                env=self._environment,
                cwd=self._code_folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, so that kill() reaches Litestream too
            )
        return self

    def wait_serving(self, *, seconds: float = 60.0) -> Self:
        """Return once it serves.

        Raises:
            RuntimeError: It ended instead.
            TimeoutError: It does not serve within `seconds`.
        """
        wait_until(lambda: self.state() in ("serving", "ended"), "serving", seconds=seconds)
        if self.state() == "ended":
            raise RuntimeError(f"the worker ended with {self.code}: {self.reason()}")
        return self

    def reason(self) -> str:
        """Why it ended: the text of the last error that it has logged since its start; without one, the end of the log."""
        with self.log.open("rb") as log:
            log.seek(self._log_before)
            lines = log.read().splitlines()
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("severity") == "ERROR" and "stack_trace" not in entry:
                    return str(entry["message"])
        return f"its log: {self.tail()}"

    @property
    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        assert self._process is not None, "the worker was not started"
        return self._process.poll()

    def state(self) -> str:
        """What it says of itself (standby, serving, draining), or starting before it listens and ended after."""
        if self.code is not None:
            return "ended"
        try:
            return str(self._http.get(f"{self.url}/healthz").json()["state"])
        except httpx.HTTPError:
            return "starting"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker alone."""
        os.kill(self.pid, number)

    def wait(self, *, seconds: float = _STOP_SECONDS) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill -9 of the worker and of its Litestream, at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wipe(self) -> None:
        """Delete its disk."""
        shutil.rmtree(self.disk, ignore_errors=True)

    def tail(self, characters: int = 1500) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""
