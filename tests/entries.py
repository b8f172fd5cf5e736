"""Messages on their way, as the tests of the writer, the replicator and the intake need them, and bounded waits."""

import asyncio
from collections.abc import Callable

from worker.events.catalog import BUILT_IN, Catalog, Content, Problem
from worker.events.users import USER_CREATED, UserCreated
from worker.ingest.messages import Delivery, Entry

CATALOG = Catalog.load(BUILT_IN)
"""The built-in events."""
PUBLISHED = 1_700_000_000_000
"""When every message is published unless a test says otherwise, in milliseconds."""


def delivery(message_id: str = "m1", user: UserCreated | None = None, *, publish_time: int = PUBLISHED) -> Delivery:
    """A message as the queue delivers it."""
    data = USER_CREATED.encode(user or UserCreated(user_id=1))
    return Delivery(message_id=message_id, publish_time=publish_time, data=data, attributes={"source": "test"})


def read(data: bytes, attributes: dict[str, str] | None = None, publish_time: int = PUBLISHED) -> Content | Problem:
    """What the service reads a message as."""
    return CATALOG.read(data, attributes or {}, publish_time)


def entry(
    user_id: int = 1,
    message_id: str = "m1",
    *,
    email: str | None = None,
    settings: str | None = None,
    created_at: int | None = None,
    publish_time: int = PUBLISHED,
    deadline: float = float("inf"),
) -> Entry:
    """A valid message waiting for its outcome on the running loop."""
    user = UserCreated(user_id=user_id, email_address=email, settings=settings, created_at=created_at)
    done = asyncio.get_running_loop().create_future()
    sent = delivery(message_id, user, publish_time=publish_time)
    return Entry(sent, read(sent.data, publish_time=publish_time), deadline, done)


def malformed(message_id: str = "m1", *, deadline: float = float("inf")) -> Entry:
    """A message that breaks the format, waiting for its outcome on the running loop."""
    problem = Problem("not_json", "data must be a JSON object")
    broken = Delivery(message_id=message_id, publish_time=PUBLISHED, data=b"{", attributes={}, delivery_attempt=3)
    return Entry(broken, problem, deadline, asyncio.get_running_loop().create_future())


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Let the loop run until the condition holds.

    Raises:
        TimeoutError: It did not within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # the conditions are other people's state, without an event
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Give everything that could run now the chance to; for tests that something does not happen."""
    for _ in range(count):
        await asyncio.sleep(0)
