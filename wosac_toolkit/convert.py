"""Rollouts from one format to another, losslessly in float32.

Whatever `io.rollouts` reads becomes one file a scene (`.npz`, `.pkl`) or submission shards; one
scene is in memory at a time. The numbers are copied bit for bit, NaN and the sign of zero included;
only float16 and float64 become float32, as they do wherever rollouts are read. Scenes keep the
order in which they are read, objects and rollouts theirs. No scenes of WOMD are needed, since every
format names its objects: whether these are the right ones is `wosac validate`'s business.

Beside converted rollouts lies `conversion.json`, which says what they were made from. The same
command again converts what is missing or older than its source, as `make` would.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from wosac_toolkit.errors import FormatError, RolloutsError, WosacError, some_ids
from wosac_toolkit.io import rollouts as rollouts_io
from wosac_toolkit.io.files import atomic_write, scenario_file
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.pickled import pickle_scenario_id, write_pickle
from wosac_toolkit.io.rollouts import ArchivedRollouts, RolloutsRef, format_of
from wosac_toolkit.io.submission import SubmissionMetadata, read_metadata, write_submission
from wosac_toolkit.manifest import read_manifest, write_manifest
from wosac_toolkit.simulation import SCENES_PER_SHARD
from wosac_toolkit.workers import progress_bar

if TYPE_CHECKING:
    from wosac_toolkit.rollouts import Rollouts

PathLike: TypeAlias = str | os.PathLike[str]
Format: TypeAlias = Literal["npz", "submission", "pickle"]
FORMATS: tuple[Format, ...] = get_args(Format)

MARKER = "conversion.json"
SCHEMA_VERSION = 1

# What holds the sizes and types that scenario generation simulates.
_WITH_SIZES: tuple[Format, ...] = ("npz", "submission")
_SUFFIXES: dict[Format, str] = {"npz": ".npz", "pickle": ".pkl"}
_INT32 = np.iinfo(np.int32)


class ConversionError(WosacError):
    """Scenes that could not be converted.

    Attributes:
        findings: what is wrong, a line a scene.
    """

    def __init__(self, what: str, *, where: str, mend: str, findings: Iterable[str] = ()) -> None:
        super().__init__(what, where=where, mend=mend)
        self.findings = tuple(findings)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert_rollouts` did.

    Attributes:
        out: the folder or file of the converted rollouts.
        format: its format.
        n_scenes: how many scenes it holds.
        n_kept: how many of them an earlier, interrupted conversion had written.
        n_files: how many files they are in.
        n_bytes: the size of these.
    """

    out: Path
    format: Format
    n_scenes: int
    n_kept: int
    n_files: int
    n_bytes: int


def convert_rollouts(
    source: PathLike,
    out: PathLike,
    to: Format | None = None,
    *,
    scenes_per_shard: int = SCENES_PER_SHARD,
    progress: bool = False,
) -> Conversion:
    """Write the rollouts of `source` once more, in another format.

    The same rollouts give the same bytes, whatever format they come from. An archive is read
    twice, first for its ids.

    Args:
        source: what `wosac_toolkit.load_rollouts` reads.
        out: a folder, or a file, whose name must then fit its format: `<scenario_id>.npz` or
            `.pkl` for one scene, `<name>.binproto` for any number.
        to: the format; None where the name of a file tells it.
        scenes_per_shard: of a folder of shards, `rollouts.binproto-00000-of-0000N`.
        progress: show a bar on stderr.

    Raises:
        ConversionError: scenes that could not be converted, all of them named; the others were,
            but for those in the same shard.
        RolloutsError: nothing to convert, or a scenario that comes twice; nothing is written.
        FormatError: a shard or an archive that is damaged; nothing is written.
        WosacError: no format or a contradiction of formats, or `out` holds other rollouts.
    """
    out = Path(out)
    format_ = target_format(out, to)
    if scenes_per_shard < 1:
        raise WosacError(f"scenes_per_shard must be at least 1, not {scenes_per_shard}")
    from tqdm import tqdm

    files = rollouts_io.rollout_files(source)
    archive = files[0] if len(files) == 1 and rollouts_io.is_archive(files[0]) else None
    items: Sequence[_Item]
    if archive is None:
        refs = rollouts_io.index_rollouts(source)
        items = [_Item(ref.scenario_id, ref.path, ref.where) for ref in refs]
    else:
        messages = tqdm(
            rollouts_io.iter_archive(archive),
            "indexing",
            unit=" scenes",
            leave=False,
            disable=not (progress and sys.stderr.isatty()),
        )
        items = [_Item(message.scenario_id, archive, message.where) for message in messages]
    _refuse_repeated(items)
    if not items:
        raise RolloutsError("no scenes in it", where=os.fspath(source))
    in_folder = format_of(out.name) is None or out.is_dir()
    targets = _plan(out, items, format_, scenes_per_shard if in_folder else len(items), in_folder)
    if in_folder:
        _claim_folder(out, source, format_, scenes_per_shard, targets)
    elif out.exists():
        raise WosacError("exists already", where=str(out), mend="delete it, or choose another name")
    metadata = _metadata(files)
    stream: Iterator[RolloutsRef | ArchivedRollouts] = iter(
        refs if archive is None else rollouts_io.iter_archive(archive)
    )
    n_kept, failures = 0, []
    with progress_bar(len(items), what="converting", show=progress) as bar:
        for target in targets:
            taken = islice(stream, len(target.items))
            if target.is_current():
                n_kept += len(target.items)
                deque(taken, maxlen=0)
            else:
                failures += _write(target, taken, format_, metadata)
            bar.update(len(target.items))
    if failures:
        raise ConversionError(
            f"{len(failures)} of {len(items)} scenes could not be converted",
            where=os.fspath(source),
            mend="mend them; the same command then converts what is missing"
            if in_folder
            else "nothing was written",
            findings=failures,
        )
    n_bytes = sum(target.path.stat().st_size for target in targets)
    return Conversion(out, format_, len(items), n_kept, len(targets), n_bytes)


