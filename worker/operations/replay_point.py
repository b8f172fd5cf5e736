"""From where messages must be delivered again, so that everything a recovery undid takes effect once more. Pure.

The exact point is just before the oldest message that was undone was published; a subscription that retains acknowledged
messages can be sought there. Otherwise a checkpoint will do whose state is the recovered one or an older one: what was
undone is in no such state, so it had not been acknowledged when the checkpoint's snapshot was made, and is in it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from publisher.values import rfc3339
from worker.database.comparison import Undone
from worker.errors import NotSeekable
from worker.operations.checkpoints import Listed
from worker.operations.restore import Restored
from worker.replica.survey import Generation

MARGIN: Final = timedelta(minutes=1)
"""How much earlier than the oldest undone message was published the queue is sought."""


def replay_point(
    undone: Undone,
    wanted: Restored,
    generations: Sequence[Generation],
    checkpoints: Sequence[Listed],
    *,
    reach: timedelta | None,
    now: datetime,
) -> datetime | str | None:
    """A time, or a snapshot's full name; None when no message was undone.

    Args:
        undone: What the recovery undoes.
        wanted: The state it makes live.
        generations: All there are.
        checkpoints: The subscription's.
        reach: How far back the subscription can be sought to a time; None when it cannot.
        now: The time.

    Raises:
        NotSeekable: There is no such point: neither a time within reach nor a checkpoint old enough.
    """
    if undone.oldest_publish_time is None:
        return None
    moment = datetime.fromtimestamp(undone.oldest_publish_time / 1000, UTC) - MARGIN
    if reach is not None and moment >= now - reach:
        return moment
    ancestors = _ancestors(wanted, generations)
    usable = [
        (-ancestors[row.epoch][0], row.txid, row.snapshot)
        for row in checkpoints
        if row.state == "whole" and row.epoch in ancestors and row.txid is not None and row.txid <= ancestors[row.epoch][1]
    ]
    if not usable:
        raise NotSeekable(
            f"the messages to deliver again were published from {rfc3339(moment)} on: the subscription retains none of "
            "that time, and no checkpoint is that old. Recover without --replay, and have the publishers send them again; "
            "for the next time, let the subscription retain acknowledged messages, or make checkpoints"
        )
    return max(usable)[2]


def _ancestors(wanted: Restored, generations: Sequence[Generation]) -> dict[int | None, tuple[int, int]]:
    """The states that the wanted state goes back to: by epoch, how many generations back, and up to which transaction.

    A generation that an earlier recovery has left is none of them, although it was live once: what it had acknowledged later
    was undone.
    """
    manifests = {generation.path: generation.manifest for generation in generations}
    found: dict[int | None, tuple[int, int]] = {}
    manifest, txid = manifests.get(wanted.generation), wanted.txid
    while manifest is not None and manifest.epoch not in found:
        found[manifest.epoch] = (len(found), txid)
        txid = manifest.base_txid
        manifest = manifests.get(manifest.base or "")
    return found
