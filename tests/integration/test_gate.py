"""The gate between a client and the fake Cloud Storage: its rules by raw HTTP, and the real Litestream through it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
import pytest
from google.auth.credentials import AnonymousCredentials

from local.gcs_process import FakeGcs
from local.worker_process import wait_until
from tests.ltx_files import pieces, whole_file
from tests.processes import BUCKET, Objects
from worker.bucket import Place, StoredObject
from worker.config import Settings
from worker.errors import SyncUnavailable
from worker.replica import ltx, place, slots
from worker.replica.gate import Gate
from worker.replica.layout import files
from worker.replica.litestream import Litestream, find_binary
from worker.replica.restoring import cover

pytestmark = pytest.mark.slow

PATH = "store/generations/0000000000000007"
"""Where the generation is; only the gate knows."""
PART = 16 << 20
"""The size of a part of Google's client for Go."""
UPLOAD = f"/upload/storage/v1/b/{place.BUCKET}/o"


def key(level: int, first: int, last: int) -> str:
    """A file's name below its generation."""
    return f"ltx/{level}/{first:016x}-{last:016x}.ltx"


def slot(transaction: int, *, seed: int | None = None) -> bytes:
    """A whole slot."""
    return whole_file(transaction, transaction, seed=seed)


class Client:
    """A gate to a bucket, and a client of it that uploads as Litestream does. `seals` are the reasons it was given."""

    def __init__(self, url: str, *, spacing_seconds: float = 0.0) -> None:
        self.seals: list[str] = []
        place = Place(BUCKET, PATH, lambda: (url, AnonymousCredentials()))  # type: ignore[no-untyped-call]
        self.gate = Gate(place, spacing_seconds=spacing_seconds, on_sealed=self.seals.append)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self.gate.__aenter__())
        self.http = httpx.Client(base_url=f"http://{self.gate.address}", trust_env=False, timeout=60, verify=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._runner.run(self.gate.__aexit__())
        self._runner.close()

    def settle(self, transaction: int) -> int:
        """See `Gate.settle`."""
        return self._runner.run(self.gate.settle(transaction))

    def put(self, name: str, data: bytes) -> httpx.Response:
        """A file of one part: multipart."""
        head = json.dumps({"bucket": place.BUCKET, "name": f"{place.PATH}/{name}"}).encode()
        return self.http.post(
            UPLOAD,
            params={"uploadType": "multipart", "name": f"{place.PATH}/{name}"},
            headers={"content-type": "multipart/related; boundary=limit"},
            content=multipart(head, data),
        )

    def begin(self, name: str) -> str:
        """The session of a file of several parts."""
        answer = self.http.post(
            UPLOAD, params={"uploadType": "resumable"}, json={"bucket": place.BUCKET, "name": f"{place.PATH}/{name}"}
        )
        assert answer.status_code == 200, answer.text
        return answer.headers["location"]

    def part(self, session: str, content: Any, content_range: str, **headers: str) -> httpx.Response:
        """A part of it."""
        headers = {"content-range": f"bytes {content_range}", "x-guploader-no-308": "yes", **headers}
        return self.http.put(session, content=content, headers=headers)

    def delete(self, name: str) -> httpx.Response:
        """Delete a file."""
        return self.http.delete(f"/storage/v1/b/{place.BUCKET}/o/{quote(f'{place.PATH}/{name}', safe='')}")


def multipart(head: bytes, data: bytes) -> bytes:
    """The body of a multipart upload."""
    return (
        b"--limit\r\nContent-Type: application/json\r\n\r\n%b\r\n--limit\r\n"
        b"Content-Type: application/octet-stream\r\n\r\n%b\r\n--limit--\r\n" % (head, data)
    )


@pytest.fixture(scope="module")
def running_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """One fake for all: to start one takes longer than most of these tests."""
    with FakeGcs(tmp_path_factory.mktemp("gcs"), buckets=(BUCKET,)) as gcs:
        yield gcs


@pytest.fixture(scope="module")
def objects(running_gcs: FakeGcs) -> Iterator[Objects]:
    """The objects in the bucket."""
    there = Objects(running_gcs)
    yield there
    there.close()


@pytest.fixture
def fake_gcs(running_gcs: FakeGcs, objects: Objects) -> FakeGcs:
    """The fake, without faults, objects and counts."""
    running_gcs.faults.clear()
    for name in objects.names(""):
        objects.delete(name)
    running_gcs.faults.reset_stats()
    return running_gcs


@pytest.fixture
def client(fake_gcs: FakeGcs) -> Iterator[Client]:
    """A gate to the fake, and its client."""
    with Client(fake_gcs.url) as client:
        yield client


@contextmanager
def aside(work: Any, *arguments: Any) -> Iterator[Future[Any]]:
    """Work on a thread of its own, over at the end of the block."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work, *arguments)


def is_continued(answer: httpx.Response) -> bool:
    """Whether an upload goes on, as Google's client for Go asks to be told."""
    return answer.status_code == 200 and answer.headers.get("x-http-status-code-override") == "308"


# G1


@pytest.mark.parametrize(
    "name",
    [
        "lease.json",
        "replica/manifest.json",
        "replica/../lease.json",
        "replica/ltx/0/../../../lease.json",
        "other/" + key(1, 1, 2),
        "replica/" + key(0, 1, 2),  # a slot holds one transaction
        "replica/" + key(10, 1, 2),
        "replica/" + key(1, 1, 2) + ".tmp",
        "replica/" + key(1, 1, 2).upper(),
        "replica/" + key(1, 1, 2) + "\n",
    ],
)
def test_g1_a_name_outside_the_generation_is_refused_by_every_verb(fake_gcs: FakeGcs, client: Client, name: str) -> None:
    """INV-4: nothing reaches the bucket."""
    quoted = quote(name, safe="")
    resource = json.dumps({"name": name}).encode()
    related = {"content-type": "multipart/related; boundary=limit"}
    answers = [
        client.http.get(f"/{place.BUCKET}/{quoted}"),
        client.http.delete(f"/storage/v1/b/{place.BUCKET}/o/{quoted}"),
        client.http.post(UPLOAD, params={"uploadType": "resumable"}, content=resource),
        client.http.post(UPLOAD, params={"uploadType": "resumable", "name": name}, content=b"{}"),
        client.http.post(UPLOAD, params={"uploadType": "multipart"}, headers=related, content=multipart(resource, slot(1))),
    ]
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert set(client.gate.counts.refused) == {"G1"}
    assert not any(fake_gcs.faults.stats().values())


@pytest.mark.parametrize("prefix", [None, "", "store/", "replica", "replicas/", "/replica/", "other/ltx/0/"])
def test_g1_a_listing_outside_the_generation_is_refused(fake_gcs: FakeGcs, client: Client, prefix: str | None) -> None:
    """The gate's client learns of no other object."""
    parameters = {} if prefix is None else {"prefix": prefix}
    assert client.http.get(f"/storage/v1/b/{place.BUCKET}/o", params=parameters).status_code == 403
    assert not any(fake_gcs.faults.stats().values())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", f"/storage/v1/b/{place.BUCKET}"),
        ("GET", f"/storage/v1/b/{BUCKET}/o?prefix=replica/"),
        ("GET", f"/storage/v1/b/{place.BUCKET}/o/{quote('replica/' + key(0, 1, 1), safe='')}"),
        ("PATCH", f"/storage/v1/b/{place.BUCKET}/o/{quote('replica/' + key(0, 1, 1), safe='')}"),
        ("POST", f"/storage/v1/b/{place.BUCKET}/o/{quote('replica/' + key(1, 1, 1), safe='')}/compose"),
        ("DELETE", f"/storage/v1/b/{place.BUCKET}"),
        ("POST", "/storage/v1/b"),
        ("POST", f"{UPLOAD}?uploadType=media&name=replica/{key(0, 1, 1)}"),
        ("DELETE", f"{UPLOAD}?upload_id=1"),
        ("PUT", f"{UPLOAD}?upload_id=foreign"),
        ("PUT", f"/{place.BUCKET}/replica/{key(0, 1, 1)}"),
        ("POST", "/batch/storage/v1"),
    ],
)
def test_g1_a_request_that_litestream_does_not_make_is_refused(
    fake_gcs: FakeGcs, client: Client, method: str, path: str
) -> None:
    """Among them the ways around the other rules: uploads without a check, composed and rewritten objects."""
    assert client.http.request(method, path, content=slot(1)).status_code in (403, 404)
    assert set(client.gate.counts.refused) == {"G1"}
    assert not any(fake_gcs.faults.stats().values())


