"""From the local frame to the scenario's: heights, global coordinates, and WOMD's map features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.scenario import (
    Float64Array,
    Int8Array,
    Int64Array,
    Links,
    MapFeatureKind,
    RoadMap,
    SignalState,
    TrafficLights,
)
from wosac_toolkit.synthetic.road_network import Control, Mode, RoadNetwork, Surface

CLEARANCE = (6.0, 8.0)  # metres between the ground and the deck of an overpass


@dataclass(frozen=True)
class Frame:
    """Where the local frame lies in the global one, and how the land rises.

    Global = rotation by `angle` of local, plus `origin`. Ground height = `origin[2]` + `slope` . xy
    + `swell` * sin of a wave; the deck is a plane above the ground at `crossing`.
    """

    angle: float
    origin: Float64Array
    slope: Float64Array
    swell: float
    wave: Float64Array
    crossing: Float64Array
    clearance: float

    @classmethod
    def sample(cls, network: RoadNetwork, rng: np.random.Generator) -> Frame:
        """A frame within 20 km of the origin, near it in some scenes."""
        direction = rng.uniform(0, 2 * np.pi)
        farthest = float(rng.choice([200.0, 9000.0, 20000.0], p=[0.12, 0.73, 0.15]))
        distance = farthest * np.sqrt(rng.random())
        height = float(np.clip(rng.normal(0.0, 150.0), -440.0, 460.0))
        decks = [w.axis for w in network.carriageways if w.surface == Surface.DECK]
        wavelength, towards = rng.uniform(250.0, 500.0), rng.uniform(0, 2 * np.pi)
        return cls(
            angle=float(rng.uniform(-np.pi, np.pi)),
            origin=np.array([distance * np.cos(direction), distance * np.sin(direction), height]),
            slope=rng.normal(0.0, 0.012, 2),
            swell=float(rng.uniform(0.0, 0.8)),
            wave=2 * np.pi / wavelength * np.array([np.cos(towards), np.sin(towards)]),
            crossing=decks[0][len(decks[0]) // 2] if decks else np.zeros(2),
            clearance=float(rng.uniform(*CLEARANCE)),
        )

    def rotate(self, xy: Float64Array) -> Float64Array:
        """Vectors [n, 2] of the local frame in the global one."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return np.stack([c * xy[:, 0] - s * xy[:, 1], s * xy[:, 0] + c * xy[:, 1]], axis=-1)

    def place(self, xy: Float64Array, surface: Int64Array | int) -> Float64Array:
        """Points [n, 2] of the local frame, on `surface`, as points [n, 3] of the global one."""
        height = np.where(np.asarray(surface) == Surface.DECK, self._deck(xy), self._ground(xy))
        return np.column_stack([self.rotate(xy) + self.origin[:2], height])

    def _ground(self, xy: Float64Array) -> Float64Array:
        height: Float64Array = (
            self.origin[2]
            + (xy * self.slope).sum(-1)
            + self.swell * np.sin((xy * self.wave).sum(-1))
        )
        return height

    def _deck(self, xy: Float64Array) -> Float64Array:
        height: Float64Array = (
            self._ground(self.crossing[None])
            + self.clearance
            + ((xy - self.crossing) * self.slope * 0.5).sum(-1)
        )
        return height


