"""Who sent a request: verifies the OpenID Connect token that Pub/Sub puts on an authenticated push, and tells its e-mail.

Nothing here asks the network per message. Google's certificates are kept and renewed beside the requests; a verified token
is remembered until it expires, and costs one dictionary lookup. Only a token signed with a key not known yet makes us ask
again, once for all who wait for it and seldom, so that invented keys cannot make us a burden to Google.

Where Cloud Run's own check of IAM is on, it has verified the token, and hands it on with its signature replaced by a marker:
then there is nothing left to verify it by. `TOKENS_VERIFIED_BY=platform` says that every request comes through that check,
and only then is the marker taken in a signature's place; the claims are judged all the same (claims.py). It is never
inferred from a request, which any sender can write.

A refusal is a verdict about the token. Where no verdict is possible, because the certificates cannot be had, the answer is
`Refused`: an outage is never a verdict (INV-9).

Sources: Pub/Sub documentation, "Authentication for push subscriptions" (the header, the claims, one hour at most); Cloud Run
documentation, "Authenticate service to service" (`X-Serverless-Authorization`, the signature that is removed); RFC 7515
(compact form, `alg`, `kid`, `crit`); RFC 7519 (claims, seconds since 1970); RFC 9111 (how long an answer is fresh).
"""

import asyncio
import base64
import email.utils
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import httpx
from google.auth import crypt, jwt

from worker.config.limits import OIDC_TIMEOUT_SECONDS
from worker.errors import Refused, Unauthenticated
from worker.ingest.http.claims import Bearer, expired, judge

REFRESH_MIN_SECONDS: Final = 30.0
"""Least time between two fetches for unknown keys: a rotated key is there at once, and invented ones cause few fetches."""
TOKENS_MAX: Final = 1000
"""Verified tokens that are remembered until they expire; the queue uses a few an hour."""
_ALGORITHM: Final = "RS256"
SIGNATURE_REMOVED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"
"""Stands where Cloud Run has verified a signature and removed it."""
_HEADER_MAX_CHARS: Final = 8192
"""Longest Authorization header that is looked at; one of Google's has about 1,000 characters."""
_BEARER: Final = re.compile(r"bearer +([\w-]+\.[\w-]+\.[\w-]+)", re.ASCII | re.IGNORECASE)
"""A scheme in any case (RFC 9110, 11.1), and three parts in unpadded base64url (RFC 7515, 7.1)."""

_ANSWER_MAX_BYTES: Final = 262_144
"""Google's certificates take about 4 KiB."""
_FRESH_DEFAULT_SECONDS: Final = 3600.0
"""How long certificates count as fresh when the answer doesn't say."""
_FRESH_MAX_SECONDS: Final = 86_400.0
_RENEW_AT: Final = 0.9
"""The part of their lifetime after which certificates are renewed."""
_RETRY_FIRST_SECONDS: Final = 1.0
_RETRY_MAX_SECONDS: Final = 60.0

