"""Small submissions for the tests of checking and packing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario

OFFICIAL = Path(__file__).parent / "official"

RECORDED = {
    "sim_agents": ("2025", OFFICIAL),
    "scenario_gen": ("scenario_gen_2025", OFFICIAL / "scenario_gen"),
}
"""What `check_pack.py` calls a challenge -> its name, and where its recorded scenes are."""

METADATA = SubmissionMetadata(
    account_name="team@example.org",
    unique_method_name="straight on",
    authors=("A. Author", "Ö. Other"),
    affiliation="somewhere",
    description="Goes straight on.",
    method_link="https://example.org/straight",
    uses_lidar_data=False,
    uses_camera_data=False,
    uses_public_model_pretraining=False,
    num_model_parameters="7M",
    acknowledge_complies_with_closed_loop_requirement=True,
)


def some_scenes(make_scenario: Callable[..., Scenario], n_steps: int = 91) -> list[Scenario]:
    """Three scenes, far from the origin, with different numbers of vehicles."""
    return [
        make_scenario(scenario_id=name, n_tracks=n, n_steps=n_steps, origin=(9000.0, -4000.0))
        for name, n in (("a0", 2), ("b1", 3), ("c2", 4))
    ]


def write_scenes(folder: Path, scenes: Sequence[Scenario]) -> Path:
    write_scenarios(folder, scenes, 1)
    return folder


def straight_on(scenario: Scenario, seed: int = 0) -> Rollouts:
    """32 rollouts of 80 steps, each a little different from the others."""
    rows, now = scenario.sim_agents(), scenario.current_time_index
    tracks = scenario.tracks
    time = 0.1 * np.arange(1, 81)
    noise = np.random.default_rng(seed).normal(size=(32, len(rows), 1))
    states = np.zeros((32, len(rows), 80, 4))
    states[..., :3] = tracks.position[rows, now, None]
    states[..., 0] += (5 + 0.1 * noise) * time
    states[..., 3] = 0.01 * noise * time
    return Rollouts(scenario.scenario_id, tracks.object_ids[rows], states.astype(np.float32))


def replaced(rollouts: Rollouts, states: np.ndarray) -> Rollouts:
    return dataclasses.replace(rollouts, states=states.astype(np.float32))


def write_recorded(source: Path, folder: Path) -> Path:
    """The recorded scenes of `tests/official` with 32 rollouts: theirs, again and again."""
    folder.mkdir()
    for path in sorted(source.glob("*.npz")):
        if path.name.endswith(".features.npz"):
            continue
        with np.load(path) as bundle:
            again = np.arange(32) % len(bundle["states"])
            arrays = {
                name: bundle[name][again]
                for name in ("states", "sizes", "object_types")
                if name in bundle
            }
            write_npz(folder, Rollouts(str(bundle["scenario_id"]), bundle["object_ids"], **arrays))
    return folder
