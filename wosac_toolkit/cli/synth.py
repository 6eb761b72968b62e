"""`wosac synth`."""

from __future__ import annotations

from pathlib import Path

import click

from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted
from wosac_toolkit.errors import WosacError

_PREFIX = "synthetic"


@click.command("synth", cls=Command, examples=("wosac synth --n 100 --seed 0 --out scenes/",))
@click.option(
    "--n",
    type=click.IntRange(min=1),
    metavar="N",
    default=100,
    show_default=True,
    help="How many scenes.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="The same seed gives the same scenes.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of the scenes.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    metavar="N",
    help="TFRecord files to spread them over.  [default: one for 100 scenes]",
)
def command(n: int, seed: int, out: Path, shards: int | None) -> None:
    """Generate synthetic scenes, in the format of WOMD.

    Roads, intersections with traffic lights, vehicles, pedestrians and cyclists, in TFRecord files
    that the official package reads.
    """
    from tqdm import tqdm

    from wosac_toolkit.io.scenarios import write_scenarios
    from wosac_toolkit.synthetic import generate_scenarios

    n_shards = min(n, shards or -(-n // 100))
    names = {f"{_PREFIX}.tfrecord-{number:05d}-of-{n_shards:05d}" for number in range(n_shards)}
    if others := [path.name for path in out.glob("*.tfrecord*") if path.name not in names]:
        raise WosacError(
            f"the folder holds other scenes: {sorted(others)[0]}",
            where=str(out),
            mend="choose another --out, or delete them",
        )
    scenes = tqdm(generate_scenarios(n, seed), total=n, unit=" scenes", desc="generating")
    write_scenarios(out, scenes, n_shards, _PREFIX)
    click.echo(f"{counted(n, 'scene')} generated: {out}")
