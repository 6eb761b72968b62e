"""The inner loops of the `idm` policy: find lanes, sample paths, drive along them.

All in float64; positions are relative to an origin near the agents. What a path is, is said in
`wosac_toolkit.baselines.lane_paths`.
"""

from __future__ import annotations

import numpy as np

from wosac_toolkit.kernels.jit import inlined, kernel
from wosac_toolkit.scenario import Float32Array, Float64Array, Int64Array

SPACING = 1.0  # metres between the stations of a path

# How `drive` sees and brakes.
CLEARANCE = 0.1  # metres that a corridor is wider than its agent, on either side
SIGHT_METRES, SIGHT_SECONDS = 10.0, 5.0  # how far ahead a leader is looked for
SAME_LEVEL = 3.0  # metres; what is higher or lower is on another road
STOP_BEFORE_LINE = 1.0  # metres between the front and the stop point
SMALLEST_GAP = 0.1  # metres
HARDEST_BRAKING = 7.0  # m/s^2
EMERGENCY = 3.5  # m/s^2; braking harder than this comes at once
EASING = 0.4  # of the way to the wanted acceleration that a step goes
NOISE_SECONDS = 1.5  # correlation time of the acceleration's noise
STEP = 0.1  # seconds


@kernel
def project(
    points: Float64Array,
    stations: Float64Array,
    offsets: Int64Array,
    x: Float64Array,
    y: Float64Array,
    radius: float,
    distance: Float64Array,
    station: Float64Array,
    segment: Int64Array,
) -> None:
    """The nearest point of each lane to each agent.

    Args:
        points: float64 [P, 2], of all lanes.
        stations: float64 [P], distance along its lane.
        offsets: int64 [L + 1], lane `l` has points `offsets[l]:offsets[l + 1]`.
        x, y: float64 [N].
        radius: lanes whose bounding box is further away are left out.
        distance: float64 [N, L], written; infinite where left out, or of fewer than two points.
        station: float64 [N, L], written: how far along the lane.
        segment: int64 [N, L], written: the point that begins the nearest segment.
    """
    n_lanes = len(offsets) - 1
    for lane in range(n_lanes):
        first, last = offsets[lane], offsets[lane + 1]
        distance[:, lane] = np.inf
        if last - first < 2:
            continue
        low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
        for k in range(first, last):
            low_x, high_x = min(low_x, points[k, 0]), max(high_x, points[k, 0])
            low_y, high_y = min(low_y, points[k, 1]), max(high_y, points[k, 1])
        for i in range(len(x)):
            if not (low_x - radius <= x[i] <= high_x + radius):
                continue
            if not (low_y - radius <= y[i] <= high_y + radius):
                continue
            best = np.inf
            for k in range(first, last - 1):
                ax, ay = points[k + 1, 0] - points[k, 0], points[k + 1, 1] - points[k, 1]
                bx, by = x[i] - points[k, 0], y[i] - points[k, 1]
                square = ax * ax + ay * ay
                along = 0.0 if square == 0 else min(max((ax * bx + ay * by) / square, 0.0), 1.0)
                dx, dy = bx - along * ax, by - along * ay
                apart = dx * dx + dy * dy
                if apart < best:
                    best = apart
                    station[i, lane] = stations[k] + along * (stations[k + 1] - stations[k])
                    segment[i, lane] = k
            distance[i, lane] = np.sqrt(best)


@kernel
def sample_routes(
    points: Float64Array,
    stations: Float64Array,
    offsets: Int64Array,
    lanes: Int64Array,
    route_offsets: Int64Array,
    begin: Float64Array,
    sampled: Float64Array,
    lane_at: Int64Array,
) -> None:
    """Points at even distances along routes; straight on where a route has ended.

    Args:
        points: float64 [P, 3], of all lanes.
        stations: float64 [P], distance along its lane.
        offsets: int64 [L + 1], lane `l` has points `offsets[l]:offsets[l + 1]`, at least two.
        lanes: int64 [M]; route `p` is `lanes[route_offsets[p]:route_offsets[p + 1]]`.
        route_offsets: int64 [P + 1].
        begin: float64 [P], where on its first lane a route begins.
        sampled: float64 [P, K, 3], written: point `k` is `k * SPACING` metres along the route.
        lane_at: int64 [P, K], written: the lane there; the last one where the route has ended.
    """
    for route in range(len(begin)):
        place, last_place = route_offsets[route], route_offsets[route + 1] - 1
        # `local` is the wanted distance along the lane at `place`.
        local = begin[route]
        k = offsets[lanes[place]]
        for out in range(sampled.shape[1]):
            lane = lanes[place]
            last = offsets[lane + 1] - 1
            while local > stations[last] and place < last_place:
                local -= stations[last]
                place += 1
                lane = lanes[place]
                k, last = offsets[lane], offsets[lane + 1] - 1
            while k + 2 <= last and stations[k + 1] < local:
                k += 1
            length = stations[k + 1] - stations[k]
            share = 0.0 if length == 0 else (local - stations[k]) / length
            for axis in range(2):
                step = points[k + 1, axis] - points[k, axis]
                sampled[route, out, axis] = points[k, axis] + share * step
            share = min(share, 1.0)  # the slope of a last segment is not to be trusted for long
            sampled[route, out, 2] = points[k, 2] + share * (points[k + 1, 2] - points[k, 2])
            lane_at[route, out] = lane
            local += SPACING


