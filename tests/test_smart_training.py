"""Settings, schedule, steps, the loop with its folder, and pre-training, in the small."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    cropped,
    lines_of,
    make_data,
    newest,
    stop,
)

from smart_r1.batching import SceneBatch, collate, scene_rng, trained_agents  # noqa: E402
from smart_r1.cache import SceneCache, prepare_dataset  # noqa: E402
from smart_r1.cli import main  # noqa: E402
from smart_r1.model.checkpoint import load_model  # noqa: E402
from smart_r1.model.config import CONFIGS  # noqa: E402
from smart_r1.model.smart import SMART  # noqa: E402
from smart_r1.objectives import next_token_loss, next_token_targets  # noqa: E402
from smart_r1.tokens.vocabulary import Vocabulary, save_vocabulary  # noqa: E402
from smart_r1.train import imitation, validation  # noqa: E402
from smart_r1.train import pretrain as pretraining  # noqa: E402
from smart_r1.train.config import differences, load_config, to_yaml  # noqa: E402
from smart_r1.train.distributed import Ranks  # noqa: E402
from smart_r1.train.interrupt import StopRequest  # noqa: E402
from smart_r1.train.log import read_log  # noqa: E402
from smart_r1.train.optimizer import OptimizerConfig, make_optimizer, update_average  # noqa: E402
from smart_r1.train.pretrain import (  # noqa: E402
    PretrainConfig,
    load_pretrain_config,
    next_token_objective,
    pretrain,
)
from smart_r1.train.scenes import epoch_order, step_batches  # noqa: E402
from smart_r1.train.schedule import ScheduleConfig, learning_rate_factor  # noqa: E402
from smart_r1.train.stage import Outcome  # noqa: E402
from smart_r1.train.state import Progress, TrainState, locked  # noqa: E402
from smart_r1.train.step import (  # noqa: E402
    NonFiniteError,
    Objective,
    Sums,
    autocast,
    follow_gradient,
    mean_gradient,
)
from wosac_toolkit.errors import FormatError, WosacError  # noqa: E402
from wosac_toolkit.io.scenarios import write_scenarios  # noqa: E402
from wosac_toolkit.scenario import Scenario  # noqa: E402
from wosac_toolkit.synthetic import generate_scenarios  # noqa: E402

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
N_SCENES = 8


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Eight synthetic scenes of two agents each."""
    return make_data(tmp_path_factory.mktemp("training"), N_SCENES)


@pytest.fixture
def settings(data: Data) -> Callable[..., PretrainConfig]:
    """A function that makes settings: two epochs of three steps with a pico model."""

    def make(*assignments: str) -> PretrainConfig:
        defaults = [
            f"data={data.cache}",
            f"vocabulary={data.vocabulary}",
            "model=pico",
            "epochs=2",
            "batch=3",
            "validation_fraction=0",
            "log.every_steps=1",
        ]
        return load_pretrain_config(None, [*defaults, *assignments])

    return make


@pytest.fixture
def state(data: Data) -> TrainState:
    """A new pico model that drops nothing."""
    return new_state()


def new_state() -> TrainState:
    torch.manual_seed(0)
    model = SMART(dataclasses.replace(CONFIGS["pico"], dropout=0.0, history_drop=0.0), arcs())
    return TrainState(model, make_optimizer(model, OptimizerConfig()), None, Progress("data"))


def objective() -> Objective:
    return next_token_objective(0.1, None, lambda: autocast("float32", CPU))


def batches_of(data: Data, ranks: Ranks, step: int = 0, *, batch: int, edges: int = 10**9) -> Any:
    return step_batches(
        SceneCache(data.cache), ranks, step, batch=batch, edges_at_once=edges, seed=0
    )


def gradients_of(state: TrainState) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in state.model.named_parameters()
        if parameter.grad is not None
    }


# --------------------------------------------------------------------------------------------------
# The schedule


def factors(schedule: ScheduleConfig, steps_per_epoch: int, epochs: int) -> list[float]:
    steps = range(steps_per_epoch * epochs)
    return [learning_rate_factor(schedule, step, steps_per_epoch, epochs) for step in steps]


def test_the_cosine_falls_from_the_base_rate_to_what_is_left() -> None:
    found = factors(ScheduleConfig(final_fraction=0.1), 5, 1)
    assert found == pytest.approx([1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.2318019485, 0.1])


def test_the_warm_up_rises_to_the_base_rate() -> None:
    found = factors(ScheduleConfig(warmup_epochs=2, final_fraction=0.0), 2, 4)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert found[-1] == pytest.approx(0)
    found = factors(ScheduleConfig(kind="constant", warmup_epochs=0.5), 4, 2)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1])


