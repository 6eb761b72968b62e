"""Likelihoods to the realism meta-metric (`sim_agents_metrics/metrics.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np

from wosac_toolkit.challenge import BUCKET_FIELDS, METRIC_FIELDS, Challenge, get_challenge
from wosac_toolkit.errors import RolloutsError
from wosac_toolkit.features import (
    PreparedScene,
    logged_features,
    prepare_scene,
    simulated_features,
)
from wosac_toolkit.kernels.kinematics import float32_means
from wosac_toolkit.likelihood import (
    LoggedCounts,
    Tally,
    count_log,
    count_simulation,
    indications,
    leave_one_out_sums,
    log_likelihood_sums,
)
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int8Array,
    Int64Array,
    Scenario,
)


@dataclass(frozen=True, eq=False, slots=True)
class AgentScores:
    """The E evaluated agents of a scene one by one.

    Attributes:
        object_ids: int64 [E], sorted; in scenario generation in the record's order.
        object_types: int8 [E].
        log_likelihoods: component name -> float64 [E], mean over the agent's valid logged steps;
            NaN where it has none. Weighted by `n_valid_steps` their mean over agents is the
            logarithm of the scene's likelihood.
        n_valid_steps: component name -> int64 [E].
        average_displacement_error: float64 [E], metres, mean over rollouts.
        collision_rate, offroad_rate: float64 [E], share of the rollouts.
        traffic_light_violation_rate: float64 [E], or None where the version has no such feature.
    """

    object_ids: Int64Array
    object_types: Int8Array
    log_likelihoods: dict[str, Float64Array]
    n_valid_steps: dict[str, Int64Array]
    average_displacement_error: Float64Array
    collision_rate: Float64Array
    offroad_rate: Float64Array
    traffic_light_violation_rate: Float64Array | None


@dataclass(frozen=True, eq=False, slots=True)
class ScenarioScore:
    """The score of one scene: the official `SimAgentMetrics` by its own field names.

    A field is None where the version has none, and NaN where the official result is: see
    `non_finite`. Displacement errors are in metres, rates are shares of rollouts and agents.
    """

    scenario_id: str
    challenge: str
    metametric: float
    average_displacement_error: float
    min_average_displacement_error: float
    linear_speed_likelihood: float
    linear_acceleration_likelihood: float
    angular_speed_likelihood: float
    angular_acceleration_likelihood: float
    distance_to_nearest_object_likelihood: float
    collision_indication_likelihood: float
    time_to_collision_likelihood: float
    distance_to_road_edge_likelihood: float
    offroad_indication_likelihood: float
    traffic_light_violation_likelihood: float | None
    simulated_collision_rate: float | None
    simulated_offroad_rate: float | None
    simulated_traffic_light_violation_rate: float | None
    kinematic_metrics: float
    interactive_metrics: float
    map_based_metrics: float
    n_rollouts: int
    n_sim_agents: int
    n_evaluated_agents: int
    agents: AgentScores

    @property
    def realism_meta_metric(self) -> float:
        """The meta-metric, by its name on the leaderboard."""
        return self.metametric

    @property
    def min_ade(self) -> float:
        """The smallest displacement error of a rollout, by its name on the leaderboard."""
        return self.min_average_displacement_error

    def metrics(self) -> dict[str, float | None]:
        """The official fields in their order."""
        return {name: getattr(self, name) for name in METRIC_FIELDS}

    def buckets(self) -> dict[str, float | None]:
        """The leaderboard's columns, the official `SimAgentsBucketedMetrics`."""
        return {name: getattr(self, name) for name in BUCKET_FIELDS}

    def non_finite(self) -> dict[str, str]:
        """Field -> why the official result is not a number, for the fields where it is not."""
        reasons = {}
        for name, value in self.metrics().items():
            if value is None or isfinite(value):
                continue
            component = name.removesuffix("_likelihood")
            if name == "metametric":
                reasons[name] = "a component is not a number"
            elif (
                component == "time_to_collision" and self.agents.n_valid_steps[component].sum() == 0
            ):
                reasons[name] = "no evaluated vehicle has a valid logged step"
            elif component in self.agents.n_valid_steps:
                reasons[name] = "no evaluated agent has enough valid logged steps"
            else:
                reasons[name] = "a simulated state is not a number"
        return reasons


