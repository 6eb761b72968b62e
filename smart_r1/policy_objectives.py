"""Reinforcement fine-tuning as pure functions: advantages, KL estimators, losses and diagnostics.

Shapes: S scenes with A agents in all, R rollouts of each, 16 actions, V motion tokens. Rewards and
advantages are [S, R]; whatever there is of each action is [R, A, 16], as in
`smart_r1.simulate.ClosedLoop`. The likelihood of a scene's rollout is the product over its agents
and actions,

    log pi(rollout) = sum over agents a and steps t of log pi(token_a,t | what was visible at t),

and each loss but `dpo` is the sum over these actions, with their number beside it. Parts of a batch
and processes add up both; the one divided by the other is the mean over the actions of the whole
batch. All rollouts of a scene have the same actions that count, so that they weigh the same, and a
scene weighs as much as it has actions.

`mask`, bool [R, A, 16] or broadcastable to it, says which actions count. What the others hold, NaN
too, has no effect on values and gradients; results of each action are 0 there. Half precision is
computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ALPHA = 0.77
"""The reward above which SMART-R1 (arXiv 2509.23993) reinforces: the best of its sweep."""

BETA = 0.04
"""SMART-R1's weight of the KL: the best of its sweep; GRPO's own too."""

TARGET_KL = 0.01
"""In nats an action, what RLFTSim (arXiv 2605.19033) holds the KL at."""

CLIP = 0.2
"""How far from 1 PPO (arXiv 1707.06347) follows the ratio."""


# --------------------------------------------------------------------------------------------------
# Advantages, from rewards [S, R]. NaN is the reward of what could not be scored.


def threshold_advantage(reward: Tensor, alpha: float = ALPHA) -> Tensor:
    """What a reward is above a constant: SMART-R1 (arXiv 2509.23993).

        A = r - alpha

    without the mean or the standard deviation of a group, so that a set of rollouts that share
    one reward has an advantage too.

    Args:
        reward: of any shape.
        alpha: about the mean reward of the model that training starts from.

    Returns:
        The advantages, 0 where the reward is NaN.
    """
    return _zero_if_unknown(reward - alpha)


def running_advantage(
    reward: Tensor,
    scenario_ids: Sequence[str],
    baselines: Mapping[str, float],
    *,
    decay: float = 0.9,
) -> tuple[Tensor, dict[str, float]]:
    """What a reward is above the moving average of its scene: `alpha auto`. Ours.

        A_si = r_si - b_s,    then  b_s <- decay b_s + (1 - decay) mean_i r_si

    Scenes differ more in reward than rollouts of one scene, and a constant takes easy scenes for
    good rollouts. The average comes from earlier visits alone, so that it does not depend on the
    actions that it judges and the gradient stays unbiased. At the first visit the other rollouts
    stand for it, mean_{j != i} r_sj, and the average begins with the mean of the visit; rollouts
    that share one reward have no advantage then. What a process finds depends on its own scenes
    alone.

    The average lags behind a policy that changes. Then nearly all advantages have one sign, and
    all that is done becomes more probable, or less, whichever of it was better (docs/results.md,
    `mpowide`): look at `advantage_positive` in the log.

    Args:
        reward: [S, R].
        scenario_ids: of the S scenes.
        baselines: the averages b by scenario id; left as they are.
        decay: in [0, 1).

    Returns:
        The advantages [S, R], 0 where the reward is NaN, and the new averages of these scenes, to
        update `baselines` with; those of which nothing could be scored are not among them.
    """
    known = ~reward.isnan()
    n_others = known.sum(dim=1, keepdim=True) - 1
    others = (reward.nansum(dim=1, keepdim=True) - reward) / n_others.clamp(min=1)
    others = torch.where(n_others > 0, others, reward)
    threshold = reward.new_tensor([baselines.get(name, math.nan) for name in scenario_ids])
    threshold = threshold[:, None].expand_as(reward)
    changed: dict[str, float] = {}
    for name, mean in zip(scenario_ids, reward.nanmean(dim=1).tolist(), strict=True):
        if not math.isnan(mean):
            before = changed.get(name, baselines.get(name, mean))
            changed[name] = decay * before + (1 - decay) * mean
    advantage = reward - threshold.where(~threshold.isnan(), others)
    return _zero_if_unknown(advantage), changed


def leave_one_out_advantage(credit: Tensor) -> Tensor:
    """A rollout's share of its set's score: MLOO, RLFTSim (arXiv 2605.19033).

        A_i = mean_j M_-j - M_-i

    with M_-i the realism of the set without rollout i. It sums to 0 over the rollouts of a scene,
    so it is the advantage as it is: no baseline, no scale.

    Args:
        credit: the rewards with leave-one-out credit, A above; of any shape.

    Returns:
        The advantages, 0 where the credit is NaN.
    """
    return _zero_if_unknown(credit)


def group_advantage(reward: Tensor, eps: float = 1e-6) -> Tensor:
    """The standard score among the rollouts of the scene: GRPO (arXiv 2402.03300, section 4.1.2).

        A_i = (r_i - mean_j r_j) / (std_j r_j + eps)

    with the standard deviation of the group as it is (divisor R). Rollouts that share one reward
    have no advantage: this is for rollouts that are scored one by one.

    Args:
        reward: [S, R].
        eps: in the units of the reward.

    Returns:
        The advantages [S, R], 0 where the reward is NaN or all of its scene are the same; means
        and deviations are over those that are not NaN.
    """
    known = ~reward.isnan()
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    mean = reward.nansum(dim=1, keepdim=True) / count
    excess = (reward - mean).where(known, 0)
    deviation = (excess.square().sum(dim=1, keepdim=True) / count).sqrt()
    # The mean of equal numbers may be a rounding off them.
    highest = reward.where(known, -torch.inf).amax(dim=1, keepdim=True)
    lowest = reward.where(known, torch.inf).amin(dim=1, keepdim=True)
    return (excess / (deviation + eps)).where(highest > lowest, 0)


def scene_of_agents(agent_counts: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The scene of each agent, long [A], where the agents follow each other scene by scene."""
    counts = torch.tensor(agent_counts, dtype=torch.long, device=device)
    return torch.repeat_interleave(counts)


