"""Logs: one JSON object a line in Cloud Logging's fields, or readable lines on a terminal."""

import contextvars
import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.test_docs import DOCS
from worker.ingest.http import trace_context
from worker.replica import litestream_log
from worker.telemetry import logs

NOISY = ("httpx", "httpcore", "urllib3", "google", "asyncio")


class Terminal(io.StringIO):
    """A stream that a person reads."""

    def isatty(self) -> bool:
        """Always."""
        return True


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Gives the process its logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in NOISY}
    # basicConfig(force=True) would close pytest's own handlers.
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """What was logged, parsed."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object() -> None:
    """Severity, time, message, action and logger are fields that Cloud Logging knows or can be searched for."""
    stream = io.StringIO()
    logs.configure("info", stream)
    before = datetime.now(UTC)
    logging.getLogger("worker.test").info("%d messages\nand a line", 3, extra={"action": "test.action"})
    (line,) = lines(stream)
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "severity": "INFO",
        "message": "3 messages\nand a line",
        "action": "test.action",
        "logger": "worker.test",
    }


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (logging.DEBUG, "DEBUG"),
        (logging.WARNING, "WARNING"),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "CRITICAL"),
    ],
)
def test_levels_are_cloud_loggings_severities(level: int, severity: str) -> None:
    """Python's names are Cloud Logging's."""
    stream = io.StringIO()
    logs.configure("debug", stream)
    logging.getLogger("worker.test").log(level, "x")
    assert lines(stream)[0]["severity"] == severity


def test_an_exception_is_part_of_its_line() -> None:
    """A traceback stays with its event instead of becoming ten lines without a severity."""
    stream = io.StringIO()
    logs.configure("info", stream, service="users", revision="users-00042")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("worker.test").exception("it failed", extra={"action": "test.failed"})
    (line,) = lines(stream)
    assert line["message"] == "it failed"
    assert line["stack_trace"].startswith("Traceback (most recent call last):")
    assert line["stack_trace"].endswith("ValueError: broken")
    assert line["serviceContext"] == {"service": "users", "version": "users-00042"}


def test_an_exception_that_is_none_adds_nothing() -> None:
    """log.exception outside of an except block is an error without a traceback."""
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("worker.test").exception("it failed")
    (line,) = lines(stream)
    assert "stack_trace" not in line
    assert "serviceContext" not in line


def test_an_error_says_where_it_was_logged() -> None:
    """SourceLocation is for errors; other lines do without."""
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("worker.test").error("x")
    logging.getLogger("worker.test").warning("y")
    error, warning = lines(stream)
    place = error["logging.googleapis.com/sourceLocation"]
    assert place["file"] == __file__
    assert place["function"] == "test_an_error_says_where_it_was_logged"
    assert place["line"].isdecimal()
    assert "logging.googleapis.com/sourceLocation" not in warning


def test_labels_are_those_of_the_moment() -> None:
    """Epoch and generation change in a process's life; each line has those it was written under."""
    stream, now = io.StringIO(), {"revision": "r"}
    logs.configure("info", stream)
    log = logging.getLogger("worker.test")
    log.info("before")
    logs.label(lambda: now)
    log.info("standing by")
    now |= {"epoch": "7", "generation": "generations/0000000000000007"}
    log.info("serving")
    found = [line.get("logging.googleapis.com/labels") for line in lines(stream)]
    assert found == [None, {"revision": "r"}, now]