_MAX_AGE: Final = re.compile(r"(?<![\w-])max-age=\"?(\d{1,12})", re.ASCII | re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of the certificates' address."""

    body: bytes
    headers: httpx.Headers


def fetch(url: str, timeout: float) -> Answer:
    """Ask for the certificates. It blocks, and `timeout` is for each step; the caller bounds the whole.

    The environment's proxy and certificate settings are honoured, as Google's own clients do.

    Raises:
        Refused: They cannot be had now.
    """
    until = time.monotonic() + timeout
    body = bytearray()
    try:
        with httpx.stream("GET", url, timeout=timeout) as answer:
            if answer.status_code != 200:
                raise Refused(f"{url} answered {answer.status_code}")
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _ANSWER_MAX_BYTES or time.monotonic() > until:
                    raise Refused(f"{url} answered too much or too slowly")
            return Answer(bytes(body), answer.headers)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise Refused(f"{url}: {type(error).__name__}: {error}") from error


class TokenVerifier:
    """Verifies tokens. Only the event loop touches it; signatures and certificates have a thread each.

    Args:
        audience: What tokens must have been made for: the audience that the push subscription states.
        certs_url: Where a JSON object of key id to PEM certificate is served.
        refresh_min_seconds: Least time from one refresh to the next that an unknown key may cause.
        timeout_seconds: Longest that one refresh may take, and that a request waits for it.
        tokens_max: Most verified tokens that are remembered.
        verified_by_platform: Whether each request has passed the platform's check: its marker stands for a signature.
        clock_skew_seconds: How far Google's clock and ours may be apart.
        waiting_max: Most requests whose token is being verified at once; more are refused.
        wall_clock: Seconds since 1970, to judge tokens by.
        clock: Monotonic seconds, to space the refreshes by.
        sleep: Waits between two refreshes.
        fetch: Gets the certificates from an address within a timeout; runs in a thread, raises `Refused`.
    """

    def __init__(
        self,
        *,
        audience: str,
        certs_url: str,
        refresh_min_seconds: float = REFRESH_MIN_SECONDS,
        timeout_seconds: float = OIDC_TIMEOUT_SECONDS,
        tokens_max: int = TOKENS_MAX,
        verified_by_platform: bool = False,
        clock_skew_seconds: float = 10.0,
        waiting_max: int = 2000,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        fetch: Callable[[str, float], Answer] = fetch,
    ) -> None:
        self._audience, self._skew, self._wall_clock = audience, clock_skew_seconds, wall_clock
        self._tokens_max, self._waiting_max = tokens_max, waiting_max
        self._platform = verified_by_platform
        self._certificates = _Certificates(
            certs_url,
            every=refresh_min_seconds,
            timeout=timeout_seconds,
            wall_clock=wall_clock,
            clock=clock,
            sleep=sleep,
            fetch=fetch,
        )
        self._remembered: dict[str, Bearer] = {}  # by the whole header, oldest first
        self._remembered_by: Mapping[str, str] = {}  # the certificates that these were verified with
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    async def email(self, authorization: str | None) -> str:
        """The verified e-mail address of the bearer of the token in an Authorization header.

        Raises:
            Unauthenticated: No token, or not one that Google made for this audience and that is valid now.
            Forbidden: A good token that names no verified e-mail address.
            Refused: It cannot be verified now: the certificates cannot be had, or too many wait.
        """
        header = authorization or ""
        bearer = self._recall(header)
        if bearer is None:
            return (await self._verify(header)).email
        if self._wall_clock() >= bearer.until:
            del self._remembered[header]
            raise expired()
        return bearer.email

    async def keep_fresh(self) -> None:
        """Fetch the certificates, and renew them before they grow stale, until cancelled."""
        await self._certificates.keep_fresh()

    def close(self) -> None:
        """Let the threads end; a refresh under way ends by its own timeout."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._certificates.close()

    def _recall(self, header: str) -> Bearer | None:
        if self._remembered_by is not self._certificates.known:
            self._remembered.clear()  # what a withdrawn key has signed is not trusted any longer
            self._remembered_by = self._certificates.known
        return self._remembered.get(header)

    async def _verify(self, header: str) -> Bearer:
        token = _token(header)
        if token.endswith(f".{SIGNATURE_REMOVED}"):
            return self._verified_by_platform(header, token)
        key = _key_id(token)
        if self._waiting >= self._waiting_max:
            raise Refused("as many tokens are being verified as is allowed at once; try again")
        self._waiting += 1
        try:
            await self._certificates.require(key)
            async with self._turn:  # many may bring the same new token at once: the first verifies it for all
                return self._recall(header) or await self._verify_on_thread(header, token)
        finally:
            self._waiting -= 1

    async def _verify_on_thread(self, header: str, token: str) -> Bearer:
        certificates = self._certificates.known
        bearer = await asyncio.get_running_loop().run_in_executor(
            self._thread, _verified, token, certificates, self._audience, self._wall_clock(), self._skew
        )
        if certificates is self._remembered_by:
            self._remember(header, bearer)
        return bearer

    def _verified_by_platform(self, header: str, token: str) -> Bearer:
        """Judge the claims alone. It needs no certificate, and so no waiting.

        Raises:
            Unauthenticated: A verdict on the token; or the settings do not say that the platform verifies tokens.
            Forbidden: No verified e-mail address.
        """
        if not self._platform:
            raise Unauthenticated(
                "the platform has taken the token's signature off, and TOKENS_VERIFIED_BY is here; "
                "set it to platform if every request passes the platform's own check"
            )
        try:
            claims = json.loads(_decoded(token.split(".")[1]).decode())
        except (ValueError, RecursionError):
            raise Unauthenticated("the token is malformed; send one that Google made") from None
        if not isinstance(claims, dict):
            raise Unauthenticated("the token is malformed; send one that Google made")
        bearer = judge(claims, self._audience, self._wall_clock(), self._skew)
        self._remember(header, bearer)
        return bearer

    def _remember(self, header: str, bearer: Bearer) -> None:
        if len(self._remembered) >= self._tokens_max:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[header] = bearer


class _Certificates:
    """Google's certificates by key id: fetched, and refreshed in time or for a key that is not known."""

    def __init__(
        self,
        url: str,
        *,
        every: float,
        timeout: float,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        fetch: Callable[[str, float], Answer],
    ) -> None:
        self.known: Mapping[str, str] = {}
        """The certificates in use; another object when they have changed."""
        self._url, self._every, self._timeout = url, every, timeout
        self._wall_clock, self._clock, self._sleep, self._fetch = wall_clock, clock, sleep, fetch
        self._failure: str | None = "they have not been fetched yet"  # why the last refresh brought nothing
        self._fresh_seconds = 0.0
        self._began = -math.inf  # when the last refresh began
        self._refreshing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="certificates")

    async def require(self, key: str) -> None:
        """Return if the key is known, or became so by one more refresh.

        Raises:
            Unauthenticated: Google has no such key.
            Refused: It cannot be verified now.
        """
        if key in self.known:
            return
        under_way = self._refreshing is not None and not self._refreshing.done()
        if under_way or self._clock() - self._began >= self._every:
            await self._refresh()
        if key in self.known:
            return
        if self._failure is not None:
            raise Refused(f"the token's key cannot be looked up: {self._failure}; try again")
        raise Unauthenticated("the token is signed with a key that is not one of Google's; send one that Google made")

    async def keep_fresh(self) -> None:
        """See `TokenVerifier.keep_fresh`."""
        retry = _RETRY_FIRST_SECONDS
        while True:
            await self._refresh()
            if self._failure is None:
                retry = _RETRY_FIRST_SECONDS
                await self._sleep(max(self._fresh_seconds * _RENEW_AT, self._every))
            else:
                await self._sleep(retry)
                retry = min(retry * 2, _RETRY_MAX_SECONDS)

    def close(self) -> None:
        """See `TokenVerifier.close`."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _refresh(self) -> None:
        """Wait for the refresh under way, or for a new one. All share it; its timeout ends it, and none of them does."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_once(), name="certificates")
        await asyncio.shield(self._refreshing)

    async def _refresh_once(self) -> None:
        self._began = self._clock()
        try:
            async with asyncio.timeout(self._timeout):
                found, headers = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        except TimeoutError:
            self._failure = f"{self._url}: no whole answer within {self._timeout:g} s"
        except Refused as error:
            self._failure = str(error)
        else:
            self._failure = None
            self._fresh_seconds = fresh_seconds(headers, self._wall_clock())
            if found != self.known:
                self.known = found
                log.info("%d certificates fetched from %s", len(found), self._url, extra={"action": "sender.certificates"})
            return
        log.warning(
            "the certificates cannot be renewed, trying again; %d known ones stay in use: %s",
            len(self.known),
            self._failure,
            extra={"action": "sender.certificates_retry"},
        )

    def _load(self) -> tuple[Mapping[str, str], httpx.Headers]:
        answer = self._fetch(self._url, self._timeout)
        return _certificates(answer.body, self._url), answer.headers


