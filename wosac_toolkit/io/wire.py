"""The protobuf wire format in plain Python: its numbers, writers, and a reader for a few fields.

Whole messages are read by the kernels of `wire_kernels`, whose import takes numba's half a second.
"""

from __future__ import annotations

from functools import lru_cache

from wosac_toolkit.errors import FormatError

VARINT, FIXED64, LENGTH_DELIMITED, START_GROUP, END_GROUP, FIXED32 = range(6)


def malformed(message: str, offset: int, where: str) -> FormatError:
    """The error that says at which byte a `message` is malformed."""
    return FormatError(
        f"not a valid {message} message, malformed at byte {offset}",
        where=where,
        mend="the record is damaged or of another kind; fetch or write it again",
    )


def decode_varint(data: bytes | memoryview, pos: int) -> tuple[int, int]:
    """The unsigned value of the varint at `pos`, and the position after it.

    Raises:
        IndexError: it does not end, neither within the data nor after 10 bytes.
    """
    value = data[pos]
    if value < 0x80:
        return value, pos + 1
    value &= 0x7F
    for n in range(1, 10):
        byte = data[pos + n]
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, pos + n + 1
    raise IndexError(pos)


@lru_cache(maxsize=1 << 12)  # tags, small numbers and ids come again and again
def encode_varint(value: int) -> bytes:
    """`value` as a varint; negative numbers take 10 bytes, as protobuf writes int32 and int64."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_tag(field: int, wire_type: int) -> bytes:
    """The tag of a field."""
    return encode_varint(field << 3 | wire_type)


def encode_block(field: int, payload: bytes | bytearray | memoryview) -> bytes:
    """A length-delimited field: message, string or packed list."""
    return b"".join((encode_tag(field, LENGTH_DELIMITED), encode_varint(len(payload)), payload))
