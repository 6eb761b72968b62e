"""What the metric does not look at: exact box overlaps, lanes' directions, spread of rollouts.

These are of no official code, so unlike the other kernels they compute in float64, with states
taken as the float32 numbers that they are.
"""

from __future__ import annotations

import math

import numpy as np

from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.scenario import BoolArray, Float32Array, Float64Array, Int64Array

# Steps for which the pieces of lanes nearby are listed at once.
_STEPS_AT_ONCE = 10


@inlined
def _boxes_overlap(
    dx: float, dy: float, own: float, other: float, l1: float, w1: float, l2: float, w2: float
) -> bool:
    """Whether the interiors of two rectangles meet, by the four axes of their sides.

    Args:
        dx, dy: from the centre of the one to that of the other.
        own, other: headings.
        l1, w1, l2, w2: half lengths and half widths.
    """
    s1, c1, s2, c2 = math.sin(own), math.cos(own), math.sin(other), math.cos(other)
    cosine, sine = abs(c1 * c2 + s1 * s2), abs(s2 * c1 - c2 * s1)
    return (
        abs(dx * c1 + dy * s1) < l1 + (l2 * cosine + w2 * sine)
        and abs(dy * c1 - dx * s1) < w1 + (l2 * sine + w2 * cosine)
        and abs(dx * c2 + dy * s2) < l2 + (l1 * cosine + w1 * sine)
        and abs(dy * c2 - dx * s2) < w2 + (l1 * sine + w1 * cosine)
    )


@kernel
def sharp_box_collisions(
    states: Float32Array,
    columns: Int64Array,
    length: Float32Array,
    width: Float32Array,
    present: BoolArray,
    counted: BoolArray,
    collided: BoolArray,
) -> None:
    """Mark who overlaps another agent at any step, boxes taken as sharp rectangles.

    Args:
        states: float32 [R, N, T, 4], agents in any order.
        columns: int64 [N], where each agent of the metric's order stands in `states`.
        length, width: float32 [N], in the metric's order.
        present: bool [T, N], the agent is there.
        counted: bool [E, T], steps at which the first E agents are looked at.
        collided: bool [R, E], written.
    """
    n_rollouts, n_evaluated = collided.shape
    n_steps, n_agents = present.shape
    half_length, half_width = length.astype(np.float64) / 2, width.astype(np.float64) / 2
    radius = np.hypot(half_length, half_width)
    for r in range(n_rollouts):
        for e in range(n_evaluated):
            own = states[r, columns[e]]
            collided[r, e] = False
            for n in range(n_agents):
                if n == e or collided[r, e]:
                    continue
                other = states[r, columns[n]]
                reach = (radius[e] + radius[n]) ** 2
                for t in range(n_steps):
                    dx = np.float64(other[t, 0]) - np.float64(own[t, 0])
                    dy = np.float64(other[t, 1]) - np.float64(own[t, 1])
                    if dx * dx + dy * dy >= reach or not (counted[e, t] and present[t, n]):
                        continue
                    if _boxes_overlap(
                        dx, dy, np.float64(own[t, 3]), np.float64(other[t, 3]),
                        half_length[e], half_width[e], half_length[n], half_width[n],
                    ):  # fmt: skip
                        collided[r, e] = True
                        break


@inlined
def _within(
    x_low: float,
    x_high: float,
    y_low: float,
    y_high: float,
    p: int,
    low: Float64Array,
    high: Float64Array,
    reach: float,
) -> bool:
    """Whether a piece of a lane can be within reach of a box."""
    return (
        (low[p, 0] - reach <= x_high)
        & (high[p, 0] + reach >= x_low)
        & (low[p, 1] - reach <= y_high)
        & (high[p, 1] + reach >= y_low)
    )


@kernel
def _bounds(own: Float32Array, wanted: BoolArray) -> tuple[float, float, float, float]:
    """The box about the wanted positions of an agent [T, 4]: x, then y, low and high."""
    x_low, x_high, y_low, y_high = np.inf, -np.inf, np.inf, -np.inf
    for t in range(len(wanted)):
        if wanted[t]:
            x, y = np.float64(own[t, 0]), np.float64(own[t, 1])
            x_low, x_high = min(x_low, x), max(x_high, x)
            y_low, y_high = min(y_low, y), max(y_high, y)
    return x_low, x_high, y_low, y_high


