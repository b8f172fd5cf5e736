"""Times, spans and counts as people read them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from publisher.values import counted, lasting, rfc3339


def test_a_time_is_in_utc_and_to_the_millisecond() -> None:
    """Whatever zone it came in."""
    assert rfc3339(datetime(2026, 1, 31, 12, 0, 0, 123_999, tzinfo=UTC)) == "2026-01-31T12:00:00.123Z"
    assert rfc3339(datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-31T10:00:00.000Z"


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(days=7), "7 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=1, seconds=7384), "1 day, 2:03:04"),
        (timedelta(seconds=10, milliseconds=700), "0:00:10"),
        (timedelta(), "0:00:00"),
    ],
)
def test_a_span_has_no_fractions_and_no_empty_hours(span: timedelta, said: str) -> None:
    """What is not said is nothing."""
    assert lasting(span) == said


def test_one_is_no_plural() -> None:
    """None is."""
    assert [counted(number, "user") for number in (0, 1, 1000)] == ["0 users", "1 user", "1,000 users"]
