"""Write the inputs that the official packages score for us: synthetic scenes and rollouts of them.

`scenes.tfrecord.gz` and `<name>.npz` are kept in the repository, for a generator may change and
NumPy's sines differ in their last bit between processors. Each bundle is there for something that
a scorer can get wrong. Those of the scenario generation challenge lie in `scenario_gen/`.
"""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.io.scenario_proto import encode_scenario
from wosac_toolkit.io.tfrecord import write_record
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Links, MapFeatureKind, ObjectType, Scenario
from wosac_toolkit.synthetic import generate_scenario

HERE = Path(__file__).parent
SCENARIO_GEN = HERE / "scenario_gen"
SEED = 7
N_AGENTS = 16
N_AGENTS_SCENARIO_GEN = 9
N_ROLLOUTS = 3


def with_fewer_tracks(scenario: Scenario) -> Scenario:
    """The evaluated agents and the first others, so that the files stay small."""
    evaluated = scenario.evaluated_agents()
    others = np.setdiff1d(scenario.sim_agents(), evaluated)
    return with_tracks(
        scenario, np.sort(np.concatenate([evaluated, others[: N_AGENTS - len(evaluated)]]))
    )


def with_tracks(scenario: Scenario, rows: np.ndarray) -> Scenario:
    """These tracks alone; the evaluated agents must be among them."""
    tracks = scenario.tracks
    return replace(
        scenario,
        tracks=replace(
            tracks,
            **{name: getattr(tracks, name)[rows] for name in tracks.__dataclass_fields__},
        ),
        sdc_track_index=int(np.searchsorted(rows, scenario.sdc_track_index)),
        tracks_to_predict=np.searchsorted(rows, scenario.tracks_to_predict),
    )


def without_vehicles(scenario: Scenario) -> Scenario:
    """The same scene with cyclists for vehicles: no time to collision is defined."""
    tracks = scenario.tracks
    types = np.where(tracks.object_types == ObjectType.VEHICLE, ObjectType.CYCLIST, 0)
    types = np.where(types, types, tracks.object_types).astype(np.int8)
    return replace(scenario, scenario_id="0" * 16, tracks=replace(tracks, object_types=types))


def with_turned_headings(rollouts: Rollouts) -> Rollouts:
    """Every other agent's heading a full turn on, as WOMD's own headings are not wrapped."""
    states = rollouts.states.copy()
    states[:, ::2, :, 3] += np.float32(2 * np.pi)
    return replace(rollouts, states=states)


def jostled(rollouts: Rollouts) -> Rollouts:
    """Random walks: collisions, agents off the road, accelerations beyond the histograms."""
    rng = np.random.default_rng(SEED)
    steps = rng.normal(0, [0.3, 0.3, 0.02, 0.1], rollouts.states.shape)
    return replace(rollouts, states=rollouts.states + steps.cumsum(axis=2))


def bundles() -> dict[str, tuple[Scenario, Rollouts]]:
    """Name -> scene and rollouts."""

    def scene(index: int) -> Scenario:
        return with_fewer_tracks(generate_scenario(SEED, index))

    def simulate(scenario: Scenario, policy: str) -> Rollouts:
        return simulate_baseline(scenario, policy, N_ROLLOUTS, SEED)

    plain, signals, bridge, types = map(scene, (26, 37, 27, 17))  # the last is 16 km off
    cyclists = without_vehicles(plain)
    return {
        "plain_log": (plain, simulate(plain, "log")),
        "cyclists_only": (cyclists, simulate(cyclists, "constant_velocity")),
        "red_lights": (signals, simulate(signals, "constant_velocity")),
        "turned_headings": (signals, with_turned_headings(simulate(signals, "constant_turn_rate"))),
        "all_types_jostled": (types, jostled(simulate(types, "log"))),
        "bridge": (bridge, simulate(bridge, "constant_turn_rate")),
    }


# --- scenario generation ------------------------------------------------------------------------


