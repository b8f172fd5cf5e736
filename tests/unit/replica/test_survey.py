"""What follows from the manifests and the files: what recoveries have replaced, and which files make up a state."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.bucket import Objects, StoredObject
from worker.errors import NotInReplica, RestoreFailed
from worker.lease.record import Record
from worker.replica import ltx, restoring
from worker.replica.layout import File, Manifest, path_of, slot_name
from worker.replica.restoring import Wanted, cover
from worker.replica.survey import Generation, Survey

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
    return Generation(path_of(epoch), manifest, live=epoch == 6, ended=None)


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
    at = None if second is None else NOW + timedelta(seconds=second)
    end = Wanted(at=at, path=path_of(6), txid=txid).end(path_of(6), files)
    return [each.last for each in cover(path_of(6), files, end)]


def test_the_state_of_a_time_ends_at_the_newest_transaction_committed_by_then() -> None:
    """Without a gap, also where the writer's clock was set back; a file of later transactions is no part of it."""
    files = [file(1, 0), file(2, 1), file(3, 2), file(4, 3)]
    assert state_at(files, second=1) == [1, 2]
    assert state_at(files, second=60) == [1, 2, 3, 4]
    assert state_at([*files, file(3, 50, level=9, first=1)], second=2) == [3]
    assert state_at([*files, file(4, 3, level=1, first=1)], second=2) == [1, 2, 3]
    assert state_at([file(1, 0), file(2, 5), file(3, 2), file(4, 6)], second=3) == [1, 2, 3]
    with pytest.raises(NotInReplica, match="no file that ends by then"):
        state_at(files, second=-1)


def test_a_gap_is_never_passed_over() -> None:
    """An earlier state is no answer to the question for this one, and the missing transactions are named."""
    with pytest.raises(NotInReplica, match=r"the transactions 2 to 2 of .* are in no whole file that ends by 3"):
        state_at([file(1, 0), file(3, 2)])
    with pytest.raises(NotInReplica, match="the transactions 2 to 2 of"):
        state_at([file(1, 0), file(3, 2)], txid=2)
    with pytest.raises(NotInReplica, match="the transactions 1 to 3, not 4"):
        state_at([file(1, 0), file(3, 2)], txid=4)
    with pytest.raises(NotInReplica, match="the transactions 1 to 1 of"):
        state_at([file(2, 0), file(3, 2)])
    with pytest.raises(NotInReplica, match="holds no file"):
        state_at([])
    assert state_at([file(1, 0), file(3, 2)], txid=1) == [1]


FILES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 11)).map(
        lambda each: File(f"f{each}", each[0], each[1], each[1] + each[2], NOW, 1)
    ),
    max_size=12,
)


@given(FILES, st.integers(1, 20))
def test_a_cover_holds_every_transaction_or_is_refused(files: list[File], end: int) -> None:
    """Whatever files there are: each transaction up to the end is in one that was chosen, and none after it."""
    held = {number for each in files if each.last <= end for number in range(each.first, each.last + 1)}
    chainable, reached = True, 0
    while reached < end and chainable:
        further = max((each.last for each in files if each.last <= end and each.first <= reached + 1), default=0)
        chainable, reached = further > reached, max(reached, further)
    if not chainable:
        with pytest.raises(NotInReplica):
            cover("g", files, end)
        return
    chosen = cover("g", files, end)
    assert {number for each in chosen for number in range(each.first, each.last + 1)} == set(range(1, end + 1)) <= held
    assert [each.last for each in chosen] == sorted({each.last for each in chosen})


def test_a_full_disk_says_nothing_about_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Litestream reports it like a damaged replica; a drill must not take it for one (INV-9)."""

    async def full(*_: object, **__: object) -> int:
        raise RestoreFailed('level=ERROR error="write restored.db.tmp: no space left on device"')

    monkeypatch.setattr("worker.replica.litestream.restore", full)
    store = Kept({slot_name(path_of(6), 1): ltx.unchanging(transaction=1, page_size=512, pages=1, milliseconds=1, node=1)})
    with pytest.raises(OSError, match="no space left"):
        asyncio.run(restored(store, tmp_path / "x.db"))
    assert list(tmp_path.iterdir()) == []


@dataclass
class Kept(Objects):
    """A bucket with these objects."""

    content: dict[str, bytes]

    def patient(self, seconds: float) -> Self:
        """See `worker.bucket.Objects`."""
        return self

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """See `worker.bucket.Objects`."""
        return [StoredObject(name, len(data), NOW, {}) for name, data in sorted(self.content.items())]

    async def fetch(
        self, names: Sequence[str], name_prefix: str, directory: Path, *, timeout: float, check: Callable[[Path], None]
    ) -> None:
        """See `worker.bucket.Objects`."""
        for name in names:
            file = directory / name.removeprefix(name_prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.content[name])
            check(file)


async def restored(store: Kept, output: Path) -> object:
    """The newest state of the store's only generation."""
    return await restoring.restore(
        store,
        Wanted(path=path_of(6)),
        output,
        binary=Path("unused"),
        integrity_check="quick",
        seconds=5,
        request_seconds=5,
        say=lambda _: None,
    )


def test_a_damaged_file_that_nothing_else_covers_is_named(tmp_path: Path) -> None:
    """INV-10: never an earlier state in its place."""
    store = Kept({slot_name(path_of(6), 1): b"LTX1 and no more"})
    with pytest.raises(RestoreFailed, match=r"the transactions 1 to 1 .*Not whole: .*ltx/0/"):
        asyncio.run(restored(store, tmp_path / "x.db"))
    assert list(tmp_path.iterdir()) == []
