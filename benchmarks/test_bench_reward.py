"""Rewards as in training: eight scenes of 32 rollouts, prepared before."""

from __future__ import annotations

from itertools import islice

import pytest
import scenes

from wosac_toolkit.reward import CREDITS, MetaScoreReward

N_SCENES = 8


@pytest.fixture(scope="module")
def batch(dataset):
    """Every so many scenes of the data set, so that dense and sparse ones are among them."""
    scorable = sorted(scenes.scorable(dataset), key=lambda s: len(s.sim_agents()))
    step = max(1, len(scorable) // N_SCENES)
    chosen = list(islice(scorable[step // 2 :: step], N_SCENES))
    return chosen, [scenes.simulate(scenario) for scenario in chosen]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("credit", CREDITS)
def test_reward_of_a_batch(benchmark, batch, credit, workers):
    """The promise: with leave-one-out and two workers 0.15 s at most."""
    reward = MetaScoreReward(credit=credit, workers=workers)
    reward(*batch)
    values = benchmark(reward, *batch)
    assert values.shape[:2] == (N_SCENES, 32)
    benchmark.extra_info["agents"] = sum(len(s.sim_agents()) for s in batch[0])


def test_first_reward_of_a_batch(benchmark, batch):
    """The same with scenes that are seen for the first time."""
    benchmark.pedantic(
        lambda reward: reward(*batch),
        setup=lambda: ((MetaScoreReward(credit="leave_one_out", workers=2),), {}),
        rounds=5,
        warmup_rounds=1,
    )
