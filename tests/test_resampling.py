from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wosac_toolkit import resampling
from wosac_toolkit.resampling import (
    bootstrap_means,
    bootstrap_p,
    bootstrap_sums,
    detectable,
    holm,
    interval,
    randomisation_p,
    scenes_needed,
    seed_weights,
)
from wosac_toolkit.scenario import Float64Array


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def all_rows(scores: Float64Array) -> np.ndarray:
    return np.ones((len(scores), scores.shape[2]), bool)


# --------------------------------------------------------------------------------------------------
# The bootstrap


def test_a_resample_is_the_sum_over_scenes_drawn_with_replacement() -> None:
    columns = rng(1).normal(size=(7, 3))
    draws, same_draws = rng(2), rng(2)
    sums = bootstrap_sums(columns, 20, draws)
    for resample in sums:
        drawn = same_draws.integers(7, size=7)
        np.testing.assert_allclose(resample, sum(columns[i] for i in drawn))


def test_how_much_is_drawn_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = rng(1).normal(size=(50, 2))
    sums, p = bootstrap_sums(columns, 101, rng()), randomisation_p(columns, 101, rng())
    monkeypatch.setattr(resampling, "_ELEMENTS_AT_ONCE", 120)
    np.testing.assert_allclose(bootstrap_sums(columns, 101, rng()), sums)
    np.testing.assert_array_equal(randomisation_p(columns, 101, rng()), p)


def test_means_of_models_with_seeds_are_those_of_brute_force_loops() -> None:
    n_seeds, n_resamples = (3, 1, 2), 40
    scores = rng(1).normal(size=(9, 6, 2))
    means = bootstrap_means(scores, all_rows(scores), n_seeds, n_resamples, rng(5))
    same = rng(5)
    drawn = [same.integers(9, size=9) for _ in range(n_resamples)]
    weights = [seed_weights(n, n_resamples, same) for n in n_seeds]
    for r in range(n_resamples):
        for m, first in enumerate((0, 3, 4)):
            for c in range(2):
                total = 0.0
                for scene in drawn[r]:
                    for seed in range(n_seeds[m]):
                        total += weights[m][r, seed] * scores[scene, first + seed, c]
                assert means[r, m, c] == pytest.approx(total / 9)


def test_a_hierarchical_interval_is_that_of_loops_over_scenes_and_seeds() -> None:
    scene = rng(1).normal(size=(30, 1))
    seed = np.repeat([[0.0, 0.3, 0.5, -0.2, 0.1, 0.0, 0.1]], 30, axis=0)
    scores = (scene + seed + 0.2 * rng(2).normal(size=(30, 7)))[:, :, None]
    means = bootstrap_means(scores, all_rows(scores), (4, 3), 20_000, rng(3))
    fast = (means[:, 1] - means[:, 0])[:, 0]
    draws = rng(4)
    slow = []
    for _ in range(4_000):
        scenes = draws.integers(30, size=30)
        baseline = draws.integers(4, size=3)
        model = 4 + draws.integers(3, size=2)
        slow.append(scores[np.ix_(scenes, model)].mean() - scores[np.ix_(scenes, baseline)].mean())
    assert fast.std() == pytest.approx(np.std(slow), rel=0.05)
    np.testing.assert_allclose(interval(fast), interval(np.array(slow)), atol=0.1 * fast.std())


def test_the_variance_of_resampled_seeds_is_unbiased() -> None:
    means = np.array([0.1, 0.4, 0.3])
    for own in (means, means[:2]):
        resampled = seed_weights(len(own), 100_000, rng()) @ own
        assert resampled.var() == pytest.approx(own.var(ddof=1) / len(own), rel=0.02)
    np.testing.assert_array_equal(seed_weights(1, 3, rng()), np.ones((3, 1)))


def test_a_column_is_averaged_over_its_own_scenes() -> None:
    scores = rng(1).normal(size=(40, 2, 3))
    rows = np.ones((40, 3), bool)
    rows[:, 1] = np.arange(40) % 4 == 0
    rows[5, 2] = False
    scores[~rows[:, 2], :, 2] = np.nan
    means = bootstrap_means(scores, rows, (1, 1), 4_000, rng(2))
    assert np.isfinite(means).all()
    for c in range(3):
        own = scores[rows[:, c], 0, c]
        assert means[:, 0, c].mean() == pytest.approx(own.mean(), abs=0.02)
        assert means[:, 0, c].std() == pytest.approx(own.std() / np.sqrt(len(own)), rel=0.15)