def target_format(out: Path, to: Format | None) -> Format:
    """The format to write, by the name of the file or by `to`.

    Raises:
        WosacError: neither tells it, they contradict each other, or it cannot be written.
    """
    named = None if out.is_dir() else format_of(out.name)
    if named == "archive":
        raise WosacError(
            "archives are written by another command",
            where=str(out),
            mend="wosac pack writes a .tar.gz of shards, with the metadata of a submission",
        )
    if named is None and to is None:
        raise WosacError(
            "no format given",
            where=str(out),
            mend=f"say --to {', '.join(FORMATS[:-1])} or {FORMATS[-1]} for a folder, or name a "
            "file <scenario_id>.npz, <scenario_id>.pkl or <name>.binproto",
        )
    if to is not None and named not in (None, to):
        raise WosacError(
            f"the name is that of a {named} file, not of {to}",
            where=str(out),
            mend="leave out --to, or choose another name",
        )
    chosen = to or named
    assert chosen is not None
    return chosen


# What goes where


@dataclass(frozen=True, slots=True)
class _Item:
    """A scene of the source: its id, its file, and its place as errors name it."""

    scenario_id: str
    path: Path
    where: str


@dataclass(frozen=True, slots=True)
class _Target:
    """A file to write, and what goes into it."""

    path: Path
    items: Sequence[_Item]

    def is_current(self) -> bool:
        """It was written after its sources last changed, or were put in their places."""
        try:
            written = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        stats = [path.stat() for path in {item.path for item in self.items}]
        return written >= max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def _refuse_repeated(items: Sequence[_Item]) -> None:
    first: dict[str, _Item] = {}
    for item in items:
        before = first.setdefault(item.scenario_id, item)
        if before is not item:
            raise RolloutsError(
                f"scenario {item.scenario_id} is here and in {before.where}",
                where=item.where,
                mend="name files that hold each scenario once",
            )


def _plan(
    out: Path, items: Sequence[_Item], format_: Format, scenes_per_shard: int, in_folder: bool
) -> list[_Target]:
    """The files to write, in the order of the scenes."""
    if format_ == "submission":
        shards = [
            items[start : start + scenes_per_shard]
            for start in range(0, len(items), scenes_per_shard)
        ]
        if not in_folder:
            return [_Target(out, items)]
        return [
            _Target(out / f"rollouts.binproto-{number:05d}-of-{len(shards):05d}", shard)
            for number, shard in enumerate(shards)
        ]
    folder = out if in_folder else out.parent
    targets = [
        _Target(scenario_file(folder, item.scenario_id, _SUFFIXES[format_]), [item])
        for item in items
    ]
    for target in targets:
        _refuse_renaming(target.path, target.items[0].scenario_id)
    if not in_folder and [target.path for target in targets] != [out]:
        raise WosacError(
            f"the rollouts of {len(items)} scenarios cannot be in one {format_} file"
            if len(items) > 1
            else f"the rollouts are of scenario {items[0].scenario_id}",
            where=str(out),
            mend=f"give a folder and --to {format_}"
            if len(items) > 1
            else f"call the file {targets[0].path.name}",
        )
    return targets


