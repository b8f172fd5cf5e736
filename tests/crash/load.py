"""Load as a push subscription makes it: many requests in flight, each message sent again until it is acknowledged.

Half of the messages are users and half are orders, of the example's module: whatever holds for one table holds for two that
share groups.
"""

import asyncio
import base64
import contextlib
import random
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import msgspec

from local.proof import Row

EVENTS = "worker.events.users,examples.orders"
"""The modules of the two events."""
IN_FLIGHT = 64
ACK_DEADLINE_SECONDS = 12
"""When a push is given up without an answer and delivered again, as the subscription would."""
REDELIVERED_SHARE = 0.02
"""Share of acknowledged messages that are delivered once more: the queue is at-least-once."""
_IDLE_PAUSE_SECONDS = 0.05
_REFUSED_PAUSE_SECONDS = 0.5


@dataclass
class Load:
    """Sends messages while running. Only its event loop touches it.

    `traffic` maps a worker's URL to its share of the traffic and may change at any time; `acknowledged` maps message id to
    the user id or the order's row, and only grows; `by_url` counts acknowledgements by who gave them.
    """

    name: str
    seed: int
    traffic: dict[str, float] = field(default_factory=dict)
    acknowledged: dict[str, int | Row] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    by_url: Counter[str] = field(default_factory=Counter)
    last_ack: dict[str, float] = field(default_factory=dict)
    first_ack: dict[str, float] = field(default_factory=dict)
    _again: deque[int] = field(default_factory=deque)
    _sent: int = 0
    _in_flight: int = 0
    _ending: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while the block runs."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def finish(self) -> None:
        """Send nothing new; `finished` once everything sent has been acknowledged."""
        self._ending = True

    @property
    def finished(self) -> bool:
        """Whether every message ever sent has been acknowledged."""
        return self._ending and len(self.acknowledged) == self._sent

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=IN_FLIGHT)
        async with (
            httpx.AsyncClient(limits=limits, timeout=ACK_DEADLINE_SECONDS, trust_env=False) as client,
            asyncio.TaskGroup() as senders,
        ):
            for _ in range(IN_FLIGHT):
                senders.create_task(self._send(client))

    async def _send(self, client: httpx.AsyncClient) -> None:
        while True:
            number = self._take()
            if number is None:
                await asyncio.sleep(_IDLE_PAUSE_SECONDS)
                continue
            url = self._random.choices(list(self.traffic), list(self.traffic.values()))[0]
            try:
                status = (await client.post(url, content=self._body(number))).status_code
            except httpx.HTTPError as error:
                status, kind = 0, type(error).__name__
            else:
                kind = str(status)
            self.answers[kind] += 1
            if 200 <= status < 300:
                self._note(url, number)
            else:
                self._again.append(number)
                await asyncio.sleep(_REFUSED_PAUSE_SECONDS)

    def _take(self) -> int | None:
        if self._again:
            return self._again.popleft()
        if self._ending:
            return None
        self._sent += 1
        return self._sent

    def _note(self, url: str, number: int) -> None:
        now = asyncio.get_running_loop().time()
        self.acknowledged[self._message_id(number)] = Row("orders", "order_id", _order(number)) if number % 2 else number
        self.by_url[url] += 1
        self.first_ack.setdefault(url, now)
        self.last_ack[url] = now
        if self._random.random() < REDELIVERED_SHARE and not self._ending:
            self._again.append(number)

    def _message_id(self, number: int) -> str:
        return f"{self.name}-{number}"

    def _body(self, number: int) -> bytes:
        if number % 2:
            name, content = "order.placed", {"order_id": _order(number), "customer_id": number, "total_cents": 100}
        else:
            name, content = "user.created", {"user_id": number, "email_address": f"user{number}@example.com"}
        message = {
            "data": base64.b64encode(msgspec.json.encode(content)).decode(),
            "attributes": {"event_type": name},
            "messageId": self._message_id(number),
            "publishTime": datetime.now(UTC).isoformat(),
        }
        return msgspec.json.encode({"message": message, "subscription": "projects/p/subscriptions/s"})


def _order(number: int) -> str:
    return f"order-{number}"
