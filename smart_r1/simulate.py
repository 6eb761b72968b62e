"""Closed-loop simulation: a policy moves all agents of a scene, half a second at a time.

The simulation begins with the tokenized history (10 Hz steps 5 and 10). At each of 16 steps every
agent is given a token, all at the same time and from what is known until then; the token's five
poses are the next half second at 10 Hz, and its last one is the state that everybody sees next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smart_r1.batching import SceneBatch, collate
from smart_r1.model.agent_decoder import AgentContext, EncodedMap, Memory
from smart_r1.model.smart import FIRST_PREDICTED, SMART
from smart_r1.scene_tensors import SceneTensors
from smart_r1.tokens.motion import MotionTokens, class_boxes, play_out
from smart_r1.tokens.vocabulary import CLASS_SIZE
from wosac_toolkit.errors import WosacError
from wosac_toolkit.rollouts import Rollouts
from wosac_toolkit.scenario import Float64Array

N_STEPS = 16
"""Tokens of 8 s."""

POSES_A_TOKEN = 5

#: Agents times rollouts that are simulated at once, at most, unless one rollout has more.
_ROWS = {"cpu": 2048, "cuda": 1 << 15}


@dataclass(frozen=True, eq=False, slots=True)
class Decision:
    """What is known when agents choose their tokens.

    Attributes:
        step: 0 to 15.
        logits: [R, A, V].
        position: [R, A, 2], metres in the scenes' local frames.
        heading: [R, A].
    """

    step: int
    logits: Tensor
    position: Tensor
    heading: Tensor


Choice = Callable[[Decision], Tensor]
"""How agents choose: a decision to the tokens long [R, A]."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        top_k: among so many of the most probable.
        temperature: logits are divided by this.
    """

    top_k: int = 48
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 1 or not self.temperature > 0:
            raise WosacError(f"{self}: top_k must be at least 1 and the temperature above 0")


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, eq=False, slots=True)
class ClosedLoop:
    """R rollouts of the A agents of a batch.

    Attributes:
        tokens: [R, A, 18], two of the history and 16 chosen, and the states they led to; an agent
            that is valid at the current step stays so.
        trajectory: [R, A, 80, 2], at 10 Hz.
        trajectory_heading: [R, A, 80], radians in [-pi, pi].
        log_probability: [R, A, 16], of the tokens chosen, by the softmax of all logits.
    """

    tokens: MotionTokens
    trajectory: Tensor
    trajectory_heading: Tensor
    log_probability: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Beginning:
    """What all rollouts of a batch share: its maps, its agents, and their history.

    Attributes:
        encoded: the maps.
        context: the agents.
        history: the states of the token steps 0 and 1, [2, 1, A].
        features: of the current state, [1, A, D].
        keys_values: for each layer those of the history, [2, 1, A, 2 * inner].
    """

    encoded: EncodedMap
    context: AgentContext
    history: MotionTokens
    features: Tensor
    keys_values: Sequence[Tensor]


@torch.no_grad()
def begin(model: SMART, batch: SceneBatch, tokens: MotionTokens) -> Beginning:
    """Encode maps and histories, once for any number of rollouts.

    Args:
        model: on the batch's device.
        batch: scenes with A agents in all.
        tokens: the logged tracks, [A, 18]; only the history is looked at.
    """
    context, encoded = model.context(batch), model.encode_map(batch)
    history = tokens.mapped(lambda field: field[:, : FIRST_PREDICTED + 1, None].movedim(0, 2))
    features, keys_values = model.agent_decoder(context, encoded, history)
    return Beginning(encoded, context, history, features[-1], keys_values)


@torch.no_grad()
def simulate(model: SMART, beginning: Beginning, choose: Choice, n_rollouts: int) -> ClosedLoop:
    """Simulate eight seconds.

    A step costs the same however many went before it.

    Args:
        model: dropout as its mode says.
        beginning: of the scenes.
        choose: how agents choose their tokens.
        n_rollouts: R.
    """
    decoder, context, encoded = model.agent_decoder, beginning.context, beginning.encoded
    memory = Memory(model.config.time_span, n_rollouts, beginning.history, beginning.keys_values)

    def repeated(field: Tensor) -> Tensor:
        return field.expand(n_rollouts, *field.shape[1:])

    n_history = len(beginning.history.valid)
    states = [beginning.history.at(step).mapped(repeated) for step in range(n_history)]
    logits = repeated(decoder.logits(beginning.features))
    classes = context.classes.expand(n_rollouts, -1).flatten()
    paths, headings, log_probabilities = [], [], []
    for step in range(N_STEPS):
        now = states[-1]
        if step > 0:
            displacement = now.position - states[-2].position
            logits = decoder.logits(decoder.step(context, encoded, memory, now, displacement))
        index = choose(Decision(step, logits, now.position, now.heading))
        chosen = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        log_probabilities.append(chosen.float() - logits.float().logsumexp(-1))
        position, heading = now.position.flatten(0, 1), now.heading.flatten()
        path, heading = play_out(index.flatten(), position, heading, classes, model.motion)
        path, heading = path.unflatten(0, index.shape), heading.unflatten(0, index.shape)
        paths.append(path)
        headings.append(heading)
        states.append(MotionTokens(index, path[..., -1, :], heading[..., -1], now.valid))
    return ClosedLoop(
        MotionTokens(
            torch.stack([one.index for one in states], 2),
            torch.stack([one.position for one in states], 2),
            torch.stack([one.heading for one in states], 2),
            torch.stack([one.valid for one in states], 2),
        ),
        torch.cat(paths, 2),
        torch.cat(headings, 2),
        torch.stack(log_probabilities, 2),
    )


# --------------------------------------------------------------------------------------------------
# How agents choose


def most_probable(decision: Decision) -> Tensor:
    """The token of the largest logit."""
    return decision.logits.argmax(-1)


def sample(batch: SceneBatch, rollouts: Sequence[int], sampling: Sampling, seed: int) -> Choice:
    """Draw from the most probable tokens.

    The random numbers depend on the seed, the scenario's id, the number of the rollout and the
    agent's row in its scene alone, and so not on what else is simulated with it.

    Args:
        batch: the scenes.
        rollouts: the numbers of the R rollouts.
        sampling: how.
        seed: at least 0.
    """
    draws = [
        np.stack([_uniforms(seed, name, number, n) for number in rollouts])
        for name, n in zip(batch.scenario_ids, batch.agent_counts, strict=True)
    ]
    uniform = torch.from_numpy(np.concatenate(draws, axis=2)).to(batch.size.device)

    def choose(decision: Decision) -> Tensor:
        k = min(sampling.top_k, decision.logits.shape[-1])
        logits, index = decision.logits.topk(k, dim=-1)
        probability = (logits.double() / sampling.temperature).softmax(-1)
        passed = probability.cumsum(-1) <= uniform[:, decision.step, :, None]
        return index.gather(-1, passed.sum(-1, keepdim=True).clamp_(max=k - 1)).squeeze(-1)

    return choose


def _uniforms(seed: int, scenario_id: str, rollout: int, n_agents: int) -> Float64Array:
    """In [0, 1): float64 [16, A]."""
    scene = hashlib.blake2b(scenario_id.encode(), digest_size=8).digest()
    rng = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, int.from_bytes(scene, "little"), rollout]))
    )
    return rng.random((N_STEPS, n_agents))


def replay(index: Tensor) -> Choice:
    """The tokens of another simulation, long [R, A, 16]."""
    return lambda decision: index[:, :, decision.step]


def closest_to_log(batch: SceneBatch, motion: Tensor, top_k: int = 32) -> Choice:
    """CAT-K's choice (arXiv 2412.05334): of the most probable tokens the one that ends nearest to
    the log; the most probable where the log does not say.

    Args:
        batch: the scenes.
        motion: [3, V, 6, 4, 2], the vocabulary.
        top_k: among so many.
    """
    size = torch.from_numpy(CLASS_SIZE).to(motion.device)[batch.classes]

    def choose(decision: Decision) -> Tensor:
        index = decision.logits.topk(min(top_k, decision.logits.shape[-1]), dim=-1).indices
        # From state `step + 1` to the next, which is at the record's step 5 (step + 3).
        at = decision.step + 3
        # In the frame of the state, where float32 tells tokens apart that it does not kilometres
        # from the origin.
        cos, sin = decision.heading.cos(), decision.heading.sin()
        x, y = (batch.position[:, at] - decision.position).unbind(-1)
        goal = torch.stack([cos * x + sin * y, cos * y - sin * x], -1)
        boxes = class_boxes(goal, batch.heading[:, at] - decision.heading, size)
        ends = motion[batch.classes[None, :, None], index, -1]
        distance = torch.linalg.vector_norm(ends - boxes[:, :, None], dim=-1).mean(-1)
        rank = torch.where(batch.valid[:, at], distance.argmin(-1), 0)
        return index.gather(-1, rank.unsqueeze(-1)).squeeze(-1)

    return choose


# --------------------------------------------------------------------------------------------------
# To what the metric reads


def simulate_scenes(
    model: SMART,
    scenes: Sequence[SceneTensors],
    *,
    n_rollouts: int = 32,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
) -> list[Rollouts]:
    """Sample rollouts of scenes.

    Args:
        model: the policy, in evaluation mode.
        scenes: simulated side by side.
        n_rollouts: of each.
        sampling: how tokens are drawn.
        seed: of the draws.

    Returns:
        For each scene the R rollouts of all its agents, see `to_rollouts`.
    """
    device = model.motion.device
    batch = collate(scenes, view="logged").to(device)
    loop = sampled(model, batch, n_rollouts=n_rollouts, sampling=sampling, seed=seed)
    return to_rollouts(batch, loop)


def sampled(
    model: SMART, batch: SceneBatch, *, n_rollouts: int, sampling: Sampling, seed: int
) -> ClosedLoop:
    """Sample rollouts of a batch, as many at once as is well for its device.

    Args:
        model: on the batch's device, in evaluation mode.
        batch: the scenes.
        n_rollouts: R.
        sampling: how tokens are drawn.
        seed: of the draws.
    """
    beginning = begin(model, batch, model.tokenize(batch))
    at_once = max(1, _ROWS[batch.size.device.type] // sum(batch.agent_counts))
    loops = []
    for first in range(0, n_rollouts, at_once):
        numbers = range(first, min(n_rollouts, first + at_once))
        choose = sample(batch, numbers, sampling, seed)
        loops.append(simulate(model, beginning, choose, len(numbers)))
    return ClosedLoop(
        MotionTokens(
            torch.cat([loop.tokens.index for loop in loops]),
            torch.cat([loop.tokens.position for loop in loops]),
            torch.cat([loop.tokens.heading for loop in loops]),
            torch.cat([loop.tokens.valid for loop in loops]),
        ),
        torch.cat([loop.trajectory for loop in loops]),
        torch.cat([loop.trajectory_heading for loop in loops]),
        torch.cat([loop.log_probability for loop in loops]),
    )


def to_rollouts(batch: SceneBatch, loop: ClosedLoop) -> list[Rollouts]:
    """The rollouts of each scene of a batch in WOMD's frame.

    An agent keeps the height that it has now: the model knows none.
    """
    local = torch.cat([loop.trajectory, loop.trajectory_heading.unsqueeze(-1)], -1).cpu().numpy()
    origins, z = batch.origin.cpu().numpy(), batch.z.cpu().numpy()
    object_ids = batch.object_ids.cpu().numpy()
    made = []
    first = 0
    for name, origin, n in zip(batch.scenario_ids, origins, batch.agent_counts, strict=True):
        agents = slice(first, first + n)
        first += n
        here = local[:, agents]
        states = np.empty((*here.shape[:3], 4), np.float32)
        # Kilometres plus metres: in float64, as float32 has a millimetre there.
        states[..., :2] = here[..., :2] + origin
        states[..., 2] = z[agents, None]
        states[..., 3] = here[..., 2]
        made.append(Rollouts(name, object_ids[agents], states))
    return made
