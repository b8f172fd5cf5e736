"""What the pages share: the service, the bucket, the subscription, the look, the jobs, and the settings they come from."""

from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from worker.config import Settings
from worker.console.jobs import Jobs
from worker.console.watch import Watch
from worker.errors import ConfigError, QueueMissing
from worker.operations.drill import CountedService
from worker.operations.identity import identity
from worker.operations.pubsub import Queue, subscription_name
from worker.operations.replay import FollowedService
from worker.operations.service_client import Service
from worker.replica.bucket import Bucket

_CHANGE_PATIENCE_SECONDS: Final = 10.0
"""How long a service that answers 503 is asked again for what a page waits for."""


class Context:
    """Everything that the pages read and ask. `async with` it while they are served.

    Args:
        settings: The worker's.
        environ: The environment variables: who the operator is, and which subscription is meant.
        url: The service's address.
        hosts: The values of `Host` that are the console's.
        queue: The subscription; by default as the variables say.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], *, url: str, hosts: list[str], queue: Queue | None = None
    ) -> None:
        self.settings, self.environ, self.url, self.hosts = settings, dict(environ), url, hosts
        self.store = settings.replica_url.rstrip("/")
        self.bucket = Bucket(settings.bucket, settings.prefix) if self.store else None
        self.queue = queue or _queue(settings)
        who = identity(environ)
        once = Service(url, who, store=self.store, patience=0)
        self.service = Service(url, who, store=self.store, patience=_CHANGE_PATIENCE_SECONDS)
        self.counted = CountedService(url, who, store=self.store)
        self.followed = FollowedService(url, who, store=self.store, patience=_CHANGE_PATIENCE_SECONDS)
        self.watch, self.jobs = Watch(once, url, self.bucket), Jobs()
        self._services = (once, self.service, self.counted, self.followed)

    def required_bucket(self) -> Bucket:
        """The bucket.

        Raises:
            ConfigError: There is none.
        """
        if self.bucket is None:
            raise ConfigError(
                "REPLICA_URL is not set, so there is no bucket to read; restore points are your database's own"
            )
        return self.bucket

    def exports(self) -> str:
        """What the commands on the pages expect in the environment."""
        values = {"REPLICA_URL": self.store, "SERVICE_URL": self.url, "SUBSCRIPTION": self.settings.subscription}
        return " ".join(f"{name}={value}" for name, value in values.items() if value)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.jobs.close()
        for service in self._services:
            await service.__aexit__()
        if self.bucket is not None:
            self.bucket.close()


def _queue(settings: Settings) -> Queue | None:
    try:
        return Queue(subscription_name(settings.subscription, settings.project)) if settings.subscription else None
    except QueueMissing:
        return None
