"""Steps of the optimizer, and the average of the weights that it passes through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wosac_toolkit.errors import WosacError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101).

    Attributes:
        learning_rate: the base rate, see `smart_r1.train.schedule`.
        weight_decay: on all parameters, as in the public code of CAT-K.
        beta1: of the mean of the gradients.
        beta2: of the mean of their squares.
        max_gradient_norm: longer gradients are scaled down to it.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_gradient_norm: float = 0.5

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.max_gradient_norm <= 0:
            raise WosacError(
                "learning_rate and max_gradient_norm must be positive, "
                "and weight_decay not negative"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise WosacError("beta1 and beta2 must be at least 0 and below 1")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients, in their order in the model."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that an optimizer moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def take_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Move the parameters along their gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()


@torch.no_grad()
def update_average(weights: Iterable[tuple[Tensor, Tensor]], decay: float, step: int) -> None:
    """Exponential moving average: a := d a + (1 - d) w, with d = min(decay, (1 + n) / (10 + n)).

    Args:
        weights: pairs of an average, which is changed in place, and the model's own weight.
        decay: the least weight of the past in the long run, such as 0.999.
        step: n, steps taken before this one; the first ones are forgotten faster.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for average, new in weights:
        average.lerp_(new, weight)