def with_gaps(scenario: Scenario) -> Scenario:
    """Nine tracks that, but for one, are not valid all the time, in an order that ids do not have.

    What makes the log's features odd: boxes of no size at the origin wherever a state is missing.
    """
    tracks = scenario.tracks
    evaluated, simulated = scenario.evaluated_agents(), scenario.sim_agents()
    others = np.setdiff1d(simulated, evaluated)
    gaps = (~tracks.valid[others]).sum(axis=1)
    others = others[np.argsort(-gaps, kind="stable")][: N_AGENTS_SCENARIO_GEN - len(evaluated)]
    rows = np.sort(np.concatenate([evaluated, others]))
    small = with_tracks(scenario, rows)
    shuffled = np.random.default_rng(SEED).permutation(small.tracks.object_ids)
    return replace(small, tracks=replace(small.tracks, object_ids=shuffled))


def with_nearby_map(scenario: Scenario, metres: float) -> Scenario:
    """The road edges and lanes that come this near to an agent, without their links."""
    tracks, road_map = scenario.tracks, scenario.road_map
    agents = tracks.position[tracks.valid][::10, :2]
    lows, highs = agents.min(axis=0) - metres, agents.max(axis=0) + metres
    near = ((lows < road_map.points[:, :2]) & (road_map.points[:, :2] < highs)).all(axis=1)
    points = [slice(*ends) for ends in itertools.pairwise(road_map.point_offsets.tolist())]
    used = np.isin(road_map.kinds, (MapFeatureKind.ROAD_EDGE, MapFeatureKind.LANE))
    rows = [row for row, ends in enumerate(points) if used[row] and near[ends].any()]
    none = Links(np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int64))
    lengths = np.diff(road_map.point_offsets)[rows]
    return replace(
        scenario,
        road_map=replace(
            road_map,
            **{
                name: getattr(road_map, name)[rows]
                for name in ("feature_ids", "kinds", "types", "speed_limit_mph", "interpolating")
            },
            point_offsets=np.concatenate([[0], np.cumsum(lengths)]),
            points=np.concatenate([road_map.points[points[row]] for row in rows]),
            neighbors=np.zeros((0, 7), np.int64),
            **dict.fromkeys(("entry_lanes", "exit_lanes", "stop_sign_lanes"), none),
        ),
    )


def about_origin(scenario: Scenario) -> Scenario:
    """The same scene moved so that an agent is at the origin when most other states are missing.

    Sizes change from step to step, as WOMD's do.
    """
    tracks, lights = scenario.tracks, scenario.traffic_lights
    step = (~tracks.valid).sum(axis=0).argmax()
    shift = -np.round(tracks.position[tracks.valid[:, step].argmax(), step], 2) * [1, 1, 0]
    sizes = tracks.size * np.random.default_rng(SEED).uniform(0.9, 1.1, tracks.size.shape)
    return replace(
        scenario,
        tracks=replace(
            tracks,
            position=np.where(tracks.valid[..., None], tracks.position + shift, 0),
            size=sizes.astype(np.float32),
        ),
        road_map=replace(scenario.road_map, points=scenario.road_map.points + shift),
        traffic_lights=replace(lights, stop_points=lights.stop_points + shift),
    )


