"""The one restore: which files make up a state, and that a damaged file never hides what others hold (INV-10)."""

import asyncio
import errno
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.bucket import Objects, StoredObject
from worker.errors import NotInReplica, RestoreFailed, StoreMissing
from worker.replica import litestream, ltx
from worker.replica.layout import File, path_of
from worker.replica.restoring import Restored, Verified, Wanted, cover, restore, verify

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PATH = path_of(6)
SNAPSHOT = 9


def file(first: int, last: int, *, level: int = 0, second: int = 0) -> File:
    """A file of some transactions, the last of which was committed at that second."""
    name = f"{PATH}/ltx/{level}/{first:016x}-{last:016x}.ltx"
    return File(name, level, first, last, NOW + timedelta(seconds=second), 131)


def slots(*numbers: int) -> list[File]:
    """Files of level 0."""
    return [file(number, number) for number in numbers]


ENDS = st.integers(1, 12)
FILES = st.lists(
    st.tuples(ENDS, ENDS, st.sampled_from([0, 1, 2, SNAPSHOT])).map(
        lambda drawn: file(min(drawn[:2]), max(drawn[:2]), level=drawn[2])
    ),
    max_size=14,
    unique_by=lambda each: each.name,
)


def fewest(files: Collection[File], end: int) -> int | None:
    """How many files it takes at least, found by trying every next file; None: they do not hold all."""
    reached, steps = {0}, 0
    while end not in reached:
        more = {each.last for each in files if each.last <= end for at in reached if each.first <= at + 1} | reached
        if more == reached:
            return None
        reached, steps = more, steps + 1
    return steps


@given(files=FILES, end=ENDS)
@settings(deadline=None)
def test_a_state_is_the_fewest_files_without_a_gap_or_it_is_refused(files: list[File], end: int) -> None:
    """A gap is never passed over, nothing after the end is included, and a restore reads no more than it needs."""
    least = fewest(files, end)
    if least is None:
        with pytest.raises(NotInReplica, match="are in no whole file"):
            cover(PATH, files, end)
        return
    chosen, reached = cover(PATH, files, end), 0
    for each in chosen:
        assert each.first <= reached + 1
        assert each.last > reached
        reached = each.last
    assert reached == end
    assert len(chosen) == least


@pytest.mark.parametrize(
    ("files", "end", "missing"),
    [
        (slots(1, 2, 4), 4, "3 to 3"),
        (slots(1, 5, 6), 6, "2 to 4"),
        (slots(2, 3), 3, "1 to 1"),
        (slots(1, 2), 4, "3 to 4"),
        ([file(1, 9, level=SNAPSHOT)], 5, "1 to 5"),
        ([], 2, "1 to 2"),
    ],
    ids=["one", "several", "the first", "the last", "only within a newer copy", "no file"],
)
def test_the_transactions_that_are_missing_are_named(files: list[File], end: int, missing: str) -> None:
    """They are what an operator looks for."""
    with pytest.raises(NotInReplica, match=rf"the transactions {missing} of {PATH} are in no whole file that ends by {end}"):
        cover(PATH, files, end)


def test_the_highest_of_equal_files_is_read() -> None:
    """A snapshot is one file in order of its pages."""
    assert [each.level for each in cover(PATH, [file(1, 3), file(1, 3, level=SNAPSHOT), file(1, 3, level=1)], 3)] == [
        SNAPSHOT
    ]


def test_a_time_ends_at_the_newest_transaction_committed_by_then() -> None:
    """By its number: a clock that was set back between transactions leaves no gap."""
    files = [file(1, 1, second=0), file(2, 2, second=5), file(3, 3, second=2), file(4, 4, second=6)]
    assert Wanted(at=NOW + timedelta(seconds=3)).end(PATH, files) == 3
    assert Wanted(at=NOW + timedelta(seconds=5)).end(PATH, files) == 3
    assert Wanted(at=NOW + timedelta(hours=1)).end(PATH, files) == 4


def test_a_later_copy_is_no_part_of_an_earlier_state() -> None:
    """A snapshot made after the moment does not make the moment's end later."""
    files = [*slots(1, 2), file(3, 3, second=9), file(1, 3, level=SNAPSHOT, second=50)]
    assert Wanted(at=NOW + timedelta(seconds=1)).end(PATH, files) == 2


