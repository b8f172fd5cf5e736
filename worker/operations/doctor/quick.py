"""The checks that cost next to nothing: no request, some tens of milliseconds. `serve` makes them at its start.

That the limits nest and that one process is asked for, the settings have made sure of before there is anything to check.
"""

import logging

from worker.config import Settings
from worker.config.limits import BUSY_TIMEOUT_SECONDS, OIDC_TIMEOUT_SECONDS
from worker.database import connections
from worker.errors import ConfigError, SqliteTooOld, Unfit
from worker.operations.doctor import litestream
from worker.operations.doctor import machine as doctor_machine
from worker.operations.doctor.findings import Finding, ok, refused
from worker.replica.litestream import find_binary

log = logging.getLogger(__name__)


async def at_start(settings: Settings) -> None:
    """Log what is missing.

    Raises:
        Unfit: Serving here would be unsafe, or would not work.
    """
    findings = [] if settings.many_writers else [*await software(settings), *machine(settings)]
    for finding in findings:
        if finding.verdict == "warning":
            said = (finding.check, finding.found, finding.next_step)
            log.warning("%s: %s; %s", *said, extra={"action": "doctor.warning"})
    for finding in findings:
        if finding.verdict == "refused":
            raise Unfit(f"{finding.check}: {finding.found}; {finding.next_step}")


def limits(settings: Settings) -> list[Finding]:
    """The time limits that nest (INV-8), with their values."""
    hold, attempt = settings.hold_limit_seconds, BUSY_TIMEOUT_SECONDS + settings.sync_timeout_seconds
    answer = (
        f"transaction {BUSY_TIMEOUT_SECONDS:g} + confirmation {settings.sync_timeout_seconds} + "
        f"UPLOAD_SPACING_SECONDS {settings.upload_spacing_seconds:g} = {attempt + settings.upload_spacing_seconds:g} < "
        f"held {hold:g} < ACK_DEADLINE_SECONDS {settings.ack_deadline_seconds:g}"
    )
    if settings.push_audience:
        answer += f"; a wait of {OIDC_TIMEOUT_SECONDS:g} for certificates fits in between as well"
    return [
        ok("limits: answering", answer),
        ok(
            "limits: lease",
            f"renewed each {settings.lease_renew_seconds:g} < {settings.lease_ttl_seconds / 3:g}, a third of "
            f"LEASE_TTL_SECONDS {settings.lease_ttl_seconds:g}",
        ),
    ]


def sqlite() -> Finding:
    """Whether our own SQLite is new enough."""
    try:
        return ok("sqlite", connections.check_sqlite())
    except SqliteTooOld as error:
        found, _, step = str(error).partition(": ")
        return refused("sqlite", found, step)


async def software(settings: Settings) -> list[Finding]:
    """SQLite, and Litestream by what it says of itself."""
    try:
        binary = find_binary(settings.litestream_bin)
    except ConfigError as error:
        found, _, step = str(error).partition("; ")
        return [sqlite(), refused("litestream version", found, step)]
    return [sqlite(), await litestream.running_version(binary)]


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