def bucket_metrics(
    likelihoods: Mapping[str, float], challenge: str | Challenge
) -> dict[str, float]:
    """Bucket name -> weighted mean of its likelihoods (`aggregate_metrics_to_buckets`).

    Works on the likelihoods of one scene and on their means over many.
    """
    result = {}
    for bucket in ("kinematic", "interactive", "map_based"):
        members = [c for c in get_challenge(challenge).components if c.bucket == bucket]
        weighted = sum(c.weight * likelihoods[c.field] for c in members)
        result[f"{bucket}_metrics"] = weighted / sum(c.weight for c in members)
    return result


def score_scenario(
    scenario: Scenario,
    rollouts: Rollouts,
    challenge: str | Challenge = "2025",
    threads: int = 1,
) -> ScenarioScore:
    """Score rollouts of a scene as the official `compute_scenario_metrics_for_bundle` does.

    Args:
        scenario: the scene, with its logged future.
        rollouts: any number of joint rollouts of all its simulated agents; the challenges ask for
            32, which is not checked here.
        challenge: the version of the metric, "2025", "2024" or "2023"; or "scenario_gen_2025", the
            metric of the Scenario Generation challenge, whose rollouts hold the whole record and
            box sizes.
        threads: to spread the rollouts over; the score does not depend on it.

    Raises:
        ScenarioError: the scene cannot be scored.
        RolloutsError: the rollouts do not fit the scene, or hold a value that is not finite.
    """
    scene = prepare_scene(scenario, challenge)
    return score_rollouts(
        scene, count_log(logged_features(scene), scene.challenge), rollouts, threads
    )


def score_rollouts(
    scene: PreparedScene, logged: LoggedCounts, rollouts: Rollouts, threads: int = 1
) -> ScenarioScore:
    """Score rollouts of a prepared scene whose log is counted; see `score_scenario`."""
    return score_evidence(scene, logged, gather_evidence(scene, logged, rollouts, threads))


@dataclass(frozen=True, eq=False, slots=True)
class Evidence:
    """All that a score needs of R rollouts of a scene: what rewards share out among them.

    Attributes:
        tallies: see `count_simulation`.
        displacement: float32 [R, E], average displacement errors.
        collided, offroad: bool [R, E], at any step at which the log is valid.
        ran_red: the same, or None where the version has no such feature.
    """

    tallies: dict[str, Tally]
    displacement: Float32Array
    collided: BoolArray
    offroad: BoolArray
    ran_red: BoolArray | None

    def rollout_displacement(self) -> Float64Array:
        """Average displacement error of each rollout, [R], rounded as the official mean is."""
        means: Float64Array = float32_means(self.displacement).astype(np.float64)
        return means


def gather_evidence(
    scene: PreparedScene, logged: LoggedCounts, rollouts: Rollouts, threads: int = 1
) -> Evidence:
    """The evidence of all rollouts; see `score_scenario`."""
    if not np.isfinite(rollouts.states).all():
        raise RolloutsError(
            "a simulated state is not finite",
            where=f"scenario {scene.scenario_id}",
            mend="`check_rollouts` names rollout and object",
        )
    simulated = simulated_features(scene, rollouts, threads)
    red = simulated.traffic_light_violation_per_step
    return Evidence(
        tallies=count_simulation(simulated, logged, scene.challenge),
        displacement=simulated.average_displacement_error,
        collided=indications(simulated.collision_per_step, logged.valid),
        offroad=indications(simulated.offroad_per_step, logged.valid),
        # The rate, unlike the likelihood, counts agents of all types.
        ran_red=None if red is None else indications(red, logged.valid),
    )


@dataclass(frozen=True, eq=False, slots=True)
class LeaveOneOut:
    """What a set of R rollouts scores without each of them: a statistic of how much each helps.

    Attributes:
        score: the score of all rollouts.
        metametric: float64 [R], the meta-metric of the R - 1 others.
        likelihoods: field of `SimAgentMetrics` -> float64 [R], the same of each component.
    """

    score: ScenarioScore
    metametric: Float64Array
    likelihoods: dict[str, Float64Array]


