"""Rollouts as the archive that is uploaded: `submission.binproto-00000-of-00150`, ..., gzipped.

Shards are encoded and deflated side by side, each into a file of its own in a hidden folder beside
the archive, and appended in their order as soon as all before them are. A part that is finished
has a note with its checksums; whoever resumes keeps the parts whose note is about the same
rollouts, and cuts the archive behind the last part that was appended as a whole. The bytes depend
on the rollouts, the metadata, the number of shards, the level and the zlib library, and on nothing
else: neither on the number of workers nor on the time nor on the format that the rollouts were in.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wosac_toolkit import __version__
from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.errors import RolloutsError, WosacError
from wosac_toolkit.io import submission
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.io.rollouts import RolloutsRef, index_rollouts
from wosac_toolkit.io.submission import SubmissionMetadata
from wosac_toolkit.io.tfrecord import ShardPath
from wosac_toolkit.submission import gzip_parts
from wosac_toolkit.submission.findings import severity
from wosac_toolkit.submission.gzip_parts import Part, PartWriter
from wosac_toolkit.submission.metadata import check_metadata
from wosac_toolkit.validation import Finding
from wosac_toolkit.workers import Crew, n_workers, progress_bar

N_SHARDS = 150
"""As many as the test and validation splits have; the rules allow any number."""

LEVEL = 1
"""Of gzip. Floats deflate hardly better with more, see docs/submission.md."""

_BLOCK = tarfile.BLOCKSIZE
_SYNC_BYTES = 1 << 28  # What the parts take of the disk beside the archive.


class PackError(WosacError):
    """Rollouts or metadata that would make no valid submission.

    Attributes:
        findings: what is wrong.
    """

    def __init__(
        self, what: str, *, where: str = "", mend: str = "", findings: Sequence[Finding] = ()
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.findings = tuple(findings)


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack_submission` has written.

    Attributes:
        path: the archive.
        n_scenarios: scenes in it.
        n_shards: shards in it.
        n_kept: shards that an earlier, interrupted run had finished.
        raw_bytes: before compression.
        n_bytes: of the archive.
    """

    path: Path
    n_scenarios: int
    n_shards: int
    n_kept: int
    raw_bytes: int
    n_bytes: int


def pack_submission(
    rollouts: str | os.PathLike[str],
    out: str | os.PathLike[str],
    metadata: SubmissionMetadata,
    *,
    challenge: str | Challenge = "2025",
    scenarios: ShardPath | None = None,
    n_shards: int | None = None,
    level: int = LEVEL,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Packed:
    """Write the archive of a submission; the same call resumes one that was interrupted.

    One scene a worker is in memory at a time. A script that uses more than one worker must call
    this below `if __name__ == "__main__":`.

    Args:
        rollouts: a folder, a glob or a file of shards, `.npz` or pickles; not an archive.
        out: the archive, named `.tar.gz`; it appears when it is complete.
        metadata: goes into every shard.
        challenge: the version of the metric that the submission is for.
        scenarios: the scenes that must be covered; None for whatever there are rollouts of.
        n_shards: None for 150, or one a scene where there are fewer.
        level: of gzip, 0 to 9.
        workers: processes; None for one a CPU, fewer where there is little to pack.
        overwrite: replace an archive that is there.
        progress: show a progress bar on stderr.

    Raises:
        PackError: the metadata are against the rules; rollouts that are missing, double, unsound or
            not 32 of 80 steps, in Scenario Generation 91 and with sizes.
        WosacError: anything else that is wrong with arguments or files.
    """
    out, challenge = Path(out), get_challenge(challenge)
    _check_target(out, overwrite)
    _refuse(
        [f for f in check_metadata(metadata) if severity(f) == "error"],
        "metadata that the rules do not allow",
        "give them as flags or in the file of --metadata",
    )
    refs = sorted(index_rollouts(rollouts), key=lambda ref: ref.scenario_id)
    _refuse(_join(refs, scenarios, progress), "not the rollouts of a split")
    tail = submission.encode_metadata(metadata)
    folder = out.with_name(f".{out.name}.parts")
    jobs = _plan(refs, challenge, n_shards, folder, tail, level)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, out):
        with _Archive(folder, jobs) as archive:
            todo = [job for job in jobs[archive.n_appended :] if job.finished() is None]
            n_scenes = sum(len(job.refs) for job in todo)
            with (
                Crew(
                    functools.partial(_deflate, challenge, tail, level),
                    min(n_workers(workers, n_scenes), len(todo) or 1),
                ) as crew,
                progress_bar(n_scenes, what="packing", show=progress) as bar,
            ):
                archive.append()
                for job, findings in crew.map(todo):
                    _refuse(findings, f"rollouts that cannot be packed, in shard {job.name}")
                    bar.update(len(job.refs))
                    archive.append()
            whole = archive.end()
        os.replace(archive.path, out)
        shutil.rmtree(folder, ignore_errors=True)
    n_kept = len(jobs) - len(todo)
    return Packed(out, len(refs), len(jobs), n_kept, whole.raw_size, out.stat().st_size)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.name.endswith(".tar.gz") or out.name.startswith("."):
        raise WosacError(
            "not the name of a submission", where=str(out), mend="the server takes .tar.gz only"
        )
    if out.is_dir():
        raise WosacError("is a folder", where=str(out), mend="name the archive to write")
    if out.exists() and not overwrite:
        raise WosacError("is there already", where=str(out), mend="--overwrite replaces it")
    if not out.parent.is_dir():
        raise WosacError("no such folder", where=str(out.parent), mend="make it first")


