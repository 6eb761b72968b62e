"""`wosac simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wosac_toolkit.baselines import POLICIES
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted
from wosac_toolkit.simulation import SCENES_PER_SHARD, simulate_dataset


@click.command(
    "simulate",
    cls=Command,
    examples=(
        "wosac simulate --policy constant_velocity --scenarios womd/validation --out rollouts/",
        "wosac simulate --policy idm --scenarios womd/testing --out idm/ --format submission",
        "wosac score rollouts/",
    ),
)
@click.option("--policy", type=click.Choice(list(POLICIES)), required=True, help="The policy.")
@click.option(
    "--scenarios",
    metavar="PATH",
    envvar="WOSAC_SCENARIOS",
    required=True,
    help="The scenes (WOMD TFRecords): a file, folder, glob or list of shards.  "
    "[environment: WOSAC_SCENARIOS]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of the rollouts. If the simulation is interrupted, the same command resumes it.",
)
@click.option(
    "--n",
    type=click.IntRange(min=1),
    metavar="N",
    default=32,
    show_default=True,
    help="Rollouts a scene.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the policy's noise.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["npz", "submission"]),
    default="npz",
    show_default=True,
    help=f"A file a scene, or shards of {SCENES_PER_SHARD} scenes as the challenge takes them.",
)
def command(
    policy: str,
    scenarios: str,
    out: Path,
    n: int,
    seed: int,
    workers: int | None,
    format_: Literal["npz", "submission"],
) -> None:
    """Simulate scenes with a baseline policy.

    log replays what happened; constant_velocity and constant_turn_rate go on as now; idm follows
    the lanes of the map and its leaders, and stops for red lights; static holds every pose; random
    is the floor.

    Every scene has the same rollouts whatever the number of workers. Writes a manifest.json beside
    the rollouts, by which `wosac score` finds the scenes.
    """
    try:
        n_written, n_scenes = simulate_dataset(
            scenarios, out, policy, n_rollouts=n, seed=seed, workers=workers, format_=format_
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what is simulated is kept in {out}, and the same command resumes"
        ) from None
    kept = f", {n_scenes - n_written} were there already" if n_written < n_scenes else ""
    click.echo(f"{counted(n_written, 'scene')} simulated{kept}: {out}")