@kernel
def _look_at_piece(
    state: Float32Array,
    segments: Float64Array,
    begin: int,
    end: int,
    reach: float,
    height_reach: float,
    limit: float,
) -> tuple[bool, bool]:
    """Whether an agent is within reach of a piece of a lane, and of one that it goes along with.

    The second ends the search, so the first may not be told then.
    """
    x, y, z = np.float64(state[0]), np.float64(state[1]), np.float64(state[2])
    sine, cosine = math.sin(np.float64(state[3])), math.cos(np.float64(state[3]))
    near = False
    for i in range(begin, end):
        dx, dy = segments[2, i], segments[3, i]
        px, py = x - segments[0, i], y - segments[1, i]
        square = dx * dx + dy * dy
        along = min(max((px * dx + py * dy) / square, 0.0), 1.0)
        ex, ey = px - along * dx, py - along * dy
        if ex * ex + ey * ey <= reach * reach and abs(z - segments[4, i]) <= height_reach:
            near = True
            if cosine * dx + sine * dy >= limit * math.sqrt(square):
                return True, True
    return near, False


@kernel
def against_lanes(
    states: Float32Array,
    columns: Int64Array,
    wanted: BoolArray,
    segments: Float64Array,
    offsets: Int64Array,
    low: Float64Array,
    high: Float64Array,
    reach: float,
    height_reach: float,
    limit: float,
    against: BoolArray,
) -> None:
    """Mark where agents head against all lanes within reach, and there is one.

    All lanes count whose centreline passes within reach, not the nearest alone: inside an
    intersection the nearest of those that cross there says little.

    Args:
        states: float32 [R, N, T, 4].
        columns: int64 [E], where the agents stand in `states`.
        wanted: bool [R, E, T].
        segments: float64 [5, n], of all lanes: start x and y, vector x and y, height.
        offsets: int64 [P + 1], the segments of each piece of a lane.
        low, high: float64 [P, 2], the bounding box of each piece.
        reach: metres from an agent's centre to a centreline.
        height_reach: metres between their heights, so that a bridge is another road.
        limit: cosine of the angle between heading and lane from which on an agent is against it.
        against: bool [R, E, T], written; False where not wanted.
    """
    n_rollouts, n_agents, n_steps = wanted.shape
    n_pieces = len(offsets) - 1
    # What the agent can reach in any rollout, and in the next second of this one.
    ever, near = np.empty(n_pieces + 1, np.int64), np.empty(n_pieces + 1, np.int64)
    for a in range(n_agents):
        x_low, x_high, y_low, y_high = np.inf, -np.inf, np.inf, -np.inf
        for r in range(n_rollouts):
            x0, x1, y0, y1 = _bounds(states[r, columns[a]], wanted[r, a])
            x_low, x_high = min(x_low, x0), max(x_high, x1)
            y_low, y_high = min(y_low, y0), max(y_high, y1)
        n_ever = 0
        for p in range(n_pieces):
            ever[n_ever] = p
            n_ever += _within(x_low, x_high, y_low, y_high, p, low, high, reach)
        for r in range(n_rollouts):
            own = states[r, columns[a]]
            for begin in range(0, n_steps, _STEPS_AT_ONCE):
                end = min(begin + _STEPS_AT_ONCE, n_steps)
                against[r, a, begin:end] = False
                x0, x1, y0, y1 = _bounds(own[begin:end], wanted[r, a, begin:end])
                n_near = 0
                for p in ever[:n_ever]:
                    near[n_near] = p
                    n_near += _within(x0, x1, y0, y1, p, low, high, reach)
                # The piece that the agent went along with a step ago is looked at first.
                first = 0
                for t in range(begin, end):
                    if not wanted[r, a, t]:
                        continue
                    on_lane = along = False
                    for k in range(n_near):
                        place = first if k == 0 else k - (k <= first)
                        p = near[place]
                        there, along = _look_at_piece(
                            own[t], segments, offsets[p], offsets[p + 1],
                            reach, height_reach, limit,
                        )  # fmt: skip
                        on_lane |= there
                        if along:
                            first = place
                            break
                    against[r, a, t] = on_lane and not along


@kernel
def pairwise_distances(
    states: Float32Array, columns: Int64Array, counted: BoolArray, distances: Float64Array
) -> None:
    """Fill `distances` with the mean distance of two rollouts of an agent, over all pairs of them.

    Args:
        states: float32 [R, N, T, 4].
        columns: int64 [E], where the agents stand in `states`.
        counted: bool [E, T].
        distances: float64 [E, T], written, metres on the plane; NaN where not counted, or of a
            single rollout.
    """
    n_rollouts = len(states)
    n_pairs = n_rollouts * (n_rollouts - 1) // 2
    n_agents, n_steps = counted.shape
    for a in range(n_agents):
        distances[a, :] = 0.0
        for r in range(n_rollouts):
            one = states[r, columns[a]]
            for s in range(r):
                other = states[s, columns[a]]
                for t in range(n_steps):
                    dx = np.float64(one[t, 0]) - np.float64(other[t, 0])
                    dy = np.float64(one[t, 1]) - np.float64(other[t, 1])
                    distances[a, t] += math.sqrt(dx * dx + dy * dy)
        for t in range(n_steps):
            distances[a, t] = distances[a, t] / n_pairs if counted[a, t] and n_pairs else np.nan
