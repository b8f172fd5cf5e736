"""Tokens: which are taken, which are refused and how, and how seldom anybody is asked about them."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import logging
import random
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.auth import jwt
from hypothesis import given, settings
from hypothesis import strategies as some

from local.authority import Authority
from tests.fakes import Clock
from worker.errors import Forbidden, Refused, RequestError, Unauthenticated
from worker.ingest.http import tokens
from worker.ingest.http.tokens import Answer, TokenVerifier, fresh_seconds

AUDIENCE = "https://worker.example.com/"
EMAIL = "push@project.example.com"
NOW = 1_800_000_000
SKEW = 10
SECRET = "s3cret"
SMALL_KEY = 1024
"""Bits of the keys where many tokens are signed."""

T = TypeVar("T")


class Enough(Exception):
    """Ends a loop that would go on for ever."""


@dataclass
class Served:
    """The certificates' address, in memory: it answers, fails, or keeps who asks waiting until `gate` is set."""

    authority: Authority
    failing: bool = False
    headers: dict[str, str] = field(default_factory=lambda: {"cache-control": "public, max-age=1000"})
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, url: str, timeout: float) -> Answer:
        """See `worker.ingest.http.tokens.fetch`."""
        self.asked.append(threading.current_thread().name)
        assert self.gate.wait(10)
        if self.failing:
            raise Refused("no answer")
        return Answer(json.dumps(self.authority.certificates).encode(), httpx.Headers(self.headers))


@dataclass
class Site:
    """A verifier, the authority it trusts, and the two clocks."""

    authority: Authority
    options: dict[str, Any] = field(default_factory=dict)
    wall: Clock = field(default_factory=lambda: Clock(now=NOW))
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.served = Served(self.authority)
        told: dict[str, Any] = {
            "audience": AUDIENCE,
            "certs_url": "http://certificates.example.com",
            "refresh_min_seconds": 60,
            "timeout_seconds": 60,
            "tokens_max": 100,
            "clock_skew_seconds": SKEW,
            "fetch": self.served,
        }
        self.verifier = TokenVerifier(
            wall_clock=self.wall, clock=self.clock, sleep=self.clock.sleep, **(told | self.options)
        )

    def token(self, **claims: Any) -> str:
        """A good token but for these claims."""
        usual: dict[str, Any] = {"audience": AUDIENCE, "email": EMAIL, "now": NOW}
        return self.authority.token(**(usual | claims))

    def email(self, token: str | None) -> str:
        """The verdict on one token, or on no header at all."""
        return run(self.verifier.email(None if token is None else f"Bearer {token}"))

    def refusal(self, token: str | None) -> str:
        """The text of the 401 that a token gets."""
        return refused(Unauthenticated, lambda: self.email(token), token or "no token")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end."""
    return asyncio.run(work)


def refused(kind: type[RequestError], attempt: Callable[[], object], token: str) -> str:
    """The text of a refusal: it names a next step, and gives away nothing of the token, not even to a log."""
    with pytest.raises(RequestError) as caught:
        attempt()
    text = str(caught.value)
    assert type(caught.value) is kind, text
    assert "; " in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for part in (SECRET, EMAIL, *(piece for piece in token.split(".") if len(piece) > 8)):
        assert part not in text
    return text


def base64url(data: bytes) -> str:
    """As tokens spell it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def google() -> Authority:
    """An authority whose keys no test changes."""
    return Authority()


@pytest.fixture
def site(google: Authority) -> Iterator[Site]:
    """A verifier that trusts it."""
    made = Site(google)
    yield made
    made.verifier.close()


@pytest.fixture
def changing() -> Iterator[Site]:
    """A verifier that trusts an authority of this test alone."""
    made = Site(Authority(key_bits=SMALL_KEY))
    yield made
    made.verifier.close()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that signatures were checked on, one for each check."""
    threads: list[str] = []
    original = jwt.decode

    def decode(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return original(*args, **options)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(jwt, "decode", decode)
    return threads


# What is taken.


@pytest.mark.parametrize("issuer", ["https://accounts.google.com", "accounts.google.com"])
def test_a_good_token_tells_its_bearer(site: Site, issuer: str) -> None:
    """Google's name has two spellings."""
    assert site.email(site.token(iss=issuer)) == EMAIL


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_scheme_is_read_in_any_case(site: Site, scheme: str) -> None:
    """RFC 9110, 11.1."""
    assert run(site.verifier.email(scheme + site.token())) == EMAIL


