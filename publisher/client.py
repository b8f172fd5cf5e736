"""Publishes through Pub/Sub.

Batching, retries and flow control are google-cloud-pubsub's; this file sets their bounds and translates its
errors, and is the only one that knows them. Google's client honours PUBSUB_EMULATOR_HOST by itself.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final, Self

import grpc  # type: ignore[import-untyped]  # google's stubs are a package of their own
from google.api_core import exceptions as google_errors
from google.api_core.retry import Retry, if_exception_type
from google.api_core.timeout import ConstantTimeout
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import pubsub_v1
from google.cloud.pubsub_v1.publisher.exceptions import (  # type: ignore[import-untyped]  # as above
    MessageTooLargeError,
)
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from publisher import settings
from publisher.errors import (
    DeliveryError,
    NotConfirmedError,
    NotPermittedError,
    RefusedError,
    TopicNotFoundError,
    TopicUnusableError,
    UnreachableError,
)
from publisher.message import Message
from publisher.settings import Limits
from publisher.sink import OpenFutures, settle

_RETRIED: Final = (
    google_errors.Aborted,
    google_errors.Cancelled,
    google_errors.DeadlineExceeded,
    google_errors.InternalServerError,
    google_errors.ResourceExhausted,
    google_errors.ServiceUnavailable,
    google_errors.Unknown,
)
_RETRY_INITIAL_SECONDS: Final = 0.1
_RETRY_MAXIMUM_SECONDS: Final = 10.0
_ERROR_TEXT_CHARACTERS: Final = 300
_RECONNECT: Final = ("grpc.max_reconnect_backoff_ms", int(settings.RECONNECT_MAXIMUM_SECONDS * 1000))


class Publisher:
    """A `Sink` that publishes to a Pub/Sub topic.

    Args:
        topic: full name, `projects/P/topics/T`.
        limits: bounds of batches, retries and what is in flight.
        traced: Google's client makes a span for each message, and names it in the message's attributes.

    Raises:
        NotPermittedError: there are no credentials on this machine.
    """

    def __init__(self, topic: str, limits: Limits | None = None, *, traced: bool = False) -> None:
        self._topic, self._traced = topic, traced
        self._limits = limits or Limits()
        self._open = OpenFutures()
        self._closed = False  # only the thread that owns the publisher touches this
        try:
            self._batches = self._client(settings.BATCH_MESSAGES, transport=_Transport)
            # Shares the connection. Takes what has to be published alone, see _answered.
            self._singles = self._client(1, transport=self._batches.transport)
        except DefaultCredentialsError as error:
            raise NotPermittedError(
                "no Google credentials on this machine: run `gcloud auth application-default login`, "
                "or set PUBSUB_EMULATOR_HOST to use the emulator"
            ) from error

    def __repr__(self) -> str:
        return f"<Publisher {self._topic}: {len(self._open)} in flight>"

    @property
    def capacity(self) -> int:
        """How many messages may be in flight before `publish` blocks."""
        return self._limits.in_flight_messages

    @property
    def patience(self) -> float:
        """Seconds after which every future is settled: a message may be sent twice, see `_answered`."""
        return 2 * (self._limits.give_up_after + self._limits.attempt)

    def publish(self, message: Message) -> Future[str]:
        """Publish one message; see `Sink.publish`."""
        data, attributes = message.data, message.attributes
        future = self._open.new()
        try:
            self._send(self._batches, data, attributes, future)
        except BaseException as error:
            settle(future, self._translate(error))
            if not isinstance(error, MessageTooLargeError):
                raise
        return future

    def close(self, timeout: float | None = None) -> None:
        """Send what waits for company, then wait for the answers; see `Sink.close`."""
        if self._closed:
            return
        self._closed = True
        self._batches.stop()
        abandoned = self._open.abandon(self.patience if timeout is None else timeout)
        self._singles.stop()
        if not abandoned:
            # Otherwise the client's threads may be between two attempts, and would die of a closed connection.
            self._batches.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(timeout=None if kind is None else 0.0)

    def _client(self, batch_messages: int, **options: Any) -> Any:
        limits = self._limits
        retry = Retry(
            predicate=if_exception_type(*_RETRIED),
            initial=_RETRY_INITIAL_SECONDS,
            maximum=_RETRY_MAXIMUM_SECONDS,
            timeout=limits.give_up_after,
        )
        types = pubsub_v1.types
        flow_control = types.PublishFlowControl(
            message_limit=limits.in_flight_messages,
            byte_limit=limits.in_flight_bytes,
            limit_exceeded_behavior=types.LimitExceededBehavior.BLOCK,
        )
        return pubsub_v1.PublisherClient(
            batch_settings=types.BatchSettings(
                max_messages=batch_messages,
                max_bytes=settings.BATCH_BYTES,
                max_latency=settings.BATCH_SECONDS,
            ),
            publisher_options=types.PublisherOptions(
                flow_control=flow_control,
                retry=retry,
                timeout=ConstantTimeout(min(limits.attempt, limits.give_up_after)),  # type: ignore[no-untyped-call]  # google's
                enable_open_telemetry_tracing=self._traced,
            ),
            **options,
        )

    def _send(self, client: Any, data: bytes, attributes: dict[str, str], future: Future[str]) -> None:
        alone = client is self._singles
        answer = client.publish(self._topic, data, **attributes)
        answer.add_done_callback(lambda done: self._answered(done, data, attributes, future, alone))

    def _answered(self, answer: Any, data: bytes, attributes: dict[str, str], future: Future[str], alone: bool) -> None:
        error = answer.exception()
        try:
            if error is None:
                settle(future, answer.result())
            elif isinstance(error, google_errors.InvalidArgument) and not alone:
                # Pub/Sub refuses a whole batch for one message that the topic's schema does not take.
                self._send(self._singles, data, attributes, future)
            else:
                settle(future, self._translate(error))
        except Exception as unsent:  # the sink was closed meanwhile
            settle(future, self._translate(unsent))

    def _translate(self, error: BaseException) -> DeliveryError:
        return translate(error, self._topic, self._limits.give_up_after)


class _Transport(PublisherGrpcTransport):
    """Google's transport, which finds Pub/Sub again soon after an outage; see `settings.RECONNECT_MAXIMUM_SECONDS`."""

    def __init__(self, *, channel: Any = None, **arguments: Any) -> None:
        # The client gives a channel for the emulator only; nothing has been sent over it yet.
        emulated = grpc.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"], options=[_RECONNECT]) if channel else None
        super().__init__(channel=emulated or self._channel, **arguments)

    def _channel(self, host: str, *, options: Sequence[tuple[str, int]], **arguments: Any) -> Any:
        return self.create_channel(host, options=[*options, _RECONNECT], **arguments)


