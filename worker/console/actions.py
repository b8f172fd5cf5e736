"""What a form does: rejections are resolved, a drill and the doctor are run; what destroys or undoes is only shown.

Each returns where to go next, or a page.
"""

import re
import shlex
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from publisher import values
from publisher.values import counted, rfc3339
from worker.console.context import Context
from worker.console.jobs import Say
from worker.console.pages import Pages, argument
from worker.console.safety import WrongFormError
from worker.database.models import REASONS
from worker.errors import QueueMissing, ServiceRefused
from worker.events.configured import catalog_of
from worker.operations import checkpoints
from worker.operations import drill as drills
from worker.operations import lease as leases
from worker.operations.doctor.examine import examine
from worker.operations.doctor.findings import report
from worker.operations.drill import Driller
from worker.operations.recovery import Recovery
from worker.operations.replay import plan
from worker.operations.service_client import Wanted, line
from worker.replica import bucket
from worker.replica.litestream import find_binary

_REQUEST_SECONDS: Final = 60.0
_NOT_FOUND: Final = 404
_OPEN: Final = ("rejected", "conflict")
"""Outcomes of a retry after which a rejection is still open."""
_LOCAL_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(\.\d+)?")
"""As a browser's field for a time sends it; the page says that it is UTC."""

Act = Callable[[dict[str, str]], Awaitable[Response | str]]


