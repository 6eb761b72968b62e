from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wosac_toolkit import results
from wosac_toolkit.attributes import MANOEUVRES, SLICINGS, SceneAttributes
from wosac_toolkit.challenge import get_challenge
from wosac_toolkit.cli import main
from wosac_toolkit.compare import (
    Comparison,
    Model,
    _verdict,
    compare_runs,
    lower_is_better,
    read_models,
)
from wosac_toolkit.errors import WosacError
from wosac_toolkit.resampling import holm
from wosac_toolkit.results import (
    SCORE_FIELDS,
    Request,
    Run,
    SceneResult,
    field_tree,
    summarise,
    write_run,
)

META = "realism_meta_metric"
TTC = "time_to_collision_likelihood"
COMPONENTS = [c.field for c in get_challenge("2025").components]

# --------------------------------------------------------------------------------------------------
# Runs


def attributes(k: int) -> SceneAttributes:
    """Attributes that differ from scene to scene."""
    return SceneAttributes(
        n_evaluated_vehicles=1 + k % 3,
        n_evaluated_pedestrians=k % 2,
        n_evaluated_cyclists=k // 2 % 2,
        has_traffic_lights=k % 3 == 0,
        sdc_at_intersection=k % 5 < 2,
        mean_speed=0.7 * (k % 20),
        sdc_manoeuvre=MANOEUVRES[k % 3],
    )


def scenes(values: np.ndarray, **fields: float | None) -> list[SceneResult]:
    """A scene a value, which all of its fields have but for those given."""
    return [
        SceneResult(
            scenario_id=f"s{k:04}",
            values=tuple(
                {**dict.fromkeys(SCORE_FIELDS, float(v)), **fields}[f] for f in SCORE_FIELDS
            ),
            n_rollouts=32,
            n_sim_agents=5 + 7 * (k % 13),
            n_evaluated_agents=4,
            attributes=attributes(k),
        )
        for k, v in enumerate(values)
    ]


def with_field(
    rows: Sequence[SceneResult], field: str, values: Sequence[float]
) -> list[SceneResult]:
    """The scenes with other values of one field."""
    column = SCORE_FIELDS.index(field)
    return [
        replace(row, values=(*row.values[:column], float(v), *row.values[column + 1 :]))
        for row, v in zip(rows, values, strict=True)
    ]


def run(rows: Sequence[SceneResult], folder: str = "runs/x", **request: Any) -> Run:
    """A run as `read_run` reads it."""
    asked = {
        **dict(challenge="2025", engine="", toolkit_version="0.1.0", rollouts=folder),
        **dict(rollouts_files=folder, scenarios="s", scenarios_files="", n_rollouts=32),
        **dict(per_agent=False, limit=None, scenario_ids=None, missing="error"),
        **request,
    }
    summary = summarise(rows, Request(**asked), get_challenge(asked["challenge"]))
    (columns,) = results._score_columns(rows)
    frame = pd.DataFrame({name: columns[name] for name in results.SCORE_SCHEMA})
    return Run(Path(folder), summary, frame.astype(dict.fromkeys(SCORE_FIELDS, float)))


def model(name: str, *rows: Sequence[SceneResult], **request: Any) -> Model:
    """A model of a run for each list of scenes."""
    return Model(name, tuple(run(own, f"runs/{name}{k}", **request) for k, own in enumerate(rows)))


def compare(*models: Model, **options: Any) -> Comparison:
    return compare_runs(models, **{"resamples": 1_000, **options})


@pytest.fixture(scope="module")
def baseline() -> np.ndarray:
    return np.random.default_rng(1).beta(5, 2, size=120)


@pytest.fixture(scope="module")
def changed(baseline: np.ndarray) -> np.ndarray:
    """A little better in most scenes."""
    return baseline + np.random.default_rng(2).normal(0.01, 0.03, size=len(baseline))


def leaves(value: Any) -> list[Any]:
    """Keys and values of what `to_json` writes, one after the other."""
    if isinstance(value, Mapping):
        return [leaf for key, child in value.items() for leaf in (key, *leaves(child))]
    if isinstance(value, list):
        return [leaf for child in value for leaf in leaves(child)]
    return [value]


# --------------------------------------------------------------------------------------------------
# Means and differences


def test_means_are_to_the_last_digit_those_that_score_prints(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)), model("b", scenes(changed))
    comparison = compare(a, b)
    assert list(comparison.models[0].means) == [name for _, name in field_tree(get_challenge(2025))]
    for ours, own in zip(comparison.models, (a, b), strict=True):
        summary = own.runs[0].summary
        for field, estimate in ours.means.items():
            assert estimate.value == {**summary.metrics, **summary.buckets}[field]
            assert estimate.low < estimate.value < estimate.high
    for field, difference in comparison.against[0].differences.items():
        assert difference.difference.value == difference.mean - difference.baseline
        assert difference.baseline == comparison.models[0].means[field].value
        assert difference.mean == comparison.models[1].means[field].value
        assert difference.n_scenes == 120


