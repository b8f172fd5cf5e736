"""The checks that cost nothing: no request, no child process, about ten milliseconds. `serve` makes them at its start.

That the limits nest and that one process is asked for, the settings have made sure of before there is anything to check.
"""

import logging

from worker.config import PLATFORM_GRACE_SECONDS, Settings
from worker.database import connections
from worker.errors import ConfigError, SqliteTooOld, Unfit
from worker.operations.doctor import litestream
from worker.operations.doctor import machine as doctor_machine
from worker.operations.doctor.findings import Finding, ok, refused
from worker.replica.litestream import find_binary

log = logging.getLogger(__name__)


def at_start(settings: Settings) -> None:
    """Log what is missing.

    Raises:
        Unfit: Serving here would be unsafe, or would not work.
    """
    findings = [] if settings.many_writers else [*software(settings), *machine(settings)]
    for finding in findings:
        if finding.verdict == "warning":
            said = (finding.check, finding.found, finding.next_step)
            log.warning("%s: %s; %s", *said, extra={"action": "doctor.warning"})
    for finding in findings:
        if finding.verdict == "refused":
            raise Unfit(f"{finding.check}: {finding.found}; {finding.next_step}")


def limits(settings: Settings) -> list[Finding]:
    """The time limits that nest (INV-8), with their values."""
    attempt = settings.busy_timeout_seconds + settings.sync_timeout_seconds + settings.upload_spacing_seconds
    goodbye = settings.drain_seconds + settings.release_seconds + settings.trace_flush_seconds
    answer = (
        f"BUSY_TIMEOUT_SECONDS {settings.busy_timeout_seconds:g} + SYNC_TIMEOUT_SECONDS {settings.sync_timeout_seconds:g} + "
        f"UPLOAD_SPACING_SECONDS {settings.upload_spacing_seconds:g} = {attempt:g} < "
        f"HOLD_LIMIT_SECONDS {settings.hold_limit_seconds:g} < ACK_DEADLINE_SECONDS {settings.ack_deadline_seconds:g}"
    )
    if settings.push_audience:
        answer += f"; OIDC_TIMEOUT_SECONDS {settings.oidc_timeout_seconds:g} fits in between as well"
    return [
        ok("limits: answering", answer),
        ok(
            "limits: lease",
            f"LEASE_RENEW_SECONDS {settings.lease_renew_seconds:g} < {settings.lease_ttl_seconds / 3:g}, a third of "
            f"LEASE_TTL_SECONDS {settings.lease_ttl_seconds:g}",
        ),
        ok(
            "limits: stopping",
            f"DRAIN_SECONDS {settings.drain_seconds:g} + "
            f"RELEASE_SECONDS {settings.release_seconds:g} + TRACE_FLUSH_SECONDS {settings.trace_flush_seconds:g} = "
            f"{goodbye:g} < the platform's {PLATFORM_GRACE_SECONDS:g}",
        ),
    ]


def sqlite() -> Finding:
    """Whether our own SQLite is new enough."""
    try:
        return ok("sqlite", connections.check_sqlite())
    except SqliteTooOld as error:
        found, _, step = str(error).partition(": ")
        return refused("sqlite", found, step)


def software(settings: Settings) -> list[Finding]:
    """SQLite, and Litestream by what is written in its binary; a binary that tells nothing is left to a full check."""
    try:
        version = litestream.built_version(find_binary(settings.litestream_bin))
    except ConfigError as error:
        found, _, step = str(error).partition("; ")
        return [sqlite(), refused("litestream version", found, step)]
    return [sqlite()] if version is None else [sqlite(), litestream.judge(version, "its binary")]


def machine(settings: Settings, database_bytes: int = 0) -> list[Finding]:
    """Memory, and the place of the database.

    Args:
        settings: The process's settings.
        database_bytes: How large the database is at least, if that is known from elsewhere.
    """
    size = max(database_bytes, doctor_machine.database_bytes(settings.database_path))
    limit = doctor_machine.memory_limit()
    return [
        doctor_machine.memory(limit, database=size, queue_max_bytes=settings.queue_max_bytes),
        doctor_machine.disk(settings.database_path.absolute(), database=size, cloud_run=settings.revision != "local"),
    ]
