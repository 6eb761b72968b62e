"""Scenes, tokens and rewards small enough to train on in a test, and how runs are disturbed."""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smart_r1.cache import prepare_dataset
from smart_r1.tokens.vocabulary import CLASS_SIZE, Vocabulary, save_vocabulary
from smart_r1.train.log import read_log
from wosac_toolkit.io.scenarios import write_scenarios
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Float64Array, Scenario, Tracks
from wosac_toolkit.synthetic import generate_scenarios


def cropped(scenario: Scenario, n_agents: int, radius: float) -> Scenario:
    """The agents nearest to the SDC, and the map within some metres of it."""
    tracks, road_map = scenario.tracks, scenario.road_map
    here = tracks.position[scenario.sdc_track_index, 10, :2]
    away = np.linalg.norm(tracks.position[:, 10, :2] - here, axis=1)
    rows = np.argsort(np.where(tracks.valid[:, 10], away, np.inf), kind="stable")[:n_agents]
    near = np.linalg.norm(road_map.points[:, :2] - here, axis=1) < radius
    counts = [near[a:b].sum() for a, b in itertools.pairwise(road_map.point_offsets)]
    return dataclasses.replace(
        scenario,
        sdc_track_index=0,
        tracks=Tracks(*(getattr(tracks, f.name)[rows] for f in dataclasses.fields(Tracks))),
        tracks_to_predict=np.array([1]),
        difficulties=np.zeros(1, np.int8),
        objects_of_interest=np.zeros(0, np.int64),
        road_map=dataclasses.replace(
            road_map,
            points=road_map.points[near],
            point_offsets=np.cumsum([0, *counts]).astype(np.int64),
        ),
    )


def arcs() -> Vocabulary:
    """50 arcs a class, from standing still to fast, from right to left."""
    motion = []
    corners = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
    along = np.linspace(0, 1, 6)[:, None]
    for size, fastest, sharpest in zip(CLASS_SIZE, (10, 1.5, 4), (0.3, 1, 0.6), strict=True):
        length, turn = np.meshgrid(
            np.linspace(0, fastest, 10), np.linspace(-sharpest, sharpest, 5), indexing="ij"
        )
        heading = along * turn.ravel()
        centre = (along * length.ravel())[..., None] * np.stack(
            [np.cos(heading / 2), np.sin(heading / 2)], -1
        )
        cos, sin = np.cos(heading)[..., None], np.sin(heading)[..., None]
        x, y = (corners * size).T
        box = np.stack([cos * x - sin * y, sin * x + cos * y], -1) + centre[:, :, None]
        motion.append(box.swapaxes(0, 1))
    at = np.linspace(0, 5, 11) * np.ones((8, 1))
    bend = at * np.linspace(-0.1, 0.1, 8)[:, None] / 2
    curves = np.stack([at * np.cos(bend), at * np.sin(bend)], -1)
    return Vocabulary(np.stack(motion).astype(np.float32), curves.astype(np.float32))


@dataclass(frozen=True)
class Data:
    """Where the small scenes, their cache, and the vocabulary are."""

    scenarios: Path
    cache: Path
    vocabulary: Path


def make_data(folder: Path, n_scenes: int) -> Data:
    """Synthetic scenes of two agents each, prepared, and the arcs, in files."""
    found = Data(folder / "scenarios", folder / "cache", folder / "arcs.safetensors")
    scenes = [cropped(scene, 2, 10.0) for scene in generate_scenarios(n_scenes, seed=0)]
    write_scenarios(found.scenarios, scenes, 1)
    assert not prepare_dataset(str(found.scenarios), found.cache, workers=1).findings
    save_vocabulary(found.vocabulary, arcs())
    return found


# --------------------------------------------------------------------------------------------------
# Runs


class Crash(Exception):
    """Ends a run as a kill would."""


def crash() -> None:
    raise Crash


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


def newest(out: Path) -> Path:
    """The last checkpoint of a run."""
    return sorted((out / "checkpoints").iterdir())[-1]


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The log of a run, without the times."""
    return [
        {k: v for k, v in line.items() if not k.startswith("seconds")} for line in read_log(out)
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit."""
    assert lines_of(one) == lines_of(other)
    for name in ("model.safetensors", "trainer.safetensors", "trainer.json"):
        assert (newest(one) / name).read_bytes() == (newest(other) / name).read_bytes(), name
    for folder in ("final", "best"):
        model = (one / folder / "model.safetensors").read_bytes()
        assert (other / folder / "model.safetensors").read_bytes() == model


# --------------------------------------------------------------------------------------------------
# Rewards


def turning_left(scenarios: Sequence[Scenario], rollouts: Sequence[Rollouts]) -> Float64Array:
    """How far agents turn to the left in all, radians, mean over agents."""
    return np.array([_turned(each).mean(axis=1) for each in rollouts])


def _turned(rollouts: Rollouts) -> Float64Array:
    heading = rollouts.states[..., 3].astype(np.float64)
    return np.unwrap(heading, axis=2)[:, :, -1] - heading[:, :, 0]


def nothing(scenarios: Sequence[Scenario], rollouts: Sequence[Rollouts]) -> Float64Array:
    """No reward for any scene."""
    return np.full((len(rollouts), rollouts[0].n_rollouts), np.nan)
