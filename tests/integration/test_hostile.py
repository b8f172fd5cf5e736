"""Thousands of hostile bodies against a real worker, among good messages: each has its fate, and nobody else notices.

INV-6 and INV-7 over real HTTP, real Litestream and a fake bucket; what must become of each body stands in hostile.py.
"""

import asyncio
import base64
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from local.gcs_process import FakeGcs
from local.proof import live_generation, restore
from local.worker_process import WorkerProcess
from tests.integration import hostile_orders
from tests.integration.hostile import MARK, Damaged, Hostile, NoPush, Row, corpus, largest
from tests.processes import BUCKET, PREFIX, QUICK, URL, Objects, body, push

pytestmark = pytest.mark.slow

IN_FLIGHT: Final = 64
GOOD: Final = 500
LARGEST: Final = 16
BODIES_MIN: Final = 2000
ORDERS_MIN: Final = 400
SECONDS_MAX: Final = 240
SHOWN: Final = 60
"""How many rejections are read whole, one by one."""
MEMORY_MAX: Final = 450_000_000
"""Bytes of memory at the worker's worst moment. It may hold QUEUE_MAX_BYTES (64 MB) of bodies. Each is there as it came, and
for a moment in the pieces that it came in; as its data (3/4 of it), as the text in that, and in the parameters of its
statement: up to 5.5 times 64 MB, on top of 100 MB for Python, the libraries and SQLite's pages."""
LOG_LINE_MAX: Final = 20_000
"""Bytes in one line of the log: a message id of 1024 characters, escaped, and some words."""


@dataclass
class Stored:
    """What a restore of the live generation holds, by id."""

    users: dict[int, dict[str, Any]]
    orders: dict[str, dict[str, Any]]
    receipts: dict[str, dict[str, Any]]
    rejections: dict[str, dict[str, Any]]


@dataclass
class Answers:
    """What was answered, by the name of the body."""

    status: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    full: int = 0

    def wrong(self, hostile: Sequence[Hostile]) -> list[str]:
        """Those with another status than theirs."""
        return [f"{each.name}: {self.status[each.name]}" for each in hostile if self.status[each.name] not in allowed(each)]


def allowed(hostile: Hostile) -> set[int]:
    """Which statuses it may be answered with."""
    if isinstance(hostile.fate, NoPush):
        return {hostile.fate.status}
    return {204, 400} if isinstance(hostile.fate, Damaged) else {204}


class Sender:
    """One connection, kept alive: a client library would take longer over these bodies than the worker."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, hostile: Hostile) -> tuple[int, str]:
        """Send a body; the status and the text of the answer."""
        self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        headers = {"host": "worker", "content-length": len(hostile.body), **hostile.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"POST / HTTP/1.1\r\n{lines}\r\n".encode() + hostile.body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        told = head.partition("content-length: ")[2]
        text = await reader.readexactly(int(told.split()[0])) if told else b""
        if "connection: close" in head or head.split()[1] == "413":
            self.close()  # what is left of the body is not sent
        return int(head.split()[1]), text.decode()

    def close(self) -> None:
        """Close the connection; the next body opens another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def send(port: int, bodies: Sequence[Hostile]) -> Answers:
    """Send all with IN_FLIGHT at once; what is refused because the worker is full is sent again, as the queue would."""
    answers, waiting = Answers(), list(reversed(bodies))

    async def drain(sender: Sender) -> None:
        while waiting:
            each = waiting.pop()
            status, text = await sender.post(each)
            while status == 503:
                assert "are held as QUEUE_MAX_" in text, text
                answers.full += 1
                await asyncio.sleep(0.05)
                status, text = await sender.post(each)
            answers.status[each.name], answers.texts[each.name] = status, text
        sender.close()

    async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(drain(Sender(port)))
    return answers