def fresh_seconds(headers: httpx.Headers, now: float) -> float:
    """How long an answer stays fresh: its max-age, or else Expires less Date; less its Age (RFC 9111, 4.2)."""
    stated = _MAX_AGE.search(headers.get("cache-control", ""))
    expires = _timestamp(headers.get("expires"))
    if stated is not None:
        lifetime = float(stated[1])
    elif expires is not None:
        date = _timestamp(headers.get("date"))
        lifetime = expires - (now if date is None else date)
    else:
        return _FRESH_DEFAULT_SECONDS
    age = headers.get("age", "")
    passed = float(age) if age.isascii() and age.isdecimal() else 0.0
    return min(max(lifetime - passed, 0.0), _FRESH_MAX_SECONDS)


def _timestamp(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _certificates(body: bytes, url: str) -> Mapping[str, str]:
    """The usable certificates in an answer, by key id.

    Raises:
        Refused: There are none, so this is no answer of Google's.
    """
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        entries = None
    found = {key: pem for key, pem in entries.items() if _usable(pem)} if isinstance(entries, dict) else {}
    if not found:
        raise Refused(f"{url} served no JSON object of key id to RSA certificate in PEM form")
    return found


def _usable(pem: object) -> bool:
    """Whether a signature can be checked with it; one that cannot must not look like a bad token."""
    try:
        crypt.RSAVerifier.from_string(pem).verify(b"", b"")  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):  # no certificate; a certificate of another kind of key
        return False
    return True


