"""A stage in its folder: new, resumed or finished before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from smart_r1.model.checkpoint import load_model
from smart_r1.model.config import CONFIGS, ModelConfig
from smart_r1.train import log as run_log
from smart_r1.train import state as run_state
from smart_r1.train.config import Presets, differences, load_config, to_yaml
from smart_r1.train.distributed import Ranks, joined, wait_for_all
from smart_r1.train.interrupt import stop_requests
from smart_r1.train.loop import Run, Stage, TrainConfig, train
from smart_r1.train.optimizer import make_optimizer
from smart_r1.train.state import Progress, TrainState
from wosac_toolkit.errors import WosacError
from wosac_toolkit.io.files import atomic_write
from wosac_toolkit.results import hash_lines

if TYPE_CHECKING:
    from smart_r1.model.smart import SMART
    from smart_r1.train.interrupt import StopRequest

PRESETS: Presets = {ModelConfig: CONFIGS}

Trained = Literal["decoder", "all"]
"""Which weights a stage that begins with a checkpoint trains: the attention layers of the agent
decoder and its head, as CAT-K's fine-tuning does, or all."""

_DECODER = tuple(
    f"agent_decoder.{part}." for part in ("time_layers", "map_layers", "agent_layers", "head")
)


@dataclass(frozen=True)
class Outcome:
    """What running a stage has come to.

    Attributes:
        finished: the run has come to its end; else it was asked to stop, and is saved.
        finished_before: it had come to its end in an earlier call.
        progress: how far it is.
    """

    finished: bool
    finished_before: bool
    progress: Progress


def run_stage(
    config: TrainConfig,
    out: Path,
    begin: Callable[[Ranks, StopRequest], Stage[Any]],
    *,
    device: str | None = None,
    progress: bool = False,
) -> Outcome:
    """Run a stage, or go on with the run in `out` if there is one.

    On one device and any number of processes started by `torchrun`, which share every batch. A run
    that was interrupted and goes on gives the same numbers as an unbroken one on the same device
    with as many processes. Torch's random numbers are seeded. SIGINT and SIGTERM end it after the
    current step, saved.

    Args:
        config: settings.
        out: folder of the run, see `smart_r1.train.state`.
        begin: makes the stage at its first step, the same in all processes.
        device: such as `cpu` or `cuda:1`; the GPU if there is one.
        progress: show a bar on stderr.

    Raises:
        NonFiniteError: a loss or gradient that is not finite; names the scenes of the batch.
        WosacError: bad settings or data; or the folder holds another run.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        ranks = stack.enter_context(joined(device))
        if ranks.is_first:
            stack.enter_context(run_state.locked(out))
            _claim(out, config)
        wait_for_all(ranks)
        if finished := run_state.finished(out):
            return Outcome(True, True, finished)
        if ranks.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as CAT-K trains.
        torch.manual_seed(config.seed)
        stage = begin(ranks, stop)
        if kept := run_state.checkpoints(out):
            _resume(stage.state, kept[-1], out)
        log = run_log.silent
        if ranks.is_first:
            log = stack.enter_context(
                run_log.opened(
                    out,
                    step=stage.state.progress.step,
                    validated_step=stage.state.progress.validated_step,
                    settings=asdict(config),
                    wandb=config.log.wandb,
                )
            )
        done = train(Run(out, config, ranks, log, stop, progress), stage)
    return Outcome(done, False, stage.state.progress)


def new_state(
    model: SMART, config: TrainConfig, scenario_ids: Sequence[str], *, validate_first: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        model: what is trained, where it requires gradients.
        config: settings.
        scenario_ids: the scenes to train on.
        validate_first: the model at step 0 is validated too.
    """
    average = None
    if config.average_decay:
        average = copy.deepcopy(model).eval().requires_grad_(False)
    return TrainState(
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
        average=average,
        progress=Progress(
            data=hash_lines(scenario_ids), validated_step=-1 if validate_first else 0
        ),
    )


def load_for_training(checkpoint: Path, trained: Trained, ranks: Ranks) -> SMART:
    """A model of which the weights that are trained require gradients, and no others.

    Raises:
        WosacError: there is no model, or it is damaged.
    """
    model = load_model(checkpoint, ranks.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained == "all" or name.startswith(_DECODER))
    return model


def _claim(out: Path, config: TrainConfig) -> None:
    """Write the settings into the folder of the run, or see that it is a run with the same ones."""
    file = out / "config.yaml"
    if file.exists():
        try:
            before = load_config(type(config), file, presets=PRESETS)
        except WosacError as error:
            raise WosacError(
                f"the folder holds a run of another kind: {error.what}",
                where=str(out),
                mend="choose another --out, or delete it",
            ) from None
        changed = differences(before, config)
        if refused := [name for name in changed if name not in config.may_change]:
            raise WosacError(
                f"the folder holds a run with another {', '.join(refused)}",
                where=str(out),
                mend="choose another --out, or delete it",
            )
    with atomic_write(file) as stream:
        stream.write(to_yaml(config).encode())


def _resume(state: TrainState, checkpoint: Path, out: Path) -> None:
    data, memory = state.progress.data, state.memory
    run_state.load_checkpoint(checkpoint, state)
    if state.progress.data != data:
        raise WosacError(
            "the run began with other scenes than it would go on with",
            where=str(out),
            mend="give the data it began with, or choose another --out",
        )
    if state.memory.get("begins_with") != memory.get("begins_with"):
        raise WosacError(
            "the checkpoint that the run began with has changed",
            where=str(out),
            mend="give the one it began with, or choose another --out",
        )
