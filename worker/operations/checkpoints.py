"""Checkpoints: a Pub/Sub snapshot of the subscription, and the state of the store that it goes with.

The order is what makes one whole. When a snapshot's creation has ended, everything not acknowledged is in it, and what was
acknowledged before is in the bucket (INV-1). So the state is read afterwards: a message acknowledged in between is in both,
which is harmless (INV-3); in the other order it would be in neither.

A checkpoint's snapshot is called solowriter.SUBSCRIPTION.NAME, and its record `checkpoints/NAME.json`. A process that dies
between the two leaves a snapshot without a record; a snapshot that has expired leaves a record without a snapshot.
"""

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from worker.bucket import Objects
from worker.errors import (
    Mismatch,
    NotInReplica,
    QueueMissing,
    QueueRefused,
    QueueUnavailable,
    RecordInvalid,
    StoreUnavailable,
)
from worker.lease.record import look
from worker.operations.pubsub import Queue, Snapshot
from worker.replica.survey import contents, survey

ROOT: Final = "checkpoints/"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SNAPSHOT_ID_MAX: Final = 255
"""Longest id of a Pub/Sub resource, in characters (documentation, "Create a topic", section on names)."""

log = logging.getLogger(__name__)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`checkpoints/NAME.json`. The state is the generation of `epoch` up to transaction `txid`, or any later one.

    `created_at` is when that state had been read, by the reader's clock; `expires` is Pub/Sub's.
    """

    format: Literal[1] = 1
    name: str
    snapshot: str
    subscription: str
    epoch: int
    txid: int
    created_at: datetime
    expires: datetime


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, or what is left of one. `created_at` of a snapshot without a record is the earliest it can be."""

    name: str
    state: Literal["whole", "expired", "no record"]
    created_at: datetime
    expires: datetime
    epoch: int | None
    txid: int | None
    snapshot: str


def snapshot_name(subscription: str, name: str) -> str:
    """The full name of a checkpoint's snapshot. Pure.

    Raises:
        QueueRefused: It cannot be a name.
    """
    found = _prefix(subscription) + name
    if not _NAME.fullmatch(name) or len(found.rpartition("/")[2]) > _SNAPSHOT_ID_MAX:
        raise QueueRefused(
            f"{name!r} cannot name a checkpoint: use up to 63 small letters, digits and hyphens, and fewer if the "
            "subscription's own id is long"
        )
    return found


def _prefix(subscription: str) -> str:
    project, _, short = subscription.partition("/subscriptions/")
    # No name holds a dot, so the checkpoints of `users` are not taken for those of `users.push`, or the other way round.
    return f"{project}/snapshots/solowriter.{short}."


async def take(queue: Queue, store: Objects, name: str, *, timeout: float) -> Checkpoint:
    """Make a checkpoint.

    Args:
        queue: The subscription that feeds the store.
        store: The bucket.
        name: The checkpoint's.
        timeout: Longest one request to the bucket may take, in seconds.

    Raises:
        QueueError: There is no snapshot; after `QueueUnavailable` there may be one, which `listed` shows.
        StoreError: There may be a snapshot, and no record; `listed` shows it.
        NotInReplica: The store is empty. Nothing was done.
    """
    wanted = snapshot_name(queue.subscription, name)
    if (await look(store, timeout=timeout))[0].live is None:
        raise NotInReplica("the store is empty: nothing has been written to it yet, so there is no state to return to")
    if await read(store, name, timeout=timeout) is not None:
        raise QueueRefused(f"there is a checkpoint {name} already; choose another name, or prune it")
    snapshot = await _create(queue, wanted)
    live = next((each for each in (await survey(store, timeout=timeout)).history if each.live), None)
    if live is None:
        await queue.delete(snapshot.name)
        raise NotInReplica("the live generation's manifest is missing from the bucket: do not stop the service, and drill")
    made = Checkpoint(
        name=name,
        snapshot=snapshot.name,
        subscription=queue.subscription,
        epoch=live.manifest.epoch,
        txid=(await contents(store, live.path, timeout=timeout)).transactions,
        created_at=datetime.now(UTC),
        expires=snapshot.expires,
    )
    await _record(store, made, timeout=timeout)
    if await queue.get(snapshot.name) is None:  # pruned by age meanwhile: it told the age of the oldest message in it
        await store.delete(f"{ROOT}{name}.json", timeout=timeout)
        raise QueueRefused(f"the snapshot of {name} was deleted while the checkpoint was made; make it again")
    return made


async def _create(queue: Queue, name: str) -> Snapshot:
    if await queue.get(name) is not None:
        raise QueueRefused(
            f"there is a snapshot {name} already: an earlier checkpoint was broken off; choose another name, or prune it"
        )
    try:
        return await queue.create(name)
    except QueueUnavailable:
        # The answer may have been lost. There was none before, so one that is there now was made just now.
        found = await queue.get(name)
        if found is None:
            raise
        return found


