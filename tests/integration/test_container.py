"""The Dockerfile's steps without a container engine: its install, its files, its command, its user, a read-only root.

They are read off the Dockerfile and run here against the fake Cloud Storage. What differs from the image: the Python and the
C library are this machine's, Litestream comes from the wheel of the same version, and the worker is not PID 1.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.ports import free_port
from local.worker_process import wait_until
from tests import cage
from tests.test_deploy import ROOT, environment, final, stages, user
from worker.replica.litestream import find_binary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROBE = """
import errno, os
refused = []
for folder in ("/", "/app", "/app/worker", "/venv", "/etc", "/usr/local", "/data", "/tmp"):
    try:
        open(os.path.join(folder, "probe"), "w").close()
    except OSError as error:
        refused.append(folder if error.errno == errno.EROFS else f"{folder}:{error}")
print(os.getuid(), os.getgid(), *refused)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `venv` and `app`, made by the first stage's own instructions."""
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)  # its user is not ours
    (folder / "app").mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=120)
    ran = []
    for word, argument in stages()[0]:
        if word == "COPY":
            *sources, target = argument.split()
            for source in sources:
                copy(source.rstrip("/"), folder / "app" / target)
        elif word == "RUN" and argument.startswith("/venv/"):
            step = [part.replace("/venv/", f"{folder}/venv/") for part in shlex.split(argument)]
            subprocess.run(step, cwd=folder / "app", check=True, capture_output=True, timeout=300)
            ran.append(step[1])
    assert ran == ["install", "-m"]  # pip's, and compileall's
    return folder


def copy(source: str, target: Path) -> None:
    """As COPY does it: a folder's content, without what .dockerignore leaves out."""
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(ROOT / source, target)


class Container:
    """Programs in the image, confined if this machine can, and beside it if not (`reason` says why).

    Args:
        image: The folder with `venv` and `app`.
        scratch: An empty folder of this test.
    """

    def __init__(self, image: Path, scratch: Path, gcs: FakeGcs) -> None:
        self._image, self._root = image, scratch / "root"
        self._root.mkdir()
        self.port = free_port()
        self.reason = cage.unavailable(self._root)
        data = "/data" if not self.reason else str(scratch / "data")
        self.environment = environment() | {
            "DATABASE_PATH": f"{data}/users.db",
            "PORT": str(self.port),
            "REPLICA_URL": "gs://users/prod",
            "STORAGE_EMULATOR_HOST": gcs.url,
            "LITESTREAM_METRICS_ADDRESS": "off",
            "PATH": f"{self._place('/venv')}/bin:{self._place('/litestream')}:/usr/local/bin:/usr/bin:/bin",
        }

    def _place(self, inside: str) -> str:
        if not self.reason:
            return inside
        return str(find_binary("litestream").parent) if inside == "/litestream" else f"{self._image}{inside}"

    def start(self, *program: str) -> subprocess.Popen[str]:
        """Start a program of the image, found on its PATH, with the image's variables and no others."""
        command = [f"{self._place('/venv')}/bin/{program[0]}", *program[1:]]
        if not self.reason:
            places = {
                self._image / "venv": "/venv",
                self._image / "app": "/app",
                find_binary("litestream"): "/litestream/litestream",
            }
            outside = {"PATH": os.environ["PATH"]}
            command = cage.command(self._root, places, ["/usr/bin/env", "-i", *pairs(self.environment), *command])
        else:
            outside = self.environment
        return subprocess.Popen(
            command, cwd=self._image / "app", env=outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *program: str) -> str:
        """Run one to its end; what it printed."""
        with self.start(*program) as process:
            printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        return printed


def pairs(variables: dict[str, str]) -> list[str]:
    """Variables as `env` takes them."""
    return [f"{name}={value}" for name, value in variables.items()]


def test_the_image_serves_as_its_user_on_a_read_only_root(image: Path, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """Its own command takes a push, confirms it and shows it, and ends with 0 on SIGTERM; what was acknowledged is kept."""
    container = Container(image, tmp_path, fake_gcs)
    if not container.reason:
        account = user().replace(":", " ")
        assert container.run("python", "-c", PROBE).split() == [
            *account.split(),
            "/",
            "/app",
            "/app/worker",
            "/venv",
            "/etc",
            "/usr/local",
        ]
    assert "is a new, empty store" in container.run("python", "-m", "worker", "init")
    (command,) = final("CMD")
    message = {"messageId": "1", "publishTime": "2026-01-31T12:00:00Z", "data": base64.b64encode(b'{"user_id": 5}').decode()}
    url = f"http://127.0.0.1:{container.port}"
    for life in range(2):
        process = container.start(*json.loads(command))
        try:
            wait_until(lambda: state(url) == "serving", "serving", seconds=90)
            if life == 0:
                pushed = httpx.post(url, json={"message": message, "subscription": "s"}, timeout=60, trust_env=False)
                assert pushed.status_code == 204
            shown = httpx.get(f"{url}/users/5", timeout=10, trust_env=False)
            assert (shown.status_code, shown.json().get("user_id")) == (200, 5), (life, process.poll(), shown.text)
        finally:
            process.send_signal(signal.SIGTERM)
            printed, _ = process.communicate(timeout=30)
        assert process.returncode == 0, printed
    if container.reason:
        pytest.skip(f"the image's steps ran and served, but unconfined: {container.reason}")


def state(url: str) -> str:
    """What the worker says it does; empty while it does not listen."""
    try:
        answer = httpx.get(f"{url}/healthz", timeout=2, trust_env=False)
    except httpx.HTTPError:
        return ""
    return str(answer.json()["state"]) if answer.is_success else ""
