"""What keeps other pages from using the console: hosts, origins, tokens, headers, and files that are ours."""

import asyncio
import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from worker.config import Settings
from worker.console.app import build
from worker.console.context import Context
from worker.console.safety import HEADERS, Who
from worker.errors import Unauthenticated

HOST = "127.0.0.1:8090"
HTMX_SHA256 = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
"""Of dist/htmx.min.js in htmx.org 2.0.11, as npm has it."""
STATIC = Path(__file__).parents[3] / "worker" / "console" / "static"


def ask(method: str, path: str, *, who: Who | None = None, **request: Any) -> httpx.Response:
    """One request to a console whose service does not answer."""

    async def body() -> httpx.Response:
        settings = Settings(replica_url="gs://acme-users/prod")
        context = Context(settings, {}, url="http://127.0.0.1:1", hosts=[HOST])
        async with (
            context,
            httpx.AsyncClient(transport=httpx.ASGITransport(build(context, who=who)), base_url=f"http://{HOST}") as client,
        ):
            # The page needs the bucket, which is not there: what is asked for here does not come that far.
            return await client.request(method, path, **request)

    return asyncio.run(body())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:8091", f"{HOST}.evil.example", ""])
def test_another_host_is_refused(host: str) -> None:
    """A name that was made to lead here (DNS rebinding) gets nothing, whatever it asks for."""
    assert ask("GET", "/job", headers={"host": host}).status_code == 421


def test_our_host_is_let_in() -> None:
    """The address that was printed is served, and each answer forbids what pages need not do."""
    answer = ask("GET", "/job")
    assert answer.status_code == 404
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = answer.headers["content-security-policy"]
    assert "'unsafe" not in policy
    assert set(re.findall(r"[a-z-]+ ('none'|'self')", policy)) == {"'none'", "'self'"}
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": f"http://{HOST}", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9999"},
    ],
)
def test_a_form_of_another_page_is_refused(headers: dict[str, str]) -> None:
    """A POST that does not come from a page of ours changes nothing."""
    assert ask("POST", "/break", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("cross-site", "navigate", 404),
        ("same-origin", "cors", 404),
        ("none", "navigate", 404),
    ],
)
def test_another_page_makes_the_console_ask_for_nothing(site: str, mode: str, status: int) -> None:
    """An image or a script of another page gets nothing, and costs no listing; a link from one is followed."""
    assert ask("GET", "/job", headers={"sec-fetch-site": site, "sec-fetch-mode": mode}).status_code == status


def test_a_form_without_our_token_is_refused() -> None:
    """The right origin is not enough: the token stands in our pages alone."""
    for form in ({}, {"token": "guessed"}):
        answer = ask("POST", "/break", headers={"origin": f"http://{HOST}"}, data=form)
        assert answer.status_code == 400
        assert "load it again" in answer.text


def test_a_form_is_bounded() -> None:
    """A body over a megabyte is not read to its end (INV-7)."""
    answer = ask("POST", "/correct", headers={"origin": f"http://{HOST}"}, content=b"token=" + b"x" * 1_000_001)
    assert answer.status_code == 400
    assert "over 1,000,000 bytes" in answer.text


def test_nothing_is_answered_without_the_proxys_word() -> None:
    """Where the sender must be verified, pages, files and forms are refused without; only the probe is not, and is empty."""

    async def nobody(headers: Headers) -> str:
        raise Unauthenticated("no token")

    for method, path in (("GET", "/"), ("GET", "/static/x/console.css"), ("POST", "/erase")):
        assert ask(method, path, who=nobody).status_code == 401
    probe = ask("GET", "/healthz", who=nobody)
    assert (probe.status_code, probe.content) == (204, b"")


def test_htmx_is_the_file_that_was_published() -> None:
    """The one vendored file is, byte for byte, that of htmx.org 2.0.11."""
    assert hashlib.sha256((STATIC / "htmx.min.js").read_bytes()).hexdigest() == HTMX_SHA256


def test_nothing_is_loaded_from_elsewhere() -> None:
    """Templates, style and script name no other host, and hold no style or script of their own."""
    for file in (*STATIC.glob("console.*"), *STATIC.parent.glob("templates/*.html")):
        text = file.read_text()
        assert not re.search(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), file.name
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script>|\|safe", text), file.name
