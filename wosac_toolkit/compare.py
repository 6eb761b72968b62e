"""Paired comparison of runs: whether a difference is real, how large it is, where it comes from.

Runs of `wosac score` are paired by scenario id. The first model is the baseline that every other
one is compared with, by the statistics of `wosac_toolkit.resampling`:

- a mean is the one that `wosac score` prints, over the scenes where the field is finite in all
  runs; a difference is that of two means;
- its 95 % interval is the percentile interval of a paired bootstrap over scenes;
- its p-value is that of paired approximate randomisation, adjusted by Holm over the components;
- a model of several seeds has the mean of its seeds. Scenes and seeds are then both resampled, for
  the interval and, moved to zero, for the p-value.

>>> from wosac_toolkit.compare import compare_runs, read_models
>>> models = read_models(["runs/a", "b=runs/b0,runs/b1"])  # doctest: +SKIP
>>> print(compare_runs(models).against[0].verdict.text)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from wosac_toolkit import resampling
from wosac_toolkit.attributes import SLICINGS, Columns
from wosac_toolkit.challenge import get_challenge
from wosac_toolkit.errors import WosacError, some_ids
from wosac_toolkit.resampling import ALPHA, CONFIDENCE, holm
from wosac_toolkit.results import BUCKET_SOURCES, Run, Summary, field_tree, read_run
from wosac_toolkit.scenario import BoolArray, Float64Array

if TYPE_CHECKING:
    import pandas as pd

_Name = TypeVar("_Name", str, tuple[str, str])

HEADLINE = "realism_meta_metric"
_FEWEST_RESAMPLES = 100

# Scores that differ by less are equal: means over seeds are rounded.
_TIE = 1e-12


def lower_is_better(field: str) -> bool:
    """Whether less of a field is better: displacement errors and rates; of all others, more is."""
    return field in ("min_ade", "average_displacement_error") or field.startswith("simulated_")


# --------------------------------------------------------------------------------------------------
# What is compared


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """A model: one run, or several that differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]


def read_models(specs: Iterable[str | os.PathLike[str]]) -> list[Model]:
    """Read models from the folders of their runs.

    Args:
        specs: `folder`, which is the model's name too, or `name=folder`, or `name=folder,folder`.

    Raises:
        WosacError: a spec is none, or a folder holds no finished run.
    """
    named = [_named(os.fspath(spec)) for spec in specs]
    names = [name or Path(folders[0]).resolve().name for name, folders in named]
    return [
        # Two folders of one name are told apart by their paths.
        Model(
            name or (short if names.count(short) == 1 else folders[0]),
            tuple(read_run(folder) for folder in folders),
        )
        for (name, folders), short in zip(named, names, strict=True)
    ]


def _named(spec: str) -> tuple[str, list[str]]:
    """The name, empty where there is none, and the folders of a model."""
    name, equals, folders = spec.partition("=")
    if Path(spec).exists() or not (equals or "," in spec):
        return "", [spec]
    if not (name and equals and all(folders.split(","))):
        raise WosacError(f"not a model: {spec!r}", mend="folder, or name=folder,folder,...")
    return name, folders.split(",")


