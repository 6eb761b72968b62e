"""Red-light violations (`traffic_light_features`).

An agent violates a red light if the lane it is on has a signal that says stop, and between the last
step and this one it passed the signal's stop point, both projected on the lane's segment at the
stop point. The lane it is on is the nearest of all surface-street lanes, and finding it is nearly
all of the official cost; here it is looked for only where everything else holds.

The official code is reproduced with its oddities. The distance to a lane segment adds the clipped
projection where it should subtract it, and so is the distance to the segment mirrored at its start
point. Lanes are padded with (0, 0) to the longest lane, and the segment from a lane's last point to
the origin counts as part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.kernels.float32 import ONE, ZERO
from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    LaneType,
    MapFeatureKind,
    Scenario,
    SignalState,
)

# Two float32 computations of the same distance can differ by less than this.
_SLACK_M, _SLACK_RATIO = np.float32(1e-2), np.float32(1 + 1e-5)


@dataclass(frozen=True, eq=False, slots=True)
class SignalledLanes:
    """The surface-street lanes and the signals that control them.

    Attributes:
        start, delta: float32 [n, 2], the segments of all lanes, each lane's padding segment last.
        square: float32 [n], squared lengths.
        lane_offsets: int64 [L + 1], the segments of each lane.
        lane_low, lane_high: float32 [L, 2], bounding boxes of the lane without its padding,
            mirrored as the distances are.
        padded: bool [L], whether the lane has a padding segment.
        lane_ids: int64 [L], the map's ids of the lanes.
        signal_lane: int64 [K], the lane of each signal.
        stop: bool [K, S], the signal says stop at that step.
        stop_start, stop_delta: float32 [2, K, S], the lane segment at the stop point.
        stop_square, stop_projection: float32 [K, S], its squared length, and where the stop point
            projects on it.
    """

    start: Float32Array
    delta: Float32Array
    square: Float32Array
    lane_offsets: Int64Array
    lane_low: Float32Array
    lane_high: Float32Array
    padded: BoolArray
    lane_ids: Int64Array
    signal_lane: Int64Array
    stop: BoolArray
    stop_start: Float32Array
    stop_delta: Float32Array
    stop_square: Float32Array
    stop_projection: Float32Array


def signalled_lanes(scenario: Scenario) -> SignalledLanes | None:
    """The lanes and signals of a scene, or None where no violation is possible: the scene has no
    surface-street lanes, no signals, or none that ever says stop.

    Raises:
        ScenarioError: the signals cover another number of steps than the tracks.
    """
    road_map, lights = scenario.road_map, scenario.traffic_lights
    rows = np.flatnonzero(
        (road_map.kinds == MapFeatureKind.LANE)
        & (road_map.types == LaneType.SURFACE_STREET)
        & (np.diff(road_map.point_offsets) >= 2)
    )
    if len(rows) == 0 or lights.n_steps == 0:
        return None
    if lights.n_steps != scenario.n_steps:
        raise ScenarioError(
            f"traffic signals for {lights.n_steps} steps, tracks for {scenario.n_steps}",
            where=f"scenario {scenario.scenario_id}",
            mend="the official scorer cannot score this scene either; fetch it again",
        )
    lane_ids = road_map.feature_ids[rows]
    # Of two lanes with the same id the signal belongs to the first, as tf.argmax has it.
    lane_of_id = {int(i): lane for lane, i in reversed(list(enumerate(lane_ids)))}
    is_stop = (lights.states == SignalState.ARROW_STOP) | (lights.states == SignalState.STOP)
    signal_ids = [int(i) for i in np.unique(lights.lane_ids[is_stop]) if int(i) in lane_of_id]
    if not signal_ids:
        return None

    counts = np.diff(road_map.point_offsets)[rows]
    padded = counts < counts.max()
    lane_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts - 1 + padded)])
    start, delta = np.empty((2, lane_offsets[-1], 2), np.float32)
    lane_low, lane_high = np.empty((2, len(rows), 2), np.float32)
    _lay_out_lanes(
        road_map.points, road_map.point_offsets[rows], counts, padded, lane_offsets,
        start, delta, lane_low, lane_high,
    )  # fmt: skip
    square = delta[:, 0] * delta[:, 0] + delta[:, 1] * delta[:, 1]

    shape = (len(signal_ids), lights.n_steps)
    states = np.zeros(shape, np.int8)
    stop_points = np.zeros((2, *shape), np.float32)
    steps = np.repeat(np.arange(lights.n_steps), np.diff(lights.step_offsets))
    # Of several states of one lane at one step the last counts, as it does in this assignment.
    columns = np.searchsorted(signal_ids, lights.lane_ids).clip(max=len(signal_ids) - 1)
    known = np.asarray(signal_ids)[columns] == lights.lane_ids
    states[columns[known], steps[known]] = lights.states[known]
    stop_points[:, columns[known], steps[known]] = lights.stop_points[known, :2].T
    signal_lane = np.array([lane_of_id[i] for i in signal_ids], dtype=np.int64)
    stop_start, stop_delta = np.empty((2, 2, *shape), np.float32)
    stop_square, stop_projection = np.empty((2, *shape), np.float32)
    _project_stop_points(
        stop_points, signal_lane, start, delta, square, lane_offsets,
        stop_start, stop_delta, stop_square, stop_projection,
    )  # fmt: skip
    return SignalledLanes(
        start=start,
        delta=delta,
        square=square,
        lane_offsets=lane_offsets,
        lane_low=lane_low,
        lane_high=lane_high,
        padded=padded,
        lane_ids=lane_ids,
        signal_lane=signal_lane,
        stop=(states == SignalState.ARROW_STOP) | (states == SignalState.STOP),
        stop_start=stop_start,
        stop_delta=stop_delta,
        stop_square=stop_square,
        stop_projection=stop_projection,
    )


@kernel
def _lay_out_lanes(
    points: Float64Array,
    first_points: Int64Array,
    counts: Int64Array,
    padded: BoolArray,
    lane_offsets: Int64Array,
    start: Float32Array,
    delta: Float32Array,
    lane_low: Float32Array,
    lane_high: Float32Array,
) -> None:
    """Fill the segments and mirrored bounding boxes of `SignalledLanes` from the map's points."""
    for lane in range(len(counts)):
        for d in range(2):
            low, high = np.float32(np.inf), np.float32(-np.inf)
            for i in range(counts[lane] - 1 + padded[lane]):
                here = np.float32(points[first_points[lane] + i, d])
                inside = i + 1 < counts[lane]
                there = np.float32(points[first_points[lane] + i + 1, d]) if inside else ZERO
                start[lane_offsets[lane] + i, d] = here
                delta[lane_offsets[lane] + i, d] = there - here
                if inside:
                    mirrored = here - (there - here)
                    low, high = min(low, here, mirrored), max(high, here, mirrored)
            lane_low[lane, d], lane_high[lane, d] = low, high


