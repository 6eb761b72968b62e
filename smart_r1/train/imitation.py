"""What the stages have in common that imitate logged tracks: their data, step and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from smart_r1.batching import SceneBatch
from smart_r1.cache import SceneCache, split
from smart_r1.train.distributed import Ranks
from smart_r1.train.loop import Done, Run, Stage, TrainConfig, Validated, Validation
from smart_r1.train.scenes import step_batches
from smart_r1.train.state import TrainState
from smart_r1.train.step import Objective, autocast, follow_gradient, mean_gradient
from smart_r1.train.validation import (
    ClosedLoopConfig,
    OpenLoopConfig,
    closed_loop_validation,
    is_due,
    open_loop,
)
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest


@dataclass(frozen=True, kw_only=True)
class ImitationConfig(TrainConfig):
    """Settings of the stages that imitate logged tracks, besides those of every stage.

    Attributes:
        data: folder of prepared scenes (`smart-r1 prepare`).
        validation_data: folder of prepared scenes to validate on.
        validation_fraction: without that folder, so much of `data` is held out for it.
        validation_scenarios: scenes as TFRecords, to simulate and score.
        label_smoothing: of the loss.
        open_loop: validation by the next token.
        closed_loop: validation by simulation.
    """

    data: str
    validation_data: str | None = None
    validation_fraction: float = 0.05
    validation_scenarios: str | None = None
    label_smoothing: float = 0.1
    open_loop: OpenLoopConfig = field(default_factory=OpenLoopConfig)
    closed_loop: ClosedLoopConfig = field(default_factory=ClosedLoopConfig)

    may_change: ClassVar[frozenset[str]] = TrainConfig.may_change | {
        *("data", "validation_data", "validation_scenarios")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise WosacError(f"label_smoothing must be at least 0, below 1: {self.label_smoothing}")
        if not 0 <= self.validation_fraction < 1:
            raise WosacError(
                f"validation_fraction must be at least 0, below 1: {self.validation_fraction}"
            )


def imitation(
    config: ImitationConfig,
    state: TrainState,
    objective: Objective,
    training_data: SceneCache,
    held_out: SceneCache | None,
    ranks: Ranks,
    stop: StopRequest,
) -> Stage[list[SceneBatch]]:
    """A stage that takes one step along the gradient of an objective for every batch.

    Args:
        config: settings.
        state: at the first step.
        objective: the loss.
        training_data: see `scenes_of`.
        held_out: likewise.
        ranks: the processes.
        stop: looked at in validation.
    """

    def load(step: int) -> list[SceneBatch]:
        return step_batches(
            training_data,
            ranks,
            step,
            batch=config.batch,
            edges_at_once=config.edges_at_once,
            seed=config.seed,
        )

    def update(run: Run, batches: Sequence[SceneBatch], learning_rate: float) -> Done:
        state.model.train()
        means = mean_gradient(state, objective, batches, ranks, stop=run.stop)
        norm = follow_gradient(
            state,
            batches,
            ranks,
            learning_rate=learning_rate,
            max_gradient_norm=config.optimizer.max_gradient_norm,
            average_decay=config.average_decay,
        )
        values = {
            "loss": means.loss,
            "accuracy": means.accuracy,
            "actions": means.actions,
            "gradient_norm": norm,
        }
        return Done(values, f"loss {means.loss:.3f}", means.stop)

    return Stage(
        state,
        n_scenes=len(training_data),
        load=load,
        update=update,
        validation=_validation(config, held_out, ranks, stop),
    )


def scenes_of(config: ImitationConfig) -> tuple[SceneCache, SceneCache | None]:
    """The prepared scenes to train on, and those to validate on."""
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


def _validation(
    config: ImitationConfig, held_out: SceneCache | None, ranks: Ranks, stop: StopRequest
) -> Validation:
    """Validation by the next token, and in closed loop.

    The best model is the most realistic one where realism is measured, else that of the least loss.
    """
    simulated = closed_loop_validation(
        config.validation_scenarios, config.closed_loop, config.epochs, ranks, stop
    )
    by_realism = config.validation_scenarios is not None and config.closed_loop.every_epochs > 0

    def validate(model: SMART, epoch: int) -> Validated | None:
        values: dict[str, float] = {}
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
            values = {f"open_loop/{name}": value for name, value in found.items()}
        in_closed_loop = simulated(model, epoch)
        if in_closed_loop is None:
            return None
        score = in_closed_loop.score if by_realism else -values.get("open_loop/loss", math.nan)
        return Validated({**values, **in_closed_loop.values}, score)

    return validate
