"""How amounts and times are said to people, in a terminal and on the page. What is not known is said so, and is never 0."""

from datetime import datetime, timedelta
from typing import Final

from publisher.values import lasting

NOT_KNOWN: Final = "not known"
_STEP: Final = 1000.0
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def size(number: float | None) -> str:
    """Bytes, to three digits."""
    if number is None:
        return NOT_KNOWN
    unit = 0
    while number >= _STEP and unit < len(_UNITS) - 1:
        number /= _STEP
        unit += 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 or number >= 100 else f"{number:.3g} {_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """A span of time: in milliseconds below a second, in seconds below two minutes, then as a clock shows it."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return lasting(timedelta(seconds=round(seconds)))


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago a moment was; one in the future is now: two clocks may differ."""
    return NOT_KNOWN if moment is None else f"{duration(max(0.0, round((now - moment).total_seconds())))} ago"


def rate(per_second: float | None) -> str:
    """Messages a second, or a minute where they are few."""
    if per_second is None:
        return NOT_KNOWN
    if per_second and per_second < 1:
        return f"{per_second * 60:.3g} a minute"
    return f"{per_second:,.3g} a second" if per_second < 1000 else f"{per_second:,.0f} a second"
