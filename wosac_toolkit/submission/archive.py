"""The archive of a submission, walked through once, whatever it holds.

`wosac_toolkit.io.rollouts.iter_archive` reads the shards of an archive and raises at the first
fault. Here every member is told, and what is wrong with the layout becomes findings.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from wosac_toolkit.errors import FormatError
from wosac_toolkit.io import submission
from wosac_toolkit.io.files import one_line
from wosac_toolkit.io.rollouts import BoundedMember

MAX_MEMBERS = 100_000
"""Shards have numbers of five digits."""

MAX_EXPANSION = 500
"""How many bytes may come out of one of gzip, beyond the first 2 GB. Rollouts give 2 to 5; 32
copies of a scene at rest may give 250; a gzip bomb gives 1030."""

_FREE_BYTES = 1 << 31
_PIECE_BYTES = 1 << 18
_MAX_NAME = 255
_GZIP_MAGIC = b"\x1f\x8b"
_NUMBERED = re.compile(r"(?P<name>.*\.binproto)-(?P<number>\d{5})-of-(?P<total>\d{5})")

DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError, RecursionError)
"""What tarfile and zlib raise for damaged archives, also while a shard is read."""

Report = Callable[[str, str, str], None]
"""Takes a finding about the layout: code, what, file."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard, open at its first byte.

    Attributes:
        name: of the file or member.
        where: the place, as errors name it.
        stream: is only to be read forwards.
        size: bytes.
    """

    name: str
    where: str
    stream: io.BufferedReader
    size: int


class GzipStream:
    """A gzipped file, inflated as it is read; checksums are compared at the end of each stream.

    Unlike `gzip.GzipFile` it counts the gzip streams that follow one another, and does not go on
    where a small file expands without end.
    """

    def __init__(self, raw: BinaryIO, where: str) -> None:
        self.n_streams = 0
        self._raw, self._where = raw, where
        self._inflate: zlib._Decompress | None = None
        self._ahead = b""
        self._n_in = self._n_out = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes, at least one but at the end.

        Raises:
            EOFError: truncated.
            zlib.error: damaged.
            FormatError: expands too far.
        """
        data = b""
        while not data:
            if not self._ahead:
                self._ahead = self._raw.read(_PIECE_BYTES)
                self._n_in += len(self._ahead)
                if not self._ahead and self._inflate is None:
                    return b""
                if not self._ahead:
                    raise EOFError("ends in the middle of the compressed data")
            if self._inflate is None:
                if self.n_streams:  # Zeros may fill up a file behind the last stream.
                    self._ahead = self._ahead.lstrip(b"\0")
                    if not self._ahead:
                        continue
                self._inflate = zlib.decompressobj(31)
                self.n_streams += 1
            data = self._inflate.decompress(self._ahead, size)
            self._ahead = self._inflate.unconsumed_tail
            if self._inflate.eof:
                self._ahead = self._inflate.unused_data
                self._inflate = None
        self._n_out += len(data)
        if self._n_out > _FREE_BYTES and self._n_out > MAX_EXPANSION * self._n_in:
            raise FormatError(
                f"expands more than {MAX_EXPANSION}-fold, as no rollouts do",
                where=self._where,
                mend="a gzip bomb? pack the submission again",
            )
        return data


def iter_shards(path: Path, report: Report) -> Iterator[Shard]:
    """The shards of an archive, each to be read before the next is asked for.

    Members are never extracted; their names only choose which are read.

    Args:
        path: the archive.
        report: gets the findings about the layout.

    Raises:
        FormatError: truncated or damaged, or an archive that is no archive of rollouts.
    """
    file = str(path)
    if not path.name.endswith(".tar.gz"):
        what = "the server takes an archive named .tar.gz and no other"
        report("archive_name", what, file)
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not zipped and path.name.endswith("gz"):
                report("archive_name", "is not gzipped, whatever its name says", file)
            stream = GzipStream(raw, file) if zipped else raw
            with tarfile.open(
                fileobj=cast(IO[bytes], stream), mode="r|", bufsize=1 << 20, tarinfo=BoundedMember
            ) as archive:
                yield from _members(archive, file, report)
            while stream.read(1 << 20):  # To the end, where gzip has its checksum.
                pass
    except DAMAGE as error:
        raise not_sound(error, path) from None
    if isinstance(stream, GzipStream) and stream.n_streams > 1:
        what = (
            f"{stream.n_streams} gzip streams one after another; some readers stop after the first"
        )
        report("gzip_members", what, file)


