"""Reinforcement fine-tuning: a step against gradients written out by hand, and its runs."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from click.testing import CliRunner, Result  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from training_fixtures import (  # noqa: E402
    Crash,
    Data,
    arcs,
    assert_same_run,
    crash,
    lines_of,
    make_data,
    newest,
    stop,
)

from smart_r1 import builtin  # noqa: E402
from smart_r1.batching import SceneBatch, collate, edges  # noqa: E402
from smart_r1.cli import main  # noqa: E402
from smart_r1.model.checkpoint import fingerprint, load_model, save_model  # noqa: E402
from smart_r1.model.config import CONFIGS  # noqa: E402
from smart_r1.model.smart import SMART  # noqa: E402
from smart_r1.scene_tensors import scene_tensors  # noqa: E402
from smart_r1.simulate import ClosedLoop, Sampling, sampled  # noqa: E402
from smart_r1.train import finetune as stage  # noqa: E402
from smart_r1.train import policy_step as step_module  # noqa: E402
from smart_r1.train.config import to_yaml  # noqa: E402
from smart_r1.train.distributed import Ranks  # noqa: E402
from smart_r1.train.experience import Loaded, load_parts  # noqa: E402
from smart_r1.train.finetune import FinetuneConfig, finetune, load_finetune_config  # noqa: E402
from smart_r1.train.log import read_log  # noqa: E402
from smart_r1.train.policy_config import METHODS, PolicyConfig, resolved  # noqa: E402
from smart_r1.train.policy_step import Learned, Lesson, policy_step  # noqa: E402
from smart_r1.train.stage import Outcome  # noqa: E402
from smart_r1.train.step import NonFiniteError, autocast  # noqa: E402
from wosac_toolkit.errors import WosacError  # noqa: E402
from wosac_toolkit.io.scenarios import index_scenarios, load_scenarios, write_scenarios  # noqa: E402
from wosac_toolkit.reward import MetaScoreReward, Reward, Rewards  # noqa: E402
from wosac_toolkit.rollouts import Rollouts  # noqa: E402
from wosac_toolkit.scenario import Float64Array, Int64Array, Scenario  # noqa: E402

N_SCENES = 4
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SEED = 5
N_ROLLOUTS = 4
ALGOS = ("mpo", "mloo", "reinforce", "grpo", "ppo", "dpo")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Four synthetic scenes of two agents each."""
    return make_data(tmp_path_factory.mktemp("finetune"), N_SCENES)


def policy(seed: int) -> SMART:
    """A pico model that has learnt nothing yet."""
    torch.manual_seed(seed)
    return SMART(CONFIGS["pico"], arcs()).eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sft"
    save_model(folder, policy(0))
    return folder


# --------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize("algo", ALGOS)
def test_what_is_not_set_is_the_algorithm_s_own(algo: Any) -> None:
    found = resolved(PolicyConfig(algo=algo))
    own = METHODS[found.algo]
    assert (found.credit, found.beta, found.kl) == (own.credit, own.beta, own.kl)
    assert (found.target_kl, found.updates) == (own.target_kl, own.updates)
    assert resolved(PolicyConfig(algo=algo, kl="exact")).kl == "exact"
    assert resolved(found) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_rollouts": 0}, "policy.n_rollouts must be at least 1"),
        ({"updates": 0}, "policy.updates must be at least 1"),
        ({"top_k": 0}, "policy.top_k must be at least 1"),
        ({"beta": -1.0}, "policy.beta must not be negative"),
        ({"target_kl": -1.0}, "policy.target_kl must not be negative"),
        ({"clip": 0.0}, "must be positive"),
        ({"temperature": 0.0}, "must be positive"),
        ({"algo": "grpo", "credit": "group"}, "grpo compares the rollouts"),
        ({"algo": "ppo", "credit": "agent"}, "ppo compares the rollouts"),
        ({"algo": "dpo", "credit": "group"}, "dpo compares the rollouts"),
        ({"algo": "mloo", "credit": "single"}, "mloo has no baseline"),
        ({"algo": "mloo", "n_rollouts": 1}, "mloo compares rollouts"),
        ({"algo": "grpo", "n_rollouts": 1}, "grpo compares rollouts"),
        ({"algo": "dpo", "n_rollouts": 1}, "dpo compares rollouts"),
        ({"credit": "agent", "n_rollouts": 1}, "mpo with the credit agent compares rollouts"),
        ({"updates": 2}, "mpo learns from rollouts of the policy as it is"),
        ({"algo": "mloo", "updates": 3}, "mloo learns from rollouts of the policy as it is"),
        ({"algo": "reinforce", "beta": 0.1}, "reinforce has no KL"),
        ({"algo": "ppo", "beta": 0.1}, "ppo has no KL"),
        ({"algo": "ppo", "target_kl": 0.1}, "ppo has no weight of a KL"),
        ({"algo": "dpo", "target_kl": 0.1}, "dpo has no weight of a KL"),
        ({"algo": "dpo", "beta": 0.0}, "dpo learns nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WosacError, match=message):
        PolicyConfig(**settings)


# --------------------------------------------------------------------------------------------------
# One step


class Told(Reward):
    """Rewards that a function says of each scene, [R] or [R, E], with the agents they are of."""

    def __init__(
        self,
        says: Callable[[Scenario, Rollouts], Float64Array],
        agents: Callable[[Scenario], Int64Array] = lambda _: np.zeros(0, np.int64),
    ) -> None:
        self.says, self.agents = says, agents

    def _score(self, scenarios: list[Scenario], rollouts: list[Rollouts]) -> Rewards:
        values = np.stack(list(map(self.says, scenarios, rollouts)))
        names = [scenario.scenario_id for scenario in scenarios]
        unknown = [bool(np.isnan(row).all()) for row in values]
        return Rewards(
            values=values,
            set_values=np.where(
                unknown, np.nan, np.nan_to_num(values[:, 0]).reshape(len(names), -1)[:, 0]
            ),
            scores=(None,) * len(values),
            object_ids=tuple(map(self.agents, scenarios)),
            unscorable={name: "not known" for name, bad in zip(names, unknown, strict=True) if bad},
        )


def drawn(scenario: Scenario, *shape: int) -> Float64Array:
    """Numbers that belong to a scene, between 0 and 1."""
    return np.random.default_rng(int(scenario.scenario_id, 16) % 2**32).random(shape)


REWARDED = Told(lambda scenario, rollouts: drawn(scenario, rollouts.n_rollouts))


def lesson_of(
    reward: Reward, *, edges: int = 10**9, precision: str = "float32", **settings: Any
) -> Lesson:
    """A policy, and another one as its reference, so that there is a KL."""
    model = policy(1).requires_grad_(False)
    trained = [p for n, p in model.named_parameters() if n.startswith("agent_decoder.")]
    for parameter in trained:
        parameter.requires_grad_(True)
    return Lesson(
        model=model,
        reference=policy(2).requires_grad_(False),
        optimizer=torch.optim.SGD(trained, lr=1.0),
        reward=reward,
        config=resolved(PolicyConfig(n_rollouts=N_ROLLOUTS, **settings)),
        context=partial(autocast, precision, CPU),
        edges_at_once=edges,
        ranks=ALONE,
    )


def loaded_from(folder: Path, lesson: Lesson, n_scenes: int = 3) -> Loaded:
    records = dict(itertools.islice(index_scenarios(str(folder)).items(), n_scenes))
    return load_parts(
        records, n_rollouts=lesson.config.n_rollouts, edges_at_once=lesson.edges_at_once
    )


def take(
    lesson: Lesson, loaded: Loaded, memory: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, Tensor]], Learned]:
    """The gradients of a step's updates, each of which moves the weights; and what came of it."""
    found = []

    def follow() -> float:
        found.append(gradients_of(lesson.model))
        lesson.optimizer.step()
        return math.sqrt(sum(g.square().sum().item() for g in found[-1].values()))

    learned = policy_step(lesson, loaded, memory or {}, seed=SEED, measure=True, follow=follow)
    return found, learned


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    scale = max(g.abs().max().item() for g in theirs.values())
    assert scale > 1e-6
    return all(torch.allclose(ours[n], theirs[n], rtol=1e-3, atol=1e-5 * scale) for n in ours)


