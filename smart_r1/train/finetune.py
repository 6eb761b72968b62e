"""Reinforcement fine-tuning on the realism meta-metric: SMART-R1 (arXiv 2509.23993)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from smart_r1.model.checkpoint import fingerprint, load_model
from smart_r1.train.config import load_config
from smart_r1.train.distributed import Ranks, gathered
from smart_r1.train.experience import Loaded, load_parts
from smart_r1.train.loop import Done, Run, Stage, TrainConfig
from smart_r1.train.optimizer import OptimizerConfig
from smart_r1.train.policy_config import PolicyConfig, resolved
from smart_r1.train.policy_step import Learned, Lesson, policy_step
from smart_r1.train.scenes import epoch_order, steps_per_epoch
from smart_r1.train.schedule import ScheduleConfig
from smart_r1.train.stage import (
    PRESETS,
    Outcome,
    Trained,
    load_for_training,
    new_state,
    run_stage,
)
from smart_r1.train.state import step_seed
from smart_r1.train.step import autocast, follow_gradient
from smart_r1.train.validation import ClosedLoopConfig, closed_loop_validation
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.scenarios import index_scenarios
from wosac_toolkit.reward import SceneReward, get_reward

if TYPE_CHECKING:
    from smart_r1.train.interrupt import StopRequest
    from wosac_toolkit.reward import Reward


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of reinforcement fine-tuning, besides those of every stage.

    Learning rate, batch and rollouts are those of RLFTSim (arXiv 2605.19033), since SMART-R1 does
    not tell its own.

    Attributes:
        begins_with: folder of the model, as `smart-r1 pretrain`, `sft` and `import` write it. It is
            the frozen reference too.
        scenarios: scenes to train on, TFRecords.
        limit: at most so many of them, the first in the files.
        validation_scenarios: scenes to validate on, TFRecords.
        reward: a name, or `package.module:name`, see `wosac_toolkit.reward.get_reward`.
        challenge: version of the metric that the reward is of.
        reward_threads: that compute it; None: as many as there are CPUs.
        policy: how it learns.
        trained: which weights.
        closed_loop: validation by simulation.
    """

    begins_with: str
    scenarios: str
    limit: int | None = None
    validation_scenarios: str | None = None
    reward: str = "meta_score"
    challenge: str = "2025"
    reward_threads: int | None = None
    epochs: int = 1
    batch: int = 8
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(3e-6))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("constant"))
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    trained: Trained = "decoder"
    closed_loop: ClosedLoopConfig = field(default_factory=lambda: ClosedLoopConfig(every_epochs=1))

    may_change: ClassVar[frozenset[str]] = TrainConfig.may_change | {
        *("begins_with", "scenarios", "validation_scenarios", "reward_threads")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise WosacError(f"limit must be at least 1, is {self.limit}")


def load_finetune_config(file: Path | None, assignments: Sequence[str]) -> FinetuneConfig:
    """Settings from a YAML file and `key=value`, with those of the algorithm filled in."""
    config = load_config(FinetuneConfig, file, assignments, presets=PRESETS)
    return dataclasses.replace(config, policy=resolved(config.policy))


def finetune(
    config: FinetuneConfig, out: Path, *, device: str | None = None, progress: bool = False
) -> Outcome:
    """Fine-tune a policy on rewards; see `smart_r1.train.stage.run_stage`.

    Raises:
        WosacError: also an unknown reward, or scenes that cannot be read.
    """
    config = dataclasses.replace(config, policy=resolved(config.policy))
    reward = _reward(config)

    def begin(ranks: Ranks, stop: StopRequest) -> Stage[Loaded]:
        checkpoint = Path(config.begins_with)
        model = load_for_training(checkpoint, config.trained, ranks)
        reference = load_model(checkpoint, ranks.device).requires_grad_(False)
        index = index_scenarios(config.scenarios, progress=progress and ranks.is_first)
        records = dict(islice(index.items(), config.limit))
        if not records:
            raise WosacError("no scenes to train on", where=config.scenarios)
        names = list(records)
        state = new_state(model, config, names, validate_first=True)
        state.memory["begins_with"] = fingerprint(checkpoint)
        lesson = Lesson(
            model=model,
            reference=reference,
            optimizer=state.optimizer,
            reward=reward,
            config=config.policy,
            context=partial(autocast, config.precision, ranks.device),
            edges_at_once=config.edges_at_once,
            ranks=ranks,
        )
        per_epoch = steps_per_epoch(len(names), config.batch)

        def load(step: int) -> Loaded:
            epoch, place = divmod(step, per_epoch)
            order = epoch_order(config.seed, epoch, len(names))
            whole = order[place * config.batch : (place + 1) * config.batch]
            mine = [names[number] for number in whole[ranks.rank :: ranks.size]]
            return load_parts(
                {name: records[name] for name in mine},
                n_rollouts=config.policy.n_rollouts,
                edges_at_once=config.edges_at_once,
            )

        def update(run: Run, loaded: Loaded, learning_rate: float) -> Done:
            step = state.progress.step

            def follow() -> float:
                norm = follow_gradient(
                    state,
                    [part.batch for part in loaded.parts],
                    ranks,
                    learning_rate=learning_rate,
                    max_gradient_norm=config.optimizer.max_gradient_norm,
                    average_decay=config.average_decay,
                )
                # However many updates, it is one step of the run.
                state.progress = dataclasses.replace(state.progress, step=step)
                return norm

            learned = policy_step(
                lesson,
                loaded,
                state.memory,
                # The same in all processes: whose a scene is changes nothing.
                seed=step_seed(config.seed, step, 0),
                measure=(step + 1) % config.log.every_steps == 0,
                follow=follow,
            )
            state.memory = learned.memory
            if step == 0 and ranks.is_first and progress and (told := _above_all(config, learned)):
                tqdm.write(told, file=sys.stderr)
            state.progress = dataclasses.replace(state.progress, step=step + 1)
            stop = any(gathered(ranks, bool(run.stop)))
            return Done(learned.values, f"reward {learned.values['reward']:.3f}", stop)

        validation = closed_loop_validation(
            config.validation_scenarios, config.closed_loop, config.epochs, ranks, stop
        )
        return Stage(state, n_scenes=len(names), load=load, update=update, validation=validation)

    return run_stage(config, out, begin, device=device, progress=progress)


def _above_all(config: FinetuneConfig, learned: Learned) -> str:
    """What to tell of an alpha above all that a policy gets; empty where it is not.

    The paper's is about what its model scores. Above all rewards it makes each step lower the
    probability of whatever was done, and realism falls: docs/results.md.
    """
    policy, values = config.policy, learned.values
    judged = policy.algo in ("mpo", "reinforce") and policy.credit in ("group", "single")
    mean = values["reward_of_rollouts"]
    assert isinstance(mean, float)
    if not judged or policy.alpha is None or not mean < policy.alpha:
        return ""
    if values["advantage_positive"] != 0:
        return ""
    return (
        f"smart-r1: warning: no rollout of the first step is worth as much as alpha, "
        f"{policy.alpha:g}, but {mean:.3f} in the mean: learning will make all that was done less "
        "probable (--credit agent, --alpha auto, or an alpha near the model's realism)"
    )


def _reward(config: FinetuneConfig) -> Reward:
    credit = config.policy.credit
    if ":" in config.reward:
        reward = get_reward(config.reward)
        if isinstance(reward, SceneReward) and reward.credit != credit:
            raise WosacError(
                f"policy.credit is {credit}, but the reward {config.reward} has {reward.credit}",
                mend=f"policy.credit={reward.credit}",
            )
        return reward
    options: dict[str, Any] = {"credit": credit, "workers": config.reward_threads}
    return get_reward(config.reward, challenge=config.challenge, **options)
