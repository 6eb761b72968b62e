"""From a layout (axes and profiles of roads, positions of junctions) to lanes, edges and lines.

Traffic keeps right. A road is two carriageways that share an axis; each is described along its own
direction of travel, its lanes at negative offsets from the axis, its curb at the most negative. A
curb that follows the traffic therefore has the road on its port side, as WOMD orients road edges.

A junction's arms are sorted counter-clockwise. Between arm `a` and arm `a + 1` lies a corner: it
leads from the curb on which arm `a` enters to the curb on which arm `a + 1` leaves.

Cross-section of a carriageway, from the axis to the right:
half of the centre strip | lanes | bike lane | parking lane | gutter | curb | sidewalk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cached_property
from itertools import pairwise

import numpy as np

from wosac_toolkit.scenario import Float64Array, LaneType
from wosac_toolkit.synthetic import curves

MPH = 0.44704
POINT_SPACING = 0.5
SIDEWALK_OFFSET = 2.2
CROSSWALK_DEPTH = 5.0  # between the stop line and the rounded corner
CORNER_RADIUS = 7.0
STRAIGHT_AT_JUNCTION = 45.0  # axes are straight this far from a junction's centre


class RoadLineType(IntEnum):
    """`RoadLine.RoadLineType`."""

    BROKEN_SINGLE_WHITE = 1
    SOLID_SINGLE_WHITE = 2
    SOLID_DOUBLE_WHITE = 3
    BROKEN_SINGLE_YELLOW = 4
    BROKEN_DOUBLE_YELLOW = 5
    SOLID_SINGLE_YELLOW = 6
    SOLID_DOUBLE_YELLOW = 7
    PASSING_DOUBLE_YELLOW = 8


class RoadEdgeType(IntEnum):
    """`RoadEdge.RoadEdgeType`."""

    BOUNDARY = 1
    MEDIAN = 2


class Surface(IntEnum):
    """What a feature lies on."""

    GROUND = 0
    DECK = 1


class Mode(IntEnum):
    """Who uses a lane. Walkways steer pedestrians and are not part of the exported map."""

    DRIVE = 0
    BIKE = 1
    WALK = 2


class Control(Enum):
    """How right of way is settled at a junction."""

    SIGNAL = "signal"
    ALL_WAY_STOP = "all-way stop"
    MINOR_STOP = "stop signs on the minor arms"


class Turn(Enum):
    """What a lane inside a junction does."""

    LEFT = "left"
    THROUGH = "through"
    RIGHT = "right"
    CROSS = "crosswalk"


@dataclass(frozen=True)
class Profile:
    """The cross-section of a road: `lanes` each way; widths in metres, 0 for none."""

    lanes: int
    lane_width: float = 3.6
    strip: float = 0.0
    raised: bool = True  # the strip holds a raised island where it holds no turning lane
    bike: float = 0.0
    parking: float = 0.0
    gutter: float = 0.6
    sidewalk: bool = True
    speed_mph: float = 35.0
    lane_type: LaneType = LaneType.SURFACE_STREET

    def lane_offset(self, lane: int) -> float:
        """Offset of the centre of a lane; lane 0 is the leftmost."""
        return -(self.strip / 2 + (lane + 0.5) * self.lane_width)

    @property
    def lanes_edge(self) -> float:
        """Offset of the right border of the rightmost lane."""
        return -(self.strip / 2 + self.lanes * self.lane_width)

    @property
    def bike_offset(self) -> float:
        """Offset of the centre of the bike lane."""
        return self.lanes_edge - self.bike / 2

    @property
    def parking_offset(self) -> float:
        """Offset of the centre of the parking lane."""
        return self.lanes_edge - self.bike - self.parking / 2

    @property
    def curb_offset(self) -> float:
        """Offset of the curb."""
        return self.lanes_edge - self.bike - self.parking - self.gutter


@dataclass(frozen=True)
class RoadPlan:
    """A road along `axis` [n, 2]; `start` and `end` are the junctions at its ends, if any.

    An axis that starts or ends at a junction reaches its centre.
    """

    profile: Profile
    axis: Float64Array
    start: int | None = None
    end: int | None = None
    surface: Surface = Surface.GROUND


@dataclass(frozen=True)
class JunctionPlan:
    """A junction.

    `major` are the roads that need not stop under `Control.MINOR_STOP`, `crosswalks` those whose
    arms have a crosswalk.
    """

    position: Float64Array
    control: Control
    major: tuple[int, ...] = ()
    crosswalks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What to build."""

    name: str
    roads: tuple[RoadPlan, ...]
    junctions: tuple[JunctionPlan, ...] = ()


