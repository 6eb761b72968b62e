"""Who is on the road: vehicles and cyclists in lanes, pedestrians on walkways, parked cars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wosac_toolkit.scenario import Float64Array, LaneType
from wosac_toolkit.synthetic import curves
from wosac_toolkit.synthetic.drivers import Mover
from wosac_toolkit.synthetic.road_network import (
    MPH,
    POINT_SPACING,
    Carriageway,
    Lane,
    Mode,
    Polyline,
    RoadNetwork,
    Surface,
    Turn,
)
from wosac_toolkit.synthetic.signals import STEP_SECONDS

MOST_VEHICLES = 110
MOST_PARKED = 50
LONG_VEHICLE = 6.5  # metres; longer ones go straight on where they can
ENTRY = 5.0  # metres into a lane at the edge of the map, where newcomers appear
BIKE_LATERAL = -1.1  # where cyclists ride in a lane of cars


@dataclass(frozen=True)
class Parked:
    """Parked cars: `pose` [P, 3] (x, y, heading), `size` [P, 3] (length, width, height)."""

    pose: Float64Array
    size: Float64Array


def populate(network: RoadNetwork, n_steps: int, rng: np.random.Generator) -> list[Mover]:
    """Everyone who moves, or could, within `n_steps`."""
    drivers = list(_drivers(network, n_steps, rng))
    keep = np.sort(rng.permutation(len(drivers))[:MOST_VEHICLES])
    return [*(drivers[k] for k in keep), *_pedestrians(network, rng)]


def _vehicle_size(rng: np.random.Generator) -> tuple[float, float, float]:
    kind = rng.random()
    if kind < 0.62:  # car
        mean, spread = (4.7, 2.0, 1.55), (0.25, 0.08, 0.08)
    elif kind < 0.94:  # SUV, van, pickup
        mean, spread = (5.2, 2.15, 1.9), (0.3, 0.08, 0.12)
    else:  # lorry, bus
        mean, spread = (8.0, 2.45, 3.0), (0.8, 0.08, 0.25)
    length, width, height = np.asarray(mean) + np.asarray(spread) * rng.uniform(-1.7, 1.7, 3)
    return float(length), float(width), float(height)


def _route(
    network: RoadNetwork, first: int, longest: int, straight: float, rng: np.random.Generator
) -> tuple[int, ...]:
    """A walk along the lanes from `first` to the edge of the map.

    `straight` is the weight of going straight on at a junction; a turn's is 1.
    """
    route = [first]
    while len(route) < longest:
        exits = [lane for lane in network.lanes[route[-1]].exits if lane not in route]
        if not exits:
            break
        gates = [network.lanes[lane].gate for lane in exits]
        weights = [straight if g and g.turn is Turn.THROUGH else 1.0 for g in gates]
        if not any(gates):
            weights[0] = straight  # the lane goes on; another exit is a turning lane
        pick = float(rng.random()) * sum(weights)
        chosen = 0
        while pick > weights[chosen] and chosen + 1 < len(exits):
            pick -= weights[chosen]
            chosen += 1
        route.append(exits[chosen])
    return tuple(route)


def _driver(
    network: RoadNetwork, lane: int, bike: bool, start_step: int, rng: np.random.Generator
) -> Mover:
    """A driver or cyclist at the start of a lane, at its desired speed."""
    size = (
        float(rng.uniform(1.6, 1.9)),
        float(rng.uniform(0.6, 0.85)),
        float(rng.uniform(1.6, 1.9)),
    )
    size = size if bike else _vehicle_size(rng)
    long = size[0] > LONG_VEHICLE
    wish = float(rng.uniform(3.5, 6.0) if bike else np.clip(rng.normal(0.98, 0.1), 0.75, 1.2))
    lateral = 0.0 if network.lanes[lane].mode == Mode.BIKE else BIKE_LATERAL
    return Mover(
        mode=Mode.BIKE if bike else Mode.DRIVE,
        route=_route(network, lane, 24, 50.0 if long else 1.2, rng),
        start=ENTRY,
        speed=wish if bike else network.lanes[lane].speed_mph * MPH * wish,
        start_step=start_step,
        wish=wish,
        size=size,
        headway=float(rng.uniform(0.9, 1.7)),
        min_gap=float(rng.uniform(1.5, 3.0)),
        acceleration=float(rng.uniform(0.9, 1.3) if long or bike else rng.uniform(1.3, 2.3)),
        braking=float(rng.uniform(1.4, 2.2)),
        lateral=lateral if bike else float(rng.normal(0.0, 0.1)),
    )


def _drivers(network: RoadNetwork, n_steps: int, rng: np.random.Generator) -> Iterator[Mover]:
    """Vehicles and cyclists in all lanes, and those that arrive at the edges of the map."""
    spacing = float(np.exp(rng.uniform(np.log(7.0), np.log(120.0))))
    cyclists = float(rng.choice([0.02, 0.06, 0.15]))
    for index, lane in enumerate(network.lanes):
        if lane.mode == Mode.WALK or lane.gate is not None:
            continue

        def is_bike(lane: Lane = lane) -> bool:
            if lane.mode == Mode.BIKE:
                return True
            slow = lane.lane_type == LaneType.SURFACE_STREET and lane.speed_mph <= 30
            return slow and lane.right is None and bool(rng.random() < cyclists)

        sparse = 3.0 / (cyclists * 8 + 0.3) if lane.mode == Mode.BIKE else 1.0
        gap = spacing * sparse * (2.0 if lane.surface == Surface.DECK else 1.0)
        # A turning lane is free of its neighbour only after its first metres.
        turning = lane.entries and network.lanes[lane.entries[0]].exits[0] != index
        nearest = 28.0 if turning else ENTRY + 1.0
        # From the end of the lane to its start; everyone could still stop behind whom it follows.
        free = lane.length
        while True:
            mover = _driver(network, index, is_bike(), 0, rng)
            half = mover.size[0] / 2
            at = free - half - 2.0 - float(rng.exponential(gap))
            if at < nearest:
                break
            stopping = float(np.sqrt(4.0 * (free - at - half)))
            yield replace(mover, start=at, speed=min(mover.speed, stopping))
            free = at - half - 2.0
        if not lane.entries:
            pause = gap / max(lane.speed_mph * MPH, 5.0) + 1.5
            step = float(rng.exponential(pause)) / STEP_SECONDS
            while step < n_steps:
                yield _driver(network, index, is_bike(), int(step) + 1, rng)
                step += (1.5 + float(rng.exponential(pause))) / STEP_SECONDS


def _pedestrians(network: RoadNetwork, rng: np.random.Generator) -> Iterator[Mover]:
    """Pedestrians on the sidewalks, alone or in pairs, who keep to the right."""
    lanes = [i for i, l in enumerate(network.lanes) if l.mode == Mode.WALK and l.gate is None]
    if not lanes:
        return
    # More of them where one can cross.
    weights = np.array(
        [
            network.lanes[i].length
            * (2.5 if any(network.lanes[e].gate for e in network.lanes[i].exits) else 1.0)
            for i in lanes
        ]
    )
    taken: dict[int, list[float]] = {}
    for _ in range(int(rng.choice([0, 3, 8, 18, 40], p=[0.15, 0.3, 0.3, 0.17, 0.08]))):
        index = lanes[int(rng.choice(len(lanes), p=weights / weights.sum()))]
        total = network.lanes[index].length
        at = float(rng.uniform(1.0, max(total - 1.5, 1.5)))
        if any(abs(at - other) < 2.0 for other in taken.get(index, [])):
            continue
        taken.setdefault(index, []).append(at)
        wish = float(rng.uniform(1.0, 1.7))
        mover = Mover(
            mode=Mode.WALK,
            route=_route(network, index, 6, 1.0, rng),
            start=at,
            speed=wish,
            start_step=0,
            wish=wish,
            size=_pedestrian_size(rng),
            headway=0.4,
            min_gap=0.5,
            acceleration=1.0,
            braking=1.5,
            lateral=-0.6,
        )
        yield mover
        if rng.random() < 0.25:
            yield replace(mover, size=_pedestrian_size(rng), lateral=-1.6)


def _pedestrian_size(rng: np.random.Generator) -> tuple[float, float, float]:
    side = float(rng.uniform(0.6, 0.95))
    return side * float(rng.uniform(0.95, 1.15)), side, float(rng.uniform(1.5, 1.9))


def furnish(network: RoadNetwork, rng: np.random.Generator) -> Parked:
    """Add driveways and speed bumps to the network, and park cars at the curbs and in lots."""
    poses: list[list[float]] = []
    occupancy = float(rng.uniform(0.15, 0.85))
    lanes = np.concatenate([lane.points[::6] for lane in network.lanes if lane.mode != Mode.WALK])
    for way in network.carriageways:
        if way.surface != Surface.GROUND or not way.profile.sidewalk:
            continue
        total = curves.length(way.axis)
        low = 5.0 if way.start is None else 15.0
        high = total - (5.0 if way.end is None else 25.0)
        driveway = float(rng.uniform(low + 10.0, max(high - 10.0, low + 11.0)))
        has_driveway = high - low > 40.0 and rng.random() < 0.5
        if has_driveway:
            poses += _driveway(network, way, driveway, lanes, rng)
        if way.profile.parking:
            for at in np.arange(low, high, 6.8):
                blocked = has_driveway and abs(at - driveway) < 7.0
                if rng.random() < occupancy and not blocked:
                    shift = float(rng.normal(0.0, 0.1))
                    x, y, heading = _beside(way, at, way.profile.parking_offset + shift)
                    poses.append([x, y, heading + float(rng.normal(0.0, 0.015))])
    for forward, way in enumerate(network.carriageways):
        slow = way.profile.speed_mph <= 25 and curves.length(way.axis) > 60
        if forward % 2 == 0 and slow and rng.random() < 0.3:
            at = curves.length(way.axis) * float(rng.uniform(0.4, 0.6))
            half = -way.profile.lanes_edge
            corners = [(at, half), (at, -half), (at + 1.5, -half), (at + 1.5, half)]
            polygon = np.array([_beside(way, s, by)[:2] for s, by in corners])
            network.speed_bumps.append(Polyline(polygon, 0, Surface.GROUND))
    poses = [poses[k] for k in np.sort(rng.permutation(len(poses))[:MOST_PARKED])]
    sizes: list[tuple[float, float, float]] = []
    while len(sizes) < len(poses):
        size = _vehicle_size(rng)
        if size[0] < LONG_VEHICLE:
            sizes.append(size)
    return Parked(np.array(poses).reshape(-1, 3), np.array(sizes).reshape(-1, 3))


def _beside(way: Carriageway, s: float, by: float) -> tuple[float, float, float]:
    """Position and heading at a distance along a carriageway, `by` metres left of its axis."""
    at = int(np.clip(s / POINT_SPACING, 1, len(way.axis) - 2))
    dx, dy = way.axis[at + 1] - way.axis[at - 1]
    heading = float(np.arctan2(dy, dx))
    x, y = way.axis[at]
    return float(x - np.sin(heading) * by), float(y + np.cos(heading) * by), heading


def _driveway(
    network: RoadNetwork,
    way: Carriageway,
    at: float,
    lanes: Float64Array,
    rng: np.random.Generator,
) -> list[list[float]]:
    """A driveway, and the poses of cars in the lot behind it, where no other road is near."""
    curb = way.profile.curb_offset
    x, y, heading = _beside(way, at, curb - 10.0)
    along = curves.unit(heading)
    row = 2.9 * np.arange(1, int(rng.integers(3, 10)))
    centres = np.array([x, y]) + row[:, None] * along
    if curves.near(centres, lanes, 9.0).any():
        return []
    corners = [(at - 3.0, curb), (at + 3.0, curb), (at + 3.0, curb - 6.0), (at - 3.0, curb - 6.0)]
    polygon = np.array([_beside(way, s, by)[:2] for s, by in corners])
    network.driveways.append(Polyline(polygon, 0, Surface.GROUND))
    return [
        [*centre, heading + np.pi / 2 * float(rng.choice([-1.0, 1.0])) + float(rng.normal(0, 0.02))]
        for centre in centres.tolist()
        if rng.random() < 0.7
    ]