def test_a_difference_has_the_statistics_of_its_pairs(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    found = (
        compare(model("a", scenes(baseline)), model("b", scenes(changed)), resamples=10_000)
        .against[0]
        .differences[META]
    )
    own = changed - baseline
    assert found.difference.value == pytest.approx(own.mean())
    assert found.spread == pytest.approx(own.std(ddof=1))
    assert found.effect == pytest.approx(own.mean() / own.std(ddof=1))
    assert (found.wins, found.ties, found.losses) == ((own > 0).sum(), 0, (own < 0).sum())
    assert found.p == pytest.approx(stats.ttest_1samp(own, 0).pvalue, abs=0.002)
    theirs = stats.bootstrap(
        (own,), np.mean, n_resamples=10_000, method="percentile", random_state=1
    )
    error = theirs.standard_error
    assert found.difference.low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * error)
    assert found.difference.high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * error)
    assert found.detectable == pytest.approx(2.8016 * error, rel=0.05)


def test_the_order_of_the_scenes_does_not_matter(baseline: np.ndarray, changed: np.ndarray) -> None:
    a, b = scenes(baseline), scenes(changed)
    shuffled = [b[k] for k in np.random.default_rng(3).permutation(len(b))]
    one = compare(model("a", a), model("b", b), slices=["speed"])
    other = compare(model("a", a[::-1]), model("b", shuffled), slices=["speed"])
    assert one == other


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_swapping_the_runs_negates_the_difference_and_swaps_wins_with_losses(
    pairs: list[tuple[float, float]],
) -> None:
    first, second = np.array(pairs).T
    there = compare(model("a", scenes(first)), model("b", scenes(second)), resamples=200)
    back = compare(model("b", scenes(second)), model("a", scenes(first)), resamples=200)
    for one, other in zip(
        there.against[0].differences.values(), back.against[0].differences.values(), strict=True
    ):
        assert one.difference.value == -other.difference.value
        assert one.difference.low == pytest.approx(-other.difference.high, abs=1e-12)
        assert one.difference.high == pytest.approx(-other.difference.low, abs=1e-12)
        assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
        assert one.p == other.p
    opposite = {"better": "worse", "worse": "better"}
    outcome = there.against[0].verdict.outcome
    assert back.against[0].verdict.outcome == opposite.get(outcome, outcome)


def test_the_seed_decides_and_is_told(baseline: np.ndarray, changed: np.ndarray) -> None:
    models = model("a", scenes(baseline)), model("b", scenes(changed))
    assert compare(*models, seed=4) == compare(*models, seed=4)
    assert compare(*models, seed=4).seed == 4
    low = compare(*models, seed=4).against[0].differences[META].difference.low
    assert low != compare(*models, seed=5).against[0].differences[META].difference.low


def test_what_else_is_asked_for_changes_nothing(baseline: np.ndarray, changed: np.ndarray) -> None:
    models = model("a", scenes(baseline)), model("b", scenes(changed))
    plain = compare(*models)
    more = compare(*models, slices=list(SLICINGS))
    against = replace(more.against[0], slices=())
    one, other = (
        leaves(json.loads(own.to_json())) for own in (plain, replace(more, against=(against,)))
    )
    assert len(one) == len(other) > 500
    for leaf, same in zip(one, other, strict=True):
        # A product of wider matrices may round in another way.
        assert leaf == (pytest.approx(same, abs=1e-12) if isinstance(same, float) else same)
    few = compare(*models, slices=["speed"]).against[0].slices
    many = [part for part in more.against[0].slices if part.attribute == "speed"]
    for one, other in zip(few, many, strict=True):
        assert one.level == other.level
        assert one.difference.difference.low == pytest.approx(other.difference.difference.low)
        assert one.difference.p == other.difference.p


def test_fewer_of_errors_and_rates_is_better(baseline: np.ndarray, changed: np.ndarray) -> None:
    found = compare(model("a", scenes(baseline)), model("b", scenes(changed))).against[0]
    lower = {field for field in found.differences if lower_is_better(field)}
    assert lower == {
        "min_ade",
        "average_displacement_error",
        "simulated_collision_rate",
        "simulated_offroad_rate",
        "simulated_traffic_light_violation_rate",
    }
    wins = found.differences[META].wins
    for field, difference in found.differences.items():
        assert (difference.losses if field in lower else difference.wins) == wins