@dataclass(frozen=True)
class Gate:
    """The line at the start of a lane inside a junction, where its users may have to wait.

    Arms that face each other share an `axis`. A `protected` turn has a turning lane, and at
    traffic lights a phase of its own. The lower `priority` goes first.
    """

    junction: int
    axis: int
    turn: Turn
    control: Control
    must_stop: bool
    protected: bool
    priority: int


@dataclass
class Lane:
    """A lane or walkway with its direction of travel; links are indices of lanes."""

    points: Float64Array
    mode: Mode
    speed_mph: float
    lane_type: LaneType
    surface: Surface
    gate: Gate | None = None
    entries: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    left: int | None = None
    right: int | None = None

    @cached_property
    def along(self) -> Float64Array:
        """Distance [n] from the first point to each point, metres."""
        return curves.arc_length(self.points)

    @property
    def length(self) -> float:
        """Length in metres."""
        return float(self.along[-1])

    @property
    def interpolating(self) -> bool:
        """Whether the lane connects others inside a junction."""
        return self.gate is not None


@dataclass(frozen=True)
class Carriageway:
    """One direction of a road.

    `first` and `last` are its lanes at the start and at the end, left to right; `pocket` is the
    turning lane at its end.
    """

    profile: Profile
    axis: Float64Array
    curb: Float64Array
    surface: Surface
    start: int | None
    end: int | None
    first: tuple[int, ...]
    last: tuple[int, ...]
    pocket: int | None
    bike_first: int | None
    bike_last: int | None


@dataclass(frozen=True)
class Polyline:
    """A line or edge (`type` of the feature), or a polygon (`type` 0)."""

    points: Float64Array
    type: int
    surface: Surface


@dataclass
class RoadNetwork:
    """Everything that stands still."""

    lanes: list[Lane] = field(default_factory=list)
    carriageways: list[Carriageway] = field(default_factory=list)
    edges: list[Polyline] = field(default_factory=list)
    lines: list[Polyline] = field(default_factory=list)
    crosswalks: list[Polyline] = field(default_factory=list)
    speed_bumps: list[Polyline] = field(default_factory=list)
    driveways: list[Polyline] = field(default_factory=list)
    stop_signs: list[tuple[Float64Array, tuple[int, ...]]] = field(default_factory=list)

    def add_lane(self, lane: Lane) -> int:
        """Append a lane and return its index."""
        self.lanes.append(lane)
        return len(self.lanes) - 1

    def link(self, before: int, after: int) -> None:
        """Let `before` lead into `after`."""
        self.lanes[before].exits.append(after)
        self.lanes[after].entries.append(before)


@dataclass(frozen=True)
class _Arm:
    """A road's end at a junction, seen from the junction."""

    road: int
    at_start: bool
    heading: float  # away from the junction


