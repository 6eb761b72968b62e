"""Write the scene and rollouts on which `wosac doctor` repeats recorded official results.

They ship with the package, so they are small: a junction of a synthetic scene, eight objects, and
numbers rounded to binary fractions, which compress well. The rollouts collide, leave the road and
run red lights; those of scenario generation lie in `scenario_gen/`. As in this folder, `record.py`
then writes the official results beside them.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.io.scenario_proto import encode_scenario
from wosac_toolkit.io.tfrecord import write_record
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import (
    Links,
    MapFeatureKind,
    RoadMap,
    Scenario,
    Tracks,
    TrafficLights,
)
from wosac_toolkit.synthetic import generate_scenario

FOLDER = Path(__file__).parents[2] / "wosac_toolkit" / "recorded"
SEED = 7
INDEX = 37
N_AGENTS = 8
N_ROLLOUTS = 4
N_GENERATED = 2
RADIUS = 60.0
EDGE = MapFeatureKind.ROAD_EDGE


def rounded(values: npt.NDArray[np.floating], denominator: int) -> npt.NDArray[np.floating]:
    """Multiples of 1/denominator, a power of two."""
    return (np.round(values * denominator) / denominator).astype(values.dtype)


def small(scenario: Scenario) -> Scenario:
    """The evaluated agents and a few others, the rarest types first, on the road around the SDC."""
    tracks, lights = scenario.tracks, scenario.traffic_lights
    now = scenario.current_time_index
    centre = tracks.position[scenario.sdc_track_index, now]
    evaluated = scenario.evaluated_agents()
    others = np.setdiff1d(scenario.sim_agents(), evaluated)
    far = np.hypot(*(tracks.position[others, now] - centre)[:, :2].T)
    others = others[np.lexsort((far, -tracks.object_types[others]))]
    rows = np.sort(np.concatenate([evaluated, others[: N_AGENTS - len(evaluated)]]))
    kept = {name: getattr(tracks, name)[rows] for name in tracks.__dataclass_fields__}
    road_map = road_around(scenario.road_map, centre)
    on_map = np.isin(lights.lane_ids, road_map.feature_ids)
    return replace(
        scenario,
        tracks=Tracks(
            **{
                **kept,
                "position": rounded(kept["position"], 128),
                "size": rounded(kept["size"], 32),
                "heading": rounded(kept["heading"], 1024),
                "velocity": rounded(kept["velocity"], 128),
            }
        ),
        sdc_track_index=int(np.searchsorted(rows, scenario.sdc_track_index)),
        tracks_to_predict=np.searchsorted(rows, scenario.tracks_to_predict),
        objects_of_interest=np.zeros(0, np.int64),
        road_map=road_map,
        traffic_lights=TrafficLights(
            step_offsets=np.concatenate([[0], np.cumsum(on_map)])[lights.step_offsets],
            lane_ids=lights.lane_ids[on_map],
            states=lights.states[on_map],
            stop_points=rounded(lights.stop_points[on_map], 128),
        ),
    )


def road_around(whole: RoadMap, centre: npt.NDArray[np.float64]) -> RoadMap:
    """The lanes and road edges that come near `centre`, without links between them."""
    near = [
        np.hypot(*(whole.polyline(i) - centre)[:, :2].T).min() < RADIUS
        for i in range(len(whole.kinds))
    ]
    keep = np.flatnonzero(near & np.isin(whole.kinds, (MapFeatureKind.LANE, EDGE)))
    polylines = [whole.polyline(i) for i in keep]
    no_links = Links(np.zeros(len(keep) + 1, np.int64), np.zeros(0, np.int64))
    return RoadMap(
        feature_ids=whole.feature_ids[keep],
        kinds=whole.kinds[keep],
        types=whole.types[keep],
        point_offsets=np.cumsum([0, *map(len, polylines)]).astype(np.int64),
        points=rounded(np.concatenate(polylines), 128),
        speed_limit_mph=whole.speed_limit_mph[keep],
        interpolating=whole.interpolating[keep],
        entry_lanes=no_links,
        exit_lanes=no_links,
        stop_sign_lanes=no_links,
        neighbors=np.zeros((0, 7), np.int64),
    )


def jostled(rollouts: Rollouts) -> Rollouts:
    """Random walks around simulated tracks, rounded."""
    rng = np.random.default_rng(SEED)
    steps = rng.normal(0, [0.2, 0.2, 0.01, 0.03], rollouts.states.shape)
    states = rollouts.states + steps.cumsum(axis=2)
    states[..., :3] = rounded(states[..., :3], 64)
    states[..., 3] = rounded(states[..., 3], 512)
    return replace(rollouts, states=states.astype(np.float32))


def generated(scenario: Scenario) -> Rollouts:
    """The whole record, what is missing as at the nearest step, jostled, some agents driven off the
    road; sizes of its own.
    """
    tracks, rows = scenario.tracks, scenario.sim_agents()
    steps = np.arange(scenario.n_steps)
    away = np.where(tracks.valid[rows, None], abs(steps[:, None] - steps), scenario.n_steps)
    nearest = away.argmin(axis=2)[..., None]
    states = np.concatenate([tracks.position[rows], tracks.heading[rows, :, None]], axis=2)
    states = np.repeat(np.take_along_axis(states, nearest, axis=1)[None], N_GENERATED, axis=0)
    states[1, ::3, :, 1] += np.linspace(0, 16, scenario.n_steps)
    sizes = np.take_along_axis(tracks.size[rows], nearest, axis=1)
    factors = np.random.default_rng(SEED).uniform(0.7, 1.3, (N_GENERATED, len(rows), 1, 3))
    return jostled(
        Rollouts(
            scenario.scenario_id,
            tracks.object_ids[rows],
            states.astype(np.float32),
            sizes=rounded(sizes * factors, 32).astype(np.float32),
            object_types=np.repeat(tracks.object_types[None, rows], N_GENERATED, axis=0),
        )
    )


def main() -> None:
    scenario = small(generate_scenario(SEED, INDEX))
    rollouts = jostled(simulate_baseline(scenario, "constant_velocity", N_ROLLOUTS, SEED))
    (FOLDER / "scenario_gen").mkdir(parents=True, exist_ok=True)
    write_bundle(FOLDER, rollouts)
    write_bundle(FOLDER / "scenario_gen", generated(scenario))
    # No time of writing in the header, so that the same scene gives the same bytes.
    with (
        (FOLDER / "scenes.tfrecord.gz").open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as stream,
    ):
        write_record(stream, encode_scenario(scenario))


def write_bundle(folder: Path, rollouts: Rollouts) -> None:
    arrays = {name: getattr(rollouts, name) for name in rollouts.__dataclass_fields__}
    np.savez_compressed(
        folder / f"{rollouts.scenario_id}.npz",
        **{name: array for name, array in arrays.items() if array is not None},
    )


if __name__ == "__main__":
    main()
