"""The logged future, as if it were a simulation: what a perfect replay scores."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.baselines.policy import N_STEPS
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.scenario import Float32Array, Scenario


def log(scenario: Scenario, n_rollouts: int, rng: np.random.Generator) -> Float32Array:
    """The logged future, the last valid state held where a step is not valid; no noise.

    Raises:
        ScenarioError: the record ends before the future does, as in the test split.
    """
    now = scenario.current_time_index
    if scenario.n_steps < now + 1 + N_STEPS:
        raise ScenarioError(
            f"there is no logged future to replay: {scenario.n_steps} steps, "
            f"{now + 1 + N_STEPS} are needed",
            where=f"scenario {scenario.scenario_id}",
            mend="choose another policy, or scenes of the training or validation split",
        )
    rows = scenario.sim_agents()
    future = slice(now, now + 1 + N_STEPS)
    valid = scenario.tracks.valid[rows, future]
    # Sim agents are valid at the current step, so there is always a last valid one.
    held = np.maximum.accumulate(np.where(valid, np.arange(N_STEPS + 1), 0), axis=1)[:, 1:]
    logged = np.concatenate(
        [
            scenario.tracks.position[rows, future],
            scenario.tracks.heading[rows, future, None],
        ],
        axis=-1,
    ).astype(np.float32)
    states = np.take_along_axis(logged, held[..., None], axis=1)
    return np.repeat(states[None], n_rollouts, axis=0)
