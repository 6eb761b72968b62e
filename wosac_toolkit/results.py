"""The files of a run of `wosac score`, and their schema.

A run is a folder:

==================  ==============================================================================
`scores.parquet`    a row a scene, in the order of the scenario files: `SCORE_SCHEMA`
`agents.parquet`    a row an evaluated agent (only where asked for): `AGENT_SCHEMA`
`summary.json`      what was scored, the aggregates and their signature: `Summary`
`.partial/`         the journal of a run that has not finished, see `Journal`
`findings.json`     why it could not finish: a list of `Finding`s
==================  ==============================================================================

`summary.json` is written last, so a folder that has one holds a whole run. Nothing in it tells when
the run was made or how long it took: the same request of the same files writes the same bytes,
whatever the workers and interruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from wosac_toolkit.attributes import SceneAttributes
from wosac_toolkit.challenge import BUCKET_FIELDS, COMPONENTS, METRIC_FIELDS, Challenge
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from wosac_toolkit.metric import ScenarioScore
    from wosac_toolkit.validation import Finding

SCHEMA_VERSION = 2

BUCKET_COLUMNS = ("kinematic_metrics", "interactive_metrics", "map_based_metrics")
"""The bucket fields that are no metric fields under another name."""

SCORE_FIELDS = METRIC_FIELDS + BUCKET_COLUMNS

BUCKET_SOURCES = {
    name: {"realism_meta_metric": "metametric", "min_ade": "min_average_displacement_error"}.get(
        name, name
    )
    for name in BUCKET_FIELDS
}
"""Bucket field -> the column of `scores.parquet` that it is the mean of."""

COUNT_FIELDS = ("n_rollouts", "n_sim_agents", "n_evaluated_agents")
AGENT_RATES = (
    "average_displacement_error",
    "collision_rate",
    "offroad_rate",
    "traffic_light_violation_rate",
)

ATTRIBUTE_SCHEMA = {
    "n_evaluated_vehicles": "int32",
    "n_evaluated_pedestrians": "int32",
    "n_evaluated_cyclists": "int32",
    "has_traffic_lights": "bool",
    "sdc_at_intersection": "bool",
    "mean_speed": "float64",
    "sdc_manoeuvre": "string",
}
"""The columns of `scores.parquet` that tell what kind of scene it is: `SceneAttributes`."""

SCORE_SCHEMA = {
    "scenario_id": "string",
    **{name: "float64" for name in SCORE_FIELDS},
    **{name: "int32" for name in COUNT_FIELDS},
    **ATTRIBUTE_SCHEMA,
}
"""Columns of `scores.parquet`. A field that the challenge does not have is null, a result that is
not a finite number is NaN or infinite as in the official code. Files written earlier have columns
beyond these, which are passed over."""

AGENT_SCHEMA = {
    "scenario_id": "string",
    "object_id": "int64",
    "object_type": "int8",
    **{f"{name}_log_likelihood": "float64" for name in COMPONENTS},
    **{f"{name}_n_valid_steps": "int64" for name in COMPONENTS},
    **{name: "float64" for name in AGENT_RATES},
}
"""Columns of `agents.parquet`: mean log-likelihoods over the agent's valid steps, how many steps
these are, metres of displacement averaged over the rollouts, shares of the rollouts."""

_SCENES_PER_ROW_GROUP = 2000


@dataclass(frozen=True, slots=True)
class SceneResult:
    """The score of one scene, a row of `scores.parquet`.

    Attributes:
        scenario_id: the scene.
        values: one a field of `SCORE_FIELDS`; None where the challenge has no such field.
        n_rollouts: joint rollouts that were scored.
        n_sim_agents: simulated objects.
        n_evaluated_agents: objects that the metric evaluates.
        attributes: what kind of scene it is.
        non_finite: field -> why its value is not a finite number.
    """

    scenario_id: str
    values: tuple[float | None, ...]
    n_rollouts: int
    n_sim_agents: int
    n_evaluated_agents: int
    attributes: SceneAttributes
    non_finite: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __getitem__(self, field: str) -> float | None:
        """The value of one of `SCORE_FIELDS`."""
        return self.values[SCORE_FIELDS.index(field)]


def field_tree(challenge: Challenge) -> list[tuple[int, str]]:
    """(level, field) in the order of tables: buckets with their components below, then the rest."""
    fields = [(0, "realism_meta_metric")]
    for bucket in ("kinematic", "interactive", "map_based"):
        fields.append((0, f"{bucket}_metrics"))
        fields += [(1, c.field) for c in challenge.components if c.bucket == bucket]
    fields += [(0, name) for name in ("min_ade", "average_displacement_error")]
    return fields + [(0, name) for name in BUCKET_FIELDS if name.startswith("simulated_")]


AgentRows = dict[str, list[Any]]
"""Column of `AGENT_SCHEMA` (but the scenario id) -> a value an evaluated agent."""


def scene_result(score: ScenarioScore, attributes: SceneAttributes) -> SceneResult:
    """The row of a score on a scene of such attributes."""
    fields = {**score.metrics(), **score.buckets()}
    return SceneResult(
        scenario_id=score.scenario_id,
        values=tuple(fields.get(name) for name in SCORE_FIELDS),
        n_rollouts=score.n_rollouts,
        n_sim_agents=score.n_sim_agents,
        n_evaluated_agents=score.n_evaluated_agents,
        attributes=attributes,
        non_finite=score.non_finite(),
    )


def agent_rows(score: ScenarioScore) -> AgentRows:
    """The rows of the evaluated agents of a score."""
    agents = score.agents
    return {
        "object_id": agents.object_ids.tolist(),
        "object_type": agents.object_types.tolist(),
        **{f"{name}_log_likelihood": v.tolist() for name, v in agents.log_likelihoods.items()},
        **{f"{name}_n_valid_steps": v.tolist() for name, v in agents.n_valid_steps.items()},
        **{
            name: values.tolist()
            for name in AGENT_RATES
            if (values := getattr(agents, name)) is not None
        },
    }


@dataclass(frozen=True, slots=True)
class Request:
    """What a run was asked for: two runs with equal requests have equal results.

    Attributes:
        challenge: version of the metric.
        engine: what scores a scene: empty for the toolkit's own metric, else its dotted name.
        toolkit_version: version of this package.
        rollouts: absolute path of the rollouts.
        rollouts_files: hash of their files' names, sizes and times of change.
        scenarios: absolute path of the scenes.
        scenarios_files: the same hash of theirs.
        n_rollouts: rollouts that each scene must have; None for any.
        per_agent: whether rows of agents are kept.
        limit: how many scenes were asked for at most.
        scenario_ids: hash of the list of scenes that were asked for; None for all.
        missing: `error` or `intersect`.
    """

    challenge: str
    engine: str
    toolkit_version: str
    rollouts: str
    rollouts_files: str
    scenarios: str
    scenarios_files: str
    n_rollouts: int | None
    per_agent: bool
    limit: int | None
    scenario_ids: str | None
    missing: str

    def differences(self, other: Request) -> list[str]:
        """The names of the fields in which two requests differ."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The scenes that an aggregate leaves out, since their value is not a finite number.

    Attributes:
        n_scenarios: how many.
        reasons: why -> their ids, in the order of the scenario files.
    """

    n_scenarios: int
    reasons: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Summary:
    """`summary.json`: what was scored and what came out.

    Attributes:
        schema_version: version of this layout, `SCHEMA_VERSION`.
        toolkit_version: version of this package.
        challenge: version of the metric.
        official_release: the official package whose numbers it reproduces.
        signature: one line that two comparable runs share, but for the toolkit's version.
        n_scenarios: scenes scored.
        n_rollouts: rollouts a scene; None where the scenes differ.
        scenario_list_sha256: of the sorted ids, one a line.
        metrics: official field -> mean over the scenes where it is finite; None where there is no
            such scene, or no such field in this challenge.
        buckets: the same for the official buckets.
        left_out: field of `metrics` or `buckets` -> the scenes left out of its mean; fields that
            leave none out are absent.
        n_scenarios_without_rollouts: scenes passed over with `--missing intersect`.
        n_rollouts_without_scenario: rollouts passed over with it.
        request: what was asked for.
    """

    schema_version: int
    toolkit_version: str
    challenge: str
    official_release: str
    signature: str
    n_scenarios: int
    n_rollouts: int | None
    scenario_list_sha256: str
    metrics: Mapping[str, float | None]
    buckets: Mapping[str, float | None]
    left_out: Mapping[str, LeftOut]
    n_scenarios_without_rollouts: int
    n_rollouts_without_scenario: int
    request: Request

    def n_averaged(self, field: str) -> int:
        """How many scenes the mean of a field of `metrics` or `buckets` is over."""
        return self.n_scenarios - (
            self.left_out[field].n_scenarios if field in self.left_out else 0
        )

    def to_json(self) -> str:
        """The text of `summary.json`: keys in a fixed order, no NaN."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """The reverse of `to_json`.

        Raises:
            WosacError: the text is no summary, or one of a newer schema.
        """
        try:
            fields = json.loads(text)
            version = fields["schema_version"]
            if version == SCHEMA_VERSION:
                left_out = {name: LeftOut(**value) for name, value in fields["left_out"].items()}
                return cls(
                    **{
                        **fields,
                        "left_out": left_out,
                        "request": Request(**fields["request"]),
                    }
                )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WosacError("not a summary of wosac score", mend="score it again") from error
        raise WosacError(
            f"schema version {version!r} is unknown to this toolkit, which knows {SCHEMA_VERSION}",
            mend="upgrade wosac-toolkit, or score it again",
        )


def summarise(
    scenes: Sequence[SceneResult],
    request: Request,
    challenge: Challenge,
    *,
    n_scenarios_without_rollouts: int = 0,
    n_rollouts_without_scenario: int = 0,
) -> Summary:
    """Average the scores of scenes.

    Each field is the mean over the scenes where it is finite, as `aggregate_scenario_metrics` of
    the official `metrics.py` has it where all are, and a bucket is the mean of the scenes' buckets,
    which is the official bucket of means. Scenes left out are named with the reason.

    Args:
        scenes: at least one scored scene, in the order of the scenario files.
        request: what was asked for.
        challenge: the version that scored them.
        n_scenarios_without_rollouts: passed over by `intersect`.
        n_rollouts_without_scenario: passed over by `intersect`.
    """
    means: dict[str, float | None] = {}
    left_out: dict[str, LeftOut] = {}
    for column, field in enumerate(SCORE_FIELDS):
        means[field], out = _mean(scenes, column, challenge)
        if out is not None:
            left_out[field] = out
    buckets = {name: means[source] for name, source in BUCKET_SOURCES.items()}
    left_out |= {n: left_out[s] for n, s in BUCKET_SOURCES.items() if s in left_out}
    ids = [scene.scenario_id for scene in scenes]
    fewest = min(scene.n_rollouts for scene in scenes)
    most = max(scene.n_rollouts for scene in scenes)
    list_hash = hash_lines(sorted(ids))
    return Summary(
        schema_version=SCHEMA_VERSION,
        toolkit_version=request.toolkit_version,
        challenge=challenge.name,
        official_release=challenge.official_release,
        signature=_signature(
            request,
            rollouts=str(most) if fewest == most else f"{fewest}-{most}",
            n_scenarios=len(scenes),
            n_left_out=left_out["metametric"].n_scenarios if "metametric" in left_out else 0,
            list_hash=list_hash,
        ),
        n_scenarios=len(scenes),
        n_rollouts=most if fewest == most else None,
        scenario_list_sha256=list_hash,
        metrics={name: means[name] for name in METRIC_FIELDS},
        buckets=buckets,
        left_out=left_out,
        n_scenarios_without_rollouts=n_scenarios_without_rollouts,
        n_rollouts_without_scenario=n_rollouts_without_scenario,
        request=request,
    )


def _mean(
    scenes: Sequence[SceneResult], column: int, challenge: Challenge
) -> tuple[float | None, LeftOut | None]:
    """The mean of one column over the scenes where it is finite, and the others."""
    reasons: dict[str, list[str]] = {}
    finite: list[float] = []
    for scene in scenes:
        value = scene.values[column]
        if value is None:
            continue
        if math.isfinite(value):
            finite.append(value)
        else:
            reasons.setdefault(_reason(scene, SCORE_FIELDS[column], challenge), []).append(
                scene.scenario_id
            )
    # fsum is exact, so the mean does not depend on the order of the scenes.
    mean = math.fsum(finite) / len(finite) if finite else None
    n_left_out = sum(len(ids) for ids in reasons.values())
    return mean, LeftOut(n_left_out, reasons) if n_left_out else None


def _reason(scene: SceneResult, field: str, challenge: Challenge) -> str:
    """Why a field of a scene is not finite: as its components are not, else for its own reason."""
    parts = [
        scene.non_finite[component.field]
        for component in challenge.components
        if component.field in scene.non_finite
        and (field == "metametric" or field == f"{component.bucket}_metrics")
    ]
    own = scene.non_finite.get(field, "the official result is not a finite number")
    return "; ".join(dict.fromkeys(parts)) or own


def _signature(
    request: Request, *, rollouts: str, n_scenarios: int, n_left_out: int, list_hash: str
) -> str:
    """The line that says what a score is of: `wosac|metric:2025|rollouts:32|...`."""
    parts = {
        "metric": request.challenge,
        "engine": request.engine,
        "rollouts": rollouts,
        "scenes": n_scenarios,
        "left_out": n_left_out,
        "list": list_hash[:8],
        "version": request.toolkit_version,
    }
    return "|".join(["wosac", *(f"{name}:{value}" for name, value in parts.items() if value)])


def hash_lines(lines: Iterable[str]) -> str:
    """SHA-256, in hexadecimal digits, of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------
