"""What the score means and what it does not depend on."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest

from wosac_toolkit import (
    CHALLENGES,
    Rollouts,
    RolloutsError,
    Scenario,
    ScenarioError,
    WosacError,
    compute_features,
    score_scenario,
)
from wosac_toolkit.challenge import METRIC_FIELDS, KernelDensity, get_challenge
from wosac_toolkit.features import logged_features, prepare_scene
from wosac_toolkit.likelihood import count_log
from wosac_toolkit.metric import bucket_metrics, leave_one_out
from wosac_toolkit.scenario import ObjectType

YEARS = sorted(CHALLENGES)
RED = 4


def log_rollouts(scenario: Scenario, n_rollouts: int = 4, noise: float = 0.0) -> Rollouts:
    """The logged future, with seeded noise on speed that grows with time."""
    rows = scenario.sim_agents()
    future = scenario.tracks.position[rows, 11:]
    states = np.concatenate([future, scenario.tracks.heading[rows, 11:, None]], axis=2)
    states = np.broadcast_to(states, (n_rollouts, *states.shape)).copy()
    rng = np.random.default_rng(0)
    drift = rng.normal(0, noise, (n_rollouts, len(rows), 1, 2)) * np.arange(80)[:, None]
    states[..., :2] += drift
    return Rollouts(scenario.scenario_id, scenario.tracks.object_ids[rows], states)


@pytest.fixture
def crossing(make_scenario) -> Scenario:
    """Three vehicles and a pedestrian; the second lane's light is red, and its driver stops."""
    lanes = {i: np.array([[x, 4.0 * i] for x in np.arange(-20.0, 80.0, 2)]) for i in range(3)}
    scenario = make_scenario(
        n_tracks=4,
        object_types=[ObjectType.VEHICLE] * 3 + [ObjectType.PEDESTRIAN],
        tracks_to_predict=[1, 2, 3],
        lanes=lanes,
        signals=[[(1, RED, (20.0, 4.0))]] * 91,
    )
    position = scenario.tracks.position
    position[1, :, 0] = 14 - 14 * np.exp(-np.arange(91) / 25)
    return scenario


@pytest.mark.parametrize("year", YEARS)
def test_all_scores_lie_between_zero_and_one(crossing, year):
    score = score_scenario(crossing, log_rollouts(crossing, noise=0.01), year)
    for component in get_challenge(year).components:
        assert 0 < score.metrics()[component.field] <= 1
    assert 0 < score.metametric <= sum(c.weight for c in get_challenge(year).components)


@pytest.mark.parametrize("year", YEARS)
def test_the_log_scores_below_one(crossing, year):
    """Samples are pooled over time and smoothed, so even the truth is not certain."""
    score = score_scenario(crossing, log_rollouts(crossing, 32), year)
    assert score.metametric < 0.99
    assert score.average_displacement_error == 0


@pytest.mark.parametrize("year", YEARS)
def test_meta_metric_is_the_weighted_sum_of_components(crossing, year):
    score = score_scenario(crossing, log_rollouts(crossing, noise=0.02), year)
    metrics = score.metrics()
    components = get_challenge(year).components
    assert score.metametric == pytest.approx(sum(c.weight * metrics[c.field] for c in components))
    total = sum(c.weight for c in components)
    assert total == pytest.approx(0.99 if year == "2023" else 1.0)
    buckets = bucket_metrics(metrics, year)
    weight = {b: sum(c.weight for c in components if c.bucket == b) for b in
              ("kinematic", "interactive", "map_based")}  # fmt: skip
    recomposed = sum(weight[b] * buckets[f"{b}_metrics"] for b in weight)
    assert score.realism_meta_metric == pytest.approx(recomposed)


@pytest.mark.parametrize("year", YEARS)
def test_order_of_objects_and_rollouts_does_not_matter(crossing, year):
    rollouts = log_rollouts(crossing, 6, noise=0.02)
    rng = np.random.default_rng(3)
    objects, samples = rng.permutation(4), rng.permutation(6)
    shuffled = Rollouts(
        rollouts.scenario_id,
        rollouts.object_ids[objects],
        rollouts.states[samples][:, objects],
    )
    a, b = (score_scenario(crossing, r, year).metrics() for r in (rollouts, shuffled))
    assert a == pytest.approx(b, abs=1e-12)


@pytest.mark.parametrize("year", YEARS)
def test_threads_do_not_change_a_bit(crossing, year):
    rollouts = log_rollouts(crossing, 7, noise=0.02)
    a, b, c = (score_scenario(crossing, rollouts, year, threads=n).metrics() for n in (1, 2, 5))
    assert a == b == c


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_process_starts_threads_of_its_own(crossing):
    rollouts = log_rollouts(crossing, 4, noise=0.02)
    expected = score_scenario(crossing, rollouts, threads=2).metametric
    with multiprocessing.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(score_scenario, (crossing, rollouts, "2025", 2))
        assert result.get(timeout=60).metametric == expected


