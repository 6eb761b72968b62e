"""Histograms of features (`estimators.histogram_estimate`, `tfp.stats.histogram`)."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.scenario import BoolArray, Float32Array, Int64Array


@inlined
def _bin(value: float, edges: Float32Array, per_unit: float) -> int:
    """The bin of a value: values outside belong to the outermost bins, the upper edge to the last.

    NaN belongs to the last bin: the official code finds bins by binary search, for which every
    comparison with NaN is false. Simulated speeds end in one NaN a rollout and accelerations in
    two, and these are counted, so every agent seems to be at top speed for one step in 80.
    """
    last = len(edges) - 2
    if not value < edges[last]:
        return last
    if value < edges[1]:
        return 0
    guess = np.int64((value - edges[0]) * per_unit)
    # The guess is one float32 rounding away from the bin at most.
    guess = min(max(guess, 0), last)
    while guess < last and value >= edges[guess + 1]:
        guess += 1
    while guess > 0 and value < edges[guess]:
        guess -= 1
    return guess


@kernel
def count_simulated(values: Float32Array, edges: Float32Array, counts: Int64Array) -> None:
    """Count the steps of each rollout of each agent in each bin.

    Args:
        values: float32 [R, E, T].
        edges: float32 [B + 1], ascending and equally spaced.
        counts: int64 [R, E, B], written.
    """
    per_unit = np.float32((len(edges) - 1) / (edges[-1] - edges[0]))
    counts[:] = 0
    for r in range(values.shape[0]):
        for e in range(values.shape[1]):
            for t in range(values.shape[2]):
                counts[r, e, _bin(values[r, e, t], edges, per_unit)] += 1


@kernel
def count_logged(
    values: Float32Array, valid: BoolArray, edges: Float32Array, counts: Int64Array
) -> None:
    """Count the valid logged steps of each agent in each bin.

    Args:
        values: float32 [E, T].
        valid: bool [E, T].
        edges: float32 [B + 1].
        counts: int64 [E, B], written.
    """
    per_unit = np.float32((len(edges) - 1) / (edges[-1] - edges[0]))
    counts[:] = 0
    for e in range(values.shape[0]):
        for t in range(values.shape[1]):
            if valid[e, t]:
                counts[e, _bin(values[e, t], edges, per_unit)] += 1
