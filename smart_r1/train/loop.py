"""The loop that all stages share: steps, checkpoints, validation, log."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

import torch

from smart_r1.read_ahead import read_ahead
from smart_r1.train import state as run_state
from smart_r1.train.distributed import Ranks
from smart_r1.train.optimizer import OptimizerConfig
from smart_r1.train.scenes import steps_per_epoch
from smart_r1.train.schedule import ScheduleConfig, learning_rate_factor
from smart_r1.train.state import TrainState, step_seed
from smart_r1.train.step import NonFiniteError
from wosac_toolkit.errors import WosacError
from wosac_toolkit.workers import progress_bar

if TYPE_CHECKING:
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest
    from smart_r1.train.log import Log, Value

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved, besides at validations, at its end and when it is interrupted.

    Attributes:
        every_minutes: after so long.
        keep: how many checkpoints stay, besides the best model.
    """

    every_minutes: float = 10.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1 or self.every_minutes < 0:
            raise WosacError("checkpoint.keep must be at least 1, and every_minutes not negative")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is reported.

    Attributes:
        every_steps: a line for every so many optimizer steps, about the last of them.
        wandb: project of Weights & Biases to report to, too.
    """

    every_steps: int = 10
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise WosacError(f"log.every_steps must be at least 1, is {self.every_steps}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every stage sets.

    Attributes:
        seed: of the first weights, the order of the scenes, and everything drawn in training.
        epochs: passes over the data.
        batch: scenes an optimizer step, over all processes.
        edges_at_once: a process computes its share of a batch in parts of at most so many edges
            (`smart_r1.batching.scene_costs`; a scene of WOMD has 130,000 or so), which bounds its
            memory: the 7M model takes 6 kB an edge in float32.
        precision: of the network's products; `auto` is bfloat16 on GPUs that have it.
        average_decay: of the moving average of the weights, such as 0.999; 0 for none.
        optimizer: and its gradients.
        schedule: of the learning rate.
        checkpoint: when to save.
        log: what to report.
    """

    seed: int = 817
    epochs: int = 64
    batch: int = 80
    edges_at_once: int = 2_000_000
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    average_decay: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            *("edges_at_once", "checkpoint.every_minutes", "checkpoint.keep"),
            *("log.every_steps", "log.wandb"),
        }
    )
    """Settings that may change in a run that goes on: where files are, and what its steps do not
    depend on but for rounding and the draws of dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "edges_at_once"):
            if getattr(self, name) < 1:
                raise WosacError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.seed < 0:
            raise WosacError(f"seed must not be negative, is {self.seed}")
        if not 0 <= self.average_decay < 1:
            raise WosacError(f"average_decay must be at least 0 and below 1: {self.average_decay}")


@dataclass(frozen=True, eq=False)
class Run:
    """Where and how a run goes on.

    Attributes:
        folder: see `smart_r1.train.state`.
        config: settings.
        ranks: the processes.
        log: takes a line every few steps, and one a validation.
        stop: looked at after every step.
        progress: show a bar on stderr.
    """

    folder: Path
    config: TrainConfig
    ranks: Ranks
    log: Log
    stop: StopRequest
    progress: bool


@dataclass(frozen=True)
class Validated:
    """What a validation found.

    Attributes:
        values: for the log; empty if none was due.
        score: by which the best model is chosen, higher is better; None if it was not computed.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None


Validation = Callable[["SMART", int], Validated | None]
"""Validates a model after an epoch, counted from 1; 0 is for the model that the stage begins with.
None: it was asked to stop. Called by all processes, and the same in all."""


@dataclass(frozen=True)
class Done:
    """What a step has done, the same in all processes.

    Attributes:
        values: for the log.
        shown: a few words for the progress bar.
        stop: some process was asked to stop.
    """

    values: Mapping[str, Value]
    shown: str
    stop: bool


@dataclass(frozen=True, eq=False)
class Stage(Generic[Item]):
    """What is particular to a stage.

    Attributes:
        state: goes along, and is saved now and then. With `progress.validated_step` of -1 the model
            that the stage begins with is validated too.
        n_scenes: scenes an epoch.
        load: what this process needs for a step, counted from 0 over all epochs; called ahead, by
            another thread.
        update: one step with it and a learning rate; counts the step in `state.progress`.
        validation: called after every epoch.
    """

    state: TrainState
    n_scenes: int
    load: Callable[[int], Item]
    update: Callable[[Run, Item, float], Done]
    validation: Validation


