"""The real Pub/Sub emulator as a context manager.

`gcloud beta emulators pubsub start` is a Python process with a Java child. Both live in a process group of
their own, and the group is killed on the way out, whatever happened: a leftover Java process keeps the port.
"""

import http.client
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from local.ports import free_port

READY_SECONDS: Final = 60.0
"""How long the emulator may take to answer, in seconds: 1 to 10 are usual, a cold disk takes longer."""
STOP_SECONDS: Final = 5.0
"""How long the emulator may take to end after SIGTERM, in seconds, before it gets SIGKILL."""
POLL_SECONDS: Final = 0.1
"""Pause between two looks at a starting emulator, in seconds."""
LOG_TAIL_BYTES: Final = 2000
"""How much of the emulator's own output an error quotes, in bytes."""

_INSTALL: Final = (
    "install it with `gcloud components install pubsub-emulator`, "
    "or with the Debian package google-cloud-cli-pubsub-emulator"
)
_MISSING_IN_LOG: Final = {
    "Java": "it needs a Java runtime on PATH: install one (Debian: default-jre-headless)",
    "components": _INSTALL,
    "command group": "install the beta commands with `gcloud components install beta`",
}


class EmulatorError(RuntimeError):
    """The emulator did not start; the message quotes what it printed."""


class EmulatorMissing(EmulatorError):
    """The emulator is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running emulator.

    Attributes:
        host: `127.0.0.1:PORT`, the value PUBSUB_EMULATOR_HOST takes.
        project: the project it was started for; it accepts any other as well.
        data_dir: where it keeps its files.
        log: what it printed.
    """

    host: str
    project: str
    data_dir: Path
    log: Path

    @property
    def url(self) -> str:
        """Base address of its REST interface, without a trailing slash."""
        return f"http://{self.host}"

    def gcloud_env(self) -> dict[str, str]:
        """Return the variables that point the real `gcloud` and Google's clients at this emulator."""
        return {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"{self.url}/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CORE_PROJECT": self.project,
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "PUBSUB_EMULATOR_HOST": self.host,
        }


@contextmanager
def emulator(data_dir: Path, project: str, port: int | None = None) -> Iterator[Emulator]:
    """Run the Pub/Sub emulator while the block runs.

    Args:
        data_dir: where the emulator keeps its files and its log; created when missing.
        project: the project id it serves.
        port: the loopback port to listen on, or None for a free one.

    Yields:
        The emulator, once it answers requests.

    Raises:
        EmulatorMissing: gcloud, its pubsub-emulator component or Java is not installed.
        EmulatorError: it ended, or did not answer within READY_SECONDS.
    """
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise EmulatorMissing(f"the Pub/Sub emulator needs gcloud on PATH: install the Google Cloud CLI, then {_INSTALL}")
    data_dir.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{port or free_port()}"
    running = Emulator(host=host, project=project, data_dir=data_dir, log=data_dir / "emulator.log")
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            [
                *(gcloud, "beta", "emulators", "pubsub", "start"),
                *(f"--project={project}", f"--host-port={host}", f"--data-dir={data_dir}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, running)
        yield running
    finally:
        _kill_group(process)


def _wait_until_ready(process: subprocess.Popen[bytes], running: Emulator) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(running.host):
        if time.monotonic() > deadline:
            raise EmulatorError(f"the Pub/Sub emulator did not answer within {READY_SECONDS:.0f} s; {_tail(running.log)}")
        try:
            process.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        raise _ended(running.log)
    # Another server on a port given by the caller would answer in our emulator's place.
    if process.poll() is not None:
        raise _ended(running.log)


def _answers(host: str) -> bool:
    connection = http.client.HTTPConnection(host, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ended(log: Path) -> EmulatorError:
    text = log.read_text(errors="replace")
    if "Executing:" not in text:  # gcloud prints this line once everything it needs was found
        for word, next_step in _MISSING_IN_LOG.items():
            if word in text:
                return EmulatorMissing(f"the Pub/Sub emulator cannot start: {next_step}; {_tail(log)}")
    return EmulatorError(f"the Pub/Sub emulator ended at once; {_tail(log)}")


def _tail(log: Path) -> str:
    text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    return f"it printed:\n{text}" if text else "it printed nothing"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader while the Java child runs, so it is signalled even when gcloud has ended.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        if number is signal.SIGTERM:
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    process.wait()
