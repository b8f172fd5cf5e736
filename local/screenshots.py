"""`python -m local screenshots`: the console in every state, photographed in a real browser, for docs/images/."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from local.browser import DESKTOP, MISSING, PHONE, Browser, browser, installed
from local.stack import SUBSCRIPTION, ConsoleProcess, Stack, stack
from local.worker_process import ROOT, WorkerProcess, wait_until
from publisher import message

FOLDER: Final = Path("docs/images")
SHOWN: Final = frozenset(
    {
        "serving-wide-light",
        "stuck-wide-light",
        "stuck-phone-dark",
        "no-writer-wide-dark",
        "standing-by-wide-light",
        "not-known-wide-dark",
        "message-wide-light",
        "restore-points-wide-dark",
    }
)
"""The pictures of docs/: each state, page and width, in one of the themes."""
WARM_MINUTES: Final = 15.0
_PAUSE_SECONDS: Final = 0.1
_STALLED_SECONDS: Final = 12.0


def register(subparsers: Any) -> None:
    """Add the subcommand `screenshots`."""
    parser = subparsers.add_parser(
        "screenshots",
        help="photograph the console in every state",
        description="Start the stack, bring it into each state, and photograph the console in a real Chromium.",
    )
    parser.add_argument("--dir", type=Path, default=FOLDER, help="where the pictures go (default: %(default)s)")
    help_ = "how long messages come in before, so that there is a half hour to show (default: %(default)g)"
    parser.add_argument("--minutes", type=float, default=WARM_MINUTES, help=help_)
    parser.add_argument("--all", action="store_true", help="also the widths and themes that docs/ does not show")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not installed():
        print(MISSING)
        return 1
    arguments.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="solowriter-screenshots-") as directory, stack(Path(directory)) as running:
        environment = {**running.publisher_environment(), "SUBSCRIPTION": SUBSCRIPTION}
        running.subscribe(running.worker.url)
        with ConsoleProcess(running.worker, Path(directory, "console.log"), environment=environment) as page:
            with _messages(running.worker), browser() as chromium:
                _fill(running.worker)
                chromium.open(page.url)
                time.sleep(60 * arguments.minutes)
                _photograph(Camera(chromium, arguments.dir, every=arguments.all), running, page.url)
    return 0


class Camera:
    """Takes a picture for each width and theme, or those that docs/ shows."""

    def __init__(self, chromium: Browser, folder: Path, *, every: bool) -> None:
        self._browser, self._folder, self._every = chromium, folder, every

    def take(self, name: str, url: str, shows: str, *, whole: bool = False) -> None:
        """Photograph a page once it shows some words."""
        for theme, (width, size) in itertools.product(("light", "dark"), (("wide", DESKTOP), ("phone", PHONE))):
            if not self._every and f"{name}-{width}-{theme}" not in SHOWN:
                continue
            self._browser.look_like(size=size, theme=theme)
            self._browser.open(url)
            self._browser.until_shows(shows, seconds=60)
            self._browser.picture(self._folder / f"console-{name}-{width}-{theme}.png", whole=whole)


def _photograph(camera: Camera, running: Stack, url: str) -> None:
    """Every state of the banner, and the pages behind it."""
    worker, faults = running.worker, running.gcs.faults
    camera.take("serving", url, "serving", whole=True)
    camera.take("rejections", f"{url}/rejections?reason=conflict", "All of this reason", whole=True)
    camera.take("message", f"{url}/rejection?id=conflict-1", "differs", whole=True)
    worker.stop()
    worker.start().wait_serving()
    operate = {
        **worker.environment,
        **running.publisher_environment(),
        "SUBSCRIPTION": SUBSCRIPTION,
        "SERVICE_URL": worker.url,
    }
    for verb in (("checkpoint", "--name", "before-deploy"), ("drill",)):
        subprocess.run([sys.executable, "-m", "worker", *verb], env=operate, cwd=ROOT, check=True, capture_output=True)
    camera.take("restore-points", f"{url}/bucket", "The last drill", whole=True)
    faults.add(action="error", verb="insert", name="store/generations", status=403)
    time.sleep(_STALLED_SECONDS)
    camera.take("stuck", url, "stuck")
    faults.clear()
    wait_until(lambda: worker.state() == "serving", "serving")
    with _standing_by(running) as standing, ConsoleProcess(standing, running.worker.log.with_name("other.log")) as other:
        camera.take("standing-by", other.url, "standing by")
    with ConsoleProcess(
        worker, worker.log.with_name("other.log"), environment={"REPLICA_URL": "gs://solowriter/another"}
    ) as other:
        camera.take("not-known", other.url, "not known")
    worker.kill()
    time.sleep(40)  # a lease that was not renewed for half a minute is a dead writer's
    camera.take("no-writer", url, "There is no writer")


@contextmanager
def _standing_by(running: Stack) -> Iterator[WorkerProcess]:
    """Another instance, which stands by."""
    environment = {name: value for name, value in running.worker.environment.items() if name != "PORT"}
    second = WorkerProcess(
        disk=running.worker.disk.with_name("second"),
        replica_url=running.replica_url,
        environment=environment | {"LITESTREAM_METRICS_ADDRESS": "off", "K_REVISION": "users-00002"},
        port=0,
        log=running.worker.log.with_name("second.log"),
    )
    second.start()
    try:
        wait_until(lambda: second.state() == "standby", "standing by")
        yield second
    finally:
        second.kill()


def push(url: str, message_id: str, data: bytes, attributes: dict[str, str] | None = None) -> int:
    """Deliver one message, as the subscription would; the status."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    body = message.envelope(data, attributes or {}, message_id, now, "projects/p/subscriptions/s")
    return httpx.post(url, content=body, timeout=60, trust_env=False).status_code


def _fill(worker: WorkerProcess) -> None:
    """Good messages, conflicts, and messages of several faults."""
    for number in range(1, 4):
        push(worker.url, f"first-{number}", b'{"user_id": %d, "email_address": "user%d@example.com"}' % (number, number))
        changed = b'{"user_id": %d, "email_address": "other%d@example.com", "settings": "{\\"theme\\": \\"dark\\"}"}'
        push(worker.url, f"conflict-{number}", changed % (number, number), {"source": "import-7"})
    push(worker.url, "malformed-1", b'{"user_id": ')
    push(worker.url, "wrong-1", b'{"user_id": "five"}')


@contextmanager
def _messages(worker: WorkerProcess) -> Iterator[None]:
    """New users, at a rate that rises and falls, while the block runs."""
    end = threading.Event()

    def send() -> None:
        for number in itertools.count(1000):
            if end.wait(_PAUSE_SECONDS * (1 + number // 300 % 3)):
                return
            try:
                push(worker.url, f"load-{number}", b'{"user_id": %d}' % number)
            except httpx.HTTPError:
                continue

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(70)
