"""Loads many users: reads, sends, and accounts for every record.

Rules:
    * Every record read ends in exactly one of `rejected`, `accepted`, `failed`, `unknown` (or `valid`, in a dry run).
    * All book-keeping happens on the calling thread; an answer only puts its line number into a queue.
    * What is in flight is bounded in messages and bytes, so memory does not grow with the file.
    * A failure that every other message would meet stops the reading; what is in flight is still waited for.
"""

import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from publisher.errors import DeliveryError
from publisher.interrupt import Interrupt
from publisher.message import Message
from publisher.records import Problem, Reader, Record
from publisher.settings import IN_FLIGHT_BYTES, INTERRUPT_SECONDS
from publisher.sink import Sink
from worker.events.declaration import MessageError


@dataclass(slots=True)
class Summary:
    """What became of the records; `read = valid + rejected` and `valid = accepted + failed + unknown` (or a dry run).

    Attributes:
        read: records read, without blank lines.
        valid: records that are messages.
        rejected: records that are none.
        accepted: messages the server accepted.
        failed: messages the server did not accept.
        unknown: messages that may have been accepted: no answer came.
        omitted: records too long to be copied to the rejects; they count as rejected.
        seconds: how long it took.
        dry_run: nothing was sent.
        interrupted: Ctrl-C ended the reading.
        stopped: the failure that ended the reading, or None.
        next_line: the first line not read, when the reading ended early.
    """

    dry_run: bool
    read: int = 0
    valid: int = 0
    rejected: int = 0
    accepted: int = 0
    failed: int = 0
    unknown: int = 0
    omitted: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str | None = None
    next_line: int | None = None

    @property
    def exit_code(self) -> int:
        """0: all is well; 1: some record was not accepted; 130: interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.rejected or self.failed or self.unknown or self.stopped else 0


class Report(Protocol):
    """Tells a person what happens."""

    def problem(self, line: int, code: str, detail: str) -> None:
        """Say what is wrong with a record; an empty detail means that the summary says it."""

    def tick(self, summary: Summary) -> None:
        """Show how far it has got."""


class Loader:
    """One run of `load`.

    Args:
        sink: where valid users go; None for a dry run.
        report: told of problems and progress.
        interrupt: decides where Ctrl-C may strike.
        rejects: gets every record that was not accepted, byte for byte, below the reader's header.
        accepted: gets one JSON line per accepted message.
        in_flight_bytes: most input bytes sent and not answered.
        start_line: records that begin on an earlier line are passed over.
    """

    def __init__(
        self,
        sink: Sink | None,
        report: Report,
        interrupt: Interrupt,
        *,
        rejects: BinaryIO | None = None,
        accepted: BinaryIO | None = None,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        start_line: int = 1,
    ) -> None:
        self._sink = sink
        self._report = report
        self._interrupt = interrupt
        self._rejects = rejects
        self._accepted = accepted
        self._in_flight: Final = sink.capacity if sink else 0
        self._in_flight_bytes: Final = in_flight_bytes
        self._start_line: Final = start_line
        self._header = b""
        # Only the calling thread touches these; other threads put line numbers into _answered.
        self._summary = Summary(dry_run=sink is None)
        self._pending: dict[int, tuple[Record, Message, Future[str]]] = {}
        self._pending_bytes = 0
        self._incomplete = False  # a file that was written lacks lines
        self._answered: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self, reader: Reader) -> Summary:
        """Load everything the reader yields, and say what became of it."""
        started = time.monotonic()
        self._header = reader.header
        patience = self._sink.patience if self._sink else 0.0
        try:
            self._read_all(iter(reader))
        except KeyboardInterrupt:
            self._summary.interrupted = True
            patience = min(patience, INTERRUPT_SECONDS)
        try:
            self._drain(patience)
        except KeyboardInterrupt:
            self._summary.interrupted = True
        if self._sink is not None:
            self._sink.close(timeout=0.0)  # settles every future that is left
        for line in list(self._pending):
            self._settle(line)
        if self._incomplete:
            self._summary.next_line = self._start_line  # only from there on will it be whole
        self._summary.seconds = round(time.monotonic() - started, 3)
        self._report.tick(self._summary)
        return self._summary

    def _read_all(self, records: Iterator[Record]) -> None:
        summary = self._summary
        allowed = self._interrupt.allowed()
        summary.next_line = self._start_line
        while summary.stopped is None:
            with allowed:
                record = next(records, None)
            if record is None:
                summary.next_line = None
                return
            if record.line < self._start_line:
                continue
            self._take(record)
            summary.next_line = record.line + 1
            self._report.tick(summary)
            self._make_room()

    def _take(self, record: Record) -> None:
        self._summary.read += 1
        content = record.content
        problem = self._send(record, content) if isinstance(content, Message) else content
        if problem is None:
            self._summary.valid += 1
        else:
            self._summary.rejected += 1
            self._set_aside(record, problem.code, problem.detail)

    def _send(self, record: Record, message: Message) -> Problem | None:
        if self._sink is None:
            return None
        try:
            future = self._sink.publish(message)
        except MessageError as error:
            return Problem(error.reason, error.detail)
        self._pending[record.line] = (record, message, future)
        self._pending_bytes += len(record.raw or b"")
        future.add_done_callback(lambda _: self._answered.put(record.line))
        return None

    def _make_room(self) -> None:
        while not self._answered.empty():
            self._settle(self._answered.get())
        while self._pending and self._full():
            with self._interrupt.allowed():
                line = self._answered.get()
            self._settle(line)

    def _full(self) -> bool:
        return len(self._pending) >= self._in_flight or self._pending_bytes >= self._in_flight_bytes

    def _drain(self, patience: float) -> None:
        # Ctrl-C can swallow a line number on its way out of the queue: look at the futures themselves once.
        for line in [line for line, (_, _, future) in self._pending.items() if future.done()]:
            self._settle(line)
        deadline = time.monotonic() + patience
        while self._pending and (left := deadline - time.monotonic()) > 0:
            try:
                with self._interrupt.allowed():
                    line = self._answered.get(timeout=left)
            except queue.Empty:
                return
            self._settle(line)
            self._report.tick(self._summary)

    def _settle(self, line: int) -> None:
        if line not in self._pending:
            return
        record, message, future = self._pending.pop(line)
        self._pending_bytes -= len(record.raw or b"")
        error = future.exception()
        if error is None:
            self._summary.accepted += 1
            if self._accepted is not None:
                entry = {"line": line, **message.key, "message_id": future.result()}
                self._keep(self._accepted, json.dumps(entry).encode() + b"\n")
            return
        if not isinstance(error, DeliveryError):
            raise error
        if error.unknown:
            self._summary.unknown += 1
        else:
            self._summary.failed += 1
        detail = str(error)
        if error.fatal:
            # It is said once, at the end: everything in flight fails in the same way.
            self._summary.stopped = self._summary.stopped or detail
            detail = ""
        self._set_aside(record, error.code, detail)

    def _set_aside(self, record: Record, code: str, detail: str) -> None:
        self._report.problem(record.line, code, detail)
        if record.raw is None:
            self._summary.omitted += 1
        elif self._rejects is not None:
            header, self._header = self._header, b""
            for part in (header, record.raw):
                self._keep(self._rejects, part if part.endswith(b"\n") or not part else part + b"\n")

    def _keep(self, file: BinaryIO, data: bytes) -> None:
        """Write at once, so that the file can be watched. A full disk ends the reading, not the account."""
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            self._incomplete = True
            self._summary.stopped = self._summary.stopped or f"cannot write {file.name}: {error.strerror}; it is not whole"
