"""A step of reinforcement fine-tuning: simulate, reward, learn.

The scenes of a step are taken in parts. Rewards are computed by other threads while the next part
is simulated; and, of the last one, while the log-probabilities are computed anew with gradients,
for which no reward is needed yet.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smart_r1.batching import edges
from smart_r1.policy_objectives import (
    ALPHA,
    BETA,
    CLIP,
    KL_ESTIMATORS,
    TARGET_KL,
    LossSum,
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
from smart_r1.train.step import NonFiniteError
from wosac_toolkit.errors import WosacError, some_ids
from wosac_toolkit.reward import Credit

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch
    from smart_r1.model.smart import SMART
    from smart_r1.tokens.motion import MotionTokens
    from wosac_toolkit.reward import Reward, Rewards

Algo = Literal["mpo", "mloo", "reinforce", "grpo", "ppo", "dpo"]
Kl = Literal["k2", "k3", "exact"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How a policy learns from rewards; see `smart_r1.policy_objectives` for the equations.

    What is None is the algorithm's own, see `METHODS`; alpha is not among these.

    Attributes:
        algo: the loss, and where the advantage comes from.
        credit: how the reward is shared among a scene's rollouts, see `wosac_toolkit.reward`.
        alpha: for mpo and reinforce the reward above which they reinforce; None: what the scene
            used to get, see `smart_r1.policy_objectives.running_advantage`.
        beta: weight of the KL to the policy that training begins with, in the first step where
            there is a `target_kl`. For dpo the weight of that policy in its loss.
        kl: its estimate.
        target_kl: beta is adapted to hold the KL near so many nats an action; 0: it is not.
        updates: steps of the optimizer on the same rollouts.
        clip: how far from 1 ppo and grpo follow the ratio of probabilities.
        n_rollouts: R, of each scene.
        top_k: tokens are drawn among so many of the most probable, as they are in evaluation.
        temperature: of the draw.
    """

    algo: Algo = "mpo"
    credit: Credit | None = None
    alpha: float | None = ALPHA
    beta: float | None = None
    kl: Kl | None = None
    target_kl: float | None = None
    updates: int | None = None
    clip: float = CLIP
    n_rollouts: int = 8
    top_k: int = 48
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("updates", "n_rollouts", "top_k"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise WosacError(f"policy.{name} must be at least 1, is {value}")
        for name in ("beta", "target_kl"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise WosacError(f"policy.{name} must not be negative, is {value}")
        if not self.clip > 0 or not self.temperature > 0:
            raise WosacError("policy.clip and policy.temperature must be positive")
        if self.algo in ("grpo", "ppo", "dpo") and self.credit in ("group", "agent"):
            raise WosacError(
                f"{self.algo} compares the rollouts of a scene, which the credit {self.credit} "
                "does not tell apart by a reward each",
                mend="policy.credit=single or leave_one_out",
            )
        if self.algo == "mloo" and self.credit in ("group", "single"):
            raise WosacError(
                f"mloo has no baseline but that of the credit, which {self.credit} has not",
                mend="policy.credit=leave_one_out or agent",
            )
        if self.n_rollouts < 2 and self.credit in ("leave_one_out", "agent"):
            raise WosacError(f"the credit {self.credit} needs policy.n_rollouts of 2 or more")


class Method(NamedTuple):
    """What an algorithm is where nothing else is said."""

    credit: Credit
    beta: float
    kl: Kl
    target_kl: float
    updates: int


METHODS: Mapping[Algo, Method] = {
    # SMART-R1 (arXiv 2509.23993).
    "mpo": Method("group", BETA, "k3", 0.0, 1),
    # RLFTSim (arXiv 2605.19033). Of the penalties k2 is the one whose gradient is that of the KL.
    "mloo": Method("leave_one_out", BETA, "k2", TARGET_KL, 1),
    "reinforce": Method("group", 0.0, "k3", 0.0, 1),
    # A reward for each rollout: among rollouts that share one none is better.
    "grpo": Method("single", BETA, "k3", 0.0, 1),
    # At the first update the ratio is 1, and nothing clipped: it takes several to be PPO.
    "ppo": Method("single", 0.0, "k3", 0.0, 4),
    "dpo": Method("single", 0.1, "k3", 0.0, 1),
}


def resolved(config: PolicyConfig) -> PolicyConfig:
    """The settings, with the algorithm's own where there was None."""
    own = METHODS[config.algo]._asdict()
    return dataclasses.replace(
        config, **{name: own[name] for name in own if getattr(config, name) is None}
    )


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
    """
    config, ranks, clock = lesson.config, lesson.ranks, _Clock()
    lesson.model.eval()  # So that what is learned from is what was done: no dropout.
    with clock.of("rollout"):
        gained = [
            gain_experience(
                lesson.model,
                part,
                lesson.reward,
                n_rollouts=config.n_rollouts,
                sampling=Sampling(config.top_k, config.temperature),
                seed=seed,
                context=lesson.context,
            )
            for part in loaded.parts
        ]
    assert config.beta is not None
    assert config.updates is not None
    beta = memory.get("beta", config.beta)
    lessons = [_Judge(experience, config, memory, clock) for experience in gained]
    for update in range(config.updates):
        lesson.optimizer.zero_grad()
        totals = torch.zeros(len(_TOTALS), dtype=torch.float64, device=ranks.device)
        with clock.of("update"):
            for judge in lessons:
                for loss, sums in _losses(lesson, judge, beta, measure and update == 0):
                    loss.backward()  # type: ignore[no-untyped-call]
                    totals += sums
            add_up(ranks, [totals])
            found = dict(zip(_TOTALS, totals.tolist(), strict=True))
            _require_finite(found["loss"], [e.batch for e in gained], ranks)
            for gradient in add_up_gradients(ranks, parameters_of(lesson.optimizer)):
                gradient /= max(found["terms"], 1)
            norm = follow()
        if update == 0:
            first = found
    kl = found["kl"] / found["actions"] if found["actions"] else math.nan
    reports = gathered(ranks, [judge.report() for judge in lessons])
    rows = sorted((row for some in reports for part in some for row in part.scenes), key=_name)
    changed = {k: v for some in reports for part in some for k, v in part.baselines.items()}
    refused = sorted({name for names in gathered(ranks, [*loaded.refused]) for name in names})
    values: dict[str, float | list[str]] = {
        "reward": _mean([row.set_value for row in rows]),
        **_of_rewards(rows),
        "loss": _ratio(found["loss"], found["terms"]),
        "kl": kl,
        "beta": beta,
        "clip_fraction": _ratio(found["clipped"], found["terms"]),
        "policy_shift": _ratio(found["shift"], found["actions"]),
        "actions": int(found["actions"]),
        "gradient_norm": norm,
        **{f"seconds/{name}": seconds for name, seconds in clock.seconds.items()},
    }
    if measure:
        values["entropy"] = _ratio(first["entropy"], first["actions"])
        values["recomputed"] = max(
            gathered(ranks, max([judge.recomputed for judge in lessons], default=0.0))
        )
    if refused or any(row.why_not for row in rows):
        values["not_rewarded"] = refused + [row.name for row in rows if row.why_not]
    return Learned(values, _next(memory, config, beta, kl, changed, rows))


def _next(
    memory: Mapping[str, Any],
    config: PolicyConfig,
    beta: float,
    kl: float,
    changed: Mapping[str, float],
    rows: Sequence[_Scene],
) -> dict[str, Any]:
    """What the next step is given."""
    after = dict(memory)
    if config.target_kl:
        after["beta"] = adapted_beta(beta, kl, target=config.target_kl)
    if config.alpha is None:
        after["baselines"] = {**memory.get("baselines", {}), **changed}
        mean = _mean([row.mean for row in rows])
        before = memory.get("mean_reward", mean)
        if math.isfinite(mean):
            after["mean_reward"] = 0.9 * before + 0.1 * mean
    return after


# --------------------------------------------------------------------------------------------------
# What rollouts are worth


class _Clock:
    """Where the time of a step goes, in seconds.

    `reward_wait`, within `update`, is for how long rewards held up everything else.
    """

    def __init__(self) -> None:
        self.seconds = {"rollout": 0.0, "reward_wait": 0.0, "update": 0.0}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - began


class _Scene(NamedTuple):
    """What the log is told of a scene."""

    name: str
    set_value: float
    mean: float
    spread: float
    advantages: tuple[float, ...]
    components: Mapping[str, float]
    why_not: str


def _name(scene: _Scene) -> str:
    return scene.name


class _Report(NamedTuple):
    scenes: Sequence[_Scene]
    baselines: Mapping[str, float]


class _Judge:
    """An experience with what it is worth, which is waited for when first needed.

    Attributes:
        experience: what was done.
        scene: long [A], the scene of each agent.
        recomputed: greatest difference so far between the log-probabilities of the tokens when they
            were drawn and as computed anew.
        reference: [R, A, 16], log-probabilities of the reference, once they are known.
        old: [R, A, 16], those of the policy at the first update.
    """

    def __init__(
        self,
        experience: Experience,
        config: PolicyConfig,
        memory: Mapping[str, Any],
        clock: _Clock,
    ) -> None:
        self.experience, self._config, self._memory = experience, config, memory
        self._clock = clock
        counts = experience.batch.agent_counts
        self.scene = scene_of_agents(counts, experience.log_probability.device)
        self.recomputed = 0.0
        self.reference: dict[int, Tensor] = {}
        self.old: dict[int, Tensor] = {}
        self._verdict: _Verdict | None = None

    @property
    def verdict(self) -> _Verdict:
        if self._verdict is None:
            with self._clock.of("reward_wait"):
                rewards = self.experience.rewards.result()
            self._verdict = _judged(
                self.experience, rewards, self.scene, self._config, self._memory
            )
        return self._verdict

    def report(self) -> _Report:
        return self.verdict.report


class _Verdict(NamedTuple):
    """Advantages [R, A, 1], which actions count [R, A, 16], and the rewards [S, R]."""

    advantage: Tensor
    mask: Tensor
    reward: Tensor
    report: _Report


def _judged(
    experience: Experience,
    rewards: Rewards,
    scene: Tensor,
    config: PolicyConfig,
    memory: Mapping[str, Any],
) -> _Verdict:
    device = scene.device
    batch = experience.batch
    values = torch.from_numpy(rewards.values).to(device, torch.float64)
    reward = values.nansum(-1) if config.credit == "agent" else values
    known = torch.tensor([bool(v) for v in ~np.isnan(rewards.set_values)], device=device)
    reward = reward.where(known[:, None], torch.nan)
    baselines: Mapping[str, float] = {}
    match config.algo, config.credit:
        case "grpo" | "ppo", _:
            advantage = group_advantage(reward)
        case "dpo", _:
            advantage = torch.zeros_like(reward)  # Its loss compares rewards.
        case _, "leave_one_out" | "agent":
            advantage = leave_one_out_advantage(reward)
        case _ if config.alpha is None:
            advantage, baselines = running_advantage(
                reward,
                batch.scenario_ids,
                memory.get("baselines", {}),
                # Of a scene that was never seen before: what scenes get. NaN, and so no advantage,
                # in the first step of all.
                first=memory.get("mean_reward", math.nan),
            )
        case _:
            advantage = threshold_advantage(reward, config.alpha)
    of_agents = advantage_of_agents(advantage.float(), scene)
    if config.credit == "agent":
        of_agents = _credits_of_agents(batch, values.float(), rewards.object_ids).unsqueeze(-1)
    mask = experience.tokens.valid[..., 1:-1] & known[scene][:, None]
    return _Verdict(
        of_agents,
        mask,
        reward,
        _Report(_scenes(batch, rewards, reward, advantage), baselines),
    )


def _credits_of_agents(
    batch: SceneBatch, credits_: Tensor, object_ids: Sequence[np.ndarray[Any, Any]]
) -> Tensor:
    """[R, A] from credits [S, R, E] of the evaluated agents; the others have none."""
    result = credits_.new_zeros(credits_.shape[1], len(batch.object_ids))
    first = 0
    for s, (n, ids) in enumerate(zip(batch.agent_counts, object_ids, strict=True)):
        rows = {
            int(name): first + row for row, name in enumerate(batch.object_ids[first : first + n])
        }
        first += n
        for column, name in enumerate(ids):
            result[:, rows[int(name)]] = credits_[s, :, column].nan_to_num()
    return result


def _scenes(batch: SceneBatch, rewards: Rewards, reward: Tensor, advantage: Tensor) -> list[_Scene]:
    components = rewards.components
    known = reward.cpu().double()
    return [
        _Scene(
            name,
            float(rewards.set_values[s]),
            known[s].mean().item(),
            known[s].std(correction=0).item(),
            tuple(advantage[s].tolist()),
            {field: float(column[s]) for field, column in components.items()},
            rewards.unscorable.get(name, ""),
        )
        for s, name in enumerate(batch.scenario_ids)
    ]


# --------------------------------------------------------------------------------------------------
# Losses

_TOTALS = ("loss", "terms", "clipped", "actions", "kl", "shift", "entropy")


def _losses(
    lesson: Lesson, judge: _Judge, beta: float, measure: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The loss of a part, in portions that fit; with each the sums of `_TOTALS`."""
    config, experience = lesson.config, judge.experience
    if config.algo == "dpo":
        yield _preference_loss(lesson, judge, beta, measure)
        return
    costs = edges(
        np.array([sum(experience.batch.agent_counts)]),
        np.array([sum(experience.batch.map_counts)]),
    )
    at_once = max(1, lesson.edges_at_once // int(costs[0]))
    for first in range(0, config.n_rollouts, at_once):
        chosen = slice(first, first + at_once)
        tokens = experience.tokens.mapped(itemgetter(chosen))
        policy = _Policy.of(lesson, judge, tokens, first)
        # Rewards are not needed before.
        verdict = judge.verdict
        mask = verdict.mask[chosen]
        loss = _policy_loss(config, policy, verdict.advantage[chosen], mask, beta)
        recorded = experience.log_probability[chosen]
        yield loss.loss, _sums(loss, policy, recorded, mask, judge, measure)


class _Policy(NamedTuple):
    """Of the tokens taken, [R, A, 16]: log-probabilities with gradients, those of the reference and
    those at the first update without; the KL with gradients; and the logits.
    """

    log_probability: Tensor
    reference: Tensor
    old: Tensor
    kl: Tensor
    logits: Tensor

    @staticmethod
    def of(lesson: Lesson, judge: _Judge, tokens: MotionTokens, key: int) -> _Policy:
        batch, config = judge.experience.batch, lesson.config
        index, everything = tokens.index[..., 2:], tokens.valid[..., 1:-1]
        with lesson.context():
            logits = lesson.model(batch, tokens)
        log_probability = action_log_probability(logits, index, everything)
        exact = config.kl == "exact"
        if exact or key not in judge.reference:
            with torch.no_grad(), lesson.context():
                reference_logits = lesson.reference(batch, tokens)
            judge.reference[key] = action_log_probability(reference_logits, index, everything)
        reference = judge.reference[key]
        old = judge.old.setdefault(key, log_probability.detach())
        if exact:
            kl = categorical_kl(logits, reference_logits, everything)
        else:
            assert config.kl is not None
            kl = KL_ESTIMATORS[config.kl](log_probability, reference, everything)
        return _Policy(log_probability, reference, old, kl, logits)


def _policy_loss(
    config: PolicyConfig, policy: _Policy, advantage: Tensor, mask: Tensor, beta: float
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
    raise AssertionError(config.algo)


def _preference_loss(
    lesson: Lesson, judge: _Judge, beta: float, measure: bool
) -> tuple[Tensor, Tensor]:
    experience, verdict = judge.experience, judge.verdict
    pairs = best_and_worst(verdict.reward)
    tokens = experience.tokens.mapped(lambda field: of_rollouts(field, pairs.rollout, judge.scene))
    mask = of_rollouts(verdict.mask, pairs.rollout, judge.scene)
    recorded = of_rollouts(experience.log_probability, pairs.rollout, judge.scene)
    policy = _Policy.of(lesson, judge, tokens, 0)
    loss = dpo(policy.log_probability, policy.reference, pairs.differ, judge.scene, mask, beta)
    return loss.loss, _sums(loss, policy, recorded, mask, judge, measure)


@torch.no_grad()
def _sums(
    loss: LossSum,
    policy: _Policy,
    recorded: Tensor,
    mask: Tensor,
    judge: _Judge,
    measure: bool,
) -> Tensor:
    shift = policy_shift(policy.log_probability, policy.old, mask)
    spread = loss.loss.new_zeros(())
    if measure:
        spread = entropy(policy.logits, mask).sum()
        apart = (policy.log_probability - recorded).where(mask, 0).abs().max().item()
        judge.recomputed = max(judge.recomputed, apart)
    sums = (
        *(loss.loss, loss.terms, loss.clipped),
        *(mask.sum(), policy.kl.where(mask, 0).sum(), shift.sum(), spread),
    )
    return torch.stack([value.detach().double() for value in sums])


def _require_finite(loss: float, batches: Sequence[SceneBatch], ranks: Ranks) -> None:
    if math.isfinite(loss):
        return
    mine = [name for batch in batches for name in batch.scenario_ids]
    names = [name for some in gathered(ranks, mine) for name in some]
    raise NonFiniteError(
        f"the loss is not finite, in a batch with the scenarios {some_ids(names)}",
        mend="lower optimizer.learning_rate, or raise policy.beta",
        scenario_ids=names,
    )


# --------------------------------------------------------------------------------------------------
# For the log


def _of_rewards(rows: Sequence[_Scene]) -> dict[str, float]:
    advantages = [value for row in rows if not row.why_not for value in row.advantages]
    fields = sorted({field for row in rows for field in row.components})
    return {
        "reward_of_rollouts": _mean([row.mean for row in rows]),
        "reward_spread": _mean([row.spread for row in rows]),
        "advantage": _mean(advantages),
        "advantage_spread": float(np.std(advantages)) if advantages else math.nan,
        "advantage_positive": _mean([float(value > 0) for value in advantages]),
        **{
            f"reward/{field}": _mean([row.components.get(field, math.nan) for row in rows])
            for field in fields
        },
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
