"""A step of reinforcement fine-tuning: simulate, reward, learn.

The scenes of a step are taken in parts. Rewards are computed by other threads while the next part
is simulated; and, of the last one, while the log-probabilities are computed anew with gradients,
for which no reward is needed yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from smart_r1.batching import edges
from smart_r1.policy_objectives import (
    KL_ESTIMATORS,
    LossSum,
    Pairs,
    action_log_probability,
    adapted_beta,
    advantage_of_agents,
    best_and_worst,
    categorical_kl,
    dpo,
    entropy,
    group_advantage,
    grpo,
    leave_one_out_advantage,
    mloo,
    mpo,
    of_rollouts,
    policy_shift,
    ppo,
    reinforce,
    running_advantage,
    scene_of_agents,
    threshold_advantage,
)
from smart_r1.simulate import Sampling
from smart_r1.train.distributed import Ranks, add_up, add_up_gradients, gathered
from smart_r1.train.experience import Experience, Loaded, gain_experience
from smart_r1.train.optimizer import parameters_of
from smart_r1.train.policy_config import PolicyConfig
from smart_r1.train.step import NonFiniteError
from wosac_toolkit.errors import WosacError, some_ids

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch
    from smart_r1.model.smart import SMART
    from wosac_toolkit.reward import Reward, Rewards
    from wosac_toolkit.scenario import Int64Array

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a step of learning is made of.

    Attributes:
        model: the policy.
        reference: the policy that training began with, frozen.
        optimizer: of the policy.
        reward: of rollouts, with the credit of the settings.
        config: resolved settings.
        context: in which the networks compute, such as an autocast.
        edges_at_once: bound of a pass with gradients, see `smart_r1.batching.edges`.
        ranks: the processes, which share the scenes of a step.
    """

    model: SMART
    reference: SMART
    optimizer: torch.optim.Optimizer
    reward: Reward
    config: PolicyConfig
    context: Callable[[], AbstractContextManager[object]]
    edges_at_once: int
    ranks: Ranks


@dataclass(frozen=True)
class Learned:
    """What a step has come to over all processes, the same in each.

    Attributes:
        values: for the log.
        memory: what the next step is to be given.
    """

    values: dict[str, float | list[str]]
    memory: dict[str, Any]


def policy_step(
    lesson: Lesson,
    loaded: Loaded,
    memory: Mapping[str, Any],
    *,
    seed: int,
    measure: bool,
    follow: Callable[[], float],
) -> Learned:
    """Simulate the scenes of a step, and follow the gradient of what they were worth.

    Args:
        lesson: what learns, from what and how.
        loaded: this process's share of the scenes.
        memory: what the last step gave; empty at first.
        seed: of the draws in simulation.
        measure: also compute what is for the log alone.
        follow: takes an optimizer step along the gradients, and returns their norm.

    Raises:
        NonFiniteError: the loss is not finite, or what `follow` raises.
        WosacError: the reward is not of the form that the credit asks for.
    """
    config, ranks, clock = lesson.config, lesson.ranks, _Clock()
    assert config.beta is not None
    assert config.updates is not None
    beta = memory.get("beta", config.beta)
    lesson.model.eval()  # So that what is learned from is what was done: no dropout.
    with clock.of("rollout"):
        attempts = [
            _Attempt(
                gain_experience(
                    lesson.model,
                    part,
                    lesson.reward,
                    n_rollouts=config.n_rollouts,
                    sampling=Sampling(config.top_k, config.temperature),
                    seed=seed,
                    context=lesson.context,
                ),
                config,
                memory,
                clock,
            )
            for part in loaded.parts
        ]
    updates = []
    for number in range(config.updates):
        with clock.of("update"):
            found = _mean_gradient(lesson, attempts, beta, measure and number == 0)
            updates.append({**found, "gradient_norm": follow()})
    first, last = updates[0], updates[-1]
    verdicts = [attempt.verdict for attempt in attempts]
    scenes = _of_all(ranks, [scene for v in verdicts for scene in v.scenes])
    scenes.sort(key=lambda scene: scene.name)
    changed = dict(_of_all(ranks, [item for v in verdicts for item in v.baselines.items()]))
    refused = sorted(_of_all(ranks, list(loaded.refused)))
    values: dict[str, float | list[str]] = {
        **_of_rewards(scenes),
        "loss": _ratio(last["loss"], last["terms"]),
        "kl": _ratio(last["kl"], last["actions"]),
        "beta": beta,
        "clip_fraction": _ratio(last["clipped"], last["terms"]),
        "policy_shift": _ratio(last["shift"], last["actions"]),
        "actions": int(last["actions"]),
        "gradient_norm": last["gradient_norm"],
        **{f"seconds/{name}": seconds for name, seconds in clock.seconds.items()},
    }
    if measure:
        values["entropy"] = _ratio(first["entropy"], first["actions"])
        values["recomputed"] = first["recomputed"]
    if not_rewarded := refused + [scene.name for scene in scenes if not scene.known]:
        values["not_rewarded"] = not_rewarded
    after = dict(memory)
    if config.target_kl:
        kl = _ratio(last["kl"], last["actions"])
        after["beta"] = adapted_beta(beta, kl, target=config.target_kl)
    if config.alpha is None:
        after["baselines"] = {**memory.get("baselines", {}), **changed}
    return Learned(values, after)


