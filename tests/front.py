"""Cloud Run's front end, as far as tokens go: it verifies them, takes their signatures off, and hands the request on.

Sources: Cloud Run documentation, "Authenticate service to service" and "Troubleshoot": if a request carries
`X-Serverless-Authorization`, that header alone is checked, and `Authorization` is handed on as it is; the signature of a
token that was checked is replaced by the text `SIGNATURE_REMOVED_BY_GOOGLE`. It verifies with `cryptography`, not with what
the worker uses.

The emulator pushes without a token. `pusher` names the account as which this front end signs such pushes first, as Pub/Sub
does.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from local.authority import Authority

MARKER: Final = "SIGNATURE_REMOVED_BY_GOOGLE"
_PAGE: Final = b"<html><title>Error: Forbidden</title></html>"
_OWN_HEADERS: Final = {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}


class Front:
    """The front end on a loopback port, as a context manager.

    Args:
        target: The worker's address, without the final slash.
        authority: Whose tokens are good.
        audience: The service's address, for which tokens must be made.
        invokers: The accounts that hold roles/run.invoker.
        pusher: As whom requests without any token are signed; empty: they are refused.
    """

    def __init__(
        self, target: str, authority: Authority, *, audience: str, invokers: Collection[str], pusher: str = ""
    ) -> None:
        self.target, self.authority, self.audience = target, authority, audience
        self.invokers, self.pusher = frozenset(invokers), pusher
        self.refused: list[str] = []
        """The paths that were asked for without the right to."""
        self.passed: list[int] = []
        """What the worker answered."""
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = [(name.lower(), value) for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS]
                status, kind, sent = front.answer(self.command, self.path, headers, body)
                self.send_response(status)
                if kind:
                    self.send_header("Content-Type", kind)
                if status != 204:
                    self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(sent)

            do_GET = do_POST = _serve  # noqa: N815  # the standard library's names

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="front", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, str, bytes]:
        """Refuse, or ask the worker: the status, the content type and the body."""
        if self.pusher and not any(name.endswith("authorization") for name, _ in headers):
            token = self.authority.token(audience=self.audience, email=self.pusher)
            headers = [*headers, ("authorization", f"Bearer {token}")]
        names = [name for name, _ in headers]
        checked = "x-serverless-authorization" if "x-serverless-authorization" in names else "authorization"
        token = dict(headers).get(checked, "").removeprefix("Bearer ")
        if self._sender(token) not in self.invokers:
            self.refused.append(path)
            return 403, "text/html", _PAGE
        stripped = f"Bearer {token.rpartition('.')[0]}.{MARKER}"
        handed_on = [(name, stripped if name == checked else value) for name, value in headers]
        with httpx.Client(timeout=65, trust_env=False) as client:
            try:
                answer = client.request(method, f"{self.target}{path}", headers=handed_on, content=body)
            except httpx.HTTPError:
                return 502, "text/html", _PAGE
        self.passed.append(answer.status_code)
        return answer.status_code, answer.headers.get("content-type", ""), answer.content

    def _sender(self, token: str) -> str | None:
        """Whose a token is, if it is good."""
        try:
            head, claims, signature = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
            certificate = self.authority.certificates[json.loads(head)["kid"]]
            key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
            assert isinstance(key, rsa.RSAPublicKey)
            key.verify(signature, token.rpartition(".")[0].encode(), padding.PKCS1v15(), hashes.SHA256())
            stated = json.loads(claims)
        except (ValueError, KeyError, InvalidSignature):
            return None
        good = stated["aud"] == self.audience and stated["exp"] > time.time()
        return str(stated["email"]) if good else None
