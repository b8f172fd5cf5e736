"""A generation whose files are damaged one at a time: passed over where others hold what one held, and told where not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from local.gcs_process import FakeGcs
from local.proof import prove
from local.worker_process import WorkerProcess, wait_until
from tests.processes import BUCKET, PREFIX, QUICK, Objects, push
from worker.errors import NotInReplica, RestoreFailed
from worker.replica.bucket import Bucket
from worker.replica.layout import File, path_of
from worker.replica.litestream import find_binary
from worker.replica.restoring import Restored, Verified, Wanted, restore, verify
from worker.replica.survey import contents

pytestmark = pytest.mark.slow

CONFIG: Final = Path(__file__).parents[2] / "worker" / "replica" / "litestream.yml"
LIVE: Final = path_of(1)
MERGED: Final = 6
"""So many users are in files of level 2; the others are in slots, and perhaps in a file of level 1."""
USERS: Final = 8
SHARE: Final = 0.05
"""The part of all requests that fails."""

DAMAGES: Final[dict[str, Callable[[bytes], bytes | None]]] = {
    "cut in its header": lambda data: data[:50],
    "cut among its pages": lambda data: data[: len(data) // 2],
    "cut in its checksum": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "missing": lambda data: None,
}


@dataclass(slots=True)
class Store:
    """A prefix in the fake's bucket with one generation, whose worker was killed."""

    gcs: FakeGcs
    prefix: str
    files: list[File]
    states: dict[int, list[str]] = field(default_factory=dict)
    """What the database holds at the last two transactions."""

    @property
    def newest(self) -> int:
        """The last transaction."""
        return max(file.last for file in self.files)

    def restore(self, output: Path, *, txid: int | None = None, said: list[str] | None = None) -> Restored:
        """What a start, a drill, a recovery and `worker restore` do."""

        async def run(store: Bucket) -> Restored:
            return await restore(
                store,
                Wanted(path=LIVE, txid=txid),
                output,
                binary=find_binary("litestream"),
                integrity_check="quick",
                seconds=30,
                request_seconds=5,
                say=(said if said is not None else []).append,
            )

        with closing(Bucket(BUCKET, self.prefix)) as store:
            return asyncio.run(run(store))

    def verify(self) -> Verified:
        """What `worker replica verify` does."""
        with closing(Bucket(BUCKET, self.prefix)) as store:
            return asyncio.run(verify(store, LIVE, request_seconds=5))

    def worker(self, directory: Path, **settings: str) -> WorkerProcess:
        """A worker for it that is not started."""
        return WorkerProcess(
            disk=directory / "disk",
            replica_url=f"gs://{BUCKET}/{self.prefix}",
            environment={**self.gcs.environment(), **QUICK, **settings},
            port=0,
            log=directory / "worker.log",
        )

    def copied(self, prefix: str) -> Store:
        """A copy under another prefix, which a worker may change."""
        with objects(self.gcs) as there:
            for name in there.names(f"{self.prefix}/"):
                there.write(prefix + name.removeprefix(self.prefix), there.read(name))
        return Store(self.gcs, prefix, self.files, self.states)

    @contextmanager
    def damaged(self, file: File, damage: str) -> Iterator[None]:
        """The store with one damaged file, for the time of the block."""
        name = f"{self.prefix}/{file.name}"
        with objects(self.gcs) as there:
            data = there.read(name)
            rest = DAMAGES[damage](data)
            if rest is None:
                there.delete(name)
            else:
                there.write(name, rest)
            try:
                yield
            finally:
                there.write(name, data)

    @property
    def chosen_first(self) -> File:
        """The file that a restore begins with if it is whole."""
        return max((file for file in self.files if file.first == 1), key=lambda file: (file.last, file.level))

    def list(self) -> None:
        """Note which files there are."""
        with closing(Bucket(BUCKET, self.prefix)) as store:
            self.files = list(asyncio.run(contents(store, LIVE, timeout=10)).files)


@contextmanager
def objects(gcs: FakeGcs) -> Iterator[Objects]:
    """What is in the bucket."""
    there = Objects(gcs)
    try:
        yield there
    finally:
        there.close()