def test_p_is_adjusted_over_the_components_alone(baseline: np.ndarray) -> None:
    draws = np.random.default_rng(6)
    rows = scenes(baseline)
    for k, field in enumerate(COMPONENTS):
        rows = with_field(rows, field, baseline + draws.normal(0.001 * k, 0.03, len(baseline)))
    found = compare(model("a", scenes(baseline)), model("b", rows)).against[0].differences
    adjusted = [found[field].p_holm for field in COMPONENTS]
    assert adjusted == holm([found[field].p for field in COMPONENTS])
    assert max(adjusted) > 0.05 > min(adjusted)
    assert all(found[field].p_holm is None for field in found if field not in COMPONENTS)


def test_a_version_without_rates_has_none(baseline: np.ndarray, changed: np.ndarray) -> None:
    names = ("simulated_collision_rate", "simulated_offroad_rate")
    absent = dict.fromkeys(
        (*names, "simulated_traffic_light_violation_rate", "traffic_light_violation_likelihood")
    )
    a = model("a", scenes(baseline, **absent), challenge="2023")
    b = model("b", scenes(changed, **absent), challenge="2023")
    comparison = compare(a, b)
    assert comparison.challenge == "2023"
    assert not set(comparison.models[0].means) & set(absent)
    assert comparison.left_out == {}
    with pytest.raises(WosacError, match="no field 'simulated_offroad_rate'"):
        compare(a, b, metric="simulated_offroad_rate")


def test_scenes_that_are_not_finite_in_some_run_are_left_out_of_that_field_and_counted(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = baseline.copy(), changed.copy()
    a[3], b[3], b[7] = math.nan, math.nan, math.inf
    found = compare(
        model("a", with_field(scenes(baseline), TTC, a)),
        model("b", with_field(scenes(changed), TTC, b)),
    )
    assert found.left_out == {TTC: 2}
    difference = found.against[0].differences[TTC]
    kept = np.delete(changed - baseline, [3, 7])
    assert difference.n_scenes == 118
    assert difference.difference.value == pytest.approx(kept.mean())
    assert difference.wins + difference.losses == 118
    assert found.against[0].differences[META].n_scenes == 120


def test_a_field_that_is_nowhere_finite_has_no_difference(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    nowhere = [math.nan] * len(baseline)
    a = model("a", with_field(scenes(baseline), TTC, nowhere))
    b = model("b", with_field(scenes(changed), TTC, nowhere))
    found = compare(a, b)
    assert found.left_out == {TTC: 120}
    assert TTC not in found.against[0].differences
    with pytest.raises(WosacError, match=f"less than two scenes have a finite {TTC}"):
        compare(a, b, metric=TTC)


# --------------------------------------------------------------------------------------------------
# Verdicts


def test_a_verdict_says_better_or_worse_with_the_numbers(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)), model("b", scenes(changed))
    better = compare(a, b)
    assert better.against[0].verdict.outcome == "better"
    assert re.fullmatch(
        r"b is better than a: realism_meta_metric 0\.\d{4} against 0\.\d{4}, a difference of "
        r"\+0\.0\d{4} \(95 % interval \+0\.0\d{4} to \+0\.0\d{4}, p = 0\.\d{4}\), 120 scenes",
        better.against[0].verdict.text,
    )
    assert better.worse == []
    worse = compare(b, a)
    assert worse.against[0].verdict.outcome == "worse"
    assert worse.against[0].verdict.text.startswith("a is worse than b: ")
    assert worse.worse == ["a"]
    # Of an error, more is worse.
    assert compare(a, b, metric="min_ade").against[0].verdict.outcome == "worse"
    assert compare(b, a, metric="min_ade").against[0].verdict.outcome == "better"


def test_a_difference_that_is_not_significant_is_told_with_what_would_have_been(
    baseline: np.ndarray,
) -> None:
    same = baseline + np.random.default_rng(3).normal(0, 0.03, size=len(baseline))
    found = compare(model("a", scenes(baseline)), model("b", scenes(same))).against[0]
    assert found.verdict.outcome == "undecided"
    assert found.verdict.text.startswith("no significant difference between b and a: ")
    shown = f"{found.differences[META].detectable:.5f}"
    assert found.verdict.text.endswith(f"; 120 scenes show differences of {shown} with 80 % power")


def test_runs_that_score_the_same_are_said_to(baseline: np.ndarray) -> None:
    found = compare(model("a", scenes(baseline)), model("b", scenes(baseline))).against[0]
    assert found.verdict.outcome == "equal"
    assert found.verdict.text == "b and a have the same realism_meta_metric in each of 120 scenes"
    difference = found.differences[META]
    assert difference.p == 1.0
    assert difference.effect is None
    assert difference.ties == 120
    assert found.losses == found.gains == ()


def test_few_scenes_are_never_significant() -> None:
    # 4 scenes can be swapped in 16 ways, 2 of which are as far off.
    a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.6, 0.7, 0.8, 0.9])
    found = compare(model("a", scenes(a)), model("b", scenes(b))).against[0]
    assert found.differences[META].difference.low > 0
    assert found.verdict.outcome == "undecided"