@pytest.mark.parametrize(
    "claims",
    [
        {"iat": NOW + SKEW},
        {"nbf": NOW + SKEW},
        {"nbf": NOW - 5},
        {"exp": NOW - SKEW + 0.5},
        {"exp": NOW + 0.5},
        {"more": ["claims"]},
    ],
)
def test_clocks_may_be_a_little_apart(site: Site, claims: dict[str, Any]) -> None:
    """Within the skew, both ways; fractions of a second are times too; claims we do not know are no harm."""
    assert site.email(site.token(**claims)) == EMAIL


# What is refused.


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpzM2NyZXQ=",
        "Bearer s3cret",
        "Bearer a.b",
        "Bearer a.b.c.d",
        "Bearer .b.c",
        "Bearer a..c",
        "Bearer a.b.",
        "Bearer a.b.c ",
        "Bearer a.b.c\n",
        "Bearer a.b.c==",
        "Bearer\ta.b.c",
        "Bearer ä.ö.ü",
        "Bearer ٣.٣.٣",
        "Bearer a.b.c, Bearer a.b.c",
        "Bearer a.b.\u017f",
        "\x00",
        "Bearer " + "a" * 9000 + ".b.c",
        "Bearer" + " " * 9000 + "a.b.c",
    ],
)
def test_what_is_no_bearer_token_is_401(site: Site, header: str | None) -> None:
    """Before anything is fetched."""
    refused(Unauthenticated, lambda: run(site.verifier.email(header)), header or "")
    assert site.served.asked == []