def test_a_resample_without_any_scene_of_a_column_is_no_number_and_left_out() -> None:
    scores = np.array([1.0, 2.0, 3.0])[:, None, None] * np.ones((1, 2, 1))
    rows = np.array([[True], [False], [False]])
    means = bootstrap_means(scores, rows, (1, 1), 200, rng())
    missed = np.isnan(means[:, 0, 0])
    assert missed.mean() == pytest.approx((2 / 3) ** 3, abs=0.1)
    assert set(means[~missed, 0, 0]) == {1.0}
    np.testing.assert_array_equal(interval(means)[:, 0, 0], [1.0, 1.0])
    assert bootstrap_p(means[:, 1] - means[:, 0], np.zeros(1))[0] == 1.0


def test_the_interval_is_that_of_scipy() -> None:
    a = rng(1).beta(5, 2, size=150)
    b = a + 0.05 * rng(2).standard_gamma(1.0, size=150) - 0.03
    scores = np.stack([a, b], axis=1)[:, :, None]
    means = bootstrap_means(scores, all_rows(scores), (1, 1), 20_000, rng(3))
    low, high = interval((means[:, 1] - means[:, 0])[:, 0])
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: (y - x).mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        random_state=rng(4),
    )
    error = theirs.standard_error
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * error)


@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_covers_the_true_difference_in_95_of_100_datasets(skewed: bool) -> None:
    draws, covered, n_datasets = rng(7), 0, 300
    for _ in range(n_datasets):
        noise = draws.exponential(size=(80, 1)) - 1 if skewed else draws.normal(size=(80, 1))
        scene = draws.normal(size=(80, 1))
        scores = np.concatenate([scene, scene + 0.25 + noise], axis=1)[:, :, None]
        means = bootstrap_means(scores, all_rows(scores), (1, 1), 400, draws)
        low, high = interval((means[:, 1] - means[:, 0])[:, 0])
        covered += low <= 0.25 <= high
    # 3 standard errors of a share of 300.
    assert covered / n_datasets == pytest.approx(0.945, abs=0.04)


def test_with_seeds_the_interval_covers_what_one_over_scenes_alone_would_miss() -> None:
    draws, n_datasets = rng(8), 150
    covered = {"both": 0, "scenes": 0}
    for _ in range(n_datasets):
        scene = draws.normal(size=(60, 1))
        seeds = 0.3 * draws.normal(size=(1, 12))
        scores = (scene + seeds + 0.5 * draws.normal(size=(60, 12)))[:, :, None]
        pooled = scores.reshape(60, 2, 6, 1).mean(axis=2)
        both = bootstrap_means(scores, all_rows(scores), (6, 6), 300, draws)
        alone = bootstrap_means(pooled, all_rows(pooled), (1, 1), 300, draws)
        for name, means in (("both", both), ("scenes", alone)):
            low, high = interval((means[:, 1] - means[:, 0])[:, 0])
            covered[name] += low <= 0 <= high
    assert covered["both"] / n_datasets > 0.88
    assert covered["scenes"] / n_datasets < 0.7


# --------------------------------------------------------------------------------------------------
# P-values


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7), st.integers(0, 100))
def test_p_is_that_of_all_swaps_listed_one_by_one(tenths: list[int], seed: int) -> None:
    # Tenths are no binary fractions: equal sums differ in their last bits.
    differences = np.array(tenths) / 10
    n = len(differences)
    swaps = [sum(d if swap >> i & 1 else -d for i, d in enumerate(tenths)) for swap in range(2**n)]
    exact = np.mean([abs(swap) >= abs(sum(tenths)) for swap in swaps])
    p = randomisation_p(differences[:, None], 3_000, rng(seed))[0]
    assert p == pytest.approx(exact, abs=4.5 * np.sqrt(exact * (1 - exact) / 3_000) + 1e-3)


