"""Planar curves as polylines: arrays [n, 2] in metres, offsets positive to the left of travel."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.scenario import BoolArray, Float64Array


def unit(heading: float) -> Float64Array:
    """The direction [2] of a heading in radians."""
    return np.array([np.cos(heading), np.sin(heading)])


def wrap(angle: float) -> float:
    """`angle` in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def arc_length(points: Float64Array) -> Float64Array:
    """Distance [n] travelled from the first point to each point."""
    result = np.zeros(len(points))
    np.cumsum(np.hypot(*(points[1:] - points[:-1]).T), out=result[1:])
    return result


def length(points: Float64Array) -> float:
    """Length of the polyline in metres."""
    return float(np.hypot(*(points[1:] - points[:-1]).T).sum())


def resample(points: Float64Array, spacing: float) -> Float64Array:
    """The same curve with points at equal distances of at most `spacing`; the ends stay."""
    s = arc_length(points)
    n = max(int(np.ceil(s[-1] / spacing)), 1) + 1
    at = np.linspace(0.0, s[-1], n)
    return np.stack([np.interp(at, s, points[:, 0]), np.interp(at, s, points[:, 1])], axis=-1)


def tangents(points: Float64Array) -> Float64Array:
    """Unit tangents [n, 2], by central differences."""
    d = np.empty_like(points)
    d[1:-1] = points[2:] - points[:-2]
    d[0], d[-1] = points[1] - points[0], points[-1] - points[-2]
    return d / np.maximum(np.hypot(d[:, :1], d[:, 1:]), 1e-9)


def headings(points: Float64Array) -> Float64Array:
    """Headings [n] in radians, without jumps of 2 pi."""
    t = tangents(points)
    return np.unwrap(np.arctan2(t[:, 1], t[:, 0]))


def offset(points: Float64Array, by: float | Float64Array) -> Float64Array:
    """The curve moved sideways by `by` metres, a number or one a point."""
    t = tangents(points)
    return points + np.stack([-t[:, 1], t[:, 0]], axis=-1) * np.broadcast_to(
        np.asarray(by, np.float64)[..., None], (len(points), 1)
    )


def cut(points: Float64Array, start: float, end: float) -> Float64Array:
    """The part of the curve between the distances `start` and `end` from its first point."""
    s = arc_length(points)
    inner = points[(s > start + 1e-6) & (s < end - 1e-6)]
    ends = [[np.interp(at, s, points[:, 0]), np.interp(at, s, points[:, 1])] for at in (start, end)]
    return np.concatenate([[ends[0]], inner, [ends[1]]])


def bend(
    origin: Float64Array,
    heading: float,
    total: float,
    turn: float,
    straight: tuple[float, float] = (0.0, 0.0),
) -> Float64Array:
    """A road axis that leaves `origin` along `heading` and turns by `turn` radians.

    It turns between its first `straight[0]` and its last `straight[1]` metres, with a curvature
    that grows and falls smoothly.
    """
    s = np.linspace(0.0, total, int(total) + 1)
    along = np.clip((s - straight[0]) / max(total - sum(straight), 1.0), 0.0, 1.0)
    angle = heading + turn * (along - np.sin(2 * np.pi * along) / (2 * np.pi))
    middle = (angle[1:] + angle[:-1]) / 2
    steps = np.stack([np.cos(middle), np.sin(middle)], axis=-1) * np.diff(s)[:, None]
    return np.concatenate([origin[None], origin + np.cumsum(steps, axis=0)])


def connect(
    start: Float64Array,
    start_heading: float,
    end: Float64Array,
    end_heading: float,
    radius: float,
    spacing: float = 0.5,
) -> Float64Array:
    """A curve from one pose to another: straight, an arc of up to `radius` metres, straight.

    Where the headings hardly differ it is a cubic instead.
    """
    turn = wrap(end_heading - start_heading)
    u, v = unit(start_heading), unit(end_heading)
    cross = float(u[0] * v[1] - u[1] * v[0])
    if abs(turn) > np.radians(20) and abs(cross) > 1e-3:
        gap = end - start
        before = float(gap[0] * v[1] - gap[1] * v[0]) / cross
        after = float(gap[1] * u[0] - gap[0] * u[1]) / cross
        leg = min(before, after)
        if leg > 1.0:
            tangent = min(radius * np.tan(abs(turn) / 2), leg)
            r = tangent / np.tan(abs(turn) / 2)
            begin = start + u * (before - tangent)
            side = np.sign(turn)
            centre = begin + side * r * np.array([-u[1], u[0]])
            sweep = start_heading - side * np.pi / 2 + np.linspace(0.0, turn, 24)
            arc = centre + r * np.stack([np.cos(sweep), np.sin(sweep)], axis=-1)
            path = np.concatenate([[start], arc, [end]])
            keep = np.append(np.hypot(*np.diff(path, axis=0).T) > 1e-6, True)
            return resample(path[keep], spacing)
    # Hermite, with tangents as long as the chord.
    t = np.linspace(0.0, 1.0, 32)[:, None]
    chord = float(np.hypot(*(end - start)))
    path = (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * chord * u
        + (-2 * t**3 + 3 * t**2) * end
        + (t**3 - t**2) * chord * v
    )
    return resample(path, spacing)


def smooth(points: Float64Array, window: int) -> Float64Array:
    """A moving average over up to `window` points on both sides, fewer near the ends.

    The ends stay in place; corners and jumps of curvature become gradual.
    """
    n = len(points)
    reach = np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]), window)
    total = np.concatenate([np.zeros((1, 2)), np.cumsum(points, axis=0)])
    at = np.arange(n)
    result: Float64Array = (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)[:, None]
    return result


def loop_around(points: Float64Array, half_width: float) -> Float64Array:
    """A closed outline around a curve: the edge of a traffic island.

    It runs clockwise, so that its port side, where the road is, is the outside.
    """
    left = offset(points, half_width)
    right = offset(points, -half_width)[::-1]
    caps = []
    for side, end in ((left, points[-1]), (right, points[0])):
        arm = side[-1] - end
        turn = -np.linspace(0.0, np.pi, 8)[1:-1]
        c, s = np.cos(turn), np.sin(turn)
        caps.append(end + np.stack([c * arm[0] - s * arm[1], s * arm[0] + c * arm[1]], axis=-1))
    return np.concatenate([left, caps[0], right, caps[1], left[:1]])


def near(points: Float64Array, others: Float64Array, distance: float) -> BoolArray:
    """Which of `points` [n] lie within `distance` of any of `others`."""
    gap = points[:, None] - others[None]
    return np.asarray((gap**2).sum(-1).min(axis=1, initial=np.inf) < distance**2)
