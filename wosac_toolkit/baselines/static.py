"""Nobody moves: what the metric pays for not colliding, not leaving the road and nothing else."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.baselines.policy import N_STEPS
from wosac_toolkit.scenario import Float32Array, Scenario


def static(scenario: Scenario, n_rollouts: int, rng: np.random.Generator) -> Float32Array:
    """The current position and heading held, whatever the speed; no noise."""
    tracks, rows, now = scenario.tracks, scenario.sim_agents(), scenario.current_time_index
    pose = np.concatenate([tracks.position[rows, now], tracks.heading[rows, now, None]], axis=1)
    shape = n_rollouts, len(rows), N_STEPS, 4
    return np.broadcast_to(pose.astype(np.float32)[:, None], shape).copy()
