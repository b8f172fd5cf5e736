"""The list of messages that a recovery undoes, in the bucket: whatever becomes of the machine that ran it, they are known.

undone/<time>.json   message ids, one JSON list; written before the older state is live, and again when it is
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from publisher.values import rfc3339
from worker.bucket import Objects
from worker.errors import Mismatch, StoreUnavailable

_REQUEST_SECONDS: Final = 60.0
"""Longest one request may take: a million ids are 20 MB."""


async def delete(store: Objects, now: datetime) -> None:
    """Delete the list of a recovery that was not made.

    Raises:
        StoreError: It is not deleted, or it is not known whether it is.
    """
    await store.delete(_name(now), timeout=_REQUEST_SECONDS)


def _name(now: datetime) -> str:
    return f"undone/{rfc3339(now)}.json"


async def write(store: Objects, now: datetime, messages: Sequence[str], *, if_generation: int) -> int:
    """Write the ids, in the place of those at `if_generation`; the object's new generation.

    Args:
        store: The bucket.
        now: When the recovery began; it names the list.
        messages: Their ids.
        if_generation: What an earlier call returned; 0 for the first.

    Raises:
        StoreError: They are not written, or it is not known whether they are.
    """
    name = _name(now)
    try:
        data = msgspec.json.encode(messages)
        return await store.write(name, data, if_generation=if_generation, timeout=_REQUEST_SECONDS)
    except Mismatch:
        raise StoreUnavailable(
            f"{name} was written by another recovery, or its first answer was lost; run it again"
        ) from None
