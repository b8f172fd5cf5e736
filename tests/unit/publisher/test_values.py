"""What people type is read in one place: a value, or a text that says what it must be; never a traceback, never a guess."""

import contextlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import publisher.cli
from publisher import values
from publisher.command_line import run
from worker.cli import main
from worker.events.declaration import MAX_SUBJECT_BYTES
from worker.events.users import MAX_USER_ID

NASTY = [
    "",
    " ",
    "-",
    "--",
    "1_0",
    " 1",
    "1\n",
    "+5",
    "\u0665",
    "\uff11",
    "1e3",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "9" * 5000,
    "-5",
    "0",
    "999999d",
    "999999999999d",
    "\u0661d",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2026-01-31",
    "2026-W05-6",
    "2026-01-31T12:00:00",
    "2026-02-30T00:00:00Z",
    "24:00",
    "\udcff",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "/",
    "..",
    "http://",
    "http://[::1",
    "http://h:99999999",
    "ftp://h",
    "projects/p/subscriptions/",
    "%s",
    "{}",
    "x" * 10_000,
]


def options(command: click.Command) -> Iterator[tuple[click.Command, click.Parameter]]:
    """Every option and argument that takes a value, of every command below a program, with its command."""
    yield from ((command, each) for each in command.params if not (isinstance(each, click.Option) and each.is_flag))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            nested = command.get_command(context, name)
            assert nested is not None
            yield from options(nested)


ALL = [*options(main.command), *options(publisher.cli.command)]


def test_there_are_options_to_try() -> None:
    """The property below stands on them."""
    assert len(ALL) > 60


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(range(len(ALL))), st.sampled_from(NASTY) | st.text(max_size=20))
def test_no_value_of_an_option_is_a_traceback(number: int, text: str) -> None:
    """F11: each is taken, or ends with 2 and one line that names the option."""
    command, option = ALL[number]
    parsed = click.Command("parsed", params=[option], callback=lambda **_: 0)
    argv = [f"{option.opts[-1]}={text}"] if isinstance(option, click.Option) else ["--", text]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = run(parsed, argv, name="parsed", environ={})
        except SystemExit as end:
            code = int(end.code or 0)
    assert code in (0, 2), command.name
    if code:
        first, second = said.getvalue().splitlines()
        shown = option.opts[-1] if isinstance(option, click.Option) else str(option.metavar).strip("[].")
        assert first.startswith(f"error: {shown}: "), first
        assert second == "help:  parsed --help"


@pytest.mark.parametrize("text", ["1_0", "\u0665", " 5", "5\n", "+5", "5.0", "0", "-5", "", str(2**63), "9" * 5000])
def test_an_id_is_written_in_one_way(text: str) -> None:
    """F11: `1_0` is not user 10, and an Arabic five is not user 5."""
    with pytest.raises(values.Wrong, match="must be a whole number from 1 to 9223372036854775807"):
        values.user_id(text)


def test_limits_are_those_of_messages() -> None:
    """What is written in two places is one number."""
    assert values.MAX_USER_ID == MAX_USER_ID
    assert values.user_id(str(MAX_USER_ID)) == MAX_USER_ID
    assert values.SUBJECT_MAX_BYTES == MAX_SUBJECT_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "999999d",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "1_0m",
        "\u0663h",
        "2026-01-31",
        "12:00",
        "",
        "now",
    ],
)
def test_a_time_is_a_time_or_refused(text: str) -> None:
    """F11: what Python cannot count is refused with what would do."""
    with pytest.raises(values.Wrong, match=r"give |must be at most|must lie"):
        values.moment(text)


def test_times_and_spans_are_read() -> None:
    """With their zone, and as how long ago."""
    assert values.moment("2026-01-31T12:00:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    for text, ago in (("90s", timedelta(seconds=90)), ("30m", timedelta(minutes=30)), ("36500d", timedelta(days=36500))):
        assert abs(datetime.now(UTC) - ago - values.moment(text)) < timedelta(seconds=60)


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "a\nb", "\ud800"])
def test_a_path_is_one_that_the_system_takes(text: str) -> None:
    """F11: `restore -o ""` is refused as such."""
    with pytest.raises(values.Wrong, match="must be a path"):
        values.path(text)


@pytest.mark.parametrize("text", ["my file.db", "zo\xeb/x", "-", "a#b?c%20", "\udcff"])
def test_any_other_path_is_taken(text: str) -> None:
    """Signs that mean something elsewhere mean nothing here."""
    assert str(values.path(text)) == text


@pytest.mark.parametrize(
    "text", ["service", "http://", "ftp://x", "http://[::1", "http://x:0x1", "http://a b", '"http://a"', ""]
)
def test_an_address_is_one(text: str) -> None:
    """Before a request is made of it."""
    with pytest.raises(values.Wrong):
        values.address(text)
    assert values.address("http://[::1]:8080/x") == "http://[::1]:8080/x"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    """And a clock that is behind makes none negative."""
    assert values.age(timedelta(seconds=seconds)) == text
