"""Tracks as SMART reads them: without gaps or heading glitches, at 2 Hz.

Arrays in, arrays out; the rules are those of CAT-K's pre-processing and tokenizer. Steps are 10 Hz
steps 0..90, the current one is 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.scenario import BoolArray, Float32Array, Float64Array, Int64Array

N_STEPS = 91
CURRENT_STEP = 10
TOKEN_STEPS = 5
"""10 Hz steps of a motion token."""

IN_RANGE = 150.0
"""Metres from the autonomous vehicle within which training trusts the logged tracks."""

_LARGEST_TURN = 1.5  # rad in 0.1 s; more is a glitch of the detector


@dataclass(frozen=True, eq=False, slots=True)
class Motion:
    """How A agents moved over the 91 steps; what is not valid means nothing.

    Attributes:
        position: float64 [A, 91, 3], metres.
        heading: float64 [A, 91], radians.
        velocity: float64 [A, 91, 2], m/s.
        valid: bool [A, 91].
    """

    position: Float64Array
    heading: Float64Array
    velocity: Float64Array
    valid: BoolArray


@dataclass(frozen=True, eq=False, slots=True)
class AgentStates:
    """The cleaned tracks of A agents at the 19 steps 0, 5, .., 90; 0 where not valid.

    Attributes:
        position: float32 [A, 19, 2], metres.
        heading: float32 [A, 19], radians, may leave [-pi, pi].
        valid: bool [A, 19].
    """

    position: Float32Array
    heading: Float32Array
    valid: BoolArray


def fill_gaps(motion: Motion) -> Motion:
    """Make every step from the first to the last valid one valid.

    Positions, velocities and unwrapped headings are interpolated linearly in time between the
    valid steps. Headings may so leave [-pi, pi]; no two consecutive ones are more than half a turn
    apart.
    """
    before, after = _neighbours(motion.valid)
    rows = np.arange(len(before))[:, None]
    weight = (np.arange(before.shape[1]) - before) / np.maximum(after - before, 1)

    def filled(values: Float64Array, weight: Float64Array) -> Float64Array:
        low = values[rows, before]
        return low + weight * (values[rows, after] - low)

    heading = np.unwrap(motion.heading[rows, before], axis=1)
    started = np.logical_or.accumulate(motion.valid, axis=1)
    goes_on = np.logical_or.accumulate(motion.valid[:, ::-1], axis=1)[:, ::-1]
    return Motion(
        position=filled(motion.position, weight[..., None]),
        heading=filled(heading, weight),
        velocity=filled(motion.velocity, weight[..., None]),
        valid=started & goes_on,
    )


def _neighbours(valid: BoolArray) -> tuple[Int64Array, Int64Array]:
    """The last valid step up to each step and the first from it on, int64 [A, T] each.

    Before the first valid step and after the last one, that one is both.
    """
    n_steps = valid.shape[1]
    steps = np.where(valid, np.arange(n_steps), -1)
    before = np.maximum.accumulate(steps, axis=1)
    after = np.minimum.accumulate(np.where(valid, steps, n_steps)[:, ::-1], axis=1)[:, ::-1]
    before = np.where(before < 0, np.minimum(after, n_steps - 1), before)
    after = np.where(after == n_steps, before, after)
    return before, after


def in_range(motion: Motion, sdc: int) -> BoolArray:
    """The valid steps less than 150 m from the autonomous vehicle at the same step, bool [A, 91].

    Where it is not valid itself, nothing is in range.

    Args:
        motion: the tracks, filled.
        sdc: the row of the autonomous vehicle.
    """
    near = distances(motion, sdc) < IN_RANGE
    steps: BoolArray = motion.valid & motion.valid[sdc] & near
    return steps


def distances(motion: Motion, sdc: int) -> Float64Array:
    """How far each agent is from the autonomous vehicle at each step, in space, [A, 91]."""
    apart: Float64Array = np.linalg.norm(motion.position - motion.position[sdc], axis=-1)
    return apart


def clean(motion: Motion) -> AgentStates:
    """Hold headings over glitches, let tracks begin at a token's start, and take the 2 Hz steps.

    A track is continued into the past, at constant velocity and heading, to the last multiple of
    5 steps before its first valid step; one that begins at the current step is given 5 steps, so
    that every agent that is valid now has a motion token.
    """
    heading = hold_glitches(motion.heading, motion.valid)
    first = np.argmax(motion.valid, axis=1)
    n_added = np.where(first == CURRENT_STEP, TOKEN_STEPS, first % TOKEN_STEPS)
    steps_before = first[:, None] - np.arange(0, motion.valid.shape[1], TOKEN_STEPS)
    added = (steps_before > 0) & (steps_before <= n_added[:, None])

    rows = np.arange(len(first))
    backwards = 0.1 * steps_before[..., None] * motion.velocity[rows, first][:, None]
    past = motion.position[rows, first, :2][:, None] - backwards
    valid = motion.valid[:, ::TOKEN_STEPS]
    position = np.where(added[..., None], past, motion.position[:, ::TOKEN_STEPS, :2])
    heading = np.where(added, heading[rows, first][:, None], heading[:, ::TOKEN_STEPS])
    valid = valid | added
    return AgentStates(
        position=np.where(valid[..., None], position, 0.0).astype(np.float32),
        heading=np.where(valid, heading, 0.0).astype(np.float32),
        valid=valid,
    )


def hold_glitches(heading: Float64Array, valid: BoolArray) -> Float64Array:
    """Where a heading leaps, keep the last one until the leap is undone.

    Of two consecutive valid steps the later takes the earlier's heading if they differ by more
    than 1.5 rad; the next step is then compared with the heading held.
    """
    both = valid[:, 1:] & valid[:, :-1]
    leaps = both & (np.abs(wrap(np.diff(heading, axis=1))) > _LARGEST_TURN)
    rows = np.flatnonzero(leaps.any(axis=1))
    if not len(rows):
        return heading
    held = heading[rows].copy()
    for step in range(heading.shape[1] - 1):
        leap = np.abs(wrap(held[:, step] - held[:, step + 1])) > _LARGEST_TURN
        leap &= both[rows, step]
        held[leap, step + 1] = held[leap, step]
    heading = heading.copy()
    heading[rows] = held
    return heading


def wrap(angle: Float64Array) -> Float64Array:
    """`angle` in [-pi, pi)."""
    wrapped: Float64Array = (angle + np.pi) % (2 * np.pi) - np.pi
    return wrapped