def test_the_newest_state_is_the_default() -> None:
    """Whatever the level of the file that ends there."""
    assert Wanted(path=PATH).end(PATH, [*slots(1, 2), file(1, 5, level=1)]) == 5


@pytest.mark.parametrize(
    ("wanted", "files", "text"),
    [
        (Wanted(path=PATH), [], "holds no file"),
        (Wanted(path=PATH, txid=4), slots(1, 2, 3), "has the transactions 1 to 3, not 4"),
        (Wanted(path=PATH, txid=0), slots(1, 2, 3), "has the transactions 1 to 3, not 0"),
        (Wanted(at=NOW - timedelta(seconds=1)), slots(1), "has no file that ends by then; give a later --at"),
    ],
    ids=["nothing", "too new", "too old", "too early"],
)
def test_a_state_that_a_generation_does_not_have_is_refused(wanted: Wanted, files: list[File], text: str) -> None:
    """A neighbouring state is no answer."""
    with pytest.raises(NotInReplica, match=text):
        wanted.end(PATH, files)


# With a bucket.


def content(each: File, *, whole: bool = True) -> bytes:
    """A whole file of one transaction by that name, or one that was cut off."""
    data = ltx.unchanging(transaction=each.last, page_size=4096, pages=1, milliseconds=5, node=each.level)
    return data if whole else data[:-9]