def export_map(
    network: RoadNetwork, frame: Frame, rng: np.random.Generator
) -> tuple[RoadMap, Int64Array]:
    """The map features, and the id of each lane of the network (-1 for walkways)."""
    kinds, types, points, surfaces = [], [], [], []

    def add(kind: MapFeatureKind, feature_type: int, xy: Float64Array, surface: int) -> int:
        kinds.append(int(kind))
        types.append(int(feature_type))
        points.append(xy)
        surfaces.append(int(surface))
        return len(kinds) - 1

    for edge in network.edges:
        add(MapFeatureKind.ROAD_EDGE, edge.type, edge.points, edge.surface)
    for line in network.lines:
        add(MapFeatureKind.ROAD_LINE, line.type, line.points, line.surface)
    row_of_lane = np.full(len(network.lanes), -1, np.int64)
    for i, lane in enumerate(network.lanes):
        if lane.mode != Mode.WALK:
            row_of_lane[i] = add(MapFeatureKind.LANE, lane.lane_type, lane.points, lane.surface)
    for polygon in network.crosswalks:
        add(MapFeatureKind.CROSSWALK, 0, polygon.points, polygon.surface)
    for polygon in network.speed_bumps:
        add(MapFeatureKind.SPEED_BUMP, 0, polygon.points, polygon.surface)
    for polygon in network.driveways:
        add(MapFeatureKind.DRIVEWAY, 0, polygon.points, polygon.surface)
    first_sign = len(kinds)
    for position, _ in network.stop_signs:
        add(MapFeatureKind.STOP_SIGN, 0, position[None], Surface.GROUND)

    m = len(kinds)
    ids = np.cumsum(rng.integers(1, 3, m)).astype(np.int64)
    lane_ids = np.where(row_of_lane >= 0, ids[row_of_lane], -1)
    speed, interpolating = np.zeros(m), np.zeros(m, bool)
    entries: list[list[int]] = [[] for _ in range(m)]
    exits: list[list[int]] = [[] for _ in range(m)]
    signed: list[list[int]] = [[] for _ in range(m)]
    neighbors = []
    for i, row in enumerate(row_of_lane):
        if row < 0:
            continue
        lane = network.lanes[i]
        speed[row], interpolating[row] = lane.speed_mph, lane.interpolating
        entries[row] = [int(lane_ids[k]) for k in lane.entries]
        exits[row] = [int(lane_ids[k]) for k in lane.exits]
        for side, other in enumerate((lane.left, lane.right)):
            if other is not None:
                last, theirs = len(lane.points) - 1, len(network.lanes[other].points) - 1
                neighbors.append([row, side, lane_ids[other], 0, last, 0, theirs])
    for k, (_, lanes) in enumerate(network.stop_signs):
        signed[first_sign + k] = [int(lane_ids[lane]) for lane in lanes]

    lengths = [len(p) for p in points]
    road_map = RoadMap(
        feature_ids=ids,
        kinds=np.array(kinds, np.int8),
        types=np.array(types, np.int8),
        point_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        points=frame.place(np.concatenate(points), np.repeat(surfaces, lengths)),
        speed_limit_mph=speed,
        interpolating=interpolating,
        entry_lanes=_links(entries),
        exit_lanes=_links(exits),
        stop_sign_lanes=_links(signed),
        neighbors=np.array(neighbors, np.int64).reshape(-1, 7),
    )
    return road_map, lane_ids


def _links(lists: list[list[int]]) -> Links:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])])
    flat = [i for ids in lists for i in ids]
    return Links(offsets.astype(np.int64), np.array(flat, np.int64))


def export_lights(
    network: RoadNetwork,
    gated: Int64Array,
    shown: Int8Array,
    lane_ids: Int64Array,
    frame: Frame,
    rng: np.random.Generator,
) -> TrafficLights:
    """The lights over time, each at the first point of the lane that it controls.

    As in WOMD a light can be out of sight, and UNKNOWN, throughout or until the car comes near.
    """
    n_steps = len(shown)
    lit = []
    for k, index in enumerate(gated):
        lane = network.lanes[index]
        if lane.gate and lane.gate.control is Control.SIGNAL and lane.mode == Mode.DRIVE:
            lit.append(k)
    states = shown[:, lit].copy()
    lanes = [network.lanes[gated[k]] for k in lit]
    approaches = sorted({(g.junction, g.axis) for lane in lanes if (g := lane.gate)})
    for approach in approaches:
        comes_near = int(rng.integers(1, n_steps))
        unseen = int(rng.choice([0, comes_near, n_steps], p=[0.8, 0.1, 0.1]))
        for k, lane in enumerate(lanes):
            if lane.gate and (lane.gate.junction, lane.gate.axis) == approach:
                states[:unseen, k] = SignalState.UNKNOWN
    starts = np.array([lane.points[0] for lane in lanes]).reshape(-1, 2)
    stops = frame.place(starts, Surface.GROUND)
    return TrafficLights(
        step_offsets=np.arange(n_steps + 1, dtype=np.int64) * len(lit),
        lane_ids=np.tile(lane_ids[gated[lit]], n_steps).astype(np.int64),
        states=states.reshape(-1),
        stop_points=np.tile(stops, (n_steps, 1)),
    )
