"""What the simple simulators do: replay, go straight on, keep turning, follow lanes, jump about."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wosac_toolkit.baselines import POLICIES, idm_kernels, simulate_baseline
from wosac_toolkit.errors import ScenarioError, WosacError
from wosac_toolkit.metric import score_scenario
from wosac_toolkit.scenario import (
    LaneType,
    Links,
    MapFeatureKind,
    ObjectType,
    Scenario,
    SignalState,
)
from wosac_toolkit.synthetic import generate_scenario

NOW = 10
MOVING = ("constant_velocity", "constant_turn_rate")
WITH_NOISE = (*MOVING, "idm", "random")
WITHOUT_FUTURE = (*WITH_NOISE, "static")


@pytest.fixture(scope="module")
def scene() -> Scenario:
    return generate_scenario(seed=3, index=1)


def with_tracks(scenario: Scenario, **changes: np.ndarray) -> Scenario:
    return dataclasses.replace(scenario, tracks=dataclasses.replace(scenario.tracks, **changes))


def first_eleven_steps(scenario: Scenario) -> Scenario:
    tracks = scenario.tracks
    return dataclasses.replace(
        with_tracks(
            scenario,
            **{
                name: getattr(tracks, name)[:, : NOW + 1]
                for name in ("position", "size", "heading", "velocity", "valid")
            },
        ),
        timestamps=scenario.timestamps[: NOW + 1],
    )


def turning(make_scenario: Callable[..., Scenario], rate: float, speed: float) -> Scenario:
    """Vehicles that drive on circles."""
    scenario = make_scenario(n_tracks=2, speed=speed)
    heading = 3.0 + rate * 0.1 * np.arange(91)  # past pi, wrapped
    wrapped = (heading + np.pi) % (2 * np.pi) - np.pi
    velocity = speed * np.stack([np.cos(heading), np.sin(heading)], -1)
    position = np.cumsum(velocity * 0.1, axis=0)
    return with_tracks(
        scenario,
        heading=np.tile(wrapped.astype(np.float32), (2, 1)),
        velocity=np.tile(velocity.astype(np.float32), (2, 1, 1)),
        position=np.pad(np.tile(position, (2, 1, 1)), ((0, 0), (0, 0), (0, 1))),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_rollouts_hold_all_sim_agents_in_order(policy: str, scene: Scenario) -> None:
    rollouts = simulate_baseline(scene, policy, n_rollouts=3)
    np.testing.assert_array_equal(
        rollouts.object_ids, scene.tracks.object_ids[scene.tracks.valid[:, NOW]]
    )
    assert rollouts.scenario_id == scene.scenario_id
    assert rollouts.states.shape == (3, len(rollouts.object_ids), 80, 4)
    assert rollouts.states.dtype == np.float32
    assert np.isfinite(rollouts.states).all()


@pytest.mark.parametrize("policy", WITH_NOISE)
def test_rollouts_differ_and_depend_on_seed_and_scene_alone(policy: str, scene: Scenario) -> None:
    states = simulate_baseline(scene, policy, seed=5).states
    assert len(np.unique(states[:, :, -1, 0].round(3), axis=0)) == 32
    simulate_baseline(generate_scenario(seed=3, index=2), policy, seed=5)
    np.testing.assert_array_equal(states, simulate_baseline(scene, policy, seed=5).states)
    assert not np.array_equal(states, simulate_baseline(scene, policy, seed=6).states)
    renamed = dataclasses.replace(scene, scenario_id="another")
    assert not np.array_equal(states, simulate_baseline(renamed, policy, seed=5).states)


def test_log_replays_and_holds_the_last_valid_state(scene: Scenario) -> None:
    states = simulate_baseline(scene, "log", n_rollouts=2).states
    np.testing.assert_array_equal(states[0], states[1])
    held = 0
    for agent, row in enumerate(scene.sim_agents()):
        last = NOW
        for t in range(80):
            if scene.tracks.valid[row, NOW + 1 + t]:
                last = NOW + 1 + t
            held += last != NOW + 1 + t
            expected = [*scene.tracks.position[row, last], scene.tracks.heading[row, last]]
            np.testing.assert_array_equal(states[0, agent, t], np.float32(expected))
    assert held > 0


def test_static_holds_every_pose_however_fast_it_was(scene: Scenario) -> None:
    rows = scene.sim_agents()
    assert np.hypot(*scene.tracks.velocity[rows, NOW].T).max() > 5
    states = simulate_baseline(scene, "static", n_rollouts=2).states
    for agent, row in enumerate(rows):
        pose = [*scene.tracks.position[row, NOW], scene.tracks.heading[row, NOW]]
        np.testing.assert_array_equal(states[:, agent], np.tile(np.float32(pose), (2, 80, 1)))


@pytest.mark.parametrize("policy", WITHOUT_FUTURE)
def test_scenes_of_the_test_split_can_be_simulated(policy: str, scene: Scenario) -> None:
    expected = simulate_baseline(scene, policy)
    found = simulate_baseline(first_eleven_steps(scene), policy)
    np.testing.assert_array_equal(found.states, expected.states)


def test_log_needs_a_logged_future(scene: Scenario) -> None:
    with pytest.raises(ScenarioError, match=rf"{scene.scenario_id}.*no logged future.*11 steps"):
        simulate_baseline(first_eleven_steps(scene), "log")


def test_constant_velocity_goes_straight_on(make_scenario: Callable[..., Scenario]) -> None:
    scenario = make_scenario(speed=10.0)
    states = simulate_baseline(scenario, "constant_velocity", n_rollouts=400).states
    start = scenario.tracks.position[:, NOW]
    gone = states[:, :, -1, :3] - start
    # 8 s at 10 m/s, noise on speed growing over the first second: 80 m on average.
    np.testing.assert_allclose(gone[..., 0].mean(), 80.0, atol=1.5)
    np.testing.assert_allclose(gone[..., 1].mean(), 0.0, atol=0.5)
    assert 4.0 < gone[..., 0].std() < 12.0
    assert 1.0 < gone[..., 1].std() < 5.0
    assert not gone[..., 2].any()
    # No jump at the start.
    first = states[:, :, 0, :2] - start[:, :2]
    np.testing.assert_allclose(first[..., 0], 1.0, atol=0.05)
    assert np.abs(states[:, :, 0, 3]).max() < 0.02
    # And from then on each drives straight.
    assert np.ptp(states[:, :, 15:, 3], axis=-1).max() < 1e-5


def test_constant_turn_rate_drives_a_circle(make_scenario: Callable[..., Scenario]) -> None:
    scenario = turning(make_scenario, rate=0.3, speed=6.0)
    states = simulate_baseline(scenario, "constant_turn_rate", n_rollouts=200).states
    turned = states[..., -1, 3] - scenario.tracks.heading[:, NOW]
    np.testing.assert_allclose(turned.mean(), 8 * 0.3, atol=0.05)
    mean = states[..., :2].mean(axis=(0, 1))
    np.testing.assert_allclose(
        mean[:40], scenario.tracks.position[0, NOW + 1 : NOW + 41, :2], atol=0.5
    )


@pytest.mark.parametrize("policy", MOVING)
def test_who_stands_stays(policy: str, make_scenario: Callable[..., Scenario]) -> None:
    scenario = make_scenario(speed=0.0)
    jitter = np.random.default_rng(0).normal(0, 0.05, scenario.tracks.velocity.shape)
    scenario = with_tracks(scenario, velocity=jitter.astype(np.float32))
    states = simulate_baseline(scenario, policy).states
    np.testing.assert_array_equal(
        states[..., :3],
        np.broadcast_to(np.float32(scenario.tracks.position[:, None, NOW]), states[..., :3].shape),
    )
    assert not states[..., 3].any()


@pytest.mark.parametrize("missing", [0.0, np.nan])
def test_missing_velocity_is_taken_from_history(
    missing: float, make_scenario: Callable[..., Scenario]
) -> None:
    scenario = make_scenario(speed=10.0)
    velocity = np.full_like(scenario.tracks.velocity, missing)
    valid = scenario.tracks.valid.copy()
    valid[:, NOW - 1] = False  # the last step before the current one is hidden
    states = simulate_baseline(
        with_tracks(scenario, velocity=velocity, valid=valid), "constant_velocity", n_rollouts=400
    ).states
    gone = states[:, :, -1, 0] - scenario.tracks.position[:, NOW, 0]
    np.testing.assert_allclose(gone.mean(), 80.0, atol=1.5)


def test_without_velocity_and_history_an_agent_stays(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = make_scenario()
    valid = scenario.tracks.valid.copy()
    valid[:, :NOW] = False
    velocity = np.zeros_like(scenario.tracks.velocity)
    for policy in MOVING:
        states = simulate_baseline(
            with_tracks(scenario, velocity=velocity, valid=valid), policy
        ).states
        np.testing.assert_allclose(np.ptp(states, axis=2), 0.0)


def test_hidden_history_is_not_used(make_scenario: Callable[..., Scenario]) -> None:
    scenario = turning(make_scenario, rate=0.3, speed=6.0)
    valid = scenario.tracks.valid.copy()
    valid[:, : NOW - 2] = False
    heading = np.where(valid, scenario.tracks.heading, 0).astype(np.float32)
    states = simulate_baseline(
        with_tracks(scenario, heading=heading, valid=valid), "constant_turn_rate", n_rollouts=200
    ).states
    turned = states[..., -1, 3] - scenario.tracks.heading[:, NOW]
    np.testing.assert_allclose(turned.mean(), 8 * 0.3, atol=0.05)


def test_positions_stay_exact_far_from_the_origin(make_scenario: Callable[..., Scenario]) -> None:
    near = simulate_baseline(make_scenario(speed=10.0), "constant_velocity").states
    origin = (16384.0, -8192.0)
    far = simulate_baseline(make_scenario(speed=10.0, origin=origin), "constant_velocity").states
    np.testing.assert_allclose(far[..., 0] - origin[0], near[..., 0], atol=2e-3)
    np.testing.assert_allclose(far[..., 1] - origin[1], near[..., 1], atol=2e-3)


def test_unknown_policy_names_the_known_ones(scene: Scenario) -> None:
    with pytest.raises(WosacError, match=r"'teleport'.*constant_velocity"):
        simulate_baseline(scene, "teleport")


@pytest.mark.parametrize("wrong", [{"n_rollouts": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int], scene: Scenario) -> None:
    with pytest.raises(WosacError, match="at least"):
        simulate_baseline(scene, "log", **wrong)


def test_a_current_step_outside_the_record_is_an_error(scene: Scenario) -> None:
    broken = dataclasses.replace(scene, current_time_index=91)
    with pytest.raises(ScenarioError, match="current step 91"):
        simulate_baseline(broken, "constant_velocity")


# --------------------------------------------------------------------------------------------------
# The random agent


def test_random_is_normal_beside_the_autonomous_vehicle(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = turning(make_scenario, rate=0.3, speed=6.0)
    states = simulate_baseline(scenario, "random", n_rollouts=100).states.astype(np.float64)
    heading = float(scenario.tracks.heading[0, NOW])
    away = states[..., :2] - scenario.tracks.position[0, NOW, :2]
    ahead = away @ [np.cos(heading), np.sin(heading)]
    left = away @ [-np.sin(heading), np.cos(heading)]
    for value in (ahead, left, states[..., 3] - heading):
        np.testing.assert_allclose(value.mean(), 1.0, atol=0.01)
        np.testing.assert_allclose(value.std(), 0.1, atol=0.005)
        # Each step anew: what was before says nothing.
        now, then = value[..., 1:].ravel() - 1, value[..., :-1].ravel() - 1
        assert abs(np.mean(now * then)) < 0.001
    np.testing.assert_array_equal(states[..., 2], 0)


def test_random_needs_the_autonomous_vehicle(make_scenario: Callable[..., Scenario]) -> None:
    scenario = make_scenario()
    valid = scenario.tracks.valid.copy()
    valid[scenario.sdc_track_index, NOW] = False
    with pytest.raises(ScenarioError, match=r"scene.*no autonomous vehicle \(track 0\)"):
        simulate_baseline(with_tracks(scenario, valid=valid), "random")
    with pytest.raises(ScenarioError, match="no autonomous vehicle"):
        simulate_baseline(dataclasses.replace(scenario, sdc_track_index=-1), "random")


# --------------------------------------------------------------------------------------------------
# IDM: what drivers do


def line(*corners: tuple[float, float], spacing: float = 0.5) -> np.ndarray:
    """Points along a polygonal line."""
    points = np.asarray(corners, dtype=np.float64)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.arange(0, along[-1] + 1e-9, spacing)
    return np.stack([np.interp(at, along, points[:, k]) for k in range(2)], -1)


def arc(start: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """A curve from a point, along x at first; to the left for a positive radius."""
    turned = np.linspace(0, angle, int(abs(radius) * angle / 0.5) + 2)
    curve = np.stack([abs(radius) * np.sin(turned), radius * (1 - np.cos(turned))], -1)
    return curve + start


def place(
    scenario: Scenario, agent: int, x: float, y: float, speed: float, heading: float = 0.0
) -> Scenario:
    """Put an agent somewhere at the current step, where it comes from at constant velocity."""
    tracks = scenario.tracks
    velocity = speed * np.array([np.cos(heading), np.sin(heading)])
    position, headings, velocities = (
        tracks.position.copy(),
        tracks.heading.copy(),
        tracks.velocity.copy(),
    )
    time = 0.1 * (np.arange(position.shape[1]) - NOW)
    position[agent, :, :2] = np.array([x, y]) + velocity * time[:, None]
    headings[agent], velocities[agent] = heading, velocity
    return with_tracks(scenario, position=position, heading=headings, velocity=velocities)


def kinematics(scenario: Scenario, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speed [R, N, 80] and change of heading [R, N, 80] from step to step."""
    rows = scenario.sim_agents()
    now = np.concatenate(
        [scenario.tracks.position[rows, NOW], scenario.tracks.heading[rows, NOW, None]], -1
    )
    whole = np.concatenate(
        [np.broadcast_to(now[:, None], (*states.shape[:2], 1, 4)), states.astype(np.float64)], 2
    )
    step = np.diff(whole, axis=2)
    return np.hypot(step[..., 0], step[..., 1]) / 0.1, step[..., 3]