def _token(header: str) -> str:
    if not header:
        raise Unauthenticated("there is no Authorization header; give the push subscription a service account to sign as")
    match = _BEARER.fullmatch(header) if len(header) <= _HEADER_MAX_CHARS else None
    if match is None:
        raise Unauthenticated("the Authorization header holds no bearer token in three parts; send one that Google made")
    return match[1]


def _key_id(token: str) -> str:
    """The id of the key that a token says it is signed with. Google's always say so; trying them all is not for strangers.

    Raises:
        Unauthenticated: Its header or its signature is malformed, or asks for anything but plain RS256.
    """
    head, _, signature = token.split(".")
    try:
        fields = json.loads(_decoded(head).decode())
        _decoded(signature)
    except (ValueError, RecursionError):
        raise Unauthenticated("the token is malformed; send one that Google made") from None
    if not isinstance(fields, dict) or fields.get("alg") != _ALGORITHM or "crit" in fields:
        raise Unauthenticated(f"the token is not signed with plain {_ALGORITHM}; send one that Google made")
    key = fields.get("kid")
    if not isinstance(key, str) or not key:
        raise Unauthenticated("the token does not name its key; send one that Google made")
    return key


def _decoded(part: str) -> bytes:
    """Base64url, in its one canonical spelling: Python's decoder takes others, so one token would have many texts.

    Raises:
        ValueError: It is spelled in another way.
    """
    data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise ValueError("not canonical base64url")
    return data


def _verified(token: str, certificates: Mapping[str, str], audience: str, now: float, skew: float) -> Bearer:
    """Check the signature, then the claims. Runs on the thread.

    Raises:
        Unauthenticated: A verdict on the token.
        Forbidden: No verified e-mail address.
    """
    try:
        # An endless skew leaves the times to us: google.auth judges by a clock of its own, and not at all by nbf.
        claims = jwt.decode(token, certs=certificates, clock_skew_in_seconds=math.inf)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, OverflowError, RecursionError):  # it does not check the types of what it compares
        raise Unauthenticated("the token's signature or form is wrong; send one that Google made") from None
    return judge(claims, audience, now, skew)
