"""The adapter of Pub/Sub against a gRPC server of the test's own: what is asked, and what each refusal becomes."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc  # type: ignore[import-untyped]  # google's stubs are a package of their own
import pytest
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]  # as above
from google.pubsub_v1 import types

from tests.unit.operations.test_checkpoints import Bucket, store_with
from worker.errors import NotSeekable, QueueDenied, QueueError, QueueMissing, QueueRefused, QueueUnavailable
from worker.operations import checkpoints
from worker.operations.pubsub import Queue, subscription_name

SUBSCRIPTION = "projects/p/subscriptions/users"
EXPIRES = datetime(2026, 1, 8, 12, tzinfo=UTC)
MESSAGES: dict[str, tuple[Any, Any]] = {
    "CreateSnapshot": (types.CreateSnapshotRequest, types.Snapshot),
    "GetSnapshot": (types.GetSnapshotRequest, types.Snapshot),
    "ListSnapshots": (types.ListSnapshotsRequest, types.ListSnapshotsResponse),
    "DeleteSnapshot": (types.DeleteSnapshotRequest, None),
    "GetSubscription": (types.GetSubscriptionRequest, types.Subscription),
    "Seek": (types.SeekRequest, types.SeekResponse),
}


@dataclass
class Server:
    """Snapshots by name, and what the next calls of a method are answered instead; `after` means: once it is done."""

    snapshots: dict[str, types.Snapshot] = field(default_factory=dict)
    refusals: dict[str, grpc.StatusCode] = field(default_factory=dict)
    after: bool = False
    asked: list[Any] = field(default_factory=list)

    def answer(self, method: str, request: Any, context: Any) -> Any:
        """Answer one call."""
        self.asked.append(request)
        status = self.refusals.pop(method, None)
        if status is not None and not self.after:
            context.abort(status, "because")
        found = getattr(self, method.lower())(request, context)
        if status is not None:
            context.abort(status, "because")
        return found

    def createsnapshot(self, request: Any, context: Any) -> Any:
        """Make it, unless there is one."""
        if request.name in self.snapshots:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "there")
        made = types.Snapshot(name=request.name, topic="projects/p/topics/users", expire_time=EXPIRES)
        self.snapshots[request.name] = made
        return made

    def getsnapshot(self, request: Any, context: Any) -> Any:
        """The snapshot."""
        return self.snapshots.get(request.snapshot) or context.abort(grpc.StatusCode.NOT_FOUND, "no snapshot")

    def listsnapshots(self, request: Any, _: Any) -> Any:
        """A page of one."""
        names = sorted(self.snapshots)
        at = int(request.page_token or 0)
        more = str(at + 1) if at + 1 < len(names) else ""
        return types.ListSnapshotsResponse(
            snapshots=[self.snapshots[name] for name in names[at : at + 1]], next_page_token=more
        )

    def deletesnapshot(self, request: Any, context: Any) -> Any:
        """Delete it."""
        if self.snapshots.pop(request.snapshot, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no snapshot")
        return Empty()

    def getsubscription(self, request: Any, _: Any) -> Any:
        """A subscription whose topic retains for a day."""
        week, day = timedelta(days=7), timedelta(days=1)
        return types.Subscription(
            name=request.subscription,
            topic="projects/p/topics/users",
            message_retention_duration=week,
            topic_message_retention_duration=day,
        )

    def seek(self, *_: Any) -> Any:
        """Done."""
        return types.SeekResponse()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, with Google's client pointed at it."""
    kept = Server()

    def handler(method: str) -> Any:
        request, response = MESSAGES[method]

        def respond(asked: Any, context: Any) -> Any:
            return kept.answer(method, asked, context)

        serializer: Callable[[Any], bytes] = Empty.SerializeToString if response is None else response.serialize
        return grpc.unary_unary_rpc_method_handler(
            respond, request_deserializer=request.deserialize, response_serializer=serializer
        )

    handlers = {method: handler(method) for method in MESSAGES}
    serving = grpc.server(futures.ThreadPoolExecutor(2))
    serving.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", handlers),))
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{port}")
    yield kept
    serving.stop(None).wait()


@pytest.fixture
def queue(server: Server) -> Queue:
    """The adapter, on the server."""
    return Queue(SUBSCRIPTION)


def test_a_seek_to_a_time_is_asked_for_to_the_microsecond(server: Server, queue: Queue) -> None:
    """The request names the subscription and the time, and no snapshot; once."""
    moment = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    asyncio.run(queue.seek(moment))
    (request,) = server.asked
    assert request == types.SeekRequest(subscription=SUBSCRIPTION, time=moment)
    assert "snapshot" not in request