def test_an_endless_token_is_401(site: Site) -> None:
    """At 8 KiB, although it is a good one."""
    spare = 8192 - len("Bearer " + site.token(more=""))
    assert site.email(site.token(more="x" * (spare * 3 // 4 - 3))) == EMAIL
    assert "bearer token" in site.refusal(site.token(more="x" * (spare * 3 // 4 + 3)))


@pytest.mark.parametrize(
    "head",
    [
        b'{"alg":"none","kid":"key-1"}',
        b'{"alg":"None","kid":"key-1"}',
        b'{"alg":"HS256","kid":"key-1"}',
        b'{"alg":"ES256","kid":"key-1"}',
        b'{"alg":"ES384","kid":"key-1"}',
        b'{"alg":"RS512","kid":"key-1"}',
        b'{"alg":"PS256","kid":"key-1"}',
        b'{"alg":"rs256","kid":"key-1"}',
        b'{"alg":["RS256"],"kid":"key-1"}',
        b'{"alg":null,"kid":"key-1"}',
        b'{"alg":"RS256","alg":"none","kid":"key-1"}',
        b'{"kid":"key-1"}',
        b'{"alg":"RS256","kid":"key-1","crit":["b64"],"b64":false}',
        b'{"alg":"RS256"}',
        b'{"alg":"RS256","kid":""}',
        b'{"alg":"RS256","kid":null}',
        b'{"alg":"RS256","kid":1}',
        b'{"alg":"RS256","kid":["key-1"]}',
        b'{"alg":"RS256","kid":{}}',
        b"[]",
        b"null",
        b'"RS256"',
        b"1",
        b"s3cret",
        b"\xff\xfe\x00",
        b"\x00",
        b"[" * 5000,
        b'{"alg":' * 800,
        b"1" * 5000,
        '{"alg":"RS256","kid":"key-1"}'.encode("utf-16"),
    ],
)
def test_a_header_that_asks_for_anything_else_is_401(site: Site, head: bytes) -> None:
    """Signed or not: the algorithm is ours to choose, and a token that names no key is not tried with all of them."""
    site.refusal(site.authority.sign_text(head, b"{}"))
    assert site.served.asked == []


@pytest.mark.parametrize("kid", ["key-2", "\ud800", "é", "\x00", "key-1 ", "__class__", "k" * 3000])
def test_an_unknown_key_is_401_after_a_refresh(site: Site, kid: str) -> None:
    """Whatever it is called."""
    assert "key that is not one of Google's" in site.refusal(site.authority.sign({}, kid=kid))
    assert len(site.served.asked) == 1


def test_an_unsigned_token_is_401(site: Site) -> None:
    """The oldest trick: no algorithm and no signature."""
    _, claims, _ = site.token().split(".")
    head = base64url(b'{"alg":"none","kid":"key-1","typ":"JWT"}')
    site.refusal(f"{head}.{claims}.")
    site.refusal(f"{head}.{claims}.AA")


def test_a_certificate_is_no_secret(site: Site) -> None:
    """HS256 with the public certificate as its key is not taken for a signature."""
    _, claims, _ = site.token().split(".")
    head = base64url(b'{"alg":"HS256","kid":"key-1","typ":"JWT"}')
    code = hmac.new(site.authority.certificates["key-1"].encode(), f"{head}.{claims}".encode(), hashlib.sha256).digest()
    site.refusal(f"{head}.{claims}.{base64url(code)}")


def test_another_payload_under_a_good_signature_is_401(site: Site) -> None:
    """What was signed is what counts."""
    head, _, signature = site.token().split(".")
    _, claims, _ = site.token(email="other@example.com").split(".")
    site.refusal(f"{head}.{claims}.{signature}")


def test_another_header_under_a_good_signature_is_401(site: Site) -> None:
    """The header is signed too."""
    _, claims, signature = site.token().split(".")
    head = base64url(b'{"alg": "RS256", "kid": "key-1", "typ": "JWT" }')
    site.refusal(f"{head}.{claims}.{signature}")


def test_another_signature_is_401(site: Site) -> None:
    """A bit more or less, a shorter one, one of another token."""
    head, claims, signature = site.token().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for wrong in (bytes([raw[0] ^ 1]) + raw[1:], raw[:-1], raw + b"\x00", b"\x00" * 256, b"\x01", b"\xff" * 256):
        site.refusal(f"{head}.{claims}.{base64url(wrong)}")
    site.refusal(f"{head}.{claims}.{site.token(sub='another').split('.')[2]}")


def test_one_token_has_one_spelling(site: Site) -> None:
    """The last character of a signature holds bits that a lenient decoder drops, so sixteen would do."""
    token = site.token()
    assert site.email(token) == EMAIL
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for other in set(last) - {token[-1]}:
        site.refusal(token[:-1] + other)


def test_another_key_of_the_same_name_is_401(site: Site) -> None:
    """A name is no proof."""
    stranger = Authority(key_bits=SMALL_KEY)
    assert stranger.key_id == site.authority.key_id
    assert "signature" in site.refusal(stranger.token(audience=AUDIENCE, email=EMAIL, now=NOW))


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"iss": "https://accounts.example.com"}, "issued by Google"),
        ({"iss": "https://accounts.google.com/"}, "issued by Google"),
        ({"iss": "http://accounts.google.com"}, "issued by Google"),
        ({"iss": None}, "issued by Google"),
        ({"iss": ["https://accounts.google.com"]}, "issued by Google"),
        ({"iss": 1}, "issued by Google"),
        ({"aud": "https://worker.example.com"}, "PUSH_AUDIENCE"),
        ({"aud": [AUDIENCE]}, "PUSH_AUDIENCE"),
        ({"aud": {AUDIENCE: 1}}, "PUSH_AUDIENCE"),
        ({"aud": None}, "PUSH_AUDIENCE"),
        ({"aud": 1}, "PUSH_AUDIENCE"),
        ({"exp": NOW - SKEW}, "expired"),
        ({"exp": NOW - SKEW - 0.5}, "expired"),
        ({"exp": 0}, "expired"),
        ({"iat": NOW + SKEW + 1}, "not valid yet"),
        ({"nbf": NOW + SKEW + 1}, "not valid yet"),
        ({"nbf": NOW + SKEW + 0.5}, "not valid yet"),
    ],
)
def test_a_claim_that_is_not_for_us_is_401(site: Site, claims: dict[str, Any], named: str) -> None:
    """Each by its own sentence."""
    assert named in site.refusal(site.token(**claims))


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "value",
    [
        "1800000000",
        "s3cret",
        None,
        True,
        [NOW],
        {},
        -1,
        float("nan"),
        float("inf"),
        float("-inf"),
        1e300,
        10**400,
        -(10**400),
        253_402_300_800,
    ],
    ids=repr,
)
def test_a_time_that_is_none_is_401(site: Site, name: str, value: object) -> None:
    """Texts, NaN, infinities, and numbers that no float can hold."""
    site.refusal(site.token(**{name: value}))


@pytest.mark.parametrize("name", ["iss", "aud", "exp", "iat"])
def test_a_missing_claim_is_401(site: Site, name: str) -> None:
    """Those that every token of Google's has."""
    claims = {"iss": "accounts.google.com", "aud": AUDIENCE, "exp": NOW + 60, "iat": NOW, "email": EMAIL}
    claims |= {"email_verified": True}
    assert site.email(site.authority.sign(claims)) == EMAIL
    del claims[name]
    site.refusal(site.authority.sign(claims))


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b'"s3cret"', b"1", b"{", b"s3cret", b"\xff", b"[" * 5000, b'{"exp":' + b"9" * 5000 + b"}"],
)
def test_a_payload_that_is_no_object_is_401(site: Site, payload: bytes) -> None:
    """Although its signature is good."""
    head = json.dumps({"alg": "RS256", "kid": "key-1"}).encode()
    site.refusal(site.authority.sign_text(head, payload))


