"""A token authority of one's own: makes keys, signs tokens as Google does for Pub/Sub, and serves the certificates.

Point OIDC_CERTS_URL at `url`, and a worker takes this authority's tokens for Google's. It signs without google.auth, which
the worker verifies with, so that neither can hide a mistake of the other.

Sources: Pub/Sub documentation, "Authentication for push subscriptions" (the claims); RFC 7515 (the compact form); and the
shape of https://www.googleapis.com/oauth2/v1/certs, a JSON object of key id to PEM certificate.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_ISSUER: Final = "https://accounts.google.com"
_SUBJECT: Final = "113774264463038321964"
_LIFETIME_SECONDS: Final = 3600
"""Google's tokens are good for an hour."""
_VALID: Final = timedelta(days=3650)


class Authority:
    """Keys, their certificates, and tokens. As a context manager it serves the certificates on a loopback port.

    Args:
        max_age: Seconds its answers say they are fresh for; may be changed at any time.
        key_bits: Size of its keys; Google's have 2048.
    """

    def __init__(self, *, max_age: int = 3600, key_bits: int = 2048) -> None:
        self.max_age = max_age
        self.available = True
        """While this is False, it answers 503 to each request for the certificates."""
        self.fetches = 0
        """How many requests for the certificates it got, answered or not."""
        self.certificates: dict[str, str] = {}
        """What it serves: key id to certificate."""
        self._key_bits = key_bits
        self._keys: dict[str, rsa.RSAPrivateKey] = {}
        self._counting = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.key_id = self.rotate()
        """The key that tokens are signed with."""

    @property
    def url(self) -> str:
        """Where the certificates are, while it serves."""
        if self._server is None:
            raise RuntimeError("this authority does not serve; enter it with `with`")
        return f"http://127.0.0.1:{self._server.server_port}/certs"

    def rotate(self) -> str:
        """Sign with a new key from now on; its id. The certificates of older keys are still served, as Google does."""
        self.key_id = f"key-{len(self._keys) + 1}"
        key = rsa.generate_private_key(65537, self._key_bits)
        self._keys[self.key_id] = key
        self.certificates = {**self.certificates, self.key_id: _self_signed(key)}
        return self.key_id

    def withdraw(self, key_id: str) -> None:
        """Serve this key's certificate no longer."""
        self.certificates = {key: pem for key, pem in self.certificates.items() if key != key_id}

    def token(self, *, audience: str, email: str, now: float | None = None, **claims: Any) -> str:
        """A token as Pub/Sub makes it.

        Args:
            audience: Whom it is for.
            email: Whose it is.
            now: When it is made, in seconds since 1970; it expires an hour later.
            **claims: Other claims, or other values than the usual ones.
        """
        issued = int(time.time() if now is None else now)
        usual = {
            "iss": _ISSUER,
            "aud": audience,
            "azp": _SUBJECT,
            "sub": _SUBJECT,
            "email": email,
            "email_verified": True,
            "iat": issued,
            "exp": issued + _LIFETIME_SECONDS,
        }
        return self.sign(usual | claims)

    def sign(self, claims: object, **header: Any) -> str:
        """A token with exactly these claims, whatever they are; `header` adds to its header, or replaces parts of it."""
        head = {"alg": "RS256", "kid": self.key_id, "typ": "JWT"} | header
        return self.sign_text(json.dumps(head).encode(), json.dumps(claims).encode())

    def sign_text(self, header: bytes, claims: bytes) -> str:
        """A token with these very bytes as its header and claims."""
        signed = f"{_base64url(header)}.{_base64url(claims)}"
        signature = self._keys[self.key_id].sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="authority", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with authority._counting:
                    authority.fetches += 1
                body = json.dumps(authority.certificates).encode() if authority.available else b""
                self.send_response(200 if authority.available else 503)
                if authority.available:
                    self.send_header("Cache-Control", f"public, max-age={authority.max_age}, must-revalidate")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
                pass

        return Handler


def _self_signed(key: rsa.RSAPrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "local authority")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
