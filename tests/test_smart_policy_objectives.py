"""Advantages, KL estimators and losses against closed forms on policies small enough to enumerate.

The small policy moves two agents for two steps, with three tokens each. The second step sees what
both did in the first. It has 3^4 = 81 rollouts, and an expectation is a sum over them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from smart_r1.policy_objectives import (  # noqa: E402
    KL_ESTIMATORS,
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
    k1,
    k2,
    k3,
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

NAN = math.nan
N_TOKENS, N_AGENTS, N_STEPS = 3, 2, 2

# Every rollout, [81, A, T], and the number of its first joint step, [81].
ROLLOUTS = torch.tensor(list(product(range(N_TOKENS), repeat=4))).view(-1, N_STEPS, N_AGENTS).mT
BRANCH = N_TOKENS * ROLLOUTS[:, 0, 0] + ROLLOUTS[:, 1, 0]
ALL = torch.ones(ROLLOUTS.shape, dtype=torch.bool)


def random_normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def small_policy(seed: int) -> Tensor:
    """Its parameters: logits in each of 1 + 9 states, [10, A, V]."""
    return random_normal(seed, 1 + N_TOKENS**2, N_AGENTS, N_TOKENS).requires_grad_()


def logits_along(policy: Tensor) -> Tensor:
    """The logits met in each rollout, [81, A, T, V]."""
    return torch.stack([policy[:1].expand(len(ROLLOUTS), -1, -1), policy[1 + BRANCH]], dim=2)


def log_probabilities(policy: Tensor) -> Tensor:
    return action_log_probability(logits_along(policy), ROLLOUTS, ALL)


def probability(policy: Tensor) -> Tensor:
    """Of each rollout, [81], written out."""
    return (
        logits_along(policy)
        .softmax(-1)
        .gather(-1, ROLLOUTS.unsqueeze(-1))
        .squeeze(-1)
        .prod(-1)
        .prod(-1)
    )


def expected(policy: Tensor, per_action: Tensor) -> Tensor:
    """Over the rollouts of the policy, of a sum over agents and steps; its draw has no gradient."""
    return (probability(policy).detach() * per_action.sum((1, 2))).sum()


def gradient(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, retain_graph=True)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def random_actions(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities [R, A, T] now, when drawn and of a reference; advantages; a mask."""
    old = -random_normal(seed, *shape).abs()
    now = (old + random_normal(seed + 1, *shape, scale=0.3)).requires_grad_()
    reference = old + random_normal(seed + 2, *shape, scale=0.3)
    advantage = random_normal(seed + 3, *shape)
    return now, old, reference, advantage, random_normal(seed + 4, *shape) > -0.5


# --------------------------------------------------------------------------------------------------
# Advantages


def test_the_threshold_is_taken_off_the_reward() -> None:
    reward = torch.tensor([[0.70, 0.80], [NAN, 0.77]], dtype=torch.float64)
    advantage = threshold_advantage(reward)
    assert advantage.flatten().tolist() == pytest.approx([-0.07, 0.03, 0, 0])
    assert threshold_advantage(reward, alpha=0.5)[0, 1].item() == pytest.approx(0.3)


def test_the_running_baseline_is_that_of_earlier_visits() -> None:
    baselines: dict[str, float] = {}
    found = []
    for reward in ([0.6, 0.8], [0.9, 0.9], [0.5, 0.5]):
        advantage, changed = running_advantage(
            torch.tensor([reward], dtype=torch.float64), ["x"], baselines, decay=0.8
        )
        baselines.update(changed)
        found += advantage.flatten().tolist()
    # Thresholds: the other rollout, then 0.7, then 0.8 * 0.7 + 0.2 * 0.9 = 0.74.
    assert found == pytest.approx([-0.2, 0.2, 0.2, 0.2, -0.24, -0.24])
    assert baselines["x"] == pytest.approx(0.8 * 0.74 + 0.2 * 0.5)