@pytest.mark.parametrize(
    "claims",
    [
        {"email": None},
        {"email": ""},
        {"email": 5},
        {"email": [EMAIL]},
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "true"},
        {"email_verified": 1},
        {"email_verified": [True]},
    ],
)
def test_a_bearer_without_a_verified_address_is_403(site: Site, claims: dict[str, Any]) -> None:
    """The token is genuine; it only doesn't say who this is."""
    token = site.token(**claims)
    refused(Forbidden, lambda: site.email(token), token)


def test_no_mutation_of_a_good_token_is_taken(site: Site) -> None:
    """1,000 of them, seeded: a character replaced, inserted, removed, or two exchanged."""
    chance = random.Random(20_240_607)
    good = site.token()
    letters = "ABCxyz0189-_.=+/~\x00\xe9\u0130"

    def mutated() -> str:
        at, other = chance.randrange(len(good)), chance.randrange(len(good))
        kinds = [
            good[:at] + chance.choice(letters) + good[at + 1 :],
            good[:at] + chance.choice(letters) + good[at:],
            good[:at] + good[at + 1 :],
            good[: min(at, other)] + good[max(at, other)] + good[min(at, other) + 1 :],
            good[:at] + good[other:],
        ]
        return chance.choice(kinds)

    async def all_refused() -> int:
        count = 0
        while count < 1000:
            token = mutated()
            if token != good:
                count += 1
                with pytest.raises(Unauthenticated):
                    await site.verifier.email(f"Bearer {token}")
        return count

    assert site.email(good) == EMAIL
    assert run(all_refused()) == 1000
    assert len(site.served.asked) <= 2  # keys with mutated names were looked for once


def test_no_claims_end_in_another_error(site: Site) -> None:
    """Whatever JSON the claims hold, signed: a verdict, never a surprise."""
    anything = some.recursive(
        some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
        lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
        max_leaves=5,
    )
    names = some.sampled_from(["iss", "aud", "exp", "iat", "nbf", "email", "email_verified", "sub"])

    @settings(max_examples=200, deadline=None, database=None)
    @given(some.dictionaries(names, anything, max_size=4))
    def check(claims: dict[str, Any]) -> None:
        with contextlib.suppress(Unauthenticated, Forbidden):
            assert isinstance(site.email(site.token(**claims)), str)

    check()


def test_no_bytes_end_in_another_error(site: Site) -> None:
    """Whatever bytes stand where the header and the claims should, signed."""

    @settings(max_examples=200, deadline=None, database=None)
    @given(some.binary(max_size=60), some.binary(max_size=60))
    def check(head: bytes, claims: bytes) -> None:
        for token in (
            site.authority.sign_text(head, claims),
            site.authority.sign_text(b'{"alg":"RS256","kid":"key-1"}', claims),
        ):
            with pytest.raises(Unauthenticated):
                site.email(token)

    check()


# What is remembered.


def test_a_verified_token_is_verified_once(site: Site, decoded: list[str]) -> None:
    """Every later request with it costs no check and no fetch."""
    token = site.token()

    async def many() -> None:
        for _ in range(1000):
            assert await site.verifier.email(f"Bearer {token}") == EMAIL

    run(many())
    assert len(decoded) == 1
    assert len(site.served.asked) == 1


def test_a_new_token_that_many_bring_at_once_is_verified_once(site: Site, decoded: list[str]) -> None:
    """Pub/Sub sends the same token with many pushes side by side."""
    header = f"Bearer {site.token()}"

    async def many() -> list[str]:
        return await asyncio.gather(*(site.verifier.email(header) for _ in range(200)))

    assert run(many()) == [EMAIL] * 200
    assert len(decoded) == 1


def test_a_remembered_token_expires(site: Site) -> None:
    """At its own time and not before; afterwards it is forgotten too."""
    token = site.token(exp=NOW + 100)
    assert site.email(token) == EMAIL
    site.wall.now = NOW + 100 + SKEW - 0.25
    assert site.email(token) == EMAIL
    site.wall.now = NOW + 100 + SKEW
    assert "expired" in site.refusal(token)
    assert site.verifier._remembered == {}
    assert "expired" in site.refusal(token)


