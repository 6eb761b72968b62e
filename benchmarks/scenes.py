"""The inputs of all benchmarks: real scenes where they are, synthetic ones of the same form else,
and scenes of controlled size.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np

from wosac_toolkit import load_rollouts, load_scenarios
from wosac_toolkit.baselines import simulate_baseline
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.features import prepare_scene
from wosac_toolkit.io import wire
from wosac_toolkit.io.scenarios import peek_scenario_id, write_scenarios
from wosac_toolkit.io.submission import SubmissionMetadata, write_submission
from wosac_toolkit.io.tfrecord import find_shards, iter_records, write_records
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import (
    LaneType,
    Links,
    MapFeatureKind,
    ObjectType,
    RoadMap,
    Scenario,
    Tracks,
    TrafficLights,
)
from wosac_toolkit.synthetic import generate_scenarios

SHARED = Path(os.environ.get("WOSAC_SHARED", Path(__file__).parents[2] / "shared"))
SUBMISSION = SHARED / "goldens" / "test_submission.binproto"
POLICY = "constant_turn_rate"
N_SYNTHETIC = 24
SCENARIO_ID_FIELD = 5


@dataclass(frozen=True, slots=True)
class Dataset:
    """Scenes on disk.

    Attributes:
        path: what `load_scenarios` takes.
        text: what they are, for the tables.
    """

    path: str
    text: str


def find_dataset(path: str | None, folder: Path) -> Dataset:
    """The scenes in `path`; else the shared real ones; else synthetic ones, made in `folder`."""
    if path is not None:
        return Dataset(path, f"scenes of {Path(path).name}")
    if (SHARED / "womd").is_dir():
        return Dataset(str(SHARED / "womd"), "real WOMD scenes")
    print(
        "no real scenes (set WOSAC_SHARED): measuring synthetic ones, on which the targets "
        "are not defined",
        file=sys.stderr,
    )
    write_scenarios(folder / "synthetic", generate_scenarios(N_SYNTHETIC, seed=0), 2)
    return Dataset(str(folder / "synthetic"), "SYNTHETIC scenes, not WOMD (seed 0)")


def simulate(scenario: Scenario, n_rollouts: int = 32) -> Rollouts:
    return simulate_baseline(scenario, POLICY, n_rollouts)


def scorable(dataset: Dataset) -> Iterator[Scenario]:
    """The scenes that can be scored, one at a time; the others are named on stderr."""
    for scenario in load_scenarios(dataset.path):
        try:
            prepare_scene(scenario)
        except ScenarioError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield scenario


def official_submission() -> Rollouts | None:
    """The sample submission of the official package, 32 rollouts of a real scene."""
    return next(load_rollouts(SUBMISSION), None) if SUBMISSION.is_file() else None


def records(dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    """Scenario id and serialized record of all scenes."""
    for shard in find_shards(dataset.path):
        for _, payload in iter_records(shard):
            yield peek_scenario_id(payload, where=str(shard)), payload


def write_copies(dataset: Dataset, ids: set[str], n: int, folder: Path) -> dict[str, list[str]]:
    """Write TFRecords of `n` scenes: those of `ids` again and again, under new ids.

    The records are otherwise unchanged, so reading them costs what reading the originals does.

    Returns:
        The new ids of each original scene.
    """
    originals = [(name, payload) for name, payload in records(dataset) if name in ids]
    copies: dict[str, list[str]] = {name: [] for name, _ in originals}

    def payloads() -> Iterator[bytes]:
        for number, (name, payload) in zip(range(n), cycle(originals)):
            copy = f"{number:016x}"
            copies[name].append(copy)
            field = wire.encode_block(SCENARIO_ID_FIELD, name.encode())
            yield payload.replace(field, wire.encode_block(SCENARIO_ID_FIELD, copy.encode()), 1)

    folder.mkdir(parents=True)
    stream, n_shards = payloads(), (n + 49) // 50
    for shard in range(n_shards):
        path = folder / f"copies.tfrecord-{shard:05d}-of-{n_shards:05d}"
        write_records(path, islice(stream, 50))
    return copies


def write_copied_rollouts(
    dataset: Dataset, copies: dict[str, list[str]], folder: Path, form: str
) -> None:
    """Write rollouts of copied scenes, as submission shards or (hard-linked) npz files."""
    folder.mkdir(parents=True)
    numbers = count()
    for scenario in scorable(dataset):
        names = copies.get(scenario.scenario_id, [])
        if not names:
            continue
        rollouts = simulate(scenario)
        if form == "npz":
            first, *others = (folder / f"{name}.npz" for name in names)
            np.savez(first, object_ids=rollouts.object_ids, states=rollouts.states)
            for other in others:
                os.link(first, other)
        else:
            path = folder / f"copies{next(numbers)}.binproto"
            renamed = (replace(rollouts, scenario_id=name) for name in names)
            write_submission(path, renamed, SubmissionMetadata())


# Scenes of controlled size

ROAD_M, LANE_M, GAP_M, ROAD_PITCH_M, POINT_M = 200.0, 4.0, 15.0, 12.0, 0.5
N_EVALUATED = 8


def controlled_scene(n_agents: int, n_edge_points: int, name: str = "controlled") -> Scenario:
    """Parallel roads of two lanes, 200 m long, with an edge point every 0.5 m.

    More points are more roads, as a larger map has them; more agents fill more roads at the same
    density: 15 m apart at 8 m/s. Eight agents are evaluated, as many as WOMD has at most beside
    the autonomous vehicle.
    """
    per_lane = int(ROAD_M / GAP_M)
    slot = np.arange(n_agents)
    road, lane, place = slot // (2 * per_lane), slot // per_lane % 2, slot % per_lane
    time = 0.1 * np.arange(91)
    position = np.zeros((n_agents, 91, 3))
    position[..., 0] = GAP_M * place[:, None] + 8.0 * time
    position[..., 1] = (ROAD_PITCH_M * road + LANE_M * (lane + 0.5))[:, None]
    tracks = Tracks(
        object_ids=np.arange(n_agents, dtype=np.int64),
        object_types=np.full(n_agents, ObjectType.VEHICLE, np.int8),
        position=position,
        size=np.broadcast_to(np.float32([4.5, 2.0, 1.6]), (n_agents, 91, 3)).copy(),
        heading=np.zeros((n_agents, 91), np.float32),
        velocity=np.broadcast_to(np.float32([8, 0]), (n_agents, 91, 2)).copy(),
        valid=np.ones((n_agents, 91), bool),
    )
    points, offsets = [], [0]
    per_edge = int(ROAD_M / POINT_M) + 1
    while offsets[-1] < n_edge_points:
        n = min(per_edge, n_edge_points - offsets[-1])
        edge = len(points)
        x = POINT_M * np.arange(n)
        left = edge % 2 == 1
        y = ROAD_PITCH_M * (edge // 2) + (2 * LANE_M if left else 0.0)
        polyline = np.stack([x, np.full(n, y), np.zeros(n)], axis=1)
        points.append(polyline[::-1] if left else polyline)
        offsets.append(offsets[-1] + n)
    n_features = len(points)
    none = Links(offsets=np.zeros(n_features + 1, np.int64), ids=np.zeros(0, np.int64))
    road_map = RoadMap(
        feature_ids=np.arange(n_features, dtype=np.int64),
        kinds=np.full(n_features, MapFeatureKind.ROAD_EDGE, np.int8),
        types=np.full(n_features, LaneType.FREEWAY, np.int8),
        point_offsets=np.array(offsets, np.int64),
        points=np.concatenate(points),
        speed_limit_mph=np.zeros(n_features),
        interpolating=np.zeros(n_features, bool),
        entry_lanes=none,
        exit_lanes=none,
        stop_sign_lanes=none,
        neighbors=np.zeros((0, 7), np.int64),
    )
    predicted = np.arange(1, min(N_EVALUATED, n_agents), dtype=np.int64)
    return Scenario(
        scenario_id=name,
        timestamps=time,
        current_time_index=10,
        sdc_track_index=0,
        tracks=tracks,
        tracks_to_predict=predicted,
        difficulties=np.zeros(len(predicted), np.int8),
        objects_of_interest=np.zeros(0, np.int64),
        road_map=road_map,
        traffic_lights=TrafficLights(
            step_offsets=np.zeros(1, np.int64),
            lane_ids=np.zeros(0, np.int64),
            states=np.zeros(0, np.int8),
            stop_points=np.zeros((0, 3)),
        ),
    )
