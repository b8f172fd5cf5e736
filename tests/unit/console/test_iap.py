"""Identity-Aware Proxy's header: real signatures, and each thing that can be wrong with a token."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from starlette.datastructures import Headers

from tests.fakes import Clock
from worker.console.iap import HEADER, Proxy
from worker.errors import Forbidden, Refused, RequestError, Unauthenticated

AUDIENCE = "/projects/123456789/locations/europe-west1/services/console"
NOW = 1_700_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
CLAIMS = {
    "iss": "https://cloud.google.com/iap",
    "aud": AUDIENCE,
    "iat": NOW - 10,
    "exp": NOW + 600,
    "email": "ann@acme.example",
}


def public(key: ec.EllipticCurvePrivateKey) -> str:
    """A key as the address of the keys serves it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def part(value: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def token(claims: Mapping[str, Any], *, key: ec.EllipticCurvePrivateKey = KEY, kid: str = "k1", alg: str = "ES256") -> str:
    """A token as Identity-Aware Proxy signs it."""
    signed = f"{part(json.dumps({'alg': alg, 'kid': kid}).encode())}.{part(json.dumps(dict(claims)).encode())}"
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def proxy(fetch: Callable[[str], Mapping[str, str]] | None = None, clock: Callable[[], float] = lambda: 1000.0) -> Proxy:
    """A verifier that knows one key."""
    return Proxy(AUDIENCE, fetch=fetch or (lambda url: {"k1": public(KEY)}), clock=clock, wall_clock=lambda: float(NOW))


def who(*tokens: str, verifier: Proxy | None = None) -> str:
    """Who sends a request with these headers."""
    headers = Headers(raw=[(HEADER.encode(), each.encode()) for each in tokens])
    return asyncio.run((verifier or proxy()).who(headers))


def test_a_good_token_names_its_bearer() -> None:
    """The e-mail address of the signed header is who asks."""
    assert who(token(CLAIMS)) == "ann@acme.example"


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([], Unauthenticated),
        ([token(CLAIMS), token(CLAIMS)], Unauthenticated),
        (["x"], Unauthenticated),
        ([token(CLAIMS)[:-4] + "AAAA"], Unauthenticated),
        ([token(CLAIMS, key=ec.generate_private_key(ec.SECP256R1()))], Unauthenticated),
        ([token(CLAIMS, kid="k2")], Unauthenticated),
        ([token(CLAIMS, alg="RS256")], Unauthenticated),
        ([token(CLAIMS, alg="none")], Unauthenticated),
        ([token({**CLAIMS, "aud": "/projects/1/locations/x/services/other"})], Unauthenticated),
        ([token({**CLAIMS, "iss": "https://accounts.google.com"})], Unauthenticated),
        ([token({**CLAIMS, "exp": NOW - 31})], Unauthenticated),
        ([token({**CLAIMS, "iat": NOW + 31})], Unauthenticated),
        ([token({**CLAIMS, "exp": "soon"})], Unauthenticated),
        ([token({name: value for name, value in CLAIMS.items() if name != "email"})], Forbidden),
        (["a" * 9000], Unauthenticated),
    ],
)
def test_anything_else_is_refused(tokens: list[str], error: type[RequestError]) -> None:
    """Missing, doubled, forged, of another key, algorithm, audience or issuer, out of its time, or nameless."""
    with pytest.raises(error):
        who(*tokens)


def test_an_outage_is_no_verdict() -> None:
    """While the keys cannot be had, a good token is answered 503 and not 401 (INV-9); known keys stay in use."""

    def unreachable(url: str) -> Mapping[str, str]:
        raise Refused("no answer")

    with pytest.raises(Refused):
        who(token(CLAIMS), verifier=proxy(unreachable))
    clock = Clock()
    verifier = proxy(lambda url: {"k1": public(KEY)} if clock.now == 1000 else unreachable(url), clock)
    for _ in range(3):
        assert who(token(CLAIMS), verifier=verifier) == "ann@acme.example"
        clock.now += 4000


def test_invented_keys_do_not_make_it_ask() -> None:
    """However many key ids strangers invent, the keys are fetched at most every half minute."""
    fetched: list[str] = []

    def fetch(url: str) -> Mapping[str, str]:
        fetched.append(url)
        return {"k1": public(KEY)}

    verifier = proxy(fetch)

    async def many() -> None:
        for number in range(20):
            with pytest.raises(Unauthenticated):
                await verifier.who(Headers(raw=[(HEADER.encode(), token(CLAIMS, kid=f"invented-{number}").encode())]))

    asyncio.run(many())
    assert len(fetched) == 1


def test_keys_that_cannot_be_had_are_not_asked_for_by_each_request() -> None:
    """Nor does a request with a key that is known wait for the others; after half a minute they are asked for again."""
    clock, asked = Clock(), list[str]()

    def fetch(url: str) -> Mapping[str, str]:
        asked.append(url)
        if len(asked) == 2:
            raise Refused("no answer")
        return {"k1": public(KEY)}

    verifier = proxy(fetch, clock)

    async def many() -> None:
        known = Headers(raw=[(HEADER.encode(), token(CLAIMS).encode())])
        assert await verifier.who(known) == "ann@acme.example"
        clock.now += 40
        for number in range(5):
            with pytest.raises(Refused, match="no answer"):
                await verifier.who(Headers(raw=[(HEADER.encode(), token(CLAIMS, kid=f"invented-{number}").encode())]))
        await verifier._fetching.acquire()  # as while another request fetches
        assert await asyncio.wait_for(verifier.who(known), 5) == "ann@acme.example"
        verifier._fetching.release()
        assert len(asked) == 2
        clock.now += 40
        with pytest.raises(Unauthenticated):
            await verifier.who(Headers(raw=[(HEADER.encode(), token(CLAIMS, kid="invented").encode())]))
        assert len(asked) == 3

    asyncio.run(many())
