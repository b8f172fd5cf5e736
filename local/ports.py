"""A loopback port for a server that is told its port beforehand, or that is stopped and started again on the same one."""

import fcntl
import os
import random
import socket
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO, Final

_RANGE: Final = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections (32768 and up on Linux): of those, one that is free now may
be some connection's own a moment later."""


class _Taken:
    """Which ports processes of this user have chosen, also those without a listener yet, or for the moment.

    A port is taken by locking one byte of a file that all of them share: the kernel lets go of it when the process ends.
    Such a lock keeps other processes out, not the other threads of this one, so its own are in a set as well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None  # never closed: closing any descriptor of it would give up every lock
        self._process = 0
        self._ours: set[int] = set()
        self._choosing = threading.Lock()

    def take(self, port: int) -> bool:
        """Whether it is ours alone from now on."""
        with self._choosing:
            if self._file is None or self._process != os.getpid():  # a forked process has none of these locks
                self._file, self._process, self._ours = self._path.open("ab"), os.getpid(), set()
            if port in self._ours:
                return False
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            except OSError:
                return False
            self._ours.add(port)
            return True


_taken: Final = _Taken(Path(tempfile.gettempdir(), f"solowriter-ports-{os.getuid()}"))


def free_port(preferred: int = 0) -> int:
    """A free loopback port, which no other call returns while this process lives: `preferred` if it is free.

    Raises:
        OSError: There is none.
    """
    for port in (*([preferred] if preferred else []), *random.sample(_RANGE, 100)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if _taken.take(port):
            return port
    raise OSError("no free port on 127.0.0.1")
