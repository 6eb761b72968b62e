"""The versions of the metric, as data: weights, bins and the rules of their year.

Each version is exact against the official release of its year:

========  ============================================  ========================================
name      official release                              its rules
========  ============================================  ========================================
``2025``  waymo-open-dataset-tf-2-12-0 1.6.5 to 1.6.7   time to collision of vehicles only,
                                                        red-light violations
``2024``  waymo-open-dataset-tf-2-12-0 1.6.4            time to collision of all objects
``2023``  waymo-open-dataset-tf-2-11-0 1.6.1            forward differences, sharp box corners,
                                                        2-D road edges
========  ============================================  ========================================

`scenario_gen_2025` is the metric of the sister challenge, Scenario Generation, in release 1.6.5 to
1.6.7: whole records are simulated, history and box sizes included, every simulated agent is
evaluated, and distributions are those of the scene, not of each agent.

Numbers are those of the official `challenge_*_config.textproto` files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from wosac_toolkit.errors import WosacError
from wosac_toolkit.scenario import Float32Array

Bucket = Literal["kinematic", "interactive", "map_based"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram estimator over `[low, high]` with `n_bins` equal bins."""

    low: float
    high: float
    n_bins: int
    pseudocount: float = 0.1

    def edges(self) -> Float32Array:
        """The `n_bins + 1` edges, read-only, in float32 as `tf.linspace` makes them.

        The official code builds them from float32 limits as `low + i * step`, which is not what
        `numpy.linspace` rounds to: an edge can differ in its last bit, and a value on it would
        then fall into the other bin.
        """
        return _edges(self.low, self.high, self.n_bins)


@cache
def _edges(low: float, high: float, n_bins: int) -> Float32Array:
    step = (np.float32(high) - np.float32(low)) / np.float32(n_bins)
    edges: Float32Array = np.float32(low) + np.arange(n_bins + 1, dtype=np.float32) * step
    edges[-1] = high
    edges.flags.writeable = False
    return edges


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """The estimator of a yes-or-no feature: a histogram of two bins."""

    pseudocount: float = 0.001


@dataclass(frozen=True, slots=True)
class KernelDensity:
    """A Gaussian kernel density of this bandwidth; for versions of your own, no year uses it."""

    bandwidth: float


Estimator = Histogram | Bernoulli | KernelDensity


