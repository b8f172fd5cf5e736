"""Stand-ins for what the pure parts talk to: a bucket in memory with faults, and a clock that only moves when told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self, cast

from worker.bucket import Objects, StoredObject
from worker.errors import Mismatch, StoreError, StoreThrottled, StoreUnavailable
from worker.ingest.bodies import Bodies
from worker.lease.lease import Lease


@dataclass
class Clock:
    """Monotonic seconds that pass only by `sleep`; `on_sleep` runs at each, as the rest of the world would."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[["Clock"], None] | None = None

    def __call__(self) -> float:
        """The time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.slept.append(seconds)
        self.now += seconds
        if self.on_sleep is not None:
            self.on_sleep(self)


@dataclass
class MemoryStore(Objects):
    """Objects with generations and compare-and-swap, as the bucket has them.

    `faults` maps an operation ("read", "write") to what happens to its next calls: "refuse" (not done, no answer), "lose"
    (done, no answer), "throttle" (429, not done) or "ok".
    """

    held: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    generation: int = 100

    def __str__(self) -> str:
        return "gs://bucket/prefix"

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """See `worker.bucket.Objects`."""
        if self._fault("read") != "ok":
            raise StoreUnavailable("read: no answer")
        return self.held.get(name)

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """See `worker.bucket.Objects`."""
        fault = self._fault("write")
        if fault == "refuse":
            raise StoreUnavailable("write: no answer")
        if fault == "throttle":
            raise StoreThrottled("write: 429")
        if self.held.get(name, (b"", 0))[1] != if_generation:
            raise Mismatch("412")
        self.put(name, data)
        if fault == "lose":
            raise StoreUnavailable("write: the answer was lost")
        return self.generation

    async def names(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `worker.bucket.Objects`."""
        if self._fault("names") != "ok":
            raise StoreUnavailable("names: no answer")
        return sorted(name for name in self.held if name.startswith(name_prefix))

    async def folders(self, name_prefix: str, *, timeout: float) -> list[str]:
        """See `worker.bucket.Objects`."""
        below = [name.removeprefix(name_prefix) for name in self.held if name.startswith(name_prefix)]
        return sorted({name.split("/")[0] for name in below if "/" in name})

    def patient(self, seconds: float) -> Self:
        """See `worker.bucket.Objects`."""
        return self

    def put(self, name: str, data: bytes) -> None:
        """Write as somebody else, unconditionally."""
        self.generation += 1
        self.held[name] = (data, self.generation)

    def _fault(self, operation: str) -> str:
        self.calls.append(operation)
        left = self.faults.get(operation)
        return left.pop(0) if left else "ok"


@dataclass
class BodyStore(Objects):
    """Objects with the time of their creation. While `error` is set, each call raises it."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    created: dict[str, datetime] = field(default_factory=dict)
    error: StoreError | None = None

    async def write(self, name: str, data: bytes, *, if_generation: int, timeout: float) -> int:
        """See `worker.bucket.Objects`."""
        self._fail()
        assert name not in self.bodies, "a name is used once"
        self.bodies[name], self.created[name] = data, datetime.now(UTC)
        return 1

    async def read(self, name: str, *, timeout: float) -> tuple[bytes, int] | None:
        """See `worker.bucket.Objects`."""
        self._fail()
        return (self.bodies[name], 1) if name in self.bodies else None

    async def objects(self, name_prefix: str, *, timeout: float) -> list[StoredObject]:
        """See `worker.bucket.Objects`."""
        self._fail()
        return [StoredObject(name, len(data), self.created[name], {}) for name, data in self.bodies.items()]

    async def delete(self, name: str, *, timeout: float) -> None:
        """See `worker.bucket.Objects`."""
        self._fail()
        del self.bodies[name]

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass
class Epoch:
    """A lease held at an epoch; `lost` is what a look at it raises."""

    held_epoch: int | None = 7
    lost: Exception | None = None

    async def verify(self) -> None:
        """See `Lease`."""
        if self.lost is not None:
            raise self.lost


def bodies(store: BodyStore | None = None, lease: Epoch | None = None) -> Bodies:
    """The bytes of large messages, in memory."""
    return Bodies(store or BodyStore(), cast(Lease, lease or Epoch()))
