"""TFRecord files, the container of WOMD's scenes, without TensorFlow.

A record is the length of its payload (uint64, little-endian), a checksum of those 8 bytes, the
payload, and a checksum of the payload. Checksums are CRC-32C, rotated and offset as TensorFlow
does it. Files may be gzipped, which their first bytes tell, not their names; offsets are then
those of the uncompressed stream.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import google_crc32c
import numpy as np

from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io.files import atomic_write

# One file, folder, glob, `name@N` or a list of these, as text with commas or as a sequence.
ShardPath: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# No scene comes near this; it bounds what a damaged gzip file can make us allocate.
MAX_RECORD_BYTES = 1 << 30

_SHARD_NAME = re.compile(r"[^.].*\.tfrecords?(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE)
_SHARD_COUNT = re.compile(r"(?P<name>.+)@(?P<n>\d{1,5})")
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_FRAME_BYTES = _HEADER.size + _CHECKSUM.size
_MAX_FRAME_BYTES = _FRAME_BYTES + MAX_RECORD_BYTES
_GZIP_MAGIC = b"\x1f\x8b\x08"
_MEND = "fetch the file again"
_NAMES = "WOMD's scenes are files named like training.tfrecord-00000-of-01000"


@dataclass(frozen=True, slots=True)
class RecordRef:
    """Where a record lies.

    Attributes:
        path: its file.
        offset: byte of the file (of the uncompressed stream, if gzipped) where its header starts.
        length: bytes of its payload.
    """

    path: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}"


def find_shards(path: ShardPath) -> list[Path]:
    """The TFRecord files that `path` stands for.

    Args:
        path: one file of any name; a folder, which stands for the files named `*.tfrecord*` in it
            and in its sub-folders; a glob; `name@N` for `name-00000-of-0000N` and so on; or
            several of these, as a sequence or separated by commas.

    Returns:
        Files in the order given, those of a folder or glob sorted; each one once.

    Raises:
        WosacError: nothing is there.
    """
    if not isinstance(path, (str, os.PathLike)):
        shards = [shard for part in path for shard in find_shards(part)]
        if not shards:
            raise WosacError("no TFRecord files given", mend="give a file, folder or glob")
        return list(dict.fromkeys(shards))

    text = os.fspath(path)
    if os.path.isfile(text):
        return [Path(text)]
    if os.path.isdir(text):
        shards = _shards_below(Path(text))
        if not shards:
            raise WosacError("no TFRecord files in this folder", where=text, mend=_NAMES)
        return shards
    if "," in text:
        return find_shards([part for part in text.split(",") if part])
    if numbered := _SHARD_COUNT.fullmatch(text):
        return _numbered_shards(numbered["name"], int(numbered["n"]))
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
    shards = [
        shard
        for match in matches
        for shard in (_shards_below(match) if match.is_dir() else [match])
    ]
    if not shards:
        raise WosacError("no such TFRecord file, folder or glob", where=text, mend=_NAMES)
    return list(dict.fromkeys(shards))


def _shards_below(folder: Path) -> list[Path]:
    found = [
        entry
        for pattern in ("*", "*/*")
        for entry in folder.glob(pattern)
        if _SHARD_NAME.fullmatch(entry.name) and entry.is_file()
    ]
    return sorted(found)


def _numbered_shards(name: str, n: int) -> list[Path]:
    shards = [Path(f"{name}-{i:05d}-of-{n:05d}") for i in range(n)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise WosacError(
            f"{len(missing)} of {n} shards are missing" + (f", first {missing[0]}" * bool(missing)),
            where=f"{name}@{n}",
            mend="fetch them, or name a folder to take the shards that are there",
        )
    return shards


def iter_records(file: str | os.PathLike[str]) -> Iterator[tuple[RecordRef, bytes]]:
    """The records of one file in order, with both checksums checked.

    Raises:
        FormatError: a truncated or corrupt record; names file, record and byte offset.
    """
    path = os.fspath(file)
    gzipped = _is_gzip(path)
    size = None if gzipped else os.path.getsize(path)
    number = offset = 0
    with _open_gzip(path) if gzipped else open(path, "rb") as stream:
        while (payload := _read_at(stream, offset, size, _where(path, offset, number))) is not None:
            yield RecordRef(path, offset, len(payload)), payload
            offset += _FRAME_BYTES + len(payload)
            number += 1


def iter_views(file: str | os.PathLike[str]) -> Iterator[tuple[RecordRef, memoryview]]:
    """The records of one file in order, their payloads as views of the mapped file.

    What of a payload is not looked at is not read either, so its checksum is not checked; that of
    its length is. A gzipped file has to be read whole, and is checked.

    Raises:
        FormatError: a truncated or corrupt record; names file, record and byte offset.
    """
    path = os.fspath(file)
    if _is_gzip(path):
        for ref, payload in iter_records(path):
            yield ref, memoryview(payload)
        return
    size = os.path.getsize(path)
    if not size:
        return
    mapped = memoryview(np.memmap(path, np.uint8, mode="r"))  # type: ignore[arg-type]
    number = offset = 0
    while offset < size:
        head = bytes(mapped[offset : offset + _HEADER.size])
        length = _length(head, size - offset, _where(path, offset, number))
        start = offset + _HEADER.size
        yield RecordRef(path, offset, length), mapped[start : start + length]
        offset += _FRAME_BYTES + length
        number += 1


def iter_refs(file: str | os.PathLike[str]) -> Iterator[RecordRef]:
    """Where the records of one file lie, without reading their payloads (unless it is gzipped).

    Raises:
        FormatError: a truncated or corrupt record; names file, record and byte offset.
    """
    return (ref for ref, _ in iter_views(file))


def read_record(ref: RecordRef) -> bytes:
    """The payload of one record, with both checksums checked.

    In a gzipped file the stream is decompressed up to the record. It is kept open for the next
    call, one a process, so that reading records in order costs no more than one pass.

    Raises:
        FormatError: there is no sound record of this length.
    """
    if _is_gzip(ref.path):
        stat = os.stat(ref.path)
        version = stat.st_ino, stat.st_size, stat.st_mtime_ns
        with _gzip_lock:
            stream = _kept_gzip(ref.path, version, os.getpid())
            payload = _read_at(stream, ref.offset, None, str(ref))
    else:
        with open(ref.path, "rb") as stream:
            payload = _read_at(stream, ref.offset, os.path.getsize(ref.path), str(ref))
    if payload is None or len(payload) != ref.length:
        raise FormatError(
            f"no record of {ref.length} bytes is here",
            where=str(ref),
            mend="the file has changed since it was indexed; index it again",
        )
    return payload


_gzip_lock = threading.Lock()


@lru_cache(maxsize=1)
def _kept_gzip(path: str, version: tuple[int, int, int], process: int) -> BinaryIO:
    """The stream of `read_record`: another one once the file has changed, and in a forked process,
    which shares the position in its files with its parent.
    """
    return _open_gzip(path)


def write_records(path: str | os.PathLike[str], payloads: Iterable[bytes]) -> None:
    """Write a TFRecord file; it appears under its name when it is complete."""
    with atomic_write(Path(path)) as stream:
        for payload in payloads:
            write_record(stream, payload)


def write_record(stream: BinaryIO, payload: bytes) -> None:
    """Append one record to an open file."""
    length = len(payload)
    stream.write(_HEADER.pack(length, _masked_crc(length.to_bytes(8, "little"))))
    stream.write(payload)
    stream.write(_CHECKSUM.pack(_masked_crc(payload)))


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as stream:
        head = stream.read(_HEADER.size)
    # The length of a plain record can begin with these bytes too; its checksum then tells.
    return head.startswith(_GZIP_MAGIC) and not _is_header(head)


def _open_gzip(path: str) -> BinaryIO:
    return gzip.open(path)  # type: ignore[return-value]


def _is_header(head: bytes) -> bool:
    return len(head) == _HEADER.size and _masked_crc(head[:8]) == _HEADER.unpack(head)[1]


def _where(path: str, offset: int, number: int) -> str:
    return f"{path}, record {number}, byte {offset}"


def _read_at(stream: BinaryIO, offset: int, size: int | None, where: str) -> bytes | None:
    """The payload of the record at `offset` of a stream of `size` bytes, None where it ends.

    The size of a gzipped stream is not known before its end.
    """
    try:
        if stream.tell() != offset:
            stream.seek(offset)
        head = stream.read(_HEADER.size)
        if not head:
            return None
        length = _length(head, _MAX_FRAME_BYTES if size is None else size - offset, where)
        payload = stream.read(length)
        checksum = stream.read(_CHECKSUM.size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"damaged gzip data: {error}", where=where, mend=_MEND) from None
    if len(checksum) < _CHECKSUM.size:
        raise FormatError("truncated record", where=where, mend=_MEND)
    if _masked_crc(payload) != _CHECKSUM.unpack(checksum)[0]:
        raise FormatError("corrupt record, its checksum differs", where=where, mend=_MEND)
    return payload


def _length(head: bytes, n_left: int, where: str) -> int:
    """The length that a record's header claims, once it is known to be no more than is left."""
    if len(head) < _HEADER.size:
        raise FormatError("truncated record", where=where, mend=_MEND)
    if not _is_header(head):
        raise FormatError(
            "not a TFRecord, or a corrupt one: the checksum of its length differs",
            where=where,
            mend=_MEND,
        )
    length: int = _HEADER.unpack(head)[0]
    if length > n_left - _FRAME_BYTES:
        raise FormatError(
            f"truncated record, {length} bytes of payload are announced and at most "
            f"{max(n_left - _FRAME_BYTES, 0)} are there",
            where=where,
            mend=_MEND,
        )
    return length
