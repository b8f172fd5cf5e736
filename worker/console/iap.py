"""Who sends a request through Identity-Aware Proxy: verifies the token that it signs, `x-goog-iap-jwt-assertion`.

Source: Identity-Aware Proxy documentation, "Securing your app with signed headers": ES256, keys by key id, the issuer, the
audience of a Cloud Run service, 30 s of skew. The other headers that name the user are not signed, and prove nothing.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from google.auth import jwt
from starlette.datastructures import Headers

from worker.errors import Forbidden, Refused, Unauthenticated

HEADER: Final = "x-goog-iap-jwt-assertion"
KEYS_URL: Final = "https://www.gstatic.com/iap/verify/public_key"
_ISSUER: Final = "https://cloud.google.com/iap"
_SKEW_SECONDS: Final = 30.0
_KEYS_SECONDS: Final = 3600.0
"""How long keys are used before they are fetched again."""
_AGAIN_SECONDS: Final = 30.0
"""Least time between two fetches, whatever key ids requests name."""
_FETCH_SECONDS: Final = 5.0
_TOKEN_MAX: Final = 8192


def fetch(url: str) -> Mapping[str, str]:
    """The keys at an address, by key id. It blocks.

    Raises:
        Refused: They cannot be had now.
    """
    try:
        found = httpx.get(url, timeout=_FETCH_SECONDS).raise_for_status().json()
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
    except (httpx.HTTPError, ValueError) as error:
        raise Refused(f"the keys of Identity-Aware Proxy cannot be had: {type(error).__name__}; try again") from None
    raise Refused(f"{url} served no JSON object of key id to key; try again")


class Proxy:
    """Verifies the header. Only the event loop touches it.

    Args:
        audience: IAP_AUDIENCE: /projects/NUMBER/locations/REGION/services/SERVICE.
        fetch: Gets the keys.
        clock: Monotonic seconds.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        audience: str,
        *,
        fetch: Callable[[str], Mapping[str, str]] = fetch,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._audience, self._fetch, self._clock, self._wall_clock = audience, fetch, clock, wall_clock
        self._keys: Mapping[str, str] = {}
        self._fetched = self._asked = float("-inf")
        self._problem: str | None = None  # why they were not had when they were last asked for
        self._fetching = asyncio.Lock()  # the one guard of the keys

    async def who(self, headers: Headers) -> str:
        """The verified e-mail address of who sends a request.

        Raises:
            Unauthenticated: There is no token, or it is not one of Identity-Aware Proxy for this service.
            Forbidden: It names no e-mail address.
            Refused: The keys cannot be had.
        """
        found = headers.getlist(HEADER)
        if len(found) != 1 or len(found[0]) > _TOKEN_MAX:
            raise Unauthenticated(f"the request did not come through Identity-Aware Proxy: it has not one {HEADER}")
        key = _key_id(found[0])
        await self._require(key)
        if key not in self._keys:
            raise Unauthenticated("the token is signed with a key that Identity-Aware Proxy does not have")
        try:
            # An endless skew leaves the times to us, as in tokens.py; the key is pinned to what the header may say.
            claims = jwt.decode(found[0], certs={key: self._keys[key]}, clock_skew_in_seconds=math.inf)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthenticated("the token of Identity-Aware Proxy has a wrong signature or form") from None
        return self._judged(claims)

    def _judged(self, claims: Mapping[str, Any]) -> str:
        if claims.get("iss") != _ISSUER or claims.get("aud") != self._audience:
            raise Unauthenticated("the token is for another service; let IAP_AUDIENCE be this one's")
        now, until, since = self._wall_clock(), claims.get("exp"), claims.get("iat")
        if not isinstance(until, int | float) or not isinstance(since, int | float):
            raise Unauthenticated("the token has no times")
        if not since - _SKEW_SECONDS <= now < until + _SKEW_SECONDS:
            raise Unauthenticated("the token has expired, or is not valid yet; load the page again")
        email = claims.get("email")
        if not isinstance(email, str) or not email:
            raise Forbidden("the token names no e-mail address")
        return email

    async def _require(self, key: str) -> None:
        if key in self._keys and self._clock() - self._fetched < _KEYS_SECONDS:  # it waits for no other request's key
            return
        async with self._fetching:
            if self._clock() - self._asked >= _AGAIN_SECONDS:
                self._asked, self._problem = self._clock(), None
                try:
                    self._keys, self._fetched = await asyncio.to_thread(self._fetch, KEYS_URL), self._clock()
                except Refused as error:
                    self._problem = str(error)
            if self._problem is not None and key not in self._keys:
                raise Refused(self._problem)


def _key_id(token: str) -> str:
    try:
        header = jwt.decode_header(token)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RecursionError):
        raise Unauthenticated("the token of Identity-Aware Proxy is malformed") from None
    if header.get("alg") != "ES256" or not isinstance(header.get("kid"), str):
        raise Unauthenticated("the token is not one of Identity-Aware Proxy: it is not signed with ES256")
    return str(header["kid"])