def test_a_refusal_is_not_remembered(site: Site, decoded: list[str]) -> None:
    """A token that is not valid yet is taken once it is."""
    token = site.token(nbf=NOW + 100)
    site.refusal(token)
    site.wall.now += 100
    assert site.email(token) == EMAIL
    assert len(decoded) == 2


def test_what_a_withdrawn_key_has_signed_is_forgotten(changing: Site) -> None:
    """A key that Google takes back takes its tokens with it."""
    old = changing.token()
    assert changing.email(old) == EMAIL
    withdrawn = changing.authority.key_id
    changing.authority.rotate()
    changing.authority.withdraw(withdrawn)
    changing.clock.now += 60
    assert changing.email(changing.token()) == EMAIL
    assert "not one of Google's" in changing.refusal(old)


def test_what_was_verified_with_certificates_of_yesterday_is_not_remembered(
    changing: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is withdrawn while its token is being verified."""
    begun, gate, original = threading.Event(), threading.Event(), jwt.decode

    def decode(*args: Any, **options: Any) -> Any:
        begun.set()
        assert gate.wait(10)
        return original(*args, **options)  # type: ignore[no-untyped-call]

    async def scene() -> None:
        old, withdrawn = f"Bearer {changing.token()}", changing.authority.key_id
        first = asyncio.create_task(changing.verifier.email(old))
        assert await asyncio.to_thread(begun.wait, 10)
        changing.authority.rotate()
        changing.authority.withdraw(withdrawn)
        await changing.verifier._certificates._refresh()
        with pytest.raises(Unauthenticated):
            await changing.verifier.email(old)
        gate.set()
        assert await first == EMAIL
        with pytest.raises(Unauthenticated):
            await changing.verifier.email(old)

    monkeypatch.setattr(jwt, "decode", decode)
    run(scene())


def test_a_renewal_that_brings_nothing_new_forgets_nothing(site: Site, decoded: list[str]) -> None:
    """Only a changed set of keys does."""
    token = site.token()
    assert site.email(token) == EMAIL
    assert len(pauses(site, 3)) == 3
    assert len(site.served.asked) == 4
    assert site.email(token) == EMAIL
    assert len(decoded) == 1


def test_memory_is_bounded(decoded: list[str]) -> None:
    """10,000 good tokens of 100 that may be remembered: the newest stay."""
    site = Site(Authority(key_bits=SMALL_KEY))

    async def many() -> str:
        for number in range(10_000):
            header = f"Bearer {site.token(sub=str(number))}"
            assert await site.verifier.email(header) == EMAIL
            assert len(site.verifier._remembered) <= 100
        assert len(decoded) == 10_000
        return header

    last = run(many())
    assert run(site.verifier.email(last)) == EMAIL
    assert len(decoded) == 10_000
    assert len(site.verifier._remembered) == 100
    site.verifier.close()


def test_who_waits_is_bounded(google: Authority) -> None:
    """One more than may wait is told to come again, at once."""
    site = Site(google, {"waiting_max": 2})
    site.served.gate.clear()

    async def three() -> list[Any]:
        header = f"Bearer {site.token()}"
        two = [asyncio.create_task(site.verifier.email(header)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="at once"):
            await site.verifier.email(header)
        site.served.gate.set()
        return [*(await asyncio.gather(*two)), await site.verifier.email(header)]

    assert run(three()) == [EMAIL] * 3
    site.verifier.close()


# Where the work is done.


def test_signatures_and_fetches_are_off_the_loop(site: Site, decoded: list[str]) -> None:
    """Each on a thread of its own."""
    site.email(site.token())
    site.email(site.token(sub="another"))
    assert decoded == ["tokens_0"] * 2
    assert site.served.asked == ["certificates_0"]


def test_a_fetch_that_hangs_holds_up_nobody_else(changing: Site) -> None:
    """While one request waits for a new key, others with known keys are verified."""

    async def scene() -> None:
        old, remembered = changing.token(), changing.token(sub="remembered")
        assert await changing.verifier.email(f"Bearer {remembered}") == EMAIL
        changing.authority.rotate()
        changing.clock.now += 60
        changing.served.gate.clear()
        waiting = asyncio.create_task(changing.verifier.email(f"Bearer {changing.token()}"))
        await asyncio.sleep(0.01)
        assert await changing.verifier.email(f"Bearer {remembered}") == EMAIL
        assert await changing.verifier.email(f"Bearer {old}") == EMAIL
        assert not waiting.done()
        changing.served.gate.set()
        assert await waiting == EMAIL

    run(scene())


# The certificates.


def test_a_new_key_costs_a_short_wait_and_one_fetch(changing: Site) -> None:
    """50 requests side by side with tokens of a key that Google has just begun to use: no 401."""
    assert changing.email(changing.token()) == EMAIL
    changing.authority.rotate()
    changing.clock.now += 60

    async def fifty() -> list[str]:
        headers = [f"Bearer {changing.token(sub=str(number))}" for number in range(50)]
        return await asyncio.gather(*(changing.verifier.email(header) for header in headers))

    assert run(fifty()) == [EMAIL] * 50
    assert len(changing.served.asked) == 2


def test_a_request_that_gives_up_takes_no_fetch_with_it(site: Site) -> None:
    """Others wait for the same one."""
    site.served.gate.clear()

    async def scene() -> str:
        first = asyncio.create_task(site.verifier.email(f"Bearer {site.token()}"))
        second = asyncio.create_task(site.verifier.email(f"Bearer {site.token()}"))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait({first})
        site.served.gate.set()
        return await second

    assert run(scene()) == EMAIL
    assert len(site.served.asked) == 1
    assert site.verifier._waiting == 0


def test_invented_keys_do_not_make_us_ask_often(site: Site) -> None:
    """1,000 of them in as many seconds: one fetch a minute."""
    assert site.email(site.token()) == EMAIL

    async def hostile() -> None:
        for number in range(1000):
            site.clock.now += 1
            with pytest.raises(Unauthenticated):
                await site.verifier.email("Bearer " + site.authority.sign({}, kid=f"invented-{number}"))

    run(hostile())
    assert len(site.served.asked) == 1 + 1000 // 60
    assert site.email(site.token()) == EMAIL


def test_before_the_first_certificates_nobody_knows(site: Site) -> None:
    """INV-9: 503, and asked at most once in a while; once they are there, the same token is good."""
    site.served.failing = True
    for _ in range(5):
        refused(Refused, lambda: site.email(site.token()), site.token())
    assert len(site.served.asked) == 1
    site.served.failing = False
    site.clock.now += 60
    assert site.email(site.token()) == EMAIL


def test_old_certificates_stay_in_use_while_new_ones_cannot_be_had(changing: Site) -> None:
    """Known keys are verified as ever; of an unknown one nobody knows, so it is 503 and no verdict."""
    old = changing.token()
    assert changing.email(old) == EMAIL
    changing.authority.rotate()
    changing.served.failing = True
    changing.clock.now += 60
    refused(Refused, lambda: changing.email(changing.token()), old)
    refused(Refused, lambda: changing.email(changing.token()), old)
    changing.served.failing = False
    changing.authority.key_id = "key-1"
    assert changing.email(changing.token(sub="fresh")) == EMAIL
    assert len(changing.served.asked) == 2


def test_a_fetch_without_an_end_is_503(google: Authority) -> None:
    """Nobody waits longer than the timeout."""
    site = Site(google, {"timeout_seconds": 0.05})
    site.served.gate.clear()
    try:
        text = refused(Refused, lambda: site.email(site.token()), site.token())
    finally:
        site.served.gate.set()
    assert "no whole answer within 0.05 s" in text
    site.verifier.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b"<html>", b"\xff", b"[" * 100_000, b'{"keys":[{"kid":"key-1"}]}', b'{"key-1":"junk"}'],
)
def test_an_answer_without_certificates_is_an_outage(google: Authority, body: bytes) -> None:
    """Not a reason to refuse all tokens for good."""
    site = Site(google, {"fetch": lambda url, timeout: Answer(body, httpx.Headers())})
    refused(Refused, lambda: site.email(site.token()), site.token())
    site.verifier.close()


def test_a_certificate_that_cannot_check_a_signature_is_left_out(changing: Site) -> None:
    """One of another kind of key, or a broken one, spoils no other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = made.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    changing.authority.certificates["elliptic"] = signed.public_bytes(serialization.Encoding.PEM).decode()
    changing.authority.certificates["broken"] = "-----BEGIN CERTIFICATE-----\ns3cret\n-----END CERTIFICATE-----\n"
    assert changing.email(changing.token()) == EMAIL
    for kid in ("elliptic", "broken"):
        changing.refusal(changing.authority.sign({}, kid=kid))


# Keeping them fresh.


def pauses(site: Site, count: int, on_sleep: Callable[[int], None] = lambda number: None) -> list[float]:
    """The first pauses of the background task; `on_sleep` is told the number of each."""

    def count_down(clock: Clock) -> None:
        on_sleep(len(clock.slept))
        if len(clock.slept) == count:
            raise Enough

    site.clock.on_sleep = count_down
    with pytest.raises(Enough):
        run(site.verifier.keep_fresh())
    return site.clock.slept


def test_certificates_are_renewed_before_their_own_time_is_up(site: Site) -> None:
    """At nine tenths of the max-age that came with them, each time anew."""

    def next_age(number: int) -> None:
        site.served.headers["cache-control"] = f"public, max-age={1000 * (number + 1)}"

    assert pauses(site, 3, next_age) == [900, 1800, 2700]
    assert len(site.served.asked) == 3


@pytest.mark.parametrize("control", ["no-store", "max-age=0", "max-age=5"])
def test_certificates_that_are_stale_at_once_are_not_asked_for_all_the_time(site: Site, control: str) -> None:
    """The least time between two fetches counts here too."""
    site.served.headers = {"cache-control": control, "expires": "0"}
    assert min(pauses(site, 3)) >= 60


def test_a_failed_renewal_is_tried_again_with_growing_pauses(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """From one second to one minute, and from the beginning after a success."""
    caplog.set_level(logging.WARNING)  # a test before this one may have configured the log
    site.served.failing = True

    def mend(number: int) -> None:
        site.served.failing = number != 9

    assert pauses(site, 11, mend) == [1, 2, 4, 8, 16, 32, 60, 60, 60, 900, 1]
    assert {getattr(record, "action", "") for record in caplog.records} == {"sender.certificates_retry"}


def test_a_renewal_under_way_is_not_repeated(site: Site) -> None:
    """A request that comes while the first certificates are being fetched waits for those."""
    site.served.gate.clear()

    async def scene() -> str:
        keeping = asyncio.create_task(site.verifier.keep_fresh())
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(site.verifier.email(f"Bearer {site.token()}"))
        await asyncio.sleep(0.01)
        keeping.cancel()
        await asyncio.wait({keeping})
        site.served.gate.set()
        return await waiting

    assert run(scene()) == EMAIL
    assert len(site.served.asked) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"cache-control": "public, max-age=23000, must-revalidate, no-transform"}, 23_000),
        ({"cache-control": 'Max-Age="300"'}, 300),
        ({"cache-control": "s-maxage=5, max-age=300"}, 300),
        ({"cache-control": "max-age=300", "age": "100"}, 200),
        ({"cache-control": "max-age=300", "age": "400"}, 0),
        ({"cache-control": "max-age=300", "age": "junk"}, 300),
        ({"cache-control": "max-age=999999999"}, 86_400),
        ({"cache-control": "x-max-age=5"}, 3600),
        ({"cache-control": "max-age=300", "expires": "Fri, 15 Jan 2027 09:00:00 GMT"}, 300),
        ({"expires": "Fri, 15 Jan 2027 09:00:00 GMT"}, 3600),
        ({"expires": "Fri, 15 Jan 2027 09:00:00 GMT", "date": "Fri, 15 Jan 2027 08:30:00 GMT"}, 1800),
        ({"expires": "Fri, 15 Jan 2027 09:00:00 GMT", "date": "junk", "age": "600"}, 3000),
        ({"expires": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0),
        ({"expires": "0"}, 3600),
        ({}, 3600),
    ],
)
def test_how_long_an_answer_is_fresh(headers: dict[str, str], seconds: float) -> None:
    """RFC 9111, 4.2; NOW is 2027-01-15 08:00 UTC. What cannot be read counts as one hour."""
    assert fresh_seconds(httpx.Headers(headers), NOW) == seconds