def build_network(layout: Layout) -> RoadNetwork:
    """Lanes, edges, lines, crosswalks and stop signs of a layout."""
    arms = [_arms(layout, j) for j in range(len(layout.junctions))]
    network = RoadNetwork()
    ways: dict[tuple[int, bool], Carriageway] = {}
    for r, road in enumerate(layout.roads):
        trim = [_cut_distance(layout, arms, r, at_start) for at_start in (True, False)]
        total = curves.length(road.axis)
        axis = curves.resample(curves.cut(road.axis, trim[0], total - trim[1]), POINT_SPACING)
        for forward in (True, False):
            ways[r, forward] = _add_carriageway(
                network,
                road.profile,
                axis if forward else axis[::-1].copy(),
                road.surface,
                ends=(road.start, road.end) if forward else (road.end, road.start),
                pocket=_has_left_turn(layout, arms, r, at_start=not forward),
            )
        _add_centre(network, ways[r, True], ways[r, False])
    network.carriageways.extend(ways.values())
    walks_to: dict[tuple[int, bool], tuple[int, int]] = {}
    walks_from: dict[tuple[int, bool], tuple[int, int]] = {}
    for j, plan in enumerate(layout.junctions):
        inbound = [ways[arm.road, not arm.at_start] for arm in arms[j]]
        outbound = [ways[arm.road, arm.at_start] for arm in arms[j]]
        _add_turns(network, j, plan, arms[j], inbound, outbound)
        arriving, leaving = _add_corners(network, j, plan, arms[j], inbound, outbound)
        for a, arm in enumerate(arms[j]):
            walks_to[arm.road, not arm.at_start] = arriving[a]
            walks_from[arm.road, arm.at_start] = leaving[a - 1]
    for key in sorted(walks_to.keys() & walks_from.keys()):
        network.link(walks_from[key][0], walks_to[key][0])
        network.link(walks_to[key][1], walks_from[key][1])
    for way in network.carriageways:
        if way.profile.sidewalk and way.start is None and way.end is None:
            _add_walkway(network, _sidewalk(way))
    return network


def _arms(layout: Layout, junction: int) -> list[_Arm]:
    found = []
    for r, road in enumerate(layout.roads):
        for at_start, end in ((True, road.start), (False, road.end)):
            if end == junction:
                inner, outer = road.axis[[0, 2]] if at_start else road.axis[[-1, -3]]
                d = outer - inner
                found.append(_Arm(r, at_start, float(np.arctan2(d[1], d[0])) % (2 * np.pi)))
    return sorted(found, key=lambda arm: arm.heading)


def _cut_distance(layout: Layout, arms: list[list[_Arm]], road: int, at_start: bool) -> float:
    """How far from the junction's centre the road's lanes end.

    That is where the rounded corners to both sides, and a crosswalk, leave them.
    """
    plan = layout.roads[road]
    junction = plan.start if at_start else plan.end
    if junction is None:
        return 0.0
    around = arms[junction]
    here = next(i for i, a in enumerate(around) if a.road == road and a.at_start == at_start)
    own = -plan.profile.curb_offset
    far = own
    for step in (1, -1):
        other = around[(here + step) % len(around)]
        angle = (step * (other.heading - around[here].heading)) % (2 * np.pi)
        if np.sin(angle) < 0.35:
            continue  # as good as straight on: no corner
        theirs = -layout.roads[other.road].profile.curb_offset
        corner = (theirs + own * np.cos(angle)) / np.sin(angle)
        far = max(far, corner + CORNER_RADIUS / np.tan(angle / 2))
    return float(far + CROSSWALK_DEPTH)


def _turn_between(arrive: _Arm, leave: _Arm) -> Turn:
    angle = curves.wrap(leave.heading - (arrive.heading + np.pi))
    if abs(angle) < np.radians(38):
        return Turn.THROUGH
    return Turn.LEFT if angle > 0 else Turn.RIGHT


def _has_left_turn(layout: Layout, arms: list[list[_Arm]], road: int, at_start: bool) -> bool:
    plan = layout.roads[road]
    junction = plan.start if at_start else plan.end
    if junction is None or plan.profile.strip == 0:
        return False
    here = next(a for a in arms[junction] if a.road == road and a.at_start == at_start)
    return any(_turn_between(here, a) is Turn.LEFT for a in arms[junction] if a is not here)


