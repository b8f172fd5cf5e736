"""Memory has an end: a server process outlives each flood, and serves in the middle of it and afterwards."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SERVER = """
import asyncio, socket, sys, uvicorn, uvloop
from publisher.connections import Bounds, Connections
from publisher.listening import listen, spare_files

async def application(scope, receive, send):
    while (await receive()).get("more_body", False):
        pass
    if scope["path"] == "/held":
        await asyncio.sleep(600)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})

async def main():
    doors = Connections(Bounds(min(3000, spare_files()), 14_000_000, 20))
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(application, http=doors, ws="none", lifespan="off", access_log=False, log_config=None)
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])

uvloop.run(main())
"""


@contextlib.contextmanager
def serving(*, files: int | None = None) -> Iterator[tuple[int, int]]:
    """A server process with the connections of the worker and the gateway: its id and its port."""
    command = [sys.executable, "-c", SERVER]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        assert serves(port)
        yield process.pid, port
        assert process.poll() is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def serves(port: int) -> bool:
    """Whether a plain push is answered."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        return client.recv(1000).startswith(b"HTTP/1.1 204 ")


def megabytes(pid: int) -> float:
    """The most memory that a process has used."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


FLOODS = {
    "100 heads of 60,000 tiny fields": (100, b"POST / HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * 60_000),
    "400 heads of 250 kB": (400, b"POST / HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"y" * 250_000),
    "30 held, with 12,000 requests behind each": (
        30,
        b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" + b"GET / HTTP/1.1\r\n\r\n" * 12_000,
    ),
    "400 silent senders": (400, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 12800000\r\n\r\n"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_the_process_outlives_a_flood(flood: str) -> None:
    """INV-7: the flood costs a few megabytes, and a push in the middle of it is answered."""
    count, data = FLOODS[flood]
    with serving() as (pid, port), contextlib.ExitStack() as stack:
        before = megabytes(pid)
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            client.settimeout(0.3)
            with contextlib.suppress(OSError):
                client.sendall(data)
        time.sleep(0.5)
        assert serves(port)
        grown = megabytes(pid) - before
        print(f"{flood}: {before:.0f} MB and {grown:.0f} more")
        assert grown < 60


def test_descriptors_are_left_to_the_service() -> None:
    """Idle connections up to the limit: those over it are told 503, and the process can still open what it needs."""
    with serving(files=400) as (pid, port), contextlib.ExitStack() as stack:
        answers = []
        for _ in range(200):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            answers.append(client)
        time.sleep(1)
        refused = 0
        for client in answers:
            client.settimeout(0.01)
            with contextlib.suppress(OSError):
                refused += client.recv(100).startswith(b"HTTP/1.1 503 ")
        assert refused >= 50
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 300