def test_each_scene_has_a_running_baseline_of_its_own() -> None:
    reward = torch.tensor(
        [[0.4, 0.5, 0.9], [0.9, NAN, 0.7], [NAN, NAN, NAN], [NAN, 0.6, NAN]], dtype=torch.float64
    )
    before = {"easy": 0.8, "other": 0.1, "unscored": 0.3}
    given = dict(before)
    names = ["new", "easy", "unscored", "alone"]
    advantage, changed = running_advantage(reward, names, before, decay=0.5)
    assert advantage[0].tolist() == pytest.approx([0.4 - 0.7, 0.5 - 0.65, 0.9 - 0.45])
    assert advantage[1].tolist() == pytest.approx([0.1, 0, -0.1])
    # Without another rollout that was scored there is nothing to judge by.
    assert not advantage[2:].any()
    assert changed == pytest.approx({"new": 0.6, "easy": 0.8, "alone": 0.6})
    assert before == given
    # Whatever else a process has seen, as another process has seen other scenes.
    alone, _ = running_advantage(reward[:1], ["new"], {})
    assert torch.equal(alone, advantage[:1])


def test_a_scene_twice_in_a_batch_counts_twice() -> None:
    reward = torch.tensor([[0.6], [1.0]], dtype=torch.float64)
    advantage, changed = running_advantage(reward, ["x", "x"], {"x": 0.2}, decay=0.5)
    assert advantage.flatten().tolist() == pytest.approx([0.4, 0.8])
    assert changed["x"] == pytest.approx(0.5 * (0.5 * 0.2 + 0.5 * 0.6) + 0.5)


def test_rewards_and_scenarios_must_be_as_many() -> None:
    with pytest.raises((ValueError, RuntimeError)):
        running_advantage(torch.zeros(2, 3), ["x"], {})


def test_leave_one_out_credit_is_the_advantage() -> None:
    credit = torch.tensor([[0.01, -0.03, 0.02], [NAN, NAN, NAN]], dtype=torch.float64)
    advantage = leave_one_out_advantage(credit)
    assert torch.equal(advantage[0], credit[0])
    assert advantage[1].tolist() == [0, 0, 0]


def test_group_advantages_are_standard_scores() -> None:
    reward = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    deviation = math.sqrt((4 + 1 + 0 + 9) / 4)
    wanted = [x / (deviation + 0.5) for x in (-2, -1, 0, 3)]
    assert group_advantage(reward, eps=0.5)[0].tolist() == pytest.approx(wanted)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 8))
