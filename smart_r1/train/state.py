"""The folder of a run: its settings, its checkpoints, the best model and the final one.

    RUN/config.yaml                  all settings
    RUN/log.jsonl, RUN/tensorboard/  see `smart_r1.train.log`
    RUN/checkpoints/step-00001200/   a model folder, and in trainer.safetensors and trainer.json
                                     what it takes to go on
    RUN/best/                        the model folder that validated best
    RUN/final/                       the model folder at the end; there only when the run is done

A model folder is what `smart_r1.model.checkpoint.load_model` reads; with a moving average of the
weights it holds the average, and the trainer's files the weights themselves. No file is a pickle.

Random numbers have no state to be kept: each step draws from a seed of its own (`step_seed`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from smart_r1.model.checkpoint import load_model, save_model
from smart_r1.train.optimizer import parameters_of
from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io.files import atomic_write, one_line

if TYPE_CHECKING:
    from smart_r1.model.smart import SMART

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps taken.
        validated_step: the last step after which it was validated; before the first time 0, or -1
            where the model at step 0 is validated too.
        best: the best value so far of what validation watches, None before the first one.
        best_step: the step that it is of.
        data: a hash of the scenario ids that it trains on, in their order.
    """

    data: str
    step: int = 0
    validated_step: int = 0
    best: float | None = None
    best_step: int = 0


@dataclass(eq=False)
class TrainState:
    """What changes in training.

    Attributes:
        model: the weights.
        optimizer: of its parameters.
        average: a copy of the model that holds the moving average of the weights, or None.
        progress: how far it is.
        memory: what else a stage keeps from step to step, as JSON takes it.
    """

    model: SMART
    optimizer: torch.optim.Optimizer
    average: SMART | None
    progress: Progress
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> SMART:
        """The model to validate and to keep: the average, where there is one."""
        return self.average or self.model


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the random numbers of one step in one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


# --------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(run: Path, state: TrainState, keep: int) -> Path:
    """Write `RUN/checkpoints/step-*`, whole or not at all, and delete all but the newest ones.

    Args:
        run: the folder of the run.
        state: what to write.
        keep: how many checkpoints to keep, at least 1.
    """
    folder = run / "checkpoints" / f"step-{state.progress.step:08d}"
    with _replaced(folder) as temporary:
        save_model(temporary, state.result, _origin(state.progress))
        _write_tensors(temporary / "trainer.safetensors", _trainer_tensors(state))
        _write_progress(temporary, state.progress, state.memory)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_result(folder: Path, state: TrainState) -> None:
    """Write a model folder, `RUN/best` or `RUN/final`, in place of what is there."""
    with _replaced(folder) as temporary:
        save_model(temporary, state.result, _origin(state.progress))
        _write_progress(temporary, state.progress, {})


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def finished(run: Path) -> Progress | None:
    """How far a run was at its end; None while it has not come there."""
    return _read_progress(run / "final")[0] if (run / "final").exists() else None


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Go back to a checkpoint: replaces weights, the optimizer's moments, progress and memory.

    Raises:
        FormatError: files are missing or damaged, or of a model of other shapes.
        WosacError: they are of a model with another vocabulary.
    """
    progress, memory = _read_progress(folder)
    device = state.model.motion.device
    tensors = _read_tensors(folder / "trainer.safetensors", device)
    saved = load_model(folder, device)
    if saved.vocabulary().fingerprint() != state.model.vocabulary().fingerprint():
        raise WosacError(
            "the run began with another vocabulary",
            where=str(folder),
            mend="give the one it began with, or choose another --out",
        )
    if saved.config != state.model.config:
        raise FormatError("not a model of this run's size", where=str(folder), mend=_MEND)
    state.result.load_state_dict(saved.state_dict())
    named = dict(state.model.named_parameters())
    if state.average is not None:
        _copy({name: p.data for name, p in named.items()}, tensors, "weight", folder)
    moments = [
        {key: torch.empty_like(p) for key in _MOMENTS} | {"step": torch.zeros(())}
        for p in parameters_of(state.optimizer)
    ]
    for name, moment in zip(_optimized(state.model), moments, strict=True):
        _copy(moment, tensors, name, folder)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
    state.progress, state.memory = progress, memory


def _origin(progress: Progress) -> dict[str, str | int]:
    """What a model folder says of where the model comes from."""
    return {"trained_on": progress.data, "steps": progress.step}


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _optimized(model: SMART) -> list[str]:
    """The names of what `smart_r1.train.optimizer.make_optimizer` optimises, in its order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _trainer_tensors(state: TrainState) -> dict[str, Tensor]:
    """`<parameter>/exp_avg`, `/exp_avg_sq`, `/step`; `weight/<parameter>` if there is an average.

    Before the first step the optimizer has no moments: they are zeros then.
    """
    tensors: dict[str, Tensor] = {}
    if state.average is not None:
        tensors |= {f"weight/{name}": p.data for name, p in state.model.named_parameters()}
    parameters = parameters_of(state.optimizer)
    for name, parameter in zip(_optimized(state.model), parameters, strict=True):
        moments = state.optimizer.state[parameter]
        for key in _MOMENTS:
            tensors[f"{name}/{key}"] = moments.get(key, torch.zeros_like(parameter.data))
        tensors[f"{name}/step"] = moments.get("step", torch.zeros(()))
    return tensors


def _copy(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str, at: Path) -> None:
    """Fill tensors from those of a file named `<prefix>/<key>`."""
    for key, tensor in into.items():
        found = tensors.get(f"{prefix}/{key}")
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            what = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
            where = str(at / "trainer.safetensors")
            raise FormatError(f"{prefix}/{key} {what}", where=where, mend=_MEND)
        tensor.copy_(found)


_MEND = "delete this checkpoint: the run then resumes from the one before it"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise FormatError("the file is missing", where=str(path), mend=_MEND) from None
    except (SafetensorError, OSError) as error:
        what = f"not sound safetensors: {one_line(error)}"
        raise FormatError(what, where=str(path), mend=_MEND) from None


def _write_progress(folder: Path, progress: Progress, memory: Mapping[str, Any]) -> None:
    content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(progress), "memory": memory}
    with atomic_write(folder / "trainer.json") as stream:
        stream.write(json.dumps(content, indent=2).encode() + b"\n")


def _read_progress(folder: Path) -> tuple[Progress, dict[str, Any]]:
    path = folder / "trainer.json"
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise FormatError("of another version of this package", where=str(path))
        memory = content.pop("memory")
        progress = Progress(**content)
        numbers = (progress.step, progress.validated_step + 1, progress.best_step)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("steps must be whole numbers")
        if progress.best is not None and type(progress.best) is not float:
            raise ValueError("best must be a number")
        if not isinstance(memory, dict):
            raise ValueError("memory must be a mapping")
    except FileNotFoundError:
        raise FormatError("the file is missing", where=str(path), mend=_MEND) from None
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"not the progress of a run: {one_line(error)}"
        raise FormatError(what, where=str(path), mend=_MEND) from None
    return progress, memory


# --------------------------------------------------------------------------------------------------
# The folder


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, which is made where absent.

    Raises:
        WosacError: another process trains into it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "wb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: two runs in one folder are not noticed.
            pass
        except OSError:
            raise WosacError(
                "another process is training into this folder",
                where=str(run),
                mend="wait for it, or choose another --out",
            ) from None
        yield


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when the block ends well."""
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
