"""One door to rollouts in files: a file, a folder or a glob, in any of the formats.

=========================  ================================================================
files                      content
=========================  ================================================================
`<scenario_id>.npz`        one scenario, see `io.npz`
`<scenario_id>.pkl`        one scenario, as CAT-K and TrajTok write them, see `io.pickled`
`*.binproto`, `-N-of-M`    many scenarios, see `io.submission`
`.tar.gz`, `.tgz`, `.tar`  an archive of such shards, read in a stream, never extracted
=========================  ================================================================

A folder may mix them; its other files, hidden files and subfolders are passed over. The scenario of
an `.npz` or a pickle is told by the file's name, so that a folder is indexed without opening them;
content that names another scenario is an error when it is read. Two files may hold the same
scenario: both are given, and whoever scores them reports it.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple, Self, TypeAlias, cast

from wosac_toolkit.errors import FormatError, RolloutsError
from wosac_toolkit.io import submission
from wosac_toolkit.io.files import one_line
from wosac_toolkit.io.npz import read_npz
from wosac_toolkit.io.pickled import pickle_scenario_id, read_pickle
from wosac_toolkit.rollouts import Rollouts

PathLike: TypeAlias = str | os.PathLike[str]
Format: TypeAlias = Literal["npz", "pickle", "submission", "archive"]

ACCEPTED = (
    "<scenario_id>.npz, <scenario_id>.pkl, submission shards *.binproto[-00000-of-00150] "
    "or a .tar.gz of shards"
)

_SUFFIXES: dict[str, Format] = {
    ".npz": "npz",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".tar.gz": "archive",
    ".tgz": "archive",
    ".tar": "archive",
}
# Members that describe the next one, and what they may hold.
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RolloutsRef:
    """Where the rollouts of one scenario lie: small, and cheap to send to another process.

    Attributes:
        scenario_id: as the file tells it without being read in full.
        path: the file.
        offset: first byte of the message in a shard; 0 in the other formats.
        length: bytes of the message in a shard; 0 in the other formats.
        format: of the file.
    """

    scenario_id: str
    path: Path
    offset: int
    length: int
    format: Format

    @property
    def where(self) -> str:
        """The place, as errors name it."""
        return str(self.path) + (f", message at byte {self.offset}" if self.length else "")

    def read(self) -> Rollouts:
        """The rollouts.

        Raises:
            FormatError: damaged, or changed since it was indexed.
            RolloutsError: not sound rollouts of `scenario_id`.
        """
        if self.format == "npz":
            return read_npz(self.path)
        if self.format == "pickle":
            return read_pickle(self.path)
        try:
            with open(self.path, "rb", buffering=0) as stream:
                stream.seek(self.offset)
                message = stream.read(self.length)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}", where=self.where) from None
        if len(message) != self.length:
            raise FormatError("shorter than when it was indexed", where=self.where)
        return _checked(message, self.scenario_id, self.where)


class ArchivedRollouts(NamedTuple):
    """The rollouts of one scenario from an archive, still serialized: to be sent to a worker.

    Attributes:
        scenario_id: as the message tells it.
        message: a serialized `ScenarioRollouts`.
        where: the place, as errors name it.
    """

    scenario_id: str
    message: bytes
    where: str

    def read(self) -> Rollouts:
        """The rollouts, decoded; raises as `RolloutsRef.read`."""
        return _checked(self.message, self.scenario_id, self.where)


def load_rollouts(path: PathLike) -> Iterator[Rollouts]:
    """The rollouts of every scenario in a file, a folder or the files that a glob matches.

    They come file by file, sorted by name, one scenario in memory at a time.

    Args:
        path: see the module's head for the formats.

    Raises:
        RolloutsError: nothing found, or rollouts that do not fit together.
        FormatError: a file that is damaged or not what its name says.
    """
    return _load(rollout_files(path))


def index_rollouts(path: PathLike) -> list[RolloutsRef]:
    """Where each scenario lies in a file, a folder or the files that a glob matches.

    Shards are hopped through from message to message; other files are told by their names alone.

    Raises:
        RolloutsError: nothing found, or an archive, which only `iter_archive` reads.
        FormatError: a damaged shard.
    """
    return [ref for file in rollout_files(path) for ref in _index(file)]


def rollout_files(path: PathLike) -> list[Path]:
    """The files of rollouts, archives included, in a folder or matched by a glob, sorted by name.

    Raises:
        RolloutsError: nothing found, with the formats that would be.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        with os.scandir(name) as entries:
            found = [Path(e.path) for e in entries if format_of(e.name) and e.is_file()]
        missing = "no rollouts in this folder"
    elif os.path.exists(name):
        found = [Path(name)] if format_of(os.path.basename(name)) else []
        missing = "not a file of rollouts"
    else:
        matches = map(Path, glob.glob(name, recursive=True))
        found = [match for match in matches if format_of(match.name) and match.is_file()]
        missing = "no such file or folder"
    if not found:
        raise RolloutsError(missing, where=name, mend=f"accepted are {ACCEPTED}")
    return sorted(found)


