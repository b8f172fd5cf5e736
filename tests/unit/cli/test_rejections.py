"""`worker rejections list` and `discard`: a screen for a person, and one command for a whole export."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from publisher.values import rfc3339
from worker.cli import service_options, tables
from worker.cli.main import main
from worker.operations.service_client import Wanted, line

DETAIL = "user 5 is stored already, and this message has another email_address, another created_at and other settings"


def row(number: int, reason: str, minutes: float, resolution: str | None = None) -> dict[str, Any]:
    """A rejection, as the service lists it."""
    return {
        "message_id": f"{number:016}",
        "reason": reason,
        "detail": DETAIL,
        "publish_time": "2026-01-01T00:00:00.000Z",
        "received_at": rfc3339(datetime.now(UTC) - timedelta(minutes=minutes)),
        "delivery_attempt": None,
        "bytes": 12,
        "resolution": resolution,
    }


class Service:
    """A service in memory."""

    def __init__(self) -> None:
        self.discarded: list[str] = []
        self.rows = [row(1, "conflict", 4.5), row(2, "unknown_event", 2), row(3, "conflict", 1.5)]
        self.rows.append(row(4, "conflict", 1.5, "discarded"))

    async def each(self, wanted: Wanted) -> AsyncIterator[dict[str, Any]]:
        """See `Service.each`."""
        for each in self.rows:
            if wanted.resolved or each["resolution"] is None:
                yield each

    async def whole(self, message_id: str) -> dict[str, Any]:
        """See `Service.whole`."""
        found = next(each for each in self.rows if each["message_id"] == message_id)
        return {**found, "attributes": {}, "stored": None, "data": base64.b64encode(b"{}").decode()}

    async def discard(self, message_id: str) -> str:
        """See `Service.discard`."""
        self.discarded.append(message_id)
        return "discarded"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service that the commands ask."""
    asked = Service()

    @asynccontextmanager
    async def connect(*_: object) -> AsyncIterator[Service]:
        yield asked

    monkeypatch.setattr(service_options, "connect", connect)
    return asked


def exported(path: Path, *numbers: int, mend: Mapping[str, str] | None = None) -> Path:
    """A file of these messages, as `export` writes it, with parts of it replaced."""
    text = "".join(
        line(
            {
                **row(number, "wrong_type", 1),
                "attributes": {},
                "stored": None,
                "data": base64.b64encode(b'{"user_id": "nine"}').decode(),
            }
        ).decode()
        for number in numbers
    )
    for old, new in (mend or {}).items():
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_the_list_leads_with_the_counts_and_has_a_line_for_each_message(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also elsewhere than on a terminal, where the lines are whole."""
    assert main(["rejections", "list"], {}) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "3 open: 2 conflict, 1 unknown_event; oldest 4 min"
    assert [text.split()[0] for text in lines] == [each["message_id"] for each in service.rows[:3]]
    assert lines[0] == f"{1:016}  conflict       4 min  {DETAIL}"
    assert main(["rejections", "list", "--all"], {}) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "3 open: 2 conflict, 1 unknown_event; oldest 4 min; 1 resolved"
    assert lines[3] == f"{4:016}  conflict       discarded  1 min  {DETAIL}"


@pytest.mark.usefixtures("service")
def test_the_list_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the detail is cut off: an id that is would be one that no command takes."""
    monkeypatch.setattr(tables, "Console", partial(Console, force_terminal=True, no_color=True, width=80))
    assert main(["rejections", "list"], {}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) == 80
    assert all(text.endswith("…") for text in lines[1:])
    tables.lines([("m" * 200, "detail")])
    assert capsys.readouterr().out == "m" * 200 + "\n"


def test_some_are_exported_by_their_ids(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or all that are open; ids and filters together are refused, and write nothing."""
    ids = [each["message_id"] for each in service.rows]
    some, every = tmp_path / "some.jsonl", tmp_path / "every.jsonl"
    assert main(["rejections", "export", str(some), ids[0], ids[2]], {}) == 0
    assert main(["rejections", "export", str(every)], {}) == 0
    written = [json.loads(text)["_rejection"]["message_id"] for text in some.read_text().splitlines()]
    assert (written, len(every.read_text().splitlines())) == ([ids[0], ids[2]], 3)
    assert main(["rejections", "export", str(tmp_path / "none.jsonl"), ids[0], "--all"], {}) == 1
    assert not (tmp_path / "none.jsonl").exists()
    assert "name message ids, or choose with" in capsys.readouterr().err


def test_an_export_is_discarded_by_one_command(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mended file names the rejections; what the load did not accept stays open, and what is resolved is passed over."""
    mended = exported(tmp_path / "bad.jsonl", 1, 2, 3, 4, mend={'"nine"': "9"})
    rest = exported(tmp_path / "rest.jsonl", 2)
    command = ["rejections", "discard", "--file", str(mended), "--except", str(rest), "--yes"]
    assert main(command, {}) == 0
    assert service.discarded == [f"{1:016}", f"{3:016}"]
    printed = capsys.readouterr()
    assert printed.out == f"{1:016}  discarded\n{3:016}  discarded\n"
    assert printed.err == f"1 message of {mended} resolved already, or gone\n"
    rest.write_text("")
    assert main(command, {}) == 0
    assert service.discarded[2:] == [f"{1:016}", f"{2:016}", f"{3:016}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"user_id": 5}\n', "line 1 of {file} names no rejection: give a file that `rejections export` wrote"),
        ("\n\nnothing\n", "line 3 of {file} names no rejection: give a file that `rejections export` wrote"),
        ('{"_rejection": {"message_id": 5}}', "line 1 of {file} names no rejection"),
        ('{"_rejection": ["message_id"]}', "line 1 of {file} names no rejection"),
        (None, "cannot read {file}: No such file or directory"),
    ],
)
def test_a_file_that_is_no_export_changes_nothing(
    service: Service, tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused as a whole, with the line."""
    file = tmp_path / "users.jsonl"
    if text is not None:
        file.write_text(text)
    assert main(["rejections", "discard", "--file", str(file), "--yes"], {}) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said.format(file=file)}")
    assert error.endswith("nothing was changed\n") or text is not None
    assert service.discarded == []


def test_a_file_excludes_every_other_choice(service: Service, tmp_path: Path) -> None:
    """Which of the two is meant would be a guess; so is an exception from nothing."""
    file = str(exported(tmp_path / "bad.jsonl", 1))
    for more in (["m1"], ["--all"], ["--reason", "conflict"]):
        assert main(["rejections", "discard", "--file", file, "--yes", *more], {}) == 1
    assert main(["rejections", "discard", "m1", "--except", file, "--yes"], {}) == 1
    assert service.discarded == []


def test_a_long_list_is_not_read_out_before_the_question(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten ids, and how many more there are."""
    service.rows = [row(number, "conflict", 1) for number in range(1, 13)]
    file = exported(tmp_path / "bad.jsonl", *range(1, 13))
    assert main(["rejections", "discard", "--file", str(file)], {}) == 1
    error = capsys.readouterr().err
    assert error.startswith("this would discard 12 messages for good: 0000000000000001, ")
    assert error.endswith("0000000000000010 and 2 more; add --yes to do it\n")
    assert service.discarded == []