def test_unscored_rollouts_are_no_part_of_the_group(rewards: list[float], at: int) -> None:
    known = torch.tensor([rewards], dtype=torch.float64)
    with_unknown = torch.tensor([[*rewards[:at], NAN, *rewards[at:]]], dtype=torch.float64)
    at = min(at, len(rewards))
    advantage = group_advantage(with_unknown)[0].tolist()
    assert advantage.pop(at) == 0
    assert advantage == pytest.approx(group_advantage(known)[0].tolist(), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(st.floats(-1, 1), st.integers(1, 40), st.floats(0, 1e-3))
def test_rollouts_that_share_one_reward_have_no_group_advantage(
    reward: float, n_rollouts: int, eps: float
) -> None:
    # Exactly none: means of 0.1 are a rounding off it.
    advantage = group_advantage(torch.full((1, n_rollouts), reward, dtype=torch.float64), eps)
    assert advantage.tolist() == [[0] * n_rollouts]


def test_a_group_of_unscored_rollouts_has_no_advantage() -> None:
    assert group_advantage(torch.full((2, 3), NAN)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_agents_have_the_advantages_of_their_scenes() -> None:
    scene = scene_of_agents((2, 0, 1))
    assert scene.tolist() == [0, 0, 2]
    advantage = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    of_agents = advantage_of_agents(advantage, scene)
    assert of_agents.shape == (2, 3, 1)
    assert of_agents[..., 0].tolist() == [[1, 1, 5], [2, 2, 6]]


# --------------------------------------------------------------------------------------------------
# Log-probabilities and the KL


def test_log_probabilities_are_those_of_the_joint_policy() -> None:
    policy = small_policy(0)
    joint = probability(policy)
    assert joint.sum().item() == pytest.approx(1)
    assert close(log_probabilities(policy).sum((1, 2)), joint.log())
    ours = gradient(log_probabilities(policy)[5].sum(), policy)[0]
    assert close(ours, gradient(joint[5].log(), policy)[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_kl_is_that_of_the_joint_policies(seed: int) -> None:
    """Chain rule: the KL of rollouts is the expected sum of the KL of actions."""
    policy, reference = small_policy(seed), small_policy(seed + 10)
    p, q = probability(policy), probability(reference)
    kl = categorical_kl(logits_along(policy), logits_along(reference), ALL)
    assert expected(policy, kl).item() == pytest.approx((p * (p / q).log()).sum().item())


def expected_over_tokens(logits: Tensor, values: Tensor) -> Tensor:
    """Of values [V], for one action drawn from logits [V]; its draw has no gradient."""
    return (logits.softmax(-1).detach() * values).sum()


def each_token(logits: Tensor) -> Tensor:
    """The log-probabilities of all V tokens of one state, as V rollouts, [V, 1, 1]."""
    index = torch.arange(len(logits)).view(-1, 1, 1)
    return action_log_probability(logits.expand(len(logits), 1, 1, -1), index, index >= 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator: Callable[..., Tensor], seed: int) -> None:
    policy, reference = small_policy(seed), small_policy(seed + 10)
    exact = categorical_kl(logits_along(policy), logits_along(reference), ALL)
    estimate = estimator(log_probabilities(policy), log_probabilities(reference), ALL)
    assert close(expected(policy, estimate), expected(policy, exact))


def test_k2_is_half_the_square_of_k1_and_nearly_unbiased_near_the_reference() -> None:
    reference = random_normal(0, 5)
    biases = []
    for scale in (0.1, 0.01):
        logits = reference + random_normal(1, 5, scale=scale)
        ours, theirs = each_token(logits), each_token(reference)
        mask = torch.ones(5, 1, 1, dtype=torch.bool)
        estimate = k2(ours, theirs, mask)
        assert close(estimate, k1(ours, theirs, mask) ** 2 / 2)
        exact = categorical_kl(logits.view(1, 1, 1, -1), reference.view(1, 1, 1, -1), mask[:1])
        value = expected_over_tokens(logits, estimate.flatten())
        biases.append(abs(value.item() / exact.item() - 1))
    assert biases[1] < 0.15 * biases[0] < 0.1


def kl_gradients(logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Of KL[pi || ref] and of KL[ref || pi], written out."""
    p, q = logits.log_softmax(-1), reference.log_softmax(-1)
    forth, back = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()
    return gradient(forth, logits)[0], gradient(back, logits)[0]


@pytest.mark.parametrize("seed", range(3))
def test_what_the_estimators_pull_towards(seed: int) -> None:
    logits, reference = random_normal(seed, 5).requires_grad_(), random_normal(seed + 10, 5)
    mask = torch.ones(5, 1, 1, dtype=torch.bool)
    found = {
        name: gradient(
            expected_over_tokens(
                logits, estimator(each_token(logits), each_token(reference), mask).flatten()
            ),
            logits,
        )[0]
        for name, estimator in KL_ESTIMATORS.items()
    }
    forth, back = kl_gradients(logits, reference)
    assert not torch.allclose(forth, back, rtol=0.01)
    assert close(found["k1"], torch.zeros(5, dtype=torch.float64))
    assert close(found["k2"], forth)
    assert close(found["k3"], back)
    exact = categorical_kl(
        logits.view(1, 1, 1, -1), reference.view(1, 1, 1, -1), torch.ones(1, 1, 1).bool()
    )
    assert close(gradient(exact.sum(), logits)[0], forth)


@settings(deadline=None)
@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_at_the_reference_only(now: float, reference: float) -> None:
    at = torch.tensor([[[now]]], dtype=torch.float64, requires_grad=True)
    value = k3(at, torch.tensor([[[reference]]], dtype=torch.float64), torch.ones(1).bool())
    assert value.item() >= 0
    if abs(now - reference) > 1e-6:
        assert value.item() > 0
    else:
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert gradient(value.sum(), at)[0].item() == pytest.approx(0, abs=2e-6)


def test_k3_near_the_reference_is_not_lost_in_rounding() -> None:
    now, reference = torch.tensor([[[-1.0]]]), torch.tensor([[[-1.0 - 2e-3]]])
    wanted = k2(now, reference, torch.ones(1).bool()).item()
    assert k3(now, reference, torch.ones(1).bool()).item() == pytest.approx(wanted, rel=0.01)


def test_the_estimator_as_printed_is_of_the_wrong_sign() -> None:
    """Why `k3` is not ref / pi - log(pi / ref) - 1; the docstring's claims."""
    logits, reference = random_normal(0, 5).requires_grad_(), random_normal(1, 5)
    ours, theirs = each_token(logits).flatten(), each_token(reference).flatten()
    printed = (theirs - ours).exp() - (ours - theirs) - 1
    kl = expected_over_tokens(logits, ours - theirs)
    assert expected_over_tokens(logits, printed).item() == pytest.approx(-kl.item())
    assert (printed[ours > theirs] < 0).all()
    pull = gradient(expected_over_tokens(logits, printed), logits)[0]
    assert close(pull, kl_gradients(logits, reference)[1])
    at_reference = (ours.detach() - ours).exp() - (ours - ours.detach()) - 1
    (noise,) = gradient(at_reference[2], logits)
    assert close(noise, -2 * gradient(ours[2], logits)[0])


@pytest.mark.parametrize(
    ("kl", "wanted"), [(0.0066, 0.02), (0.0067, 0.04), (0.0149, 0.04), (0.0151, 0.08), (NAN, 0.04)]
)
def test_beta_is_halved_below_the_band_and_doubled_above(kl: float, wanted: float) -> None:
    assert adapted_beta(0.04, kl) == wanted


def test_beta_stays_within_its_bounds() -> None:
    assert adapted_beta(1e-4, 0.0) == 1e-4
    assert adapted_beta(8.0, 1.0) == 10.0
    assert adapted_beta(0.04, -1.0, bounds=(0.03, 1)) == 0.03
    assert adapted_beta(0.04, 0.3, target=0.1, bounds=(0, 1)) == 0.08


def test_the_controller_holds_the_kl_at_its_target() -> None:
    """Of a policy that drifts the farther from the reference the less it is held."""
    beta = 1e-4
    kls = []
    for _ in range(40):
        kls.append(0.001 / beta)
        beta = adapted_beta(beta, kls[-1])
    assert kls[0] > 1
    assert all(0.01 / 1.5 <= kl <= 0.01 * 1.5 for kl in kls[-5:])


# --------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_follows_the_gradient_of_the_expected_reward(seed: int) -> None:
    policy = small_policy(seed)
    reward = random_normal(seed + 20, len(ROLLOUTS))
    (wanted,) = gradient((probability(policy) * reward).sum(), policy)
    for baseline in (0.0, 0.77):
        # Each rollout as often as the policy draws it; a baseline changes nothing.
        advantage = probability(policy).detach() * (reward - baseline)
        loss = reinforce(log_probabilities(policy), advantage[:, None, None], ALL)
        assert close(-gradient(loss.loss, policy)[0], wanted)


def test_reinforce_is_its_formula() -> None:
    now, _, _, advantage, mask = random_actions(0, 3, 4, 16)
    found = reinforce(now, advantage, mask)
    assert found.loss.item() == pytest.approx(-(now * advantage)[mask].sum().item())
    assert found.terms.item() == mask.sum().item()
    assert found.clipped.item() == 0


def test_mpo_is_reinforce_and_the_kl() -> None:
    now, _, reference, advantage, mask = random_actions(0, 3, 4, 16)
    kl = k3(now, reference, mask)
    found = mpo(now, advantage, kl, mask, beta=0.3)
    # The ratio is 1 in value.
    wanted = -(advantage[mask].sum() - 0.3 * kl.sum())
    assert found.loss.item() == pytest.approx(wanted.item())
    assert found.terms.item() == mask.sum().item()
    (policy,) = gradient(reinforce(now, advantage, mask).loss, now)
    (pull,) = gradient(kl.sum(), now)
    assert policy.abs().max() > 0.1 < pull.abs().max()
    assert close(gradient(found.loss, now)[0], policy + 0.3 * pull)


def test_mpo_follows_the_expected_reward_less_the_kl_of_its_states() -> None:
    policy, reference = small_policy(1), small_policy(2)
    reward = random_normal(3, len(ROLLOUTS), scale=0.1)
    weight = probability(policy).detach()[:, None, None]
    kl = categorical_kl(logits_along(policy), logits_along(reference).detach(), ALL)
    found = mpo(
        log_probabilities(policy), weight * (reward[:, None, None] - 0.77), weight * kl, ALL
    )
    (wanted,) = gradient((probability(policy) * reward).sum() - 0.04 * expected(policy, kl), policy)
    assert close(-gradient(found.loss, policy)[0], wanted)


def test_mloo_is_reinforce_and_the_kl() -> None:
    now, _, reference, advantage, mask = random_actions(1, 3, 4, 16)
    kl = k2(now, reference, mask)
    found = mloo(now, advantage, kl, mask, beta=0.3)
    wanted = reinforce(now, advantage, mask).loss + 0.3 * kl.sum()
    assert found.loss.item() == pytest.approx(wanted.item())
    assert close(gradient(found.loss, now)[0], gradient(wanted, now)[0])
    assert found.terms.item() == mask.sum().item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # likelier by enough
        (0.5, -2.0, 1.6, 0.0, 1),  # less likely by enough
        (0.5, 2.0, -1.0, -1.0, 0),  # the wrong way: back, however far
        (1.5, -2.0, 3.0, 3.0, 0),
    ],
)
def test_ppo_follows_the_ratio_until_it_has_gone_far_enough(
    ratio: float, advantage: float, value: float, slope: float, clipped: int
) -> None:
    now = torch.tensor([[[math.log(0.3 * ratio)]]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[[math.log(0.3)]]], dtype=torch.float64)
    found = ppo(now, old, torch.full((1, 1, 1), advantage), torch.ones(1).bool())
    assert found.loss.item() == pytest.approx(value)
    # The gradient of the ratio by the log-probability is the ratio.
    assert gradient(found.loss, now)[0].item() == pytest.approx(slope)
    assert (found.terms.item(), found.clipped.item()) == (1, clipped)


def test_ppo_inside_the_clip_is_reinforce_scaled_by_the_ratio() -> None:
    now, old, _, advantage, mask = random_actions(2, 3, 4, 16)
    found = ppo(now, old, advantage, mask, clip=100.0)
    ratio = (now - old).exp().detach()
    wanted = gradient(reinforce(now, ratio * advantage, mask).loss, now)[0]
    assert close(gradient(found.loss, now)[0], wanted)
    assert found.clipped.item() == 0


def test_the_clip_fraction_is_the_share_of_actions_without_a_gradient() -> None:
    now, old, _, advantage, mask = random_actions(3, 5, 6, 16)
    found = ppo(now, old, advantage, mask)
    (slope,) = gradient(found.loss, now)
    n_held = (slope[mask] == 0).sum().item()
    assert 0 < n_held < mask.sum().item() == found.terms.item()
    assert found.clipped.item() == n_held


def test_ppo_and_grpo_have_no_gradient_for_the_old_policy() -> None:
    now, old, _, advantage, mask = random_actions(4, 2, 2, 4)
    old.requires_grad_()
    for found in (
        ppo(now, old, advantage, mask),
        grpo(now, old, advantage, torch.zeros_like(old), mask),
    ):
        assert torch.autograd.grad(found.loss, old, allow_unused=True)[0] is None


def test_grpo_is_ppo_and_the_kl() -> None:
    now, old, reference, advantage, mask = random_actions(5, 3, 4, 16)
    kl = k3(now, reference, mask)
    found = grpo(now, old, advantage, kl, mask, beta=0.3, clip=0.1)
    policy = ppo(now, old, advantage, mask, clip=0.1)
    wanted = policy.loss + 0.3 * kl.sum()
    assert found.loss.item() == pytest.approx(wanted.item())
    assert close(gradient(found.loss, now)[0], gradient(wanted, now)[0])
    assert found.clipped.item() == policy.clipped.item() > 0


def test_on_policy_all_objectives_take_the_same_step() -> None:
    now, _, reference, advantage, mask = random_actions(6, 3, 4, 16)
    kl, old = k3(now, reference, mask), now.detach().clone()
    (wanted,) = gradient(mpo(now, advantage, kl, mask, beta=0.2).loss, now)
    assert wanted.abs().max() > 0.1
    for found in (
        mloo(now, advantage, kl, mask, beta=0.2),
        grpo(now, old, advantage, kl, mask, beta=0.2),
    ):
        assert close(gradient(found.loss, now)[0], wanted)
    policy = gradient(ppo(now, old, advantage, mask).loss, now)[0]
    assert close(policy, gradient(reinforce(now, advantage, mask).loss, now)[0])


# --------------------------------------------------------------------------------------------------
# Preferences


def test_the_best_and_the_worst_rollout() -> None:
    reward = torch.tensor(
        [[0.3, NAN, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5], [NAN, 0.4, NAN, NAN], [NAN] * 4]
    )
    pairs = best_and_worst(reward)
    assert pairs.rollout[:, 0].tolist() == [2, 3]
    assert pairs.differ.tolist() == [True, False, False, False]


def test_rollouts_are_selected_scene_by_scene() -> None:
    values = torch.arange(3 * 4 * 2).view(3, 4, 2)
    scene = scene_of_agents((1, 3))
    chosen = of_rollouts(values, torch.tensor([[2, 0], [1, 2]]), scene)
    wanted = [[values[2, 0], *values[0, 1:]], [values[1, 0], *values[2, 1:]]]
    assert torch.equal(chosen, torch.stack([torch.stack(row) for row in wanted]))


def test_dpo_is_its_closed_form() -> None:
    now, _, reference, _, mask = random_actions(7, 2, 5, 16)
    scene, differ = scene_of_agents((2, 2, 1)), torch.tensor([True, False, True])
    found = dpo(now, reference, differ, scene, mask, beta=0.05)
    wanted = torch.zeros((), dtype=torch.float64)
    for agents in (slice(0, 2), slice(4, 5)):
        margins = [
            sum((now - reference)[k, agents][mask[k, agents]], torch.zeros(())) for k in (0, 1)
        ]
        wanted = wanted - torch.log(1 / (1 + torch.exp(-0.05 * (margins[0] - margins[1]))))
    assert found.loss.item() == pytest.approx(wanted.item())
    assert close(gradient(found.loss, now)[0], gradient(wanted, now)[0])
    assert found.terms.item() == 2


def test_dpo_begins_at_log_2_and_prefers_the_best() -> None:
    _, _, reference, _, _ = random_actions(8, 2, 3, 16)
    now = reference.clone().requires_grad_()
    scene, differ = scene_of_agents((3,)), torch.tensor([True])
    found = dpo(now, reference, differ, scene, torch.ones(1).bool(), beta=0.1)
    assert found.loss.item() == pytest.approx(math.log(2))
    (slope,) = gradient(found.loss, now)
    assert close(slope[0], torch.full_like(slope[0], -0.05))
    assert close(slope[1], torch.full_like(slope[1], 0.05))


def test_the_optimum_of_dpo_is_the_reference_reweighted_by_the_rewards() -> None:
    """Preferences drawn from rewards r are explained by pi ~ ref exp(r / beta): Rafailov, eq. 4."""
    reference, reward, beta = random_normal(0, 4), random_normal(1, 4), 0.5
    logits = (reference.log_softmax(-1) + reward / beta).requires_grad_()
    ours, theirs = each_token(logits).flatten(), each_token(reference).flatten()
    best, worst = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j]).T
    total = torch.zeros((), dtype=torch.float64)
    for i, j in zip(best.tolist(), worst.tolist(), strict=True):
        loss = dpo(
            ours[[i, j]].view(2, 1, 1),
            theirs[[i, j]].view(2, 1, 1),
            torch.tensor([True]),
            torch.tensor([0]),
            torch.ones(1).bool(),
            beta,
        ).loss
        total = total + torch.sigmoid(reward[i] - reward[j]) * loss
    assert gradient(total, logits)[0].abs().max().item() < 1e-12


def test_without_pairs_dpo_is_zero() -> None:
    now, _, reference, _, mask = random_actions(9, 2, 3, 16)
    found = dpo(now, reference, torch.tensor([False]), scene_of_agents((3,)), mask)
    assert (found.loss.item(), found.terms.item()) == (0, 0)
    assert gradient(found.loss, now)[0].abs().max().item() == 0


# --------------------------------------------------------------------------------------------------
# Sums, masks, precision


OBJECTIVES: dict[str, Callable[..., LossSum]] = {
    "reinforce": lambda now, old, reference, advantage, mask: reinforce(now, advantage, mask),
    "mpo": lambda now, old, reference, advantage, mask: mpo(
        now, advantage, k3(now, reference, mask), mask
    ),
    "mloo": lambda now, old, reference, advantage, mask: mloo(
        now, advantage, k2(now, reference, mask), mask, 0.1
    ),
    "ppo": lambda now, old, reference, advantage, mask: ppo(now, old, advantage, mask),
    "grpo": lambda now, old, reference, advantage, mask: grpo(
        now, old, advantage, k3(now, reference, mask), mask
    ),
    "dpo": lambda now, old, reference, advantage, mask: dpo(
        now, reference, torch.ones(2).bool(), scene_of_agents((2, 4)), mask
    ),
}


def numbers(found: LossSum) -> list[float]:
    return [value.item() for value in found]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_actions_that_do_not_count_have_no_effect(name: str) -> None:
    objective = OBJECTIVES[name]
    now, *others, mask = random_actions(10, 2, 6, 16)
    wanted = objective(now, *others, mask)
    (slope,) = gradient(wanted.loss, now)
    assert slope[mask].abs().max() > 0.001
    for rubbish in (NAN, math.inf, -math.inf, 1e30):
        spoiled = [x.detach().masked_fill(~mask, rubbish) for x in (now, *others)]
        spoiled[0].requires_grad_()
        found = objective(*spoiled, mask)
        assert numbers(found) == numbers(wanted)
        (found_slope,) = gradient(found.loss, spoiled[0])
        assert torch.equal(found_slope, slope)
        assert found_slope[~mask].abs().max().item() == 0


def test_the_kl_of_actions_that_do_not_count_has_no_effect() -> None:
    """Whoever estimated it, and whether or not with this mask."""
    now, old, _, advantage, mask = random_actions(10, 2, 6, 16)
    kl = random_normal(15, 2, 6, 16)
    spoiled = kl.masked_fill(~mask, NAN).requires_grad_()
    for objective in (
        lambda kl: mpo(now, advantage, kl, mask, 0.3),
        lambda kl: mloo(now, advantage, kl, mask, 0.3),
        lambda kl: grpo(now, old, advantage, kl, mask, 0.3),
    ):
        found = objective(spoiled)
        assert found.loss.item() == objective(kl).loss.item()
        assert close(gradient(found.loss, spoiled)[0], 0.3 * mask.double())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mask_of_agents_is_that_of_their_rollouts_and_steps(name: str) -> None:
    *actions, _ = random_actions(11, 2, 6, 16)
    of_agents = torch.tensor([True, False, True, True, True, False])[:, None]
    narrow = OBJECTIVES[name](*actions, of_agents)
    wide = OBJECTIVES[name](*actions, of_agents.expand(2, 6, 16))
    assert numbers(narrow) == numbers(wide)
    assert narrow.terms.item() == (2 if name == "dpo" else 2 * 4 * 16)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "dpo"])
