"""Side tasks: named, cancelled with the block they serve, and never silently dead."""

import asyncio
import contextlib
import faulthandler
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

_BEAT_SECONDS: Final = 1.0
_STDERR: Final = 2

log = logging.getLogger(__name__)


def plain(error: BaseException, first: type[Exception]) -> BaseException:
    """The one error of a group worth reporting: one of type `first`, or else the first there is."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    wanted = error.subgroup(first)
    leaf: BaseException = wanted if wanted is not None else error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf


@contextlib.asynccontextmanager
async def running(group: asyncio.TaskGroup, name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the body. Its death ends the group, and so the body; the body's end cancels it."""

    async def named() -> None:
        try:
            await work
        except Exception as error:
            log.error("the task %r died: %s", name, error, extra={"action": "worker.task_died"})
            raise

    task = group.create_task(named(), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        work.close()  # a task that is cancelled before its first step never awaits it


@contextlib.asynccontextmanager
async def ended_when_stuck(seconds: float) -> AsyncIterator[None]:
    """End the process, with the stack of each thread on its standard error, if the event loop stands still for so long.

    A loop that stands still renews no lease and answers no probe, but keeps the database and the port. The timer is the
    standard library's: it needs neither the loop nor the interpreter's lock. A process that was frozen for so long ends
    when it goes on: its lease may be another's by then.
    """

    async def beat() -> None:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
            await asyncio.sleep(_BEAT_SECONDS)

    beating = asyncio.create_task(beat(), name="beat")
    try:
        yield
    finally:
        beating.cancel()
        faulthandler.cancel_dump_traceback_later()
