"""Where an operator's command takes its token."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.authority import Authority
from local.worker_process import ROOT
from tests.fakes import Clock
from worker.errors import ServiceUnreachable
from worker.operations.identity import Identity, identity

TOKEN = Authority(key_bits=1024).token(audience="a", email="default@acme")
AUDIENCE = "https://users-worker-1.europe-west1.run.app"


def sent(who: Identity) -> str:
    """What a request carries."""
    with httpx.Client(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, request=request)), auth=who
    ) as client:
        return str(client.get("http://worker/rejections").request.headers.get("authorization", ""))


@pytest.fixture
def metadata() -> Iterator[ThreadingHTTPServer]:
    """A metadata server; `asked` are the paths it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body, kind = b'{"email": "default@acme", "scopes": []}', "application/json"
            if "/identity?" in self.path:
                body, kind = TOKEN.encode(), "application/text"
            self.send_response(200 if self.headers.get("Metadata-Flavor") == "Google" else 403)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked  # type: ignore[attr-defined]  # for the test
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_job_takes_its_token_from_the_metadata_server(metadata: ThreadingHTTPServer) -> None:
    """Without IDENTITY_TOKEN, for PUSH_AUDIENCE: a scheduled drill needs nothing that lives an hour."""
    host = f"127.0.0.1:{metadata.server_port}"
    variables = {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host, "NO_PROXY": "*", "PATH": os.environ["PATH"]}
    code = "import httpx; from worker.operations.identity import identity; who = identity(); "
    code += "print(next(who.auth_flow(httpx.Request('GET', 'http://worker'))).headers['authorization'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=variables | {"PUSH_AUDIENCE": AUDIENCE},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"Bearer {TOKEN}", done.stderr
    (path,) = [each for each in metadata.asked if "/identity?" in each]  # type: ignore[attr-defined]
    assert "audience=https%3A%2F%2Fusers-worker-1.europe-west1.run.app" in path


def test_a_laptop_takes_it_from_gcloud_by_impersonation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPERATOR_ACCOUNT names whom; what gcloud refuses is told with the right that is missing."""
    program = tmp_path / "gcloud"
    program.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$*" >>"$0.calls"\n[ -z "$FAIL" ] || { echo "no right" >&2; exit 1; }\necho token-1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    variables = {"PUSH_AUDIENCE": AUDIENCE, "OPERATOR_ACCOUNT": "ops@acme.iam.gserviceaccount.com"}
    assert sent(identity(variables)) == "Bearer token-1"
    assert (tmp_path / "gcloud.calls").read_text().split() == [
        *("auth", "print-identity-token", "--impersonate-service-account=ops@acme.iam.gserviceaccount.com"),
        *(f"--audiences={AUDIENCE}", "--include-email"),
    ]
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ServiceUnreachable, match=r"no right; you need roles/iam\.serviceAccountTokenCreator"):
        sent(identity(variables))


def test_what_is_given_wins_and_nothing_is_made_for_no_audience() -> None:
    """IDENTITY_TOKEN as it is; without PUSH_AUDIENCE no token, and no look for one."""
    assert sent(identity({"IDENTITY_TOKEN": "given", "PUSH_AUDIENCE": AUDIENCE})) == "Bearer given"
    assert sent(identity({"CLOUD_RUN_JOB": "j"})) == ""


def test_a_token_is_made_anew_before_it_ends() -> None:
    """A replay that is followed for hours goes on."""
    clock, made = Clock(), iter(["a", "b"])
    who = Identity(lambda: next(made), clock=clock)
    assert [sent(who), sent(who)] == ["Bearer a", "Bearer a"]
    clock.now += 3000
    assert sent(who) == "Bearer b"
