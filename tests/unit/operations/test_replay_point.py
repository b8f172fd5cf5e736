"""From where to replay: everything that was undone comes again, from a time if that can be, else from a checkpoint."""

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from worker.database.comparison import Undone
from worker.errors import NotSeekable
from worker.operations.checkpoints import Listed
from worker.operations.replay_point import MARGIN, replay_point
from worker.operations.restore import Restored
from worker.replica.layout import Manifest, path_of
from worker.replica.survey import Generation

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
OLDEST = NOW - timedelta(hours=2)


def undone(oldest: datetime | None = OLDEST) -> Undone:
    """A message was undone that was published then."""
    milliseconds = None if oldest is None else round(oldest.timestamp() * 1000)
    return Undone(
        messages=["m1"] if oldest else [],
        outcomes={},
        retried=[],
        discarded=[],
        oldest_publish_time=milliseconds,
        newest_publish_time=milliseconds,
    )


def wanted(epoch: int, txid: int) -> Restored:
    """A state of an epoch."""
    return Restored(
        file="f",
        generation=path_of(epoch),
        txid=txid,
        time=NOW,
        bytes=1,
        rows={"users": 1},
        receipts=1,
        rejections=0,
        open_rejections=0,
        last_message=None,
        last_message_at=None,
        left_out=[],
    )


def line(*made: tuple[int, int | None, int]) -> list[Generation]:
    """Generations by epoch, each with the epoch and the transaction it goes on from."""
    return [
        Generation(
            path_of(epoch),
            Manifest(
                epoch=epoch,
                base=None if base is None else path_of(base),
                base_txid=txid,
                started_at=NOW,
                revision="r",
                holder="h",
            ),
            live=False,
            ended=None,
        )
        for epoch, base, txid in made
    ]


ONE_AFTER_THE_OTHER = line((1, None, 0), (2, 1, 90), (3, 2, 8))


def checkpoint(
    name: str, epoch: int | None, txid: int | None, state: Literal["whole", "expired", "no record"] = "whole"
) -> Listed:
    """A checkpoint of a state."""
    return Listed(
        name=name, state=state, created_at=NOW, expires=NOW, epoch=epoch, txid=txid, snapshot=f"projects/p/snapshots/{name}"
    )


def test_a_time_within_reach_is_exact() -> None:
    """Just before the oldest undone message was published, whatever checkpoints there are."""
    checkpoints = [checkpoint("a", 1, 1)]
    found = replay_point(undone(), wanted(2, 5), ONE_AFTER_THE_OTHER, checkpoints, reach=timedelta(days=7), now=NOW)
    assert found == OLDEST - MARGIN


@pytest.mark.parametrize("reach", [None, timedelta(hours=2)], ids=["retains nothing", "not that far"])
def test_otherwise_the_newest_checkpoint_that_is_old_enough(reach: timedelta | None) -> None:
    """Its state is the recovered one or older; an expired one, a half one and one of another history are none."""
    checkpoints = [
        checkpoint("older", 1, 90),
        checkpoint("right", 2, 5),
        checkpoint("too-new", 2, 6),
        checkpoint("newer-epoch", 3, 1),
        checkpoint("expired", 2, 4, "expired"),
        checkpoint("half", None, None, "no record"),
        checkpoint("elsewhere", 9, 1),
    ]
    found = replay_point(undone(), wanted(2, 5), ONE_AFTER_THE_OTHER, checkpoints, reach=reach, now=NOW)
    assert found == "projects/p/snapshots/right"
    without = [row for row in checkpoints if row.name != "right"]
    assert (
        replay_point(undone(), wanted(2, 5), ONE_AFTER_THE_OTHER, without, reach=reach, now=NOW)
        == "projects/p/snapshots/older"
    )


def test_a_history_that_a_recovery_left_is_no_ancestor() -> None:
    """7 was recovered to 6@113, which made 8: what 7 had acknowledged was undone, so its checkpoints lack messages of 8."""
    generations = line((6, None, 0), (7, 6, 140), (8, 6, 113), (9, 8, 40))
    checkpoints = [checkpoint("six-early", 6, 100), checkpoint("six-late", 6, 120), checkpoint("seven", 7, 20)]
    found = replay_point(undone(), wanted(9, 3), generations, checkpoints, reach=None, now=NOW)
    assert found == "projects/p/snapshots/six-early"
    found = replay_point(undone(), wanted(9, 3), generations, [*checkpoints, checkpoint("8", 8, 40)], reach=None, now=NOW)
    assert found == "projects/p/snapshots/8"
    found = replay_point(undone(), wanted(7, 30), generations, checkpoints, reach=None, now=NOW)
    assert found == "projects/p/snapshots/seven"


def test_nothing_undone_needs_no_replay() -> None:
    """Retries alone may have been undone: no message brings them back."""
    assert replay_point(undone(None), wanted(2, 5), ONE_AFTER_THE_OTHER, [], reach=None, now=NOW) is None


def test_no_such_point_is_said_before_anything_is_done() -> None:
    """With what to do about it."""
    with pytest.raises(NotSeekable, match="without --replay"):
        replay_point(undone(), wanted(2, 5), ONE_AFTER_THE_OTHER, [checkpoint("a", 2, 6)], reach=None, now=NOW)
