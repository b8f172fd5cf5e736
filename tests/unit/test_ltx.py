"""LTX: a file that was cut off or changed anywhere is not whole, and an unchanging file is."""

import random
from pathlib import Path

import lz4.block
import pytest
from fastcrc import crc64

from worker import ltx
from worker.ltx import NotWholeError, Scan

PAGE_SIZE = 512


def made(*, pages: int = 40, first: int = 3, last: int = 7) -> bytes:
    """A whole file with pages that compress badly, so that every byte matters."""
    chance = random.Random(pages)
    header = b"LTX1" + b"".join(n.to_bytes(4) for n in (2, PAGE_SIZE, pages)) + first.to_bytes(8) + last.to_bytes(8)
    content = (header + (1_700_000_000_000).to_bytes(8)).ljust(100, b"\0")
    checksum, index = crc64.go_iso(content), b""
    for number in range(1, pages + 1):
        page = chance.randbytes(PAGE_SIZE)
        packed = lz4.block.compress(page, store_size=False)
        head = number.to_bytes(4) + (1).to_bytes(2) + len(packed).to_bytes(4)
        checksum = crc64.go_iso(page, crc64.go_iso(head, checksum))
        content += head + packed
        index += bytes([number % 128, len(packed) % 128, 1])
    tail = bytes(6) + index + bytes(1) + (len(index) + 1).to_bytes(8) + bytes(8)
    checksum = crc64.go_iso(tail, checksum)
    return content + tail + (checksum | 1 << 63).to_bytes(8)


def whole(data: bytes, piece: int = 1 << 20) -> ltx.Header:
    """Scan the data in pieces of a size."""
    scan = Scan()
    for at in range(0, len(data), piece):
        scan.feed(data[at : at + piece])
    return scan.end()


@pytest.mark.parametrize("piece", [1, 2, 7, 99, 100, 101, 4096, 1 << 20])
def test_a_whole_file_is_whole_in_whatever_pieces_it_comes(piece: int) -> None:
    """The pieces are the network's."""
    assert whole(made(), piece) == ltx.Header(page_size=PAGE_SIZE, pages=40, first=3, last=7, milliseconds=1_700_000_000_000)


def test_a_file_that_is_cut_off_anywhere_is_not_whole() -> None:
    """Every length but the whole one."""
    data = made(pages=5)
    for length in range(len(data)):
        with pytest.raises(NotWholeError):
            whole(data[:length])


def test_a_file_that_goes_on_after_its_end_is_not_whole() -> None:
    """Its last bytes are then no trailer."""
    with pytest.raises(NotWholeError):
        whole(made(pages=5) + b"\0")


def test_a_file_with_a_changed_byte_is_not_whole() -> None:
    """The checksum covers all of it, and itself."""
    data = made(pages=3)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x20
        with pytest.raises(NotWholeError):
            whole(bytes(changed))


def test_a_scan_holds_no_more_than_a_page_or_two() -> None:
    """INV-7: a snapshot may be a gigabyte."""
    scan, data, held = Scan(), made(pages=2000), 0
    for at in range(0, len(data), 1000):
        scan.feed(data[at : at + 1000])
        held = max(held, len(scan._rest))
    scan.end()
    assert held < 1000 + 2 * PAGE_SIZE


def test_an_unchanging_file_is_whole_and_its_makers_own(tmp_path: Path) -> None:
    """131 bytes; two makers' files differ, so that each can tell its own."""
    one, two = (ltx.unchanging(transaction=9, page_size=4096, pages=12, milliseconds=5, node=node) for node in (1, 2))
    assert len(one) == 131
    assert one != two
    (tmp_path / "file").write_bytes(one)
    assert ltx.check(tmp_path / "file") == ltx.Header(page_size=4096, pages=12, first=9, last=9, milliseconds=5)
