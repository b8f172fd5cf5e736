"""`worker.gcs.Bucket.read` and answers that are not the bucket's. The rest is in tests/integration/test_bucket.py."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import pytest

from worker.errors import StoreUnavailable
from worker.gcs import Bucket

GOOD = {"x-goog-hash": "crc32c=kPWZ4w==,md5=xMpCOKC5I4INzFCab3WEmw==", "x-goog-generation": "7"}
"""What the bucket says of the one byte `1`."""


class Answering(HTTPServer):
    """Answers every read with the same byte, under headers that the test may change."""

    said: dict[str, str] = GOOD


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """A read."""
        self.send_response(200)
        for name, value in {**cast(Answering, self.server).said, "content-length": "1"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"1")

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
