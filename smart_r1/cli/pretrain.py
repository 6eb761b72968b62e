"""`smart-r1 pretrain`."""

from __future__ import annotations

from pathlib import Path

import click

from smart_r1.cli.options import assigned, run_stage, stage_options
from wosac_toolkit.cli.help import Command


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
@click.option("--epochs", type=int, metavar="N", help="Passes over the data.  [default: 64]")
@click.option(
    "--batch", type=int, metavar="N", help="Scenes a step, over all processes.  [default: 80]"
)
@stage_options()
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

    settings = load_pretrain_config(config, [*assigned(options), *assignments])
    run_stage(out, lambda: pretrain(settings, out, device=device, progress=True))
