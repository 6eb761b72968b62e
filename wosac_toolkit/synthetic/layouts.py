"""Kinds of places, drawn at random: what roads meet where, how wide, and who has right of way.

A layout lies around the origin of a local frame; the scene moves it to the global frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wosac_toolkit.scenario import Float64Array, LaneType
from wosac_toolkit.synthetic import curves
from wosac_toolkit.synthetic.road_network import (
    STRAIGHT_AT_JUNCTION,
    Control,
    JunctionPlan,
    Layout,
    Profile,
    RoadPlan,
    Surface,
)

ORIGIN = np.zeros(2)


def sample_layout(rng: np.random.Generator) -> Layout:
    """One of `LAYOUTS`, drawn by their weights."""
    kinds = list(LAYOUTS)
    weights = np.array([LAYOUTS[kind][0] for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    return LAYOUTS[kind][1](rng)


def arterial(rng: np.random.Generator) -> Profile:
    """Two or three lanes each way, often with turning lanes in a centre strip."""
    strip = rng.random() < 0.75
    return Profile(
        lanes=int(rng.integers(2, 4)),
        lane_width=float(rng.uniform(3.4, 3.7)),
        strip=float(rng.uniform(3.5, 4.5)) if strip else 0.0,
        raised=bool(rng.random() < 0.7),
        bike=1.7 if rng.random() < 0.35 else 0.0,
        speed_mph=float(rng.choice([35.0, 40.0, 45.0])),
    )


def street(rng: np.random.Generator) -> Profile:
    """One lane each way, often with parked cars."""
    parking = rng.random() < 0.65
    return Profile(
        lanes=1,
        lane_width=float(rng.uniform(3.4, 3.9)),
        bike=1.7 if rng.random() < 0.3 else 0.0,
        parking=2.4 if parking else 0.0,
        speed_mph=float(rng.choice([25.0, 25.0, 30.0])),
    )


def collector(rng: np.random.Generator) -> Profile:
    """Between the two."""
    if rng.random() < 0.5:
        strip = float(rng.uniform(3.5, 4.0)) if rng.random() < 0.5 else 0.0
        return replace(street(rng), strip=strip, raised=False, speed_mph=30.0)
    parking = 2.4 if rng.random() < 0.4 else 0.0
    return replace(arterial(rng), lanes=2, parking=parking, speed_mph=30.0)


def freeway(rng: np.random.Generator) -> Profile:
    """Two to four lanes each way around an island, no sidewalk."""
    return Profile(
        lanes=int(rng.integers(2, 5)),
        lane_width=3.7,
        strip=3.0,
        gutter=2.0,
        sidewalk=False,
        speed_mph=float(rng.choice([55.0, 60.0, 65.0])),
        lane_type=LaneType.FREEWAY,
    )


def _arm(
    rng: np.random.Generator,
    origin: Float64Array,
    heading: float,
    total: float | None = None,
    most: float = 35.0,
    far_straight: float = 0.0,
) -> Float64Array:
    """The axis of an arm that leaves a junction and may bend by up to `most` degrees."""
    total = float(rng.uniform(100.0, 150.0)) if total is None else total
    straight = (STRAIGHT_AT_JUNCTION, far_straight)
    # A mean radius of 90 m at least, so that a curve is driven without braking hard.
    most = min(np.radians(most), (total - sum(straight)) / 90.0)
    turn = rng.uniform(-most, most) if rng.random() < 0.6 else 0.0
    return curves.bend(origin, heading, total, float(turn), straight)


def corridor(rng: np.random.Generator) -> Layout:
    """One road without a junction, straight or curved."""
    kinds: list[Callable[[np.random.Generator], Profile]] = [arterial, freeway, collector, street]
    profile = kinds[int(rng.choice(4, p=[0.4, 0.25, 0.2, 0.15]))](rng)
    most = {LaneType.FREEWAY: 25.0}.get(profile.lane_type, 75.0)
    turn = np.radians(rng.uniform(-most, most)) if rng.random() < 0.7 else 0.0
    total = float(rng.uniform(240.0, 320.0))
    axis = curves.bend(ORIGIN, 0.0, total, float(turn), (20.0, 20.0))
    return Layout("corridor", (RoadPlan(profile, axis - axis[len(axis) // 2]),))


def _cross(
    rng: np.random.Generator, name: str, main: Profile, side: Profile, control: Control
) -> Layout:
    skew = np.radians(rng.uniform(-15.0, 15.0))
    headings = [0.0, np.pi / 2 + skew, np.pi, 3 * np.pi / 2 + skew]
    roads = tuple(
        RoadPlan(profile, _arm(rng, ORIGIN, float(heading)), start=0)
        for heading, profile in zip(headings, (main, side, main, side), strict=True)
    )
    crosswalks = tuple(r for r in range(4) if rng.random() < 0.85)
    return Layout(name, roads, (JunctionPlan(ORIGIN, control, (0, 2), crosswalks),))


def four_way_signal(rng: np.random.Generator) -> Layout:
    """Two roads that cross at traffic lights."""
    side = arterial(rng) if rng.random() < 0.4 else collector(rng)
    return _cross(rng, "four_way_signal", arterial(rng), side, Control.SIGNAL)


def four_way_stop(rng: np.random.Generator) -> Layout:
    """Two streets that cross; all stop, or those on the minor street."""
    control = Control.ALL_WAY_STOP if rng.random() < 0.6 else Control.MINOR_STOP
    main = collector(rng) if rng.random() < 0.5 else street(rng)
    return _cross(rng, "four_way_stop", main, street(rng), control)


def tee(rng: np.random.Generator) -> Layout:
    """A road and a stem that ends at it: a stop sign, or traffic lights."""
    signal = rng.random() < 0.35
    main = arterial(rng) if signal or rng.random() < 0.4 else collector(rng)
    stem = replace(collector(rng) if signal else street(rng), strip=0.0)
    roads = (
        RoadPlan(main, _arm(rng, ORIGIN, 0.0), start=0),
        RoadPlan(main, _arm(rng, ORIGIN, np.pi), start=0),
        RoadPlan(stem, _arm(rng, ORIGIN, np.pi / 2 + np.radians(rng.uniform(-15, 15))), start=0),
    )
    crosswalks = (2, 0) if signal or rng.random() < 0.3 else (2,)
    control = Control.SIGNAL if signal else Control.MINOR_STOP
    return Layout("tee", roads, (JunctionPlan(ORIGIN, control, (0, 1), crosswalks),))


def two_junctions(rng: np.random.Generator) -> Layout:
    """Traffic lights and, further along the main road, a side street or more lights."""
    main, side = arterial(rng), collector(rng)
    total = float(rng.uniform(135.0, 175.0))
    link = _arm(rng, ORIGIN, 0.0, total, 15.0, far_straight=STRAIGHT_AT_JUNCTION)
    there = link[-1]
    onward = float(curves.headings(link)[-1])
    second = Control.SIGNAL if rng.random() < 0.4 else Control.MINOR_STOP
    branch = replace(collector(rng) if second == Control.SIGNAL else street(rng), strip=0.0)
    roads = [
        RoadPlan(main, link, start=0, end=1),
        RoadPlan(main, _arm(rng, ORIGIN, np.pi, 110.0), start=0),
        RoadPlan(side, _arm(rng, ORIGIN, np.pi / 2, 100.0, 15.0), start=0),
        RoadPlan(side, _arm(rng, ORIGIN, -np.pi / 2, 100.0, 15.0), start=0),
        RoadPlan(main, _arm(rng, there, onward, 100.0), start=1),
        RoadPlan(branch, _arm(rng, there, onward + np.pi / 2, 90.0, 10.0), start=1),
    ]
    if rng.random() < 0.5:
        roads.append(RoadPlan(branch, _arm(rng, there, onward - np.pi / 2, 90.0, 10.0), start=1))
    junctions = (
        JunctionPlan(ORIGIN, Control.SIGNAL, (0, 1), (0, 1, 2, 3)),
        JunctionPlan(there, second, (0, 4), (5,)),
    )
    return Layout("two_junctions", tuple(roads), junctions)


def overpass(rng: np.random.Generator) -> Layout:
    """A freeway on a bridge above a road, or above an arm of a junction."""
    grounds: list[Callable[[np.random.Generator], Layout]] = [corridor, four_way_signal, tee]
    below = grounds[int(rng.choice(3, p=[0.3, 0.4, 0.3]))](rng)
    if below.name == "corridor":
        roads = (replace(below.roads[0], profile=arterial(rng)),)
        below = replace(below, roads=roads)
    axis = below.roads[0].axis
    at = len(axis) // 2 if below.name == "corridor" else int(rng.integers(75, 90))
    heading = float(curves.headings(axis)[at] + np.pi / 2 + np.radians(rng.uniform(-20.0, 20.0)))
    deck = curves.bend(ORIGIN, 0.0, float(rng.uniform(220.0, 280.0)), 0.0)
    deck = deck - deck[len(deck) // 2]
    c, s = np.cos(heading), np.sin(heading)
    deck = np.stack([c * deck[:, 0] - s * deck[:, 1], s * deck[:, 0] + c * deck[:, 1]], axis=-1)
    bridge = RoadPlan(freeway(rng), deck + axis[at], surface=Surface.DECK)
    return Layout("overpass", (*below.roads, bridge), below.junctions)


LAYOUTS: dict[str, tuple[float, Callable[[np.random.Generator], Layout]]] = {
    "corridor": (0.14, corridor),
    "four_way_signal": (0.26, four_way_signal),
    "four_way_stop": (0.16, four_way_stop),
    "tee": (0.16, tee),
    "two_junctions": (0.16, two_junctions),
    "overpass": (0.12, overpass),
}