def test_g1_the_bucket_learns_the_generations_name_and_the_client_does_not(objects: Objects, client: Client) -> None:
    """A file is created below the generation, and read and listed from there."""
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    assert objects.names("") == [f"{PATH}/{key(0, 1, 1)}"]
    assert client.http.get(f"/{place.BUCKET}/{place.PATH}/{key(0, 1, 1)}").content == slot(1)


# G2


def listed(client: Client, prefix: str) -> list[str]:
    """The names that a listing through the gate shows, below the generation."""
    answer = client.http.get(f"/storage/v1/b/{place.BUCKET}/o", params={"prefix": f"{place.PATH}/{prefix}"})
    return [item["name"].removeprefix(f"{PATH}/") for item in answer.raise_for_status().json().get("items", [])]


def test_g2_a_listing_from_a_transaction_begins_there(client: Client) -> None:
    """Litestream's client asks for the files that begin with that transaction's number, and needs all from there on."""
    for number in range(1, 6):
        assert client.put(key(0, number, number), slot(number)).status_code == 200
    assert client.put(key(1, 1, 5), whole_file(1, 5)).status_code == 200
    assert listed(client, f"ltx/0/{3:016x}") == [key(0, number, number) for number in (3, 4, 5)]
    assert listed(client, "ltx/0/") == [key(0, number, number) for number in range(1, 6)]
    assert listed(client, f"ltx/1/{1:016x}") == [key(1, 1, 5)]


