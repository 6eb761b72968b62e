"""Count the work of a score, in plain NumPy, and set its time beside what it cannot do without.

    python benchmarks/count_work.py [--scenarios PATH] [--every N] [--json FILE]

The counts are taken beside the kernels, not in them: the same bounds and the same order of search
are gone through here step by step. Two numbers matter of each search: how many exact evaluations
the kernel makes, and how many no search could avoid that has the same cheap bound. With the time
an evaluation takes, the second and one pass over the inputs bound the time of a score from below.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scenes
import tables
from kernel_times import timed_kernels
from machine import median_seconds, read_bandwidth, this_machine

from wosac_toolkit import score_scenario
from wosac_toolkit.features import PreparedScene, prepare_scene, simulated_features
from wosac_toolkit.kernels import road_edges
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Float32Array

Array = npt.NDArray[np.float64]

REPEATS = 3
Z_STRETCH = 3.0
# By which the circle bound of a pair is eased, as in `kernels/nearest_object.py`.
ROUNDING_M, ROUNDING_RATIO = 1e-2, 1e-6
# The kernels are in float32, 4 mm apart at 40 km.
TOLERANCE_M = 5e-2


def _index_parameter(name: str, otherwise: float) -> float:
    """A size of the road-edge index; if it has gone, the index is another one, and that is said."""
    if not hasattr(road_edges, name):
        print(
            f"warning: wosac_toolkit.kernels.road_edges has no {name} any more: the recount of "
            "listed and evaluated segments may describe an older index",
            file=sys.stderr,
        )
    return float(getattr(road_edges, name, otherwise))


CELL_M = _index_parameter("_CELL_M", 1.0)
CELL_HEIGHT_M = _index_parameter("_CELL_HEIGHT_M", 0.5)
SLACK_M = _index_parameter("_SLACK_M", 5e-2)
BLOCK = int(_index_parameter("_LANES", 16))
RINGS = int(_index_parameter("_RINGS", 16))


def states_in_order(scene: PreparedScene, rollouts: Rollouts) -> Array:
    """States [R, N, T, 4] with the agents in the metric's order."""
    place = {int(i): row for row, i in enumerate(rollouts.object_ids)}
    return rollouts.states[:, [place[int(i)] for i in scene.object_ids]].astype(np.float64)


# Nearest objects


def count_pairs(scene: PreparedScene, states: Array, expected: Float32Array) -> Counter[str]:
    """The search for the nearest object of each evaluated agent at each step.

    Args:
        scene: the scene.
        states: [R, N, T, 4], see `states_in_order`.
        expected: float32 [R, E, T], what the kernel finds; the recount must find the same.
    """
    n_evaluated = scene.n_evaluated
    x, y, heading = (states[..., k].transpose(0, 2, 1) for k in (0, 1, 3))  # [R, T, N]
    length, width = scene.size[:, 0].astype(np.float64), scene.size[:, 1].astype(np.float64)
    shrinking = np.minimum(length, width) * scene.challenge.corner_rounding / 2
    radius = np.hypot(length, width) / 2
    counts: Counter[str] = Counter()
    counts["queries"] = x.shape[0] * x.shape[1] * n_evaluated
    counts["pairs"] = counts["queries"] * (len(length) - 1)
    if len(length) == 1:
        return counts

    def distances(r: Any, t: Any, a: Any, b: Any) -> Array:
        one, other = (
            (x[r, t, i], y[r, t, i], heading[r, t, i],
             length[i] / 2 - shrinking[i], width[i] / 2 - shrinking[i])
            for i in (a, b)
        )  # fmt: skip
        return rectangle_distances(one, other) - shrinking[a] - shrinking[b]

    agents = np.arange(n_evaluated)
    for rollout in range(len(x)):
        gap = np.hypot(
            x[rollout, :, None, :] - x[rollout, :, :n_evaluated, None],
            y[rollout, :, None, :] - y[rollout, :, :n_evaluated, None],
        )
        gap[:, agents, agents] = np.inf
        if rollout == 0:
            neighbour = gap.argmin(axis=2)
        rounding = np.maximum(abs(x[rollout, :, :n_evaluated]), abs(y[rollout, :, :n_evaluated]))
        gap -= radius[:n_evaluated, None] + radius + ROUNDING_M
        gap -= ROUNDING_RATIO * rounding[..., None]
        t, e = np.indices(neighbour.shape)
        first = distances(rollout, t, e, neighbour)
        # What the circles leave once the neighbour in the rollout before is known.
        left = gap < first[..., None]
        left[t, e, neighbour] = False
        exact = np.full(gap.shape, np.inf)
        steps, cols, others = np.nonzero(left)
        exact[steps, cols, others] = distances(rollout, steps, cols, others)
        exact[t, e, neighbour] = first
        best = exact.min(axis=2)
        if not np.allclose(best.T, expected[rollout], atol=TOLERANCE_M):
            raise SystemExit(f"scenario {scene.scenario_id}: the recount finds other distances")
        neighbour = exact.argmin(axis=2)
        counts["exact distances evaluated"] += int(left.sum()) + first.size
        # Whoever knew the answer would still have to see that nothing is nearer.
        counts["exact distances unavoidable"] += int(
            np.maximum((gap < best[..., None]).sum(axis=2), 1).sum()
        )
    return counts


