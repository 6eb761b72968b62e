"""How much is lost when what happens in scenes is told in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smart_r1.scene_tensors import SceneTensors, scene_tensors
from smart_r1.tokens.map_tokens import match_curves
from smart_r1.tokens.motion import play_out, tokenize
from smart_r1.tokens.vocabulary import CLASSES, Vocabulary
from smart_r1.tracks import N_STEPS, TOKEN_STEPS, hold_glitches, wrap
from wosac_toolkit.errors import WosacError
from wosac_toolkit.scenario import Float64Array, Scenario

MOVING = 0.25
"""Metres in half a second; who covers less hardly moves."""

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Errors:
    """A distribution of `n` errors: mean, quantiles and maximum; None where there are none."""

    n: int
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class TokenUse:
    """What was matched to a vocabulary.

    Attributes:
        matched: how many half seconds of a class, or pieces of the map.
        used: share of the vocabulary that any of them was matched to.
        errors: by the name of what is compared.
    """

    matched: int
    used: float
    errors: dict[str, Errors]


def reconstruct(scenarios: Iterable[Scenario], vocabulary: Vocabulary) -> dict[str, TokenUse]:
    """Match the tracks and maps of scenes as for training, and compare.

    Tracks are those of the agents valid at the current step, cleaned as the model gets them. Each
    token starts from the state that the last one led to.

    Returns:
        For each class the errors where tokens end (`position`, in metres, and `heading`, in
        radians), those of agents that cover more than 0.25 m (`moving_position`), and those at all
        the logged steps (`position_10hz`, `heading_10hz`). For `map curve` the errors at the middle
        and the end of the pieces, on average (`position`).

    Raises:
        ScenarioError: a scene that the model cannot take.
        WosacError: no scenes.
    """
    tracks, maps = [], []
    for scenario in scenarios:
        scene = scene_tensors(scenario)
        tracks.append(_compare_tracks(scenario, scene, torch.from_numpy(vocabulary.motion)))
        maps.append(_compare_map(scene, torch.from_numpy(vocabulary.curves)))
    if not tracks:
        raise WosacError("no scenes to check the vocabulary with")
    motion, n_tokens = _joined(tracks), vocabulary.motion.shape[1]
    of_class = motion.pop("class")
    uses = {
        name: _use({key: values[of_class == number] for key, values in motion.items()}, n_tokens)
        for number, name in enumerate(CLASSES)
    }
    return {**uses, "map curve": _use(_joined(maps), len(vocabulary.curves))}


def _compare_tracks(scenario: Scenario, scene: SceneTensors, motion: Tensor) -> Columns:
    """A row a token: its class, its index, and errors [n] or [n, 5] (NaN where there are none)."""
    position, heading = map(torch.from_numpy, (scene.logged.position, scene.logged.heading))
    classes = torch.from_numpy(scene.classes.astype(np.int64))
    tokens = tokenize(position, heading, torch.from_numpy(scene.logged.valid), classes, motion)
    agent, k = torch.nonzero(tokens.valid, as_tuple=True)
    # A token starts where the last one has ended or, where there is none, on the track.
    rolls = (k > 0) & tokens.valid[agent, k - 1]
    start = torch.where(rolls[:, None], tokens.position[agent, k - 1], position[agent, k])
    direction = torch.where(rolls, tokens.heading[agent, k - 1], heading[agent, k])
    index = tokens.index[agent, k]
    way, ways = play_out(index, start, direction, classes[agent], motion)

    off = (way[:, -1] - position[agent, k + 1]).norm(dim=-1).numpy()
    covered = (position[agent, k + 1] - position[agent, k]).norm(dim=-1).numpy()
    steps = TOKEN_STEPS * k[:, None] + torch.arange(1, TOKEN_STEPS + 1)
    logged, facing = _logged(scenario, scene.origin)
    log = logged[agent[:, None], steps]
    return {
        "class": classes[agent].numpy(),
        "index": index.numpy(),
        "position": off,
        "moving_position": np.where(covered > MOVING, off, np.nan),
        "position_10hz": np.linalg.norm(way.numpy() - log, axis=-1),
        "heading": np.abs(wrap((ways[:, -1] - heading[agent, k + 1]).double().numpy())),
        "heading_10hz": np.abs(wrap(ways.numpy() - facing[agent[:, None], steps])),
    }


def _logged(scenario: Scenario, origin: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Positions [A, 91, 2] in the local frame and headings [A, 91] as logged; NaN for none."""
    tracks, rows = scenario.tracks, scenario.sim_agents()
    valid = tracks.valid[rows, :N_STEPS]
    position = np.full((len(rows), N_STEPS, 2), np.nan)
    heading = np.full((len(rows), N_STEPS), np.nan)
    n = valid.shape[1]
    position[:, :n] = np.where(valid[..., None], tracks.position[rows, :n, :2] - origin, np.nan)
    held = hold_glitches(tracks.heading[rows, :n].astype(np.float64), valid)
    heading[:, :n] = np.where(valid, held, np.nan)
    return position, heading


def _compare_map(scene: SceneTensors, curves: Tensor) -> Columns:
    """A row a piece: the index of its curve, and the error."""
    points, heading = map(torch.from_numpy, (scene.map_points, scene.map_heading))
    index = match_curves(points, heading, curves)
    cos, sin = heading.cos()[:, None], heading.sin()[:, None]
    x, y = curves[index][:, ::5].unbind(-1)
    placed = points[:, :1] + torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
    error = (placed - points).norm(dim=-1)[:, 1:].mean(dim=1)
    return {"index": index.numpy(), "position": error.numpy()}


def _joined(scenes: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([scene[name] for scene in scenes]) for name in scenes[0]}


def _use(columns: Columns, n_tokens: int) -> TokenUse:
    index = columns.pop("index")
    errors = {name: _errors(values) for name, values in columns.items()}
    return TokenUse(len(index), len(np.unique(index)) / n_tokens, errors)


def _errors(values: npt.NDArray[Any]) -> Errors:
    values = values[~np.isnan(values)].astype(np.float64)
    if not len(values):
        return Errors(0)
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99)).tolist()
    return Errors(len(values), float(values.mean()), p50, p95, p99, float(values.max()))
