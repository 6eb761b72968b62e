"""Everybody goes on as now: with constant velocity, or with constant speed and turn rate.

Each rollout and agent draws once how it differs from that: a share of its speed, and an angle (or
a turn rate). The difference grows over the first second, so that there is no jump at the start.
"""

from __future__ import annotations

import numpy as np

from wosac_toolkit.baselines.policy import (
    N_STEPS,
    STEP_SECONDS,
    CurrentState,
    current_state,
)
from wosac_toolkit.scenario import Float32Array, Float64Array, Scenario

SPEED_NOISE = 0.1  # of the speed
COURSE_NOISE = 0.03  # rad
TURN_RATE_NOISE = 0.02  # rad/s
ONSET_SECONDS = 1.0


def constant_velocity(
    scenario: Scenario, n_rollouts: int, rng: np.random.Generator
) -> Float32Array:
    """Current velocity held, with noise on speed and direction; who stands stays."""
    return straight_on(current_state(scenario), n_rollouts, rng)


def constant_turn_rate(
    scenario: Scenario, n_rollouts: int, rng: np.random.Generator
) -> Float32Array:
    """Current speed and turn rate held, with noise on both; who stands stays."""
    state = current_state(scenario)
    noise = TURN_RATE_NOISE * rng.standard_normal((n_rollouts, len(state.speed)))
    return _roll_out(state, np.zeros_like(noise), state.turn_rate + noise, rng)


def straight_on(state: CurrentState, n_rollouts: int, rng: np.random.Generator) -> Float32Array:
    """States [R, N, 80, 4] of N agents that keep their velocity, see `constant_velocity`."""
    angle = COURSE_NOISE * rng.standard_normal((n_rollouts, len(state.speed)))
    return _roll_out(state, angle, np.zeros_like(angle), rng)


def _roll_out(
    state: CurrentState,
    angle: Float64Array,
    turn_rate: Float64Array,
    rng: np.random.Generator,
) -> Float32Array:
    """States [R, N, 80, 4] of agents that turn by `angle` [R, N] at first and by a rate always."""
    noise = SPEED_NOISE * rng.standard_normal(angle.shape)
    moves = state.speed > 0
    # Displacements stay below a few hundred metres: float32 until the position is added.
    ends = (np.arange(1, N_STEPS + 1) * STEP_SECONDS).astype(np.float32)
    middles = ends - np.float32(STEP_SECONDS / 2)

    def turned(at: Float32Array) -> Float32Array:
        bend = np.where(moves, angle, 0.0).astype(np.float32)[..., None]
        rate = np.where(moves, turn_rate, 0.0).astype(np.float32)[..., None]
        angles: Float32Array = bend * np.minimum(at / np.float32(ONSET_SECONDS), 1) + rate * at
        return angles

    share = noise.astype(np.float32)[..., None] * np.minimum(middles / ONSET_SECONDS, 1)
    step = (state.speed * STEP_SECONDS).astype(np.float32)[:, None] * np.maximum(1 + share, 0)
    course = state.course.astype(np.float32)[:, None] + turned(middles)
    states = np.empty((*angle.shape, N_STEPS, 4), np.float32)
    states[..., 0] = state.position[:, None, 0] + np.cumsum(step * np.cos(course), axis=-1)
    states[..., 1] = state.position[:, None, 1] + np.cumsum(step * np.sin(course), axis=-1)
    states[..., 2] = state.position[:, None, 2]
    states[..., 3] = state.heading[:, None] + turned(ends)
    return states
