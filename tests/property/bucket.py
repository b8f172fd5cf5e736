"""A bucket in memory whose every request has three moments, and what Litestream's files in it amount to.

A request is sent, it takes effect, its sender hears of it. Anything may happen between two of these; one whose sender has
given up may still take effect.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from worker.errors import Mismatch, RestoreFailed, WorkerError
from worker.lease_record import RECORD, Record, encode


@dataclass(frozen=True, slots=True)
class File:
    """What Litestream uploads: every row there is, or the rows that were added since the file before."""

    full: bool
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """A message that was acknowledged, and by whom."""

    message: str
    holder: str
    epoch: int


@dataclass(eq=False, slots=True)
class Ask:
    """One request to the bucket: sent now; when it takes effect and when its sender hears of it is up to the machine."""

    what: str
    effect: Callable[[], Any]
    answer: "asyncio.Future[Any]"
    silence: type[WorkerError]
    changes: bool
    done: bool = False
    value: Any = None
    refusal: Mismatch | None = None

    def __repr__(self) -> str:
        return f"<{self.what}, {'done' if self.done else 'sent'}>"

    def perform(self) -> None:
        """Take effect, once."""
        if not self.done:
            self.done = True
            try:
                self.value = self.effect()
            except Mismatch as refusal:
                self.refusal = refusal

    def reply(self) -> None:
        """Tell the sender what came of it."""
        if not self.answer.done():
            if self.refusal is not None:
                self.answer.set_exception(self.refusal)
            else:
                self.answer.set_result(self.value)

    def time_out(self) -> None:
        """Tell the sender that nobody knows."""
        if not self.answer.done():
            self.answer.set_exception(self.silence(f"{self.what}: no answer"))


@dataclass
class Bucket:
    """The objects, and what the invariants want to know of how they came to be."""

    objects: dict[str, tuple[Any, int]] = field(default_factory=dict)
    late: list[Ask] = field(default_factory=list)
    """Changes nobody waits for any more; each may still take effect."""
    records: list[Record] = field(default_factory=list)
    """Every lease record there ever was, oldest first."""
    writers: dict[str, set[str]] = field(default_factory=dict)
    """By path, the Litestream lives that wrote a file there."""
    acks: list[Ack] = field(default_factory=list)
    _generation: int = 0

    def __post_init__(self) -> None:
        self.swap(RECORD, encode(Record(state="released", holder="", revision="", epoch=0, live=None)), 0)

    def swap(self, name: str, data: bytes, if_generation: int) -> int:
        """Write if the object is at that generation; its new one."""
        if self.objects.get(name, (b"", 0))[1] != if_generation:
            raise Mismatch(f"{name}: 412")
        if name == RECORD:
            self.records.append(msgspec.json.decode(data, type=Record))
        return self._put(name, data)

    def upload(self, path: str, txid: int, file: File, writer: str) -> None:
        """Write a file of a generation, over any of that name."""
        self.writers.setdefault(path, set()).add(writer)
        self._put(file_name(path, txid), file)

    def names(self, prefix: str) -> list[str]:
        """The objects below a prefix."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def folders(self, prefix: str) -> list[str]:
        """The folders right below a prefix."""
        return sorted({name.removeprefix(prefix).partition("/")[0] for name in self.names(prefix)})

    def restored(self) -> tuple[str, ...]:
        """What a restore of the live generation would give now."""
        live = self.records[-1].live
        return () if live is None else applied(dict(self.files(live)))

    def files(self, path: str) -> Iterator[tuple[int, File]]:
        """The files of a generation, by transaction id."""
        for name in self.names(file_name(path)):
            yield int(name[-16:], 16), self.objects[name][0]

    def _put(self, name: str, content: Any) -> int:
        self._generation += 1
        self.objects[name] = (content, self._generation)
        return self._generation


def file_name(path: str, txid: int | None = None) -> str:
    """The name of a generation's file, or what the names of all of them begin with."""
    return f"{path}/ltx/" if txid is None else f"{path}/ltx/{txid:016x}"


def applied(files: dict[int, File]) -> tuple[str, ...]:
    """The rows of a generation, as Litestream restores them: a full copy, then every later file without a gap.

    Raises:
        RestoreFailed: There is no full copy, or a file is missing.
    """
    order = sorted(files)
    if not order or order != list(range(1, len(order) + 1)) or not files[1].full:
        raise RestoreFailed(f"files {order} are no restorable generation")
    rows: tuple[str, ...] = ()
    for txid in order:
        rows = files[txid].rows if files[txid].full else rows + files[txid].rows
    return tuple(dict.fromkeys(rows))  # files hold pages: a row that is written again is there once
