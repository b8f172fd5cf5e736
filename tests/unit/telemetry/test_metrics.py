"""Metrics: what is counted is what happened, and the page is one that Prometheus reads."""

import asyncio
import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import worker.errors
from publisher.connections import REFUSALS
from tests.entries import CATALOG, entry, until
from tests.fakes import Clock, MemoryStore, bodies
from tests.test_docs import rows
from worker.database import connections, rejections, schema
from worker.database.models import REASONS
from worker.database.sqlite import SqliteEngine
from worker.errors import REFUSED, NotAPush, Refused, RequestError, Unconfirmed
from worker.ingest.confirmation import Replicator
from worker.ingest.http import app
from worker.ingest.http.access import Access
from worker.ingest.intake import Intake, State
from worker.ingest.messages import Change, Group, Observer
from worker.ingest.writer import Writer
from worker.replica.drill_record import RECORD, Drill
from worker.telemetry import machine, metrics
from worker.telemetry.metrics import Families, Histogram, Metrics, TimedConfirmation
from worker.telemetry.scrape import Scrape, only_litestream

HOLD = 48.0
ROOT = Path(__file__).parent.parent.parent.parent
PAGE = b"""# HELP go_goroutines Number of goroutines that currently exist.
# TYPE go_goroutines gauge
go_goroutines 17
# HELP litestream_txid The current transaction ID
# TYPE litestream_txid gauge
litestream_txid{db="/d/u.db"} 3
# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 0.03
"""


@dataclass
class Holder:
    """A lease, held or not."""

    held_epoch: int | None = 7
    age: float = 1.5


@dataclass
class Tables:
    """A database that answers with what there is, or an error."""

    answer: Any = None
    open: bool = True
    reads: int = 0

    async def read(self, query: Callable[[Any], Any]) -> Any:
        """See `worker.ingest.tables.Tables`."""
        self.reads += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def user(self, user_id: int) -> None:
        """A defect."""
        raise RuntimeError


@dataclass
class World:
    """Metrics with a clock, and everything they look at."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    lease: Any = field(default_factory=Holder)
    tables: Any = field(default_factory=lambda: Tables({"not_json": 2}))
    store: MemoryStore = field(default_factory=MemoryStore)
    litestream: str = "off"

    def __post_init__(self) -> None:
        self.intake = Intake(max_messages=10, max_bytes=100, hold_seconds=HOLD, bodies=bodies())
        self.metrics = Metrics(hold_seconds=HOLD, clock=self.clock)
        known = Families(
            self.metrics, self.intake, self.lease, self.directory / "users.db", {"revision": "r", "sqlite": "3"}
        )
        self.scrape = Scrape(
            known,
            self.metrics,
            self.tables,
            self.store,
            litestream=self.litestream,
            timeout_seconds=0.5,
            refresh_seconds=30,
            clock=self.clock,
        )

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """The page, read as Prometheus reads it: sample and labels to number."""
        page = asyncio.run(self.scrape.page()).decode()
        found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        assert len({(sample.name, *sorted(sample.labels.items())) for sample in found}) == len(found)
        return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}

    def value(self, name: str, **labels: str) -> float:
        """One number of the page."""
        return self.samples()[name, tuple(sorted(labels.items()))]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A worker that serves, at rest."""
    return World(tmp_path)


def group(world: World, *outcomes: str, ages: tuple[float, ...] = ()) -> Group:
    """A committed group; each message was received so many seconds ago."""
    now = world.clock()
    waits = ages or (0.0,) * len(outcomes)
    entries = [entry(number + 1, f"m{number}", deadline=now - age + HOLD) for number, age in enumerate(waits)]
    return Group(entries, list(outcomes))


def test_every_family_is_documented(world: World) -> None:
    """docs/observability.md has one row for each family with its labels, and no row for anything else."""
    world.store.put(RECORD, msgspec.json.encode(drill("proved")))
    world.metrics.unknown_fields = {("user.created", "emial"): 1}
    asyncio.run(world.scrape.page())
    known = Families(
        world.metrics, world.intake, world.lease, world.directory / "users.db", {"revision": "r", "sqlite": "3"}
    )
    found = {}
    for family in known.collect():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    table = {name: cells for name, cells in rows("observability.md", "## Metrics").items() if name.startswith("solowriter_")}
    documented = {name: (cells[0].split(",")[0], set(re.findall(r"\w+", cells[1]))) for name, cells in table.items()}
    assert documented == found