def test_idm_follows_a_curve(make_scenario: Callable[..., Scenario]) -> None:
    curve = np.concatenate([line((-40, 0), (0, 0))[:-1], arc((0, 0), 40.0, 2.0)])
    scenario = place(make_scenario(n_tracks=1, lanes={7: curve}), 0, -10.0, 0.8, 8.0)
    states = simulate_baseline(scenario, "idm", n_rollouts=8).states
    radius = np.hypot(states[..., 0], states[..., 1] - 40.0)
    later = (states[..., 0] > 12) & (states[..., 1] < 60)
    assert later.sum() > 100
    # It begins 0.8 m beside the centreline, and comes back to it.
    np.testing.assert_allclose(radius[later], 40.0, atol=0.15)
    bearing = np.arctan2(states[..., 1] - 40.0, states[..., 0]) + np.pi / 2
    np.testing.assert_allclose(states[..., 3][later], bearing[later], atol=0.05)
    np.testing.assert_allclose(states[..., 0, 1], 0.8, atol=0.02)
    speed, turn = kinematics(scenario, states)
    np.testing.assert_allclose(speed[..., 0], 8.0, atol=0.3)
    assert np.abs(turn).max() < 0.06


def test_idm_slows_down_for_a_sharp_curve(make_scenario: Callable[..., Scenario]) -> None:
    curve = np.concatenate([line((-60, 0), (0, 0))[:-1], arc((0, 0), 8.0, 1.5)])
    scenario = place(make_scenario(n_tracks=1, lanes={7: curve}), 0, -40.0, 0.0, 10.0)
    states = simulate_baseline(scenario, "idm").states
    speed, _ = kinematics(scenario, states)
    inside = states[..., 1] > 2
    assert inside.sum() > 100
    assert (speed[inside] ** 2 / 8.0).max() < 5.0  # m/s^2 to the side
    assert speed[..., :3].min() > 9.0


