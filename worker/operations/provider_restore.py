"""After a restore by PostgreSQL's provider: from where messages must be delivered again, by what the older database lacks.

A provider restores into another database, and the one before it is usually still there. A message that only that one has a
receipt of was undone. Both are read in the order of their message ids, so that neither is held whole.
"""

from contextlib import closing
from datetime import UTC, datetime

import msgspec
import peewee

from worker.config.addresses import without_secrets
from worker.database import postgresql
from worker.database.copying import rows_of
from worker.database.models import Connection, Receipt, columns
from worker.database.postgresql import Server
from worker.errors import NotSeekable
from worker.operations.replay_point import MARGIN


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """What one database has and an earlier state of it has not: how many messages, and where their replay begins."""

    messages: int
    replay_from: datetime | None
    """A minute before the oldest of them was published; None if there are none."""


def missing(*, newer: Server, older: Server) -> Missing:
    """Compare the receipts of two databases.

    Args:
        newer: The database that the restore began from.
        older: The restored one, which is served now.

    Raises:
        NotSeekable: A database cannot be read, so no point is known.
    """
    bases = {server.url: server.connect() for server in (newer, older)}
    try:
        for url, base in bases.items():
            try:
                base.connect()
            except peewee.PeeweeException as error:
                raise NotSeekable(f"{without_secrets(url)} cannot be read: {error}; nothing was sought") from error
        try:
            count, oldest = _only_in(bases[newer.url], bases[older.url])
        except peewee.PeeweeException as error:
            raise NotSeekable(f"the two databases cannot be compared: {error}; nothing was sought") from error
    finally:
        for base in bases.values():
            postgresql.drop(base)
    return Missing(
        messages=count, replay_from=None if oldest is None else datetime.fromtimestamp(oldest / 1000, UTC) - MARGIN
    )


def _only_in(newer: Connection, older: Connection) -> tuple[int, int | None]:
    """How many receipts only the newer database has, and their oldest publish time, in milliseconds since the epoch."""
    names = columns(Receipt)
    message_id, publish_time = names.index("message_id"), names.index("publish_time")
    count, oldest = 0, None
    with newer.atomic(), older.atomic(), closing(rows_of(older, Receipt)) as others:
        other = next(others, None)
        for row in rows_of(newer, Receipt):
            while other is not None and other[message_id].encode() < row[message_id].encode():
                other = next(others, None)
            if other is None or other[message_id] != row[message_id]:
                count += 1
                oldest = row[publish_time] if oldest is None else min(oldest, row[publish_time])
    return count, oldest
