"""Many scenes: join them with their rollouts, check, score, keep what is finished.

Any function `(scenario, rollouts, challenge) -> ScenarioScore` can be the engine; `official_metric`
is the toolkit's own.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from wosac_toolkit import __version__, results
from wosac_toolkit.attributes import scene_attributes
from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.errors import FormatError, WosacError, some_ids
from wosac_toolkit.manifest import absolute_path
from wosac_toolkit.results import AgentRows, Journal, Request, SceneResult, Summary
from wosac_toolkit.validation import Finding, check_rollouts
from wosac_toolkit.workers import Crew, n_workers, progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm

    from wosac_toolkit.io.rollouts import ArchivedRollouts, RolloutsRef
    from wosac_toolkit.io.tfrecord import RecordRef, ShardPath
    from wosac_toolkit.metric import ScenarioScore
    from wosac_toolkit.rollouts import Rollouts
    from wosac_toolkit.scenario import Scenario

PathLike = str | os.PathLike[str]
Engine = Callable[["Scenario", "Rollouts", Challenge], "ScenarioScore"]


def official_metric(scenario: Scenario, rollouts: Rollouts, challenge: Challenge) -> ScenarioScore:
    """The engine of this toolkit: `wosac_toolkit.score_scenario`."""
    # Imported here: the parent of worker processes never needs the kernels.
    from wosac_toolkit.metric import score_scenario

    return score_scenario(scenario, rollouts, challenge)


class ScoringError(WosacError):
    """Scenes that could not be scored.

    Attributes:
        findings: what is wrong, scene by scene.
    """

    def __init__(
        self, what: str, *, where: str = "", mend: str = "", findings: Iterable[Finding] = ()
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.findings = tuple(findings)


@dataclass(frozen=True, slots=True)
class ScoredDataset:
    """What `score_dataset` returns.

    Attributes:
        summary: the aggregates.
        scenes: the scores, in the order of the scenario files.
        n_kept: how many of them were taken over from an earlier, interrupted run.
        finished_before: the folder held this very run, finished, and nothing was scored.
    """

    summary: Summary
    scenes: Sequence[SceneResult]
    n_kept: int = 0
    finished_before: bool = False


def score_dataset(
    rollouts: PathLike,
    scenarios: ShardPath,
    *,
    challenge: str | Challenge = "2025",
    engine: Engine = official_metric,
    out: PathLike | None = None,
    per_agent: bool = False,
    n_rollouts: int | None = 32,
    missing: Literal["error", "intersect"] = "error",
    scenario_ids: Collection[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ScoredDataset:
    """Score all rollouts of a folder, file or archive against their scenes.

    The result, to the bytes of its files, does not depend on `workers`. A script that uses more
    than one worker must call this below `if __name__ == "__main__":`.

    Args:
        rollouts: what `wosac_toolkit.load_rollouts` reads; a `.tar.gz` is read as a stream.
        scenarios: what `wosac_toolkit.load_scenarios` reads.
        challenge: version of the metric.
        engine: what scores a scene; a function that can be pickled by its name.
        out: folder of the run, see `wosac_toolkit.results`: an interrupted run resumes with the
            scenes whose files have not changed since, a finished one is read back. None writes
            nothing.
        per_agent: also write `agents.parquet`; needs `out`.
        n_rollouts: rollouts that each scene must have; None for any number.
        missing: `error` refuses scenes without rollouts and rollouts without scene, `intersect`
            scores the others and counts these.
        scenario_ids: the scenes to score; None for all. Rollouts of other scenes are ignored.
        limit: score at most so many scenes, the first in the order of the scenario files, with
            `intersect` the first that have rollouts; of a `.tar.gz` the first in the archive, the
            rest of which is then not looked at. Scenes beyond are not missing.
        workers: processes; None for one a CPU, fewer where there is little to score; 1 scores in
            this process.
        overwrite: replace a run in `out`, finished or not, that was asked for something else, and
            score a finished one anew.
        progress: show a progress bar on stderr.

    Raises:
        ScoringError: scenes or rollouts are missing, duplicate or bad; its `findings` name each.
            What was scored is kept in `out`, and is not scored again once the input is repaired.
        WosacError: anything else that is wrong with the arguments or files.
    """
    challenge = get_challenge(challenge)
    if per_agent and out is None:
        raise WosacError("the rows of agents must be written to a folder", mend="give --out")
    if limit is not None and limit < 1:
        raise WosacError(f"limit must be at least 1, not {limit}")
    rules = _Rules(challenge, engine, n_rollouts, per_agent)
    folder = None if out is None else Path(out)
    if folder is not None and not overwrite and (folder / "summary.json").exists():
        request = _request(rollouts, scenarios, rules, limit, scenario_ids, missing)
        return ScoredDataset(
            results.read_finished(folder, request),
            results.read_scenes(folder),
            finished_before=True,
        )

    n_processes = n_workers(workers, _rough_n_scenes(rollouts, limit))
    # The workers start before anything is read, and load the kernels meanwhile.
    with Crew(functools.partial(_score_task, rules), n_processes, _prepare) as crew:
        request = _request(rollouts, scenarios, rules, limit, scenario_ids, missing)
        work = find_work(rollouts, scenarios, scenario_ids, limit, progress)
        join = work.join
        refuse(join.findings(missing), folder)
        with nullcontext() if folder is None else Journal(folder, request, overwrite) as journal:
            with progress_bar(work.n_tasks, what="scoring", show=progress) as bar:
                scored = _score(work, crew, journal, bar)
            refuse([*scored.findings(join.records), *join.findings(missing)], folder)
            scenes = [scored.scenes[name] for name in join.records if name in scored.scenes]
            if not scenes:
                raise WosacError("no scene has rollouts", where=os.fspath(rollouts))
            summary = results.summarise(
                scenes,
                request,
                challenge,
                n_scenarios_without_rollouts=len(join.without_rollouts),
                n_rollouts_without_scenario=len(join.without_scenario),
            )
            if journal is not None and folder is not None:
                results.write_run(folder, summary, scenes, journal if per_agent else None)
                journal.discard()
    return ScoredDataset(summary, scenes, n_kept=scored.n_kept)


def _request(
    rollouts: PathLike,
    scenarios: ShardPath,
    rules: _Rules,
    limit: int | None,
    scenario_ids: Collection[str] | None,
    missing: str,
) -> Request:
    """The arguments of `score_dataset`, as far as the result depends on them."""
    from wosac_toolkit.io.rollouts import rollout_files
    from wosac_toolkit.io.tfrecord import find_shards

    return Request(
        challenge=rules.challenge.name,
        engine=rules.engine_name,
        toolkit_version=__version__,
        rollouts=os.path.abspath(rollouts),
        rollouts_files=hash_files(rollout_files(rollouts)),
        scenarios=absolute_path(scenarios),
        scenarios_files=hash_files(find_shards(scenarios)),
        n_rollouts=rules.n_rollouts,
        per_agent=rules.per_agent,
        limit=limit,
        scenario_ids=None if scenario_ids is None else results.hash_lines(sorted(scenario_ids)),
        missing=missing,
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do.

    Attributes:
        join: of scenes and rollouts; of an archive, as far as its messages were taken.
        tasks: the matches, to be taken once.
        n_tasks: how many there are at most.
        chunk_size: how many a worker gets at once at most.
    """

    join: Join
    tasks: Iterator[Task]
    n_tasks: int
    chunk_size: int