def advantage_of_agents(advantage: Tensor, scene: Tensor) -> Tensor:
    """Give the advantage of a scene's rollout to all its agents and their actions.

    Args:
        advantage: [S, R].
        scene: long [A], see `scene_of_agents`.

    Returns:
        [R, A, 1], which the losses take.
    """
    return advantage.T[:, scene].unsqueeze(-1)


# --------------------------------------------------------------------------------------------------
# Log-probabilities and the KL


def action_log_probability(logits: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """The log-probabilities of the actions taken, by the softmax of all logits.

    So `smart_r1.simulate.simulate` records them too, whatever top-k or temperature it draws with.

    Args:
        logits: [R, A, 16, V], any floating type.
        index: long [R, A, 16], the tokens taken.
        mask: the actions that count.

    Returns:
        [R, A, 16].
    """
    mask = mask.expand(index.shape)
    log_probability = _wide(logits[mask]).log_softmax(dim=-1)
    return _spread(log_probability.gather(-1, index[mask].unsqueeze(-1)).squeeze(-1), mask)


def categorical_kl(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """The exact KL of the policy to the reference in each state visited.

        KL[pi || ref] = sum_v pi_v (log pi_v - log ref_v)

    Its gradient is exact too, unlike those of the estimators, for the price of keeping all logits
    of both.

    Args:
        logits: [R, A, 16, V], any floating type.
        reference_logits: likewise.
        mask: the actions that count.

    Returns:
        [R, A, 16], in nats.
    """
    mask = mask.expand(logits.shape[:-1])
    ours = _wide(logits[mask]).log_softmax(dim=-1)
    reference = _wide(reference_logits[mask]).log_softmax(dim=-1)
    return _spread((ours.exp() * (ours - reference)).sum(dim=-1), mask)


def k1(log_probability: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """The log-ratio of actions drawn from pi (Schulman, "Approximating KL divergence", 2020).

        k1 = log(pi / ref)

    Unbiased as a value, of either sign, and noisy. As a penalty in a loss it does nothing but add
    noise: the expectation of its gradient, that of log pi, is 0. It is for logs, and for taking
    off rewards.

    Args:
        log_probability: [R, A, 16], of the policy, for actions drawn from it.
        reference: [R, A, 16], of the reference for the same actions.
        mask: the actions that count.

    Returns:
        [R, A, 16], estimates of KL[pi || ref] in nats.
    """
    return _log_ratio(log_probability, reference, mask)


def k2(log_probability: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Half its square, of actions drawn from pi (Schulman 2020).

        k2 = log(pi / ref)^2 / 2

    Never negative, with little noise, and biased as a value except to second order about the
    reference; but the expectation of its gradient is that of KL[pi || ref].

    Args:
        log_probability: see `k1`.
        reference: see `k1`.
        mask: see `k1`.

    Returns:
        [R, A, 16], estimates of KL[pi || ref] in nats.
    """
    return k1(log_probability, reference, mask).square() / 2


def k3(log_probability: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """The estimator of SMART-R1 and GRPO, of actions drawn from pi (Schulman 2020).

        k3 = ref / pi - log(ref / pi) - 1

    Unbiased as a value, never negative, with little noise; the expectation of its gradient is that
    of the KL in the other direction, KL[ref || pi], which agrees to second order about the
    reference.

    In notes on SMART-R1 it is printed as ref / pi - log(pi / ref) - 1, which is not used here: the
    expectation of that is -KL[pi || ref], of the wrong sign, and it is negative for each action
    that has become likelier. Its gradient has the same expectation as that of k3, but it is not 0
    at the reference, -2 grad log pi, and so it is all noise where training begins.

    Args:
        log_probability: see `k1`.
        reference: see `k1`.
        mask: see `k1`.

    Returns:
        [R, A, 16], estimates of KL[pi || ref] in nats.
    """
    log_ratio = -k1(log_probability, reference, mask)
    # expm1: near the reference the ratio minus 1 is small beside its rounding.
    return log_ratio.expm1() - log_ratio


KL_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
}


def adapted_beta(
    beta: float,
    kl: float,
    *,
    target: float = TARGET_KL,
    bounds: tuple[float, float] = (1e-4, 10.0),
) -> float:
    """The weight of the KL for the next step (PPO, arXiv 1707.06347, section 4).

        beta / 2  if KL < target / 1.5;    2 beta  if KL > 1.5 target;    beta otherwise

    RLFTSim (arXiv 2605.19033) adapts its weight to a target of 0.01 nats; by which rule is not
    known. PPO's is for iterations of many steps: where each step is one, the KL answers later than
    the weight doubles, and a policy that has gone past the target is pulled far back
    (docs/results.md, `mloolong`).

    Args:
        beta: of this step.
        kl: mean over the actions of this step, in nats; where it is NaN beta stays.
        target: for the KL.
        bounds: of the result. As training begins at the reference, beta would otherwise vanish
            before there is any KL and come back too late.
    """
    if kl < target / 1.5:
        beta /= 2
    elif kl > target * 1.5:
        beta *= 2
    return min(max(beta, bounds[0]), bounds[1])


# --------------------------------------------------------------------------------------------------
# Losses


class LossSum(NamedTuple):
    """A loss that parts of a batch and processes can add up: scalars.

    Attributes:
        loss: summed, with its gradient.
        terms: how many actions it is a sum over, or pairs of rollouts with `dpo`; the mean loss is
            `loss / terms` of the whole batch.
        clipped: actions that have no gradient from their advantage, as their ratio is clipped;
            divided by `terms`, the clip fraction.
    """

    loss: Tensor
    terms: Tensor
    clipped: Tensor


def reinforce(log_probability: Tensor, advantage: Tensor, mask: Tensor) -> LossSum:
    """REINFORCE (Williams 1992).

        L = -sum log pi A

    For rollouts drawn from pi the expectation of its gradient is, up to the baseline in A, that of
    the expected reward, with the sign turned.

    Args:
        log_probability: [R, A, 16], of the actions taken.
        advantage: broadcastable to that, see `advantage_of_agents`.
        mask: the actions that count.
    """
    log_probability = _counted(log_probability, mask)
    return _summed(-log_probability * _counted(advantage, mask), mask)


def mpo(
    log_probability: Tensor, advantage: Tensor, kl: Tensor, mask: Tensor, beta: float = BETA
) -> LossSum:
    """Metric-oriented policy optimisation: SMART-R1 (arXiv 2509.23993).

        L = -sum (pi / stopgrad(pi) A - beta KL),    A = r - alpha

    The ratio is 1 and its gradient that of log pi: the step is that of REINFORCE with this
    advantage. It is for rollouts of the policy as it is, one step each.

    Args:
        log_probability: [R, A, 16], of the actions taken.
        advantage: broadcastable to that, see `threshold_advantage` and `advantage_of_agents`.
        kl: [R, A, 16], to the frozen reference; `k3` in the paper.
        mask: the actions that count.
        beta: weight of the KL.
    """
    log_probability = _counted(log_probability, mask)
    ratio = (log_probability - log_probability.detach()).exp()
    return _summed(-(ratio * _counted(advantage, mask) - beta * _counted(kl, mask)), mask)


def mloo(
    log_probability: Tensor, advantage: Tensor, kl: Tensor, mask: Tensor, beta: float
) -> LossSum:
    """REINFORCE with leave-one-out credit and a KL: RLFTSim (arXiv 2605.19033).

        L = sum (-log pi A + beta KL),    A_i = mean_j M_-j - M_-i

    Args:
        log_probability: [R, A, 16], of the actions taken.
        advantage: broadcastable to that, see `leave_one_out_advantage` and `advantage_of_agents`.
        kl: [R, A, 16], to the frozen reference. Which estimate the paper takes is not known.
        mask: the actions that count.
        beta: weight of the KL, see `adapted_beta`.
    """
    policy = reinforce(log_probability, advantage, mask)
    return policy._replace(loss=policy.loss + beta * _counted(kl, mask).sum())


def ppo(
    log_probability: Tensor,
    old_log_probability: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip: float = CLIP,
) -> LossSum:
    """Proximal policy optimisation (arXiv 1707.06347, eq. 7), for several steps on one rollout.

        L = -sum min(rho A, clamp(rho, 1 - clip, 1 + clip) A),    rho = pi / pi_old

    with a ratio for each action. Advantages come from rewards; there is no value network.

    Args:
        log_probability: [R, A, 16], of the actions taken.
        old_log_probability: [R, A, 16], when they were drawn; no gradient goes there.
        advantage: broadcastable to that, see `advantage_of_agents`.
        mask: the actions that count.
        clip: above 0.
    """
    ratio = _log_ratio(log_probability, old_log_probability.detach(), mask).exp()
    advantage = _counted(advantage, mask)
    followed = ratio * advantage
    held = ratio.clamp(1 - clip, 1 + clip) * advantage
    return _summed(-torch.minimum(followed, held), mask, clipped=held < followed)


def grpo(
    log_probability: Tensor,
    old_log_probability: Tensor,
    advantage: Tensor,
    kl: Tensor,
    mask: Tensor,
    beta: float = BETA,
    clip: float = CLIP,
) -> LossSum:
    """Group relative policy optimisation (arXiv 2402.03300, eq. 3).

        L = -sum (min(rho A, clamp(rho, 1 - clip, 1 + clip) A) - beta KL),    rho = pi / pi_old

    Args:
        log_probability: [R, A, 16], of the actions taken.
        old_log_probability: [R, A, 16], when they were drawn; no gradient goes there.
        advantage: broadcastable to that, see `group_advantage` and `advantage_of_agents`.
        kl: [R, A, 16], to the frozen reference; `k3` in the paper.
        mask: the actions that count.
        beta: weight of the KL.
        clip: above 0.
    """
    policy = ppo(log_probability, old_log_probability, advantage, mask, clip)
    return policy._replace(loss=policy.loss + beta * _counted(kl, mask).sum())


class Pairs(NamedTuple):
    """The rollouts of each scene of which one is preferred to the other.

    Attributes:
        rollout: long [2, S], the best and the worst.
        differ: bool [S], whether the one is better than the other; False with fewer than two
            rewards known.
    """

    rollout: Tensor
    differ: Tensor


def best_and_worst(reward: Tensor) -> Pairs:
    """The best and the worst rollout of each scene.

    Args:
        reward: [S, R]; NaN is neither.
    """
    known = ~reward.isnan()
    highest, best = reward.where(known, -torch.inf).max(dim=1)
    lowest, worst = reward.where(known, torch.inf).min(dim=1)
    return Pairs(torch.stack([best, worst]), highest > lowest)


def of_rollouts(values: Tensor, rollout: Tensor, scene: Tensor) -> Tensor:
    """What there is of some rollouts only, another selection in each scene.

    Args:
        values: [R, A, ...].
        rollout: long [K, S], numbers of rollouts, as in `Pairs`.
        scene: long [A], see `scene_of_agents`.

    Returns:
        [K, A, ...].
    """
    return values[rollout[:, scene], torch.arange(len(scene), device=scene.device)]


def dpo(
    log_probability: Tensor,
    reference: Tensor,
    differ: Tensor,
    scene: Tensor,
    mask: Tensor,
    beta: float = 0.1,
) -> LossSum:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7) over pairs of rollouts.

        L = -sum over scenes of log sigmoid(beta (log pi(w) / ref(w) - log pi(l) / ref(l)))

    with w the best and l the worst rollout of a scene, whose log-probabilities are sums over its
    agents and actions. So beta is worth many actions: scenes have a thousand.

    Args:
        log_probability: [2, A, 16], of the actions of the best and of the worst rollouts, see
            `best_and_worst` and `of_rollouts`; others need no gradients.
        reference: [2, A, 16], of the frozen reference for the same actions.
        differ: bool [S], the scenes that have a pair.
        scene: long [A], see `scene_of_agents`.
        mask: the actions that count, of [2, A, 16].
        beta: weight of the reference.

    Returns:
        A sum over pairs.
    """
    of_agents = _log_ratio(log_probability, reference.detach(), mask).sum(dim=-1)
    # A product and not a scattered sum, which on a GPU adds in another order each time.
    in_scene = functional.one_hot(scene, len(differ))
    best, worst = (of_agents.unsqueeze(-1) * in_scene).sum(dim=1)
    loss = -functional.logsigmoid(beta * (best - worst))
    return _summed(_counted(loss, differ), differ)


# --------------------------------------------------------------------------------------------------
# Diagnostics


@torch.no_grad()
def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """The entropy of the policy in each state visited.

    Args:
        logits: [R, A, 16, V], any floating type.
        mask: the actions that count.

    Returns:
        [R, A, 16], in nats, without gradient.
    """
    mask = mask.expand(logits.shape[:-1])
    return _spread(torch.special.entr(_wide(logits[mask]).softmax(dim=-1)).sum(dim=-1), mask)


@torch.no_grad()
def policy_shift(log_probability: Tensor, old_log_probability: Tensor, mask: Tensor) -> Tensor:
    """How far the policy has gone since the actions were drawn: "approximate KL" in PPO's logs.

        KL[pi_old || pi]  estimated by  rho - log rho - 1,    rho = pi / pi_old

    which is `k3`, as the actions come from pi_old. For a policy that is still the one they were
    drawn from it is 0.

    Args:
        log_probability: [R, A, 16], now.
        old_log_probability: [R, A, 16], when they were drawn.
        mask: the actions that count.

    Returns:
        [R, A, 16], in nats, without gradient.
    """
    return k3(old_log_probability, log_probability, mask)


# --------------------------------------------------------------------------------------------------


def _zero_if_unknown(advantage: Tensor) -> Tensor:
    return advantage.where(~advantage.isnan(), 0)


def _wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _counted(values: Tensor, mask: Tensor) -> Tensor:
    """0 where not counted, before anything is computed that a NaN could come back from."""
    return _wide(values).where(mask, 0)


def _log_ratio(log_probability: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    # Of policies that are close: the difference of two numbers in half precision would be lost.
    return _counted(_wide(log_probability) - _wide(other), mask)


def _spread(counted: Tensor, mask: Tensor) -> Tensor:
    """The values of those that count, [N], to the mask's shape."""
    return counted.new_zeros(mask.shape).masked_scatter(mask, counted)


def _summed(loss: Tensor, mask: Tensor, clipped: Tensor | None = None) -> LossSum:
    terms = mask.expand(loss.shape).sum()
    return LossSum(loss.sum(), terms, torch.zeros_like(terms) if clipped is None else clipped.sum())