def not_sound(error: Exception, path: Path) -> FormatError:
    """The error that says what tarfile or zlib found."""
    return FormatError(f"not a sound tar archive: {one_line(error)}", where=str(path))


def _members(archive: tarfile.TarFile, file: str, report: Report) -> Iterator[Shard]:
    names: set[str] = set()
    shards: list[str] = []
    n_members = 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all.
        n_members += 1
        if n_members > MAX_MEMBERS:
            raise FormatError(f"more than {MAX_MEMBERS} members", where=file)
        name = member.name if member.name.isprintable() else repr(member.name)
        if len(name) > _MAX_NAME:
            name = name[:_MAX_NAME] + "..."
        where = f"{file}, member {name}"
        if not _is_layout(member, name, where, report):
            continue
        if member.name in names:
            report("duplicate_member", "is there twice; extracting keeps the last", where)
        names.add(member.name)
        stream = archive.extractfile(member)
        if stream is None:  # Not for regular files; tarfile's types say that it may.
            continue
        shards.append(posixpath.basename(name))
        yield Shard(name, where, cast(io.BufferedReader, stream), member.size)
    report_numbers(shards, file, report)


def _is_layout(member: tarfile.TarInfo, name: str, where: str, report: Report) -> bool:
    """Whether a member is a shard to be read; whatever is odd about it is reported."""
    if len(member.name) > _MAX_NAME:
        report("stray_member", f"its name has {len(member.name)} characters", where)
        return False
    base = posixpath.basename(member.name.rstrip("/"))
    path = posixpath.normpath(member.name)
    if posixpath.isabs(member.name) or path == ".." or path.startswith("../"):
        report("unsafe_member", "its path leads out of the archive's folder", where)
        return False
    if member.isdir():
        if path != ".":
            report("nested_member", "a folder; the shards lie at the top of the archive", where)
        return False
    if not member.isreg() or member.issparse():
        report("not_a_file", "a link, device or sparse file; pack the shard itself", where)
        return False
    if base.startswith(".") or not submission.FILE_NAME.fullmatch(base):
        what = "is no shard by its name, which must be <name>.binproto-00000-of-00150"
        if base.startswith("._"):
            what = "is what macOS adds to archives; pack with COPYFILE_DISABLE=1"
        report("stray_member", what, where)
        return False
    if "/" in path:
        report("nested_member", "lies in a folder; shards lie at the top of the archive", where)
    return check_size(member.size, where, report)


def check_size(size: int, where: str, report: Report) -> bool:
    """Whether a shard is of a size that protobuf can read; reports it where not."""
    if size > submission.MAX_MESSAGE_BYTES:
        report("shard_too_large", f"{size} bytes, more than the 2 GB of a protobuf message", where)
        return False
    return True


def report_numbers(names: list[str], file: str, report: Report) -> None:
    """Report shards whose numbers do not go from 0 to one below the total that they name."""
    series: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            series.setdefault((match["name"], int(match["total"])), set()).add(int(match["number"]))
    if len(series) > 1:
        listed = ", ".join(f"{name}-*-of-{total:05d}" for name, total in sorted(series)[:4])
        report("shard_numbers", f"the shards are of {len(series)} series: {listed}", file)
    for (name, total), numbers in sorted(series.items()):
        missing = total - sum(number < total for number in numbers)
        if missing:
            first = next(number for number in range(total) if number not in numbers)
            shard = f"{name}-{first:05d}-of-{total:05d}"
            what = f"{missing} of the {total} shards are not there, the first: {shard}"
            report("shard_numbers", what, file)
        if beyond := [number for number in numbers if number >= total]:
            what = f"shard {min(beyond)} of {total}; numbers start at 0"
            report("shard_numbers", what, file)