# G3


def test_g3_a_file_is_created_once(objects: Objects, client: Client) -> None:
    """The same bytes again are a success, and the object is the first one."""
    first = client.put(key(0, 1, 1), slot(1))
    again = client.put(key(0, 1, 1), slot(1))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["generation"] == again.json()["generation"]
    assert client.gate.stored == 1
    assert not client.gate.sealed


@pytest.mark.parametrize("lost", [1, 2])
def test_g3_a_slot_whose_answer_was_lost_is_stored(fake_gcs: FakeGcs, client: Client, lost: int) -> None:
    """INV-2: the gate repeats a request once by itself; after that a look tells, or the child's next attempt."""
    fake_gcs.faults.add(verb="insert", action="drop", times=lost)
    answer = client.put(key(0, 1, 1), slot(1))
    if lost == 1:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 502
        assert client.gate.stored == 0  # not known
        assert client.settle(1) == 1
        assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    assert client.put(key(0, 2, 2), slot(2)).status_code == 200
    assert client.gate.stored == 2
    assert not client.gate.sealed


def test_g3_a_slot_after_one_that_is_not_known_is_begun_only_when_that_one_is_found(
    fake_gcs: FakeGcs, objects: Objects, client: Client
) -> None:
    """INV-1: the slots in the bucket have no gap, and `stored` says so."""
    rule = fake_gcs.faults.add(verb="insert", action="refuse")
    assert client.put(key(0, 1, 1), slot(1)).status_code == 502
    fake_gcs.faults.remove(rule)
    assert client.put(key(0, 2, 2), slot(2)).status_code == 503
    assert objects.names("") == []
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    assert client.put(key(0, 2, 2), slot(2)).status_code == 200
    assert client.gate.stored == 2


@pytest.mark.parametrize("kind", ["multipart", "resumable", "settle"])
def test_g3_a_slot_with_other_bytes_ends_the_life(fake_gcs: FakeGcs, objects: Objects, client: Client, kind: str) -> None:
    """INV-3: another life has sealed the generation: no request goes out any more, and no slot counts as stored."""
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    objects.write(f"{PATH}/{key(0, 2, 2)}", slot(2, seed=1))
    data = slot(2)
    if kind == "multipart":
        assert not success(lambda: client.put(key(0, 2, 2), data))
    elif kind == "resumable":
        assert not success(lambda: client.part(client.begin(key(0, 2, 2)), data, f"0-{len(data) - 1}/{len(data)}"))
    else:
        assert client.settle(2) == 1
    assert client.gate.sealed
    assert client.seals == ["another instance has sealed this generation at transaction 2"]
    assert client.gate.stored == 1
    assert_fenced(fake_gcs, client)
    assert objects.read(f"{PATH}/{key(0, 2, 2)}") == slot(2, seed=1)


def success(request: Any) -> bool:
    """Whether a request was answered with a success; a closed connection is none."""
    try:
        return bool(request().is_success)
    except httpx.TransportError:
        return False


def assert_fenced(gcs: FakeGcs, client: Client) -> None:
    """Whatever the client asks for, no request reaches the bucket."""
    before = gcs.faults.stats()
    answers = [
        client.put(key(0, 9, 9), slot(9)),
        client.http.post(UPLOAD, params={"uploadType": "resumable"}, json={"name": f"{place.PATH}/{key(1, 1, 1)}"}),
        client.http.get(f"/{place.BUCKET}/{place.PATH}/{key(0, 1, 1)}"),
        client.http.get(f"/storage/v1/b/{place.BUCKET}/o", params={"prefix": f"{place.PATH}/"}),
        client.delete(key(1, 1, 1)),
    ]
    assert [answer.status_code for answer in answers] == [503] * len(answers)
    assert all("this life is over" in answer.text for answer in answers)
    assert gcs.faults.stats() == before


