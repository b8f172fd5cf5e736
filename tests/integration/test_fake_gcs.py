"""The fake Cloud Storage, seen through Google's own client, plain HTTP, and the real Litestream."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import httpx
import pytest
import requests
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from local.__main__ import main
from local.faults import ALL, Action
from local.gcs_process import FakeGcs
from local.gcs_resources import Conditions, Fields
from local.gcs_store import LISTING, Listing, Store, following

pytestmark = pytest.mark.slow

LITESTREAM = Path(sys.executable).with_name("litestream")
CHUNK = 256 * 1024
_numbers = itertools.count(1)


def client_of(gcs: FakeGcs) -> Any:
    """Google's own client, sent to the fake."""
    anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]  # google-auth has types for some of it
    client: Any = storage.Client(project="test", credentials=anonymous, client_options={"api_endpoint": gcs.url})
    # For traces, its thread would ask for the bucket beside the first request: one more to be struck by a fault or counted.
    client._bucket_metadata_cache = None
    return client


def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Returns once the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition never came"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """One fake for the tests that neither kill nor restart it."""
    with FakeGcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture
def bucket(gcs: FakeGcs) -> Iterator[Any]:
    """A new bucket in a fake without faults, through Google's client."""
    yield client_of(gcs).create_bucket(f"bucket-{next(_numbers)}")
    gcs.faults.clear()


@pytest.fixture
def http(gcs: FakeGcs) -> Iterator[httpx.Client]:
    """Plain HTTP to the same fake."""
    with httpx.Client(base_url=gcs.url, trust_env=False, timeout=60) as client:
        yield client


def put(bucket: Any, name: str, data: bytes = b"data", **options: Any) -> Any:
    """Uploads by Google's client without its retries."""
    blob = bucket.blob(name)
    blob.upload_from_string(data, retry=None, **options)
    return blob


# Preconditions


def test_create_over_existing_is_refused(bucket: Any) -> None:
    """An upload with generation 0 over an existing object answers 412 and leaves the object alone."""
    put(bucket, "lease.json", b"first", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "lease.json", b"second", if_generation_match=0)
    assert bucket.blob("lease.json").download_as_bytes() == b"first"


def test_overwrite_with_a_stale_generation_is_refused(bucket: Any) -> None:
    """An upload that expects an earlier generation answers 412 and leaves the object alone."""
    stale = put(bucket, "lease.json", b"first").generation
    put(bucket, "lease.json", b"second", if_generation_match=stale)
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "lease.json", b"third", if_generation_match=stale)
    assert bucket.blob("lease.json").download_as_bytes() == b"second"


def test_overwrite_of_a_missing_object_is_refused(bucket: Any) -> None:
    """An upload that expects a generation where there is no object answers 412."""
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "lease.json", if_generation_match=1)


def test_delete_with_a_stale_generation_is_refused(bucket: Any) -> None:
    """A delete that expects an earlier generation answers 412; the current one deletes; a second delete answers 404."""
    stale = put(bucket, "lease.json", b"first").generation
    current = put(bucket, "lease.json", b"second").generation
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("lease.json").delete(if_generation_match=stale, retry=None)
    bucket.blob("lease.json").delete(if_generation_match=current, retry=None)
    with pytest.raises(exceptions.NotFound):
        bucket.blob("lease.json").delete(if_generation_match=current, retry=None)


@pytest.mark.parametrize("existing", [False, True], ids=["create", "replace"])
def test_of_16_racing_writers_exactly_one_wins(bucket: Any, existing: bool) -> None:
    """Of 16 writers that expect the same generation one gets it and the others get 412, and the winner's bytes are there."""
    expected = put(bucket, "lease.json", b"before").generation if existing else 0
    start = threading.Barrier(16)

    def write(number: int) -> bytes | None:
        data = f"writer {number}".encode()
        start.wait()
        try:
            put(bucket, "lease.json", data, if_generation_match=expected)
        except exceptions.PreconditionFailed:
            return None
        return data

    with ThreadPoolExecutor(16) as threads:
        winners = [data for data in threads.map(write, range(16)) if data is not None]
    assert len(winners) == 1
    assert bucket.blob("lease.json").download_as_bytes() == winners[0]


def test_race_with_delayed_writes_has_one_winner(gcs: FakeGcs, bucket: Any) -> None:
    """The condition is decided when the write is done and not when the request came: slow writers race no less."""
    slow = gcs.faults.add(action="delay", verb="insert", seconds=0.2)

    def write(number: int) -> bool:
        try:
            put(bucket, "lease.json", f"writer {number}".encode(), if_generation_match=0)
        except exceptions.PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(write, range(16))) == 1
    assert gcs.faults.hits(slow) == 16


def test_reads_have_conditions_too(bucket: Any) -> None:
    """Metadata and downloads answer 412 for a stale generation and 304 for one that hasn't changed."""
    blob = put(bucket, "object")
    other = bucket.blob("object")
    for read in (other.reload, other.download_as_bytes):
        with pytest.raises(exceptions.PreconditionFailed):
            read(if_generation_match=blob.generation + 1, retry=None)
        with pytest.raises(exceptions.NotModified):
            read(if_generation_not_match=blob.generation, retry=None)
        read(if_generation_match=blob.generation, if_metageneration_match=1)
        read(if_generation_not_match=blob.generation + 1)


