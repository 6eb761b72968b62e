"""One scene of the Waymo Open Motion Dataset (WOMD) as arrays.

The fields follow `waymo_open_dataset/protos/scenario.proto` and `map.proto`, and keep their order:
row `i` of `Tracks` is `scenario.tracks[i]`, row `i` of `RoadMap` is `scenario.map_features[i]`.
Positions are in metres in the scenario's global frame (up to 40 km from the origin), headings in
radians, counter-clockwise from the x axis and *not* wrapped to [-pi, pi].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from wosac_toolkit.errors import ScenarioError

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Int8Array = npt.NDArray[np.int8]
BoolArray = npt.NDArray[np.bool_]


class ObjectType(IntEnum):
    """`Track.ObjectType`."""

    UNSET = 0
    VEHICLE = 1
    PEDESTRIAN = 2
    CYCLIST = 3
    OTHER = 4


class MapFeatureKind(IntEnum):
    """Which member of `MapFeature.feature_data` is set: its field number; 0 for none."""

    NONE = 0
    LANE = 3
    ROAD_LINE = 4
    ROAD_EDGE = 5
    STOP_SIGN = 7
    CROSSWALK = 8
    SPEED_BUMP = 9
    DRIVEWAY = 10


class LaneType(IntEnum):
    """`LaneCenter.LaneType`."""

    UNDEFINED = 0
    FREEWAY = 1
    SURFACE_STREET = 2
    BIKE_LANE = 3


class SignalState(IntEnum):
    """`TrafficSignalLaneState.State`."""

    UNKNOWN = 0
    ARROW_STOP = 1
    ARROW_CAUTION = 2
    ARROW_GO = 3
    STOP = 4
    CAUTION = 5
    GO = 6
    FLASHING_STOP = 7
    FLASHING_CAUTION = 8


@dataclass(frozen=True, eq=False, slots=True)
class Tracks:
    """The A logged objects over T steps (91 at 10 Hz; 11 in the test split).

    Where `valid` is False the other values are whatever the record holds, usually zeros.

    Attributes:
        object_ids: int64 [A].
        object_types: int8 [A], see `ObjectType`.
        position: float64 [A, T, 3], centre of the box.
        size: float32 [A, T, 3], length, width, height in metres.
        heading: float32 [A, T].
        velocity: float32 [A, T, 2], m/s in the global frame.
        valid: bool [A, T].
    """

    object_ids: Int64Array
    object_types: Int8Array
    position: Float64Array
    size: Float32Array
    heading: Float32Array
    velocity: Float32Array
    valid: BoolArray


@dataclass(frozen=True, eq=False, slots=True)
class Links:
    """Lists of feature ids, one list a map feature: feature `i` has `ids[offsets[i]:offsets[i+1]]`.

    Attributes:
        offsets: int64 [M + 1].
        ids: int64 [K].
    """

    offsets: Int64Array
    ids: Int64Array

    def of(self, feature: int) -> Int64Array:
        """The ids linked to the map feature in row `feature`."""
        return self.ids[self.offsets[feature] : self.offsets[feature + 1]]


@dataclass(frozen=True, eq=False, slots=True)
class RoadMap:
    """The M map features of a scene; the points of feature `i` are
    `points[point_offsets[i]:point_offsets[i + 1]]`.

    A stop sign has one point, its position; crosswalks, speed bumps and driveways are polygons.
    Lane boundaries (`left_boundaries`, `right_boundaries`, `LaneNeighbor.boundaries`) are not kept.

    Attributes:
        feature_ids: int64 [M].
        kinds: int8 [M], see `MapFeatureKind`.
        types: int8 [M], the lane, road-line or road-edge type; 0 for the other kinds.
        point_offsets: int64 [M + 1].
        points: float64 [P, 3].
        speed_limit_mph: float64 [M], 0 where unknown or not a lane.
        interpolating: bool [M], the lane is a connection inside an intersection.
        entry_lanes: lanes that lead into each lane.
        exit_lanes: lanes that each lane leads to.
        stop_sign_lanes: lanes that each stop sign controls.
        neighbors: int64 [K, 7], a row a lane neighbour: row of the lane in these arrays, side
            (0 left, 1 right), id of the neighbour, self_start_index, self_end_index,
            neighbor_start_index, neighbor_end_index.
    """

    feature_ids: Int64Array
    kinds: Int8Array
    types: Int8Array
    point_offsets: Int64Array
    points: Float64Array
    speed_limit_mph: Float64Array
    interpolating: BoolArray
    entry_lanes: Links
    exit_lanes: Links
    stop_sign_lanes: Links
    neighbors: Int64Array

    def polyline(self, feature: int) -> Float64Array:
        """The points [n, 3] of the map feature in row `feature`."""
        return self.points[self.point_offsets[feature] : self.point_offsets[feature + 1]]

    def of_kind(self, kind: MapFeatureKind) -> Int64Array:
        """The rows of the features of one kind, in the record's order."""
        return np.flatnonzero(self.kinds == kind).astype(np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class TrafficLights:
    """The traffic signals seen at each step, as `Scenario.dynamic_map_states` lists them.

    Attributes:
        step_offsets: int64 [S + 1]; step `t` has rows `step_offsets[t]:step_offsets[t + 1]`.
            S is 0 where the record has no dynamic map states, else the number of steps.
        lane_ids: int64 [K], the lane that the signal controls.
        states: int8 [K], see `SignalState`.
        stop_points: float64 [K, 3].
    """

    step_offsets: Int64Array
    lane_ids: Int64Array
    states: Int8Array
    stop_points: Float64Array

    @property
    def n_steps(self) -> int:
        """S, the number of recorded steps."""
        return len(self.step_offsets) - 1


@dataclass(frozen=True, eq=False, slots=True)
class Scenario:
    """One WOMD scene.

    Attributes:
        scenario_id: the id of the record.
        timestamps: float64 [T], seconds.
        current_time_index: the last step of the history (10 in WOMD).
        sdc_track_index: row of the autonomous vehicle in `tracks`.
        tracks: the logged objects.
        tracks_to_predict: int64 [P], rows of `tracks`.
        difficulties: int8 [P], 0 none, 1 and 2 as `RequiredPrediction.DifficultyLevel`.
        objects_of_interest: int64 [K], object ids.
        road_map: the map features.
        traffic_lights: the signals over time.
    """

    scenario_id: str
    timestamps: Float64Array
    current_time_index: int
    sdc_track_index: int
    tracks: Tracks
    tracks_to_predict: Int64Array
    difficulties: Int8Array
    objects_of_interest: Int64Array
    road_map: RoadMap
    traffic_lights: TrafficLights

    @property
    def n_steps(self) -> int:
        """T, the number of steps of the record."""
        return int(self.tracks.valid.shape[1])

    def sim_agents(self) -> Int64Array:
        """Rows of the tracks that a simulator has to simulate: those valid at the current step,
        in the record's order (`submission_specs.get_sim_agent_ids`).
        """
        return np.flatnonzero(self.tracks.valid[:, self.current_time_index]).astype(np.int64)

    def evaluated_agents(self) -> Int64Array:
        """Rows of the tracks that the Sim Agents metric evaluates: the autonomous vehicle and
        `tracks_to_predict`, without repetition, sorted by object id
        (`submission_specs.get_evaluation_sim_agent_ids`).

        Raises:
            ScenarioError: an index that points to no track.
        """
        rows = np.unique(np.append(self.tracks_to_predict, self.sdc_track_index))
        n_tracks = len(self.tracks.object_ids)
        if len(rows) and (rows[0] < 0 or rows[-1] >= n_tracks):
            raise ScenarioError(
                f"sdc_track_index or tracks_to_predict points outside the {n_tracks} tracks",
                where=f"scenario {self.scenario_id}",
                mend="the record is damaged; fetch it again",
            )
        return rows[np.argsort(self.tracks.object_ids[rows], kind="stable")].astype(np.int64)
