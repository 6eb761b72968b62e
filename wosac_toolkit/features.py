"""Scene and rollouts to features (`sim_agents_metrics/metric_features.py`).

What depends on the scene alone is computed once, by `prepare_scene`; a reward that scores many sets
of rollouts of one scene then pays only for the rollouts.

Scenario generation differs in what it simulates: the whole record, so that nothing precedes the
first step, and the boxes' sizes. The official code then takes the agents simulated to be valid at
every step, and so do we, in the log as well: where a logged state is missing, a box stands where
the record's empty state puts it, at the origin and without size, and other agents are measured
against it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from wosac_toolkit.challenge import Challenge, get_challenge
from wosac_toolkit.errors import RolloutsError, ScenarioError, some_ids
from wosac_toolkit.kernels import (
    kinematics,
    layout,
    nearest_object,
    red_lights,
    road_edges,
    time_to_collision,
)
from wosac_toolkit.kernels.boxes import box_corners
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Int8Array,
    Int64Array,
    MapFeatureKind,
    Scenario,
)
from wosac_toolkit.threads import spread

# Kinematics look back two steps: an acceleration is the difference of two speeds.
_HISTORY = 2


@dataclass(frozen=True, eq=False, slots=True)
class Features:
    """The features of S samples (1 for the log, R for rollouts) of the E evaluated agents.

    Fields, shapes and meaning are those of the official `MetricFeatures`, over the T simulated
    steps. Values at steps where `valid` is False mean nothing.

    Attributes:
        object_id: int64 [E], sorted; in scenario generation in the record's order.
        object_type: int8 [S, E], see `ObjectType`.
        valid: bool [S, E, T]; all True for rollouts.
        average_displacement_error: float32 [S, E], metres, to the log; in scenario generation,
            where simulated agents have no counterpart in the log, 0.
        linear_speed: float32 [S, E, T], m/s in 3-D.
        linear_acceleration: float32 [S, E, T], m/s^2, change of the linear speed.
        angular_speed: float32 [S, E, T], rad/s.
        angular_acceleration: float32 [S, E, T], rad/s^2.
        distance_to_nearest_object: float32 [S, E, T], metres, negative where boxes overlap; 1e10
            where the agent or all others are invalid.
        collision_per_step: bool [S, E, T].
        time_to_collision: float32 [S, E, T], seconds, at most 5.
        distance_to_road_edge: float32 [S, E, T], metres, positive off the road; -1e10 where the
            agent is invalid.
        offroad_per_step: bool [S, E, T].
        traffic_light_violation_per_step: bool [S, E, T], or None where the version has no such
            feature.
    """

    object_id: Int64Array
    object_type: Int8Array
    valid: BoolArray
    average_displacement_error: Float32Array
    linear_speed: Float32Array
    linear_acceleration: Float32Array
    angular_speed: Float32Array
    angular_acceleration: Float32Array
    distance_to_nearest_object: Float32Array
    collision_per_step: BoolArray
    time_to_collision: Float32Array
    distance_to_road_edge: Float32Array
    offroad_per_step: BoolArray
    traffic_light_violation_per_step: BoolArray | None

    def between(self, start: int, stop: int) -> Features:
        """Those of samples `start` to `stop`, as views."""
        arrays = [getattr(self, f.name) for f in fields(self)[1:]]
        some: list[Any] = [a if a is None else a[start:stop] for a in arrays]
        return Features(self.object_id, *some)


@dataclass(frozen=True, eq=False, slots=True)
class PreparedScene:
    """A scene made ready for one version of the metric.

    The N simulated agents stand in the metric's order: the E evaluated ones, sorted by object id,
    then the others as the record lists them. In scenario generation all are evaluated, and all
    stand as the record lists them.

    Attributes:
        scenario_id: the scene's id.
        challenge: the version.
        object_ids: int64 [N].
        object_types: int8 [N].
        n_evaluated: E.
        size: float32 [N, 3], length, width, height at the current step, kept over the simulation.
        future_size: float32 [N, T, 3], the same at the steps of `future`, where boxes are simulated
            with their sizes; else None.
        history: float32 [N, 2, 4], x, y, z, heading at the last logged step but one and the
            current step; NaN where the whole record is simulated, so that what would need them
            is.
        future: float32 [N, T, 4], the logged states at the simulated steps, valid or not.
        future_valid: bool [T, N].
        record_valid: bool [E, H + T], the validity of the evaluated agents over the whole record.
        edges: the road edges.
        signals: lanes and signals, or None where no red light can be run.
    """

    scenario_id: str
    challenge: Challenge
    object_ids: Int64Array
    object_types: Int8Array
    n_evaluated: int
    size: Float32Array
    future_size: Float32Array | None
    history: Float32Array
    future: Float32Array
    future_valid: BoolArray
    record_valid: BoolArray
    edges: road_edges.RoadEdges
    signals: red_lights.SignalledLanes | None


def prepare_scene(scenario: Scenario, challenge: str | Challenge = "2025") -> PreparedScene:
    """Make a scene ready for scoring.

    Raises:
        ScenarioError: the scene cannot be scored, by us or by the official code: no logged future,
            an evaluated agent that is not valid at the current step, no road edges, traffic
            signals for another number of steps.
    """
    challenge = get_challenge(challenge)
    where = f"scenario {scenario.scenario_id}"
    tracks, current, first = scenario.tracks, challenge.current_time_index, challenge.first_step
    if scenario.n_steps != first + challenge.n_steps:
        n_history = current + 1
        raise ScenarioError(
            f"the record has {scenario.n_steps} steps, scoring takes {n_history} of history "
            f"and {first + challenge.n_steps - n_history} of future",
            where=where,
            mend="use the training or validation split; the test split has no future",
        )
    if len(np.unique(tracks.object_ids)) != len(tracks.object_ids):
        values, counts = np.unique(tracks.object_ids, return_counts=True)
        raise ScenarioError(
            f"several tracks with object id {some_ids(values[counts > 1].tolist())}", where=where
        )
    # Not `scenario.sim_agents()`: the official code too has the challenge's step, not the record's.
    simulated = np.flatnonzero(tracks.valid[:, current])
    evaluated = simulated if challenge.whole_record else scenario.evaluated_agents()
    absent = evaluated[~tracks.valid[evaluated, current]]
    if len(absent):
        raise ScenarioError(
            f"evaluated object {some_ids(tracks.object_ids[absent].tolist())} is not valid at the "
            f"current step {current}",
            where=where,
            mend="the official scorer cannot score this scene either",
        )
    polylines = [
        scenario.road_map.polyline(i)
        for i in scenario.road_map.of_kind(MapFeatureKind.ROAD_EDGE).tolist()
    ]
    if not any(len(p) >= 2 for p in polylines):
        raise ScenarioError(
            "missing road edges",
            where=where,
            mend="the metric is undefined without them, leave the scene out",
        )

    rows = np.concatenate([evaluated, simulated[~np.isin(simulated, evaluated)]])
    states = np.concatenate(
        [tracks.position[rows].astype(np.float32), tracks.heading[rows, :, None]], axis=2
    )
    history = np.ascontiguousarray(states[:, current + 1 - _HISTORY : current + 1])
    if challenge.whole_record:
        history = np.full_like(history, np.nan)
    future_valid = np.ascontiguousarray(tracks.valid[rows, first:].T)
    record_valid = tracks.valid[evaluated]
    return PreparedScene(
        scenario_id=scenario.scenario_id,
        challenge=challenge,
        object_ids=tracks.object_ids[rows],
        object_types=tracks.object_types[rows],
        n_evaluated=len(evaluated),
        size=np.ascontiguousarray(tracks.size[rows, current]),
        future_size=tracks.size[rows, first:] if challenge.whole_record else None,
        history=history,
        future=np.ascontiguousarray(states[:, first:]),
        future_valid=future_valid,
        record_valid=record_valid,
        edges=road_edges.road_edge_segments(polylines, planar=challenge.road_edges == "planar"),
        signals=(red_lights.signalled_lanes(scenario) if challenge.has_traffic_lights else None),
    )


def logged_features(scene: PreparedScene) -> Features:
    """The features of the log of a prepared scene, one sample."""
    columns = np.arange(len(scene.object_ids))
    if scene.future_size is None:
        return _features(scene, scene.future[None], scene.size, columns, scene.future_valid)
    always = np.ones_like(scene.future_valid)
    features = _features(scene, scene.future[None], scene.future_size[None], columns, always)
    return replace(features, valid=scene.future_valid[None, :, : scene.n_evaluated].swapaxes(1, 2))


def simulated_features(scene: PreparedScene, rollouts: Rollouts, threads: int = 1) -> Features:
    """The features of rollouts of a prepared scene, which do not depend on each other.

    Args:
        scene: the scene.
        rollouts: of it.
        threads: to spread the rollouts over.

    Raises:
        RolloutsError: the rollouts are of another scene, or their objects or steps do not match
            the scene's, or scenario generation finds no sizes, or sizes that none can have.
    """
    columns = _columns(scene, rollouts)
    always = np.ones_like(scene.future_valid)
    if not scene.challenge.whole_record:
        return _features(scene, rollouts.states, scene.size, columns, always, threads)
    sizes = _simulated_sizes(scene, rollouts)
    features = _features(scene, rollouts.states, sizes, columns, always, threads)
    if rollouts.object_types is None:
        return features
    # As the official code reports them. What is scored for vehicles alone asks for the log's types.
    return replace(features, object_type=rollouts.object_types[:, columns[: scene.n_evaluated]])


def compute_features(
    scenario: Scenario, rollouts: Rollouts, challenge: str | Challenge = "2025"
) -> tuple[Features, Features]:
    """The logged and the simulated features of a scene.

    Raises:
        ScenarioError, RolloutsError: see `prepare_scene` and `simulated_features`.
    """
    scene = prepare_scene(scenario, challenge)
    return logged_features(scene), simulated_features(scene, rollouts)


def _columns(scene: PreparedScene, rollouts: Rollouts) -> Int64Array:
    """Where each agent of the scene stands in the rollouts, if these are rollouts of it."""
    where = f"scenario {scene.scenario_id}"
    if rollouts.scenario_id != scene.scenario_id:
        raise RolloutsError(f"these are rollouts of scenario {rollouts.scenario_id}", where=where)
    expected, given = np.sort(scene.object_ids), np.sort(rollouts.object_ids)
    if not np.array_equal(expected, given):
        missing, unknown = np.setdiff1d(expected, given), np.setdiff1d(given, expected)
        raise RolloutsError(
            "; ".join(
                part
                for part in (
                    f"missing object {some_ids(missing.tolist())}" if len(missing) else "",
                    f"unknown object {some_ids(unknown.tolist())}" if len(unknown) else "",
                    "" if len(missing) or len(unknown) else "an object occurs twice",
                )
                if part
            ),
            where=where,
            mend="simulate the objects valid at the current step, each once",
        )
    if rollouts.n_steps != scene.challenge.n_steps or rollouts.n_rollouts == 0:
        raise RolloutsError(
            f"{rollouts.n_rollouts} rollouts of {rollouts.n_steps} steps",
            where=where,
            mend=f"at least one rollout of {scene.challenge.n_steps} steps is needed"
            + (", the whole record with its history" if scene.challenge.whole_record else ""),
        )
    order = np.argsort(rollouts.object_ids)
    return order[np.searchsorted(given, scene.object_ids)]


def _simulated_sizes(scene: PreparedScene, rollouts: Rollouts) -> Float32Array:
    """The sizes [R, N, T, 3] of the rollouts, if they are sizes."""
    where = f"scenario {scene.scenario_id}"
    sizes = rollouts.sizes
    if sizes is None:
        raise RolloutsError(
            "no sizes, or not one for every step of every object",
            where=where,
            mend="scenario generation simulates length, width and height of every agent",
        )
    wrong = ~(np.isfinite(sizes) & (sizes >= 0)).all(axis=(0, 2, 3))
    if wrong.any():
        raise RolloutsError(
            f"a size of object {some_ids(rollouts.object_ids[wrong].tolist())} is negative or not "
            "finite",
            where=where,
        )
    return sizes


@dataclass(frozen=True, eq=False, slots=True)
class _Boxes:
    """The sizes of the boxes: float32 [N], or [R, T, N] where they change."""

    length: Float32Array
    width: Float32Array
    half_height: Float32Array
    core_length: Float32Array
    core_width: Float32Array
    shrinking: Float32Array
    radius: Float32Array

    def between(self, start: int, stop: int) -> _Boxes:
        """Those of samples `start` to `stop`, as views."""
        if self.length.ndim == 1:
            return self
        return _Boxes(*(getattr(self, f.name)[start:stop] for f in fields(self)))


def _boxes(sizes: Float32Array, corner_rounding: float) -> _Boxes:
    """Boxes of sizes float32 [..., N, 3]."""
    length, width, height = np.ascontiguousarray(np.moveaxis(sizes, -1, 0))
    return _Boxes(
        length,
        width,
        height * np.float32(0.5),
        *nearest_object.shrunken_boxes(length, width, corner_rounding),
        radius=np.hypot(length, width) / np.float32(2),
    )


def _features(
    scene: PreparedScene,
    states: Float32Array,
    sizes: Float32Array,
    columns: Int64Array,
    valid: BoolArray,
    threads: int = 1,
) -> Features:
    """The features of one set of samples of the scene.

    Args:
        scene: the scene.
        states: float32 [R, N, T, 4].
        sizes: float32 [N, 3] in the metric's order; or [R, N, T, 3], in the order of `states`.
        columns: int64 [N], where each agent stands in `states`.
        valid: bool [T, N].
        threads: to spread the samples over.
    """
    n_evaluated = scene.n_evaluated
    shape = (len(states), n_evaluated, states.shape[2])
    if sizes.ndim == 4:
        sizes = sizes[:, columns].swapaxes(1, 2)
    boxes = _boxes(sizes, scene.challenge.corner_rounding)
    motion = np.empty((4, *shape), np.float32)
    features = Features(
        object_id=scene.object_ids[:n_evaluated],
        object_type=np.broadcast_to(scene.object_types[:n_evaluated], shape[:2]),
        valid=np.broadcast_to(valid[:, :n_evaluated].T, shape),
        average_displacement_error=np.zeros(shape[:2], np.float32),
        linear_speed=motion[0],
        linear_acceleration=motion[1],
        angular_speed=motion[2],
        angular_acceleration=motion[3],
        distance_to_nearest_object=np.empty(shape, np.float32),
        collision_per_step=np.empty(shape, np.bool_),
        time_to_collision=np.empty(shape, np.float32),
        distance_to_road_edge=np.empty(shape, np.float32),
        offroad_per_step=np.empty(shape, np.bool_),
        traffic_light_violation_per_step=(
            np.zeros(shape, np.bool_) if scene.challenge.has_traffic_lights else None
        ),
    )

    def measure(start: int, stop: int) -> None:
        some, their_boxes = features.between(start, stop), boxes.between(start, stop)
        _measure(scene, states[start:stop], their_boxes, columns, valid, some)

    spread(measure, len(states), threads)
    return features


def _measure(
    scene: PreparedScene,
    states: Float32Array,
    boxes: _Boxes,
    columns: Int64Array,
    valid: BoolArray,
    features: Features,
) -> None:
    """Fill the arrays of `features`; arguments as `_features`."""
    challenge = scene.challenge
    n_rollouts, n_evaluated, n_steps = features.linear_speed.shape
    x, y = np.empty((2, n_rollouts, _HISTORY + n_steps, len(columns)), np.float32)
    heading = np.empty((n_rollouts, n_steps, len(columns)), np.float32)
    evaluated = np.empty((4, n_rollouts, n_evaluated, _HISTORY + n_steps), np.float32)
    layout.unpack_states(states, columns, scene.history, x, y, heading, *evaluated)

    central = challenge.difference == "central"
    differentiate = kinematics.central_kinematics if central else kinematics.forward_kinematics
    differentiate(
        *evaluated, features.linear_speed, features.linear_acceleration,
        features.angular_speed, features.angular_acceleration,
    )  # fmt: skip
    if not challenge.whole_record:
        logged = np.ascontiguousarray(scene.future[:n_evaluated].transpose(2, 0, 1))
        kinematics.displacement_errors(
            *evaluated[:3], *logged[:3],
            scene.record_valid, scene.record_valid.sum(axis=1).astype(np.float32),
            features.average_displacement_error,
        )  # fmt: skip

    distance = features.distance_to_nearest_object
    nearest_object.nearest_object_distances(
        x, y, heading, boxes.core_length, boxes.core_width, boxes.shrinking, boxes.radius,
        valid, distance,
    )  # fmt: skip
    np.less(distance, 0, out=features.collision_per_step)
    time_to_collision.times_to_collision(
        x, y, heading, boxes.length, boxes.width, valid, int(central), features.time_to_collision
    )

    corners = np.empty((n_rollouts, n_steps, n_evaluated, 8), np.float32)
    box_corners(x, y, heading, boxes.length, boxes.width, corners)
    distance = features.distance_to_road_edge
    if challenge.road_edges == "planar":
        road_edges.planar_road_edge_distances(corners, valid, scene.edges, distance)
    else:
        road_edges.road_edge_distances(
            corners, evaluated[2], boxes.half_height, valid, scene.edges, distance
        )
    np.greater(distance, 0, out=features.offroad_per_step)

    violations = features.traffic_light_violation_per_step
    if violations is not None and scene.signals is not None:
        lanes = scene.signals
        # A light is run between two steps: never at the first of the record.
        first = max(n_steps - (lanes.stop.shape[1] - 1), 0)
        crossings = np.empty((n_rollouts, n_evaluated, n_steps - first), np.bool_)
        red_lights.red_light_violations(
            *evaluated[:2], valid[first:], lanes.start, lanes.delta, lanes.square,
            lanes.lane_offsets, lanes.lane_low, lanes.lane_high, lanes.padded,
            lanes.signal_lane, lanes.stop, lanes.stop_start, lanes.stop_delta,
            lanes.stop_square, lanes.stop_projection, crossings,
        )  # fmt: skip
        violations[..., first:] = crossings