@inlined
def _mirrored_distance(px: float, py: float, dx: float, dy: float, square: float) -> float:
    """The official distance of a point to a lane segment, with its wrong sign.

    Args:
        px, py: float32, the point, from the segment's start.
        dx, dy, square: float32, the segment and its squared length.
    """
    t = (px * dx + py * dy) / square
    t = ZERO if square == ZERO else min(max(t, ZERO), ONE)
    ex, ey = px + dx * t, py + dy * t
    return np.sqrt(ex * ex + ey * ey)


@kernel
def _project_stop_points(
    stop_points: Float32Array,
    signal_lane: Int64Array,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    lane_offsets: Int64Array,
    stop_start: Float32Array,
    stop_delta: Float32Array,
    stop_square: Float32Array,
    stop_projection: Float32Array,
) -> None:
    """Find the lane segment at each stop point and where the stop point projects on it."""
    n_signals, n_steps = stop_points.shape[1:]
    for k in range(n_signals):
        begin, end = lane_offsets[signal_lane[k]], lane_offsets[signal_lane[k] + 1]
        nearest = begin
        for s in range(n_steps):
            x, y = stop_points[0, k, s], stop_points[1, k, s]
            moved = s == 0 or x != stop_points[0, k, s - 1] or y != stop_points[1, k, s - 1]
            if moved:  # hardly ever: signals stand still
                best = np.float32(np.inf)
                for i in range(begin, end):
                    distance = _mirrored_distance(
                        x - start[i, 0], y - start[i, 1], delta[i, 0], delta[i, 1], square[i]
                    )
                    if distance < best:
                        best, nearest = distance, i
            dx, dy = delta[nearest, 0], delta[nearest, 1]
            px, py = x - start[nearest, 0], y - start[nearest, 1]
            stop_start[0, k, s], stop_start[1, k, s] = start[nearest]
            stop_delta[0, k, s], stop_delta[1, k, s] = dx, dy
            stop_square[k, s] = square[nearest]
            stop_projection[k, s] = (
                ZERO if square[nearest] == ZERO else (px * dx + py * dy) / square[nearest]
            )


