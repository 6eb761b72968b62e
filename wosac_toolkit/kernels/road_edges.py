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
from wosac_toolkit.kernels.layout import at_step
from wosac_toolkit.scenario import BoolArray, Float32Array, Int64Array

Int32Array = npt.NDArray[np.int32]

_Z_STRETCH = np.float32(3.0)
_CYCLIC_TOLERANCE_M2 = np.float32(1.0)
# Smaller cells are listed too often, larger ones list too many segments.
_CELL_M, _CELL_HEIGHT_M = 2.5, 0.5
_CELL_REACH = math.sqrt((_CELL_M / 2) ** 2 * 2 + (_CELL_HEIGHT_M / 2 * 3.0) ** 2)
# Beyond, float32 is too coarse for cells; such corners are compared with every segment.
_FAR = np.float32(1e5)
# More than rounding to float32 can change the distance of a point, or of a cell's centre, to a
# segment within that.
_SLACK_M, _SLACK_RATIO = np.float32(5e-2), np.float32(1 + 1e-5)
_CELL_LIMIT_M = np.float32(2 * _CELL_REACH) + _SLACK_M
# Squares whose roots round to the same float32 are at most this many float32 numbers apart.
_SAME_ROOT_ULPS = np.int32(8)
_INFINITY, _NOWHERE = np.float32(np.inf), np.float32(1e15)
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
    side: float,
    before: bool,
    after: bool,
    start: Float32Array,
    delta: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
) -> float:
    """Sign of the distance of (x, y) to segment `i`, if it projects before, after or within it.

    `side` is the side of `i` on which it lies.
    """
    if before:
        other = _side(x, y, prior[i], start, delta)
        side = max(side, other) if convex_before[i] else min(side, other)
    elif after:
        other = _side(x, y, following[i], start, delta)
        side = max(side, other) if convex_after[i] else min(side, other)
    return side


@inlined
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
) -> float:
    """Write to `out` the squared 3-D distances, heights stretched, of segments `first` to `last`.

    Returns the smallest. A loop without branches on contiguous arrays is compiled to vector
    instructions; so is a minimum of integers, but not of floats, and positive floats are ordered as
    their bits are.
    """
    smallest = _LARGEST_BITS
    for i in range(first, last):
        px, py, pz = x - start[0, i], y - start[1, i], z - start[2, i]
        t = (px * delta[0, i] + py * delta[1, i]) / square[i]
        t = ZERO if square[i] == ZERO else min(max(t, ZERO), ONE)
        ex, ey = px - delta[0, i] * t, py - delta[1, i] * t
        ez = (pz - delta[2, i] * t) * _Z_STRETCH
        distance_square = np.float32((ex * ex + ey * ey) + ez * ez)
        out[i] = distance_square
        smallest = min(smallest, distance_square.view(np.int32))
    return np.int32(smallest).view(np.float32)


