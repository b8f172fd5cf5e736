"""Load as a push subscription makes it: many requests in flight, each message sent again until it is acknowledged."""

import asyncio
import base64
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import msgspec

IN_FLIGHT = 64
REDELIVERED_SHARE = 0.02
"""Share of acknowledged messages that are delivered once more: the queue is at-least-once."""
_REFUSED_PAUSE_SECONDS = 0.1


@dataclass
class Load:
    """Sends new messages to `url` while running; `acknowledged` maps message id to user id and only grows."""

    url: str
    name: str
    seed: int
    acknowledged: dict[str, int] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    _again: deque[int] = field(default_factory=deque)
    _next: int = 0

    async def run(self) -> None:
        """Send until cancelled."""
        self._random = random.Random(self.seed)
        limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        async with httpx.AsyncClient(limits=limits, timeout=70, trust_env=False) as client:
            async with asyncio.TaskGroup() as senders:
                for _ in range(IN_FLIGHT):
                    senders.create_task(self._send(client))

    async def _send(self, client: httpx.AsyncClient) -> None:
        while True:
            if self._again:
                number = self._again.popleft()
            else:
                self._next += 1
                number = self._next
            try:
                status = (await client.post(self.url, content=self._body(number))).status_code
            except httpx.HTTPError as error:
                status, kind = 0, type(error).__name__
            else:
                kind = str(status)
            self.answers[kind] += 1
            if 200 <= status < 300:
                self.acknowledged[self._message_id(number)] = number
                if self._random.random() < REDELIVERED_SHARE:
                    self._again.append(number)
            else:
                self._again.append(number)
                await asyncio.sleep(_REFUSED_PAUSE_SECONDS)

    def _message_id(self, number: int) -> str:
        return f"{self.name}-{number}"

    def _body(self, number: int) -> bytes:
        data = msgspec.json.encode({"user_id": number, "email_address": f"user{number}@example.com"})
        message = {
            "data": base64.b64encode(data).decode(),
            "messageId": self._message_id(number),
            "publishTime": datetime.now(UTC).isoformat(),
        }
        return msgspec.json.encode({"message": message, "subscription": "projects/p/subscriptions/s"})
