from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Links, RoadMap, Scenario, Tracks, TrafficLights
from wosac_toolkit.validation import Finding, check_rollouts

# Of these objects, 40 is not valid at the current step, so it must not be simulated.
IDS = [10, 20, 30, 40]
SIMULATED = [10, 20, 30]


def a_scenario() -> Scenario:
    n, t = len(IDS), 91
    valid = np.ones((n, t), bool)
    valid[3, :20] = False
    empty = np.zeros(0, np.int64)
    links = Links(np.zeros(1, np.int64), empty)
    return Scenario(
        scenario_id="scene",
        timestamps=np.arange(t) / 10,
        current_time_index=10,
        sdc_track_index=0,
        tracks=Tracks(
            object_ids=np.array(IDS),
            object_types=np.ones(n, np.int8),
            position=np.zeros((n, t, 3)),
            size=np.ones((n, t, 3), np.float32),
            heading=np.zeros((n, t), np.float32),
            velocity=np.zeros((n, t, 2), np.float32),
            valid=valid,
        ),
        tracks_to_predict=np.array([1]),
        difficulties=np.zeros(1, np.int8),
        objects_of_interest=empty,
        road_map=RoadMap(
            feature_ids=empty,
            kinds=empty.astype(np.int8),
            types=empty.astype(np.int8),
            point_offsets=np.zeros(1, np.int64),
            points=np.zeros((0, 3)),
            speed_limit_mph=np.zeros(0),
            interpolating=np.zeros(0, bool),
            entry_lanes=links,
            exit_lanes=links,
            stop_sign_lanes=links,
            neighbors=np.zeros((0, 7), np.int64),
        ),
        traffic_lights=TrafficLights(
            np.zeros(1, np.int64), empty, empty.astype(np.int8), np.zeros((0, 3))
        ),
    )


def rollouts_of(ids: list[int], n_rollouts: int = 32, n_steps: int = 80) -> Rollouts:
    states = np.zeros((n_rollouts, len(ids), n_steps, 4), np.float32)
    return Rollouts("scene", np.array(ids, np.int64), states)


def codes(findings: list[Finding]) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.object_id) for finding in findings]


@given(st.permutations(SIMULATED))
def test_good_rollouts_have_no_findings_in_any_order_of_objects(ids: list[int]) -> None:
    assert check_rollouts(a_scenario(), rollouts_of(ids)) == []


def test_an_object_that_is_not_in_the_scene() -> None:
    findings = check_rollouts(a_scenario(), rollouts_of([*SIMULATED, 99]), file="a.npz")
    assert codes(findings) == [("unknown_object", 99)]
    assert str(findings[0]) == "a.npz: scenario scene: object 99: is not in the scene"


def test_an_object_that_is_in_the_scene_but_not_valid_at_the_current_step() -> None:
    (finding,) = check_rollouts(a_scenario(), rollouts_of([*SIMULATED, 40]))
    assert (finding.code, finding.object_id) == ("unknown_object", 40)
    assert "not valid at step 10" in finding.what


def test_missing_objects_are_named_one_by_one() -> None:
    findings = check_rollouts(a_scenario(), rollouts_of([20]))
    assert codes(findings) == [("missing_object", 10), ("missing_object", 30)]


def test_an_object_that_comes_twice() -> None:
    (finding,) = check_rollouts(a_scenario(), rollouts_of([*SIMULATED, 20]))
    assert (finding.code, finding.object_id) == ("duplicate_object", 20)
    assert finding.what == "comes 2 times"


@pytest.mark.parametrize("n_steps", [0, 79, 81, 91])
def test_another_length_than_80_steps(n_steps: int) -> None:
    (finding,) = check_rollouts(a_scenario(), rollouts_of(SIMULATED, n_steps=n_steps))
    assert finding.code == "step_count"
    assert f"{n_steps} steps where 80" in finding.what


def test_91_steps_where_91_are_expected() -> None:
    rollouts = rollouts_of(SIMULATED, n_steps=91)
    assert check_rollouts(a_scenario(), rollouts, n_steps=91) == []


@pytest.mark.parametrize("n_rollouts", [1, 31, 33])
def test_another_number_of_rollouts_than_32(n_rollouts: int) -> None:
    (finding,) = check_rollouts(a_scenario(), rollouts_of(SIMULATED, n_rollouts))
    assert finding.code == "rollout_count"
    assert f"{n_rollouts} rollouts where 32" in finding.what


@pytest.mark.parametrize("n_rollouts", [1, 4, 33])
def test_any_number_of_rollouts_is_fine_where_none_is_expected(n_rollouts: int) -> None:
    rollouts = rollouts_of(SIMULATED, n_rollouts)
    assert check_rollouts(a_scenario(), rollouts, n_rollouts=None) == []


def test_no_rollouts_at_all_is_never_fine() -> None:
    (finding,) = check_rollouts(a_scenario(), rollouts_of(SIMULATED, 0), n_rollouts=None)
    assert (finding.code, finding.what) == ("rollout_count", "no rollouts")


def test_rollouts_of_another_scenario() -> None:
    rollouts = replace(rollouts_of(SIMULATED), scenario_id="other")
    (finding,) = check_rollouts(a_scenario(), rollouts)
    assert finding.code == "wrong_scenario"
    assert "'other'" in finding.what
    assert finding.scenario_id == "scene"


@given(
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    rollout=st.integers(0, 31),
    row=st.integers(0, 2),
    step=st.integers(0, 79),
    coordinate=st.integers(0, 3),
)
def test_one_value_that_is_not_finite_is_found_and_placed(
    value: float, rollout: int, row: int, step: int, coordinate: int
) -> None:
    rollouts = rollouts_of(SIMULATED)
    rollouts.states[rollout, row, step, coordinate] = value
    (finding,) = check_rollouts(a_scenario(), rollouts)
    assert finding.code == "non_finite"
    assert (finding.rollout, finding.object_id) == (rollout, SIMULATED[row])
    place = f"{('x', 'y', 'z', 'heading')[coordinate]} is {np.float32(value)} at step {step}"
    assert finding.what == f"1 of 10240 values are not finite, the first: {place}"


def test_non_finite_values_are_one_finding_an_object_sorted_by_id() -> None:
    rollouts = rollouts_of([30, 10, 20])
    rollouts.states[:, 0] = np.nan
    rollouts.states[5:, 1, 7:, 3] = np.inf
    findings = check_rollouts(a_scenario(), rollouts)
    assert codes(findings) == [("non_finite", 10), ("non_finite", 30)]
    assert "1971 of 10240" in findings[0].what
    assert (findings[0].rollout, findings[1].rollout) == (5, 0)


def test_the_largest_float32_is_finite() -> None:
    rollouts = rollouts_of(SIMULATED)
    rollouts.states[:] = np.finfo(np.float32).max
    assert check_rollouts(a_scenario(), rollouts) == []


def test_everything_that_is_wrong_is_found_at_once() -> None:
    rollouts = replace(rollouts_of([10, 10, 40, 99], n_rollouts=4, n_steps=5), scenario_id="other")
    rollouts.states[1, 2, 3, 0] = np.nan
    assert codes(check_rollouts(a_scenario(), rollouts)) == [
        ("wrong_scenario", None),
        ("rollout_count", None),
        ("step_count", None),
        ("unknown_object", 40),
        ("unknown_object", 99),
        ("missing_object", 20),
        ("missing_object", 30),
        ("duplicate_object", 10),
        ("non_finite", 40),
    ]