def stored(gcs: FakeGcs, scratch: Path) -> Stored:
    """Restore the live generation with plain Litestream, and read it."""
    file = scratch / "restored.db"
    restore(gcs.url, f"gs://{BUCKET}/{live_generation(gcs.url, URL)}", file)
    with closing(sqlite3.connect(file)) as database:
        database.row_factory = sqlite3.Row
        tables = (
            {row[0]: dict(row) for row in database.execute(f"SELECT * FROM {name}")} for name in Stored.__annotations__
        )
        found = Stored(*tables)
    objects = Objects(gcs)
    for kept in found.rejections.values():
        if kept["body"] is not None:
            kept["data"] = objects.read(f"{PREFIX}/{kept['body']}")
    objects.close()
    return found


def unfit(hostile: Hostile, status: int, found: Stored) -> str | None:
    """What is wrong with the fate of a body, or None."""
    fate = hostile.fate
    if isinstance(fate, NoPush):
        return "stored" if fate.tag in found.receipts and not fate.tag.startswith("whole") else None
    if isinstance(fate, Damaged):
        return damage(hostile, fate, status, found)
    receipt, kept = found.receipts.get(fate.message_id), found.rejections.get(fate.message_id)
    if receipt is None:
        return "no receipt"
    if isinstance(fate, Row):
        rows: Mapping[int | str, dict[str, Any]] = getattr(found, fate.table)
        row = rows.get(fate.key)
        if row is None or kept is not None or receipt["outcome"] != "created" or receipt["subject"] != fate.subject:
            return f"not created: {receipt}, {row}, {kept}"
        return None if {name: row[name] for name in fate.columns} == fate.columns else f"the row is {row}"
    if kept is None or receipt["outcome"] != "rejected":
        return f"not kept: {receipt}"
    same = (kept["data"], json.loads(kept["attributes"]), kept["publish_time"]) == (
        fate.data,
        fate.attributes,
        fate.publish_time,
    )
    if not same or kept["reason"] not in fate.reasons or kept["resolved_at"] is not None:
        return f"kept as {kept['reason']}: {kept['detail']}; the same bytes, attributes and time: {same}"
    return None


def damage(hostile: Hostile, fate: Damaged, status: int, found: Stored) -> str | None:
    """What is wrong with the fate of a damaged push, as far as a lenient reader can tell."""
    if status == 400:
        return "refused, and stored" if fate.tag in found.receipts else None
    inner = json.loads(hostile.body.decode(errors="replace"))["message"]
    receipt = found.receipts.get(inner.get("messageId") or inner["message_id"])
    if receipt is None:
        return "no receipt"
    if receipt["outcome"] == "created":
        subjects = {*map(str, found.users), *(str(row["customer_id"]) for row in found.orders.values())}
        return None if receipt["subject"] in subjects else "no row"
    kept = found.rejections.get(receipt["message_id"])
    return None if kept is not None and kept["data"] == base64.b64decode(inner.get("data") or "") else f"not kept: {receipt}"


