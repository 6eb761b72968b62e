"""Scenes prepared once and read many times: a folder of shards.

============================  ====================================================================
`cache.json`                  what was asked for: `Request`
`scenes-00000.safetensors` ..  the scenes, 256 a file, see `smart_r1.shard`
`index.safetensors`           ids and sizes of all scenes; written last, so a folder that has one
                              holds all scenes that could be prepared
============================  ====================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from smart_r1.scene_tensors import SceneTensors
from smart_r1.shard import (
    Array,
    Shard,
    TensorFile,
    damaged,
    offsets,
    pack_ids,
    unpack_ids,
    write_shard,
    write_tensors,
)
from wosac_toolkit import __version__
from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.manifest import absolute_path
from wosac_toolkit.results import hash_lines
from wosac_toolkit.scenario import Int64Array
from wosac_toolkit.validation import Finding
from wosac_toolkit.workers import Crew, n_workers, progress_bar

if TYPE_CHECKING:
    from wosac_toolkit.io.tfrecord import RecordRef

FORMAT_VERSION = 1
"""Of the files and of what `scene_tensors` puts into them."""

SCENES_PER_SHARD = 256

_REQUEST, _INDEX = "cache.json", "index.safetensors"

# The windows of one 20 s scene have its id, 16 digits, and two more.
_SCENE_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Request:
    """What a cache was asked to hold; its folder goes on only with the same request.

    Attributes:
        scenarios: absolute path of the scenes: a file, a folder, a glob or a list of shards.
        scenarios_files: a hash of the names and sizes of their files.
        scenario_ids: a hash of the ids, in the order of files and records, which is the cache's.
        n_scenarios: how many there are.
        scenes_per_shard: how many of them make a shard; the last one has fewer.
        toolkit_version: version of this package.
        format_version: version of this layout.
    """

    scenarios: str
    scenarios_files: str
    scenario_ids: str
    n_scenarios: int
    scenes_per_shard: int
    toolkit_version: str
    format_version: int = FORMAT_VERSION


# --------------------------------------------------------------------------------------------------
# Preparing


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare_dataset` has done.

    Attributes:
        n_scenarios: scenes in the files.
        n_kept: of these, in shards that an earlier run had finished.
        findings: the scenes that the cache is without, and why.
    """

    n_scenarios: int
    n_kept: int
    findings: Sequence[Finding]


def prepare_dataset(
    scenarios: str,
    out: Path,
    *,
    workers: int | None = None,
    scenes_per_shard: int = SCENES_PER_SHARD,
    progress: bool = False,
) -> Prepared:
    """Prepare scenes for training.

    Scenes that cannot be read or simulated are left out and named; the others make a cache. An
    interrupted run resumes after the shards it has finished; one that is without a scene is made
    again, since the files may have been mended. The bytes written do not depend on the number of
    workers. A script that uses more than one must call this below `if __name__ == "__main__":`.

    Args:
        scenarios: what `wosac_toolkit.load_scenarios` reads, as one text.
        out: folder of the cache, made where absent.
        workers: processes; None for one a CPU, fewer for few scenes; 1 works in this process.
        scenes_per_shard: how many scenes a file has.
        progress: show a progress bar on stderr.

    Raises:
        WosacError: no scenes, or the folder holds another cache or other files.
        FormatError: a file of scenes that is damaged between its records.
    """
    from wosac_toolkit.io.scenarios import index_scenarios
    from wosac_toolkit.io.tfrecord import find_shards

    if scenes_per_shard < 1:
        raise WosacError(f"scenes_per_shard must be at least 1, not {scenes_per_shard}")
    records = list(index_scenarios(scenarios, progress=progress).items())
    if not records:
        raise WosacError("the files hold no scene", where=scenarios)
    request = Request(
        scenarios=absolute_path(scenarios),
        scenarios_files=hash_lines(f"{f.name} {f.stat().st_size}" for f in find_shards(scenarios)),
        scenario_ids=hash_lines(scenario_id for scenario_id, _ in records),
        n_scenarios=len(records),
        scenes_per_shard=scenes_per_shard,
        toolkit_version=__version__,
    )
    _claim(out, request)
    jobs = [
        _Job(_shard_path(out, number), records[first : first + scenes_per_shard])
        for number, first in enumerate(range(0, len(records), scenes_per_shard))
    ]
    todo = [job for job in jobs if not job.is_finished()]
    n_todo = sum(len(job.records) for job in todo)
    if todo:
        _prepare(todo, n_workers(workers, n_todo), progress)
    findings = _write_index(out, [job.path for job in jobs])
    return Prepared(len(records), len(records) - n_todo, findings)


