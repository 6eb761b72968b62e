"""Plain NumPy versions of every kernel: dense, slow, without pruning or caching.

They state what a feature is, in float32 and in the official order of operations, so that a kernel
must agree with them to the last bit. Names and shapes are those of the kernels, for one rollout.
"""

from __future__ import annotations

import numpy as np

F = np.float32
LARGE = F(1e10)


def wrap(angle):
    return np.mod(angle + F(np.pi), F(2 * np.pi)) - F(np.pi)


def box_corners(x, y, sine, cosine, length, width):
    """Corners [..., 4, 2], counter-clockwise from the front left, by a rotation matrix."""
    sx, sy = np.array([1, -1, -1, 1], F), np.array([1, 1, -1, -1], F)
    along, across = (length * F(0.5))[..., None] * sx, (width * F(0.5))[..., None] * sy
    return np.stack(
        [
            cosine[..., None] * along + -sine[..., None] * across + x[..., None],
            sine[..., None] * along + cosine[..., None] * across + y[..., None],
        ],
        axis=-1,
    )


def central_kinematics(x, y, z, heading):
    """Speeds and accelerations over all steps given [..., S]; NaN where undefined."""

    def difference(v):
        result = np.full(v.shape, np.nan, F)
        result[..., 1:-1] = (v[..., 2:] - v[..., :-2]) / F(2)
        return result

    speed = np.sqrt(difference(x) ** 2 + difference(y) ** 2 + difference(z) ** 2) / F(0.1)
    turn = wrap(difference(heading) * F(2)) / F(2)
    return (
        speed,
        difference(speed) / F(0.1),
        turn / F(0.1),
        wrap(difference(turn) * F(2)) / F(2) / F(0.1**2),
    )


def forward_kinematics(x, y, z, heading):
    """The same by differences to the step before, as in 2023."""

    def difference(v):
        result = np.full(v.shape, np.nan, F)
        result[..., 1:] = v[..., 1:] - v[..., :-1]
        return result

    speed = np.sqrt(difference(x) ** 2 + difference(y) ** 2 + difference(z) ** 2) / F(0.1)
    turn = wrap(difference(heading)) / F(0.1)
    return speed, difference(speed) / F(0.1), turn, wrap(difference(turn)) / F(0.1)