def whole_log(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """States [N, 91, 4] and sizes [N, 91, 3]; where one is missing, that of the nearest step."""
    tracks, rows = scenario.tracks, scenario.sim_agents()
    steps = np.arange(scenario.n_steps)
    away = np.where(tracks.valid[rows, None], abs(steps[:, None] - steps), scenario.n_steps)
    nearest = away.argmin(axis=2)[..., None]
    states = np.concatenate([tracks.position[rows], tracks.heading[rows, :, None]], axis=2)
    return (
        np.take_along_axis(states, nearest, axis=1).astype(np.float32),
        np.take_along_axis(tracks.size[rows], nearest, axis=1),
    )


def generated(scenario: Scenario, *, jostle: float = 0.0, resize: str = "") -> Rollouts:
    """Rollouts of the whole record: the log, a random walk on it, sizes and types of their own."""
    rng = np.random.default_rng(SEED)
    log_states, log_sizes = whole_log(scenario)
    states = np.repeat(log_states[None], N_ROLLOUTS, axis=0)
    sizes = np.repeat(log_sizes[None], N_ROLLOUTS, axis=0)
    types = np.repeat(scenario.tracks.object_types[None, scenario.sim_agents()], N_ROLLOUTS, axis=0)
    walk = rng.normal(0, [0.3, 0.3, 0.02, 0.1], states.shape).cumsum(axis=2)
    states += (jostle * walk).astype(np.float32)
    if resize:
        sizes = sizes * rng.uniform(0.4, 2.0, (*sizes.shape[:2], 1, 3))
        if resize == "each step":
            sizes = sizes * rng.uniform(0.8, 1.2, sizes.shape)
        sizes[:, 0] = [14.0, 3.0, 4.0]
        sizes[0, 1] = 0  # a point
        sizes[1, 2, :, 1] = 0  # a line
        types = rng.permuted(types, axis=1)
    order = rng.permutation(len(log_states))
    return Rollouts(
        scenario.scenario_id,
        scenario.tracks.object_ids[scenario.sim_agents()][order],
        states[:, order],
        sizes=sizes[:, order].astype(np.float32),
        object_types=types[:, order],
    )


def driven_on(scenario: Scenario) -> Rollouts:
    """Every agent at its current velocity, from a second before the record to eight after: past
    red lights and other agents.
    """
    tracks, rows = scenario.tracks, scenario.sim_agents()
    now = scenario.current_time_index
    seconds = 0.1 * (np.arange(scenario.n_steps) - now)
    rollouts = generated(scenario)
    order = np.array([np.flatnonzero(tracks.object_ids == i)[0] for i in rollouts.object_ids])
    states = rollouts.states.copy()
    for r, factor in enumerate((0.8, 1.2, 1.5)):
        moved = tracks.velocity[order, now, None] * seconds[:, None] * factor
        states[r, ..., :2] = tracks.position[order, now, None, :2] + moved
        states[r, ..., 2] = tracks.position[order, now, None, 2]
        states[r, ..., 3] = tracks.heading[order, now, None]
    assert np.array_equal(np.sort(order), rows)
    return replace(rollouts, states=states)


def scenario_gen_bundles() -> dict[str, tuple[Scenario, Rollouts]]:
    """Name -> scene and rollouts of its whole record."""

    def scene(index: int) -> Scenario:
        return with_nearby_map(with_gaps(generate_scenario(SEED, index)), metres=5)

    plain, signals, types, bridge = map(scene, (26, 37, 17, 27))
    origin = about_origin(signals)
    return {
        "plain_log": (plain, generated(plain)),
        "no_vehicles": (without_vehicles(plain), generated(without_vehicles(plain), jostle=0.3)),
        "other_sizes": (types, generated(types, jostle=1.0, resize="each rollout")),
        "about_origin": (origin, generated(origin, jostle=0.3, resize="each step")),
        "driven_on": (origin, driven_on(origin)),
        "bridge": (bridge, generated(bridge, jostle=0.1)),
    }


def main() -> None:
    write(HERE, bundles())
    write(SCENARIO_GEN, scenario_gen_bundles())


def write(folder: Path, bundles: dict[str, tuple[Scenario, Rollouts]]) -> None:
    scenes = {}
    for name, (scenario, rollouts) in bundles.items():
        scenes[scenario.scenario_id] = scenario
        arrays = {"object_ids": rollouts.object_ids, "states": rollouts.states}
        if rollouts.sizes is not None:
            arrays |= {"sizes": rollouts.sizes, "object_types": rollouts.object_types}
        np.savez_compressed(folder / f"{name}.npz", scenario_id=scenario.scenario_id, **arrays)
    # No time of writing in the header, so that the same scenes give the same bytes.
    with (
        (folder / "scenes.tfrecord.gz").open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as stream,
    ):
        for scenario in scenes.values():
            write_record(stream, encode_scenario(scenario))


if __name__ == "__main__":
    main()