def together(
    lesson: Lesson, loaded: Loaded, leave_out: Sequence[str] = ()
) -> tuple[SceneBatch, ClosedLoop, list[Scenario]]:
    """All scenes of a step as one graph, and what the policy does in them."""
    scenes = [s for part in loaded.parts for s in part.scenarios if s.scenario_id not in leave_out]
    batch = collate([scene_tensors(scene) for scene in scenes], view="logged")
    sampling = Sampling(lesson.config.top_k, lesson.config.temperature)
    loop = sampled(
        lesson.model, batch, n_rollouts=lesson.config.n_rollouts, sampling=sampling, seed=SEED
    )
    return batch, loop, scenes


def log_probability(model: SMART, batch: SceneBatch, loop: ClosedLoop) -> Tensor:
    """Of the tokens taken, [R, A, 16], in float64 from the logits on."""
    logits: Tensor = model(batch, loop.tokens).double()
    return logits.log_softmax(-1).gather(-1, loop.tokens.index[..., 2:, None])[..., 0]


def loss_by_hand(
    algo: str, now: Tensor, old: Tensor, reference: Tensor, reward: Tensor, clip: float = 0.2
) -> Tensor:
    """Of all rollouts on one graph, with the settings that are an algorithm's own.

    Args:
        algo: which.
        now: [R, A, 16].
        old: likewise.
        reference: likewise.
        reward: [S, R]; scenes have two agents.
        clip: how far a ratio is followed.
    """
    of_actions = reward.T.repeat_interleave(2, dim=1)[:, :, None]
    mean = of_actions.mean(dim=0)
    standard = (of_actions - mean) / (of_actions.std(dim=0, correction=0) + 1e-6)
    ahead: Tensor = reference - now
    loss: Tensor
    k3 = ahead.exp() - ahead - 1
    ratio = (now - old).exp()
    clipped = torch.minimum(ratio * standard, ratio.clamp(1 - clip, 1 + clip) * standard)
    match algo:
        case "mpo":
            loss = -ratio * (of_actions - 0.77) + 0.04 * k3
        case "reinforce":
            loss = -now * (of_actions - 0.77)
        case "mloo":
            loss = -now * (of_actions - mean) + 0.04 * ahead**2 / 2
        case "grpo":
            loss = -clipped + 0.04 * k3
        case "ppo":
            loss = -clipped
        case "dpo":
            of_scenes = -ahead.view(len(ahead), len(reward), -1).sum(2)  # [R, S]
            best, worst = reward.argmax(1), reward.argmin(1)
            scenes = torch.arange(len(reward))
            loss = -torch.sigmoid(0.1 * (of_scenes[best, scenes] - of_scenes[worst, scenes])).log()
    return loss.mean()


def by_hand(
    lesson: Lesson, loaded: Loaded, leave_out: Sequence[str] = ()
) -> tuple[float, dict[str, Tensor]]:
    """The loss of the first update, and its gradient."""
    batch, loop, scenes = together(lesson, loaded, leave_out)
    assert loop.tokens.valid[..., 1:-1].all()
    reward = torch.from_numpy(np.stack([drawn(scene, N_ROLLOUTS) for scene in scenes]))
    now = log_probability(lesson.model, batch, loop)
    with torch.no_grad():
        reference = log_probability(lesson.reference, batch, loop)
    loss = loss_by_hand(lesson.config.algo, now, now.detach(), reference, reward)
    lesson.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients_of(lesson.model)


