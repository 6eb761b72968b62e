"""What the simple simulators do: replay, go straight on, keep turning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wosac_toolkit.baselines import POLICIES, simulate_baseline
from wosac_toolkit.errors import ScenarioError, WosacError
from wosac_toolkit.scenario import Scenario
from wosac_toolkit.synthetic import generate_scenario

NOW = 10
MOVING = ("constant_velocity", "constant_turn_rate")


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


@pytest.mark.parametrize("policy", MOVING)
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


@pytest.mark.parametrize("policy", MOVING)
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
