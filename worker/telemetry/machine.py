"""The machine, as the system tells: memory that is used and may be used, and the sizes of files."""

from pathlib import Path
from typing import Final

_MEMORY: Final = (
    ("/sys/fs/cgroup", "memory.current", "memory.max", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
)
"""Where it stands what the instance uses and may use, and how memory.stat calls what is given back before memory runs out:
cgroups of version 2, then of version 1. Files in memory are used; the system's copies of what is on a disk are not."""
_MACHINE: Final = "/proc/meminfo"
"""The value where no cgroup sets one, as in a virtual machine of its own."""
_NO_LIMIT: Final = 2**60


def size(file: Path) -> int:
    """A file's bytes; 0 if it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def memory() -> tuple[float | None, float | None]:
    """The used bytes and the limit; None where the system does not say."""
    machine = _numbers(Path(_MACHINE))
    total, available = (machine.get(name) for name in ("MemTotal", "MemAvailable"))
    for folder, used, limit, idle in _MEMORY:
        if (number := _number(Path(folder, used))) is not None:
            spare = _numbers(Path(folder, "memory.stat")).get(idle, 0)
            return max(0, number - spare), _number(Path(folder, limit)) or total
    return (None if total is None or available is None else total - available), total


def _numbers(file: Path) -> dict[str, int]:
    """Lines of a name, a number, and perhaps the unit kB."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) * (1024 if words[2:] == ["kB"] else 1) for words in lines if len(words) > 1}


def _number(file: Path) -> float | None:
    try:
        number = int(file.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
    return None if number >= _NO_LIMIT else number
