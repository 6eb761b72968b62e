"""The realism meta-metric of the Waymo Open Sim Agents Challenge, exact and fast.

>>> from wosac_toolkit import load_rollouts, load_scenarios, score_scenario
>>> scenarios = {s.scenario_id: s for s in load_scenarios("womd/validation")}  # doctest: +SKIP
>>> for rollouts in load_rollouts("rollouts/"):  # doctest: +SKIP
...     print(score_scenario(scenarios[rollouts.scenario_id], rollouts).metametric)

Names are loaded when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wosac_toolkit.baselines import simulate_baseline as simulate_baseline
    from wosac_toolkit.challenge import ALL_CHALLENGES as ALL_CHALLENGES
    from wosac_toolkit.challenge import CHALLENGES as CHALLENGES
    from wosac_toolkit.challenge import Challenge as Challenge
    from wosac_toolkit.compare import compare_runs as compare_runs
    from wosac_toolkit.compare import read_models as read_models
    from wosac_toolkit.errors import FormatError as FormatError
    from wosac_toolkit.errors import RolloutsError as RolloutsError
    from wosac_toolkit.errors import ScenarioError as ScenarioError
    from wosac_toolkit.errors import WosacError as WosacError
    from wosac_toolkit.features import Features as Features
    from wosac_toolkit.features import compute_features as compute_features
    from wosac_toolkit.io.rollouts import load_rollouts as load_rollouts
    from wosac_toolkit.io.scenarios import load_scenarios as load_scenarios
    from wosac_toolkit.metric import ScenarioScore as ScenarioScore
    from wosac_toolkit.metric import score_scenario as score_scenario
    from wosac_toolkit.reward import MetaScoreReward as MetaScoreReward
    from wosac_toolkit.reward import get_reward as get_reward
    from wosac_toolkit.rollouts import Rollouts as Rollouts
    from wosac_toolkit.scenario import Scenario as Scenario
    from wosac_toolkit.synthetic import generate_scenarios as generate_scenarios

_MODULE_OF = {
    "ALL_CHALLENGES": "challenge",
    "CHALLENGES": "challenge",
    "Challenge": "challenge",
    "Features": "features",
    "FormatError": "errors",
    "MetaScoreReward": "reward",
    "Rollouts": "rollouts",
    "RolloutsError": "errors",
    "Scenario": "scenario",
    "ScenarioError": "errors",
    "ScenarioScore": "metric",
    "WosacError": "errors",
    "compare_runs": "compare",
    "compute_features": "features",
    "generate_scenarios": "synthetic",
    "get_reward": "reward",
    "load_rollouts": "io.rollouts",
    "load_scenarios": "io.scenarios",
    "read_models": "compare",
    "score_scenario": "metric",
    "simulate_baseline": "baselines",
}
__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
