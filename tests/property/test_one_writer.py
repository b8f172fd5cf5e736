"""One writer, always: three contenders, and a world that does the worst it can at every step (INV-1, 2, 4, 5).

The machine decides, for each request of each process, whether and when it takes effect and whether and when its sender
hears of it; whose clock passes what; who crashes, is stopped, is started, is sent a message. A process is frozen while no
rule moves it. What the processes run is the worker's own code (see world.py).

A protocol with one of its reasons taken out is caught: see the mutants at the end.
"""

import base64
import contextlib
import itertools
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Final
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.property import world
from tests.property.bucket import Ack, Ask, Bucket, whole
from tests.property.world import Process, SimulatedGate
from worker.config import Settings
from worker.errors import (
    LeaseLost,
    LitestreamError,
    NotInReplica,
    RestoreFailed,
    StoreMissing,
    StoreUnavailable,
    SyncUnavailable,
)
from worker.ingest.intake import State
from worker.replica import gate, generation, ltx, retention
from worker.replica.generation import Generation
from worker.replica.layout import MANIFEST, slot_name
from worker.replica.slots import Answer, Digest, Name, Slots
from worker.replica.survey import contents

PASSING: Final = (RestoreFailed, NotInReplica, StoreMissing, StoreUnavailable, SyncUnavailable)
"""What a life may end with beside the loss of its lease: an outage outlasted a step of its start."""
LITESTREAM: Final = ("monitor", "snapshot", "merge 1", "merge 2", "trim 0", "trim 1")
CONTENDERS: Final = 3
STEPS: Final = 100
HISTORIES: Final = 250
ZOMBIES: Final = 4
"""Take-overs in one history."""
ANY: Final = st.integers(0, 5)
"""Which of several: taken modulo how many there are."""
MOST: Final = 8
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
        self._whole: set[str] = set()

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
        while sum(process.recover_to is None for process in self.running) < CONTENDERS:
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

    @rule(
        which=ANY,
        at=st.integers(0, 40),
        between=st.lists(st.sampled_from(LITESTREAM), max_size=3),
        then=st.sampled_from([0, 1, 4, MOST]),
        overtaking=st.booleans(),
        later=st.sampled_from([0.0, 8.0, 20.0]),
    )
    def take_over_beside_a_zombie(
        self, which: int, at: int, between: list[str], then: int, overtaking: bool, later: float
    ) -> None:
        """The writer is slow or frozen, but works at one moment of another's take-over, and again after it."""
        serving = [process for process in self.running if process.intake.state is State.SERVING]
        waiting = [process for process in self.running if process.intake.state is State.STANDBY]
        if not serving or not waiting:
            return
        zombie, heir = serving[which % len(serving)], waiting[which % len(waiting)]
        self._run(heir, 2)
        heir.sleep(self.settings.lease_ttl_seconds + 1)
        self._run(heir, at, until=State.SERVING)
        self._work(zombie, between, then, overtaking)
        self._run(heir, 100, until=State.SERVING)
        heir.sleep(later)
        self._run(heir, 30 if later else 0)
        self._work(zombie, between, then, overtaking)

    def _work(self, process: Process, between: list[str], then: int, overtaking: bool) -> None:
        if process in self.running:
            self.messages.append(f"m{len(self.messages)}")
            process.deliver(self.messages[-1])
            self._run_litestream(process, then, overtaking=False)
            for what in between:
                process.litestream_acts(what)
                self._run_litestream(process, max(then, 1), overtaking=overtaking)

    def _run_litestream(self, process: Process, steps: int, *, overtaking: bool) -> None:
        """So many steps; or, for the most, all that its Litestream asks of the bucket, while no time passes."""
        if steps < MOST:
            self._run(process, steps, overtaking=overtaking)
            return
        while asked := [request for request in process.pending if "/ltx/" in request.what]:
            asked[0].perform()
            process.reply(asked[0])
        self._sweep()

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

    # Litestream.

    @rule(which=ANY, what=st.sampled_from(LITESTREAM), then=FEW)
    def litestream_acts(self, which: int, what: str, then: int) -> None:
        """Litestream uploads unasked, merges files, makes a snapshot, or deletes what a higher level holds."""
        process = self._process(which)
        process.litestream_acts(what)
        self._run(process, then)

    @rule(which=ANY)
    def litestream_merges_and_deletes(self, which: int) -> None:
        """What a while brings, at once: the slots are merged and deleted."""
        process = self._process(which)
        for what in ("merge 1", "trim 0"):
            process.litestream_acts(what)
            self._run(process, 8)

    @rule(which=ANY)
    def litestream_is_cut_off(self, which: int) -> None:
        """The next file that Litestream uploads is read only in part, and finalized, as at a stop."""
        if (child := self._process(which).child) is not None:
            child.cut_off = True

    # Operators.

    @rule(back=st.integers(0, 3), then=st.sampled_from([0, 5, 100]))
    def recover(self, back: int, then: int) -> None:
        """An operator makes an earlier state the live one."""
        if self.bucket.live is not None and not any(process.recover_to is not None for process in self.running):
            self.started += 1
            process = Process(self.bucket, f"p{self.started} (recover)", self.settings, recover_to=back)
            self.running.append(process)
            self._run(process, then)

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
        """INV-1, INV-3: what was acknowledged is in what a restore of the live generation gives now, once."""
        rows: list[str] = []
        if self.bucket.live is not None:
            try:
                rows = self.bucket.restored(self.bucket.live)
            except RestoreFailed as error:
                raise AssertionError(f"INV-1: the live generation cannot be restored: {error}") from None
        missing = self.bucket.kept - set(rows)
        assert not missing, f"INV-1: acknowledged, but a restore misses {sorted(missing)}"
        assert len(rows) == len(set(rows)), f"INV-3: a message had two effects: {rows}"

    @invariant()
    def a_sealed_generation_ends_at_its_seal(self) -> None:
        """INV-4: nothing is added to a generation after its seal, at whatever level, and it can be restored to it."""
        for path, seal in self.bucket.seals.items():
            files = self.bucket.files(path)
            newest = max((file.last for file in files), default=0)
            assert newest == seal, f"INV-4: {path} is sealed at {seal}, and restores to {newest}"
            if f"{path}/{MANIFEST}" in self.bucket.objects and not self._being_pruned(path):
                rows = self.bucket.restored(path)
                assert rows == self.bucket.sealed_rows[path], f"INV-4: {path} has changed since it was sealed: {rows}"

    def _being_pruned(self, path: str) -> bool:
        """Whether files of a generation are being deleted by age; the live one and its base never are."""
        live = self.bucket.live
        if live is None or path == live:
            return False
        base: str | None = json.loads(self.bucket.objects[f"{live}/{MANIFEST}"][0])["base"]
        return base != path

    @invariant()
    def every_file_is_whole(self) -> None:
        """INV-10: what Litestream writes of its own accord reaches the bucket whole or not at all."""
        for name in self.bucket.objects.keys() - self._whole:
            if "/ltx/" in name:
                assert whole(self.bucket.objects[name][0]), f"INV-10: {name} is not whole"
                self._whole.add(name)

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
            elif error is not None and not isinstance(error, PASSING):
                raise error
        self._ended.clear()
        for process in self.running:
            assert not process.loop.broken, process.loop.broken

    def the_next_start_serves(self) -> None:
        """INV-1, INV-5: all are gone, what they had sent arrives, and the next one restores what was acknowledged."""
        for process in self.running:
            process.crash()
        for request in self.bucket.late:
            request.perform()
        self.running = [Process(self.bucket, "the next", self.settings)]
        process = self.running[0]
        for _ in range(500):
            if process.intake.state is State.SERVING or process.life.done():
                break
            process.step()
        assert process.intake.state is State.SERVING, f"INV-5: the next start does not serve: {process}"
        missing = self.bucket.kept - set(process.disk.rows)
        assert not missing, f"INV-1: acknowledged, but the next start misses {sorted(missing)}"

    def check(self) -> None:
        """Check all of these now."""
        self.acknowledged_is_restored()
        self.a_sealed_generation_ends_at_its_seal()
        self.every_file_is_whole()
        self.one_writer_confirms_in_an_epoch()
        self.epochs_only_grow()
        self.one_life_writes_a_path()
        self.a_process_ends_for_a_reason()

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


