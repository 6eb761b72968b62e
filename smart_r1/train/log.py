"""What a run reports: a JSON line each time, and curves for TensorBoard and Weights & Biases.

`RUN/log.jsonl` has lines such as

    {"event": "train", "step": 120, "epoch": 3, "loss": 2.31, ..., "seconds": 41.2}
    {"event": "validation", "step": 120, "epoch": 3, "open_loop/loss": 2.4, ..., "seconds": 3.1}

`epoch` counts from 1. A value that is not a finite number is null.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from wosac_toolkit.io.files import atomic_write

Event = Literal["train", "validation", "error"]
Value = float | int | str | list[str] | None


class Log(Protocol):
    """Takes what a run reports."""

    def __call__(self, event: Event, step: int, values: Mapping[str, Value]) -> None:
        """Write values that belong to a step."""


def silent(event: Event, step: int, values: Mapping[str, Value]) -> None:
    """A log that keeps nothing, for the processes that do not write files."""


@contextmanager
def opened(
    run: Path, *, step: int, validated_step: int, settings: Mapping[str, Any], wandb: str | None
) -> Iterator[Log]:
    """Open the logs of a run: JSON lines always, TensorBoard where it is installed.

    What was reported after the step from which the run goes on is deleted, since it comes again.

    Args:
        run: its folder.
        step: the step from which it goes on, 0 for a new one.
        validated_step: the last validation that stands.
        settings: shown with the curves in Weights & Biases.
        wandb: a project of Weights & Biases, to report there too.

    Raises:
        ModuleNotFoundError: `wandb` is asked for and not installed.
    """
    _rewind(run / "log.jsonl", step, validated_step)
    with ExitStack() as stack:
        logs: list[Log] = [stack.enter_context(_json_lines(run / "log.jsonl"))]
        if importlib.util.find_spec("tensorboard") is not None:
            logs.append(stack.enter_context(_tensorboard(run / "tensorboard", step)))
        if wandb is not None:
            logs.append(stack.enter_context(_wandb(wandb, run, settings)))

        def write(event: Event, step: int, values: Mapping[str, Value]) -> None:
            for log in logs:
                log(event, step, values)

        yield write


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of `RUN/log.jsonl`, without one that was torn by a kill."""
    lines = []
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _rewind(path: Path, step: int, validated_step: int) -> None:
    if not path.exists():
        return
    stands = {"train": step, "validation": validated_step, "error": -1}
    kept = [line for line in read_log(path.parent) if line["step"] <= stands[line["event"]]]
    with atomic_write(path) as stream:
        stream.writelines(_encoded(line) for line in kept)


def _encoded(line: Mapping[str, Any]) -> bytes:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return json.dumps(finite).encode() + b"\n"


@contextmanager
def _json_lines(path: Path) -> Iterator[Log]:
    with open(path, "ab") as file:

        def write(event: Event, step: int, values: Mapping[str, Value]) -> None:
            file.write(_encoded({"event": event, "step": step, **values}))
            file.flush()

        yield write


def _numbers(event: Event, values: Mapping[str, Value]) -> dict[str, float]:
    """The curves that values are points of, by name."""
    return {f"{event}/{k}": v for k, v in values.items() if isinstance(v, float | int)}


@contextmanager
def _tensorboard(folder: Path, step: int) -> Iterator[Log]:
    # It would load TensorFlow if that is installed, which takes seconds and is of no use here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=step + 1 if step else None) as writer:

        def write(event: Event, step: int, values: Mapping[str, Value]) -> None:
            for name, value in _numbers(event, values).items():
                writer.add_scalar(name, value, step)

        yield write


@contextmanager
def _wandb(project: str, run: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    import wandb  # type: ignore[import-not-found]

    # The folder's own id, so that a run that goes on goes on there too.
    session = wandb.init(
        project=project, name=run.name, id=_wandb_id(run), resume="allow", config=dict(settings)
    )
    try:

        def write(event: Event, step: int, values: Mapping[str, Value]) -> None:
            session.log(_numbers(event, values), step=step)

        yield write
    finally:
        session.finish()


def _wandb_id(run: Path) -> str:
    import secrets

    file = run / "wandb_id"
    if not file.exists():
        with atomic_write(file) as stream:
            stream.write(secrets.token_hex(8).encode())
    return file.read_text()
