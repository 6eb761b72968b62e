"""What kind of scene a scene is, and the slices of a dataset that follow from it.

All is read from the log, so that it is the same for every simulator that is scored on the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wosac_toolkit.scenario import Float64Array, Int64Array, MapFeatureKind, ObjectType, Scenario

MANOEUVRES = (
    "stationary",
    "straight",
    "straight left",
    "straight right",
    "left turn",
    "right turn",
    "left U-turn",
    "right U-turn",
    "unknown",
)
"""What the autonomous vehicle can do in `SceneAttributes.sdc_manoeuvre`."""

# `ClassifyTrack` of the official `metrics/motion_metrics_utils.cc`.
_STATIONARY_SPEED = 2.0  # m/s
_STATIONARY_DISPLACEMENT = 5.0  # m
_STRAIGHT_LATERAL = 5.0  # m
_STRAIGHT_TURN = np.pi / 6  # rad
_U_TURN_LONGITUDINAL = -5.0  # m

# A lane that the vehicle's path meets at an angle.
_CROSSING_REACH = 5.0  # m
_CROSSING_SINE = 0.5  # 30 degrees
_CROSSING_HEIGHT = 3.0  # m; the levels of an overpass are farther apart
_PATH_SPACING = 4.0  # m
_LANE_STRIDE = 4  # points of the map, 0.5 m apart in WOMD


@dataclass(frozen=True, slots=True)
class SceneAttributes:
    """What kind of scene it is, from the current step to the end of the log.

    Attributes:
        n_evaluated_vehicles, n_evaluated_pedestrians, n_evaluated_cyclists: the evaluated agents
            by type, the autonomous vehicle (SDC) among them.
        has_traffic_lights: a signal is recorded, anywhere on the map and at any step.
        sdc_at_intersection: within 5 m of the SDC's path a lane runs at more than 30 degrees to it.
            That is read from the geometry, as WOMD rarely says which lanes cross.
        mean_speed: of the evaluated agents over their valid steps, m/s; NaN where there are none.
        sdc_manoeuvre: one of `MANOEUVRES`, by the rules of `ClassifyTrack` in the official
            `motion_metrics_utils.cc`; `unknown` where the SDC has less than two valid steps.
    """

    n_evaluated_vehicles: int
    n_evaluated_pedestrians: int
    n_evaluated_cyclists: int
    has_traffic_lights: bool
    sdc_at_intersection: bool
    mean_speed: float
    sdc_manoeuvre: str


def scene_attributes(scenario: Scenario) -> SceneAttributes:
    """The attributes of a scene.

    Raises:
        ScenarioError: an index of the record points to no track.
    """
    tracks, now = scenario.tracks, scenario.current_time_index
    evaluated = scenario.evaluated_agents()
    types = tracks.object_types[evaluated].tolist()
    velocity = tracks.velocity[evaluated, now:][tracks.valid[evaluated, now:]]
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    return SceneAttributes(
        n_evaluated_vehicles=types.count(ObjectType.VEHICLE),
        n_evaluated_pedestrians=types.count(ObjectType.PEDESTRIAN),
        n_evaluated_cyclists=types.count(ObjectType.CYCLIST),
        has_traffic_lights=len(scenario.traffic_lights.lane_ids) > 0,
        sdc_at_intersection=_meets_a_lane(scenario),
        mean_speed=float(speed.mean(dtype=np.float64)) if len(speed) else float("nan"),
        sdc_manoeuvre=_manoeuvre(scenario),
    )


def _sdc_steps(scenario: Scenario) -> Int64Array:
    """The steps from the current one on at which the SDC is valid."""
    now = scenario.current_time_index
    steps = np.flatnonzero(scenario.tracks.valid[scenario.sdc_track_index, now:]) + now
    return steps.astype(np.int64)


def _manoeuvre(scenario: Scenario) -> str:
    tracks, sdc, steps = scenario.tracks, scenario.sdc_track_index, _sdc_steps(scenario)
    if len(steps) < 2:
        return "unknown"
    ends = steps[[0, -1]]
    (x0, y0), (x1, y1) = tracks.position[sdc, ends, :2].tolist()
    h0, h1 = tracks.heading[sdc, ends].astype(np.float64).tolist()
    moved = np.hypot(x1 - x0, y1 - y0)
    longitudinal = np.cos(h0) * (x1 - x0) + np.sin(h0) * (y1 - y0)
    lateral = np.cos(h0) * (y1 - y0) - np.sin(h0) * (x1 - x0)
    # The official code does not wrap the difference, since its headings are wrapped.
    turn = (h1 - h0 + np.pi) % (2 * np.pi) - np.pi
    fastest = np.hypot(*tracks.velocity[sdc, ends].astype(np.float64).T).max()
    if fastest < _STATIONARY_SPEED and moved < _STATIONARY_DISPLACEMENT:
        return "stationary"
    if abs(turn) < _STRAIGHT_TURN:
        if abs(lateral) < _STRAIGHT_LATERAL:
            return "straight"
        return "straight right" if lateral < 0 else "straight left"
    side = "right" if turn < 0 and lateral < 0 else "left"
    return f"{side} U-turn" if longitudinal < _U_TURN_LONGITUDINAL else f"{side} turn"


def _meets_a_lane(scenario: Scenario) -> bool:
    """Whether a lane runs across the path of the SDC, see `SceneAttributes.sdc_at_intersection`."""
    tracks, sdc, road_map = scenario.tracks, scenario.sdc_track_index, scenario.road_map
    steps = _sdc_steps(scenario)
    if not len(steps):
        return False
    steps = steps[_spaced(tracks.position[sdc, steps, :2])]
    path, heading = tracks.position[sdc, steps], tracks.heading[sdc, steps]

    # A point in the box around the path is rare, so this comes first.
    low, high = path.min(axis=0) - _CROSSING_REACH, path.max(axis=0) + _CROSSING_REACH
    x, y = road_map.points[::_LANE_STRIDE, 0], road_map.points[::_LANE_STRIDE, 1]
    in_box = (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
    rows = np.flatnonzero(in_box) * _LANE_STRIDE
    feature = np.searchsorted(road_map.point_offsets, rows, side="right") - 1
    is_lane = road_map.kinds[feature] == MapFeatureKind.LANE
    has_next = rows + 1 < road_map.point_offsets[feature + 1]
    rows = rows[is_lane & has_next]

    points = road_map.points[rows]
    dx, dy = points[:, None, 0] - path[:, 0], points[:, None, 1] - path[:, 1]
    point, place = np.nonzero(dx * dx + dy * dy < _CROSSING_REACH**2)
    along = road_map.points[rows + 1][point] - points[point]
    angle = np.arctan2(along[:, 1], along[:, 0]) - heading[place]
    level = np.abs(points[point, 2] - path[place, 2]) < _CROSSING_HEIGHT
    return bool((level & (np.abs(np.sin(angle)) > _CROSSING_SINE)).any())


def _spaced(path: Float64Array) -> Int64Array:
    """Indices into a path [n, 2] that are about `_PATH_SPACING` apart, the first included."""
    steps = np.diff(path, axis=0, prepend=path[:1])
    travelled = np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))
    return np.flatnonzero(np.diff(travelled // _PATH_SPACING, prepend=-1)).astype(np.int64)


# --------------------------------------------------------------------------------------------------
# Slices

Columns = Mapping[str, npt.NDArray[Any]]
"""The columns of `scores.parquet`, as far as slices look at them."""


@dataclass(frozen=True, slots=True)
class Slicing:
    """A way to cut a dataset into slices.

    Attributes:
        levels: the names of the slices.
        level_of: columns of `scores.parquet` -> int64 [N], the slice of each scene; -1 for none.
    """

    levels: tuple[str, ...]
    level_of: Callable[[Columns], Int64Array]


def _by_agents(columns: Columns) -> Int64Array:
    return np.digitize(columns["n_sim_agents"], (16, 32, 64)).astype(np.int64)


def _by_types(columns: Columns) -> Int64Array:
    pedestrians = columns["n_evaluated_pedestrians"] > 0
    return pedestrians + 2 * (columns["n_evaluated_cyclists"] > 0).astype(np.int64)


def _by_speed(columns: Columns) -> Int64Array:
    speed = columns["mean_speed"]
    return np.where(np.isfinite(speed), np.digitize(speed, (2.0, 5.0, 10.0)), -1).astype(np.int64)


def _by_manoeuvre(columns: Columns) -> Int64Array:
    index = {name: i for i, name in enumerate(MANOEUVRES)}
    return np.array([index.get(name, -1) for name in columns["sdc_manoeuvre"]], np.int64)


SLICINGS: dict[str, Slicing] = {
    "agents": Slicing(
        ("under 16 agents", "16 to 31 agents", "32 to 63 agents", "64 agents and more"), _by_agents
    ),
    "types": Slicing(
        (
            "only vehicles evaluated",
            "pedestrians evaluated",
            "cyclists evaluated",
            "pedestrians and cyclists evaluated",
        ),
        _by_types,
    ),
    "lights": Slicing(
        ("no traffic lights", "traffic lights"),
        lambda columns: columns["has_traffic_lights"].astype(np.int64),
    ),
    "intersection": Slicing(
        ("SDC away from intersections", "SDC at an intersection"),
        lambda columns: columns["sdc_at_intersection"].astype(np.int64),
    ),
    "speed": Slicing(("under 2 m/s", "2 to 5 m/s", "5 to 10 m/s", "10 m/s and more"), _by_speed),
    "manoeuvre": Slicing(tuple(f"SDC {name}" for name in MANOEUVRES), _by_manoeuvre),
}
"""The slicings by name: simulated agents, types of the evaluated agents, traffic lights,
intersection, mean speed of the evaluated agents, manoeuvre of the autonomous vehicle."""
