"""The parts that exist once per process, made from the settings; supervisor.py gives them their life."""

import asyncio
import functools
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import worker
from worker.config import Settings
from worker.database import connections
from worker.database.models import Connection
from worker.errors import Refused
from worker.ingest import erasure
from worker.ingest.bodies import Bodies
from worker.ingest.erasure import Erasure
from worker.ingest.http.access import Access
from worker.ingest.http.tokens import TokenVerifier
from worker.ingest.intake import Intake
from worker.ingest.transaction import Transaction
from worker.lease.handover import Succession, SuccessionTiming
from worker.lease.lease import Lease, Timing
from worker.replica import litestream
from worker.replica.bucket import Bucket
from worker.telemetry.families import Families
from worker.telemetry.history import History
from worker.telemetry.metrics import Metrics
from worker.telemetry.scrape import Scrape
from worker.telemetry.status import About, StatusPage
from worker.telemetry.trouble import Trouble

T = TypeVar("T")

log = logging.getLogger(__name__)


class Parts:
    """The parts that exist once per process, whether or not it ever holds the lease."""

    def __init__(self, settings: Settings) -> None:
        version = connections.check_sqlite()
        self.settings = settings
        self.store = Bucket(settings.bucket, settings.prefix)
        self.options = self._options()
        holder = str(uuid.uuid4())
        self.succession = self._succession(holder)
        self.lease = self._lease(holder)
        self._body_store = Bucket(settings.bucket, settings.prefix)  # with threads of its own: a lease read never waits
        self.bodies = Bodies(self._body_store, self.lease)
        self.intake = Intake(
            max_messages=settings.queue_max_messages,
            max_bytes=settings.queue_max_bytes,
            hold_seconds=settings.hold_limit_seconds,
            bodies=self.bodies,
            waiting=self.succession.message_received,
        )
        self.tables = Tables(
            connections.Reader(self.options.database, busy_timeout_seconds=settings.busy_timeout_seconds), self.intake
        )
        self.verifier = _verifier(settings)
        self.erasure = Erasure(self.store, self.bodies, self.intake.change, settings.lease_read_timeout_seconds)
        self.prepare = functools.partial(erasure.repeat, self.store, timeout=settings.fetch_timeout_seconds)
        self.metrics = Metrics(hold_seconds=settings.hold_limit_seconds)
        info = {"revision": settings.revision, "sqlite": version}
        self.scrape = Scrape(
            Families(self.metrics, self.intake, self.lease, self.options.database, info),
            self.metrics,
            self.tables,
            self.store,
            litestream=settings.litestream_metrics_address,
            timeout_seconds=settings.metrics_timeout_seconds,
            refresh_seconds=settings.metrics_refresh_seconds,
        )
        self.trouble = Trouble()
        self.history = History(self.metrics, lambda: self.intake.held_messages)
        self.status = self._status(holder)
        log.info("starting with SQLite %s", version, extra={"action": "worker.starting"})

    def close(self) -> None:
        """Give back connections and threads."""
        self.store.close()
        self._body_store.close()
        if self.verifier is not None:
            self.verifier.close()

    def labels(self) -> dict[str, str]:
        """The labels of each log line: the revision and, while this process is the writer, epoch and generation."""
        labels = {"revision": self.settings.revision}
        if self.lease.held_epoch is not None:
            labels |= {"epoch": str(self.lease.held_epoch), "generation": self.lease.live or "none"}
        return labels

    @property
    def access(self) -> Access:
        """Who may do what."""
        operators = [address.strip() for address in self.settings.operators.split(",") if address.strip()]
        return Access(self.verifier, pusher=self.settings.push_service_account, operators=operators)

    def _status(self, holder: str) -> StatusPage:
        settings = self.settings
        about = About(
            version=worker.__version__,
            revision=settings.revision,
            instance=holder,
            engine="sqlite",
            store=settings.replica_url.rstrip("/"),
            database=self.options.database,
            messages_max=settings.queue_max_messages,
            bytes_max=settings.queue_max_bytes,
        )
        return StatusPage(
            about,
            self.metrics,
            self.history,
            self.trouble,
            self.intake,
            self.lease,
            lambda: self.succession.successor,
            self.tables,
            timeout_seconds=settings.metrics_timeout_seconds,
        )

    def _options(self) -> litestream.Options:
        settings = self.settings
        return litestream.Options(
            binary=litestream.find_binary(settings.litestream_bin),
            config=settings.litestream_config,
            database=settings.database_path.resolve(),
            metrics_address=settings.litestream_metrics_address,
            log_level="warn" if settings.log_level != "debug" else "info",
            start_seconds=settings.litestream_start_seconds,
            starts_max=settings.litestream_starts_max,
            silent_max=settings.litestream_silent_max,
            retention_days=settings.retention_days,
        )

    def _succession(self, holder: str) -> Succession:
        settings = self.settings
        timing = SuccessionTiming(
            poll=settings.successor_poll_seconds,
            tenure=settings.tenure_min_seconds,
            fresh=settings.successor_fresh_seconds,
            timeout=settings.lease_read_timeout_seconds,
        )
        return Succession(self.store, holder=holder, revision=settings.revision, timing=timing)

    def _lease(self, holder: str) -> Lease:
        settings = self.settings
        timing = Timing(
            ttl=settings.lease_ttl_seconds,
            renew=settings.lease_renew_seconds,
            poll=settings.lease_poll_seconds,
            timeout=settings.lease_read_timeout_seconds,
        )
        return Lease(self.store, holder=holder, revision=settings.revision, timing=timing, waiting=self.succession)


@dataclass(slots=True)
class Tables:
    """Reads and changes the database while there is one."""

    reader: connections.Reader
    intake: Intake
    open: bool = False

    async def user(self, user_id: int) -> dict[str, Any] | None:
        """The user's row, or None.

        Raises:
            Refused: This instance has no database: it stands by, or stops.
        """
        return await asyncio.to_thread(self._opened().user, user_id)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a reading connection.

        Raises:
            Refused: As for `user`.
        """
        return await asyncio.to_thread(self._opened().read, query)

    async def change(self, apply: Callable[[Transaction], T]) -> T:
        """Make a change, and return its result once it is confirmed; see `Intake.change`."""
        return await self.intake.change(apply)

    def _opened(self) -> connections.Reader:
        if not self.open:
            raise Refused("this instance is not serving yet; ask again", reason="standby")
        return self.reader


def _verifier(settings: Settings) -> TokenVerifier | None:
    if not settings.push_audience:
        return None
    return TokenVerifier(
        audience=settings.push_audience,
        certs_url=settings.oidc_certs_url,
        refresh_min_seconds=settings.oidc_refresh_min_seconds,
        timeout_seconds=settings.oidc_timeout_seconds,
        tokens_max=settings.oidc_tokens_max,
        verified_by_platform=settings.tokens_verified_by == "platform",
        waiting_max=settings.queue_max_messages,
    )
