"""`smart-r1 prepare`."""

from __future__ import annotations

from pathlib import Path

import click

from smart_r1.cli.options import scenarios_option
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import counted

_MOST_FINDINGS = 20


@click.command(
    "prepare",
    cls=Command,
    examples=(
        "smart-r1 prepare --scenarios womd/training --out cache/training",
        "smart-r1 prepare --scenarios womd/validation --out cache/validation --workers 8",
    ),
)
@scenarios_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="CACHE",
    required=True,
    help="Folder of the prepared scenes. If it is interrupted, the same command resumes.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
@click.option(
    "--scenes-per-shard",
    type=click.IntRange(min=1, max=100_000),
    metavar="N",
    default=256,
    show_default=True,
    help="Scenes a file.",
)
@click.pass_context
def command(
    ctx: click.Context, scenarios: str, out: Path, workers: int | None, scenes_per_shard: int
) -> None:
    """Turn scenes into what the model trains on.

    Reads every scene once and keeps its agents at 2 Hz and its map in pieces of 5 m, about 75 kB a
    scene. Scenes that cannot be used are named and left out, and the command then exits with 1.
    """
    from smart_r1.cache import prepare_dataset

    try:
        prepared = prepare_dataset(
            scenarios, out, workers=workers, scenes_per_shard=scenes_per_shard, progress=True
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the finished shards are kept in {out}, and the same command resumes"
        ) from None
    if prepared.n_kept:
        kept = f"{prepared.n_kept} of {counted(prepared.n_scenarios, 'scene')}"
        click.echo(f"resumed: {kept} were prepared before", err=True)
    n_left_out = len(prepared.findings)
    for finding in prepared.findings[:_MOST_FINDINGS]:
        click.echo(f"  {finding}", err=True)
    if n_left_out > _MOST_FINDINGS:
        click.echo(f"  ... and {n_left_out - _MOST_FINDINGS} more", err=True)
    left_out = f", {n_left_out} left out" if n_left_out else ""
    click.echo(f"{counted(prepared.n_scenarios - n_left_out, 'scene')} prepared{left_out}: {out}")
    if n_left_out:
        ctx.exit(1)
