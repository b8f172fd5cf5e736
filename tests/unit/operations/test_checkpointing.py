"""The service's own checkpoints: one when it is due, old ones pruned, and errors outlived."""

import asyncio
from datetime import datetime, timedelta

import pytest

from tests.unit.operations.test_checkpoints import NOW, Bucket, Snapshots, listed, store_with, take
from worker.errors import QueueUnavailable
from worker.operations.checkpointing import PREFIX, take_every, take_when_due
from worker.operations.pubsub import Snapshot


def due(queue: Snapshots, store: Bucket, now: datetime, *, hours: float = 6) -> float:
    """One look; the seconds until the next."""
    return asyncio.run(take_when_due(hours, queue, store, now=now))


def mine(queue: Snapshots, store: Bucket) -> list[str]:
    """The names of the service's own."""
    return [name for name in listed(queue, store) if name.startswith(PREFIX)]


def test_the_first_is_taken_at_once_and_the_next_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart takes none before its time, and a checkpoint of another name does not count."""
    queue, store = Snapshots(), store_with(transactions=5)
    take(queue, store, "by-hand")
    started = datetime.now(NOW.tzinfo)
    assert due(queue, store, started) == 6 * 3600
    assert len(mine(queue, store)) == 1
    wait = due(queue, store, started + timedelta(hours=2))
    assert 3.9 * 3600 < wait <= 4.1 * 3600
    assert len(mine(queue, store)) == 1
    due(queue, store, started + timedelta(hours=6, minutes=1))
    assert len(mine(queue, store)) == 2
    assert "by-hand" in listed(queue, store)


def test_as_many_stay_as_pubsub_keeps() -> None:
    """Seven days of them; what has expired goes, and nothing of another name."""
    queue, store = Snapshots(), store_with(transactions=5)
    take(queue, store, "by-hand")
    started = datetime.now(NOW.tzinfo)
    for number in range(12):
        due(queue, store, started + timedelta(hours=24.1 * number), hours=24)
    assert len(mine(queue, store)) == 8  # the seven before the last look, and the one it took
    queue.there.clear()
    due(queue, store, started + timedelta(hours=24.1 * 13), hours=24)
    assert list(listed(queue, store).values()).count("expired") == 1  # the one made by hand
    assert len(mine(queue, store)) == 1


class Down(Snapshots):
    """A queue that is out of reach until told otherwise."""

    down: Exception | None = None

    async def create(self, name: str) -> Snapshot:
        """See `worker.operations.pubsub.Queue`."""
        if self.down is not None:
            raise self.down
        return await super().create(name)


@pytest.mark.parametrize("error", [QueueUnavailable("no answer"), RuntimeError("a defect")])
def test_an_outage_is_logged_and_outlived(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Loud but harmless, even a defect: it is tried again, and the service goes on."""
    monkeypatch.setattr("worker.operations.checkpointing._RETRY_SECONDS", 0.01)
    queue, store = Down(), store_with(transactions=5)
    queue.down = error

    async def body() -> None:
        task = asyncio.create_task(take_every(6, queue, store))
        while caplog.text.count("no checkpoint was taken") < 2:  # noqa: ASYNC110  # the log has no event
            await asyncio.sleep(0.005)
        queue.down = None
        while not queue.there:  # noqa: ASYNC110  # nor has the queue
            await asyncio.sleep(0.005)
        assert not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(body(), 10))
