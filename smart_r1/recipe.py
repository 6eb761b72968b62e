"""Recipes: stages of training, one after the other, each evaluated on the same scenes.

SMART-R1 (arXiv 2509.23993) is `bc-sft-rft-sft`. Any sequence of stages is a recipe, and leaves

    RUN/config.yaml          the settings, those of every stage among them
    RUN/scenarios/           synthetic scenes, where none were named
    RUN/cache/               the scenes that `bc` and `sft` train on, prepared
    RUN/1-sft/, 2-rft/ ...   the run of each stage, see `smart_r1.train.state`
    RUN/rollouts/0-start/, 1-sft/ ...
                             what the model does before the first stage and after each one
    RUN/scores/0-start/, 1-sft/ ...
                             scores of these as `wosac score` writes them, and behaviour.parquet
    RUN/seconds.json         how long each part took
    RUN/summary.json         `Summary`
    RUN/report.html          `wosac report` of the scores

A recipe that begins with `bc` has no start, and what is compared with it is compared with its
first stage. What is finished is not done again; what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from smart_r1 import builtin
from smart_r1.cache import prepare_dataset
from smart_r1.evaluate import Policy, rollout_dataset
from smart_r1.model.checkpoint import fingerprint, load_model
from smart_r1.simulate import Sampling
from smart_r1.train import state as run_state
from smart_r1.train.config import differences, load_config, to_yaml
from smart_r1.train.distributed import joined
from smart_r1.train.finetune import FinetuneConfig, finetune
from smart_r1.train.imitation import ImitationConfig
from smart_r1.train.interrupt import stop_requests
from smart_r1.train.policy_config import resolved
from smart_r1.train.pretrain import PretrainConfig, pretrain
from smart_r1.train.sft import SftConfig, sft
from smart_r1.train.stage import PRESETS
from wosac_toolkit.behaviour import (
    DEFAULT_CHALLENGES,
    BehaviourReport,
    measure_dataset,
    read_behaviours,
    watch,
    write_behaviours,
)
from wosac_toolkit.challenge import get_challenge
from wosac_toolkit.compare import Difference, compare_runs, read_models
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.io.scenarios import index_scenarios, load_scenarios
from wosac_toolkit.io.tfrecord import find_shards
from wosac_toolkit.report import BEHAVIOUR_FILE, write_report
from wosac_toolkit.results import field_tree, read_summary
from wosac_toolkit.reward import get_reward
from wosac_toolkit.scoring import score_dataset
from wosac_toolkit.workers import n_cpus

SCHEMA_VERSION = 1

Kind = Literal["bc", "sft", "rft"]
StageConfig = PretrainConfig | SftConfig | FinetuneConfig

_MOST_STAGES = 7  # With the start as many as a report has models.
_MOST_OF_A_KIND = 4
_MOST_FINDINGS = 20
_LOOK_SECONDS = 0.2

_SECONDS = "seconds.json"

# The settings of each stage of a kind.
_KEYS: Mapping[str, Kind] = {
    "bc": "bc",
    **{f"sft{n}": "sft" for n in ("", 2, 3, 4)},
    **{f"rft{n}": "rft" for n in ("", 2, 3, 4)},
}

_COMMANDS = {"bc": "pretrain", "sft": "sft", "rft": "finetune"}

# What the recipe gives to each stage, in place of what is here.
_BC = PretrainConfig(data="")
_SFT = SftConfig(begins_with="", data="", epochs=16)
_RFT = FinetuneConfig(begins_with="", scenarios="")
_DEFAULTS: Mapping[Kind, StageConfig] = {"bc": _BC, "sft": _SFT, "rft": _RFT}
_FILLED_IN = {
    "seed": "seed",
    "data": "scenarios or data",
    "validation_data": "validation_data",
    "scenarios": "scenarios",
    "validation_scenarios": "validation_scenarios",
    "begins_with": "begins_with",
}


# --------------------------------------------------------------------------------------------------
# Settings


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the model is evaluated before the first stage and after each one.

    Attributes:
        limit: at most so many of the validation scenes, the first in the files.
        n_rollouts: of each.
        top_k: tokens are drawn among so many of the most probable.
        temperature: of the draw.
        seed: of the draw, the same for all models.
        challenge: version of the metric.
    """

    limit: int | None = None
    n_rollouts: int = 32
    top_k: int = 48
    temperature: float = 1.0
    seed: int = 0
    challenge: str = "2025"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise WosacError(f"evaluation.limit must be at least 2, is {self.limit}")
        if min(self.n_rollouts, self.top_k) < 1 or not self.temperature > 0 or self.seed < 0:
            raise WosacError(
                "evaluation: n_rollouts, top_k and temperature must be positive, seed not negative"
            )
        get_challenge(self.challenge)


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Settings of a recipe.

    Those of a stage are what its own command takes, but for the scenes, the model to begin with
    and the seed. The second `sft` of a sequence has the settings of the first but for what `sft2`
    names, the third but for what `sft3` names; so has `rft`.

    Attributes:
        stages: `bc`, `sft` and `rft`, joined by `-`; `bc` can only be the first.
        scenarios: scenes to train on, TFRecords; None for synthetic ones, made in the run.
        validation_scenarios: scenes to evaluate on, TFRecords; None likewise.
        data: the scenes to train on as `smart-r1 prepare` has prepared them, for `bc` and `sft`;
            None: they are prepared in the run.
        validation_data: prepared scenes for their validation by the next token; None: they hold
            out some of theirs.
        begins_with: folder of the model to begin with; None with synthetic scenes for the small
            one of the package.
        seed: of the first stage; the next one has the next.
        evaluation: of the models.
        bc, sft, rft: settings of the stages.
        sft2, sft3, sft4, rft2, rft3, rft4: of the further ones of a kind.
    """

    stages: str = "bc-sft-rft-sft"
    scenarios: str | None = None
    validation_scenarios: str | None = None
    data: str | None = None
    validation_data: str | None = None
    begins_with: str | None = None
    seed: int = 817
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    bc: PretrainConfig = _BC
    sft: SftConfig = _SFT
    rft: FinetuneConfig = _RFT
    sft2: SftConfig = _SFT
    sft3: SftConfig = _SFT
    sft4: SftConfig = _SFT
    rft2: FinetuneConfig = _RFT
    rft3: FinetuneConfig = _RFT
    rft4: FinetuneConfig = _RFT

    def __post_init__(self) -> None:
        parts = parts_of(self.stages)
        if self.seed < 0:
            raise WosacError(f"seed must not be negative, is {self.seed}")
        if self.begins_with is not None and parts[0].kind == "bc":
            raise WosacError(
                "bc trains a new model, and begins with no other",
                mend="leave out the checkpoint, or bc",
            )
        for part in parts:
            settings, default = getattr(self, part.key), _DEFAULTS[part.kind]
            for name, instead in _FILLED_IN.items():
                if getattr(settings, name, None) != getattr(default, name, None):
                    what = f"{part.key}.{name} is filled in by the recipe"
                    raise WosacError(what, mend=f"set {instead}, outside {part.key}")


@dataclass(frozen=True, slots=True)
class Part:
    """A stage in its place.

    Attributes:
        number: its place, from 1.
        kind: of the stage.
        key: its settings in `RecipeConfig`.
    """

    number: int
    kind: Kind
    key: str

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.number}-{self.kind}"


def parts_of(stages: str) -> tuple[Part, ...]:
    """The stages of a sequence such as `sft-rft-sft`.

    Raises:
        WosacError: there is no such sequence.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    parts: list[Part] = []
    seen: Counter[str] = Counter()
    for number, word in enumerate(stages.split("-"), start=1):
        kind = next((kind for kind in kinds if kind == word), None)
        if kind is None:
            raise WosacError(
                f"{word!r} in {stages!r} is no stage",
                mend=f"{', '.join(kinds)}, joined by -, such as sft-rft-sft",
            )
        seen[kind] += 1
        if kind == "bc" and number > 1:
            raise WosacError(
                f"bc trains a new model, and can only be the first stage, not as in {stages!r}"
            )
        parts.append(Part(number, kind, kind if seen[kind] == 1 else f"{kind}{seen[kind]}"))
    if len(parts) > _MOST_STAGES or max(seen.values()) > _MOST_OF_A_KIND:
        raise WosacError(
            f"a recipe has at most {_MOST_STAGES} stages, and {_MOST_OF_A_KIND} of a kind",
            mend="go on with another recipe, --checkpoint RUN/<last stage>/final",
        )
    return tuple(parts)