def test_the_public_schedule_has_its_first_value_twice_and_never_ends() -> None:
    schedule = ScheduleConfig(kind="cosine_per_epoch", final_fraction=0.01)
    found = factors(schedule, 3, 4)
    assert found[::3] == found[1::3] == found[2::3]
    half = math.sqrt(0.5)
    cosine = [half, half, 0.0, -half]
    assert found[::3] == pytest.approx([0.01 + 0.495 * (1 + c) for c in cosine])


def test_the_public_schedule_with_a_warm_up() -> None:
    schedule = ScheduleConfig(kind="cosine_per_epoch", warmup_epochs=2, final_fraction=0.2)
    # n = 1, 1, 2, 3 of 4 epochs, 2 of them warm-up.
    assert factors(schedule, 1, 4) == pytest.approx([0.6, 0.6, 1, 0.6])


@given(
    st.sampled_from(["cosine", "cosine_per_epoch", "constant"]),
    st.floats(0, 3),
    st.floats(0, 1),
    st.integers(1, 7),
    st.integers(1, 6),
)
def test_factors_are_positive_and_at_most_one(
    kind: Literal["cosine", "cosine_per_epoch", "constant"],
    warmup: float,
    final: float,
    steps_per_epoch: int,
    epochs: int,
) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_epochs=warmup, final_fraction=final)
    for factor in factors(schedule, steps_per_epoch, epochs):
        assert -1e-12 <= factor <= 1 + 1e-12


@pytest.mark.parametrize("bad", [{"warmup_epochs": -1.0}, {"final_fraction": 1.5}])
def test_bad_schedules(bad: dict[str, float]) -> None:
    with pytest.raises(WosacError, match=next(iter(bad))):
        ScheduleConfig(**bad)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------
# Settings


@dataclass(frozen=True)
class Inner:
    width: int = 4
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    maybe: int | None = None
    kind: Literal["one", "two"] = "one"
    sizes: tuple[int, ...] = (1, 2)
    on: bool = False


PRESETS = {Inner: {"small": Inner(2, 0.1), "large": Inner(8, 0.9)}}


def outer(*assignments: str, file: Path | None = None) -> Outer:
    return load_config(Outer, file, ["name=x", *assignments], presets=PRESETS)


def test_what_is_not_given_keeps_its_default() -> None:
    assert outer() == Outer(name="x")


def test_assignments_are_stronger_than_the_file_and_the_last_the_strongest(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("inner: {width: 7, rate: 1}\nkind: two\nmaybe: 3\n")
    found = outer("inner.width=9", "inner.width=10", "maybe=null", file=file)
    assert found == Outer(name="x", inner=Inner(10, 1.0), kind="two", maybe=None)


@pytest.mark.parametrize("text", ["5e-4", "0.0005", "5.0e-4"])
def test_rates_as_people_write_them(text: str) -> None:
    assert outer(f"inner.rate={text}").inner.rate == 5e-4


@pytest.mark.parametrize(
    ("assignments", "inner"),
    [
        (["inner=large"], Inner(8, 0.9)),
        (["inner=large", "inner.rate=0.2"], Inner(8, 0.2)),
        (["inner={preset: small, width: 3}"], Inner(3, 0.1)),
        (["inner.rate=0.2"], Inner(4, 0.2)),
    ],
)
def test_presets(assignments: list[str], inner: Inner) -> None:
    assert outer(*assignments).inner == inner


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("widht=3", "there is no setting widht"),
        ("inner.widht=3", "there is no setting inner.widht .did you mean inner.width"),
        ("inner.width=three", "inner.width must be a whole number, not 'three'"),
        ("inner.width=1.5", "inner.width must be a whole number"),
        ("inner.width=true", "inner.width must be a whole number"),
        ("inner.rate=.nan", "inner.rate must be a number"),
        ("inner.rate=fast", "inner.rate must be a number"),
        ("inner.rate=true", "inner.rate must be a number"),
        ("inner=3", "inner must be a mapping of settings, not 3"),
        ("inner=huge", "inner must be one of small, large, not 'huge'"),
        ("kind=three", "kind must be one of one, two, not 'three'"),
        ("maybe=x", "maybe must be a whole number"),
        ("sizes=3", "sizes must be a list"),
        ("sizes=[1, x]", r"sizes\[1\] must be a whole number"),
        ("on=1", "on must be true or false"),
        ("name=null", "name must be text"),
        ("name", "'name' is not of the form key=value"),
        ("name=[", "not YAML"),
    ],
)
def test_bad_settings_are_named(assignment: str, message: str) -> None:
    with pytest.raises(WosacError, match=message):
        outer(assignment)