def _refuse_renaming(path: Path, scenario_id: str) -> None:
    """The readers tell the scenario by the name of its file."""
    named = pickle_scenario_id(path) if path.suffix == ".pkl" else path.stem
    if named != scenario_id:
        raise RolloutsError(
            f"scenario {scenario_id} would be read as {named} from a file {path.name}",
            where=str(path.parent),
            mend="choose another format",
        )


def _claim_folder(
    out: Path, source: PathLike, format_: Format, scenes_per_shard: int, targets: Sequence[_Target]
) -> None:
    """Make the folder of this conversion, or see that it is its own already.

    Raises:
        WosacError: the folder holds other rollouts.
    """
    request = {
        "schema_version": SCHEMA_VERSION,
        "source": os.path.abspath(source),
        "format": format_,
        "scenes_per_shard": scenes_per_shard if format_ == "submission" else None,
    }
    manifest = read_manifest(source)
    out.mkdir(parents=True, exist_ok=True)
    before = _read_marker(out / MARKER)
    mend = "choose another folder, or delete it"
    if before is not None and before != request:
        differing = [key for key in request if before.get(key) != request[key]]
        raise WosacError(
            f"the folder holds a conversion that differs in {', '.join(differing)}",
            where=str(out),
            mend=mend,
        )
    planned = set() if before is None else {target.path.name for target in targets}
    strangers = {path.name for path in out.iterdir() if format_of(path.name)} - planned
    if strangers:
        raise WosacError(
            f"the folder holds other rollouts already: {some_ids(strangers, 3)}",
            where=str(out),
            mend=mend,
        )
    with atomic_write(out / MARKER) as stream:
        stream.write((json.dumps(request, indent=2) + "\n").encode())
    if manifest is not None:
        # By which `wosac score` finds the scenes.
        write_manifest(out, dataclasses.replace(manifest, format=format_))


def _read_marker(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise FormatError("not what wosac convert writes", where=str(path), mend="delete it")
    return content


def _metadata(files: Sequence[Path]) -> SubmissionMetadata:
    """The metadata of the first shard among the files, where there is one: all have the same."""
    for file in files:
        if format_of(file.name) == "submission":
            with open(file, "rb") as stream:
                return read_metadata(stream, where=str(file))
    return SubmissionMetadata()


# Copying


def _write(
    target: _Target,
    taken: Iterator[RolloutsRef | ArchivedRollouts],
    format_: Format,
    metadata: SubmissionMetadata,
) -> list[str]:
    """Write one file, if all its scenes are sound; a line for each that is not."""
    failures: list[str] = []

    def sound() -> Iterator[Rollouts]:
        for item in taken:
            try:
                one = _read(item, format_)
            except WosacError as error:
                place = f"{item.where}: scenario {item.scenario_id}: "
                failures.append(str(error) if item.where in str(error) else f"{place}{error}")
            else:
                yield one
        if failures:
            raise _UnsoundError  # Ends the writing, so that no file appears.

    try:
        if format_ == "submission":
            write_submission(target.path, sound(), metadata)
        else:
            write = write_npz if format_ == "npz" else write_pickle
            for one in sound():
                write(target.path.parent, one)
    except _UnsoundError:
        pass
    return failures


class _UnsoundError(Exception):
    """A scene of the file being written is not sound."""


def _read(item: RolloutsRef | ArchivedRollouts, format_: Format) -> Rollouts:
    """The rollouts, if the format can hold them without loss.

    Raises:
        WosacError: it cannot, or they are damaged.
    """
    one = item.read()
    where = f"{item.where}: scenario {item.scenario_id}"
    if not one.states.size:
        shape = list(one.states.shape)
        raise RolloutsError(f"no states, [rollouts, objects, steps, 4] are {shape}", where=where)
    ids, counts = np.unique(one.object_ids, return_counts=True)
    if len(ids) < len(one.object_ids):
        repeated = some_ids(ids[counts > 1].tolist())
        raise RolloutsError(f"objects come more than once: {repeated}", where=where)
    if format_ == "submission" and (ids[0] < _INT32.min or ids[-1] > _INT32.max):
        large = ids[(ids < _INT32.min) | (ids > _INT32.max)].tolist()
        raise RolloutsError(
            f"object ids that are not int32, as a submission wants them: {some_ids(large)}",
            where=where,
        )
    if format_ not in _WITH_SIZES and (one.sizes is not None or one.object_types is not None):
        raise RolloutsError(
            f"simulated sizes or types of objects, which {format_} files do not hold",
            where=where,
            mend=f"convert to {' or '.join(_WITH_SIZES)}",
        )
    return one
