"""Ctrl-C that strikes only where the program waits, so that no message is lost between two steps of book-keeping."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupt:
    """Takes over SIGINT while its block runs.

    A Ctrl-C raises KeyboardInterrupt at once inside `with interrupt.allowed():`, and otherwise at the next such block.
    Outside the main thread, or when SIGINT is ignored, it changes nothing.
    """

    def __init__(self) -> None:
        self._allowed = False  # only the main thread touches these: Python runs signal handlers there
        self._requested = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if previous is not signal.SIG_IGN:
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def allowed(self) -> "_Allowed":
        """Return a context manager inside which Ctrl-C raises KeyboardInterrupt."""
        return _Allowed(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if self._allowed:
            self._raise()

    def _raise(self) -> None:
        # Cleared here and not by the block's end: a signal may arrive while the block is being entered.
        self._allowed = self._requested = False
        raise KeyboardInterrupt


class _Allowed:
    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def __enter__(self) -> None:
        self._interrupt._allowed = True
        if self._interrupt._requested:
            self._interrupt._raise()

    def __exit__(self, *exc: object) -> None:
        self._interrupt._allowed = False
