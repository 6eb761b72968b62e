"""The random agent of the WOSAC paper (arXiv 2305.12032, section 5.1): the floor of the scale."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.baselines.policy import N_STEPS
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.scenario import Float32Array, Scenario

MEAN, SPREAD = 1.0, 0.1  # of x and y in metres and of the heading in radians


def random(scenario: Scenario, n_rollouts: int, rng: np.random.Generator) -> Float32Array:
    """Every state anew from a normal distribution beside the autonomous vehicle.

    The paper's words: x, y, heading ~ N(1.0, 0.1^2) in the AV's coordinate frame, for each agent
    and step. Its frame is the one at the current step; z, which the paper leaves open, is held.

    Raises:
        ScenarioError: the autonomous vehicle is not there at the current step.
    """
    tracks, now, sdc = scenario.tracks, scenario.current_time_index, scenario.sdc_track_index
    if not (0 <= sdc < len(tracks.valid) and tracks.valid[sdc, now]):
        raise ScenarioError(
            f"there is no autonomous vehicle (track {sdc}) at the current step to be random about",
            where=f"scenario {scenario.scenario_id}",
            mend="choose another policy, or fetch the record again",
        )
    rows = scenario.sim_agents()
    noise = rng.standard_normal((n_rollouts, len(rows), N_STEPS, 3), dtype=np.float32)
    x, y, turn = np.moveaxis(np.float32(MEAN) + np.float32(SPREAD) * noise, -1, 0)
    heading = float(tracks.heading[sdc, now])
    cosine, sine = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    states = np.empty((n_rollouts, len(rows), N_STEPS, 4), np.float32)
    states[..., 0] = tracks.position[sdc, now, 0] + (cosine * x - sine * y)
    states[..., 1] = tracks.position[sdc, now, 1] + (sine * x + cosine * y)
    states[..., 2] = tracks.position[rows, now, 2][:, None]
    states[..., 3] = heading + turn
    return states
