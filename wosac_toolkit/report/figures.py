"""The figures of a report as values: places in percent, so that they fit any width.

The template draws them as inline SVG. Widths scale with the page and text does not, which is why a
figure can be read on a phone; colours follow the page's, which a picture's could not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LANE_PX = 14
_TICKS = 5

N_COLOURS = 6
N_SHAPES = 5


@dataclass(frozen=True, slots=True)
class Series:
    """What a legend names.

    Attributes:
        name: in words.
        look: names of CSS classes.
        shape: id of its marker; empty for a filled area.
    """

    name: str
    look: str
    shape: str


def model_series(number: int, name: str) -> Series:
    """The series of one of the models: another colour, shape and dashing each."""
    return Series(name, f"s{number % N_COLOURS} d{number % N_SHAPES}", f"m{number % N_SHAPES}")


def entry_series(number: int, name: str) -> Series:
    """The series of a leaderboard entry: hollow markers of the colour of quiet text."""
    return Series(name, "entry", f"m{number % N_SHAPES}")


LOGGED = Series("log", "logged", "")


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, in percent of its length."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def place(self, value: float) -> float:
        """Where a value lies, in percent; what lies outside is at the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def axis(low: float, high: float, *, percent: bool = False, signed: bool = False) -> Axis:
    """An axis over some values, with round numbers at its ticks and its ends."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    scale = 100 if percent else 1
    decimals = max(0, -math.floor(math.log10(step * scale) + 1e-9))
    low, high = first * step, last * step

    def label(value: float) -> str:
        text = f"{value * scale:{'+' if signed and value else ''}.{decimals}f}"
        return (text.replace("-", "\N{MINUS SIGN}")) + ("\N{NO-BREAK SPACE}%" if percent else "")

    ticks = tuple(
        Tick(round(100 * (k - first) / (last - first), 2), label(k * step + 0.0))
        for k in range(first, last + 1)
    )
    return Axis(low, high, ticks)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value in a row of a chart.

    Attributes:
        series: whose.
        at: its place in percent.
        low, high: the ends of its interval, None where it has none.
        kind: a bar from zero, or a marker.
        solid: whether the marker is filled.
    """

    series: Series
    at: float
    low: float | None = None
    high: float | None = None
    kind: Literal["bar", "dot"] = "dot"
    solid: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a chart: its label, and lanes of marks below each other; a heading has none."""

    label: str
    note: str
    level: int
    lanes: tuple[tuple[Mark, ...], ...]

    @property
    def height(self) -> int:
        """In pixels."""
        return LANE_PX * len(self.lanes) + 8


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows of marks on one axis.

    Attributes:
        alternative: what it shows, in a sentence or two.
        axis: of all rows.
        line: place of a vertical line, such as zero; None for none.
        rows: from above.
        legend: its series.
    """

    alternative: str
    axis: Axis
    line: float | None
    rows: tuple[Row, ...]
    legend: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A histogram as a stepped line, the `d` of a path in a box of 100 by 100."""

    series: Series
    path: str
    area: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """Histograms over the same bins.

    Attributes:
        title: above them.
        alternative: what they show, in a sentence or two.
        axis: of the bins.
        top: share at the upper border, as text.
        steps: one a series, the lowest first.
    """

    title: str
    alternative: str
    axis: Axis
    top: str
    steps: tuple[Step, ...]


def steps(
    title: str,
    alternative: str,
    edges: Sequence[float],
    shares: Sequence[tuple[Series, Sequence[float], bool]],
    horizontal: Axis,
) -> Steps:
    """Draw histograms over the same bins.

    Args:
        title, alternative: see `Steps`.
        edges: of the B bins.
        shares: (series, B shares, whether it is filled).
        horizontal: axis of the bins.
    """
    highest = max(max(values) for _, values, _ in shares)
    vertical = axis(0.0, highest, percent=True)

    def path(values: Sequence[float]) -> str:
        parts = [f"M{horizontal.place(edges[0]):g} 100"]
        for right, value in zip(edges[1:], values, strict=True):
            parts.append(f"V{100 - vertical.place(value):.4g}H{horizontal.place(right):g}")
        return "".join([*parts, "V100"])

    return Steps(
        title=title,
        alternative=alternative,
        axis=horizontal,
        top=vertical.ticks[-1].label,
        steps=tuple(Step(series, path(values), area) for series, values, area in shares),
    )
