"""A whole scene: a place, its traffic for nine seconds, and what a passing sensor saw of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wosac_toolkit.errors import ScenarioError, WosacError
from wosac_toolkit.scenario import (
    BoolArray,
    Float64Array,
    Int64Array,
    ObjectType,
    Scenario,
    Tracks,
)
from wosac_toolkit.synthetic import drivers
from wosac_toolkit.synthetic.drivers import Mover, Path
from wosac_toolkit.synthetic.layouts import sample_layout
from wosac_toolkit.synthetic.right_of_way import right_of_way
from wosac_toolkit.synthetic.road_map import Frame, export_lights, export_map
from wosac_toolkit.synthetic.road_network import Mode, RoadNetwork, Surface, build_network
from wosac_toolkit.synthetic.signals import signal_states
from wosac_toolkit.synthetic.traffic import Parked, furnish, populate

N_STEPS = 91
CURRENT = 10
WARM_UP = 60  # steps driven before the scene begins, so that queues and gaps are settled
FEWEST_AGENTS, MOST_AGENTS = 10, 128  # valid at the current step
SDC_SIZE = (5.286, 2.332, 2.33)
ATTEMPTS = 50

OBJECT_TYPES = {
    Mode.DRIVE: ObjectType.VEHICLE,
    Mode.BIKE: ObjectType.CYCLIST,
    Mode.WALK: ObjectType.PEDESTRIAN,
}
# How road users weave about their line: amplitude (m), and the range of wavelengths (m).
WEAVE = {
    Mode.DRIVE: (0.06, 40.0, 90.0),
    Mode.BIKE: (0.06, 12.0, 30.0),
    Mode.WALK: (0.04, 4.0, 9.0),
}


def generate_scenarios(n: int, seed: int = 0) -> Iterator[Scenario]:
    """The first `n` scenes of a seed, see `generate_scenario`."""
    for index in range(n):
        yield generate_scenario(seed, index)


def generate_scenario(seed: int, index: int) -> Scenario:
    """One synthetic scene of 91 steps at 10 Hz, in the form of WOMD's.

    The same numbers give the same scene. Traffic keeps right and, mostly, to its lanes and to the
    lights; 10 to 128 agents are valid at step 10, and 2 to 8 are to be predicted.

    Args:
        seed: of a series of scenes, at least 0.
        index: of the scene in the series, at least 0.

    Raises:
        WosacError: a negative seed or index.
        ScenarioError: no attempt at this scene had enough agents (not seen to happen).
    """
    if seed < 0 or index < 0:
        raise WosacError(f"seed {seed} and index {index} must not be negative")
    scenario_id = hashlib.blake2b(f"synthetic {seed} {index}".encode(), digest_size=8).hexdigest()
    for attempt in range(ATTEMPTS):
        scenario = _generate(np.random.default_rng([seed, index, attempt]), scenario_id)
        if scenario is not None:
            return scenario
    raise ScenarioError(f"no scene of {FEWEST_AGENTS} agents came about", where=scenario_id)


def _generate(rng: np.random.Generator, scenario_id: str) -> Scenario | None:
    """A scene, or None where this one has too few agents or none to follow."""
    # A stream of its own for each part: a change to one leaves the others as they are.
    for_place, for_lights, for_traffic, for_motion, for_sensor, for_frame = rng.spawn(6)
    network = build_network(sample_layout(for_place))
    parked = furnish(network, for_place)
    rules = right_of_way(network)
    lights = signal_states(network, rules.gated, WARM_UP + N_STEPS, for_lights)
    movers = populate(network, WARM_UP + N_STEPS, for_traffic)
    if not movers:
        return None
    paths = [drivers.route_path(network, mover.route) for mover in movers]
    motion = drivers.simulate(network, rules, lights, movers, paths, for_motion)
    seen = _trace(network, movers, paths, motion, for_motion)
    sdc = _choose_sdc(seen, for_sensor)
    if sdc is None:
        return None
    seen.size[sdc] = SDC_SIZE
    seen = _join(seen, parked, for_motion)
    valid = _perceive(seen, sdc, for_sensor)
    if valid[:, CURRENT].sum() < FEWEST_AGENTS:
        return None
    rows = _order(valid, sdc, for_sensor)
    seen, valid = seen.take(rows), valid[rows]
    predicted = _choose_predicted(seen, valid, for_sensor)
    if len(predicted) < 2:
        return None

    frame = Frame.sample(network, for_frame)
    tracks = _tracks(seen, valid, frame, for_frame)
    road_map, feature_ids = export_map(network, frame, for_frame)
    return Scenario(
        scenario_id=scenario_id,
        timestamps=np.arange(N_STEPS) * 0.1 + np.append(0.0, for_frame.uniform(0, 3e-4, 90)),
        current_time_index=CURRENT,
        sdc_track_index=len(rows) - 1,
        tracks=tracks,
        tracks_to_predict=predicted,
        difficulties=for_sensor.choice(3, len(predicted), p=[0.4, 0.4, 0.2]).astype(np.int8),
        objects_of_interest=_choose_pair(seen, tracks, predicted, for_sensor),
        road_map=road_map,
        traffic_lights=export_lights(
            network, rules.gated, lights[WARM_UP:], feature_ids, frame, for_sensor
        ),
    )


@dataclass(frozen=True)
class _Seen:
    """Everybody in the local frame.

    `xy` [A, T, 2] and `heading` [A, T] (not wrapped), `velocity` [A, T, 2], `present` [A, T],
    `size` [A, 3], `types` [A], `surface` [A]; `parked` [A] who has no driver.
    """

    xy: Float64Array
    heading: Float64Array
    velocity: Float64Array
    present: BoolArray
    size: Float64Array
    types: Int64Array
    surface: Int64Array
    parked: BoolArray

    def take(self, rows: Int64Array) -> _Seen:
        """The same of the agents in `rows`."""
        return _Seen(
            self.xy[rows],
            self.heading[rows],
            self.velocity[rows],
            self.present[rows],
            self.size[rows],
            self.types[rows],
            self.surface[rows],
            self.parked[rows],
        )

    def eventfulness(self) -> Float64Array:
        """How much each does after the current step, 0 to 2 [A]: how far it goes and turns."""
        gap = np.hypot(*(self.xy[:, -1] - self.xy[:, CURRENT]).T)
        turn = np.abs(self.heading[:, -1] - self.heading[:, CURRENT])
        score: Float64Array = np.minimum(gap / 25.0, 1.0) + np.minimum(turn / 1.5, 1.0)
        return score


def _trace(
    network: RoadNetwork,
    movers: list[Mover],
    paths: list[Path],
    motion: drivers.Motion,
    rng: np.random.Generator,
) -> _Seen:
    """From distances along routes to poses: each weaves a little about its line."""
    n = len(movers)
    s, speed = motion.s[WARM_UP:].T, motion.speed[WARM_UP:].T
    xy, heading = np.zeros((n, N_STEPS, 2)), np.zeros((n, N_STEPS))
    for a, (mover, path) in enumerate(zip(movers, paths, strict=True)):
        amplitude, shortest, longest = WEAVE[mover.mode]
        side, slope = np.full(N_STEPS, mover.lateral), np.zeros(N_STEPS)
        for _ in range(2):
            k = 2 * np.pi / rng.uniform(shortest, longest)
            phase, size = rng.uniform(0, 2 * np.pi), rng.normal(0.0, amplitude)
            side = side + size * np.sin(k * s[a] + phase)
            slope = slope + size * k * np.cos(k * s[a] + phase)
        along = np.interp(s[a], path.s, path.headings)
        x, y = (np.interp(s[a], path.s, path.points[:, i]) for i in (0, 1))
        xy[a] = np.stack([x - np.sin(along) * side, y + np.cos(along) * side], axis=-1)
        heading[a] = along + np.arctan(slope)
    direction = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    return _Seen(
        xy=xy,
        heading=heading,
        velocity=direction * speed[..., None],
        present=motion.active[WARM_UP:].T,
        size=np.array([mover.size for mover in movers]),
        types=np.array([OBJECT_TYPES[mover.mode] for mover in movers]),
        surface=np.array([network.lanes[mover.route[0]].surface for mover in movers]),
        parked=np.zeros(n, bool),
    )


def _join(seen: _Seen, parked: Parked, rng: np.random.Generator) -> _Seen:
    """Movers and parked cars together, with the errors of a sensor."""
    n = len(parked.pose)
    xy = np.concatenate([seen.xy, np.repeat(parked.pose[:, None, :2], N_STEPS, axis=1)])
    heading = np.concatenate([seen.heading, np.repeat(parked.pose[:, 2:], N_STEPS, axis=1)])
    velocity = np.concatenate([seen.velocity, np.zeros((n, N_STEPS, 2))])
    # Errors drift: each step keeps most of the last one's. They are smaller for what stands.
    error = rng.standard_normal((*heading.shape, 3))
    for t in range(1, N_STEPS):
        error[:, t] = 0.92 * error[:, t - 1] + np.sqrt(1 - 0.92**2) * error[:, t]
    moving = np.minimum(np.hypot(velocity[..., 0], velocity[..., 1]) / 2.0, 1.0)
    error *= (0.2 + 0.8 * moving)[..., None]
    return _Seen(
        xy=xy + 0.012 * error[..., :2],
        heading=heading + 0.003 * error[..., 2],
        velocity=velocity,
        present=np.concatenate([seen.present, np.ones((n, N_STEPS), bool)]),
        size=np.concatenate([seen.size, parked.size]),
        types=np.concatenate([seen.types, np.full(n, ObjectType.VEHICLE)]),
        surface=np.concatenate([seen.surface, np.full(n, Surface.GROUND)]),
        parked=np.concatenate([seen.parked, np.ones(n, bool)]),
    )


def _choose_sdc(seen: _Seen, rng: np.random.Generator) -> int | None:
    """The autonomous vehicle: one that stays, near the middle, preferably under way."""
    can = seen.present.all(axis=1) & (seen.types == ObjectType.VEHICLE) & (seen.size[:, 0] < 5.7)
    if not can.any():
        return None
    middle = np.hypot(*seen.xy[:, CURRENT].T) / 60.0
    score = seen.eventfulness() - middle
    score = score - 0.5 * (seen.surface == Surface.DECK) + 0.4 * rng.standard_normal(len(can))
    return int(np.where(can, score, -np.inf).argmax())


def _perceive(seen: _Seen, sdc: int, rng: np.random.Generator) -> BoolArray:
    """When each is seen [A, T]: within range and not hidden."""
    n = len(seen.types)
    reach = rng.uniform(75.0, 120.0) * rng.uniform(0.9, 1.1, n)
    distance = np.hypot(*np.moveaxis(seen.xy - seen.xy[sdc], -1, 0))
    valid = seen.present & (distance < reach[:, None])
    steps = np.arange(N_STEPS)
    for a in range(n):
        hidden = np.zeros(N_STEPS, bool)
        for chance in (0.14, 0.08):
            if rng.random() < chance:
                start = int(rng.integers(0, N_STEPS))
                hidden |= (steps >= start) & (steps < start + int(rng.integers(1, 16)))
        if rng.random() < 0.08:
            hidden |= steps < int(rng.integers(1, 60))
        if rng.random() < 0.08:
            hidden |= steps > int(rng.integers(20, 90))
        valid[a] &= ~hidden
    # Somebody always comes into view after the current step.
    later = np.flatnonzero(valid[:, 60:].any(axis=1) & (np.arange(n) != sdc))
    for a in rng.permutation(later)[: max(1, n // 20)]:
        valid[a] &= steps >= int(rng.integers(CURRENT + 1, 60))
    valid[sdc] = True
    now = np.flatnonzero(valid[:, CURRENT])
    too_far = now[np.argsort(distance[now, CURRENT], kind="stable")][MOST_AGENTS:]
    valid[too_far] = False
    return np.asarray(valid)


def _order(valid: BoolArray, sdc: int, rng: np.random.Generator) -> Int64Array:
    """Rows of the tracks in the record: who was ever seen, shuffled, the SDC last."""
    rows = rng.permutation(np.flatnonzero(valid.any(axis=1)))
    return np.append(rows[rows != sdc], sdc).astype(np.int64)


def _choose_predicted(seen: _Seen, valid: BoolArray, rng: np.random.Generator) -> Int64Array:
    """Rows to predict, 2 to 8 where there are as many: types mixed, the moving preferred."""
    future = valid[:, CURRENT + 1 :].sum(axis=1)
    can = valid[:, CURRENT] & (future >= 10) & ~seen.parked
    can[-1] = False  # the SDC is evaluated anyway
    score = seen.eventfulness() + 0.5 * rng.standard_normal(len(can))
    # The best few of each type come first, then the other vehicles.
    chosen: list[int] = []
    for object_type, most in (
        (ObjectType.CYCLIST, 2),
        (ObjectType.PEDESTRIAN, 2),
        (ObjectType.VEHICLE, 8),
    ):
        rows = np.flatnonzero(can & (seen.types == object_type))
        best = rows[np.argsort(-score[rows], kind="stable")]
        chosen += best[: min(most, 8 - len(chosen))].tolist()
    wanted = int(rng.integers(2, 9))
    keep = np.argsort(-score[chosen], kind="stable")[:wanted]
    return rng.permutation(np.asarray(chosen, np.int64)[keep])


def _choose_pair(
    seen: _Seen, tracks: Tracks, predicted: Int64Array, rng: np.random.Generator
) -> Int64Array:
    """Ids of two agents that come near each other, in a third of the scenes."""
    if rng.random() > 0.35:
        return np.zeros(0, np.int64)
    xy = seen.xy[predicted, CURRENT:]
    near = np.hypot(*np.moveaxis(xy[:, None] - xy[None], -1, 0)).min(axis=-1)
    near[np.diag_indices(len(near))] = np.inf
    pair = np.unravel_index(int(near.argmin()), near.shape)
    return np.sort(tracks.object_ids[predicted[list(pair)]])


def _tracks(seen: _Seen, valid: BoolArray, frame: Frame, rng: np.random.Generator) -> Tracks:
    """The agents in the global frame; where not valid, all zeros."""
    n = len(valid)
    size = np.broadcast_to(seen.size[:, None], (n, N_STEPS, 3))
    ground = frame.place(seen.xy.reshape(-1, 2), np.repeat(seen.surface, N_STEPS))
    position = ground.reshape(n, N_STEPS, 3)
    position[..., 2] += size[..., 2] / 2
    heading = seen.heading + frame.angle
    if rng.random() < 0.7:
        heading = (heading + np.pi) % (2 * np.pi) - np.pi
    else:
        heading = heading + 2 * np.pi * rng.choice([-1, 0, 1], (n, 1), p=[0.1, 0.8, 0.1])
    velocity = frame.rotate(seen.velocity.reshape(-1, 2)).reshape(n, N_STEPS, 2)
    velocity = velocity + 0.02 * rng.standard_normal(velocity.shape)
    first = int(rng.integers(0, 3000))
    return Tracks(
        object_ids=first + np.cumsum(rng.integers(1, 5, n)),
        object_types=seen.types.astype(np.int8),
        position=np.where(valid[..., None], position, 0.0),
        size=np.where(valid[..., None], size, 0.0).astype(np.float32),
        heading=np.where(valid, heading, 0.0).astype(np.float32),
        velocity=np.where(valid[..., None], velocity, 0.0).astype(np.float32),
        valid=valid,
    )
