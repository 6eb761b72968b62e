"""Time to collision with the object ahead (`interaction_features`).

An agent follows another if that one lies ahead of its front, overlaps its straight trail sideways
and heads in about its direction. Assuming constant speeds, the time until the gap to the nearest
such object closes, at most 5 s.
"""

from __future__ import annotations

import math

import numpy as np

from wosac_toolkit.kernels.float32 import EXTREMELY_LARGE_DISTANCE, TWO, ZERO, sin_cos
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.kernels.kinematics import STEP_SECONDS
from wosac_toolkit.kernels.layout import size_at
from wosac_toolkit.scenario import BoolArray, Float32Array

MAXIMUM_TIME_TO_COLLISION = np.float32(5.0)
_MAX_HEADING_DIFFERENCE = np.float32(math.radians(75.0))
_MAX_HEADING_DIFFERENCE_FOR_SMALL_OVERLAP = np.float32(math.radians(10.0))
_SMALL_OVERLAP = np.float32(-0.5)
_NAN = np.float32(np.nan)


@inlined
def _planar_speed(x: Float32Array, y: Float32Array, r: int, t: int, n: int, lead: int) -> float:
    """Speed of agent `n` at the simulated step `t`; `x` and `y` start two steps earlier.

    From the step before to `lead` steps after; NaN where there is none, as in the official code.
    """
    if t + 2 + lead >= x.shape[1]:
        return _NAN
    n_steps = np.float32(1 + lead)
    dx = (x[r, t + 2 + lead, n] - x[r, t + 1, n]) / n_steps
    dy = (y[r, t + 2 + lead, n] - y[r, t + 1, n]) / n_steps
    return np.sqrt(dx * dx + dy * dy) / STEP_SECONDS


@kernel
def times_to_collision(
    x: Float32Array,
    y: Float32Array,
    heading: Float32Array,
    length: Float32Array,
    width: Float32Array,
    valid: BoolArray,
    lead: int,
    times: Float32Array,
) -> None:
    """Fill `times` for the first E of N agents.

    Two oddities of the official code: headings are subtracted without wrapping, so that two
    parallel agents whose headings differ by a turn do not follow each other; and the agent's own
    validity does not matter, only the other's.

    Args:
        x, y: float32 [R, 2 + T, N], the last two logged steps and T simulated ones; NaN where
            there is no logged step, and then the first speed is NaN too.
        heading: float32 [R, T, N].
        length, width: float32 [N], or [R, T, N] where they change; not negative.
        valid: bool [T, N].
        lead: steps that speeds look ahead: 1 for central differences, 0 for those to the last step.
        times: float32 [R, E, T], written, in seconds.
    """
    n_rollouts, n_steps, n_agents = heading.shape
    n_evaluated = times.shape[1]
    front_gap = np.empty(n_agents, np.float32)
    side_gap = np.empty(n_agents, np.float32)
    turn = np.empty(n_agents, np.float32)
    can_follow = np.empty(n_agents, np.bool_)
    half_lengths, half_widths = length / TWO, width / TWO
    # More than a corner can lie off the centre in any direction; a bound, so rounding up is safe.
    reaches = half_lengths + half_widths + np.float32(1e-3)
    candidates = np.empty(n_agents, np.int64)
    for r in range(n_rollouts):
        for t in range(n_steps):
            for e in range(n_evaluated):
                yaw = heading[r, t, e]
                sine, cosine = sin_cos(-yaw)
                cx, cy = x[r, t + 2, e], y[r, t + 2, e]
                own_length = size_at(half_lengths, r, t, e)
                own_width = size_at(half_widths, r, t, e)
                # What is cheap and necessary first: the offsets subtracted below are positive.
                n_candidates = 0
                for n in range(n_agents):
                    dx, dy = x[r, t + 2, n] - cx, y[r, t + 2, n] - cy
                    front = (cosine * dx - sine * dy) - own_length
                    side = abs(sine * dx + cosine * dy) - own_width
                    difference = abs(heading[r, t, n] - yaw)
                    front_gap[n], side_gap[n], turn[n] = front, side, difference
                    possible = (front > ZERO) & (side < size_at(reaches, r, t, n))
                    possible &= (difference <= _MAX_HEADING_DIFFERENCE) & valid[t, n]
                    can_follow[n] = possible
                    n_candidates += possible
                if n_candidates == 0:
                    times[r, e, t] = MAXIMUM_TIME_TO_COLLISION
                    continue
                # Counting without a branch is faster than guessing each one right.
                count = 0
                for n in range(n_agents):
                    candidates[count] = n
                    count += can_follow[n]
                nearest = EXTREMELY_LARGE_DISTANCE
                ahead = -1
                for n in candidates[:count]:
                    if front_gap[n] - size_at(reaches, r, t, n) > nearest:
                        continue
                    sine_turn, cosine_turn = sin_cos(turn[n])
                    sine_turn, cosine_turn = abs(sine_turn), abs(cosine_turn)
                    half_length = size_at(half_lengths, r, t, n)
                    half_width = size_at(half_widths, r, t, n)
                    long_offset = half_length * cosine_turn + half_width * sine_turn
                    side_offset = half_length * sine_turn + half_width * cosine_turn
                    gap = front_gap[n] - long_offset
                    overlap = side_gap[n] - side_offset
                    if (
                        gap > ZERO
                        and overlap < ZERO
                        and (
                            overlap < _SMALL_OVERLAP
                            or turn[n] <= _MAX_HEADING_DIFFERENCE_FOR_SMALL_OVERLAP
                        )
                        and gap < nearest
                    ):
                        nearest = gap
                        ahead = n
                time = MAXIMUM_TIME_TO_COLLISION
                if ahead >= 0:
                    closing = _planar_speed(x, y, r, t, e, lead) - _planar_speed(
                        x, y, r, t, ahead, lead
                    )
                    if closing > ZERO:
                        time = min(nearest / closing, MAXIMUM_TIME_TO_COLLISION)
                times[r, e, t] = time