def dump(file: Path) -> list[str]:
    """All that a database holds, as SQL."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        return list(database.iterdump())


def hold_all(files: list[File], end: int) -> bool:
    """Whether files hold every transaction up to `end`."""
    held: set[int] = set()
    return held.union(*(range(file.first, file.last + 1) for file in files)) >= set(range(1, end + 1))


@pytest.fixture(scope="module")
def all_slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Merged files, and the slots they were made of."""
    directory = tmp_path_factory.mktemp("damage")
    config = directory / "litestream.yml"
    text = CONFIG.read_text()  # slots stay for its five minutes
    for usual, quick in {"interval: 30s": "interval: 1s", "interval: 5m\n  ": "interval: 2s\n  "}.items():
        assert usual in text
        text = text.replace(usual, quick)
    config.write_text(text)
    with FakeGcs(directory / "gcs", buckets=(BUCKET,)) as gcs, pytest.MonkeyPatch.context() as patch, objects(gcs) as there:
        for name, value in gcs.environment().items():
            patch.setenv(name, value)
        there.initialize()
        store = Store(gcs, PREFIX, [])
        worker = store.worker(directory, LITESTREAM_CONFIG=str(config))
        try:
            worker.start().wait_serving()
            for user in range(1, MERGED + 1):
                assert push(worker, user, f"m{user}").status_code == 204
            merged = f"{PREFIX}/{LIVE}/ltx/2/"

            def is_merged() -> bool:
                store.list()
                slots = max(file.last for file in store.files if file.level == 0)
                return any(file.level == 2 and file.last == slots for file in store.files)

            wait_until(is_merged, f"a merge into {merged}")
            for user in range(MERGED + 1, USERS + 1):
                assert push(worker, user, f"m{user}").status_code == 204
        finally:
            worker.kill()
        store.list()
        for txid in (store.newest - 1, store.newest):
            store.restore(directory / f"{txid}.db", txid=txid)
            store.states[txid] = dump(directory / f"{txid}.db")
        assert sum('INSERT INTO "users"' in line for line in store.states[store.newest]) == USERS
        yield store


@pytest.fixture(scope="module")
def merged_only(all_slots: Store) -> Store:
    """The same after all files but those of level 2 have been deleted of the transactions that are merged there."""
    store = all_slots.copied("merged")
    merged = max(file.last for file in store.files if file.level == 2)
    with objects(store.gcs) as there:
        for file in store.files:
            if file.level != 2 and file.first <= merged:
                there.delete(f"{store.prefix}/{file.name}")
    store.list()
    return store


@pytest.fixture(params=["all_slots", "merged_only"])
def store(request: pytest.FixtureRequest) -> Store:
    """Either of the two."""
    found: Store = request.getfixturevalue(request.param)
    return found


def test_the_stores_are_what_the_tests_need(all_slots: Store, merged_only: Store) -> None:
    """One whose files above level 0 are all spare, and one in which the oldest transactions are in one file only."""
    assert {file.level for file in all_slots.files} >= {0, 1, 2}
    assert {file.level for file in merged_only.files} >= {0, 2}
    assert all_slots.verify().sound
    assert merged_only.verify().sound
    for spare in (file for file in all_slots.files if file.level > 0):
        assert hold_all([file for file in all_slots.files if file != spare], all_slots.newest)
    for file in (file for file in merged_only.files if file.level == 2):
        assert not hold_all([each for each in merged_only.files if each != file], merged_only.newest)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_passed_over_or_told(store: Store, tmp_path: Path, damage: str) -> None:
    """INV-10: each file in turn. The whole state where others hold what it held, an error where none does, nothing else."""
    for number, file in enumerate(store.files):
        others = [each for each in store.files if each != file]
        # A slot that is missing at the end leaves no trace: the state before it is the newest.
        end = max(each.last for each in others) if damage == "missing" else store.newest
        output, said = tmp_path / f"{number}.db", list[str]()
        with store.damaged(file, damage):
            verified = store.verify()
            if hold_all(others, end):
                restored = store.restore(output, said=said)
                assert restored.txid == end
                assert dump(output) == store.states[end]
                assert set(restored.left_out) <= {file.name}
                assert all(any(name in line for line in said) for name in restored.left_out)
            else:
                with pytest.raises(NotInReplica if damage == "missing" else RestoreFailed) as told:
                    store.restore(output)
                assert f"the transactions {file.first} to " in str(told.value)
                assert damage == "missing" or file.name in str(told.value)
                assert not output.exists()
        assert [each.name for each in verified.damaged] == ([] if damage == "missing" else [file.name])
        assert bool(verified.gap) != hold_all(others, end)
        for each in verified.damaged:
            assert bool(each.lost) != hold_all(others, end)
        assert not list(tmp_path.glob(".restore-*"))
    assert store.verify().sound  # every damage was undone