@pytest.mark.parametrize(
    "kind", [ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST, ObjectType.OTHER]
)
def test_idm_stops_behind_whoever_stands_in_its_way(
    kind: ObjectType, make_scenario: Callable[..., Scenario]
) -> None:
    scenario = make_scenario(
        n_tracks=2, object_types=[ObjectType.VEHICLE, kind], lanes={7: line((-20, 0), (200, 0))}
    )
    scenario = place(place(scenario, 0, 0.0, 0.0, 10.0), 1, 50.0, 1.2, 0.0, heading=1.57)
    states = simulate_baseline(scenario, "idm").states
    speed, _ = kinematics(scenario, states)
    # The fronts are 1 m (half the width of a box across) from the centre of who stands, at most.
    gap = (50.0 - 1.0) - (states[:, 0, :, 0] + 2.25)
    assert gap.min() > 0.5
    assert gap[:, -1].max() < 15.0
    assert np.median(speed[:, 0, -1]) < 2.0


def test_idm_ignores_who_stands_beside_the_lane_or_above(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = make_scenario(n_tracks=3, lanes={7: line((-20, 0), (200, 0))})
    scenario = place(place(scenario, 0, 0.0, 0.0, 10.0), 1, 40.0, 3.0, 0.0)
    scenario = place(scenario, 2, 50.0, 0.0, 0.0)
    scenario.tracks.position[2, :, 2] = 6.0  # on a bridge
    states = simulate_baseline(scenario, "idm").states
    assert np.median(states[:, 0, -1, 0]) > 70.0
    assert states[:, 0, -1, 0].min() > 45.0


def test_idm_follows_its_leader(make_scenario: Callable[..., Scenario]) -> None:
    scenario = make_scenario(n_tracks=2, lanes={7: line((-20, 0), (200, 0))})
    scenario = place(place(scenario, 0, 0.0, 0.0, 12.0), 1, 30.0, 0.0, 4.0)
    states = simulate_baseline(scenario, "idm").states
    gap = states[:, 1, :, 0] - states[:, 0, :, 0] - 4.5
    assert gap.min() > 0.5
    # Free of the leader it would be past 70 m.
    assert states[:, 0, -1, 0].max() < 80.0


@pytest.mark.parametrize(
    ("state", "stops"),
    [
        (SignalState.STOP, True),
        (SignalState.ARROW_STOP, True),
        (SignalState.CAUTION, True),
        (SignalState.GO, False),
        (SignalState.UNKNOWN, False),
        (SignalState.FLASHING_STOP, False),
    ],
)
def test_idm_stops_at_red_lights(
    state: SignalState, stops: bool, make_scenario: Callable[..., Scenario]
) -> None:
    scenario = make_scenario(
        n_tracks=1,
        lanes={7: line((-20, 0), (40, 0)), 8: line((40, 0), (200, 0))},
        # The light of the current step counts, and that of no other.
        signals=[[(8, state if t == NOW else SignalState.GO, (40, 0))] for t in range(91)],
    )
    states = simulate_baseline(place(scenario, 0, 0.0, 0.0, 10.0), "idm").states
    end = states[:, 0, -1, 0]
    if stops:
        assert end.max() < 40.0 - 2.25
        assert end.min() > 15.0
    else:
        assert end.min() > 45.0


def test_idm_does_not_brake_for_a_light_that_it_cannot_stop_at(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = make_scenario(
        n_tracks=1,
        lanes={7: line((-20, 0), (200, 0))},
        signals=[[(7, SignalState.STOP, (5, 0))]] * 91,
    )
    states = simulate_baseline(place(scenario, 0, 0.0, 0.0, 12.0), "idm").states
    assert states[:, 0, -1, 0].min() > 50.0


def fork(make_scenario: Callable[..., Scenario]) -> Scenario:
    lanes = {
        1: line((-60, 0), (20, 0)),
        2: line((20, 0), (200, 0)),
        3: arc((20, 0), 60.0, 1.2),
    }
    return place(make_scenario(n_tracks=1, lanes=lanes), 0, 0.0, 0.0, 8.0)


def test_idm_draws_a_way_at_forks(make_scenario: Callable[..., Scenario]) -> None:
    states = simulate_baseline(fork(make_scenario), "idm", n_rollouts=64).states[:, 0]
    ahead = states[:, -1, 1] < 1.0
    assert 16 < ahead.sum() < 56
    np.testing.assert_allclose(states[ahead, :, 1], 0, atol=0.01)
    turned = states[~ahead, -1]
    np.testing.assert_allclose(np.hypot(turned[:, 0] - 20, turned[:, 1] - 60), 60, atol=0.1)


def test_idm_takes_recorded_exits_where_there_are_any(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = fork(make_scenario)
    road_map, rows = scenario.road_map, scenario.road_map.of_kind(MapFeatureKind.LANE)
    counts = np.zeros(len(road_map.kinds), np.int64)
    counts[rows[0]] = 2
    exits = Links(np.concatenate([[0], np.cumsum(counts)]), np.array([3, 999]))  # 999 is no lane
    scenario = dataclasses.replace(
        scenario, road_map=dataclasses.replace(road_map, exit_lanes=exits)
    )
    states = simulate_baseline(scenario, "idm").states[:, 0]
    assert states[:, -1, 1].min() > 5.0


def test_idm_keeps_out_of_bike_lanes(make_scenario: Callable[..., Scenario]) -> None:
    for kind, turns in ((ObjectType.VEHICLE, False), (ObjectType.CYCLIST, True)):
        scenario = fork(make_scenario)
        scenario = with_tracks(scenario, object_types=np.array([kind], np.int8))
        scenario.road_map.types[scenario.road_map.of_kind(MapFeatureKind.LANE)[2]] = (
            LaneType.BIKE_LANE
        )
        end = simulate_baseline(place(scenario, 0, 15.0, 0.0, 4.0), "idm").states[:, 0, -1]
        assert (end[:, 1] > 1.0).any() == turns


def test_idm_keeps_to_the_speed_limit_and_who_is_faster_goes_on(
    make_scenario: Callable[..., Scenario],
) -> None:
    for limit_mph, speed, expected in ((35.0, 14.0, 15.6), (15.0, 10.0, 10.0), (0.0, 10.0, 11.2)):
        scenario = make_scenario(n_tracks=1, lanes={7: line((-20, 0), (400, 0))})
        scenario.road_map.speed_limit_mph[:] = limit_mph
        scenario = place(scenario, 0, 0.0, 0.0, speed)
        states = simulate_baseline(scenario, "idm", n_rollouts=200).states
        last = kinematics(scenario, states)[0][:, 0, -20:]
        assert abs(last.mean() - expected) < 0.15 * expected


def test_idm_takes_height_from_the_lane(make_scenario: Callable[..., Scenario]) -> None:
    flat = line((-20, 0), (200, 0))
    slope = np.column_stack([flat, 0.1 * flat[:, 0]])
    scenario = place(make_scenario(n_tracks=1, lanes={7: slope}), 0, 0.0, 0.0, 10.0)
    scenario.tracks.position[..., 2] = 0.9  # centre of the box, above the road
    states = simulate_baseline(scenario, "idm").states
    np.testing.assert_allclose(states[..., 2], 0.9 + 0.1 * states[..., 0], atol=0.01)


def test_idm_leaves_parked_vehicles_where_they_are(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = make_scenario(n_tracks=3, speed=0.0, lanes={7: line((-20, 0), (200, 0))})
    scenario = place(place(scenario, 0, 0.0, 2.2, 0.0), 1, 30.0, 0.0, 0.0, heading=1.5)
    scenario = place(scenario, 2, 60.0, 0.0, 0.0)
    states = simulate_baseline(scenario, "idm").states
    for beside_or_across in (0, 1):
        assert not np.ptp(states[:, beside_or_across], axis=1).any()
    # Who stands on a lane starts at some time, or not within these eight seconds.
    moved = states[:, 2, -1, 0] > 60.5
    assert 4 < moved.sum() < 28


@pytest.mark.parametrize("lanes", [None, {7: [(0.0, 0.0)]}])
def test_idm_without_lanes_drives_on_as_now(
    lanes: dict[int, np.ndarray] | None, make_scenario: Callable[..., Scenario]
) -> None:
    scenario = make_scenario(n_tracks=3, speed=6.0, lanes=lanes)
    states = simulate_baseline(scenario, "idm").states
    for agent, y in enumerate((0.0, 4.0, 8.0)):
        np.testing.assert_allclose(states[:, agent, :, 1], y, atol=1e-4)
    assert (np.diff(states[..., 0], axis=-1) >= 0).all()


def test_idm_reverses_who_reverses(make_scenario: Callable[..., Scenario]) -> None:
    scenario = place(make_scenario(n_tracks=1, lanes={7: line((-50, 0), (50, 0))}), 0, 0, 0, -2.0)
    states = simulate_baseline(scenario, "idm").states
    assert states[:, 0, -1, 0].max() < -1.0
    np.testing.assert_allclose(states[..., 3], 0.0, atol=1e-5)


def test_idm_can_do_with_nobody_and_with_pedestrians_alone(
    make_scenario: Callable[..., Scenario],
) -> None:
    scenario = make_scenario(lanes={7: line((-20, 0), (200, 0))})
    nobody = with_tracks(scenario, valid=np.zeros_like(scenario.tracks.valid))
    assert simulate_baseline(nobody, "idm").states.shape == (32, 0, 80, 4)
    types = np.full(3, ObjectType.PEDESTRIAN, np.int8)
    states = simulate_baseline(with_tracks(scenario, object_types=types), "idm").states
    np.testing.assert_allclose(states[..., -1, 0].mean(), 5.0 + 40.0, atol=2.0)


def test_idm_is_the_same_anywhere(make_scenario: Callable[..., Scenario]) -> None:
    lane = line((-20, 0), (200, 0))
    origin = (16384.0, -8192.0)
    near = make_scenario(lanes={7: lane})
    far = make_scenario(lanes={7: lane + origin}, origin=origin)
    moved = simulate_baseline(far, "idm").states[..., :2] - np.float32(origin)
    np.testing.assert_allclose(moved, simulate_baseline(near, "idm").states[..., :2], atol=5e-3)


@pytest.mark.parametrize("index", range(4))
def test_idm_moves_as_vehicles_can(index: int) -> None:
    scenario = generate_scenario(seed=4, index=index)
    states = simulate_baseline(scenario, "idm", n_rollouts=8).states
    rows = scenario.sim_agents()
    vehicles = scenario.tracks.object_types[rows] == ObjectType.VEHICLE
    speed, turn = (value[:, vehicles] for value in kinematics(scenario, states))
    acceleration = np.diff(speed, axis=-1) / 0.1
    assert acceleration.max() < 3.0
    assert acceleration.min() > -9.0
    # Nobody turns on the spot, nor faster than a steering wheel allows.
    assert (np.abs(turn) <= 0.5 * np.maximum(speed * 0.1, 1e-3)).all()
    assert np.abs(turn).max() < 0.25


def test_idm_clearly_beats_constant_velocity_on_synthetic_scenes() -> None:
    scenes = [generate_scenario(seed=5, index=index) for index in range(4)]
    score = {
        policy: np.mean(
            [score_scenario(s, simulate_baseline(s, policy)).metametric for s in scenes]
        )
        for policy in ("random", "constant_velocity", "idm", "log")
    }
    assert score["random"] < score["constant_velocity"]
    assert score["constant_velocity"] + 0.1 < score["idm"]
    assert score["idm"] < score["log"] < 1.0


# --------------------------------------------------------------------------------------------------
# IDM: the kernels against plain code


def random_lanes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [P, 3], stations [P] and offsets [L + 1] of six winding lanes."""
    lanes, stations = [], []
    for _ in range(6):
        heading = rng.uniform(0, 6) + np.cumsum(rng.normal(0, 0.1, 40))
        step = rng.uniform(0.3, 1.2, 40)[:, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
        points = np.column_stack([rng.uniform(-20, 20, 2) + np.cumsum(step, 0), 0.05 * heading])
        lanes.append(points)
        stations.append(
            np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points[:, :2], axis=0).T))])
        )
    return np.concatenate(lanes), np.concatenate(stations), np.arange(7) * 40


def test_projection_is_the_nearest_point() -> None:
    rng = np.random.default_rng(0)
    points, stations, offsets = random_lanes(rng)
    x, y = rng.uniform(-30, 30, (2, 20))
    distance, station = np.full((20, 6), np.nan), np.full((20, 6), np.nan)
    segment = np.zeros((20, 6), np.int64)
    flat = np.ascontiguousarray(points[:, :2])
    idm_kernels.project(flat, stations, offsets, x, y, 10.0, distance, station, segment)
    for lane in range(6):
        one = slice(offsets[lane], offsets[lane + 1])
        fine = np.linspace(0, stations[one][-1], 20_000)
        curve = np.stack([np.interp(fine, stations[one], flat[one, k]) for k in range(2)], -1)
        for agent in range(20):
            apart = np.hypot(*(curve - (x[agent], y[agent])).T)
            if apart.min() < 10.0:
                np.testing.assert_allclose(distance[agent, lane], apart.min(), atol=1e-3)
                at = station[agent, lane]
                here = [np.interp(at, stations[one], flat[one, k]) for k in range(2)]
                np.testing.assert_allclose(
                    np.hypot(here[0] - x[agent], here[1] - y[agent]), apart.min(), atol=1e-3
                )
                first = segment[agent, lane]
                assert stations[first] - 1e-9 <= at <= stations[first + 1] + 1e-9
    assert np.isinf(distance).any()
    assert (distance < 10).any()


def test_routes_are_sampled_as_interpolation_does() -> None:
    rng = np.random.default_rng(1)
    points, stations, offsets = random_lanes(rng)
    routes = [[0, 3, 1], [2], [5, 4]]
    begin = np.array([3.3, 0.0, 10.0])
    sampled, lane_at = np.empty((3, 120, 3)), np.empty((3, 120), np.int64)
    idm_kernels.sample_routes(
        points,
        stations,
        offsets,
        np.concatenate(routes),
        np.cumsum([0, *map(len, routes)]),
        begin,
        sampled,
        lane_at,
    )
    for route, lanes in enumerate(routes):
        lengths = stations[offsets[np.add(lanes, 1)] - 1]
        ends = np.cumsum(lengths)
        for k in range(120):
            at = begin[route] + k * idm_kernels.SPACING
            place = min(int(np.searchsorted(ends, at)), len(lanes) - 1)
            assert lane_at[route, k] == lanes[place]
            if at > ends[-1]:
                continue
            one = slice(offsets[lanes[place]], offsets[lanes[place] + 1])
            local = at - (ends[place] - lengths[place])
            expected = [np.interp(local, stations[one], points[one, c]) for c in range(3)]
            np.testing.assert_allclose(sampled[route, k], expected, atol=1e-9)
        beyond = np.arange(120) + begin[route] > ends[-1] + 1
        steps = np.diff(sampled[route, beyond], axis=0)
        np.testing.assert_allclose(np.hypot(steps[:, 0], steps[:, 1]), 1.0, atol=1e-9)
        np.testing.assert_allclose(np.ptp(steps, axis=0), 0, atol=1e-9)


def test_curves_are_sampled_evenly() -> None:
    rng = np.random.default_rng(2)
    along = np.cumsum(rng.uniform(0.8, 1.6, (5, 30)), axis=1)
    along -= along[:, :1]
    curves = rng.normal(size=(5, 30, 4))
    even = np.empty_like(curves)
    idm_kernels.sample_evenly(curves, along, even)
    for p in range(5):
        at = np.arange(30) * idm_kernels.SPACING
        inside = at <= along[p, -1]
        for c in range(4):
            expected = np.interp(at[inside], along[p], curves[p, :, c])
            np.testing.assert_allclose(even[p, inside, c], expected, atol=1e-9)


def corners(x: Any, y: Any, c: Any, s: Any, length: Any, width: Any) -> np.ndarray:
    """Corners [..., 4, 2] of rectangles of half length and half width; c, s point ahead."""
    x, y, c, s, length, width = (
        np.asarray(value)[..., None] for value in (x, y, c, s, length, width)
    )
    ahead, left = length * np.array([1, -1, -1, 1]), width * np.array([1, 1, -1, -1])
    return np.stack([x + ahead * c - left * s, y + ahead * s + left * c], -1)


def overlap(slices: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Which of the rectangles [K, 4, 2] overlap the one [4, 2]: no side separates them."""
    apart = np.zeros(len(slices), bool)
    for sides in (np.roll(slices, -1, axis=1) - slices, np.roll(box, -1, axis=0) - box):
        for edge in np.moveaxis(np.broadcast_to(sides, slices.shape), 1, 0):
            normal = np.stack([-edge[:, 1], edge[:, 0]], -1)
            a, b = np.einsum("kci,ki->kc", slices, normal), normal @ box.T
            apart |= (a.max(1) < b.min(1)) | (b.max(1) < a.min(1))
    return ~apart


def random_paths(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, ...]:
    heading = rng.uniform(0, 6, (n, 1)) + np.cumsum(rng.normal(0, 0.06, (n, k)), axis=1)
    x = rng.uniform(-15, 15, (n, 1)) + np.cumsum(np.cos(heading), axis=1)
    y = rng.uniform(-15, 15, (n, 1)) + np.cumsum(np.sin(heading), axis=1)
    return x, y, heading, np.cos(heading), np.sin(heading)


def test_what_stands_on_a_path_is_found() -> None:
    rng = np.random.default_rng(3)
    x, y, _, c, s = random_paths(rng, 12, 60)
    z = np.zeros_like(x)
    half_width = rng.uniform(0.3, 1.3, 12)
    turned = rng.uniform(0, 6, 15)
    boxes = np.column_stack(
        [
            rng.uniform(-40, 40, (15, 2)),
            np.where(np.arange(15) % 5 == 0, 9.0, 0.5),  # some are on a bridge
            np.cos(turned),
            np.sin(turned),
            rng.uniform(0.4, 4, 15),
            rng.uniform(0.3, 1.3, 15),
        ]
    )
    contacts = np.empty_like(x)
    idm_kernels.standing_contacts(x, y, z, c, s, half_width, boxes, contacts)
    for path in range(12):
        ahead = np.stack([c[path], s[path]], -1)
        centre = np.stack([x[path], y[path]], -1)
        slices = corners(*centre.T, *ahead.T, np.full(60, 0.5), np.full(60, half_width[path]))
        found = np.full(60, np.inf)
        for box in boxes[boxes[:, 2] < 5]:
            shape = corners(*box[[0, 1, 3, 4, 5, 6]])
            face = np.einsum("bki,ki->bk", shape[:, None] - centre, ahead).min(0)
            at = np.arange(60) + np.clip(face, -0.5, 0.5)
            found = np.minimum(found, np.where(overlap(slices, shape), at, np.inf))
        expected = np.minimum.accumulate(found[::-1])[::-1]
        np.testing.assert_allclose(contacts[path], expected, atol=1e-9)
    assert np.isfinite(contacts).mean() > 0.1
    assert np.isinf(contacts).mean() > 0.1


def driven_by_plain_code(a: dict[str, Any]) -> np.ndarray:
    """What `drive` does, an agent at a time and every pair in full."""
    states = a["states"].astype(np.float64)
    movers = [*a["drivers"], *a["walkers"]]
    n_drivers, last = len(a["drivers"]), a["path_x"].shape[1] - 1
    k, stem = idm_kernels, 2 * math.sqrt(a["most"] * a["comfortable"])
    decay = math.exp(-0.1 / k.NOISE_SECONDS)
    for r in range(len(states)):
        pose = {i: a["start"][i, :4].copy() for i in movers}
        velocity = {i: a["start"][i, 4:].copy() for i in movers}
        along, swing, pedal = np.zeros((3, n_drivers))
        speed = [float(np.hypot(*velocity[i])) for i in a["drivers"]]
        for t in range(states.shape[2]):
            before = pedal.copy()
            for d, i in enumerate(a["drivers"]):
                path, v = a["path_of"][r, d], speed[d]
                if t < a["start_step"][r, d]:
                    pedal[d] = 0
                    continue
                front = along[d] + a["half_length"][i]
                first = min(int(front + 0.5), last)
                gap, closing = a["contacts"][path, first] - front, v
                sight = min(k.SIGHT_METRES + k.SIGHT_SECONDS * v, gap)
                for j in movers:
                    if j == i or abs(pose[j][2] - pose[i][2]) > k.SAME_LEVEL:
                        continue
                    x, y, _, h = pose[j]
                    box = corners(
                        x, y, np.cos(h), np.sin(h), a["half_length"][j], a["half_width"][j]
                    )
                    seen = np.arange(first, min(int(front + sight + 0.5), last) + 1)
                    wide = np.full(len(seen), a["half_width"][i] + k.CLEARANCE)
                    where = [a[n][path, seen] for n in ("path_x", "path_y")]
                    ahead = [a[n][path, seen] for n in ("path_cosine", "path_sine")]
                    slices = corners(*where, *ahead, np.full(len(seen), 0.5), wide)
                    for m in np.flatnonzero(overlap(slices, box))[:1]:
                        centre, along_path = np.array(where)[:, m], np.array(ahead)[:, m]
                        face = np.clip(((box - centre) @ along_path).min(), -0.5, 0.5)
                        if seen[m] + face - front < min(gap, sight):
                            gap = seen[m] + face - front
                            closing = v - velocity[j] @ along_path
                headway = a["headway"][r, d]
                reach = a["standstill"] + max(0, v * headway + v * closing / stem)
                follow = reach / max(gap, k.SMALLEST_GAP)
                if np.isfinite(a["path_stop"][path]):
                    to_line = a["path_stop"][path] - front + a["standstill"] - k.STOP_BEFORE_LINE
                    reach = a["standstill"] + max(0, v * headway + v * v / stem)
                    follow = max(follow, reach / max(to_line, k.SMALLEST_GAP))
                s = min(int(along[d]), last)
                wish = a["wish"][r, d] * a["path_limit"][path, s]
                wish = min(wish, a["path_curve_speed"][path, s])
                swing[d] = decay * swing[d] + math.sqrt(1 - decay**2) * a["noise"][r, d, t]
                wanted = a["most"] * (1 - (v / wish) ** 4 - follow**2) + swing[d] * min(v / 3, 1)
                wanted = float(np.clip(wanted, -k.HARDEST_BRAKING, a["most"]))
                eased = before[d] + k.EASING * (wanted - before[d])
                pedal[d] = wanted if wanted < -k.EMERGENCY else eased
            for d, i in enumerate(a["drivers"]):
                path = a["path_of"][r, d]
                faster = speed[d] + 0.1 * pedal[d]
                if faster <= 0:
                    faster = pedal[d] = 0.0
                along[d] += 0.1 * (speed[d] + faster) / 2
                speed[d] = faster
                at = np.arange(last + 1)
                pose[i] = np.array(
                    [
                        np.interp(along[d], at, a[name][path])
                        for name in ("path_x", "path_y", "path_z", "path_heading")
                    ]
                )
                s = min(int(along[d]), last - 1)
                velocity[i] = faster * np.array(
                    [a["path_cosine"][path, s], a["path_sine"][path, s]]
                )
                states[r, i, t] = pose[i] + [*a["origin"], 0]
            for i in a["walkers"]:
                now = states[r, i, t] - [*a["origin"], 0]
                velocity[i] = (now - pose[i])[:2] / 0.1
                pose[i] = now
    return states


def test_drive_is_what_plain_code_does() -> None:
    rng = np.random.default_rng(4)
    n, n_drivers, n_rollouts, n_steps = 9, 6, 2, 30
    x, y, heading, c, s = random_paths(rng, 8, 80)
    z = np.cumsum(rng.normal(0, 0.2, x.shape), axis=1)
    z[7] += 20.0
    path_of = np.stack([np.arange(6), np.array([6, 7, 2, 3, 4, 5])])
    first = path_of[0]
    start = np.zeros((n, 6))
    start[:6, :4] = np.stack([x[first, 0], y[first, 0], z[first, 0], heading[first, 0]], -1)
    start[6:, :2], start[6:, 3] = rng.uniform(-20, 20, (3, 2)), rng.uniform(0, 6, 3)
    speed = rng.uniform(0, 12, n)
    start[:, 4:] = speed[:, None] * np.stack([np.cos(start[:, 3]), np.sin(start[:, 3])], -1)
    origin = np.array([100.0, -50.0, 3.0])
    states = np.zeros((n_rollouts, n, n_steps, 4), np.float32)
    time = 0.1 * np.arange(1, n_steps + 1)[:, None]
    states[:, 6:, :, :2] = start[6:, None, :2] + start[6:, None, 4:] * time + origin[:2]
    states[..., 2] = 3.0
    states[:, 6:, :, 3] = start[6:, 3, None]
    contacts = np.full(x.shape, np.inf)
    contacts[1, :40] = 40.3
    stop = np.full(8, np.inf)
    stop[[0, 4]] = 35.0, 20.0
    shape = n_rollouts, n_drivers
    inputs = {
        "path_x": x,
        "path_y": y,
        "path_z": z,
        "path_heading": heading,
        "path_cosine": c,
        "path_sine": s,
        "path_limit": rng.uniform(5, 15, x.shape),
        "path_curve_speed": rng.uniform(3, 20, x.shape),
        "path_stop": stop,
        "contacts": contacts,
        "drivers": np.arange(6),
        "walkers": np.arange(6, 9),
        "path_of": path_of,
        "start": start,
        "half_length": rng.uniform(0.4, 3, n),
        "half_width": rng.uniform(0.3, 1.2, n),
        "wish": rng.uniform(0.7, 1.3, shape),
        "headway": rng.uniform(0.7, 1.5, shape),
        "start_step": np.where(np.arange(6) == 3, 12, 0) * np.ones(shape, np.int64),
        "noise": rng.normal(0, 0.5, (*shape, n_steps)).astype(np.float32),
        "standstill": 2.0,
        "most": 1.0,
        "comfortable": 1.5,
        "origin": origin,
        "states": states,
    }
    expected = driven_by_plain_code(inputs)
    # Alone everybody would drive otherwise: there are leaders.
    inputs["states"] = states.copy()
    idm_kernels.drive(**inputs)
    np.testing.assert_allclose(inputs["states"], expected, atol=2e-4)
    alone = {**inputs, "states": states.copy(), "half_width": np.full(n, -9.0)}
    idm_kernels.drive(**alone)
    assert np.abs(alone["states"] - inputs["states"]).max() > 0.5


@pytest.mark.womd
def test_log_is_that_of_the_official_results(goldens_dir: Path, womd_dir: Path) -> None:
    from wosac_toolkit.io.scenarios import load_scenarios

    bundles = {path.name[: -len("_log.npz")]: path for path in goldens_dir.glob("*_log.npz")}
    compared = 0
    for shard in sorted(womd_dir.glob("*/*tfrecord*"))[:3]:
        for scenario in load_scenarios(shard):
            if scenario.scenario_id in bundles:
                with np.load(bundles[scenario.scenario_id]) as bundle:
                    ids, states = bundle["object_ids"], bundle["rollouts"]
                rollouts = simulate_baseline(scenario, "log", n_rollouts=len(states))
                np.testing.assert_array_equal(rollouts.object_ids, ids)
                np.testing.assert_array_equal(rollouts.states, states)
                compared += 1
    assert compared > 0
