"""Features to likelihoods (`sim_agents_metrics/estimators.py` and the first half of `metrics.py`).

Every component of the metric, histogram or Bernoulli, reduces to two tables of counts an agent: how
often the simulation falls into each bin, and how often the log does. The likelihood of the log is
then a sum over bins, and leaving a rollout out is a subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.challenge import Bernoulli, Challenge, Component
from wosac_toolkit.features import Features
from wosac_toolkit.kernels import histogram
from wosac_toolkit.scenario import BoolArray, Float64Array, Int64Array, ObjectType


@dataclass(frozen=True, eq=False, slots=True)
class LoggedCounts:
    """What the likelihoods need of the log, for the E evaluated agents.

    Attributes:
        counts: component name -> int64 [E, B], logged steps in each bin; for a Bernoulli component
            one count, that the thing happened at any valid step or not.
        valid: bool [E, T], validity of the log.
        is_vehicle: bool [E].
    """

    counts: dict[str, Int64Array]
    valid: BoolArray
    is_vehicle: BoolArray


def count_log(logged: Features, challenge: Challenge) -> LoggedCounts:
    """Sort the log's features into the bins of each component of `challenge`."""
    valid = np.ascontiguousarray(logged.valid[0])
    is_vehicle = logged.object_type[0] == ObjectType.VEHICLE
    # A difference is valid where the steps it is taken over are.
    difference = _central_and if challenge.difference == "central" else _forward_and
    speed_valid = difference(valid)
    acceleration_valid = difference(speed_valid)
    validity = {
        "linear_speed": speed_valid,
        "angular_speed": speed_valid,
        "linear_acceleration": acceleration_valid,
        "angular_acceleration": acceleration_valid,
        "time_to_collision": (
            valid & is_vehicle[:, None] if challenge.ttc_vehicles_only else valid
        ),
    }
    counts = {}
    for component in challenge.components:
        if isinstance(component.estimator, Bernoulli):
            happened = _indication(component, logged, valid, is_vehicle)[0]
            counts[component.name] = np.stack([~happened, happened], axis=1).astype(np.int64)
        else:
            table = np.empty((len(valid), component.estimator.n_bins), np.int64)
            histogram.count_logged(
                getattr(logged, component.name)[0],
                validity.get(component.name, valid),
                component.estimator.edges(),
                table,
            )
            counts[component.name] = table
    return LoggedCounts(counts=counts, valid=valid, is_vehicle=is_vehicle)


def count_simulation(
    simulated: Features, logged: LoggedCounts, challenge: Challenge
) -> dict[str, Int64Array]:
    """Component name -> int64 [R, E, B]: the steps of each rollout of each agent in each bin.

    All simulated steps count, those too at which the log is invalid; but a collision, or leaving
    the road, or running a red light counts only where the log is valid.
    """
    counts = {}
    for component in challenge.components:
        if isinstance(component.estimator, Bernoulli):
            happened = _indication(component, simulated, logged.valid, logged.is_vehicle)
            counts[component.name] = np.stack([~happened, happened], axis=2).astype(np.int64)
        else:
            values = getattr(simulated, component.name)
            table = np.empty((*values.shape[:2], component.estimator.n_bins), np.int64)
            histogram.count_simulated(values, component.estimator.edges(), table)
            counts[component.name] = table
    return counts


def log_likelihood_sums(
    simulated: Int64Array, logged: Int64Array, pseudocount: float
) -> Float64Array:
    """Sum over the logged steps of the log-likelihood of their bins, an agent: float64 [..., E].

    Args:
        simulated: int64 [..., E, B], counts summed over rollouts.
        logged: int64 [E, B].
        pseudocount: added to every bin of the simulation.
    """
    weights = simulated + pseudocount
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    result: Float64Array = np.einsum("...b,...b->...", logged, np.log(probabilities))
    return result


def indications(values: BoolArray, valid: BoolArray) -> BoolArray:
    """Whether something happened to an agent at any step at which its log is valid.

    Args:
        values: bool [S, E, T].
        valid: bool [E, T].

    Returns:
        bool [S, E].
    """
    result: BoolArray = np.any(values & valid, axis=2)
    return result


_PER_STEP = {
    "collision_indication": "collision_per_step",
    "offroad_indication": "offroad_per_step",
    "traffic_light_violation": "traffic_light_violation_per_step",
}


def _indication(
    component: Component, features: Features, valid: BoolArray, is_vehicle: BoolArray
) -> BoolArray:
    """The yes or no of a Bernoulli component, [S, E]; only vehicles can run a red light."""
    if component.name == "traffic_light_violation":
        valid = valid & is_vehicle[:, None]
    return indications(getattr(features, _PER_STEP[component.name]), valid)


def _central_and(valid: BoolArray) -> BoolArray:
    """True where both neighbours in time are; False at both ends. [E, T]."""
    result = np.zeros_like(valid)
    result[:, 1:-1] = valid[:, 2:] & valid[:, :-2]
    return result


def _forward_and(valid: BoolArray) -> BoolArray:
    """True where a step and the one before are; False at the first. [E, T]."""
    result = np.zeros_like(valid)
    result[:, 1:] = valid[:, 1:] & valid[:, :-1]
    return result
