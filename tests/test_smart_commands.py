"""From scenes to rollouts and scores with a model: the commands, and what they refuse."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner, Result  # noqa: E402
from smart_oracle import random_weights  # noqa: E402

from smart_r1.cli import main  # noqa: E402
from smart_r1.evaluate import (  # noqa: E402
    Policy,
    evaluate_dataset,
    rollout_dataset,
    simulated,
)
from smart_r1.model import catk  # noqa: E402
from smart_r1.model.checkpoint import load_model, save_model  # noqa: E402
from smart_r1.model.config import CONFIGS, ModelConfig  # noqa: E402
from smart_r1.model.smart import SMART  # noqa: E402
from smart_r1.scene_tensors import scene_tensors  # noqa: E402
from smart_r1.simulate import Sampling, simulate_scenes  # noqa: E402
from smart_r1.tokens.vocabulary import default_vocabulary, save_vocabulary  # noqa: E402
from wosac_toolkit import load_rollouts, load_scenarios, score_scenario  # noqa: E402
from wosac_toolkit.errors import FormatError, WosacError  # noqa: E402
from wosac_toolkit.io.scenarios import write_scenarios  # noqa: E402
from wosac_toolkit.results import read_run  # noqa: E402
from wosac_toolkit.rollouts import Rollouts  # noqa: E402
from wosac_toolkit.scenario import Scenario  # noqa: E402
from wosac_toolkit.scoring import ScoringError, score_dataset  # noqa: E402

MakeScenario = Callable[..., Scenario]


@pytest.fixture(scope="module")
def model() -> SMART:
    torch.manual_seed(0)
    return SMART(CONFIGS["pico"], default_vocabulary()).eval()


@pytest.fixture(scope="module")
def checkpoint(model: SMART, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "pico"
    save_model(folder, model, {"why": "a test"})
    return folder


@pytest.fixture
def scenes(make_scenario: MakeScenario, tmp_path: Path) -> Path:
    """Three small scenes in files."""
    lanes = {1: [(-40.0, 0.0), (200.0, 0.0)], 2: [(-40.0, 4.0), (200.0, 4.0)]}
    folder = tmp_path / "scenes"
    made = (
        make_scenario(scenario_id=f"s{i}", n_tracks=2 + i, lanes=lanes, origin=(3000.0 * i, 50.0))
        for i in range(3)
    )
    write_scenarios(folder / "scenes.tfrecord", made, 1)
    return folder


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --------------------------------------------------------------------------------------------------
# Models as files


def test_a_model_is_read_back_as_it_was_written(model: SMART, checkpoint: Path) -> None:
    again = load_model(checkpoint)
    assert again.config == model.config
    assert not again.training
    theirs = again.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    assert json.loads((checkpoint / "model.json").read_text())["origin"] == {"why": "a test"}


def _damage(folder: Path, how: str) -> str:
    """Spoil a checkpoint; what the error must say."""
    about, weights = folder / "model.json", folder / "model.safetensors"
    if how == "no weights":
        weights.unlink()
        return "no model.safetensors"
    if how == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
        return "model.safetensors"
    content = json.loads(about.read_text())
    if how == "no json":
        about.write_text("{")
        return "not the description of a model"
    if how == "another format":
        content["format"] = 99
        message = "format 99"
    elif how == "another size":
        content["config"]["hidden_dim"] = 64
        message = "64]"
    elif how == "an unknown setting":
        content["config"]["speed"] = 1
        message = "not the description of a model"
    elif how == "another vocabulary":
        content["vocabulary"] = "0" * 16
        message = "vocabulary"
    else:
        content["config"]["n_agent_layers"] = 1
        message = "an unknown weight"
    about.write_text(json.dumps(content))
    return message


@pytest.mark.parametrize(
    "how",
    [
        "no weights",
        "torn weights",
        "no json",
        "another format",
        "another size",
        "an unknown setting",
        "another vocabulary",
        "fewer layers",
    ],
)
def test_a_damaged_checkpoint_is_refused(model: SMART, tmp_path: Path, how: str) -> None:
    save_model(tmp_path, model)
    message = _damage(tmp_path, how)
    with pytest.raises(WosacError, match=message):
        load_model(tmp_path)


def test_weights_that_are_not_finite_are_refused(model: SMART, tmp_path: Path) -> None:
    broken = SMART(model.config, model.vocabulary())
    with torch.no_grad():
        broken.agent_decoder.size[0].weight[0, 0] = torch.nan
    save_model(tmp_path, broken)
    with pytest.raises(FormatError, match="not finite"):
        load_model(tmp_path)


# --------------------------------------------------------------------------------------------------
# Checkpoints of CAT-K


class _Configuration:
    """Stands for the object of another package that Lightning's checkpoints hold."""

    def __init__(self) -> None:
        self.lr = 1e-3


