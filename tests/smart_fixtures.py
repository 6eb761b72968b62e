"""The recorded outputs of the public SMART / CAT-K code, as our types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from smart_r1.batching import SceneBatch
from smart_r1.model.catk import load_weights
from smart_r1.model.config import CONFIGS, ModelConfig
from smart_r1.model.smart import SMART
from smart_r1.simulate import Decision
from smart_r1.tokens.motion import MotionTokens
from smart_r1.tokens.vocabulary import CLASS_SIZE, Vocabulary, load_vocabulary

SMALL = ModelConfig(32, 2, 8, 8, 2, 2, 10.0, 30.0, 60.0, 6, entry_motion="global")
NANO = dataclasses.replace(CONFIGS["nano"], entry_motion="global")


@dataclass(frozen=True)
class Recorded:
    """A model of the public code, and what it was given and gave.

    Attributes:
        model: ours, with its weights, in evaluation mode.
        batch: the scenes; positions in the global frame, so `origin` is 0.
        tokens: the logged tracks as it tokenized them.
        values: all else that was recorded, by its name.
    """

    model: SMART
    batch: SceneBatch
    tokens: MotionTokens
    values: Mapping[str, Tensor]


def small_model(folder: Path) -> SMART:
    """The two-layer model with made-up vocabularies."""
    folder = folder / "synthetic_small"
    tables = load_file(folder / "vocab.safetensors")
    motion = torch.stack([tables[f"token_all/{name}"] for name in ("veh", "ped", "cyc")])
    vocabulary = Vocabulary(motion.numpy(), tables["map/traj_src"].numpy())
    return _loaded(SMART(SMALL, vocabulary), folder / "model.safetensors")


def nano_model(folder: Path) -> SMART:
    """The model of 1M parameters."""
    tables = folder / "vocabulary"
    vocabulary = load_vocabulary(tables / "agent_vocab_555_s2.pkl", tables / "map_traj_token5.pkl")
    return _loaded(SMART(NANO, vocabulary), folder / "smart_nano_1M/model.safetensors")


def _loaded(model: SMART, weights: Path) -> SMART:
    load_weights(model, load_file(weights), str(weights))
    return model.eval()


def recorded_small(folder: Path, name: str) -> Recorded:
    """`sparse` (two scenes) or `dense_cap`, `*_eval_indexorder` or `sparse_train_*`."""
    raw = name.split("_")[0] if name.startswith("sparse") else "dense_cap"
    scenes = load_file(folder / f"synthetic_small/{raw}_raw.safetensors")
    n = 1 + max(int(key.split("/")[0]) for key in scenes)
    points = [scenes[f"{i}/map_save/traj_pos"] for i in range(n)]
    values = load_file(folder / f"synthetic_small/{raw}_eval_indexorder.safetensors")
    # What was recorded in training lacks the map, which is the same.
    values = {k: v for k, v in values.items() if k.startswith("map/")}
    values |= load_file(folder / f"synthetic_small/{name}.safetensors")
    return _recorded(small_model(folder), values, torch.cat(points))


def recorded_nano(folder: Path, *names: str) -> Recorded:
    """Tokens and what the files of these names hold."""
    raw = load_file(folder / "raw_scenario_tensors.safetensors")
    values = dict(load_file(folder / "smart_nano_1M/tokens_eval.safetensors"))
    for name in names:
        values |= load_file(folder / f"smart_nano_1M/{name}.safetensors")
    return _recorded(nano_model(folder), values, raw["map_save/traj_pos"])


def _recorded(model: SMART, values: Mapping[str, Tensor], points: Tensor) -> Recorded:
    def agent(name: str) -> Tensor:
        return values[f"agent/{name}"]

    def road(name: str) -> Tensor:
        return values[f"map/{name}"]

    n = int(agent("batch").max()) + 1
    n_agents = len(agent("type"))

    def with_start(field: Tensor) -> Tensor:
        # The recorded tracks begin at step 5; what was at step 0 is in the first token.
        return torch.cat([torch.zeros_like(field[:, :1]), field], dim=1)

    batch = SceneBatch(
        scenario_ids=tuple(f"scene{i}" for i in range(n)),
        origin=torch.zeros(n, 2, dtype=torch.float64),
        agent_counts=tuple(torch.bincount(agent("batch"), minlength=n).tolist()),
        map_counts=tuple(torch.bincount(road("batch"), minlength=n).tolist()),
        object_ids=torch.arange(n_agents),
        classes=agent("type").long(),
        size=agent("shape"),
        z=values.get("agent/gt_z_raw", torch.zeros(n_agents)),
        roles=torch.zeros(n_agents, 3, dtype=torch.bool),
        position=with_start(agent("gt_pos_raw")),
        heading=with_start(agent("gt_head_raw")),
        valid=with_start(agent("gt_valid_raw")),
        train_mask=values.get("train_mask", torch.ones(n_agents, dtype=torch.bool)),
        map_points=points,
        map_heading=road("orientation"),
        map_type=road("type"),
        map_polygon=road("pl_type"),
        map_light=road("light_type"),
    )
    tokens = MotionTokens(
        agent("gt_idx"), agent("gt_pos"), agent("gt_heading"), agent("valid_mask")
    )
    return Recorded(model, batch, tokens, values)


def of_rollout(values: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """What is recorded of one rollout, `name/...`."""
    return {k.removeprefix(f"{name}/"): v for k, v in values.items() if k.startswith(f"{name}/")}


def largest(difference: Tensor) -> float:
    """The largest absolute value; 0 of nothing."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def turned(a: Tensor, b: Tensor) -> Tensor:
    """The difference of two angles."""
    return torch.from_numpy(np.angle(np.exp(1j * (a - b).double().numpy())))


def corner_distance(
    batch: SceneBatch, motion: Tensor, decision: Decision, agent: int, token: int
) -> float:
    """The mean distance of the corners between where a token leads an agent and its log."""
    cls = int(batch.classes[agent])
    length, width = CLASS_SIZE[cls].tolist()
    heading, at = float(decision.heading[0, agent]), decision.step + 3
    logged = float(batch.heading[agent, at])

    def rotation(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    ends = motion[cls, token, -1].double().numpy() @ rotation(heading).T
    ends = ends + decision.position[0, agent].double().numpy()
    box = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * [length / 2, width / 2]
    box = box @ rotation(logged).T + batch.position[agent, at].double().numpy()
    return float(np.linalg.norm(ends - box, axis=1).mean())
