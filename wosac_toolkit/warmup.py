"""Compile the kernels ahead of the first score.

Numba compiles a kernel when it is first called and keeps the result in a cache on disk, from where
later processes load it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.behaviour import measure_behaviour
from wosac_toolkit.challenge import CHALLENGES, SCENARIO_GEN
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.rollouts import load_rollouts
from wosac_toolkit.io.scenarios import index_scenarios, read_scenario, write_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.kernels.jit import all_kernels
from wosac_toolkit.metric import score_scenario
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.synthetic import generate_scenarios


def warm_up() -> None:
    """Write, read, simulate, score and measure a synthetic scene, which calls every kernel."""
    with TemporaryDirectory() as folder:
        write_scenarios(folder, generate_scenarios(1, seed=0), 1)
        (record,) = index_scenarios(folder).values()
        scenario = read_scenario(record)
        rollouts = simulate_baseline(scenario, "constant_velocity", n_rollouts=2)
        write_npz(folder, rollouts)
        for loaded in load_rollouts(folder):
            for challenge in CHALLENGES:
                score_scenario(scenario, loaded, challenge)
        shard = Path(folder) / "warmup.binproto"
        write_submission(shard, [_generated(scenario)], SubmissionMetadata())
        for generated in load_rollouts(shard):
            score_scenario(scenario, generated, SCENARIO_GEN)
        measure_behaviour(scenario, simulate_baseline(scenario, "idm", n_rollouts=2))


def _generated(scenario: Scenario) -> Rollouts:
    """The log as a rollout of the Scenario Generation challenge."""
    tracks, rows = scenario.tracks, scenario.sim_agents()
    states = np.concatenate([tracks.position[rows], tracks.heading[rows, :, None]], axis=2)
    return Rollouts(
        scenario.scenario_id, tracks.object_ids[rows], states[None], sizes=tracks.size[None, rows]
    )


def cache_files() -> list[Path]:
    """The files in which numba keeps the compiled kernels of this package."""
    # The folder of a module's cache holds nothing of other packages.
    folders = {Path(kernel.stats.cache_path) for kernel in all_kernels()}
    return sorted(
        path for folder in folders for kind in ("*.nbi", "*.nbc") for path in folder.glob(kind)
    )
