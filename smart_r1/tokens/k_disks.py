"""The k-disks algorithm: a few shapes that stand for many (Trajeglish, arXiv 2312.04535)."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.scenario import Float32Array, Int64Array

_PICKS_BETWEEN_CLEARINGS = 32


def k_disks(
    shapes: Float32Array, n: int, tolerance: float, rng: np.random.Generator
) -> list[Int64Array]:
    """Cover shapes with disks, each around one picked at random from those not yet covered.

    What is common is covered first, and late disks are spent on what is rare. Time and memory
    grow with N.

    Args:
        shapes: float32 [N, Q, 2], the points of each shape, metres.
        n: how many disks.
        tolerance: radius of the disks, metres, in the mean distance of a shape's points.
        rng: picks the shapes.

    Returns:
        Of each disk the rows of the shapes that it covers; `n` disks, or fewer that cover all.
    """
    rows = rng.permutation(len(shapes))
    points = _by_coordinate(shapes[rows])
    covered = np.zeros(len(rows), bool)
    disks: list[Int64Array] = []
    pick = 0
    while len(disks) < n:
        while pick < len(rows) and covered[pick]:
            pick += 1
        if pick == len(rows):
            break
        disk = ~covered & (_mean_distance(points, points[:, :, pick]) <= tolerance)
        disks.append(rows[disk])
        covered |= disk
        if len(disks) % _PICKS_BETWEEN_CLEARINGS == 0:
            rows, points = rows[~covered], points[:, :, ~covered]
            covered, pick = np.zeros(len(rows), bool), 0
    return disks


def nearest_centres(shapes: Float32Array, centres: Float32Array) -> tuple[Int64Array, Float32Array]:
    """The centre [N] that is nearest to each shape, and how far it is, metres [N].

    Args:
        shapes: float32 [N, Q, 2].
        centres: float32 [C, Q, 2]; with none, the distance is infinite.
    """
    points = _by_coordinate(shapes)
    nearest = np.zeros(len(shapes), np.int64)
    least = np.full(len(shapes), np.inf, np.float32)
    for number, centre in enumerate(centres):
        distance = _mean_distance(points, centre)
        nearest[distance < least] = number
        np.minimum(least, distance, out=least)
    return nearest, least


def _by_coordinate(shapes: Float32Array) -> Float32Array:
    """[N, Q, 2] as [Q, 2, N]: NumPy is fast along the last axis."""
    return np.ascontiguousarray(shapes.transpose(1, 2, 0))


def _mean_distance(points: Float32Array, shape: Float32Array) -> Float32Array:
    """The distance [N] of shapes [Q, 2, N] from one [Q, 2]."""
    total = np.zeros(points.shape[-1], np.float32)
    for (xs, ys), (x, y) in zip(points, shape, strict=True):
        dx, dy = xs - x, ys - y
        total += np.sqrt(dx * dx + dy * dy)
    return total / np.float32(len(shape))
