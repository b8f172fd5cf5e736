"""Naive durability: one transaction and one confirmation for each message, one after the other.

Everything else is the worker's: its settings, lease, generation, Litestream, tables, and the server around it. A message
whose sender has gone is passed over, as it would otherwise be worked on in the next run.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import functions_framework.aio
import uvloop
from starlette.requests import Request
from starlette.responses import Response

from bench import noop
from worker import config
from worker.config import limits
from worker.database import connections
from worker.database.models import Connection, Receipt
from worker.events.users import USER_CREATED, User, UserCreated
from worker.ingest.confirmation import Confirmation
from worker.ingest.http import envelope
from worker.replica.generation import Generation
from worker.tasks import running
from worker.wiring import Parts


@dataclass(frozen=True, slots=True)
class Store:
    """What the one message under way has to itself."""

    connection: Connection
    confirmation: Confirmation
    epoch: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@functions_framework.aio.http
async def handle(request: Request) -> Response:
    """The functions-framework target."""
    body = await request.body()
    if request.method != "POST":
        return Response(status_code=405)
    store: Store = request.app.state.store
    delivery = envelope.decode(body)
    user = cast("UserCreated", USER_CREATED.decode(delivery.data))
    async with store.turn:
        if await request.is_disconnected():
            return Response(status_code=499)
        write(store.connection, delivery.message_id, delivery.publish_time, user, epoch=store.epoch)
        await store.confirmation.confirm()
    return Response(status_code=204)


def write(connection: Connection, message_id: str, published: int, user: UserCreated, *, epoch: int) -> None:
    """Commit one message's user and receipt, in a transaction of their own."""
    now = round(time.time() * 1000)
    row = {
        "user_id": user.user_id,
        "email_address": user.email_address,
        "created_at": published // 1000,
        "deleted": 0,
        "settings": user.settings,
    }
    receipt = {
        "message_id": message_id,
        "subject": str(user.user_id),
        "outcome": "created",
        "publish_time": published,
        "processed_at": now,
        "epoch": epoch,
    }
    with connection.atomic("IMMEDIATE"):
        User.insert(row).execute(connection)
        Receipt.insert(receipt).execute(connection)


def main() -> int:
    """Serve with the worker's settings until SIGTERM; HOST is not looked at."""
    uvloop.run(_serve(config.load(os.environ)))
    return 0


async def _serve(settings: config.Settings) -> None:
    parts = Parts(settings)
    lease = parts.lease
    async with (
        lease.held(release_seconds=limits.RELEASE_SECONDS),
        asyncio.TaskGroup() as side,
        running(side, "lease renewal", lease.keep()),
        Generation(lease, parts.store, settings, side=side, prepare=parts.prepare) as generation,
    ):
        await generation.begin()
        connection = connections.connect(parts.database)
        with connection.connection_context():
            store = Store(connection, generation, lease.epoch)
            await noop.serve(sys.modules[__name__], settings.port, store=store)
    parts.close()


if __name__ == "__main__":
    sys.exit(main())