def test_what_has_no_default_must_be_set() -> None:
    with pytest.raises(WosacError, match="name must be set"):
        load_config(Outer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"inner: {width: x}", "inner.width must be a whole number"),
        (b"- 1", "not a mapping"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe", "not a text file"),
        (b"!!python/object/apply:os.system [true]", "not YAML"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(WosacError, match=message) as caught:
        outer(file=file)
    assert caught.value.where == str(file)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing\n")
    assert outer(file=file) == Outer(name="x")


def test_settings_are_written_whole_and_read_back(tmp_path: Path) -> None:
    one = load_pretrain_config(None, ["data=cache", "model=nano", "noise.num_k=5", "seed=3"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(one))
    assert load_pretrain_config(file, ()) == one
    assert "hidden_dim: 64" in file.read_text()


def test_differences_are_dotted_keys() -> None:
    one = load_pretrain_config(None, ["data=cache"])
    other = load_pretrain_config(None, ["data=cache", "epochs=3", "model.dropout=0"])
    assert differences(one, other) == ["epochs", "model.dropout"]


@pytest.mark.parametrize(
    "assignment",
    [
        "epochs=0",
        "batch=0",
        "edges_at_once=0",
        "seed=-1",
        "average_decay=1",
        "label_smoothing=1",
        "validation_fraction=1",
        "optimizer.learning_rate=0",
        "optimizer.beta1=1",
        "checkpoint.keep=0",
        "log.every_steps=0",
        "open_loop.scenes=0",
        "closed_loop.n_rollouts=0",
        "curves=x",
    ],
)
def test_settings_out_of_range(assignment: str) -> None:
    with pytest.raises(WosacError, match=assignment.split("=")[0].split(".")[-1]):
        load_pretrain_config(None, ["data=cache", assignment])


# --------------------------------------------------------------------------------------------------
# The scenes of a step


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("edges", [1, 10**9])
def test_processes_share_every_batch(data: Data, size: int, edges: int) -> None:
    cache = SceneCache(data.cache)
    seen = []
    for step in range(3):
        order = epoch_order(0, 0, N_SCENES)[3 * step : 3 * step + 3]
        found = [
            list(batch.scenario_ids)
            for rank in range(size)
            for batch in batches_of(data, Ranks(rank, size, CPU), step, batch=3, edges=edges)
        ]
        assert all(len(ids) == 1 for ids in found) or edges > 1
        together = list(itertools.chain(*found))
        assert sorted(together) == sorted(cache.scenario_ids[i] for i in order)
        seen += together
    assert sorted(seen) == sorted(cache.scenario_ids)


def test_epochs_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_draws_depend_on_seed_epoch_and_scene_alone(
    make_scenario: Callable[..., Scenario], tmp_path: Path
) -> None:
    names = ["delta", "alpha", "echo", "bravo"]
    crowds = [make_scenario(scenario_id=n, n_tracks=60, tracks_to_predict=()) for n in names]
    # In the middle, so that enough of the others are near it.
    crowds = [dataclasses.replace(scene, sdc_track_index=30) for scene in crowds]
    write_scenarios(tmp_path / "scenarios", crowds, 1)
    prepare_dataset(str(tmp_path / "scenarios"), tmp_path / "cache", workers=1)
    cache = SceneCache(tmp_path / "cache")

    def drawn(
        *, batch: int = 4, edges: int = 10**9, size: int = 1, epoch: int = 0, seed: int = 0
    ) -> dict[str, list[bool]]:
        """The agents that are learned in an epoch, by scene."""
        steps = -(-len(names) // batch)
        return {
            scenario_id: mask.tolist()
            for step in range(epoch * steps, (epoch + 1) * steps)
            for rank in range(size)
            for part in step_batches(
                cache, Ranks(rank, size, CPU), step, batch=batch, edges_at_once=edges, seed=seed
            )
            for scenario_id, mask in zip(
                part.scenario_ids, part.train_mask.split(part.agent_counts), strict=True
            )
        }

    first = drawn()
    assert all(sum(mask) == 32 for mask in first.values())
    assert len({tuple(mask) for mask in first.values()}) == 4
    assert drawn(batch=3) == first
    assert drawn(edges=1) == first
    assert drawn(size=3) == first
    assert drawn(epoch=1) != first
    assert drawn(seed=1) != first
    for scene in cache:
        rng = scene_rng(0, 0, scene.scenario_id)
        assert first[scene.scenario_id] == trained_agents(scene, rng).tolist()


# --------------------------------------------------------------------------------------------------
# One step


def test_the_gradient_of_parts_is_that_of_the_whole(data: Data, state: TrainState) -> None:
    whole = batches_of(data, ALONE, batch=5)
    parts = batches_of(data, ALONE, batch=5, edges=1)
    assert (len(whole), len(parts)) == (1, 5)
    one = mean_gradient(state, objective(), whole, ALONE)
    expected = gradients_of(state)
    other = mean_gradient(state, objective(), parts, ALONE)
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert (other.actions, other.accuracy) == (one.actions, one.accuracy)
    for name, gradient in gradients_of(state).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_the_loss_is_the_mean_over_the_actions_of_trained_agents(
    data: Data, state: TrainState
) -> None:
    (batch,) = batches_of(data, ALONE, batch=2)
    means = mean_gradient(state, objective(), [batch], ALONE)
    tokens = state.model.tokenize(batch)
    valid = next_token_targets(tokens).valid & batch.train_mask[:, None]
    assert means.actions == valid.sum()
    logits = state.model(batch, tokens)[valid].double()
    target = tokens.index[:, 2:][valid]
    log_p = logits.log_softmax(-1)
    expected = -0.9 * log_p.gather(1, target[:, None])[:, 0] - 0.1 * log_p.mean(-1)
    assert means.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert means.accuracy == pytest.approx((logits.argmax(-1) == target).double().mean().item())


def test_no_scene_leaves_gradients_of_zero(state: TrainState) -> None:
    means = mean_gradient(state, objective(), [], ALONE)
    assert math.isnan(means.loss)
    assert means.actions == 0
    found = gradients_of(state)
    assert len(found) == len(list(state.model.parameters()))
    assert all(gradient.abs().max() == 0 for gradient in found.values())


def test_a_step_is_adamw_s_along_the_clipped_gradient(data: Data, state: TrainState) -> None:
    mean_gradient(state, objective(), batches_of(data, ALONE, batch=2), ALONE)
    gradients = gradients_of(state)
    length = math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    norm = follow_gradient(
        state, [], ALONE, learning_rate=1e-3, max_gradient_norm=0.5 * length, average_decay=0
    )
    assert norm == pytest.approx(length, rel=1e-5)
    assert state.progress.step == 1
    for name, parameter in state.model.named_parameters():
        clipped = 0.5 * gradients[name]
        # The first step's moments, corrected, are the gradient and its square.
        expected = before[name] * (1 - 1e-3 * 0.01) - 1e-3 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, atol=2e-5, rtol=0)


def test_the_moving_average() -> None:
    average, weight = torch.zeros(1), torch.ones(1)
    update_average([(average, weight)], decay=0.9, step=0)
    assert average.item() == pytest.approx(0.9)  # It has no past yet: d = 1 / 10.
    update_average([(average, weight)], decay=0.9, step=10**6)
    assert average.item() == pytest.approx(0.9 * 0.9 + 0.1)


def spoil(inner: Objective, scenario_id: str, how: Callable[[SMART], Tensor]) -> Objective:
    """An objective that goes wrong where a scene is."""

    def spoiled(model: SMART, batch: SceneBatch) -> Sums:
        sums = inner(model, batch)
        if scenario_id not in batch.scenario_ids:
            return sums
        return sums._replace(loss=sums.loss + how(model))

    return spoiled


def infinite_gradient(model: SMART) -> Tensor:
    """0, but its derivative is infinite."""
    return (0 * next(model.parameters()).sum()).sqrt()


@pytest.mark.parametrize(
    ("how", "what"), [(lambda _: torch.tensor(math.nan), "loss"), (infinite_gradient, "gradient")]
)
def test_numbers_that_are_not_finite_stop_the_step_and_name_the_scenes(
    data: Data, state: TrainState, how: Callable[[SMART], Tensor], what: str
) -> None:
    parts = batches_of(data, ALONE, batch=3, edges=1)
    culprit = parts[1].scenario_ids[0]
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}

    def take_step() -> None:
        mean_gradient(state, spoil(objective(), culprit, how), parts, ALONE)
        follow_gradient(
            state, parts, ALONE, learning_rate=1e-3, max_gradient_norm=0.5, average_decay=0
        )

    with pytest.raises(NonFiniteError, match=f"step 1: the {what} is not finite") as caught:
        take_step()
    # The loss of each part is known; the gradient only of the whole batch.
    assert culprit in caught.value.scenario_ids
    assert len(caught.value.scenario_ids) == (1 if what == "loss" else 3)
    assert culprit in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())


# --------------------------------------------------------------------------------------------------
# Runs


def disturb(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], None]) -> None:
    """Do something when the objective is computed for the `at`-th time."""
    make = next_token_objective
    calls = itertools.count(1)

    def disturbed(*args: Any) -> Objective:
        inner = make(*args)

        def compute(model: SMART, batch: SceneBatch) -> Sums:
            if next(calls) == at:
                how()
            return inner(model, batch)

        return compute

    monkeypatch.setattr(pretraining, "next_token_objective", disturbed)


