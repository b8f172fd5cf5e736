"""Jobs: what takes longer than a page waits for it. One of a kind at a time; the latest of each kind is kept.

Only the event loop touches them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from worker.errors import WorkerError

_LINES_MAX: Final = 100
"""Lines of progress that are kept (INV-7)."""

Say = Callable[[str], None]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One job. `error` is set if it failed, `result` if it did not; `about` is its heading."""

    kind: str
    about: str
    began: datetime
    ended: datetime | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES_MAX))
    result: Any = None
    error: str = ""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.ended is None


class Jobs:
    """The latest job of each kind."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def get(self, kind: str) -> Job | None:
        """The latest of a kind, or None."""
        return self._jobs.get(kind)

    def start(self, kind: str, about: str, work: Callable[[Say], Awaitable[Any]]) -> bool:
        """Begin a job; False if one of its kind runs, which goes on."""
        before = self._jobs.get(kind)
        if before is not None and before.running:
            return False
        job = self._jobs[kind] = Job(kind, about, datetime.now(UTC))
        self._tasks[kind] = asyncio.create_task(self._run(job, work), name=f"job {kind}")
        return True

    async def close(self) -> None:
        """End what runs. A job that is cancelled removes its scratch."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _run(self, job: Job, work: Callable[[Say], Awaitable[Any]]) -> None:
        try:
            job.result = await work(job.lines.append)
        except (WorkerError, OSError) as error:
            job.error = str(error)
        except Exception:  # a defect: the page must say that it ended, and the log why
            log.exception("the job %s ended by a defect", job.kind, extra={"action": "console.broke"})
            job.error = "it ended by a defect of the console; its log says more"
        finally:
            job.ended = datetime.now(UTC)