def test_metageneration_conditions(bucket: Any) -> None:
    """A metadata change counts the metageneration up, keeps the generation, and obeys conditions on both."""
    blob = put(bucket, "object")
    generation = blob.generation
    blob.metadata = {"a": "1"}
    blob.patch(if_metageneration_match=1, if_generation_match=generation)
    assert (blob.generation, blob.metageneration) == (generation, 2)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.patch(if_metageneration_match=1, retry=None)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.delete(if_metageneration_match=1, retry=None)
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "object", if_metageneration_match=1)
    with pytest.raises(exceptions.NotModified):
        blob.reload(if_metageneration_not_match=2, retry=None)
    assert put(bucket, "object", if_metageneration_match=2).metageneration == 1


def test_resumable_conditions_are_decided_at_the_end(bucket: Any, http: httpx.Client) -> None:
    """A session begun while the object was missing is refused at its end if somebody else made the object meanwhile."""
    session = start_session(http, bucket.name, "object", "&ifGenerationMatch=0")
    put(bucket, "object", b"somebody else's")
    answer = http.put(session, content=b"mine")
    assert answer.status_code == 412
    assert bucket.blob("object").download_as_bytes() == b"somebody else's"
    assert http.put(session, content=b"mine").status_code == 404


def test_errors_read_as_the_service_writes_them(bucket: Any, http: httpx.Client) -> None:
    """412 and 404 have the JSON, text or XML body that Cloud Storage gives in that place."""
    put(bucket, "object")
    objects = f"/storage/v1/b/{bucket.name}/o"
    message = "At least one of the pre-conditions you specified did not hold."
    entry = {"message": message, "domain": "global", "reason": "conditionNotMet"}
    entry |= {"locationType": "header", "location": "If-Match"}
    refused = http.get(f"{objects}/object?ifGenerationMatch=1")
    assert refused.status_code == 412
    assert refused.json() == {"error": {"code": 412, "message": message, "errors": [entry]}}
    message = f"No such object: {bucket.name}/a/b"
    missing = http.get(f"{objects}/a%2Fb")
    assert missing.status_code == 404
    entry = {"message": message, "domain": "global", "reason": "notFound"}
    assert missing.json() == {"error": {"code": 404, "message": message, "errors": [entry]}}
    assert http.get(f"{objects}/a%2Fb?alt=media").text == message
    assert "<Code>NoSuchKey</Code>" in http.get(f"/{bucket.name}/a/b").text
    assert "<Code>NoSuchBucket</Code>" in http.get("/no-such-bucket/a/b").text
    by_header = {"x-goog-if-generation-match": "1"}
    assert http.get(f"/{bucket.name}/object", headers=by_header).status_code == 412


# Buckets and what is left out


def test_buckets(gcs: FakeGcs) -> None:
    """Buckets are made once, found, listed, and removed when empty; an unknown one is 404."""
    client = client_of(gcs)
    made = client.create_bucket("some-bucket")
    assert client.get_bucket("some-bucket").name == "some-bucket"
    assert "some-bucket" in [found.name for found in client.list_buckets()]
    with pytest.raises(exceptions.Conflict):
        client.create_bucket("some-bucket")
    put(made, "object")
    with pytest.raises(exceptions.Conflict):
        made.delete()
    made.blob("object").delete()
    made.delete()
    assert not made.exists()
    with pytest.raises(exceptions.NotFound):
        list(client.list_blobs("some-bucket"))
    with pytest.raises(exceptions.NotFound):
        put(made, "object")


def test_buckets_have_conditions_too(gcs: FakeGcs, http: httpx.Client) -> None:
    """A bucket is read and deleted under a condition on its metageneration; a stale one is 412, and it stays."""
    made = client_of(gcs).create_bucket("conditional-bucket")
    made.reload(if_metageneration_match=made.metageneration)
    with pytest.raises(exceptions.PreconditionFailed):
        made.reload(if_metageneration_match=made.metageneration + 1)
    address = "/storage/v1/b/conditional-bucket"
    assert http.get(address, params={"ifMetagenerationNotMatch": made.metageneration}).status_code == 304
    assert http.delete(address, params={"ifMetagenerationMatch": made.metageneration + 1}).status_code == 412
    assert http.delete(address, params={"ifMetagenerationMatch": made.metageneration}).status_code == 204
    assert not made.exists()


def test_what_is_left_out_says_so(bucket: Any, http: httpx.Client) -> None:
    """Copies, compose, list options and ETag conditions that the fake doesn't do answer 501 with a clear message."""
    blob = put(bucket, "object")
    for call in (
        lambda: bucket.copy_blob(blob, bucket, "copy"),
        lambda: blob.rewrite(blob),
        lambda: bucket.blob("sum").compose([blob]),
        lambda: list(bucket.list_blobs(match_glob="*")),
        lambda: blob.reload(if_etag_match=blob.etag),
    ):
        with pytest.raises(exceptions.MethodNotImplemented, match="the fake GCS does not do"):
            call()
    assert http.put(f"/{bucket.name}/object", content=b"").status_code == 501


# Uploads


def start_session(http: httpx.Client, bucket: str, name: str, more: str = "", **resource: Any) -> str:
    """Begins a resumable upload; returns its address."""
    url = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={name}{more}"
    answer = http.post(url, json=resource)
    assert answer.status_code == 200
    return answer.headers["location"]


def test_media_upload(bucket: Any, http: httpx.Client) -> None:
    """An upload in one piece takes name from the query and type from the header."""
    url = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=a%2Fb%20%C3%A9"
    answer = http.post(url, content=b"12345", headers={"content-type": "text/plain"})
    assert answer.json()["name"] == "a/b é"
    blob = bucket.get_blob("a/b é")
    assert (blob.size, blob.content_type, blob.download_as_bytes()) == (5, "text/plain", b"12345")


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_multipart_upload(bucket: Any, size: int) -> None:
    """Google's client's usual upload keeps every byte and answers with the checksums of what it sent."""
    data = os.urandom(size)
    blob = put(bucket, "object", data)
    assert blob.md5_hash == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert blob.crc32c == base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    assert blob.size == size
    assert bucket.blob("object").download_as_bytes() == data


