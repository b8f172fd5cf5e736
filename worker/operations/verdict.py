"""One verdict on the service: serving, standing by, stuck, or not known; since when, why, and what to do next. Pure.

It is what an operator wants first. It follows from the service's own status; where the service does not answer, from
`lease.json`. What the next step is for each stall stands here and nowhere else.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from worker.operations.lease import Status as Lease
from worker.operations.wording import duration
from worker.telemetry.status_format import Status
from worker.telemetry.trouble import ENDED_BY_CONFIRMATION, Stall

UNCONFIRMED_SECONDS: Final = 10.0
"""A confirmation that takes so long is no slow upload: SYNC_TIMEOUT_SECONDS is 5 by default."""
SILENT_SECONDS: Final = 30.0
"""A lease that was not renewed for so long is a dead holder's: twice LEASE_TTL_SECONDS as it is by default."""

Kind = Literal["serving", "standing by", "stuck", "not known"]

_DOCTOR: Final = "python -m worker doctor"
_LEASE: Final = "python -m worker lease show"
_ROLE: Final = "roles/storage.objectUser"
_DENIED: Final = re.compile(r"\b(401|403)\b|forbidden|denied|may not|credentials", re.IGNORECASE)
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One line for the banner, and what explains it.

    `since` is None where it is not known. `cause` and `step` are sentences, `command` is what to run next; each may be
    empty.
    """

    kind: Kind
    title: str
    since: datetime | None
    cause: str
    step: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out. The service either gave its status, or `problem` says why not.

    Args:
        url: The service's address.
        status: What it said.
        problem: Why it said nothing.
        refused: It answered, and refused to say: `problem` is about the asker.
        answered_at: When it last gave its status.
        lease: The lease, where it was looked at.
        lease_problem: Why the lease could not be read.
        now: The time.
    """

    url: str
    now: datetime
    status: Status | None = None
    problem: str = ""
    refused: bool = False
    answered_at: datetime | None = None
    lease: Lease | None = None
    lease_problem: str = ""


@dataclass(frozen=True, slots=True)
class _Explained:
    title: str
    step: str
    command: str = _DOCTOR


_STALLS: Final[Mapping[str, _Explained]] = {
    "disk.full": _Explained(
        "The database's disk is full", "Give the service more room: more memory, or a larger DATA_SIZE; then deploy."
    ),
    "writer.outage": _Explained(
        "The database commits nothing", "Messages are answered 503 and come again. See what keeps the database."
    ),
    "writer.refused": _Explained(
        "The database refuses messages", "They stay in the queue. The log's entry has the stack: report it."
    ),
    "litestream.hung": _Explained(
        "Litestream does not answer",
        "It is killed and started again. If it lasts, the instance has no CPU between requests.",
    ),
    "litestream.died": _Explained(
        "Litestream ends again and again", "It is started again. If it lasts, give the instance more memory."
    ),
    "litestream.restart": _Explained("Litestream does not start", "Nothing is confirmed without it. See why it does not."),
    "replication.gave_up": _Explained(
        "Nothing is confirmed: the bucket takes no upload",
        "Messages are answered 503 and come again; nothing is lost. See what the bucket refuses.",
    ),
    "replication.retry": _Explained(
        "Nothing is confirmed: the bucket takes no upload",
        "Messages are held, then answered 503, and come again; nothing is lost. See what the bucket refuses.",
    ),
    "generation.retry": _Explained(
        "It cannot begin: the bucket does not take the new generation", "Messages wait. See what the bucket refuses."
    ),
    "lease.retry": _Explained(
        "The lease record cannot be reached", "The service goes on while it can. See whether the bucket answers at all."
    ),
    "body.unstored": _Explained("A large message cannot be kept", "It stays in the queue. See what the bucket refuses."),
    "sender.certificates_retry": _Explained(
        "Google's certificates cannot be renewed",
        "Known ones stay in use; tokens with a new key are answered 503. See whether the service reaches the network.",
        "curl -sS https://www.googleapis.com/oauth2/v1/certs",
    ),
}


def judge(facts: Facts) -> Verdict:
    """The verdict."""
    if facts.status is not None:
        return _of_status(facts.status, facts.now)
    if facts.refused:
        return Verdict(
            kind="not known",
            title="The service does not say how it is",
            since=None,
            cause=facts.problem,
            step="It answers, and refuses this request. Say who you are, or which service is meant.",
            command="python -m worker status",
        )
    return _silent(facts)