def test_every_reason_of_a_503_is_documented_and_used() -> None:
    """The list is closed: the code names no other, the documentation has a row for each."""
    runbook = (ROOT / "docs" / "runbooks.md").read_text().partition("\n## Messages are refused\n")[2].partition("\n## ")[0]
    documented = {
        name for row in re.findall(r"^\| (`[^|]+) \|", runbook, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert documented == {*REFUSED, "connections"}
    assert REFUSALS["connections"] == 503
    used = set()
    for file in (ROOT / "worker").rglob("*.py"):
        used |= set(re.findall(r'Refused\([^()]*(?:\([^()]*\)[^()]*)*reason="(\w+)"', file.read_text()))
    assert used == set(REFUSED) - {"unavailable"}
    assert Refused("x").reason == "unavailable"


def test_every_request_error_has_a_reason_of_its_own() -> None:
    """A refusal that is not told from others cannot be looked into."""
    kinds = [kind for _, kind in inspect.getmembers(worker.errors, inspect.isclass) if issubclass(kind, RequestError)]
    reasons = [kind.reason for kind in kinds if kind is not Refused]
    assert len(set(reasons)) == len(reasons)
    assert not set(reasons) & set(REFUSED)


def test_refusals_begin_at_nought(world: World) -> None:
    """Prometheus sees the first refusal as an increase only if there was a 0 before it."""
    before = world.samples()
    world.metrics.refused(NotAPush("x"))
    world.metrics.refused(Refused("x", reason="full"))
    world.metrics.broke()
    after = world.samples()
    assert before.keys() == after.keys()
    changed = {
        labels: value for (name, labels), value in after.items() if "refused" in name and value != before[name, labels]
    }
    assert {dict(labels)["reason"]: value for labels, value in changed.items()} == {"not_a_push": 1, "full": 1, "defect": 1}


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.005, 0.01, 1, 2.5, 10]), max_size=50))
def test_a_histogram_is_prometheus_clients(values: list[float]) -> None:
    """Ours counts as the library's does, of which one call a value would be too slow."""
    bounds = (0.005, 0.01, 1.0, 2.5, 10.0)
    ours, registry = Histogram(bounds), prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("x", "x", buckets=bounds, registry=registry)
    for value in values:
        ours.add(value)
        theirs.observe(value)
    family = metrics._histogram("x", "x", ours)
    expected = [(s.name, s.labels, s.value) for m in registry.collect() for s in m.samples if not s.name.endswith("created")]
    found = [(sample.name, sample.labels, sample.value) for sample in family.samples]
    assert [(name, labels) for name, labels, _ in found] == [(name, labels) for name, labels, _ in expected]
    assert [value for *_, value in found] == pytest.approx([value for *_, value in expected])


def test_a_confirmed_group_is_counted_once_with_its_messages(world: World) -> None:
    """Outcomes, sizes, and the time from each message's own receipt."""

    async def confirmed() -> None:
        made = group(world, "created", "created", "duplicate", ages=(0.02, 0.3, 7.0))
        world.metrics.committed(made, world.clock() - 0.004)
        assert world.metrics.outcomes["created"] == 0  # it is not confirmed yet
        world.metrics.acknowledged([made], world.clock())

    asyncio.run(confirmed())
    found = world.samples()
    assert found["solowriter_messages_total", (("outcome", "created"),)] == 2
    assert found["solowriter_messages_total", (("outcome", "duplicate"),)] == 1
    assert found["solowriter_messages_total", (("outcome", "conflict"),)] == 0
    assert found["solowriter_group_messages_sum", ()] == 3
    assert found["solowriter_group_messages_count", ()] == 1
    assert found["solowriter_ack_seconds_count", ()] == 3
    assert found["solowriter_ack_seconds_sum", ()] == pytest.approx(7.32)
    assert [found["solowriter_ack_seconds_bucket", (("le", bound),)] for bound in ("0.01", "0.025", "0.5", "10.0")] == [
        0,
        1,
        2,
        3,
    ]
    assert found["solowriter_commit_seconds_sum", ()] == pytest.approx(0.004)
    assert found["solowriter_confirmations_total", (("result", "confirmed"),)] == 1