def zombie_histories() -> None:
    """Several of these, the same each time."""
    with world.installed():
        for seed in range(HISTORIES):
            zombie_history(seed)


def zombie_history(seed: int) -> None:
    """A history of take-overs beside writers that are slow, frozen, or lose answers: where the protocol's reasons count.

    The same rules as the machine's, more of those that matter, chosen without Hypothesis, which is slow at it.
    """
    chance = random.Random(seed)
    machine = OneWriter()
    try:
        machine.begin(published=chance.randrange(3))
        for _ in range(ZOMBIES):
            for _ in range(chance.randrange(3)):
                which, then = chance.randrange(6), chance.randrange(6)
                match chance.randrange(7):
                    case 6 if machine.bucket.late:
                        machine.arrive_late(which)
                    case 0:
                        machine.lose_the_answer(which, then)
                    case 1:
                        machine.delay(which, then)
                    case 2:
                        machine.litestream_is_cut_off(which)
                    case 3:
                        machine.publish(which, 1, then)
                    case 4:
                        machine.litestream_merges_and_deletes(which)
                    case 5:
                        machine.take_effect(which)
            merging = chance.random() < 0.4
            machine.take_over_beside_a_zombie(
                which=chance.randrange(6),
                at=chance.randrange(25 if merging else 41),
                between=["merge 1", "trim 0"] if merging else chance.choices(LITESTREAM, k=chance.randrange(4)),
                then=MOST if merging else chance.choice((0, 1, 4, MOST)),
                overtaking=chance.random() < 0.3,
                later=chance.choice((0.0, 8.0, 20.0)),
            )
            machine.check()
        machine.the_next_start_serves()
    finally:
        machine.teardown()


