"""Signed distance to the nearest object (`interaction_features`, `geometry_utils`).

Boxes are rectangles with rounded corners. The distance of two boxes is that of the origin to the
Minkowski difference of their shrunken cores, a convex polygon of eight vertices, less the two
shrinking distances; it is negative where the boxes overlap.

The official code evaluates every pair at every step. Here the neighbour that the agent has at that
step of the rollout before is evaluated first, and then only what can be nearer by its bounding
circle: hardly anything. Pairs are evaluated 16 at a time, side by side. The result is the minimum
over the same float32 numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wosac_toolkit.kernels.boxes import corners_of_box
from wosac_toolkit.kernels.float32 import (
    EXTREMELY_LARGE_DISTANCE,
    HUGE_ANGLE,
    ONE,
    TWO,
    ZERO,
    sin_cos,
    small_sin_cos,
)
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.kernels.layout import size_at
from wosac_toolkit.scenario import BoolArray, Float32Array

Int32Array = npt.NDArray[np.int32]

_INFINITY = np.float32(np.inf)
# More than rounding to float32 can change a distance, near the origin and far from it.
_ROUNDING_M, _ROUNDING_RATIO = np.float32(1e-2), np.float32(1e-6)
_PENDING = 1024  # pairs that are gathered before they are evaluated
# Pairs evaluated side by side, and where their numbers stand: x of the `_LANES` first boxes, x of
# the second ones, and so on.
_LANES = 16
_X, _Y, _HEADING, _LENGTH, _WIDTH, _SINE, _COSINE = (2 * _LANES * row for row in range(7))
_DISTANCE = 14 * _LANES


def shrunken_boxes(
    length: Float32Array, width: Float32Array, corner_rounding: float
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Length, width and shrinking distance of the cores whose outset are the rounded boxes.

    Args:
        length, width: float32 of any shape, which is that of the results.
        corner_rounding: 0 for sharp corners to 1 for capsules.
    """
    shrinking = np.minimum(length, width) * np.float32(corner_rounding) / TWO
    return length - TWO * shrinking, width - TWO * shrinking, shrinking


@inlined
def _edge(px: float, py: float, qx: float, qy: float) -> tuple[float, float, bool]:
    """An edge of a convex polygon, from p to q, as seen from the origin.

    Returns:
        The distance of the origin to the edge, infinity where it does not project on it; the
        squared distance to p; whether the origin lies outside of the edge.
    """
    # The query point is the origin, so the vector from a vertex to it is minus the vertex.
    ex, ey = qx - px, qy - py
    length = np.sqrt(ex * ex + ey * ey)
    tx, ty = ex / length, ey / length
    perpendicular = ty * -px + -tx * -py
    along = (tx * -px + ty * -py) / length
    to_edge = abs(perpendicular) if (along >= ZERO) & (along <= ONE) else _INFINITY
    return to_edge, px * px + py * py, not perpendicular <= ZERO


@inlined
def _lowest(c0: float, c1: float, c2: float, c3: float) -> int:
    """Which of four numbers is the smallest; of equal ones the first."""
    i = np.int32(c1 < c0)
    low = min(c0, c1)
    i = np.int32(2) if c2 < low else i
    low = min(low, c2)
    return np.int32(3) if c3 < low else i


@inlined
def _turned(
    i: int, c0: float, c1: float, c2: float, c3: float
) -> tuple[float, float, float, float]:
    """Four numbers in their cyclic order, beginning with number `i`."""
    c0, c1, c2, c3 = (c2, c3, c0, c1) if i >= 2 else (c0, c1, c2, c3)
    return (c1, c2, c3, c0) if (i & 1) == 1 else (c0, c1, c2, c3)


