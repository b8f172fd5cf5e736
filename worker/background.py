"""Side tasks: named, cancelled with the block they serve, and never silently dead."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

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
