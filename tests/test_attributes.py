from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wosac_toolkit.attributes import MANOEUVRES, SLICINGS, SceneAttributes, scene_attributes
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.io.scenarios import load_scenarios
from wosac_toolkit.scenario import ObjectType, Scenario
from wosac_toolkit.synthetic import generate_scenarios

MakeScenario = Callable[..., Scenario]
NOW = 10


def with_sdc_path(scenario: Scenario, path: np.ndarray, heading: np.ndarray) -> Scenario:
    """The scene with another path [81, 2] and heading [81] of the SDC from the current step on."""
    tracks = scenario.tracks
    position, headings, velocity = (
        own.copy() for own in (tracks.position, tracks.heading, tracks.velocity)
    )
    position[0, NOW:, :2] = path
    headings[0, NOW:] = heading
    velocity[0, NOW:] = np.gradient(path, 0.1, axis=0)
    changed = replace(tracks, position=position, heading=headings, velocity=velocity)
    return replace(scenario, tracks=changed)


def drive(turn: float, length: float = 40.0, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An arc from the origin of so many metres that turns by so many radians in all."""
    share = np.linspace(0, 1, 81)
    heading = start + turn * share
    steps = length / 80 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.cumsum(steps, axis=0) - steps[0], heading


# --------------------------------------------------------------------------------------------------
# Agents, lights, speed


def test_evaluated_agents_are_counted_by_type_the_sdc_once(make_scenario: MakeScenario) -> None:
    kinds = [ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.CYCLIST, ObjectType.PEDESTRIAN]
    found = scene_attributes(
        make_scenario(n_tracks=5, object_types=[*kinds, 1], tracks_to_predict=(0, 1, 2, 3))
    )
    assert found.n_evaluated_vehicles == 1
    assert found.n_evaluated_pedestrians == 2
    assert found.n_evaluated_cyclists == 1


def test_lights_are_there_where_a_signal_is_recorded(make_scenario: MakeScenario) -> None:
    assert not scene_attributes(make_scenario()).has_traffic_lights
    assert not scene_attributes(make_scenario(signals=[[]] * 91)).has_traffic_lights
    signal = (7, 4, (0.0, 0.0))
    assert scene_attributes(make_scenario(signals=[*[[]] * 90, [signal]])).has_traffic_lights


def test_speed_is_the_mean_over_valid_steps_of_evaluated_agents(
    make_scenario: MakeScenario,
) -> None:
    scenario = make_scenario(n_tracks=3, speed=5.0, tracks_to_predict=(1,))
    tracks = scenario.tracks
    velocity, valid = tracks.velocity.copy(), tracks.valid.copy()
    velocity[1] = (3.0, 4.0)
    velocity[1, 50:] = (30.0, 40.0)
    velocity[:, :NOW] = 100.0
    velocity[2] = 1000.0
    valid[1, 50:] = False
    changed = replace(scenario, tracks=replace(tracks, velocity=velocity, valid=valid))
    assert scene_attributes(changed).mean_speed == pytest.approx(5.0)
    velocity[0] = (11.0, 0.0)
    assert scene_attributes(changed).mean_speed == pytest.approx((81 * 11 + 40 * 5) / 121)


def test_a_scene_without_valid_steps_has_no_speed_and_no_manoeuvre(
    make_scenario: MakeScenario,
) -> None:
    scenario = make_scenario(lanes={1: [(0, -5), (0, 5)]})
    valid = scenario.tracks.valid.copy()
    valid[:, NOW:] = False
    found = scene_attributes(replace(scenario, tracks=replace(scenario.tracks, valid=valid)))
    assert math.isnan(found.mean_speed)
    assert found.sdc_manoeuvre == "unknown"
    assert not found.sdc_at_intersection


def test_the_test_split_has_no_future_and_no_manoeuvre(make_scenario: MakeScenario) -> None:
    found = scene_attributes(make_scenario(n_steps=11, speed=7.0))
    assert found.sdc_manoeuvre == "unknown"
    assert found.mean_speed == pytest.approx(7.0)


def test_an_index_to_no_track_is_told(make_scenario: MakeScenario) -> None:
    with pytest.raises(ScenarioError, match="points outside the 3 tracks"):
        scene_attributes(make_scenario(tracks_to_predict=(9,)))


# --------------------------------------------------------------------------------------------------
# The manoeuvre of the autonomous vehicle


@pytest.mark.parametrize("start", [0.0, 2.0, -3.0, 9.0])
@pytest.mark.parametrize(
    ("turn", "length", "manoeuvre"),
    [
        (0.0, 40.0, "straight"),
        (0.0, 3.0, "stationary"),
        # Slow, but farther than a stop; turned on the spot, but not farther.
        (0.0, 6.0, "straight"),
        (2.0, 3.0, "stationary"),
        (math.radians(29), 10.0, "straight"),
        (math.radians(29), 60.0, "straight left"),
        (-math.radians(29), 60.0, "straight right"),
        (math.radians(31), 60.0, "left turn"),
        (-math.radians(31), 60.0, "right turn"),
        (math.radians(90), 40.0, "left turn"),
        (-math.radians(90), 40.0, "right turn"),
        (math.radians(178), 40.0, "left turn"),
    ],
)
def test_the_manoeuvre_follows_the_official_classes(
    make_scenario: MakeScenario, turn: float, length: float, manoeuvre: str, start: float
) -> None:
    scenario = with_sdc_path(make_scenario(), *drive(turn, length, start))
    assert scene_attributes(scenario).sdc_manoeuvre == manoeuvre


@pytest.mark.parametrize(("side", "name"), [(1, "left U-turn"), (-1, "right U-turn")])
def test_a_u_turn_comes_back(make_scenario: MakeScenario, side: int, name: str) -> None:
    x = np.concatenate([np.linspace(0, 5, 30), np.linspace(5, -15, 51)])
    path = np.stack([x, side * np.linspace(0, 8, 81)], axis=1)
    heading = np.where(np.arange(81) < 30, 0.0, side * math.radians(170))
    scenario = with_sdc_path(make_scenario(), path, heading)
    assert scene_attributes(scenario).sdc_manoeuvre == name


def test_who_has_only_just_set_off_is_not_stationary(make_scenario: MakeScenario) -> None:
    x = 2.0 * np.clip(0.1 * np.arange(81) - 6.5, 0, None) ** 2
    path = np.stack([x, np.zeros(81)], axis=1)
    assert path[-1, 0] < 5
    assert scene_attributes(with_sdc_path(make_scenario(), path, np.zeros(81))).sdc_manoeuvre == (
        "straight"
    )


@pytest.mark.parametrize(("heading", "lateral"), [(40.0, -2.0), (-40.0, 2.0), (40.0, 2.0)])
def test_a_turn_is_to_the_right_only_if_heading_and_place_say_so(
    make_scenario: MakeScenario, heading: float, lateral: float
) -> None:
    path = np.stack([np.linspace(0, 30, 81), np.linspace(0, lateral, 81)], axis=1)
    scenario = with_sdc_path(make_scenario(), path, np.radians(np.linspace(0, heading, 81)))
    assert scene_attributes(scenario).sdc_manoeuvre == "left turn"


def test_headings_need_not_be_wrapped(make_scenario: MakeScenario) -> None:
    path, heading = drive(math.radians(20), 30.0, start=3.1)
    wrapped = (heading + np.pi) % (2 * np.pi) - np.pi
    assert wrapped[0] > 3
    assert wrapped[-1] < -2
    for own in (heading, wrapped, heading + 4 * np.pi):
        scenario = with_sdc_path(make_scenario(), path, own)
        assert scene_attributes(scenario).sdc_manoeuvre == "straight left"


def test_steps_at_which_the_sdc_is_not_valid_do_not_count(make_scenario: MakeScenario) -> None:
    scenario = with_sdc_path(make_scenario(), *drive(math.radians(90)))
    valid = scenario.tracks.valid.copy()
    valid[0, NOW + 20 :] = False
    scenario = replace(scenario, tracks=replace(scenario.tracks, valid=valid))
    assert scene_attributes(scenario).sdc_manoeuvre == "straight"


# --------------------------------------------------------------------------------------------------
# Intersections

# The SDC drives along x from 5 m at the current step to 45 m.
ALONG = [(x, 0.0) for x in np.arange(-20, 80, 0.5)]


def line(x: float, degrees: float, *, y: float = 0.0, z: float = 0.0) -> list[tuple[float, ...]]:
    """A lane through (x, y) at an angle to the x axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x + t * c, y + t * s, z) for t in np.arange(-15, 15, 0.5)]


