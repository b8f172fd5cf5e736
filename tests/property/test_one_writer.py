"""One writer, always: three contenders, and a world that does the worst it can at every step (INV-1, 2, 4, 5).

The machine decides, for each request of each process, whether and when it takes effect and whether and when its sender
hears of it; whose clock passes what; who crashes, is stopped, is started, is sent a message. A process is frozen while no
rule moves it. What the processes run is the worker's own code (see world.py).

A protocol with one of its reasons taken out is caught: see the mutants at the end.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any, Final
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.property import world
from tests.property.bucket import Ask, Bucket
from tests.property.world import Process
from worker import generation, lease_record, supervisor
from worker.config import Settings
from worker.errors import LeaseLost, RestoreFailed, StoreUnavailable, SyncUnavailable
from worker.generation import Generations
from worker.intake import State
from worker.lease import Lease
from worker.replication import LitestreamConfirmation

CONTENDERS: Final = 3
STEPS: Final = 100
ANY: Final = st.integers(0, 5)
"""Which of several: taken modulo how many there are."""
FEW: Final = st.integers(0, 5)
"""How far all goes well for a process afterwards, in requests and timers."""


class OneWriter(RuleBasedStateMachine):
    """The contenders and their world; each rule is one thing that may happen next."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket = Bucket()
        self.settings = world.settings()
        self.running: list[Process] = []
        self.started = 0
        self.messages: list[str] = []
        self._ended: list[Process] = []
        self._records_seen = 0
        self._owner: dict[int, str] = {}

    def teardown(self) -> None:
        """Leave no task behind."""
        for process in self.running:
            process.crash()

    def _process(self, which: int) -> Process:
        return self.running[which % len(self.running)]

    def _request(self, which: int, *, done: bool) -> tuple[Process, Ask] | None:
        found = [(process, request) for process in self.running for request in process.pending if request.done == done]
        return found[which % len(found)] if found else None

    def _run(self, process: Process, steps: int, *, overtaking: bool = False, until: State | None = None) -> None:
        for _ in range(steps):
            if process.intake.state is until:
                break
            process.step(overtaking=overtaking)
        self._sweep()

    def _sweep(self) -> None:
        self._ended += [process for process in self.running if process.life.done()]
        self.running = [process for process in self.running if not process.life.done()]
        while len(self.running) < CONTENDERS:
            self.started += 1
            self.running.append(Process(self.bucket, f"p{self.started}", self.settings))

    # Processes come, work and go. There are always three: the platform starts another for each that is gone.

    @initialize(published=st.integers(0, 3))
    def begin(self, published: int) -> None:
        """Three are started, one of them serves, and some messages are on their way."""
        self._sweep()
        self.take_over(0)
        self.publish(0, published, 2)

    @rule(which=ANY, warned=st.booleans(), then=FEW)
    def end(self, which: int, warned: bool, then: int) -> None:
        """An instance gets SIGTERM, and so far with it; or it is gone, and what it has sent may still arrive."""
        process = self._process(which)
        if warned:
            process.signal()
            self._run(process, then)
        else:
            process.crash()
            self._sweep()

    @rule(which=ANY, steps=st.sampled_from([1, 2, 3, 5, 8, 13, 30]), overtaking=st.booleans())
    def run(self, which: int, steps: int, overtaking: bool) -> None:
        """All goes well for one of them for a while, or answers overtake one another; the others are frozen."""
        self._run(self._process(which), steps, overtaking=overtaking)

    @rule(which=ANY)
    def take_over(self, which: int) -> None:
        """All goes well for one that stands by until it serves, or for long enough to say that it won't."""
        waiting = [process for process in self.running if process.intake.state is State.STANDBY]
        if waiting:
            self._run(waiting[which % len(waiting)], 100, until=State.SERVING)

    # Messages.

    @rule(which=ANY, count=st.integers(1, 3), then=FEW)
    def publish(self, which: int, count: int, then: int) -> None:
        """New messages are delivered one after the other, most often to one that serves, which gets so far with them."""
        serving = [process for process in self.running if process.intake.state is State.SERVING]
        targets = serving + self.running
        process = targets[which % len(targets)]
        for _ in range(count):
            self.messages.append(f"m{len(self.messages)}")
            process.deliver(self.messages[-1])
            self._run(process, then)

    @precondition(lambda self: self.messages)
    @rule(which=ANY, message=ANY, then=FEW)
    def deliver_again(self, which: int, message: int, then: int) -> None:
        """A message is delivered once more, acknowledged or not, to whomever."""
        self._process(which).deliver(self.messages[-1 - message % len(self.messages)])
        self._run(self._process(which), then)

    @rule(which=ANY, then=FEW)
    def litestream_uploads_unasked(self, which: int, then: int) -> None:
        """Litestream's own monitor is faster than the confirmation."""
        self._process(which).upload_unasked()
        self._run(self._process(which), then)

    @rule(which=ANY)
    def litestream_answers_early(self, which: int) -> None:
        """Litestream's next answer is 200 although nothing was uploaded."""
        self._process(which).litestream_hurries = True

    # Time.

    @rule(which=ANY, seconds=st.sampled_from([0.5, 2.0, 5.0, 16.0, 60.0]), due=st.booleans())
    def time_passes(self, which: int, seconds: float, due: bool) -> None:
        """One machine's clock moves; what is due by it happens now, or after its next answer."""
        process = self._process(which)
        process.sleep(seconds)
        if due:
            process.wake()
        self._sweep()

    @rule()
    def the_ttl_passes(self) -> None:
        """Every clock passes the TTL: all of them were frozen."""
        for process in self.running:
            process.sleep(self.settings.lease_ttl_seconds + 1)

    # Requests, one at a time.

    @precondition(lambda self: self._request(0, done=False))
    @rule(which=ANY)
    def take_effect(self, which: int) -> None:
        """A request takes effect; its sender has not heard of it."""
        if found := self._request(which, done=False):
            found[1].perform()

    @rule(which=ANY)
    def all_take_effect(self, which: int) -> None:
        """Everything a process has sent takes effect, and the answers are on their way."""
        for request in self._process(which).pending:
            request.perform()

    @precondition(lambda self: self._request(0, done=True))
    @rule(which=ANY, then=FEW)
    def answer(self, which: int, then: int) -> None:
        """The sender of a request that took effect hears of it, whatever else it waits for."""
        if found := self._request(which, done=True):
            found[0].reply(found[1])
            self._run(found[0], then)

    @precondition(lambda self: self._request(0, done=False))
    @rule(which=ANY, then=FEW)
    def delay(self, which: int, then: int) -> None:
        """The sender of a request gives up; it may still take effect, or never."""
        if found := self._request(which, done=False):
            found[0].time_out(found[1])
            self._run(found[0], then)

    @precondition(lambda self: self._request(0, done=True))
    @rule(which=ANY, then=FEW)
    def lose_the_answer(self, which: int, then: int) -> None:
        """A request took effect, and its sender never hears of it."""
        if found := self._request(which, done=True):
            found[0].time_out(found[1])
            self._run(found[0], then)

    @precondition(lambda self: self.bucket.late)
    @rule(which=ANY)
    def arrive_late(self, which: int) -> None:
        """A request whose sender has given up, or is no more, takes effect after all."""
        self.bucket.late.pop(which % len(self.bucket.late)).perform()

    # What must hold after every step.

    @invariant()
    def acknowledged_is_restored(self) -> None:
        """INV-1: what was acknowledged is in what a restore of the live generation gives now."""
        try:
            rows = self.bucket.restored()
        except RestoreFailed as error:
            raise AssertionError(f"INV-1: the live generation cannot be restored: {error}") from None
        missing = {ack.message for ack in self.bucket.acks} - set(rows)
        assert not missing, f"INV-1: acknowledged, but a restore misses {sorted(missing)}"

    @invariant()
    def one_writer_confirms_in_an_epoch(self) -> None:
        """INV-2: no two holders acknowledge in one epoch."""
        holders: dict[int, str] = {}
        for ack in self.bucket.acks:
            assert holders.setdefault(ack.epoch, ack.holder) == ack.holder, f"INV-2: two writers in epoch {ack.epoch}"

    @invariant()
    def epochs_only_grow(self) -> None:
        """INV-2: the record's epoch never decreases, and belongs to one holder."""
        new = self.bucket.records[max(self._records_seen - 1, 0) :]
        for before, after in itertools.pairwise(new):
            assert before.epoch <= after.epoch, f"INV-2: the epoch decreased, {before} to {after}"
            owner = self._owner.setdefault(after.epoch, after.holder)
            assert owner == after.holder, f"INV-2: epoch {after.epoch} has had two holders"
        self._records_seen = len(self.bucket.records)

    @invariant()
    def one_life_writes_a_path(self) -> None:
        """INV-4: no path is written by two lives."""
        for path, writers in self.bucket.writers.items():
            assert len(writers) == 1, f"INV-4: {path} is written by {sorted(writers)}"

    @invariant()
    def a_process_ends_for_a_reason(self) -> None:
        """A process ends when it is told to, when an outage outlasts its start, or when another has its lease."""
        for process in self._ended:
            error = None if process.life.cancelled() else process.life.exception()
            if isinstance(error, LeaseLost):
                assert self._overtaken(process.holder), f"INV-2: a lease was given up that nobody had taken: {error}"
            elif error is not None and not isinstance(error, RestoreFailed | StoreUnavailable | SyncUnavailable):
                raise error
        self._ended.clear()
        for process in self.running:
            assert not process.loop.broken, process.loop.broken

    def _overtaken(self, holder: str) -> bool:
        records = self.bucket.records
        first = next(index for index, record in enumerate(records) if record.holder == holder)
        return any(record.holder != holder or record.state == "released" for record in records[first:])


