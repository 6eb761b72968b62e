from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_r1.map_pieces import split_polylines
from smart_r1.scene_tensors import SceneTensors, scene_tensors
from smart_r1.tracks import AgentStates, Motion, clean, fill_gaps, in_range
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.scenario import (
    LaneType,
    Links,
    MapFeatureKind,
    ObjectType,
    RoadMap,
    Scenario,
    SignalState,
    TrafficLights,
)
from wosac_toolkit.synthetic import generate_scenario

MakeScenario = Callable[..., Scenario]
Kind = MapFeatureKind

# --------------------------------------------------------------------------------------------------
# Scenes made by hand


def with_tracks(scenario: Scenario, **arrays: npt.ArrayLike) -> Scenario:
    tracks = scenario.tracks
    typed = {k: np.asarray(v, dtype=getattr(tracks, k).dtype) for k, v in arrays.items()}
    return replace(scenario, tracks=replace(tracks, **typed))


def valid_at(scenario: Scenario, row: int, steps: Sequence[int]) -> Scenario:
    """The scene with track `row` valid at `steps` only, and rubbish elsewhere."""
    tracks = scenario.tracks
    valid, position = tracks.valid.copy(), tracks.position.copy()
    heading, velocity = tracks.heading.copy(), tracks.velocity.copy()
    valid[row] = False
    valid[row, list(steps)] = True
    for array in (position, heading, velocity):
        array[row, ~valid[row]] = np.nan
    return with_tracks(scenario, valid=valid, position=position, heading=heading, velocity=velocity)


def road_map(
    features: Sequence[tuple[int, int, npt.ArrayLike]], stop_sign_lanes: Sequence[int] = ()
) -> RoadMap:
    """Map features (kind, type, points [n, 2 or 3]) with the ids 100, 101, ..; a stop sign last
    that controls the lanes with the ids `stop_sign_lanes`.
    """
    features = [*features, (Kind.STOP_SIGN, 0, [(0.0, 0.0)])]
    points = [np.asarray(p, np.float64) for _, _, p in features]
    points = [np.pad(p, ((0, 0), (0, 3 - p.shape[1]))) for p in points]
    n = len(features)
    none = Links(np.zeros(n + 1, np.int64), np.zeros(0, np.int64))
    stops = np.zeros(n + 1, np.int64)
    stops[-1] = len(stop_sign_lanes)
    return RoadMap(
        feature_ids=np.arange(100, 100 + n, dtype=np.int64),
        kinds=np.array([k for k, _, _ in features], np.int8),
        types=np.array([t for _, t, _ in features], np.int8),
        point_offsets=np.cumsum([0, *map(len, points)]).astype(np.int64),
        points=np.concatenate(points),
        speed_limit_mph=np.zeros(n),
        interpolating=np.zeros(n, bool),
        entry_lanes=none,
        exit_lanes=none,
        stop_sign_lanes=Links(stops, np.array(stop_sign_lanes, np.int64)),
        neighbors=np.zeros((0, 7), np.int64),
    )


def lights(steps: Sequence[Sequence[tuple[int, int]]]) -> TrafficLights:
    """For each step a list of (lane id, state)."""
    rows = [row for step in steps for row in step]
    return TrafficLights(
        step_offsets=np.cumsum([0, *map(len, steps)]).astype(np.int64),
        lane_ids=np.array([i for i, _ in rows], np.int64),
        states=np.array([s for _, s in rows], np.int8),
        stop_points=np.zeros((len(rows), 3)),
    )


def straight(length: float, spacing: float = 0.5) -> npt.NDArray[np.float64]:
    """Points along x whose part that counts, all but the last segment, is `length` long."""
    x = np.append(np.arange(0, length, spacing), [length, length + 0.3])
    return np.stack([x, np.zeros(len(x))], axis=1)


def of_map(make_scenario: MakeScenario, features: Any, **more: Any) -> SceneTensors:
    scenario = replace(make_scenario(), road_map=road_map(features, **more))
    return scene_tensors(scenario)


def motion(scenario: Scenario) -> Motion:
    tracks = scenario.tracks
    return Motion(
        tracks.position,
        tracks.heading.astype(np.float64),
        tracks.velocity.astype(np.float64),
        tracks.valid,
    )


# --------------------------------------------------------------------------------------------------
# Agents


def test_agents_are_the_tracks_valid_at_the_current_step(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=5)
    scenario = valid_at(scenario, 1, [*range(10), *range(11, 91)])
    scenario = valid_at(scenario, 3, [10])
    scene = scene_tensors(scenario)
    assert scene.object_ids.tolist() == [10, 12, 13, 14]
    assert scene.scenario_id == "scene"