class Actions:
    """The forms' handlers."""

    def __init__(self, context: Context, pages: Pages) -> None:
        self._context, self._pages = context, pages

    def all(self) -> dict[str, Act]:
        """Each form's name and handler."""
        return {
            "retry": self._retry,
            "correct": self._correct,
            "discard": self._discard,
            "export": self._export,
            "drill": self._drill,
            "doctor": self._doctor,
            "recover": self._recover,
            "replay": self._replay,
            "break": self._break,
            "erase": self._erase,
        }

    # Rejections.

    async def _retry(self, form: dict[str, str]) -> Response | str:
        if message_id := form.get("id"):
            return self._resolved(message_id, await self._context.service.retry(message_id))
        return self._start_each("retry", form, self._context.service.retry)

    async def _correct(self, form: dict[str, str]) -> str:
        message_id = form.get("id", "")
        text = form.get("data", "").replace("\r\n", "\n")
        if not text.strip():
            raise WrongFormError("the corrected message is empty; write the message as it should have been")
        return self._resolved(message_id, await self._context.service.retry(message_id, text.encode()))

    async def _discard(self, form: dict[str, str]) -> Response | str:
        typed = form.get("number", "").strip()
        if message_id := form.get("id"):
            if typed != "1":
                raise WrongFormError("nothing was discarded: type 1, the number of messages, to discard this one for good")
            return self._resolved(message_id, await self._context.service.discard(message_id))
        reason = _reason(form)
        ids = [row["message_id"] async for row in self._context.service.each(Wanted(reason=reason))]
        if typed.replace(",", "") != str(len(ids)):  # the page writes 1,234
            raise WrongFormError(
                f"nothing was discarded: {counted(len(ids), 'message')} would be, and {typed[:20] or 'nothing'} was typed"
            )
        return self._start_each("discard", form, self._context.service.discard, ids)

    def _resolved(self, message_id: str, outcome: str) -> str:
        if outcome == "erased":  # then nothing of it is kept
            return "/rejections"
        return f"/rejection?id={quote(message_id, safe='')}&outcome={quote(outcome)}"

    def _start_each(
        self, verb: str, form: dict[str, str], change: Callable[[str], Awaitable[str]], ids: list[str] | None = None
    ) -> str:
        reason = _reason(form)

        async def work(say: Say) -> dict[str, Any]:
            chosen = ids
            if chosen is None:
                rows = [row async for row in self._context.service.each(Wanted(reason=reason))]
                chosen = [row["message_id"] for row in sorted(rows, key=lambda row: str(row["publish_time"]))]
            outcomes: Counter[str] = Counter()
            for number, message_id in enumerate(chosen, 1):
                try:
                    outcomes[await change(message_id)] += 1
                except ServiceRefused:  # this one, such as one that was resolved meanwhile
                    outcomes["refused"] += 1
                if number % 20 == 0:
                    say(f"{number:,} of {len(chosen):,}")
            return {"total": len(chosen), "outcomes": dict(outcomes), "open": sum(outcomes[name] for name in _OPEN)}

        if not self._context.jobs.start(verb, f"{verb.capitalize()} every {reason}", work):
            raise WrongFormError(f"another {verb} runs, and this one was not begun; wait for its end")
        return f"/job?kind={verb}"

    async def _export(self, form: dict[str, str]) -> Response:
        service, message_id = self._context.service, form.get("id")
        wanted = None if message_id else Wanted(reason=_reason(form))

        async def lines() -> AsyncIterator[bytes]:  # one at a time: all of a reason may be more than fits into memory
            if wanted is None:
                yield line(await service.whole(message_id or ""))
                return
            async for row in service.each(wanted):
                try:
                    yield line(await service.whole(row["message_id"]))
                except ServiceRefused as error:
                    if error.status != _NOT_FOUND:  # this one was erased meanwhile
                        raise

        found = lines()
        first = await anext(found, b"")  # before the answer's status, which could not say any more that there is nothing

        async def whole() -> AsyncIterator[bytes]:
            yield first
            async for each in found:
                yield each

        name = f"rejections-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(whole(), media_type="application/x-ndjson", headers=headers)

    # Jobs.

    async def _drill(self, form: dict[str, str]) -> str:
        context = self._context
        store = context.required_bucket().patient(bucket.COMMAND_PATIENCE_SECONDS)

        async def work(say: Say) -> Any:
            drill = await Driller(
                store=store,
                catalog=catalog_of(context.settings),
                service=context.counted,
                scratch=Path(tempfile.gettempdir()),
                binary=find_binary(context.settings.litestream_bin),
                oldest=None,
                request_seconds=_REQUEST_SECONDS,
                restore_seconds=context.settings.restore_timeout_seconds,
                say=say,
            ).run()
            await drills.record(store, drill, timeout=_REQUEST_SECONDS)
            return drill

        context.jobs.start("drill", "Drill", work)
        return "/job?kind=drill"

    async def _doctor(self, form: dict[str, str]) -> str:
        async def work(say: Say) -> Any:
            say("checking the settings, the software, this machine, the bucket and the subscription")
            return report(await examine(self._context.environ))

        self._context.jobs.start("doctor", "Doctor", work)
        return "/job?kind=doctor"

    async def _recover(self, form: dict[str, str]) -> str:
        at = _moment(form.get("at", ""))
        self._context.required_bucket()

        async def work(say: Say) -> Any:
            return await Recovery(self._context.settings, at, say).plan()

        if not self._context.jobs.start("recover", rfc3339(at), work):
            raise WrongFormError("another comparison runs; wait for its end")
        return "/job?kind=recover"

    # What is only shown.

    async def _replay(self, form: dict[str, str]) -> Response:
        queue = self._context.queue
        if queue is None:
            raise QueueMissing(
                "SUBSCRIPTION is not set, so it is not known which queue would be replayed; set it and start again"
            )
        snapshot = form.get("snapshot", "").strip()
        to: datetime | str = snapshot or _moment(form.get("since", ""))
        if snapshot and "/" not in snapshot:
            to = (await checkpoints.find(self._context.required_bucket(), snapshot, timeout=_REQUEST_SECONDS)).snapshot
        found = await plan(queue, self._context.followed, to, now=datetime.now(UTC))
        option = f"--snapshot {shlex.quote(snapshot)}" if snapshot else f"--from {rfc3339(_moment(form.get('since', '')))}"
        rows = [
            ("subscription", found.subscription),
            ("would deliver again", f"what was published since {rfc3339(found.since)}"),
            ("receipts of that time", f"{found.receipts.total:,}: these would be absorbed as duplicates"),
        ]
        return self._shown("Replay", rows, f"python -m worker replay {option}")

    async def _break(self, form: dict[str, str]) -> Response:
        status = await leases.show(
            self._context.required_bucket(), timeout=self._context.settings.lease_read_timeout_seconds
        )
        what = f"release the lease of {status.holder or 'no holder'} ({status.revision}) at epoch {status.epoch}"
        rows = [*status.rows(), ("would", "nothing: it is released already" if status.state == "released" else what)]
        return self._shown("Break the lease", rows, "python -m worker lease break --yes")

    async def _erase(self, form: dict[str, str]) -> Response:
        try:
            subject = values.subject(form.get("subject", "").strip())
        except ValueError as error:
            raise WrongFormError(f"this {error}") from None
        rows = [
            ("subject", subject),
            ("would", "erase the person's rows in every table for good, also from every later restore and replay"),
        ]
        return self._shown("Erase", rows, f"python -m worker erase --yes {argument(subject)}")

    def _shown(self, title: str, rows: list[tuple[str, str]], command: str) -> Response:
        return self._pages.page("shown.html", title=title, rows=rows, command_line=command)


def _reason(form: dict[str, str]) -> str:
    reason = form.get("reason", "")
    if reason not in REASONS:
        raise WrongFormError(f"a reason is missing; it is one of {', '.join(REASONS)}")
    return reason


def _moment(text: str) -> datetime:
    text = text.strip()
    if _LOCAL_TIME.fullmatch(text):
        text = f"{text}:00Z" if text.count(":") == 1 else f"{text}Z"
    try:
        moment: datetime = values.moment(text)
    except ValueError as error:
        raise WrongFormError(f"the time {error}") from None
    return moment
