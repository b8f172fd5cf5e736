"""INV-3 on PostgreSQL: four writers race and are killed, and a serial order explains what they did; of mutants none does."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests import race
from tests.engines import Databases, PostgresqlPlace

pytestmark = [pytest.mark.slow, pytest.mark.postgresql]

WRITERS = 4
STEPS = 40
STEPS_LONG = 2_000
STEPS_SLOW = 6
KILLS = 4
RACES_MAX = 8


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """What writers are forked from: it has loaded all that they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.race"])
    return context


@pytest.fixture
def place(databases: Databases) -> Iterator[PostgresqlPlace]:
    """A new database."""
    with databases.place(race.CATALOG) as made:
        made.run(race.TABLE)
        yield made


def run(
    processes: ForkServerContext,
    place: PostgresqlPlace,
    folder: Path,
    *,
    seed: int,
    steps: int = STEPS,
    kills: int = 0,
    seconds: float = 120.0,
    mutant: str | None = None,
) -> Counter[str]:
    """Let the writers race to their ends, kill so many of them, and check it; how often each outcome came."""
    answers = [folder / f"{lane}.answers" for lane in range(WRITERS)]

    def start(lane: int) -> BaseProcess:
        process = processes.Process(target=race.write, args=(place.url, answers[lane], seed, lane, steps, mutant))
        process.start()
        return process

    drawn, until, left = random.Random(seed), time.monotonic() + seconds, kills
    writers = [start(lane) for lane in range(WRITERS)]
    try:
        while any(writer.is_alive() for writer in writers):
            assert time.monotonic() < until, "the writers come to no end"
            writers[0].join(0.05 + drawn.random() * 0.2)
            lane = drawn.randrange(WRITERS)
            if left and writers[lane].is_alive():
                left -= 1
                writers[lane].kill()
                writers[lane].join()
                writers[lane] = start(lane)
        assert [writer.exitcode for writer in writers] == [0] * WRITERS
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    counts = race.check(place.url, seed, answers, steps)
    counts["killed"] = kills - left
    return counts


def test_one_order_explains_what_racing_writers_did(
    processes: ForkServerContext, place: PostgresqlPlace, tmp_path: Path
) -> None:
    """Outcomes, receipts and rows are those of one writer, whoever was killed; every answer is kept."""
    counts = run(processes, place, tmp_path, seed=1, kills=KILLS)
    print(f"a race of {WRITERS} writers, acknowledged: {dict(sorted(counts.items()))}")
    assert {"created", "updated", "duplicate", "exists", "stale", "conflict", "rejected", "erased"} <= counts.keys()
    assert counts["redone: raced"] > 0
    assert counts["killed"] == KILLS


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_a_long_race(processes: ForkServerContext, place: PostgresqlPlace, tmp_path: Path, cycle: int) -> None:
    """The same for minutes, another one in each cycle."""
    counts = run(processes, place, tmp_path, seed=1000 + cycle, steps=STEPS_LONG, kills=60, seconds=3000.0)
    print(f"a race of {WRITERS} writers, acknowledged: {dict(sorted(counts.items()))}")


def test_writers_that_meet_in_the_middle_never_wait_in_a_circle(
    processes: ForkServerContext, place: PostgresqlPlace, tmp_path: Path
) -> None:
    """Rows go in by their keys' order: each group waits for the one before it, and for no other."""
    place.run(*race.SLOWLY)
    counts = run(processes, place, tmp_path, seed=3, steps=STEPS_SLOW)
    assert counts["redone: raced"] > 0


TOLD = {
    "no row count": "the outcomes of",
    "unsorted": "deadlocks|the writers come to no end",
    "no lock for erasures": "the outcomes of|users|receipts|rejections|versions",
    "duplicates by a read": "the outcomes of",
}
SLOWLY_TOLD = ("unsorted", "no lock for erasures")
"""Those that show when transactions overlap for long."""


@pytest.mark.parametrize("mutant", race.MUTANTS)
def test_a_mutant_is_caught(processes: ForkServerContext, databases: Databases, tmp_path: Path, mutant: str) -> None:
    """The check tells an engine that lacks one of its reasons from the real one, and by what it should."""
    with pytest.raises(AssertionError, match=f"^({TOLD[mutant]})"):
        _race_until_caught(processes, databases, tmp_path, mutant)


def _race_until_caught(processes: ForkServerContext, databases: Databases, folder: Path, mutant: str) -> None:
    for seed in range(RACES_MAX):  # as a rule the first one
        (own := folder / str(seed)).mkdir()
        with databases.place(race.CATALOG) as place:
            place.run(race.TABLE)
            if mutant in SLOWLY_TOLD:
                place.run(*race.SLOWLY)
                with contextlib.suppress(psycopg.errors.InsufficientPrivilege):  # then each deadlock takes a second
                    place.run(f"ALTER DATABASE {urlsplit(place.url).path[1:]} SET deadlock_timeout = '20ms'")
            if mutant == "unsorted":
                run(processes, place, own, seed=seed, steps=STEPS_SLOW, seconds=5.0, mutant=mutant)
            else:
                run(processes, place, own, seed=seed, mutant=mutant)
