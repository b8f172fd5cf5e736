"""Stops of a worker in the middle of an upload: which moments there are, and what has to hold after each of them.

A moment is where one upload of a generation stands, held there by a fault of the fake: it is met at a chosen byte, or is
whole and not an object yet, or is an object whose answer does not come. Then the worker is stopped in one of four ways.
"""

import itertools
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import httpx
import peewee

from local.faults import ALL, Action
from local.gcs_process import FakeGcs
from local.proof import prove
from local.worker_process import ROOT, WorkerProcess, wait_until
from tests.processes import BUCKET, QUICK, Objects, kill_9, litestream_of, push, pushing

Stop = Literal["SIGTERM", "the child killed", "the worker killed", "a hand-over"]
STOPS: Final[tuple[Stop, ...]] = ("SIGTERM", "the child killed", "the worker killed", "a hand-over")
FULL_COPY: Final = "the first full copy"
SLOT: Final = "a slot"
UPLOADS: Final[Mapping[str, str]] = {
    FULL_COPY: "*/ltx/0/0000000000000001-*",
    SLOT: "*/ltx/0/*",
    "a merge into level 1": "*/ltx/1/*",
    "a merge into level 2": "*/ltx/2/*",
    "a merge into level 3": "*/ltx/3/*",
    "a snapshot": "*/ltx/9/*",
}
"""The kinds of uploads, and the names that each has."""
PART: Final = 16 << 20
"""Litestream sends a file of more in several parts."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where an upload stands when the stop comes; the arguments are those of a fault rule."""

    what: str
    after_bytes: int | None
    action: Action = "hang"


WHOLE: Final = Moment("all bytes sent, no object yet", ALL)
UNANSWERED: Final = Moment("an object, and the answer not sent", ALL, "mute")
ONE_PART: Final = (Moment("one byte sent", 1), WHOLE, UNANSWERED)
SECOND_PART: Final = Moment("in the middle of the second part", PART + 100_000)
SEVERAL_PARTS: Final = (
    Moment("not begun", None),
    Moment("in the middle of the first part", 1_000_000),
    SECOND_PART,
    WHOLE,
    UNANSWERED,
)
_BULK_TRANSACTION: Final = 4_000_000
_BLOB: Final = 100_000
_SECONDS: Final = 120.0
"""Longest wait for one step: stores of 300 MB, several side by side."""


def quick_config(directory: Path) -> Path:
    """A litestream.yml that merges within seconds."""
    text = (ROOT / "worker" / "replica" / "litestream.yml").read_text()
    for level in (1, 2, 3):
        text, changed = re.subn(r"(?m)^  - interval: \d+[mh]?\d*[smh]$", f"  - interval: {level}s # quick", text, count=1)
        assert changed == 1, "litestream.yml has three levels"
    file = directory / "litestream.yml"
    file.write_text(text)
    return file


