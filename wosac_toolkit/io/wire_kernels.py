"""Readers of the protobuf wire format for kernels.

Every reader takes `(data, pos, end)` and returns the position after what it read, which never lies
beyond `end`. Where the bytes are malformed it returns a *poisoned* position, `POISON + offset`: as
no message ends there, loops of the form `while pos < end` stop, further readers hand it on
unread, and one test of the last position, `check`, tells whether a whole message was sound.

    while pos < end:
        tag, pos = varint(data, pos, end)
        if tag == 2 << 3 | LENGTH_DELIMITED:
            start, pos = block(data, pos, end)
            pos = read_child(data, start, pos, ...)
        else:
            pos = skip(data, pos, end, tag)
    return pos

Enums and integers of any width are read as `varint`; the caller narrows them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from wosac_toolkit.io.wire import (
    END_GROUP,
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    START_GROUP,
    VARINT,
    malformed,
)
from wosac_toolkit.kernels.jit import kernel

ByteArray: TypeAlias = npt.NDArray[np.uint8]
# An int or a NumPy integer; kernels see int64 (or the unsigned bits of a float) either way.
Integer: TypeAlias = Any

POISON = 1 << 62
MAX_GROUP_DEPTH = 100


def as_array(data: bytes | bytearray | memoryview) -> ByteArray:
    """`data` as a read-only array of bytes, without a copy."""
    return np.frombuffer(memoryview(data).toreadonly(), dtype=np.uint8)


def check(pos: Integer, message: str, where: str) -> None:
    """Raise where `pos`, the position that the reader of a `message` ended on, is poisoned.

    Raises:
        FormatError: the message is malformed; names the byte.
    """
    if pos >= POISON:
        raise malformed(message, int(pos) - POISON, where)


@kernel
def poison(pos: Integer) -> Integer:
    """The poisoned position for malformed bytes at `pos`; what is poisoned stays as it is."""
    return pos if pos >= POISON else POISON + pos


@kernel
def varint(data: ByteArray, pos: Integer, end: Integer) -> tuple[Integer, Integer]:
    """The int64 value of a varint of at most 10 bytes, and the position after it."""
    value = np.uint64(0)
    shift = np.uint64(0)
    limit = min(pos + 10, end)
    while pos < limit:
        byte = data[pos]
        pos += 1
        value |= np.uint64(byte & np.uint8(0x7F)) << shift
        if byte < 128:
            return np.int64(value), pos
        shift += np.uint64(7)
    return np.int64(0), poison(pos)


@kernel
def bits32(data: ByteArray, pos: Integer) -> Integer:
    """The uint32 at `pos`, not checked; to be stored in the uint32 view of float32 arrays."""
    i = np.uint64(pos)
    return (
        np.uint32(data[i])
        | np.uint32(data[i + np.uint64(1)]) << np.uint32(8)
        | np.uint32(data[i + np.uint64(2)]) << np.uint32(16)
        | np.uint32(data[i + np.uint64(3)]) << np.uint32(24)
    )


@kernel
def bits64(data: ByteArray, pos: Integer) -> Integer:
    """The uint64 at `pos`, not checked; to be stored in the uint64 view of float64 arrays."""
    i = np.uint64(pos)
    return (
        np.uint64(data[i])
        | np.uint64(data[i + np.uint64(1)]) << np.uint64(8)
        | np.uint64(data[i + np.uint64(2)]) << np.uint64(16)
        | np.uint64(data[i + np.uint64(3)]) << np.uint64(24)
        | np.uint64(data[i + np.uint64(4)]) << np.uint64(32)
        | np.uint64(data[i + np.uint64(5)]) << np.uint64(40)
        | np.uint64(data[i + np.uint64(6)]) << np.uint64(48)
        | np.uint64(data[i + np.uint64(7)]) << np.uint64(56)
    )


@kernel
def fixed32(data: ByteArray, pos: Integer, end: Integer) -> tuple[Integer, Integer]:
    """The bits of a fixed32 or float, and the position after it."""
    if pos > end - 4:
        return np.uint32(0), poison(pos)
    return bits32(data, pos), pos + 4


@kernel
def fixed64(data: ByteArray, pos: Integer, end: Integer) -> tuple[Integer, Integer]:
    """The bits of a fixed64 or double, and the position after it."""
    if pos > end - 8:
        return np.uint64(0), poison(pos)
    return bits64(data, pos), pos + 8


@kernel
def block(data: ByteArray, pos: Integer, end: Integer) -> tuple[Integer, Integer]:
    """First byte of a length-delimited value (message, string, packed list) and the one after."""
    length, start = varint(data, pos, end)
    if length < 0 or length > end - start:
        start = poison(start)
        return start, start
    return start, start + length


@kernel
def skip(data: ByteArray, pos: Integer, end: Integer, tag: Integer) -> Integer:
    """The position after the value of an unknown field, which starts with `tag`; groups too."""
    if tag & 7 == START_GROUP:
        return _skip_group(data, pos, end, tag)
    return _skip_value(data, pos, end, tag)


@kernel
def _skip_value(data: ByteArray, pos: Integer, end: Integer, tag: Integer) -> Integer:
    if tag < 8 or tag >= 1 << 32:  # field number 0, or above 2**29 - 1
        return poison(pos)
    wire_type = tag & 7
    if wire_type == VARINT:
        _, pos = varint(data, pos, end)
    elif wire_type == LENGTH_DELIMITED:
        _, pos = block(data, pos, end)
    elif wire_type == FIXED64:
        _, pos = fixed64(data, pos, end)
    elif wire_type == FIXED32:
        _, pos = fixed32(data, pos, end)
    elif wire_type != START_GROUP:
        return poison(pos)
    return pos


@kernel
def _skip_group(data: ByteArray, pos: Integer, end: Integer, tag: Integer) -> Integer:
    open_groups = np.empty(MAX_GROUP_DEPTH, np.int64)
    depth = 0
    while True:
        pos = _skip_value(data, pos, end, tag)  # of a group, checks the field number alone
        if tag & 7 == START_GROUP:
            if depth == MAX_GROUP_DEPTH:
                return poison(pos)
            open_groups[depth] = tag >> 3
            depth += 1
        if pos >= end:
            return poison(pos)
        tag, pos = varint(data, pos, end)
        while tag & 7 == END_GROUP:
            depth -= 1
            if tag >> 3 != open_groups[depth]:
                return poison(pos)
            if depth == 0:
                return pos
            tag, pos = varint(data, pos, end)


@kernel
def count_varints(data: ByteArray, pos: Integer, end: Integer) -> tuple[Integer, Integer]:
    """Number of varints of a packed list that fills `data[pos:end]`, and the position after it."""
    n = 0
    while pos < end:
        _, pos = varint(data, pos, end)
        n += 1
    return n, pos