def test_positions_are_local_to_the_sdc_at_the_current_step(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(origin=(8000.0, -6000.0), speed=5.0)
    scene = scene_tensors(scenario)
    assert scene.origin.tolist() == [8005.0, -6000.0]
    assert scene.origin.dtype == np.float64
    np.testing.assert_allclose(scene.logged.position[0, :, 0], 2.5 * np.arange(19) - 5, atol=1e-6)
    np.testing.assert_allclose(scene.logged.position[:, 2], [[0, 0], [0, 4], [0, 8]], atol=1e-6)
    assert scene.logged.valid.all()


def test_shapes_and_types(make_scenario: MakeScenario) -> None:
    scene = scene_tensors(make_scenario(n_tracks=4, lanes={7: straight(23.0)}))
    p = len(scene.map_type)
    expected = {
        "object_ids": ("int64", (4,)),
        "classes": ("int8", (4,)),
        "size": ("float32", (4, 3)),
        "z": ("float32", (4,)),
        "roles": ("bool", (4, 3)),
        "trainable": ("bool", (4,)),
        "map_points": ("float32", (p, 3, 2)),
        "map_heading": ("float32", (p,)),
        "map_type": ("uint8", (p,)),
        "map_polygon": ("uint8", (p,)),
        "map_light": ("uint8", (p,)),
    }
    found = {name: getattr(scene, name) for name in expected}
    assert {name: (a.dtype.name, a.shape) for name, a in found.items()} == expected
    for states in (scene.logged, scene.in_range):
        assert (states.position.dtype, states.position.shape) == (np.float32, (4, 19, 2))
        assert (states.heading.dtype, states.heading.shape) == (np.float32, (4, 19))
        assert (states.valid.dtype, states.valid.shape) == (np.bool_, (4, 19))


def test_classes_are_object_types(make_scenario: MakeScenario) -> None:
    types = [ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST]
    assert scene_tensors(make_scenario(object_types=types)).classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("unknown", [ObjectType.OTHER, ObjectType.UNSET])
@pytest.mark.parametrize(("length", "nearest"), [(3.5, 0), (0.4, 1), (1.9, 2), (30.0, 0)])
def test_an_unknown_type_is_the_class_nearest_in_length(
    make_scenario: MakeScenario, unknown: int, length: float, nearest: int
) -> None:
    scenario = make_scenario(object_types=[ObjectType.VEHICLE, unknown, ObjectType.VEHICLE])
    size = scenario.tracks.size.copy()
    size[1, :, 0] = length
    assert scene_tensors(with_tracks(scenario, size=size)).classes.tolist() == [0, nearest, 0]


def test_size_is_the_mean_over_all_valid_steps(make_scenario: MakeScenario) -> None:
    scenario = valid_at(make_scenario(), 1, [10, 20, 90])
    size = scenario.tracks.size.copy()
    size[1] = np.nan
    size[1, [10, 20, 90]] = [[4, 2, 1], [5, 2, 1], [9, 2, 4]]
    scene = scene_tensors(with_tracks(scenario, size=size))
    np.testing.assert_allclose(scene.size[1], [6, 2, 2])


def test_roles(make_scenario: MakeScenario) -> None:
    scenario = replace(
        make_scenario(n_tracks=4, tracks_to_predict=[1, 3]),
        sdc_track_index=2,
        objects_of_interest=np.array([10, 13], np.int64),
    )
    sdc, of_interest, to_predict = scene_tensors(scenario).roles.T
    assert sdc.tolist() == [False, False, True, False]
    assert of_interest.tolist() == [True, False, False, True]
    assert to_predict.tolist() == [False, True, False, True]


def test_height_is_that_of_the_current_step(make_scenario: MakeScenario) -> None:
    scenario = make_scenario()
    position = scenario.tracks.position.copy()
    position[..., 2] = -180.0 + np.arange(91)
    assert scene_tensors(with_tracks(scenario, position=position)).z.tolist() == [-170.0] * 3


# --------------------------------------------------------------------------------------------------
# Tracks: gaps, beginnings, glitches


def test_gaps_are_filled_in_a_straight_line(make_scenario: MakeScenario) -> None:
    scenario = valid_at(make_scenario(), 1, [*range(0, 11), 20, 60])
    position = scenario.tracks.position.copy()
    position[1, 10], position[1, 20], position[1, 60] = (0, 0, 0), (10, 20, 0), (50, 20, 0)
    heading = scenario.tracks.heading.copy()
    heading[1, [10, 20, 60]] = [0.0, 1.0, 0.0]
    states = scene_tensors(with_tracks(scenario, position=position, heading=heading)).logged
    assert states.valid[1].tolist() == [True] * 13 + [False] * 6
    at = states.position[1] + scene_tensors(scenario).origin
    np.testing.assert_allclose(at[3], [5, 10], atol=1e-5)
    np.testing.assert_allclose(at[5], [15, 20], atol=1e-5)
    np.testing.assert_allclose(states.heading[1, [3, 8]], [0.5, 0.5], atol=1e-6)


def test_a_filled_heading_turns_the_shorter_way(make_scenario: MakeScenario) -> None:
    scenario = valid_at(make_scenario(), 1, [*range(0, 11), 20])
    heading = scenario.tracks.heading.copy()
    heading[1, :11], heading[1, 20] = 3.0, -3.0
    states = scene_tensors(with_tracks(scenario, heading=heading)).logged
    # On from 3.0 over pi, by 0.28 rad, and not back wrapped.
    assert states.heading[1, 3] == pytest.approx(math.pi, abs=1e-6)
    assert states.heading[1, 4] == pytest.approx(2 * math.pi - 3.0, abs=1e-6)


def test_what_is_not_valid_is_zero(make_scenario: MakeScenario) -> None:
    scenario = valid_at(make_scenario(origin=(900.0, 900.0)), 1, range(8, 31))
    states = scene_tensors(scenario).logged
    assert states.valid[1].tolist() == [False] + [True] * 6 + [False] * 12
    assert (states.position[1, [0, 7, 18]] == 0).all()
    assert (states.heading[1, [0, 7, 18]] == 0).all()


@pytest.mark.parametrize(
    ("first", "token_steps"),
    [
        (0, [0, 5, 10]),
        (1, [0, 5, 10]),
        (4, [0, 5, 10]),
        (5, [5, 10]),
        (6, [5, 10]),
        (9, [5, 10]),
        (10, [5, 10]),  # or an agent that enters now would have no motion token
    ],
)
def test_a_track_is_continued_into_the_past_to_a_token_boundary(
    make_scenario: MakeScenario, first: int, token_steps: list[int]
) -> None:
    scenario = valid_at(make_scenario(), 1, range(first, 91))
    velocity, heading = scenario.tracks.velocity.copy(), scenario.tracks.heading.copy()
    velocity[1, first:] = 99.0
    velocity[1, first] = (2.0, -1.0)
    heading[1, first:] = 0.5
    heading[1, first] = 0.25
    scene = scene_tensors(with_tracks(scenario, velocity=velocity, heading=heading))
    states, origin = scene.logged, scene.origin
    start = scenario.tracks.position[1, first, :2] - origin
    assert [5 * i for i in np.flatnonzero(states.valid[1, :3])] == token_steps
    step = token_steps[0]
    expected = start - 0.1 * (first - step) * np.array([2.0, -1.0])
    np.testing.assert_allclose(states.position[1, step // 5], expected, atol=1e-5)
    assert states.heading[1, step // 5] == 0.25


def test_entering_range_continues_the_track_into_the_past_too(make_scenario: MakeScenario) -> None:
    # 149 m ahead at step 23, and 151 m one step before.
    scenario = make_scenario(n_tracks=2, speed=0.0)
    position, velocity = scenario.tracks.position.copy(), scenario.tracks.velocity.copy()
    position[1, :, 0] = 149.0 - 2.0 * (np.arange(91) - 23)
    position[1, :, 1] = 0.0
    velocity[1] = (-20.0, 0.0)
    states = scene_tensors(with_tracks(scenario, position=position, velocity=velocity)).in_range
    assert np.flatnonzero(states.valid[1]).tolist() == list(range(4, 19))
    np.testing.assert_allclose(states.position[1, 4], [155.0, 0.0], atol=1e-5)


def test_a_leap_of_the_heading_is_held_until_it_is_undone(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=4)
    heading = scenario.tracks.heading.copy()
    heading[1, 18:33] = math.pi  # a detector that took the back for the front
    heading[2, 18:] = 1.45  # a fast turn, but none too fast
    heading[3, :] = 3.1
    heading[3, 18:] = -3.1  # over pi is no leap
    states = scene_tensors(with_tracks(scenario, heading=heading)).logged
    assert (states.heading[1] == 0).all()
    np.testing.assert_allclose(states.heading[2, 4:], 1.45)
    np.testing.assert_allclose(np.cos(states.heading[3]), math.cos(3.1), atol=1e-6)


def test_a_leap_that_is_not_undone_is_held_to_the_end(make_scenario: MakeScenario) -> None:
    scenario = make_scenario()
    heading = scenario.tracks.heading.copy()
    heading[1, 18:50] = 2.0
    heading[1, 50:] = 1.6
    heading[1, 80:] = 1.4
    states = scene_tensors(with_tracks(scenario, heading=heading)).logged
    assert (states.heading[1, :16] == 0).all()
    np.testing.assert_allclose(states.heading[1, 16:], 1.4, atol=1e-6)


def test_a_leap_over_a_step_out_of_range_is_none() -> None:
    """Headings are compared where two steps in a row are valid."""
    valid = np.ones((1, 91), bool)
    valid[0, 30] = False
    heading = np.zeros((1, 91))
    heading[0, 31:] = 2.0
    states = clean(Motion(np.zeros((1, 91, 3)), heading, np.zeros((1, 91, 2)), valid))
    assert (states.heading[0, :6] == 0).all()
    assert (states.heading[0, 7:] == 2.0).all()


# --------------------------------------------------------------------------------------------------
# Tracks: an oracle, step by step as the specification has it


def filled_by_hand(motion: Motion) -> Motion:
    position, heading = np.zeros_like(motion.position), np.zeros_like(motion.heading)
    velocity, valid = np.zeros_like(motion.velocity), np.zeros_like(motion.valid)
    for agent, is_valid in enumerate(motion.valid):
        steps = np.flatnonzero(is_valid)
        if not len(steps):
            continue
        inside = np.arange(steps[0], steps[-1] + 1)
        valid[agent, inside] = True
        turning = np.unwrap(motion.heading[agent, steps])
        heading[agent, inside] = np.interp(inside, steps, turning)
        for axis in range(3):
            known = motion.position[agent, steps, axis]
            position[agent, inside, axis] = np.interp(inside, steps, known)
        for axis in range(2):
            known = motion.velocity[agent, steps, axis]
            velocity[agent, inside, axis] = np.interp(inside, steps, known)
    return Motion(position, heading, velocity, valid)


def cleaned_by_hand(motion: Motion) -> AgentStates:
    position, heading = motion.position[..., :2].copy(), motion.heading.copy()
    valid = motion.valid.copy()
    for agent in range(len(valid)):
        for step in range(90):
            if valid[agent, step] and valid[agent, step + 1]:
                turn = heading[agent, step] - heading[agent, step + 1]
                turn = (turn + math.pi) % (2 * math.pi) - math.pi
                if abs(turn) > 1.5:
                    heading[agent, step + 1] = heading[agent, step]
        steps = np.flatnonzero(valid[agent])
        if not len(steps):
            continue
        first = steps[0]
        for _ in range(5 if first == 10 else first % 5):
            before = steps[0] - 1
            position[agent, before] = (
                position[agent, before + 1] - 0.1 * motion.velocity[agent, first]
            )
            heading[agent, before] = heading[agent, first]
            valid[agent, before] = True
            steps = np.flatnonzero(valid[agent])
    at = slice(0, 91, 5)
    position[~valid], heading[~valid] = 0, 0
    return AgentStates(
        position[:, at].astype(np.float32), heading[:, at].astype(np.float32), valid[:, at]
    )


@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.3, 0.9]))
@settings(max_examples=60, deadline=None)
def test_cleaning_is_the_oracle(seed: int, share_valid: float) -> None:
    rng = np.random.default_rng(seed)
    raw = Motion(
        position=rng.normal(0, 50, (6, 91, 3)),
        heading=rng.uniform(-4, 4, (6, 91)),
        velocity=rng.normal(0, 9, (6, 91, 2)),
        valid=rng.random((6, 91)) < share_valid,
    )
    raw.valid[:5, 10] = True  # the last agent may have no valid step at all
    raw.valid[0, :10] = False

    expected = filled_by_hand(raw)
    filled = fill_gaps(raw)
    assert np.array_equal(filled.valid, expected.valid)
    for name in ("position", "heading", "velocity"):
        got, wanted = getattr(filled, name)[filled.valid], getattr(expected, name)[filled.valid]
        np.testing.assert_allclose(got, wanted, atol=1e-9)

    # Without noise of the last digit no heading is at the limit of 1.5 rad.
    gaps = rng.random((6, 91)) < 0.9
    for valid in (expected.valid, expected.valid & gaps):
        got, wanted = (
            clean(replace(expected, valid=valid)),
            cleaned_by_hand(replace(expected, valid=valid)),
        )
        assert np.array_equal(got.valid, wanted.valid)
        np.testing.assert_allclose(got.position, wanted.position, atol=1e-4)
        np.testing.assert_allclose(got.heading, wanted.heading, atol=1e-5)


def test_cleaning_leaves_its_input_as_it_was(make_scenario: MakeScenario) -> None:
    before = motion(make_scenario())
    before.heading[1, 30:] = 2.0
    before.valid[1, :7] = False
    copies = [before.heading.copy(), before.valid.copy(), before.position.copy()]
    clean(before)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(copies, [before.heading, before.valid, before.position], strict=True)
    )