def check(machine: type[OneWriter], *, examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """Run the machine, the same way each time."""
    with world.installed():
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                derandomize=True,
                database=None,
                deadline=None,
                phases=phases,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


pytestmark = pytest.mark.timeout(900)  # half a minute of one core, but it shares two with the crash tests


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of thousands of warnings about outages are not worth keeping."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_the_protocol_holds() -> None:
    """Whatever happens, in whatever order: nothing acknowledged is lost, and nobody writes beside the holder."""
    check(OneWriter, examples=400)


def test_an_answer_overtaken_by_an_advance_is_no_loss() -> None:
    """The machine's find: the re-read took effect before the advance did and was answered after it; nobody else came."""
    with world.installed():
        process = Process(Bucket(), "p1", world.settings())
        while process.intake.state is not State.SERVING or process.pending:
            process.step()
        process.deliver("m1")
        process.step()  # the upload
        process.step()  # the re-read
        process.deliver("m2")
        process.step()  # the upload, with which the generation has reached its bound
        process.sleep(2)
        process.wake()
        asked = [request.what for request in process.pending]
        assert "read lease.json" in asked[0]
        assert "write lease.json" in asked[-1]
        process.step(overtaking=True)
        process.step()
        ended = process.life.exception() if process.life.done() else None
        process.crash()
        assert ended is None
        assert [ack.message for ack in process.bucket.acks] == ["m1", "m2"]


def test_what_is_committed_when_the_service_drains_is_uploaded_at_once() -> None:
    """INV-8: an upload that waits for senders to come back waits no longer when they are refused."""
    with world.installed():
        process = Process(Bucket(), "p1", Settings(replica_url="gs://bucket/prefix"))
        while process.intake.state is not State.SERVING or process.pending:
            process.step()

        def uploading() -> bool:
            return any("upload" in request.what for request in process.pending)

        for message in ("m1", "m2"):  # after two uploads of a second each the next would wait for as long
            while process.pending:
                process.step()
            process.deliver(message)
            process.sleep(1)
            while uploading():
                process.step()
        process.deliver("m3")
        while len(process.bucket.acks) < 2:
            process.step()
        waited = not uploading()
        process.signal()
        asked = uploading()
        process.crash()
        assert (waited, asked) == (True, True)


# Mutants: the protocol with one of its reasons taken out.


class NobodyAsked:
    """A lease that is not read again."""

    async def verify(self) -> None:
        """All is well, as far as anybody knows."""


class NoRereadBeforeTheAck(LitestreamConfirmation):
    """Mutant 1: a confirmed sync is taken for enough."""

    def __init__(self, replica: Any, lease: Any, *, sync_timeout: int) -> None:
        super().__init__(replica, NobodyAsked(), sync_timeout=sync_timeout)


class RereadBeforeTheSync(LitestreamConfirmation):
    """Mutant 4: both questions are asked, in the wrong order."""

    async def upload(self) -> None:
        """See `worker.replication.Confirmation`."""
        await super().verify()
        await super().upload()

    async def verify(self) -> None:
        """Asked already."""


def failure(machine: type[OneWriter], *, examples: int) -> str:
    """What the machine says against a mutant, unshrunk."""
    with pytest.raises(AssertionError) as caught:
        check(machine, examples=examples, phases=(Phase.generate,))
    return str(caught.value)


class RivalPaths(OneWriter):
    """Mutants that share a path are held against what follows from it."""

    @invariant()
    def one_life_writes_a_path(self) -> None:
        """Not asked."""


@contextlib.contextmanager
def one_path_for_all() -> Iterator[None]:
    """Mutant 2: every life writes the same path, as a plain Litestream configuration would."""

    async def claim(self: Generations, name: str, manifest: object) -> None:
        """Claim nothing: the manifest would tell."""

    with (
        mock.patch.object(generation, "path_of", return_value="generations/same"),
        mock.patch.object(Generations, "_claim", claim),
    ):
        yield


@contextlib.contextmanager
def restore_before_acquire() -> Iterator[None]:
    """Mutant 3: the database is made ready while standing by, so that serving can begin at once."""
    acquire = Lease.acquire

    async def prepared(self: Lease) -> None:
        process: Any = self._store
        record, _ = await lease_record.look(process, timeout=3)
        if record.live is not None:
            options, path = process._parts.options, f"{process.settings.prefix}/{record.live}"
            await world.restore(options, replica_path=path, output=process.disk, integrity_check="", timeout=3)
            process.early = process.disk.rows
        await acquire(self)

    async def restore(self: Generations, live: str) -> int:
        process: Any = self._store
        process.disk.rows = process.early
        return 1

    with mock.patch.object(Lease, "acquire", prepared), mock.patch.object(Generations, "_restore", restore):
        yield


def test_without_the_reread_a_zombie_acknowledges_what_nobody_restores() -> None:
    """Mutant 1 is caught: INV-1."""
    with mock.patch.object(supervisor, "LitestreamConfirmation", NoRereadBeforeTheAck):
        assert failure(OneWriter, examples=1000).startswith("INV-1")


def test_a_path_for_all_is_written_by_two_lives() -> None:
    """Mutant 2 is caught by the rule itself: INV-4."""
    with one_path_for_all():
        assert failure(OneWriter, examples=1000).startswith("INV-4")


def test_a_path_for_all_loses_what_was_acknowledged() -> None:
    """Mutant 2 is caught by what follows, too: a zombie's file replaces the holder's."""
    with one_path_for_all():
        assert failure(RivalPaths, examples=1000).startswith("INV-1")


def test_restoring_before_acquiring_misses_what_came_in_between() -> None:
    """Mutant 3 is caught: INV-1."""
    with restore_before_acquire():
        assert failure(OneWriter, examples=1000).startswith("INV-1")


def test_rereading_before_the_sync_is_no_reread() -> None:
    """Mutant 4 is caught: INV-1."""
    with mock.patch.object(supervisor, "LitestreamConfirmation", RereadBeforeTheSync):
        assert failure(OneWriter, examples=1000).startswith("INV-1")