def test_a_verdict_needs_both_the_p_value_and_the_interval(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    found = compare(model("a", scenes(baseline)), model("b", scenes(changed))).against[0]
    headline = replace(found.differences[META], p_holm=0.01)
    around_zero = replace(headline.difference, low=-0.001)
    assert _verdict("b", "a", headline).outcome == "better"
    assert _verdict("b", "a", replace(headline, p_holm=0.06)).outcome == "undecided"
    assert _verdict("b", "a", replace(headline, difference=around_zero)).outcome == "undecided"
    assert (
        "(95 % interval -0.00100 to +"
        in _verdict("b", "a", replace(headline, difference=around_zero)).text
    )
    assert ", p < 0.0001)" in _verdict("b", "a", replace(headline, p_holm=1e-5)).text


# --------------------------------------------------------------------------------------------------
# Three models and more


def test_every_model_is_compared_with_the_first(baseline: np.ndarray, changed: np.ndarray) -> None:
    a, b = model("a", scenes(baseline)), model("b", scenes(changed))
    c = model("c", scenes(baseline - 0.001 + 0.02 * (changed - baseline)))
    together = compare(a, b, c)
    assert together.baseline == "a"
    assert [other.name for other in together.against] == ["b", "c"]
    for k, other in enumerate((b, c)):
        alone = compare(a, other).against[0]
        for field, difference in alone.differences.items():
            same = together.against[k].differences[field]
            assert same.difference.value == difference.difference.value
            assert same.difference.low == pytest.approx(difference.difference.low, abs=1e-12)
            assert same.p == difference.p


def test_the_verdicts_of_several_models_are_adjusted_for_their_number(
    baseline: np.ndarray,
) -> None:
    draws = np.random.default_rng(10)
    models = [
        model(f"m{k}", scenes(baseline + draws.normal(0.0063, 0.03, len(baseline))))
        for k in range(4)
    ]
    found = compare(model("a", scenes(baseline)), *models).against
    p = [other.differences[META].p for other in found]
    assert [other.verdict.p for other in found] == holm(p)
    for other in found:
        significant = other.differences[META].difference.low > 0 and other.verdict.p < 0.05
        assert other.verdict.outcome == ("better" if significant else "undecided")
    # Some would be significant if each stood alone.
    assert any(p < 0.05 <= other.verdict.p for p, other in zip(p, found, strict=True))


# --------------------------------------------------------------------------------------------------
# Seeds


def seeds(baseline: np.ndarray, shifts: Sequence[float], seed: int) -> list[list[SceneResult]]:
    draws = np.random.default_rng(seed)
    return [scenes(baseline + shift + draws.normal(0, 0.01, len(baseline))) for shift in shifts]


def test_a_model_of_several_seeds_has_their_mean_and_their_spread(baseline: np.ndarray) -> None:
    own = seeds(baseline, [0.0, 0.02, -0.01], 1)
    a, b = model("a", scenes(baseline)), model("b", *own)
    found = compare(a, b)
    means = [r.summary.metrics["metametric"] for r in b.runs]
    assert found.models[1].folders == ("runs/b0", "runs/b1", "runs/b2")
    assert found.models[1].seed_means[META] == pytest.approx(means, abs=1e-15)
    assert found.models[1].means[META].value == pytest.approx(np.mean(means))
    assert found.models[1].seed_spread[META] == pytest.approx(np.std(means, ddof=1))
    assert found.models[0].seed_spread[META] is None
    difference = found.against[0].differences[META]
    pairs = np.mean([[row["metametric"] for row in rows] for rows in own], axis=0) - baseline
    assert difference.difference.value == pytest.approx(pairs.mean())
    assert difference.spread == pytest.approx(pairs.std(ddof=1))
    assert (difference.wins, difference.losses) == ((pairs > 0).sum(), (pairs < 0).sum())


def test_seeds_that_differ_widen_the_interval_and_weaken_the_verdict(baseline: np.ndarray) -> None:
    a = seeds(baseline, [0.0, 0.0, 0.0], 1)
    close = compare(model("a", *a), model("b", *seeds(baseline, [0.01, 0.01, 0.01], 2)))
    wide = compare(model("a", *a), model("b", *seeds(baseline, [0.03, -0.03, 0.03], 2)))
    assert close.against[0].verdict.outcome == "better"
    assert wide.against[0].verdict.outcome == "undecided"
    one, other = (c.against[0].differences[META] for c in (close, wide))
    assert one.difference.value == pytest.approx(other.difference.value)
    width = one.difference.high - one.difference.low
    assert other.difference.high - other.difference.low > 3 * width
    assert other.p > 0.2 > 0.01 > one.p
    assert other.detectable > 3 * one.detectable


def test_the_interval_with_seeds_has_the_variance_of_scenes_and_seeds(
    baseline: np.ndarray,
) -> None:
    own = seeds(baseline, [0.02, -0.01, 0.005, 0.0], 3)
    rows = np.array([[row["metametric"] for row in rows] for rows in own])
    found = compare(model("a", scenes(baseline)), model("b", *own), resamples=20_000)
    # Between seeds, unbiased; of the scenes, whose noise counts a little more than once.
    between = rows.mean(axis=1).var(ddof=1) / 4
    within = (rows.mean(axis=0) - baseline).var(ddof=1) / len(baseline)
    error = found.against[0].differences[META].detectable / 2.8016
    assert between + within < error**2 < 1.1 * (between + 4 * within)


# --------------------------------------------------------------------------------------------------
# Slices, scenes, power


@pytest.mark.parametrize("name", SLICINGS)
def test_a_slice_is_the_comparison_of_its_scenes(
    name: str, baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)), model("b", scenes(changed))
    found = compare(a, b, slices=[name]).against[0].slices
    frame = a.runs[0].scores
    level_of = SLICINGS[name].level_of({key: frame[key].to_numpy() for key in frame})
    assert sum(part.difference.n_scenes for part in found) == 120
    assert [part.difference.p_holm for part in found] == holm([p.difference.p for p in found])
    assert len(found) > 1
    for part in found:
        own = np.flatnonzero(level_of == SLICINGS[name].levels.index(part.level))
        alone = (
            compare(
                model("a", [scenes(baseline)[k] for k in own]),
                model("b", [scenes(changed)[k] for k in own]),
                resamples=2_000,
            )
            .against[0]
            .differences[META]
        )
        assert part.attribute == name
        assert part.difference.field == META
        assert part.difference.difference.value == pytest.approx(alone.difference.value)
        assert part.difference.spread == alone.spread
        assert part.difference.wins == alone.wins
        assert part.difference.p == pytest.approx(alone.p, abs=0.05)
        width = alone.difference.high - alone.difference.low
        assert part.difference.difference.low == pytest.approx(alone.difference.low, abs=width / 5)


