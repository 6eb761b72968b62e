"""`smart-r1 sft`."""

from __future__ import annotations

from pathlib import Path

import click

from smart_r1.cli.options import assigned, run_stage, stage_options
from wosac_toolkit.cli.help import Command


@click.command(
    "sft",
    cls=Command,
    examples=(
        "smart-r1 sft --checkpoint runs/bc/best --data cache/ --out runs/sft",
        "smart-r1 sft --checkpoint runs/bc/best --data cache/ --out runs/sft epochs=16 top_k=64",
    ),
)
@click.option(
    "--checkpoint",
    "begins_with",
    metavar="DIR",
    help="Folder of the model to begin with.",
)
@click.option("--data", metavar="CACHE", help="Scenes that smart-r1 prepare has prepared.")
@click.option(
    "--val-data",
    "validation_data",
    metavar="CACHE",
    help="Prepared scenes to validate on.  [default: some of --data, held out]",
)
@click.option("--epochs", type=int, metavar="N", help="Passes over the data.  [default: 10]")
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
    """Fine-tune a model in closed loop (CAT-K).

    The model simulates each scene, its agents taking of the 32 most probable tokens the one nearest
    to the log, and learns to come back to the log from where that has led. KEY=VALUE, torchrun and
    what RUN gets are as for smart-r1 pretrain.
    """
    from smart_r1.train.sft import load_sft_config, sft

    settings = load_sft_config(config, [*assigned(options), *assignments])
    run_stage(out, lambda: sft(settings, out, device=device, progress=True))
