"""`smart-r1 pretrain`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted


@click.command(
    "pretrain",
    cls=Command,
    examples=(
        "smart-r1 pretrain --data cache/ --out runs/bc --model tiny",
        "smart-r1 pretrain --data cache/ --out runs/bc --val-scenarios womd/validation",
        "smart-r1 pretrain --config bc.yaml --out runs/bc optimizer.learning_rate=1e-4",
        "torchrun --nproc-per-node 8 -m smart_r1.cli pretrain --config bc.yaml --out runs/bc",
    ),
)
@click.option("--data", metavar="CACHE", help="Scenes that smart-r1 prepare has prepared.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="RUN",
    required=True,
    help="Folder of the run. If it is interrupted, the same command resumes it.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings in YAML, such as the config.yaml of another run.",
)
@click.option(
    "--model",
    metavar="SIZE",
    help="pico, nano, mini, tiny (the 7M model of the papers) or base.  [default: tiny]",
)
@click.option(
    "--vocabulary",
    metavar="FILE",
    help="Motion tokens and map curves.  [default: those of the package]",
)
@click.option(
    "--val-data",
    "validation_data",
    metavar="CACHE",
    help="Prepared scenes to validate on.  [default: some of --data, held out]",
)
@click.option(
    "--val-scenarios",
    "validation_scenarios",
    metavar="PATH",
    help="Scenes (WOMD TFRecords) to simulate and score now and then.",
)
@click.option("--epochs", type=int, metavar="N", help="Passes over the data.  [default: 64]")
@click.option(
    "--batch", type=int, metavar="N", help="Scenes a step, over all processes.  [default: 80]"
)
@click.option("--device", metavar="NAME", help="Such as cpu or cuda:1.  [default: a GPU if any]")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    out: Path,
    config: Path | None,
    device: str | None,
    assignments: tuple[str, ...],
    **options: str | int,
) -> None:
    """Train SMART to predict the next token.

    Any setting of the run's config.yaml can be set by KEY=VALUE, which is stronger than an option,
    which is stronger than the file. Under torchrun the processes share every batch. RUN gets
    checkpoints, log.jsonl, curves for TensorBoard, the best model by validation in RUN/best, and
    the last one in RUN/final.
    """
    from smart_r1.train.pretrain import load_pretrain_config, pretrain

    # JSON, which is YAML too, so that text stays text.
    given = [f"{name}={json.dumps(v)}" for name, v in options.items() if v is not None]
    settings = load_pretrain_config(config, [*given, *assignments])
    try:
        done = pretrain(settings, out, device=device, progress=True)
    except KeyboardInterrupt:  # The second one: the first is answered with a checkpoint.
        kept = f"what was saved last is kept in {out}, and the same command resumes from there"
        raise KeyboardInterrupt(kept) from None
    if not done.finished:
        raise KeyboardInterrupt(f"the run is kept in {out}, and the same command resumes it")
    if os.environ.get("RANK", "0") == "0":
        before = " before" if done.finished_before else ""
        steps = counted(done.progress.step, "step")
        click.echo(f"training was finished{before}, after {steps}: {out / 'final'}")
