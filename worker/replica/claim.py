"""Local files belong to one process: a lock beside the database, held from before anything there is touched until the end.

The lease says which instance writes the store; it says nothing of the files on this machine. Two processes with one
DATABASE_PATH, of two stores or of one, would move each other's live file aside and read each other's rows.

The system lets go of the lock when the process ends in whatever way. The lock's file stays: deleting it would let two
processes each hold the lock of a file of that name.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.errors import Unfit

SUFFIX: Final = ".lock"
_TEXT_BYTES: Final = 100
_ENDING_SECONDS: Final = 2.0
"""How long a lock is waited for: a process that was killed keeps its files for a moment, and so does a child that it has
just started, until its exec closes them."""
_PAUSE_SECONDS: Final = 0.02


@contextlib.contextmanager
def held(database: Path) -> Iterator[None]:
    """Hold the files beside `database` while the block runs.

    Raises:
        Unfit: Another process holds them, or they cannot be locked; nothing was touched.
    """
    real = database.resolve()  # two names of one file are one file
    lock = real.with_name(real.name + SUFFIX)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)  # no child keeps it
    except OSError as error:
        raise Unfit(
            f"{database}: the folder cannot be written ({error.strerror}); set DATABASE_PATH to a file in another one"
        ) from None
    try:
        _lock(descriptor, database)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, database: Path) -> None:
    until = time.monotonic() + _ENDING_SECONDS
    try:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
            time.sleep(_PAUSE_SECONDS)
    except BlockingIOError:
        holder = os.pread(descriptor, _TEXT_BYTES, 0).decode("ascii", "replace").strip() or "unknown"
        raise Unfit(
            f"{database} is used by another process, {holder}: end that one, or set DATABASE_PATH to another file"
        ) from None
    except OSError as error:
        raise Unfit(f"{database} cannot be locked ({error.strerror}); set DATABASE_PATH to a file on a local disk") from None
