"""`smart-r1 recipe`: stages in sequence, their comparison, and how a recipe goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")
pytest.importorskip("safetensors")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from click.testing import CliRunner, Result  # noqa: E402
from training_fixtures import Data, lines_of, make_data, newest, stop  # noqa: E402

from smart_r1 import builtin, evaluate, recipe  # noqa: E402
from smart_r1.cli import main  # noqa: E402
from smart_r1.cli.recipe import recipe_text  # noqa: E402
from smart_r1.model.checkpoint import fingerprint, load_model  # noqa: E402
from smart_r1.recipe import (  # noqa: E402
    RecipeConfig,
    Summary,
    load_recipe_config,
    parts_of,
    recipe_yaml,
    run_recipe,
    stage_config,
)
from smart_r1.train import loop  # noqa: E402
from smart_r1.train.finetune import FinetuneConfig, load_finetune_config  # noqa: E402
from smart_r1.train.pretrain import load_pretrain_config  # noqa: E402
from smart_r1.train.sft import load_sft_config  # noqa: E402
from wosac_toolkit.behaviour import read_behaviours  # noqa: E402
from wosac_toolkit.compare import compare_runs, read_models  # noqa: E402
from wosac_toolkit.errors import WosacError  # noqa: E402
from wosac_toolkit.io.scenarios import write_scenarios  # noqa: E402
from wosac_toolkit.report import BEHAVIOUR_FILE, write_report  # noqa: E402
from wosac_toolkit.results import read_summary  # noqa: E402
from wosac_toolkit.simulation import write_file  # noqa: E402
from wosac_toolkit.synthetic import generate_scenarios  # noqa: E402

RECIPES = Path(__file__).parents[1] / "recipes"
N_SCENES = 4
N_EVALUATED = 3


# --------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("stages", "names", "keys"),
    [
        ("bc", ["1-bc"], ["bc"]),
        ("rft", ["1-rft"], ["rft"]),
        ("sft-rft-sft", ["1-sft", "2-rft", "3-sft"], ["sft", "rft", "sft2"]),
        (
            "bc-sft-rft-rft-sft",
            ["1-bc", "2-sft", "3-rft", "4-rft", "5-sft"],
            ["bc", "sft", "rft", "rft2", "sft2"],
        ),
    ],
)
def test_a_sequence_is_its_stages(stages: str, names: list[str], keys: list[str]) -> None:
    parts = parts_of(stages)
    assert [part.name for part in parts] == names
    assert [part.key for part in parts] == keys


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("", "'' in '' is no stage"),
        ("sft-rtf", "'rtf' in 'sft-rtf' is no stage .bc, sft, rft, joined by -"),
        ("sft--rft", "'' in 'sft--rft' is no stage"),
        ("sft rft", "'sft rft' in"),
        ("sft-bc", "bc trains a new model, and can only be the first stage"),
        ("bc-bc", "can only be the first stage"),
        ("sft-sft-sft-sft-sft", "at most 7 stages, and 4 of a kind"),
        ("bc-sft-rft-sft-rft-sft-rft-sft", "at most 7 stages"),
    ],
)
def test_bad_sequences(stages: str, message: str) -> None:
    with pytest.raises(WosacError, match=message):
        parts_of(stages)


def test_the_defaults_are_the_papers() -> None:
    config = load_recipe_config(None, ())
    assert config.stages == "bc-sft-rft-sft"
    assert (config.bc.epochs, config.sft.epochs, config.sft2.epochs) == (64, 16, 16)
    assert config.rft.policy.algo == "mpo"
    assert (config.rft.policy.alpha, config.rft.policy.beta) == (0.77, 0.04)
    assert (config.evaluation.n_rollouts, config.evaluation.challenge) == (32, "2025")


def test_further_stages_of_a_kind_have_the_settings_of_the_first_but_for_what_is_said(
    tmp_path: Path,
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "sft: {epochs: 5, optimizer: {learning_rate: 1e-3}}\n"
        "sft2: {optimizer: {weight_decay: 0.5}}\n"
        "rft: {policy: {algo: mloo, n_rollouts: 4}}\n"
    )
    config = load_recipe_config(file, ["sft3.epochs=2", "sft.batch=7", "rft2.policy.algo=grpo"])
    assert config.sft.optimizer.weight_decay == 0.01
    assert config.sft2 == dataclasses.replace(
        config.sft, optimizer=dataclasses.replace(config.sft.optimizer, weight_decay=0.5)
    )
    assert config.sft3 == dataclasses.replace(config.sft, epochs=2)
    assert (config.sft.epochs, config.sft.batch) == (5, 7)
    # What follows from the algorithm follows from each one's own.
    assert (config.rft.policy.credit, config.rft.policy.kl) == ("leave_one_out", "k2")
    assert (config.rft2.policy.credit, config.rft2.policy.kl) == ("single", "k3")
    assert config.rft2.policy.n_rollouts == 4


def test_settings_are_written_and_read_back(tmp_path: Path) -> None:
    given = ["stages=sft-rft-sft", "sft2.epochs=3", "rft.policy.algo=ppo", "evaluation.limit=9"]
    config = load_recipe_config(None, given)
    file = tmp_path / "config.yaml"
    file.write_text(recipe_yaml(config))
    assert load_recipe_config(file, ()) == config
    # Only of the stages that there are, and nothing of what the recipe fills in.
    content = yaml.safe_load(file.read_text())
    assert {"sft", "rft", "sft2"} <= set(content)
    assert not {"bc", "sft3", "rft2"} & set(content)
    assert not {"seed", "data", "begins_with", "scenarios"} & set(content["sft"] | content["rft"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sft.data=cache", "sft.data is filled in by the recipe .set scenarios or data"),
        ("rft.scenarios=x", "rft.scenarios is filled in"),
        ("sft2.begins_with=x", "sft2.begins_with is filled in"),
        ("bc.seed=3", "bc.seed is filled in"),
        ("sft.epohcs=3", "there is no setting sft.epohcs .did you mean sft.epochs"),
        ("sft.epochs=x", "sft.epochs must be a whole number"),
        ("sft5.epochs=1", "there is no setting sft5"),
        ("preset=first", "there is no setting preset"),
        ("evaluation.limit=1", "evaluation.limit must be at least 2"),
        ("evaluation.n_rollouts=0", "must be positive"),
        ("evaluation.challenge=1999", "1999"),
        ("seed=-1", "seed must not be negative"),
        ("begins_with=model", "bc trains a new model"),
    ],
)
def test_bad_settings_are_named(assignment: str, message: str) -> None:
    with pytest.raises(WosacError, match=message):
        load_recipe_config(None, ["stages=bc-sft-rft-sft", assignment])


def test_a_stage_gets_scenes_model_and_a_seed_of_its_own(tmp_path: Path) -> None:
    config = load_recipe_config(
        None,
        ["stages=sft-rft-sft", "scenarios=t", "validation_scenarios=v", "seed=5", "sft2.epochs=3"],
    )
    first, second, third = (
        stage_config(config, part, tmp_path, f"model-{part.number}")
        for part in parts_of(config.stages)
    )
    assert [one.seed for one in (first, second, third)] == [5, 6, 7]
    assert [getattr(one, "begins_with", "") for one in (first, second, third)] == [
        "model-1",
        "model-2",
        "model-3",
    ]
    assert getattr(first, "data", "") == str(tmp_path / "cache")
    assert getattr(second, "scenarios", "") == "t"
    assert {one.validation_scenarios for one in (first, second, third)} == {"v"}
    assert (first.epochs, third.epochs) == (16, 3)


@pytest.mark.parametrize(
    "file", [builtin.RECIPE, *sorted(RECIPES.glob("smart_r1_*.yaml"))], ids=lambda file: file.stem
)
@pytest.mark.parametrize("stages", ["bc-sft-rft-sft", "sft-rft-sft", "rft"])
def test_the_recipes_that_come_along_are_read(file: Path, stages: str) -> None:
    config = load_recipe_config(file, [f"stages={stages}"])
    assert isinstance(config.rft, FinetuneConfig)
    assert config.scenarios is None  # Paths are the user's.


def test_the_recipe_of_the_paper() -> None:
    config = load_recipe_config(RECIPES / "smart_r1_womd.yaml", ())
    assert config.stages == "bc-sft-rft-sft"
    assert config.bc.model.hidden_dim == 128
    assert (config.bc.epochs, config.sft.epochs, config.sft2.epochs) == (64, 16, 16)
    policy = config.rft.policy
    assert (policy.algo, policy.credit, policy.kl) == ("mpo", "group", "k3")
    assert (policy.alpha, policy.beta) == (0.77, 0.04)


def test_reinforcement_in_the_recipe_of_the_package_is_that_of_its_finetune() -> None:
    own = load_recipe_config(builtin.RECIPE, ()).rft
    other = load_finetune_config(builtin.FINETUNE, ["begins_with=x", "scenarios=x"])
    # But for validation, since a recipe evaluates after each stage.
    same = {"begins_with": "x", "scenarios": "x", "closed_loop": other.closed_loop}
    assert dataclasses.replace(own, **same) == other


# --------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Four synthetic scenes of two agents each."""
    return make_data(tmp_path_factory.mktemp("recipe"), N_SCENES)


