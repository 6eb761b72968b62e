"""Pre-training: behaviour cloning of logged tokens (SMART, arXiv 2405.15677)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
from smart_r1.train.config import load_config
from smart_r1.train.distributed import Ranks
from smart_r1.train.imitation import ImitationConfig, imitation, scenes_of
from smart_r1.train.loop import Stage
from smart_r1.train.stage import PRESETS, Outcome, new_state, run_stage
from smart_r1.train.step import Objective, Sums, autocast
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch
    from smart_r1.train.interrupt import StopRequest


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(ImitationConfig):
    """Settings of pre-training, besides those of every stage that imitates.

    The defaults are those of CAT-K's pre-training, but for a learning rate that falls with every
    step, not every epoch, and reaches its end (`schedule.kind=cosine_per_epoch` is theirs).

    Attributes:
        model: sizes, or the name of a preset.
        vocabulary: file of motion tokens and map curves, None for the one of the package.
        curves: file of the map curves, where it is another.
        noise: sample the tokens of the past among the nearest, and learn to recover from it.
    """

    model: ModelConfig = field(default_factory=lambda: CONFIGS["tiny"])
    vocabulary: str | None = None
    curves: str | None = None
    noise: TokenNoise | None = None

    may_change: ClassVar[frozenset[str]] = ImitationConfig.may_change | {"vocabulary", "curves"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curves is not None and self.vocabulary is None:
            raise WosacError("curves without vocabulary", mend="set both")


def load_pretrain_config(file: Path | None, assignments: Sequence[str]) -> PretrainConfig:
    """Settings from a YAML file and `key=value`, see `smart_r1.train.config`."""
    return load_config(PretrainConfig, file, assignments, presets=PRESETS)


def pretrain(
    config: PretrainConfig, out: Path, *, device: str | None = None, progress: bool = False
) -> Outcome:
    """Train a new model to predict the next token; see `smart_r1.train.stage.run_stage`."""

    def begin(ranks: Ranks, stop: StopRequest) -> Stage[Any]:
        training_data, held_out = scenes_of(config)
        model = SMART(config.model, _vocabulary(config)).to(ranks.device)
        state = new_state(model, config, training_data.scenario_ids)
        objective = next_token_objective(
            config.label_smoothing, config.noise, partial(autocast, config.precision, ranks.device)
        )
        return imitation(config, state, objective, training_data, held_out, ranks, stop)

    return run_stage(config, out, begin, device=device, progress=progress)


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


def _vocabulary(config: PretrainConfig) -> Vocabulary:
    if config.vocabulary is None:
        return default_vocabulary()
    curves = None if config.curves is None else Path(config.curves)
    return load_vocabulary(Path(config.vocabulary), curves)