@kernel
def _is_on_lane(
    x: float,
    y: float,
    lane: int,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    lane_offsets: Int64Array,
    lane_low: Float32Array,
    lane_high: Float32Array,
    padded: BoolArray,
) -> bool:
    """Whether `lane` is the nearest of all lanes; of equally near ones the first is."""
    own = np.float32(np.inf)
    for i in range(lane_offsets[lane], lane_offsets[lane + 1]):
        distance = _mirrored_distance(
            x - start[i, 0], y - start[i, 1], delta[i, 0], delta[i, 1], square[i]
        )
        own = min(own, distance)
    reach = own * _SLACK_RATIO + _SLACK_M
    for other in range(len(padded)):
        if other == lane:
            continue
        begin, end = lane_offsets[other], lane_offsets[other + 1]
        dx = max(lane_low[other, 0] - x, ZERO, x - lane_high[other, 0])
        dy = max(lane_low[other, 1] - y, ZERO, y - lane_high[other, 1])
        if dx * dx + dy * dy > reach * reach:
            if not padded[other]:
                continue
            begin = end - 1  # the padding segment lies outside the box
        for i in range(begin, end):
            distance = _mirrored_distance(
                x - start[i, 0], y - start[i, 1], delta[i, 0], delta[i, 1], square[i]
            )
            if distance < own or (distance == own and other < lane):
                return False
    return True


@kernel
def red_light_violations(
    x: Float32Array,
    y: Float32Array,
    valid: BoolArray,
    start: Float32Array,
    delta: Float32Array,
    square: Float32Array,
    lane_offsets: Int64Array,
    lane_low: Float32Array,
    lane_high: Float32Array,
    padded: BoolArray,
    signal_lane: Int64Array,
    stop: BoolArray,
    stop_start: Float32Array,
    stop_delta: Float32Array,
    stop_square: Float32Array,
    stop_projection: Float32Array,
    violations: BoolArray,
) -> None:
    """Mark the steps at which each evaluated agent runs a red light.

    Args:
        x, y: float32 [R, E, H + T], positions from H - 1 steps before the current one on.
        valid: bool [T, N].
        start .. stop_projection: see `SignalledLanes`; their steps end with those of `x`.
        violations: bool [R, E, T], written.
    """
    n_rollouts, n_agents, n_steps = violations.shape
    before_x, before = x.shape[2] - n_steps - 1, stop.shape[1] - n_steps - 1
    position = np.empty(n_steps + 1, np.float32)
    for r in range(n_rollouts):
        for a in range(n_agents):
            violations[r, a, :] = False
            px, py = x[r, a, before_x:], y[r, a, before_x:]
            for k in range(len(signal_lane)):
                start_x, start_y = stop_start[0, k, before:], stop_start[1, k, before:]
                delta_x, delta_y = stop_delta[0, k, before:], stop_delta[1, k, before:]
                length, line, stops = (
                    stop_square[k, before:],
                    stop_projection[k, before:],
                    stop[k, before:],
                )
                for t in range(n_steps + 1):
                    along = (px[t] - start_x[t]) * delta_x[t]
                    across = (py[t] - start_y[t]) * delta_y[t]
                    p = (along + across) / length[t]
                    position[t] = ZERO if length[t] == ZERO else p
                # Counted without a branch, for hardly ever is there one.
                n_passes = np.int32(0)
                for t in range(n_steps):
                    passes = (position[t + 1] > line[t + 1]) & (position[t] < line[t])
                    n_passes += np.int32(passes & stops[t + 1])
                if n_passes == 0:
                    continue
                for t in range(n_steps):
                    if (
                        position[t + 1] > line[t + 1]
                        and position[t] < line[t]
                        and stops[t + 1]
                        and valid[t, a]
                        and not violations[r, a, t]
                    ):
                        violations[r, a, t] = _is_on_lane(
                            px[t + 1], py[t + 1], signal_lane[k],
                            start, delta, square, lane_offsets, lane_low, lane_high, padded,
                        )  # fmt: skip
