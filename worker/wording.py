"""How times, spans and counts are written for people."""

from datetime import UTC, datetime, timedelta


def rfc3339(moment: datetime) -> str:
    """A time in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lasting(span: timedelta) -> str:
    """A span of time in days, hours, minutes and whole seconds: 7 days; 1 day, 2:03:04; 0:00:10."""
    return str(span).partition(".")[0].removesuffix(", 0:00:00")


def counted(number: int, one: str) -> str:
    """A count and what is counted, whose plural ends in s."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