# Over HTTP.


def over_http(authority: Authority, url: str, **options: Any) -> Site:
    """A verifier that fetches as it does in service."""
    return Site(authority, {"certs_url": url, "fetch": tokens.fetch} | options)


def test_certificates_come_over_http() -> None:
    """From a server, with its max-age; through a rotation, and through an outage."""
    with Authority(key_bits=SMALL_KEY, max_age=2000) as authority:
        site = over_http(authority, authority.url)
        assert pauses(site, 1) == [1800]
        assert site.email(site.token()) == EMAIL
        authority.rotate()
        assert site.email(site.token()) == EMAIL
        assert authority.fetches == 2
        authority.available = False
        authority.rotate()
        site.clock.now += 60
        assert "answered 503" in refused(Refused, lambda: site.email(site.token()), site.token())
        authority.key_id = "key-1"
        assert site.email(site.token(sub="known key")) == EMAIL
        assert authority.fetches == 3
    site.verifier.close()


def test_a_server_that_is_not_there_is_an_outage(google: Authority) -> None:
    """503, and the reason in its text."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    site = over_http(google, f"http://127.0.0.1:{port}/")
    assert "ConnectError" in refused(Refused, lambda: site.email(site.token()), site.token())
    site.verifier.close()


def test_a_server_that_never_answers_is_an_outage(google: Authority) -> None:
    """503 after the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        site = over_http(google, f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_seconds=0.1)
        refused(Refused, lambda: site.email(site.token()), site.token())
    site.verifier.close()


