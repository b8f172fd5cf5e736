"""An event loop that runs only when told, on a clock that moves only when told: a process that can be frozen at any await.

It has what tasks, futures, locks and timers use of asyncio's loop, and nothing else: no sockets, no threads, no signals.
Between two calls of `run` the process is frozen, whatever the other processes' loops do meanwhile.
"""

import asyncio
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, cast

_CALLBACKS_MAX: Final = 20_000
"""Callbacks in one run after which it counts as spinning: every wait must reach the world, or a timer."""


class Loop:
    """One process's loop and clock. The methods without a word of their own are `asyncio.AbstractEventLoop`'s."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.broken: list[BaseException] = []
        """Errors that no task could raise: bugs of the test or of the worker."""
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._self = cast(asyncio.AbstractEventLoop, self)

    def run(self) -> None:
        """Run until everything waits: for an answer, or for a later time."""
        outer = events._get_running_loop()
        events._set_running_loop(self._self)
        try:
            for _ in range(_CALLBACKS_MAX):
                self._wake()
                if not self._ready:
                    return
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
            raise RuntimeError("a task spins without waiting for anything")
        finally:
            events._set_running_loop(outer)

    def next_timer(self) -> float | None:
        """When the next timer is due, or None."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def end(self) -> None:
        """Let every task end by its cancellation, so that nothing is left to the garbage collector."""
        for _ in range(100):
            tasks = asyncio.all_tasks(self._self)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self.run()
        raise RuntimeError(f"these tasks cannot be cancelled: {asyncio.all_tasks(self._self)}")

    def _wake(self) -> None:
        while (due := self.next_timer()) is not None and due <= self.now:
            self._ready.append(heapq.heappop(self._timers)[2])

    def time(self) -> float:
        """The time on this machine's clock."""
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """Run a callback with what is ready."""
        handle = asyncio.Handle(callback, args, self._self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        """Run a callback with what is ready: there are no threads here."""
        return self.call_soon(callback, *args)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback after a delay."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback at a time."""
        timer = asyncio.TimerHandle(when, callback, args, self._self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=self._self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[Any]":
        """A task of this loop."""
        return asyncio.Task(coro, loop=self._self, name=name, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """At once: what the worker gives to a thread here touches this machine only."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Always: it is asked only by what it runs."""
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what a callback raised; the rest is about tasks whose result nobody asked for."""
        if "handle" in context:
            self.broken.append(context["exception"])

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass
