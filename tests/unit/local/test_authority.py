"""The local authority: what it signs can be verified with what it serves, by somebody else's code."""

import httpx
import pytest
from google.auth import jwt

from local.authority import Authority


def claims_of(token: str, certificates: dict[str, str]) -> dict[str, object]:
    """What google.auth reads in a token."""
    return dict(jwt.decode(token, certs=certificates, audience="here"))  # type: ignore[no-untyped-call]


def test_what_it_serves_verifies_what_it_signs() -> None:
    """A token made now, in the form of Google's."""
    with Authority(key_bits=1024, max_age=77) as authority:
        answer = httpx.get(authority.url, trust_env=False, timeout=60)
        token = authority.token(audience="here", email="a@example.com", extra=1)
    assert answer.headers["cache-control"] == "public, max-age=77, must-revalidate"
    claims = claims_of(token, answer.json())
    assert claims["email"] == "a@example.com"
    assert claims["email_verified"] is True
    assert claims["extra"] == 1
    assert jwt.decode_header(token) == {"alg": "RS256", "kid": "key-1", "typ": "JWT"}  # type: ignore[no-untyped-call]


def test_a_rotation_keeps_the_older_certificates() -> None:
    """Tokens of both keys are good, until a key is withdrawn."""
    authority = Authority(key_bits=1024)
    old = authority.token(audience="here", email="a@example.com")
    assert authority.rotate() == authority.key_id == "key-2"
    new = authority.token(audience="here", email="a@example.com")
    assert claims_of(old, authority.certificates)
    assert claims_of(new, authority.certificates)
    authority.withdraw("key-1")
    assert claims_of(new, authority.certificates)
    with pytest.raises(ValueError, match="not found"):
        claims_of(old, authority.certificates)


def test_it_counts_who_asks_and_can_be_out_of_order() -> None:
    """An outage is counted as well; afterwards it serves again."""
    with Authority(key_bits=1024) as authority:
        authority.available = False
        assert httpx.get(authority.url, trust_env=False, timeout=60).status_code == 503
        authority.available = True
        assert httpx.get(authority.url, trust_env=False, timeout=60).status_code == 200
        assert authority.fetches == 2


def test_it_has_no_address_unless_it_serves() -> None:
    """The error says what to do."""
    with pytest.raises(RuntimeError, match="enter it with `with`"):
        _ = Authority(key_bits=1024).url