def test_an_answer_that_is_too_long_is_an_outage() -> None:
    """It is not read to its end."""
    with Authority(key_bits=SMALL_KEY) as authority:
        authority.certificates["long"] = "x" * 1_000_000
        site = over_http(authority, authority.url)
        assert "too much" in refused(Refused, lambda: site.email(site.token()), site.token())
    site.verifier.close()


def test_an_answer_is_what_was_served() -> None:
    """Nothing in it can be changed afterwards."""
    with Authority(key_bits=SMALL_KEY) as authority:
        answer = tokens.fetch(authority.url, 5)
    assert json.loads(answer.body) == authority.certificates
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.body = b""  # type: ignore[misc]


def stripped(token: str) -> str:
    """The token as Cloud Run hands it on."""
    return f"{token.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"


@pytest.fixture
def behind(google: Authority) -> Iterator[Site]:
    """A verifier that every request reaches through the platform's check; it has no certificates, and can have none."""
    made = Site(google, options={"verified_by_platform": True})
    made.served.failing = True
    yield made
    made.verifier.close()


def test_the_platforms_marker_stands_for_a_signature(behind: Site) -> None:
    """TOKENS_VERIFIED_BY=platform: it needs no certificates, is remembered, and ends with its token."""
    token = stripped(behind.token())
    assert [behind.email(token), behind.email(token)] == [EMAIL, EMAIL]
    assert behind.served.asked == []
    behind.wall.now += 3600 + SKEW
    assert "expired" in behind.refusal(token)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"iss": "https://evil.example"}, "not issued by Google"),
        ({"audience": "https://other.example"}, "another audience"),
        ({"now": NOW - 4000}, "expired"),
        ({"now": NOW + 4000}, "not valid yet"),
        ({"exp": "soon"}, "exp is missing or no time"),
    ],
)
def test_the_claims_are_judged_behind_the_platform_too(behind: Site, claims: dict[str, Any], said: str) -> None:
    """Who removed the signature has not checked what we ask for."""
    assert said in behind.refusal(stripped(behind.token(**claims)))