# --------------------------------------------------------------------------------------------------
# What comes out


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the ends of its 95 % interval; None where a single scene gives none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What one model scores.

    Attributes:
        name: the model.
        folders: its runs, one a seed.
        signatures: of its runs.
        means: field -> mean over scenes and seeds.
        seed_means: field -> the mean of each seed, in the order of `folders`.
        seed_spread: field -> the standard deviation of these; None where there is only one.
    """

    name: str
    folders: tuple[str, ...]
    signatures: tuple[str, ...]
    means: Mapping[str, Estimate]
    seed_means: Mapping[str, tuple[float, ...]]
    seed_spread: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of a model against the baseline.

    Attributes:
        field: see `field_tree`.
        n_scenes: pairs of scenes: those where the field is finite in all runs.
        baseline: mean of the baseline.
        mean: mean of the model.
        difference: `mean` less `baseline`, with its 95 % interval.
        p: two-sided p-value of no difference; None for a single scene.
        p_holm: `p` adjusted over its family: the components of the metric, or the slices of one
            attribute; None for fields that belong to no family.
        wins, ties, losses: scenes where the model is better, as good, worse, see
            `lower_is_better`; of several seeds the means count.
        spread: standard deviation of the paired differences over scenes; None for a single scene.
        effect: standardised effect, the difference in units of `spread`; None where that is 0.
        detectable: the difference that these scenes and seeds show with 80 % power, from the
            bootstrapped standard error; None for a single scene.
        scenes_needed: scenes that show the difference asked for with 80 % power, from `spread`;
            None where none was asked for.
    """

    field: str
    n_scenes: int
    baseline: float
    mean: float
    difference: Estimate
    p: float | None
    p_holm: float | None
    wins: int
    ties: int
    losses: int
    spread: float | None
    effect: float | None
    detectable: float | None
    scenes_needed: int | None


@dataclass(frozen=True, slots=True)
class Slice:
    """The difference over the scenes of one kind.

    Attributes:
        attribute: name of the slicing, one of `SLICINGS`.
        level: name of the slice.
        difference: of the metric asked for.
    """

    attribute: str
    level: str
    difference: Difference


@dataclass(frozen=True, slots=True)
class SceneChange:
    """One scene's score by the baseline and by the model, means over seeds."""

    scenario_id: str
    baseline: float
    score: float
    difference: float


