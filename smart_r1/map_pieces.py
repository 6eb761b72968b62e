"""The road map cut into pieces of 5 m, the map tokens of SMART.

The rules are those of CAT-K's pre-processing, with what is odd about them: the last segment of
every polyline is lost, and so is every segment longer than 3 m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.scenario import (
    Float32Array,
    Float64Array,
    Int64Array,
    LaneType,
    MapFeatureKind,
    RoadMap,
    SignalState,
    TrafficLights,
)

UInt8Array = npt.NDArray[np.uint8]

LONGEST_SEGMENT = 3.0
SPACING = 0.5
WINDOW = 10
"""Steps of `SPACING` in a whole piece."""

# Lengths are measured in a frame that moves with the scene: what is nearer than this to a multiple
# of the spacing is that multiple, so that rounding decides neither how many pieces there are nor
# which way a point looks.
_ROUNDING = 1e-6
LARGEST_NUMBER = 1e6
"""Metres, m/s, rad: more is damage. WOMD's coordinates end at 40 km; squares must stay finite."""

# A polygon with a longer side is damage; its samples would fill the memory.
_LONGEST_SIDE = 1000.0

_LANE, _ROAD_EDGE, _ROAD_LINE, _CROSSWALK, _NOT_USED = range(5)
_POLYGONS = {
    MapFeatureKind.LANE: _LANE,
    MapFeatureKind.ROAD_EDGE: _ROAD_EDGE,
    MapFeatureKind.ROAD_LINE: _ROAD_LINE,
    MapFeatureKind.CROSSWALK: _CROSSWALK,
    MapFeatureKind.SPEED_BUMP: _CROSSWALK,
    MapFeatureKind.DRIVEWAY: _CROSSWALK,
}
_FREEWAY, _SURFACE_STREET, _STOP_CONTROLLED, _BIKE_LANE = range(4)
_CROSSWALK_TYPE = 9
# By the type in the record, the last for those that are unknown.
_LANE_TYPES = (_SURFACE_STREET, _FREEWAY, _SURFACE_STREET, _BIKE_LANE, _SURFACE_STREET)
_ROAD_EDGE_TYPES = (3, 4, 5, 3)
_ROAD_LINE_TYPES = (8, 6, 7, 8, 6, 6, 7, 8, 8, 8)

_NO_LIGHT, _UNKNOWN, _STOP, _GO, _CAUTION = range(5)
_LIGHTS = {
    SignalState.UNKNOWN: _UNKNOWN,
    SignalState.ARROW_STOP: _STOP,
    SignalState.ARROW_CAUTION: _CAUTION,
    SignalState.ARROW_GO: _GO,
    SignalState.STOP: _STOP,
    SignalState.CAUTION: _CAUTION,
    SignalState.GO: _GO,
    SignalState.FLASHING_STOP: _STOP,
    SignalState.FLASHING_CAUTION: _CAUTION,
}


@dataclass(frozen=True, eq=False, slots=True)
class MapPieces:
    """P pieces: those of lanes, road edges, road lines, and crosswalks, each in record order.

    Attributes:
        points: float32 [P, 3, 2], metres: start, middle and end.
        heading: float32 [P], radians, at the start.
        type: uint8 [P]: 0 freeway lane, 1 surface-street lane, 2 lane with a stop sign, 3 bike
            lane or road edge of unknown type, 4 road boundary, 5 median, 6 broken line, 7 single
            solid line, 8 double or unknown line, 9 crosswalk, speed bump or driveway.
        polygon: uint8 [P]: 0 lane, 1 road edge, 2 road line, 3 crosswalk, speed bump or driveway.
        light: uint8 [P]: 0 none, 1 unknown, 2 stop, 3 go, 4 caution.
    """

    points: Float32Array
    heading: Float32Array
    type: UInt8Array
    polygon: UInt8Array
    light: UInt8Array