@pytest.mark.parametrize(
    ("lane", "meets"),
    [
        (line(25.0, 90.0), True),
        (line(25.0, -60.0), True),
        (line(25.0, 35.0), True),
        (line(25.0, 215.0), True),
        (line(25.0, 25.0), False),
        (line(25.0, 180.0), False),
        (line(25.0, 0.0, y=3.5), False),
        # Ahead of the vehicle within reach, out of reach, and behind it.
        (line(48.0, 90.0), True),
        (line(55.0, 90.0), False),
        (line(-5.0, 90.0), False),
        # A lane that ends beside the path.
        ([(25.0, y) for y in np.arange(4.5, 20.0, 0.5)], True),
        ([(25.0, y) for y in np.arange(7.0, 20.0, 0.5)], False),
        # A bridge, and a crossing on the way up to it.
        (line(25.0, 90.0, z=5.0), False),
        (line(25.0, 90.0, z=1.0), True),
        # Lanes without a direction.
        ([(25.0, 0.0)], False),
    ],
)
def test_an_intersection_is_where_a_lane_runs_across_the_path(
    make_scenario: MakeScenario, lane: list[tuple[float, ...]], meets: bool
) -> None:
    scenario = make_scenario(lanes={1: ALONG, 2: lane})
    assert scene_attributes(scenario).sdc_at_intersection == meets