pytestmark = pytest.mark.timeout(900)  # half a minute of one core, but it shares two with the crash tests


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of thousands of warnings about outages are not worth keeping."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_the_protocol_holds() -> None:
    """Whatever happens, in whatever order: nothing acknowledged is lost, and nobody writes beside the holder."""
    check(OneWriter, examples=int(os.environ.get("PROPERTY_EXAMPLES", "120")))


def test_zombies_harm_nothing() -> None:
    """The histories that catch every mutant below hold."""
    zombie_histories()


def test_litestream_that_counts_from_the_start_again_confirms_nothing() -> None:
    """INV-1: its transaction 1 would be a new one, and the bucket has had another for long."""
    with world.installed():
        process = Process(Bucket(), "p1", world.settings())
        while process.intake.state is not State.SERVING or process.pending:
            process.step()
        for message in ("m1", "m2"):
            process.deliver(message)
            while process.bucket.acks[-1:] != [Ack(message, "p1", 1)]:
                process.step()
        assert process.child is not None
        process.child._files, process.child._rows, process.child._position = [], 0, None
        process.deliver("m3")
        while not process.life.done():
            process.step()
        assert [ack.message for ack in process.bucket.acks] == ["m1", "m2"]
        error = process.life.exception()
        assert isinstance(error, LitestreamError)


def test_what_is_committed_when_the_service_drains_is_uploaded_at_once() -> None:
    """INV-8: an upload that waits for senders to come back waits no longer when they are refused."""
    with world.installed(prune_seconds=3600):
        process = Process(Bucket(), "p1", Settings(replica_url="gs://bucket/prefix"))
        while process.intake.state is not State.SERVING or process.pending:
            process.step()

        def uploading() -> bool:
            return any("create" in request.what for request in process.pending)

        for messages in (["m1"], ["m2", "m3"]):  # after two uploads of a second each the next would wait for as long
            while process.pending:
                process.step()
            for message in messages:
                process.deliver(message)
            process.sleep(1)
            while uploading() and len(process.bucket.acks) < 2:
                process.step()
        while len(process.bucket.acks) < 2:
            process.step()
        waited = not uploading()
        process.signal()
        asked = uploading()
        process.crash()
        assert (waited, asked) == (True, True)


# Mutants: the protocol with one of its reasons taken out.


def failure() -> str:
    """What the zombies' histories say against a mutant."""
    with pytest.raises(AssertionError) as caught:
        zombie_histories()
    return str(caught.value)


@contextlib.contextmanager
def one_path_for_all() -> Iterator[None]:
    """Every life writes the same path, as a plain Litestream configuration would."""

    async def claim(self: Generation, name: str, manifest: object) -> None:
        """Claim nothing: the manifest would tell."""

    with (
        mock.patch.object(generation, "path_of", return_value="generations/same"),
        mock.patch.object(Generation, "_claim", claim),
    ):
        yield


async def no_seal(store: object, name: str, data: bytes) -> bool:
    """Seal nothing."""
    return True