# An unfinished run


# The score of one scene depends neither on which others are scored nor on their files; its own
# files are known by their stamp.
_NOT_OF_ONE_SCENE = {"limit", "scenario_ids", "missing", "rollouts_files", "scenarios_files"}


class Journal:
    """The finished scenes of a run that goes on, kept so that an interrupted run resumes.

    `DIR/.partial/journal.jsonl`: the request on the first line, then a line a scene, appended as
    it is scored, with a stamp that changes when the scene's files do. A torn last line is cut off
    when the journal is opened again, and its scene is scored once more. Only one process at a time
    can have it open.
    """

    def __init__(self, directory: Path, request: Request, overwrite: bool = False) -> None:
        """Open the journal of a run, and read what an earlier, interrupted run left there.

        Args:
            directory: the folder of the run; made where absent.
            request: what is asked for.
            overwrite: throw away what a run with another request left.

        Raises:
            WosacError: another process has it open, or another run left it and `overwrite` is
                not set.
        """
        folder = directory / ".partial"
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # Scenario id -> stamp, result, place of the line.
        self._lines: dict[str, tuple[str, SceneResult, int]] = {}
        self._file = (folder / "journal.jsonl").open("a+b")
        try:
            _lock(self._file.fileno(), directory)
            self._load(request, overwrite)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._lines)

    def _load(self, request: Request, overwrite: bool) -> None:
        self._file.seek(0)
        header = self._file.readline()
        if not header.endswith(b"\n"):
            header = b""  # Torn by a kill, if only of its end: the next line would join it.
        try:
            before = Request(**json.loads(header)["request"]) if header else request
        except (ValueError, TypeError, KeyError):
            header, before = b"", request
        differences = [
            name for name in before.differences(request) if name not in _NOT_OF_ONE_SCENE
        ]
        if differences and not overwrite:
            raise WosacError(
                "the folder holds an unfinished run that differs in " + ", ".join(differences),
                where=str(self._folder.parent),
                mend="choose another --out, or --overwrite to throw it away",
            )
        if not header or differences:
            self._file.truncate(0)
            self._write({"request": dataclasses.asdict(request)})
            return
        end = self._file.tell()
        for line in self._file:
            try:
                if not line.endswith(b"\n"):
                    break
                stamp, result = _decode(json.loads(line))
            except (ValueError, TypeError, KeyError):
                break
            self._lines[result.scenario_id] = stamp, result, end
            end += len(line)
        self._file.truncate(end)

    def find(self, scenario_id: str, stamp: str) -> SceneResult | None:
        """The result of a scene, None where it is not finished or its files have changed."""
        kept, result, _ = self._lines.get(scenario_id, (None, None, 0))
        return result if kept == stamp else None

    def append(self, result: SceneResult, stamp: str, agents: AgentRows | None = None) -> None:
        """Keep the result of one more scene; it is safe from a kill once this returns."""
        record = {"stamp": stamp, **dataclasses.asdict(result)}
        if agents is not None:
            record["agents"] = agents
        self._lines[result.scenario_id] = stamp, result, self._write(record)

    def _write(self, record: Mapping[str, Any]) -> int:
        offset = self._file.seek(0, os.SEEK_END)
        # NaN stays NaN: only this module reads the file.
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        return offset

    def agents(self, scenario_id: str) -> AgentRows:
        """The rows of the agents of a finished scene, read back from the file."""
        self._file.seek(self._lines[scenario_id][2])
        rows: AgentRows = json.loads(self._file.readline())["agents"]
        return rows

    def discard(self) -> None:
        """Close and delete the journal."""
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _decode(record: dict[str, Any]) -> tuple[str, SceneResult]:
    record.pop("agents", None)
    stamp, values = record.pop("stamp"), tuple(record.pop("values"))
    if len(values) != len(SCORE_FIELDS):
        raise ValueError("another number of fields")
    attributes = SceneAttributes(**record.pop("attributes"))
    return stamp, SceneResult(values=values, attributes=attributes, **record)


