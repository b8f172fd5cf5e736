"""Who an operator's command is to the service: the identity token that it sends, and where it comes from.

A token lives an hour, and a person's own cannot be made for the service: so it is taken when it is needed, from

    IDENTITY_TOKEN                      given by hand
    gcloud, for OPERATOR_ACCOUNT        on a laptop: a service account that the person may impersonate
    Google's own client                 on Google Cloud, from the metadata server; or from the key file that
                                        GOOGLE_APPLICATION_CREDENTIALS names

and not at all without PUSH_AUDIENCE, whom it is for.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from pathlib import Path
from typing import Final

import httpx
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import id_token

from worker.errors import ServiceUnreachable

ENVIRONMENT: Final[Mapping[str, str]] = {
    "IDENTITY_TOKEN": "an operator's identity token, for commands that ask the service [made when needed]",
    "OPERATOR_ACCOUNT": "the service account that gcloud impersonates to make one, for PUSH_AUDIENCE [none]",
}
"""The variables that only commands which ask the service read."""

_RENEW_SECONDS: Final = 2400.0
"""After this a token is made anew: the metadata server hands out one until five minutes before its end."""
_GCLOUD_SECONDS: Final = 60.0
_ON_GOOGLE: Final = (
    "CLOUD_RUN_JOB",
    "CLOUD_RUN_WORKER_POOL",
    "K_SERVICE",
    "GCE_METADATA_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
_PRODUCT: Final = Path("/sys/class/dmi/id/product_name")


class Identity(httpx.Auth):
    """Puts a token on each request, and makes a new one before the old one ends.

    Args:
        token: Makes one; empty for none.
        clock: Monotonic seconds.
    """

    def __init__(self, token: Callable[[], str] = str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._clock = token, clock
        self._token, self._made = "", float("-inf")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See httpx.Auth. A token is made on a thread: gcloud takes a second, and the console answers meanwhile."""
        if self._clock() - self._made >= _RENEW_SECONDS:
            token = await asyncio.to_thread(self._make)
            self._token, self._made = token, self._clock()
        for each in self.auth_flow(request):
            yield each

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See httpx.Auth."""
        if self._clock() - self._made >= _RENEW_SECONDS:
            self._token, self._made = self._make(), self._clock()
        if self._token:
            request.headers["authorization"] = f"Bearer {self._token}"
        yield request


def identity(environ: Mapping[str, str] = os.environ) -> Identity:
    """Who the command is, as the variables say."""
    if given := environ.get("IDENTITY_TOKEN", ""):
        return Identity(lambda: given)
    audience, account = environ.get("PUSH_AUDIENCE", ""), environ.get("OPERATOR_ACCOUNT", "")
    if not audience:
        return Identity()
    if account:
        return Identity(lambda: _impersonated(account, audience))
    if any(environ.get(name) for name in _ON_GOOGLE) or _product().startswith("Google"):
        return Identity(lambda: _google(audience))
    return Identity()  # the service says 401, and what to do


def _impersonated(account: str, audience: str) -> str:
    command = ["gcloud", "auth", "print-identity-token", f"--impersonate-service-account={account}"]
    command += [f"--audiences={audience}", "--include-email"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GCLOUD_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise ServiceUnreachable(
            f"gcloud made no identity token for {account}: {said}; you need roles/iam.serviceAccountTokenCreator on it, and "
            "the project needs iamcredentials.googleapis.com"
        ) from None
    return done.stdout.strip()


def _google(audience: str) -> str:
    try:
        return str(id_token.fetch_id_token(Request(), audience))  # type: ignore[no-untyped-call]
    except (GoogleAuthError, ValueError) as error:
        raise ServiceUnreachable(
            f"no identity token can be had for {audience}: {error}; name OPERATOR_ACCOUNT, or give one in IDENTITY_TOKEN"
        ) from None


def _product() -> str:
    try:
        return _PRODUCT.read_text()
    except OSError:
        return ""
