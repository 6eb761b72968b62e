"""Closed-loop supervised fine-tuning: the loss of CAT-K, and its runs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from click.testing import CliRunner, Result  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
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

from smart_r1 import simulate as simulation  # noqa: E402
from smart_r1.batching import SceneBatch  # noqa: E402
from smart_r1.cache import SceneCache  # noqa: E402
from smart_r1.cli import main  # noqa: E402
from smart_r1.model.agent_decoder import Memory  # noqa: E402
from smart_r1.model.checkpoint import load_model, save_model  # noqa: E402
from smart_r1.model.config import CONFIGS  # noqa: E402
from smart_r1.model.smart import SMART  # noqa: E402
from smart_r1.objectives import next_token_targets  # noqa: E402
from smart_r1.simulate import Decision, closest_to_log  # noqa: E402
from smart_r1.tokens.motion import MotionTokens  # noqa: E402
from smart_r1.tokens.vocabulary import CLASS_SIZE  # noqa: E402
from smart_r1.train import sft as stage  # noqa: E402
from smart_r1.train.config import to_yaml  # noqa: E402
from smart_r1.train.distributed import Ranks  # noqa: E402
from smart_r1.train.log import read_log  # noqa: E402
from smart_r1.train.scenes import step_batches  # noqa: E402
from smart_r1.train.sft import SftConfig, load_sft_config, recovery_objective, sft  # noqa: E402
from smart_r1.train.stage import Outcome  # noqa: E402
from smart_r1.train.step import Objective, Sums  # noqa: E402
from wosac_toolkit.errors import WosacError  # noqa: E402

N_SCENES = 4


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Four synthetic scenes of two agents each."""
    return make_data(tmp_path_factory.mktemp("sft"), N_SCENES)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model that has learnt nothing yet."""
    folder = tmp_path_factory.mktemp("model") / "bc"
    torch.manual_seed(0)
    save_model(folder, SMART(CONFIGS["pico"], arcs()))
    return folder


@pytest.fixture
def model() -> SMART:
    """One that drops nothing."""
    torch.manual_seed(1)
    return SMART(dataclasses.replace(CONFIGS["pico"], dropout=0.0, history_drop=0.0), arcs())


@pytest.fixture(scope="session")
def batch(data: Data) -> SceneBatch:
    """All scenes; an agent is not learned, and one's log ends early."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    cache = SceneCache(data.cache)
    (found,) = step_batches(cache, ranks, 0, batch=N_SCENES, edges_at_once=10**9, seed=0)
    learned, valid = found.train_mask.clone(), found.valid.clone()
    learned[1], valid[2, 9:] = False, False
    return dataclasses.replace(found, train_mask=learned, valid=valid)


# --------------------------------------------------------------------------------------------------
# The loss


class KeepingMemory(Memory):
    """Replaces what it remembers rather than writing into it, so that gradients flow through."""

    def remember(self, states: MotionTokens, keys_values: Sequence[Tensor]) -> None:
        self.keys_values = [ring.clone() for ring in self.keys_values]
        super().remember(states, keys_values)


def stepped(
    model: SMART, batch: SceneBatch, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, MotionTokens]:
    """Logits [A, 16, V] of CAT-K's own way, with gradients from step to step; and the states."""
    monkeypatch.setattr(simulation, "Memory", KeepingMemory)
    choose, logits = closest_to_log(batch, model.motion, top_k), []

    def remembered(decision: Decision) -> Tensor:
        logits.append(decision.logits[0])
        return choose(decision)

    # Without the decorators that say that no gradient is wanted.
    begin, simulate = simulation.begin.__wrapped__, simulation.simulate.__wrapped__  # type: ignore[attr-defined]
    loop = simulate(model, begin(model, batch, model.tokenize(batch)), remembered, 1)
    return torch.stack(logits, dim=1), loop.tokens.mapped(lambda field: field[0])


def boxes(position: Any, heading: Any, size: Any) -> Any:
    """Corners [..., 4, 2], in float64."""
    signs = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
    x, y = np.moveaxis(signs * size, -1, 0)
    cos, sin = np.cos(heading)[..., None], np.sin(heading)[..., None]
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1) + position[..., None, :]


