"""Real processes and a real bucket, as the integration tests see them: pushes, objects, and a worker's children."""

import itertools
import json
import os
import signal
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from local.gcs_process import FakeGcs
from local.worker_process import WorkerProcess, wait_until
from publisher import message
from worker.events.users import USER_CREATED, UserCreated
from worker.lease.record import Record, encode

BUCKET = "users"
PREFIX = "store"
URL = f"gs://{BUCKET}/{PREFIX}"
QUICK = {"LEASE_TTL_SECONDS": "3.5"}
"""About as short as the settings allow, so that a lease runs out within a test."""
GENERATIONS = f"{PREFIX}/generations/"
RECORD = f"{PREFIX}/lease.json"
_SENDERS = 16
_AGAIN_SECONDS = 0.05


def body(user_id: int, message_id: str, *, email: str | None = None) -> bytes:
    """A push of one user."""
    data = USER_CREATED.encode(UserCreated(user_id=user_id, email_address=email))
    return message.envelope(data, {}, message_id, "2024-01-02T03:04:05Z", "projects/p/subscriptions/s")


def push(worker: WorkerProcess, user_id: int, message_id: str) -> httpx.Response:
    """Deliver one message and wait for its answer."""
    return httpx.post(worker.url, content=body(user_id, message_id), timeout=60, trust_env=False)


def pushing(worker: WorkerProcess, user_id: int, message_id: str) -> "Future[httpx.Response]":
    """Deliver one message on a thread of its own."""
    answer: Future[httpx.Response] = Future()

    def deliver() -> None:
        try:
            answer.set_result(push(worker, user_id, message_id))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=deliver, daemon=True).start()
    return answer


class Objects:
    """What is in the bucket, read and changed behind the worker's back."""

    def __init__(self, gcs: FakeGcs) -> None:
        self._http = httpx.Client(base_url=gcs.url, trust_env=False, timeout=10)

    def initialize(self, prefix: str = PREFIX) -> None:
        """Do what `python -m worker init` does, without a process."""
        self.write(f"{prefix}/lease.json", encode(Record(state="released", holder="", revision="", epoch=0, live=None)))

    def record(self) -> dict[str, Any]:
        """The lease record."""
        found: dict[str, Any] = json.loads(self.read(RECORD))
        return found

    def read(self, name: str) -> bytes:
        """An object's bytes."""
        answer = self._http.get(f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}", params={"alt": "media"})
        return answer.raise_for_status().content

    def write(self, name: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        parameters = {"uploadType": "media", "name": name}
        self._http.post(f"/upload/storage/v1/b/{BUCKET}/o", params=parameters, content=data).raise_for_status()

    def names(self, prefix: str) -> list[str]:
        """The objects below a prefix."""
        answer = self._http.get(f"/storage/v1/b/{BUCKET}/o", params={"prefix": prefix}).raise_for_status()
        return [item["name"] for item in answer.json().get("items", [])]

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._http.delete(f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}").raise_for_status()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def litestream_of(worker: WorkerProcess) -> int:
    """The process id of a worker's Litestream."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [pid for pid in _children(worker.pid) if b"replicate" in _command(pid)]
        return bool(found)

    wait_until(there, "a Litestream child")
    return found[0]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def kill_9(pid: int) -> None:
    """End a process that the test knows by its id."""
    os.kill(pid, signal.SIGKILL)


class Load:
    """Sends new messages from several threads, each again until it is acknowledged, while its block runs.

    `acknowledged` maps message id to user id and only grows; `answers` counts statuses and broken connections.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(_SENDERS)]
        self.acknowledged: dict[str, int] = {}
        self.answers: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Return once so many more messages than now are acknowledged."""
        enough = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= enough, f"{enough} acknowledgements", seconds=30)

    def _send(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            number = next(self._numbers)
            while not self._stop.is_set():
                try:
                    answer = str(client.post(self._worker.url, content=body(number, f"load-{number}")).status_code)
                except httpx.TransportError as error:
                    answer = type(error).__name__
                self.answers[answer] += 1
                if answer == "204":
                    self.acknowledged[f"load-{number}"] = number
                    number = next(self._numbers)
                else:
                    self._stop.wait(_AGAIN_SECONDS)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
