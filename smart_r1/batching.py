"""Scenes of any size, joined into batches without padding."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smart_r1.scene_tensors import SceneTensors
from wosac_toolkit.errors import WosacError
from wosac_toolkit.scenario import BoolArray, Int64Array

if TYPE_CHECKING:
    from smart_r1.cache import SceneCache

View = Literal["logged", "in_range"]

MOST_TRAINED = 32
"""Agents a scene whose actions are learned, at most (CAT-K's target builder)."""

_EDGES_OF_AGENT, _EDGES_OF_MAP_TOKEN = 2600, 28


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B scenes; the agents of all of them follow each other scene by scene, and so the map tokens.

    A and P are totals over the scenes. Positions are in each scene's local frame.

    Attributes:
        scenario_ids: B ids.
        origin: float64 [B, 2], where each local frame's origin lies in the global frame.
        agent_counts: B numbers of agents, which add up to A.
        map_counts: B numbers of map tokens, which add up to P.
        object_ids: int64 [A].
        classes: int64 [A], 0 vehicle, 1 pedestrian, 2 cyclist.
        size: float32 [A, 3], length, width, height in metres.
        z: float32 [A], metres, global frame, at the current step.
        roles: bool [A, 3], is the SDC, is of interest, is to be predicted.
        position: float32 [A, 19, 2], metres, at steps 0, 5, .., 90; 0 where not valid.
        heading: float32 [A, 19], radians, may leave [-pi, pi]; 0 where not valid.
        valid: bool [A, 19].
        train_mask: bool [A], the agents whose actions count in the loss.
        map_points: float32 [P, 3, 2], metres: start, middle and end of each piece.
        map_heading: float32 [P], radians, at the start.
        map_type: int64 [P], 0..9.
        map_polygon: int64 [P], 0..3.
        map_light: int64 [P], 0..4.
    """

    scenario_ids: tuple[str, ...]
    origin: Tensor
    agent_counts: tuple[int, ...]
    map_counts: tuple[int, ...]
    object_ids: Tensor
    classes: Tensor
    size: Tensor
    z: Tensor
    roles: Tensor
    position: Tensor
    heading: Tensor
    valid: Tensor
    train_mask: Tensor
    map_points: Tensor
    map_heading: Tensor
    map_type: Tensor
    map_polygon: Tensor
    map_light: Tensor

    def __len__(self) -> int:
        return len(self.scenario_ids)

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same batch on a device; copies do not block where the batch is pinned."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> SceneBatch:
        """The same batch in page-locked memory, from where copies to a GPU do not block."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> SceneBatch:
        tensors: dict[str, Any] = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


def collate(
    scenes: Sequence[SceneTensors],
    *,
    view: View,
    rngs: Sequence[np.random.Generator] | None = None,
) -> SceneBatch:
    """Join scenes.

    Args:
        scenes: at least one.
        view: `logged` for evaluation, `in_range` for training.
        rngs: one a scene, which draws its `trained_agents`; None: `train_mask` is True for all
            agents.
    """
    if rngs is None:
        masks = [np.ones(len(s.classes), np.bool_) for s in scenes]
    else:
        masks = [trained_agents(s, rng) for s, rng in zip(scenes, rngs, strict=True)]

    def joined(arrays: Iterable[npt.NDArray[Any]], dtype: type | None = None) -> Tensor:
        return torch.from_numpy(np.concatenate(list(arrays), dtype=dtype))

    states = [s.logged if view == "logged" else s.in_range for s in scenes]
    return SceneBatch(
        scenario_ids=tuple(s.scenario_id for s in scenes),
        origin=torch.from_numpy(np.stack([s.origin for s in scenes])),
        agent_counts=tuple(len(s.classes) for s in scenes),
        map_counts=tuple(len(s.map_type) for s in scenes),
        object_ids=joined(s.object_ids for s in scenes),
        classes=joined((s.classes for s in scenes), np.int64),
        size=joined(s.size for s in scenes),
        z=joined(s.z for s in scenes),
        roles=joined(s.roles for s in scenes),
        position=joined(s.position for s in states),
        heading=joined(s.heading for s in states),
        valid=joined(s.valid for s in states),
        train_mask=joined(masks),
        map_points=joined(s.map_points for s in scenes),
        map_heading=joined(s.map_heading for s in scenes),
        map_type=joined((s.map_type for s in scenes), np.int64),
        map_polygon=joined((s.map_polygon for s in scenes), np.int64),
        map_light=joined((s.map_light for s in scenes), np.int64),
    )


def trained_agents(scene: SceneTensors, rng: np.random.Generator) -> BoolArray:
    """The trainable agents, at most `MOST_TRAINED`: all that have a role, others at random.

    More agents with a role than that are all kept.

    Returns:
        bool [A].
    """
    mask = np.asarray(scene.roles.any(axis=1), np.bool_)
    others = np.flatnonzero(scene.trainable & ~mask)
    room = max(0, MOST_TRAINED - int(np.count_nonzero(mask)))
    if len(others) > room:
        others = rng.choice(others, room, replace=False)
    mask[others] = True
    return mask


def scene_costs(cache: SceneCache) -> Int64Array:
    """Estimates of the edges of scenes in a pass over all their steps, see `edges`, int64 [N]."""
    return edges(cache.agent_counts, cache.map_counts)


def edges(agent_counts: Int64Array, map_counts: Int64Array) -> Int64Array:
    """An estimate of the edges of a scene's graph, which memory and time go with.

    Means over 124 WOMD scenes, with the radii of the 7M model: an agent has 2,080 edges from map
    tokens, 460 from other agents and 60 from its past (all 18 steps), and a map token 28 from
    others. The true number lies between half and twice the estimate in nine scenes of ten.

    Args:
        agent_counts: of each scene; over R rollouts R times as many.
        map_counts: map tokens of each.
    """
    return agent_counts * _EDGES_OF_AGENT + map_counts * _EDGES_OF_MAP_TOKEN


def plan_batches(costs: Int64Array, budget: int) -> list[range]:
    """Divide scenes into batches within a budget, in their order.

    A batch is closed when the next scene does not fit.

    Args:
        costs: int64 [N], what each scene costs.
        budget: most that a batch costs, unless it is one scene.

    Returns:
        The scenes of each batch; every scene is in one of them.

    Raises:
        WosacError: no room for any scene.
    """
    if budget < 1:
        raise WosacError(f"no scene fits a budget of {budget}")
    plan = []
    first = 0
    total = np.cumsum(costs)
    while first < len(costs):
        spent = total[first] - costs[first]
        fits = int(np.searchsorted(total, spent + budget, side="right"))
        end = max(fits, first + 1)
        plan.append(range(first, end))
        first = end
    return plan


def scene_rng(seed: int, epoch: int, scenario_id: str) -> np.random.Generator:
    """The random numbers of a scene in an epoch, whatever comes with it."""
    name = hashlib.sha256(scenario_id.encode()).digest()[:8]
    return np.random.default_rng([seed, epoch, int.from_bytes(name, "big")])
