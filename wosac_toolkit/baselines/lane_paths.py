"""The paths that drivers of the `idm` policy follow: lanes of the map, or arcs where there is none.

A path begins at the driver's box and leads back to the centreline of its lane. All are sampled at
the same even distances, so that they are arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from wosac_toolkit.baselines.idm_kernels import SPACING, project, sample_evenly, sample_routes
from wosac_toolkit.baselines.policy import CurrentState
from wosac_toolkit.scenario import (
    BoolArray,
    Float64Array,
    Int64Array,
    LaneType,
    MapFeatureKind,
    Scenario,
    SignalState,
)

MPH = 0.44704  # m/s

# Which lane an agent is on.
NEAR_MOVING, NEAR_STANDING = 4.0, 1.3  # metres from the centreline at most
ALIGNED_MOVING, ALIGNED_STANDING = 1.0, 0.6  # radians between box and lane at most
LEVEL = 4.0  # metres between centre of the box and lane at most
METRES_PER_RADIAN = 2.0  # a radian of misalignment counts as so many metres
DOUBT = 0.25  # metres; a lane that is further away by this is less likely by a factor e

# Where lanes end and begin together.
JOINED_METRES, JOINED_RADIANS = 0.1, 0.5
MOST_ROUTES = 16  # of an agent; further forks are not taken
STRAIGHT = 1.0  # radians; an exit that turns by this more is less likely by a factor e

HASTE = 1.0  # m/s; a path that is driven too fast by this more is less likely by a factor e

RETURN_SECONDS, RETURN_METRES = 3.0, 12.0  # a driver is back on the centreline after the longer
SWERVE = 6.0  # m/s^2 to the side at most on the way back
LATERAL_ACCELERATION = 2.0  # m/s^2 in curves
EARLY_BRAKING = 1.0  # m/s^2, before curves
SMOOTHING = 2  # stations before and after that a direction is taken from
TIGHTEST = 0.2  # 1/m, curvature of an arc
ARC_METRES = 20.0  # a turn off the lanes fades over this distance
FIRM_BRAKING, GENTLE_BRAKING = 5.0, 2.5  # m/s^2 to stop at a red light and at a yellow one


@dataclass(frozen=True, slots=True)
class LaneGraph:
    """The L lanes of a map.

    Attributes:
        points: float64 [P, 3].
        stations: float64 [P], distance along the lane.
        offsets: int64 [L + 1], lane `l` has `points[offsets[l]:offsets[l + 1]]`.
        exits: the lanes that each leads to.
        speed_limit: float64 [L], m/s, nan where unknown.
        bikes_only: bool [L].
        stop: float64 [L], how far along the lane it is closed by a light now; inf where it is not.
        is_red: bool [L], that light is red, not yellow.
        turn: float64 [L], by how much the lane turns, radians.
    """

    points: Float64Array
    stations: Float64Array
    offsets: Int64Array
    exits: tuple[tuple[int, ...], ...]
    speed_limit: Float64Array
    bikes_only: BoolArray
    stop: Float64Array
    is_red: BoolArray
    turn: Float64Array


@dataclass(frozen=True, slots=True)
class Paths:
    """P paths sampled at K stations, `SPACING` apart; a driver begins at station 0.

    Attributes:
        driver: int64 [P], of which driver, ascending.
        probability: float64 [P], of the path among those of its driver.
        position: float64 [P, K, 3].
        heading: float64 [P, K], of the box.
        direction: float64 [P, K], of travel.
        speed_limit: float64 [P, K], m/s, nan where unknown.
        curve_speed: float64 [P, K], m/s that is comfortable there and in the curves after it.
        stop: float64 [P], metres along the path to the light that closes it; inf where none does.
    """

    driver: Int64Array
    probability: Float64Array
    position: Float64Array
    heading: Float64Array
    direction: Float64Array
    speed_limit: Float64Array
    curve_speed: Float64Array
    stop: Float64Array


@dataclass(frozen=True, slots=True)
class _Routes:
    """Chains of lanes: route `p` is `lanes[offsets[p]:offsets[p + 1]]` and begins at `begin[p]`."""

    driver: Int64Array
    probability: Float64Array
    lanes: Int64Array
    offsets: Int64Array
    begin: Float64Array


def lane_graph(scenario: Scenario, origin: Float64Array) -> LaneGraph:
    """The lanes of a scene, with the lights as they are at its current step.

    Recorded exits are followed; on a map that records none at all, as older exports of WOMD, lanes
    lead to those that begin where they end, in about the same direction.

    Args:
        scenario: only its map and the lights of the current step are read.
        origin: [3], which positions are relative to.
    """
    road_map = scenario.road_map
    counts = np.diff(road_map.point_offsets)
    rows = np.flatnonzero((road_map.kinds == MapFeatureKind.LANE) & (counts > 1))
    counts = counts[rows]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    index = np.repeat(road_map.point_offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
    points = road_map.points[index] - origin

    steps = np.diff(points[:, :2], axis=0, prepend=points[:1, :2])
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    stations = np.cumsum(lengths)
    stations -= np.repeat(stations[offsets[:-1]], counts)
    first, last = offsets[:-1], offsets[1:] - 1
    begins = _directions(points, first, np.minimum(first + 3, last))
    ends = _directions(points, np.maximum(last - 3, first), last)

    row_of = {int(road_map.feature_ids[row]): k for k, row in enumerate(rows)}
    exits = tuple(
        tuple(row_of[int(i)] for i in road_map.exit_lanes.of(int(row)) if int(i) in row_of)
        for row in rows
    )
    if not any(exits):
        exits = _joined(points[first, :2], points[last, :2], begins, ends)
    limit = road_map.speed_limit_mph[rows] * MPH
    stop, is_red = _closed(scenario, row_of, points, stations, offsets, origin)
    return LaneGraph(
        points=points,
        stations=stations,
        offsets=offsets,
        exits=exits,
        speed_limit=np.where(limit > 0, limit, np.nan),
        bikes_only=road_map.types[rows] == LaneType.BIKE_LANE,
        stop=stop,
        is_red=is_red,
        turn=np.abs(_wrapped(ends - begins)),
    )


def _directions(points: Float64Array, first: Int64Array, last: Int64Array) -> Float64Array:
    step = points[last] - points[first]
    directions: Float64Array = np.arctan2(step[:, 1], step[:, 0])
    return directions


def _wrapped(angle: Float64Array) -> Float64Array:
    wrapped: Float64Array = (angle + np.pi) % (2 * np.pi) - np.pi
    return wrapped


def _joined(
    first: Float64Array, last: Float64Array, begins: Float64Array, ends: Float64Array
) -> tuple[tuple[int, ...], ...]:
    """The lanes that begin where each ends; first and last are points [L, 2]."""
    order = np.argsort(first[:, 0])
    low = np.searchsorted(first[order, 0], last[:, 0] - JOINED_METRES)
    high = np.searchsorted(first[order, 0], last[:, 0] + JOINED_METRES)
    joined = []
    for lane, y in enumerate(last[:, 1].tolist()):
        near = sorted(order[low[lane] : high[lane]].tolist())
        joined.append(
            tuple(
                other
                for other in near
                if abs(float(first[other, 1]) - y) < JOINED_METRES
                and math.cos(float(begins[other] - ends[lane])) > math.cos(JOINED_RADIANS)
                and other != lane
            )
        )
    return tuple(joined)


def _closed(
    scenario: Scenario,
    row_of: dict[int, int],
    points: Float64Array,
    stations: Float64Array,
    offsets: Int64Array,
    origin: Float64Array,
) -> tuple[Float64Array, BoolArray]:
    """Where lanes are closed by the lights of the current step, and whether those are red."""
    n_lanes = len(offsets) - 1
    stop, is_red = np.full(n_lanes, np.inf), np.zeros(n_lanes, bool)
    lights, now = scenario.traffic_lights, scenario.current_time_index
    if now >= lights.n_steps:
        return stop, is_red
    red = (SignalState.STOP, SignalState.ARROW_STOP)
    yellow = (SignalState.CAUTION, SignalState.ARROW_CAUTION)
    for k in range(int(lights.step_offsets[now]), int(lights.step_offsets[now + 1])):
        lane = row_of.get(int(lights.lane_ids[k]))
        state = lights.states[k]
        if lane is None or not (state in red or state in yellow):
            continue
        one = slice(offsets[lane], offsets[lane + 1])
        apart = points[one, :2] - (lights.stop_points[k, :2] - origin[:2])
        stop[lane] = stations[one][np.hypot(apart[:, 0], apart[:, 1]).argmin()]
        is_red[lane] = state in red
    return stop, is_red


def drivers_paths(
    graph: LaneGraph,
    state: CurrentState,
    is_vehicle: BoolArray,
    may_drive: BoolArray,
    reach: Float64Array,
) -> tuple[Int64Array, Paths]:
    """Who drives, and where to.

    Of the agents that may drive those do that are on a lane, or move; the others are parked.

    Args:
        graph: the lanes.
        state: of the N agents, positions relative to the graph's origin.
        is_vehicle: bool [N]; others keep their distance from the centreline, and take bike lanes.
        may_drive: bool [N].
        reach: float64 [N], metres that a path has to be long.

    Returns:
        Rows of the D drivers in the N agents, and the paths of these.
    """
    n_stations = int(np.ceil(reach.max(initial=1.0) / SPACING)) + 2
    choices = _lanes_of(graph, state, is_vehicle, may_drive)
    on_lane = np.array([len(lanes) > 0 for lanes, _, _ in choices], bool)
    drivers = np.flatnonzero(may_drive & (on_lane | (state.speed > 0)))
    routes = _routes(graph, drivers, choices, is_vehicle, reach)
    by_lane = _lane_paths(graph, routes, drivers, state, is_vehicle, n_stations)
    loose = np.flatnonzero(~on_lane[drivers])
    by_arc = _arc_paths(loose, drivers[loose], state, n_stations)
    order = np.argsort(np.concatenate([by_lane.driver, by_arc.driver]), kind="stable")
    both = Paths(
        *(
            np.concatenate([getattr(by_lane, name), getattr(by_arc, name)])[order]
            for name in Paths.__slots__
        )
    )
    # Who means to turn is slow already.
    excess = np.maximum(state.speed[drivers[both.driver]] - both.curve_speed[:, 0], 0.0)
    likely = both.probability * np.exp(-excess / HASTE)
    return drivers, replace(both, probability=np.maximum(likely, 1e-12))


_Choice = tuple[list[int], list[float], list[float]]


def _lanes_of(
    graph: LaneGraph, state: CurrentState, is_vehicle: BoolArray, may_drive: BoolArray
) -> list[_Choice]:
    """The lanes each agent may be on, where along them it is, and how likely each is."""
    n_agents, n_lanes = len(state.speed), len(graph.speed_limit)
    distance = np.full((n_agents, n_lanes), np.inf)
    station, segment = np.zeros((n_agents, n_lanes)), np.zeros((n_agents, n_lanes), np.int64)
    project(
        np.ascontiguousarray(graph.points[:, :2]),
        graph.stations,
        graph.offsets,
        np.ascontiguousarray(state.position[:, 0]),
        np.ascontiguousarray(state.position[:, 1]),
        NEAR_MOVING,
        distance,
        station,
        segment,
    )
    near = np.where(state.speed > 0, NEAR_MOVING, NEAR_STANDING)
    forward = np.cos(state.course - state.heading) > 0
    close = (distance <= near[:, None]) & (may_drive & forward)[:, None]
    close &= ~(is_vehicle[:, None] & graph.bikes_only[None])
    agents, lanes = np.nonzero(close)
    at = segment[agents, lanes]
    ahead = graph.points[at + 1] - graph.points[at]
    turned = np.abs(_wrapped(np.arctan2(ahead[:, 1], ahead[:, 0]) - state.heading[agents]))
    above = np.abs(state.position[agents, 2] - graph.points[at, 2])
    # Fast drivers cannot turn into a lane that they are at an angle to.
    steepest = SWERVE * _way_back(state.speed) / (4 * np.maximum(state.speed, 1.0) ** 2)
    most = np.where(state.speed > 0, ALIGNED_MOVING, ALIGNED_STANDING)
    aligned = np.minimum(np.arctan(steepest), most)[agents]
    good = (turned < aligned) & (above < LEVEL)
    agents, lanes, turned = agents[good], lanes[good], turned[good]
    cost = distance[agents, lanes] + METRES_PER_RADIAN * turned
    choices: list[_Choice] = [([], [], []) for _ in range(n_agents)]
    for agent in np.unique(agents):
        of = np.flatnonzero(agents == agent)
        weight = np.exp((cost[of].min() - cost[of]) / DOUBT)
        of, weight = of[weight > 0.05], weight[weight > 0.05]
        choices[agent] = (
            lanes[of].tolist(),
            station[agent, lanes[of]].tolist(),
            (weight / weight.sum()).tolist(),
        )
    return choices


def _way_back(speed: Float64Array) -> Float64Array:
    """Over how many metres a driver returns to the centreline."""
    return np.maximum(RETURN_METRES, RETURN_SECONDS * speed)


def _routes(
    graph: LaneGraph,
    drivers: Int64Array,
    choices: list[_Choice],
    is_vehicle: BoolArray,
    reach: Float64Array,
) -> _Routes:
    """All routes that are long enough, from all lanes that the drivers may be on."""
    length = graph.stations[graph.offsets[1:] - 1].tolist()
    driver: list[int] = []
    probability: list[float] = []
    begin: list[float] = []
    chains: list[list[int]] = []
    for d, agent in enumerate(drivers.tolist()):
        n_routes = 0
        # To do: the lanes so far, how long they are, how likely.
        stack = [
            ([lane], length[lane] - at, weight, at)
            for lane, at, weight in zip(*choices[agent], strict=True)
        ]
        while stack:
            chain, long, likely, at = stack.pop()
            exits = [
                lane
                for lane in graph.exits[chain[-1]]
                if lane not in chain and not (is_vehicle[agent] and graph.bikes_only[lane])
            ]
            if long >= reach[agent] or not exits:
                driver.append(d)
                probability.append(likely)
                begin.append(at)
                chains.append(chain)
                n_routes += 1
                continue
            weights = np.exp(-graph.turn[exits] / STRAIGHT)
            shares = (weights / weights.sum()).tolist()
            if n_routes + len(stack) + len(exits) > MOST_ROUTES:
                best = int(weights.argmax())
                exits, shares = [exits[best]], [1.0]
            for lane, share in zip(exits, shares, strict=True):
                stack.append(([*chain, lane], long + length[lane], likely * share, at))
    sizes = [len(chain) for chain in chains]
    return _Routes(
        driver=np.array(driver, np.int64),
        probability=np.array(probability, np.float64),
        lanes=np.array([lane for chain in chains for lane in chain], np.int64),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        begin=np.array(begin, np.float64),
    )


def _lane_paths(
    graph: LaneGraph,
    routes: _Routes,
    drivers: Int64Array,
    state: CurrentState,
    is_vehicle: BoolArray,
    n_stations: int,
) -> Paths:
    n_paths = len(routes.begin)
    agent = drivers[routes.driver]
    # The direction at station k is taken from the stations around it, also at the first.
    n_before = np.minimum(np.floor(routes.begin / SPACING), SMOOTHING) * SPACING
    sampled = np.empty((n_paths, n_stations + SMOOTHING, 3))
    lane_at = np.empty(sampled.shape[:2], np.int64)
    sample_routes(
        graph.points,
        graph.stations,
        graph.offsets,
        routes.lanes,
        routes.offsets,
        routes.begin,
        sampled,
        lane_at,
    )
    before = np.empty((n_paths, SMOOTHING, 3))
    sample_routes(
        graph.points,
        graph.stations,
        graph.offsets,
        routes.lanes,
        routes.offsets,
        routes.begin - n_before,
        before,
        np.empty(before.shape[:2], np.int64),
    )
    # Where the lane does not reach back so far, the points before it lie straight behind.
    back = (
        sampled[:, :1] - (sampled[:, 1:2] - sampled[:, :1]) * np.arange(SMOOTHING, 0, -1)[:, None]
    )
    before = np.where((n_before == SMOOTHING * SPACING)[:, None, None], before, back)
    wide = np.concatenate([before, sampled], axis=1)
    chord = wide[:, 2 * SMOOTHING :, :2] - wide[:, : -2 * SMOOTHING, :2]
    direction = np.unwrap(np.arctan2(chord[..., 1], chord[..., 0]), axis=1)
    centre, lane_at = sampled[:, :n_stations], lane_at[:, :n_stations]

    # From the box back to the centreline: a cubic in the distance, flat at its end.
    apart = state.position[agent, :2] - centre[:, 0, :2]
    cosine, sine = np.cos(direction[:, 0]), np.sin(direction[:, 0])
    aside = apart[:, 1] * cosine - apart[:, 0] * sine
    slope = np.tan(_wrapped(state.heading[agent] - direction[:, 0]))
    speed = state.speed[agent]
    over = _way_back(speed)[:, None]
    share = np.minimum(np.arange(n_stations) * SPACING / over, 1.0)
    rest = (1 - share) ** 2
    offset = aside[:, None] * rest * (1 + 2 * share) + slope[:, None] * over * share * rest
    bend = -6 * aside[:, None] / over * share * (1 - share) + slope[:, None] * (1 - share) * (
        1 - 3 * share
    )
    # Cyclists ride where they ride.
    keeps = ~is_vehicle[agent]
    offset[keeps] += (aside[:, None] * (1 - rest * (1 + 2 * share)))[keeps]
    bend[keeps] += (6 * aside[:, None] / over * share * (1 - share))[keeps]

    curve = np.empty((n_paths, n_stations, 5))
    curve[..., :3] = centre
    curve[..., 0] -= offset * np.sin(direction)
    curve[..., 1] += offset * np.cos(direction)
    # What the first station is behind or above the box is made good on the way, too.
    curve[..., :2] += (state.position[agent, None, :2] - curve[:, :1, :2]) * rest[..., None]
    curve[..., 2] += state.position[agent, None, 2] - centre[:, :1, 2]
    heading = direction + np.arctan(bend)
    curve[..., 3] = heading + (state.heading[agent] - heading[:, 0])[:, None]
    curve[..., 4] = graph.speed_limit[lane_at]
    # Aslant is further than straight on.
    steps = np.diff(curve[..., :2], axis=1, prepend=curve[:, :1, :2])
    along = np.cumsum(np.hypot(steps[..., 0], steps[..., 1]), axis=1)
    even = np.empty_like(curve)
    sample_evenly(curve, along, even)
    return Paths(
        driver=routes.driver,
        probability=routes.probability,
        position=even[..., :3],
        heading=even[..., 3],
        direction=even[..., 3],
        speed_limit=even[..., 4],
        curve_speed=_curve_speed(even[..., 3]),
        stop=_stops(graph, routes, speed, along),
    )


def _arc_paths(
    driver: Int64Array, agent: Int64Array, state: CurrentState, n_stations: int
) -> Paths:
    """On with the present curvature, which fades; the box keeps its angle to the direction."""
    n_paths = len(driver)
    curvature = state.turn_rate[agent] / np.maximum(state.speed[agent], 1.0)
    curvature = np.clip(curvature, -TIGHTEST, TIGHTEST)[:, None]
    along = np.arange(n_stations, dtype=np.float64) * SPACING

    def course(at: Float64Array) -> Float64Array:
        fading: Float64Array = state.course[agent, None] + curvature * ARC_METRES * (
            1 - np.exp(-at / ARC_METRES)
        )
        return fading

    middle = course(along[:-1] + SPACING / 2)
    position = np.empty((n_paths, n_stations, 3))
    position[:] = state.position[agent, None]
    position[:, 1:, 0] += np.cumsum(SPACING * np.cos(middle), axis=1)
    position[:, 1:, 1] += np.cumsum(SPACING * np.sin(middle), axis=1)
    direction = course(along)
    return Paths(
        driver=driver,
        probability=np.ones(n_paths),
        position=position,
        heading=direction + (state.heading[agent] - state.course[agent])[:, None],
        direction=direction,
        speed_limit=np.full((n_paths, n_stations), np.nan),
        curve_speed=_curve_speed(direction),
        stop=np.full(n_paths, np.inf),
    )


def _curve_speed(direction: Float64Array) -> Float64Array:
    """m/s at which no curve asks for more than the lateral acceleration, braking before it."""
    curvature = np.abs(np.diff(direction, axis=1, append=direction[:, -1:])) / SPACING
    square = LATERAL_ACCELERATION / np.maximum(curvature, 1e-4)
    braking = 2 * EARLY_BRAKING * SPACING * np.arange(direction.shape[1])
    square = np.minimum.accumulate((square + braking)[:, ::-1], axis=1)[:, ::-1] - braking
    speed: Float64Array = np.sqrt(np.maximum(square, 1.0))
    return speed


def _stops(
    graph: LaneGraph, routes: _Routes, speed: Float64Array, along: Float64Array
) -> Float64Array:
    """The first light of each route that its driver can stop at, metres from its centre.

    `along` [P, K] is how far it is to stations that are `SPACING` apart on the centreline.
    """
    stop = np.full(len(routes.begin), np.inf)
    if not np.isfinite(graph.stop).any():
        return stop
    length = graph.stations[graph.offsets[1:] - 1]
    centreline = SPACING * np.arange(along.shape[1])
    for path in range(len(stop)):
        before = -routes.begin[path]
        for lane in routes.lanes[routes.offsets[path] : routes.offsets[path + 1]]:
            if before < centreline[-1] and np.isfinite(graph.stop[lane]):
                line = float(np.interp(before + graph.stop[lane], centreline, along[path], left=-1))
                braking = FIRM_BRAKING if graph.is_red[lane] else GENTLE_BRAKING
                if line > speed[path] ** 2 / (2 * braking):
                    stop[path] = line
                    break
            before += length[lane]
    return stop