@pytest.mark.parametrize("edges", [1, 10**9])
@pytest.mark.parametrize("algo", ALGOS)
def test_the_gradient_is_that_of_all_scenes_and_rollouts_on_one_graph(
    data: Data, algo: str, edges: int
) -> None:
    lesson = lesson_of(REWARDED, algo=algo, edges=edges, updates=1)
    loaded = loaded_from(data.scenarios, lesson)
    assert len(loaded.parts) == (3 if edges == 1 else 1)
    loss, expected = by_hand(lesson, loaded)
    (ours,), learned = take(lesson, loaded)
    assert learned.values["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    # What nobody reaches has gradients of 0 rather than none.
    reached = {name: g for name, g in ours.items() if name in expected}
    assert all(not g.any() for name, g in ours.items() if name not in expected)
    assert same_gradients(reached, expected)


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
@pytest.mark.parametrize("edges", [1, 10**9])
def test_a_second_update_is_clipped_against_the_policy_that_acted(
    data: Data, algo: str, edges: int
) -> None:
    lesson = lesson_of(REWARDED, algo=algo, updates=2, clip=0.01, edges=edges)
    loaded = loaded_from(data.scenarios, lesson)
    batch, loop, scenes = together(lesson, loaded)
    reward = torch.from_numpy(np.stack([drawn(scene, N_ROLLOUTS) for scene in scenes]))
    with torch.no_grad():
        old = log_probability(lesson.model, batch, loop)
        reference = log_probability(lesson.reference, batch, loop)
    model = copy.deepcopy(lesson.model)
    (first, ours), learned = take(lesson, loaded)
    for name, parameter in model.named_parameters():
        if name in first:
            parameter.data -= first[name]
    now = log_probability(model, batch, loop)
    loss_by_hand(algo, now, old, reference, reward, clip=0.01).backward()  # type: ignore[no-untyped-call]
    expected = gradients_of(model)
    assert same_gradients({name: ours[name] for name in expected}, expected)
    assert not same_gradients(
        {name: ours[name] for name in expected}, {n: first[n] for n in expected}
    )
    ratio = (now - old).exp()
    better = (reward > reward.mean(1, keepdim=True)).T.repeat_interleave(2, dim=1)[:, :, None]
    clipped = torch.where(better, ratio > 1.01, ratio < 0.99).double().mean().item()
    assert 0.05 < clipped < 0.95
    assert learned.values["clip_fraction"] == pytest.approx(clipped, abs=0.02)
    shift = (ratio - ratio.log() - 1).mean().item()
    assert learned.values["policy_shift"] == pytest.approx(shift, rel=1e-2)


@pytest.mark.parametrize("algo", ["mpo", "grpo", "dpo"])
@pytest.mark.parametrize("edges", [1, 10**9])
def test_scenes_without_reward_have_no_gradient_and_are_named(
    data: Data, algo: str, edges: int
) -> None:
    lost = list(index_scenarios(str(data.scenarios)))[1]

    def some(scenario: Scenario, rollouts: Rollouts) -> Float64Array:
        return drawn(scenario, N_ROLLOUTS) * (np.nan if scenario.scenario_id == lost else 1)

    lesson = lesson_of(Told(some), algo=algo, updates=1, edges=edges)
    loaded = loaded_from(data.scenarios, lesson)
    loss, expected = by_hand(lesson, loaded, leave_out=[lost])
    (ours,), learned = take(lesson, loaded)
    assert same_gradients({name: ours[name] for name in expected}, expected)
    assert learned.values["loss"] == pytest.approx(loss, rel=1e-5)
    assert learned.values["not_rewarded"] == [lost]
    assert learned.values["actions"] == 2 * 2 * 16 * (2 if algo == "dpo" else N_ROLLOUTS)


def test_scenes_that_cannot_be_simulated_are_left_out_and_named(data: Data, tmp_path: Path) -> None:
    lesson = lesson_of(REWARDED)
    (good,), _ = take(lesson, loaded_from(data.scenarios, lesson))
    first, second, third, _ = load_scenarios(str(data.scenarios))
    gone = second.tracks.valid.copy()
    gone[second.sdc_track_index, 10] = False
    lost = dataclasses.replace(
        second, scenario_id="ff00", tracks=dataclasses.replace(second.tracks, valid=gone)
    )
    write_scenarios(tmp_path / "scenarios", [first, lost, second, third], 1)
    lesson = lesson_of(REWARDED)
    loaded = loaded_from(tmp_path / "scenarios", lesson, 4)
    assert "autonomous vehicle" in loaded.refused["ff00"]
    (ours,), learned = take(lesson, loaded)
    assert same_gradients(ours, good)
    assert learned.values["not_rewarded"] == ["ff00"]


def test_without_any_reward_there_is_no_gradient(data: Data) -> None:
    lesson = lesson_of(Told(lambda *_: np.full(N_ROLLOUTS, np.nan)), alpha=None, target_kl=0.01)
    (gradients,), learned = take(lesson, loaded_from(data.scenarios, lesson))
    assert not any(g.any() for g in gradients.values())
    assert len(learned.values["not_rewarded"]) == 3  # type: ignore[arg-type]
    assert math.isnan(learned.values["reward"])  # type: ignore[arg-type]
    assert learned.memory == {"beta": 0.04, "baselines": {}}
    (gradients,), learned = take(lesson, Loaded([], {"x": "damaged"}))
    assert not any(g.any() for g in gradients.values())
    assert learned.values["not_rewarded"] == ["x"]


def test_one_unknown_rollout_takes_nothing_from_the_others(data: Data) -> None:
    def some(scenario: Scenario, rollouts: Rollouts) -> Float64Array:
        return np.array([0.5, np.nan, 0.9, 0.7])

    lesson = lesson_of(Told(some), algo="reinforce", alpha=0.6)
    _, learned = take(lesson, loaded_from(data.scenarios, lesson))
    assert learned.values["reward_of_rollouts"] == pytest.approx(0.7)
    assert learned.values["reward_spread"] == pytest.approx(math.sqrt(0.08 / 3))
    assert learned.values["advantage"] == pytest.approx((-0.1 + 0 + 0.3 + 0.1) / 4)
    assert learned.values["advantage_positive"] == 0.5


@pytest.mark.parametrize("edges", [1, 10**9])
def test_credits_of_agents_come_to_the_agents_that_they_are_of(data: Data, edges: int) -> None:
    # The second agent first, then one's column for an agent that the scene has not.
    reward = Told(
        lambda scenario, _: np.pad(
            drawn(scenario, N_ROLLOUTS, 2), ((0, 0), (0, 1)), constant_values=np.nan
        ),
        lambda scenario: scenario.tracks.object_ids[[1, 0]],
    )
    lesson = lesson_of(reward, algo="mloo", credit="agent", beta=0.0, target_kl=0.0, edges=edges)
    loaded = loaded_from(data.scenarios, lesson)
    batch, loop, scenes = together(lesson, loaded)
    advantage = torch.from_numpy(np.stack([drawn(scene, N_ROLLOUTS, 2) for scene in scenes]))
    of_agents = torch.cat([one[:, [1, 0]] for one in advantage], dim=1)[:, :, None]
    assert of_agents.shape == (N_ROLLOUTS, 6, 1)
    now = log_probability(lesson.model, batch, loop)
    (-now * of_agents).mean().backward()  # type: ignore[no-untyped-call]
    expected = gradients_of(lesson.model)
    (ours,), _ = take(lesson, loaded)
    assert same_gradients({name: ours[name] for name in expected}, expected)


def test_agents_that_nobody_evaluates_have_no_credit(data: Data) -> None:
    lesson = lesson_of(MetaScoreReward(credit="agent"), algo="mloo", credit="agent")
    loaded = loaded_from(data.scenarios, lesson, 2)
    (gradient,), learned = take(lesson, loaded)
    assert "not_rewarded" not in learned.values
    assert all(g.isfinite().all() for g in gradient.values())
    assert learned.values["advantage"] == pytest.approx(0, abs=1e-9)
    assert learned.values["advantage_spread"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("credit", "says", "message"),
    [
        ("agent", lambda *_: np.ones(N_ROLLOUTS), r"must be \[scenes, rollouts, agents\]"),
        ("agent", lambda *_: np.ones((N_ROLLOUTS, 2)), "does not say which agents"),
        ("single", lambda *_: np.ones((N_ROLLOUTS, 2)), r"must be \[scenes, rollouts\]"),
    ],
)
def test_rewards_of_another_form_than_the_credit_are_refused(
    data: Data, credit: str, says: Callable[..., Float64Array], message: str
) -> None:
    lesson = lesson_of(Told(says), credit=credit)
    with pytest.raises(WosacError, match=message):
        take(lesson, loaded_from(data.scenarios, lesson))


def test_the_exact_kl_is_that_of_all_tokens(data: Data) -> None:
    same = Told(lambda *_: np.full(N_ROLLOUTS, 0.77))  # No advantage: the KL alone.
    lesson = lesson_of(same, kl="exact", beta=1.0)
    loaded = loaded_from(data.scenarios, lesson)
    batch, loop, _ = together(lesson, loaded)
    ours = lesson.model(batch, loop.tokens).double().log_softmax(-1)
    with torch.no_grad():
        theirs = lesson.reference(batch, loop.tokens).double().log_softmax(-1)
    kl = (ours.exp() * (ours - theirs)).sum(-1).mean()
    kl.backward()  # type: ignore[no-untyped-call]
    expected = gradients_of(lesson.model)
    (found,), learned = take(lesson, loaded)
    assert same_gradients({name: found[name] for name in expected}, expected)
    assert learned.values["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert learned.values["loss"] == pytest.approx(kl.item(), rel=1e-5)
    nats = -(ours.exp() * ours).sum(-1).mean().item()
    assert learned.values["entropy"] == pytest.approx(nats, rel=1e-5)


# Log-probabilities


@pytest.mark.parametrize("edges", [1, 10**9])
@pytest.mark.parametrize("algo", ["mpo", "dpo"])
def test_log_probabilities_computed_anew_are_those_of_the_draw(
    data: Data, algo: str, edges: int
) -> None:
    lesson = lesson_of(REWARDED, algo=algo, edges=edges)
    loaded = loaded_from(data.scenarios, lesson)
    batch, loop, _ = together(lesson, loaded)
    anew = log_probability(lesson.model, batch, loop)
    assert (anew - loop.log_probability).abs().max() < 1e-4
    _, learned = take(lesson, loaded)
    assert 0 < learned.values["recomputed"] < 1e-4  # type: ignore[operator]


@pytest.mark.parametrize("edges", [1, 10**9])
def test_a_difference_of_log_probabilities_would_be_seen(
    data: Data, monkeypatch: pytest.MonkeyPatch, edges: int
) -> None:
    gain = step_module.gain_experience  # type: ignore[attr-defined]

    def wrong(*args: Any, **kwargs: Any) -> Any:
        experience = gain(*args, **kwargs)
        recorded = experience.log_probability.clone()
        recorded[3, 1, 7] += 0.5
        return dataclasses.replace(experience, log_probability=recorded)

    monkeypatch.setattr(step_module, "gain_experience", wrong)
    lesson = lesson_of(REWARDED, edges=edges)
    _, learned = take(lesson, loaded_from(data.scenarios, lesson))
    assert learned.values["recomputed"] == pytest.approx(0.5, abs=1e-3)


def test_a_part_within_the_bound_is_learned_from_at_once(data: Data) -> None:
    lesson = lesson_of(REWARDED)
    (part,) = loaded_from(data.scenarios, lesson).parts
    n_agents, n_pieces = sum(part.batch.agent_counts), sum(part.batch.map_counts)

    def passes(n_rollouts: int) -> int:
        """With room for so many."""
        (room,) = edges(np.array([n_rollouts * n_agents]), np.array([n_pieces]))
        limited = dataclasses.replace(lesson, edges_at_once=int(room))
        seen = []
        with lesson.model.register_forward_hook(lambda *_: seen.append(1)):
            take(limited, Loaded([part], {}))
        return len(seen)

    assert [passes(n) for n in (4, 3, 2, 1, 0)] == [1, 2, 2, 4, 4]


# Memory


def test_auto_alpha_is_what_the_scene_used_to_get(data: Data) -> None:
    lesson = lesson_of(REWARDED, algo="reinforce", alpha=None, credit="single")
    loaded = loaded_from(data.scenarios, lesson, 2)
    scenes = [scene for part in loaded.parts for scene in part.scenarios]
    names = [scene.scenario_id for scene in scenes]
    mean = [drawn(scene, N_ROLLOUTS).mean() for scene in scenes]
    _, learned = take(lesson, loaded)
    assert learned.memory["baselines"] == pytest.approx(dict(zip(names, mean, strict=True)))
    before = {**learned.memory, "baselines": {names[0]: 0.3}, "begins_with": "abc"}
    _, learned = take(lesson, loaded, before)
    # Of a scene that was never seen the other rollouts stand for it.
    reward = drawn(scenes[1], N_ROLLOUTS)
    others = (reward.sum() - reward) / (N_ROLLOUTS - 1)
    expected = [drawn(scenes[0], N_ROLLOUTS) - 0.3, reward - others]
    assert learned.values["advantage"] == pytest.approx(np.mean(expected))
    assert learned.values["advantage_spread"] == pytest.approx(np.std(expected))
    assert learned.memory["baselines"][names[0]] == pytest.approx(0.27 + 0.1 * mean[0])
    assert learned.memory["begins_with"] == "abc"
    assert before["baselines"] == {names[0]: 0.3}


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 2.0), (1e9, 0.5), (0.0, 1.0)])
def test_beta_follows_the_kl(data: Data, target: float, factor: float) -> None:
    lesson = lesson_of(REWARDED, algo="mloo", target_kl=target)
    loaded = loaded_from(data.scenarios, lesson, 1)
    _, first = take(lesson, loaded)
    assert first.values["beta"] == 0.04
    _, second = take(lesson, loaded, first.memory)
    assert second.values["beta"] == pytest.approx(0.04 * factor)


