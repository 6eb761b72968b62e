"""Options that several commands share, and the running of a stage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from smart_r1.evaluate import Policy
    from smart_r1.train.stage import Outcome

Decorator = Callable[[Any], Any]


def scenarios_option(function: Any) -> Any:
    """`--scenarios`."""
    return click.option(
        "--scenarios",
        metavar="PATH",
        envvar="WOSAC_SCENARIOS",
        required=True,
        help="The scenes (WOMD TFRecords): a file, folder, glob or list of shards.  "
        "[environment: WOSAC_SCENARIOS]",
    )(function)


def stage_options(out: str | None = None) -> Decorator:
    """What every stage of training takes, for `run_stage`.

    Args:
        out: where the run is by default; None: it must be said.
    """
    options: list[Decorator] = [
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="RUN",
            required=out is None,
            default=out,
            show_default=True,
            help="Folder of the run. If it is interrupted, the same command resumes it.",
        ),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Settings in YAML, such as the config.yaml of another run.",
        ),
        click.option(
            "--val-scenarios",
            "validation_scenarios",
            metavar="PATH",
            help="Scenes (WOMD TFRecords) to simulate and score now and then.",
        ),
        click.option(
            "--device", metavar="NAME", help="Such as cpu or cuda:1.  [default: a GPU if any]"
        ),
        click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]..."),
    ]

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def assigned(options: Mapping[str, object]) -> list[str]:
    """The options that were given, as assignments of settings."""
    # JSON, which is YAML too, so that text stays text.
    return [f"{name}={json.dumps(v)}" for name, v in options.items() if v is not None]


def run_stage(out: Path, run: Callable[[], Outcome]) -> None:
    """Run a stage and say how it ended."""
    from wosac_toolkit.cli.tables import counted

    try:
        done = run()
    except KeyboardInterrupt:  # The second one: the first is answered with a checkpoint.
        kept = f"what was saved last is kept in {out}, and the same command resumes from there"
        raise KeyboardInterrupt(kept) from None
    if not done.finished:
        raise KeyboardInterrupt(f"the run is kept in {out}, and the same command resumes it")
    if os.environ.get("RANK", "0") == "0":
        before = " before" if done.finished_before else ""
        steps = counted(done.progress.step, "step")
        click.echo(f"training was finished{before}, after {steps}: {out / 'final'}")


_POLICY: list[Decorator] = [
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        metavar="DIR",
        required=True,
        help="Folder of the model, as smart-r1 pretrain and import write it.",
    ),
    click.option(
        "--n",
        "n_rollouts",
        type=click.IntRange(min=1),
        metavar="N",
        default=32,
        show_default=True,
        help="Rollouts a scene.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        metavar="K",
        default=48,
        show_default=True,
        help="Draw tokens among so many of the most probable.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, min_open=True),
        metavar="T",
        default=1.0,
        show_default=True,
        help="Logits are divided by it.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help="Of the draws: each scene and rollout has its own.",
    ),
    click.option(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:1.  [default: a GPU if there is one]",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="At most so many scenes, the first in the files.",
    ),
]


def policy_options(function: Any) -> Any:
    """What `make_policy` takes, and `--limit`."""
    for option in reversed(_POLICY):
        function = option(function)
    return function


def make_policy(
    checkpoint: Path,
    n_rollouts: int,
    top_k: int,
    temperature: float,
    seed: int,
    device: str | None,
) -> Policy:
    """The policy of the options.

    Raises:
        WosacError: no such device, or a checkpoint that cannot be read.
    """
    import torch

    from smart_r1.evaluate import Policy
    from smart_r1.model.checkpoint import fingerprint, load_model
    from smart_r1.simulate import Sampling

    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise WosacError(f"device {name}: {str(error).splitlines()[0]}") from None
    model = load_model(checkpoint, place)
    return Policy(
        model, f"smart-{fingerprint(checkpoint)}", n_rollouts, Sampling(top_k, temperature), seed
    )