def load_recipe_config(file: Path | None, assignments: Sequence[str]) -> RecipeConfig:
    """Settings from a YAML file and `key=value`, with those of the algorithms filled in."""
    first = load_config(RecipeConfig, file, assignments, presets=PRESETS)
    # Once more, now that it is known what the further stages of a kind begin with.
    base = dataclasses.replace(first, **{key: getattr(first, kind) for key, kind in _KEYS.items()})
    config = load_config(
        RecipeConfig,
        file,
        ["preset=first", *assignments],
        presets={**PRESETS, RecipeConfig: {"first": base}},
    )
    learning = {key: getattr(config, key) for key, kind in _KEYS.items() if kind == "rft"}
    return dataclasses.replace(
        config,
        **{
            key: dataclasses.replace(settings, policy=resolved(settings.policy))
            for key, settings in learning.items()
        },
    )


def recipe_yaml(config: RecipeConfig) -> str:
    """The settings that count, as `load_recipe_config` reads them."""
    import yaml  # type: ignore[import-untyped]

    used = {part.key for part in parts_of(config.stages)}
    content = dataclasses.asdict(config)
    for key in _KEYS:
        if key not in used:
            del content[key]
            continue
        for name in _FILLED_IN:
            content[key].pop(name, None)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def stage_config(
    config: RecipeConfig, part: Part, out: Path, begins_with: str | None
) -> StageConfig:
    """The settings of a stage, as its own command takes them.

    Args:
        config: with scenes.
        part: which stage.
        out: folder of the recipe.
        begins_with: folder of the model; None for `bc`.
    """
    settings: StageConfig = getattr(config, part.key)
    filled: dict[str, Any] = {
        "seed": config.seed + part.number - 1,
        "validation_scenarios": config.validation_scenarios,
    }
    if isinstance(settings, ImitationConfig):
        filled["data"] = config.data or str(out / "cache")
        filled["validation_data"] = config.validation_data
    else:
        filled["scenarios"] = config.scenarios
    if begins_with is not None:
        filled["begins_with"] = begins_with
    return dataclasses.replace(settings, **filled)