def moved(scenario: Scenario, rollouts: Rollouts, angle: float, shift: np.ndarray):
    """Scene and rollouts rotated about the origin and then shifted."""
    rotation = np.array(
        [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    tracks, road_map, lights = scenario.tracks, scenario.road_map, scenario.traffic_lights
    scenario = replace(
        scenario,
        tracks=replace(
            tracks,
            position=tracks.position @ rotation + shift,
            heading=(tracks.heading + angle).astype(np.float32),
        ),
        road_map=replace(road_map, points=road_map.points @ rotation + shift),
        traffic_lights=replace(lights, stop_points=lights.stop_points @ rotation + shift),
    )
    states = rollouts.states.astype(np.float64)
    xyz, heading = states[..., :3] @ rotation + shift, states[..., 3:] + angle
    return scenario, Rollouts(
        rollouts.scenario_id, rollouts.object_ids, np.concatenate([xyz, heading], axis=-1)
    )


@pytest.mark.parametrize("year", ["2025", "2023"])
@pytest.mark.parametrize(
    ("angle", "shift"),
    [(0.0, (40.0, -90.0, 3.0)), (np.pi / 2, (0, 0, 0)), (2.5, (130, 20, -8))],
    ids=["shift", "quarter turn", "both"],
)
def test_features_do_not_depend_on_the_frame(crossing, year, angle, shift):
    """Features agree to rounding; scores could differ where a value lies on a bin's edge.

    Red lights are left out: the official nearest lane depends on the origin, to which lanes are
    padded.
    """
    rollouts = log_rollouts(crossing, noise=0.02)
    _, here = compute_features(crossing, rollouts, year)
    _, there = compute_features(*moved(crossing, rollouts, angle, np.array(shift)), year)
    for name in ("linear_speed", "angular_speed", "distance_to_nearest_object",
                 "time_to_collision", "distance_to_road_edge"):  # fmt: skip
        a, b = getattr(here, name), getattr(there, name)
        assert np.allclose(a, b, atol=5e-3, equal_nan=True), name


def test_a_collision_counts_for_the_evaluated_agent_it_happens_to(crossing):
    rollouts = log_rollouts(crossing, 4)
    rollouts.states[0, 1, 40, :2] = rollouts.states[0, 0, 40, :2]  # into the first vehicle
    score = score_scenario(crossing, rollouts)
    assert score.agents.collision_rate.tolist() == [0.25, 0.25, 0, 0]
    assert score.simulated_collision_rate == 0.125


def test_leaving_the_road_counts(crossing):
    rollouts = log_rollouts(crossing, 4)
    rollouts.states[:2, 3, 70:, 1] += 30
    assert score_scenario(crossing, rollouts).agents.offroad_rate.tolist() == [0, 0, 0, 0.5]


class TestRedLight:
    def run_it(self, crossing):
        """The second vehicle drives on, past its red light at x = 20 m."""
        rollouts = log_rollouts(crossing, 4)
        rollouts.states[0, 1, :, 0] = 6.2 + 0.5 * np.arange(80)
        return rollouts

    def test_counts_in_2025(self, crossing):
        honest = score_scenario(crossing, log_rollouts(crossing, 4))
        score = score_scenario(crossing, self.run_it(crossing))
        assert score.agents.traffic_light_violation_rate.tolist() == [0, 0.25, 0, 0]
        assert score.simulated_traffic_light_violation_rate == 0.0625
        assert score.traffic_light_violation_likelihood < honest.traffic_light_violation_likelihood

    def test_is_unknown_in_2024(self, crossing):
        score = score_scenario(crossing, self.run_it(crossing), "2024")
        assert score.traffic_light_violation_likelihood is None
        assert score.simulated_traffic_light_violation_rate is None

    def test_of_a_pedestrian_counts_in_the_rate_but_not_in_the_likelihood(self, crossing):
        crossing.tracks.object_types[1] = ObjectType.PEDESTRIAN
        score = score_scenario(crossing, self.run_it(crossing))
        honest = score_scenario(crossing, log_rollouts(crossing, 4))
        assert score.simulated_traffic_light_violation_rate == 0.0625
        assert score.traffic_light_violation_likelihood == honest.traffic_light_violation_likelihood

    def test_needs_lanes_and_signals(self, make_scenario):
        scenario = make_scenario()
        score = score_scenario(scenario, log_rollouts(scenario))
        assert score.simulated_traffic_light_violation_rate == 0


class TestNotANumber:
    def test_without_an_evaluated_vehicle_there_is_no_time_to_collision(self, make_scenario):
        scenario = make_scenario(object_types=[ObjectType.PEDESTRIAN] * 3)
        score = score_scenario(scenario, log_rollouts(scenario))
        assert np.isnan(score.time_to_collision_likelihood)
        assert np.isnan(score.metametric)
        assert np.isfinite(score.linear_speed_likelihood)
        assert set(score.non_finite()) == {"time_to_collision_likelihood", "metametric"}
        assert "vehicle" in score.non_finite()["time_to_collision_likelihood"]

    def test_in_2024_all_objects_have_a_time_to_collision(self, make_scenario):
        scenario = make_scenario(object_types=[ObjectType.PEDESTRIAN] * 3)
        assert np.isfinite(score_scenario(scenario, log_rollouts(scenario), "2024").metametric)

    def test_without_a_valid_future_no_histogram_is_defined(self, make_scenario):
        scenario = make_scenario()
        scenario.tracks.valid[:, 11:] = False
        score = score_scenario(scenario, log_rollouts(scenario))
        assert np.isnan(score.linear_speed_likelihood)
        assert np.isfinite(score.collision_indication_likelihood)
        assert all(score.non_finite().values())

    def test_a_finite_score_has_nothing_to_explain(self, crossing):
        assert score_scenario(crossing, log_rollouts(crossing)).non_finite() == {}


class TestAgents:
    def test_weighted_by_their_steps_agents_give_the_scene(self, crossing):
        crossing.tracks.valid[1, 40:60] = False
        score = score_scenario(crossing, log_rollouts(crossing, noise=0.02))
        for component in get_challenge("2025").components:
            mean = score.agents.log_likelihoods[component.name]
            n = score.agents.n_valid_steps[component.name]
            total = np.nansum(mean * n) / n.sum()
            assert np.exp(total) == pytest.approx(score.metrics()[component.field])

    def test_are_sorted_by_object_id(self, make_scenario):
        scenario = make_scenario(n_tracks=5, tracks_to_predict=[4, 2, 0])
        score = score_scenario(scenario, log_rollouts(scenario))
        assert score.agents.object_ids.tolist() == [10, 12, 14]
        assert score.n_sim_agents == 5
        assert score.n_evaluated_agents == 3


@pytest.fixture
def with_kernel_density():
    """The metric of 2025, but with a kernel density for the distance to the nearest object."""
    components = tuple(
        replace(c, estimator=KernelDensity(0.5)) if c.name == "distance_to_nearest_object" else c
        for c in get_challenge("2025").components
    )
    return replace(get_challenge("2025"), name="own", components=components)


def test_a_version_of_ones_own_may_use_kernel_densities(crossing, with_kernel_density):
    rollouts = log_rollouts(crossing, 5, noise=0.03)
    logged, simulated = compute_features(crossing, rollouts, with_kernel_density)
    score = score_scenario(crossing, rollouts, with_kernel_density)
    at, samples = logged.distance_to_nearest_object[0], simulated.distance_to_nearest_object
    z = (at[:, :, None, None] - samples.transpose(1, 0, 2)[:, None]).astype(np.float64) / 0.5
    expected = np.log(np.exp(-0.5 * z**2).mean(axis=(2, 3))).mean(axis=1)
    got = score.agents.log_likelihoods["distance_to_nearest_object"]
    assert got == pytest.approx(expected)

    scene = prepare_scene(crossing, with_kernel_density)
    left_out = leave_one_out(scene, count_log(logged, scene.challenge), rollouts)
    others = replace(rollouts, states=rollouts.states[1:])
    rescored = score_scenario(crossing, others, with_kernel_density)
    assert left_out.metametric[0] == pytest.approx(rescored.metametric, abs=1e-12)


class TestLeaveOneOut:
    def prepared(self, scenario, year="2025"):
        scene = prepare_scene(scenario, year)
        return scene, count_log(logged_features(scene), scene.challenge)

    @pytest.mark.parametrize("year", YEARS)
    @pytest.mark.parametrize("n_rollouts", [2, 7])
    def test_is_what_rescoring_without_each_rollout_gives(self, crossing, year, n_rollouts):
        rollouts = log_rollouts(crossing, n_rollouts, noise=0.03)
        rollouts.states[0, 1, 40, :2] = rollouts.states[0, 0, 40, :2]  # one collision
        result = leave_one_out(*self.prepared(crossing, year), rollouts)
        for i in range(n_rollouts):
            others = replace(rollouts, states=np.delete(rollouts.states, i, axis=0))
            rescored = score_scenario(crossing, others, year)
            assert result.metametric[i] == pytest.approx(rescored.metametric, abs=1e-12)
            for field, values in result.likelihoods.items():
                assert values[i] == pytest.approx(rescored.metrics()[field], abs=1e-12)

    def test_comes_with_the_score_of_all(self, crossing):
        rollouts = log_rollouts(crossing, 5, noise=0.03)
        result = leave_one_out(*self.prepared(crossing), rollouts)
        assert result.score.metrics() == score_scenario(crossing, rollouts).metrics()

    def test_leaving_the_only_collision_out_helps(self, crossing):
        rollouts = log_rollouts(crossing, 6)
        rollouts.states[4, 1, 40, :2] = rollouts.states[4, 0, 40, :2]
        result = leave_one_out(*self.prepared(crossing), rollouts)
        assert result.likelihoods["collision_indication_likelihood"].argmax() == 4

    def test_of_an_unscorable_scene_is_not_a_number(self, make_scenario):
        scenario = make_scenario(object_types=[ObjectType.PEDESTRIAN] * 3)
        result = leave_one_out(*self.prepared(scenario), log_rollouts(scenario))
        assert np.isnan(result.metametric).all()

    def test_of_one_rollout_is_refused(self, crossing):
        with pytest.raises(RolloutsError, match="single rollout"):
            leave_one_out(*self.prepared(crossing), log_rollouts(crossing, 1))


class TestRefuses:
    def test_missing_and_unknown_objects_by_their_ids(self, crossing):
        rollouts = log_rollouts(crossing)
        rollouts = Rollouts(rollouts.scenario_id, np.array([10, 77, 12, 13]), rollouts.states)
        with pytest.raises(RolloutsError, match="missing object 11; unknown object 77"):
            score_scenario(crossing, rollouts)

    def test_an_object_that_occurs_twice(self, crossing):
        rollouts = log_rollouts(crossing)
        rollouts = Rollouts(
            rollouts.scenario_id,
            np.append(rollouts.object_ids, 12),
            np.concatenate([rollouts.states, rollouts.states[:, 2:3]], axis=1),
        )
        with pytest.raises(RolloutsError, match="twice"):
            score_scenario(crossing, rollouts)

    def test_rollouts_of_another_scene(self, crossing):
        with pytest.raises(RolloutsError, match="rollouts of scenario other"):
            score_scenario(crossing, replace(log_rollouts(crossing), scenario_id="other"))

    def test_another_number_of_steps(self, crossing):
        rollouts = log_rollouts(crossing)
        with pytest.raises(RolloutsError, match="of 79 steps"):
            score_scenario(crossing, replace(rollouts, states=rollouts.states[:, :, 1:]))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_states_that_are_not_finite(self, crossing, bad):
        rollouts = log_rollouts(crossing)
        rollouts.states[2, 1, 30, 3] = bad
        with pytest.raises(RolloutsError, match="not finite"):
            score_scenario(crossing, rollouts)

    @pytest.mark.parametrize("edges", [[], [[(0.0, 0.0)]]], ids=["none", "one point"])
    def test_a_scene_without_road_edges(self, make_scenario, edges):
        scenario = make_scenario(road_edges=edges)
        with pytest.raises(ScenarioError, match="scenario scene: missing road edges"):
            score_scenario(scenario, log_rollouts(scenario))

    def test_a_scene_of_the_test_split(self, make_scenario):
        scenario = make_scenario(n_steps=11)
        rollouts = Rollouts(
            "scene", scenario.tracks.object_ids, np.zeros((1, 3, 80, 4), np.float32)
        )
        with pytest.raises(ScenarioError, match="no future"):
            score_scenario(scenario, rollouts)

    def test_an_evaluated_agent_that_is_not_simulated(self, make_scenario):
        scenario = make_scenario()
        scenario.tracks.valid[1, 10] = False
        with pytest.raises(ScenarioError, match="evaluated object 11 is not valid"):
            score_scenario(scenario, log_rollouts(scenario))

    def test_signals_for_another_number_of_steps(self, crossing):
        lights = crossing.traffic_lights
        scenario = replace(
            crossing, traffic_lights=replace(lights, step_offsets=lights.step_offsets[:-1])
        )
        with pytest.raises(ScenarioError, match="traffic signals for 90 steps"):
            score_scenario(scenario, log_rollouts(scenario))
        assert score_scenario(scenario, log_rollouts(scenario), "2024").metametric > 0

    def test_an_index_to_no_track(self, make_scenario):
        scenario = make_scenario(tracks_to_predict=[7])
        with pytest.raises(ScenarioError, match="outside the 3 tracks"):
            score_scenario(scenario, log_rollouts(make_scenario()))

    def test_an_unknown_year(self, crossing):
        with pytest.raises(WosacError, match=r"unknown challenge '2022' .*2025, 2024, 2023"):
            score_scenario(crossing, log_rollouts(crossing), "2022")


def test_fields_have_the_official_names():
    assert METRIC_FIELDS[:4] == (
        "metametric",
        "average_displacement_error",
        "min_average_displacement_error",
        "linear_speed_likelihood",
    )
    assert len(METRIC_FIELDS) == 16