class _Clock:
    """Where the time of a step goes, in seconds.

    `reward` goes on beside the others; `reward_wait`, within `update`, is for how long it held them
    up.
    """

    def __init__(self) -> None:
        self.seconds = {"rollout": 0.0, "reward": 0.0, "reward_wait": 0.0, "update": 0.0}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - began


# --------------------------------------------------------------------------------------------------
# What rollouts are worth


class _Scene(NamedTuple):
    """What the log is told of a scene; `known` is whether it has a reward.

    `value` is the reward of all its rollouts together, `mean` and `spread` are of those of each.
    """

    name: str
    known: bool
    value: float
    mean: float
    spread: float
    advantages: Sequence[float]
    components: Mapping[str, float]


class _Verdict(NamedTuple):
    """What the rollouts of a part are worth.

    Attributes:
        advantage: [R, A, 1].
        mask: bool [R, A, 16], the actions that count.
        pairs: which rollouts of a scene are better than others.
        scenes: for the log.
        baselines: new ones, by scenario id.
    """

    advantage: Tensor
    mask: Tensor
    pairs: Pairs
    scenes: Sequence[_Scene]
    baselines: Mapping[str, float]


class _Attempt:
    """Experience from which is learned.

    Attributes:
        experience: what was done.
        scene: long [A], the scene of each agent.
        reference: log-probabilities of the reference for each portion that was learned from.
        old: likewise those of the policy at the first update.
    """

    def __init__(
        self,
        experience: Experience,
        config: PolicyConfig,
        memory: Mapping[str, Any],
        clock: _Clock,
    ) -> None:
        self.experience = experience
        self.scene = scene_of_agents(
            experience.batch.agent_counts, experience.log_probability.device
        )
        self.reference: dict[int, Tensor] = {}
        self.old: dict[int, Tensor] = {}
        self._config, self._memory, self._clock = config, memory, clock

    @cached_property
    def verdict(self) -> _Verdict:
        """What it is worth; the first time this waits for the rewards."""
        with self._clock.of("reward_wait"):
            rewards = self.experience.rewards.result()
        self._clock.seconds["reward"] += rewards.seconds
        return _judged(self.experience, rewards, self.scene, self._config, self._memory)


def _judged(
    experience: Experience,
    rewards: Rewards,
    scene: Tensor,
    config: PolicyConfig,
    memory: Mapping[str, Any],
) -> _Verdict:
    batch, device = experience.batch, scene.device
    of_agents = config.credit == "agent"
    values = torch.tensor(rewards.values, dtype=torch.float64, device=device)
    axes = ("scenes", "rollouts", "agents") if of_agents else ("scenes", "rollouts")
    if values.ndim != len(axes):
        raise WosacError(
            f"the reward is {list(values.shape)}, but with the credit {config.credit} it must be "
            f"[{', '.join(axes)}]"
        )
    known = torch.tensor(np.isfinite(rewards.set_values), device=device)
    reward = (values.nansum(-1) if of_agents else values).where(known[:, None], torch.nan)
    baselines: Mapping[str, float] = {}
    match config.algo, config.credit:
        case "grpo" | "ppo", _:
            advantage = group_advantage(reward)
        case "dpo", _:
            advantage = torch.zeros_like(reward)  # Its loss compares rewards.
        case _, "agent":
            advantage = leave_one_out_advantage(reward)
        case _, "leave_one_out":
            # The credit of a measure has the mean 0. What a function of one's own says of each
            # rollout need not have it.
            advantage = leave_one_out_advantage(reward - reward.nanmean(dim=1, keepdim=True))
        case _ if config.alpha is None:
            advantage, baselines = running_advantage(
                reward,
                batch.scenario_ids,
                memory.get("baselines", {}),
            )
        case _:
            advantage = threshold_advantage(reward, config.alpha)
    scenes = [
        _Scene(
            name=name,
            known=bool(known[s]),
            value=float(rewards.set_values[s]),
            mean=_mean(reward[s].tolist()),
            spread=_spread(reward[s].tolist()),
            advantages=advantage[s].tolist(),
            components={field: float(column[s]) for field, column in rewards.components.items()},
        )
        for s, name in enumerate(batch.scenario_ids)
    ]
    return _Verdict(
        advantage=_credits_of_agents(batch, values, rewards.object_ids)
        if of_agents
        else advantage_of_agents(advantage.float(), scene),
        mask=experience.tokens.valid[..., 1:-1] & known[scene][:, None],
        pairs=best_and_worst(reward),
        scenes=scenes,
        baselines=baselines,
    )