def translate(error: BaseException, topic: str, give_up_after: float) -> DeliveryError:
    """Return what an error of Google's client means to the operator.

    Args:
        error: what publishing raised.
        topic: full name of the topic.
        give_up_after: the time it was retried, in seconds.
    """
    if isinstance(error, google_errors.RetryError) and error.cause is not None:
        error = error.cause
    text = str(getattr(error, "message", error))[:_ERROR_TEXT_CHARACTERS]
    if isinstance(error, google_errors.NotFound):
        return TopicNotFoundError(
            f"topic {topic} does not exist: create it with `gcloud pubsub topics create {topic}`, "
            "or correct TOPIC and GOOGLE_CLOUD_PROJECT"
        )
    if isinstance(error, (google_errors.Forbidden, google_errors.Unauthorized, GoogleAuthError)):
        return NotPermittedError(f"these credentials may not publish to {topic}: grant them roles/pubsub.publisher ({text})")
    if isinstance(error, _RETRIED):
        place = os.environ.get("PUBSUB_EMULATOR_HOST") or "Pub/Sub"
        return UnreachableError(
            f"{place} did not accept it within {give_up_after:g} s: check the network and "
            f"PUBSUB_EMULATOR_HOST, then publish it again ({text})"
        )
    if isinstance(error, MessageTooLargeError):
        return RefusedError("the message is larger than Pub/Sub takes (10 MB with its overhead)")
    if isinstance(error, (google_errors.InvalidArgument, google_errors.OutOfRange)):
        return RefusedError(f"Pub/Sub refused it: {text}")
    if isinstance(error, google_errors.GoogleAPICallError):  # about the topic, and never a verdict on the message
        return TopicUnusableError(f"topic {topic} takes no message at present: correct what Pub/Sub names ({text})")
    return NotConfirmedError(f"publishing broke off ({type(error).__name__}); it may have been accepted")
