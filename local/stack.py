"""The whole service on one machine: the real Pub/Sub emulator, the fake Cloud Storage, the worker, and the subscription.

Where gcloud or its emulator is missing there is no subscription: messages are then delivered with `--push-to`.
Leaving the context ends every process it started, whatever happened.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from local.gcs_process import FakeGcs
from local.ports import free_port
from local.pubsub import Emulator, EmulatorMissing, emulator
from local.worker_process import ROOT, WorkerProcess, wait_until

PROJECT: Final = "local"
TOPIC: Final = "users"
SUBSCRIPTION: Final = "users-push"
DEAD_LETTERS: Final = "users-dead-letters"
"""The topic that a subscription's options may name for them, and the subscription that keeps them."""
BUCKET: Final = "solowriter"
REPLICA_URL: Final = f"gs://{BUCKET}/store"
ACK_DEADLINE_SECONDS: Final = 60
# A laptop should not wait 15 s for a killed worker's lease. Renewals stay within the bucket's one write a second.
QUICK_LEASE: Final = {"LEASE_TTL_SECONDS": "4"}


_CONSOLE_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack. `pubsub` is None where there is no emulator, and `why_not` then says how to get one."""

    gcs: FakeGcs
    worker: WorkerProcess
    pubsub: Emulator | None
    why_not: str
    replica_url: str = REPLICA_URL
    delivery: str = "push"

    def publisher_environment(self) -> dict[str, str]:
        """What points our publisher and the real gcloud at this stack."""
        if self.pubsub is None:
            return {}
        return {**self.pubsub.gcloud_env(), "GOOGLE_CLOUD_PROJECT": PROJECT, "TOPIC": TOPIC}

    def subscribe(self, endpoint: str, options: Mapping[str, object] | None = None) -> None:
        """Create the topic and the subscription, which pushes to `endpoint` unless the worker pulls.

        Nothing happens without an emulator.

        Args:
            endpoint: Where messages are pushed.
            options: More fields of the subscription.
        """
        if self.pubsub is not None:
            push = {"pushConfig": {"pushEndpoint": endpoint}} if self.delivery == "push" else {}
            create_subscription(self.pubsub, {**push, **(options or {})})


class ConsoleProcess:
    """`python -m worker console`, beside a worker: as a context manager, from beginning to end of the block.

    Args:
        worker: Whose service it asks, and with whose settings.
        log: File that its error output is appended to.
        port: Preferred port; 0 for any.
        environment: Variables on top of the worker's.
    """

    def __init__(
        self, worker: WorkerProcess, log: Path, *, port: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = {**worker.environment, "SERVICE_URL": worker.url, **(environment or {})}
        self.log, self._port = log, port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        """Where it listens, without the final slash."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "worker", "console", "--no-browser", "--port", str(self._port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, "the console's answer")
        except TimeoutError as error:
            self.stop()
            raise RuntimeError(f"the console did not start; its log: {self.log.read_text()[-1500:]}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; nothing happens if it has ended."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_CONSOLE_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def stack(
    directory: Path,
    *,
    settings: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    worker_port: int = 0,
    gcs_port: int = 0,
    pubsub_port: int = 0,
    delivery: str = "push",
) -> Iterator[Stack]:
    """Start everything but the subscription; the worker serves when the block begins.

    Args:
        directory: Everything it writes; a bucket found there is served again.
        settings: The worker's, on top of `QUICK_LEASE`.
        say: Told about progress, a line at a time.
        worker_port: Preferred port of the worker; 0 for any. So are the others.
        gcs_port: See `worker_port`.
        pubsub_port: See `worker_port`.
        delivery: The worker's DELIVERY; a worker that pulls needs the emulator.

    Raises:
        RuntimeError: A part did not start; the text holds its log.
    """
    with ExitStack() as parts:
        say("starting the fake Cloud Storage")
        gcs = parts.enter_context(
            FakeGcs(directory / "gcs", buckets=(BUCKET,), port=free_port(gcs_port), log=_log(directory, "gcs"))
        )
        say("starting the Pub/Sub emulator")
        pubsub, why_not = None, ""
        try:
            pubsub = parts.enter_context(emulator(directory / "pubsub", PROJECT, free_port(pubsub_port)))
        except EmulatorMissing as error:
            if delivery == "pull":
                raise
            why_not = str(error)
        worker = WorkerProcess(
            disk=directory / "disk",
            replica_url=REPLICA_URL,
            environment={
                **gcs.environment(),
                "ACK_DEADLINE_SECONDS": str(ACK_DEADLINE_SECONDS),
                **QUICK_LEASE,
                "LITESTREAM_METRICS_ADDRESS": f"127.0.0.1:{free_port(9090)}",
                **(_pulling(pubsub) if pubsub is not None and delivery == "pull" else {}),
                **(settings or {}),
            },
            port=free_port(worker_port),
            log=_log(directory, "worker"),
        )
        parts.callback(worker.kill)
        say("worker init")
        init = worker.run("init")
        if init.returncode != 0:
            raise RuntimeError(f"worker init failed: {init.stderr.strip()}")
        say("starting the worker")
        worker.start().wait_serving()
        yield Stack(gcs, worker, pubsub, why_not, delivery=delivery)


def _pulling(pubsub: Emulator) -> dict[str, str]:
    """What a worker needs that pulls."""
    name = f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}"
    return {"DELIVERY": "pull", "SUBSCRIPTION": name, "PUBSUB_EMULATOR_HOST": pubsub.host}


def _log(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{name}.log"


def create_subscription(pubsub: Emulator, options: Mapping[str, object]) -> None:
    """Create topic and subscription as the REST reference says (projects.topics.create, projects.subscriptions.create)."""
    topic, dead_letters = (f"projects/{PROJECT}/topics/{name}" for name in (TOPIC, DEAD_LETTERS))
    subscription = {
        "topic": topic,
        "ackDeadlineSeconds": ACK_DEADLINE_SECONDS,
        **options,
    }
    wanted: dict[str, Mapping[str, object]] = {
        topic: {},
        dead_letters: {},
        f"projects/{PROJECT}/subscriptions/{DEAD_LETTERS}": {"topic": dead_letters},
        f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}": subscription,
    }
    for name, body in wanted.items():
        answer = httpx.put(f"{pubsub.url}/v1/{name}", json=body, trust_env=False, timeout=60)
        if answer.status_code != httpx.codes.CONFLICT:  # it is there already
            answer.raise_for_status()
