"""Checks the claims of a verified token: issuer, audience, expiry and e-mail address. Pure.

Sources: Pub/Sub documentation, "Authentication for push subscriptions" (the claims); RFC 7519 (seconds since 1970).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.errors import Forbidden, Unauthenticated

_ISSUERS: Final = ("https://accounts.google.com", "accounts.google.com")
_SECONDS_MAX: Final = 253_402_300_799
"""The end of the year 9999: a later time in a claim is none."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose a verified token is, and until when it counts, in seconds since 1970."""

    email: str
    until: float


def judge(claims: Mapping[str, Any], audience: str, now: float, skew: float) -> Bearer:
    """Check what the claims of a token with a good signature say.

    Raises:
        Unauthenticated: A verdict on the token.
        Forbidden: No verified e-mail address.
    """
    if claims.get("iss") not in _ISSUERS:
        raise Unauthenticated("the token was not issued by Google; send one that Google made")
    if claims.get("aud") != audience:
        raise Unauthenticated("the token was made for another audience; let the subscription's be PUSH_AUDIENCE")
    until = _seconds(claims, "exp") + skew
    if now >= until:
        raise expired()
    if now < max(_seconds(claims, "iat"), _seconds(claims, "nbf") if "nbf" in claims else 0) - skew:
        raise Unauthenticated("the token is not valid yet; send it later, and check both clocks")
    address = claims.get("email")
    if not isinstance(address, str) or not address or claims.get("email_verified") is not True:
        raise Forbidden("the token names no verified e-mail address; have it made with one")
    return Bearer(address, until)


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    """A claim that is a time. The comparison refuses NaN, the infinities, and integers no float can hold."""
    value = claims.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _SECONDS_MAX:
        raise Unauthenticated(f"the token's {name} is missing or no time; send one that Google made")
    return value


def expired() -> Unauthenticated:
    """The refusal of a token that was good."""
    return Unauthenticated("the token has expired; send a new one")
