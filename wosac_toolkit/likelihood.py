"""Features to likelihoods (`sim_agents_metrics/estimators.py` and the first half of `metrics.py`).

Every component of the metric, histogram or Bernoulli, reduces to two tables of counts an agent: how
often the simulation falls into each bin, and how often the log does. The likelihood of the log is
then a sum over bins, and leaving a rollout out is a subtraction. A kernel density fits in as well:
its bins are the logged steps, and in place of the simulation's counts stand log-densities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.challenge import Bernoulli, Challenge, Estimator, KernelDensity
from wosac_toolkit.features import Features
from wosac_toolkit.kernels import histogram, kernel_density
from wosac_toolkit.scenario import BoolArray, Float64Array, Int64Array, ObjectType

Tally = Int64Array | Float64Array


@dataclass(frozen=True, eq=False, slots=True)
class LoggedCounts:
    """What the likelihoods need of the log, for the E evaluated agents.

    Attributes:
        counts: component name -> int64 [E, B], logged steps in each bin; for a Bernoulli component
            one count, that the thing happened at any valid step or not.
        features: the features they come from.
        valid: bool [E, T], validity of the log.
        steps: component name -> bool [E, T], the logged steps that it looks at.
    """

    counts: dict[str, Int64Array]
    features: Features
    valid: BoolArray
    steps: dict[str, BoolArray]


def count_log(logged: Features, challenge: Challenge) -> LoggedCounts:
    """Sort the log's features into the bins of each component of `challenge`."""
    valid = np.ascontiguousarray(logged.valid[0])
    steps = _steps(valid, logged.object_type[0] == ObjectType.VEHICLE, challenge)
    counts = {}
    for component in challenge.components:
        name, estimator = component.name, component.estimator
        if isinstance(estimator, Bernoulli):
            happened = indications(getattr(logged, PER_STEP[name]), steps[name])[0]
            counts[name] = np.stack([~happened, happened], axis=1).astype(np.int64)
        elif isinstance(estimator, KernelDensity):
            counts[name] = steps[name].astype(np.int64)
        else:
            counts[name] = np.empty((len(valid), estimator.n_bins), np.int64)
            histogram.count_logged(
                getattr(logged, name)[0], steps[name], estimator.edges(), counts[name]
            )
    return LoggedCounts(counts=counts, features=logged, valid=valid, steps=steps)


def _steps(valid: BoolArray, is_vehicle: BoolArray, challenge: Challenge) -> dict[str, BoolArray]:
    """The logged steps that each component looks at, see `LoggedCounts.steps`."""
    # A difference is valid where the steps it is taken over are.
    difference = _central_and if challenge.difference == "central" else _forward_and
    speed = difference(valid)
    acceleration = difference(speed)
    of_vehicles = valid & is_vehicle[:, None]
    special = {
        "linear_speed": speed,
        "angular_speed": speed,
        "linear_acceleration": acceleration,
        "angular_acceleration": acceleration,
        "time_to_collision": of_vehicles if challenge.ttc_vehicles_only else valid,
        # The rate of violations, unlike the likelihood, counts agents of all types.
        "traffic_light_violation": of_vehicles,
    }
    return {c.name: special.get(c.name, valid) for c in challenge.components}


def count_simulation(
    simulated: Features, logged: LoggedCounts, challenge: Challenge
) -> dict[str, Tally]:
    """Component name -> int64 [R, E, B]: the steps of each rollout of each agent in each bin.

    Of a pooled component, each agent has those of all agents: what its log is measured by.

    All simulated steps count, those too at which the log is invalid; but a collision, or leaving
    the road, or running a red light counts only where the log is valid. For a kernel density,
    float64 [R, E, T]: log-densities of the logged steps.
    """
    tallies: dict[str, Tally] = {}
    for component in challenge.components:
        name, estimator = component.name, component.estimator
        if isinstance(estimator, Bernoulli):
            happened = indications(getattr(simulated, PER_STEP[name]), logged.steps[name])
            tallies[name] = np.stack([~happened, happened], axis=2).astype(np.int64)
        elif isinstance(estimator, KernelDensity):
            values, at = getattr(simulated, name), getattr(logged.features, name)[0]
            shape = values.shape
            if component.pooled:
                values, at = values.reshape(len(values), 1, -1), at.reshape(1, -1)
            densities = np.empty(values.shape, np.float64)
            kernel_density.log_densities(values, at, estimator.bandwidth, densities)
            tallies[name] = densities.reshape(shape)
            continue
        else:
            values = getattr(simulated, name)
            tallies[name] = np.empty((*values.shape[:2], estimator.n_bins), np.int64)
            histogram.count_simulated(values, estimator.edges(), tallies[name])
        if component.pooled:
            # In place: sums over a broadcast array run in another order.
            tallies[name][:] = tallies[name].sum(axis=1, keepdims=True)
    return tallies


def log_likelihood_sums(tally: Tally, logged: Int64Array, estimator: Estimator) -> Float64Array:
    """Sum over each agent's logged steps of their log-likelihoods under all rollouts, [E].

    Args:
        tally: [R, E, B] of `count_simulation`.
        logged: int64 [E, B] of `count_log`.
        estimator: of the component.
    """
    result: Float64Array = np.einsum("eb,eb->e", logged, log_probabilities(tally, estimator))
    return result


def log_probabilities(tally: Tally, estimator: Estimator) -> Float64Array:
    """Log-probability of each bin of each agent under all rollouts, [E, B]; see above."""
    if isinstance(estimator, KernelDensity):
        pooled: Float64Array = np.logaddexp.reduce(tally, axis=0) - np.log(len(tally))
        return pooled
    return _log_probabilities(tally.sum(axis=0), estimator.pseudocount)


def leave_one_out_sums(tally: Tally, logged: Int64Array, estimator: Estimator) -> Float64Array:
    """The same under all rollouts but one, for each of them: [R, E]."""
    if isinstance(estimator, KernelDensity):
        others = [np.delete(tally, r, axis=0) for r in range(len(tally))]
        pooled = np.stack([np.logaddexp.reduce(o, axis=0) - np.log(len(o)) for o in others])
    else:
        pooled = _log_probabilities(tally.sum(axis=0) - tally, estimator.pseudocount)
    result: Float64Array = np.einsum("eb,reb->re", logged, pooled)
    return result


def alone_sums(tally: Tally, logged: Int64Array, estimator: Estimator) -> Float64Array:
    """The same under each rollout alone: [R, E]."""
    if not isinstance(estimator, KernelDensity):
        tally = _log_probabilities(tally, estimator.pseudocount)
    result: Float64Array = np.einsum("eb,reb->re", logged, tally)
    return result


def _log_probabilities(counts: Tally, pseudocount: float) -> Float64Array:
    """Log-probabilities of bins [..., B] from their counts, each raised by `pseudocount`."""
    weights = counts + pseudocount
    result: Float64Array = np.log(weights / weights.sum(axis=-1, keepdims=True))
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


PER_STEP = {
    "collision_indication": "collision_per_step",
    "offroad_indication": "offroad_per_step",
    "traffic_light_violation": "traffic_light_violation_per_step",
}
"""Bernoulli component -> the feature that says at which steps the thing happens."""


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
