"""What a policy is, and what it may know of the agents when it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wosac_toolkit.scenario import Float32Array, Float64Array, Int64Array, Scenario

N_STEPS = 80
STEP_SECONDS = 0.1

#: A policy takes a scene, the number R of rollouts and a generator of its own, and returns states
#: float32 [R, N, 80, 4] of the N sim agents in the scene's order: x, y, z, heading.
Policy = Callable[[Scenario, int, np.random.Generator], Float32Array]

STANDING = 0.3  # m/s; slower is a sensor's jitter
_HISTORY = 5  # steps back at most for differences
_FASTEST_TURN = 0.8  # rad/s


@dataclass(frozen=True, slots=True)
class CurrentState:
    """The N sim agents at the current step; what stands has no speed and no turn rate.

    Attributes:
        position: float64 [N, 3].
        heading: float64 [N], of the box.
        speed: float64 [N], m/s.
        course: float64 [N], direction of travel.
        turn_rate: float64 [N], rad/s.
    """

    position: Float64Array
    heading: Float64Array
    speed: Float64Array
    course: Float64Array
    turn_rate: Float64Array

    def of(self, agents: Int64Array) -> CurrentState:
        """The state of some of the agents."""
        return CurrentState(*(getattr(self, name)[agents] for name in self.__slots__))


def current_state(scenario: Scenario) -> CurrentState:
    """Where the sim agents are, and how they move, at the scene's current step.

    The velocity is the logged one; where the record has none (zero or not finite), the mean over
    the last half second of valid history. The turn rate is the mean over that time.
    """
    tracks, now = scenario.tracks, scenario.current_time_index
    rows = scenario.sim_agents()
    position = tracks.position[rows, now]
    heading = tracks.heading[rows, now].astype(np.float64)
    velocity = tracks.velocity[rows, now].astype(np.float64)

    # The earliest valid step of the last few; the current one where there is no other.
    first = max(now - _HISTORY, 0)
    before = first + tracks.valid[rows, first : now + 1].argmax(axis=1)
    elapsed = np.maximum(now - before, 1) * STEP_SECONDS
    moved = (position - tracks.position[rows, before])[:, :2] / elapsed[:, None]
    missing = ~np.isfinite(velocity).all(axis=1) | (velocity == 0).all(axis=1)
    velocity = np.where(missing[:, None], moved, velocity)
    turned = heading - tracks.heading[rows, before]
    turn_rate = ((turned + np.pi) % (2 * np.pi) - np.pi) / elapsed

    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    stands = speed < STANDING
    return CurrentState(
        position=position,
        heading=heading,
        speed=np.where(stands, 0.0, speed),
        course=np.where(stands, heading, np.arctan2(velocity[:, 1], velocity[:, 0])),
        turn_rate=np.where(stands, 0.0, np.clip(turn_rate, -_FASTEST_TURN, _FASTEST_TURN)),
    )