def polygon_distance(polygon):
    """Signed distance of the origin to a convex polygon [n, 2], negative inside."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    lengths = np.sqrt(edges[:, 0] ** 2 + edges[:, 1] ** 2)
    tangents = edges / lengths[:, None]
    to_origin = -polygon
    perpendicular = tangents[:, 1] * to_origin[:, 0] + -tangents[:, 0] * to_origin[:, 1]
    along = (tangents[:, 0] * to_origin[:, 0] + tangents[:, 1] * to_origin[:, 1]) / lengths
    to_edges = np.where((along >= 0) & (along <= 1), np.abs(perpendicular), F(np.inf))
    to_vertices = np.sqrt(to_origin[:, 0] ** 2 + to_origin[:, 1] ** 2)
    distance = min(to_edges.min(), to_vertices.min())
    return -distance if (perpendicular <= 0).all() else distance


def minkowski_difference(a, b):
    """The polygon [8, 2] of all differences of points of two rectangles [4, 2]."""
    b = -b

    def lowest_edge(box):
        i = int(np.argmin(box[:, 1]))
        edge = box[(i + 1) % 4] - box[i]
        return i, edge / np.sqrt(edge[0] * edge[0] + edge[1] * edge[1])

    i, u = lowest_edge(a)
    j, v = lowest_edge(b)
    stay, advance = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([0, 1, 1, 2, 2, 3, 3, 0])
    if u[0] * v[1] - u[1] * v[0] >= 0:
        stay, advance = advance, stay
    return a[(stay + i) % 4] + b[(advance + j) % 4]


def nearest_object_distances(cores, shrinking, valid, n_evaluated):
    """[E, T] from the corners of the shrunken boxes [T, N, 4, 2] of all agents."""
    n_steps, n_agents = cores.shape[:2]
    result = np.full((n_evaluated, n_steps), LARGE)
    for t in range(n_steps):
        for e in range(n_evaluated):
            for n in range(n_agents):
                if n != e and valid[t, e] and valid[t, n]:
                    d = polygon_distance(minkowski_difference(cores[t, e], cores[t, n]))
                    result[e, t] = min(result[e, t], d - shrinking[e] - shrinking[n])
    return result


def times_to_collision(x, y, heading, sine_cosine, length, width, valid, speed, n_evaluated):
    """[E, T]; positions, headings and planar speeds [T, N]; `sine_cosine` of an angle array."""
    ego = slice(None, n_evaluated)
    turn = np.abs(heading[:, None, :] - heading[:, ego, None])
    sine, cosine = sine_cosine(turn)
    sine, cosine = np.abs(sine), np.abs(cosine)
    along = (length / F(2)) * cosine + (width / F(2)) * sine
    across = (length / F(2)) * sine + (width / F(2)) * cosine
    dx, dy = x[:, None, :] - x[:, ego, None], y[:, None, :] - y[:, ego, None]
    s, c = sine_cosine(-heading[:, ego, None])
    gap = (c * dx - s * dy) - (length[ego] / F(2))[:, None] - along
    overlap = np.abs(s * dx + c * dy) - (width[ego] / F(2))[:, None] - across
    follows = (
        (gap > 0)
        & (turn <= F(np.radians(75.0)))
        & (overlap < 0)
        & ((overlap < F(-0.5)) | (turn <= F(np.radians(10.0))))
        & valid[:, None, :]
    )
    masked = gap + (F(1) - follows.astype(F)) * LARGE
    ahead = masked.argmin(axis=2)
    distance = np.take_along_axis(masked, ahead[..., None], axis=2)[..., 0]
    closing = speed[:, ego] - np.take_along_axis(speed, ahead, axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        time = np.where(closing > 0, np.minimum(distance / closing, F(5)), F(5))
    return time.T


def road_edge_distance(point, polylines):
    """Signed distance of one corner [3], since 2024: all polylines padded to the longest."""
    polylines = [p.astype(F) for p in polylines if len(p) >= 2]
    longest = max(len(p) for p in polylines)
    padded = np.zeros((len(polylines), longest, 3), F)
    exists = np.zeros((len(polylines), longest), bool)
    cyclic = np.zeros(len(polylines), bool)
    for i, p in enumerate(polylines):
        padded[i, : len(p)], exists[i, : len(p)] = p, True
        gap = p[0] - p[-1]
        cyclic[i] = (gap * gap).sum() < 1
    valid = exists[:, 1:] & exists[:, :-1]
    delta = padded[:, 1:] - padded[:, :-1]
    from_start = point - padded[:, :-1]
    dot = from_start[..., 0] * delta[..., 0] + from_start[..., 1] * delta[..., 1]
    square = delta[..., 0] * delta[..., 0] + delta[..., 1] * delta[..., 1]
    t = np.divide(dot, square, out=np.zeros_like(dot), where=square != 0)
    offset = from_start - delta * np.clip(t, F(0), F(1))[..., None]
    stretched = offset * np.array([1, 1, 3], F)
    d3 = np.sqrt((stretched[..., 0] ** 2 + stretched[..., 1] ** 2) + stretched[..., 2] ** 2)
    d2 = np.sqrt(offset[..., 0] ** 2 + offset[..., 1] ** 2)
    side = np.sign(from_start[..., 0] * delta[..., 1] - from_start[..., 1] * delta[..., 0])
    before, after = np.roll(delta, 1, axis=1), np.roll(delta, -1, axis=1)
    convex_before = before[..., 0] * delta[..., 1] - before[..., 1] * delta[..., 0] > 0
    convex_after = delta[..., 0] * after[..., 1] - delta[..., 1] * after[..., 0] > 0

    def shifted(values, by):
        rolled = np.roll(values, by, axis=1)
        end = 0 if by == 1 else -1
        rolled[:, end] = np.where(cyclic, rolled[:, end], values[:, end])
        return rolled

    sign_before = np.where(
        convex_before, np.maximum(side, shifted(side, 1)), np.minimum(side, shifted(side, 1))
    )
    sign_after = np.where(
        convex_after, np.maximum(side, shifted(side, -1)), np.minimum(side, shifted(side, -1))
    )
    sign = np.where(
        (t < 0) & shifted(valid, 1),
        sign_before,
        np.where((t > 1) & shifted(valid, -1), sign_after, side),
    )
    nearest = np.argmin(np.where(valid, d3, LARGE))
    return sign.flat[nearest] * d2.flat[nearest]


def planar_road_edge_distance(point, polylines):
    """Signed distance of one corner [2], rules of 2023: the smallest of each polyline's own."""
    results = []
    for polyline in polylines:
        if len(polyline) < 2:
            continue
        p = polyline.astype(F)[:, :2]
        gap = p[0] - p[-1]
        cyclic = (gap * gap).sum() < 1
        delta, from_start = p[1:] - p[:-1], point[:2] - p[:-1]
        dot = from_start[:, 0] * delta[:, 0] + from_start[:, 1] * delta[:, 1]
        square = delta[:, 0] * delta[:, 0] + delta[:, 1] * delta[:, 1]
        t = np.divide(dot, square, out=np.zeros_like(dot), where=square != 0)
        offset = from_start - delta * np.clip(t, F(0), F(1))[:, None]
        distance = np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2)
        side = np.sign(from_start[:, 0] * delta[:, 1] - from_start[:, 1] * delta[:, 0])
        i = int(np.argmin(distance))
        sign = side[i]
        if t[i] < 0 or t[i] >= 1:
            step = -1 if t[i] < 0 else 1
            inside = 0 <= i + step < len(delta)
            j = i + step if inside else ((i + step) % len(delta) if cyclic else i)
            # The joint's convexity is that of the cyclic polyline even where it is not cyclic.
            k = (i + step) % len(delta)
            a, b = (delta[k], delta[i]) if step == -1 else (delta[i], delta[k])
            convex = a[0] * b[1] - a[1] * b[0] > 0
            sign = max(side[i], side[j]) if convex else min(side[i], side[j])
        results.append(sign * distance[i])
    return results[int(np.argmin(np.abs(results)))]


