"""Pull: what is acknowledged, what is given back, and what a stream that breaks, a full intake and a stop do."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tests.entries import CATALOG, delivery, turns, until
from tests.fakes import bodies
from worker.config import Settings
from worker.errors import LeaseLost, Refused, RequestError, Unwritable
from worker.events.catalog import Catalog, Content, Problem
from worker.events.users import UserCreated
from worker.ingest import pull as pull_
from worker.ingest.intake import Intake
from worker.ingest.messages import Delivery, Entry, Observer
from worker.ingest.pull import Pull
from worker.supervisor import _pulling

Response = Sequence[tuple[str, Delivery]]


@dataclass
class Topic:
    """A subscription. `responses` are what its streams bring, in order; an error ends a stream."""

    responses: list[Response | OSError] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    given_back: list[str] = field(default_factory=list)
    opened: int = 0
    requests: int = 0
    """To acknowledge."""
    lost: int = 0
    """So many acknowledgements are not answered."""
    more: asyncio.Event = field(default_factory=asyncio.Event)
    streams: int = 0
    """Open now."""
    given_back_while_open: list[str] = field(default_factory=list)
    closed: bool = False

    async def stream(self, *, messages: int, size: int) -> AsyncGenerator[Response, None]:
        """See `worker.ingest.pull.Subscription`."""
        self.opened += 1
        self.streams += 1
        try:
            yield ()
            while True:
                if self.responses:
                    response = self.responses.pop(0)
                    if isinstance(response, OSError):
                        raise response
                    yield response
                else:
                    self.more.clear()
                    await self.more.wait()
        finally:
            self.streams -= 1

    async def acknowledge(self, ids: Sequence[str]) -> None:
        """See `worker.ingest.pull.Subscription`."""
        self.requests += 1
        if self.lost:
            self.lost -= 1
            raise OSError("UNAVAILABLE")
        self.acknowledged += ids

    async def give_back(self, ids: Sequence[str]) -> None:
        """See `worker.ingest.pull.Subscription`."""
        self.given_back += ids
        self.given_back_while_open += ids if self.streams else ()

    async def close(self) -> None:
        """See `worker.ingest.pull.Subscription`."""
        self.closed = True


class Counting(Observer):
    """Counts refusals and defects."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def refused(self, error: RequestError) -> None:
        """See `Observer.refused`."""
        self.reasons.append(error.reason)

    def broke(self) -> None:
        """See `Observer.broke`."""
        self.reasons.append("defect")


class Holding:
    """A writer that answers when it is told to."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def submit(self, entry: Entry) -> None:
        """See `worker.ingest.writer.Writer`."""
        self.entries.append(entry)

    def confirm(self) -> None:
        """Everything so far is confirmed."""
        for entry in self.entries:
            if not entry.done.done():
                entry.done.set_result("created")


def response(*numbers: int) -> Response:
    """Messages as one response brings them."""
    return [(f"ack{number}", delivery(f"m{number}", UserCreated(user_id=number))) for number in numbers]


@dataclass
class Site:
    """A pull on a serving intake."""

    topic: Topic
    writer: Holding
    intake: Intake
    pull: Pull
    heard: list[str]
    counted: Counting


def pulling(
    body: Callable[[Site], Coroutine[Any, Any, None]],
    *,
    messages: int = 9,
    hold: float = 55.0,
    catalog: Catalog = CATALOG,
    streams: int = 1,
    running: bool = True,
) -> None:
    """Run `body` while a pull runs, of one stream."""

    async def run() -> None:
        settings = Settings(replica_url="gs://bucket/prefix", queue_max_messages=messages)
        intake = Intake(max_messages=messages, max_bytes=64_000_000, hold_seconds=hold, bodies=bodies())
        writer, topic, heard = Holding(), Topic(), list[str]()
        intake.serve(writer)  # type: ignore[arg-type]  # a stand-in
        counted = Counting()
        hear = lambda outcome, _: heard.append(outcome)  # noqa: E731  # one line
        pull = Pull(topic, intake, catalog, settings, hear, observer=counted, streams=streams)
        task = asyncio.create_task(pull.run() if running else asyncio.sleep(0))
        try:
            async with asyncio.timeout(20):
                await body(Site(topic, writer, intake, pull, heard, counted))
        finally:
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(run())


def bring(site: Site, *responses: Response | OSError) -> None:
    """The stream brings these next."""
    site.topic.responses += responses
    site.topic.more.set()


def test_a_message_is_acknowledged_once_it_is_confirmed() -> None:
    """INV-1, and one request acknowledges a whole response."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2))
        await until(lambda: len(site.writer.entries) == 2)
        await turns()
        assert site.topic.acknowledged == []
        site.writer.confirm()
        await until(lambda: site.topic.acknowledged)
        assert (site.topic.acknowledged, site.topic.given_back) == (["ack1", "ack2"], [])
        assert site.heard == ["created", "created"]
        assert site.intake.held_messages == 0

    pulling(body)