def _claim(out: Path, request: Request) -> None:
    """Make the folder of this cache, or see that it is its folder already."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / _REQUEST).exists():
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise WosacError(
                "the folder holds files that smart-r1 prepare did not write",
                where=str(out),
                mend="choose another --out",
            )
        text = json.dumps(dataclasses.asdict(request), indent=2) + "\n"
        with atomic_write(out / _REQUEST) as stream:
            stream.write(text.encode())
        return
    before = _read_request(out)
    names = [f.name for f in dataclasses.fields(Request)]
    if differences := [n for n in names if getattr(before, n) != getattr(request, n)]:
        raise WosacError(
            f"the folder holds a cache that differs in {', '.join(differences)}",
            where=str(out),
            mend="choose another --out, or delete it",
        )


def _read_request(folder: Path) -> Request:
    path = folder / _REQUEST
    mend = "prepare the cache anew, in another folder"
    try:
        fields: Any = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise WosacError(
            "no prepared scenes are here", where=str(folder), mend="smart-r1 prepare makes them"
        ) from None
    except ValueError:
        raise FormatError("not a JSON file", where=str(path), mend=mend) from None
    kinds = {f.name: int if f.type == "int" else str for f in dataclasses.fields(Request)}
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise FormatError(
            f"format version {version!r}, where this package reads {FORMAT_VERSION}",
            where=str(path),
            mend=mend,
        )
    for name, kind in kinds.items():
        if type(fields.get(name)) is not kind:
            raise FormatError(f"{name!r} is {fields.get(name)!r}", where=str(path), mend=mend)
    return Request(**{name: fields[name] for name in kinds})


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard, and the scenes it is to hold: ids and records."""

    path: Path
    records: Sequence[tuple[str, RecordRef]]

    def is_finished(self) -> bool:
        """It is there, and no scene was left out."""
        return self.path.exists() and not Shard(self.path).left_out


@dataclass(frozen=True, slots=True)
class _Task:
    """A scene to be prepared: number of the job, place in it, id and record."""

    job: int
    place: int
    scenario_id: str
    record: RecordRef

    def __str__(self) -> str:
        return f"scenario {self.scenario_id}"


def _prepare(jobs: Sequence[_Job], workers: int, progress: bool) -> None:
    """Write shards, each as soon as all its scenes are there."""
    tasks = [
        _Task(number, place, scenario_id, record)
        for number, job in enumerate(jobs)
        for place, (scenario_id, record) in enumerate(job.records)
    ]
    unfinished: dict[int, dict[int, SceneTensors | Finding]] = {}
    with (
        Crew(_prepare_scene, min(workers, len(tasks)), _load) as crew,
        progress_bar(len(tasks), what="preparing", show=progress) as bar,
    ):
        for task, result in crew.map(tasks, chunk_size=2):
            results = unfinished.setdefault(task.job, {})
            results[task.place] = result
            if len(results) == len(jobs[task.job].records):
                in_order = [results[place] for place in range(len(results))]
                scenes = [result for result in in_order if isinstance(result, SceneTensors)]
                left_out = [result for result in in_order if isinstance(result, Finding)]
                write_shard(jobs[task.job].path, scenes, left_out)
                del unfinished[task.job]
            bar.update()


def _load() -> None:
    """What a worker loads before its first scene comes."""
    import wosac_toolkit.io.scenario_proto
    import wosac_toolkit.io.scenarios  # noqa: F401


def _prepare_scene(task: _Task) -> SceneTensors | Finding:
    from smart_r1.scene_tensors import scene_tensors
    from wosac_toolkit.io.scenarios import read_scenario

    try:
        return scene_tensors(read_scenario(task.record))
    except (WosacError, OSError) as error:
        what = str(error).removeprefix(f"scenario {task.scenario_id}: ")
        return Finding("not_prepared", what, task.scenario_id)
    except Exception as error:  # A defect of ours must not lose the other scenes.
        return Finding("internal_error", f"{type(error).__name__}: {error}", task.scenario_id)


def _write_index(out: Path, paths: Iterable[Path]) -> list[Finding]:
    """Write the index of finished shards, and tell which scenes they are without."""
    shards = [Shard(path) for path in paths]
    ids = [scenario_id for shard in shards for scenario_id in shard.scenario_ids]
    index: dict[str, Array] = {
        "scenario_ids": pack_ids(ids),
        "shard_offsets": offsets(len(shard) for shard in shards),
        "agent_counts": np.concatenate([np.diff(shard.agent_offsets) for shard in shards]),
        "map_counts": np.concatenate([np.diff(shard.map_offsets) for shard in shards]),
    }
    write_tensors(out / _INDEX, index, {})
    return [finding for shard in shards for finding in shard.left_out]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"scenes-{number:05d}.safetensors"