def test_multipart_bytes_that_look_like_a_boundary(bucket: Any, http: httpx.Client) -> None:
    """Media full of beginnings of the boundary, sent byte by byte, arrives as it was."""
    media = b"\r\n--bound\r\n--\r\n--boundar\r\n\r\n--" * 5
    body = b'--boundary\r\nContent-Type: application/json\r\n\r\n{"name": "object"}\r\n'
    body += b"--boundary\r\nContent-Type: text/x\r\n\r\n" + media + b"\r\n--boundary--"
    answer = http.post(
        f"/upload/storage/v1/b/{bucket.name}/o?uploadType=multipart",
        content=(body[at : at + 1] for at in range(len(body))),
        headers={"content-type": 'multipart/related; boundary="boundary"'},
    )
    assert answer.json()["contentType"] == "text/x"
    assert bucket.blob("object").download_as_bytes() == media


def test_cut_multipart_is_refused(bucket: Any, http: httpx.Client) -> None:
    """A multipart body that ends before its closing boundary makes no object."""
    answer = http.post(
        f"/upload/storage/v1/b/{bucket.name}/o?uploadType=multipart&name=object",
        content=b"--b\r\n\r\n{}\r\n--b\r\n\r\nhalf",
        headers={"content-type": "multipart/related; boundary=b"},
    )
    assert answer.status_code == 400
    assert not bucket.blob("object").exists()


@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK, 3 * CHUNK + 1])
def test_resumable_upload_in_chunks(bucket: Any, size: int) -> None:
    """Google's client's chunked upload, with a known total, keeps every byte."""
    data = os.urandom(size)
    bucket.blob("object", chunk_size=CHUNK).upload_from_file(io.BytesIO(data), if_generation_match=0)
    assert bucket.blob("object").download_as_bytes() == data


@pytest.mark.parametrize("size", [0, CHUNK, 3 * CHUNK + 1])
def test_resumable_upload_of_unknown_length(bucket: Any, size: int) -> None:
    """Google's client's file-like writer, which learns the total only at the end, keeps every byte."""
    data = os.urandom(size)
    with bucket.blob("object").open("wb", chunk_size=CHUNK, ignore_flush=True) as writer:
        writer.write(data)
    assert bucket.blob("object").download_as_bytes() == data


def test_resumable_protocol(bucket: Any, http: httpx.Client) -> None:
    """Chunks answer 308 with what is persisted, bytes sent again are skipped, a gap is refused, the end answers 200."""
    session = start_session(http, bucket.name, "object", metadata={"key": "value"})

    def send(content_range: str, content: bytes = b"", no_308: str = "no") -> httpx.Response:
        headers = {"content-range": content_range, "x-guploader-no-308": no_308}
        return http.put(session, content=content, headers=headers)

    assert send("bytes */*").status_code == 308
    assert "range" not in send("bytes */*").headers
    first = send("bytes 0-99/*", b"a" * 100)
    assert (first.status_code, first.headers["range"]) == (308, "bytes=0-99")
    assert send("bytes */300").headers["range"] == "bytes=0-99"
    overlapping = send("bytes 50-149/300", b"a" * 50 + b"b" * 50)
    assert overlapping.headers["range"] == "bytes=0-149"
    assert send("bytes 200-299/300", b"c" * 100).status_code == 503
    assert send("bytes 150-160/300", b"c").status_code == 400
    assert send("bytes 150 to 160", b"c").status_code == 400
    without_308 = send("bytes */300", no_308="yes")
    assert (without_308.status_code, without_308.headers["x-http-status-code-override"]) == (200, "308")
    assert not bucket.blob("object").exists()
    last = send("bytes 151-299/300", b"c" * 149)
    assert last.status_code == 200
    assert last.json()["metadata"] == {"key": "value"}
    assert send("bytes */300").json() == last.json()
    assert send("bytes 150-299/300", b"x" * 150).json() == last.json()
    assert bucket.blob("object").download_as_bytes() == b"a" * 100 + b"b" * 50 + b"c" * 150


def test_the_same_chunk_sent_twice_at_once(gcs: FakeGcs, bucket: Any, http: httpx.Client) -> None:
    """An impatient client's second copy of the last chunk neither doubles its bytes nor makes a second object."""
    session = start_session(http, bucket.name, "object", "&ifGenerationMatch=0")
    data = os.urandom(3_000_000)
    gcs.faults.add(action="delay", verb="insert", seconds=0.2)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: http.put(session, content=data), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["generation"] for answer in answers}) == 1
    assert bucket.blob("object").download_as_bytes() == data


def test_cut_connection_makes_no_object(fake_gcs: FakeGcs) -> None:
    """A client that closes its connection amid the body leaves nothing behind."""
    head = "POST /upload/storage/v1/b/users/o?uploadType=media&name=object HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection(("127.0.0.1", fake_gcs.port)) as connection:
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\nnot a thousand bytes".encode())
        until(lambda: len(list((fake_gcs.data / "bodies").iterdir())) > 0)
    until(lambda: not list((fake_gcs.data / "bodies").iterdir()))
    assert fake_gcs.faults.stats()["insert"] == 0
    assert not client_of(fake_gcs).bucket("users").blob("object").exists()