async def seal_first(self: Generation, live: str) -> int:
    """Seal the slot after the newest one seen, and then restore what there is."""
    look = await contents(self._store, live, timeout=1)
    transaction = look.transactions
    header = ltx.unchanging(transaction=transaction + 1, page_size=512, pages=1, milliseconds=0, node=self._lease.epoch)
    await generation.seal(self._store, slot_name(live, transaction + 1), header)
    return (await self._restore(live)).txid


async def nothing(*_: object) -> None:
    """Take it for granted."""


async def settle_by_listing(self: Slots, transaction: int) -> int:
    """Take what a listing shows for stored by this life."""
    process, path = self._look.__self__.process, self._look.__self__.path  # type: ignore[attr-defined]
    names = await process.names(f"{path}/ltx/0/", timeout=1)
    newest = max((int(name[-20:-4], 16) for name in names), default=0)
    if newest > self.stored:
        self._grow(newest)
    return self.stored


async def skip_the_unknown(self: Slots, name: Name, digest: Digest, send: Callable[[], Awaitable[Answer]]) -> Answer:
    """Take a slot that was created for the proof that those before it are stored."""
    self._sent[name.last] = digest
    answer = await send()
    if answer.finished:
        self._grow(max(self.stored, name.last))
    return answer


def test_without_a_seal_a_zombie_acknowledges_what_no_life_restores() -> None:
    """Mutant: no seal."""
    with mock.patch.object(generation, "seal", no_seal):
        assert "INV-" in failure()


def test_sealing_before_the_restore_lists_the_generation_is_too_early() -> None:
    """Mutant: the seal is placed by an earlier look, so its refusal says nothing of what the restore has."""
    with mock.patch.object(Generation, "_take_over", seal_first):
        assert "INV-" in failure()


def test_without_g3_a_zombie_replaces_the_seal() -> None:
    """Mutant: uploads without a precondition."""
    with mock.patch.object(SimulatedGate, "create_only", new=False):
        assert "INV-" in failure()


def test_without_a_look_at_what_is_there_a_seal_is_taken_for_an_own_slot() -> None:
    """Mutant: 412 is a success, whatever the slot holds."""

    async def taken(self: Slots, name: Name, digest: Digest | None = None) -> Answer | None:
        """Believe that it is ours."""
        self._grow(max(self.stored, name.last))
        return await self._look(name)

    with mock.patch.object(Slots, "taken", taken):
        assert "INV-" in failure()


def test_without_g4_a_file_that_was_cut_off_is_finalized() -> None:
    """Mutant: the body is not checked. What was acknowledged is lost, or there is a file that is not whole (INV-10)."""

    def end(self: gate._Check) -> Digest:
        """Let it pass."""
        return Digest(self.size, base64.b64encode(self._md5.digest()).decode())

    with mock.patch.object(gate._Check, "end", end):
        assert "INV-" in failure()


def test_a_path_for_all_is_written_by_two_lives() -> None:
    """Mutant: one path for two lives."""
    with one_path_for_all():
        assert "INV-" in failure()


def test_a_generation_that_is_live_before_its_full_copy_is_stored_cannot_be_restored() -> None:
    """Mutant: the record is changed before the full copy is confirmed."""
    with mock.patch.object(Generation, "_whole", nothing):
        assert "INV-" in failure()


def test_without_g7_a_sealed_generation_goes_beyond_its_seal() -> None:
    """Mutant: merged files and snapshots of what is not stored."""
    with mock.patch.object(Slots, "_covered", nothing):
        assert "INV-" in failure()


def test_without_g8_a_slot_comes_and_goes_between_the_look_and_the_seal() -> None:
    """Mutant: slots are deleted whenever Litestream asks."""
    with mock.patch.object(Slots, "check_deletion", return_value=None):
        assert "INV-" in failure()


def test_retention_that_deletes_the_seal_lets_a_zombie_acknowledge() -> None:
    """Mutant: nothing is left of a pruned generation."""
    with mock.patch.object(retention, "last_slot", return_value=None):
        assert "INV-" in failure()


def test_a_listing_does_not_say_what_is_stored() -> None:
    """Mutant: `stored` goes by a listing."""
    with mock.patch.object(Slots, "settle", settle_by_listing):
        assert "INV-" in failure()


def test_a_slot_whose_answer_was_lost_is_not_passed_over() -> None:
    """Mutant: `stored` skips a slot whose answer is unknown."""
    with mock.patch.object(Slots, "_store", skip_the_unknown):
        assert "INV-" in failure()
