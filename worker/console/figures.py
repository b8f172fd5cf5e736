"""The drawings of the page, as numbers for SVG: sparklines, bars, and the timeline of what can be restored. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from worker.operations.checkpoints import Listed
from worker.replica.survey import Generation, Survey
from worker.telemetry.status_format import Point

SPARK_SECONDS: Final = 1800
SPARK_WIDTH: Final = 120
SPARK_HEIGHT: Final = 28
_GAP_SECONDS: Final = 75
"""Two points that are further apart have something between them that is not known: the line is broken."""


@dataclass(frozen=True, slots=True)
class Spark:
    """One sparkline: lines, each a list of points as SVG has it, and the highest value."""

    lines: list[str]
    highest: float


def spark(points: Sequence[Point], name: str, now: float) -> Spark | None:
    """The sparkline of one of the points' values over the last half hour; None while there are not two points."""
    recent = [(point.at, getattr(point, name)) for point in points if point.at > now - SPARK_SECONDS]
    known = [(at, float(value)) for at, value in recent if value is not None]
    if len(known) < 2:
        return None
    highest = max(value for _, value in known)
    lines: list[list[str]] = []
    before = float("-inf")
    for at, value in known:
        if at - before > _GAP_SECONDS:
            lines.append([])
        x = SPARK_WIDTH * (1 - (now - at) / SPARK_SECONDS)
        y = SPARK_HEIGHT - 1 - (SPARK_HEIGHT - 2) * (value / highest if highest else 0.0)
        lines[-1].append(f"{x:.1f},{y:.1f}")
        before = at
    return Spark([" ".join(line) for line in lines if len(line) > 1], highest)


@dataclass(frozen=True, slots=True)
class Bar:
    """One generation on the timeline: where it begins and how wide it is, in per mille of the whole."""

    generation: Generation
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Tick:
    """One checkpoint on the timeline, in per mille from the left."""

    checkpoint: Listed
    left: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What can be restored, from the oldest moment to now."""

    begin: datetime
    end: datetime
    bars: list[Bar]
    ticks: list[Tick]


def timeline(found: Survey, checkpoints: Sequence[Listed], now: datetime) -> Timeline | None:
    """The timeline of the generations that are or were live; None while there is none."""
    if not found.history:
        return None
    begin = found.history[0].began
    span = max((now - begin) / timedelta(seconds=1), 1.0)

    def place(moment: datetime) -> float:
        return round(1000 * min(max((moment - begin) / timedelta(seconds=1) / span, 0.0), 1.0), 1)

    bars = [
        Bar(each, place(each.began), round(max(place(each.ended or now) - place(each.began), 2.0), 1))
        for each in found.history
    ]
    ticks = [Tick(each, place(each.created_at)) for each in checkpoints if each.created_at >= begin]
    return Timeline(begin, now, bars, ticks)