@kernel
def _core_distances(pairs: Float32Array) -> None:
    """Signed distances of `_LANES` pairs of rectangles, negative where they overlap.

    A loop is compiled to vector instructions if it has no branches and one array whose offsets are
    constants.

    Args:
        pairs: float32 [15 * `_LANES`]: the numbers of the boxes, then sines and cosines and the
            distances, which are written.
    """
    for k in range(2 * _LANES):
        sine, cosine = small_sin_cos(pairs[_HEADING + k])
        pairs[_SINE + k], pairs[_COSINE + k] = sine, cosine
    for k in range(2 * _LANES):
        if not abs(pairs[_HEADING + k]) < HUGE_ANGLE:
            pairs[_SINE + k], pairs[_COSINE + k] = sin_cos(pairs[_HEADING + k])
    for k in range(_LANES):
        ax0, ax1, ax2, ax3, ay0, ay1, ay2, ay3 = corners_of_box(
            pairs[_X + k], pairs[_Y + k], pairs[_SINE + k], pairs[_COSINE + k],
            pairs[_LENGTH + k], pairs[_WIDTH + k],
        )  # fmt: skip
        j = _LANES + k
        bx0, bx1, bx2, bx3, by0, by1, by2, by3 = corners_of_box(
            pairs[_X + j], pairs[_Y + j], pairs[_SINE + j], pairs[_COSINE + j],
            pairs[_LENGTH + j], pairs[_WIDTH + j],
        )  # fmt: skip
        # The polygon starts at the lowest vertex of a and of -b, that is the highest of b.
        i = _lowest(ay0, ay1, ay2, ay3)
        ax0, ax1, ax2, ax3 = _turned(i, ax0, ax1, ax2, ax3)
        ay0, ay1, ay2, ay3 = _turned(i, ay0, ay1, ay2, ay3)
        i = _lowest(-by0, -by1, -by2, -by3)
        bx0, bx1, bx2, bx3 = _turned(i, bx0, bx1, bx2, bx3)
        by0, by1, by2, by3 = _turned(i, by0, by1, by2, by3)
        ex, ey = ax1 - ax0, ay1 - ay0
        length = np.sqrt(ex * ex + ey * ey)
        ex, ey = ex / length, ey / length
        fx, fy = bx0 - bx1, by0 - by1
        length = np.sqrt(fx * fx + fy * fy)
        fx, fy = fx / length, fy / length
        # Which box the first edge comes from; from then on the boxes take turns.
        a_first = ex * fy - ey * fx >= ZERO
        p0x, p0y = ax0 - bx0, ay0 - by0
        p1x, p1y = (ax1 - bx0, ay1 - by0) if a_first else (ax0 - bx1, ay0 - by1)
        p2x, p2y = ax1 - bx1, ay1 - by1
        p3x, p3y = (ax2 - bx1, ay2 - by1) if a_first else (ax1 - bx2, ay1 - by2)
        p4x, p4y = ax2 - bx2, ay2 - by2
        p5x, p5y = (ax3 - bx2, ay3 - by2) if a_first else (ax2 - bx3, ay2 - by3)
        p6x, p6y = ax3 - bx3, ay3 - by3
        p7x, p7y = (ax0 - bx3, ay0 - by3) if a_first else (ax3 - bx0, ay3 - by0)
        edge0, square0, outside0 = _edge(p0x, p0y, p1x, p1y)
        edge1, square1, outside1 = _edge(p1x, p1y, p2x, p2y)
        edge2, square2, outside2 = _edge(p2x, p2y, p3x, p3y)
        edge3, square3, outside3 = _edge(p3x, p3y, p4x, p4y)
        edge4, square4, outside4 = _edge(p4x, p4y, p5x, p5y)
        edge5, square5, outside5 = _edge(p5x, p5y, p6x, p6y)
        edge6, square6, outside6 = _edge(p6x, p6y, p7x, p7y)
        edge7, square7, outside7 = _edge(p7x, p7y, p0x, p0y)
        edge = min(edge0, edge1, edge2, edge3, edge4, edge5, edge6, edge7)
        # Of two distances the smaller has the smaller square, so one root serves all vertices.
        square = min(square0, square1, square2, square3, square4, square5, square6, square7)
        distance = min(edge, np.sqrt(square))
        outside = (
            (outside0 | outside1 | outside2 | outside3)
            | (outside4 | outside5 | outside6 | outside7)
        )  # fmt: skip
        pairs[_DISTANCE + k] = distance if outside else -distance


@kernel
def _evaluate(
    r: int,
    pending: Int32Array,
    x: Float32Array,
    y: Float32Array,
    heading: Float32Array,
    core_length: Float32Array,
    core_width: Float32Array,
    shrinking: Float32Array,
    pairs: Float32Array,
    neighbour: Int32Array,
    distances: Float32Array,
) -> None:
    """Evaluate pairs of agents of rollout `r`, and keep the nearest to each evaluated agent.

    Args:
        r: the rollout.
        pending: int32 [P, 3], the pairs: step, evaluated agent, other agent.
        x .. shrinking: see `nearest_object_distances`.
        pairs: scratch, see `_core_distances`.
        neighbour: int32 [E, T], whose the smallest distance so far is.
        distances: float32 [R, E, T], the smallest distance so far.
    """
    n_history = x.shape[1] - heading.shape[1]
    for first in range(0, len(pending), _LANES):
        n_lanes = min(_LANES, len(pending) - first)
        for k in range(n_lanes):
            t = pending[first + k, 0]
            s = n_history + t
            for i in range(2):
                n, lane = pending[first + k, 1 + i], i * _LANES + k
                pairs[_X + lane], pairs[_Y + lane] = x[r, s, n], y[r, s, n]
                pairs[_HEADING + lane] = heading[r, t, n]
                pairs[_LENGTH + lane] = size_at(core_length, r, t, n)
                pairs[_WIDTH + lane] = size_at(core_width, r, t, n)
        _core_distances(pairs)
        for k in range(n_lanes):
            t, e, n = pending[first + k, 0], pending[first + k, 1], pending[first + k, 2]
            distance = pairs[_DISTANCE + k]
            distance = distance - size_at(shrinking, r, t, e) - size_at(shrinking, r, t, n)
            if distance < distances[r, e, t]:
                distances[r, e, t], neighbour[e, t] = distance, n