def _lock(descriptor: int, directory: Path) -> None:
    """Keep other processes out until the file is closed; the system does so even after a kill."""
    try:
        import fcntl
    except ImportError:  # Windows has none, and there two runs in one folder are not noticed.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WosacError(
            "another process is scoring into this folder",
            where=str(directory),
            mend="wait for it, or choose another --out",
        ) from None


# --------------------------------------------------------------------------------------------------
# A finished run


def write_run(
    directory: Path,
    summary: Summary,
    scenes: Sequence[SceneResult],
    journal: Journal | None = None,
) -> None:
    """Write the files of a run, each under a temporary name first, `summary.json` last.

    Args:
        directory: the folder of the run; made where absent.
        summary: of the scenes.
        scenes: the rows of `scores.parquet`.
        journal: where the rows of the agents are read from; None writes no `agents.parquet`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # From here until the end there is no whole run in the folder, and no summary to claim it.
    for name in ("summary.json", "agents.parquet", "findings.json"):
        (directory / name).unlink(missing_ok=True)
    _write_parquet(directory / "scores.parquet", SCORE_SCHEMA, _score_columns(scenes))
    if journal is not None:
        agents = ((s.scenario_id, journal.agents(s.scenario_id)) for s in scenes)
        _write_parquet(directory / "agents.parquet", AGENT_SCHEMA, _agent_columns(agents))
    with atomic_write(directory / "summary.json") as stream:
        stream.write(summary.to_json().encode())


def _score_columns(scenes: Sequence[SceneResult]) -> Iterator[dict[str, list[Any]]]:
    yield {
        "scenario_id": [scene.scenario_id for scene in scenes],
        **{f: [scene.values[i] for scene in scenes] for i, f in enumerate(SCORE_FIELDS)},
        **{f: [getattr(scene.attributes, f) for scene in scenes] for f in ATTRIBUTE_SCHEMA},
        **{f: [getattr(scene, f) for scene in scenes] for f in COUNT_FIELDS},
    }


def _agent_columns(scenes: Iterable[tuple[str, AgentRows]]) -> Iterator[dict[str, list[Any]]]:
    """Columns of some thousand agents at a time, so that memory stays flat."""
    columns: dict[str, list[Any]] = {name: [] for name in AGENT_SCHEMA}
    for number, (scenario_id, rows) in enumerate(scenes, start=1):
        n_agents = len(rows["object_id"])
        for name, column in columns.items():
            if name == "scenario_id":
                column.extend([scenario_id] * n_agents)
            else:
                column.extend(rows.get(name, [None] * n_agents))
        if number % _SCENES_PER_ROW_GROUP == 0:
            yield columns
            columns = {name: [] for name in AGENT_SCHEMA}
    yield columns


def _write_parquet(
    path: Path, schema: Mapping[str, str], tables: Iterable[Mapping[str, list[Any]]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow_schema: pa.Schema = pa.schema(
        [(name, pa.type_for_alias(kind)) for name, kind in schema.items()],
        metadata={"wosac_schema_version": str(SCHEMA_VERSION)},
    )
    with atomic_write(path) as stream, pq.ParquetWriter(stream, arrow_schema) as writer:
        for columns in tables:
            arrays = [_arrow_array(columns[name], schema[name]) for name in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=arrow_schema))


def _arrow_array(values: Sequence[Any], kind: str) -> pa.Array:
    """What `pyarrow.array` makes of a column, which would first import pandas: 0.3 s a run."""
    import pyarrow as pa

    there = np.array([value is not None for value in values], np.bool_)
    valid = np.packbits(there, bitorder="little")
    if kind == "string":
        texts = [(value or "").encode() for value in values]
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        buffers = [valid, offsets, b"".join(texts)]
    else:
        filled = np.array([0 if value is None else value for value in values], kind)
        buffers = [valid, np.packbits(filled, bitorder="little") if kind == "bool" else filled]
    type_ = pa.type_for_alias(kind)
    return pa.Array.from_buffers(type_, len(values), [pa.py_buffer(buffer) for buffer in buffers])


def write_findings(directory: Path, findings: Iterable[Finding]) -> None:
    """Write `findings.json`: what keeps a run from being finished."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(finding) for finding in findings]
    with atomic_write(directory / "findings.json") as stream:
        stream.write(json.dumps(rows, indent=2).encode() + b"\n")