def test_a_slice_of_one_scene_has_a_difference_and_no_more(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    rows = [replace(row, n_sim_agents=20) for row in scenes(baseline)]
    rows[7] = replace(rows[7], n_sim_agents=100)
    others = [
        replace(row, values=new.values) for row, new in zip(rows, scenes(changed), strict=True)
    ]
    *_, last = compare(model("a", rows), model("b", others), slices=["agents"]).against[0].slices
    assert last.level == "64 agents and more"
    found = last.difference
    assert found.n_scenes == 1
    assert found.difference.value == pytest.approx(changed[7] - baseline[7])
    assert (found.difference.low, found.difference.high, found.p, found.p_holm) == (None,) * 4
    assert (found.spread, found.effect, found.detectable) == (None,) * 3


def test_the_scenes_with_the_largest_losses_and_gains_are_listed(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)), model("b", scenes(changed))
    found = compare(a, b, largest=3).against[0]
    order = np.argsort(changed - baseline)
    assert [change.scenario_id for change in found.losses] == [f"s{k:04}" for k in order[:3]]
    assert [change.scenario_id for change in found.gains] == [f"s{k:04}" for k in order[:-4:-1]]
    worst = found.losses[0]
    assert worst.difference == worst.score - worst.baseline < 0
    assert worst.baseline == baseline[order[0]]
    # Of an error, more is a loss.
    errors = compare(a, b, largest=3, metric="min_ade").against[0]
    assert errors.losses == found.gains
    assert errors.gains == found.losses
    assert compare(a, b, largest=0).against[0].losses == ()
    every = compare(a, b, largest=1_000).against[0]
    assert len(every.losses) == every.differences[META].losses
    assert len(every.gains) == every.differences[META].wins


def test_power_counts_the_scenes_from_the_spread_of_the_pairs(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)), model("b", scenes(changed))
    found = compare(a, b, power_difference=0.0005)
    assert found.power_difference == 0.0005
    for difference in found.against[0].differences.values():
        z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
        assert difference.scenes_needed == math.ceil((z * difference.spread / 0.0005) ** 2)
    assert compare(a, b).against[0].differences[META].scenes_needed is None