def test_rewards_of_one_s_own_are_counted_from_their_mean_by_mloo(data: Data) -> None:
    found = []
    for above in (0.0, 5.0):
        own = Told(lambda scene, _, above=above: above + drawn(scene, N_ROLLOUTS))  # type: ignore[misc]
        lesson = lesson_of(own, algo="mloo")
        gradients, learned = take(lesson, loaded_from(data.scenarios, lesson))
        assert learned.values["advantage"] == pytest.approx(0, abs=1e-12)
        found += gradients
    assert same_gradients(*found)


# What is at work


@pytest.mark.parametrize("parts", [1, 3])
def test_rewards_are_awaited_only_when_log_probabilities_are_computed(
    data: Data, parts: int
) -> None:
    """A reward that is not done before the pass with gradients would be waited for in vain."""
    events: list[str] = []
    passed = threading.Event()

    def slow(scenario: Scenario, rollouts: Rollouts) -> Float64Array:
        events.append("reward" if passed.wait(60) else "in vain")
        return drawn(scenario, N_ROLLOUTS)

    lesson = lesson_of(Told(slow), edges=10**9 if parts == 1 else 1)
    loaded = loaded_from(data.scenarios, lesson)
    assert len(loaded.parts) == parts

    def after_pass(*_: Any) -> None:
        events.append("pass")
        passed.set()

    with lesson.model.register_forward_hook(after_pass):
        take(lesson, loaded)
    assert events[0] == "pass"
    assert events.count("reward") == 3
    assert "in vain" not in events