@pytest.fixture(scope="module")
def settings(data: Data) -> Callable[..., RecipeConfig]:
    """A function that makes settings: one epoch of two steps in each stage, with a pico model."""
    common = "epochs: 1, batch: 2, closed_loop: {every_epochs: 0}, log: {every_steps: 1}"
    file = data.cache.parent / "recipe.yaml"
    file.write_text(
        f"scenarios: {data.scenarios}\n"
        f"validation_scenarios: {data.scenarios}\n"
        f"evaluation: {{n_rollouts: 2, limit: {N_EVALUATED}}}\n"
        f"bc: {{{common}, model: pico, vocabulary: {data.vocabulary}, validation_fraction: 0}}\n"
        f"sft: {{{common}, validation_fraction: 0}}\n"
        f"rft: {{{common}, policy: {{n_rollouts: 2, alpha: null}}}}\n"
    )

    def make(*assignments: str) -> RecipeConfig:
        return load_recipe_config(file, assignments)

    return make


def write_plain_report(*args: Any, **kwargs: Any) -> None:
    """Without pictures, which take most of a report's time."""
    write_report(*args, **{**kwargs, "scenes": 0, "worst": 0})


@pytest.fixture(scope="module", autouse=True)
def plain_report() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe, "write_report", write_plain_report)
        yield


