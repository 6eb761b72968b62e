"""Half seconds of movement and pieces of map polylines as they occur in scenes."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from smart_r1.map_pieces import LONGEST_SEGMENT, SPACING, WINDOW
from smart_r1.tokens.rules import along_x, piece_points
from smart_r1.tokens.vocabulary import CLASSES
from smart_r1.tracks import TOKEN_STEPS, hold_glitches, wrap
from wosac_toolkit.scenario import Float32Array, Float64Array, MapFeatureKind, Scenario

FEWEST_STEPS = 30
"""A track with fewer valid steps is too short to be trusted."""

_LONGEST_STEP = 6.0  # metres in 0.1 s; more is a leap of the detector


def motion_segments(scenario: Scenario) -> list[Float32Array]:
    """What the road users of a scene do within half a second, from every step on.

    Left out are tracks of fewer than 30 valid steps, half seconds that are not valid throughout,
    and those with a number that is not finite or a leap of more than 6 m in a step.

    Returns:
        For each class float32 [n, 5, 3]: x, y (m) and heading (rad) after 0.1, .. 0.5 s, in the
        frame of the first pose.
    """
    tracks = scenario.tracks
    states = np.concatenate([tracks.position[..., :2], tracks.heading[..., None]], axis=-1)
    valid = tracks.valid & np.isfinite(states).all(axis=-1)
    valid &= (valid.sum(axis=1) >= FEWEST_STEPS)[:, None]
    states[~valid] = 0.0
    states[..., 2] = hold_glitches(states[..., 2], valid)
    step = np.hypot(*np.moveaxis(np.diff(states[..., :2], axis=1), -1, 0))
    goes_on = valid[:, 1:] & valid[:, :-1] & (step < _LONGEST_STEP)
    ended = np.pad(goes_on, ((0, 0), (0, TOKEN_STEPS)))
    whole = sliding_window_view(ended, TOKEN_STEPS, axis=1).all(axis=-1)
    segments = []
    for index in range(len(CLASSES)):
        track, start = np.nonzero(whole & (tracks.object_types == index + 1)[:, None])
        poses = states[track[:, None], start[:, None] + np.arange(TOKEN_STEPS + 1)]
        segments.append(_in_first_frame(poses))
    return segments


def curve_pieces(scenario: Scenario) -> Float32Array:
    """Pieces of 5 m, or less at the end, of the lanes, road edges and road lines of a scene.

    Returns:
        float32 [n, 11, 2], metres, from the origin and at first along x.
    """
    road_map = scenario.road_map
    kinds = (MapFeatureKind.LANE, MapFeatureKind.ROAD_EDGE, MapFeatureKind.ROAD_LINE)
    pieces = [np.zeros((0, WINDOW + 1, 2))]
    for row in np.flatnonzero(np.isin(road_map.kinds, kinds)):
        line = road_map.polyline(int(row))[:, :2]
        if len(line) > 1 and np.isfinite(line).all():
            pieces += _pieces_of_line(line)
    return along_x(np.concatenate(pieces))


def _in_first_frame(poses: Float64Array) -> Float32Array:
    """Poses [n, 6, 3] after the first, seen from it [n, 5, 3]."""
    x, y, heading = np.moveaxis(poses[:, 1:] - poses[:, :1], -1, 0)
    cos, sin = np.cos(poses[:, :1, 2]), np.sin(poses[:, :1, 2])
    local = [x * cos + y * sin, y * cos - x * sin, wrap(heading)]
    return np.stack(local, axis=-1).astype(np.float32)


def _pieces_of_line(line: Float64Array) -> list[Float64Array]:
    """Pieces [m, 11, 2] of a polyline, as `map_pieces` cuts it."""
    length = np.hypot(*np.diff(line, axis=0).T)
    pieces = []
    for strip in np.split(line, np.flatnonzero(length > LONGEST_SEGMENT) + 1):
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(strip, axis=0).T))])
        n_whole, rest = divmod(int(np.ceil(arc[-1] / SPACING)), WINDOW)
        has_tail = rest >= (3 if n_whole else 2)
        start = SPACING * WINDOW * np.arange(n_whole + has_tail)
        at = start[:, None] + piece_points(np.minimum(SPACING * WINDOW, arc[-1] - start))
        sampled = [np.interp(at, arc, strip[:, axis]) for axis in range(2)]
        pieces.append(np.stack(sampled, axis=-1))
    return pieces