def test_an_operators_change_is_no_message(world: World) -> None:
    """Retrying a rejection is confirmed like a message, and counted as none."""

    async def confirmed() -> None:
        change = Change(lambda transaction: None, world.clock() + HOLD, asyncio.get_running_loop().create_future())
        world.metrics.acknowledged([Group([change], ["created"])], world.clock())

    asyncio.run(confirmed())
    assert world.value("solowriter_messages_total", outcome="created") == 0
    assert world.value("solowriter_ack_seconds_count") == 0


def test_what_waits_for_the_bucket_has_an_age(world: World) -> None:
    """That of the oldest committed group, until it is confirmed or given up."""

    async def waiting() -> list[float]:
        found, metrics = [], world.metrics
        first, second = group(world, "created"), group(world, "created")
        found.append(metrics.unconfirmed_seconds)
        metrics.committed(first, world.clock())
        world.clock.now += 2
        metrics.committed(second, world.clock())
        world.clock.now += 3
        metrics.unconfirmed()
        found.append(metrics.unconfirmed_seconds)
        metrics.gave_up(first)
        found.append(metrics.unconfirmed_seconds)
        metrics.acknowledged([second], world.clock())
        found.append(metrics.unconfirmed_seconds)
        return found

    assert asyncio.run(waiting()) == [0, 5, 3, 0]
    assert world.value("solowriter_confirmations_total", result="retried") == 1


@dataclass
class Confirming:
    """A generation that does as told."""

    stored: int = 3
    error: Exception | None = None
    ready_at: float = 7.0

    async def confirm(self) -> None:
        """See `worker.ingest.confirmation.Confirmation`."""
        if self.error is not None:
            raise self.error


def test_confirmations_are_measured_and_passed_on(world: World) -> None:
    """A failed one has its time as well; only one that came says what is stored."""
    generation = Confirming()
    timed = TimedConfirmation(generation, world.metrics)  # type: ignore[arg-type]
    assert timed.ready_at == 7.0
    asyncio.run(timed.confirm())
    world.clock.now += 5
    assert world.value("solowriter_replicated_transaction") == 3
    assert world.value("solowriter_replicated_age_seconds") == 5
    generation.error, generation.stored = Unconfirmed("no"), 4
    with pytest.raises(Unconfirmed):
        asyncio.run(timed.confirm())
    assert world.value("solowriter_confirm_seconds_count") == 2
    assert world.value("solowriter_replicated_transaction") == 3


def test_what_passes_the_gate_is_counted(world: World) -> None:
    """By kind and level; each rule that can refuse stands there from the beginning."""
    counts = world.metrics.bucket
    counts.requests["upload", "0"] += 2
    counts.bytes["upload", "0"] += 500
    counts.seconds["upload", "0"] += 0.25
    counts.refused["G4"] += 1
    counts.broken_off += 1
    assert world.value("solowriter_gate_requests_total", kind="upload", level="0") == 2
    assert world.value("solowriter_gate_bytes_total", kind="upload", level="0") == 500
    assert world.value("solowriter_gate_seconds_total", kind="upload", level="0") == 0.25
    assert [world.value("solowriter_gate_refused_total", rule=rule) for rule in ("G1", "G4")] == [0, 1]
    assert world.value("solowriter_gate_broken_off_total") == 1


@pytest.mark.parametrize("state", list(State))
def test_the_page_says_the_state_and_the_lease(world: World, state: State) -> None:
    """One of the states is 1; without a lease the epoch is 0."""
    world.intake.state = state
    world.lease.held_epoch = 7 if state is State.SERVING else None
    found = world.samples()
    assert {dict(labels)["state"]: value for (name, labels), value in found.items() if name == "solowriter_state"} == {
        other: float(other == state) for other in State
    }
    held = found["solowriter_lease_held", ()], found["solowriter_lease_epoch", ()], found["solowriter_lease_age_seconds", ()]
    assert held == ((1, 7, 1.5) if state is State.SERVING else (0, 0, 0))


