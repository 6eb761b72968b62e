"""Signed distance to the nearest object (`interaction_features`, `geometry_utils`).

Boxes are rectangles with rounded corners. The distance of two boxes is that of the origin to the
Minkowski difference of their shrunken cores, a convex polygon of eight vertices, less the two
shrinking distances; it is negative where the boxes overlap.

The official code evaluates every pair at every step. Here a bounding circle about each box gives a
lower bound that is far cheaper, and only the pairs that can be the nearest are evaluated, the
neighbour of the step before first. The result is the minimum over the same float32 numbers.
"""

from __future__ import annotations

import numpy as np

from wosac_toolkit.kernels.boxes import write_corners
from wosac_toolkit.kernels.float32 import EXTREMELY_LARGE_DISTANCE, ONE, TWO, ZERO
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.kernels.layout import at_step
from wosac_toolkit.scenario import BoolArray, Float32Array

_INFINITY = np.float32(np.inf)
# More than rounding to float32 can change a distance, near the origin and far from it.
_ROUNDING_M, _ROUNDING_RATIO = np.float32(1e-2), np.float32(1e-6)
_INFINITY_BITS = _INFINITY.view(np.int32)


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
def core_distance(a: Float32Array, b: Float32Array, px: Float32Array, py: Float32Array) -> float:
    """Signed distance of two rectangles, negative where they overlap.

    Args:
        a, b: float32 [8], four x then four y of the corners, counter-clockwise.
        px, py: float32 [17], scratch.
    """
    # The polygon starts at the lowest vertex of `a` and of `-b`, that is the highest of `b`.
    low_a = 0
    high_b = 0
    for i in range(1, 4):
        if a[4 + i] < a[4 + low_a]:
            low_a = i
        if b[4 + i] > b[4 + high_b]:
            high_b = i
    i = (low_a + 1) & 3
    ax, ay = a[i] - a[low_a], a[4 + i] - a[4 + low_a]
    norm = np.sqrt(ax * ax + ay * ay)
    ax, ay = ax / norm, ay / norm
    i = (high_b + 1) & 3
    bx, by = b[high_b] - b[i], b[4 + high_b] - b[4 + i]
    norm = np.sqrt(bx * bx + by * by)
    bx, by = bx / norm, by / norm
    # Which box the first edge comes from; from then on the boxes take turns.
    a_first = np.int64(ax * by - ay * bx >= ZERO)
    for k in range(17):
        i = (((k + a_first) >> 1) + low_a) & 3
        j = (((k + 1 - a_first) >> 1) + high_b) & 3
        px[k] = a[i] - b[j]
        py[k] = a[4 + i] - b[4 + j]
    # Twice around the eight edges: a loop of eight would be unrolled, this one is compiled to
    # vector instructions. So are minima of integers, but not of floats, and positive floats are
    # ordered as their bits are. The query point is the origin, so the vector from a vertex to it is
    # minus the vertex. Of two distances the smaller has the smaller square, so one root at the end
    # serves all vertices.
    outside = 0
    nearest_edge = _INFINITY_BITS
    nearest_vertex = _INFINITY_BITS
    for k in range(16):
        ex, ey = px[k + 1] - px[k], py[k + 1] - py[k]
        edge = np.sqrt(ex * ex + ey * ey)
        tx, ty = ex / edge, ey / edge
        perpendicular = ty * -px[k] + -tx * -py[k]
        along = (tx * -px[k] + ty * -py[k]) / edge
        outside += 1 - np.int64(perpendicular <= ZERO)
        to_edge = abs(perpendicular) if (along >= ZERO) & (along <= ONE) else _INFINITY
        nearest_edge = min(nearest_edge, np.float32(to_edge).view(np.int32))
        square = px[k] * px[k] + py[k] * py[k]
        nearest_vertex = min(nearest_vertex, np.float32(square).view(np.int32))
    distance = min(
        np.int32(nearest_edge).view(np.float32), np.sqrt(np.int32(nearest_vertex).view(np.float32))
    )
    return distance if outside else -distance


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
    bound = np.empty(n_agents, np.float32)
    neighbour = np.zeros(n_evaluated, np.int64)
    own, other = np.empty(8, np.float32), np.empty(8, np.float32)
    px, py = np.empty(17, np.float32), np.empty(17, np.float32)
    for r in range(n_rollouts):
        for t in range(n_steps):
            s = n_history + t
            long, wide = at_step(core_length, r, t), at_step(core_width, r, t)
            shrunk, circle = at_step(shrinking, r, t), at_step(radius, r, t)
            for e in range(n_evaluated):
                if not valid[t, e]:
                    distances[r, e, t] = EXTREMELY_LARGE_DISTANCE
                    continue
                cx, cy = x[r, s, e], y[r, s, e]
                # Corners are rounded in the global frame, and so can lie closer than the circles.
                reach = circle[e] + _ROUNDING_M + _ROUNDING_RATIO * max(abs(cx), abs(cy))
                for n in range(n_agents):
                    dx, dy = x[r, s, n] - cx, y[r, s, n] - cy
                    gap = np.sqrt(dx * dx + dy * dy) - (reach + circle[n])
                    bound[n] = gap if valid[t, n] else _INFINITY
                bound[e] = _INFINITY
                write_corners(cx, cy, heading[r, t, e], long[e], wide[e], own)
                best = EXTREMELY_LARGE_DISTANCE
                # The last step's neighbour first, then the others in turn.
                for k in range(-1, n_agents):
                    n = neighbour[e] if k < 0 else k
                    if bound[n] < best:
                        bound[n] = _INFINITY
                        write_corners(
                            x[r, s, n], y[r, s, n], heading[r, t, n], long[n], wide[n], other
                        )
                        d = core_distance(own, other, px, py)
                        d = d - shrunk[e] - shrunk[n]
                        if d < best:
                            best = d
                            neighbour[e] = n
                distances[r, e, t] = best