@dataclass(frozen=True, slots=True)
class Component:
    """One of the likelihoods of the metric, named as in `SimAgentMetrics`.

    Attributes:
        name: as in `SimAgentMetrics`, without `_likelihood`.
        bucket: the leaderboard's column it belongs to.
        estimator: how it estimates the simulated distribution.
        weight: in the meta-metric.
        pooled: one distribution for all agents of the scene (`aggregate_objects` of the official
            configuration), not one for each.
    """

    name: str
    bucket: Bucket
    estimator: Estimator
    weight: float
    pooled: bool = False

    @property
    def field(self) -> str:
        """Its field in `SimAgentMetrics`."""
        return f"{self.name}_likelihood"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One version of the metric.

    Attributes:
        name: what `--challenge` takes.
        official_release: the package whose numbers it reproduces.
        components: in the official order of the weighted sum.
        difference: how speeds come from positions, `central` or `forward` differences.
        corner_rounding: how far the corners of boxes are rounded, 0 (sharp) to 1 (capsule).
        road_edges: `stretched_3d` pairs a corner with the nearest edge in 3-D with heights
            stretched; `planar` ignores heights.
        ttc_vehicles_only: time to collision is scored for vehicles alone.
        reports_rates: the release reports simulated collision and off-road rates.
        n_rollouts: joint rollouts a scene that a submission holds.
        n_steps: simulated steps a rollout, at 10 Hz.
        current_time_index: the last logged step before the simulation; agents valid there are
            simulated.
        whole_record: the simulation covers the whole record, not its future alone, and gives boxes
            their sizes; all simulated agents are evaluated.
    """

    name: str
    official_release: str
    components: tuple[Component, ...]
    difference: Literal["central", "forward"] = "central"
    corner_rounding: float = 0.7
    road_edges: Literal["stretched_3d", "planar"] = "stretched_3d"
    ttc_vehicles_only: bool = False
    reports_rates: bool = True
    n_rollouts: int = 32
    n_steps: int = 80
    current_time_index: int = 10
    whole_record: bool = False

    @property
    def first_step(self) -> int:
        """The step of the record with which rollouts begin."""
        return 0 if self.whole_record else self.current_time_index + 1

    def component(self, name: str) -> Component | None:
        """The component called `name`, or None where this version has none."""
        return next((c for c in self.components if c.name == name), None)

    @property
    def has_traffic_lights(self) -> bool:
        """Whether red-light violations are part of this version."""
        return self.component("traffic_light_violation") is not None


def _components(
    kinematic: tuple[Histogram, Histogram, Histogram, Histogram],
    weights: dict[str, float],
) -> tuple[Component, ...]:
    speed, acceleration, angular_speed, angular_acceleration = kinematic
    rows: list[tuple[str, Bucket, Estimator]] = [
        ("linear_speed", "kinematic", speed),
        ("linear_acceleration", "kinematic", acceleration),
        ("angular_speed", "kinematic", angular_speed),
        ("angular_acceleration", "kinematic", angular_acceleration),
        ("distance_to_nearest_object", "interactive", Histogram(-5.0, 40.0, 10)),
        ("collision_indication", "interactive", Bernoulli()),
        ("time_to_collision", "interactive", Histogram(0.0, 5.0, 10)),
        ("distance_to_road_edge", "map_based", Histogram(-20.0, 40.0, 10)),
        ("offroad_indication", "map_based", Bernoulli()),
        ("traffic_light_violation", "map_based", Bernoulli()),
    ]
    return tuple(
        Component(name, bucket, estimator, weights[name])
        for name, bucket, estimator in rows
        if name in weights
    )


_KINEMATIC_2023 = (
    Histogram(0.0, 35.0, 10),
    Histogram(-15.0, 15.0, 10),
    Histogram(-31.5, 31.5, 10),
    Histogram(-31.5, 31.5, 10),
)
_KINEMATIC_2024 = (
    Histogram(0.0, 25.0, 10),
    Histogram(-12.0, 12.0, 11),
    Histogram(-0.628, 0.628, 11),
    Histogram(-3.14, 3.14, 11),
)
_WEIGHTS_2023 = {
    "linear_speed": 0.09,
    "linear_acceleration": 0.09,
    "angular_speed": 0.09,
    "angular_acceleration": 0.09,
    "distance_to_nearest_object": 0.09,
    "collision_indication": 0.18,
    "time_to_collision": 0.09,
    "distance_to_road_edge": 0.09,
    "offroad_indication": 0.18,
}
_WEIGHTS_2024 = {
    "linear_speed": 0.05,
    "linear_acceleration": 0.05,
    "angular_speed": 0.05,
    "angular_acceleration": 0.05,
    "distance_to_nearest_object": 0.10,
    "collision_indication": 0.25,
    "time_to_collision": 0.10,
    "distance_to_road_edge": 0.10,
    "offroad_indication": 0.25,
}
_WEIGHTS_2025 = {
    **_WEIGHTS_2024,
    "distance_to_road_edge": 0.05,
    "traffic_light_violation": 0.05,
}

#: The versions of the Sim Agents metric.
CHALLENGES: dict[str, Challenge] = {
    c.name: c
    for c in (
        Challenge(
            "2025",
            "waymo-open-dataset-tf-2-12-0 1.6.7",
            _components(_KINEMATIC_2024, _WEIGHTS_2025),
            ttc_vehicles_only=True,
        ),
        Challenge(
            "2024",
            "waymo-open-dataset-tf-2-12-0 1.6.4",
            _components(_KINEMATIC_2024, _WEIGHTS_2024),
        ),
        Challenge(
            "2023",
            "waymo-open-dataset-tf-2-11-0 1.6.1",
            _components(_KINEMATIC_2023, _WEIGHTS_2023),
            difference="forward",
            corner_rounding=0.0,
            road_edges="planar",
            reports_rates=False,
        ),
    )
}

SCENARIO_GEN = Challenge(
    "scenario_gen_2025",
    "waymo-open-dataset-tf-2-12-0 1.6.7",
    # The official configuration leaves the traffic lights out of the pooling.
    tuple(
        replace(component, pooled=component.name != "traffic_light_violation")
        for component in CHALLENGES["2025"].components
    ),
    ttc_vehicles_only=True,
    n_steps=91,
    whole_record=True,
)

#: All metrics by name: of Sim Agents, and of Scenario Generation.
ALL_CHALLENGES = {**CHALLENGES, SCENARIO_GEN.name: SCENARIO_GEN}

#: The components by name, in the official order; every version has these or fewer.
COMPONENTS = tuple(component.name for component in CHALLENGES["2025"].components)

#: The fields of `SimAgentMetrics` but for the scenario id, in its order.
METRIC_FIELDS = (
    "metametric",
    "average_displacement_error",
    "min_average_displacement_error",
    *(f"{name}_likelihood" for name in COMPONENTS),
    "simulated_collision_rate",
    "simulated_offroad_rate",
    "simulated_traffic_light_violation_rate",
)

#: The fields of `SimAgentsBucketedMetrics`, as the leaderboard shows them.
BUCKET_FIELDS = (
    "realism_meta_metric",
    "kinematic_metrics",
    "interactive_metrics",
    "map_based_metrics",
    "min_ade",
    "simulated_collision_rate",
    "simulated_offroad_rate",
    "simulated_traffic_light_violation_rate",
)


def get_challenge(challenge: str | int | Challenge) -> Challenge:
    """The version called `challenge` ("2025", 2024, ...); a `Challenge` is returned as it is.

    Raises:
        WosacError: there is no version of that name.
    """
    if isinstance(challenge, Challenge):
        return challenge
    try:
        return ALL_CHALLENGES[str(challenge)]
    except KeyError:
        raise WosacError(
            f"unknown challenge {challenge!r}", mend=f"one of {', '.join(ALL_CHALLENGES)}"
        ) from None
