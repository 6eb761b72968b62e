"""What rollouts do where the metric does not look, and the command that tells it."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from wosac_toolkit import (
    CHALLENGES,
    Rollouts,
    Scenario,
    WosacError,
    generate_scenarios,
    load_scenarios,
    score_scenario,
    simulate_baseline,
)
from wosac_toolkit.behaviour import (
    BEHAVIOURS,
    NAMES,
    Behaviour,
    BehaviourReport,
    Quantity,
    Watched,
    load_behaviours,
    mean_behaviour,
    measure_behaviour,
    measure_dataset,
    measure_watched,
    read_behaviours,
    watch_scene,
    write_behaviours,
)
from wosac_toolkit.behaviour import watch as watch_with_all_draws
from wosac_toolkit.cli.group import LazyGroup
from wosac_toolkit.errors import FormatError, RolloutsError, ScenarioError
from wosac_toolkit.io.npz import write_npz
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.kernels import behaviour as kernels
from wosac_toolkit.scenario import LaneType, ObjectType
from wosac_toolkit.scoring import ScoringError, score_dataset

MakeScenario = Callable[..., Scenario]
ALONG_X = {1: [(-100.0, 0.0), (300.0, 0.0)]}
LANES = {i: [(-100.0, 4.0 * i), (300.0, 4.0 * i)] for i in range(3)}
OF_THE_LOG = [
    n for n in NAMES if n not in ("min_ade", "stall_rate", "diversity", "final_diversity")
]


# As sure as with 10,000 draws where differences are as clear as here.
watch = functools.partial(watch_with_all_draws, resamples=400)


def static(scenario: Scenario, n_rollouts: int = 4) -> Rollouts:
    return simulate_baseline(scenario, "static", n_rollouts)


def log(scenario: Scenario, n_rollouts: int = 2) -> Rollouts:
    return simulate_baseline(scenario, "log", n_rollouts)


def driven(
    scenario: Scenario, x: np.ndarray, heading: float = 0.0, n_rollouts: int = 1
) -> Rollouts:
    """All agents of a hand-made scene move by `x` [80] along the x axis from where they are."""
    states = static(scenario, n_rollouts).states.copy()
    states[..., 0] += np.float32(x)
    states[..., 3] = heading
    return replace(static(scenario, n_rollouts), states=states)


def lose(scenario: Scenario, row: int, first: int) -> Scenario:
    """The scene with a track that is not valid from a step after the current one on."""
    valid = scenario.tracks.valid.copy()
    valid[row, 11 + first :] = False
    return replace(scenario, tracks=replace(scenario.tracks, valid=valid))


@pytest.fixture(scope="module")
def synthetic() -> list[Scenario]:
    return list(generate_scenarios(4, seed=3))


# --------------------------------------------------------------------------------------------------
# What each quantity catches


def test_a_replay_of_the_log_behaves_as_the_log_does(synthetic: list[Scenario]) -> None:
    for scenario in synthetic:
        found = measure_behaviour(scenario, log(scenario))
        assert set(found.logged) == set(OF_THE_LOG)
        # What follows a step without a log can differ: the replay keeps agents that the log lost.
        for name in set(OF_THE_LOG) - {"corner_collision_rate", "red_light_rate"}:
            assert getattr(found, name) == pytest.approx(found.logged[name], nan_ok=True), name
        assert found.min_ade == found.diversity == found.final_diversity == 0
        assert found.stall_rate in (0.0, pytest.approx(math.nan, nan_ok=True))


def test_standing_still_is_caught_though_collisions_become_more_likely_right(
    synthetic: list[Scenario],
) -> None:
    moving = [simulate_baseline(s, "constant_velocity", 4) for s in synthetic]
    field = "collision_indication_likelihood"

    def collision_likelihood(rollouts: Sequence[Rollouts]) -> float:
        scores = [score_scenario(s, r) for s, r in zip(synthetic, rollouts, strict=True)]
        return float(np.mean([getattr(score, field) for score in scores]))

    standing = [static(s) for s in synthetic]
    assert collision_likelihood(standing) > collision_likelihood(moving)
    measured = [measure_behaviour(s, r) for s, r in zip(synthetic, standing, strict=True)]
    for found in measured:
        assert found.standing_rate == 1
        assert found.stall_rate == 1
        assert found.speed == found.jerk == 0
        assert found.logged["standing_rate"] < 1
    before = [measure_behaviour(s, r) for s, r in zip(synthetic, moving, strict=True)]
    rows = by_name(watch(measured, before))
    assert rows["standing_rate"].watch == ("log", "reference")
    assert rows["stall_rate"].watch == ("reference",)
    assert rows["speed"].watch == ("log", "reference")
    assert "diversity" in watch(measured, before).to_watch


def test_only_steps_at_which_the_log_drives_can_be_stalled(make_scenario: MakeScenario) -> None:
    assert math.isnan(
        measure_behaviour(make_scenario(speed=0.5), static(make_scenario())).stall_rate
    )
    scenario = make_scenario(speed=5.0)
    x = np.where(np.arange(80) < 40, 0.5 * np.arange(1, 81), 20.0)
    found = measure_behaviour(scenario, driven(scenario, x))
    # Speeds are of the steps before and after, and so there are 78.
    assert found.stall_rate == found.standing_rate == pytest.approx(39 / 78)
    assert found.speed_ratio == pytest.approx(found.speed / 5.0, rel=1e-5)


def test_jerk_of_a_cubic_is_its_third_derivative(make_scenario: MakeScenario) -> None:
    time = 0.1 * np.arange(1, 81)
    scenario = make_scenario(speed=0.0)
    found = measure_behaviour(scenario, driven(scenario, 0.6 * time**3 / 6))
    assert found.jerk == pytest.approx(0.6, rel=0.02)
    assert found.logged["jerk"] == 0


def test_driving_against_the_lane_is_wrong_way_though_speed_and_distance_are_as_logged(
    make_scenario: MakeScenario,
) -> None:
    scenario = make_scenario(lanes=LANES)
    x = 0.5 * np.arange(1, 81)
    found = measure_behaviour(scenario, driven(scenario, -x, heading=math.pi))
    assert found.wrong_way_rate == 1
    assert found.slide_rate == 0
    assert found.speed_ratio == pytest.approx(1, rel=1e-4)
    assert found.logged["wrong_way_rate"] == found.logged["slide_rate"] == 0
    backwards = measure_behaviour(scenario, driven(scenario, -x))
    assert (backwards.wrong_way_rate, backwards.slide_rate) == (0, 1)
    turned = measure_behaviour(scenario, driven(scenario, x, heading=math.pi))
    assert (turned.wrong_way_rate, turned.slide_rate) == (1, 1)
    sideways = measure_behaviour(scenario, driven(scenario, x, heading=math.pi / 2))
    assert (sideways.wrong_way_rate, sideways.slide_rate) == (0, 1)


def wrong_way(scenario: Scenario) -> float:
    x = -0.5 * np.arange(1, 81)
    return measure_behaviour(scenario, driven(scenario, x, heading=math.pi)).wrong_way_rate


def test_whoever_may_be_on_another_lane_does_not_drive_the_wrong_way(
    make_scenario: MakeScenario,
) -> None:
    def scene(lanes: dict[int, list[tuple[float, ...]]], **options: object) -> Scenario:
        return make_scenario(n_tracks=1, tracks_to_predict=(), lanes=lanes, **options)

    lane = [(-100.0, 0.0), (300.0, 0.0)]
    assert wrong_way(scene({1: lane})) == 1
    assert wrong_way(scene({1: lane, 2: [(300.0, 1.9), (-100.0, 1.9)]})) == 0
    assert wrong_way(scene({1: lane, 2: [(300.0, 2.1), (-100.0, 2.1)]})) == 1
    # Nobody is on a lane that is out of reach, or on a bridge above.
    assert wrong_way(scene({1: [(-100.0, 2.1), (300.0, 2.1)]})) == 0
    assert wrong_way(scene({1: [(-100.0, 0.0, 3.5), (300.0, 0.0, 3.5)]})) == 0
    assert wrong_way(scene({1: [(-100.0, 0.0, 2.5), (300.0, 0.0, 2.5)]})) == 1
    # Points that come twice have no direction.
    assert wrong_way(scene({1: [lane[0], lane[0], lane[1], lane[1]]})) == 1
    assert wrong_way(scene({})) == 0
    one = scene({1: lane})
    types = np.where(one.road_map.kinds == 3, LaneType.BIKE_LANE, one.road_map.types)
    bikes = replace(one, road_map=replace(one.road_map, types=types.astype(np.int8)))
    assert wrong_way(bikes) == 0
    assert math.isnan(wrong_way(scene({1: lane}, object_types=[ObjectType.PEDESTRIAN])))


def test_crossing_a_lane_is_not_driving_against_it(make_scenario: MakeScenario) -> None:
    lanes = {1: [(-100.0, 0.0), (300.0, 0.0)]}
    for degrees, rate in ((90, 0.0), (119, 0.0), (121, 1.0)):
        angle = math.radians(degrees)
        scenario = make_scenario(n_tracks=1, tracks_to_predict=(), lanes=lanes)
        rollouts = driven(scenario, 0.5 * np.arange(1, 81), heading=angle)
        assert measure_behaviour(scenario, rollouts).wrong_way_rate == rate


def test_sharp_boxes_meet_where_the_metrics_rounded_ones_do_not(
    make_scenario: MakeScenario,
) -> None:
    # Two boxes of 4.5 x 2 m, whose corners overlap by 5 cm.
    scenario = make_scenario(n_tracks=2, speed=0.0)
    states = static(scenario).states.copy()
    states[:, 1, :, :2] = states[:, 0, :, :2] + np.float32([4.45, 1.95])
    rollouts = replace(static(scenario), states=states)
    assert score_scenario(scenario, rollouts).simulated_collision_rate == 0
    found = measure_behaviour(scenario, rollouts)
    assert found.sharp_collision_rate == found.corner_collision_rate == 1
    assert found.logged["sharp_collision_rate"] == 0
    states[:, 1, :, 0] += 0.1
    apart = measure_behaviour(scenario, replace(rollouts, states=states))
    assert apart.sharp_collision_rate == apart.corner_collision_rate == 0
    states[:, 1, :, :2] = states[:, 0, :, :2] + np.float32([3.0, 0.0])
    through = measure_behaviour(scenario, replace(rollouts, states=states))
    assert (through.sharp_collision_rate, through.corner_collision_rate) == (1, 0)


def test_overlaps_with_whom_the_log_has_lost_are_not_compared_with_it(
    make_scenario: MakeScenario,
) -> None:
    scenario = make_scenario(n_tracks=2, speed=0.0, tracks_to_predict=())
    states = static(scenario).states.copy()
    states[:, 1, 50:, :2] = states[:, 0, 50:, :2]
    rollouts = replace(static(scenario), states=states)
    assert measure_behaviour(scenario, rollouts).sharp_collision_rate == 1
    assert measure_behaviour(lose(scenario, 1, 50), rollouts).sharp_collision_rate == 0
    assert measure_behaviour(lose(scenario, 1, 51), rollouts).sharp_collision_rate == 1
    assert measure_behaviour(lose(scenario, 0, 50), rollouts).sharp_collision_rate == 0


def test_off_road_counts_how_long(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=1, tracks_to_predict=(), speed=0.0)
    states = static(scenario).states.copy()
    states[:, :, 60:, 1] -= 20
    rollouts = replace(static(scenario), states=states)
    assert measure_behaviour(scenario, rollouts).off_road_rate == pytest.approx(20 / 80)
    assert score_scenario(scenario, rollouts).simulated_offroad_rate == 1


def test_diversity_is_the_distance_of_two_rollouts(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(speed=0.0)
    assert math.isnan(measure_behaviour(scenario, static(scenario, 1)).diversity)
    states = static(scenario, 3).states.copy()
    states[1, :, :, 0] += 3 * np.linspace(0, 1, 80, dtype=np.float32)
    states[2, :, :, 1] += 4 * np.linspace(0, 1, 80, dtype=np.float32)
    found = measure_behaviour(scenario, replace(static(scenario, 3), states=states))
    assert found.final_diversity == pytest.approx((3 + 4 + 5) / 3, rel=1e-5)
    assert found.diversity == pytest.approx((3 + 4 + 5) / 3 / 2, rel=1e-5)
    # Agents that the log loses early end early.
    half = replace(static(scenario, 3), states=states)
    lost = measure_behaviour(lose(lose(scenario, 0, 40), 1, 40), half)
    assert lost.final_diversity == pytest.approx(39 / 79 * 4, rel=1e-5)


def test_realism_and_minimum_error_are_those_of_the_metric(synthetic: list[Scenario]) -> None:
    years = tuple(CHALLENGES)
    for scenario in synthetic[:2]:
        rollouts = simulate_baseline(scenario, "constant_velocity", 3)
        found = measure_behaviour(scenario, rollouts, years)
        scores = {year: score_scenario(scenario, rollouts, year) for year in years}
        assert found.realism == {year: scores[year].metametric for year in years}
        assert found.min_ade == scores["2025"].min_ade
        assert found.red_light_rate == scores["2025"].simulated_traffic_light_violation_rate
        assert found == measure_watched(watch_scene(scenario, years), rollouts)
        assert measure_behaviour(scenario, rollouts, ()).realism == {}


def test_a_log_without_steps_has_nothing_to_measure(make_scenario: MakeScenario) -> None:
    scenario = lose(lose(make_scenario(), 0, 0), 1, 0)
    found = measure_behaviour(scenario, static(scenario, 2), ())
    for name in set(NAMES) - {"min_ade", "sharp_collision_rate", "corner_collision_rate"}:
        assert math.isnan(getattr(found, name)) or name == "red_light_rate", name
    assert found.sharp_collision_rate == 0


# --------------------------------------------------------------------------------------------------
# What does not matter


def moved(
    scenario: Scenario, rollouts: Rollouts, angle: float, by: Sequence[float]
) -> tuple[Scenario, Rollouts]:
    """The same scene elsewhere."""
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    shift = np.array(by)

    def place(points: np.ndarray) -> np.ndarray:
        result = points.astype(np.float64)
        result[..., :2] = result[..., :2] @ matrix + shift
        return result

    tracks, road_map, lights = scenario.tracks, scenario.road_map, scenario.traffic_lights
    states = place(rollouts.states)
    states[..., 3] += angle
    return (
        replace(
            scenario,
            tracks=replace(
                tracks,
                position=place(tracks.position),
                heading=(tracks.heading + np.float32(angle)).astype(np.float32),
                velocity=(tracks.velocity @ matrix).astype(np.float32),
            ),
            road_map=replace(road_map, points=place(road_map.points)),
            traffic_lights=replace(lights, stop_points=place(lights.stop_points)),
        ),
        replace(rollouts, states=states.astype(np.float32)),
    )


@settings(max_examples=5, deadline=None)
@given(
    index=st.integers(0, 3),
    angle=st.floats(-3, 3),
    by=st.tuples(st.floats(-2e3, 2e3), st.floats(-2e3, 2e3)),
)
def test_where_the_scene_lies_does_not_matter(
    synthetic: list[Scenario], index: int, angle: float, by: tuple[float, float]
) -> None:
    scenario = synthetic[index]
    rollouts = simulate_baseline(scenario, "constant_turn_rate", 3)
    here = measure_behaviour(scenario, rollouts, ())
    there = measure_behaviour(*moved(scenario, rollouts, angle, by), ())
    # The official red-light rule measures distances to the origin of the map.
    for name in set(NAMES) - {"red_light_rate"}:
        tolerance = 0.05 if name == "jerk" else 0.01
        expected = pytest.approx(getattr(here, name), abs=tolerance, rel=0.01, nan_ok=True)
        assert getattr(there, name) == expected, name


@settings(max_examples=5, deadline=None)
@given(index=st.integers(0, 3), seed=st.integers(0, 99))
def test_the_order_of_agents_and_rollouts_does_not_matter(
    synthetic: list[Scenario], index: int, seed: int
) -> None:
    scenario, rng = synthetic[index], np.random.default_rng(seed)
    rollouts = simulate_baseline(scenario, "constant_velocity", 3)
    here = measure_behaviour(scenario, rollouts, ())
    agents, order = rng.permutation(len(rollouts.object_ids)), rng.permutation(3)
    shuffled = replace(
        rollouts,
        object_ids=rollouts.object_ids[agents],
        states=rollouts.states[order][:, agents],
    )
    assert_close(measure_behaviour(scenario, shuffled, ()), here)
    twice = replace(rollouts, states=np.concatenate([rollouts.states] * 2))
    doubled = measure_behaviour(scenario, twice, ())
    # Of the 15 pairs 3 are of a rollout with itself.
    assert doubled.diversity == pytest.approx(here.diversity * 12 / 15)
    assert_close(replace(doubled, n_rollouts=3), here, without=("diversity", "final_diversity"))


def assert_close(one: Behaviour, other: Behaviour, without: Sequence[str] = ()) -> None:
    for name, value in one.values().items():
        if name not in without:
            assert value == pytest.approx(other.values()[name], rel=1e-6, nan_ok=True), name
    assert one.logged == pytest.approx(other.logged, nan_ok=True)


# --------------------------------------------------------------------------------------------------
# Kernels against plain oracles


def corners(x: float, y: float, heading: float, length: float, width: float) -> np.ndarray:
    """Counter-clockwise [4, 2]."""
    local = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (length / 2, width / 2)
    cosine, sine = math.cos(heading), math.sin(heading)
    return local @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)


def common_area(one: np.ndarray, other: np.ndarray) -> float:
    """Area that two convex polygons share: the one clipped by each edge of the other."""
    polygon = [tuple(point) for point in one]
    for a, b in zip(other, np.roll(other, -1, axis=0), strict=True):
        inside = [(b[0] - a[0]) * (q[1] - a[1]) - (b[1] - a[1]) * (q[0] - a[0]) for q in polygon]
        clipped = []
        for k, point in enumerate(polygon):
            following, here, there = polygon[k - len(polygon) + 1], inside[k], 0.0
            there = inside[k - len(polygon) + 1]
            if here >= 0:
                clipped.append(point)
            if (here > 0) != (there > 0) and here != there:
                share = here / (here - there)
                clipped.append(
                    tuple(p + share * (q - p) for p, q in zip(point, following, strict=True))
                )
        polygon = clipped
        if not polygon:
            return 0.0
    x, y = np.array(polygon).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


@pytest.mark.parametrize("origin", [0.0, 20_000.0])
@pytest.mark.parametrize("seed", range(3))
def test_sharp_boxes_overlap_where_they_share_an_area(seed: int, origin: float) -> None:
    rng = np.random.default_rng(seed)
    n_rollouts, n_agents, n_steps, n_evaluated = 3, 9, 7, 4
    states = np.zeros((n_rollouts, n_agents, n_steps, 4), np.float32)
    states[..., :2] = rng.uniform(-20, 20, states[..., :2].shape) + origin
    states[..., 3] = rng.uniform(-7, 7, states.shape[:3])
    columns = rng.permutation(n_agents)
    length = rng.uniform(0.5, 8, n_agents).astype(np.float32)
    width = rng.uniform(0.4, 3, n_agents).astype(np.float32)
    present = rng.random((n_steps, n_agents)) > 0.3
    counted = rng.random((n_evaluated, n_steps)) > 0.3
    got = np.empty((n_rollouts, n_evaluated), bool)
    kernels.sharp_box_collisions(states, columns, length, width, present, counted, got)
    expected = np.zeros_like(got)
    for r in range(n_rollouts):
        for t in range(n_steps):
            boxes = [
                corners(*(p[:2] - np.float32(origin)), p[3], length[n], width[n])
                for n, p in enumerate(states[r, columns, t].astype(np.float64))
            ]
            for e in range(n_evaluated):
                for n in range(n_agents):
                    if n != e and counted[e, t] and present[t, n]:
                        expected[r, e] |= common_area(boxes[e], boxes[n]) > 1e-9
    assert 0 < expected.mean() < 1
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("heading", [0.0, 0.3, math.pi / 2, -4.0])
def test_boxes_that_only_touch_do_not_overlap(heading: float) -> None:
    for gap, overlaps in ((1e-3, False), (-1e-3, True)):
        along = 4.0 + gap
        states = np.zeros((1, 2, 1, 4), np.float32)
        states[0, 1, 0, :2] = along * math.cos(heading), along * math.sin(heading)
        states[..., 3] = heading
        size = np.full(2, 4.0, np.float32), np.full(2, 2.0, np.float32)
        got = np.empty((1, 2), bool)
        there = np.ones((1, 2), bool)
        kernels.sharp_box_collisions(states, np.arange(2), *size, there, there.T.copy(), got)
        assert (got == overlaps).all()


@pytest.mark.parametrize("seed", range(3))
def test_against_lanes_is_what_looking_at_every_segment_says(
    synthetic: list[Scenario], seed: int
) -> None:
    scenario, rng = synthetic[seed], np.random.default_rng(seed)
    lanes = watch_scene(scenario, ()).lanes
    rollouts = simulate_baseline(scenario, "constant_turn_rate", 2)
    states = rollouts.states.copy()
    states[..., 3] += np.float32(rng.choice([0, math.pi], states.shape[:3]))
    columns = rng.permutation(states.shape[1])[:6]
    wanted = rng.random((2, 6, 80)) > 0.2
    reach, up, limit = 2.5, 3.0, -0.5
    got = np.empty(wanted.shape, bool)
    kernels.against_lanes(
        states, columns, wanted, lanes.segments, lanes.offsets, lanes.low, lanes.high,
        reach, up, limit, got,
    )  # fmt: skip
    x, y, z, yaw = np.moveaxis(states[:, columns].astype(np.float64), -1, 0)[..., None]
    sx, sy, dx, dy, height = lanes.segments
    along = np.clip(((x - sx) * dx + (y - sy) * dy) / (dx**2 + dy**2), 0, 1)
    near = np.hypot(x - sx - along * dx, y - sy - along * dy) <= reach
    near &= np.abs(z - height) <= up
    with_lane = near & ((np.cos(yaw) * dx + np.sin(yaw) * dy) / np.hypot(dx, dy) >= limit)
    expected = wanted & near.any(axis=-1) & ~with_lane.any(axis=-1)
    assert expected.any()
    assert (wanted & ~expected).any()
    assert np.array_equal(got, expected)


def test_pieces_of_lanes_hold_every_segment_once(synthetic: list[Scenario]) -> None:
    scenario = synthetic[0]
    lanes, road_map = watch_scene(scenario, ()).lanes, scenario.road_map
    rows = [r for r in road_map.of_kind(3) if road_map.types[r] != LaneType.BIKE_LANE]
    starts = np.concatenate([road_map.polyline(r)[:-1, :2] for r in rows])
    assert np.array_equal(lanes.segments[:2].T, starts)
    assert lanes.offsets[0] == 0
    assert lanes.offsets[-1] == len(starts)
    assert (np.diff(lanes.offsets) > 0).all()


def test_pairwise_distances_are_the_mean_over_pairs() -> None:
    states = np.random.default_rng(0).normal(size=(5, 4, 6, 4)).astype(np.float32)
    columns, counted = np.array([2, 0]), np.random.default_rng(1).random((2, 6)) > 0.4
    got = np.empty((2, 6))
    kernels.pairwise_distances(states, columns, counted, got)
    xy = states[:, columns, :, :2].astype(np.float64)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    expected = np.where(counted, apart[np.triu_indices(5, 1)].mean(axis=0), np.nan)
    assert got == pytest.approx(expected, nan_ok=True)


# --------------------------------------------------------------------------------------------------
# Inputs that cannot be measured


def test_bad_inputs_are_named(make_scenario: MakeScenario) -> None:
    scenario = make_scenario()
    rollouts = static(scenario)
    with pytest.raises(RolloutsError, match="rollouts of scenario other"):
        measure_behaviour(scenario, replace(rollouts, scenario_id="other"))
    with pytest.raises(RolloutsError, match="missing object 12"):
        measure_behaviour(
            scenario, Rollouts("scene", rollouts.object_ids[:2], rollouts.states[:, :2])
        )
    with pytest.raises(RolloutsError, match="40 steps"):
        measure_behaviour(scenario, replace(rollouts, states=rollouts.states[:, :, :40]))
    states = rollouts.states.copy()
    states[0, 0, 0, 0] = np.nan
    with pytest.raises(RolloutsError, match="not finite"):
        measure_behaviour(scenario, replace(rollouts, states=states))
    with pytest.raises(ScenarioError, match="missing road edges"):
        measure_behaviour(make_scenario(road_edges=[]), rollouts)
    with pytest.raises(WosacError, match="unknown challenge '2022'"):
        measure_behaviour(scenario, rollouts, ["2022"])


# --------------------------------------------------------------------------------------------------
# Many scenes


def by_name(report: BehaviourReport) -> dict[str, Watched]:
    return {row.quantity.name: row for row in report.rows}


def scenes(n: int = 40, seed: int = 0, **changed: float | Sequence[float]) -> list[Behaviour]:
    """Scenes whose every quantity is about 0.5, as is their log, but for those given."""
    rng = np.random.default_rng(99)
    base = dict(zip(NAMES, 0.5 + 0.1 * rng.standard_normal((len(NAMES), n)), strict=True))
    noise = 0.001 * np.random.default_rng(seed).standard_normal(n)
    own = {name: base[name] + noise for name in NAMES}
    for name, value in changed.items():
        own[name] = np.broadcast_to(value, n) + noise
    realism = own.pop("realism", base["jerk"])
    return [
        Behaviour(
            scenario_id=f"s{k:03}",
            n_rollouts=32,
            n_evaluated_agents=4,
            **{name: float(column[k]) for name, column in own.items()},
            logged={name: float(base[name][k]) for name in OF_THE_LOG},
            realism={"2024": float(realism[k])},
        )
        for k in range(n)
    ]


def test_a_run_like_its_log_and_reference_is_not_to_be_watched() -> None:
    report = watch(scenes(seed=1), scenes(seed=2))
    assert report.to_watch == []
    assert [row.quantity.name for row in report.rows] == [*NAMES, "realism_2024"]
    assert watch(scenes()).to_watch == []


def test_means_and_intervals_are_those_of_the_scenes() -> None:
    run = scenes()
    row = by_name(watch_with_all_draws(run))["jerk"]
    values = np.array([b.jerk for b in run])
    assert row.simulated is not None
    assert row.simulated.value == pytest.approx(values.mean())
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert row.simulated.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert row.simulated.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert row.departure is not None
    assert row.departure.value == pytest.approx(np.mean([b.jerk - b.logged["jerk"] for b in run]))
    assert row.reference is row.change is None


@pytest.mark.parametrize("quantity", BEHAVIOURS, ids=lambda q: q.name)
def test_only_the_suspect_side_is_watched_and_only_beyond_the_margin(quantity: Quantity) -> None:
    name, margin, suspect = quantity.name, quantity.margin, quantity.suspect
    base = np.array([getattr(b, name) for b in scenes(seed=5)])
    before = scenes(seed=5)

    def flags(by: float) -> tuple[str, ...]:
        return by_name(watch(scenes(seed=6, **{name: base + by}), before))[name].watch

    expected = ("log", "reference") if name in OF_THE_LOG else ("reference",)
    assert flags(1.5 * margin) == (() if suspect == "less" else expected)
    assert flags(-1.5 * margin) == (() if suspect == "more" else expected)
    assert flags(0.5 * margin) == flags(-0.5 * margin) == ()


def test_coming_closer_to_the_log_from_either_side_is_no_departure_from_the_reference() -> None:
    base = np.array([b.logged["speed"] for b in scenes()])
    slow, less_slow = scenes(speed=base - 2), scenes(speed=base - 1, seed=1)
    assert by_name(watch(less_slow, slow))["speed"].watch == ("log",)
    assert by_name(watch(slow, less_slow))["speed"].watch == ("log", "reference")
    # As far off on the other side is no farther.
    assert by_name(watch(scenes(speed=base + 2, seed=1), slow))["speed"].watch == ("log",)


def test_a_version_whose_realism_falls_is_watched() -> None:
    report = watch(scenes(realism=0.6), scenes(realism=0.7, seed=1))
    assert by_name(report)["realism_2024"].watch == ("reference",)
    assert by_name(watch(scenes(realism=0.7), scenes(realism=0.6)))["realism_2024"].watch == ()


def test_scenes_without_a_value_are_left_out_and_counted() -> None:
    run = scenes()
    run[3] = replace(run[3], jerk=math.nan)
    row = by_name(watch(run))["jerk"]
    assert row.n_scenes == 39
    assert row.simulated is not None
    assert row.simulated.value == pytest.approx(np.mean([b.jerk for b in run if b is not run[3]]))
    nothing = by_name(watch([replace(b, jerk=math.nan) for b in run]))["jerk"]
    assert (nothing.n_scenes, nothing.simulated, nothing.departure) == (0, None, None)
    assert mean_behaviour(run)["jerk"] == pytest.approx(row.simulated.value)
    assert math.isnan(mean_behaviour([replace(run[3], jerk=math.nan)])["jerk"])


def test_one_scene_has_no_interval_and_nothing_to_watch() -> None:
    report = watch(scenes(1, jerk=9.0))
    row = by_name(report)["jerk"]
    assert row.simulated is not None
    assert (row.simulated.low, row.simulated.high) == (None, None)
    assert report.to_watch == []
    # One of two scenes that has a value is as one.
    two = scenes(2, jerk=9.0)
    two[0] = replace(two[0], jerk=math.nan)
    assert watch(two).to_watch == []
    json.loads(watch(two).to_json())


def test_the_seed_decides() -> None:
    run = scenes()
    assert watch(run, seed=1) == watch(run, seed=1)
    assert watch(run, seed=1) != watch(run, seed=2)


def test_runs_that_cannot_be_compared_are_refused() -> None:
    run = scenes(5)
    with pytest.raises(WosacError, match=r"reference lacks 2 of 5 scenes \(s003, s004\)"):
        watch(run, run[:3])
    report = watch(run, run[:3], missing="intersect")
    assert (report.n_scenes, report.n_without_reference) == (3, 2)
    assert watch(run[:3], run).n_scenes == 3
    with pytest.raises(WosacError, match="no scene in common"):
        watch(run[:2], run[2:], missing="intersect")
    with pytest.raises(WosacError, match=r"s002: 32 rollouts, and 16 in the reference"):
        watch(run, [replace(b, n_rollouts=16) if b is run[2] else b for b in run])
    with pytest.raises(WosacError, match="the rollouts: scenes that come twice: s001"):
        watch([*run, run[1]])
    with pytest.raises(WosacError, match="the reference: no scenes"):
        watch(run, [])
    with pytest.raises(WosacError, match="resamples must be at least 1"):
        watch(run, resamples=0)


# --------------------------------------------------------------------------------------------------
# Files and the command


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, synthetic: list[Scenario]) -> Path:
    """Four scenes; rollouts `log`, `still` and, as a shard, `moving`."""
    folder = tmp_path_factory.mktemp("behaviour")
    write_scenarios(folder / "scenes", synthetic, 2)
    for name in ("log", "still"):
        (folder / name).mkdir()
        for scenario in synthetic:
            write_npz(folder / name, static(scenario, 2) if name == "still" else log(scenario))
    moving = (simulate_baseline(s, "constant_velocity", 2) for s in synthetic)
    (folder / "moving").mkdir()
    write_submission(folder / "moving" / "a.binproto", moving, SubmissionMetadata())
    return folder


def run_command(*arguments: object) -> Result:
    group = LazyGroup(
        "wosac", program="wosac", commands={"behaviour": ("wosac_toolkit.cli.behaviour", "")}
    )
    return CliRunner().invoke(group, ["behaviour", *map(str, arguments), "--workers", "1"])


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    run = scenes(3)
    run[1] = replace(run[1], jerk=math.nan)
    path = tmp_path / "behaviour.parquet"
    write_behaviours(path, run)
    again = read_behaviours(path)
    assert str(again) == str(run)
    assert load_behaviours(path).behaviours[0] == run[0]


def test_files_that_are_no_such_table_are_refused(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "b.parquet"
    with pytest.raises(FormatError, match="no such file"):
        read_behaviours(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(FormatError, match="not a Parquet table"):
        read_behaviours(path)
    pd.DataFrame({"scenario_id": ["a"]}).to_parquet(path)
    with pytest.raises(FormatError, match="no column 'n_rollouts'"):
        read_behaviours(path)
    write_behaviours(path, scenes(2))
    pd.read_parquet(path).assign(jerk="high").to_parquet(path)
    with pytest.raises(FormatError, match="'jerk' is not of float"):
        read_behaviours(path)


def test_a_dataset_is_measured_whatever_its_format_and_the_number_of_workers(
    dataset: Path, synthetic: list[Scenario]
) -> None:
    expected = [
        measure_behaviour(s, simulate_baseline(s, "constant_velocity", 2)) for s in synthetic
    ]
    order = [s.scenario_id for s in load_scenarios(dataset / "scenes")]
    expected.sort(key=lambda found: order.index(found.scenario_id))
    for workers in (1, 2):
        found = measure_dataset(dataset / "moving", str(dataset / "scenes"), workers=workers)
        assert str(list(found.behaviours)) == str(expected)
    first = measure_dataset(dataset / "moving", str(dataset / "scenes"), limit=2)
    assert str(list(first.behaviours)) == str(expected[:2])


def test_scenes_and_rollouts_without_partner_are_refused_or_counted(
    dataset: Path, tmp_path: Path, synthetic: list[Scenario]
) -> None:
    for scenario in synthetic[:2]:
        write_npz(tmp_path, static(scenario))
    with pytest.raises(ScoringError, match="2 scenarios without rollouts"):
        measure_dataset(tmp_path, str(dataset / "scenes"))
    found = measure_dataset(tmp_path, str(dataset / "scenes"), missing="intersect")
    assert (len(found.behaviours), found.n_passed_over) == (2, 2)
    bad = static(synthetic[0])
    write_npz(tmp_path, replace(bad, object_ids=bad.object_ids + 100_000))
    with pytest.raises(ScoringError) as error:
        measure_dataset(tmp_path, str(dataset / "scenes"), missing="intersect", workers=1)
    assert {finding.scenario_id for finding in error.value.findings} == {bad.scenario_id}


def test_the_command_tells_what_to_watch(dataset: Path, tmp_path: Path) -> None:
    options = ("--scenarios", dataset / "scenes", "--resamples", 200)
    calm = run_command(dataset / "log", *options, "--fail-on-watch")
    assert calm.exit_code == 0, calm.stderr
    out = tmp_path / "still.parquet"
    still = run_command(dataset / "still", *options, "--out", out)
    assert still.exit_code == 0
    (line,) = (x for x in still.stdout.splitlines() if x.startswith("standing_rate"))
    assert line.split()[1] == "1.0000"
    assert line.split()[-1] == "log"
    assert "4 scenes, 2 rollouts each" in still.stdout
    failing = run_command(out, "--fail-on-watch", "--resamples", 200)
    assert failing.exit_code == 1
    assert "wosac: to be watched: speed" in failing.stderr
    assert failing.stdout == still.stdout


def test_the_command_compares_with_rollouts_a_table_or_a_run(dataset: Path, tmp_path: Path) -> None:
    scored = tmp_path / "run"
    score_dataset(
        dataset / "moving", str(dataset / "scenes"), out=scored, n_rollouts=None, workers=1
    )
    table = tmp_path / "moving.parquet"
    options = ("--scenarios", dataset / "scenes", "--resamples", 200, "--format", "json")
    assert run_command(scored, "--out", table, "--resamples", 200).exit_code == 0
    texts = {
        run_command(dataset / "still", *options, "--reference", reference).stdout
        for reference in (dataset / "moving", table, scored)
    }
    (text,) = texts
    report = json.loads(text)
    rows = {row["quantity"]["name"]: row for row in report["rows"]}
    assert rows["stall_rate"]["watch"] == ["reference"]
    assert rows["stall_rate"]["logged"] is None
    assert rows["stall_rate"]["change"]["value"] > 0
    assert report["has_reference"] is True
    limited = run_command(
        dataset / "still", *options, "--limit", 3, "--reference", dataset / "moving"
    )
    assert json.loads(limited.stdout)["n_scenes"] == 3


@pytest.mark.parametrize("format_", ["table", "csv", "markdown", "latex"])
def test_every_format_has_all_quantities(dataset: Path, format_: str) -> None:
    arguments = (dataset / "still", "--scenarios", dataset / "scenes", "--resamples", 100)
    plain = run_command(*arguments, "--format", format_)
    both = run_command(*arguments, "--format", format_, "--reference", dataset / "moving")
    for result in (plain, both):
        assert result.exit_code == 0
        for name in (*NAMES, "realism_2025", "realism_2024"):
            assert name in result.stdout.replace("\\_", "_")
    if format_ == "csv":
        rows = list(csv.DictReader(both.stdout.splitlines()))
        assert len(rows) == len(NAMES) + 2
        change = next(float(row["change"]) for row in rows if row["behaviour"] == "speed")
        assert change < -1


def test_what_is_wrong_is_told_in_one_line(dataset: Path, tmp_path: Path) -> None:
    scenes_option = ("--scenarios", dataset / "scenes")
    for arguments, message in (
        ((dataset / "nowhere", *scenes_option), "no such file or folder"),
        ((dataset / "still", "--scenarios", tmp_path / "none"), "none"),
        (
            (dataset / "still", *scenes_option, "--out", tmp_path / "a" / "b.parquet"),
            "no such folder",
        ),
        ((tmp_path / "x.parquet",), "no such file"),
        (
            (dataset / "still", *scenes_option, "--reference", tmp_path / "r"),
            "no such file or folder",
        ),
    ):
        result = run_command(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


# --------------------------------------------------------------------------------------------------
# Real scenes


@pytest.mark.womd
def test_on_real_scenes_the_log_hardly_ever_drives_the_wrong_way(womd_dir: Path) -> None:
    found = []
    for scenario in load_scenarios(str(womd_dir / "validation")):
        found.append(measure_behaviour(scenario, log(scenario, 1), ()))
    logged = [f.logged for f in found]
    assert len(found) > 20
    for name, most in (("wrong_way_rate", 0.02), ("slide_rate", 0.005)):
        assert np.nanmean([values[name] for values in logged]) < most
    for f in found:
        assert f.sharp_collision_rate == f.logged["sharp_collision_rate"]
        assert f.speed == pytest.approx(f.logged["speed"], rel=1e-6)
