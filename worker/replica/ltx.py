"""LTX, the format of Litestream's files: what makes one whole, and the file that seals a generation.

A file is a header, pages in ascending order, an empty page header, an index of the pages, and a trailer with a checksum of
all before it (of the pages as they are when decompressed). A file that was cut off anywhere has no fitting trailer.
All numbers are big-endian. Source: superfly/ltx, `ltx.go`, `encoder.go` and `decoder.go`, as Litestream 0.5.17 uses them.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import lz4.block
from fastcrc import crc64

_MAGIC: Final = b"LTX1"
_HEADER: Final = struct.Struct(">4sIIIQQQ60x")
"""Magic, flags, page size, pages of the database, first and last transaction, milliseconds; then where the WAL was."""
_PAGE: Final = struct.Struct(">IHI")
"""Page number, flags, bytes of the compressed page."""
_PAGES_END: Final = bytes(6)
_SIZED: Final = 1
"""A page's flag: its compressed size follows its header."""
_NO_CHECKSUMS: Final = 2
"""A header's flag: the writer keeps no rolling checksum of the database."""
_CHECKSUM_BYTES: Final = 8
_CHECKSUM_FLAG: Final = 1 << 63
_EMPTY_INDEX: Final = bytes(1) + (1).to_bytes(8)
_NO_ROLLING_CHECKSUM: Final = bytes(8)
_PAGE_SIZES: Final = tuple(512 << n for n in range(8))
_PIECE_BYTES: Final = 1 << 20


class NotWholeError(ValueError):
    """The bytes are not one whole LTX file; the text says what is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a file: transactions `first` to `last`, for a database of `pages` pages of `page_size` bytes.

    `milliseconds` since 1970 is when the last of them was committed, by the writer's clock.
    """

    page_size: int
    pages: int
    first: int
    last: int
    milliseconds: int

    @classmethod
    def read(cls, data: bytes) -> Self:
        """The header at the beginning of `data`.

        Raises:
            NotWholeError: There is none.
        """
        if len(data) < _HEADER.size:
            raise NotWholeError(f"it ends after {len(data)} bytes, within its header")
        magic, _, page_size, pages, first, last, milliseconds = _HEADER.unpack_from(data)
        if magic != _MAGIC or page_size not in _PAGE_SIZES or not 0 < first <= last:
            raise NotWholeError("it does not begin as an LTX file")
        return cls(page_size, pages, first, last, milliseconds)


class Scan:
    """Checks one file as it passes, holding a page or two of it: `feed` all of it, then `end`."""

    def __init__(self) -> None:
        self._rest = bytearray()  # fed, and not checked yet
        self._header: Header | None = None
        self._in_index = False
        self._checksum = 0

    def feed(self, data: bytes) -> None:
        """Check the next bytes.

        Raises:
            NotWholeError: The file cannot be whole, whatever follows.
        """
        self._rest += data
        if self._header is None:
            if len(self._rest) < _HEADER.size:
                return
            self._header = Header.read(bytes(self._rest[: _HEADER.size]))
            self._count(_HEADER.size)
        if not self._in_index:
            self._check_pages(self._header)
        if self._in_index:
            self._count(len(self._rest) - _CHECKSUM_BYTES)

    def end(self) -> Header:
        """The header of the file, all of which has been fed.

        Raises:
            NotWholeError: It is not whole.
        """
        if self._header is None:
            raise NotWholeError(f"it ends after {len(self._rest)} bytes, within its header")
        if not self._in_index:
            raise NotWholeError("it ends among its pages")
        if int.from_bytes(self._rest) != self._checksum | _CHECKSUM_FLAG:
            raise NotWholeError("its checksum does not fit: it was cut off or changed")
        return self._header

    def _count(self, size: int) -> None:
        if size > 0:
            self._checksum = crc64.go_iso(bytes(self._rest[:size]), self._checksum)
            del self._rest[:size]

    def _check_pages(self, header: Header) -> None:
        data, at, checksum = bytes(self._rest), 0, self._checksum
        while len(data) - at >= _PAGE.size:
            if data.startswith(_PAGES_END, at):
                checksum = crc64.go_iso(_PAGES_END, checksum)
                at += len(_PAGES_END)
                self._in_index = True
                break
            number, flags, size = _PAGE.unpack_from(data, at)
            begin = at + _PAGE.size
            if flags != _SIZED or size > 2 * header.page_size:
                raise NotWholeError(f"the header of page {number} cannot be read")
            if len(data) - begin < size:
                break
            try:
                page = lz4.block.decompress(data[begin : begin + size], uncompressed_size=header.page_size)
            except (lz4.block.LZ4BlockError, ValueError) as error:
                raise NotWholeError(f"page {number} cannot be decompressed: {error}") from None
            checksum = crc64.go_iso(page, crc64.go_iso(data[at:begin], checksum))
            at = begin + size
        self._checksum = checksum
        del self._rest[:at]


def check(file: Path) -> Header:
    """The header of a whole file.

    Raises:
        NotWholeError: It is not whole.
        OSError: It cannot be read.
    """
    scan = Scan()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            scan.feed(piece)
    return scan.end()


def unchanging(*, transaction: int, page_size: int, pages: int, milliseconds: int, node: int) -> bytes:
    """A whole file for one transaction that changes nothing. Litestream restores through it as through any other.

    Args:
        transaction: Its number.
        page_size: Of the database, in bytes.
        pages: How many the database has.
        milliseconds: Since 1970: when it is made.
        node: Who makes it, as a number; it makes the bytes its maker's own.
    """
    header = _HEADER.pack(_MAGIC, _NO_CHECKSUMS, page_size, pages, transaction, transaction, milliseconds)
    header = header[:72] + node.to_bytes(8) + header[80:]
    content = header + _PAGES_END + _EMPTY_INDEX + _NO_ROLLING_CHECKSUM
    return content + (crc64.go_iso(content) | _CHECKSUM_FLAG).to_bytes(_CHECKSUM_BYTES)
