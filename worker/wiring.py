"""The parts that exist once per process, made from the settings; supervisor.py gives them their life."""

import functools
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import worker
from worker.config import Settings
from worker.config.addresses import store_place
from worker.database import connections
from worker.database.engine import Reader
from worker.events.configured import catalog_of
from worker.ingest import erasure
from worker.ingest.bodies import Bodies, BodyStore, InRows
from worker.ingest.erasure import Erasure
from worker.ingest.http.access import Access
from worker.ingest.http.delivery_counts import Tally
from worker.ingest.http.tokens import TokenVerifier
from worker.ingest.intake import Intake
from worker.ingest.pull import PubSub, Pull
from worker.ingest.tables import Tables
from worker.lease.handover import Succession
from worker.lease.lease import Lease
from worker.replica import litestream
from worker.replica.bucket import Bucket
from worker.stores.sqlite import SqliteStore
from worker.stores.store import Store
from worker.telemetry.history import History
from worker.telemetry.metrics import Families, Metrics
from worker.telemetry.scrape import Scrape
from worker.telemetry.status import About, StatusPage
from worker.telemetry.trouble import Trouble

T = TypeVar("T")

log = logging.getLogger(__name__)


class Common:
    """What each process has, wherever its data lives. `home` is that place; see worker/stores/."""

    home: Store
    erasure: Erasure
    scrape: Scrape
    status: StatusPage

    def __init__(
        self, settings: Settings, holder: str, reader: Reader, bodies: BodyStore, waiting: Callable[[], None]
    ) -> None:
        self.settings, self.holder = settings, holder
        self.catalog = catalog_of(settings)
        self.intake = Intake(
            max_messages=settings.queue_max_messages,
            max_bytes=settings.queue_max_bytes,
            hold_seconds=settings.hold_limit_seconds,
            bodies=bodies,
            waiting=waiting,
        )
        self.tables = Tables(reader, self.intake)
        self.verifier = _verifier(settings)
        self.metrics = Metrics(hold_seconds=settings.hold_limit_seconds)
        self.metrics.unknown_fields = self.catalog.unknown_fields.counts
        self.tally = Tally()
        self.pull = self._pull()
        self.trouble = Trouble()
        self.history = History(self.metrics, lambda: self.intake.held_messages)

    def close(self) -> None:
        """Give back connections and threads."""
        if self.verifier is not None:
            self.verifier.close()

    def labels(self) -> dict[str, str]:
        """The labels of each log line: the revision and, while this process may write, its epoch."""
        return {"revision": self.settings.revision}

    def _pull(self) -> Pull | None:
        settings = self.settings
        if settings.delivery == "push":
            return None
        subscription = PubSub(settings.subscription_name, deadline_seconds=settings.ack_deadline_seconds)
        return Pull(
            subscription,
            self.intake,
            self.catalog,
            settings,
            self.tally.add,
            observer=self.metrics,
            counts=self.metrics.pulled,
        )

    @property
    def access(self) -> Access:
        """Who may do what."""
        operators = [address.strip() for address in self.settings.operators.split(",") if address.strip()]
        return Access(self.verifier, pusher=self.settings.push_service_account, operators=operators)

    def _status(
        self,
        epoch: Callable[[], int | None],
        lease: Lease | None = None,
        succession: Succession | None = None,
        database: Path | None = None,
    ) -> StatusPage:
        settings = self.settings
        about = About(
            version=worker.__version__,
            revision=settings.revision,
            instance=self.holder,
            engine="postgresql" if settings.many_writers else "sqlite",
            store=settings.store_name,
            database=database,
            messages_max=settings.queue_max_messages,
            bytes_max=settings.queue_max_bytes,
        )
        return StatusPage(
            about,
            self.metrics,
            self.history,
            self.trouble,
            self.intake,
            lease,
            epoch,
            lambda: None if succession is None else succession.successor,
            self.tables,
        )


