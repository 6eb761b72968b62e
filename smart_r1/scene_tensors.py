"""One scene as SMART sees it: agents at 2 Hz and 5 m pieces of the map, as small arrays.

Positions are float32 in a *local frame*: the scenario's global frame, moved but not turned, so
that the autonomous vehicle (SDC) at the current step is the origin. They are moved in float64:
far from the origin of the global frame one float32 step is as wide as half a millimetre.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from smart_r1.map_pieces import LARGEST_NUMBER, UInt8Array, map_pieces
from smart_r1.tokens.vocabulary import CLASS_SIZE
from smart_r1.tracks import (
    CURRENT_STEP,
    N_STEPS,
    AgentStates,
    Motion,
    clean,
    distances,
    fill_gaps,
    in_range,
)
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int8Array,
    Int64Array,
    ObjectType,
    Scenario,
    Tracks,
)

__all__ = ["AgentStates", "SceneTensors", "scene_tensors"]

_NEAR = 100.0
_FEWEST_FUTURE_STEPS = 5
_MEND = "the record is damaged; fetch it again"


@dataclass(frozen=True, eq=False, slots=True)
class SceneTensors:
    """A agents, valid at the current step, in the record's order, and P map tokens.

    Attributes:
        scenario_id: the id of the record.
        origin: float64 [2], where the local frame's origin lies in the global frame.
        object_ids: int64 [A].
        classes: int8 [A], 0 vehicle, 1 pedestrian, 2 cyclist.
        size: float32 [A, 3], length, width, height in metres, mean over the valid steps.
        z: float32 [A], metres, global frame, at the current step.
        roles: bool [A, 3], is the SDC, is of interest, is to be predicted.
        logged: the tracks as logged, for evaluation; every agent is valid at steps 5 and 10.
        in_range: the same without what is 150 m or more from the SDC at the same step, for
            training; an agent may have gaps, and none of its steps need be valid.
        trainable: bool [A], agents whose actions are learned, before the cap of 32 a scene: those
            with a role, and those less than 100 m from the SDC at the current step with at least
            5 valid future steps in range.
        map_points: float32 [P, 3, 2], start, middle and end of each piece, local frame.
        map_heading: float32 [P], radians, at the start.
        map_type: uint8 [P], 0..9, see `smart_r1.map_pieces.MapPieces`.
        map_polygon: uint8 [P], 0 lane, 1 road edge, 2 road line, 3 crosswalk.
        map_light: uint8 [P], at the current step: 0 none, 1 unknown, 2 stop, 3 go, 4 caution.
    """

    scenario_id: str
    origin: Float64Array
    object_ids: Int64Array
    classes: Int8Array
    size: Float32Array
    z: Float32Array
    roles: BoolArray
    logged: AgentStates
    in_range: AgentStates
    trainable: BoolArray
    map_points: Float32Array
    map_heading: Float32Array
    map_type: UInt8Array
    map_polygon: UInt8Array
    map_light: UInt8Array


def scene_tensors(scenario: Scenario) -> SceneTensors:
    """What the model reads of a scene (the pre-processing of CAT-K).

    The agents are the objects that are valid at the current step, all of which the challenge wants
    simulated. One of unknown type is taken for the class whose box is nearest to it in length.
    Gaps in their tracks are filled; steps that the record does not have, as in the test split, are
    not valid.

    Args:
        scenario: a scene with 10 steps of history; steps after the 91st are not looked at.

    Raises:
        ScenarioError: a current step other than 10, an SDC that is no track or not valid at it,
            values that are not finite or beyond 1e6 m (m/s, rad); names the object or the map
            feature.
    """
    where = f"scenario {scenario.scenario_id}"
    if scenario.current_time_index != CURRENT_STEP or scenario.n_steps <= CURRENT_STEP:
        raise ScenarioError(
            f"the current step is {scenario.current_time_index} of {scenario.n_steps}",
            where=where,
            mend="SMART reads scenes with 1 s of history at 10 Hz, steps 0 to 10",
        )
    scenario.evaluated_agents()  # raises where a row is that of no track
    try:
        return _scene_tensors(scenario)
    except ScenarioError as error:
        raise ScenarioError(error.what, where=f"{where}: {error.where}", mend=_MEND) from None


def _scene_tensors(scenario: Scenario) -> SceneTensors:
    agents = scenario.sim_agents()
    sdc = _find_sdc(scenario, agents)
    tracks = scenario.tracks
    _check(tracks, agents)
    origin = tracks.position[agents[sdc], CURRENT_STEP, :2].copy()
    size = _mean_sizes(tracks, agents)

    motion = fill_gaps(_logged_motion(tracks, agents, origin))
    steps_in_range = in_range(motion, sdc)
    n_future = np.count_nonzero(steps_in_range[:, CURRENT_STEP + 1 :], axis=1)
    is_near = distances(motion, sdc)[:, CURRENT_STEP] < _NEAR
    roles = _roles(scenario, agents)

    pieces = map_pieces(scenario.road_map, scenario.traffic_lights, CURRENT_STEP, origin)
    return SceneTensors(
        scenario_id=scenario.scenario_id,
        origin=origin,
        object_ids=tracks.object_ids[agents],
        classes=_classes(tracks.object_types[agents], size),
        size=size,
        z=tracks.position[agents, CURRENT_STEP, 2].astype(np.float32),
        roles=roles,
        logged=clean(motion),
        in_range=clean(dataclasses.replace(motion, valid=steps_in_range)),
        trainable=roles.any(axis=1) | (is_near & (n_future >= _FEWEST_FUTURE_STEPS)),
        map_points=pieces.points,
        map_heading=pieces.heading,
        map_type=pieces.type,
        map_polygon=pieces.polygon,
        map_light=pieces.light,
    )


def _find_sdc(scenario: Scenario, agents: Int64Array) -> int:
    """Which of the agents is the SDC."""
    found = np.flatnonzero(agents == scenario.sdc_track_index)
    if not len(found):
        object_id = scenario.tracks.object_ids[scenario.sdc_track_index]
        raise ScenarioError(
            f"it is the autonomous vehicle, but not valid at the current step {CURRENT_STEP}",
            where=f"object {object_id}",
        )
    return int(found[0])


def _logged_motion(tracks: Tracks, agents: Int64Array, origin: Float64Array) -> Motion:
    """The tracks of the agents in the local frame."""
    recorded = slice(None, N_STEPS)
    position = tracks.position[agents, recorded] - [*origin, 0.0]
    heading = tracks.heading[agents, recorded].astype(np.float64)
    velocity = tracks.velocity[agents, recorded].astype(np.float64)
    valid = tracks.valid[agents, recorded]
    if (missing := N_STEPS - valid.shape[1]) > 0:
        after = (0, missing)
        position = np.pad(position, ((0, 0), after, (0, 0)))
        heading = np.pad(heading, ((0, 0), after))
        velocity = np.pad(velocity, ((0, 0), after, (0, 0)))
        valid = np.pad(valid, ((0, 0), after))
    return Motion(position, heading, velocity, valid)


def _check(tracks: Tracks, agents: Int64Array) -> None:
    """See that the valid states of the agents are numbers to reckon with."""
    for names, values in (
        (("x", "y", "z"), tracks.position),
        (("heading",), tracks.heading[..., None]),
        (("velocity in x", "velocity in y"), tracks.velocity),
        (("length", "width", "height"), tracks.size),
    ):
        # A NaN is not below the limit either.
        bad = tracks.valid[agents, :, None] & ~(np.abs(values[agents]) <= LARGEST_NUMBER)
        if bad.any():
            agent, step, column = np.argwhere(bad)[0]
            raise ScenarioError(
                f"its {names[column]} is {values[agents[agent], step, column]} at step {step}",
                where=f"object {tracks.object_ids[agents[agent]]}",
            )


def _mean_sizes(tracks: Tracks, agents: Int64Array) -> Float32Array:
    """Mean length, width and height over the valid steps, future ones included, [A, 3]."""
    valid = tracks.valid[agents, :N_STEPS]
    size = np.where(valid[..., None], tracks.size[agents, :N_STEPS], 0.0)
    mean = size.sum(axis=1, dtype=np.float64) / np.count_nonzero(valid, axis=1)[:, None]
    return np.asarray(mean, np.float32)


def _classes(object_types: Int8Array, size: Float32Array) -> Int8Array:
    classes = object_types.astype(np.int64) - ObjectType.VEHICLE
    nearest = np.abs(size[:, :1] - CLASS_SIZE[:, 0]).argmin(axis=1)
    known = (classes >= 0) & (classes < len(CLASS_SIZE))
    return np.where(known, classes, nearest).astype(np.int8)


def _roles(scenario: Scenario, agents: Int64Array) -> BoolArray:
    return np.stack(
        [
            agents == scenario.sdc_track_index,
            np.isin(scenario.tracks.object_ids[agents], scenario.objects_of_interest),
            np.isin(agents, scenario.tracks_to_predict),
        ],
        axis=1,
    )