def _add_carriageway(
    network: RoadNetwork,
    profile: Profile,
    axis: Float64Array,
    surface: Surface,
    ends: tuple[int | None, int | None],
    pocket: bool,
) -> Carriageway:
    # The axis has a point every half metre: pieces of what runs beside it are slices.
    last = len(axis) - 1
    pocket_points = min(int(55 / POINT_SPACING), last - 10) if pocket else 0
    n_pieces = max(int(np.ceil((last - pocket_points) * POINT_SPACING / 40.0)), 1)
    breaks = np.linspace(0, last - pocket_points, n_pieces + 1).astype(int).tolist()
    if pocket:
        breaks.append(last)

    def add(points: Float64Array, mode: Mode) -> int:
        lane_type = LaneType.BIKE_LANE if mode == Mode.BIKE else profile.lane_type
        speed = 0.0 if mode == Mode.BIKE else profile.speed_mph
        points = curves.resample(points, POINT_SPACING)
        return network.add_lane(Lane(points, mode, speed, lane_type, surface))

    offsets = [profile.lane_offset(k) for k in range(profile.lanes)]
    modes = [Mode.DRIVE] * profile.lanes
    if profile.bike:
        offsets.append(profile.bike_offset)
        modes.append(Mode.BIKE)
    centres = [curves.offset(axis, by) for by in offsets]
    rows = [
        [add(points[i : j + 1], mode) for points, mode in zip(centres, modes, strict=True)]
        for i, j in pairwise(breaks)
    ]
    for row in rows:
        for left, right in pairwise(row[: profile.lanes]):
            network.lanes[left].right, network.lanes[right].left = right, left
    for before, after in pairwise(rows):
        for a, b in zip(before, after, strict=True):
            network.link(a, b)

    turning = None
    if pocket:
        piece = axis[breaks[-2] :]
        along = np.clip(curves.arc_length(piece) / 22.0, 0.0, 1.0)
        blend = along**2 * (3 - 2 * along)
        turning = add(curves.offset(piece, profile.lane_offset(0) * (1 - blend)), Mode.DRIVE)
        leftmost = rows[-1][0]
        network.lanes[turning].right, network.lanes[leftmost].left = leftmost, turning
        if len(rows) > 1:
            network.link(rows[-2][0], turning)

    _add_lane_lines(network, profile, axis, surface, stops=ends[1] is not None)
    curb = curves.offset(axis, profile.curb_offset)
    n_edges = max(round(last * POINT_SPACING / 80.0), 1)
    for i, j in pairwise(np.linspace(0, last, n_edges + 1).astype(int)):
        edge = curves.resample(curb[i : j + 1], POINT_SPACING)
        network.edges.append(Polyline(edge, RoadEdgeType.BOUNDARY, surface))
    has_bike = profile.bike > 0
    return Carriageway(
        profile=profile,
        axis=axis,
        curb=curb,
        surface=surface,
        start=ends[0],
        end=ends[1],
        first=tuple(rows[0][: profile.lanes]),
        last=tuple(rows[-1][: profile.lanes]),
        pocket=turning,
        bike_first=rows[0][-1] if has_bike else None,
        bike_last=rows[-1][-1] if has_bike else None,
    )


def _add_lane_lines(
    network: RoadNetwork, profile: Profile, axis: Float64Array, surface: Surface, stops: bool
) -> None:
    """The lines on a carriageway, solid between lanes before a junction."""
    last = len(axis) - 1
    solid_from = max(last - int(30 / POINT_SPACING), 0) if stops else last

    def add(by: float, line: RoadLineType, near_junction: RoadLineType) -> None:
        points = curves.offset(axis, by)
        for part, kind in ((points[: solid_from + 1], line), (points[solid_from:], near_junction)):
            if len(part) > 4:
                part = curves.resample(part, POINT_SPACING)
                network.lines.append(Polyline(part, int(kind), surface))

    solid = RoadLineType.SOLID_SINGLE_WHITE
    for k in range(1, profile.lanes):
        border = -(profile.strip / 2 + k * profile.lane_width)
        add(border, RoadLineType.BROKEN_SINGLE_WHITE, solid)
    if profile.bike or profile.lane_type == LaneType.FREEWAY:
        add(profile.lanes_edge, solid, solid)
    if profile.strip:
        add(-profile.strip / 2, RoadLineType.SOLID_SINGLE_YELLOW, solid)


def _add_centre(network: RoadNetwork, forward: Carriageway, backward: Carriageway) -> None:
    """The line between two carriageways, or the island."""
    profile, axis = forward.profile, forward.axis
    total = curves.length(axis)
    if not profile.strip:
        line = (
            RoadLineType.SOLID_DOUBLE_YELLOW
            if profile.lanes > 1
            else RoadLineType.PASSING_DOUBLE_YELLOW
        )
        network.lines.append(Polyline(axis, int(line), forward.surface))
        return
    if not profile.raised:
        return

    def reserved(way: Carriageway) -> float:
        if way.pocket is not None:
            return network.lanes[way.pocket].length + 2.0
        return 2.0

    start, end = reserved(backward), total - reserved(forward)
    if end - start > 6.0:
        half = profile.strip / 2 - 0.5
        core = curves.cut(axis, start + half, end - half)
        outline = curves.resample(curves.loop_around(core, half), POINT_SPACING)
        network.edges.append(Polyline(outline, RoadEdgeType.MEDIAN, forward.surface))