def test_what_is_refused_is_given_back_and_the_rest_acknowledged() -> None:
    """A database that is out, and a message that it will never keep, come again; neither harms the message beside it."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2, 3))
        await until(lambda: len(site.writer.entries) == 3)
        site.writer.entries[0].done.set_exception(Refused("the database is out", reason="database"))
        site.writer.entries[1].done.set_exception(Unwritable("the database refused it"))
        site.writer.confirm()
        await until(lambda: site.topic.given_back)
        assert (site.topic.acknowledged, site.topic.given_back) == (["ack3"], ["ack1", "ack2"])

    pulling(body)


def test_what_is_not_confirmed_in_time_is_given_back() -> None:
    """The hold limit holds for a response; what was confirmed before it is acknowledged."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2))
        await until(lambda: len(site.writer.entries) == 2)
        site.writer.entries[0].done.set_result("created")
        await until(lambda: site.topic.given_back)
        assert (site.topic.acknowledged, site.topic.given_back) == (["ack1"], ["ack2"])
        assert site.intake.held_messages == 0

    pulling(body, hold=0.1)


def test_no_more_is_read_than_may_be_held() -> None:
    """INV-7: a third response of two waits until one of the first two is answered; none is refused."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2), response(3, 4), response(5, 6), response(7, 8))
        await until(lambda: len(site.writer.entries) == 4)
        await turns()
        assert len(site.writer.entries) == 4
        assert len(site.topic.responses) >= 1  # one is on its way
        site.writer.confirm()
        await until(lambda: len(site.writer.entries) == 8)
        site.writer.confirm()
        await until(lambda: len(site.topic.acknowledged) == 8)
        assert site.topic.given_back == []

    pulling(body, messages=4)


def test_a_response_that_is_more_than_may_be_held_is_taken_in_parts() -> None:
    """A hundred messages arrive at once however few may be held."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2, 3, 4, 5))
        for count in (2, 4, 5):
            await until(partial(_has, site, count))
            site.writer.confirm()
        await until(lambda: len(site.topic.acknowledged) == 5)
        assert site.topic.given_back == []

    pulling(body, messages=2)


def _has(site: Site, count: int) -> bool:
    return len(site.writer.entries) == count


def test_a_stream_that_breaks_is_opened_again() -> None:
    """Streams end all the time: at a deployment of Pub/Sub, after a while, at an outage."""

    async def body(site: Site) -> None:
        bring(site, OSError("UNAVAILABLE: gone"), response(1))
        await until(lambda: site.writer.entries)
        site.writer.confirm()
        await until(lambda: site.topic.acknowledged == ["ack1"])
        assert site.topic.opened == 2
        assert site.pull.counts.streams == 1

    pulling(body)