@given(seed=st.integers(0, 50), first=st.integers(0, 6))
@settings(max_examples=10, deadline=None)
def test_parts_of_a_batch_add_up(name: str, seed: int, first: int) -> None:
    actions = random_actions(seed, 3, 6, 16)
    whole = OBJECTIVES[name](*actions)
    parts = [
        OBJECTIVES[name](*(x[:, part] for x in actions))
        for part in (slice(first), slice(first, None))
    ]
    for i in range(3):
        total = sum(numbers(part)[i] for part in parts)
        assert total == pytest.approx(numbers(whole)[i], abs=1e-9)
    slopes = [gradient(x.loss, actions[0])[0] for x in (whole, *parts)]
    assert close(slopes[0], slopes[1] + slopes[2])


def test_scenes_add_up_in_dpo() -> None:
    now, _, reference, _, mask = random_actions(12, 2, 6, 16)
    differ = torch.tensor([True, False, True])
    whole = dpo(now, reference, differ, scene_of_agents((2, 1, 3)), mask)
    left = dpo(now[:, :3], reference[:, :3], differ[:2], scene_of_agents((2, 1)), mask[:, :3])
    right = dpo(now[:, 3:], reference[:, 3:], differ[2:], scene_of_agents((3,)), mask[:, 3:])
    assert whole.loss.item() == pytest.approx(left.loss.item() + right.loss.item())
    assert (left.terms.item(), right.terms.item(), whole.terms.item()) == (1, 1, 2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_where_no_action_counts_the_loss_does_nothing(name: str) -> None:
    now, *others, mask = random_actions(13, 2, 6, 16)
    found = OBJECTIVES[name](now, *others, torch.zeros_like(mask))
    assert gradient(found.loss, now)[0].abs().max().item() == 0
    if name != "dpo":
        assert numbers(found) == [0, 0, 0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_of_half_precision_are_computed_in_float32(name: str) -> None:
    rounded = [x.detach().bfloat16() for x in random_actions(14, 2, 6, 16)[:4]]
    mask = random_actions(14, 2, 6, 16)[4]
    half = OBJECTIVES[name](*rounded, mask)
    single = OBJECTIVES[name](*(x.float() for x in rounded), mask)
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == single.loss.item()


def spoiled_logits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [2, 3, 4, 7] of a policy and a reference, NaN where masked; tokens; the mask."""
    mask = random_normal(0, 2, 3, 4) > 0
    logits, reference = (
        random_normal(i, 2, 3, 4, 7).masked_fill(~mask.unsqueeze(-1), NAN) for i in (1, 2)
    )
    index = torch.randint(7, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    return logits.requires_grad_(), reference, index, mask


def test_logits_of_actions_that_do_not_count_have_no_effect() -> None:
    logits, reference, index, mask = spoiled_logits()
    clean, clean_reference = logits.nan_to_num(), reference.nan_to_num()
    for spoiled, wanted in (
        (
            action_log_probability(logits, index, mask),
            clean.log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1),
        ),
        (
            categorical_kl(logits, reference, mask),
            (clean.softmax(-1) * (clean.log_softmax(-1) - clean_reference.log_softmax(-1))).sum(-1),
        ),
    ):
        assert close(spoiled, wanted.where(mask, 0))
        (slope,) = gradient(spoiled.sum(), logits)
        assert slope[mask].abs().min() > 0
        assert slope[~mask].abs().max().item() == 0
        assert close(slope, gradient(wanted[mask].sum(), logits)[0])
    assert entropy(logits, mask)[~mask].abs().max().item() == 0
    assert entropy(logits, mask)[mask].min().item() > 0


def test_logits_in_half_precision_are_computed_in_float32() -> None:
    logits, reference, index, mask = spoiled_logits()
    half, half_reference = logits.detach().bfloat16(), reference.bfloat16()
    single, single_reference = half.float(), half_reference.float()
    for ours, wanted in (
        (action_log_probability(half, index, mask), action_log_probability(single, index, mask)),
        (
            categorical_kl(half, half_reference, mask),
            categorical_kl(single, single_reference, mask),
        ),
        (entropy(half, mask), entropy(single, mask)),
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, wanted)
    for estimator in KL_ESTIMATORS.values():
        now, old = -half[..., 0].abs(), -half_reference[..., 0].abs()
        assert torch.equal(estimator(now, old, mask), estimator(now.float(), old.float(), mask))


# --------------------------------------------------------------------------------------------------
# Diagnostics


def test_the_entropy_of_a_policy() -> None:
    policy = small_policy(0)
    p = probability(policy)
    # Chain rule again: the entropy of rollouts is the expected sum of that of actions.
    assert expected(policy, entropy(logits_along(policy), ALL)).item() == pytest.approx(
        -(p * p.log()).sum().item()
    )
    certain = torch.tensor([0.0, -math.inf, -math.inf]).expand(1, 1, 1, 3)
    assert entropy(certain, torch.ones(1).bool()).item() == 0
    flat = torch.zeros(1, 1, 1, 8)
    assert entropy(flat, torch.ones(1).bool()).item() == pytest.approx(math.log(8))


def test_the_policy_shift_is_the_kl_of_the_old_policy_to_the_new() -> None:
    old, now = small_policy(0), small_policy(1)
    estimate = policy_shift(log_probabilities(now), log_probabilities(old), ALL)
    exact = categorical_kl(logits_along(old), logits_along(now), ALL)
    assert not estimate.requires_grad
    assert close(expected(old, estimate), expected(old, exact))
    assert not torch.isclose(
        exact.mean(), categorical_kl(logits_along(now), logits_along(old), ALL).mean()
    )
    ours = log_probabilities(now)
    assert policy_shift(ours, ours, ALL).abs().max().item() == 0
