"""One optimizer step over a batch that several processes share.

Losses and gradients are sums until all parts of a batch and all processes are added up, and means
over the whole batch afterwards. So neither the number of processes nor the size of the parts
changes what a step does, but for rounding and the draws of dropout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from smart_r1.batching import SceneBatch
from smart_r1.train.distributed import Ranks, add_up, add_up_gradients, gathered
from smart_r1.train.optimizer import parameters_of, take_step, update_average
from smart_r1.train.state import TrainState
from wosac_toolkit.errors import WosacError, some_ids

if TYPE_CHECKING:
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest


class NonFiniteError(WosacError):
    """Training that has come to numbers that are not finite.

    Attributes:
        scenario_ids: the scenes among which the cause must be.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        mend: str = "",
        scenario_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.scenario_ids = tuple(scenario_ids)


class Sums(NamedTuple):
    """What an objective computes of a batch: scalars, sums over the actions that count.

    Attributes:
        loss: with its gradient.
        actions: how many count.
        correct: how many of them the model would have chosen.
    """

    loss: Tensor
    actions: Tensor
    correct: Tensor


Objective = Callable[["SMART", SceneBatch], Sums]
"""A loss, as sums. Its random numbers are torch's own, seeded for the step."""


@dataclass(frozen=True)
class Means:
    """What a batch comes to over all processes, the same in each.

    Attributes:
        loss: mean over the actions that count; NaN where there are none.
        accuracy: share of them that the model would have chosen; NaN likewise.
        actions: how many count.
        stop: some process was asked to stop.
    """

    loss: float
    accuracy: float
    actions: int
    stop: bool


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the network computes, see `TrainConfig.precision`."""
    if precision == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bfloat16" if on_gpu else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def mean_gradient(
    state: TrainState,
    objective: Objective,
    batches: Sequence[SceneBatch],
    ranks: Ranks,
    *,
    stop: StopRequest | None = None,
) -> Means:
    """Set the gradients of the mean loss over the actions in the batches of all processes.

    Args:
        state: what is trained.
        objective: computes sums of a batch.
        batches: this process's share, which may be empty.
        ranks: the processes.
        stop: looked at in the end, whether this process was asked to; the result says whether any
            was.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    state.optimizer.zero_grad()
    # Loss, actions, correct ones, and processes that were asked to stop.
    totals = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    losses = []
    for batch in batches:
        sums = objective(state.model, batch.to(ranks.device))
        sums.loss.backward()  # type: ignore[no-untyped-call]
        losses.append(sums.loss.detach())
        totals[:3] += torch.stack([total.detach().double() for total in sums])
    totals[3] = float(bool(stop))
    add_up(ranks, [totals])
    loss, actions, correct, n_stops = totals.tolist()
    if not math.isfinite(loss):
        parts = [part for part, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        raise _not_finite("the loss", state, ranks, parts, batches)
    for gradient in add_up_gradients(ranks, parameters_of(state.optimizer)):
        gradient /= max(actions, 1)
    return Means(
        loss=loss / actions if actions else math.nan,
        accuracy=correct / actions if actions else math.nan,
        actions=int(actions),
        stop=n_stops > 0,
    )


def follow_gradient(
    state: TrainState,
    batches: Sequence[SceneBatch],
    ranks: Ranks,
    *,
    learning_rate: float,
    max_gradient_norm: float,
    average_decay: float,
) -> float:
    """Take the step that the gradients ask for; the moving average and the count of steps follow.

    Args:
        state: what is trained, with the same gradients in all processes.
        batches: of this process, to be named where a gradient is not finite.
        ranks: the processes.
        learning_rate: of this step.
        max_gradient_norm: longer gradients are scaled down to it.
        average_decay: see `TrainConfig`.

    Returns:
        The norm of the gradient, before it is scaled.

    Raises:
        NonFiniteError: a gradient is not finite; the weights are as before.
    """
    parameters = parameters_of(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm).item()
    if not math.isfinite(norm):
        raise _not_finite("the gradient", state, ranks, batches)
    take_step(state.optimizer, learning_rate)
    step = state.progress.step
    if state.average is not None:
        weights = zip(state.average.parameters(), state.model.parameters(), strict=True)
        update_average(weights, average_decay, step)
    state.progress = dataclasses.replace(state.progress, step=step + 1)
    return norm


def _not_finite(
    what: str, state: TrainState, ranks: Ranks, *suspects: Sequence[SceneBatch]
) -> NonFiniteError:
    """The error, which names the first suspects of which any process has one."""
    named: list[str] = []
    for batches in suspects:
        mine = [scenario_id for batch in batches for scenario_id in batch.scenario_ids]
        named = named or [scenario_id for ids in gathered(ranks, mine) for scenario_id in ids]
    return NonFiniteError(
        f"{what} is not finite, in a batch with the scenarios {some_ids(named)}",
        where=f"step {state.progress.step + 1}",
        mend="look for absurd numbers in these scenes, or lower optimizer.learning_rate",
        scenario_ids=named,
    )