@pytest.mark.parametrize("offset", range(8))
def test_a_crossing_is_found_wherever_the_points_of_its_lane_lie(
    make_scenario: MakeScenario, offset: int
) -> None:
    # Few points and positions are looked at.
    lane = line(20.0 + offset / 2, 90.0)[offset:]
    padding = [(500.0 + k, 500.0) for k in range(2 + offset)]
    scenario = make_scenario(speed=10.0 + offset, lanes={1: padding, 2: lane})
    assert scene_attributes(scenario).sdc_at_intersection


def test_only_lanes_make_an_intersection(make_scenario: MakeScenario) -> None:
    edge = line(25.0, 90.0)
    assert not scene_attributes(make_scenario(road_edges=[edge])).sdc_at_intersection
    scenario = make_scenario(road_edges=[edge], lanes={1: ALONG})
    assert not scene_attributes(scenario).sdc_at_intersection


def test_two_lanes_that_follow_each_other_in_the_file_are_not_joined(
    make_scenario: MakeScenario,
) -> None:
    # From the last point of the first to the first of the second would run across the path.
    first, second = [(x, 4.0) for x in np.arange(0.0, 25.0, 0.5)], [(25.0, -4.0), (26.0, -4.0)]
    for points in range(8):
        scenario = make_scenario(road_edges=[], lanes={1: first[points:], 2: second})
        assert not scene_attributes(scenario).sdc_at_intersection


def test_a_scene_without_a_map_has_no_intersection(make_scenario: MakeScenario) -> None:
    assert not scene_attributes(make_scenario(road_edges=[])).sdc_at_intersection


def test_vehicles_that_turn_at_a_junction_are_at_an_intersection() -> None:
    found = [(s, scene_attributes(s)) for s in generate_scenarios(30, seed=4)]
    turning = [a.sdc_at_intersection for _, a in found if a.sdc_manoeuvre.endswith(" turn")]
    assert len(turning) > 5
    assert np.mean(turning) > 0.85
    assert not all(a.sdc_at_intersection for _, a in found)


def test_nothing_depends_on_where_the_scene_lies(make_scenario: MakeScenario) -> None:
    lanes = {2: [(x + 30_000.0, y - 20_000.0) for x, y, _ in line(25.0, 90.0)]}
    there = make_scenario(origin=(30_000.0, -20_000.0), lanes=lanes)
    here = make_scenario(lanes={2: line(25.0, 90.0)})
    assert scene_attributes(there) == scene_attributes(here)


