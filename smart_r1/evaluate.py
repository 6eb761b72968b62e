"""Rollouts of many scenes, written or scored as they are made.

Three things go on at the same time: the next scenes are read and prepared, those at hand are
simulated, and the last ones are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from smart_r1.model.smart import SMART
from smart_r1.scene_tensors import SceneTensors, scene_tensors
from smart_r1.simulate import DEFAULT_SAMPLING, Sampling, simulate_scenes
from wosac_toolkit import __version__, results
from wosac_toolkit.attributes import scene_attributes
from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.scenarios import index_scenarios, read_scenario
from wosac_toolkit.io.tfrecord import RecordRef, find_shards
from wosac_toolkit.manifest import Manifest, absolute_path
from wosac_toolkit.metric import ScenarioScore, score_scenario
from wosac_toolkit.results import Journal, Request, SceneResult
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.scoring import ScoredDataset, ScoringError, hash_files
from wosac_toolkit.simulation import RolloutsFile, claim_folder, planned_files, write_file
from wosac_toolkit.validation import Finding
from wosac_toolkit.workers import progress_bar

Item = TypeVar("Item")
Made = TypeVar("Made")

_AHEAD = 2
"""Scenes that are prepared, or scored, beside those that are simulated."""

#: Agents times rollouts that are worth a pass on each kind of device: small scenes are simulated
#: together. A CPU has enough to do with one.
_WORTH = {"cpu": 1, "cuda": 1 << 14}


@dataclass(frozen=True, eq=False, slots=True)
class Policy:
    """A model, and how rollouts are drawn from it.

    Attributes:
        model: in evaluation mode.
        name: what identifies it, in files.
        n_rollouts: of each scene.
        sampling: how tokens are drawn.
        seed: of the draws.
    """

    model: SMART
    name: str
    n_rollouts: int = 32
    sampling: Sampling = DEFAULT_SAMPLING
    seed: int = 0

    @property
    def title(self) -> str:
        """All that its rollouts depend on, but for the seed and their number."""
        return f"{self.name} top_k={self.sampling.top_k} temperature={self.sampling.temperature:g}"


@dataclass(frozen=True, eq=False, slots=True)
class Simulated:
    """What became of a scene.

    Attributes:
        scenario: as read.
        rollouts: of all its agents, or why there are none.
    """

    scenario: Scenario
    rollouts: Rollouts | WosacError


def simulated(policy: Policy, scenarios: Iterable[Scenario]) -> Iterator[Simulated]:
    """Simulate scenes in closed loop.

    The rollouts of a scene do not depend on the others, but for rounding.

    Args:
        policy: what simulates them.
        scenarios: taken as they are needed, prepared on another thread.

    Yields:
        What became of each, in their order.
    """
    worth = _WORTH[policy.model.motion.device.type]
    with ThreadPoolExecutor(1) as reader:
        for group in _groups(_ahead(reader, _prepare, scenarios), worth, policy.n_rollouts):
            usable = [tensors for _, tensors in group if isinstance(tensors, SceneTensors)]
            made = iter(
                simulate_scenes(
                    policy.model,
                    usable,
                    n_rollouts=policy.n_rollouts,
                    sampling=policy.sampling,
                    seed=policy.seed,
                )
                if usable
                else ()
            )
            for scenario, tensors in group:
                outcome = tensors if isinstance(tensors, WosacError) else next(made)
                yield Simulated(scenario, outcome)


def evaluate_dataset(
    policy: Policy,
    scenarios: str,
    *,
    challenge: str = "2025",
    out: Path | None = None,
    per_agent: bool = False,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ScoredDataset:
    """Simulate and score all scenes, and keep scores and no rollouts.

    Args:
        policy: what simulates them.
        scenarios: what `wosac_toolkit.load_scenarios` reads.
        challenge: version of the metric.
        out: folder of the run, as `wosac score` writes it; an interrupted run resumes, a finished
            one is read back. None writes nothing.
        per_agent: also write `agents.parquet`; needs `out`.
        limit: at most so many scenes, the first in the files.
        overwrite: replace a run in `out` that was asked for something else.
        progress: show a progress bar on stderr.

    Raises:
        ScoringError: scenes that could not be simulated or scored; its `findings` name each.
        WosacError: anything else that is wrong with the arguments or files.
    """
    version = get_challenge(challenge)
    if per_agent and out is None:
        raise WosacError("the rows of agents must be written to a folder", mend="give --out")
    shards = find_shards(scenarios)
    request = Request(
        challenge=version.name,
        engine="",
        toolkit_version=__version__,
        rollouts=f"{policy.title} seed={policy.seed}",
        rollouts_files="",
        scenarios=absolute_path(scenarios),
        scenarios_files=hash_files(shards),
        n_rollouts=policy.n_rollouts,
        per_agent=per_agent,
        limit=limit,
        scenario_ids=None,
        missing="error",
    )
    if out is not None and not overwrite and (out / "summary.json").exists():
        summary = results.read_finished(out, request)
        return ScoredDataset(summary, results.read_scenes(out), finished_before=True)
    records = dict(islice(index_scenarios(scenarios, progress=progress).items(), limit))
    if out is None:
        scenes = list(_evaluate(policy, version, records, None, per_agent, progress))
        return ScoredDataset(results.summarise(scenes, request, version), scenes)
    with Journal(out, request, overwrite) as journal:
        stamps = _stamps(policy, records)
        n_kept = sum(journal.find(name, stamps[name]) is not None for name in records)
        scenes = list(_evaluate(policy, version, records, journal, per_agent, progress))
        summary = results.summarise(scenes, request, version)
        results.write_run(out, summary, scenes, journal if per_agent else None)
        journal.discard()
    return ScoredDataset(summary, scenes, n_kept=n_kept)


def rollout_dataset(
    policy: Policy,
    scenarios: str,
    out: Path,
    *,
    format_: Literal["npz", "submission"] = "npz",
    limit: int | None = None,
    progress: bool = False,
) -> tuple[int, int]:
    """Simulate all scenes and write what `wosac score` reads.

    Files that an interrupted run has written are kept.

    Args:
        policy: what simulates them.
        scenarios: what `wosac_toolkit.load_scenarios` reads.
        out: folder of the rollouts.
        format_: a file a scene, or submission shards.
        limit: at most so many scenes, the first in the files.
        progress: show a progress bar on stderr.

    Returns:
        How many scenes were simulated now, and how many there are.

    Raises:
        ScoringError: scenes that could not be simulated, each named.
        WosacError: the folder holds rollouts that were made otherwise.
    """
    index = index_scenarios(scenarios, progress=progress)
    records = list(islice(index.items(), limit))
    claim_folder(
        out,
        Manifest(
            scenarios=absolute_path(scenarios),
            policy=policy.title,
            seed=policy.seed,
            n_rollouts=policy.n_rollouts,
            n_scenarios=len(records),
            format=format_,
            toolkit_version=__version__,
        ),
    )
    files = [file for file in planned_files(out, records, format_) if not file.path.exists()]
    n_left = sum(len(file.records) for file in files)
    findings: list[Finding] = []
    with progress_bar(n_left, what="simulating", show=progress) as bar:
        everything = simulated(policy, _read(ref for file in files for _, ref in file.records))
        for file in files:
            findings += _write(file, policy, everything, bar.update)
    if findings:
        raise ScoringError(
            f"{len(findings)} of {len(records)} scenes could not be simulated", findings=findings
        )
    return n_left, len(records)


def _write(
    file: RolloutsFile,
    policy: Policy,
    everything: Iterator[Simulated],
    count: Callable[[], object],
) -> list[Finding]:
    """Write a file with its share of what is simulated; a scene that failed leaves none."""
    findings = []
    made = []
    for one in islice(everything, len(file.records)):
        count()
        if isinstance(one.rollouts, Rollouts):
            made.append(one.rollouts)
        else:
            name = one.scenario.scenario_id
            findings.append(Finding("not_simulated", str(one.rollouts), name))
    if not findings:
        write_file(file.path, made, policy.name)
    return findings


@dataclass(frozen=True, eq=False, slots=True)
class _Scored:
    scenario: Scenario
    score: ScenarioScore | WosacError


def _scored(
    policy: Policy, scenarios: Iterable[Scenario], challenge: Challenge
) -> Iterator[_Scored]:
    """Simulate scenes, and score the last while the next is simulated."""

    def score(one: Simulated) -> _Scored:
        outcome: ScenarioScore | WosacError
        if isinstance(one.rollouts, Rollouts):
            try:
                outcome = score_scenario(one.scenario, one.rollouts, challenge)
            except WosacError as error:
                outcome = error
        else:
            outcome = one.rollouts
        return _Scored(one.scenario, outcome)

    with ThreadPoolExecutor(1) as scorer:
        yield from _ahead(scorer, score, simulated(policy, scenarios))


def _evaluate(
    policy: Policy,
    challenge: Challenge,
    records: dict[str, RecordRef],
    journal: Journal | None,
    per_agent: bool,
    progress: bool,
) -> Iterator[SceneResult]:
    """The results of all scenes in their order, those in the journal among them."""
    stamps = _stamps(policy, records)
    kept = {} if journal is None else {name: journal.find(name, stamps[name]) for name in records}
    missing = {name: ref for name, ref in records.items() if kept.get(name) is None}
    made: dict[str, SceneResult] = {}
    findings = []
    with progress_bar(len(missing), what="evaluating", show=progress) as bar:
        for one in _scored(policy, _read(missing.values()), challenge):
            bar.update()
            name = one.scenario.scenario_id
            if isinstance(one.score, WosacError):
                findings.append(Finding("not_scored", str(one.score), name))
                continue
            made[name] = results.scene_result(one.score, scene_attributes(one.scenario))
            if journal is not None:
                rows = results.agent_rows(one.score) if per_agent else None
                journal.append(made[name], stamps[name], rows)
    if findings:
        raise ScoringError(
            f"{len(findings)} of {len(records)} scenes could not be evaluated", findings=findings
        )
    if not records:
        raise WosacError("no scenes")
    for name in records:
        result = kept.get(name) or made[name]
        yield result


def _stamps(policy: Policy, records: Mapping[str, RecordRef]) -> dict[str, str]:
    """What each result depends on: the policy, and the file of the scene."""
    paths = {ref.path for ref in records.values()}
    files = {path: hash_files([Path(path)]) for path in paths}
    how = f"{policy.title} seed={policy.seed}"
    return {name: f"{how} {files[ref.path]}" for name, ref in records.items()}


def _read(records: Iterable[RecordRef]) -> Iterator[Scenario]:
    for ref in records:
        yield read_scenario(ref)


def _prepare(scenario: Scenario) -> tuple[Scenario, SceneTensors | WosacError]:
    try:
        return scenario, scene_tensors(scenario)
    except WosacError as error:
        return scenario, error


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Made], items: Iterable[Item]
) -> Iterator[Made]:
    """`map` on another thread, a few items ahead of the consumer and no more."""
    waiting: list[Future[Made]] = []
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()


def _groups(
    scenes: Iterable[tuple[Scenario, SceneTensors | WosacError]], worth: int, n_rollouts: int
) -> Iterator[Sequence[tuple[Scenario, SceneTensors | WosacError]]]:
    """Scenes that are simulated together: until there are so many agents times rollouts."""
    group = []
    rows = 0
    for scenario, tensors in scenes:
        group.append((scenario, tensors))
        if isinstance(tensors, SceneTensors):
            rows += n_rollouts * len(tensors.object_ids)
        if rows >= worth:
            yield group
            group, rows = [], 0
    if group:
        yield group
