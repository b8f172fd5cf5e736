"""A bucket in memory whose every request has three moments, and what Litestream's files in it amount to.

A request is sent, it takes effect, its sender hears of it. Anything may happen between two of these; one whose sender has
given up may still take effect.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastcrc import crc64

from worker.bucket import StoredObject
from worker.errors import Mismatch, NotInReplica, RestoreFailed
from worker.lease.record import RECORD, Record, encode
from worker.replica import layout, ltx
from worker.replica.restoring import cover
from worker.replica.slots import Answer

_PAGES_END: Final = bytes(6)
_ROWS_AT: Final = 106
"""Where a simulated file has its rows: after the header and the end of the pages, in the place of the index."""
_CREATED: Final = datetime(2026, 1, 1, tzinfo=UTC)

Rows = dict[int, list[str]]
"""The rows that each transaction has added; the first one has all that there were."""


def ltx_file(rows: Rows, writer: str) -> bytes:
    """A whole file, as `worker.replica.ltx` reads it. It says who wrote it, so that no two lives write the same bytes."""
    content = ltx._HEADER.pack(b"LTX1", 2, 512, 1, min(rows), max(rows), 0) + _PAGES_END
    content += json.dumps({"writer": writer, "rows": rows}).encode()
    return content + (crc64.go_iso(content) | 1 << 63).to_bytes(8)


def rows_of(data: bytes) -> Rows:
    """The rows of a whole file; a seal has one transaction without any."""
    header = ltx.Header.read(data)
    if data[_ROWS_AT : _ROWS_AT + 1] != b"{":
        return {header.last: []}
    return {int(transaction): rows for transaction, rows in json.loads(data[_ROWS_AT:-8])["rows"].items()}


def whole(data: bytes) -> bool:
    """Whether a file is whole."""
    scan = ltx.Scan()
    try:
        scan.feed(data)
        scan.end()
    except ltx.NotWholeError:
        return False
    return True


def applied(files: Iterable[bytes]) -> tuple[list[str], int]:
    """The rows that files restore to, put together as Litestream does, and the transaction they end at.

    Raises:
        RestoreFailed: A transaction is missing.
    """
    found: Rows = {}
    for data in files:
        found |= rows_of(data)
    if sorted(found) != list(range(1, len(found) + 1)) or not found:
        raise RestoreFailed(f"transactions {sorted(found)} are no restorable generation")
    return [row for transaction in sorted(found) for row in found[transaction]], max(found)


@dataclass(frozen=True, slots=True)
class Ack:
    """A message that was acknowledged, by whom, and in which generation."""

    message: str
    holder: str
    epoch: int


@dataclass(eq=False, slots=True)
class Ask:
    """One request to the bucket: sent now; when it takes effect and when its sender hears of it is up to the machine."""

    what: str
    effect: Callable[[], Any]
    answer: "asyncio.Future[Any]"
    silence: type[Exception]
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
        """Tell the sender that there is no answer."""
        if not self.answer.done():
            self.answer.set_exception(self.silence(f"{self.what}: no answer"))


@dataclass
class Bucket:
    """The objects, and what the invariants want to know of how they came to be."""

    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    late: list[Ask] = field(default_factory=list)
    """Changes that no sender waits for any more; each may still take effect."""
    records: list[Record] = field(default_factory=list)
    """Every lease record there ever was, oldest first."""
    writers: dict[str, set[str]] = field(default_factory=dict)
    """By path, the Litestream lives that created a file there."""
    seals: dict[str, int] = field(default_factory=dict)
    """By path, the newest slot that seals it."""
    sealed_rows: dict[str, list[str]] = field(default_factory=dict)
    """By path, what a restore of it gave when it was sealed."""
    acks: list[Ack] = field(default_factory=list)
    undone: dict[str, int] = field(default_factory=dict)
    """By message that a recovery has undone, the recovery's epoch."""
    _generation: int = 0

    def __post_init__(self) -> None:
        self.swap(RECORD, encode(Record(state="released", holder="", revision="", epoch=0, live=None)), 0)

    def swap(self, name: str, data: bytes, if_generation: int) -> int:
        """Write if the object is at that generation; its new one."""
        if self.objects.get(name, (b"", 0))[1] != if_generation:
            raise Mismatch(f"{name}: 412")
        if name == RECORD:
            self._note_record(msgspec.json.decode(data, type=Record))
        generation = self._put(name, data)
        path, is_slot, slot = name.partition("/ltx/0/")
        if is_slot:  # all else that writes slots goes through a gate
            sealed = int(slot[:16], 16)
            # A process that slept since its restore may find that slot's name free again, once the sealed generation
            # was pruned up to its last slot. It seals nothing with it, and can make nothing live.
            if sealed > self.seals.get(path, 0):
                self.seals[path] = sealed
                if not self._pruned_in_part(path):
                    self.sealed_rows[path] = self.restored(path)
        return generation

    def _pruned_in_part(self, path: str) -> bool:
        """Whether files of a generation were deleted by age: it is neither the live one nor what that began from."""
        try:
            self.restored(path)
        except RestoreFailed:
            base = json.loads(self.objects[f"{self.live}/{layout.MANIFEST}"][0])["base"]
            return path not in (self.live, base)
        return False

    def create(self, name: str, data: bytes, writer: str, *, only: bool = True) -> Answer:
        """An upload that came through a gate, where there is no such file; `only`: unless the gate has lost its rule G3."""
        if only and name in self.objects:
            return Answer(HTTPStatus.PRECONDITION_FAILED, {}, b"{}")
        self.writers.setdefault(name.partition("/ltx/")[0], set()).add(writer)
        self._put(name, data)
        answer = self.look(name)
        assert answer is not None
        return answer

    def look(self, name: str) -> Answer | None:
        """An object's size and digest, or None."""
        if name not in self.objects:
            return None
        data = self.objects[name][0]
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        return Answer(HTTPStatus.OK, {}, json.dumps({"size": str(len(data)), "md5Hash": digest}).encode())

    def names(self, prefix: str) -> list[str]:
        """The objects below a prefix."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def folders(self, prefix: str) -> list[str]:
        """The folders right below a prefix."""
        return sorted({name.removeprefix(prefix).partition("/")[0] for name in self.names(prefix)})

    def files(self, path: str) -> list[layout.File]:
        """The whole files of a generation."""
        names = [name for name in self.names(f"{path}/ltx/") if whole(self.objects[name][0])]
        return layout.files(path, [stored(name, self.objects[name][0]) for name in names])

    def restored(self, path: str) -> list[str]:
        """The rows that a restore of a generation would give now.

        Raises:
            RestoreFailed: Nothing; it cannot be restored.
        """
        files = self.files(path)
        try:
            chosen = cover(path, files, max((file.last for file in files), default=1))
        except NotInReplica as error:
            raise RestoreFailed(str(error)) from None
        return applied(self.objects[file.name][0] for file in chosen)[0]

    @property
    def kept(self) -> set[str]:
        """The messages that were acknowledged, and not undone by a recovery since."""
        return {ack.message for ack in self.acks if ack.epoch >= self.undone.get(ack.message, 0)}

    @property
    def live(self) -> str | None:
        """The live generation."""
        return self.records[-1].live

    def _note_record(self, record: Record) -> None:
        before = self.live if self.records else None
        self.records.append(record)
        if before is None or record.live is None or record.live == before:
            return
        manifest = msgspec.json.decode(self.objects[f"{record.live}/{layout.MANIFEST}"][0], type=layout.Manifest)
        if manifest.replaced is not None:  # an operator wanted it
            for message in set(self.restored(manifest.replaced)) - set(self.restored(record.live)):
                self.undone[message] = record.epoch

    def _put(self, name: str, content: bytes) -> int:
        self._generation += 1
        self.objects[name] = (content, self._generation)
        return self._generation


def stored(name: str, data: bytes) -> StoredObject:
    """An object as a listing shows it."""
    return StoredObject(name, len(data), _CREATED, {})