def is_archive(path: PathLike) -> bool:
    """Whether the file is an archive by its name: to be read with `iter_archive`."""
    return format_of(os.path.basename(os.fspath(path))) == "archive"


def format_of(name: str) -> Format | None:
    """The format of the file `name`; None for hidden files and those that hold no rollouts."""
    if name.startswith("."):
        return None
    if submission.FILE_NAME.fullmatch(name):
        return "submission"
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), None)


def iter_archive(path: PathLike) -> Iterator[ArchivedRollouts]:
    """The messages of the shards in a tar archive, gzipped or not, read in a stream.

    One message is in memory at a time, nothing is written, and the members' names only choose which
    are read. A `.tar.gz` that holds a plain tar is read as one.

    Raises:
        FormatError: not an archive, truncated, damaged, a shard that is no regular file or above
            2 GB, or no shard at all.
        RolloutsError: a message without scenario id.
    """
    path = Path(path)
    n_shards = 0
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
            with tarfile.open(
                fileobj=stream, mode="r|", bufsize=1 << 20, tarinfo=BoundedMember
            ) as archive:
                for member in archive:
                    if format_of(os.path.basename(member.name)) == "submission":
                        n_shards += 1
                        name = member.name if member.name.isprintable() else repr(member.name)
                        yield from _shard(archive, member, f"{path}, member {name}")
            while stream.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError, RecursionError) as error:
        raise FormatError(f"not a sound tar archive: {one_line(error)}", where=str(path)) from None
    if not n_shards:
        raise FormatError(
            "an archive without shards",
            where=str(path),
            mend="its members must be named <name>.binproto-00000-of-00150",
        )


class BoundedMember(tarfile.TarInfo):
    """A member whose claimed size is checked as soon as its header is read.

    `tarfile` reads the long names and the attributes of members into memory, whatever their size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The member of a header; `tarfile.ReadError` where it claims too much."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _HEADERS and member.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"member {member.name!r} claims {member.size} bytes")
        return member


def _shard(
    archive: tarfile.TarFile, member: tarfile.TarInfo, where: str
) -> Iterator[ArchivedRollouts]:
    stream = archive.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise FormatError("not a regular file", where=where, mend="pack the shard itself")
    if member.size > submission.MAX_MESSAGE_BYTES:
        raise FormatError(f"claims {member.size} bytes, more than the 2 GB of a shard", where=where)
    messages = submission.iter_messages(
        cast(io.BufferedReader, stream), where=where, size=member.size
    )
    for offset, message in messages:
        place = f"{where}, message at byte {offset}"
        scenario_id = submission.message_scenario_id(message, where=place)
        yield ArchivedRollouts(scenario_id, message, place)


def _load(files: list[Path]) -> Iterator[Rollouts]:
    for file in files:
        if is_archive(file):
            for message in iter_archive(file):
                yield message.read()
        else:
            for ref in _index(file):
                yield ref.read()


def _index(file: Path) -> Iterator[RolloutsRef]:
    form = format_of(file.name)
    if form == "npz":
        yield RolloutsRef(file.stem, file, 0, 0, form)
    elif form == "pickle":
        yield RolloutsRef(pickle_scenario_id(file), file, 0, 0, form)
    elif form == "submission":
        try:
            with open(file, "rb") as stream:
                for found in submission.scan_submission(stream, where=str(file)):
                    scenario_id, offset, length = found
                    yield RolloutsRef(scenario_id, file, offset, length, form)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}", where=str(file)) from None
    else:
        raise RolloutsError(
            "an archive can be read from end to end only, not indexed",
            where=str(file),
            mend="unpack it into a folder",
        )


def _checked(message: bytes, scenario_id: str, where: str) -> Rollouts:
    rollouts = submission.decode_scenario_rollouts(message, where=where)
    if rollouts.scenario_id != scenario_id:
        raise RolloutsError(
            f"holds scenario {rollouts.scenario_id!r}, not {scenario_id!r}",
            where=where,
            mend="it changed after it was indexed, or names two scenarios",
        )
    return rollouts