def rectangle_distances(one: tuple[Array, ...], other: tuple[Array, ...]) -> Array:
    """Signed distance of rectangles (x, y, heading, half length, half width), element by element.

    Apart, a corner of one is nearest to the other; overlapping, the shallowest of the four axes
    along which they can be drawn apart tells how deep.
    """
    apart = np.full(one[0].shape, np.inf)
    separation = np.full(one[0].shape, -np.inf)
    for a, b in ((one, other), (other, one)):
        ax, ay, ah, al, aw = a
        bx, by, bh, bl, bw = b
        cosine, sine = np.cos(ah), np.sin(ah)
        dx, dy = bx - ax, by - ay
        turn_cosine, turn_sine = np.cos(bh - ah), np.sin(bh - ah)
        u, v = cosine * dx + sine * dy, cosine * dy - sine * dx
        reach_u = bl * abs(turn_cosine) + bw * abs(turn_sine)
        reach_v = bl * abs(turn_sine) + bw * abs(turn_cosine)
        separation = np.maximum(
            separation, np.maximum(abs(u) - al - reach_u, abs(v) - aw - reach_v)
        )
        for sl, sw in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            cu = u + sl * bl * turn_cosine - sw * bw * turn_sine
            cv = v + sl * bl * turn_sine + sw * bw * turn_cosine
            apart = np.minimum(
                apart, np.hypot(np.maximum(abs(cu) - al, 0), np.maximum(abs(cv) - aw, 0))
            )
    return np.where(separation < 0, separation, apart)


# Road edges