def run(config: PretrainConfig, out: Path) -> Outcome:
    return pretrain(config, out, device="cpu")


# Everything that is drawn or remembered: dropout, noise of the tokens, a moving average.
ALL_AT_WORK = ("average_decay=0.9", "noise.num_k=3", "validation_fraction=0.4")


@pytest.fixture(scope="module")
def unbroken(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `settings(*ALL_AT_WORK)`."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    config = load_pretrain_config(
        None,
        [
            f"data={data.cache}",
            f"vocabulary={data.vocabulary}",
            *("model=pico", "epochs=2", "batch=3", "log.every_steps=1", *ALL_AT_WORK),
        ],
    )
    assert run(config, out).finished
    return out


def test_a_run_trains_and_leaves_what_it_says(unbroken: Path) -> None:
    lines = read_log(unbroken)
    trained = [line for line in lines if line["event"] == "train"]
    validated = [line for line in lines if line["event"] == "validation"]
    assert [line["step"] for line in trained] == list(range(1, len(trained) + 1))
    assert trained[-1]["epoch"] == 2
    assert [line["epoch"] for line in validated] == [1, 2]
    assert set(trained[0]) >= {"loss", "accuracy", "learning_rate", "gradient_norm", "seconds"}
    assert 0 <= validated[0]["open_loop/top1_accuracy"] <= validated[0]["open_loop/top5_accuracy"]
    assert validated[0]["open_loop/nll"] > 0
    names = {path.name for path in unbroken.iterdir() if not path.name.startswith(".")}
    assert names - {"tensorboard"} == {"config.yaml", "log.jsonl", "checkpoints", "best", "final"}