def train(run: Run, stage: Stage[Item]) -> bool:
    """Train from where `stage.state` is to the end of the run, or until somebody asks to stop.

    Args:
        run: its folder, settings and surroundings.
        stage: what is done.

    Returns:
        Whether the run has come to its end; if not, it is saved, and can go on from there.

    Raises:
        NonFiniteError: a loss or a gradient is not finite; told to the log as well.
        FormatError: damaged data.
    """
    config, n_scenes, progress = run.config, stage.n_scenes, stage.state.progress
    per_epoch = steps_per_epoch(n_scenes, config.batch)
    first, end = progress.step, per_epoch * config.epochs
    show = run.progress and run.ranks.is_first
    saved = time.monotonic()
    # Of the model a stage begins with, or of a run that was stopped before its validation.
    if first % per_epoch == 0 and not _validate(run, stage, per_epoch):
        return False
    with progress_bar(config.epochs * n_scenes, what="training", show=show) as bar:
        bar.initial = bar.n = _scenes_seen(first, per_epoch, n_scenes, config.batch)
        for step, item in enumerate(read_ahead(map(stage.load, range(first, end))), start=first):
            epoch = step // per_epoch + 1
            done = _advance(run, stage, item, per_epoch)
            bar.set_postfix_str(f"epoch {epoch}/{config.epochs}, {done.shown}", refresh=False)
            bar.update(_scenes_seen(step + 1, per_epoch, n_scenes, config.batch) - bar.n)
            stopped = done.stop
            if (step + 1) % per_epoch == 0 and not stopped:
                stopped = not _validate(run, stage, per_epoch)
            overdue = time.monotonic() - saved > 60 * config.checkpoint.every_minutes
            if stopped or overdue or step + 1 == end:
                _save(run, stage.state)
                saved = time.monotonic()
            if stopped:
                return False
    if run.ranks.is_first:
        run_state.save_result(run.folder / "final", stage.state)
    return True


def _scenes_seen(step: int, per_epoch: int, n_scenes: int, batch: int) -> int:
    return step // per_epoch * n_scenes + step % per_epoch * batch


def _advance(run: Run, stage: Stage[Item], item: Item, per_epoch: int) -> Done:
    """One step, and its line in the log."""
    config, step = run.config, stage.state.progress.step
    factor = learning_rate_factor(config.schedule, step, per_epoch, config.epochs)
    learning_rate = factor * config.optimizer.learning_rate
    torch.manual_seed(step_seed(config.seed, step, run.ranks.rank))
    began = time.monotonic()
    try:
        done = stage.update(run, item, learning_rate)
    except NonFiniteError as error:
        run.log("error", step + 1, {"error": str(error), "scenario_ids": [*error.scenario_ids]})
        raise
    except torch.cuda.OutOfMemoryError:
        raise WosacError(
            "the GPU has too little memory for this model and so many scenes at once",
            where=f"step {step + 1}",
            mend=f"set edges_at_once below {config.edges_at_once}; the run then resumes",
        ) from None
    if (step + 1) % config.log.every_steps == 0:
        run.log(
            "train",
            step + 1,
            {
                "epoch": step // per_epoch + 1,
                **done.values,
                "learning_rate": learning_rate,
                "seconds": time.monotonic() - began,
            },
        )
    return done


def _validate(run: Run, stage: Stage[Item], per_epoch: int) -> bool:
    """Validate after an epoch, unless that is done; False if it was asked to stop meanwhile."""
    state = stage.state
    progress = state.progress
    if progress.validated_step == progress.step:
        return True
    epoch, began = progress.step // per_epoch, time.monotonic()
    try:
        found = stage.validation(state.result.eval(), epoch)
    except WosacError:
        _save(run, state)  # So that a run whose validation is mended goes on from here.
        raise
    if found is None:
        return False
    state.progress = dataclasses.replace(progress, validated_step=progress.step)
    if found.values:
        seconds = time.monotonic() - began
        run.log("validation", progress.step, {"epoch": epoch, **found.values, "seconds": seconds})
    score = found.score if found.score is not None and math.isfinite(found.score) else None
    if score is not None and (progress.best is None or score > progress.best):
        state.progress = dataclasses.replace(state.progress, best=score, best_step=progress.step)
        if run.ranks.is_first:
            run_state.save_result(run.folder / "best", state)
    if found.values:
        _save(run, state)
    return True


def _save(run: Run, state: TrainState) -> None:
    if run.ranks.is_first:
        run_state.save_checkpoint(run.folder, state, run.config.checkpoint.keep)
