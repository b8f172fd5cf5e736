"""HTTP for operators: rejections read, retried and discarded in the running service, so that there is never a second writer;
what a drill compares a restore with; and what a replay is followed by.

GET /rejections                 a page: ?reason=&since=&until=&resolved=true&after=&limit=
GET /rejections/<id>            one, whole
POST /rejections/<id>/retry     handle it once more: 200 with its outcome; a body is handled in the place of its data;
                                ?overwrite=true: a conflict replaces the row
POST /rejections/<id>/discard   give it up: 200
GET /counts                     the database's rows, once all that is counted is in the bucket: ?since=
GET /receipts                   how many there are of messages published since a time, by outcome: ?since=
GET /outcomes                   what this instance's deliveries came to since it began, and of messages published before a
                                time since that was first asked for: ?before=

A change is answered once it is in the bucket, like a message (INV-1).
"""

import base64
import logging
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from worker.database import counts, receipts, rejections
from worker.database.counts import ServiceCounts
from worker.database.models import DISCARDED, REASONS
from worker.database.rejections import PAGE_MAX, Filter
from worker.errors import BadQuery, BodyTooLarge, NotFound, WrongMethod
from worker.events.catalog import Catalog
from worker.events.declaration import MAX_DATA_BYTES
from worker.ingest.http.access import Access
from worker.ingest.http.delivery_counts import Tally
from worker.ingest.http.paths import COUNTS, OUTCOMES, RECEIPTS, ROOT
from worker.ingest.intake import Intake
from worker.ingest.tables import Tables

T = TypeVar("T")

log = logging.getLogger(__name__)


def takes(path: str) -> bool:
    """Whether `answer` is for requests to this path."""
    return path in (ROOT, COUNTS, RECEIPTS, OUTCOMES) or path.startswith(f"{ROOT}/")


async def answer(
    request: Request, path: str, *, access: Access, intake: Intake, catalog: Catalog, readers: Tables, tally: Tally
) -> Response:
    """Answer a request to a path that `takes` names.

    Raises:
        RequestError: It is refused, or what it asks for cannot be done.
    """
    who = await access.operator(request.scope["headers"])
    if path == COUNTS:
        return await _counts(request, intake, catalog, readers)
    if path == RECEIPTS:
        return await _receipts(request, readers)
    if path == OUTCOMES:
        return _outcomes(request, intake, tally)
    name = path.removeprefix(ROOT).removeprefix("/")
    if request.method == "POST":
        overwrite = request.query_params.get("overwrite") == "true"
        return await _change(intake, readers, name, who, await _corrected(request), overwrite=overwrite)
    if request.method != "GET":
        raise WrongMethod("GET, POST")
    if not name:
        page = await readers.read(partial(rejections.page, wanted=_filter(request)))
        after = None if page.after is None else f"{page.after[0]},{page.after[1]}"
        return JSONResponse({"rejections": page.rejections, "after": after})
    found = await readers.read(partial(rejections.whole, message_id=name))
    if found is None:
        raise NotFound("there is no rejection with this message id; `worker rejections list --all` shows all")
    if found["body"] is not None:
        found["data"] = base64.b64encode(await _body(intake, found["body"])).decode()
    return JSONResponse(found)


async def _corrected(request: Request) -> bytes | None:
    """The body of a request, counted as it arrives: the data that an operator has corrected; None if it is empty."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_DATA_BYTES:
            raise BodyTooLarge(f"the data is over {MAX_DATA_BYTES:,} bytes; Pub/Sub takes no larger message")
        pieces.append(piece)
    return b"".join(pieces) or None


async def _body(intake: Intake, name: str) -> bytes:
    data = await intake.bodies.read(name)
    if data is None:
        raise NotFound(f"the bytes of this message are no longer in the bucket: {name} was deleted; discard the rejection")
    return data


async def _counts(request: Request, intake: Intake, catalog: Catalog, readers: Tables) -> Response:
    if request.method != "GET":
        raise WrongMethod("GET")
    since = _time(request.query_params.get("since"), "since")
    found = await readers.read(partial(counts.count, catalog=catalog, since=since or 0))
    # What was committed before this change, and so all that was counted, is confirmed with it.
    epoch: int = await intake.change(lambda transaction: transaction.epoch)
    said = ServiceCounts(**msgspec.structs.asdict(found), epoch=epoch)
    return Response(msgspec.json.encode(said), media_type="application/json")


async def _receipts(request: Request, readers: Tables) -> Response:
    if request.method != "GET":
        raise WrongMethod("GET")
    since = _time(request.query_params.get("since"), "since")
    if since is None:
        raise BadQuery("since is missing: the publish time from which receipts are counted, as RFC 3339")
    return JSONResponse(await readers.read(partial(receipts.since, milliseconds=since)))


def _outcomes(request: Request, intake: Intake, tally: Tally) -> Response:
    if request.method != "GET":
        raise WrongMethod("GET")
    before = _time(request.query_params.get("before"), "before")
    found = {
        "started_at": tally.started_at,
        "now": tally.now(),
        "state": intake.state,
        "outcomes": tally.outcomes,
        "before": None if before is None else tally.watch(before),
    }
    return Response(msgspec.json.encode(found), media_type="application/json")


async def _change(
    intake: Intake, readers: Tables, name: str, who: str, corrected: bytes | None, *, overwrite: bool
) -> Response:
    message_id, _, verb = name.rpartition("/")
    if verb == "retry":
        at = await readers.read(partial(rejections.body_of, message_id=message_id))
        body = corrected if corrected is not None or at is None else await _body(intake, at)
        outcome: str = await intake.change(
            lambda transaction: transaction.retry(message_id, body, overwrite=overwrite), alone=True
        )
        how = "retried" if corrected is None else "corrected and retried"
        log.info("message %s: %s by %s: %s", message_id, how, who, outcome, extra={"action": "rejection.retried"})
    elif verb == "discard":
        await intake.change(lambda transaction: transaction.discard(message_id), alone=True)
        outcome = DISCARDED
        log.info("message %s: discarded by %s", message_id, who, extra={"action": "rejection.discarded"})
    else:
        raise NotFound("no such path; POST /rejections/<message id>/retry or /discard")
    return JSONResponse({"message_id": message_id, "outcome": outcome})


def _filter(request: Request) -> Filter:
    query = request.query_params
    reason, after, limit = query.get("reason"), query.get("after"), query.get("limit", str(PAGE_MAX))
    if reason is not None and reason not in REASONS:
        raise BadQuery(f"reason must be one of {', '.join(REASONS)}")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5) or not 1 <= int(limit) <= PAGE_MAX:
        raise BadQuery(f"limit must be a whole number from 1 to {PAGE_MAX}")
    return Filter(
        reason=reason,
        since=_time(query.get("since"), "since"),
        until=_time(query.get("until"), "until"),
        resolved=query.get("resolved") == "true",
        after=None if after is None else _cursor(after),
        limit=int(limit),
    )


def _time(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        moment = msgspec.convert(text, datetime)
        if moment.tzinfo is None:
            raise ValueError
        return round(moment.timestamp() * 1000)
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise BadQuery(f"{name} must be an RFC 3339 time with a zone, for example 2026-01-31T12:00:00Z") from None


def _cursor(text: str) -> tuple[int, str]:
    time, comma, message_id = text.partition(",")
    if not (comma and time.isascii() and time.isdecimal() and len(time) < 16):
        raise BadQuery("after must be what an earlier page gave as `after`")
    return int(time), message_id