def map_pieces(
    road_map: RoadMap, traffic_lights: TrafficLights, step: int, origin: Float64Array
) -> MapPieces:
    """Cut the map of a scene into pieces.

    Args:
        road_map: the map; stop signs are not used but for the lanes they control.
        traffic_lights: the lights; where a lane has several states, the last listed counts.
        step: the one at which the lights are looked at.
        origin: float64 [2], which becomes the origin of the pieces.

    Raises:
        ScenarioError: a coordinate that is not finite or beyond 1e6 m, a polygon more than 1 km
            long; names the map feature.
    """
    polygons = _lookup(_POLYGONS, _NOT_USED)[np.clip(road_map.kinds, 0, 127)]
    sizes = np.diff(road_map.point_offsets)
    rows = np.flatnonzero((polygons != _NOT_USED) & (sizes >= 2))
    rows = rows[np.argsort(polygons[rows], kind="stable")]
    _check_points(road_map, rows)

    lines = rows[(polygons[rows] != _CROSSWALK) & (sizes[rows] > 3)]
    areas = rows[polygons[rows] == _CROSSWALK]
    # Without the last point.
    line_sizes = sizes[lines] - 1
    line_points = road_map.points[ranges(road_map.point_offsets[lines], line_sizes), :2]
    area_points, area_sizes = _sample_areas(road_map, areas)

    features = np.concatenate([lines, areas])
    points = np.concatenate([line_points - origin, area_points - origin])
    tokens, heading, owner = split_polylines(points, np.concatenate([line_sizes, area_sizes]))
    owner = features[owner]
    return MapPieces(
        points=tokens.astype(np.float32),
        heading=heading.astype(np.float32),
        type=_types(road_map, polygons)[owner],
        polygon=polygons[owner],
        light=_lights(road_map, traffic_lights, step)[owner],
    )