def test_a_seek_to_a_snapshot_names_it(server: Server, queue: Queue) -> None:
    """And no time."""
    asyncio.run(queue.seek("projects/p/snapshots/s"))
    assert server.asked == [types.SeekRequest(subscription=SUBSCRIPTION, snapshot="projects/p/snapshots/s")]


def test_snapshots_are_made_found_listed_and_deleted(server: Server, queue: Queue) -> None:
    """Every page is read; deleting twice is fine; the expiry is told as a plain time."""
    names = [f"projects/p/snapshots/{name}" for name in ("a.1", "a.2", "b.1")]
    made = [asyncio.run(queue.create(name)) for name in names]
    assert [each.name for each in made] == names
    assert (made[0].expires, made[0].oldest) == (EXPIRES, EXPIRES - timedelta(days=7))
    assert server.asked[0] == types.CreateSnapshotRequest(name=names[0], subscription=SUBSCRIPTION)
    assert asyncio.run(queue.snapshots("projects/p/snapshots/a.")) == made[:2]
    for _ in range(2):
        asyncio.run(queue.delete(names[0]))
    assert asyncio.run(queue.get(names[0])) is None
    assert asyncio.run(queue.get(names[1])) == made[1]


def test_a_subscription_reaches_as_far_as_it_or_its_topic_retains(queue: Queue) -> None:
    """Its own retention counts only if it retains acknowledged messages."""
    found = asyncio.run(queue.look())
    assert (found.retains_acknowledged, found.retention, found.reach) == (False, timedelta(days=7), timedelta(days=1))


@pytest.mark.parametrize(
    ("method", "status", "error"),
    [
        ("Seek", grpc.StatusCode.UNIMPLEMENTED, NotSeekable),
        ("Seek", grpc.StatusCode.FAILED_PRECONDITION, NotSeekable),
        ("Seek", grpc.StatusCode.NOT_FOUND, QueueMissing),
        ("Seek", grpc.StatusCode.UNAVAILABLE, QueueUnavailable),
        ("Seek", grpc.StatusCode.DEADLINE_EXCEEDED, QueueUnavailable),
        ("Seek", grpc.StatusCode.INTERNAL, QueueUnavailable),
        ("CreateSnapshot", grpc.StatusCode.RESOURCE_EXHAUSTED, QueueRefused),
        ("CreateSnapshot", grpc.StatusCode.FAILED_PRECONDITION, QueueRefused),
        ("CreateSnapshot", grpc.StatusCode.ALREADY_EXISTS, QueueRefused),
        ("CreateSnapshot", grpc.StatusCode.PERMISSION_DENIED, QueueDenied),
        ("CreateSnapshot", grpc.StatusCode.UNAUTHENTICATED, QueueDenied),
    ],
)
def test_a_refusal_is_one_error_and_is_not_repeated(
    server: Server, queue: Queue, method: str, status: grpc.StatusCode, error: type[QueueError]
) -> None:
    """Each status has its meaning; the client asks once, so that the caller sees each doubt."""
    server.refusals[method] = status
    ask = queue.seek("projects/p/snapshots/s") if method == "Seek" else queue.create("projects/p/snapshots/s")
    with pytest.raises(error):
        asyncio.run(cast("Any", ask))
    assert len(server.asked) == 1


@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
def test_a_lost_answer_of_the_creation_is_looked_up(server: Server, queue: Queue, made: bool) -> None:
    """A snapshot that was made after all becomes a checkpoint; one that was not is an error, and no record is written."""
    server.refusals["CreateSnapshot"], server.after = grpc.StatusCode.UNAVAILABLE, made
    store: Bucket = store_with(transactions=5)
    taking = checkpoints.take(queue, store, "x", timeout=1)
    if made:
        assert asyncio.run(taking).txid == 5
    else:
        with pytest.raises(QueueUnavailable, match="try again"):
            asyncio.run(taking)
    assert ("checkpoints/x.json" in store.content) is made
    assert bool(server.snapshots) is made


@pytest.mark.parametrize(
    ("text", "project", "name"),
    [
        ("users", "p", SUBSCRIPTION),
        (SUBSCRIPTION, "", SUBSCRIPTION),
        (SUBSCRIPTION, "other", SUBSCRIPTION),
        ("users", "", None),
        ("", "p", None),
        ("projects/p/topics/users", "p", None),
        ("projects//subscriptions/users", "p", None),
    ],
)
def test_a_subscription_is_named_in_full_or_with_its_project(text: str, project: str, name: str | None) -> None:
    """Anything else is an error that says how."""
    if name is not None:
        assert subscription_name(text, project) == name
    else:
        with pytest.raises(QueueMissing, match="SUBSCRIPTION"):
            subscription_name(text, project)


def test_no_answer_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead emulator is named, so that a forgotten variable is found."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:1 "):
        asyncio.run(Queue(SUBSCRIPTION).look())