# --------------------------------------------------------------------------------------------------
# What comes out


@dataclass(frozen=True, slots=True)
class Change:
    """A field of a model less that of the baseline, over pairs of scenes.

    Attributes:
        value: difference of the means.
        low, high: the ends of its 95 % interval.
        p: two-sided p-value of no difference.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model of a recipe: the one before the first stage, or the one after a stage.

    Attributes:
        name: `0-start`, or that of the stage.
        checkpoint: its folder.
        fingerprint: of its weights.
        steps: of the optimizer in this stage; None for the start.
        training_seconds: of the stage, over all calls; None for the start.
        evaluation_seconds: likewise.
        scores: field of the metric -> mean over the scenes; None where the version has no such
            field, or no scene has it.
        changes: field -> against the baseline; empty for the baseline itself.
        behaviour: what the metric does not look at, see `wosac_toolkit.behaviour`; against the
            baseline, but for the baseline itself.
    """

    name: str
    checkpoint: str
    fingerprint: str
    steps: int | None
    training_seconds: float | None
    evaluation_seconds: float
    scores: Mapping[str, float | None]
    changes: Mapping[str, Change]
    behaviour: BehaviourReport


@dataclass(frozen=True, slots=True)
class Summary:
    """`summary.json` of a recipe.

    Attributes:
        schema_version: version of this layout, `SCHEMA_VERSION`.
        stages: the sequence.
        challenge: version of the metric.
        signature: of the scores, see `wosac_toolkit.results.Summary`.
        n_scenes: evaluated on.
        n_rollouts: of each.
        models: in their order; the first is the baseline.
    """

    schema_version: int
    stages: str
    challenge: str
    signature: str
    n_scenes: int
    n_rollouts: int
    models: tuple[Evaluated, ...]

    def to_json(self) -> str:
        """All of it as JSON: keys in a fixed order, no NaN."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Outcome:
    """What running a recipe has come to.

    Attributes:
        summary: None where it was asked to stop, and is saved.
        finished_before: it had come to its end in an earlier call.
    """

    summary: Summary | None
    finished_before: bool = False


# --------------------------------------------------------------------------------------------------
# Running


def run_recipe(
    config: RecipeConfig,
    out: Path,
    *,
    processes: int = 1,
    device: str | None = None,
    progress: bool = False,
) -> Outcome:
    """Run a recipe, or go on with the one in `out` if there is one.

    A recipe that is there can be lengthened: `sft-rft` becomes `sft-rft-sft` by its last stage.
    SIGINT and SIGTERM end a stage after its current step, saved.

    Args:
        config: settings.
        out: folder of the recipe.
        processes: that train together, started by `torchrun`; 1 trains in this process.
        device: such as `cpu` or `cuda:1`; the GPU if there is one.
        progress: show bars on stderr.

    Raises:
        NonFiniteError: a loss or gradient that is not finite.
        WosacError: bad settings or data, no model to begin with, or the folder holds another
            recipe.
        ModuleNotFoundError: what the report needs is not installed.
    """
    import jinja2  # noqa: F401  # Missed now rather than when all is trained.
    import matplotlib  # noqa: F401

    if processes < 1:
        raise WosacError(f"processes must be at least 1, not {processes}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise WosacError(
            "a recipe starts its processes itself", mend="--processes N in place of torchrun"
        )
    _check(config)
    with run_state.locked(out):
        _claim(out, config)
        config = _with_sources(config, out)
        model, models = config.begins_with, {}
        if model is not None:
            models["0-start"] = model
            _evaluate(config, "0-start", model, out, device, progress)
        for part in parts_of(config.stages):
            if not _train(config, part, model, out, processes, device, progress):
                return Outcome(None)
            models[part.name] = model = str(out / part.name / "final")
            _evaluate(config, part.name, model, out, device, progress)
        return _conclude(config, models, out, progress)


def _claim(out: Path, config: RecipeConfig) -> None:
    """Write the settings into the folder of the recipe, or see that it goes on with the same."""
    file = out / "config.yaml"
    if file.exists():
        try:
            before = load_recipe_config(file, ())
        except WosacError as error:
            raise WosacError(
                f"the folder holds a run of another kind: {error.what}",
                where=str(out),
                mend="choose another --out, or delete it",
            ) from None
        if changed := _changes(before, config):
            raise WosacError(
                f"the folder holds a recipe with another {', '.join(changed)}",
                where=str(out),
                mend="choose another --out, or delete it",
            )
    with atomic_write(file) as stream:
        stream.write(recipe_yaml(config).encode())


def _changes(before: RecipeConfig, config: RecipeConfig) -> list[str]:
    """What may not change between two calls, and has."""
    parts = parts_of(before.stages)
    found = [] if parts_of(config.stages)[: len(parts)] == parts else ["stages"]
    stages = {"stages", *_KEYS}
    found += [k for k in differences(before, config) if k.partition(".")[0] not in stages]
    for part in parts:
        one, other = getattr(before, part.key), getattr(config, part.key)
        changed = [name for name in differences(one, other) if name not in one.may_change]
        found += [f"{part.key}.{name}" for name in changed]
    return found


def is_synthetic(config: RecipeConfig) -> bool:
    """Whether no scenes are named, so that the recipe makes its own."""
    named = (config.scenarios, config.validation_scenarios, config.data, config.validation_data)
    return all(path is None for path in named)


def _with_sources(config: RecipeConfig, out: Path) -> RecipeConfig:
    """The settings with the scenes and the model of the package, where no scenes are named."""
    if not is_synthetic(config):
        return config
    training, validation = builtin.synthetic_scenes(out / "scenarios")
    begins_with = config.begins_with
    if begins_with is None and parts_of(config.stages)[0].kind != "bc":
        begins_with = str(builtin.MODEL)
    return dataclasses.replace(
        config,
        scenarios=str(training),
        validation_scenarios=str(validation),
        begins_with=begins_with,
    )


def _check(config: RecipeConfig) -> None:
    """Look for what would end the recipe, before anything is written or hours have passed."""
    parts = parts_of(config.stages)
    if config.begins_with is not None:
        load_model(Path(config.begins_with))
    for part in parts:
        if part.kind == "rft":
            get_reward(getattr(config, part.key).reward)
    if is_synthetic(config):
        return
    if config.begins_with is None and parts[0].kind != "bc":
        raise WosacError(
            f"{parts[0].kind} needs a model to begin with",
            mend="--checkpoint DIR, or begin with bc",
        )
    if config.validation_scenarios is None:
        raise WosacError("there are no scenes to evaluate on", mend="--val-scenarios PATH")
    if len(list(islice(load_scenarios(config.validation_scenarios), 2))) < 2:
        raise WosacError("a comparison takes two scenes or more", where=config.validation_scenarios)
    for part in parts:
        if part.kind == "rft" or config.data is None:
            if config.scenarios is None:
                raise WosacError(f"{part.kind} needs scenes to train on", mend="--scenarios PATH")
            find_shards(config.scenarios)


def _train(
    config: RecipeConfig,
    part: Part,
    begins_with: str | None,
    out: Path,
    processes: int,
    device: str | None,
    progress: bool,
) -> bool:
    """Train a stage to its end; False if it was asked to stop."""
    folder = out / part.name
    if run_state.finished(folder):
        return True
    if part.kind != "rft" and config.data is None:
        with _clock(out, "cache"):
            _prepare(config, out, progress)
    _say(progress, f"{part.name}: training")
    settings = stage_config(config, part, out, begins_with)
    with _clock(out, f"{part.name}/training"):
        if processes > 1:
            return _train_with_torchrun(part, settings, folder, processes, device)
        return _train_here(settings, folder, device, progress)


def _prepare(config: RecipeConfig, out: Path, progress: bool) -> None:
    assert config.scenarios is not None
    found = prepare_dataset(config.scenarios, out / "cache", progress=progress).findings
    for finding in found[:_MOST_FINDINGS]:
        _say(progress, f"  {finding}")
    if found:
        _say(progress, f"{len(found)} scenes could not be prepared, and are left out of bc and sft")


def _train_here(settings: StageConfig, folder: Path, device: str | None, progress: bool) -> bool:
    if isinstance(settings, PretrainConfig):
        return pretrain(settings, folder, device=device, progress=progress).finished
    if isinstance(settings, SftConfig):
        return sft(settings, folder, device=device, progress=progress).finished
    return finetune(settings, folder, device=device, progress=progress).finished


def _train_with_torchrun(
    part: Part, settings: StageConfig, folder: Path, processes: int, device: str | None
) -> bool:
    """Train a stage in several processes, by the stage's own command."""
    with tempfile.TemporaryDirectory() as temporary, stop_requests() as stop:
        file = Path(temporary) / "config.yaml"
        file.write_text(to_yaml(settings), "utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "smart_r1.cli", _COMMANDS[part.kind]),
            *("--config", str(file), "--out", str(folder)),
            *(("--device", device) if device is not None else ()),
        ]
        threads = str(max(1, n_cpus() // processes))
        # In a session of its own Ctrl-C does not reach it: it is told once, by this process, and
        # has the time to save. What it prints is no result of ours, and goes to stderr.
        with subprocess.Popen(
            command,
            stdout=2,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            start_new_session=True,
        ) as process:
            try:
                while process.poll() is None and not stop:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_LOOK_SECONDS)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait()
        if stop:
            return False
        if run_state.finished(folder):
            return True
    raise WosacError(
        f"{part.name} ended with exit code {process.returncode} in {processes} processes",
        where=str(folder),
        mend="the lines above tell why; the same command resumes it",
    )


def _evaluate(
    config: RecipeConfig, name: str, model: str, out: Path, device: str | None, progress: bool
) -> None:
    """Simulate the validation scenes once; score what comes out, and measure how it behaves."""
    how, scenarios = config.evaluation, config.validation_scenarios
    assert scenarios is not None
    rollouts, scores = out / "rollouts" / name, out / "scores" / name
    behaviour = scores / BEHAVIOUR_FILE
    if behaviour.exists():  # It is written last.
        return
    _say(progress, f"{name}: evaluating")
    with _clock(out, f"{name}/evaluation"):
        with joined(device) as ranks:
            policy = Policy(
                load_model(Path(model), ranks.device),
                f"smart-{fingerprint(Path(model))}",
                how.n_rollouts,
                Sampling(how.top_k, how.temperature),
                how.seed,
            )
            rollout_dataset(policy, scenarios, rollouts, limit=how.limit, progress=progress)
        # Those that are beyond the limit have no rollouts, and are not missed.
        ids = None if how.limit is None else list(islice(index_scenarios(scenarios), how.limit))
        score_dataset(
            rollouts,
            scenarios,
            challenge=how.challenge,
            out=scores,
            n_rollouts=how.n_rollouts,
            scenario_ids=ids,
            progress=progress,
        )
        measured = measure_dataset(
            rollouts,
            scenarios,
            challenges=tuple(dict.fromkeys((how.challenge, *DEFAULT_CHALLENGES))),
            scenario_ids=ids,
            progress=progress,
        )
        write_behaviours(behaviour, measured.behaviours)


def _conclude(
    config: RecipeConfig, models: Mapping[str, str], out: Path, progress: bool
) -> Outcome:
    """Compare the models, and write what comes out unless it is there."""
    summary = _summary(config, models, out)
    text, file, report = summary.to_json(), out / "summary.json", out / "report.html"
    if report.exists() and file.exists() and file.read_text("utf-8") == text:
        return Outcome(summary, finished_before=True)
    _say(progress, "comparing")
    write_report(
        [out / "scores" / name for name in models],
        report,
        title=f"Recipe {config.stages}",
        progress=progress,
    )
    with atomic_write(file) as stream:
        stream.write(text.encode())
    return Outcome(summary)


def _summary(config: RecipeConfig, models: Mapping[str, str], out: Path) -> Summary:
    folders = {name: out / "scores" / name for name in models}
    baseline, *others = models
    changes: dict[str, Mapping[str, Change]] = {baseline: {}}
    if others:
        for against in compare_runs(read_models(folders.values()), largest=0).against:
            changes[against.name] = {
                field: _change(difference) for field, difference in against.differences.items()
            }
    behaviours = {
        name: read_behaviours(folder / BEHAVIOUR_FILE) for name, folder in folders.items()
    }
    seconds = _seconds(out)

    def evaluated(name: str) -> Evaluated:
        checkpoint, run = Path(models[name]), read_summary(folders[name])
        means = {**run.metrics, **run.buckets}
        progress = run_state.finished(out / name)
        return Evaluated(
            name=name,
            checkpoint=str(checkpoint),
            fingerprint=fingerprint(checkpoint),
            steps=None if progress is None else progress.step,
            training_seconds=None if progress is None else seconds.get(f"{name}/training", 0.0),
            evaluation_seconds=seconds.get(f"{name}/evaluation", 0.0),
            scores={name: means[name] for _, name in field_tree(get_challenge(run.challenge))},
            changes=changes[name],
            behaviour=watch(behaviours[name], None if name == baseline else behaviours[baseline]),
        )

    run = read_summary(folders[baseline])
    return Summary(
        schema_version=SCHEMA_VERSION,
        stages=config.stages,
        challenge=run.challenge,
        signature=run.signature,
        n_scenes=run.n_scenarios,
        n_rollouts=config.evaluation.n_rollouts,
        models=tuple(map(evaluated, models)),
    )


def _change(difference: Difference) -> Change:
    change = difference.difference
    return Change(change.value, change.low, change.high, difference.p)


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _clock(out: Path, part: str) -> Iterator[None]:
    """Add the time of the block to that of a part, also where the block is interrupted."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = _seconds(out)
        seconds[part] = round(seconds.get(part, 0.0) + time.monotonic() - began, 3)
        with atomic_write(out / _SECONDS) as stream:
            stream.write(json.dumps(seconds, indent=2).encode() + b"\n")


def _seconds(out: Path) -> dict[str, float]:
    """Part -> seconds in all calls; without what cannot be read, since nothing depends on it."""
    try:
        content = json.loads((out / _SECONDS).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in items if isinstance(v, int | float) and math.isfinite(v)}
