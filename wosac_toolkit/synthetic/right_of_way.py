"""Who is in whose way: lanes that share their beginning, and lanes that cross inside a junction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wosac_toolkit.scenario import Float64Array, Int64Array
from wosac_toolkit.synthetic.road_network import POINT_SPACING, Lane, Mode, RoadNetwork

# Half the width of the corridor that a user of a lane needs, metres.
HALF_CORRIDOR = {Mode.DRIVE: 1.4, Mode.BIKE: 0.7, Mode.WALK: 0.9}
SIBLING_DISTANCE = 2.5


@dataclass(frozen=True)
class RightOfWay:
    """Geometry of conflicts.

    Attributes:
        gated: [G] lanes that start at a gate.
        gate_of: [L] position of each lane in `gated`, -1 where it has no gate.
        clearance: [G, G]; a user of gated lane `a` is in the way of gated lane `b` until the rear
            of its box is `clearance[a, b]` metres into `a`; -inf where the two never meet.
        siblings: for each lane, the others that start where it starts, each with the distance up
            to which users of the two are in each other's way.
    """

    gated: Int64Array
    gate_of: Int64Array
    clearance: Float64Array
    siblings: tuple[tuple[tuple[int, float], ...], ...]


def right_of_way(network: RoadNetwork) -> RightOfWay:
    """Conflicts between the lanes of a network."""
    lanes = network.lanes
    gated = np.array([i for i, lane in enumerate(lanes) if lane.gate is not None], np.int64)
    gate_of = np.full(len(lanes), -1, np.int64)
    gate_of[gated] = np.arange(len(gated))
    return RightOfWay(gated, gate_of, _clearances(lanes, gated), _siblings(lanes))


def _clearances(lanes: list[Lane], gated: Int64Array) -> Float64Array:
    result = np.full((len(gated), len(gated)), -np.inf)
    every = 3
    spacing = every * POINT_SPACING
    gates = [lanes[i].gate for i in gated]
    junctions = np.array([gate.junction if gate else -1 for gate in gates], np.int64)
    for junction in np.unique(junctions):
        members = np.flatnonzero(junctions == junction)
        samples = [lanes[gated[m]].points[::every] for m in members]
        starts = np.concatenate([[0], np.cumsum([len(p) for p in samples])])
        x, y = np.concatenate(samples).astype(np.float32).T
        squared = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
        near = np.minimum.reduceat(squared, starts[:-1], axis=1)  # each sample to each lane
        half = np.array([HALF_CORRIDOR[lanes[gated[m]].mode] for m in members])
        walks = np.array([lanes[gated[m]].mode == Mode.WALK for m in members])
        entry = np.array([lanes[gated[m]].entries[0] for m in members])
        for k, a in enumerate(members):
            own = near[starts[k] : starts[k + 1]] < (half + half[k]) ** 2
            until = len(own) - own[::-1].argmax(axis=0)
            # Walkers do not wait for walkers; who comes from the same lane follows the other.
            compete = ~(walks[k] & walks) & (entry != entry[k])
            result[a, members] = np.where(compete & own.any(axis=0), until * spacing, -np.inf)
    return result


def _siblings(lanes: list[Lane]) -> tuple[tuple[tuple[int, float], ...], ...]:
    found: list[list[tuple[int, float]]] = [[] for _ in lanes]
    for lane in lanes:
        if lane.mode == Mode.WALK:
            continue
        for a in lane.exits:
            for b in lane.exits:
                if a != b:
                    n = min(len(lanes[a].points), len(lanes[b].points))
                    apart = np.hypot(*(lanes[a].points[:n] - lanes[b].points[:n]).T)
                    parted = np.flatnonzero(apart > SIBLING_DISTANCE)
                    until = int(parted[0]) if len(parted) else n
                    found[a].append((b, until * POINT_SPACING))
    return tuple(tuple(pairs) for pairs in found)