def test_p_is_that_of_scipys_permutation_test() -> None:
    differences = rng(1).normal(0.3, 1.0, size=(11, 2))
    p = randomisation_p(differences, 50_000, rng(2))
    for ours, column in zip(p, differences.T, strict=True):
        theirs = stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert ours == pytest.approx(theirs, abs=0.01)


def test_p_is_that_of_a_paired_t_test_where_that_holds() -> None:
    a = rng(1).normal(size=300)
    b = a + rng(2).normal(0.1, 1.0, size=300)
    p = randomisation_p((b - a)[:, None], 20_000, rng(3))[0]
    assert p == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.01)


def test_p_of_equal_runs_is_1_and_of_unlike_ones_never_0() -> None:
    columns = np.stack([np.zeros(100), np.ones(100)], axis=1)
    np.testing.assert_array_equal(randomisation_p(columns, 999, rng()), [1.0, 1 / 1000])


def test_p_does_not_depend_on_the_sign_or_unit_of_the_differences() -> None:
    differences = rng(1).normal(0.1, 1.0, size=(40, 1))
    columns = np.hstack([differences, -differences, 1e-6 * differences])
    p = randomisation_p(columns, 2_000, rng())
    assert p[0] == p[1] == p[2]


def test_p_of_runs_that_do_not_differ_is_below_5_percent_in_5_of_100_datasets() -> None:
    draws = rng(9)
    # One exchange of scenes for many datasets: their differences are independent columns.
    differences = draws.exponential(size=(60, 600)) * draws.choice([-1, 1], size=(60, 600))
    p = randomisation_p(differences, 999, draws)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_a_bootstrapped_p_counts_the_draws_as_far_off_as_what_was_observed() -> None:
    resampled = np.array([[0.0], [0.5], [1.0], [1.5], [2.5]])
    # Off 1 by 1, 0.5, 0, 0.5 and 1.5: the first and the last are as far off as 1 is from 0.
    np.testing.assert_allclose(bootstrap_p(resampled, np.array([1.0])), [(1 + 2) / 6])


def test_a_bootstrapped_p_of_many_scenes_is_that_of_a_t_test() -> None:
    a = rng(1).normal(size=(400, 1, 1))
    scores = np.concatenate([a, a + rng(2).normal(0.09, 1.0, size=(400, 1, 1))], axis=1)
    means = bootstrap_means(scores, all_rows(scores), (1, 1), 20_000, rng(3))
    observed = scores[:, 1].mean(axis=0) - scores[:, 0].mean(axis=0)
    p = bootstrap_p(means[:, 1] - means[:, 0], observed)[0]
    assert p == pytest.approx(stats.ttest_rel(scores[:, 1, 0], scores[:, 0, 0]).pvalue, abs=0.02)


# --------------------------------------------------------------------------------------------------
# Holm


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 not below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.02]) == pytest.approx([0.6, 0.04])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_as_the_step_down_procedure_does(p: list[float], alpha: float) -> None:
    adjusted = holm(p)
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if (len(p) - rank) * p[index] >= alpha:
            break
        rejected.add(index)
    assert {i for i, value in enumerate(adjusted) if value < alpha} == rejected
    assert all(1 >= after >= before for after, before in zip(adjusted, p, strict=True))


# --------------------------------------------------------------------------------------------------
# Power


def test_scenes_needed_by_the_formula_of_the_textbook() -> None:
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert scenes_needed(1.0, 0.5) == np.ceil((z / 0.5) ** 2) == 32
    assert scenes_needed(0.1, 0.0005) == np.ceil((z * 0.1 / 0.0005) ** 2)
    assert scenes_needed(0.1, -0.0005) == scenes_needed(0.1, 0.0005)
    assert scenes_needed(0.0, 1.0) == 2
    assert scenes_needed(1.0, detectable(1.0 / np.sqrt(50))) in (50, 51)


def test_so_many_scenes_show_the_difference_in_80_of_100_datasets() -> None:
    n = scenes_needed(1.0, 0.3)
    differences = rng(3).normal(0.3, 1.0, size=(n, 1_000))
    p = randomisation_p(differences, 499, rng(4))
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.05)
