"""Findings: the results of checking the environment, one line each with the next step. Pure.

    ok       as it should be
    note     worth knowing, or could not be looked at here; nothing has to be done
    warning  serving is safe, but something is missing or will hurt one day
    refused  serving would be unsafe, or would not work

The checks are in the doctor_*.py beside this file; docs/doctor.md says what each means.
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Verdict = Literal["ok", "note", "warning", "refused"]

_SEVERITY: Final[tuple[Verdict, ...]] = ("ok", "note", "warning", "refused")


class Finding(msgspec.Struct, frozen=True):
    """One line. `next_step` is empty when there is nothing to do."""

    verdict: Verdict
    check: str
    found: str
    next_step: str = ""


class Report(msgspec.Struct, frozen=True):
    """All lines, and the worst verdict among them."""

    verdict: Verdict
    findings: tuple[Finding, ...]


def ok(check: str, found: str) -> Finding:
    """As it should be."""
    return Finding("ok", check, found)


def note(check: str, found: str, next_step: str = "") -> Finding:
    """Worth knowing."""
    return Finding("note", check, found, next_step)


def warning(check: str, found: str, next_step: str) -> Finding:
    """Safe, but to be fixed."""
    return Finding("warning", check, found, next_step)


def refused(check: str, found: str, next_step: str) -> Finding:
    """Not to be served in."""
    return Finding("refused", check, found, next_step)


def report(findings: Iterable[Finding]) -> Report:
    """The lines with their worst verdict."""
    every = tuple(findings)
    worst: Verdict = max((finding.verdict for finding in every), key=_SEVERITY.index, default="ok")
    return Report("ok" if worst == "note" else worst, every)
