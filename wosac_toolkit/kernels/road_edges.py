"""Signed distance to the road edge (`map_metric_features`): negative on the road, positive off it.

Of the four bottom corners of a box the one farthest off the road counts. A corner belongs to the
nearest segment of all road edges, in 3-D with heights stretched by three, so that an agent below an
overpass does not take the edge above; the distance itself is planar. Its sign says on which side of
the segment the corner lies, and past the end of a segment the convexity of the joint decides.

The official code evaluates every corner against every segment. Here space is cut into cells, and
for each cell that corners fall into, once, the few segments are listed that can be the nearest to
any point of it, by and by with their distance from the cell's centre. The exact float32 arithmetic
then runs over that list, 16 segments at a time, until the rest is too far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wosac_toolkit.kernels.float32 import EXTREMELY_LARGE_DISTANCE, ONE, ZERO
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.kernels.layout import size_at
from wosac_toolkit.scenario import BoolArray, Float32Array, Float64Array, Int64Array

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
_INFINITY, _NOWHERE = np.float32(np.inf), np.float32(1e15)
_LARGEST_BITS = np.int32(np.iinfo(np.int32).max)
_LARGEST_KEY = np.int64(np.iinfo(np.int64).max)
_LANES = 16  # segments computed side by side; shorter loops are unrolled, not vectorised
# Listed segments are sorted by their distance from the cell's centre only as far as into so many
# rings: the last ring ends where no segment can be the nearest any more.
_RINGS = 16
_RING_M = _CELL_LIMIT_M / np.float32(_RINGS)


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
        chunk: float32 [C, 7, 16], the same segments, each 16 consecutive ones side by side: start
            (3), delta (3) and squared length. The last chunk is filled up far away.
        chunk_low, chunk_high: float32 [3, C], the bounding box of each chunk.
    """

    start: Float32Array
    delta: Float32Array
    square: Float32Array
    prior: Int32Array
    following: Int32Array
    convex_before: BoolArray
    convex_after: BoolArray
    polyline_offsets: Int64Array
    chunk: Float32Array
    chunk_low: Float32Array
    chunk_high: Float32Array