def recoveries(model: SMART, batch: SceneBatch, visited: MotionTokens) -> tuple[Any, Any]:
    """Of each action the token whose end, laid out from the state, is nearest to the log; and
    whether it counts: [A, 16].
    """
    motion = model.motion.double().numpy()
    states = [field.numpy() for field in (visited.position.double(), visited.heading.double())]
    logged, facing = batch.position.double().numpy(), batch.heading.double().numpy()
    index = np.zeros((len(batch.classes), 16), int)
    for agent, step in np.ndindex(*index.shape):
        cls = int(batch.classes[agent])
        position, heading = states[0][agent, step + 1], states[1][agent, step + 1]
        cos, sin = np.cos(heading), np.sin(heading)
        ends = motion[cls, :, -1] @ np.array([[cos, sin], [-sin, cos]]) + position
        goal = boxes(logged[agent, step + 3], facing[agent, step + 3], CLASS_SIZE[cls])
        index[agent, step] = np.linalg.norm(ends - goal, axis=-1).sum(-1).argmin()
    counted = visited.valid[:, 1:-1] & batch.valid[:, 3:] & batch.train_mask[:, None]
    return torch.from_numpy(index), counted


@pytest.mark.parametrize(("top_k", "smoothing"), [(1, 0.0), (32, 0.0), (32, 0.1)])
def test_one_pass_over_the_visited_states_is_stepping_with_gradients(
    model: SMART,
    batch: SceneBatch,
    monkeypatch: pytest.MonkeyPatch,
    top_k: int,
    smoothing: float,
) -> None:
    sums = recovery_objective(top_k, smoothing, nullcontext)(model, batch)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(sums.loss, list(parameters.values()), allow_unused=True)

    logits, visited = stepped(model, batch, top_k, monkeypatch)
    target, counted = recoveries(model, batch, visited)
    log_p = logits[counted].double().log_softmax(-1)
    nll = -log_p.gather(1, target[counted][:, None])[:, 0]
    loss = ((1 - smoothing) * nll - smoothing * log_p.mean(-1)).sum()
    theirs = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    assert sums.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert sums.actions == counted.sum() < counted.numel()
    assert sums.correct == (log_p.argmax(-1) == target[counted]).sum()
    scale = max(float(g.abs().max()) for g in theirs if g is not None)
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * scale, msg=name)


def test_the_targets_undo_what_the_policy_has_drifted(
    model: SMART, batch: SceneBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        _, visited = stepped(model, batch, 1, monkeypatch)  # The policy's own first choice.
    target, counted = recoveries(model, batch, visited)
    away = (visited.position[:, 1:-1] - batch.position[:, 2:-1]).norm(dim=-1)
    assert away[counted].max() > 2
    logged = next_token_targets(model.tokenize(batch)).index
    assert (target != logged)[counted].float().mean() > 0.3


def test_the_rollout_drops_nothing_though_the_pass_with_gradients_does(
    batch: SceneBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = SMART(dataclasses.replace(CONFIGS["pico"], dropout=0.5), arcs()).train()
    seen: list[tuple[bool, Tensor]] = []
    simulate = stage.simulate  # type: ignore[attr-defined]

    def watched(model: SMART, *args: Any) -> Any:
        loop = simulate(model, *args)
        seen.append((model.training, loop.tokens.index))
        return loop

    monkeypatch.setattr(stage, "simulate", watched)
    objective = recovery_objective(32, 0.0, nullcontext)
    losses = [objective(model, batch).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]
    assert model.training
    (first, ours), (second, again) = seen
    assert not first
    assert not second
    assert torch.equal(ours, again)


# --------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def settings(data: Data, checkpoint: Path) -> Callable[..., SftConfig]:
    """A function that makes settings: two epochs of two steps, with everything that is drawn or
    remembered.
    """

    def make(*assignments: str) -> SftConfig:
        defaults = [
            f"begins_with={checkpoint}",
            f"data={data.cache}",
            *("epochs=2", "batch=2", "validation_data=" + str(data.cache)),
            *("average_decay=0.9", "log.every_steps=1", "optimizer.learning_rate=1e-3"),
        ]
        return load_sft_config(None, [*defaults, *assignments])

    return make


def run(config: SftConfig, out: Path) -> Outcome:
    return sft(config, out, device="cpu")


def disturb(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], None]) -> None:
    """Do something when the objective is computed for the `at`-th time."""
    make, calls = recovery_objective, itertools.count(1)

    def disturbed(*args: Any) -> Objective:
        inner = make(*args)

        def compute(model: SMART, batch: SceneBatch) -> Sums:
            if next(calls) == at:
                how()
            return inner(model, batch)

        return compute

    monkeypatch.setattr(stage, "recovery_objective", disturbed)


