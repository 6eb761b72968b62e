"""How good a model is: at the next token, and in closed loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from smart_r1.batching import collate, plan_batches, scene_costs
from smart_r1.objectives import next_token_loss_sum, next_token_targets, top_k_hits
from smart_r1.read_ahead import read_ahead
from smart_r1.train.distributed import Ranks, add_up
from smart_r1.train.loop import Validated, Validation
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.scenarios import load_scenarios
from wosac_toolkit.io.tfrecord import find_shards

if TYPE_CHECKING:
    from smart_r1.cache import SceneCache
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest
    from wosac_toolkit.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class ClosedLoopConfig:
    """Validation by the realism of simulated scenes.

    Attributes:
        every_epochs: 0 for never.
        scenarios: the first so many scenes of the validation files.
        n_rollouts: of each.
        top_k: tokens are drawn among so many of the most probable.
        temperature: of the draw.
        seed: of the draw, the same each time.
        challenge: version of the metric.
    """

    every_epochs: int = 8
    scenarios: int = 32
    n_rollouts: int = 32
    top_k: int = 48
    temperature: float = 1.0
    seed: int = 0
    challenge: str = "2025"

    def __post_init__(self) -> None:
        if self.every_epochs < 0 or self.seed < 0:
            raise WosacError("closed_loop: every_epochs and seed must not be negative")
        numbers = (self.scenarios, self.n_rollouts, self.top_k)
        if min(numbers) < 1 or not self.temperature > 0:
            raise WosacError(
                "closed_loop: scenarios, n_rollouts, top_k and temperature must be positive"
            )


@dataclass(frozen=True, kw_only=True)
class OpenLoopConfig:
    """Validation by the next token on the held-out scenes.

    Attributes:
        every_epochs: 0 for never.
        scenes: at most so many of them; None for all.
    """

    every_epochs: int = 1
    scenes: int | None = None

    def __post_init__(self) -> None:
        if self.every_epochs < 0 or (self.scenes is not None and self.scenes < 1):
            raise WosacError("open_loop: every_epochs must not be negative, and scenes positive")


def is_due(every_epochs: int, epoch: int, epochs: int) -> bool:
    """Whether to validate after an epoch, counted from 1; always after the last one, if ever."""
    return every_epochs > 0 and (epoch % every_epochs == 0 or epoch == epochs)


@torch.no_grad()
def open_loop(
    model: SMART,
    cache: SceneCache,
    ranks: Ranks,
    stop: StopRequest,
    *,
    edges_at_once: int,
    label_smoothing: float,
    context: Callable[[], AbstractContextManager[object]],
) -> Mapping[str, float] | None:
    """Loss and accuracy over all agents, as in CAT-K's validation.

    Args:
        model: in evaluation mode.
        cache: the scenes, of which each process takes its share.
        ranks: the processes.
        stop: looked at after every batch.
        edges_at_once: see `smart_r1.train.loop.TrainConfig`.
        label_smoothing: of the loss.
        context: in which the network computes, such as an autocast.

    Returns:
        Means over the actions: `loss`; `nll`, the same without smoothing; `top1_accuracy`,
        `top5_accuracy`. None if some process was asked to stop.
    """
    totals = torch.zeros(6, dtype=torch.float64, device=ranks.device)
    mine = cache.select(range(len(cache))[ranks.rank :: ranks.size])
    parts = plan_batches(scene_costs(mine), edges_at_once)
    for loaded in read_ahead(collate(list(mine.select(part)), view="logged") for part in parts):
        batch = loaded.to(ranks.device)
        tokens = model.tokenize(batch)
        with context():
            logits = model(batch, tokens)
        target = next_token_targets(tokens)
        scored = logits, target.index, target.valid
        sums = [
            next_token_loss_sum(*scored, label_smoothing),
            next_token_loss_sum(*scored),
            top_k_hits(*scored, k=1).sum(),
            top_k_hits(*scored, k=min(5, logits.shape[-1])).sum(),
            target.valid.sum(),
        ]
        totals[:5] += torch.stack([value.double() for value in sums])
        if stop:
            totals[5] = 1
            break
    add_up(ranks, [totals])
    *values, count, n_stops = totals.tolist()
    if n_stops:
        return None
    names = ("loss", "nll", "top1_accuracy", "top5_accuracy")
    return {n: v / count if count else math.nan for n, v in zip(names, values, strict=True)}


def closed_loop_validation(
    scenarios: str | None, config: ClosedLoopConfig, epochs: int, ranks: Ranks, stop: StopRequest
) -> Validation:
    """Validation by the realism of simulated scenes, after the epochs in which it is due.

    Args:
        scenarios: TFRecords; None: there is no such validation.
        config: when and how.
        epochs: of the run.
        ranks: the processes, which share the scenes.
        stop: looked at after every scene.

    Raises:
        WosacError: there are no such files.
    """
    if scenarios is not None:
        find_shards(scenarios)  # An error now, not in an hour.

    def validate(model: SMART, epoch: int) -> Validated | None:
        if scenarios is None or not is_due(config.every_epochs, epoch, epochs):
            return Validated()
        some = islice(load_scenarios(scenarios), ranks.rank, config.scenarios, ranks.size)
        found = closed_loop(model, some, config, ranks, stop)
        if found is None:
            return None
        return Validated(found, found.get("closed_loop/metametric"))

    return validate


def closed_loop(
    model: SMART,
    scenarios: Iterable[Scenario],
    config: ClosedLoopConfig,
    ranks: Ranks,
    stop: StopRequest,
) -> Mapping[str, float] | None:
    """Means of the challenge's metric over simulated scenes, and of what it does not look at.

    A scene that cannot be simulated or scored is left out, and counted.

    Args:
        model: in evaluation mode.
        scenarios: those of this process.
        config: how to simulate.
        ranks: the processes.
        stop: looked at after every scene.

    Returns:
        Means over the scenes of all processes where there is a finite number:
        `closed_loop/<field>`, such as `closed_loop/metametric`; `behaviour/<quantity>`, see
        `wosac_toolkit.behaviour`, with the realism of another version of the metric among them;
        and `closed_loop/not_scored`, how many scenes were left out, where there are any. None if
        some process was asked to stop.
    """
    from smart_r1.evaluate import Policy, simulated
    from smart_r1.simulate import Sampling
    from wosac_toolkit import behaviour
    from wosac_toolkit.metric import score_scenario
    from wosac_toolkit.results import SCORE_FIELDS
    from wosac_toolkit.rollouts import Rollouts

    another = "2024" if config.challenge == "2025" else "2025"
    names = [
        *(f"closed_loop/{name}" for name in SCORE_FIELDS),
        *(f"behaviour/{name}" for name in (*behaviour.NAMES, f"realism_{another}")),
        "closed_loop/not_scored",
    ]
    sums = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    stopped = False
    policy = Policy(
        model, "smart", config.n_rollouts, Sampling(config.top_k, config.temperature), config.seed
    )
    for scene in simulated(policy, scenarios):
        try:
            if not isinstance(scene.rollouts, Rollouts):
                raise scene.rollouts
            score = score_scenario(scene.scenario, scene.rollouts, config.challenge)
            watched = behaviour.measure_behaviour(scene.scenario, scene.rollouts, (another,))
        except WosacError:
            sums["closed_loop/not_scored"] += 1
            counts["closed_loop/not_scored"] = 1
            continue
        found = {f"closed_loop/{k}": v for k, v in {**score.metrics(), **score.buckets()}.items()}
        found |= {f"behaviour/{k}": v for k, v in watched.values().items()}
        for name, value in found.items():
            if name in sums and value is not None and math.isfinite(value):
                sums[name] += value
                counts[name] += 1
        if stop:
            stopped = True
            break
    # A row a name: the sum, and of how many scenes; in the last row, who was asked to stop.
    totals = torch.tensor(
        [*((sums[name], counts[name]) for name in names), (stopped, 0)],
        dtype=torch.float64,
        device=ranks.device,
    )
    add_up(ranks, [totals])
    *rows, (n_stops, _) = totals.tolist()
    if n_stops:
        return None
    return {
        name: total if name == "closed_loop/not_scored" else total / count
        for name, (total, count) in zip(names, rows, strict=True)
        if count
    }