@kernel
def sample_evenly(curves: Float64Array, along: Float64Array, even: Float64Array) -> None:
    """Curves again, with their points at even distances; straight on where one ends too early.

    Args:
        curves: float64 [P, K, C], K points with C coordinates or other values, K at least 2.
        along: float64 [P, K], distance of the points along the curve, not falling, from 0.
        even: float64 [P, K, C], written: point `k` is `k * SPACING` along the curve.
    """
    n_curves, n_points, n_values = curves.shape
    for p in range(n_curves):
        k = 0
        for out in range(n_points):
            while k < n_points - 2 and along[p, k + 1] < out * SPACING:
                k += 1
            length = along[p, k + 1] - along[p, k]
            share = 0.0 if length == 0 else (out * SPACING - along[p, k]) / length
            for c in range(n_values):
                even[p, out, c] = curves[p, k, c] + share * (curves[p, k + 1, c] - curves[p, k, c])


@inlined
def first_contact(
    path_x: Float64Array,
    path_y: Float64Array,
    path_cosine: Float64Array,
    path_sine: Float64Array,
    path: int,
    begin: int,
    end: int,
    half_width: float,
    x: float,
    y: float,
    cosine: float,
    sine: float,
    half_length_of_box: float,
    half_width_of_box: float,
) -> tuple[int, float]:
    """Where the corridor of a path first meets a box.

    The corridor is cut into slices one `SPACING` long. Stations that are further from the box than
    both can reach are passed over: a metre along the path brings it nearer by a metre at most.

    Args:
        path_x, path_y, path_cosine, path_sine: float64 [P, K], stations and directions of travel.
        path: which path.
        begin, end: the first and last station to look at.
        half_width: of the corridor.
        x, y, cosine, sine, half_length_of_box, half_width_of_box: the box.

    Returns:
        The station, -1 if they do not meet, and how many metres along the path the box begins.
    """
    half = SPACING / 2
    reach = np.sqrt(half_length_of_box**2 + half_width_of_box**2)
    reach += np.sqrt(half_width**2 + half**2)
    k = begin
    while k <= end:
        dx, dy = x - path_x[path, k], y - path_y[path, k]
        square = dx * dx + dy * dy
        if square > reach * reach:
            k += max(1, int((np.sqrt(square) - reach) * (1 / SPACING)))
            continue
        # Two rectangles are apart if they are so along a side of one of them.
        ahead_x, ahead_y = path_cosine[path, k], path_sine[path, k]
        c = abs(ahead_x * cosine + ahead_y * sine)
        s = abs(ahead_x * sine - ahead_y * cosine)
        along = dx * ahead_x + dy * ahead_y
        depth = half_length_of_box * c + half_width_of_box * s
        breadth = half_length_of_box * s + half_width_of_box * c
        if (
            abs(along) <= half + depth
            and abs(dy * ahead_x - dx * ahead_y) <= half_width + breadth
            and abs(dx * cosine + dy * sine) <= half_length_of_box + half * c + half_width * s
            and abs(dy * cosine - dx * sine) <= half_width_of_box + half * s + half_width * c
        ):
            return k, k * SPACING + min(max(along - depth, -half), half)
        k += 1
    return -1, np.inf


