"""The server's side of a connection: uvicorn's, with a bound for what a client sends before there is a request (INV-7).

A request takes its place among those that are held once its headers are whole, and so is bounded from there on. The parser
itself has no bound: it would keep headers that never end, and those that may follow a body in pieces.
"""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX_BYTES: Final = 262_144
"""Most bytes in a row that are no body. An unwrapped push brings each attribute in a header: 100 of 256 and 1024 bytes.
Source: Pub/Sub documentation, "Quotas and limits"."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _head = 0  # bytes since the last headers were whole, or the last piece of a body

    def data_received(self, data: bytes) -> None:
        """Read; at most `HEAD_MAX_BYTES`, and what came with the last of them, without a request or a body in them."""
        self._head += len(data)
        super().data_received(data)
        if self._head > HEAD_MAX_BYTES and not self.transport.is_closing():
            message = "The head of the request is too large."
            self.logger.warning(message)
            self.send_400_response(message)

    def on_headers_complete(self) -> None:
        """A request begins, and counts for itself."""
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._head = 0
        super().on_body(body)
