"""`worker lease show` and `worker lease break`: the operator's view of the lease record, from outside any instance."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from publisher.values import rfc3339
from worker.bucket import Objects
from worker.errors import LeaseHeld, Mismatch, RecordInvalid
from worker.lease.record import RECORD, SUCCESSOR, Record, Successor, encode, look
from worker.replica.layout import MANIFEST, Manifest, path_of

T = TypeVar("T")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be said of a lease by looking. Times are the bucket's, but `since`, which is the holder's."""

    store: str
    state: str
    holder: str
    revision: str
    epoch: int
    live: str | None
    since: datetime | None
    last_renewal: datetime | None
    successor: str | None
    successor_revision: str | None
    successor_asked: datetime | None

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for a table people read."""
        waiting = (
            f"{self.successor} ({self.successor_revision}), asked {_time(self.successor_asked)}"
            if self.successor
            else "none"
        )
        return [
            ("store", self.store),
            ("state", self.state),
            ("holder", f"{self.holder or 'none yet'} ({self.revision or '-'})"),
            ("epoch", str(self.epoch)),
            ("since", _time(self.since)),
            ("last renewal", _time(self.last_renewal)),
            ("live generation", self.live or "none yet"),
            ("waiting successor", waiting),
        ]


async def show(store: Objects, *, timeout: float) -> Status:
    """Look at the record, its generation's manifest, and the request to hand over.

    Raises:
        StoreMissing: There is no store.
        RecordInvalid: The record or the manifest cannot be read.
        StoreError: The bucket did not answer, or refused.
    """
    record, _ = await look(store, timeout=timeout)
    manifest = await store.read(f"{path_of(record.epoch)}/{MANIFEST}", timeout=timeout)
    request = await store.read(SUCCESSOR, timeout=timeout)
    asked = None if request is None else _request(request[0], record)
    if asked is not None and asked.epoch != record.epoch:
        asked = None  # left over from an earlier hand-over
    return Status(
        store=str(store),
        state=record.state,
        holder=record.holder,
        revision=record.revision,
        epoch=record.epoch,
        live=record.live,
        since=None if manifest is None else _decoded(manifest[0], Manifest, MANIFEST).started_at,
        last_renewal=await store.updated(RECORD, timeout=timeout),
        successor=asked.holder if asked else None,
        successor_revision=asked.revision if asked else None,
        successor_asked=await store.updated(SUCCESSOR, timeout=timeout) if asked else None,
    )


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else rfc3339(moment)


def _request(data: bytes, record: Record) -> Successor:
    try:
        return msgspec.json.decode(data, type=Successor)
    except msgspec.DecodeError:  # it stops no hand-over, so it must not stop this command
        return Successor(holder=f"unreadable {SUCCESSOR}", revision="-", epoch=record.epoch)


def _decoded(data: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise RecordInvalid(f"{name} cannot be read ({error}): it was written by a newer version, or by hand") from None


async def break_(
    store: Objects,
    *,
    ttl: float,
    force: bool,
    timeout: float,
    say: Callable[[str], None],
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> Record:
    """Release the lease of a holder known to be dead; the record as it is now.

    It can only cost a live holder its lease, never an acknowledged message: a holder that is not dead after all finds
    the record changed before its next acknowledgement. Waiting for the TTL does the same without an operator.

    Args:
        store: The bucket.
        ttl: Seconds the record is watched first, unless forced.
        force: Break it even if the holder renews it.
        timeout: Seconds for one request.
        say: Told what is going on.
        sleep: A test's clock.

    Raises:
        LeaseHeld: The holder renewed it while it was watched, so it is alive; or it changed just now.
    """
    record, generation = await look(store, timeout=timeout)
    if record.state == "released":
        say("it is released already; nothing was changed")
        return record
    if not force:
        say(f"watching the record for {ttl:g} s, to see whether its holder renews it")
        await sleep(ttl)
        _, now = await look(store, timeout=timeout)
        if now != generation:
            raise LeaseHeld(
                f"{record.holder} ({record.revision}) is alive: it has renewed the lease at epoch {record.epoch}. "
                "Stop that instance, or use --force: it then stops by itself, and loses nothing acknowledged"
            )
    released = msgspec.structs.replace(record, state="released")
    try:
        await store.write(RECORD, encode(released), if_generation=generation, timeout=timeout)
    except Mismatch as error:
        raise LeaseHeld("the record changed while it was being released; look at it with `lease show`") from error
    return released
