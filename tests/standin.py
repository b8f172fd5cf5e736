"""Google with real credentials, in a namespace of its own: the fake bucket, behind TLS and tokens, by Google's names.

`python -m tests.standin KIND FOLDER` begins in a network and mount namespace (`unshare --net --mount`), where the
names of Google's servers lead to this process. It hands out tokens as they do, to a metadata server's caller, for a
key, for a user, and for an account that the user impersonates; the bucket answers 401 to all others. Then it runs the
worker's commands, one after the other, with credentials of KIND and with nothing else: no STORAGE_EMULATOR_HOST. It
prints one line of JSON for each.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import certifi
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from local.gcs_process import FakeGcs
from local.stack import QUICK_LEASE
from local.worker_process import ROOT, WorkerProcess
from publisher import message

KINDS: Final = ("metadata", "key", "user", "impersonated")
HOSTS: Final = ("storage.googleapis.com", "oauth2.googleapis.com", "iamcredentials.googleapis.com", "www.googleapis.com")
METADATA: Final = ("metadata.google.internal", "metadata")
ACCOUNT: Final = "users-worker@acme.iam.gserviceaccount.com"
KEY: Final = rsa.generate_private_key(65537, 2048)
REFRESH: Final = "the-users-refresh-token"


class Google:
    """Who has which token, and what was asked with them."""

    def __init__(self, bucket: int) -> None:
        self.bucket = bucket
        self.tokens: dict[str, str] = {}  # token -> kind
        self.answered: dict[str, int] = {}  # kind -> requests to the bucket
        self.refused = 0

    def token(self, kind: str) -> str:
        """A new token."""
        made = f"{kind}-{secrets.token_urlsafe(24)}"
        self.tokens[made] = kind
        return made

    def exchange(self, form: dict[str, str]) -> str | None:
        """A token for what was sent to the token endpoint."""
        if form.get("grant_type") == "refresh_token":
            return self.token("user") if form["refresh_token"] == REFRESH else None
        head, _, signature = form["assertion"].rpartition(".")
        KEY.public_key().verify(_decoded(signature), head.encode(), padding.PKCS1v15(), hashes.SHA256())
        return self.token("key") if json.loads(_decoded(head.split(".")[1]))["iss"] == ACCOUNT else None


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    google: Google

    def _serve(self) -> None:
        host = (self.headers.get("Host") or "").partition(":")[0]
        body = self._body()
        if host in ("storage.googleapis.com", "www.googleapis.com"):
            self._bucket(body)
        elif host == "oauth2.googleapis.com":
            token = self.google.exchange(dict(urllib.parse.parse_qsl(body.decode())))
            self._json(200 if token else 400, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
        elif host == "iamcredentials.googleapis.com":
            good = self._kind() == "user" and urllib.parse.unquote(self.path).endswith(f"{ACCOUNT}:generateAccessToken")
            until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._json(
                200 if good else 403, {"accessToken": good and self.google.token("impersonated"), "expireTime": until}
            )
        else:
            self._metadata()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: N815  # the standard library's names

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _kind(self) -> str | None:
        return self.google.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _bucket(self, body: bytes) -> None:
        kind = self._kind()
        if kind is None:
            self.google.refused += 1
            self._json(401, {"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.get access"}})
            return
        self.google.answered[kind] = self.google.answered.get(kind, 0) + 1
        left_out = ("host", "authorization", "transfer-encoding", "content-length", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        connection = http.client.HTTPConnection("127.0.0.1", self.google.bucket, timeout=60)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() == "location":
                self.send_header(name, f"https://storage.googleapis.com/{value.split('/', 3)[3]}")
            elif name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if answer.status not in (204, 304):
            self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def _metadata(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith("/token"):
            self._json(200, {"access_token": self.google.token("metadata"), "expires_in": 3600, "token_type": "Bearer"})
        elif "recursive=true" in query:
            self._json(
                200, {"email": ACCOUNT, "scopes": ["https://www.googleapis.com/auth/cloud-platform"], "aliases": ["default"]}
            )
        else:
            self._json(200 if path in ("/", "") else 404, {})

    def _json(self, status: int, answer: Any) -> None:
        sent = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for Google's names, and its key, as files."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "storage.googleapis.com")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in HOSTS]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    public, secret = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(_pem(key))
    return public, secret


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def credentials(kind: str) -> dict[str, Any] | None:
    """The file that GOOGLE_APPLICATION_CREDENTIALS names; None where the metadata server is asked."""
    user = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": REFRESH}
    address = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"
    files: dict[str, dict[str, Any]] = {
        "user": user,
        "impersonated": {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": address,
            "source_credentials": user,
            "delegates": [],
        },
        "key": {
            "type": "service_account",
            "project_id": "acme",
            "private_key_id": "1",
            "private_key": _pem(KEY).decode(),
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": "https://oauth2.googleapis.com/token",
        },
    }
    return files.get(kind)


def isolate(folder: Path) -> None:
    """Have Google's names lead here, inside this namespace alone."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join((*HOSTS, *METADATA))}\n")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "--bind", str(hosts), "/etc/hosts"],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", "169.254.169.254/32", "dev", "lo"],
    ):
        subprocess.run(command, check=True)