def read_summary(directory: str | os.PathLike[str]) -> Summary:
    """The summary of a finished run.

    Raises:
        WosacError: there is none, it is damaged, or its schema is unknown.
    """
    path = Path(directory) / "summary.json"
    try:
        return Summary.from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        begun = (path.parent / ".partial").exists()
        raise WosacError(
            "this run has not finished" if begun else "no finished run of wosac score here",
            where=str(directory),
            mend="repeat its command, which resumes it"
            if begun
            else "give a folder that wosac score --out wrote",
        ) from None
    except (WosacError, UnicodeDecodeError) as error:
        what = error.what if isinstance(error, WosacError) else "not a text file"
        mend = error.mend if isinstance(error, WosacError) else "score it again"
        raise WosacError(what, where=str(path), mend=mend) from None


def read_finished(folder: Path, request: Request) -> Summary:
    """The summary of the same run, finished before.

    Raises:
        WosacError: the finished run was asked for something else.
    """
    summary = read_summary(folder)
    if differences := summary.request.differences(request):
        raise WosacError(
            "the folder holds a finished run that differs in " + ", ".join(differences),
            where=str(folder),
            mend="choose another --out, or --overwrite to replace it",
        )
    return summary


def read_scenes(directory: str | os.PathLike[str]) -> list[SceneResult]:
    """The rows of `scores.parquet`, without the reasons for values that are not finite.

    Raises:
        WosacError: the file is absent, damaged, or not of this schema.
    """
    columns = _read_parquet(Path(directory) / "scores.parquet", SCORE_SCHEMA).to_pydict()
    return [
        SceneResult(
            scenario_id=scenario_id,
            values=tuple(columns[name][row] for name in SCORE_FIELDS),
            **{name: columns[name][row] for name in COUNT_FIELDS},
            attributes=SceneAttributes(**{name: columns[name][row] for name in ATTRIBUTE_SCHEMA}),
        )
        for row, scenario_id in enumerate(columns["scenario_id"])
    ]


