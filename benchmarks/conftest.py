"""Inputs of the pytest-benchmark suites: `pytest benchmarks`.

Real scenes with 32 rollouts each where WOSAC_SHARED or ../shared has them, else synthetic ones;
the header of the report says which.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import scenes

from wosac_toolkit import score_scenario
from wosac_toolkit.features import PreparedScene, prepare_scene
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Scenario


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """A scene and its rollouts, in memory and prepared, with all kernels compiled for them."""

    scenario: Scenario
    rollouts: Rollouts
    scene: PreparedScene


def pytest_report_header() -> str:
    real = (scenes.SHARED / "womd").is_dir()
    return f"scenes: {'real WOMD' if real else 'SYNTHETIC, not WOMD'}, 32 rollouts each"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> scenes.Dataset:
    return scenes.find_dataset(None, tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def cases(dataset: scenes.Dataset) -> dict[str, Case]:
    """The scene of the official sample submission, one of median size and the densest."""
    by_size = sorted(scenes.scorable(dataset), key=lambda s: len(s.sim_agents()))
    chosen = {"median": by_size[len(by_size) // 2], "densest": by_size[-1]}
    found = {name: (scenario, scenes.simulate(scenario)) for name, scenario in chosen.items()}
    submission = scenes.official_submission()
    for scenario in by_size:
        if submission is not None and scenario.scenario_id == submission.scenario_id:
            found["submission"] = scenario, submission
    for scenario, rollouts in found.values():
        score_scenario(scenario, rollouts, threads=2)
    return {
        name: Case(scenario, rollouts, prepare_scene(scenario))
        for name, (scenario, rollouts) in found.items()
    }


@pytest.fixture(params=["submission", "median", "densest"])
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    if request.param not in cases:
        pytest.skip("the official sample submission is not at hand")
    return cases[request.param]
