"""The service's own checkpoints: one every CHECKPOINT_HOURS, for as long as Pub/Sub keeps their snapshots.

They are a help for later recoveries and nothing depends on them, so every error is logged and outlived.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from worker.bucket import Objects
from worker.errors import QueueError, StoreError
from worker.operations import checkpoints
from worker.operations.pubsub import SNAPSHOT_DAYS, Queue

PREFIX: Final = "auto-"
"""How the names of these checkpoints begin; others are left alone."""
_RETRY_SECONDS: Final = 600.0
_REQUEST_SECONDS: Final = 30.0

log = logging.getLogger(__name__)


async def take_every(
    hours: float,
    queue: Queue,
    store: Objects,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Take a checkpoint whenever the newest of these is `hours` old, and prune, until cancelled."""
    while True:
        try:
            wait = await take_when_due(hours, queue, store, now=now())
        except (QueueError, StoreError) as error:
            log.error("no checkpoint was taken: %s", error, extra={"action": "checkpoint.failed"})
            wait = _RETRY_SECONDS
        except Exception:  # a defect, or something Google's client had never raised: no reason to stop the one writer
            log.exception("no checkpoint was taken", extra={"action": "checkpoint.failed"})
            wait = _RETRY_SECONDS
        await asyncio.sleep(min(wait, hours * 3600))


async def take_when_due(hours: float, queue: Queue, store: Objects, *, now: datetime) -> float:
    """Take a checkpoint if the newest of these is old enough, and prune; the seconds until the next is due.

    Raises:
        QueueError: Pub/Sub did not answer, or refused.
        StoreError: The bucket did not answer, or refused.
    """
    mine = [row for row in await checkpoints.listed(queue, store, timeout=_REQUEST_SECONDS) if row.name.startswith(PREFIX)]
    age = min((now - row.created_at for row in mine if row.state == "whole"), default=timedelta.max)
    if age < timedelta(hours=hours):
        return (timedelta(hours=hours) - age).total_seconds()
    made = await checkpoints.take(queue, store, f"{PREFIX}{now:%Y%m%d-%H%M%S}", timeout=_REQUEST_SECONDS)
    log.info("checkpoint %s at transaction %d", made.name, made.txid, extra={"action": "checkpoint.taken"})
    for row in checkpoints.superfluous(mine, keep=math.ceil(SNAPSHOT_DAYS * 24 / hours), now=now):
        await checkpoints.prune(queue, store, row, timeout=_REQUEST_SECONDS)
    return hours * 3600