# --------------------------------------------------------------------------------------------------
# Runs that cannot be compared


def test_runs_of_different_scenes_are_refused_and_the_scenes_named(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)[2:]), model("b", scenes(changed)[:-1])
    with pytest.raises(WosacError) as error:
        compare(a, b)
    assert "a lacks 2 of 120 (s0000, s0001); b lacks 1 of 120 (s0119)" in str(error.value)
    assert "--missing intersect compares the 117 that all have" in str(error.value)


def test_an_intersection_is_compared_where_it_is_asked_for_and_counted(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    a, b = model("a", scenes(baseline)[2:]), model("b", scenes(changed)[:-1])
    found = compare(a, b, missing="intersect")
    assert found.n_scenes == 117
    assert found.not_compared == {"a": 1, "b": 2}
    assert found.models[0].means[META].value == pytest.approx(baseline[2:-1].mean())
    same = compare(model("a", scenes(baseline)), model("b", scenes(changed)), missing="intersect")
    assert same.not_compared == {}


def test_runs_without_a_common_scene_are_refused(baseline: np.ndarray) -> None:
    rows = scenes(baseline)
    with pytest.raises(WosacError, match="no scene in common"):
        compare(model("a", rows[:60]), model("b", rows[60:]), missing="intersect")


def test_a_single_common_scene_tells_nothing(baseline: np.ndarray) -> None:
    rows = scenes(baseline)
    with pytest.raises(WosacError, match="less than two scenes"):
        compare(model("a", rows[:1]), model("b", rows[:1]))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"challenge": "2024"}, r"a: 2025, .* 1\.6\.7; b: 2024, .* 1\.6\.4 \(score them again"),
        ({"engine": "lab.metric"}, r"a: 2025, .*; b: 2025, .*, lab\.metric"),
    ],
)
def test_runs_of_different_metrics_are_refused(
    baseline: np.ndarray, request_: dict[str, str], told: str
) -> None:
    rows = scenes(baseline)
    with pytest.raises(WosacError, match="different versions of the metric: " + told):
        compare(model("a", rows), model("b", rows, **request_))


def test_runs_of_different_toolkits_are_compared_and_the_versions_told(
    baseline: np.ndarray, changed: np.ndarray
) -> None:
    b = model("b", scenes(changed), toolkit_version="0.0.9")
    assert compare(model("a", scenes(baseline)), b).toolkit_versions == ("0.0.9", "0.1.0")


@pytest.mark.parametrize(
    ("field", "noun"),
    [
        ("n_rollouts", "rollouts"),
        ("n_sim_agents", "simulated agents"),
        ("n_evaluated_agents", "evaluated agents"),
    ],
)
def test_scenes_of_different_counts_are_refused(
    baseline: np.ndarray, field: str, noun: str
) -> None:
    rows = scenes(baseline)
    others = [replace(row, **{field: 3}) if k in (4, 9) else row for k, row in enumerate(rows)]
    with pytest.raises(WosacError) as error:
        compare(model("a", rows), model("b", rows), model("c", others))
    own = getattr(rows[4], field)
    assert (
        f"2 of 120 scenes have different numbers of {noun}, such as scenario s0004: "
        f"a, b: {own}; c: 3"
    ) in str(error.value)


def test_the_number_of_rollouts_is_told(baseline: np.ndarray) -> None:
    rows = scenes(baseline)
    assert compare(model("a", rows), model("b", rows)).n_rollouts == 32
    mixed = [replace(rows[0], n_rollouts=4), *rows[1:]]
    assert compare(model("a", mixed), model("b", mixed)).n_rollouts is None


def test_models_that_are_no_comparison_are_refused(baseline: np.ndarray) -> None:
    rows = scenes(baseline)
    a = model("a", rows)
    with pytest.raises(WosacError, match="needs two models"):
        compare(a)
    with pytest.raises(WosacError, match="two of the models are called a"):
        compare(a, model("a", rows))
    with pytest.raises(WosacError, match="b has no runs"):
        compare(a, Model("b", ()))
    twice = Model("b", (run(rows, "runs/b0"), replace(run(rows, "runs/b0"), directory=Path("x"))))
    with pytest.raises(WosacError, match="two seeds of b are of the same rollouts: runs/b0 and x"):
        compare(a, twice)
    one = run(rows, "runs/b0")
    with pytest.raises(WosacError, match="two seeds of b are of the same rollouts"):
        compare(a, Model("b", (one, one)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "rmm"}, "no field 'rmm' .*one of realism_meta_metric, "),
        ({"slices": ["colour"]}, "unknown slicing 'colour' .*one of agents, types"),
        ({"largest": -1}, "must not be negative, as -1 is"),
        ({"power_difference": 0.0}, "above 0, not 0.0"),
        ({"power_difference": math.nan}, "above 0, not nan"),
        ({"resamples": 99}, "at least 100, not 99"),
        ({"seed": -1}, "must not be negative, as -1 is"),
    ],
)
def test_wrong_arguments_are_refused(
    baseline: np.ndarray, options: dict[str, Any], message: str
) -> None:
    rows = scenes(baseline)
    with pytest.raises(WosacError, match=message):
        compare(model("a", rows), model("b", rows), **options)


