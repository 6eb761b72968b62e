"""The Intelligent Driver Model on the lanes of the map: reactive traffic without learning.

Vehicles and cyclists follow a path, see `wosac_toolkit.baselines.lane_paths`, and along it the
Intelligent Driver Model (Treiber, Hennecke, Helbing: Congested traffic states in empirical
observations and microscopic simulations, Phys. Rev. E 62, 2000): the acceleration is
`a (1 - (v / v0)^4 - (s* / s)^2)` with `s* = s0 + v T + v dv / (2 sqrt(a b))`. The leader is the
nearest agent of any kind whose box lies in the corridor of the path. Lights that are red or yellow
at the current step stay so; nothing of the future is read. Pedestrians keep their velocity.
"""

from __future__ import annotations

import numpy as np

from wosac_toolkit.baselines.constant_motion import straight_on
from wosac_toolkit.baselines.policy import N_STEPS, STEP_SECONDS, CurrentState, current_state
from wosac_toolkit.scenario import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    ObjectType,
    Scenario,
)

# City traffic: Treiber and Kesting, Traffic Flow Dynamics (2013), table 11.2.
HEADWAY = 1.0  # T, seconds
STANDSTILL = 2.0  # s0, metres
MOST = 1.0  # a, m/s^2
COMFORTABLE = 1.5  # b, m/s^2

# What the model leaves open.
CITY_SPEED = 25 * 0.44704  # m/s wanted where no limit is known, 25 mph
BIKE_SPEED = 4.5  # m/s wanted by cyclists
WISH_SPREAD = 0.2  # of the wanted speed
HEADWAY_SPREAD = 0.3  # of the logarithm
NOISE = 0.8  # m/s^2
WAIT_SECONDS = 15.0  # mean time until who stands on a lane starts
SPARE_METRES = 15.0  # how much longer a path is than the way that is driven


def idm(scenario: Scenario, n_rollouts: int, rng: np.random.Generator) -> Float32Array:
    """Lanes are followed, leaders and red lights respected; forks and drivers' traits are drawn."""
    # Here, so that the command line does not wait for numba.
    from wosac_toolkit.baselines import idm_kernels
    from wosac_toolkit.baselines.lane_paths import drivers_paths, lane_graph

    state = current_state(scenario)
    rows, now = scenario.sim_agents(), scenario.current_time_index
    types = scenario.tracks.object_types[rows]
    is_vehicle = types == ObjectType.VEHICLE
    may_drive = is_vehicle | (types == ObjectType.CYCLIST)
    # Near the agents numbers are small.
    origin = state.position[:1].sum(axis=0)
    local = CurrentState(
        state.position - origin, state.heading, state.speed, state.course, state.turn_rate
    )
    graph = lane_graph(scenario, origin)
    reach = _reach(state.speed, is_vehicle, float(np.nanmax(graph.speed_limit, initial=0.0)))
    drivers, paths = drivers_paths(graph, local, is_vehicle, may_drive, reach)

    others = np.setdiff1d(np.arange(len(rows)), drivers)
    states = np.empty((n_rollouts, len(rows), N_STEPS, 4), np.float32)
    states[:, others] = straight_on(state.of(others), n_rollouts, rng)
    if not len(drivers):
        return states

    of = drivers[paths.driver]
    x, y, z = np.ascontiguousarray(np.moveaxis(paths.position, -1, 0))
    cosine, sine = np.cos(paths.direction), np.sin(paths.direction)
    default = np.where(is_vehicle[of], CITY_SPEED, BIKE_SPEED)[:, None]
    unknown = np.isnan(paths.speed_limit) | ~is_vehicle[of, None]
    limit = np.where(unknown, default, paths.speed_limit)
    half_length, half_width = scenario.tracks.size[rows, now, :2].T.astype(np.float64) / 2

    parked = others[state.speed[others] == 0]
    heading = state.heading[:, None]
    boxes = np.concatenate([local.position, np.cos(heading), np.sin(heading)], axis=1)
    boxes = np.column_stack([boxes, half_length, half_width])
    contacts = np.empty_like(x)
    corridor = half_width[of] + idm_kernels.CLEARANCE
    idm_kernels.standing_contacts(x, y, z, cosine, sine, corridor, boxes[parked], contacts)

    shape = n_rollouts, len(drivers)
    velocity = state.speed * np.stack([np.cos(state.course), np.sin(state.course)])
    wait = rng.exponential(WAIT_SECONDS / STEP_SECONDS, shape)
    idm_kernels.drive(
        path_x=x,
        path_y=y,
        path_z=z,
        path_heading=paths.heading,
        path_cosine=cosine,
        path_sine=sine,
        # Who drives faster than the limit goes on so.
        path_limit=np.maximum(limit, state.speed[of, None]),
        path_curve_speed=paths.curve_speed,
        path_stop=paths.stop,
        contacts=contacts,
        drivers=drivers,
        walkers=others[state.speed[others] > 0],
        path_of=_drawn(paths.driver, paths.probability, rng.random(shape)),
        start=np.column_stack([local.position, state.heading, *velocity]),
        half_length=half_length,
        half_width=half_width,
        wish=np.maximum(1 + WISH_SPREAD * rng.standard_normal(shape), 0.5),
        headway=HEADWAY * np.exp(HEADWAY_SPREAD * rng.standard_normal(shape)),
        start_step=np.where(state.speed[drivers] > 0, 0, wait).astype(np.int64),
        noise=np.float32(NOISE) * rng.standard_normal((*shape, N_STEPS), dtype=np.float32),
        standstill=STANDSTILL,
        most=MOST,
        comfortable=COMFORTABLE,
        origin=origin,
        states=states,
    )
    return states


def _reach(speed: Float64Array, is_vehicle: BoolArray, highest_limit: float) -> Float64Array:
    """How far [N] agents can come, metres: by what they want, and by what they can accelerate."""
    seconds = N_STEPS * STEP_SECONDS
    wanted = np.where(is_vehicle, max(CITY_SPEED, highest_limit), BIKE_SPEED)
    by_wish = np.maximum(speed, wanted) * seconds * (1 + 2 * WISH_SPREAD)
    by_power = speed * seconds + MOST * seconds**2 / 2
    return np.minimum(by_wish, by_power) + SPARE_METRES


def _drawn(driver: Int64Array, probability: Float64Array, draws: Float64Array) -> Int64Array:
    """A path for each driver and rollout.

    Args:
        driver: int64 [P], of each path, ascending; every driver has one at least.
        probability: float64 [P], of the path among those of its driver.
        draws: float64 [R, D], in [0, 1).

    Returns:
        int64 [R, D], rows of the paths.
    """
    summed = np.cumsum(probability)
    everyone = np.arange(draws.shape[1])
    first = np.searchsorted(driver, everyone)
    last = np.searchsorted(driver, everyone, side="right") - 1
    begin = summed[first] - probability[first]
    chosen = np.searchsorted(summed, begin + draws * (summed[last] - begin), side="right")
    return np.clip(chosen, first, last).astype(np.int64)