def test_the_commands_name_the_damaged_file(merged_only: Store, tmp_path: Path) -> None:
    """`worker replica verify` says which and what depends on it, and `worker restore` leaves no file."""
    worker = merged_only.worker(tmp_path)
    file = merged_only.chosen_first
    with merged_only.damaged(file, "cut among its pages"):
        done = worker.run("replica", "verify", "--json")
        assert done.returncode == 1
        (damaged,) = json.loads(done.stdout)["damaged"]
        assert (damaged["name"], damaged["lost"]) == (file.name, f"transactions {file.first} to {file.last}")
        done = worker.run("restore", "-o", str(tmp_path / "x.db"))
        assert done.returncode == 1
        assert file.name in done.stderr
        assert not (tmp_path / "x.db").exists()
    assert worker.run("replica", "verify").returncode == 0


def test_a_start_passes_over_a_damaged_file(all_slots: Store, tmp_path: Path) -> None:
    """INV-1: the file that the restore would begin with is cut off; others hold what it held, and every user is there."""
    store = all_slots.copied("passed-over")
    file = store.chosen_first
    worker = store.worker(tmp_path)
    with store.damaged(file, "cut among its pages"):
        try:
            worker.start().wait_serving()
            assert f"{file.name} is left out" in worker.log.read_text()
            assert push(worker, 1, "m1").status_code == 204
        finally:
            worker.kill()
        acknowledged = {f"m{user}": user for user in range(1, USERS + 1)}
        assert prove(store.gcs.url, f"gs://{BUCKET}/{store.prefix}", acknowledged).holds


def test_a_start_serves_nothing_where_a_file_that_is_needed_is_damaged(merged_only: Store, tmp_path: Path) -> None:
    """INV-5: it says which, and the live generation stays what it was."""
    store = merged_only.copied("needed")
    file = store.chosen_first
    worker = store.worker(tmp_path)
    with store.damaged(file, "cut among its pages"), objects(store.gcs) as there:
        try:
            worker.start()
            wait_until(lambda: worker.state() in ("serving", "ended"), "its end")
            assert worker.state() == "ended"
            assert worker.code not in (0, None)
            assert "the live generation could not be restored" in worker.log.read_text()
            assert file.name in worker.log.read_text()
        finally:
            worker.kill()
        assert json.loads(there.read(f"{store.prefix}/lease.json"))["live"] == LIVE
        assert {name.split("/")[2] for name in there.names(f"{store.prefix}/generations/")} == {LIVE.split("/")[1]}


@contextmanager
def failing(gcs: FakeGcs) -> Iterator[list[int]]:
    """A bucket of which a part of the requests fail, half of these without an answer; the rules' numbers."""
    rules = [
        gcs.faults.add(action="error", status=503, share=SHARE / 2, seed=1),
        gcs.faults.add(action="refuse", share=SHARE / 2, seed=2),
    ]
    try:
        yield rules
    finally:
        for rule in rules:
            gcs.faults.remove(rule)


def test_a_restore_is_slowed_and_not_ended_by_requests_that_fail(all_slots: Store, tmp_path: Path) -> None:
    """Each request is repeated within the restore's time. Restores, until both kinds have come."""
    with failing(all_slots.gcs) as rules:
        for number in range(60):
            output = tmp_path / f"{number}.db"
            assert all_slots.restore(output).txid == all_slots.newest
            assert dump(output) == all_slots.states[all_slots.newest]
            if all(all_slots.gcs.faults.hits(rule) for rule in rules):
                return
    raise AssertionError("the rules did not strike")


def test_a_start_is_slowed_and_not_ended_by_requests_that_fail(all_slots: Store, tmp_path: Path) -> None:
    """The restore, the seal, the manifest, the full copy and the record: starts, until both kinds have come."""
    store = all_slots.copied("failing")
    worker = store.worker(tmp_path)
    acknowledged = {f"m{user}": user for user in range(1, USERS + 1)}
    try:
        with failing(store.gcs) as rules:
            for number in range(USERS + 1, USERS + 11):
                worker.start().wait_serving()
                wait_until(lambda: push(worker, number, f"m{number}").status_code == 204, "an answer")  # noqa: B023  # called at once
                acknowledged[f"m{number}"] = number
                worker.kill()
                worker.wipe()
                if all(store.gcs.faults.hits(rule) for rule in rules):
                    break
            assert all(store.gcs.faults.hits(rule) for rule in rules)
    finally:
        worker.kill()
    assert prove(store.gcs.url, f"gs://{BUCKET}/{store.prefix}", acknowledged).holds