# --------------------------------------------------------------------------------------------------
# What is in range, and what is learned


def at_distances(
    make_scenario: MakeScenario, *places: tuple[float, float], **more: Any
) -> Scenario:
    """Standing agents at (x, z) from a standing SDC."""
    scenario = make_scenario(n_tracks=1 + len(places), speed=0.0, tracks_to_predict=(), **more)
    position = np.zeros_like(scenario.tracks.position)
    for row, (x, z) in enumerate(places, start=1):
        position[row, :, 0], position[row, :, 2] = x, z
    return with_tracks(scenario, position=position)


def test_in_range_is_less_than_150_m_in_space(make_scenario: MakeScenario) -> None:
    scenario = at_distances(make_scenario, (149.9, 0.0), (150.0, 0.0), (149.9, 20.0))
    scene = scene_tensors(scenario)
    assert scene.in_range.valid.all(axis=1).tolist() == [True, True, False, False]
    assert scene.in_range.valid.any(axis=1).tolist() == [True, True, False, False]
    assert scene.logged.valid.all()


def test_nothing_is_in_range_of_an_sdc_that_is_not_valid(make_scenario: MakeScenario) -> None:
    scenario = valid_at(make_scenario(speed=0.0), 0, range(0, 51))
    assert (scene_tensors(scenario).in_range.valid.sum(axis=1) == 11).all()