@kernel
def _list_cell(
    x: float,
    y: float,
    z: float,
    guess: int,
    chunk_low: Float32Array,
    chunk_high: Float32Array,
    chunk_bound: Float32Array,
    near_chunks: Int32Array,
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
        guess: a segment that may be near.
        chunk_low, chunk_high: float32 [3, C], bounding boxes of each 16 consecutive segments.
        chunk_bound: float32 [C], scratch.
        near_chunks: int32 [C], scratch.
        start, delta, square: of the n segments.
        distances: float32 [n], written for the listed segments: distance from the centre.
        out: int32 [n], written.

    Returns:
        How many are listed.
    """
    n_segments, n_chunks = len(square), chunk_low.shape[1]
    for c in range(n_chunks):
        dx = max(max(chunk_low[0, c] - x, ZERO), x - chunk_high[0, c])
        dy = max(max(chunk_low[1, c] - y, ZERO), y - chunk_high[1, c])
        dz = max(max(chunk_low[2, c] - z, ZERO), z - chunk_high[2, c]) * _Z_STRETCH
        chunk_bound[c] = dx * dx + dy * dy + dz * dz
    smallest = _squared_distances(
        x, y, z, guess, guess + 1, start, delta, square, distances
    )  # fmt: skip
    limit = _cell_limit(smallest)
    n_near = 0
    for c in range(n_chunks):
        if chunk_bound[c] <= limit:
            near_chunks[n_near] = c
            n_near += 1
    for c in near_chunks[:n_near]:
        first, last = c * _CHUNK, min((c + 1) * _CHUNK, n_segments)
        nearest = _squared_distances(x, y, z, first, last, start, delta, square, distances)
        smallest = min(smallest, nearest)
    limit = _cell_limit(smallest)
    count = 0
    for c in near_chunks[:n_near]:
        if chunk_bound[c] > limit:
            continue
        for i in range(c * _CHUNK, min((c + 1) * _CHUNK, n_segments)):
            if distances[i] <= limit:
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
def _cell_limit(smallest_square: float) -> float:
    """Squared distance from its centre beyond which no segment is nearest to a point of a cell."""
    limit = np.sqrt(smallest_square) * _SLACK_RATIO + _CELL_LIMIT_M
    return limit * limit


@kernel
def _find_cells(
    corners: Float32Array,
    z: Float32Array,
    half_height: Float32Array,
    valid: BoolArray,
    slots: Int32Array,
    cells: Int32Array,
    cell_of: Int32Array,
) -> int:
    """Number the cells that corners lie in, by an open hash table.

    Args:
        corners, z, half_height, valid: see `road_edge_distances`.
        slots: int32 [2**n], the table, filled with -1.
        cells: int32 [C, 3], written: the indices of each cell along x, y and z.
        cell_of: int32 [R, T, E, 4], written: the cell of each corner; -1 beyond all cells.

    Returns:
        How many cells there are, or -1 if `cells` has no room for them.
    """
    n_rollouts, n_steps, n_agents = cell_of.shape[:3]
    n_history = z.shape[2] - n_steps
    mask = len(slots) - 1
    n_cells = 0
    for a in range(n_agents):
        for r in range(n_rollouts):
            for t in range(n_steps):
                bottom = -at_step(half_height, r, t)[a] + z[r, a, n_history + t]
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    cell_of[r, t, a, k] = -1
                    if not (valid[t, a] and abs(x) < _FAR and abs(y) < _FAR and abs(bottom) < _FAR):
                        continue
                    i = np.int64(math.floor(np.float64(x) / _CELL_M))
                    j = np.int64(math.floor(np.float64(y) / _CELL_M))
                    h = np.int64(math.floor(np.float64(bottom) / _CELL_HEIGHT_M))
                    slot = (i * 73856093) ^ (j * 19349663) ^ (h * 83492791)
                    slot = (slot ^ (slot >> 15)) & mask
                    cell = slots[slot]
                    while cell >= 0 and not (
                        cells[cell, 0] == i and cells[cell, 1] == j and cells[cell, 2] == h
                    ):
                        slot = (slot + 1) & mask
                        cell = slots[slot]
                    if cell < 0:
                        if n_cells == len(cells):
                            return -1
                        cell = n_cells
                        slots[slot] = cell
                        cells[cell, 0], cells[cell, 1], cells[cell, 2] = i, j, h
                        n_cells += 1
                    cell_of[r, t, a, k] = cell
    return n_cells


@kernel
def _list_cells(
    cells: Int32Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    centre: Float32Array,
    cell_blocks: Int64Array,
) -> tuple[Float32Array, Int32Array, Float32Array]:
    """List the segments of all cells, in blocks of `_LANES`.

    Args:
        cells: int32 [C, 3].
        start, delta, square: see `RoadEdges`.
        centre: float32 [C, 3], written.
        cell_blocks: int64 [C + 1], written: the blocks of each cell.

    Returns:
        For B blocks: float32 [B, 7, _LANES], start (3), delta (3) and squared length of each
        segment; int32 [B, _LANES], which segments they are; float32 [B], the distance of the cell's
        centre to the nearest of them.
    """
    n_segments = len(square)
    n_chunks = (n_segments + _CHUNK - 1) // _CHUNK
    chunk_low, chunk_high = np.empty((2, 3, n_chunks), np.float32)
    for d in range(3):
        for c in range(n_chunks):
            low, high = _INFINITY, -_INFINITY
            for i in range(c * _CHUNK, min((c + 1) * _CHUNK, n_segments)):
                end = start[d, i] + delta[d, i]
                low, high = min(low, start[d, i], end), max(high, start[d, i], end)
            chunk_low[d, c], chunk_high[d, c] = low, high
    chunk_bound = np.empty(n_chunks, np.float32)
    distances = np.empty(n_segments, np.float32)
    near_chunks = np.empty(n_chunks, np.int32)
    listed = np.zeros(n_segments, np.int32)

    block = np.empty((3 * len(cells), 7, _LANES), np.float32)
    block_segment = np.empty((3 * len(cells), _LANES), np.int32)
    block_bound = np.empty(3 * len(cells), np.float32)
    b = 0
    cell_blocks[0] = 0
    for c in range(len(cells)):
        x = np.float32((cells[c, 0] + 0.5) * _CELL_M)
        y = np.float32((cells[c, 1] + 0.5) * _CELL_M)
        z = np.float32((cells[c, 2] + 0.5) * _CELL_HEIGHT_M)
        centre[c, 0], centre[c, 1], centre[c, 2] = x, y, z
        # Cells are numbered as agents go through them, so the last cell's nearest is a good guess.
        count = _list_cell(
            x, y, z, listed[0], chunk_low, chunk_high, chunk_bound, near_chunks,
            start, delta, square, distances, listed,
        )  # fmt: skip
        end = b + (count + _LANES - 1) // _LANES
        if end > len(block):
            block = _grown(block, 2 * end)
            block_segment = _grown(block_segment, 2 * end)
            block_bound = _grown(block_bound, 2 * end)
        for j in range((end - b) * _LANES):
            into, lane = b + j // _LANES, j % _LANES
            if j < count:
                i = listed[j]
                for d in range(3):
                    block[into, d, lane] = start[d, i]
                    block[into, 3 + d, lane] = delta[d, i]
                block[into, 6, lane] = square[i]
                block_segment[into, lane] = i
                if lane == 0:
                    block_bound[into] = distances[i]
            else:  # fill the last block up with a point far away
                block[into, :, lane] = ZERO
                block[into, 0, lane] = _NOWHERE
                block_segment[into, lane] = n_segments
        b = end
        cell_blocks[c + 1] = b
    return block, block_segment, block_bound


@kernel
def _grown(array: Float32Array, length: int) -> Float32Array:
    """The same array, longer."""
    larger = np.empty((length, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


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
    """Where the nearest segment stands in blocks `begin` to `end`; of equally near ones the first.

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
    place = -1
    for b in range(begin, end):
        if block_bound[b] - offset > best * _SLACK_RATIO:
            break
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
                    best, nearest, place = distance, i, b * _LANES + k
    return place


@inlined
def _stands(corners: Float32Array, z: Float32Array, r: int, t: int, a: int, s: int) -> bool:
    """Whether an agent is exactly where it was a step ago."""
    same = z[r, a, s] == z[r, a, s - 1]
    for k in range(8):
        same &= corners[r, t, a, k] == corners[r, t - 1, a, k]
    return same


@kernel
def _signed_distances(
    corners: Float32Array,
    z: Float32Array,
    half_height: Float32Array,
    valid: BoolArray,
    cell_of: Int32Array,
    centre: Float32Array,
    cell_blocks: Int64Array,
    block: Float32Array,
    block_segment: Int32Array,
    block_bound: Float32Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
    distances: Float32Array,
) -> None:
    """Fill `distances`: for each agent the largest signed distance of its corners."""
    n_rollouts, n_agents, n_steps = distances.shape
    n_history = z.shape[2] - n_steps
    n_segments = len(square)
    squares = np.empty(_LANES, np.float32)
    all_squares = np.empty(n_segments, np.float32)
    for r in range(n_rollouts):
        for a in range(n_agents):
            for t in range(n_steps):
                if not valid[t, a]:
                    distances[r, a, t] = -EXTREMELY_LARGE_DISTANCE
                    continue
                if (
                    t > 0
                    and valid[t - 1, a]
                    and at_step(half_height, r, t)[a] == at_step(half_height, r, t - 1)[a]
                    and _stands(corners, z, r, t, a, n_history + t)
                ):
                    distances[r, a, t] = distances[r, a, t - 1]
                    continue
                worst = -_INFINITY
                bottom = -at_step(half_height, r, t)[a] + z[r, a, n_history + t]
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    c = cell_of[r, t, a, k]
                    if c >= 0:
                        ox, oy = x - centre[c, 0], y - centre[c, 1]
                        oz = (bottom - centre[c, 2]) * _Z_STRETCH
                        offset = np.sqrt(ox * ox + oy * oy + oz * oz) + _SLACK_M
                        place = _nearest_listed(
                            x, y, bottom, offset, cell_blocks[c], cell_blocks[c + 1],
                            block, block_segment, block_bound, squares,
                        )  # fmt: skip
                        b, lane = place // _LANES, place % _LANES
                        nearest, length = block_segment[b, lane], block[b, 6, lane]
                        px, py = x - block[b, 0, lane], y - block[b, 1, lane]
                        dx, dy = block[b, 3, lane], block[b, 4, lane]
                    else:
                        _squared_distances(
                            x, y, bottom, 0, n_segments, start, delta, square, all_squares
                        )
                        nearest = np.int32(np.argmin(np.sqrt(all_squares)))
                        length = square[nearest]
                        px, py = x - start[0, nearest], y - start[1, nearest]
                        dx, dy = delta[0, nearest], delta[1, nearest]
                    t_on = ZERO if length == ZERO else (px * dx + py * dy) / length
                    clipped = min(max(t_on, ZERO), ONE)
                    ex, ey = px - dx * clipped, py - dy * clipped
                    sign = _sign(
                        x, y, nearest, np.sign(px * dy - py * dx), t_on < ZERO, t_on > ONE,
                        start, delta, prior, following, convex_before, convex_after,
                    )  # fmt: skip
                    worst = max(worst, sign * np.sqrt(ex * ex + ey * ey))
                distances[r, a, t] = worst


def road_edge_distances(
    corners: Float32Array,
    z: Float32Array,
    half_height: Float32Array,
    valid: BoolArray,
    edges: RoadEdges,
    distances: Float32Array,
) -> None:
    """Fill `distances` of the E evaluated agents, the rules since 2024.

    Args:
        corners: float32 [R, T, E, 8], four x then four y, of the full boxes.
        z: float32 [R, E, H + T], heights of the centres; the H steps of history are not used.
        half_height: float32 [N], or [R, T, N] where it changes, of the boxes.
        valid: bool [T, N].
        edges: the road edges.
        distances: float32 [R, E, T], written; -1e10 where invalid.
    """
    cell_of = np.empty((*corners.shape[:3], 4), np.int32)
    n_cells, room = -1, 1 << 12
    while n_cells < 0:
        slots, cells = np.full(2 * room, -1, np.int32), np.empty((room, 3), np.int32)
        n_cells = _find_cells(corners, z, half_height, valid, slots, cells, cell_of)
        room *= 4
    centre = np.empty((n_cells, 3), np.float32)
    cell_blocks = np.empty(n_cells + 1, np.int64)
    block, block_segment, block_bound = _list_cells(
        cells[:n_cells], edges.start, edges.delta, edges.square, centre, cell_blocks
    )
    _signed_distances(
        corners, z, half_height, valid, cell_of, centre, cell_blocks,
        block, block_segment, block_bound, edges.start, edges.delta, edges.square,
        edges.prior, edges.following, edges.convex_before, edges.convex_after, distances,
    )  # fmt: skip


@kernel
def _planar_signed_distances(
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
                        side = _side(x, y, nearest, start, delta)
                        sign = _sign(
                            x, y, nearest, side, s < ZERO, s >= ONE,
                            start, delta, prior, following, convex_before, convex_after,
                        )  # fmt: skip
                        if abs(sign * best) < abs(result):
                            result = sign * best
                    worst = max(worst, result)
                distances[r, a, t] = worst


def planar_road_edge_distances(
    corners: Float32Array, valid: BoolArray, edges: RoadEdges, distances: Float32Array
) -> None:
    """Fill `distances` of the evaluated agents, the rules of 2023: heights do not count.

    Each polyline gives one signed distance, and the smallest absolute value of them is taken. A
    corner exactly on the line of a segment, but past its end, has sign 0 and so distance 0 from
    that polyline however far it is, and beats all others: so it was, and therefore every polyline
    is evaluated here. Arguments as `road_edge_distances`.
    """
    _planar_signed_distances(
        corners, valid, edges.start, edges.delta, edges.square, edges.prior, edges.following,
        edges.convex_before, edges.convex_after, edges.polyline_offsets, distances,
    )  # fmt: skip