class Parts(Common):
    """The parts of a process whose data lives in the bucket, whether or not it ever holds the lease."""

    def __init__(self, settings: Settings) -> None:
        version = connections.check_sqlite()
        holder = str(uuid.uuid4())
        self.store = Bucket(settings.bucket, settings.prefix)
        self.database = settings.database_path.resolve()
        litestream.find_binary(settings.litestream_bin)  # one that is missing ends the process here, and not at the lease
        self.succession = Succession(self.store, settings, holder=holder)
        self.lease = Lease(self.store, settings, holder=holder, waiting=self.succession)
        self._body_store = Bucket(settings.bucket, settings.prefix)  # with threads of its own: a lease read never waits
        self.bodies = Bodies(self._body_store, self.lease)
        super().__init__(settings, holder, connections.Reader(self.database), self.bodies, self.succession.message_received)
        self.erasure = Erasure(self.store, self.bodies, self.intake.change, settings.lease_read_timeout_seconds)
        self.prepare = functools.partial(erasure.prepare, self.store, self.catalog, timeout=settings.fetch_timeout_seconds)
        self.home = SqliteStore(
            settings,
            bucket=self.store,
            file=self.database,
            lease=self.lease,
            succession=self.succession,
            bodies=self.bodies,
            tables=self.tables,
            prepare=self.prepare,
            metrics=self.metrics,
        )
        self.status = self._status(lambda: self.lease.held_epoch, self.lease, self.succession, self.database)
        info = {"revision": settings.revision, "sqlite": version}
        self.scrape = Scrape(
            Families(self.metrics, self.intake, self.lease, self.database, info),
            self.metrics,
            self.tables,
            self.store,
            litestream=settings.litestream_metrics_address,
        )
        log.info("starting with SQLite %s", version, extra={"action": "worker.starting"})

    def close(self) -> None:
        """See `Common.close`."""
        self.store.close()
        self._body_store.close()
        super().close()

    def labels(self) -> dict[str, str]:
        """See `Common.labels`; with its generation."""
        labels = super().labels()
        if self.lease.held_epoch is not None:
            labels |= {"epoch": str(self.lease.held_epoch), "generation": self.lease.live or "none"}
        return labels


class PostgresqlParts(Common):
    """The parts of a process whose data lives in PostgreSQL."""

    def __init__(self, settings: Settings) -> None:
        from worker.database.postgresql import PostgresqlEngine, PostgresqlReader, Server  # a driver that SQLite is without
        from worker.stores.postgresql import PostgresqlStore

        server = Server.of(settings)
        self._reader = PostgresqlReader(server)
        super().__init__(settings, str(uuid.uuid4()), self._reader, InRows(), lambda: None)
        self._erased = Bucket(*store_place(settings.erased_url)) if settings.erased_url else None
        engine = PostgresqlEngine(server)
        self.writing = PostgresqlStore(
            settings, server, engine, self.catalog, holder=self.holder, erased=self._erased_subjects
        )
        self.home = self.writing
        self.status = self._status(lambda: self.writing.epoch)
        self.erasure = Erasure(self._erased, InRows(), self.intake.change, settings.lease_read_timeout_seconds)
        self.scrape = Scrape(
            Families(self.metrics, self.intake, None, None, {"revision": settings.revision}, engine),
            self.metrics,
            self.tables,
            None,
            litestream="off",
        )
        log.info("starting with PostgreSQL", extra={"action": "worker.starting"})

    def close(self) -> None:
        """See `Common.close`."""
        self.writing.close()
        self._reader.close()
        if self._erased is not None:
            self._erased.close()
        super().close()

    def labels(self) -> dict[str, str]:
        """See `Common.labels`."""
        labels = super().labels()
        return labels if self.writing.epoch is None else labels | {"epoch": str(self.writing.epoch)}

    async def _erased_subjects(self) -> list[str]:
        if self._erased is None:
            return []
        return await erasure.listed(self._erased, timeout=self.settings.fetch_timeout_seconds)


def parts_of(settings: Settings) -> Parts | PostgresqlParts:
    """The parts of a process, as the settings say where its data lives."""
    return PostgresqlParts(settings) if settings.many_writers else Parts(settings)


def _verifier(settings: Settings) -> TokenVerifier | None:
    if not settings.push_audience:
        return None
    return TokenVerifier(
        audience=settings.push_audience,
        certs_url=settings.oidc_certs_url,
        verified_by_platform=settings.tokens_verified_by == "platform",
        waiting_max=settings.queue_max_messages,
    )