def test_the_log_has_all_that_one_would_ask_of_a_step(data: Data) -> None:
    lesson = lesson_of(MetaScoreReward(credit="single"), algo="grpo")
    loaded = loaded_from(data.scenarios, lesson, 2)
    _, learned = take(lesson, loaded)
    values = learned.values
    assert values.keys() >= {
        *("reward", "reward_of_rollouts", "reward_spread", "reward/metametric"),
        *("reward/collision_indication_likelihood", "reward/min_average_displacement_error"),
        *("advantage", "advantage_spread", "advantage_positive", "loss", "kl", "beta"),
        *("clip_fraction", "policy_shift", "entropy", "gradient_norm", "actions", "recomputed"),
        *("seconds/rollout", "seconds/reward_wait", "seconds/update"),
    }
    assert values["reward"] == pytest.approx(values["reward/metametric"])
    assert all(isinstance(v, float | int) and math.isfinite(v) for v in values.values())
    assert values["clip_fraction"] == values["policy_shift"] == 0
    assert values["kl"] > 0  # type: ignore[operator]
    assert values["actions"] == N_ROLLOUTS * 2 * 2 * 16
    seconds = {k: v for k, v in values.items() if k.startswith("seconds/")}
    assert 0 <= seconds["seconds/reward_wait"] <= seconds["seconds/update"]  # type: ignore[operator]
    quiet = policy_step(lesson, loaded, {}, seed=SEED, measure=False, follow=lambda: 0.0)
    assert values.keys() - quiet.values.keys() == {"entropy", "recomputed"}


