"""The store of many writers: one PostgreSQL, which replicates itself. Every instance serves as soon as it is connected.

    connect → fit to write here? → migrate, under a lock → join: an epoch → serve → … → leave

There is no lease and nothing to restore: what one instance may write, the database decides with each transaction. An outage
at the start is waited out; a later one answers 503, and the connection is made anew with the next group.

One instance at a time tidies up. It holds a lock of its session; if it dies, the server lets go of it, and another takes it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import peewee

from worker.config import Settings
from worker.config.addresses import without_secrets
from worker.config.limits import RELEASE_SECONDS
from worker.database import instances, postgresql
from worker.database.models import Connection
from worker.database.postgresql import PostgresqlEngine, Server
from worker.errors import Unfit
from worker.events.catalog import Catalog
from worker.ingest.transaction import Transaction
from worker.stores.store import PRUNE_INTERVAL_SECONDS, Life
from worker.tasks import running

T = TypeVar("T")

_RETRY_SECONDS: Final = 0.5
_RETRY_MAX_SECONDS: Final = 5.0
_SEEN_SECONDS: Final = 15.0
_APART_SECONDS_MAX: Final = 300.0
"""So far may this machine's clock be from the server's where rows are deleted by age."""

log = logging.getLogger(__name__)


class AtCommit:
    """A confirmation that has nothing to wait for: what PostgreSQL has committed is safe when COMMIT returns."""

    ready_at = 0.0

    async def confirm(self) -> None:
        """See `worker.ingest.confirmation.Confirmation`."""


class PostgresqlStore:
    """See `worker.stores.store.Store`. Only the event loop touches it; its connection belongs to its one thread."""

    ready_at_once = False
    """An instance that has never reached the database cannot be known to be worth traffic."""

    def __init__(
        self,
        settings: Settings,
        server: Server,
        engine: PostgresqlEngine,
        catalog: Catalog,
        *,
        holder: str,
        erased: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        self._settings, self._server, self._engine, self._catalog = settings, server, engine, catalog
        self._holder, self._erased = holder, erased
        self._connection = server.connect()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="instance")
        self._tidies = False  # whether the connection holds the lock of who tidies up
        self.epoch: int | None = None
        """The epoch of this life, while it serves."""

    def close(self) -> None:
        """Give back the connection and its thread."""
        self._thread.shutdown(wait=False)

    async def look(self) -> None:
        """See `Store.look`: a mistyped DATABASE_URL ends here, and a server that would lose what it has acknowledged."""
        try:
            await self._on_thread(self._fit)
        except peewee.PeeweeException as error:
            postgresql.refuse_unusable(error, self._settings.database_url)

    def claimed(self) -> contextlib.AbstractContextManager[None]:
        """See `Store.claimed`: it uses no file."""
        return contextlib.nullcontext()

    @contextlib.asynccontextmanager
    async def serving(self, side: asyncio.TaskGroup) -> AsyncIterator[Life]:
        """See `Store.serving`."""
        self.epoch = await self._begun()
        try:
            async with running(side, "instance", self._keep_seen(self.epoch)):
                yield Life(self._engine, AtCommit(), self.epoch)
        finally:
            epoch, self.epoch = self.epoch, None
            with contextlib.suppress(peewee.PeeweeException, TimeoutError):  # it is taken for dead a minute later
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._on_thread(self._with_connection, lambda database: instances.leave(database, epoch))

    @contextlib.asynccontextmanager
    async def upkeep(self, side: asyncio.TaskGroup) -> AsyncIterator[None]:
        """See `Store.upkeep`: instances whose receipts have expired."""
        async with running(side, "instances", self._forget_every(PRUNE_INTERVAL_SECONDS)):
            yield

    async def may_tidy(self) -> bool:
        """See `Store.may_tidy`."""
        try:
            return await self._on_thread(self._with_connection, self._may_tidy)
        except peewee.PeeweeException as error:
            log.warning("nothing is tidied up now: %s", error, extra={"action": "database.retry"})
            return False

    async def _begun(self) -> int:
        pause = _RETRY_SECONDS
        while True:
            try:
                return await self._on_thread(self._begin, await self._erased())
            except peewee.PeeweeException as error:
                postgresql.refuse_unusable(error, self._settings.database_url)
                log.warning("the database cannot be reached, trying again: %s", error, extra={"action": "database.retry"})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)

    def _begin(self, erased: Sequence[str]) -> int:
        """Everything between the first connection and the first message, on the thread."""
        version = self._fit()
        for name in postgresql.migrate(self._server, self._catalog):
            log.info("migration %s applied", name, extra={"action": "database.migrated"})
        if erased and (again := self._erase_again(erased)):
            log.info("%d subjects are erased again", again, extra={"action": "generation.erased"})
        epoch = self._with_connection(
            lambda database: instances.join(database, holder=self._holder, revision=self._settings.revision)
        )
        place = without_secrets(self._settings.database_url)
        log.info("joined %s, PostgreSQL %s, at epoch %d", place, version, epoch, extra={"action": "database.joined"})
        return epoch

    def _fit(self) -> str:
        """The server's version.

        Raises:
            Unfit: The server would lose what it has acknowledged.
        """
        found = self._with_connection(postgresql.Durability.of)
        if wrong := found.unsafe():
            raise Unfit(f"{without_secrets(self._settings.database_url)}: {wrong}")
        return found.version

    def _erase_again(self, subjects: Sequence[str]) -> int:
        """Erase whom the list names and the database does not know as erased: it was restored to an earlier time."""

        def work(database: Connection) -> int:
            opened = Transaction(database, self._catalog, 0, round(time.time() * 1000))
            missing = opened.not_erased(subjects)
            if missing:
                opened.erase_all(missing)
            return len(missing)

        engine = PostgresqlEngine(self._server)
        engine.open()
        try:
            return engine.run(work, alone=True)
        finally:
            engine.close()

    async def _keep_seen(self, epoch: int) -> None:
        while True:
            await asyncio.sleep(_SEEN_SECONDS)
            try:
                await self._on_thread(self._with_connection, lambda database: instances.live(database, epoch))
            except peewee.PeeweeException as error:
                log.warning("the database cannot be reached: %s", error, extra={"action": "database.retry"})

    async def _forget_every(self, seconds: float) -> None:
        while True:
            if await self.may_tidy():
                days = self._settings.receipt_days
                with contextlib.suppress(peewee.PeeweeException):  # an outage: at the next time
                    await self._on_thread(self._with_connection, partial(instances.forget, days=days))
            await asyncio.sleep(seconds)

    def _may_tidy(self, database: Connection) -> bool:
        if not self._tidies:
            lock = f"SELECT pg_try_advisory_lock({postgresql.LOCK}, {postgresql.HOUSEKEEPING})"
            self._tidies = bool(_one(database, lock))
        if not self._tidies:
            return False
        apart = abs(float(_one(database, "SELECT extract(epoch FROM clock_timestamp())")) - time.time())
        if apart > _APART_SECONDS_MAX:
            log.error(
                "nothing is deleted by age: this machine's clock and the database's are %d s apart; set the clock",
                apart,
                extra={"action": "retention.clock"},
            )
        return apart <= _APART_SECONDS_MAX

    def _with_connection(self, query: Callable[[Connection], T]) -> T:
        """Run a query on the thread's connection; after any error it is made anew, without the lock."""
        database = self._connection
        try:
            if database.is_closed():
                self._tidies = False
                database.connect()
                postgresql.limit(database, self._server.transaction_seconds)
            return query(database)
        except BaseException:
            self._tidies = False
            postgresql.drop(database)
            raise

    async def _on_thread(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def _one(database: Connection, text: str) -> Any:
    return database.execute_sql(text).fetchone()[0]  # type: ignore[no-untyped-call]