# G4


def assert_nothing_there(objects: Objects, client: Client) -> None:
    """The bucket is empty and the gate knows it."""
    assert objects.names("") == []
    assert client.gate.stored == 0


@pytest.mark.parametrize("length", [0, 1, 99, 100, 5_000, -9, -8, -1])
def test_g4_a_multipart_body_whose_file_is_cut_off_is_not_forwarded(
    fake_gcs: FakeGcs, objects: Objects, client: Client, length: int
) -> None:
    """INV-1: Litestream's client finalizes what it had sent of a file that it could not read to its end."""
    assert client.put(key(0, 1, 1), slot(1)[:length]).status_code == 400
    assert client.gate.counts.refused["G4"] == 1
    assert fake_gcs.faults.stats()["insert"] == 0
    assert_nothing_there(objects, client)


@pytest.mark.parametrize("name", [key(0, 1, 1), key(1, 2, 4), key(1, 1, 3), key(9, 2, 2)])
def test_g4_a_file_of_other_transactions_than_its_name_says_is_not_forwarded(
    fake_gcs: FakeGcs, objects: Objects, client: Client, name: str
) -> None:
    """It is whole, and holds the transactions 2 to 3."""
    assert client.put(name, whole_file(2, 3)).status_code == 400
    assert fake_gcs.faults.stats()["insert"] == 0
    assert_nothing_there(objects, client)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--limit\r\n\r\n{}",
        multipart(b"{}", slot(1)).replace(b"--limit--", b"--limit"),
        multipart(json.dumps({"name": f"{place.PATH}/{key(0, 1, 1)}"}).encode(), slot(1))[:-30],
    ],
)
def test_g4_a_multipart_body_that_does_not_end_is_not_forwarded(
    fake_gcs: FakeGcs, objects: Objects, client: Client, body: bytes
) -> None:
    """Whatever its client thinks of it."""
    headers = {"content-type": "multipart/related; boundary=limit"}
    assert client.http.post(UPLOAD, params={"uploadType": "multipart"}, headers=headers, content=body).is_error
    assert fake_gcs.faults.stats()["insert"] == 0
    assert_nothing_there(objects, client)


