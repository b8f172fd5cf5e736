"""`worker move` and `worker export`: a store from the bucket into PostgreSQL, and back into a file, each with its proof.

    move     note the time → restore the newest state → migrate the target → copy, read back, compare → say how to switch
    export   one snapshot of PostgreSQL → a new SQLite file → read back, compare

A move changes nothing in the bucket, and the service may go on serving: what it takes after that time is replayed after the
switch. The copy is one transaction: a move that is broken off leaves an empty target, and can simply be made again.
"""

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import peewee

from worker.bucket import Objects
from worker.config import Settings
from worker.config.addresses import without_secrets
from worker.database import connections, copying, instances, postgresql, schema
from worker.database.copying import Copied, Row
from worker.database.models import Connection, Receipt, Rejection, columns
from worker.database.postgresql import Server
from worker.errors import MoveFailed
from worker.events.catalog import Catalog
from worker.operations.restore import restore
from worker.replica.litestream import find_binary
from worker.replica.restoring import Wanted

_MARGIN: Final = timedelta(minutes=10)
"""A replay begins so long before the restored state's time: messages that were published then may be unconfirmed still."""
_BODY_SECONDS: Final = 20.0


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A store that was copied: each table's rows and digest, and the time from which messages are to be replayed."""

    to: str
    tables: list[Copied]
    replay_from: datetime | None
    seconds: float


async def move(settings: Settings, store: Objects, catalog: Catalog, server: Server, *, say: Callable[[str], None]) -> Moved:
    """Copy the newest state of the bucket into an empty PostgreSQL database, and prove it.

    Raises:
        MoveFailed: The target holds rows already, or the copy is not the same; nothing was kept.
        StoreError: The bucket did not answer, or refused.
        NotInReplica: The bucket does not hold its newest state.
        RestoreFailed: That state could not be restored.
    """
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="solowriter-move-") as scratch:
        file = Path(scratch, "users.db")
        say("1/4 restoring the newest state of the bucket")
        restored = await restore(
            store,
            catalog,
            Wanted(),
            file,
            binary=find_binary(settings.litestream_bin),
            seconds=settings.restore_timeout_seconds,
            request_seconds=settings.fetch_timeout_seconds,
            say=lambda line: say(f"    {line}"),
        )
        await asyncio.to_thread(schema.migrate, file, catalog)
        say(f"2/4 making the tables of {without_secrets(server.url)}")
        try:
            await asyncio.to_thread(postgresql.migrate, server, catalog)
            say("3/4 copying, in one transaction")
            tables = await asyncio.to_thread(_copy, file, server, catalog, _reader(store), say)
        except peewee.PeeweeException as error:
            postgresql.refuse_unusable(error, server.url)
            raise MoveFailed(f"PostgreSQL did not take the copy, and nothing was kept: {error}") from error
    say("4/4 read back: every table has the same rows and the same digest")
    seconds = (datetime.now(UTC) - began).total_seconds()
    return Moved(
        to=without_secrets(server.url), tables=tables, replay_from=restored.time - _MARGIN, seconds=round(seconds, 3)
    )


async def export(catalog: Catalog, server: Server, output: Path, *, say: Callable[[str], None]) -> Moved:
    """Copy one state of a PostgreSQL database into a new SQLite file, and prove it.

    Raises:
        MoveFailed: The file is there already, or the copy is not the same; there is no file then.
    """
    began = datetime.now(UTC)
    if output.exists() or output.is_symlink() or not output.parent.is_dir():
        raise MoveFailed(f"{output} is there already, or its folder is not; name a new file in a folder that exists")
    with tempfile.TemporaryDirectory(prefix=".exported-", dir=output.parent) as scratch:
        file = Path(scratch, "exported.db")
        await asyncio.to_thread(schema.migrate, file, catalog)
        say(f"copying one state of {without_secrets(server.url)}")
        try:
            tables = await asyncio.to_thread(_export, file, server, catalog, say)
        except peewee.PeeweeException as error:
            postgresql.refuse_unusable(error, server.url)
            raise MoveFailed(f"the copy broke off, and there is no file: {error}") from error
        await asyncio.to_thread(connections.close_journal, file)
        os.link(file, output)
    seconds = (datetime.now(UTC) - began).total_seconds()
    return Moved(to=str(output), tables=tables, replay_from=None, seconds=round(seconds, 3))


def server_at(settings: Settings, url: str, password_file: str | None) -> Server:
    """The PostgreSQL server at an address, as the settings' other limits have it."""
    target = dataclasses.replace(settings, replica_url="", database_url=url, database_password_file=password_file or "")
    return Server.of(target)


def _reader(store: Objects) -> Callable[[str], bytes]:
    """What reads the bytes of a large rejected message, an object of the bucket; another thread than the loop's calls it.

    One is read at a time, when its row is copied: all of them may be more than fits into memory.
    """
    loop = asyncio.get_running_loop()

    def read(name: str) -> bytes:
        stored = asyncio.run_coroutine_threadsafe(store.read(name, timeout=_BODY_SECONDS), loop).result()
        return b"" if stored is None else stored[0]

    return read


def _copy(
    file: Path, server: Server, catalog: Catalog, body: Callable[[str], bytes], say: Callable[[str], None]
) -> list[Copied]:
    source, target = connections.connect(file, read_only=True), server.connect()
    try:
        target.connect()
        with source.connection_context(), source.atomic(), target.atomic():
            _refuse_rows(target, catalog)
            tables = _each(source, target, catalog, say, {Rejection: _with_bytes(body)})
            newest = Receipt.select(peewee.fn.MAX(Receipt.epoch)).bind(source).scalar()
            instances.begin_after(target, int(newest or 1))
        return tables
    finally:
        postgresql.drop(target)


def _export(file: Path, server: Server, catalog: Catalog, say: Callable[[str], None]) -> list[Copied]:
    source, target = server.connect(), connections.connect(file)
    try:
        source.connect()
        source.beginning = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with source.atomic(), target.connection_context(), target.atomic():
            return _each(source, target, catalog, say, {})
    finally:
        postgresql.drop(source)


def _each(
    source: Connection,
    target: Connection,
    catalog: Catalog,
    say: Callable[[str], None],
    changes: Mapping[Any, Callable[[Row], Row]],
) -> list[Copied]:
    tables = []
    for model in copying.models(catalog):
        copied = copying.copy_table(source, target, model, changes.get(model, lambda row: row))
        say(f"    {copied.table}: {copied.rows:,} rows, {copied.digest[:16]}")
        tables.append(copied)
    return tables


def _refuse_rows(target: Connection, catalog: Catalog) -> None:
    for model in copying.models(catalog):
        if model.select().limit(1).bind(target).exists():
            table = model._meta.table_name
            raise MoveFailed(
                f"table {table} of the target holds rows already; move into an empty database. Nothing was changed"
            )


def _with_bytes(read: Callable[[str], bytes]) -> Callable[[Row], Row]:
    """Put the bytes of a large rejected message into its row: PostgreSQL holds them there."""
    names: Sequence[str] = columns(Rejection)
    data, body = names.index("data"), names.index("body")

    def change(row: Row) -> Row:
        if row[body] is None:
            return row
        changed = list(row)
        changed[data], changed[body] = read(row[body]), None
        return tuple(changed)

    return change
