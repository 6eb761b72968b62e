"""`smart-r1 import`."""

from __future__ import annotations

from pathlib import Path

import click

from smart_r1.model.config import CONFIGS
from wosac_toolkit.cli.help import Command


@click.command(
    "import",
    cls=Command,
    examples=(
        "smart-r1 import epoch_last.ckpt --motion agent_vocab_555_s2.pkl "
        "--curves map_traj_token5.pkl --out models/catk",
    ),
)
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--motion",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    required=True,
    help="The motion tokens that the checkpoint was trained with: CAT-K's pickle, or a vocabulary "
    "of ours.",
)
@click.option(
    "--curves",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The map curves that it was trained with, where --motion does not hold them.",
)
@click.option(
    "--model",
    "size",
    type=click.Choice(list(CONFIGS)),
    help="Its size.  [default: found by the shapes of its weights]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of the model.",
)
def command(
    checkpoint: Path, motion: Path, curves: Path | None, size: str | None, out: Path
) -> None:
    """Read a checkpoint of CAT-K.

    CHECKPOINT is a .ckpt of Lightning, a .pt of torch.save or a .safetensors with the weights of
    CAT-K's SMART. A pickle is read as data; nothing in it is run. Checkpoints of the original SMART
    have other parts and cannot be read.
    """
    from smart_r1.model.catk import import_checkpoint

    name, n_parameters = import_checkpoint(checkpoint, motion, curves, size, out)
    click.echo(f"{name}, {n_parameters:,} parameters: {out}")
