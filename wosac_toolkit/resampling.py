"""Paired statistics by resampling scenes: bootstrap intervals, randomisation tests, power.

The unit that is resampled is the scene, since the agents and rollouts of one are not independent.
Arrays go in and come out; every function that draws takes a `numpy.random.Generator`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from wosac_toolkit.scenario import BoolArray, Float64Array

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8

# 32 MB, whatever the number of scenes.
_ELEMENTS_AT_ONCE = 4_000_000


def _chunks(n_resamples: int, n_scenes: int) -> Iterator[tuple[slice, Float64Array]]:
    """Resamples [n] that are drawn at once, and room [n, N] for what they draw, used again."""
    step = min(n_resamples, max(1, _ELEMENTS_AT_ONCE // n_scenes))
    room = np.empty((step, n_scenes))
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        yield slice(start, stop), room[: stop - start]


def bootstrap_sums(
    columns: Float64Array, n_resamples: int, rng: np.random.Generator
) -> Float64Array:
    """Sums of columns over scenes drawn with replacement, the same scenes for all columns.

    A resample is a vector of how often each scene was drawn, and the sums of many resamples are
    one product of matrices.

    Args:
        columns: float64 [N, C], finite, a row a scene.
        n_resamples: R.
        rng: draws R * N indices, whatever the columns are.

    Returns:
        float64 [R, C].
    """
    n_scenes = len(columns)
    sums = np.empty((n_resamples, columns.shape[1]))
    for chunk, counts in _chunks(n_resamples, n_scenes):
        for row in counts:
            row[:] = np.bincount(rng.integers(n_scenes, size=n_scenes), minlength=n_scenes)
        sums[chunk] = counts @ columns
    return sums


def seed_weights(n_seeds: int, n_resamples: int, rng: np.random.Generator) -> Float64Array:
    """The weight of each seed of a model in its mean, for seeds drawn with replacement.

    S - 1 of the S seeds are drawn, which makes the variance of their mean unbiased (Rao and Wu
    1988, "Resampling inference with complex survey data"); S draws would halve it for two seeds.

    Returns:
        float64 [R, S], rows that sum to 1.
    """
    if n_seeds == 1:
        return np.ones((n_resamples, 1))
    draws = n_seeds - 1
    return rng.multinomial(draws, np.full(n_seeds, 1 / n_seeds), size=n_resamples) / draws


def bootstrap_means(
    scores: Float64Array,
    rows: BoolArray,
    n_seeds: Sequence[int],
    n_resamples: int,
    rng: np.random.Generator,
) -> Float64Array:
    """Means of models over scenes, and seeds, that are drawn with replacement.

    Scenes are drawn once for all models, which keeps them paired, and once for all columns; seeds
    for each model by itself. As in every bootstrap of two crossed factors (Owen 2007, "The
    pigeonhole bootstrap"), what is neither of the scene nor of the seed is counted more than once,
    so with several seeds intervals are rather too wide than too narrow.

    Args:
        scores: float64 [N, S, C]: N scenes, the S seeds of all models one model after the other,
            C columns.
        rows: bool [N, C], the scenes that each column is averaged over; its scores are finite
            there.
        n_seeds: seeds of each of the M models; their sum is S.
        n_resamples: R.
        rng: source of the draws.

    Returns:
        float64 [R, M, C]; NaN where none of a column's scenes was drawn.
    """
    n_scenes, n_columns = rows.shape
    # Few columns differ in their scenes.
    members, which = np.unique(rows, axis=1, return_inverse=True)
    counted = np.where(rows[:, None], scores, 0.0).reshape(n_scenes, -1)
    sums = bootstrap_sums(np.hstack([counted, members]), n_resamples, rng)
    n_drawn = sums[:, counted.shape[1] :][:, which.ravel()]
    with np.errstate(invalid="ignore"):
        means = sums[:, : counted.shape[1]].reshape(n_resamples, -1, n_columns) / n_drawn[:, None]
    ends = np.cumsum(n_seeds)
    return np.stack(
        [
            np.einsum("rs,rsc->rc", seed_weights(n, n_resamples, rng), means[:, end - n : end])
            for n, end in zip(n_seeds, ends, strict=True)
        ],
        axis=1,
    )


def interval(resampled: Float64Array) -> Float64Array:
    """The 95 % percentile interval of resampled values [R, ...], but for NaN: float64 [2, ...]."""
    ends: Float64Array = np.nanquantile(resampled, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return ends


def randomisation_p(
    differences: Float64Array, n_resamples: int, rng: np.random.Generator
) -> Float64Array:
    """Two-sided p-values of a mean difference of zero, by paired approximate randomisation.

    Were the two runs alike, their scores of a scene could be swapped, which turns the sign of the
    difference. The p-value is the share of random swaps whose mean is at least as far from zero as
    the observed one, the observed one counted among them (the +1 correction of Phipson and Smyth
    2010), so that it is never zero.

    Args:
        differences: float64 [N, C], finite, a row a scene.
        n_resamples: R.
        rng: draws a bit a resample and scene.

    Returns:
        float64 [C].
    """
    n_scenes, n_columns = differences.shape
    total = differences.sum(axis=0)
    # Sums that are equal but for rounding are equal: p-values of ties would depend on it.
    threshold = np.abs(total) - 1e-12 * np.abs(differences).sum(axis=0)
    extreme = np.zeros(n_columns, np.int64)
    # Whole words a resample: what is drawn is then the same however many are drawn at once.
    n_bytes = 4 * -(-n_scenes // 32)
    for _, kept in _chunks(n_resamples, n_scenes):
        bits = np.frombuffer(rng.bytes(len(kept) * n_bytes), np.uint8).reshape(-1, n_bytes)
        kept[:] = np.unpackbits(bits, axis=1, count=n_scenes)
        # The sum of what keeps its sign, less that of what does not.
        swapped = 2.0 * (kept @ differences) - total
        extreme += (np.abs(swapped) >= threshold).sum(axis=0)
    p: Float64Array = (1 + extreme) / (n_resamples + 1)
    return p


def bootstrap_p(resampled: Float64Array, observed: Float64Array) -> Float64Array:
    """Two-sided p-values from bootstrapped differences, moved so that their mean is zero.

    For several seeds, where swapping scenes alone would not see what all scenes of a seed share.

    Args:
        resampled: float64 [R, ...], NaN where there is none.
        observed: float64 [...].
    """
    extreme = (np.abs(resampled - observed) >= np.abs(observed)).sum(axis=0)
    p: Float64Array = (1 + extreme) / (1 + np.isfinite(resampled).sum(axis=0))
    return p


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the order given.

    Rejecting those below 0.05 keeps the chance of even one false rejection below 0.05.
    """
    n = len(p_values)
    adjusted = [1.0] * n
    largest = 0.0
    for rank, index in enumerate(sorted(range(n), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (n - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# Where a two-sided test at the 5 % level of a normal mean has 80 % power.
_STANDARD_ERRORS = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)


def scenes_needed(spread: float, difference: float) -> int:
    """How many scenes show a difference with 80 % power, in a two-sided test at the 5 % level.

    Args:
        spread: standard deviation of the paired differences over scenes.
        difference: of the means, not 0.
    """
    return max(2, int(np.ceil((_STANDARD_ERRORS * spread / difference) ** 2)))


def detectable(standard_error: float) -> float:
    """The difference that is shown with 80 % power, see `scenes_needed`."""
    return _STANDARD_ERRORS * standard_error