def _credits_of_agents(
    batch: SceneBatch, credits_: Tensor, object_ids: Sequence[Int64Array]
) -> Tensor:
    """[R, A, 1] from credits [S, R, E] of the evaluated agents; the others have none."""
    names = batch.object_ids.tolist()
    result = torch.zeros(credits_.shape[1], len(names), 1, device=credits_.device)
    first = 0
    for credit, n, ids in zip(credits_, batch.agent_counts, object_ids, strict=True):
        rows = {names[row]: row for row in range(first, first + n)}
        first += n
        if not len(ids) and credit.isfinite().any():
            raise WosacError("the reward does not say which agents it credits")
        result[:, [rows[name] for name in ids.tolist()], 0] = (
            credit[:, : len(ids)].nan_to_num().float()
        )
    return result


# --------------------------------------------------------------------------------------------------
# Losses and their gradients

Selection = Callable[[Tensor], Tensor]
"""Takes what there is of all rollouts, [R, A, ...], to what there is of some."""

_SUMS = ("loss", "terms", "clipped", "actions", "kl", "shift", "entropy")


def _mean_gradient(
    lesson: Lesson, attempts: Sequence[_Attempt], beta: float, measure: bool
) -> dict[str, float]:
    """Set the gradients of the mean loss over all processes.

    Returns:
        The sums `_SUMS`; and where it is to be measured `recomputed`, the greatest difference
        between the log-probabilities of tokens when they were drawn and as computed anew.
    """
    ranks = lesson.ranks
    lesson.optimizer.zero_grad()
    totals = torch.zeros(len(_SUMS), dtype=torch.float64, device=ranks.device)
    apart = 0.0
    for attempt in attempts:
        for number, select in enumerate(_portions(lesson, attempt)):
            policy = _policy(lesson, attempt, number, select)
            # Rewards are not needed before.
            verdict = attempt.verdict
            mask = select(verdict.mask)
            loss = _loss(lesson.config, attempt, policy, select(verdict.advantage), mask, beta)
            loss.loss.backward()  # type: ignore[no-untyped-call]
            totals += _sums(loss, policy, mask, measure)
            if measure:
                recorded = select(attempt.experience.log_probability)
                difference = (policy.log_probability.detach() - recorded).where(mask, 0)
                apart = max(apart, difference.abs().max().item())
    add_up(ranks, [totals])
    found = dict(zip(_SUMS, totals.tolist(), strict=True))
    _require_finite(found["loss"], attempts, ranks)
    for gradient in add_up_gradients(ranks, parameters_of(lesson.optimizer)):
        gradient /= max(found["terms"], 1)
    if measure:
        found["recomputed"] = max(gathered(ranks, apart))
    return found


