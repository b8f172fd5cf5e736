"""Pub/Sub's side of going back in time, and the worker's only file that knows it: snapshots, and seeking a subscription.

Google's client blocks, so each call runs on a thread; its retries are off, so that the caller sees each doubt: a creation
whose answer was lost may have happened. The client honours PUBSUB_EMULATOR_HOST. What was learnt of both:

- A snapshot holds what is unacknowledged when its creation ends, and everything published later. It expires after seven
  days less the age of the oldest message in it, so that its expiry tells that age. Source: Pub/Sub documentation, "Replay
  and purge messages with Seek"; REST reference, projects.snapshots.
- Seeking to a time marks every retained message published before it as acknowledged, one that was never delivered as
  well, and every later one as unacknowledged. Source: as above, "Seek to a timestamp".
- The emulator seeks no ordered subscription to a time, ignores a snapshot's labels, and does not tell a topic's retention.
  Seen: emulator 0.8.20.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar

import google.auth.exceptions
import msgspec
from google.api_core import exceptions as api

from worker.errors import NotSeekable, QueueDenied, QueueMissing, QueueRefused, QueueUnavailable

SNAPSHOT_DAYS: Final = 7
"""A snapshot never lives longer."""
_ONCE: Final[Mapping[str, Any]] = {"retry": None, "timeout": 30.0}
"""How each request is made: at once or not at all, and no longer than these seconds."""

T = TypeVar("T")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as Pub/Sub tells of it. `name` is full: projects/P/snapshots/S."""

    name: str
    topic: str
    expires: datetime

    @property
    def oldest(self) -> datetime:
        """When the oldest message that was unacknowledged then was published; when it was made, if there was none."""
        return self.expires - timedelta(days=SNAPSHOT_DAYS)


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that a subscription can give back. `topic_retention` is zero when its topic retains nothing."""

    name: str
    topic: str
    retains_acknowledged: bool
    retention: timedelta
    topic_retention: timedelta
    ordered: bool

    @property
    def reach(self) -> timedelta | None:
        """How far back a seek to a time brings acknowledged messages; None when it brings none."""
        own = self.retention if self.retains_acknowledged else timedelta()
        return max(own, self.topic_retention) or None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How a subscription delivers: what the worker's settings and promises expect of it.

    `audience` and `pusher` are empty when it pushes without a token. `expires_after` is zero for never, and None where that
    is not told: the emulator tells it only if it was given when the subscription was made.
    """

    topic: str
    detached: bool
    endpoint: str
    audience: str
    pusher: str
    body: Literal["wrapped", "with metadata", "bare"]
    """How a message is pushed: as JSON, or as its data with its metadata in headers, or as its data alone."""
    ack_deadline_seconds: int
    backoff: tuple[timedelta, timedelta] | None
    retains_acknowledged: bool
    retention: timedelta
    topic_retention: timedelta
    expires_after: timedelta | None
    dead_letter_topic: str
    delivery_attempts_max: int


class Queue:
    """One project's snapshots and one subscription of it. Every method may raise `QueueUnavailable` or `QueueDenied`.

    Args:
        subscription: Its full name, projects/P/subscriptions/S.
    """

    def __init__(self, subscription: str) -> None:
        self.subscription = subscription
        self._client: Any = None  # made on first use, on a thread: the import alone takes a second

    def __str__(self) -> str:
        return self.subscription

    @property
    def project(self) -> str:
        """Its project's full name, projects/P."""
        return self.subscription.rpartition("/subscriptions/")[0]

    async def look(self) -> Subscription:
        """The subscription's settings; `QueueMissing` when there is none."""

        def ask() -> Subscription:
            found = self._subscriber().get_subscription(subscription=self.subscription, **_ONCE)
            return Subscription(
                name=found.name,
                topic=found.topic,
                retains_acknowledged=found.retain_acked_messages,
                retention=found.message_retention_duration or timedelta(),
                topic_retention=found.topic_message_retention_duration or timedelta(),
                ordered=found.enable_message_ordering,
            )

        return await self._run(ask, f"look at {self.subscription}")

    async def delivery(self) -> Delivery:
        """How the subscription delivers; `QueueMissing` when there is none."""

        def ask() -> Delivery:
            return _delivery(self._subscriber().get_subscription(subscription=self.subscription, **_ONCE))

        return await self._run(ask, f"look at {self.subscription}")

    async def create(self, name: str) -> Snapshot:
        """Make a snapshot of the subscription under this full name.

        Raises:
            QueueRefused: There is one of that name, the project has 5,000, or its backlog is nearly seven days old.
            QueueMissing: There is no such subscription.
            QueueUnavailable: It is not known whether it was made.
        """

        def ask() -> Snapshot:
            request = {"name": name, "subscription": self.subscription}
            return _snapshot(self._subscriber().create_snapshot(request=request, **_ONCE))

        return await self._run(ask, f"create {name}")

    async def get(self, name: str) -> Snapshot | None:
        """The snapshot of this full name, or None."""

        def ask() -> Snapshot | None:
            try:
                return _snapshot(self._subscriber().get_snapshot(snapshot=name, **_ONCE))
            except api.NotFound:
                return None

        return await self._run(ask, f"look at {name}")

    async def snapshots(self, prefix: str) -> list[Snapshot]:
        """The snapshots whose full names begin so, in order of their names."""

        def ask() -> list[Snapshot]:
            found = self._subscriber().list_snapshots(project=self.project, **_ONCE)
            return sorted((_snapshot(each) for each in found if each.name.startswith(prefix)), key=lambda each: each.name)

        return await self._run(ask, f"list the snapshots of {self.project}")

    async def delete(self, name: str) -> None:
        """Delete the snapshot of this full name; one that is not there is fine."""

        def ask() -> None:
            try:
                self._subscriber().delete_snapshot(snapshot=name, **_ONCE)
            except api.NotFound:
                return

        await self._run(ask, f"delete {name}")

    async def seek(self, to: datetime | str) -> None:
        """Seek the subscription to a time, or to the snapshot of a full name. Repeating it is harmless (INV-3).

        Raises:
            NotSeekable: It cannot be sought there.
            QueueMissing: There is no such subscription or snapshot.
            QueueUnavailable: It is not known whether it was sought.
        """

        def ask() -> None:
            target = {"snapshot": to} if isinstance(to, str) else {"time": to}
            self._subscriber().seek(request={"subscription": self.subscription, **target}, **_ONCE)

        await self._run(ask, f"seek {self.subscription}")

    async def _run(self, request: Callable[[], T], what: str) -> T:
        return await asyncio.to_thread(partial(_translated, request, what))

    def _subscriber(self) -> Any:
        if self._client is None:
            from google.cloud import pubsub_v1  # it takes a second, and most commands do without

            self._client = pubsub_v1.SubscriberClient()
        return self._client


