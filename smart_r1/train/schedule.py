"""The learning rate of each step.

All are factors f of the base rate, with r the fraction of it that the schedule falls towards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wosac_toolkit.errors import WosacError


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes.

    Attributes:
        kind: `cosine`: falls with every step; `cosine_per_epoch`: CAT-K's, constant in an epoch;
            `constant`: after the warm-up.
        warmup_epochs: how long it rises; may be a fraction for the kinds that change in an epoch.
        final_fraction: r, the part of the base rate that is left at the end.
    """

    kind: Literal["cosine", "cosine_per_epoch", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    final_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise WosacError(f"warmup_epochs must not be negative, is {self.warmup_epochs}")
        if not 0 <= self.final_fraction <= 1:
            raise WosacError(f"final_fraction must be from 0 to 1, is {self.final_fraction}")


def learning_rate_factor(
    schedule: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int
) -> float:
    """The factor of the base rate that a step trains with.

    Args:
        schedule: which.
        step: counted from 0 over the whole run.
        steps_per_epoch: at least 1.
        epochs: of the whole run.
    """
    if schedule.kind == "cosine_per_epoch":
        return _cosine_per_epoch(schedule, step // steps_per_epoch, epochs)
    warmup = schedule.warmup_epochs * steps_per_epoch
    # Steps that are done when this one is: so the first one moves, and the last one ends at r.
    if step + 1 <= warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    n_steps = steps_per_epoch * epochs
    return _cosine((step - warmup) / max(1.0, n_steps - 1 - warmup), schedule.final_fraction)


def _cosine(progress: float, final: float) -> float:
    """The cosine r + (1 - r) / 2 (1 + cos(pi p)) (SGDR, arXiv 1608.03983, eq. 5); p in [0, 1]."""
    return final + 0.5 * (1 - final) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def _cosine_per_epoch(schedule: ScheduleConfig, epoch: int, epochs: int) -> float:
    """What epoch e = 0, 1, ... really trains with in the public code of CAT-K.

    With E epochs and w of warm-up its rule is f(n) = r + (1 - r) n / w for n < w, else the cosine
    at (n - w) / (E - w). The scheduler, stepped at the end of an epoch, reads the number of the
    epoch that ends there, plus 1: so e trains with n = max(1, e), the first value comes twice,
    and neither 1 nor r is ever reached.
    """
    n, warmup, final = max(1, epoch), schedule.warmup_epochs, schedule.final_fraction
    if n < warmup:
        return final + (1 - final) * n / warmup
    return _cosine((n - warmup) / max(1.0, epochs - warmup), final)
