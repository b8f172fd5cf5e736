"""What is told of events: the list that an operator reads, and the schema that a topic checks."""

import json
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from peewee import Model, TextField

from worker.cli import main
from worker.events.catalog import BUILT_IN, Catalog
from worker.events.declaration import Event
from worker.operations.events import avro

ROOT = Path(__file__).parents[3]
BOTH = {"EVENTS": f"{BUILT_IN},examples.orders"}


class Odd(Model):
    """A table of one column."""

    word = TextField(primary_key=True)


class Mixed(msgspec.Struct):
    """Each kind of field that a schema can hold, and those it cannot."""

    word: Annotated[str, msgspec.Meta(description="a word")]
    share: float
    sure: bool
    count: Annotated[int, msgspec.Meta(ge=0)]
    maybe: str | None
    several: list[int]
    either: int | str
    kebab: str = msgspec.field(name="kebab-case")
    left_out: int = 0


def test_the_schema_of_a_deployment_is_that_of_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    """deploy/schema.avsc is what `python -m worker schema user.created` prints."""
    assert main.main(["schema", "user.created"], {}) == 0
    assert (ROOT / "deploy" / "schema.avsc").read_text() == capsys.readouterr().out


def test_a_schema_holds_what_avro_reads_as_the_event_does() -> None:
    """Required scalars alone; what may be null, absent, one of several types, or has no Avro name is left out."""
    event = Event("odd", Mixed, Odd, row=lambda content, _: (content.word,))
    schema = avro(Catalog({"test": [event]}), "odd")
    assert {field["name"]: field["type"] for field in schema["fields"]} == {
        "word": "string",
        "share": "double",
        "sure": "boolean",
        "count": "long",
    }
    assert schema["fields"][3]["doc"] == "an integer at least 0"


def test_an_unknown_event_has_no_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the events there are, and a module that is not there is named too."""
    assert main.main(["schema", "order.lost"], BOTH) == 2
    assert "no event order.lost; EVENTS declares user.created," in capsys.readouterr().err
    assert main.main(["events"], {"EVENTS": "nowhere.orders"}) == 2
    assert "nowhere.orders cannot be imported" in capsys.readouterr().err


def test_the_list_names_the_events_of_every_module(capsys: pytest.CaptureFixture[str]) -> None:
    """For a program all of it; for a person a line each, with the fields that may be left out in brackets."""
    assert main.main(["events", "--json"], BOTH) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["user.created", "user.updated", "user.deleted", "order.placed", "order.changed"]
    changed = rows["order.changed"]
    assert (changed["module"], changed["table"], changed["key"]) == ("examples.orders", "orders", "order_id")
    assert (changed["subject"], changed["when_there"], changed["version"]) == ("customer_id", "newest", "revision")
    assert changed["required"] == ["order_id", "customer_id", "total_cents", "revision"]
    assert main.main(["events"], BOTH) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("order.placed")]
    assert line.endswith("orders  order_id  customer_id  keep                    order_id customer_id total_cents [note]")
