"""`smart-r1 evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smart_r1.cli.options import make_policy, policy_options, scenarios_option
from wosac_toolkit.challenge import CHALLENGES
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import FORMATS, summary_text


@click.command(
    "evaluate",
    cls=Command,
    examples=(
        "smart-r1 evaluate --checkpoint runs/bc/best --scenarios womd/validation --limit 100",
        "smart-r1 evaluate --checkpoint runs/bc/best --scenarios womd/validation --out runs/bc-val",
    ),
)
@scenarios_option
@policy_options
@click.option(
    "--challenge",
    type=click.Choice(list(CHALLENGES)),
    default="2025",
    show_default=True,
    help="Version of the metric.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write what wosac score writes to this folder, for wosac compare and others. If the run "
    "is interrupted, the same command resumes it.",
)
@click.option(
    "--per-agent", is_flag=True, help="Also write agents.parquet (a row an evaluated agent)."
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
    scenarios: str,
    challenge: str,
    out: Path | None,
    per_agent: bool,
    overwrite: bool,
    limit: int | None,
    format_: str,
    **policy: Any,
) -> None:
    """Simulate scenes and score them.

    The same as `smart-r1 rollout` and then `wosac score`, but the rollouts are not kept: each scene
    is scored while the next is simulated.
    """
    from smart_r1.evaluate import evaluate_dataset

    try:
        scored = evaluate_dataset(
            make_policy(**policy),
            scenarios,
            challenge=challenge,
            out=out,
            per_agent=per_agent,
            limit=limit,
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
