"""What forms do, and what pages say and tell a person to type, over a service and a bucket that are not there."""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from html import unescape
from typing import Any, NoReturn, Self

import click
import httpx
import pytest

from worker.cli.main import command as solowriter
from worker.config import Settings
from worker.console import bucket_look
from worker.console.app import build
from worker.console.context import Context
from worker.errors import ServiceRefused, StoreUnavailable
from worker.operations.service_client import Wanted

HOST = "127.0.0.1:8090"


def rejection(message_id: str) -> dict[str, Any]:
    """One as the service answers it."""
    return {
        "message_id": message_id,
        "reason": "not_json",
        "detail": "data must be a JSON object",
        "data": "ew==",
        "attributes": {},
        "stored": None,
        "publish_time": "2026-01-31T12:00:00.000Z",
        "received_at": "2026-01-31T12:00:00.000Z",
        "resolved_at": None,
        "resolution": None,
        "delivery_attempt": None,
        "body": None,
        "bytes": 1,
        "about": None,
    }


class Service:
    """Has the rejections of these ids; `go` lets retries end."""

    def __init__(self, *ids: str) -> None:
        self.ids, self.go, self.retried = list(ids), asyncio.Event(), list[str]()
        self.gone: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `worker.operations.service_client.Service`."""

    async def whole(self, message_id: str) -> dict[str, Any]:
        """See `worker.operations.service_client.Service`."""
        if message_id not in self.ids or message_id in self.gone:
            raise ServiceRefused("the service answered 404: there is no rejection with this message id", status=404)
        return rejection(message_id)

    async def each(self, wanted: Wanted) -> AsyncIterator[dict[str, Any]]:
        """See `worker.operations.service_client.Service`."""
        for message_id in self.ids:
            yield rejection(message_id)

    async def discard(self, message_id: str) -> str:
        """See `worker.operations.service_client.Service`."""
        return "discarded"

    async def retry(self, message_id: str) -> str:
        """See `worker.operations.service_client.Service`."""
        await self.go.wait()
        self.retried.append(message_id)
        return "created"


def console(service: Service, body: Callable[[httpx.AsyncClient, dict[str, str]], Awaitable[None]]) -> None:
    """Run `body` with a client of a console of this service, and the token of its forms."""

    async def run() -> None:
        context = Context(Settings(replica_url="gs://acme-users/prod"), {}, url="http://127.0.0.1:1", hosts=[HOST])
        context.service = service  # type: ignore[assignment]  # as much of one as is asked for
        transport = httpx.ASGITransport(build(context))
        headers = {"origin": f"http://{HOST}"}
        async with context, httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}", headers=headers) as client:
            page = (await client.get("/rejection", params={"id": service.ids[0]})).text
            found = re.search(r'name="token" value="([^"]+)"', page)
            assert found is not None
            await body(client, {"token": found[1]})

    asyncio.run(asyncio.wait_for(run(), 30))


def commands(page: str) -> list[list[str]]:
    """The commands of a page, in words."""
    texts = re.findall(r'<code id="command-[a-z-]+">(.*?)</code>', page)
    return [shlex.split(unescape(re.sub(r"</?span>", "", text))) for text in texts]


def parsed(words: list[str]) -> dict[str, Any]:
    """What a command of ours takes its words for."""
    command: click.Command = solowriter
    context, words = click.Context(command), words[3:]
    while isinstance(command, click.Group):
        named = command.get_command(context, words[0])
        assert named is not None
        command, words = named, words[1:]
    return command.make_context("x", words, parent=context).params


@pytest.mark.parametrize("message_id", ["7", "--all", "-5", "--yes", "a b; rm -rf ~", "x' y", "$(id)", "a/b", ".."])
def test_a_command_names_the_message_whatever_its_id_is(message_id: str) -> None:
    """A stranger's message may have the id `--all`, and the command beside it must not discard all."""

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        page = (await client.get("/rejection", params={"id": message_id})).text
        named = [words for words in commands(page) if words[3:4] == ["rejections"]]
        ids = [parsed(words) for words in named if words[4] != "export"]
        assert len(ids) == 4
        assert all(params.get("ids", params.get("id")) in ((message_id,), message_id) for params in ids)
        assert not any(params.get("all") for params in ids)

    console(Service(message_id), body)


@pytest.mark.parametrize("subject", ["7", "--yes", "-5", "ann o'hara"])
def test_a_command_names_the_person_whatever_the_subject_is(subject: str) -> None:
    """It is a text of the sender's as well."""

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        page = (await client.post("/erase", data={**token, "subject": subject})).text
        (words,) = [words for words in commands(page) if words[3:4] == ["erase"]]
        assert parsed(words).items() >= {"subject": subject, "yes": True}.items()

    console(Service("7"), body)


def test_a_second_retry_of_many_is_not_begun_in_silence() -> None:
    """The page of the first one would be taken for its own."""
    service = Service("7")

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        first = await client.post("/retry", data={**token, "reason": "not_json"})
        second = await client.post("/retry", data={**token, "reason": "conflict"})
        service.go.set()
        assert (first.status_code, second.status_code) == (303, 400)
        assert "another retry runs, and this one was not begun" in second.text

    console(service, body)


def test_an_export_that_cannot_be_had_is_a_page_that_says_so() -> None:
    """And no file that is empty, or not whole."""

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        answer = await client.post("/export", data={**token, "id": "8"})
        assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")
        assert "there is no rejection with this message id" in answer.text

    console(Service("7"), body)


def test_an_export_of_all_passes_over_what_has_gone_meanwhile() -> None:
    """The others are in the file, a line each."""
    service = Service("7", "8", "9")

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        service.gone = {"7", "9"}
        answer = await client.post("/export", data={**token, "reason": "not_json"})
        assert answer.status_code == 200
        assert [json.loads(line)["_rejection"]["message_id"] for line in answer.text.splitlines()] == ["8"]

    console(service, body)


def test_a_drill_that_cannot_be_read_is_not_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """That none is recorded is known only from a bucket that has answered."""

    async def silent(*_: object, **__: object) -> NoReturn:
        raise StoreUnavailable("the bucket does not answer")

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        page = (await client.get("/bucket")).text
        assert "the bucket does not answer" in page
        assert "None is recorded" not in page
        assert "What it came to is not known." in page

    monkeypatch.setattr(bucket_look, "survey", silent)
    console(Service("7"), body)


def test_an_address_or_a_form_that_is_none_of_ours_is_refused_as_such() -> None:
    """Not as a defect of the console."""

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        for path in ("/rejection", "/rejection?id="):
            answer = await client.get(path)
            assert (answer.status_code, "names no message" in answer.text) == (400, True)
        answer = await client.post("/retry", data=token | {f"field{number}": "1" for number in range(100)})
        assert (answer.status_code, "over 100 fields" in answer.text) == (400, True)

    console(Service("7", ""), body)


@pytest.mark.parametrize(("typed", "status"), [("1,200", 303), ("1200", 303), ("1,201", 400), ("1.200", 400), ("", 400)])
def test_the_number_to_discard_is_typed_as_the_page_writes_it(typed: str, status: int) -> None:
    """Or as a number; anything else discards nothing."""

    async def body(client: httpx.AsyncClient, token: dict[str, str]) -> None:
        answer = await client.post("/discard", data={**token, "reason": "not_json", "number": typed})
        assert answer.status_code == status

    console(Service(*map(str, range(1200))), body)