def count_corners(scene: PreparedScene, states: Array, expected: Float32Array) -> Counter[str]:
    """The search for the nearest road-edge segment of each bottom corner.

    Args:
        scene: the scene.
        states: [R, N, T, 4], see `states_in_order`.
        expected: float32 [R, E, T], what the kernel finds; one of the four corners recounted must
            be as far from the road edge, on either side.
    """
    e = scene.n_evaluated
    length, width, height = (scene.size[:e, k, None].astype(np.float64) for k in range(3))
    x, y, z, heading = (states[:, :e, :, k] for k in range(4))
    cosine, sine = np.cos(heading), np.sin(heading)
    corners = np.stack(
        [
            np.stack(
                [
                    x + sl * length / 2 * cosine - sw * width / 2 * sine,
                    y + sl * length / 2 * sine + sw * width / 2 * cosine,
                    z - height / 2,
                ],
                axis=-1,
            )
            for sl, sw in ((1, 1), (-1, 1), (-1, -1), (1, -1))
        ],
        axis=-2,
    ).reshape(-1, 3)
    start, delta = (a.T.astype(np.float64) for a in (scene.edges.start, scene.edges.delta))
    pitch = np.array([CELL_M, CELL_M, CELL_HEIGHT_M])
    cells, cell_of = np.unique(np.floor(corners / pitch), axis=0, return_inverse=True)
    cell_of = cell_of.reshape(-1)
    order = np.argsort(cell_of, kind="stable")
    bounds = np.searchsorted(cell_of[order], np.arange(len(cells) + 1))
    reach = math.sqrt(2 * (CELL_M / 2) ** 2 + (Z_STRETCH * CELL_HEIGHT_M / 2) ** 2)

    counts: Counter[str] = Counter()
    counts["corners"] = len(corners)
    counts["corner and segment pairs"] = len(corners) * len(start)
    counts["cells"] = len(cells)
    planar = np.empty(len(corners))
    for c, index in enumerate(cells):
        centre = (index + 0.5) * pitch
        from_centre = segment_distances(centre[None], start, delta)[0]
        listed = np.flatnonzero(from_centre <= from_centre.min() + 2 * reach + SLACK_M)
        ring_m = (2 * reach + SLACK_M) / RINGS
        ring = np.minimum((from_centre[listed] - from_centre.min()) // ring_m, RINGS - 1)
        listed, ring = listed[np.argsort(ring, kind="stable")], np.sort(ring)
        bound = from_centre.min() + ring * ring_m
        rows = order[bounds[c] : bounds[c + 1]]
        own = corners[rows]
        counts["segments listed in all cells"] += len(listed)
        offset = np.linalg.norm((own - centre) * [1, 1, Z_STRETCH], axis=1) + SLACK_M
        best, searching = np.full(len(own), np.inf), np.ones(len(own), bool)
        exact = segment_distances(own, start[listed], delta[listed])
        for b in range(0, len(listed), BLOCK):
            searching &= bound[b] - offset <= best
            counts["segments evaluated"] += BLOCK * int(searching.sum())
            nearest = exact[:, b : b + BLOCK].min(axis=1)
            best = np.where(searching, np.minimum(best, nearest), best)
        counts["segments listed for corners"] += len(listed) * len(own)
        nearest = listed[exact.argmin(axis=1)]
        planar[rows] = segment_distances(
            own, start[nearest], delta[nearest], z_stretch=0.0, pairwise=True
        )
    difference = abs(planar.reshape(*expected.shape, 4) - abs(expected[..., None])).min(axis=-1)
    # Of two segments equally near in 3-D the recount may take the other: rare.
    if (difference > TOLERANCE_M).mean() > 1e-3:
        raise SystemExit(f"scenario {scene.scenario_id}: the recount finds other road edges")
    return counts


def segment_distances(
    points: Array,
    start: Array,
    delta: Array,
    z_stretch: float = Z_STRETCH,
    pairwise: bool = False,
) -> Array:
    """Distances [n, m] of points [n, 3] to segments, projected in the plane, heights stretched;
    with `pairwise` [n], of each point to its own segment.
    """
    p = points - start if pairwise else points[:, None] - start
    square = (delta[:, :2] ** 2).sum(axis=1)
    along = p[..., 0] * delta[:, 0] + p[..., 1] * delta[:, 1]
    t = np.clip(np.divide(along, square, out=np.zeros_like(along), where=square > 0), 0, 1)
    dx, dy, dz = (p[..., k] - delta[:, k] * t for k in range(3))
    return np.sqrt(dx * dx + dy * dy + (z_stretch * dz) ** 2)


# Costs and the bound


@dataclass(frozen=True, slots=True)
class Counted:
    """One scene: its counts, and seconds of the whole score and of each kernel's simulated part."""

    counts: Counter[str]
    score: float
    kernels: dict[str, float]

    def module_seconds(self, module: str) -> float:
        return sum(s for name, s in self.kernels.items() if name.startswith(f"{module}."))


def count_scene(scenario: Any, record_bytes: int) -> Counted:
    rollouts = scenes.simulate(scenario)
    scene = prepare_scene(scenario)
    states = states_in_order(scene, rollouts)
    features = simulated_features(scene, rollouts)
    counts = count_pairs(scene, states, features.distance_to_nearest_object)
    counts += count_corners(scene, states, features.distance_to_road_edge)
    counts["bytes of the scenario record"] = record_bytes
    counts["bytes of the rollouts"] = rollouts.states.nbytes
    samples: list[dict[str, float]] = []
    for _ in range(REPEATS):
        with timed_kernels() as split:
            simulated_features(scene, rollouts)
        samples.append(dict(split))
    return Counted(
        counts=counts,
        score=median_seconds(lambda: score_scenario(scenario, rollouts), REPEATS),
        kernels={n: statistics.median(s.get(n, 0.0) for s in samples) for n in samples[0]},
    )


def fit_costs(seconds: list[float], counts: list[list[int]]) -> list[float]:
    """Seconds of each unit of several kinds of work, none negative, by least squares over scenes.

    Relative errors are fitted, so that small scenes say as much as large ones.
    """
    work, spent = np.array(counts, np.float64), np.array(seconds)
    rows = work / spent[:, None]
    kinds = list(range(work.shape[1]))
    while True:
        costs = np.linalg.lstsq(rows[:, kinds], np.ones(len(rows)), rcond=None)[0]
        if (costs >= 0).all() or len(kinds) == 1:
            break
        kinds.pop(int(costs.argmin()))
    result = np.zeros(work.shape[1])
    result[kinds] = np.maximum(costs, 0)
    return result.tolist()


def analyse(counted: list[Counted]) -> dict[str, Any]:
    """The tables: counts, costs, and the bound of a scene whose every figure is the median."""
    names = list(dict.fromkeys(name for c in counted for name in c.counts))
    median = {n: statistics.median(c.counts[n] for c in counted) for n in names}
    rows = [
        (name, f"{median[name]:,.0f}", f"{max(c.counts[name] for c in counted):,}")
        for name in names
    ]
    for total, each, what in (
        ("exact distances evaluated", "queries", "exact distances evaluated a query"),
        ("segments listed for corners", "corners", "segments listed a corner"),
        ("segments evaluated", "corners", "segments evaluated a corner"),
    ):
        values = [c.counts[total] / c.counts[each] for c in counted]
        rows.append((what, f"{statistics.median(values):.1f}", f"{max(values):.1f}"))

    def fitted(seconds: list[float], *kinds: str) -> list[float]:
        return fit_costs(seconds, [[c.counts[k] for k in kinds] for c in counted])

    bound_ns, distance_ns = (
        1e9 * cost
        for cost in fitted(
            [c.module_seconds("nearest_object") for c in counted],
            "pairs",
            "exact distances evaluated",
        )
    )
    costs = [
        ("bound of a pair by circles", f"{bound_ns:.2f}"),
        ("exact distance of a pair", f"{distance_ns:.0f}"),
    ]
    for kernel, kind, what in (
        ("road_edges._find_cells", "corners", "find the cell of a corner"),
        ("road_edges._list_cells", "cells", "list the segments of a cell"),
    ):
        if all(kernel in c.kernels for c in counted):
            (cost,) = fitted([c.kernels[kernel] for c in counted], kind)
            costs.append((what, f"{1e9 * cost:.1f}"))
    # Segments a corner hardly differ between scenes, so the corner's sign is in their cost.
    search = "road_edges._signed_distances"
    (segment_ns,) = (
        1e9 * cost
        for cost in fitted(
            [c.kernels.get(search, c.module_seconds("road_edges")) for c in counted],
            "segments evaluated",
        )
    )
    what = "exact distance of a corner to a segment, with its share of the sign"
    costs.append((what, f"{segment_ns:.2f}"))

    bandwidth = read_bandwidth()
    read_ms = (
        1e3 * (median["bytes of the scenario record"] + median["bytes of the rollouts"]) / bandwidth
    )
    pairs_ms = 1e-6 * median["exact distances unavoidable"] * distance_ns
    corners_ms = 1e-6 * median["corners"] * segment_ns
    bound_ms = read_ms + pairs_ms + corners_ms
    score_ms = 1e3 * statistics.median(c.score for c in counted)
    bound = [
        ("read scenario and rollouts once", read_ms, f"at {bandwidth / 1e9:.1f} GB/s, one core"),
        ("exact distances of pairs", pairs_ms, "those that no bound by circles can exclude"),
        ("exact distances of corners", corners_ms, "one segment a corner, for whoever knew which"),
        ("**bound**", bound_ms, "sum"),
        ("score_scenario, 1 thread", score_ms, f"{score_ms / bound_ms:.1f} x the bound"),
    ]
    return {
        "counts": rows,
        "costs": costs,
        "bound": [(name, f"{ms:.2f}", how) for name, ms, how in bound],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", help="scenes to count; default the shared real ones")
    parser.add_argument("--every", type=int, default=6, help="count every Nth scene")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="wosac-count-") as temporary:
        dataset = scenes.find_dataset(arguments.scenarios, Path(temporary))
        sizes = {name: len(payload) for name, payload in scenes.records(dataset)}
        counted = [
            count_scene(scenario, sizes[scenario.scenario_id])
            for scenario in islice(scenes.scorable(dataset), 0, None, arguments.every)
        ]
    result = {
        "machine": machine.as_dict(),
        "data": f"{len(counted)} {dataset.text}, 32 {scenes.POLICY} rollouts each",
        **analyse(counted),
    }
    print(tables.work(result))
    if arguments.json:
        tables.write_json(arguments.json, result)


if __name__ == "__main__":
    main()