def leave_one_out(
    scene: PreparedScene, logged: LoggedCounts, rollouts: Rollouts, threads: int = 1
) -> LeaveOneOut:
    """Score a set of at least two rollouts, and the set without each one.

    The features of a rollout do not depend on the other rollouts, and the likelihoods depend on
    counts over rollouts alone, so each subset is a subtraction away; scoring the subsets one by one
    gives the same numbers.

    Raises:
        RolloutsError: see `score_rollouts`; or there is only one rollout.
    """
    if rollouts.n_rollouts < 2:
        raise RolloutsError(
            "a single rollout cannot be left out", where=f"scenario {scene.scenario_id}"
        )
    evidence = gather_evidence(scene, logged, rollouts, threads)
    metametric = np.zeros(rollouts.n_rollouts)
    likelihoods = {}
    for component in scene.challenge.components:
        log_counts = logged.counts[component.name]
        tally = evidence.tallies[component.name]
        sums = leave_one_out_sums(tally, log_counts, component.estimator)
        value = likelihood(sums, log_counts)
        likelihoods[component.field] = value
        metametric += component.weight * value
    return LeaveOneOut(score_evidence(scene, logged, evidence), metametric, likelihoods)


def likelihood(sums: Float64Array, log_counts: Int64Array) -> Float64Array:
    """Likelihood [...] from log-likelihoods summed over each agent's steps [..., E].

    All agents' steps weigh the same; NaN where there are none.
    """
    n = log_counts.sum()
    if n == 0:
        return np.full(sums.shape[:-1], nan)
    result: Float64Array = np.exp(sums.sum(axis=-1) / n)
    return result


def score_evidence(scene: PreparedScene, logged: LoggedCounts, evidence: Evidence) -> ScenarioScore:
    """The score of the rollouts that the evidence is of."""
    challenge = scene.challenge
    likelihoods: dict[str, float] = {}
    per_agent: dict[str, Float64Array] = {}
    steps: dict[str, Int64Array] = {}
    metametric = 0.0
    for component in challenge.components:
        log_counts = logged.counts[component.name]
        tally = evidence.tallies[component.name]
        sums = log_likelihood_sums(tally, log_counts, component.estimator)
        n = log_counts.sum(axis=1)
        steps[component.name] = n
        per_agent[component.name] = np.divide(sums, n, out=np.full(len(n), nan), where=n > 0)
        likelihoods[component.field] = float(likelihood(sums, log_counts))
        metametric += component.weight * likelihoods[component.field]

    displacement = evidence.displacement.astype(np.float64)
    collided, offroad, ran_red = evidence.collided, evidence.offroad, evidence.ran_red
    return ScenarioScore(
        scenario_id=scene.scenario_id,
        challenge=challenge.name,
        metametric=metametric,
        # In float32 and the official order, which displacements of hundreds of metres show.
        average_displacement_error=float(float32_means(evidence.displacement.reshape(1, -1))[0]),
        min_average_displacement_error=float(evidence.rollout_displacement().min()),
        **{"traffic_light_violation_likelihood": None, **likelihoods},  # type: ignore[arg-type]
        simulated_collision_rate=float(collided.mean()) if challenge.reports_rates else None,
        simulated_offroad_rate=float(offroad.mean()) if challenge.reports_rates else None,
        simulated_traffic_light_violation_rate=None if ran_red is None else float(ran_red.mean()),
        **bucket_metrics(likelihoods, challenge),
        n_rollouts=len(displacement),
        n_sim_agents=len(scene.object_ids),
        n_evaluated_agents=scene.n_evaluated,
        agents=AgentScores(
            object_ids=scene.object_ids[: scene.n_evaluated],
            object_types=scene.object_types[: scene.n_evaluated],
            log_likelihoods=per_agent,
            n_valid_steps=steps,
            average_displacement_error=displacement.mean(axis=0),
            collision_rate=collided.mean(axis=0),
            offroad_rate=offroad.mean(axis=0),
            traffic_light_violation_rate=None if ran_red is None else ran_red.mean(axis=0),
        ),
    )
