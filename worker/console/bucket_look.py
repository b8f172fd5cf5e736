"""What the page shows of the bucket: restore points and the latest drill. It lists the bucket: only when asked."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from worker.console.figures import Timeline, timeline
from worker.errors import NotInReplica, StoreMissing, WorkerError
from worker.operations import checkpoints
from worker.operations.checkpoints import Listed
from worker.operations.pubsub import Queue
from worker.replica import drill_record
from worker.replica.bucket import Bucket
from worker.replica.drill_record import Drill
from worker.replica.survey import Survey, survey

_REQUEST_SECONDS: Final = 20.0
"""Longest one request may take: a page waits for it."""
_PATIENCE_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class BucketLook:
    """One look. Each part that could not be read is None, and `problems` says why."""

    survey: Survey | None
    checkpoints: list[Listed] | None
    drill: Drill | None
    drilled: bool | None
    """Whether a drill is recorded."""
    timeline: Timeline | None
    problems: list[str]
    at: datetime


async def look(bucket: Bucket, queue: Queue | None) -> BucketLook:
    """Read the generations, the checkpoints and the latest drill.

    Args:
        bucket: The store.
        queue: The subscription whose snapshots the checkpoints are; None where it is not said.
    """
    store, problems = bucket.patient(_PATIENCE_SECONDS), []
    found, drill, drilled, listed = None, None, None, None
    try:
        found = await survey(store, timeout=_REQUEST_SECONDS)
    except WorkerError as error:
        problems.append(str(error))
    if found is not None:
        try:
            drill = await drill_record.latest(store, timeout=_REQUEST_SECONDS)
            drilled = True
        except (NotInReplica, StoreMissing):
            drilled = False
        except WorkerError as error:
            problems.append(str(error))
    if queue is not None and found is not None:
        try:
            listed = await checkpoints.listed(queue, store, timeout=_REQUEST_SECONDS)
        except WorkerError as error:
            problems.append(f"the checkpoints are not known: {error}")
    now = datetime.now(UTC)
    made = None if found is None else timeline(found, listed or [], now)
    return BucketLook(found, listed, drill, drilled, made, problems, now)
