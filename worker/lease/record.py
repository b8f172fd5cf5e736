"""The lease record, and what follows from it. Pure but for `look` and `initialize`, which are one request each.

Both objects here are formats other versions read: a field may be added, none may change its meaning.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from worker.bucket import Objects
from worker.errors import Mismatch, RecordInvalid, StoreMissing

RECORD: Final = "lease.json"
SUCCESSOR: Final = "successor.json"
FORMAT: Final = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `lease.json`. `holder` identifies one process, `epoch` one writer life."""

    format: Literal[1] = FORMAT
    state: Literal["held", "released"]
    holder: str
    revision: str
    epoch: int
    live: str | None


class Successor(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `successor.json`: who asks the holder of which epoch to hand over."""

    format: Literal[1] = FORMAT
    holder: str
    revision: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, the generation it was read at, and when (monotonic seconds) we first saw that generation."""

    record: Record
    generation: int
    since: float


@dataclass(frozen=True, slots=True)
class Take:
    """The record is free, or silent for the TTL: try to swap our name in."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Another instance holds it and may be alive; it cannot be taken for another `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """The record is ours."""


@dataclass(frozen=True, slots=True)
class Lost:
    """It was ours and names another life now. There is no way back for this process."""


def decide(
    seen: Seen, now: float, *, holder: str, epoch: int | None, ttl: float, reserved: bool = False
) -> Take | Wait | Renew | Lost:
    """Decide what a process should do about a record. Pure.

    Args:
        seen: The record as last read.
        now: Monotonic seconds.
        holder: Who asks.
        epoch: The epoch the asker holds, or None while it contends.
        ttl: Seconds of silence after which another's lease may be tried.
        reserved: The record was released for another who asked for it; if it does not come, it is free after the TTL.
    """
    record = seen.record
    if record.state == "held" and record.holder == holder and epoch in (None, record.epoch):
        return Renew()  # while contending: our own swap, whose answer was lost
    if epoch is not None:
        return Lost()
    if record.state == "released" and not reserved:
        return Take()
    silent = now - seen.since
    return Take() if silent >= ttl else Wait(ttl - silent)


async def initialize(store: Objects, *, timeout: float) -> bool:
    """Create the store's lease record, released at epoch 0; False when it is there already (INV-5: never again)."""
    record = Record(state="released", holder="", revision="", epoch=0, live=None)
    try:
        await store.write(RECORD, encode(record), if_generation=0, timeout=timeout)
    except Mismatch:
        await look(store, timeout=timeout)  # an unreadable record is an error now, not at the first start
        return False
    return True


async def look(store: Objects, *, timeout: float) -> tuple[Record, int]:
    """The record and its generation as they are in the bucket now.

    Raises:
        StoreMissing: There is none.
        RecordInvalid: It is not one this version can read.
        StoreError: The bucket did not answer, or refused.
    """
    found = await store.read(RECORD, timeout=timeout)
    if found is None:
        raise StoreMissing(
            f"no store at {store}: run `python -m worker init` once if it is new; "
            "otherwise REPLICA_URL names the wrong bucket or prefix"
        )
    try:
        return msgspec.json.decode(found[0], type=Record), found[1]
    except msgspec.DecodeError as error:
        raise RecordInvalid(
            f"{RECORD} at {store} cannot be read ({error}): it was written by a newer version, or by hand; "
            "deploy the version that wrote it, or restore the object's previous version"
        ) from None


def encode(record: Record) -> bytes:
    """The record as it stands in the bucket."""
    return msgspec.json.encode(record)