@dataclass
class Bucket(Objects):
    """A bucket in memory that is listed and fetched from, and never written."""

    content: dict[str, bytes]
    on_fetch: Callable[[], None] = lambda: None
    fetched: list[str] = field(default_factory=list)
    lists: int = 0

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """See `worker.bucket.Objects`."""
        pytest.fail("a restore of a named generation reads no record")

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """See `worker.bucket.Objects`."""
        pytest.fail("a restore writes nothing")

    async def folders(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `worker.bucket.Objects`."""
        pytest.fail("a restore of a named generation looks at no other")

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """See `worker.bucket.Objects`."""
        self.lists += 1
        stored = sorted(self.content.items())
        return [StoredObject(name, len(data), NOW, {}) for name, data in stored if name.startswith(name_prefix)]

    def patient(self, seconds: float) -> Self:
        """See `worker.bucket.Objects`."""
        return self

    async def fetch(
        self,
        names: Sequence[str],
        name_prefix: str,
        directory: Path,
        *,
        timeout: float,
        check: Callable[[Path], None],
    ) -> None:
        """See `worker.bucket.Objects`."""
        self.on_fetch()
        for name in names:
            self.fetched.append(name)
            if name not in self.content:
                raise StoreMissing(f"{name} has vanished")
            local = directory / name.removeprefix(name_prefix)
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(self.content[name])
            check(local)


def holding(files: Collection[File], damaged: Collection[str] = ()) -> Bucket:
    """A bucket with these files, some of them cut off."""
    return Bucket({each.name: content(each, whole=each.name not in damaged) for each in files})


class Applied:
    """Stands in for `litestream restore`: it applies the files of the copy in order, and refuses a gap."""

    def __init__(self) -> None:
        self.files: list[str] = []

    async def __call__(self, replica: Path, output: Path, *, binary: Path, integrity_check: str) -> int:
        """See `worker.replica.litestream.restore`."""
        files = [each for each in replica.rglob("*") if each.is_file()]
        for each in files:
            ltx.check(each)
        self.files = sorted(each.name for each in files)
        reached = 0
        for first, last in sorted(tuple(int(n, 16) for n in each.stem.split("-")) for each in files):
            assert first <= reached + 1
            reached = max(reached, last)
        output.write_bytes(b"restored")
        return reached


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Applied:
    """Litestream's part."""
    made = Applied()
    monkeypatch.setattr(litestream, "restore", made)
    return made


def restored(bucket: Bucket, directory: Path, wanted: Wanted | None = None, **given_: float) -> Restored:
    """One restore into `users.db`; whatever comes of it, no scratch is left."""
    said: list[str] = []
    try:
        return asyncio.run(
            restore(
                bucket,
                wanted or Wanted(path=PATH),
                directory / "users.db",
                binary=Path("litestream"),
                integrity_check="quick",
                seconds=given_.get("seconds", 30.0),
                request_seconds=5.0,
                say=said.append,
            )
        )
    finally:
        assert {each.name for each in directory.iterdir()} <= {"users.db"}
        for name, data in bucket.content.items():  # what was read and is damaged was named
            if name in bucket.fetched and len(data) < 131:
                assert any(name in line and "is left out" in line for line in said)


@given(data=st.data())
@settings(deadline=None)  # files are written, on a busy disk as well
def test_what_is_damaged_never_hides_what_others_hold(data: st.DataObject) -> None:
    """INV-10: a restore succeeds if and only if whole files hold every transaction, whatever is damaged."""
    files = data.draw(FILES.filter(bool))
    damaged = data.draw(st.sets(st.sampled_from([each.name for each in files])))
    whole = [each for each in files if each.name not in damaged]
    end = max(each.last for each in files)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        made = Applied()
        patch.setattr(litestream, "restore", made)
        if fewest(whole, end) is None:
            with pytest.raises((NotInReplica, RestoreFailed), match="are in no whole file"):
                restored(holding(files, damaged), Path(folder))
            assert not (Path(folder) / "users.db").exists()
        else:
            result = restored(holding(files, damaged), Path(folder))
            assert result.txid == end
            assert set(result.left_out) <= damaged
            assert len(made.files) == fewest(whole, end)


def test_a_damaged_snapshot_is_left_out_and_named(applied: Applied, tmp_path: Path) -> None:
    """The slots hold what it holds."""
    snapshot = file(1, 3, level=SNAPSHOT)
    result = restored(holding([*slots(1, 2, 3, 4), snapshot], [snapshot.name]), tmp_path)
    assert (result.txid, result.left_out) == (4, [snapshot.name])
    assert len(applied.files) == 4


def test_a_damaged_slot_is_left_out_where_a_merge_holds_it(applied: Applied, tmp_path: Path) -> None:
    """A level says nothing about who is right."""
    result = restored(holding([file(1, 4, level=1), *slots(4, 5)], [slots(4)[0].name]), tmp_path)
    assert (result.txid, result.left_out) == (5, [])


def test_a_damaged_file_that_nothing_else_holds_fails_by_name(applied: Applied, tmp_path: Path) -> None:
    """Nothing is restored, not even what comes before it: an earlier state is no answer."""
    files = slots(1, 2, 3)
    with pytest.raises(RestoreFailed, match=rf"transactions 2 to 2 .* Not whole: {files[1].name}"):
        restored(holding(files, [files[1].name]), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert applied.files == []


def test_files_that_were_merged_away_meanwhile_are_looked_for_once_more(applied: Applied, tmp_path: Path) -> None:
    """Litestream deletes slots that it has merged, also under a restore."""
    bucket = holding(slots(1, 2, 3))

    def merge() -> None:
        bucket.on_fetch = lambda: None
        bucket.content = holding([file(1, 3, level=1)]).content

    bucket.on_fetch = merge
    assert restored(bucket, tmp_path).txid == 3
    assert bucket.lists == 2
    assert len(applied.files) == 1


def test_files_that_go_on_vanishing_end_the_restore(applied: Applied, tmp_path: Path) -> None:
    """INV-7: the bucket is looked at three times."""
    bucket = holding(slots(1, 2))

    lost = slots(2)[0].name

    async def objects(name_prefix: str, *, timeout: float) -> list[StoredObject]:
        bucket.lists += 1
        return [StoredObject(each.name, 131, NOW, {}) for each in slots(1, 2)]

    bucket.objects = objects  # type: ignore[method-assign]
    del bucket.content[lost]
    with pytest.raises(StoreMissing, match="has vanished"):
        restored(bucket, tmp_path)
    assert bucket.lists == 3
    assert list(tmp_path.iterdir()) == []


def test_a_restore_ends_in_its_time(applied: Applied, tmp_path: Path) -> None:
    """INV-7: also one whose bucket hangs, and it leaves no scratch."""
    bucket = holding(slots(1))

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    bucket.fetch = hang  # type: ignore[method-assign]
    with pytest.raises(RestoreFailed, match=r"longer than 0\.05 s; raise RESTORE_TIMEOUT_SECONDS"):
        restored(bucket, tmp_path, seconds=0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_restore_that_ends_elsewhere_is_no_restore(
    applied: Applied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Litestream says where it ended, and that is compared."""

    async def short(replica: Path, output: Path, **_: object) -> int:
        output.write_bytes(b"earlier")
        return 1

    monkeypatch.setattr(litestream, "restore", short)
    with pytest.raises(RestoreFailed, match="was restored to transaction 1, not 2; nothing was written"):
        restored(holding(slots(1, 2)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["litestream", "fetch"])
def test_a_full_disk_says_nothing_about_the_state(
    applied: Applied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """INV-9: it is the disk's error, and neither a drill nor a start takes the replica for damaged."""
    bucket = holding(slots(1, 2))

    async def full(*_: object, **__: object) -> int:
        if where == "fetch":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise RestoreFailed('level=ERROR error="write restored.db.tmp: no space left on device"')

    if where == "fetch":
        bucket.fetch = full  # type: ignore[assignment]
    else:
        monkeypatch.setattr(litestream, "restore", full)
    with pytest.raises(OSError, match="no space left: the compressed files have 262 bytes"):
        restored(bucket, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_transaction_is_restored_without_what_came_later(applied: Applied, tmp_path: Path) -> None:
    """Later files are not even read."""
    bucket = holding([*slots(1, 2, 3), file(1, 3, level=SNAPSHOT)])
    assert restored(bucket, tmp_path, Wanted(path=PATH, txid=2)).txid == 2
    assert bucket.fetched == [each.name for each in slots(1, 2)]


# `worker replica verify`.


def verified(bucket: Bucket) -> Verified:
    """A look at every file."""
    return asyncio.run(verify(bucket, PATH, request_seconds=5.0))


def test_a_sound_generation_is_said_to_be_sound() -> None:
    """Every file was read."""
    bucket = holding([*slots(1, 2), file(1, 2, level=SNAPSHOT)])
    result = verified(bucket)
    assert result.sound
    assert (result.files, result.txid, result.gap, result.damaged) == (3, 2, "", [])
    assert sorted(bucket.fetched) == sorted(bucket.content)


def test_damage_that_costs_nothing_is_told_from_damage_that_does() -> None:
    """Both are named; only the second loses transactions."""
    files = [*slots(1, 2, 3), file(1, 2, level=1)]
    spare = verified(holding(files, [files[0].name]))
    assert (spare.sound, spare.gap) == (False, "")
    assert [(each.name, each.lost) for each in spare.damaged] == [(files[0].name, "")]
    assert "leaves out the damaged ones" in spare.verdict

    lost = verified(holding(files, [files[0].name, files[2].name]))
    assert not lost.sound
    assert "transactions 3 to 3" in lost.gap
    assert [each.lost for each in lost.damaged] == ["", "transactions 3 to 3"]
    assert "cannot be restored to its end" in lost.verdict


def test_a_slot_that_is_missing_is_a_gap() -> None:
    """No file is damaged, and the generation still cannot be restored."""
    result = verified(holding(slots(1, 3)))
    assert (result.damaged, result.sound) == ([], False)
    assert "transactions 2 to 2" in result.gap


@given(data=st.data())
@settings(deadline=None)  # files are written, on a busy disk as well
def test_verify_and_restore_agree(data: st.DataObject) -> None:
    """A generation has a gap for `verify` exactly when a restore of its newest state fails."""
    files = data.draw(FILES.filter(bool))
    damaged = data.draw(st.sets(st.sampled_from([each.name for each in files])))
    result = verified(holding(files, damaged))
    whole = [each for each in files if each.name not in damaged]
    assert bool(result.gap) == (fewest(whole, max(each.last for each in files)) is None)
    assert [each.name for each in result.damaged] == sorted(damaged)
    if not result.gap:
        assert [each.lost for each in result.damaged] == [""] * len(damaged)


def test_a_generation_without_a_file_is_not_called_sound() -> None:
    """A mistyped epoch must not look like a verified one."""
    with pytest.raises(NotInReplica, match="holds no file"):
        verified(holding([]))