def _of_status(status: Status, now: datetime) -> Verdict:
    stall = _worst(status)
    if stall is not None:
        explained = explain(stall, status.store)
        return Verdict(
            kind="stuck",
            title=explained.title,
            since=stall.since,
            cause=stall.text,
            step=explained.step,
            command=explained.command,
        )
    waited = status.oldest_unconfirmed_seconds or 0.0
    if status.state == "serving" and waited >= UNCONFIRMED_SECONDS:
        return Verdict(
            kind="stuck",
            title="Nothing is confirmed",
            since=status.now - timedelta(seconds=waited),
            cause=f"The oldest committed message has waited {waited:.0f} s for the bucket, and no reason was given.",
            step="Messages are held, then answered 503, and come again; nothing is lost. See what the bucket does.",
            command=_DOCTOR,
        )
    if status.state == "serving":
        return Verdict(kind="serving", title="Serving", since=status.state_since, cause=_rate(status))
    return _waiting(status)


def _worst(status: Status) -> Stall | None:
    """The gravest stall that keeps messages from being acknowledged; the others are no verdict on a service that serves."""
    keeps = ENDED_BY_CONFIRMATION if status.state == "serving" else ENDED_BY_CONFIRMATION | {"lease.retry"}
    return next((stall for stall in status.trouble if stall.action in keeps), None)


def _rate(status: Status) -> str:
    window = status.acknowledged.get("1m")
    if window is None or not window.outcomes:
        return "No message came in the last minute."
    return f"{sum(window.outcomes.values()):,} messages were acknowledged in the last minute."


def _waiting(status: Status) -> Verdict:
    if status.state == "draining":
        title, cause = "Stopping", "It answers what it holds, and lets the next instance begin."
    elif status.epoch is not None:
        title, cause = "Starting", f"It holds the lease at epoch {status.epoch}, and restores what is live."
    else:
        title = "Standing by"
        cause = "Another instance holds the lease. This one holds the messages that it gets, and begins when that one ends."
    return Verdict(kind="standing by", title=title, since=status.state_since, cause=cause, command=_LEASE)


def _silent(facts: Facts) -> Verdict:
    lease = facts.lease
    if lease is None:
        cause = facts.problem
        if facts.lease_problem:
            cause += f". The bucket does not say more: {facts.lease_problem}"
        return Verdict(
            kind="stuck",
            title="The service does not answer",
            since=facts.answered_at,
            cause=cause,
            step="See whether the service runs, and whether SERVICE_URL names it.",
            command=logs_command(facts.url),
        )
    renewed = lease.last_renewal
    silent = renewed is None or (facts.now - renewed).total_seconds() >= SILENT_SECONDS
    if lease.state == "released":
        cause = f"No writer holds the lease: it was released at epoch {lease.epoch}. Messages wait in the queue."
    elif silent:
        ago = "" if renewed is None else f" for {duration((facts.now - renewed).total_seconds())}"
        cause = (
            f"The writer, revision {lease.revision} at epoch {lease.epoch}, has not renewed its lease{ago}: it is dead, or "
            "cut off from the bucket. Messages wait in the queue."
        )
    else:
        return Verdict(
            kind="stuck",
            title="The service does not answer",
            since=facts.answered_at,
            cause=f"{facts.problem}. In the bucket a writer, revision {lease.revision}, renews its lease: it may have ended "
            "just now, or SERVICE_URL names another place.",
            step="See who writes, and whether SERVICE_URL is right.",
            command=_LEASE,
        )
    return Verdict(
        kind="stuck",
        title="There is no writer",
        since=renewed or facts.answered_at,
        cause=cause,
        step="Start an instance: it takes over by itself. If it ends again, its log says why.",
        command=logs_command(facts.url),
    )


def explain(stall: Stall, store: str) -> _Explained:
    """What a stall means, and the next step; a refusal for want of rights has a step of its own."""
    found = _STALLS[stall.action]
    if _DENIED.search(stall.text) and stall.action.startswith(("replication.", "generation.", "lease.", "body.")):
        bucket = "gs://" + store.removeprefix("gs://").partition("/")[0]
        return _Explained(
            found.title.replace("the bucket takes no upload", "the bucket refuses the service's account"),
            f"Give the service's account {_ROLE} on the bucket.",
            f"gcloud storage buckets add-iam-policy-binding {shlex.quote(bucket)} "
            f"--member=serviceAccount:ACCOUNT --role={_ROLE}",
        )
    return found


def logs_command(url: str) -> str:
    """The command that shows why a service does not run: of Cloud Run where the address is one of its own."""
    host = urlsplit(url).hostname or ""
    if host in _LOCAL:
        return "python -m worker serve"
    if found := re.fullmatch(r"(?P<name>[a-z0-9-]+)-\d+\.(?P<region>[a-z0-9-]+)\.run\.app", host):
        return f"gcloud run services logs read {found['name']} --region={found['region']} --limit=50"
    if found := re.fullmatch(r"(?P<name>[a-z0-9-]+)-[a-z0-9]+-[a-z]{2}\.a\.run\.app", host):
        return f"gcloud run services logs read {found['name']} --limit=50"
    return _DOCTOR
