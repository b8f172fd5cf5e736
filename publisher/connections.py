"""The server's side of a connection, for the worker and the gateway: uvicorn's, with rules for what a client sends.

    head  →  body  →  answer  →  the next head ...

    * The body that arrives is the body that is handled. An offer of another protocol is taken off before the head is read,
      a field behind the body is no header, and bytes behind a request wait, unread, until that request is answered.
    * A client that closes its side after a request still gets the answer.
    * What a client sends has an end (INV-7): a head in bytes, fields and seconds, a body in seconds, the connections in
      number, and what waits unread on all of them in bytes. Connections end well below the file descriptors of the process.
    * A refusal is one answer with one text, one count, and a line of the log.

The parser reads a head when all of it is here, and never beyond the end of a message.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from publisher.telemetry import RateLimitedLog

HEAD_MAX_BYTES: Final = 262_144
"""Most bytes of a head, and most bytes in a row inside a body that are none of it. An unwrapped push brings each attribute
in a header: 100 of 256 and 1024 bytes. Source: Pub/Sub documentation, "Quotas and limits"."""
FIELDS_MAX: Final = 256
"""Most fields of a head: 100 attributes, and what proxies add."""
HEAD_SECONDS: Final = 10.0
"""Longest time from a head's first byte to its last."""
KEPT_MAX_BYTES: Final = 16_000_000
"""Most unread bytes of all connections together."""
KEPT_FREE_BYTES: Final = 8192
"""Unread bytes of one connection that are not counted: an ordinary head."""
SPARE_CONNECTIONS: Final = 1000
"""Connections beside those whose requests are held: idle ones, and those that are told that there is no more room."""
IDLE_SECONDS: Final = 10.0
"""How long a connection must have been idle before it is closed to make room for a new one."""
LINGER_SECONDS: Final = 2.0
"""How long the rest of what a refused client sends is read past, so that the answer is not lost in a reset."""
LINGER_MAX_BYTES: Final = 1_000_000
"""And how much of it."""
LINGERING_MAX: Final = 64
"""And on how many connections at once; they come on top of the limit."""

REFUSALS: Final[Mapping[str, int]] = {
    "bad_request": 400,
    "wrong_method": 405,
    "too_slow": 408,
    "head_too_large": 431,
    "not_implemented": 501,
    "connections": 503,
}
"""Why a request is refused before the application sees it, and the status that says so."""
LOG_SECONDS: Final = 10.0
"""A reason is logged once in this time: a client that is refused comes again, and a flood is one event."""

_END: Final = b"\r\n\r\n"
_OFFER: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

log = logging.getLogger(__name__)


class _WrongError(Exception):
    """A request that is refused before the application sees it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason: Final = reason


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the connections of one server may take.

    Attributes:
        connections: most at once.
        body_max_bytes: largest body that is read to its end although its request has been answered.
        body_seconds: longest time from a head's end to its body's end.
        head_seconds: longest time from a head's first byte to its last.
    """

    connections: int
    body_max_bytes: int
    body_seconds: float
    head_seconds: float = HEAD_SECONDS