@pytest.mark.parametrize(("lost", "acknowledged"), [(2, ["ack1"]), (3, [])], ids=["asked again", "given up"])
def test_an_acknowledgement_that_is_lost(lost: int, acknowledged: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """It is asked again; given up, its messages come again and are duplicates, and the log says so."""

    async def body(site: Site) -> None:
        site.topic.lost = lost
        bring(site, response(1))
        await until(lambda: site.writer.entries)
        site.writer.confirm()
        await until(lambda: site.topic.requests == 3 and site.pull.counts.acknowledged == len(acknowledged))
        assert site.topic.acknowledged == acknowledged
        assert site.intake.held_messages == 0

    pulling(body)
    assert ("were not taken" in caplog.text) == (not acknowledged)


def test_what_is_confirmed_at_once_is_acknowledged_in_one_request() -> None:
    """Pub/Sub's responses may be of one message each: a request for each would cost more than the message."""

    async def body(site: Site) -> None:
        bring(site, *(response(number) for number in range(1, 7)))
        await until(lambda: len(site.writer.entries) == 6)
        site.writer.confirm()
        await until(lambda: len(site.topic.acknowledged) == 6)
        assert site.topic.requests == 1

    pulling(body)


def test_no_request_acknowledges_more_than_pub_sub_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-7: what is more goes into requests of its own."""
    monkeypatch.setattr(pull_, "IDS_MAX", 2)

    async def body(site: Site) -> None:
        bring(site, response(1, 2, 3, 4, 5))
        await until(lambda: len(site.writer.entries) == 5)
        site.writer.confirm()
        await until(lambda: len(site.topic.acknowledged) == 5)
        assert site.topic.requests == 3
        assert sorted(site.topic.acknowledged) == ["ack1", "ack2", "ack3", "ack4", "ack5"]

    pulling(body)


def test_a_backlog_leaves_places_to_operators() -> None:
    """An erasure must not be refused for as long as a backlog is pulled."""

    async def body(site: Site) -> None:
        bring(site, *(response(number) for number in range(1, 21)))
        await until(lambda: len(site.writer.entries) == 9)
        await turns()
        assert site.intake.held_messages == 9
        with site.intake.hold():
            assert site.intake.held_messages == 10

    pulling(body, messages=10)


def test_a_defect_fails_one_message_alone(caplog: pytest.LogCaptureFixture) -> None:
    """INV-6: the others of its response are acknowledged, and it comes again, as after a push that is answered 500."""

    class Broken(Catalog):
        def read(
            self, data: bytes, attributes: Mapping[str, str], publish_time: int, *, again: bool = False
        ) -> Content | Problem:
            if b"2" in data:
                raise RuntimeError("a defect")
            return CATALOG.read(data, attributes, publish_time, again=again)

    async def body(site: Site) -> None:
        bring(site, response(1, 2, 3))
        await until(lambda: len(site.writer.entries) == 2)
        site.writer.confirm()
        await until(lambda: site.topic.given_back)
        assert (site.topic.acknowledged, site.topic.given_back) == (["ack1", "ack3"], ["ack2"])
        assert site.counted.reasons == ["defect"]

    pulling(body, catalog=Broken({}))
    assert "met a defect" in caplog.text


def test_refusals_are_counted_as_those_of_pushes_are() -> None:
    """An operator's alerts see the same numbers: one for each message, by reason."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2, 3))
        await until(lambda: len(site.writer.entries) == 3)
        site.writer.entries[0].done.set_exception(Refused("the database is out", reason="database"))
        await until(lambda: site.topic.given_back)
        assert site.counted.reasons == ["database", "hold_limit", "hold_limit"]

    pulling(body, hold=0.1)


def test_at_a_stop_what_arrives_is_given_back_and_what_is_held_is_answered() -> None:
    """Draining: nothing is taken any more, and nothing that was taken is dropped.

    Given back while the stream is open, a message would come again at once, and each time count towards the dead letters.
    """

    async def body(site: Site) -> None:
        bring(site, response(1))
        await until(lambda: site.writer.entries)
        site.intake.drain()
        site.pull.stop()
        bring(site, response(2), response(3))
        await until(lambda: site.topic.given_back == ["ack2", "ack3"])
        assert site.topic.given_back_while_open == []
        site.writer.confirm()
        await until(lambda: site.topic.acknowledged == ["ack1"])
        await site.pull.end()
        assert site.topic.closed

    pulling(body)


def test_at_a_stop_what_waits_for_room_is_given_back() -> None:
    """A store that confirms nothing keeps no message from the next instance."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2), response(3, 4))
        await until(lambda: len(site.writer.entries) == 2 and not site.topic.responses)
        site.intake.drain()
        site.pull.stop()
        await until(lambda: site.topic.given_back == ["ack3", "ack4"])

    pulling(body, messages=2)


def test_at_the_end_what_is_not_confirmed_is_given_back() -> None:
    """INV-1: the bucket is out. The next instance gets the message now, and not after its deadline."""

    async def body(site: Site) -> None:
        bring(site, response(1, 2))
        await until(lambda: len(site.writer.entries) == 2)
        site.intake.drain()
        site.pull.stop()
        site.writer.entries[0].done.set_result("created")
        await site.pull.end()
        assert (site.topic.acknowledged, site.topic.given_back) == (["ack1"], ["ack2"])
        site.writer.confirm()  # too late
        assert site.topic.acknowledged == ["ack1"]

    pulling(body)


def test_a_stream_that_ends_after_a_while_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pub/Sub closes each stream from time to time; an outage is told once for all streams."""

    async def body(site: Site) -> None:
        bring(site, OSError("UNAVAILABLE: gone"))
        await until(lambda: site.topic.opened == 2)
        assert "cannot be pulled" not in caplog.text
        monkeypatch.setattr(pull_, "_LASTED_SECONDS", 60.0)
        bring(site, OSError("UNAVAILABLE: gone"), OSError("UNAVAILABLE: gone"))
        await until(lambda: site.topic.opened == 4)
        assert caplog.text.count("cannot be pulled") == 1

    monkeypatch.setattr(pull_, "_LASTED_SECONDS", 0.0)
    pulling(body)


def test_at_a_stop_what_was_refused_is_given_back_once_the_streams_are_closed() -> None:
    """Its second has not passed, and it waits no longer; but an open stream would bring it again at once.

    Each time counts towards the dead letters: a stop must cost a message one delivery, and not two.
    """

    async def body(site: Site) -> None:
        bring(site, response(1, 2))
        await until(lambda: len(site.writer.entries) == 2)
        site.writer.entries[0].done.set_exception(Refused("the database is out", reason="database"))
        site.writer.entries[1].done.set_result("created")
        await until(lambda: site.topic.acknowledged == ["ack2"])
        site.intake.drain()
        site.pull.stop()
        await until(lambda: site.topic.given_back == ["ack1"])
        assert site.topic.given_back_while_open == []
        await site.pull.end()

    pulling(body)


def test_at_a_stop_a_stream_gives_nothing_back_while_another_is_open() -> None:
    """The other would bring it again at once."""

    async def body(site: Site) -> None:
        await until(lambda: site.topic.streams == 2)
        site.intake.drain()
        site.pull.stop()
        bring(site, response(1), OSError("UNAVAILABLE: gone"))
        await until(lambda: site.topic.given_back == ["ack1"])
        assert site.topic.given_back_while_open == []
        await site.pull.end()

    pulling(body, streams=2)


def test_a_life_that_fails_gives_back_what_it_held() -> None:
    """The lease is lost: the next holder gets the messages now, as after a push that is answered 503."""

    async def life(site: Site) -> None:
        parts: Any = SimpleNamespace(pull=site.pull, intake=site.intake)
        async with asyncio.TaskGroup() as side, _pulling(parts, side):
            bring(site, response(1, 2))
            await until(lambda: len(site.writer.entries) == 2)
            raise LeaseLost("another instance holds it")

    async def body(site: Site) -> None:
        with pytest.raises(ExceptionGroup):
            await life(site)
        assert (site.topic.given_back, site.topic.acknowledged) == (["ack1", "ack2"], [])
        assert site.topic.closed

    pulling(body, running=False)


def test_what_comes_as_the_last_requests_end_is_acknowledged_as_well() -> None:
    """A request that has just ended takes nothing more along: another one is made, or the message would wait for ever."""

    async def run() -> None:
        sent: list[str] = []
        late: list[asyncio.Task[bool]] = []

        async def call(ids: Sequence[str]) -> None:
            sent.extend(ids)
            if "last" in ids:  # its first step is taken when all requests have ended, and the loop knows it of none
                late.append(asyncio.create_task(requests.send(["late"])))

        requests = pull_._Requests(call, attempts=1)  # the race is not to be had from outside
        async with asyncio.timeout(5):
            first = [asyncio.create_task(requests.send([name])) for name in ("last", "b", "c", "d")]
            await asyncio.gather(*first)
            assert await late[0]
        assert sorted(sent) == ["b", "c", "d", "last", "late"]

    asyncio.run(run())
