"""`smart-r1 tokens`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from wosac_toolkit.cli.help import Command, Group
from wosac_toolkit.cli.tables import FORMATS, Cell, Table, counted, render
from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from tqdm import tqdm

    from smart_r1.tokens.reconstruction import TokenUse
    from wosac_toolkit.io.tfrecord import RecordRef
    from wosac_toolkit.scenario import Scenario

_data = click.option(
    "--data",
    metavar="PATH",
    envvar="WOSAC_SCENARIOS",
    required=True,
    help="The scenes (WOMD TFRecords): a file, folder, glob or list of shards.  "
    "[environment: WOSAC_SCENARIOS]",
)
_seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of all that is drawn.",
)


@click.group(
    "tokens",
    cls=Group,
    examples=(
        "smart-r1 tokens build --data womd/training --out vocabulary.safetensors",
        "smart-r1 tokens check --data womd/validation",
    ),
)
def command() -> None:
    """Build and check vocabularies."""


@command.command(
    "build",
    cls=Command,
    examples=("smart-r1 tokens build --data womd/training --out vocabulary.safetensors",),
)
@_data
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    required=True,
    help="The vocabulary, a .safetensors file.",
)
@_seed
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    nargs=3,
    metavar="M M M",
    default=(0.05, 0.05, 0.05),
    show_default=True,
    help="Radius of the disks of vehicles, pedestrians, cyclists, in metres.",
)
@click.option(
    "--map-tolerance",
    type=click.FloatRange(min=0, min_open=True),
    metavar="M",
    default=0.03,
    show_default=True,
    help="Radius of the disks of map curves, in metres.",
)
@click.option(
    "--n-motion",
    type=click.IntRange(min=2),
    metavar="N",
    default=2048,
    show_default=True,
    help="Motion tokens of each class.",
)
@click.option(
    "--n-map",
    type=click.IntRange(min=1),
    metavar="N",
    default=1024,
    show_default=True,
    help="Map curves.",
)
@click.option(
    "--scenes",
    type=click.IntRange(min=1),
    metavar="N",
    default=5000,
    show_default=True,
    help="Use at most N scenes, drawn at random.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
def build(
    data: str,
    out: Path,
    seed: int,
    tolerance: tuple[float, float, float],
    map_tolerance: float,
    n_motion: int,
    n_map: int,
    scenes: int,
    workers: int | None,
) -> None:
    """Make a vocabulary from scenes.

    Chooses motion tokens and map curves by k-disks. What the scenes have too little of is filled up
    from rules of how road users move and roads run. The same seed gives the same vocabulary,
    whatever the number of workers.
    """
    from smart_r1.tokens.build import build_vocabulary
    from smart_r1.tokens.vocabulary import save_vocabulary

    if out.suffix != ".safetensors":
        raise WosacError("is no name for a vocabulary", where=str(out), mend="end it .safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = build_vocabulary(
        data,
        n_motion=n_motion,
        n_curves=n_map,
        tolerances=tolerance,
        curve_tolerance=map_tolerance,
        n_scenes=scenes,
        seed=seed,
        workers=workers,
    )
    save_vocabulary(out, vocabulary)
    click.echo(
        f"vocabulary {vocabulary.fingerprint()}, {n_motion} motion tokens a class, "
        f"{n_map} map curves: {out}"
    )


@command.command(
    "check",
    cls=Command,
    examples=(
        "smart-r1 tokens check --data womd/validation",
        "smart-r1 tokens check --vocabulary vocabulary.safetensors --data womd/validation",
        "smart-r1 tokens check --vocabulary agent_vocab_555_s2.pkl --map map_traj_token5.pkl "
        "--data womd/validation",
    ),
)
@click.option(
    "--vocabulary",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A .safetensors file of tokens build, or CAT-K's pickle.  [default: the package's own]",
)
@click.option(
    "--map",
    "curves",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The map curves, where they are in a file of their own.",
)
@_data
@click.option(
    "--scenes",
    type=click.IntRange(min=1),
    metavar="N",
    default=1000,
    show_default=True,
    help="Use at most N scenes, drawn at random.",
)
@_seed
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="How to print the errors.",
)
def check(
    vocabulary: Path | None, curves: Path | None, data: str, scenes: int, seed: int, format_: str
) -> None:
    """Show what a vocabulary loses of the motion and the map of scenes.

    Tracks are matched as for training, each token from where the last one ended, and played out at
    10 Hz. Errors are in metres and radians.
    """
    from smart_r1.tokens.build import draw_scenes
    from smart_r1.tokens.reconstruction import reconstruct
    from smart_r1.tokens.vocabulary import default_vocabulary, load_vocabulary
    from wosac_toolkit.workers import progress_bar

    if vocabulary is None and curves is not None:
        raise click.UsageError("--map goes with --vocabulary.")
    chosen = default_vocabulary() if vocabulary is None else load_vocabulary(vocabulary, curves)
    records = draw_scenes(data, scenes, seed)
    with progress_bar(len(records), what="matching") as bar:
        uses = reconstruct(_counted(records, bar), chosen)
    if format_ == "json":
        errors = {name: dataclasses.asdict(use) for name, use in uses.items()}
        content = {
            "vocabulary": chosen.fingerprint(),
            "n_scenes": len(records),
            "matched": errors,
        }
        click.echo(json.dumps(content, indent=2))
    else:
        note = f"vocabulary {chosen.fingerprint()}, {counted(len(records), 'scene')}"
        click.echo(render(_table(uses, note), format_))


_LABELS = {
    "position": "position (m)",
    "moving_position": "position, moving (m)",
    "position_10hz": "position, 10 Hz (m)",
    "heading": "heading (rad)",
    "heading_10hz": "heading, 10 Hz (rad)",
}


def _table(uses: dict[str, TokenUse], note: str) -> Table:
    rows: list[tuple[int, tuple[Cell, ...]]] = [
        (0, (f"{name} {_LABELS[what]}", e.n, e.mean, e.p50, e.p95, e.p99, e.max))
        for name, use in uses.items()
        for what, e in use.errors.items()
    ]
    used = ", ".join(f"{name} {use.used:.0%}" for name, use in uses.items())
    header = ("error", "n", "mean", "50 %", "95 %", "99 %", "max")
    return Table(header, rows, (note, f"share of the vocabulary in use: {used}"))


def _counted(records: Iterable[RecordRef], bar: tqdm[NoReturn]) -> Iterator[Scenario]:
    """The scenes at these places; the bar counts them."""
    from wosac_toolkit.io.scenarios import read_scenario

    for record in records:
        yield read_scenario(record)
        bar.update(1)