def test_bfloat16_learns_too(data: Data) -> None:
    lesson = lesson_of(REWARDED, precision="bfloat16", algo="ppo", updates=2)
    (first, second), learned = take(lesson, loaded_from(data.scenarios, lesson))
    for gradients in (first, second):
        assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients.values())
        assert any(g.any() for g in gradients.values())
    exact = lesson_of(REWARDED, algo="ppo", updates=2)
    _, precise = take(exact, loaded_from(data.scenarios, exact))
    assert learned.values["entropy"] == pytest.approx(precise.values["entropy"], rel=0.02)
    assert learned.values["recomputed"] < 0.1  # type: ignore[operator]


@pytest.mark.parametrize("edges", [1, 10**9])
def test_weights_that_are_not_finite_stop_the_step_and_name_the_scenes(
    data: Data, edges: int
) -> None:
    lesson = lesson_of(REWARDED, edges=edges)
    loaded = loaded_from(data.scenarios, lesson)
    with torch.no_grad():
        lesson.model.agent_decoder.head[0].weight[0, 0] = math.nan  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match="the loss is not finite") as caught:
        take(lesson, loaded)
    names = [s.scenario_id for part in loaded.parts for s in part.scenarios]
    assert sorted(caught.value.scenario_ids) == sorted(names)


# --------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def settings(data: Data, checkpoint: Path) -> Callable[..., FinetuneConfig]:
    """A function that makes settings: two epochs of two steps, with all that is remembered."""
    return partial(configured, data, checkpoint)


def configured(data: Data, checkpoint: Path, *assignments: str) -> FinetuneConfig:
    defaults = [
        *(f"begins_with={checkpoint}", f"scenarios={data.scenarios}"),
        *("epochs=2", "batch=2", "log.every_steps=1", "average_decay=0.9"),
        *("policy.n_rollouts=3", "policy.alpha=null", "policy.target_kl=0.01"),
        "optimizer.learning_rate=1e-3",
    ]
    return load_finetune_config(None, [*defaults, *assignments])


def validated(data: Data) -> list[str]:
    return [
        f"validation_scenarios={data.scenarios}",
        *("closed_loop.scenarios=1", "closed_loop.n_rollouts=2"),
    ]


def run(config: FinetuneConfig, out: Path) -> Outcome:
    return finetune(config, out, device="cpu")


def disturb(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], None]) -> None:
    """Do something in the `at`-th step."""
    calls = itertools.count(1)

    def disturbed(*args: Any, **kwargs: Any) -> Learned:
        if next(calls) == at:
            how()
        return policy_step(*args, **kwargs)

    monkeypatch.setattr(stage, "policy_step", disturbed)


