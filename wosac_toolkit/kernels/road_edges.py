"""Signed distance to the road edge (`map_metric_features`): negative on the road, positive off it.

Of the four bottom corners of a box the one farthest off the road counts. A corner belongs to the
nearest segment of all road edges, in 3-D with heights stretched by three, so that an agent below an
overpass does not take the edge above; the distance itself is planar. Its sign says on which side of
the segment the corner lies, and past the end of a segment the convexity of the joint decides.

The official code evaluates every corner against every segment. Here space is cut into cells, and
for each cell that corners fall into, once, the few segments are listed that can be the nearest to
any point of it, by their distance from the cell's centre. The exact float32 arithmetic then runs
over that list, 16 segments at a time, until the rest is too far.
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
# Smaller cells are listed too often, larger ones list too many segments.
_CELL_M, _CELL_HEIGHT_M = 1.0, 0.5
_CELL_REACH = math.sqrt((_CELL_M / 2) ** 2 * 2 + (_CELL_HEIGHT_M / 2 * 3.0) ** 2)
# Beyond, cell indices could overflow; such corners are compared with every segment.
_FAR = np.float32(1e6)
# More than float32 rounding can change the distance of a point to a segment.
_SLACK_M, _SLACK_RATIO = np.float32(1e-2), np.float32(1 + 1e-5)
_CELL_LIMIT_M = np.float32(2 * _CELL_REACH) + _SLACK_M
# Squares whose roots round to the same float32 are at most this many float32 numbers apart.
_SAME_ROOT_ULPS = np.int32(8)
_INFINITY = np.float32(np.inf)
_LARGEST_BITS = np.int32(np.iinfo(np.int32).max)
_CHUNK = 16  # segments whose bounding box is tested as one
_LANES = 16  # listed segments computed side by side; shorter loops are unrolled, not vectorised


@dataclass(frozen=True, eq=False, slots=True)
class RoadEdges:
    """The n segments of all road edges of a scene, in the record's order.

    Attributes:
        start: float32 [3, n].
        delta: float32 [3, n], end minus start.
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
    start = np.ascontiguousarray(np.concatenate([p[:-1] for p in polylines]).T)
    delta = np.ascontiguousarray(np.concatenate([p[1:] - p[:-1] for p in polylines]).T)
    prior = np.arange(-1, n - 1, dtype=np.int32)
    following = np.arange(1, n + 1, dtype=np.int32)
    firsts, lasts = offsets[:-1], offsets[1:] - 1
    prior[firsts], following[lasts] = firsts, lasts
    for i, points in enumerate(polylines):
        gap = (points[0] - points[-1])[: 2 if planar else 3]
        cyclic = np.sum(gap * gap, dtype=np.float32) < _CYCLIC_TOLERANCE_M2
        if cyclic and (planar or counts[i] == counts.max()):
            prior[firsts[i]], following[lasts[i]] = lasts[i], firsts[i]
    dx, dy = delta[:2]
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
    return ((x - start[0, i]) * delta[0, i] + (y - start[1, i]) * delta[1, i]) / square[i]


@inlined
def _side(x: float, y: float, i: int, start: Float32Array, delta: Float32Array) -> float:
    """-1 to the left of segment `i`, 1 to the right, 0 on its line."""
    return np.sign((x - start[0, i]) * delta[1, i] - (y - start[1, i]) * delta[0, i])


@inlined
def _sign(
    x: float,
    y: float,
    i: int,
    before: bool,
    after: bool,
    start: Float32Array,
    delta: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
) -> float:
    """Sign of the distance of (x, y) to segment `i`, if it projects before, after or within it."""
    side = _side(x, y, i, start, delta)
    if before:
        other = _side(x, y, prior[i], start, delta)
        side = max(side, other) if convex_before[i] else min(side, other)
    elif after:
        other = _side(x, y, following[i], start, delta)
        side = max(side, other) if convex_after[i] else min(side, other)
    return side


@kernel
def _squared_distances(
    x: float,
    y: float,
    z: float,
    first: int,
    last: int,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    out: Float32Array,
) -> None:
    """Write to `out` the squared 3-D distances, heights stretched, of segments `first` to `last`.

    A loop without branches on contiguous arrays, so that it is compiled to vector instructions.
    """
    for i in range(first, last):
        px, py, pz = x - start[0, i], y - start[1, i], z - start[2, i]
        t = (px * delta[0, i] + py * delta[1, i]) / square[i]
        t = ZERO if square[i] == ZERO else min(max(t, ZERO), ONE)
        ex, ey = px - delta[0, i] * t, py - delta[1, i] * t
        ez = (pz - delta[2, i] * t) * _Z_STRETCH
        out[i] = (ex * ex + ey * ey) + ez * ez


