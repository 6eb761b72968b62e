"""Pre-training: behaviour cloning of logged tokens (SMART, arXiv 2405.15677)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from smart_r1.cache import SceneCache, split
from smart_r1.model.config import CONFIGS, ModelConfig
from smart_r1.model.smart import SMART
from smart_r1.objectives import (
    next_token_loss_sum,
    next_token_targets,
    recovery_targets,
    top_k_hits,
)
from smart_r1.tokens.motion import TokenNoise, tokenize
from smart_r1.tokens.vocabulary import Vocabulary, default_vocabulary, load_vocabulary
from smart_r1.train import log as run_log
from smart_r1.train import state as run_state
from smart_r1.train.config import Presets, differences, load_config, to_yaml
from smart_r1.train.distributed import Ranks, joined, wait_for_all
from smart_r1.train.interrupt import stop_requests
from smart_r1.train.loop import Run, TrainConfig, Validated, Validation, train
from smart_r1.train.optimizer import make_optimizer
from smart_r1.train.state import Progress, TrainState
from smart_r1.train.step import Objective, Sums, autocast
from smart_r1.train.validation import (
    ClosedLoopConfig,
    OpenLoopConfig,
    closed_loop,
    is_due,
    open_loop,
)
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.io.scenarios import load_scenarios
from wosac_toolkit.io.tfrecord import find_shards
from wosac_toolkit.results import hash_lines

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch
    from smart_r1.train.interrupt import StopRequest

PRESETS: Presets = {ModelConfig: CONFIGS}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Settings of pre-training, besides those of every stage.

    The defaults are those of CAT-K's pre-training, but for a learning rate that falls with every
    step, not every epoch, and reaches its end (`schedule.kind=cosine_per_epoch` is theirs).

    Attributes:
        data: folder of prepared scenes (`smart-r1 prepare`).
        validation_data: folder of prepared scenes to validate on.
        validation_fraction: without that folder, so much of `data` is held out for it.
        validation_scenarios: scenes as TFRecords, to simulate and score.
        model: sizes, or the name of a preset.
        vocabulary: file of motion tokens and map curves, None for the one of the package.
        curves: file of the map curves, where it is another.
        label_smoothing: of the loss.
        noise: sample the tokens of the past among the nearest, and learn to recover from it.
        open_loop: validation by the next token.
        closed_loop: validation by simulation.
    """

    data: str
    validation_data: str | None = None
    validation_fraction: float = 0.05
    validation_scenarios: str | None = None
    model: ModelConfig = field(default_factory=lambda: CONFIGS["tiny"])
    vocabulary: str | None = None
    curves: str | None = None
    label_smoothing: float = 0.1
    noise: TokenNoise | None = None
    open_loop: OpenLoopConfig = field(default_factory=OpenLoopConfig)
    closed_loop: ClosedLoopConfig = field(default_factory=ClosedLoopConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise WosacError(f"label_smoothing must be at least 0, below 1: {self.label_smoothing}")
        if not 0 <= self.validation_fraction < 1:
            raise WosacError(
                f"validation_fraction must be at least 0, below 1: {self.validation_fraction}"
            )
        if self.curves is not None and self.vocabulary is None:
            raise WosacError("curves without vocabulary", mend="set both")


_MAY_CHANGE = frozenset(
    {
        *("data", "validation_data", "validation_scenarios", "vocabulary", "curves"),
        *("edges_at_once", "checkpoint.every_minutes", "checkpoint.keep"),
        *("log.every_steps", "log.wandb"),
    }
)
"""Settings that may change in a run that goes on: where files are, and what its steps do not
depend on but for rounding and the draws of dropout."""


def load_pretrain_config(file: Path | None, assignments: Sequence[str]) -> PretrainConfig:
    """Settings from a YAML file and `key=value`, see `smart_r1.train.config`."""
    return load_config(PretrainConfig, file, assignments, presets=PRESETS)


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` has done.

    Attributes:
        finished: the run has come to its end; else it was asked to stop, and is saved.
        finished_before: it had come to its end in an earlier call.
        progress: how far it is.
    """

    finished: bool
    finished_before: bool
    progress: Progress


def pretrain(
    config: PretrainConfig, out: Path, *, device: str | None = None, progress: bool = False
) -> Pretrained:
    """Train a model to predict the next token; go on with the run in `out` if there is one.

    On one device and any number of processes started by `torchrun`, which share every batch. A run
    that was interrupted and goes on gives the same numbers as an unbroken one on the same device
    with as many processes. Torch's random numbers are seeded. SIGINT and SIGTERM end it after the
    current step, saved.

    Args:
        config: settings.
        out: folder of the run, see `smart_r1.train.state`.
        device: such as `cpu` or `cuda:1`; the GPU if there is one.
        progress: show a bar on stderr.

    Raises:
        NonFiniteError: a loss or gradient that is not finite; names the scenes of the batch.
        WosacError: bad settings, data or vocabulary; or the folder holds another run.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        ranks = stack.enter_context(joined(device))
        if ranks.is_first:
            stack.enter_context(run_state.locked(out))
            _claim(out, config)
        wait_for_all(ranks)
        if finished := run_state.finished(out):
            return Pretrained(True, True, finished)
        if ranks.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as CAT-K trains.
        training_data, held_out = _data(config)
        state = _begin(config, training_data, ranks)
        if kept := run_state.checkpoints(out):
            run_state.load_checkpoint(kept[-1], state)
            _require_same_data(state.progress, training_data, out)
        log = run_log.silent
        if ranks.is_first:
            log = stack.enter_context(_open_log(out, config, state.progress))
        run = Run(out, config, ranks, log, stop, progress)
        objective = next_token_objective(
            config.label_smoothing, config.noise, partial(autocast, config.precision, ranks.device)
        )
        done = train(
            run, state, objective, training_data, _validation(config, held_out, ranks, stop)
        )
    return Pretrained(done, False, state.progress)


def next_token_objective(
    label_smoothing: float,
    noise: TokenNoise | None,
    context: Callable[[], AbstractContextManager[object]],
) -> Objective:
    """The loss of pre-training.

    Args:
        label_smoothing: see `smart_r1.objectives.next_token_loss_sum`.
        noise: of the tokens that the model sees; the targets then are `recovery_targets`.
        context: in which the network computes, such as an autocast.
    """

    def objective(model: SMART, batch: SceneBatch) -> Sums:
        tokens = tokenize(
            batch.position, batch.heading, batch.valid, batch.classes, model.motion, noise
        )
        if noise is None:
            targets = next_token_targets(tokens)
        else:
            targets = recovery_targets(model.motion, batch, tokens)
        with context():
            logits = model(batch, tokens)
        mask = targets.valid & batch.train_mask[:, None]
        return Sums(
            loss=next_token_loss_sum(logits, targets.index, mask, label_smoothing),
            actions=mask.sum(),
            correct=top_k_hits(logits, targets.index, mask, k=1).sum(),
        )

    return objective


def _claim(out: Path, config: PretrainConfig) -> None:
    """Write the settings into the folder of the run, or see that it is a run with the same ones."""
    file = out / "config.yaml"
    if file.exists():
        changed = differences(load_pretrain_config(file, ()), config)
        if refused := [name for name in changed if name not in _MAY_CHANGE]:
            raise WosacError(
                f"the folder holds a run with another {', '.join(refused)}",
                where=str(out),
                mend="choose another --out, or delete it",
            )
    with atomic_write(file) as stream:
        stream.write(to_yaml(config).encode())


def _data(config: PretrainConfig) -> tuple[SceneCache, SceneCache | None]:
    """The scenes to train on, and those to validate on."""
    cache = SceneCache(Path(config.data))
    held_out: SceneCache | None
    if config.validation_data is not None:
        held_out = SceneCache(Path(config.validation_data))
    else:
        kept, others = split(cache.scenario_ids, config.validation_fraction)
        cache, held_out = cache.select(kept), cache.select(others) if len(others) else None
        if not len(cache):
            raise WosacError(
                "no scene is left to train on",
                where=config.data,
                mend="make validation_fraction smaller",
            )
    if held_out is not None and config.open_loop.scenes is not None:
        held_out = held_out.select(range(min(len(held_out), config.open_loop.scenes)))
    return cache, held_out


def _begin(config: PretrainConfig, cache: SceneCache, ranks: Ranks) -> TrainState:
    """A new run, the same in all processes."""
    torch.manual_seed(config.seed)
    model = SMART(config.model, _vocabulary(config)).to(ranks.device)
    average = None
    if config.average_decay:
        average = copy.deepcopy(model).eval().requires_grad_(False)
    return TrainState(
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
        average=average,
        progress=Progress(data=hash_lines(cache.scenario_ids)),
    )


def _vocabulary(config: PretrainConfig) -> Vocabulary:
    if config.vocabulary is None:
        return default_vocabulary()
    curves = None if config.curves is None else Path(config.curves)
    return load_vocabulary(Path(config.vocabulary), curves)


def _require_same_data(progress: Progress, cache: SceneCache, out: Path) -> None:
    if progress.data != hash_lines(cache.scenario_ids):
        raise WosacError(
            "the run began with other scenes than it would go on with",
            where=str(out),
            mend="give the data it began with, or choose another --out",
        )


def _open_log(
    out: Path, config: PretrainConfig, progress: Progress
) -> AbstractContextManager[run_log.Log]:
    return run_log.opened(
        out,
        step=progress.step,
        validated_step=progress.validated_step,
        settings=asdict(config),
        wandb=config.log.wandb,
    )


def _validation(
    config: PretrainConfig, held_out: SceneCache | None, ranks: Ranks, stop: StopRequest
) -> Validation:
    """Validation by the next token, and in closed loop.

    The best model is the most realistic one where realism is measured, else that of the least loss.
    """
    scenarios = config.validation_scenarios
    if scenarios is not None:
        find_shards(scenarios)  # An error now, not in an hour.
    by_realism = scenarios is not None and config.closed_loop.every_epochs > 0

    def validate(model: SMART, epoch: int) -> Validated | None:
        values: dict[str, float] = {}
        score = None
        if held_out is not None and is_due(config.open_loop.every_epochs, epoch, config.epochs):
            found = open_loop(
                model,
                held_out,
                ranks,
                stop,
                edges_at_once=config.edges_at_once,
                label_smoothing=config.label_smoothing,
                context=partial(autocast, config.precision, ranks.device),
            )
            if found is None:
                return None
            values |= {f"open_loop/{name}": value for name, value in found.items()}
            score = None if by_realism else -found["loss"]
        if scenarios is not None and is_due(config.closed_loop.every_epochs, epoch, config.epochs):
            some = islice(
                load_scenarios(scenarios), ranks.rank, config.closed_loop.scenarios, ranks.size
            )
            found = closed_loop(model, some, config.closed_loop, ranks, stop)
            if found is None:
                return None
            values |= {f"closed_loop/{name}": value for name, value in found.items()}
            score = found.get("metametric")
        return Validated(values, score)

    return validate