def find_work(
    rollouts: PathLike,
    scenarios: ShardPath,
    scenario_ids: Collection[str] | None,
    limit: int | None,
    progress: bool,
) -> Work:
    """Join rollouts with their scenes; the arguments are those of `score_dataset`.

    Raises:
        WosacError: nothing found, damaged files, or scenarios asked for that are not there.
    """
    from wosac_toolkit.io.rollouts import index_rollouts, is_archive, iter_archive
    from wosac_toolkit.io.scenarios import index_scenarios

    index = index_scenarios(scenarios, progress=progress and sys.stderr.isatty())
    records = _select(index, scenario_ids)
    join = Join(records, selected=scenario_ids is not None, limit=limit)
    if is_archive(rollouts):
        tasks = join.match((rollouts, message) for message in iter_archive(rollouts))
        n_tasks = len(records) if limit is None else min(limit, len(records))
        # A task brings a megabyte or more along.
        return Work(join, islice(tasks, limit), n_tasks, chunk_size=1)
    in_order = join.in_order(index_rollouts(rollouts))
    return Work(join, iter(in_order), len(in_order), chunk_size=4)


@dataclass(slots=True)
class _Progress:
    """What has come out so far.

    Attributes:
        scenes: scenario id -> its score.
        failed: scenario id -> why it has none.
        n_kept: scores that an earlier run left in the journal.
    """

    scenes: dict[str, SceneResult] = field(default_factory=dict)
    failed: dict[str, Sequence[Finding]] = field(default_factory=dict)
    n_kept: int = 0

    def findings(self, order: Iterable[str]) -> list[Finding]:
        """Why scenes have no score, in this order of scenes."""
        return [finding for name in order for finding in self.failed.get(name, ())]


