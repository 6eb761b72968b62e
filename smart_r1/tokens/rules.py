"""Half seconds of movement and pieces of road made from rules, without any data.

They are what is physically plausible, the usual more often than the extreme: wheels that roll and
do not slip (a kinematic bicycle model), feet that go anywhere, lines whose curvature changes
steadily (clothoids).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smart_r1.map_pieces import SPACING, WINDOW
from wosac_toolkit.scenario import Float32Array, Float64Array

_STEPS, _SUBSTEPS, _STEP_SECONDS = 5, 4, 0.1

_SHORTEST_CURVE = 0.6  # metres
_TIGHTEST_BEND = 0.7  # 1/m
_WHOLE, _WITH_CORNER = 0.7, 0.15  # shares of the curves

Bands = tuple[tuple[float, float, float], ...]
"""(share, lowest, highest) of each: values are uniform within bands."""

Spread = tuple[float, float, float]
"""Along (m), across (m), turn (rad)."""


@dataclass(frozen=True, slots=True)
class Wheels:
    """How those on wheels move.

    Attributes:
        speeds: m/s, negative in reverse.
        acceleration: mean absolute value, m/s^2.
        hardest: braking (negative) and acceleration, m/s^2.
        radius: of the tightest curve, at the rear axle, metres.
        lateral: the highest lateral acceleration, m/s^2.
        straightness: the higher, the rarer are tight curves.
        rear_axle: metres behind the middle of the box.
        spread: of what the rules leave out, after half a second.
    """

    speeds: Bands
    acceleration: float
    hardest: tuple[float, float]
    radius: float
    lateral: float
    straightness: float
    rear_axle: float
    spread: Spread


@dataclass(frozen=True, slots=True)
class Feet:
    """How those on foot move.

    Attributes:
        speeds: m/s.
        acceleration: mean absolute value, m/s^2.
        hardest: braking (negative) and acceleration, m/s^2.
        sideways: mean angle between movement and heading, rad.
        anywhere: share of those who move in any direction, whatever their heading.
        turning: mean turning rate, rad/s.
        spinning: share of those who turn at any rate up to `fastest_spin`.
        fastest_spin: rad/s.
        spread: of what the rules leave out, after half a second.
    """

    speeds: Bands
    acceleration: float
    hardest: tuple[float, float]
    sideways: float
    anywhere: float
    turning: float
    spinning: float
    fastest_spin: float
    spread: Spread


RULES: tuple[Wheels | Feet, ...] = (
    Wheels(
        speeds=((0.05, -6, 0), (0.17, 0, 3), (0.42, 3, 12), (0.22, 12, 20), (0.14, 20, 40)),
        acceleration=1.5,
        hardest=(-8.0, 6.0),
        radius=4.0,
        lateral=6.0,
        straightness=3.0,
        rear_axle=1.4,
        spread=(0.01, 0.01, 0.004),
    ),
    Feet(
        speeds=((0.2, 0, 0.5), (0.6, 0.5, 2), (0.2, 2, 7)),
        acceleration=0.6,
        hardest=(-4.0, 4.0),
        sideways=0.12,
        anywhere=0.2,
        turning=0.4,
        spinning=0.08,
        fastest_spin=5.0,
        spread=(0.015, 0.015, 0.03),
    ),
    Wheels(
        speeds=((0.03, -1.5, 0), (0.27, 0, 3), (0.5, 3, 7), (0.2, 7, 16)),
        acceleration=1.0,
        hardest=(-6.0, 4.0),
        radius=1.4,
        lateral=5.0,
        straightness=2.5,
        rear_axle=0.5,
        spread=(0.01, 0.01, 0.008),
    ),
)
"""The rules of each class, in the order of `vocabulary.CLASSES`."""


def rule_segments(rules: Wheels | Feet, n: int, rng: np.random.Generator) -> Float32Array:
    """Half seconds of movement.

    Returns:
        float32 [n, 5, 3]: x, y (m) and heading (rad) of the middle of the box after 0.1, .. 0.5 s,
        in the frame of its first pose.
    """
    segments = _roll(rules, n, rng) if isinstance(rules, Wheels) else _walk(rules, n, rng)
    return led_astray(segments, rules.spread, rng)


def led_astray(
    segments: Float32Array | Float64Array, spread: Spread, rng: np.random.Generator
) -> Float32Array:
    """Segments [n, 5, 3] that leave their way smoothly: a little in most cases, far in a few."""
    time = np.linspace(0.2, 1.0, _STEPS)
    ease = time**2 * (3 - 2 * time)
    end = rng.standard_t(3, (len(segments), 1, 3)) * spread
    return (segments + ease[:, None] * end).astype(np.float32)


def rule_curves(n: int, rng: np.random.Generator) -> Float32Array:
    """Pieces of polylines, of 5 m or less.

    Most are clothoids. Some have a corner, or turn back as the outlines of crosswalks do, which are
    walked forth and back.

    Returns:
        float32 [n, 11, 2], as `Vocabulary.curves`.
    """
    whole = SPACING * WINDOW
    length = np.where(rng.random(n) < _WHOLE, whole, rng.uniform(_SHORTEST_CURVE, whole, n))
    at = piece_points(length)
    step, middle = np.diff(at), (at[:, 1:] + at[:, :-1]) / 2
    bend = _TIGHTEST_BEND * rng.uniform(-1, 1, n) ** 3
    change = rng.laplace(0, 0.01, n)
    turn = bend[:, None] * middle + change[:, None] * middle**2 / 2

    corner = np.where(rng.random(n) < 0.5, np.pi, rng.uniform(-np.pi, np.pi, n))
    corner = np.where(rng.random(n) < _WITH_CORNER, corner, 0.0)
    turn += corner[:, None] * (middle > (length * rng.random(n))[:, None])
    points = np.cumsum(np.stack([step * np.cos(turn), step * np.sin(turn)], axis=-1), axis=1)
    return along_x(np.pad(points, ((0, 0), (1, 0), (0, 0))))


def piece_points(length: Float64Array) -> Float64Array:
    """Where the 11 points of pieces lie, metres from their start [n, 11].

    They divide a whole piece evenly. In a shorter one point 5, which is matched, lies where
    `map_pieces` has its middle: at a multiple of 0.5 m.

    Args:
        length: [n], metres, at most 5.
    """
    n_steps = np.ceil(length / SPACING - 1e-6)
    middle, end = (SPACING * (n_steps // 2))[:, None], length[:, None]
    share = np.linspace(0, 1, WINDOW // 2 + 1)
    return np.concatenate([middle * share[:-1], middle + (end - middle) * share], axis=1)


def along_x(curves: Float64Array) -> Float32Array:
    """Curves [n, 11, 2] that begin at the origin and along x."""
    x, y = np.moveaxis(curves - curves[:, :1], -1, 0)
    angle = np.arctan2(y[:, 1:2], x[:, 1:2])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1).astype(np.float32)


def _roll(rules: Wheels, n: int, rng: np.random.Generator) -> Float64Array:
    """A kinematic bicycle: the rear axle follows a clothoid, the middle of the box is ahead."""
    start = _from_bands(rules.speeds, n, rng)
    speed, direction = np.abs(start), np.sign(start)
    acceleration = np.clip(rng.laplace(0, rules.acceleration, n), *rules.hardest)
    tightest = np.minimum(1 / rules.radius, rules.lateral / np.maximum(start**2, 1e-3))
    curvature = tightest * rng.choice([-1, 1], n) * rng.random(n) ** rules.straightness
    at_end = np.clip(curvature + tightest * rng.laplace(0, 0.1, n), -tightest, tightest)

    x, y, heading = np.full(n, -rules.rear_axle), np.zeros(n), np.zeros(n)
    poses = []
    n_substeps = _STEPS * _SUBSTEPS
    for substep in range(n_substeps):
        share = (substep + 0.5) / n_substeps
        now = np.maximum(speed + acceleration * share * _STEPS * _STEP_SECONDS, 0.0)
        way = direction * now * _STEP_SECONDS / _SUBSTEPS
        turn = way * (curvature + share * (at_end - curvature))
        x = x + way * np.cos(heading + turn / 2)
        y = y + way * np.sin(heading + turn / 2)
        heading = heading + turn
        if (substep + 1) % _SUBSTEPS == 0:
            ahead = rules.rear_axle
            pose = (x + ahead * np.cos(heading), y + ahead * np.sin(heading), heading)
            poses.append(np.stack(pose, axis=-1))
    return np.stack(poses, axis=1)


def _walk(rules: Feet, n: int, rng: np.random.Generator) -> Float64Array:
    """Legs: any direction of movement, which turns with the body."""
    speed = _from_bands(rules.speeds, n, rng)
    acceleration = np.clip(rng.laplace(0, rules.acceleration, n), *rules.hardest)
    anywhere = rng.random(n) < rules.anywhere
    spinning = rng.random(n) < rules.spinning
    spin = rng.uniform(-rules.fastest_spin, rules.fastest_spin, n)
    rate = np.where(spinning, spin, rng.laplace(0, rules.turning, n))
    direction = rng.uniform(-np.pi, np.pi, n)
    direction = np.where(anywhere, direction, rng.laplace(0, rules.sideways, n))

    middle = (np.arange(_STEPS) + 0.5) * _STEP_SECONDS
    way = np.maximum(speed[:, None] + acceleration[:, None] * middle, 0.0) * _STEP_SECONDS
    angle = direction[:, None] + rate[:, None] * middle
    x, y = np.cumsum(way * np.cos(angle), axis=1), np.cumsum(way * np.sin(angle), axis=1)
    return np.stack([x, y, rate[:, None] * (middle + _STEP_SECONDS / 2)], axis=-1)


def _from_bands(bands: Bands, n: int, rng: np.random.Generator) -> Float64Array:
    shares, lowest, highest = np.array(bands, dtype=np.float64).T
    band = rng.choice(len(bands), n, p=shares / shares.sum())
    values: Float64Array = rng.uniform(lowest[band], highest[band])
    return values
