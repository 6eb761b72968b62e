"""How vehicles, cyclists and pedestrians move along their routes.

Everybody follows a fixed route, a chain of lanes, so that the simulation is one-dimensional: a
distance along the route and a speed each. The acceleration is the Intelligent Driver Model's
(Treiber, Hennecke, Helbing 2000) towards the nearest leader and, where a gate is closed, towards
its line, plus noise. At a gate a mover needs a grant, which no one holds who would be in its way:

- lights and stop signs decide who may ask; requests are met by priority, then in order of arrival;
- a request that fails holds back the later ones that would cross it;
- who has not been granted by the time it has to brake, brakes; so nobody is ever caught out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.scenario import BoolArray, Float64Array, Int8Array, Int64Array, SignalState
from wosac_toolkit.synthetic import curves
from wosac_toolkit.synthetic.right_of_way import RightOfWay
from wosac_toolkit.synthetic.road_network import MPH, Control, Mode, RoadNetwork
from wosac_toolkit.synthetic.signals import STEP_SECONDS

LATERAL_ACCELERATION = 2.2  # m/s^2 that drivers accept in curves
EARLY_BRAKING = 1.3  # m/s^2, before curves
GATE_BRAKING = 1.6  # m/s^2; who needs more to stop at a gate should have asked before
HARDEST_GATE_BRAKING = 3.2  # m/s^2; who needs more does not stop for a light that changes
HARDEST_BRAKING = 7.0
NOISE = 0.3  # m/s^2
STOP_BEFORE_LINE = 0.8  # metres
STOP_SECONDS = 0.7  # how long one stands at a stop sign


@dataclass(frozen=True)
class Mover:
    """A road user: what it wants, where it starts, and how it drives.

    Attributes:
        mode: what it is (a cyclist may use a lane of `Mode.DRIVE`).
        route: lanes in order.
        start: distance of its centre along the route when it enters, metres.
        speed: speed then, m/s.
        start_step: the first step at which it may enter.
        wish: desired speed, as a share of the speed limit (vehicles) or in m/s (others).
        size: length, width, height of the box, metres.
        headway: IDM time gap, seconds.
        min_gap: IDM distance when standing, metres.
        acceleration, braking: IDM, m/s^2.
        lateral: distance kept from the middle of the lane, positive to the left, metres.
    """

    mode: Mode
    route: tuple[int, ...]
    start: float
    speed: float
    start_step: int
    wish: float
    size: tuple[float, float, float]
    headway: float
    min_gap: float
    acceleration: float
    braking: float
    lateral: float


@dataclass(frozen=True)
class Path:
    """Where a route runs: at distance `s[k]` [n] lies `points[k]`, with heading `headings[k]`."""

    s: Float64Array
    points: Float64Array
    headings: Float64Array


@dataclass(frozen=True)
class Motion:
    """Distance along the route [T, A], speed [T, A], and who is there [T, A]."""

    s: Float64Array
    speed: Float64Array
    active: BoolArray


def route_path(network: RoadNetwork, route: tuple[int, ...]) -> Path:
    """The curve of a route; corners between walkways are rounded."""
    pieces, s, begin = [], [], 0.0
    for k, index in enumerate(route):
        lane = network.lanes[index]
        points, along = lane.points, begin + lane.along
        begin += lane.length
        pieces.append(points if k == 0 else points[1:])
        s.append(along if k == 0 else along[1:])
    points = np.concatenate(pieces)
    if network.lanes[route[0]].mode == Mode.WALK:
        points = curves.smooth(points, 4)
    return Path(np.concatenate(s), points, curves.headings(points))


def speed_limits(
    network: RoadNetwork, movers: list[Mover], paths: list[Path]
) -> list[Float64Array]:
    """How fast each mover wants to be at each point of its path, m/s.

    That is its desired speed, less in curves, and braking gently before them.
    """
    limits = []
    for mover, path in zip(movers, paths, strict=True):
        if mover.mode == Mode.DRIVE:
            lanes = [network.lanes[r] for r in mover.route]
            points = [len(lanes[0].points), *(len(lane.points) - 1 for lane in lanes[1:])]
            limit = np.repeat([lane.speed_mph * MPH * mover.wish for lane in lanes], points)
        else:
            limit = np.full(len(path.s), mover.wish)
        curvature = np.abs(np.gradient(path.headings, path.s))
        acceptable = LATERAL_ACCELERATION / np.maximum(curvature, 1e-6)
        energy = np.minimum(limit**2, np.maximum(acceptable, 1.0)) + 2 * EARLY_BRAKING * path.s
        energy = np.minimum.accumulate(energy[::-1])[::-1] - 2 * EARLY_BRAKING * path.s
        limits.append(np.sqrt(np.maximum(energy, 0.25)))
    return limits


def simulate(
    network: RoadNetwork,
    rules: RightOfWay,
    lights: Int8Array,
    movers: list[Mover],
    paths: list[Path],
    rng: np.random.Generator,
) -> Motion:
    """Let everybody move for as many steps as `lights` has."""
    n_steps, n = len(lights), len(movers)
    tables = _Tables.build(network, rules, movers, paths)
    half = tables.half
    start_step = np.array([m.start_step for m in movers])
    headway, min_gap = np.array([(m.headway, m.min_gap) for m in movers]).T
    most, comfortable = np.array([(m.acceleration, m.braking) for m in movers]).T
    stem = 2 * np.sqrt(most * comfortable)
    totals = np.array([path.s[-1] for path in paths])
    s, speed = np.array([(m.start, m.speed) for m in movers]).T
    acceleration, noise = np.zeros(n), np.zeros(n)
    active, done = np.zeros(n, bool), np.zeros(n, bool)
    gates = _Gates(tables, rules, network, n)
    trace_s, trace_v = np.zeros((n_steps, n)), np.zeros((n_steps, n))
    trace_active = np.zeros((n_steps, n), bool)
    everybody = np.arange(n)
    decay = np.exp(-STEP_SECONDS / 1.5)

    for t in range(n_steps):
        # Who is in front of whom: [i, j] the distance from i to j along i's route.
        where = (s[:, None] >= tables.lane_begin).sum(axis=1) - 1
        lane = tables.lanes[everybody, where]
        local = s - tables.lane_begin[everybody, where]
        ahead = tables.offset[:, lane] + local - s[:, None]
        overlaps = (local - half) < tables.limit[:, lane]
        entering = ~active & ~done & (start_step <= t)
        present = active | entering
        seen = (ahead > 0) & overlaps & tables.in_line & active[None] & present[:, None]
        distance = np.where(seen, ahead - half[:, None] - half[None], np.inf)
        leader = distance.argmin(axis=1)
        gap = distance[everybody, leader]

        # Enter where there is room, one at a time.
        room = gap > min_gap + 1.5 * speed * headway
        came = entering & (room | (t == 0))
        if t > 0 and came.any():
            _, firsts = np.unique(lane[came], return_index=True)
            came &= np.isin(everybody, np.flatnonzero(came)[firsts])
        active = active | came
        entering_speed = np.minimum(speed, speed[leader] + np.sqrt(np.maximum(2 * gap, 0.0)))
        speed = np.where(came & np.isfinite(gap), entering_speed, speed)
        trace_s[t], trace_v[t], trace_active[t] = s, speed, active

        to_line = gates.update(t, lights[t], s, speed, active, leader, gap)
        # IDM stops `min_gap` before an obstacle: put it where one stops just before the line.
        to_line = to_line + min_gap - STOP_BEFORE_LINE

        grid = np.minimum(s.astype(np.int64), tables.speed_limit.shape[1] - 1)
        wish = tables.speed_limit[everybody, grid]
        free = 1 - (speed / wish) ** 4
        follow = np.zeros(n)
        for obstacle, closing in ((gap, speed - speed[leader]), (to_line, speed)):
            reach = min_gap + np.maximum(0.0, speed * headway + speed * closing / stem)
            follow = np.maximum(follow, reach / np.maximum(obstacle, 0.1))
        command = most * (free - follow**2)
        noise = decay * noise + np.sqrt(1 - decay**2) * NOISE * rng.standard_normal(n)
        command = command + noise * np.minimum(speed / 3.0, 1.0)
        command = np.clip(command, -HARDEST_BRAKING, most)
        # Feet take a moment, except in need.
        eased = acceleration + 0.4 * (command - acceleration)
        acceleration = np.where(command < -3.5, command, eased)
        faster = np.maximum(speed + acceleration * STEP_SECONDS, 0.0)
        s = np.where(active, s + (speed + faster) / 2 * STEP_SECONDS, s)
        acceleration = np.where(active, (faster - speed) / STEP_SECONDS, 0.0)
        speed = np.where(active, faster, speed)
        left = active & (s > totals - 0.2)
        active, done = active & ~left, done | left
    return Motion(trace_s, trace_v, trace_active)


@dataclass(frozen=True)
class _Tables:
    """What does not change during a simulation; A movers, L lanes.

    `lanes` [A, K] and `lane_begin` [A, K] (inf where the route has ended): the route.
    `offset` [A, L]: where a lane begins on the mover's route, nan where it is not in its way.
    `limit` [A, L]: how far into the lane others are in its way.
    `in_line` [A, A]: False for a pair that can ride side by side.
    `half` [A]: half the length of the box.
    `gates` [A, J] and `gate_at` [A, J]: gates on the route (-1, inf after the last).
    `speed_limit` [A, n]: desired speed at every metre of the route.
    """

    lanes: Int64Array
    lane_begin: Float64Array
    offset: Float64Array
    limit: Float64Array
    in_line: BoolArray
    half: Float64Array
    gates: Int64Array
    gate_at: Float64Array
    speed_limit: Float64Array

    @classmethod
    def build(
        cls, network: RoadNetwork, rules: RightOfWay, movers: list[Mover], paths: list[Path]
    ) -> _Tables:
        n, n_lanes = len(movers), len(network.lanes)
        longest = max(len(mover.route) for mover in movers)
        lengths = np.array([lane.length for lane in network.lanes])
        lanes = np.zeros((n, longest), np.int64)
        begin = np.full((n, longest), np.inf)
        offset, limit = np.full((n, n_lanes), np.nan), np.full((n, n_lanes), -np.inf)
        gates, gate_at = np.full((n, longest + 1), -1), np.full((n, longest + 1), np.inf)
        for a, mover in enumerate(movers):
            route = mover.route
            starts = np.concatenate([[0.0], np.cumsum(lengths[list(route)])])[:-1]
            lanes[a, : len(route)], begin[a, : len(route)] = route, starts
            for lane, start in zip(route, starts, strict=True):
                for sibling, shared in rules.siblings[lane]:
                    offset[a, sibling], limit[a, sibling] = start, shared
            offset[a, list(route)], limit[a, list(route)] = starts, np.inf
            own = [(rules.gate_of[r], at) for r, at in zip(route, starts, strict=True)]
            own = [(gate, at) for gate, at in own if gate >= 0]
            for k, (gate, at) in enumerate(own):
                gates[a, k], gate_at[a, k] = gate, at
        side = np.array([mover.lateral for mover in movers])
        length, width = np.array([mover.size[:2] for mover in movers]).T
        touching = np.abs(side[:, None] - side[None]) < (width[:, None] + width[None]) / 2 + 0.2
        limits = speed_limits(network, movers, paths)
        points = np.arange(0.0, max(path.s[-1] for path in paths) + 1.0)
        grid = np.stack([np.interp(points, p.s, v) for p, v in zip(paths, limits, strict=True)])
        return cls(lanes, begin, offset, limit, touching, length / 2, gates, gate_at, grid)


class _Gates:
    """Who holds which gate, while a simulation runs.

    Of each mover [A]: `next`, which gate of its route comes next; `granted`, whether it may pass
    that; `asked`, since which step it has asked; `stood`, for how many seconds it has stood there;
    `inside` and `inside_at`, the gate that it has passed without having left its lane (-1 for
    none), and where that is on its route.
    """

    def __init__(self, tables: _Tables, rules: RightOfWay, network: RoadNetwork, n: int) -> None:
        self.tables, self.clearance = tables, rules.clearance
        gates = [g for lane in rules.gated if (g := network.lanes[lane].gate)]
        # One entry more than there are gates: index -1 is that of "no gate".
        self.priority = np.array([*(g.priority for g in gates), 0])
        self.must_stop = np.array([*(g.must_stop for g in gates), False])
        self.has_light = np.array([*(g.control is Control.SIGNAL for g in gates), False])
        self.length = np.array([*(network.lanes[lane].length for lane in rules.gated), 0.0])
        self.next = np.zeros(n, np.int64)
        self.granted = np.zeros(n, bool)
        self.asked = np.full(n, np.iinfo(np.int64).max)
        self.stood = np.zeros(n)
        self.inside = np.full(n, -1)
        self.inside_at = np.zeros(n)

    def update(
        self,
        t: int,
        lights: Int8Array,
        s: Float64Array,
        speed: Float64Array,
        active: BoolArray,
        leader: Int64Array,
        gap: Float64Array,
    ) -> Float64Array:
        """The distance [A] from the front of each mover to the line at which it has to stop.

        Infinite where it need not.
        """
        tables, half = self.tables, self.tables.half
        everybody = np.arange(len(s))
        gate = tables.gates[everybody, self.next]
        line = tables.gate_at[everybody, self.next]
        passed = active & (s + half > line)
        self.inside = np.where(passed, gate, self.inside)
        self.inside_at = np.where(passed, line, self.inside_at)
        self.next = self.next + passed
        self.granted &= ~passed
        self.asked[passed] = np.iinfo(np.int64).max
        self.stood[passed] = 0.0
        progress = s - half - self.inside_at
        gone = (self.inside >= 0) & ((progress > self.length[self.inside] + 2.0) | ~active)
        self.inside = np.where(gone, -1, self.inside)

        gate = tables.gates[everybody, self.next]
        to_line = tables.gate_at[everybody, self.next] - (s + half)
        waits = active & (gate >= 0)
        shown = np.append(lights, 0)
        go = (shown == SignalState.GO) | (shown == SignalState.ARROW_GO) | ~self.has_light
        standing = waits & (speed < 0.3) & (to_line < 5.0)
        self.stood = np.where(standing, self.stood + STEP_SECONDS, self.stood)
        lawful = waits & go[gate] & (~self.must_stop[gate] | (self.stood > STOP_SECONDS))
        can_stop = to_line > speed**2 / (2 * HARDEST_GATE_BRAKING)
        self.granted &= waits & (lawful | ~can_stop)
        near = to_line < speed**2 / (2 * GATE_BRAKING) + 1.5 * speed + 6.0
        asking = lawful & near & ~self.granted
        self.asked = np.where(asking, np.minimum(self.asked, t), self.asked)
        self._settle(np.flatnonzero(asking), gate, to_line, progress, speed, leader, gap)
        return np.where(waits & ~self.granted, to_line, np.inf)

    def _settle(
        self,
        asking: Int64Array,
        gate: Int64Array,
        to_line: Float64Array,
        progress: Float64Array,
        speed: Float64Array,
        leader: Int64Array,
        gap: Float64Array,
    ) -> None:
        if not len(asking):
            return
        inside, coming = np.flatnonzero(self.inside >= 0), np.flatnonzero(self.granted)
        holders = [*self.inside[inside], *gate[coming]]
        progresses = [*progress[inside], *np.full(len(coming), -1.0)]
        order = np.lexsort((to_line[asking], self.asked[asking], self.priority[gate[asking]]))
        for mover in asking[order]:
            wanted, first = gate[mover], leader[mover]
            leads = self.granted[first] or self.inside[first] >= 0
            if gap[mover] < to_line[mover] and not leads:
                continue  # who waits in front of it goes first
            # A queue behind the junction: do not block the junction.
            rest = gap[mover] - to_line[mover] - self.length[wanted]
            if speed[first] < 1.5 and rest < 2 * self.tables.half[mover] + 1.0:
                continue
            self.granted[mover] = not np.any(self.clearance[holders, wanted] > progresses)
            # Granted or not, it comes before whoever asks later.
            holders.append(wanted)
            progresses.append(-1.0)
