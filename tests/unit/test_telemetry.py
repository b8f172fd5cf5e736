"""Logs: one JSON object a line in Cloud Logging's fields, or readable lines on a terminal."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from worker import telemetry

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
    telemetry.configure("info", stream)
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
    telemetry.configure("debug", stream)
    logging.getLogger("worker.test").log(level, "x")
    assert lines(stream)[0]["severity"] == severity


def test_an_exception_is_part_of_its_line() -> None:
    """A traceback stays with its event instead of becoming ten lines without a severity."""
    stream = io.StringIO()
    telemetry.configure("info", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("worker.test").exception("it failed", extra={"action": "test.failed"})
    (line,) = lines(stream)
    assert line["message"].startswith("it failed\nTraceback (most recent call last):")
    assert line["message"].endswith("ValueError: broken")


def test_an_event_without_an_action_has_an_empty_one() -> None:
    """Libraries log too; the field is always there."""
    stream = io.StringIO()
    telemetry.configure("info", stream)
    logging.getLogger("uvicorn.error").warning("odd")
    assert lines(stream)[0]["action"] == ""


def test_what_is_no_text_does_not_break_a_line() -> None:
    """A lone surrogate or a control character in a message id is escaped."""
    stream = io.StringIO()
    telemetry.configure("info", stream)
    logging.getLogger("worker.test").info("message %s", "\ud800\x00\n")
    assert lines(stream)[0]["message"] == "message \ud800\x00\n"
    assert stream.getvalue().isascii()


def test_the_level_is_kept() -> None:
    """LOG_LEVEL=error drops a warning."""
    stream = io.StringIO()
    telemetry.configure("error", stream)
    logging.getLogger("worker.test").warning("x")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("level", "kept"), [("debug", logging.WARNING), ("info", logging.WARNING), ("error", logging.ERROR)]
)
def test_libraries_are_kept_quiet(level: str, kept: int) -> None:
    """A line per request of ours to the bucket would bury everything else."""
    telemetry.configure(level, io.StringIO())
    assert {logging.getLogger(name).level for name in NOISY} == {kept}


def test_a_terminal_gets_readable_lines() -> None:
    """A person reads time, level and message."""
    stream = Terminal()
    telemetry.configure("info", stream)
    logging.getLogger("worker.test").info("hello", extra={"action": "test.action"})
    assert stream.getvalue().rstrip().endswith("INFO    hello")
    assert "{" not in stream.getvalue()


def test_configuring_twice_logs_once() -> None:
    """The second configuration replaces the first."""
    first, second = io.StringIO(), io.StringIO()
    telemetry.configure("info", first)
    telemetry.configure("info", second)
    logging.getLogger("worker.test").info("x")
    assert (len(first.getvalue()), len(lines(second))) == (0, 1)