# --------------------------------------------------------------------------------------------------
# Folders and the command


@pytest.fixture(scope="module")
def folders(
    baseline: np.ndarray, changed: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Runs `a`, `b` (better), seeds `c0` and `c1`, and `a` once more in another folder."""
    root = tmp_path_factory.mktemp("runs")
    c = seeds(changed, [0.0, 0.001], 5)
    every = {"a": scenes(baseline), "b": scenes(changed), "c0": c[0], "c1": c[1]}
    for name, rows in {**every, "old/a": scenes(baseline)}.items():
        write_run(root / name, run(rows, name).summary, rows)
    return root


def wosac(*args: object) -> Result:
    few = [] if "--resamples" in args else ["--resamples", "1000"]
    return CliRunner().invoke(main, ["compare", *map(str, args), *few], prog_name="wosac")


def test_models_are_named_by_their_folders_or_as_asked(folders: Path) -> None:
    read = read_models(
        [folders / "a", f"mine={folders / 'b'}", f"c={folders / 'c0'},{folders / 'c1'}"]
    )
    assert [own.name for own in read] == ["a", "mine", "c"]
    assert [len(own.runs) for own in read] == [1, 1, 2]
    # Folders of one name are told apart.
    read = read_models([folders / "a", folders / "old" / "a"])
    assert [own.name for own in read] == [str(folders / "a"), str(folders / "old" / "a")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("name=", "not a model: 'name='"),
        ("=folder", "not a model: '=folder'"),
        ("name=one,,two", "not a model: 'name=one,,two'"),
        ("one,two", "not a model: 'one,two'"),
        ("nowhere", "nowhere: no finished run of wosac score here"),
        ("name=nowhere", "nowhere: no finished run of wosac score here"),
    ],
)
def test_what_is_no_model_is_one_line(folders: Path, spec: str, message: str) -> None:
    result = wosac(folders / "a", spec)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"wosac: error: {message}")


def test_one_run_is_no_comparison(folders: Path) -> None:
    result = wosac(folders / "a")
    assert result.exit_code == 2
    assert "a comparison needs two models" in result.stderr


def test_the_table_has_every_field_and_ends_with_the_verdict(folders: Path) -> None:
    result = wosac(folders / "a", folders / "b", "--scenes", 2, "--slice", "lights")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "b against a"
    assert lines[1].split("  ")[0] == "metric"
    row = re.search(
        r"^realism_meta_metric +(0\.\d{4}) +(0\.\d{4}) +\+(0\.\d{5}) "
        r"+\[\+0\.\d{5}, \+0\.\d{5}\] +0\.\d{4} +\d+/0/\d+ +\+0\.\d{3}$",
        result.stdout,
        re.MULTILINE,
    )
    assert row is not None
    assert float(row[2]) - float(row[1]) == pytest.approx(float(row[3]), abs=2e-4)
    for _, field in field_tree(get_challenge("2025")):
        assert re.search(rf"^ *{field} ", result.stdout, re.MULTILINE)
    assert re.search(r"^  no traffic lights +80 ", result.stdout, re.MULTILINE)
    assert len(re.findall(r"^  s\d{4} ", result.stdout, re.MULTILINE)) == 4
    assert "1000 resamples, seed 0" in result.stdout
    assert lines[-1].startswith("verdict: b is better than a: realism_meta_metric ")
    assert "\x1b" not in result.stdout


def test_formats_agree(folders: Path) -> None:
    args = (folders / "a", folders / "b", "--slice", "types", "--power", 0.001, "--resamples", 500)
    printed = {
        name: wosac(*args, "--format", name).stdout
        for name in ("table", "json", "csv", "markdown", "latex")
    }
    found = json.loads(printed["json"])
    (against,) = found["against"]
    rows = list(csv.DictReader(printed["csv"].splitlines()))
    fields = [row for row in rows if not row["slice"] and not row["scenario_id"]]
    assert [row["field"] for row in fields] == list(against["differences"])
    for row in fields:
        one = against["differences"][row["field"]]
        assert (row["baseline"], row["model"]) == ("a", "b")
        assert float(row["difference"]) == one["difference"]["value"]
        assert float(row["low"]) == one["difference"]["low"]
        assert float(row["p"]) == one["p"]
        assert row["p_holm"] == ("" if one["p_holm"] is None else str(one["p_holm"]))
        assert int(row["scenes_needed"]) == one["scenes_needed"]
        shown = f"{one['difference']['value']:+.5f}"
        assert re.search(rf"^ *{row['field']} .* {re.escape(shown)} ", printed["table"], re.M)
        assert re.search(rf"{row['field']} \|.*\| {re.escape(shown)} \|", printed["markdown"])
        latex = row["field"].replace("_", r"\_")
        assert re.search(rf"{re.escape(latex)} &.*& {re.escape(shown)} &", printed["latex"])
    slices = [row for row in rows if row["slice"]]
    assert [row["slice"] for row in slices] == [part["level"] for part in against["slices"]]
    listed = [row["scenario_id"] for row in rows if row["scenario_id"]]
    assert listed == [c["scenario_id"] for c in (*against["losses"], *against["gains"])]
    verdict = against["verdict"]["text"]
    for name in ("table", "markdown"):
        assert printed[name].endswith(f"verdict: {verdict}\n")
    assert f"% verdict: {verdict}" in printed["latex"]
    assert printed["latex"].count(r"\begin{tabular}") == printed["latex"].count(r"\end{tabular}")
    assert "[$-$0." in printed["latex"]
    # A table has no place for it.
    assert wosac(*args, "--format", "csv").stderr == f"{verdict}\n"


def test_json_is_strict_and_has_all(folders: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    printed = wosac(folders / "a", f"c={folders}/c0,{folders}/c1", "--format", "json").stdout
    found = json.loads(printed, parse_constant=refuse)
    assert found["resamples"] == 1_000
    assert found["confidence"] == 0.95
    assert found["models"][1]["folders"] == [f"{folders}/c0", f"{folders}/c1"]
    assert len(found["models"][1]["seed_means"][META]) == 2


def test_seeds_have_a_table_of_their_own(folders: Path) -> None:
    result = wosac(folders / "a", f"c={folders}/c0,{folders}/c1", "--scenes", 0)
    assert "means of single seeds (c 2)" in result.stdout
    table = result.stdout.split("means of single seeds (c 2)\n")[1]
    assert table.splitlines()[0].split() == ["metric", "c:", "sd", "lowest", "highest"]
    row = re.search(r"^realism_meta_metric +(\S+) +(\S+) +(\S+)$", table, re.MULTILINE)
    assert row is not None
    spread, lowest, highest = map(float, row.groups())
    assert spread == pytest.approx((highest - lowest) / math.sqrt(2), abs=1e-4)
    assert "bootstrap over scenes and seeds" in result.stdout


def test_fail_if_worse_fails_where_a_run_is_worse(folders: Path) -> None:
    a, b = folders / "a", folders / "b"
    good = wosac(a, b, "--fail-if-worse")
    assert good.exit_code == 0
    bad = wosac(b, a, "--fail-if-worse")
    assert bad.exit_code == 1
    assert bad.stderr == "wosac: significantly worse than b: a\n"
    assert "verdict: a is worse than b" in bad.stdout
    assert wosac(b, a).exit_code == 0
    assert wosac(a, b, "--fail-if-worse", "--metric", "min_ade").exit_code == 1
    undecided = wosac(b, f"c={folders}/c0,{folders}/c1", "--fail-if-worse")
    assert undecided.exit_code == 0


def test_runs_of_different_scenes_are_one_line_or_counted(
    folders: Path, baseline: np.ndarray, tmp_path: Path
) -> None:
    rows = scenes(baseline)[3:]
    write_run(tmp_path / "few", run(rows, "few").summary, rows)
    refused = wosac(folders / "a", tmp_path / "few")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert "few lacks 3 of 120 (s0000, s0001, s0002)" in refused.stderr
    passed = wosac(folders / "a", tmp_path / "few", "--missing", "intersect")
    assert passed.exit_code == 0
    assert "passed over: scenes that other runs lack, of a 3" in passed.stdout
    assert "117 scenes, 32 rollouts each" in passed.stdout


def test_scenes_left_out_are_told(
    folders: Path, baseline: np.ndarray, changed: np.ndarray, tmp_path: Path
) -> None:
    rows = with_field(scenes(changed), TTC, [math.nan, *changed[1:]])
    write_run(tmp_path / "odd", run(rows, "odd").summary, rows)
    result = wosac(folders / "a", tmp_path / "odd")
    assert f"left out of {TTC}: 1 of 120 scenes, not finite in every run" in result.stdout
    assert re.search(rf"^  {TTC} .* 119$", result.stdout, re.MULTILINE)
    assert re.search(rf"^{META} .* 120$", result.stdout, re.MULTILINE)