def road_edge_segments(polylines: Sequence[Float32Array | Float64Array], planar: bool) -> RoadEdges:
    """Cut polylines into segments.

    Args:
        polylines: [n_i, 3] each; those of fewer than two points are left out.
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
    start, delta = np.empty((2, 3, n), np.float32)
    square = np.empty(n, np.float32)
    prior, following = np.empty((2, n), np.int32)
    convex_before, convex_after = np.empty((2, n), np.bool_)
    _cut(
        np.concatenate(polylines).astype(np.float32, copy=False), offsets, planar,
        start, delta, square, prior, following, convex_before, convex_after,
    )  # fmt: skip
    return _road_edges(start, delta, square, prior, following, convex_before, convex_after, offsets)


def single_road_edge(edges: RoadEdges, number: int) -> RoadEdges:
    """One of the road edges by itself."""
    begin, end = edges.polyline_offsets[number : number + 2]
    return _road_edges(
        start=np.ascontiguousarray(edges.start[:, begin:end]),
        delta=np.ascontiguousarray(edges.delta[:, begin:end]),
        square=edges.square[begin:end],
        prior=edges.prior[begin:end] - np.int32(begin),
        following=edges.following[begin:end] - np.int32(begin),
        convex_before=edges.convex_before[begin:end],
        convex_after=edges.convex_after[begin:end],
        polyline_offsets=np.array([0, end - begin]),
    )


def _road_edges(
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
    polyline_offsets: Int64Array,
) -> RoadEdges:
    """`RoadEdges`, whose other fields follow from these."""
    n_chunks = -(-len(square) // _LANES)
    chunk = np.empty((n_chunks, 7, _LANES), np.float32)
    chunk_low, chunk_high = np.empty((2, 3, n_chunks), np.float32)
    _chunk(start, delta, square, chunk, chunk_low, chunk_high)
    return RoadEdges(
        start, delta, square, prior, following, convex_before, convex_after, polyline_offsets,
        chunk, chunk_low, chunk_high,
    )  # fmt: skip


@kernel
def _cut(
    points: Float32Array,
    offsets: Int64Array,
    planar: bool,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    prior: Int32Array,
    following: Int32Array,
    convex_before: BoolArray,
    convex_after: BoolArray,
) -> None:
    """Fill the fields of `RoadEdges` from the points of all polylines, float32 [n + P, 3]."""
    longest = np.diff(offsets).max()
    for p in range(len(offsets) - 1):
        first, last = offsets[p], offsets[p + 1] - 1
        for i in range(first, last + 1):
            for d in range(3):
                # A polyline has one point more than it has segments.
                start[d, i] = points[p + i, d]
                delta[d, i] = points[p + i + 1, d] - points[p + i, d]
            square[i] = delta[0, i] * delta[0, i] + delta[1, i] * delta[1, i]
            prior[i], following[i] = max(i - 1, first), min(i + 1, last)
        x = points[p + first, 0] - points[p + last + 1, 0]
        y = points[p + first, 1] - points[p + last + 1, 1]
        z = ZERO if planar else points[p + first, 2] - points[p + last + 1, 2]
        cyclic = (x * x + y * y) + z * z < _CYCLIC_TOLERANCE_M2
        if cyclic and (planar or last + 1 - first == longest):
            prior[first], following[last] = last, first
        for i in range(first, last + 1):
            j, k = prior[i], following[i]
            convex_before[i] = delta[0, j] * delta[1, i] - delta[1, j] * delta[0, i] > ZERO
            convex_after[i] = delta[0, i] * delta[1, k] - delta[1, i] * delta[0, k] > ZERO


@kernel
def _chunk(
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    chunk: Float32Array,
    chunk_low: Float32Array,
    chunk_high: Float32Array,
) -> None:
    """Fill `chunk`, `chunk_low` and `chunk_high` of `RoadEdges`."""
    n = len(square)
    for c in range(len(chunk)):
        for d in range(3):
            chunk_low[d, c], chunk_high[d, c] = _INFINITY, -_INFINITY
        for lane in range(_LANES):
            i = c * _LANES + lane
            for d in range(3):
                if i < n:
                    here, end = start[d, i], start[d, i] + delta[d, i]
                    chunk_low[d, c] = min(chunk_low[d, c], here, end)
                    chunk_high[d, c] = max(chunk_high[d, c], here, end)
                chunk[c, d, lane] = start[d, i] if i < n else _NOWHERE
                chunk[c, 3 + d, lane] = delta[d, i] if i < n else ZERO
            chunk[c, 6, lane] = square[i] if i < n else ZERO


@inlined
def _projection(px: float, py: float, dx: float, dy: float, square: float) -> float:
    """Where a point projects on a segment: 0 at its start, 1 at its end; 0 if it has no length.

    Args:
        px, py: float32, the point, from the segment's start.
        dx, dy, square: float32, the segment and its squared length.
    """
    return ZERO if square == ZERO else (px * dx + py * dy) / square


@inlined
def _squared_distance(
    px: float, py: float, pz: float, dx: float, dy: float, dz: float, square: float
) -> float:
    """The squared 3-D distance of a point to a segment, heights stretched; see `_projection`."""
    t = (px * dx + py * dy) / square
    t = ZERO if square == ZERO else min(max(t, ZERO), ONE)
    ex, ey, ez = px - dx * t, py - dy * t, (pz - dz * t) * _Z_STRETCH
    return np.float32((ex * ex + ey * ey) + ez * ez)


@inlined
def _key(distance: float, which: int) -> int:
    """A number whose order is that of a distance, and of equal distances that of `which`.

    A minimum of integers, unlike one of floats, is compiled to vector instructions, and positive
    floats are ordered as their bits are: distance in the upper half, int32 `which` in the lower.
    """
    return (np.int64(np.float32(distance).view(np.int32)) << 32) | which


@inlined
def _side(px: float, py: float, dx: float, dy: float) -> float:
    """-1 to the left of a segment, 1 to the right, 0 on its line; see `_projection`."""
    return np.sign(px * dy - py * dx)


@inlined
def _sign(side: float, beyond: float, convex: bool) -> float:
    """Sign of the distance of a point to a segment past whose end it lies.

    Args:
        side: the side of the segment on which it lies.
        beyond: the same of the segment that joins there.
        convex: whether the joint turns left.
    """
    return max(side, beyond) if convex else min(side, beyond)


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
                bottom = -size_at(half_height, r, t, a) + z[r, a, n_history + t]
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


@inlined
def _cell_limit(smallest_square: float) -> float:
    """Squared distance from its centre beyond which no segment is nearest to a point of a cell.

    If the nearest segment to the centre is at distance d, none farther than d plus twice the
    cell's half diagonal from the centre can be the nearest to any of its points.
    """
    limit = np.sqrt(smallest_square) * _SLACK_RATIO + _CELL_LIMIT_M
    return limit * limit


@kernel
def _list_cells(
    cells: Int32Array,
    chunk: Float32Array,
    chunk_low: Float32Array,
    chunk_high: Float32Array,
    centre: Float32Array,
    cell_blocks: Int64Array,
) -> tuple[Float32Array, Int32Array, Float32Array]:
    """List the segments that can be the nearest to a point of each cell, in blocks of `_LANES`.

    Args:
        cells: int32 [C, 3].
        chunk, chunk_low, chunk_high: see `RoadEdges`.
        centre: float32 [C, 3], written.
        cell_blocks: int64 [C + 1], written: the blocks of each cell.

    Returns:
        For B blocks: float32 [B, 7, _LANES], start (3), delta (3) and squared length of each
        segment; int32 [B, _LANES], `_LANES` times its number, plus its lane; float32 [B], a bound
        from below of the distance between the cell's centre and the segments of this block and of
        the cell's following ones.
    """
    n_chunks = len(chunk)
    low_x, low_y, low_z = chunk_low[0], chunk_low[1], chunk_low[2]
    high_x, high_y, high_z = chunk_high[0], chunk_high[1], chunk_high[2]
    chunk_bound = np.empty(n_chunks, np.float32)
    near_chunks = np.empty(n_chunks, np.int32)
    squares = np.empty(_LANES, np.float32)
    listed, ring_of = np.empty((2, n_chunks * _LANES), np.int32)
    places = np.empty(_RINGS + 1, np.int32)

    block = np.empty((4 * len(cells), 7, _LANES), np.float32)
    block_segment = np.empty((4 * len(cells), _LANES), np.int32)
    block_bound = np.empty(4 * len(cells), np.float32)
    b = 0
    cell_blocks[0] = 0
    nearest = np.int32(0)
    for c in range(len(cells)):
        x = np.float32((cells[c, 0] + 0.5) * _CELL_M)
        y = np.float32((cells[c, 1] + 0.5) * _CELL_M)
        z = np.float32((cells[c, 2] + 0.5) * _CELL_HEIGHT_M)
        centre[c, 0], centre[c, 1], centre[c, 2] = x, y, z

        for k in range(n_chunks):
            dx = max(max(low_x[k] - x, ZERO), x - high_x[k])
            dy = max(max(low_y[k] - y, ZERO), y - high_y[k])
            dz = max(max(low_z[k] - z, ZERO), z - high_z[k]) * _Z_STRETCH
            chunk_bound[k] = dx * dx + dy * dy + dz * dz
        # Cells are numbered as agents go through them, so the last cell's nearest is a good guess.
        k, lane = nearest // _LANES, nearest % _LANES
        smallest = _squared_distance(
            x - chunk[k, 0, lane], y - chunk[k, 1, lane], z - chunk[k, 2, lane],
            chunk[k, 3, lane], chunk[k, 4, lane], chunk[k, 5, lane], chunk[k, 6, lane],
        )  # fmt: skip
        limit = _cell_limit(smallest)
        n_near = 0
        for k in range(n_chunks):
            near_chunks[n_near] = k
            n_near += chunk_bound[k] <= limit
        best = _LARGEST_KEY
        for k in near_chunks[:n_near]:
            for lane in range(_LANES):
                distance_square = _squared_distance(
                    x - chunk[k, 0, lane], y - chunk[k, 1, lane], z - chunk[k, 2, lane],
                    chunk[k, 3, lane], chunk[k, 4, lane], chunk[k, 5, lane], chunk[k, 6, lane],
                )  # fmt: skip
                best = min(best, _key(distance_square, k * _LANES + lane))
        nearest, smallest = np.int32(best), np.int32(best >> 32).view(np.float32)

        limit, inner = _cell_limit(smallest), np.sqrt(smallest)
        count = 0
        places[:] = 0
        for k in near_chunks[:n_near]:
            if chunk_bound[k] > limit:
                continue
            for lane in range(_LANES):
                squares[lane] = _squared_distance(
                    x - chunk[k, 0, lane], y - chunk[k, 1, lane], z - chunk[k, 2, lane],
                    chunk[k, 3, lane], chunk[k, 4, lane], chunk[k, 5, lane], chunk[k, 6, lane],
                )  # fmt: skip
            for lane in range(_LANES):
                if squares[lane] <= limit:
                    ring = np.int32((np.sqrt(squares[lane]) - inner) / _RING_M)
                    ring = min(ring, np.int32(_RINGS - 1))
                    listed[count], ring_of[count] = k * _LANES + lane, ring
                    places[ring + 1] += 1
                    count += 1
        for ring in range(_RINGS):
            places[ring + 1] += places[ring]

        end = b + (count + _LANES - 1) // _LANES
        if end > len(block):
            block = _grown(block, 2 * end)
            block_segment = _grown(block_segment, 2 * end)
            block_bound = _grown(block_bound, 2 * end)
        for j in range(count):
            k, lane = listed[j] // _LANES, listed[j] % _LANES
            place = places[ring_of[j]]
            places[ring_of[j]] += 1
            into, there = b + place // _LANES, place % _LANES
            for d in range(7):
                block[into, d, there] = chunk[k, d, lane]
            block_segment[into, there] = listed[j] * _LANES + there
            if there == 0:
                block_bound[into] = inner + ring_of[j] * _RING_M
        # Fill the last block up with a point far away.
        for there in range(count - (end - 1 - b) * _LANES, _LANES):
            for d in range(7):
                block[end - 1, d, there] = _NOWHERE if d == 0 else ZERO
            block_segment[end - 1, there] = n_chunks * _LANES * _LANES + there
        b = end
        cell_blocks[c + 1] = b
    return block, block_segment, block_bound


@kernel
def _grown(array: Float32Array, length: int) -> Float32Array:
    """The same array, longer."""
    larger = np.empty((length, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


@kernel
def _nearest_of_all(
    x: float, y: float, z: float, start: Float32Array, delta: Float32Array, square: Float32Array
) -> int:
    """The nearest of all segments; of equally near ones the first."""
    best, nearest = _INFINITY, 0
    for i in range(len(square)):
        distance = np.sqrt(
            _squared_distance(
                x - start[0, i], y - start[1, i], z - start[2, i],
                delta[0, i], delta[1, i], delta[2, i], square[i],
            )
        )  # fmt: skip
        if distance < best:
            best, nearest = distance, i
    return nearest


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
    for r in range(n_rollouts):
        for a in range(n_agents):
            for t in range(n_steps):
                if not valid[t, a]:
                    distances[r, a, t] = -EXTREMELY_LARGE_DISTANCE
                    continue
                if (
                    t > 0
                    and valid[t - 1, a]
                    and size_at(half_height, r, t, a) == size_at(half_height, r, t - 1, a)
                    and _stands(corners, z, r, t, a, n_history + t)
                ):
                    distances[r, a, t] = distances[r, a, t - 1]
                    continue
                worst = -_INFINITY
                bottom = -size_at(half_height, r, t, a) + z[r, a, n_history + t]
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    c = cell_of[r, t, a, k]
                    # A list is empty only where a point of the map is not a number.
                    if c >= 0 and cell_blocks[c] < cell_blocks[c + 1]:
                        ox, oy = x - centre[c, 0], y - centre[c, 1]
                        oz = (bottom - centre[c, 2]) * _Z_STRETCH
                        offset = np.sqrt(ox * ox + oy * oy + oz * oz) + _SLACK_M
                        best, reach, b = _LARGEST_KEY, _INFINITY, cell_blocks[c]
                        for i in range(cell_blocks[c], cell_blocks[c + 1]):
                            if block_bound[i] - offset > reach:
                                break
                            smallest = _LARGEST_KEY
                            for lane in range(_LANES):
                                # Distances decide, not squares: two squares can have the same root.
                                distance = np.sqrt(
                                    _squared_distance(
                                        x - block[i, 0, lane],
                                        y - block[i, 1, lane],
                                        bottom - block[i, 2, lane],
                                        block[i, 3, lane], block[i, 4, lane], block[i, 5, lane],
                                        block[i, 6, lane],
                                    )
                                )  # fmt: skip
                                smallest = min(smallest, _key(distance, block_segment[i, lane]))
                            if smallest < best:
                                best, b = smallest, i
                                reach = np.int32(best >> 32).view(np.float32) * _SLACK_RATIO
                        nearest, lane = np.int32(best) // _LANES, np.int32(best) % _LANES
                        px, py = x - block[b, 0, lane], y - block[b, 1, lane]
                        dx, dy, length = block[b, 3, lane], block[b, 4, lane], block[b, 6, lane]
                    else:
                        nearest = _nearest_of_all(x, y, bottom, start, delta, square)
                        px, py = x - start[0, nearest], y - start[1, nearest]
                        dx, dy, length = delta[0, nearest], delta[1, nearest], square[nearest]
                    along = _projection(px, py, dx, dy, length)
                    clipped = min(max(along, ZERO), ONE)
                    ex, ey = px - dx * clipped, py - dy * clipped
                    sign = _side(px, py, dx, dy)
                    if along < ZERO:
                        j = prior[nearest]
                        beyond = _side(x - start[0, j], y - start[1, j], delta[0, j], delta[1, j])
                        sign = _sign(sign, beyond, convex_before[nearest])
                    elif along > ONE:
                        j = following[nearest]
                        beyond = _side(x - start[0, j], y - start[1, j], delta[0, j], delta[1, j])
                        sign = _sign(sign, beyond, convex_after[nearest])
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
        cells[:n_cells], edges.chunk, edges.chunk_low, edges.chunk_high, centre, cell_blocks
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
    """Fill `distances`: for each agent the largest signed distance of its corners."""
    n_rollouts, n_agents, n_steps = distances.shape
    n_polylines = len(polyline_offsets) - 1
    low, high = np.empty((2, n_polylines, 2), np.float32)
    for p in range(n_polylines):
        for d in range(2):
            low[p, d], high[p, d] = _INFINITY, -_INFINITY
            for i in range(polyline_offsets[p], polyline_offsets[p + 1]):
                here, end = start[d, i], start[d, i] + delta[d, i]
                low[p, d], high[p, d] = min(low[p, d], here, end), max(high[p, d], here, end)
    guess = 0
    for r in range(n_rollouts):
        for a in range(n_agents):
            for t in range(n_steps):
                if not valid[t, a]:
                    distances[r, a, t] = -EXTREMELY_LARGE_DISTANCE
                    continue
                worst = -_INFINITY
                for k in range(4):
                    x, y = corners[r, t, a, k], corners[r, t, a, 4 + k]
                    result, reach = _INFINITY, _INFINITY
                    # The polyline that the last corner belongs to, for how far to look; then all.
                    for q in range(-1, n_polylines):
                        p = guess if q < 0 else q
                        first, last = polyline_offsets[p], polyline_offsets[p + 1]
                        # Of slices indices cannot be negative, which vector instructions ask for.
                        start_x, start_y = start[0, first:last], start[1, first:last]
                        delta_x, delta_y = delta[0, first:last], delta[1, first:last]
                        gap_x = max(low[p, 0] - x, ZERO, x - high[p, 0])
                        gap_y = max(low[p, 1] - y, ZERO, y - high[p, 1])
                        if gap_x * gap_x + gap_y * gap_y > reach * reach:
                            n_on_line = np.int32(0)
                            for i in range(last - first):
                                side = (x - start_x[i]) * delta_y[i] - (y - start_y[i]) * delta_x[i]
                                n_on_line += np.int32(side == ZERO)
                            if n_on_line == 0:
                                continue
                        squares = square[first:last]
                        best = _LARGEST_KEY
                        for i in range(last - first):
                            px, py = x - start_x[i], y - start_y[i]
                            s = (px * delta_x[i] + py * delta_y[i]) / squares[i]
                            s = ZERO if squares[i] == ZERO else min(max(s, ZERO), ONE)
                            ex, ey = px - delta_x[i] * s, py - delta_y[i] * s
                            best = min(best, _key(np.sqrt(ex * ex + ey * ey), i))
                        distance = np.int32(best >> 32).view(np.float32)
                        nearest = first + np.int32(best)
                        px, py = x - start[0, nearest], y - start[1, nearest]
                        dx, dy = delta[0, nearest], delta[1, nearest]
                        s = _projection(px, py, dx, dy, square[nearest])
                        sign = _side(px, py, dx, dy)
                        if s < ZERO or s >= ONE:
                            j = prior[nearest] if s < ZERO else following[nearest]
                            beyond = _side(
                                x - start[0, j], y - start[1, j], delta[0, j], delta[1, j]
                            )
                            convex = convex_before[nearest] if s < ZERO else convex_after[nearest]
                            sign = _sign(sign, beyond, convex)
                        if q < 0:
                            reach = distance * _SLACK_RATIO + _SLACK_M
                        elif abs(sign * distance) < abs(result):
                            result, guess = sign * distance, p
                    worst = max(worst, result)
                distances[r, a, t] = worst


def planar_road_edge_distances(
    corners: Float32Array, valid: BoolArray, edges: RoadEdges, distances: Float32Array
) -> None:
    """Fill `distances` of the evaluated agents, the rules of 2023: heights do not count.

    Each polyline gives one signed distance, and the smallest absolute value of them is taken. A
    corner exactly on the line of a segment, but past its end, has sign 0 and so distance 0 from
    that polyline however far it is, and beats all others: so it was, and therefore a polyline that
    is too far is left out only if the corner is on the line of none of its segments. Arguments as
    `road_edge_distances`.
    """
    _planar_signed_distances(
        corners, valid, edges.start, edges.delta, edges.square, edges.prior, edges.following,
        edges.convex_before, edges.convex_after, edges.polyline_offsets, distances,
    )  # fmt: skip