def test_what_is_held_and_what_waits(world: World) -> None:
    """The page is of the moment it is asked for."""
    world.intake.held_messages, world.intake.held_bytes = 3, 450
    world.metrics.pending = lambda: 2
    (world.directory / "users.db").write_bytes(b"x" * 100)
    (world.directory / "users.db-wal").write_bytes(b"x" * 10)
    world.metrics.restored_in(1.25, 4096)
    found = world.samples()
    names = (
        "held_messages",
        "held_bytes",
        "queue_messages",
        "restore_seconds",
        "restore_bytes",
    )
    assert [found[f"solowriter_{name}", ()] for name in names] == [3, 450, 2, 1.25, 4096]
    assert found["solowriter_database_bytes", (("file", "database"),)] == 100
    assert found["solowriter_database_bytes", (("file", "wal"),)] == 10
    assert found["solowriter_info", (("revision", "r"), ("sqlite", "3"))] == 1
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert any(name == "python_info" for name, _ in found)


@pytest.mark.parametrize(
    ("used", "limit", "expected"),
    [
        ("100", "200", (70, 200)),
        ("20", "200", (0, 200)),
        ("100", "max", (70, 4096)),
        ("100", str(2**63 - 4096), (70, 4096)),
        (None, "200", (3072, 4096)),
    ],
)
def test_memory_is_the_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: str | None, limit: str, expected: tuple[float, float]
) -> None:
    """Files in memory count, so the process's own size is not it; what is only cached of a disk does not.

    Where no cgroup sets a limit, or says what is used, it is the machine's.
    """
    texts = {
        "used": used,
        "limit": limit,
        "memory.stat": "anon 50\ninactive_file 30",
        "meminfo": "MemTotal: 4 kB\nMemAvailable: 1 kB",
    }
    for name, text in texts.items():
        if text is not None:
            (tmp_path / name).write_text(text + "\n")
    places = ((str(tmp_path / "none"), "used", "limit", "-"), (str(tmp_path), "used", "limit", "inactive_file"))
    monkeypatch.setattr(machine, "_MEMORY", places)
    monkeypatch.setattr(machine, "_MACHINE", str(tmp_path / "meminfo"))
    assert machine.memory() == expected
    monkeypatch.setattr(machine, "_MACHINE", str(tmp_path / "none"))
    assert machine.memory() == (expected[0] if used else None, 200 if used and limit == "200" else None)


# What a scrape looks up.


def drill(verdict: Any, at: datetime = datetime(2026, 1, 31, tzinfo=UTC)) -> Drill:
    """A recorded drill."""
    return Drill(verdict=verdict, reason="x", at=at, seconds=2.5)


def test_the_latest_drill_is_looked_up(world: World) -> None:
    """Absent while there is none; then its verdict, time and length."""
    assert not [name for name, _ in world.samples() if name.startswith("solowriter_drill")]
    world.store.put(RECORD, msgspec.json.encode(drill("failed")))
    world.clock.now += 31
    assert world.value("solowriter_drill_verdict", verdict="failed") == 1
    assert world.value("solowriter_drill_verdict", verdict="proved") == 0
    assert world.value("solowriter_drill_timestamp_seconds") == datetime(2026, 1, 31, tzinfo=UTC).timestamp()
    assert world.value("solowriter_drill_duration_seconds") == 2.5
    assert world.value("solowriter_scrape_failures_total", source="drill") == 0


def test_looks_are_seldom_however_often_it_is_scraped(world: World) -> None:
    """REFRESH_SECONDS bounds what scrapes cost the bucket and the database (INV-7)."""
    for _ in range(5):
        world.samples()
    assert (world.tables.reads, world.store.calls) == (1, ["read"])
    world.clock.now += 30
    world.samples()
    assert (world.tables.reads, world.store.calls) == (2, ["read", "read"])


def test_scrapes_at_once_look_once(world: World) -> None:
    """The second does not wait for a look of its own."""

    async def twice() -> None:
        await asyncio.gather(world.scrape.page(), world.scrape.page())

    asyncio.run(twice())
    assert (world.tables.reads, world.store.calls) == (1, ["read"])