def red_light_violations(xy, valid, lanes, lane_ids, signals):
    """[E, S] with the first step False.

    Args:
        xy: float32 [E, S, 2].
        valid: bool [E, S].
        lanes: float32 [n_i, 2] each, at least two points.
        lane_ids: their ids.
        signals: for each step a list of (lane id, state, stop point [2]).
    """
    longest = max(len(p) for p in lanes)
    padded = np.zeros((len(lanes), longest, 2), F)
    exists = np.zeros((len(lanes), longest), bool)
    for i, p in enumerate(lanes):
        padded[i, : len(p)], exists[i, : len(p)] = p, True

    def nearest_segment(point, start, end, usable):
        delta, from_start = end - start, point - start
        dot = from_start[..., 0] * delta[..., 0] + from_start[..., 1] * delta[..., 1]
        square = delta[..., 0] * delta[..., 0] + delta[..., 1] * delta[..., 1]
        t = np.divide(dot, square, out=np.zeros_like(dot), where=square != 0)
        offset = from_start + delta * np.clip(t, F(0), F(1))[..., None]
        distance = np.sqrt(offset[..., 0] ** 2 + offset[..., 1] ** 2)
        return int(np.argmin(np.where(usable, distance, LARGE)))

    def projection(point, start, end):
        delta = end - start
        square = delta[0] * delta[0] + delta[1] * delta[1]
        along = point - start
        return (along[0] * delta[0] + along[1] * delta[1]) / square if square else F(0)

    n_agents, n_steps = xy.shape[:2]
    result = np.zeros((n_agents, n_steps), bool)
    all_ids = sorted({i for step in signals for i, _, _ in step})
    for signal_id in all_ids:
        if signal_id not in lane_ids:
            continue
        lane = lane_ids.index(signal_id)
        start, end, usable = padded[lane, :-1], padded[lane, 1:], exists[lane, :-1]
        behind, ahead = np.zeros((2, n_agents, n_steps), bool)
        stop = np.zeros(n_steps, bool)
        for s in range(n_steps):
            state, stop_point = 0, np.zeros(2, F)
            for i, its_state, its_point in signals[s]:
                if i == signal_id:
                    state, stop_point = its_state, np.asarray(its_point, F)
            stop[s] = state in (1, 4)
            i = nearest_segment(stop_point, start, end, usable)
            limit = projection(stop_point, start[i], end[i])
            for a in range(n_agents):
                position = projection(xy[a, s], start[i], end[i])
                behind[a, s], ahead[a, s] = position < limit, position > limit
        for a in range(n_agents):
            for s in range(1, n_steps):
                if stop[s] and valid[a, s] and behind[a, s - 1] and ahead[a, s]:
                    i = nearest_segment(xy[a, s], padded[:, :-1], padded[:, 1:], exists[:, :-1])
                    result[a, s] |= lane_ids[i // (longest - 1)] == signal_id
    return result


def bins(values, edges):
    """The bin of each value; NaN in the last, outside values in the outermost."""
    clipped = np.clip(values, edges[0], edges[-1])
    found = np.searchsorted(edges, clipped, side="right") - 1
    return np.clip(found, 0, len(edges) - 2)
