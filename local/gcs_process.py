"""The fake Cloud Storage as a process of its own, for the local stack and for tests."""

from __future__ import annotations

import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from local.faults import Faults
from local.ports import free_port

_ROOT = Path(__file__).parent.parent
_LISTENING = re.compile(r"fake GCS on (http://(.+):(\d+)) ")


class FakeGcs:
    """Starts and ends a fake; as a context manager, from beginning to end of the block.

    Args:
        data: Directory it keeps everything in; survives `stop`, `kill` and `start`.
        buckets: Made at start if they don't exist.
        port: 0 for a free one; once chosen, a later `start` takes it again.
        log: File that its error output is appended to; by default it goes where ours goes.
        preconditions: Whether it honours them from the next start on.
    """

    def __init__(
        self,
        data: Path,
        *,
        buckets: tuple[str, ...] = (),
        port: int = 0,
        log: Path | None = None,
        preconditions: bool = True,
    ) -> None:
        self.preconditions = preconditions
        self.data = data.resolve()
        self.port = port or free_port()
        self._buckets = buckets
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._faults: Faults | None = None

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process else "not running"
        return f"<FakeGcs {self.url} {state}>"

    @property
    def url(self) -> str:
        """Where it listens, with the scheme: the form that every client of Google's takes."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process.

        Raises:
            RuntimeError: It isn't running.
        """
        return self._running().pid

    @property
    def faults(self) -> Faults:
        """Sets its faults; the rules are gone after a restart."""
        if self._faults is None:
            self._faults = Faults(self.url)
        return self._faults

    def environment(self) -> dict[str, str]:
        """What sends Google's clients, and Litestream, here."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def start(self, timeout: float = 30.0) -> Self:
        """Starts it and waits until it listens.

        Raises:
            RuntimeError: It ended, or said nothing for `timeout` seconds.
        """
        command = [sys.executable, "-m", "local", "gcs", "--port", str(self.port), "--data", str(self.data)]
        for bucket in self._buckets:
            command += ["--bucket", bucket]
        if not self.preconditions:
            command.append("--ignore-preconditions")
        log = self._log.open("ab") if self._log else None
        try:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # or a terminal's Ctrl-C would end it before the worker that still writes to it
            )
        finally:
            if log:
                log.close()
        output = self._process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], timeout)
        found = _LISTENING.match(output.readline()) if ready else None
        if found is None:
            self.kill()
            raise RuntimeError(f"the fake GCS did not start on {self.data}; its error output says why")
        self.port = int(found[3])
        return self

    def stop(self, timeout: float = 10.0) -> int:
        """Ends it in order, with `kill -9` after `timeout` seconds; returns its exit status (-9 then)."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """Ends it as `kill -9` does."""
        self._end(signal.SIGKILL, 10.0)

    def restart(self) -> Self:
        """Kills it with -9 and starts it again on the same port and data."""
        self.kill()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self.stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the fake GCS is not running")
        return self._process

    def _end(self, how: signal.Signals, timeout: float) -> int:
        process = self._running()
        process.send_signal(how)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if process.stdout:
            process.stdout.close()
        self._process = None
        return status