class Connections:
    """The connections of one server; pass it to uvicorn as `http`. Only the event loop touches it.

    Args:
        bounds: their limits.
        count: called with the status and the reason of each refusal.
    """

    def __init__(self, bounds: Bounds, count: Callable[[int, str], None] = lambda status, reason: None) -> None:
        self.bounds: Final = bounds
        self._count = count
        self._logs = {reason: RateLimitedLog(log, LOG_SECONDS) for reason in REFUSALS}
        self.open = 0
        self.lingering = 0
        self.kept = 0
        self._idle: dict[Connection, float] = {}  # since when, the oldest first

    def __repr__(self) -> str:
        return f"<Connections: {self.open} open, {self.kept} bytes unread>"

    def __call__(self, **uvicorns: Any) -> "Connection":
        """Make the next connection's protocol."""
        return Connection(self, **uvicorns)

    def has_room(self) -> bool:
        """Whether one more may stay; closes the one that has been idle for the longest time, if there is no room."""
        if self.open < self.bounds.connections:
            return True
        for connection, since in self._idle.items():
            if connection.loop.time() - since < IDLE_SECONDS:
                return False
            connection.leave()
            return True
        return False

    def refused(self, reason: str, text: str) -> None:
        """Count a refusal and log it."""
        self._count(REFUSALS[reason], reason)
        self._logs[reason](logging.WARNING, "connection.refused", f"a connection was refused: {text}")

    def idle(self, connection: "Connection") -> None:
        """Note that it has nothing to do from now on."""
        self._idle.pop(connection, None)
        self._idle[connection] = connection.loop.time()

    def busy(self, connection: "Connection") -> None:
        """Note that it has something to do, or has ended."""
        self._idle.pop(connection, None)


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, connections: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._all: Final = connections
        self._counted = False  # among the open ones
        self._unread = bytearray()
        self._kept = 0  # how much of it is counted for all connections
        self._searched = 0  # no head ends before this
        self._lines = 0  # line ends before this
        self._reading_head = False  # the parser is being given one
        self._in_body = False
        self._left = 0  # bytes of the body that are still to come; -1 while only the parser knows where it ends
        self._framing = 0  # bytes in a row that belong to no body
        self._length = self._coding = b""
        self._deadline: asyncio.TimerHandle | None = None
        self._client_done = False
        self._last = False  # no request follows the one that is being handled
        self._dropped = -1  # bytes read past since a refusal; -1 before that

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Let it in, or refuse it."""
        room = self._all.has_room()
        super().connection_made(transport)
        if not room:
            self._refuse("connections", "as many connections are open as this instance takes; try again")
            return
        self._all.open += 1
        self._counted = True
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._forget()
        if self._dropped >= 0:
            self._all.lingering -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read as far as the end of the request that comes next."""
        if self._dropped >= 0:
            self._dropped += len(data)
            if self._dropped > LINGER_MAX_BYTES:
                self.transport.close()
            return
        self._unset_keepalive_if_required()
        self._all.busy(self)
        self._unread += data
        self._advance()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's says that this is allowed
        """The client sends no more: keep the connection for the answer to what it has sent."""
        self._client_done = True
        return self._answering and not self._in_body and self._dropped < 0

    # What uvicorn calls when a response is whole.

    def on_response_complete(self) -> None:
        """Go on with what was sent behind the request."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._in_body and not self._worth_reading():
            self._linger()
            return
        if self._unread:
            self._unset_keepalive_if_required()
        self._advance()
        if self._client_done and not self._answering:
            self.transport.close()
        elif not self._answering and not self._unread and not self._in_body:
            self._all.idle(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins, which happens only where a head is being read."""
        if not self._reading_head:
            raise _WrongError("bad_request", "the body does not end where the head says")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; one behind a body is none of the head and is passed over."""
        if not self._reading_head:
            return
        name = name.lower()
        if name == b"content-length":
            self._length = value
        elif name == b"transfer-encoding":
            self._coding = value.lower().strip()
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        self._reading_head = False
        if self._coding and (self._coding != b"chunked" or self.parser.get_http_version() == "1.0"):
            raise _WrongError("not_implemented", "transfer-encoding must be chunked, in HTTP/1.1, or absent")
        if self.parser.should_upgrade():  # offers have been taken off, so this is CONNECT
            raise _WrongError("wrong_method", "this is no proxy: CONNECT is not taken")
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # that version has no such answer
        super().on_headers_complete()
        self.scope["state"]["head_bytes"] = self._head_bytes
        self._in_body = True
        self._left = -1 if self._coding else int(self._length or b"0")
        self._last = not self.parser.should_keep_alive()
        self._end_deadline()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse("bad_request", msg)

    # Ours.

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _worth_reading(self) -> bool:
        """Whether the rest of a body is read past, so that the connection can go on after an early answer."""
        uninvited = self.expect_100_continue and self._left == int(self._length or b"0")  # the client may never send it
        return not uninvited and 0 <= self._left <= self._all.bounds.body_max_bytes

    def leave(self) -> None:
        """Close it: it is idle, and its place is needed."""
        self._forget()  # at once: closing takes a turn of the loop
        self.transport.close()

    def _rest(self) -> None:
        self._all.idle(self)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _advance(self) -> None:
        """Give the parser what it may have now."""
        while self._unread and self._dropped < 0:
            if self._in_body:
                size = self._body_piece()
            elif self._answering or self._last:
                self.flow.pause_reading()
                break
            else:
                size = self._whole_head()
            if not size:
                break
            piece = bytes(self._unread[:size])
            del self._unread[:size]
            self._feed(piece)
        self._watch()

    def _body_piece(self) -> int:
        if self._left >= 0:
            return min(self._left, len(self._unread))
        # What ends in pieces ends in an empty line. A part of one at the end of what is here waits for the rest of it.
        end = self._unread.find(_END)
        return end + len(_END) if end >= 0 else max(0, len(self._unread) - len(_END) + 1)

    def _whole_head(self) -> int:
        """The size of the next head; 0 if it is not whole, or is refused."""
        unread = self._unread
        end = unread.find(_END, max(0, self._searched - len(_END) + 1))
        size = end + len(_END) if end >= 0 else len(unread)
        self._lines += unread.count(b"\n", self._searched, size)
        if (
            size > HEAD_MAX_BYTES or self._lines > FIELDS_MAX + 3
        ):  # its first line, its last, and one that may come before it
            text = f"the head of the request is over {HEAD_MAX_BYTES} bytes or {FIELDS_MAX} fields"
            self._refuse("head_too_large", text)
            return 0
        if end < 0:
            self._searched = size
            return 0
        self._searched = self._lines = 0
        return size

    def _feed(self, piece: bytes) -> None:
        if self._in_body:
            self._left -= len(piece) if self._left >= 0 else 0
            self._framing += len(piece)
        else:
            self._reading_head, self._length, self._coding, self._framing = True, b"", b"", 0
            self._head_bytes = len(piece)
            piece = _OFFER.sub(b"", piece)
        try:
            self.parser.feed_data(piece)
            if self._framing > HEAD_MAX_BYTES:
                raise _WrongError("bad_request", "the body's pieces hold too much that is none of it")
        except _WrongError as error:
            self._refuse(error.reason, str(error))
        except httptools.HttpParserUpgrade:
            self._refuse("bad_request", "this is no HTTP/1.1 request")
        except httptools.HttpParserError as error:
            wrong = error.__context__
            if isinstance(wrong, _WrongError):
                self._refuse(wrong.reason, str(wrong))
            else:
                self._refuse("bad_request", "this is no HTTP/1.1 request")

    def _watch(self) -> None:
        """Count what waits unread, and let what is not whole end in time."""
        kept = max(0, len(self._unread) - KEPT_FREE_BYTES)
        self._all.kept += kept - self._kept
        self._kept = kept
        if kept and self._all.kept > KEPT_MAX_BYTES:
            self._refuse("connections", "too much waits to be read on all connections together; try again")
        elif not self._in_body and (self._answering or not (self._unread or self._reading_head)):
            self._end_deadline()
        elif self._deadline is None and self._dropped < 0 and not self.transport.is_closing():
            bounds = self._all.bounds
            seconds = bounds.body_seconds if self._in_body else bounds.head_seconds
            self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._in_body:
            text = f"the body did not arrive within {self._all.bounds.body_seconds:g} s; send it again"
        else:
            text = f"the head did not arrive within {self._all.bounds.head_seconds:g} s"
        self._refuse("too_slow", text)

    def _refuse(self, reason: str, text: str) -> None:
        """Answer in the application's place, unless it has answered, and end the connection."""
        if self._dropped >= 0 or self.transport.is_closing():
            return
        self._all.refused(reason, text)
        status = REFUSALS[reason]
        cycle = self.cycle
        if cycle is None or not cycle.response_started or (cycle.response_complete and not self._in_body):
            body = json.dumps({"error": text, "reason": reason}).encode()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n%s"
                % (
                    status,
                    HTTPStatus(status).phrase.encode(),
                    len(body),
                    b"retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else b"",
                    body,
                )
            )
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._linger()

    def _linger(self) -> None:
        """Close, but read past what is on its way first: closing over unread bytes resets the connection."""
        self._forget()  # it counts as lingering from now on
        self._all.lingering += 1
        self._dropped = 0
        if self._all.lingering > LINGERING_MAX:
            self.transport.close()
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _forget(self) -> None:
        """Give back what it holds and counts for."""
        self._unset_keepalive_if_required()
        self._end_deadline()
        self._all.busy(self)
        self._all.kept -= self._kept
        self._kept = 0
        self._unread.clear()
        self._in_body = self._reading_head = False
        if self._counted:
            self._all.open -= 1
            self._counted = False