def listed(url: str, client: httpx.Client) -> list[str]:
    """The ids of all rejections that the worker lists, page by page."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get(f"{url}/rejections", params={"after": after} if after else {}).raise_for_status().json()
        found += [row["message_id"] for row in page["rejections"]]
        after = page["after"]
    return found


def peak_memory(worker: WorkerProcess) -> int:
    """The most memory it has had, in bytes."""
    (line,) = [line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.fixture
def worker(tmp_path: Path, fake_gcs: FakeGcs) -> Iterator[WorkerProcess]:
    """A worker of two modules that serves a new store, at the default level of its log and with the default limits."""
    objects = Objects(fake_gcs)
    objects.initialize()
    objects.close()
    made = WorkerProcess(
        disk=tmp_path / "worker",
        replica_url=URL,
        environment={**fake_gcs.environment(), **QUICK, "EVENTS": "worker.events.users,examples.orders"},
        port=0,
        log=tmp_path / "worker.log",
    )
    yield made.start().wait_serving()
    made.kill()
    print(made.tail(4000))


def sent(worker: WorkerProcess, bodies: Sequence[Hostile], gcs: FakeGcs, scratch: Path) -> tuple[Answers, Stored]:
    """Send all; each has been answered as it must be, has its fate in the bucket, and the memory was bounded."""
    began = time.monotonic()
    answers = asyncio.run(send(worker.port, bodies))
    memory, took = peak_memory(worker), time.monotonic() - began
    print(Counter(answers.status.values()), f"{took:.1f} s, {answers.full} times full, {memory / 1e6:.0f} MB at most")
    assert answers.wrong(bodies) == []
    assert worker.state() == "serving"
    assert push(worker, GOOD + 1, "after all").status_code == 204
    found = stored(gcs, scratch)
    wrong = [f"{each.name}: {what}" for each in bodies if (what := unfit(each, answers.status[each.name], found))]
    assert not wrong, "\n".join(wrong)
    assert len(found.receipts) == list(answers.status.values()).count(204) + 1, "a receipt of something else"
    assert memory < MEMORY_MAX
    return answers, found


def test_hostile_bodies_among_good_messages(worker: WorkerProcess, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """INV-6, INV-7: every good message is stored, every bad one has its fate, memory is bounded, the log keeps secrets."""
    bodies = corpus()
    assert len(bodies) >= BODIES_MIN
    orders = hostile_orders.corpus()
    assert len(orders) >= ORDERS_MIN
    bodies += orders
    for user in range(1, GOOD + 1):
        name, email = f"good-{user}", f"{MARK}-{user}"
        bodies.append(Hostile(name, body(user, name, email=email), Row(name, user, {"email_address": email})))
    random.Random(1).shuffle(bodies)
    answers, found = sent(worker, bodies, fake_gcs, tmp_path)
    check_operators_view(worker, found)
    check_reading(worker, found, [each.fate.key for each in orders if isinstance(each.fate, Row)])
    assert worker.stop() == 0
    check_secrets(worker, answers)


def test_the_largest_messages_all_at_once(worker: WorkerProcess, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """INV-7: more than QUEUE_MAX_BYTES of them are refused until there is room, and the memory stays bounded."""
    answers, _ = sent(worker, largest(LARGEST), fake_gcs, tmp_path)
    assert answers.full > 0
    assert worker.stop() == 0


def check_operators_view(worker: WorkerProcess, found: Stored) -> None:
    """Every rejection is listed once, and those with the oddest ids can be read whole, byte for byte."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert sorted(listed(worker.url, client)) == sorted(found.rejections)
        oddest = sorted(found.rejections, key=lambda message_id: (message_id.isalnum(), message_id))
        for message_id in [*oddest[:SHOWN], *oddest[-SHOWN:]]:
            address = f"{worker.url}/rejections/{quote(message_id, safe='').replace('.', '%2E')}"
            kept = client.get(address).raise_for_status().json()
            assert kept["message_id"] == message_id
            assert base64.b64decode(kept["data"]) == found.rejections[message_id]["data"]


def check_reading(worker: WorkerProcess, found: Stored, keys: Sequence[int | str]) -> None:
    """Every order is read by its key, however odd that is, and is listed once, in the order of the keys."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        for key in keys:
            address = f"{worker.url}/tables/orders/{quote(str(key), safe='').replace('.', '%2E')}"
            assert client.get(address).raise_for_status().json() == found.orders[str(key)]
        listed_keys: list[str] = []
        after: str | None = None
        while after is not None or not listed_keys:
            parameters = {"limit": "50"} if after is None else {"limit": "50", "after": after}
            page = client.get(f"{worker.url}/tables/orders", params=parameters).raise_for_status().json()
            listed_keys += [row["order_id"] for row in page["rows"]]
            after = page["after"]
    assert listed_keys == sorted(found.orders, key=lambda key: key.encode())


def check_secrets(worker: WorkerProcess, answers: Answers) -> None:
    """Neither the log nor an answer holds a user's text, plain or in base64, or a whole body; and nothing was a bug."""
    log = worker.log.read_bytes()
    encoded = [base64.b64encode(b"x" * shift + MARK.encode())[4 if shift else 0 : 8] for shift in range(3)]
    for secret in [MARK.encode(), *encoded]:
        assert secret not in log
        assert [name for name, text in answers.texts.items() if secret.decode() in text] == []
    assert max(map(len, log.splitlines())) < LOG_LINE_MAX
    assert max(map(len, answers.texts.values())) < 500
    assert b"Traceback" not in log
    assert b'"severity": "ERROR"' not in log