@pytest.mark.parametrize("kind", ["multipart", "resumable"])
def test_g4_a_body_that_breaks_off_is_not_finalized(objects: Objects, client: Client, kind: str) -> None:
    """The child was killed within its request."""
    data = slot(1)
    if kind == "multipart":
        body = multipart(json.dumps({"name": f"{place.PATH}/{key(0, 1, 1)}"}).encode(), data)
        head = [f"POST {UPLOAD}?uploadType=multipart HTTP/1.1", "Content-Type: multipart/related; boundary=limit"]
    else:
        body, url = data, urlsplit(client.begin(key(0, 1, 1)))
        head = [f"PUT {url.path}?{url.query} HTTP/1.1", f"Content-Range: bytes 0-{len(data) - 1}/{len(data)}"]
    host, port = client.gate.address.split(":")
    for length in (0, 1, len(body) // 2, len(body) - 1):
        with socket.create_connection((host, int(port))) as connection:
            lines = [*head, f"Host: {client.gate.address}", f"Content-Length: {len(body)}", "", ""]
            connection.sendall("\r\n".join(lines).encode() + body[:length])
    assert client.put(key(0, 1, 1), data).status_code == 200  # also shows that the gate has met the ends before
    assert objects.names("") == [f"{PATH}/{key(0, 1, 1)}"]
    assert objects.read(f"{PATH}/{key(0, 1, 1)}") == data


@pytest.mark.parametrize("length", [0, 50, 10_000, -1])
def test_g4_a_resumable_upload_that_ends_early_is_cancelled(objects: Objects, client: Client, length: int) -> None:
    """Its last part says that the file ends here, as Litestream's client does when it could not read on."""
    data = slot(1)[:length]
    size = len(data)
    session = client.begin(key(0, 1, 1))
    answer = client.part(session, data, f"0-{size - 1}/{size}" if size else "*/0")
    assert answer.status_code == 400
    assert client.gate.counts.broken_off == 1
    assert client.part(session, b"", f"*/{size}").status_code == 404  # it is given up
    assert_nothing_there(objects, client)


def test_g4_a_resumable_upload_that_turns_bad_in_a_later_part_is_cancelled(objects: Objects, client: Client) -> None:
    """Its first part was forwarded already; it is deleted with its session."""
    data = whole_file(1, 1, pages=40)
    session = client.begin(key(0, 1, 1))
    assert is_continued(client.part(session, data[:8192], "0-8191/*"))
    (theirs,) = (session.url for session in client.gate._sessions.values())
    broken = bytes(len(data) - 8192)
    assert client.part(session, broken, f"8192-{len(data) - 1}/{len(data)}").status_code == 400
    assert httpx.put(theirs, headers={"content-range": "bytes */*"}, trust_env=False, timeout=60).status_code == 404
    assert_nothing_there(objects, client)


@pytest.mark.parametrize("total", [0, 100, 8191])
def test_g4_a_resumable_upload_is_not_finalized_at_less_than_was_checked(
    fake_gcs: FakeGcs, objects: Objects, client: Client, total: int
) -> None:
    """The bucket may have less than the gate has checked; a total that fits that is no whole file."""
    data = slot(1)
    session = client.begin(key(0, 1, 1))
    fake_gcs.faults.add(verb="insert", action="error", times=1)
    assert client.part(session, data[:8192], "0-8191/*").status_code == 503
    assert client.part(session, data[:total], f"0-{total - 1}/{total}" if total else "*/0").status_code == 400
    assert_nothing_there(objects, client)


@pytest.mark.parametrize("content_range", ["*/", "8-15/*", "x", "0-7", "-7/8"])
def test_g4_a_part_that_does_not_say_where_it_belongs_is_refused(
    fake_gcs: FakeGcs, objects: Objects, client: Client, content_range: str
) -> None:
    """A gap could not be checked."""
    session = client.begin(key(0, 1, 1))
    before = fake_gcs.faults.stats()["insert"]
    assert client.part(session, slot(1)[:8], content_range).status_code == 400
    assert fake_gcs.faults.stats()["insert"] == before
    assert_nothing_there(objects, client)


# G5


class SlowBucket:
    """A bucket that reads the beginning of each request and no more; `ended` once a request was broken off."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._listener.close()

    @property
    def received(self) -> int:
        """How many bytes came before the request was broken off."""
        self.go_on.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return sum(map(len, self.requests))

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(20)
            self.requests.append(connection.recv(1 << 16))
            self.begun.set()
            self.go_on.wait(20)
            with suppress(ConnectionResetError):
                while piece := connection.recv(1 << 16):
                    self.requests.append(piece)


def test_g5_a_multipart_upload_under_way_is_broken_off() -> None:
    """INV-4: what the bucket has is not the whole request, so that it finalizes nothing."""
    data = slot_of(14 << 20)
    with (
        SlowBucket() as bucket,
        Client(bucket.url) as client,
        aside(success, lambda: client.put(key(0, 1, 1), data)) as stored,
    ):
        assert bucket.begun.wait(20)
        client.gate.fence()
        assert not stored.result(20)
        assert 0 < bucket.received < len(data)
        assert client.gate.counts.broken_off == 1
        assert client.put(key(0, 1, 1), slot(1)).status_code == 503
        assert client.gate.stored == 0


@pytest.mark.parametrize("kind", ["multipart", "resumable"])
def test_g5_after_the_fence_nothing_is_finalized(fake_gcs: FakeGcs, objects: Objects, client: Client, kind: str) -> None:
    """An upload that waits for the bucket is given up, and a resumable one between two parts goes on no more."""
    data = slot(1)
    if kind == "multipart":
        rule = fake_gcs.faults.add(verb="insert", action="hang")
        with aside(success, lambda: client.put(key(0, 1, 1), data)) as stored:
            fake_gcs.faults.wait_for_hits(rule)
            client.gate.fence()
            assert not stored.result(20)
        fake_gcs.faults.remove(rule)
    else:
        session = client.begin(key(0, 1, 1))
        assert is_continued(client.part(session, data[:8192], "0-8191/*"))
        client.gate.fence()
        before = fake_gcs.faults.stats()
        assert client.part(session, data[8192:], f"8192-{len(data) - 1}/{len(data)}").status_code == 503
        assert fake_gcs.faults.stats() == before
    assert_fenced(fake_gcs, client)
    assert_nothing_there(objects, client)


def test_g5_a_read_under_way_is_broken_off(fake_gcs: FakeGcs, client: Client) -> None:
    """Each request is, whatever it asks for; the fence may be set again."""
    rule = fake_gcs.faults.add(verb="list", action="hang")
    with aside(listed, client, "ltx/0/") as answered:
        fake_gcs.faults.wait_for_hits(rule)
        client.gate.fence()
        client.gate.fence()
        with pytest.raises(httpx.TransportError):  # and not the gate's answer that the bucket gave none in time
            answered.result(20)
    assert_fenced(fake_gcs, client)


# G6


def test_g6_slots_begin_some_time_apart(fake_gcs: FakeGcs) -> None:
    """A bucket takes about a thousand writes a second, and each costs money."""
    with Client(fake_gcs.url, spacing_seconds=0.3) as client:
        began = time.monotonic()
        for number in range(1, 5):
            assert client.put(key(0, number, number), slot(number)).status_code == 200
        assert time.monotonic() - began >= 3 * 0.3


# G7


def test_g7_a_file_above_level_0_waits_for_its_slots(fake_gcs: FakeGcs, objects: Objects, client: Client) -> None:
    """INV-10: it never holds what a restore from the slots would not."""
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    rule = fake_gcs.faults.add(verb="insert", action="hang", name="*/ltx/0/*")
    with aside(client.put, key(0, 2, 2), slot(2)) as second, aside(client.put, key(1, 1, 2), whole_file(1, 2)) as merged:
        fake_gcs.faults.wait_for_hits(rule)
        assert objects.names("") == [f"{PATH}/{key(0, 1, 1)}"]
        assert not merged.done()
        fake_gcs.faults.remove(rule)
        second.result(20)  # the bucket closed its connection, and the gate asked once more
        assert merged.result(20).status_code == 200
    assert client.gate.stored == 2


@pytest.mark.parametrize("kind", ["multipart", "resumable"])
def test_g7_a_file_whose_slots_do_not_come_is_refused(
    fake_gcs: FakeGcs, objects: Objects, client: Client, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The child makes it again at its next interval."""
    monkeypatch.setattr(slots, "_COVERED_SECONDS", 0.2)
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    data = whole_file(1, 2)
    if kind == "multipart":
        answer = client.put(key(1, 1, 2), data)
    else:
        answer = client.part(client.begin(key(1, 1, 2)), data, f"0-{len(data) - 1}/{len(data)}")
    assert answer.status_code == 503
    assert client.gate.counts.refused == {"G7": 1}
    assert objects.names("") == [f"{PATH}/{key(0, 1, 1)}"]


# G8


def test_g8_a_slot_is_deleted_only_after_the_lease_was_found_ours(objects: Objects, client: Client) -> None:
    """INV-3: or its name could be free for the seal of another life. A merged file may be deleted at any time."""
    for number in (1, 2):
        assert client.put(key(0, number, number), slot(number)).status_code == 200
    assert client.put(key(1, 1, 2), whole_file(1, 2)).status_code == 200
    assert client.delete(key(0, 1, 1)).status_code == 409
    assert len(objects.names("")) == 3
    client.gate.deletable = 1
    assert client.delete(key(0, 1, 1)).status_code == 204
    assert client.delete(key(0, 2, 2)).status_code == 409
    assert client.delete(key(1, 1, 2)).status_code == 204
    assert objects.names("") == [f"{PATH}/{key(0, 2, 2)}"]
    assert client.gate.counts.refused == {"G8": 2}


# What is passed on.


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_an_error_of_the_bucket_is_passed_on_as_it_is(fake_gcs: FakeGcs, client: Client, status: int) -> None:
    """Its client knows what each of them means; to the gate they are no answer about a slot."""
    name = f"{PATH}/{key(0, 1, 1)}"
    fake_gcs.faults.add(verb="*", action="error", status=status)
    with httpx.Client(base_url=fake_gcs.url, trust_env=False, timeout=60, verify=False) as direct:
        theirs = [
            direct.get(f"/{BUCKET}/{name}"),
            direct.get(f"/storage/v1/b/{BUCKET}/o", params={"prefix": f"{PATH}/ltx/0/"}),
            direct.delete(f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}"),
            direct.post(f"/upload/storage/v1/b/{BUCKET}/o", params={"uploadType": "resumable", "name": name}),
            direct.post(f"/upload/storage/v1/b/{BUCKET}/o", params={"uploadType": "media", "name": name}, content=slot(1)),
        ]
    client.gate.deletable = 1
    ours = [
        client.http.get(f"/{place.BUCKET}/{place.PATH}/{key(0, 1, 1)}"),
        client.http.get(f"/storage/v1/b/{place.BUCKET}/o", params={"prefix": f"{place.PATH}/ltx/0/"}),
        client.delete(key(0, 1, 1)),
        client.http.post(UPLOAD, params={"uploadType": "resumable"}, json={"name": f"{place.PATH}/{key(0, 1, 1)}"}),
        client.put(key(0, 1, 1), slot(1)),
    ]
    assert [answer.status_code for answer in ours] == [status] * 5
    assert [answer.content for answer in ours] == [answer.content for answer in theirs]
    assert [answer.headers["content-type"] for answer in ours] == [answer.headers["content-type"] for answer in theirs]
    assert client.gate.stored == 0
    fake_gcs.faults.clear()
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    assert client.gate.stored == 1


def test_a_bucket_that_is_not_there_is_502(client: Client, fake_gcs: FakeGcs) -> None:
    """The gate says that no answer came, which its client takes for what it is: not known."""
    fake_gcs.faults.add(verb="*", action="refuse")
    answers = [
        client.put(key(0, 1, 1), slot(1)),
        client.http.get(f"/{place.BUCKET}/{place.PATH}/{key(0, 1, 1)}"),
        client.http.get(f"/storage/v1/b/{place.BUCKET}/o", params={"prefix": f"{place.PATH}/"}),
    ]
    assert [answer.status_code for answer in answers] == [502] * 3
    with pytest.raises(SyncUnavailable):
        client.settle(1)


def test_a_part_of_a_file_is_read(client: Client) -> None:
    """Litestream reads the pages of a file by ranges when it merges files that it does not have."""
    data = slot(1)
    assert client.put(key(0, 1, 1), data).status_code == 200
    answer = client.http.get(f"/{place.BUCKET}/{place.PATH}/{key(0, 1, 1)}", headers={"range": "bytes=100-199"})
    assert (answer.status_code, answer.content) == (206, data[100:200])
    assert answer.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert client.http.get(f"/{place.BUCKET}/{place.PATH}/{key(0, 2, 2)}").status_code == 404


# Large files.


def slot_of(size: int, transaction: int = 1) -> bytes:
    """A slot of at least so many bytes of random data."""
    return whole_file(transaction, transaction, pages=size // 65_536 + 1, page_size=65_536)


def test_a_resumable_upload_survives_lost_answers_questions_and_parts_that_come_twice(
    fake_gcs: FakeGcs, objects: Objects, client: Client
) -> None:
    """20 MB of random data in two parts, each of which fails once before, and each of which is sent again after."""
    data = slot_of(20_000_000)
    size = len(data)
    session = client.begin(key(0, 1, 1))
    assert is_continued(client.part(session, b"", "*/*"))
    fake_gcs.faults.add(verb="insert", action="error", times=1)
    assert client.part(session, data[:PART], f"0-{PART - 1}/*").status_code == 503
    first = client.part(session, data[:PART], f"0-{PART - 1}/*")
    assert is_continued(first)
    assert first.headers["range"] == f"bytes=0-{PART - 1}"
    assert is_continued(client.part(session, data[:PART], f"0-{PART - 1}/*"))  # comes twice
    asked = client.part(session, b"", f"*/{size}")
    assert is_continued(asked)
    assert asked.headers["range"] == f"bytes=0-{PART - 1}"
    assert objects.names("") == []
    fake_gcs.faults.add(verb="insert", action="drop", times=2)  # the gate repeats a request once by itself
    last = f"{PART - 1000}-{size - 1}/{size}"  # begins within what is there
    assert client.part(session, data[PART - 1000 :], last).status_code == 502
    assert client.gate.stored == 0
    answer = client.part(session, data[PART - 1000 :], last)
    assert answer.status_code == 200
    digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    assert (answer.json()["size"], answer.json()["md5Hash"]) == (str(size), digest)
    assert objects.read(f"{PATH}/{key(0, 1, 1)}") == data
    assert client.gate.stored == 1


def peak_bytes() -> int:
    """The most memory this process has had since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_a_large_file_passes_in_bounded_memory(fake_gcs: FakeGcs, objects: Objects, client: Client, tmp_path: Path) -> None:
    """INV-7: of 300 MB the gate holds a part or two."""
    assert client.put(key(0, 1, 1), slot(1)).status_code == 200
    file = tmp_path / "large.ltx"
    with file.open("wb") as large:
        large.writelines(pieces(1, 1, pages=300_000_000 // 65_536, page_size=65_536))
    size = file.stat().st_size
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): forget the peak
    before = peak_bytes()
    session = client.begin(key(9, 1, 1))
    with file.open("rb") as stream:

        def read(length: int) -> Iterator[bytes]:
            for at in range(0, length, 65_536):
                yield stream.read(min(65_536, length - at))

        for at in range(0, size, PART):
            length = min(PART, size - at)
            where = f"{at}-{at + length - 1}/{size if at + length == size else '*'}"
            for _ in range(
                3
            ):  # a busy disk may keep the fake from answering in time; Litestream's client repeats a part too
                stream.seek(at)
                answer = client.part(session, read(length), where, **{"content-length": str(length)})
                if answer.status_code != 502:
                    break
            assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == str(size)
    assert peak_bytes() - before < 3 * PART
    file.unlink()
    objects.delete(f"{PATH}/{key(9, 1, 1)}")


# The real Litestream.

CONFIG = Path(__file__).parents[2] / "worker" / "replica" / "litestream.yml"


class Child:
    """A database with the real Litestream and its gate; levels are merged after one, two and four seconds."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.client, self.database = client, directory / "users.db"
        self._config = directory / "litestream.yml"
        text = CONFIG.read_text()
        for usual, quick in {"30s": "1s", "5m": "2s", "1h": "4s"}.items():
            assert f": {usual}\n" in text
            text = text.replace(f": {usual}\n", f": {quick}\n")
        self._config.write_text(text)

    def __enter__(self) -> Self:
        self._sqlite = sqlite3.connect(self.database)
        self._sqlite.executescript(
            "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (n INTEGER PRIMARY KEY, data BLOB);"
        )
        settings = Settings(
            replica_url="gs://bucket/prefix",
            database_path=self.database,
            litestream_config=self._config,
            litestream_metrics_address="off",
        )
        self._runner = asyncio.Runner()
        self._litestream = Litestream(settings, address=self.client.gate.address, epoch=7)
        self._runner.run(self._litestream.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._litestream.__aexit__(None, None, None))
        self._runner.close()
        self._sqlite.close()

    def write(self, data: bytes = b"") -> int:
        """Commit a row, and wait until it is uploaded; its transaction."""
        with self._sqlite:
            self._sqlite.execute("INSERT INTO t (data) VALUES (?)", (data,))
        return self._runner.run(self._litestream.sync(timeout=30))

    def rows(self, file: Path | None = None) -> list[tuple[int, bytes]]:
        """What is in the database, or in a restored one."""
        with closing(sqlite3.connect(file or self.database)) as database:
            return database.execute("SELECT n, data FROM t ORDER BY n").fetchall()


def test_litestream_merges_deletes_and_restores_through_the_gate(
    fake_gcs: FakeGcs, objects: Objects, client: Client, tmp_path: Path
) -> None:
    """G2, G7, G8: three levels are made, merged slots go when they may, and a restore uses the levels above 0."""
    with Child(client, tmp_path) as child:

        def levels() -> set[str]:
            child.write()
            client.gate.deletable = client.gate.stored
            return {name.removeprefix(f"{PATH}/ltx/")[0] for name in objects.names(f"{PATH}/ltx/")}

        wait_until(lambda: levels() >= {"0", "1", "2", "3"}, "merges", seconds=60)
        newest = child.write()
        assert client.gate.stored == newest
        restored = tmp_path / "restored.db"
        command = [str(find_binary("litestream")), "restore", "-o", str(restored), f"gs://{place.BUCKET}/{place.PATH}"]
        environment = {**os.environ, "STORAGE_EMULATOR_HOST": client.gate.address}
        assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == 0
        assert child.rows(restored) == child.rows()
    stored = [StoredObject(name, 1, datetime.now(UTC), {}) for name in objects.names(PATH)]
    chosen = cover(PATH, files(PATH, stored), newest)
    assert {file.level for file in chosen} & {1, 2, 3}
    assert len(chosen) < newest
    assert not client.gate.sealed
    assert client.gate.counts.refused.keys() <= {"G8"}


def test_litestream_uploads_a_large_transaction_in_parts(
    fake_gcs: FakeGcs, objects: Objects, client: Client, tmp_path: Path
) -> None:
    """20 MB of random data, an answer of which is lost."""
    with Child(client, tmp_path) as child:
        first = child.write()
        fake_gcs.faults.add(verb="insert", action="drop", name=f"{PATH}/ltx/0/*", times=1)
        newest = child.write(random.Random(1).randbytes(20_000_000))
        large = first + 1  # a checkpoint may have followed
        assert client.settle(newest) == newest
        assert len(objects.read(f"{PATH}/{key(0, large, large)}")) > PART
        assert client.gate.counts.requests["upload", "0"] > large + 1  # its session and its parts


def test_a_seal_ends_litestreams_way_to_the_bucket(
    fake_gcs: FakeGcs, objects: Objects, client: Client, tmp_path: Path
) -> None:
    """INV-3: the life before stores nothing any more, and its sync is no success."""
    with Child(client, tmp_path) as child:
        newest = child.write()
        seal = ltx.unchanging(transaction=newest + 1, page_size=4096, pages=2, milliseconds=1, node=8)
        objects.write(f"{PATH}/{key(0, newest + 1, newest + 1)}", seal)
        with pytest.raises(SyncUnavailable):
            child.write()
        assert client.gate.sealed
        assert client.gate.stored == newest
        assert_fenced(fake_gcs, client)
        assert objects.read(f"{PATH}/{key(0, newest + 1, newest + 1)}") == seal