HEX = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("headers", "span", "sampled"),
    [
        ({"traceparent": f"00-{HEX}-{SPAN}-01"}, SPAN, True),
        ({"traceparent": f"00-{HEX}-{SPAN}-00"}, SPAN, False),
        ({"x-cloud-trace-context": f"{HEX}/{int(SPAN, 16)};o=1"}, SPAN, True),
        ({"x-cloud-trace-context": f"{HEX}/1"}, "0000000000000001", False),
        ({"x-cloud-trace-context": HEX}, None, False),
        ({"traceparent": "nonsense", "x-cloud-trace-context": f"{HEX}/1;o=1"}, "0000000000000001", True),
        ({"traceparent": f"00-{HEX}-{SPAN}-01", "x-cloud-trace-context": f"{'f' * 32}/1;o=0"}, SPAN, True),
    ],
)
def test_a_line_about_a_request_names_its_trace(headers: dict[str, str], span: str | None, sampled: bool) -> None:
    """Cloud Logging shows a request's lines together by these three fields."""
    stream = io.StringIO()
    logs.configure("info", stream, project="acme")
    scope = {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    context = contextvars.copy_context()
    context.run(trace_context.REQUEST.set, scope)
    context.run(logging.getLogger("worker.test").info, "x")
    logging.getLogger("worker.test").info("outside")
    inside, outside = lines(stream)
    assert inside["logging.googleapis.com/trace"] == f"projects/acme/traces/{HEX}"
    assert inside.get("logging.googleapis.com/spanId") == span
    assert inside["logging.googleapis.com/trace_sampled"] is sampled
    assert not [name for name in outside if name.startswith("logging.googleapis.com/")]


@pytest.mark.parametrize(
    "stated",
    [
        "",
        f"00-{HEX}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{HEX}-{'0' * 16}-01",
        f"ff-{HEX}-{SPAN}-01",
        f"00-{HEX.upper()}-{SPAN}-01",
        f"00-{HEX}-{SPAN}-01-" + "x" * 1000,
    ],
)
def test_what_is_no_traceparent_is_none(stated: str) -> None:
    """The header is a stranger's: only its exact form counts."""
    assert trace_context.parse(stated) is None


def test_a_later_version_of_traceparent_is_read() -> None:
    """A version that is unknown may have more fields behind the ones that are known."""
    assert trace_context.parse(f"cc-{HEX}-{SPAN}-03-more") == trace_context.TraceContext(HEX, SPAN, True)


@pytest.mark.parametrize("stated", ["", "x", HEX[:-1], f"{HEX}/x", f"{'0' * 32}/1", f"{HEX}/1;o=9"])
def test_what_is_no_cloud_trace_context_is_none(stated: str) -> None:
    """Likewise."""
    assert trace_context.parse_cloud(stated) is None


def _followed(*pieces: bytes) -> None:
    follower = litestream_log.Follower()
    for piece in (*pieces, b""):
        follower(piece)


def test_litestreams_lines_become_ours() -> None:
    """Severity, text and error are Litestream's; the rest of its fields stand under one name."""
    stream = io.StringIO()
    logs.configure("info", stream)
    said = (
        b'{"time":"2026-01-31T12:00:00Z","level":"WARN","msg":"sync error","db":"/d/u.db","error":"no route","level":"x"}\n'
    )
    _followed(said)
    (line,) = lines(stream)
    assert (line["severity"], line["action"]) == ("WARNING", "litestream.log")
    assert line["message"] == "litestream: sync error: no route"
    assert line["litestream"] == {"db": "/d/u.db", "error": "no route"}


def test_litestreams_info_lines_are_for_debug() -> None:
    """Two lines a sync would bury the rest."""
    stream = io.StringIO()
    logs.configure("warning", stream)
    _followed(b'{"level":"INFO","msg":"replicating to"}\n')
    assert lines(stream) == []


@pytest.mark.parametrize("said", [b"panic: runtime error", b"[1]", b'"text"', b"{" * 100_000, b"\xff"])
def test_what_litestream_says_without_json_is_an_error(said: bytes) -> None:
    """A panic is text; so is what the loader says when there is no program."""
    stream = io.StringIO()
    logs.configure("info", stream)
    _followed(said[:7], said[7:] + b"\n\n")
    (line,) = lines(stream)
    assert (line["severity"], line["action"], line["litestream"]) == ("ERROR", "litestream.log", {})


def test_an_endless_line_of_litestreams_is_cut() -> None:
    """What is kept of one line is bounded, and the next line is whole (INV-7)."""
    stream = io.StringIO()
    logs.configure("info", stream)
    _followed(b"x" * 1_000_000, b"y\n", b'{"level":"ERROR","msg":"next"}')
    first, second = lines(stream)
    assert len(first["message"]) < 20_000
    assert second["message"] == "litestream: next"


def test_an_event_without_an_action_has_an_empty_one() -> None:
    """Libraries log too; the field is always there."""
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("uvicorn.error").warning("odd")
    assert lines(stream)[0]["action"] == ""


def test_what_is_no_text_does_not_break_a_line() -> None:
    """A lone surrogate or a control character in a message id is escaped."""
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("worker.test").info("message %s", "\ud800\x00\n")
    assert lines(stream)[0]["message"] == "message \ud800\x00\n"
    assert stream.getvalue().isascii()


def test_the_level_is_kept() -> None:
    """LOG_LEVEL=error drops a warning."""
    stream = io.StringIO()
    logs.configure("error", stream)
    logging.getLogger("worker.test").warning("x")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("level", "kept"), [("debug", logging.WARNING), ("info", logging.WARNING), ("error", logging.ERROR)]
)
def test_libraries_are_kept_quiet(level: str, kept: int) -> None:
    """A line per request of ours to the bucket would bury everything else."""
    logs.configure(level, io.StringIO())
    assert {logging.getLogger(name).level for name in NOISY} == {kept}


def test_a_terminal_gets_readable_lines() -> None:
    """A person reads time, level and message."""
    stream = Terminal()
    logs.configure("info", stream)
    logging.getLogger("worker.test").info("hello", extra={"action": "test.action"})
    assert stream.getvalue().rstrip().endswith("INFO    hello")
    assert "{" not in stream.getvalue()


def test_configuring_twice_logs_once() -> None:
    """The second configuration replaces the first."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure("info", first)
    logs.configure("info", second)
    logging.getLogger("worker.test").info("x")
    assert (len(first.getvalue()), len(lines(second))) == (0, 1)


def test_every_field_is_documented() -> None:
    """docs/log.md has each field that a line can have, and no other."""
    stream = io.StringIO()
    logs.configure("debug", stream, project="acme")
    logs.label(lambda: {"revision": "r"})
    context = contextvars.copy_context()
    context.run(trace_context.REQUEST.set, {"headers": [(b"traceparent", f"00-{HEX}-{SPAN}-01".encode())]})
    _followed(b'{"level":"ERROR","msg":"x"}')
    try:
        raise ValueError("broken")
    except ValueError:
        context.run(logging.getLogger("worker.test").exception, "it failed")
    found = {name for line in lines(stream) for name in line}
    table = (DOCS / "log.md").read_text().partition("## A line of the log")[2].partition("\n## ")[0]
    documented = [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table.splitlines() if row.startswith("| `")]
    assert found == {name for names in documented for name in names}
