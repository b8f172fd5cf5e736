"""What follows from the manifests: which states earlier recoveries have replaced."""

from datetime import UTC, datetime

from worker.layout import Manifest, path_of
from worker.lease_record import Record
from worker.replica import Generation, Survey

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def generation(epoch: int, base: int | None, replaced: int | None = None) -> Generation:
    """A generation by what it continues, and what a recovery replaced with it."""
    manifest = Manifest(
        epoch=epoch,
        base=None if base is None else path_of(base),
        base_txid=1,
        started_at=NOW,
        revision="r",
        holder="h",
        replaced=None if replaced is None else path_of(replaced),
    )
    return Generation(path_of(epoch), manifest, [], 0, 0, live=epoch == 6, ended=None)


def test_what_recoveries_have_replaced() -> None:
    """Each one's last state, if it was live no earlier than the state that is wanted; a roll-over replaces nothing."""
    record = Record(state="released", holder="h", revision="r", epoch=6, live=path_of(6))
    line = [
        generation(1, None),
        generation(2, 1),
        generation(3, 1, replaced=2),
        generation(4, 3),
        generation(5, 4, replaced=4),  # to an earlier state of the very generation that was live
        generation(6, 5),
    ]
    survey = Survey(record, line, [])
    found = {each: [left.manifest.epoch for left in survey.replaced_since(path_of(each))] for each in range(1, 8)}
    assert found == {1: [2, 4], 2: [2, 4], 3: [4], 4: [4], 5: [], 6: [], 7: []}