def split_polylines(
    points: Float64Array, sizes: Int64Array
) -> tuple[Float64Array, Float64Array, Int64Array]:
    """Cut polylines at gaps, walk along them in steps of 0.5 m, and take pieces of 10 steps.

    The last 3 to 9 steps of what is left (from 2, where that is all there is) are a shorter piece.

    Args:
        points: float64 [N, 2], the polylines one after the other.
        sizes: int64 [L], how many points each one has.

    Returns:
        points [P, 3, 2] (start, middle, end), heading [P] at the start, and polyline [P] of the
        pieces.
    """
    if not len(points):
        return np.zeros((0, 3, 2)), np.zeros(0), np.zeros(0, np.int64)
    polyline = np.repeat(np.arange(len(sizes)), sizes)
    segment = np.diff(points, axis=0)
    length = np.hypot(segment[:, 0], segment[:, 1])
    cut = (length > LONGEST_SEGMENT + _ROUNDING) | (np.diff(polyline) != 0)
    # One arc length along all of them, in which cuts have no length.
    length[cut] = 0.0
    arc = np.concatenate([[0.0], np.cumsum(length)])
    first = np.concatenate([[0], np.flatnonzero(cut) + 1])
    last = np.concatenate([np.flatnonzero(cut), [len(points) - 1]])

    steps = (arc[last] - arc[first]) / SPACING
    n_steps = np.ceil(steps - _ROUNDING / SPACING).astype(np.int64)
    n_steps = np.maximum(n_steps, 0)
    n_whole, n_rest = np.divmod(n_steps, WINDOW)
    has_tail = np.where(n_whole > 0, n_rest >= 3, n_rest >= 2)

    strip = np.repeat(np.arange(len(first)), n_whole + has_tail)
    start = WINDOW * (np.arange(len(strip)) - np.searchsorted(strip, strip))
    span = np.minimum(WINDOW, n_steps[strip] - start)
    at = np.stack([start, start + span // 2, start + span, start + 1], axis=1)
    # The end of a strip is its last point, wherever that lies.
    along = arc[first[strip]][:, None] + np.minimum(at * SPACING, (steps * SPACING)[strip][:, None])
    sampled = _interpolate(points, arc, along, first[strip][:, None], last[strip][:, None])
    ahead = sampled[:, 3] - sampled[:, 0]
    # Where a polyline turns back on itself a point and its successor can coincide.
    ahead[np.abs(ahead).max(axis=1) < _ROUNDING] = 0.0
    return sampled[:, :3], np.arctan2(ahead[:, 1], ahead[:, 0]), polyline[first[strip]]


def _interpolate(
    points: Float64Array,
    arc: Float64Array,
    along: Float64Array,
    first: Int64Array,
    last: Int64Array,
) -> Float64Array:
    """The points at the arc lengths `along`, on strips of the points `first` to `last`."""
    low = np.searchsorted(arc, along, side="right") - 1
    low = np.clip(low, first, last - 1)
    length = arc[low + 1] - arc[low]
    weight = (along - arc[low]) / np.where(length > 0, length, 1.0)
    weight = np.clip(weight, 0.0, 1.0)[..., None]
    return points[low] + weight * (points[low + 1] - points[low])


def ranges(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """`starts[i] .. starts[i] + sizes[i] - 1`, for one i after the other."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(total)


def _sample_areas(road_map: RoadMap, rows: Int64Array) -> tuple[Float64Array, Int64Array]:
    """Crosswalks, speed bumps and driveways as polylines along their two longer sides.

    Of each polygon 4 corners are taken. Two opposite sides are walked, forward and back, with a
    point every metre and one at the end.

    Returns:
        The points [N, 2] of all of them, without the last of each, and how many each one has.
    """
    starts, n = road_map.point_offsets[rows], np.diff(road_map.point_offsets)[rows]
    corners = road_map.points[starts[:, None] + np.arange(4) * n[:, None] // 4]
    sides = np.linalg.norm(corners[:, [1, 2], :2] - corners[:, [0, 1], :2], axis=-1)
    is_first_longer = (sides[:, 0] > sides[:, 1])[:, None]
    begin = corners[:, [0, 2]]
    end = np.where(is_first_longer[..., None], corners[:, [1, 3]], corners[:, [3, 1]])
    length = np.linalg.norm(end - begin, axis=-1)
    if (length > _LONGEST_SIDE).any():
        row = rows[np.argmax((length > _LONGEST_SIDE).any(axis=1))]
        raise ScenarioError(
            f"a side of it is {length.max():.0f} m long",
            where=f"map feature {road_map.feature_ids[row]}",
        )

    n_points = length.astype(np.int64) + 2
    counts = 2 * n_points.ravel()
    side = np.repeat(np.arange(counts.size), counts)
    number = ranges(np.zeros_like(counts), counts)
    number = np.minimum(number, counts[side] - 1 - number)
    is_end = number == n_points.ravel()[side] - 1
    whole = np.maximum(length.ravel(), 1e-9)[side]
    share = np.where(is_end, 1.0, number / whole)[:, None]
    points = begin.reshape(-1, 3)[side, :2] * (1 - share) + end.reshape(-1, 3)[side, :2] * share
    sizes = 2 * n_points.sum(axis=1)
    keep = np.ones(len(points), bool)
    keep[np.cumsum(sizes) - 1] = False
    return points[keep], sizes - 1


def _check_points(road_map: RoadMap, rows: Int64Array) -> None:
    # A NaN is not below the limit either.
    sound = np.abs(road_map.points) <= LARGEST_NUMBER
    if sound.all():
        return
    for row in rows:
        points = slice(road_map.point_offsets[row], road_map.point_offsets[row + 1])
        if not sound[points].all():
            value = road_map.points[points][~sound[points]][0]
            raise ScenarioError(
                f"a coordinate of it is {value}", where=f"map feature {road_map.feature_ids[row]}"
            )


def _types(road_map: RoadMap, polygons: UInt8Array) -> UInt8Array:
    """The type of each map feature, uint8 [M], as in `MapPieces.type`."""
    types = np.full(len(polygons), _CROSSWALK_TYPE, np.uint8)
    for polygon, table in (
        (_LANE, _LANE_TYPES),
        (_ROAD_EDGE, _ROAD_EDGE_TYPES),
        (_ROAD_LINE, _ROAD_LINE_TYPES),
    ):
        of_record = np.where(road_map.types < 0, len(table), road_map.types)
        mapped = np.array(table, np.uint8)[np.minimum(of_record, len(table) - 1)]
        types = np.where(polygons == polygon, mapped, types)
    stops = np.isin(road_map.feature_ids, road_map.stop_sign_lanes.ids) & (polygons == _LANE)
    types[stops & (road_map.types != LaneType.BIKE_LANE)] = _STOP_CONTROLLED
    return types


def _lights(road_map: RoadMap, lights: TrafficLights, step: int) -> UInt8Array:
    """The light of each map feature, uint8 [M], as in `MapPieces.light`."""
    of_feature = np.full(len(road_map.kinds), _NO_LIGHT, np.uint8)
    if step >= lights.n_steps:
        return of_feature
    seen = slice(lights.step_offsets[step], lights.step_offsets[step + 1])
    states = _lookup(_LIGHTS, _UNKNOWN)[np.clip(lights.states[seen], 0, 127)]
    by_lane = dict(zip(lights.lane_ids[seen].tolist(), states.tolist(), strict=True))
    for row in np.flatnonzero(road_map.kinds == MapFeatureKind.LANE):
        of_feature[row] = by_lane.get(int(road_map.feature_ids[row]), _NO_LIGHT)
    return of_feature


def _lookup(table: dict[MapFeatureKind, int] | dict[SignalState, int], other: int) -> UInt8Array:
    """A table as an array [128]."""
    array = np.full(128, other, np.uint8)
    for key, value in table.items():
        array[key] = value
    return array
