"""Pushes at a fixed rate, whatever the answers do: a message's time runs from when it was due, not from when it was sent.

wrk has no rate. Plain sockets of asyncio, one request at a time on each, take a few per cent of a core at 1,000 msg/s.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

import uvloop

from bench.errors import Worthless

_LANE: Final = 999
"""Stands where push.lua has the number of wrk's thread, so that no message of ours is one of wrk's."""
_ANSWER_SECONDS: Final = 60
_NO_CONTENT: Final = 204


@dataclass(slots=True)
class Answers:
    """What came back. `seconds` are those of the messages that were acknowledged, in the order of their answers.

    `moments` are when their answers came, on the monotonic clock.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0
    """Seconds from the first message's due time to the last answer."""
    moments: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """The time within which that share of the messages was acknowledged, in seconds."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(len(self.seconds) * share))]

    def sound(self, name: str) -> Answers:
        """These answers.

        Raises:
            Worthless: Some message was not acknowledged.
        """
        others = {status: count for status, count in self.statuses.items() if status != _NO_CONTENT}
        if others:
            raise Worthless(f"{name}: answers other than 204, by status (0: none): {others}")
        return self


def send(url: str, *, rate: float, seconds: float, run: int) -> Answers:
    """Push distinct users for so long; return when all are answered. `run` (0 to 899) tells them from other runs'."""
    return uvloop.run(_send(url, rate, seconds, run))


async def _send(url: str, rate: float, seconds: float, run: int) -> Answers:
    loop = asyncio.get_running_loop()
    answers = Answers()
    idle: list[_Connection] = []
    address = urlsplit(url)
    began = time.monotonic()
    connections: list[_Connection] = []
    for number in range(round(rate * seconds)):
        due = began + number / rate
        if (pause := due - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        if not idle:
            _, connection = await loop.create_connection(
                lambda: _Connection(idle, answers), str(address.hostname), address.port or 80
            )
            connections.append(connection)
            idle.append(connection)
        idle.pop().push(message(run, number), due)
    async with asyncio.timeout(_ANSWER_SECONDS):
        while any(connection.busy for connection in connections):  # noqa: ASYNC110  # for all of them, once
            await asyncio.sleep(0.001)
    answers.took = time.monotonic() - began
    for connection in connections:
        connection.close()
    return answers


def message(run: int, number: int) -> bytes:
    """A whole request, of the same form and size as push.lua's."""
    digits = f"{100 + run:03d}{_LANE}{number:09d}"
    data = base64.b64encode(f'{{"user_id": {digits},"email_address":"{digits}@example.com"}}'.encode()).decode()
    body = (
        f'{{"message":{{"data":"{data}","messageId":"{digits}","message_id":"{digits}",'
        '"publishTime":"2026-01-01T00:00:00.000Z","publish_time":"2026-01-01T00:00:00.000Z"},'
        '"subscription":"projects/bench/subscriptions/users"}'
    )
    head = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n{body}".encode()


class _Connection(asyncio.Protocol):
    """One connection: puts itself among the idle ones after each answer."""

    def __init__(self, idle: list[_Connection], answers: Answers) -> None:
        self._idle, self._answers = idle, answers
        self._received = b""
        self._due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, not its type

    def push(self, request: bytes, due: float) -> None:
        self._due, self.busy, self._received = due, True, b""
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        status = int(head[9:12])
        self._answers.statuses[status] += 1
        if status == _NO_CONTENT:
            now = time.monotonic()
            self._answers.seconds.append(now - self._due)
            self._answers.moments.append(now)
        self.busy = False
        self._idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self._answers.statuses[0] += 1
            self.busy = False
        elif self in self._idle:
            self._idle.remove(self)


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0
