"""What a report says, before it becomes a page: frozen values, and how they come from runs.

Nothing here needs rollouts or scenes: all is in the folders of the runs. What does need them is in
`wosac_toolkit.report.scenes`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wosac_toolkit import resampling
from wosac_toolkit.attributes import SLICINGS
from wosac_toolkit.behaviour import NAMES, Behaviour, BehaviourReport, read_behaviours, watch
from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.compare import HEADLINE, Comparison, Estimate, Model
from wosac_toolkit.errors import WosacError, some_ids
from wosac_toolkit.leaderboard.board import obstacles_beside, ranks, whole_split
from wosac_toolkit.leaderboard.entry import SPLIT_SIZES, Entry
from wosac_toolkit.results import BUCKET_SOURCES, Run, Summary, field_tree
from wosac_toolkit.scenario import BoolArray, Float64Array

if TYPE_CHECKING:
    import pandas as pd

    from wosac_toolkit.report.scenes import SceneFindings, SimulatedFeatures

BEHAVIOUR_FILE = "behaviour.parquet"
"""Where in the folder of a run its behaviour is, as `write_behaviours` writes it."""

DISTRIBUTION_BIN = 0.02
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class SliceMean:
    """The meta-metric over the scenes of one kind.

    Attributes:
        attribute, level: see `SLICINGS`.
        n_scenes: of this kind, with a finite score; at least one.
        mean: with its interval.
    """

    attribute: str
    level: str
    n_scenes: int
    mean: Estimate


@dataclass(frozen=True, slots=True)
class Cost:
    """What a component takes off the score of a scene: weight x (1 - likelihood)."""

    component: str
    likelihood: float
    loss: float


@dataclass(frozen=True, slots=True)
class WorstScene:
    """One of the scenes that score lowest.

    Attributes:
        scenario_id: which.
        score: its meta-metric, the mean over seeds.
        costs: of the components, the largest first.
        kind: what kind of scene it is, in words.
    """

    scenario_id: str
    score: float
    costs: tuple[Cost, ...]
    kind: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the meta-metric spreads over the scenes, means over seeds.

    Attributes:
        counts: scenes in each of the bins of width `DISTRIBUTION_BIN` from 0 to 1; scores outside
            of them are in the outermost.
        quantiles: the values at `QUANTILES`.
    """

    counts: tuple[int, ...]
    quantiles: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all scenes."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What the runs of one model say.

    Attributes:
        name: of the model.
        folders: its runs, one a seed.
        signatures: of its runs, each once.
        n_scenes: scenes of each run.
        n_rollouts: rollouts a scene; None where the scenes differ.
        split: the split of WOMD that has so many scenes; None where the run is on others.
        means: field -> mean over scenes and seeds, as `wosac score` prints it.
        seed_spread: field -> standard deviation of the seeds' means; empty for a single seed.
        left_out: field -> how many scenes are left out of it, since it is not finite there; fields
            that leave none out are absent.
        reasons: why, in words, with how many scenes each.
        distribution: of the meta-metric; None where no scene has one.
        slices: of the meta-metric.
        worst: the scenes with the lowest meta-metric.
    """

    name: str
    folders: tuple[str, ...]
    signatures: tuple[str, ...]
    n_scenes: int
    n_rollouts: int | None
    split: str | None
    means: Mapping[str, Estimate]
    seed_spread: Mapping[str, float]
    left_out: Mapping[str, int]
    reasons: Mapping[str, int]
    distribution: Distribution | None
    slices: tuple[SliceMean, ...]
    worst: tuple[WorstScene, ...]

    @property
    def headline(self) -> Estimate | None:
        """The meta-metric; None where no scene has one."""
        return self.means.get(HEADLINE)


@dataclass(frozen=True, slots=True)
class Beside:
    """A leaderboard entry beside the runs.

    Attributes:
        entry: the entry.
        obstacles: what in it keeps it from comparison with the runs; empty where nothing does.
    """

    entry: Entry
    obstacles: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Report:
    """All that the page says.

    Attributes:
        title: of the page.
        toolkit_version: of this package.
        challenge: version of the metric of all runs.
        models: the runs by model, the baseline first.
        comparison: of all models with the first; None of a single one.
        behaviours: name of a model -> what it does where the metric does not look; without models
            of which that is not measured.
        beside: leaderboard entries.
        obstacles: what in the runs keeps them from comparison with any entry.
        features: simulated against logged features of a sample of scenes.
        findings: name of a model -> what was found in its worst scenes.
        resamples, seed: of the bootstrap, and of the choice of scenes.
    """

    title: str
    toolkit_version: str
    challenge: Challenge
    models: tuple[ModelReport, ...]
    comparison: Comparison | None
    behaviours: Mapping[str, BehaviourReport]
    beside: tuple[Beside, ...]
    obstacles: tuple[str, ...]
    features: SimulatedFeatures
    findings: Mapping[str, SceneFindings]
    resamples: int
    seed: int


# --------------------------------------------------------------------------------------------------
# One model


def model_report(
    model: Model,
    *,
    worst: int,
    missing: Literal["error", "intersect"],
    resamples: int,
    seed: int,
) -> ModelReport:
    """Read what the runs of a model say.

    Args:
        model: its runs, on one version of the metric.
        worst: how many of the scenes with the lowest score are listed.
        missing: where seeds are of different scenes, `intersect` takes those that all have.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        WosacError: the seeds are of different scenes or metrics.
    """
    frames = _frames(model, missing)
    first = frames[0]
    summary = model.runs[0].summary
    challenge = get_challenge(summary.challenge)
    fields = [field for _, field in field_tree(challenge)]
    sources = [BUCKET_SOURCES.get(field, field) for field in fields]
    scores = np.stack([frame[sources].to_numpy(np.float64) for frame in frames], axis=1)
    finite = np.isfinite(scores).all(axis=1)
    # A field that this version does not have is null in every scene.
    there = [k for k, source in enumerate(sources) if any(f[source].notna().any() for f in frames)]
    known = [k for k in there if finite[:, k].any()]
    headline = finite[:, fields.index(HEADLINE)]
    levels = [
        (attribute, level, rows)
        for attribute, slicing in SLICINGS.items()
        for of_scene in [slicing.level_of({str(name): first[name].to_numpy() for name in first})]
        for k, level in enumerate(slicing.levels)
        for rows in [headline & (of_scene == k)]
        if rows.any()
    ]
    counted = [*(finite[:, k] for k in known), *(rows for *_, rows in levels)]
    rows = np.array(counted, np.bool_).reshape(-1, len(first)).T
    picked = [*known, *[fields.index(HEADLINE)] * len(levels)]
    estimates, of_seeds = _estimates(scores[:, :, picked], rows, resamples, seed)
    names = [fields[k] for k in known]
    by_scene = scores.mean(axis=1)
    return ModelReport(
        name=model.name,
        folders=tuple(str(run.directory) for run in model.runs),
        signatures=tuple(dict.fromkeys(run.summary.signature for run in model.runs)),
        n_scenes=len(first),
        n_rollouts=_n_rollouts([run.summary for run in model.runs]),
        split=next((name for name, sizes in SPLIT_SIZES.items() if len(first) in sizes), None),
        means=dict(zip(names, estimates, strict=False)),
        seed_spread={}
        if len(frames) == 1
        else {n: float(s.std(ddof=1)) for n, s in zip(names, of_seeds.T, strict=False)},
        left_out={fields[k]: int(n) for k in there if (n := (~finite[:, k]).sum())},
        reasons=_reasons(run.summary for run in model.runs),
        distribution=_distribution(by_scene[headline, fields.index(HEADLINE)]),
        slices=tuple(
            SliceMean(attribute, level, int(rows.sum()), mean)
            for (attribute, level, rows), mean in zip(levels, estimates[len(known) :], strict=True)
        ),
        worst=_worst(first, by_scene, fields, challenge, worst),
    )


def _frames(model: Model, missing: str) -> list[pd.DataFrame]:
    """The rows of the scenes that all seeds have, in the order of their ids."""
    versions = {(run.summary.challenge, run.summary.request.engine) for run in model.runs}
    if len(versions) > 1:
        raise WosacError(f"the runs of {model.name} are of different metrics")
    frames = [run.scores.set_index("scenario_id", drop=False) for run in model.runs]
    ids = [set(frame.index) for frame in frames]
    common, every = set.intersection(*ids), set.union(*ids)
    if common != every and missing == "error":
        raise WosacError(
            f"the runs of {model.name} are of different scenes, such as {some_ids(every - common)}",
            mend=f"--missing intersect takes the {len(common)} that all have",
        )
    if not common:
        raise WosacError(f"the runs of {model.name} have no scene in common")
    order = sorted(common)
    return [frame.loc[order] for frame in frames]


def _estimates(
    scores: Float64Array, rows: BoolArray, resamples: int, seed: int
) -> tuple[list[Estimate], Float64Array]:
    """Means of columns with their intervals, and the means of the seeds.

    Args:
        scores: float64 [N, S, C], finite where `rows` is True.
        rows: bool [N, C].
        resamples, seed: of the bootstrap.

    Returns:
        C estimates, and float64 [S, C].
    """
    if not rows.shape[1]:
        return [], np.empty((scores.shape[1], 0))
    counted = np.where(rows[:, None], scores, 0.0)
    of_seeds = np.array(
        [[_fsum(counted[:, s, c]) for c in range(rows.shape[1])] for s in range(scores.shape[1])]
    ) / rows.sum(axis=0)
    # The draws of `compare_runs`, so that both have the same interval of a mean.
    rng, _ = np.random.default_rng(seed).spawn(2)
    drawn = resampling.bootstrap_means(scores, rows, [scores.shape[1]], resamples, rng)
    ends = resampling.interval(drawn[:, 0])
    several = rows.sum(axis=0) > 1
    estimates = [
        Estimate(float(mean), float(low), float(high))
        if enough
        else Estimate(float(mean), None, None)
        for mean, low, high, enough in zip(of_seeds.mean(axis=0), *ends, several, strict=True)
    ]
    return estimates, of_seeds


def _fsum(column: Float64Array) -> float:
    return math.fsum(column.tolist())


def _n_rollouts(summaries: Sequence[Summary]) -> int | None:
    counts = {summary.n_rollouts for summary in summaries}
    return counts.pop() if len(counts) == 1 else None


def _reasons(summaries: Iterable[Summary]) -> dict[str, int]:
    """Why scenes are left out of the meta-metric."""
    reasons: dict[str, int] = {}
    for summary in summaries:
        if HEADLINE in summary.left_out:
            for reason, ids in summary.left_out[HEADLINE].reasons.items():
                reasons[reason] = max(reasons.get(reason, 0), len(ids))
    return reasons


def _distribution(scores: Float64Array) -> Distribution | None:
    if not len(scores):
        return None
    n_bins = round(1 / DISTRIBUTION_BIN)
    # Rounded so that 0.58, which is a little less in binary, is in the bin that begins there.
    bins = np.clip(np.floor(np.round(scores * n_bins, 9)).astype(np.int64), 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    return Distribution(
        counts=tuple(counts.tolist()), quantiles=tuple(np.quantile(scores, QUANTILES).tolist())
    )


def _worst(
    frame: pd.DataFrame,
    scores: Float64Array,
    fields: Sequence[str],
    challenge: Challenge,
    n: int,
) -> tuple[WorstScene, ...]:
    headline = scores[:, fields.index(HEADLINE)]
    # NaN is last, and equal scores stay in the order of the ids.
    order = [k for k in np.argsort(headline, kind="stable").tolist() if np.isfinite(headline[k])]
    scenes = []
    for k in order[:n]:
        costs = [
            Cost(c.name, float(likelihood), float(c.weight * (1 - likelihood)))
            for c in challenge.components
            for likelihood in [scores[k, fields.index(c.field)]]
            if np.isfinite(likelihood)
        ]
        scenes.append(
            WorstScene(
                scenario_id=str(frame.index[k]),
                score=float(headline[k]),
                costs=tuple(sorted(costs, key=lambda cost: -cost.loss)),
                kind=_kind(frame.iloc[k]),
            )
        )
    return tuple(scenes)


def _kind(row: pd.Series[Any]) -> tuple[str, ...]:
    """What kind of scene it is, in words."""
    words = []
    for noun in ("vehicle", "pedestrian", "cyclist"):
        if count := row[f"n_evaluated_{noun}s"]:
            words.append(f"{count} {noun}{'s' if count != 1 else ''} evaluated")
    words.append(f"{row['n_sim_agents']} agents")
    words.append(f"SDC: {row['sdc_manoeuvre']}")
    if row["sdc_at_intersection"]:
        words.append("at an intersection")
    if row["has_traffic_lights"]:
        words.append("traffic lights")
    return tuple(words)


# --------------------------------------------------------------------------------------------------
# What the metric does not look at

_SAME_METRES = 1e-4


def watch_models(
    models: Sequence[Model], *, missing: Literal["error", "intersect"], resamples: int, seed: int
) -> dict[str, BehaviourReport]:
    """How models behave beside the log and the first of them, see `wosac_toolkit.behaviour`.

    Args:
        models: those of a report.
        missing: `intersect` passes over scenes that the first one lacks.
        resamples: draws of the bootstrap, over scenes; of several seeds a scene has the mean.
        seed: of the draws.

    Returns:
        Name of a model -> its behaviour. Models with a run that has no `BEHAVIOUR_FILE` are absent.

    Raises:
        WosacError: such a file is damaged, or is not of the rollouts that were scored.
    """
    measured = {
        model.name: _behaviours(model)
        for model in models
        if all((run.directory / BEHAVIOUR_FILE).exists() for run in model.runs)
    }
    first = measured.get(models[0].name)
    return {
        name: watch(
            own, None if own is first else first, missing=missing, resamples=resamples, seed=seed
        )
        for name, own in measured.items()
    }


def _behaviours(model: Model) -> list[Behaviour]:
    """Of the scenes that all seeds have, the mean over the seeds."""
    seeds = [_behaviours_of_run(run) for run in model.runs]
    common = set.intersection(*map(set, seeds))
    return [_mean_behaviour([seed[name] for seed in seeds]) for name in sorted(common)]


def _behaviours_of_run(run: Run) -> dict[str, Behaviour]:
    """Scenario id -> behaviour, of the rollouts that were scored and no others."""
    file = run.directory / BEHAVIOUR_FILE
    found = {one.scenario_id: one for one in read_behaviours(file)}
    ids = run.scores["scenario_id"].tolist()
    errors = run.scores[BUCKET_SOURCES["min_ade"]].tolist()
    if found.keys() != set(ids) or any(
        abs(error - found[name].min_ade) > _SAME_METRES
        for name, error in zip(ids, errors, strict=True)
    ):
        raise WosacError(
            "the behaviour of other scenes or rollouts than those that were scored",
            where=str(file),
            mend=f"wosac behaviour {run.directory} --out {file}, or delete it",
        )
    return found


def _mean_behaviour(seeds: Sequence[Behaviour]) -> Behaviour:
    """The mean over seeds of one scene, NaN where one of them is."""

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(seeds)

    years = [year for year in seeds[0].realism if all(year in one.realism for one in seeds)]
    means: dict[str, Any] = {name: mean(getattr(one, name) for one in seeds) for name in NAMES}
    means["realism"] = {year: mean(one.realism[year] for one in seeds) for year in years}
    return replace(seeds[0], **means)


# --------------------------------------------------------------------------------------------------
# Leaderboard entries beside them


def choose_beside(
    board: Sequence[Entry], models: Sequence[ModelReport], challenge: str, ids: Sequence[str] | None
) -> tuple[Beside, ...]:
    """The entries that stand beside the runs, and why they cannot be compared with them.

    Args:
        board: the entries there are, best first.
        models: the runs.
        challenge: their version of the metric.
        ids: the entries asked for; None for the yardsticks of this version (the log, constant
            velocity), the best entry, and the best one that tells all its components.

    Raises:
        WosacError: an entry that is not on the board.
    """
    splits = {model.split for model in models}
    split = splits.pop() if len(splits) == 1 else None
    chosen = _usual(board, challenge, split or "test") if ids is None else _asked(board, ids)
    return tuple(
        Beside(entry, obstacles_beside(entry, challenge, split or "all")) for entry in chosen
    )


def _asked(board: Sequence[Entry], ids: Sequence[str]) -> list[Entry]:
    by_id = {entry.id: entry for entry in board}
    for id_ in ids:
        if id_ not in by_id:
            like = difflib.get_close_matches(id_, by_id, n=1, cutoff=0.5)
            raise WosacError(
                f"no leaderboard entry is called {id_!r}",
                mend=f"do you mean {like[0]}?" if like else f"such as {some_ids(by_id, 3)}",
            )
    return [by_id[id_] for id_ in dict.fromkeys(ids)]


def _usual(board: Sequence[Entry], challenge: str, split: str) -> list[Entry]:
    same = [entry for entry in board if entry.challenge == challenge and whole_split(entry)]
    same.sort(key=lambda entry: whole_split(entry) != split)  # Stable: the best stay first.
    chosen: dict[str, Entry] = {}
    for entry in same:
        if entry.reference:
            # One of each: the log on the split of the runs, or else on the other.
            chosen.setdefault(entry.method.casefold(), entry)
    places = ranks(same)
    others = [entry for entry in same if entry.id in places]
    components = {c.field for c in get_challenge(challenge).components}
    best = next(iter(others), None)
    told = next((entry for entry in others if components <= set(entry.results.values)), None)
    return list({e.id: e for e in (*chosen.values(), best, told) if e is not None}.values())


def own_obstacles(models: Sequence[ModelReport], challenge: str) -> tuple[str, ...]:
    """What in the runs keeps them from comparison with any entry of the leaderboard."""
    version = get_challenge(challenge)
    why = []
    if any(model.split is None for model in models):
        sizes = {model.n_scenes for model in models if model.split is None}
        why.append(f"the runs are on {_listed(sizes)} scenes, no whole split")
    if any(model.n_rollouts != version.n_rollouts for model in models):
        why.append(f"the runs do not have {version.n_rollouts} rollouts a scene")
    if any(model.left_out.get(HEADLINE) for model in models):
        why.append("the runs leave scenes out of the mean")
    return tuple(why)


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(f"{n:,}" for n in sorted(numbers))