@kernel
def standing_contacts(
    path_x: Float64Array,
    path_y: Float64Array,
    path_z: Float64Array,
    path_cosine: Float64Array,
    path_sine: Float64Array,
    half_width: Float64Array,
    boxes: Float64Array,
    contacts: Float64Array,
) -> None:
    """What stands in the way on each path: found once, not at every step.

    Args:
        path_x, path_y, path_z, path_cosine, path_sine: float64 [P, K], see `drive`.
        half_width: float64 [P], of the corridor.
        boxes: float64 [B, 7]: x, y, z, cosine, sine, half length, half width.
        contacts: float64 [P, K], written: metres along the path to the nearest box that its
            corridor meets at this station or a later one; infinite if there is none.
    """
    n_paths, n_stations = path_x.shape
    contacts[:] = np.inf
    for path in range(n_paths):
        for box in range(len(boxes)):
            k = 0
            while k < n_stations:
                k, at = first_contact(
                    path_x,
                    path_y,
                    path_cosine,
                    path_sine,
                    path,
                    k,
                    n_stations - 1,
                    half_width[path],
                    boxes[box, 0],
                    boxes[box, 1],
                    boxes[box, 3],
                    boxes[box, 4],
                    boxes[box, 5],
                    boxes[box, 6],
                )
                if k < 0:
                    break
                if abs(boxes[box, 2] - path_z[path, k]) <= SAME_LEVEL:
                    contacts[path, k] = min(contacts[path, k], at)
                k += 1
        for k in range(n_stations - 2, -1, -1):
            contacts[path, k] = min(contacts[path, k], contacts[path, k + 1])