def _portions(lesson: Lesson, attempt: _Attempt) -> Sequence[Selection]:
    """The rollouts that are learned from, so many at a time as fit."""
    batch, n_rollouts = attempt.experience.batch, lesson.config.n_rollouts
    if lesson.config.algo == "dpo":
        chosen = attempt.verdict.pairs.rollout
        return [partial(of_rollouts, rollout=chosen, scene=attempt.scene)]
    # Rollouts share the map.
    of_agents, of_map = edges(
        np.array([sum(batch.agent_counts), 0]), np.array([0, sum(batch.map_counts)])
    ).tolist()
    at_once = max(1, (lesson.edges_at_once - of_map) // of_agents)
    return [itemgetter(slice(first, first + at_once)) for first in range(0, n_rollouts, at_once)]


class _Policy(NamedTuple):
    """The policy in some rollouts, [R, A, 16]: log-probabilities of the tokens taken, with
    gradients, those of the reference, and those at the first update; the KL, with gradients; and
    the logits.
    """

    log_probability: Tensor
    reference: Tensor
    old: Tensor
    kl: Tensor
    logits: Tensor


def _policy(lesson: Lesson, attempt: _Attempt, number: int, select: Selection) -> _Policy:
    """See there; of the `number`-th portion of an attempt."""
    batch, kind = attempt.experience.batch, lesson.config.kl
    tokens = attempt.experience.tokens.mapped(select)
    index, everything = tokens.index[..., 2:], tokens.valid[..., 1:-1]
    with lesson.context():
        logits = lesson.model(batch, tokens)
    taken = action_log_probability(logits, index, everything)
    old = attempt.old.setdefault(number, taken.detach())
    if kind == "exact" or number not in attempt.reference:
        with torch.no_grad(), lesson.context():
            reference_logits = lesson.reference(batch, tokens)
        attempt.reference[number] = action_log_probability(reference_logits, index, everything)
    reference = attempt.reference[number]
    if kind == "exact":
        kl = categorical_kl(logits, reference_logits, everything)
    else:
        assert kind is not None
        kl = KL_ESTIMATORS[kind](taken, reference, everything)
    return _Policy(taken, reference, old, kl, logits)


def _loss(
    config: PolicyConfig,
    attempt: _Attempt,
    policy: _Policy,
    advantage: Tensor,
    mask: Tensor,
    beta: float,
) -> LossSum:
    taken = policy.log_probability
    match config.algo:
        case "mpo":
            return mpo(taken, advantage, policy.kl, mask, beta)
        case "mloo":
            return mloo(taken, advantage, policy.kl, mask, beta)
        case "reinforce":
            return reinforce(taken, advantage, mask)
        case "ppo":
            return ppo(taken, policy.old, advantage, mask, config.clip)
        case "grpo":
            return grpo(taken, policy.old, advantage, policy.kl, mask, beta, config.clip)
        case "dpo":
            differ = attempt.verdict.pairs.differ
            return dpo(taken, policy.reference, differ, attempt.scene, mask, beta)


@torch.no_grad()
def _sums(loss: LossSum, policy: _Policy, mask: Tensor, measure: bool) -> Tensor:
    """`_SUMS` of a portion; the entropy where it is to be measured."""
    values = {
        "loss": loss.loss,
        "terms": loss.terms,
        "clipped": loss.clipped,
        "actions": mask.sum(),
        "kl": policy.kl.where(mask, 0).sum(),
        "shift": policy_shift(policy.log_probability, policy.old, mask).sum(),
        "entropy": entropy(policy.logits, mask).sum() if measure else mask.new_zeros(()),
    }
    return torch.stack([values[name].detach().double() for name in _SUMS])


def _require_finite(loss: float, attempts: Sequence[_Attempt], ranks: Ranks) -> None:
    if math.isfinite(loss):
        return
    batches = [attempt.experience.batch for attempt in attempts]
    names = _of_all(ranks, [name for batch in batches for name in batch.scenario_ids])
    raise NonFiniteError(
        f"the loss is not finite, in a batch with the scenarios {some_ids(names)}",
        mend="lower optimizer.learning_rate, or raise policy.beta",
        scenario_ids=names,
    )


# --------------------------------------------------------------------------------------------------
# For the log


def _of_rewards(scenes: Sequence[_Scene]) -> dict[str, float]:
    advantages = [value for scene in scenes if scene.known for value in scene.advantages]
    fields = sorted({field for scene in scenes for field in scene.components})
    return {
        "reward": _mean(scene.value for scene in scenes),
        "reward_of_rollouts": _mean(scene.mean for scene in scenes),
        "reward_spread": _mean(scene.spread for scene in scenes),
        "advantage": _mean(advantages),
        "advantage_spread": _spread(advantages),
        "advantage_positive": _mean(float(value > 0) for value in advantages),
        **{
            f"reward/{field}": _mean(scene.components.get(field, math.nan) for scene in scenes)
            for field in fields
        },
    }


def _of_all(ranks: Ranks, mine: list[Item]) -> list[Item]:
    """The items of all processes."""
    return [item for items in gathered(ranks, mine) for item in items]


def _mean(values: Iterable[float]) -> float:
    """Of those that are known."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _spread(values: Iterable[float]) -> float:
    """The standard deviation of those that are known."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.std(known)) if known else math.nan


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
