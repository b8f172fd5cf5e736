"""The format of `GET /status`, for the service that answers and for what asks it. It loads nothing else of the worker."""

from datetime import datetime

import msgspec

from worker.telemetry.trouble import Stall


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What was acknowledged in the last `seconds`, which are fewer than asked for after a start.

    `outcomes` counts messages, `refused` requests that were answered with an error. The times are from a message's receipt
    to its acknowledgement, as exact as the histogram's buckets are; None while nothing was acknowledged.
    """

    seconds: float
    outcomes: dict[str, int]
    per_second: float
    refused: int
    p50_seconds: float | None
    p99_seconds: float | None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One half minute, by its end in seconds since the epoch. What is not known is None."""

    at: int
    per_second: float
    p99_seconds: float | None
    unconfirmed_seconds: float
    held: int
    memory_bytes: float | None


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that has asked for the lease."""

    holder: str
    revision: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What is held now, and what may be; `queued` of these wait for the writer, and None is not known."""

    messages: int
    messages_max: int
    bytes: int
    bytes_max: int
    queued: int | None


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """The open rejections of one reason; `oldest` is when the oldest of them was received."""

    count: int
    oldest: datetime | None


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """The working copy, and the room on its disk."""

    bytes: int | None = None
    wal_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the instance uses, and may use."""

    bytes: float | None = None
    limit_bytes: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /status`. Times are the instance's own. None is not known."""

    state: str
    version: str
    revision: str
    instance: str
    engine: str
    store: str
    started_at: datetime
    now: datetime
    state_since: datetime
    epoch: int | None = None
    generation: str | None = None
    lease_age_seconds: float | None = None
    successor: Waiting | None = None
    held: Held
    oldest_unconfirmed_seconds: float | None = None
    confirmed_seconds_ago: float | None = None
    acknowledged: dict[str, Window]
    rejections: dict[str, Open] | None = None
    database: Database = Database()
    memory: Memory = Memory()
    trouble: list[Stall]
    history: list[Point] = []