def subscription_name(text: str, project: str) -> str:
    """The full name of a subscription given as a short id or in full.

    Raises:
        QueueMissing: Neither is given, or the project of a short id is not.
    """
    parts = text.split("/")
    if len(parts) == 4 and parts[0] == "projects" and parts[2] == "subscriptions" and parts[1] and parts[3]:
        return text
    if text and len(parts) == 1 and project:
        return f"projects/{project}/subscriptions/{text}"
    raise QueueMissing(
        "which subscription is not said: give --subscription or SUBSCRIPTION as projects/PROJECT/subscriptions/ID, "
        "or as an id with GOOGLE_CLOUD_PROJECT"
    )


def _snapshot(found: Any) -> Snapshot:
    expires = datetime.fromtimestamp(found.expire_time.timestamp(), UTC)  # a plain one: Google's own cannot be encoded
    return Snapshot(name=found.name, topic=found.topic, expires=expires)


def _delivery(found: Any) -> Delivery:
    push, token, retry = found.push_config, found.push_config.oidc_token, found.retry_policy
    return Delivery(
        topic=found.topic,
        detached=found.detached,
        endpoint=push.push_endpoint,
        audience=token.audience or (push.push_endpoint if token.service_account_email else ""),  # its default
        pusher=token.service_account_email,
        body="wrapped" if "no_wrapper" not in push else "with metadata" if push.no_wrapper.write_metadata else "bare",
        ack_deadline_seconds=found.ack_deadline_seconds,
        backoff=(retry.minimum_backoff, retry.maximum_backoff) if "retry_policy" in found else None,
        retains_acknowledged=found.retain_acked_messages,
        retention=found.message_retention_duration or timedelta(),
        topic_retention=found.topic_message_retention_duration or timedelta(),
        expires_after=(found.expiration_policy.ttl or timedelta()) if "expiration_policy" in found else None,
        dead_letter_topic=found.dead_letter_policy.dead_letter_topic,
        delivery_attempts_max=found.dead_letter_policy.max_delivery_attempts,
    )


def _translated(request: Callable[[], T], what: str) -> T:
    with _translate(what):
        return request()


@contextmanager
def _translate(what: str) -> Iterator[None]:
    try:
        yield
    except api.NotFound as error:
        raise QueueMissing(
            f"{what}: {error.message}; look at `gcloud pubsub subscriptions list` and `gcloud pubsub snapshots list`: "
            "a snapshot expires after seven days at most"
        ) from error
    except (api.Unauthorized, api.Forbidden) as error:
        raise QueueDenied(
            f"{what}: {error.message}; give these credentials roles/pubsub.editor on the project, or a role with the "
            "permissions of snapshots and pubsub.subscriptions.consume"
        ) from error
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise QueueDenied(f"{what}: no credentials; run `gcloud auth application-default login` here") from error
    except api.MethodNotImplemented as error:
        raise NotSeekable(
            f"{what}: not implemented here; the emulator seeks no subscription with ordering to a time: use --snapshot"
        ) from error
    except (api.FailedPrecondition, api.InvalidArgument) as error:
        if what.startswith("seek "):
            raise NotSeekable(f"{what}: {error.message}; choose another snapshot or subscription") from error
        raise QueueRefused(f"{what}: {error.message}; correct what it names") from error
    except api.AlreadyExists as error:
        raise QueueRefused(f"{what}: there is a snapshot of that name; choose another with --name") from error
    except api.ResourceExhausted as error:
        raise QueueRefused(
            f"{what}: {error.message}; a project holds 5,000 snapshots: delete some with `worker checkpoint prune`, or wait"
        ) from error
    except (api.GoogleAPICallError, api.RetryError, google.auth.exceptions.GoogleAuthError) as error:
        place = os.environ.get("PUBSUB_EMULATOR_HOST") or "Pub/Sub"
        raise QueueUnavailable(
            f"{what}: no answer from {place} ({type(error).__name__}); it is not known whether it was done: try again"
        ) from error
