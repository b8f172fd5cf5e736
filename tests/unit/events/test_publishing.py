"""Messages of any event are published: from the command line, from files, and over HTTP."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest

from publisher import cli
from publisher.message import Message
from publisher.sink import settle
from tests.unit.events.orders import Line, OrderChanged, OrderPlaced
from tests.unit.publisher.test_gateway import FakeSink, Site, on_site
from tests.unit.publisher.test_load import RecordingSink
from worker.events.users import UserDeleted

ORDERS = {"EVENTS": "tests.unit.events.orders"}

Run = Callable[..., tuple[int, str, str]]


class Sink(RecordingSink):
    """Accepts messages of any event."""

    def publish(self, message: Message) -> Future[str]:
        """See `Sink.publish`."""
        self.messages.append(message)
        future = self._open.new()
        settle(future, f"m{len(self.messages)}")
        return future


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    """Where everything is published."""
    made = Sink()
    monkeypatch.setattr(cli, "open_sink", lambda options, environment, traced: made)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the publisher with the events of orders: exit code, stdout, stderr."""

    def go(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
        code = cli.main(arguments, ORDERS if environment is None else environment)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return go


def test_create_takes_the_fields_of_any_event(run: Run, sink: Sink) -> None:
    """Each as its kind; the attribute names the event, and the answer the key."""
    sets = [
        "order_id=a=1",
        "customer=7",
        "total=12",
        "express=true",
        'lines=[{"sku": "x", "count": 2}]',
        'labels={"a": "b"}',
    ]
    code, printed, _ = run("create", "--event", "order.placed", *[part for each in sets for part in ("--set", each)])
    assert (code, printed) == (0, "accepted: order_id a=1, message m1\n")
    (message,) = sink.messages
    assert message.attributes == {"event_type": "order.placed"}
    lines = [Line(sku="x", count=2)]
    assert message.content == OrderPlaced(
        order_id="a=1", customer="7", total=12, express=True, lines=lines, labels={"a": "b"}
    )


def test_without_a_name_it_is_the_first_event(run: Run, sink: Sink) -> None:
    """Where there is no user.created."""
    assert run("create", "--set", "order_id=1", "--json")[1] == '{"order_id": "1", "message_id": "m1"}\n'
    assert sink.messages[0].event.name == "order.placed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--event", "order.gone"], "there is no event order.gone; EVENTS declares order.placed, order.changed"),
        (["--set", "order_id=1", "--set", "colour=red"], "order.placed has no field colour; it has order_id, customer"),
        (["--set", "total=1"], "order_id is missing; it must be a string"),
        (["--set", "order_id=1", "--set", "total=1.5"], "total must be an integer at least 0"),
        (["--set", "order_id=1", "--set", "express=yes"], "express must be true or false"),
        (["--set", "order_id=1", "--set", "lines=[{"], "lines must be an array"),
        (["--user-id", "5"], "order.placed has no field user_id"),
    ],
)
def test_what_cannot_be_a_message_is_wrong_usage(run: Run, sink: Sink, arguments: list[str], said: str) -> None:
    """With what it must be; nothing is sent."""
    code, _, error = run("create", *arguments)
    assert (code, said in error, sink.messages) == (2, True, [])


def test_events_that_cannot_be_loaded_are_wrong_usage(run: Run) -> None:
    """With the variable."""
    code, _, error = run("create", environment={"EVENTS": "acme.nowhere"})
    assert (code, error.startswith("error: EVENTS is 'acme.nowhere': acme.nowhere cannot be imported")) == (2, True)


CSV = b"""Note,total,order_id,lines,express,labels
x,12,007,"[{""sku"": ""a""}]",TRUE,
x,,a,,,"{""k"": ""v""}"
x,1.5,b,,,
x,1,,,,
x,1,c,[{,,
"""


def test_a_csv_is_read_by_the_fields_of_its_event(run: Run, sink: Sink, tmp_path: Path) -> None:
    """Objects and arrays as JSON, texts as they stand; a wrong row is told with its line and its field."""
    path = tmp_path / "orders.csv"
    path.write_bytes(CSV)
    code, printed, said = run("load", "--event", "order.placed", str(path), "--json")
    summary = json.loads(printed)
    assert (code, summary["accepted"], summary["rejected"]) == (1, 2, 3)
    assert [message.content for message in sink.messages] == [
        OrderPlaced(order_id="007", total=12, express=True, lines=[Line(sku="a")]),
        OrderPlaced(order_id="a", labels={"k": "v"}),
    ]
    for line in (
        "columns ignored: Note",
        "line 4: wrong_type: total must be an integer at least 0",
        "line 5: missing_field: order_id is missing; it must be a string",
        "line 6: wrong_type: lines must be an array",
    ):
        assert line in said


def test_a_cell_of_any_depth_is_one_wrong_row(run: Run, sink: Sink, tmp_path: Path) -> None:
    """The rows behind it are read."""
    file = tmp_path / "orders.csv"
    file.write_text(f"order_id,lines\n1,{'[' * 100_000}\n2,\n")
    code, out, err = run("load", str(file), "--event", "order.placed")
    assert (code, "1 accepted" in out, "line 2: wrong_type: lines must be an array" in err) == (1, True, True)


def test_a_csv_must_name_the_required_fields_of_its_event(run: Run, sink: Sink, tmp_path: Path) -> None:
    """The error names them, and those that may be there."""
    path = tmp_path / "orders.csv"
    path.write_text("order_id,total\n1,2\n")
    code, _, said = run("load", "--event", "order.changed", str(path))
    assert (code, "must name its columns: order_id, total, sequence and any of customer" in said) == (2, True)


def test_json_lines_are_of_the_event_or_of_the_one_that_was_exported(run: Run, sink: Sink, tmp_path: Path) -> None:
    """What `worker rejections export` wrote is loaded as what it was, corrected, in one file with others."""
    about = {"message_id": "m1", "attributes": {"event_type": "order.changed"}}
    lines: list[dict[str, Any]] = [
        {"order_id": "1", "total": 5},
        {"order_id": "1", "total": 6, "sequence": 2, "_rejection": about},
        {"order_id": "1", "_rejection": {"attributes": {"event_type": "order.gone"}}},
        {"order_id": "1", "_rejection": "x"},
    ]
    path = tmp_path / "orders.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("load", "--event", "order.placed", str(path), "--accepted", str(tmp_path / "accepted"))[0] == 0
    assert [message.content for message in sink.messages] == [
        OrderPlaced(order_id="1", total=5),
        OrderChanged(order_id="1", total=6, sequence=2),
        OrderPlaced(order_id="1"),
        OrderPlaced(order_id="1"),
    ]
    accepted = [json.loads(line) for line in (tmp_path / "accepted").read_text().splitlines()]
    assert accepted[1] == {"line": 2, "order_id": "1", "message_id": "m2"}


def test_the_gateway_takes_messages_of_any_event() -> None:
    """At a path of its name; another name is answered with those that there are."""
    sink = FakeSink()

    async def visit(site: Site) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        good = await site.client.post("/events/user.deleted", content=b'{"user_id":5}')
        bad = await site.client.post("/events/user.deleted", content=b'{"user_id":0}')
        return good, bad, await site.client.post("/events/user.gone", content=b"{}")

    good, bad, unknown = on_site(visit, sink)
    assert (good.status_code, bad.status_code, unknown.status_code) == (202, 400, 404)
    assert [(message.event.name, message.content) for message in sink.messages] == [("user.deleted", UserDeleted(user_id=5))]
    assert bad.json()["field"] == "user_id"
    assert "user.created, user.updated, user.deleted" in unknown.json()["error"]