def _refuse(findings: Sequence[Finding], what: str, mend: str = "") -> None:
    if findings:
        mend = mend or "nothing was written; `wosac validate` on the rollouts lists everything"
        raise PackError(what, mend=mend, findings=findings)


def _join(
    refs: Sequence[RolloutsRef], scenarios: ShardPath | None, progress: bool
) -> list[Finding]:
    """Rollouts that are there twice, and those that are not of the scenes or missing."""
    from wosac_toolkit.io.scenarios import index_scenarios

    n_times = Counter(ref.scenario_id for ref in refs)
    findings = [
        Finding("duplicate_rollouts", "is there more than once", ref.scenario_id, file=ref.where)
        for ref in refs
        if n_times[ref.scenario_id] > 1
    ]
    if scenarios is not None:
        records = index_scenarios(scenarios, progress=progress)
        findings += [
            Finding("no_rollouts", "has no rollouts", scenario_id)
            for scenario_id in records
            if scenario_id not in n_times
        ]
        findings += [
            Finding("no_scenario", "is not in the scenario files", ref.scenario_id, file=ref.where)
            for ref in refs
            if ref.scenario_id not in records
        ]
    return findings


# --------------------------------------------------------------------------------------------------
# Shards


@dataclass(frozen=True, slots=True)
class _Job:
    """One shard.

    Attributes:
        name: as a member of the archive.
        refs: its rollouts, by scenario id.
        part: where it is written, deflated.
        fingerprint: of everything that its bytes depend on.
    """

    name: str
    refs: Sequence[RolloutsRef]
    part: Path
    fingerprint: str

    def __str__(self) -> str:
        return self.name

    @property
    def note(self) -> Path:
        """The file that says that the part is finished."""
        return self.part.with_suffix(".json")

    def noted(self) -> Part | None:
        """What the note says, None where there is none about this job."""
        try:
            fields = json.loads(self.note.read_text("utf-8"))
            if fields.pop("fingerprint") != self.fingerprint:
                return None
            part = Part(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        values = dataclasses.astuple(part)
        return part if all(type(value) is int and value >= 0 for value in values) else None

    def finished(self) -> Part | None:
        """What the note says, None where the part is not there as a whole."""
        part = self.noted()
        try:
            whole = part is not None and self.part.stat().st_size == part.size
        except OSError:
            whole = False
        return part if whole else None

    def finish(self, part: Part) -> None:
        """Write the note."""
        fields = {"fingerprint": self.fingerprint, **dataclasses.asdict(part)}
        with atomic_write(self.note) as stream:
            stream.write(json.dumps(fields).encode())


def _plan(
    refs: Sequence[RolloutsRef],
    challenge: Challenge,
    n_shards: int | None,
    folder: Path,
    tail: bytes,
    level: int,
) -> list[_Job]:
    n = min(N_SHARDS, len(refs)) if n_shards is None else n_shards
    if not 1 <= n <= min(99_999, len(refs)):
        raise WosacError(
            f"cannot make {n} shards of {len(refs)} scenes", mend="a shard holds at least one"
        )
    if level not in range(10):
        raise WosacError(f"gzip has the levels 0 to 9, not {level}")
    common = f"{__version__} {zlib.ZLIB_RUNTIME_VERSION} {challenge.name} {level} {tail.hex()}"
    stamp = functools.cache(_stamp)
    jobs = []
    for i in range(n):
        name = f"submission.binproto-{i:05d}-of-{n:05d}"
        chosen = refs[i * len(refs) // n : (i + 1) * len(refs) // n]
        hashed = hashlib.sha256(f"{common} {name}\n".encode())
        for ref in chosen:
            place = f"{ref.path} {stamp(ref.path)} {ref.offset} {ref.length}"
            hashed.update(f"{ref.scenario_id} {place}\n".encode())
        jobs.append(_Job(name, chosen, folder / f"{i:05d}.part", hashed.hexdigest()))
    return jobs


def _stamp(file: Path) -> str:
    """What changes when a file does."""
    stat = file.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _deflate(challenge: Challenge, tail: bytes, level: int, job: _Job) -> list[Finding]:
    """Write the part of one shard and its note; what is wrong with its rollouts otherwise."""
    from wosac_toolkit.submission.scene import check_scene

    findings: list[Finding] = []
    current = job.refs[0]
    try:
        with atomic_write(job.part) as stream:
            writer = PartWriter(stream.write, level)
            for current in job.refs:
                rollouts = current.read()
                faults = check_scene(rollouts, None, challenge, file=current.where)
                findings += [finding for finding in faults if severity(finding) == "error"]
                if not findings:
                    message = submission.encode_scenario_rollouts(rollouts)
                    writer.add(submission.message_head(len(message)))
                    writer.add(message)
                if writer.raw_size + len(tail) > submission.MAX_MESSAGE_BYTES:
                    raise RolloutsError(
                        f"shard {job.name} has more than the 2 GB of a protobuf message",
                        mend="take more --shards",
                    )
            writer.add(tail)
            if findings:
                raise RolloutsError("not to be packed")
            part = writer.end()
        job.finish(part)
    except WosacError as error:
        what = str(error).removeprefix(f"{current.where}: ")
        return findings or [Finding("damaged", what, current.scenario_id, file=current.where)]
    except OSError as error:
        return [Finding("not_written", f"{error.filename}: {error.strerror}", "")]
    return []


# --------------------------------------------------------------------------------------------------
# The archive


class _Archive:
    """The archive under its working name, to which parts are appended in their order.

    Attributes:
        path: the file.
        n_appended: parts that it holds as a whole.
    """

    def __init__(self, folder: Path, jobs: Sequence[_Job]) -> None:
        self.path = folder / "archive"
        self.n_appended = 0
        self._jobs = jobs
        self._whole = Part()
        self._appended: list[Path] = []
        self._unsafe_bytes = 0

    def __enter__(self) -> _Archive:
        """Open it, cut behind the last part that it holds as a whole."""
        self._stream: BinaryIO = open(self.path, "r+b" if self.path.exists() else "w+b")
        length = self._stream.seek(0, os.SEEK_END)
        size = len(gzip_parts.HEADER)
        for job in self._jobs:
            part = job.noted()
            # A part is deleted once it is appended, and not before.
            if part is None or job.part.exists():
                break
            before, after = _around(job.name, part)
            member = before[1].then(part).then(after[1])
            if size + member.size > length:
                break
            size += member.size
            self._whole = self._whole.then(member)
            self.n_appended += 1
        self._stream.truncate(size)
        self._stream.seek(0)
        self._stream.write(gzip_parts.HEADER)
        self._stream.seek(size)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self) -> None:
        """Append the parts that are finished, as far as all before them are."""
        for job in self._jobs[self.n_appended :]:
            part = job.finished()
            if part is None:
                return
            before, after = _around(job.name, part)
            self._stream.write(before[0])
            with open(job.part, "rb") as stream:
                shutil.copyfileobj(stream, self._stream, 1 << 20)
            self._stream.write(after[0])
            self._appended.append(job.part)
            self._unsafe_bytes += part.size
            if self._unsafe_bytes > _SYNC_BYTES:
                self._flush()
            self._whole = self._whole.then(before[1]).then(part).then(after[1])
            self.n_appended += 1

    def end(self) -> Part:
        """Write what ends a tar archive and the gzip stream."""
        size = self._whole.raw_size + 2 * _BLOCK
        data, part = gzip_parts.deflated(bytes(2 * _BLOCK + -size % tarfile.RECORDSIZE), last=True)
        whole = self._whole.then(part)
        self._stream.write(data + gzip_parts.trailer(whole))
        self._flush()
        return whole

    def _flush(self) -> None:
        """Wait until what was appended is on the disk; only then delete its parts."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        for part in self._appended:
            part.unlink()
        self._appended.clear()
        self._unsafe_bytes = 0


def _around(name: str, part: Part) -> tuple[tuple[bytes, Part], tuple[bytes, Part]]:
    """What comes before and after a shard in the archive: its header, and zeros up to a block."""
    member = tarfile.TarInfo(name)  # Of user 0, mode 644, changed in 1970.
    member.size = part.raw_size
    header = member.tobuf(tarfile.USTAR_FORMAT)
    return gzip_parts.deflated(header), gzip_parts.deflated(bytes(-part.raw_size % _BLOCK))


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Keep other processes out of the folder; the system opens the lock after a kill."""
    with open(folder / "lock", "wb") as stream:
        try:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has none, and there two processes are not noticed.
            pass
        except OSError:
            raise WosacError(
                "another process is packing it", where=str(out), mend="wait for it, or stop it"
            ) from None
        for left_over in folder.glob(".*.tmp"):
            left_over.unlink()
        yield