@kernel
def nearest_object_distances(
    x: Float32Array,
    y: Float32Array,
    heading: Float32Array,
    core_length: Float32Array,
    core_width: Float32Array,
    shrinking: Float32Array,
    radius: Float32Array,
    valid: BoolArray,
    distances: Float32Array,
) -> None:
    """Fill `distances` for the first E of N agents.

    Args:
        x, y: float32 [R, H + T, N], centres; the H steps of history are not used.
        heading: float32 [R, T, N].
        core_length, core_width, shrinking: float32 [N], or [R, T, N] where they change; see
            `shrunken_boxes`.
        radius: float32 of the same shape, of a circle about the box.
        valid: bool [T, N].
        distances: float32 [R, E, T], written; 1e10 where the agent or all others are invalid.
    """
    n_rollouts, n_evaluated, n_steps = distances.shape
    n_agents = x.shape[2]
    n_history = x.shape[1] - n_steps
    neighbour = np.empty((n_evaluated, n_steps), np.int32)
    near = np.empty(n_agents, np.bool_)
    pending = np.empty((_PENDING + n_agents, 3), np.int32)
    pairs = np.zeros(15 * _LANES, np.float32)
    distances[:] = EXTREMELY_LARGE_DISTANCE
    for r in range(n_rollouts):
        # The neighbour in the rollout before; in the first one the nearest centre.
        count = 0
        for t in range(n_steps):
            s = n_history + t
            for e in range(n_evaluated):
                if r == 0:
                    neighbour[e, t] = e
                    closest = _INFINITY
                    for n in range(n_agents):
                        dx, dy = x[r, s, n] - x[r, s, e], y[r, s, n] - y[r, s, e]
                        if valid[t, n] and n != e and dx * dx + dy * dy < closest:
                            neighbour[e, t], closest = n, dx * dx + dy * dy
                pending[count, 0], pending[count, 1], pending[count, 2] = t, e, neighbour[e, t]
                count += valid[t, e] and neighbour[e, t] != e
            if count >= _PENDING or t == n_steps - 1:
                _evaluate(
                    r, pending[:count], x, y, heading, core_length, core_width, shrinking,
                    pairs, neighbour, distances,
                )  # fmt: skip
                count = 0
        # Then whatever can be nearer.
        for t in range(n_steps):
            x_now, y_now, valid_now = x[r, n_history + t], y[r, n_history + t], valid[t]
            for e in range(n_evaluated):
                if not valid_now[e]:
                    continue
                cx, cy = x_now[e], y_now[e]
                # Corners are rounded in the global frame, and so can lie closer than the circles.
                reach = size_at(radius, r, t, e) + distances[r, e, t]
                reach = reach + _ROUNDING_M + _ROUNDING_RATIO * max(abs(cx), abs(cy), abs(reach))
                n_near = np.int32(0)
                for n in range(n_agents):
                    dx, dy = x_now[n] - cx, y_now[n] - cy
                    limit = reach + size_at(radius, r, t, n)
                    within = (limit > ZERO) & (dx * dx + dy * dy < limit * limit) & valid_now[n]
                    near[n] = within
                    n_near += np.int32(within)
                for n in (np.int32(e), neighbour[e, t]):  # themselves
                    n_near -= np.int32(near[n])
                    near[n] = False
                if n_near == 0:
                    continue
                for n in range(n_agents):
                    pending[count, 0], pending[count, 1], pending[count, 2] = t, e, n
                    count += near[n]
                if count >= _PENDING:
                    _evaluate(
                        r, pending[:count], x, y, heading, core_length, core_width, shrinking,
                        pairs, neighbour, distances,
                    )  # fmt: skip
                    count = 0
        _evaluate(
            r, pending[:count], x, y, heading, core_length, core_width, shrinking,
            pairs, neighbour, distances,
        )  # fmt: skip
