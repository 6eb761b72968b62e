"""Pictures of a scene from above: the map, the logged and the simulated boxes, and events.

`draw_scene` gives one picture as the bytes of a PNG; `render_scene` writes a PNG of one or several
moments, or a GIF or MP4 over time. What is logged is dashed and hollow, what is simulated is solid
and filled; signals and events differ in shape as well as in colour. Colours are those of Okabe and
Ito, which readers with any kind of colour vision tell apart.

Needs Matplotlib, of which neither `pyplot` nor global settings are touched, so that pictures can be
drawn in any process and thread, and the same input gives the same picture.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from wosac_toolkit.baselines.policy import STEP_SECONDS
from wosac_toolkit.errors import RolloutsError, WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.scenario import (
    BoolArray,
    Float64Array,
    Int64Array,
    LaneType,
    MapFeatureKind,
    Scenario,
    SignalState,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.lines import Line2D
    from PIL.Image import Image

    from wosac_toolkit.explain import Event
    from wosac_toolkit.rollouts import Rollouts

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".gif", ".mp4")


def draw_scene(
    scenario: Scenario,
    rollouts: Rollouts | None = None,
    *,
    events: Sequence[Event] = (),
    rollout: int | None = None,
    at: float | None = None,
    title: str = "",
    width: int = 960,
    height: int = 720,
    scale: float = 1.0,
    legend: bool = True,
) -> bytes:
    """A picture of a scene at one moment, with the paths until then.

    Args:
        scenario: the scene.
        rollouts: of the scene; None draws the log alone.
        events: to be marked: `events` and `log_events` of an `Explanation`.
        rollout: the one to draw; None draws all, see-through.
        at: seconds after the current step; None for the end.
        title: above the picture; the scene's id where empty.
        width, height: pixels, at least 100.
        scale: for dense screens: with 2 all is twice as large, in twice as many pixels.
        legend: below the picture, where there is room for it.

    Returns:
        The bytes of a PNG, on a light background.

    Raises:
        RolloutsError: the rollouts are of another scene, or lack the one to draw.
        WosacError: a moment outside of the scene, or a picture too small.
    """
    scene = _scene(scenario, rollouts, rollout, events)
    style = _Style(title or f"scenario {scenario.scenario_id}", width, height, scale, legend)
    return _png(next(_pictures(scene, style, [[_frame_at(at, scene)]])))


def render_scene(
    path: str | os.PathLike[str],
    scenario: Scenario,
    rollouts: Rollouts | None = None,
    *,
    events: Sequence[Event] = (),
    rollout: int | None = None,
    at: Sequence[float] = (),
    title: str = "",
    width: int = 1200,
    height: int = 900,
) -> None:
    """Write a picture or a film of a scene; the file appears whole or not at all.

    Args:
        path: a `.png`; a `.gif` or `.mp4` plays in real time.
        scenario, rollouts, events, rollout, title: see `draw_scene`.
        at: moments, in seconds after the current step: a PNG has a panel for each, or one of the
            end where there are none. Not for films.
        width, height: pixels of the whole, at least 100.

    Raises:
        WosacError: another suffix; a moment outside of the scene, or of a film; a picture too
            small; `ffmpeg`, which writes MP4, is not there or fails.
        RolloutsError: see `draw_scene`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise WosacError(
            f"cannot be drawn as {suffix or 'a file without suffix'}",
            where=str(path),
            mend=f"give a name that ends in {', '.join(SUFFIXES)}",
        )
    if at and suffix != ".png":
        raise WosacError("a film shows all moments", where=str(path), mend="draw a .png of some")
    ffmpeg = _find_ffmpeg(path) if suffix == ".mp4" else ""
    scene = _scene(scenario, rollouts, rollout, events)
    style = _Style(title or f"scenario {scenario.scenario_id}", width, height, 1.0, True)
    if suffix == ".png":
        moments = [_frame_at(moment, scene) for moment in at] or [_frame_at(None, scene)]
        with atomic_write(path) as stream:
            stream.write(_png(next(_pictures(scene, style, [moments]))))
        return
    film = _pictures(scene, style, [[frame] for frame in range(scene.n_frames)])
    if suffix == ".gif":
        end = scene.n_frames - 1
        _write_gif(path, film, _pictures(scene, style, [[0], [end // 2], [end]]))
    else:
        _write_mp4(path, film, ffmpeg)


# --------------------------------------------------------------------------------------------------
# What there is to draw


@dataclass(frozen=True, eq=False, slots=True)
class _Scene:
    """A scene in metres from `origin`, over F frames, the first of which is the current step.

    Attributes:
        scenario: the scene.
        origin: float64 [2], the middle of the picture in the scenario's global frame.
        reach: float64 [2], from there to its borders at least.
        rows: int64 [A], the tracks that are drawn.
        size: float64 [A, 2], length and width.
        evaluated: bool [A].
        logged: float64 [A, F, 3], x, y, heading.
        logged_valid: bool [A, F].
        simulated: float64 [R, A, F, 3], NaN for those not simulated.
        n_rollouts: of which the drawn are some.
        events: of the log and of the rollouts drawn.
    """

    scenario: Scenario
    origin: Float64Array
    reach: Float64Array
    rows: Int64Array
    size: Float64Array
    evaluated: BoolArray
    logged: Float64Array
    logged_valid: BoolArray
    simulated: Float64Array
    n_rollouts: int
    events: tuple[Event, ...]

    @property
    def n_frames(self) -> int:
        return int(self.logged.shape[1])


_MARGIN_M = 14.0
_LEAST_REACH_M = 28.0


def _scene(
    scenario: Scenario, rollouts: Rollouts | None, rollout: int | None, events: Sequence[Event]
) -> _Scene:
    tracks, now = scenario.tracks, scenario.current_time_index
    if rollouts is not None and rollouts.scenario_id != scenario.scenario_id:
        raise RolloutsError(
            f"these are rollouts of scenario {rollouts.scenario_id}",
            where=f"scenario {scenario.scenario_id}",
        )
    n_rollouts = 0 if rollouts is None else rollouts.n_rollouts
    if rollout is not None and not 0 <= rollout < n_rollouts:
        raise RolloutsError(
            f"there is no rollout {rollout}",
            where=f"scenario {scenario.scenario_id}",
            mend=f"the {n_rollouts} rollouts count from 0",
        )
    drawn = list(range(n_rollouts)) if rollout is None else [rollout]
    n_frames = scenario.n_steps - now if rollouts is None else rollouts.n_steps + 1

    rows = np.flatnonzero(tracks.valid[:, now:].any(axis=1)).astype(np.int64)
    n_logged = min(scenario.n_steps - now, n_frames)
    logged_valid = np.zeros((len(rows), n_frames), np.bool_)
    logged_valid[:, :n_logged] = tracks.valid[rows, now : now + n_logged]
    logged = np.full((len(rows), n_frames, 3), np.nan)
    logged[:, :n_logged, :2] = tracks.position[rows, now : now + n_logged, :2]
    logged[:, :n_logged, 2] = tracks.heading[rows, now : now + n_logged]
    logged[~logged_valid] = np.nan
    # Boxes keep the size that they have when the simulation starts, or when they appear.
    first = logged_valid.argmax(axis=1)
    size = tracks.size[rows, now + first, :2].astype(np.float64)
    evaluated = np.isin(rows, scenario.evaluated_agents())

    simulated = np.full((len(drawn), len(rows), n_frames, 3), np.nan)
    if rollouts is not None:
        row_of = {int(tracks.object_ids[row]): i for i, row in enumerate(rows.tolist())}
        for column, object_id in enumerate(rollouts.object_ids.tolist()):
            if object_id in row_of:
                row = row_of[object_id]
                simulated[:, row, 0] = logged[row, 0]
                simulated[:, row, 1:] = rollouts.states[drawn, column][..., [0, 1, 3]]

    origin, reach = _extent(logged[evaluated], simulated[:, evaluated])
    logged[..., :2] -= origin
    simulated[..., :2] -= origin
    return _Scene(
        scenario=scenario,
        origin=origin,
        reach=reach,
        rows=rows,
        size=size,
        evaluated=evaluated,
        logged=logged,
        logged_valid=logged_valid,
        simulated=simulated,
        n_rollouts=n_rollouts,
        events=tuple(e for e in events if e.rollout is None or e.rollout in drawn),
    )


def _extent(logged: Float64Array, simulated: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The middle of what the evaluated agents cover, and how far it reaches.

    A few simulated states that lie far off do not make all else small.
    """
    here = logged[..., :2].reshape(-1, 2)
    here = here[np.isfinite(here).all(axis=1)]
    there = simulated[..., :2].reshape(-1, 2)
    there = there[np.isfinite(there).all(axis=1)]
    if not len(here):
        return np.zeros(2), np.full(2, _LEAST_REACH_M)
    low, high = here.min(axis=0), here.max(axis=0)
    if len(there):
        farther = high - low + 50
        spread = np.quantile(there, [0.02, 0.98], axis=0)
        low = np.minimum(low, np.maximum(spread[0], low - farther))
        high = np.maximum(high, np.minimum(spread[1], high + farther))
    return (low + high) / 2, np.maximum((high - low) / 2 + _MARGIN_M, _LEAST_REACH_M)


def _frame_at(at: float | None, scene: _Scene) -> int:
    end = (scene.n_frames - 1) * STEP_SECONDS
    if at is None:
        return scene.n_frames - 1
    if not 0 <= at <= end + 1e-9:
        raise WosacError(
            f"there is no moment {at:g} s after the current step",
            where=f"scenario {scene.scenario.scenario_id}",
            mend=f"give one from 0 to {end:g}",
        )
    return round(at / STEP_SECONDS)


# --------------------------------------------------------------------------------------------------
# How it is drawn

# What else Matplotlib would take from the user's settings.
_PLAIN_TEXT: dict[str, Any] = {"usetex": False, "parse_math": False, "antialiased": True}
_PLAIN_PATCH: dict[str, Any] = {"antialiased": True, "linewidth": 0.8}
_PLAIN_LINE: dict[str, Any] = {
    "antialiased": True,
    "fillstyle": "full",
    "solid_capstyle": "butt",
    "solid_joinstyle": "miter",
    "dash_capstyle": "butt",
}

_LEAST_PX = 100
_DPI = 100  # A point of type is then 100 / 72 pixels.
_TITLE_PX, _LEGEND_ROW_PX, _LEGEND_ENTRY_PX = 26, 18, 168

_INK, _GREY, _PAPER = "#1a1a1a", "#6f6f6f", "#ffffff"
_LANE, _BIKE_LANE, _CENTRE_LINE, _ROAD_EDGE = "#ececec", "#e3efe3", "#d2d2d2", "#4d4d4d"
_WHITE_LINE, _YELLOW_LINE = "#a9a9a9", "#c9a000"
_CROSSWALK, _SPEED_BUMP, _DRIVEWAY = "#cfd8e6", "#e2d5bf", "#f4f1ea"
_SIMULATED, _BYSTANDER = "#0072b2", "#56b4e9"
_STOP_SIGN = "#a6261d"

_LANE_WIDTH_M, _BIKE_LANE_WIDTH_M = 3.4, 1.6
_LEAST_BOX_PX = 4.0
_THINNED_M = 0.7
_DASHES, _DOTS = (0, (3.5, 2.0)), (0, (1.0, 1.5))

# State of a signal -> what it is called, shape, colour.
_STOP, _CAUTION, _GO = (
    ("signal: stop", "s", "#d55e00"),
    ("signal: caution", "^", "#f0e442"),
    ("signal: go", "o", "#009e73"),
)
_SIGNALS = {
    SignalState.ARROW_STOP: _STOP,
    SignalState.STOP: _STOP,
    SignalState.FLASHING_STOP: _STOP,
    SignalState.ARROW_CAUTION: _CAUTION,
    SignalState.CAUTION: _CAUTION,
    SignalState.FLASHING_CAUTION: _CAUTION,
    SignalState.ARROW_GO: _GO,
    SignalState.GO: _GO,
}
_UNKNOWN_SIGNAL = ("signal: unknown", "o", _PAPER)

# Kind of event -> what it is called, shape, colour.
_EVENTS = {
    "collision": ("collision", "X", "#d55e00"),
    "offroad": ("off the road", "D", "#cc79a7"),
    "red_light": ("red light run", "*", "#e69f00"),
}

_COLOURS = {
    _INK, _GREY, _PAPER, _LANE, _BIKE_LANE, _CENTRE_LINE, _ROAD_EDGE, _WHITE_LINE, _YELLOW_LINE,
    _CROSSWALK, _SPEED_BUMP, _DRIVEWAY, _SIMULATED, _BYSTANDER, _STOP_SIGN,
    *(colour for *_, colour in (_STOP, _CAUTION, _GO, *_EVENTS.values())),
}  # fmt: skip

# `RoadLine.RoadLineType`: broken lines, and lines that are yellow.
_BROKEN, _YELLOW = (1, 4, 5), (4, 5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class _Style:
    """How large a picture is, and what stands around it; see `draw_scene`."""

    title: str
    width: int
    height: int
    scale: float
    legend: bool


@dataclass(frozen=True, slots=True)
class _Panel:
    """A view of the scene in a picture.

    Attributes:
        axes: whose data are metres from the scene's origin.
        half: metres from the middle to the borders, in x and y.
        metre: pixels, before they are scaled.
    """

    axes: Axes
    half: tuple[float, float]
    metre: float

    def points(self, metres: float) -> float:
        """A length on the ground in points of type."""
        return metres * self.metre * 72 / _DPI


def _pictures(scene: _Scene, style: _Style, pictures: Sequence[Sequence[int]]) -> Iterator[Pixels]:
    """Pictures, uint8 [height, width, 4], of one panel or more, given by the frames of the panels.

    What stands still is drawn once.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if min(style.width, style.height) < _LEAST_PX:
        raise WosacError(
            f"a picture of {style.width} x {style.height} pixels shows nothing",
            mend=f"at least {_LEAST_PX} each way",
        )
    figure = Figure(
        figsize=(style.width / _DPI, style.height / _DPI),
        dpi=_DPI * style.scale,
        facecolor=_PAPER,
        edgecolor=_PAPER,
        frameon=True,
    )
    figure.set_layout_engine("none")
    canvas = FigureCanvasAgg(figure)
    n_columns = max(1, style.width // _LEGEND_ENTRY_PX)
    entries = _legend_entries(scene) if style.legend else []
    if -(-len(entries) // n_columns) * _LEGEND_ROW_PX > style.height / 3:
        entries = []
    panels = _panels(figure, scene, style, len(pictures[0]), -(-len(entries) // n_columns))
    for panel in panels:
        _draw_map(panel, scene)
        _draw_scale_bar(panel)
    figure.text(
        8 / style.width, 1 - 13 / style.height, style.title,
        color=_INK, va="center", ha="left", fontproperties=_font(9), **_PLAIN_TEXT,
    )  # fmt: skip
    if entries:
        legend = figure.legend(
            handles=entries, loc="lower left", bbox_to_anchor=(0, 0), ncols=n_columns,
            prop=_font(7.5), labelcolor=_INK, frameon=False, numpoints=1, markerscale=1.0,
            handlelength=2.2, handleheight=0.9, handletextpad=0.6, labelspacing=0.45,
            columnspacing=1.6, borderpad=0.5, borderaxespad=0.3,
        )  # fmt: skip
        # The legend has copies, to which not all is handed on.
        for text in legend.get_texts():
            text.set(**_PLAIN_TEXT)
        for handle in legend.legend_handles:
            if isinstance(handle, (Line2D, Patch)):
                handle.set_antialiased(True)
    canvas.draw()  # type: ignore[no-untyped-call]
    still = canvas.copy_from_bbox(figure.bbox)  # type: ignore[attr-defined,no-untyped-call]
    for frames in pictures:
        canvas.restore_region(still)  # type: ignore[attr-defined,no-untyped-call]
        for panel, frame in zip(panels, frames, strict=True):
            for artist in _movers(panel, scene, frame):
                panel.axes.draw_artist(artist)
                artist.remove()
        yield np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]


def _font(points: float, weight: str = "normal") -> FontProperties:
    from matplotlib.font_manager import FontProperties

    # The one that comes with Matplotlib.
    return FontProperties(
        family="DejaVu Sans", size=points, weight=weight,
        style="normal", variant="normal", stretch="normal",
    )  # fmt: skip


def _panels(
    figure: Figure, scene: _Scene, style: _Style, n_panels: int, n_legend_rows: int
) -> list[_Panel]:
    """Panels of one size, in as many columns as let the scene be largest."""
    from matplotlib.patches import Rectangle

    below = 6 + n_legend_rows * _LEGEND_ROW_PX
    width, height = style.width - 8, style.height - _TITLE_PX - below
    gap = 4

    def layout(n_columns: int) -> tuple[float, int, int, float, float]:
        n_rows = -(-n_panels // n_columns)
        w, h = (width - gap * (n_columns - 1)) / n_columns, (height - gap * (n_rows - 1)) / n_rows
        return min(w / scene.reach[0], h / scene.reach[1]) / 2, n_columns, n_rows, w, h

    metre, n_columns, n_rows, w, h = max(layout(n) for n in range(1, n_panels + 1))
    half = (w / metre / 2, h / metre / 2)
    panels = []
    for number in range(n_panels):
        row, column = divmod(number, n_columns)
        left, bottom = 4 + column * (w + gap), below + (n_rows - 1 - row) * (h + gap)
        axes = figure.add_axes(
            (left / style.width, bottom / style.height, w / style.width, h / style.height)
        )
        axes.set_axis_off()
        axes.set_xlim(-half[0], half[0])
        axes.set_ylim(-half[1], half[1])
        border = Rectangle((0, 0), 1, 1, transform=axes.transAxes, clip_on=False)
        border.set(facecolor="none", edgecolor="#bdbdbd", zorder=10, **_PLAIN_PATCH)
        axes.add_patch(border)
        panels.append(_Panel(axes, half, metre))
    return panels


# --------------------------------------------------------------------------------------------------
# What stands still


def _draw_map(panel: _Panel, scene: _Scene) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    road_map = scene.scenario.road_map
    features = _features_in_view(panel, scene)
    kinds, types = road_map.kinds[features], road_map.types[features]
    shapes = [road_map.polyline(row)[:, :2] - scene.origin for row in features.tolist()]

    def chosen(wanted: BoolArray, stride: int = 1) -> list[Float64Array]:
        return [_thinned(shapes[i], stride) for i in np.flatnonzero(wanted).tolist()]

    def lines(wanted: BoolArray, colour: str, width: float, stride: int, dashes: Any) -> None:
        panel.axes.add_collection(
            LineCollection(
                chosen(wanted, stride), colors=colour, linewidths=width, linestyles=dashes,
                antialiaseds=True, capstyle="round" if dashes == "solid" else "butt",
                joinstyle="round",
            ),
            autolim=False,
        )  # fmt: skip

    def areas(kind: MapFeatureKind, colour: str) -> None:
        polygons = PolyCollection(
            chosen(kinds == kind), facecolors=colour, edgecolors="none", linewidths=0,
            antialiaseds=True,
        )  # fmt: skip
        panel.axes.add_collection(polygons, autolim=False)

    is_lane = kinds == MapFeatureKind.LANE
    is_bike_lane = is_lane & (types == LaneType.BIKE_LANE)
    areas(MapFeatureKind.DRIVEWAY, _DRIVEWAY)
    lines(is_bike_lane, _BIKE_LANE, panel.points(_BIKE_LANE_WIDTH_M), 3, "solid")
    lines(is_lane & ~is_bike_lane, _LANE, panel.points(_LANE_WIDTH_M), 3, "solid")
    areas(MapFeatureKind.CROSSWALK, _CROSSWALK)
    areas(MapFeatureKind.SPEED_BUMP, _SPEED_BUMP)
    lines(is_lane, _CENTRE_LINE, 0.5, 3, "solid")
    is_line = kinds == MapFeatureKind.ROAD_LINE
    yellow, broken = np.isin(types, _YELLOW), np.isin(types, _BROKEN)
    for is_yellow in (False, True):
        for is_broken in (False, True):
            wanted = is_line & (yellow == is_yellow) & (broken == is_broken)
            colour = _YELLOW_LINE if is_yellow else _WHITE_LINE
            lines(wanted, colour, 0.8, 2, (0, (4, 4)) if is_broken else "solid")
    lines(kinds == MapFeatureKind.ROAD_EDGE, _ROAD_EDGE, 1.1, 2, "solid")
    signs = chosen(kinds == MapFeatureKind.STOP_SIGN)
    if signs:
        panel.axes.add_line(_markers(np.concatenate(signs), "8", _STOP_SIGN, 6.5))


def _features_in_view(panel: _Panel, scene: _Scene) -> Int64Array:
    """The rows of the map features that come near the panel."""
    road_map = scene.scenario.road_map
    rows = np.flatnonzero(np.diff(road_map.point_offsets))
    if not len(rows):
        return rows.astype(np.int64)
    points = road_map.points[:, :2] - scene.origin
    starts = road_map.point_offsets[rows]
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    reach = np.array(panel.half) + _LANE_WIDTH_M
    return rows[((low < reach) & (high > -reach)).all(axis=1)].astype(np.int64)


def _thinned(points: Float64Array, stride: int) -> Float64Array:
    """Every `stride`-th point, and the last, where they are as close as WOMD's half a metre."""
    if len(points) <= stride or np.hypot(*(points[1] - points[0])) > _THINNED_M:
        return points
    return np.concatenate([points[:-1:stride], points[-1:]])


def _draw_scale_bar(panel: _Panel) -> None:
    from matplotlib.lines import Line2D

    longest = panel.half[0] * 0.45
    length = max((m for m in (1, 2, 5, 10, 20, 50, 100, 200, 500) if m <= longest), default=1)
    pixel = 1 / panel.metre
    x, y = -panel.half[0] + 12 * pixel, -panel.half[1] + 12 * pixel
    tick = 4 * pixel
    for colour, width in ((_PAPER, 4.0), (_INK, 1.4)):
        bar = Line2D(
            [x, x, x + length, x + length], [y + tick, y, y, y + tick],
            color=colour, linewidth=width, linestyle="solid", marker="None", zorder=9,
            **{**_PLAIN_LINE, "solid_capstyle": "projecting"},
        )  # fmt: skip
        panel.axes.add_line(bar)
    _text(panel, x + length / 2, y + 3 * pixel, f"{length} m", va="bottom", ha="center", zorder=9)


def _legend_entries(scene: _Scene) -> list[Artist]:
    """What is in the scene, as handles of a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def line(label: str, colour: str, width: float) -> Artist:
        return Line2D(
            [], [], color=colour, linewidth=width, linestyle="solid", marker="None", label=label,
            **_PLAIN_LINE,
        )  # fmt: skip

    def patch(label: str, face: str, edge: str = "none", **more: Any) -> Artist:
        return Patch(facecolor=face, edgecolor=edge, label=label, **{**_PLAIN_PATCH, **more})

    road_map, lights = scene.scenario.road_map, scene.scenario.traffic_lights
    entries: list[Artist] = [
        patch("logged, evaluated", "none", _INK, linewidth=1.2, linestyle=_DASHES),
        patch("logged, others", "none", _GREY, linestyle=_DASHES),
    ]
    if len(scene.simulated):
        entries += [
            patch("simulated, evaluated", _SIMULATED, _INK),
            patch("simulated, others", _BYSTANDER, _GREY),
        ]
    for kind, (label, shape, colour) in _EVENTS.items():
        of_kind = [event for event in scene.events if event.kind == kind]
        n = len({event.rollout for event in of_kind} - {None})
        if n:
            of_all = f" ({n} of {scene.n_rollouts} rollouts)" if len(scene.simulated) > 1 else ""
            entries.append(_markers(np.empty((0, 2)), shape, colour, 7, label=label + of_all))
        if any(event.rollout is None for event in of_kind):
            hollow = _markers(np.empty((0, 2)), shape, "none", 6.5, colour, label + " (log)")
            entries.append(hollow)
    seen = {_SIGNALS.get(SignalState(state), _UNKNOWN_SIGNAL) for state in set(lights.states)}
    for label, shape, colour in (_STOP, _CAUTION, _GO, _UNKNOWN_SIGNAL):
        if (label, shape, colour) in seen:
            entries.append(_markers(np.empty((0, 2)), shape, colour, 6, _INK, label))
    kinds = set(road_map.kinds.tolist())
    if MapFeatureKind.STOP_SIGN in kinds:
        entries.append(_markers(np.empty((0, 2)), "8", _STOP_SIGN, 6.5, label="stop sign"))
    entries += [line("road edge", _ROAD_EDGE, 1.1), line("lane", _LANE, 5)]
    if MapFeatureKind.CROSSWALK in kinds:
        entries.append(patch("crosswalk", _CROSSWALK))
    if MapFeatureKind.SPEED_BUMP in kinds:
        entries.append(patch("speed bump", _SPEED_BUMP))
    if MapFeatureKind.DRIVEWAY in kinds:
        entries.append(patch("driveway", _DRIVEWAY))
    return entries


# --------------------------------------------------------------------------------------------------
# What moves


def _movers(panel: _Panel, scene: _Scene, frame: int) -> Iterator[Artist]:
    """The artists of a frame, the lowest first, in the panel's axes."""
    from matplotlib.collections import LineCollection

    single = len(scene.simulated) == 1
    others = ~scene.evaluated
    logged, simulated = scene.logged[:, frame], scene.simulated[:, :, frame]

    def paths(tracks: Float64Array, colour: Any, width: float, dashes: Any) -> Artist:
        """Paths of tracks [..., F, 3] until this frame."""
        ways = tracks[..., : frame + 1, :2].reshape(-1, frame + 1, 2)
        kept = [way[np.isfinite(way[:, 0])] for way in ways]
        collection = LineCollection(
            [way for way in kept if len(way) > 1], colors=colour, linewidths=width,
            linestyles=dashes, antialiaseds=True, capstyle="butt", joinstyle="round",
        )  # fmt: skip
        return panel.axes.add_collection(collection, autolim=False)

    def boxes(states: Float64Array, agents: BoolArray, *look: Any, **more: Any) -> Iterator[Artist]:
        """Boxes of some agents of `states` [..., A, 3]."""
        chosen = states[..., agents, :]
        size = np.broadcast_to(scene.size[agents], (*chosen.shape[:-1], 2))
        return _boxes(panel, chosen.reshape(-1, 3), size.reshape(-1, 2), *look, **more)

    see_through = 1.0 if single else max(0.1, 1.2 / max(1, len(scene.simulated)) ** 0.5)
    yield from boxes(logged, others, "none", _GREY, 0.7, _DASHES)
    yield from boxes(
        simulated, others, _rgba(_BYSTANDER, 0.55 * see_through), _rgba(_GREY, 0.8 * see_through),
        0.5, "solid",
    )  # fmt: skip
    yield paths(
        scene.simulated[:, scene.evaluated], _rgba(_SIMULATED, 0.9 if single else 0.35),
        1.4 if single else 0.7, "solid",
    )  # fmt: skip
    yield from boxes(
        simulated, scene.evaluated, _rgba(_SIMULATED, 0.8 * see_through),
        _rgba(_INK, 0.9 * see_through), 0.8 if single else 0.4, "solid", forward=single,
    )  # fmt: skip
    yield paths(scene.logged[scene.evaluated], _INK, 1.0, _DASHES)
    gone = scene.evaluated & ~scene.logged_valid[:, frame]
    last_seen = scene.logged[np.arange(len(gone)), _last_valid(scene.logged_valid, frame)]
    yield from boxes(last_seen, gone, "none", _INK, 0.7, _DOTS)
    yield from boxes(logged, scene.evaluated, "none", _INK, 1.2, _DASHES, forward=not single)
    yield from _signals(panel, scene, frame)
    yield from _event_markers(panel, scene, frame, 9.0 if single else 6.5)
    yield from _labels(panel, scene, frame)
    moment = f"{frame * STEP_SECONDS:.1f} s"
    x, y = panel.half[0] - 8 / panel.metre, panel.half[1] - 8 / panel.metre
    yield _text(panel, x, y, moment, va="top", ha="right", points=10, weight="bold")


def _last_valid(valid: BoolArray, frame: int) -> Int64Array:
    """Of [A, F] the last frame until this one that is valid; 0 where none is."""
    result: Int64Array = np.where(valid[:, : frame + 1], np.arange(frame + 1), 0).max(axis=1)
    return result


def _rgba(colour: str, alpha: float) -> tuple[float, ...]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, alpha


def _boxes(
    panel: _Panel,
    states: Float64Array,
    size: Float64Array,
    face: Any,
    edge: Any,
    width: float,
    dashes: Any,
    forward: bool = False,
) -> Iterator[Artist]:
    """Boxes of states [K, 3] and sizes [K, 2] that are in view, with a line to the front or not."""
    from matplotlib.collections import LineCollection, PolyCollection

    size = np.maximum(size, _LEAST_BOX_PX / panel.metre)
    # False where a state is NaN.
    seen = (np.abs(states[:, :2]) < np.array(panel.half) + size[:, :1]).all(axis=1)
    if not seen.any():
        return
    centre, heading, half = states[seen, :2], states[seen, 2:], size[seen] / 2
    along = half[:, :1] * np.concatenate([np.cos(heading), np.sin(heading)], axis=1)
    across = half[:, 1:] * np.concatenate([-np.sin(heading), np.cos(heading)], axis=1)
    corners = [along + across, across - along, -along - across, along - across]
    polygons = PolyCollection(
        centre[:, None] + np.stack(corners, axis=1), facecolors=face, edgecolors=edge,
        linewidths=width, linestyles=dashes, antialiaseds=True,
    )  # fmt: skip
    yield panel.axes.add_collection(polygons, autolim=False)
    if forward:
        colour = _INK if face == "none" else _PAPER
        lines = np.stack([centre, centre + along], axis=1)
        yield panel.axes.add_collection(
            LineCollection(
                list(lines), colors=colour, linewidths=1.0, linestyles="solid", antialiaseds=True
            ),
            autolim=False,
        )


def _signals(panel: _Panel, scene: _Scene, frame: int) -> Iterator[Artist]:
    lights = scene.scenario.traffic_lights
    step = scene.scenario.current_time_index + frame
    if step >= lights.n_steps:
        return
    rows = slice(lights.step_offsets[step], lights.step_offsets[step + 1])
    points = lights.stop_points[rows, :2] - scene.origin
    looks = [
        _SIGNALS.get(SignalState(state), _UNKNOWN_SIGNAL) for state in lights.states[rows].tolist()
    ]
    for label, shape, colour in (_UNKNOWN_SIGNAL, _GO, _CAUTION, _STOP):
        chosen = [look == (label, shape, colour) for look in looks]
        if any(chosen):
            marker = _markers(points[np.array(chosen)], shape, colour, 6, _INK)
            yield panel.axes.add_line(marker)


def _event_markers(panel: _Panel, scene: _Scene, frame: int, points: float) -> Iterator[Artist]:
    """A marker where each agent of a rollout first has an event of a kind, once it has begun."""
    agent_of = {int(scene.scenario.tracks.object_ids[row]): i for i, row in enumerate(scene.rows)}
    single = len(scene.simulated) == 1
    for kind, (_, shape, colour) in _EVENTS.items():
        places: dict[tuple[bool, bool], list[Float64Array]] = {}
        marked = set()
        for event in sorted(scene.events, key=lambda event: event.first):
            # The frame of step 0 is the one after the current step's.
            begin, end = event.first + 1, event.last + 1
            key = (event.rollout, event.object_id)
            if event.kind != kind or begin > frame or key in marked:
                continue
            marked.add(key)
            agent = agent_of[event.object_id]
            is_log = event.rollout is None
            tracks = (
                scene.logged
                if event.rollout is None
                else scene.simulated[0 if single else event.rollout]
            )
            places.setdefault((is_log, single and frame <= end), []).append(
                tracks[agent, begin, :2]
            )
        for (is_log, goes_on), where in sorted(places.items(), key=lambda item: item[0]):
            size = points * (1.3 if goes_on else 1.0)
            here = np.array(where)
            if is_log:
                yield panel.axes.add_line(_markers(here, shape, "none", size, colour))
            else:
                yield panel.axes.add_line(_markers(here, shape, colour, size))


def _markers(
    points: Float64Array,
    shape: str,
    face: str,
    size: float,
    edge: str = _PAPER,
    label: str = "",
) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D(
        points[:, 0], points[:, 1], linestyle="none", marker=shape,
        markersize=1.6 * size if shape == "*" else size,
        markerfacecolor=face, markeredgecolor=edge, markeredgewidth=1.4 if face == "none" else 0.8,
        label=label, **_PLAIN_LINE,
    )  # fmt: skip


_Room: TypeAlias = tuple[float, float, float, float]  # left, right, bottom, top

_LABEL_POINTS = 7.0
_BESIDE = ((0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8), (0, 1.1), (0, -1.1))


def _labels(panel: _Panel, scene: _Scene, frame: int) -> Iterator[Artist]:
    """The ids of the evaluated agents beside their boxes, where they hide each other least."""
    tracks = scene.scenario.tracks
    single = len(scene.simulated) == 1
    last = _last_valid(scene.logged_valid, frame)
    agents = np.flatnonzero(scene.evaluated)
    poses = scene.simulated[0, :, frame] if single else scene.logged[:, frame]
    poses = np.where(np.isnan(poses), scene.logged[np.arange(len(last)), last], poses)
    # All in pixels from here.
    centre = poses[:, :2] * panel.metre
    radius = 0.4 * scene.size.max(axis=1) * panel.metre
    width, height = panel.half[0] * panel.metre, panel.half[1] * panel.metre
    view = (-width, width, -height, height)
    # False too where an agent has not appeared yet, and is NaN.
    seen = agents[(np.abs(centre[agents]) < (width, height)).all(axis=1)]
    taken = [
        (x - r, x + r, y - r, y + r)
        for (x, y), r in zip(centre[seen].tolist(), radius[seen].tolist(), strict=True)
    ]
    for agent in seen.tolist():
        row = int(scene.rows[agent])
        text = str(tracks.object_ids[row])
        if row == scene.scenario.sdc_track_index:
            text += " SDC"
        x, y = centre[agent].tolist()
        room = _beside(x, y, float(radius[agent]) + 5, len(text), view, taken)
        taken.append(room)
        x, y = (room[0] + room[1]) / 2 / panel.metre, (room[2] + room[3]) / 2 / panel.metre
        yield _text(panel, x, y, text, va="center", ha="center")


def _beside(
    x: float, y: float, away: float, n_letters: int, view: _Room, taken: Sequence[_Room]
) -> _Room:
    """The place for a label near a point that other things and the border hide least of."""
    w, h = (0.62 * _LABEL_POINTS * _DPI / 72 * n_letters + 4) / 2, 6.5
    centres = [(x + dx * (away + w), y + dy * (away + h)) for dx, dy in _BESIDE]
    rooms = [(a - w, a + w, b - h, b + h) for a, b in centres]
    hidden = [sum(_overlap(room, t) for t in taken) - _overlap(room, view) for room in rooms]
    # Rounded, so that the first of equally good ones is taken.
    return min(zip(rooms, hidden, strict=True), key=lambda pair: round(pair[1], 3))[0]


def _overlap(a: _Room, b: _Room) -> float:
    """The area that two rectangles share."""
    wide, high = min(a[1], b[1]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[2], b[2])
    return max(wide, 0.0) * max(high, 0.0)


def _text(
    panel: _Panel,
    x: float,
    y: float,
    text: str,
    *,
    va: str,
    ha: str,
    points: float = _LABEL_POINTS,
    weight: str = "normal",
    zorder: float = 3,
) -> Artist:
    box = {"facecolor": _PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 1.0, **_PLAIN_PATCH}
    return panel.axes.text(
        x, y, text, va=va, ha=ha, color=_INK, fontproperties=_font(points, weight), bbox=box,
        zorder=zorder, clip_on=True, **_PLAIN_TEXT,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Files


def _image(pixels: Pixels) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def _png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    _image(pixels).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _write_gif(path: Path, frames: Iterator[Pixels], samples: Iterator[Pixels]) -> None:
    """Write frames with the palette of the samples: one for all, or colours would flicker."""
    from PIL import Image

    keyed = sorted(_COLOURS)
    common = _image(np.concatenate(list(samples))).quantize(
        256 - len(keyed), method=Image.Quantize.MEDIANCUT
    )
    palette = Image.new("P", (1, 1))
    # What is small is seldom among the commonest colours.
    palette.putpalette(
        [*bytes.fromhex("".join(keyed).replace("#", "")), *(common.getpalette() or [])]
    )
    images = (_image(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    with atomic_write(path) as stream:
        next(images).save(
            stream, format="GIF", save_all=True, append_images=images, loop=0,
            duration=round(STEP_SECONDS * 1000), optimize=False,
        )  # fmt: skip


def _find_ffmpeg(path: Path) -> str:
    found = shutil.which("ffmpeg")
    if found is None:
        raise WosacError(
            "writing MP4 takes ffmpeg, which is not installed",
            where=str(path),
            mend="install it (apt install ffmpeg, brew install ffmpeg), or draw a .gif",
        )
    return found


def _write_mp4(path: Path, frames: Iterator[Pixels], ffmpeg: str) -> None:
    first = next(frames)
    # The usual encoding of colours takes pictures of even sizes.
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    # Not `atomic_write`: ffmpeg writes a file of its own, in which it must be able to go back.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    command = [
        ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{width}x{height}", "-r", f"{1 / STEP_SECONDS:g}", "-i", "-", "-an",
        "-pix_fmt", "yuv420p", "-fflags", "+bitexact", "-flags:v", "+bitexact",
        "-movflags", "+faststart", str(temporary),
    ]  # fmt: skip
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            # If ffmpeg goes away, what it said comes below.
            with contextlib.suppress(BrokenPipeError):
                for frame in chain([first], frames):
                    process.stdin.write(frame[:height, :width, :3].tobytes())
            said = process.communicate()[1].decode(errors="replace").split("\n")
        if process.returncode:
            raise WosacError(
                f"ffmpeg failed with exit code {process.returncode}: {said[0][:160]}",
                where=str(path),
                mend="draw a .gif",
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