def test_nothing_that_a_run_leaves_is_a_pickle(unbroken: Path) -> None:
    files = [path for path in unbroken.rglob("*") if path.is_file() and "tfevents" not in path.name]
    assert {path.suffix for path in files} == {".yaml", ".jsonl", ".json", ".safetensors", ""}
    assert {path.name for path in files if not path.suffix} == {".lock"}


def test_what_is_saved_is_the_average_and_the_trainer_keeps_the_weights(unbroken: Path) -> None:
    model = load_model(unbroken / "final")
    kept = load_file(newest(unbroken) / "trainer.safetensors")
    for name, average in model.named_parameters():
        weight = kept[f"weight/{name}"]
        # What no scene reaches, such as a bias of cyclists, is 0 as it was.
        assert torch.equal(weight, average) == (average.abs().max() == 0)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_stopped_run_that_goes_on_is_the_unbroken_one(
    settings: Callable[..., PretrainConfig],
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    config, out = settings(*ALL_AT_WORK), tmp_path / "run"
    # A second way to say what `unbroken` says.
    assert not differences(config, load_pretrain_config(unbroken / "config.yaml", ()))
    with monkeypatch.context() as patched:
        disturb(patched, at, stop)
        done = run(config, out)
    assert (done.finished, done.progress.step) == (False, at)
    assert not (out / "final").exists()
    assert run(config, out).finished
    assert_same_run(unbroken, out)


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = settings(*ALL_AT_WORK, "checkpoint.every_minutes=0")
    assert run(often, tmp_path / "unbroken").finished
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        disturb(patched, 3, crash)
        with pytest.raises(Crash):
            run(often, out)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 3, "torn')
    assert newest(out).name == "step-00000002"
    assert run(often, out).finished
    assert_same_run(tmp_path / "unbroken", out)
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_a_run_stopped_in_its_validation_is_validated_when_it_goes_on(
    settings: Callable[..., PretrainConfig],
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = settings(*ALL_AT_WORK), tmp_path / "run"
    measure = imitation.open_loop

    def stopped(*args: Any, **kwargs: Any) -> Mapping[str, float] | None:
        stop()
        return measure(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(imitation, "open_loop", stopped)
        done = run(config, out)
    assert (done.finished, done.progress.validated_step) == (False, 0)
    assert all(line["event"] == "train" for line in read_log(out))
    assert run(config, out).finished
    assert_same_run(unbroken, out)


def test_a_finished_run_is_left_alone(
    settings: Callable[..., PretrainConfig], unbroken: Path
) -> None:
    before = (unbroken / "final/model.safetensors").stat().st_mtime_ns
    done = run(settings(*ALL_AT_WORK), unbroken)
    assert done.finished_before
    assert (unbroken / "final/model.safetensors").stat().st_mtime_ns == before


def test_another_run_in_the_same_folder_is_refused(
    settings: Callable[..., PretrainConfig], unbroken: Path
) -> None:
    with pytest.raises(WosacError, match=r"a run with another seed, schedule\.warmup_epochs"):
        run(settings(*ALL_AT_WORK, "seed=1", "schedule.warmup_epochs=1"), unbroken)


def test_what_a_run_does_not_depend_on_may_change(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        disturb(patched, 1, stop)
        run(settings(), out)
    assert run(settings("edges_at_once=1", "checkpoint.keep=1", "log.every_steps=2"), out).finished
    assert [line["step"] for line in read_log(out)] == [1, 2, 4, 6]
    assert load_pretrain_config(out / "config.yaml", ()).edges_at_once == 1


def test_other_scenes_are_refused(
    settings: Callable[..., PretrainConfig],
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    disturb(monkeypatch, 1, stop)
    assert not run(settings(), out).finished
    scenes = [cropped(scene, 2, 10.0) for scene in generate_scenarios(2, seed=1)]
    write_scenarios(tmp_path / "others", scenes, 1)
    prepare_dataset(str(tmp_path / "others"), tmp_path / "cache", workers=1)
    with pytest.raises(WosacError, match="began with other scenes"):
        run(settings(f"data={tmp_path / 'cache'}"), out)
    # But the same ones may have moved.
    data.cache.rename(moved := tmp_path / "moved")
    try:
        assert run(settings(f"data={moved}"), out).finished
    finally:
        moved.rename(data.cache)


def test_a_folder_in_use_is_refused(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    with locked(tmp_path / "run"), pytest.raises(WosacError, match="another process is training"):
        run(settings(), tmp_path / "run")


def test_another_vocabulary_is_refused(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "run", tmp_path / "other.safetensors"
    disturb(monkeypatch, 1, stop)
    run(settings(), out)
    save_vocabulary(other, Vocabulary(arcs().motion[:, :20], arcs().curves))
    with pytest.raises(WosacError, match="began with another vocabulary"):
        run(settings(f"vocabulary={other}"), out)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer.safetensors", b"\x00" * 20),
        ("trainer.safetensors", None),
        ("trainer.json", b"{}"),
        ("trainer.json", b"["),
        ("trainer.json", None),
        ("model.safetensors", b"\xff" * 9),
    ],
)
def test_a_damaged_checkpoint_is_named(
    settings: Callable[..., PretrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes | None,
) -> None:
    out = tmp_path / "run"
    disturb(monkeypatch, 1, stop)
    run(settings(), out)
    file = newest(out) / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(FormatError, match=name) as caught:
        run(settings(), out)
    assert str(newest(out)) in caught.value.where


def test_a_checkpoint_of_other_shapes_is_named(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    out = tmp_path / "run"
    disturb(monkeypatch, 1, stop)
    run(settings(), out)
    file = newest(out) / "trainer.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("/exp_avg"))
    save_file({**tensors, name: torch.zeros(3)}, file)
    with pytest.raises(FormatError, match=name):
        run(settings(), out)


def test_a_loss_that_is_not_finite_ends_the_run_and_stands_in_the_log(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = next_token_objective
    cache = SceneCache(Path(settings().data))
    culprit = cache.scenario_ids[epoch_order(817, 0, N_SCENES)[4]]  # In the second step.
    monkeypatch.setattr(
        pretraining,
        "next_token_objective",
        lambda *args: spoil(make(*args), culprit, lambda _: torch.tensor(math.inf)),
    )
    with pytest.raises(NonFiniteError, match="step 2: the loss is not finite"):
        run(settings(), tmp_path / "run")
    *_, last = read_log(tmp_path / "run")
    assert last["event"] == "error"
    assert culprit in last["scenario_ids"]


def test_tensorboard_has_the_curves(unbroken: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(unbroken / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    logged = {line["step"]: line["loss"] for line in read_log(unbroken) if line["event"] == "train"}
    assert losses == pytest.approx(logged, rel=1e-6)
    assert "validation/open_loop/loss" in events.Tags()["scalars"]


class FakeWandb:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> FakeWandb:
        self.sessions.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_is_told_on_request(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, config = FakeWandb(), settings("log.wandb=traffic")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with monkeypatch.context() as patched:
        disturb(patched, 2, stop)
        run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert [step for step, _ in wandb.told] == [1, 2, 3, 4, 5, 6]
    assert "train/loss" in wandb.told[0][1]
    first, second = wandb.sessions
    assert first["project"] == "traffic"
    assert first["config"]["model"]["hidden_dim"] == CONFIGS["pico"].hidden_dim
    assert first["id"] == second["id"]
    assert wandb.finished == 2


@pytest.mark.parametrize("edges", [1, 10**9])
def test_validation_in_open_loop_is_over_all_scenes_whatever_their_batches(
    data: Data, state: TrainState, edges: int
) -> None:
    model, cache = state.model.eval(), SceneCache(data.cache)
    found = open_loop(model, cache, ALONE, edges)
    batch = collate(list(cache), view="logged")
    tokens = model.tokenize(batch)
    target = next_token_targets(tokens)
    nll = next_token_loss(model(batch, tokens), target.index, target.valid)
    assert found["nll"] == pytest.approx(nll.item(), rel=1e-5)


def test_more_processes_than_scenes_may_validate(
    data: Data, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second process alone: it has no scene, and nothing to add to what the first one found.
    monkeypatch.setattr(validation, "add_up", lambda ranks, tensors: None)
    found = open_loop(
        state.model.eval(), SceneCache(data.cache).select([0]), Ranks(1, 2, CPU), 10**9
    )
    assert all(math.isnan(value) for value in found.values())


def open_loop(model: SMART, cache: SceneCache, ranks: Ranks, edges: int) -> Mapping[str, float]:
    found = validation.open_loop(
        model,
        cache,
        ranks,
        StopRequest(),
        edges_at_once=edges,
        label_smoothing=0.1,
        context=nullcontext,
    )
    assert found is not None
    return found


def test_validation_in_closed_loop_chooses_the_most_realistic(
    settings: Callable[..., PretrainConfig], data: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = settings(
        f"validation_data={data.cache}",
        f"validation_scenarios={data.scenarios}",
        "batch=8",
        "epochs=3",
        "open_loop.every_epochs=2",
        "open_loop.scenes=2",
        "closed_loop.every_epochs=2",
        "closed_loop.scenarios=2",
        "closed_loop.n_rollouts=2",
    )
    done = run(config, out)
    found = {line["epoch"]: line for line in read_log(out) if line["event"] == "validation"}
    assert list(found) == [2, 3]
    realism = {epoch: line["closed_loop/metametric"] for epoch, line in found.items()}
    assert all(0 < value < 1 for value in realism.values())
    assert "open_loop/loss" in found[2]
    assert done.progress.best == max(realism.values())
    assert realism[done.progress.best_step] == done.progress.best
    kept = json.loads((out / "best/trainer.json").read_text())
    assert kept["step"] == done.progress.best_step


def test_without_validation_there_is_no_best(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    assert run(settings("epochs=1", "batch=8"), tmp_path / "run").progress.best is None
    assert not (tmp_path / "run/best").exists()
    assert (tmp_path / "run/final").exists()


def test_holding_out_everything_leaves_nothing_to_train_on(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(WosacError, match="no scene is left to train on"):
        run(settings("validation_fraction=0.9999"), tmp_path / "run")


def test_absent_validation_scenarios_are_found_at_once(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(WosacError, match="nowhere"):
        run(settings(f"validation_scenarios={tmp_path / 'nowhere'}"), tmp_path / "run")
    assert not read_log(tmp_path / "run") if (tmp_path / "run/log.jsonl").exists() else True


def test_outside_the_main_thread_signals_are_left_alone(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    done: list[Outcome] = []
    config = settings("epochs=1", "batch=8")
    thread = threading.Thread(target=lambda: done.append(run(config, tmp_path / "run")))
    thread.start()
    thread.join()
    assert done[0].finished


def test_bfloat16_trains_too(settings: Callable[..., PretrainConfig], tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = settings("epochs=1", "batch=8", f"precision={precision}")
        run(config, tmp_path / precision)
        (losses[precision],) = (line["loss"] for line in read_log(tmp_path / precision))
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_a_small_model_learns_eight_scenes_by_heart(
    settings: Callable[..., PretrainConfig], data: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = settings(
        "batch=8",
        "epochs=58",
        "label_smoothing=0",
        "model.hidden_dim=96",
        "model.dropout=0",
        "model.history_drop=0",
        "average_decay=0.8",
        "optimizer.learning_rate=0.006",
        "optimizer.max_gradient_norm=1",
        "schedule.kind=constant",
        "schedule.warmup_epochs=5",
        f"validation_data={data.cache}",
        "open_loop.every_epochs=99",
    )
    run(config, out)
    first, *_, last = read_log(out)
    assert first["accuracy"] < 0.1
    assert last["open_loop/top1_accuracy"] > 0.9
    assert last["open_loop/nll"] < 0.5


# --------------------------------------------------------------------------------------------------
# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["pretrain", *map(str, arguments)], prog_name="smart-r1")


def arguments_of(config: PretrainConfig, folder: Path) -> list[str]:
    file = folder / "settings.yaml"
    file.write_text(to_yaml(config))
    return ["--config", str(file), "--device", "cpu"]


def test_the_command_trains_and_resumes(
    settings: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = arguments_of(settings(), tmp_path), tmp_path / "run"
    with monkeypatch.context() as patched:
        disturb(patched, 2, stop)
        stopped = invoke(*config, "--out", out, "--epochs", "1", "seed=3")
    assert stopped.exit_code == 130
    assert f"interrupted: the run is kept in {out}, and the same command" in stopped.stderr
    finished = invoke(*config, "--out", out, "--epochs", "1", "seed=3")
    assert finished.exit_code == 0, finished.stderr
    assert finished.stdout == f"training was finished, after 3 steps: {out / 'final'}\n"
    again = invoke(*config, "--out", out, "--epochs", "1", "seed=3")
    assert again.stdout == f"training was finished before, after 3 steps: {out / 'final'}\n"
    assert load_pretrain_config(out / "config.yaml", ()).seed == 3


def test_options_and_assignments_are_settings(data: Data, tmp_path: Path) -> None:
    result = invoke(
        *("--data", data.cache, "--vocabulary", data.vocabulary, "--model", "pico"),
        *("--val-data", data.cache, "--val-scenarios", data.scenarios),
        *("--epochs", "1", "--batch", "8", "--out", tmp_path / "run", "--device", "cpu"),
        *("batch=4", "model.dropout=0.2", "closed_loop.every_epochs=0"),
    )
    assert result.exit_code == 0, result.stderr
    config = load_pretrain_config(tmp_path / "run/config.yaml", ())
    assert (config.data, config.vocabulary) == (str(data.cache), str(data.vocabulary))
    assert config.validation_data == str(data.cache)
    assert config.validation_scenarios == str(data.scenarios)
    assert (config.epochs, config.batch) == (1, 4)
    assert config.model == dataclasses.replace(CONFIGS["pico"], dropout=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data must be set"),
        (["--data", "nowhere"], "nowhere: no prepared scenes are here"),
        (["--data", "nowhere", "--model", "giant"], "model must be one of pico, nano"),
        (["--data", "nowhere", "epoch=3"], "there is no setting epoch (did you mean epochs?)"),
        (["--data", "nowhere", "--device", "quantum"], "cannot compute on 'quantum'"),
    ],
)
def test_bad_usage_is_told_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("smart-r1: error: ")
    assert message in line


# --------------------------------------------------------------------------------------------------
# Several processes


def test_two_processes_give_the_gradients_of_one(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    # Batches of 3 and 1: shares of 2 and 1 scenes, then 1 and none. Without a warm-up of the
    # moments the first one is a tenth of the (clipped) gradient.
    config = settings(
        "model.dropout=0",
        "model.history_drop=0",
        "validation_fraction=0.4",
        "batch=4",
        "epochs=1",
        "checkpoint.every_minutes=0",
        "checkpoint.keep=9",
    )
    arguments = arguments_of(config, tmp_path)
    assert invoke(*arguments, "--out", tmp_path / "one").exit_code == 0
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "smart_r1.cli", "pretrain", *arguments, "--out", str(tmp_path / "two")),
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
    for name in one:
        if name.endswith("/exp_avg"):
            torch.testing.assert_close(10 * two[name], 10 * one[name], atol=1e-6, rtol=0)
    for ours, theirs in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        assert ours.pop("event") == theirs.pop("event")
        assert ours == pytest.approx(theirs, rel=1e-3)