def _gate(
    junction: int, plan: JunctionPlan, arms: list[_Arm], a: int, turn: Turn, protected: bool
) -> Gate:
    minor = plan.control == Control.MINOR_STOP and arms[a].road not in plan.major
    if turn is Turn.CROSS:
        priority = 0
    elif plan.control == Control.SIGNAL:
        priority = int(turn is Turn.LEFT and not protected)
    elif plan.control == Control.MINOR_STOP:
        priority = 2 if minor else int(turn is Turn.LEFT)
    else:
        priority = 1
    must_stop = turn is not Turn.CROSS and (plan.control == Control.ALL_WAY_STOP or minor)
    axis = min([a] + [b for b in range(a) if _turn_between(arms[a], arms[b]) is Turn.THROUGH])
    return Gate(junction, axis, turn, plan.control, must_stop, protected, priority)


def _add_turns(
    network: RoadNetwork,
    junction: int,
    plan: JunctionPlan,
    arms: list[_Arm],
    inbound: list[Carriageway],
    outbound: list[Carriageway],
) -> None:
    """The lanes inside a junction, and its stop signs."""

    def add(
        a: int, source: int, target: int, turn: Turn, radius: float, protected: bool = False
    ) -> int:
        before, after = network.lanes[source], network.lanes[target]
        points = curves.connect(
            before.points[-1],
            float(curves.headings(before.points[-3:])[-1]),
            after.points[0],
            float(curves.headings(after.points[:3])[0]),
            radius,
            POINT_SPACING,
        )
        mode = Mode.BIKE if before.mode == Mode.BIKE else Mode.DRIVE
        lane = Lane(
            curves.smooth(points, 5),
            mode,
            before.speed_mph,
            before.lane_type,
            before.surface,
            gate=_gate(junction, plan, arms, a, turn, protected),
        )
        index = network.add_lane(lane)
        network.link(source, index)
        network.link(index, target)
        return index

    for a, way in enumerate(inbound):
        added = []
        for b, out in enumerate(outbound):
            if b == a:
                continue
            turn = _turn_between(arms[a], arms[b])
            for source, onto, radius, protected in _movements(way, out, turn):
                lane = add(a, source, onto, turn, radius, protected)
                if network.lanes[lane].mode == Mode.DRIVE:
                    added.append(lane)
        gate = network.lanes[added[0]].gate
        if gate is not None and gate.must_stop:
            post = curves.offset(way.axis[-3:], way.profile.curb_offset - 1.0)[-1]
            network.stop_signs.append((post, tuple(added)))


def _movements(
    way: Carriageway, out: Carriageway, turn: Turn
) -> Iterator[tuple[int, int, float, bool]]:
    """The lanes that a turn joins: source, target, radius of the curve, whether protected."""
    if turn is Turn.LEFT:
        own = way.pocket is not None
        yield way.last[0] if way.pocket is None else way.pocket, out.first[0], 25.0, own
        return
    if turn is Turn.RIGHT:
        # Concentric with the curb at the corner.
        profiles = (way.profile, out.profile)
        to_curb = min(p.lane_offset(p.lanes - 1) - p.curb_offset for p in profiles)
        yield way.last[-1], out.first[-1], CORNER_RADIUS + to_curb, False
    else:
        for source, onto in zip(way.last, out.first, strict=False):
            yield source, onto, 25.0, False
    if way.bike_last is not None:
        bike = out.first[-1] if out.bike_first is None else out.bike_first
        yield way.bike_last, bike, CORNER_RADIUS + 1.5, False


