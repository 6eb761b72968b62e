"""One gzip stream made of parts that are compressed apart.

A part is raw deflate that refers to nothing before it and ends on a whole byte, so parts that
follow one another are one deflate stream. Several gzip streams in a file would be simpler, but
`tarfile` in stream mode, and whoever reads with a single inflater, stops after the first of them
with "unexpected end of data". The checksum of the whole comes from those of the parts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

HEADER = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
"""Of a gzip stream without name and time of change, from no system in particular."""

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # The polynomial 1; bits are reflected.


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of some bytes of the stream.

    Attributes:
        raw_size: bytes before compression.
        crc: their CRC-32.
        size: bytes of the deflated part.
    """

    raw_size: int = 0
    crc: int = 0
    size: int = 0

    def then(self, other: Part) -> Part:
        """The two, one after the other."""
        crc = combined_crc(self.crc, other.crc, other.raw_size)
        return Part(self.raw_size + other.raw_size, crc, self.size + other.size)


class PartWriter:
    """Deflates bytes into one part.

    Args:
        write: gets the deflated bytes.
        level: of zlib, 0 to 9.
    """

    def __init__(self, write: Callable[[bytes], object], level: int) -> None:
        self._write = write
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 9)
        self._crc = self.raw_size = self._size = 0

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._crc = zlib.crc32(data, self._crc)
        self.raw_size += len(data)
        self._put(self._deflate.compress(data))

    def end(self, last: bool = False) -> Part:
        """Finish the part; `last` where it ends the stream."""
        self._put(self._deflate.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH))
        return Part(self.raw_size, self._crc, self._size)

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        self._write(data)


def deflated(data: bytes, last: bool = False) -> tuple[bytes, Part]:
    """A few bytes as a part of their own."""
    pieces: list[bytes] = []
    writer = PartWriter(pieces.append, 9)
    writer.add(data)
    part = writer.end(last)
    return b"".join(pieces), part


def trailer(whole: Part) -> bytes:
    """What ends a gzip stream."""
    return struct.pack("<II", whole.crc, whole.raw_size & 0xFFFFFFFF)


def combined_crc(first: int, second: int, length: int) -> int:
    """The CRC-32 of two strings, one after the other, from theirs; the second has `length` bytes.

    To append n zero bits multiplies a checksum by x**n modulo the polynomial of CRC-32, as in
    zlib's `crc32_combine`, which Python does not offer.
    """
    shift, power, n = _ONE, 1 << 30, 8 * length  # 1, x
    while n:
        if n & 1:
            shift = _times(shift, power)
        power = _times(power, power)
        n >>= 1
    return _times(first, shift) ^ second


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo that of CRC-32."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