def test_what_cannot_be_looked_up_is_as_it_was_known_last(world: World) -> None:
    """An outage of the bucket or the database is no gap in the page, and is counted."""
    world.store.put(RECORD, msgspec.json.encode(drill("proved")))
    assert world.value("solowriter_rejections_open", reason="not_json") == 2
    world.tables.answer = Refused("no", reason="database")
    world.store.faults["read"] = ["refuse"]
    world.clock.now += timedelta(minutes=1).total_seconds()
    found = world.samples()
    assert found["solowriter_rejections_open", (("reason", "not_json"),)] == 2
    assert found["solowriter_drill_verdict", (("verdict", "proved"),)] == 1
    assert found["solowriter_scrape_failures_total", (("source", "database"),)] == 1
    assert found["solowriter_scrape_failures_total", (("source", "drill"),)] == 1


def test_without_a_database_nothing_is_counted_in_it(world: World) -> None:
    """Standing by is no failure."""
    world.tables.open = False
    assert not [name for name, _ in world.samples() if name == "solowriter_rejections_open"]
    assert (world.tables.reads, world.value("solowriter_scrape_failures_total", source="database")) == (0, 0)


class _Litestream(BaseHTTPRequestHandler):
    page = PAGE
    hangs: threading.Event | None = None

    def do_GET(self) -> None:
        """Answer, or hang until the test ends."""
        if self.hangs is not None:
            self.hangs.wait(30)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Litestream]]]:
    """Where Litestream would listen, and what answers there."""
    kind = type("Answering", (_Litestream,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{served.server_port}", kind
        served.shutdown()


def test_litestreams_own_families_are_passed_on(tmp_path: Path, server: tuple[str, type[_Litestream]]) -> None:
    """Only those: it has process_... of its own, which would stand beside ours."""
    world = World(tmp_path, litestream=server[0])
    found = world.samples()
    assert found["litestream_txid", (("db", "/d/u.db"),)] == 3
    assert not [name for name, _ in found if name.startswith("go_")]


def test_a_litestream_that_says_nothing_costs_no_page(tmp_path: Path, server: tuple[str, type[_Litestream]]) -> None:
    """TIMEOUT_SECONDS ends the look; the rest is there."""
    server[1].hangs = threading.Event()
    world = World(tmp_path, litestream=server[0])
    assert world.value("solowriter_scrape_failures_total", source="litestream") == 1
    server[1].hangs.set()


@pytest.mark.parametrize("page", [b"x" * 2_000_000, PAGE * 10_000])
def test_a_page_of_litestreams_without_end_is_left(
    tmp_path: Path, server: tuple[str, type[_Litestream]], page: bytes
) -> None:
    """What is read of it is bounded (INV-7)."""
    server[1].page = page
    world = World(tmp_path, litestream=server[0])
    found = world.samples()
    assert found["solowriter_scrape_failures_total", (("source", "litestream"),)] == 1
    assert not [name for name, _ in found if name.startswith("litestream_")]


def test_a_litestream_that_is_not_there_is_counted(tmp_path: Path) -> None:
    """Nobody listens: no page of its own, and ours all the same."""
    world = World(tmp_path, litestream="127.0.0.1:1")
    assert world.value("solowriter_scrape_failures_total", source="litestream") == 1


def test_lines_are_kept_whole() -> None:
    """HELP and TYPE go with their family."""
    assert only_litestream(PAGE).decode().splitlines() == [
        "# HELP litestream_txid The current transaction ID",
        "# TYPE litestream_txid gauge",
        'litestream_txid{db="/d/u.db"} 3',
    ]
    assert only_litestream(b"") == b""


# What the main path tells.


@dataclass
class Doubting:
    """A confirmation that does not come the first times."""

    doubts: int
    ready_at: float = 0.0

    async def confirm(self) -> None:
        """See `worker.ingest.confirmation.Confirmation`."""
        self.doubts -= 1
        if self.doubts >= 0:
            raise Unconfirmed("not yet")


@dataclass
class Told(Observer):
    """Writes down what it is told."""

    events: list[str] = field(default_factory=list)

    def committed(self, group: Group, began: float) -> None:
        """See `Observer`."""
        assert 0 <= time.monotonic() - began < 60
        assert not any(entry.done.done() for entry in group.entries)
        self.events.append(f"committed {len(group.entries)}")

    def acknowledged(self, groups: Sequence[Group], asked: float) -> None:
        """See `Observer`."""
        assert 0 <= time.monotonic() - asked < 60
        assert all(entry.done.done() for group in groups for entry in group.entries)
        self.events.append(f"acknowledged {[len(group.entries) for group in groups]}")

    def unconfirmed(self) -> None:
        """See `Observer`."""
        self.events.append("unconfirmed")

    def gave_up(self, group: Group) -> None:
        """See `Observer`."""
        self.events.append(f"gave up {len(group.entries)}")


@pytest.mark.parametrize(
    ("doubts", "hold", "events"),
    [
        (0, 60.0, ["committed 3", "acknowledged [3]"]),
        (2, 60.0, ["committed 3", "unconfirmed", "unconfirmed", "acknowledged [3]"]),
        (1, 0.0, ["committed 3", "unconfirmed", "gave up 3"]),
    ],
)
def test_the_main_path_tells_once_a_group(tmp_path: Path, doubts: int, hold: float, events: list[str]) -> None:
    """The writer of each commit before it is handed over, the replicator of each answer after it; neither of a message."""
    file = tmp_path / "users.db"
    schema.migrate(file, CATALOG, busy_timeout_seconds=5)

    async def life() -> list[str]:
        told = Told()
        deadline = asyncio.get_running_loop().time() + hold
        async with Replicator(Doubting(doubts), told) as replicator:
            connection = connections.connect(file, busy_timeout_seconds=5)
            async with Writer(
                SqliteEngine(connection), replicator, CATALOG, epoch=1, group_max=10, gather_seconds=0, observer=told
            ) as writer:
                entries = [entry(number, f"m{number}", deadline=deadline) for number in (1, 2, 3)]
                for each in entries:
                    writer.submit(each)
                assert writer.pending == 3
                tasks = [asyncio.create_task(writer.run()), asyncio.create_task(replicator.run())]
                await asyncio.wait([each.done for each in entries], timeout=30)
                await until(lambda: len(told.events) == len(events))
                assert writer.pending == 0
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        assert [each.done.exception() is None for each in entries] == [hold > 0] * 3
        return told.events

    assert asyncio.run(life()) == events


# Over HTTP.


async def _get(world: World, method: str, path: str) -> httpx.Response:
    service = app.Service(
        world.intake, CATALOG, world.tables, Access(), None, 1000, observer=world.metrics, scrape=world.scrape.page  # type: ignore[arg-type]
    )  # fmt: skip
    transport = httpx.ASGITransport(app.build(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        return await client.request(method, path)


@pytest.mark.parametrize("state", list(State))
def test_the_path_is_answered_in_every_state(world: World, state: State) -> None:
    """Standing by and draining are worth watching too."""
    world.intake.state = state
    answer = asyncio.run(_get(world, "GET", "/metrics"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "solowriter_state" in answer.text
    assert asyncio.run(_get(world, "POST", "/metrics")).status_code == 405


def test_requests_that_are_refused_are_counted(world: World) -> None:
    """By status and reason; so is a defect, which is answered 500."""
    world.intake.drain()
    assert asyncio.run(_get(world, "POST", "/")).status_code == 503
    assert asyncio.run(_get(world, "GET", "/users/x")).status_code == 400
    assert asyncio.run(_get(world, "GET", "/users/1")).status_code == 500
    counted = {key: count for key, count in world.metrics.refusals.items() if count}
    assert counted == {("503", "stopping"): 1, ("400", "bad_query"): 1, ("500", "defect"): 1}


def test_open_rejections_have_every_reason(world: World) -> None:
    """None of a reason is 0 and not nothing, so that an alert can see it grow."""
    file = world.directory / "users.db"
    schema.migrate(file, CATALOG, busy_timeout_seconds=5)
    connection = connections.connect(file, busy_timeout_seconds=5)
    with connection.connection_context():
        for number, (reason, resolved) in enumerate([("not_json", "NULL"), ("not_json", "NULL"), ("conflict", "1")]):
            connection.execute_sql(  # type: ignore[no-untyped-call]  # Peewee's
                "INSERT INTO rejections (message_id, reason, detail, data, attributes, publish_time, received_at, "
                f"resolved_at) VALUES ('m{number}', '{reason}', '', x'', '{{}}', 1, 1, {resolved})"
            )
    found = connections.Reader(file, busy_timeout_seconds=5).read(rejections.open_by_reason)
    assert found == dict.fromkeys(map(str, REASONS), 0) | {"not_json": 2}