@dataclass(slots=True)
class Stopped:
    """One store, its worker of the moment, and what was acknowledged. One thread uses it."""

    gcs: FakeGcs
    directory: Path
    name: str
    config: Path
    worker: WorkerProcess | None = None
    acknowledged: dict[str, int] = field(default_factory=dict)
    _lives: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _pending: "list[tuple[str, int, Future[httpx.Response]]]" = field(default_factory=list)

    def __post_init__(self) -> None:
        objects = Objects(self.gcs)
        objects.initialize(self.name)
        objects.close()

    @property
    def url(self) -> str:
        """Where the store is."""
        return f"gs://{BUCKET}/{self.name}"

    def place(self) -> WorkerProcess:
        """A place for a worker, of a new revision and on a new disk."""
        life = next(self._lives)
        environment = {
            **self.gcs.environment(),
            **QUICK,
            "K_REVISION": f"r{life}",
            "LITESTREAM_CONFIG": str(self.config),
            "TENURE_MIN_SECONDS": "0",
        }
        disk, log = self.directory / f"{self.name}-{life}", self.directory / f"{self.name}.log"
        return WorkerProcess(disk=disk, replica_url=self.url, environment=environment, port=0, log=log)

    def start(self) -> WorkerProcess:
        """Start the next worker."""
        self.worker = self.place().start()
        return self.worker

    def deliver(self, worker: WorkerProcess) -> None:
        """Have one more message acknowledged."""
        number = next(self._numbers)
        answer = push(worker, number, f"{self.name}-{number}")
        assert answer.status_code == 204, f"{answer.status_code} {answer.text}"
        self.acknowledged[f"{self.name}-{number}"] = number

    def begin_delivery(self, worker: WorkerProcess) -> None:
        """Send one more message; `note_answers` notes whether it was acknowledged."""
        number = next(self._numbers)
        message_id = f"{self.name}-{number}"
        self._pending.append((message_id, number, pushing(worker, number, message_id)))

    def note_answers(self) -> None:
        """Wait for the answers to what was sent to a worker that has ended, or goes on."""
        for message_id, number, answer in self._pending:
            error = answer.exception(_SECONDS)
            if error is None and answer.result().status_code == 204:
                self.acknowledged[message_id] = number
        self._pending.clear()

    def prove(self) -> None:
        """Restore the live generation by plain Litestream, with a full integrity check: what was acknowledged is there."""
        proof = prove(self.gcs.url, self.url, self.acknowledged)
        assert proof.holds, f"{self.name}: {proof}"

    def end(self) -> None:
        """Kill the worker of the moment."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wipe()

    def forget_old_generations(self) -> None:
        """Delete all but the newest two: hundreds of copies of a large database do not fit anywhere."""
        with httpx.Client(base_url=self.gcs.url, trust_env=False, timeout=60) as client:
            objects = f"/storage/v1/b/{BUCKET}/o"
            prefix = f"{self.name}/generations/"
            found = client.get(objects, params={"prefix": prefix}).raise_for_status().json().get("items", [])
            names = [str(item["name"]) for item in found]
            kept = sorted({name.split("/")[2] for name in names})[-2:]
            for name in names:
                if name.split("/")[2] not in kept:
                    client.delete(f"{objects}/{name.replace('/', '%2F')}").raise_for_status()


@contextmanager
def stopped(gcs: FakeGcs, directory: Path, name: str, config: Path) -> Iterator[Stopped]:
    """A store; its worker is killed at the end, and its log printed after a failure."""
    scene = Stopped(gcs, directory, name, config)
    try:
        yield scene
    except BaseException:
        log = directory / f"{name}.log"
        print(f"--- {name}: {log.read_text(errors='replace')[-4000:] if log.exists() else 'no log'}")
        raise
    finally:
        scene.end()


def fill(worker: WorkerProcess, size: int) -> None:
    """Put so many random bytes into a serving worker's database, beside its own tables; again: others in their place."""
    connect = peewee.sqlite3.connect  # type: ignore[attr-defined]  # not in its stubs
    with closing(connect(worker.disk / "users.db", isolation_level=None, timeout=60)) as database:
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute("CREATE TABLE IF NOT EXISTS bulk (id INTEGER PRIMARY KEY, data BLOB)")
        for at in range(0, size, _BULK_TRANSACTION):
            rows = [(row, os.urandom(_BLOB)) for row in range(at // _BLOB, min(at + _BULK_TRANSACTION, size) // _BLOB)]
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR REPLACE INTO bulk VALUES (?, ?)", rows)
            database.execute("COMMIT")


def stop_in_the_middle(scene: Stopped, stop: Stop, upload: str, moment: Moment, *, large: bool, size: int) -> None:
    """Start the next worker, see it serve, hold one upload at the moment, stop the worker there, and prove what is left.

    Args:
        scene: The store; its worker of the moment has ended, or is ended here.
        stop: How it is stopped.
        upload: One of `UPLOADS`.
        moment: Where that upload is held.
        large: Whether the store holds `size` random bytes, so that each file of everything has several parts.
        size: How many.
    """
    faults = scene.gcs.faults
    name = f"{scene.name}/generations/{UPLOADS[upload]}"
    held = {"verb": "insert", "name": name, "action": moment.action, "after_bytes": moment.after_bytes, "times": 1}
    if upload == SLOT:
        worker = scene.start().wait_serving(seconds=_SECONDS)
        scene.deliver(worker)
        if large:
            fill(worker, size)
        rule = faults.add(**held)  # type: ignore[arg-type]
        scene.begin_delivery(worker)
    else:
        rule = faults.add(**held)  # type: ignore[arg-type]
        worker = scene.start()
        if upload != FULL_COPY:
            scene.deliver(worker.wait_serving(seconds=_SECONDS))
    try:
        faults.wait_for_hits(rule, timeout=_SECONDS)
        _stop(scene, worker, stop, rule, serving=upload != FULL_COPY)
    except BaseException as error:
        error.add_note(f"{scene.name}: {stop}, {upload}, {moment.what}")
        raise
    finally:
        with suppress(httpx.HTTPError):
            faults.remove(rule)


def _stop(scene: Stopped, worker: WorkerProcess, stop: Stop, rule: int, *, serving: bool) -> None:
    faults = scene.gcs.faults
    match stop:
        case "SIGTERM":
            worker.send(signal.SIGTERM)
            assert worker.wait(seconds=_SECONDS) == 0
        case "the worker killed":
            kill_alone(worker)
        case "the child killed":
            child = litestream_of(worker)
            kill_9(child)
            wait_until(lambda: litestream_of(worker) != child, "another child", seconds=_SECONDS)
            faults.remove(rule)
            scene.deliver(worker.wait_serving(seconds=_SECONDS))
            scene.note_answers()
            scene.prove()
            assert worker.stop() == 0
        case "a hand-over":
            heir = scene.start()
            wait_until(lambda: heir.state() == "standby", "standing by", seconds=_SECONDS)
            scene.begin_delivery(heir)
            if not serving:  # a worker that does not serve yet hands nothing over
                faults.remove(rule)
            assert worker.wait(seconds=_SECONDS) == 0
            scene.deliver(heir.wait_serving(seconds=_SECONDS))
            scene.note_answers()
            scene.prove()
            assert heir.stop() == 0
            heir.wipe()
    worker.wipe()
    scene.note_answers()
    faults.remove(rule)
    scene.prove()


def kill_alone(worker: WorkerProcess) -> None:
    """Kill -9 of the worker; its child is killed by the kernel, or by this."""
    worker.send(signal.SIGKILL)
    worker.wait()
    worker.kill()


def stop_in_turn(scene: Stopped, stop: Stop, combinations: Sequence[tuple[str, Moment]], *, size: int) -> None:
    """Stop in each upload at the moment beside it, one after the other; a worker serves at the end."""
    large = size > PART
    worker = scene.start().wait_serving(seconds=_SECONDS)  # from here on a generation is live
    if large:
        fill(worker, size)
    scene.deliver(worker)
    assert worker.stop() == 0
    worker.wipe()
    for upload, moment in combinations:
        stop_in_the_middle(scene, stop, upload, moment, large=large, size=size)
        scene.forget_old_generations()
    scene.deliver(scene.start().wait_serving(seconds=_SECONDS))
    scene.prove()
