"""Exactness: our numbers against recorded results of the official scorers.

The criterion, for every bundle and every year: each field of a scene's metrics and each bucket
within 1e-6 of the official value; every feature array within 1e-4 absolute, the official sentinels
apart; every indicator identical.

`tests/official/` holds results of the official packages on synthetic scenes, recorded by
`make oracle`; those on real scenes lie outside the repository.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from wosac_toolkit import Rollouts, Scenario, compute_features, load_scenarios, score_scenario
from wosac_toolkit.features import Features
from wosac_toolkit.metric import ScenarioScore

OFFICIAL = Path(__file__).parent / "official"
SENTINEL = 1e10


def assert_matches(score: ScenarioScore, official: dict, buckets: dict) -> None:
    """Every official field is reproduced, and no field is ours alone."""
    ours = score.metrics()
    assert {k for k, v in ours.items() if v is not None} == set(official) - {"scenario_id"}
    for name, expected in [*official.items(), *buckets.items()]:
        if name == "scenario_id":
            assert score.scenario_id == expected
            continue
        got = score.buckets()[name] if name in buckets else ours[name]
        if np.isnan(expected):
            assert np.isnan(got), name
        else:
            assert got == pytest.approx(expected, rel=0, abs=1e-6), name


def assert_features_match(features: Features, recorded: dict[str, np.ndarray]) -> None:
    for field in fields(Features):
        got, expected = getattr(features, field.name), recorded[field.name]
        assert got.shape == expected.shape, field.name
        if expected.dtype == bool or expected.dtype.kind == "i":
            assert np.array_equal(got, expected), field.name
            continue
        sentinel = np.abs(expected) >= SENTINEL * 0.99
        assert np.array_equal(np.abs(got) >= SENTINEL * 0.99, sentinel), field.name
        assert np.array_equal(np.isnan(got), np.isnan(expected)), field.name
        difference = np.abs(got - expected)[~sentinel & ~np.isnan(expected)]
        assert difference.max(initial=0) <= 1e-4, field.name


# --- on synthetic scenes, recorded in the repository --------------------------------------------


@cache
def synthetic_scenes() -> dict[str, Scenario]:
    return {s.scenario_id: s for s in load_scenarios(OFFICIAL / "scenes.tfrecord.gz")}


@pytest.mark.parametrize("challenge", ["2025", "2024", "2023"])
@pytest.mark.parametrize("bundle", sorted(OFFICIAL.glob("*.npz")), ids=lambda p: p.stem)
def test_synthetic_scene_scores_as_the_official_package(bundle, challenge):
    recorded = json.loads(bundle.with_suffix(f".{challenge}.json").read_text())
    arrays = np.load(bundle)
    rollouts = Rollouts(recorded["scenario_id"], arrays["object_ids"], arrays["states"])
    scenario = synthetic_scenes()[rollouts.scenario_id]
    score = score_scenario(scenario, rollouts, challenge)
    assert_matches(score, recorded["metrics"], recorded["buckets"])


def test_there_are_recorded_results():
    assert len(list(OFFICIAL.glob("*.npz"))) >= 6


# --- on real scenes, where they are present -----------------------------------------------------

_BUNDLE_FILES = {"2025": ".json", "2024": ".2024.json", "2023": ".2023.json"}


@pytest.fixture(scope="session")
def real_scenes(womd_dir: Path) -> dict[str, Scenario]:
    return {s.scenario_id: s for s in load_scenarios(womd_dir)}


def bundles_of(goldens: Path, challenge: str) -> list[Path]:
    suffix = _BUNDLE_FILES[challenge]
    return [p for p in sorted(goldens.glob("*.npz")) if p.with_name(p.stem + suffix).exists()]


def load_bundle(path: Path) -> tuple[Rollouts, dict[str, np.ndarray]]:
    arrays = dict(np.load(path))
    return Rollouts(path.stem.split("_")[0], arrays["object_ids"], arrays["rollouts"]), arrays


@pytest.mark.womd
@pytest.mark.parametrize("challenge", ["2025", "2024", "2023"])
def test_real_scenes_score_as_the_official_package(real_scenes, goldens_dir, challenge):
    bundles = bundles_of(goldens_dir, challenge)
    assert bundles
    for path in bundles:
        official = json.loads(path.with_name(path.stem + _BUNDLE_FILES[challenge]).read_text())
        rollouts, _ = load_bundle(path)
        score = score_scenario(real_scenes[rollouts.scenario_id], rollouts, challenge)
        suffix = "_2025" if challenge == "2025" else ""
        assert_matches(score, official[f"metrics{suffix}"], official[f"buckets{suffix}"])


@pytest.mark.womd
def test_features_of_real_scenes_are_the_official_ones(real_scenes, goldens_dir):
    for path in bundles_of(goldens_dir, "2025"):
        rollouts, arrays = load_bundle(path)
        logged, simulated = compute_features(real_scenes[rollouts.scenario_id], rollouts)
        for kind, features in (("log", logged), ("sim", simulated)):
            recorded = {k.removeprefix(f"{kind}."): v for k, v in arrays.items()}
            assert_features_match(features, recorded)