def test_resumable_cancel(bucket: Any, http: httpx.Client) -> None:
    """A cancelled session answers 499, is unknown afterwards, and made no object."""
    session = start_session(http, bucket.name, "object")
    assert http.delete(session).status_code == 499
    assert http.put(session, content=b"data").status_code == 404
    assert not bucket.blob("object").exists()


@pytest.mark.parametrize("kind", ["media", "multipart", "resumable"])
@pytest.mark.parametrize("check", ["crc32c", "md5Hash"])
def test_damaged_bytes_are_refused(bucket: Any, http: httpx.Client, kind: str, check: str) -> None:
    """A checksum from the client that doesn't fit what arrived answers 400, and there is no object."""
    wrong = {"crc32c": "AAAAAA==", "md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}[check]
    url = f"/upload/storage/v1/b/{bucket.name}/o?uploadType={kind}&name=object"
    if kind == "media":
        header = f"{check.removesuffix('Hash')}={wrong}"
        answer = http.post(url, content=b"data", headers={"x-goog-hash": header})
    elif kind == "multipart":
        body = f'--b\r\n\r\n{{"{check}": "{wrong}"}}\r\n--b\r\n\r\ndata\r\n--b--'.encode()
        answer = http.post(url, content=body, headers={"content-type": "multipart/related; boundary=b"})
    else:
        session = start_session(http, bucket.name, "object", **{check: wrong})
        answer = http.put(session, content=b"data")
    assert answer.status_code == 400
    assert "doesn't match calculated" in answer.json()["error"]["message"]
    assert not bucket.blob("object").exists()


# Downloads


def test_ranges(bucket: Any) -> None:
    """Google's client reads any part of an object, and gets 416 behind its end."""
    blob = put(bucket, "object", b"0123456789")
    assert blob.download_as_bytes(start=3) == b"3456789"
    assert blob.download_as_bytes(start=3, end=5) == b"345"
    assert blob.download_as_bytes(start=8, end=500) == b"89"
    assert blob.download_as_bytes(start=-4) == b"6789"
    with pytest.raises(exceptions.RequestRangeNotSatisfiable):
        blob.download_as_bytes(start=10)


@pytest.mark.parametrize("size", [0, 1, 3 * CHUNK + 1])
def test_chunked_download(bucket: Any, size: int) -> None:
    """Google's client reading in chunks gets every byte, and an empty object too."""
    data = os.urandom(size)
    put(bucket, "object", data)
    target = io.BytesIO()
    bucket.blob("object", chunk_size=CHUNK).download_to_file(target)
    assert target.getvalue() == data


@pytest.mark.parametrize(
    "address", ["/{}/a/b%20c", "/download/storage/v1/b/{}/o/a%2Fb%20c", "/storage/v1/b/{}/o/a%2Fb%20c?alt=media"]
)
def test_every_address_of_a_download(bucket: Any, http: httpx.Client, address: str) -> None:
    """The XML form that Go's client uses and both JSON forms give the same bytes, ranges and headers."""
    blob = bucket.blob("a/b c")
    blob.metadata = {"key": "value"}
    blob.upload_from_string(b"0123456789", content_type="text/plain")
    answer = http.get(address.format(bucket.name))
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["x-goog-generation"] == str(blob.generation)
    assert answer.headers["x-goog-metageneration"] == "1"
    assert answer.headers["x-goog-meta-key"] == "value"
    assert answer.headers["x-goog-stored-content-length"] == "10"
    assert answer.headers["x-goog-stored-content-encoding"] == "identity"
    assert {"etag", "last-modified"} <= answer.headers.keys()
    assert answer.headers.get_list("x-goog-hash") == [f"crc32c={blob.crc32c}", f"md5={blob.md5_hash}"]
    part = http.get(address.format(bucket.name), headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    behind = http.get(address.format(bucket.name), headers={"range": "bytes=10-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, "bytes */10")


def test_head_has_the_size_and_no_bytes(bucket: Any, http: httpx.Client) -> None:
    """HEAD of the XML form, by which Go's client asks for a size, answers the headers alone."""
    put(bucket, "object", b"0123456789")
    answer = http.head(f"/{bucket.name}/object")
    assert (answer.headers["content-length"], answer.content) == ("10", b"")


def test_generation_parameter(bucket: Any) -> None:
    """A generation that was replaced can neither be read nor deleted."""
    old = put(bucket, "object", b"old").generation
    new = put(bucket, "object", b"new").generation
    assert bucket.blob("object", generation=new).download_as_bytes() == b"new"
    for call in ("reload", "download_as_bytes", "delete"):
        with pytest.raises(exceptions.NotFound):
            getattr(bucket.blob("object", generation=old), call)()
    bucket.blob("object", generation=new).delete()
    assert not bucket.blob("object").exists()


def test_reader_keeps_its_bytes_while_the_object_is_replaced(bucket: Any, http: httpx.Client) -> None:
    """A download under way ends with the bytes it began with."""
    old = os.urandom(8_000_000)
    put(bucket, "object", old)
    with http.stream("GET", f"/{bucket.name}/object") as answer:
        pieces = answer.iter_bytes(CHUNK)
        received = next(pieces)
        put(bucket, "object", b"new")
        bucket.blob("object").delete()
        assert received + b"".join(pieces) == old


# Metadata


def test_metadata_round_trip(bucket: Any) -> None:
    """What is said about an object is kept, merged by a patch key by key, and replaced by an update."""
    blob = bucket.blob("object")
    blob.metadata = {"litestream-timestamp": "2026-01-02T03:04:05.678Z", "other": "ü \n"}
    blob.cache_control = "no-store"
    blob.upload_from_string(b"{}", content_type="application/json")
    read = bucket.get_blob("object")
    assert read.metadata == {"litestream-timestamp": "2026-01-02T03:04:05.678Z", "other": "ü \n"}
    assert (read.content_type, read.cache_control) == ("application/json", "no-store")
    assert read.time_created <= read.updated
    assert read.download_as_bytes() == b"{}"
    read.metadata = {"other": None, "new": "1"}
    read.patch()
    assert read.metadata == {"litestream-timestamp": "2026-01-02T03:04:05.678Z", "new": "1"}
    read.metadata = {"only": "1"}
    read.update()
    assert bucket.get_blob("object").metadata == {"only": "1"}
    assert next(bucket.list_blobs()).metadata == {"only": "1"}


# Listings


@pytest.fixture(scope="module")
def names_bucket(gcs: FakeGcs) -> Any:
    """A bucket with a few names, shared by the tests that only list."""
    bucket = client_of(gcs).create_bucket("names")
    for name in NAMES:
        put(bucket, name)
    return bucket


NAMES = sorted(["a", "a/1", "a/2", "a/b/1", "a/b/2", "a0", "b", "b/", "b/1", "z/é/1", "z/é/2", "é", "😀", "\ufffd"])


def listed(bucket: Any, **options: Any) -> tuple[list[str], set[str]]:
    """Names and prefixes of a whole listing."""
    listing = bucket.list_blobs(**options)
    return [blob.name for blob in listing], set(listing.prefixes)


def test_listing_is_in_order(names_bucket: Any) -> None:
    """A listing has every name once, in the order of UTF-8."""
    assert listed(names_bucket) == (NAMES, set())


def test_listing_by_prefix(names_bucket: Any) -> None:
    """A prefix leaves what starts with it."""
    assert listed(names_bucket, prefix="a/") == (["a/1", "a/2", "a/b/1", "a/b/2"], set())
    assert listed(names_bucket, prefix="z/é/") == (["z/é/1", "z/é/2"], set())
    assert listed(names_bucket, prefix="no") == ([], set())


def test_listing_by_delimiter(names_bucket: Any) -> None:
    """A delimiter folds what is below into prefixes."""
    assert listed(names_bucket, delimiter="/") == (["a", "a0", "b", "é", "\ufffd", "😀"], {"a/", "b/", "z/"})
    assert listed(names_bucket, delimiter="/", prefix="a/") == (["a/1", "a/2"], {"a/b/"})
    assert listed(names_bucket, delimiter="/", prefix="b/") == (["b/", "b/1"], set())


def test_listing_by_offsets(names_bucket: Any) -> None:
    """The start is included, the end is not."""
    assert listed(names_bucket, start_offset="a/2", end_offset="b")[0] == ["a/2", "a/b/1", "a/b/2", "a0"]
    assert listed(names_bucket, prefix="a/", start_offset="a/b", end_offset="a/b/2")[0] == ["a/b/1"]
    assert listed(names_bucket, prefix="a/", start_offset="b")[0] == []


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("delimiter", [None, "/"])
def test_listing_in_pages(names_bucket: Any, size: int, delimiter: str | None) -> None:
    """Pages of any size add up to the whole listing, with no name or prefix twice."""
    listing = names_bucket.list_blobs(page_size=size, delimiter=delimiter)
    names: list[str] = []
    prefixes: list[str] = []
    for page in listing.pages:
        items = [blob.name for blob in page]
        assert len(items) + len(page.prefixes) <= size
        names += items
        prefixes += page.prefixes
    assert (names, set(prefixes)) == listed(names_bucket, delimiter=delimiter)
    assert len(prefixes) == len(set(prefixes))


def test_listing_of_more_than_a_page(bucket: Any, http: httpx.Client) -> None:
    """Without a size the service's pages of 1,000 are used, and Google's client walks them."""
    url = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name="
    for number in range(1001):
        http.post(f"{url}{number:04}", content=b"")
    first = http.get(f"/storage/v1/b/{bucket.name}/o").json()
    assert len(first["items"]) == 1000
    assert "nextPageToken" in first
    assert len(list(bucket.list_blobs())) == 1001


def steps_of(store: Store, listing: Listing) -> int:
    """How much work SQLite has with a listing, in hundreds of its machine's instructions."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    store.index.set_progress_handler(count, 100)
    store.list("bucket", listing)
    store.index.set_progress_handler(None, 0)
    return steps


def test_10000_objects_cost_no_more_than_10(tmp_path: Path) -> None:
    """A listing seeks in the index: its work doesn't grow with the objects outside it, nor with those it folds."""
    store = Store(tmp_path)
    store.create_bucket("bucket")
    narrow = Listing(prefix="generations/1/ltx/0/00000003")
    folded = Listing(prefix="generations/", delimiter="/")
    page = Listing(prefix="generations/1/", start="generations/1/ltx/0/00000003", limit=5)
    work: list[list[int]] = []
    for numbers in (range(10), range(10, 10_000)):
        with store.transaction():
            for number in numbers:
                name = f"generations/1/ltx/0/{number:08}"
                store.commit("bucket", name, store.new_body(), Fields(), Conditions())
        assert len(store.list("bucket", narrow).objects) == 1
        assert store.list("bucket", folded).prefixes == ["generations/1/"]
        work.append([steps_of(store, listing) for listing in (narrow, folded, page)])
    assert all(after <= before + 1 for before, after in zip(*work, strict=True))
    plan = store.index.execute(f"EXPLAIN QUERY PLAN {LISTING}", ("bucket", "a", "b", 1)).fetchall()
    assert [row[3] for row in plan] == ["SEARCH objects USING PRIMARY KEY (bucket=? AND name>? AND name<?)"]
    store.close()


def test_following() -> None:
    """The name after a prefix's last is right at the edges of Unicode."""
    assert following("a/") == "a0"
    assert following("a\ud7ff") == "a\ue000"
    assert following("a\U0010ffff") == "b"
    assert following("\U0010ffff") is None
    assert following("") is None


# Durability


def test_everything_survives_kill_and_restart(fake_gcs: FakeGcs) -> None:
    """After kill -9 and a restart objects, metadata, generations, buckets and an open upload are as they were."""
    bucket = client_of(fake_gcs).bucket("users")
    blob = bucket.blob("a/b")
    blob.metadata = {"key": "value"}
    blob.upload_from_string(b"data")
    blob.cache_control = "no-store"
    blob.patch()
    with httpx.Client(base_url=fake_gcs.url, trust_env=False, timeout=60) as http:
        session = start_session(http, "users", "resumed", "&ifGenerationMatch=0")
        http.put(session, content=b"begun, ", headers={"content-range": "bytes 0-6/*"})
    fake_gcs.restart()
    read = bucket.get_blob("a/b")
    assert (read.generation, read.metageneration) == (blob.generation, 2)
    assert (read.metadata, read.cache_control) == ({"key": "value"}, "no-store")
    assert read.download_as_bytes() == b"data"
    state = httpx.put(session, headers={"content-range": "bytes */*"}, trust_env=False, timeout=60)
    assert state.headers["range"] == "bytes=0-6"
    end = httpx.put(session, content=b"ended", headers={"content-range": "bytes 7-11/12"}, trust_env=False, timeout=60)
    assert end.status_code == 200
    assert bucket.blob("resumed").download_as_bytes() == b"begun, ended"


def test_kill_amid_writes_loses_nothing_that_was_answered(fake_gcs: FakeGcs) -> None:
    """Killed -9 under eight writers, it has every answered object, each object whole, and no stray bodies."""
    bucket = client_of(fake_gcs).bucket("users")
    answered: dict[str, bytes] = {}

    def write(writer: int) -> None:
        for number in itertools.count():
            data = os.urandom(50_000)
            try:
                put(bucket, f"{writer}/{number}", data)
            except requests.RequestException:  # refused, reset, or cut off within the answer: no answer
                return
            answered[f"{writer}/{number}"] = data

    with ThreadPoolExecutor(8) as threads:
        writers = [threads.submit(write, writer) for writer in range(8)]
        until(lambda: len(answered) > 50)
        fake_gcs.kill()
        for writer in writers:
            writer.result()
    fake_gcs.start()
    found = {blob.name: blob for blob in bucket.list_blobs()}
    assert answered.keys() <= found.keys()
    for name, blob in found.items():
        data = blob.download_as_bytes(checksum="crc32c")
        assert data == answered.get(name, data)
    assert len(list((fake_gcs.data / "bodies").iterdir())) == len(found)


def test_generations_only_grow(fake_gcs: FakeGcs) -> None:
    """A generation is never used again: not after a delete, nor a restart."""
    bucket = client_of(fake_gcs).bucket("users")
    generations = []
    for _ in range(3):
        generations.append(put(bucket, "object").generation)
        generations.append(put(bucket, "object").generation)
        bucket.blob("object").delete()
        fake_gcs.restart()
    assert generations == sorted(set(generations))
    assert generations[0] > 1_500_000_000_000_000


def test_generations_grow_although_the_clock_steps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock set back by an hour between two lives gives no generation a second time."""

    def write() -> int:
        store = Store(tmp_path)
        if not store.buckets():
            store.create_bucket("bucket")
        generation = store.commit("bucket", "name", store.new_body(), Fields(), Conditions()).generation
        store.delete("bucket", "name", None, Conditions())
        store.close()
        return generation

    before = write()
    past = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: past)
    assert write() > before


def test_replaced_and_deleted_bodies_are_removed(fake_gcs: FakeGcs) -> None:
    """The disk holds one body per object, not one per write; refused writes leave nothing."""
    bucket = client_of(fake_gcs).bucket("users")
    for _ in range(5):
        put(bucket, "object")
    put(bucket, "deleted").delete()
    with pytest.raises(exceptions.PreconditionFailed):
        put(bucket, "object", if_generation_match=0)
    assert len(list((fake_gcs.data / "bodies").iterdir())) == 1


def test_one_process_per_directory(fake_gcs: FakeGcs) -> None:
    """A second fake on the same data refuses to start and says why."""
    command = [sys.executable, "-m", "local", "gcs", "--port", "0", "--data", str(fake_gcs.data)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert "another fake GCS is running" in second.stderr


def test_a_port_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no traceback."""
    assert main(["gcs", "--port=99999", f"--data={tmp_path}"]) == 1
    assert capsys.readouterr().err == "local gcs: bind(): port must be 0-65535.\n"


def test_stop_lets_hanging_requests_go(fake_gcs: FakeGcs) -> None:
    """SIGTERM ends the process with status 0 at once, also while a request hangs."""
    bucket = client_of(fake_gcs).bucket("users")
    rule = fake_gcs.faults.add(action="hang", verb="insert")
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(put, bucket, "object")
        fake_gcs.faults.wait_for_hits(rule)
        assert fake_gcs.stop() == 0
        assert isinstance(hanging.exception(timeout=30), requests.ConnectionError)


# Faults


def test_delay_is_added_to_the_answer(gcs: FakeGcs, bucket: Any) -> None:
    """A delayed write answers no sooner than told, and reads stay as they are."""
    gcs.faults.add(action="delay", verb="insert", seconds=0.2)
    gcs.faults.add(action="delay", verb="insert", seconds=0.1)
    began = time.monotonic()
    put(bucket, "object")
    assert time.monotonic() - began >= 0.3
    assert bucket.blob("object").download_as_bytes() == b"data"


def test_delays_do_not_queue(gcs: FakeGcs, bucket: Any) -> None:
    """Many requests are delayed at the same time."""
    rule = gcs.faults.add(action="delay", verb="insert", seconds=3.0)
    with ThreadPoolExecutor(10) as threads:
        writes = [threads.submit(put, bucket, f"{number}") for number in range(10)]
        gcs.faults.wait_for_hits(rule, at_least=10)
        assert not any(write.done() for write in writes)
        for write in writes:
            write.result()


def test_delayed_write_is_done_after_the_client_gave_up(gcs: FakeGcs, bucket: Any) -> None:
    """A write whose client timed out lands later all the same, as it may in the real service."""
    gcs.faults.add(action="delay", verb="insert", seconds=0.5)
    with pytest.raises(requests.Timeout):
        put(bucket, "object", timeout=0.1)
    assert not bucket.blob("object").exists()
    until(bucket.blob("object").exists)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, exceptions.TooManyRequests),
        (500, exceptions.InternalServerError),
        (503, exceptions.ServiceUnavailable),
        (403, exceptions.Forbidden),
    ],
)
def test_error_reaches_the_client(gcs: FakeGcs, bucket: Any, status: int, error: type[Exception]) -> None:
    """An injected status arrives as Google's client's own error, and nothing was written."""
    gcs.faults.add(action="error", verb="insert", status=status)
    with pytest.raises(error):
        put(bucket, "object")
    assert not bucket.blob("object").exists()


@pytest.mark.parametrize("size", [10, 20_000_000], ids=["multipart", "resumable"])
def test_client_retries_through_errors(gcs: FakeGcs, bucket: Any, size: int) -> None:
    """Google's client with its retries on gets through errors that end."""
    rule = gcs.faults.add(action="error", verb="insert", status=503, times=2)
    data = os.urandom(size)
    bucket.blob("object").upload_from_string(data, if_generation_match=0)
    assert gcs.faults.hits(rule) == 2
    assert bucket.blob("object").download_as_bytes() == data


@pytest.mark.parametrize("action", ["drop", "refuse", "hang"])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_closed_connections(gcs: FakeGcs, bucket: Any, action: Action, size: int) -> None:
    """Without an answer the client sees a broken connection; the write is done after a drop and else not."""
    rule = gcs.faults.add(action=action, verb="insert")
    with ThreadPoolExecutor(1) as threads:
        write = threads.submit(put, bucket, "object", os.urandom(size))
        gcs.faults.wait_for_hits(rule)
        if action == "hang":
            assert not write.done()
            assert not bucket.blob("object").exists()
            gcs.faults.remove(rule)
        assert isinstance(write.exception(timeout=30), requests.ConnectionError)
    assert bucket.blob("object").exists() == (action == "drop")


def test_lost_answer_and_retry_make_a_false_412(gcs: FakeGcs, bucket: Any) -> None:
    """The reason for INV-2's re-read: a write that was done, retried by the client, answers 412 to its own author."""
    gcs.faults.add(action="drop", verb="insert", times=1)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("lease.json").upload_from_string(b"mine", if_generation_match=0)
    assert bucket.blob("lease.json").download_as_bytes() == b"mine"


@pytest.mark.parametrize("action", ["drop", "refuse"])
def test_every_verb_can_be_struck(gcs: FakeGcs, bucket: Any, action: Action) -> None:
    """Reads, listings, changes and deletes break like writes do, and each rule strikes its own verb only."""
    blob = put(bucket, "object")
    calls: dict[Any, Callable[[], object]] = {
        "get": lambda: blob.reload(retry=None),
        "download": lambda: blob.download_as_bytes(retry=None),
        "list": lambda: list(bucket.list_blobs(retry=None)),
        "patch": lambda: blob.patch(retry=None),
        "bucket": lambda: bucket.reload(retry=None),
    }
    for verb, call in calls.items():
        rule = gcs.faults.add(action=action, verb=verb)
        with pytest.raises(requests.ConnectionError):
            call()
        for other in calls.keys() - {verb}:
            calls[other]()
        gcs.faults.remove(rule)
    gcs.faults.add(action=action, verb="delete")
    with pytest.raises(requests.ConnectionError):
        blob.delete(retry=None)
    assert blob.exists() == (action == "refuse")


def test_rules_choose_by_name(gcs: FakeGcs, bucket: Any) -> None:
    """A name is a prefix, or a pattern if it looks like one."""
    gcs.faults.add(action="error", name="generations/")
    gcs.faults.add(action="error", name="*/lease.json")
    for struck in ("generations/1/a", "prefix/lease.json"):
        with pytest.raises(exceptions.ServiceUnavailable):
            put(bucket, struck)
    put(bucket, "lease.json")
    put(bucket, "other/generations/")


def test_share_is_random_and_repeatable(gcs: FakeGcs, bucket: Any) -> None:
    """A share strikes about that part of the requests, and the same ones again with the same seed."""

    def struck(seed: int) -> list[bool]:
        rule = gcs.faults.add(action="error", verb="insert", share=0.3, seed=seed)
        outcomes = []
        for _ in range(60):
            try:
                put(bucket, "object")
                outcomes.append(False)
            except exceptions.ServiceUnavailable:
                outcomes.append(True)
        gcs.faults.remove(rule)
        return outcomes

    first = struck(1)
    assert 5 < sum(first) < 35
    assert struck(1) == first
    assert struck(2) != first


@pytest.mark.parametrize("size", [100_000, 20_000_000], ids=["multipart", "resumable"])
@pytest.mark.parametrize("after_bytes", [1, 70_001, ALL])
def test_an_upload_is_held_at_a_chosen_byte(gcs: FakeGcs, bucket: Any, size: int, after_bytes: int) -> None:
    """It hangs there, nothing is an object, and once the rule is gone the connection is closed and nothing is done."""
    rule = gcs.faults.add(action="hang", verb="insert", name="object", after_bytes=after_bytes)
    with ThreadPoolExecutor(1) as thread:
        upload = thread.submit(put, bucket, "object", os.urandom(size))
        gcs.faults.wait_for_hits(rule)
        assert not bucket.blob("object").exists()
        gcs.faults.remove(rule)
        with pytest.raises(requests.ConnectionError):
            upload.result()
    assert not bucket.blob("object").exists()


def test_an_answer_is_held(gcs: FakeGcs, bucket: Any) -> None:
    """A muted insert is done; its answer does not come, and the connection is closed once the rule is gone."""
    rule = gcs.faults.add(action="mute", verb="insert", name="object", after_bytes=ALL)
    with ThreadPoolExecutor(1) as thread:
        upload = thread.submit(put, bucket, "object", b"data")
        until(lambda: bucket.blob("object").exists())
        assert not upload.done()
        gcs.faults.remove(rule)
        with pytest.raises(requests.ConnectionError):
            upload.result()


def test_statistics_count_requests(gcs: FakeGcs, bucket: Any) -> None:
    """Requests are counted by what they do, struck or not, and counting begins again when told."""
    gcs.faults.reset_stats()
    blob = put(bucket, "object")
    blob.download_as_bytes()
    list(bucket.list_blobs())
    gcs.faults.add(action="error", verb="insert")
    with pytest.raises(exceptions.ServiceUnavailable):
        put(bucket, "object")
    blob.delete()
    stats = gcs.faults.stats()
    assert {verb: stats[verb] for verb in ("insert", "download", "list", "delete", "patch")} == {
        "insert": 2,
        "download": 1,
        "list": 1,
        "delete": 1,
        "patch": 0,
    }
    gcs.faults.reset_stats()
    assert not any(gcs.faults.stats().values())


@pytest.mark.parametrize("rule", ['[{"action": "explode"}]', '[{"action": "drop", "verb": "inserts"}]', "{}", "[{"])
def test_wrong_rules_are_refused(http: httpx.Client, rule: str) -> None:
    """A rule that can't be read answers 400 and changes nothing."""
    assert http.post("/_faults", content=rule).status_code == 400
    assert http.get("/_faults").json() == []


# Litestream


def make_database(path: Path, rows: int, width: int) -> sqlite3.Connection:
    """A database in WAL mode with some rows that don't compress."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, settings BLOB)")
    add_rows(connection, rows, width)
    return connection


def add_rows(connection: sqlite3.Connection, rows: int, width: int) -> None:
    """Inserts rows in one transaction."""
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO users (settings) VALUES (?)", [(os.urandom(width),) for _ in range(rows)])
    connection.execute("COMMIT")


def replicate_and_restore(
    gcs: FakeGcs, directory: Path, *, rows: int = 100, width: int = 20, amid: Callable[[], None] = lambda: None
) -> None:
    """Replicates a growing database by the real Litestream, restores it and compares every row."""
    source, copy = directory / "source.db", directory / "copy.db"
    environment = os.environ | gcs.environment()
    connection = make_database(source, rows, width)
    bucket = client_of(gcs).bucket("users")
    replica = "gs://users/some/prefix"
    litestream = subprocess.Popen([LITESTREAM, "replicate", source, replica], env=environment)
    try:
        until(lambda: any(True for _ in bucket.list_blobs(prefix="some/prefix/ltx/0/")))
        amid()
        for _ in range(20):
            add_rows(connection, 10, width)
    finally:
        litestream.send_signal(signal.SIGTERM)
        assert litestream.wait(60) == 0
    restored = subprocess.run(
        [LITESTREAM, "restore", "-o", copy, replica], env=environment, capture_output=True, text=True, check=False
    )
    assert restored.returncode == 0, restored.stderr
    every_row = "SELECT * FROM users ORDER BY id"
    assert sqlite3.connect(copy).execute(every_row).fetchall() == connection.execute(every_row).fetchall()
    timestamps = [blob.metadata["litestream-timestamp"] for blob in bucket.list_blobs(prefix="some/prefix/ltx/")]
    assert all(timestamps)


def test_litestream_replicates_and_restores(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """The real Litestream replicates to the fake and restores every row from it."""
    replicate_and_restore(fake_gcs, tmp_path)


def test_litestream_uploads_what_needs_many_chunks(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """A database beyond the 16 MB that Go's client sends at once goes through its resumable upload."""
    replicate_and_restore(fake_gcs, tmp_path, rows=1000, width=20_000)
    sizes = [blob.size for blob in client_of(fake_gcs).bucket("users").list_blobs()]
    assert max(sizes) > 16 * 1024 * 1024


def test_litestream_gets_through_a_killed_and_failing_store(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """A store that is killed, comes back, and refuses the next writes, loses nothing that Litestream replicates."""

    def amid() -> None:
        fake_gcs.restart()
        fake_gcs.faults.add(action="error", verb="insert", status=503, times=2)
        fake_gcs.faults.add(action="drop", verb="insert", times=2)

    replicate_and_restore(fake_gcs, tmp_path, amid=amid)