@kernel
def _list_cell(
    x: float,
    y: float,
    z: float,
    chunk_low: Float32Array,
    chunk_high: Float32Array,
    chunk_bound: Float32Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    distances: Float32Array,
    out: Int32Array,
) -> int:
    """List the segments that can be the nearest to a point of a cell, nearest to its centre first.

    If the nearest segment to the centre is at distance d, none farther than d plus twice the
    cell's half diagonal from the centre can be the nearest to any of its points.

    Args:
        x, y, z: the centre, float32.
        chunk_low, chunk_high: float32 [3, C], bounding boxes of each 16 consecutive segments.
        chunk_bound: float32 [C], scratch.
        start, delta, square: of the n segments.
        distances: float32 [n], written for the listed segments: distance from the centre.
        out: int32 [n], written.

    Returns:
        How many are listed.
    """
    n_segments, n_chunks = len(square), chunk_low.shape[1]
    for c in range(n_chunks):
        dx = max(chunk_low[0, c] - x, ZERO, x - chunk_high[0, c])
        dy = max(chunk_low[1, c] - y, ZERO, y - chunk_high[1, c])
        dz = max(chunk_low[2, c] - z, ZERO, z - chunk_high[2, c]) * _Z_STRETCH
        chunk_bound[c] = np.sqrt(dx * dx + dy * dy + dz * dz)
    nearest = np.argmin(chunk_bound)
    limit = _INFINITY
    for k in range(-1, n_chunks):
        c = nearest if k < 0 else k
        if k == nearest or chunk_bound[c] > limit:
            continue
        first, last = c * _CHUNK, min((c + 1) * _CHUNK, n_segments)
        _squared_distances(x, y, z, first, last, start, delta, square, distances)
        smallest = _INFINITY
        for i in range(first, last):
            smallest = min(smallest, distances[i])
        limit = min(limit, np.sqrt(smallest) * _SLACK_RATIO + _CELL_LIMIT_M)
    count = 0
    for c in range(n_chunks):
        # A chunk beyond the final limit may have been passed over, and its distances are stale.
        if chunk_bound[c] > limit:
            continue
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, n_segments)):
            if distances[i] <= limit * limit:
                distance = np.sqrt(distances[i])
                distances[i] = distance
                place = count
                while place > 0 and distances[out[place - 1]] > distance:
                    out[place] = out[place - 1]
                    place -= 1
                out[place] = i
                count += 1
    return count


@inlined
def _hash(x: int, y: int, z: int) -> int:
    h = (np.int64(x) * 73856093) ^ (np.int64(y) * 19349663) ^ (np.int64(z) * 83492791)
    return h ^ (h >> 15)


@inlined
def _find_slot(x: int, y: int, z: int, slot_cell: Int32Array, slot_begin: Int64Array) -> int:
    """The slot of a cell in the open hash table, or the free slot where it belongs."""
    mask = len(slot_begin) - 1
    slot = _hash(x, y, z) & mask
    while slot_begin[slot] >= 0 and (
        slot_cell[slot, 0] != x or slot_cell[slot, 1] != y or slot_cell[slot, 2] != z
    ):
        slot = (slot + 1) & mask
    return slot