@pytest.mark.parametrize("trained", ["decoder", "all"])
def test_only_what_is_trained_changes(
    settings: Callable[..., SftConfig], checkpoint: Path, tmp_path: Path, trained: str
) -> None:
    out = tmp_path / "run"
    run(
        settings(f"trained={trained}", "epochs=1", "average_decay=0", "optimizer.weight_decay=0.5"),
        out,
    )
    before = dict(load_model(checkpoint).named_parameters())
    after = dict(load_model(out / "final").named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = ("time_layers", "map_layers", "agent_layers", "head")
    decoder = {n for n in before if n.startswith(tuple(f"agent_decoder.{x}." for x in layers))}
    assert decoder < set(before)
    # What was 0 and has no gradient, such as a bias of cyclists, stays 0.
    expected = {n for n in (decoder if trained == "decoder" else before) if before[n].any()}
    assert expected <= changed
    if trained == "decoder":
        assert changed <= decoder
        kept = load_file(newest(out) / "trainer.safetensors")
        assert {name.rpartition("/")[0] for name in kept} == decoder


def test_a_small_model_learns_to_come_back(
    settings: Callable[..., SftConfig], tmp_path: Path
) -> None:
    config = settings(
        *("epochs=40", "batch=4", "trained=all", "average_decay=0"),
        *(
            "optimizer.learning_rate=5e-3",
            "optimizer.max_gradient_norm=1",
            "open_loop.every_epochs=0",
        ),
    )
    run(config, tmp_path / "run")
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert len(losses) == 40
    assert losses[0] > 3.5
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


def test_the_model_it_begins_with_is_validated_too(
    settings: Callable[..., SftConfig], data: Data, tmp_path: Path
) -> None:
    config = settings(
        *(f"validation_scenarios={data.scenarios}", "epochs=1", "batch=4"),
        *("closed_loop.every_epochs=1", "closed_loop.scenarios=1", "closed_loop.n_rollouts=2"),
    )
    done = run(config, tmp_path / "run")
    found = [line for line in read_log(tmp_path / "run") if line["event"] == "validation"]
    assert [(line["epoch"], line["step"]) for line in found] == [(0, 0), (1, 1)]
    realism = [line["closed_loop/metametric"] for line in found]
    assert all("open_loop/loss" in line for line in found)
    assert done.progress.best == max(realism)
    assert done.progress.best_step == int(np.argmax(realism))


@pytest.mark.parametrize(("at", "how"), [(1, stop), (3, stop), (3, crash)])
def test_a_run_that_was_broken_off_and_goes_on_is_the_unbroken_one(
    settings: Callable[..., SftConfig],
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    how: Callable[[], None],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        disturb(patched, at, how)
        if how is stop:
            assert run(settings(), out).progress.step == at
        else:
            with pytest.raises(Crash):
                run(settings(), out)
    assert run(settings(), out).finished
    assert_same_run(unbroken, out)


@pytest.fixture(scope="module")
def unbroken(data: Data, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `settings()`."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    config = load_sft_config(
        None,
        [
            f"begins_with={checkpoint}",
            *(f"data={data.cache}", f"validation_data={data.cache}"),
            *("epochs=2", "batch=2", "average_decay=0.9", "log.every_steps=1"),
            "optimizer.learning_rate=1e-3",
        ],
    )
    assert run(config, out).finished
    return out


def test_a_checkpoint_that_has_changed_is_refused_but_it_may_move(
    settings: Callable[..., SftConfig],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other"
    with monkeypatch.context() as patched:
        disturb(patched, 1, stop)
        run(settings(), out)
    save_model(moved, load_model(checkpoint))
    save_model(other, SMART(CONFIGS["pico"], arcs()))
    with pytest.raises(WosacError, match="the checkpoint that the run began with has changed"):
        run(settings(f"begins_with={other}"), out)
    assert run(settings(f"begins_with={moved}"), out).finished


def test_another_choice_of_weights_is_refused(
    settings: Callable[..., SftConfig], unbroken: Path
) -> None:
    with pytest.raises(WosacError, match="a run with another top_k, trained"):
        run(settings("trained=all", "top_k=5"), unbroken)


# --------------------------------------------------------------------------------------------------
# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["sft", *map(str, arguments)], prog_name="smart-r1")


def test_options_are_settings_and_a_mistyped_checkpoint_can_be_mended(
    data: Data, checkpoint: Path, tmp_path: Path
) -> None:
    rest: list[str | Path] = [
        *("--data", data.cache, "--val-data", data.cache, "--out", tmp_path / "run")
    ]
    rest += [*("--epochs", "1", "--batch", "3", "--device", "cpu", "batch=4", "top_k=5")]
    absent = invoke("--checkpoint", tmp_path / "nowhere", *rest)
    assert absent.exit_code == 2
    assert "no model.json" in absent.stderr
    result = invoke("--checkpoint", checkpoint, *rest)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"training was finished, after 1 step: {tmp_path / 'run/final'}\n"
    config = load_sft_config(tmp_path / "run/config.yaml", ())
    assert (config.begins_with, config.data) == (str(checkpoint), str(data.cache))
    assert (config.epochs, config.batch, config.top_k) == (1, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data, begins_with must be set"),
        (["--checkpoint", "nowhere", "--data", "CACHE"], "nowhere: no model.json"),
        (["--checkpoint", "CHECKPOINT", "--data", "nowhere"], "nowhere: no prepared scenes"),
        (["--checkpoint", "x", "--data", "x", "top_k=0"], "top_k must be at least 1, is 0"),
        (
            ["--checkpoint", "x", "--data", "x", "trained=head"],
            "trained must be one of decoder, all",
        ),
        (["--checkpoint", "x", "--data", "x", "model=pico"], "there is no setting model"),
    ],
)
def test_bad_usage_is_told_in_one_line(
    data: Data, checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    known = {"CACHE": str(data.cache), "CHECKPOINT": str(checkpoint)}
    result = invoke(*(known.get(word, word) for word in arguments), "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("smart-r1: error: ")
    assert message in line


def test_a_damaged_checkpoint_is_named(checkpoint: Path, data: Data, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    save_model(damaged, load_model(checkpoint))
    (damaged / "model.safetensors").write_bytes(b"\xff" * 20)
    result = invoke("--checkpoint", damaged, "--data", data.cache, "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert str(damaged / "model.safetensors") in line


def test_two_processes_give_the_gradients_of_one(
    settings: Callable[..., SftConfig], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    save_model(
        tmp_path / "still",
        SMART(dataclasses.replace(CONFIGS["pico"], dropout=0.0, history_drop=0.0), arcs()),
    )
    # Batches of 3 and 1: shares of 2 and 1 scenes, then 1 and none.
    config = settings(
        *(f"begins_with={tmp_path / 'still'}", "batch=3", "epochs=1", "average_decay=0"),
        *("checkpoint.every_minutes=0", "checkpoint.keep=9"),
    )
    file = tmp_path / "settings.yaml"
    file.write_text(to_yaml(config))
    run(config, tmp_path / "one")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "smart_r1.cli", "sft", "--config", str(file), "--device", "cpu"),
        *("--out", str(tmp_path / "two")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (
        load_file(tmp_path / name / "checkpoints/step-00000001/trainer.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith("/exp_avg"):
            torch.testing.assert_close(10 * two[name], 10 * one[name], atol=1e-6, rtol=0)
    for ours, theirs in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        assert ours.pop("event") == theirs.pop("event")
        assert ours == pytest.approx(theirs, rel=1e-3)