class _Evil:
    """Would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('ran')",)


SMALL = ModelConfig(16, 2, 4, 4, 1, 2, 10.0, 20.0, 25.0, 3)


@pytest.fixture
def their_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.setitem(CONFIGS, "small", SMALL)
    return random_weights(16, 2, 4, 4, (1, 2), 2048, seed=0)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    save_vocabulary(tmp_path / "tokens.safetensors", default_vocabulary())
    return tmp_path / "tokens.safetensors"


def test_a_checkpoint_with_foreign_objects_is_imported(
    their_weights: dict[str, torch.Tensor], tokens: Path, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    state = collections.OrderedDict(their_weights)
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": _Configuration()}, path)
    result = _run("import", path, "--motion", tokens, "--out", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert "small" in result.output
    model = load_model(tmp_path / "model")
    assert model.config == dataclasses.replace(SMALL, entry_motion="global")
    head = their_weights["encoder.agent_encoder.token_predict_head.mlp.3.weight"]
    assert torch.equal(model.agent_decoder.head[3].weight, head)


def test_nothing_in_a_checkpoint_is_run(
    their_weights: dict[str, torch.Tensor], tokens: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": their_weights, "hyper_parameters": _Evil()}, path)
    result = _run("import", path, "--motion", tokens, "--out", tmp_path / "model")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("encoder.agent_encoder.type_a_emb.weight"), "no agent_decoder"),
        (lambda w: w.update({"encoder.agent_encoder.other.weight": torch.zeros(1)}), "unknown"),
        (
            lambda w: w.update({"encoder.agent_encoder.type_a_emb.weight": torch.zeros(4, 16)}),
            r"\[4, 16\]",
        ),
        (
            lambda w: w.update(
                {"encoder.agent_encoder.type_a_emb.weight": torch.full((3, 16), torch.nan)}
            ),
            "not finite",
        ),
        (
            lambda w: w.update(
                {"encoder.agent_encoder.t_attn_layers.0.attn_prenorm_x_dst.bias": torch.ones(16)}
            ),
            "differs from the weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    their_weights: dict[str, torch.Tensor],
    spoil: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    spoil(their_weights)
    with pytest.raises(FormatError, match=message):
        catk.load_weights(SMART(SMALL, default_vocabulary()), their_weights, "file")


@pytest.mark.parametrize("content", [b"text", b"", pickle.dumps({"a": 1})])
def test_other_files_are_refused(content: bytes, tokens: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    result = _run("import", path, "--motion", tokens, "--out", tmp_path / "model")
    assert result.exit_code == 2
    assert "archive of torch.save" in result.output
    assert not (tmp_path / "model").exists()


# --------------------------------------------------------------------------------------------------
# Rollouts and scores


def test_evaluate_is_rollout_and_score(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", checkpoint, "--scenarios", scenes, "--n", 2)
    rolled = _run("rollout", *options, "--out", tmp_path / "rollouts")
    assert rolled.exit_code == 0, rolled.output
    evaluated = _run("evaluate", *options, "--out", tmp_path / "run", "--per-agent")
    assert evaluated.exit_code == 0, evaluated.output
    scored = score_dataset(tmp_path / "rollouts", str(scenes), n_rollouts=2, workers=1)
    run = read_run(tmp_path / "run")
    assert run.summary.buckets == scored.summary.buckets
    assert run.summary.signature == scored.summary.signature


def test_rollouts_are_of_all_agents_and_begin_where_they_are(
    model: SMART, scenes: Path, tmp_path: Path
) -> None:
    rollout_dataset(Policy(model, "m", 3), str(scenes), tmp_path / "out")
    scenarios = {s.scenario_id: s for s in load_scenarios(str(scenes))}
    made = list(load_rollouts(tmp_path / "out"))
    assert len(made) == 3
    for rollouts in made:
        scenario = scenarios[rollouts.scenario_id]
        rows = scenario.sim_agents()
        assert rollouts.object_ids.tolist() == scenario.tracks.object_ids[rows].tolist()
        assert rollouts.states.shape == (3, len(rows), 80, 4)
        now = scenario.tracks.position[rows, 10]
        assert np.abs(rollouts.states[:, :, 0, :2] - now[:, :2]).max() < 8.0
        assert np.allclose(rollouts.states[..., 2], now[:, 2][:, None])


def test_shards_hold_what_files_do(model: SMART, scenes: Path, tmp_path: Path) -> None:
    policy = Policy(model, "m", 2)
    rollout_dataset(policy, str(scenes), tmp_path / "npz")
    rollout_dataset(policy, str(scenes), tmp_path / "shards", format_="submission")
    a, b = (
        {r.scenario_id: r.states for r in load_rollouts(tmp_path / name)}
        for name in ("npz", "shards")
    )
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_rollouts_do_not_depend_on_the_company(model: SMART, scenes: Path) -> None:
    """One scene or three at a time, all rollouts at once or some."""
    tensors = [scene_tensors(s) for s in load_scenarios(str(scenes))]
    together = simulate_scenes(model, tensors, n_rollouts=4)
    alone = [simulate_scenes(model, [t], n_rollouts=4)[0] for t in tensors]
    fewer = simulate_scenes(model, tensors, n_rollouts=2)
    for a, b, c in zip(together, alone, fewer, strict=True):
        np.testing.assert_allclose(a.states, b.states, atol=2e-3)
        np.testing.assert_allclose(a.states[:2], c.states, atol=2e-3)


def test_an_interrupted_rollout_resumes(model: SMART, scenes: Path, tmp_path: Path) -> None:
    policy, out = Policy(model, "m", 2), tmp_path / "out"
    assert rollout_dataset(policy, str(scenes), out) == (3, 3)
    (out / "s1.npz").unlink()
    kept = (out / "s0.npz").stat().st_mtime_ns
    assert rollout_dataset(policy, str(scenes), out) == (1, 3)
    assert (out / "s0.npz").stat().st_mtime_ns == kept
    with pytest.raises(WosacError, match="differ in policy"):
        rollout_dataset(Policy(model, "another", 2), str(scenes), out)


def test_an_interrupted_evaluation_resumes(
    model: SMART, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, out = Policy(model, "m", 2), tmp_path / "run"
    whole = evaluate_dataset(policy, str(scenes)).summary
    from smart_r1 import evaluate

    real, calls = evaluate.score_scenario, []

    def dies(scenario: Scenario, *rest: object) -> object:
        calls.append(scenario.scenario_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(scenario, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "score_scenario", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_dataset(policy, str(scenes), out=out)
    monkeypatch.setattr(evaluate, "score_scenario", real)
    resumed = evaluate_dataset(policy, str(scenes), out=out)
    assert resumed.n_kept == 1
    assert resumed.summary.buckets == whole.buckets
    assert evaluate_dataset(policy, str(scenes), out=out).finished_before
    with pytest.raises(WosacError, match="differs in rollouts"):
        evaluate_dataset(dataclasses.replace(policy, seed=1), str(scenes), out=out)


def test_scores_of_scenes_whose_file_has_changed_are_not_kept(
    model: SMART, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smart_r1 import evaluate

    policy, out, real, calls = Policy(model, "m", 1), tmp_path / "run", evaluate.score_scenario, []

    def dies(scenario: Scenario, *rest: object) -> object:
        calls.append(scenario.scenario_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(scenario, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "score_scenario", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_dataset(policy, str(scenes), out=out)
    monkeypatch.setattr(evaluate, "score_scenario", real)
    files = [path for path in scenes.rglob("*") if path.is_file()]
    assert files
    for file in files:
        os.utime(file, ns=(0, 0))
    assert evaluate_dataset(policy, str(scenes), out=out).n_kept == 0


def test_a_scene_that_cannot_be_simulated_does_not_stop_the_others(
    model: SMART, make_scenario: MakeScenario, tmp_path: Path
) -> None:
    good = make_scenario(scenario_id="good")
    bad = make_scenario(scenario_id="bad")
    bad.tracks.position[1, 5, 0] = np.nan
    outcomes = {
        o.scenario.scenario_id: o.rollouts for o in simulated(Policy(model, "m", 1), [bad, good])
    }
    assert isinstance(outcomes["bad"], WosacError)
    assert isinstance(outcomes["good"], Rollouts)
    write_scenarios(tmp_path / "scenes.tfrecord", iter([bad, good]), 1)
    with pytest.raises(ScoringError) as error:
        rollout_dataset(Policy(model, "m", 1), str(tmp_path / "scenes.tfrecord*"), tmp_path / "out")
    assert [finding.scenario_id for finding in error.value.findings] == ["bad"]
    assert (tmp_path / "out/good.npz").exists()


def test_options_are_checked(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    common = ("--scenarios", scenes, "--n", 1)
    no_model = _run("evaluate", *common, "--checkpoint", tmp_path)
    assert no_model.exit_code == 2
    assert "no model.json" in no_model.output
    no_device = _run("evaluate", *common, "--checkpoint", checkpoint, "--device", "abacus")
    assert no_device.exit_code == 2
    assert "device abacus" in no_device.output
    with pytest.raises(WosacError, match="temperature"):
        Sampling(5, 0.0)


# --------------------------------------------------------------------------------------------------
# Unusual scenes


def _simulate(model: SMART, scenario: Scenario) -> Rollouts:
    rollouts = simulate_scenes(model, [scene_tensors(scenario)], n_rollouts=2)[0]
    assert np.isfinite(rollouts.states).all()
    return rollouts


def test_a_scene_without_a_map_is_simulated(model: SMART, make_scenario: MakeScenario) -> None:
    _simulate(model, make_scenario(road_edges=[]))


def test_a_scene_without_lanes_is_simulated_and_scored(
    model: SMART, make_scenario: MakeScenario, tmp_path: Path
) -> None:
    scenario = make_scenario()
    score = score_scenario(scenario, _simulate(model, scenario))
    assert 0 <= score.metametric <= 1
    write_scenarios(tmp_path / "scene.tfrecord", [scenario], 1)
    [streamed] = evaluate_dataset(Policy(model, "a test", n_rollouts=2), str(tmp_path)).scenes
    assert streamed["metametric"] == score.metametric


def test_one_agent_alone_is_simulated(model: SMART, make_scenario: MakeScenario) -> None:
    _simulate(model, make_scenario(n_tracks=1, tracks_to_predict=(0,)))


def test_three_hundred_and_twenty_agents_are_simulated(
    model: SMART, make_scenario: MakeScenario
) -> None:
    rollouts = _simulate(model, make_scenario(n_tracks=320))
    assert len(rollouts.object_ids) == 320


def test_agents_that_vanish_live_on(model: SMART, make_scenario: MakeScenario) -> None:
    scenario = make_scenario()
    scenario.tracks.valid[1, 11:] = False
    assert _simulate(model, scenario).object_ids.tolist() == [10, 11, 12]


def test_a_record_of_the_test_split_is_simulated(model: SMART, make_scenario: MakeScenario) -> None:
    """Eleven steps, no future; what is simulated depends on the history alone."""
    whole, short = make_scenario(), make_scenario(n_steps=11)
    np.testing.assert_array_equal(_simulate(model, whole).states, _simulate(model, short).states)
