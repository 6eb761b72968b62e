"""Simple simulators to compare with: `simulate_baseline` and the policies it knows.

A policy is a function, see `wosac_toolkit.baselines.policy.Policy`; a new one is written in a file
of its own and entered in `POLICIES`.
"""

from __future__ import annotations

import hashlib

import numpy as np

from wosac_toolkit.baselines.constant_motion import constant_turn_rate, constant_velocity
from wosac_toolkit.baselines.intelligent_driver import idm
from wosac_toolkit.baselines.log_replay import log
from wosac_toolkit.baselines.policy import Policy
from wosac_toolkit.baselines.random_agent import random
from wosac_toolkit.baselines.static import static
from wosac_toolkit.errors import ScenarioError, WosacError
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario

__all__ = ["POLICIES", "Policy", "simulate_baseline"]

POLICIES: dict[str, Policy] = {
    "log": log,
    "constant_velocity": constant_velocity,
    "constant_turn_rate": constant_turn_rate,
    "idm": idm,
    "static": static,
    "random": random,
}


def simulate_baseline(
    scenario: Scenario, policy: str, n_rollouts: int = 32, seed: int = 0
) -> Rollouts:
    """Simulate the eight seconds after a scene's current step with a simple policy.

    The noise depends on `seed` and the scenario's id alone, so scenes can be simulated in any
    order and by any number of workers.

    Args:
        scenario: 91 steps, or 11 as in the test split (not for `log`).
        policy: one of `POLICIES`.
        n_rollouts: R, at least 1.
        seed: of the noise, at least 0.

    Returns:
        Rollouts of all N sim agents, in the order of the scene's tracks: states [R, N, 80, 4].

    Raises:
        WosacError: an unknown policy, or a number out of its range.
        ScenarioError: the scene lacks its current step or, for `log`, its future.
    """
    if policy not in POLICIES:
        raise WosacError(f"unknown policy {policy!r}", mend=f"one of {', '.join(POLICIES)}")
    if n_rollouts < 1 or seed < 0:
        raise WosacError(f"{n_rollouts} rollouts with seed {seed}: at least 1 and 0 are needed")
    if not 0 <= scenario.current_time_index < scenario.n_steps:
        raise ScenarioError(
            f"its current step {scenario.current_time_index} is not among its "
            f"{scenario.n_steps} steps",
            where=f"scenario {scenario.scenario_id}",
            mend="the record is damaged; fetch it again",
        )
    digest = hashlib.blake2b(scenario.scenario_id.encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    states = POLICIES[policy](scenario, n_rollouts, rng)
    object_ids = scenario.tracks.object_ids[scenario.sim_agents()]
    return Rollouts(scenario.scenario_id, object_ids, states)
