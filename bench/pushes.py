"""Pushes to a worker as a subscription makes them: so many in flight, each sent again until it is acknowledged."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import httpx
import msgspec

_PUSH_SECONDS: Final = 60
_GIVE_UP_SECONDS: Final = 180
"""For one message in all. A worker that has ended would otherwise be pushed to for ever."""


@dataclass(slots=True)
class Pushes:
    """Sends distinct users to `url`, which may change at any time. Only its event loop touches it.

    `acknowledged` maps message ids to user ids; `first` and `last` say when (seconds since the epoch, as the workers' logs
    do) an address acknowledged; `longest` is the longest time a message took from its first sending to its acknowledgement.
    """

    url: str
    pause: float = 0.05
    """Seconds before a message that was not acknowledged is sent again."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    longest: float = 0.0
    _sent: int = 0

    async def send(self, count: int, *, in_flight: int = 1, settings_bytes: int = 0) -> None:
        """Send `count` users, each with settings of that many bytes that nothing can compress; return when all are acked."""
        left = iter(range(count))

        async def sender() -> None:
            for _ in left:
                await self._push(client, settings_bytes)

        async with _client(in_flight) as client, asyncio.TaskGroup() as senders:
            for _ in range(in_flight):
                senders.create_task(sender())

    @contextlib.asynccontextmanager
    async def going_on(self, *, in_flight: int) -> AsyncIterator[None]:
        """Send small users while the block runs; what is in flight at its end is still acknowledged."""
        ended = asyncio.Event()

        async def sender() -> None:
            while not ended.is_set():
                await self._push(client, 0)

        async with _client(in_flight) as client, asyncio.TaskGroup() as senders:
            for _ in range(in_flight):
                senders.create_task(sender())
            try:
                yield
            finally:
                ended.set()

    async def _push(self, client: httpx.AsyncClient, settings_bytes: int) -> None:
        self._sent += 1
        number = self._sent
        body, began = _body(number, settings_bytes), time.time()
        while True:
            url, status = self.url, 0
            with contextlib.suppress(httpx.HTTPError):
                status = (await client.post(url, content=body)).status_code
            if status == httpx.codes.NO_CONTENT:
                break
            if time.time() > began + _GIVE_UP_SECONDS:
                raise RuntimeError(
                    f"{url} did not acknowledge a message for {_GIVE_UP_SECONDS} s; its last answer was {status}"
                )
            await asyncio.sleep(self.pause)
        now = time.time()
        self.acknowledged[_message_id(number)] = number
        self.first.setdefault(url, now)
        self.last[url] = now
        self.longest = max(self.longest, now - began)


def _client(in_flight: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=in_flight)
    return httpx.AsyncClient(limits=limits, timeout=_PUSH_SECONDS, trust_env=False)


def _message_id(number: int) -> str:
    return f"bench-{number}"


def _body(number: int, settings_bytes: int) -> bytes:
    settings = base64.b64encode(os.urandom(settings_bytes * 3 // 4)).decode() if settings_bytes else None
    user = {"user_id": number, "email_address": f"user{number}@example.com", "settings": settings}
    message = {
        "data": base64.b64encode(msgspec.json.encode(user)).decode(),
        "messageId": _message_id(number),
        "publishTime": datetime.now(UTC).isoformat(),
    }
    return msgspec.json.encode({"message": message, "subscription": "projects/p/subscriptions/s"})
