"""Behind Cloud Run's check of IAM, which takes the signatures of tokens off: pushes, operators, and forgeries."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from local.authority import Authority
from local.gcs_process import FakeGcs
from local.stack import QUICK_LEASE, TOPIC, stack
from local.worker_process import WorkerProcess, wait_until
from publisher import message
from tests.front import MARKER, Front
from tests.integration.test_first_light import without_emulator

pytestmark = pytest.mark.slow

AUDIENCE = "https://users-worker-1.europe-west1.run.app"
PUSHER, OPERATOR, READER = (f"{name}@acme.iam.gserviceaccount.com" for name in ("push", "ops", "reader"))
SETTINGS = {
    "PUSH_AUDIENCE": AUDIENCE,
    "PUSH_SERVICE_ACCOUNT": PUSHER,
    "OPERATORS": OPERATOR,
    "OIDC_CERTS_URL": "http://127.0.0.1:1/certs",  # no certificate is needed, and none can be had
}
TIME = "2026-01-02T03:04:05.678Z"


@dataclass(frozen=True, slots=True)
class Site:
    """A worker that trusts the platform, the front end before it, and who makes tokens."""

    worker: WorkerProcess
    front: Front
    google: Authority

    def push(self, user: int, headers: dict[str, str], *, around: bool = False) -> int:
        """Push a user; `around` the front end, as a forger inside would. The status."""
        body = message.envelope(b'{"user_id": %d}' % user, {}, f"m{user}", TIME, "projects/p/subscriptions/s")
        address = self.worker.url if around else self.front.url
        return httpx.post(f"{address}/", content=body, headers=headers, trust_env=False, timeout=30).status_code

    def token(self, email: str) -> str:
        """A good one of Google's."""
        return self.google.token(audience=AUDIENCE, email=email)

    def stored(self, user: int) -> bool:
        """Whether the user is there."""
        return httpx.get(f"{self.worker.url}/users/{user}", trust_env=False, timeout=60).status_code == 200


def forged(email: str) -> str:
    """A token that the sender has written itself, with the marker in the signature's place."""
    parts = [{"alg": "RS256", "kid": "key-1"}, {"iss": "https://accounts.google.com", "aud": AUDIENCE, "email": email}]
    parts[1] |= {"email_verified": True, "iat": 1_600_000_000, "exp": 4_000_000_000}  # type: ignore[dict-item]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts), MARKER])


@pytest.fixture
def google() -> Iterator[Authority]:
    """Makes tokens."""
    with Authority() as serving:
        yield serving


@pytest.fixture
def site(tmp_path: Path, google: Authority, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A serving worker behind the front end; the parameter is TOKENS_VERIFIED_BY."""
    verified_by = getattr(request, "param", "platform")
    with FakeGcs(tmp_path / "gcs", buckets=("bucket",)) as gcs:
        variables = {**gcs.environment(), **QUICK_LEASE, **SETTINGS, "TOKENS_VERIFIED_BY": verified_by}
        if verified_by == "here":
            variables["OIDC_CERTS_URL"] = google.url
        worker = WorkerProcess(
            disk=tmp_path / "disk",
            replica_url="gs://bucket/store",
            environment=variables,
            port=0,
            log=tmp_path / "worker.log",
        )
        assert worker.run("init").returncode == 0
        try:
            worker.start().wait_serving()
            with Front(worker.url, google, audience=AUDIENCE, invokers={PUSHER, OPERATOR, READER}) as front:
                yield Site(worker, front, google)
        finally:
            worker.kill()


def test_a_push_is_acknowledged_behind_the_platforms_check(tmp_path: Path, google: Authority) -> None:
    """Gcloud publishes, the emulator pushes, the front end removes the signature: the first delivery is answered 204."""
    with stack(tmp_path, settings=SETTINGS | {"TOKENS_VERIFIED_BY": "platform"}) as running:
        if running.pubsub is None:
            without_emulator(running.why_not)
        with Front(running.worker.url, google, audience=AUDIENCE, invokers={PUSHER}, pusher=PUSHER) as front:
            running.subscribe(front.url)
            data = base64.b64encode(b'{"user_id": 5}').decode()
            topic = f"{running.pubsub.url}/v1/projects/{running.pubsub.project}/topics/{TOPIC}:publish"
            httpx.post(topic, json={"messages": [{"data": data}]}, trust_env=False, timeout=60).raise_for_status()
            wait_until(lambda: bool(front.passed), "the first delivery")
            assert front.passed[0] == 204
            assert httpx.get(f"{running.worker.url}/users/5", trust_env=False, timeout=60).json()["user_id"] == 5


def test_what_the_platform_checked_says_who_is_asking(site: Site) -> None:
    """Of both headers only X-Serverless-Authorization counts, whatever the other holds; a header given twice is refused."""
    pusher, reader = (f"Bearer {site.token(email)}" for email in (PUSHER, READER))
    assert site.push(1, {"authorization": pusher}) == 204
    assert site.push(2, {"x-serverless-authorization": pusher}) == 204
    assert site.push(3, {"x-serverless-authorization": pusher, "authorization": f"Bearer {forged(READER)}"}) == 204
    # An account that may invoke, and forges the subscription's or an operator's token in the header that is not checked.
    assert site.push(4, {"x-serverless-authorization": reader, "authorization": f"Bearer {forged(PUSHER)}"}) == 403
    operator = {"x-serverless-authorization": reader, "authorization": f"Bearer {forged(OPERATOR)}"}
    assert httpx.get(f"{site.front.url}/rejections", headers=operator, trust_env=False, timeout=60).status_code == 403
    # What does not pass the front end: a forged marker alone, or nothing.
    assert site.push(5, {"authorization": f"Bearer {forged(PUSHER)}"}) == 403
    assert site.push(6, {}) == 403
    assert site.front.refused == ["/", "/"]
    twice = [("authorization", f"Bearer {forged(name)}") for name in (PUSHER, READER)]
    body = message.envelope(b'{"user_id": 7}', {}, "m7", TIME, "projects/p/subscriptions/s")
    assert httpx.post(f"{site.worker.url}/", content=body, headers=twice, trust_env=False, timeout=60).status_code == 401
    assert [user for user in range(1, 8) if site.stored(user)] == [1, 2, 3]


def test_operators_are_known_behind_the_platforms_check(site: Site) -> None:
    """The commands work with a token of Google's through the front end, and only an operator's."""
    site.worker._environment["SERVICE_URL"] = site.front.url
    assert site.push(1, {"authorization": f"Bearer {site.token(PUSHER)}"}) == 204
    for email, code in ((OPERATOR, 0), (READER, 1)):
        site.worker._environment["IDENTITY_TOKEN"] = site.token(email)
        assert site.worker.run("erase", "1", "--yes").returncode == code


@pytest.mark.parametrize("site", ["here"], indirect=True)
def test_a_marker_is_never_taken_unless_the_settings_say_so(site: Site) -> None:
    """With TOKENS_VERIFIED_BY=here a stripped token is refused with the setting's name; a signed one passes as before."""
    assert site.push(1, {"authorization": f"Bearer {site.token(PUSHER)}"}) == 401
    assert "TOKENS_VERIFIED_BY" in site.worker.tail()
    assert site.push(2, {"authorization": f"Bearer {site.token(PUSHER)}"}, around=True) == 204
    assert site.push(3, {"authorization": f"Bearer {forged(PUSHER)}"}, around=True) == 401
    assert [user for user in (1, 2, 3) if site.stored(user)] == [2]