@pytest.fixture(scope="module")
def unbroken(
    data: Data, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes]]:
    """A run; and the files of the checkpoint that it began with, as they were."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert run(configured(data, checkpoint, *validated(data)), out).finished
    return out, before


def test_a_run_leaves_what_it_says(
    unbroken: tuple[Path, dict[str, bytes]], checkpoint: Path
) -> None:
    out, before = unbroken
    lines = read_log(out)
    trained = [line for line in lines if line["event"] == "train"]
    found = [line for line in lines if line["event"] == "validation"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert all(0 < line["reward/metametric"] < 1 for line in trained)
    assert all(line["recomputed"] < 1e-4 for line in trained)
    # The first step is taken along nothing: no scene was seen before, rollouts share their reward,
    # and the KL is that of the reference to itself, so that beta falls.
    assert trained[0]["gradient_norm"] == pytest.approx(0, abs=1e-6)
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(line["gradient_norm"] > 1e-5 for line in trained[2:])
    assert trained[-1]["kl"] > 0
    assert [line["beta"] for line in trained[:2]] == [0.04, 0.02]
    # The model it begins with, and after each epoch.
    assert [(line["epoch"], line["step"]) for line in found] == [(0, 0), (1, 2), (2, 4)]
    assert all(0 < line["closed_loop/metametric"] < 1 for line in found)
    memory = json.loads((newest(out) / "trainer.json").read_text())["memory"]
    assert memory["begins_with"] == fingerprint(checkpoint)
    assert len(memory["baselines"]) == N_SCENES
    assert memory["beta"] < 0.04
    # The reference is what it was.
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before


def test_the_reference_and_what_is_not_trained_stay_as_they_are(
    settings: Callable[..., FinetuneConfig],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lessons: list[Lesson] = []

    def watched(lesson: Lesson, *args: Any, **kwargs: Any) -> Learned:
        lessons.append(lesson)
        return policy_step(lesson, *args, **kwargs)

    monkeypatch.setattr(stage, "policy_step", watched)
    run(settings("policy.alpha=0.3"), tmp_path / "run")
    weights = load_model(checkpoint).state_dict()
    (lesson,) = {id(lesson): lesson for lesson in lessons}.values()
    assert all(torch.equal(weights[n], w) for n, w in lesson.reference.state_dict().items())
    moved = {n for n, w in lesson.model.state_dict().items() if not torch.equal(weights[n], w)}
    layers = ("time_layers", "map_layers", "agent_layers", "head")
    decoder = {n for n in weights if n.startswith(tuple(f"agent_decoder.{x}." for x in layers))}
    # What was 0 and has no gradient stays 0.
    assert {n for n in decoder if weights[n].any()} <= moved <= decoder


@pytest.mark.parametrize(("at", "how"), [(1, stop), (3, stop), (4, crash)])
def test_a_run_that_was_broken_off_and_goes_on_is_the_unbroken_one(
    settings: Callable[..., FinetuneConfig],
    data: Data,
    unbroken: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    how: Callable[[], None],
) -> None:
    config, out = settings(*validated(data)), tmp_path / "run"
    with monkeypatch.context() as patched:
        disturb(patched, at, how)
        if how is stop:
            done = run(config, out)
            assert (done.finished, done.progress.step) == (False, at)
        else:
            with pytest.raises(Crash):
                run(config, out)
    assert run(config, out).finished
    assert_same_run(unbroken[0], out)


def test_several_updates_are_one_step_of_the_run(
    settings: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    config = settings(
        *("policy.algo=ppo", "policy.target_kl=0", "policy.updates=2", "limit=2", "epochs=2"),
        *("policy.credit=single", "average_decay=0"),
    )
    done = run(config, tmp_path / "run")
    assert done.progress.step == 2
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2]
    kept = load_file(newest(tmp_path / "run") / "trainer.safetensors")
    steps = {value.item() for name, value in kept.items() if name.endswith("/step")}
    assert steps == {4.0}


def test_a_checkpoint_that_has_changed_is_refused_but_it_may_move(
    settings: Callable[..., FinetuneConfig],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other"
    with monkeypatch.context() as patched:
        disturb(patched, 1, stop)
        run(settings("epochs=1"), out)
    save_model(moved, load_model(checkpoint))
    save_model(other, policy(9))
    with pytest.raises(WosacError, match="the checkpoint that the run began with has changed"):
        run(settings("epochs=1", f"begins_with={other}"), out)
    with pytest.raises(WosacError, match=r"another policy\.algo"):
        run(settings("epochs=1", "policy.algo=mloo"), out)
    assert run(settings("epochs=1", f"begins_with={moved}"), out).finished


def test_without_any_reward_the_model_stays_as_it_is(
    settings: Callable[..., FinetuneConfig], checkpoint: Path, tmp_path: Path
) -> None:
    run(settings("reward=training_fixtures:nothing", "average_decay=0"), tmp_path / "run")
    lines = read_log(tmp_path / "run")
    assert [len(line["not_rewarded"]) for line in lines] == [2, 2, 2, 2]
    assert all(line["loss"] is None and line["gradient_norm"] == 0 for line in lines)
    before = load_model(checkpoint).state_dict()
    for name, weight in load_model(tmp_path / "run/final").state_dict().items():
        # The decay of the weights alone: 4 steps of 1e-3 x 0.01.
        torch.testing.assert_close(weight, before[name], rtol=5e-5, atol=0)


def test_numbers_that_are_not_finite_end_the_run_and_stand_in_the_log(
    settings: Callable[..., FinetuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(lesson: Lesson, *args: Any, **kwargs: Any) -> Learned:
        with torch.no_grad():
            lesson.model.agent_decoder.head[0].weight[0, 0] = math.nan  # type: ignore[operator]
        return policy_step(lesson, *args, **kwargs)

    monkeypatch.setattr(stage, "policy_step", spoiled)
    with pytest.raises(NonFiniteError, match="the loss is not finite"):
        run(settings(), tmp_path / "run")
    (line,) = read_log(tmp_path / "run")
    assert line["event"] == "error"
    assert len(line["scenario_ids"]) == 2


@pytest.mark.parametrize(
    "method",
    [
        ("policy.algo=mpo", "policy.alpha=null"),
        ("policy.algo=mloo",),
        ("policy.algo=grpo",),
    ],
    ids=["mpo", "mloo", "grpo"],
)
def test_a_policy_learns_what_is_rewarded(
    data: Data, checkpoint: Path, tmp_path: Path, method: tuple[str, ...]
) -> None:
    """To turn left: the mean over agents of the angle, of 16 rollouts of one scene."""
    config = load_finetune_config(
        None,
        [
            *(f"begins_with={checkpoint}", f"scenarios={data.scenarios}", "limit=1"),
            *("reward=training_fixtures:turning_left", "epochs=15", "batch=1"),
            *("policy.n_rollouts=16", "optimizer.learning_rate=3e-3", "log.every_steps=1"),
            *("policy.beta=0.001", "policy.target_kl=0", *method),
        ],
    )
    run(config, tmp_path / "run")
    lines = read_log(tmp_path / "run")
    reward = [line["reward"] for line in lines]
    # By chance it moves by a standard error.
    chance = lines[0]["reward_spread"] / 4
    assert np.mean(reward[-3:]) > np.mean(reward[:3]) + 8 * chance


# --------------------------------------------------------------------------------------------------
# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["finetune", *map(str, arguments)], prog_name="smart-r1")


def test_the_command_typed_just_so_fine_tunes_the_model_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As it is but for its size.
    few = {"training": (2, 20_001), "validation": (1, 20_002)}
    monkeypatch.setattr(builtin, "_SCENES", few)
    small = ("policy.n_rollouts=2", "epochs=1", "closed_loop.every_epochs=0", "log.every_steps=1")
    result = invoke("--reward", "meta_score", "--limit", "2", *small)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "training was finished, after 1 step: runs/finetune/final\n"
    assert load_model(Path("runs/finetune/final")).config == load_model(builtin.MODEL).config
    config = load_finetune_config(Path("runs/finetune/config.yaml"), ())
    assert (config.begins_with, config.reward) == (str(builtin.MODEL), "meta_score")
    assert config.validation_scenarios == "runs/finetune/scenarios/validation"
    own = load_finetune_config(builtin.FINETUNE, ["begins_with=x", "scenarios=x"])
    assert config.policy == dataclasses.replace(own.policy, n_rollouts=2)
    again = invoke("--reward", "meta_score", "--limit", "2", *small)
    assert again.stdout == "training was finished before, after 1 step: runs/finetune/final\n"


def test_an_alpha_above_all_rewards_is_told(data: Data, checkpoint: Path, tmp_path: Path) -> None:
    given = ("--checkpoint", checkpoint, "--scenarios", data.scenarios, "--limit", "1", "--n", "2")
    for name, alpha, credit, warned in (
        ("high", "0.99", "single", True),
        ("low", "0.0", "single", False),
        ("auto", "auto", "single", False),
        ("agent", "0.99", "agent", False),  # It has no use for alpha.
    ):
        out = tmp_path / name
        result = invoke(
            *given, "--alpha", alpha, "--credit", credit, "--out", out, "--device", "cpu",
            "closed_loop.every_epochs=0",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert ("warning: no rollout of the first step" in result.stderr) is warned


@pytest.mark.parametrize("algo", METHODS)
def test_settings_of_the_package_fit_every_algorithm(algo: str) -> None:
    given = [f"policy.algo={algo}", "begins_with=x", "scenarios=x"]
    config = load_finetune_config(builtin.FINETUNE, builtin.fitting(given, "policy"))
    of_agents = algo in ("mpo", "mloo", "reinforce")
    found = resolved(config.policy)
    assert found.credit == ("agent" if of_agents else METHODS[algo].credit)
    assert found.beta == (1e-3 if algo in ("mpo", "mloo") else METHODS[algo].beta)
    # What is named otherwise holds.
    given += ["policy.credit=leave_one_out"]
    config = load_finetune_config(builtin.FINETUNE, builtin.fitting(given, "policy"))
    assert config.policy.credit == "leave_one_out"


def test_options_are_settings(data: Data, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(
        *("--checkpoint", checkpoint, "--scenarios", data.scenarios, "--out", tmp_path / "run"),
        *("--val-scenarios", data.scenarios, "--reward", "collision_free", "--algo", "mloo"),
        *("--credit", "agent", "--beta", "0.5", "--n", "2", "--limit", "1", "--epochs", "1"),
        *("--batch", "3", "--alpha", "0.5", "--device", "cpu", "closed_loop.every_epochs=0"),
    )
    assert result.exit_code == 0, result.stderr
    config = load_finetune_config(tmp_path / "run/config.yaml", ())
    assert (config.begins_with, config.scenarios) == (str(checkpoint), str(data.scenarios))
    assert config.validation_scenarios == str(data.scenarios)
    assert (config.reward, config.limit, config.epochs, config.batch) == ("collision_free", 1, 1, 3)
    assert config.policy == resolved(
        PolicyConfig(algo="mloo", credit="agent", alpha=0.5, beta=0.5, n_rollouts=2)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no model.json"),
        (["--scenarios", "nowhere"], "nowhere"),
        (["--reward", "fun"], "unknown reward 'fun'"),
        (["--reward", "no_such_module:reward"], "no module 'no_such_module'"),
        (["--reward", "training_fixtures:absent"], "has no 'absent'"),
        (["--alpha", "high"], "'high' is neither a number nor auto"),
        (["--alpha", "nan"], "policy.alpha must be a number"),
        (["--algo", "grpo", "--credit", "group"], "grpo compares the rollouts"),
        (["--algo", "mloo", "--n", "1"], "mloo compares rollouts"),
        (["--algo", "ppo", "--beta", "0.1"], "ppo has no KL"),
        (["--limit", "0"], "limit must be at least 1"),
        (["policy.rollouts=3"], "there is no setting policy.rollouts"),
        (["reward_threads=0"], "workers must be at least 1"),
        (["challenge=1999"], "1999"),
        (
            ["--algo", "mloo", "--reward", "wosac_toolkit.reward:MetaScoreReward"],
            "policy.credit is leave_one_out, but the reward",
        ),
    ],
)
def test_bad_usage_is_told_in_one_line(
    data: Data, checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    usual: list[str | Path] = [
        "--checkpoint",
        checkpoint,
        "--scenarios",
        data.scenarios,
        "--out",
        tmp_path / "run",
    ]
    result = invoke(*usual, "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    *_, line = result.stderr.splitlines()
    assert "error: " in line.lower()
    assert message in line


def test_two_processes_give_the_gradients_of_one(
    settings: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    # Batches of 3 and 1: shares of 2 and 1 scenes, then 1 and none.
    config = settings(
        *("batch=3", "epochs=1", "average_decay=0", "policy.credit=single", "policy.alpha=0.3"),
        *("checkpoint.every_minutes=0", "checkpoint.keep=9"),
    )
    file = tmp_path / "settings.yaml"
    file.write_text(to_yaml(config))
    run(config, tmp_path / "one")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "smart_r1.cli", "finetune", "--config", str(file), "--device", "cpu"),
        *("--out", str(tmp_path / "two")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training was finished") == 1
    one, two = (
        load_file(tmp_path / name / "checkpoints/step-00000001/trainer.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert any(value.abs().max() > 1e-4 for name, value in one.items() if "/exp_avg" in name)
    for name in one:
        if name.endswith("/exp_avg"):
            torch.testing.assert_close(10 * two[name], 10 * one[name], atol=1e-6, rtol=0)
    for ours, theirs in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        for line in (ours, theirs):
            assert line.pop("event") == "train"
            assert line.pop("recomputed") < 1e-4
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