async def _record(store: Objects, made: Checkpoint, *, timeout: float) -> None:
    path = f"{ROOT}{made.name}.json"
    try:
        await store.write(path, msgspec.json.encode(made), if_generation=0, timeout=timeout)
    except (Mismatch, StoreUnavailable) as error:
        if await read(store, made.name, timeout=timeout) == made:  # the answer was lost
            return
        if isinstance(error, Mismatch):
            raise QueueRefused(f"another process made the checkpoint {made.name} just now; choose another name") from None
        raise


async def read(store: Objects, name: str, *, timeout: float) -> Checkpoint | None:
    """The record of a checkpoint, or None.

    Raises:
        RecordInvalid: It is not one this version can read.
        StoreError: The bucket did not answer, or refused.
    """
    found = await store.read(f"{ROOT}{name}.json", timeout=timeout)
    if found is None:
        return None
    try:
        return msgspec.json.decode(found[0], type=Checkpoint)
    except msgspec.DecodeError as error:
        raise RecordInvalid(
            f"{ROOT}{name}.json cannot be read ({error}): it was written by a newer version, or by hand"
        ) from None


async def find(store: Objects, name: str, *, timeout: float) -> Checkpoint:
    """The record of a checkpoint that must be there.

    Raises:
        QueueMissing: There is none of that name.
        RecordInvalid: As for `read`.
        StoreError: As for `read`.
    """
    found = await read(store, name, timeout=timeout) if _NAME.fullmatch(name) else None
    if found is None:
        raise QueueMissing(
            f"there is no checkpoint {name}; `worker checkpoint list` shows what there is, and a snapshot of "
            "another kind is named in full, projects/PROJECT/snapshots/ID"
        )
    return found


async def listed(queue: Queue, store: Objects, *, timeout: float) -> list[Listed]:
    """Every checkpoint of the store, newest first, and what is left of broken and expired ones.

    Raises:
        QueueError: Pub/Sub did not answer, or refused.
        StoreError: The bucket did not answer, or refused.
    """
    prefix = _prefix(queue.subscription)
    # In this order, a checkpoint made meanwhile is left out, and not taken for an expired one.
    names = [stored.name.removeprefix(ROOT).removesuffix(".json") for stored in await store.objects(ROOT, timeout=timeout)]
    snapshots = {each.name: each for each in await queue.snapshots(f"{queue.project}/snapshots/solowriter.")}
    rows = []
    for name in names:
        try:
            record = await read(store, name, timeout=timeout)
        except RecordInvalid as error:  # it must not hide the others, least of all from a recovery
            log.warning("%s", error, extra={"action": "checkpoint.unreadable"})
            continue
        if record is not None:
            rows.append(_row(record, there=snapshots.pop(record.snapshot, None) is not None))
    for snapshot in snapshots.values():
        name = snapshot.name.removeprefix(prefix)
        if _NAME.fullmatch(name):
            left = Listed(
                name=name,
                state="no record",
                created_at=snapshot.oldest,
                expires=snapshot.expires,
                epoch=None,
                txid=None,
                snapshot=snapshot.name,
            )
            rows.append(left)
    return sorted(rows, key=lambda row: row.created_at, reverse=True)


def _row(record: Checkpoint, *, there: bool) -> Listed:
    return Listed(
        name=record.name,
        state="whole" if there else "expired",
        created_at=record.created_at,
        expires=record.expires,
        epoch=record.epoch,
        txid=record.txid,
        snapshot=record.snapshot,
    )


def superfluous(
    rows: Sequence[Listed], *, keep: int | None = None, older_than: datetime | None = None, now: datetime
) -> list[Listed]:
    """The checkpoints that pruning deletes. Pure.

    Args:
        rows: As `listed` gives them.
        keep: The number of whole ones, the newest, that stay; records of expired ones go. A snapshot without a record stays:
            it may be a checkpoint in the making, or the way back from a replay.
        older_than: Or: everything made before then.
        now: The time.
    """
    if older_than is not None:
        return [row for row in rows if row.created_at < older_than]
    kept = {row.name for row in [row for row in rows if row.state == "whole"][:keep]}
    return [row for row in rows if row.name not in kept and row.state != "no record"]


async def prune(queue: Queue, store: Objects, row: Listed, *, timeout: float) -> None:
    """Delete a checkpoint: its snapshot, then its record. Dying in between leaves a record that says `expired`.

    Raises:
        QueueError: Pub/Sub did not answer, or refused.
        StoreError: The bucket did not answer, or refused.
    """
    await queue.delete(row.snapshot)
    if row.state != "no record":
        await store.delete(f"{ROOT}{row.name}.json", timeout=timeout)
