"""LTX: a file that was cut off or changed anywhere is not whole, and an unchanging file is."""

from pathlib import Path

import pytest

from tests.ltx_files import MILLISECONDS, whole_file
from worker.replica import ltx
from worker.replica.ltx import NotWholeError, Scan

PAGE_SIZE = 512


def made(*, pages: int = 40) -> bytes:
    """A whole file of the transactions 3 to 7."""
    return whole_file(3, 7, pages=pages, page_size=PAGE_SIZE)


def whole(data: bytes, piece: int = 1 << 20) -> ltx.Header:
    """Scan the data in pieces of a size."""
    scan = Scan()
    for at in range(0, len(data), piece):
        scan.feed(data[at : at + piece])
    return scan.end()


@pytest.mark.parametrize("piece", [1, 2, 7, 99, 100, 101, 4096, 1 << 20])
def test_a_whole_file_is_whole_in_whatever_pieces_it_comes(piece: int) -> None:
    """The pieces are the network's."""
    assert whole(made(), piece) == ltx.Header(page_size=PAGE_SIZE, pages=40, first=3, last=7, milliseconds=MILLISECONDS)


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
