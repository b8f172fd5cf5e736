"""A child process, started without freezing its parent.

uvloop's own subprocesses fork and run Python's after-fork hooks in the child while the parent's event loop waits for the
exec. A hook that meets a lock which another thread held at the fork (SQLite's, as that thread's connections are destroyed)
waits for ever, and so does the parent. The standard library's `subprocess` runs no Python between fork and exec, and here
it runs on a thread of its own, so that the event loop waits for nothing.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Self

_START_SECONDS: Final = 10.0
"""Longest the exec may take: the program may have to be read from a disk."""
_PIECE_BYTES: Final = 16_384
_ERRORS_KEPT_BYTES: Final = 65_536


class Child:
    """A running process. `start` makes one; only the event loop touches it."""

    def __init__(self, process: subprocess.Popen[bytes], ended: "asyncio.Future[int]") -> None:
        self._process, self._ended = process, ended

    @classmethod
    async def start(
        cls,
        command: list[str],
        *,
        environment: Mapping[str, str],
        on_error: Callable[[bytes], None],
        on_output: Callable[[bytes], None] | None = None,
    ) -> Self:
        """Start a process that dies with this one.

        Args:
            command: The program's path and its arguments.
            environment: All of its variables.
            on_error: Given what it writes to its standard error, piece by piece, on a thread; an empty piece is the end.
            on_output: The same for its standard output; None: it has this process's.

        Raises:
            OSError: It cannot be started, or not within ten seconds.
        """
        loop = asyncio.get_running_loop()
        started: asyncio.Future[subprocess.Popen[bytes]] = loop.create_future()
        ended: asyncio.Future[int] = loop.create_future()

        def tell(future: "asyncio.Future[object]", result: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no task is left to tell
                loop.call_soon_threadsafe(_settle, future, result)

        def live() -> None:
            try:
                process = subprocess.Popen(
                    list(_tied_to_this_process(command)),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=None if on_output is None else subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                tell(started, error)  # type: ignore[arg-type]
                return
            tell(started, process)  # type: ignore[arg-type]
            readers = [threading.Thread(target=_read, args=(process.stderr, on_error), daemon=True)]
            if on_output is not None:
                readers.append(threading.Thread(target=_read, args=(process.stdout, on_output), daemon=True))
            for reader in readers:
                reader.start()
            code = process.wait()
            for reader in readers:
                reader.join(1)  # what it said last is in the pipe; a grandchild may hold the other end
            tell(ended, code)  # type: ignore[arg-type]

        threading.Thread(target=live, name=f"child {os.path.basename(command[0])}", daemon=True).start()  # noqa: PTH119  # a command's name, which need not be a path
        try:
            async with asyncio.timeout(_START_SECONDS):
                return cls(await asyncio.shield(started), ended)
        except TimeoutError:
            started.add_done_callback(_kill_late)
            raise OSError(f"{command[0]} did not start within {_START_SECONDS:g} s") from None
        except asyncio.CancelledError:
            started.add_done_callback(_kill_late)
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code once it has ended and all it said is read; None before."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Send SIGKILL; a process that has ended is passed over."""
        self._process.kill()


class Kept:
    """Keeps the end of what a child says, for `Child.start`."""

    def __init__(self) -> None:
        self.text = b""

    def __call__(self, piece: bytes) -> None:
        """Take a piece."""
        self.text = (self.text + piece)[-_ERRORS_KEPT_BYTES:]


def _settle(future: "asyncio.Future[object]", result: object) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _kill_late(started: "asyncio.Future[subprocess.Popen[bytes]]") -> None:
    if not started.cancelled() and started.exception() is None:
        started.result().kill()


def _read(stream: "subprocess.IO[bytes]", take: Callable[[bytes], None]) -> None:  # type: ignore[name-defined]
    with stream:
        while piece := os.read(stream.fileno(), _PIECE_BYTES):
            take(piece)
    take(b"")


def _tied_to_this_process(command: list[str]) -> Iterator[str]:
    """The command, told by the kernel to die with us where util-linux can ask for that (Debian, Cloud Run).

    A child that outlives a killed worker on the same disk would read the next life's WAL.
    """
    if setpriv := shutil.which("setpriv"):
        yield from (setpriv, "--pdeathsig", signal.Signals.SIGKILL.name.removeprefix("SIG"), "--")
    yield from command
