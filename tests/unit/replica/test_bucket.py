"""`Bucket`: answers that are not the bucket's, and patience. The rest is in tests/integration/test_bucket.py."""

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from worker.errors import Mismatch, StoreDenied, StoreMissing, StoreUnavailable
from worker.replica import bucket as gcs
from worker.replica.bucket import Bucket

GOOD = {"x-goog-hash": "crc32c=kPWZ4w==,md5=xMpCOKC5I4INzFCab3WEmw==", "x-goog-generation": "7"}
"""What the bucket says of the one byte `1`."""


class Answering(HTTPServer):
    """Answers every read with the same byte, under headers that the test may change.

    `refusals` are the statuses of the first answers, and `asked` the verb of each request.
    """

    said: dict[str, str] = GOOD

    def __init__(self, *given: Any) -> None:
        self.refusals: list[int] = []
        self.asked: list[str] = []
        super().__init__(*given)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """A read."""
        if self._refused():
            return
        self.send_response(200)
        for name, value in {**cast(Answering, self.server).said, "content-length": "1"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"1")

    def do_POST(self) -> None:
        """A write: the next refusal."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        assert self._refused()

    def do_DELETE(self) -> None:
        """A deletion: the next refusal."""
        self.do_POST()

    def _refused(self) -> bool:
        server = cast(Answering, self.server)
        server.asked.append(self.command)
        if not server.refusals:
            return False
        self.send_response(server.refusals.pop(0))
        self.send_header("content-length", "0")
        self.end_headers()
        return True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """A server on loopback, taken for the bucket."""
    with Answering(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{made.server_port}")
        yield made
        made.shutdown()
        thread.join()


def read() -> tuple[bytes, int] | None:
    """One read."""
    bucket = Bucket("users", "store")
    try:
        return asyncio.run(bucket.read("lease.json", timeout=5.0))
    finally:
        bucket.close()


def test_an_answer_is_its_bytes_and_its_generation(server: Answering) -> None:
    """As long as the checksum is that of the bytes."""
    assert read() == (b"1", 7)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {**GOOD, "x-goog-hash": "crc32c=AAAAAA=="},
        {"x-goog-hash": GOOD["x-goog-hash"]},
        {"x-goog-generation": GOOD["x-goog-generation"]},
        {**GOOD, "x-goog-generation": "seven"},
    ],
    ids=["neither", "another checksum", "no generation", "no checksum", "no number"],
)
def test_an_answer_that_does_not_vouch_for_itself_is_no_answer(server: Answering, said: dict[str, str]) -> None:
    """INV-9: whatever stands between us and the bucket, what it makes up is asked for again."""
    server.said = said
    with pytest.raises(StoreUnavailable, match="the checksum or the generation is missing or wrong"):
        read()


@pytest.fixture
def bucket(server: Answering, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket that the server is taken for; pauses between two reads are short."""
    monkeypatch.setattr(gcs, "_READ_PAUSE_SECONDS", 0.001)
    made = Bucket("users", "store")
    yield made
    made.close()


def test_patience_repeats_a_read_until_it_is_answered(server: Answering, bucket: Bucket) -> None:
    """A restore of ten thousand files meets a 503 now and then, and 429 where it is fast."""
    server.refusals = [503, 429, 500]
    assert asyncio.run(bucket.patient(20).read("a", timeout=5)) == (b"1", 7)
    assert server.asked == ["GET"] * 4


def test_without_patience_a_read_is_one_request(server: Answering, bucket: Bucket) -> None:
    """Who calls sees each doubt; patience is a copy's, and does not rub off on the bucket it was made from."""
    bucket.patient(20)
    server.refusals = [503, 503]
    with pytest.raises(StoreUnavailable):
        asyncio.run(bucket.read("a", timeout=5))
    assert server.asked == ["GET"]


def test_patience_has_an_end(server: Answering, bucket: Bucket) -> None:
    """INV-7: then the last answer is told."""
    server.refusals = [503] * 10_000
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="503"):
        asyncio.run(bucket.patient(0.2).read("a", timeout=5))
    assert time.monotonic() - began < 5
    assert len(server.asked) > 1


@pytest.mark.parametrize(("status", "error"), [(403, StoreDenied), (401, StoreDenied)])
def test_patience_is_not_for_a_refusal(server: Answering, bucket: Bucket, status: int, error: type[Exception]) -> None:
    """A missing right does not come back by itself within a restore."""
    server.refusals = [status]
    with pytest.raises(error):
        asyncio.run(bucket.patient(20).read("a", timeout=5))
    assert server.asked == ["GET"]


def test_patience_never_repeats_a_change(server: Answering, bucket: Bucket) -> None:
    """A write whose answer was lost may have been done: only who made it can tell, by reading."""
    patient = bucket.patient(20)
    server.refusals = [503, 503]
    with pytest.raises(StoreUnavailable):
        asyncio.run(patient.write("a", b"1", if_generation=0, timeout=5))
    with pytest.raises(StoreUnavailable):
        asyncio.run(patient.delete("a", timeout=5))
    assert server.asked == ["POST", "DELETE"]


def test_a_write_that_comes_too_late_is_a_mismatch_at_once(server: Answering, bucket: Bucket) -> None:
    """412 is an answer."""
    server.refusals = [412]
    with pytest.raises(Mismatch):
        asyncio.run(bucket.patient(20).write("a", b"1", if_generation=0, timeout=5))
    assert server.asked == ["POST"]


def test_a_fetch_is_patient_and_checks_each_file_once(server: Answering, bucket: Bucket, tmp_path: Path) -> None:
    """A file is checked when it is whole, not after each attempt."""
    server.refusals = [503, 503]
    checked: list[str] = []
    asyncio.run(
        bucket.patient(20).fetch(
            ["g/ltx/0/a"], "g/", tmp_path, timeout=5, check=lambda file: checked.append(file.read_text())
        )
    )
    assert checked == ["1"]
    assert (tmp_path / "ltx/0/a").read_bytes() == b"1"


def test_a_vanished_file_ends_a_fetch_at_once(server: Answering, bucket: Bucket, tmp_path: Path) -> None:
    """The restore lists again; waiting does not bring a merged file back."""
    server.refusals = [404]
    with pytest.raises(StoreMissing):
        asyncio.run(bucket.patient(20).fetch(["g/ltx/0/a"], "g/", tmp_path, timeout=5))
    assert server.asked == ["GET"]
