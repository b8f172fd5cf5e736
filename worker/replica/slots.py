"""The gate's decisions: which files are created, which slots are stored, and which may be deleted (G3, G6, G7, G8).

`stored` is what acknowledgements rest on (INV-1): every slot up to it was created by this life, or holds the bytes that this
life sent. It never goes by a listing, and never past a slot whose answer was lost until that slot has been looked at.

    uploaded     slots 1 .. stored      created, one after the other: slot n+1 is begun when slot n is known to be stored
    not known    slot stored + 1        sent, and no answer yet; a look at it tells
    a seal       slot stored + 1        holds other bytes: another life has taken over, and this one is over

Nothing here knows HTTP: the gate (gate.py) says how a file is sent and looked at, and so does a simulated bucket in the
property tests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec

from worker.errors import SyncUnavailable

_COVERED_SECONDS: Final = 30.0
"""Longest a file above level 0 waits for its slots (G7); then the child makes it again at its next interval."""


class Refused(Exception):
    """A request that is not forwarded, or whose answer is not passed on."""

    def __init__(self, status: HTTPStatus, rule: str, text: str) -> None:
        super().__init__(text)
        self.status, self.rule = status, rule


@dataclass(frozen=True, slots=True)
class Name:
    """A file below a generation by its name: level, first and last transaction. One of level 0 is a slot."""

    key: str
    level: int
    first: int
    last: int

    @classmethod
    def of_slot(cls, transaction: int) -> Self:
        """The slot that holds a transaction."""
        return cls(f"ltx/0/{transaction:016x}-{transaction:016x}.ltx", 0, transaction, transaction)


@dataclass(frozen=True, slots=True)
class Digest:
    """Tells whether bytes are the same. MD5, because the bucket keeps it of every object, and no attacker is on the way."""

    size: int
    md5: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The bucket's answer to an upload or a look, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def finished(self) -> bool:
        """Whether the object is there; a part of an upload that goes on is answered 308, or so in a header."""
        return self.status == HTTPStatus.OK and "x-http-status-code-override" not in self.headers

    @property
    def digest(self) -> Digest:
        """Of the object that the answer describes."""
        resource = msgspec.json.decode(self.body, type=dict[str, Any])
        return Digest(int(resource.get("size", -1)), str(resource.get("md5Hash", "")))


class Slots:
    """The slots that one life has stored in its generation. Only one event loop, the gate's, touches it.

    `stored` and `deletable` are plain numbers that other threads read and write.

    Args:
        look: Asks the bucket for a file's size and digest; None: it is not there. `SyncUnavailable` or `Refused`: no answer.
        spacing_seconds: Least time between the beginnings of two uploads of slots (G6).
        on_stored: Called whenever `stored` has grown.
        on_sealed: Called when a slot turned out to be another life's.
    """

    def __init__(
        self,
        look: Callable[[Name], Awaitable[Answer | None]],
        *,
        spacing_seconds: float = 0.0,
        on_stored: Callable[[], None] = lambda: None,
        on_sealed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._look, self._spacing = look, spacing_seconds
        self._on_stored, self._on_sealed = on_stored, on_sealed
        self.stored = 0
        """Every slot up to this transaction is in the bucket with the bytes that this life sent."""
        self.deletable = 0
        """Slots up to this transaction may be deleted (G8)."""
        self._sent: dict[int, Digest] = {}  # slots above `stored` that were sent, whatever came of it
        self._last: tuple[int, Digest, Answer] | None = None  # the newest stored slot, and its answer
        self._uploads: dict[int, tuple[Digest, asyncio.Task[Answer]]] = {}  # of slots, under way
        self._grown = asyncio.Event()  # replaced whenever `stored` has grown
        self._next_at = 0.0  # when the next upload of a slot may begin, on the event loop's clock

    def __repr__(self) -> str:
        return f"<Slots, stored {self.stored}, under way {sorted(self._uploads)}>"

    async def create(self, name: Name, digest: Digest, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """Create a file whose bytes have all been checked; the bucket's answer, or one that says the same.

        Args:
            name: The file.
            digest: Of its bytes.
            send: Sends them, to be created only where there is no such file.

        Raises:
            Refused: By G3 or G7; nothing was sent.
        """
        if name.level:
            await self._covered(name)
            answer = await send()
            if answer.status != HTTPStatus.PRECONDITION_FAILED:
                return answer
            return await self._look(name) or answer  # the same name holds the same transactions, and is whole (G4, G7)
        if self._last is not None and self._last[:2] == (name.last, digest):
            return self._last[2]  # the child did not hear of it
        sent, upload = self._uploads.get(name.last, (digest, None))
        if sent != digest:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "G3", f"{name.key} is being uploaded with other bytes")
        if upload is None:
            # A child that loses patience does not end it: what the bucket has been sent may well be stored.
            upload = asyncio.create_task(self._store(name, digest, send))
            self._uploads[name.last] = digest, upload
            upload.add_done_callback(lambda task: self._uploads.pop(name.last, None) and None)
            upload.add_done_callback(_note)
        return await asyncio.shield(upload)

    async def settle(self, transaction: int) -> int:
        """Look at the slots after `stored` up to `transaction`, as long as they hold what was sent; what `stored` is then.

        Raises:
            SyncUnavailable: The bucket gave no answer.
        """
        while (slot := self.stored + 1) <= transaction:
            if slot in self._uploads and self._uploads[slot][1] is not asyncio.current_task():
                break  # it will tell
            try:
                answer = await self._look(Name.of_slot(slot))
            except Refused as refusal:
                raise SyncUnavailable(f"slot {slot} could not be looked at: {refusal}") from refusal
            if self.stored >= slot:
                continue  # another has looked, or an upload has been answered meanwhile
            if answer is None:
                break
            if self._sent.get(slot) != answer.digest:
                self._seal(slot)
                break
            self._grow(slot)
        return self.stored

    async def taken(self, name: Name, digest: Digest | None = None) -> Answer | None:
        """Look at a slot that could not be created. If it holds what was sent that is a success; else this life is over.

        Args:
            name: The slot.
            digest: Of the bytes that were to be created; None: of those that were sent before.
        """
        answer = await self._look(name)
        if answer is None:
            return None
        if answer.digest == (digest or self._sent.get(name.last)):
            if name.last == self.stored + 1:
                self._grow(name.last)
        elif digest is not None or name.last > self.stored:
            self._seal(name.last)
        return answer

    def check_deletion(self, name: Name) -> None:
        """Whether a file may be deleted (G8).

        Raises:
            Refused: It may not, yet.
        """
        if name.level == 0 and name.last > self.deletable:
            text = f"{name.key} is kept until the lease is found ours once more"
            raise Refused(HTTPStatus.CONFLICT, "G8", text)

    def break_off(self) -> int:
        """End the uploads of slots under way; how many there were."""
        uploads = [upload for _, upload in self._uploads.values() if not upload.done()]
        for upload in uploads:
            upload.cancel()
        return len(uploads)

    async def _store(self, name: Name, digest: Digest, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """Create a slot."""
        if before := [upload for slot, (_, upload) in self._uploads.items() if slot < name.first]:
            await asyncio.wait(before)
        if await self.settle(name.first - 1) < name.first - 1:
            text = f"slot {self.stored + 1} is not known to be stored, and {name.key} comes after it"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "G3", text)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_at - loop.time())
        self._next_at = loop.time() + self._spacing
        if name.last > self.stored:
            self._sent[name.last] = digest
        answer = await send()
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            return await self.taken(name, digest) or answer
        if answer.finished and name.last == self.stored + 1:
            self._last = (name.last, digest, answer)
            self._grow(name.last)
        return answer

    def _seal(self, slot: int) -> None:
        self._on_sealed(f"another instance has sealed this generation at transaction {slot}")

    def _grow(self, transaction: int) -> None:
        self.stored = transaction
        self._sent.pop(transaction, None)
        self._grown.set()
        self._grown = asyncio.Event()
        self._on_stored()

    async def _covered(self, name: Name) -> None:
        """G7: wait until all slots of a file above level 0 are stored."""
        try:
            async with asyncio.timeout(_COVERED_SECONDS):
                while self.stored < name.last:
                    await self._grown.wait()
        except TimeoutError:
            text = f"{name.key} holds transactions that are not stored as slots yet"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "G7", text) from None


def _note(upload: "asyncio.Task[Answer]") -> None:
    """Fetch what came of an upload, so that asyncio does not complain when its sender has gone away."""
    if not upload.cancelled():
        upload.exception()
