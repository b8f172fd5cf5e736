"""What follows from the manifests and the files: what recoveries have replaced, and which files make up a state."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from worker.errors import NotInReplica, RestoreFailed
from worker.layout import File, Manifest, path_of
from worker.lease_record import Record
from worker.replica import Generation, Survey
from worker.restore_commands import Wanted, _put_together

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


def file(number: int, second: int, *, level: int = 0, first: int | None = None) -> File:
    """A file that ends at that transaction, committed at that second."""
    return File(f"f{level}-{number}", level, first or number, number, NOW + timedelta(seconds=second), 1)


def state_at(files: list[File], second: int | None = None, txid: int | None = None) -> list[int]:
    """The last transactions of the files that make up a state."""
    live = Generation(path_of(6), generation(6, None).manifest, files, len(files), len(files), live=True, ended=None)
    record = Record(state="held", holder="h", revision="r", epoch=6, live=path_of(6))
    at = None if second is None else NOW + timedelta(seconds=second)
    wanted = Wanted(at=at, epoch=None if txid is None else 6, txid=txid)
    return [each.last for each in wanted.files(Survey(record, [live], []), now=NOW + timedelta(hours=1))[1]]


def test_the_files_of_a_time_are_those_committed_by_then() -> None:
    """Without a gap, also where the writer's clock was set back; a later full copy is no part of an earlier state."""
    files = [file(1, 0), file(2, 1), file(3, 2), file(4, 3)]
    assert state_at(files, second=1) == [1, 2]
    assert state_at(files, second=60) == [1, 2, 3, 4]
    assert state_at([*files, file(3, 50, level=9, first=1)], second=2) == [1, 2, 3, 3]
    assert state_at([file(1, 0), file(2, 5), file(3, 2), file(4, 6)], second=3) == [1, 2, 3]


def test_a_time_next_to_a_missing_file_is_refused() -> None:
    """The missing transaction may be of that time or earlier: nobody knows, so it is not left out in silence."""
    with pytest.raises(NotInReplica, match=r"transactions 2 to 2 .* are missing.*--epoch 6 --txid 1"):
        state_at([file(1, 0), file(3, 2)], second=1)
    with pytest.raises(NotInReplica, match="are missing"):
        state_at([file(1, 0), file(3, 2), file(3, 60, level=9, first=1)], second=1)
    assert state_at([file(1, 0), file(3, 2)], txid=1) == [1]


def test_a_transaction_whose_file_is_missing_is_not_another_one() -> None:
    """An earlier state is no answer to the question for this one."""
    with pytest.raises(NotInReplica, match="no file that ends at transaction 2"):
        state_at([file(1, 0), file(3, 2)], txid=2)
    with pytest.raises(NotInReplica, match="the transactions 1 to 3, not 4"):
        state_at([file(1, 0), file(3, 2)], txid=4)


def test_a_full_disk_says_nothing_about_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Litestream reports it like a damaged replica; a drill must not take it for one (INV-9)."""

    async def full(*_: object, **__: object) -> int:
        raise RestoreFailed('level=ERROR error="write restored.db.tmp: no space left on device"')

    monkeypatch.setattr("worker.litestream.restore_from", full)
    made = _put_together(tmp_path, tmp_path / "x.db", generation(6, None), [], [], Path("litestream"), lambda _: None)
    with pytest.raises(OSError, match="No space left on device"):
        asyncio.run(made)