@kernel
def road_edge_distances(
    corners: Float32Array,
    z: Float32Array,
    half_height: Float32Array,
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
    """Fill `distances` of the E evaluated agents, the rules since 2024.

    Args:
        corners: float32 [R, T, E, 8], four x then four y, of the full boxes.
        z: float32 [R, E, H + T], heights of the centres; the H steps of history are not used.
        half_height: float32 [N], of the boxes.
        valid: bool [T, N].
        start, delta, square, prior, following, convex_before, convex_after: see `RoadEdges`.
        distances: float32 [R, E, T], written; -1e10 where invalid.
    """
    n_rollouts, n_agents, n_steps = distances.shape
    n_history = z.shape[2] - n_steps
    n_segments = len(square)
    n_chunks = (n_segments + _CHUNK - 1) // _CHUNK
    chunk_low, chunk_high = np.empty((2, 3, n_chunks), np.float32)
    for k in range(3):
        for c in range(n_chunks):
            low, high = _INFINITY, -_INFINITY
            for i in range(c * _CHUNK, min((c + 1) * _CHUNK, n_segments)):
                end = start[k, i] + delta[k, i]
                low, high = min(low, start[k, i], end), max(high, start[k, i], end)
            chunk_low[k, c], chunk_high[k, c] = low, high
    chunk_bound = np.empty(n_chunks, np.float32)
    segment_distance = np.empty(n_segments, np.float32)
    found = np.empty(n_segments, np.int32)

    # A hash table of the cells met so far; each owns some of the blocks of listed segments.
    slot_cell = np.empty((1 << 11, 3), np.int32)
    slot_begin = np.full(1 << 11, -1, np.int64)
    slot_end = np.empty(1 << 11, np.int64)
    n_cells = 0
    block = np.empty((1 << 12, 7, _LANES), np.float32)
    block_segment = np.empty((1 << 12, _LANES), np.int32)
    block_bound = np.empty(1 << 12, np.float32)
    n_blocks = 0
    squares = np.empty(_LANES, np.float32)

    for a in range(n_agents):
        for r in range(n_rollouts):
            for t in range(n_steps):
                if not valid[t, a]:
                    distances[r, a, t] = -EXTREMELY_LARGE_DISTANCE
                    continue
                worst = -_INFINITY
                bottom = -half_height[a] + z[r, a, n_history + t]
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    nearest = -1
                    if abs(x) < _FAR and abs(y) < _FAR and abs(bottom) < _FAR:
                        cell_x = np.int32(math.floor(x / np.float32(_CELL_M)))
                        cell_y = np.int32(math.floor(y / np.float32(_CELL_M)))
                        cell_z = np.int32(math.floor(bottom / np.float32(_CELL_HEIGHT_M)))
                        centre_x = np.float32((cell_x + 0.5) * _CELL_M)
                        centre_y = np.float32((cell_y + 0.5) * _CELL_M)
                        centre_z = np.float32((cell_z + 0.5) * _CELL_HEIGHT_M)
                        slot = _find_slot(cell_x, cell_y, cell_z, slot_cell, slot_begin)
                        if slot_begin[slot] < 0:
                            if 2 * n_cells >= len(slot_begin):
                                slot_cell, slot_begin, slot_end = _grow_table(
                                    slot_cell, slot_begin, slot_end
                                )
                                slot = _find_slot(cell_x, cell_y, cell_z, slot_cell, slot_begin)
                            count = _list_cell(
                                centre_x, centre_y, centre_z, chunk_low, chunk_high, chunk_bound,
                                start, delta, square, segment_distance, found,
                            )  # fmt: skip
                            needed = n_blocks + (count + _LANES - 1) // _LANES
                            if needed > len(block):
                                block, block_segment, block_bound = _grow_blocks(
                                    block, block_segment, block_bound, n_blocks, 2 * needed
                                )
                            _fill_blocks(
                                found[:count], segment_distance, start, delta, square, n_blocks,
                                block, block_segment, block_bound,
                            )  # fmt: skip
                            slot_cell[slot, 0] = cell_x
                            slot_cell[slot, 1] = cell_y
                            slot_cell[slot, 2] = cell_z
                            slot_begin[slot] = n_blocks
                            slot_end[slot] = needed
                            n_blocks = needed
                            n_cells += 1
                        dx, dy, dz = x - centre_x, y - centre_y, (bottom - centre_z) * _Z_STRETCH
                        offset = np.sqrt(dx * dx + dy * dy + dz * dz) + _SLACK_M
                        nearest = _nearest_listed(
                            x, y, bottom, offset, slot_begin[slot], slot_end[slot],
                            block, block_segment, block_bound, squares,
                        )  # fmt: skip
                    else:
                        _squared_distances(
                            x, y, bottom, 0, n_segments, start, delta, square, segment_distance
                        )
                        best = _INFINITY
                        for i in range(n_segments):
                            if np.sqrt(segment_distance[i]) < best:
                                best = np.sqrt(segment_distance[i])
                                nearest = i
                    s = _projection(x, y, nearest, start, delta, square)
                    clipped = min(max(s, ZERO), ONE)
                    ex = (x - start[0, nearest]) - delta[0, nearest] * clipped
                    ey = (y - start[1, nearest]) - delta[1, nearest] * clipped
                    sign = _sign(
                        x, y, nearest, s < ZERO, s > ONE,
                        start, delta, prior, following, convex_before, convex_after,
                    )  # fmt: skip
                    worst = max(worst, sign * np.sqrt(ex * ex + ey * ey))
                distances[r, a, t] = worst


@inlined
def _nearest_listed(
    x: float,
    y: float,
    z: float,
    offset: float,
    begin: int,
    end: int,
    block: Float32Array,
    block_segment: Int32Array,
    block_bound: Float32Array,
    squares: Float32Array,
) -> int:
    """The nearest segment in blocks `begin` to `end`, and of equally near ones the first.

    Args:
        x, y, z: the point.
        offset: float32, its distance from the centre that the blocks are sorted about.
        begin, end: the blocks of the point's cell.
        block: float32 [B, 7, 16], start (3), delta (3) and squared length of 16 segments.
        block_segment: int32 [B, 16], which segments they are.
        block_bound: float32 [B], distance of the centre to the nearest of them.
        squares: float32 [16], scratch.
    """
    best = _INFINITY
    limit = _INFINITY
    nearest = -1
    for b in range(begin, end):
        if block_bound[b] - offset > best * _SLACK_RATIO:
            break
        # Positive floats are ordered as their bits are, and a minimum of integers, unlike one of
        # floats, is compiled to vector instructions.
        smallest = _LARGEST_BITS
        for k in range(_LANES):
            px, py, pz = x - block[b, 0, k], y - block[b, 1, k], z - block[b, 2, k]
            t = (px * block[b, 3, k] + py * block[b, 4, k]) / block[b, 6, k]
            t = ZERO if block[b, 6, k] == ZERO else min(max(t, ZERO), ONE)
            ex, ey = px - block[b, 3, k] * t, py - block[b, 4, k] * t
            ez = (pz - block[b, 5, k] * t) * _Z_STRETCH
            distance_square = np.float32((ex * ex + ey * ey) + ez * ez)
            squares[k] = distance_square
            smallest = min(smallest, distance_square.view(np.int32))
        limit = min(limit, np.int32(smallest + _SAME_ROOT_ULPS).view(np.float32))
        for k in range(_LANES):
            # Distances decide, not squares: two squares can have the same root, and then the
            # segment that comes first wins.
            if squares[k] <= limit:
                distance = np.sqrt(squares[k])
                i = block_segment[b, k]
                if distance < best or (distance == best and i < nearest):
                    best, nearest = distance, i
    return nearest


@kernel
def _fill_blocks(
    listed: Int32Array,
    distances: Float32Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    first: int,
    block: Float32Array,
    block_segment: Int32Array,
    block_bound: Float32Array,
) -> None:
    """Copy the listed segments to the blocks from `first` on; the last is filled up far away."""
    n_blocks = (len(listed) + _LANES - 1) // _LANES
    for j in range(n_blocks * _LANES):
        b, k = first + j // _LANES, j % _LANES
        if j < len(listed):
            i = listed[j]
            for d in range(3):
                block[b, d, k] = start[d, i]
                block[b, 3 + d, k] = delta[d, i]
            block[b, 6, k] = square[i]
            block_segment[b, k] = i
            if k == 0:
                block_bound[b] = distances[i]
        else:
            block[b, :, k] = ZERO
            block[b, 0, k] = np.float32(1e15)
            block_segment[b, k] = len(square)


@kernel
def _grow_table(
    slot_cell: Int32Array, slot_begin: Int64Array, slot_end: Int64Array
) -> tuple[Int32Array, Int64Array, Int64Array]:
    """The same hash table with twice as many slots."""
    n_slots = 2 * len(slot_begin)
    cell = np.empty((n_slots, 3), np.int32)
    begin = np.full(n_slots, -1, np.int64)
    end = np.empty(n_slots, np.int64)
    for old in range(len(slot_begin)):
        if slot_begin[old] >= 0:
            x, y, z = slot_cell[old]
            new = _find_slot(x, y, z, cell, begin)
            cell[new] = slot_cell[old]
            begin[new], end[new] = slot_begin[old], slot_end[old]
    return cell, begin, end


@kernel
def _grow_blocks(
    block: Float32Array,
    block_segment: Int32Array,
    block_bound: Float32Array,
    used: int,
    capacity: int,
) -> tuple[Float32Array, Int32Array, Float32Array]:
    """The same blocks with room for more."""
    larger = np.empty((capacity, 7, _LANES), np.float32)
    segment = np.empty((capacity, _LANES), np.int32)
    bound = np.empty(capacity, np.float32)
    larger[:used] = block[:used]
    segment[:used] = block_segment[:used]
    bound[:used] = block_bound[:used]
    return larger, segment, bound


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
    n_rollouts, n_agents, n_steps = distances.shape
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
                        px, py = x - start[0, i], y - start[1, i]
                        dot = px * delta[0, i] + py * delta[1, i]
                        s = ZERO if square[i] == ZERO else dot / square[i]
                        s = min(max(s, ZERO), ONE)
                        ex, ey = px - delta[0, i] * s, py - delta[1, i] * s
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
                            x, y, nearest, s < ZERO, s >= ONE,
                            start, delta, prior, following, convex_before, convex_after,
                        )  # fmt: skip
                        if abs(sign * best) < abs(result):
                            result = sign * best
                    worst = max(worst, result)
                distances[r, a, t] = worst