# --------------------------------------------------------------------------------------------------
# Reading


class SceneCache(Sequence[SceneTensors]):
    """The scenes of a cache, or some of them, read from disk when they are asked for.

    Can be pickled and forked; each process maps the files for itself. A slice is a list of scenes.

    Attributes:
        folder: where it lies.
        scenario_ids: N ids, in the order of the scenario files unless `select` gave another.
        agent_counts: int64 [N], the agents of each scene.
        map_counts: int64 [N], its map tokens.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index of a cache.

        Raises:
            WosacError: there is no cache, an unfinished one, or one without scenes.
            FormatError: a cache of another format, or a damaged one.
        """
        _read_request(folder)
        path = folder / _INDEX
        if not path.exists():
            raise WosacError(
                "the preparation of these scenes has not finished",
                where=str(folder),
                mend="run the same smart-r1 prepare again, it resumes",
            )
        index = TensorFile(path)
        self.folder = folder
        self.scenario_ids = unpack_ids(index.read("scenario_ids", "uint8", ndim=2), path)
        self.agent_counts: Int64Array = index.read("agent_counts", "int64", ndim=1)
        self.map_counts: Int64Array = index.read("map_counts", "int64", ndim=1)
        self._shard_offsets: Int64Array = index.read("shard_offsets", "int64", ndim=1)
        n = len(self.scenario_ids)
        ends = self._shard_offsets[[0, -1]].tolist() if len(self._shard_offsets) else []
        if ends != [0, n] or (np.diff(self._shard_offsets) < 0).any():
            raise damaged(path, f"'shard_offsets' are not those of {n} scenes")
        if not len(self.agent_counts) == len(self.map_counts) == n:
            raise damaged(path, f"it does not give the sizes of {n} scenes")
        if n == 0:
            raise WosacError(
                "no scene could be prepared",
                where=str(folder),
                mend="smart-r1 prepare tells why",
            )
        self._rows = np.arange(n, dtype=np.int64)
        self._shards: dict[int, Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> SceneTensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[SceneTensors]: ...
    def __getitem__(self, index: int | slice) -> SceneTensors | list[SceneTensors]:
        """Read one scene, or several.

        Raises:
            IndexError: there is no such scene.
            FormatError: its file is damaged, or not the one that was indexed.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = int(self._rows[index])
        number = int(np.searchsorted(self._shard_offsets, row, side="right")) - 1
        if number not in self._shards:
            self._shards[number] = Shard(_shard_path(self.folder, number))
        shard = self._shards[number]
        place = row - int(self._shard_offsets[number])
        if place >= len(shard) or shard.scenario_ids[place] != self.scenario_ids[index]:
            raise damaged(shard.path, f"scenario {self.scenario_ids[index]} is not where it was")
        return shard[place]

    def select(self, indices: Sequence[int] | Int64Array) -> SceneCache:
        """Some of the scenes, in the order of `indices`, as a cache of their own."""
        chosen = np.asarray(indices, dtype=np.int64)
        selected = object.__new__(SceneCache)
        selected.__dict__ |= {
            **self.__dict__,
            "_rows": self._rows[chosen],
            "scenario_ids": tuple(self.scenario_ids[i] for i in chosen),
            "agent_counts": self.agent_counts[chosen],
            "map_counts": self.map_counts[chosen],
        }
        return selected


def split(scenario_ids: Sequence[str], validation_fraction: float) -> tuple[Int64Array, Int64Array]:
    """Divide scenes into those to train on and those to validate on, by a hash of their ids.

    A scene stays on its side whatever the other scenes are, and goes over only if the fraction
    passes its hash. The windows cut from one 20 s scene, whose ids begin with the same 16 digits,
    are on one side.

    Args:
        scenario_ids: N ids.
        validation_fraction: from 0 to 1; about so many of the scenes are for validation.

    Returns:
        The indices of the scenes to train on and of those to validate on, int64, ascending.

    Raises:
        WosacError: the fraction is none.
    """
    if not 0 <= validation_fraction <= 1:
        raise WosacError(f"validation_fraction must be from 0 to 1, not {validation_fraction}")
    hashes = np.array([_unit_hash(scenario_id[:_SCENE_DIGITS]) for scenario_id in scenario_ids])
    held_out = hashes.reshape(-1) < validation_fraction
    return np.flatnonzero(~held_out).astype(np.int64), np.flatnonzero(held_out).astype(np.int64)


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that `text` alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
