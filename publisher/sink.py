"""Where messages go: the interface `create` and `load` know, and what both implementations share."""

from concurrent.futures import Future, InvalidStateError, wait
from threading import Lock
from typing import Protocol, Self

from publisher.errors import NotConfirmedError
from publisher.message import Message


class Sink(Protocol):
    """Takes messages and says, for each, whether the server accepted its message.

    Used as a context manager: leaving the block closes the sink, without waiting when an exception ends it.
    """

    @property
    def capacity(self) -> int:
        """How many messages may be in flight before `publish` blocks."""

    @property
    def patience(self) -> float:
        """Seconds after which every future returned by `publish` is settled."""

    def publish(self, message: Message) -> Future[str]:
        """Send one message; blocks while too much is in flight.

        Returns:
            A future with the accepted message's id. It fails with a `DeliveryError` and nothing else.

        Raises:
            MessageError: it breaks the format, or is too large.
        """

    def close(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds (default: `patience`) for what is in flight, then settle the rest.

        The rest fails with `NotConfirmedError`. Closing twice is harmless.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None: ...


class OpenFutures:
    """The futures handed out and not settled yet, so that closing a sink leaves none of them hanging."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: set[Future[str]] = set()  # guarded by _lock

    def __len__(self) -> int:
        return len(self._open)

    def new(self) -> Future[str]:
        """Return a new future that counts as open until it is settled."""
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()  # a message on its way cannot be called back
        with self._lock:
            self._open.add(future)
        future.add_done_callback(self._forget)
        return future

    def abandon(self, timeout: float) -> bool:
        """Wait until every future is settled, at most `timeout` seconds; the rest fail as not confirmed.

        Returns:
            Whether there was a rest.
        """
        wait(self._snapshot(), timeout=timeout)
        error = NotConfirmedError("closed before the server answered; it may have been accepted")
        rest = self._snapshot()
        for future in rest:
            settle(future, error)
        return bool(rest)

    def _snapshot(self) -> set[Future[str]]:
        with self._lock:
            return set(self._open)

    def _forget(self, future: Future[str]) -> None:
        with self._lock:
            self._open.discard(future)


def settle(future: Future[str], outcome: str | BaseException) -> None:
    """Give the future its message id or its error, unless it has been settled already."""
    # An answer can arrive in the instant in which `abandon` gives up on it.
    try:
        if isinstance(outcome, str):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
    except InvalidStateError:
        pass
