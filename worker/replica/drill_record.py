"""The format of `drill.json`, and what follows from what a drill found. Pure.

The service goes on writing during a drill, so the restored counts are held between two of its own: one taken and confirmed
before the bucket is listed, one taken after the restore. That is sound only for rows that are never deleted:

- Receipts expire, so only those of the last `COUNTED_DAYS` are counted, fewer than they are kept at least.
- Rows of events are deleted by erasures alone. A restore erases by itself, from the bucket's list, maybe before the service
  does; so rows are held only against counts with as many erased subjects.
- Rejections expire, and are deleted with a user who is erased. They are reported, not judged; each has its receipt.
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from worker.bucket import Objects
from worker.database.counts import Counts, ServiceCounts
from worker.errors import NotInReplica, RecordInvalid

RECORD: Final = "drill.json"
COUNTED_DAYS: Final = 30
"""Receipts are kept for 32 days at least; the time between is for clocks that differ, and for the drill itself."""

Verdict = Literal["proved", "failed", "inconclusive"]
KEEP_RUNNING: Final = (
    "Do not stop the service: its own database is whole, and the next instance would begin from the bucket "
    "(docs/operations.md, Drill)"
)
_PROVED: Final = "what the service had confirmed is in the restored file, and nothing that it never had"


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A restored copy. `time` is when its last transaction was committed."""

    generation: str
    txid: int
    time: datetime
    counts: Counts
    left_out: list[str] = []
    """Files that are not whole, whose transactions others hold."""


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `drill.json`: the latest drill.

    `age_seconds` is how long before `at`, its end, the restored state's last transaction was committed. `before` and `after`
    are the service's counts on both sides of the restore. What is not known is null.
    """

    format: Literal[1] = 1
    verdict: Verdict
    reason: str
    at: datetime
    seconds: float
    generation: str | None = None
    txid: int | None = None
    time: datetime | None = None
    age_seconds: float | None = None
    before: ServiceCounts | None = None
    restored: Counts | None = None
    left_out: list[str] = []
    after: ServiceCounts | None = None


def judge(
    before: Counts, copy: Copy, after: Counts, *, has_last_message: bool, oldest: datetime | None = None
) -> tuple[Verdict, str]:
    """The verdict on a restore that worked, and why. Pure.

    Args:
        before: The service's counts, confirmed in the bucket before it was listed.
        copy: What was restored.
        after: The service's counts after that.
        has_last_message: Whether the restored file has the receipt of the last message of `before`.
        oldest: The last transaction must not be older than that; None for any age.
    """
    found, wrong = copy.counts, []
    sides = [("receipts", before.receipts, found.receipts, after.receipts), ("erased", before.erased, found.erased, None)]
    for table, rows in found.rows.items():
        low = before.rows.get(table, 0) if before.erased == found.erased else 0
        sides.append((f"rows of {table}", low, rows, after.rows.get(table) if after.erased == found.erased else None))
    for name, low, there, high in sides:
        if there < low:
            wrong.append(f"it has {there:,} {name}, and the service had confirmed {low:,}")
        elif high is not None and there > high:
            wrong.append(f"it has {there:,} {name}, and the service only {high:,}")
    if not has_last_message:
        wrong.append(f"message {before.last_message}, which the service had confirmed, is not in it")
    if wrong:
        return "failed", f"{'; '.join(wrong)}. {KEEP_RUNNING}"
    if oldest is not None and copy.time < oldest:
        age = f"its last transaction is of {_second(copy.time)}, older than --max-age allows"
        return "failed", f"{age}; if nothing was published since, allow more"
    if copy.left_out:
        damaged = f"{len(copy.left_out)} damaged files were left out, and others hold what they held"
        return "proved", f"{_PROVED}; {damaged}: `worker replica verify` names them"
    return "proved", _PROVED


def _second(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def latest(store: Objects, *, timeout: float) -> Drill:
    """The drill that was recorded last.

    Raises:
        NotInReplica: There is none.
        RecordInvalid: It is not one this version can read.
        StoreError: The bucket did not answer, or refused.
    """
    found = await store.read(RECORD, timeout=timeout)
    if found is None:
        raise NotInReplica(f"no drill is recorded at {store}; run `python -m worker drill`")
    try:
        return msgspec.json.decode(found[0], type=Drill)
    except msgspec.DecodeError as error:
        raise RecordInvalid(f"{RECORD} cannot be read ({error}): was it written by a newer version? Drill again") from None
