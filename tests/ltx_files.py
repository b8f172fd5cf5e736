"""Whole LTX files, made without Litestream."""

import random
from collections.abc import Iterator

import lz4.block
from fastcrc import crc64

MILLISECONDS = 1_700_000_000_000


def pieces(first: int, last: int, *, pages: int = 40, page_size: int = 512, seed: int | None = None) -> Iterator[bytes]:
    """A whole file with pages that compress badly, so that every byte matters; equal for equal arguments."""
    chance = random.Random(pages if seed is None else seed)
    header = b"LTX1" + b"".join(n.to_bytes(4) for n in (2, page_size, pages)) + first.to_bytes(8) + last.to_bytes(8)
    head = (header + MILLISECONDS.to_bytes(8)).ljust(100, b"\0")
    checksum, index = crc64.go_iso(head), bytearray()
    yield head
    for number in range(1, pages + 1):
        page = chance.randbytes(page_size)
        packed = lz4.block.compress(page, store_size=False)
        head = number.to_bytes(4) + (1).to_bytes(2) + len(packed).to_bytes(4)
        checksum = crc64.go_iso(page, crc64.go_iso(head, checksum))
        yield head + packed
        index += bytes([number % 128, len(packed) % 128, 1])
    tail = bytes(6) + index + bytes(1) + (len(index) + 1).to_bytes(8) + bytes(8)
    yield tail + (crc64.go_iso(tail, checksum) | 1 << 63).to_bytes(8)


def whole_file(first: int, last: int, *, pages: int = 40, page_size: int = 512, seed: int | None = None) -> bytes:
    """All pieces of a file."""
    return b"".join(pieces(first, last, pages=pages, page_size=page_size, seed=seed))
