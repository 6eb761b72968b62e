"""Speeds and accelerations (`trajectory_features.compute_kinematic_features`)."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.kernels.float32 import TWO, ZERO, wrap_angle
from wosac_toolkit.kernels.jit import kernel
from wosac_toolkit.scenario import BoolArray, Float32Array

#: Seconds a step, in float32 as the official division has it.
STEP_SECONDS = np.float32(0.1)
_STEP_SECONDS_SQUARED = np.float32(0.1**2)
_NAN = np.float32(np.nan)


@kernel
def central_kinematics(
    x: Float32Array,
    y: Float32Array,
    z: Float32Array,
    heading: Float32Array,
    linear_speed: Float32Array,
    linear_acceleration: Float32Array,
    angular_speed: Float32Array,
    angular_acceleration: Float32Array,
) -> None:
    """Central differences, the rule since 2024; undefined steps at the end are NaN.

    Args:
        x, y, z, heading: float32 [R, E, 2 + T], the last two logged steps before the simulation
            and its T steps.
        linear_speed, linear_acceleration, angular_speed, angular_acceleration: float32 [R, E, T],
            written. The official result is NaN at the last step for speeds and at the last two for
            accelerations.
    """
    n_rollouts, n_agents, n_all = x.shape
    n_steps = n_all - 2
    speed = np.empty(n_all, np.float32)
    turn = np.empty(n_all, np.float32)
    for r in range(n_rollouts):
        for a in range(n_agents):
            speed[0] = turn[0] = _NAN
            speed[n_all - 1] = turn[n_all - 1] = _NAN
            for i in range(1, n_all - 1):
                dx = (x[r, a, i + 1] - x[r, a, i - 1]) / TWO
                dy = (y[r, a, i + 1] - y[r, a, i - 1]) / TWO
                dz = (z[r, a, i + 1] - z[r, a, i - 1]) / TWO
                speed[i] = np.sqrt((dx * dx + dy * dy) + dz * dz) / STEP_SECONDS
                dh = (heading[r, a, i + 1] - heading[r, a, i - 1]) / TWO
                # Wrapped as a difference over two steps, then halved again: the acute solution.
                turn[i] = wrap_angle(dh * TWO) / TWO
            for t in range(n_steps):
                i = t + 2
                linear_speed[r, a, t] = speed[i]
                angular_speed[r, a, t] = turn[i] / STEP_SECONDS
                if i + 1 < n_all:
                    linear_acceleration[r, a, t] = (
                        (speed[i + 1] - speed[i - 1]) / TWO / STEP_SECONDS
                    )
                    d2h = (turn[i + 1] - turn[i - 1]) / TWO
                    angular_acceleration[r, a, t] = (
                        wrap_angle(d2h * TWO) / TWO / _STEP_SECONDS_SQUARED
                    )
                else:
                    linear_acceleration[r, a, t] = _NAN
                    angular_acceleration[r, a, t] = _NAN


@kernel
def forward_kinematics(
    x: Float32Array,
    y: Float32Array,
    z: Float32Array,
    heading: Float32Array,
    linear_speed: Float32Array,
    linear_acceleration: Float32Array,
    angular_speed: Float32Array,
    angular_acceleration: Float32Array,
) -> None:
    """Differences to the step before, the rule of 2023. Arguments as `central_kinematics`.

    The angular acceleration is wrapped to [-pi, pi) though it is a difference of rad/s: so it was.
    """
    n_rollouts, n_agents, n_all = x.shape
    for r in range(n_rollouts):
        for a in range(n_agents):
            last_speed = last_turn = ZERO
            for i in range(1, n_all):
                dx = x[r, a, i] - x[r, a, i - 1]
                dy = y[r, a, i] - y[r, a, i - 1]
                dz = z[r, a, i] - z[r, a, i - 1]
                speed = np.sqrt((dx * dx + dy * dy) + dz * dz) / STEP_SECONDS
                turn = wrap_angle(heading[r, a, i] - heading[r, a, i - 1]) / STEP_SECONDS
                if i >= 2:
                    t = i - 2
                    linear_speed[r, a, t] = speed
                    angular_speed[r, a, t] = turn
                    linear_acceleration[r, a, t] = (speed - last_speed) / STEP_SECONDS
                    angular_acceleration[r, a, t] = wrap_angle(turn - last_turn) / STEP_SECONDS
                last_speed, last_turn = speed, turn


@kernel
def float32_sum(values: Float32Array) -> float:
    """Sum of float32 [n] in the order of Eigen's vectorised reduction, as `tf.reduce_sum` has it.

    Eight lanes; of long rows four packets at a time, each into lanes of its own; then what is left
    of the row. Displacements of hundreds of metres show the order in the fifth decimal.
    """
    n = len(values)
    lanes = np.zeros((4, 8), np.float32)
    start = 0
    if n >= 32:
        start = n // 32 * 32
        for j in range(start):
            lanes[j // 8 % 4, j % 8] += values[j]
        for p in range(1, 4):
            for k in range(8):
                lanes[0, k] += lanes[p, k]
    packed = start + (n - start) // 8 * 8
    for j in range(start, packed):
        lanes[0, j % 8] += values[j]
    rest = ZERO
    for j in range(packed, n):
        rest += values[j]
    s0 = lanes[0, 0] + lanes[0, 4]
    s1 = lanes[0, 1] + lanes[0, 5]
    s2 = lanes[0, 2] + lanes[0, 6]
    s3 = lanes[0, 3] + lanes[0, 7]
    return rest + ((s0 + s2) + (s1 + s3))


@kernel
def float32_means(values: Float32Array) -> Float32Array:
    """Means of the rows of float32 [m, n], as `tf.reduce_mean` rounds them."""
    means = np.empty(len(values), np.float32)
    for i in range(len(values)):
        means[i] = float32_sum(values[i]) / np.float32(values.shape[1])
    return means


@kernel
def displacement_errors(
    x: Float32Array,
    y: Float32Array,
    z: Float32Array,
    log_x: Float32Array,
    log_y: Float32Array,
    log_z: Float32Array,
    log_valid: BoolArray,
    n_valid: Float32Array,
    errors: Float32Array,
) -> None:
    """Average displacement error of each agent of each rollout, over the steps valid in the log.

    The official average also runs over the logged history, where the error is zero: with a full
    log it is 80/91 of the error over the future.

    Args:
        x, y, z: float32 [R, E, 2 + T], as for the kinematics.
        log_x, log_y, log_z: float32 [E, T], the logged future.
        log_valid: bool [E, H + T], validity over the H steps of history and the future.
        n_valid: float32 [E], the number of valid steps among H + T.
        errors: float32 [R, E], written.
    """
    n_rollouts, n_agents, n_all = x.shape
    n_steps = n_all - 2
    n_total = log_valid.shape[1]
    n_history = n_total - n_steps
    terms = np.zeros(n_total, np.float32)
    for r in range(n_rollouts):
        for a in range(n_agents):
            for t in range(n_steps):
                if log_valid[a, n_history + t]:
                    dx = x[r, a, t + 2] - log_x[a, t]
                    dy = y[r, a, t + 2] - log_y[a, t]
                    dz = z[r, a, t + 2] - log_z[a, t]
                    terms[n_history + t] = np.sqrt((dx * dx + dy * dy) + dz * dz)
                else:
                    terms[n_history + t] = ZERO
            errors[r, a] = float32_sum(terms) / n_valid[a]
