"""What a policy has done in closed loop, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from smart_r1.batching import SceneBatch, collate, edges, plan_batches
from smart_r1.scene_tensors import scene_tensors
from smart_r1.simulate import Sampling, sampled, to_rollouts
from wosac_toolkit.errors import ScenarioError
from wosac_toolkit.io.scenarios import read_scenario
from wosac_toolkit.io.tfrecord import RecordRef

if TYPE_CHECKING:
    from torch import Tensor

    from smart_r1.model.smart import SMART
    from smart_r1.tokens.motion import MotionTokens
    from wosac_toolkit.reward import Reward, Rewards
    from wosac_toolkit.scenario import Scenario


@dataclass(frozen=True, eq=False)
class Part:
    """Scenes that are simulated and learned from together, as scenarios and as the model reads."""

    scenarios: Sequence[Scenario]
    batch: SceneBatch


@dataclass(frozen=True, eq=False)
class Loaded:
    """Scenes of a step.

    Attributes:
        parts: each within the bound of what is computed at once, unless it is one scene.
        refused: scenario id -> why a scene cannot be simulated.
    """

    parts: Sequence[Part]
    refused: Mapping[str, str]


def load_parts(records: Mapping[str, RecordRef], *, n_rollouts: int, edges_at_once: int) -> Loaded:
    """Read scenes and divide them into parts; on the CPU.

    Args:
        records: scenario id -> where it is.
        n_rollouts: of each, in the pass with gradients.
        edges_at_once: bound of each part, see `smart_r1.batching.edges`.

    Raises:
        FormatError: a damaged file.
    """
    usable = []
    refused = {}
    for name, record in records.items():
        try:
            scenario = read_scenario(record)
            usable.append((scenario, scene_tensors(scenario)))
        except ScenarioError as error:
            refused[name] = str(error)
    costs = edges(
        np.array([n_rollouts * len(tensors.classes) for _, tensors in usable], np.int64),
        np.array([len(tensors.map_type) for _, tensors in usable], np.int64),
    )
    parts = []
    if usable:
        for chosen in plan_batches(costs, edges_at_once):
            scenarios, tensors = zip(*usable[chosen.start : chosen.stop], strict=True)
            parts.append(Part(scenarios, collate(tensors, view="logged")))
    return Loaded(parts, refused)


@dataclass(frozen=True, eq=False)
class Experience:
    """What a policy has done in the S scenes of a part.

    Attributes:
        batch: the scenes, with A agents in all.
        tokens: [R, A, 18], the states visited.
        log_probability: [R, A, 16], of the tokens drawn, when they were drawn.
        rewards: of the rollouts, to come.
    """

    batch: SceneBatch
    tokens: MotionTokens
    log_probability: Tensor
    rewards: Future[Rewards]


@torch.no_grad()
def gain_experience(
    model: SMART,
    part: Part,
    reward: Reward,
    *,
    n_rollouts: int,
    sampling: Sampling,
    seed: int,
    context: Callable[[], AbstractContextManager[object]],
) -> Experience:
    """Simulate the scenes of a part, and have the rollouts rewarded by other threads.

    Args:
        model: the policy, in evaluation mode.
        part: the scenes.
        reward: of R rollouts of each.
        n_rollouts: R.
        sampling: how tokens are drawn.
        seed: of the draws.
        context: in which the network computes, such as an autocast.
    """
    batch = part.batch.to(model.motion.device)
    with context():
        loop = sampled(model, batch, n_rollouts=n_rollouts, sampling=sampling, seed=seed)
    rewards = reward.submit(part.scenarios, to_rollouts(batch, loop))
    return Experience(batch, loop.tokens, loop.log_probability, rewards)
