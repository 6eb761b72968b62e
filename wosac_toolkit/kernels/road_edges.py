"""Signed distance to the road edge (`map_metric_features`): negative on the road, positive off it.

Of the four bottom corners of a box the one farthest off the road counts. A corner belongs to the
nearest segment of all road edges, in 3-D with heights stretched by three, so that an agent below an
overpass does not take the edge above; the distance itself is planar. Its sign says on which side of
the segment the corner lies, and past the end of a segment the convexity of the joint decides.

The official code evaluates every corner against every segment. Here space is cut into cells, and
for each cell that corners fall into, once, the few segments are listed that can be the nearest to
any point of it; the exact float32 arithmetic then runs over that list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wosac_toolkit.kernels.float32 import EXTREMELY_LARGE_DISTANCE, ONE, ZERO
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.scenario import BoolArray, Float32Array, Int64Array

Int32Array = npt.NDArray[np.int32]

_Z_STRETCH = np.float32(3.0)
_CYCLIC_TOLERANCE_M2 = np.float32(1.0)
# Cells of 2 x 2 x 1 m: smaller ones are listed too often, larger ones list too many segments.
_CELL_M, _CELL_HEIGHT_M = 2.0, 1.0
_CELL_REACH = math.sqrt((_CELL_M / 2) ** 2 * 2 + (_CELL_HEIGHT_M / 2 * 3.0) ** 2)
# Beyond, cell indices could overflow; such corners are compared with every segment.
_FAR = np.float32(1e6)
# More than float32 rounding can change the distance of a corner to a segment in its cell's list.
_SLACK_M, _SLACK_RATIO = 1e-2, 1e-5
_CHUNK = 16


@dataclass(frozen=True, eq=False, slots=True)
class RoadEdges:
    """The n segments of all road edges of a scene, in the record's order.

    Attributes:
        start: float32 [n, 3].
        delta: float32 [n, 3], end minus start.
        square: float32 [n], squared planar length.
        prior, following: int32 [n], the segment that decides the sign before the start and after
            the end; the segment itself where there is none.
        convex_before, convex_after: bool [n], whether the joint there turns left.
        polyline_offsets: int64 [P + 1], the segments of each polyline.
    """

    start: Float32Array
    delta: Float32Array
    square: Float32Array
    prior: Int32Array
    following: Int32Array
    convex_before: BoolArray
    convex_after: BoolArray
    polyline_offsets: Int64Array


def road_edge_segments(polylines: Sequence[Float32Array], planar: bool) -> RoadEdges:
    """Cut polylines into segments.

    Args:
        polylines: float32 [n_i, 3] each; those of fewer than two points are left out.
        planar: the rules of 2023, see below.

    A polyline whose ends lie within a metre is cyclic: its first segment continues the last. Since
    2024 the official code pads all polylines to the longest one and looks for the last segment in
    the padding, so that only polylines as long as the longest are in fact treated as cyclic.
    In 2023 all were, and heights did not count.
    """
    polylines = [p for p in polylines if len(p) >= 2]
    counts = np.array([len(p) - 1 for p in polylines], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    n = int(offsets[-1])
    start = np.concatenate([p[:-1] for p in polylines]).astype(np.float32, copy=False)
    delta = np.concatenate([p[1:] - p[:-1] for p in polylines]).astype(np.float32, copy=False)
    prior = np.arange(-1, n - 1, dtype=np.int32)
    following = np.arange(1, n + 1, dtype=np.int32)
    firsts, lasts = offsets[:-1], offsets[1:] - 1
    prior[firsts], following[lasts] = firsts, lasts
    for i, points in enumerate(polylines):
        gap = (points[0] - points[-1])[: 2 if planar else 3]
        cyclic = np.sum(gap * gap, dtype=np.float32) < _CYCLIC_TOLERANCE_M2
        if cyclic and (planar or counts[i] == counts.max()):
            prior[firsts[i]], following[lasts[i]] = lasts[i], firsts[i]
    dx, dy = delta[:, 0], delta[:, 1]
    return RoadEdges(
        start=start,
        delta=delta,
        square=dx * dx + dy * dy,
        prior=prior,
        following=following,
        convex_before=dx[prior] * dy - dy[prior] * dx > 0,
        convex_after=dx * dy[following] - dy * dx[following] > 0,
        polyline_offsets=offsets,
    )


@inlined
def _projection(
    x: float, y: float, i: int, start: Float32Array, delta: Float32Array, square: Float32Array
) -> float:
    """Where (x, y) projects on segment `i`: 0 at its start, 1 at its end; 0 if it has no length."""
    if square[i] == ZERO:
        return ZERO
    dot = (x - start[i, 0]) * delta[i, 0] + (y - start[i, 1]) * delta[i, 1]
    return dot / square[i]


@inlined
def _side(x: float, y: float, i: int, start: Float32Array, delta: Float32Array) -> float:
    """-1 to the left of segment `i`, 1 to the right, 0 on its line."""
    return np.sign((x - start[i, 0]) * delta[i, 1] - (y - start[i, 1]) * delta[i, 0])


@kernel
def _sign(
    x: float,
    y: float,
    i: int,
    t: float,
    before: bool,
    after: bool,
    start: Float32Array,
    delta: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
) -> float:
    """Sign of the distance of (x, y) to segment `i`, on which it projects at `t`."""
    side = _side(x, y, i, start, delta)
    if before:
        other = _side(x, y, prior[i], start, delta)
        return max(side, other) if convex_before[i] else min(side, other)
    if after:
        other = _side(x, y, following[i], start, delta)
        return max(side, other) if convex_after[i] else min(side, other)
    return side


@kernel
def _signed_distance_3d(
    x: float,
    y: float,
    z: float,
    candidates: Int32Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
) -> float:
    """Signed planar distance of a point to the nearest of `candidates`, ascending segments."""
    best = EXTREMELY_LARGE_DISTANCE
    best_square = np.float32(np.inf)
    best_t = ZERO
    nearest = candidates[0]
    for c in range(len(candidates)):
        i = candidates[c]
        t = _projection(x, y, i, start, delta, square)
        clipped = min(max(t, ZERO), ONE)
        ex = (x - start[i, 0]) - delta[i, 0] * clipped
        ey = (y - start[i, 1]) - delta[i, 1] * clipped
        ez = ((z - start[i, 2]) - delta[i, 2] * clipped) * _Z_STRETCH
        distance_square = (ex * ex + ey * ey) + ez * ez
        # Distances, not squares, are compared: two squares can have the same root, and then the
        # first segment wins. A larger square has no smaller root, so most roots can be spared.
        if distance_square < best_square:
            distance = np.sqrt(distance_square)
            if distance < best:
                best, best_square, best_t, nearest = distance, distance_square, t, i
    clipped = min(max(best_t, ZERO), ONE)
    ex = (x - start[nearest, 0]) - delta[nearest, 0] * clipped
    ey = (y - start[nearest, 1]) - delta[nearest, 1] * clipped
    sign = _sign(
        x, y, nearest, best_t, best_t < ZERO, best_t > ONE,
        start, delta, prior, following, convex_before, convex_after,
    )  # fmt: skip
    return sign * np.sqrt(ex * ex + ey * ey)


@kernel
def _list_candidates(
    cell_x: float,
    cell_y: float,
    cell_z: float,
    chunk_low: Float32Array,
    chunk_high: Float32Array,
    chunk_bound: Float32Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    distances: Float32Array,
    out: Int32Array,
) -> int:
    """Write to `out`, ascending, the segments that can be nearest to a point of a cell; their count.

    If the nearest segment to the centre is at distance d, none farther than d plus twice the
    cell's half diagonal from the centre can be the nearest to any of its points.

    Args:
        cell_x, cell_y, cell_z: the centre.
        chunk_low, chunk_high: float32 [3, C], bounding boxes of each 16 consecutive segments.
        chunk_bound: float32 [C], scratch.
        start, delta, square: of the n segments.
        distances: float32 [n], scratch.
        out: int32 [n].
    """
    n_chunks = chunk_low.shape[1]
    x, y, z = np.float32(cell_x), np.float32(cell_y), np.float32(cell_z)
    for c in range(n_chunks):
        dx = max(chunk_low[0, c] - x, ZERO, x - chunk_high[0, c])
        dy = max(chunk_low[1, c] - y, ZERO, y - chunk_high[1, c])
        dz = max(chunk_low[2, c] - z, ZERO, z - chunk_high[2, c]) * _Z_STRETCH
        chunk_bound[c] = np.sqrt(dx * dx + dy * dy + dz * dz)
    first = np.argmin(chunk_bound)
    limit = np.float32(np.inf)
    for k in range(n_chunks + 1):
        c = first if k == 0 else k - 1
        if (k > 0 and c == first) or chunk_bound[c] > limit:
            continue
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(square))):
            t = min(max(_projection(x, y, i, start, delta, square), ZERO), ONE)
            ex = (x - start[i, 0]) - delta[i, 0] * t
            ey = (y - start[i, 1]) - delta[i, 1] * t
            ez = ((z - start[i, 2]) - delta[i, 2] * t) * _Z_STRETCH
            distance = np.sqrt(ex * ex + ey * ey + ez * ez)
            distances[i] = distance
            reach = distance * np.float32(1 + _SLACK_RATIO) + np.float32(
                2 * _CELL_REACH + _SLACK_M
            )
            limit = min(limit, reach)
    count = 0
    for c in range(n_chunks):
        # A chunk beyond the final limit may have been passed over, and its distances are stale.
        if chunk_bound[c] > limit:
            continue
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, len(square))):
            if distances[i] <= limit:
                out[count] = i
                count += 1
    return count


@kernel
def road_edge_distances(
    corners: Float32Array,
    z: Float32Array,
    valid: BoolArray,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
    distances: Float32Array,
) -> None:
    """Fill `distances` of the evaluated agents, the rules since 2024.

    Args:
        corners: float32 [R, T, E, 8], four x then four y, of the full boxes.
        z: float32 [R, T, E], height of the bottom.
        valid: bool [T, E].
        start, delta, square, prior, following, convex_before, convex_after: see `RoadEdges`.
        distances: float32 [R, E, T], written; -1e10 where invalid.
    """
    n_rollouts, n_steps, n_agents = z.shape
    n_segments = len(square)
    n_chunks = (n_segments + _CHUNK - 1) // _CHUNK
    chunk_low = np.empty((3, n_chunks), np.float32)
    chunk_high = np.empty((3, n_chunks), np.float32)
    for c in range(n_chunks):
        for k in range(3):
            low, high = np.float32(np.inf), np.float32(-np.inf)
            for i in range(c * _CHUNK, min((c + 1) * _CHUNK, n_segments)):
                begin = start[i, k]
                end = begin + delta[i, k]
                low, high = min(low, begin, end), max(high, begin, end)
            chunk_low[k, c], chunk_high[k, c] = low, high
    chunk_bound = np.empty(n_chunks, np.float32)
    segment_distance = np.empty(n_segments, np.float32)
    everything = np.arange(n_segments).astype(np.int32)

    # An open hash table of the cells met so far, and their lists one after the other.
    n_slots = 1 << 12
    used = 0
    slot_cell = np.empty((n_slots, 3), np.int32)
    slot_begin = np.full(n_slots, -1, np.int64)
    slot_end = np.empty(n_slots, np.int64)
    lists = np.empty(1 << 16, np.int32)
    listed = 0
    found = np.empty(n_segments, np.int32)

    for a in range(n_agents):
        for r in range(n_rollouts):
            for t in range(n_steps):
                if not valid[t, a]:
                    distances[r, a, t] = -EXTREMELY_LARGE_DISTANCE
                    continue
                worst = -np.float32(np.inf)
                height = z[r, t, a]
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    if abs(x) < _FAR and abs(y) < _FAR and abs(height) < _FAR:
                        cell_x = np.int32(math.floor(x / np.float32(_CELL_M)))
                        cell_y = np.int32(math.floor(y / np.float32(_CELL_M)))
                        cell_z = np.int32(math.floor(height / np.float32(_CELL_HEIGHT_M)))
                        slot = _hash(cell_x, cell_y, cell_z) & (n_slots - 1)
                        while slot_begin[slot] >= 0 and (
                            slot_cell[slot, 0] != cell_x
                            or slot_cell[slot, 1] != cell_y
                            or slot_cell[slot, 2] != cell_z
                        ):
                            slot = (slot + 1) & (n_slots - 1)
                        if slot_begin[slot] < 0:
                            count = _list_candidates(
                                (cell_x + 0.5) * _CELL_M,
                                (cell_y + 0.5) * _CELL_M,
                                (cell_z + 0.5) * _CELL_HEIGHT_M,
                                chunk_low, chunk_high, chunk_bound,
                                start, delta, square, segment_distance, found,
                            )  # fmt: skip
                            if listed + count > len(lists):
                                larger = np.empty(2 * (listed + count), np.int32)
                                larger[:listed] = lists[:listed]
                                lists = larger
                            lists[listed : listed + count] = found[:count]
                            slot_cell[slot, 0] = cell_x
                            slot_cell[slot, 1] = cell_y
                            slot_cell[slot, 2] = cell_z
                            slot_begin[slot] = listed
                            slot_end[slot] = listed + count
                            listed += count
                            used += 1
                        candidates = lists[slot_begin[slot] : slot_end[slot]]
                    else:
                        candidates = everything
                    worst = max(
                        worst,
                        _signed_distance_3d(
                            x, y, height, candidates,
                            start, delta, square, prior, following, convex_before, convex_after,
                        ),
                    )  # fmt: skip
                    if 2 * used > n_slots:
                        old_cell, old_begin, old_end = slot_cell, slot_begin, slot_end
                        n_slots *= 2
                        slot_cell = np.empty((n_slots, 3), np.int32)
                        slot_begin = np.full(n_slots, -1, np.int64)
                        slot_end = np.empty(n_slots, np.int64)
                        for s in range(len(old_begin)):
                            if old_begin[s] >= 0:
                                new = _hash(old_cell[s, 0], old_cell[s, 1], old_cell[s, 2]) & (
                                    n_slots - 1
                                )
                                while slot_begin[new] >= 0:
                                    new = (new + 1) & (n_slots - 1)
                                slot_cell[new] = old_cell[s]
                                slot_begin[new] = old_begin[s]
                                slot_end[new] = old_end[s]
                distances[r, a, t] = worst


@inlined
def _hash(x: int, y: int, z: int) -> int:
    h = (np.int64(x) * 73856093) ^ (np.int64(y) * 19349663) ^ (np.int64(z) * 83492791)
    return h ^ (h >> 15)


@kernel
def planar_road_edge_distances(
    corners: Float32Array,
    valid: BoolArray,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
    polyline_offsets: Int64Array,
    distances: Float32Array,
) -> None:
    """Fill `distances` of the evaluated agents, the rules of 2023: heights do not count.

    Each polyline gives one signed distance, and the smallest absolute value of them is taken. A
    corner exactly on the line of a segment, but past its end, has sign 0 and so distance 0 from
    that polyline however far it is, and beats all others: so it was, and therefore every polyline
    is evaluated here. Arguments as `road_edge_distances`.
    """
    n_rollouts, n_steps, n_agents = corners.shape[:3]
    n_segments = len(square)
    squares = np.empty(n_segments, np.float32)
    for r in range(n_rollouts):
        for t in range(n_steps):
            for a in range(n_agents):
                if not valid[t, a]:
                    distances[r, a, t] = -EXTREMELY_LARGE_DISTANCE
                    continue
                worst = -np.float32(np.inf)
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    for i in range(n_segments):
                        px, py = x - start[i, 0], y - start[i, 1]
                        dot = px * delta[i, 0] + py * delta[i, 1]
                        s = ZERO if square[i] == ZERO else dot / square[i]
                        s = min(max(s, ZERO), ONE)
                        ex, ey = px - delta[i, 0] * s, py - delta[i, 1] * s
                        squares[i] = ex * ex + ey * ey
                    result = np.float32(np.inf)
                    for p in range(len(polyline_offsets) - 1):
                        best, best_square = np.float32(np.inf), np.float32(np.inf)
                        nearest = polyline_offsets[p]
                        for i in range(polyline_offsets[p], polyline_offsets[p + 1]):
                            if squares[i] < best_square:
                                distance = np.sqrt(squares[i])
                                if distance < best:
                                    best, best_square, nearest = distance, squares[i], i
                        s = _projection(x, y, nearest, start, delta, square)
                        sign = _sign(
                            x, y, nearest, s, s < ZERO, s >= ONE,
                            start, delta, prior, following, convex_before, convex_after,
                        )  # fmt: skip
                        if abs(sign * best) < abs(result):
                            result = sign * best
                    worst = max(worst, result)
                distances[r, a, t] = worst