Outcome = Literal["better", "worse", "equal", "undecided"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the difference of the metric asked for says.

    Attributes:
        outcome: `better` or `worse` where `p` is below 0.05 and the interval excludes 0; `equal`
            where no scene differs; else `undecided`.
        p: adjusted by Holm over the models compared with the baseline; None for a single scene.
        text: the same in plain words.
    """

    outcome: Outcome
    p: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Against:
    """One model against the baseline.

    Attributes:
        name: the model.
        verdict: about the metric asked for.
        differences: field -> its difference, in the order of tables.
        slices: in the order asked for.
        losses: the scenes that lost most of the metric asked for, the largest loss first.
        gains: the scenes that gained most.
    """

    name: str
    verdict: Verdict
    differences: Mapping[str, Difference]
    slices: tuple[Slice, ...]
    losses: tuple[SceneChange, ...]
    gains: tuple[SceneChange, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare_runs` returns.

    Attributes:
        challenge: version of the metric.
        official_release: the official package whose numbers it reproduces.
        toolkit_versions: that scored the runs, sorted.
        n_rollouts: rollouts a scene; None where the scenes differ.
        n_scenes: scenes that all runs have.
        not_compared: run -> its scenes that others lack, passed over with `intersect`.
        left_out: field -> how many of the scenes are left out of it, since it is not finite in
            some run; fields that leave none out are absent.
        metric: the field of the verdicts, slices and scenes.
        confidence: of the intervals.
        resamples: draws of the bootstrap and of the randomisation.
        seed: of the draws.
        power_difference: the difference that `scenes_needed` is about; None where none was asked.
        baseline: name of the first model.
        models: the scores of all models, the baseline first.
        against: the other models against it.
    """

    challenge: str
    official_release: str
    toolkit_versions: tuple[str, ...]
    n_rollouts: int | None
    n_scenes: int
    not_compared: Mapping[str, int]
    left_out: Mapping[str, int]
    metric: str
    confidence: float
    resamples: int
    seed: int
    power_difference: float | None
    baseline: str
    models: tuple[ModelScores, ...]
    against: tuple[Against, ...]

    @property
    def worse(self) -> list[str]:
        """The models that are significantly worse than the baseline."""
        return [other.name for other in self.against if other.verdict.outcome == "worse"]

    def to_json(self) -> str:
        """All of it as JSON: keys in a fixed order, no NaN."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


# --------------------------------------------------------------------------------------------------
# Comparing


def compare_runs(
    models: Sequence[Model],
    *,
    metric: str = HEADLINE,
    slices: Sequence[str] = (),
    largest: int = 10,
    power_difference: float | None = None,
    missing: Literal["error", "intersect"] = "error",
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare models with the first of them.

    The result depends neither on the order of the scenes in the runs nor on what else is asked for.

    Args:
        models: the baseline and at least one other.
        metric: the field of the verdicts, slices and scenes: one of `field_tree`.
        slices: names of `SLICINGS`.
        largest: how many scenes with the largest losses and gains are listed.
        power_difference: count the scenes that would show this difference of each field.
        missing: `error` refuses runs of different scenes, `intersect` compares the scenes that all
            have and counts the others.
        resamples: draws of the bootstrap and of the randomisation.
        seed: of the draws.

    Raises:
        WosacError: the runs cannot be compared, or an argument is wrong; it says which and why.
    """
    _check_arguments(slices, largest, power_difference, resamples, seed)
    pairs = _pair(models, missing)
    if metric not in pairs.fields:
        raise WosacError(
            f"the runs have no field {metric!r}", mend=f"one of {', '.join(pairs.fields)}"
        )
    counted = pairs.finite[:, pairs.fields.index(metric)]
    if counted.sum() < 2:
        raise WosacError(
            f"less than two scenes have a finite {metric} in all runs", mend="compare more scenes"
        )
    by_field = {
        field: _Column(field, pairs.finite[:, k])
        for k, field in enumerate(pairs.fields)
        if pairs.finite[:, k].any()
    }
    by_slice = _columns_of_slices(pairs, metric, counted, slices)
    columns = [*by_field.values(), *by_slice.values()]
    found = _analyse(pairs, columns, power_difference, resamples, seed)
    analyses = dict(zip(by_field, found, strict=False))
    cuts = dict(zip(by_slice, found[len(by_field) :], strict=True))
    components = {c.field for c in get_challenge(pairs.summary.challenge).components}
    baseline, *others = (model.name for model in models)
    headlines = _adjust(dict(zip(others, analyses[metric].differences, strict=True)))

    def against(k: int, name: str) -> Against:
        differences = {field: analysis.differences[k] for field, analysis in analyses.items()}
        family = {field: d for field, d in differences.items() if field in components}
        losses, gains = _largest(pairs, metric, counted, k + 1, largest)
        return Against(
            name=name,
            verdict=_verdict(name, baseline, headlines[name]),
            differences=differences | _adjust(family),
            slices=_slices({key: cut.differences[k] for key, cut in cuts.items()}),
            losses=losses,
            gains=gains,
        )

    return Comparison(
        challenge=pairs.summary.challenge,
        official_release=pairs.summary.official_release,
        toolkit_versions=pairs.toolkit_versions,
        n_rollouts=pairs.n_rollouts,
        n_scenes=len(pairs.columns["scenario_id"]),
        not_compared=pairs.not_compared,
        left_out={
            field: int(n)
            for field, n in zip(pairs.fields, (~pairs.finite).sum(axis=0), strict=True)
            if n
        },
        metric=metric,
        confidence=CONFIDENCE,
        resamples=resamples,
        seed=seed,
        power_difference=power_difference,
        baseline=baseline,
        models=tuple(
            ModelScores(
                name=model.name,
                folders=tuple(str(run.directory) for run in model.runs),
                signatures=tuple(run.summary.signature for run in model.runs),
                means={field: analysis.means[k] for field, analysis in analyses.items()},
                seed_means={field: analysis.seed_means[k] for field, analysis in analyses.items()},
                seed_spread={
                    field: _spread(analysis.seed_means[k]) for field, analysis in analyses.items()
                },
            )
            for k, model in enumerate(models)
        ),
        against=tuple(against(k, name) for k, name in enumerate(others)),
    )


def _check_arguments(
    slices: Sequence[str],
    largest: int,
    power_difference: float | None,
    resamples: int,
    seed: int,
) -> None:
    if unknown := [name for name in slices if name not in SLICINGS]:
        raise WosacError(f"unknown slicing {unknown[0]!r}", mend=f"one of {', '.join(SLICINGS)}")
    if largest < 0:
        raise WosacError(f"the number of scenes listed must not be negative, as {largest} is")
    if power_difference is not None and not (
        math.isfinite(power_difference) and power_difference > 0
    ):
        raise WosacError(f"a difference to be shown must be above 0, not {power_difference}")
    if resamples < _FEWEST_RESAMPLES:
        raise WosacError(f"resamples must be at least {_FEWEST_RESAMPLES}, not {resamples}")
    if seed < 0:
        raise WosacError(f"the seed must not be negative, as {seed} is")


# --------------------------------------------------------------------------------------------------
# Pairing


@dataclass(frozen=True, eq=False, slots=True)
class _Pairs:
    """The scenes that all runs have, in the order of their ids.

    Attributes:
        columns: `scores.parquet` of the first run.
        fields: that all runs have, in the order of tables.
        scores: float64 [N, S, F]: N scenes, the S runs of all models one model after the other.
        finite: bool [N, F], in all runs.
        n_seeds: runs of each model.
        not_compared: run -> its scenes that others lack.
        summary: of the first run, equal to the others in version of the metric.
        toolkit_versions: sorted.
        n_rollouts: rollouts a scene; None where the scenes differ.
    """

    columns: Columns
    fields: Sequence[str]
    scores: Float64Array
    finite: BoolArray
    n_seeds: tuple[int, ...]
    not_compared: Mapping[str, int]
    summary: Summary
    toolkit_versions: tuple[str, ...]
    n_rollouts: int | None

    def model_means(self, scores: Float64Array) -> Float64Array:
        """Means [N, M, ...] over the seeds of each model, of scores [N, S, ...]."""
        models = np.split(scores, np.cumsum(self.n_seeds)[:-1], axis=1)
        return np.stack([model.mean(axis=1) for model in models], axis=1)


def _pair(models: Sequence[Model], missing: str) -> _Pairs:
    """Bring the runs together by scenario id.

    Raises:
        WosacError: they cannot be compared.
    """
    runs = _label(models)
    _check_versions(runs)
    frames, not_compared = _align(runs, missing)
    _check_scenes(frames)
    first, *_ = frames.values()
    fields = _fields([run.summary for run in runs.values()])
    sources = [BUCKET_SOURCES.get(field, field) for field in fields]
    scores = np.stack([frame[sources].to_numpy(np.float64) for frame in frames.values()], axis=1)
    n_rollouts = first["n_rollouts"].unique().tolist()
    return _Pairs(
        columns={name: first[name].to_numpy() for name in first.columns},
        fields=fields,
        scores=scores,
        finite=np.isfinite(scores).all(axis=1),
        n_seeds=tuple(len(model.runs) for model in models),
        not_compared=not_compared,
        summary=models[0].runs[0].summary,
        toolkit_versions=tuple(sorted({run.summary.toolkit_version for run in runs.values()})),
        n_rollouts=n_rollouts[0] if len(n_rollouts) == 1 else None,
    )


def _label(models: Sequence[Model]) -> dict[str, Run]:
    """The runs by the names that messages call them, in order."""
    if len(models) < 2:
        raise WosacError("a comparison needs two models", mend="give the baseline and another")
    runs: dict[str, Run] = {}
    for model in models:
        if not model.runs:
            raise WosacError(f"the model {model.name} has no runs")
        if sum(other.name == model.name for other in models) > 1:
            raise WosacError(
                f"two of the models are called {model.name}", mend="name them: name=folder"
            )
        rollouts: dict[tuple[str, str], Run] = {}
        for run in model.runs:
            key = run.summary.request.rollouts, run.summary.request.rollouts_files
            if key in rollouts:
                raise WosacError(
                    f"two seeds of {model.name} are of the same rollouts: "
                    f"{rollouts[key].directory} and {run.directory}"
                )
            rollouts[key] = run
            several = len(model.runs) > 1
            runs[f"{model.name} ({run.directory})" if several else model.name] = run
    return runs


def _check_versions(runs: Mapping[str, Run]) -> None:
    """Refuse runs of different metrics."""
    versions = {label: _version(run.summary) for label, run in runs.items()}
    if len(set(versions.values())) > 1:
        raise WosacError(
            "the runs are of different versions of the metric: " + _told(versions),
            mend="score them again with the same --challenge",
        )


def _version(summary: Summary) -> str:
    """The version of the metric and the engine, but for the toolkit's own."""
    parts = (summary.challenge, summary.official_release, summary.request.engine)
    return ", ".join(part for part in parts if part)


def _align(runs: Mapping[str, Run], missing: str) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """The rows of the scenes that all runs have, in the order of their ids, and the others."""
    frames = {label: run.scores.set_index("scenario_id", drop=False) for label, run in runs.items()}
    ids = {label: set(frame.index) for label, frame in frames.items()}
    every, common = set.union(*ids.values()), set.intersection(*ids.values())
    lacking = {label: every - own for label, own in ids.items() if every - own}
    if lacking and missing == "error":
        raise WosacError(
            "the runs are of different scenes: "
            + "; ".join(
                f"{label} lacks {len(lack)} of {len(every)} ({some_ids(lack)})"
                for label, lack in lacking.items()
            ),
            mend=f"--missing intersect compares the {len(common)} that all have",
        )
    if not common:
        raise WosacError("the runs have no scene in common")
    order = sorted(common)
    left = {label: len(own) - len(common) for label, own in ids.items() if len(own) > len(common)}
    return {label: frame.loc[order] for label, frame in frames.items()}, left


_COUNTED = {
    "n_rollouts": ("rollouts", "score the same number for each, as the score depends on it"),
    "n_sim_agents": ("simulated agents", "score both on the same version of the dataset"),
    "n_evaluated_agents": ("evaluated agents", "score both on the same version of the dataset"),
}


def _check_scenes(frames: Mapping[str, pd.DataFrame]) -> None:
    """Refuse runs whose scenes have different rollouts, or are different under one id."""
    first, *_ = frames.values()
    for field, (noun, mend) in _COUNTED.items():
        for frame in frames.values():
            differs = (frame[field] != first[field]).to_numpy()
            if differs.any():
                scene = first.index[differs][0]
                counts = {label: str(other.loc[scene, field]) for label, other in frames.items()}
                raise WosacError(
                    f"{int(differs.sum())} of {len(first)} scenes have different numbers of "
                    f"{noun}, such as scenario {scene}: {_told(counts)}",
                    mend=mend,
                )


def _told(values: Mapping[str, str]) -> str:
    """`a: 2025; b, c: 2024`."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    return "; ".join(f"{', '.join(own)}: {value}" for value, own in labels.items())


def _fields(summaries: Sequence[Summary]) -> list[str]:
    """The fields that all runs have, in the order of tables."""

    def has(summary: Summary, field: str) -> bool:
        values = {**summary.metrics, **summary.buckets}
        # A field that is nowhere finite is one all the same.
        return values.get(field) is not None or field in summary.left_out

    tree = field_tree(get_challenge(summaries[0].challenge))
    return [field for _, field in tree if all(has(summary, field) for summary in summaries)]


# --------------------------------------------------------------------------------------------------
# Statistics


@dataclass(frozen=True, eq=False, slots=True)
class _Column:
    """A field over some scenes, where it is finite in all runs.

    Attributes:
        field: its name.
        rows: bool [N], at least one of the scenes.
    """

    field: str
    rows: BoolArray


@dataclass(frozen=True, slots=True)
class _Analysis:
    """What comes out for a column.

    Attributes:
        means: of each model.
        seed_means: of each seed of each model.
        differences: of each model but the first.
    """

    means: list[Estimate]
    seed_means: list[tuple[float, ...]]
    differences: list[Difference]


def _columns_of_slices(
    pairs: _Pairs, metric: str, counted: BoolArray, slices: Sequence[str]
) -> dict[tuple[str, str], _Column]:
    """(Slicing, level) -> the metric over the scenes of the level, but for levels without any."""
    columns = {}
    for attribute in slices:
        level_of = SLICINGS[attribute].level_of(pairs.columns)
        for k, level in enumerate(SLICINGS[attribute].levels):
            rows = counted & (level_of == k)
            if rows.any():
                columns[attribute, level] = _Column(metric, rows)
    return columns


def _analyse(
    pairs: _Pairs,
    columns: Sequence[_Column],
    power_difference: float | None,
    resamples: int,
    seed: int,
) -> list[_Analysis]:
    """Analyse columns, all of them by the same draws."""
    rows = np.stack([column.rows for column in columns], axis=1)
    picked = [pairs.fields.index(column.field) for column in columns]
    scores = np.where(rows[:, None], pairs.scores[:, :, picked], 0.0)  # [N, S, C]
    # The exact sums of `summarise`, so that a mean is to the last digit what `wosac score` prints.
    by_seed = _exact_sums(scores) / rows.sum(axis=0)
    by_seed_of_model = np.split(by_seed, np.cumsum(pairs.n_seeds)[:-1])
    means = np.array([model.mean(axis=0) for model in by_seed_of_model])  # [M, C]
    by_model = pairs.model_means(scores)  # [N, M, C]
    paired = by_model[:, 1:] - by_model[:, :1]
    observed = means[1:] - means[0]

    bootstrap_rng, swap_rng = np.random.default_rng(seed).spawn(2)
    drawn = resampling.bootstrap_means(scores, rows, pairs.n_seeds, resamples, bootstrap_rng)
    moved = drawn[:, 1:] - drawn[:, :1]  # [R, M - 1, C]
    mean_ends, ends = resampling.interval(drawn), resampling.interval(moved)
    errors = np.nanstd(moved, axis=0)
    p_values = resampling.bootstrap_p(moved, observed)
    single = [k for k, n in enumerate(pairs.n_seeds[1:]) if n == pairs.n_seeds[0] == 1]
    if single:
        flat = paired[:, single].reshape(len(paired), -1)
        swapped = resampling.randomisation_p(flat, resamples, swap_rng)
        p_values[single] = swapped.reshape(len(single), -1)

    def estimate(value: float, value_ends: Float64Array, n_scenes: int) -> Estimate:
        low, high = value_ends.tolist() if n_scenes > 1 else (None, None)
        return Estimate(float(value), low, high)

    def difference(k: int, c: int) -> Difference:
        field, own = columns[c].field, paired[columns[c].rows, k, c]
        gain = -own if lower_is_better(field) else own
        wins, losses = int((gain > _TIE).sum()), int((gain < -_TIE).sum())
        value, spread, n_scenes = float(observed[k, c]), _spread(own), len(own)
        return Difference(
            field=field,
            n_scenes=n_scenes,
            baseline=float(means[0, c]),
            mean=float(means[k + 1, c]),
            difference=estimate(value, ends[:, k, c], n_scenes),
            p=float(p_values[k, c]) if n_scenes > 1 else None,
            p_holm=None,
            wins=wins,
            ties=n_scenes - wins - losses,
            losses=losses,
            spread=spread,
            effect=None if spread is None or spread < _TIE else value / spread,
            detectable=resampling.detectable(float(errors[k, c])) if n_scenes > 1 else None,
            scenes_needed=None
            if power_difference is None or spread is None
            else resampling.scenes_needed(spread, power_difference),
        )

    return [
        _Analysis(
            means=[
                estimate(mean, mean_ends[:, m, c], int(rows[:, c].sum()))
                for m, mean in enumerate(means[:, c])
            ],
            seed_means=[tuple(model[:, c].tolist()) for model in by_seed_of_model],
            differences=[difference(k, c) for k in range(len(observed))],
        )
        for c in range(len(columns))
    ]


def _spread(values: Sequence[float] | Float64Array) -> float | None:
    """The standard deviation of a sample; None of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _exact_sums(scores: Float64Array) -> Float64Array:
    """Sums [S, C] of scores [N, S, C] over scenes, each rounded once."""
    columns = scores.reshape(len(scores), -1).T
    sums = [math.fsum(column.tolist()) for column in columns]
    return np.array(sums).reshape(scores.shape[1:])


def _adjust(family: Mapping[_Name, Difference]) -> dict[_Name, Difference]:
    """The differences of a family with their p-values adjusted for how many they are."""
    known = {name: d.p for name, d in family.items() if d.p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return {name: replace(d, p_holm=adjusted.get(name)) for name, d in family.items()}


def _slices(cuts: Mapping[tuple[str, str], Difference]) -> tuple[Slice, ...]:
    """Slices by (slicing, level), their p-values adjusted over the levels of each slicing."""
    adjusted: dict[tuple[str, str], Difference] = {}
    for slicing in dict.fromkeys(slicing for slicing, _ in cuts):
        adjusted |= _adjust({key: cut for key, cut in cuts.items() if key[0] == slicing})
    return tuple(Slice(*key, difference) for key, difference in adjusted.items())


# --------------------------------------------------------------------------------------------------
# In words


def _largest(
    pairs: _Pairs, metric: str, counted: BoolArray, model: int, n: int
) -> tuple[tuple[SceneChange, ...], tuple[SceneChange, ...]]:
    """The scenes with the largest losses and gains of a model, at most `n` of each."""
    ids = pairs.columns["scenario_id"][counted].tolist()
    means = pairs.model_means(pairs.scores[counted, :, pairs.fields.index(metric)])
    sign = -1 if lower_is_better(metric) else 1
    changes = [
        SceneChange(scenario_id, before, after, after - before)
        for scenario_id, before, after in zip(
            ids, means[:, 0].tolist(), means[:, model].tolist(), strict=True
        )
    ]
    # The scenes come in the order of their ids, and sorting keeps it among equals.
    losses = sorted(changes, key=lambda change: sign * change.difference)[:n]
    gains = sorted(changes, key=lambda change: -sign * change.difference)[:n]
    return (
        tuple(change for change in losses if sign * change.difference < -_TIE),
        tuple(change for change in gains if sign * change.difference > _TIE),
    )


def p_text(p: float) -> str:
    """A p-value with 4 decimals: `p = 0.0123`, `p < 0.0001`."""
    return "p < 0.0001" if p < 0.5e-4 else f"p = {p:.4f}"


def _verdict(model: str, baseline: str, headline: Difference) -> Verdict:
    """The verdict on a difference whose `p_holm` is adjusted over the models."""
    p, change = headline.p_holm, headline.difference
    scenes = f"{headline.n_scenes} scenes"
    if not headline.wins + headline.losses:
        same = f"{model} and {baseline} have the same {headline.field} in each of {scenes}"
        return Verdict("equal", p, same)
    numbers = (
        f"{headline.field} {headline.mean:.4f} against {headline.baseline:.4f}, a difference of "
        f"{change.value:+.5f}"
    )
    outcome: Outcome = "undecided"
    if p is not None and change.low is not None and change.high is not None:
        numbers += f" (95 % interval {change.low:+.5f} to {change.high:+.5f}, {p_text(p)})"
        if p < ALPHA and (change.low > 0 or change.high < 0):
            more_is_worse = lower_is_better(headline.field)
            outcome = "better" if (change.value > 0) != more_is_worse else "worse"
    if outcome == "undecided":
        text = (
            f"no significant difference between {model} and {baseline}: {numbers}; {scenes} show "
            f"differences of {headline.detectable:.5f} with 80 % power"
        )
        return Verdict(outcome, p, text)
    return Verdict(outcome, p, f"{model} is {outcome} than {baseline}: {numbers}, {scenes}")
