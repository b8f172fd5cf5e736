"""Checks the machine: memory, and room for the database. It reads Linux's /proc and cgroups, both versions.

The sizes are rules of thumb, not promises: the database is there several times while it is restored and replicated (the
scratch of a restore, the file, its WAL, Litestream's copies), and a body takes several times its size while it is read
(docs/guarantees.md).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.operations.doctor.findings import Finding, note, ok, refused, warning

DATABASE_TIMES: Final = 4
"""Memory for each byte of the database."""
QUEUE_TIMES: Final = 6
"""Memory for each byte of QUEUE_MAX_BYTES, if bodies fill it."""
DISK_TIMES: Final = 3
"""Room for each byte of the database: the objects of a restore, the file, its WAL and Litestream's own."""
_DISK_BYTES_MIN: Final = 100_000_000
_IN_MEMORY: Final = {"tmpfs", "ramfs"}
_VOLUMES: Final = ("ext", "xfs", "nfs", "fuse")
"""How the names of file systems begin that Cloud Run may mount; its own is memory, whatever it is called there."""
_MB: Final = 1_000_000


def database_bytes(path: Path) -> int:
    """How large the database at `path` is, or was in its last life there; 0 when there is none."""
    return max(_size(path) + _size(path.with_name(path.name + "-wal")), _size(path.with_name(path.name + ".previous")))


def memory(limit: tuple[int, str] | None, *, database: int, queue_max_bytes: int) -> Finding:
    """Whether the memory is enough. Pure.

    Args:
        limit: Bytes, and where that is said; None when it cannot be known.
        database: Bytes of the database, at least.
        queue_max_bytes: QUEUE_MAX_BYTES.
    """
    need = DATABASE_TIMES * database + QUEUE_TIMES * queue_max_bytes
    parts = f"{DATABASE_TIMES} x {_mb(database)} of database and {QUEUE_TIMES} x {_mb(queue_max_bytes)} of QUEUE_MAX_BYTES"
    if limit is None:
        return note("memory", f"the limit cannot be known here; plan for {_mb(need)}: {parts}")
    found = f"{_mb(limit[0])} ({limit[1]}); at worst {_mb(need)} is used: {parts}"
    if limit[0] < need:
        step = "give the instance more memory, or lower QUEUE_MAX_BYTES: out of memory is a kill without a warning"
        return warning("memory", found, step)
    return ok("memory", found)


def disk(path: Path, *, database: int, cloud_run: bool = False, root: Path = Path("/")) -> Finding:
    """Whether the database can be written at `path`, and has room there.

    Args:
        path: DATABASE_PATH, absolute; its folder need not exist yet.
        database: Bytes of the database, at least.
        cloud_run: Whether this is Cloud Run, whose own file system is memory.
        root: Where /proc is; a test's.
    """
    if path.exists() and not path.is_file():
        # `serve` moves aside what it finds there, and this may be a folder with other files.
        return refused(
            "disk", f"{path} is there and is no file", "name a file in DATABASE_PATH, such as users.db in that folder"
        )
    folder = next(each for each in (path.parent, *path.parent.parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return refused("disk", f"{folder} cannot be written to", "name a writable place in DATABASE_PATH")
    kind = file_system(folder.resolve(), root)
    in_memory = kind in _IN_MEMORY or (cloud_run and not kind.startswith(_VOLUMES))
    where = f"{folder} is in memory ({kind}): what is written there counts as memory" if in_memory else f"{folder} ({kind})"
    free = shutil.disk_usage(folder).free
    need = max(DISK_TIMES * database, _DISK_BYTES_MIN)
    found = f"{_mb(free)} free; {where}"
    if free < need:
        return warning("disk", found, f"make room: {_mb(need)} is needed for a database of {_mb(database)}")
    return ok("disk", found)


def file_system(path: Path, root: Path = Path("/")) -> str:
    """The kind of file system that `path` lies on, such as ext4 or tmpfs; unknown when Linux does not say."""
    kinds = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, source = line.partition(" - ")
        if len(fields.split()) > 4 and source:
            kinds[Path(fields.split()[4].replace("\\040", " "))] = source.split()[0]  # a later mount hides an earlier one
    return next((kinds[each] for each in (path, *path.parents) if each in kinds), "unknown")


def memory_limit(root: Path = Path("/")) -> tuple[int, str] | None:
    """The least bytes that this process, with all of its container, may use, and where that is said; None if nowhere."""
    return min(_limits(root), default=None)


def _limits(root: Path) -> Iterator[tuple[int, str]]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if not controllers:
            folder, file, said = root / "sys/fs/cgroup", "memory.max", "cgroup v2"
        elif "memory" in controllers.split(","):
            folder, file, said = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "cgroup v1"
        else:
            continue
        within = Path(place.lstrip("/"))
        for each in {within, *within.parents}:  # a limit above holds as well; in a container only the last is there
            if (limit := _text(folder / each / file).strip()).isdigit():
                yield int(limit), said
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024, "the machine's"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mb(count: int) -> str:
    return f"{count / _MB:,.0f} MB"