def _score(
    work: Work,
    crew: Crew[Task, _Scored | list[Finding]],
    journal: Journal | None,
    bar: tqdm[NoReturn],
) -> _Progress:
    """Score the tasks whose results the journal does not hold, and add theirs to it."""
    done = _Progress()

    def unfinished() -> Iterator[Task]:
        for task in work.tasks:
            result = None if journal is None else journal.find(task.scenario_id, task.stamp)
            if result is None:
                yield task
                continue
            done.scenes[task.scenario_id] = result
            done.n_kept += 1
            # The bar is about what is scored now, and so are its rate and remaining time.
            bar.total = (bar.total or 1) - 1

    # So many that messages do not cost time, so few that no worker waits for the last.
    chunk_size = max(1, min(work.chunk_size, work.n_tasks // (4 * len(crew))))
    for task, outcome in crew.map(unfinished(), chunk_size):
        bar.update()
        if not isinstance(outcome, _Scored):
            done.failed[task.scenario_id] = outcome
            continue
        done.scenes[task.scenario_id] = outcome.result
        if journal is not None:
            journal.append(outcome.result, task.stamp, outcome.agents)
    return done


def _rough_n_scenes(rollouts: PathLike, limit: int | None) -> int:
    """How many scenes there may be, from the size of files that nobody has looked into yet."""
    path = Path(rollouts)
    files = [path] if path.is_file() else path.glob("*") if path.is_dir() else []
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    # 32 rollouts of 25 objects are 1 MB.
    n_scenes = n_bytes >> 20
    return n_scenes if limit is None else min(limit, n_scenes)


def hash_files(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of change of files."""
    return results.hash_lines(f"{file.name} {_stamp(file)}" for file in files)


def _stamp(file: PathLike) -> str:
    """What changes when a file does."""
    stat = os.stat(file)
    return f"{stat.st_size}-{stat.st_mtime_ns}"


# --------------------------------------------------------------------------------------------------
# Scenes and their rollouts


@dataclass(frozen=True, slots=True)
class Task:
    """A scene and its rollouts, not read yet; small unless these come out of an archive.

    Attributes:
        record: where the scene is.
        rollouts: where its rollouts are, or their message itself.
        stamp: what changes when one of their files does.
    """

    record: RecordRef
    rollouts: RolloutsRef | ArchivedRollouts
    stamp: str

    @property
    def scenario_id(self) -> str:
        """The scene's id."""
        return self.rollouts.scenario_id

    def __str__(self) -> str:
        return f"scenario {self.scenario_id}"


def _select(
    records: Mapping[str, RecordRef], scenario_ids: Collection[str] | None
) -> Mapping[str, RecordRef]:
    """The records that are asked for, in the order of the files."""
    if scenario_ids is None:
        return records
    if unknown := set(scenario_ids) - records.keys():
        raise WosacError(
            f"{len(unknown)} of the {len(set(scenario_ids))} scenarios asked for are not in the "
            f"scenario files: {some_ids(unknown)}"
        )
    wanted = set(scenario_ids)
    return {scenario_id: record for scenario_id, record in records.items() if scenario_id in wanted}


@dataclass
class Join:
    """Scenes and rollouts brought together by their ids, and what found no partner.

    Attributes:
        records: the scenes to be scored, in the order of the scenario files.
        selected: they are a choice of scenes, so rollouts of others are nothing to wonder at.
        limit: how many are to be scored at most; those beyond are not missing.
        without_rollouts: scenes that have none and were passed over; known when all rollouts have
            been looked at.
        without_scenario: ids of rollouts that belong to no scene -> their place.
        repeated: ids of rollouts that come more than once -> the first two places.
    """

    records: Mapping[str, RecordRef]
    selected: bool
    limit: int | None = None
    without_rollouts: Sequence[str] = ()
    without_scenario: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, tuple[str, str]] = field(default_factory=dict)

    def in_order(self, refs: Iterable[RolloutsRef]) -> list[Task]:
        """The first scenes that have rollouts, in the order of the scenario files."""
        tasks = {task.scenario_id: task for task in self.match((r.path, r) for r in refs)}
        in_order: list[Task] = []
        without_rollouts: list[str] = []
        for scenario_id in self.records:
            if len(in_order) == self.limit:
                break
            if scenario_id in tasks:
                in_order.append(tasks[scenario_id])
            else:
                without_rollouts.append(scenario_id)
        self.without_rollouts = without_rollouts
        return in_order

    def match(
        self, rollouts: Iterable[tuple[PathLike, RolloutsRef | ArchivedRollouts]]
    ) -> Iterator[Task]:
        """The same in the order of the rollouts, given with their files, taken as needed."""
        stamp = functools.cache(_stamp)
        places: dict[str, str] = {}
        for file, ref in rollouts:
            scenario_id = ref.scenario_id
            if scenario_id not in self.records:
                if not self.selected:
                    self.without_scenario[scenario_id] = ref.where
            elif scenario_id in places:
                self.repeated.setdefault(scenario_id, (places[scenario_id], ref.where))
            else:
                places[scenario_id] = ref.where
                record = self.records[scenario_id]
                yield Task(record, ref, f"{stamp(os.fspath(file))} {stamp(record.path)}")
        self.without_rollouts = [s for s in self.records if s not in places]

    def findings(self, missing: str) -> list[Finding]:
        """What is wrong with the join; scenes without a partner only where `missing` is `error`."""
        repeated = [
            Finding(
                "duplicate_rollouts", f"has rollouts here and in {first}", scenario_id, file=second
            )
            for scenario_id, (first, second) in self.repeated.items()
        ]
        if missing == "intersect":
            return repeated
        asked_for = set(islice(self.records, self.limit))
        without_rollouts = [s for s in self.without_rollouts if s in asked_for]
        return [
            *repeated,
            *(Finding("no_rollouts", "has no rollouts", s) for s in without_rollouts),
            *(
                Finding("no_scenario", "is not in the scenario files", s, file=file)
                for s, file in self.without_scenario.items()
            ),
        ]


_KINDS = {
    "duplicate_rollouts": "with rollouts more than once",
    "no_rollouts": "without rollouts",
    "no_scenario": "with rollouts but not in the scenario files",
}


def refuse(findings: Sequence[Finding], folder: Path | None) -> None:
    """Raise the findings, where there are any, as one error; `folder` gets a list of them all.

    Raises:
        ScoringError: there are some.
    """
    if not findings:
        return
    kinds: dict[str, dict[str, None]] = {}
    for finding in findings:
        kind = _KINDS.get(finding.code, "that cannot be scored")
        kinds.setdefault(kind, {})[finding.scenario_id] = None
    mends = []
    if {finding.code for finding in findings} <= {"no_rollouts", "no_scenario"}:
        mends.append("--missing intersect scores those that have both")
    if folder is not None:
        results.write_findings(folder, findings)
        mends.append(f"{folder / 'findings.json'} lists all findings")
    raise ScoringError(
        "; ".join(
            f"{len(ids)} scenario{'' if len(ids) == 1 else 's'} {kind} ({some_ids(ids)})"
            for kind, ids in kinds.items()
        ),
        mend="; ".join(mends),
        findings=findings,
    )


# --------------------------------------------------------------------------------------------------
# One scene, in its worker


@dataclass(frozen=True, slots=True)
class _Rules:
    """What is the same for all scenes of a run."""

    challenge: Challenge
    engine: Engine
    n_rollouts: int | None
    per_agent: bool

    @property
    def engine_name(self) -> str:
        """Empty for the toolkit's own metric."""
        if self.engine is official_metric:
            return ""
        return f"{self.engine.__module__}.{self.engine.__qualname__}"


@dataclass(frozen=True, slots=True)
class _Scored:
    result: SceneResult
    agents: AgentRows | None


def _score_task(rules: _Rules, task: Task) -> _Scored | list[Finding]:
    """Read, check and score one scene; whatever fails becomes findings about this scene."""
    from wosac_toolkit.io.scenarios import read_scenario

    where = task.rollouts.where
    try:
        scenario = read_scenario(task.record)
        rollouts = task.rollouts.read()
        findings = check_rollouts(
            scenario,
            rollouts,
            n_rollouts=rules.n_rollouts,
            n_steps=rules.challenge.n_steps,
            whole_record=rules.challenge.whole_record,
            file=where,
        )
        if findings:
            return findings
        score = rules.engine(scenario, rollouts, rules.challenge)
        attributes = scene_attributes(scenario)
        agents = results.agent_rows(score) if rules.per_agent else None
        return _Scored(results.scene_result(score, attributes), agents)
    except (FormatError, OSError) as error:
        code, what = "unreadable", str(error)
    except WosacError as error:
        code, what = "not_scored", str(error)
    except Exception as error:  # A defect of an engine must not lose the other scenes.
        code, what = "internal_error", f"{type(error).__name__}: {error} {_origin(error)}"
    return [Finding(code, what, task.scenario_id, file="" if where in what else where)]


def _prepare() -> None:
    """Import what every task needs, numba above all."""
    from wosac_toolkit import metric  # noqa: F401
    from wosac_toolkit.io import rollouts, scenario_proto  # noqa: F401


def _origin(error: BaseException) -> str:
    """The line of code that raised an error."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    code = traceback.tb_frame.f_code
    return f"[{Path(code.co_filename).name}:{traceback.tb_lineno} in {code.co_name}]"
