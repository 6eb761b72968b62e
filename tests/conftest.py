"""Where the real data is, and what is shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

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

# Torch's threads wait for each other by spinning: on a busy machine two of them are far slower than
# one. Tests of small models gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Real WOMD scenes and official results on them live outside the repository: the dataset's licence
#: forbids shipping them. `WOSAC_SHARED` names the folder; beside the checkout is looked for too.
SHARED = Path(os.environ.get("WOSAC_SHARED", Path(__file__).parents[2] / "shared"))


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no real data: {name}/ not found, set WOSAC_SHARED to the folder that has it")
    return folder


@pytest.fixture(scope="session")
def womd_dir() -> Path:
    """Real WOMD scenes: `training/` and `validation/` with TFRecord shards."""
    return _shared_folder("womd")


@pytest.fixture(scope="session")
def goldens_dir() -> Path:
    """What the official scorer says of simulated rollouts of these scenes."""
    return _shared_folder("goldens")


@pytest.fixture(scope="session")
def smart_fixtures_dir() -> Path:
    """What the public SMART / CAT-K code gives for known weights and inputs."""
    return _shared_folder("smart_fixtures")


@pytest.fixture(scope="session")
def make_scenario() -> Callable[..., Scenario]:
    """A function that builds small scenes by hand, see `_make_scenario`."""
    return _make_scenario


def _make_scenario(
    *,
    scenario_id: str = "scene",
    n_tracks: int = 3,
    n_steps: int = 91,
    speed: float = 5.0,
    origin: tuple[float, float] = (0.0, 0.0),
    object_types: Sequence[int] | None = None,
    tracks_to_predict: Sequence[int] = (1,),
    road_edges: Sequence[npt.ArrayLike] | None = None,
    lanes: Mapping[int, npt.ArrayLike] | None = None,
    signals: Sequence[Sequence[tuple[int, int, npt.ArrayLike]]] = (),
) -> Scenario:
    """Vehicles side by side, 4 m apart, that drive along x at `speed`, on a straight road.

    Args:
        scenario_id: the scene's id.
        n_tracks: how many; ids are 10, 11, ...; the first is the autonomous vehicle.
        n_steps: of the record.
        speed: m/s.
        origin: where the first one starts.
        object_types: of each track, vehicles by default.
        tracks_to_predict: rows of tracks.
        road_edges: polylines [n, 2 or 3]; by default one on either side of the road.
        lanes: id -> polyline [n, 2 or 3], surface streets.
        signals: for each step a list of (lane id, state, stop point).
    """
    time = 0.1 * np.arange(n_steps)
    position = np.zeros((n_tracks, n_steps, 3))
    position[..., 0] = origin[0] + speed * time
    position[..., 1] = origin[1] + 4.0 * np.arange(n_tracks)[:, None]
    tracks = Tracks(
        object_ids=np.arange(10, 10 + n_tracks, dtype=np.int64),
        object_types=np.array(object_types or [ObjectType.VEHICLE] * n_tracks, dtype=np.int8),
        position=position,
        size=np.broadcast_to(np.float32([4.5, 2.0, 1.6]), (n_tracks, n_steps, 3)).copy(),
        heading=np.zeros((n_tracks, n_steps), np.float32),
        velocity=np.broadcast_to(np.float32([speed, 0]), (n_tracks, n_steps, 2)).copy(),
        valid=np.ones((n_tracks, n_steps), bool),
    )
    if road_edges is None:
        low, high = origin[1] - 4.0, origin[1] + 4.0 * n_tracks
        left, right = origin[0] - 50.0, origin[0] + 200.0
        road_edges = [[(left, low), (right, low)], [(right, high), (left, high)]]
    features = [
        (MapFeatureKind.ROAD_EDGE, 1, 1000 + i, polyline) for i, polyline in enumerate(road_edges)
    ] + [
        (MapFeatureKind.LANE, LaneType.SURFACE_STREET, i, polyline)
        for i, polyline in (lanes or {}).items()
    ]
    polylines = []
    for _, _, _, polyline in features:
        points = np.asarray(polyline, dtype=np.float64)
        polylines.append(np.pad(points, ((0, 0), (0, 3 - points.shape[1]))))
    n_features = len(features)
    no_links = Links(offsets=np.zeros(n_features + 1, np.int64), ids=np.zeros(0, np.int64))
    road_map = RoadMap(
        feature_ids=np.array([i for _, _, i, _ in features], dtype=np.int64),
        kinds=np.array([k for k, _, _, _ in features], dtype=np.int8),
        types=np.array([t for _, t, _, _ in features], dtype=np.int8),
        point_offsets=np.cumsum([0, *map(len, polylines)]).astype(np.int64),
        points=np.concatenate([np.zeros((0, 3)), *polylines]),
        speed_limit_mph=np.zeros(n_features),
        interpolating=np.zeros(n_features, bool),
        entry_lanes=no_links,
        exit_lanes=no_links,
        stop_sign_lanes=no_links,
        neighbors=np.zeros((0, 7), np.int64),
    )
    rows = [row for step in signals for row in step]
    return Scenario(
        scenario_id=scenario_id,
        timestamps=time,
        current_time_index=10,
        sdc_track_index=0,
        tracks=tracks,
        tracks_to_predict=np.array(tracks_to_predict, dtype=np.int64),
        difficulties=np.zeros(len(tracks_to_predict), np.int8),
        objects_of_interest=np.zeros(0, np.int64),
        road_map=road_map,
        traffic_lights=TrafficLights(
            step_offsets=np.cumsum([0, *map(len, signals)]).astype(np.int64),
            lane_ids=np.array([i for i, _, _ in rows], dtype=np.int64),
            states=np.array([s for _, s, _ in rows], dtype=np.int8),
            stop_points=np.array(
                [[*np.asarray(p, dtype=np.float64)[:2], 0.0] for _, _, p in rows]
            ).reshape(-1, 3),
        ),
    )