@pytest.mark.parametrize("claims", [{"email": ""}, {"email_verified": False}])
def test_an_unverified_address_is_refused_behind_the_platform_too(behind: Site, claims: dict[str, Any]) -> None:
    """403, as with a signature."""
    token = stripped(behind.token(**claims))
    refused(Forbidden, lambda: behind.email(token), token)


@pytest.mark.parametrize(
    "marker",
    ["SIGNATURE_REMOVED_BY_GOOGL", "SIGNATURE_REMOVED_BY_GOOGLEE", "signature_removed_by_google", "SIGNATURE_REMOVED"],
)
def test_only_the_very_marker_is_taken(behind: Site, marker: str) -> None:
    """Anything else is a signature, to be verified with certificates."""
    behind.served.failing = False
    behind.refusal(f"{behind.token().rpartition('.')[0]}.{marker}")


def test_a_signed_token_is_verified_behind_the_platform_as_before(behind: Site) -> None:
    """A good signature passes, a stranger's does not."""
    behind.served.failing = False
    assert behind.email(behind.token()) == EMAIL
    stranger = Authority(key_bits=SMALL_KEY)
    behind.refusal(stranger.token(audience=AUDIENCE, email=EMAIL, now=NOW))


@pytest.mark.parametrize("claims", [b"5", b"{", b"\xff", b"[" * 3000])
def test_claims_that_are_none_are_refused_behind_the_platform(behind: Site, claims: bytes) -> None:
    """A verdict, and no defect."""
    assert "malformed" in behind.refusal(f"e30.{base64url(claims)}.SIGNATURE_REMOVED_BY_GOOGLE")


def test_the_marker_is_refused_where_tokens_are_verified_here(site: Site) -> None:
    """The refusal names the setting: it is the first thing seen in a deployment without it."""
    assert "TOKENS_VERIFIED_BY" in site.refusal(stripped(site.token()))