def test_range_is_measured_at_the_same_step(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(n_tracks=2, speed=30.0)
    position = scenario.tracks.position.copy()
    position[1] = position[1, :1]
    states = scene_tensors(with_tracks(scenario, position=position)).in_range
    # The SDC is 3 m farther each 0.1 s, 150 m after 5 s (and 4 m aside).
    assert states.valid[1].tolist() == [True] * 10 + [False] * 9
    assert (states.position[1, 10:] == 0).all()


def test_learned_are_roles_and_what_is_near_with_a_future(make_scenario: MakeScenario) -> None:
    scenario = at_distances(
        make_scenario, (99.0, 0.0), (101.0, 0.0), (120.0, 0.0), (50.0, 0.0), (50.0, 0.0)
    )
    scenario = replace(scenario, tracks_to_predict=np.array([3], np.int64))
    scenario = valid_at(scenario, 4, range(0, 16))
    scenario = valid_at(scenario, 5, range(0, 15))
    #                                      the SDC, near, far, far with a role, 5 steps, 4 steps
    assert scene_tensors(scenario).trainable.tolist() == [True, True, False, True, True, False]


def test_a_future_out_of_range_is_none(make_scenario: MakeScenario) -> None:
    scenario = at_distances(make_scenario, (90.0, 0.0))
    position = scenario.tracks.position.copy()
    position[1, 15:, 0] = 200.0
    assert scene_tensors(with_tracks(scenario, position=position)).trainable.tolist() == [
        True,
        False,
    ]


# --------------------------------------------------------------------------------------------------
# The map in pieces: an oracle for one polyline, as the specification has it


def pieces_by_hand(
    polyline: npt.NDArray[np.float64],
) -> list[tuple[list[npt.NDArray[np.float64]], float]]:
    strips, strip = [], [polyline[0]]
    for point in polyline[1:]:
        if math.dist(strip[-1], point) > 3.0 + 1e-6:
            strips.append(strip)
            strip = []
        strip.append(point)
    found = []
    for points in [*strips, strip]:
        if len(points) < 2:
            continue
        lengths = [math.dist(a, b) for a, b in pairwise(points)]
        arc = np.cumsum([0.0, *lengths])
        n_steps = math.ceil(arc[-1] / 0.5 - 2e-6)
        at = [0.5 * i for i in range(n_steps)] + [arc[-1]]
        x, y = (np.interp(at, arc, [p[axis] for p in points]) for axis in (0, 1))
        resampled = [np.array(p) for p in zip(x, y, strict=True)]
        n, start = len(resampled), 0
        while start + 10 < n:
            found.append((resampled, start, start + 5, start + 10))
            start += 10
        p = (n - 11) % 10 if n >= 11 else n
        if p >= 3:
            m = n - start
            found.append((resampled, start, start + (m - 1) // 2, start + m - 1))
    pieces = []
    for resampled, first, middle, last in found:
        dx, dy = resampled[first + 1] - resampled[first]
        heading = 0.0 if max(abs(dx), abs(dy)) < 1e-6 else math.atan2(dy, dx)
        pieces.append(([resampled[i] for i in (first, middle, last)], heading))
    return pieces


@st.composite
def polylines(draw: st.DrawFn) -> list[npt.NDArray[np.float64]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for n in draw(st.lists(st.integers(1, 60), min_size=1, max_size=5)):
        spacing = draw(st.sampled_from([0.0, 0.1, 0.5, 0.8, 2.0]))
        heading = np.cumsum(rng.normal(0, 0.2, n))
        length = spacing * rng.uniform(0.5, 1.5, n)
        length[rng.random(n) < 0.05] = 4.0
        steps = length[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        found.append(rng.normal(0, 100, 2) + np.cumsum(steps, axis=0))
    return found


@given(polylines())
@settings(max_examples=100, deadline=None)
def test_splitting_is_the_oracle(lines: list[npt.NDArray[np.float64]]) -> None:
    points, heading, owner = split_polylines(
        np.concatenate(lines), np.array([len(line) for line in lines])
    )
    expected = [
        (number, *piece) for number, line in enumerate(lines) for piece in pieces_by_hand(line)
    ]
    assert owner.tolist() == [number for number, _, _ in expected]
    for got, got_heading, (_, wanted, wanted_heading) in zip(
        points, heading, expected, strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-9)
        assert math.cos(got_heading - wanted_heading) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("length", "lengths"),
    [
        (0.5, []),
        (0.6, [0.6]),
        (1.0, [1.0]),
        (4.9, [4.9]),
        (5.0, [5.0]),
        (6.0, [5.0]),  # 2 steps more, too few for a piece
        (6.4, [5.0, 1.4]),
        (6.5, [5.0, 1.5]),
        (11.3, [5.0, 5.0, 1.3]),
        (15.0, [5.0, 5.0, 5.0]),
    ],
)
def test_pieces_are_5_m_and_a_shorter_rest(
    make_scenario: MakeScenario, length: float, lengths: list[float]
) -> None:
    scene = of_map(make_scenario, [(Kind.LANE, 2, straight(length))])
    ends = scene.map_points[:, 2] - scene.map_points[:, 0]
    np.testing.assert_allclose(np.linalg.norm(ends, axis=1), lengths, atol=1e-5)
    # One after the other, in the local frame.
    starts = scene.map_points[:, 0, 0] + scene.origin[0]
    np.testing.assert_allclose(starts, 5.0 * np.arange(len(lengths)), atol=1e-5)
    if lengths:
        middle = scene.map_points[0, 1] - scene.map_points[0, 0]
        steps = math.ceil(round(lengths[0] / 0.5, 6)) // 2
        np.testing.assert_allclose(middle, [0.5 * steps, 0], atol=1e-5)


@pytest.mark.parametrize(("length", "n_pieces"), [(0.5, 0), (6.0, 1), (11.0, 2)])
def test_rounding_makes_no_piece(length: float, n_pieces: int) -> None:
    """A line of a whole number of steps has no other length elsewhere or in another direction."""
    for angle in np.linspace(0, 6, 25):
        along = np.array([math.cos(angle), math.sin(angle)])
        line = np.array([1234.5, -777.7]) + np.arange(0, length + 0.05, 0.1)[:, None] * along
        points, _, _ = split_polylines(line, np.array([len(line)]))
        assert len(points) == n_pieces


def test_where_a_line_turns_back_a_piece_looks_east() -> None:
    """The point that a piece looks to is the one it begins at, but for rounding."""
    x = np.array([0.0, 2.5, 5.25, 2.5, 0.0, -2.5, -5.0])
    for angle in np.linspace(0, 6, 25):
        along = np.array([math.cos(angle), math.sin(angle)])
        line = np.array([1234.5, -777.7]) + x[:, None] * along
        points, heading, _ = split_polylines(line, np.array([len(line)]))
        np.testing.assert_allclose(points[1, 0], line[0] + 5.0 * along)
        assert heading[1] == 0.0
        assert math.cos(heading[0] - angle) == pytest.approx(1.0)


def test_the_last_segment_of_a_polyline_is_lost(make_scenario: MakeScenario) -> None:
    line = [(0, 0), (2, 0), (4, 0), (5, 0), (5, 2), (5, 4)]
    points = of_map(make_scenario, [(Kind.LANE, 2, line)]).map_points
    assert len(points) == 2
    np.testing.assert_allclose(points[1, 2] - points[0, 0], [5, 2], atol=1e-5)


@pytest.mark.parametrize("n_points", [0, 1, 2, 3])
def test_short_polylines_have_no_piece(make_scenario: MakeScenario, n_points: int) -> None:
    line = np.array([(0.0, 0), (2, 0), (4, 0)])[:n_points].reshape(n_points, 2)
    assert len(of_map(make_scenario, [(Kind.LANE, 2, line)]).map_type) == 0


def test_segments_longer_than_3_m_are_lost(make_scenario: MakeScenario) -> None:
    x = [0, 2, 4, 6, 9, 12.1, 14, 16, 18, 20, 40, 41]
    scene = of_map(make_scenario, [(Kind.ROAD_EDGE, 1, [(a, 0) for a in x])])
    at = scene.map_points[..., 0] + scene.origin[0]
    np.testing.assert_allclose(
        at, [[0, 2.5, 5], [5, 7, 9], [12.1, 14.6, 17.1], [17.1, 18.6, 20]], atol=1e-5
    )


def test_a_piece_looks_along_its_first_half_metre(make_scenario: MakeScenario) -> None:
    line = [(0, 0), (0, 2), (0, 4), (-2, 4), (-4, 4), (-4, 5)]
    scene = of_map(make_scenario, [(Kind.LANE, 2, line)])
    np.testing.assert_allclose(scene.map_heading, [math.pi / 2, math.pi], atol=1e-6)


def test_pieces_are_ordered_by_polygon_class_and_record(make_scenario: MakeScenario) -> None:
    square = [(0, 0), (8, 0), (8, 4), (0, 4)]
    features = [
        (Kind.CROSSWALK, 0, square),
        (Kind.ROAD_LINE, 2, straight(5)),
        (Kind.ROAD_EDGE, 2, straight(5)),
        (Kind.LANE, LaneType.FREEWAY, straight(5)),
        (Kind.ROAD_EDGE, 1, straight(5)),
        (Kind.LANE, LaneType.BIKE_LANE, straight(5)),
        (Kind.NONE, 0, straight(5)),
        (Kind.DRIVEWAY, 0, square),
    ]
    scene = of_map(make_scenario, features)
    n = (len(scene.map_type) - 5) // 2
    assert scene.map_polygon.tolist() == [0, 0, 1, 1, 2] + [3] * 2 * n
    assert scene.map_type.tolist() == [0, 3, 5, 4, 7] + [9] * 2 * n


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        (Kind.LANE, {0: 1, 1: 0, 2: 1, 3: 3, 9: 1, -1: 1}),
        (Kind.ROAD_EDGE, {0: 3, 1: 4, 2: 5, 9: 3}),
        (Kind.ROAD_LINE, {0: 8, 1: 6, 2: 7, 3: 8, 4: 6, 5: 6, 6: 7, 7: 8, 8: 8, 9: 8, 100: 8}),
        (Kind.CROSSWALK, {0: 9, 3: 9}),
        (Kind.SPEED_BUMP, {0: 9}),
        (Kind.DRIVEWAY, {0: 9}),
    ],
)
def test_point_types(make_scenario: MakeScenario, kind: int, types: dict[int, int]) -> None:
    for of_record, expected in types.items():
        scene = of_map(make_scenario, [(kind, of_record, straight(5))])
        assert set(scene.map_type.tolist()) == {expected}


def test_a_stop_sign_makes_a_lane_a_stop_lane_unless_it_is_a_bike_lane(
    make_scenario: MakeScenario,
) -> None:
    kinds = [LaneType.FREEWAY, LaneType.SURFACE_STREET, LaneType.BIKE_LANE, LaneType.FREEWAY]
    features = [(Kind.LANE, kind, straight(5)) for kind in kinds]
    scene = of_map(make_scenario, features, stop_sign_lanes=[100, 101, 102, 999])
    assert scene.map_type.tolist() == [2, 2, 3, 0]


def test_crosswalks_run_along_their_longer_sides_there_and_back(
    make_scenario: MakeScenario,
) -> None:
    corners = np.array([(0, 0), (0, 4.0), (10.25, 4.0), (10.25, 0)])
    scene = of_map(make_scenario, [(Kind.CROSSWALK, 0, corners)])
    start, middle, end = np.moveaxis(scene.map_points + scene.origin, 1, 0)
    assert set(start[:, 1]) == {0.0, 4.0}
    assert (start[:, 1] == end[:, 1]).all()
    # There and back are one line of 20.5 m, but for the last metre of the second side.
    for y, n in ((0.0, 4), (4.0, 4)):
        x = np.stack([start, middle, end], axis=1)[start[:, 1] == y, :, 0]
        np.testing.assert_allclose(x[0], [0, 2.5, 5] if y == 0 else [10.25, 7.75, 5.25], atol=1e-5)
        assert len(x) == n


def test_of_a_polygon_four_corners_are_taken(make_scenario: MakeScenario) -> None:
    four = [(0, 0), (20, 0), (20, 5), (0, 5)]
    eight = [p for corner in four for p in (corner, (corner[0] + 0.01, corner[1]))]
    a = of_map(make_scenario, [(Kind.CROSSWALK, 0, four)])
    b = of_map(make_scenario, [(Kind.CROSSWALK, 0, eight)])
    np.testing.assert_allclose(a.map_points, b.map_points, atol=1e-5)


@pytest.mark.parametrize("n_points", [1, 2, 3])
def test_degenerate_polygons_do_no_harm(make_scenario: MakeScenario, n_points: int) -> None:
    for points in ([(1.0, 1.0)] * n_points, [(0, 0), (30, 0), (30, 9)][:n_points]):
        scene = of_map(make_scenario, [(Kind.CROSSWALK, 0, points)])
        assert np.isfinite(scene.map_points).all()
        assert np.isfinite(scene.map_heading).all()


def test_a_polygon_without_points_has_no_piece(make_scenario: MakeScenario) -> None:
    scenario = make_scenario(road_edges=[], lanes={5: np.zeros((0, 2))})
    kinds = np.array([Kind.CROSSWALK], np.int8)
    empty = replace(scenario, road_map=replace(scenario.road_map, kinds=kinds))
    assert len(scene_tensors(empty).map_type) == 0


# --------------------------------------------------------------------------------------------------
# Lights


def of_lights(make_scenario: MakeScenario, steps: Any) -> list[int]:
    """The lights of the pieces of the lanes 100 and 101 and of the road edge 102."""
    features = [(Kind.LANE, 2, straight(5)), (Kind.LANE, 2, straight(5))]
    features.append((Kind.ROAD_EDGE, 1, straight(5)))
    scenario = replace(make_scenario(), road_map=road_map(features), traffic_lights=lights(steps))
    return scene_tensors(scenario).map_light.tolist()


@pytest.mark.parametrize(
    ("state", "light"),
    [
        (SignalState.UNKNOWN, 1),
        (SignalState.ARROW_STOP, 2),
        (SignalState.STOP, 2),
        (SignalState.FLASHING_STOP, 2),
        (SignalState.ARROW_GO, 3),
        (SignalState.GO, 3),
        (SignalState.ARROW_CAUTION, 4),
        (SignalState.CAUTION, 4),
        (SignalState.FLASHING_CAUTION, 4),
        (77, 1),
    ],
)
def test_states_of_lights(make_scenario: MakeScenario, state: int, light: int) -> None:
    assert of_lights(make_scenario, [[(101, state)]] * 91) == [0, light, 0]


def test_only_the_current_step_is_looked_at(make_scenario: MakeScenario) -> None:
    steps = [[(100, SignalState.STOP)]] * 10 + [[(101, SignalState.GO)]]
    assert of_lights(make_scenario, steps + [[(100, SignalState.STOP)]] * 80) == [0, 3, 0]


def test_of_several_states_of_a_lane_the_last_counts(make_scenario: MakeScenario) -> None:
    states = [(100, SignalState.GO), (101, SignalState.GO), (100, SignalState.STOP)]
    assert of_lights(make_scenario, [states] * 91) == [2, 3, 0]


@pytest.mark.parametrize("n_steps", [0, 10, 11])
def test_without_a_state_now_there_is_no_light(make_scenario: MakeScenario, n_steps: int) -> None:
    steps = [[(100, SignalState.STOP)]] * min(n_steps, 10) + [[]] * max(0, n_steps - 10)
    assert of_lights(make_scenario, steps) == [0, 0, 0]


def test_lights_of_lanes_that_are_not_on_the_map_are_passed_over(
    make_scenario: MakeScenario,
) -> None:
    assert of_lights(make_scenario, [[(4711, SignalState.STOP), (102, SignalState.GO)]] * 91) == [
        0,
        0,
        0,
    ]


# --------------------------------------------------------------------------------------------------
# The frame


def assert_close(a: SceneTensors, b: SceneTensors, tolerance: float) -> None:
    for name in ("object_ids", "classes", "roles", "trainable", "map_type", "map_polygon"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert np.array_equal(a.map_light, b.map_light)
    np.testing.assert_allclose(a.map_points, b.map_points, atol=tolerance)
    turn = a.map_heading.astype(float) - b.map_heading
    np.testing.assert_allclose(np.cos(turn), 1.0, atol=tolerance)
    for one, other in ((a.logged, b.logged), (a.in_range, b.in_range)):
        assert np.array_equal(one.valid, other.valid)
        np.testing.assert_allclose(one.position, other.position, atol=tolerance)
        np.testing.assert_allclose(one.heading, other.heading, atol=tolerance)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shift", [(13_000.7, -39_999.3), (-0.013, 777.77)])
def test_the_tensors_do_not_depend_on_where_the_scene_lies(
    seed: int, shift: tuple[float, float]
) -> None:
    # Straight synthetic roads have lengths that are multiples of 0.5 m, but for rounding.
    scenario = generate_scenario(seed, 0)
    by = np.array([*shift, 0.0])
    moved = replace(
        with_tracks(scenario, position=scenario.tracks.position + by),
        road_map=replace(scenario.road_map, points=scenario.road_map.points + by),
    )
    here, there = scene_tensors(scenario), scene_tensors(moved)
    np.testing.assert_allclose(there.origin - here.origin, shift, atol=1e-9)
    assert_close(here, there, 1e-4)


# --------------------------------------------------------------------------------------------------
# Scenes that lack something, and bad ones


def test_a_scene_of_the_test_split_has_no_future(make_scenario: MakeScenario) -> None:
    scene = scene_tensors(make_scenario(n_steps=11))
    whole = scene_tensors(make_scenario(n_steps=91))
    assert scene.logged.valid.tolist() == [[True] * 3 + [False] * 16] * 3
    assert np.array_equal(scene.logged.position[:, :3], whole.logged.position[:, :3])
    assert scene.trainable.tolist() == [True, True, False]


def test_steps_after_the_91st_are_not_looked_at(make_scenario: MakeScenario) -> None:
    long = make_scenario(n_steps=120)
    size = long.tracks.size.copy()
    size[:, 91:] = 99.0
    assert_close(scene_tensors(with_tracks(long, size=size)), scene_tensors(make_scenario()), 0.0)
    assert scene_tensors(with_tracks(long, size=size)).size.max() < 5


def test_one_agent(make_scenario: MakeScenario) -> None:
    scene = scene_tensors(make_scenario(n_tracks=1, tracks_to_predict=()))
    assert scene.object_ids.tolist() == [10]
    assert scene.logged.valid.all()


def test_300_agents(make_scenario: MakeScenario) -> None:
    scene = scene_tensors(make_scenario(n_tracks=300))
    assert scene.logged.position.shape == (300, 19, 2)
    assert np.count_nonzero(scene.trainable) == 25  # one every 4 m


def test_an_agent_that_vanishes_is_valid_as_long_as_it_is_seen(make_scenario: MakeScenario) -> None:
    scene = scene_tensors(valid_at(make_scenario(), 2, range(5, 13)))
    assert np.flatnonzero(scene.logged.valid[2]).tolist() == [1, 2]
    assert scene.trainable.tolist() == [True, True, False]


def test_no_map_at_all(make_scenario: MakeScenario) -> None:
    scene = scene_tensors(make_scenario(road_edges=[]))
    assert scene.map_points.shape == (0, 3, 2)
    assert scene.map_heading.shape == scene.map_type.shape == scene.map_light.shape == (0,)


def test_no_lanes_and_no_road_edges(make_scenario: MakeScenario) -> None:
    assert set(of_map(make_scenario, [(Kind.ROAD_EDGE, 1, straight(9))]).map_polygon) == {1}
    assert set(of_map(make_scenario, [(Kind.LANE, 1, straight(9))]).map_polygon) == {0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize(
    ("array", "column", "name"),
    [
        ("position", 0, "x"),
        ("position", 2, "z"),
        ("heading", None, "heading"),
        ("velocity", 1, "velocity in y"),
        ("size", 2, "height"),
    ],
)
def test_numbers_that_are_none_name_the_object(
    make_scenario: MakeScenario, array: str, column: int | None, name: str, value: float
) -> None:
    scenario = make_scenario()
    values = getattr(scenario.tracks, array).copy()
    values[(2, 17) if column is None else (2, 17, column)] = value
    with pytest.raises(ScenarioError) as error:
        scene_tensors(with_tracks(scenario, **{array: values}))
    assert error.value.where == "scenario scene: object 12"
    assert error.value.what.startswith(f"its {name} is ")
    assert error.value.what.endswith(" at step 17")
    assert error.value.mend


def test_numbers_of_the_sdc_too(make_scenario: MakeScenario) -> None:
    scenario = make_scenario()
    position = scenario.tracks.position.copy()
    position[0, 10] = np.nan
    with pytest.raises(ScenarioError, match="object 10: its x is nan at step 10"):
        scene_tensors(with_tracks(scenario, position=position))


def test_rubbish_in_tracks_that_are_not_simulated_is_no_error(make_scenario: MakeScenario) -> None:
    scenario = valid_at(make_scenario(), 2, range(20, 91))
    position = scenario.tracks.position.copy()
    position[2] = np.nan
    assert scene_tensors(with_tracks(scenario, position=position)).object_ids.tolist() == [10, 11]


def test_an_sdc_that_is_not_valid_now(make_scenario: MakeScenario) -> None:
    with pytest.raises(ScenarioError, match=r"scenario scene: object 10: .*autonomous vehicle"):
        scene_tensors(valid_at(make_scenario(), 0, [*range(10), *range(11, 91)]))


def test_rows_of_no_track(make_scenario: MakeScenario) -> None:
    for scenario in (
        replace(make_scenario(), sdc_track_index=3),
        make_scenario(tracks_to_predict=[-1]),
    ):
        with pytest.raises(ScenarioError, match=r"scenario scene: .* points outside the 3 tracks"):
            scene_tensors(scenario)


@pytest.mark.parametrize(("now", "n_steps"), [(9, 91), (11, 91), (10, 10)])
def test_another_current_step(make_scenario: MakeScenario, now: int, n_steps: int) -> None:
    scenario = replace(make_scenario(n_steps=n_steps), current_time_index=now)
    with pytest.raises(ScenarioError, match="scenario scene: the current step is"):
        scene_tensors(scenario)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("kind", [Kind.LANE, Kind.ROAD_EDGE, Kind.ROAD_LINE, Kind.CROSSWALK])
def test_map_points_that_are_none_name_the_feature(
    make_scenario: MakeScenario, kind: int, value: float
) -> None:
    bad = straight(9)
    bad[3, 1] = value
    with pytest.raises(ScenarioError, match=r"scenario scene: map feature 101: a coordinate of it"):
        of_map(make_scenario, [(Kind.LANE, 1, straight(5)), (kind, 1, bad)])


def test_a_polygon_as_large_as_a_country(make_scenario: MakeScenario) -> None:
    square = [(0, 0), (9e5, 0), (9e5, 4), (0, 4)]
    with pytest.raises(ScenarioError, match=r"map feature 100: a side of it is 900000 m long"):
        of_map(make_scenario, [(Kind.CROSSWALK, 0, square)])


# --------------------------------------------------------------------------------------------------
# The public implementation

SCENE = "637f20cafde22ff8"

Fixture = dict[str, npt.NDArray[Any]]


def load(path: Path) -> Fixture:
    return pytest.importorskip("safetensors.numpy").load_file(path)


@pytest.fixture(scope="module")
def real(womd_dir: Path) -> SceneTensors:
    from wosac_toolkit.io.scenarios import index_scenarios, read_scenario

    return scene_tensors(read_scenario(index_scenarios(womd_dir / "training")[SCENE]))


@pytest.mark.womd
def test_agents_and_map_are_those_of_catk(real: SceneTensors, smart_fixtures_dir: Path) -> None:
    raw = load(smart_fixtures_dir / "raw_scenario_tensors.safetensors")
    assert np.array_equal(real.object_ids, raw["agent/id"])
    assert np.array_equal(real.classes, raw["agent/type"])
    assert np.array_equal(real.roles, raw["agent/role"])
    np.testing.assert_allclose(real.size, raw["agent/shape"], atol=1e-5)
    assert np.array_equal(real.z, raw["agent/position"][:, 10, 2])
    assert np.array_equal(real.map_type, raw["pt_token/type"])
    assert np.array_equal(real.map_polygon, raw["pt_token/pl_type"])
    assert np.array_equal(real.map_light, raw["pt_token/light_type"])
    # They reckon in float32 in the global frame, 10 km out: steps of 0.5 to 1 mm.
    expected = raw["map_save/traj_pos"].astype(np.float64)
    np.testing.assert_allclose(real.map_points + real.origin, expected, atol=1e-3)
    turn = raw["map_save/traj_theta"].astype(np.float64) - real.map_heading
    # A step of 1 mm in 0.5 m.
    assert np.abs(np.sin(turn)).max() < 4e-3
    assert np.cos(turn).min() > 0


@pytest.mark.womd
@pytest.mark.parametrize(
    ("file", "view"), [("tokens_eval", "logged"), ("train_bc_nonoise", "in_range")]
)
def test_tracks_are_those_of_catk(
    real: SceneTensors, smart_fixtures_dir: Path, file: str, view: str
) -> None:
    theirs = load(smart_fixtures_dir / "smart_nano_1M" / f"{file}.safetensors")
    states: AgentStates = getattr(real, view)
    valid = states.valid[:, 1:]
    assert np.array_equal(valid, theirs["agent/gt_valid_raw"])
    assert np.array_equal(valid & states.valid[:, :-1], theirs["agent/valid_mask"])
    at = (states.position[:, 1:] + real.origin)[valid]
    np.testing.assert_allclose(at, theirs["agent/gt_pos_raw"][valid], atol=1e-3)
    np.testing.assert_allclose(
        states.heading[:, 1:][valid], theirs["agent/gt_head_raw"][valid], atol=1e-6
    )
    if view == "in_range":
        assert np.array_equal(states.valid, theirs["raw_valid_mask_after"][:, ::5])
        assert np.count_nonzero(theirs["train_mask"]) == 32 < np.count_nonzero(real.trainable)
        assert real.trainable[theirs["train_mask"]].all()
        assert theirs["train_mask"][real.roles.any(axis=1)].all()


@pytest.mark.womd
@pytest.mark.parametrize(
    ("raw", "cleaned", "training"),
    [
        ("sparse_raw", "sparse_eval_compiled", False),
        ("dense_cap_raw", "dense_cap_eval_compiled", False),
        ("sparse_raw", "sparse_train_bc_nonoise", True),
    ],
)
def test_cleaning_is_that_of_catk(
    smart_fixtures_dir: Path, raw: str, cleaned: str, training: bool
) -> None:
    """Late entries, early exits, a turned heading, an agent that is far away."""
    theirs = load(smart_fixtures_dir / "synthetic_small" / f"{cleaned}.safetensors")
    tensors = load(smart_fixtures_dir / "synthetic_small" / f"{raw}.safetensors")
    found = []
    for number in sorted({name.split("/")[0] for name in tensors}):
        agents = {n.split("/")[2]: a for n, a in tensors.items() if n.startswith(f"{number}/agent")}
        motion = Motion(
            position=agents["position"].astype(np.float64),
            heading=agents["heading"].astype(np.float64),
            velocity=agents["velocity"].astype(np.float64),
            valid=agents["valid_mask"],
        )
        if training:
            sdc = int(np.argmax(agents["role"][:, 0]))
            motion = replace(motion, valid=in_range(motion, sdc))
        found.append(clean(motion))
    valid = np.concatenate([states.valid for states in found])[:, 1:]
    position = np.concatenate([states.position for states in found])[:, 1:]
    heading = np.concatenate([states.heading for states in found])[:, 1:]
    assert np.array_equal(valid, theirs["agent/gt_valid_raw"])
    np.testing.assert_allclose(position[valid], theirs["agent/gt_pos_raw"][valid], atol=1e-4)
    np.testing.assert_allclose(heading[valid], theirs["agent/gt_head_raw"][valid], atol=1e-6)
    assert not valid.all()


@pytest.mark.womd
def test_real_scenes_have_sound_tensors(womd_dir: Path) -> None:
    from wosac_toolkit.io.scenarios import load_scenarios

    for scenario in load_scenarios(womd_dir / "validation"):
        scene = scene_tensors(scenario)
        assert np.isfinite(scene.map_points).all()
        assert scene.logged.valid[:, 1:3].all()
        assert not (scene.in_range.valid & ~scene.logged.valid)[:, 3:].all(axis=1).any()
        length = np.linalg.norm(scene.map_points[:, 1:] - scene.map_points[:, :-1], axis=-1)
        assert length.max() <= 2.5 + 1e-4
