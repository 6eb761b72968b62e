"""`smart-r1 rollout`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from smart_r1.cli.options import make_policy, policy_options, scenarios_option
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted


@click.command(
    "rollout",
    cls=Command,
    examples=(
        "smart-r1 rollout --checkpoint runs/bc/best --scenarios womd/validation --out rollouts/",
        "wosac score rollouts/",
    ),
)
@scenarios_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of the rollouts. If it is interrupted, the same command resumes.",
)
@policy_options
@click.option(
    "--format",
    "format_",
    type=click.Choice(["npz", "submission"]),
    default="npz",
    show_default=True,
    help="A file a scene, or shards as the challenge takes them.",
)
def command(
    scenarios: str,
    out: Path,
    limit: int | None,
    format_: Literal["npz", "submission"],
    **policy: Any,
) -> None:
    """Simulate scenes in closed loop.

    All agents that are valid at the current step are simulated jointly for 8 s: a token of 0.5 s at
    a time, played out at 10 Hz. The rollouts of a scene depend on the seed and the scene alone.
    Writes a manifest.json beside them, by which `wosac score` finds the scenes.
    """
    from smart_r1.evaluate import rollout_dataset

    try:
        n_written, n_scenes = rollout_dataset(
            make_policy(**policy), scenarios, out, format_=format_, limit=limit, progress=True
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what is simulated is kept in {out}, and the same command resumes"
        ) from None
    kept = f", {n_scenes - n_written} were there already" if n_written < n_scenes else ""
    click.echo(f"{counted(n_written, 'scene')} simulated{kept}: {out}")