# --------------------------------------------------------------------------------------------------
# Slices


def columns(*found: SceneAttributes, n_sim_agents: int = 20) -> dict[str, np.ndarray]:
    names = SceneAttributes.__dataclass_fields__
    own = {name: np.array([getattr(a, name) for a in found]) for name in names}
    return {**own, "n_sim_agents": np.full(len(found), n_sim_agents)}


PLAIN = SceneAttributes(2, 0, 0, False, False, 5.0, "straight")


@pytest.mark.parametrize(
    ("slicing", "change", "level"),
    [
        ("types", {}, "only vehicles evaluated"),
        ("types", {"n_evaluated_pedestrians": 2}, "pedestrians evaluated"),
        ("types", {"n_evaluated_cyclists": 1}, "cyclists evaluated"),
        (
            "types",
            {"n_evaluated_cyclists": 1, "n_evaluated_pedestrians": 2},
            "pedestrians and cyclists evaluated",
        ),
        ("lights", {}, "no traffic lights"),
        ("lights", {"has_traffic_lights": True}, "traffic lights"),
        ("intersection", {}, "SDC away from intersections"),
        ("intersection", {"sdc_at_intersection": True}, "SDC at an intersection"),
        ("speed", {"mean_speed": 1.99}, "under 2 m/s"),
        ("speed", {"mean_speed": 2.0}, "2 to 5 m/s"),
        ("speed", {"mean_speed": 9.99}, "5 to 10 m/s"),
        ("speed", {"mean_speed": 10.0}, "10 m/s and more"),
        ("manoeuvre", {"sdc_manoeuvre": "left U-turn"}, "SDC left U-turn"),
    ],
)
def test_the_slice_of_a_scene(slicing: str, change: dict[str, object], level: str) -> None:
    own = SLICINGS[slicing]
    found = own.level_of(columns(replace(PLAIN, **change)))  # type: ignore[arg-type]
    assert [own.levels[k] for k in found] == [level]


@pytest.mark.parametrize(
    ("n", "level"), [(1, "under 16"), (15, "under 16"), (16, "16 to"), (63, "32 to"), (64, "64")]
)
def test_scenes_are_sliced_by_their_simulated_agents(n: int, level: str) -> None:
    (found,) = SLICINGS["agents"].level_of(columns(PLAIN, n_sim_agents=n))
    assert SLICINGS["agents"].levels[found].startswith(level)


def test_every_manoeuvre_has_a_slice_and_an_unknown_speed_has_none() -> None:
    scenes = [replace(PLAIN, sdc_manoeuvre=name) for name in MANOEUVRES]
    np.testing.assert_array_equal(
        SLICINGS["manoeuvre"].level_of(columns(*scenes)), np.arange(len(MANOEUVRES))
    )
    unknown = columns(replace(PLAIN, mean_speed=math.nan), PLAIN)
    np.testing.assert_array_equal(SLICINGS["speed"].level_of(unknown), [-1, 2])


def test_a_manoeuvre_of_a_newer_toolkit_is_in_no_slice() -> None:
    unheard = columns(replace(PLAIN, sdc_manoeuvre="reversing"))
    np.testing.assert_array_equal(SLICINGS["manoeuvre"].level_of(unheard), [-1])


# --------------------------------------------------------------------------------------------------
# Real scenes


@pytest.mark.womd
def test_real_scenes_have_attributes_of_all_kinds(womd_dir: Path) -> None:
    found = [scene_attributes(s) for s in load_scenarios(womd_dir / "training")]
    assert {a.sdc_manoeuvre for a in found} >= {"stationary", "straight", "left turn", "right turn"}
    turns = [a.sdc_at_intersection for a in found if a.sdc_manoeuvre.endswith(" turn")]
    assert np.mean(turns) > 0.9
    standing = [a.sdc_at_intersection for a in found if a.sdc_manoeuvre == "stationary"]
    assert np.mean(standing) < 0.3
    assert 0.1 < np.mean([a.has_traffic_lights for a in found]) < 0.5
    assert all(0 <= a.mean_speed < 40 for a in found)
    assert all(a.n_evaluated_vehicles >= 1 for a in found)
