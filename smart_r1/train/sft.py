"""Closed-loop supervised fine-tuning: CAT-K (arXiv 2412.05334).

The policy simulates the scene, each agent taking of its most probable tokens the one that ends
nearest to the log; then it learns, in the states that it has come to, the token that would bring it
back. States carry no gradient and a state sees no later one, so that the pass with gradients over
all visited states at once gives the loss and gradients of stepping with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from smart_r1.model.checkpoint import fingerprint
from smart_r1.objectives import next_token_loss_sum, recovery_targets, top_k_hits
from smart_r1.simulate import begin as begin_simulation
from smart_r1.simulate import closest_to_log, simulate
from smart_r1.train.config import load_config
from smart_r1.train.distributed import Ranks
from smart_r1.train.imitation import ImitationConfig, imitation, scenes_of
from smart_r1.train.loop import Stage
from smart_r1.train.optimizer import OptimizerConfig
from smart_r1.train.stage import (
    PRESETS,
    Outcome,
    Trained,
    load_for_training,
    new_state,
    run_stage,
)
from smart_r1.train.step import Objective, Sums, autocast
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from smart_r1.batching import SceneBatch
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest


@dataclass(frozen=True, kw_only=True)
class SftConfig(ImitationConfig):
    """Settings of closed-loop fine-tuning; the defaults are CAT-K's.

    Attributes:
        begins_with: folder of the model, as `smart-r1 pretrain` and `import` write it.
        top_k: the token is chosen among so many of the most probable.
        trained: which weights.
    """

    begins_with: str
    epochs: int = 10
    label_smoothing: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(5e-5))
    top_k: int = 32
    trained: Trained = "decoder"

    may_change: ClassVar[frozenset[str]] = ImitationConfig.may_change | {"begins_with"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise WosacError(f"top_k must be at least 1, is {self.top_k}")


def load_sft_config(file: Path | None, assignments: Sequence[str]) -> SftConfig:
    """Settings from a YAML file and `key=value`, see `smart_r1.train.config`."""
    return load_config(SftConfig, file, assignments, presets=PRESETS)


def sft(
    config: SftConfig, out: Path, *, device: str | None = None, progress: bool = False
) -> Outcome:
    """Fine-tune a model in closed loop; see `smart_r1.train.stage.run_stage`."""

    def begin(ranks: Ranks, stop: StopRequest) -> Stage[Any]:
        training_data, held_out = scenes_of(config)
        checkpoint = Path(config.begins_with)
        model = load_for_training(checkpoint, config.trained, ranks)
        state = new_state(model, config, training_data.scenario_ids, validate_first=True)
        state.memory["begins_with"] = fingerprint(checkpoint)
        objective = recovery_objective(
            config.top_k, config.label_smoothing, partial(autocast, config.precision, ranks.device)
        )
        return imitation(config, state, objective, training_data, held_out, ranks, stop)

    return run_stage(config, out, begin, device=device, progress=progress)


def recovery_objective(
    top_k: int, label_smoothing: float, context: Callable[[], AbstractContextManager[object]]
) -> Objective:
    """The loss of CAT-K.

    The rollout is of the policy as it is when evaluated; dropout, and the states it leaves out,
    are drawn in the pass with gradients alone.

    Args:
        top_k: see `smart_r1.simulate.closest_to_log`.
        label_smoothing: see `smart_r1.objectives.next_token_loss_sum`.
        context: in which the network computes, such as an autocast.
    """

    def objective(model: SMART, batch: SceneBatch) -> Sums:
        training = model.training
        model.eval()
        with context():
            beginning = begin_simulation(model, batch, model.tokenize(batch))
            choose = closest_to_log(batch, model.motion, top_k)
            visited = simulate(model, beginning, choose, 1).tokens.mapped(lambda field: field[0])
        model.train(training)
        targets = recovery_targets(model.motion, batch, visited)
        with context():
            logits = model(batch, visited)
        mask = targets.valid & batch.train_mask[:, None]
        return Sums(
            loss=next_token_loss_sum(logits, targets.index, mask, label_smoothing),
            actions=mask.sum(),
            correct=top_k_hits(logits, targets.index, mask, k=1).sum(),
        )

    return objective