def _add_walkway(network: RoadNetwork, points: Float64Array) -> tuple[int, int]:
    """A walkway in both directions; returns both lanes, along `points` and against them."""
    points = curves.resample(points, POINT_SPACING)
    return (
        network.add_lane(Lane(points, Mode.WALK, 0.0, LaneType.UNDEFINED, Surface.GROUND)),
        network.add_lane(
            Lane(points[::-1].copy(), Mode.WALK, 0.0, LaneType.UNDEFINED, Surface.GROUND)
        ),
    )


def _sidewalk(way: Carriageway, half: int | None = None) -> Float64Array:
    """The middle of the sidewalk, or its first or second half (0, 1)."""
    walk = curves.offset(way.curb, -SIDEWALK_OFFSET)
    if half is None:
        return walk
    middle = len(walk) // 2
    return walk[middle:] if half else walk[: middle + 1]


def _add_corners(
    network: RoadNetwork,
    junction: int,
    plan: JunctionPlan,
    arms: list[_Arm],
    inbound: list[Carriageway],
    outbound: list[Carriageway],
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The curbs between the arms, the sidewalks along them, and the crosswalks.

    Returns the walkways of each corner `a`, with the traffic and against it: those along the curb
    on which arm `a` enters, and those along the curb on which arm `a + 1` leaves.
    """
    n = len(arms)
    middle = CROSSWALK_DEPTH / 2
    corners = []
    for a in range(n):
        before, after = inbound[a], outbound[(a + 1) % n]
        curb = curves.smooth(
            curves.connect(
                before.curb[-1],
                float(curves.headings(before.axis[-3:])[-1]),
                after.curb[0],
                float(curves.headings(after.axis[:3])[0]),
                CORNER_RADIUS,
                POINT_SPACING,
            ),
            2,
        )
        corners.append(curb)
        network.edges.append(Polyline(curb, RoadEdgeType.BOUNDARY, Surface.GROUND))

    # Sidewalks: along arm a up to its crosswalk, around the corner, along arm a + 1.
    arriving, turning, leaving = [], [], []
    for a in range(n):
        walk = curves.offset(corners[a], -SIDEWALK_OFFSET)
        total = curves.length(walk)
        turning.append(_add_walkway(network, curves.cut(walk, middle, total - middle)))
        # A road between two junctions has half its sidewalk from each.
        coming, going = inbound[a], outbound[(a + 1) % n]
        inward = _sidewalk(coming, None if coming.start is None else 1)
        outward = _sidewalk(going, None if going.end is None else 0)
        arriving.append(
            _add_walkway(network, np.concatenate([inward[:-1], curves.cut(walk, 0.0, middle)]))
        )
        leaving.append(
            _add_walkway(
                network, np.concatenate([curves.cut(walk, total - middle, total), outward[1:]])
            )
        )
        for first, second in ((arriving[a], turning[a]), (turning[a], leaving[a])):
            network.link(first[0], second[0])
            network.link(second[1], first[1])

    for a in range(n):
        if arms[a].road not in plan.crosswalks:
            continue
        here, there = corners[a], corners[a - 1]
        total = curves.length(there)
        polygon = np.stack(
            [
                curves.cut(here, 0.0, middle - 1.5)[-1],
                curves.cut(here, 0.0, middle + 1.5)[-1],
                curves.cut(there, 0.0, total - middle - 1.5)[-1],
                curves.cut(there, 0.0, total - middle + 1.5)[-1],
            ]
        )
        network.crosswalks.append(Polyline(polygon, 0, Surface.GROUND))
        # From the corner on the side where arm a enters to the one where it leaves, and back.
        ends = [
            network.lanes[arriving[a][0]].points[-1],
            network.lanes[leaving[a - 1][0]].points[0],
        ]
        across = _add_walkway(network, np.stack(ends))
        for lane in across:
            network.lanes[lane].gate = _gate(junction, plan, arms, a, Turn.CROSS, False)
        links = (
            (arriving[a][0], across[0]),
            (turning[a][1], across[0]),
            (across[0], leaving[a - 1][0]),
            (across[0], turning[a - 1][1]),
            (leaving[a - 1][1], across[1]),
            (turning[a - 1][0], across[1]),
            (across[1], arriving[a][1]),
            (across[1], turning[a][0]),
        )
        for before_lane, after_lane in links:
            network.link(before_lane, after_lane)
    return arriving, leaving
