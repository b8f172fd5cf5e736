"""A machine with a wrong clock deletes nothing."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from worker.bucket import Objects
from worker.errors import StoreUnavailable
from worker.replica.retention import clock_agrees


class Bucket(Objects):
    """A bucket whose clock is some time away from this machine's."""

    def __init__(self, away: timedelta | None) -> None:
        self._away = away

    async def updated(self, name: str, *, timeout: float) -> datetime | None:
        """See `worker.replica.retention.Clock`."""
        assert name == "lease.json"
        if self._away is None:
            raise StoreUnavailable("no answer")
        return datetime.now(UTC) + self._away


@pytest.mark.parametrize(
    ("away", "agrees"),
    [
        (timedelta(seconds=-8), True),
        (timedelta(minutes=4), True),
        (timedelta(minutes=6), False),
        (timedelta(days=-40), False),
        (None, False),
    ],
)
def test_what_is_deleted_by_age_is_deleted_only_while_the_clocks_agree(away: timedelta | None, agrees: bool) -> None:
    """40 days ahead, every receipt would have expired; a bucket that gives no answer says nothing about the clock."""
    assert asyncio.run(clock_agrees(Bucket(away))) is agrees