@pytest.fixture(scope="module")
def unbroken(
    settings: Callable[..., RecipeConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of `bc-sft-rft`."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = run_recipe(settings("stages=bc-sft-rft"), out, device="cpu")
    assert done.summary is not None
    assert not done.finished_before
    return out


NAMES = ["1-bc", "2-sft", "3-rft"]


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_recipe_leaves_what_it_says(unbroken: Path) -> None:
    assert files_of(unbroken) == {
        *NAMES,
        *("cache", "rollouts", "scores"),
        *("config.yaml", "seconds.json", "summary.json", "report.html"),
    }
    for name in NAMES:
        assert {"config.yaml", "log.jsonl", "checkpoints", "final"} <= files_of(unbroken / name)
        assert len(list((unbroken / "rollouts" / name).glob("*.npz"))) == N_EVALUATED
        scores = {"summary.json", "scores.parquet", BEHAVIOUR_FILE}
        assert files_of(unbroken / "scores" / name) == scores
    page = (unbroken / "report.html").read_text()
    assert all(name in page for name in NAMES)
    table = page.split('<h2 id="behaviour">')[1].split("</table>")[0]
    for quantity in ("Speed ratio", "Stall rate", "Jerk", "Diversity", "Realism 2024"):
        assert f'<th scope="row">{quantity}' in table
    jerk = [
        sum(one.jerk for one in read_behaviours(unbroken / "scores" / name / BEHAVIOUR_FILE))
        for name in NAMES
    ]
    assert all(f"{value / N_EVALUATED:.4f}" in table for value in jerk)


def test_each_stage_begins_with_the_last_one_s_model(unbroken: Path) -> None:
    bc = load_pretrain_config(unbroken / "1-bc/config.yaml", ())
    sft = load_sft_config(unbroken / "2-sft/config.yaml", ())
    rft = load_finetune_config(unbroken / "3-rft/config.yaml", ())
    assert sft.begins_with == str(unbroken / "1-bc/final")
    assert rft.begins_with == str(unbroken / "2-sft/final")
    assert bc.data == sft.data == str(unbroken / "cache")
    assert [bc.seed, sft.seed, rft.seed] == [817, 818, 819]
    models = [fingerprint(unbroken / name / "final") for name in NAMES]
    assert len(set(models)) == 3


def without_seconds(content: Any) -> Any:
    if isinstance(content, dict):
        items = content.items()
        return {k: without_seconds(v) for k, v in items if not k.endswith("seconds")}
    return [without_seconds(v) for v in content] if isinstance(content, list) else content


def test_the_summary_says_what_the_scores_say(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text())
    assert summary["stages"] == "bc-sft-rft"
    assert (summary["n_scenes"], summary["n_rollouts"]) == (N_EVALUATED, 2)
    assert [model["name"] for model in summary["models"]] == NAMES
    assert summary["models"][0]["changes"] == {}
    folders = [unbroken / "scores" / name for name in NAMES]
    against = {one.name: one for one in compare_runs(read_models(folders)).against}
    for model, folder in zip(summary["models"], folders, strict=True):
        run = read_summary(folder)
        assert model["scores"]["realism_meta_metric"] == run.metrics["metametric"]
        assert model["scores"]["min_ade"] == run.buckets["min_ade"]
        assert model["fingerprint"] == fingerprint(Path(model["checkpoint"]))
        assert (model["steps"], model["training_seconds"] > 0) == (2, True)
        assert model["evaluation_seconds"] > 0
        if model["name"] in against:
            change = model["changes"]["realism_meta_metric"]
            expected = against[model["name"]].differences["realism_meta_metric"]
            assert change["value"] == expected.difference.value
            assert (change["low"], change["p"]) == (expected.difference.low, expected.p)


def test_the_summary_tells_what_is_outside_the_reward(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text())
    first, second, _ = summary["models"]
    rows = {row["quantity"]["name"]: row for row in second["behaviour"]["rows"]}
    assert {"min_ade", "stall_rate", "wrong_way_rate", "diversity", "realism_2024"} <= set(rows)
    for name, part in (("2-sft", "simulated"), ("1-bc", "reference")):
        measured = read_behaviours(unbroken / "scores" / name / BEHAVIOUR_FILE)
        assert len(measured) == N_EVALUATED
        mean = sum(one.jerk for one in measured) / N_EVALUATED
        assert rows["jerk"][part]["value"] == pytest.approx(mean)
    assert not first["behaviour"]["has_reference"]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_recipe_is_left_alone(
    settings: Callable[..., RecipeConfig], unbroken: Path
) -> None:
    config = settings("stages=bc-sft-rft")
    before = times(unbroken)
    done = run_recipe(config, unbroken, device="cpu")
    assert done.finished_before
    assert done.summary is not None
    assert done.summary.to_json() == (unbroken / "summary.json").read_text()
    # Opening a lock and writing the same settings change nothing that is read.
    changed = {path.name for path, time in times(unbroken).items() if before.get(path) != time}
    assert changed <= {"config.yaml", ".lock"}


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def at_call(number: int, how: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    """`inner`, before the `number`-th call of which something happens."""
    calls = itertools.count(1)

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            how()
        return inner(*args, **kwargs)

    return disturbed


def disturbances() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """One after the other, what a recipe of three stages can be interrupted at."""
    yield recipe, "prepare_dataset", interrupt
    for _ in NAMES:
        yield loop, "_advance", at_call(1, stop, loop._advance)
        yield evaluate, "write_file", at_call(2, interrupt, write_file)
        yield recipe, "score_dataset", interrupt
        yield recipe, "measure_dataset", interrupt
    yield recipe, "write_report", interrupt


def test_an_interrupted_recipe_that_goes_on_is_the_unbroken_one(
    settings: Callable[..., RecipeConfig],
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = settings("stages=bc-sft-rft"), tmp_path / "run"
    for number, (module, name, disturbed) in enumerate(disturbances()):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, disturbed)
            try:
                done = run_recipe(config, out, device="cpu")
            except KeyboardInterrupt:
                assert name != "_advance"
            else:  # A stage that is asked to stop is saved.
                assert (name, done.summary) == ("_advance", None), f"{number}: not interrupted"
        assert not (out / "summary.json").exists()
    assert run_recipe(config, out, device="cpu").summary is not None
    assert files_of(out) == files_of(unbroken)
    for name in NAMES:
        assert lines_of(out / name) == lines_of(unbroken / name)
        for file in ("model.safetensors", "trainer.safetensors"):
            one, other = (newest(folder / name) / file for folder in (out, unbroken))
            assert one.read_bytes() == other.read_bytes()
        for rollouts in (unbroken / "rollouts" / name).glob("*.npz"):
            assert (out / "rollouts" / name / rollouts.name).read_bytes() == rollouts.read_bytes()
    one, other = (
        without_seconds(json.loads((folder / "summary.json").read_text().replace(str(folder), "")))
        for folder in (out, unbroken)
    )
    assert one == other


def test_a_recipe_can_be_lengthened_and_not_otherwise_changed(
    settings: Callable[..., RecipeConfig], unbroken: Path, tmp_path: Path
) -> None:
    out, start = tmp_path / "run", f"begins_with={unbroken / '1-bc/final'}"
    run_recipe(settings("stages=rft", start), out, device="cpu")
    first = times(out / "1-rft") | times(out / "scores")
    for assignments, name in (
        (("stages=sft-rft",), "stages"),
        (("stages=rft", "rft.epochs=2"), "rft.epochs"),
        (("stages=rft", "evaluation.n_rollouts=3"), "evaluation.n_rollouts"),
        (("stages=rft", "seed=3"), "seed"),
    ):
        with pytest.raises(WosacError, match=f"a recipe with another {name}") as caught:
            run_recipe(settings(start, *assignments), out, device="cpu")
        assert caught.value.where == str(out)
    # What a stage may change when it goes on may change here too.
    config = settings("stages=rft-rft", start, "rft2.policy.algo=mloo", "rft.log.every_steps=7")
    done = run_recipe(config, out, device="cpu")
    assert done.summary is not None
    assert [model.name for model in done.summary.models] == ["0-start", "1-rft", "2-rft"]
    assert done.summary.models[0].steps is None
    again = times(out / "1-rft") | times(out / "scores")
    assert {path: again[path] for path in first} == first
    assert load_finetune_config(out / "2-rft/config.yaml", ()).policy.algo == "mloo"
    with pytest.raises(WosacError, match="a recipe with another stages"):
        run_recipe(settings("stages=rft", start), out, device="cpu")


def test_prepared_scenes_are_taken_where_they_are_named(
    settings: Callable[..., RecipeConfig], data: Data, unbroken: Path, tmp_path: Path
) -> None:
    config = settings("stages=sft", f"data={data.cache}", f"begins_with={unbroken / '1-bc/final'}")
    config = dataclasses.replace(config, scenarios=None)
    assert run_recipe(config, tmp_path / "run", device="cpu").summary is not None
    assert not (tmp_path / "run/cache").exists()
    # The seed is the first stage's; but for it, it is the second stage of the other recipe.
    assert load_sft_config(tmp_path / "run/1-sft/config.yaml", ()).data == str(data.cache)


# --------------------------------------------------------------------------------------------------
# Several processes


def test_stages_are_trained_by_several_processes(
    settings: Callable[..., RecipeConfig], unbroken: Path, tmp_path: Path
) -> None:
    config = settings("stages=sft", f"begins_with={unbroken / '1-bc/final'}")
    done = run_recipe(config, tmp_path / "run", device="cpu", processes=2)
    assert done.summary is not None
    assert done.summary.models[-1].steps == 2
    load_model(tmp_path / "run/1-sft/final")


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that puts a program of so many lines of shell in torchrun's place."""
    if os.name != "posix":
        pytest.skip("needs a shell")

    def put(text: str) -> Path:
        program = tmp_path / "launcher"
        program.write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS $@" > {tmp_path / "told"}\n{text}\n')
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return tmp_path / "told"

    return put


@pytest.fixture
def rft_alone(settings: Callable[..., RecipeConfig], unbroken: Path) -> RecipeConfig:
    return settings(
        "stages=rft",
        f"begins_with={unbroken / '1-bc/final'}",
        "evaluation.n_rollouts=1",
        "evaluation.limit=2",
    )


def test_processes_that_fail_are_told_and_nothing_is_evaluated(
    rft_alone: RecipeConfig,
    tmp_path: Path,
    launcher: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, out = launcher("exit 3"), tmp_path / "run"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(WosacError, match="1-rft ended with exit code 3 in 64 processes"):
        run_recipe(rft_alone, out, device="cpu", processes=64)
    threads, *arguments = told.read_text().split()
    assert threads == "1"
    assert arguments[:5] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "64",
    ]
    assert arguments[5:8] == ["-m", "smart_r1.cli", "finetune"]
    assert arguments[-4:] == ["--out", str(out / "1-rft"), "--device", "cpu"]
    assert files_of(out / "scores") == {"0-start"}


def test_processes_are_asked_to_stop_when_the_recipe_is(
    rft_alone: RecipeConfig, tmp_path: Path, launcher: Callable[[str], Path]
) -> None:
    saved = tmp_path / "saved"
    told = launcher(f"trap 'touch {saved}; exit 1' TERM\nwhile true; do sleep 0.05; done")

    def when_started() -> None:
        while not told.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=when_started, daemon=True)
    thread.start()
    assert run_recipe(rft_alone, tmp_path / "run", device="cpu", processes=2).summary is None
    thread.join()
    assert saved.exists()


def test_a_recipe_is_not_started_by_torchrun(
    settings: Callable[..., RecipeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WosacError, match=r"starts its processes itself \(--processes N"):
        run_recipe(settings("stages=bc"), tmp_path / "run")


# --------------------------------------------------------------------------------------------------
# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["recipe", *map(str, arguments)], prog_name="smart-r1")


def test_the_command_prints_tables_and_results_for_machines(
    settings: Callable[..., RecipeConfig], unbroken: Path
) -> None:
    arguments = ("bc-sft-rft", "--config", unbroken / "config.yaml", "--out", unbroken)
    table = invoke(*arguments, "--device", "cpu")
    assert table.exit_code == 0, table.stderr
    assert table.stderr.splitlines()[-1].endswith("finished; nothing was done again")
    lines = table.stdout.splitlines()
    assert lines[0].split() == [
        *("stage", "realism", "kinematic", "interactive", "map-based", "minADE"),
        *("difference", "95", "%", "interval"),
    ]
    assert [line.split()[0] for line in lines[2:5]] == NAMES
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["behaviour"] == ["behaviour", "log", *NAMES, "watch"]
    assert {"min_ade", "speed_ratio", "stall_rate", "wrong_way_rate", "realism_2024"} <= set(rows)
    measured = [read_behaviours(unbroken / "scores" / name / BEHAVIOUR_FILE) for name in NAMES]
    jerk = [sum(one.jerk for one in scenes) / N_EVALUATED for scenes in measured]
    assert rows["jerk"][3:6] == [f"{value:.4f}" for value in jerk]
    summary = json.loads((unbroken / "summary.json").read_text())
    change = summary["models"][1]["changes"]["realism_meta_metric"]
    assert f"{change['value']:+.4f}  [{change['low']:+.4f}, {change['high']:+.4f}]" in lines[3]
    as_json = invoke(*arguments, "--device", "cpu", "--format", "json")
    assert json.loads(as_json.stdout) == summary
    as_csv = invoke(*arguments, "--device", "cpu", "--format", "csv")
    header, first, second, _ = as_csv.stdout.splitlines()
    assert header == "stage,realism,kinematic,interactive,map-based,minADE,difference,low,high"
    assert first.startswith("1-bc,")
    assert first.endswith(",,,")
    assert second.endswith(f"{change['value']},{change['low']},{change['high']}")


def test_a_single_model_is_told_without_differences_and_watched_against_the_log(
    settings: Callable[..., RecipeConfig], unbroken: Path
) -> None:
    summary = run_recipe(settings("stages=bc-sft-rft"), unbroken, device="cpu").summary
    assert summary is not None
    (model,) = models = summary.models[:1]
    text = recipe_text(dataclasses.replace(summary, models=models), "table")
    assert "difference" not in text
    lines = text.splitlines()
    assert len(lines[2].split()) == len(lines[0].split()) == 6
    marked = {line.split()[0] for line in lines[8:] if line.endswith(" 1-bc")}
    assert marked == {row.quantity.name for row in model.behaviour.rows if "log" in row.watch}
    assert "jerk" in marked
    assert lines[-1].startswith("watch: models that differ from the log")


def test_the_command_typed_just_so_takes_what_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As it is but for its size.
    few = {"training": (1, 20_001), "validation": (2, 20_002)}
    monkeypatch.setattr(builtin, "_SCENES", few)
    small = ("rft.policy.n_rollouts=2", "evaluation.n_rollouts=1")
    result = invoke("rft", *small)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "finished: runs/recipe/report.html"
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["0-start", "1-rft"]
    out = Path("runs/recipe")
    own = load_recipe_config(builtin.RECIPE, ["stages=rft", *small])
    assert (out / "config.yaml").read_text() == recipe_yaml(own)
    config = load_finetune_config(out / "1-rft/config.yaml", ())
    assert config.begins_with == str(builtin.MODEL)
    assert config.scenarios == "runs/recipe/scenarios/training"
    assert config.policy == own.rft.policy
    assert read_summary(out / "scores/0-start").n_scenarios == 2
    again = invoke("rft", *small)
    assert again.stderr.splitlines()[-1].endswith("finished; nothing was done again")
    assert again.stdout == result.stdout


def test_with_scenes_or_a_file_the_lengths_are_not_those_of_the_package(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[RecipeConfig] = []

    def run(config: RecipeConfig, *args: Any, **kwargs: Any) -> Any:
        taken.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "run_recipe", run)
    file = tmp_path / "recipe.yaml"
    file.write_text("sft: {epochs: 3}\n")
    for arguments in (
        (),
        ("--checkpoint", builtin.MODEL, "sft.batch=2"),
        ("--scenarios", data.scenarios, "--val-scenarios", data.scenarios),
        (f"data={data.cache}",),
        ("--config", file),
    ):
        assert invoke("sft", *arguments).exit_code == 130
    assert [config.sft.epochs for config in taken] == [1, 1, 16, 16, 3]
    assert (taken[1].sft.batch, taken[1].begins_with) == (2, str(builtin.MODEL))


def test_the_command_is_interrupted_and_resumes(
    settings: Callable[..., RecipeConfig],
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    arguments = (
        *("rft", "--config", unbroken / "config.yaml", "--out", out, "--device", "cpu"),
        *("--checkpoint", unbroken / "2-sft/final"),
    )
    for module, name, disturbed in (
        (loop, "_advance", at_call(1, stop, loop._advance)),
        (recipe, "score_dataset", interrupt),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, disturbed)
            stopped = invoke(*arguments)
        assert stopped.exit_code == 130
        *_, last = stopped.stderr.splitlines()
        kept = f"what is done is kept in {out}, and the same command resumes"
        assert last == f"smart-r1: interrupted: {kept}"
        assert stopped.stdout == ""
    done = invoke(*arguments)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"finished: {out / 'report.html'}"
    changed = invoke(*arguments, "rft.batch=3")
    assert changed.exit_code == 2
    assert "the folder holds a recipe with another rft.batch" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft-rtf"], "'rtf' in 'sft-rtf' is no stage"),
        (["sft", "--scenarios", "SCENES"], "sft needs a model to begin with (--checkpoint DIR"),
        (["bc", "--checkpoint", "MODEL"], "bc trains a new model"),
        (["sft", "--checkpoint", "nowhere"], "nowhere"),
        (["bc", "--scenarios", "SCENES"], "there are no scenes to evaluate on (--val-scenarios"),
        (["bc", "--val-scenarios", "SCENES"], "bc needs scenes to train on (--scenarios PATH)"),
        (["bc", "--scenarios", "nowhere", "--val-scenarios", "SCENES"], "nowhere"),
        (["bc", "--scenarios", "SCENES", "--val-scenarios", "nowhere"], "nowhere"),
        (["bc", "--scenarios", "SCENES", "--val-scenarios", "ONE"], "two scenes or more"),
        (["rft", "--checkpoint", "MODEL", "rft.reward=fun"], "unknown reward 'fun'"),
        (["bc", "sft.epoch=3"], "there is no setting sft.epoch"),
    ],
)
def test_bad_usage_is_told_in_one_line_and_leaves_nothing(
    data: Data, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_scenarios(tmp_path / "one", generate_scenarios(1, 0), 1)
    places = {"SCENES": data.scenarios, "MODEL": builtin.MODEL, "ONE": tmp_path / "one"}
    result = invoke(*(places.get(a, a) for a in arguments), "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("smart-r1: error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(
    settings: Callable[..., RecipeConfig], unbroken: Path
) -> None:
    config = settings("stages=bc")
    with pytest.raises(WosacError, match="the folder holds a run of another kind"):
        run_recipe(config, unbroken / "1-bc", device="cpu")


def test_a_summary_is_json_without_nan(unbroken: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((unbroken / "summary.json").read_text(), parse_constant=refuse)
    names = [field.name for field in dataclasses.fields(Summary)]
    assert list(json.loads((unbroken / "summary.json").read_text())) == names
