"""Traffic lights: phases of a junction, and what each lane's light shows at each step."""

from __future__ import annotations

import numpy as np

from wosac_toolkit.scenario import Int8Array, Int64Array, SignalState
from wosac_toolkit.synthetic.road_network import Control, Gate, RoadNetwork, Turn

STEP_SECONDS = 0.1
CAUTION_SECONDS = 3.5
ALL_RED_SECONDS = 1.5
# A crosswalk opens for all but the last seconds of its green phase.
WALK_CLEARANCE_SECONDS = 5.0

_ROUND = (SignalState.STOP, SignalState.CAUTION, SignalState.GO)
_ARROW = (SignalState.ARROW_STOP, SignalState.ARROW_CAUTION, SignalState.ARROW_GO)

Phase = tuple[int, bool]  # the axis whose arms are served; whether only their protected turns are


def signal_states(
    network: RoadNetwork, gated: Int64Array, n_steps: int, rng: np.random.Generator
) -> Int8Array:
    """What the lights of the gated lanes show: int8 [n_steps, G], see `SignalState`.

    UNKNOWN throughout where a gate has no light. A junction serves its axes in turn, of each the
    protected left turns first: green, caution, red for all. A crosswalk opens with the traffic of
    another axis than the one it crosses.
    """
    gates = {i: gate for i, lane in enumerate(gated) if (gate := network.lanes[lane].gate)}
    states = np.zeros((n_steps, len(gated)), np.int8)
    for junction in sorted({g.junction for g in gates.values() if g.control is Control.SIGNAL}):
        members = {i: gate for i, gate in gates.items() if gate.junction == junction}
        phases = sorted({_phase(g) for g in members.values() if g.turn is not Turn.CROSS})[::-1]
        greens = {
            phase: float(rng.uniform(5.0, 10.0) if phase[1] else rng.uniform(9.0, 20.0))
            for phase in phases
        }
        cycle = sum(greens.values()) + len(phases) * (CAUTION_SECONDS + ALL_RED_SECONDS)
        clock = np.arange(n_steps) * STEP_SECONDS + rng.uniform(0.0, cycle)
        begins = {}
        begin = 0.0
        for phase, green in greens.items():
            begins[phase] = begin
            begin += green + CAUTION_SECONDS + ALL_RED_SECONDS
        for i, gate in members.items():
            phase = _phase(gate)
            if gate.turn is Turn.CROSS:
                phase = next(p for p in phases if p[0] != gate.axis and not p[1])
            since = (clock - begins[phase]) % cycle
            green = greens[phase]
            if gate.turn is Turn.CROSS:
                walk = since < max(green - WALK_CLEARANCE_SECONDS, 4.0)
                states[:, i] = np.where(walk, SignalState.GO, SignalState.STOP)
            else:
                shown = np.where(since < green, 2, np.where(since < green + CAUTION_SECONDS, 1, 0))
                table = _ARROW if gate.protected else _ROUND
                states[:, i] = np.array(table, np.int8)[shown]
    return states


def _phase(gate: Gate) -> Phase:
    return gate.axis, gate.protected
