"""From a scene and rollouts to the score: in memory, and from files by `wosac score`."""

from __future__ import annotations

from itertools import count

import commands
import pytest
import scenes

from wosac_toolkit import score_scenario
from wosac_toolkit.features import logged_features
from wosac_toolkit.likelihood import count_log
from wosac_toolkit.metric import score_rollouts

N_SCENES = 48


@pytest.mark.parametrize("threads", [1, 2])
def test_score_scenario(benchmark, case, threads):
    score = benchmark(score_scenario, case.scenario, case.rollouts, threads=threads)
    assert 0 < score.metametric < 1


def test_score_rollouts_of_a_prepared_scene(benchmark, case):
    """The cost of a reward in training."""
    logged = count_log(logged_features(case.scene), case.scene.challenge)
    score = benchmark(score_rollouts, case.scene, logged, case.rollouts)
    assert 0 < score.metametric < 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", ["submission", "npz"])
def test_wosac_score(benchmark, dataset, tmp_path, form, workers):
    """48 scenes, start-up included."""
    scorable = {s.scenario_id for s in scenes.scorable(dataset)}
    ids = set(sorted(scorable)[:N_SCENES])
    copies = scenes.write_copies(dataset, ids, N_SCENES, tmp_path / "scenarios")
    scenes.write_copied_rollouts(dataset, copies, tmp_path / "rollouts", form)
    numbers = count()
    benchmark.pedantic(
        lambda: commands.wosac(
            "score", tmp_path / "rollouts", "--scenarios", tmp_path / "scenarios",
            "--out", tmp_path / f"run{next(numbers)}", "--workers", workers,
        ),
        rounds=3,
        warmup_rounds=1,
    )  # fmt: skip
    benchmark.extra_info["ms_a_scene"] = 1e3 * benchmark.stats.stats.median / N_SCENES
