"""Whatever files `cover` chooses, the real Litestream puts them together: any mixture of levels, overlaps included."""

import asyncio
import itertools
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import lz4.block
import pytest
from fastcrc import crc64

from worker.replica import litestream, ltx
from worker.replica.layout import File
from worker.replica.litestream import find_binary
from worker.replica.restoring import cover

pytestmark = pytest.mark.slow

PAGE_SIZE = 4096
TRANSACTIONS = 8
SNAPSHOT = 9
Pages = dict[int, bytes]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[Pages]:
    """The pages of a database after each transaction; after transaction n it holds the rows 1 to n. It grows by pages."""
    file = tmp_path_factory.mktemp("source") / "a.db"
    found: list[Pages] = []
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(f"PRAGMA page_size={PAGE_SIZE}")
        database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filling TEXT)")
        for number in range(1, TRANSACTIONS + 1):
            database.execute("INSERT INTO t VALUES (?, ?)", (number, str(number) * 1500))
            data = file.read_bytes()
            found.append({at // PAGE_SIZE + 1: data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)})
    return found


def encoded(first: int, last: int, states: list[Pages], *, whole: bool) -> bytes:
    """The file of transactions `first` to `last`: the pages that they changed, or all of them."""
    before = {} if whole or first == 1 else states[first - 2]
    after = states[last - 1]
    pages = {number: page for number, page in sorted(after.items()) if before.get(number) != page}
    header = b"LTX1" + b"".join(n.to_bytes(4) for n in (2, PAGE_SIZE, len(after)))
    content = (header + first.to_bytes(8) + last.to_bytes(8) + (1_700_000_000_000 + last).to_bytes(8)).ljust(100, b"\0")
    checksum, index = crc64.go_iso(content), b""
    for number, page in pages.items():
        packed = lz4.block.compress(page, store_size=False)
        head = number.to_bytes(4) + (1).to_bytes(2) + len(packed).to_bytes(4)
        index += varint(number) + varint(len(content)) + varint(len(head) + len(packed))
        checksum = crc64.go_iso(page, crc64.go_iso(head, checksum))
        content += head + packed
    index += bytes(1)
    tail = bytes(6) + index + len(index).to_bytes(8) + bytes(8)
    return content + tail + (crc64.go_iso(tail, checksum) | 1 << 63).to_bytes(8)


def varint(number: int) -> bytes:
    """As Go writes an unsigned one."""
    made = b""
    while number >= 0x80:
        made, number = made + bytes([number & 0x7F | 0x80]), number >> 7
    return made + bytes([number])


def rows(file: Path) -> list[int]:
    """The rows of a restored database."""
    with closing(sqlite3.connect(file)) as database:
        return [row[0] for row in database.execute("SELECT n FROM t ORDER BY n")]


MIXTURES = {
    "slots": [(0, n, n) for n in range(1, 9)],
    "a snapshot and slots": [(SNAPSHOT, 1, 5), (0, 6, 6), (0, 7, 7), (0, 8, 8)],
    "a merge after a slot": [(0, 1, 1), (2, 2, 6), (0, 7, 7), (0, 8, 8)],
    "levels that alternate": [(1, 1, 2), (0, 3, 3), (2, 4, 5), (0, 6, 6), (1, 7, 8)],
    "lower levels first": [(0, 1, 1), (1, 2, 3), (2, 4, 6), (3, 7, 8)],
    "overlaps": [(SNAPSHOT, 1, 4), (1, 3, 6), (0, 7, 7), (2, 5, 8)],
    "a merge that begins within a snapshot": [(SNAPSHOT, 1, 5), (1, 2, 7), (0, 8, 8)],
    "a merge from the first on, beside slots": [(3, 1, 6), (0, 7, 7), (0, 8, 8)],
}


ENDS = [(name, end) for name, mixture in MIXTURES.items() for end in (7, 8) if any(last == end for _, _, last in mixture)]


@pytest.mark.parametrize(("name", "end"), ENDS)
def test_litestream_restores_what_was_chosen(states: list[Pages], tmp_path: Path, name: str, end: int) -> None:
    """INV-10: a damaged file is left out of any level, so the rest is a mixture that Litestream itself would not choose."""
    files = [
        File(f"g/ltx/{level}/{first:016x}-{last:016x}.ltx", level, first, last, datetime.now(UTC), 1)
        for level, first, last in MIXTURES[name]
    ]
    chosen = cover("g", files, end)
    for file in chosen:
        local = tmp_path / file.name
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(encoded(file.first, file.last, states, whole=file.level == SNAPSHOT))
        ltx.check(local)
    output = tmp_path / "restored.db"
    txid = asyncio.run(litestream.restore(tmp_path / "g", output, binary=find_binary("litestream"), integrity_check="full"))
    assert txid == end
    assert rows(output) == list(range(1, end + 1))


def test_any_pair_of_levels_may_follow_each_other(states: list[Pages], tmp_path: Path) -> None:
    """Each level after each other one."""
    for before, after in itertools.product((0, 1, 2, 3), repeat=2):
        folder = tmp_path / f"{before}{after}"
        for level, first, last in ((before, 1, 3), (after, 4, 8)):
            local = folder / "ltx" / str(level) / f"{first:016x}-{last:016x}.ltx"
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(encoded(first, last, states, whole=False))
        output = folder / "restored.db"
        made = litestream.restore(folder, output, binary=find_binary("litestream"), integrity_check="full")
        assert (asyncio.run(made), rows(output)) == (TRANSACTIONS, list(range(1, 9))), (before, after)
