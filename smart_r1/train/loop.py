"""The loop that stages with a loss a batch share: steps, checkpoints, validation, log."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from smart_r1.read_ahead import read_ahead
from smart_r1.train import state as run_state
from smart_r1.train.distributed import Ranks
from smart_r1.train.optimizer import OptimizerConfig
from smart_r1.train.scenes import step_batches, steps_per_epoch
from smart_r1.train.schedule import ScheduleConfig, learning_rate_factor
from smart_r1.train.state import TrainState, step_seed
from smart_r1.train.step import Means, NonFiniteError, Objective, follow_gradient, mean_gradient
from wosac_toolkit.errors import WosacError
from wosac_toolkit.workers import progress_bar

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch
    from smart_r1.cache import SceneCache
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest
    from smart_r1.train.log import Log


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
"""Validates a model after an epoch, counted from 1; None: it was asked to stop. Called by all
processes, and the same in all."""


def train(
    run: Run,
    state: TrainState,
    objective: Objective,
    cache: SceneCache,
    validation: Validation,
) -> bool:
    """Train from where `state` is to the end of the run, or until somebody asks to stop.

    Args:
        run: its folder, settings and surroundings.
        state: goes along, and is saved now and then.
        objective: the loss.
        cache: the scenes to train on.
        validation: called after every epoch.

    Returns:
        Whether the run has come to its end; if not, it is saved, and can go on from there.

    Raises:
        NonFiniteError: a loss or a gradient is not finite; told to the log as well.
        FormatError: a damaged cache.
    """
    per_epoch = steps_per_epoch(len(cache), run.config.batch)
    first, end = state.progress.step, per_epoch * run.config.epochs
    show = run.progress and run.ranks.is_first
    saved = time.monotonic()
    with progress_bar(run.config.epochs * len(cache), what="training", show=show) as bar:
        bar.initial = bar.n = _scenes_seen(first, per_epoch, len(cache), run.config.batch)
        # Of a run that was stopped between an epoch and its validation.
        if first and first % per_epoch == 0 and not _validate(run, state, validation, per_epoch):
            return False
        loaded = read_ahead(
            step_batches(
                cache,
                run.ranks,
                step,
                batch=run.config.batch,
                edges_at_once=run.config.edges_at_once,
                seed=run.config.seed,
            )
            for step in range(first, end)
        )
        for step, batches in enumerate(loaded, start=first):
            epoch = step // per_epoch + 1
            done = _advance(run, state, objective, batches, per_epoch)
            bar.set_postfix_str(
                f"epoch {epoch}/{run.config.epochs}, loss {done.loss:.3f}", refresh=False
            )
            bar.update(_scenes_seen(step + 1, per_epoch, len(cache), run.config.batch) - bar.n)
            stopped = done.stop
            if (step + 1) % per_epoch == 0 and not stopped:
                stopped = not _validate(run, state, validation, per_epoch)
            overdue = time.monotonic() - saved > 60 * run.config.checkpoint.every_minutes
            if stopped or overdue or step + 1 == end:
                _save(run, state)
                saved = time.monotonic()
            if stopped:
                return False
    if run.ranks.is_first:
        run_state.save_result(run.folder / "final", state)
    return True


def _scenes_seen(step: int, per_epoch: int, n_scenes: int, batch: int) -> int:
    return step // per_epoch * n_scenes + step % per_epoch * batch


def _advance(
    run: Run,
    state: TrainState,
    objective: Objective,
    batches: Sequence[SceneBatch],
    per_epoch: int,
) -> Means:
    """One step, and its line in the log."""
    config, step = run.config, state.progress.step
    factor = learning_rate_factor(config.schedule, step, per_epoch, config.epochs)
    learning_rate = factor * config.optimizer.learning_rate
    torch.manual_seed(step_seed(config.seed, step, run.ranks.rank))
    state.model.train()
    began = time.monotonic()
    try:
        means = mean_gradient(state, objective, batches, run.ranks, stop=run.stop)
        norm = follow_gradient(
            state,
            batches,
            run.ranks,
            learning_rate=learning_rate,
            max_gradient_norm=config.optimizer.max_gradient_norm,
            average_decay=config.average_decay,
        )
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
        values = {
            "epoch": step // per_epoch + 1,
            "loss": means.loss,
            "accuracy": means.accuracy,
            "actions": means.actions,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "seconds": time.monotonic() - began,
        }
        run.log("train", step + 1, values)
    return means


def _validate(run: Run, state: TrainState, validation: Validation, per_epoch: int) -> bool:
    """Validate after an epoch, unless that is done; False if it was asked to stop meanwhile."""
    progress = state.progress
    if progress.validated_step == progress.step:
        return True
    epoch, began = progress.step // per_epoch, time.monotonic()
    try:
        found = validation(state.result.eval(), epoch)
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
