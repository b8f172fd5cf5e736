"""How many messages a second, durably acknowledged, beside the most there can be and beside what else one would build?

ours      a real worker with the real Litestream and the fake Cloud Storage
ceiling   bench/noop.py: reads the body and answers 204; the most that a function behind functions-framework can answer
naive     bench/naive.py: as durable, one transaction and one confirmation for each message
tutorial  bench/tutorial.py: not durable, one insert for each message, Litestream in the background

All four are up all the time and wrk pushes at them in turn, who goes first changes with each round, so that what else the
machine does meets all; ratios are taken round by round. At the end the bucket is restored by plain Litestream and must hold
every message that ours and naive acknowledged; the tutorial's database, on its disk, every one of the tutorial's.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import part, process, wrk
from bench.errors import Worthless
from bench.figures import Figure, Target
from bench.part import Scale
from bench.store import BUCKET_URL, Store, open_store
from local.ports import free_port
from worker.config import Settings
from worker.replica.litestream import find_binary

QUESTION: Final = "throughput: what does durability cost?"
CONNECTIONS: Final = 256
_MANY: Final = Settings(replica_url=f"{BUCKET_URL}/store").queue_max_messages
"""As many requests as a worker holds at once."""
WARM_UP_SECONDS: Final = 1
_PAUSE_SECONDS: Final = 0.5
"""Between two runs: what one server has left to do is not to meet the next one's."""
_OVER_NAIVE: Final = Target("≥", 20)
_OVER_TUTORIAL: Final = Target("≥", 6)
_OF_BOUND: Final = Target("≥", 0.75)


@dataclass(frozen=True, slots=True)
class Setting:
    """Milliseconds added to a write and to a read of the bucket, how many push at once, and at which servers."""

    put_ms: float
    get_ms: float
    of_ceiling: Target | None
    connections: int = CONNECTIONS
    names: Sequence[str] = ("ours", "ceiling", "naive", "tutorial")

    def __str__(self) -> str:
        return f"at {self.put_ms:g}/{self.get_ms:g} ms, {self.connections:,} connections"

    @property
    def bound(self) -> float | None:
        """Messages a second that so many connections can have answered when each waits for one write."""
        return 1000 * self.connections / self.put_ms if self.put_ms else None


SETTINGS: Final = (
    Setting(0, 0, Target("≥", 0.60)),
    Setting(80, 40, Target("≥", 0.55)),
    Setting(80, 40, None, _MANY, ("ours", "ceiling")),
)


def measure(scale: Scale) -> list[Figure]:
    """The rows of `make bench`."""
    wrk.find()
    figures: list[Figure] = []
    acknowledged = dict.fromkeys(("ours", "ceiling", "naive", "tutorial"), 0)
    with open_store() as store:
        naive_store = store.beside("naive")
        worker = store.worker("ours").start().wait_serving()
        with _tutorial(store) as (tutorial_url, tutorial_file):
            with _ceiling() as ceiling_url, _naive(naive_store) as naive_url:
                urls = {"ours": worker.url, "ceiling": ceiling_url, "naive": naive_url, "tutorial": tutorial_url}
                for number, setting in enumerate(SETTINGS):
                    store.latency(put_ms=setting.put_ms, get_ms=setting.get_ms)
                    some = {name: urls[name] for name in setting.names}
                    runs = _rounds(some, scale, setting, first=100 * number, acknowledged=acknowledged)
                    figures += rows(runs, setting)
            store.latency(put_ms=0, get_ms=0)
            _check_tutorial(tutorial_file, acknowledged["tutorial"])
        worker.stop()
        store.check_count(acknowledged["ours"])
        naive_store.check_count(acknowledged["naive"])
    return figures


def _rounds(
    urls: Mapping[str, str], scale: Scale, setting: Setting, *, first: int, acknowledged: dict[str, int]
) -> dict[str, list[wrk.Run]]:
    runs: dict[str, list[wrk.Run]] = {name: [] for name in urls}
    for number in scale.numbers:
        names = list(urls)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = scale.seconds if number else WARM_UP_SECONDS
            connections = scale.connections if scale.brief else setting.connections
            run = wrk.run(urls[name], connections=connections, seconds=seconds, number=first + number)
            acknowledged[name] += run.sound(f"{name} {setting}").acknowledged
            runs[name] += [run] if number else []
            time.sleep(_PAUSE_SECONDS)
        if number:
            part.say(f"{setting}: " + ", ".join(f"{name} {found[-1].per_second:,.0f}/s" for name, found in runs.items()))
    return runs


def rows(runs: Mapping[str, Sequence[wrk.Run]], setting: Setting) -> list[Figure]:
    """What is said of the runs at one setting; ratios are taken round by round."""
    rates = {name: [run.per_second for run in found] for name, found in runs.items()}
    targets = {"ceiling": setting.of_ceiling, "naive": _OVER_NAIVE if setting.put_ms else None, "tutorial": _OVER_TUTORIAL}
    figures = [
        Figure(f"{name} {setting}, msg/s", values, ",.1f" if name == "naive" else ",.0f") for name, values in rates.items()
    ]
    for name in list(rates)[1:]:
        ratios = [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]
        figures.append(Figure(f"ours / {name} {setting}", ratios, ".2f" if name == "ceiling" else ",.1f", targets[name]))
    if setting.bound:
        shares = [ours / setting.bound for ours in rates["ours"]]
        target = _OF_BOUND if setting.connections == CONNECTIONS else None
        name = f"ours / what that many connections can have ({setting.bound:,.0f} msg/s)"
        figures.append(Figure(name, shares, ".2f", target))
    return [*figures, Figure(f"ours {setting}: median of the ack, ms", [run.p50 / 1000 for run in runs["ours"]])]


@contextlib.contextmanager
def _ceiling() -> Iterator[str]:
    port = free_port()
    with process.server([sys.executable, "-m", "bench.noop", "--port", str(port)], port) as url:
        yield url


@contextlib.contextmanager
def _naive(store: Store) -> Iterator[str]:
    place = store.worker("naive")
    environment = {**place.environment, "LOG_LEVEL": "warning"}
    with process.server([sys.executable, "-m", "bench.naive"], place.port, environment) as url:
        yield url


@contextlib.contextmanager
def _tutorial(store: Store) -> Iterator[tuple[str, Path]]:
    directory = store.directory / "tutorial"
    directory.mkdir()
    file, port = directory / "users.db", free_port()
    framework = str(Path(sys.executable).with_name("functions-framework"))
    source = str(Path(__file__).with_name("tutorial.py"))
    serve = [framework, "--target", "handle", "--source", source, "--host", "127.0.0.1", "--port", str(port)]
    replicate = [str(find_binary("litestream")), "replicate", str(file), f"{BUCKET_URL}/tutorial"]
    with (
        process.server(serve, port, {"DATABASE_PATH": str(file)}) as url,
        (directory / "litestream.log").open("wb") as log,
        process.running(replicate, store.gcs.environment(), log=log),
    ):
        yield url, file


def _check_tutorial(file: Path, acknowledged: int) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database:
        (users,) = database.execute("SELECT count(*) FROM users").fetchone()
    if users < acknowledged:
        raise Worthless(f"the tutorial acknowledged {acknowledged} and has {users} users")


if __name__ == "__main__":
    sys.exit(part.main("throughput"))