def _read_parquet(path: Path, schema: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=None).select(list(schema))
    except FileNotFoundError:
        raise WosacError("the file is missing", where=str(path), mend="score it again") from None
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise WosacError(
            f"not a table of this toolkit: {str(error).splitlines()[0]}",
            where=str(path),
            mend="score it again",
        ) from None


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """A finished run, read back.

    Attributes:
        directory: its folder.
        summary: `summary.json`.
        scores: `scores.parquet`, a row a scene in the order of the scenario files, the columns
            of `SCORE_SCHEMA`.
    """

    directory: Path
    summary: Summary
    scores: pd.DataFrame

    def agents(self) -> pd.DataFrame:
        """`agents.parquet`, a row an evaluated agent, the columns of `AGENT_SCHEMA`.

        Raises:
            WosacError: the run was made without `--per-agent`, or the file is damaged.
        """
        if not self.summary.request.per_agent:
            raise WosacError(
                "this run has no rows of agents",
                where=str(self.directory),
                mend="score again with --per-agent",
            )
        table = _read_parquet(self.directory / "agents.parquet", AGENT_SCHEMA)
        frame: pd.DataFrame = table.to_pandas()
        return frame


def read_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run folder of `wosac score`.

    Args:
        directory: the folder that `--out` named.

    Raises:
        WosacError: there is no finished run, or its files are damaged or do not fit together.
    """
    directory = Path(directory)
    summary = read_summary(directory)
    scores: pd.DataFrame = _read_parquet(directory / "scores.parquet", SCORE_SCHEMA).to_pandas()
    ids = scores["scenario_id"].tolist()
    twice = [scenario_id for scenario_id, count in Counter(ids).items() if count > 1]
    if twice or hash_lines(sorted(ids)) != summary.scenario_list_sha256:
        raise WosacError(
            "scores.parquet and summary.json are of different scenes",
            where=str(directory),
            mend="score it again",
        )
    return Run(directory, summary, scores)