def serve(google: Google, folder: Path) -> Path:
    """Answer for Google on 443 and 80; the certificate."""
    public, secret = certificate(folder)
    handler = type("Handler", (_Handler,), {"google": google})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, secret)
    for port in (443, 80):
        server = ThreadingHTTPServer(("0.0.0.0", port), handler)
        server.daemon_threads = True
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port == 443:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return public


def push(worker: WorkerProcess, user: int) -> int:
    """One push; its status."""
    body = message.envelope(b'{"user_id": %d}' % user, {}, f"m{user}", datetime.now(UTC), "projects/p/subscriptions/s")
    return httpx.post(worker.url, content=body, timeout=60, trust_env=False).status_code


def main(kind: str, folder: Path) -> None:
    """Run every command with credentials of this kind."""
    isolate(folder)
    with FakeGcs(folder / "gcs", buckets=("acme-users",)) as gcs:
        google = Google(int(gcs.url.rpartition(":")[2]))
        public = serve(google, folder)
        # One of Google's clients trusts what certifi ships, whatever the variables say.
        subprocess.run(["mount", "--bind", str(public), certifi.where()], check=True)
        variables = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG") or name.startswith(("LD_", "PYTHON"))
        }
        os.environ.clear()  # what a worker is given beside this
        os.environ.update(variables)
        given = QUICK_LEASE | {"SSL_CERT_FILE": str(public), "REQUESTS_CA_BUNDLE": str(public), "HOME": str(folder)}
        given |= {"TENURE_MIN_SECONDS": "0", "GOOGLE_CLOUD_PROJECT": "acme"}
        if file := credentials(kind):
            (folder / "credentials.json").write_text(json.dumps(file))
            given["GOOGLE_APPLICATION_CREDENTIALS"] = str(folder / "credentials.json")
        worker = WorkerProcess(
            disk=folder / "disk",
            replica_url="gs://acme-users/prod",
            environment=given,
            port=0,
            log=folder / "worker.log",
        )
        try:
            steps(worker, folder)
        finally:
            worker.kill()
        say("bucket", {"answered": google.answered, "refused": google.refused})


def steps(worker: WorkerProcess, folder: Path) -> None:
    """init, serve, push, restore, drill, recover, serve again."""
    command("init", worker.run("init"))
    worker.start().wait_serving()
    say("push", push(worker, 1))
    command("restore", worker.run("restore", "-o", str(folder / "restored.db"), "--json"))
    worker._environment["SERVICE_URL"] = worker.url
    command("drill", worker.run("drill", "--json"))
    time.sleep(0.1)
    then = datetime.now(UTC)
    time.sleep(0.1)
    say("push again", push(worker, 2))
    worker.stop()
    recovery = ["--at", then.isoformat(), "--yes", "--json", "--undone", str(folder / "undone.txt")]
    command("recover", worker.run("recover", *recovery))
    worker.wipe()
    worker.start().wait_serving()
    users = [httpx.get(f"{worker.url}/users/{user}", trust_env=False, timeout=60).status_code for user in (1, 2)]
    say("users after the recovery", users)


def command(name: str, done: subprocess.CompletedProcess[str]) -> None:
    """Print how a command ended."""
    say(name, done.returncode if done.returncode == 0 else [done.returncode, done.stderr[-1500:]])


def say(what: str, found: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps({what: found}), flush=True)


if __name__ == "__main__":
    assert ROOT.is_dir()
    main(sys.argv[1], Path(sys.argv[2]))
