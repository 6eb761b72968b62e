"""`wosac score`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wosac_toolkit.challenge import ALL_CHALLENGES
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import FORMATS, summary_text
from wosac_toolkit.errors import WosacError


@click.command(
    "score",
    cls=Command,
    examples=(
        "wosac score rollouts/",
        "wosac score submission.tar.gz --scenarios womd/validation --out runs/smart --per-agent",
        "wosac score generated/ --challenge scenario_gen_2025",
    ),
)
@click.argument("rollouts")
@click.option(
    "--scenarios",
    metavar="PATH",
    help="The scenes (WOMD TFRecords): a file, folder, glob or list of shards. Without it: the "
    "path in the manifest.json beside the rollouts, else the environment variable "
    "WOSAC_SCENARIOS.",
)
@click.option(
    "--challenge",
    type=click.Choice(list(ALL_CHALLENGES)),
    default="2025",
    show_default=True,
    help="Version of the metric; scenario_gen_2025 is that of the Scenario Generation challenge, "
    "whose rollouts hold whole records of 91 steps and box sizes.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write scores.parquet (a row a scene) and summary.json to this folder. If the run is "
    "interrupted, the same command resumes it.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes.  [default: one a CPU, fewer for few scenes]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Score at most so many scenes: the first in the scenario files; of a .tar.gz, the first "
    "in the archive.",
)
@click.option(
    "--scenario-ids",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Score only the scenes whose ids this file lists, one a line.",
)
@click.option(
    "--per-agent", is_flag=True, help="Also write agents.parquet (a row an evaluated agent)."
)
@click.option(
    "--missing",
    type=click.Choice(["error", "intersect"]),
    default="error",
    show_default=True,
    help="Scenes without rollouts and rollouts without scene: refuse them, or score the others "
    "and count these.",
)
@click.option(
    "--rollouts",
    "n_rollouts",
    type=click.Choice(["32", "any"]),
    default="32",
    show_default=True,
    help="Rollouts that each scene must have.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace what an earlier run left in the folder of --out."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="What is printed; json and csv have all digits.",
)
def command(
    rollouts: str,
    scenarios: str | None,
    challenge: str,
    out: Path | None,
    workers: int | None,
    limit: int | None,
    scenario_ids: Path | None,
    per_agent: bool,
    missing: Literal["error", "intersect"],
    n_rollouts: str,
    overwrite: bool,
    format_: str,
) -> None:
    """Score rollouts with the WOSAC metric.

    ROLLOUTS is a folder or a file of submission shards (.binproto), <scenario_id>.npz files or
    pickles of CAT-K and TrajTok, or a .tar.gz of submission shards. All are checked before they are
    scored, and whatever is wrong is named. Prints buckets, components and rates.
    """
    from wosac_toolkit.manifest import find_scenarios
    from wosac_toolkit.scoring import score_dataset

    if scenarios is None:
        scenarios = find_scenarios(rollouts)
        click.echo(f"scenes: {scenarios}", err=True)
    try:
        scored = score_dataset(
            rollouts,
            scenarios,
            challenge=challenge,
            out=out,
            per_agent=per_agent,
            n_rollouts=None if n_rollouts == "any" else int(n_rollouts),
            missing=missing,
            scenario_ids=None if scenario_ids is None else _read_ids(scenario_ids),
            limit=limit,
            workers=workers,
            overwrite=overwrite,
            progress=True,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "nothing was kept; with --out DIR, the same command resumes"
            if out is None
            else f"what is scored is kept in {out}, and the same command resumes"
        ) from None
    if scored.finished_before:
        click.echo(f"{out} holds this run already, finished; nothing was scored again", err=True)
    elif scored.n_kept:
        n_scenes = scored.summary.n_scenarios
        click.echo(f"resumed: {scored.n_kept} of {n_scenes} scenes were scored before", err=True)
    click.echo(summary_text(scored.summary, format_))


def _read_ids(path: Path) -> list[str]:
    """The ids that a file lists, one a line; empty lines and `# comments` are skipped."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise WosacError("not a text file of scenario ids", where=str(path)) from None
    ids = [line.split("#", 1)[0].strip() for line in lines]
    return [scenario_id for scenario_id in ids if scenario_id]