@kernel
def drive(
    path_x: Float64Array,
    path_y: Float64Array,
    path_z: Float64Array,
    path_heading: Float64Array,
    path_cosine: Float64Array,
    path_sine: Float64Array,
    path_limit: Float64Array,
    path_curve_speed: Float64Array,
    path_stop: Float64Array,
    contacts: Float64Array,
    drivers: Int64Array,
    walkers: Int64Array,
    path_of: Int64Array,
    start: Float64Array,
    half_length: Float64Array,
    half_width: Float64Array,
    wish: Float64Array,
    headway: Float64Array,
    start_step: Int64Array,
    noise: Float32Array,
    standstill: float,
    most: float,
    comfortable: float,
    origin: Float64Array,
    states: Float32Array,
) -> None:
    """Let the drivers of all rollouts drive; the other agents move as `states` says already.

    Everybody decides on what is seen at a step, then all move: the order of agents is of no
    consequence.

    Args:
        path_x, path_y, path_z: float64 [P, K], stations `SPACING` apart; a driver begins at 0.
        path_heading: float64 [P, K], of the box there, without jumps of a whole turn.
        path_cosine, path_sine: float64 [P, K], of the direction of travel.
        path_limit: float64 [P, K], m/s wanted there by a driver of wish 1.
        path_curve_speed: float64 [P, K], m/s at most for the curves there and after.
        path_stop: float64 [P], where the path is closed by a light; infinite if nowhere.
        contacts: float64 [P, K], what stands on the path, see `standing_contacts`.
        drivers: int64 [D], rows of the agents that drive.
        walkers: int64 [W], rows of the others that move; who neither drives nor moves is in
            `contacts`.
        path_of: int64 [R, D].
        start: float64 [N, 6]: x, y, z, heading, and velocity in x and y now.
        half_length, half_width: float64 [N].
        wish: float64 [R, D], share of `path_limit` that is wanted.
        headway: float64 [R, D], seconds.
        start_step: int64 [R, D], the driver stands until then.
        noise: float32 [R, D, T], standard normal times the acceleration's spread.
        standstill: s0 of the IDM, metres.
        most, comfortable: a and b of the IDM, m/s^2.
        origin: float64 [3], which all of the above is relative to, but `states` is not.
        states: float32 [R, N, T, 4], written for the drivers, read for the walkers.
    """
    n_rollouts, n_steps = states.shape[0], states.shape[2]
    n_drivers, n_movers = len(drivers), len(drivers) + len(walkers)
    last_station = path_x.shape[1] - 1
    stem = 2 * np.sqrt(most * comfortable)
    decay = np.exp(-STEP / NOISE_SECONDS)
    stir = np.sqrt(1 - decay * decay)
    movers = np.concatenate((drivers, walkers))
    x, y, z = np.empty(n_movers), np.empty(n_movers), np.empty(n_movers)
    cosine, sine = np.empty(n_movers), np.empty(n_movers)
    velocity_x, velocity_y = np.empty(n_movers), np.empty(n_movers)
    radius = np.sqrt(half_length**2 + half_width**2)[movers]
    along, speed = np.empty(n_drivers), np.empty(n_drivers)
    swing, acceleration = np.empty(n_drivers), np.empty(n_drivers)
    apart, leader = np.empty(n_movers), np.empty(n_drivers, np.int64)
    for rollout in range(n_rollouts):
        for m in range(n_movers):
            i = movers[m]
            x[m], y[m], z[m] = start[i, 0], start[i, 1], start[i, 2]
            cosine[m], sine[m] = np.cos(start[i, 3]), np.sin(start[i, 3])
            velocity_x[m], velocity_y[m] = start[i, 4], start[i, 5]
        for d in range(n_drivers):
            along[d], swing[d], acceleration[d], leader[d] = 0.0, 0.0, 0.0, -1
            speed[d] = np.sqrt(velocity_x[d] ** 2 + velocity_y[d] ** 2)
        for t in range(n_steps):
            for d in range(n_drivers):
                i, path, v = drivers[d], path_of[rollout, d], speed[d]
                if t < start_step[rollout, d]:
                    acceleration[d] = 0.0
                    continue
                front = along[d] + half_length[i]
                first = min(int(front / SPACING + 0.5), last_station)
                # The nearest leader: first what stands, then the leader of the step before, so
                # that of the others few are near enough to be looked at.
                nearest, closing, follow = contacts[path, first] - front, v, 0.0
                sight = min(SIGHT_METRES + SIGHT_SECONDS * v, nearest)
                corridor = half_width[i] + CLEARANCE
                for m in range(n_movers):
                    dx, dy = x[m] - x[d], y[m] - y[d]
                    apart[m] = dx * dx + dy * dy
                apart[d] = np.inf
                guess = leader[d]
                for number in range(-1, n_movers):
                    m = number
                    if number < 0:
                        if guess < 0:
                            continue
                        m = guess
                    near = sight + half_length[i] + radius[m] + corridor
                    if apart[m] > near * near or abs(z[m] - z[d]) > SAME_LEVEL:
                        continue
                    j = movers[m]
                    met, at = first_contact(
                        path_x,
                        path_y,
                        path_cosine,
                        path_sine,
                        path,
                        first,
                        min(int((front + sight) / SPACING + 0.5), last_station),
                        corridor,
                        x[m],
                        y[m],
                        cosine[m],
                        sine[m],
                        half_length[j],
                        half_width[j],
                    )
                    if at - front < sight:
                        sight = nearest = at - front
                        leader[d] = m
                        closing = v - (
                            velocity_x[m] * path_cosine[path, met]
                            + velocity_y[m] * path_sine[path, met]
                        )
                if nearest < np.inf:
                    reach = standstill + max(0.0, v * headway[rollout, d] + v * closing / stem)
                    follow = reach / max(nearest, SMALLEST_GAP)
                if path_stop[path] < np.inf:
                    # IDM stops `standstill` before an obstacle: put it beyond the line by that.
                    gap = path_stop[path] - front + standstill - STOP_BEFORE_LINE
                    reach = standstill + max(0.0, v * headway[rollout, d] + v * v / stem)
                    follow = max(follow, reach / max(gap, SMALLEST_GAP))
                station = min(int(along[d] / SPACING), last_station)
                free = wish[rollout, d] * path_limit[path, station]
                free = (v / min(free, path_curve_speed[path, station])) ** 2
                wanted = most * (1 - free * free - follow * follow)
                swing[d] = decay * swing[d] + stir * noise[rollout, d, t]
                wanted += swing[d] * min(v / 3.0, 1.0)
                wanted = min(max(wanted, -HARDEST_BRAKING), most)
                if wanted < -EMERGENCY:
                    acceleration[d] = wanted
                else:
                    acceleration[d] += EASING * (wanted - acceleration[d])
            for d in range(n_drivers):
                i, path = drivers[d], path_of[rollout, d]
                faster = speed[d] + acceleration[d] * STEP
                if faster <= 0.0:
                    faster, acceleration[d] = 0.0, 0.0
                along[d] += (speed[d] + faster) / 2 * STEP
                speed[d] = faster
                k = min(int(along[d] / SPACING), last_station - 1)
                share = along[d] / SPACING - k
                x[d] = path_x[path, k] + share * (path_x[path, k + 1] - path_x[path, k])
                y[d] = path_y[path, k] + share * (path_y[path, k + 1] - path_y[path, k])
                z[d] = path_z[path, k] + share * (path_z[path, k + 1] - path_z[path, k])
                turn = path_heading[path, k + 1] - path_heading[path, k]
                heading = path_heading[path, k] + share * turn
                cosine[d], sine[d] = np.cos(heading), np.sin(heading)
                velocity_x[d] = speed[d] * path_cosine[path, k]
                velocity_y[d] = speed[d] * path_sine[path, k]
                states[rollout, i, t, 0] = x[d] + origin[0]
                states[rollout, i, t, 1] = y[d] + origin[1]
                states[rollout, i, t, 2] = z[d] + origin[2]
                states[rollout, i, t, 3] = heading
            for m in range(n_drivers, n_movers):
                state = states[rollout, movers[m], t]
                there_x, there_y = state[0] - origin[0], state[1] - origin[1]
                velocity_x[m], velocity_y[m] = (there_x - x[m]) / STEP, (there_y - y[m]) / STEP
                x[m], y[m], z[m] = there_x, there_y, state[2] - origin[2]
                cosine[m], sine[m] = np.cos(state[3]), np.sin(state[3])
